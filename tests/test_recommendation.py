"Recommendation: masked losses, AutoRec against an implementation of its own, rankings against scikit-learn."

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.sparse import csr_array
from sklearn.metrics import ndcg_score
from sklearn.metrics.pairwise import cosine_similarity
from torch.testing import assert_close

from ae_course import recommendation
from ae_course.autoencoder import CheckpointError, load_model, save_model
from ae_course.base import BadArgument
from ae_course.data import DataError, find
from ae_course.ratings import Cells, Held, Ratings, Rows, liked, load_ratings, split_ratings, split_users, synthetic
from ae_course.recommendation import (
    CDAE,
    AutoRec,
    MatrixFactorisation,
    MultVAE,
    autorec,
    by_row,
    fit_best,
    item_knn,
    item_mean,
    ndcg,
    popularity,
    ranking,
    recall,
    rmse,
    scorer,
)
from ae_course.training import evaluate, fit, seeded
from ae_course.variational import variational_mlp

CPU = {"device": "cpu", "progress": False}


def small(seed=0, **options):
    return synthetic(60, 40, rank=2, density=0.3, seed=seed, **options)


def model_of(width, k=4, side=0, seed=0, **options):
    with seeded(seed):
        return AutoRec(*autorec(width, k, side), **options)


# ---------------------------------------------------------------- AutoRec


def test_no_gradient_comes_from_what_is_missing():
    train = small()
    model = model_of(train.matrix.shape[1], lam=0.0).train()
    batch = Rows(train.matrix, None, None, train.mean()).batch(torch.arange(10), "cpu")
    changed = batch._replace(extras={**batch.extras, "target": batch.extras["target"] + 100 * (1 - batch.extras["observed"])})
    grads = [torch.autograd.grad(sum(model.loss_terms(b).values()), model.parameters()) for b in (batch, changed)]
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def reference_rmse(train, test, start, lam, shape):
    "I-AutoRec of its own: NumPy's loss and gradient of (53.2) from the list of ratings, SciPy's L-BFGS-B, the same start."
    users, items, values = train.cells()
    mean, n, (d, k) = values.mean(), train.matrix.shape[1], shape
    x = np.zeros((n, d))
    x[items, users] = values - mean
    mask = np.zeros((n, d))
    mask[items, users] = 1
    cut = np.cumsum([k * d, k, d * k])

    def parts(theta):
        w, b, v, c = np.split(theta, cut)
        return w.reshape(k, d), b, v.reshape(d, k), c

    def loss(theta):
        w, b, v, c = parts(theta)
        z = 1 / (1 + np.exp(-(x @ w.T + b)))
        e = mask * (z @ v.T + c - x)
        inner = 2 * e @ v * z * (1 - z)
        grads = inner.T @ x / n + lam * w, inner.sum(0) / n, 2 * e.T @ z / n + lam * v, 2 * e.sum(0) / n
        return (e**2).sum() / n + lam / 2 * ((w**2).sum() + (v**2).sum()), np.concatenate([g.ravel() for g in grads])

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 3000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-8})
    w, b, v, c = parts(found.x)
    full = 1 / (1 + np.exp(-(x @ w.T + b))) @ v.T + c + mean
    rows, columns, truth = test.cells()
    known = (mask.sum(1)[columns] > 0) & (mask.sum(0)[rows] > 0)
    guess = np.clip(np.where(known, full[columns, rows], mean), 1, 5)
    return math.sqrt(((guess - truth) ** 2).mean()), found.fun


@pytest.mark.parametrize("lam", [0.4, 1.0])
def test_autorec_agrees_with_an_implementation_of_its_own_on_one_split(lam):
    train, test = split_ratings(small(), 0.1)
    width = train.matrix.shape[0]
    model = model_of(width, 3, lam=lam).double()
    start = torch.cat([p.detach().flatten() for p in (*model.encoder[0].parameters(), *model.decoder[0].parameters())]).numpy()
    rows = Rows(train.matrix.T.tocsr(), None, None, train.mean(), torch.float64)
    fit(model, rows, epochs=60, batch_size=None, optimizer="lbfgs", **CPU)
    wanted, loss = reference_rmse(train, test, start, lam, (width, 3))
    found = evaluate(model, rows)["loss"]
    assert abs(found / loss - 1) < 1e-4
    assert abs(rmse(by_row(model, train), test) - wanted) < 2e-3


@pytest.mark.parametrize("by", ["items", "users"])
@pytest.mark.parametrize("chunk", [7, 512])
def test_predictions_are_the_models_rows_whatever_the_chunk(by, chunk):
    train, test = split_ratings(small(), 0.2)
    turned = train.matrix.T.tocsr() if by == "items" else train.matrix
    model = model_of(turned.shape[1])
    x = Rows(turned, None, None, train.mean()).batch(torch.arange(turned.shape[0]), "cpu").x
    dense = model(x).detach().double().numpy() + train.mean()
    dense[(x == 0).all(1).numpy()] = dense[:, (x == 0).all(0).numpy()] = train.mean()  # no training rating
    users, items, values = test.cells()
    at = (items, users) if by == "items" else (users, items)
    assert np.allclose(by_row(model, train, by, chunk)(users, items), dense[at])
    assert math.isclose(rmse(lambda u, i: dense[at], test), math.sqrt(((np.clip(dense[at], 1, 5) - values) ** 2).mean()))


def test_whoever_has_no_training_rating_gets_the_mean():
    matrix = csr_array(np.array([[0.0, 4, 0], [0, 5, 3], [0, 0, 0]]))  # nobody rated the first item, the third user rated nothing
    train = Ratings(matrix, np.arange(3), np.arange(3))
    users, items = np.array([0, 2, 1]), np.array([0, 1, 2])
    for by in ("items", "users"):
        found = by_row(model_of(3), train, by)(users, items)
        assert found[0] == found[1] == train.mean() == 4 and found[2] != 4
    assert item_mean(train)(users, items).tolist() == [4, 4.5, 3]
    assert np.isfinite(MatrixFactorisation(3, 3, 2, 4.0).predict(users, items)).all()


@pytest.mark.skipif(find("movielens") is None, reason="MovieLens-100K is not among the data sets")
def test_the_items_means_on_movielens_100k():
    train, test = split_ratings(load_ratings("movielens"))
    assert 0.9 < rmse(item_mean(train), test) < 1.1


def test_denoising_erases_in_training_only_and_asks_for_everything():
    train = small()
    batch = Rows(train.matrix, None, None, train.mean()).batch(torch.arange(20), "cpu")
    model = model_of(train.matrix.shape[1], keep=0.5)
    torch.manual_seed(0)
    erased = model.corrupt(batch.x)
    share = (erased[batch.x != 0] == 0).double().mean()
    assert 0.4 < share < 0.6 and torch.equal(erased[erased != 0], batch.x[erased != 0])
    model.eval()
    assert model.loss_terms(batch) == model.loss_terms(batch)
    model.train()
    assert model.loss_terms(batch) != model.loss_terms(batch)
    assert_close(model.eval().loss_terms(batch)["reconstruction"], model_of(train.matrix.shape[1]).loss_terms(batch)["reconstruction"])


def test_side_information_reaches_code_and_output():
    train = small()
    side = train.item_side
    turned = train.matrix.T.tocsr()
    model = model_of(turned.shape[1], side=side.shape[1]).eval()
    batch = Rows(turned, None, side, train.mean()).batch(torch.arange(len(side)), "cpu")
    assert model.encoder[0].in_features == turned.shape[1] + side.shape[1] and model.decoder[0].in_features == 4 + side.shape[1]
    moved = model(batch.x, batch.extras["side"].flip(0)) - model(batch.x, batch.extras["side"])
    assert moved.abs().max() > 0.01
    users, items, _ = train.cells()
    assert np.isfinite(by_row(model, train)(users, items)).all()


def test_autorec_learns_more_than_the_items_means_and_comes_back_from_its_file(tmp_path):
    train, test = split_ratings(synthetic(200, 120, density=0.3, seed=2), 0.1)
    model = model_of(train.matrix.shape[0], 20, lam=0.04)
    rows = Rows(train.matrix.T.tocsr(), None, None, train.mean())
    fit(model, rows, epochs=40, batch_size=16, lr=5e-3, **CPU)
    error = rmse(by_row(model, train), test)
    assert error < 0.8 * rmse(item_mean(train), test)
    save_model(model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert rmse(by_row(again, train), test) == error and again.lam == 0.04
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "m.safetensors", model_of(9))


def test_matrix_factorisation_is_its_formula_and_learns():
    train, test = split_ratings(synthetic(200, 120, density=0.3, seed=2), 0.1)
    with seeded(0):
        model = MatrixFactorisation(*train.matrix.shape, 3, train.mean(), 0.05)
    p, q = model.user.weight.detach(), model.item.weight.detach()
    assert (p[:, 0] == 0).all() and (q[:, 0] == 0).all()
    full = train.mean() + p[:, :1] + q[:, 0] + p[:, 1:] @ q[:, 1:].T
    users, items, values = train.cells()
    assert np.allclose(model.predict(users, items), full[users, items])
    terms = model.loss_terms(Cells(train).batch(torch.arange(50), "cpu"))
    price = 0.05 * (p[users[:50]].square().sum(1) + q[items[:50]].square().sum(1)).mean()
    assert_close(terms["price"].detach(), price)
    error = (full[users[:50], items[:50]] - torch.from_numpy(values[:50])).square().mean()
    assert_close(terms["error"].detach().double(), error.double(), rtol=1e-5, atol=0)
    fit(model, Cells(train), epochs=30, batch_size=200, lr=0.02, **CPU)
    assert rmse(model.predict, test) < 0.7 * rmse(item_mean(train), test)


def test_the_best_epoch_is_kept_and_patience_ends_the_training():
    train = small()
    rows, values = Rows(train.matrix, None, None, train.mean()), iter([5.0, 3.0, 4.0, 3.5, 6.0, 7.0])
    model, kept = model_of(train.matrix.shape[1]), {}

    def score(row):
        assert not model.training
        kept[row["epoch"]] = {k: v.clone() for k, v in model.state_dict().items()}
        return next(values)

    epoch, history = fit_best(model, rows, epochs=6, score=score, patience=3, batch_size=16, device="cpu")
    assert epoch == 2 and len(history) == 5 and history["score"] == [5, 3, 4, 3.5, 6]
    assert all(torch.equal(v, kept[2][k]) for k, v in model.state_dict().items()) and not model.training
    plain = model_of(train.matrix.shape[1])
    fit(plain, rows, epochs=2, batch_size=16, **CPU)  # the score changed nothing
    assert all(torch.equal(v, kept[2][k]) for k, v in plain.state_dict().items())


# ---------------------------------------------------------------- choices and rankings


@pytest.mark.parametrize("k", [1, 3, 20, 100])
def test_scores_of_rankings_against_scikit_learn_and_sets(k):
    rng = np.random.default_rng(k)
    scores, hidden = rng.random((50, 30)), rng.random((50, 30)) < 0.2
    hidden[:, 3] = True
    order = np.argsort(-scores, axis=1)
    each = [ndcg_score(h[None], s[None], k=k) for h, s in zip(hidden, scores)]
    assert np.allclose(ndcg(order, hidden, k), each)
    assert np.allclose(recall(order, hidden, k), [len({*o[:k]} & {*np.flatnonzero(h)}) / min(k, h.sum()) for o, h in zip(order, hidden)])
    perfect = np.argsort(-hidden.astype(float), axis=1, kind="stable")
    assert np.allclose(ndcg(perfect, hidden, k), 1) and np.allclose(recall(perfect, hidden, k), 1)


def test_what_was_shown_is_not_ranked_and_users_without_hidden_items_are_left_out():
    shown = csr_array(np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]))
    hidden = csr_array(np.array([[0.0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]))
    recommend = lambda rows: np.tile([9.0, 5, 7, 1], (rows.shape[0], 1))
    found = ranking(recommend, Held(shown, hidden), chunk=1)
    assert found["ndcg_100"].tolist() == [1, 1] and found["recall_20"].tolist() == [1, 1]
    with pytest.raises(DataError, match="no user has a hidden item"):
        ranking(recommend, Held(shown, csr_array((3, 4))))


def test_item_neighbours_are_cosines_and_an_empty_row_gets_the_popular_items():
    matrix, _ = liked(synthetic(seed=4))
    similar = cosine_similarity(matrix.T.toarray())
    np.fill_diagonal(similar, 0)
    found = item_knn(matrix, neighbours=matrix.shape[1])(matrix[:9])
    assert np.allclose(found, matrix[:9].toarray() @ similar, atol=1e-8)
    few = item_knn(matrix, neighbours=2)(csr_array(np.eye(matrix.shape[1])))
    kept, second = few > 1e-8, np.sort(similar, axis=0)[-2]  # each item listens to two others, or to those that tie with the second
    assert np.allclose(few[kept], similar[kept]) and (similar >= second - 1e-9)[kept].all() and kept[similar > second + 1e-9].all()
    assert np.array_equal(kept.sum(0) >= 2, second > 0)
    nothing = csr_array((1, matrix.shape[1]))
    assert np.argmax(item_knn(matrix)(nothing)) == np.argmax(popularity(matrix)(nothing)) == np.argmax(matrix.sum(0))


def test_cdae_knows_its_users_in_training_and_answers_for_others():
    x = torch.rand(5, 8, generator=torch.Generator().manual_seed(0)).round()
    with seeded(0):
        model = CDAE(*autorec(8, 3, code_activation=None), users=5, keep=0.5, lam=0.1)
    assert (model.user.weight == 0).all()
    torch.nn.init.normal_(model.user.weight)
    model.eval()
    code = model.encoder[0](x) + model.user.weight
    assert_close(model(x, torch.arange(5)), model.decoder[0](code.sigmoid()))
    assert_close(model(x), model.decoder[0](model.encoder[0](x).sigmoid()))
    batch = Rows(csr_array(x.double().numpy())).batch(torch.arange(5), "cpu")
    p = model(x).sigmoid()
    assert_close(model.loss_terms(batch)["reconstruction"], -(x * p.log() + (1 - x) * (1 - p).log()).sum(1).mean())
    squares = sum(w.square().sum() for w in (model.encoder[0].weight, model.decoder[0].weight, model.user.weight))
    assert_close(model.loss_terms(batch)["weights"], 0.05 * squares)
    assert model(torch.zeros(1, 8)).isfinite().all()


def test_mult_vae_is_a_multinomial_with_a_rising_beta():
    with seeded(0):
        model = MultVAE(*variational_mlp((8,), (6,), 2, "tanh", output=None), beta=0.4, warmup=4, keep=1.0)
    x = torch.randint(0, 3, (5, 8), generator=torch.Generator().manual_seed(1)).float()
    x[0] = 0
    z = torch.randn(3, 5, 2)
    p = model.decode(z).softmax(-1)
    assert_close(p.sum(-1), torch.ones(3, 5))
    assert_close(model.log_likelihood(x, z), (x * p.log()).sum(-1))
    assert_close(model.eval().posterior(2 * x).mu, model.posterior(x).mu)  # only the direction of a row counts
    assert model(x).isfinite().all() and (model.log_likelihood(x, z)[:, 0] == 0).all()
    batch, weights = Rows(csr_array(x.double().numpy())).batch(torch.arange(5), "cpu"), []
    model.train()
    for _ in range(6):
        weights.append((model.loss_terms(batch)["kl"] / model.posterior(batch.x).kl().sum(1).mean()).item())
    assert_close(torch.tensor(weights), torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.4]))


@pytest.mark.parametrize("kind", ["cdae", "mult_vae"])
def test_networks_rank_better_than_popularity_on_tastes_that_differ(kind):
    rng = np.random.default_rng(0)
    taste = np.arange(300) % 3  # three crowds, each with a third of the items
    chance = np.where(np.arange(60) % 3 == taste[:, None], 0.5, 0.03)
    train, validation, test = split_users(csr_array((rng.random((300, 60)) < chance).astype(float)), 0.1)
    with seeded(0):
        model = CDAE(*autorec(60, 10, code_activation=None), train.shape[0]) if kind == "cdae" else MultVAE(
            *variational_mlp((60,), (20,), 6, "tanh", output=None), warmup=50)  # fmt: skip
    score = lambda row: -ranking(scorer(model), validation)["ndcg_100"].mean()
    fit_best(model, Rows(train), epochs=30, score=score, batch_size=16, lr=5e-3, device="cpu")
    ours, theirs = (ranking(f, test)["ndcg_100"].mean() for f in (scorer(model), popularity(train)))
    assert ours > theirs + 0.1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: autorec(0), "width"),
        (lambda: autorec(5, code_activation="relux"), "code_activation"),
        (lambda: model_of(5, keep=1.5), "keep"),
        (lambda: model_of(5, lam=-1), "lam"),
        (lambda: by_row(model_of(5), small(), "rows"), "by"),
        (lambda: MatrixFactorisation(3, 0), "items"),
        (lambda: CDAE(*autorec(5, 2), users=0), "users"),
        (lambda: MultVAE(*variational_mlp((5,), (4,), 2), keep=2), "keep"),
        (lambda: fit_best(model_of(5), None, epochs=1, score=len, checkpoint="a"), "checkpoint"),
    ],
)
def test_bad_settings_are_refused(call, words):
    with pytest.raises(BadArgument, match=words):
        call()


def test_the_module_needs_no_heavy_library_before_it_is_used():
    assert not {"scipy", "csr_array", "sklearn"} & set(vars(recommendation))
