"The network of Walking the Tightrope: counts, shapes, options, copying by construction, fits, budgets, and bad input."

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from ae_course.autoencoder import Autoencoder, load_model, save_model
from ae_course.base import BadArgument
from ae_course.bottleneck import (
    FRACTIONS,
    anatomy,
    bottleneck,
    code_channels,
    code_size,
    discs,
    dynamics,
    exponents,
    grid,
    patch_r2,
    refit,
    ridge_r2,
    set_to_copy,
    shapes_table,
)
from ae_course.claims import Terms, rule_contrast
from ae_course.training import History, fit, fit_within, seconds_per_image, seeded

SMALL = {"shape": (3, 16, 16), "size": 4, "channels": 12, "depth": 2}


def model_of(seed=0, **options):
    "A small autoencoder of `bottleneck`."
    with seeded(seed):
        return Autoencoder(*bottleneck(**SMALL | options))


def pictures(n=24, side=16, seed=0):
    "Smooth colour images."
    noise = torch.rand(n, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, scale_factor=4, mode="bilinear").clamp(0, 1)


# ---------------------------------------------------------------- sizes, channels, counts


def test_sizes_and_channels_of_the_paper():
    assert [code_size(96, i) for i in (1, 2, 3)] == [3, 6, 12] and [code_size(128, i) for i in (1, 2, 3)] == [4, 8, 16]
    for side, sizes in ((96, (3, 6, 12)), (128, (4, 8, 16))):
        found = [[code_channels(side, s, c) for c in FRACTIONS] for s in sizes]
        assert found == [[48, 192, 768, 3072], [12, 48, 192, 768], [3, 12, 48, 192]]


def test_configurations_below_one_channel_are_dropped_and_named():
    kept, dropped = grid((3, 96, 96))
    assert len(kept) == 12 and not dropped
    kept, dropped = grid((3, 32, 32), depth=3)
    assert [str(c) for c in kept] == ["4x4x3", "4x4x12", "4x4x48", "4x4x192", "8x8x3", "8x8x12", "8x8x48", "16x16x3", "16x16x12"]
    assert len(dropped) == 3 and "8x8, 0.015625 of the input: 0.75 channels" in dropped


PARAMETERS = [[48.82, 50.82, 58.78, 90.64], [48.33, 48.82, 50.82, 58.78], [48.20, 48.33, 48.82, 50.82]]  # millions
MACS = {96: {"encoder": [(1.09, 1.27), (1.09, 1.27), (3.52, 3.71)], "mirror": [(1.29, 2.04), (1.28, 1.46), (3.57, 3.76)],
             "published": [(1.29, 2.04), (5.08, 5.84), (19.99, 20.74)]},
        128: {"encoder": [(1.93, 2.26), (1.93, 2.26), (6.26, 6.60)], "mirror": [(2.28, 3.62), (2.27, 2.60), (6.35, 6.68)],
              "published": [(2.28, 3.62), (9.04, 10.37), (35.5, 36.9)]}}  # fmt: skip


@pytest.mark.parametrize("side", [96, 128])
def test_counts_of_all_configurations(side):
    "Against counts of an independent rebuild; multiply-accumulates (billions, from 1/64 to 1 of the input) rounded there."
    rows = shapes_table((3, side, side))
    assert len(rows) == 24 and len({row["other_parameters"] for row in rows}) == 1
    for level in (1, 2, 3):
        for decoder in ("mirror", "published"):
            four = [row for row in rows if row["level"] == level and row["decoder"] == decoder]
            assert [round(row["parameters"] / 1e6, 2) for row in four] == PARAMETERS[level - 1]
            for key, wanted in (("encoder_macs", MACS[side]["encoder"]), ("decoder_macs", MACS[side][decoder])):
                low, high = wanted[level - 1]
                assert_close([four[0][key] / 1e9, four[-1][key] / 1e9], [low, high], rtol=0, atol=0.02 if high < 20 else 0.06)
            assert {row["volume_ratio"] for row in four} == {4.0 if level == 3 else 1.0}  # where Eq. 3 of the paper fails
            inner = {"mirror": [1.0, 1.0, 4.0], "published": [1.0, 4.0, 16.0]}[decoder][level - 1]
            assert {row["decoder_volume_ratio"] for row in four} == {inner}


def test_counts_by_hand():
    shape, size, n = (3, 16, 16), 8, 5  # depth 2, second stride lost
    encoder, decoder = bottleneck(shape, size, n, "mirror", depth=2, blocks=1)
    conv = lambda i, o: 9 * i * o + o + 2 * o
    down = [(3, 3, 16), (3, 3, 16), (3, 3, 16), (3, 12, 8), (12, 12, 8), (12, 12, 8), (12, 5, 8)]
    up = [(5, 12, 8), (12, 12, 8), (12, 12, 8), (12, 3, 16), (3, 3, 16), (3, 3, 16), (3, 3, 16)]
    for half, given, plan in ((encoder, shape, down), (decoder, (n, 8, 8), up)):
        found = anatomy(half, given)
        assert [(*layer.shape, layer.parameters, layer.macs) for layer in found] == [
            (o, s, s, conv(i, o), 9 * i * o * s * s) for i, o, s in plan]  # fmt: skip
        assert sum(layer.parameters for layer in found) == sum(p.numel() for p in half.parameters())


@pytest.mark.parametrize("decoder", ["mirror", "published"])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_the_anatomy_is_that_of_a_forward_pass(size, decoder):
    shapes, model = [], model_of(size=size, decoder=decoder)
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        conv.register_forward_hook(lambda conv, given, y: shapes.append(tuple(y.shape[1:])))
    model(pictures(1))
    counted = [*anatomy(model.encoder, (3, 16, 16)), *anatomy(model.decoder, (12, size, size))]
    assert [layer.shape for layer in counted] == shapes


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("decoder", ["mirror", "published"])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_shapes_signs_and_gradients(size, decoder):
    model = model_of(size=size, decoder=decoder)
    x = pictures(3)
    z = model.encode(x)
    assert z.shape == (3, 12, size, size) and z.min() == 0
    assert model.decode(z).shape == x.shape and model(x).min() >= 0
    (model(x) - x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_decoders_coincide_where_no_stride_is_lost_and_differ_elsewhere():
    x = pictures(2)
    for size, same in ((4, True), (8, False)):
        a, b = (model_of(size=size, decoder=d) for d in ("mirror", "published"))
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))  # parameters are the same anyway
        assert torch.equal(a(x), b(x)) is same


def test_every_convolution_is_followed_by_normalisation_and_relu():
    for options, norms, relus in (({}, 0, 0), ({"final_norm": False}, 1, 0), ({"linear_code": True}, 1, 1), ({"norm": False}, None, 0)):
        model = model_of(**options)
        count = lambda kind, model=model: sum(isinstance(m, kind) for m in model.modules())
        convs = count(nn.Conv2d)
        assert count(nn.ReLU) == convs - relus and count(nn.InstanceNorm2d) == (0 if norms is None else convs - norms)
    z = model_of(linear_code=True).encode(pictures())
    assert z.min() < 0
    norm = next(m for m in model_of().modules() if isinstance(m, nn.InstanceNorm2d))
    assert norm.affine and not norm.track_running_stats and norm.eps == 1e-5


def test_normalisation_removes_the_statistics_of_an_image_and_the_bias():
    model, x = model_of().double(), pictures(4).double()
    brighter = 0.4 * x + 0.3  # same image, other brightness and contrast; padding with zeros lets some of it through
    with torch.no_grad():
        inner = lambda t: model.encoder.first[1](F.conv2d(t, model.encoder.first[0].weight))  # no padding, no bias
        assert_close(inner(brighter), inner(x), rtol=0, atol=2e-2)
        before = model(x)
        for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
            conv.bias += 1
        assert_close(model(x), before, rtol=0, atol=1e-9)


def test_published_start():
    encoder, decoder = bottleneck((3, 32, 32), 8, 48, depth=2, init="published")
    weight, bias = encoder.down2[0].weight, torch.cat([m.bias for m in encoder.modules() if isinstance(m, nn.Conv2d)])
    fan = 9 * (weight.shape[0] + weight.shape[1])
    assert abs(weight.std() / math.sqrt(2 / fan) - 1) < 0.05 and 0.6 < bias.std() < 1.4
    assert decoder.last[1].weight.eq(1).all()


def test_width_scales_the_volume_of_every_inner_map():
    for width in (1 / 3, 2):
        shape = (3, 16, 16)
        encoder, _ = bottleneck(shape, 4, 12, depth=2, width=width)
        volumes = [math.prod(layer.shape) for layer in anatomy(encoder, shape)[:-1]]
        assert set(volumes) == {round(width * math.prod(shape))}


@pytest.mark.parametrize("decoder", ["mirror", "published"])
def test_saved_and_loaded(decoder, tmp_path):
    model, x = model_of(size=8, decoder=decoder, width=2.0), pictures(4)
    save_model(model, tmp_path / "m.safetensors")
    assert torch.equal(load_model(tmp_path / "m.safetensors")(x), model.eval()(x))


def test_channels_last_gives_the_same_numbers():
    model, x = model_of(), pictures(4)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert_close(other(x.contiguous(memory_format=torch.channels_last)), model(x), rtol=1e-4, atol=1e-5)


def test_other_devices_give_the_same_numbers():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA here")
    model, x = model_of(), pictures(4)
    assert_close(copy.deepcopy(model).cuda()(x.cuda()).cpu(), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("change, words", [
    ({"shape": (3, 16, 20)}, "H = W"), ({"shape": (16, 16)}, "expected (C, H, W)"), ({"shape": (3, 18, 18)}, "size=20"),
    ({"size": 5}, "one of 4, 8, 16"), ({"depth": 4, "size": 1}, "single value"), ({"depth": 0}, "depth"), ({"channels": 0}, "channels"),
    ({"decoder": "mirrored"}, "mirror, published"), ({"init": "xavier"}, "default, published"), ({"blocks": -1}, "blocks"),
    ({"width": 0.5}, "multiple of 1/3"), ({"width": 0}, "width"),
])  # fmt: skip
def test_bad_arguments_of_the_builder(change, words):
    with pytest.raises(BadArgument) as error:
        bottleneck(**SMALL | change)
    assert words in str(error.value) and "got" in str(error.value)


def test_bad_sizes_and_fractions():
    for call in (lambda: code_size(90, 1), lambda: code_size(96, 0), lambda: code_size(96, 7), lambda: code_channels(48, 12, 1 / 64),
                 lambda: code_channels(96, 3, 0.01), lambda: grid((3, 96, 64))):  # fmt: skip
        with pytest.raises(BadArgument):
            call()
    assert bottleneck((3, 16, 16), 1, 4, depth=4, norm=False)[0](pictures(2)).shape == (2, 4, 1, 1)


# ---------------------------------------------------------------- copying


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("linear_code", [False, True])
def test_the_encoder_can_copy(size, linear_code):
    encoder, _ = bottleneck(**SMALL | {"size": size, "channels": 3 * 256 // size**2, "norm": False, "linear_code": linear_code})
    x, z = pictures(3), set_to_copy(encoder)(pictures(3))
    wanted = x
    for _ in range(int(math.log2(16 // size))):
        wanted = F.pixel_unshuffle(wanted, 2)
    assert torch.equal(z, wanted)
    too_narrow = bottleneck(**SMALL | {"size": size, "channels": 3 * 256 // size**2 - 1, "norm": False})[0]
    with pytest.raises(BadArgument, match="to hold the image"):
        set_to_copy(too_narrow)


def test_ridge_finds_the_pixels_where_they_are_and_not_where_they_are_not():
    x, x_test = pictures(60), pictures(20, seed=1)
    encoder, _ = bottleneck(**SMALL | {"channels": 48, "norm": False})
    with torch.no_grad():
        z, z_test = set_to_copy(encoder)(x), encoder(x_test)
    assert patch_r2(z, x, z_test, x_test) > 0.999 and ridge_r2(z, x, z_test, x_test) > 0.95
    noise = lambda z, seed: torch.rand(z.shape, generator=torch.Generator().manual_seed(seed))
    assert patch_r2(noise(z, 0), x, noise(z_test, 1), x_test) < 0.1 and ridge_r2(noise(z, 0), x, noise(z_test, 1), x_test) < 0.1


def test_refit_trains_one_half_alone():
    model, x = model_of(), pictures()
    before = copy.deepcopy(model.state_dict())
    for half, fresh in (("decoder", True), ("encoder", False)):
        new, history = refit(model, half, x, fresh=fresh, epochs=1, batch_size=8, device="cpu", progress=False)
        changed = {name for name, value in new.state_dict().items() if not torch.equal(value, before[name])}
        assert changed and all(name.startswith(half) for name in changed) and len(history) == 1
        assert all(p.requires_grad for p in new.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(BadArgument, match="encoder, decoder"):
        refit(model, "both", x, epochs=1)
    with pytest.raises(BadArgument, match="fresh=False"):
        refit(Autoencoder(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), "decoder", x, epochs=1)


# ---------------------------------------------------------------- training and its curves


def test_a_budget_of_minutes_gives_a_whole_shorter_training(tmp_path):
    x = pictures()
    options = {"epochs": 6, "batch_size": 8, "device": "cpu", "validation": pictures(8, seed=1)}
    seen = []
    stopped = model_of()
    history, by = fit_within(stopped, x, minutes=1e-9, checkpoint=tmp_path / "a", progress=seen.append, **options)
    assert by == "minutes" and len(history) == 1 == len(seen)
    whole = model_of()
    fit(whole, x, **options | {"epochs": 1, "progress": False})
    assert all(torch.equal(p, q) for p, q in zip(stopped.parameters(), whole.parameters(), strict=True))
    again = model_of()  # started again, it is over at once
    history, by = fit_within(again, x, minutes=1e-9, checkpoint=tmp_path / "a", progress=seen.append, **options)
    assert by == "minutes" and len(history) == 1 and len(seen) == 1
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), whole.parameters(), strict=True))
    history, by = fit_within(again, x, minutes=None, checkpoint=tmp_path / "a", progress=seen.append, **options)  # and goes on with more
    assert by == "epochs" and len(history) == 6


def test_what_curves_say():
    history = History([{"loss": a, "validation_loss": b} for a, b in ((8.0, 9.0), (4.0, 5.0), (2.0, 4.0), (3.0, 4.4), (2.9, 5.0))])
    found = dynamics(history)
    assert found["best_epoch"] == 3 and found["best_test_mse"] == 4.0
    assert_close([found["rise_after_best"], found["late_jump"]], [1.25, 1.5])
    assert dynamics(History(history.rows[:1]))["late_jump"] == 1.0


def test_exponents_are_those_that_made_the_errors_and_the_ledger_agrees():
    draw = torch.Generator().manual_seed(0)
    rows = [{"size": s, "channels": n, "seed": seed, "mse": 3 * s**-0.8 * n**-0.1 * math.exp(0.05 * torch.randn(1, generator=draw).item())}
            for s, n in ((4, 3), (4, 12), (4, 48), (8, 3), (8, 12), (16, 3), (16, 12)) for seed in range(3)]  # fmt: skip
    found = exponents(rows, "mse")
    for interval, wanted in zip(found, (-0.8, -0.1, -0.6)):
        assert interval.low < wanted < interval.high
    ledger = rule_contrast(rows, {"column": "mse", "terms": {"size": 1, "channels": -2}, "at_most": 0}, Terms())
    assert_close(list(found.contrast), [ledger.effect, ledger.low, ledger.high], rtol=1e-9, atol=0)
    for bad in (rows[:9], [row | {"mse": 0.0} for row in rows]):
        with pytest.raises(BadArgument):
            exponents(bad, "mse")


def test_a_step_is_timed_and_the_model_left_alone():
    model, x = model_of(), pictures(4)
    before = copy.deepcopy(model.state_dict())
    assert 0 < seconds_per_image(model, x, steps=1) < 10
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_discs_are_images_and_follow_the_seed():
    x = discs(20, 12, seed=3)
    assert x.shape == (20, 3, 12, 12) and x.min() >= 0 and x.max() <= 1 and torch.equal(x, discs(20, 12, seed=3))
    assert not torch.equal(x, discs(20, 12, seed=4)) and (x != 0.15).any(1).flatten(1).any(1).all()


def test_training_goes_down():
    model, x = model_of(channels=48), pictures()
    history = fit(model, x, epochs=15, batch_size=8, lr=3e-3, device="cpu", progress=False)
    assert history["loss"][-1] < 0.5 * history["loss"][0]
