"Anomaly scores, curves, thresholds and the detector: against scikit-learn and the definitions, its conventions, bad input."

import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_estimator
from torch.testing import assert_close

from ae_course import anomaly
from ae_course.anomaly import BASELINES, auc, baseline, bound_score, curve, error_score, leave_out, limit, probability_score
from ae_course.autoencoder import Autoencoder, mlp
from ae_course.base import BadArgument
from ae_course.data import images_from, load
from ae_course.linear import PCA
from ae_course.training import seeded
from ae_course.variational import VAE, elbo, variational_mlp

AnomalyDetector = anomaly.AnomalyDetector  # made when first asked for


def some(n=40, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def labelled(labels):
    return images_from(np.random.default_rng(0).random((len(labels), 8, 8)), labels)


# ---------------------------------------------------------------- area, curves, threshold


@pytest.mark.parametrize("seed", range(8))
def test_area_is_scikit_learns_and_the_share_of_pairs_with_ties(seed):
    rng = np.random.default_rng(seed)
    s, y = rng.integers(0, 2 + 3 * seed, 50), np.arange(50) < 4 + seed
    found = auc(torch.from_numpy(s).float(), torch.from_numpy(y))
    pairs = (s[y][:, None] > s[~y]) + 0.5 * (s[y][:, None] == s[~y])
    assert math.isclose(found.estimate, roc_auc_score(y, s)) and math.isclose(found.estimate, pairs.mean())
    over, under = pairs.mean(1), pairs.mean(0)
    half = 1.959963985 * math.sqrt(over.var(ddof=1) / len(over) + under.var(ddof=1) / len(under))
    assert math.isclose(found.high, min(1, found.estimate + half)) and math.isclose(found.low, max(0, found.estimate - half))


def test_area_knows_perfect_worthless_and_reversed_scores():
    y = np.arange(30) < 10
    assert auc(y.astype(float), y) == (1, 1, 1) and auc(1 - y.astype(float), y).estimate == 0 and auc(np.zeros(30), y).estimate == 0.5
    s = some(30, 1)[:, 0]
    assert math.isclose(auc(s, y).estimate + auc(-s, y).estimate, 1) and auc(s, y) == auc(np.exp(s), y)


@pytest.mark.parametrize("kind", ["roc", "pr"])
def test_curve_lies_on_scikit_learns_points_within_its_band(kind):
    rng = np.random.default_rng(3)
    y = np.arange(300) < 60
    s = rng.normal(size=300) + y
    found = curve(s, y, kind, draws=60)
    assert found == tuple(found) and np.array_equal(found.x, np.linspace(0, 1, 101))
    if kind == "roc":
        x, height, _ = roc_curve(y, s)
        assert all(height[x <= g].max() == v for g, v in zip(found.x, found.y))
        area, own = roc_auc_score(y, s), auc(s, y)
        assert abs((found.area.high - found.area.low) / (own.high - own.low) - 1) < 0.35
    else:
        height, x, _ = precision_recall_curve(y, s)
        assert all(height[x >= g][x[x >= g].argmin()] in height for g in found.x) and np.isin(found.y, height).all()
        area = average_precision_score(y, s)
    assert math.isclose(found.area.estimate, area) and found.area.low < area < found.area.high
    assert (found.low <= found.high).all() and ((found.low <= found.y) & (found.y <= found.high)).mean() > 0.9
    again = curve(s, y, kind, draws=60)
    assert all(np.array_equal(a, b) for a, b in zip(found, again)) and not np.array_equal(found.low, curve(s, y, kind, 60, seed=1).low)


@pytest.mark.parametrize(("n", "rate", "k"), [(19, 0.05, 19), (39, 0.05, 38), (9, 0.1, 9), (99, 0.01, 99), (100, 0.05, 96), (1, 0.5, 1)])
def test_threshold_is_the_kth_of_the_sorted_scores(n, rate, k):
    scores = torch.randperm(n, generator=torch.Generator().manual_seed(n)).double() + 1
    assert limit(scores, rate) == k
    assert (n + 1 - k) / (n + 1) <= rate + 1e-12 < (n + 2 - k) / (n + 1) + 1e-12  # one place lower would promise too much


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_threshold_keeps_its_promise_on_new_scores(rate):
    draws = np.random.default_rng(1).standard_cauchy((8000, 60))
    alarms = np.mean([row[-1] > limit(row[:-1], rate) for row in draws])
    assert abs(alarms - rate) < 4 * math.sqrt(rate * (1 - rate) / 8000)


# ---------------------------------------------------------------- scores


def test_error_is_the_mean_over_the_values_of_each_row():
    with seeded(0):
        model = Autoencoder(*mlp((1, 4, 4), (8,), 2)).eval()
    x = torch.rand(2300, 1, 4, 4)
    assert_close(error_score(model, x), (model(x) - x).square().mean((1, 2, 3)).detach())
    assert not error_score(model, x).requires_grad


@pytest.mark.parametrize("likelihood", ["bce", "gaussian"])
def test_bound_and_probability_are_their_definitions_row_by_row(likelihood):
    with seeded(0):
        model = VAE(*variational_mlp((1, 4, 4), (8,), 3), reconstruction=likelihood).eval().double()
    x = torch.rand(280, 1, 4, 4, dtype=torch.float64)
    bound, probability = bound_score(model, x, 800), probability_score(model, x, 800)
    assert_close(-bound, elbo(model, x, 800), rtol=0.02, atol=0.02)
    assert_close(bound - probability, model.posterior(x).kl().sum(1).detach())
    assert_close(bound_score(model, x[270:], 5), bound_score(model, x, 5)[270:], rtol=1e-9, atol=0)  # whatever stands beside it
    assert (bound_score(model, x, 5, seed=1) != bound_score(model, x, 5)).all()


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_score_strangers_higher_and_repeat_themselves(name):
    x = torch.rand(200, 1, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.2
    far = x[:20] + torch.linspace(1, 2, 9).view(1, 3, 3) * torch.tensor([1.0, -1, 1]).view(1, 1, 3)
    score = baseline(name, x, components=2)
    marks = np.arange(220) >= 200
    assert auc(torch.cat([score(x), score(far)]), marks).low > 0.9
    assert torch.equal(score(far), baseline(name, x, components=2)(far))
    assert_close(score(far)[3:5], score(far[3:5]))


def test_pca_residual_is_pythagoras():
    x = torch.rand(50, 1, 3, 3, dtype=torch.float64)
    pca = PCA(4).fit(x.flatten(1))
    rest = x.flatten(1) - pca.mean
    assert_close(baseline("pca", x, 4)(x), (rest.square().sum(1) - (rest @ pca.components.T).square().sum(1)) / 9)


# ---------------------------------------------------------------- leaving a class out


def test_a_class_is_left_out_and_nothing_is_lost():
    train, test = load("digits"), load("digits", "test")
    split = leave_out(train, test, 3, validation=0.25)
    seen = torch.cat([split.train.y, split.validation.y])
    assert 3 not in seen and len(seen) == (train.y != 3).sum() and len(split.validation) == round(0.25 * len(seen))
    both = torch.cat([split.train.x, split.validation.x]).flatten(1)
    assert torch.equal(torch.unique(both, dim=0), torch.unique(train.x[train.y != 3].flatten(1), dim=0))
    assert torch.equal(split.anomalous, test.y == 3) and split.test is test
    assert not torch.equal(leave_out(train, test, 3, 0.25, seed=1).train.x, split.train.x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: auc([1.0, 2.0], [1, 1]), "2 of 2, expected at least one anomaly and one normal"),
        (lambda: auc([1.0, 2.0], [0, 0]), "0 of 2"),
        (lambda: curve([1.0, 2.0], [0, 0]), "0 of 2"),
        (lambda: auc([1.0, math.nan], [0, 1]), "1 of 2 NaN"),
        (lambda: auc([1.0, 2.0, 3.0], [0, 1]), r"shapes \(3,\) and \(2,\)"),
        (lambda: auc([1.0, 2.0, 3.0], [0, 1, 2]), "0 or 1"),
        (lambda: curve([1.0, 2.0], [0, 1], "prc"), "kind"),
        (lambda: curve([1.0, 2.0], [0, 1], draws=0), "draws"),
        (lambda: limit(torch.rand(18)), "0.05 with 18 held-out .* takes 19"),
        (lambda: limit([], 0.5), "takes 1 of them"),
        (lambda: limit(torch.rand(18), 0), "false_alarms: got 0"),
        (lambda: limit([1.0, math.inf], 0.5), "finite: False"),
        (lambda: baseline("pac", torch.rand(9, 4)), "name"),
        (lambda: leave_out(labelled([0, 0, 1, 1]), labelled([0, 1]), 5), "label: got 5, which 0 of 2"),
        (lambda: leave_out(labelled([0, 0, 0, 0]), labelled([0, 0]), 0), "2 of 2 test images"),
        (lambda: leave_out(labelled([0, 0, 1, 1]), labelled([0, 1]), 0, 1.0), "validation: got 1.0"),
        (lambda: leave_out(labelled([0, 0, 1]), images_from(np.zeros((2, 8, 8), np.uint8)), 0), "test: got no labels"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(call, words):
    with pytest.raises(BadArgument, match=words):
        call()


# ---------------------------------------------------------------- the detector


@pytest.mark.parametrize("criterion", ["error", "bound", "probability"])
def test_detector_passes_scikit_learns_own_checks(criterion):
    results = check_estimator(AnomalyDetector(criterion=criterion, epochs=2), on_skip=None)
    assert len(results) > 30 and not [r for r in results if r["status"] == "failed"]


def test_detector_finds_what_leaves_the_plane_and_keeps_its_rate_of_false_alarms():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(2, 6))
    normal = rng.normal(size=(1500, 2)) @ plane + 0.05 * rng.normal(size=(1500, 6))
    strange = rng.normal(size=(100, 6)) * normal.std(0)
    found = AnomalyDetector(latent_dim=2, epochs=40, false_alarms=0.1, random_state=0).fit(normal[:1000])
    assert auc(-found.score_samples(np.concatenate([normal[1000:], strange])), np.arange(600) >= 500).low > 0.9
    assert abs((found.predict(normal[1000:]) == -1).mean() - 0.1) < 0.07 and (found.predict(strange) == -1).mean() > 0.8
    assert np.array_equal(found.decision_function(strange), found.score_samples(strange) - found.offset_)
    assert np.array_equal(found.predict(strange) == 1, found.decision_function(strange) >= 0)
    again = AnomalyDetector(latent_dim=2, epochs=40, false_alarms=0.1, random_state=0).fit(normal[:1000])
    assert np.array_equal(found.score_samples(strange), again.score_samples(strange))


def test_detector_clones_pickles_and_works_in_pipelines_and_searches():
    X = some(60)
    pipeline = make_pipeline(MinMaxScaler(), AnomalyDetector(epochs=1, random_state=0)).fit(X)
    assert np.array_equal(pickle.loads(pickle.dumps(pipeline)).score_samples(X), pipeline.score_samples(X))
    copy = clone(AnomalyDetector(latent_dim=3))
    assert copy.latent_dim == 3 and not hasattr(copy, "model_") and type(copy) is AnomalyDetector
    search = GridSearchCV(AnomalyDetector(epochs=1, random_state=0), {"latent_dim": [1, 2]}, cv=2,
                          scoring=lambda model, X, y=None: model.score_samples(X).mean()).fit(X)  # fmt: skip
    assert search.best_params_["latent_dim"] in (1, 2) and (AnomalyDetector(epochs=1).fit_predict(X) != 0).all()


def test_detector_of_rows_all_alike_is_defined_and_bad_settings_are_refused():
    X = np.ones((30, 3))
    found = AnomalyDetector(epochs=1, random_state=0).fit(X)
    assert np.isfinite(found.score_samples(X)).all() and (found.predict(X) == 1).all()
    few = AnomalyDetector(epochs=1, random_state=0).fit(some(12))  # too few for 0.05: what they can promise
    assert np.isclose(few.score_samples(some(12)), few.offset_, rtol=1e-9).any()
    for wrong, words in (({"criterion": "mse"}, "criterion"), ({"validation": 0.0}, "validation"), ({"epochs": -1}, "epochs"),
                         ({"false_alarms": 1.5}, "false_alarms")):  # fmt: skip
        with pytest.raises(BadArgument, match=words):
            AnomalyDetector(**wrong).fit(some())
    with pytest.raises(ValueError, match="NaN"):
        AnomalyDetector(epochs=1).fit(np.full((30, 2), np.nan))
    with pytest.raises(AttributeError, match="no attribute 'Detector'"):
        anomaly.Detector  # noqa: B018
