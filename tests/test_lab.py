"The lab as a user meets it: the command line, run folders, signals, killed processes, full disks."

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ae_course import lab as module

ENGINES = ("plain", "papermill")
papermill_slow = pytest.param("papermill", marks=pytest.mark.slow)


def alive(pid: int) -> bool:
    "Whether a process lives (a zombie does not)."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# the command line


def test_help_is_quick_and_needs_no_torch(lab):
    begin = time.perf_counter()
    result = lab("--help")
    assert result.returncode == 0 and "collect" in result.stdout
    assert time.perf_counter() - begin < 3  # 0.1 s on a quiet machine
    code = "import sys, ae_course.lab; sys.exit(bool({'torch', 'numpy', 'yaml', 'papermill', 'IPython', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_list_shows_experiments_presets_and_parameters(lab):
    result = lab("list")
    assert result.returncode == 0
    assert "count: A small experiment" in result.stdout and "presets: laptop, smoke" in result.stdout
    assert "list[int]" in result.stdout and "an integer of at least 1" in result.stdout and "int | None" in result.stdout


def test_list_of_the_course_itself():
    env = {key: value for key, value in os.environ.items() if key != "AE_COURSE_NBS"}
    result = subprocess.run([sys.executable, "-m", "ae_course.lab", "list"], env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# parameters


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("stepz", "3"), "unknown parameter stepz; did you mean steps? known: flag,"),
        (("steps", "1_6"), "steps: got '1_6', expected an integer of at least 1"),
        (("steps", "2.5"), "steps: got '2.5', expected an integer of at least 1"),
        (("steps", "0"), "steps: got 0, expected an integer of at least 1"),
        (("steps", "-1"), "steps: got -1, expected an integer of at least 1"),
        (("steps", "true"), "steps: got 'true', expected an integer"),
        (("steps", "none"), "steps: got 'none'"),
        (("steps", ""), "steps: got ''"),
        (("rate", "1e-3x"), "rate: got '1e-3x', expected a number above 0 and of at most 1"),
        (("rate", "nan"), "rate: got 'nan'"),
        (("rate", "inf"), "rate: got 'inf'"),
        (("rate", "1e999"), "rate: got inf"),
        (("rate", "1.5"), "rate: got 1.5"),
        (("flag", "0"), "flag: got '0', expected true or false"),
        (("flag", "yes"), "flag: got 'yes', expected true or false"),
        (("mode", "c"), "mode: got 'c', expected one of a, b"),
        (("sizes", "784,2,2.5"), "sizes[2]: got '2.5', expected an integer of at least 1"),
        (("sizes", "[4,0]"), "sizes[1]: got 0, expected an integer of at least 1"),
        (("sizes", "[]"), "sizes: got [], expected a list"),
        (("sizes", "1,,2"), "sizes[1]: got ''"),
        (("limit", "0"), "limit: got 0"),
    ],
)
def test_a_bad_parameter_is_refused_before_anything_starts(lab, typed, says):
    result = lab("run", "count", "-p", *typed)
    assert result.returncode == 2 and says in result.stderr, result.stderr
    assert not lab.runs.exists() and "Traceback" not in result.stderr


def test_typed_values_arrive_as_declared(lab):
    typed = {"steps": "2", "sizes": "[3, 1]", "rate": "1", "flag": "true", "mode": "b", "limit": "7", "seed": "4"}
    result = lab("run", "count", "--engine", "plain", *(part for pair in typed.items() for part in ("-p", *pair)))
    assert result.returncode == 0, result.stderr
    assert lab.json("count", "result.json")["parameters"] == {
        "steps": 2, "sizes": [3, 1], "seed": 4, "rate": 1.0, "flag": True, "mode": "b", "limit": 7}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps: 2.5\n", "steps: got 2.5"),
        ("flag: 'false'\n", "flag: got 'false', expected true or false"),
        ("steps: true\n", "steps: got True"),
        ("rate: 1e-3\n", "(in YAML, write 1.0e-3)"),
        ("rate: .nan\n", "rate: got nan"),
        ("sizes: [1, x]\n", "sizes[1]: got 'x'"),
        ("sizes: 4\n", "sizes: got 4, expected a list"),
        ("step: 1\n", "unknown parameter step; did you mean steps?"),
        ("- 1\n", "expected lines 'name: value'"),
        ("a: [1\n", "not YAML"),
        ("a: \xff\n".encode("latin-1"), "values.yaml"),
    ],
)
def test_a_bad_parameter_file_is_refused(lab, text, says):
    (lab.place / "values.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    result = lab("run", "count", "-f", "values.yaml")
    assert result.returncode == 2 and says in result.stderr and "values.yaml" in result.stderr, result.stderr
    assert not lab.runs.exists()


def test_values_overrule_one_another_in_the_stated_order(lab, monkeypatch):
    monkeypatch.setenv("AE_COURSE_NBS", str(lab.nbs))
    (lab.nbs / "experiments" / "presets" / "count.paper.yaml").write_text("steps: 50\nseed: 5\nrate: 0.25\n")
    (lab.place / "own.json").write_text('{"seed": 6, "rate": 1e-3}')
    values = module.resolve("count", "paper", lab.place / "own.json", [("rate", "1e-4")])
    assert (values["steps"], values["seed"], values["rate"], values["mode"]) == (50, 6, 1e-4, "a")
    assert module.resolve("count")["steps"] == 3  # the laptop preset


@pytest.mark.parametrize(("args", "says"), [
    (("run", "cuont"), "unknown experiment 'cuont'; did you mean count? known: count, train"),
    (("run", "../count"), "unknown experiment '../count'"),
    (("run", "count", "--preset", "papr"), "unknown preset 'papr'"),
    (("run", "count", "--preset", "../x"), "unknown preset"),
    (("run", "count", "-f", "absent.yaml"), "absent.yaml"),
    (("collect", "count", "--preset", "tiny"), "unknown preset 'tiny'"),
    (("collect", "count"), "no finished runs of count"),
    (("data", "get"), "which data set"),
])  # fmt: skip
def test_an_unknown_name_is_refused(lab, args, says):
    result = lab(*args)
    assert result.returncode == 2 and says in result.stderr, result.stderr


@pytest.mark.parametrize(
    "cell",
    ["import os", "n = 3", "n: int",
      "d: dict = {}", "n: int = 0  # at least 1: ", "x: float = 1e999", "n: int = 1 + 1", "n: int = 2  # above x:"],
)
def test_a_parameters_cell_must_be_declarations(cell):
    with pytest.raises(module.ParameterError, match="parameters cell: got"):
        module.declared(cell)


def test_a_declaration_may_span_lines_and_its_help_may_hold_colons():
    found = module.declared("a: list[float] = [\n  0.5,\n]  # at least 0, below 1: share: of pixels\nb: str = 'x'  # where: anywhere")
    assert found["a"].bounds == (("at least", 0.0), ("below", 1.0)) and found["a"].help == "share: of pixels"
    assert found["b"].help == "where: anywhere" and not found["b"].choices


@pytest.mark.parametrize("text", ["not json", "{}", '{"cells": 3}'])
def test_a_broken_notebook_is_named(lab, text):
    (lab.nbs / "experiments" / "count.ipynb").write_text(text)
    result = lab("run", "count")
    assert result.returncode == 2 and "not a Jupyter notebook" in result.stderr


def test_a_lost_tag_is_named(lab):
    path = lab.nbs / "experiments" / "count.ipynb"
    path.write_text(path.read_text().replace('"parameters"', '"other"'))
    result = lab("run", "count")
    assert result.returncode == 2 and "0 cells have the tag 'parameters'" in result.stderr


# a run


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_records_what_was_injected(lab, engine):
    result = lab("run", "count", "--engine", engine, "-p", "steps", "4", "-p", "sizes", "[3,1]", "-p", "mode", "b")
    assert result.returncode == 0, result.stderr
    recorded = lab.json("count", "result.json")
    (folder,) = lab.folders("count")
    assert recorded["parameters"]["steps"] == 4 and recorded["parameters"]["sizes"] == [3, 1] and recorded["parameters"]["mode"] == "b"
    assert [row["z"] for row in recorded["rows"]] == [3, 1] and recorded["environment"]["preset"] == "laptop"
    assert recorded["environment"]["peak_mib"]["process"] > 20 and " MiB: " in result.stdout
    assert recorded["experiment"] == "count" and recorded["code_version"].startswith("0.") and recorded["seconds"] >= 0
    assert folder.name == module.run_key(recorded["parameters"]) and str(folder) in result.stdout
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and lines[-1]["fraction"] == 1 and lines[3]["fraction"] == 0.75  # weighed by cost 3 : 1
    status = lab.json("count", "status.json")
    assert status["state"] == "done" and status["exit_code"] == 0 and status["progress"] == 1
    assert not (folder / "checkpoints").exists() and not list(folder.glob(".*.part"))
    assert result.stdout.split()[:3] == ["seed", "z", "mse"]
    if engine == "papermill":
        executed = json.loads((folder / "notebook.ipynb").read_text())
        injected = ["".join(c["source"]) for c in executed["cells"] if "injected-parameters" in c["metadata"].get("tags", [])]
        assert len(injected) == 1 and "steps = 4" in injected[0]
        assert str(lab.place) not in json.dumps(executed["metadata"])


def test_a_finished_run_is_shown_and_not_run_again_unless_forced(lab):
    first = lab("run", "count", "--engine", "plain")
    (folder,) = lab.folders("count")
    before = (folder / "result.json").stat().st_mtime_ns
    again = lab("run", "count", "--engine", "plain")
    assert again.returncode == 0 and "already done" in again.stdout and "mse" in again.stdout
    assert (folder / "result.json").stat().st_mtime_ns == before
    status = lab.json("count", "status.json")
    (folder / "status.json").write_text(json.dumps({**status, "seconds": 1000.0}))
    forced = lab("run", "count", "--engine", "plain", "--force")
    assert lab.json("count", "result.json")["seconds"] < 1000  # a new start begins to count anew
    assert first.returncode == forced.returncode == 0 and (folder / "result.json").stat().st_mtime_ns > before
    assert json.loads((folder / "result.previous.json").read_text())["rows"] == json.loads((folder / "result.json").read_text())["rows"]
    assert len((folder / "log.jsonl").read_text().splitlines()) == 6


def test_a_finished_run_of_other_code_is_reported(lab):
    assert lab("run", "count", "--engine", "plain").returncode == 0
    path = lab.nbs / "experiments" / "count.ipynb"
    version = lab.json("count", "result.json")["code_version"]
    path.write_text(path.read_text().replace("rate / size", "rate / size ** 2"))
    again = lab("run", "count", "--engine", "plain")
    assert again.returncode == 0 and f"made by code version {version}" in again.stderr and "--force" in again.stderr
    assert lab("run", "count", "--engine", "plain", "--force").returncode == 0
    assert lab.json("count", "result.json")["code_version"] != version and lab.json("count", "result.json")["rows"][1]["mse"] == 0.125


def test_a_result_that_is_not_whole_does_not_count(lab):
    assert lab("run", "count", "--engine", "plain").returncode == 0
    (folder,) = lab.folders("count")
    text = (folder / "result.json").read_text()
    for broken in (text[:-20], "[]", text.replace('"seed": 0', '"seed": 1', 1)):  # cut off; no object; of other parameters
        (folder / "result.json").write_text(broken)
        again = lab("run", "count", "--engine", "plain")
        assert again.returncode == 0 and "already done" not in again.stdout
    assert (folder / "result.json").read_text().count('"seed": 0') == 3


def test_out_replaces_the_folder_of_runs(lab):
    assert lab("run", "count", "--engine", "plain", "--out", "elsewhere").returncode == 0
    assert lab.folders("count", lab.place / "elsewhere") and not lab.runs.exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_in_a_cell_is_told_in_short(lab, engine):
    result = lab("run", "count", "--engine", engine, env={"TOY_FAULT": "error"})
    assert result.returncode == 1 and "KeyError: 'no such thing'" in result.stderr and "Traceback" not in result.stderr
    status = lab.json("count", "status.json")
    assert status["state"] == "failed" and status["exit_code"] == 1 and "KeyError" in status["error"]["traceback"][-1]
    assert lab("run", "count", "--engine", engine).returncode == 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("fault", "code", "state"), [("diverge", 6, "diverged"), ("data", 3, "failed"), ("cuda", 2, "failed")])
def test_the_exit_code_tells_what_went_wrong(lab, engine, fault, code, state):
    if fault == "cuda" and shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU")
    result = lab("run", "train", "--engine", engine, env={"TOY_FAULT": fault})
    assert result.returncode == code, result.stderr
    assert lab.json("train", "status.json")["state"] == state and not (lab.folders("train")[0] / "result.json").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_notebook_without_finish_is_not_done(lab, engine):
    lab.add("endless", "seed: int = 0  # at least 0: seed", "rows = [{'seed': seed}]; run.finish = lambda rows: None")
    result = lab("run", "endless", "--engine", engine)
    assert result.returncode == 1 and "ended before run.finish" in result.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cell_that_is_no_python_is_told(lab, engine):
    lab.add("broken", "seed: int = 0  # at least 0: seed", "rows = [")
    result = lab("run", "broken", "--engine", engine)
    assert result.returncode == 1 and "SyntaxError" in result.stderr


def test_a_guard_that_never_comes_is_told(lab):
    lab.add("early", "seed: int = 0  # at least 0: seed", "pass")
    path = lab.nbs / "experiments" / "early.ipynb"
    path.write_text(path.read_text().replace("from ae_course.lab import start", "import no_such_module"))
    for engine in ENGINES:
        result = lab("run", "early", "--engine", engine)
        assert result.returncode == 1 and "no_such_module" in result.stderr, result.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_after_finish_is_told_and_the_result_stands(lab, engine):
    lab.add("late", "seed: int = 0  # at least 0: seed", "run.finish([{'seed': seed}])\nraise ValueError('late')")
    result = lab("run", "late", "--engine", engine)
    assert result.returncode == 1 and "late failed: ValueError: late" in result.stderr and "seed" in result.stdout
    again = lab("run", "late", "--engine", engine)
    assert again.returncode == 0 and "already done" in again.stdout


def test_the_plain_engine_needs_no_jupyter(lab):
    absent = ("IPython", "ipykernel", "jupyter_client", "jupyterlab", "nbformat", "nbclient", "papermill", "tqdm")
    (lab.place / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({absent})\n")
    bare = {"PYTHONPATH": str(lab.place)}
    assert lab("run", "train", "--engine", "plain", env=bare).returncode == 0
    result = lab("run", "train", "-p", "seed", "1", env=bare)
    assert result.returncode == 2 and "pip install papermill ipykernel, or use --engine plain" in result.stderr, result.stderr


@pytest.mark.parametrize(("rows", "says"), [
    ("[]", "got no rows"),
    ("[{'z': 1}]", "expected a dictionary with 'seed'"),
    ("[{'seed': 0, 'z': [1]}]", "rows[0]['z']: got list"),
])  # fmt: skip
def test_rows_that_are_no_rows_are_refused(lab, rows, says):
    lab.add("rows", "seed: int = 0  # at least 0: seed", f"rows = {rows}")
    result = lab("run", "rows", "--engine", "plain")
    assert result.returncode == 1 and says in result.stderr


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "", ".hidden", "result.json", "notebook.ipynb"])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    run = module.Run("x", {}, tmp_path)
    with pytest.raises(ValueError, match="file name: got"):
        run.path(name)


def test_an_undefined_number_becomes_null_with_a_warning():
    with pytest.warns(UserWarning, match=r"rows\[0\]\['a'\]: got nan, recorded as null"):
        assert module.checked_rows([{"seed": 0, "a": float("nan"), "b": None}]) == [{"seed": 0, "a": None, "b": None}]


def test_the_true_kernel_is_this_python_whatever_python3_means_elsewhere(lab):
    spec = lab.place / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    other = {"argv": ["/bin/false", "{connection_file}"], "display_name": "other", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(other))
    result = lab("run", "count", env={"JUPYTER_PATH": str(lab.place / "jupyter")})
    assert result.returncode == 0, result.stderr


# papermill itself, without the launcher


def papermill(lab, *args, name="count"):
    command = [sys.executable, "-m", "papermill", f"nbs/experiments/{name}.ipynb", "out.ipynb", "-k", "python3", "--no-progress-bar", *args]
    return subprocess.run(command, cwd=lab.place, env=lab.env, capture_output=True, text=True, check=False)


def test_plain_papermill_runs_an_experiment(lab):
    result = papermill(lab, "-p", "rate", "0.25", "-f", "nbs/experiments/presets/count.smoke.yaml")
    assert result.returncode == 0, result.stderr
    recorded = lab.json("count", "result.json")
    assert recorded["parameters"]["rate"] == 0.25 and recorded["parameters"]["steps"] == 1
    assert recorded["environment"]["preset"] == "smoke"  # it agrees with every value of that preset


@pytest.mark.parametrize(("typed", "says"), [
    (("stepz", "3"), "unknown parameter stepz; did you mean steps?"),
    (("flag", "false"), "flag: got 'false', expected true or false"),
    (("rate", "nan"), "rate: got"),
    (("sizes", "4"), "sizes: got 4, expected a list"),
])  # fmt: skip
def test_the_guard_stops_plain_papermill(lab, typed, says):
    result = papermill(lab, "-p", *typed)
    assert result.returncode != 0 and says in result.stderr, result.stderr
    assert not lab.runs.exists()


def test_an_error_under_plain_papermill_leaves_an_honest_status(lab):
    lab.env["TOY_FAULT"] = "error"
    assert papermill(lab).returncode != 0
    status = lab.json("count", "status.json")
    assert status["state"] == "failed" and status["error"]["type"] == "KeyError"


# locks


@pytest.mark.parametrize("engine", ENGINES)
def test_a_busy_folder_names_its_holder(lab, engine):
    first = lab.start("run", "count", "--engine", "plain", env={"TOY_NAP": "0.5"})
    lab.wait_for("count", 1)
    second = lab("run", "count", "--engine", engine)
    assert second.returncode == 5 and f"process {first.pid} on " in second.stderr, second.stderr
    first.communicate()
    assert first.returncode == 0 and lab.json("count", "status.json")["state"] == "done"


def test_a_lock_left_by_the_dead_does_not_hold(lab):
    key = module.run_key({"steps": 3, "sizes": [1, 2], "seed": 0, "rate": 0.5, "flag": False, "mode": "a", "limit": None})
    folder = lab.runs / "count" / key
    folder.mkdir(parents=True)
    for name in ("lock", "writer.lock"):
        (folder / name).write_text("process 999999 on elsewhere")
    (folder / "status.json").write_text('{"state": "running", "pid": 999999}')
    (folder / "log.jsonl").write_text('{"epoch": 1}\n{"epo')  # half a line, as kill -9 leaves it
    assert lab("run", "count", "--engine", "plain").returncode == 0
    assert all(json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())


def test_without_locks_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "fcntl", None)
    module.lock(tmp_path / "lock").close()
    assert "not kept apart" in capsys.readouterr().err


@pytest.mark.slow
def test_eight_at_once_are_all_done(lab):
    runs = [lab.start("run", "count", "--preset", "smoke", "-p", "seed", seed) for seed in range(8)]
    results = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0] * 8, results
    parameters = [json.loads((folder / "result.json").read_text())["parameters"] for folder in lab.folders("count")]
    assert sorted(values["seed"] for values in parameters) == list(range(8))


# interruptions


def weights(root: Path) -> bytes:
    (path,) = root.glob("train/*/model.safetensors")
    return path.read_bytes()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    "The weights of an uninterrupted run of `train`."
    from conftest import Lab

    lab = Lab(tmp_path_factory.mktemp("undisturbed"))
    assert lab("run", "train", "--engine", "plain").returncode == 0
    return weights(lab.runs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_in_order_and_the_next_start_goes_on(lab, engine, number, undisturbed):
    process = lab.start("run", "train", "--engine", engine, env={"TOY_NAP": "0.5"})
    lab.wait_for("train", 2)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    status = lab.json("train", "status.json")
    assert status["state"] == "interrupted" and status["exit_code"] == 128 + number and "goes on from here" in err
    assert list(lab.folders("train")[0].glob("checkpoints/*.safetensors")) and not alive(status["pid"])
    before = len((lab.folders("train")[0] / "log.jsonl").read_text().splitlines())
    again = lab("run", "train", "--engine", engine)
    assert again.returncode == 0, again.stderr  # 4 if a module of the library was edited meanwhile
    after = len((lab.folders("train")[0] / "log.jsonl").read_text().splitlines())
    assert after == 6 and before >= 2  # no epoch was trained twice
    assert weights(lab.runs) == undisturbed
    assert lab.json("train", "result.json")["seconds"] > status["seconds"]


@pytest.mark.parametrize(("engine", "victim"), [("plain", "launcher"), *(("papermill", v) for v in ("kernel", "launcher", "papermill"))])
def test_killed_in_training_it_resumes_to_the_same_weights(lab, engine, victim, undisturbed):
    process = lab.start("run", "train", "--engine", engine, env={"TOY_NAP": "0.5"})
    status = lab.wait_for("train", 2)
    kernel = status["pid"]
    child = kernel if engine == "plain" else int(Path(f"/proc/{kernel}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill({"launcher": process.pid, "kernel": kernel, "papermill": child}[victim], signal.SIGKILL)
    if victim == "launcher":
        process.wait()
    else:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 7 and lab.json("train", "status.json")["state"] == "killed" and "killed" in err
    again = lab("run", "train", "--engine", engine)  # at once, while the kernel may still be alive
    assert again.returncode == 0, again.stderr
    assert not alive(kernel) and weights(lab.runs) == undisturbed
    assert not list(lab.folders("train")[0].glob(".*.part"))


def test_a_second_ctrl_c_does_not_wait(lab):
    deaf = "import time\nfor _ in range(300):\n    try:\n        time.sleep(0.1)\n    except KeyboardInterrupt:\n        pass\nrows = []"
    lab.add("stubborn", "seed: int = 0  # at least 0: seed", deaf)
    process = lab.start("run", "stubborn")
    end = time.monotonic() + 60
    while time.monotonic() < end and not any('"running"' in s.read_text(encoding="utf-8") for s in lab.runs.glob("stubborn/*/status.json")):
        time.sleep(0.05)
    kernel = lab.json("stubborn", "status.json")["pid"]
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130 and lab.json("stubborn", "status.json")["state"] == "interrupted"
    time.sleep(0.2)
    assert not alive(kernel)


def test_a_signal_before_the_kernel_stands_stops_too(lab):
    process = lab.start("run", "count")
    while not (lab.folders("count") and (lab.folders("count")[0] / "status.json").exists()):
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143 and lab.json("count", "status.json")["state"] == "interrupted"
    assert lab("run", "count").returncode == 0


def test_a_spoiled_checkpoint_is_refused_and_force_starts_anew(lab):
    process = lab.start("run", "train", "--engine", "plain", env={"TOY_NAP": "0.5"})
    lab.wait_for("train", 2)
    process.kill()
    process.communicate()
    (checkpoint,) = lab.folders("train")[0].glob("checkpoints/*.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    spoiled = lab("run", "train", "--engine", "plain")
    assert spoiled.returncode == 4 and checkpoint.name in spoiled.stderr, spoiled.stderr
    assert lab("run", "train", "--engine", "plain", "--force").returncode == 0


def test_other_code_does_not_go_on_and_loses_nothing(lab, undisturbed):
    process = lab.start("run", "train", "--engine", "plain", env={"TOY_NAP": "0.5"})
    lab.wait_for("train", 2)
    process.kill()
    process.communicate()
    path, (folder,) = lab.nbs / "experiments" / "train.ipynb", lab.folders("train")
    text = path.read_text()
    path.write_text(text.replace("hidden=(32,)", "hidden=(16,)"))
    other = lab("run", "train", "--engine", "plain")
    assert other.returncode == 4 and "begun by code version" in other.stderr and "--force" in other.stderr
    path.write_text(text)
    back = lab("run", "train", "--engine", "plain")
    assert back.returncode == 0 and weights(lab.runs) == undisturbed, back.stderr
    (folder / "result.json").unlink()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "1-001-z_=_1.safetensors").write_text("of old")
    path.write_text(text.replace("hidden=(32,)", "hidden=(16,)"))
    stopped = lab("run", "train", "--engine", "plain", "--force", env={"TOY_FAULT": "data"})
    assert stopped.returncode == 3 and (folder / "checkpoints.previous" / "1-001-z_=_1.safetensors").read_text() == "of old"
    assert not any(folder.glob("checkpoints/*"))
    forced = lab("run", "train", "--engine", "plain")
    assert forced.returncode == 0 and "--force, starting anew; kept: checkpoints.previous" in stopped.stderr
    assert not list(folder.glob("checkpoints*")) and len((folder / "log.jsonl").read_text().splitlines()) == 6


# places


@pytest.mark.parametrize("engine", ENGINES)
def test_umlauts_blanks_and_braces_in_a_path_under_the_c_locale(tmp_path, engine):
    from conftest import Lab

    lab = Lab(tmp_path / os.fsdecode("Jörg {x} Müller's Läb".encode()))  # as the system hands such a name to Python, in any locale
    result = lab("run", "count", "--engine", engine, env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert result.returncode == 0, result.stderr
    assert lab.json("count", "status.json")["state"] == "done"


def test_typed_text_is_utf8_under_the_c_locale(lab):
    lab.add("words", "seed: int = 0  # at least 0: seed\nword: str = 'a'  # a word", "rows = [{'seed': seed, 'word': word}]")
    for env in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {}):
        assert lab("run", "words", "--engine", "plain", "-p", "word", os.fsdecode("Größe".encode()), env=env).returncode == 0
    assert lab.json("words", "result.json")["rows"] == [{"seed": 0, "word": "Größe"}]  # one folder: the same key


def test_a_run_folder_that_cannot_be_written_fails_before_training(lab):
    (lab.place / "file").write_text("in the way")
    result = lab("run", "count", "--out", "file")
    assert result.returncode == 1 and "the run folder must be writable, choose another with --out" in result.stderr, result.stderr


# collect


def test_collect_writes_one_sorted_table(lab):
    assert lab("sweep", "count", "--grid", "seed=10,2", "--engine", "plain").returncode == 0
    assert lab("run", "count", "--preset", "smoke", "--engine", "plain").returncode == 0
    for _ in range(2):
        result = lab("collect", "count")
        assert result.returncode == 0, result.stderr
        raw = (lab.nbs / "experiments" / "results" / "count.csv").read_bytes()
        assert b"\r" not in raw
        rows = list(csv.DictReader(raw.decode().splitlines()))
        assert [(row["preset"], row["seed"], row["z"]) for row in rows] == [("laptop", s, z) for s in ("2", "10") for z in "12"]
    names = ["run", "preset", "steps", "seed", "rate", "flag", "mode", "limit", "z", "mse"]
    assert list(rows[0]) == [*names, "device", "python", "torch", "numpy", "ae_course", "code_version", "run_seconds"]
    assert "sizes" not in rows[0] and float(rows[1]["mse"]) == 0.25 and rows[0]["limit"] == ""
    both = lab("collect", "count", "--preset", "smoke", "laptop", "--out", "both.csv")
    assert both.returncode == 0 and len((lab.place / "both.csv").read_text().splitlines()) == 7


def test_collect_refuses_mixed_code(lab):
    assert lab("run", "count", "--engine", "plain").returncode == 0
    path = lab.nbs / "experiments" / "count.ipynb"
    path.write_text(path.read_text().replace("rate / size", "rate / size ** 2"))
    assert lab("run", "count", "--engine", "plain", "-p", "seed", "1").returncode == 0
    result = lab("collect", "count")
    assert result.returncode == 2 and "different code versions" in result.stderr and "--mixed" in result.stderr
    assert lab("collect", "count", "--mixed").returncode == 0


def test_a_cell_that_is_done_in_two_folders_counts_once(lab):
    for runs in ("a", "b"):
        assert lab("run", "count", "--engine", "plain", "--out", runs).returncode == 0
    assert lab("run", "count", "--engine", "plain", "--out", "b", "-p", "seed", "1").returncode == 0
    result = lab("collect", "count", "--runs", "a", "b", "--out", "both.csv")
    assert result.returncode == 0 and "the first is taken" in result.stderr and "differ" not in result.stderr
    rows = list(csv.DictReader((lab.place / "both.csv").read_text().splitlines()))
    assert [(row["seed"], row["z"]) for row in rows] == [("0", "1"), ("0", "2"), ("1", "1"), ("1", "2")]
    (other,) = lab.place.glob("a/count/*/result.json")
    other.write_text(other.read_text().replace("0.25", "0.75"))
    assert "their rows differ" in lab("collect", "count", "--runs", "a", "b", "--out", "both.csv").stderr
    (lab.place / "a" / "count" / "copy").mkdir()
    (lab.place / "a" / "count" / "copy" / "result.json").write_text(other.read_text())  # not under its key: no run
    again = lab("collect", "count", "--runs", "a", "--out", "a.csv")
    assert again.returncode == 0 and len((lab.place / "a.csv").read_text().splitlines()) == 3


def test_one_device_under_two_names_is_refused(lab):
    lab.add("on", "seed: int = 0  # seed\ndevice: str = 'auto'  # one of auto, cpu: device", "rows = [{'seed': seed}]")
    for device in ("auto", "cpu"):
        assert lab("run", "on", "-p", "device", device, "--engine", "plain").returncode == 0
    result = lab("collect", "on")
    assert result.returncode == 2 and "more than once" in result.stderr


def test_a_fraction_is_a_number(lab):
    assert lab("run", "count", "-p", "rate", "1/64", "--engine", "plain").returncode == 0
    assert lab.json("count", "params.json")["rate"] == 1 / 64
    for wrong in ("1/0", "1/2/3", "1 / 2", "65/64", f"{'9' * 400}/1"):
        assert lab("run", "count", "-p", "rate", wrong, "--engine", "plain").returncode == 2
    assert lab("run", "count", "-p", "steps", "4/2", "--engine", "plain").returncode == 2


def test_data_list_get_and_check(lab):
    result = lab("data", "list")
    assert result.returncode == 0 and "mnist5k" in result.stdout and "digits" in result.stdout
    assert lab("data", "get", "digits").returncode == 0
    unknown = lab("data", "get", "dogits")
    assert unknown.returncode == 2 and "digits" in unknown.stderr
    assert lab("data", "check", "digits").returncode == 0
    broken = lab.place / "data" / "mine"
    broken.mkdir(parents=True)
    (broken / "meta.json").write_text('{"name": "mine", "arrays": {"train_images": {}}}')
    (broken / "train_images.npy").write_bytes(b"no array")
    result = lab("data", "check", env={"AE_COURSE_DATA": str(lab.place / "data")})
    assert result.returncode == 3 and "mine" in result.stdout + result.stderr


# by hand in a notebook


def test_by_hand_the_guard_may_be_run_again(lab, monkeypatch):
    monkeypatch.setenv("AE_COURSE_NBS", str(lab.nbs))
    monkeypatch.chdir(lab.place)
    namespace = {"steps": 1, "sizes": [1], "seed": 0, "rate": 1, "flag": False, "mode": "a", "limit": None}
    namespace |= {"json": json, "_x": 3, "In": [], "Out": {}, "exit": object()}  # what IPython and imports put there
    first = module.start("count", namespace)
    namespace["leftover"] = 3  # from a cell further down
    second = module.start("count", namespace)
    assert first.status["state"] == "failed" and namespace["rate"] == 1.0 and isinstance(namespace["rate"], float)
    second.finish([{"seed": 0}])
    second.close()
    with pytest.raises(module.ParameterError, match="unknown parameter leftover"):
        module.RunFolder.current = None
        module.start("count", namespace)
    del namespace["steps"]
    with pytest.raises(module.ParameterError, match="steps: not defined; run the parameters cell first"):
        module.start("count", namespace)


def test_signals_are_left_alone_outside_the_main_thread():
    seen = []

    def body():
        with module.signals(lambda number, frame: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_remaining_time_does_not_count_what_came_from_checkpoints(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    run = module.StagedRun("x", {}, tmp_path)
    run.began, run.seconds_before, run.status = 0.0, 0.0, {"updated": time.time()}
    for i, stage in run.stages([0, 1, 2, 3]):
        if i < 2:
            continue  # finished before: fit returns at once
        for epoch in range(6 if i == 2 else 1, 11):  # resumed in its middle
            now[0] += 1.0
            stage.progress({"epoch": epoch, "epochs": 10})
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert entries[0]["fraction"] == 0.65 and entries[0]["remaining"] == 14.0  # 5 + 10 epochs at one second each, one of them gone
    assert entries[-1]["remaining"] == 0.0


def test_the_lab_command_opens_loopback_only(lab, monkeypatch):
    monkeypatch.setenv("AE_COURSE_NBS", str(lab.nbs))
    called = []
    monkeypatch.setattr(module.os, "execv", lambda program, args: called.append(args))
    module.main(["lab", "--port", "9999", "--", "--no-browser"])
    (args,) = called
    assert args[1:3] == ["-m", "jupyterlab"] and "--ServerApp.ip=127.0.0.1" in args and "--ServerApp.port=9999" in args
    assert f"--ServerApp.root_dir={lab.nbs}" in args and not any("token" in arg.lower() for arg in args)
    assert args[-1] == "--no-browser"
