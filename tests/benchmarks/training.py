"""What a step of `fit` costs, family by family:
python tests/benchmarks/training.py [--table nbs/speed_families.csv] [--products] [--many] [--start] [--rounds 5]

By default: for each family, the seconds of a training by `fit`, replayed and as written, against the same family's tight loop (images in
memory, one index operation a batch, the loss terms' sum, fused Adam, nothing recorded), in turns in one process; medians, ranges, and
ratios of the same round; and what the last epoch takes beside the second (numbers too small to be worth their time).
--table: a CSV to which these rows are added.
--products: the products of matrices of a dense layer by PyTorch's `mm` and by oneDNN, whose crossing is `ae_course.replay.LARGE`.
--many: `fit_many` over the slides' nine code sizes against one `fit` after another, both with as many threads as --threads says.
--start: seconds from the command to its first line of help, and of an experiment to its first epoch.
Seconds are those of this thread on the processor (--clock cpu, undisturbed by others that wait for the same core) or of the wall.
Not a test: nothing here passes or fails.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from peers import add_rows, processor

from ae_course.autoencoder import Autoencoder, mlp
from ae_course.contractive import ContractiveAutoencoder, tied
from ae_course.data import Images, load
from ae_course.denoising import DenoisingAutoencoder, gaussian
from ae_course.replay import LARGE, _linear
from ae_course.sparse import SparseAutoencoder
from ae_course.stacked import conv_stack
from ae_course.training import denormals_flushed, fit, fit_many, order, seeded
from ae_course.undercomplete import network

COLOUR = "convolutional, 3 x 64 x 64"
FAMILIES = {
    "plain": lambda: Autoencoder(*mlp(hidden=(256,), latent_dim=64)),
    "plain, 784-1024-32": lambda: Autoencoder(*mlp(hidden=(1024,), latent_dim=32)),
    "slides, code 784": lambda: network("slides", (1, 28, 28), 784),
    "sparse, KL": lambda: SparseAutoencoder(*mlp(hidden=(256,), latent_dim=64, code_activation="sigmoid"), 0.1, "kl", 0.05),
    "denoising": lambda: DenoisingAutoencoder(*mlp(hidden=(256,), latent_dim=64), gaussian(0.3)),
    "contractive": lambda: ContractiveAutoencoder(*tied(latent_dim=256), 0.1, "closed"),
    "convolutional": lambda: Autoencoder(*conv_stack(channels=(16, 32))),
    COLOUR: lambda: Autoencoder(*conv_stack((3, 64, 64), channels=(16, 32))),
}


def images_of(name, args):
    "Digits; for the convolutions over 3 x 64 x 64 pixels a sixteenth as many images, of which only the number and the size matter here."
    if name != COLOUR:
        return load("mnist5k", limit=args.images)
    count = max(args.images // 16, 2 * args.batch_size)
    x = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(x, name="noise")


def built(make):
    with seeded(0):
        return make()


def by_fit(make, data, args, replay):
    model, marks = built(make), [args.now()]
    call = {"epochs": args.epochs, "batch_size": args.batch_size, "device": "cpu", "replay": replay}
    fit(model, data, progress=lambda row: marks.append(args.now()), **call)
    return marks


def by_tight_loop(make, data, args, replay=None):
    model, x = built(make).train(), data.pixels()
    optimizer, marks = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True), [args.now()]
    with torch.random.fork_rng():
        for epoch in range(args.epochs):
            for index in order(len(x), 0, epoch).split(args.batch_size):
                optimizer.zero_grad()
                sum(model.loss_terms(x[index]).values()).backward()
                optimizer.step()
            marks.append(args.now())
    return marks


def families(args):
    loops = {"tight": (by_tight_loop, None), "written": (by_fit, False), "replayed": (by_fit, True)}
    print(f"batch {args.batch_size}, {args.rounds} rounds of {args.epochs} epochs; ms a step, times the tight pace")
    machine, rows = f"{processor()}, {args.threads} thread{'s' * (args.threads > 1)}, torch {torch.__version__}", []
    for name, make in FAMILIES.items():
        data = images_of(name, args)
        steps = -(-len(data) // args.batch_size)
        spent, late = {loop: [] for loop in loops}, {loop: [] for loop in loops}
        for _ in range(args.rounds):
            for loop, (run, replay) in loops.items():
                marks = run(make, data, args, replay)
                epochs = [b - a for a, b in zip(marks, marks[1:])][1:]
                spent[loop].append(1e3 * statistics.median(epochs) / steps)
                late[loop].append(epochs[-1] / epochs[0])
        shown = []
        for loop, values in spent.items():
            ratios = [t / v for t, v in zip(spent["tight"], values)]
            row = {
                "machine": machine, "clock": args.clock,
                "family": name, "images": len(data), "batch": args.batch_size, "epochs": args.epochs, "loop": loop,
                "ms": statistics.median(values), "ms_min": min(values), "ms_max": max(values),
                "pace": statistics.median(ratios), "pace_min": min(ratios), "pace_max": max(ratios), "late": statistics.median(late[loop]),
            }  # fmt: skip
            rows.append({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
            shown.append(f"{loop} {row['ms']:6.2f} [{row['ms_min']:.2f}, {row['ms_max']:.2f}] "
                         f"{row['pace']:.2f}x, last/2nd {row['late']:.2f}")  # fmt: skip
        print(f"{name:26} {len(data):5} images: " + " | ".join(shown), flush=True)
    if args.table:
        add_rows(args.table, rows)


def products(args):
    def least(work):
        taken = []
        for _ in range(args.rounds * 40):
            start = args.now()
            work()
            taken.append(args.now() - start)
        return 1e6 * min(taken)

    linear = _linear()
    if linear is None:
        return print("oneDNN is not built into this PyTorch")
    print(f"microseconds (least of {args.rounds * 40}); LARGE = {LARGE:,} multiplications")
    for batch, n, m in ((32, 64, 256), (128, 64, 256), (32, 784, 256), (64, 1024, 784), (128, 784, 256)):
        x, w, g = torch.rand(batch, n), torch.rand(m, n), torch.rand(batch, m)
        pairs = {"forward": (x, w.t()), "weights": (g.t(), x), "input": (g, w)}
        with torch.no_grad():
            shown = [f"{k} {least(partial(torch.mm, *pq)):7.1f} {least(partial(linear, pq[0], pq[1].t(), None, 'none', [], '')):7.1f}"
                     for k, pq in pairs.items()]  # fmt: skip
        print(f"{batch:4} x {n:4} x {m:4} = {batch * n * m:11,}: mm, oneDNN: " + " | ".join(shown))
    return None


def many(args):
    data, sizes = load("mnist5k", limit=args.images), (784, 256, 64, 32, 16, 8, 4, 2, 1)
    call = {"epochs": args.epochs, "batch_size": 32, "device": "cpu", "progress": False}
    ratios = []
    for _ in range(args.rounds):
        both = []
        for together in (False, True):
            models = [built(lambda z=z: network("slides", (1, 28, 28), z)) for z in sizes]
            start = time.perf_counter()
            if together:
                fit_many(models, data, **call)
            else:
                for model in models:
                    fit(model, data, **call)
            both.append((time.perf_counter() - start, models))
        ratios.append(both[0][0] / both[1][0])
        apart = max((p - q).abs().max().item() for a, b in zip(both[0][1], both[1][1]) for p, q in zip(a.parameters(), b.parameters()))
        print(f"one after another {both[0][0]:.2f} s, fit_many {both[1][0]:.2f} s, {ratios[-1]:.2f}x; "
              f"weights differ by at most {apart:.1e}", flush=True)  # fmt: skip
    print(f"median {statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]")


def start(args):
    def seconds(*command, until=None):
        begun, command = time.perf_counter(), [sys.executable, "-m", "ae_course.cli", *command]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout:
                if until and until in line:
                    break
            taken = time.perf_counter() - begun
            process.terminate() if until else process.wait()
        return taken

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # what was ended may still write
        for _ in range(args.rounds):
            helped = seconds("--help")
            out = os.path.join(folder, str(time.time()))
            trained = {
                engine: seconds("run", "code_size", "--preset", "smoke", "--engine", engine, "--out", out + engine, until=", epoch ")
                for engine in ("plain", "papermill")
            }
            shown = "; ".join(f"run to its first epoch, {engine} {taken:.2f} s" for engine, taken in trained.items())
            print(f"--help {helped:.2f} s; {shown}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for mode in (products, many, start):
        parser.add_argument(f"--{mode.__name__}", dest="mode", action="store_const", const=mode, default=families)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--table", type=Path, help="a CSV to which the rows of the families are added")
    args = parser.parse_args()
    args.now = time.thread_time if args.clock == "cpu" else time.perf_counter
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {platform.machine()}, {args.clock} seconds")
    with denormals_flushed():
        args.mode(args)


if __name__ == "__main__":
    main()
