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
# # Similarity
#
# > Every pair of the bottleneck study's networks compared: do codes of equal size say the same?

# %% [markdown]
# Tests what *Walking the Tightrope* (submission to ICLR, 2020), Sections 3.3 and 4 and Figure 4, says about the likeness of codes: codes of equal height and width are more alike than others; codes of test images more than codes of training images; codes of complete autoencoders, with as many numbers as the image, are like all others; likeness to the raw input rises with the channels. Lesson [32](../32_representations.ipynb) explains the measures, lesson
# [33](../33_bottleneck.ipynb) the networks.
#
# A network for each of the `levels` (sizes of the code) and `fractions` (of the input's values that the code holds); codes of `samples` training images and of as many test images, since likeness falls with the number of samples. Three measures: `svcca` in the Fourier form of Raghu et al. (99% of the variance over all frequencies, at the frequencies that both sizes have), `cka` (linear, debiased), and `published`, what the program that came with the paper
# computes, over `published_samples` images, few as there (200 faces). `chance` is the correlation that unrelated codes would show, root mean square.
#
# Rows with `split` train or test, by `pairs`: `all` pairs of codes, and means over those of `equal_size`, of `different_size`, `with_complete` (fraction 1 in one of the two) and `without_complete`; `with_input`, codes against the images themselves, where `channel_slope` is the slope of SVCCA against the logarithm of the channels, within sizes (a common slope, an intercept for each size, because large sizes have few channels). Single pairs are rows of `pairs` = `pair`. Two more
# questions, at the fraction `seeds_fraction`: `seeds`, the same cell trained from another start; `layers`, all pairs of layers of one network.

# %% tags=["parameters"]
dataset: str = "celeba"  # data set, by name
variant: str | None = None  # a paper's own choice and crop of it, such as tightrope
image_size: int = 32  # at least 4: pixels of a side
samples: int = 1500  # at least 10: train on the first so many training images, compare on these, and on as many test images
levels: list[int] = [1, 2, 3]  # at least 1, at most 3: sizes of the bottleneck, by Equation 5
fractions: list[float] = [0.015625, 0.0625, 0.25, 1.0]  # above 0: shares of the input's values that the code holds
decoder: str = "mirror"  # one of mirror, published: which up-samplings a larger code spares
depth: int = 3  # at least 2: strided convolutions, 5 in the paper
blocks: int = 2  # at least 0: residual blocks a stage, 2 in the paper
epochs: int = 2  # at least 1: passes over the training images
batch_size: int = 8  # at least 1: images a step, 32 in the paper
lr: float = 0.002  # above 0: Adam's learning rate, 0.0005 in the paper
keep: float = 0.99  # above 0, at most 1: share of the variance that SVCCA keeps
published_samples: int = 200  # at least 10: images for the published program's measure
seeds_fraction: float = 0.25  # above 0: one of the fractions, that of the networks for the questions about seeds and layers
seed: int = 0  # at least 0: fixes the weights and the order of the images
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float32"  # one of float32, bfloat16: arithmetic of the training
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice
workers: int = 1  # at least 1: networks trained side by side on a processor, each in a process with one thread

# %%
from ae_course.lab import start

run = start("svcca", globals())

# %% [markdown]
# ## Networks and codes

# %%
import itertools
import math
import warnings
from functools import cache
from statistics import fmean

import torch

from ae_course.autoencoder import Autoencoder, save_model
from ae_course.base import BadArgument
from ae_course.bottleneck import bottleneck, grid
from ae_course.data import load
from ae_course.figures import curves, matrix
from ae_course.representations import TooFewSamples, activations, cka, directions, similarity, spectrum, svcca_published
from ae_course.stacked import forward_all
from ae_course.training import fit_many, pick_device, seeded

# %%
if threads is not None:
    torch.set_num_threads(threads)
place, rows = pick_device(device), []
splits = {split: load(dataset, split, variant=variant, size=image_size, limit=samples) for split in ("train", "test")}
least = min(map(len, splits.values()))
splits = {split: images[:least] for split, images in splits.items()}
shape = tuple(splits["train"].x.shape[1:])
cells, dropped = grid(shape, depth, levels, fractions)
print(*splits.values(), *(f"dropped: {words}" for words in dropped), sep="\n")
if seeds_fraction not in fractions:
    raise BadArgument(f"seeds_fraction: got {seeds_fraction}, expected one of fractions, {fractions}")
about = f"{dataset}, {least} images, seed {seed}"

# %%
jobs = {str(cell): (cell, seed) for cell in cells}
jobs |= {f"{cell}, other start": (cell, seed + 1000) for cell in cells if cell.fraction == seeds_fraction}
codes, models = {split: {} for split in splits}, {}
together = run.together(jobs)
for job, (cell, start_seed) in jobs.items():
    with seeded(start_seed):
        models[job] = Autoencoder(*bottleneck(shape, cell.size, cell.channels, decoder, depth, blocks))
fit_many(models.values(), splits["train"], epochs=epochs, batch_size=batch_size, lr=lr, seed=[own for _, own in jobs.values()],
         device=device, precision=precision, workers=workers, checkpoint=together.checkpoints, progress=together.progress,
         lockstep=False)  # fmt: skip  # one such network fills a GPU, and several might not fit into its memory
for job, model in models.items():
    save_model(model, run.path(f"model_{job.replace(', ', '_').replace(' ', '_')}.safetensors"))
    for split, images in splits.items():
        codes[split][job] = forward_all(model.to(place).encoder, images.pixels()).float().cpu()
    model.cpu()
for split, images in splits.items():
    codes[split]["input"] = images.pixels()

# %% [markdown]
# ## Every pair
#
# The directions of a code, at the frequencies of a size, are computed once and serve all its pairs.

# %%
warnings.simplefilter("ignore", TooFewSamples)  # the level of chance stands in every row


@cache
def basis(split, name, size):
    "The directions of one code at the frequencies of maps of `size`."
    return directions(spectrum(codes[split][name].to(place), size), name, keep)


def compared(split, a, b):
    "The measures of one pair of codes."
    z, w = codes[split][a], codes[split][b]
    size = min(z.shape[-1], w.shape[-1])
    found = similarity(basis(split, a, size), basis(split, b, size), keep, warn=False)
    few = slice(0, published_samples)
    program, _ = svcca_published(z[few], w[few])  # nan for a code of one channel, since it centres over the channels
    return {"svcca": found.score, "cka": cka(z.to(place), w.to(place)), "published": program, "chance": found.chance}


names = [*map(str, cells), "input"]
cell_of = {str(cell): cell for cell in cells}
pairs = {(split, a, b): compared(split, a, b) for split in splits for a, b in itertools.combinations(names, 2)}

# %%
MEASURES = ("svcca", "cka", "published", "chance")
complete = {name for name, cell in cell_of.items() if cell.fraction == 1}
size_of = {name: cell.size for name, cell in cell_of.items()}
KINDS = {
    "all": lambda a, b: True,
    "equal_size": lambda a, b: size_of[a] == size_of[b],
    "different_size": lambda a, b: size_of[a] != size_of[b],
    "with_complete": lambda a, b: bool({a, b} & complete),
    "without_complete": lambda a, b: not {a, b} & complete,
}


def channel_slope(values):
    "Slope of a measure {name: value} against log channels, with an intercept for each size; None if no size has two channel numbers."
    within = []
    for size in set(size_of.values()):
        inside = [(math.log(cell_of[name].channels), value) for name, value in values.items() if size_of[name] == size]
        x, y = (fmean(column) for column in zip(*inside))
        within += [(u - x, v - y) for u, v in inside]
    spread = sum(u * u for u, _ in within)
    return sum(u * v for u, v in within) / spread if spread else None


for split in splits:
    among = {(a, b): found for (part, a, b), found in pairs.items() if part == split and "input" not in (a, b)}
    outside = {a: found for (part, a, b), found in pairs.items() if part == split and b == "input"}
    for kind, test in KINDS.items():
        chosen = [found for (a, b), found in among.items() if test(a, b)]
        if chosen:
            row = {"pairs": kind, "a": None, "b": None, "count": len(chosen)} | {m: fmean(f[m] for f in chosen) for m in MEASURES}
            rows.append({"seed": seed, "split": split} | row | {"channel_slope": None})
    row = {"pairs": "with_input", "a": None, "b": None, "count": len(outside)}
    row |= {m: fmean(found[m] for found in outside.values()) for m in MEASURES}
    row["channel_slope"] = channel_slope({name: found["svcca"] for name, found in outside.items()})
    rows.append({"seed": seed, "split": split} | row)
for row in rows:
    print(f"{row['split']:6} {row['pairs']:17} {row['count']:3} pairs " + " ".join(f"{m} {row[m]:.3f}" for m in MEASURES)
          + (f" slope {row['channel_slope']:+.4f}" if row["channel_slope"] is not None else ""))  # fmt: skip
for (split, a, b), found in pairs.items():
    rows.append({"seed": seed, "split": split, "pairs": "pair", "a": a, "b": b, "count": 1} | found | {"channel_slope": None})

# %% [markdown]
# ## As a table, beside each other

# %%
groups = [i for i in range(1, len(names)) if names[i] == "input" or size_of[names[i]] != size_of[names[i - 1]]]
for split in splits:
    for measure in MEASURES[:3]:
        values = torch.eye(len(names))
        for i, j in itertools.combinations(range(len(names)), 2):
            values[i, j] = values[j, i] = max(pairs[split, names[i], names[j]][measure], 0.0)
        figure = matrix(values, names, groups=groups, label=measure, title=f"{measure}, {split} images; {about}",
                        alt=f"{measure} between the codes of {len(cells)} networks and the images, on {split} images")  # fmt: skip
        run.save(figure, f"{measure}_{split}")
lines = {}
for size in sorted(set(size_of.values())):
    chosen = [name for name in cell_of if size_of[name] == size]
    if len(chosen) > 1:
        lines[f"{size} x {size}"] = ([cell_of[n].channels for n in chosen], [pairs["test", n, "input"]["svcca"] for n in chosen])
if lines:
    run.save(curves(lines, x="channels of the code", y="SVCCA with the input", log=False, log_x=True, y_range=(0, 1), title=about,
                    alt="SVCCA between code and input against the channels of the code, a line a size"), "with_input")  # fmt: skip

# %% [markdown]
# ## Other starts, other layers

# %%
images = splits["test"].pixels()
for name, cell in cell_of.items():
    if cell.fraction == seeds_fraction:
        found = compared("test", name, f"{name}, other start")
        rows.append({"seed": seed, "split": "test", "pairs": "seeds", "a": name, "b": "other start", "count": 1} | found)
        print(f"{name}: another start " + " ".join(f"{m} {found[m]:.3f}" for m in MEASURES))
        layers = [*(f"encoder.down{i + 1}" for i in range(depth)), *(f"decoder.up{i}" for i in range(depth, 0, -1))]
        inner = {"input": images} | activations(models[name], images, layers)
        values = torch.eye(len(inner))
        for (i, (a, z)), (j, (b, w)) in itertools.combinations(enumerate(inner.items()), 2):
            size = min(z.shape[-1], w.shape[-1])
            found = similarity(*(directions(spectrum(t.float().to(place), size), n, keep) for n, t in ((a, z), (b, w))), keep, warn=False)
            values[i, j] = values[j, i] = found.score
            rows.append({"seed": seed, "split": "test", "pairs": "layers", "a": f"{name} {a}", "b": f"{name} {b}", "count": 1,
                         "svcca": found.score, "chance": found.chance})  # fmt: skip
        figure = matrix(values, [n.split(".")[-1] for n in inner], label="SVCCA", title=f"layers of {name}; {about}",
                        alt=f"SVCCA between all layers of the network with the code {name}")  # fmt: skip
        run.save(figure, f"layers_{name}")

# %%
run.finish(rows)
