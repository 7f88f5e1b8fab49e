"Clustering: scores by brute force, k-means, centres that follow, DEC's distributions, the mixture prior's terms, bad input."

import copy
import itertools
import math

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

from ae_course.autoencoder import Autoencoder, load_model, mlp, save_model
from ae_course.base import BadArgument
from ae_course.classification import codes
from ae_course.clustering import (
    DEC,
    GMVAE,
    CentredAutoencoder,
    fit_clusters,
    gaussian_kl,
    gmvae_mlp,
    kmeans,
    match,
    mixture,
    scores,
    student,
    target,
)
from ae_course.data import Batch, Images
from ae_course.metrics import squared_distances
from ae_course.training import evaluate, fit, seeded
from ae_course.variational import VAE, Posterior, log_prior, variational_mlp

CPU = {"device": "cpu"}


def pictures(n=90, classes=3, seed=0):
    "Random images with labels: one pair of columns is bright."
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 60, (n, 1, 8, 8), generator=draw, dtype=torch.uint8)
    y = torch.randint(0, classes, (n,), generator=draw)
    for k in range(classes):
        x[y == k, :, :, 2 * k : 2 * k + 2] += 150
    return Images(x, y)


def networks(seed=0):
    with seeded(seed):
        return mlp((1, 8, 8), (12,), 4)


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("classes, clusters", [(3, 3), (4, 2), (2, 5), (1, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_scores_against_brute_force_and_scikit_learn(classes, clusters, seed):
    draw = torch.Generator().manual_seed(seed)
    y, found = torch.randint(0, classes, (40,), generator=draw), torch.randint(0, clusters, (40,), generator=draw) + 7
    got = scores(y, found)
    most = max(classes, clusters)
    best = max(sum(names[int(c) - 7] == int(t) for c, t in zip(found, y)) for names in itertools.permutations(range(most)))
    assert got["acc"] == best / 40
    assert got["nmi"] == pytest.approx(normalized_mutual_info_score(y, found))
    assert got["ari"] == pytest.approx(adjusted_rand_score(y, found))
    names = match(y, found)
    assert len(names) == min(len(found.unique()), len(y.unique())) == len(set(names.values()))


def test_nmi_by_hand_and_names_do_not_matter():
    y, found = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]), torch.tensor([5, 5, 1, 1, 1, 1, 0, 0])
    p = torch.zeros(3, 3, dtype=torch.float64)
    for i, j in zip(y, found.unique(return_inverse=True)[1]):
        p[i, j] += 1 / 8
    h = lambda v: -torch.xlogy(v, v).sum()
    information = h(p.sum(1)) + h(p.sum(0)) - h(p)
    assert scores(y, found)["nmi"] == pytest.approx((2 * information / (h(p.sum(1)) + h(p.sum(0)))).item())
    renamed = torch.tensor([3, 1, 0, 0, 0, 7])[found]
    assert scores(y, renamed) == scores(y, found) and scores(y, y + 4) == {"acc": 1.0, "nmi": 1.0, "ari": 1.0}


def test_unknown_classes_are_left_out_and_bad_pairs_refused():
    y, found = torch.tensor([0, 1, -1, 1]), torch.tensor([4, 4, 5, 2])
    assert scores(y, found) == scores(y[y >= 0], found[y >= 0])
    wrongs = [(y, found[:3]), (torch.full((4,), -1), found), (y.float(), found), (y, found[:, None]), (y[:0], found[:0]), ([0, 1], found)]
    for wrong in wrongs:
        with pytest.raises(BadArgument):
            scores(*wrong)


# ---------------------------------------------------------------- k-means and mixtures


def test_kmeans_is_scikit_learns():
    z = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    labels, centres = kmeans(z, 4, seed=2, restarts=3)
    own = KMeans(4, n_init=3, random_state=2).fit(z.double().numpy())
    assert labels.tolist() == own.labels_.tolist() and centres.dtype == z.dtype
    assert torch.equal(squared_distances(z, centres).argmin(1), labels)


def test_mixture_finds_what_kmeans_cannot():
    draw = torch.Generator().manual_seed(1)
    z = torch.cat([torch.randn(300, 2, generator=draw) * torch.tensor([3, 0.4]) + torch.tensor([0, s]) for s in (-2.0, 2.0)])
    y = torch.arange(600) // 300
    assert scores(y, mixture(z, 2))["acc"] > 0.99 > 0.8 > scores(y, kmeans(z, 2)[0])["acc"]
    assert len(mixture(torch.cat([z, z.repeat(1, 60)], 1), 2)) == 600  # 122 values: diagonal


@pytest.mark.parametrize("cluster", [kmeans, mixture])
def test_points_that_cannot_be_clustered(cluster):
    z = torch.randn(5, 2)
    for wrong, clusters in ((z, 6), (z, 0), (z * torch.nan, 2), (z.long(), 2), (z[0], 1)):
        with pytest.raises(BadArgument):
            cluster(wrong, clusters)


def test_points_that_are_all_alike():
    with pytest.warns(Warning, match="distinct"):
        assert len(kmeans(torch.ones(6, 2), 2)[0]) == 6


# ---------------------------------------------------------------- Song


def test_refresh_is_a_step_of_lloyds_algorithm():
    draw = torch.Generator().manual_seed(0)
    z, start = torch.randn(50, 4, generator=draw), torch.randn(3, 4, generator=draw)
    model = CentredAutoencoder(*networks(), 4, 3)
    model.centres.copy_(start)
    model.refresh(z)
    own = KMeans(3, init=start.numpy(), n_init=1, max_iter=1, tol=0, algorithm="lloyd").fit(z.numpy())
    by_hand = torch.stack([z[squared_distances(z, start).argmin(1) == k].mean(0) for k in range(3)])
    assert_close(model.centres, by_hand)
    assert_close(model.centres, torch.from_numpy(own.cluster_centers_), rtol=1e-4, atol=1e-4)
    model.centres[2] = 1e6
    model.refresh(z)
    assert (model.centres[2] == 1e6).all()  # no code is next to it


def test_the_loss_with_centres_by_hand():
    model, data = CentredAutoencoder(*networks(), 4, 3, weight=0.3), pictures(20)
    model.begin(codes(model, data))
    x, z = data.pixels(), codes(model, data)
    gap = sum(min(float((a - c).square().sum()) for c in model.centres) for a in z) / 20
    terms = model.loss_terms(Batch(x))
    assert terms["centres"].item() == pytest.approx(0.3 * gap, rel=1e-4)
    assert_close(terms["reconstruction"], (model(x) - x).square().mean())


@pytest.mark.parametrize("replay", [True, False])
@pytest.mark.parametrize("make", ["song", "guo", "dec"])
def test_trained_centres_resume_and_follow_the_codes(make, replay, tmp_path):
    data = pictures()
    model = {"song": lambda: CentredAutoencoder(*networks(), 4, 3, 0.01), "guo": lambda: DEC(*networks(), 4, 90, 3),
             "dec": lambda: DEC(*networks(), 4, 90, 3, keep=False)}[make]  # fmt: skip
    rows, options = [], {"batch_size": 30, "lr": 0.003, "replay": replay, **CPU}
    whole = model()
    decoder = copy.deepcopy(whole.decoder.state_dict())
    history = fit_clusters(whole, data, epochs=4, progress=rows.append, **options)
    assert len(history) == len(rows) == 4 and scores(data.y, whole.assign(data))["acc"] > 0.5
    if make == "song":
        z = codes(whole, data)
        last = whole.centres.clone()
        whole.refresh(z)
        assert (whole.centres - last).abs().max() < 1  # near the codes' own means
    else:
        assert_close(whole.targets, target(student(codes(whole, data), whole.centres)).detach())
        same = all(torch.equal(v, decoder[k]) for k, v in whole.decoder.state_dict().items())
        assert same == (make == "dec")
    parts, path = model(), tmp_path / "kept.safetensors"
    fit_clusters(parts, data, epochs=2, checkpoint=path, checkpoint_seconds=0, **options)
    parts = model()
    fit_clusters(parts, data, epochs=4, checkpoint=path, checkpoint_seconds=0, **options)
    assert all(torch.equal(a, b) for a, b in zip(parts.state_dict().values(), model_state(whole, make, data)))


def model_state(model, make, data):
    "The state to compare with: for Song the centres were refreshed once more above, so they are taken back by training anew."
    if make != "song":
        return model.state_dict().values()
    again = CentredAutoencoder(*networks(), 4, 3, 0.01)
    fit_clusters(again, data, epochs=4, batch_size=30, lr=0.003, **CPU)
    return again.state_dict().values()


# ---------------------------------------------------------------- DEC


def test_student_and_target_by_brute_force():
    draw = torch.Generator().manual_seed(0)
    z, centres = (torch.randn(n, 3, generator=draw, dtype=torch.float64) for n in (7, 4))
    q = student(z, centres)
    for i in range(7):
        kernel = [1 / (1 + sum((z[i, d] - c[d]) ** 2 for d in range(3)).item()) for c in centres]
        assert q[i].tolist() == pytest.approx([k / sum(kernel) for k in kernel])
    p = target(q)
    size = [sum(q[i, j].item() for i in range(7)) for j in range(4)]
    for i in range(7):
        raw = [q[i, j].item() ** 2 / size[j] for j in range(4)]
        assert p[i].tolist() == pytest.approx([r / sum(raw) for r in raw])
    t = torch.distributions.StudentT(1.0)  # in one dimension the kernel is its density, up to a factor
    assert_close(student(z[:, :1], centres[:, :1]), t.log_prob(z[:, :1] - centres[:, 0]).softmax(1))


def test_the_divergence_by_hand_and_its_gradient():
    model, x = DEC(*networks(), 4, 30, 3, weight=0.2).double().train(), pictures(30).pixels().double()
    model.begin(codes(model, x))
    index = torch.tensor([4, 0, 17])
    p, q = model.targets[index], student(model.encode(x[index]), model.centres).detach()
    by_hand = sum(p[i, j] * math.log(p[i, j] / q[i, j]) for i in range(3) for j in range(3)) / 3
    terms = model.train().loss_terms(Batch(x[index], index=index))
    assert terms["clustering"].item() == pytest.approx(0.2 * by_hand.item(), rel=1e-9)
    z = model.encode(x[index]).detach().requires_grad_()
    q = student(z, model.centres)
    (torch.xlogy(p, p) - p * q.log()).sum().backward()
    kernel = 1 / (1 + squared_distances(z, model.centres))
    wanted = 2 * ((kernel * (p - q))[..., None] * (z[:, None] - model.centres)).sum(1)  # Xie et al., Eq. 4, with alpha = 1
    assert_close(z.grad, wanted.detach())
    alone = DEC(*networks(), 4, 30, 3, keep=False).double()
    assert set(alone.loss_terms(Batch(x, index=torch.arange(30)))) == {"clustering"}


def test_evaluated_on_other_images_and_saved(tmp_path):
    model = DEC(*networks(), 4, 90, 3)
    fit_clusters(model, pictures(), epochs=1, batch_size=30, **CPU)
    assert math.isfinite(evaluate(model, pictures(13, seed=3))["loss"]) and len(model.assign(pictures(13).pixels())) == 13
    save_model(model, tmp_path / "dec.safetensors")
    again = load_model(tmp_path / "dec.safetensors")
    assert torch.equal(again.targets, model.targets) and torch.equal(again.assign(pictures()), model.assign(pictures()))


def test_what_cannot_be_trained():
    for build in (lambda: DEC(*networks(), 4, 0), lambda: DEC(*networks(), 0, 5), lambda: CentredAutoencoder(*networks(), 4, 0),
                  lambda: CentredAutoencoder(*networks(), 4, weight=-1.0)):  # fmt: skip
        with pytest.raises(BadArgument):
            build()
    with pytest.raises(BadArgument, match="images=90"):
        fit_clusters(DEC(*networks(), 4, 89, 3), pictures(), epochs=1, **CPU)
    with pytest.raises(BadArgument, match="at most as many"):
        fit_clusters(CentredAutoencoder(*networks(), 4, 10), pictures(9), epochs=1, **CPU)


# ---------------------------------------------------------------- the mixture prior


def small(clusters=3, **options):
    with seeded(0):
        return GMVAE(*gmvae_mlp((1, 8, 8), (12,), 4, 2), 4, 2, clusters, 6, **options)


def test_gaussian_kl_is_the_librarys():
    draw = torch.Generator().manual_seed(0)
    q, p = (Posterior(*(torch.randn(5, 3, generator=draw, dtype=torch.float64) for _ in range(2))) for _ in range(2))
    normal = lambda r: Independent(Normal(r.mu, (0.5 * r.logvar).exp()), 1)
    assert_close(gaussian_kl(q, p), kl_divergence(normal(q), normal(p)))
    assert_close(gaussian_kl(q, Posterior(torch.zeros(3), torch.zeros(3))), q.kl().sum(1))
    z = q.rsample(200_000)
    sampled = (q.log_prob(z) - p.log_prob(z)).mean(0)
    assert_close(gaussian_kl(q, p), sampled, rtol=0.05, atol=0.05)


def test_responsibilities_are_bayes_rule():
    model = small().double()
    z, w = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    parts = model.components(w)
    density = torch.stack([Normal(parts.mu[:, c], (0.5 * parts.logvar[:, c]).exp()).log_prob(z).sum(1).exp() for c in range(3)], 1)
    assert_close(model.responsibilities(z, w).exp(), density / density.sum(1, keepdim=True))
    assert parts.mu.shape == (6, 3, 4)


def test_the_terms_with_fixed_noise_by_hand():
    model, x = small().double(), pictures(5).pixels().double()
    torch.manual_seed(3)
    terms = model.loss_terms(x)
    torch.manual_seed(3)
    q_z, q_w = model.posterior(x)
    z, w = q_z.rsample()[0], q_w.rsample()[0]
    r, parts = model.responsibilities(z, w).exp(), model.components(w)
    component = die = 0.0
    for i in range(5):
        for c in range(3):
            q, p = (Normal(m, (0.5 * s).exp()) for m, s in ((q_z.mu[i], q_z.logvar[i]), (parts.mu[i, c], parts.logvar[i, c])))
            component += r[i, c] * kl_divergence(q, p).sum() / 5
            die += r[i, c] * (r[i, c] * 3).log() / 5
    assert_close(terms["component"], component)
    assert_close(terms["die"], die)
    wanted = -(x * model.decode(z).log() + (1 - x) * (1 - model.decode(z)).log()).flatten(1).sum(1).mean()
    assert_close(terms["reconstruction"], wanted)
    # drawn rather than in closed form, the two terms together are the mixture's own divergence
    log_r = model.responsibilities(z, w)
    drawn = (log_r.exp() * (q_z.log_prob(z)[:, None] - parts.log_prob(z[:, None]) + log_r + math.log(3))).sum(1)
    assert_close(drawn, q_z.log_prob(z) - parts.log_prob(z[:, None]).logsumexp(1) + math.log(3))


def test_with_one_component_at_the_origin_it_is_the_vae():
    model = small(1)
    torch.nn.init.zeros_(model.prior[2].weight), torch.nn.init.zeros_(model.prior[2].bias)
    with seeded(0):
        vae = VAE(*variational_mlp((1, 8, 8), (12,), 4))
    vae.encoder[1].load_state_dict(model.encoder[1].state_dict()), vae.decoder.load_state_dict(model.decoder.state_dict())
    vae.encoder[3].weight.data, vae.encoder[3].bias.data = model.encoder[3].weight.data[:8], model.encoder[3].bias.data[:8]
    x = pictures(20).pixels()
    torch.manual_seed(1)
    mine = model.loss_terms(x)
    torch.manual_seed(1)
    theirs = vae.loss_terms(x)
    assert_close(mine["reconstruction"], theirs["reconstruction"])
    assert_close(mine["component"], theirs["kl"])
    assert mine["die"].abs() < 1e-6


def test_free_nats_act_in_training_only():
    model, x = small(free=5.0), pictures(20).pixels()
    assert model.train().loss_terms(x)["die"] == 5.0 and model.eval().loss_terms(x)["die"] < math.log(3) + 1e-5


def test_trained_assigned_sampled_saved(tmp_path):
    data, model = pictures(200), small()
    history = fit(model, data, epochs=40, batch_size=50, lr=0.003, progress=False, **CPU)
    assert history["loss"][-1] < history["loss"][0]
    found = model.assign(data, batch_size=7)
    assert torch.equal(found, model.assign(data.pixels())) and found.max() < 3
    images = model.sample(5, cluster=1, seed=2)
    assert images.shape == (5, 1, 8, 8) and torch.equal(images, model.sample(5, 1, 2)) and not torch.equal(images, model.sample(5, 2, 2))
    save_model(model, tmp_path / "mixture.safetensors")
    assert torch.equal(load_model(tmp_path / "mixture.safetensors").assign(data), found)
    assert log_prior(codes(model, data)).shape == (200,)


def test_a_plain_autoencoders_codes_serve_as_well():
    data = pictures()
    with seeded(1):
        model = Autoencoder(*mlp((1, 8, 8), (12,), 4))
    fit(model, data, epochs=20, batch_size=30, lr=0.01, progress=False, **CPU)
    assert scores(data.y, kmeans(codes(model, data), 3)[0])["acc"] > 0.95
