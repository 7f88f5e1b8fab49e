"Metrics against independent computations, at their limits, and where they are undefined."

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from ae_course import metrics as m
from ae_course.base import BadArgument


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(6, 3, 17, 23, generator=g)
    return (x + 0.1 * torch.randn(x.shape, generator=g)).clamp(0, 1), x


def test_importing_is_light():
    import subprocess
    import sys

    code = "import ae_course.metrics, sys; assert not {'scipy', 'sklearn', 'skimage', 'matplotlib', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# errors


def test_per_image_mse_averages_over_each_image_in_double(pair):
    x_hat, x = pair
    expected = ((x_hat.numpy().astype(float) - x.numpy().astype(float)) ** 2).reshape(6, -1).mean(1)
    assert np.allclose(m.per_image_mse(x_hat, x), expected, rtol=1e-12)
    tiny = m.per_image_mse(torch.full((1, 4), 1 + 2**-23), torch.ones(1, 4))
    assert tiny.dtype == torch.float64 and tiny.item() == 2.0**-46
    assert m.per_image_mse(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0])).tolist() == [1, 4]


def test_psnr_agrees_with_scikit_image(pair):
    skimage = pytest.importorskip("skimage.metrics")
    x_hat, x = (t.double() for t in pair)
    theirs = [skimage.peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1) for a, b in zip(x_hat, x)]
    assert np.allclose(m.psnr(x_hat, x), theirs, rtol=1e-12)


def test_psnr_range_and_identical_images(pair):
    x_hat, x = (t.double() for t in pair)
    assert torch.allclose(m.psnr(255 * x_hat, 255 * x, data_range=255), m.psnr(x_hat, x))
    assert m.psnr(x, x).isposinf().all()
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="data_range"):
            m.psnr(x_hat, x, data_range=wrong)


@pytest.mark.parametrize("function", [m.per_image_mse, m.psnr, m.ssim, m.r2])
@pytest.mark.parametrize("spoil,message", [
    (lambda x: (x * 255).byte(), "torch.uint8"),
    (lambda x: x.numpy(), "ndarray"),
    (lambda x: x[:0], "at least one element"),
    (lambda x: x[:3], "one shape"),
    (lambda x: x.flatten(1), "one shape"),
    (lambda x: x / 0, "NaN or infinite"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(pair, function, spoil, message):
    x_hat, x = pair
    with pytest.raises(ValueError, match=message):
        function(spoil(x_hat), x)


# matrices


@pytest.mark.parametrize(("z", "options", "message"), [
    ([[1.0]], {}, "z: got list"),
    (torch.ones(2, 3, 4), {"name": "x"}, r"x: got torch.float32 \(2, 3, 4\), expected a float tensor \(N, k\).*x\.flatten\(1\)"),
    (torch.ones(2, 3).long(), {}, "torch.int64"),
    (torch.ones(2, 3), {"width": 4}, r"\(2, 3\), expected a float tensor \(N, 4\)"),
    (torch.ones(0, 3), {}, r"\(0, 3\)"),
    (torch.tensor([[1.0, 2], [3, math.nan], [math.inf, 0]]), {}, "2 of 3 rows hold NaN or infinite values, the first at index 1"),
])  # fmt: skip
def test_what_is_no_matrix_of_finite_floats_is_named(z, options, message):
    with pytest.raises(BadArgument, match=message):
        m.as_matrix(z, **options)


def test_a_matrix_comes_in_double_without_its_graph():
    z = torch.ones(2, 3, requires_grad=True)
    found = m.as_matrix(z, width=3)
    assert found.dtype == torch.float64 and not found.requires_grad
    assert m.as_matrix(torch.ones(0, 3), empty=True).shape == (0, 3)


# distances


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [0.0, 1.0, 1e4])
def test_squared_distances_keep_their_digits_between_near_points_far_from_zero(far, dtype):
    near = far + 1e-2 * torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = near.to(dtype)
    right = np.array([[math.fsum((u - v) ** 2 for u, v in zip(p, q)) for q in b.tolist()] for p in a.tolist()])
    found = m.squared_distances(a, b)
    assert found.dtype == dtype and np.allclose(found, right, rtol=8 * torch.finfo(dtype).eps, atol=0)
    if far == 1e4 and dtype == torch.float32:  # what torch.cdist does by itself
        assert not np.allclose(torch.cdist(a, b).square(), right, rtol=0.5, atol=0)


def test_squared_distances_have_a_gradient_also_where_they_are_zero():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 3, generator=draw).double().requires_grad_(), torch.randn(6, 3, generator=draw).double()
    assert torch.autograd.gradcheck(m.squared_distances, (a, b.requires_grad_()))
    (gradient,) = torch.autograd.grad(m.squared_distances(a, a.detach()).diagonal().sum(), a)
    assert (gradient == 0).all()
    assert m.squared_distances(a, b[:0]).shape == (4, 0)


# structure


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 11, 40), (300, 1, 13, 12)])
def test_ssim_agrees_with_scikit_image(shape):
    skimage = pytest.importorskip("skimage.metrics")
    g = torch.Generator().manual_seed(1)
    x = torch.rand(shape, generator=g).double()
    x_hat = (x + 0.2 * torch.randn(shape, generator=g)).clamp(0, 1)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "channel_axis": 0}
    theirs = [skimage.structural_similarity(b.numpy(), a.numpy(), **options) for a, b in zip(x_hat, x)]
    assert np.allclose(m.ssim(x_hat, x), theirs, atol=1e-9)


def test_ssim_limits(pair):
    x_hat, x = pair
    assert torch.allclose(m.ssim(x, x), torch.ones(6).double())
    assert torch.allclose(m.ssim(x_hat, x), m.ssim(x, x_hat))  # symmetric
    assert torch.allclose(m.ssim(255 * x_hat, 255 * x, data_range=255), m.ssim(x_hat, x), atol=1e-6)
    black, grey = torch.zeros(1, 1, 11, 11), torch.full((1, 1, 11, 11), 0.5)
    assert m.ssim(black, black) == 1 and math.isclose(m.ssim(grey, black).item(), 1e-4 / (0.25 + 1e-4), rel_tol=1e-9)
    assert m.ssim(1 - x, x).max() < 0  # structure turned round
    with pytest.raises(ValueError, match="at least 11"):
        m.ssim(torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="at least 11"):
        m.ssim(torch.rand(20, 20), torch.rand(20, 20))


# variance


def test_r2_agrees_with_scikit_learn(pair):
    from sklearn.metrics import r2_score

    x_hat, x = (t.flatten(1) for t in pair)
    assert math.isclose(m.r2(x_hat, x), r2_score(x, x_hat, multioutput="variance_weighted"), rel_tol=1e-5)
    y = torch.tensor([1.0, 2.0, 4.0])
    assert math.isclose(m.r2(torch.tensor([1.0, 2.5, 3.0]), y), r2_score(y, [1.0, 2.5, 3.0]), rel_tol=1e-6)


def test_r2_limits_and_where_it_is_undefined(pair):
    x = pair[1]
    assert m.r2(x, x) == 1 and abs(m.r2(x.mean(0, keepdim=True).expand_as(x), x)) < 1e-6 and m.r2(1 - x, x) < 0
    for alike in (torch.full((5, 4), 0.1), torch.zeros(5, 4), x[:1]):
        with pytest.warns(m.UndefinedMetric, match="alike"):
            assert math.isnan(m.r2(torch.rand(alike.shape), alike))


def test_r2_counts_an_error_where_the_target_never_varies():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert m.r2(x + torch.tensor([0.0, 1.0]), x) == 1 - 2 / 0.5


# spectra


@pytest.mark.parametrize("h,w", [(16, 16), (15, 15), (12, 20), (9, 16)])
def test_spectrum_keeps_all_power_and_matches_a_slow_loop(h, w):
    x = torch.rand(3, 2, h, w, generator=torch.Generator().manual_seed(0))
    s = m.radial_spectrum(x)
    assert torch.allclose((s.power * s.count).sum(1) / (h * w), x.double().square().mean((1, 2, 3)))
    assert s.count.sum() == h * w and len(s.frequency) == len(s.count) == s.power.shape[1]
    rings: dict[int, list[float]] = {}
    for fy in np.fft.fftfreq(h):
        for fx in np.fft.fftfreq(w):
            k = sum(x[0, :, a, b].numpy() * np.exp(-2j * np.pi * (fy * a + fx * b)) for a in range(h) for b in range(w))
            rings.setdefault(math.floor(math.hypot(fx, fy) * min(h, w) + 0.5), []).append((np.abs(k) ** 2).mean() / (h * w))
    assert np.allclose(s.power[0], [np.mean(rings[r]) for r in sorted(rings)], rtol=1e-5)


@pytest.mark.parametrize("cycles", [1, 3, 8])
def test_a_sinusoid_has_one_frequency(cycles):
    wave = torch.sin(2 * math.pi * cycles * (torch.arange(16) + 0.25) / 16).expand(1, 1, 16, 16)
    for x in (wave, wave.transpose(2, 3)):
        s = m.radial_spectrum(x)
        assert s.power[0].argmax() == cycles and s.frequency[cycles] == cycles / 16
        assert math.isclose((s.power * s.count)[0, cycles].item(), x.double().square().sum().item(), rel_tol=1e-5)


def test_white_noise_is_flat_at_its_variance():
    x = 3 * torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    s = m.radial_spectrum(x)
    assert ((s.power.mean(0) / 9 - 1).abs() < 5 * (2 / (400 * s.count)).sqrt()).all()
    with pytest.raises(ValueError, match="N, C, H, W"):
        m.radial_spectrum(x[:, 0])


# codes


def test_hoyer_limits_scale_and_formula():
    assert torch.allclose(m.hoyer(-2 * torch.eye(5)), torch.ones(5).double())
    assert torch.allclose(m.hoyer(torch.tensor([[2.0, -2.0, 2.0]])), torch.zeros(1).double(), atol=1e-12)
    z = torch.randn(20, 9, generator=torch.Generator().manual_seed(0))
    slow = [(3 - np.abs(c).sum() / np.sqrt((c**2).sum())) / 2 for c in z.double().numpy()]
    assert np.allclose(m.hoyer(z), slow) and torch.allclose(m.hoyer(1e-30 * z), m.hoyer(z))


def test_hoyer_is_undefined_for_zeros_and_for_one_unit():
    with pytest.warns(m.UndefinedMetric, match="1 of 2 codes are all zero"):
        values = m.hoyer(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert values[0].isnan() and values[1] == 1
    with pytest.warns(m.UndefinedMetric, match="one unit"):
        assert m.hoyer(torch.ones(3, 1)).isnan().all()
    with pytest.raises(ValueError, match="flatten"):
        m.hoyer(torch.rand(2, 3, 4, 4))


def test_inactive_and_dead_shares():
    z = torch.tensor([[1.0, 0.0, -1.0, 0.0], [1.0, 1.0, 0.001, 0.0]])
    assert m.inactive_share(z).tolist() == [0.5, 0.5] and m.dead_share(z) == 0.25
    assert m.inactive_share(z, threshold=1e-6).tolist() == [0.5, 0.25]
    assert torch.equal(m.inactive_share(1e-6 * z), m.inactive_share(z))
    assert m.dead_share(torch.zeros(3, 2)) == 1 and m.inactive_share(torch.zeros(3, 2)).tolist() == [1, 1, 1]
    assert m.dead_share(torch.ones(3, 2)) == 0


def test_correlation_agrees_with_numpy_and_leaves_constants_out():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(50, 4, generator=g) @ torch.randn(4, 4, generator=g) + 100
    rho = np.corrcoef(z.double().numpy(), rowvar=False)
    assert np.allclose(m.correlation(z), rho)
    assert math.isclose(m.mean_correlation(z), np.abs(rho[~np.eye(4, dtype=bool)]).mean())
    with pytest.warns(m.UndefinedMetric, match="1 of 5 units"):
        assert m.correlation(torch.cat([z, torch.full((50, 1), 0.1)], 1))[4].isnan().all()
    with pytest.warns(m.UndefinedMetric, match="1 of 5 units are constant and left out"):
        assert math.isclose(m.mean_correlation(torch.cat([z, torch.ones(50, 1)], 1)), m.mean_correlation(z))
    level = torch.full((3,), 0.1, dtype=torch.float64)
    assert (level - level.mean()).abs().max() > 0  # rounding: constant, although not at its own mean
    with pytest.warns(m.UndefinedMetric, match="1 of 2 units"):
        m.correlation(torch.stack([level, torch.arange(3).double()], 1))
    with pytest.warns(m.UndefinedMetric, match="1 of 2 units move"):
        assert math.isnan(m.mean_correlation(torch.tensor([[1.0, 2.0], [3.0, 2.0]])))
    with pytest.warns(m.UndefinedMetric):
        assert m.correlation(torch.zeros(1, 3)).isnan().all()  # one code


# intervals


def test_bootstrap_agrees_with_scipy_and_with_normal_theory():
    values = np.random.default_rng(0).gamma(2, size=500)
    ours = m.bootstrap_interval(torch.tensor(values), draws=4000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)).confidence_interval
    half = 1.96 * values.std() / math.sqrt(500)
    assert ours.estimate == values.mean()
    assert np.allclose(ours[1:], theirs, atol=0.1 * half)
    assert np.allclose(ours[1:], [values.mean() - half, values.mean() + half], atol=0.15 * half)


def test_bootstrap_takes_statistics_levels_and_seeds():
    values = np.random.default_rng(0).normal(size=101)
    median = m.bootstrap_interval(values, np.median)
    assert median.estimate == np.median(values) and median.low <= median.estimate <= median.high
    narrow, wide = (m.bootstrap_interval(values, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert m.bootstrap_interval(values, seed=3) == m.bootstrap_interval(values, seed=3) != m.bootstrap_interval(values, seed=4)


def test_bootstrap_of_many_values_is_the_same_in_chunks():
    values = np.random.default_rng(0).normal(size=30_000)  # 33 draws at a time
    rng, drawn = np.random.default_rng(0), []
    for size in [33] * 3 + [1]:
        drawn.append(values[rng.integers(30_000, size=(size, 30_000))].mean(1))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    assert np.allclose(m.bootstrap_interval(values, draws=100)[1:], (low, high), rtol=1e-12)


def test_t_interval_agrees_with_scipy():
    values = [0.3, 0.5, 0.45]
    for level in (0.9, 0.95):
        expected = stats.t.interval(level, 2, np.mean(values), stats.sem(values))
        assert np.allclose(m.mean_interval(values, level)[1:], expected)
    assert str(m.mean_interval(values)) == "0.4167 [0.1581, 0.6752]"


@pytest.mark.parametrize("interval", [m.bootstrap_interval, m.mean_interval])
def test_intervals_that_cannot_be(interval):
    with pytest.warns(m.UndefinedMetric, match="one value"):
        only = interval([0.5])
    assert only.estimate == 0.5 and math.isnan(only.low) and math.isnan(only.high)
    for bad in (math.nan, math.inf):
        with pytest.warns(m.UndefinedMetric, match="1 of 3 values are not finite"):
            assert math.isnan(interval([0.5, bad, 0.1]).low)
    for wrong in ([], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="got shape"):
            interval(wrong)
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match="between 0 and 1"):
            interval([1.0, 2.0], level=level)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert interval([2.0, 2.0, 2.0]) == (2, 2, 2)


def test_paired_difference_is_the_interval_of_the_differences():
    rng = np.random.default_rng(0)
    hard = rng.exponential(size=300)
    a, b = hard + 0.05 + 0.01 * rng.normal(size=300), hard
    paired = m.paired_difference(torch.tensor(a), b)
    assert paired == m.bootstrap_interval(a - b) and paired.low > 0
    assert m.bootstrap_interval(a).low < m.bootstrap_interval(b).high  # apart, they overlap
    with pytest.raises(ValueError, match="300 and 299"):
        m.paired_difference(a, b[:-1])


def test_the_interval_covers_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(size=(600, 60))
    held = np.mean([low <= 0 <= high for _, low, high in (m.bootstrap_interval(s, draws=400) for s in samples)])
    assert 0.91 < held < 0.97
    held = np.mean([low <= 0 <= high for _, low, high in (m.mean_interval(s[:3]) for s in samples)])
    assert 0.92 < held < 0.98


def test_probe_is_scikit_learns_and_scales_by_the_training_codes():
    from sklearn.linear_model import LogisticRegression

    draw = torch.Generator().manual_seed(0)
    z, y = torch.randn(300, 4, generator=draw, dtype=torch.float64), torch.arange(300) % 3
    z[:, 0] += y
    z[:, 1] *= 1e-6
    train, test = z[:200], z[200:]
    scale = lambda part: ((part - train.mean(0)) / train.std(0, correction=0)).numpy()
    by_hand = LogisticRegression(max_iter=1000).fit(scale(train), y[:200].numpy()).score(scale(test), y[200:].numpy())
    assert m.probe_accuracy(train, y[:200], test, y[200:]) == by_hand
    assert m.probe_accuracy(train.float(), y[:200], test.float(), y[200:]) == pytest.approx(by_hand, abs=0.02)
    with pytest.raises(ValueError, match="one label a code"):
        m.probe_accuracy(train, y[:199], test, y[200:])
    with pytest.raises(ValueError, match="one class"):
        m.probe_accuracy(train, torch.ones(200), test, y[200:])
