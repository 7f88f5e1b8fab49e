"""Probes and SVCCA beside the libraries': python tests/benchmarks/representations.py [--rounds 3] [--only svcca]

Probes: five-fold macro F1 on 2,000 codes of 6,912 numbers (48 maps of 12 x 12, a random convolution with instance normalisation of
mnist5k), by `probe` and by scikit-learn's StandardScaler and LogisticRegression of the same objective, C = 1 / (n * weight decay), both in
float32, each with its default tolerance; for two weight decays. The second is scikit-learn's default C = 1.

SVCCA: two layers of 4,096 units over 2,000 samples, by `svcca` and by the published algorithm of google/svcca: singular value
decompositions of both, the leading directions, joint covariance, inverse roots of its blocks, singular values; float64.

Everything runs in one process, in turns, so that a busy machine disturbs both sides alike. Prints medians, ratios and differences of
scores. Not a test: nothing passes or fails.
"""

import argparse
import platform
import statistics
import time
import warnings

import numpy as np
import torch

from ae_course.data import load
from ae_course.representations import TooFewSamples, folds, probe, svcca
from ae_course.training import seeded


def codes(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    "n digits as codes of 48 maps of 12 x 12."
    data = load("mnist5k")
    with seeded(0), torch.no_grad():
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 48, 3, 2, 1), torch.nn.InstanceNorm2d(48), torch.nn.ReLU())
        index = torch.randperm(len(data))[:n]
        return net(data[index].pixels()[:, :, 2:26, 2:26]).flatten(1), data.y[index]


def library_probe(z: torch.Tensor, y: torch.Tensor, decay: float) -> float:
    "Mean macro F1 over the same folds by scikit-learn."
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fold, scores, z, y_ = folds(y, 5, 0), [], z.numpy(), y.numpy()
    for f in range(5):
        seen = (fold != f).numpy()
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (seen.sum() * decay), max_iter=5000)).fit(z[seen], y_[seen])
        scores.append(f1_score(y_[~seen], model.predict(z[~seen]), average="macro"))
    return float(np.mean(scores))


def published_svcca(a: np.ndarray, b: np.ndarray, keep: float = 0.99) -> float:
    "Mean canonical correlation of the leading singular directions, a, b (units, samples), by the steps of google/svcca."
    cut = []
    for acts in (a, b):
        acts = acts - acts.mean(axis=1, keepdims=True)
        _, s, v = np.linalg.svd(acts, full_matrices=False)
        k = int((np.cumsum(s**2) < keep * np.sum(s**2)).sum()) + 1
        cut.append(s[:k, None] * v[:k])
    p, q = cut
    covariance = np.cov(p, q)
    xx, yy, xy = covariance[: len(p), : len(p)], covariance[len(p) :, len(p) :], covariance[: len(p), len(p) :]
    x_max, y_max = np.abs(xx).max(), np.abs(yy).max()
    roots = []
    for block in (xx / x_max, yy / y_max):
        w, vectors = np.linalg.eigh(np.linalg.pinv(block))
        roots.append(vectors @ np.diag(np.sqrt(np.maximum(w, 0))) @ vectors.T)
    s = np.linalg.svd(roots[0] @ (xy / np.sqrt(x_max * y_max)) @ roots[1])[1]
    return float(np.abs(s).mean())


def units(n: int, d: int, spread: float) -> list[torch.Tensor]:
    "Two codes (n, d) that share some directions, with a falling spectrum."
    draw = torch.Generator().manual_seed(0)
    shared = torch.randn(n, 400, generator=draw, dtype=torch.float64)
    falling = torch.arange(1, 401, dtype=torch.float64) ** -spread
    make = lambda: (shared + 0.7 * torch.randn(n, 400, generator=draw, dtype=torch.float64)) * falling @ torch.randn(
        400, d, generator=draw, dtype=torch.float64
    ) / d**0.5 + 0.001 * torch.randn(n, d, generator=draw, dtype=torch.float64)
    return [make(), make()]


def compared(name: str, ours, theirs, rounds: int) -> None:
    "One line: both times, their ratio round by round, and what they gave."
    times, values = ([], []), [None, None]
    for _ in range(rounds):
        for i, work in enumerate((ours, theirs)):
            began = time.perf_counter()
            values[i] = work()
            times[i].append(time.perf_counter() - began)
    ratio = statistics.median(b / a for a, b in zip(*times))
    print(f"{name:34} {statistics.median(times[0]):8.2f} {statistics.median(times[1]):8.2f} {ratio:7.1f} "
          f"{values[0]:10.6f} {values[1]:10.6f} {abs(values[0] - values[1]):9.1e}", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--units", type=int, default=4096)
    parser.add_argument("--only", choices=("probes", "svcca"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", TooFewSamples)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {args.rounds} rounds")
    print(f"{'':34} {'ours s':>8} {'theirs s':>8} {'ratio':>7} {'score':>10} {'theirs':>10} {'differ':>9}")
    if args.only != "svcca":
        z, y = codes(args.samples)
        for decay in (0.01, 1 / (0.8 * args.samples)):
            ours = lambda decay=decay: float(np.mean(probe(z, y, weight_decay=decay, device="cpu")["f1"]))
            theirs = lambda decay=decay: library_probe(z, y, decay)
            compared(f"probes, {len(z)} x {z.shape[1]}, decay {decay:.2g}", ours, theirs, args.rounds)
    if args.only != "probes":
        a, b = units(args.samples, args.units, 0.7)
        arrays = a.T.numpy().copy(), b.T.numpy().copy()
        compared(f"SVCCA, {len(a)} x {a.shape[1]}", lambda: svcca(a, b).score, lambda: published_svcca(*arrays), args.rounds)


if __name__ == "__main__":
    main()
