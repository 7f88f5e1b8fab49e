"The adversarial game: formulas against closed forms and autograd, phases, labels, coverage, faults."

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from ae_course.adversarial import ALI, GAN, Discriminator, DiscriminatorWins, adversarial_networks, coverage, labelled, varied, watched
from ae_course.autoencoder import load_model, mlp, save_model
from ae_course.base import BadArgument
from ae_course.data import DataError, Images, load
from ae_course.training import Diverged, evaluate, fit, seeded


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def built(kind=ALI, shape=(6,), seed=0, width=8, latent_dim=3, labels=0, **options):
    with seeded(seed):
        return kind(*adversarial_networks(shape, width, latent_dim, labels), width=width, hidden=10, **options)


def trained(model, data, **options):
    return fit(model, data, **{"epochs": 1, "batch_size": 8, "device": "cpu", "progress": False} | options)


def byte_images(n=20, seed=0, **more):
    return Images((255 * uniform(n, 1, 8, 8, seed=seed)).byte(), **more)


# ---------------------------------------------------------------- the game's formulas


def drawn(model, x, labels=None):
    "The pairs that the discriminator's phase draws after `torch.manual_seed(0)`."
    torch.manual_seed(0)
    with torch.no_grad():
        z_hat = model.posterior(x, labels).rsample()[0] if model.pairs else None
        z = torch.randn(len(x), model.latent_dim, dtype=x.dtype)
        return (x, z_hat), (model.decode(z, labels), z if model.pairs else None)


@pytest.mark.parametrize("labels", [0, 2])
@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize("kind", [ALI, GAN])
def test_terms_are_cross_entropies(kind, spectral, labels):
    "Against PyTorch's cross-entropy with logits: real pairs are class 1, made ones class 0; the generator's labels are turned."
    model, x = built(kind, labels=labels, spectral=spectral, r1=0.0).double().eval(), uniform(7, 6)  # eval: the power method stands still
    y = uniform(7, labels, seed=1) if labels else None
    real, made = drawn(model, x, y)
    loss = lambda pair, target: F.binary_cross_entropy_with_logits(model.discriminator(*pair, y), torch.full((7,), target).double())
    batch = type("", (), {"x": x, "extras": {"labels": y} if labels else {}})()
    torch.manual_seed(0)
    terms = model.loss_terms(batch, "discriminator")
    assert list(terms) == ["real", "made"]
    assert_close(terms["real"], loss(real, 1.0)), assert_close(terms["made"], loss(made, 0.0))
    torch.manual_seed(0)  # the generator draws its codes first
    made = model.decode(z := torch.randn(7, 3, dtype=x.dtype), y), z if model.pairs else None
    real = (x, model.posterior(x, y).rsample()[0]) if model.pairs else None
    torch.manual_seed(0)
    terms = model.loss_terms(batch, "generator")
    assert_close(terms["decoder"], loss(made, 1.0))
    assert "encoder" not in terms if kind is GAN else torch.isclose(terms["encoder"], loss(real, 0.0))


@pytest.mark.parametrize("kind", [ALI, GAN])
def test_slope_of_a_quadratic(kind):
    "A discriminator x A x / 2 + z B z / 2 has the gradients A x and B z."
    model, x = built(kind, r1=3.0).double(), uniform(9, 6)
    a, b = (m @ m.T for m in (uniform(6, 6, seed=2), uniform(3, 3, seed=3)))

    class Quadratic(nn.Module):
        def forward(self, x, z=None, labels=None):
            value = 0.5 * (x @ a * x).sum(1)
            return value if z is None else value + 0.5 * (z @ b * z).sum(1)

    model.discriminator = Quadratic()
    (_, z), _ = drawn(model, x)
    wanted = (x @ a).square().sum(1) + (0 if z is None else (z @ b).square().sum(1))
    torch.manual_seed(0)
    assert_close(model.loss_terms(x, "discriminator")["slope"], 1.5 * wanted.mean())


def test_slope_reaches_the_discriminator():
    "Its gradient with respect to the weights, against finite differences."
    model, x = built(r1=2.0, spectral=False, shape=(4,)).double(), uniform(5, 4)
    weight = model.discriminator.both[0].weight

    def slope():
        torch.manual_seed(0)
        return model.loss_terms(x, "discriminator")["slope"]

    exact = torch.autograd.grad(slope(), weight)[0]
    for i, j in ((0, 0), (3, 5), (9, 17)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[i, j] += step
            values.append(slope().item())
            with torch.no_grad():
                weight[i, j] -= step
        assert math.isclose(exact[i, j].item(), (values[0] - values[1]) / 2e-5, rel_tol=1e-4, abs_tol=1e-8)


def test_spectral_norm_bounds_every_layer():
    with seeded(0):
        judge = Discriminator((1, 8, 8), 4, 10, 3, 2, True)
    x, z, y = uniform(3, 1, 8, 8).float(), uniform(3, 3).float(), torch.eye(2)[[0, 1, 1]]
    for _ in range(400):
        judge(x, z, y)
    layers = [m for m in judge.eval().modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers) == 8
    for layer in layers:
        assert abs(torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() - 1) < 1e-3


def test_labels_act_on_all_three_networks():
    model, x, z = built(labels=2, shape=(1, 8, 8)).double(), uniform(4, 1, 8, 8), uniform(4, 3)
    first, second = (torch.eye(2, dtype=torch.float64)[[i] * 4] for i in (0, 1))
    for call in (lambda y: model.encode(x, y), lambda y: model.decode(z, y), lambda y: model.discriminator(x, z, y), lambda y: model(x, y)):
        a, b, between = call(first), call(second), call(first / 2 + second / 2)
        assert not torch.allclose(a, b) and between.shape == a.shape
    judged = [model.discriminator.eval()(x, z, y) for y in (first, second, (first + second) / 2)]
    assert_close(judged[2], (judged[0] + judged[1]) / 2)  # linear in the labels


# ---------------------------------------------------------------- phases


@pytest.mark.parametrize("kind", [ALI, GAN])
@pytest.mark.parametrize("moving", ["discriminator", "generator"])
def test_a_phase_leaves_the_other_network_alone(kind, moving, monkeypatch):
    model, x = built(kind, shape=(1, 8, 8), r1=1.0), uniform(16, 1, 8, 8, dtype=torch.float32)
    own = {name: parameters for name, parameters, *_ in model.phases()}
    assert sum(p.numel() for part in own.values() for p in part) == sum(
        p.numel() for name, p in model.named_parameters() if kind is ALI or not name.startswith("encoder"))  # fmt: skip
    monkeypatch.setattr(type(model), "phases", lambda self: [(moving, own[moving], 1, None)])
    before = {id(p): p.detach().clone() for p in model.parameters()}
    trained(model, x)
    for p in model.parameters():
        assert torch.equal(p, before[id(p)]) != any(p is q for q in own[moving])


def test_both_phases_train_and_the_discriminator_has_its_own_rate():
    model, x = built(shape=(1, 8, 8), discriminator_lr=0.0125), uniform(16, 1, 8, 8, dtype=torch.float32)
    rates = []

    def noted(parameters, lr):
        rates.append(lr)
        return torch.optim.Adam(parameters, lr=lr)

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    history = trained(model, x, lr=0.002, optimizer=noted)
    assert rates == [0.0125, 0.002] and all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert {"discriminator/real", "discriminator/made", "generator/decoder", "generator/encoder"} <= set(history.rows[0])


@pytest.mark.parametrize("options", [{}, {"spectral": True, "r1": 0.0}, {"labels": 10}])
def test_replayed_steps_are_the_plain_ones(options):
    found = []
    for replay in (True, False):
        model = built(shape=(1, 8, 8), **options)
        found.append(trained(model, labelled(load("digits", limit=40)), epochs=2, replay=replay))
    for column in ("loss", "discriminator/real", "generator/encoder"):
        assert_close(found[0][column], found[1][column], rtol=1e-4, atol=1e-6)


def test_the_same_seed_trains_the_same_and_a_checkpoint_goes_on(tmp_path):
    x = uniform(20, 6, dtype=torch.float32)
    whole, parts = built(), built()
    trained(whole, x, epochs=3)
    trained(parts, x, epochs=1, checkpoint=tmp_path / "a.safetensors")
    parts = built(seed=5)
    trained(parts, x, epochs=3, checkpoint=tmp_path / "a.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values()))


def test_a_gaussian_is_learned():
    "Rows around (1, -1): the game's samples come near, and the codes of the data come near the prior."
    x = torch.tensor([1.0, -1.0]) + torch.tensor([0.5, 0.2]) * torch.randn(1024, 2, generator=torch.Generator().manual_seed(0))
    with seeded(0):
        model = ALI(*adversarial_networks((2,), 32, 2), width=32, hidden=32, spectral=False, r1=0.2)
    at_start = (model.sample(1000).mean(0) - x.mean(0)).norm()
    with torch.no_grad():
        codes_at_start = model.encode(x).std(0)
    trained(model, x, epochs=25, batch_size=64, lr=2e-3, optimizer=lambda p, lr: torch.optim.Adam(p, lr=lr, betas=(0.5, 0.999)))
    made = model.sample(1000)
    assert (made.mean(0) - x.mean(0)).norm() < 0.25 < at_start and ((made.std(0) / x.std(0)).log().abs() < 0.6).all()
    with torch.no_grad():
        z = model.posterior(x).rsample()[0]
    assert ((z.std(0) - 1).abs() < 0.4).all() and ((codes_at_start - 1).abs() > 0.4).any()


# ---------------------------------------------------------------- samples, files


def test_samples_come_from_their_seed_and_leave_the_global_generator():
    model, state = built(labels=2), torch.get_rng_state()
    y = torch.eye(2)[torch.arange(2100) % 2]
    a = model.sample(2100, y, seed=1)
    assert torch.equal(torch.get_rng_state(), state) and a.shape == (2100, 6) and not a.requires_grad
    assert torch.equal(a, model.sample(2100, y, seed=1)) and not torch.equal(a, model.sample(2100, y, seed=2))
    z = torch.randn(2100, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(a[-3:], model.decode(z[-3:], y[-3:]))


def test_varied_is_every_code_with_every_label():
    model, codes, labels = built(labels=4), torch.randn(3, 3), torch.eye(4)[:2]
    grid = varied(model, codes, labels)
    with torch.no_grad():
        assert_close(grid[2][1], model.decode(codes[2:], labels[1:])[0])
    assert len(grid) == 3 and len(grid[0]) == 2


@pytest.mark.parametrize("kind", [ALI, GAN])
def test_a_saved_model_is_the_same_model(kind, tmp_path):
    model = built(kind, shape=(1, 8, 8), labels=2, r1=0.5, spectral=True, discriminator_lr=0.003)
    save_model(model, tmp_path / "a.safetensors")
    again, y = load_model(tmp_path / "a.safetensors"), torch.eye(2)
    assert type(again) is kind and (again.r1, again.spectral, again.discriminator_lr) == (0.5, True, 0.003)
    assert torch.equal(again.sample(2, y), model.sample(2, y))


def test_evaluate_gives_the_reconstruction_error():
    images = labelled(byte_images(12, y=torch.arange(12) % 3))
    model = built(shape=(1, 8, 8), labels=3)
    with torch.no_grad():
        error = (model(images.pixels(), images.extras["labels"]) - images.pixels()).square().mean().item()
    assert math.isclose(evaluate(model, images)["reconstruction"], error, rel_tol=1e-5)


# ---------------------------------------------------------------- labels, coverage


def test_labels_of_classes_and_of_attributes():
    classes = labelled(byte_images(4, y=torch.tensor([2, 0, 1, 2]), classes=("a", "b", "c", "d")))
    assert classes.extras["labels"].tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    table = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.uint8)
    faces = byte_images(4, extras={"attributes": table}, about={"attributes": ["Young", "Smiling", "Hat"]})
    assert torch.equal(labelled(faces).extras["labels"], table.float())
    chosen = labelled(faces, ["Hat", "Young"])
    assert torch.equal(chosen.extras["labels"], table[:, [2, 0]].float()) and chosen.extras["labels"].dtype == torch.float32
    with pytest.raises(BadArgument, match="got Beard, expected some of Young, Smiling, Hat"):
        labelled(faces, ["Beard"])
    with pytest.raises(BadArgument, match="no attributes"):
        labelled(byte_images(4), ["Beard"])
    for images in (byte_images(4), byte_images(4, y=torch.tensor([0, -1, 1, 0]))):
        with pytest.raises(DataError, match="without"):
            labelled(images)


@pytest.mark.parametrize(("counts", "number", "present"), [((5, 5, 5), 3.0, 3), ((9, 0, 0), 1.0, 1), ((4, 4, 0), 2.0, 2)])
def test_coverage_of_known_shares(counts, number, present):
    found = coverage(torch.arange(3).repeat_interleave(torch.tensor(counts)), 3)
    assert math.isclose(found.number, number) and found.present == present
    assert math.isclose(found.kl, math.log(3) - math.log(number), abs_tol=1e-12)


def test_coverage_against_scipy():
    from scipy.stats import entropy

    y = torch.randint(6, (200,), generator=torch.Generator().manual_seed(0)) ** 2 // 5
    found = coverage(y, 6)
    assert math.isclose(found.kl, entropy(found.shares.numpy(), [1 / 6] * 6), rel_tol=1e-12)
    assert math.isclose(found.number, math.exp(entropy(found.shares.numpy())), rel_tol=1e-12)


@pytest.mark.parametrize("labels", [torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0.0]), torch.zeros(0).long(),
                                    torch.zeros(2, 2).long()])  # fmt: skip
def test_coverage_refuses(labels):
    with pytest.raises(BadArgument, match="labels: got"):
        coverage(labels, 3)


# ---------------------------------------------------------------- faults


def test_a_discriminator_that_wins_stops_the_training(tmp_path):
    "It wins in fact: the generator hardly moves, and images that it cannot make are easily told."
    x, seen = (uniform(64, 1, 8, 8) > 0.5).float(), []
    model = built(shape=(1, 8, 8), r1=0.0, discriminator_lr=0.01)
    with pytest.raises(DiscriminatorWins, match=r"wins outright: its loss was at most .* in the 2 epochs up to (\d+) .*finite, are kept"):
        trained(model, x, epochs=60, lr=1e-6, progress=watched(seen.append, least=0.05, patience=2), checkpoint=tmp_path / "c.safetensors")
    losses = [row["discriminator/real"] + row["discriminator/made"] for row in seen]
    assert max(losses[-2:]) < 0.05 <= losses[-3] and all(p.isfinite().all() for p in model.parameters())
    again = built(seed=3, shape=(1, 8, 8), r1=0.0, discriminator_lr=0.01)
    trained(again, x, epochs=len(seen), lr=1e-6, checkpoint=tmp_path / "c.safetensors")  # the file holds the same weights
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    assert issubclass(DiscriminatorWins, Diverged) and DiscriminatorWins.exit_code == 6


def test_watched_lets_a_tie_go_on():
    told = watched(patience=2, least=0.1)
    for epoch, loss in enumerate((0.01, 1.386, 0.01, 0.2)):
        told({"epoch": epoch, "discriminator/real": loss / 2, "discriminator/made": loss / 2})


def test_a_network_that_diverges_keeps_the_last_finite_weights_and_is_named():
    x, kept = uniform(16, 6, dtype=torch.float32), []
    model = built()

    def snapshot(row):
        kept.append({name: p.detach().clone() for name, p in model.named_parameters()})
        if row["epoch"] == 2:
            model.discriminator_scale = math.inf  # from here on the discriminator's loss is not finite

    judged = model._judged
    model.discriminator_scale = 1.0
    model._judged = lambda pairs, labels: [logits * model.discriminator_scale for logits in judged(pairs, labels)]
    with pytest.raises(Diverged, match="epoch 3, step 1, phase 'discriminator'.*weights of the last finite epoch are kept"):
        trained(model, x, epochs=9, progress=snapshot)
    assert all(torch.equal(p, kept[1][name]) for name, p in model.named_parameters())


def test_a_rate_far_too_high_diverges():
    x = 1e4 * uniform(64, 6, dtype=torch.float32)
    model = built(discriminator_lr=1e30)
    with pytest.raises(Diverged, match="last finite epoch are kept"):
        trained(model, x, epochs=20, optimizer="sgd", lr=1e30)
    assert all(p.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(("options", "said"), [
    ({"shape": (1, 10, 8)}, "divisible by 4"), ({"shape": (8, 8)}, "expected"), ({"width": 0}, "width: got 0"),
    ({"labels": -1}, "labels: got -1"), ({"latent_dim": 0}, "latent_dim: got 0"),
    ({"r1": -1.0}, "r1: got -1"), ({"discriminator_lr": 0.0}, "discriminator_lr: got 0"),
])  # fmt: skip
def test_settings_that_cannot_be(options, said):
    with pytest.raises(BadArgument, match=said):
        built(**options)


def test_networks_labels_and_images_that_do_not_fit():
    with pytest.raises(BadArgument, match="encoder: got one built by mlp"):
        ALI(*mlp())
    with pytest.raises(BadArgument, match="phase: got 'third'"):
        built().loss_terms(uniform(2, 6).float(), "third")
    model, x = built(shape=(1, 8, 8), labels=3), byte_images(8)
    with pytest.raises(DataError, match=r"labels: got none, expected \(8, 3\).*`labelled` makes them"):
        trained(model, x)
    with pytest.raises(DataError, match=r"labels: got \(8, 2\), expected \(8, 3\)"):
        trained(model, labelled(byte_images(8, y=torch.arange(8) % 2)))
    with pytest.raises(DataError, match=r"labels: got \(4, 3\), expected none"):
        built().encode(uniform(4, 6).float(), torch.zeros(4, 3))
    with pytest.raises(DataError, match="for which the network was built"):
        trained(built(shape=(1, 12, 12)), x)
    with pytest.raises(DataError, match=r"got values from 0.* to 1.*, expected \[0, 1\]"):
        trained(built(shape=(1, 8, 8)), 1.5 * uniform(8, 1, 8, 8).float())
