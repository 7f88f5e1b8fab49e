"The sparse autoencoder: penalties and gradients against autograd and torch.distributions, reductions, the dodge, columns, bad input."

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Exponential, kl_divergence
from torch.func import grad
from torch.testing import assert_close

from ae_course.autoencoder import CheckpointError, load_model, mlp, save_model
from ae_course.base import BadArgument
from ae_course.metrics import hoyer, inactive_share
from ae_course.sparse import EPS, SparseAutoencoder, dictionary, kl_bernoulli, kl_exponential, l1_penalty
from ae_course.training import evaluate, fit, seeded


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def model_of(activation="relu", columns="unit", latent_dim=6, shape=(1, 4, 4), seed=0, **options):
    with seeded(seed):
        return SparseAutoencoder(*dictionary(shape, latent_dim, activation, columns), **options)


SHAPES = [(1, 1), (5, 3), (4, 2, 3, 3)]

# ---------------------------------------------------------------- penalties


@pytest.mark.parametrize("shape", SHAPES)
def test_l1_sums_over_units_and_averages_over_images(shape):
    z = normal(*shape)
    assert_close(l1_penalty(z), z.abs().sum() / shape[0])
    assert_close(grad(l1_penalty)(z), z.sign() / shape[0])
    assert_close(l1_penalty(torch.cat([z, z])), l1_penalty(z))  # twice the images, the same
    assert_close(l1_penalty(torch.cat([z, z], 1)), 2 * l1_penalty(z))  # twice the units, twice as much


def test_l1_has_no_gradient_at_zero():
    assert grad(l1_penalty)(torch.zeros(2, 3)).abs().max() == 0


@pytest.mark.parametrize("p", [0.01, 0.5, 0.97])
@pytest.mark.parametrize("shape", SHAPES)
def test_quota_of_coins(p, shape):
    a = normal(*shape).sigmoid()
    total = lambda a: kl_bernoulli(p, a.flatten(1).mean(0)).sum()
    p_hat = a.flatten(1).mean(0)
    reference = kl_divergence(Bernoulli(torch.tensor(p, dtype=torch.float64)), Bernoulli(p_hat)).sum()
    assert_close(total(a), reference, rtol=1e-6, atol=1e-9)
    closed = ((p_hat - p) / (p_hat * (1 - p_hat)) / len(a)).expand(len(a), -1).reshape(shape)
    assert_close(grad(total)(a), closed)
    u = a.logit()
    assert_close(grad(lambda u: total(u.sigmoid()))(u), closed * a * (1 - a))


@pytest.mark.parametrize("p", [0.01, 0.5, 7.0])
def test_quota_of_exponentials(p):
    means = normal(9).exp()
    reference = kl_divergence(Exponential(torch.tensor(1 / p, dtype=torch.float64)), Exponential(1 / means))
    assert_close(kl_exponential(p, means), reference, rtol=1e-9, atol=1e-12)
    assert_close(grad(lambda m: kl_exponential(p, m).sum())(means), (means - p) / means**2)


@pytest.mark.parametrize(("divergence", "p"), [(kl_bernoulli, 0.05), (kl_exponential, 0.05)])
def test_quotas_are_zero_on_target_and_finite_at_the_ends(divergence, p):
    assert abs(divergence(p, torch.tensor(p, dtype=torch.float64)).item()) < 1e-12
    ends = torch.tensor([0.0, EPS / 2, 1.0])
    assert divergence(p, ends).isfinite().all() and (divergence(p, ends) > 0).all()
    assert_close(grad(lambda q: divergence(p, q).sum())(ends)[:2], torch.zeros(2))  # clamped: flat
    assert divergence(p, torch.tensor(0.0)) == divergence(p, torch.tensor(EPS))


def test_a_stuck_sigmoid_is_pulled_back():
    u = torch.tensor([-10.0, 0.0, 10.0], dtype=torch.float64)  # within the clamp
    assert_close(grad(lambda u: kl_bernoulli(0.05, u.sigmoid()).sum())(u), u.sigmoid() - 0.05)


def test_a_batch_overstates_the_quota():
    a = normal(64, 5).sigmoid()
    whole = kl_bernoulli(0.1, a.mean(0)).sum()
    parts = torch.stack([kl_bernoulli(0.1, part.mean(0)).sum() for part in a.split(8)]).mean()
    single = kl_bernoulli(0.1, a).sum(1).mean()
    assert single > parts > whole


# ---------------------------------------------------------------- the family


def test_terms_are_error_and_weighted_penalty():
    x = normal(5, 1, 4, 4).sigmoid().float()
    for options, penalty in (
        ({"penalty": "l1"}, l1_penalty),
        ({"penalty": "kl_exponential", "target": 0.3}, lambda z: kl_exponential(0.3, z.mean(0)).sum()),
    ):
        model = model_of(weight=0.7, reduction="sum", **options)
        terms = model.loss_terms(x)
        assert list(terms) == ["reconstruction", "sparsity"]
        assert_close(terms["reconstruction"], (model(x) - x).square().flatten(1).sum(1).mean())
        assert_close(terms["sparsity"], 0.7 * penalty(model.encode(x)))
    model = model_of("sigmoid", weight=2.0, penalty="kl", target=0.1, reduction="mean")
    assert_close(model.loss_terms(x)["sparsity"], 2 * kl_bernoulli(0.1, model.encode(x).mean(0)).sum() / 16)
    assert_close(model.loss_terms(x)["reconstruction"], (model(x) - x).square().mean())


@pytest.mark.parametrize("options", [{"penalty": "l1"}, {"penalty": "kl", "target": 0.1}])
def test_the_weight_means_the_same_under_both_reductions(options):
    x, gradients = normal(5, 1, 4, 4).float(), []
    for reduction in ("sum", "mean"):
        model = model_of("sigmoid", weight=0.5, reduction=reduction, **options)
        sum(model.loss_terms(x).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for by_sum, by_mean in zip(*gradients, strict=True):
        assert_close(by_sum / 16, by_mean, rtol=1e-4, atol=1e-6)


def test_half_precision_codes_are_averaged_in_single():
    model = model_of("sigmoid", weight=1.0, penalty="kl", target=0.05)
    z = torch.full((3, 4), 0.05, dtype=torch.bfloat16)
    assert model.sparsity(z).dtype == torch.float32
    assert model.sparsity(torch.ones(3, 4, dtype=torch.bfloat16)).isfinite()


def test_corruption_of_a_subclass_is_shown_to_the_encoder():
    class Dark(SparseAutoencoder):
        def corrupt(self, x):
            return torch.zeros_like(x)

    with seeded(0):
        model = Dark(*dictionary((1, 4, 4), 6), 1.0)
    x = torch.rand(3, 1, 4, 4)
    assert_close(model.train().loss_terms(x)["sparsity"], l1_penalty(model.encode(torch.zeros_like(x))) / 16)
    assert_close(model.eval().loss_terms(x)["sparsity"], l1_penalty(model.encode(x)) / 16)


@pytest.mark.parametrize(
    ("activation", "options", "says"),
    [
        ("relu", {"weight": -0.1}, "weight: got -0.1, expected a finite number of at least 0"),
        ("relu", {"weight": math.nan}, "weight"),
        ("relu", {"weight": True}, "weight"),
        ("relu", {"weight": "1"}, "weight"),
        ("relu", {"weight": 1, "penalty": "l2"}, "penalty: got 'l2', expected one of l1, kl, kl_exponential"),
        ("relu", {"weight": 1, "target": 0.1}, "target: got 0.1 for penalty 'l1', expected no target"),
        ("sigmoid", {"weight": 1, "penalty": "kl"}, "target: got None"),
        ("sigmoid", {"weight": 1, "penalty": "kl", "target": 0}, "above 0 and below 1"),
        ("sigmoid", {"weight": 1, "penalty": "kl", "target": 1.0}, "above 0 and below 1"),
        ("relu", {"weight": 1, "penalty": "kl_exponential", "target": -1}, "above 0"),
        ("relu", {"weight": 1, "penalty": "kl_exponential", "target": math.inf}, "above 0"),
        ("relu", {"weight": 1, "penalty": "kl", "target": 0.1}, "ends in ReLU, expected nn.Sigmoid.*code_activation"),
        (None, {"weight": 1, "penalty": "kl", "target": 0.1}, "ends in Linear"),
        ("sigmoid", {"weight": 1, "penalty": "kl_exponential", "target": 0.1}, "ends in Sigmoid, expected nn.ReLU or nn.Softplus"),
        ("relu", {"weight": 1, "reduction": "none"}, "reduction"),
    ],
)
def test_bad_arguments(activation, options, says):
    with pytest.raises(BadArgument, match=says) as caught:
        model_of(activation, **options)
    assert caught.value.exit_code == 2


def test_the_last_layer_is_found_behind_shapes():
    encoder = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid()), nn.Flatten())
    SparseAutoencoder(encoder, nn.Linear(8, 16), 1.0, "kl", 0.1)
    with pytest.raises(BadArgument, match="ends in NoneType"):
        SparseAutoencoder(nn.Sequential(nn.Flatten()), nn.Linear(16, 16), 1.0, "kl", 0.1)


# ---------------------------------------------------------------- the dictionary


@pytest.mark.parametrize(("columns", "count"), [("unit", 2), ("free", 2), ("tied", 1)])
def test_columns(columns, count):
    model = model_of(columns=columns, weight=0.1, latent_dim=7, shape=(3, 4, 5))
    d, k = 60, 7
    assert sum(p.numel() for p in model.parameters()) == count * d * k + k + d
    x = torch.rand(5, 3, 4, 5)
    w, up = model.encoder[1].weight, model.decoder[0]
    assert up.weight.shape == (d, k) and model(x).shape == x.shape
    wanted = w.T if columns == "tied" else w.T / w.T.norm(dim=0)
    assert_close(up.weight, wanted)
    assert_close(model.decode(model.encode(x)).flatten(1), model.encode(x) @ up.weight.T + up.bias)
    fit(model, x, epochs=3, lr=0.05, device="cpu", progress=False)
    lengths = up.weight.norm(dim=0)
    if columns == "unit":
        assert_close(lengths, torch.ones(k))
    elif columns == "tied":
        assert_close(up.weight, model.encoder[1].weight.T)
    else:
        assert (lengths - 1).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"columns": "fixed"}, "columns: got 'fixed', expected one of unit, free, tied"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"shape": (1, 0, 4)}, "shape"),
        ({"code_activation": "step"}, "code_activation"),
    ],
)
def test_bad_dictionaries(options, says):
    with pytest.raises(BadArgument, match=says):
        dictionary(**options)


def test_a_free_decoder_dodges_the_price():
    model, x = model_of(columns="free", weight=0.5), torch.rand(9, 1, 4, 4)
    before, code = model(x), model.encode(x)
    bill = model.loss_terms(x)
    with torch.no_grad():
        model.encoder[1].weight /= 8
        model.encoder[1].bias /= 8
        model.decoder[0].weight *= 8
    assert_close(model(x), before)
    assert_close(model.loss_terms(x)["sparsity"], bill["sparsity"] / 8)
    assert_close(hoyer(model.encode(x)), hoyer(code))
    assert_close(inactive_share(model.encode(x)), inactive_share(code))


@pytest.mark.parametrize("columns", ["unit", "free", "tied"])
@pytest.mark.parametrize(
    ("activation", "options"),
    [("relu", {}), ("sigmoid", {"penalty": "kl", "target": 0.1}), ("relu", {"penalty": "kl_exponential", "target": 2.0})],
)
def test_save_and_load(tmp_path, columns, activation, options):
    model = model_of(activation, columns, weight=0.3, **options)
    fit(model, torch.rand(8, 1, 4, 4), epochs=1, device="cpu", progress=False)
    save_model(model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    x = torch.rand(4, 1, 4, 4)
    assert type(again) is SparseAutoencoder and (again.weight, again.penalty, again.target) == (0.3, model.penalty, model.target)
    assert_close(again(x), model(x), rtol=0, atol=0)
    assert evaluate(again, x) == evaluate(model, x)
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "m.safetensors", model_of(latent_dim=5, weight=0.3))


# ---------------------------------------------------------------- training


def toy(n=256, seed=0):
    "Images (n, 1, 4, 4), each a sum of two of sixteen random words: what a sparse code is made for."
    draw = torch.Generator().manual_seed(seed)
    words = torch.rand(16, 16, generator=draw)
    picks = torch.rand(n, 16, generator=draw).argsort(1) < 2
    return (picks.float() @ words / 2).view(n, 1, 4, 4)


def test_price_makes_codes_sparse():
    x, found = toy(), []
    for weight in (0.0, 0.3):
        model = model_of(latent_dim=32, weight=weight, reduction="sum")
        history = fit(model, x, epochs=40, batch_size=32, lr=3e-3, device="cpu", progress=False)
        assert history["loss"][-1] < history["loss"][0] / 2
        with torch.no_grad():
            found.append((inactive_share(model.encode(x)).mean(), hoyer(model.encode(x)).mean()))
    assert found[1][0] > found[0][0] + 0.2 and found[1][1] > found[0][1] + 0.2


def test_quota_moves_the_mean_to_its_target():
    x = toy()
    model = model_of("sigmoid", "free", latent_dim=32, weight=5.0, penalty="kl", target=0.1)
    history = fit(model, x, epochs=40, batch_size=64, lr=1e-2, device="cpu", progress=False)
    assert history["loss"][-1] < history["loss"][0] / 2
    with torch.no_grad():
        assert abs(model.encode(x).mean().item() - 0.1) < 0.05


def test_the_family_works_with_other_networks():
    with seeded(0):
        model = SparseAutoencoder(*mlp((1, 4, 4), (12,), 20, code_activation="sigmoid"), 1.0, "kl", 0.1, reconstruction="bce")
    history = fit(model, toy(64), epochs=3, device="cpu", progress=False)
    assert history["loss"][-1] < history["loss"][0]
