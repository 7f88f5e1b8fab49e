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
# # VAE, GAN and ALI with equal networks
#
# > Does adversarially learned inference give both the sharp samples of a GAN and the way back of a VAE?

# %% [markdown]
# Tests the statement of the survey by Bank, Koenigstein and Giryes (Section 5.1) that ALI merges VAE and GAN "and get[s] a compromise of their strengths", while a GAN may "miss some modes". Lesson [60](../60_adversarial.ipynb) explains the games, the networks and every measure.
#
# One row a `model`, all with the same encoder and decoder, epochs and batches:
#
# - `vae`: beta 1, cross-entropy; its samples are means of the pixels, as they are usually shown. `ali`, and `gan`, which is ALI without pairs: the same discriminator but for the code, the same `r1` and rates.
# - `gan, unrestrained`: without R1 or spectral norm, and with one learning rate. `ali, labels`: ALI that is told the labels, or attributes, in all three networks; its samples are asked for with those of the test images. `train images`: real images, as many.
#
# `spectrum_distance` is (5.4a) in dB between `samples` images of codes from the prior and test images. `distance`, `sample_precision` and `sample_recall` are those of lesson 42 in the features that `features` names. `classes_covered` is the effective number of classes (60.8) that the scorer's classifier finds among the samples, `kl` their divergence from uniform in nats.
# `reconstruction_over_mean` is the mean squared error on test images over that of the mean training image (a GAN has none). `obeyed` is the share of samples that are classified as what was asked for. `stopped_by` says what ended the training: the epochs, the minutes, a discriminator that won outright, or a divergence; the last finite weights are then measured.
#
# The last figure is the survey's Figure 6: one code with many labels, or with its combinations of attributes on CelebA.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name: digits, cifar10, celeba ...
variant: str | None = None  # a paper's own choice and crop of it, such as rae
image_size: int = 16  # at least 8: pixels of a side, divisible by 4
limit: int | None = None  # at least 10: use the first so many training images
test_limit: int | None = 1000  # at least 10: use the first so many test images
width: int = 12  # at least 1: channels of the first convolutions
hidden: int = 192  # at least 1: units of the discriminator's dense layers
latent_dim: int = 12  # at least 1: code size
spectral: bool = False  # normalise the discriminator's layers
r1: float = 0.1  # at least 0: weight of the slope penalty
models: list[str] = ["vae", "ali", "gan", "gan, unrestrained", "ali, labels"]  # what to train
samples: int = 1000  # at least 10: images drawn from each model
scorer: str = "cnn"  # one of cnn, efficientnet, inception: whose features the distances are in; classes need cnn
epochs: int = 10  # at least 1: passes over the training images
minutes: float | None = None  # above 0: end the training of a network, after an epoch, when so many are over
batch_size: int = 25  # at least 1: images a step
lr: float = 0.002  # above 0: Adam's learning rate
discriminator_lr: float = 0.004  # above 0: the discriminator's
least: float = 0.02  # at least 0: discriminator's loss below which, for five epochs, it has won
seed: int = 0  # at least 0: fixes the starts, the order of the images, and all draws
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float32"  # one of float32, bfloat16: arithmetic of the training
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("adversarial", globals())

# %% [markdown]
# ## Data and scorer

# %%
import torch

from ae_course.adversarial import ALI, GAN, DiscriminatorWins, adversarial_networks, coverage, labelled, slower_adam, varied, watched
from ae_course.base import check_choice
from ae_course.data import data_root, load
from ae_course.distance import cnn_scorer, efficientnet_scorer, inception_scorer, scores
from ae_course.figures import curves, dots, image_grid
from ae_course.metrics import radial_spectrum, spectrum_distance
from ae_course.stacked import forward_all
from ae_course.training import Diverged, fit_within, pick_device, seeded
from ae_course.variational import VAE

# %%
if threads is not None:
    torch.set_num_threads(threads)
place = pick_device(device)
for name in models:
    check_choice("models", name, ("vae", "ali", "gan", "gan, unrestrained", "ali, labels"))
whole = load(dataset, variant=variant, size=image_size)
train, test = labelled(whole[:limit]), labelled(load(dataset, "test", variant=variant, size=image_size, limit=test_limit))
shape, asked = tuple(train.x.shape[1:]), test.extras["labels"]
asked = asked.repeat(-(-samples // len(asked)), 1)[:samples]  # the labels of as many test images, from the first again if need be
if scorer == "cnn":  # trained on all labelled images, whatever part of them is learned from here
    judge = cnn_scorer(whole, cache=data_root() / "scorers", device=place)
else:
    judge = efficientnet_scorer(device=place) if scorer == "efficientnet" else inception_scorer(device=place)
if judge.head is not None:
    print(f"{judge}: right on {judge.accuracy(test):.1%} of the test images")
train, test

# %% [markdown]
# ## Train

# %%
remedies = {"spectral": spectral, "r1": r1, "discriminator_lr": discriminator_lr}
MAKERS = {
    "vae": (VAE, {}, 0), "ali": (ALI, remedies, 0), "gan": (GAN, remedies, 0), "gan, unrestrained": (GAN, {"r1": 0.0}, 0),
    "ali, labels": (ALI, remedies, asked.shape[1]),
}  # fmt: skip
trained, about, losses = {}, {}, {}
for name, stage in run.stages(models, cost=lambda name: 1 if name == "vae" else 4 if "ali" in name else 3):
    kind, options, labels = MAKERS[name]
    game = name != "vae"
    with seeded(seed):
        networks = adversarial_networks(shape, width, latent_dim, labels)
        model = kind(*networks, width=width, hidden=hidden, **options) if game else VAE(*networks)
    told = watched(stage.progress, least, patience=5) if game else stage.progress
    try:
        history, ended = fit_within(model, train, epochs=epochs, minutes=minutes, checkpoint=stage.checkpoint, progress=told, seed=seed,
                                    batch_size=batch_size, lr=lr, optimizer=slower_adam if game else "adam", device=place,
                                    precision=precision)  # fmt: skip
        losses |= {name: history} if game else {}
    except Diverged as error:
        print(f"{name}: {error}")
        history, ended = None, "discriminator" if isinstance(error, DiscriminatorWins) else "divergence"
    trained[name] = model.eval()
    about[name] = {"stopped_by": ended, "seconds": history and sum(history["seconds"])}

# %% [markdown]
# ## Measure

# %%
real, there = test.pixels(), judge(test)
mean_error = (real - train.pixels().mean(0)).square().mean().item()
codes = torch.randn(samples, latent_dim, generator=torch.Generator().manual_seed(seed))
columns = """model spectrum_distance distance sample_precision sample_recall reconstruction_over_mean classes_covered classes_present kl
    obeyed features parameters discriminator_parameters stopped_by seconds"""
blank, rows, pictures, rebuilt = dict.fromkeys(columns.split()), [], {"test images": real}, {"test images": real}
size_of = lambda *parts: sum(p.numel() for part in parts for p in part.parameters())


def add(name, images, **known):
    "A row: what `images` are like beside the test images, and what is `known`."
    pictures[name], features = images, judge(images)
    row = scores(features, there) | {"spectrum_distance": spectrum_distance(images, real), "features": judge.name}
    row |= {f"sample_{what}": row[what] for what in ("precision", "recall")}  # the run's `precision` is its arithmetic
    if judge.head is not None:
        found = judge.head(features).argmax(1)
        spread = coverage(found, len(judge.head(features[:1])[0]))
        row |= {"classes_covered": spread.number, "classes_present": spread.present, "kl": spread.kl}
        row |= {"obeyed": (found.cpu() == asked.argmax(1)).double().mean().item()} if "labels" in name else {}
    rows.append({"seed": seed} | blank | {key: row[key] for key in blank if key in row} | known | {"model": name})


for name, model in trained.items():
    known = about[name] | {"parameters": size_of(model.encoder, model.decoder)}
    if name != "vae":
        known["discriminator_parameters"] = size_of(model.discriminator)
    given = (lambda labels: (labels,)) if name == "ali, labels" else (lambda labels: ())
    if "gan" not in name:
        parts = zip(test.pixels(place).split(500), test.extras["labels"].to(place).split(500))
        with torch.no_grad():
            rebuilt[name] = torch.cat([model(x, *given(y)) for x, y in parts]).cpu()
        known["reconstruction_over_mean"] = (rebuilt[name] - real).square().mean().item() / mean_error
    images = forward_all(model, codes, 500, model.decode) if name == "vae" else model.sample(samples, *given(asked), seed=seed)
    add(name, images.cpu(), **known)
add("train images", train[:samples].pixels())

# %% [markdown]
# ## Figures

# %%
title = f"{dataset}, {image_size} pixels, {len(train)} images, {epochs} epochs, seed {seed}"
first_few = lambda of: {name: images[:12] for name, images in of.items()}
run.save(image_grid(first_few(pictures), title=title, alt="Test images, and images from codes of the prior, a row a model"), "samples")
run.save(image_grid(first_few(rebuilt), title=title, alt="Test images and their reconstructions, a row a model"), "reconstructions")

# %%
spectra = {name: radial_spectrum(images) for name, images in pictures.items() if name not in ("train images", "ali, labels")}
run.save(curves({name: s.line() for name, s in spectra.items()},
                x="frequency (cycles a pixel)", y="mean power", title=title,
                alt="Mean radial power of test images and of images from codes of the prior, a line a model"), "spectra")  # fmt: skip
measured = {row["model"]: row for row in rows}
run.save(dots({what: {name: row[f"sample_{what}"] for name, row in measured.items()} for what in ("precision", "recall")}, title=title,
              x="share", alt="Precision and recall of each model"), "measures")  # fmt: skip
if losses:
    traces = {name: [a + b for a, b in zip(h["discriminator/real"], h["discriminator/made"])] for name, h in losses.items()}
    run.save(curves(traces, log=False, y="discriminator's loss (nats; a tie is 1.39)", title=title,
                    alt="The discriminator's loss over the epochs, a line a game"), "losses")  # fmt: skip

# %% [markdown]
# ## One code, many labels

# %%
PEOPLE = {"male, young": "Male Attractive Young", "male, older": "Male Attractive", "female, young": "Attractive Young",
          "female, older": "Attractive"}  # fmt: skip
LOOKS = {
    "black": "Black_Hair", "brown": "Brown_Hair", "blond": "Blond_Hair", "wavy": "Black_Hair Wavy_Hair", "bangs": "Blond_Hair Bangs",
    "receding": "Blond_Hair Receding_Hairline", "balding": "Blond_Hair Bald", "smiling": "Black_Hair Smiling",
    "open": "Black_Hair Smiling Mouth_Slightly_Open", "glasses": "Black_Hair Smiling Mouth_Slightly_Open Eyeglasses",
    "hat": "Black_Hair Smiling Mouth_Slightly_Open Eyeglasses Wearing_Hat",
}  # fmt: skip
if "ali, labels" not in trained:
    print("left out: no model was told labels (models)")
elif attributes := list(test.about.get("attributes", ())):
    wants = lambda *groups: torch.tensor([float(name in " ".join(groups).split()) for name in attributes])
    one = codes[:1].to(place)
    grid = {who: varied(trained["ali, labels"], one, torch.stack([wants(base, look) for look in LOOKS.values()]).to(place))[0].cpu()
            for who, base in PEOPLE.items()}  # fmt: skip
    run.save(image_grid(grid, headers=list(LOOKS), title=title, alt="One code with the attributes of the survey's Figure 6"), "labels")
else:
    print(f"{dataset} has no attributes as CelebA has (-p dataset celeba); its classes take their place")
    grid = varied(trained["ali, labels"], codes[:5].to(place), torch.eye(asked.shape[1], device=place))
    heads = list(test.classes) or [str(c) for c in range(asked.shape[1])]
    run.save(image_grid({f"code {i + 1}": row.cpu() for i, row in enumerate(grid)}, headers=heads, title=title,
                        alt="Five codes, each decoded with every class"), "labels")  # fmt: skip

# %%
run.finish(rows)
