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
# # Convolutional denoising
#
# > Half the parameters and a better picture? And X-rays, against filters that learn nothing

# %% [markdown]
# Two questions of the LMU slides (*Convolutional autoencoder*; *Real-world applications*, after Gondara, 2016), asked with the networks of lesson 30 and the denoising of lesson 21.
#
# **Digits.** A dense autoencoder with a code of 32 numbers, 784-32-784 with a linear code and a sigmoid at the end, "roughly 50k" parameters, and a convolutional one with half of them, on the same noisy digits. The slides add uniform noise and do not say how much; here it is $U(-w, w)$ with $w$ = `noise`. Both are trained alike: mean squared error to the clean digit, Adam, a fresh draw of noise for every batch, the
# same seed, the same number of epochs. A second dense one is trained `longer` times as long, to see whether time is what the first lacks. Parameters and multiply-accumulates are counted (30.3), not rounded.
#
# **X-rays.** PneumoniaMNIST, chest X-rays of 28x28 pixels, with Gaussian noise at two levels. A network like the one above, one for each level, against three filters that learn nothing: median, non-local means (scikit-image's fast form) and total variation. Every filter gets its strength chosen on the *validation* images, at each level, by PSNR; the network gets no choice. Where the set is not on disk
# (`ae-course data get pneumonia` fetches it), its rows are in the table without numbers, and say why. The filters need scikit-image, the course's extra `medical`.
#
# All values are means over the test images: PSNR of each image in decibels and SSIM (lesson 05), of the clipped output against the clean image; *psnr_in*, *ssim_in* of the noisy image as it is. Noise on the test images is drawn once, from the seed, the same for all methods. Study "digits" and study "medical, one level" have a row for each method
# and level; study "medical" is the mean over the levels. *level* is the width of the uniform noise or the standard deviation of the Gaussian; *trained_on* counts the images that weights were trained on or a strength chosen on, *rounds* the passes over them. In the copy that was measured for the committed table, eight images stand in both the
# training and the validation split, and none of either in the test split.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set of the first question, by name
limit: int | None = None  # at least 2: use the first so many images for training, of either set, and for choosing filters
noise: float = 0.5  # above 0: width w of the uniform noise U(-w, w) on the digits
latent_dim: int = 32  # at least 1: code numbers of the dense autoencoder
channels: list[int] = [24, 32]  # at least 1: channels of the convolutional encoder, one halving each
kernel: int = 4  # at least 2: width of the filters
epochs: int = 50  # at least 1: passes over the digits
longer: int = 4  # at least 1: times as many for the second dense autoencoder
xrays: str | None = "pneumonia"  # data set of the second question, with splits train, validation and test; none leaves it out
levels: list[float] = [0.1, 0.3]  # above 0: standard deviations of the Gaussian noise on the X-rays
xray_epochs: int = 25  # at least 1: passes over the X-rays, for each level
batch_size: int = 64  # at least 1: images a step
lr: float = 0.001  # above 0: Adam's learning rate
seed: int = 0  # at least 0: fixes weights, order and noise
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float32"  # one of float32, bfloat16: arithmetic of the training
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("conv_denoising", globals())

# %%
import time

import torch

from ae_course.autoencoder import mlp, save_model
from ae_course.convolutional import FILTERS, best_strength, conv, costs, filtered
from ae_course.data import SOURCES, UnknownName, find, load
from ae_course.denoising import DenoisingAutoencoder, gaussian, once, uniform
from ae_course.figures import curves, image_grid, pick
from ae_course.metrics import per_image_mse, psnr, ssim
from ae_course.training import fit, seeded

# %%
if threads is not None:
    torch.set_num_threads(threads)
if xrays is not None and xrays not in SOURCES and not find(xrays):
    raise UnknownName("data set", xrays, SOURCES)
missing = "left out" if xrays is None else None
if xrays is not None and not find(xrays):
    missing = f"{xrays} is not on disk: ae-course data get {xrays}, then run again with --force"
digits, digits_test = load(dataset, limit=limit), load(dataset, "test")
clean = {dataset: digits_test.pixels()}
noisy = {(dataset, noise): once(uniform(noise), clean[dataset], seed)}
if missing is None:
    plates, chosen_on, plates_test = load(xrays, limit=limit), load(xrays, "validation", limit=limit), load(xrays, "test")
    filtered(plates_test.pixels()[:1], "median", 3)  # if scikit-image is missing, say so now and not after the training
    clean[xrays] = plates_test.pixels()
    noisy |= {(xrays, level): once(gaussian(level), clean[xrays], seed) for level in levels}
print(f"X-rays: {missing or plates_test}")

# %% [markdown]
# ## Train

# %%
shape = tuple(digits.x.shape[1:])
jobs = {"digits, mlp": (dataset, noise), "digits, conv": (dataset, noise), "digits, mlp, longer": (dataset, noise)}
work = {"digits, mlp": epochs, "digits, mlp, longer": longer * epochs}  # the others cost about ten times as much an epoch
if missing is None:
    jobs |= {f"X-rays, noise {level:g}": (xrays, level) for level in levels}


def measured(x_hat, name, level):
    "What the table says of outputs `x_hat` for the test images of a set at a noise level."
    x, shown = clean[name], noisy[name, level]
    mean = lambda values: values.mean().item()
    return {"psnr_in": mean(psnr(shown, x)), "psnr_out": mean(psnr(x_hat, x)), "ssim_in": mean(ssim(shown, x)),
            "ssim": mean(ssim(x_hat, x)), "test_mse": mean(per_image_mse(x_hat, x)), "skipped": None}  # fmt: skip


rows, outputs, histories = [], {}, {}
for job, stage in run.stages(jobs, label="{}", cost=lambda job: work.get(job, 10 * epochs)):
    name, level = jobs[job]
    study = "digits" if job.startswith("digits") else "medical, one level"
    images, rounds = (digits, work.get(job, epochs)) if study == "digits" else (plates, xray_epochs)
    shape = tuple(images.x.shape[1:])
    with seeded(seed):
        if job in work:
            network, parts = job.removeprefix("digits, "), mlp(shape, (), latent_dim)  # the slides' network: linear code, sigmoid output
        else:
            network, parts = "conv", conv(shape, channels, kernel=kernel, code_activation="relu")
    counted = costs(torch.nn.Sequential(*parts), shape)
    model = DenoisingAutoencoder(*parts, uniform(level) if study == "digits" else gaussian(level))
    history = fit(model, images, epochs=rounds, batch_size=batch_size, lr=lr, seed=seed, device=device, precision=precision,
                  checkpoint=stage.checkpoint, progress=stage.progress)  # fmt: skip
    model = model.cpu().eval()
    with torch.no_grad():
        outputs[job] = torch.cat([model(part) for part in noisy[name, level].split(500)])
    histories[job] = history
    rows.append({"seed": seed, "study": study, "network": network, "data": name, "level": level, "strength": None,
                 "parameters": sum(layer.parameters for layer in counted), "macs": sum(layer.macs for layer in counted),
                 "trained_on": len(images), "rounds": rounds} |
                measured(outputs[job], name, level) | {"seconds": sum(history["seconds"])})  # fmt: skip
    save_model(model, run.path(f"model_{job.replace(', ', '_').replace(' ', '_')}.safetensors"))

# %% [markdown]
# ## Filters
#
# Four widths of the median's window; for the other two, strengths around the true standard deviation of the noise, which they are told and the network is not.

# %%
nothing = dict.fromkeys(["psnr_in", "psnr_out", "ssim_in", "ssim", "test_mse"])
names, short = ["conv", *FILTERS], {"non-local means": "nlm", "total variation": "tv"}
if missing is None:
    known = chosen_on.pixels()
    for level in levels:
        strengths = {"median": [3, 5, 7, 9], "non-local means": [level * f for f in (0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5)],
                     "total variation": [level * f for f in (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3)]}  # fmt: skip
        examples = once(gaussian(level), known, seed + 1)
        for kind in FILTERS:
            strength, _ = best_strength(examples, known, kind, strengths[kind])
            began = time.perf_counter()
            outputs[kind, level] = filtered(noisy[xrays, level], kind, strength)
            rows.append({"seed": seed, "study": "medical, one level", "network": short.get(kind, kind), "data": xrays, "level": level,
                         "strength": strength, "parameters": 1, "macs": None, "trained_on": len(chosen_on), "rounds": None} |
                        measured(outputs[kind, level], xrays, level) | {"seconds": time.perf_counter() - began})  # fmt: skip
for network in (short.get(name, name) for name in names):
    parts = [row for row in rows if row["network"] == network and row["study"] != "digits"]
    means = {key: sum(row[key] for row in parts) / len(parts) if parts else None for key in (*nothing, "seconds")}
    size = {key: parts[0][key] if parts else None for key in ("parameters", "macs", "trained_on", "rounds")}
    about = {"seed": seed, "study": "medical", "network": network, "data": xrays, "level": None, "strength": None}
    rows.append(about | size | means | {"skipped": missing})

# %% [markdown]
# ## Figures

# %%
chosen = pick(10, len(digits_test))
names = {f"{row['network']} ({row['parameters']:,} parameters)": outputs[f"digits, {row['network']}"] for row in rows[:2]}
grid = {"noisy": noisy[dataset, noise]} | names | {"truth": clean[dataset]}
alt = "Digits: with uniform noise, denoised by the dense and by the convolutional autoencoder, and the truth"
run.save(image_grid({label: x[chosen] for label, x in grid.items()}, clip=True, alt=alt), "digits")

# %%
if missing is None:
    for level in levels:
        chosen = pick(8, len(plates_test))
        grid = {f"noise {level:g}": noisy[xrays, level], "conv": outputs[f"X-rays, noise {level:g}"]}
        grid |= {kind: outputs[kind, level] for kind in FILTERS} | {"truth": clean[xrays]}
        alt = f"X-rays with Gaussian noise of {level:g}, denoised by the network and by three filters, and the truth"
        run.save(image_grid({label: x[chosen] for label, x in grid.items()}, clip=True, alt=alt), f"xrays_{level:g}")

# %%
alt = "Training loss over the epochs, a line a network"
run.save(curves(histories, y="training loss (MSE to the clean image)", title=f"seed {seed}", alt=alt), "loss")

# %%
run.finish(rows)
