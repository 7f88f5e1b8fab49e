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
# # Groups without names
#
# > Clusters of pixels, of principal components and of codes; codes trained to cluster; a prior that is a mixture

# %% [markdown]
# The equations are those of lesson 51. No method sees a label; labels are for the scores alone, on the images that were clustered: *acc*, the share under the best one-to-one names (51.1), *nmi*, *ari*. As many clusters as the data have classes. *method*:
#
# - `kmeans_` and `gmm_` (a Gaussian mixture; full covariances, on pixels diagonal ones) with `pixels`, `pca` (as many components as the code has units), `codes` (an autoencoder trained for `pretrain_epochs` and then for `cluster_epochs` more, so that it has had as many updates as what follows) and `start_codes` (after `pretrain_epochs`);
# - from the autoencoder after `pretrain_epochs`, trained for `cluster_epochs` more: `song`, with the distance to the nearest centre (51.3), centres made anew after each epoch; `guo`, reconstruction and the divergence from the target distribution (51.8) with the weight `gamma`; `dec`, the divergence alone (51.7). Targets are made anew after each epoch;
# - `gmvae`, the variational autoencoder with a Gaussian mixture as prior (51.10), trained for `pretrain_epochs` and `cluster_epochs` from a random start.
#
# There is nothing to choose a weight by when there are no labels. So Song's is fixed by a rule beforehand: at the start of the joint training the centres' term is `balance` times the reconstruction error. `song_x0.1` and `song_x10` are the same with other balances; they say how much hangs on it. *spread* is the codes' mean variance a unit: the centres' term can be lowered by shrinking the code.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name; it must have labels
limit: int | None = None  # at least 40: use the first so many training images
hidden: list[int] = [256, 128]  # at least 1: units of the hidden layers
latent_dim: int = 10  # at least 1: units of the code
noise_dim: int = 5  # at least 1: units of the noise of the mixture prior
pretrain_epochs: int = 40  # at least 1: passes over the images before clustering
cluster_epochs: int = 30  # at least 1: passes with a term for clusters
batch_size: int = 128  # at least 2: images a step
lr: float = 0.001  # above 0: Adam's learning rate
gamma: float = 0.1  # at least 0: weight of the divergence beside the reconstruction (mean over the pixels)
balance: float = 1.0  # above 0: the centres' term at the start, in reconstruction errors
other_balances: list[float] = [0.1, 10.0]  # above 0: further ones
restarts: int = 20  # at least 1: starts of each k-means
seed: int = 0  # at least 0: fixes starts, order and noise
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("clustering", globals())

# %% [markdown]
# ## Data

# %%
import copy
import shutil

import torch

from ae_course.autoencoder import Autoencoder, mlp, save_model
from ae_course.classification import codes
from ae_course.clustering import (
    DEC, GMVAE, CentredAutoencoder, fit_clusters, gmvae_mlp, kmeans, match, mixture, scores,
)  # fmt: skip
from ae_course.data import DataError, load
from ae_course.figures import dots, image_grid, latent_scatter, montage
from ae_course.linear import PCA
from ae_course.metrics import squared_distances
from ae_course.training import evaluate, fit, seeded

# %%
if threads is not None:
    torch.set_num_threads(threads)
images = load(dataset, limit=limit)
if images.y is None:
    raise DataError(f"{dataset}: skipped: no labels; the scores compare clusters with them: take a data set that has them")
shape, clusters = tuple(images.x.shape[1:]), len(images.y[images.y >= 0].unique())
common = {"batch_size": batch_size, "seed": seed, "device": device, "lr": lr}
rows, found = [], {}


def note(method: str, labels, z=None, weight=None) -> None:
    "A row; `z`: the codes."
    found[method] = labels
    rows.append({"seed": seed, "method": method, **scores(images.y, labels), "clusters_used": len(labels.unique()), "weight": weight,
                 "spread": None if z is None else z.var(0).mean().item()})  # fmt: skip


images, clusters

# %% [markdown]
# ## The autoencoder, and clusters of what there is

# %%
with seeded(seed):
    autoencoder = Autoencoder(*mlp(shape, hidden, latent_dim))
longer = copy.deepcopy(autoencoder)
for name, stage in run.stages(["start", "longer"], label="autoencoder, {}"):
    if name == "start":
        first = stage.checkpoint
    elif not stage.checkpoint.exists():
        shutil.copy(first, stage.checkpoint)
    model, epochs = (autoencoder, pretrain_epochs) if name == "start" else (longer, pretrain_epochs + cluster_epochs)
    fit(model, images, epochs=epochs, checkpoint=stage.checkpoint, progress=stage.progress, **common)
save_model(autoencoder, run.path("autoencoder.safetensors"))
pixels = images.pixels().flatten(1)
features = {
    "pixels": pixels,
    "pca": PCA(latent_dim).fit(pixels).transform(pixels).float(),
    "start_codes": codes(autoencoder, images),
    "codes": codes(longer, images),
}
for name, _ in run.stages(features, label="clusters of {}"):
    z = None if name == "pixels" else features[name]
    note(f"kmeans_{name}", kmeans(features[name], clusters, seed, restarts)[0], z)
    note(f"gmm_{name}", mixture(features[name], clusters, seed), z)

# %% [markdown]
# ## Codes trained to cluster

# %%
z = features["start_codes"]
gap = squared_distances(z, kmeans(z, clusters, seed)[1]).min(1).values.mean().item()
even = evaluate(autoencoder, images)["reconstruction"] / gap
networks = lambda: copy.deepcopy((autoencoder.encoder, autoencoder.decoder))
makers = {"song" if b == balance else f"song_x{b:g}": lambda b=b: CentredAutoencoder(*networks(), latent_dim, clusters, b * even)
          for b in (balance, *other_balances)}  # fmt: skip
makers["guo"] = lambda: DEC(*networks(), latent_dim, len(images), clusters, gamma)
makers["dec"] = lambda: DEC(*networks(), latent_dim, len(images), clusters, keep=False)
maps = {"kmeans_codes": features["codes"]}
for name, stage in run.stages(makers):
    model = makers[name]()
    fit_clusters(model, images, epochs=cluster_epochs, checkpoint=stage.checkpoint, progress=stage.progress, **common)
    maps[name] = codes(model, images)
    note(name, model.assign(images), maps[name], None if name == "dec" else model.weight)

# %% [markdown]
# ## A mixture as prior

# %%
with seeded(seed):
    model = GMVAE(*gmvae_mlp(shape, hidden, latent_dim, noise_dim), latent_dim, noise_dim, clusters)
for _, stage in run.stages(["gmvae"]):
    history = fit(model, images, epochs=pretrain_epochs + cluster_epochs, checkpoint=stage.checkpoint, progress=stage.progress, **common)
maps["gmvae"] = codes(model, images)
note("gmvae", model.assign(images), maps["gmvae"])
names = match(images.y, found["gmvae"])
drawn = {f"component {c}, named {names.get(c, 'nothing')}": model.sample(10, c, seed) for c in range(clusters)}

# %% [markdown]
# ## Figures
# Accuracies; codes on their first two principal directions, by cluster (in the best names) and by truth; draws from the mixture's components.

# %%
title = f"{dataset}, seed {seed}"
values = {r["method"]: r["acc"] for r in rows}
run.save(dots(values, x="clustering accuracy", title=title, alt=f"Clustering accuracy by method, {title}"), "accuracy")
for name in ("kmeans_codes", "guo", "gmvae"):
    flat, names = PCA(2).fit(maps[name]).transform(maps[name]), match(images.y, found[name])
    named = torch.tensor([names.get(int(c), -1) for c in found[name]])
    pair = {"by cluster": latent_scatter(flat, named), "by truth": latent_scatter(flat, images.y)}
    run.save(montage(pair, alt=f"Codes of {name} on two principal directions, by cluster and by truth, {title}"), f"map_{name}")
run.save(image_grid(drawn, title=title, alt=f"Ten draws from each component of the mixture prior, {title}"), "components")

# %%
run.finish(rows)
