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
#
# Reruns *Experiment: learn to encode MNIST* (LMU Munich, *Deep Learning*, chapter 8) with the slides' network exactly: one linear layer to the code, no
# activation there, one linear layer back, a sigmoid at the output; squared error; weights drawn uniformly from (-0.01, 0.01), biases zero; Adam; batches
# of 32; 50 rounds; codes of 784, 256, 64, 32, 16, 8, 4, 2 and 1. Beside each stands what PCA with as many components reaches on the same
# images. Claim L3: the smaller the code, the worse the reconstruction.
#
# All errors are mean squared errors over every pixel of every image, pixel values in [0, 1].

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name
limit: int | None = None  # >= 1: use the first so many training images
sizes: list[int] = [784, 256, 64, 32, 16, 8, 4, 2, 1]  # >= 1: code sizes z
epochs: int = 50  # >= 1: passes over the training images (the slides' rounds)
batch_size: int = 32  # >= 1: images a step
lr: float = 0.001  # > 0: Adam's learning rate
init: float = 0.01  # > 0: weights start uniform in (-init, init)
seed: int = 0  # >= 0: fixes the start and the order of the images
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float32"  # one of float32, bfloat16: arithmetic of the networks

# %%
from ae_course.lab import start

run = start("code_size", globals())

# %% [markdown]
# ## Data

# %%
import torch

from ae_course.autoencoder import Autoencoder, mlp, save_model
from ae_course.data import load
from ae_course.figures import curves, image_grid
from ae_course.linear import PCA
from ae_course.metrics import per_image_mse
from ae_course.training import evaluate, fit, seeded

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
for size, stage in run.stages(sizes, label="z = {}", cost=lambda z: 2 * z + 60):
    with seeded(seed):
        model = Autoencoder(*mlp(shape, hidden=(), latent_dim=size, output="sigmoid", init=init))
    history = fit(model, train, validation=test, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, device=device,
                  precision=precision, checkpoint=stage.checkpoint, progress=stage.progress)
    with torch.no_grad():
        reconstructions[f"z = {size}"] = model.cpu().eval()(shown)
    histories[f"z = {size}"] = history["validation_loss"]
    rows.append({"seed": seed, "z": size, "train_mse": evaluate(model, train)["loss"], "test_mse": evaluate(model, test)["loss"],
                 "seconds": sum(history["seconds"])})
    save_model(model, run.path(f"model_z{size}.safetensors"))

# %% [markdown]
# ## PCA beside it
#
# PCA is fitted to the training images; its test error is that of the test images projected onto the same components. It is the best *linear* map of its
# rank on the training images (lesson 10); the network above differs from it by the sigmoid and by its training.

# %%
x_train, x_test = train.pixels().flatten(1), test.pixels().flatten(1)
for row in rows:
    pca = PCA(min(row["z"], *x_train.shape)).fit(x_train)
    for split, x in (("train", x_train), ("test", x_test)):
        row[f"pca_{split}_mse"] = per_image_mse(pca.inverse_transform(pca.transform(x)), x).mean().item()

# %% [markdown]
# ## The slides' grid, and the errors

# %%
grid = image_grid({"input": shown} | reconstructions, title=f"{dataset}, {epochs} epochs, seed {seed}",
                  alt="Top row: ten test digits; below them their reconstructions, one row for each code size from the largest to the smallest")
run.save(grid, "reconstructions")

# %%
by_size = {f"{kind} {split}": ([row["z"] for row in rows], [row[f"{prefix}{split}_mse"] for row in rows])
           for kind, prefix in (("autoencoder", ""), ("PCA", "pca_")) for split in ("train", "test")}
run.save(curves(by_size, x="code size z", y="mean squared error", log_x=True, log=True,
                alt="Mean squared error of the autoencoder and of PCA against the code size, on training and test images"), "error_by_size")
run.save(curves(histories, x="epoch", y="test error", log=True, alt="Test error by epoch, one line for each code size"), "training")

# %%
run.finish(rows)
