"""Runs the pieces of a graph one after the other, as they are handed over, and holds what they give against the whole graph.

Usage: run_pieces.py FOLDER; FOLDER holds an `onnx` artifact with an embedding or a head of its own.
"""

import pathlib
import re
import sys

import numpy as np
import onnxruntime as ort

folder = pathlib.Path(sys.argv[1])


def session(file):
    return ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def order(file):
    shard = re.search(r"-(\d+)-of-", file.name)
    return int(shard[1]) if shard else 0 if "embedding" in file.name else 1 << 20


def feed(value, random):
    if value.type == "tensor(int32)":
        return random.integers(0, 70, value.shape).astype(np.int32)
    return random.standard_normal(value.shape).astype(np.float32)


worst = 0.0
for role in ["prefill", "decode"]:
    whole = session(folder / f"{role}.onnx")
    random = np.random.default_rng(0)
    values = {value.name: feed(value, random) for value in whole.get_inputs()}
    expected = dict(zip([value.name for value in whole.get_outputs()], whole.run(None, values)))
    for file in sorted(folder.glob(f"{role}-*.onnx"), key=order):
        piece = session(file)
        given = piece.run(None, {value.name: values[value.name] for value in piece.get_inputs()})
        values.update(zip([value.name for value in piece.get_outputs()], given))
        print(file.name)
    for name, value in expected.items():
        assert values[name].shape == value.shape, name
        worst = max(worst, float(np.abs(values[name] - value).max() / np.abs(value).max()))
print(f"largest error {worst:.1e} of the largest value")
sys.exit(int(not worst <= 1e-6))
