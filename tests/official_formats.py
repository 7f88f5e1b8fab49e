"""Small files in the official formats of the data sets, and a loopback server that delivers them, well or badly.

`make(kind, seed)` gives the files of a set and the arrays that a reader must find in them; `install` announces a set to `ae_course.data` as
if these files were the published ones. Tests that need a process of their own run it: `official_formats.py ANNOUNCED.json NAME ROOT`.
"""

import gzip
import hashlib
import http.server
import io
import json
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ae_course import data


def idx(values: np.ndarray) -> bytes:
    "Bytes as a gzipped IDX file."
    head = b"\0\0\x08" + bytes([values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return gzip.compress(head + values.astype(np.uint8).tobytes(), mtime=0)


def tar_gz(*members) -> bytes:
    "A .tar.gz of (name, content) or (name, content, type, link target)."
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tape:
        for name, content, *special in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (*special, "", "")[:2] if special else (tarfile.REGTYPE, "")
            info.size = len(content)
            tape.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(*members) -> bytes:
    "A zip of (name or ZipInfo, content)."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


def mnist(at: np.random.Generator) -> tuple[dict, dict, dict]:
    images, labels = {"train": at.integers(0, 256, (30, 28, 28)), "test": at.integers(0, 256, (7, 28, 28))}, {}
    files = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        labels[split] = at.integers(0, 10, len(images[split]))
        files[f"{prefix}-images-idx3-ubyte.gz"] = idx(images[split])
        files[f"{prefix}-labels-idx1-ubyte.gz"] = idx(labels[split])
    return files, images, labels


def cifar10(at: np.random.Generator) -> tuple[dict, dict, dict]:
    images = {"train": at.integers(0, 256, (20, 3, 32, 32)), "test": at.integers(0, 256, (6, 3, 32, 32))}
    labels = {split: at.integers(0, 10, len(x)) for split, x in images.items()}
    rows = {split: np.concatenate([labels[split][:, None], x.reshape(len(x), -1)], 1).astype(np.uint8) for split, x in images.items()}
    members = [("batches.meta.txt", b"airplane\n"), ("test_batch.bin", rows["test"].tobytes())]
    members += [(f"data_batch_{i + 1}.bin", rows["train"][4 * i : 4 * i + 4].tobytes()) for i in (4, 0, 3, 1, 2)]
    return {"cifar-10-binary.tar.gz": tar_gz(*((f"cifar-10-batches-bin/{name}", content) for name, content in members))}, images, labels


def stl10(at: np.random.Generator) -> tuple[dict, dict, dict]:
    images = {split: at.integers(0, 256, (n, 3, 96, 96)) for split, n in (("train", 5), ("test", 4), ("unlabeled", 3))}
    labels = {split: at.integers(0, 10, len(images[split])) for split in ("train", "test")}
    members = [(f"stl10_binary/{split}_X.bin", x.transpose(0, 1, 3, 2).astype(np.uint8).tobytes()) for split, x in images.items()]
    members += [(f"stl10_binary/{split}_y.bin", (y + 1).astype(np.uint8).tobytes()) for split, y in labels.items()]
    return {"stl10_binary.tar.gz": tar_gz(*members, ("stl10_binary/class_names.txt", b"airplane\n"))}, images, labels


def celeba(at: np.random.Generator) -> tuple[dict, dict, dict]:
    part = [0] * 6 + [1] * 2 + [2] * 3
    names = [f"{i + 1:06d}.jpg" for i in range(len(part))]
    faces = (at.integers(0, 256, (len(part), 1, 1, 3)) * np.ones((1, 218, 178, 1))).astype(np.uint8)  # plain colours survive JPEG
    attributes = at.choice([-1, 1], (len(part), 40))
    attribute_names = [f"Attribute_{i}" for i in range(40)]
    marks = at.integers(20, 150, (len(part), 10))
    rows = lambda values: [f"{name} {' '.join(map(str, np.atleast_1d(row)))}" for name, row in zip(names, values)]
    text = {"list_eval_partition.txt": rows(part), "identity_CelebA.txt": rows(at.integers(1, 9, len(part))),
            "list_attr_celeba.txt": [str(len(part)), " ".join(attribute_names), *rows(attributes)],
            "list_landmarks_align_celeba.txt": [str(len(part)), "lefteye_x lefteye_y righteye_x righteye_y", *rows(marks)]}
    files = {name: ("\n".join(lines) + "\n").encode() for name, lines in text.items()}
    files["img_align_celeba.zip"] = zipped(("img_align_celeba/", b""), *((f"img_align_celeba/{n}", jpeg(f)) for n, f in zip(names, faces)))
    split_of = np.array(["train", "validation", "test"])[part]
    images = {split: faces[split_of == split].transpose(0, 3, 1, 2) for split in ("train", "validation", "test")}
    marks = marks.reshape(-1, 5, 2)
    extras = {split: {"attributes": attributes[split_of == split] > 0, "landmarks": marks[split_of == split]} for split in images}
    return files, images, extras


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    "Arrays as a compressed .npz."
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def pneumonia(at: np.random.Generator) -> tuple[dict, dict, dict]:
    images = {split: at.integers(0, 256, (n, 28, 28)) for split, n in (("train", 9), ("validation", 3), ("test", 4))}
    labels = {split: at.integers(0, 2, len(x)) for split, x in images.items()}
    theirs = {"train": "train", "validation": "val", "test": "test"}
    arrays = {f"{theirs[split]}_images": x.astype(np.uint8) for split, x in images.items()}
    arrays |= {f"{theirs[split]}_labels": y[:, None].astype(np.uint8) for split, y in labels.items()}
    return {"pneumoniamnist.npz": npz(arrays)}, images, labels


KINDS = {"mnist": mnist, "fashion_mnist": mnist, "cifar10": cifar10, "stl10": stl10, "celeba": celeba, "pneumonia": pneumonia}


def make(kind: str, seed: int = 0) -> tuple[dict[str, bytes], dict[str, np.ndarray], dict]:
    "(files by name, images (N, C, H, W) or (N, H, W) by split, labels by split; for celeba attributes and landmarks by split)."
    return KINDS[kind](np.random.default_rng(seed))


def announcement(kind: str, files: dict[str, bytes], mirrors: list[str]) -> dict:
    "What `install` needs, as JSON: the counts, and of each file its name, digest and addresses."
    counts = {split: len(x) for split, x in make(kind)[1].items()}
    listed = [[name, hashlib.md5(content).hexdigest(), [mirror + name for mirror in mirrors]] for name, content in files.items()]
    return {"kind": kind, "images": counts, "files": listed}


def install(announced: dict, patch=None) -> None:
    "Puts the announced set in the place of the official one; `patch` is pytest's monkeypatch, or None for good."
    files = [data.File(*entry) for entry in announced["files"]]
    source = replace(data.SOURCES[announced["kind"]], images=announced["images"], files=lambda: files, cap=64 << 20)
    (patch.setitem if patch else dict.__setitem__)(data.SOURCES, announced["kind"], source)


class Server:
    """A loopback server. `content[path]`: bytes, an error code, ("short", bytes): half, ("flood", n) zeros, ("slow", bytes): 2 s."""

    def __init__(self):
        self.content, self.asked = {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                what = outer.content.get(self.path, 404)
                if isinstance(what, int):
                    return self.send_error(what)
                kind, body = what if isinstance(what, tuple) else ("", what)
                self.send_response(200)
                self.send_header("Content-Length", str(body if kind == "flood" else len(body)))
                self.end_headers()
                return outer.deliver(self.wfile, kind, body)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    @staticmethod
    def deliver(file, kind: str, body) -> None:
        try:
            if kind == "slow":
                step = len(body) // 40 + 1
                for start in range(0, len(body), step):
                    file.write(body[start : start + step])
                    file.flush()
                    time.sleep(0.05)
            elif kind == "flood":
                for _ in range(body >> 20):
                    file.write(bytes(1 << 20))
            else:
                file.write(body[: len(body) // 2] if kind == "short" else body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the reader left: that is what some tests are about

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def offer(self, kind: str, files: dict[str, bytes], mirror: str = "/a/") -> None:
        self.content |= {mirror + name: content for name, content in files.items()}


if __name__ == "__main__":
    install(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    images = data.load(sys.argv[2], root=sys.argv[3])
    print(hashlib.sha256(images.x.numpy().tobytes()).hexdigest())
