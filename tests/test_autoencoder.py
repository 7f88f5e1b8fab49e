"The base class, its reductions, and files of weights."

import json
import math
import os

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from ae_course.autoencoder import (
    RECONSTRUCTIONS,
    REGISTRY,
    Autoencoder,
    CheckpointError,
    load_model,
    mlp,
    read_tensors,
    register,
    save_model,
    uniform_init,
)
from ae_course.base import BadArgument, write_atomic


def images(n=6, shape=(1, 4, 4), seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def small(latent_dim=3, **kwargs):
    return Autoencoder(*mlp((1, 4, 4), hidden=(8,), latent_dim=latent_dim), **kwargs)


@pytest.mark.parametrize("reconstruction", ["mse", "bce", "gaussian"])
def test_reductions_differ_by_the_number_of_values_and_nothing_else(reconstruction):
    x, mean = images(), small(reconstruction=reconstruction)
    total = Autoencoder(mean.encoder, mean.decoder, reconstruction, "sum")
    assert_close(16 * mean.per_image(mean(x), x), total.per_image(mean(x), x))
    assert_close(mean.loss_terms(x)["reconstruction"], mean.per_image(mean(x), x).mean())


def test_losses_against_torch():
    x, model = images(), small()
    assert_close(model.loss_terms(x)["reconstruction"], F.mse_loss(model(x), x))
    bce = Autoencoder(model.encoder, model.decoder, "bce", "sum")
    assert_close(bce.loss_terms(x)["reconstruction"], F.binary_cross_entropy(model(x), x, reduction="sum") / len(x))
    gauss = Autoencoder(model.encoder, model.decoder, "gaussian", "mean", sigma=0.2)
    assert_close(gauss.loss_terms(x)["reconstruction"], -torch.distributions.Normal(model(x), 0.2).log_prob(x).mean())


def test_a_batch_object_and_a_bare_tensor_give_the_same():
    class Holder:
        x = images()

    model = small()
    assert_close(model.loss_terms(Holder)["reconstruction"], model.loss_terms(images())["reconstruction"])


def test_a_decoder_of_another_shape_is_refused_and_not_broadcast():
    model = Autoencoder(nn.Flatten(), nn.Linear(16, 1))
    with pytest.raises(ValueError, match=r"x_hat has shape \(6, 1\), x has \(6, 1, 4, 4\)"):
        model.loss_terms(images())


def test_cross_entropy_works_under_autocast():
    model = small(reconstruction="bce")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss_terms(images())["reconstruction"]
    assert loss.dtype == torch.float32
    assert_close(loss, model.loss_terms(images())["reconstruction"], rtol=0.02, atol=0)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "3"])
def test_sizes_are_integers_of_at_least_one(wrong):
    with pytest.raises(BadArgument, match="integer of at least 1") as caught:
        mlp(latent_dim=wrong)
    assert caught.value.exit_code == 2


def test_unknown_choices_name_the_allowed_ones():
    with pytest.raises(BadArgument, match="'relu6'.*expected one of .*relu"):
        mlp(activation="relu6")
    with pytest.raises(BadArgument, match="mse, bce, gaussian"):
        small(reconstruction="l1")
    with pytest.raises(BadArgument, match="above 0"):
        small(reconstruction="gaussian", sigma=0)


def test_slides_initialiser():
    encoder, decoder = mlp(hidden=(), latent_dim=5, init=0.01)
    weights = torch.cat([encoder[1].weight.flatten(), decoder[0].weight.flatten()])
    assert weights.abs().max() <= 0.01 and weights.abs().mean().item() == pytest.approx(0.005, rel=0.05)  # E|U(-a, a)| = a/2
    assert not encoder[1].bias.any() and not decoder[0].bias.any()
    assert uniform_init(nn.Conv2d(1, 2, 3), 0.5).weight.abs().max() > 0.1


def test_overcomplete_code_is_allowed():
    assert small(latent_dim=100)(images()).shape == (6, 1, 4, 4)


def test_saved_and_loaded_models_agree(tmp_path):
    model = small(reconstruction="gaussian", reduction="sum", sigma=0.3)
    save_model(model, tmp_path / "sub" / "model.safetensors")
    again = load_model(tmp_path / "sub" / "model.safetensors")
    assert (again.reconstruction, again.reduction, again.sigma) == ("gaussian", "sum", 0.3) and not again.training
    assert torch.equal(model(images()), again(images()))
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["model.safetensors"]


def test_a_network_of_ones_own_needs_model(tmp_path):
    def build():
        return Autoencoder(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), nn.Sequential(nn.Linear(2, 16), nn.Unflatten(1, (1, 4, 4))))

    model, file = build(), tmp_path / "own.safetensors"
    save_model(model, file)
    with pytest.raises(CheckpointError, match="pass model="):
        load_model(file)
    assert torch.equal(load_model(file, model=build())(images()), model(images()))


def test_another_architecture_is_refused_and_the_model_untouched(tmp_path):
    file, other = tmp_path / "model.safetensors", small(latent_dim=4)
    save_model(small(latent_dim=3), file)
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(CheckpointError, match=r"shape: .*file \(3, 8\), model \(4, 8\)") as caught:
        load_model(file, model=other)
    assert "'latent_dim': 3" in str(caught.value) and "'latent_dim': 4" in str(caught.value) and caught.value.exit_code == 4
    with pytest.raises(CheckpointError, match="missing: .*unexpected: "):
        load_model(file, model=nn.Linear(2, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters()))


def test_a_pickle_is_refused_and_never_run(tmp_path):
    marker = tmp_path / "it-ran"

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    torch.save({"weights": Bomb()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="pickles"):
        load_model(tmp_path / "model.safetensors")
    assert not marker.exists()


def test_a_file_cannot_name_code_to_import(tmp_path):
    about = {
        "family": "system",
        "module": "os",
        "arguments": {"command": f"touch {tmp_path}/ran"},
        "builder": {"name": "mlp", "arguments": {}},
    }
    save_file({"w": torch.zeros(1)}, tmp_path / "m.safetensors", metadata={"ae_course": json.dumps(about)})
    with pytest.raises(CheckpointError, match="not registered"):
        load_model(tmp_path / "m.safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 4, 40, -8])
def test_truncated_files_are_refused(tmp_path, keep):
    file = tmp_path / "model.safetensors"
    save_model(small(), file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError):
        read_tensors(file)


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    write_atomic(file, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="belongs to"):
        register(type("Autoencoder", (nn.Module,), {"__module__": "elsewhere"}))
    assert REGISTRY["Autoencoder"] is Autoencoder


def test_the_lines_of_a_lesson_and_of_its_module_are_the_same_thing_and_other_lines_are_not():
    lines = "@register\ndef twice(width: int = 2):\n    'Two.'\n    return nn.Linear(width, 1), nn.Linear(1, {})"
    spaces = [{"__name__": name, "register": register, "nn": nn} for name in ("__main__", "a.module", "other")]
    try:
        exec(lines.format("width"), spaces[0])
        exec("import math\n" + lines.format("width"), spaces[1])
        with pytest.raises(ValueError, match="'twice' belongs to a.module"):
            exec(lines.format(3), spaces[2])
    finally:
        del REGISTRY["twice"]


def test_cross_entropy_hands_nan_on_and_stays_as_it_is_elsewhere():
    x_hat = torch.tensor([0.2, math.nan, 1.0], requires_grad=True)
    x = torch.tensor([1.0, 0.5, 1.0])
    error = RECONSTRUCTIONS["bce"](x_hat, x)
    assert error.isnan().tolist() == [False, True, False]
    plain = x_hat[::2].detach().clone().requires_grad_()
    torch.nn.functional.binary_cross_entropy(plain, x[::2], reduction="sum").backward()
    error[::2].sum().backward()
    assert torch.equal(error[::2], torch.nn.functional.binary_cross_entropy(x_hat[::2], x[::2], reduction="none"))
    assert torch.equal(x_hat.grad[::2], plain.grad)
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        RECONSTRUCTIONS["bce"](torch.tensor([1.5]), torch.tensor([1.0]))
