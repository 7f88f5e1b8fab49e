"Convolutional networks: sizes and costs against PyTorch, the adjoint, the builder and what it refuses, shifts, checkerboards, filters."

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from ae_course.autoencoder import Autoencoder, load_model, save_model
from ae_course.base import BadArgument
from ae_course.convolutional import (
    FILTERS,
    best_strength,
    checkerboard,
    conv,
    costs,
    filtered,
    output_size,
    shift_error,
    transposed_size,
)
from ae_course.data import load
from ae_course.denoising import DenoisingAutoencoder, gaussian, once
from ae_course.metrics import psnr
from ae_course.training import evaluate, fit, seeded

WAYS = [(down, up) for down in ("stride", "pool") for up in ("transpose", "upsample")]


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- sizes and costs


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_sizes_against_pytorch(kernel, stride):
    for padding in range(kernel):
        for n in range(max(1, kernel - 2 * padding), 14):
            small = F.conv1d(torch.zeros(1, 1, n), torch.zeros(1, 1, kernel), stride=stride, padding=padding).shape[-1]
            assert small == output_size(n, kernel, stride, padding)
            remainder = (n + 2 * padding - kernel) % stride
            assert transposed_size(small, kernel, stride, padding, remainder) == n
            if small > 1 or n > 1:
                big = F.conv_transpose1d(torch.zeros(1, 1, small), torch.zeros(1, 1, kernel), stride=stride, padding=padding,
                                         output_padding=remainder)  # fmt: skip
                assert big.shape[-1] == n
    with pytest.raises(BadArgument, match="size: got 0 pixels"):
        output_size(0, kernel, stride)


def test_costs_by_hand():
    encoder, decoder = conv((1, 28, 28), (24, 32), kernel=4)
    assert [row.parameters for row in costs(encoder, (1, 28, 28))] == [24 * (16 + 1), 32 * (24 * 16 + 1)]
    assert [row.macs for row in costs(encoder, (1, 28, 28))] == [24 * 14 * 14 * 16, 32 * 7 * 7 * 24 * 16]
    rows = costs(decoder, (32, 7, 7))
    assert [row.parameters for row in rows] == [24 * 32 * 16 + 24, 24 * 16 + 1]
    assert [row.macs for row in rows] == [32 * 7 * 7 * 24 * 16, 24 * 14 * 14 * 16]  # as the encoder's: the adjoint takes the same products
    assert [row.shape for row in rows] == [(24, 14, 14), (1, 28, 28)]
    assert sum(p.numel() for net in (encoder, decoder) for p in net.parameters()) == 25_425


@pytest.mark.parametrize("latent_dim", [None, 5])
@pytest.mark.parametrize(("down", "up"), WAYS)
def test_costs_against_pytorch(down, up, latent_dim):
    for shape, channels, kernel in (((3, 16, 24), (4, 7), 3), ((1, 8, 8), (5, 3, 2), 4), ((2, 12, 20), (6,), 5)):
        network = nn.Sequential(*conv(shape, channels, latent_dim, down, up, kernel))
        rows = costs(network, shape)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, *shape))
        assert 2 * sum(row.macs for row in rows) == counter.get_total_flops()
        assert sum(row.parameters for row in rows) == sum(p.numel() for p in network.parameters())
        assert not any(layer._forward_hooks for layer in network.modules())


def test_costs_of_other_layers():
    assert costs(nn.Conv2d(2, 3, (1, 4), bias=False), (2, 5, 5))[0].parameters == 24
    assert costs(nn.Flatten(), (2, 5, 5)) == []
    for layer in (nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, groups=2)):
        with pytest.raises(BadArgument, match="expected Linear, Conv2d or ConvTranspose2d"):
            costs(layer.eval(), (2, 5, 5))
        assert not layer._forward_hooks


# ---------------------------------------------------------------- the builder


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
@pytest.mark.parametrize(("down", "up"), WAYS)
def test_shapes(down, up, kernel):
    for shape, channels, code in (((1, 28, 28), (3, 5), (5, 7, 7)), ((3, 8, 24), (2, 3, 4), (4, 1, 3)), ((2, 2, 4), (6,), (6, 1, 2))):
        encoder, decoder = conv(shape, channels, None, down, up, kernel)
        x = rand(2, *shape, dtype=torch.float32)
        z = encoder(x)
        assert z.shape == (2, *code) and decoder(z).shape == x.shape
        encoder, decoder = conv(shape, channels, 9, down, up, kernel)
        assert encoder(x).shape == (2, 9) and decoder(encoder(x)).shape == x.shape


@pytest.mark.parametrize(("arguments", "message"), [
    ({"shape": (1, 30, 28)}, r"30 x 28 pixels for 2 halvings, channels=\(16, 32\).*divisible by 4.*size=32"),
    ({"shape": (1, 28, 27)}, "divisible by 4.*size=28"),
    ({"channels": (8, 8, 8)}, "divisible by 8.*size=32"),
    ({"shape": (1, 2, 2)}, "divisible by 4.*size=4"),
    ({"shape": (28, 28)}, r"expected \(C, H, W\)"),
    ({"channels": ()}, "one number or more"),
    ({"channels": (8, 0)}, "channels: got 0"),
    ({"channels": (8, 2.5)}, "channels: got 2.5"),
    ({"shape": (0, 28, 28)}, "shape: got 0"),
    ({"latent_dim": 0}, "latent_dim: got 0"),
    ({"kernel": 1}, "kernel: got 1, expected at least 2"),
    ({"kernel": 0}, "kernel: got 0"),
    ({"down": "stride2"}, "down: got 'stride2', expected one of stride, pool"),
    ({"up": "bilinear"}, "up: got 'bilinear', expected one of transpose, upsample"),
    ({"activation": "rleu"}, "activation: got 'rleu'"),
    ({"code_activation": "rleu"}, "code_activation: got 'rleu'"),
    ({"output": "clamp"}, "output: got 'clamp'"),
])  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(BadArgument, match=message) as caught:
        conv(**arguments)
    assert caught.value.exit_code == 2


def test_activations_and_start():
    encoder, decoder = conv(code_activation="relu")
    assert isinstance(encoder[-1], nn.ReLU) and isinstance(decoder[-1], nn.Sigmoid)
    encoder, decoder = conv(latent_dim=3, activation="silu", output="linear")
    kinds = [type(layer) for layer in (*encoder, *decoder)]
    assert kinds.count(nn.SiLU) == 4 and isinstance(encoder[-1], nn.Identity) and isinstance(decoder[-1], nn.Identity)
    encoder, decoder = conv(init=0.01)
    for name, p in (*encoder.named_parameters(), *decoder.named_parameters()):
        assert p.abs().max() <= 0.01 and ("bias" not in name or not p.any())


@pytest.mark.parametrize(("down", "up"), WAYS)
def test_saved_and_loaded(tmp_path, down, up):
    model = DenoisingAutoencoder(*conv((1, 8, 12), (3, 4), 5, down, up, 3, code_activation="tanh"), gaussian(0.1)).eval()
    x = rand(3, 1, 8, 12, dtype=torch.float32)
    save_model(model, tmp_path / "model.safetensors")
    assert torch.equal(load_model(tmp_path / "model.safetensors")(x), model(x))


@pytest.mark.parametrize(("down", "up"), WAYS)
def test_training_goes_down(down, up):
    images = load("digits", limit=256)
    with seeded(0):
        model = Autoencoder(*conv((1, 8, 8), (8, 8), None, down, up, 3))
    before = evaluate(model, images)["loss"]
    fit(model, images, epochs=8, batch_size=32, lr=3e-3, device="cpu", progress=False)
    assert evaluate(model, images)["loss"] < 0.6 * before


# ---------------------------------------------------------------- the adjoint


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_the_builders_transposed_convolution_is_the_adjoint_of_its_strided_one(kernel):
    down, up = conv((3, 12, 16), (7,), kernel=kernel)[0][0].double(), conv((3, 12, 16), (7,), kernel=kernel)[1][0].double()
    with torch.no_grad():
        up.weight.copy_(down.weight), up.bias.zero_(), down.bias.zero_()
    x, y = rand(2, 3, 12, 16).requires_grad_(), rand(2, 7, 6, 8, seed=1)
    assert_close((down(x) * y).sum(), (x * up(y)).sum(), rtol=1e-12, atol=0)
    assert_close(torch.autograd.grad((down(x) * y).sum(), x)[0], up(y), rtol=1e-12, atol=1e-12)
    matrix = torch.func.jacrev(down)(torch.zeros(3, 12, 16).double()).reshape(7 * 6 * 8, -1)
    assert_close(up(y).flatten(1), (y.flatten(1) @ matrix), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- shifts


def test_what_follows_a_shift():
    x = torch.zeros(2, 1, 32, 32).double()
    x[:, :, 12:20, 12:20] = rand(2, 1, 8, 8)
    same = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 5, padding=2)).double()
    assert all(shift_error(same, x, n, margin=9) < 1e-12 for n in (1, 2, 3, 5))
    strided = nn.Sequential(*conv((1, 32, 32), (4, 4), kernel=4)).double()
    assert all(shift_error(strided, x, n, margin=12) < 1e-12 for n in (0, 4)) and all(
        shift_error(strided, x, n, margin=8) > 1e-4 for n in (1, 2, 3)
    )
    encoder = strided[0]
    assert shift_error(encoder, x, 4, margin=3) < 1e-12
    with pytest.raises(BadArgument, match="shift: got 2 of 32 pixels.*whole pixels"):
        shift_error(encoder, x, 2)
    with pytest.raises(BadArgument, match="margin: got 4, expected 0 to 3"):
        shift_error(encoder, x, 4, margin=4)
    with pytest.raises(BadArgument, match="expected maps"):
        shift_error(nn.Flatten(), x, 32)


def test_a_known_shift_error():
    place = torch.arange(8.0).expand(1, 1, 8, 8)
    x = torch.ones(1, 1, 8, 8)
    wanted = (place - place.roll(1, -1)).norm() / place.norm()  # a network that answers with the place, whatever it sees
    assert_close(shift_error(lambda x: place, x, 1), wanted.item(), rtol=1e-6, atol=0)


# ---------------------------------------------------------------- checkerboards


@pytest.mark.parametrize("period", [1, 2, 3, 4])
def test_checkerboard_is_the_power_at_the_frequencies_of_the_period(period):
    x = rand(5, 2, 12, 24)
    spectrum = torch.fft.fft2(x).abs().square() / (12 * 24) ** 2
    grid = spectrum[:, :, :: 12 // period, :: 24 // period].sum((2, 3)) - spectrum[:, :, 0, 0]
    assert_close(checkerboard(x, period), grid.mean(1).clamp(min=0).sqrt(), rtol=1e-8, atol=1e-12)


def test_checkerboard_of_known_patterns():
    board = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).double().expand(1, 1, 8, 8)
    assert_close(checkerboard(board), torch.tensor([0.5]).double()) and checkerboard(torch.ones(3, 1, 8, 8)).sum() == 0
    assert_close(checkerboard(0.2 * board + 0.3), torch.tensor([0.1]).double())
    assert checkerboard(torch.linspace(0, 1, 8).expand(1, 1, 8, 8), 8) > checkerboard(torch.linspace(0, 1, 8).expand(1, 1, 8, 8), 2)
    for x, period in ((torch.ones(1, 1, 8, 9), 2), (torch.ones(8, 8), 2), (torch.ones(1, 1, 8, 8), 0)):
        with pytest.raises(BadArgument, match="period"):
            checkerboard(x, period)


def test_up_sampling_draws_no_checkerboard_on_a_plain_code():
    for kernel in (3, 4):
        _, decoder = conv((1, 32, 32), (4, 4), up="upsample", kernel=kernel, output="linear")
        with torch.no_grad():
            assert checkerboard(decoder(torch.ones(1, 4, 8, 8))[..., 8:24, 8:24], 4) < 1e-7  # away from the padding
            _, other = conv((1, 32, 32), (4, 4), up="transpose", kernel=kernel, output="linear")
            assert checkerboard(other(torch.ones(1, 4, 8, 8))[..., 8:24, 8:24], 4) > 1e-4


# ---------------------------------------------------------------- filters


def test_filters_against_their_definitions():
    pytest.importorskip("skimage")
    from scipy.ndimage import median_filter
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

    x = rand(3, 2, 16, 20)
    assert np.array_equal(filtered(x, "median", 3)[1, 1], median_filter(x[1, 1].numpy(), 3, mode="nearest"))
    wanted = denoise_nl_means(x[0, 0].numpy(), patch_size=5, patch_distance=6, h=0.16, sigma=0.2)
    assert np.allclose(filtered(x, "non-local means", 0.2)[0, 0], wanted.clip(0, 1))
    assert np.allclose(filtered(x, "total variation", 0.2)[2, 0], denoise_tv_chambolle(x[2, 0].numpy(), weight=0.2))
    for kind in FILTERS:
        out = filtered((4 * x - 2).float(), kind, 3)
        assert out.shape == x.shape and out.dtype == torch.float32 and out.min() >= 0 and out.max() <= 1
    with pytest.raises(BadArgument, match="kind: got 'mean', expected one of median"):
        filtered(x, "mean", 3)
    for kind, strength in (("median", 2.5), ("median", 0), ("total variation", -1), ("non-local means", float("nan"))):
        with pytest.raises(BadArgument, match="strength: got"):
            filtered(x, kind, strength)


def test_the_best_strength():
    pytest.importorskip("skimage")
    clean = load("mnist5k", limit=20).pixels()
    noisy = once(gaussian(0.2), clean, 0)
    strengths = [0.01, 0.2, 5.0]
    found, score = best_strength(noisy, clean, "total variation", strengths)
    values = [psnr(filtered(noisy, "total variation", s), clean).mean().item() for s in strengths]
    assert found == 0.2 and score == max(values) > psnr(noisy, clean).mean()


def test_what_is_said_without_scikit_image(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "skimage"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match="pip install 'scikit-image"):
        filtered(rand(1, 1, 8, 8), "median", 3)
