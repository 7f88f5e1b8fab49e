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
# A second network, *deep*, has hidden layers with ReLU on both sides of the code and PyTorch's own start, and is trained by the same recipe. It has no rows for codes as wide as its narrowest hidden layer or
# wider: there, not the code would be its bottleneck.
#
# All errors are mean squared errors over every pixel of every image, pixel values in [0, 1].

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name
limit: int | None = None  # at least 2: use the first so many training images
sizes: list[int] = [784, 256, 64, 32, 16, 8, 4, 2, 1]  # at least 1: code sizes z
networks: list[str] = ["slides", "deep"]  # one of slides, deep: which networks to train
hidden: list[int] = [256, 256]  # at least 1: widths of the deep network's layers before the code
epochs: int = 50  # at least 1: passes over the training images (the slides' rounds)
batch_size: int = 32  # at least 1: images a step
lr: float = 0.001  # above 0: Adam's learning rate
init: float = 0.01  # above 0: weights of the slides' network start uniform in (-init, init)
seed: int = 0  # at least 0: fixes the start and the order of the images
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float32"  # one of float32, bfloat16: arithmetic of the networks
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice
workers: int = 1  # at least 1: networks trained side by side on a processor, each in a process with one thread

# %%
from ae_course.lab import start

run = start("code_size", globals())

# %% [markdown]
# ## Data

# %%
import torch

from ae_course.autoencoder import save_model
from ae_course.data import load
from ae_course.figures import curves, image_grid, show
from ae_course.linear import PCA
from ae_course.metrics import per_image_mse
from ae_course.training import evaluate, fit_many, seeded
from ae_course.undercomplete import network

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
arms = [(kind, size) for kind in networks for size in sizes if kind == "slides" or size < min(hidden)]
rows, histories, reconstructions = [], {kind: {} for kind, _ in arms}, {kind: {} for kind, _ in arms}
shown = test.pixels()[:10]
cost = {"slides": lambda z: z + 200, "deep": lambda z: 700}
together = run.together(arms, label="{}, z = {}", cost=lambda arm: cost[arm[0]](arm[1]))
models = []
for kind, size in arms:
    with seeded(seed):
        models.append(network(kind, shape, size, init=init, hidden=hidden))
trained = fit_many(
    models,
    train,
    validation=test,
    epochs=epochs,
    batch_size=batch_size,
    lr=lr,
    seed=seed,
    device=device,
    precision=precision,
    workers=workers,
    checkpoint=together.checkpoints,
    progress=together.progress,
)
for (kind, size), model, history in zip(arms, models, trained):
    rows.append(
        {
            "seed": seed,
            "network": kind,
            "z": size,
            "train_mse": evaluate(model, train)["loss"],
            "test_mse": evaluate(model, test)["loss"],
            "seconds": sum(history["seconds"]),
        }
    )
    histories[kind][f"z = {size}"] = history["validation_loss"]
    with torch.no_grad():
        reconstructions[kind][f"z = {size}"] = model.cpu()(shown)
    save_model(model, run.path(f"model_{kind}_z{size}.safetensors"))

# %% [markdown]
# ## PCA beside it
#
# PCA is fitted to the training images; its test error is that of the test images projected onto the same components. It is the best *linear* map of its
# rank on the training images (lesson 10); the slides' network differs from it by the sigmoid and by its training.

# %%
x_train, x_test = train.pixels().flatten(1), test.pixels().flatten(1)
pca = PCA(min(max(sizes), *x_train.shape)).fit(x_train)  # there are no more components than images or pixels
by_pca = {}
for size in sizes:
    first = pca.first(min(size, pca.n_components))
    by_pca[size] = {
        f"pca_{split}_mse": per_image_mse(first.reconstruct(x), x).mean().item() for split, x in (("train", x_train), ("test", x_test))
    }
for row in rows:
    row |= by_pca[row["z"]]

# %% [markdown]
# ## The slides' grid, and the errors

# %%
for kind, images in reconstructions.items():
    grid = image_grid(
        {"input": shown} | images,
        title=f"{dataset}, {epochs} epochs, seed {seed}" + ("" if kind == "slides" else f", {kind} network"),
        alt="Top row: ten test digits; below them their reconstructions, one row for each code size from the largest to the smallest",
    )
    run.save(grid, "reconstructions" if kind == "slides" else f"reconstructions_{kind}")
    show(grid)

# %% [markdown]
# PCA with as many components as there are pixels has no error at all, which a logarithmic axis cannot show; such points are left out.

# %%
by_size = {}
for split in ("train", "test"):
    column = f"{split}_mse"
    sources = {f"{kind}, {split}": [(row["z"], row[column]) for row in rows if row["network"] == kind] for kind in reconstructions}
    sources[f"PCA, {split}"] = [(size, errors[f"pca_{column}"]) for size, errors in by_pca.items()]
    kept = {name: sorted(p for p in points if p[1] > 1e-12) for name, points in sources.items()}
    by_size |= {name: tuple(zip(*points)) for name, points in kept.items() if points}
errors = curves(
    by_size,
    x="code size z",
    y="mean squared error",
    log_x=True,
    alt="Mean squared error of the networks and of PCA against the code size, on training and test images",
)
run.save(errors, "error_by_size")
show(errors)

# %%
for kind, lines in histories.items():
    alt = f"Test error of the {kind} network by epoch, one line for each code size"
    training = curves(lines, x="epoch", y="test error", ordered=True, title=kind, alt=alt)
    run.save(training, "training" if kind == "slides" else f"training_{kind}")
    show(training)

# %%
run.finish(rows)
