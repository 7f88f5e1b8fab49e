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
# # Copying
#
# > An overcomplete linear autoencoder can copy its input. Does training make it?

# %% [markdown]
# Trains linear autoencoders $\hat x = D E x$ without biases, with codes at least as large as the image, from several starts, and asks what the composed map $W = D E$ does to images that it was not trained on: test images, another data set, inverted images, crops of photographs, and uniform noise (lesson 11, whose equations are meant).
#
# The claim to be tested (LMU slides): *even a linear autoencoder can copy the input to the output without learning anything useful*. The rule, for each arm and seed: it **copies** if its error on uniform noise is below a tenth of that of the constant 0.5; it **copies the training's kind only** if its test error is below 0.001 but the former does not hold; else it copies neither. The identity by construction stands beside, untrained.
#
# All errors are mean squared errors over every pixel of every image, pixel values in [0, 1]. *on_span* and *off_span* are the distances of $W$ from the identity (11.7) on the span of the training images and on its complement, 0 for a copy, 1 for a map that answers nothing; *rank* is the dimension of the span. Rows with *epochs_trained* 0 are the starts.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name
limit: int | None = None  # at least 2: use the first so many training images
foreign: str = "fashion_mnist"  # another data set of the same image size; its columns stay empty where it is not on disk
sizes: list[int] = [784, 1000]  # at least 1: code sizes
starts: list[str] = ["independent", "transposed", "small", "orthogonal"]  # one of independent, transposed, small, orthogonal: starts
tie_weights: bool = True  # also train with tied weights, from every start that allows it
epochs: int = 20  # at least 1: passes over the training images
batch_size: int = 128  # at least 1: images a step
lr: float = 0.001  # above 0: Adam's learning rate
probes: int = 1000  # at least 2: foreign images, crops and noise images
seed: int = 0  # at least 0: fixes the start, the order of the images, crops and noise
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice
workers: int = 1  # at least 1: networks trained side by side on a processor, each in a process with one thread

# %%
from ae_course.lab import start

run = start("copying", globals())

# %% [markdown]
# ## Data

# %%
import torch

from ae_course.autoencoder import save_model
from ae_course.data import find, load
from ae_course.figures import curves, reconstruction_grid, show
from ae_course.training import fit_many, seeded
from ae_course.undercomplete import copier, distance_to_identity, photographs, span

# %%
if threads is not None:
    torch.set_num_threads(threads)
train, test = load(dataset, limit=limit), load(dataset, "test")
shape = tuple(train.x.shape[1:])
d = train.x[0].numel()
inside, outside = span(train)
kinds = {"train": train.pixels(), "test": test.pixels(), "foreign": None, "inverted": 1 - test.pixels(), "photographs": None}
kinds["noise"] = torch.rand(probes, *shape, generator=torch.Generator().manual_seed(seed))
if find(foreign) is not None:
    other = load(foreign, "test", limit=probes)
    kinds["foreign"] = other.pixels() if tuple(other.x.shape[1:]) == shape else None
if max(shape[1:]) <= 106:
    kinds["photographs"] = photographs(probes, shape[1:], seed).expand(-1, shape[0], -1, -1)
there = "not there, or of another size" if kinds["foreign"] is None else "there"
print(f"{inside.shape[1]} directions with data, {outside.shape[1]} without; {foreign}: {there}")

# %%
kinds = {kind: None if x is None else x.flatten(1).double() for kind, x in kinds.items()}  # (N, d)
noisy = kinds["noise"]


def measure(matrix):
    "The columns of a row for the composed map (d, d)."
    row = {f"{kind}_mse": None if x is None else (x @ matrix.T - x).square().mean().item() for kind, x in kinds.items()}
    answer = noisy @ matrix.T
    return row | {
        "noise_correlation": torch.corrcoef(torch.stack([answer.flatten(), noisy.flatten()]))[0, 1].item(),
        "constant_noise_mse": (noisy - 0.5).square().mean().item(),
        "on_span": distance_to_identity(matrix, inside),
        "off_span": distance_to_identity(matrix, outside) if outside.shape[1] else None,
        "rank": inside.shape[1],
    }


def composed(model):
    "W = D E (d, d), float64, on the CPU."
    encoder, decoder = (m.cpu() for m in model.matrices)
    return decoder @ encoder


def record(k, kind, tie, trained, matrix, seconds=None):
    "A row of the table."
    name = {"seed": seed, "latent_dim": k, "start": kind, "tied": tie, "epochs_trained": trained}
    return name | measure(matrix) | {"seconds": seconds}


widest = max(d, *sizes)
rows = [
    record(widest, "identity", True, 0, composed(copier(shape, widest, "identity"))),
    record(inside.shape[1], "projector", True, 0, inside @ inside.T),
]

# %% [markdown]
# ## Train

# %%
arms = [(k, kind, tie) for k in sizes for kind in starts for tie in (False, True) if not tie or (tie_weights and kind != "independent")]
maps = {}
together = run.together(arms, label="{} codes, {}, tied {}", cost=lambda arm: arm[0])
models = []
for arm in arms:
    with seeded(seed):
        models.append(copier(shape, *arm))
before = [composed(model) for model in models]
trained = fit_many(models, train, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, device=device, workers=workers,
                   checkpoint=together.checkpoints, progress=together.progress)  # fmt: skip
for (k, kind, tie), model, untrained, history in zip(arms, models, before, trained):
    rows.append(record(k, kind, tie, 0, untrained))
    matrix = composed(model)
    rows.append(record(k, kind, tie, epochs, matrix, sum(history["seconds"])))
    if k == sizes[0]:
        maps[kind + (", tied" if tie else "")] = matrix
    save_model(model.cpu(), run.path(f"model_{k}_{kind}{'_tied' if tie else ''}.safetensors"))

# %% [markdown]
# ## Figures
#
# The distance from a copy along each principal direction of the training images, the strongest first; and what the maps make of images of each kind.

# %%
basis = torch.cat([inside, outside], 1)
along = {label: (matrix @ basis - basis).norm(dim=0).clamp(min=1e-6).tolist() for label, matrix in maps.items()}
directions = curves(along, x="direction, strongest in the data first", y="distance from a copy", title=f"{sizes[0]} codes, seed {seed}",
                    alt="Distance of each trained map from the identity along the directions of the training images")  # fmt: skip
run.save(directions, "directions")
show(directions)

# %%
for kind, x in kinds.items():
    if x is None or kind == "train":
        continue
    x = x[:8]
    answers = {label: (x @ matrix.T).view(-1, *shape) for label, matrix in maps.items()}
    alt = f"Eight images ({kind}) and the answers of each trained map"
    grid = reconstruction_grid(x.view(-1, *shape), answers, clip=True, title=kind, alt=alt)
    run.save(grid, f"answers_{kind}")
    show(grid)

# %%
run.finish(rows)
