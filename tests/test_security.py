"What a stranger may send or type: nothing of it is run, nothing leaves its folder, and the laboratory is open to this computer alone."

import ast
import http.client
import importlib.util
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_faults import trains

from ae_course import autoencoder, data
from ae_course import lab as module
from ae_course.autoencoder import Autoencoder, CheckpointError, load_model, mlp
from ae_course.training import fit

ROOT = Path(module.__file__).resolve().parent.parent


# what no source may say

SHELLS = {"system", "popen", "getoutput", "getstatusoutput", "spawnl", "spawnlp", "spawnv", "spawnvp"}
PROCESSES = {"run", "Popen", "call", "check_call", "check_output"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
EXECUTES = {"lab.py:execute_cells", "checks.py:namespace", "checks.py:find_check",  # to run notebooks of the course is their purpose
            "replay.py:function"}  # what itself has written: names of PyTorch's kernels, and numbers  # fmt: skip
PACKAGED = {"distance.py:efficientnet_scorer"}  # weights inside an installed package, which runs its own code anyway; tensors alone


def called(node: ast.Call) -> tuple[str, str]:
    "(what stands before the last dot, the name behind it) of a call: ('os', 'system')."
    if isinstance(node.func, ast.Attribute):
        return ast.unparse(node.func.value), node.func.attr
    return "", getattr(node.func, "id", "")


def unsafe(options: dict[str, ast.expr]) -> bool:
    "Whether a call of torch.load may build anything but tensors."
    return not (isinstance(options.get("weights_only"), ast.Constant) and options["weights_only"].value is True)


def allowed(place: str, what: str) -> bool:
    "Whether a danger stands where it was thought about."
    return what.endswith("runs a text") and place in EXECUTES or what.endswith("reads pickled tensors") and place in PACKAGED


def dangers(tree: ast.AST) -> list[tuple[int, str]]:
    "(line, what) of everything in a source that could run what a file or a user says, or write where an archive says."
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [(node.lineno, f"imports {name}") for name in names if name.split(".")[0] in PICKLES]
        if not isinstance(node, ast.Call):
            continue
        (owner, name), options = called(node), {keyword.arg: keyword.value for keyword in node.keywords}
        first, constant = node.args[0] if node.args else None, lambda value: isinstance(value, ast.Constant) and value.value is False
        is_text = isinstance(first, ast.JoinedStr) or isinstance(first, ast.Constant) and isinstance(first.value, str)
        found += [(node.lineno, f"{owner}.{name}: {why}") for bad, why in (
            ("shell" in options and not constant(options["shell"]), "a shell"),
            (owner in ("os", "subprocess", "commands", "pty") and name in SHELLS, "a shell"),
            (owner == "subprocess" and name in PROCESSES and is_text, "a command as one text"),
            (owner.startswith("torch") and name == "load", "unpickles" if unsafe(options) else "reads pickled tensors"),
            (name in ("read_pickle", "Unpickler") or owner in PICKLES, "unpickles"),
            ("allow_pickle" in options and not constant(options["allow_pickle"]), "may unpickle"),
            (owner in ("np", "numpy") and name == "load" and "allow_pickle" not in options, "does not forbid pickles"),
            (owner == "yaml" and name in ("load", "unsafe_load", "full_load", "load_all"), "can build any object"),
            (name in ("extract", "extractall", "unpack_archive"), "writes where the archive says"),
            (not owner and name in ("eval", "exec"), "runs a text"),
            (name == "mktemp", "a name that another may take"),
        ) if bad]  # fmt: skip
    return found


def place_of(tree: ast.AST, line: int) -> str:
    "The function around a line."
    inside = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.lineno <= line <= node.end_lineno]
    return inside[-1].name if inside else ""


def test_nothing_unpacks_unpickles_or_asks_a_shell():
    found, sources = [], sorted(Path(module.__file__).parent.glob("*.py"))
    for path in sources:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        places = [(f"{path.name}:{place_of(tree, line)}", line, what) for line, what in dangers(tree)]
        found += [f"{place}:{line} {what}" for place, line, what in places if not allowed(place, what)]
    assert len(sources) > 15 and found == []
    notebooks = [path for path in sorted(module.course_root().rglob("*.ipynb")) if not any(part.startswith(".") for part in path.parts)]
    for path in notebooks:
        for kind, source, _ in module.cells_of(path):
            if kind == "code" and not source.startswith("#| export") and "%" not in source[:2]:
                found += [f"{path.name}: {what}" for _, what in dangers(ast.parse(source)) if not what.endswith("runs a text")]
    assert len(notebooks) > 20 and found == []


@pytest.mark.parametrize("bad", [
    "import pickle", "from pickle import loads", "import joblib.numpy_pickle", "torch.load(p)", "torch.load(p, weights_only=True)",
    "torch.jit.load(p)", "pickle.loads(b)",
    "np.load(p)", "np.load(p, allow_pickle=True)", "np.save(p, a, allow_pickle=x)", "pd.read_pickle(p)", "yaml.load(t)", "os.system('ls')",
    "os.popen('ls')", "subprocess.getoutput('ls')", "subprocess.run('ls')", "subprocess.run(f'ls {p}')", "subprocess.Popen(c, shell=True)",
    "tape.extractall(p)", "archive.extract(m)", "shutil.unpack_archive(p)", "eval(t)", "exec(t)", "tempfile.mktemp()",
])  # fmt: skip
def test_the_look_at_the_sources_sees_each_danger(bad):
    assert dangers(ast.parse(bad))


@pytest.mark.parametrize("good", ["model.eval()", "np.load(p, allow_pickle=False)", "yaml.safe_load(t)", "subprocess.run([a, b])",
                                  "torch.load_something(p)", "subprocess.run(c, shell=False)", "run('ls')"])  # fmt: skip
def test_the_look_at_the_sources_sees_nothing_else(good):
    assert not dangers(ast.parse(good))


# archives


def test_every_download_has_a_digest_and_a_cap():
    for name, source in data.SOURCES.items():
        if source.kind == "download":
            assert 0 < source.cap <= 3 << 30 and source.files(), name
            assert all(len(bytes.fromhex(file.md5)) == 16 and Path(file.name).name == file.name for file in source.files())


def test_a_member_is_read_by_its_name_and_up_to_its_size(tmp_path):
    "Of a zip that claims little and holds much, no more is read than was allowed."
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small", b"x" * 10)
        archive.writestr("bomb", bytes(8 << 20))
        archive.writestr("other", b"y")
    raw = path.read_bytes()
    at = raw.rindex(b"PK\1\2", 0, raw.rindex(b"bomb"))  # its record in the list of contents
    path.write_bytes(raw[: at + 24] + (100).to_bytes(4, "little") + raw[at + 28 :])  # "100 bytes, once unpacked"
    with zipfile.ZipFile(path) as archive:
        member = data.zip_reader(path, archive, cap=1 << 20)
        assert member("small").read() == b"x" * 10
        with pytest.raises(data.DataError, match="has no bytes"):
            member("absent")
        with pytest.raises((zipfile.BadZipFile, data.DataError)):
            member("bomb")


# checkpoints


class Trap:
    "Unpickled, it makes a folder."

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("write", [lambda trap, path: torch.save({"weights": trap}, path),
                                   lambda trap, path: path.write_bytes(pickle.dumps(trap)),
                                   lambda trap, path: np.save(path.open("wb"), np.array([trap], object), allow_pickle=True)])  # fmt: skip
def test_a_pickle_in_place_of_a_checkpoint_ends_the_run_and_does_not_run(lab, here, write, monkeypatch):
    trains(lab)
    monkeypatch.setenv("TOY_FAULT", "memory")
    monkeypatch.setenv("TOY_AT", "6")
    assert here("run", "trains")[0] == 7  # so that there is a checkpoint to go on from
    monkeypatch.delenv("TOY_FAULT")
    (checkpoint,) = lab.folders("trains")[0].glob("checkpoints/*.safetensors")
    marker = lab.place / "it-ran"
    write(Trap(marker), checkpoint)
    code, _, said = here("run", "trains")
    assert code == 4 and checkpoint.name in said and "pickles (.pt, .pth) are refused" in said, said
    assert not marker.exists()
    with pytest.raises(CheckpointError):
        load_model(checkpoint)
    assert not marker.exists()


FITTING = {"family": "Autoencoder", "module": "ae_course.autoencoder", "arguments": {},
           "builder": {"name": "mlp", "arguments": {"shape": [1, 4, 4], "hidden": [8], "latent_dim": 3}}}  # fmt: skip
LIES = {
    "list": [1], "text": "x", "nothing": None, "number": 5, "no family": {"builder": FITTING["builder"]},
    "a module": FITTING | {"family": "os"}, "a list of names": FITTING | {"family": ["Autoencoder"]},
    "builder a text": FITTING | {"builder": "mlp"},
    "no arguments": FITTING | {"builder": {"name": "mlp"}}, "exchanged": FITTING | {"family": "mlp", "builder": {"name": "Autoencoder"}},
    "unknown argument": FITTING | {"arguments": {"colour": 1}},
    "no size": FITTING | {"builder": {"name": "mlp", "arguments": {"latent_dim": "x"}}},
    "larger": FITTING | {"builder": {"name": "mlp", "arguments": {"shape": [1, 4, 4], "hidden": [8], "latent_dim": 4}}},
    "a petabyte": FITTING | {"builder": {"name": "mlp", "arguments": {"shape": [1, 4, 4], "hidden": [8], "latent_dim": 10**14}}},
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_checkpoint_that_lies_about_its_model(tmp_path, lie):
    model = Autoencoder(*mlp((1, 4, 4), hidden=(8,), latent_dim=3))
    path, weights = tmp_path / "m.safetensors", {name: value.clone() for name, value in model.state_dict().items()}
    save_file(weights, path, metadata={"ae_course": json.dumps(FITTING)})
    assert torch.equal(load_model(path).state_dict()["encoder.1.weight"], weights["encoder.1.weight"])
    save_file(weights, path, metadata={"ae_course": json.dumps(LIES[lie])})
    with pytest.raises(CheckpointError, match="m.safetensors: ") as caught:
        load_model(path)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("spoil", [
    {"settings": 3}, {"phases": {}}, {"phases": {"main": 3}}, {"epoch": None, "phases": {}}, {"generators": {"tensor": "absent"}},
    {"phases": {"main": {"optimizer": {"dict": [["state", {"dict": []}], ["param_groups", {"list": []}]]}, "seen": {"list": []}}}},
])  # fmt: skip
def test_a_checkpoint_whose_record_of_the_training_is_spoiled(tmp_path, spoil):
    path, x = tmp_path / "c.safetensors", torch.rand(8, 1, 4, 4)
    call = {"device": "cpu", "progress": False, "checkpoint": path}
    fit(Autoencoder(*mlp((1, 4, 4), hidden=(), latent_dim=3)), x, epochs=1, **call)
    tensors, about = autoencoder.read_tensors(path)
    autoencoder.write_tensors(path, tensors, about | spoil)
    model = Autoencoder(*mlp((1, 4, 4), hidden=(), latent_dim=3))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(CheckpointError, match=r"c\.safetensors: "):
        fit(model, x, epochs=2, **call)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


# names

OUTSIDE = ["../outside", "..", "/etc/passwd", "a/../../outside", "sub/count", "a\0b", "", "x" * 300, "count.ipynb", ".hidden", "-", "*"]


def everything(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_of_experiments_presets_lessons_and_data_cannot_leave_their_folder(name, lab, here):
    (lab.place / "outside").mkdir()
    (lab.place / "outside.ipynb").write_text((lab.nbs / "experiments" / "count.ipynb").read_text(encoding="utf-8"), encoding="utf-8")
    (lab.place / "outside.yaml").write_text("steps: 2\n", encoding="utf-8")
    before = everything(lab.place)
    for command in (("run", name), ("collect", name), ("report", name), ("run", "count", "--preset", name),
                    ("collect", "count", "--preset", name), ("data", "get", name), ("data", "check", name),
                    ("sweep", name, "--grid", "seed=0"), ("start", "mine", name)):  # fmt: skip
        try:
            code, shown, said = here(*command)
        except SystemExit as stop:  # argparse
            code, shown, said = stop.code, "", ""
        assert code == 2 and "Traceback" not in said, (command, code, shown, said)
    assert everything(lab.place) == before


def test_a_data_set_is_not_looked_for_outside_the_folders_of_data(tmp_path, monkeypatch):
    monkeypatch.setenv("AE_COURSE_DATA", str(tmp_path / "data"))
    (tmp_path / "some" / "where").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "some" / "where")
    for folder in (tmp_path / "outside", tmp_path / "data" / ".mine.partial"):
        folder.mkdir(parents=True)
        np.save(folder / "train_images.npy", np.zeros((3, 4, 4), np.uint8))
        (folder / "meta.json").write_text(json.dumps({"name": "x", "arrays": {"train_images": [[3, 4, 4], "uint8"]}}), encoding="utf-8")
    for name in ("../outside", "../data/../../outside", ".mine.partial", "a\0b", "x" * 300):
        for ask in (data.load, data.get, data.check):
            with pytest.raises(data.UnknownName):
                ask(name)
        assert data.find(name) is None
    assert len(data.load(tmp_path / "outside")) == 3  # a path is the user's own word


def test_meta_cannot_name_arrays_outside(tmp_path):
    inside = tmp_path / "data" / "toy"
    inside.mkdir(parents=True)
    np.save(tmp_path / "secret_images.npy", np.zeros((3, 4, 4), np.uint8))
    for key in ("../../secret_images", str(tmp_path / "secret_images"), "..\\..\\secret_images"):
        (inside / "meta.json").write_text(json.dumps({"name": "toy", "arrays": {key: [[3, 4, 4], "uint8"]}}), encoding="utf-8")
        with pytest.raises(data.DataError):
            data.load("toy", split=key.removesuffix("_images"), root=tmp_path / "data")


def test_files_and_labels_of_a_run_stay_in_its_folder(tmp_path):
    run = module.Run("x", {}, tmp_path / "run")
    run.folder.mkdir()
    for name in ("../x", "/etc/x", "a/b", "a\0b", "x\n", "", ".hidden", "result.json", "checkpoints"):
        with pytest.raises(ValueError, match="file name: got"):
            run.path(name)
    (run.folder / "link.txt").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match=r"got 'link.txt', a link to .*remove it"):
        run.path("link.txt")
    for label in ("../../outside", "/etc/passwd", "a\0b", "..", "x" * 500, "~root", "C:\\x"):
        name = module.slug(label)
        assert name and "/" not in name and "\\" not in name and not name.startswith(".") and len(name) <= 60 and "\0" not in name


# Jupyter


def listening(pid: int) -> set[str]:
    "The addresses at which a process listens, from /proc: 127.0.0.1 as it is, the others in hexadecimal digits."
    own = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            own.add(os.readlink(entry))
        except FileNotFoundError:
            continue
    tables = [Path(f"/proc/{pid}/net/{kind}").read_text(encoding="utf-8") for kind in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()[1:]]
    found = {line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own}
    return {"127.0.0.1" if address == "0100007F" else address for address in found}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to see where the server listens")
@pytest.mark.skipif(not importlib.util.find_spec("jupyterlab"), reason="JupyterLab is not installed")
def test_the_laboratory_keeps_its_token_and_listens_to_this_computer_only(lab):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {f"JUPYTER_{kind}_DIR": str(lab.place / kind) for kind in ("RUNTIME", "CONFIG", "DATA")}
    root = ["--allow-root"] if os.geteuid() == 0 else []
    process = lab.start("lab", "--port", port, "--", "--no-browser", *root, env=env, start_new_session=True)
    try:
        end, about = time.monotonic() + 300, {}
        while not about:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.1)
            for path in (lab.place / "RUNTIME").glob("jpserver-*.json"):
                about = module.read_json(path)

        def ask(path: str, **headers) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", about["port"], timeout=60)
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status

        assert len(about["token"]) >= 32 and not about["password"]
        assert ask("/api/contents") == ask("/api/contents?token=wrong") == ask("/api/kernels") == 403
        assert ask("/api/contents", Authorization="token wrong") == 403
        assert ask("/api/contents", Authorization=f"token {about['token']}") == 200
        assert ask("/api/contents", Authorization=f"token {about['token']}", Host="elsewhere.example") == 403
        assert ask(f"/api/contents/..%2f..?token={about['token']}") in (403, 404)  # nor does it show what lies outside
        assert listening(about["pid"]) == {"127.0.0.1"}
        assert Path(about["root_dir"]) == lab.nbs
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=300)


def test_no_process_is_started_through_a_shell(lab, monkeypatch):
    "A file name that a shell would run is a file name."
    name = "$(touch ran); `touch ran` & x"
    result = subprocess.run([sys.executable, "-m", "ae_course.lab", "run", "count", "--out", name, "--engine", "plain"],
                            cwd=lab.place, env=lab.env, capture_output=True, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert not list(lab.place.rglob("ran")) and lab.folders("count", lab.place / name)
