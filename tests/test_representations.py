"Probes against scikit-learn, leaks and bad folds; canonical correlations that are known, SVCCA, its Fourier form, CKA, bad input."

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.testing import assert_close

from ae_course.autoencoder import Autoencoder, mlp
from ae_course.base import BadArgument
from ae_course.representations import (
    NotConverged,
    TooFewSamples,
    activations,
    cka,
    directions,
    fit_logistic,
    fit_ridge,
    folds,
    fourier_svcca,
    kind_of,
    probe,
    receptive_box,
    similarity,
    spectrum,
    svcca,
    svcca_published,
)

DOUBLE = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def problem(kind, n=240, d=30, seed=0):
    "Codes with units of very different scales and offsets, one of them constant, and a target that depends on them."
    z = normal(n, d, seed=seed)
    logits = z[:, :8] @ normal(8, 4, seed=seed + 1) + normal(n, 4, seed=seed + 2)
    y = {"classes": logits.argmax(1), "two": (logits[:, 0] > 0).long(), "labels": (logits > 0.5).long(), "values": logits}[kind]
    z = z * torch.logspace(-2, 2, d, dtype=DOUBLE) + torch.linspace(-9, 9, d, dtype=DOUBLE)
    z[:, 3] = 2.5
    return z, y


def library(z, y, fold, k, decay):
    "The scores of `probe` by scikit-learn's pipelines, fold by fold."
    rows = []
    for f in range(k):
        seen, z_, y_ = (fold != f).numpy(), z.numpy(), y.numpy()
        n = seen.sum()
        if y.is_floating_point():
            said = make_pipeline(StandardScaler(), Ridge(alpha=decay * n)).fit(z_[seen], y_[seen]).predict(z_[~seen])
            rows.append({"mse": ((said - y_[~seen]) ** 2).mean()})
            continue
        logistic = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (n * decay), tol=1e-8, max_iter=9999))
        if y.ndim == 2:
            out = np.stack([logistic.fit(z_[seen], y_[seen, i]).decision_function(z_[~seen]) for i in range(y.shape[1])], 1)
            said, auc = (out > 0).astype(int), roc_auc_score(y_[~seen], out, average="macro")
        else:
            model = logistic.fit(z_[seen], y_[seen])
            out, said = model.decision_function(z_[~seen]), model.predict(z_[~seen])
            columns = [out] if out.ndim == 1 else out.T  # two classes: the output of the second
            auc = np.mean([roc_auc_score(y_[~seen] == c + (out.ndim == 1), column) for c, column in enumerate(columns)])
        rows.append({"f1": f1_score(y_[~seen], said, average="macro"), "accuracy": (said == y_[~seen]).mean(), "auc": auc})
    return {score: [row[score] for row in rows] for score in rows[0]}


# ---------------------------------------------------------------- probes


@pytest.mark.parametrize("kind", ["classes", "two", "labels", "values"])
@pytest.mark.parametrize("d", [30, 400])
def test_scores_are_those_of_scikit_learn_fold_by_fold(kind, d):
    z, y = problem(kind, d=d)
    found = probe(z, y, k=4, weight_decay=0.02, seed=3, device="cpu", tolerance=1e-8, floor=0)
    for score, wanted in library(z, y, folds(y, 4, 3), 4, 0.02).items():
        np.testing.assert_allclose(found[score], wanted, atol=1e-6, err_msg=score)


def test_float32_is_close_to_float64_even_far_from_zero():
    z, y = problem("classes")
    exact, single = probe(z, y, device="cpu", tolerance=1e-7), probe((z + 100).float(), y, device="cpu")
    np.testing.assert_allclose(single["f1"], exact["f1"], atol=0.02)
    z, y = problem("values")
    np.testing.assert_allclose(probe(z.float(), y.float(), device="cpu")["mse"], probe(z, y, device="cpu")["mse"], rtol=1e-3)


def test_a_training_part_is_fitted_alone_whatever_stands_beside_it():
    z, y = problem("classes")
    train = torch.rand(len(z), 3, generator=torch.Generator().manual_seed(1)) < 0.7
    together = fit_logistic(z, y, train, tolerance=1e-9)
    for f in range(3):
        assert_close(together[2][:, f], fit_logistic(z, y, train[:, f : f + 1], tolerance=1e-9)[2][:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
def test_nothing_of_the_test_fold_reaches_the_fit(kind):
    "Whatever stands in the test samples, their own outputs apart, the outputs for the training samples stay as they were."
    z, y = problem(kind)
    fold, changed, altered = folds(y, 5, 0), z.clone(), y.clone()
    changed[fold == 2] = changed[fold == 2] * 50 + 1000
    altered[fold == 2] = altered[fold == 2].flip(0)
    train = (fold != 2)[:, None]
    fit = fit_ridge if kind == "values" else lambda z, y, train: fit_logistic(z, y, train, tolerance=1e-7)
    seen = fold != 2
    assert_close(fit(z, y, train)[2][seen], fit(changed, altered, train)[2][seen], atol=1e-3, rtol=1e-3)


def test_labels_of_any_names_and_shapes():
    z, y = problem("classes")
    assert probe(z, y * 7 - 3, device="cpu") == probe(z, y, device="cpu")  # class names do not matter
    maps = z.view(len(z), 5, 3, 2)
    assert probe(maps, y, device="cpu") == probe(z, y, device="cpu")
    one = problem("values")[1][:, 0]
    assert probe(z, one, device="cpu") == probe(z, one[:, None], device="cpu")
    labels = problem("labels")[1]
    assert probe(z, labels.bool(), device="cpu") == probe(z, labels, device="cpu")
    assert [kind_of(t) for t in (y, labels, one)] == ["multinomial", "multilabel", "linear"]


def test_pure_noise_scores_chance():
    z, y = normal(400, 60), torch.arange(400) % 2
    found = probe(z, y, weight_decay=0.1, device="cpu")
    assert abs(np.mean(found["auc"]) - 0.5) < 0.1 and abs(np.mean(found["accuracy"]) - 0.5) < 0.1
    assert np.mean(probe(z, normal(400, 2, seed=1), device="cpu")["r2"]) < 0.1


def test_folds_are_stratified_and_seeded():
    y = torch.cat([torch.zeros(50), torch.ones(13), torch.full((7,), 2)]).long()
    fold = folds(y, 5, 1)
    counts = torch.stack([torch.bincount(y[fold == f], minlength=3) for f in range(5)])
    assert (counts.amax(0) - counts.amin(0)).max() <= 1 and (counts.sum(1) == 14).all()
    assert torch.equal(fold, folds(y, 5, 1)) and not torch.equal(fold, folds(y, 5, 2))
    labels = torch.rand(300, 8, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.5] * 4 + [0.03] * 4)
    fold = folds(labels, 5)
    share = torch.stack([labels[fold == f].sum(0) for f in range(5)])
    assert (share[:, 4:].amax(0) - share[:, 4:].amin(0)).max() <= 2
    assert torch.bincount(folds(normal(11, 2), 5)).tolist() == [3, 2, 2, 2, 2]


@pytest.mark.parametrize("build, says", [
    (lambda: probe(normal(3, 4), torch.tensor([0, 1, 0])), "5 folds for 3 samples"),
    (lambda: probe(normal(20, 4), torch.zeros(20).long()), "one class only, 0"),
    (lambda: probe(normal(20, 4), torch.tensor([1] + [0] * 19)), r"fold \d has one class only"),
    (lambda: probe(normal(20, 4), torch.stack([torch.arange(20) % 2, torch.zeros(20).long()], 1)), "label 1 is always 0"),
    (lambda: probe(normal(20, 4), torch.arange(19) % 2), "20 codes and 19 targets"),
    (lambda: probe(torch.zeros(20, 4).long(), torch.arange(20) % 2), "floating point"),
    (lambda: probe(normal(20, 4) / 0, torch.arange(20) % 2), "finite"),
    (lambda: probe(normal(20, 4), torch.arange(20) % 2, weight_decay=-1), "weight_decay"),
    (lambda: folds(torch.arange(20) % 2, 1), "at least 2 folds"),
])  # fmt: skip
def test_probes_that_cannot_be(build, says):
    with pytest.raises(BadArgument, match=says):
        build()


def test_a_fit_that_is_cut_short_says_so():
    z, y = problem("classes")
    with pytest.warns(NotConverged, match="derivative"):
        fit_logistic(z, y, torch.ones(len(z), 1), tolerance=1e-10, max_iter=3)


# ---------------------------------------------------------------- canonical correlations


def given(correlations, n, seed=0):
    "Codes of n samples with these canonical correlations in the limit of many, each mixed by an invertible matrix."
    rho = torch.tensor(correlations, dtype=DOUBLE)
    g, other = normal(2, n, len(rho), seed=seed)
    h = rho * g + (1 - rho**2).sqrt() * other
    return g @ normal(len(rho), len(rho), seed=seed + 1) + 4, h @ normal(len(rho), len(rho), seed=seed + 2) - 1


@pytest.mark.parametrize("correlations", [[0.9, 0.6, 0.3], [0.99, 0.0], [0.7] * 5])
def test_known_canonical_correlations_are_found(correlations):
    found = svcca(*given(correlations, 60_000), keep=1.0)
    assert_close(found.correlations, torch.tensor(correlations, dtype=DOUBLE), atol=0.02, rtol=0)
    assert found.kept == (len(correlations),) * 2 and found.samples == 60_000


@pytest.mark.parametrize("n, d", [(200, 12), (20, 60)])
def test_a_code_and_an_invertible_map_of_it(n, d):
    a = normal(n, d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TooFewSamples)
        found = svcca(a, a @ normal(d, d, seed=1) + 3, keep=1.0)
    assert abs(found.score - 1) < 1e-6 and found.kept[0] == min(n - 1, d)


def test_the_dual_form_is_the_same_measure():
    "More units than samples, by the Gram matrix; against a full singular value decomposition."
    a, b = normal(50, 80) * torch.logspace(0, -2, 80, dtype=DOUBLE), normal(50, 70, seed=1) * torch.logspace(0, -2, 70, dtype=DOUBLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TooFewSamples)
        found = svcca(a, b, keep=0.9)
    bases = []
    for z in (a, b):
        u, s, _ = torch.linalg.svd(z - z.mean(0), full_matrices=False)
        bases.append(u[:, : int((s.square().cumsum(0) < 0.9 * s.square().sum()).sum()) + 1])
    assert found.kept == tuple(basis.shape[1] for basis in bases)
    assert_close(found.correlations, torch.linalg.svdvals(bases[0].T @ bases[1]), atol=1e-9, rtol=0)


def test_variance_that_is_kept():
    z = normal(500, 4) * torch.tensor([10.0, 5.0, 0.1, 0.01], dtype=DOUBLE)
    basis = directions(z[None])
    assert [similarity(basis, basis, keep, warn=False).kept[0] for keep in (0.5, 0.99, 0.99999, 1.0)] == [1, 2, 3, 4]


@pytest.mark.parametrize("shape", [(600, 700), (700, 600)])
@pytest.mark.parametrize("keep", [0.9, 1.0])
def test_large_matrices_take_another_way_to_the_same_directions(shape, keep):
    z = normal(*shape) * torch.arange(1, shape[1] + 1, dtype=DOUBLE) ** -0.7
    basis = directions(z[None], keep=keep)
    _, s, v = torch.linalg.svd((z - z.mean(0)).T, full_matrices=False)
    k = int((s.square().cumsum(0) < keep * (1 - 1e-12) * s.square().sum()).sum()) + 1
    assert basis.u.shape[2] >= min(k, 599) and (keep == 1.0 or basis.u.shape[2] < 600)
    assert_close(basis.variance[0, : k - 1], s.square()[: k - 1], rtol=1e-8, atol=0)
    overlap = torch.linalg.svdvals(basis.u[0, :, : k - 1].T @ v[: k - 1].T)
    assert_close(overlap, torch.ones_like(overlap), atol=1e-7, rtol=0)
    if keep < 1:
        with pytest.raises(BadArgument, match="keep: got 0.95, expected at most 0.9"):
            similarity(basis, basis, 0.95)


def test_independent_data_reach_what_chance_says_and_no_more():
    for n, p, q in ((400, 20, 10), (100, 30, 30)):
        drawn = [svcca_quiet(normal(n, p, seed=s), normal(n, q, seed=s + 500)) for s in range(8)]
        found = torch.stack([d.correlations for d in drawn]).square().mean().sqrt().item()
        assert abs(found - drawn[0].chance) < 0.05 and abs(drawn[0].chance - (max(p, q) / (n - 1)) ** 0.5) < 1e-9


def svcca_quiet(a, b, keep=1.0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TooFewSamples)
        return svcca(a, b, keep)


def test_few_samples_are_warned_of_with_the_numbers():
    with pytest.warns(TooFewSamples, match=r"100 samples for up to 40 directions.*0\.64.*445 samples"):
        svcca(normal(100, 40), normal(100, 5, seed=1), keep=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svcca(normal(1000, 10), normal(1000, 5, seed=1))


# ---------------------------------------------------------------- maps


def shifts(images):
    side = images.shape[-1]
    return torch.cat([images.roll((i, j), (2, 3)) for i in range(side) for j in range(side)])


def layer(images, channels, seed):
    "A convolution that wraps around, and ReLU."
    filters = normal(channels, images.shape[1], 3, 3, seed=seed)
    return torch.relu(F.conv2d(F.pad(images, (1, 1, 1, 1), mode="circular"), filters))


@pytest.mark.parametrize("side, keep", [(4, 0.99), (5, 0.9), (5, 1.0), (4, 1.0)])
def test_the_fourier_form_is_exact_on_translated_data(side, keep):
    images = shifts(torch.rand(30, 1, side, side, generator=torch.Generator().manual_seed(0), dtype=DOUBLE))
    a, b = layer(images, 3, 1), layer(images, 2, 2)
    flat, fourier = svcca_quiet(a, b, keep), fourier_svcca(a, b, keep)
    assert flat.kept == fourier.kept
    assert_close(flat.correlations, fourier.correlations, atol=1e-6, rtol=0)


def test_a_shift_of_one_code_changes_nothing_in_the_fourier_form():
    a, b = normal(300, 4, 6, 6), normal(300, 3, 6, 6, seed=1)
    b = b + a[:, :3]
    assert abs(fourier_svcca(a, b).score - fourier_svcca(a, b.roll((2, 1), (2, 3))).score) < 1e-9


def test_maps_of_other_sizes_are_compared_at_shared_frequencies():
    small = normal(400, 3, 3, 3)
    grid = torch.fft.fft2(small)
    padded = torch.zeros(400, 3, 6, 6, dtype=torch.complex128)  # the same map on a finer grid: zeros at higher frequencies
    at = [0, 1, 5]
    for i, row in enumerate(at):
        for j, column in enumerate(at):
            padded[:, :, row, column] = grid[:, :, i, j]
    large = torch.fft.ifft2(padded).real
    assert abs(fourier_svcca(small, large).score - 1) < 1e-8
    assert spectrum(large, 3).shape == (9, 400, 3) and spectrum(large).shape == (36, 400, 3)


def literally(a, b):
    "The published program's steps, one after another, in NumPy."
    m = min(a.shape[-1], b.shape[-1])
    fa, fb = (np.fft.fft2(z.numpy(), axes=(2, 3)) for z in (a, b))
    scores = []
    for i in range(m):
        for j in range(m):
            cut = []
            for z in (fa[:, :, i, j].T, fb[:, :, i, j].T):
                z = z - z.mean(0, keepdims=True)
                u, s, _ = np.linalg.svd(z)
                held, count = 0.0, 1
                while held < 0.99:
                    held = s[:count].sum() / s.sum()
                    count += 1
                cut.append(u.T[:count] @ z)
            p, q = cut
            cov = np.cov(p, q)
            xx, yy, xy = cov[: len(p), : len(p)].copy(), cov[len(p) :, len(p) :].copy(), cov[: len(p), len(p) :].copy()
            x_max, y_max = np.abs(xx).max(), np.abs(yy).max()
            xx, yy, xy = xx / x_max, yy / y_max, xy / np.sqrt(x_max * y_max)
            rows, columns = np.abs(np.diag(xx)) >= 1e-5, np.abs(np.diag(yy)) >= 1e-5
            roots = []
            for c, keep in ((xx, rows), (yy, columns)):
                w, v = np.linalg.eigh(np.linalg.pinv(c[keep][:, keep] + 1e-5 * np.eye(keep.sum())))
                roots.append(v @ np.diag(np.sqrt(w)) @ v.conj().T)
            s = np.linalg.svd(roots[0] @ xy[rows][:, columns] @ roots[1])[1]
            count = next(k for k in range(len(s) + 1) if s[:k].sum() / s.sum() >= 0.98)
            scores.append(s[:count].mean())
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize("sizes", [(3, 3), (3, 6)])
def test_the_published_form_follows_the_published_steps(sizes):
    shared = normal(60, 5, 6, 6)
    a, b = (F.adaptive_avg_pool2d(shared[:, :c] + 0.3 * normal(60, c, 6, 6, seed=c), s) for c, s in zip((4, 5), sizes))
    assert svcca_published(a, b) == pytest.approx(literally(a, b), abs=1e-6)


# ---------------------------------------------------------------- CKA


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_is_blind_to_rotations_scale_and_offset_alone(debiased):
    a, b = normal(80, 10), normal(80, 6, seed=1)
    b = b + a[:, :6]
    turn = torch.linalg.qr(normal(10, 10, seed=2)).Q
    value = cka(a, b, debiased)
    assert cka(-2 * a @ turn + 7, b, debiased) == pytest.approx(value, abs=1e-12) and cka(b, a, debiased) == pytest.approx(value, abs=1e-12)
    assert cka(a, a, debiased) == pytest.approx(1) and 0.1 < value < 0.9
    assert abs(cka(a @ torch.diag(torch.logspace(0, 2, 10, dtype=DOUBLE)), b, debiased) - value) > 0.05


def test_cka_of_unrelated_codes():
    drawn = [normal(2, 40, 200, seed=s) for s in range(30)]
    assert np.mean([cka(a, b, debiased=False) for a, b in drawn]) > 0.7
    assert abs(np.mean([cka(a, b) for a, b in drawn])) < 0.03


# ---------------------------------------------------------------- bad input, activations


@pytest.mark.parametrize("measure", [svcca, fourier_svcca, cka, svcca_published])
def test_codes_that_cannot_be_compared(measure):
    a = normal(30, 3, 4, 4)
    with pytest.raises(BadArgument, match="30 and 29 samples"):
        measure(a, a[:29])
    with pytest.raises(BadArgument, match="a: the activations are the same for all 30 samples"):
        measure(torch.full((30, 3, 4, 4), 7.3), a)
    with pytest.raises(BadArgument, match="b: the activations are the same"):
        measure(a, torch.zeros(30, 3, 4, 4))


@pytest.mark.parametrize("build, says", [
    (lambda: svcca(normal(1, 4), normal(1, 4)), "at least 2 samples"),
    (lambda: svcca(normal(9, 4) / 0, normal(9, 4)), "finite"),
    (lambda: svcca(normal(9, 4), normal(9, 4), keep=0), "keep: got 0"),
    (lambda: svcca(normal(9, 4), normal(9, 4), keep=1.5), "keep"),
    (lambda: fourier_svcca(normal(9, 4), normal(9, 4)), "square maps"),
    (lambda: fourier_svcca(normal(9, 2, 4, 5), normal(9, 2, 4, 5)), "square maps"),
    (lambda: spectrum(normal(9, 2, 4, 4), 5), "at most 4"),
    (lambda: cka(normal(3, 4), normal(3, 4)), "at least 4"),
])  # fmt: skip
def test_similarities_that_cannot_be(build, says):
    with pytest.raises(BadArgument, match=says):
        build()


def test_the_receptive_box_is_where_the_gradient_is_not_zero():
    conv = lambda *args, **options: torch.nn.Conv2d(1, 1, *args, bias=False, **options)
    chain = torch.nn.Sequential(conv(3, 2, 1), torch.nn.Sequential(conv(4, 2, 1), conv(3, 1, 1)), conv(3, 1, 2, dilation=2)).double()
    for parameter in chain.parameters():
        torch.nn.init.constant_(parameter, 1.0)
    for layer, upto in (("0", 1), ("1.0", None), ("1", 2), ("2", 3)):
        x = torch.zeros(1, 1, 40, 40, dtype=DOUBLE, requires_grad=True)
        y = chain[:upto](x) if upto else chain[1][0](chain[0](x))
        cell = (y.shape[2] // 2, y.shape[3] // 2 - 1)
        seen = torch.autograd.grad(y[0, 0][cell], x)[0][0, 0].nonzero()
        low, high = seen.amin(0).tolist(), (seen.amax(0) + 1).tolist()
        assert receptive_box(chain, layer, cell) == (*low, *high), layer
    with pytest.raises(BadArgument, match="holds no convolution"):
        receptive_box(chain, "3", (0, 0))


def test_activations_of_named_layers():
    model, x = Autoencoder(*mlp((1, 4, 4), hidden=(6,), latent_dim=3)), torch.rand(23, 1, 4, 4)
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    found = activations(model.train(), x, names, batch_size=10)
    assert list(found) == names and all(len(value) == 23 for value in found.values()) and not model.training
    assert_close(activations(model, x, ["encoder"])["encoder"], model.encode(x).detach())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(BadArgument, match="expected one of"):
        activations(model, x, ["nothing"])
