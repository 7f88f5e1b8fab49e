"""Images per second of `fit` against two loops, interleaved in one process: python tests/benchmarks/training.py [--rounds 5]

784-256-64-256-784 perceptrons, ReLU, sigmoid output, mean squared error, Adam, float32, on one and the same data:
- DataLoader: the plain loop of most tutorials (TensorDataset, shuffled, no workers, Adam as PyTorch has it by default),
- tight: images in memory as floats, one index operation a batch, fused Adam, nothing recorded,
- fit: the course's loop, which also records every term of every step and flushes denormals.
Each round trains each loop for some epochs from the same start; the epochs' times after the first of each are kept. Prints medians,
their spread, and ratios of medians. Not a test: nothing here passes or fails.
"""

import argparse
import platform
import statistics
import time

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from ae_course.autoencoder import Autoencoder, mlp
from ae_course.training import fit, order, seeded


def build(device):
    with seeded(0):
        return Autoencoder(*mlp((1, 28, 28), hidden=(256,), latent_dim=64)).to(device)


def dataloader_loop(x, epochs, batch_size, device):
    model, seconds = build(device), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(x), batch_size=batch_size, shuffle=True)
    for _ in range(epochs):
        start = time.perf_counter()
        for (batch,) in loader:
            batch = batch.to(device)
            optimizer.zero_grad()
            F.mse_loss(model(batch), batch).backward()
            optimizer.step()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def tight_loop(x, epochs, batch_size, device):
    model, x, seconds = build(device), x.to(device), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    for epoch in range(epochs):
        start = time.perf_counter()
        for index in order(len(x), 0, epoch).to(device).split(batch_size):
            batch = x[index]
            optimizer.zero_grad()
            F.mse_loss(model(batch), batch).backward()
            optimizer.step()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def fit_loop(x, epochs, batch_size, device):
    return fit(build(device), x, epochs=epochs, batch_size=batch_size, device=device, progress=False)["seconds"]


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    # digits repeated: the arithmetic, and the units that die, are those of real images
    from ae_course.data import load

    digits = load("mnist5k").pixels()
    x = digits.repeat(-(-args.images // len(digits)), 1, 1, 1)[: args.images].contiguous()
    loops = {"DataLoader": dataloader_loop, "tight": tight_loop, "fit": fit_loop}
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {device}; "
        f"{len(x)} images, {args.rounds} rounds of {args.epochs} epochs"
    )
    for batch_size in args.batch_sizes:
        times = {name: [] for name in loops}
        late = {name: [] for name in loops}
        for _ in range(args.rounds):
            for name, loop in loops.items():
                seconds = loop(x, args.epochs, batch_size, device)
                times[name] += seconds[1:]
                late[name].append(seconds[-1] / seconds[1])
        median = {name: statistics.median(values) for name, values in times.items()}
        print(f"\nbatch {batch_size:4}   {'images/s':>9} {'s/epoch':>8} {'min':>7} {'max':>7} {'last/2nd':>9} {'fit is':>8}")
        for name, values in times.items():
            print(f"{name:12} {len(x) / median[name]:9.0f} {median[name]:8.3f} {min(values):7.3f} {max(values):7.3f} "
                  f"{statistics.median(late[name]):9.2f} {median[name] / median['fit']:7.2f}x")  # fmt: skip


if __name__ == "__main__":
    main()
