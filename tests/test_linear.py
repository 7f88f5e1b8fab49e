"The linear autoencoder: PCA against scikit-learn, angles, no better map of the same rank, training that finds PCA, and bad input."

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ae_course.autoencoder import CheckpointError, load_model, mlp, save_model
from ae_course.data import BadArgument, load
from ae_course.linear import (
    PCA,
    LinearAutoencoder,
    best_decoder,
    best_encoder,
    challengers,
    component_angles,
    linear,
    linear_mse,
    principal_angles,
    recovered_components,
)
from ae_course.training import evaluate, fit, seeded


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spread(n=300, d=12, seed=0):
    "Centred data (n, d) whose eigenvalues are well apart, and their covariance with 1 / n."
    basis = torch.linalg.qr(normal(d, d, seed=seed)).Q
    x = normal(n, d, seed=seed + 1) * torch.linspace(3, 0.3, d, dtype=torch.float64) @ basis
    x = x - x.mean(0)
    return x, x.T @ x / n


@pytest.fixture(scope="module")
def digits():
    "4,000 training digits: images centred in float64, their covariance, PCA with 16 components, its error."
    x = load("mnist5k").pixels(dtype=torch.float64).flatten(1)
    pca = PCA(16).fit(x)
    x = x - pca.mean
    covariance = x.T @ x / len(x)
    return x, covariance, pca, linear_mse(covariance, pca.components, pca.components.T).item()


# ---------------------------------------------------------------- PCA


@pytest.mark.parametrize(("n", "d", "k"), [(200, 12, 5), (8, 30, 8), (40, 40, 40), (2, 3, 1)])
def test_pca_agrees_with_sklearn(n, d, k):
    from sklearn.decomposition import PCA as Reference

    x = normal(n, d) @ normal(d, d, seed=1) + 5
    ours, theirs = PCA(k).fit(x), Reference(k, svd_solver="full").fit(x.numpy())
    determined = min(k, n - 1)  # centring takes one dimension: the last of n components is arbitrary
    signs = (ours.components * torch.tensor(theirs.components_)).sum(1, keepdim=True).sign()
    assert_close((signs * ours.components)[:determined], torch.tensor(theirs.components_)[:determined], atol=1e-9, rtol=0)
    assert_close(ours.explained_variance, torch.tensor(theirs.explained_variance_), atol=1e-9, rtol=1e-9)
    assert_close(ours.mean, torch.tensor(theirs.mean_))
    assert_close(ours.reconstruct(x), torch.tensor(theirs.inverse_transform(theirs.transform(x.numpy()))), atol=1e-9, rtol=0)
    assert_close(ours.components @ ours.components.T, torch.eye(k).double(), atol=1e-10, rtol=0)


def test_pca_on_float32_digits_agrees_with_sklearn():
    from sklearn.decomposition import PCA as Reference

    x = load("mnist5k", limit=1000).pixels().flatten(1)
    ours, theirs = PCA(16).fit(x), Reference(16, svd_solver="full").fit(x.double().numpy())
    assert_close(ours.explained_variance, torch.tensor(theirs.explained_variance_), rtol=1e-9, atol=0)
    assert ours.transform(x).dtype == ours.reconstruct(x).dtype == torch.float32
    assert_close(ours.reconstruct(x), torch.tensor(theirs.inverse_transform(theirs.transform(x.numpy()))).float(), atol=1e-5, rtol=0)


def test_components_have_a_fixed_sign():
    x, _ = spread()
    for data in (x, -x, x.flip(0)):
        components = PCA(4).fit(data).components
        assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()
        assert_close(components, PCA(4).fit(x).components, atol=1e-9, rtol=0)


def test_error_is_the_sum_of_the_discarded_eigenvalues():
    x, _ = spread(n=50)
    n, d = x.shape
    variance = PCA(d).fit(x).explained_variance
    for k in (1, 5, 11):
        measured = (PCA(k).fit(x).reconstruct(x) - x).square().mean()
        assert_close(measured, variance[k:].sum() / d * (n - 1) / n, rtol=1e-10, atol=0)
        assert abs(measured / (variance[k:].sum() / d) - 1) > 0.01  # the factor is there, and matters for 50 rows


def test_first_is_a_smaller_fit():
    x, _ = spread()
    part, whole = PCA(12).fit(x).first(3), PCA(3).fit(x)
    assert_close(part.components, whole.components)
    assert_close(part.reconstruct(x), whole.reconstruct(x))
    with pytest.raises(BadArgument, match="got 4, expected an integer from 1 to 3"):
        whole.first(4)


def test_constant_features_and_constant_data():
    x, _ = spread()
    x = torch.cat([x, torch.full((len(x), 3), 7.0).double()], 1)
    pca = PCA(4).fit(x)
    assert pca.components[:, -3:].abs().max() < 1e-12 and (pca.reconstruct(x)[:, -3:] - 7).abs().max() < 1e-10
    same = torch.ones(5, 4)
    assert_close(PCA(2).fit(same).reconstruct(same), same)
    assert PCA(2).fit(same).explained_variance.max() == 0


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "4", None, float("nan")])
def test_number_of_components_must_be_a_count(wrong):
    with pytest.raises(BadArgument, match="n_components: got .*expected an integer of at least 1") as caught:
        PCA(wrong)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("shape", "k", "most"), [((10, 4), 5, 4), ((3, 8), 4, 3)])
def test_no_more_components_than_the_data_have(shape, k, most):
    with pytest.raises(BadArgument, match=f"got {k}, expected an integer from 1 to {most}.*lower it"):
        PCA(k).fit(normal(*shape))


def test_data_of_another_form_are_refused():
    for wrong, message in [(torch.rand(5, 1, 4, 4), r"\(5, 1, 4, 4\).*x\.flatten\(1\)"), (torch.ones(5, 4, dtype=torch.uint8), "uint8"),
                           (np.ones((5, 4)), "ndarray"), (torch.rand(1, 4), "got 1 rows, expected at least 2")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            PCA(2).fit(wrong)
    spoiled = torch.rand(6, 4)
    spoiled[3, 1], spoiled[5, 0] = math.nan, math.inf
    with pytest.raises(ValueError, match="2 of 6 rows.*first at index 3"):
        PCA(2).fit(spoiled)
    with pytest.raises(ValueError, match=r"\(2, 3\), expected a float tensor \(N, 4\)"):
        PCA(2).fit(torch.rand(6, 4)).transform(torch.rand(2, 3))


# ---------------------------------------------------------------- angles


def test_angles_in_closed_form():
    chosen = torch.tensor([1e-8, 1.0, 45.0, 89.9]).double()
    basis, fresh = torch.linalg.qr(normal(30, 8)).Q.split(4, dim=1)
    tilted = basis * torch.deg2rad(chosen).cos() + fresh * torch.deg2rad(chosen).sin()
    assert_close(principal_angles(basis, tilted @ normal(4, 4)), chosen, rtol=1e-3, atol=1e-11)
    assert_close(principal_angles(tilted @ normal(4, 4), basis), chosen, rtol=1e-3, atol=1e-11)
    assert principal_angles(basis, basis @ normal(4, 4)).max() < 1e-9
    assert_close(principal_angles(basis, fresh), torch.full((4,), 90.0).double())


def test_angles_agree_with_scipy_and_take_different_dimensions():
    scipy_linalg = pytest.importorskip("scipy.linalg")
    a, b = normal(20, 6), normal(20, 3, seed=1)
    expected = torch.tensor(np.rad2deg(scipy_linalg.subspace_angles(a.numpy(), b.numpy())).copy()).flip(0)
    for pair in ((a, b), (b, a)):
        assert_close(principal_angles(*pair), expected, atol=1e-8, rtol=0)
    assert principal_angles(a, a[:, :2]).max() < 1e-9  # a plane inside another


def test_what_is_no_basis_is_refused():
    flat = torch.ones(5, 2)
    with pytest.raises(ValueError, match="2 columns that span 1"):
        principal_angles(torch.eye(5)[:, :2], flat)
    with pytest.raises(ValueError, match="got shapes"):
        principal_angles(torch.eye(5), torch.eye(4))


def test_component_angles():
    a, b = torch.tensor([[1.0, 0], [0, 2], [1, 0]]), torch.tensor([[-3.0, 0], [1, 1], [0, 1]])
    assert_close(component_angles(a, b), torch.tensor([0.0, 45, 90]).double())


def test_gap_goes_with_the_square_of_the_angle():
    x, covariance = spread()
    every = PCA(12).fit(x)
    values = every.explained_variance * (len(x) - 1) / len(x)
    best = linear_mse(covariance, every.components[:3], every.components[:3].T)
    for i, j, theta in ((2, 3, 0.01), (0, 11, 0.5), (1, 5, 1.5)):
        tilted = every.components[:3].clone()
        tilted[i] = math.cos(theta) * every.components[i] + math.sin(theta) * every.components[j]
        gap = linear_mse(covariance, tilted, tilted.T) - best
        assert_close(gap, (values[i] - values[j]) / 12 * math.sin(theta) ** 2, rtol=1e-6, atol=0)


# ---------------------------------------------------------------- no better map


def test_linear_mse_and_best_partners_against_regression():
    x, covariance = spread()
    encoders, decoders = normal(7, 3, 12), normal(7, 12, 3, seed=1)
    direct = torch.stack([(x @ e.T @ d.T - x).square().mean() for e, d in zip(encoders, decoders)])
    assert_close(linear_mse(covariance, encoders, decoders), direct, rtol=1e-10, atol=0)
    assert_close(best_encoder(decoders), torch.linalg.pinv(decoders), rtol=1e-8, atol=1e-10)
    for encoder, found in zip(encoders, best_decoder(covariance, encoders)):
        assert_close(found, torch.linalg.lstsq(x @ encoder.T, x).solution.T, rtol=1e-8, atol=1e-10)
    for other in (1e-3 * normal(7, 12, 3, seed=2), 1e-3 * normal(7, 12, 3, seed=3)):  # no neighbour of the best partner is better
        found = best_decoder(covariance, encoders)
        assert (linear_mse(covariance, encoders, found + other) > linear_mse(covariance, encoders, found)).all()


def test_codes_that_do_not_vary_leave_the_best_decoder_finite():
    x, _ = spread()
    x[:, 4:] = 0
    covariance = x.T @ x / len(x)
    encoder = normal(8, 12)  # eight codes of data with four dimensions
    assert linear_mse(covariance, encoder, best_decoder(covariance, encoder)).abs() < 1e-10


def test_eckart_young_on_digits(digits):
    _, covariance, pca, best = digits
    errors = challengers(covariance, pca.components, 200, seed=1)
    assert [len(v) for v in errors.values()] == [200] * 3
    assert all((v > best).all() for v in errors.values())
    assert errors["disturbed PCA"].min() < best * (1 + 1e-6)  # a challenge worth the name
    again = challengers(covariance, pca.components, 200, seed=1)
    assert all(torch.equal(errors[kind], again[kind]) for kind in errors)
    assert not torch.equal(errors["random plane"], challengers(covariance, pca.components, 200, seed=2)["random plane"])


def test_challengers_would_beat_a_worse_plane(digits):
    "The comparison can fail: a random plane loses against every fitted decoder, and against some of its own disturbed copies."
    _, covariance, *_ = digits
    worse = torch.linalg.qr(normal(784, 16)).Q.T
    errors, own = challengers(covariance, worse, 50), linear_mse(covariance, worse, worse.T)
    assert (errors["random encoder"] < own).all() and (errors["disturbed PCA"] < own).any()


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_builder(tied, bias):
    with seeded(0):
        model = LinearAutoencoder(*linear((1, 4, 5), 3, tied=tied, bias=bias))
    x = torch.rand(6, 1, 4, 5)
    assert model.encode(x).shape == (6, 3) and model(x).shape == x.shape
    encoder, decoder = model.matrices
    assert torch.equal(decoder, encoder.T)  # the start, in both cases
    assert sum(p.numel() for p in model.parameters()) == (1 if tied else 2) * 60 + bias * 20
    assert_close(model(x).flatten(1).double(), x.flatten(1).double() @ encoder.T @ decoder.T, atol=1e-6, rtol=1e-5)
    fit(model, x, epochs=2, batch_size=3, lr=0.1, device="cpu", progress=False)
    encoder, decoder = model.matrices
    assert torch.equal(decoder, encoder.T) == tied


@pytest.mark.parametrize("tied", [False, True])
def test_saved_and_loaded(tied, tmp_path):
    model = LinearAutoencoder(*linear((1, 4, 4), 3, tied=tied, bias=True), l2=0.25, reduction="sum")
    x = torch.rand(20, 1, 4, 4)
    fit(model, x, epochs=2, device="cpu", progress=False)
    save_model(model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert again.l2 == 0.25 and again.reduction == "sum" and torch.equal(again(x), model(x))
    with torch.no_grad():
        again.encoder[-1].weight.zero_()
    assert (again.matrices[1].abs().max() == 0) == tied  # still one parameter
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "m.safetensors", model=LinearAutoencoder(*linear((1, 4, 4), 2, tied=tied, bias=True)))


def test_tied_weights_stay_tied_in_float64():
    model = LinearAutoencoder(*linear((1, 4, 4), 3, tied=True)).double()
    assert model.decoder[0].shared is model.encoder[-1].weight and len(list(model.parameters())) == 1


def test_penalty():
    model = LinearAutoencoder(*linear((1, 4, 4), 3), l2=0.1)
    x = torch.rand(5, 1, 4, 4)
    terms, (encoder, decoder) = model.loss_terms(x), model.matrices
    assert list(terms) == ["reconstruction", "weight_decay"]
    assert_close(terms["weight_decay"].double(), 0.1 * (encoder.square().sum() + decoder.square().sum()), rtol=1e-5, atol=0)
    assert list(LinearAutoencoder(*linear((1, 4, 4), 3)).loss_terms(x)) == ["reconstruction"]
    for wrong in (-0.1, math.nan, math.inf, "1", True):
        with pytest.raises(BadArgument, match="l2: got"):
            LinearAutoencoder(*linear((1, 4, 4), 3), l2=wrong)


def test_other_networks_and_sizes_are_refused():
    with pytest.raises(BadArgument, match="expected those of linear"):
        LinearAutoencoder(*mlp((1, 4, 4), latent_dim=2))
    for wrong in (0, -1, 2.5):
        with pytest.raises(BadArgument, match="latent_dim: got"):
            linear((1, 4, 4), wrong)
    assert LinearAutoencoder(*linear((1, 2, 2), 9)).encode(torch.rand(1, 1, 2, 2)).shape == (1, 9)  # above the pixel count: allowed


# ---------------------------------------------------------------- training


def train(x, shape, k, epochs, **options):
    tied, bias, l2 = (options.pop(key, None) for key in ("tied", "bias", "l2"))
    with seeded(options.get("seed", 0)):
        model = LinearAutoencoder(*linear(shape, k, tied=bool(tied), bias=bool(bias)), l2=l2 or 0.0).to(x.dtype)
    fit(model, x.view(-1, *shape), epochs=epochs, device="cpu", progress=False, **options)
    return model


@pytest.mark.parametrize(("tied", "epochs", "seed"), [(True, 5, 0), (False, 16, 0)])
def test_lbfgs_ends_at_pca_on_digits(digits, tied, epochs, seed):
    "The target: within 0.001% of PCA's error and 0.1 degree of its plane, 16 codes, 4,000 real digits, full batch."
    x, covariance, pca, best = digits
    model = train(x, (1, 28, 28), 16, epochs, tied=tied, seed=seed, optimizer="lbfgs", batch_size=None)
    gap = linear_mse(covariance, *model.matrices).item() / best - 1
    angle = principal_angles(model.matrices[1], pca.components.T)[-1].item()
    assert -1e-10 < gap <= 1e-5 and angle <= 0.1, (gap, angle)
    assert math.isclose(evaluate(model, x.view(-1, 1, 28, 28))["loss"], best * (1 + gap), rel_tol=1e-9)


def test_adam_comes_near(digits):
    x, covariance, pca, best = digits
    model = train(x.float(), (1, 28, 28), 16, 60)
    gap = linear_mse(covariance, *model.matrices).item() / best - 1
    assert 0 < gap < 5e-3, gap
    assert principal_angles(model.matrices[1], pca.components.T)[-1] < 15


def test_bias_learns_what_the_plane_cannot_say_of_the_mean():
    x = spread()[0] + torch.linspace(-2, 5, 12)
    model = train(x, (1, 3, 4), 3, 30, tied=True, bias=True, optimizer="lbfgs", batch_size=None)
    encoder, decoder = model.matrices
    assert_close(model.decoder[0].bias.detach(), x.mean(0) - decoder @ encoder @ x.mean(0), atol=1e-5, rtol=0)
    assert principal_angles(decoder, PCA(3).fit(x).components.T)[-1] < 1e-2


def test_without_centring_one_direction_goes_to_the_mean():
    x = spread()[0] + torch.linspace(-2, 5, 12)
    model = train(x, (1, 3, 4), 3, 30, tied=True, optimizer="lbfgs", batch_size=None)
    error = evaluate(model, x.view(-1, 1, 3, 4))["loss"]
    assert (PCA(3).fit(x).reconstruct(x) - x).square().mean() < error < (PCA(2).fit(x).reconstruct(x) - x).square().mean()
    assert principal_angles(model.matrices[1], x.mean(0)[:, None])[-1] < 5


def test_components_from_the_decoder_need_the_penalty():
    "Kunin et al. (2019): E = D^T and s_i^2 = 1 - l2 d / lambda_i under the penalty; without it, nothing fixes the rotation."
    x, covariance = spread()
    pca = PCA(4).fit(x)
    values = pca.explained_variance * (len(x) - 1) / len(x)
    penalised = train(x, (1, 3, 4), 4, 60, l2=0.02, optimizer="lbfgs", batch_size=None)
    encoder, decoder = penalised.matrices
    assert values[-1] > 0.02 * 12
    assert_close(encoder, decoder.T, atol=1e-5, rtol=0)
    assert_close(torch.linalg.svdvals(decoder).square(), 1 - 0.02 * 12 / values, atol=1e-5, rtol=0)
    assert component_angles(recovered_components(decoder), pca.components).max() < 0.05

    plain = train(x, (1, 3, 4), 4, 60, optimizer="lbfgs", batch_size=None)
    encoder, decoder = plain.matrices
    assert principal_angles(decoder, pca.components.T)[-1] < 0.01
    turned = decoder @ normal(4, 4)  # as good an optimum as any, with another encoder
    assert component_angles(recovered_components(turned), pca.components).max() > 10
    for dec, enc in ((decoder, encoder), (turned, torch.linalg.pinv(turned))):
        assert component_angles(recovered_components(dec, x @ enc.T), pca.components).max() < 0.05


# ---------------------------------------------------------------- at scale


def test_pca_parity_on_full_mnist():
    from sklearn.decomposition import PCA as Reference

    root = os.environ.get("AE_COURSE_DATA")
    if not root or not (Path(root) / "mnist" / "meta.json").is_file():
        pytest.skip("full MNIST not present: set AE_COURSE_DATA to a folder with mnist/")
    x = load("mnist", root=root).pixels(dtype=torch.float64).flatten(1)
    ours, theirs = PCA(16).fit(x), Reference(16, svd_solver="covariance_eigh").fit(x.numpy())
    assert_close(ours.explained_variance, torch.tensor(theirs.explained_variance_), rtol=1e-9, atol=0)
    assert component_angles(ours.components, torch.tensor(theirs.components_)).max() < 1e-6
