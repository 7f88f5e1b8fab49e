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
# # Generation with and without the variation
#
# > Does an autoencoder that was trained to reconstruct, and to do nothing else, generate as well as a variational one?

# %% [markdown]
# Tests *Variational autoencoders without the variation* (Daly, Fieldsend and Tabor, 2022), and the survey's statement that a VAE generates digits (Bank, Koenigstein and Giryes, Section 4.1), with the networks and losses of lesson [43](../43_generation.ipynb), which explains every name used here.
#
# **A run is a configuration**: one model, loss, width, code, depth, normalisation, noise; each of them a list, so that a run may also train several, all combinations of them. What does not concern a model (the reduction of a plain autoencoder's loss, say) makes no second training of it. Sweep over one-element lists for the paper's Table 1.
# These sweeps make the table at laptop scale, each configuration once:
#
# ```
# ae-course sweep generation --grid seed=0,1,2,3,4 'reductions=[mean,sum]' 'widths=[4],[8],[16]'
# ae-course sweep generation --grid seed=0,1,2,3,4 'models=[vae]' 'reductions=[sum]' 'betas=[1.0]'
# ae-course sweep generation --grid seed=0,1,2,3,4 'models=[dae]' 'norms=[batch,layer,spectral]'
# ae-course sweep generation --grid seed=0,1,2,3,4 'models=[dae]' 'noises=[0.1,0.5,1.0]'
# ae-course sweep generation --grid seed=0,1,2,3,4 'models=[rae,wae,eae,gmm_dae]'
# ae-course sweep generation --grid seed=0,1,2,3,4 'models=[dae]' 'codes=[4,16,32,64]' 'latents=[frozen]'
# ae-course sweep generation --grid seed=0,1,2,3,4 'codes=[4],[32],[64]'
# ae-course sweep generation --grid seed=0,1,2,3,4 'models=[dae]' 'codes=[4,16,32,64]' 'depths=[2]'
# ```
#
# **A row is a configuration in a study.** A configuration is trained once and has a row in every study that asks for it: those in whose other settings it agrees with the base (`base_width` filters, a code of `base_code`, depth 1, nothing normalised, no noise, a trained latent layer, mean reductions, a beta of 0.01).
#
# | study | models | what varies |
# |---|---|---|
# | `table2`, `interpolation`, `width` | DAE and VAE, in `width` the DAE | filters; in `table2` the VAE's reduction as well |
# | `table3` | DAE, VAE | filters and code |
# | `codes`, `stability` | DAE, VAE | code |
# | `depth`, `frozen`, `noise` | DAE, in `noise` the VAE beside it | depth and code; latent layer and code; noise |
# | `norms` | DAE, the VAE beside it | normalisation of the code |
# | `others` | all but the VAE | model |
# | `digits` | VAE with the survey's objective (sums, beta 1), DAE, PCA, mean image, training images | sampler |
#
# The columns are explained in the lesson. A training that diverges is a result (`diverged` is 1); the network is then measured as it was after its last finite epoch. `noise_over_std` is the noise over the deviation of a unit of the code.
#
# **The scorer is validated first**: on real images against real images, reconstructions by principal components, noise, the mean image, and shuffled pixels (study `validation`). One that puts a bad set before a good one gives no distances at all. `features` names it; only with Inception's weights is it FID.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name; scored by a classifier, it needs labels
variant: str | None = None  # a paper's own choice and crop of it, such as rae
image_size: int = 16  # one of 16, 32, 64, 128: pixels of a side
limit: int | None = None  # at least 40: use the first so many training images
test_limit: int | None = None  # at least 40: use the first so many test images
studies: list[str] | None = None  # studies to record rows for; none takes all
models: list[str] = ["dae", "vae"]  # one of dae, vae, rae, wae, eae, gmm_dae: what to train
reductions: list[str] = ["mean"]  # one of mean, sum, hw: of the VAE's loss
betas: list[float] = [0.01]  # at least 0: weights of the VAE's rate
widths: list[int] = [8]  # at least 1: filters of the first stage
codes: list[int] = [16]  # at least 1: sizes of the code
depths: list[str] = ["1"]  # convolutions a stage, a number or four such as 3-3-2-1
norms: list[str] = ["none"]  # one of none, batch, layer, spectral: normalisation of the code
noises: list[float] = [0.0]  # at least 0: deviations of the noise on the decoder's input
latents: list[str] = ["trained"]  # one of trained, frozen: the latent layer
base_width: int = 8  # at least 1: filters of the studies that do not vary them
base_code: int = 16  # at least 1: code of the studies that do not vary it
decoder_start: str = "filters"  # one of fixed, filters: the decoder's first maps, 1024 or 8 times the filters
decoder_depth: str = "filters"  # one of filters, reversed: which of four depths go to the decoder
momentum: float = 0.1  # above 0, at most 1: of batch normalisation, 0.01 in the paper
epochs: int = 12  # at least 1: passes over the training images, 100 in the paper
batch_size: int = 64  # at least 2: images a step, 128 in the paper
lr: float = 0.005  # above 0: Adam's highest learning rate, 0.001 in the paper
scorer: str = "cnn"  # one of cnn, efficientnet, inception: whose features the distances are in
scorer_size: int = 224  # at least 32: pixels of a side that the efficientnet is shown
samples: int = 1000  # at least 10: images from each sampler
components: int = 10  # at least 1: of the mixture
seed: int = 0  # at least 0: fixes the weights, the order of the images, and what is drawn
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float32"  # one of float32, bfloat16: arithmetic of the training
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("generation", globals())

# %% [markdown]
# ## Data and scorer

# %%
import itertools
import math

import torch

from ae_course.base import BadArgument, check_choice
from ae_course.data import data_root, load
from ae_course.distance import cnn_scorer, efficientnet_scorer, frechet_distance, inception_scorer, validate
from ae_course.figures import curves, dots, image_grid, latent_scatter, pick
from ae_course.generation import daly_model, decoded, encoded, generation_row, samplers, schedule_of, size_of
from ae_course.linear import PCA
from ae_course.sampling import interpolation, principal_steps
from ae_course.training import Diverged, fit, seeded

# %%
if threads is not None:
    torch.set_num_threads(threads)
train = load(dataset, variant=variant, size=image_size, limit=limit)
test = load(dataset, "test", variant=variant, size=image_size, limit=test_limit)
shape, x_test = tuple(train.x.shape[1:]), test.pixels()
about = f"{dataset}, {image_size} pixels, {len(train)} images, {epochs} epochs, seed {seed}"
if scorer == "cnn":  # trained on all labelled images, whatever part of them is learned from here
    judge = cnn_scorer(load(dataset, variant=variant, size=image_size), cache=data_root() / "scorers", device=device)
else:
    judge = efficientnet_scorer(scorer_size, device) if scorer == "efficientnet" else inception_scorer(device=device)
few = train[: min(len(train), 4000)].pixels().flatten(1)
pca = PCA(min(32, len(few) - 1)).fit(few)
rebuilt = pca.reconstruct(x_test.flatten(1)).unflatten(1, shape).clamp(0, 1)
validation = validate(judge, test, {"reconstructions": rebuilt})
print(judge, validation, sep="\n")
if not validation.valid:
    print(f"{judge.name} puts a bad set before a good one: no distances are recorded. Take another scorer, or more test images")

# %% [markdown]
# ## Configurations

# %%
base = {"filters": base_width, "latent_dim": base_code, "layers": "1", "norm": "none", "noise": 0.0, "latent": "trained",
        "reduction": "mean", "beta": 0.01}  # fmt: skip
plain, both, others = ["dae"], ["dae", "vae"], ["dae", "rae", "wae", "eae", "gmm_dae"]
asked = {"table2": (both, ["filters", "reduction"]), "table3": (both, ["filters", "latent_dim"]), "codes": (both, ["latent_dim"]),
         "depth": (plain, ["latent_dim", "layers"]), "frozen": (plain, ["latent_dim", "latent"]), "norms": (both, ["norm"]),
         "noise": (both, ["noise"]), "width": (plain, ["filters"]), "interpolation": (both, ["filters"]), "others": (others, []),
         "stability": (both, ["latent_dim"]), "digits": (plain, [])}  # fmt: skip
for study in studies or []:
    check_choice("studies", study, asked)


def belongs(config):
    "The studies in which a configuration has a row."
    agrees = lambda free, wanted=base: all(config[key] in (value, None) for key, value in wanted.items() if key not in free)
    found = [study for study, (models, free) in asked.items() if config["model"] in models and agrees(free)]
    if config["model"] == "vae" and agrees([], base | {"reduction": "sum", "beta": 1.0}):
        found.append("digits")
    return [study for study in found if studies is None or study in studies]


def named(config):
    "What tells a configuration from the base."
    differs = [f"{key} {config[key]}" for key in list(base)[2:] if config[key] not in (base[key], None)]
    return ", ".join([config["model"], f"{config['filters']} filters", f"code {config['latent_dim']}", *differs])


plans = {}  # name -> configuration
for model, width, code, layers, norm, noise, latent, reduction, beta in itertools.product(
    models, widths, codes, depths, norms, noises, latents, reductions, betas
):
    variational = model == "vae"
    config = {"model": model, "filters": width, "latent_dim": code, "layers": layers, "norm": norm, "noise": noise, "latent": latent,
              "reduction": reduction if variational else None, "beta": beta if variational else None}  # fmt: skip
    if variational and (norm, noise, latent) != ("none", 0.0, "trained"):
        print(f"left out: {named(config)}; normalisation, noise and frozen layers are the deterministic models'")
    elif not belongs(config):
        print(f"left out: {named(config)}; none of the studies asks for it")
    else:
        plans[named(config)] = config
if not plans:
    raise BadArgument("nothing to train: no configuration belongs to one of the studies; see base_width, base_code and the table above")
list(plans)


# %%
def built(config):
    "The untrained model of a configuration."
    depth = [int(n) if n.isdecimal() else n for n in config["layers"].split("-")]
    options = {"depth": depth[0] if len(depth) == 1 else depth, "start": decoder_start, "decoder_depth": decoder_depth,
               "norm": None if config["norm"] == "none" else config["norm"], "noise": config["noise"],
               "frozen": config["latent"] == "frozen", "momentum": momentum}  # fmt: skip
    with seeded(seed):
        return daly_model(config["model"], shape, config["filters"], config["latent_dim"], reduction=config["reduction"] or "mean",
                          beta=0.01 if config["beta"] is None else config["beta"], **options)  # fmt: skip


sizes = {name: size_of(*(half.cpu() for half in (built(config).encoder, built(config).decoder)), shape, config["latent_dim"])
         for name, config in plans.items()}  # fmt: skip
for name, size in sizes.items():
    print(f"{name}: encoder {size.encoder:,} and decoder {size.decoder:,} parameters, {size.macs:,} multiply-accumulates an image")

# %% [markdown]
# ## Train, sample, score

# %%
columns = """study model reduction beta filters latent_dim depth layers latent norm noise noise_over_std sampling distance distance_normal
    distance_mvg distance_gmm distance_train distance_test midpoint_distance kid_gmm precision_gmm recall_gmm mixture_gain code_std
    code_std_min code_std_max code_mean code_kurtosis active_units diverged last_loss encoder_parameters decoder_parameters macs seconds
    features scorer_valid images real_images"""
blank, rows = dict.fromkeys(columns.split()), []
shown = pick(10, len(test), seed=0)
ends = pick(4, len(test), seed=1)
pictures, points, traces = {}, {}, {}


def add(study, **values):
    "A row, numbers to six digits."
    about = {"study": study, "features": judge.name, "scorer_valid": validation.valid, "images": len(train), "real_images": len(test)}
    row = {"seed": seed} | blank | about | values
    rows.append({key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()})


for name, stage in run.stages(plans, cost=lambda name: sizes[name].macs):
    config, model, diverged = plans[name], built(plans[name]), 0
    try:
        history = fit(model, train, epochs=epochs, batch_size=batch_size, lr=lr, schedule=schedule_of(epochs), seed=seed, device=device,
                      precision=precision, checkpoint=stage.checkpoint, progress=stage.progress)  # fmt: skip
    except Diverged as error:  # the model keeps the weights of the last finite epoch
        print(f"{name}: {error}")
        diverged, history = 1, None
    numbers, images = generation_row(model, train, test, judge if validation.valid else None, samples=samples, components=components,
                                     seed=seed)  # fmt: skip
    reduction = config["reduction"] or ("mean" if config["model"] in ("dae", "gmm_dae") else "sum")
    if history:
        traces[name] = [value / (1 if reduction == "mean" else math.prod(shape)) for value in history["reconstruction"]]
    row = {key: value for key, value in config.items() if value is not None} | numbers
    row |= {"reduction": reduction, "diverged": diverged,
            "depth": "shallow" if config["layers"] == "1" else "deep", "noise_over_std": config["noise"] / numbers["code_std"],
            "encoder_parameters": sizes[name].encoder, "decoder_parameters": sizes[name].decoder, "macs": sizes[name].macs,
            "last_loss": history and history["loss"][-1], "seconds": history and sum(history["seconds"])}  # fmt: skip
    for study in belongs(config):
        if study == "digits":
            for kind in ("normal", "mvg", "gmm"):
                add(study, **row, sampling=kind, distance=row[f"distance_{kind}"])
        else:
            add(study, **row)
    z = encoded(model, train)
    points[name] = z.cpu()
    lines = interpolation(*(encoded(model, test[part]) for part in (ends[:2], ends[2:])), steps=10)
    steps = principal_steps(z, 3)
    walks = z.mean(0) + torch.linspace(-2, 2, 10).to(z)[None, :, None] * steps[:, None]
    first = encoded(model, test[shown])
    pictures[name] = {"test": test[shown].pixels(), "decoded": decoded(model, first).cpu()}
    pictures[name] |= {label: images[kind][:10] for label, kind in (("N(0, I)", "normal"), ("MVG", "mvg"), ("GMM", "gmm"))}
    pictures[name] |= {f"line {i + 1}": decoded(model, line).cpu() for i, line in enumerate(lines)}
    pictures[name] |= {f"direction {i + 1}": decoded(model, walk).cpu() for i, walk in enumerate(walks)}

# %% [markdown]
# What digits are held against: PCA with a mixture, the mean image, and training images as they are. And the validation, once for each seed.

# %%
yardsticks = {}
if validation.valid and any(row["study"] == "digits" and row["model"] == "vae" for row in rows):
    short = PCA(base_code).fit(few)
    found = samplers(short.transform(few), components, seed)
    for kind in ("mvg", "gmm"):
        yardsticks["pca", kind] = short.inverse_transform(found[kind].sample(samples, seed)).unflatten(1, shape).clamp(0, 1)
    yardsticks["mean_image", None] = few.mean(0).view(1, *shape).expand(samples, *shape)
    yardsticks["real", None] = train[:samples]
    there = judge(test)
    for (name, kind), images in yardsticks.items():
        add("digits", model=name, sampling=kind, latent_dim=base_code if kind else None, distance=frechet_distance(judge(images), there))
if any(config == {"model": "dae"} | base | {"reduction": None, "beta": None} for config in plans.values()):
    for name, distance in validation.distances.items():
        add("validation", model=name, distance=distance, real_images=validation.images)

# %% [markdown]
# ## Figures
#
# Rows: test images and what becomes of them; the three samplers; lines between the codes of two test images; and steps of two deviations to each side along the first three principal directions of the codes.

# %%
place = lambda name: name.replace(", ", "_").replace(" ", "-")
for name, grid in pictures.items():
    alt = f"{name}: test images, reconstructions, samples of three kinds, lines between codes and steps along principal directions"
    run.save(image_grid(grid, clip=True, title=f"{name}; {about}", alt=alt), f"images_{place(name)}")

# %%
if traces:
    alt = "Training reconstruction loss a pixel: cross-entropy of DAE and VAE, squared error of the others"
    run.save(curves(traces, y="reconstruction loss a pixel", title=about, alt=alt), "loss")
scored = {name: next(row for row in rows if all(row[key] == value for key, value in config.items() if value is not None))
          for name, config in plans.items()}  # fmt: skip
if validation.valid:
    kinds = {"N(0, I)": "distance_normal", "MVG": "distance_mvg", "GMM": "distance_gmm", "test, decoded": "distance_test"}
    values = {label: {name: row[column] for name, row in scored.items()} for label, column in kinds.items()}
    found = [value for each in values.values() for value in each.values()]
    run.save(dots(values, log=max(found) > 5 * min(found),
                  x=f"{judge.name} to {len(test)} test images, {samples} of each", title=about,
                  alt="Distance of samples and reconstructions to test images, by configuration and sampler"), "distances")  # fmt: skip
for name, z in points.items():
    units = pick(2, z.shape[1], seed=seed) if z.shape[1] > 1 else torch.tensor([0, 0])
    run.save(latent_scatter(z[:, units], axes_labels=tuple(f"unit {i + 1}" for i in units.tolist()), title=f"{name}; {about}"),
             f"codes_{place(name)}")  # fmt: skip

# %%
run.finish(rows)
