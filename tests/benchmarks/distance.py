"""Seconds of a Fréchet distance of 10,000 x 2,048 features by several routes: python tests/benchmarks/distance.py [--rounds 3]

From means and covariances, which every route needs and which are computed once, timed by themselves: ours, scipy's general matrix square
root, torchmetrics' and torch-fidelity's eigenvalues of a matrix that is not symmetric (left out, and said, where a package is not there).
A round takes every route in turn, in one process, so that whatever else the machine does hits all alike. Prints medians and ranges on
the clock, medians of the process's own seconds, for both the median over rounds of the ratio to ours of the same round, and the relative
difference of the results. Not a test: nothing here passes or
fails; the aims are a tenth of scipy's time, a third of torchmetrics', and results equal to 1e-6.
"""

import argparse
import platform
import statistics
import time
import warnings

import numpy as np
import torch

from ae_course.distance import SmallSample, frechet_distance, moments


def features(n, k, seed):
    "Correlated features (n, k) whose eigenvalues fall slowly, as those of a trained network do; never negative."
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(k, k, generator=draw, dtype=torch.float64) * torch.linspace(1, 0.05, k, dtype=torch.float64)[:, None] / k**0.5
    return (torch.randn(n, k, generator=draw, dtype=torch.float64) @ mixing + 0.3 + 0.05 * seed).clamp(min=0)


def by_scipy(a, b):
    from scipy.linalg import sqrtm

    root = np.real(sqrtm((a.covariance @ b.covariance).cpu().numpy()))
    return ((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()).item() - 2 * float(np.trace(root))


def by_torchmetrics(a, b):
    from torchmetrics.image.fid import _compute_fid

    return _compute_fid(a.mean, a.covariance, b.mean, b.covariance).item()


def by_torch_fidelity(a, b):
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    pair = [{"mu": m.mean.cpu().numpy(), "sigma": m.covariance.cpu().numpy()} for m in (a, b)]
    return fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID]


def timed(call, *args):
    "Seconds on the clock, seconds of the process (all its threads), and what `call` gave."
    start, own = time.perf_counter(), time.process_time()
    value = call(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - own, value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--few", type=int, default=1000, help="images for the distance from fewer images than features")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {device}; "
          f"{args.images:,} x {args.features:,}, {args.rounds} rounds")  # fmt: skip
    a, b = (features(args.images, args.features, seed).to(device) for seed in (0, 1))
    seconds, own, of_a = timed(moments, a)
    of_b = moments(b)
    print(f"mean and covariance of one set, which every route needs: {seconds:.2f} s, {own:.2f} s of the process")
    routes, times, values = {"ours": frechet_distance}, {}, {}
    for name, module, route in (("torchmetrics", "torchmetrics", by_torchmetrics), ("torch-fidelity", "torch_fidelity", by_torch_fidelity),
                                ("scipy", "scipy", by_scipy)):  # fmt: skip
        try:
            __import__(module)
            routes[name] = route
        except ImportError:
            print(f"{name}: left out, not installed")
    for _ in range(args.rounds):
        for name, route in routes.items():
            *seconds, values[name] = timed(route, of_a, of_b)
            times.setdefault(name, []).append(seconds)
    for name, found in times.items():
        clock, own = zip(*found)
        ratios = [statistics.median(theirs[i] / ours[i] for theirs, ours in zip(found, times["ours"])) for i in (0, 1)]
        gap = abs(values[name] / values["ours"] - 1)
        print(f"{name:15} {statistics.median(clock):7.2f} s ({min(clock):.2f} to {max(clock):.2f}), {ratios[0]:5.1f} times ours; "
              f"process {statistics.median(own):7.2f} s, {ratios[1]:5.1f} times; {values[name]:.10g}, relative difference {gap:.1e}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallSample)
        few = [timed(frechet_distance, a[: args.few], b[: args.few])[0] for _ in range(args.rounds)]
    print(f"from {args.few:,} images each, fewer than features, with the moments: {statistics.median(few):.2f} s")


if __name__ == "__main__":
    main()
