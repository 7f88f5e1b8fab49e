"The variational autoencoder: closed forms, autograd, probabilistic PCA, limits of the estimators, measures with known answers, bad input."

import itertools
import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from ae_course.autoencoder import Autoencoder, load_model, save_model
from ae_course.base import BadArgument
from ae_course.data import DataError, load
from ae_course.training import Diverged, evaluate, fit, seeded
from ae_course.variational import (
    IWAE,
    VAE,
    Posterior,
    ProbabilisticPCA,
    active_units,
    annealed_log_likelihood,
    attribute_correlation,
    dci,
    elbo,
    importance_bound,
    log_prior,
    log_weights,
    mig,
    mutual_information,
    quadratic_loss,
    traverse,
    variational_linear,
    variational_mlp,
)

SHAPE, QUIET = (1, 4, 3), {"device": "cpu", "progress": False}


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def small(family=VAE, units=2, seed=0, **options):
    with seeded(seed):
        return family(*variational_mlp(SHAPE, (7,), units), **options).double()


@pytest.fixture(scope="module")
def digits():
    return load("digits").pixels(dtype=torch.float64)


@pytest.fixture(scope="module")
def oblique(digits):
    "A linear Gaussian model whose posterior has correlated components."
    exact = ProbabilisticPCA.fit(digits, 4)
    return exact._replace(weight=exact.weight @ (torch.eye(4, dtype=torch.float64) + 0.4 * normal(4, 4, seed=3)))


# ---------------------------------------------------------------- the posterior and its divergence


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 3), (2, 40)])
def test_posterior_against_torch_distributions(n, k):
    q = Posterior(normal(n, k), 3 * normal(n, k, seed=1))
    theirs = Independent(Normal(q.mu, (q.logvar / 2).exp()), 1)
    z = q.rsample(6)
    assert z.shape == (6, n, k)
    assert_close(q.log_prob(z), theirs.log_prob(z))
    assert_close(q.kl(), kl_divergence(theirs.base_dist, Normal(torch.zeros_like(q.mu), torch.ones_like(q.mu))))
    assert_close(log_prior(z), Independent(Normal(torch.zeros_like(z), torch.ones_like(z)), 1).log_prob(z))
    assert (q.kl() >= 0).all() and (Posterior(torch.zeros(n, k), torch.zeros(n, k)).kl() == 0).all()


def test_kl_is_what_draws_give_and_precise_near_the_prior():
    q = Posterior(normal(3, 4), normal(3, 4, seed=1))
    torch.manual_seed(0)
    z = q.rsample(100_000)
    ratio = q.log_prob(z) - log_prior(z)
    assert ((ratio.mean(0) - q.kl().sum(1)).abs() < 5 * ratio.std(0) / math.sqrt(len(ratio))).all()
    tiny = torch.tensor([[1e-3, 1e-4]])
    assert_close(Posterior(torch.zeros_like(tiny), tiny).kl().double(), tiny.double() ** 2 / 4, rtol=2e-3, atol=0)


def test_gradients_pass_through_the_draw_as_the_closed_form_says():
    mu, logvar, a = normal(2, 3).requires_grad_(), normal(2, 3, seed=1).requires_grad_(), uniform(3, seed=2)
    torch.manual_seed(0)
    expected = (a * Posterior(mu, logvar).rsample(300_000).square()).sum(-1).mean(0).sum()  # a . (mu^2 + sigma^2)
    found = torch.autograd.grad(expected, (mu, logvar))
    assert_close(found[0], 2 * a * mu.detach(), rtol=0.03, atol=0.03)
    assert_close(found[1], a * logvar.detach().exp(), rtol=0.03, atol=0.03)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("kind", ["bce", "gaussian"])
@pytest.mark.parametrize(("pixels", "code"), list(itertools.product(("sum", "mean"), (None, "sum", "mean"))))
def test_loss_is_distortion_plus_implied_beta_times_rate(kind, pixels, code):
    model, x = small(beta=0.7, samples=3, reconstruction=kind, reduction=pixels, sigma=0.4, kl_reduction=code), uniform(5, *SHAPE)
    torch.manual_seed(4)
    terms = model.loss_terms(x)
    torch.manual_seed(4)
    q = model.posterior(x)
    x_hat = model.decoder(q.rsample(3).flatten(0, 1)).view(3, 5, *SHAPE)
    log_p = x * x_hat.log() + (1 - x) * (1 - x_hat).log() if kind == "bce" else Normal(x_hat, 0.4).log_prob(x)
    distortion, rate = -log_p.sum((2, 3, 4)).mean(), q.kl().sum(1).mean()
    scale = 12 if pixels == "mean" else 1
    assert_close(sum(terms.values()) * scale, distortion + model.implied_beta(12, 2) * rate)
    assert_close(terms["reconstruction"] * scale, distortion)


def test_default_is_sums_in_nats_and_means_hide_a_beta():
    assert small().reduction == "sum" and small().implied_beta(784, 16) == 1
    assert small(reduction="mean").implied_beta(784, 16) == 49 and small(reduction="mean", kl_reduction="sum").implied_beta(784, 16) == 784
    assert small(kl_reduction="mean", beta=2.0).implied_beta(784, 16) == 2 / 16


def test_code_is_the_mean_and_deterministic_even_in_training():
    model, x = small().train(), uniform(5, *SHAPE)
    assert torch.equal(model.encode(x), model.encode(x)) and torch.equal(model.encode(x), model.posterior(x).mu)
    assert torch.equal(model(x), model.decoder(model.posterior(x).mu))
    assert not torch.equal(model.loss_terms(x)["reconstruction"], model.loss_terms(x)["reconstruction"])
    z = model.posterior(x).rsample(4)
    assert model.decode(z).shape == (4, 5, *SHAPE)
    assert_close(model.decode(z)[2], model.decode(z[2]))


def test_beta_zero_with_no_noise_is_the_plain_autoencoder():
    model, x = small(beta=0.0), uniform(6, *SHAPE)
    with torch.no_grad():
        model.encoder[-1].weight[2:] = 0
        model.encoder[-1].bias[2:] = -80.0  # deviations of e^-40
    plain = Autoencoder(torch.nn.Sequential(model.encoder), model.decoder, "bce", "sum")
    plain.encode = model.encode
    terms = model.loss_terms(x)
    assert_close(terms["reconstruction"], plain.loss_terms(x)["reconstruction"])
    assert terms["kl"] == 0


def test_loss_terms_neither_branch_on_values_nor_wait(monkeypatch):
    models = [small(free_bits=0.1, warmup=5).train(), small(IWAE, k=3).train()]
    x = uniform(5, *SHAPE)
    for name in ("item", "__bool__", "__float__", "__int__", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"Tensor.{name} was called"))
    for model in models:
        torch.stack(list(model.loss_terms(x).values())).sum().backward()


def test_free_bits_and_warm_up_act_in_training_only():
    x = uniform(50, *SHAPE)
    plain, floor, warm = small(), small(free_bits=0.4), small(warmup=4)
    rate = plain.posterior(x).kl().mean(0)
    assert rate.max() < 0.4  # so every unit is charged the floor
    assert_close(floor.train().loss_terms(x)["kl"].item(), 0.8)
    q, terms = floor.posterior(x), floor.loss_terms(x)
    gradient = torch.autograd.grad(terms["kl"], list(floor.encoder.parameters()), allow_unused=True, materialize_grads=True)
    assert all((g == 0).all() for g in gradient)  # below the floor the rate is free
    factors = [(warm.train().loss_terms(x)["kl"] / q.kl().mean(0).sum()).item() for _ in range(6)]
    assert_close(factors, [0.0, 0.25, 0.5, 0.75, 1.0, 1.0])
    for model in (floor, warm):
        assert_close(evaluate(model, x)["kl"], rate.sum().item())
    assert warm.steps == 6  # evaluation does not count


def test_a_resumed_warm_up_goes_on_where_it_stood(tmp_path):
    x, runs = uniform(60, *SHAPE).float(), []
    for stops in ((4,), (2, 4)):
        with seeded(0):
            model = VAE(*variational_mlp(SHAPE, (7,), 2), warmup=15)
        for epochs in stops:
            history = fit(model, x, epochs=epochs, batch_size=20, checkpoint=tmp_path / f"{len(stops)}.safetensors", **QUIET)
        runs.append((history["kl"], model.state_dict()))
    assert runs[0][0] == runs[1][0] and all(torch.equal(runs[0][1][key], runs[1][1][key]) for key in runs[0][1])
    assert runs[0][1]["steps"] == 12


# ---------------------------------------------------------------- probabilistic PCA


def test_exact_likelihood_is_the_multivariate_normal_and_scikit_learns(digits):
    from sklearn.decomposition import PCA

    x = digits.flatten(1)
    theirs = PCA(6).fit(x.numpy())
    scale = torch.from_numpy(theirs.explained_variance_ - theirs.noise_variance_).sqrt()
    model = ProbabilisticPCA(torch.from_numpy(theirs.components_).T * scale, torch.from_numpy(theirs.mean_), theirs.noise_variance_**0.5)
    assert_close(model.log_prob(digits), torch.from_numpy(theirs.score_samples(x.numpy())), rtol=1e-9, atol=0)
    covariance = model.weight @ model.weight.T + model.sigma**2 * torch.eye(64, dtype=torch.float64)
    assert_close(model.log_prob(digits[:9]), MultivariateNormal(model.mean, covariance).log_prob(x[:9]), rtol=1e-9, atol=0)
    ours = ProbabilisticPCA.fit(digits, 6)
    assert ours.log_prob(digits).mean() > theirs.score(x.numpy())  # 1 / N is the most probable, 1 / (N - 1) is not


def test_fitted_parameters_are_a_maximum_of_the_likelihood(digits):
    best = ProbabilisticPCA.fit(digits, 3)
    value = best.log_prob(digits).mean()
    for seed, size in itertools.product(range(4), (1e-3, 1e-1)):
        assert best._replace(weight=best.weight + size * normal(64, 3, seed=seed)).log_prob(digits).mean() < value
        assert best._replace(mean=best.mean + size * normal(64, seed=seed)).log_prob(digits).mean() < value
    for factor in (0.98, 1.02):
        fixed = ProbabilisticPCA.fit(digits, 3, sigma=best.sigma * factor)
        assert best._replace(sigma=fixed.sigma).log_prob(digits).mean() < fixed.log_prob(digits).mean() < value


def test_exact_posterior_is_bayes_rule(oblique, digits):
    x, model = digits[:5], oblique.vae((1, 8, 8))
    mean, covariance = oblique.posterior(x)
    z = normal(3, 5, 4, seed=5)
    by_bayes = model.log_likelihood(x, z) + log_prior(z) - oblique.log_prob(x)
    exact = MultivariateNormal(mean, covariance.expand(5, 4, 4)).log_prob(z)
    assert_close(by_bayes.detach(), exact, rtol=1e-8, atol=1e-8)
    assert_close(model.encode(x), mean, rtol=1e-8, atol=1e-10)


def test_bound_of_a_linear_vae_misses_exactly_the_divergence(oblique, digits):
    for exact in (ProbabilisticPCA.fit(digits, 4), oblique):
        gap = 0.5 * (exact.inner().diagonal().log().sum() - torch.logdet(exact.inner()))
        found = exact.log_prob(digits) - elbo(exact.vae((1, 8, 8)), digits, draws=60)
        assert abs(found.mean() - gap) < 5 * found.std() / math.sqrt(len(found)) + 1e-9
    assert gap > 0.2


def test_a_linear_vae_finds_the_plane_and_the_likelihood_of_pca():
    x = normal(300, 5) * torch.tensor([2.0, 1.2, 0.5, 0.2, 0.2]) @ torch.linalg.qr(normal(5, 5, seed=1)).Q
    best = ProbabilisticPCA.fit(x, 2)
    with seeded(0):
        model = VAE(*variational_linear((5,), 2), reconstruction="gaussian", sigma=best.sigma, samples=4).double()
    fit(model, x, epochs=400, batch_size=100, lr=0.03, schedule=lambda epoch: 0.03 if epoch > 330 else 1.0, **QUIET)
    found, top = ProbabilisticPCA.of(model).log_prob(x).mean(), best.log_prob(x).mean()
    assert top - 0.02 < found <= top
    assert found - 0.05 < elbo(model, x, 200).mean() < found + 0.02


@pytest.mark.parametrize("beta", [1.0, 4.0, 30.0])
def test_units_below_the_granted_variance_are_off(digits, beta):
    values = torch.linalg.eigvalsh(torch.cov(digits.flatten(1).T, correction=0)).flip(0)[:12]
    model = ProbabilisticPCA.fit(digits, 12, sigma=math.sqrt(beta) * 0.15).vae((1, 8, 8))
    q = model.posterior(digits)
    assert active_units(q.mu).sum() == (values > beta * 0.15**2 * 1.011).sum()  # 1.1% above: a mean that moves by more than 0.01
    assert_close(q.kl().sum(1).mean(), 0.5 * (values / (beta * 0.15**2)).clamp(min=1).log().sum())


# ---------------------------------------------------------------- bounds and estimates


def test_bounds_are_ordered_in_k_image_by_image_and_reach_the_exact_value(digits):
    exact = ProbabilisticPCA.fit(digits, 4)
    model = exact.vae((1, 8, 8))
    with torch.no_grad():
        model.encoder.logvar += 0.5  # too wide a guess: weights are bounded
        model.encoder.mean.bias += 0.1
    x = digits[:60]
    log_w = log_weights(model, x, 5000)
    bounds = torch.stack([importance_bound(log_w, k) for k in (1, 5, 50, 500, 5000)])
    assert (bounds.diff(dim=0) >= 0).all()
    gap = (bounds - exact.log_prob(x)).mean(1)
    assert gap[0] < -0.3 and gap[2] < -0.003 and abs(gap[4]) < 0.005
    q = model.posterior(x)
    mean, covariance = exact.posterior(x)
    guess, truth = MultivariateNormal(q.mu, q.logvar.exp().diag_embed()), MultivariateNormal(mean, covariance.expand(60, 4, 4))
    divergence = kl_divergence(guess, truth)
    assert_close(gap[0], -divergence.mean(), rtol=0.05, atol=0)


def test_importance_bound_is_the_mean_of_logs_of_means_and_never_overflows():
    log_w = 2 * normal(12, 3)
    assert_close(importance_bound(log_w, 4), log_w.exp().view(3, 4, 3).mean(1).log().mean(0))
    assert_close(importance_bound(log_w, 1), log_w.mean(0))
    assert_close(importance_bound(log_w), log_w.exp().mean(0).log())
    for shift in (-1e4, 1e4):
        assert_close(importance_bound(log_w + shift, 4), importance_bound(log_w, 4) + shift, rtol=1e-10, atol=0)


def test_iwae_of_one_draw_is_the_vae_and_its_gradient_weighs_by_ratios():
    model, x = small(IWAE, k=6), uniform(5, *SHAPE)
    torch.manual_seed(0)
    loss = model.loss_terms(x)["bound"]
    torch.manual_seed(0)
    each = model.log_weights(x, 6)
    assert_close(loss, -(each.exp().mean(0)).log().mean())
    by_hand = -(each.softmax(0).detach() * each).sum(0).mean()
    for found, wanted in zip(*(torch.autograd.grad(value, model.parameters()) for value in (loss, by_hand)), strict=True):
        assert_close(found, wanted)
    one = VAE(model.encoder, model.decoder, samples=2000)
    torch.manual_seed(0)
    single = IWAE(model.encoder, model.decoder, k=1, samples=2000).loss_terms(x)["bound"]  # KL by draws, not in closed form
    torch.manual_seed(0)
    assert_close(single, sum(one.loss_terms(x).values()), rtol=0, atol=0.05)


def test_evaluation_is_reproducible_and_leaves_generator_and_mode_alone(digits, oblique):
    model = oblique.vae((1, 8, 8)).train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    pairs = [(elbo(model, digits[:130], 3, seed=s), log_weights(model, digits[:130], 3, seed=s)) for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert all(torch.equal(a, b) for a, b in zip(*pairs[:2])) and not torch.equal(pairs[0][0], pairs[2][0])
    assert pairs[0][1].shape == (3, 130) and not pairs[0][0].requires_grad
    annealed_log_likelihood(model, digits[:3], 2, 2)
    assert torch.equal(torch.get_rng_state(), before) and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("start", ["prior", "posterior"])
def test_annealing_goes_to_the_exact_value_with_its_steps(oblique, digits, start):
    model, x = oblique.vae((1, 8, 8)), digits[:20]
    found = [annealed_log_likelihood(model, x, steps, 10, start=start) for steps in (1, 20, 250)]
    off = [(values - oblique.log_prob(x)).square().mean().sqrt() for values in found]
    assert off[0] > off[1] > off[2] and off[2] < 0.6


def test_annealing_in_one_step_is_importance_sampling(oblique, digits):
    model, x = oblique.vae((1, 8, 8)), digits[:10]
    torch.manual_seed(3)
    z = normal(1)  # another generator: nothing drawn here
    q = model.posterior(x)
    draws = q.rsample(7)
    by_q = importance_bound(model.log_likelihood(x, draws) + log_prior(draws) - q.log_prob(draws))
    assert_close(annealed_log_likelihood(model, x, 1, 7, start="posterior", seed=3), by_q.detach())
    torch.manual_seed(3)
    z = torch.randn(7, 10, 4, dtype=torch.float64)
    assert_close(annealed_log_likelihood(model, x, 1, 7, seed=3), importance_bound(model.log_likelihood(x, z)).detach())


def test_annealing_is_unbiased_for_the_probability():
    exact = ProbabilisticPCA(normal(3, 1, seed=2), torch.zeros(3, dtype=torch.float64), 0.8)
    x = normal(1, 3, seed=4)
    found = [annealed_log_likelihood(exact.vae((3,)), x.expand(400, 3), 6, 1, seed=s) for s in range(5)]
    ratio = (torch.cat(found) - exact.log_prob(x)).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(len(ratio))


def test_equation_15_is_the_gaussian_bound_for_one_c():
    x = uniform(6, *SHAPE)
    for sigma in (0.1, 0.5**0.5, 3.0):
        model = small(reconstruction="gaussian", sigma=sigma)
        z = model.posterior(x).rsample(2).detach()
        negative = -model.log_likelihood(x, z).mean(0) + model.posterior(x).kl().sum(1)
        difference = negative - quadratic_loss(model, x, z, 1 / (2 * sigma**2))
        assert_close(difference, torch.full_like(difference, 6 * math.log(2 * math.pi * sigma**2)), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- collapse, factors, directions


def test_a_hidden_weight_collapses_what_the_sums_do_not(digits):
    x, units = digits.float()[:800], {}
    for code in ("sum", "mean"):
        with seeded(0):
            model = VAE(*variational_mlp((1, 8, 8), (32,), 6), reduction="mean", kl_reduction=code, beta=1.0 if code == "sum" else 6 / 64)
        fit(model, x, epochs=12, batch_size=50, lr=5e-3, **QUIET)
        units[model.implied_beta(64, 6)] = int(active_units(model.encode(x)).sum())
    assert units[64] == 0 and units[1] >= 4, units


def test_active_units_counts_moving_means():
    mu = torch.cat([normal(200, 2), 0.05 * normal(200, 2, seed=1), torch.full((200, 1), 3.0)], 1)
    assert active_units(mu).tolist() == [True, True, False, False, False] and active_units(mu, 1e-4).sum() == 4


def test_mutual_information_and_mig_of_known_codes():
    v = uniform(4000, 3)
    exact = mutual_information(v, v)
    assert_close(exact.diagonal(), torch.full((3,), math.log(20), dtype=torch.float64), rtol=1e-3, atol=0)
    assert (exact - exact.diag().diag()).abs().max() < 0.06  # independent: only the bias of 400 cells
    assert_close(mutual_information(-(v[:, [2, 0, 1]].exp()), v), exact[[2, 0, 1]], rtol=0.02, atol=0.01)
    assert mig(torch.cat([v, normal(4000, 2)], 1), v) > 0.95 and mig(torch.cat([v, v], 1), v) < 1e-9  # no gap to a twin
    turned = v @ torch.linalg.qr(normal(3, 3, seed=2)).Q
    assert mig(turned, v) < 0.4
    coins = (uniform(4000, 2, seed=5) > 0.5).double()
    assert_close(mutual_information(coins, coins).diagonal(), torch.full((2,), math.log(2), dtype=torch.float64), rtol=1e-3, atol=0)


def test_dci_of_known_codes():
    v = uniform(1200, 3)
    own = dci(v[:, [1, 2, 0]] * 5, v)
    assert min(own) > 0.95
    mixed = dci(v @ torch.linalg.qr(normal(3, 3, seed=2)).Q, v)
    assert mixed.disentanglement < 0.7 and mixed.informativeness > 0.9
    split = dci(torch.cat([v, v + 1e-3 * normal(1200, 3, seed=6)], 1), v)  # two units for each factor: each still pure
    assert split.disentanglement > 0.95 > split.completeness
    assert dci(normal(1200, 3, seed=9), v).informativeness < 0.05 and dci(v, v[:, :1]).disentanglement == 1
    assert dci(v, v, seed=1) == dci(v, v, seed=1)


def test_directions_and_walks():
    factor, basis = normal(400, 1), torch.linalg.qr(normal(3, 3, seed=1)).Q
    z = factor @ basis[:1] + 0.2 * normal(400, 2, seed=2) @ basis[1:]
    along = attribute_correlation(z, factor, basis)
    assert_close(along[0, 0].item(), 1.0) and along[1:].max() < 0.2
    theirs = torch.corrcoef(torch.stack([z @ basis[1], factor[:, 0]]))[0, 1].abs()
    assert_close(along[1, 0], theirs)
    walk = traverse(z[0], basis[1], torch.tensor([-2.0, 0.0, 1.0]))
    assert_close(walk, torch.stack([z[0] - 2 * basis[1], z[0], z[0] + basis[1]]))
    many = traverse(z[:3], basis[1], [-2.0, 0.0, 1.0])
    assert many.shape == (3, 3, z.shape[1]) and torch.equal(many[:, 1], z[:3]) and torch.equal(many[0], walk)


# ---------------------------------------------------------------- bad input, files, training


@pytest.mark.parametrize(("make", "message"), [
    (lambda: small(beta=-0.1), "beta: got -0.1"),
    (lambda: small(beta=math.nan), "beta: got nan"),
    (lambda: small(samples=0), "samples: got 0, expected an integer of at least 1"),
    (lambda: small(samples=2.0), "samples: got 2.0"),
    (lambda: small(IWAE, k=0), "k: got 0, expected an integer of at least 1"),
    (lambda: small(IWAE, samples=-1), "samples: got -1"),
    (lambda: small(free_bits=-1.0), "free_bits: got -1.0"),
    (lambda: small(warmup=-3), "warmup: got -3"),
    (lambda: small(warmup=True), "warmup: got True"),
    (lambda: small(sigma=0.0), "sigma: got 0.0"),
    (lambda: small(reconstruction="mse"), "'mse', which is no likelihood; take 'gaussian'"),
    (lambda: small(reduction="average"), "reduction: got 'average'"),
    (lambda: small(kl_reduction="none"), "kl_reduction: got 'none'"),
    (lambda: variational_mlp(latent_dim=0), "latent_dim: got 0"),
    (lambda: variational_linear((1, 0), 2), "shape: got 0"),
    (lambda: VAE(small().encoder[:-1], small().decoder).double().encode(uniform(2, *SHAPE)), r"encoder: gave shape \(2, 7\), expected"),
    (lambda: importance_bound(normal(10, 2), 4), "k: got 4 for 10 draws, expected a divisor"),
    (lambda: importance_bound(normal(10, 2), 0), "k: got 0"),
    (lambda: log_weights(small(), uniform(2, *SHAPE), 0), "count: got 0"),
    (lambda: elbo(small(), uniform(2, *SHAPE), 0), "draws: got 0"),
    (lambda: annealed_log_likelihood(small(), uniform(2, *SHAPE), steps=0), "steps: got 0"),
    (lambda: annealed_log_likelihood(small(), uniform(2, *SHAPE), start="middle"), "start: got 'middle'"),
    (lambda: ProbabilisticPCA.of(small()), "whose likelihood is not known exactly"),
    (lambda: ProbabilisticPCA.fit(normal(9, 3), 3), "leaves no variance for the noise"),
    (lambda: ProbabilisticPCA.fit(normal(9, 3), 2, sigma=-1), "sigma: got -1"),
    (lambda: active_units(normal(1, 3)), r"mu: got shape \(1, 3\)"),
    (lambda: mig(normal(9, 1), normal(9, 2)), "a code of 1 units, expected at least 2"),
    (lambda: mutual_information(normal(9, 2), normal(8, 2)), "got shapes"),
    (lambda: dci(normal(9, 2), normal(9)), "got shapes"),
    (lambda: quadratic_loss(small(), uniform(2, *SHAPE), normal(1, 2, 2), -1.0), "c: got -1.0"),
])  # fmt: skip
def test_bad_arguments_are_named(make, message):
    with pytest.raises(BadArgument, match=message) as caught:
        make()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("call", [
    lambda model, x: elbo(model, x), lambda model, x: log_weights(model, x, 3), lambda model, x: annealed_log_likelihood(model, x),
    lambda model, x: fit(model, x, epochs=1, **QUIET),
])  # fmt: skip
def test_images_outside_the_range_are_refused_for_bce_only(call):
    x = 3 * uniform(4, *SHAPE) - 1
    with pytest.raises(DataError, match=r"binary cross-entropy: got values from .* expected \[0, 1\]; .* 'gaussian'"):
        call(small(), x)
    with seeded(0):  # a decoder without a sigmoid can reach such values
        call(VAE(*variational_mlp(SHAPE, (7,), 2, output=None), reconstruction="gaussian").double(), x)


@pytest.mark.parametrize("family", [VAE, IWAE])
@pytest.mark.parametrize("kind", ["bce", "gaussian"])
def test_nan_in_the_log_variance_stops_with_its_step_and_keeps_the_weights(family, kind):
    model, calls = small(family, reconstruction=kind).float(), []

    def spoil(module, inputs, output):
        calls.append(1)
        return torch.cat([output[:, :2], output[:, 2:] * (math.nan if len(calls) == 7 else 1)], 1)

    model.encoder.register_forward_hook(spoil)
    with pytest.raises(Diverged, match="epoch 2, step 2"):
        fit(model, uniform(50, *SHAPE).float(), epochs=3, batch_size=10, **QUIET)
    assert all(p.isfinite().all() for p in model.parameters())


def test_an_overflowing_log_variance_is_reported_too():
    model = small().float()
    with torch.no_grad():
        model.encoder[-1].bias[2:] = 200.0
    with pytest.raises(Diverged, match="step 1.*kl = inf"):
        fit(model, uniform(20, *SHAPE).float(), epochs=1, batch_size=10, **QUIET)


@pytest.mark.parametrize("model", [
    lambda: VAE(*variational_mlp(SHAPE, (7,), 2), 2.0, 3, "gaussian", "mean", 0.3, "sum", 0.1, 9),
    lambda: IWAE(*variational_mlp(SHAPE, (7,), 2), 8, 2, "gaussian", 0.2),
    lambda: VAE(*variational_linear(SHAPE, 3), reconstruction="gaussian"),
])  # fmt: skip
def test_a_file_brings_the_model_back(model, tmp_path):
    model = model()
    model.steps += 4
    save_model(model, tmp_path / "model.safetensors")
    again, x = load_model(tmp_path / "model.safetensors"), uniform(3, *SHAPE).float()
    assert type(again) is type(model) and again.steps == 4 and torch.equal(again(x), model(x))
    for name in ("beta", "samples", "reconstruction", "reduction", "sigma", "kl_reduction", "free_bits", "warmup"):
        assert getattr(again, name) == getattr(model, name)
    assert getattr(again, "k", None) == getattr(model, "k", None)


def test_training_is_the_same_again_and_works_in_bfloat16():
    x, runs = uniform(100, *SHAPE).float(), []
    for precision in ("float32", "float32", "bfloat16"):
        model = small().float()
        runs.append(fit(model, x, epochs=4, batch_size=20, precision=precision, **QUIET)["loss"])
    assert runs[0] == runs[1] and runs[0][-1] < runs[0][0]
    assert_close(runs[2][-1], runs[0][-1], rtol=0.02, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_gives_the_values_of_the_cpu():
    model, x = small(), uniform(20, *SHAPE)
    here = [model.posterior(x).kl(), model.log_likelihood(x, normal(3, 20, 2))]
    model.cuda()
    there = [model.posterior(x.cuda()).kl(), model.log_likelihood(x.cuda(), normal(3, 20, 2).cuda())]
    for a, b in zip(here, there):
        assert_close(b.cpu(), a)
    assert annealed_log_likelihood(model, x.cuda(), 3, 2).is_cuda and elbo(model, x.cuda(), 2).is_cuda
