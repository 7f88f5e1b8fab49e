"Densities of codes: against torch.distributions, scipy and scikit-learn, limits, seeds, bad input; walks through codes."

import math
import warnings

import pytest
import torch
from torch.testing import assert_close

from ae_course.base import BadArgument
from ae_course.checks import NotRight, check
from ae_course.sampling import (
    Clusters,
    Degenerate,
    Density,
    clusters,
    em,
    fit_latent,
    held_out,
    interpolation,
    principal_steps,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def clumps(n, k, count, seed=0, distance=6.0):
    "Codes (n, k) in `count` clumps of different shapes."
    which = torch.randint(count, (n,), generator=torch.Generator().manual_seed(seed))
    shapes = torch.eye(k).double() + 0.4 * normal(count, k, k, seed=seed + 1)
    return torch.einsum("nk,nkl->nl", normal(n, k, seed=seed + 2), shapes[which]) + distance * normal(count, k, seed=seed + 3)[which]


def mixture(count, k, seed=0):
    weights = normal(count, seed=seed).softmax(0)
    roots = normal(count, k, k, seed=seed + 1)
    return weights, normal(count, k, seed=seed + 2), roots @ roots.mT + 0.1 * torch.eye(k)


# ---------------------------------------------------------------- densities


@pytest.mark.parametrize(("count", "k"), [(1, 1), (1, 6), (3, 1), (4, 5)])
def test_log_prob_is_that_of_torch_and_scipy(count, k):
    from scipy.stats import multivariate_normal

    weights, means, covariances = mixture(count, k)
    z = 3 * normal(20, k, seed=9)
    ours = Density(weights, means, covariances).log_prob(z)
    normals = torch.distributions.MultivariateNormal(means, covariances)
    theirs = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), normals)
    assert_close(ours, theirs.log_prob(z), rtol=1e-9, atol=0)
    scipys = [multivariate_normal(m.numpy(), c.numpy()).pdf(z.numpy()) for m, c in zip(means, covariances)]
    assert_close(ours, sum(w * torch.as_tensor(p) for w, p in zip(weights, scipys)).reshape(-1).log(), rtol=1e-6, atol=1e-9)


def test_log_prob_where_densities_underflow():
    density = Density(torch.tensor([0.5, 0.5]).double(), torch.tensor([[0.0], [1.0]]).double(), torch.ones(2, 1, 1).double())
    far = density.log_prob(torch.tensor([[1e3], [-1e3]]))
    assert_close(far, torch.tensor([-(999.0**2), -(1e6)]).double() / 2 - 0.5 * math.log(2 * math.pi) + math.log(0.5), rtol=1e-9, atol=0)


def test_samples_have_the_moments_are_shuffled_and_seeded():
    weights, means, covariances = mixture(3, 4)
    density = Density(weights, means, covariances)
    drawn = density.sample(60_000, seed=3)
    mean = weights @ means
    spread = covariances + (means - mean)[:, :, None] * (means - mean)[:, None, :]
    covariance = (weights[:, None, None] * spread).sum(0)
    assert ((drawn.mean(0) - mean).abs() < 5 * (covariance.diagonal() / 60_000).sqrt()).all()
    assert_close(torch.cov(drawn.T), covariance, rtol=0.05, atol=0.05 * covariance.abs().max().item())
    assert torch.equal(drawn, density.sample(60_000, seed=3)) and not torch.equal(drawn, density.sample(60_000, seed=4))
    apart = Density(torch.tensor([0.2, 0.8]).double(), torch.tensor([[-50.0], [50.0]]).double(), torch.ones(2, 1, 1).double())
    high = (apart.sample(20_000)[:, 0] > 0).double()
    assert abs(high.mean() - 0.8) < 0.02
    assert abs(high[:10_000].mean() - high[10_000:].mean()) < 0.03  # not grouped by component
    assert abs((high[1:] * high[:-1]).mean() - 0.64) < 0.02  # neighbours are independent


def test_samples_come_in_the_type_of_the_codes_and_leave_the_generator_alone():
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    for kind in ("normal", "mvg", "gmm"):
        drawn = fit_latent(clumps(200, 3, 2).float(), kind, 2).sample(5)
        assert drawn.dtype == torch.float32 and drawn.shape == (5, 3) and not drawn.requires_grad
    assert torch.equal(torch.rand(1), first)
    assert fit_latent(clumps(200, 3, 2)).sample(1).dtype == torch.float64


# ---------------------------------------------------------------- fits


def test_normal_ignores_the_codes_and_mvg_has_their_moments():
    z = clumps(300, 4, 3)
    standard = fit_latent(z + 100, "normal")
    assert_close(standard.log_prob(z[:5]), torch.distributions.Normal(0, 1).log_prob(z[:5]).sum(1), rtol=1e-10, atol=0)
    one = fit_latent(z, "mvg")
    assert_close(one.means[0], z.mean(0)), assert_close(one.covariances[0], torch.cov(z.T, correction=0))
    # maximum likelihood: the mean log-density is that of the closed form, and moving away lowers it
    closed = -0.5 * (torch.logdet(2 * math.pi * one.covariances[0]) + 4)
    assert_close(one.log_prob(z).mean(), closed, rtol=1e-10, atol=0)
    for moved in (Density(one.weights, one.means + 0.1, one.covariances), Density(one.weights, one.means, 1.1 * one.covariances)):
        assert moved.log_prob(z).mean() < closed
    assert_close(fit_latent(z, "gmm", 1, ridge=0.0).log_prob(z), one.log_prob(z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n", "k", "count"), [(500, 3, 4), (800, 12, 5), (300, 1, 2)])
def test_em_is_scikit_learns_from_the_same_start(n, k, count):
    from sklearn.mixture import GaussianMixture

    z = clumps(n, k, count)
    for seed in (0, 1):
        theirs = GaussianMixture(count, max_iter=2000, random_state=seed).fit(z.numpy())
        ours = em(z, clusters(z, count, seed))
        assert len(ours.history) == theirs.n_iter_
        for own, name in ((ours.weights, "weights_"), (ours.means, "means_"), (ours.covariances, "covariances_")):
            assert_close(own, torch.from_numpy(getattr(theirs, name)), rtol=1e-7, atol=1e-9)
        assert_close(ours.log_prob(z), torch.from_numpy(theirs.score_samples(z.numpy())), rtol=1e-7, atol=1e-8)
        routes = [fit_latent(z, "gmm", count, seed, route=route).log_prob(z) for route in ("sklearn", "em", "auto")]
        assert_close(routes[0], routes[1], rtol=1e-7, atol=1e-8), assert_close(routes[0], routes[2], rtol=0, atol=0)


def test_em_never_lowers_the_likelihood_and_finds_clumps():
    z = clumps(2000, 3, 3, seed=5, distance=20)
    start = Clusters(torch.randint(3, (2000,), generator=torch.Generator().manual_seed(0)), 3)  # a poor start
    found = em(z, start, ridge=0.0, tol=1e-9)
    assert (torch.tensor(found.history).diff() > -1e-10).all() and found.history[-1] > found.history[0] + 0.5
    with pytest.warns(UserWarning, match="not converged after 2 steps"):
        em(z, start, tol=1e-12, steps=2)


def test_clusters_of_many_codes_go_to_their_nearest_centre():
    z = clumps(900, 3, 3, distance=30)
    few, all_of_them = clusters(z, 3, most=200), clusters(z, 3)
    assert few.labels.shape == (900,) and few.labels.unique().numel() == 3
    same = (few.labels[:, None] == few.labels) == (all_of_them.labels[:, None] == all_of_them.labels)
    assert same.double().mean() > 0.99  # the same clusters under other numbers


def test_held_out_gain_vanishes_for_gaussian_codes_and_does_not_see_the_scale():
    z = normal(6000, 5) @ normal(5, 5, seed=1)
    assert -0.1 < held_out(z[:4000], z[4000:])["gain"] < 0
    z = clumps(3000, 4, 4)
    found, scaled = (held_out(a[:2000], a[2000:], 4) for a in (z, 50 * z))
    assert found["gain"] > 0.1 and abs(found["gain"] - scaled["gain"]) < 1e-4
    assert_close(scaled["mvg"], found["mvg"] - math.log(50), rtol=1e-9, atol=0)
    assert found["normal"] < found["mvg"] < found["gmm"]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("z", "options", "message"),
    [
        (normal(4, 6), {"kind": "mvg"}, r"4 codes of 6 units.*rank 3 at most.*at least 7 codes.*ridge"),
        (normal(6, 6), {"kind": "mvg"}, "rank 5 at most"),
        (torch.cat([normal(50, 2), torch.ones(50, 1)], 1), {"kind": "mvg"}, "singular.*does not move"),
        (torch.cat([normal(50, 2), normal(50, 2).sum(1, keepdim=True)], 1), {"kind": "mvg"}, "singular.*others determine"),
        (torch.ones(50, 3).double() / 3, {"kind": "gmm", "components": 1, "ridge": 0.0}, "singular"),
        (normal(7, 2), {"kind": "gmm", "components": 8}, "components: got 8 for 7 codes, expected at most one a code"),
        (normal(7, 2), {"kind": "gmm", "components": 0}, "components: got 0"),
        (normal(7, 2), {"kind": "gnn"}, "kind: got 'gnn', expected one of normal, mvg, gmm"),
        (normal(7, 2), {"ridge": -1.0}, "ridge: got -1.0"),
        (normal(7, 2), {"route": "fast"}, "route"),
        (normal(7, 2, 2), {}, r"z: got torch.float64 \(7, 2, 2\), expected a float tensor \(N, k\).*flatten"),
        (torch.ones(7, 2).long(), {}, "torch.int64"),
        (torch.tensor([[0.0, math.nan], [1.0, 2.0]]), {}, "1 of 2 rows hold NaN"),
        ([[1.0]], {}, "list"),
    ],
)
def test_bad_input_is_named(z, options, message):
    with pytest.raises(BadArgument, match=message):
        fit_latent(z, **options)


@pytest.mark.parametrize("route", ["sklearn", "em"])
def test_a_singular_component_is_refused_by_both_routes_and_helped_by_a_ridge(route):
    z = torch.cat([normal(60, 2), normal(60, 2).sum(1, keepdim=True)], 1)
    with pytest.raises(BadArgument, match="singular"):
        fit_latent(z, "gmm", 2, ridge=0.0, route=route)
    assert fit_latent(z, "gmm", 2, ridge=1e-3, route=route).log_prob(z).isfinite().all()


def test_a_ridge_on_too_few_codes_warns_and_fills_the_missing_directions():
    z = normal(5, 40)
    with pytest.warns(Degenerate, match="rank 4 at most.*ridge 0.01 is all of the variance"):
        density = fit_latent(z, "mvg", ridge=0.01)
    values = torch.linalg.eigvalsh(density.covariances[0])
    assert_close(values[:36], torch.full((36,), 0.01).double(), rtol=1e-6, atol=0) and values[36] > 0.1
    with pytest.warns(Degenerate, match="components hold fewer codes than units"):
        fit_latent(normal(60, 20), "gmm", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_latent(clumps(600, 3, 2), "gmm", 2)


def test_log_prob_and_sample_refuse_what_does_not_fit():
    density = fit_latent(normal(50, 3))
    with pytest.raises(BadArgument, match=r"expected a float tensor \(N, 3\)"):
        density.log_prob(normal(5, 2))
    with pytest.raises(BadArgument, match="n: got 0"):
        density.sample(0)


# ---------------------------------------------------------------- walks


def test_walks():
    z = normal(500, 4) @ normal(4, 4, seed=1) + 3
    steps = principal_steps(z.float(), 2)
    assert steps.dtype == torch.float32 and steps.shape == (2, 4)
    values = torch.linalg.eigvalsh(torch.cov(z.T)).flip(0)
    assert_close(steps.double().norm(dim=1), values[:2].sqrt(), rtol=1e-5, atol=0)
    path = interpolation(z[:2], z[2:4], 3)
    assert torch.equal(path[:, 0], z[:2]) and torch.equal(path[:, 2], z[2:4])
    assert_close(path[:, 1], (z[:2] + z[2:4]) / 2)
    for wrong in ((z[:2], z[:3], 3), (z[:2], z[:2], 1)):
        with pytest.raises(BadArgument, match="interpolation"):
            interpolation(*wrong)


# ---------------------------------------------------------------- exercises


@pytest.mark.parametrize(
    ("number", "wrong", "message"),
    [
        ("41.1", lambda m, c, e: m + e @ torch.linalg.cholesky(c), "transpose of the factor"),
        ("41.1", lambda m, c, e: m + e @ c, "square root"),
        ("41.1", lambda m, c, e: e @ torch.linalg.cholesky(c).T, "mean is missing"),
        ("41.2", lambda nats, a, k: nats + math.log(abs(a)), "sign"),
        ("41.2", lambda nats, a, k: nats - k * math.log(abs(a)), "nats a unit"),
        ("41.3", lambda j: j.exp() / j.exp().sum(1, keepdim=True), "underflows"),
        ("41.3", lambda j: j.softmax(0), "sum to 1"),
        ("41.4", lambda k, c: c * (k + k * (k + 1) // 2) + c, "not free"),
        ("41.4", lambda k, c: c * (k + k * k) + c - 1, "symmetric"),
        ("41.5", lambda z, z_test, c: max(c, key=lambda n: fit_latent(z, "gmm", n).log_prob(z).mean().item()), "were fitted"),
    ],
)
def test_checks_name_the_mistake(number, wrong, message):
    with pytest.raises(NotRight, match=message):
        check(number, wrong)
