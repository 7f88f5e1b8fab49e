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
# # The contractive penalty
#
# > Which directions does it leave, what does it cost, who is robust where, and may one use L-BFGS?

# %% [markdown]
# Tests four statements of the LMU slides (*Deep Learning*, chapter 8: *Contractive autoencoder*, *DAE vs. CAE*, *Which autoencoder?*) and of the survey by Bank, Koenigstein and Giryes (Section 2.3), with the tied network of Rifai et al. (2011), sigmoid code and linear output:
# only few directions of the input keep significant derivatives; codes draw together, and reconstruction pays; the contractive autoencoder makes the encoder robust, the denoising one the decoder (slides) or the encoder (survey); the
# contractive gradient is deterministic, so that second-order optimisers work. Lesson [22](../22_contractive.ipynb) explains the penalty and every measure.
#
# One row a trained network. Errors are mean squared errors over every pixel of every image. `jacobian_norm` is the mean squared Frobenius norm of the encoder's Jacobian, `lam` its weight in the loss (sums over pixels and code), `effective_directions` (22.6), `tangent_share` (22.7),
# `code_change` and `reconstruction_change` (22.8) are means over test images, `code_distance` is the root mean square distance between the codes of two of them. The studies:
#
# - `weight`: the tied network at every weight. `robustness`: plain, contractive and denoising at one setting each, tied. `untied`: the same three with a decoder of its own.
# - `directions`: plain, contractive and denoising on bumps, images of known tangent planes; here the test images are new bumps.
# - `optimizer`: the training `objective` after equal numbers of full-batch gradient evaluations. Adam is given each rate of `adam_lrs`, and the best objective is the row that stands, so the comparison favours it. For the denoising one the objective is a mean over fresh noise.
#   `dae, noise drawn once` keeps one draw of the noise for the whole training; `adam, batches` takes the same number of passes in small batches. `gradient_variance` is that of the full-batch gradient at the end, relative to its mean.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name
limit: int | None = None  # at least 300: use the first so many training images
latent_dim: int = 144  # at least 2: code size
weights: list[float] = [0.0, 0.01, 0.1, 1.0, 10.0]  # at least 0: weights of the penalty in the study of weights
weight: float = 1.0  # above 0: weight of the penalty in the other studies
noise: float = 0.3  # above 0: standard deviation of the denoising autoencoder's noise
perturbation: float = 0.01  # above 0: standard deviation of the noise that measures robustness
epochs: int = 20  # at least 1: passes over the training images
batch_size: int = 128  # at least 1: images a step
lr: float = 0.01  # above 0: Adam's learning rate
untied_lr: float = 0.003  # above 0: the same for networks with a decoder of their own, whose units saturate at higher ones
bump_epochs: int = 60  # at least 1: passes over the 1,000 bumps
optimizer_images: int = 1000  # at least 2: images in the study of optimisers
lbfgs_epochs: int = 9  # at least 1: epochs of L-BFGS, twenty iterations each; Adam gets as many gradient evaluations
adam_lrs: list[float] = [0.001, 0.003, 0.01, 0.03]  # above 0: rates among which full-batch Adam may take the best
seed: int = 0  # at least 0: fixes the starts, the order of the images, and all noise
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("contractive", globals())

# %% [markdown]
# ## Data

# %%
import torch

from ae_course.autoencoder import mlp
from ae_course.contractive import (
    ContractiveAutoencoder, bumps, effective_directions, gradient_variance, jacobians, sensitivity, spread, tangent_share, tied,
)  # fmt: skip
from ae_course.data import load
from ae_course.denoising import DenoisingAutoencoder, gaussian, noised_once
from ae_course.figures import curves, dots, reconstruction_grid
from ae_course.training import Diverged, evaluate, fit, seeded

# %%
if threads is not None:
    torch.set_num_threads(threads)
train, test = load(dataset, limit=limit), load(dataset, "test")
shape = tuple(train.x.shape[1:])
draw = torch.Generator().manual_seed(seed)
centres = 3.5 + 8 * torch.rand(1300, 2, generator=draw)  # 16 x 16 pixels, width 2: the whole bump is inside
bump_train, bump_test = bumps(centres[:1000]), bumps(centres[1000:])
tangents = jacobians(bumps, centres[1000:])  # (300, 256, 2)
few = train[: min(optimizer_images, len(train))]
train, test


# %% [markdown]
# ## Train
#
# The three kinds of model differ in nothing but the loss.

# %%
def build(kind, lam=0.0, images=shape, tie=True):
    "A model of one kind, from the start that `seed` fixes."
    with seeded(seed):
        networks = tied(images, latent_dim) if tie else mlp(images, (), latent_dim, code_activation="sigmoid", output=None)
    return DenoisingAutoencoder(*networks, gaussian(noise)) if kind.startswith("dae") else ContractiveAutoencoder(*networks, lam)


usual = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
on_bumps = {"epochs": bump_epochs, "batch_size": batch_size, "lr": lr}
three = {"plain": ("contractive", 0.0), "contractive": ("contractive", weight), "dae": ("dae", None)}
trainings = {}  # label -> (study, model, weight, whether tied, data, settings of fit)
for lam in weights:
    trainings[f"weight {lam:g}"] = "weight", "contractive", lam, True, train, usual
for name, (_, lam) in three.items():
    trainings[f"{name}, tied"] = "robustness", name, lam, True, train, usual
    trainings[f"{name}, untied"] = "untied", name, lam, False, train, usual | {"lr": untied_lr}
    trainings[f"{name}, bumps"] = "directions", name, lam, True, bump_train, on_bumps
full = {"batch_size": None, "epochs": None}  # Adam's epochs: the evaluations that L-BFGS has taken
for name in ("contractive", "dae", "dae, noise drawn once"):
    lam = weight if name == "contractive" else None
    trainings[f"{name}, L-BFGS"] = "optimizer", name, lam, True, few, full | {"optimizer": "lbfgs", "epochs": lbfgs_epochs}
    for rate in adam_lrs:
        trainings[f"{name}, Adam {rate:g}"] = "optimizer", name, lam, True, few, full | {"lr": rate}
    if "once" not in name:
        trainings[f"{name}, Adam in batches"] = "optimizer", name, lam, True, few, usual | {"epochs": None}
# the tied plain and contractive networks are among those of the first study, unless their weights were taken out of it
same = {f"{name}, tied": f"weight {lam:g}" for name, (_, lam) in three.items() if lam in weights}
list(trainings)

# %%
models, taken, seconds, ended = {}, {}, {}, {}
share = len(few) / len(train)
costs = {"optimizer": 22 * lbfgs_epochs * share, "directions": bump_epochs / 12 * 4000 / len(train)}
for label, stage in run.stages([t for t in trainings if t not in same], cost=lambda label: costs.get(trainings[label][0], epochs)):
    study, name, lam, tie, data, options = trainings[label]
    model = build(name, lam or 0.0, tuple(data.shape[1:]) if study == "directions" else shape, tie)
    count = []
    hook = model.encoder.register_forward_hook(lambda *_, count=count: count.append(1))  # one encoding, one gradient
    if options["epochs"] is None:
        options = options | {"epochs": taken[f"{name}, L-BFGS"]}
    if name == "dae, noise drawn once":
        data = noised_once(gaussian(noise), data, seed)
    kept = {} if options.get("optimizer") == "lbfgs" else {"checkpoint": stage.checkpoint}  # a resumed one could not be counted
    try:
        history = fit(model, data, seed=seed, device=device, progress=stage.progress, **options, **kept)
        seconds[label], ended[label] = sum(history["seconds"]), False
    except Diverged as error:  # the last finite epoch is kept, and measured
        print(f"{label}: {error}")
        seconds[label], ended[label] = None, True
    hook.remove()
    taken[label], models[label] = len(count), model.cpu()
for label, other in same.items():
    taken[label], models[label], seconds[label], ended[label] = taken[other], models[other], seconds[other], ended[other]

# %% [markdown]
# ## Measure

# %%
rows, x_test = [], test.pixels()
sample = x_test[:200]
columns = """study model tied lam test_mse train_mse jacobian_norm effective_directions tangent_share code_distance code_change
    reconstruction_change decoder_norm optimizer rate gradient_evaluations objective objective_seen gradient_variance diverged seconds"""
blank = dict.fromkeys(columns.split())


def error(model, x):
    "Mean squared error of the clean images `x`."
    with torch.no_grad():
        return torch.cat([(model(part) - part).square().flatten(1).mean(1) for part in x.split(1000)]).mean().item()


def measured(model, x, x_train, points, tangents=None):
    "What the encoder reacts to, on test images `x`; its Jacobians at `points`."
    j = jacobians(model.encoder, points)
    with torch.no_grad():
        distance = spread(model.encode(x)).item()
    code, reconstruction = sensitivity(model, x, perturbation, seed)
    return {
        "test_mse": error(model, x), "train_mse": error(model, x_train), "jacobian_norm": j.square().sum((1, 2)).mean().item(),
        "effective_directions": effective_directions(j).nanmean().item(), "code_distance": distance, "code_change": code,
        "reconstruction_change": reconstruction, "decoder_norm": model.decoder[0].weight.norm().item(),
        "tangent_share": None if tangents is None else tangent_share(j, tangents).nanmean().item(),
    }  # fmt: skip


def objective(model, data):
    "The training objective on `data`, for noise a mean over ten fresh draws."
    draws = range(10 if isinstance(model, DenoisingAutoencoder) else 1)
    return sum(evaluate(model, data, corrupt=True, seed=1000 + seed + d)["loss"] for d in draws) / len(draws)


for label, (study, name, lam, tie, _, options) in trainings.items():
    model, row = models[label], {"seed": seed} | blank
    row |= {"study": study, "model": name, "tied": tie, "lam": lam, "diverged": ended[label], "seconds": seconds[label]}
    if study != "optimizer":
        on = (bump_test, bump_train, bump_test, tangents) if study == "directions" else (x_test, train.pixels(), sample)
        rows.append(row | measured(model, *on))
        continue
    kind = options.get("optimizer", "adam" if options["batch_size"] is None else "adam, batches")
    seen = noised_once(gaussian(noise), few, seed) if "once" in name else few
    row |= {"optimizer": kind, "rate": options.get("lr"), "gradient_evaluations": taken[f"{name}, L-BFGS"],
            "objective": objective(model, few),
            "objective_seen": objective(model, seen) if "once" in name else None,
            "gradient_variance": None if "once" in name else gradient_variance(model, few.pixels())}  # fmt: skip
    rivals = [r for r in rows if r["study"] == study and r["model"] == name and r["optimizer"] == kind]
    if not rivals:
        rows.append(row)
    elif row["objective"] < rivals[0]["objective"]:  # of Adam's rates the best one stands
        rivals[0].update(row)

# %% [markdown]
# ## Figures

# %%
find = lambda **wanted: [r for r in rows if all(r[k] == v for k, v in wanted.items())]
shown, title = x_test[:8], f"{dataset}, {latent_dim} units, seed {seed}"
with torch.no_grad():
    grid = {f"weight {lam:g}": models[f"weight {lam:g}"](shown) for lam in weights}
alt = "Test images and their reconstructions, a row for each weight of the penalty"
run.save(reconstruction_grid(shown, grid, title=title, clip=True, alt=alt), "reconstructions")

# %%
spectra = {name: torch.linalg.svdvals(jacobians(models[name].encoder, sample)) for name in grid}
lines = {name: (s / s[:, :1]).mean(0)[:60].clamp(min=1e-6).tolist() for name, s in spectra.items()}
run.save(curves(lines, x="singular value, the largest first", y="relative to the largest", ordered=True, title=title,
                alt="Normalised singular values of the encoder's Jacobian, a line a weight"), "spectrum")  # fmt: skip

# %%
robust = {name: find(study="robustness", model=name)[0] for name in three}
changes = {what: {name: row[f"{what}_change"] / perturbation for name, row in robust.items()} for what in ("code", "reconstruction")}
run.save(dots(changes, x="change relative to the spread, per unit of noise", title=title,
              alt="Relative change of code and reconstruction, plain, contractive and denoising"), "robustness")  # fmt: skip
along = {name: find(study="directions", model=name)[0]["tangent_share"] for name in three} | {"any direction": 2 / 256}
run.save(dots(along, x="share of the squared Jacobian along the surface", title=f"bumps, {latent_dim} units, seed {seed}",
              alt="Tangent share of the plain, contractive and denoising autoencoder on bumps"), "tangent_share")  # fmt: skip
best = {name: {kind: find(model=name, optimizer=kind)[0]["objective"] for kind in ("lbfgs", "adam")}
        for name in ("contractive", "dae", "dae, noise drawn once")}  # fmt: skip
run.save(dots(best, x="training objective at the end", title=title, alt="Training objective by model and optimiser"), "objective")

# %%
run.finish(rows)
