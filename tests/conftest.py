"What several test files share: a folder with small experiments of its own, and `ae-course` as a user types it."

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

# as many tests as there are cores run side by side: with more than one thread each, they would wait for one another in every operation
os.environ.setdefault("OMP_NUM_THREADS", "1")

COUNT = """import os, time
nap, fault, rows = float(os.environ.get("TOY_NAP", 0)), os.environ.get("TOY_FAULT"), []
for size, stage in run.stages(sizes, label="z = {}", cost=lambda size: size):
    for epoch in range(steps):
        time.sleep(nap)
        if fault == "kill" or (fault and fault == f"kill {seed}"):
            os.kill(os.getpid(), 9)
        if fault == "error":
            raise KeyError("no such thing")
        stage.progress({"epoch": epoch + 1, "epochs": steps, "loss": 1 / (epoch + 1)})
    rows.append({"seed": seed, "z": size, "mse": rate / size})"""

TRAIN = """import os, time
import torch
from ae_course.autoencoder import Autoencoder, mlp, save_model
from ae_course.training import fit, seeded

images = torch.rand(600, 1, 8, 8, generator=torch.Generator().manual_seed(0))
nap, fault, rows = float(os.environ.get("TOY_NAP", 0)), os.environ.get("TOY_FAULT"), []
lr, device = 1e30 if fault == "diverge" else 1e-3, "cuda" if fault == "cuda" else "cpu"
if fault == "data":
    images[3] = float("nan")
for size, stage in run.stages(sizes, label="z = {}"):
    with seeded(seed):
        model = Autoencoder(*mlp((1, 8, 8), hidden=(32,), latent_dim=size))

    def progress(row, stage=stage):
        stage.progress(row)
        time.sleep(nap)

    history = fit(model, images, epochs=steps, lr=lr, seed=seed, device=device, checkpoint=stage.checkpoint, progress=progress)
    rows.append({"seed": seed, "z": size, "mse": history["loss"][-1]})
save_model(model, run.path("model.safetensors"))"""


def notebook(*cells: str) -> str:
    "The text of a notebook of code cells, the first of them tagged `parameters`."
    empty = {"cell_type": "code", "outputs": [], "execution_count": None}
    code = [{**empty, "id": f"c{i}", "metadata": {"tags": ["parameters"][i:]}, "source": cell} for i, cell in enumerate(cells)]
    title = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# Toy\n> A small experiment"}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": [title, *code], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


class Lab:
    "A course of toy experiments, `count` (no torch) and `train`, and the command line on it."

    def __init__(self, place: Path):
        self.place, self.nbs, self.runs = place, place / "nbs", place / "runs"
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("AE_COURSE_")}
        self.env |= {"AE_COURSE_NBS": str(self.nbs), "OMP_NUM_THREADS": "1"}
        (self.nbs / "experiments" / "presets").mkdir(parents=True)
        parameters = "steps: int = 3  # at least 1: steps\nsizes: list[int] = [1, 2]  # at least 1: code sizes\n"
        parameters += "seed: int = 0  # at least 0: seed\n"
        more = "rate: float = 0.5  # above 0, at most 1: rate\nflag: bool = False  # a flag\n"
        more += "mode: str = 'a'  # one of a, b: mode\nlimit: int | None = None  # at least 1: first images"
        self.add("count", parameters + more, COUNT, steps=3)
        self.add("train", parameters, TRAIN, steps=3)

    def add(self, name: str, parameters: str, work: str, **laptop) -> None:
        "Add an experiment with the presets smoke and laptop."
        guard = f"from ae_course.lab import start\nrun = start({name!r}, globals())"
        (self.nbs / "experiments" / f"{name}.ipynb").write_text(notebook(parameters, guard, work, "run.finish(rows)"), encoding="utf-8")
        for preset, values in {"smoke": {"steps": 1}, "laptop": laptop}.items():
            path = self.nbs / "experiments" / "presets" / f"{name}.{preset}.yaml"
            path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8")

    def start(self, *args: str, env=None, **options) -> subprocess.Popen:
        "`ae-course ARGS`, not waited for."
        module = "ae_course.cli" if args[0] in ("sweep", "report") else "ae_course.lab"  # the lab alone starts faster
        command = [sys.executable, "-m", module, *map(str, args)]
        return subprocess.Popen(command, cwd=self.place, env={**self.env, **(env or {})}, text=True, encoding="utf-8", errors="replace",
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # fmt: skip

    def __call__(self, *args: str, env=None, **options) -> subprocess.CompletedProcess:
        "`ae-course ARGS`, waited for: .returncode, .stdout, .stderr."
        process = self.start(*args, env=env, **options)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def folders(self, name: str, root: Path | None = None) -> list[Path]:
        "Folders of the runs of an experiment."
        return sorted((root or self.runs).glob(f"{name}/*"))

    def json(self, name: str, file: str, root: Path | None = None) -> dict:
        "A JSON file of the only run of an experiment."
        (folder,) = self.folders(name, root)
        return json.loads((folder / file).read_text(encoding="utf-8"))

    def wait_for(self, name: str, lines: int, root: Path | None = None, timeout: float = 300.0) -> dict:
        "Wait until the only run of an experiment has logged so many lines; returns its status."
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for log in (root or self.runs).glob(f"{name}/*/log.jsonl"):
                if log.read_text(encoding="utf-8").count("\n") >= lines:
                    return self.json(name, "status.json", root)
            time.sleep(0.02)
        raise AssertionError(f"{name}: no {lines} lines logged after {timeout} s")


@pytest.fixture
def lab(tmp_path) -> Lab:
    "A Lab in a folder of its own."
    return Lab(tmp_path)


@pytest.fixture
def here(lab, monkeypatch, capsys):
    "`here(*args)`: `ae-course ARGS` on `lab`, in this process, a run with the plain engine; (exit code, what it printed, what it said)."
    from ae_course.cli import main

    monkeypatch.setenv("AE_COURSE_NBS", str(lab.nbs))
    monkeypatch.delenv("AE_COURSE_DATA", raising=False)
    monkeypatch.chdir(lab.place)

    def call(*args):
        code = main([*map(str, args), *(["--engine", "plain"] if args[0] == "run" else [])])
        return code, *capsys.readouterr()

    return call


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than a few seconds")
