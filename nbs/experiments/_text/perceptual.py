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
# # Feature losses
#
# > Are images more realistic if the loss compares features of a fixed network instead of pixels, and who is to judge?

# %% [markdown]
# Tests the statement of the survey by Bank, Koenigstein and Giryes (Section 5.2) that a loss on the features of a classifier gives a more realistic measure of difference than one on pixels (Hou et al., 2017). Lesson [61](../61_perceptual.ipynb) explains the loss, its weights and every measure.
#
# One row a `loss`, all with the same networks, the same start and the same order of images:
#
# - `pixel`: the squared error; `feature`: the feature loss (61.1); `both`: half of each, by the weights of (61.3), which were fixed before any run: the noise that probabilistic PCA finds, and equal losses at the mean image.
# - `untrained`: the feature loss of the same network with weights drawn anew.
# - `train images`: real images, as many as are drawn, for the scale.
#
# **Who judges.** `distance` is the Fréchet distance between images from codes of the prior and the test images in the features of `judge`, which is never the loss's network: for labels it has been trained on the other half of the labelled images, with another width and from another start, and `second` adds a network of another kind in `second_distance`. `own_distance` is in the loss's own network and decides nothing. A judge that puts a set of noise, or of mean images, before real ones
# gives no distances. `sample_precision` and `sample_recall` are (42.6) for the drawn images, in the judge's features. `spectrum_distance` is (5.4a) in dB; the columns that begin with `reconstruction_` are the same for images from the codes of test images.
#
# `psnr` (dB) and `ssim` are of reconstructions; `rate` is the mean KL in nats; `checkerboard` the grain (30.10) of reconstructions; `spread` the deviation of a pixel over reconstructions, over that of test images: near 0 the decoder paints one image for all. `probe_accuracy` is that of a linear probe from codes to labels, `attribute_accuracy` its mean over all attributes (where there are some), `attribute_chance` what the most frequent value gets.
# `pixel_weight`, `feature_weight` are $a$ and $b$ of (61.2). Images are cut to $[0, 1]$ before anything is measured.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name
image_size: int | None = None  # at least 8: pixels of a side; none for the data's own
limit: int | None = None  # at least 20: use the first so many training images
test_limit: int | None = None  # at least 20: use the first so many test images
label: str | None = None  # attribute that serves as the label of the classifiers; none takes the data's labels
latent_dim: int = 16  # at least 1: code size
channels: list[int] = [16, 32]  # at least 1: maps of the stages; each halves height and width
up: str = "upsample"  # one of upsample, transpose: how the decoder enlarges
kernel: int = 4  # at least 2: pixels of the autoencoder's kernels
network: str = "labels"  # one of labels, efficientnet, vgg: whose features are the loss
layers: list[str] = ["relu1_1", "relu2_1"]  # its layers
network_size: int = 64  # at least 32: pixels of a side that efficientnet and vgg are shown
judge: str = "cnn"  # one of cnn, efficientnet: whose features decide
second: str = "none"  # one of none, cnn, efficientnet: a second opinion
judge_size: int = 64  # at least 32: pixels of a side that an efficientnet that judges is shown
label_limit: int | None = None  # at least 40: labelled images for the two classifiers, half for each
label_epochs: int = 4  # at least 1: passes over them
samples: int = 1000  # at least 10: images drawn
shown: list[str] = ["Smiling", "Eyeglasses"]  # attributes whose vectors are shown; without attributes the first two classes
epochs: int = 15  # at least 1: passes over the training images
minutes: float | None = None  # above 0: end the training of a network, after an epoch, when so many are over
batch_size: int = 32  # at least 1: images a step
lr: float = 0.001  # above 0: Adam's learning rate; at 0.003 some starts of the feature loss stay dark (lesson 61)
seed: int = 0  # at least 0: fixes the starts, the order of the images, and all draws
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float32"  # one of float32, bfloat16: arithmetic of the training
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("perceptual", globals())

# %% [markdown]
# ## Data, the loss's network, the judges

# %%
from dataclasses import replace
from functools import partial

import torch

from ae_course.base import BadArgument, check_choice
from ae_course.convolutional import checkerboard
from ae_course.data import data_root, load
from ae_course.distance import cnn_scorer, efficientnet_scorer, frechet_distance, precision_recall, validate
from ae_course.figures import curves, image_grid
from ae_course.generation import decoded, encoded
from ae_course.metrics import probe_accuracy, psnr, radial_spectrum, spectrum_distance, ssim
from ae_course.perceptual import (
    FeatureLoss,
    PerceptualVAE,
    attribute_vector,
    efficientnet_features,
    label_features,
    matched_weights,
    untrained,
    variational_conv,
    vgg_features,
)
from ae_course.training import fit_within, pick_device, seeded

# %%
if threads is not None:
    torch.set_num_threads(threads)
place = pick_device(device)
if network == "efficientnet" and "efficientnet" in (judge, second):
    raise BadArgument("judge, second: got 'efficientnet' for a loss on its own features; take cnn, or another network for the loss")


def labelled(images):
    "The images with the attribute `label` in place of their labels, if one was asked for."
    if label is None:
        return images
    names = list(images.about.get("attributes", ()))
    check_choice("label", label, names)
    return replace(images, y=images.extras["attributes"][:, names.index(label)].long(), classes=("without", "with"))


train, test = (labelled(load(dataset, split, limit=some, size=image_size)) for split, some in (("train", limit), ("test", test_limit)))
shape, x_test = tuple(train.x.shape[1:]), test.pixels()
known = load(dataset, limit=label_limit, size=image_size)  # classifiers learn from all labelled images, whatever part is used here
kept = {"cache": data_root() / "scorers", "epochs": label_epochs, "device": place}
of_loss, of_judge = ({"train": labelled(known[half::2]), "width": width, "seed": half, **kept} for half, width in ((0, 16), (1, 24)))
own = None
if network == "labels":
    fixed = label_features(of_loss.pop("train"), layers, **of_loss)
    own = cnn_scorer(labelled(known[::2]), **of_loss)
elif network == "efficientnet":
    fixed, own = efficientnet_features(layers, network_size, place), efficientnet_scorer(network_size, place)
else:
    fixed = vgg_features(layers, network_size).to(place)
features = {"trained": FeatureLoss(fixed.to(place)), "untrained": FeatureLoss(untrained(fixed, seed).to(place))}
judges = {}
for role, kind in (("judge", judge), ("second", second)):
    if kind != "none":
        scorer = cnn_scorer(**of_judge) if kind == "cnn" else efficientnet_scorer(judge_size, place)
        asked = partial(scorer, batch_size=50)  # on a CPU the memory of larger batches costs more time than their arithmetic
        found = validate(asked, test)
        print(role, scorer, found, sep="\n")
        judges[role] = asked if found.valid else None
if "judge" in judges and judges["judge"] is None:
    print("the judge puts a bad set before a good one: no distances are recorded. Take another, or more test images")
train, test, fixed.strides

# %% [markdown]
# ## Train

# %%
ARMS = {"pixel": ("trained", 0.0), "feature": ("trained", 1.0), "both": ("trained", 0.5), "untrained": ("untrained", 1.0)}
few = train[:1000].pixels()
weights = {name: matched_weights(features[kind], few, min(latent_dim, len(few) - 1), share) for name, (kind, share) in ARMS.items()}
models, trained = {}, {}
for name, stage in run.stages(list(ARMS), cost=lambda name: 1 if name == "pixel" else 2):
    with seeded(seed):
        parts = variational_conv(shape, channels, latent_dim, up=up, kernel=kernel)
    model = PerceptualVAE(*parts, features[ARMS[name][0]], **weights[name])
    history, ended = fit_within(model, train, epochs=epochs, minutes=minutes, checkpoint=stage.checkpoint, progress=stage.progress,
                                batch_size=batch_size, lr=lr, seed=seed, device=place, precision=precision)  # fmt: skip
    models[name], trained[name] = model, {"rate": history["kl"][-1], "seconds": sum(history["seconds"]), "stopped_by": ended}

# %% [markdown]
# ## Measure

# %%
columns = """loss distance spectrum_distance sample_precision sample_recall second_distance own_distance reconstruction_distance
    reconstruction_second_distance reconstruction_spectrum_distance psnr ssim rate checkerboard spread probe_accuracy attribute_accuracy
    attribute_chance pixel_weight feature_weight seconds stopped_by"""
blank = {"seed": seed} | dict.fromkeys(columns.split())
there = {role: scorer(test) for role, scorer in judges.items() if scorer is not None}
if own is not None:
    judges["own"], there["own"] = own, own(test)
prior = torch.randn(samples, latent_dim, generator=torch.Generator().manual_seed(seed))
attributes = train.extras.get("attributes") if test.extras.get("attributes") is not None else None


def realism(images, before=""):
    "Distances of images (N, C, H, W) from the test images, the names with `before` at their front."
    row = {before + "spectrum_distance": spectrum_distance(images, x_test)}
    for role in there:
        name = {"judge": "distance", "second": "second_distance", "own": "own_distance"}[role]
        here = judges[role](images)
        if before + name in blank:
            row[before + name] = frechet_distance(here, there[role])
        if role == "judge" and not before:
            row["sample_precision"], row["sample_recall"] = precision_recall(here, there[role])
    return row


def read_from(z, z_test):
    "What linear probes read from codes: labels, and attributes if there are some."
    row = {}
    if train.y is not None and label is None:
        row["probe_accuracy"] = probe_accuracy(z, train.y, z_test, test.y)
    if attributes is not None:
        both_values = [i for i in range(attributes.shape[1]) if 0 < attributes[:, i].sum() < len(attributes)]
        right = [probe_accuracy(z, attributes[:, i].long(), z_test, test.extras["attributes"][:, i].long()) for i in both_values]
        usual = [(test.extras["attributes"][:, i] == attributes[:, i].mode().values).double().mean().item() for i in both_values]
        row |= {"attribute_accuracy": sum(right) / len(right), "attribute_chance": sum(usual) / len(usual)}
    return row


rows, drawn, rebuilt, codes = [], {}, {}, {}
for name, model in models.items():
    codes[name], z_test = encoded(model, train), encoded(model, test)
    drawn[name], rebuilt[name] = decoded(model, prior.to(place)).clamp(0, 1).cpu(), decoded(model, z_test).clamp(0, 1).cpu()
    rows.append(blank | {"loss": name} | realism(drawn[name]) | realism(rebuilt[name], "reconstruction_") | {
        "psnr": psnr(rebuilt[name], x_test).mean().item(), "ssim": ssim(rebuilt[name], x_test).mean().item(),
        "checkerboard": checkerboard(rebuilt[name]).mean().item(), "spread": (rebuilt[name].std(0).mean() / x_test.std(0).mean()).item(),
        "pixel_weight": weights[name]["pixel"], "feature_weight": weights[name]["feature"],
    } | read_from(codes[name].cpu(), z_test.cpu()) | trained[name])  # fmt: skip
real = train[:samples].pixels()
rows.append(blank | {"loss": "train images"} | realism(real) | {"checkerboard": checkerboard(x_test).mean().item(), "spread": 1.0})

# %% [markdown]
# ## Figures

# %%
title = f"{dataset}, features of {network}, code of {latent_dim}, seed {seed}"
first = lambda sets: {"test images": x_test[:10], **{name: images[:10] for name, images in sets.items()}}
run.save(image_grid(first(drawn), title=title, alt="Test images, and images from codes of the prior, a row a loss"), "samples")
run.save(image_grid(first(rebuilt), title=title, alt="Test images and their reconstructions, a row a loss"), "reconstructions")

# %%
for what, sets in (("samples", drawn), ("reconstructions", rebuilt)):
    lines = {name: radial_spectrum(images).line() for name, images in {"test images": x_test, **sets}.items()}
    run.save(curves(lines, x="frequency (cycles a pixel)", y="mean power", title=f"{what}: {title}",
                    alt=f"Mean radial power of test images and of {what}, a line a loss"), f"spectra_{what}")  # fmt: skip

# %%
names = list(train.about.get("attributes", ()))
having = {name: attributes[:, names.index(name)] > 0 for name in shown if name in names} if attributes is not None else {}
if not having and train.y is not None:
    having = {f"class {k}": train.y == k for k in train.y.unique()[:2].tolist()}
for i, (name, has) in enumerate(having.items()):
    if 0 < int(has.sum()) < len(has):
        vector, z = attribute_vector(codes["feature"], has), encoded(models["feature"], test[:10])
        moved = {f"{n:+} times": decoded(models["feature"], z + n * vector).clamp(0, 1).cpu() for n in (-2, -1, 0, 1, 2)}
        run.save(image_grid({"test images": x_test[:10], **moved}, title=f"{name}: {title}",
                            alt=f"Test images, and reconstructions with more and less of {name}"), f"vector_{i}")  # fmt: skip

# %%
run.finish(rows)
