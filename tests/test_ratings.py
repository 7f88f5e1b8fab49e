"Ratings: readers and their refusals, what is stored, splits that share nothing, batches."

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from ae_course import ratings
from ae_course.base import BadArgument, UnknownName
from ae_course.checks import NotRight, check
from ae_course.data import DataError, find
from ae_course.ratings import Cells, Rows, liked, load_ratings, ratings_from, read_ratings, split_ratings, split_users, synthetic


def small(seed=0, **options):
    return synthetic(60, 40, rank=2, density=0.3, seed=seed, **options)


# ---------------------------------------------------------------- ratings and their tables


def test_rows_and_columns_are_the_sorted_ids_and_unseen_ones_are_named():
    found = ratings_from(["b", "a", "b"], [9, 9, 4], [1, 5, 3], user_side={"a": [1.0, 2]}, item_side={4: [7.0], 9: [8.0]})
    assert found.matrix.toarray().tolist() == [[0, 5], [3, 1]] and len(found) == 3 and math.isclose(found.mean(), 3)
    assert found.user_side.tolist() == [[1, 2], [0, 0]] and found.item_side.tolist() == [[7], [8]]
    assert (found.row("b"), found.column(9)) == (1, 1)
    with pytest.raises(UnknownName, match="unknown user 'zoe'.*a, b"):
        found.row("zoe")
    with pytest.raises(UnknownName, match="unknown item '5'"):
        found.column(5)


def test_a_rating_of_zero_is_a_rating_where_the_scale_has_it():
    found = ratings_from([1, 1, 2], [1, 2, 1], [0, 2, 1], scale=(0, 2))
    assert len(found) == 3 and found.mean() == 1
    batch = Rows(found.matrix).batch(torch.arange(2), "cpu")
    assert batch.extras["observed"].tolist() == [[1, 1], [1, 0]]
    one, other = split_ratings(found, 0.4)
    assert len(one) + len(other) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1, 2], [1, 1], [3, 6]), "1 of 2 ratings lie outside 1 to 5, the first 6 of user 2 for item 1"),
        (([1], [1], [0.5]), "outside 1 to 5"),
        (([1, 2], [1, 1], [3, math.nan]), "1 of 2 ratings"),
        (([1, 1], [2, 2], [3, 4]), "1 pairs were rated more than once, the first by user 1 for item 2"),
        (([], [], []), "n at least 1"),
        (([1, 2], [1], [3]), r"\(2,\) users, \(1,\) items"),
    ],
)
def test_ratings_that_cannot_be_are_refused_with_their_place(arguments, words):
    with pytest.raises(DataError, match=words):
        ratings_from(*arguments)


@pytest.mark.parametrize(
    "text",
    [
        "user,item,rating\n1,10,4\n2,10,5\n",
        "userId,movieId,rating,timestamp\n1,10,4.0,99\n2,10,5.0,99\n",
        "rating;item_id;user_id\n4;10;1\n5;10;2\n",
        "1\t10\t4\t99\n2\t10\t5\t99\n",
        "1::10::4::99\n2::10::5::99\n",
        '"user","item","score"\n"1","10","4"\n\n"2","10","5"\n',
    ],
)
def test_tables_of_many_forms_are_read(text, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    for found in (read_ratings(path), load_ratings(path)):
        assert found.users.tolist() == [1, 2] and found.items.tolist() == [10] and found.matrix.toarray().tolist() == [[4], [5]]
        assert found.name == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("user,film,rating\n1,10,4\n", "no column for item in the header user, film, rating; known names: item, itemid"),
        ("user,item,rating\n1,10,4\n2,10,good\n", "line 3 is '2,10,good'"),
        ("1,10,4\n2,10\n", "line 2 is '2,10'"),
        ("1,10,4\n2,10,nan\n", "line 2"),
        ("1,10,4.5\n2,10,7\n", "7 of user 2 for item 10"),
        ("1,10,4\n1,10,4\n", "rated more than once"),
        ("", "n at least 1"),
    ],
)
def test_tables_that_cannot_be_read_name_the_line(text, words, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_ratings(path)


def test_what_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_ratings(tmp_path / "none.csv")
    with pytest.raises(UnknownName, match="movielens"):
        load_ratings("movielans")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text in utf-8"):
        read_ratings(tmp_path / "x.csv")


def test_ml_1m_as_it_comes(tmp_path, monkeypatch):
    monkeypatch.setenv("AE_COURSE_DATA", str(tmp_path))
    with pytest.raises(DataError, match="ml-1m: not in .*grouplens.org"):
        load_ratings("ml-1m", root=tmp_path)
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::7::5::978300760\n2::7::3::978302109\n2::9::4::978301968\n")
    (folder / "movies.dat").write_bytes("7::Amélie (2001)::Comedy|Romance\n9::B (1999)::Comedy\n8::C (1998)::War\n".encode("latin-1"))
    (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::25::10::70072\n")
    found = load_ratings("ml-1m")
    assert found.matrix.toarray().tolist() == [[5, 0], [3, 4]] and found.items.tolist() == [7, 9]
    assert found.item_side.tolist() == [[1, 1, 0], [1, 0, 0]]  # Comedy, Romance, War
    assert found.user_side.shape == (2, 5) and found.user_side.sum(1).tolist() == [3, 3]


@pytest.mark.skipif(find("movielens") is None, reason="MovieLens-100K is not among the data sets")
def test_movielens_100k():
    found = load_ratings("movielens")
    assert found.matrix.shape == (943, 1682) and len(found) == 100_000
    assert found.user_side.shape == (943, 23) and found.item_side.shape == (1682, 19)
    assert found.matrix[found.row(196), found.column(242)] == 3


def test_synthetic_ratings_follow_their_law_and_their_seed():
    found = synthetic(400, 100, rank=3, density=0.3, noise=0.0, seed=5)
    rows, columns, values = found.cells()
    truth = found.about["truth"]
    assert np.array_equal(values, np.clip(np.rint(truth[rows, columns]), 1, 5)) and set(values) <= {1, 2, 3, 4, 5}
    centred = truth - truth.mean(1, keepdims=True) - truth.mean(0) + truth.mean()
    assert np.linalg.matrix_rank(centred, tol=1e-8) == 3
    assert found.item_side.shape == (len(found.items), 6) and (found.item_side.sum(1) == 1).all()
    assert (synthetic(seed=1).matrix != synthetic(seed=1).matrix).nnz == 0 and len(synthetic(seed=1)) != len(synthetic(seed=2))


def test_splits_share_nothing_and_lose_nothing():
    found = small()
    train, test = split_ratings(found, 0.1, seed=3)
    assert len(test) == round(0.1 * len(found)) and train.matrix.shape == test.matrix.shape == found.matrix.shape
    assert (train.matrix + test.matrix != found.matrix).nnz == 0 and train.matrix.multiply(test.matrix).nnz == 0
    assert (split_ratings(found, 0.1, seed=4)[1].matrix != test.matrix).nnz > 0
    for share in (0.0, 1.0, 1e-9):
        with pytest.raises(BadArgument, match="test"):
            split_ratings(found, share)


# ---------------------------------------------------------------- splits and batches


def test_choices_are_high_ratings_of_users_with_enough_of_them():
    found = ratings_from([1] * 3 + [2] * 3 + [3], [1, 2, 3, 1, 2, 3, 1], [5, 4, 3, 5, 1, 1, 5])
    matrix, rows = liked(found, 4, at_least=2)
    assert matrix.toarray().tolist() == [[1, 1, 0]] and rows.tolist() == [0] and len(found) == 7
    with pytest.raises(DataError, match="no user gave 9 or more ratings of 4"):
        liked(found, 4, at_least=9)


def test_held_out_users_are_in_no_other_part_and_what_is_hidden_is_not_shown():
    matrix, _ = liked(synthetic(seed=3))
    train, validation, test = split_users(matrix, 0.2, seed=1)
    n = matrix.shape[0]
    assert train.shape[0] + validation.shown.shape[0] + test.shown.shape[0] == n and test.shown.shape[0] == round(0.2 * n)
    rows = [train, validation.shown + validation.hidden, test.shown + test.hidden]
    together = np.concatenate([r.toarray() for r in rows])
    assert np.array_equal(np.unique(together, axis=0), np.unique(matrix.toarray(), axis=0)) and together.sum() == matrix.nnz
    for held in (validation, test):
        assert held.shown.multiply(held.hidden).nnz == 0
        count, shown = np.diff((held.shown + held.hidden).indptr), np.diff(held.shown.indptr)
        assert np.array_equal(shown, np.maximum(1, np.round(0.8 * count)))
    for wrong, words in (({"share": 0.5}, "share"), ({"share": 0.0}, "share"), ({"shown": 1.0}, "shown")):
        with pytest.raises(BadArgument, match=words):
            split_users(matrix, **wrong)


def test_rows_are_the_matrix_less_its_centre_and_nothing_where_nothing_is():
    shown = csr_array(np.array([[5.0, 0, 1], [0, 0, 0], [2, 3, 0]]))
    asked = csr_array(np.array([[0.0, 4, 0], [1, 0, 0], [0, 0, 0]]))
    rows = Rows(shown, asked, np.eye(3), centre=3.0, dtype=torch.float64)
    batch = rows.batch(torch.tensor([2, 0]), "cpu")
    assert batch.x.tolist() == [[-1, 0, 0], [2, 0, -2]] and batch.extras["target"].tolist() == [[0, 0, 0], [0, 1, 0]]
    assert batch.extras["observed"].tolist() == [[0, 0, 0], [0, 1, 0]] and batch.extras["side"].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert shown.toarray()[0].tolist() == [5, 0, 1] and len(rows) == 3  # the given matrix stays as it was
    with pytest.raises(DataError, match="one shape"):
        Rows(shown, asked[:2])
    with pytest.raises(DataError, match="side"):
        Rows(shown, None, np.eye(2))


def test_single_ratings_come_with_their_row_and_column():
    found = small()
    cells, dense = Cells(found), found.matrix.toarray()
    batch = cells.batch(torch.tensor([3, 0, len(cells) - 1]), "cpu")
    assert len(cells) == len(found) and batch.x.shape == (3, 1) and batch.x.dtype == torch.float32
    assert batch.x[:, 0].tolist() == dense[batch.extras["user"], batch.extras["item"]].tolist()


def test_the_number_of_users_is_at_least_one():
    with pytest.raises(BadArgument, match="users"):
        synthetic(users=0)


def test_the_module_needs_no_heavy_library_before_it_is_used():
    assert not {"scipy", "csr_array", "sklearn"} & set(vars(ratings))


# ---------------------------------------------------------------- exercises


def means(matrix, count):
    columns = matrix.tocsc()
    with np.errstate(all="ignore"):
        return np.where(np.diff(columns.indptr) > 0, columns.sum(0) / count(columns), np.nan)


def errors(item, value, held, parts, empty=lambda value: value.mean(), root=math.sqrt, asked=lambda held: held):
    found = []
    for known in parts(held):
        means = [value[known & (item == i)].mean() if (known & (item == i)).any() else empty(value[known]) for i in range(item.max() + 1)]
        found.append(root(((np.array(means)[item] - value) ** 2)[asked(held)].mean()))
    return tuple(found)


BOTH = lambda held: (~held, np.ones_like(held))


@pytest.mark.parametrize(
    ("number", "answer", "words"),
    [
        ("0.4", lambda m, n, w: (8 * m * n - w * (m + 1)) / (8 + w), "number of ratings"),
        ("0.4", lambda m, n, w: 8 / (8 + w), "where the rows begin"),
        ("0.4", lambda m, n, w: (8 * m * n - w * m) / (8 + w) / (m * n), "one place more"),
        ("0.4", lambda m, n, w: (8 * m * n - w * (n + 1)) / (8 + w) / (m * n), "not items"),
        ("0.5", lambda matrix: means(matrix, lambda c: c.shape[0]), "number of users"),
        ("0.5", lambda matrix: means(matrix, lambda c: (c.toarray() > 0).sum(0)), "Ratings of zero"),
        ("0.5", lambda matrix: np.nan_to_num(means(matrix, lambda c: np.diff(c.indptr))), "expected NaN"),
        ("0.6", lambda *a: errors(*a, BOTH, root=float), "no root"),
        ("0.6", lambda *a: errors(*a, BOTH)[::-1], "come first"),
        ("0.6", lambda *a: errors(*a, BOTH, asked=np.ones_like), "held-out ratings only"),
        ("0.6", lambda *a: errors(*a, BOTH, empty=lambda value: 0.0), "not 0"),
    ],
)
def test_planted_mistakes_get_the_message_made_for_them(number, answer, words):
    with pytest.raises(NotRight, match=words):
        check(number, answer)
