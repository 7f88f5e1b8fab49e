"""`fit` on a GPU: python tests/benchmarks/gpu.py [--rounds 5] [--trace FOLDER]

1. Small perceptrons: images a second of `fit` (replayed as a CUDA graph, and as written) against a plain DataLoader loop on the same GPU,
   float32 and bfloat16, batches of 128 and 32, in turns in one process; medians, ranges, ratios.
2. Large layers: the share that a step of `fit` reaches of the machine's own ceiling, which is measured beside it (a product of two
   8192 x 8192 matrices in bfloat16); the floating point operations of a step are counted by PyTorch.
3. A trace of one epoch: how often the CPU waited for the GPU between the first and the last step. The aim is none.

It has not been run by the authors, who had no GPU at hand. Not a test: nothing here passes or fails.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from ae_course.autoencoder import Autoencoder, mlp
from ae_course.data import Images, load
from ae_course.stacked import conv_stack
from ae_course.training import fit, seeded

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::item", "aten::_local_scalar_dense")


def small():
    with seeded(0):
        return Autoencoder(*mlp(hidden=(256,), latent_dim=64))


def wide():
    with seeded(0):
        return Autoencoder(*conv_stack((3, 64, 64), channels=(128, 256)))


def by_loader(x, batch, epochs, precision):
    model, seconds = small().cuda(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        start = time.perf_counter()
        for (part,) in DataLoader(TensorDataset(x), batch_size=batch, shuffle=True):
            part = part.cuda()
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = F.mse_loss(model(part).float(), part)
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def by_fit(model, data, batch, epochs, precision, replay=True):
    call = {"batch_size": batch, "precision": precision, "replay": replay, "device": "cuda", "progress": False}
    return statistics.median(fit(model, data, epochs=epochs, **call)["seconds"][1:])


def perceptrons(args, images):
    x = images.pixels()
    for precision in ("float32", "bfloat16"):
        for batch in (128, 32):
            loops = {
                "DataLoader": lambda b=batch, p=precision: by_loader(x, b, args.epochs, p),
                "written": lambda b=batch, p=precision: by_fit(small(), images, b, args.epochs, p, False),
                "replayed": lambda b=batch, p=precision: by_fit(small(), images, b, args.epochs, p),
            }
            seconds = {name: [] for name in loops}
            for _ in range(args.rounds):
                for name, loop in loops.items():
                    seconds[name].append(loop())
            for name, values in seconds.items():
                ratios = [plain / value for plain, value in zip(seconds["DataLoader"], values)]
                print(f"{precision:9} batch {batch:4} {name:11} {len(x) / statistics.median(values):12,.0f} images/s, "
                      f"{statistics.median(ratios):6.2f}x [{min(ratios):.2f}, {max(ratios):.2f}] the DataLoader loop")  # fmt: skip


def ceiling():
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - start)


def share(args):
    x = torch.randint(0, 256, (4096, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images, top = Images(x, name="noise"), ceiling()
    model = wide().cuda()
    with FlopCounterMode(display=False) as counted:
        model.loss_terms(images[:256].pixels("cuda"))["reconstruction"].backward()
    for _ in range(args.rounds):
        seconds = by_fit(wide(), images, 256, args.epochs, "bfloat16")
        reached = counted.get_total_flops() * len(x) / 256 / seconds
        print(f"convolutions of 128 and 256 maps at 64 pixels: {reached / 1e12:.1f} TFLOP/s, {reached / top:.1%} of {top / 1e12:.1f}")


def waits(args, images):
    model = small()
    by_fit(model, images, 128, 2, "float32")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        by_fit(model, images, 128, 2, "float32")
    if args.trace:
        args.trace.mkdir(parents=True, exist_ok=True)
        seen.export_chrome_trace(str(args.trace / "fit.json"))
    events = seen.events()
    launches = [e.time_range.start for e in events if e.name == "cudaGraphLaunch"]
    steps = -(-len(images) // 128)
    half = launches[-steps:] or [0]  # the last epoch
    during = [e.name for e in events if e.name in WAITS and half[0] < e.time_range.start < half[-1]]
    print(f"{len(launches)} launches; the CPU waited {len(during)} times within the last epoch: {sorted(set(during))}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--trace", type=Path, help="a folder for the trace (chrome://tracing)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return 2
    digits = load("mnist5k").x
    images = Images(digits.repeat(-(-args.images // len(digits)), 1, 1, 1)[: args.images].contiguous(), name="digits")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.rounds} rounds of {args.epochs} epochs, {len(images)} images")
    perceptrons(args, images)
    share(args)
    waits(args, images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
