"PixelCNN: what a pixel sees, likelihoods that sum to one, drawing with kept activations, the code behind it, bad input, files, training."

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from ae_course.autoencoder import load_model, save_model
from ae_course.autoregressive import (
    GatedLayer,
    PixelCNN,
    PixelVAE,
    bits_per_dimension,
    choose,
    code_information,
    code_use,
    draw_images,
    gate,
    influence,
    pixel_networks,
    quantized,
    to_levels,
)
from ae_course.base import BadArgument
from ae_course.data import DataError
from ae_course.metrics import radial_spectrum, spectrum_distance
from ae_course.training import evaluate, fit, seeded
from ae_course.variational import Posterior, elbo, importance_bound, log_weights


def built(*args, **options):
    with seeded(0):
        return PixelCNN(*args, **options).double()


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def every_image(shape, levels):
    values = itertools.product(range(levels), repeat=math.prod(shape))
    return torch.tensor(list(values), dtype=torch.float64).view(-1, *shape) / (levels - 1)


# ---------------------------------------------------------------- what a pixel sees


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("first", [True, False], ids=["mask A", "mask B"])
def test_one_layer_sees_exactly_its_half_of_the_kernel(first, kernel):
    "By the gradient of every output pixel of both stacks with respect to every pixel of both inputs."
    half, (h, w) = kernel // 2, (5, 6)
    with seeded(0):
        layer = GatedLayer(3, 3, kernel, first).double()
        v, h_in = (torch.randn(1, 3, h, w, dtype=torch.float64, requires_grad=True) for _ in range(2))
    rows, columns = torch.arange(h)[:, None], torch.arange(w)[None]
    outs = layer(v, h_in)
    for r, c in itertools.product(range(h), range(w)):
        block = (rows <= (r - 1 if first else r)) & (rows >= r - half) & ((columns - c).abs() <= half)
        strip = (rows == r) & (columns <= (c - 1 if first else c)) & (columns >= c - half)
        nothing = torch.zeros(h, w, dtype=torch.bool)
        for out, wanted in zip(outs, ((block, nothing), (block, strip))):
            pull = (out[0, :, r, c] * torch.tensor([1.0, -0.7, 0.3])).sum()
            grads = torch.autograd.grad(pull, (v, h_in), retain_graph=True, allow_unused=True, materialize_grads=True)
            for grad, seen in zip(grads, wanted):
                assert torch.equal(grad[0].abs().sum(0) > 0, seen)


@pytest.mark.parametrize(("shape", "layers", "first", "latent_dim"), [((1, 7, 6), 6, 3, 0), ((1, 6, 7), 3, 7, 2), ((3, 4, 5), 4, 3, 0)])
def test_no_blind_spot_and_no_leak_at_any_pixel(shape, layers, first, latent_dim):
    model, z = built(shape, 3, 8, layers, 3, first, latent_dim), torch.zeros(1, latent_dim).double() if latent_dim else None
    channels, h, w = shape
    place = torch.arange(math.prod(shape)).view(h, w, channels).permute(2, 0, 1)  # the order of drawing
    reach = first // 2 + layers - 1
    rows, columns = torch.arange(h)[None, :, None], torch.arange(w)[None, None]
    for at in itertools.product(*map(range, shape)):
        seen = influence(model, at, z) > 0
        near = (rows >= at[1] - reach) & ((columns - at[2]).abs() <= reach)
        assert torch.equal(seen, (place < place[at]) & near), at


def test_without_layers_nothing_is_seen():
    model = built((2, 3, 3), layers=0, latent_dim=2)
    assert not any(influence(model, at, torch.zeros(1, 2).double()).any() for at in itertools.product(range(2), range(3), range(3)))


@pytest.mark.parametrize("first", [True, False])
def test_a_layer_is_the_masked_convolution(first):
    with seeded(1):
        layer, x = GatedLayer(4, 4, 5, first).double(), torch.randn(2, 4, 6, 7, dtype=torch.float64)
    kernels = [torch.zeros(8, 4, 5, 5, dtype=torch.float64) for _ in range(2)]
    kernels[0][:, :, : 2 if first else 3], kernels[1][:, :, 2:3, : 2 if first else 3] = layer.vertical.weight, layer.horizontal.weight
    a = torch.nn.functional.conv2d(x, kernels[0], layer.vertical.bias, padding=2)
    b = torch.nn.functional.conv2d(x, kernels[1], layer.horizontal.bias, padding=2) + layer.down(a)
    v, h = layer(x, x)
    assert_close(v, gate(a))
    assert_close(h, layer.across(gate(b)) + (0 if first else x))


# ---------------------------------------------------------------- likelihood


@pytest.mark.parametrize(("shape", "levels", "latent_dim", "layers", "shown"), [
    ((1, 2, 2), 3, 0, 2, None), ((1, 2, 3), 3, 2, 1, 2), ((1, 3, 2), 2, 1, 0, None), ((2, 1, 2), 4, 0, 3, None), ((3, 1, 1), 4, 2, 1, 2),
])  # fmt: skip
def test_probabilities_of_all_images_sum_to_one(shape, levels, latent_dim, layers, shown):
    model, x = built(shape, levels, 6, layers, 3, 3, latent_dim, shown=shown), every_image(shape, levels)
    for seed in range(2):
        z = None if not latent_dim else uniform(1, latent_dim, seed=seed).expand(len(x), -1)
        assert_close(model.log_prob(x, z).exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_log_prob_is_the_product_of_the_factors_one_by_one():
    model, x = built((2, 2, 3), 3, layers=2, first=3), quantized(uniform(3, 2, 2, 3), 3)
    total = torch.zeros(3, dtype=torch.float64)
    for r, c, j in itertools.product(range(2), range(3), range(2)):
        shown = torch.zeros_like(x)  # later values are not there at all
        earlier = torch.arange(12).view(2, 3, 2).permute(2, 0, 1) < (r * 3 + c) * 2 + j
        shown[:, earlier] = x[:, earlier]
        probability = model(shown)[:, :, j, r, c].softmax(1)
        total += probability.gather(1, to_levels(x, 3)[:, j, r, c, None])[:, 0].log()
    assert_close(model.log_prob(x), total)
    assert_close(bits_per_dimension(total, x.shape[1:]), -total / math.log(2) / 12)


def test_levels_are_bytes_at_256_and_the_nearest_otherwise():
    byte = torch.arange(256)
    assert torch.equal(to_levels(byte / 255, 256), byte) and torch.equal(quantized(byte / 255, 256), byte / 255)
    assert to_levels(torch.tensor([0.0, 0.16, 0.17, 0.5, 1.0]), 4).tolist() == [0, 0, 1, 2, 3]


def test_mean_is_the_expectation_of_the_factor():
    model, x = built((1, 2, 2), 5, layers=2, first=3), uniform(4, 1, 2, 2)
    share = model(x).softmax(1)
    assert_close(model.mean(x), sum(share[:, level] * level / 4 for level in range(5)))


# ---------------------------------------------------------------- drawing


@pytest.mark.parametrize("top", [0, 2, 5])
@pytest.mark.parametrize(("shape", "options"), [
    ((1, 5, 6), {}), ((1, 5, 4), {"latent_dim": 2, "kernel": 5}), ((3, 5, 4), {"latent_dim": 2, "shown": 2}), ((2, 5, 5), {"layers": 1}),
    ((1, 5, 6), {"layers": 0, "latent_dim": 1}),
])  # fmt: skip
def test_cached_samples_are_the_naive_ones(shape, options, top):
    model = built(shape, 4, 8, **{"layers": 3, "first": 3} | options)
    z, start = uniform(3, model.latent_dim) if model.latent_dim else None, uniform(3, *shape, seed=1)
    fast, slow = (draw_images(model, 3, z, seed=5, start=start, top=top, cached=cached) for cached in (True, False))
    assert torch.equal(fast, slow) and fast.dtype == torch.float64 and set(fast.unique().tolist()) <= {0, 1 / 3, 2 / 3, 1}
    assert torch.equal(fast[:, :, :top], quantized(start, 4)[:, :, :top])
    if top < 5:
        assert not torch.equal(fast, draw_images(model, 3, z, seed=6, start=start, top=top))


def test_samples_follow_the_probabilities():
    model, x = built((1, 2, 2), 2, layers=2, first=3), every_image((1, 2, 2), 2)
    drawn = draw_images(model, 20_000, seed=1)
    counts = (drawn.flatten(1)[:, None] == x.flatten(1)[None]).all(2).sum(0)
    wanted = 20_000 * model.log_prob(x).exp().detach()
    assert ((counts - wanted).square() / wanted).sum() < 37.7  # chi-squared, 15 degrees of freedom, 0.999


def test_choose_is_the_inverse_distribution_function():
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(6, 3)
    assert choose(logits, torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 1.0])).tolist() == [0, 0, 1, 1, 2, 2]


def test_drawing_leaves_the_global_generator_unless_asked():
    model = built((1, 3, 3), layers=1, first=3)
    state = torch.get_rng_state()
    first = draw_images(model, 2, seed=3)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(first, draw_images(model, 2, seed=3))
    torch.manual_seed(0)
    a = draw_images(model, 2, seed=None)
    torch.manual_seed(0)
    assert torch.equal(a, draw_images(model, 2, seed=None)) and not torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------- with a code


def test_the_bounds_lie_below_the_probability_by_quadrature():
    with seeded(4):
        model = PixelVAE(*pixel_networks((1, 2, 2), 1, 8, levels=3, layers=2, first=3)).double()
    x, line = every_image((1, 2, 2), 3), torch.linspace(-8, 8, 201, dtype=torch.float64)
    weight = torch.distributions.Normal(0, 1).log_prob(line).exp() * (line[1] - line[0])
    with torch.no_grad():
        exact = weight @ model.log_likelihood(x, line[:, None, None].expand(-1, 81, 1)).exp()
    assert_close(exact.sum(), torch.tensor(1.0, dtype=torch.float64))
    bound, tight = elbo(model, x, draws=400), importance_bound(log_weights(model, x, 400))
    gap = (exact.log() - bound).mean()  # of means: a bound by draws of one image may lie above
    assert gap > 0.005 and (exact.log() - tight).mean().abs() < 0.3 * gap


def test_independent_pixels_are_torchs_categorical():
    with seeded(0):
        model = PixelVAE(*pixel_networks((2, 3, 4), 2, layers=0)).double()
    x, z = uniform(5, 2, 3, 4), uniform(3, 5, 2)
    for draw in range(3):
        known = torch.distributions.Categorical(logits=model.decoder(x, z[draw]).movedim(1, -1))
        assert_close(model.log_likelihood(x, z)[draw], known.log_prob(to_levels(x, 4)).sum((1, 2, 3)))
    terms = model.eval().loss_terms(x)
    assert list(terms) == ["reconstruction", "kl"] and model(x).shape == x.shape


def test_free_bits_and_beta_are_those_of_the_vae():
    x = uniform(4, 1, 3, 3)
    with seeded(0):
        parts = pixel_networks((1, 3, 3), 2, layers=1, first=3)
    charged = PixelVAE(*parts, beta=2.0, free_bits=50.0).double()
    assert charged.train().loss_terms(x)["kl"].item() == 2 * 2 * 50.0
    assert_close(charged.eval().loss_terms(x)["kl"], 2 * charged.posterior(x).kl().sum(1).mean())


def test_information_of_known_posteriors():
    same = Posterior(torch.ones(20, 3).double(), torch.zeros(20, 3).double())
    apart = Posterior(100 * torch.eye(20).double(), torch.zeros(20, 20).double())
    assert abs(code_information(same)) < 1e-9 and math.isclose(code_information(apart), math.log(20), rel_tol=1e-9)
    q = Posterior(torch.randn(200, 2, generator=torch.Generator().manual_seed(0)), torch.full((200, 2), -2.0))
    assert 1 < code_information(q, draws=200) < q.kl().sum(1).mean().item() and code_information(q) == code_information(q)


def test_use_of_a_code_by_a_decoder_that_is_deaf_and_by_one_that_is_not():
    with seeded(0):
        model, x = PixelVAE(*pixel_networks((1, 3, 3), 2, 8, layers=1, first=3)).double().eval(), uniform(7, 1, 3, 3)
    use, q = code_use(model, x), model.posterior(x)
    torch.manual_seed(0)
    z = q.rsample()[0]
    other = torch.stack([model.log_likelihood(x[n : n + 1], z[None, n - 1 : n] if n else z[None, -1:])[0, 0] for n in range(7)])
    assert math.isclose(use.swap, (model.log_likelihood(x, z[None])[0] - other).mean().item(), rel_tol=1e-9)
    assert math.isclose(use.rate, evaluate(model, x)["kl"], rel_tol=1e-9) and use.information == code_information(q, seed=0)
    with torch.no_grad():
        model.decoder.spread[-2].weight.zero_()
    assert abs(code_use(model, x).swap) < 1e-12
    with pytest.raises(BadArgument, match="at least 2"):
        code_use(model, x[:1])


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(("options", "said"), [
    ({"levels": 1}, "levels: got 1"), ({"shown": 1}, "shown: got 1"), ({"kernel": 4}, "kernel: got 4"), ({"first": 1}, "first: got 1"),
    ({"layers": 0}, "layers: got 0 without a code"), ({"shape": (28, 28)}, "shape: got"), ({"width": 0}, "width: got 0"),
    ({"layers": -1}, "layers: got -1"), ({"latent_dim": -2}, "latent_dim: got -2"), ({"latent_dim": 2, "maps": 0}, "maps: got 0"),
])  # fmt: skip
def test_settings_that_cannot_be(options, said):
    with pytest.raises(BadArgument, match=said):
        PixelCNN(**options)


def test_codes_and_images_that_do_not_fit():
    alone, given = built((1, 3, 3), layers=1, first=3), built((1, 3, 3), layers=1, first=3, latent_dim=2)
    x = uniform(2, 1, 3, 3)
    for call in (lambda: given.log_prob(x), lambda: given.log_prob(x, uniform(2, 3)), lambda: alone.log_prob(x, uniform(2, 2)),
                 lambda: draw_images(given, 2), lambda: draw_images(alone, 0), lambda: draw_images(alone, start=uniform(2, 1, 4, 3)),
                 lambda: draw_images(alone, 2, top=1), lambda: draw_images(alone, start=x, top=4)):  # fmt: skip
        with pytest.raises(BadArgument):
            call()
    with pytest.raises(DataError, match="for which the network was built"):
        fit(alone, uniform(4, 1, 4, 4), epochs=1, progress=False)
    with pytest.raises(DataError, match="rescale"):
        fit(alone, 2 * uniform(4, 1, 3, 3) + 0.5, epochs=1, progress=False)


# ---------------------------------------------------------------- files, training, spectra


def test_training_lowers_the_exact_bits_and_replays_to_the_same():
    from sklearn.datasets import load_digits

    x, bits = torch.tensor(load_digits().images[:256], dtype=torch.float32)[:, None] / 16, []
    for replay in (True, False):
        with seeded(0):
            model = PixelCNN((1, 8, 8), layers=2, first=5)
        history = fit(model, x, epochs=2, batch_size=32, lr=5e-3, device="cpu", progress=False, replay=replay)
        bits.append(bits_per_dimension(-torch.tensor(evaluate(model, x)["nll"]), (1, 8, 8)).item())
        assert history["nll"][-1] < history["nll"][0] and bits[-1] < 1.7 < math.log2(4)
    assert math.isclose(*bits, rel_tol=1e-4)


def test_a_saved_model_is_the_same_model(tmp_path):
    with seeded(0):
        model = PixelVAE(*pixel_networks((1, 4, 4), 2, layers=2, first=3, shown=2), beta=0.5, free_bits=0.1).eval()
        alone = PixelCNN((1, 4, 4), layers=1, first=3).eval()
    save_model(model, tmp_path / "a.safetensors"), save_model(alone, tmp_path / "b.safetensors")
    x = uniform(3, 1, 4, 4).float()
    again = load_model(tmp_path / "a.safetensors")
    assert (again.beta, again.free_bits, again.decoder.shown) == (0.5, 0.1, 2) and torch.equal(elbo(again, x), elbo(model, x))
    assert torch.equal(load_model(tmp_path / "b.safetensors", PixelCNN((1, 4, 4), layers=1, first=3)).log_prob(x), alone.log_prob(x))


def test_spectrum_distance_of_known_sets():
    x = uniform(6, 1, 12, 12)
    assert spectrum_distance(x, x) == 0 and math.isclose(spectrum_distance(0.1 * x, x), 20, rel_tol=1e-9)
    assert math.isclose(spectrum_distance(x[:2], x), spectrum_distance(x, x[:2])) and abs(spectrum_distance(x + 3, x)) < 1e-6
    frequency = torch.fft.fftfreq(12)
    radius = (frequency[:, None].square() + frequency.square()).sqrt()
    ring = (radius * 12).round()
    power = lambda of: torch.fft.fft2(of).abs().square().mean((0, 1))
    ours = [10 * (power(x[:2])[ring == k].mean() / power(x)[ring == k].mean()).log10() for k in range(1, 7)]
    assert math.isclose(spectrum_distance(x[:2], x), torch.stack(ours).square().mean().sqrt().item(), rel_tol=1e-6)
    wave = torch.cos(2 * math.pi * 3 * torch.arange(12, dtype=torch.float64) / 12).expand(1, 1, 12, 12)
    assert radial_spectrum(wave).power[0].argmax() == 3
    with pytest.raises(ValueError, match="spectrum_distance"):
        spectrum_distance(x, x[:, :, :6])
