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
# # PixelCNN decoders
#
# > Do images get sharper when each pixel is drawn in the light of the earlier ones, and what is then left for the code to say?

# %% [markdown]
# Tests the statement of the survey by Bank, Koenigstein and Giryes (Section 5.3) that with a PixelCNN as the decoder "the probability of getting a blurred pixel diminishes", and measures what it does to the code. Lesson [62](../62_autoregressive.ipynb) explains the network and every measure.
#
# One row a `decoder`, all behind the same encoder, with the same likelihood over grey levels:
#
# - `plain`: pixels independent given the code; its images are the means of the pixels, as they are usually shown. `plain, drawn`: the same network, each pixel drawn.
# - `pixelcnn`: a gated PixelCNN given the code, drawn pixel by pixel. `narrow`: with one layer of 3 x 3 only. `free bits`: the rate charged above `free_bits` nats a unit only. `lossy`: earlier pixels are seen in black and white only.
# - `no code`: a PixelCNN alone. `train images`: real images, for the spectra, as many as are drawn.
#
# `bits_per_dim` is exact for `no code`, else the importance-weighted bound of `bound_draws` codes, and `elbo_bits` the usual bound. `rate` (the KL), `information` (62.10, among the test images measured) and `swap` (what another image's code costs) are in nats an image. `spectrum_distance` is (5.4a) in dB between images from codes of the prior and test images in the same levels;
# `reconstruction_spectrum_distance` the same for images from the codes of test images, and `reconstruction_mse` their mean squared error over every pixel.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name
image_size: int | None = 14  # at least 4: pixels of a side; none for the data's own
limit: int | None = None  # at least 2: use the first so many training images
test_limit: int | None = 500  # at least 2: use the first so many test images
levels: int = 4  # at least 2: grey levels of a pixel value
latent_dim: int = 8  # at least 1: code size
hidden: int = 128  # at least 1: units of the two perceptrons, of the encoder and behind the code
width: int = 16  # at least 1: channels of each stack
layers: int = 3  # at least 1: gated layers of the full PixelCNN
kernel: int = 3  # at least 3: size of their kernels, odd
first: int = 7  # at least 3: size of the first layer's kernel, odd
free_bits: float = 0.5  # above 0: nats of each unit that free bits leave uncharged
samples: int = 200  # at least 2: images drawn for the spectra
bound_draws: int = 16  # at least 1: codes an image in the importance-weighted bound
epochs: int = 10  # at least 1: passes over the training images
minutes: float | None = None  # above 0: end the training of a network, after an epoch, when so many are over
batch_size: int = 32  # at least 1: images a step
lr: float = 0.003  # above 0: Adam's learning rate
seed: int = 0  # at least 0: fixes the starts, the order of the images, and all draws
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
precision: str = "float32"  # one of float32, bfloat16: arithmetic of the training
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("autoregressive", globals())

# %% [markdown]
# ## Data

# %%
import torch

from ae_course.autoregressive import PixelCNN, PixelVAE, bits_per_dimension, code_use, draw_images, pixel_networks, quantized
from ae_course.data import load
from ae_course.figures import curves, dots, image_grid
from ae_course.metrics import radial_spectrum, spectrum_distance
from ae_course.training import fit_within, pick_device, seeded
from ae_course.variational import elbo, importance_bound, log_weights

# %%
if threads is not None:
    torch.set_num_threads(threads)
place = pick_device(device)
train, test = load(dataset, limit=limit, size=image_size), load(dataset, "test", limit=test_limit, size=image_size)
shape = tuple(train.x.shape[1:])
train, test

# %% [markdown]
# ## Train

# %%
full = {"layers": layers, "kernel": kernel, "first": first}
ARMS = {
    "plain": full | {"layers": 0}, "pixelcnn": full, "narrow": full | {"layers": 1, "first": 3}, "free bits": full,
    "lossy": full | {"shown": 2}, "no code": full,
}  # fmt: skip
models, trained = {}, {}
for name, stage in run.stages(list(ARMS), cost=lambda name: 1 + 4 * ARMS[name]["layers"]):
    with seeded(seed):
        if name == "no code":
            model = PixelCNN(shape, levels, width, **ARMS[name])
        else:
            networks = pixel_networks(shape, latent_dim, hidden, levels, width, **ARMS[name])
            model = PixelVAE(*networks, free_bits=free_bits if name == "free bits" else 0.0)
    history, ended = fit_within(model, train, epochs=epochs, minutes=minutes, checkpoint=stage.checkpoint, progress=stage.progress,
                                batch_size=batch_size, lr=lr, seed=seed, device=place, precision=precision)  # fmt: skip
    models[name], trained[name] = model, {"seconds": sum(history["seconds"]), "stopped_by": ended}

# %% [markdown]
# ## Measure

# %%
real = quantized(test.pixels(), levels)
some = test.pixels(place)[:samples]
codes = torch.randn(samples, latent_dim, generator=torch.Generator().manual_seed(seed)).to(place)


@torch.no_grad()
def pictured(decoder, z, drawn=True):
    "Images of codes `z`, on the CPU: drawn, or means of pixels that are independent."
    parts = [draw_images(decoder, z=part, seed=seed + i) if drawn else decoder.mean(part.new_zeros(len(part), *shape), part)
             for i, part in enumerate(z.split(256))]  # fmt: skip
    return torch.cat(parts).cpu()


rows, pictures, rebuilt = [], {"test images": real[:samples]}, {"test images": real[:samples]}
columns = """decoder bits_per_dim elbo_bits exact rate information swap spectrum_distance reconstruction_spectrum_distance
    reconstruction_mse parameters seconds stopped_by"""
blank = dict.fromkeys(columns.split())


def add(name, images, again=None, **known):
    "A row: the spectra of `images` and of reconstructions `again`, beside what is `known`."
    row = {"seed": seed} | blank | {"decoder": name, "spectrum_distance": spectrum_distance(images, real)} | known
    pictures[name] = images
    if again is not None:
        rebuilt[name] = again
        row["reconstruction_spectrum_distance"] = spectrum_distance(again, real[: len(again)])
        row["reconstruction_mse"] = (again - real[: len(again)]).square().mean().item()
    rows.append(row)


for name, model in models.items():
    model.to(place)
    known = trained[name] | {"parameters": sum(p.numel() for p in model.parameters()), "exact": name == "no code"}
    if name == "no code":
        with torch.no_grad():
            found = torch.cat([model.log_prob(part) for part in test.pixels(place).split(256)])
        drawn = torch.cat([draw_images(model, len(part), seed=seed + i) for i, part in enumerate(codes.split(256))]).cpu()
        add(name, drawn, **known | {"bits_per_dim": bits_per_dimension(found, shape).mean().item()})
        continue
    x_test = test.pixels(place)
    tight = importance_bound(log_weights(model, x_test, bound_draws, seed=seed))
    with torch.no_grad():
        z = model.encode(some)
    known |= code_use(model, x_test, seed)._asdict() | {
        "bits_per_dim": bits_per_dimension(tight, shape).mean().item(),
        "elbo_bits": bits_per_dimension(elbo(model, x_test, draws=bound_draws, seed=seed), shape).mean().item(),
    }
    if name == "plain":
        add(name, pictured(model.decoder, codes, drawn=False), pictured(model.decoder, z, drawn=False), **known)
        name = "plain, drawn"
    add(name, pictured(model.decoder, codes), pictured(model.decoder, z), **known)
add("train images", quantized(train[:samples].pixels(), levels))

# %% [markdown]
# ## Figures

# %%
title = f"{dataset}, {levels} levels, code of {latent_dim}, seed {seed}"
first_few = lambda of: {name: images[:10] for name, images in of.items()}
run.save(image_grid(first_few(pictures), title=title, alt="Test images, and images from codes of the prior, a row a decoder"), "samples")
run.save(image_grid(first_few(rebuilt), title=title, alt="Test images and their reconstructions, a row a decoder"), "reconstructions")

# %%
chosen = ("test images", "plain", "plain, drawn", "pixelcnn", "narrow", "no code")
spectra = {name: radial_spectrum(pictures[name]) for name in chosen}
run.save(curves({name: s.line() for name, s in spectra.items()}, x="frequency (cycles a pixel)", y="mean power", title=title,
                alt="Mean radial power of test images and of images from codes of the prior, a line a decoder"), "spectra")  # fmt: skip
measured = {r["decoder"]: r for r in rows}
run.save(dots({what: {name: measured[name][what] for name in ARMS if name != "no code"} for what in ("rate", "information", "swap")},
              x="nats an image", title=title, alt="Rate, information and swap of each decoder"), "code")  # fmt: skip

# %%
run.finish(rows)
