# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Code size
#
# > The slides' experiment: how small may the code become before the digits do?

# %% [markdown]
# Reruns *Experiment: learn to encode MNIST* (LMU Munich, *Deep Learning*, chapter 8) with the slides' network exactly: one linear layer to the code, no
# activation there, one linear layer back, a sigmoid at the output; squared error; weights drawn uniformly from (-0.01, 0.01), biases zero; Adam; batches
# of 32; 50 rounds; codes of 784, 256, 64, 32, 16, 8, 4, 2 and 1. Beside each stands what PCA with as many components reaches on the same
# images. The claim to be tested: the smaller the code, the worse the reconstruction.
#
# All errors are mean squared errors over every pixel of every image, pixel values in [0, 1].

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name
limit: int | None = None  # at least 1: use the first so many training images
sizes: list[int] = [784, 256, 64, 32, 16, 8, 4, 2, 1]  # at least 1: code sizes z
epochs: int = 50  # at least 1: passes over the training images (the slides' rounds)
batch_size: int = 32  # at least 1: images a step
lr: float = 0.001  # above 0: Adam's learning rate
init: float = 0.01  # above 0: weights start uniform in (-init, init)
seed: int = 0  # at least 0: fixes the start and the order of the images
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float32"  # one of float32, bfloat16: arithmetic of the networks
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("code_size", globals())

# %% [markdown]
# ## Data

# %%
import torch

from ae_course.autoencoder import Autoencoder, mlp, save_model
from ae_course.data import load
from ae_course.figures import curves, image_grid, show
from ae_course.linear import PCA
from ae_course.metrics import per_image_mse
from ae_course.training import evaluate, fit, seeded

# %%
if threads is not None:
    torch.set_num_threads(threads)
train = load(dataset, limit=limit)
test = load(dataset, "test")
shape = tuple(train.x.shape[1:])
train, test

# %% [markdown]
# ## Train
#
# Each size starts from the same seed and sees the same batches in the same order.

# %%
rows, histories, reconstructions = [], {}, {}
shown = test.pixels()[:10]
for size, stage in run.stages(sizes, label="z = {}", cost=lambda z: z + 200):
    with seeded(seed):
        model = Autoencoder(*mlp(shape, hidden=(), latent_dim=size, output="sigmoid", init=init))
    history = fit(
        model,
        train,
        validation=test,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        device=device,
        precision=precision,
        checkpoint=stage.checkpoint,
        progress=stage.progress,
    )
    rows.append(
        {
            "seed": seed,
            "z": size,
            "train_mse": evaluate(model, train)["loss"],
            "test_mse": evaluate(model, test)["loss"],
            "seconds": sum(history["seconds"]),
        }
    )
    histories[f"z = {size}"] = history["validation_loss"]
    with torch.no_grad():
        reconstructions[f"z = {size}"] = model.cpu()(shown)
    save_model(model, run.path(f"model_z{size}.safetensors"))

# %% [markdown]
# ## PCA beside it
#
# PCA is fitted to the training images; its test error is that of the test images projected onto the same components. It is the best *linear* map of its
# rank on the training images (lesson 10); the network above differs from it by the sigmoid and by its training.

# %%
x_train, x_test = train.pixels().flatten(1), test.pixels().flatten(1)
pca = PCA(min(max(sizes), *x_train.shape)).fit(x_train)  # there are no more components than images or pixels
for row in rows:
    first = pca.first(min(row["z"], pca.n_components))
    for split, x in (("train", x_train), ("test", x_test)):
        row[f"pca_{split}_mse"] = per_image_mse(first.reconstruct(x), x).mean().item()

# %% [markdown]
# ## The slides' grid, and the errors

# %%
grid = image_grid(
    {"input": shown} | reconstructions,
    title=f"{dataset}, {epochs} epochs, seed {seed}",
    alt="Top row: ten test digits; below them their reconstructions, one row for each code size from the largest to the smallest",
)
run.save(grid, "reconstructions")
show(grid)

# %% [markdown]
# PCA with as many components as there are pixels has no error at all, which a logarithmic axis cannot show; such points are left out.

# %%
by_size = {}
for kind, prefix in (("autoencoder", ""), ("PCA", "pca_")):
    for split in ("train", "test"):
        column = f"{prefix}{split}_mse"
        points = sorted((row["z"], row[column]) for row in rows if row[column] > 1e-12)
        by_size[f"{kind}, {split}"] = tuple(zip(*points))
errors = curves(
    by_size,
    x="code size z",
    y="mean squared error",
    log_x=True,
    alt="Mean squared error of the autoencoder and of PCA against the code size, on training and test images",
)
run.save(errors, "error_by_size")
show(errors)

# %%
training = curves(histories, x="epoch", y="test error", ordered=True, alt="Test error by epoch, one line for each code size")
run.save(training, "training")
show(training)

# %%
run.finish(rows)
