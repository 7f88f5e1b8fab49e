"""Images per second of a training step for each cell of the Tightrope grid, and its share of the matrix-multiply ceiling:
python tests/benchmarks/tightrope.py [--device cuda --side 96 --depth 5 --batch 32 --precision bfloat16 --channels-last]

Every configuration with both decoders: median seconds of a step of Adam on random images. The work of a step is counted as 6 FLOP for
each multiply-accumulate of the forward pass (2 forward, 4 backward). The ceiling is that of this machine, measured: the best of a few
products of square matrices in the same precision. Not a test: nothing here passes or fails.
"""

import argparse
import time

import torch

from ae_course.autoencoder import Autoencoder
from ae_course.bottleneck import bottleneck, shapes_table
from ae_course.training import pick_device, seconds_per_image, seeded


def ceiling(device, dtype, size):
    "FLOP a second of the product of two size x size matrices, best of five."
    a, times = torch.randn(size, size, device=device).to(dtype), []
    for _ in range(6):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[1:])


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--device", default="auto")
parser.add_argument("--side", type=int, default=32)
parser.add_argument("--depth", type=int, default=3)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
parser.add_argument("--channels-last", action="store_true")
args = parser.parse_args()
device, shape = pick_device(args.device), (3, args.side, args.side)
most = ceiling(device, getattr(torch, args.precision), 8192 if device.type == "cuda" else 1024)
print(f"{device}, {args.precision}, {args.side} pixels, depth {args.depth}, batch {args.batch}: ceiling {most / 1e12:.3g} TFLOP/s")
memory = torch.channels_last if args.channels_last else torch.contiguous_format
x = torch.rand(args.batch, *shape, device=device).contiguous(memory_format=memory)
for row in shapes_table(shape, args.depth):
    with seeded(0):
        halves = bottleneck(shape, row["size"], row["channels"], row["decoder"], args.depth)
    model = Autoencoder(*halves).to(device=device, memory_format=memory)
    seconds = seconds_per_image(model, x, args.precision)
    work = 6 * (row["encoder_macs"] + row["decoder_macs"])
    cell = f"{row['size']}x{row['size']}x{row['channels']} {row['decoder']}"
    print(f"{cell:24} {1 / seconds:10.0f} images/s  {work / seconds / most:6.1%} of the ceiling", flush=True)
