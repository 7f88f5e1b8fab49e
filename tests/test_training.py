"`fit`: parity, record, stop and resume, faults."

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ae_course import training
from ae_course.autoencoder import Autoencoder, CheckpointError, mlp, read_tensors
from ae_course.data import BadArgument, Batch, DataError, load
from ae_course.training import Diverged, OutOfMemory, daly_schedule, evaluate, fit, mix, order, pick_device, piecewise, seeded


@pytest.fixture(scope="module")
def digits():
    return load("mnist5k", limit=300)


class Noisy(Autoencoder):
    def corrupt(self, x):
        return x + 0.2 * torch.randn_like(x)


def build(family=Autoencoder, **kwargs):
    with seeded(0):
        return family(*mlp(hidden=(32,), latent_dim=8), **kwargs)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))


QUIET = {"device": "cpu", "progress": False}


def test_equals_the_plain_loop(digits):
    ours, plain = build(), build()
    history = fit(ours, digits, epochs=3, batch_size=64, seed=5, **QUIET)
    optimizer, x, means = torch.optim.Adam(plain.parameters(), lr=1e-3, fused=True), digits.pixels(), []
    for epoch in range(3):
        total = 0.0
        for index in order(len(x), 5, epoch).split(64):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(plain(x[index]), x[index])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(index)
        means.append(total / len(x))
    for p, q in zip(ours.parameters(), plain.parameters()):
        assert_close(p, q, atol=1e-6, rtol=1e-5)
    assert history["loss"] == pytest.approx(means, rel=1e-5)


def test_same_call_same_bits_and_another_seed_another_order(digits):
    a, b, c = build(Noisy), build(Noisy), build(Noisy)
    fit(a, digits, epochs=2, **QUIET)
    torch.rand(100)  # what is drawn outside plays no part
    fit(b, digits, epochs=2, **QUIET)
    fit(c, digits, epochs=2, seed=1, **QUIET)
    assert same(a, b) and not same(a, c)


def test_the_caller_keeps_its_random_numbers(digits):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    fit(build(Noisy), digits, epochs=1, validation=digits, **QUIET)
    assert torch.equal(state, torch.get_rng_state())


def test_images_tensors_and_own_sources_train_alike(digits):
    class Source:
        def __len__(self):
            return len(digits)

        def batch(self, index, device):
            return Batch(digits.pixels(device)[index], None, index, {})

    models = [build(), build(), build()]
    for model, data in zip(models, (digits, digits.pixels(), Source())):
        fit(model, data, epochs=1, **QUIET)
    assert same(models[0], models[1]) and same(models[0], models[2])


def test_history_weights_batches_by_size():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def loss_terms(self, batch, phase="main"):
            return {"a": batch.x.mean() + 0 * self.w.sum(), "b": batch.x.square().mean()}

        def monitor(self, batch):
            return {"largest": batch.x.max()}

    x = torch.rand(130, 1, generator=torch.Generator().manual_seed(0))
    row = fit(Mean(), x, epochs=1, batch_size=50, **QUIET).rows[0]
    assert row["a"] == pytest.approx(x.mean().item(), rel=1e-6) and row["b"] == pytest.approx(x.square().mean().item(), rel=1e-6)
    assert row["loss"] == pytest.approx(row["a"] + row["b"], rel=1e-6) and row["largest"] <= x.max()
    assert evaluate(Mean(), x, batch_size=50)["a"] == pytest.approx(x.mean().item(), rel=1e-6)


class TwoPlayers(nn.Module):
    "Two phases on parameters of their own; the second every third step."

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))

    def phases(self):
        return [("first", [self.first], 1, None), ("second", [self.second], 3, 0.01)]

    def loss_terms(self, batch, phase="main"):
        loss = (self.first * self.second).square()
        return {"square": loss, "half": 0.5 * loss}


def test_phases_have_their_own_parameters_rates_and_turns():
    model, x = TwoPlayers(), torch.zeros(70, 1)
    row = fit(model, x, epochs=1, batch_size=10, lr=0.1, optimizer=lambda p, lr: torch.optim.SGD(p, lr=lr), **QUIET).rows[0]
    a, b = 1.0, 1.0
    for step in range(7):
        a -= 0.1 * 3 * a * b * b
        if step % 3 == 0:
            b -= 0.01 * 3 * a * a * b
    assert model.first.item() == pytest.approx(a, rel=1e-5) and model.second.item() == pytest.approx(b, rel=1e-5)
    assert {"first/square", "first/half", "second/square", "second/half", "loss"} <= row.keys()


def test_schedules():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def loss_terms(self, batch, phase="main"):
            return {"w": self.w.sum()}

    history = fit(
        Idle(), torch.zeros(4, 1), epochs=3, lr=0.5, optimizer="sgd", schedule=piecewise({0: 0.1, 1: 1.0}), batch_size=None, **QUIET
    )
    assert history["lr"] == pytest.approx([0.05, 0.5, 0.5]) and history["w"] == pytest.approx([1, 0.95, 0.45])
    assert [daly_schedule(e) * 1e-3 for e in (0, 1, 33, 66)] == pytest.approx([1e-4, 1e-3, 1e-4, 1e-5])
    with pytest.raises(BadArgument, match="epoch 0"):
        piecewise({5: 0.1})


def test_lbfgs_finds_the_least_squares_solution():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(40, 6, generator=generator, dtype=torch.float64), torch.randn(40, generator=generator, dtype=torch.float64)

    class LeastSquares(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(6, dtype=torch.float64))

        def loss_terms(self, batch, phase="main"):
            return {"residual": (batch.x @ self.w - b[batch.index]).square().sum()}

    model = LeastSquares()
    history = fit(model, a, epochs=3, batch_size=None, optimizer="lbfgs", **QUIET)
    assert_close(model.w.detach(), torch.linalg.lstsq(a, b).solution, atol=1e-7, rtol=1e-6)
    assert len(history) == 3


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs", "sgd"])
def test_resume_inside_an_epoch_is_bit_for_bit(digits, tmp_path, optimizer):
    call = {"epochs": 4, "batch_size": None if optimizer == "lbfgs" else 64, "optimizer": optimizer, **QUIET}
    whole, broken, again = build(Noisy), build(Noisy), build(Noisy)
    history = fit(whole, digits, **call)

    class Stops(Noisy):
        calls = 0

        def corrupt(self, x):
            Stops.calls += 1
            if Stops.calls == 8:
                signal.raise_signal(signal.SIGINT)
            return super().corrupt(x)

    with seeded(0):
        broken = Stops(*mlp(hidden=(32,), latent_dim=8))
    with pytest.raises(KeyboardInterrupt):
        fit(broken, digits, checkpoint=tmp_path / "c.safetensors", **call)
    about = read_tensors(tmp_path / "c.safetensors")[1]
    assert about["epoch"] < 4 and (about["step"] > 0 or optimizer == "lbfgs")  # where one step is the epoch, that is ended
    resumed = fit(again, digits, checkpoint=tmp_path / "c.safetensors", **call)
    assert same(whole, again) and resumed["loss"] == history["loss"]
    # a finished one is loaded, not trained
    third = build(Noisy)
    assert fit(third, digits, checkpoint=tmp_path / "c.safetensors", **call)["loss"] == history["loss"] and same(third, whole)


def test_epochs_may_grow_other_settings_may_not_change(digits, tmp_path):
    file, model, whole = tmp_path / "c.safetensors", build(Noisy), build(Noisy)
    fit(model, digits, epochs=2, checkpoint=file, **QUIET)
    fit(model, digits, epochs=4, checkpoint=file, **QUIET)
    fit(whole, digits, epochs=4, **QUIET)
    assert same(model, whole)
    for change, named in (({"lr": 0.1}, "lr"), ({"batch_size": 7}, "batch_size"), ({"seed": 1}, "seed")):
        with pytest.raises(CheckpointError, match=named):
            fit(build(Noisy), digits, epochs=4, checkpoint=file, **change, **QUIET)
    with pytest.raises(CheckpointError, match="model: .*'mean'.*'sum'"):
        plain = tmp_path / "plain.safetensors"
        fit(build(), digits, epochs=1, checkpoint=plain, **QUIET)
        fit(build(reduction="sum"), digits, epochs=2, checkpoint=plain, **QUIET)
    with pytest.raises(CheckpointError, match="holds 4 epochs, asked 3"):
        fit(build(Noisy), digits, epochs=3, checkpoint=file, **QUIET)
    with pytest.raises(CheckpointError, match="data"):
        fit(build(Noisy), digits[:200], epochs=4, checkpoint=file, **QUIET)


SCRIPT = """
    import sys, time
    import torch
    from ae_course.autoencoder import Autoencoder, mlp, save_model
    from ae_course.data import load
    from ae_course.training import fit, seeded

    class Noisy(Autoencoder):
        def corrupt(self, x):
            return x + 0.2 * torch.randn_like(x)

    torch.set_num_threads(1)
    with seeded(0):
        model = Noisy(*mlp(hidden=(32,), latent_dim=8))
    def report(row):
        print(row["epoch"], flush=True)
        time.sleep(float(sys.argv[3]))
    call = {"epochs": 8, "batch_size": 64, "device": "cpu", "checkpoint": sys.argv[1], "checkpoint_seconds": 0}
    fit(model, load("mnist5k", limit=300), progress=report, **call)
    save_model(model, sys.argv[2])
"""


def start_script(folder, *args):
    script = folder / "train.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    return subprocess.Popen([sys.executable, str(script), *map(str, args)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_training_resumes_bit_for_bit(tmp_path, number):
    process = start_script(tmp_path, tmp_path / "c.safetensors", tmp_path / "killed.safetensors", 0.3)
    for line in process.stdout:
        if int(line) == 3:
            process.send_signal(number)
            break
    assert process.wait(300) != 0 and not (tmp_path / "killed.safetensors").exists()
    assert 2 <= read_tensors(tmp_path / "c.safetensors")[1]["epoch"] < 8
    assert start_script(tmp_path, tmp_path / "c.safetensors", tmp_path / "resumed.safetensors", 0).wait(300) == 0
    assert start_script(tmp_path, tmp_path / "other.safetensors", tmp_path / "whole.safetensors", 0).wait(300) == 0
    resumed, whole = (read_tensors(tmp_path / f"{name}.safetensors")[0] for name in ("resumed", "whole"))
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)


def test_killed_while_writing_a_checkpoint_the_previous_one_loads(digits, tmp_path):
    file = tmp_path / "c.safetensors"
    fit(build(), digits, epochs=1, checkpoint=file, **QUIET)
    (tmp_path / ".c.safetensors.part").write_bytes(file.read_bytes()[:1000])  # what kill -9 within a write leaves
    model, whole = build(), build()
    fit(model, digits, epochs=3, checkpoint=file, **QUIET)
    fit(whole, digits, epochs=3, **QUIET)
    assert same(model, whole) and [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_divergence_names_the_step_and_keeps_the_last_finite_epoch(digits, tmp_path):
    class Explodes(Autoencoder):
        steps = 0

        def loss_terms(self, batch, phase="main"):
            terms = super().loss_terms(batch, phase)
            if self.training:
                Explodes.steps += 1
            return terms | {"bad": torch.tensor(math.nan if Explodes.steps == 12 and self.training else 0.0)}

    kept, reference = build(Explodes), build()
    with pytest.raises(Diverged, match=r"epoch 3, step 2, .*lr 0\.001: reconstruction = .*bad = nan") as caught:
        fit(kept, digits, epochs=9, batch_size=60, checkpoint=tmp_path / "c.safetensors", checkpoint_seconds=0, **QUIET)
    fit(reference, digits, epochs=2, batch_size=60, replay=False, **QUIET)
    assert caught.value.exit_code == 6 and same(kept, reference)
    assert read_tensors(tmp_path / "c.safetensors")[1]["epoch"] == 2


def test_a_failing_report_stops_with_a_checkpoint(digits, tmp_path):
    def report(row):
        if row["epoch"] == 2:
            raise OSError("no space for the log")

    with pytest.raises(OSError, match="no space"):
        fit(build(), digits, epochs=5, checkpoint=tmp_path / "c.safetensors", device="cpu", progress=report)
    assert read_tensors(tmp_path / "c.safetensors")[1]["epoch"] == 2


def test_a_second_signal_does_not_wait():
    stop = threading.Event()
    with pytest.raises(KeyboardInterrupt), training._signals_noted(stop):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal was swallowed")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_fit_works_outside_the_main_thread(digits):
    result = []
    thread = threading.Thread(target=lambda: result.append(fit(build(), digits, epochs=1, **QUIET)))
    thread.start()
    thread.join(300)
    assert len(result[0]) == 1


def test_denormals_are_flushed_inside_and_nowhere_else(digits):
    seen = []

    class Looks(Autoencoder):
        def loss_terms(self, batch, phase="main"):
            seen.append((torch.full((100_000,), 1e-40) * 1.0).count_nonzero().item())
            return super().loss_terms(batch, phase)

    fit(build(Looks), digits, epochs=1, **QUIET)
    assert (torch.full((100_000,), 1e-40) * 1.0).count_nonzero() == 100_000
    supported = torch.set_flush_denormal(True)
    torch.set_flush_denormal(False)
    assert not supported or set(seen) == {0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 2.5}, "epochs: got 2.5"),
        ({"epochs": -1}, "at least 0"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"lr": math.nan}, "lr: got nan"),
        ({"lr": -1.0}, "above 0"),
        ({"precision": "float16"}, "'float32' or 'bfloat16'"),
        ({"optimizer": "adm"}, "adam"),
        ({"device": "nonsense"}, "not usable"),
    ],
)
def test_bad_settings_are_named_before_training(digits, change, message):
    with pytest.raises(BadArgument, match=message) as caught:
        fit(build(), digits, **{"epochs": 1, **QUIET, **change})
    assert caught.value.exit_code == 2


def test_a_missing_gpu_is_named_and_auto_falls_back(caplog):
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is present: nothing to fall back from")
    with pytest.raises(BadArgument, match="use 'cpu', or 'auto'"):
        pick_device("cuda")
    with caplog.at_level("INFO", logger="ae_course.training"):
        assert pick_device("auto").type in ("cpu", "mps")
    assert "training on" in caplog.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(0, 1, 28, 28), "0 images, need at least 1"),
        (torch.zeros(3, 1, 28, 28, dtype=torch.uint8), "expected floats"),
        (torch.zeros(3, 1, 28, 28, dtype=torch.int16), "int16"),
        ([1, 2, 3], "got list"),
    ],
)
def test_bad_data_is_named(data, message):
    with pytest.raises(DataError, match=message) as caught:
        fit(build(), data, epochs=1, **QUIET)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_counted_and_located(value):
    x = torch.rand(9, 1, 28, 28)
    x[4, 0, 0, 0] = x[7, 0, 1, 1] = value
    with pytest.raises(DataError, match="2 of 9 images .* first at index 4"):
        fit(build(), x, epochs=1, **QUIET)


def test_cross_entropy_refuses_values_outside_its_range():
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        fit(build(reconstruction="bce"), 255 * torch.rand(4, 1, 28, 28), epochs=1, **QUIET)


def test_one_image_a_last_batch_of_one_and_batch_norm(digits):
    assert math.isfinite(fit(build(), digits[:1], epochs=2, **QUIET)["loss"][-1])
    assert math.isfinite(fit(build(), digits[:65], epochs=1, batch_size=64, **QUIET)["loss"][-1])
    encoder, decoder = mlp(hidden=(32,), latent_dim=8)
    normed = Autoencoder(nn.Sequential(encoder, nn.BatchNorm1d(8)), decoder)
    with pytest.raises(BadArgument, match="at least 2"):
        fit(normed, digits[:65], epochs=1, batch_size=64, **QUIET)
    assert math.isfinite(fit(normed, digits[:66], epochs=1, batch_size=64, **QUIET)["loss"][-1])


def test_constant_images_train():
    assert math.isfinite(fit(build(), torch.full((20, 1, 28, 28), 0.5), epochs=2, **QUIET)["loss"][-1])


def test_bfloat16_trains_close_to_float32(digits):
    a, b = build(), build()
    full, half = fit(a, digits, epochs=3, **QUIET), fit(b, digits, epochs=3, precision="bfloat16", **QUIET)
    assert half["loss"][-1] == pytest.approx(full["loss"][-1], rel=0.05) and not same(a, b)


def test_validation_noise_depends_on_seed_and_epoch_alone(digits):
    model = build(Noisy)
    clean = evaluate(model, digits)
    assert clean == evaluate(model, digits, seed=1)
    noisy = [evaluate(model, digits, corrupt=True, seed=s)["loss"] for s in (0, 0, 1)]
    assert noisy[0] == noisy[1] != noisy[2] and not model.corrupt_in_evaluation
    history = fit(build(), digits, epochs=2, validation=digits, **QUIET)
    assert {"validation_loss", "validation_reconstruction"} <= history.rows[0].keys()


def test_out_of_memory_names_what_to_lower(digits):
    class Greedy(Autoencoder):
        def loss_terms(self, batch, phase="main"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(OutOfMemory, match="batch_size 128, 300 images .*lower batch_size") as caught:
        fit(build(Greedy), digits, epochs=1, **QUIET)
    assert caught.value.exit_code == 7


def test_frozen_models_and_missing_columns_are_named(digits):
    model = build().requires_grad_(False)
    with pytest.raises(BadArgument, match="no parameter"):
        fit(model, digits, epochs=1, **QUIET)
    with pytest.raises(KeyError, match="there are epoch"):
        fit(build(), digits, epochs=1, **QUIET)["accuracy"]


def test_seeds_mix_without_collisions():
    assert len({mix(a, b) for a in range(50) for b in range(50)}) == 2500
    assert mix(1, 2) != mix(2, 1)


def test_a_checkpoint_of_weights_alone_is_no_training(digits, tmp_path):
    from ae_course.autoencoder import save_model

    save_model(build(), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="no training to resume"):
        fit(build(), digits, epochs=1, checkpoint=tmp_path / "m.safetensors", **QUIET)


def test_a_full_disk_leaves_the_earlier_checkpoint(digits, tmp_path, monkeypatch):
    file = tmp_path / "c.safetensors"
    fit(build(), digits, epochs=1, checkpoint=file, **QUIET)
    before = file.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        fit(build(), digits, epochs=2, checkpoint=file, **QUIET)
    assert file.read_bytes() == before


def test_progress_bar_prints_loss(digits, capsys):
    fit(build(), digits, epochs=2, device="cpu")
    assert "loss=" in capsys.readouterr().err


def test_checkpoints_are_not_written_more_often_than_asked(digits, tmp_path, monkeypatch):
    times = []
    monkeypatch.setattr(training, "save_state", lambda *a: times.append(time.monotonic()))
    fit(build(), digits, epochs=6, checkpoint=tmp_path / "c.safetensors", checkpoint_seconds=1000, **QUIET)
    assert len(times) == 2  # after the first epoch, and at the end


def test_the_model_ends_in_eval_mode(digits):
    model = build(Noisy)
    fit(model, digits, epochs=1, **QUIET)
    assert not model.training and torch.equal(model(digits.pixels()), model(digits.pixels()))


def test_memory_is_flat_in_epochs_and_the_images_are_held_once():
    "Peak memory of a process (resource, not time): images as bytes once, and no more after forty epochs than after three."
    code = """
        import resource
        import torch
        from ae_course.autoencoder import Autoencoder, mlp
        from ae_course.data import Images
        from ae_course.training import fit

        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB
        torch.set_num_threads(1)
        images = Images(torch.randint(0, 256, (60_000, 1, 28, 28), dtype=torch.uint8))  # 45 MiB; as floats 179
        small = Images(images.x[:512], name="small")
        call = {"batch_size": 64, "device": "cpu", "progress": False}
        fit(Autoencoder(*mlp(hidden=(32,))), small, epochs=3, **call)
        before = peak()
        fit(Autoencoder(*mlp(hidden=(32,))), small, epochs=40, **call)
        later = peak()
        fit(Autoencoder(*mlp(hidden=(32,))), images, epochs=1, **{**call, "batch_size": 500})
        print(later - before, peak() - later)
    """
    told = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    grown, whole = map(float, told.stdout.split())
    assert grown < 4, f"{grown} MiB more after 40 epochs than after 3"
    assert whole < 140, f"{whole} MiB for 45 MiB of images in batches of 1.5 MiB"  # as floats they would take 179 more


def test_the_command_s_help_needs_no_torch():
    code = "import sys; from ae_course.cli import main\ntry: main(['--help'])\n"
    code += "finally: print('torch' in sys.modules, file=sys.stderr)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stderr.strip().endswith("False") and "run" in told.stdout


def test_without_reshuffling_every_epoch_has_the_batches_of_the_first(digits):
    class Watched(Autoencoder):
        "Notes what it was shown."

        def loss_terms(self, batch, phase="main"):
            seen.append(batch.index.tolist())
            return super().loss_terms(batch, phase)

    for reshuffle in (True, False):
        seen = []
        fit(build(Watched), digits[:30], epochs=3, batch_size=12, seed=2, reshuffle=reshuffle, **QUIET)
        assert seen[:3] == [part.tolist() for part in order(30, 2, 0).split(12)]
        assert (seen[:3] == seen[3:6] == seen[6:]) is not reshuffle and sorted(sum(seen[6:], [])) == list(range(30))


def test_a_checkpoint_remembers_whether_batches_are_reshuffled(digits, tmp_path):
    fit(build(), digits, epochs=1, checkpoint=tmp_path / "a", reshuffle=False, **QUIET)
    with pytest.raises(CheckpointError, match="reshuffle"):
        fit(build(), digits, epochs=2, checkpoint=tmp_path / "a", **QUIET)


def test_bfloat16_convolutions_train_close_to_float32(digits):
    from ae_course.stacked import conv_stack

    losses = []
    for precision in ("float32", "bfloat16"):
        with seeded(0):
            model = Autoencoder(*conv_stack(channels=(4, 8)))
        losses.append(fit(model, digits, epochs=2, batch_size=50, precision=precision, **QUIET)["loss"][-1])
        assert model.state_dict()["encoder.0.0.weight"].dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
