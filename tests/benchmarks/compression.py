"""Symbols a second through the entropy coder, beside a range coder in plain Python: python tests/benchmarks/compression.py [--rounds 7]

The plain coder (below) is the textbook's: 32-bit range, a carry counted, a binary search in the cumulative frequencies for decoding. Both
code the same integers with the same frequencies, both must give them back. A round takes every part in turn, in one process, so that
whatever else the machine does hits all alike. Prints medians of the process's own seconds over the rounds, symbols a second, the median of
the rounds' ratios to ours with their quartiles, and the bits a symbol of both. Not a test: nothing passes or fails.
"""

import argparse
import platform
import statistics
import time
from bisect import bisect_right
from itertools import accumulate

import torch

from ae_course.compression import TOTAL, decode_symbols, encode_symbols, frequencies

TOP, BOTTOM = 1 << 24, (1 << 32) - 1


def plain_encode(symbols, cumulative):
    "A range coder after Martin (1979), with the carry of Schindler's and LZMA's: bytes for `symbols` of one table."
    low, span, cache, waiting, out = 0, BOTTOM, 0, 1, bytearray()
    for s in symbols:
        unit = span // TOTAL
        low += unit * cumulative[s]
        span = unit * (cumulative[s + 1] - cumulative[s])
        while span < TOP:
            low, cache, waiting = shifted(low, cache, waiting, out)
            span = span << 8 & BOTTOM
    for _ in range(5):
        low, cache, waiting = shifted(low, cache, waiting, out)
    return bytes(out)


def shifted(low, cache, waiting, out):
    "Writes a byte that no carry can change any more."
    if low < 0xFF000000 or low > BOTTOM:
        out.append(cache + (low >> 32) & 255)
        out.extend([255 + (low >> 32) & 255] * (waiting - 1))
        cache, waiting = low >> 24 & 255, 0
    return (low & 0x00FFFFFF) << 8, cache, waiting + 1


def plain_decode(data, count, cumulative):
    "The symbols that `plain_encode` wrote."
    data, at, span, symbols = data + bytes(8), 5, BOTTOM, []
    code = int.from_bytes(data[1:5], "big")
    for _ in range(count):
        unit = span // TOTAL
        s = bisect_right(cumulative, min(code // unit, TOTAL - 1)) - 1
        code -= unit * cumulative[s]
        span = unit * (cumulative[s + 1] - cumulative[s])
        while span < TOP:
            code, span, at = (code << 8 | data[at]) & BOTTOM, span << 8 & BOTTOM, at + 1
        symbols.append(s)
    return symbols


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--channels", type=int, default=96)
    args = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    spread = torch.logspace(0.7, -1, args.channels)[:, None, None]  # a few busy channels, many quiet ones, as in a code
    q = torch.round(spread * torch.randn(args.images, args.channels, 12, 12, generator=draw)).clamp(-127, 127).int()
    low = torch.full((args.channels,), -127, dtype=torch.int32)
    counts = torch.stack([torch.bincount(row + 127, minlength=256) for row in q.transpose(0, 1).flatten(1).long()])
    table = frequencies(counts.double() + 1e-3)
    tables = [[0, *accumulate(row)] for row in table.tolist()]
    rows = (q.transpose(0, 1).flatten(1) + 127).tolist()
    count, seconds, made = q.numel(), {}, {}

    def timed(name, work):
        start = time.process_time()
        made[name] = work()
        seconds.setdefault(name, []).append(time.process_time() - start)

    for _ in range(args.rounds):
        timed("encode, ours", lambda: encode_symbols(q, low, table))
        timed("encode, plain Python", lambda: [plain_encode(row, t) for row, t in zip(rows, tables)])
        timed("decode, ours", lambda: decode_symbols(*made["encode, ours"], q.shape, low, table))
        each = list(zip(made["encode, plain Python"], tables))
        timed("decode, plain Python", lambda each=each: [plain_decode(data, len(rows[0]), t) for data, t in each])
    assert torch.equal(made["decode, ours"], q) and made["decode, plain Python"] == rows
    bits = {"ours": 8 * len(made["encode, ours"][0]) / count, "plain Python": 8 * sum(map(len, made["encode, plain Python"])) / count}
    print(f"torch {torch.__version__}, {platform.machine()}; {count:,} integers in {args.channels} channels, {args.rounds} rounds")
    print(f"bits a symbol: {bits['ours']:.3f} ours, in one stream; {bits['plain Python']:.3f} plain Python, a stream for each channel")
    print(f"{'':24} {'ms':>8} {'symbols/s':>12} {'times ours':>11} {'quartiles':>14}")
    for name, values in seconds.items():
        ratios = [value / ours for value, ours in zip(values, seconds[f"{name.split(',')[0]}, ours"])]
        quartiles, middle = statistics.quantiles(ratios, n=4), statistics.median(values)
        print(f"{name:24} {1e3 * middle:8.1f} {count / middle:12,.0f} {quartiles[1]:11.1f} {quartiles[0]:6.1f} {quartiles[2]:7.1f}")


if __name__ == "__main__":
    main()
