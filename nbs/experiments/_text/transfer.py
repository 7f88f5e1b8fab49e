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
# # Transfer
#
# > What linear maps read from the codes of the bottleneck study, and which half of a network overfits

# %% [markdown]
# Tests what *Walking the Tightrope* (submission to ICLR, 2020) says in Sections 3.2 and 4 about knowledge transfer: codes of larger height and width transfer better, and better than pixels; probes do better on the codes of test images; and it asks whether overfitting sits in the encoder or in the decoder. Lesson [32](../32_representations.ipynb) explains the probes, lesson [33](../33_bottleneck.ipynb) the networks.
#
# The studies:
#
# - `probes`: a network for each of the `levels` (sizes of the code) and `fractions` (of the input's values that the code holds). Linear probes on the codes of as many training as test images, five folds, weight decay `weight_decay`, everything scaled within the fold; beside them probes on the pixels and on the codes of the same networks as they start (`untrained`). Of classes the probe is multinomial, of CelebA's attributes and of Pokémon's
# two types it is a probe a label, and `score` is macro F1 (labels with fewer than two positive or two negative samples a fold are left out, and named). A set with known numbers instead (`shapes`: the position x, y of a rectangle, as fractions of the side) has linear regression, rows of the study `positions`, and $R^2$ as `score`; so have CelebA's landmarks where the official files are there (study `landmarks`). Rows of the studies `probes`, `positions`, `landmarks` are means over the fractions, one a size; the cells themselves are rows of `cells`.
# - `refit`: a network of each of the `refit_levels` is trained on few images until it overfits. Then one half starts anew and is trained, as long, on as many held-out images, while the other half stays as it is. `gap_removed` is the share of the gap between held-out and training error that this takes away on the held-out images: (held_out_mse - refit_mse) / (held_out_mse - train_mse). If the encoder is general and only the decoder overfitted, a new decoder takes away all of it.
# The refitted half has seen these images and may overfit to them in its turn, so the errors on third images, which no half has seen, stand beside: `third_mse` before, `third_refit_mse` after.
#
# Errors are mean squared errors over every value of every image.

# %% tags=["parameters"]
dataset: str = "celeba"  # data set, by name
variant: str | None = None  # a paper's own choice and crop of it, such as tightrope
test_dataset_split: str = "test"  # split of the images that no network is trained on
studies: list[str] = ["probes", "refit"]  # one of probes, refit: what to do
image_size: int = 32  # at least 4: pixels of a side
limit: int = 800  # at least 10: use the first so many training images
test_limit: int = 800  # at least 10: use the first so many test images
levels: list[int] = [1, 2, 3]  # at least 1, at most 3: sizes of the bottleneck, by Equation 5
fractions: list[float] = [0.25, 1.0]  # above 0: shares of the input's values that the code holds
decoder: str = "mirror"  # one of mirror, published: which up-samplings a larger code spares
depth: int = 3  # at least 2: strided convolutions, 5 in the paper
blocks: int = 2  # at least 0: residual blocks a stage, 2 in the paper
epochs: int = 3  # at least 1: passes over the training images
batch_size: int = 8  # at least 1: images a step, 32 in the paper
lr: float = 0.002  # above 0: Adam's learning rate, 0.0005 in the paper
folds: int = 5  # at least 2: of the cross-validation
weight_decay: float = 0.01  # at least 0: of the probes
refit_size: int = 16  # at least 4: pixels of a side in the study refit
refit_images: int = 100  # at least 2: training images, held-out images and third images there, each
refit_levels: list[int] = [1, 2]  # at least 1, at most 3: sizes of the bottleneck there
refit_fraction: float = 0.25  # above 0: share of the input's values that the code holds there
refit_depth: int = 2  # at least 1: strided convolutions there
refit_epochs: int = 100  # at least 1: passes over the images there, for the network and for each half
seed: int = 0  # at least 0: fixes the weights, the order of the images and the folds
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float32"  # one of float32, bfloat16: arithmetic of the training
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("transfer", globals())

# %% [markdown]
# ## Data, and what is asked of the codes

# %%
from functools import partial
from statistics import fmean

import torch

from ae_course.autoencoder import Autoencoder
from ae_course.base import BadArgument
from ae_course.bottleneck import bottleneck, grid, refit
from ae_course.data import load
from ae_course.figures import curves, dots, pick, reconstruction_grid
from ae_course.metrics import per_image_mse
from ae_course.representations import probe
from ae_course.stacked import forward_all
from ae_course.training import fit, pick_device, seeded

# %%
if threads is not None:
    torch.set_num_threads(threads)
place, rows = pick_device(device), []
read = partial(load, dataset, variant=variant)
options = {"batch_size": batch_size, "lr": lr, "seed": seed, "device": device, "precision": precision}
about = f"{dataset}, seed {seed}"


def targets(images, others):
    "{study: (its target for `images`, its score)}; labels that are too rare here or in `others` are dropped."
    found = {}
    if "attributes" in images.extras:
        names, labels, other = images.about.get("attributes"), images.extras["attributes"], others.extras["attributes"]
    elif "second_type" in images.extras:
        names, hot = images.classes, lambda d: torch.stack([(d.y == c) | (d.extras["second_type"] == c) for c in range(len(d.classes))], 1)
        labels, other = hot(images), hot(others)
    elif images.y is not None:
        return {"probes": (images.y, "f1")} | landmarks(images)
    else:
        positions = torch.stack([images.extras[axis].double() for axis in "xy"], 1) if "x" in images.extras else None
        if positions is None:
            raise BadArgument(f"dataset: {images.name} {images.split} has no labels and no known numbers; take another for the probes")
        return {"positions": (positions, "r2")}
    often = torch.stack([torch.minimum(t.long().sum(0), (1 - t.long()).sum(0)) for t in (labels, other)]).amin(0) >= 2 * folds
    rare = [names[i] if names else str(i) for i in (~often).nonzero()[:, 0].tolist()]
    print(f"{images.name} {images.split}: {int(often.sum())} labels" + (f"; too rare, left out: {', '.join(rare)}" if rare else ""))
    found["probes"] = (labels[:, often].long(), "f1")
    return found | landmarks(images)


def landmarks(images):
    "The study of landmarks, where there are any: their places as fractions of the side."
    known = images.extras.get("landmarks")
    return {} if known is None else {"landmarks": (known.flatten(1).double() / images.x.shape[-1], "r2")}


@torch.no_grad()
def error(model, x):
    "Mean squared error over every value of images."
    model.to(place)
    return fmean(per_image_mse(model(part.to(place)).float(), part.to(place)).mean().item() for part in x.split(len(x)))


# %% [markdown]
# ## Probes

# %%
def built(cell, shape, depth):
    "The untrained network of a cell."
    with seeded(seed):
        return Autoencoder(*bottleneck(shape, cell.size, cell.channels, decoder, depth, blocks))


cells, splits = [], {}
if "probes" in studies:
    train, test = read(size=image_size, limit=limit), read(test_dataset_split, size=image_size, limit=test_limit)
    least = min(len(train), len(test))
    splits = {"train": train[:least], "test": test[:least]}
    print(train, test, f"probes: {least} images of each")
    asked = {split: targets(images, splits["train" if split == "test" else "test"]) for split, images in splits.items()}
    shape = tuple(train.x.shape[1:])
    cells, dropped = grid(shape, depth, levels, fractions)
    for words in dropped:
        print(f"dropped: {words}")


def scored(z, split):
    "{study: row of scores} of probes on codes (or pixels) of one split."
    return {study: {name: fmean(values) for name, values in
                    probe(z.float(), y, k=folds, weight_decay=weight_decay, seed=seed, device=device).items()} | {"kind": kind}
            for study, (y, kind) in asked[split].items()}  # fmt: skip


details, jobs = [], {str(cell): cell for cell in cells}
for job, stage in run.stages(jobs):
    cell = jobs[job]
    model = built(cell, shape, depth)
    starting = {split: forward_all(model.to(place).encoder, images.pixels()) for split, images in splits.items()}
    model.train()
    history = fit(model, train, epochs=epochs, checkpoint=stage.checkpoint, progress=stage.progress, **options)
    for split, images in splits.items():
        x = images.pixels()
        for kind, z in (("code", forward_all(model.to(place).encoder, x)), ("untrained", starting[split])):
            for study, found in scored(z, split).items():
                details.append({"of": study, "split": split, "input": kind, "size": cell.size, "channels": cell.channels,
                                "fraction": cell.fraction, "image_mse": error(model, x) if kind == "code" else None} | found)  # fmt: skip

# %% [markdown]
# The pixels, and the rows: a mean over the fractions for each size.

# %%
SCORES = ("f1", "accuracy", "auc", "mse", "r2")
samples = {"samples": len(splits["train"])} if splits else {}


def row(study, split, kind, size, lines):
    "One row from one or more rows of details."
    mean = lambda score: fmean(line[score] for line in lines) if score in lines[0] else None
    same = {"seed": seed, "study": study, "split": split, "input": kind, "size": size}
    return same | {"score": mean(lines[0]["kind"])} | {score: mean(score) for score in SCORES} | samples


for split, images in splits.items():
    for study, found in scored(images.pixels(), split).items():
        rows.append(row(study, split, "pixels", None, [found]))
for split, study in [(part, asks) for part in splits for asks in asked[part]]:
    for kind in ("code", "untrained"):
        for size in sorted({cell.size for cell in cells}):
            lines = [d for d in details if (d["of"], d["split"], d["input"], d["size"]) == (study, split, kind, size)]
            rows.append(row(study, split, kind, size, lines))
for line in details:
    same = {key: line[key] for key in ("of", "split", "input", "size", "channels", "fraction", "image_mse")}
    numbers = {"score": line[line["kind"]]} | {score: line.get(score) for score in SCORES}
    rows.append({"seed": seed, "study": "cells"} | same | numbers | samples)
for r in rows:
    if r["study"] != "cells":
        print(f"{r['study']:10} {r['split']:6} {r['input']:10} size {r['size']!s:5} score {r['score']:.4f}")

# %%
for study in sorted({r["study"] for r in rows} - {"cells"}):
    lines = {}
    for split in splits:
        for kind in ("code", "untrained"):
            chosen = [r for r in rows if (r["study"], r["split"], r["input"]) == (study, split, kind)]
            lines[f"{kind}, {split}"] = ([r["size"] for r in chosen], [r["score"] for r in chosen])
        (flat,) = [r["score"] for r in rows if (r["study"], r["split"], r["input"]) == (study, split, "pixels")]
        lines[f"pixels, {split}"] = (lines[f"code, {split}"][0], [flat] * len(lines[f"code, {split}"][0]))
    name = "macro F1" if study == "probes" else "R2"
    if min(min(values) for _, values in lines.values()) >= 0:
        figure = curves(lines, x="height and width of the code", y=f"{name} of a linear probe", log=False, y_range=(0, 1),
                        title=f"{study}; {about}", alt=f"{name} of linear probes against the size of the code, and of pixels")  # fmt: skip
        run.save(figure, study)
    largest = {line: values[-1] for line, (_, values) in lines.items()}
    run.save(dots(largest, x=f"{name} at the largest size", title=f"{study}; {about}",
                  alt=f"{name} of linear probes on codes of the largest size, untrained ones, and pixels"), f"{study}_largest")  # fmt: skip

# %% [markdown]
# ## Which half overfits?

# %%
jobs, shown, pictures = {}, None, {}
if "refit" in studies:
    fitted, held = read(size=refit_size, limit=refit_images), read(test_dataset_split, size=refit_size, limit=2 * refit_images)
    held, third = held[: len(held) // 2], held[len(held) // 2 :]
    a, b, c = fitted.pixels(), held.pixels(), third.pixels()
    small = tuple(fitted.x.shape[1:])
    few, dropped = grid(small, refit_depth, refit_levels, [refit_fraction])
    for words in dropped:
        print(f"dropped: {words}")
    jobs = {f"refit {cell}": cell for cell in few}
    shown = b[pick(min(8, len(b)), len(b), seed=0)]
for job, stage in run.stages(jobs):
    cell = jobs[job]
    model = built(cell, small, refit_depth)
    fit(model, fitted, epochs=refit_epochs, checkpoint=stage.checkpoint, progress=stage.progress, **options)
    train_mse, held_out_mse, third_mse = (error(model, x) for x in (a, b, c))
    pictures[f"{cell}, as trained"] = model.cpu()(shown).detach()
    for half in ("decoder", "encoder"):
        again, _ = refit(model.to(place), half, held, fresh=True, epochs=refit_epochs, progress=False,
                         checkpoint=stage.checkpoint.with_suffix(f".{half}"), **options)  # fmt: skip
        refit_mse, third_refit_mse = error(again, b), error(again, c)
        gap = held_out_mse - train_mse
        rows.append({"seed": seed, "study": "refit", "refit": half, "size": cell.size, "channels": cell.channels,
                     "train_mse": train_mse, "held_out_mse": held_out_mse, "refit_mse": refit_mse, "third_mse": third_mse,
                     "third_refit_mse": third_refit_mse, "gap": gap, "gap_removed": (held_out_mse - refit_mse) / gap})  # fmt: skip
        pictures[f"{cell}, new {half}"] = again.cpu()(shown).detach()
        print(f"{cell}, new {half}: gap {gap:.5f}; held-out images {held_out_mse:.5f} -> {refit_mse:.5f}, "
              f"third images {third_mse:.5f} -> {third_refit_mse:.5f}")  # fmt: skip
if jobs:
    alt = "Held-out images, and what each network makes of them: as trained, with a new decoder, with a new encoder"
    run.save(reconstruction_grid(shown, pictures, clip=True, title=f"held-out images; {about}", alt=alt), "refit")

# %%
run.finish(rows)
