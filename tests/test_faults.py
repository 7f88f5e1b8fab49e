"""What a user, a machine or another program may do to a run, done for real: each fault has its exit code, its message (what, got, allowed,
how to mend it), and nothing that was computed is lost.

`ROWS` below says for every fault which tests cause it, here and in the other files; what it names must exist.
"""

import ast
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import official_formats as formats
import pytest
import torch
from conftest import Lab

from ae_course import lab as module
from ae_course.autoencoder import Autoencoder, CheckpointError, mlp, read_tensors
from ae_course.data import DataError, load
from ae_course.training import OutOfMemory, fit

ROWS = {
    "NaN or infinite pixels": (
        "test_data.py::test_bad_arrays_are_refused", "test_training.py::test_values_that_are_not_finite_are_counted_and_located",
        "test_faults.py::test_bad_data_ends_a_run_before_it_trains"),
    "wrong shape, type or range": (
        "test_data.py::test_bad_arrays_are_refused", "test_training.py::test_bad_data_is_named",
        "test_faults.py::test_bad_data_ends_a_run_before_it_trains", "test_faults.py::test_images_of_another_kind_are_refused"),
    "an empty data set": (
        "test_data.py::test_bad_arrays_are_refused", "test_data.py::test_folder_refusals", "test_training.py::test_bad_data_is_named",
        "test_faults.py::test_bad_data_ends_a_run_before_it_trains"),
    "one image; a last batch of one": (
        "test_training.py::test_one_image_a_last_batch_of_one_and_batch_norm",
        "test_faults.py::test_one_image_and_a_last_batch_of_one_give_finite_rows"),
    "constant features": (
        "test_training.py::test_constant_images_train", "test_lab.py::test_an_undefined_number_becomes_null_with_a_warning",
        "test_faults.py::test_constant_images_train_and_what_is_undefined_is_null"),
    "labels are missing": ("test_faults.py::test_without_labels_the_rest_goes_on", "test_faults.py::test_what_is_all_about_labels_says_so"),
    "a corrupt or truncated archive, a web page in its place": (
        "test_data.py::test_second_mirror_when_the_first_is_bad", "test_data.py::test_no_good_copy",
        "test_data.py::test_files_placed_by_hand"),
    "an IDX file cut short or extended": ("test_data.py::test_damaged_official_files",),
    "a path outside, a link, a device, a bomb in an archive": (
        "test_data.py::test_malicious_tar", "test_data.py::test_malicious_or_damaged_zip", "test_data.py::test_bad_xray_archives",
        "test_security.py::test_nothing_unpacks_unpickles_or_asks_a_shell"),
    "a pickle sent as a checkpoint": (
        "test_autoencoder.py::test_a_pickle_is_refused_and_never_run", "test_data.py::test_pickles_are_not_run",
        "test_security.py::test_a_pickle_in_place_of_a_checkpoint_ends_the_run_and_does_not_run"),
    "a checkpoint of another architecture": (
        "test_autoencoder.py::test_another_architecture_is_refused_and_the_model_untouched",
        "test_faults.py::test_a_training_of_another_architecture_is_refused_and_the_model_untouched"),
    "a misspelt parameter": (
        "test_lab.py::test_a_bad_parameter_is_refused_before_anything_starts", "test_lab.py::test_a_bad_parameter_file_is_refused",
        "test_lab.py::test_the_guard_stops_plain_papermill"),
    "a value of another type": (
        "test_lab.py::test_a_bad_parameter_is_refused_before_anything_starts", "test_lab.py::test_a_bad_parameter_file_is_refused",
        "test_lab.py::test_the_guard_stops_plain_papermill", "test_training.py::test_bad_settings_are_named_before_training"),
    "an unknown data set or experiment": (
        "test_data.py::test_arguments_that_make_no_sense", "test_lab.py::test_an_unknown_name_is_refused",
        "test_faults.py::test_bad_data_ends_a_run_before_it_trains"),
    "a code size of -1, 0 or 2.5": (
        "test_autoencoder.py::test_sizes_are_integers_of_at_least_one", "test_autoencoder.py::test_overcomplete_code_is_allowed",
        "test_faults.py::test_the_code_size_of_a_real_experiment"),
    "a sweep with one bad cell": ("test_sweeps.py::test_a_grid_is_checked_whole_before_its_first_run",),
    "a read-only folder of runs or data": (
        "test_lab.py::test_a_run_folder_that_cannot_be_written_fails_before_training", "test_data.py::test_a_place_that_cannot_be_written",
        "test_faults.py::test_read_only_folders"),
    "a full disk": (
        "test_faults.py::test_a_full_disk_ends_a_run_in_order_and_the_next_start_goes_on",
        "test_faults.py::test_a_full_disk_leaves_no_half_data_set", "test_data.py::test_a_full_disk_is_noticed_first"),
    "kill -9 in training": (
        "test_lab.py::test_killed_in_training_it_resumes_to_the_same_weights",
        "test_training.py::test_a_killed_training_resumes_bit_for_bit"),
    "kill -9 while a checkpoint is written": ("test_faults.py::test_killed_while_a_checkpoint_is_written",),
    "two processes, one run folder": (
        "test_lab.py::test_a_busy_folder_names_its_holder", "test_lab.py::test_a_lock_left_by_the_dead_does_not_hold",
        "test_faults.py::test_the_lock_of_a_killed_run_is_recovered"),
    "two processes, a cold data cache": (
        "test_data.py::test_two_processes_and_a_cold_cache", "test_data.py::test_killed_while_downloading",
        "test_data.py::test_killed_while_converting"),
    "SIGINT, SIGTERM": (
        "test_lab.py::test_a_signal_stops_in_order_and_the_next_start_goes_on", "test_lab.py::test_a_second_ctrl_c_does_not_wait",
        "test_lab.py::test_a_signal_before_the_kernel_stands_stops_too", "test_training.py::test_a_killed_training_resumes_bit_for_bit"),
    "kill -9 of a Dask worker, of the scheduler": (
        "test_sweeps.py::test_a_dask_worker_that_ends_takes_its_run_along_and_the_cell_goes_on_elsewhere",
        "test_sweeps.py::test_a_killed_scheduler_ends_the_sweep_and_its_runs_and_the_next_start_goes_on",
        "test_sweeps.py::test_random_kills_do_no_harm"),
    "a kernel killed for memory": (
        "test_faults.py::test_a_kernel_that_is_killed_is_said_to_be",
        "test_sweeps.py::test_failures_are_isolated_listed_and_made_good_by_the_next_start",
        "test_sweeps.py::test_the_smallest_sweep_through_papermill_goes_on_after_a_killed_kernel"),
    "no memory left": (
        "test_training.py::test_out_of_memory_names_what_to_lower", "test_faults.py::test_out_of_memory_in_a_run_loses_nothing",
        "test_faults.py::test_the_memory_of_this_computer_really_runs_out", "test_faults.py::test_the_memory_of_a_gpu_really_runs_out"),
    "the loss becomes NaN": (
        "test_training.py::test_divergence_names_the_step_and_keeps_the_last_finite_epoch",
        "test_lab.py::test_the_exit_code_tells_what_went_wrong", "test_faults.py::test_a_diverging_run_keeps_its_last_finite_checkpoint"),
    "device=cuda without a GPU": (
        "test_training.py::test_a_missing_gpu_is_named_and_auto_falls_back", "test_lab.py::test_the_exit_code_tells_what_went_wrong",
        "test_faults.py::test_auto_takes_what_is_there_and_says_so"),
    "a locale without UTF-8": (
        "test_lab.py::test_umlauts_blanks_and_braces_in_a_path_under_the_c_locale",
        "test_lab.py::test_typed_text_is_utf8_under_the_c_locale",
        "test_data.py::test_two_processes_and_a_cold_cache", "test_faults.py::test_the_whole_way_with_umlauts_under_the_c_locale",
        "test_faults.py::test_text_files_are_opened_with_an_encoding"),
    "a user name with spaces or umlauts": (
        "test_lab.py::test_umlauts_blanks_and_braces_in_a_path_under_the_c_locale",
        "test_faults.py::test_the_whole_way_with_umlauts_under_the_c_locale"),
    "eight runs started at once": ("test_lab.py::test_eight_at_once_are_all_done",),
}  # fmt: skip


def test_every_fault_names_tests_that_exist():
    there = {}
    for path in Path(__file__).parent.glob("test_*.py"):
        functions = [node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
        there |= dict.fromkeys(f"{path.name}::{name}" for name in functions if name.startswith("test_"))
    assert [name for names in ROWS.values() for name in names if name not in there] == []
    assert all(ROWS.values())


# experiments to be disturbed

SEED = "seed: int = 0  # at least 0: seed\n"
SETTINGS = "steps: int = 4  # at least 1: epochs\nbatch_size: int = 64  # at least 1: images a step\n" + SEED
TRAINS = """import os
import torch
from ae_course.autoencoder import Autoencoder, mlp, save_model
from ae_course.training import fit, seeded

fault, at = os.environ.get("TOY_FAULT"), int(os.environ.get("TOY_AT", 0))


class Model(Autoencoder):
    steps = 0

    def loss_terms(self, batch, phase="main"):
        Model.steps += 1
        if fault == "kill" and Model.steps == at:
            os.kill(os.getpid(), 9)
        if fault == "memory" and Model.steps == at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. More words\\nand lines")
        terms = super().loss_terms(batch, phase)
        return {k: v * float("nan") for k, v in terms.items()} if fault == "nan" and Model.steps == at else terms


images = torch.rand(256, 1, 8, 8, generator=torch.Generator().manual_seed(0))
rows = []
for size, stage in run.stages([3, 2], label="z = {}"):
    with seeded(seed):
        model = Model(*mlp((1, 8, 8), hidden=(HIDDEN,), latent_dim=size))
    history = fit(model, images, epochs=steps, batch_size=batch_size, seed=seed, device="cpu", checkpoint=stage.checkpoint,
                  checkpoint_seconds=0, progress=stage.progress)
    rows.append({"seed": seed, "z": size, "mse": history["loss"][-1]})
save_model(model, run.path("model.safetensors"))"""


def trains(lab: Lab, hidden: int = 32) -> Lab:
    "`lab` with `trains`: two stages of four epochs of four steps, a checkpoint after each epoch."
    lab.add("trains", SETTINGS, TRAINS.replace("HIDDEN", str(hidden)))
    return lab


def weights(root: Path) -> bytes:
    (path,) = root.glob("trains/*/model.safetensors")
    return path.read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "The weights of an uninterrupted run of `trains`."
    lab = trains(Lab(tmp_path_factory.mktemp("undisturbed")))
    result = lab("run", "trains", "--engine", "plain")
    assert result.returncode == 0, result.stderr
    return weights(lab.runs)


def wait_for(what, seconds: float = 300.0):
    "The first true answer of `what()`."
    end = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return answer


@pytest.fixture
def private(tmp_path):
    "Runs a shell script with file systems of its own, which `unshare -rm` gives to anybody; skips, with the reason, where it may not."
    tried = shutil.which("unshare") and subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True)
    if not tried or tried.returncode:
        why = tried.stderr.decode(errors="replace").strip() if tried else "no such program"
        pytest.skip(f"no file system to fill or to lock can be mounted here: unshare -rm mount: {why}")

    def script(text: str, *args, env) -> subprocess.CompletedProcess:
        command, speaks = ["unshare", "-rm", "bash", "-c", text, "bash", *map(str, args)], {"encoding": "utf-8", "errors": "replace"}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False, **speaks)

    return script


# data

BAD = {
    "nan": ("x[7, 0, 1, 1] = x[9, 0, 0, 0] = float('nan')", 3, "2 of 20 images hold NaN or infinite values, the first at index 7"),
    "inf": ("x[3, 0, 1, 1] = float('inf')", 3, "1 of 20 images hold NaN or infinite values, the first at index 3"),
    "int16": ("x = (255 * x).to(torch.int16)", 3, "got a tensor of torch.int16, expected floats"),
    "bytes": ("x = (255 * x).to(torch.uint8)", 3, "got a tensor of torch.uint8, expected floats"),
    "double": ("x = x.double()", 3, "got torch.float64, expected torch.float32"),
    "range": ("x = 255 * x", 3, "expected [0, 1]; rescale the data"),
    "channels last": ("x = x.movedim(1, 3)", 3, "got images of shape (8, 8, 1), expected (1, 8, 8)"),
    "other size": ("x = x[..., 1:]", 3, "got images of shape (1, 8, 7), expected (1, 8, 8)"),
    "empty": ("x = x[:0]", 3, "0 images, need at least 1"),
    "held out": ("held_out = x * float('nan')", 3, "20 of 20 images hold NaN"),
    "unknown set": ("x = load('mnits5k').pixels()", 2, "unknown data set 'mnits5k'; did you mean mnist5k?"),
}
FITS = """import torch
from ae_course.autoencoder import Autoencoder, mlp
from ae_course.data import load
from ae_course.training import fit
x, held_out = torch.rand(20, 1, 8, 8), None
DO
for size, stage in run.stages([3]):
    model = Autoencoder(*mlp((1, 8, 8), hidden=(), latent_dim=size))
    fit(model, x, epochs=1, device="cpu", validation=held_out, checkpoint=stage.checkpoint, progress=stage.progress)
rows = [{"seed": seed}]"""


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_ends_a_run_before_it_trains(kind, lab, here):
    do, code, says = BAD[kind]
    lab.add("fits", SEED, FITS.replace("DO", do))
    ended, _, said = here("run", "fits")
    assert ended == code and says in said and "Traceback" not in said, said
    status = lab.json("fits", "status.json")
    assert status["state"] == "failed" and status["exit_code"] == code and says in status["error"]["message"]
    (folder,) = lab.folders("fits")
    assert not (folder / "log.jsonl").exists() and not list(folder.glob("checkpoints/*")) and not (folder / "result.json").exists()


@pytest.mark.parametrize("data", [torch.rand(4, 784), torch.rand(4, 28, 28), torch.rand(4, 3, 28, 28), torch.rand(4), "digits"])
def test_images_of_another_kind_are_refused(data):
    data = load(data, limit=4) if isinstance(data, str) else data
    model = Autoencoder(*mlp(hidden=(), latent_dim=2))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(DataError, match=r"got images of shape .*, expected \(1, 28, 28\)"):
        fit(model, data, epochs=1, device="cpu", progress=False)
    with pytest.raises(DataError, match=r"expected \(1, 28, 28\)"):
        fit(model, torch.rand(4, 1, 28, 28), validation=data, epochs=1, device="cpu", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_data_in_the_range_of_the_network_and_none_other():
    linear = Autoencoder(*mlp((1, 8, 8), hidden=(), latent_dim=2, output="linear"))
    assert len(fit(linear, 9 * torch.randn(8, 1, 8, 8), epochs=1, device="cpu", progress=False)) == 1
    with pytest.raises(DataError, match=r"ends in a sigmoid: got values from .*expected \[0, 1\].*build it with output='linear'"):
        fit(Autoencoder(*mlp((1, 8, 8), latent_dim=2)), -torch.rand(8, 1, 8, 8), epochs=1, device="cpu", progress=False)


def test_one_image_and_a_last_batch_of_one_give_finite_rows(lab, here):
    work = """import torch
from ae_course.autoencoder import Autoencoder, mlp
from ae_course.metrics import psnr
from ae_course.training import fit
rows = []
for n, stage in run.stages([1, 65]):
    x = torch.rand(n, 1, 8, 8)
    model = Autoencoder(*mlp((1, 8, 8), hidden=(), latent_dim=2))
    history = fit(model, x, epochs=1, batch_size=64, device="cpu", validation=x[:1], checkpoint=stage.checkpoint, progress=stage.progress)
    rows.append({"seed": seed, **{k: v for k, v in history.rows[-1].items() if k != "seconds"}, "psnr": psnr(model(x), x).mean().item()})"""
    lab.add("one", SEED, work)
    assert here("run", "one")[0] == 0
    rows = lab.json("one", "result.json")["rows"]
    assert len(rows) == 2 and all(np.isfinite(value) for row in rows for value in row.values())
    normed = work.replace("    history", "    model.encoder.append(torch.nn.BatchNorm1d(2))\n    history")
    lab.add("normed", SEED, normed.replace("[1, 65]", "[66, 65]"))
    code, _, said = here("run", "normed")
    assert code == 2 and "got 64 for 65 images, whose last batch has one image; batch normalisation needs at least 2" in said, said
    assert len(list(lab.folders("normed")[0].glob("checkpoints/1-001*"))) == 1  # what was trained before is kept


@pytest.mark.filterwarnings("always")
def test_constant_images_train_and_what_is_undefined_is_null(lab, here):
    lab.add("constant", SEED, """import torch
from ae_course.autoencoder import Autoencoder, mlp
from ae_course.metrics import hoyer, mean_correlation, r2, ssim
from ae_course.training import fit
x = torch.full((30, 1, 12, 12), 0.5)
for size, stage in run.stages([3]):
    model = Autoencoder(*mlp((1, 12, 12), hidden=(), latent_dim=size))
    history = fit(model, x, epochs=2, device="cpu", checkpoint=stage.checkpoint, progress=stage.progress)
codes, x_hat = model.encode(x), model(x)
rows = [{"seed": seed, "loss": history["loss"][-1], "r2": r2(x_hat, x), "correlation": mean_correlation(codes),
         "ssim": ssim(x_hat, x).mean(), "hoyer": hoyer(torch.zeros(4, 3)).mean()}]""")
    with pytest.warns(UserWarning) as warned:
        assert here("run", "constant")[0] == 0
    said = " ".join(str(w.message) for w in warned)
    assert all(f"rows[0]['{name}']: got nan, recorded as null" in said for name in ("r2", "correlation", "hoyer"))
    assert "all 30 targets are alike" in said and "0 of 3 units move" in said and "4 of 4 codes are all zero" in said
    text = (lab.folders("constant")[0] / "result.json").read_text(encoding="utf-8")
    (row,) = json.loads(text, parse_constant=pytest.fail)["rows"]  # NaN would be no JSON
    assert row["r2"] is row["correlation"] is row["hoyer"] is None and np.isfinite(row["loss"]) and np.isfinite(row["ssim"])


@pytest.mark.filterwarnings("always")
def test_without_labels_the_rest_goes_on(lab, here):
    lab.add("unlabelled", SEED, """import torch
from ae_course.autoencoder import Autoencoder, mlp
from ae_course.data import images_from
from ae_course.metrics import probe_accuracy
from ae_course.training import fit
images = images_from(torch.rand(30, 8, 8))
for size, stage in run.stages([3]):
    model = Autoencoder(*mlp((1, 8, 8), hidden=(), latent_dim=size))
    history = fit(model, images, epochs=1, device="cpu", checkpoint=stage.checkpoint, progress=stage.progress)
z = model.encode(images.pixels())
rows = [{"seed": seed, "loss": history["loss"][-1], "accuracy": probe_accuracy(z, images.y, z, images.y)}]""")
    skipped, recorded = (pytest.warns(UserWarning, match=words) for words in ("probe_accuracy: skipped: no labels", "recorded as null"))
    with recorded, skipped:
        assert here("run", "unlabelled")[0] == 0
    (row,) = lab.json("unlabelled", "result.json")["rows"]
    assert row["accuracy"] is None and np.isfinite(row["loss"])


def real_course(here, monkeypatch):
    "`here`, with the course's own experiments instead of the toys."
    monkeypatch.delenv("AE_COURSE_NBS")
    return here


def unlabelled_set(folder: Path, n: int = 60) -> None:
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (n, 28, 28), np.uint8)
    for split in ("train", "test"):
        np.save(folder / f"{split}_images.npy", images)
    listed = {f"{split}_images": [[n, 28, 28], "uint8"] for split in ("train", "test")}
    (folder / "meta.json").write_text(json.dumps({"name": folder.name, "arrays": listed}), encoding="utf-8")


def test_what_is_all_about_labels_says_so(lab, here, monkeypatch):
    unlabelled_set(lab.place / "data" / "bare")
    code, _, said = real_course(here, monkeypatch)("run", "stacked", "--preset", "smoke", "-p", "dataset", "bare")
    assert code == 3 and "bare: skipped: no labels" in said and "take a data set that has them" in said, said


@pytest.mark.parametrize(("size", "code"), [("-1", 2), ("0", 2), ("2.5", 2), ("two", 2), ("nan", 2), ("1_6", 2), ("785", 0)])
def test_the_code_size_of_a_real_experiment(size, code, here, lab, monkeypatch):
    unlabelled_set(lab.place / "data" / "bare", 3)
    few = ("--preset", "smoke", "-p", "dataset", "bare", "-p", "epochs", "1", "-p", "networks", "slides", "-p", "limit", "none")
    ended, _, said = real_course(here, monkeypatch)("run", "code_size", *few, "-p", "sizes", size)
    assert ended == code, said
    if code:
        assert f"sizes[0]: got {size if size in ('-1', '0') else repr(size)}, expected an integer of at least 1" in said
        assert not lab.runs.exists()


# checkpoints


def test_a_training_of_another_architecture_is_refused_and_the_model_untouched(tmp_path):
    file, x = tmp_path / "c.safetensors", torch.rand(8, 1, 8, 8)
    call = {"epochs": 1, "device": "cpu", "progress": False, "checkpoint": file}
    fit(Autoencoder(*mlp((1, 8, 8), hidden=(), latent_dim=3)), x, **call)
    kept = file.read_bytes()
    deeper = Autoencoder(*mlp((1, 8, 8), hidden=(5,), latent_dim=3))
    for other, named in ((Autoencoder(*mlp((1, 8, 8), hidden=(), latent_dim=4)), r"shape: .*file \(3, 64\), model \(4, 64\)"),
                         (deeper, r"missing: decoder\.2\.bias.*; unexpected: .*|missing: .*")):  # fmt: skip
        before = [p.clone() for p in other.parameters()]
        with pytest.raises(CheckpointError, match=named) as caught:
            fit(other, x, **call)
        both = str(caught.value)
        assert caught.value.exit_code == 4 and both.count("'latent_dim'") == 2 and "The file: " in both and "The model: " in both
        assert all(torch.equal(a, b) for a, b in zip(before, other.parameters())) and file.read_bytes() == kept


HANGS = """import os, time
fsync, written = os.fsync, []


def hang(number):
    "At the third checkpoint, half of which has reached the disk, the computer stands still."
    name = os.readlink(f"/proc/self/fd/{number}")
    if name.endswith(".safetensors.part"):
        written.append(name)
        if len(written) == 3:
            os.truncate(name, os.path.getsize(name) // 2)
            open(os.environ["TOY_MARK"], "w").close()
            time.sleep(600)
    fsync(number)


os.fsync = hang
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc to know the moment")
@pytest.mark.parametrize("engine", ["plain", "papermill"])
def test_killed_while_a_checkpoint_is_written(lab, engine, undisturbed):
    trains(lab)
    hook, mark = lab.place / "hook", lab.place / "mark"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HANGS, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(hook), os.environ.get("PYTHONPATH")]))
    process = lab.start("run", "trains", "--engine", engine, env={"PYTHONPATH": path, "TOY_MARK": str(mark)})
    wait_for(mark.exists)
    os.kill(lab.json("trains", "status.json")["pid"], signal.SIGKILL)
    process.communicate(timeout=300)
    (folder,) = lab.folders("trains")
    (orphan,), (kept,) = folder.glob("checkpoints/.*.part"), folder.glob("checkpoints/*.safetensors")
    assert read_tensors(kept)[1]["epoch"] == 2  # the previous one loads
    with pytest.raises(CheckpointError):
        read_tensors(orphan)
    again = lab("run", "trains", "--engine", "plain")
    assert again.returncode == 0, again.stderr
    assert weights(lab.runs) == undisturbed and not list(folder.rglob("*.part"))
    epochs = [json.loads(line)["epoch"] for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert epochs.count(1) == epochs.count(2) == 2  # no epoch before the checkpoint was trained again


# locks


def test_the_lock_of_a_killed_run_is_recovered(lab):
    first = lab.start("run", "count", "--engine", "plain", env={"TOY_NAP": "60"})
    wait_for(lambda: list(lab.runs.glob("count/*/writer.lock")))
    second = lab("run", "count", "--engine", "plain")
    assert second.returncode == 5 and f"in use by process {first.pid} on {socket.gethostname()}" in second.stderr, second.stderr
    assert "wait for it or stop it, or choose another folder with --out" in second.stderr
    first.kill()
    first.communicate()
    (folder,) = lab.folders("count")
    assert f"process {first.pid} on" in (folder / "lock").read_text(encoding="utf-8")  # what the dead has left
    assert lab("run", "count", "--engine", "plain").returncode == 0


# the disk

FULL = """set -e
mkdir -p "$1"; mount -t tmpfs -o size=128k tmpfs "$1"
set +e
"$2" -m ae_course.lab run trains --engine "$3" --out "$1" 2> "$4"; echo "first $?"
cp -r "$1" "$5"
mount -o remount,size=50m "$1"
"$2" -m ae_course.lab run trains --engine plain --out "$1" 2>> "$4"; echo "second $?"
cp "$1"/trains/*/model.safetensors "$5"/
"""


@pytest.mark.parametrize("engine", ["plain", "papermill"])
def test_a_full_disk_ends_a_run_in_order_and_the_next_start_goes_on(lab, private, engine, undisturbed):
    trains(lab)
    copy, said = lab.place / "copy", lab.place / "said"
    result = private(FULL, lab.place / "disk", sys.executable, engine, said, copy, env=lab.env)
    said = said.read_text(encoding="utf-8")
    assert result.stdout.split()[:2] == ["first", "7"] and "No space left on device" in said, result.stdout + result.stderr + said
    assert "make room, then the same command goes on" in said and "Traceback" not in said, said
    (folder,) = (copy / "trains").glob("*")
    for path in (p for p in folder.rglob("*") if p.is_file()):  # all that is there is whole
        if path.suffix == ".safetensors":
            assert read_tensors(path)[1]["epoch"] >= 1
        elif path.suffix in (".json", ".ipynb"):
            assert json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        else:
            assert path.name in ("lock", "writer.lock"), path
    assert list(folder.glob("checkpoints/*.safetensors")) and (folder / "notebook.ipynb").exists() == (engine == "papermill")
    assert json.loads((folder / "status.json").read_text(encoding="utf-8"))["exit_code"] == 7
    assert "second 0" in result.stdout and (copy / "model.safetensors").read_bytes() == undisturbed, result.stdout + said


GETS = """import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import official_formats
official_formats.install(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
from ae_course.lab import main
sys.exit(main(["data", "get", "mnist"]))
"""
FULL_CACHE = """set -e
mkdir -p "$AE_COURSE_DATA"; mount -t tmpfs -o size=64k tmpfs "$AE_COURSE_DATA"
set +e
"$@" 2>&1; echo "first $?"; ls "$AE_COURSE_DATA"/mnist 2>/dev/null
mount -o remount,size=50m "$AE_COURSE_DATA"
"$@" > /dev/null 2>&1; echo "second $?"; "$1" -m ae_course.lab data check mnist; echo "check $?"
"""


def test_a_full_disk_leaves_no_half_data_set(lab, private):
    files = formats.make("mnist")[0]
    with formats.Server() as server:
        server.offer("mnist", files)
        announced = lab.place / "announced.json"
        announced.write_text(json.dumps(formats.announcement("mnist", files, [server.url + "/a/"])), encoding="utf-8")
        env = lab.env | {"AE_COURSE_DATA": str(lab.place / "data")}
        result = private(FULL_CACHE, sys.executable, "-c", GETS, Path(__file__).parent, announced, env=env)
        lines = result.stdout.splitlines()
        assert "first 7" in lines and "make room, or set AE_COURSE_DATA to another folder" in result.stdout, result.stdout + result.stderr
        assert lines.index("second 0") == lines.index("first 7") + 1 and "check 0" in lines, result.stdout  # no folder of that name before
        assert len(server.asked) == len(files)  # and nothing was fetched twice


READ_ONLY = """set -e
mkdir -p "$1/runs"; mount -t tmpfs tmpfs "$1/runs"; mount -o remount,ro "$1/runs"
for place in data nbs; do mount --bind "$1/$place" "$1/$place"; mount -o remount,bind,ro "$1/$place"; done
touch "$1/data/x" 2> /dev/null && exit 9
set +e
AE_COURSE_DATA="$1/data" "$2" -m ae_course.lab run reads --engine plain --out "$1/runs" 2>&1; echo "runs $?"
AE_COURSE_DATA="$1/data" "$2" -m ae_course.lab run reads --engine plain --out "$1/elsewhere" 2>&1; echo "reads $?"
AE_COURSE_DATA="$1/data" "$2" -m ae_course.lab data get mnist 2>&1; echo "gets $?"
"""


def test_read_only_folders(lab, private):
    unlabelled_set(lab.place / "data" / "bare")
    lab.add("reads", SEED, "from ae_course.data import load\nrows = [{'seed': seed, 'n': len(load('bare'))}]")
    result = private(READ_ONLY, lab.place, sys.executable, env=lab.env)
    runs, reads, gets = result.stdout.partition("runs 1\n")[0], result.stdout, result.stdout.partition("reads 0\n")[2]
    assert "Read-only file system; the run folder must be writable, choose another with --out" in runs, result.stdout + result.stderr
    assert "reads 0" in reads and lab.json("reads", "result.json", lab.place / "elsewhere")["rows"] == [{"seed": 0, "n": 60}], result.stdout
    assert "gets 3" in gets and "cannot be written" in gets and "set root= or AE_COURSE_DATA" in gets, result.stdout
    assert not list(lab.place.glob("runs/*"))


# processes and memory


def test_a_kernel_that_is_killed_is_said_to_be(lab, undisturbed):
    trains(lab)
    result = lab("run", "trains", env={"TOY_FAULT": "kill", "TOY_AT": "26"})  # in the third epoch of the second stage
    assert result.returncode == 7 and "its process was killed, most often for want of memory" in result.stderr, result.stderr
    assert "smaller batch_size or model; the same command goes on from the last checkpoint" in result.stderr
    status = lab.json("trains", "status.json")
    assert status["state"] == "killed" and status["exit_code"] == 7
    assert lab("run", "trains", "--engine", "plain").returncode == 0 and weights(lab.runs) == undisturbed


def test_out_of_memory_in_a_run_loses_nothing(lab, here, monkeypatch, undisturbed):
    trains(lab)
    monkeypatch.setenv("TOY_FAULT", "memory")
    monkeypatch.setenv("TOY_AT", "10")  # in the third epoch
    code, _, said = here("run", "trains")
    parts = ("out of memory on cpu with batch_size 64, 256 images and a model of", "Tried to allocate 20.00 GiB", "lower batch_size, or")
    assert code == 7 and all(part in said for part in parts) and "and lines" not in said, said
    (folder,) = lab.folders("trains")
    assert lab.json("trains", "status.json")["state"] == "failed" and not (folder / "result.json").exists()
    (kept,) = folder.glob("checkpoints/*.safetensors")
    assert read_tensors(kept)[1]["epoch"] == 2
    monkeypatch.delenv("TOY_FAULT")
    assert lab("run", "trains", "--engine", "plain").returncode == 0 and weights(lab.runs) == undisturbed  # the next run is as ever


HUNGRY = """import resource
from pathlib import Path
import torch
from ae_course.autoencoder import Autoencoder, mlp
from ae_course.training import fit
images = torch.zeros(100_000, 1, 4, 4)
for size, stage in run.stages([2]):
    model = Autoencoder(*mlp((1, 4, 4), hidden=(1024,), latent_dim=size))
    fit(model, images[:10], epochs=1, device="cpu", progress=False)  # what the libraries take for themselves
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), -1))
    fit(model, images if batch_size > 64 else images[:640], epochs=1, batch_size=batch_size, device="cpu", checkpoint=stage.checkpoint,
        progress=stage.progress)
rows = [{"seed": seed}]"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory, as Linux lets a process do")
def test_the_memory_of_this_computer_really_runs_out(lab):
    lab.add("hungry", SETTINGS, HUNGRY)
    result = lab("run", "hungry", "--engine", "plain", "-p", "batch_size", "100000")  # 410 MB an activation, of 256 MB that are left
    says = "out of memory on cpu with batch_size 100000, 100000 images and a model of"
    assert result.returncode == 7 and says in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert "can't allocate memory" in result.stderr and "lower batch_size" in result.stderr
    assert lab("run", "hungry", "--engine", "plain", "-p", "batch_size", "64").returncode == 0


def test_the_memory_of_a_gpu_really_runs_out():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here whose memory could run out")

    class Greedy(Autoencoder):
        def loss_terms(self, batch, phase="main"):
            torch.empty(1 << 50, dtype=torch.uint8, device=batch.x.device)  # a petabyte
            return super().loss_terms(batch, phase)

    x, parts = torch.rand(8, 1, 8, 8), lambda: mlp((1, 8, 8), hidden=(), latent_dim=2)
    greedy = Greedy(*parts())
    for device in ("cuda", "auto"):
        with pytest.raises(OutOfMemory, match="on cuda.* with batch_size 4, 8 images and a model of .* lower batch_size"):
            fit(greedy, x, epochs=1, batch_size=4, device=device, progress=False)
        assert next(greedy.parameters()).device.type == "cuda"  # not moved to the CPU in silence
    model = Autoencoder(*parts())
    assert len(fit(model, x, epochs=2, batch_size=4, device="cuda", progress=False)) == 2


def test_a_diverging_run_keeps_its_last_finite_checkpoint(lab, here, monkeypatch):
    trains(lab)
    monkeypatch.setenv("TOY_FAULT", "nan")
    monkeypatch.setenv("TOY_AT", "11")
    code, _, said = here("run", "trains")
    assert code == 6 and all(part in said for part in ("epoch 3, step 3", "lr 0.001", "reconstruction = nan", "lower lr, or look")), said
    assert lab.json("trains", "status.json")["state"] == "diverged"
    (kept,) = lab.folders("trains")[0].glob("checkpoints/*.safetensors")
    tensors, about = read_tensors(kept)
    assert about["epoch"] == 2 and all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


def test_auto_takes_what_is_there_and_says_so(lab, here):
    lab.add("auto", SEED, FITS.replace("DO", "").replace('"cpu"', '"auto"'))
    code, shown, _ = here("run", "auto")
    device = lab.json("auto", "result.json")["environment"]["device"]
    assert code == 0 and f" s on {device}," in shown, shown
    assert torch.cuda.is_available() or torch.backends.mps.is_available() or device == "cpu"


# places

WHOLE_WAY = """import sys

from ae_course.cli import main
table, course, preset, pictures = sys.argv[1:]
few = ["-p", "dataset", pictures, "-p", "sizes", "2", "-p", "networks", "slides", "-p", "epochs", "1", "-p", "limit", "none"]
for command in (["list"], ["data", "list"], ["run", "code_size", "--preset", "smoke", "--engine", "plain", *few],
                ["collect", "code_size", "--preset", "smoke", "--out", table], ["report"], ["start", course], ["solution", "10.1"],
                ["claims"]):
    print("==", *command[:2], main(command))
sys.exit(main(["run", "code_size", "--preset", preset]))
"""


def typed(text: str) -> str:
    "`text` as the system hands it to Python when a user types it, in any locale."
    return os.fsdecode(text.encode())


def test_the_whole_way_with_umlauts_under_the_c_locale(tmp_path):
    root = Path(module.__file__).resolve().parent.parent
    home = tmp_path / typed("Jörg O'Müller-Łukasz 100%")
    shutil.copytree(root / "ae_course", home / "ae course" / "ae_course", ignore=shutil.ignore_patterns("__pycache__"))
    if (root / "nbs").is_dir():
        shutil.copytree(root / "nbs", home / "ae course" / "nbs", ignore=shutil.ignore_patterns(".*"))
    table, course, preset, pictures = map(typed, ("Ergebnisse für mich.csv", "mein Kürs", "smöke", "Bilder für mich"))
    unlabelled_set(home / "data" / pictures)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AE_COURSE_", "LC_", "LANG"))}
    env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    env |= {"HOME": str(home), "PYTHONPATH": str(home / "ae course"), "TMPDIR": str(home), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    (home / "way.py").write_text(WHOLE_WAY, encoding="utf-8")
    command = [sys.executable, "way.py", table, course, preset, pictures]
    result = subprocess.run(command, cwd=home, env=env, capture_output=True, check=False)
    shown, said = result.stdout.decode("utf-8", "replace"), result.stderr.decode("utf-8", "replace")
    codes = [line.rsplit(None, 1)[1] for line in shown.splitlines() if line.startswith("== ")]
    assert codes == ["0"] * 8, shown + said
    assert result.returncode == 2 and "unknown preset" in said and "Traceback" not in said, said
    (folder,) = home.glob("runs/code_size/*")
    assert list(folder.glob("figures/*.png")) and json.loads((folder / "result.json").read_text(encoding="utf-8"))["rows"]
    assert json.loads((folder / "params.json").read_text(encoding="utf-8"))["dataset"] == "Bilder für mich"
    assert (home / "runs" / "report.html").is_file() and (home / course / "10_linear.ipynb").is_file() and (home / table).is_file()


def opens_text(node: ast.Call) -> bool:
    "Whether a call opens a text file, or a process's text, in whatever encoding the machine has."
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    named = {keyword.arg: keyword.value for keyword in node.keywords}
    if "encoding" in named:
        return False
    if name == "open" and isinstance(node.func, ast.Name) or name == "fdopen":
        mode = named.get("mode") or (node.args[1] if len(node.args) > 1 else None)
        return not (isinstance(mode, ast.Constant) and "b" in mode.value)
    return name in ("read_text", "write_text") or any(named.get(key) is not None for key in ("text", "universal_newlines"))


def test_text_files_are_opened_with_an_encoding():
    found = []
    for path in sorted(Path(module.__file__).parent.glob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        found += [f"{path.name}:{node.lineno}" for node in calls if opens_text(node)]
    assert found == []
    for bad in ("open(p)", "open(p, 'w')", "p.read_text()", "p.write_text(t)", "subprocess.run(c, text=True)"):
        assert opens_text(ast.parse(bad).body[0].value), bad
