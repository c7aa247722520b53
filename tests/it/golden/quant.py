#!/usr/bin/env python3
"""Prints tests/it/golden/quant.txt: blocks, and what ggml and gguf-py make of them. Give it the path of libggml-base.so
of llama.cpp (of the npm package @node-llama-cpp/linux-x64 3.22.1, say: llama.cpp 0.5.0), and the file is made anew:

    TYPE blocks-hex f32-bits-hex       a few blocks of the types that kiln knew first
    edge TYPE blocks-hex sha256        blocks whose scales are zeros, subnormal, huge, infinite or no numbers
    sweep TYPE blocks sha256           so many blocks, their bytes of splitmix64, whose state is the type's id first

A digest is that of the little-endian f32 values, every NaN as 0x7fc00000. Where gguf-py decodes a type, it must agree.

With a GGUF as argument instead: the sha256 of each tensor, dequantized to little-endian f32. `NAME sha256`, one a line.
"""
import ctypes
import hashlib
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T, GGUFReader
from gguf.quants import dequantize, quantize

# Where a block holds halves.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2],
    "Q5_K": [0, 2], "Q6_K": [208], "IQ2_XXS": [0], "IQ2_XS": [0], "IQ3_XXS": [0], "IQ1_S": [0], "IQ4_NL": [0],
    "IQ3_S": [0], "IQ2_S": [0], "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64], "Q1_0": [0], "Q2_0": [0],
}
# Zeros, the smallest and largest subnormals, a small and the largest numbers, infinities, a NaN.
EDGES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00]
PLAIN = {"F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
# gguf-py 0.19 does not know the last.
TYPES = {t.name: (int(t), *GGML_QUANT_SIZES[t]) for t in T if t.name != "Q8_1"} | {"Q2_0": (42, 64, 18)}


class Ggml:
    """`dequantize_row_*` of ggml-quants.c."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(path)

    def decode(self, name, raw):
        _, length, size = TYPES[name]
        if name in PLAIN:
            return raw.reshape(-1).view(PLAIN[name]).astype("<f4")
        raw = np.ascontiguousarray(raw)
        out = np.empty(raw.size // size * length, "<f4")
        lower = name.lower().replace("_k", "_K")
        row = getattr(self.lib, f"dequantize_row_{lower}")
        row(ctypes.c_void_p(raw.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(out.size))
        return out


def digest(values):
    bits = np.ascontiguousarray(values, "<f4").reshape(-1).view("<u4").copy()
    bits[np.isnan(bits.view("<f4"))] = 0x7FC00000
    return hashlib.sha256(bits.tobytes()).hexdigest()


def splitmix64(state, count):
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, count + 1, dtype=np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def sweep(name):
    number, length, size = TYPES[name]
    count = 131072 // length
    words = splitmix64(number, -(-count * size // 8))
    return words.astype("<u8").view(np.uint8)[: count * size].reshape(count, size)


def edges(name):
    _, _, size = TYPES[name]
    out = sweep(name)[: len(EDGES)].copy()
    for block, half in zip(out, EDGES):
        for at in HALVES.get(name, []):
            block[at : at + 2] = [half & 0xFF, half >> 8]
        if name == "IQ1_M":
            for word in range(4):
                block[49 + 2 * word] = block[49 + 2 * word] & 0x0F | (half >> 4 * word & 0x0F) << 4
        if name == "Q8_K":
            block[:4] = np.array([half], "<u2").view("<f2").astype("<f4").view(np.uint8)
    if name in ("MXFP4", "NVFP4"):
        out[:, 0] = [0, 1, 2, 7, 8, 126, 127, 128, 254, 255]
    out[-1, size // 2 :] = 0xFF
    return out


def decode(ggml, name, raw):
    values = ggml.decode(name, raw)
    if name in T.__members__ and name not in PLAIN:
        with np.errstate(all="ignore"):
            try:
                theirs = dequantize(raw.reshape(1, -1), T[name])
            except NotImplementedError:
                return values
        assert digest(theirs) == digest(values), name
    return values


def first_blocks(t, rng, count=3):
    _, size = GGML_QUANT_SIZES[t]
    out = rng.integers(0, 256, (count, size), dtype=np.uint8)
    if t == T.F32:
        out = rng.standard_normal((count, 1), dtype=np.float32).view(np.uint8)
    elif t in (T.F16, T.BF16):
        out[:, 1] &= 0xBB  # clears a bit of the exponent: no infinity or NaN
    for at in HALVES.get(t.name, []):
        out[:, at : at + 2] = (rng.standard_normal(count) * 0.05).astype("<f2").view(np.uint8).reshape(-1, 2)
        out[-1, at : at + 2] = [0x00, 0x80]  # -0.0, as a block of zeros may have
        out[1, at : at + 2] = [0x03, 0x00]  # subnormal
    return out


def main():
    with open(sys.argv[1], "rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    if is_gguf:
        for tensor in GGUFReader(sys.argv[1]).tensors:
            values = dequantize(tensor.data, tensor.tensor_type)
            print(tensor.name, hashlib.sha256(np.ascontiguousarray(values, "<f4")).hexdigest(), flush=True)
        return
    ggml = Ggml(sys.argv[1])
    rng = np.random.Generator(np.random.SFC64(7))
    for t in (T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q8_0, T.Q6_K):
        raw = first_blocks(t, rng)
        values = dequantize(raw.reshape(1, -1), t)
        print(t.name, raw.tobytes().hex(), np.ascontiguousarray(values, "<f4").tobytes().hex())
    values = rng.standard_normal((1, 96), dtype=np.float32) * np.float32(0.02)
    values[0, 32:64] = 0  # a block of zeros
    values[0, 70] = -values[0, 64:96].max() * 2  # the extreme is negative
    print("encode-Q8_0", values.astype("<f4").tobytes().hex(), quantize(values, T.Q8_0).tobytes().hex())
    for name in TYPES:
        if name in ("F32", "F16", "BF16"):
            continue
        if name not in PLAIN:
            print("edge", name, edges(name).tobytes().hex(), digest(decode(ggml, name, edges(name))))
        raw = sweep(name)
        print("sweep", name, len(raw), digest(decode(ggml, name, raw)))


main()
