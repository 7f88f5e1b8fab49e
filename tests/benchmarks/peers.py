"""`fit` against the loops of other libraries: python tests/benchmarks/peers.py [--threads 1] [--rounds 3] [--table nbs/speed.csv] [--grow]

One model (784-256-64-256-784, ReLU, sigmoid output, mean squared error, Adam, 32 bits), one set of images, one batch size after the other.
Every contender lives in a process of its own, pinned to the same cores, and waits until it is asked; a round asks each in turn to train
from the same kind of start for some epochs, so that whatever else the machine does hits all alike. The first epoch of each (compilation,
first memory) is not counted. Prints for each the median and the range of an epoch's seconds, the median and the range over the rounds of
the ratio to `fit` in the same round, and the seconds of the processors, which a busy machine disturbs less. Contenders that are not
installed are named and left out: pip install "ae_course[bench]".

- DataLoader: the loop of most tutorials (TensorDataset, shuffled, no workers, Adam as PyTorch has it by default),
- tight: images in memory as floats, one index operation a batch, fused Adam, nothing recorded,
- written: `fit(replay=False)`; replayed: `fit` as it is,
- floor: the eleven products of a step into memory that is there, and fused Adam on one flat array; nothing else that a step needs.
  With PyTorch's `mm` (MKL), and with oneDNN's product where that is faster.

--grow: not one setting but how the pace grows from it: with a quarter and four times the images, width and code, one at a time.

Not a test: nothing here passes or fails. The time it takes is bounded by --rounds, --epochs and --images.
"""

import argparse
import contextlib
import csv
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

CONTENDERS = {  # name -> the package it needs
    "replayed": "torch", "written": "torch", "tight": "torch", "DataLoader": "torch", "pythae": "pythae", "lightning": "lightning",
    "keras on jax": "keras", "scikit-learn": "sklearn", "floor, mm": "torch", "floor, oneDNN": "torch",
}  # fmt: skip


class Clock:
    "Marks at the ends of epochs: seconds that passed, seconds of the processors."

    def __init__(self):
        self.marks = [(time.perf_counter(), time.process_time())]

    def mark(self, *_, **__):
        self.marks.append((time.perf_counter(), time.process_time()))

    def epochs(self):
        return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(self.marks, self.marks[1:])]


def build(a):
    from ae_course.autoencoder import Autoencoder, mlp
    from ae_course.training import seeded

    with seeded(0):
        return Autoencoder(*mlp((1, 28, 28), hidden=(a.width,), latent_dim=a.code))


def by_fit(a, x, batch, replay):
    from ae_course.training import fit

    clock = Clock()
    history = fit(build(a), x, epochs=a.epochs, batch_size=batch, device="cpu", progress=clock.mark, replay=replay)
    return clock, history["loss"][-1]


def by_loop(a, x, batch, loader):
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader, TensorDataset

    from ae_course.training import order

    model, total = build(a), 0.0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=None if loader else True)
    torch.manual_seed(0)
    batches = DataLoader(TensorDataset(x), batch_size=batch, shuffle=True)
    clock = Clock()
    for epoch in range(a.epochs):
        total = 0.0
        for part in batches if loader else order(len(x), 0, epoch).split(batch):
            images = part[0] if loader else x[part]
            optimizer.zero_grad()
            loss = F.mse_loss(model(images), images)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(images)
        clock.mark()
    return clock, (total / len(x)).item()


def by_pythae(a, x, batch):
    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import AE, AEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    ours, clock = build(a), Clock()

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.net = ours.encoder

        def forward(self, x):
            return ModelOutput(embedding=self.net(x))

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.net = ours.decoder

        def forward(self, z):
            return ModelOutput(reconstruction=self.net(z))

    class Marks(TrainingCallback):
        on_epoch_end = clock.mark

    with tempfile.TemporaryDirectory() as folder:
        model = AE(AEConfig(input_dim=(1, 28, 28), latent_dim=a.code), encoder=Encoder(), decoder=Decoder())
        how = {"per_device_train_batch_size": batch, "learning_rate": 1e-3, "no_cuda": True}
        config = BaseTrainerConfig(output_dir=folder, num_epochs=a.epochs, **how)

        data = BaseDataset(x, torch.zeros(len(x)))
        trainer = BaseTrainer(model=model, train_dataset=data, training_config=config, callbacks=[Marks()])
        clock.mark()
        trainer.train()
    del clock.marks[0]
    return clock, float("nan")


def by_lightning(a, x, batch):
    import lightning
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader, TensorDataset

    clock = Clock()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = build(a)

        def training_step(self, batch, index):
            return F.mse_loss(self.model(batch[0]), batch[0])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

        def on_train_epoch_end(self):
            clock.mark()

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=a.epochs, accelerator="cpu", **quiet)
    trainer.fit(Module(), DataLoader(TensorDataset(x), batch_size=batch, shuffle=True))
    return clock, float("nan")


def by_keras(a, x, batch):
    import keras

    layers, clock = keras.layers, Clock()
    dense = [layers.Dense(a.width, "relu"), layers.Dense(a.code), layers.Dense(a.width, "relu"), layers.Dense(784, "sigmoid")]
    model = keras.Sequential([keras.Input((784,)), *dense])
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse")
    flat = x.flatten(1).numpy()
    marks = keras.callbacks.LambdaCallback(on_epoch_end=clock.mark)
    seen = model.fit(flat, flat, batch_size=batch, epochs=a.epochs, verbose=0, shuffle=True, callbacks=[marks])
    return clock, seen.history["loss"][-1]


def by_sklearn(a, x, batch):
    from sklearn.neural_network import MLPRegressor

    flat, clock = x.flatten(1).numpy(), Clock()
    how = {"batch_size": batch, "alpha": 0.0, "tol": 0.0, "n_iter_no_change": 10**6, "random_state": 0, "warm_start": True}
    model = MLPRegressor(hidden_layer_sizes=(a.width, a.code, a.width), max_iter=1, **how)  # its output is linear: no sigmoid
    for _ in range(a.epochs):
        model.fit(flat, flat)
        clock.mark()
    return clock, 2 * model.loss_


def by_floor(a, x, batch, onednn):
    import torch

    from ae_course.replay import LARGE, _linear
    from ae_course.training import denormals_flushed

    widths = [784, a.width, a.code, a.width, 784]
    weights = [torch.randn(m, n) / 28 for n, m in zip(widths, widths[1:])]
    values, grads = [torch.rand(batch, n) for n in widths], [torch.empty_like(w) for w in weights]
    flat = torch.nn.Parameter(torch.zeros(sum(w.numel() + len(w) for w in weights)))
    flat.grad = torch.full_like(flat, 1e-3)
    optimizer = torch.optim.Adam([flat], fused=True)
    linear = _linear()

    def product(p, q, out):
        if onednn and linear and len(p) * q.numel() >= LARGE:
            linear(p, q.t(), None, "none", [], "")
        else:
            torch.mm(p, q, out=out)

    clock = Clock()
    with torch.no_grad(), denormals_flushed():
        for _ in range(a.epochs):
            for _ in range(-(-len(x) // batch)):
                for i, w in enumerate(weights):
                    product(values[i], w.t(), values[i + 1])
                for i in reversed(range(4)):
                    product(values[i + 1].t(), values[i], grads[i])
                    if i:
                        product(values[i + 1], weights[i], values[i])
                optimizer.step()
            clock.mark()
    return clock, float("nan")


def worker(a):
    "Answer each line (images, width, code, batch as JSON) on standard input with a line of JSON; whatever else is printed is an error's."
    answers, sys.stdout = sys.stdout, sys.stderr
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: a.threads])
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    import torch

    from ae_course.data import load

    torch.set_num_threads(a.threads)
    digits = load("mnist5k").pixels()
    run = {
        "replayed": lambda x, batch: by_fit(a, x, batch, True), "written": lambda x, batch: by_fit(a, x, batch, False),
        "tight": lambda x, batch: by_loop(a, x, batch, False), "DataLoader": lambda x, batch: by_loop(a, x, batch, True),
        "pythae": lambda x, batch: by_pythae(a, x, batch), "lightning": lambda x, batch: by_lightning(a, x, batch),
        "keras on jax": lambda x, batch: by_keras(a, x, batch), "scikit-learn": lambda x, batch: by_sklearn(a, x, batch),
        "floor, mm": lambda x, batch: by_floor(a, x, batch, False), "floor, oneDNN": lambda x, batch: by_floor(a, x, batch, True),
    }[a.worker]  # fmt: skip
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        setting = json.loads(line)
        a.width, a.code = setting["width"], setting["code"]
        # repeated: the arithmetic, and the units that die, are those of real images
        x = digits.repeat(-(-setting["images"] // len(digits)), 1, 1, 1)[: setting["images"]].contiguous()
        clock, loss = run(x, setting["batch"])
        print(json.dumps({"epochs": clock.epochs(), "loss": loss}), file=answers, flush=True)


def start(name, args, log):
    env = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
    env |= {key: str(args.threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, __file__, "--worker", name]
    for option in ("threads", "epochs"):
        command += [f"--{option}", str(getattr(args, option))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env)


def ask(process, setting):
    print(json.dumps(setting), file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())


def settings_of(args):
    "What is measured, one after the other: the batch sizes; with --grow, from the first of them, one number at a time."
    base = {"images": args.images, "width": args.width, "code": args.code, "batch": args.batch_sizes[0]}
    if not args.grow:
        return [{**base, "batch": batch} for batch in args.batch_sizes]
    grown = [{**base, name: value} for name in ("images", "width", "code") for value in (base[name] // 4, base[name], base[name] * 4)]
    return [setting for i, setting in enumerate(grown) if setting not in grown[:i]]


def add_rows(path, rows):
    "Append `rows` to a CSV, with its head if it is new."
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        if new:
            table.writeheader()
        table.writerows(rows)


def processor():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of a training; the first is not counted")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--code", type=int, default=64)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--grow", action="store_true", help="a quarter and four times the images, width and code, one at a time")
    parser.add_argument("--table", type=Path, help="a CSV to which the rows are added")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    if args.epochs < 2:
        parser.error("--epochs: at least 2, of which the first is not counted")
    absent = [name for name in args.only if find_spec(CONTENDERS[name]) is None]
    names = ["replayed", *(name for name in args.only if name not in absent and name != "replayed")]
    import torch

    machine = f"{processor()}, {args.threads} thread{'s' * (args.threads > 1)}, torch {torch.__version__}"
    print(f"{machine}; {args.rounds} rounds of {args.epochs} epochs")
    if absent:
        print("not installed, left out:", ", ".join(absent))
    rows = []
    with tempfile.TemporaryFile("w+") as log:
        workers = {name: start(name, args, log) for name in names}
        for name in list(workers):
            if workers[name].stdout.readline().strip() != "ready":
                print(f"{name} did not start, left out")
                workers.pop(name)
        for setting in settings_of(args):
            seconds, cpu, losses = ({name: [] for name in workers} for _ in range(3))
            for _ in range(args.rounds):
                for name, process in list(workers.items()):
                    try:
                        told = ask(process, setting)
                    except (json.JSONDecodeError, BrokenPipeError):
                        log.seek(0)
                        print(f"{name} failed, left out: {log.read().strip().splitlines()[-1:]}")
                        workers.pop(name)
                        continue
                    seconds[name].append(statistics.median(s for s, _ in told["epochs"][1:]))
                    cpu[name].append(statistics.median(c for _, c in told["epochs"][1:]))
                    losses[name].append(told["loss"])
            heads = zip(("s/epoch", "min", "max", "x fit", "min", "max", "cpu s", "x fit", "loss"), (8, 7, 7, 6, 6, 6, 7, 6, 8))
            print(f"\n{', '.join(f'{k} {v}' for k, v in setting.items())}\n{'':15} {' '.join(f'{head:>{width}}' for head, width in heads)}")
            for name in workers:
                ratios = [s / f for s, f in zip(seconds[name], seconds["replayed"])]
                work = [s / f for s, f in zip(cpu[name], cpu["replayed"])]
                row = {
                    "machine": machine, **setting, "loop": name,
                    "seconds": statistics.median(seconds[name]), "seconds_min": min(seconds[name]), "seconds_max": max(seconds[name]),
                    "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
                    "cpu_seconds": statistics.median(cpu[name]), "cpu_ratio": statistics.median(work),
                }  # fmt: skip
                rows.append({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
                print(f"{name:15} {row['seconds']:8.3f} {row['seconds_min']:7.3f} {row['seconds_max']:7.3f} {row['ratio']:5.2f}x "
                      f"{row['ratio_min']:5.2f}x {row['ratio_max']:5.2f}x {row['cpu_seconds']:7.3f} {row['cpu_ratio']:5.2f}x "
                      f"{losses[name][-1]:8.5f}", flush=True)  # fmt: skip
        for process in workers.values():
            process.stdin.close()
            process.wait()
    if not rows:
        sys.exit("nothing was measured: is ae_course installed where this runs, with the extra `bench`?")
    if args.table:
        add_rows(args.table, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
