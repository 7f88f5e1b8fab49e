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
# # Recommendation
#
# > AutoRec on ratings, CDAE and Mult-VAE on choices, with and without noise and side information, beside what needs no network

# %% [markdown]
# Tests Section 4.5 of the survey by Bank, Koenigstein and Giryes (*Autoencoders*, Equations 17 and 18): autoencoders recommend; denoising regularises them; side information improves accuracy and speeds training up. Lesson [53](../53_recommendation.ipynb) explains models and scores, [Ratings](../00_ratings.ipynb) the sets and the splits.
#
# `task` ratings: a random tenth of all ratings is the test, a tenth of the others the validation, by which the epoch is chosen; a seed is a split. `rmse` is in stars, over the test ratings, predictions cut to the scale; `best_epoch` is the epoch of the lowest validation error (from 1). All variants of one seed see the rows in one order, so that their curves share the ups and downs of that order, and their best epochs can coincide.
#
# - `item_mean`: each item's mean. `matrix_factorisation`: biased, by Adam.
# - `i_autorec`, `u_autorec`: rows are items, users. `..._denoising`: shown ratings erased with probability 1 - `keep`. `..._side`: with genres of items, or age, sex and occupation of users, beside input and code.
#
# `task` ranking: ratings of `least` and more are choices; of the users with at least five, a share `share` each is held out for validation and for the test; of their choices four fifths are shown. `recall_20`, `recall_50` and `ndcg` (at 100) are means over the test users; `best_epoch` is that of the highest validation NDCG. Methods: `popularity`, `item_knn`, `cdae`, `mult_vae`.
#
# The settings below were chosen once, on the validation ratings and users of split 100 of MovieLens-100K, which no table uses, among two to ten tries for each method; the denoising and the side variants take those of plain AutoRec. Published beside ours: Sedhain et al. (2015) report an RMSE of 0.831 for I-AutoRec on MovieLens-1M (500 codes, random 90 to 10, mean of five splits); Liang et al. (2018) recall@20 0.395,
# recall@50 0.537 and NDCG@100 0.426 for Mult-VAE on MovieLens-20M (10,000 test users). Both sets are larger than MovieLens-100K, so the numbers are not the same quantity.

# %% tags=["parameters"]
dataset: str = "movielens"  # synthetic, movielens, ml-1m, or the path of a table of ratings
latent_dim: int = 200  # at least 1: code of AutoRec and CDAE
lam: float = 0.04  # at least 0: price of I-AutoRec's weights, the survey's lambda over the number of rows
u_lam: float = 0.1  # at least 0: the same of U-AutoRec
keep: float = 0.7  # above 0: share of the shown ratings that the denoising variants keep
lr: float = 0.0005  # above 0: Adam's learning rate for AutoRec
batch_size: int = 64  # at least 1: rows a step
epochs: int = 200  # at least 1: most passes of any training
patience: int = 20  # at least 1: passes without a better validation score until a training stops
mf_dim: int = 50  # at least 1: factors of matrix factorisation
mf_lam: float = 0.1  # at least 0: price of its parameters
mf_lr: float = 0.002  # above 0: Adam's learning rate for it
mf_batch: int = 500  # at least 1: ratings a step
least: float = 4.0  # at least 0: ratings from here on are choices
share: float = 0.2  # above 0, below 0.5: users held out for validation, and as many for the test
neighbours: int = 100  # at least 1: of each item in item_knn
cdae_keep: float = 0.5  # above 0: share of the choices that CDAE's and Mult-VAE's dropout keeps
cdae_lam: float = 0.0  # at least 0: price of CDAE's parameters
vae_hidden: int = 300  # at least 1: hidden units of Mult-VAE
vae_dim: int = 100  # at least 1: code of Mult-VAE
beta: float = 0.2  # at least 0: weight of Mult-VAE's rate at the end of its rise
warmup: int = 500  # at least 1: steps over which it rises
rank_lr: float = 0.001  # above 0: Adam's learning rate for CDAE and Mult-VAE
rank_batch: int = 64  # at least 1: users a step
seed: int = 0  # at least 0: fixes the split, the start, the order and the noise
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("recommendation", globals())

# %% [markdown]
# ## Data

# %%
import time

import numpy as np
import torch

from ae_course.figures import curves, dots
from ae_course.metrics import bootstrap_interval
from ae_course.ratings import Cells, Rows, liked, load_ratings, split_ratings, split_users
from ae_course.recommendation import (
    CDAE,
    AutoRec,
    MatrixFactorisation,
    MultVAE,
    autorec,
    by_row,
    fit_best,
    item_knn,
    item_mean,
    popularity,
    ranking,
    rmse,
    scorer,
)
from ae_course.training import seeded
from ae_course.variational import variational_mlp

# %%
if threads is not None:
    torch.set_num_threads(threads)
ratings = load_ratings(dataset)
full, test = split_ratings(ratings, 0.1, seed)
train, validation = split_ratings(full, 0.1, seed)
chosen, _ = liked(ratings, least)
seen, held_validation, held_test = split_users(chosen, share, seed=seed)
print(ratings, f"choices: {chosen.nnz:,} of {chosen.shape[0]} users", sep="\n")

# %% [markdown]
# ## Ratings

# %%
options = {"epochs": epochs, "patience": patience, "seed": seed, "device": device}


def factorised(stage):
    "Biased matrix factorisation: predictor, best epoch, history."
    with seeded(seed):
        model = MatrixFactorisation(*train.matrix.shape, mf_dim, train.mean(), mf_lam)
    epoch, history = fit_best(model, Cells(train), score=lambda row: row["validation_error"], validation=Cells(validation),
                              batch_size=mf_batch, lr=mf_lr, progress=stage.progress, **options)  # fmt: skip
    return model.predict, epoch, history


def autoencoded(by, kept=1.0, side=False):
    "The same of an AutoRec."

    def work(stage):
        turn = (lambda m: m.T.tocsr()) if by == "items" else (lambda m: m)
        about = (train.item_side if by == "items" else train.user_side) if side else None
        shown = turn(train.matrix)
        rows, held = Rows(shown, None, about, train.mean()), Rows(shown, turn(validation.matrix), about, train.mean())
        with seeded(seed):
            networks = autorec(shown.shape[1], latent_dim, 0 if about is None else about.shape[1])
        model = AutoRec(*networks, lam if by == "items" else u_lam, kept)
        error = lambda row: row["validation_reconstruction"] * len(held) / len(validation)  # a rating, not a row
        epoch, history = fit_best(model, rows, score=error, validation=held, batch_size=batch_size, lr=lr, progress=stage.progress,
                                  **options)  # fmt: skip
        return by_row(model, train, by), epoch, history

    return work


plan = {"item_mean": lambda stage: (item_mean(train), None, None), "matrix_factorisation": factorised}
for by, name in (("items", "i_autorec"), ("users", "u_autorec")):
    plan[name], plan[f"{name}_denoising"] = autoencoded(by), autoencoded(by, keep)
    if (train.item_side if by == "items" else train.user_side) is not None:
        plan[f"{name}_side"] = autoencoded(by, side=True)
rows, histories, errors = [], {}, {}
empty = dict.fromkeys(("rmse", "recall_20", "recall_50", "ndcg", "best_epoch"))
users, items, values = test.cells()
for name, stage in run.stages(plan):
    began = time.perf_counter()
    predict, epoch, history = plan[name](stage)
    error = rmse(predict, test)
    errors[name] = (np.clip(predict(users, items), *test.scale) - values) ** 2
    histories[name] = history
    rows.append({"seed": seed, "task": "ratings", "method": name, **empty, "rmse": error, "best_epoch": epoch,
                 "seconds": time.perf_counter() - began})  # fmt: skip
    print(f"{name:22} RMSE {error:.4f}" + (f", best epoch {epoch}" if epoch else ""))


# %% [markdown]
# ## Rankings for unseen users

# %%
def trained(model):
    "Scores of the model at its best validation NDCG, and that epoch."

    def work(stage):
        score = lambda row: -float(ranking(scorer(model), held_validation)["ndcg_100"].mean())
        epoch, _ = fit_best(model, Rows(seen), score=score, batch_size=rank_batch, lr=rank_lr, progress=stage.progress, **options)
        return scorer(model), epoch

    return work


d = seen.shape[1]
with seeded(seed):
    cdae = CDAE(*autorec(d, latent_dim, code_activation=None), seen.shape[0], cdae_lam, cdae_keep)
with seeded(seed):
    mult_vae = MultVAE(*variational_mlp((d,), (vae_hidden,), vae_dim, "tanh", output=None), beta, warmup, cdae_keep)
plan = {"popularity": lambda stage: (popularity(seen), None), "item_knn": lambda stage: (item_knn(seen, neighbours), None),
        "cdae": trained(cdae), "mult_vae": trained(mult_vae)}  # fmt: skip
lists = {}
for name, stage in run.stages(plan):
    began = time.perf_counter()
    recommend, epoch = plan[name](stage)
    lists[name] = ranking(recommend, held_test)
    found = {key: float(scores.mean()) for key, scores in lists[name].items()}
    rows.append({"seed": seed, "task": "ranking", "method": name, **empty, "recall_20": found["recall_20"], "recall_50": found["recall_50"],
                 "ndcg": found["ndcg_100"], "best_epoch": epoch, "seconds": time.perf_counter() - began})  # fmt: skip
    print(f"{name:12}" + "".join(f"  {key} {value:.4f}" for key, value in found.items()) + (f", best epoch {epoch}" if epoch else ""))

# %% [markdown]
# ## Figures
#
# Errors and rankings with intervals over test ratings and test users (of this split), and the validation error of I-AutoRec over the epochs, as it is, with erased inputs and with side information.

# %%
title = f"{ratings.name}, split {seed}"
intervals = {name: tuple(np.sqrt(bootstrap_interval(e))) for name, e in errors.items()}
alt = "Root mean squared error of each method with a bootstrap interval"
run.save(dots(intervals, x="RMSE on the test ratings", title=title, alt=alt), "rmse")
intervals = {name: tuple(bootstrap_interval(found["ndcg_100"])) for name, found in lists.items()}
alt = "NDCG at 100 of each recommender with a bootstrap interval over users"
run.save(dots(intervals, x="NDCG@100 of unseen users", title=title, alt=alt), "ndcg")
lines = {name: [float(np.sqrt(value)) for value in history["score"]] for name, history in histories.items() if name.startswith("i_autorec")}
alt = "Validation error of I-AutoRec over the epochs, plain, denoising and with side information"
run.save(curves(lines, log=False, y="validation RMSE", title=title, alt=alt), "epochs")

# %%
run.finish(rows)
