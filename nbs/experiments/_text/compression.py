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
# # Compression
#
# > Whole files of an autoencoder, PCA, JPEG and WebP, on images that are stored without loss

# %% [markdown]
# Tests a line of the LMU slides (*Deep Learning*, chapter 8, *Real-world applications*, on Theis et al., 2017): autoencoders compress images. Lesson [55](../55_compression.ipynb) explains the parts: a code is quantised with a step, entropy-coded by a range coder with a learned factorised density, and written into a file with header and checksum. One file an image. The autoencoder is trained once for each weight `lams` of the error, on tiles of the training images;
# its network starts as PCA on blocks, and the step fits the weight. Every file is decoded again, and the integers in it are compared with those that were written.
#
# Beside it, on the same test images: PCA on blocks of `pca_side` pixels with the same quantiser, coder and file format, its frequencies counted on the training images; JPEG and WebP from Pillow, as whole files; and JPEG in the abbreviated format, whose tables are kept at the decoder as the autoencoder keeps its weights. Sets that are published as JPEG are refused. STL-10 is not; but its pictures are ImageNet's JPEGs made smaller, which takes out most of JPEG's traces, not surely all.
#
# Rows of study `curve` are points: bits per pixel of whole files, PSNR in dB and MS-SSIM averaged over the images (`scales` of its five scales fit). Rows of study `difference` hold `bd_psnr`, the mean difference in dB of the autoencoder's curve above that of `against`, over the logarithm of the rates that both cover, from `low_bpp` to `high_bpp`.
#
# Not the networks of Theis et al. (2017), whose training set, size and time are far larger, and who predict scales from the code; so the published curves are no reference for these.

# %% tags=["parameters"]
dataset: str = "stl10"  # data set, by name; stored without loss
limit: int | None = None  # at least 2: use the first so many training images
test_limit: int | None = 100  # at least 1: use the first so many test images
tile: int = 32  # at least 8: side of the tiles of training images, in pixels
tile_count: int = 4000  # at least 2: tiles to train with
lams: list[float] = [0.0015, 0.004, 0.01, 0.025]  # above 0: weights of the error, a network each
widths: list[int] = [32, 64]  # at least 1: channels of the network's inner maps; a halving each, and one more
components: int = 96  # at least 1: channels of the code
density_epochs: int = 2  # at least 1: passes over the tiles for the density alone
epochs: int = 10  # at least 1: passes over the tiles for everything
batch_size: int = 16  # at least 1: tiles a step
lr: float = 0.001  # above 0: Adam's learning rate, falling along half a cosine
density_lr: float = 0.02  # above 0: the same for the density alone
pca_side: int = 8  # at least 2: side of PCA's blocks, in pixels
qualities: list[int] = [5, 10, 20, 35, 55, 75, 90]  # at least 1, at most 100: settings of JPEG and WebP
seed: int = 0  # at least 0: fixes the tiles, the start and the noise
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float32"  # one of float32, bfloat16: arithmetic of the networks
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("compression", globals())

# %% [markdown]
# ## Data

# %%
import math
import time

import torch

from ae_course.autoencoder import save_model
from ae_course.compression import (
    CODECS, Compressive, bd_psnr, check_lossless, classical, common_range, compress, learn_density, lifted, matched_step, point,
    principal_blocks, read_code, scales_of, start_linear, tiles,
)  # fmt: skip
from ae_course.data import Images, load
from ae_course.figures import curves, image_grid, pick, show
from ae_course.training import fit, seeded

# %%
if threads is not None:
    torch.set_num_threads(threads)
train, test = load(dataset, limit=limit), load(dataset, "test", limit=test_limit)
check_lossless(train)
every = tiles(train.x, tile)
small = Images(every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:tile_count]].contiguous())
colours, (height, width) = train.x.shape[1], test.x.shape[2:]
train, test, small

# %% [markdown]
# ## Curves
#
# A codec is measured as it would be used: each image a file of its own, header included, read back from its bytes.

# %%
pictures, found, rows, seconds = {}, {}, [], {}
shown = test[pick(min(8, len(test)), len(test))]


def add(codec, setting, measured, **more):
    "One point of a curve."
    found.setdefault(codec, []).append(measured)
    rows.append({"seed": seed, "study": "curve", "codec": codec, "setting": setting, "scales": scales_of(height, width)}
                | measured._asdict() | more)  # fmt: skip


def measure_own(codec, model, setting, **more):
    "The point of one of our own models, file by file; every file must hold the integers that were written."
    began, back, count = time.process_time(), [], 0
    for i in range(len(test)):
        data = compress(model, test[i : i + 1])
        q, *size = read_code(data, model)
        assert torch.equal(q, model.quantised(test[i : i + 1])), f"{codec}: image {i} came back with other integers"
        back.append(model.restored(q, *size))
        count += len(data)
    add(codec, setting, point(test, torch.cat(back), count), coding_seconds=(time.process_time() - began) / len(test), **more)


for codec in CODECS:
    for quality in qualities:
        sizes, back = classical(test, codec, quality)
        add(codec, quality, point(test, back, int(sizes.sum())))
networks = principal_blocks(train, pca_side, seed=seed)
for lam in lams:
    step = matched_step(lam, colours)
    measure_own("PCA", Compressive(*networks, step=step, alphabet=1024).freeze(train[:1000], learned=False), step)

# %% [markdown]
# ## The autoencoder
#
# First the density alone, with the networks at PCA; then everything together.

# %%
cosine = lambda epoch: 0.5 * (1 + math.cos(math.pi * epoch / epochs))
for lam, stage in run.stages(lams, label="lambda {:g}"):
    with seeded(seed):
        model = Compressive(*start_linear(lifted((colours, tile, tile), widths, components), train, seed), lam=lam,
                            step=matched_step(lam, colours)).prepare(small)  # fmt: skip
    options = {"batch_size": batch_size, "seed": seed, "device": device, "precision": precision, "progress": stage.progress}
    beside = stage.checkpoint.with_stem(f"{stage.checkpoint.stem}-density")
    first = learn_density(model, small, epochs=density_epochs, lr=density_lr, checkpoint=beside, **options)
    history = fit(model, small, epochs=epochs, lr=lr, schedule=cosine, checkpoint=stage.checkpoint, **options)
    model.cpu().freeze(small)
    save_model(model, run.path(f"model_{lam:g}.safetensors"))
    measure_own("autoencoder", model, lam, train_rate=history["rate"][-1], seconds=sum(first["seconds"]) + sum(history["seconds"]))
    pictures[f"lambda {lam:g}"] = model.restored(model.quantised(shown), height, width)

# %% [markdown]
# ## Differences

# %%
for against in ("PCA", *CODECS):
    low, high = common_range(found["autoencoder"], found[against])
    rows.append({"seed": seed, "study": "difference", "against": against, "low_bpp": low, "high_bpp": high,
                 "bd_psnr": bd_psnr(found["autoencoder"], found[against])})  # fmt: skip
    print(f"autoencoder against {against}: {rows[-1]['bd_psnr']:+.2f} dB, from {low:.2f} to {high:.2f} bits per pixel")

# %%
for column, name in (("psnr", "PSNR in dB"), ("ms_ssim", f"MS-SSIM at {scales_of(height, width)} scales")):
    lines = {codec: ([p.bpp for p in points], [getattr(p, column) for p in points]) for codec, points in found.items()}
    figure = curves(lines, x="bits per pixel", y=name, log=False, log_x=True, alt=f"{name} against bits per pixel for each codec")
    run.save(figure, f"{column}_by_rate")
    show(figure)

# %%
grid = image_grid({"original": shown} | pictures, alt="Test images and their decoded copies for each weight of the error")
run.save(grid, "decoded")
show(grid)

# %%
run.finish(rows)
