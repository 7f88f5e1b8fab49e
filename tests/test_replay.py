"Replay: the same values as the function that was recorded, for every family; refusals; nothing left behind."

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ae_course.autoencoder import Autoencoder, mlp
from ae_course.contractive import ContractiveAutoencoder, tied
from ae_course.data import Batch, load
from ae_course.denoising import DenoisingAutoencoder, gaussian, salt_and_pepper
from ae_course.replay import CannotReplay, Recorder, Replayed, record, repeats_itself, write
from ae_course.sparse import SparseAutoencoder, dictionary
from ae_course.stacked import conv_stack, dense_stack
from ae_course.training import fit, seeded

QUIET = {"device": "cpu", "progress": False}
SMALL = {"hidden": (24,), "latent_dim": 6}
SMOOTH = {**SMALL, "activation": "tanh", "code_activation": "sigmoid"}
FAMILIES = {
    "perceptron": lambda: Autoencoder(*mlp(**SMALL)),
    "cross-entropy, summed": lambda: Autoencoder(*mlp(**SMALL), "bce", "sum"),
    "wide enough for oneDNN": lambda: Autoencoder(*mlp(hidden=(1024,), latent_dim=32)),
    "sparse": lambda: SparseAutoencoder(*mlp(**SMOOTH), 0.1, "kl", 0.1),
    "dictionary": lambda: SparseAutoencoder(*dictionary(latent_dim=32), 0.1),
    "denoising": lambda: DenoisingAutoencoder(*mlp(**SMALL), gaussian(0.3)),
    "salt and pepper": lambda: DenoisingAutoencoder(*mlp(**SMALL), salt_and_pepper(0.3)),
    "contractive, closed form": lambda: ContractiveAutoencoder(*tied(latent_dim=16), 0.1, "closed"),
    "contractive, estimated": lambda: ContractiveAutoencoder(*mlp(**SMOOTH), 0.1, "hutchinson"),
    "stacked": lambda: Autoencoder(*dense_stack()),
    "convolutional, normalised": lambda: Autoencoder(*conv_stack(channels=(4, 8), batch_norm=True)),
    "dropout": lambda: Autoencoder(nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(784, 8)), mlp(**{**SMALL, "latent_dim": 8})[1]),
}


@pytest.fixture(scope="module")
def digits():
    return load("mnist5k", limit=150)


def build(make):
    with seeded(0):
        return make()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_replayed_training_is_the_written_one_up_to_rounding(digits, name):
    models = [build(FAMILIES[name]) for _ in range(2)]
    call = {"epochs": 2, "batch_size": 64, **QUIET}  # batches of 64, 64 and 22
    written, replayed = (fit(m, digits, replay=way, **call) for m, way in zip(models, (False, None)))
    assert repeats_itself(models[1])
    assert replayed["loss"] == pytest.approx(written["loss"], rel=1e-4)
    for (key, p), q in zip(models[0].state_dict().items(), models[1].state_dict().values()):
        assert_close(q, p, atol=1e-4, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_recorded(digits, name):
    model, x = build(FAMILIES[name]).train(), digits.pixels()[:64]
    parameters = list(model.parameters())

    def gradients(x):
        loss = torch.stack(list(model.loss_terms(Batch(x)).values())).sum()
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    state, before = [t.clone() for t in model.state_dict().values()], torch.get_rng_state()
    replay = record(gradients, [x], model.buffers())
    assert all(map(torch.equal, state, model.state_dict().values())) and torch.equal(before, torch.get_rng_state())
    for images in (x, digits.pixels()[64:128]):  # a slice: another place in memory
        torch.manual_seed(3)
        expected = [t.clone() for t in gradients(images)]
        torch.manual_seed(3)
        for got, wanted in zip(replay(images), expected, strict=True):
            assert_close(got, wanted, atol=1e-6 + 1e-4 * wanted.abs().max().item(), rtol=1e-3)


def test_products_too_small_for_onednn_leave_every_bit(digits):
    models = [build(FAMILIES["denoising"]) for _ in range(2)]
    for model, way in zip(models, (False, True)):
        fit(model, digits, epochs=3, batch_size=32, replay=way, **QUIET)
    assert all(map(torch.equal, models[0].state_dict().values(), models[1].state_dict().values()))


def test_resuming_is_bit_for_bit_where_steps_are_replayed(digits, tmp_path):
    whole, broken = (build(FAMILIES["wide enough for oneDNN"]) for _ in range(2))

    def stop(row):
        if row["epoch"] == 2:
            raise OSError

    with pytest.raises(OSError):
        fit(broken, digits, epochs=4, batch_size=64, device="cpu", checkpoint=tmp_path / "c", progress=stop)
    history = fit(whole, digits, epochs=4, batch_size=64, **QUIET)
    again = build(FAMILIES["wide enough for oneDNN"])
    assert fit(again, digits, epochs=4, batch_size=64, checkpoint=tmp_path / "c", **QUIET)["loss"] == history["loss"]
    assert all(map(torch.equal, whole.state_dict().values(), again.state_dict().values()))


def test_a_schedule_reaches_a_replayed_optimizer(digits):
    models, rates = [build(FAMILIES["perceptron"]) for _ in range(2)], {0: 1.0, 1: 0.1, 2: 1.0}
    for model, way in zip(models, (False, True)):
        fit(model, digits, epochs=4, batch_size=32, schedule=lambda e: rates.get(e, 0.5), replay=way, **QUIET)
    assert all(map(torch.equal, models[0].state_dict().values(), models[1].state_dict().values()))


class Decays(Autoencoder):
    "Its weight falls with a count of Python's: no two steps are alike."

    steps = 0

    def loss_terms(self, batch, phase="main"):
        self.steps += 1
        return {"weighted": super().loss_terms(batch)["reconstruction"] * (1 / self.steps)}


def test_a_parameter_that_the_loss_does_not_reach_stays_as_it_is(digits):
    with seeded(0):
        model, other = (Autoencoder(*mlp(hidden=(24,), latent_dim=8)) for _ in range(2))
    other.load_state_dict(model.state_dict())
    for m, replay in ((model, True), (other, False)):
        m.encoder.unused = nn.Linear(2, 2)
        with torch.no_grad():
            m.encoder.unused.weight.fill_(0.5)
        m.encoder.forward = nn.Sequential(*list(m.encoder)[:-1]).forward  # all but the last, which nothing reads
        fit(m, digits, epochs=2, batch_size=64, device="cpu", progress=False, replay=replay)
        assert (m.encoder.unused.weight == 0.5).all()
    assert_close(model.decoder[0].weight, other.decoder[0].weight)


def test_what_is_not_known_is_not_replayed_and_what_counts_is_noticed(digits, monkeypatch):
    assert not repeats_itself(build(lambda: Decays(*mlp(**SMALL))))
    hooked = build(FAMILIES["perceptron"])
    hooked.encoder[1].register_forward_hook(lambda *_: None)
    assert not repeats_itself(hooked)
    # asked for: noticed by the second recording, and trained as written
    histories = [fit(build(lambda: Decays(*mlp(**SMALL))), digits, epochs=1, batch_size=50, replay=way, **QUIET) for way in (False, True)]
    assert histories[0]["loss"][0] > histories[1]["loss"][0] > 0  # the recordings counted as well: a promise that was not kept


COUNT = iter(range(999))


@pytest.mark.parametrize(
    ("f", "said"),
    [
        (lambda x: [x / x.max().item()], "value decides"),
        (lambda x: [x[x > 0.5].sum()], "value decides"),
        (lambda x: [x.nonzero()], "value decides"),
        (lambda x: [x * next(COUNT)], "two recordings differ"),
        (lambda x: [x.sin() if next(COUNT) % 2 else x.cos()], "two recordings differ"),
        (lambda x: [x + torch.tensor(torch.empty(1).uniform_().numpy())], "two recordings differ"),
    ],
)
def test_refusals(f, said):
    with pytest.raises(CannotReplay, match=said):
        record(f, [torch.rand(5, 5)])
    failing = Replayed(f)
    if "two" not in said:
        x = torch.rand(5, 5)
        assert torch.equal(failing(x)[0], f(x)[0]) and isinstance(failing.failed, CannotReplay)


def test_memory_that_is_written_to_and_results_in_lists():
    total = torch.zeros(3)

    def f(x):
        a, b = (2 * x).split(2)
        zeros = torch.zeros(2, 3)
        zeros[0] = a[0]  # written to: not the same in every step
        total.add_(b.sum(0))
        return [zeros + a, b.unbind(0)[1], total]

    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 4, 3, generator=draw)
    replay = record(f, [x], [total])
    assert total.count_nonzero() == 0
    for images in (y, x, y):
        expected = [t.clone() for t in f(images)]
        total.sub_((2 * images)[2:].sum(0))
        for got, wanted in zip(replay(images), expected):
            assert_close(got, wanted)


def test_lines_that_nobody_needs_are_left_out():
    def f(x):
        _ = x.cos().t()
        return [x.sin()]

    x = torch.rand(3, 3)
    with Recorder() as seen:
        out = f(x)
    assert "as_strided" not in write(seen.calls, [x], out).source and " t_" not in write(seen.calls, [x], out).source
