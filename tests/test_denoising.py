"Denoising: corruptions against their laws, saving and resuming, noise drawn once and afresh, the exact score, known curves, bad input."

import copy
import json
import math
import pickle

import pytest
import torch
from torch.testing import assert_close

from ae_course.autoencoder import Autoencoder, load_model, mlp, save_model
from ae_course.base import BadArgument, UnknownName
from ae_course.data import DataError, images_from, load
from ae_course.denoising import (
    CORRUPTIONS,
    MANIFOLDS,
    DenoisingAutoencoder,
    angle_between,
    as_corruption,
    compose,
    corruption,
    denoising_gain,
    erase,
    erase_block,
    gaussian,
    linear_denoiser,
    log_density,
    manifold,
    nearest,
    noised_once,
    once,
    posterior_mean,
    salt_and_pepper,
    score,
    uniform,
    vector_field,
)
from ae_course.training import evaluate, fit, seeded

EVERY = [gaussian(0.3), uniform(0.5), erase(0.7), salt_and_pepper(0.2), erase_block(3), compose(gaussian(0.1), erase(0.5))]


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def grey(n=200, c=1, side=20, value=0.5):
    return torch.full((n, c, side, side), value)


def dae(noise, shape=(1, 6, 6), **options):
    with seeded(0):
        return DenoisingAutoencoder(*mlp(shape, hidden=(16,), latent_dim=4), noise, **options)


# ---------------------------------------------------------------- corruptions


@pytest.mark.parametrize("noise", EVERY, ids=repr)
def test_a_corruption_keeps_form_and_input_and_obeys_its_generator(noise):
    for x in (torch.rand(5, 3, 8, 9), torch.rand(5, 1, 8, 8, dtype=torch.float64)):
        before = x.clone()
        first, again, other = noise(x, draws()), noise(x, draws()), noise(x, draws(1))
        assert first.shape == x.shape and first.dtype == x.dtype
        assert_close(x, before, rtol=0, atol=0)  # the clean images stay clean
        assert torch.equal(first, again) and not torch.equal(first, other)
        torch.manual_seed(4)
        glob = noise(x)
        torch.manual_seed(4)
        assert torch.equal(glob, noise(x)) and not torch.equal(glob, noise(x))  # fresh at each call


@pytest.mark.parametrize("noise", EVERY, ids=repr)
def test_a_corruption_survives_json_pickle_and_copying(noise):
    x = torch.rand(4, 1, 8, 8)
    for again in (as_corruption(json.loads(json.dumps(noise))), pickle.loads(pickle.dumps(noise)), copy.deepcopy(noise)):
        assert again == noise and repr(again) == repr(noise)
        assert torch.equal(again(x, draws()), noise(x, draws()))


def test_additive_noise_has_its_moments_and_is_not_clamped():
    x = torch.rand(100, 1, 28, 28)  # 78,400 draws: a standard error of 0.0011 sigma for the mean
    added = gaussian(0.3)(x, draws()) - x
    assert abs(added.mean()) < 0.005 and math.isclose(added.std(), 0.3, rel_tol=0.01)
    assert math.isclose(added.pow(4).mean() / added.var() ** 2, 3, rel_tol=0.03)
    added = uniform(0.5)(x, draws()) - x
    assert -0.5001 <= added.min() < -0.499 and 0.499 < added.max() <= 0.5001
    assert abs(added.mean()) < 0.005 and math.isclose(added.var(), 0.25 / 3, rel_tol=0.01)
    assert gaussian(0.3)(x).max() > 1 and uniform(0.5)(x).min() < 0


def test_erase_keeps_with_the_probability_given_and_does_not_rescale():
    kept = erase(0.8)(grey(), draws())
    assert set(kept.unique().tolist()) == {0, 0.5}
    assert math.isclose((kept > 0).float().mean(), 0.8, abs_tol=0.005)  # 80,000 values: standard error 0.0014
    assert math.isclose((erase(0.25)(grey(), draws()) > 0).float().mean(), 0.25, abs_tol=0.006)


def test_salt_and_pepper_takes_half_of_the_share_each():
    out = salt_and_pepper(0.3)(grey(), draws())
    assert set(out.unique().tolist()) == {0, 0.5, 1}
    for value, share in ((0, 0.15), (1, 0.15), (0.5, 0.7)):
        assert math.isclose((out == value).float().mean(), share, abs_tol=0.006)


@pytest.mark.parametrize(("shape", "size"), [((1, 8, 8), 3), ((3, 6, 11), 6), ((1, 7, 7), 7), ((2, 5, 9), 1)])
def test_erase_block_takes_one_square_anywhere_inside(shape, size):
    out = erase_block(size)(torch.ones(600, *shape), draws())
    gone = out == 0
    assert (gone.sum((2, 3)) == size * size).all() and (gone == gone[:, :1]).all()
    rows, columns = gone[:, 0].any(2), gone[:, 0].any(1)
    assert (rows.sum(1) == size).all() and (columns.sum(1) == size).all()
    firsts = rows.float().argmax(1), columns.float().argmax(1)
    for first, side in zip(firsts, shape[1:]):
        assert set(first.tolist()) == set(range(side - size + 1))  # 600 draws reach every place


def test_compose_applies_from_left_to_right():
    x = torch.rand(3, 1, 8, 8)
    g, h = draws(), draws()
    assert torch.equal(compose(gaussian(0.3), erase(0.5))(x, g), erase(0.5)(gaussian(0.3)(x, h), h))
    assert (compose(gaussian(0.3), erase(0.5))(x) == 0).any() and not (compose(erase(0.5), gaussian(0.3))(x) == 0).any()


def test_levels_at_the_ends():
    x = torch.rand(6, 1, 5, 5)
    for nothing in (gaussian(0), uniform(0), erase(1), salt_and_pepper(0)):
        assert torch.equal(nothing(x), x)
    assert erase(0)(x).abs().max() == 0 and set(salt_and_pepper(1)(x).unique().tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("make", "value", "words"),
    [
        (gaussian, -0.1, "sigma"), (gaussian, math.nan, "sigma"), (gaussian, math.inf, "sigma"), (gaussian, "0.3", "sigma"),
        (gaussian, True, "sigma"), (uniform, -1, "width"), (erase, 1.2, "keep"), (erase, -0.1, "keep"), (salt_and_pepper, 1.01, "share"),
        (salt_and_pepper, -1e-9, "share"), (erase_block, 0, "size"), (erase_block, 2.0, "size"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(make, value, words):
    with pytest.raises(BadArgument, match=rf"{words}: got .*expected"):
        make(value)


def test_other_bad_input_is_refused():
    with pytest.raises(BadArgument, match="size: got 9"):
        erase_block(9)(torch.rand(2, 1, 8, 12))
    with pytest.raises(BadArgument, match=r"expected \(N, C, H, W\)"):
        erase_block(1)(torch.rand(2, 8))
    with pytest.raises(BadArgument, match="compose"):
        compose()
    with pytest.raises(BadArgument, match="under @corruption"):
        compose(lambda x, generator: x)
    with pytest.raises(BadArgument, match="under @corruption"):
        dae(lambda x: x)
    with pytest.raises(UnknownName, match="did you mean gaussian"):
        as_corruption({"kind": "gausian", "sigma": 0.1})
    with pytest.raises(DataError, match="expected floats"):
        gaussian(0.1)(torch.zeros(2, 1, 3, 3, dtype=torch.uint8))
    with pytest.raises(BadArgument, match="manifold"):
        manifold("torus")
    with pytest.raises(BadArgument, match="variance"):
        linear_denoiser(torch.rand(5, 3), -1)


def test_a_corruption_of_ones_own_is_enrolled_and_saved(tmp_path):
    @corruption
    def darken(factor: float):
        return lambda x, generator: factor * x

    try:
        model = dae(darken(0.5))
        save_model(model, tmp_path / "m.safetensors")
        again = load_model(tmp_path / "m.safetensors")
        assert again.corruption == {"kind": "darken", "factor": 0.5}
        assert_close(again.corrupt(torch.ones(2)), torch.full((2,), 0.5))
    finally:
        del CORRUPTIONS["darken"]


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("noise", EVERY, ids=repr)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_save_and_load(tmp_path, noise, reduction):
    model = dae(noise, reduction=reduction).eval()
    save_model(model, tmp_path / "m.safetensors")
    again, x = load_model(tmp_path / "m.safetensors"), torch.rand(7, 1, 6, 6)
    assert type(again) is DenoisingAutoencoder and again.corruption == noise and again.reduction == reduction
    assert torch.equal(again(x), model(x))
    assert evaluate(again, x, corrupt=True) == evaluate(model, x, corrupt=True)


@pytest.mark.parametrize(("reconstruction", "reduction"), [("mse", "mean"), ("mse", "sum"), ("bce", "mean"), ("gaussian", "sum")])
def test_the_loss_is_that_of_the_clean_image_given_the_corrupted(reconstruction, reduction):
    model, x = dae(gaussian(0.4), reconstruction=reconstruction, reduction=reduction, sigma=0.5), torch.rand(9, 1, 6, 6)
    model.train()
    torch.manual_seed(3)
    loss = model.loss_terms(x)["reconstruction"]
    torch.manual_seed(3)
    assert_close(loss, model.per_image(model(gaussian(0.4)(x)), x).mean())
    model.eval()
    assert_close(model.loss_terms(x)["reconstruction"], model.per_image(model(x), x).mean())


def test_corruption_applies_in_training_only_unless_asked():
    model, x = dae(gaussian(1.0)), torch.rand(40, 1, 6, 6)
    with seeded(0):
        plain = Autoencoder(*mlp((1, 6, 6), hidden=(16,), latent_dim=4))
    assert evaluate(model, x)["loss"] == evaluate(plain, x)["loss"]
    noisy = [evaluate(model, x, corrupt=True, seed=s)["loss"] for s in (0, 0, 1)]
    assert noisy[0] == noisy[1] and len({evaluate(model, x)["loss"], *noisy}) == 3


def test_drawn_once_shows_the_same_copy_in_training_and_nothing_otherwise():
    images = load("digits", limit=60)
    drawn = noised_once(gaussian(0.3), images, seed=5)
    assert torch.equal(drawn.x, images.x) and not images.extras
    assert torch.equal(drawn.extras["corrupted"], noised_once(gaussian(0.3), images, seed=5).extras["corrupted"])
    for other in (noised_once(gaussian(0.3), images, seed=6).extras["corrupted"], once(gaussian(0.3), images, seed=5)):
        assert not torch.equal(drawn.extras["corrupted"], other)  # other noise for another seed, and for what is drawn to measure
    model = dae(gaussian(0.3), shape=(1, 8, 8))
    with torch.no_grad():
        x = images.pixels()
        wanted = (model.eval()(drawn.extras["corrupted"]) - x).square().mean()
    assert_close(evaluate(model, drawn, corrupt=True)["loss"], wanted.item(), rtol=1e-6, atol=0)
    assert evaluate(model, drawn, corrupt=True, seed=0) == evaluate(model, drawn, corrupt=True, seed=1)  # nothing is drawn
    assert evaluate(model, drawn) == evaluate(model, images)
    shown, forward = [], model.forward
    model.forward = lambda x: shown.append(x.clone()) or forward(x)
    fit(model, drawn, epochs=2, batch_size=None, progress=False)
    assert torch.equal(shown[0].flatten(1).sum(1).sort().values, shown[1].flatten(1).sum(1).sort().values)
    shown.clear()
    fit(model, images, epochs=2, batch_size=None, progress=False)
    assert not torch.allclose(shown[0].flatten(1).sum(1).sort().values, shown[1].flatten(1).sum(1).sort().values)


def test_training_resumes_bit_for_bit_and_goes_down(tmp_path):
    x = manifold("circle", 256)
    runs = []
    for stops in ((6,), (2, 6)):
        model = DenoisingAutoencoder(*_small(), uniform(0.2))
        for i, epochs in enumerate(stops):
            history = fit(model, x, epochs=epochs, batch_size=32, lr=1e-2, checkpoint=tmp_path / f"{len(stops)}", progress=False)
            model = model if i == len(stops) - 1 else DenoisingAutoencoder(*_small(), uniform(0.2))
        runs.append((history["loss"], [p.detach() for p in model.parameters()]))
    assert runs[0][0] == runs[1][0] and all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1]))
    assert runs[0][0][-1] < runs[0][0][0] / 5


def _small():
    with seeded(1):
        return mlp((2,), hidden=(), latent_dim=32, code_activation="relu", output="linear")


def test_denoising_gain():
    x = torch.rand(50, 1, 28, 28)
    same = denoising_gain(lambda noisy: noisy, x, gaussian(0.2))
    assert abs(same["psnr_gain"]) < 1e-12 and math.isclose(same["psnr_in"], -20 * math.log10(0.2), abs_tol=0.1)
    assert math.isclose(denoising_gain(lambda n: n, x, uniform(0.5))["psnr_in"], 10 * math.log10(12), abs_tol=0.1)
    clipped = denoising_gain(lambda noisy: noisy.clamp(0, 1), x, gaussian(0.2))
    assert clipped["psnr_out"] == clipped["psnr_clipped"] > clipped["psnr_in"]
    images = images_from((x * 255).byte().numpy())
    assert denoising_gain(lambda n: n, images, gaussian(0.2)) == denoising_gain(lambda n: n, images.pixels(), gaussian(0.2))


def test_linear_denoiser_is_the_regression_of_clean_on_noisy():
    mixing = torch.randn(5, 5, generator=draws()).double()
    x = torch.randn(200_000, 5, generator=draws(1)).double() @ mixing + 3
    noisy = gaussian(1.5)(x, draws(2))
    with_one = torch.cat([noisy, torch.ones(len(x), 1).double()], 1)
    solution = torch.linalg.lstsq(with_one, x).solution
    ours = linear_denoiser(x, 1.5**2)
    probe = torch.randn(20, 5, generator=draws(3)).double() * 4 + 3
    assert_close(ours(probe), torch.cat([probe, torch.ones(20, 1).double()], 1) @ solution, atol=0.05, rtol=0.02)
    assert_close(linear_denoiser(x, 0)(probe), probe)
    assert ours(probe.float().view(20, 1, 5)).shape == (20, 1, 5)


# ---------------------------------------------------------------- score and curves


@pytest.mark.parametrize(("n", "d", "sigma"), [(1, 2, 0.3), (40, 2, 0.1), (300, 2, 0.5), (25, 7, 1.0), (60, 3, 0.03)])
def test_score_is_the_gradient_of_the_log_density(n, d, sigma):
    data = torch.randn(n, d, generator=draws(), dtype=torch.float64)
    x = (data[torch.randint(n, (30,), generator=draws(1))] + sigma * torch.randn(30, d, generator=draws(2)).double()).requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(x, data, sigma).sum(), x)
    assert_close(score(x, data, sigma), gradient, rtol=1e-8, atol=1e-8)


def test_log_density_is_a_density():
    data = manifold("two moons", 50).double()
    side = torch.linspace(-4, 4, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    assert math.isclose(log_density(grid, data, 0.2).exp().sum() * (side[1] - side[0]) ** 2, 1, rel_tol=1e-6)


def test_far_away_nothing_overflows():
    data, far = manifold("circle", 100), torch.tensor([[1e3, -1e3]])
    assert score(far, data, 0.05).isfinite().all()
    assert_close(posterior_mean(far, data, 0.05), nearest(far, data), atol=0.01, rtol=0)  # the nearest point takes all of the weight


def test_a_denoiser_that_is_optimal_has_the_score_as_its_field():
    data, sigma = manifold("spiral", 400), 0.2
    x = once(gaussian(sigma), data)

    class Best(torch.nn.Module):
        def forward(self, x):
            return posterior_mean(x, data, sigma)

    assert_close(vector_field(Best(), x) / sigma**2, score(x, data, sigma))
    assert angle_between(vector_field(Best(), x), score(x, data, sigma)).max() < 0.1


def test_no_map_beats_the_posterior_mean():
    data, sigma = manifold("circle", 200), 0.3
    noisy = torch.cat([once(gaussian(sigma), data, seed) for seed in range(50)])
    clean = data.repeat(50, 1)
    error = lambda out: (out - clean).square().sum(1).mean().item()
    best = error(posterior_mean(noisy, data, sigma))
    assert best < min(error(noisy), error(nearest(noisy, data)), error(noisy / noisy.norm(dim=1, keepdim=True)), error(0 * noisy))


def test_angle_between():
    a = torch.tensor([[1.0, 0], [0, 2], [3, 0], [1, 1], [0, 0]])
    b = torch.tensor([[0, 5.0], [0, 1], [-1, 0], [1, 0], [1, 0]])
    assert_close(angle_between(a, b)[:4], torch.tensor([90, 0, 180, 45.0]).double(), atol=1e-6, rtol=0)
    assert angle_between(a, b)[4].isnan()
    tiny = torch.tensor([[1.0, 1e-9]], dtype=torch.float64)
    assert_close(angle_between(tiny, torch.tensor([[1.0, 0]])).item(), math.degrees(1e-9), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", MANIFOLDS)
def test_manifolds_are_evenly_spaced_and_on_the_curve(name):
    points = manifold(name, 1000)
    assert points.shape == (1000, 2) and points.dtype == torch.float32 and torch.equal(points, manifold(name, 1000))
    gaps = torch.cat([piece.diff(dim=0).norm(dim=1) for piece in points.chunk(2 if name == "two moons" else 1)])
    assert gaps.max() / gaps.min() < 1.2
    assert 0.5 < points.norm(dim=1).max() < 2
    if name == "circle":
        assert_close(points.norm(dim=1), torch.ones(1000), atol=1e-5, rtol=0)
        x = torch.randn(50, 2, generator=draws())
        assert angle_between(nearest(x, manifold("circle", 20_000)), x).max() < 0.05


def test_without_noise_the_linear_denoiser_keeps_the_plane_of_the_data():
    "An eigenvalue of exactly 0 and a variance of 0: nothing to shrink, and no 0 / 0."
    flat = torch.zeros(5, 1, 2, 2)
    flat[:, 0, 0, 0] = torch.arange(5.0)
    x = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    kept = linear_denoiser(flat, 0.0)(x)
    assert_close(kept[:, 0, 0, 0], x[:, 0, 0, 0])
    assert_close(kept.flatten(1)[:, 1:], torch.zeros(3, 3))
