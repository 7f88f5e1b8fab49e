"Classification: kept labels, features, two heads and their batches, the linear optimum, scikit-learn's own checks of the transformer."

import importlib
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator
from torch.testing import assert_close

from ae_course.autoencoder import Autoencoder, load_model, mlp, save_model
from ae_course.base import BadArgument
from ae_course.classification import (
    AutoencoderTransformer,
    Paired,
    SupervisedAutoencoder,
    best_classifier,
    codes,
    keep_labels,
    linear_optimum,
)
from ae_course.convolutional import conv
from ae_course.data import Batch, DataError, Images
from ae_course.denoising import DenoisingAutoencoder, erase
from ae_course.linear import LinearAutoencoder
from ae_course.linear import linear as linear_networks
from ae_course.stacked import Classifier, accuracy
from ae_course.training import fit, seeded
from ae_course.variational import VAE, variational_mlp

CPU = {"device": "cpu", "progress": False}


def pictures(n=60, side=8, classes=3, seed=0):
    "Random images with labels: one column of blocks is bright."
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 60, (n, 1, side, side), generator=draw, dtype=torch.uint8)
    y = torch.randint(0, classes, (n,), generator=draw)
    for k in range(classes):
        x[y == k, :, :, 2 * k : 2 * k + 2] += 150
    return Images(x, y)


def two_heads(weight=1.0, seed=0, classes=3, **options):
    with seeded(seed):
        return SupervisedAutoencoder(*mlp((1, 8, 8), (12,), 5), 5, classes, weight, **options)


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("count", [3, 4, 10, 59, 60])
def test_kept_labels_are_balanced_true_and_nested(count):
    data = pictures()
    kept = keep_labels(data, count, seed=4)
    at = kept.y >= 0
    assert at.sum() == count and torch.equal(kept.y[at], data.y[at]) and torch.equal(kept.x, data.x)
    own, there = (torch.bincount(y, minlength=3) for y in (kept.y[at], data.y))
    short = own < own.max() - 1
    assert torch.equal(own[short], there[short])  # fewer only where there are no more
    more = keep_labels(data, min(60, count + 7), seed=4)
    assert torch.equal(more.y[at], kept.y[at])
    assert count == 60 or not torch.equal(keep_labels(data, count, seed=5).y, kept.y)


def test_labels_that_cannot_be_kept():
    data = pictures()
    for count in (0, 2, 61, 2.5, True):
        with pytest.raises(BadArgument, match="count"):
            keep_labels(data, count)
    with pytest.raises(BadArgument, match="at least two"):
        keep_labels(data[data.y == 1], 5)
    with pytest.raises(DataError, match="labels"):
        keep_labels(Images(data.x), 5)
    partly = keep_labels(data, 20)
    assert torch.equal(keep_labels(partly, None).y, partly.y) and (keep_labels(partly, 9).y >= 0).sum() == 9
    with pytest.raises(BadArgument, match="to 20"):
        keep_labels(partly, 21)


# ---------------------------------------------------------------- features


def test_codes_are_the_encoders_own():
    data = pictures()
    with seeded(0):
        models = [Autoencoder(*mlp((1, 8, 8), (9,), 4)), VAE(*variational_mlp((1, 8, 8), (9,), 4)), Autoencoder(*conv((1, 8, 8), (3, 4)))]
    for model in models:
        z = codes(model.train(), data, batch_size=7)
        assert z.ndim == 2 and not z.requires_grad and not model.training
        assert_close(z, model.encode(data.pixels()).flatten(1).detach())


@pytest.mark.parametrize("kind", ["logistic", "svm"])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_the_best_classifier_is_the_librarys_whatever_the_scale(kind, scale):
    draw = torch.Generator().manual_seed(0)
    z, y = torch.randn(80, 5, generator=draw), torch.arange(80) % 4
    z[:, 0] += y
    train, held, test = slice(0, 40), slice(40, 60), slice(60, 80)
    found = best_classifier(scale * z[train], y[train], scale * z[held], y[held], kind, (0.1, 1.0, 10.0))
    unit = (z / (z[train] - z[train].mean(0)).square().mean().sqrt()).numpy()
    make = {"logistic": lambda C: LogisticRegression(C=C, max_iter=500, tol=1e-3), "svm": lambda C: SVC(C=C)}[kind]
    own = [make(C).fit(unit[train], y[train].numpy()) for C in (0.1, 1.0, 10.0)]
    best = max(own, key=lambda one: one.score(unit[held], y[held].numpy()))
    assert found.score(scale * z[held].numpy(), y[held].numpy()) == pytest.approx(best.score(unit[held], y[held].numpy()), abs=0.051)
    assert np.mean(found.predict(scale * z[test].numpy()) == best.predict(unit[test])) >= 0.9


def test_features_that_cannot_be_classified():
    z, y = torch.randn(10, 3), torch.arange(10) % 2
    with pytest.raises(BadArgument, match="one class"):
        best_classifier(z, torch.ones(10).long(), z, y)
    with pytest.raises(BadArgument, match="one label each"):
        best_classifier(z, y[:9], z, y)
    with pytest.raises(BadArgument, match="logistic, svm"):
        best_classifier(z, y, z, y, "forest")
    assert best_classifier(torch.zeros(10, 3), y, z, y).predict(z.numpy()).shape == (10,)  # features that are all alike


# ---------------------------------------------------------------- two heads


@pytest.mark.parametrize("reconstruction, reduction", [("mse", "mean"), ("bce", "sum")])
def test_the_loss_by_hand(reconstruction, reduction):
    model, data = two_heads(0.7, reconstruction=reconstruction, reduction=reduction), pictures(9)
    y = data.y.clone()
    y[[1, 4, 5]] = -1
    terms = model.loss_terms(Batch(data.pixels(), y))
    logits, at = model.classifier(data.pixels()), (y >= 0).nonzero()[:, 0].tolist()
    by_hand = -sum(math.log(logits[i].softmax(0)[y[i]].item()) for i in at) / len(at)
    assert terms["cross_entropy"].item() == pytest.approx(by_hand, rel=1e-5)
    wanted = model.per_image(model(data.pixels()), data.pixels()).mean()
    assert_close(terms["reconstruction"], 0.7 * wanted)
    unlabelled = model.loss_terms(Batch(data.pixels(), torch.full_like(y, -1)))
    assert unlabelled["cross_entropy"] == 0 and unlabelled["reconstruction"] == terms["reconstruction"]
    with pytest.raises(DataError, match="labels"):
        model.loss_terms(Batch(data.pixels()))


def test_without_weight_it_is_the_plain_classifier():
    data, both = pictures(), two_heads(0.0)
    with seeded(0):
        encoder, _ = mlp((1, 8, 8), (12,), 5)
        single = Classifier(encoder, 5, 3)
    single.head.load_state_dict(both.head.state_dict())
    single.encoder.load_state_dict(both.encoder.state_dict())
    decoder = {k: v.clone() for k, v in both.decoder.state_dict().items()}
    for model in (both, single):
        fit(model, data, epochs=3, batch_size=20, lr=0.01, **CPU)
    assert_close(both.classifier(data.pixels()), single(data.pixels()), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(v, decoder[k]) for k, v in both.decoder.state_dict().items())
    assert accuracy(both.classifier, data) == accuracy(single, data)


def test_unlabelled_images_move_the_encoder_through_the_decoder_alone():
    model, data = two_heads(1.0), pictures(20)
    loss = sum(model.loss_terms(Batch(data.pixels(), torch.full_like(data.y, -1))).values())
    loss.backward()
    assert model.head.weight.grad.abs().max() == 0 and model.encoder[1].weight.grad.abs().max() > 0


def test_pairs():
    data = keep_labels(pictures(), 7)
    at, source = (data.y >= 0).nonzero()[:, 0], Paired(data)
    index = torch.tensor([0, 6, 7, 13, 59])
    batch = source.batch(index, torch.device("cpu"))
    kept = at[index % 7]
    assert torch.equal(batch.x, data[torch.cat([kept, index])].pixels())
    assert torch.equal(batch.y, torch.cat([data.y[kept], torch.full((5,), -1)]))
    assert len(source) == 60
    seen = torch.bincount(torch.arange(60) % 7)
    assert seen.max() - seen.min() <= 1  # every label as often as any other
    for wrong in (Images(data.x), Images(data.x, torch.full((60,), -1))):
        with pytest.raises(DataError, match="label"):
            Paired(wrong)


@pytest.mark.parametrize("replay", [True, False])
def test_trained_with_few_labels(replay):
    data, model = pictures(120), two_heads(1.0)
    history = fit(model, Paired(keep_labels(data, 12)), epochs=15, batch_size=20, lr=0.01, replay=replay, **CPU)
    assert history["cross_entropy"][-1] < 0.1 < history["cross_entropy"][0]
    assert accuracy(model.classifier, pictures(seed=1)) > 0.9


def test_saved_and_loaded(tmp_path):
    model, x = two_heads(0.3), pictures().pixels()
    save_model(model, tmp_path / "two.safetensors")
    again = load_model(tmp_path / "two.safetensors")
    assert again.weight == 0.3 and torch.equal(again.classifier(x), model.classifier(x)) and torch.equal(again(x), model(x))
    for wrong in ({"features": 0}, {"features": 5, "classes": 0}, {"features": 5, "weight": -1.0}):
        with pytest.raises(BadArgument):
            SupervisedAutoencoder(*mlp((1, 8, 8), (12,), 5), **wrong)


# ---------------------------------------------------------------- the linear optimum


@pytest.mark.parametrize("weight", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("n", [60, 6])  # also fewer rows than values
def test_no_linear_network_gets_below_the_optimum_and_one_gets_there(weight, n):
    draw = torch.Generator().manual_seed(n)
    x, y = torch.randn(n, 9, generator=draw, dtype=torch.float64), torch.randn(n, 3, generator=draw, dtype=torch.float64)
    x, y = x - x.mean(0), y - y.mean(0)
    least, basis = linear_optimum(x, y, 2, weight)
    targets = torch.cat([y, weight**0.5 * x], 1)
    lost = lambda b: (targets - x @ b @ torch.linalg.lstsq(x @ b, targets, driver="gelsd").solution).square().sum().item() / n
    assert lost(basis) == pytest.approx(least, rel=1e-9)
    assert_close(basis.T @ basis, torch.eye(2, dtype=torch.float64))
    assert all(lost(torch.randn(9, 2, generator=draw, dtype=torch.float64)) >= least - 1e-9 for _ in range(20))
    free, head = (torch.randn(*size, generator=draw, dtype=torch.float64).requires_grad_() for size in ((9, 2), (2, 12)))
    both = torch.optim.LBFGS([free, head], max_iter=300, max_eval=600, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure():
        both.zero_grad()
        loss = (targets - x @ free @ head).square().sum() / n
        loss.backward()
        return loss

    assert both.step(closure).item() >= least - 1e-9 and closure().item() == pytest.approx(least, rel=1e-3)


def test_its_limits_are_pca_and_regression():
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(80, 6, generator=draw, dtype=torch.float64) * torch.tensor([5, 4, 1, 1, 1, 0.1])
    y = torch.randn(80, 2, generator=draw, dtype=torch.float64) + x[:, 4:]
    x, y = x - x.mean(0), y - y.mean(0)
    right = torch.linalg.svd(x, full_matrices=False).Vh
    _, basis = linear_optimum(x, y, 2, 1e9)
    assert_close((right[:2] @ basis).det().abs(), torch.tensor(1.0, dtype=torch.float64))
    least, _ = linear_optimum(x, y, 2, 0.0)
    assert least == pytest.approx((y - x @ torch.linalg.lstsq(x, y).solution).square().sum().item() / 80)


# ---------------------------------------------------------------- scikit-learn


def test_scikit_learns_own_checks():
    found = check_estimator(AutoencoderTransformer(epochs=2, latent_dim=3), on_skip=None, on_fail=None)
    assert len(found) > 30 and [(one["check_name"], one["exception"]) for one in found if one["status"] == "failed"] == []
    assert {one["check_name"] for one in found if one["status"] != "passed"} <= {"check_array_api_input"}  # wants an environment variable


def vae(shape, latent_dim):
    return VAE(*variational_mlp(shape, (9,), latent_dim))


def convolutional(shape, latent_dim):
    return Autoencoder(*conv(shape, (3, latent_dim)))


def denoising(shape, latent_dim):
    return DenoisingAutoencoder(*mlp(shape, (9,), latent_dim), corruption=erase(0.8))


def linear(shape, latent_dim):
    return LinearAutoencoder(*linear_networks(shape, latent_dim))


def rows(n=50):
    return pictures(n).pixels().flatten(1).numpy(), pictures(n).y.numpy()


@pytest.mark.parametrize("build", [None, vae, convolutional, denoising, linear])
def test_any_family_inside_a_pipeline_a_pickle_and_a_clone(build):
    X, y = rows()
    transformer = AutoencoderTransformer(build, latent_dim=3, shape=(1, 8, 8), epochs=2)
    pipe = make_pipeline(transformer, LogisticRegression()).fit(X, y)
    Z = pipe[0].transform(X)
    assert len(Z) == 50 and Z.dtype == X.dtype and pipe[0].inverse_transform(Z).shape == X.shape
    again = pickle.loads(pickle.dumps(pipe))
    assert np.array_equal(again.predict(X), pipe.predict(X))
    fresh = clone(transformer)
    assert not hasattr(fresh, "model_") and fresh.get_params() == transformer.get_params()
    assert np.array_equal(fresh.fit(X).transform(X), Z)  # the same random_state
    assert len(transformer.get_feature_names_out()) == Z.shape[1]


def test_a_search_over_workers():
    X, y = rows(60)
    pipe = make_pipeline(AutoencoderTransformer(denoising, shape=(1, 8, 8), epochs=3), LogisticRegression())
    search = GridSearchCV(pipe, {"autoencodertransformer__latent_dim": [1, 6]}, cv=2, n_jobs=2).fit(X, y)
    assert search.best_params_["autoencodertransformer__latent_dim"] in (1, 6) and search.score(X, y) > 0.4
    alone = GridSearchCV(AutoencoderTransformer(epochs=3, lr=0.01), {"latent_dim": [1, 6]}, cv=2).fit(X)
    assert np.isfinite(alone.cv_results_["mean_test_score"]).all()


def test_score_is_the_explained_variance():
    X, _ = rows()
    fitted = AutoencoderTransformer(latent_dim=6, epochs=40, lr=0.01).fit(X)
    back = fitted.inverse_transform(fitted.transform(X))
    wanted = 1 - ((X - back) ** 2).sum() / ((X - X.mean(0)) ** 2).sum()
    assert fitted.score(X) == pytest.approx(wanted, rel=1e-5) and 0.2 < wanted < 1


def test_rows_that_do_not_fit():
    X, _ = rows()
    with pytest.raises(BadArgument, match="shape"):
        AutoencoderTransformer(shape=(1, 8, 7)).fit(X)
    fitted = AutoencoderTransformer(epochs=0, latent_dim=3).fit(X)
    with pytest.raises(BadArgument, match="3"):
        fitted.inverse_transform(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="features"):
        fitted.transform(X[:, :5])


@pytest.mark.parametrize(("module", "name"), [("classification", "AutoencoderTransformer"), ("anomaly", "AnomalyDetector")])
def test_scikit_learn_is_imported_only_for_the_class(module, name):
    there = "print('sklearn' in sys.modules)"
    code = f"import sys, ae_course.{module} as m; {there}; m.{name}; {there}"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "True"]
    module = importlib.import_module(f"ae_course.{module}")
    with pytest.raises(AttributeError, match=f"{module.__name__}.*no_such_thing"):
        getattr(module, "no_such_thing")  # noqa: B009
    made = getattr(module, name)
    assert made is getattr(module, name) and (made.__name__, made.__module__) == (name, module.__name__)
    assert made.__doc__ and pickle.loads(pickle.dumps(made())).get_params() == made().get_params()


def test_cross_entropy_is_the_librarys():
    model, data = two_heads(0.0), pictures(8)
    assert_close(model.loss_terms(Batch(data.pixels(), data.y))["cross_entropy"], F.cross_entropy(model.classifier(data.pixels()), data.y))
