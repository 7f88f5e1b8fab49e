"""Seconds to draw from a PixelCNN, with kept activations and naively: python tests/benchmarks/autoregressive.py [--rounds 3]

A PixelCNN of 28 x 28 in four levels, five layers of width 16, as it stands at the start: the pace does not depend on what it has learned.
The naive loop runs the whole network for each of the 784 pixels. A round draws with both, in one process, so that whatever else the machine
does hits all alike. Prints medians, ranges, the median over rounds of the ratio, and the share of pixels in which the samples agree (single
precision; the tests demand equality in double). Not a test: nothing here passes or fails; the aim is 10 times.
"""

import argparse
import platform
import statistics
import time

import torch

from ae_course.autoregressive import PixelCNN, draw_images
from ae_course.training import seeded


def timed(model, n, cached):
    "Seconds on the clock, seconds of the process, and the images."
    start, own = time.perf_counter(), time.process_time()
    x = draw_images(model, n, seed=0, cached=cached)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - own, x


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with seeded(0):
        model = PixelCNN((args.channels, args.size, args.size), width=args.width, layers=args.layers).to(args.device).eval()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {args.device}; {args.channels} x "
          f"{args.size} x {args.size}, {args.layers} layers of width {args.width}, {args.rounds} rounds")  # fmt: skip
    draw_images(model, 1)  # warms up
    for n in args.images:
        found = {cached: [] for cached in (True, False)}
        for _ in range(args.rounds):
            for cached in found:
                found[cached].append(timed(model, n, cached))
        agreed = (found[True][0][2] == found[False][0][2]).float().mean().item()
        for cached, name in ((True, "cached"), (False, "naive")):
            clock = [f[0] for f in found[cached]]
            print(f"{n:3} images, {name:6} {statistics.median(clock):8.3f} s ({min(clock):.3f} to {max(clock):.3f}); process "
                  f"{statistics.median(f[1] for f in found[cached]):8.3f} s")  # fmt: skip
        ratios = [statistics.median(slow[i] / fast[i] for fast, slow in zip(found[True], found[False])) for i in (0, 1)]
        print(f"{n:3} images: naive over cached {ratios[0]:.1f} times by the clock, {ratios[1]:.1f} of the process; "
              f"{agreed:.3%} of the pixels agree")  # fmt: skip


if __name__ == "__main__":
    main()
