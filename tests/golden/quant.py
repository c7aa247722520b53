#!/usr/bin/env python3
"""Prints tests/golden/quant.txt: random blocks and what gguf-py makes of them. `TYPE blocks-hex f32-bits-hex`, one a line.

With a GGUF as argument instead: the sha256 of each tensor, dequantized to little-endian f32. `NAME sha256`, one a line.
"""
import hashlib
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T, GGUFReader
from gguf.quants import dequantize, quantize

HALVES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q8_0: [0], T.Q6_K: [208]}  # where a block holds halves


def blocks(t, rng, count=3):
    _, size = GGML_QUANT_SIZES[t]
    out = rng.integers(0, 256, (count, size), dtype=np.uint8)
    if t == T.F32:
        out = rng.standard_normal((count, 1), dtype=np.float32).view(np.uint8)
    elif t in (T.F16, T.BF16):
        out[:, 1] &= 0xBB  # clears a bit of the exponent: no infinity or NaN
    for at in HALVES.get(t, []):
        out[:, at : at + 2] = (rng.standard_normal(count) * 0.05).astype("<f2").view(np.uint8).reshape(-1, 2)
        out[-1, at : at + 2] = [0x00, 0x80]  # -0.0, as a block of zeros may have
        out[1, at : at + 2] = [0x03, 0x00]  # subnormal
    return out


def main():
    if len(sys.argv) > 1:
        for tensor in GGUFReader(sys.argv[1]).tensors:
            values = dequantize(tensor.data, tensor.tensor_type)
            print(tensor.name, hashlib.sha256(np.ascontiguousarray(values, "<f4")).hexdigest(), flush=True)
        return
    rng = np.random.Generator(np.random.SFC64(7))
    for t in (T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q8_0, T.Q6_K):
        raw = blocks(t, rng)
        values = dequantize(raw.reshape(1, -1), t)
        print(t.name, raw.tobytes().hex(), np.ascontiguousarray(values, "<f4").tobytes().hex())
    values = rng.standard_normal((1, 96), dtype=np.float32) * np.float32(0.02)
    values[0, 32:64] = 0  # a block of zeros
    values[0, 70] = -values[0, 64:96].max() * 2  # the extreme is negative
    print("encode-Q8_0", values.astype("<f4").tobytes().hex(), quantize(values, T.Q8_0).tobytes().hex())


main()
