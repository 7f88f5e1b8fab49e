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
# # Dimensionality
#
# > Seven methods at a few code sizes: error, neighbours, classes, time, and a place for new points

# %% [markdown]
# Tests a statement of the survey by Bank, Koenigstein and Giryes (*Autoencoders*, Section 4.6): a non-linear autoencoder may and often does achieve better results than PCA at equal code size. It names LDA and Isomap as methods with other objectives; here kernel PCA, t-SNE and UMAP stand beside them. Lesson [54](../54_dimensionality.ipynb) explains the methods and the measures.
#
# One row a method and number of `dimensions`. All measures are of test images that the method has not seen, except for t-SNE, which has no place for new points: its map is made of training and test images together (`new_points` is `together`). `mse` is the mean squared error of the reconstruction, where there is a way back; `mse_over_pca` divides it by PCA's at the same number of dimensions. Trustworthiness and continuity
# count the 10 nearest neighbours among the test images; `knn_accuracy` is the vote of the 5 nearest training codes. `seconds` is processor time of fitting. A method is left out where it is not defined: LDA above classes - 1 dimensions, t-SNE above 3.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name, with labels
limit: int | None = 2000  # at least 20: use the first so many training images; Isomap's memory grows with their square
test_limit: int | None = 1000  # at least 21: use the first so many test images
sizes: list[int] = [2, 9, 16]  # at least 1: dimensions of the map
methods: list[str] = ["PCA", "kernel PCA", "LDA", "Isomap", "t-SNE", "UMAP", "autoencoder"]  # names of the lesson: what to compare
neighbours: int = 10  # at least 1: of the graphs of Isomap and UMAP
hidden: list[int] = [512, 128]  # at least 1: widths of the autoencoder between image and code
epochs: int = 60  # at least 1: passes over the training images
batch_size: int = 64  # at least 1: images a step
lr: float = 0.001  # above 0: Adam's learning rate
seed: int = 0  # at least 0: fixes the start, the order of the images, and the methods' own chance
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("dimensionality", globals())

# %% [markdown]
# ## Data

# %%
import itertools

import torch

from ae_course.data import DataError, load
from ae_course.dimensionality import measured, reduce, undefined
from ae_course.figures import code_grid, curves, latent_map, latent_scatter, montage, show

# %%
if threads is not None:
    torch.set_num_threads(threads)
train, test = load(dataset, limit=limit), load(dataset, "test", limit=test_limit)
if train.y is None or test.y is None:
    raise DataError(f"{dataset}: has no labels, expected a set with labels, such as mnist5k")
shape, classes = tuple(train.x.shape[1:]), len(train.y.unique())
both = torch.cat([train.pixels(), test.pixels()])
train, test

# %% [markdown]
# ## Fit and measure

# %%
cells = {}
for k, method in itertools.product(sizes, sorted(methods, key=lambda name: name != "PCA")):
    if reason := undefined(method, k, classes):
        print(f"{method}, {k} dimensions: {reason}")
    else:
        cells[f"{method}, {k} dimensions"] = (method, k)
rows, maps, pca = [], {}, {}
for label, stage in run.stages(cells):
    method, k = cells[label]
    trained = {"hidden": hidden, "epochs": epochs, "batch_size": batch_size, "lr": lr, "device": device, "checkpoint": stage.checkpoint,
               "progress": stage.progress} if method == "autoencoder" else {}  # fmt: skip
    alone = method != "t-SNE"
    found = reduce(method, train if alone else both, k, train.y if alone else None, seed=seed, neighbours=neighbours, **trained)
    row = measured(found, train, train.y, test, test.y)
    if method == "PCA":
        pca[k] = row["mse"]
    row["mse_over_pca"] = row["mse"] / pca.get(k, float("nan"))
    rows.append({"seed": seed, "method": method, "dimensions": k, **row, "seconds": found.seconds})
    if k == 2:
        maps[method] = found
    print(f"{label}: {', '.join(f'{name} {value:.4g}' for name, value in row.items() if isinstance(value, float))}")

# %% [markdown]
# ## Maps

# %%
if maps:
    pictures = {name: latent_scatter(found.z[: len(train)], train.y, train.classes, limit=1000,
                                     alt=f"Two-dimensional map of the training images by {name}, coloured by class")
                for name, found in maps.items()}  # fmt: skip
    figure = montage(pictures, columns=2, width=5)
    run.save(figure, "maps")
    show(figure)

# %%
if "autoencoder" in maps:
    found = maps["autoencoder"]
    low, high = (found.z.quantile(share, dim=0).tolist() for share in (0.05, 0.95))
    extent = (low[0], high[0], low[1], high[1])
    decoded = found.inverse(code_grid(extent).double()).float().view(-1, *shape)
    figure = latent_map(decoded, extent, clip=True, alt="What the places of the autoencoder's map decode to")
    run.save(figure, "decoded_map")
    show(figure)

# %%
if len(sizes) > 1:
    for column in ("mse", "trustworthiness", "continuity", "knn_accuracy"):
        lines = {}
        for name in methods:
            at = sorted((row["dimensions"], row[column]) for row in rows if row["method"] == name and row[column] == row[column])
            if at:
                lines[name] = tuple(zip(*at))
        name = column.replace("_", " ")
        figure = curves(lines, x="dimensions", y=name, log=False, log_x=True, alt=f"{name} against dimensions, by method")
        run.save(figure, column)
        show(figure)

# %%
run.finish(rows)
