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
# # Denoising
# > The slides' experiment: spoil the digits, ask for them clean; and where the arrows of a denoiser point

# %% [markdown]
# Reruns *Experiment: encode MNIST with a DAE* (LMU Munich, *Deep Learning*, chapter 8) with the slides' network: one linear layer to the code, one linear layer back, a sigmoid at
# the output; squared error to the clean image; weights drawn uniformly from (-0.01, 0.01); Adam; batches of 32; codes of 1568, 784, 256, 64, 32, 16 and 8; then more and more noise at a code of 64.
# The slides add uniform noise and do not say how much; the width here is a parameter. They draw it once for the whole training, which is done here beside drawing it anew for each batch. Nothing is clamped.
#
# Four studies, a row of the table each:
#
# - `code_size`: the slides' sweep. The claim: the noise is removed at every size, overcomplete ones included.
# - `level`: noise of the sweep's width and above, at one code size, drawn once. The claim: the output gets worse, and stays better than the input. Widths below the sweep's are in the table as `faint`; the slides show none.
# - `corruption`: a perceptron 784-256-64-256-784 under each corruption of lesson 21, and without any. The claim (survey, Section 2.2): Gaussian noise and erasures train a
#   denoiser, and a linear probe on the codes of clean images is not worse than without.
# - `field`: known curves in the plane. The claim: dec(enc(x)) - x points to the curve, and along the exact score of the smoothed density.
#
# PSNR in decibels, of the mean squared error over the test images, under noise that no training has seen. Beside each stand what needs no training at all: the input clamped to [0, 1], the mean training image, and, for additive noise, the best linear denoiser (21.5).

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name
limit: int | None = None  # at least 2: use the first so many training images
sizes: list[int] = [1568, 784, 256, 64, 32, 16, 8]  # at least 1: code sizes z of the sweep
width: float = 0.5  # above 0: the sweep adds noise from U(-width, width)
levels: list[float] = [0.1, 0.25, 0.5, 1.0, 2.0, 4.0]  # above 0: widths of the noise at code size `latent_dim`
latent_dim: int = 64  # at least 1: code size of the studies of noise levels and of corruptions
epochs: int = 20  # at least 1: passes over the training images (the slides have 50 rounds)
batch_size: int = 32  # at least 1: images a step
lr: float = 0.001  # above 0: Adam's learning rate
init: float = 0.01  # above 0: weights of the slides' network start uniform in (-init, init)
sigma: float = 0.3  # above 0: Gaussian noise of the study of corruptions
keep: float = 0.5  # above 0, at most 1: probability of keeping a value (the survey's p)
share: float = 0.3  # above 0, at most 1: share of salt and pepper
block: int = 10  # at least 1: side of the erased square
manifolds: list[str] = ["circle", "spiral", "two moons"]  # curves in the plane
field_sigma: float = 0.15  # above 0: Gaussian noise around the curves
field_points: int = 2000  # at least 2: points on each curve
field_epochs: int = 150  # at least 1: passes over them
seed: int = 0  # at least 0: fixes the start, the order of the images and the noise
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
workers: int = 1  # at least 1: networks trained side by side on a processor, each in a process with one thread
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("denoising", globals())

# %% [markdown]
# ## Data, and what each arm changes

# %%
import math

import torch

from ae_course.autoencoder import Autoencoder, mlp, save_model
from ae_course.data import load
from ae_course.denoising import (
    DenoisingAutoencoder, angle_between, compose, denoising_gain, erase, erase_block, gaussian, linear_denoiser, manifold, nearest,
    noised_once, once, posterior_mean, salt_and_pepper, score, uniform, vector_field,
)  # fmt: skip
from ae_course.figures import code_grid, curves, image_grid, montage, pick, quiver, show
from ae_course.metrics import probe_accuracy, psnr
from ae_course.training import evaluate, fit, fit_many, seeded

# %%
if threads is not None:
    torch.set_num_threads(threads)
train, test = load(dataset, limit=limit), load(dataset, "test")
shape = tuple(train.x.shape[1:])
x_train, x_test = train.pixels(), test.pixels()
shown = pick(min(10, len(test)), len(test))
train, test

# %%
NONE, UNIFORM = "none", uniform(width)
SLIDES = {"network": "slides"}
arms = {}  # label -> what the row of the table says of it, with the corruption itself
for z in sizes:
    for redraw in ("once", "fresh"):
        about = {"study": "code_size", "corruption": "uniform", "redraw": redraw, "z": z, "level": width}
        arms[f"z = {z}, noise {redraw}"] = about | SLIDES | {"make": UNIFORM}
for level in levels:
    about = {"study": "level" if level >= width else "faint", "corruption": "uniform", "redraw": "once", "z": latent_dim, "level": level}
    arms[f"uniform noise up to {level:g}"] = about | SLIDES | {"make": uniform(level)}
corruptions = {
    NONE: (None, None),
    "gaussian": (sigma, gaussian(sigma)),
    "uniform": (width, UNIFORM),
    "erasure": (keep, erase(keep)),
    "salt and pepper": (share, salt_and_pepper(share)),
    "block": (block, erase_block(block)),
    "gaussian and erasure": (None, compose(gaussian(sigma), erase(keep))),
}
for name, (level, make) in corruptions.items():
    about = {"study": "corruption", "corruption": name, "redraw": "fresh", "z": latent_dim, "level": level, "network": "mlp"}
    arms[f"corruption: {name}"] = about | {"make": make}


# %% [markdown]
# ## Train
#
# Every arm starts from the same seed. Noise drawn once differs from image to image, but not from epoch to epoch; the test images get noise of their own.

# %%
def build(about):
    "The network of an arm, as a plain or as a denoising autoencoder."
    with seeded(seed):
        if about["network"] == "slides":
            networks = mlp(shape, hidden=(), latent_dim=about["z"], output="sigmoid", init=init)
        else:
            networks = mlp(shape, hidden=(256,), latent_dim=about["z"])
        return DenoisingAutoencoder(*networks, about["make"]) if about["make"] else Autoencoder(*networks)


together = run.together(arms, cost=lambda label: arms[label]["z"] + 200)
fixed = {level: noised_once(uniform(level), train, seed) for level in {width, *levels}}  # one set for all networks of a level
sets = [fixed[about["level"]] if about["redraw"] == "once" else train for about in arms.values()]
models = {label: build(about) for label, about in arms.items()}
histories = fit_many(models.values(), sets, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, device=device, workers=workers,
                     checkpoint=together.checkpoints, progress=together.progress)  # fmt: skip
rows = {}
for (label, about), data, history in zip(arms.items(), sets, histories):
    row = {"seed": seed} | {k: v for k, v in about.items() if k != "make"}
    row |= {"train_mse": evaluate(models[label], data, corrupt=True, seed=seed)["loss"], "seconds": sum(history["seconds"])}
    rows[label] = row
    save_model(models[label].cpu(), run.path(f"model_{len(rows):02}.safetensors"))

# %% [markdown]
# ## Measure
#
# `train_mse` is the error on the training images with the noise they were trained on: drawn once, it is noise that the network has seen before.

# %%
mean_image = x_train.mean(0)
linear = {}  # variance of the additive noise -> the best linear denoiser
plain = models[f"corruption: {NONE}"]
for label, about in arms.items():
    row, model, make = rows[label], models[label], about["make"]
    if make:
        row |= denoising_gain(model, x_test, make, seed)
        row["psnr_mean_image"] = psnr(mean_image.expand_as(x_test)[None], x_test[None]).item()
    if about["corruption"] in ("uniform", "gaussian"):
        variance = about["level"] ** 2 / (3 if about["corruption"] == "uniform" else 1)
        if variance not in linear:
            denoise = linear_denoiser(x_train, variance)
            linear[variance] = denoising_gain(denoise, x_test, make, seed)["psnr_out"]
        row["psnr_linear"] = linear[variance]
    if about["study"] == "corruption":
        if make:
            row["psnr_plain"] = denoising_gain(plain, x_test, make, seed)["psnr_out"]
        with torch.no_grad():
            codes = [model.encode(part) for part in (x_train, x_test)]
        row["probe_accuracy"] = probe_accuracy(codes[0], train.y, codes[1], test.y)


# %% [markdown]
# ## The slides' pictures

# %%
def outputs(chosen):
    "The denoised test images of `chosen` labels, {row label: images}."
    with torch.no_grad():
        return {name: models[label](once(arms[label]["make"], x_test, seed)[shown]) for name, label in chosen.items()}


noisy = once(UNIFORM, x_test, seed)[shown]
for redraw in ("once", "fresh"):
    pictures = {"original": x_test[shown], "with noise": noisy} | outputs({f"z = {z}": f"z = {z}, noise {redraw}" for z in sizes})
    grid = image_grid(
        pictures,
        clip=True,
        title=f"Uniform noise up to {width:g}, drawn {redraw} in training",
        alt=f"Test digits, the same with noise, and what the denoising autoencoders make of them by code size; noise drawn {redraw}",
    )
    run.save(grid, f"code_sizes_{redraw}")
    show(grid)

# %%
pictures = {"original": x_test[shown]}
for level in levels:
    label = f"uniform noise up to {level:g}"
    pictures |= {f"up to {level:g}": once(arms[label]["make"], x_test, seed)[shown]} | outputs({f"denoised {level:g}": label})
grid = image_grid(pictures, clip=True, alt=f"Test digits under growing uniform noise, each with its reconstruction, code size {latent_dim}")
run.save(grid, "levels")
show(grid)

# %%
pictures = {"original": x_test[shown]}
for name, (_, make) in corruptions.items():
    if make:
        pictures |= {name: once(make, x_test, seed)[shown]} | outputs({f"{name}, denoised": f"corruption: {name}"})
grid = image_grid(pictures, clip=True, alt="Test digits under each corruption, each with its reconstruction")
run.save(grid, "corruptions")
show(grid)


# %%
def line(study, x, y, **where):
    "Points (x, y) of the rows of a study, sorted."
    points = [(row[x], row[y]) for row in rows.values() if row["study"] in study and all(row[k] == v for k, v in where.items())]
    return tuple(zip(*sorted(points)))


by_size = {f"noise {redraw}": line(["code_size"], "z", "psnr_out", redraw=redraw) for redraw in ("once", "fresh")}
beside = {"best linear": "psnr_linear", "input": "psnr_in", "mean image": "psnr_mean_image"}
by_size |= {name: line(["code_size"], "z", column, redraw="once") for name, column in beside.items()}
by_level = {name: line(["level", "faint"], "level", column) for name, column in {"denoised": "psnr_out", **beside}.items()}
for name, lines, axis in (("psnr_by_size", by_size, "code size z"), ("psnr_by_level", by_level, "width of the noise")):
    figure = curves(lines, x=axis, y="PSNR in dB", log=False, log_x=True, alt=f"PSNR of input and output against {axis}")
    run.save(figure, name)
    show(figure)

# %% [markdown]
# ## Fields
#
# A network with more code units than inputs (2-128-128-128-2, ReLU) learns to remove Gaussian noise from points on a curve; Adam, the rate falling to zero along half a cosine. Its
# field is measured at noisy points like those it was trained on, drawn anew; the exact score is that of the training points, smoothed (21.9). `best_mse` is the error of the
# posterior mean, which no denoiser undercuts on average.

# %%
fields = {}
cosine = lambda epoch: 0.5 * (1 + math.cos(math.pi * epoch / field_epochs))
for name, stage in run.stages(manifolds, label="field: {}"):
    points, noise = manifold(name, field_points), gaussian(field_sigma)
    with seeded(seed):
        networks = mlp((2,), hidden=(128,), latent_dim=128, code_activation="relu", output="linear")
        model = DenoisingAutoencoder(*networks, noise)
    history = fit(model, points, epochs=field_epochs, lr=0.003, schedule=cosine, seed=seed, device=device,
                  checkpoint=stage.checkpoint, progress=stage.progress)  # fmt: skip
    model.cpu()
    x = once(noise, points, seed)
    field, exact, to_curve = vector_field(model, x), score(x, points, field_sigma), nearest(x, manifold(name, 20_000)) - x
    row = {"seed": seed, "study": "field", "corruption": "gaussian", "redraw": "fresh", "z": 128, "level": field_sigma, "manifold": name}
    for column, angles in {
        "angle_to_manifold": angle_between(field, to_curve),
        "angle_to_score": angle_between(field, exact),
        "score_to_manifold": angle_between(exact, to_curve),
    }.items():
        row |= {column: angles.median().item(), f"{column}_90": angles.quantile(0.9).item()}
    row |= {
        "score_error": ((field / field_sigma**2 - exact).norm() / exact.norm()).item(),
        "test_mse": (x + field - points).square().mean().item(),
        "best_mse": (posterior_mean(x, points, field_sigma) - points).square().mean().item(),
        "seconds": sum(history["seconds"]),
    }
    rows[f"field: {name}"] = row
    reach = 3 * field_sigma
    low, high = (points.min(0).values - reach).tolist(), (points.max(0).values + reach).tolist()
    places = code_grid((low[0], high[0], low[1], high[1]), steps=21)
    places = places[(nearest(places, points) - places).norm(dim=1) < reach]
    arrows = vector_field(model, places)
    fields[name] = quiver(places, arrows, curve=points[::5], values=angle_between(arrows, score(places, points, field_sigma)),
                          value_range=(0, 90), label="degrees to the exact score",
                          alt=f"Arrows of the trained denoiser around the {name}, coloured by their angle to the score")  # fmt: skip
figure = montage(fields, columns=3)
run.save(figure, "fields")
show(figure)

# %%
run.finish(rows.values())
