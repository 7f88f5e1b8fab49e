"Compression: densities, frequencies, the coder, the file and every way to break it, PCA as a codec, classical codecs, curves."

import copy
import hashlib
import math
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ae_course import compression
from ae_course.autoencoder import load_model, mlp, save_model
from ae_course.base import BadArgument
from ae_course.compression import (
    CODECS,
    HEADER,
    TOTAL,
    Compressive,
    Factorised,
    Point,
    StreamError,
    bd_psnr,
    blocks,
    check_lossless,
    classical,
    common_range,
    compress,
    decode_symbols,
    decompress,
    digest,
    encode_symbols,
    frequencies,
    learn_density,
    lifted,
    matched_step,
    ms_ssim,
    point,
    principal_blocks,
    read_code,
    scales_of,
    start_linear,
    tiles,
)
from ae_course.convolutional import conv
from ae_course.data import DataError, Images, load
from ae_course.linear import PCA
from ae_course.metrics import UndefinedMetric, psnr, ssim
from ae_course.training import fit, seeded


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def digits(n=60):
    return load("mnist5k", "test", limit=n)


def pictures(n=6, c=3, height=32, width=32, seed=0):
    "Smooth colour pictures with a little noise, bytes."
    small = torch.rand(n, c, 5, 5, generator=draws(seed))
    x = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
    x = x + 0.02 * torch.randn(x.shape, generator=draws(1))
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def ramp(side):
    "Bytes (1, side, side) that rise from left to right: added to every picture, they make a mean that is not flat."
    return torch.linspace(0, 120, side).to(torch.uint8).expand(1, side, side)


@pytest.fixture(scope="module")
def codec():
    "A small trained codec for digits."
    train = load("mnist5k", limit=256)
    with seeded(0):
        networks = start_linear(lifted((1, 28, 28), widths=(8,), components=8), train)
        model = Compressive(*networks, lam=0.003, step=matched_step(0.003, 1)).prepare(train)
    options = {"batch_size": 32, "seed": 0, "progress": False, "device": "cpu", "epochs": 1}
    learn_density(model, train, lr=2e-2, **options)
    fit(model, train, **options)
    return model.freeze(train)


# ---------------------------------------------------------------- the density


def test_probabilities_sum_to_one_and_are_differences_of_the_cumulative():
    with seeded(1):
        density = Factorised(4).double()
        for p in density.parameters():
            p.data += 0.5 * torch.randn_like(p)
    density.prepare(5 * torch.randn(30, 4, 3, 3, generator=draws(), dtype=torch.float64))
    grid = torch.arange(-3000, 3001, dtype=torch.float64)
    p = density(grid[:, None, None].expand(-1, 4, 1))[..., 0]
    assert_close(p.sum(0), torch.ones(4).double(), atol=1e-4, rtol=0)  # the floor of 1e-9 adds up
    low, high = (torch.sigmoid(density.logits((grid + s).expand(4, -1))) for s in (-0.5, 0.5))
    assert_close(p.T, (high - low).clamp(min=1e-9), atol=1e-9, rtol=1e-6)


def test_the_density_learns_the_entropy_of_a_known_source():
    scale = torch.tensor([0.5, 3.0]).double()
    q = torch.round(torch.distributions.Laplace(0.0, 1.0).icdf(torch.rand(2000, 2, 1, 1, generator=draws())) * scale[:, None, None])
    edges = torch.arange(-200, 201).double() - 0.5
    cdf = torch.distributions.Laplace(torch.zeros(2).double(), scale).cdf(edges[:, None])
    p = cdf.diff(dim=0).clamp(min=1e-300)
    entropy = -(p * p.log2()).sum(0).mean()

    class Rate(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.density = Factorised(2)
            self.density.prepare(q.float())

        def loss_terms(self, batch, phase="main"):
            return {"rate": -self.density(getattr(batch, "x", batch)).log2().mean()}

    with seeded(0):
        model = Rate()
    history = fit(model, q.float(), epochs=10, batch_size=100, lr=0.02, seed=0, progress=False, device="cpu")
    assert_close(history["loss"][-1], entropy.item(), rtol=0.02, atol=0)


# ---------------------------------------------------------------- frequencies and coder


@pytest.mark.parametrize("k", [2, 3, 256, 1024])
def test_frequencies_are_positive_sum_to_the_total_and_cost_no_more_than_the_bound(k):
    p = torch.softmax(8 * torch.randn(40, k, generator=draws(k), dtype=torch.float64), 1)
    f = frequencies(p)
    assert f.dtype == torch.int32 and (f.sum(1) == TOTAL).all() and f.min() >= 1
    cost = (p * (p * TOTAL / f).log2()).sum(1)
    assert cost.min() > -1e-12 and cost.max() <= -math.log2(1 - k / TOTAL)
    assert torch.equal(f, frequencies(7 * p)) and torch.equal(f[3], frequencies(p[3]))
    certain = torch.zeros(k)
    certain[0] = 1
    assert frequencies(certain)[0] == TOTAL - k + 1


@pytest.mark.parametrize("p", [torch.zeros(3), torch.tensor([0.5, -0.1]), torch.tensor([math.nan, 1.0]), torch.tensor([math.inf, 1.0])])
def test_what_is_no_distribution_has_no_frequencies(p):
    with pytest.raises(BadArgument, match="expected probabilities"):
        frequencies(p)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 2, 4), (50, 2, 7, 7), (2, 300)])
def test_any_integers_come_back(shape):
    q = torch.round(4 * torch.randn(shape, generator=draws())).int()
    q.view(-1)[0] = 2**31 - 1
    q.view(-1)[-1] = -(2**31)
    low = torch.randint(-9, -4, (shape[1],), generator=draws())
    table = frequencies(torch.rand(shape[1], 16, generator=draws()) + 0.01)
    words, plain = encode_symbols(q, low, table)
    assert torch.equal(decode_symbols(words, plain, q.shape, low, table), q)
    again = encode_symbols(q, low, table)
    assert again == (words, plain)


def test_the_code_is_as_long_as_the_frequencies_say():
    p = torch.tensor([[0.7, 0.2, 0.05, 0.04, 0.01]]).double()
    q = torch.multinomial(p[0, :4], 20_000, replacement=True, generator=draws()).view(1, 1, -1).int()
    table = frequencies(p)
    words, plain = encode_symbols(q, torch.zeros(1).int(), table)
    deserved = -(table[0].double() / TOTAL)[q.flatten().long()].log2().sum().item()
    assert plain == b"" and deserved <= 8 * len(words) <= deserved + 64 + 1e-4 * 20_000


def test_without_the_package_the_error_names_the_extra(monkeypatch, codec):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ImportError, match="extra `compression`"):
        compress(codec, digits(1))


# ---------------------------------------------------------------- files


def test_a_file_holds_the_integers_bit_for_bit_and_its_header(codec):
    images = digits()
    data = compress(codec, images)
    q, height, width = read_code(data, codec)
    assert torch.equal(q, codec.quantised(images)) and (height, width) == (28, 28)
    assert torch.equal(decompress(codec, data), codec.restored(q, 28, 28)) and data == compress(codec, images)
    magic, version, made, n, h, w, c, words = HEADER.unpack_from(data)
    assert (magic, version, made, n, h, w, c) == (b"AEIC", 1, digest(codec), len(images), 28, 28, 1)
    assert len(data) >= HEADER.size + 4 * words + 4 and zlib.crc32(data[:-4]) == struct.unpack("<I", data[-4:])[0]


def test_a_fresh_process_decodes_it(codec, tmp_path):
    images = digits(20)
    data = compress(codec, images)
    save_model(codec, tmp_path / "model.safetensors")
    (tmp_path / "images.aeic").write_bytes(data)
    program = (
        "import sys, hashlib, torch; torch.set_num_threads(1)\n"
        "from ae_course.autoencoder import load_model\nfrom ae_course.compression import read_code, decompress\n"
        "model, data = load_model(sys.argv[1]), open(sys.argv[2], 'rb').read()\n"
        "print(*[hashlib.sha256(t.numpy().tobytes()).hexdigest() for t in (read_code(data, model)[0], decompress(model, data))])"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "model.safetensors"), str(tmp_path / "images.aeic")]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    mine = [hashlib.sha256(t.numpy().tobytes()).hexdigest() for t in (codec.quantised(images), decompress(codec, data))]
    torch.set_num_threads(threads)
    assert told == mine


def test_a_saved_model_reads_the_files_of_the_first(codec, tmp_path):
    save_model(codec, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert digest(again) == digest(codec) and torch.equal(again.frequency, codec.frequency)
    assert torch.equal(decompress(again, compress(codec, digits())), decompress(codec, compress(codec, digits())))


def test_every_damage_is_an_error(codec):
    data = compress(codec, digits(12))
    for i in range(len(data)):
        with pytest.raises(StreamError):
            decompress(codec, data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :])
    for end in range(len(data)):
        with pytest.raises(StreamError):
            decompress(codec, data[:end])
    with pytest.raises(StreamError, match="checksum"):
        decompress(codec, data + b"\0")


def signed(body):
    return body + struct.pack("<I", zlib.crc32(body))


def test_errors_say_what_is_wrong(codec):
    data = compress(codec, digits(5))
    other = copy.deepcopy(codec)
    other.frequency[0, :2] += torch.tensor([1, -1], dtype=torch.int32)
    for broken, model, words in (
        (b"", codec, "was not written by `compress`"),
        (b"\xff\xd8\xff\xe0" + data[4:], codec, "was not written by `compress`"),
        (data[:20], codec, "cut short"),
        (data[:-30], codec, "cut short"),
        (data[:4] + b"\2" + data[5:], codec, "version 2"),
        (data[:60] + b"\0\0\0" + data[63:], codec, "checksum"),
        (data, other, "made with the model"),
    ):
        with pytest.raises(StreamError, match=words) as error:
            decompress(model, broken)
        assert error.value.exit_code == 3


def test_a_file_with_a_right_checksum_and_wrong_content_is_refused(codec):
    data = compress(codec, digits(5))
    magic, version, made, n, h, w, c, words = HEADER.unpack_from(data)
    head = lambda *numbers: HEADER.pack(magic, version, made, *numbers)
    body = data[HEADER.size : -4]
    for broken in (
        head(65_535, 65_535, 65_535, 1, words) + body,  # a code of terabytes
        head(n, 0, w, c, words) + body,
        head(n + 40, h, w, c, words) + body,
        head(n, h, w, c, words) + body + b"\x80",
        head(n, h, w, c, words) + body + b"\x04",
        head(n, h, w, c, words - 3) + body[: 4 * (words - 3)],
    ):
        with pytest.raises(StreamError):
            decompress(codec, signed(broken))


def test_images_of_any_size_and_outliers_come_back_in_their_own_shape(codec):
    for height, width in ((28, 28), (29, 31), (5, 3), (1, 1)):
        x = pictures(3, 1, height, width)
        assert decompress(codec, compress(codec, x)).shape == x.shape
    coarse = copy.deepcopy(codec)
    coarse.step = codec.step / 500  # far outside of the alphabet: nearly everything is escaped
    x = digits(3)
    assert torch.equal(read_code(compress(coarse, x), coarse)[0], coarse.quantised(x))


@pytest.mark.parametrize(
    "images",
    [torch.rand(2, 1, 28, 28), torch.zeros(0, 1, 28, 28, dtype=torch.uint8), torch.zeros(1, 28, 28, dtype=torch.uint8), None,
     torch.zeros(1, 3, 28, 28, dtype=torch.uint8)],
)  # fmt: skip
def test_what_is_no_image_is_refused(codec, images):
    with pytest.raises(DataError):
        compress(codec, images)


def test_a_model_without_frequencies_cannot_write():
    fresh = Compressive(*blocks((1, 4, 4)))
    for work in (lambda: compress(fresh, digits(1)), lambda: decompress(fresh, b"AEIC")):
        with pytest.raises(BadArgument, match="freeze"):
            work()


def test_bad_arguments():
    networks = blocks((1, 4, 4))
    for options in ({"step": 0}, {"step": -1.0}, {"lam": -1}, {"alphabet": 1}, {"alphabet": 0}):
        with pytest.raises(BadArgument):
            Compressive(*networks, **options)
    with pytest.raises(BadArgument, match="maps"):
        Compressive(*mlp((1, 8, 8), latent_dim=4))
    with pytest.raises(BadArgument, match="maps"):
        Compressive(torch.nn.Identity(), torch.nn.Identity())
    for shape, k in (((1, 4, 5), None), ((4, 4), None), ((1, 4, 4), 17), ((1, 4, 4), 0)):
        with pytest.raises(BadArgument):
            blocks(shape, k)
    with pytest.raises(BadArgument):
        matched_step(0.0)
    with pytest.raises(BadArgument, match="side"):
        tiles(torch.zeros(1, 1, 4, 4), 5)


# ---------------------------------------------------------------- training


def test_the_loss_is_rate_plus_weighted_error_noisy_in_training_rounded_else():
    with seeded(0):
        model = Compressive(*conv((1, 8, 8), (4, 6), output="linear"), lam=0.02, step=0.05)
    x = torch.rand(10, 1, 8, 8, generator=draws())
    model.eval()
    terms = model.loss_terms(x)
    q = torch.round(model.encoder(x) / 0.05)
    assert torch.equal(model.encode(x), q)
    assert_close(terms["rate"], -model.density(q).log2().sum() / (10 * 64))
    assert_close(terms["reconstruction"], 0.02 * 255**2 * (model.decoder(0.05 * q) - x).square().mean())
    model.train()
    noise = model.encode(x) - model.encoder(x) / 0.05
    assert noise.abs().max() <= 0.5 and noise.std() > 0.25
    model.loss_terms(x)["rate"].backward()
    assert model.encoder[0].weight.grad.abs().sum() > 0


def test_training_the_density_alone_leaves_the_networks_and_lowers_the_rate():
    data = digits(64)
    with seeded(0):
        model = Compressive(*start_linear(lifted((1, 28, 28), (4,), 6), data), step=0.3).prepare(data)
    before = [p.clone() for p in (*model.encoder.parameters(), *model.decoder.parameters())]
    history = learn_density(model, data, epochs=4, batch_size=16, lr=0.02, progress=False, device="cpu")
    assert history["rate"][-1] < history["rate"][0]
    for old, p in zip(before, (*model.encoder.parameters(), *model.decoder.parameters())):
        assert torch.equal(old, p) and p.requires_grad


def test_a_lifted_network_starts_as_pca():
    images = Images(pictures(20))
    with seeded(0):
        nets = start_linear(lifted((3, 16, 16), (4, 5), 20), images)
    plain = principal_blocks(images, 8, 20)
    x = images.pixels()
    with torch.no_grad():
        z = plain[0](x)
        assert_close(nets[0](x), z, atol=1e-5, rtol=0)
        assert_close(nets[1](z), plain[1](z), atol=1e-5, rtol=0)


# ---------------------------------------------------------------- PCA


def test_principal_blocks_are_orthonormal_principal_components():
    images = Images(pictures(20))
    encoder, decoder = principal_blocks(images, 8)
    weight = encoder[0].weight.detach().flatten(1)
    assert_close(weight @ weight.T, torch.eye(192), atol=1e-5, rtol=0)
    x = images.pixels()
    with torch.no_grad():
        assert_close(decoder(encoder(x)), x, atol=1e-4, rtol=0)  # complete: nothing is lost
    rows = tiles(images.x, 8).flatten(1).double() / 255
    assert_close(weight[:5].double().abs(), PCA(5).fit(rows).components.abs(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize(("images", "side"), [(digits(200), 28), (Images(pictures(100, height=16, width=16) // 2 + ramp(16)), 16)])
def test_fewer_components_than_values_hold_the_mean_block_too(images, side, k):
    "The decoder adds one colour, not the mean: the error is the rest of the second moment about that colour, and lies between two PCAs."
    encoder, decoder = (network.double() for network in principal_blocks(images, side, k))
    x = images.pixels().double()
    rows = x.flatten(1)
    flat = x.mean((0, 2, 3)).repeat_interleave(side * side)
    with torch.no_grad():
        error = (decoder(encoder(x)) - x).square().mean()
    spread = torch.linalg.eigvalsh((rows - flat).T @ (rows - flat) / len(rows)).flip(0)
    assert_close(error, spread[k:].sum() / rows.shape[1], rtol=1e-5, atol=1e-9)

    def about_the_mean(n):
        return (PCA(n).fit(rows).reconstruct(rows) - rows).square().mean() if n else rows.var(0, correction=0).mean()

    pca = PCA(k).fit(rows)
    lost = (pca.mean - flat) - (pca.mean - flat) @ pca.components.T @ pca.components  # what one colour costs if the directions stay PCA's
    assert lost.square().mean() > 1e-3  # these means are not flat
    assert about_the_mean(k) <= error <= min(about_the_mean(k - 1), about_the_mean(k) + lost.square().mean())


def test_tiles_are_parts_of_their_images():
    x = torch.arange(2 * 3 * 7 * 9).view(2, 3, 7, 9)
    parts = tiles(x, 3)
    assert parts.shape == (2 * 2 * 3, 3, 3, 3)
    assert torch.equal(parts[0], x[0, :, :3, :3]) and torch.equal(parts[5], x[0, :, 3:6, 6:9]) and torch.equal(parts[6], x[1, :, :3, :3])


def test_pca_as_a_codec_follows_the_law_of_fine_steps():
    images = Images(pictures(30, height=64, width=64))
    found = {}
    for step in (0.01, 0.02):
        model = Compressive(*principal_blocks(images, 8), step=step, alphabet=1024).freeze(images, learned=False)
        data = compress(model, images)
        q = model.quantised(images)
        with torch.no_grad():
            error = (model.decode(q.float()) - images.pixels()).square().mean().item()
        found[step] = (8 * len(data), error)
    assert_close(found[0.01][1], 0.01**2 / 12, rtol=0.05, atol=0)
    assert 0.7 < (found[0.01][0] - found[0.02][0]) / images.x.numel() <= 1.02  # a bit a value, less where it is below the step


def test_counted_frequencies_are_the_counts():
    images = digits(100)
    model = Compressive(*principal_blocks(images, 4), step=0.5).freeze(images, learned=False)
    q = model.quantised(images)
    for m in (0, 7):
        share = (q[:, m] == 0).double().mean().item()
        assert_close(model.frequency[m, -int(model.low[m])].item() / TOTAL, share, atol=1e-3, rtol=0)


# ---------------------------------------------------------------- other codecs, measures


@pytest.mark.parametrize("codec_name", CODECS)
@pytest.mark.parametrize("c", [1, 3])
def test_classical_codecs_count_whole_files_and_improve_with_quality(codec_name, c):
    x = pictures(3, c, 40, 48)
    found = [point(x, back, int(sizes.sum())) for sizes, back in (classical(x, codec_name, quality) for quality in (10, 90))]
    assert found[1].psnr > found[0].psnr + 1 and found[1].bpp > found[0].bpp and found[1].ms_ssim > found[0].ms_ssim


def test_shared_tables_save_the_tables_and_nothing_else():
    x = pictures(3)
    (whole, first), (shared, second) = classical(x, "JPEG", 60), classical(x, "JPEG, shared tables", 60)
    assert torch.equal(first, second) and (whole - shared > 200).all()


def test_classical_codecs_refuse():
    for arguments in ((pictures(1, 2), "JPEG", 50), (pictures(1), "PNG", 50), (pictures(1), "JPEG", 0), (pictures(1), "WebP", 101)):
        with pytest.raises(BadArgument):
            classical(*arguments)


def test_sets_that_were_jpeg_are_refused():
    check_lossless(digits(2))
    check_lossless(load("shapes", limit=2))
    for name, about in (("cifar10", {"note": "a JPEG (quality 75) copy"}), ("celeba", {})):
        with pytest.raises(DataError, match="never compressed"):
            check_lossless(Images(pictures(1), name=name, about=about))


def test_ms_ssim_against_torchmetrics_and_against_one_scale():
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as theirs

    x = pictures(2, 1, 176, 180).double() / 255
    for sd in (0.02, 0.2):
        x_hat = (x + sd * torch.randn(x.shape, generator=draws(5), dtype=torch.float64)).clamp(0, 1)
        wanted = theirs(x_hat, x, reduction="none", data_range=1.0, normalize="relu", sigma=1.5, kernel_size=11)
        assert_close(ms_ssim(x_hat, x), wanted.reshape(-1), atol=2e-3, rtol=0)  # theirs goes over the padded borders of the means
    small = x[..., :20, :15]
    noisy = small + 0.1
    assert scales_of(20, 15) == 1 and scales_of(10, 400) == 0 and scales_of(96, 96) == 4 and scales_of(176, 200) == 5
    assert_close(ms_ssim(noisy, small), ssim(noisy, small).clamp(min=0))
    with pytest.raises(BadArgument, match="11 pixels"):
        ms_ssim(x[..., :10, :], x[..., :10, :])


def test_a_point_counts_bits_over_pixels_and_averages_decibels():
    x = pictures(4, 3, 20, 24)
    back = x.clone()
    back[0] ^= 1
    back[1] ^= 3
    back[2:] ^= 2
    found = point(x, back, 960)
    assert found.bpp == 8 * 960 / (4 * 20 * 24)
    assert_close(found.psnr, psnr(back.double() / 255, x.double() / 255).mean().item())


def line(a, b, low, high, n=6):
    return [Point(r, a + b * math.log10(r), 0.0) for r in np.geomspace(low, high, n)]


@pytest.mark.parametrize("ends", [((0.1, 1), (0.1, 1)), ((0.1, 1), (0.3, 5)), ((0.05, 9), (0.3, 0.5))])
def test_bd_psnr_of_lines_is_the_gap_at_the_middle(ends):
    first, second = line(31, 7, *ends[0]), line(29, 10, *ends[1])
    low, high = max(ends[0][0], ends[1][0]), min(ends[0][1], ends[1][1])
    assert common_range(first, second) == pytest.approx((low, high))
    wanted = 2 - 3 * (math.log10(low) + math.log10(high)) / 2
    assert_close(bd_psnr(first, second), wanted, rtol=1e-9, atol=1e-9)
    assert_close(bd_psnr(second[::-1], first), -wanted, rtol=1e-9, atol=1e-9)


def test_bd_psnr_of_a_shifted_curve_is_the_shift():
    rates = np.geomspace(0.1, 4, 8)
    curved = [(r, 30 + 6 * math.log2(r) - math.exp(-r)) for r in rates]
    assert_close(bd_psnr([(r, p + 1.25) for r, p in curved], curved), 1.25, rtol=1e-9, atol=0)
    cheaper = [(r / 2, p) for r, p, _ in line(30, 9, 0.1, 4)]
    assert_close(bd_psnr(cheaper, [p[:2] for p in line(30, 9, 0.1, 4)]), 9 * math.log10(2), rtol=1e-9, atol=0)


def test_bd_psnr_without_common_rates_and_with_bad_ones():
    with pytest.warns(UndefinedMetric, match="no rate in common"):
        assert math.isnan(bd_psnr(line(30, 6, 0.1, 0.5), line(30, 6, 0.6, 2)))
    for bad in ([(0.1, 30.0)], [(0.1, 30.0), (0.1, 31.0)], [(0.0, 30.0), (1.0, 31.0)], [(0.1, math.inf), (1.0, 31.0)]):
        with pytest.raises(BadArgument):
            bd_psnr(bad, line(30, 6, 0.1, 0.5))


def test_the_matched_step_is_the_best_of_the_law():
    for lam, colours in ((0.003, 1), (0.01, 3)):
        cost = lambda step, lam=lam, colours=colours: -colours * math.log2(step) + lam * 255**2 * step**2 / 12
        best = matched_step(lam, colours)
        assert cost(best) < min(cost(best * 1.01), cost(best / 1.01))


def test_importing_the_module_loads_no_coder():
    program = "import sys, ae_course.compression; assert not {'constriction', 'torchmetrics', 'scipy', 'PIL.Image'} & {*sys.modules}"
    assert compression.__name__ in sys.modules
    subprocess.run([sys.executable, "-c", program], check=True)
