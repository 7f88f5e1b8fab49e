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
# # The linear autoencoder is PCA
#
# > How closely training reaches the principal components, and whether any linear map does better

# %% [markdown]
# Trains linear autoencoders $\hat x = D E x$ with squared error on centred images, tied ($D = E^\top$) and untied, by full-batch L-BFGS and by Adam in mini-batches, and holds each against
# PCA from the singular value decomposition (lesson 10, whose equations are meant below). The first claim to be tested: a linear undercomplete autoencoder with squared error on centred data is PCA. The second (Eckart and Young, 1936): no linear map of
# the same rank reconstructs the training images better; tried are the trained maps and three kinds of random ones, each with its best partner.
#
# All errors are mean squared errors over every pixel of every image, pixel values in [0, 1]. *relative_gap_to_pca* is the training error over PCA's, minus 1. *largest_angle* is the largest principal angle (10.7) between the decoder's columns and PCA's plane.
# *component_angle* is the largest angle between a principal component and its estimate from the decoder alone, its left singular vectors (Plaut, 2018); *with_codes* the same for the estimate that also uses the codes (10.12). Angles in degrees.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name
limit: int | None = None  # at least 2: use the first so many training images
latent_dim: int = 16  # at least 1: code size k
lbfgs_epochs: int = 16  # at least 1: epochs of L-BFGS, twenty iterations on all images each
adam_epochs: int = 200  # at least 1: passes of Adam over the training images
batch_size: int = 128  # at least 1: images a step of Adam
lr: float = 0.001  # above 0: Adam's learning rate at the start
l2: float = 0.0005  # above 0: weight of the penalty on both matrices (10.13), in the run that has one
random_maps: int = 1000  # at least 1: random maps of each kind
seed: int = 0  # at least 0: fixes the starts, the order of the images, and the random maps
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float64"  # one of float32, float64: arithmetic of L-BFGS; Adam's is float32
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("linear", globals())

# %% [markdown]
# ## Data, and PCA
#
# The test images are centred with the mean of the training images. All errors of linear maps follow from the two covariances (10.5), in 64 bits, whatever the map was trained in.

# %%
import math
import time

import torch

from ae_course.autoencoder import save_model
from ae_course.data import load
from ae_course.figures import curves, montage, weight_images
from ae_course.linear import (
    PCA, LinearAutoencoder, challengers, component_angles, linear, linear_mse, principal_angles, recovered_components,
)  # fmt: skip
from ae_course.training import fit, pick_device, seeded

# %%
if threads is not None:
    torch.set_num_threads(threads)
train, test = load(dataset, limit=limit), load(dataset, "test")
shape = tuple(train.x.shape[1:])
x, x_test = (part.pixels(dtype=torch.float64).flatten(1) for part in (train, test))
began = time.perf_counter()
pca = PCA(latent_dim).fit(x)
pca_seconds = time.perf_counter() - began
x, x_test = x - pca.mean, x_test - pca.mean
covariance, test_covariance = (part.T @ part / len(part) for part in (x, x_test))
best = linear_mse(covariance, pca.components, pca.components.T).item()
train, test


# %%
def compare(encoder, decoder, recovered=None, with_codes=None):
    "The columns of a row for the pair encoder (k, d), decoder (d, k), and two estimates of the components (k, d)."
    error = linear_mse(covariance, encoder, decoder).item()
    angle = lambda estimate: None if estimate is None else component_angles(estimate, pca.components).max().item()
    return {
        "train_mse": error,
        "test_mse": linear_mse(test_covariance, encoder, decoder).item(),
        "relative_gap_to_pca": error / best - 1 if best > 1e-12 else None,  # as many components as dimensions: nothing is left to compare
        "largest_angle": principal_angles(decoder, pca.components.T)[-1].item(),
        "component_angle": angle(recovered),
        "with_codes": angle(with_codes),
    }


exact = compare(pca.components, pca.components.T, pca.components)
rows = [{"seed": seed, "method": "PCA"} | exact | {"seconds": pca_seconds}]

# %% [markdown]
# ## Train
#
# Every network starts as $D = E^\top$ from the same weights. Adam's learning rate is constant in one run and falls to zero along half a cosine in the other two. What
# L-BFGS is asked for, 0.1 degree, is a relative gap of about $10^{-8}$ in the error (10.8), which 32-bit numbers hardly resolve: hence the 64 bits.

# %%
cosine = lambda epoch: 0.5 * (1 + math.cos(math.pi * epoch / adam_epochs))
lbfgs = {"optimizer": "lbfgs", "epochs": lbfgs_epochs, "batch_size": None, "dtype": getattr(torch, precision)}
adam = {"optimizer": "adam", "epochs": adam_epochs, "batch_size": batch_size, "lr": lr, "dtype": torch.float32}
methods = {
    "L-BFGS, untied": lbfgs,
    "L-BFGS, tied": lbfgs | {"tied": True},
    "L-BFGS, untied, L2": lbfgs | {"l2": l2},
    "Adam, untied, constant": adam,
    "Adam, untied, cosine": adam | {"schedule": cosine},
    "Adam, tied, cosine": adam | {"schedule": cosine, "tied": True},
}
where = pick_device(device)
where = "cpu" if where.type == "mps" else where  # Apple's GPU has no 64-bit floats
tracks, models = {}, {}
for name, stage in run.stages(methods, label="{}", cost=lambda name: lbfgs_epochs * 40 if "L-BFGS" in name else adam_epochs):
    options = dict(methods[name])
    dtype, tied, penalty = options.pop("dtype"), options.pop("tied", False), options.pop("l2", 0.0)
    with seeded(seed):
        model = LinearAutoencoder(*linear(shape, latent_dim, tied=tied), l2=penalty).to(dtype)
    track = tracks[name] = {}

    def note(row, model=model, track=track, stage=stage):
        "After each epoch: relative gap and largest angle."
        found = compare(*(m.cpu() for m in model.matrices))
        track[row["epoch"]] = found["relative_gap_to_pca"], found["largest_angle"]
        stage.progress(row)

    history = fit(model, x.to(dtype).view(-1, *shape), seed=seed, device=where, checkpoint=stage.checkpoint, progress=note, **options)
    encoder, decoder = (m.cpu() for m in model.matrices)
    found = compare(encoder, decoder, recovered_components(decoder), recovered_components(decoder, x @ encoder.T))
    track[len(history)] = found["relative_gap_to_pca"], found["largest_angle"]  # there already, unless the run was resumed at its end
    models[name] = encoder, decoder
    rows.append({"seed": seed, "method": name} | found | {"seconds": sum(history["seconds"])})
    save_model(model.cpu(), run.path(f"model_{name.lower().replace(', ', '_').replace('-', '')}.safetensors"))

# %% [markdown]
# The penalty shrinks what it reconstructs. Projecting onto the components that were recovered from its decoder takes that back:

# %%
recovered = recovered_components(models["L-BFGS, untied, L2"][1])
projection = compare(recovered, recovered.T, recovered)
rows.append({"seed": seed, "method": "projection on the components from L2"} | projection | {"seconds": None})

# %% [markdown]
# ## Challengers

# %%
began = time.perf_counter()
errors = challengers(covariance, pca.components, random_maps, seed)
seconds = time.perf_counter() - began
for kind, values in errors.items():
    gap = values.min().item() / best - 1 if best > 1e-12 else None
    rows.append({"seed": seed, "method": f"best of {random_maps}: {kind}"} | dict.fromkeys(exact) |
                {"train_mse": values.min().item(), "relative_gap_to_pca": gap, "seconds": seconds / len(errors)})  # fmt: skip
lowest = min(row["train_mse"] for row in rows[1:])
print(f"PCA {best:.15f}; lowest error of {len(errors) * random_maps} random and {len(methods) + 1} trained maps {lowest:.15f}")

# %% [markdown]
# ## Figures
#
# Gap and angle after every epoch; then the components as images (of images in colour, the first channel): PCA's, columns of decoders, and what is recovered from the decoders alone.

# %%
for column, name, label in ((0, "gap", "relative gap to PCA's error"), (1, "angle", "largest angle to PCA's plane in degrees")):
    if best <= 1e-12 and name == "gap":
        continue
    lines = {method: (list(track), [max(v[column], 1e-15) for v in track.values()])  # below is rounding, of either sign
             for method, track in tracks.items() if "L2" not in method}  # fmt: skip
    title = f"{dataset}, k = {latent_dim}, seed {seed}"
    run.save(curves(lines, y=label, log_x=True, title=title, alt=f"{label} over the epochs, a line a method"), name)

# %%
plain, penalised = models["L-BFGS, untied"][1], models["L-BFGS, untied, L2"][1]
sets = {"PCA": pca.components, "decoder columns, no penalty": plain.T, "recovered from them": recovered_components(plain),
        "decoder columns, L2": penalised.T, "recovered from them, L2": recovered}  # fmt: skip
firsts = {name: vectors[:8].reshape(-1, *shape)[:, 0].flatten(1) for name, vectors in sets.items()}
limit = max(v.abs().max().item() for v in firsts.values())
panels = {name: weight_images(v, shape[1:], columns=8, limit=limit, alt=f"{name}, as images") for name, v in firsts.items()}
run.save(montage(panels, columns=1, width=6.4), "components")

# %%
run.finish(rows)
