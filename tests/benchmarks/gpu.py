"""`fit` on a GPU: python tests/benchmarks/gpu.py [--rounds 5] [--trace FOLDER]

1. Small perceptrons: images a second of `fit` (replayed as a CUDA graph, and as written) against a plain DataLoader loop on the same GPU,
   float32 and bfloat16, batches of 128 and 32, in turns in one process; medians, ranges, ratios.
2. `fit_many` in lockstep, one graph for all, against the same models one after another: the slides' nine code sizes, eight seeds of one.
3. The networks of Daly et al. (2022) with 128 and 256 filters: the share that a step of `fit` reaches of the machine's own ceiling, which
   is measured beside it (a product of two 8192 x 8192 matrices in bfloat16); PyTorch counts the floating point operations of a step.
4. A trace of one epoch: how often the CPU waited for the GPU between the first and the last step. The aim is none.

It has not been run on a GPU by the authors, who had none at hand; `--device cpu --images 256 --filters 8 --edge 512` only shows that it
runs, its numbers say nothing. Not a test: nothing here passes or fails.
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
from ae_course.generation import daly_model
from ae_course.training import fit, fit_many, seeded

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::item", "aten::_local_scalar_dense")
SETS = {"nine code sizes": [784, 256, 64, 32, 16, 8, 4, 2, 1], "eight seeds": [64] * 8}


def small(size=64):
    with seeded(0):
        return Autoencoder(*mlp(hidden=(256,), latent_dim=size))


def wide(filters):
    with seeded(0):
        return daly_model("dae", (3, 32, 32), filters, 128)


def finished(args):
    if args.device == "cuda":
        torch.cuda.synchronize()


def told(ratios):
    return f"{statistics.median(ratios):6.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]"


def by_loader(args, x, batch, precision):
    model, seconds = small().to(args.device), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(args.epochs):
        start = time.perf_counter()
        for (part,) in DataLoader(TensorDataset(x), batch_size=batch, shuffle=True):
            part = part.to(args.device)
            optimizer.zero_grad()
            with torch.autocast(args.device, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = F.mse_loss(model(part).float(), part)
            loss.backward()
            optimizer.step()
        finished(args)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def by_fit(args, model, data, batch, precision, replay=True):
    call = {"batch_size": batch, "precision": precision, "replay": replay, "device": args.device, "progress": False}
    return statistics.median(fit(model, data, epochs=args.epochs, **call)["seconds"][1:])


def perceptrons(args, images):
    x = images.pixels()
    for precision in ("float32", "bfloat16"):
        for batch in (128, 32):
            loops = {
                "DataLoader": lambda b=batch, p=precision: by_loader(args, x, b, p),
                "written": lambda b=batch, p=precision: by_fit(args, small(), images, b, p, False),
                "replayed": lambda b=batch, p=precision: by_fit(args, small(), images, b, p),
            }
            seconds = {name: [] for name in loops}
            for _ in range(args.rounds):
                for name, loop in loops.items():
                    seconds[name].append(loop())
            for name, values in seconds.items():
                ratios = [plain / value for plain, value in zip(seconds["DataLoader"], values)]
                pace = len(x) / statistics.median(values)
                print(f"{precision:9} batch {batch:4} {name:11} {pace:12,.0f} images/s, {told(ratios)} the DataLoader loop")


def many(args, images):
    for name, sizes in SETS.items():
        for batch in (128, 32):
            seconds = {True: [], False: []}
            for _ in range(args.rounds):
                for lockstep, values in seconds.items():
                    call = {"epochs": args.epochs, "batch_size": batch, "device": args.device, "progress": False, "lockstep": lockstep}
                    histories = fit_many(map(small, sizes), images, seed=range(len(sizes)), **call)
                    values.append(sum(statistics.median(history["seconds"][1:]) for history in histories))
            ratios = [apart / together for apart, together in zip(seconds[False], seconds[True])]
            print(f"{name:16} batch {batch:4}: in lockstep {told(ratios)} one after another")


def ceiling(args):
    a = torch.randn(args.edge, args.edge, device=args.device, dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    finished(args)
    start = time.perf_counter()
    for _ in range(20):
        a @ a
    finished(args)
    return 20 * 2 * args.edge**3 / (time.perf_counter() - start)


def share(args):
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (min(8192, args.images), 3, 32, 32), dtype=torch.uint8, generator=draw)
    images, top = Images(x, name="noise"), ceiling(args)
    for filters in args.filters:
        model = wide(filters).to(args.device)
        with FlopCounterMode(display=False) as counted:
            model.loss_terms(images[:128].pixels(args.device))["reconstruction"].backward()
        for batch in (128, 512):
            seconds = [by_fit(args, wide(filters), images, batch, "bfloat16") for _ in range(args.rounds)]
            reached = counted.get_total_flops() * len(x) / min(128, len(x)) / statistics.median(seconds)
            name = f"Daly's networks, {filters} filters, batch {batch}"
            print(f"{name}: {reached / 1e12:.2f} TFLOP/s, {reached / top:.1%} of {top / 1e12:.2f}")


def waits(args, images):
    model = small()
    by_fit(args, model, images, 128, "float32")
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if args.device == "cuda" else [])]
    with profile(activities=kinds) as seen:
        by_fit(args, model, images, 128, "float32")
    if args.trace:
        args.trace.mkdir(parents=True, exist_ok=True)
        seen.export_chrome_trace(str(args.trace / "fit.json"))
    events = seen.events()
    launches = [e.time_range.start for e in events if e.name == "cudaGraphLaunch"]
    steps = -(-len(images) // 128)
    last = launches[-steps:] or [0]
    during = [e.name for e in events if e.name in WAITS and last[0] < e.time_range.start < last[-1]]
    print(f"{len(launches)} launches; the CPU waited {len(during)} times within the last epoch: {sorted(set(during))}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4, help="at least 2: the first is not counted")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--filters", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--edge", type=int, default=8192, help="of the matrices whose product is the ceiling")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--trace", type=Path, help="a folder for the trace (chrome://tracing)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return 2
    digits = load("mnist5k").x
    images = Images(digits.repeat(-(-args.images // len(digits)), 1, 1, 1)[: args.images].contiguous(), name="digits")
    name = torch.cuda.get_device_name() if args.device == "cuda" else "a CPU, which says nothing of a GPU"
    print(f"{name}, torch {torch.__version__}, {args.rounds} rounds of {args.epochs} epochs, {len(images)} images")
    perceptrons(args, images)
    many(args, images)
    share(args)
    waits(args, images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
