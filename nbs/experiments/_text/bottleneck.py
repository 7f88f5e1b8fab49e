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
# # The bottleneck
#
# > Height and width, or channels? Walking the Tightrope, one cell of its grid a run

# %% [markdown]
# Tests *Walking the Tightrope: An Investigation of the Convolutional Autoencoder Bottleneck* (submission to ICLR, 2020), Sections 2.2 to 4, with the network of lesson [33](../33_bottleneck.ipynb), which explains every name used here.
#
# **A run is a cell of the grid**: one of the `levels` 1, 2, 3 of the bottleneck's size (Equation 5), one of the `fractions` of the input's values that it holds (Equation 6), with each of the `decoders`; sweep over the first two. (The lists may also hold more, up to the whole grid in one run; Figures 1 and 2 of the paper are then drawn in one piece.) At level 1
# the two decoders are the same network, which is trained once and has a row for each. A cell with less than one channel has a row of the study "dropped" that says so. With k strides of two the sizes are $S/2^k$, $S/2^{k-1}$, $S/2^{k-2}$ for images of $S$ pixels; the paper has k = 5, and fewer make a network for a laptop that keeps every rule of the paper's.
#
# The studies:
#
# - `grid`: train, measure. `overfitting` and `sets` are the same under another name, at settings of their own: long runs on few images (one fraction and one decoder, so that a row stands for a size), and several data sets with equal counts and sizes.
# - `shapes`: the paper's twelve configurations for 96 and 128 pixels, counted and not run. `models`: its twelve networks at a third of the width, a step of training each, saved, opened and compared bit for bit.
# - `complete`: does a network copy whose code has as many numbers as the image? At each of the `levels`, the network as published (`published`), with a code without normalisation and ReLU (`linear code`), without any normalisation (`no norm`), with neither (`no norm, linear code`), with four times the channels (`overcomplete`). Untrained, for comparison: a `random` encoder; `copy`, an encoder set to move
# every pixel into the code, with a decoder that puts them back; `copy, normalised`, the same encoder with the normalisation that the network has. Of each encoder: test $R^2$ of ridge regression from the code to the pixels, whole (`ridge_r2`) and square by square (`patch_r2`), and the test error of a fresh decoder trained on its codes (`fresh_over_variance`).
#
# Errors are mean squared errors over every value, at the end of training; `gap` is test minus training error; `..._over_variance` divides by the variance of these images about their mean image (of noise: about its mean). Training curves, both errors after every epoch, are in the run's log. `best_epoch` is that of the smallest test error, `rise_after_best` the last test error over it, `late_jump` the largest
# ratio of the training error between neighbouring epochs of the last half. `stopped_by` says whether the `epochs` or the `minutes` ended a training; such a network is measured as it is then. Multiply-accumulates are for one image forward.

# %% tags=["parameters"]
dataset: str = "celeba"  # data set, by name
variant: str | None = None  # a paper's own choice and crop of it, such as tightrope
studies: list[str] = ["grid"]  # one of grid, overfitting, sets, shapes, models, complete: what to do
image_size: int = 32  # at least 4: pixels of a side
limit: int | None = 256  # at least 2: use the first so many training images
test_limit: int | None = 256  # at least 2: use the first so many test images
levels: list[int] = [1]  # at least 1, at most 3: sizes of the bottleneck, by Equation 5
fractions: list[float] = [0.25]  # above 0: shares of the input's values that the code holds
decoders: list[str] = ["mirror", "published"]  # one of mirror, published: which up-samplings a larger code spares
depth: int = 3  # at least 2: strided convolutions, 5 in the paper
blocks: int = 2  # at least 0: residual blocks a stage, 2 in the paper
width: float = 1.0  # above 0: volume of the inner maps over that of the input, 1 in the paper
final_norm: bool = True  # normalise after the last convolution, as the paper does
init: str = "default"  # one of default, published: PyTorch's initialisation or that of the published code
networks: list[str] = ["published", "linear code", "no norm", "no norm, linear code", "overcomplete"]  # trained in the study complete
foreign: str | None = "stl10"  # data set for the error on foreign images; none leaves it out
epochs: int = 40  # at least 1: passes over the training images
minutes: float | None = None  # above 0: end the training of a network, after an epoch, when so many are over
batch_size: int = 8  # at least 1: images a step, 32 in the paper
lr: float = 0.002  # above 0: Adam's learning rate, 0.0005 in the paper
same_batches: bool = True  # the same batches in every epoch, as the published code has them
seed: int = 0  # at least 0: fixes the weights and the order of the images
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float32"  # one of float32, bfloat16: arithmetic of the training
channels_last: bool = False  # keep the channels of a pixel together in memory
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("bottleneck", globals())

# %%
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ae_course.autoencoder import Autoencoder, load_model, save_model
from ae_course.base import BadArgument
from ae_course.bottleneck import (
    anatomy,
    bottleneck,
    dynamics,
    grid,
    patch_r2,
    refit,
    ridge_r2,
    set_to_copy,
    shapes_table,
)
from ae_course.data import find, load
from ae_course.figures import curves, dots, pick, reconstruction_grid
from ae_course.metrics import per_image_mse
from ae_course.training import fit, fit_within, pick_device, seconds_per_image, seeded

# %%
KNOWN = {"grid", "overfitting", "sets", "shapes", "models", "complete"}
trained = [study for study in studies if study in ("grid", "overfitting", "sets")]
if "overfitting" in studies and len(fractions) * len(decoders) > 1:
    raise BadArgument(f"studies: overfitting, with {len(fractions)} fractions and {len(decoders)} decoders; expected one of each, "
                      "since its rows stand for sizes: -p fractions [0.25] -p decoders [published]")  # fmt: skip
if threads is not None:
    torch.set_num_threads(threads)
place, rows = pick_device(device), []
if trained or "complete" in studies:
    read = partial(load, dataset, variant=variant, size=image_size)
    train, test = read(limit=limit), read("test", limit=test_limit)
    shape = tuple(train.x.shape[1:])
    counts = {"images": len(train), "test_images": len(test)}
    print(train, test)

# %% [markdown]
# ## What needs no training
#
# Counting the paper's configurations, and saving and opening its networks.

# %%
if "shapes" in studies:
    for side in (96, 128):
        rows += [{"seed": seed, "study": "shapes", "pixels": side} | row for row in shapes_table((3, side, side))]
if "models" in studies:
    reopened, images = 0, torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(seed))
    cells = grid((3, 96, 96))[0]
    for cell in cells:
        with seeded(seed), tempfile.TemporaryDirectory() as folder:
            model = Autoencoder(*bottleneck((3, 96, 96), cell.size, cell.channels, "published", width=1 / 3))
            fit(model, images, epochs=1, seed=seed, device="cpu", progress=False)
            save_model(model, Path(folder) / "model.safetensors")
            with torch.no_grad():
                reopened += torch.equal(load_model(Path(folder) / "model.safetensors")(images), model(images))
    rows.append({"seed": seed, "study": "models", "pixels": 96, "reopened": reopened})
    print(f"{reopened} of {len(cells)} networks came back as they were")

# %% [markdown]
# ## Train the cells
#
# First, how long that will take: a few steps of each network are timed on this device.

# %%
options = {"batch_size": batch_size, "lr": lr, "seed": seed, "reshuffle": not same_batches, "device": device, "precision": precision}
memory = torch.channels_last if channels_last else torch.contiguous_format


def built(cell, decoder, **more):
    "The untrained network of a cell."
    with seeded(seed):
        parts = bottleneck(shape, cell.size, cell.channels, decoder, depth, blocks, width, final_norm=final_norm, init=init, **more)
    return Autoencoder(*parts).to(memory_format=memory)


def promised(models, rounds):
    "Print the hours that training `models` for `rounds` epochs should take here."
    batch = train[:batch_size].pixels(place).contiguous(memory_format=memory)
    seconds = [seconds_per_image(model.to(place), batch, precision, steps=3) * rounds * (len(train) + len(test) / 3) for model in models]
    if minutes is not None:
        seconds = [min(s, 60 * minutes) for s in seconds]
    print(f"expected: {sum(seconds) / 3600:.3f} {place.type.upper()} hours for {len(seconds)} networks, {rounds} epochs each"
          f"{'' if minutes is None else f', at most {minutes:g} minutes each'}")  # fmt: skip


@torch.no_grad()
def through(function, x, size=256):
    "`function` of images, `size` at a time, on the CPU."
    return torch.cat([function(part.to(place)).float().cpu() for part in x.split(size)])


variance = lambda x: (x - x.mean(0)).square().mean().item()
error = lambda model, x: per_image_mse(through(model, x), x).mean().item()
work = lambda half, given: sum(layer.macs for layer in anatomy(half, given))

# %%
cells, histories, outputs = [], {}, {}
if trained:
    cells, dropped = grid(shape, depth, levels, fractions)
    for words in dropped:
        print(f"dropped: {words}")
        rows.append({"seed": seed, "study": "dropped", "note": words})
    x, x_test = train.pixels(), test.pixels()
    shown = {"training": x[pick(4, len(x), seed=0)], "test": x_test[pick(4, len(x_test), seed=0)]}
# at level 1 both decoders are one network
jobs = {f"{cell} {decoder}": (cell, decoder) for cell in cells for decoder in (decoders[:1] if cell.level == 1 else decoders)}
if jobs:
    promised((built(*job) for job in jobs.values()), epochs)
for job, stage in run.stages(jobs, cost=lambda job: 4 if jobs[job][0].level > 1 and jobs[job][1] == "published" else 1):
    cell, decoder = jobs[job]
    model = built(cell, decoder)
    history, stopped_by = fit_within(model, train, epochs=epochs, minutes=minutes, checkpoint=stage.checkpoint, validation=test,
                                     progress=stage.progress, **options)  # fmt: skip
    train_mse, test_mse = error(model, x), error(model, x_test)
    row = {"level": cell.level, "size": cell.size, "fraction": cell.fraction, "channels": cell.channels,
           "neurons": cell.size**2 * cell.channels, "parameters": sum(p.numel() for p in model.parameters()),
           "encoder_macs": work(model.encoder, shape), "decoder_macs": work(model.decoder, (cell.channels, cell.size, cell.size)),
           "train_mse": train_mse, "test_mse": test_mse, "gap": test_mse - train_mse, "train_over_variance": train_mse / variance(x),
           "test_over_variance": test_mse / variance(x_test), **dynamics(history), "epochs_trained": len(history),
           "stopped_by": stopped_by, "seconds": sum(history["seconds"])} | counts  # fmt: skip
    for name in decoders if cell.level == 1 else [decoder]:
        rows += [{"seed": seed, "study": study, "decoder": name} | row for study in trained]
    histories[job], outputs[job] = history, {name: through(model, part) for name, part in shown.items()}
    save_model(model, run.path(f"model_{job.replace(' ', '_')}.safetensors"))

# %% [markdown]
# ## Curves and reconstructions
#
# As the paper's Figure 1 (colour: size; shade: channels) and Figure 2 (the input beside), on one fixed range of values.

# %%
about = f"seed {seed}"
if trained or "complete" in studies:
    about = f"{dataset}, {shape[1]} pixels, {len(train)} images, seed {seed}"
for decoder in decoders if jobs else []:
    chosen = [job for job, (cell, kind) in jobs.items() if kind == decoder or cell.level == 1]
    for column, name in (("loss", "training"), ("validation_loss", "test")):
        lines = {str(jobs[job][0]): histories[job][column] for job in chosen}
        families = {str(jobs[job][0]): f"{jobs[job][0].size}" for job in chosen}
        alt = f"{name.capitalize()} error over the epochs, a line a bottleneck; colour is its size, shade its channels"
        figure = curves(lines, families=families, y=f"{name} error (MSE)", title=f"{decoder} decoder; {about}", alt=alt)
        run.save(figure, f"{name}_{decoder}")
        grids = {str(jobs[job][0]): outputs[job][name] for job in chosen}
        run.save(reconstruction_grid(shown[name], grids, clip=True, title=f"{name} images, {decoder} decoder; {about}"),
                 f"reconstructions_{name}_{decoder}")  # fmt: skip

# %% [markdown]
# ## Complete codes: does it copy?

# %%
OPTIONS = {"published": {}, "linear code": {"linear_code": True}, "no norm": {"norm": False},
           "no norm, linear code": {"norm": False, "linear_code": True}, "overcomplete": {}}  # fmt: skip


class Shuffle(nn.Module):
    "The inverse of `set_to_copy`: channels back into squares, `times` times."

    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, z):
        for _ in range(self.times):
            z = nn.functional.pixel_shuffle(z, 2)
        return z


def candidate(cell, name):
    "A network of the study, untrained."
    if name in OPTIONS:
        wide = cell._replace(channels=4 * cell.channels) if name == "overcomplete" else cell
        return built(wide, decoders[0], **OPTIONS[name])
    model = built(cell, decoders[0], norm=name != "copy")
    if name != "random":
        set_to_copy(model.encoder)
    if name == "copy":
        model.decoder = Shuffle(depth + 1 - cell.level)
    return model


jobs = {}
if "complete" in studies:
    for name in networks:
        if name not in OPTIONS:
            raise BadArgument(f"networks: got {name!r}, expected some of {', '.join(OPTIONS)}")
    cells = grid(shape, depth, levels, [1.0])[0]
    jobs = {f"{cell} {name}": (cell, name) for cell in cells for name in [*networks, "random", "copy", "copy, normalised"]}
    x, x_test = train.pixels(), test.pixels()
    others = {"noise": torch.rand(x_test.shape, generator=torch.Generator().manual_seed(seed))}
    if foreign is not None and find(foreign):
        others["foreign"] = load(foreign, "test", size=image_size, limit=test_limit).pixels()
    shown = {"test": x_test[pick(6, len(x_test), seed=0)]} | {name: part[:2] for name, part in others.items()}
    shown, pictures = torch.cat(list(shown.values())), {}
    promised((built(*job[:1], decoders[0]) for job in jobs.values()), epochs)
for job, stage in run.stages(jobs):
    cell, name = jobs[job]
    model, learned = candidate(cell, name), name in OPTIONS
    if learned:
        fit(model, train, epochs=epochs, checkpoint=stage.checkpoint, progress=stage.progress, **options)
    model = model.to(place).eval()
    encode = model.encoder
    z, z_test = through(encode, x), through(encode, x_test)
    ours = built(cell._replace(channels=z.shape[1]), decoders[0]).decoder  # the same decoder for every encoder
    fresh, _ = refit(Autoencoder(encode, ours), "decoder", train, fresh=False, epochs=epochs, progress=False,
                     checkpoint=stage.checkpoint.with_suffix(".fresh"), **options)  # fmt: skip
    row = {"network": name, "level": cell.level, "size": cell.size, "fraction": z.flatten(1).shape[1] / x[0].numel(),
           "channels": z.shape[1], "ridge_r2": ridge_r2(z, x, z_test, x_test), "patch_r2": patch_r2(z, x, z_test, x_test),
           "fresh_over_variance": error(fresh, x_test) / variance(x_test)} | counts  # fmt: skip
    if name in ("copy", *OPTIONS):
        row |= {"train_over_variance": error(model, x) / variance(x), "test_over_variance": error(model, x_test) / variance(x_test)}
        row |= {f"{key}_over_variance": error(model, part) / variance(part) for key, part in others.items()}
        pictures[job] = through(model, shown)
    rows.append({"seed": seed, "study": "complete"} | row)
if jobs:
    figure = reconstruction_grid(shown, pictures, clip=True, title=f"complete codes; {dataset}, seed {seed}",
                                 alt="Test images, noise and foreign images above; below them what each network makes of them")  # fmt: skip
    run.save(figure, "complete")
    values = {job: row["patch_r2"] for job, row in zip(jobs, (row for row in rows if row["study"] == "complete"))}
    run.save(dots(values, x="test R2 of the pixels, from a cell of the code to its square", title=about), "patch_r2")

# %% [markdown]
# Every run has all the columns, so that the table can be read whichever studies it holds.

# %%
columns = ["decoder", "volume_ratio", "other_parameters", "reopened", "size", "channels", "train_mse", "test_mse", "gap", "late_jump",
           "best_epoch", "rise_after_best", "train_over_variance", "test_over_variance", "network", "ridge_r2",
           "noise_over_variance"]  # fmt: skip
run.finish([row | {name: None for name in columns if name not in row} for row in rows])
