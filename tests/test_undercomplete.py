"Code size: dimension on known manifolds, the sweep's networks, maps that copy, one-number codes that memorise, and bad input."

import math

import pytest
import torch
from torch.testing import assert_close

from ae_course.autoencoder import Autoencoder, load_model, save_model
from ae_course.base import BadArgument
from ae_course.data import DataError, images_from
from ae_course.training import evaluate, fit, seeded
from ae_course.undercomplete import (
    copier,
    distance_to_identity,
    known_manifold,
    local_spectra,
    memorise,
    memory_report,
    mle_dimension,
    nearest,
    neighbours,
    network,
    one_number,
    photographs,
    shuffle_pixels,
    span,
    two_nn_dimension,
)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---- dimension


@pytest.mark.parametrize("kind, dim", [("gaussian", 1), ("gaussian", 3), ("gaussian", 6), ("cube", 2), ("sphere", 2), ("sphere", 5)])
def test_both_estimators_find_known_dimensions(kind, dim):
    for seed in (0, 1):
        distances, _ = neighbours(known_manifold(kind, 1000, dim, 60, seed), 10)
        assert mle_dimension(distances) == pytest.approx(dim, rel=0.12)
        assert two_nn_dimension(distances) == pytest.approx(dim, rel=0.15)


def test_the_estimators_fall_short_in_high_dimension():
    distances, _ = neighbours(known_manifold("gaussian", 1000, 60, 60), 10)
    assert mle_dimension(distances) < 45 and two_nn_dimension(distances) < 45


def test_maximum_likelihood_is_the_formula():
    distances = torch.tensor([[1.0, 2.0, 4.0], [1.0, 3.0, 9.0]], dtype=torch.float64)
    single = [1 / ((math.log(4) + math.log(2)) / 2), 1 / ((math.log(9) + math.log(3)) / 2)]  # (11.1) for each
    assert mle_dimension(distances) == pytest.approx(1 / ((1 / single[0] + 1 / single[1]) / 2))  # (11.2)


def test_two_nn_recovers_the_slope_of_exact_quantiles():
    n, dim = 1000, 7.0
    ratio = (1 - torch.arange(1, n + 1, dtype=torch.float64) / n).clamp(min=1e-9) ** (-1 / dim)  # F(ratio_i) = i / n exactly
    assert two_nn_dimension(torch.stack([torch.ones(n, dtype=torch.float64), ratio], 1)) == pytest.approx(dim, rel=1e-9)


def test_neighbours_are_the_nearest_without_the_point_itself():
    x = uniform(50, 2, 3, 3).double()
    distances, index = neighbours(x, 4)
    full = torch.cdist(x.flatten(1), x.flatten(1)).fill_diagonal_(math.inf)
    assert_close(distances, full.sort(1).values[:, :4])
    assert torch.equal(index.sort(1).values, full.argsort(1)[:, :4].sort(1).values)


def test_shuffling_keeps_each_pixels_values_and_is_seeded():
    x = uniform(30, 1, 4, 5)
    shuffled = shuffle_pixels(x, seed=3)
    assert shuffled.shape == x.shape and not torch.equal(shuffled, x)
    assert torch.equal(shuffled.sort(0).values, x.sort(0).values)
    assert torch.equal(shuffled, shuffle_pixels(x, seed=3)) and not torch.equal(shuffled, shuffle_pixels(x, seed=4))


def test_local_spectra_of_a_plane_need_two_directions_and_of_a_curve_fewer_near_by():
    near, far = local_spectra(known_manifold("gaussian", 300, 2, 20), k=10, anchors=20)
    assert near.shape == far.shape == (10,) and near[1] > 1 - 1e-9 and far[1] > 1 - 1e-9
    angle = 2 * math.pi * uniform(300).double()
    near, far = local_spectra(torch.stack([angle.cos(), angle.sin()], 1), k=10, anchors=20)
    assert near[0] > 0.98 > 0.8 > far[0]


def test_dimension_refuses_what_has_none():
    x = uniform(10, 1, 3, 3)
    with pytest.raises(DataError, match="2 of 11 have an exact twin"):
        neighbours(torch.cat([x, x[:1]]), 3)
    with pytest.raises(DataError, match="at least 21"):
        neighbours(x, 20)
    with pytest.raises(DataError, match="1 hold NaN"):
        neighbours(torch.where(torch.arange(10)[:, None, None, None] == 4, math.nan, x), 3)
    with pytest.raises(DataError, match="int64"):
        neighbours(torch.arange(30).view(10, 3), 3)
    for k in (1, 2.5, True):
        with pytest.raises(BadArgument, match="at least 2"):
            neighbours(x, k)
    with pytest.raises(BadArgument, match="keep"):
        two_nn_dimension(torch.ones(3, 2), keep=1.0)
    with pytest.raises(BadArgument, match="1 to 8"):
        known_manifold("sphere", 10, 9, 9)
    with pytest.raises(BadArgument, match="gaussian"):
        known_manifold("torus", 10, 2)


# ---- code size


@pytest.mark.parametrize("kind", ["slides", "deep", "copier"])
def test_code_sizes(kind):
    build = lambda k: copier(latent_dim=k) if kind == "copier" else network(kind, latent_dim=k)
    for wrong in (-1, 0, 2.5, "8", True, None):
        with pytest.raises(BadArgument, match=r"latent_dim: got .*, expected an integer of at least 1 .*; give a positive"):
            build(wrong)
    assert build(800).encode(uniform(2, 1, 28, 28)).shape == (2, 800)  # above the number of pixels


def test_the_slides_network_is_the_slides(tmp_path):
    with seeded(0):
        model = network("slides", (1, 4, 5), 3)
    (_, down), (up, *_) = model.encoder, model.decoder
    assert down.weight.abs().max() <= 0.01 and up.weight.abs().max() <= 0.01 and not down.bias.any() and not up.bias.any()
    x = uniform(6, 1, 4, 5)
    assert_close(model(x).flatten(1), torch.sigmoid((x.flatten(1) @ down.weight.T) @ up.weight.T))
    save_model(model, tmp_path / "model.safetensors")
    assert torch.equal(load_model(tmp_path / "model.safetensors")(x), model(x))
    with pytest.raises(BadArgument, match="slides, deep"):
        network("wide")


# ---- copying


@pytest.mark.parametrize("latent_dim", [12, 30])
@pytest.mark.parametrize("start", ["identity", "orthogonal"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_identity_by_construction(latent_dim, start, tied):
    model, x = copier((1, 3, 4), latent_dim, start, tied), 5 * uniform(7, 1, 3, 4) - 2
    encoder, decoder = model.matrices
    assert_close(decoder @ encoder, torch.eye(12).double(), atol=1e-6, rtol=0)
    assert_close(model(x), x, atol=1e-5, rtol=0)


def test_tied_weights_are_one_parameter_and_stay_tied():
    free, tied = copier((1, 3, 4), 20, "transposed"), copier((1, 3, 4), 20, "transposed", tied=True)
    count = lambda model: sum(p.numel() for p in model.parameters())
    assert count(free) == 2 * count(tied) == 2 * 12 * 20
    x = uniform(9, 1, 3, 4)
    fit(tied, x, epochs=3, device="cpu", progress=False)
    encoder, decoder = tied.matrices
    assert torch.equal(decoder, encoder.T)
    tied.zero_grad()
    tied.loss_terms(x)["reconstruction"].backward()
    weight = encoder.float().requires_grad_()
    (x.flatten(1) @ weight.T @ weight - x.flatten(1)).square().mean().backward()
    assert_close(tied.encoder[-1].weight.grad, weight.grad)


def test_training_leaves_the_encoder_of_dead_pixels_alone():
    x = uniform(40, 1, 3, 4)
    x[..., 0] = 0
    with seeded(0):
        model = copier((1, 3, 4), 12)
    before = model.matrices[0]
    fit(model, x, epochs=50, batch_size=8, lr=1e-2, device="cpu", progress=False)
    after, dead = model.matrices[0], (x == 0).all(0).flatten()
    assert torch.equal(before[:, dead], after[:, dead]) and not torch.isclose(before[:, ~dead], after[:, ~dead]).any()


def test_starts_and_their_limits():
    with seeded(0):
        small, transposed = copier((1, 3, 4), 6, "small"), copier((1, 3, 4), 6, "transposed")
    assert max(m.abs().max() for m in small.matrices) <= 0.01 and not torch.equal(small.matrices[0], small.matrices[1].T)
    assert torch.equal(transposed.matrices[0], transposed.matrices[1].T)
    projection = (lambda e, d: d @ e)(*copier((1, 3, 4), 6, "orthogonal").matrices)  # fewer codes than pixels: a projector
    assert_close(projection @ projection, projection, atol=1e-6, rtol=0)
    with pytest.raises(BadArgument, match="at least 12"):
        copier((1, 3, 4), 11, "identity")
    with pytest.raises(BadArgument, match="independent"):
        copier((1, 3, 4), 11, "independent", tied=True)


def test_span_and_distance():
    for n in (3, 40):  # fewer images than pixels, and more
        rows = uniform(n, 4).double() @ uniform(4, 12, seed=1).double()
        inside, outside = span(rows.view(n, 1, 3, 4))
        both = torch.cat([inside, outside], 1)
        assert inside.shape[1] == min(n, 4) and both.shape == (12, 12)
        assert_close(both.T @ both, torch.eye(12).double(), atol=1e-9, rtol=0)
        assert (rows @ outside).abs().max() < 1e-9
        projector = inside @ inside.T
        assert distance_to_identity(projector, inside) < 1e-9
        assert distance_to_identity(projector, outside) == pytest.approx(1)
    assert math.isnan(distance_to_identity(torch.eye(12).double(), both[:, :0]))


# ---- memorising


def test_own_images_are_memorised_and_others_answered_with_them():
    for images in (uniform(6, 3, 5, 6), images_from(uniform(6, 8, 8, seed=1))):  # a tensor in colour; Images
        model = memorise(images, width=48, steps=500)
        own = images if isinstance(images, torch.Tensor) else images.pixels()
        other = uniform(50, *own.shape[1:], seed=2)
        report = memory_report(model, images, other)
        assert report["recalled"] == 1 and report["train_mse"] < 0.2 * report["mean_train_mse"]
        assert report["train_mse"] == pytest.approx(evaluate(model, images)["loss"], rel=1e-4)
        assert report["test_mse"] > report["mean_test_mse"] and report["to_table_mse"] < report["test_mse"] / 2
        assert report["table_test_mse"] < report["test_mse"] < 1.2 * report["random_test_mse"]
        assert -1 <= report["rank_correlation"] <= 1 and 0 < report["smallest_gap"] <= 1 / (len(images) - 1)


class Lookup(torch.nn.Module):
    "Answers everything with the image of a table whose mean brightness is nearest."

    def __init__(self, table):
        super().__init__()
        self.table = table

    def encode(self, x):
        return x.mean((1, 2, 3))[:, None]

    def forward(self, x):
        return self.table[torch.cdist(self.encode(x), self.encode(self.table)).argmin(1)]


def test_the_report_on_a_perfect_table():
    table, other = uniform(5, 1, 4, 4), uniform(20, 1, 4, 4, seed=1)
    table = table[table.mean((1, 2, 3)).argsort()]  # codes in the order of the images
    report = memory_report(Lookup(table), table, other)
    assert report["train_mse"] == 0 and report["recalled"] == 1 and report["rank_correlation"] == pytest.approx(1)
    assert report["to_table_mse"] == 0
    pairs = (other[:, None] - table[None]).double().square().mean((2, 3, 4))
    assert report["random_test_mse"] == pytest.approx(pairs.mean().item())
    assert report["table_test_mse"] == pytest.approx(pairs.min(1).values.mean().item())
    assert torch.equal(nearest(other, table)[0], pairs.argmin(1))


def test_equal_codes_have_no_order():
    class Deaf(Lookup):
        def encode(self, x):
            return torch.zeros(len(x), 1)

    table = uniform(4, 1, 4, 4)
    report = memory_report(Deaf(table), table, table)
    assert math.isnan(report["rank_correlation"]) and math.isnan(report["smallest_gap"]) and report["recalled"] == 0.25


def test_the_spread_start_and_the_file(tmp_path):
    with seeded(0):
        model = Autoencoder(*one_number((1, 4, 4), 500))
    first = model.decoder[0]
    bends = -first.bias / first.weight[:, 0]
    assert torch.equal(first.weight.abs(), torch.full((500, 1), 10.0)) and bends.abs().max() <= 2 and bends.abs().median() > 0.8
    save_model(model, tmp_path / "model.safetensors")
    x = uniform(3, 1, 4, 4)
    assert torch.equal(load_model(tmp_path / "model.safetensors")(x), model(x))


def test_the_same_call_gives_the_same_network():
    x = uniform(4, 1, 4, 4)
    first, again, other = (memorise(x, 8, 5, seed=seed)(x) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_memorise_refuses_what_it_cannot_use():
    x = uniform(4, 1, 4, 4)
    for bad, what in (
        (x * 255, "255"), (x - 0.5, r"\[0, 1\]"), (x[:, 0], r"\(N, C, H, W\)"), (x[:1], "at least 2"), (x.int(), "int32"), (x / 0, "NaN"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=what):
            memorise(bad, steps=1)
    with pytest.raises(BadArgument, match="spread, default"):
        memorise(x, steps=1, start="wide")
    with pytest.raises(BadArgument, match="hidden"):
        memorise(x, width=0, steps=1)


def test_photographs_are_seeded_crops():
    crops = photographs(5, (20, 30), seed=1)
    assert crops.shape == (5, 1, 20, 30) and 0 <= crops.min() < crops.max() <= 1
    assert torch.equal(crops, photographs(5, (20, 30), seed=1)) and not torch.equal(crops, photographs(5, (20, 30), seed=2))
    with pytest.raises(BadArgument, match="106"):
        photographs(1, (107, 20))
