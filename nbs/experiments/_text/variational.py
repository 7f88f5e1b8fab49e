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
# # The variational autoencoder
#
# > One draw or ten, one bound or a nearer one, what a weight hides, when a code falls silent, and what beta does to it

# %% [markdown]
# Tests five statements of the survey by Bank, Koenigstein and Giryes (Sections 3.1 to 3.3): one draw an image is enough if the batch is large; the importance-weighted bound comes nearer to the likelihood as its draws grow; Equation 15 is the Gaussian bound for one value of $c$; the larger
# $\beta$, the less correlated and the more disentangled the code; and one of the LMU slides: certain directions of the code are factors of variation. Lesson [40](../40_variational.ipynb) explains the models and every measure.
#
# One row a trained network or an estimate. All likelihoods, bounds, rates and distortions are in nats an image, on test images, sums over pixels and code; `test_elbo` is minus distortion minus rate (beta = 1), whatever the training's loss was. The studies:
#
# - `samples`: the VAE with batches of `M` images and `L` draws each, equal epochs. `reduction`: means in place of sums, with the beta that they hide.
# - `importance`: a linear VAE, trained; its bounds of `k` draws minus its exact log likelihood, on the first test images. `annealing`: the same for annealed importance sampling, from the prior and from the encoder's guess (`start`), on the first 40 of them.
# - `equality`: the largest difference between Equation 15 with $c = 1/(2\sigma^2)$ and minus the Gaussian bound without its constant, in float64. `variance`: training for several `c`.
# - `collapse`: two hidden layers and a large beta on pictures of rectangles; plain, with a warm-up, with free bits; `objective` is the loss at its full weight.
# - `beta`: pictures of rectangles, whose five factors are known, scored at matched distortion: the largest beta trains to the end, the others stop after the first epoch whose training distortion is as low. `beta, trained`: the same models after equally many epochs. Correlation, MIG and DCI are of the active units.
# - `directions`: the largest absolute correlation of a direction of the code with a factor, mean over factors, on test images; principal directions of the codes of training images, single units, and as many random ones. `directions, plain`: an autoencoder without variation.
# - `pictures`: sharpness (power above a quarter of a cycle a pixel, over that of the test images) of reconstructions, of decoded midpoints between codes, and of draws from the prior; and the squared distance of midpoints to the nearest training image, over that of test images.

# %% tags=["parameters"]
dataset: str = "mnist5k"  # data set, by name
limit: int | None = None  # at least 200: use the first so many training images
test_limit: int | None = None  # at least 60: use the first so many test images
width: int = 256  # at least 1: units of a hidden layer
latent_dim: int = 16  # at least 2: code size for the data set
epochs: int = 15  # at least 1: passes over its training images
lr: float = 0.002  # above 0: Adam's learning rate there
batch_sizes: list[int] = [100, 20]  # at least 1: batch sizes of the study of draws; the first is that of all other studies
draw_counts: list[int] = [1, 10]  # at least 1: draws an image of that study
importance_counts: list[int] = [1, 5, 50]  # at least 1: draws of the importance-weighted bounds, each a divisor of 5000
iwae_k: int = 5  # at least 1: draws of the importance-weighted autoencoder
annealing_steps: int = 300  # at least 1: stations of annealed importance sampling
weights: list[float] = [0.5, 2.0, 10.0, 50.0]  # above 0: values of c, the weight of the squared error
betas: list[float] = [1.0, 2.0, 4.0, 8.0]  # above 0: weights of the rate on rectangles
shapes_limit: int = 4000  # at least 200: pictures of rectangles to train on
shapes_dim: int = 10  # at least 5: code size for them
shapes_epochs: int = 30  # at least 1: passes over them
shapes_lr: float = 0.001  # above 0: Adam's learning rate there
collapse_beta: float = 16.0  # above 0: weight of the rate in the study of collapse
free_bits: float = 0.5  # at least 0: nats of a unit that are free there
seed: int = 0  # at least 0: fixes the starts, the order of the images, and all noise
device: str = "auto"  # one of auto, cpu, cuda, mps: where to train
threads: int | None = None  # at least 1: processor threads; none takes PyTorch's choice

# %%
from ae_course.lab import start

run = start("variational", globals())

# %% [markdown]
# ## Data

# %%
import math

import torch

from ae_course.autoencoder import Autoencoder, mlp
from ae_course.data import FACTORS, load
from ae_course.figures import curves, dots, image_grid, reconstruction_grid
from ae_course.linear import PCA
from ae_course.metrics import mean_correlation, radial_spectrum
from ae_course.training import Diverged, fit, seeded
from ae_course.variational import (
    IWAE, VAE, ProbabilisticPCA, active_units, annealed_log_likelihood, attribute_correlation, dci, elbo, importance_bound, log_weights,
    mig, quadratic_loss, traverse, variational_linear, variational_mlp,
)  # fmt: skip

# %%
if threads is not None:
    torch.set_num_threads(threads)
train, test = load(dataset, limit=limit), load(dataset, "test", limit=test_limit)
boxes, boxes_test = load("shapes", limit=shapes_limit), load("shapes", "test", limit=test_limit)
factors = torch.stack([boxes_test.extras[name] for name in FACTORS], 1)
x_test, x_boxes = test.pixels(), boxes_test.pixels()
shape, box, M = tuple(train.x.shape[1:]), tuple(boxes.x.shape[1:]), batch_sizes[0]
exact = ProbabilisticPCA.fit(train.pixels(), latent_dim)
train, boxes


# %% [markdown]
# ## Train

# %%
def build(family, options, images, k, layers=1):
    "A model from the start that `seed` fixes."
    with seeded(seed):
        if family is Autoencoder:
            return Autoencoder(*mlp(images, (width,) * layers, k), "bce", "sum")
        if options.get("linear"):
            model = VAE(*variational_linear(images, k), reconstruction="gaussian", sigma=exact.sigma)
            with torch.no_grad():
                model.decoder[0].bias.copy_(exact.mean)
            return model
        return family(*variational_mlp(images, (width,) * layers, k), **options)


digits = {"data": train, "k": latent_dim, "epochs": epochs, "lr": lr, "batch_size": M}
rectangles = {"data": boxes, "k": shapes_dim, "epochs": shapes_epochs, "lr": shapes_lr, "batch_size": M}
steps = shapes_epochs * math.ceil(len(boxes) / M)
plans = {}  # label -> (family, its options, data and training)
for size in batch_sizes:
    for L in draw_counts:
        plans[f"samples, M {size}, L {L}"] = VAE, {"samples": L}, digits | {"batch_size": size}
for pixels, code in (("sum", "mean"), ("mean", "mean"), ("mean", "sum")):
    plans[f"reduction, {pixels} and {code}"] = VAE, {"reduction": pixels, "kl_reduction": code}, digits
plans["importance, iwae"] = IWAE, {"k": iwae_k}, digits
plans["importance, linear"] = VAE, {"linear": True}, digits | {"epochs": 4 * epochs, "lr": 0.005}
for c in weights:
    plans[f"variance, c {c:g}"] = VAE, {"reconstruction": "gaussian", "sigma": math.sqrt(1 / (2 * c))}, digits
plans["pictures, plain"] = Autoencoder, {}, digits
cures = {"plain": {}, "warm-up": {"warmup": int(0.8 * steps)}, "free bits": {"free_bits": free_bits}}
for name, cure in cures.items():
    plans[f"collapse, {name}"] = VAE, {"beta": collapse_beta, **cure}, rectangles | {"layers": 2}
for beta in sorted(betas, reverse=True):
    plans[f"beta, {beta:g}"] = VAE, {"beta": beta}, rectangles
plans["directions, plain"] = Autoencoder, {}, rectangles
list(plans)

# %%
models, histories, ended = {}, {}, {}


def cost(label):
    "About how much work a training is, for the progress bar."
    family, options, plan = plans[label]
    draws = options.get("samples", options.get("k", 1) if family is IWAE else 1)
    work = len(plan["data"]) * plan["epochs"] * (1 + draws) * (1 if plan["data"] is train else 1.3) * plan.get("layers", 1)
    return 0.1 * work if options.get("linear") else work


for label, stage in run.stages(plans, cost=cost):
    family, options, plan = plans[label]
    plan = dict(plan)
    data, k, layers = plan.pop("data"), plan.pop("k"), plan.pop("layers", 1)
    model = build(family, options, tuple(data.x.shape[1:]), k, layers)
    try:
        histories[label] = fit(model, data, seed=seed, device=device, progress=stage.progress, checkpoint=stage.checkpoint, **plan)
        ended[label] = False
    except Diverged as error:  # the last finite epoch is kept, and measured
        print(f"{label}: {error}")
        ended[label] = True
    models[label] = model.cpu()

# %% [markdown]
# At matched distortion: the level is what the largest $\beta$ has reached at its end. The others are trained once more, from the same start in the same order, to the first epoch at that level.

# %%
top = f"beta, {max(betas):g}"
level, matched, taken = histories[top]["reconstruction"][-1], {}, {}
for beta in betas:
    label = f"beta, {beta:g}"
    reached = [e + 1 for e, value in enumerate(histories[label]["reconstruction"]) if value <= level]
    taken[beta] = reached[0] if reached else shapes_epochs
for beta, stage in run.stages(betas, label="matched, beta {}", cost=lambda beta: taken[beta]):
    matched[beta] = build(VAE, {"beta": beta}, box, shapes_dim)
    again = {key: rectangles[key] for key in ("lr", "batch_size")}
    fit(matched[beta], boxes, epochs=taken[beta], seed=seed, device=device, progress=stage.progress, checkpoint=stage.checkpoint, **again)
    matched[beta].cpu()

# %% [markdown]
# ## Measure

# %%
columns = """study model M L k reduction implied_beta start c beta direction test_elbo rate distortion active_units bound_minus_exact
    objective_difference objective mse active_correlation mig dci completeness informativeness epochs_taken attribute_correlation
    sharpness sharpness_midpoint sharpness_sample midpoint_distance diverged seconds"""
blank, rows = dict.fromkeys(columns.split()), []


def add(study, label=None, **values):
    "A row; of a trained model also its seconds."
    row = {"seed": seed} | blank | {"study": study}
    if label in histories:
        row |= {"seconds": round(sum(histories[label]["seconds"]), 2), "diverged": ended[label]}
    rows.append(row | values)


@torch.no_grad()
def bound(model, x):
    "Test bound, its two parts, and active units."
    q = model.posterior(x)
    value, rate = elbo(model, x, 10, seed).mean().item(), q.kl().sum(1).mean().item()
    return {"test_elbo": value, "rate": rate, "distortion": -value - rate, "active_units": int(active_units(q.mu).sum())}


for label, (_, _, plan) in plans.items():
    study, model = label.split(",")[0], models[label]
    if study in ("samples", "reduction"):
        values = {"M": plan["batch_size"], "L": model.samples, "implied_beta": model.implied_beta(math.prod(shape), latent_dim)}
        if study == "reduction":
            values["reduction"] = f"{model.reduction}, {model.kl_reduction}"
        add(study, label, model="vae", **values, **bound(model, x_test))
    if study == "variance":
        found = bound(model, x_test)
        with torch.no_grad():
            mse = (model(x_test) - x_test).square().mean().item()
        add(study, label, model="vae", c=round(1 / (2 * model.sigma**2), 6), mse=mse, **found)
    if study == "collapse":
        found = bound(model, x_boxes)
        add(study, label, model=label.split(", ")[1], beta=model.beta, objective=found["distortion"] + model.beta * found["rate"], **found)
first = f"samples, M {M}, L {draw_counts[0]}"
add("reduction", first, model="vae", M=M, L=draw_counts[0], reduction="sum, sum", implied_beta=1.0, **bound(models[first], x_test))

# %% [markdown]
# The bounds of the linear VAE, whose likelihood is known, and of the two networks, whose likelihood is not.

# %%
few, linear_vae = x_test[:200].double(), models["importance, linear"].double()
known = ProbabilisticPCA.of(linear_vae).log_prob(few)
log_w = log_weights(linear_vae, few, 5000, seed)
for k in importance_counts:
    add("importance", "importance, linear", model="linear", k=k, bound_minus_exact=(importance_bound(log_w, k) - known).mean().item())
add("annealing", model="importance weights", k=5000, bound_minus_exact=(importance_bound(log_w) - known).mean().item())
for beginning in ("prior", "posterior"):
    found = annealed_log_likelihood(linear_vae, few[:40], annealing_steps, chains=10, start=beginning, seed=seed)
    add("annealing", model="annealing", start=beginning, bound_minus_exact=(found - known[:40]).mean().item())
for name, label in (("vae", first), ("iwae", "importance, iwae")):
    log_w = log_weights(models[label], x_test[:100], 500, seed)
    for k in (1, 5, 50, 500):
        add("networks", label, model=name, k=k, test_elbo=importance_bound(log_w, k).mean().item())
for c in weights:
    sigma = math.sqrt(1 / (2 * c))
    with seeded(seed):
        model = VAE(*variational_mlp(shape, (width,), latent_dim), reconstruction="gaussian", sigma=sigma).double()
    x = x_test[:100].double()
    with torch.no_grad(), seeded(seed):
        z = model.posterior(x).rsample(2)
        negative = model.posterior(x).kl().sum(1) - model.log_likelihood(x, z).mean(0)
        constant = math.prod(shape) / 2 * math.log(2 * math.pi * sigma**2)
        difference = (quadratic_loss(model, x, z, c) - (negative - constant)).abs().max().item()
    add("equality", model="vae", c=c, objective_difference=difference)


# %% [markdown]
# Codes of rectangles against their factors.

# %%
def scores(model):
    "How correlated and how disentangled the active units are."
    with torch.no_grad():
        z = model.encode(x_boxes)
    kept = z[:, active_units(z)]
    if kept.shape[1] < 2:
        return {"active_correlation": None, "mig": None, "dci": None}
    parts = dci(kept, factors, seed=seed)
    return {"active_correlation": mean_correlation(kept), "mig": mig(kept, factors), "dci": parts.disentanglement,
            "completeness": parts.completeness, "informativeness": parts.informativeness}  # fmt: skip


for beta in betas:
    label = f"beta, {beta:g}"
    add("beta", model="vae", beta=beta, epochs_taken=taken[beta], **bound(matched[beta], x_boxes), **scores(matched[beta]))
    full = bound(models[label], x_boxes) | scores(models[label])
    add("beta, trained", label, model="vae", beta=beta, epochs_taken=shapes_epochs, **full)

pixels = boxes.pixels()
for study, label in (("directions", f"beta, {min(betas):g}"), ("directions, plain", "directions, plain")):
    with torch.no_grad():
        z, z_test = models[label].encode(pixels), models[label].encode(x_boxes)
    with seeded(seed):
        random = torch.randn(shapes_dim, shapes_dim)
    principal = PCA(shapes_dim).fit(z).components
    for name, directions in (("principal", principal), ("units", torch.eye(shapes_dim)), ("random", random)):
        best = attribute_correlation(z_test, factors, directions).amax(0).mean().item()
        add(study, label, model="vae" if study == "directions" else "autoencoder", direction=name, attribute_correlation=best)


# %% [markdown]
# Pictures: how sharp, and how near to real ones.

# %%
def high(images):
    "Mean power above a quarter of a cycle a pixel."
    frequency, power, count = radial_spectrum(images)
    ring = frequency > 0.25
    return (power[:, ring] @ count[ring].to(power)).mean().item()


def nearest(images):
    "Mean squared distance to the nearest training image, over pixels; by products (5.7a), as no image is nearly another."
    return torch.cdist(images.flatten(1), train.pixels().flatten(1)).min(1).values.square().mean().item() / math.prod(shape)


half = len(x_test) // 2
for name, label in (("vae", first), ("iwae", "importance, iwae"), ("autoencoder", "pictures, plain")):
    model = models[label]
    with torch.no_grad(), seeded(seed):
        z = model.encode(x_test)
        middle = model.decode((z[:half] + z[half : 2 * half]) / 2)
        sampled = None if name == "autoencoder" else model.decode(torch.randn(half, latent_dim))
        add("pictures", label, model=name, sharpness=high(model(x_test)) / high(x_test), sharpness_midpoint=high(middle) / high(x_test),
            sharpness_sample=None if sampled is None else high(sampled) / high(x_test),
            midpoint_distance=nearest(middle) / nearest(x_test[:half]))  # fmt: skip

# %% [markdown]
# ## Figures

# %%
find = lambda **wanted: [r for r in rows if all(r[k] == v for k, v in wanted.items())]
title, shown = f"{dataset}, code of {latent_dim}, seed {seed}", x_test[:8]
with torch.no_grad(), seeded(seed):
    grid = {"VAE": models[first](shown), "VAE, a draw": models[first].decode(models[first].posterior(shown).rsample()[0]),
            "IWAE": models["importance, iwae"](shown), "plain": models["pictures, plain"](shown),
            "hidden beta": models["reduction, mean and sum"](shown)}  # fmt: skip
    prior = torch.randn(20, latent_dim)
    samples = {name: models[label].decode(prior[:10]) for name, label in (("VAE", first), ("IWAE", "importance, iwae"))}
    line = torch.linspace(0, 1, 8)
    between = {}
    for name, label in (("VAE", first), ("plain", "pictures, plain")):
        start_code, end_code = models[label].encode(x_test[:2])
        between[name] = models[label].decode(traverse(start_code, end_code - start_code, line))
alt = "Test digits and their reconstructions, a row a model"
run.save(reconstruction_grid(shown, grid, title=title, clip=True, alt=alt), "reconstructions")
run.save(image_grid(samples, title=title, clip=True, alt="Ten decoded draws from the prior, VAE and IWAE"), "samples")
run.save(image_grid(between, title=title, clip=True, alt="From one test digit to another along a line between codes"), "interpolation")

# %%
gaps = {f"k = {r['k']}": r["bound_minus_exact"] for r in find(study="importance") + find(study="annealing", k=5000)}
gaps |= {f"annealing from the {r['start']}": r["bound_minus_exact"] for r in find(study="annealing", model="annealing")}
run.save(dots(gaps, x="estimate minus exact log likelihood, nats", reference=0, title=f"linear VAE, {title}",
              alt="Bounds and annealed estimates of a linear VAE's log likelihood, minus the exact value"), "likelihood")  # fmt: skip
trained, named = find(study="beta, trained"), {"MIG": "mig", "DCI": "dci", "correlation": "active_correlation"}
lines = {name: (betas, [r[column] for r in trained]) for name, column in named.items()}
if all(value is not None for _, values in lines.values() for value in values):  # at smoke no unit may be active
    run.save(curves(lines, x="beta", y="", log=False, log_x=True, y_range=(0, 1), title=f"rectangles, fully trained, seed {seed}",
                    alt="MIG, DCI and correlation of active units against beta"), "beta")  # fmt: skip
loss = {r["model"]: r["objective"] for r in find(study="collapse")}
run.save(dots(loss, x="distortion + beta * rate, nats", title=f"rectangles, beta {collapse_beta:g}, seed {seed}",
              alt="The training objective of the three ways to train against collapse"), "collapse")  # fmt: skip

# %%
with torch.no_grad():
    model = models[f"beta, {max(betas):g}"]
    z = model.encode(pixels)
    order = z.var(0).argsort(descending=True)
    walks = {f"unit {u + 1}": model.decode(traverse(z[0], torch.eye(shapes_dim)[u], torch.linspace(-2, 2, 9) - z[0, u]))
             for u in order[:6].tolist()}  # fmt: skip
run.save(image_grid(walks, title=f"rectangles, beta {max(betas):g}, seed {seed}", clip=True,
                    alt="Traversals of the six units of largest variance, from -2 to 2"), "traversal")  # fmt: skip

# %%
run.finish(rows)
