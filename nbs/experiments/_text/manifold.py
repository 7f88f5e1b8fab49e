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
# # The manifold hypothesis
#
# > How many dimensions do digits have, and would any pixels have as few?

# %% [markdown]
# Estimates the intrinsic dimension of a set of images by two estimators, maximum likelihood (Levina and Bickel, 2004, inverses averaged as MacKay and Ghahramani, 2005) and TwoNN (Facco et al., 2017), and holds it against the same images with their pixels
# permuted (one permutation for all: nothing may change), with each pixel shuffled over the images (the same histograms, no structure), and against uniform noise. Below them stand normal points of known dimension: the estimators fall short where the dimension is high, and these rows show how far. Nothing is trained. (Lesson 11, whose equations are meant.)
#
# The claim to be tested: images lie near a manifold of far fewer dimensions than pixels. The rule, for each seed: both estimates for the images are below a fifth of those for the shuffled pixels, and of the directions among nearest neighbours no more are needed for 90% of the variance than among images at random, and for the shuffled pixels at least nine tenths as many.
#
# Columns: *true_dimension*, where it is known; *mle_k5*, *mle_k10*, *mle_k20* (11.2) with so many neighbours; *two_nn* (11.3); *local_4*, *global_4*: share of variance of the first four principal directions of the nearest neighbours of an image, and of as many images at random, mean over anchors; *local_90*, *global_90*: how many directions that mean needs for 90%.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name
images: int = 2000  # at least 100: so many training images, drawn by seed
known: list[int] = [2, 5, 10, 20, 50, 100]  # at least 1: dimensions of the normal points
neighbours_in_spectrum: int = 30  # at least 5: nearest neighbours in a local PCA
anchors: int = 200  # at least 1: images around which a local PCA is made
seed: int = 0  # at least 0: fixes the images, the shuffling and the points
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("manifold", globals())

# %% [markdown]
# ## Sets of points

# %%
import torch

from ae_course.data import load
from ae_course.figures import curves, dots, image_grid, pick, show
from ae_course.undercomplete import known_manifold, local_spectra, mle_dimension, neighbours, shuffle_pixels, two_nn_dimension

# %%
if threads is not None:
    torch.set_num_threads(threads)
train = load(dataset)
x = torch.unique(train.pixels(), dim=0)  # equal images have no dimension
x = x[pick(min(images, len(x)), len(x), seed)]
n, d = len(x), x[0].numel()
generator = torch.Generator().manual_seed(seed)
order = torch.randperm(d, generator=generator)
sets = {
    "images": x,
    "pixels permuted": x.flatten(1)[:, order].view_as(x),
    "pixels shuffled": shuffle_pixels(x, seed),
    "uniform noise": torch.rand(x.shape, generator=generator),
}
grid = image_grid({name: part[:10] for name, part in sets.items()}, alt="Ten images; permuted, shuffled and random pixels below")
run.save(grid, "sets")
show(grid)
points = sets | {f"normal points, {dim} dimensions": known_manifold("gaussian", n, dim, d, seed) for dim in known if dim <= d}

# %% [markdown]
# ## Dimension and spectra

# %%
rows, spectra = [], {}
for name, stage in run.stages(points, label="{}"):
    distances, _ = neighbours(points[name], 20)
    near, far = local_spectra(points[name], neighbours_in_spectrum, anchors, seed)
    rows.append(
        {"seed": seed, "set": name, "true_dimension": int(name.split()[2]) if name.startswith("normal") else None, "n": n, "d": d}
        | {f"mle_k{k}": mle_dimension(distances[:, :k]) for k in (5, 10, 20)}
        | {"two_nn": two_nn_dimension(distances)}
        | {f"{place}_4": share[3].item() for place, share in (("local", near), ("global", far))}
        | {f"{place}_90": int((share < 0.9).sum()) + 1 for place, share in (("local", near), ("global", far))}
    )
    if name in ("images", "pixels shuffled"):
        spectra[f"{name}: neighbours"], spectra[f"{name}: at random"] = near.tolist(), far.tolist()
    stage.progress({"epoch": 1, "epochs": 1, "loss": rows[-1]["two_nn"]})

# %% [markdown]
# ## Figures

# %%
unknown, measured = ([row for row in rows if (row["true_dimension"] is None) == without] for without in (True, False))
estimates = {row["set"]: {"maximum likelihood, k = 10": row["mle_k10"], "TwoNN": row["two_nn"]} for row in unknown}
dimension = dots(estimates, x="estimated dimension", log=True, alt="Estimated dimension of images, permuted, shuffled and random pixels")
run.save(dimension, "dimension")
show(dimension)

# %%
columns = {"truth": "true_dimension", "maximum likelihood, k = 10": "mle_k10", "TwoNN": "two_nn"}
lines = {name: ([row["true_dimension"] for row in measured], [row[column] for row in measured]) for name, column in columns.items()}
if measured:
    calibration = curves(lines, x="true dimension", y="estimate", log_x=True, alt="Estimates against the true dimension of normal points")
    run.save(calibration, "calibration")
    show(calibration)

# %%
alt = "Cumulative variance of the principal directions of neighbours and of random images, and the same with pixels shuffled"
local = curves(spectra, x="directions", y="share of variance", log=False, y_range=(0, 1), alt=alt)
run.save(local, "spectra")
show(local)

# %%
run.finish(rows)
