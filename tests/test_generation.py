"The networks of Daly et al.: TensorFlow's alignment layer by layer, published counts, every option, the schedule, bad input."

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ae_course.autoencoder import Autoencoder, load_model, save_model
from ae_course.base import BadArgument
from ae_course.data import DataError, load
from ae_course.distance import cnn_scorer, frechet_distance
from ae_course.generation import (
    EAE,
    GMMDAE,
    MODELS,
    RAE,
    WAE,
    GaussianNoise,
    SameConv2d,
    SameConvTranspose2d,
    Statistics,
    code_statistics,
    daly,
    daly_model,
    decoded,
    encoded,
    generation_row,
    mixture_gaps,
    multiquadratic_mmd,
    nearest_neighbour_entropy,
    same_padding,
    samplers,
    schedule_of,
    size_of,
)
from ae_course.sampling import held_out
from ae_course.training import Diverged, daly_schedule, fit, seeded
from ae_course.variational import VAE


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def small(**options):
    return daly(**{"shape": (1, 16, 16), "filters": 4, "latent_dim": 6, "start": "filters", **options})


# ---------------------------------------------------------------- TensorFlow's alignment


def by_the_rule(x, weight, stride):
    "tf.nn.conv2d, padding SAME, as its documentation writes it: a sum over the kernel for every place of the output, one image."
    kernel, size = weight.shape[-1], x.shape[-1]
    out = -(-size // stride)
    if size % stride == 0:
        total = max(kernel - stride, 0)
    else:
        total = max(kernel - size % stride, 0)
    before = total // 2
    y = torch.zeros(weight.shape[0], out, out, dtype=x.dtype)
    for i, j, u, v in itertools.product(range(out), range(out), range(kernel), range(kernel)):
        row, column = stride * i + u - before, stride * j + v - before
        if 0 <= row < size and 0 <= column < size:
            y[:, i, j] += weight[:, :, u, v] @ x[:, row, column]
    return y


SIZES = [(8, 4, 2), (8, 5, 2), (7, 5, 2), (6, 4, 1), (6, 5, 1), (5, 4, 2), (2, 5, 2), (1, 4, 2)]


@pytest.mark.parametrize(("size", "kernel", "stride"), SIZES)
def test_convolution_is_tensorflows(size, kernel, stride):
    layer, x = SameConv2d(2, 3, kernel, stride).double(), normal(1, 2, size, size)
    wanted = by_the_rule(x[0], layer.weight.detach(), stride) + layer.bias.detach()[:, None, None]
    assert_close(layer(x)[0].detach(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(4, 4, 2), (4, 5, 2), (5, 5, 2), (6, 4, 1), (6, 5, 1), (3, 2, 2)])
def test_transposed_convolution_is_the_gradient_of_tensorflows(size, kernel, stride):
    up = SameConvTranspose2d(3, 2, kernel, stride).double()
    y, x = normal(1, 3, size, size), normal(2, size * stride, size * stride).requires_grad_()
    (by_the_rule(x, up.weight.detach(), stride) * y[0]).sum().backward()  # tf.nn.conv2d_transpose is defined as this gradient
    assert up(y).shape[2:] == x.shape[1:]
    assert_close(up(y)[0].detach(), x.grad + up.bias.detach()[:, None, None], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("shape", "kernel"), [((3, 32, 32), 4), ((3, 64, 64), 5)])
def test_every_layer_of_the_networks_is_one_of_these(shape, kernel):
    halves = daly(shape, 4, 5, depth=2, start="filters")
    convolutions = [m for half in halves for m in half.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert all(isinstance(m, SameConv2d | SameConvTranspose2d) and m.kernel_size == (kernel, kernel) for m in convolutions)
    seen = {}
    for name, half in zip(("down", "up"), halves):
        for m in half:
            if isinstance(m, SameConv2d | SameConvTranspose2d):
                note = seen.setdefault(name, []).append
                m.register_forward_hook(lambda m, given, y, note=note: note((given[0].shape[-1], y.shape[-1], m)))
    x = torch.rand(2, *shape)
    assert halves[1](halves[0](x)).shape == x.shape
    side = shape[1]
    for before, after, layer in seen["down"]:
        assert before == side and after == side // layer.stride[0]
        side = after
    assert side == shape[1] // 16
    side = 8
    for before, after, layer in seen["up"]:
        assert before == side and after == side * layer.stride[0]
        side = after
    assert side == shape[1]


def test_padding_is_shared_with_the_odd_zero_at_the_end():
    cases = ((32, 4, 2), (64, 5, 2), (8, 4, 1), (8, 5, 1), (3, 1, 2))
    assert [same_padding(*of) for of in cases] == [(1, 1), (1, 2), (1, 2), (2, 2), (0, 0)]


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("shape", "filters", "k", "start", "encoder", "decoder", "gmacs"),
    [
        ((3, 32, 32), 32, 128, "fixed", 0.82, 10.69, 0.186),
        ((3, 32, 32), 32, 128, "filters", 0.82, 2.77, 0.079),
        ((3, 32, 32), 64, 128, "filters", 3.02, 6.86, 0.305),
        ((3, 32, 32), 128, 128, "fixed", 11.55, 18.95, 1.197),
        ((3, 32, 32), 128, 128, "filters", 11.55, 18.95, 1.197),
        ((3, 32, 32), 256, 128, "fixed", 45.11, 33.65, 3.66),
        ((3, 64, 64), 32, 64, "filters", 1.34, 2.14, 0.210),
        ((3, 64, 64), 64, 64, "fixed", 4.83, 11.84, 1.025),
        ((3, 64, 64), 128, 64, "fixed", 18.27, 21.48, 3.20),
    ],
)
def test_counts_of_the_networks_of_the_paper(shape, filters, k, start, encoder, decoder, gmacs):
    with torch.device("meta"):  # no weights, no time
        halves = daly(shape, filters, k, start=start)
    found = [sum(p.numel() for p in half.parameters()) / 1e6 for half in halves]
    assert_close(found, [encoder, decoder], atol=0.006, rtol=0)
    if filters <= 64:
        assert_close(size_of(*daly(shape, filters, k, start=start), shape, k).macs / 1e9, gmacs, atol=0.0006, rtol=0)


@pytest.mark.parametrize(("filters", "depth", "encoder"), [(64, 2, 8.6), (64, 3, 14.2), (128, 2, 33.8), (128, [3, 3, 2, 1], 18.4)])
def test_counts_of_the_deeper_networks(filters, depth, encoder):
    with torch.device("meta"):
        found = daly((3, 32, 32), filters, 128, depth=depth)[0]
    assert_close(sum(p.numel() for p in found.parameters()) / 1e6, encoder, atol=0.06, rtol=0)


def test_macs_of_the_deeper_networks():
    for depth, gmacs in ((2, 0.72), (3, 1.13)):
        found = size_of(*daly((3, 32, 32), 64, 128, depth=depth), (3, 32, 32), 128)
        assert_close(found.macs / 1e9, gmacs, atol=0.01, rtol=0)


def convolutions(network):
    return [(m.in_channels, m.out_channels, m.stride[0]) for m in network if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


def test_depth_start_and_decoder_depth():
    encoder, decoder = small(shape=(3, 32, 32), depth=[3, 3, 2, 1])
    assert convolutions(encoder) == [(3, 4, 1), (4, 4, 1), (4, 4, 2), (4, 8, 1), (8, 8, 1), (8, 8, 2), (8, 16, 1), (16, 16, 2), (16, 32, 2)]
    assert convolutions(decoder) == [(32, 16, 1), (16, 16, 2), (16, 8, 1), (8, 8, 1), (8, 8, 2), (8, 3, 1)]  # 4f: 2, 2f: 3
    decoder = small(shape=(3, 32, 32), depth=[3, 3, 2, 1], decoder_depth="reversed")[1]
    assert convolutions(decoder) == [(32, 16, 2), (16, 8, 1), (8, 8, 2), (8, 3, 1)]  # 1, 2
    assert convolutions(small(shape=(3, 64, 64))[1]) == [(32, 16, 2), (16, 8, 2), (8, 4, 2), (4, 3, 1)]
    assert convolutions(small(shape=(1, 16, 16), start="fixed")[1]) == [(1024, 16, 2), (16, 1, 1)]
    assert convolutions(small(shape=(1, 128, 128), depth=2)[1])[-3:] == [(4, 2, 1), (2, 2, 2), (2, 1, 1)]


def test_keras_start_and_tensorflows_batch_normalisation():
    with seeded(0):
        encoder, decoder = daly((3, 32, 32), 16, 20)
    for layer in [m for half in (encoder, decoder) for m in half.modules() if hasattr(m, "weight") and m.weight.ndim > 1]:
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()
    norms = [m for half in (encoder, decoder) for m in half.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 6 and all(m.eps == 1e-3 and m.momentum == 0.01 for m in norms)
    assert all(m.momentum == 0.1 for m in small(momentum=0.1)[0].modules() if isinstance(m, nn.BatchNorm2d))


# ---------------------------------------------------------------- the code


def test_size_counts_the_layers_whatever_normalises_them():
    sizes = {norm: size_of(*small(norm=norm), (1, 16, 16), 6) for norm in (None, "batch", "layer", "spectral")}
    assert len({size.macs for size in sizes.values()}) == 1 and sizes["spectral"] == sizes[None]


def test_norms_of_the_code():
    x = torch.rand(50, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for norm in (None, "batch", "standard", "layer", "spectral"):
        with seeded(0):
            encoder = small(norm=norm)[0]
        z = encoder(x)
        if norm == "batch":
            assert_close(z.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
            assert ((z.var(0, correction=0) - 1).abs() < 0.2).all()
        if norm == "standard":
            assert not list(encoder[-1].parameters())
            assert_close(z.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
        if norm == "layer":
            assert_close(z.mean(1), torch.zeros(50), atol=1e-5, rtol=0)
        if norm == "spectral":
            for _ in range(200):
                encoder(x)  # a step of the power iteration each
            assert_close(torch.linalg.matrix_norm(encoder[-1].weight, 2).item(), 1.0, rtol=1e-3, atol=0)


@pytest.mark.parametrize("options", [{}, {"norm": "spectral"}, {"norm": "batch"}, {"variational": True}])
def test_a_frozen_latent_layer_stays(options):
    with seeded(0):
        model = Autoencoder(*small(frozen=True, **options), reconstruction="bce")
    if options.get("variational"):
        assert not any(p.requires_grad for m in model.modules() if isinstance(m, Statistics) for p in m.parameters())
        return
    before = copy.deepcopy(model.state_dict())
    fit(model, torch.rand(64, 1, 16, 16), epochs=2, batch_size=32, device="cpu", progress=False)
    latent = next(m for m in model.encoder if isinstance(m, nn.Linear))
    assert not any(p.requires_grad for p in latent.parameters())
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    place = f"encoder.{list(model.encoder).index(latent)}."
    assert not {n for n in moved if n.startswith(place) and ("bias" in n or n.endswith(("weight", "original")))}
    assert "encoder.0.weight" in moved and "decoder.1.weight" in moved


def test_noise_acts_in_training_alone():
    encoder, decoder = small(noise=0.5)
    z = torch.zeros(20_000, 6)
    noise = decoder[0]
    assert isinstance(noise, GaussianNoise) and abs(noise(z).std().item() - 0.5) < 0.01
    decoder.eval()
    assert torch.equal(decoder[0](z), z) and torch.equal(small()[1][0](z), z)


def test_variational_gives_means_and_bounded_log_variances():
    encoder, decoder = small(variational=True)
    found = encoder(torch.rand(8, 1, 16, 16))
    assert found.shape == (8, 12)
    features = encoder[:-1](torch.rand(8, 1, 16, 16)).detach() * 1e3
    mean, logvar = encoder[-1](features).chunk(2, 1)
    assert logvar.abs().max() <= 10 and mean.abs().max() > 10
    log_sigma = 5 * torch.tanh(encoder[-1].spread(features))
    assert_close(logvar, 2 * log_sigma)
    assert decoder(mean[:2]).shape == (2, 1, 16, 16)


def test_deterministic_and_variational_share_all_but_the_latent_layer():
    with seeded(3):
        plain = small()
    with seeded(3):
        variational = small(variational=True)
    for a, b in zip(plain, variational):
        for (name, p), q in zip(list(a.named_parameters())[:-2], b.parameters()):
            assert torch.equal(p, q), name


@pytest.mark.parametrize(
    "options",
    [{}, {"norm": "batch"}, {"norm": "layer"}, {"norm": "spectral"}, {"noise": 0.1}, {"frozen": True}, {"depth": [1, 2, 1, 1]}],
)
def test_saved_and_trained(options, tmp_path):
    with seeded(1):
        model = Autoencoder(*small(momentum=0.1, **options), reconstruction="bce")
    x = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(1)).round()
    history = fit(model, x, epochs=4, batch_size=32, device="cpu", progress=False, schedule=schedule_of(4))
    assert history["loss"][-1] < history["loss"][0]
    assert history["lr"] == pytest.approx([1e-4, 1e-3, 1e-4, 1e-5])
    save_model(model, tmp_path / "model.safetensors")
    assert torch.equal(load_model(tmp_path / "model.safetensors")(x), model(x))


# ---------------------------------------------------------------- the other rows of Table 2


def by_pairs(a, b, same):
    scales, k = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), a.shape[1]
    values = [sum(2 * k * s / (2 * k * s + (u - v).square().sum()) for s in scales)
              for (i, u), (j, v) in itertools.product(enumerate(a), enumerate(b)) if not (same and i == j)]  # fmt: skip
    return torch.stack(values).mean()


def test_mmd_by_pairs_unbiased_and_differentiable():
    a, b = normal(7, 3), normal(5, 3, seed=1) + 1
    assert_close(multiquadratic_mmd(a, b), by_pairs(a, a, True) + by_pairs(b, b, True) - 2 * by_pairs(a, b, False), rtol=1e-10, atol=0)
    found = torch.stack([multiquadratic_mmd(normal(20, 3, seed=i), normal(30, 3, seed=900 + i)) for i in range(200)])
    assert found.mean().abs() < 3.5 * found.std() / 200**0.5
    a.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: multiquadratic_mmd(z, b), a)
    with pytest.raises(BadArgument, match="got 1 codes and 5 draws"):
        multiquadratic_mmd(a[:1], b)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_entropy_of_known_distributions(k):
    z = normal(3000, k, seed=k)
    spread = torch.linspace(0.5, 2, k).double() if k > 1 else torch.tensor([2.0]).double()
    wanted = 0.5 * k * math.log(2 * math.pi * math.e) + spread.log().sum().item()
    assert abs(nearest_neighbour_entropy(z * spread).item() - wanted) < 0.05 + 0.05 * k
    cube = torch.rand(3000, k, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    assert abs(nearest_neighbour_entropy(cube).item()) < 0.05 + 0.06 * k
    found = [nearest_neighbour_entropy(normal(100, k, seed=i)).item() for i in range(200)]
    if k == 1:  # hardly biased even for small batches
        assert abs(sum(found) / 200 - 0.5 * math.log(2 * math.pi * math.e)) < 0.04


def test_entropy_gradient_and_bad_batch():
    z = normal(12, 3).requires_grad_()
    assert torch.autograd.gradcheck(nearest_neighbour_entropy, z)
    with pytest.raises(BadArgument, match="got 1 code"):
        nearest_neighbour_entropy(z[:1])


def test_mixture_gaps_by_hand_and_for_draws_of_the_mixture():
    z, centres = torch.tensor([[2.0], [0.0]]).double(), torch.tensor([[0.0], [2.0]]).double()
    phi = lambda v: 0.5 * (1 + math.erf(v / 2**0.5))
    cdf = ((0.5 * (phi(0) + phi(-2)) - 0.5) ** 2 + (0.5 * (phi(2) + phi(0)) - 1) ** 2) / 2
    found = mixture_gaps(z, centres)
    assert_close([f.item() for f in found], [cdf, (1 - (1 + 1)) ** 2.0], rtol=1e-10, atol=0)
    model = GMMDAE(*small(latent_dim=6), components=8)
    prior = model.prior(6)
    assert prior.means.shape == (8, 6) and torch.equal(prior.means[7], prior.means[1])
    usual = model.usual_gaps(50, 6)
    fresh = torch.tensor([mixture_gaps(prior.sample(50, 1000 + i).double(), prior.means) for i in range(100)]).mean(0)
    assert_close(torch.tensor(usual, dtype=torch.float64), fresh, rtol=0.15, atol=0)
    far = mixture_gaps(prior.sample(50).double() + 2, prior.means)
    assert far[0] > 10 * usual[0] and abs(far[1] - mixture_gaps(prior.sample(50).double(), prior.means)[1]) < 1e-9
    z = normal(9, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: mixture_gaps(z, torch.eye(3).double()), z)


def member(family, **options):
    with seeded(0):
        return family(*small(momentum=0.1, norm="standard" if family is EAE else None), **options)


def test_terms_of_the_four():
    x = torch.rand(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for family in (RAE, WAE, EAE, GMMDAE):
        model = member(family).eval()
        z, x_hat = model.encode(x), model(x)
        torch.manual_seed(5)
        terms = model.loss_terms(x)
        error = (x_hat - x).square().flatten(1)
        assert_close(terms["reconstruction"], error.mean() if family is GMMDAE else error.sum(1).mean())
        if family is RAE:
            assert_close(terms["code"], 1e-2 * 0.5 * z.square().sum(1).mean())
            assert_close(terms["decay"], 1e-6 * sum(p.square().sum() for p in model.decoder.parameters()))
        if family is WAE:
            torch.manual_seed(5)
            assert_close(terms["mmd"], 10 * multiquadratic_mmd(z, torch.randn(32, 6)))
        if family is EAE:
            assert_close(terms["entropy"], -0.05 * nearest_neighbour_entropy(z))
        if family is GMMDAE:
            gaps = mixture_gaps(z, model.prior(6).means.float())
            assert_close(terms["cdf"], 5e-4 * gaps[0] / model.usual_gaps(32, 6)[0])
            assert_close(terms["covariance"], 5e-4 * gaps[1] / model.usual_gaps(32, 6)[1])


@pytest.mark.parametrize("family", [RAE, WAE, EAE, GMMDAE])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_four_train_are_seeded_and_saved(family, precision, tmp_path):
    x = torch.rand(96, 1, 16, 16, generator=torch.Generator().manual_seed(1)).round()
    options = {"epochs": 3, "batch_size": 32, "device": "cpu", "progress": False, "precision": precision}
    model, again = member(family), member(family)
    history = fit(model, x, **options)
    fit(again, x, **options)
    assert torch.equal(model.encode(x), again.encode(x)) and history["reconstruction"][-1] < history["reconstruction"][0]
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert type(loaded) is family and torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(
    ("family", "strong", "without", "gap"),
    [(WAE, {"weight": 300.0}, {"weight": 0.0}, lambda z: multiquadratic_mmd(z, normal(256, 6).float())),
     (EAE, {"weight": 5.0}, {"weight": 0.0}, lambda z: -nearest_neighbour_entropy(z)),
     (GMMDAE, {"weight": 1.0}, {"weight": 0.0}, lambda z: mixture_gaps(z, torch.eye(6))[0]),
     (RAE, {"code": 10.0}, {"code": 0.0}, lambda z: z.square().mean())],
)  # fmt: skip
def test_strong_terms_move_the_codes_where_they_say(family, strong, without, gap):
    x = torch.rand(256, 1, 16, 16, generator=torch.Generator().manual_seed(1)).round()
    found = []
    for options in (strong, without):
        model = member(family, **options)
        fit(model, x, epochs=10, batch_size=64, lr=3e-3, device="cpu", progress=False)
        with torch.no_grad():
            found.append(gap(model.encode(x)).item())
    assert found[0] < (found[1] - 0.1 if family is EAE else 0.5 * found[1])


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [(RAE, {"code": -1.0}, "code: got -1.0"), (RAE, {"decay": math.nan}, "decay"), (WAE, {"weight": -2}, "weight: got -2"),
     (EAE, {"weight": math.inf}, "weight"), (GMMDAE, {"components": 0}, "components: got 0")],
)  # fmt: skip
def test_bad_weights_are_named(family, options, message):
    with pytest.raises(BadArgument, match=message):
        member(family, **options)


# ---------------------------------------------------------------- one configuration


TINY = {"shape": (1, 16, 16), "filters": 4, "latent_dim": 6, "start": "filters", "momentum": 0.1}


def tiny(model="dae", seed=0, **options):
    with seeded(seed):
        return daly_model(model, **(TINY | options))


def test_families_losses_and_networks_of_the_builder():
    families = {"dae": Autoencoder, "vae": VAE, "rae": RAE, "wae": WAE, "eae": EAE, "gmm_dae": GMMDAE}
    assert tuple(families) == MODELS
    for name, family in families.items():
        model = tiny(name)
        assert type(model) is family and model.reconstruction == ("bce" if name in ("dae", "vae") else "mse")
        assert (model.encoder.builder["arguments"]["norm"] == "standard") is (name == "eae")
    assert tiny("eae", norm="standard").encoder.builder["arguments"]["norm"] == "standard"
    for options in ({"norm": "batch"}, {"noise": 0.3}, {"frozen": True}, {"depth": 2}, {"depth": [1, 2, 1, 1]}, {"start": "fixed"}):
        model, halves = tiny(**options), small(momentum=0.1, **options)
        assert [p.shape for p in model.parameters()] == [p.shape for half in halves for p in half.parameters()]
        assert model.encoder.builder["arguments"] == halves[0].builder["arguments"]


@pytest.mark.parametrize(("reduction", "channels"), [("mean", 3), ("sum", 3), ("hw", 3), ("hw", 1)])
def test_the_vaes_objective_written_out(reduction, channels):
    model, x = tiny("vae", shape=(channels, 16, 16), reduction=reduction, beta=0.05), torch.rand(8, channels, 16, 16)
    with seeded(3):
        q = model.posterior(x)
        x_hat = model.decode(q.rsample())[0]
    error = nn.functional.binary_cross_entropy(x_hat, x, reduction="none")
    kl = 0.5 * (q.mu.square() + q.logvar.exp() - 1 - q.logvar)
    wanted = {"mean": error.mean() + 0.05 * kl.mean(), "sum": error.flatten(1).sum(1).mean() + 0.05 * kl.sum(1).mean(),
              "hw": channels * (error.mean(1).sum((1, 2)).mean() + 0.05 * kl.sum(1).mean())}[reduction]  # fmt: skip
    with seeded(3):
        assert_close(sum(model.loss_terms(x).values()), wanted)
    beta = {"mean": 0.05 * channels * 256 / 6, "sum": 0.05, "hw": 0.05 * channels}[reduction]
    assert model.implied_beta(channels * 256, 6) == pytest.approx(beta)


def test_dae_and_vae_start_alike():
    plain, variational = tiny("dae", seed=3), tiny("vae", seed=3)
    for (name, p), q in zip(plain.decoder.named_parameters(), variational.decoder.parameters()):
        assert torch.equal(p, q), name


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [("gan", {}, "model: got 'gan', expected one of dae, vae, rae, wae, eae, gmm_dae"),
     ("vae", {"reduction": "none"}, "reduction: got 'none', expected one of mean, sum, hw"),
     ("vae", {"beta": -0.01}, "beta: got -0.01"), ("dae", {"beta": math.nan}, "beta: got nan"),
     ("vae", {"norm": "batch"}, "with variational=True, expected None"), ("eae", {"norm": "batch"}, "norm: got 'batch' for 'eae'"),
     ("dae", {"filters": 0}, "filters: got 0")],
)  # fmt: skip
def test_bad_configurations_are_named(model, options, message):
    with pytest.raises(BadArgument, match=message):
        tiny(model, **options)


@pytest.mark.parametrize("model", ["dae", "vae"])
def test_images_outside_zero_and_one_are_refused_by_the_cross_entropy(model):
    with pytest.raises(DataError, match="binary cross-entropy: got values from .* expected .0, 1."):
        fit(tiny(model), 2 * torch.rand(32, 1, 16, 16) - 1, epochs=1, device="cpu", progress=False)


@pytest.mark.parametrize("model", ["vae", "dae"])
def test_a_nan_stops_with_its_step_and_the_last_finite_weights_stay(model):
    found, x = tiny(model), torch.rand(96, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    start = copy.deepcopy(found.state_dict())
    layer, calls = found.encoder[-1].spread if model == "vae" else found.encoder[-1], []

    def poison(module, given, y):  # the log variance of the third step is NaN
        calls.append(1)
        return y * torch.nan if len(calls) == 3 else y

    layer.register_forward_hook(poison)
    with pytest.raises(Diverged, match="epoch 1, step 3"):
        fit(found, x, epochs=2, batch_size=32, device="cpu", progress=False, replay=False)
    assert all(torch.equal(value, start[name]) for name, value in found.state_dict().items())


def test_a_vae_driven_too_hard_diverges_and_can_still_be_measured(digits16):
    train, test, scorer = digits16
    model = tiny("vae", reduction="sum")
    with pytest.raises(Diverged):
        fit(model, train, epochs=3, lr=1e30, device="cpu", progress=False)
    row = generation_row(model, train, test, scorer, samples=100, components=2)[0]
    assert all(math.isfinite(value) for value in row.values())


# ---------------------------------------------------------------- sampled and scored


@pytest.fixture(scope="module")
def digits16():
    train, test = load("mnist5k", size=16, limit=800), load("mnist5k", "test", size=16, limit=300)
    return train, test, cnn_scorer(train, epochs=2, width=4, features=16, device="cpu")


@pytest.fixture(scope="module")
def trained(digits16):
    model = tiny("dae")
    fit(model, digits16[0], epochs=4, batch_size=32, lr=4e-3, device="cpu", progress=False)
    return model


def test_codes_and_images_in_batches(trained, digits16):
    x = digits16[1][:70]
    z = encoded(trained.train(), x, batch_size=32)
    assert not trained.training and z.shape == (70, 6) and not z.requires_grad
    assert_close(z, encoded(trained, x.pixels()), rtol=1e-4, atol=1e-5)
    assert_close(decoded(trained, z, batch_size=32), trained(x.pixels()).detach(), rtol=1e-4, atol=1e-5)
    vae = tiny("vae")
    assert torch.equal(encoded(vae, x), vae.posterior(x.pixels()).mu.detach())
    assert decoded(vae, encoded(vae, x)).shape == (70, 1, 16, 16)


def test_row_by_hand(trained, digits16):
    train, test, scorer = digits16
    row, images = generation_row(trained, train, test, scorer, samples=200, components=3, seed=4)
    there, z, z_test = scorer(test), encoded(trained, train), encoded(trained, test)
    for kind, density in samplers(z, 3, 4).items():
        assert_close(images[kind], decoded(trained, density.sample(200, 4)))
        assert row[f"distance_{kind}"] == pytest.approx(frechet_distance(scorer(images[kind]), there))
    assert_close(images["test"], decoded(trained, z_test[:200]))
    assert row["distance_test"] == pytest.approx(frechet_distance(scorer(images["test"]), there))
    assert row["distance_train"] == pytest.approx(frechet_distance(scorer(decoded(trained, z[:200])), there))
    assert len(images["midpoint"]) == len(test) and row["midpoint_distance"] > row["distance_test"]
    assert row["mixture_gain"] == pytest.approx(held_out(z, z_test, 3, 4, 1e-6)["gain"])
    assert 0 < row["distance_test"] < row["distance_normal"]
    again = generation_row(trained, train, test, scorer, samples=200, components=3, seed=4)[0]
    assert row == again
    assert generation_row(trained, train, test, scorer, samples=200, components=3, seed=5)[0]["distance_mvg"] != row["distance_mvg"]


def test_row_without_a_scorer_has_all_columns_and_no_distance(trained, digits16):
    train, test, scorer = digits16
    full = generation_row(trained, train, test, scorer, samples=100, components=2)[0]
    row = generation_row(trained, train, test, None, samples=100, components=2)[0]
    assert set(row) == set(full)
    missing = {name for name in row if "distance" in name} | {"kid_gmm", "precision_gmm", "recall_gmm"}
    assert {name for name, value in row.items() if value is None} == missing
    assert all(row[name] == full[name] for name in set(row) - missing)


def test_midpoints_lie_between_two_different_test_codes(trained, digits16):
    train, test = digits16[0], digits16[1][:12]
    codes = []
    trained.decoder.register_forward_pre_hook(lambda module, given: codes.append(given[0]))
    try:
        generation_row(trained, train, test, None, samples=20, components=2)
    finally:
        trained.decoder._forward_pre_hooks.clear()
    z, middle = encoded(trained, test), codes[-1]
    pairs = {(i, j) for i in range(12) for j in range(12) for m in middle if torch.allclose((z[i] + z[j]) / 2, m, atol=1e-6)}
    assert len(middle) == 12 and not any(i == j for i, j in pairs) and {i for i, _ in pairs} == set(range(12))


def test_code_statistics_of_known_codes():
    spread = torch.tensor([1.0, 2.0, 0.0]).double()
    found = code_statistics(normal(20_000, 3) * spread + torch.tensor([0.0, 3.0, 4.0]).double())
    wanted = {"code_std": (5 / 3) ** 0.5, "code_std_min": 0.0, "code_std_max": 2.0, "code_mean": (25 / 3) ** 0.5, "code_kurtosis": 0.0}
    assert_close({k: found[k] for k in wanted}, wanted, atol=0.08, rtol=0.02)
    assert found["active_units"] == 2
    uniform = torch.rand(20_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert code_statistics(uniform)["code_kurtosis"] == pytest.approx(-1.2, abs=0.03)


def test_more_components_than_codes_and_constant_units(trained, digits16):
    train, test = digits16[0][:8], digits16[1]
    with pytest.raises(BadArgument, match="components: got 10 for 8 codes"):
        generation_row(trained, train, test, None, samples=20)
    z = torch.cat([normal(50, 2), torch.ones(50, 1)], 1)
    found = samplers(z, components=2)
    assert found["mvg"].sample(1000)[:, 2].std() == pytest.approx(1e-3, rel=0.1)  # a unit that does not move has the ridge alone
    with pytest.raises(BadArgument, match="singular"):
        samplers(z, components=2, ridge=0.0)


# ---------------------------------------------------------------- schedule, bad input


def test_schedule_is_the_papers_and_scales():
    assert [schedule_of(100)(e) for e in range(100)] == [daly_schedule(e) for e in range(100)]
    assert [schedule_of(10)(e) for e in range(10)] == [0.1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]
    for epochs in (1, 2, 3, 4):
        assert max(schedule_of(epochs)(e) for e in range(epochs)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (3, 28, 28)}, r"shape: got \(3, 28, 28\), expected .*one of 16, 32, 64, 128.*size=32"),
        ({"shape": (3, 32, 64)}, "H = W"),
        ({"shape": (32, 32)}, "shape"),
        ({"filters": 0}, "filters: got 0"),
        ({"latent_dim": 2.0}, "latent_dim: got 2.0"),
        ({"depth": 0}, "depth: got 0"),
        ({"depth": [1, 2]}, r"depth: got \[1, 2\], expected an integer of at least 1, or four"),
        ({"kernel": 1}, "kernel: got 1"),
        ({"start": "1024"}, "start: got '1024', expected one of fixed, filters"),
        ({"norm": "group"}, "norm: got 'group'"),
        ({"norm": "batch", "variational": True}, "with variational=True, expected None"),
        ({"noise": -0.1}, "noise: got -0.1"),
        ({"decoder_depth": "same"}, "decoder_depth"),
        ({"shape": (1, 128, 128), "filters": 1}, "filters: got 1, expected a multiple of 2"),
        ({"momentum": 2.0}, "momentum: got 2.0"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(BadArgument, match=message):
        small(**options)


def test_schedule_of_no_epochs():
    with pytest.raises(BadArgument, match="epochs: got 0"):
        schedule_of(0)
