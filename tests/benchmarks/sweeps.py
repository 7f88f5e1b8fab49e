"""What a sweep costs beyond its runs: python tests/benchmarks/sweeps.py [--rounds 2] [--cells 12] [--only NAME ...]

- overhead: seconds of `ae-course run` beyond the time the experiment itself takes (start, papermill, kernel, result), for both engines.
- workers: a grid of smoke cells with two workers, one thread each, against one worker that may use all threads; rounds alternate.
- recheck: seconds to look at a thousand finished cells, as `--dry-run` and a sweep with nothing to do make it.
- memory: peak bytes of the driver over 1,000 and over 100,000 cells, by tracemalloc, with an engine that only pretends.

Prints times and ratios. Not a test: nothing here passes or fails. On a machine with other work the ratios tell more than the times.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

from ae_course import sweeps
from ae_course.lab import resolve
from ae_course.sweeps import Board, Driver, Grid, cores, read_grid, survey


def course(*args, out, **env) -> float:
    "Seconds of `ae-course ARGS`."
    began = time.perf_counter()
    command = [sys.executable, "-m", "ae_course.cli", *args, "--out", str(out)]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - began


def results(out) -> list[dict]:
    return [json.loads(path.read_text()) for path in Path(out).glob("*/*/result.json")]


def overhead(args) -> None:
    for engine in ("papermill", "plain"):
        beyond = []
        for seed in range(args.rounds):
            with tempfile.TemporaryDirectory() as out:
                seconds = course("run", "linear", "--preset", "smoke", "-p", "seed", str(seed), "--engine", engine, out=out)
                beyond.append((seconds, results(out)[0]["seconds"]))
        whole, inside = (statistics.median(values) for values in zip(*beyond))
        print(f"overhead, {engine}: run {whole:.1f} s, of which the experiment {inside:.1f} s, beyond it {whole - inside:.1f} s "
              f"({min(a - b for a, b in beyond):.1f} to {max(a - b for a, b in beyond):.1f})")  # fmt: skip


def workers(args) -> None:
    grid = ["sweep", "linear", "--preset", "smoke", "-p", "threads", "none", "--grid", f"seed={','.join(map(str, range(args.cells)))}"]
    free = {name: str(cores()) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    times = {1: [], 2: []}
    for _ in range(args.rounds):
        for many in times:
            with tempfile.TemporaryDirectory() as out:
                times[many].append(course(*grid, "--workers", str(many), out=out, **free))
                assert len(results(out)) == args.cells
    one, two = (statistics.median(times[many]) for many in (1, 2))
    said = {many: ", ".join(f"{seconds:.0f}" for seconds in values) for many, values in times.items()}
    print(f"workers: {args.cells} smoke cells of linear, one worker with {cores()} threads {one:.0f} s ({said[1]}), two with their share "
          f"{two:.0f} s ({said[2]}), ratio {one / two:.2f}")  # fmt: skip


def recheck(args) -> None:
    with tempfile.TemporaryDirectory() as out:
        grid = read_grid("linear", ["seed=" + ",".join(map(str, range(1000)))], "smoke")
        rows = [{"seed": 0, "size": size, "mse": 0.1} for size in range(30)]
        for key, parameters in grid:
            folder = Path(out) / "linear" / key
            folder.mkdir(parents=True)
            result = {"experiment": "linear", "parameters": parameters, "rows": rows, "environment": {}, "code_version": "x", "seconds": 1}
            (folder / "result.json").write_text(json.dumps(result, indent=1))
        began = time.perf_counter()
        assert survey(grid, Path(out)).states["done"] == 1000
        looked = time.perf_counter() - began
        whole = course("sweep", "linear", "--preset", "smoke", "--grid", "seed=" + ",".join(map(str, range(1000))), out=out)
        print(f"recheck: 1000 finished cells of 30 rows looked at in {looked:.2f} s; the whole command {whole:.2f} s")


class Pretended:
    "An engine that says of each cell that it failed, at once."

    lag, busy_tries, pause, moves, slots, about = 0.0, 0, 0.0, 0, 500, ""

    def __init__(self):
        self.keys = []

    def room(self):
        return self.slots - len(self.keys)

    def start(self, name, key, parameters, folder, options):
        self.keys.append(key)

    def ended(self):
        keys, self.keys = self.keys, []
        yield from ((key, 1, "pretended") for key in keys)

    def news(self):
        return []


def memory(args) -> None:
    shared, peaks = resolve("linear", "smoke"), {}
    for count in (1000, 10_000, 100_000):
        grid = Grid("linear", shared, {"seed": range(count // 1000), "latent_dim": range(1, 11), "limit": range(1, 101)})
        with open(os.devnull, "w") as nothing, tempfile.TemporaryDirectory() as out:
            began = time.perf_counter()
            tracemalloc.start()
            driver = Driver(grid, Path(out), Pretended(), Board(nothing, every=3600), survey(grid, Path(out)))
            driver.run()
            peaks[count] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert driver.states["failed"] == count == len(grid)
            print(f"memory: {count} cells, peak {peaks[count] / 2**20:.2f} MiB, {time.perf_counter() - began:.0f} s under tracemalloc")
    print(f"memory: ratio of the peaks, 100,000 cells to 10,000: {peaks[100_000] / peaks[10_000]:.2f}")


if __name__ == "__main__":
    parts = {"recheck": recheck, "memory": memory, "overhead": overhead, "workers": workers}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cells", type=int, default=12)
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, {cores()} cores, load {os.getloadavg()[0]:.1f}, {sweeps.LISTED} rows listed at most")
    for part in args.only:
        parts[part](args)
