"`fit_many`: as one after another; errors, signals and checkpoints of its processes."

import os
import signal
import threading

import pytest
import torch

from ae_course.autoencoder import Autoencoder, mlp
from ae_course.base import BadArgument
from ae_course.data import load
from ae_course.denoising import DenoisingAutoencoder, gaussian
from ae_course.stacked import conv_stack
from ae_course.training import Diverged, OutOfMemory, fit, fit_many, seeded

CALL = {"epochs": 2, "batch_size": 64, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def digits():
    return load("mnist5k", limit=200)


def small(size=8, seed=0, noise=None):
    with seeded(seed):
        parts = mlp(hidden=(24,), latent_dim=size)
        return Autoencoder(*parts) if noise is None else DenoisingAutoencoder(*parts, gaussian(noise))


def same(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize("workers", [1, 2])
def test_sizes_noises_and_kinds_are_trained_as_one_after_another(digits, workers):
    make = lambda: [small(4), small(1), small(8, noise=0.2), small(8, noise=0.6), Autoencoder(*conv_stack(channels=(2,), batch_norm=True))]
    with seeded(3):
        together = make()
    with seeded(3):
        apart = make()
    seen = []
    histories = fit_many(together, digits, workers=workers, **{**CALL, "progress": seen.append})
    for model, alone, history in zip(together, apart, histories, strict=True):
        assert fit(alone, digits, **CALL)["loss"] == history["loss"] and same(model, alone)
        assert not model.training and not any(t.is_shared() for t in model.parameters())
    assert sorted((row["model"], row["epoch"]) for row in seen) == [(i, e) for i in range(5) for e in (1, 2)]


def test_seeds_one_each(digits):
    models = [small(), small()]
    fit_many(models, digits, seed=(0, 1), workers=2, **CALL)
    alone = small()
    fit(alone, digits, seed=1, **CALL)
    assert same(models[1], alone) and not same(*models)
    with pytest.raises(BadArgument, match="got 1 for 2 models"):
        fit_many([small(), small()], digits, seed=[3], **CALL)
    with pytest.raises(BadArgument, match="checkpoint: got 1 files for 2 models"):
        fit_many([small(), small()], digits, checkpoint=["a.safetensors"], **CALL)
    with pytest.raises(BadArgument, match="share parameters"):
        fit_many([models[0]] * 2, digits, **CALL)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_names_its_model(digits, workers):
    class Spoiled(Autoencoder):
        def loss_terms(self, batch, phase="main"):
            return {"loss": super().loss_terms(batch)["reconstruction"] * float("nan")}

    with pytest.raises(Diverged, match=r"model 2 of 3 \(Spoiled\): training diverged"):
        fit_many([small(), Spoiled(*mlp(hidden=(8,))), small()], digits, workers=workers, **CALL)


def test_a_stop_leaves_checkpoints_and_a_second_call_goes_on(digits, tmp_path):
    file, whole = tmp_path / "c.safetensors", [small(4), small(2), small(1)]
    expected = fit_many(whole, digits, workers=2, **{**CALL, "epochs": 4})

    def report(row):
        if row["epoch"] == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit_many([small(4), small(2), small(1)], digits, workers=2, checkpoint=file, **{**CALL, "epochs": 4, "progress": report})
    assert (tmp_path / "c-model1.safetensors").exists()
    again = [small(4), small(2), small(1)]
    histories = fit_many(again, digits, workers=2, checkpoint=file, **{**CALL, "epochs": 4})
    assert all(map(same, again, whole)) and [h["loss"] for h in histories] == [h["loss"] for h in expected]
    assert len(list(tmp_path.iterdir())) == 3
    kept = sorted(tmp_path.iterdir())
    histories = fit_many([small(4), small(2), small(1)], digits, workers=1, checkpoint=kept, **{**CALL, "epochs": 4})  # finished: loaded
    assert [h["loss"] for h in histories] == [h["loss"] for h in expected]


def test_a_process_that_is_killed_is_named(digits):
    class Dies(Autoencoder):
        def loss_terms(self, batch, phase="main"):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(OutOfMemory, match=r"one of the models \[2\]"):
        fit_many([small(), Dies(*mlp(hidden=(8,)))], digits, workers=2, **CALL)


def test_it_works_outside_the_main_thread(digits):
    made = []
    thread = threading.Thread(target=lambda: made.extend(fit_many([small(), small(1)], digits, workers=2, **CALL)))
    thread.start()
    thread.join(300)
    assert len(made) == 2
