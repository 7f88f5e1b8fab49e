"""Seconds of a training step with each contractive penalty against a plain step: python tests/benchmarks/contractive.py [--rounds 25]

The tied 784-256 autoencoder (one sigmoid layer), batch 128, fused Adam, on digits; then a 784-256-64 encoder, for which there is no closed
form. A round takes a few steps of every kind in turn, in one process, so that whatever else the machine does hits all alike. Prints the
median over rounds, the range, and the median over rounds of the ratio to the plain step of the same round. Not a test: nothing here passes
or fails; the aim is a closed form of at most 1.8 times the plain step. The autograd routes build the (128, 256, 784) Jacobian, or
its rows one after another, and are timed in the first rounds only.
"""

import argparse
import platform
import statistics
import time

import torch

from ae_course.autoencoder import Autoencoder, mlp
from ae_course.contractive import ContractiveAutoencoder, tied
from ae_course.data import load
from ae_course.training import seeded


def by_jacrev(encoder, x):
    one = torch.func.jacrev(lambda x_n: encoder(x_n[None])[0])
    return torch.func.vmap(one)(x).flatten(1).square().sum(1)


def by_rows(encoder, x):
    "A backward pass for each unit of the code."
    x = x.detach().requires_grad_()
    z = encoder(x)
    return sum(torch.autograd.grad(z[:, i].sum(), x, create_graph=True)[0].flatten(1).square().sum(1) for i in range(z.shape[1]))


class ByAutograd(ContractiveAutoencoder):
    "The same model with its norm by another route."

    def jacobian_norm(self, x, z):
        return self.route(self.encoder, x)


def steps(model, x, count):
    "Mean seconds of `count` steps of Adam."
    optimizer = model.optimizer
    start = time.perf_counter()
    for _ in range(count):
        optimizer.zero_grad()
        sum(model.loss_terms(x).values()).backward()
        optimizer.step()
    if x.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def contenders(networks, closed):
    "Name -> (model, whether it is slow), all from the same start."
    kinds = {"plain": None, "weight 0": 0.0} | ({"closed": "closed"} if closed else {})
    kinds |= {"exact": "exact", "hutchinson, 1 draw": "hutchinson", "autograd, jacrev": by_jacrev, "autograd, row by row": by_rows}
    models = {}
    for name, kind in kinds.items():
        with seeded(0):
            parts = networks()
        if kind is None:
            model = Autoencoder(*parts)
        elif kind == 0.0:
            model = ContractiveAutoencoder(*parts, 0.0, "exact")
        elif isinstance(kind, str):
            model = ContractiveAutoencoder(*parts, 0.1, kind)
        else:
            model = ByAutograd(*parts, 0.1, "exact")
            model.route = kind
        models[name] = model, callable(kind)
    return models


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--slow-rounds", type=int, default=2, help="rounds in which the autograd routes take part")
    parser.add_argument("--steps", type=int, default=5, help="steps of each kind in a round")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    x = load("mnist5k").pixels()[:128].to(device)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {device}; "
          f"{args.rounds} rounds of {args.steps} steps")  # fmt: skip
    deep = {"hidden": (256,), "latent_dim": 64, "activation": "tanh", "code_activation": "sigmoid"}
    settings = {"784-256, tied, sigmoid": (lambda: tied(latent_dim=256), True), "784-256-64, tanh, sigmoid": (lambda: mlp(**deep), False)}
    for title, (networks, closed) in settings.items():
        models = contenders(networks, closed)
        for model, _ in models.values():
            model.to(device).optimizer = torch.optim.Adam(model.parameters(), fused=True)
        times = {name: [] for name in models}
        ratios = {name: [] for name in models}
        for r in range(args.rounds + 1):
            for name, (model, slow) in models.items():
                if slow and r > args.slow_rounds:
                    continue
                seconds = steps(model, x, 1 if slow else args.steps)
                if name == "plain":
                    plain = seconds
                if r:  # round 0 warms up
                    times[name].append(seconds)
                    ratios[name].append(seconds / plain)
        print(f"\n{title:28} {'ms/step':>9} {'min':>9} {'max':>9} {'times plain':>12}")
        for name, values in times.items():
            if not values:
                continue  # the autograd routes, with --slow-rounds 0
            shown = [f"{1e3 * v:9.2f}" for v in (statistics.median(values), min(values), max(values))]
            print(f"{name:28} {' '.join(shown)} {statistics.median(ratios[name]):11.2f}x")


if __name__ == "__main__":
    main()
