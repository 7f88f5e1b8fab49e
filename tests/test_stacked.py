"Stacks of autoencoders: builders, greedy training, fine-tuning from exactly those weights, gradient norms, and bad input."

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from ae_course.autoencoder import Autoencoder, load_model, mlp, register, save_model
from ae_course.base import BadArgument
from ae_course.data import Batch, DataError, Images
from ae_course.stacked import (
    Classifier,
    accuracy,
    conv_stack,
    dense_stack,
    fit_layerwise,
    forward_all,
    glorot,
    gradient_norms,
    layer_of,
    sigmoid_factor,
    weight_layers,
)
from ae_course.training import evaluate, fit, seeded

CPU = {"device": "cpu", "progress": False}


def pictures(n=60, side=8, seed=0):
    "Random images with labels: a bright half, left or right."
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 60, (n, 1, side, side), generator=draw, dtype=torch.uint8)
    y = torch.randint(0, 2, (n,), generator=draw)
    x[y == 1, :, :, : side // 2] += 150
    return Images(x, y)


def model_of(kind, seed=0, loss="mse"):
    "A small autoencoder of blocks: dense sigmoid, dense ReLU with batch normalisation, convolutional, and that with batch normalisation."
    build = {
        "sigmoid": lambda: dense_stack((1, 8, 8), (12, 9, 7), "sigmoid"),
        "relu_bn": lambda: dense_stack((1, 8, 8), (12, 9, 7), "relu", batch_norm=True),
        "conv": lambda: conv_stack((1, 8, 8), (4, 6, 5), "relu"),
        "conv_bn": lambda: conv_stack((1, 8, 8), (4, 6, 5), "relu", batch_norm=True),
    }[kind]
    with seeded(seed):
        return Autoencoder(*build(), reconstruction=loss)


KINDS = ["sigmoid", "relu_bn", "conv", "conv_bn"]
equal = lambda a, b: all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ---------------------------------------------------------------- builders


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 12)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_shapes_and_parameters(shape, batch_norm):
    encoder, decoder = dense_stack(shape, (10, 6), "relu", batch_norm)
    x, d = torch.rand(5, *shape), math.prod(shape)
    assert encoder(x).shape == (5, 6) and decoder(encoder(x)).shape == x.shape
    per_unit = 2 if batch_norm else 1
    count = d * 10 + 10 * per_unit + 10 * 6 + 6 * per_unit + 6 * 10 + 10 * per_unit + 10 * d + d
    assert sum(p.numel() for half in (encoder, decoder) for p in half.parameters()) == count
    encoder, decoder = conv_stack(shape, (4, 6), "relu", batch_norm)
    assert encoder(x).shape == (5, 6, shape[1] // 4, shape[2] // 4) and decoder(encoder(x)).shape == x.shape
    count = 16 * 4 * (shape[0] + 6) * 2 + per_unit * (4 + 6 + 4) + shape[0]
    assert sum(p.numel() for half in (encoder, decoder) for p in half.parameters()) == count


@pytest.mark.parametrize("kind", KINDS)
def test_each_pair_of_blocks_is_an_autoencoder_of_what_lies_below(kind):
    model, h = model_of(kind).eval(), torch.rand(4, 1, 8, 8)
    wanted = model.encode(h)
    for i in range(3):
        layer = layer_of(model, i).eval()
        assert layer(h).shape == h.shape and layer.encoder is model.encoder[i] and layer.decoder is model.decoder[2 - i]
        h = layer.encode(h)
    assert torch.equal(h, wanted)


def test_activations_end_the_blocks():
    x = torch.rand(30, 1, 8, 8)
    for kind in ("relu_bn", "conv"):
        model = model_of(kind)
        assert model.encode(x).min() == 0 and model(x).min() > 0 and model(x).max() < 1
    encoder, decoder = dense_stack((1, 8, 8), (5,), "tanh", output="linear")
    assert encoder(x).abs().max() < 1 and decoder(encoder(x)).min() < 0


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path):
    model, x = model_of(kind), torch.rand(6, 1, 8, 8)
    fit_layerwise(model, x, epochs=1, batch_size=3, **CPU)
    save_model(model, tmp_path / "stack.safetensors")
    assert torch.equal(load_model(tmp_path / "stack.safetensors")(x), model.eval()(x))


# ---------------------------------------------------------------- greedy training


@pytest.mark.parametrize("kind", KINDS)
def test_the_stack_is_its_layers_trained_one_by_one(kind):
    data, stack, by_hand = pictures(), model_of(kind), model_of(kind)
    histories = fit_layerwise(stack, data, epochs=2, batch_size=20, seed=3, **CPU)
    x = data.pixels()
    for i in range(3):
        history = fit(Autoencoder(by_hand.encoder[i], by_hand.decoder[2 - i]), x, epochs=2, batch_size=20, seed=3, **CPU)
        assert history["loss"] == histories[i]["loss"]
        x = by_hand.encoder[i](x).detach()  # fit leaves it in eval mode
    assert equal(stack, by_hand)
    assert torch.equal(forward_all(stack.encoder, data.pixels(), batch_size=60), x)


def test_one_layer_trains_alone():
    model, x = model_of("relu_bn"), pictures().pixels()
    before = copy.deepcopy(model.state_dict())
    fit(layer_of(model, 1), forward_all(model.encoder[0], x), epochs=1, batch_size=20, **CPU)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("encoder.1.", "decoder.1.")) for name in changed)


def test_layers_keep_family_and_settings():
    @register
    class HalvingAutoencoder(Autoencoder):
        "Shows half of each value."

        def __init__(self, encoder, decoder, share=0.5, reduction="mean"):
            super().__init__(encoder, decoder, "mse", reduction)
            self.share = share

        def corrupt(self, x):
            return self.share * x

    model = HalvingAutoencoder(*dense_stack((1, 8, 8), (12, 9)), share=0.25, reduction="sum")
    layer, x = layer_of(model, 1), torch.rand(7, 12)
    assert type(layer) is HalvingAutoencoder and layer.share == 0.25
    wanted = (layer(0.25 * x) - x).square().sum(1).mean()
    assert_close(layer.train().loss_terms(x)["reconstruction"], wanted)
    seen = []
    model.encoder[1].register_forward_pre_hook(lambda block, arguments: seen.append((block.training, arguments[0].clone())))
    fit_layerwise(model, pictures(), epochs=1, batch_size=None, **CPU)
    clean = forward_all(model.encoder[0], pictures().pixels())
    assert_close(seen[0][1].sort(0).values, 0.25 * clean.sort(0).values)  # codes are passed up clean, and spoilt for the layer alone
    assert torch.equal(seen[-1][1], clean) and not seen[-1][0]


def test_losses_fall_and_progress_counts_over_layers(tmp_path):
    told, data = [], pictures(100)
    model, again = (model_of("sigmoid", loss="bce") for _ in range(2))
    options = {"epochs": 6, "batch_size": 20, "lr": 0.01, "device": "cpu", "checkpoint": tmp_path / "kept.safetensors"}
    histories = fit_layerwise(model, data, progress=told.append, **options)
    assert all(h["loss"][-1] < h["loss"][0] for h in histories)
    assert [row["epoch"] for row in told] == list(range(1, 19)) and {row["epochs"] for row in told} == {18}
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"kept-layer{i}.safetensors" for i in (1, 2, 3)]
    fit_layerwise(again, data, progress=False, **options)  # nothing is left to do: the layers are loaded
    assert equal(model, again)


def test_no_layers_no_stack():
    with pytest.raises(BadArgument, match="chains of as many blocks"):
        fit_layerwise(Autoencoder(*mlp((1, 8, 8), hidden=(5,), latent_dim=3)), pictures(), epochs=1, **CPU)

    class Unregistered(Autoencoder):
        pass

    with pytest.raises(BadArgument, match="Unregistered, which is no registered family"):
        layer_of(Unregistered(*dense_stack((1, 8, 8), (4,))), 0)
    model = model_of("relu_bn", loss="bce")
    torch.nn.init.constant_(model.encoder[0][2].weight, 30.0)
    with pytest.raises(DataError, match="cross-entropy"):  # codes of ReLU units are not in [0, 1]
        fit_layerwise(model, pictures(), epochs=1, batch_size=20, **CPU)


# ---------------------------------------------------------------- the classifier


def test_classifier_begins_from_the_stack_and_learns():
    data, stack = pictures(200), model_of("relu_bn")
    fit_layerwise(stack, data, epochs=2, batch_size=20, **CPU)
    model = Classifier(copy.deepcopy(stack.encoder), 7, classes=2)
    assert equal(model.encoder, stack.encoder)
    x = data.pixels()
    assert_close(model.eval()(x), model.head(stack.eval().encode(x)))
    wanted = -torch.log_softmax(model(x), 1)[torch.arange(200), data.y].mean()
    assert_close(evaluate(model, data, batch_size=30)["cross_entropy"], wanted.item(), rtol=1e-5, atol=0)
    fit(model, data, epochs=10, batch_size=20, **CPU)
    assert accuracy(model, data) > 0.95 and not equal(model.encoder, stack.encoder)


@pytest.mark.parametrize("kind", ["relu_bn", "conv_bn"])
@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_frozen_blocks_stay_bit_for_bit(kind, frozen):
    model = Classifier(model_of(kind).encoder, 7 if kind == "relu_bn" else 5, classes=2, frozen=frozen)
    before = copy.deepcopy(model.state_dict())
    fit(model, pictures(), epochs=1, batch_size=20, **CPU)
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same == {name for name in before if name.startswith(tuple(f"encoder.{i}." for i in range(frozen)) or ("nothing",))}


def test_accuracy_counts():
    class Fixed(torch.nn.Linear):
        def forward(self, x):
            return x.flatten(1)[:, :3]

    x = torch.zeros(4, 1, 1, 3, dtype=torch.uint8)
    x[[0, 1, 2, 3], 0, 0, [0, 2, 2, 1]] = 255
    assert accuracy(Fixed(1, 1), Images(x, torch.tensor([0, 2, 1, 1]))) == 0.75


def test_labels_are_asked_for():
    data = pictures()
    unlabelled = Images(data.x, None)
    model = Classifier(model_of("sigmoid").encoder, 7, classes=2)
    with pytest.raises(DataError, match="labels"):
        fit(model, unlabelled, epochs=1, **CPU)
    with pytest.raises(DataError, match="labels"):
        accuracy(model, unlabelled)


# ---------------------------------------------------------------- gradients


def deltas(layers, x, y):
    "Norms of the gradients of a sigmoid network's weights for one image, and of the deltas (31.3), by hand, from below."
    h = [x.flatten()]
    for layer in layers[:-1]:
        h.append(torch.sigmoid(layer.weight @ h[-1] + layer.bias))
    delta = [torch.softmax(layers[-1].weight @ h[-1] + layers[-1].bias, 0) - F.one_hot(y[0], layers[-1].out_features)]
    for i in range(len(layers) - 2, -1, -1):
        delta.insert(0, (layers[i + 1].weight.T @ delta[0]) * h[i + 1] * (1 - h[i + 1]))
    return torch.stack([d.norm() * value.norm() for d, value in zip(delta, h)]), torch.stack([d.norm() for d in delta])


@pytest.mark.parametrize("widths", [(5,), (12, 9, 7), (6, 30, 6, 3, 8)])
@pytest.mark.parametrize("gain", [1.0, 20.0])
def test_gradient_norms_by_hand_and_their_bound(widths, gain):
    with seeded(len(widths)):
        model = glorot(Classifier(dense_stack((1, 4, 4), widths)[0], widths[-1], classes=3), gain).double()
    x, y = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.tensor([2])
    layers = weight_layers(model)
    wanted, norms = deltas(layers, x, y)
    assert_close(gradient_norms(model, Batch(x, y)), wanted.detach(), rtol=1e-9, atol=0)
    for below, above, layer in zip(norms[:-1], norms[1:], layers[1:]):
        assert below <= torch.linalg.matrix_norm(layer.weight, 2) / 4 * above  # (31.4)


def test_gradient_norms_leave_the_model_alone():
    model = Classifier(model_of("conv_bn").encoder, 5, classes=2, frozen=1).eval()
    before, data = copy.deepcopy(model.state_dict()), pictures()
    norms = gradient_norms(model, Batch(data.pixels(), data.y))
    assert norms.shape == (4,) and (norms > 0).all() and not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not next(model.encoder[0].parameters()).requires_grad


@pytest.mark.parametrize("vn", [1 / 3, 1.0, 16.0])
def test_factor_of_a_random_sigmoid_layer(vn):
    with seeded(0):
        model = glorot(Classifier(dense_stack((1, 8, 8), (300,) * 7)[0], 300), math.sqrt(vn))
    norms = gradient_norms(model, Batch(torch.rand(1, 1, 8, 8), torch.tensor([1])))
    assert_close((norms[2:-2] / norms[3:-1]).log().mean().exp().item(), sigmoid_factor(vn), rtol=0.1, atol=0)


def test_factor_in_its_limits():
    assert math.isclose(sigmoid_factor(1e-6), 1e-3 / 4, rel_tol=1e-5)
    draw = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = 0.25
    for _ in range(30):
        h = torch.sigmoid(draw * math.sqrt(16 * q))
        q = h.square().mean()
    assert_close(sigmoid_factor(16.0), math.sqrt(16 * (h * (1 - h)).square().mean()), rtol=5e-3, atol=0)


def test_glorot_scale():
    encoder = glorot(dense_stack((1, 20, 20), (300, 200))[0], gain=2.0)
    for layer in weight_layers(encoder):
        bound = 2 * math.sqrt(6 / sum(layer.weight.shape))
        assert 0.99 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()
        assert_close(layer.weight.var().item(), bound**2 / 3, rtol=0.03, atol=0)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: dense_stack(widths=()), "widths: got none"),
        (lambda: dense_stack(widths=(4, 0)), "widths: got 0"),
        (lambda: dense_stack(widths=(4, 2.5)), "widths: got 2.5"),
        (lambda: dense_stack(shape=(1, 0, 8)), "shape: got 0"),
        (lambda: dense_stack(activation="sigmoidal"), "activation: got 'sigmoidal'"),
        (lambda: dense_stack(output="clip"), "output: got 'clip'"),
        (lambda: conv_stack(channels=(8, -1)), "channels: got -1"),
        (lambda: conv_stack(channels=()), "channels: got none"),
        (lambda: conv_stack((1, 28, 28), (8, 16, 32)), r"shape: got \(1, 28, 28\) for 3 blocks.* divisible by 8"),
        (lambda: conv_stack((28, 28), (8,)), "expected \\(C, H, W\\)"),
        (lambda: conv_stack((1, 0, 28), (8,)), "shape: got 0"),
        (lambda: Classifier(dense_stack(widths=(4, 3))[0], 3, frozen=3), "frozen: got 3, expected an integer from 0 to 2"),
        (lambda: Classifier(dense_stack(widths=(4, 3))[0], 3, frozen=True), "frozen: got True"),
        (lambda: Classifier(dense_stack(widths=(4, 3))[0], 0), "features: got 0"),
        (lambda: Classifier(dense_stack(widths=(4, 3))[0], 3, classes=0), "classes: got 0"),
    ],
)
def test_bad_arguments(call, said):
    with pytest.raises(BadArgument, match=said):
        call()
