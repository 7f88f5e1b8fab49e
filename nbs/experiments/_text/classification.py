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
# # Few labels: codes, fine-tuning, two heads
#
# > What an autoencoder does for a classifier when labels are few, against pixels, principal components and the same network without it

# %% [markdown]
# The equations are those of lesson 50. `validation` images are held out of the training set (which these are, and which of the others have labels, is drawn by the seed); they choose, for every method alike, between the values of its grid. The test set has no say. Labels are as many of each class as can be; 0 labels in the parameter take all.
#
# *method*, with *classifier* a logistic regression on features, the support vector machine with Gaussian kernel (names that end in `_svm`), or a network:
#
# - `pixels`, `pca` (as many components as the code has units), `codes` (an autoencoder trained on all training images without labels), `random_codes` (the same encoder, never trained): penalties from `penalties`;
# - `supervised`: encoder and linear head from a random start; `fine_tuned`: the same from the autoencoder's encoder; `reconstruction_head`: from the random start with the loss (50.3) on the labelled images; `reconstruction_head_unlabelled`: with the reconstruction of all images as well, as the mean over both halves of a batch, which is not (50.3) exactly: a labelled image weighs one plus the number of images over that of labels times as much as another. Learning rates from `rates`, the reconstruction's weight from `weights`. With all labels there are no
#   unlabelled images, and that row is missing.
#
# All networks make the same number of updates, and each update sees `batch_size` labelled images, repeated if need be; `reconstruction_head_unlabelled` sees as many others beside them. *chosen* is the penalty's C, divided by the variance of the features, or the learning rate, *weight* the reconstruction's. All networks of a seed begin from the same random encoder and decoder.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name; it must have labels
limit: int | None = None  # at least 40: use the first so many training images, those for validation included
validation: int = 500  # at least 10: of them for choosing
label_counts: list[int] = [10, 100, 1000, 0]  # at least 0: numbers of labelled images; 0 takes all
hidden: list[int] = [256]  # at least 1: units of the hidden layers
latent_dim: int = 32  # at least 1: units of the code
pretrain_epochs: int = 30  # at least 1: passes of the autoencoder over all images
epochs: int = 10  # at least 1: supervised passes, each as long as one over all images
batch_size: int = 100  # at least 2: images a step
penalties: list[float] = [0.01, 0.1, 1.0, 10.0]  # above 0: scikit-learn's C of the classifiers on features
rates: list[float] = [0.001, 0.003]  # above 0: Adam's learning rates with labels
weights: list[float] = [0.3, 3.0, 30.0]  # above 0: weights of the reconstruction (mean squared error over the pixels)
seed: int = 0  # at least 0: fixes what is held out and labelled, starts, order
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("classification", globals())

# %% [markdown]
# ## Data and features

# %%
import copy
import itertools

import torch

from ae_course.autoencoder import Autoencoder, mlp, save_model
from ae_course.base import BadArgument
from ae_course.classification import Paired, SupervisedAutoencoder, best_classifier, codes, keep_labels
from ae_course.data import load
from ae_course.figures import curves, dots, pick, reconstruction_grid
from ae_course.linear import PCA
from ae_course.stacked import Classifier, accuracy, forward_all
from ae_course.training import fit, seeded

# %%
if threads is not None:
    torch.set_num_threads(threads)
everything, test = load(dataset, limit=limit), load(dataset, "test")
if validation >= len(everything):
    raise BadArgument(f"validation: got {validation} of {len(everything)} images, expected fewer than there are; lower it")
everything = everything[torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))]
train, held_out = everything[:-validation], everything[-validation:]
counts = sorted({min(n or len(train), len(train)) for n in label_counts})
labelled = {count: keep_labels(train, count, seed) for count in counts}
shape, classes = tuple(train.x.shape[1:]), int(max(train.y.max(), test.y.max())) + 1
common = {"batch_size": batch_size, "seed": seed, "device": device}
train, held_out, test


# %%
def networks():
    "(encoder, decoder), always from the same random weights."
    with seeded(seed):
        return mlp(shape, hidden, latent_dim)


autoencoder, untrained = Autoencoder(*networks()), Autoencoder(*networks())
for _, stage in run.stages(["autoencoder"]):
    history = fit(autoencoder, train, epochs=pretrain_epochs, checkpoint=stage.checkpoint, progress=stage.progress, **common)
save_model(autoencoder, run.path("autoencoder.safetensors"))
parts = {"train": train, "validation": held_out, "test": test}
pixels = {name: part.pixels().flatten(1) for name, part in parts.items()}
pca = PCA(latent_dim).fit(pixels["train"])
features = {
    "pixels": pixels,
    "pca": {name: pca.transform(part).float() for name, part in pixels.items()},
    "codes": {name: codes(autoencoder, part) for name, part in parts.items()},
    "random_codes": {name: codes(untrained, part) for name, part in parts.items()},
}

# %% [markdown]
# ## Classifiers on features

# %%
rows = []


def note(method: str, classifier: str, count: int, share: float, validation_share: float, chosen: float, weight=None, history=None) -> None:
    rows.append({"seed": seed, "method": method, "classifier": classifier, "labels": count, "accuracy": share,
                 "validation_accuracy": validation_share, "chosen": chosen, "weight": weight,
                 "train_cross_entropy": history and history["loss" if weight is None else "cross_entropy"][-1]})  # fmt: skip


arms = list(itertools.product(("logistic", "svm"), features, counts))
for (kind, name, count), _ in run.stages(arms, label="{}, {}, {} labels", cost=lambda arm: arm[2]):
    f, at, y = features[name], labelled[count].y >= 0, labelled[count].y
    best = best_classifier(f["train"][at], y[at], f["validation"], held_out.y, kind, penalties)
    shares = [best.score(f[part].numpy(), parts[part].y.numpy()) for part in ("test", "validation")]
    note(name if kind == "logistic" else f"{name}_svm", kind, count, *shares, best.C)


# %% [markdown]
# ## Networks

# %%
def repeated(count: int):
    "The labelled images alone, repeated to as many as there are images."
    some = labelled[count][labelled[count].y >= 0]
    return some[torch.arange(len(train)) % len(some)]


def network(method: str, weight: float):
    "A model to train and the network whose logits count; the head is always the same."
    with seeded(seed + 1):
        head = torch.nn.Linear(latent_dim, classes)
    if method in ("supervised", "fine_tuned"):
        model = Classifier(copy.deepcopy(autoencoder.cpu().encoder if method == "fine_tuned" else networks()[0]), latent_dim, classes)
    else:
        model = SupervisedAutoencoder(*networks(), latent_dim, classes, weight)
    model.head.load_state_dict(head.state_dict())
    return model, model if isinstance(model, Classifier) else model.classifier


methods = {"supervised": (None,), "fine_tuned": (None,), "reconstruction_head": weights, "reconstruction_head_unlabelled": weights}
arms = [(method, count) for method in methods for count in counts if method != "reconstruction_head_unlabelled" or count < len(train)]
examples, images = test[pick(10, len(test), seed)].pixels(), {}
for (method, count), stage in run.stages(arms, label="{}, {} labels", cost=lambda arm: len(methods[arm[0]])):
    data, found = Paired(labelled[count]) if method.endswith("unlabelled") else repeated(count), []
    grid = list(itertools.product(rates, methods[method]))
    for i, (rate, weight) in enumerate(grid):
        model, logits = network(method, weight)
        told = lambda row, i=i: stage.progress({**row, "epoch": i * epochs + row["epoch"], "epochs": len(grid) * epochs})
        kept = stage.checkpoint.with_stem(f"{stage.checkpoint.stem}-{i}")
        history = fit(model, data, epochs=epochs, lr=rate, checkpoint=kept, progress=told, **common)
        found.append((accuracy(logits, held_out), -i, rate, weight, model, logits, history))
    share, _, rate, weight, model, logits, history = max(found, key=lambda one: one[:2])  # of equals the first of the grid
    note(method, "network", count, accuracy(logits, test), share, rate, weight, history)
    if weight is not None and count == counts[0]:
        images[f"{method}, {count} labels"] = forward_all(model, examples).cpu()

# %% [markdown]
# ## Figures
#
# Test accuracy over the number of labels; with the fewest and the most labels by method; what the two heads' decoders reconstruct.

# %%
title = f"{dataset}, seed {seed}"
on_features = [m for m in dict.fromkeys(r["method"] for r in rows) if m not in methods]
for name, wanted in {"features": on_features, "networks": list(methods)}.items():
    lines = {m: tuple(zip(*[(r["labels"], r["accuracy"]) for r in rows if r["method"] == m])) for m in wanted}
    alt = f"Test accuracy over the number of labels, a line for each of {len(lines)} methods, {title}"
    run.save(curves(lines, x="labels", y="test accuracy", log=False, log_x=True, title=title, alt=alt), f"accuracy_{name}")
for count in counts:
    values = {r["method"]: r["accuracy"] for r in rows if r["labels"] == count}
    alt = f"Test accuracy by method, {count} labels"
    run.save(dots(values, x="test accuracy", title=f"{title}, {count} labels", alt=alt), f"methods_{count}")
images = {"autoencoder": forward_all(autoencoder, examples).cpu(), **images}
run.save(reconstruction_grid(examples, images, title=title), "reconstructions")

# %%
run.finish(rows)
