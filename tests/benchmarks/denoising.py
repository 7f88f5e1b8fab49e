"""What a corruption costs beside a training step: python tests/benchmarks/denoising.py [--rounds 31] [--device cpu]

A step is that of `fit`: forward, backward and fused Adam of a 784-256-784 perceptron, float32, on a batch of 128 digits. Each round times
every corruption and the step, one after another, so that a busy machine disturbs all of them alike; `--repeats` calls a measurement.
Prints medians over the rounds, the median of the rounds' ratios to the step, and the spread of these. Not a test: nothing passes or fails.
"""

import argparse
import platform
import statistics
import time

import torch

from ae_course.autoencoder import Autoencoder, mlp
from ae_course.data import load
from ae_course.denoising import erase, erase_block, gaussian, salt_and_pepper, uniform
from ae_course.training import denormals_flushed, seeded


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    x = load("mnist5k").pixels()[: args.batch_size].to(device)
    with seeded(0):
        model = Autoencoder(*mlp(hidden=(), latent_dim=256)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step():
        for p in model.parameters():
            p.grad = None
        model.loss_terms(x)["reconstruction"].backward()
        optimizer.step()

    kinds = [gaussian(0.3), uniform(0.5), erase(0.5), salt_and_pepper(0.3), erase_block(10)]
    timed = {"a training step": step} | {str(kind): lambda kind=kind: kind(x) for kind in kinds}
    seconds = {name: [] for name in timed}
    with denormals_flushed():
        for _ in range(args.rounds + 2):  # the first two warm up
            for name, work in timed.items():
                start = time.perf_counter()
                for _ in range(args.repeats):
                    work()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append((time.perf_counter() - start) / args.repeats)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {device}; "
          f"784-256-784, batch {len(x)}, {args.rounds} rounds")  # fmt: skip
    print(f"{'':20} {'ms':>8} {'of a step':>10} {'quartiles':>16}")
    steps = seconds["a training step"][2:]
    for name, values in seconds.items():
        ratios = [value / step for value, step in zip(values[2:], steps)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:20} {1e3 * statistics.median(values[2:]):8.3f} {middle:10.1%} {low:8.1%} {high:7.1%}")


if __name__ == "__main__":
    main()
