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
# # Memorising
#
# > A code of one number, and a network strong enough to number its training images

# %% [markdown]
# Trains 784-W-W-1-W-W-784 networks with a code of **one number** on N images, all at once, for growing widths W and numbers N (lesson 11, whose equations are meant). The claim to be tested (LMU slides, *Very powerful AE*): the encoder learns to map each training image to a code of its own, and the decoder to map these codes back, so that the images are memorised and nothing is learned about others.
#
# The rule of the ledger (L5), for each N over the seeds, with the start *spread*: the best width recalls every training image (*recalled* = 1), the smallest training error is at most a tenth of the mean image's, and no test error is below that of the mean image. Reported beside: whether the training error falls with each step in width, and Spearman's correlation of code and index (the slides say that the code *is* the index).
#
# Each width and N is trained from two starts. *spread* gives the decoder's first layer sharp bends all over [-2, 2]; *default* is PyTorch's. Errors are mean squared errors over every pixel of every image: *train_mse* and *test_mse* of the network; *mean_train_mse*, *mean_test_mse* of the mean training image; *table_test_mse* of the training image nearest to each test image, *random_test_mse* of one drawn at random (11.9);
# *to_table_mse* from the outputs for test images to the training images nearest to them. *recalled*: share of training images whose output is nearest to themselves; *smallest_gap*: between neighbouring codes, as a share of their range.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name (or a folder of your own pictures)
size: int | None = None  # at least 4: pixels of a side, where the pictures are to be made smaller
counts: list[int] = [10, 20, 50]  # at least 2: numbers N of training images, drawn by seed
widths: list[int] = [16, 64, 256]  # at least 1: widths W of the hidden layers
starts: list[str] = ["spread", "default"]  # one of spread, default: starts of the decoder
depth: int = 2  # at least 1: hidden layers on each side
steps: int = 3000  # at least 1: steps of Adam on all N images
lr: float = 0.003  # above 0: Adam's learning rate at the start; it falls along half a cosine
seed: int = 0  # at least 0: fixes the images and the start
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("memorising", globals())

# %% [markdown]
# ## Data

# %%
import torch

from ae_course.autoencoder import save_model
from ae_course.data import load
from ae_course.figures import curves, pick, reconstruction_grid, show
from ae_course.undercomplete import memorise, memory_report, nearest

# %%
if threads is not None:
    torch.set_num_threads(threads)
train, test = load(dataset, size=size), load(dataset, "test", size=size)
pool, unseen = train.pixels()[pick(max(counts), len(train), seed)], test.pixels()
pool = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))]  # the first N of these are the N images
train, test

# %% [markdown]
# ## Train

# %%
arms = [(kind, n, width) for kind in starts for n in counts for width in widths]
rows, models = [], {}
for (kind, n, width), stage in run.stages(arms, label="{}, N = {}, width {}", cost=lambda arm: 200 + arm[2] + arm[1]):
    seconds = []

    def note(row, stage=stage, seconds=seconds):
        "The seconds of each step, and the progress of every hundredth."
        seconds.append(row["seconds"])
        if row["epoch"] % 100 == 0 or row["epoch"] == steps:
            stage.progress(row)

    options = {"start": kind, "depth": depth, "lr": lr, "seed": seed, "device": device}
    model = memorise(pool[:n], width, steps, **options, checkpoint=stage.checkpoint, progress=note)
    models[kind, n, width] = model
    rows.append(
        {"seed": seed, "start": kind, "images": n, "width": width, "parameters": sum(p.numel() for p in model.parameters())}
        | memory_report(model, pool[:n], unseen)
        | {"seconds": sum(seconds)}
    )
    save_model(model, run.path(f"model_{kind}_n{n}_w{width}.safetensors"))

# %% [markdown]
# ## Figures
#
# Errors over those of the mean image: 1 is what an answer without looking costs. Then the largest network on each N: what it answers to training images and to test images, and how the nearest training image changes along the line of codes.

# %%
for kind in starts:
    lines = {}
    for n in counts:
        for part in ("train", "test"):
            picked = [row for row in rows if row["start"] == kind and row["images"] == n]
            lines[f"N = {n}, {part}"] = [row["width"] for row in picked], [row[f"{part}_mse"] / row[f"mean_{part}_mse"] for row in picked]
    growth = curves(lines, x="width", y="error over the mean image's", log_x=True, title=f"{kind} start, seed {seed}",
                    alt="Training and test error over the mean image's against the width, a pair of lines for each N")  # fmt: skip
    run.save(growth, f"capacity_{kind}")
    show(growth)

# %%
for n in counts:
    model, own = models[starts[0], n, widths[-1]], pool[:n]
    with torch.no_grad():
        recalled, answers = model(own[:10]), model(unseen[:10])
        codes = model.encode(own).flatten().sort().values
        line = torch.cat([torch.linspace(a, b, 21)[:-1] for a, b in zip(codes[:-1].tolist(), codes[1:].tolist())])
        walk = model.decode(line[:, None])
    grid = reconstruction_grid(own[:10], recalled, title=f"training images, N = {n}", alt="Training images and what is recalled of them")
    run.save(grid, f"recalled_n{n}")
    pages = {"answer": answers, "nearest training image": own[nearest(answers, own)[0]]}
    alt = "Test images, answers, and the training images nearest to the answers"
    grid = reconstruction_grid(unseen[:10], pages, title=f"test images, N = {n}", alt=alt)
    run.save(grid, f"answers_n{n}")
    show(grid)
    place = model.encode(own).flatten().argsort().argsort()[nearest(walk, own)[0]].tolist()
    stairs = curves({"nearest": ([i / 20 for i in range(len(place))], place)}, log=False, x="place on the line of codes",
                    y="training image, by code", title=f"N = {n}", alt="Nearest training image along the line of codes")  # fmt: skip
    run.save(stairs, f"stairs_n{n}")

# %%
run.finish(rows)
