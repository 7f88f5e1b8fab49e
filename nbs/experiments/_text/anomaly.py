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
# # Anomalies
#
# > Every class in turn left out of training: is its reconstruction error high?

# %% [markdown]
# Tests a sentence of the survey by Bank, Koenigstein and Giryes (*Autoencoders*, Section 4.4): trained on normal samples, an autoencoder has a low reconstruction error for normal samples and a high one for anomalies; and asks what the survey does not, whether it is then better than PCA with as many components. Lesson [52](../52_anomaly.ipynb) explains the scores, the threshold and the intervals.
#
# One class is the anomaly, the others are normal. Training sees normal images only, `validation` of which are held out for the threshold. The test set has both. One row for each class left out (`left_out`) and each `method`:
#
# - `autoencoder`: mean squared error of a perceptron autoencoder; `vae_bound` and `vae_probability`: minus the bound, and minus the reconstruction probability, of a variational autoencoder of the same widths (binary cross-entropy).
# - `pca`: mean squared error of PCA with `latent_dim` components. `isolation_forest`, `one_class_svm`: scikit-learn's, at their defaults. `nearest_neighbour`: distance to the nearest training image. `ink`: the sum of the pixels, which needs no training and understands nothing.
#
# `auc` is the area under the ROC curve, with DeLong's interval (`auc_low`, `auc_high`: of this test set, not of other seeds); `average_precision` is the area under the precision-recall curve, to be held against the share of anomalies, `prevalence`. At the threshold that promises `allowed` false alarms, `false_alarm_rate` and `hit_rate` are what the test set shows. `seconds` are of training and scoring.
#
# Settings were taken from the lessons before (perceptron with one hidden layer, Adam, 16 code numbers); none was chosen by its area.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set with labels, by name
limit: int | None = None  # at least 20: use the first so many training images
test_limit: int | None = None  # at least 20: use the first so many test images
classes: int | None = None  # at least 1: leave out the first so many classes, one at a time; none takes all
latent_dim: int = 16  # at least 1: code numbers, and components of PCA
hidden: list[int] = [256]  # at least 1: widths between image and code
epochs: int = 40  # at least 1: passes over the normal training images
vae_epochs: int = 40  # at least 1: the same, of the variational autoencoder
draws: int = 10  # at least 1: codes an image for the scores of the variational autoencoder
validation: float = 0.2  # above 0, below 1: share of the normal training images that only sets the threshold
allowed: float = 0.05  # above 0, below 1: rate of false alarms that the threshold promises
svm_images: int | None = None  # at least 20: fit the one-class SVM to the first so many normal images; none takes all
batch_size: int = 128  # at least 1: images a step
lr: float = 0.001  # above 0: Adam's learning rate
seed: int = 0  # at least 0: fixes the start, the split, the order of the images, and the noise
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float32"  # one of float32, bfloat16: arithmetic of the networks
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("anomaly", globals())

# %% [markdown]
# ## Data and detectors

# %%
import time

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from ae_course.anomaly import BASELINES, auc, baseline, bound_score, curve, error_score, leave_out, limit as threshold, probability_score
from ae_course.autoencoder import Autoencoder, mlp, save_model
from ae_course.data import load
from ae_course.figures import curves, dots, image_grid
from ae_course.metrics import mean_interval
from ae_course.training import fit, seeded
from ae_course.variational import VAE, variational_mlp

# %%
if threads is not None:
    torch.set_num_threads(threads)
train, test = load(dataset, limit=limit), load(dataset, "test", limit=test_limit)
shape, x = tuple(train.x.shape[1:]), test.pixels()
labels = sorted(set(train.y.tolist()) & set(test.y.tolist()))[:classes]
name_of = lambda label: str(train.classes[label]) if train.classes else str(label)
train, test


# %%
def networks(split, stage):
    "The scores of the two networks: name -> (scores of new images, seconds of training)."
    found, options = {}, {"batch_size": batch_size, "lr": lr, "seed": seed, "device": device, "precision": precision}
    with seeded(seed):
        plain = Autoencoder(*mlp(shape, hidden, latent_dim))
    with seeded(seed):
        vae = VAE(*variational_mlp(shape, hidden, latent_dim), reconstruction="bce")
    for kind, model, rounds in (("ae", plain, epochs), ("vae", vae, vae_epochs)):
        path = stage.checkpoint.with_stem(f"{stage.checkpoint.stem}-{kind}")
        history = fit(model, split.train, epochs=rounds, checkpoint=path, progress=stage.progress, **options)
        found[kind] = sum(history["seconds"])
        model.cpu()
    save_model(plain, run.path(f"model_{name_of(int(split.test.y[split.anomalous][0]))}.safetensors"))
    return {
        "autoencoder": (lambda new: error_score(plain, new), found["ae"]),
        "vae_bound": (lambda new: bound_score(vae, new, draws, seed), found["vae"]),
        "vae_probability": (lambda new: probability_score(vae, new, draws, seed), found["vae"]),
    }


def baselines(split):
    "The scores of the others, in the same form."
    normal, found = split.train.pixels(), {}
    for name in BASELINES:
        began = time.perf_counter()
        score = baseline(name, normal[:svm_images] if name == "one_class_svm" else normal, latent_dim, seed)
        found[name] = score, time.perf_counter() - began
    return found


# %% [markdown]
# ## Each class in turn

# %%
rows, keep = [], {}
for label, stage in run.stages(labels, label="without {}"):
    split = leave_out(train, test, label, validation, seed)
    held, anomalous = split.validation.pixels(), split.anomalous.numpy()
    for method, (score, seconds) in {**networks(split, stage), **baselines(split)}.items():
        began = time.perf_counter()
        found = score(x).numpy()
        t, area = threshold(score(held), allowed), auc(found, anomalous)
        rows.append({
            "seed": seed, "left_out": name_of(label), "method": method, "auc": area.estimate, "auc_low": area.low, "auc_high": area.high,
            "average_precision": float(average_precision_score(anomalous, found)), "prevalence": float(anomalous.mean()),
            "false_alarm_rate": float((found[~anomalous] > t).mean()), "hit_rate": float((found[anomalous] > t).mean()),
            "seconds": seconds + time.perf_counter() - began,
        })  # fmt: skip
        keep[name_of(label), method] = found, anomalous

# %%
methods, left = list(dict.fromkeys(row["method"] for row in rows)), list(dict.fromkeys(row["left_out"] for row in rows))
of = {(row["left_out"], row["method"]): row for row in rows}
print(f"{'AUC':18}" + "".join(f"{name[:9]:>10}" for name in left) + f"{'mean':>10}")
for method in methods:
    areas = [of[name, method]["auc"] for name in left]
    print(f"{method:18}" + "".join(f"{area:10.3f}" for area in areas) + f"{np.mean(areas):10.3f}")
for method in methods:
    rates = [np.mean([of[name, method][key] for name in left]) for key in ("false_alarm_rate", "hit_rate", "average_precision")]
    print(f"{method:18} false alarms {rates[0]:.3f} ({allowed} allowed), found {rates[1]:.3f}, average precision {rates[2]:.3f}")

# %% [markdown]
# ## Figures
#
# The areas of the classes for the autoencoder and PCA; their means; ROC and precision-recall curves of the class that is found best and of the one found worst; and the images that each detector thinks strangest.

# %%
few = ("autoencoder", "pca", "vae_bound", "ink")
interval = lambda name, method: tuple(of[name, method][key] for key in ("auc", "auc_low", "auc_high"))
series = {method: {f"without {name}": interval(name, method) for name in left} for method in few}
run.save(dots(series, x="area under the ROC curve", reference=0.5, title=f"{dataset}, one class left out, seed {seed}",
              alt="Area under the ROC curve for each class left out, by detector, with intervals of the test set"), "auc")  # fmt: skip
if len(left) > 1:
    means = {method: tuple(mean_interval([of[name, method]["auc"] for name in left])) for method in methods}
    title, alt = f"{dataset}, seed {seed}; interval over classes", "Mean area under the ROC curve of each detector over the classes"
    run.save(dots(means, x="area under the ROC curve, mean over classes", reference=0.5, title=title, alt=alt), "auc_mean")

# %%
ranked = sorted(left, key=lambda name: of[name, "autoencoder"]["auc"])
for kind, axes in (("roc", ("rate of false alarms", "rate of hits")), ("pr", ("recall", "precision"))):
    lines, bands = {}, {}
    for name in dict.fromkeys((ranked[-1], ranked[0])):
        for method in ("autoencoder", "pca"):
            found = curve(*keep[name, method], kind, seed=seed)
            lines[f"{method}, {name}"] = found.x[1:], found.y[1:]
            bands[f"{method}, {name}"] = found.low[1:], found.high[1:]
    run.save(curves(lines, bands=bands, log=False, x=axes[0], y=axes[1], y_range=(0, 1), title=f"{dataset}, seed {seed}",
                    alt=f"{axes[1]} against {axes[0]}, the classes found best and worst, by autoencoder and PCA"), kind)  # fmt: skip
strangest = {method: x[torch.from_numpy(np.argsort(-keep[ranked[-1], method][0], kind="stable")[:10].copy())] for method in methods}
run.save(image_grid(strangest, title=f"strangest ten, without {ranked[-1]}, seed {seed}",
                    alt="The ten test images that each detector scores highest"), "strangest")  # fmt: skip

# %%
run.finish(rows)
