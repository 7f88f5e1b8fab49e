"The contractive autoencoder: every penalty and its gradient against torch.func, measures with known answers, bad input, files, training."

import itertools
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ae_course.autoencoder import Autoencoder, load_model, mlp, save_model
from ae_course.base import BadArgument
from ae_course.checks import NotRight, check
from ae_course.contractive import (
    ContractiveAutoencoder,
    bumps,
    closed_norm,
    effective_directions,
    exact_norm,
    gradient_variance,
    hutchinson_norm,
    jacobians,
    sensitivity,
    spread,
    tangent_share,
    tied,
)
from ae_course.denoising import DenoisingAutoencoder, gaussian
from ae_course.training import evaluate, fit, seeded


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def convolution(k=5):
    "A small convolutional encoder of (N, 1, 6, 6)."
    return nn.Sequential(nn.Conv2d(1, 3, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, k)).double()


def by_matrix(encoder, x):
    "The squared norm of each Jacobian, differentiable, by torch.func."
    one = torch.func.jacrev(lambda x_n: encoder(x_n[None])[0])
    return torch.func.vmap(one)(x).flatten(1).square().sum(1)


def gradient(norms, encoder):
    found = torch.autograd.grad(norms.mean(), list(encoder.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


# ---------------------------------------------------------------- the three norms


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
@pytest.mark.parametrize(("shape", "k"), [((1, 4, 5), 7), ((3, 2, 2), 1), ((1, 1, 3), 30)])
def test_closed_norm_and_gradient_are_those_of_the_matrix(shape, k, activation):
    with seeded(0):
        encoder = mlp(shape, (), k, code_activation=activation)[0].double()
    x = uniform(6, *shape)
    ours, theirs = closed_norm(encoder, encoder(x)), by_matrix(encoder, x)
    assert_close(ours, theirs, rtol=1e-10, atol=0)
    assert_close(gradient(ours, encoder), gradient(theirs, encoder), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "elu", "leaky_relu", "sigmoid", "tanh", "softplus", None])
@pytest.mark.parametrize("hidden", [(), (9,), (4, 11), (8, 6, 5)])
def test_exact_norm_and_gradient_are_those_of_the_matrix(hidden, activation):
    with seeded(1):
        encoder = mlp((1, 4, 5), hidden, 3, activation, "tanh")[0].double()
    x = uniform(4, 1, 4, 5)
    ours, theirs = exact_norm(encoder, x), by_matrix(encoder, x)
    assert_close(ours, theirs, rtol=1e-9, atol=0)
    assert_close(gradient(ours, encoder), gradient(theirs, encoder), rtol=1e-7, atol=1e-13)
    with torch.no_grad():
        assert_close(exact_norm(encoder, x), theirs.detach(), rtol=1e-9, atol=0)


def test_exact_norm_of_a_frozen_encoder_and_of_the_tied_one():
    encoder = mlp((1, 4, 5), (9,), 3, "tanh", "sigmoid")[0].double().requires_grad_(False)
    assert_close(exact_norm(encoder, uniform(4, 1, 4, 5)), by_matrix(encoder, uniform(4, 1, 4, 5)), rtol=1e-9, atol=0)
    for activation in ("sigmoid", "tanh"):
        encoder = tied((1, 4, 5), 6, activation)[0].double()
        x = uniform(3, 1, 4, 5)
        assert_close(exact_norm(encoder, x), closed_norm(encoder, encoder(x)), rtol=1e-10, atol=0)


@pytest.mark.parametrize("encoder", [convolution(5), mlp((1, 6, 6), (7,), 4, "tanh", "sigmoid")[0].double()], ids=["conv", "mlp"])
def test_hutchinson_draws_are_those_of_the_formula(encoder):
    x = uniform(3, 1, 6, 6)
    j = jacobians(encoder, x)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=j.shape[1])), dtype=torch.float64)
    every = (signs @ j).square().sum(-1)
    a = j @ j.mT
    assert_close(every.mean(1), by_matrix(encoder, x).detach(), rtol=1e-10, atol=0)
    assert_close(every.var(1, correction=0), 2 * (a.square().sum((1, 2)) - a.diagonal(dim1=1, dim2=2).square().sum(1)), rtol=1e-9, atol=0)
    with seeded(0):
        drawn = torch.stack([hutchinson_norm(encoder, x) for _ in range(40)]).detach()
    for n in range(len(x)):
        assert (every[n] - drawn[:, n, None]).abs().min(1).values.max() < 1e-9
        assert drawn[:, n].unique().numel() > 1


def test_hutchinson_is_unbiased_its_gradient_too():
    encoder, x = convolution(3), uniform(4, 1, 6, 6)
    with seeded(0):
        mean = gradient(hutchinson_norm(encoder, x, draws=3000), encoder)
    exact = gradient(by_matrix(encoder, x), encoder)
    assert (mean - exact).norm() < 0.05 * exact.norm()
    with seeded(0):
        single = gradient(hutchinson_norm(encoder, x), encoder)
    assert (single - exact).norm() > 0.05 * exact.norm()


def test_hutchinson_needs_no_gradient_mode():
    encoder, x = convolution(), uniform(2, 1, 6, 6)
    with torch.no_grad():
        value = hutchinson_norm(encoder, x, draws=2)
    assert not value.requires_grad and value.shape == (2,) and not x.requires_grad


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("penalty", ["closed", "exact", "hutchinson"])
def test_loss_terms_follow_the_reduction(penalty, reduction):
    networks = tied((1, 4, 5), 6) if penalty == "closed" else mlp((1, 4, 5), (7,), 6, "tanh")
    model = ContractiveAutoencoder(*networks, 0.25, penalty, draws=2, reduction=reduction).double()
    x = uniform(5, 1, 4, 5)
    with seeded(0):
        terms = model.loss_terms(x)
    with seeded(0):
        norm = hutchinson_norm(model.encoder, x, 2) if penalty == "hutchinson" else by_matrix(model.encoder, x)
    scale = 20 if reduction == "mean" else 1
    assert list(terms) == ["reconstruction", "contraction"]
    assert_close(terms["contraction"], 0.25 * norm.mean() / scale, rtol=1e-9, atol=0)
    assert_close(terms["reconstruction"], (model(x) - x).square().flatten(1).sum(1).mean() / scale, rtol=1e-9, atol=0)
    held_out = evaluate(model, x)
    assert math.isclose(held_out["reconstruction"], terms["reconstruction"].item(), rel_tol=1e-9)


def test_without_weight_it_is_the_plain_autoencoder():
    with seeded(0):
        model = ContractiveAutoencoder(*tied((1, 4, 5), 6), 0)
    plain, x = Autoencoder(model.encoder, model.decoder), torch.rand(5, 1, 4, 5)
    assert list(model.loss_terms(x)) == ["reconstruction"]
    assert torch.equal(model.loss_terms(x)["reconstruction"], plain.loss_terms(x)["reconstruction"])


def test_tied_is_one_matrix_and_survives_a_file(tmp_path):
    model = ContractiveAutoencoder(*tied((1, 4, 5), 6, "tanh", "linear"), 0.5, reduction="sum")
    assert sum(p.numel() for p in model.parameters()) == 20 * 6 + 6 + 20
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    x = torch.rand(3, 1, 4, 5)
    assert torch.equal(again(x), model(x)) and (again.weight, again.penalty, again.reduction) == (0.5, "closed", "sum")
    with torch.no_grad():
        again.encoder[1].weight.zero_()
    assert again.decoder[0].weight.abs().max() == 0


@pytest.mark.parametrize(("options", "words"), [
    ({"weight": -0.1}, ["weight", "-0.1", "at least 0"]),
    ({"weight": math.inf}, ["weight", "inf"]),
    ({"weight": math.nan}, ["weight", "nan"]),
    ({"weight": True}, ["weight", "True"]),
    ({"penalty": "frobenius"}, ["penalty", "frobenius", "closed, exact, hutchinson"]),
    ({"draws": 0}, ["draws", "0", "at least 1"]),
    ({"draws": 1.5}, ["draws", "1.5"]),
])  # fmt: skip
def test_bad_arguments(options, words):
    with pytest.raises(BadArgument) as error:
        ContractiveAutoencoder(*tied((1, 4, 5), 6), **{"weight": 0.1} | options)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(("encoder", "penalty", "words"), [
    (mlp((1, 6, 6), (7,), 4)[0], "closed", ["closed", "Linear, ReLU, Linear", "one Linear and a Sigmoid or Tanh"]),
    (mlp((1, 6, 6), (), 4, code_activation="relu")[0], "closed", ["closed", "Linear, ReLU"]),
    (mlp((1, 6, 6), (), 4)[0], "closed", ["closed", "Linear;"]),
    (convolution(), "exact", ["exact", "Conv2d", "hutchinson"]),
    (nn.Sequential(nn.Flatten()), "exact", ["exact"]),
])  # fmt: skip
def test_a_penalty_that_an_encoder_has_not_is_refused_when_it_is_built(encoder, penalty, words):
    with pytest.raises(BadArgument) as error:
        ContractiveAutoencoder(encoder, nn.Identity(), 0.1, penalty)
    assert all(word in str(error.value) for word in words)
    ContractiveAutoencoder(encoder, nn.Identity(), 0.1, "hutchinson")


@pytest.mark.parametrize("options", [{"shape": (0, 2)}, {"latent_dim": 0}, {"code_activation": "step"}, {"output": "step"}])
def test_tied_refuses(options):
    with pytest.raises(BadArgument, match=next(iter(options))):
        tied(**options)


@pytest.mark.parametrize("penalty", ["closed", "exact", "hutchinson"])
def test_training_lowers_the_penalty_and_pays_in_reconstruction(penalty):
    x = bumps(4 + 4 * torch.rand(200, 2, generator=torch.Generator().manual_seed(0)), size=12)
    found = {}
    for weight in (0.0, 10.0):
        with seeded(0):
            model = ContractiveAutoencoder(*tied((1, 12, 12), 16), weight, penalty)
        history = fit(model, x, epochs=30, batch_size=50, lr=1e-2, progress=False, device="cpu")
        with torch.no_grad():
            found[weight] = closed_norm(model.encoder, model.encode(x)).mean().item(), evaluate(model, x)["reconstruction"]
    assert history["loss"][-1] < history["loss"][0]
    assert found[10.0][0] < found[0.0][0] / 2 and found[10.0][1] > found[0.0][1]


def test_lbfgs_on_all_images_lowers_the_loss():
    x = bumps(4 + 4 * torch.rand(60, 2, generator=torch.Generator().manual_seed(0)), size=12)
    with seeded(0):
        model = ContractiveAutoencoder(*tied((1, 12, 12), 8), 0.1)
    history = fit(model, x, epochs=4, batch_size=None, optimizer="lbfgs", progress=False, device="cpu")
    assert history["loss"] == sorted(history["loss"], reverse=True) and history["loss"][-1] < history["loss"][0] / 2


# ---------------------------------------------------------------- measures


def test_jacobians_of_a_known_map():
    points = uniform(130, 2)  # more than one chunk
    found = jacobians(lambda p: torch.stack([p[:, 0] * p[:, 1], p[:, 0] ** 2, p.sum(1)], 1), points)
    one = torch.ones(130, dtype=torch.float64)
    wanted = [points[:, 1], points[:, 0], 2 * points[:, 0], 0 * one, one, one]
    assert_close(found, torch.stack(wanted, 1).view(130, 3, 2))


def test_effective_directions_count():
    for values in ([1.0, 1, 1], [2.0, 0, 0], [3.0, 1, 0]):
        sigma = torch.tensor(values, dtype=torch.float64)
        u, v = (torch.linalg.qr(torch.randn(1, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n))).Q for n in (4, 9))
        j = u * sigma @ v.mT
        wanted = sigma.square().sum() ** 2 / sigma.pow(4).sum()
        for matrix in (j, j.mT, 7 * j):
            assert_close(effective_directions(matrix), wanted[None])


def test_tangent_share_of_all_some_and_none():
    q = torch.linalg.qr(torch.randn(1, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    j = (q[:, :, :3] * torch.tensor([2.0, 1, 1], dtype=torch.float64)).mT  # rows along three of nine directions
    for columns, wanted in (([0, 1, 2], 1.0), ([0], 4 / 6), ([1, 5], 1 / 6), ([5, 6], 0.0)):
        basis = q[:, :, columns] @ (torch.eye(len(columns), dtype=torch.float64) + 0.3)  # any basis of the span
        assert_close(tangent_share(j, basis), torch.tensor([wanted], dtype=torch.float64), atol=1e-12, rtol=1e-9)


def test_spread_is_the_distance_between_pairs():
    x = uniform(40, 3, 2)
    assert_close(spread(x), torch.pdist(x.flatten(1)).square().mean().sqrt())
    assert_close(spread(5 * x + 1), 5 * spread(x))


def test_sensitivity_tends_to_the_jacobian():
    with seeded(0):
        model = Autoencoder(*mlp((1, 6, 6), (9,), 4, "tanh", "sigmoid")).double()
    x = uniform(400, 1, 6, 6)
    change = sensitivity(model, x, 1e-4)
    for got, f in ((change.code, model.encode), (change.reconstruction, model)):
        norm = jacobians(f, x).square().sum((1, 2)).mean().sqrt()
        assert math.isclose(got, 1e-4 * norm / spread(f(x).detach()), rel_tol=0.05)
    assert sensitivity(model, x, 1e-4) == change != sensitivity(model, x, 1e-4, seed=1)


def test_the_gradient_of_the_penalty_is_deterministic_that_of_noise_is_not():
    x = torch.rand(20, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    with seeded(0):
        models = [ContractiveAutoencoder(*tied((1, 4, 5), 6), 0.1), DenoisingAutoencoder(*tied((1, 4, 5), 6), gaussian(0.3)),
                  ContractiveAutoencoder(*tied((1, 4, 5), 6), 10.0, "hutchinson")]  # fmt: skip
    assert gradient_variance(models[0].eval(), x) == 0 and not models[0].training
    noise = gradient_variance(models[1], x)
    assert noise > 1e-6 and noise == gradient_variance(models[1], x) and gradient_variance(models[2], x) > 1e-6


def test_bumps_and_their_tangents():
    centre = 4 + 8 * uniform(5, 2)
    images = bumps(centre)
    assert images.shape == (5, 1, 16, 16) and images.dtype == torch.float64 and images.max() <= 1
    row, column = (images[0, 0] == images[0, 0].max()).nonzero()[0].tolist()
    assert (row, column) == tuple(centre[0].round().int().tolist())
    step = 1e-6 * torch.tensor([1.0, 0.0], dtype=torch.float64)
    by_difference = (bumps(centre + step) - bumps(centre - step)).flatten(1) / 2e-6
    assert_close(jacobians(bumps, centre)[:, :, 0], by_difference, rtol=1e-5, atol=1e-8)


# ---------------------------------------------------------------- exercises: each planted mistake gets the message made for it


def draws(j, error, spread=lambda a: 2 * (a.square().sum() - a.diagonal().square().sum())):
    a = j @ j.T
    return max(1, math.ceil((spread(a) / (error * a.trace()) ** 2).item()))


@pytest.mark.parametrize(("number", "answers", "said"), [
    ("22.1", [lambda w, z: (z * (1 - z)).square() @ w.square().sum(1)], "sigmoid's slope"),
    ("22.1", [lambda w, z: (1 - torch.exp(-z)) @ w.square().sum(1)], "slope has to be squared"),
    ("22.1", [lambda w, z: ((1 - torch.exp(-z)).square() * w.square().sum(1)).mean(1)], "mean over units"),
    ("22.2", [lambda r, p, c: r + p / c, lambda r, p: r], "a sum of squares"),
    ("22.2", [lambda r, p, c: r + p * c**2, lambda r, p: r], "divided by c, not multiplied"),
    ("22.2", [lambda r, p, c: r + p / c**2, lambda r, p: r + p], "the loss at c = 1"),
    ("22.3", [lambda j, e: draws(j, e, lambda a: 2 * a.square().sum())], "Gaussian"),
    ("22.3", [lambda j, e: draws(j.T, e)], "k rows"),
    ("22.4", [lambda j, n: torch.linalg.svd(j).Vh[:n]], "reacts most"),
    ("22.4", [lambda j, n: torch.eye(j.shape[1], dtype=j.dtype)[-n:]], "still reacts"),
])  # fmt: skip
def test_a_planted_mistake_gets_its_own_message(number, answers, said):
    with pytest.raises(NotRight, match=said):
        check(number, *answers)
