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
# # Sparse codes
#
# > Two penalties over their settings, and four ways to survive a code that is wider than the image

# %% [markdown]
# Tests two statements. The survey by Bank, Koenigstein and Giryes (*Autoencoders*, Section 2.1, Equations 2 and 3): an $L_1$ price on activations, by its weight $\lambda$, and a divergence of mean activations from a target $p$ make codes sparse. The LMU slides (*Deep Learning*, chapter 8, *Regularized autoencoder*): a
# regularised autoencoder can be overcomplete and nonlinear and still learn something useful, here: something that a linear probe reads. Lesson [20](../20_sparse.ipynb) explains the penalties and the network, one layer each way; lessons [21](../21_denoising.ipynb) and [22](../22_contractive.ipynb) the denoising and the contractive autoencoder.
#
# One row a trained network, of `z` codes. Errors are mean squared errors over every pixel of every image. All other measures are of test codes: `l1` is the sum of absolute activations of an image, averaged over images; `mean_activation` is over images and units; `inactive_share` and `dead_share` are the shares of units that are off in a code, and in every code
# (1% of the root mean square of all activations, or less); `hoyer` is Hoyer's sparsity, averaged over the codes that are not all zero, whose share is `zero_codes`; `probe_accuracy` is that of a logistic regression from training codes to labels. The studies:
#
# - `penalty`: ReLU codes and unit columns under each price `lam`; sigmoid codes and free columns under each target `p` (`kl`, weight 1 as in the survey).
# - `other codes`: the price on sigmoid codes (unit columns); the exponential form of the quota on ReLU codes (`kl_exponential`, unit columns).
# - `columns`: the price `price` on ReLU codes with free and with tied columns, where it can and where it cannot be dodged.
# - `overcomplete`: `wide_dim` codes, more than pixels, ReLU, unit columns, `wide_epochs` passes, for each family; beside them the same network as it starts (`untrained`), since a wide random layer alone helps a linear probe, and the pixels themselves. Noise and contraction are the defaults of the experiments `denoising` and `contractive`, and no setting was chosen by its probe; so the claim compares each family with `plain`, and their order among themselves means little.
#
# The sum of squares of an image is the error in the loss of every network, so that `lam` is the survey's $\lambda$.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name
limit: int | None = None  # at least 2: use the first so many training images
latent_dim: int = 256  # at least 2: code size in the studies of penalties
lams: list[float] = [0.0, 0.1, 0.2, 0.5, 1.0]  # at least 0: prices of activity
targets: list[float] = [0.02, 0.05, 0.1, 0.3]  # above 0, below 1: mean activations asked for
epochs: int = 20  # at least 1: passes over the training images
price: float = 0.5  # at least 0: price of the study of columns, and of the sparse family
wide_dim: int = 1568  # at least 2: code size of the overcomplete networks (twice the pixels of MNIST, as on the slides)
wide_epochs: int = 12  # at least 1: passes over the training images for these
families: list[str] = ["plain", "sparse", "quota", "denoising", "contractive"]  # one of plain, sparse, quota, denoising, contractive: nets
target: float = 0.1  # above 0: mean activation asked of the quota family (exponential form)
noise: float = 0.3  # above 0: standard deviation of the denoising family's Gaussian noise
contraction: float = 1.0  # above 0: weight of the contractive family's penalty
probe_images: int | None = None  # at least 2: fit the probes to the first so many training images; none takes all
batch_size: int = 128  # at least 1: images a step
lr: float = 0.001  # above 0: Adam's learning rate
seed: int = 0  # at least 0: fixes the start, the order of the images, and the noise
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float32"  # one of float32, bfloat16: arithmetic of the networks
workers: int = 1  # at least 1: networks trained side by side on a processor, each in a process with one thread
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("sparse", globals())

# %% [markdown]
# ## Data, and how a network is measured

# %%
import importlib
import warnings

import torch

from ae_course.autoencoder import Autoencoder, save_model
from ae_course.data import load
from ae_course.figures import curves, dots, image_grid, pick, weight_images
from ae_course.metrics import UndefinedMetric, dead_share, hoyer, inactive_share, per_image_mse, probe_accuracy
from ae_course.sparse import SparseAutoencoder, dictionary, l1_penalty
from ae_course.training import fit_many, seeded

# %%
if threads is not None:
    torch.set_num_threads(threads)
train, test = load(dataset, limit=limit), load(dataset, "test")
shape = tuple(train.x.shape[1:])
probed = train[: probe_images or len(train)]
train, test


# %%
def through(function, images):
    "`function` of the pixels of `images`, a thousand at a time, on the CPU."
    return torch.cat([function(images[i : i + 1000].pixels()).cpu() for i in range(0, len(images), 1000)])


@torch.no_grad()
def measure(model):
    "The columns of a row: errors, and what the test codes are like."
    place = next(model.parameters()).device
    encode, error = (lambda x: model.encode(x.to(place))), (lambda x: per_image_mse(model(x.to(place)), x.to(place)))
    z, z_test = through(encode, probed), through(encode, test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetric)  # codes of zeros have no sparsity; their share stands beside
        sparsity = hoyer(z_test).nanmean().item()
    return {
        "train_mse": through(error, train).mean().item(),
        "test_mse": through(error, test).mean().item(),
        "l1": l1_penalty(z_test).item(),
        "mean_activation": z_test.mean().item(),
        "inactive_share": inactive_share(z_test).mean().item(),
        "dead_share": dead_share(z_test),
        "zero_codes": (z_test == 0).all(1).double().mean().item(),
        "hoyer": sparsity if sparsity == sparsity else None,
        "probe_accuracy": probe_accuracy(z, probed.y, z_test, test.y),
    }


# %% [markdown]
# ## Train
#
# Every network of one size starts from the same random numbers, up to the length of the columns, and sees the same batches in the same order.

# %%
def model_of(study, family, penalty, activation, columns, k, lam, p):
    "The network of one row, untrained."
    with seeded(seed):
        parts = dictionary(shape, k, activation, columns)
    if family in ("plain", "untrained"):
        return Autoencoder(*parts, reduction="sum")
    if family == "denoising":
        denoising = importlib.import_module("ae_course.denoising")
        return denoising.DenoisingAutoencoder(*parts, denoising.gaussian(noise), reduction="sum")
    if family == "contractive":
        contractive = importlib.import_module("ae_course.contractive")
        return contractive.ContractiveAutoencoder(*parts, contraction, penalty="exact", reduction="sum")
    return SparseAutoencoder(*parts, 1.0 if lam is None else lam, penalty, p, reduction="sum")


KEYS = ("study", "model", "penalty", "code_activation", "columns", "z", "lam", "p")
plan = [("penalty", "sparse", "l1", "relu", "unit", latent_dim, lam, None) for lam in lams]
plan += [("penalty", "sparse", "kl", "sigmoid", "free", latent_dim, None, p) for p in targets]
plan += [("other codes", "sparse", "l1", "sigmoid", "unit", latent_dim, lam, None) for lam in lams]
plan += [("other codes", "sparse", "kl_exponential", "relu", "unit", latent_dim, None, p) for p in targets]
plan += [("columns", "sparse", "l1", "relu", columns, latent_dim, price, None) for columns in ("free", "tied")]
penalties = {"sparse": ("l1", price, None), "quota": ("kl_exponential", None, target)}
for family in families:
    penalty, lam, p = penalties.get(family, (None, None, None))
    plan.append(("overcomplete", family, penalty, "relu", "unit", wide_dim, lam, p))

# %%
rows, columns, outputs = [], {}, {}
shown = test[pick(8, len(test), seed=0)].pixels()
label = lambda c: ", ".join(str(c[i]) for i in (0, 1, 2, 3, 4, 6, 7) if c[i] is not None)
overcomplete = [case for case in plan if case[0] == "overcomplete"]
for cases, rounds in (([case for case in plan if case not in overcomplete], epochs), (overcomplete, wide_epochs)):
    together = run.together(map(label, cases))
    models = [model_of(*case) for case in cases]
    histories = fit_many(models, train, epochs=rounds, batch_size=batch_size, lr=lr, seed=seed, device=device, precision=precision,
                         workers=workers, checkpoint=together.checkpoints, progress=together.progress)  # fmt: skip
    for case, model, history in zip(cases, models, histories):
        rows.append({"seed": seed} | dict(zip(KEYS, case)) | measure(model) | {"seconds": sum(history["seconds"])})
        model.cpu()
        columns[label(case)] = model.decoder[0].weight.detach().T.clone()  # (k, d)
        if case in overcomplete:
            with torch.no_grad():
                outputs[case[1]] = model(shown)
            save_model(model, run.path(f"model_{case[1]}.safetensors"))

# %% [markdown]
# Two baselines that no training made:

# %%
empty = dict.fromkeys([*measure(model), "seconds"])
case = ("overcomplete", "untrained", None, "relu", "unit", wide_dim, None, None)
rows.append({"seed": seed} | dict(zip(KEYS, case)) | measure(model_of(*case)) | {"seconds": None})
accuracy = probe_accuracy(through(lambda x: x.flatten(1), probed), probed.y, through(lambda x: x.flatten(1), test), test.y)
case = ("overcomplete", "pixels", None, None, None, None, None, None)
rows.append({"seed": seed} | dict(zip(KEYS, case)) | empty | {"probe_accuracy": accuracy})
for row in rows:
    print(" ".join(f"{row[key]!s:14.14}" for key in ("study", "model", "penalty", "code_activation", "columns", "lam", "p")), *(
        f"{key} {row[key]:.4f}" for key in ("test_mse", "inactive_share", "hoyer", "probe_accuracy") if row[key] is not None))  # fmt: skip

# %% [markdown]
# ## Figures
#
# What each penalty does over its setting; the overcomplete networks side by side; and words of the dictionary at three prices (of images in colour, the first channel).

# %%
title = f"{dataset}, {epochs} epochs, seed {seed}"
kinds = {"l1": ("lam", "price lambda"), "kl": ("p", "target p"), "kl_exponential": ("p", "target p")}
for penalty, activation in (("l1", "relu"), ("l1", "sigmoid"), ("kl", "sigmoid"), ("kl_exponential", "relu")):
    setting, name = kinds[penalty]
    kind = {"penalty": penalty, "code_activation": activation}.items()
    chosen = [row for row in rows if row["study"] in ("penalty", "other codes") and kind <= row.items()]
    measures = {"units off": "inactive_share", "Hoyer sparsity": "hoyer", "probe accuracy": "probe_accuracy"}
    lines = {text: ([row[setting] for row in chosen], [row[key] for row in chosen]) for text, key in measures.items()}
    figure = curves(lines, x=name, y="share", log=False, y_range=(0, 1), title=f"{penalty}, {activation} codes; {title}",
                    alt=f"Share of units off, Hoyer sparsity and probe accuracy of {activation} codes against the {name}")  # fmt: skip
    run.save(figure, f"{penalty}_{activation}")

# %%
wide = {row["model"]: row["probe_accuracy"] for row in rows if row["study"] == "overcomplete"}
figure = dots(wide, x="probe accuracy", title=f"{dataset}, {wide_dim} ReLU codes, {wide_epochs} epochs, seed {seed}",
              alt="Probe accuracy of the overcomplete networks, of the untrained one and of the pixels")  # fmt: skip
run.save(figure, "overcomplete")
run.save(image_grid({"input": shown} | outputs, clip=True, title=f"{wide_dim} codes, seed {seed}",
                    alt="Eight test images and their reconstructions by each overcomplete network"), "reconstructions")  # fmt: skip

# %%
priced = [case for case in plan if case[0] == "penalty" and case[2] == "l1"]
for case in dict.fromkeys((priced[0], priced[len(priced) // 2], priced[-1])):
    words = columns[label(case)][pick(min(20, latent_dim), latent_dim, seed=0)].view(-1, *shape)[:, 0].flatten(1)
    lam = case[6]
    run.save(weight_images(words, shape[1:], title=f"lambda = {lam}, seed {seed}",
                           alt=f"Twenty columns of the decoder that was trained at lambda {lam}"), f"words_{lam:g}")  # fmt: skip

# %%
run.finish(rows)
