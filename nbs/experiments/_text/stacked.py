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
# # Layer by layer, or all at once
#
# > Greedy pretraining of deep networks: what it did for sigmoid units, and what is left of it with ReLU and batch normalisation

# %% [markdown]
# Two studies; the equations are those of lesson 31.
#
# **pretraining.** A deep classifier, of sigmoid units (`network` = "sigmoid") or of ReLU with batch normalisation ("relu_bn"), is trained with labels from several starts: "random", PyTorch's own; "pretrained", the same weights after greedy layer-wise training as autoencoders (31.8) on all training images, without labels; "pretrained_denoising", the same with
# denoising layers that erase a quarter of their input; for sigmoid units also "gain", Glorot's random start with the gain 4 (31.6). All make the same number of supervised updates, whatever the number of labels: the labelled images are repeated. "random_longer" is the random start, trained on until its supervised updates are as many as all updates of
# a pretrained one, supervised and unsupervised. The learning rate is chosen for each arm from the same grid, by the accuracy on `validation` images held out of the training set (which these are, and which images have labels, is drawn by the seed) ("random_longer" goes on with the rate chosen for "random"); the test set has no say. The starts of one network share random weights and head.
#
# *gradient_ratio* is the norm of the gradient of the first layer's weights over that of the head's, before supervised training; *gradient_first*, *gradient_last_hidden*, *gradient_last* are such norms. *train_loss* is the cross-entropy in nats in the last epoch. In rows with the fewest labels *study* is "pretraining", with more labels "pretraining, more labels".
#
# **stacking.** Deep autoencoders ("plain" and "denoising": fully connected; "convolutional": stride 2; all with ELU, which unlike ReLU has no units that are zero for every image and then stay so) trained "layerwise" and "end_to_end" with equal numbers of passes over the images, measured by the mean squared error over every pixel of clean test images;
# *mean_image_mse* is that of answering every image with the mean of the training images. The same for sigmoid units is under the study "stacking, sigmoid".
#
# All training without labels, in both studies, has a grid of learning rates too: the one whose whole autoencoder reconstructs the held-out images best counts. Rates near the edge of a grid are a warning; *lr* shows them.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name; it must have labels
limit: int | None = None  # at least 20: use the first so many training images, those for validation included
validation: int = 500  # at least 10: of them for the choice of the learning rate
labels: list[int] = [100, 1000, 0]  # at least 0: numbers of labelled images; 0 takes all
depth: int = 4  # at least 1: hidden layers of the classifier
width: int = 128  # at least 1: units of each
code_widths: list[int] = [256, 128, 64]  # at least 1: units of the layers of the fully connected autoencoders
channels: list[int] = [8, 16]  # at least 1: maps of the layers of the convolutional autoencoder
pretrain_epochs: int = 8  # at least 1: passes over the images for each layer
epochs: int = 10  # at least 1: supervised passes, each as long as one over all images
batch_size: int = 100  # at least 2: images a step
unsupervised_grid: list[float] = [0.001, 0.01]  # above 0: Adam's learning rates without labels
grid: list[float] = [0.001, 0.003, 0.01]  # above 0: Adam's learning rates with labels
keep: float = 0.75  # above 0: probability with which a denoising layer keeps a value
seed: int = 0  # at least 0: fixes what is labelled, starts, order and noise
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("stacked", globals())

# %% [markdown]
# ## Data

# %%
import copy
import math
import shutil

import torch

from ae_course.autoencoder import Autoencoder, save_model
from ae_course.base import BadArgument
from ae_course.data import Batch, DataError, load
from ae_course.denoising import DenoisingAutoencoder, erase
from ae_course.figures import curves, dots, pick, reconstruction_grid
from ae_course.stacked import (
    Classifier, accuracy, conv_stack, dense_stack, fit_layerwise, forward_all, glorot, gradient_norms,
)  # fmt: skip
from ae_course.training import evaluate, fit, seeded

# %%
if threads is not None:
    torch.set_num_threads(threads)
everything, test = load(dataset, limit=limit), load(dataset, "test")
if everything.y is None or test.y is None:
    raise DataError(f"{dataset}: skipped: no labels; accuracy is a share of right labels: take a data set that has them")
if validation >= len(everything):
    raise BadArgument(f"validation: got {validation} of {len(everything)} images, expected fewer than there are; lower it")
everything = everything[torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))]
train, held_out = everything[:-validation], everything[-validation:]
shape, classes = tuple(train.x.shape[1:]), int(max(train.y.max(), test.y.max())) + 1
counts = sorted({min(n or len(train), len(train)) for n in labels})
steps = math.ceil(len(train) / batch_size)
mean_image = (test.pixels() - train.pixels().mean(0)).square().mean().item()
common = {"batch_size": batch_size, "seed": seed, "device": device}
train, held_out, test

# %% [markdown]
# ## Starts

# %%
NETWORKS = {"sigmoid": {"activation": "sigmoid"}, "relu_bn": {"activation": "relu", "batch_norm": True}}


def networks(kind: str):
    "The autoencoder of blocks for a kind of network, plain and denoising, both from the same random weights."
    loss = "bce" if kind == "sigmoid" else "mse"
    with seeded(seed):
        plain = Autoencoder(*dense_stack(shape, (width,) * depth, **NETWORKS[kind]), reconstruction=loss)
    return plain, DenoisingAutoencoder(*copy.deepcopy((plain.encoder, plain.decoder)), corruption=erase(keep), reconstruction=loss)


def classifier(encoder) -> Classifier:
    "A classifier on a copy of the encoder, always with the same head."
    with seeded(seed + 1):
        return Classifier(copy.deepcopy(encoder), width, classes)


def best_stack(model, way: str, epochs: int, stage) -> tuple:
    "(model, learning rate): `model` trained layerwise or end_to_end, with the rate that reconstructs held-out images best; no labels."
    found, passes = [], len(model.encoder) * epochs
    whole = len(unsupervised_grid) * passes
    for i, lr in enumerate(unsupervised_grid):
        candidate = copy.deepcopy(model)
        told = lambda row, begun=i * passes: stage.progress({**row, "epoch": begun + row["epoch"], "epochs": whole})
        train_it, each = (fit_layerwise, epochs) if way == "layerwise" else (fit, passes)
        kept = stage.checkpoint.with_stem(f"{stage.checkpoint.stem}-{i}")
        train_it(candidate, train, epochs=each, lr=lr, checkpoint=kept, progress=told, **common)
        found.append((evaluate(candidate, held_out)["loss"], lr, candidate))
    _, lr, best = min(found, key=lambda one: one[:2])
    return best, lr


starts = {}
for (kind, start_name), stage in run.stages([(k, s) for k in NETWORKS for s in ("pretrained", "pretrained_denoising")], label="{}, {}"):
    plain, denoising = networks(kind)
    starts.setdefault((kind, "random"), plain.encoder)
    model, lr = best_stack(plain if start_name == "pretrained" else denoising, "layerwise", pretrain_epochs, stage)
    starts[kind, start_name] = model.cpu().encoder
    print(f"{kind}, {start_name}: learning rate without labels {lr:g}")
    save_model(model, run.path(f"stack_{kind}_{start_name}.safetensors"))
with seeded(seed):
    starts["sigmoid", "gain"] = glorot(dense_stack(shape, (width,) * depth, **NETWORKS["sigmoid"])[0], 4.0)

# %% [markdown]
# ## Supervised training

# %%
rows, losses, norms, chosen = [], {}, {}, {}
probe = train[: min(500, len(train))]
probe = Batch(probe.pixels(), probe.y)


def repeated(count: int):
    "The first `count` training images, repeated to as many as there are in all."
    return train[torch.arange(len(train)) % count]


def note(kind, start_name, count, model, history, lr) -> None:
    "A row, and the loss for the figure."
    gradient = norms[kind, start_name.replace("_longer", "")].tolist()
    losses[kind, start_name, count] = history["loss"]
    study = "pretraining" if count == counts[0] else "pretraining, more labels"
    unsupervised = depth * pretrain_epochs * steps if start_name.startswith("pretrained") else 0
    rows.append({"seed": seed, "study": study, "network": kind, "start": start_name, "labels": count, "depth": depth, "lr": lr,
                 "accuracy": accuracy(model, test), "validation_accuracy": accuracy(model, held_out), "train_loss": history["loss"][-1],
                 "supervised_updates": steps * len(history), "unsupervised_updates": unsupervised,
                 "gradient_ratio": gradient[0] / gradient[-1], "gradient_first": gradient[0],
                 "gradient_last_hidden": gradient[-2], "gradient_last": gradient[-1],
                 "stack": None, "training": None, "test_mse": None, "mean_image_mse": None,
                 "seconds": sum(history["seconds"])})  # fmt: skip


for (kind, start_name), encoder in starts.items():
    norms[kind, start_name] = gradient_norms(classifier(encoder), probe)
arms = [(*arm, count) for arm in starts for count in counts]
for (kind, start_name, count), stage in run.stages(arms, label="{}, {}, {} labels"):
    found = []
    for i, lr in enumerate(grid):
        model = classifier(starts[kind, start_name])
        kept = stage.checkpoint.with_stem(f"{stage.checkpoint.stem}-{i}")
        told = lambda row, i=i: stage.progress({**row, "epoch": i * epochs + row["epoch"], "epochs": len(grid) * epochs})
        history = fit(model, repeated(count), epochs=epochs, lr=lr, checkpoint=kept, progress=told, **common)
        found.append((accuracy(model, held_out), -lr, model, history, kept))
    best = max(found, key=lambda one: one[:2])
    note(kind, start_name, count, best[2], best[3], -best[1])
    if start_name == "random":
        chosen[kind, count] = -best[1], best[4]

# %% [markdown]
# The random start goes on from where its chosen run ended, to as many updates in all as a pretrained one has had:

# %%
total = epochs + depth * pretrain_epochs
for (kind, count), stage in run.stages(chosen, label="{}, random_longer, {} labels"):
    lr, before = chosen[kind, count]
    if not stage.checkpoint.exists():
        shutil.copy(before, stage.checkpoint)
    model = classifier(starts[kind, "random"])
    history = fit(model, repeated(count), epochs=total, lr=lr, checkpoint=stage.checkpoint, progress=stage.progress, **common)
    note(kind, "random_longer", count, model, history, lr)

# %% [markdown]
# ## Layer by layer against end to end

# %%
builders = {
    "plain": (lambda: dense_stack(shape, code_widths, "elu"), Autoencoder),
    "denoising": (lambda: dense_stack(shape, code_widths, "elu"), lambda e, d: DenoisingAutoencoder(e, d, corruption=erase(keep))),
    "convolutional": (lambda: conv_stack(shape, channels, "elu"), Autoencoder),
    "sigmoid": (lambda: dense_stack(shape, code_widths, "sigmoid"), Autoencoder),
}
examples = test[pick(10, len(test), seed)].pixels()
images = {}
for (name, way), stage in run.stages([(n, w) for n in builders for w in ("layerwise", "end_to_end")], label="{}, {}"):
    build, family = builders[name]
    with seeded(seed):
        model = family(*build())
    model, lr = best_stack(model, way, pretrain_epochs, stage)
    study, kind = ("stacking, sigmoid", "sigmoid") if name == "sigmoid" else ("stacking", "elu")
    rows.append(dict.fromkeys(rows[0]) | {"seed": seed, "study": study, "stack": name, "training": way, "network": kind,
                "depth": len(model.encoder), "lr": lr, "unsupervised_updates": len(model.encoder) * pretrain_epochs * steps,
                "test_mse": evaluate(model, test)["loss"], "mean_image_mse": mean_image})  # fmt: skip
    images[f"{name}, {way}"] = forward_all(model, examples).cpu()

# %% [markdown]
# ## Figures
#
# Training losses; gradient norms by layer before supervised training; accuracies; reconstructions of test images.

# %%
for kind in NETWORKS:
    for count in sorted({counts[0], counts[-1]}):
        lines = {name: losses[kind, name, count] for (k, name, n) in losses if (k, n) == (kind, count)}
        title = f"{dataset}, {kind}, {count} labels, seed {seed}"
        alt = f"Training loss over the epochs, {title}, a line a start"
        run.save(curves(lines, y="cross-entropy (nats)", title=title, alt=alt), f"loss_{kind}_{count}")
lines = {f"{kind}, {name}": values.tolist() for (kind, name), values in norms.items()}
alt = "Norm of the gradient of each layer's weights before supervised training, a line a network and start"
axes = {"x": "layer, the last is the head", "y": "norm of the gradient"}
run.save(curves(lines, title=f"{dataset}, seed {seed}", alt=alt, **axes), "gradients")

# %%
values = {f"{n} labels": {f"{r['network']}, {r['start']}": r["accuracy"] for r in rows if r["labels"] == n} for n in counts}
alt = "Test accuracy by network, start and number of labels"
run.save(dots(values, x="test accuracy", title=f"{dataset}, seed {seed}", alt=alt), "accuracy")
run.save(reconstruction_grid(examples, images, title=f"{dataset}, seed {seed}"), "reconstructions")

# %%
run.finish(rows)
