"`fit_many`: as one after another, in processes and in lockstep; errors, signals, checkpoints; its graph on a stand-in for a GPU."

import math
import os
import signal
import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from ae_course import replay, training
from ae_course.autoencoder import Autoencoder, mlp, read_tensors
from ae_course.base import BadArgument
from ae_course.data import load
from ae_course.denoising import DenoisingAutoencoder, gaussian, noised_once
from ae_course.replay import Recorder
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


class TwoPhases(Autoencoder):
    "Its decoder is trained in every second step only."

    def phases(self):
        return [("encoder", self.encoder.parameters(), 1, None), ("decoder", self.decoder.parameters(), 2, 1e-2)]


def two_phases(seed):
    with seeded(seed):
        return TwoPhases(*mlp(hidden=(24,), latent_dim=8))


def conv(seed):
    with seeded(seed):
        return Autoencoder(*conv_stack(channels=(2,), batch_norm=True))


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


@pytest.mark.parametrize("how", [{"workers": 1}, {"workers": 2}, {"lockstep": True}], ids=str)
def test_data_one_each(digits, how):
    sets = [digits, noised_once(gaussian(0.5), digits), digits[:100]]
    models, alone = [small(), small(noise=0.5), small(4)], [small(), small(noise=0.5), small(4)]
    fit_many(models, sets, **how, **CALL)
    for model, other, data in zip(models, alone, sets):
        fit(other, data, **CALL)
        assert near(model, other)
    with pytest.raises(BadArgument, match="data: got a list of 2 sets for 3 models"):
        fit_many(models, sets[:2], **how, **CALL)


@pytest.mark.parametrize("how", [{"workers": 1}, {"workers": 2}, {"lockstep": True}], ids=str)
def test_an_error_names_its_model(digits, how):
    class Spoiled(Autoencoder):
        def loss_terms(self, batch, phase="main"):
            return {"loss": super().loss_terms(batch)["reconstruction"] * float("nan")}

    with pytest.raises(Diverged, match=r"model 2 of 3 \(Spoiled\): training diverged"):
        fit_many([small(), Spoiled(*mlp(hidden=(8,))), small()], digits, **how, **CALL)


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


def near(a, b):
    return all(torch.allclose(p, q, atol=1e-5, rtol=0) for p, q in zip(a.state_dict().values(), b.state_dict().values()))


def as_alone(digits, make, seeds, **call):
    "What `fit_many` gave in lockstep, held against trainings alone: histories and weights."
    together, seen = make(), []
    histories = fit_many(together, digits, seed=seeds, lockstep=True, **{**CALL, **call, "progress": seen.append})
    for model, alone, seed, history in zip(together, make(), seeds, histories, strict=True):
        expected = fit(alone, digits, seed=seed, **{**CALL, **call})
        assert list(history.rows[-1]) == list(expected.rows[-1]) and near(model, alone)
        assert history["loss"] == pytest.approx(expected["loss"], rel=1e-5) and not model.training
    assert len(seen) == sum(map(len, histories)) and {row["model"] for row in seen} == set(range(len(together)))
    return histories


def test_lockstep_of_sizes_is_one_list_of_kernels(digits, monkeypatch):
    made, whole = [], training.Together.__init__
    monkeypatch.setattr(training.Together, "__init__", lambda self, *args: (made.append(self), whole(self, *args))[1])
    as_alone(digits, lambda: [small(4), small(1), conv(3)], (0, 5, 0), epochs=3)
    lists = made[0].replayed
    assert lists.failed is None and len(lists.lists) == 2  # whole batches, and the last of 8 images
    as_alone(digits, lambda: [small(4), small(1)], (0, 0), schedule=lambda epoch: 0.5**epoch)
    assert len(made[1].replayed.lists) == 2  # a rate is written into its list; the last batch comes once with each, and needs none


def test_lockstep_with_noise_validation_phases_and_models_of_ones_own(digits):
    as_alone(digits, lambda: [small(8, noise=0.2), small(8, noise=0.6), small(4)], (0, 1, 2), validation=digits[:50])
    as_alone(digits, lambda: [two_phases(i) for i in range(2)], (0, 1), replay=True)
    as_alone(digits, lambda: [small(), small(2)], (0, 0), replay=False)
    as_alone(digits, lambda: [small(), small(2)], (3, 0), optimizer="sgd")


def test_lockstep_stops_and_goes_on(digits, tmp_path):
    file, make = tmp_path / "c.safetensors", lambda: [small(4, noise=0.3), small(2), small(1)]
    expected = make()
    histories = fit_many(expected, digits, lockstep=True, **{**CALL, "epochs": 4})

    def report(row):
        if (row["model"], row["epoch"]) == (1, 2):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit_many(make(), digits, lockstep=True, checkpoint=file, **{**CALL, "epochs": 4, "progress": report})
    assert [read_tensors(path)[1]["epoch"] for path in sorted(tmp_path.iterdir())] == [2, 2, 2]

    def fails(row):
        if (row["model"], row["epoch"]) == (1, 3):
            raise RuntimeError("the disc is full")

    with pytest.raises(RuntimeError, match=r"model 2 of 3 \(Autoencoder\): the disc is full"):
        fit_many(make(), digits, lockstep=True, checkpoint=file, **{**CALL, "epochs": 4, "progress": fails})
    assert [read_tensors(path)[1]["epoch"] for path in sorted(tmp_path.iterdir())] == [3, 3, 3]
    again = make()
    made = fit_many(again, digits, lockstep=True, checkpoint=file, **{**CALL, "epochs": 4})
    assert all(map(near, again, expected))
    assert [h["loss"] for h in made] == [pytest.approx(h["loss"], rel=1e-5) for h in histories]
    alone = small(4, noise=0.3)  # one of them, by itself, from its checkpoint
    fit(alone, digits, checkpoint=tmp_path / "c-model1.safetensors", **{**CALL, "epochs": 5})
    longer = small(4, noise=0.3)
    fit(longer, digits, **{**CALL, "epochs": 5})
    assert near(alone, longer)


def test_lockstep_ends_with_the_first_that_diverges(digits, tmp_path):
    models = [small(), small(1), small(2)]
    with torch.no_grad():
        models[1].encoder[1].weight.fill_(math.inf)
    with pytest.raises(Diverged, match=r"model 2 of 3 \(Autoencoder\): training diverged in epoch 1"):
        fit_many(models, digits, lockstep=True, checkpoint=tmp_path / "c.safetensors", **CALL)
    kept = {path.name: read_tensors(path)[1]["epoch"] for path in tmp_path.iterdir()}
    assert kept == {"c-model1.safetensors": 1, "c-model3.safetensors": 1}
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        fit_many([small()], digits, lockstep=True, epochs=1, epoch=2, device="cpu")
    assert fit_many([], digits, lockstep=True, **CALL) == []


class StandIn:
    "CUDA's graphs, streams and generators as far as `capture` uses them, on the CPU: a capture leaves no trace, a replay runs it in place."

    def __init__(self, monkeypatch):
        self.graphs, self.current, self.default = [], None, SimpleNamespace(owner=None)
        self.default.graphsafe_get_state = lambda: self.default.owner
        self.default.graphsafe_set_state = self.take_turns
        nothing = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {"Stream": lambda: nothing, "current_stream": lambda: nothing, "stream": lambda s: nullcontext(),
                            "CUDAGraph": self.graph, "graph": self.captured, "default_generators": [self.default]}.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(replay, "record", replay.capture)

    def take_turns(self, owner):
        "On a GPU the exchange of generators; here it is noted, and a replay makes it."
        self.default.owner = owner
        if self.current is not None:
            self.current.calls.append(owner)

    def graph(self):
        graph = SimpleNamespace(calls=[], registered=[], replays=0)
        graph.register_generator_state, graph.replay = graph.registered.append, lambda: self.play(graph)
        self.graphs.append(graph)
        return graph

    @contextmanager
    def captured(self, graph):
        self.current, stand_in, before = graph, self, Recorder()

        class Capture(Recorder):
            def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
                written = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)] if replay._writes(kernel) else []
                kept = [t.clone() for t in written]
                result = super().__torch_dispatch__(kernel, types, args, kwargs)
                for t, k in zip(written, kept):  # a capture runs nothing
                    before.calls.append((t, k))
                stand_in.current.calls.append((kernel, args, kwargs or {}, result))
                return result

        own, places = torch.get_rng_state(), [owner.of.cpu for owner in graph.registered]
        with Capture():
            yield
        for t, k in reversed(before.calls):
            t.data.copy_(k)
        for owner, place in zip(graph.registered, places):
            owner.of.cpu = place
        torch.set_rng_state(own)
        self.current = None

    @torch.no_grad()
    def play(self, graph):
        graph.replays += 1
        own = torch.get_rng_state()
        turn = None
        for call in graph.calls:
            if not isinstance(call, tuple):
                if turn is not None:
                    turn.of.cpu = torch.get_rng_state()
                turn = call
                torch.set_rng_state(own if turn is None else turn.of.cpu)
                continue
            kernel, args, kwargs, result = call
            for old, new in zip(tree_leaves(result), tree_leaves(kernel(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def test_a_graph_of_several_trainings_on_a_stand_in_for_a_gpu(digits, monkeypatch):
    stand_in = StandIn(monkeypatch)

    class OnGPU(replay.Draws):
        def __init__(self, device):
            super().__init__(device)
            place = {"device": SimpleNamespace(index=None), "get_state": lambda: self.cpu, "set_state": lambda state: None}
            self.gpu = SimpleNamespace(of=self, **place)

    monkeypatch.setattr(training, "Draws", OnGPU)
    as_alone(digits, lambda: [small(4), small(1), small(8, noise=0.4), small(8, noise=0.4)], (0, 5, 0, 1), epochs=3)
    whole, last, *_ = stand_in.graphs  # and those of the trainings alone
    assert len(whole.registered) == 4 and whole.replays > last.replays > 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_a_graph_of_several_trainings_is_each_alone(digits, monkeypatch):
    made, whole = [], training.Together.__init__
    monkeypatch.setattr(training.Together, "__init__", lambda self, *args: (made.append(self), whole(self, *args))[1])
    call, seeds = {**CALL, "device": "cuda", "epochs": 3}, (0, 5, 0, 1)
    make = lambda: [small(4), small(1), small(8, noise=0.4), small(8, noise=0.4)]
    models, written = make(), make()
    fit_many(models, digits, seed=seeds, **call)
    assert made[0].replayed.failed is None and len(made[0].replayed.lists) == 2 and len(made[0].streams) == 4
    for model, alone, seed in zip(models, written, seeds):
        fit(alone, digits, seed=seed, replay=False, **call)
        assert all(torch.allclose(p, q, atol=1e-4, rtol=0) for p, q in zip(model.parameters(), alone.parameters()))
