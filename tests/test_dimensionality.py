"Dimensionality: methods against closed forms, measures against scikit-learn, new points, the way back, bad input."

import math
import subprocess
import sys

import pytest
import torch
from sklearn.manifold import trustworthiness
from torch.testing import assert_close

from ae_course.base import BadArgument, UnknownName
from ae_course.data import DataError, load
from ae_course.dimensionality import METHODS, Neighbourhood, autoencode, measured, neighbourhood, ranks, reduce, undefined
from ae_course.linear import PCA
from ae_course.undercomplete import as_rows

FAST = [method for method in METHODS if method != "UMAP"]
TRAINING = {"epochs": 2, "hidden": (16,), "device": "cpu"}


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    return load("digits", limit=150), load("digits", "test", limit=60)


def fitted(method, data, k=2, **options):
    return reduce(method, data, k, data.y, **(TRAINING if method == "autoencoder" else {}), **options)


# ---------------------------------------------------------------- methods


@pytest.mark.parametrize("method", FAST)
def test_a_method_gives_codes_and_treats_new_points_as_the_table_says(method, digits):
    train, test = digits
    found = fitted(method, train)
    assert found.method == method and found.z.shape == (150, 2) and found.z.dtype == torch.float64 and found.z.isfinite().all()
    assert (found.transform is None) == (method == "t-SNE") and found.seconds > 0
    assert (found.inverse is not None) == (method in ("PCA", "kernel PCA", "autoencoder"))
    if found.transform:
        z = found.transform(as_rows(test))
        assert z.shape == (60, 2) and z.dtype == torch.float64 and z.isfinite().all()
        assert_close(found.transform(as_rows(train)), found.z, atol=1e-4, rtol=1e-4)
    if found.inverse:
        assert found.inverse(z).shape == (60, 64)


@pytest.mark.parametrize("method", FAST)
def test_the_same_seed_gives_the_same_map(method, digits):
    first, again = (fitted(method, digits[0], seed=3).z for _ in range(2))
    assert torch.equal(first, again)


def test_pca_is_the_courses(digits):
    rows = as_rows(digits[0])
    found, pca = reduce("PCA", rows, 5), PCA(5).fit(rows)
    assert torch.equal(found.z, pca.transform(rows)) and torch.equal(found.inverse(found.z), pca.reconstruct(rows))


def test_lda_of_two_classes_is_the_closed_form():
    mix = torch.randn(4, 4, generator=draws(), dtype=torch.float64)
    shift = torch.tensor([1.0, 0, 0, 0]).double()
    rows = torch.cat([torch.randn(2000, 4, generator=draws(1), dtype=torch.float64),
                      torch.randn(2000, 4, generator=draws(2), dtype=torch.float64) + shift]) @ mix  # fmt: skip
    z = reduce("LDA", rows, 1, torch.arange(4000) // 2000).z[:, 0]
    line = rows @ torch.linalg.solve(mix.T @ mix, shift @ mix)
    assert abs(torch.corrcoef(torch.stack([z, line]))[0, 1]) > 0.999


def test_isomap_finds_the_length_along_a_bent_strip():
    angle = torch.linspace(0, 1.5 * math.pi, 200, dtype=torch.float64)
    z = reduce("Isomap", torch.stack([angle.cos(), angle.sin(), 0.01 * angle.sin().square()], 1), 1, neighbours=5).z[:, 0]
    assert abs(torch.corrcoef(torch.stack([z, angle]))[0, 1]) > 0.9999


def test_kernel_pca_tells_rings_apart_that_pca_does_not():
    angle = 2 * math.pi * torch.rand(300, generator=draws(), dtype=torch.float64)
    radius = torch.where(torch.arange(300) < 150, 1.0, 4.0)
    rows = torch.stack([radius * angle.cos(), radius * angle.sin(), 0.01 * angle], 1).double()
    gap = lambda z: abs(z[:150].mean() - z[150:].mean()) / z.std()
    kernel = max(gap(column) for column in reduce("kernel PCA", rows, 2).z.T)
    assert kernel > 1.2 > 0.5 > max(gap(column) for column in reduce("PCA", rows, 2).z.T)


def test_a_trained_autoencoder_reconstructs_and_stays_in_range(digits):
    rows = as_rows(digits[0])
    short, long = (reduce("autoencoder", rows, 8, epochs=epochs, hidden=(64,), device="cpu") for epochs in (1, 80))
    errors = [(f.inverse(f.z) - rows).square().mean() for f in (short, long)]
    assert errors[1] < 0.5 * errors[0]
    assert long.inverse(100 * long.z).min() >= 0 and long.inverse(100 * long.z).max() <= 1
    free = autoencode(4 * rows - 2, 3, epochs=1, hidden=(8,), device="cpu")
    assert type(free.decoder[-2]).__name__ == "Linear"  # no sigmoid for data outside [0, 1]


def test_labels_reach_lda_alone(digits):
    train = digits[0]
    other = train.y.roll(7)
    for method in ("PCA", "Isomap", "t-SNE"):
        assert torch.equal(reduce(method, train, 2, train.y).z, reduce(method, train, 2, other).z)
    assert not torch.equal(reduce("LDA", train, 2, train.y).z, reduce("LDA", train, 2, other).z)


# ---------------------------------------------------------------- where a method is not defined


@pytest.mark.parametrize(
    ("method", "k", "classes", "words"),
    [("LDA", 9, 10, ""), ("LDA", 10, 10, "at most classes - 1 = 9"), ("LDA", 1, 1, "at most classes - 1 = 0"), ("LDA", 2, 0, "labels"),
     ("t-SNE", 3, 0, ""), ("t-SNE", 4, 0, "at most 3"), ("PCA", 50, 0, ""), ("autoencoder", 16, 10, "")],
)  # fmt: skip
def test_undefined_says_why(method, k, classes, words):
    reason = undefined(method, k, classes)
    assert words in reason and bool(words) == bool(reason)


def test_undefined_methods_and_bad_settings_are_refused(digits):
    train = digits[0]
    for arguments, options in (
        (("LDA", train, 10, train.y), {}), (("LDA", train, 2), {}), (("LDA", train, 1, torch.zeros(150).long()), {}),
        (("t-SNE", train, 4), {}), (("PCA", train, 0), {}), (("PCA", train, 64), {}), (("PCA", train[:10], 10), {}),
        (("Isomap", train, 2), {"neighbours": 150}), (("Isomap", train, 2), {"neighbours": 0}),
    ):  # fmt: skip
        with pytest.raises(BadArgument):
            reduce(*arguments, **options)
    with pytest.raises((BadArgument, UnknownName), match="method"):
        reduce("MDS", train, 2)


def test_bad_data_is_refused(digits):
    train = digits[0]
    holes = as_rows(train).clone()
    holes[3, 4] = math.nan
    for x, y in ((holes, None), (train.x, None), (train[:2], None), (train, train.y[:-1]), (train, train.y - 1)):
        with pytest.raises(DataError):
            reduce("PCA", x, 2, y)


def test_umap_is_asked_for_what_the_lesson_says(monkeypatch, digits):
    "A stand-in, since compiling the real one takes longer than all other tests here."
    asked = {}

    class UMAP:
        def __init__(self, **settings):
            asked.update(settings)

        def fit_transform(self, rows):
            return rows[:, :2].astype("float32")

        transform = fit_transform
        inverse_transform = None  # there is one, which the lesson does not use

    module = type(sys)("umap")
    module.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", module)
    train, test = digits
    found = reduce("UMAP", train, 2, seed=7, neighbours=12)
    assert asked == {"n_components": 2, "n_neighbors": 12, "random_state": 7, "n_jobs": 1}
    assert found.z.dtype == torch.float64 and found.inverse is None
    assert_close(found.transform(as_rows(test)), as_rows(test)[:, :2], atol=1e-6, rtol=0)


def test_without_umap_the_error_names_the_extra(monkeypatch, digits):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="extra `dimensionality`"):
        reduce("UMAP", digits[0], 2)


# ---------------------------------------------------------------- neighbours


@pytest.mark.parametrize("m", [1, 5, 12, 24])
def test_trustworthiness_is_scikit_learns_and_continuity_is_it_with_roles_exchanged(m):
    for seed in range(4):
        x = torch.randn(50, 8, generator=draws(seed), dtype=torch.float64)
        z = x[:, :2] + 0.3 * torch.randn(50, 2, generator=draws(seed + 9), dtype=torch.float64)
        found = neighbourhood(x, z, m)
        assert_close(found.trustworthiness, trustworthiness(x.numpy(), z.numpy(), n_neighbors=m), atol=1e-12, rtol=0)
        assert_close(found.continuity, trustworthiness(z.numpy(), x.numpy(), n_neighbors=m), atol=1e-12, rtol=0)
        assert neighbourhood(z, x, m) == Neighbourhood(found.continuity, found.trustworthiness)


def test_a_map_that_keeps_all_ranks_is_perfect_and_the_worst_is_zero():
    x = torch.randn(40, 3, generator=draws(), dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=draws(1), dtype=torch.float64)).Q
    assert neighbourhood(x, 7 * x @ rotation + 3) == (1, 1)
    line = torch.arange(30, dtype=torch.float64)[:, None] ** 1.01
    far = torch.where(ranks(line) == 0, 0, 30 - ranks(line))  # every order turned around: the nearest becomes the farthest
    order = ranks(line)
    worst = 1 - 2 * (order - 5)[(far <= 5) & (order > 5)].sum().item() / (30 * 5 * (60 - 15 - 1))
    assert abs(worst) < 1e-12


def test_ranks_count_from_the_point_itself():
    order = ranks(torch.tensor([[0.0], [1.0], [3.0], [7.0]]))
    assert order.tolist() == [[0, 1, 2, 3], [1, 0, 2, 3], [2, 1, 0, 3], [3, 2, 1, 0]]
    assert (ranks(torch.zeros(5, 2)).diagonal() == 0).all()  # equal points: itself stays first


def test_a_cut_is_trustworthy_and_a_fold_is_continuous():
    angle = torch.linspace(0, 2 * math.pi, 101, dtype=torch.float64)[:-1]
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    cut, fold = neighbourhood(ring, angle[:, None]), neighbourhood(ring, ring[:, :1])
    assert cut.trustworthiness > cut.continuity and fold.continuity > fold.trustworthiness


@pytest.mark.parametrize("m", [0, -1, 20, 25, 2.5, True])
def test_neighbourhood_refuses_numbers_of_neighbours_without_meaning(m):
    x = torch.randn(40, 3, generator=draws())
    with pytest.raises(BadArgument):
        neighbourhood(x, x, m)
    with pytest.raises(BadArgument, match="as many rows"):
        neighbourhood(x, x[:30], 3)


# ---------------------------------------------------------------- measured


def test_measured_uses_training_votes_and_test_neighbours(digits):
    from sklearn.neighbors import KNeighborsClassifier

    train, test = digits
    found = fitted("PCA", train, 5)
    row, rows, new = measured(found, train, train.y, test, test.y, m=7, votes=3), as_rows(train), as_rows(test)
    pca = PCA(5).fit(rows)
    assert_close(row["mse"], (pca.reconstruct(new) - new).square().mean().item())
    assert (row["trustworthiness"], row["continuity"]) == neighbourhood(new, pca.transform(new), 7)
    votes = KNeighborsClassifier(3).fit(pca.transform(rows).numpy(), train.y.numpy())
    assert row["knn_accuracy"] == votes.score(pca.transform(new).numpy(), test.y.numpy()) and row["new_points"] == "yes"


def test_measured_takes_a_map_without_new_points_only_of_all_images_together(digits):
    train, test = digits
    both = torch.cat([train.pixels(), test.pixels()])
    row = measured(reduce("t-SNE", both, 2), train, train.y, test, test.y)
    assert row["new_points"] == "together" and math.isnan(row["mse"]) and row["knn_accuracy"] > 0.5
    with pytest.raises(BadArgument, match="training and test together"):
        measured(reduce("t-SNE", train, 2), train, train.y, test, test.y)


def test_importing_the_module_loads_none_of_the_heavy_packages():
    program = "import sys, ae_course.dimensionality; assert not {'umap', 'sklearn', 'scipy', 'numba'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", program], check=True)
