"""The room 00_data: what is loaded, what is refused, and what a download may do."""

import gzip
import hashlib
import io
import json
import logging
import os
import pickle
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import official_formats as formats
import pytest
import torch
from PIL import Image

from ae_course import data
from ae_course.data import BadArgument, DataError, Images, UnknownName, check, datasets, get, images_from, load

LAID_OUT = os.environ.get("AE_COURSE_DATA")
FOREIGN = os.fsdecode("dätä with späces".encode())  # as the system hands such a name to Python, in any locale


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    "No set of the person who runs the tests is seen, and nothing is written outside `tmp_path`."
    monkeypatch.delenv("AE_COURSE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server():
    with formats.Server() as running:
        yield running


def announce(kind, server, monkeypatch, mirrors=("/a/",), files=None):
    "The files of a small official set, announced at `mirrors` of the server, and offered at the first."
    made, images, labels = formats.make(kind)
    files = made if files is None else files
    server.offer(kind, files)
    announced = formats.announcement(kind, files, [server.url + mirror for mirror in mirrors])
    formats.install(announced, monkeypatch)
    return files, images, labels, announced


def digest(tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


# what is always there


def test_mnist5k_is_fixed_balanced_and_apart():
    train, test = load(), load(split="test")
    assert train.x.shape == (4000, 1, 28, 28) and test.x.shape == (1000, 1, 28, 28)
    assert train.x.dtype == torch.uint8 and train.x.is_contiguous() and train.y.dtype == torch.int64
    assert train.y.bincount().tolist() == [400] * 10 and test.y.bincount().tolist() == [100] * 10
    for n in (10, 100, 1230):
        assert load(limit=n).y.bincount().tolist() == [n // 10] * 10
    rows = lambda images: set(map(bytes, images.x.flatten(1).numpy()))
    assert not rows(train) & rows(test)
    assert digest(train.x)[:16] == "52454974f5606fb1" and digest(test.x)[:16] == "05f16c885f80bb90"


def test_digits():
    from sklearn.datasets import load_digits

    train, test = load("digits"), load("digits", "test")
    assert len(train) + len(test) == 1797 and train.x.shape[1:] == (1, 8, 8) and train.x.max() == 255
    levels = torch.cat([train.x, test.x]).flatten(1).double() * 16 / 255
    assert (levels - levels.round()).abs().max() < 0.04  # a step of 16/255
    assert sorted(map(bytes, levels.round().byte().numpy())) == sorted(map(bytes, load_digits().data.astype(np.uint8)))
    counts = (train.y.bincount() / (train.y.bincount() + test.y.bincount())).tolist()
    assert all(abs(share - 0.8) < 0.01 for share in counts)


def test_shapes_are_the_same_everywhere_and_say_what_they_show():
    train, test = load("shapes"), load("shapes", "test")
    assert train.x.shape == (8000, 1, 32, 32) and test.x.shape == (2000, 1, 32, 32) and train.y is None and train.classes == ()
    for images in (train, test):
        assert list(images.extras) == list(data.FACTORS)
        for name, (low, high) in data.FACTORS.items():
            factor = images.extras[name]
            assert factor.dtype == torch.float32 and low <= factor.min() < low + 0.01 * (high - low) and high >= factor.max()
            assert abs(factor.mean().item() - (low + high) / 2) < 0.03 * (high - low)
    together = torch.corrcoef(torch.stack(list(train.extras.values()))) - torch.eye(5)
    assert together.abs().max() < 0.04  # independent: at most three or four standard errors of 8,000 pairs
    some = train.extras["x"][0], train.extras["shade"][-1], test.extras["angle"][7]
    assert [round(v.item(), 4) for v in some] == [0.5195, 0.9311, 74.3446]
    x = test.pixels(dtype=torch.float64)[:, 0]
    at = torch.arange(32, dtype=torch.float64) + 0.5
    assert ((x.sum(1) @ at) / x.sum((1, 2)) / 32 - test.extras["x"]).abs().max() < 3e-3
    assert ((x.sum(2) @ at) / x.sum((1, 2)) / 32 - test.extras["y"]).abs().max() < 3e-3
    assert (x.amax((1, 2)) - test.extras["shade"]).abs().max() < 1 / 255  # the middle is covered wholly
    few = load("shapes", limit=10, size=16)
    assert few.x.shape == (10, 1, 16, 16) and torch.equal(few.extras["size"], train.extras["size"][:10])


def test_a_shape_moves_and_turns_as_its_factors_say():
    one = {"x": 0.5, "y": 0.5, "size": 0.4, "angle": 30.0, "shade": 0.8}
    draw = lambda **change: data.draw_shapes({name: np.array([value]) for name, value in (one | change).items()})[0]
    assert np.allclose(np.roll(draw(), 3, 1), draw(x=0.5 + 3 / 32)) and np.allclose(np.roll(draw(), -2, 0), draw(y=0.5 - 2 / 32))
    assert np.allclose(draw(angle=0).T, draw(angle=90))
    assert np.allclose(np.rot90(draw(), -1), draw(angle=120), atol=1e-12)  # clockwise on the screen
    assert np.allclose(draw(shade=0.4), draw() / 2) and abs(draw(angle=0).sum() / (0.8 * 32 * 32 * 0.4 * 0.2) - 1) < 0.02


# Images


def test_images_index_slice_and_pixels():
    images = load("digits", limit=20)
    assert len(images) == 20 and len(images[3]) == 1 and torch.equal(images[-1].x[0], images.x[19])
    for index in ([4, 2, 2], torch.tensor([4, 2, 2]), np.array([4, 2, 2])):
        assert torch.equal(images[index].x, images.x[[4, 2, 2]]) and torch.equal(images[index].y, images.y[[4, 2, 2]])
    assert torch.equal(images[images.y == 3].y, images.y[images.y == 3])
    assert images[5:].x.data_ptr() == images.x[5:].data_ptr()
    with pytest.raises(IndexError):
        images[20]
    assert torch.equal(images.pixels(dtype=torch.float64), images.x.double() / 255)
    assert images.pixels().dtype == torch.float32 and images.pixels().min() >= 0 and images.pixels().max() == 1
    assert "digits train: 20 of 1x8x8" in repr(images)


def test_extras_go_along():
    images = Images(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), None, {"attributes": torch.arange(8).view(4, 2)})
    assert images[[3, 1]].extras["attributes"].tolist() == [[6, 7], [2, 3]] and images[1:].y is None
    with pytest.raises(DataError, match="attributes has 3 rows for 4 images"):
        Images(images.x, None, {"attributes": torch.zeros(3)})


GOOD = np.linspace(0, 1, 4 * 3 * 5 * 6).reshape(4, 3, 5, 6)
SPOILED = {value: np.where(np.arange(GOOD.size).reshape(GOOD.shape) == 200, value, GOOD) for value in (np.nan, np.inf)}


@pytest.mark.parametrize(("array", "labels", "message"), [
    (SPOILED[np.nan], None, "1 of 4 images, the first at index 2"),
    (SPOILED[np.inf].astype(np.float32), None, "1 of 4 images, the first at index 2"),
    (GOOD * 255, None, r"floats from 0 to 255, expected \[0, 1\]"),
    (GOOD * 2 - 1, None, r"floats from -1 to 1, expected \[0, 1\]"),
    ((GOOD * 255).astype(np.int16), None, "got int16, expected uint8"),
    ((GOOD * 255).astype(np.int64), None, r"array\.astype\(numpy\.uint8\)"),
    (GOOD > 0.5, None, "got bool"),
    ((GOOD > 0.5).astype(np.uint8), None, "bytes of 0 and 1 only"),
    (np.moveaxis(GOOD, 1, 3), None, r'got shape \(4, 5, 6, 3\) as NCHW.*layout="NHWC"'),
    (GOOD[:, :2], None, "C = 1 or 3"),
    (GOOD[0, 0], None, r"got shape \(5, 6\)"),
    (GOOD[:0], None, "0 images, need at least 1"),
    ([GOOD[0], GOOD[1][:, :2]], None, "expected equal shapes"),
    (GOOD.astype(str), None, "expected uint8"),
    (GOOD, [0, 1, 2], "3 rows for 4 images"),
    (GOOD, [0.0, 1, 2, 3], "labels are float64"),
    (GOOD, [[0], [1], [2], [3]], r"labels are int64 \(4, 1\)"),
    (GOOD, ["a", "b", "c", "d"], "expected N integers"),
    (GOOD, [0, 1, 2, -2], "labels from -2 to 2"),
])  # fmt: skip
def test_bad_arrays_are_refused(array, labels, message):
    with pytest.raises(DataError, match=message) as caught:
        images_from(array, labels, name="mine")
    assert "mine" in str(caught.value) and caught.value.exit_code == 3


def test_good_arrays_are_taken_and_copied():
    raw = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6), np.uint8)
    for array in (raw, torch.from_numpy(raw), raw.tolist() and np.asfortranarray(raw)):
        images = images_from(array, [0, 1, -1, 1], classes=("a", "b"))
        assert np.array_equal(images.x, raw) and images.x.is_contiguous()
    images.x[0] = 0
    assert raw[0].any()
    assert np.array_equal(images_from(raw.transpose(0, 2, 3, 1), layout="NHWC").x, raw)
    assert images_from(raw[:, 0]).x.shape == (4, 1, 5, 6)
    assert torch.equal(images_from(torch.from_numpy(raw).bfloat16() / 256).x[..., 0].float().mean().isfinite(), torch.tensor(True))
    assert images_from(np.zeros((1, 8, 8), np.uint8)).x.sum() == 0  # one image, all black
    with pytest.raises(DataError, match="labels from -1 to 1, expected -1 .unlabelled. to 0"):
        images_from(raw, [0, 1, -1, 1], classes=("a",))
    with pytest.raises(UnknownName, match="did you mean NCHW"):
        images_from(raw, layout="NCWH")


# arrays on disk


def lay_out(folder: Path, **arrays) -> Path:
    folder.mkdir(parents=True)
    for key, value in arrays.items():
        np.save(folder / f"{key}.npy", value)
    listed = {key: [list(value.shape), str(value.dtype)] for key, value in arrays.items()}
    meta = {"name": folder.name, "arrays": listed, "classes": ["ä", "b"], "note": "made up"}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder


@pytest.fixture
def toy(tmp_path):
    at = np.random.default_rng(0)
    return lay_out(tmp_path / "data" / "toy", train_images=at.integers(0, 256, (6, 5, 4, 3), np.uint8), train_labels=np.arange(6) % 2,
                   train_weights=np.arange(6.0), test_images=at.integers(0, 256, (2, 5, 4), np.uint8), test_labels=np.array([0, -1]))


def test_a_laid_out_set(toy, tmp_path):
    train, test = load("toy"), load("toy", "test", root=tmp_path / "data")
    assert np.array_equal(train.x.permute(0, 2, 3, 1), np.load(toy / "train_images.npy")) and train.x.is_contiguous()
    assert train.classes == ("ä", "b") and train.extras["weights"].tolist() == [0, 1, 2, 3, 4, 5] and "made up" in repr(train)
    assert test.x.shape == (2, 1, 5, 4) and test.y.tolist() == [0, -1] and not test.extras
    assert load("toy", limit=4).x.shape[0] == 4 == len(load("toy", limit=4).extras["weights"]) and len(load("toy", limit=400)) == 6
    assert load("toy", size=3).x.shape == (6, 3, 3, 3)
    train.x.zero_()
    assert np.load(toy / "train_images.npy").any()  # what is in memory is a copy
    assert load(str(toy)).x.shape == load(toy).x.shape == (6, 3, 5, 4)  # by its path


def test_where_sets_are_looked_for(toy, tmp_path, monkeypatch):
    lay_out(tmp_path / "b" / "toy", train_images=np.zeros((1, 2, 2), np.uint8))
    monkeypatch.setenv("AE_COURSE_DATA", str(tmp_path / "b"))
    assert len(load("toy")) == 1 and len(load("toy", root=tmp_path / "data")) == 6 and len(load("toy", root=tmp_path / "empty")) == 1
    below = tmp_path / "nbs" / "deep"
    below.mkdir(parents=True)
    (tmp_path / "settings.ini").touch()
    monkeypatch.chdir(below)
    monkeypatch.delenv("AE_COURSE_DATA")
    assert data.project_root() == tmp_path and data.data_root() == tmp_path / "data" and len(load("toy")) == 6


@pytest.mark.parametrize(("damage", "message"), [
    (lambda raw: raw[:-5], "cannot be read as an array"),
    (lambda raw: raw + b"12345", "493 bytes, expected 488"),
    (lambda raw: raw.replace(b"(6, 5, 4, 3)", b"(6, 4, 5, 3)"), r"says uint8 \(6, 5, 4, 3\), the file holds uint8 \(6, 4, 5, 3\)"),
    (lambda raw: raw.replace(b"|u1", b"|i1"), "the file holds int8"),
    (lambda raw: b"", "cannot be read"),
    (lambda raw: b"<!DOCTYPE html>", "not an array file"),
])  # fmt: skip
def test_damaged_arrays(toy, damage, message):
    path = toy / "train_images.npy"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load("toy")
    assert str(path) in str(caught.value) and caught.value.exit_code == 3 and "remove the folder" in str(caught.value)
    assert [row["ok"] for row in check("toy")] == [False]
    assert "toy" in repr(datasets())  # the list still prints


class Trap:
    "Unpickled, it touches a file."

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_pickles_are_not_run(toy, tmp_path):
    marker = tmp_path / "marker"
    np.save(toy / "train_images.npy", np.array([Trap(marker)] * 6, object), allow_pickle=True)
    with pytest.raises(DataError):
        load("toy")
    (toy / "train_images.npy").write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(DataError):
        load("toy")
    assert not marker.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "toy"}', '{"arrays": 5}', '{"arrays": {"train_images": 5}}', "\xff"])
def test_damaged_meta(toy, text):
    (toy / "meta.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="meta.json"):
        load("toy")
    assert not check("toy")[0]["ok"]


def test_meta_that_fits_no_images(tmp_path):
    lay_out(tmp_path / "data" / "short", train_images=np.zeros((3, 2, 2), np.uint8), train_labels=np.zeros(2, np.int64))
    lay_out(tmp_path / "data" / "float", train_images=np.zeros((3, 2, 2), np.float32))
    lay_out(tmp_path / "data" / "four", train_images=np.zeros((3, 2, 2, 4), np.uint8))
    lay_out(tmp_path / "data" / "none", train_images=np.zeros((0, 2, 2), np.uint8))
    lay_out(tmp_path / "data" / "numbers", all_ratings=np.zeros((3, 4), np.int64))
    for name, message in (("short", "2 rows for 3 images"), ("float", "float32"), ("four", "C = 1 or 3"), ("none", "0 images"),
                          ("numbers", "no images .all_ratings")):
        with pytest.raises(DataError, match=message):
            load(name)
    with pytest.raises(DataError, match="ratings are not images"):
        load("movielens")


def test_read_only_folders_are_read(toy):
    before = sorted(path.name for path in toy.parent.rglob("*"))
    for path in (*toy.iterdir(), toy, toy.parent):
        path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert len(load("toy")) == 6 and check("toy")[0]["ok"]
        assert sorted(path.name for path in toy.parent.rglob("*")) == before
    finally:
        for path in (toy.parent, toy):
            path.chmod(0o700)


def test_a_place_that_cannot_be_written(tmp_path, server, monkeypatch):
    announce("mnist", server, monkeypatch)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written.*AE_COURSE_DATA"):
        load("mnist", root=tmp_path / "file" / "below")
    assert not server.asked  # before anything is fetched


# names and arguments


@pytest.mark.parametrize(("arguments", "message"), [
    ({"name": "mnits5k"}, "unknown data set 'mnits5k'; did you mean mnist5k. known: .*celeba"),
    ({"name": "walrus"}, "unknown data set 'walrus'; known"),
    ({"name": ""}, "unknown data set"),
    ({"split": "tset"}, "unknown split of mnist5k 'tset'; did you mean test"),
    ({"variant": "rae"}, "unknown variant of mnist5k"),
    ({"limit": 0}, "limit: got 0, expected an integer of at least 1"),
    ({"limit": 2.5}, "limit: got 2.5"),
    ({"size": -3}, "size: got -3"),
    ({"size": True}, "size: got True"),
])  # fmt: skip
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(BadArgument, match=message) as caught:
        load(**arguments)
    assert caught.value.exit_code == 2


# official files, from a server on this machine


@pytest.mark.parametrize("kind", sorted(formats.KINDS))
def test_official_files_are_fetched_once(kind, server, monkeypatch, tmp_path):
    files, images, labels, _ = announce(kind, server, monkeypatch)
    for split, expected in images.items():
        found = load(kind, split)
        expected = expected if expected.ndim == 4 else expected[:, None]
        assert found.x.shape == expected.shape
        assert np.abs(found.x.numpy().astype(int) - expected).max() <= (3 if kind == "celeba" else 0)  # JPEG
        if kind == "celeba":
            assert np.array_equal(found.extras["attributes"].numpy(), labels[split]["attributes"])
            assert np.array_equal(found.extras["landmarks"].numpy(), labels[split]["landmarks"]) and len(found.about["attributes"]) == 40
        elif split in labels:
            assert np.array_equal(found.y.numpy(), labels[split]) and len(found.classes) == (2 if kind == "pneumonia" else 10)
    assert len(server.asked) == len(files) == len(set(server.asked))
    assert [row["ok"] for row in check(kind)] == [True] and "no digests" not in check(kind)[0]["detail"]
    left = sorted(path.name for path in (tmp_path / "data").rglob("*") if path.is_file() and path.suffix != ".npy")
    assert left == [f".{kind}.lock", "meta.json"]  # the archives are gone, the arrays stay
    row = next(row for row in datasets() if row["name"] == kind)
    assert row["present"] and f"train {len(images['train']):,}" in row["images"]


def test_check_sees_a_changed_byte(server, monkeypatch, tmp_path):
    announce("mnist", server, monkeypatch)
    path = get("mnist") / "test_images.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert "test_images: not as written" in check("mnist")[0]["detail"] and not check()[0]["ok"]
    assert check("digits")[0]["ok"] and not check("stl10")[0]["ok"]
    with pytest.raises(UnknownName, match="did you mean mnist"):
        check("mnsit")


PAGE = b"<!DOCTYPE html><p>Quota exceeded"


def test_second_mirror_when_the_first_is_bad(server, monkeypatch, tmp_path, caplog):
    files, images, *_ = announce("mnist", server, monkeypatch, mirrors=("/b/", "/c/", "/d/", "/e/", "/a/"))
    name = "t10k-images-idx3-ubyte.gz"
    server.content |= {"/b/" + name: PAGE, "/c/" + name: 503, "/d/" + name: ("short", files[name])}
    server.content |= {"/e/" + name: files[name][:-9] + b"corrupted"}
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(load("mnist", "test").x[:, 0], images["test"])
    text = caplog.text
    assert "a web page" in text and "503" in text and "of " in text and hashlib.md5(files[name]).hexdigest() in text
    assert hashlib.md5(files[name][:-9] + b"corrupted").hexdigest() in text  # both digests are named
    assert (tmp_path / "data/mnist" / f"{name}.corrupt").read_bytes() == files[name][:-9] + b"corrupted"
    assert [row["ok"] for row in check("mnist")] == [True]


@pytest.mark.parametrize("bad", ["page", 404, "short", "flood", "wrong"])
def test_no_good_copy(bad, server, monkeypatch, tmp_path):
    files, images, *_ = announce("cifar10", server, monkeypatch)
    (name, good), = files.items()
    answers = {"short": ("short", good), "flood": ("flood", 80 << 20), "wrong": good[:-1] + b"!", "page": PAGE, 404: 404}
    server.content["/a/" + name] = answers[bad]
    with pytest.raises(DataError) as caught:
        load("cifar10")
    message = str(caught.value)
    assert caught.value.exit_code == 3 and hashlib.md5(good).hexdigest() in message and server.url in message and "by hand" in message
    if bad in ("short", "wrong", "page"):
        wrong = (tmp_path / "data/cifar10" / f"{name}.corrupt").read_bytes()
        assert hashlib.md5(wrong).hexdigest() in message and wrong != good
    if bad == "flood":
        assert "which is too much for this file" in message  # it was cut off, not swallowed whole
    assert not list(tmp_path.rglob("meta.json")) and not list(tmp_path.rglob("*.npy"))
    server.content["/a/" + name] = good
    assert np.array_equal(load("cifar10").x, images["train"])  # it is tried again, and nothing of before is in the way


def test_files_placed_by_hand(server, monkeypatch, tmp_path):
    files, images, *_ = announce("stl10", server, monkeypatch)
    (name, good), = files.items()
    server.content.clear()
    place = tmp_path / "data" / "stl10" / "source"
    place.mkdir(parents=True)
    (place / name).write_bytes(b"<html>Too many users")
    with pytest.raises(DataError, match=r"a web page.*set aside") as caught:
        load("stl10")
    assert hashlib.md5(b"<html>Too many users").hexdigest() in str(caught.value) and (place / f"{name}.corrupt").exists()
    server.asked.clear()
    (place / name).write_bytes(good)
    assert np.array_equal(load("stl10", "unlabeled").x, images["unlabeled"]) and not server.asked
    assert (place / name).exists()  # what a user placed is theirs


def special(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = kind << 16
    return info


def cifar_with(*extra) -> dict[str, bytes]:
    (name, good), = formats.make("cifar10")[0].items()
    with tarfile.open(fileobj=io.BytesIO(good)) as tape:
        members = [(member.name, tape.extractfile(member).read()) for member in tape]
    return {name: formats.tar_gz(*extra, *members)}


BATCH = "cifar-10-batches-bin/data_batch_1.bin"


EVIL_TAR = {
    "parent": ("../outside.bin", b"x"),
    "parent below": ("cifar-10-batches-bin/../../outside.bin", b"x"),
    "absolute": ("/tmp/ae_course_outside.bin", b"x"),
    "link": (BATCH, b"", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": (BATCH, b"", tarfile.LNKTYPE, "/etc/passwd"),
    "device": ("cifar-10-batches-bin/null", b"", tarfile.CHRTYPE),
    "pipe": ("cifar-10-batches-bin/pipe", b"", tarfile.FIFOTYPE),
    "size": (BATCH, b"too short"),
    "bomb": ("cifar-10-batches-bin/zeros", bytes(100 << 20)),
}


@pytest.mark.parametrize("evil", EVIL_TAR)
def test_malicious_tar(evil, server, monkeypatch, tmp_path):
    announce("cifar10", server, monkeypatch, files=cifar_with(EVIL_TAR[evil]))  # the digest is right: the archive itself is bad
    with pytest.raises(DataError, match="not the official archive|expected 12,292") as caught:
        load("cifar10", root=tmp_path / "deep" / "data")
    assert caught.value.exit_code == 3
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left <= {".cifar10.lock", "cifar-10-binary.tar.gz", "train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy"}
    assert not Path("/tmp/ae_course_outside.bin").exists() and not list(tmp_path.rglob("meta.json"))
    with pytest.raises(DataError):  # arrays that were begun are not taken for whole
        load("cifar10", root=tmp_path / "deep" / "data")


EVIL_ZIP = {
    "parent": ("../outside.jpg", b"x"),
    "absolute": ("/tmp/ae_course_outside.jpg", b"x"),
    "backslash": ("..\\outside.jpg", b"x"),
    "drive": ("C:outside.jpg", b"x"),
    "link": (special("img_align_celeba/link", stat.S_IFLNK), b"/etc/passwd"),
    "pipe": (special("img_align_celeba/fifo", stat.S_IFIFO), b""),
    "bomb": ("img_align_celeba/000003.jpg", bytes(2 << 20)),
    "no picture": ("img_align_celeba/000003.jpg", b"no picture"),
    "other shape": ("img_align_celeba/000003.jpg", formats.jpeg(np.zeros((9, 9, 3), np.uint8))),
    "missing": (None, b""),
}


@pytest.mark.parametrize("evil", EVIL_ZIP)
def test_malicious_or_damaged_zip(evil, server, monkeypatch, tmp_path):
    member, content = EVIL_ZIP[evil]
    files = formats.make("celeba")[0]
    with zipfile.ZipFile(io.BytesIO(files["img_align_celeba.zip"])) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    if member is None:
        del members["img_align_celeba/000003.jpg"]
    extra = [] if member is None else [(member, content)]
    kept = [(name, body) for name, body in members.items() if name != member]
    announce("celeba", server, monkeypatch, files=files | {"img_align_celeba.zip": formats.zipped(*kept, *extra)})
    with pytest.raises(DataError) as caught:
        load("celeba", root=tmp_path / "deep" / "data")
    assert caught.value.exit_code == 3 and not list(tmp_path.rglob("*outside*")) and not list(tmp_path.rglob("meta.json"))


def pneumonia_with(*, without=(), extra=(), **other) -> bytes:
    "The X-ray archive of `formats`, some arrays replaced or left out, further members at its end."
    with zipfile.ZipFile(io.BytesIO(formats.make("pneumonia")[0]["pneumoniamnist.npz"])) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist() if info.filename not in without}
    for key, value in other.items():
        file = io.BytesIO()
        np.save(file, value, allow_pickle=True)
        members[f"{key}.npy"] = file.getvalue()
    return formats.zipped(*members.items(), *extra)


ZEROS = np.zeros((9, 28, 28), np.uint8)
BAD_XRAYS = {
    "pickles": (lambda marker: pneumonia_with(train_labels=np.array([[Trap(marker)]] * 9, object)), "holds object"),
    "parent": (lambda marker: pneumonia_with(extra=[("../outside.npy", b"x")]), "not the official archive"),
    "link": (lambda marker: pneumonia_with(extra=[(special("train_masks.npy", stat.S_IFLNK), b"/etc/passwd")]), "not the official archive"),
    "bomb": (lambda marker: pneumonia_with(train_images=np.zeros((30_000, 28, 28), np.uint8)), "expected 1 to 16,777,216"),
    "too few": (lambda marker: pneumonia_with(train_images=ZEROS[:8]), r"uint8 \(8, 28, 28\).*expected uint8 \(9, 28, 28\)"),
    "floats": (lambda marker: pneumonia_with(train_images=ZEROS / 255), "holds float64"),
    "turned": (lambda marker: pneumonia_with(train_images=np.asfortranarray(ZEROS)), "not the official archive"),
    "cut": (lambda marker: pneumonia_with(without=["val_images.npy"], extra=[("val_images.npy", b"\x93NUMPY\1\0")]), "is no array"),
    "no array": (lambda marker: pneumonia_with(without=["val_images.npy"], extra=[("val_images.npy", b"hello")]), "is no array"),
    "short": (lambda marker: pneumonia_with(without=["test_labels.npy"],
                                            extra=[("test_labels.npy", header_of((4, 1)) + b"\0")]), "and 1 bytes"),
    "missing": (lambda marker: pneumonia_with(without=["test_labels.npy"]), "test_labels.npy has no bytes"),
    "labels": (lambda marker: pneumonia_with(train_labels=np.full((9, 1), 7, np.uint8)), "labels from 7 to 7"),
    "no zip": (lambda marker: b"not even a zip", "damaged"),
}  # fmt: skip


def header_of(shape) -> bytes:
    "The first bytes of a saved uint8 array."
    file = io.BytesIO()
    np.save(file, np.zeros(shape, np.uint8))
    return file.getvalue()[: -int(np.prod(shape))]


@pytest.mark.parametrize("bad", BAD_XRAYS)
def test_bad_xray_archives(bad, server, monkeypatch, tmp_path):
    make, message = BAD_XRAYS[bad]
    content = make(tmp_path / "marker")
    announce("pneumonia", server, monkeypatch, files={"pneumoniamnist.npz": content})  # the digest is right: the archive itself is bad
    with pytest.raises(DataError, match=message) as caught:
        load("pneumonia", root=tmp_path / "deep" / "data")
    assert caught.value.exit_code == 3 and not list(tmp_path.rglob("*outside*")) and not (tmp_path / "marker").exists()
    assert bad == "labels" or not list(tmp_path.rglob("meta.json"))


IDX = gzip.decompress(formats.idx(np.zeros((30, 28, 28))))
IMAGES, LABELS, TAR = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "cifar-10-binary.tar.gz"
DAMAGED = {
    "gzip cut": ("mnist", IMAGES, gzip.compress(IDX)[:40], "damaged"),
    "idx cut": ("mnist", IMAGES, gzip.compress(IDX[:-1]), "23,520 bytes, but 23,519 follow"),
    "idx extended": ("mnist", IMAGES, gzip.compress(IDX + b"!"), "more than 23,520"),
    "no idx": ("mnist", LABELS, gzip.compress(b"PK\3\4"), "no IDX file"),
    "no gzip": ("mnist", LABELS, b"not even gzip", "damaged"),
    "tar cut": ("cifar10", TAR, formats.make("cifar10")[0][TAR][:5000], "damaged"),
    "tar without": ("cifar10", TAR, formats.tar_gz(("readme", b"hello")), "no member"),
    "zip cut": ("celeba", "img_align_celeba.zip", formats.make("celeba")[0]["img_align_celeba.zip"][:-30], "damaged"),
    "other names": ("celeba", "identity_CelebA.txt", b"000001.jpg 5\n", "do not name the same images"),
    "no number": ("celeba", "list_attr_celeba.txt", b"11\nA B\n000001.jpg one -1\n", "list_attr_celeba.txt: expected"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_official_files(damage, server, monkeypatch, tmp_path):
    kind, name, content, message = DAMAGED[damage]
    announce(kind, server, monkeypatch, files=formats.make(kind)[0] | {name: content})  # the digest is right: published in this state
    with pytest.raises(DataError, match=message):
        load(kind)
    assert not list(tmp_path.rglob("meta.json"))


def test_a_full_disk_is_noticed_first(server, monkeypatch, tmp_path):
    announce("mnist", server, monkeypatch)
    monkeypatch.setattr(data.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="make room"):
        load("mnist")
    assert not server.asked


# processes


def start(announced: dict, kind: str, root: Path, **environment) -> subprocess.Popen:
    path = root.parent / "announced.json"
    path.write_text(json.dumps(announced), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "AE_COURSE_DATA"} | {"OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, formats.__file__, str(path), kind, str(root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=root.parent)


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_two_processes_and_a_cold_cache(server, monkeypatch, tmp_path):
    files, images, _, announced = announce("mnist", server, monkeypatch)
    server.content |= {"/a/" + IMAGES: ("slow", files[IMAGES])}
    root = tmp_path / FOREIGN
    both = [start(announced, "mnist", root, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0") for _ in range(2)]
    results = [process.communicate(timeout=120) for process in both]
    expected = hashlib.sha256(images["train"].astype(np.uint8).tobytes()).hexdigest()
    assert [process.returncode for process in both] == [0, 0], results
    assert [out.decode().strip() for out, _ in results] == [expected] * 2
    assert check("mnist", root)[0]["ok"] and len(server.asked) == len(files)  # fetched once


def test_killed_while_downloading(server, monkeypatch, tmp_path):
    files, images, _, announced = announce("mnist", server, monkeypatch)
    slow = "t10k-images-idx3-ubyte.gz"
    server.content["/a/" + slow] = ("slow", files[slow])
    process = start(announced, "mnist", tmp_path / "data")
    wait_for(lambda: (tmp_path / "data/.mnist.partial" / f"{slow}.part").exists())
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert data.find("mnist") is None and not list((tmp_path / "data").glob("mnist/*"))
    server.content["/a/" + slow] = files[slow]
    before = len(server.asked)
    assert np.array_equal(load("mnist", "test").x[:, 0], images["test"])
    assert len(server.asked) - before < len(files)  # what was whole is not fetched again
    assert not (tmp_path / "data/.mnist.partial").exists() and check("mnist")[0]["ok"]


def test_killed_while_converting(server, monkeypatch, tmp_path):
    files, images, _, announced = announce("cifar10", server, monkeypatch)
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(  # the last step, the move of meta.json, never comes
        "import pathlib, time\nreplace = pathlib.Path.replace\n"
        "def slow(self, target):\n    time.sleep(600) if self.name == 'meta.json' else None\n    return replace(self, target)\n"
        "pathlib.Path.replace = slow\n")
    process = start(announced, "cifar10", tmp_path / "data", PYTHONPATH=f"{hook}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    wait_for(lambda: (tmp_path / "data/cifar10/test_labels.npy").exists())
    assert data.find("cifar10") is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert np.array_equal(load("cifar10").x, images["train"]) and check("cifar10")[0]["ok"]
    assert not (tmp_path / "data/.cifar10.partial").exists()


def test_importing_is_light():
    heavy = "matplotlib sklearn torchvision scipy pandas mlxtend PIL IPython urllib.request"
    code = "import sys, torch; before = set(sys.modules); import ae_course.data; print(*set(sys.modules) - before)"
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ae_course.data" in new and not set(heavy.split()) & set(new)


# folders of pictures


def picture(path: Path, level, size=(6, 4), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level).save(path)


def test_folder_with_classes(tmp_path):
    folder = tmp_path / FOREIGN
    for kind, n in (("cat", 10), ("dog", 5)):
        for i in range(n):
            picture(folder / kind / f"{i}.png", (i, 0, 255))
    (folder / "cat" / "notes.txt").write_text("not a picture")
    picture(folder / ".thumbnails" / "1.png", 0)
    train, test = load(folder), load(folder, "test")
    assert train.classes == ("cat", "dog") and train.y.bincount().tolist() == [8, 4] and test.y.bincount().tolist() == [2, 1]
    assert train.x.shape == (12, 3, 4, 6) and train.name == FOREIGN and train.y[:4].tolist() == [0, 1, 0, 1]
    for path in folder.rglob("*.png"):
        os.utime(path, (0, 0))
    (folder / "cat").rename(folder / "x")
    (folder / "x").rename(folder / "cat")
    assert torch.equal(load(folder).x, train.x)  # names alone decide
    picture(folder / "dog" / "new.png", (99, 0, 255))
    now = set(map(bytes, load(folder, "test").x.flatten(1).numpy()))
    assert len(now & set(map(bytes, test.x.flatten(1).numpy()))) >= 2  # an added picture moves at most one of its class
    (tmp_path / "data").mkdir()
    folder.rename(tmp_path / "data" / "pets")
    assert load("pets").name == "pets" and len(load("pets", size=2, limit=3)) == 3


def test_folder_with_splits_and_without_classes(tmp_path):
    for split, n in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(n):
            picture(tmp_path / "a" / split / f"{i}.png", i, mode="L")
    assert [len(load(tmp_path / "a", split)) for split in ("train", "validation", "test")] == [3, 2, 1]
    assert load(tmp_path / "a").y is None and load(tmp_path / "a").x.shape[1:] == (1, 4, 6)
    for kind in ("cat", "dog"):
        for i in range(3):
            picture(tmp_path / "b" / "train" / kind / f"{i}.png", i, mode="L")
    assert load(tmp_path / "b").y.tolist() == [0, 1, 0, 1, 0, 1]  # classes take turns here, too
    picture(tmp_path / "one" / "only.png", 7, mode="L")
    assert len(load(tmp_path / "one")) == 1
    with pytest.raises(DataError, match="0 images, need at least 1"):
        load(tmp_path / "one", "test")


def test_folder_formats(tmp_path):
    picture(tmp_path / "a" / "grey.png", 100, mode="L")
    assert load(tmp_path / "a").x.shape == (1, 1, 4, 6)
    picture(tmp_path / "a" / "bit.png", 1, mode="1")
    picture(tmp_path / "a" / "clear.png", (9, 9, 9, 0), mode="RGBA")
    picture(tmp_path / "a" / "colour.gif", (255, 0, 0))
    turned = Image.new("RGB", (4, 6), (7, 7, 7))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright
    turned.save(tmp_path / "a" / "turned.jpg", exif=exif, quality=100)
    x = np.concatenate([data.read_folder(tmp_path / "a")[0][f"{split}_images"] for split in ("train", "test")])
    assert x.shape == (5, 4, 6, 3)  # all RGB now, and the camera's picture lies as the others do
    levels = {tuple(image.reshape(-1, 3).mean(0).round().astype(int).tolist()) for image in x}
    assert levels == {(100, 100, 100), (255, 255, 255), (255, 0, 0), (7, 7, 7)}


def test_folder_refusals(tmp_path):
    picture(tmp_path / "sizes" / "a.png", 5, size=(6, 4))
    picture(tmp_path / "sizes" / "b.png", 5, size=(8, 8))
    picture(tmp_path / "deep" / "a.png", 40_000, mode="I;16")
    picture(tmp_path / "broken" / "a.png", 5)
    path = tmp_path / "broken" / "a.png"
    path.write_bytes(path.read_bytes()[:50])
    (tmp_path / "empty").mkdir()
    expected = {"sizes": "load.*size=64", "deep": "more than 8 bits", "broken": "a.png: cannot be read", "empty": "0 images, need"}
    for name, message in expected.items():
        with pytest.raises(DataError, match=message) as caught:
            load(tmp_path / name)
        assert caught.value.exit_code == 3
    assert load(tmp_path / "sizes", size=5).x.shape[1:] == (3, 5, 5)


def pokemon(folder: Path, n=10) -> None:
    rows = ["Name,Type1,Type2", *(f"mon{i},{'Grass' if i % 2 else 'Fire'},{'Poison' if i == 3 else ''}" for i in range(1, n + 1))]
    folder.mkdir(parents=True)
    (folder / "pokemon.csv").write_text("\n".join(rows), encoding="utf-8")
    for i in range(1, n + 1):
        picture(folder / "images" / f"mon{i}.png", (i, 0, 0, 0 if i == 2 else 255), (8, 8), "RGBA")


def test_pokemon_placed_by_hand(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="place it there"):
        load("pokemon")
    pokemon(tmp_path / "data" / "pokemon")
    train, test = load("pokemon"), load("pokemon", "test")
    assert train.x[:, 0, 0, 0].tolist() == [1, 255, 3, 4, 5, 6, 7, 8] and test.x[:, 0, 0, 0].tolist() == [9, 10]
    assert train.classes == ("fire", "grass", "poison") and train.y.tolist() == [1, 0] * 4 and train.extras["second_type"].tolist()[2] == 2
    assert check("pokemon")[0]["ok"] and (tmp_path / "data/pokemon/images/mon1.png").exists()
    with pytest.raises(DataError, match="needs all_rgba, at least 634"):
        load("pokemon", variant="tightrope")
    recipe = data.Variant("", {"train": ("all", 0, 6), "test": ("all", 6, 10)}, array="rgba", size=16, mode="bilinear")
    monkeypatch.setitem(data.VARIANTS["pokemon"], "tightrope", recipe)
    train = load("pokemon", variant="tightrope")
    assert train.x.shape == (6, 3, 16, 16) and train.x[1, 0, 0, 0] == 2  # alpha dropped, not laid on white
    assert load("pokemon", "test", variant="tightrope").y.tolist() == [1, 0, 1, 0]


def test_pokemon_refusals(tmp_path):
    folder = tmp_path / "data" / "pokemon"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match="0 CSV files"):
        load("pokemon")
    (folder / "pokemon.csv").write_text("Name,Kind\nx,y\n")
    with pytest.raises(DataError, match="expected Name, Type1, Type2"):
        load("pokemon")
    (folder / "pokemon.csv").write_text("Name,Type1,Type2\nx,y,\n")
    with pytest.raises(DataError, match="need at least 2"):
        load("pokemon")


# variants


def nothing(*shape) -> np.ndarray:
    "An array of any size that takes no memory."
    return np.broadcast_to(np.uint8(0), shape)


OFFICIAL = {
    "celeba": {"train": (162_770, 218, 178, 3), "validation": (19_867, 218, 178, 3), "test": (19_962, 218, 178, 3)},
    "cifar10": {"train": (50_000, 32, 32, 3), "test": (10_000, 32, 32, 3)},
    "stl10": {"train": (5000, 96, 96, 3), "test": (8000, 96, 96, 3), "unlabeled": (100_000, 96, 96, 3)},
    "pokemon": {"all": (801, 120, 120, 4)},
}


@pytest.mark.parametrize(("name", "variant", "split", "first", "last", "shape"), [
    ("celeba", "tightrope", "train", 0, 9999, (96, 96)),
    ("celeba", "tightrope", "test", 17_962, 19_961, (96, 96)),
    ("celeba", "rae", "train", 0, 162_769, (64, 64)),
    ("celeba", "rae", "validation", 0, 19_866, (64, 64)),
    ("celeba", "rae", "test", 0, 19_961, (64, 64)),
    ("cifar10", "rae", "train", 0, 39_999, (32, 32)),
    ("cifar10", "rae", "validation", 40_000, 49_999, (32, 32)),
    ("cifar10", "rae", "test", 0, 9999, (32, 32)),
    ("stl10", "tightrope", "train", 0, 9999, (96, 96)),
    ("stl10", "tightrope", "test", 98_000, 99_999, (96, 96)),
    ("pokemon", "tightrope", "train", 0, 633, (128, 128)),
    ("pokemon", "tightrope", "test", 634, 792, (128, 128)),
])  # fmt: skip
def test_variants_of_the_official_sets(name, variant, split, first, last, shape):
    recipe = data.VARIANTS[name][variant]
    stored = OFFICIAL[name]
    arrays = {f"{s}_{recipe.array}": nothing(*size) for s, size in stored.items()}
    arrays |= {f"{s}_labels": np.arange(size[0]) for s, size in stored.items()}
    recipe, mine = data.choose(name, split, variant, arrays)
    assert (mine["labels"][0], mine["labels"][-1]) == (first, last) and len(mine["images"]) == last - first + 1
    x, _ = data.to_tensor(np.array(mine["images"][:2]), recipe, None)
    assert x.shape == (2, 3, *shape) and recipe.differs


def test_crops_and_landmarks(server, monkeypatch):
    announce("celeba", server, monkeypatch)
    plain, cut = load("celeba"), load("celeba", variant="rae")
    assert torch.allclose(cut.extras["landmarks"], (plain.extras["landmarks"] - torch.tensor([19.0, 39])) * 64 / 140)
    assert cut.about["variant"] == "rae" and "antialiased" in cut.about["differs"]
    assert data.to_tensor(np.zeros((1, 218, 178, 3), np.uint8), data.VARIANTS["celeba"]["tightrope"], None)[1] == (-7, 13, 0.5)
    half = load("celeba", size=89)  # the centre square is 178, from row 20
    assert torch.allclose(half.extras["landmarks"], (plain.extras["landmarks"] - torch.tensor([0.0, 20])) / 2)
    with pytest.raises(DataError, match="at least 10,000.*this copy has 6 of"):
        load("celeba", variant="tightrope")


def test_resize_against_pillow_and_in_chunks():
    at = np.random.default_rng(0)
    images = at.integers(0, 256, (3, 70, 50, 3), np.uint8)
    x, moved = data.to_tensor(images, data.Variant("", {}), 20)
    expected = [np.asarray(Image.fromarray(image[10:60]).resize((20, 20), Image.BICUBIC)) for image in images]
    assert np.abs(x.permute(0, 2, 3, 1).numpy().astype(int) - np.stack(expected)).max() <= 2 and moved == (0, 10, 0.4)
    many = np.tile(images, (400, 1, 1, 1))[:1100, :, :, 0]
    x, _ = data.to_tensor(many, data.Variant("", {}), 20)
    assert torch.equal(x[1000:1002], data.resize(torch.from_numpy(many[1000:1002])[:, None], 20)[0])


# tables, addresses


def test_tables(toy):
    table = datasets()
    names = "mnist5k digits shapes mnist fashion_mnist cifar10 stl10 celeba pneumonia pokemon movielens toy"
    assert [row["name"] for row in table] == names.split()
    rows = {row["name"]: row for row in table}
    assert rows["mnist5k"]["present"] and not rows["mnist"]["present"] and rows["toy"]["images"] == "train 6, test 2"
    assert rows["celeba"]["shape"] == "3x218x178" and rows["toy"]["shape"] == "3x5x4" and rows["toy"]["classes"] == 2
    assert len(repr(table).splitlines()) == len(table) + 1 and table._repr_html_().count("<tr>") == len(table) + 1
    assert repr(data.Table()) == "(no rows)"
    assert get("mnist5k").is_dir() and get("digits").is_dir() and get("shapes").is_dir()


def test_official_addresses():
    files = {name: source.files() for name, source in data.SOURCES.items() if source.kind == "download"}
    counts = {"mnist": 4, "fashion_mnist": 4, "cifar10": 1, "stl10": 1, "celeba": 5, "pneumonia": 1}
    assert {name: len(found) for name, found in files.items()} == counts
    for file in (file for found in files.values() for file in found):
        assert len(file.md5) == 32 and all(url.startswith(("http://", "https://")) for url in file.urls) and file.urls
    assert ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873") in [file[:2] for file in files["mnist"]]


# real sets, where they are laid out


@pytest.mark.parametrize(("name", "shape", "classes"), [
    ("mnist", (1, 28, 28), 10), ("fashion_mnist", (1, 28, 28), 10), ("cifar10", (3, 32, 32), 10), ("stl10", (3, 96, 96), 10),
    ("celeba", None, 0), ("pokemon", None, 18), ("pneumonia", (1, 28, 28), 2),
])  # fmt: skip
def test_laid_out_sets(name, shape, classes):
    if not LAID_OUT or not (Path(LAID_OUT) / name / "meta.json").is_file():
        pytest.skip(f"data set not present: {name} (set AE_COURSE_DATA)")
    for split in ("train", "test"):
        images = load(name, split, limit=1000, root=LAID_OUT)
        assert shape is None or images.x.shape[1:] == shape
        assert images.x.float().std() > 20 and len(images.classes) == classes
        if classes:
            assert images.y.max() < classes and len(images.y.unique()) > classes // 2
        assert load(name, split, limit=3, size=16, root=LAID_OUT).x.shape[2:] == (16, 16)
