"""Runs the parts of a split graph one after the other, and compares their outputs with the full graph.

Usage: run_split.py FOLDER; FOLDER has an `onnx` artifact with a separate embedding or head.
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
    full = session(folder / f"{role}.onnx")
    random = np.random.default_rng(0)
    values = {value.name: feed(value, random) for value in full.get_inputs()}
    expected = dict(zip([value.name for value in full.get_outputs()], full.run(None, values)))
    for file in sorted(folder.glob(f"{role}-*.onnx"), key=order):
        part = session(file)
        outputs = part.run(None, {value.name: values[value.name] for value in part.get_inputs()})
        values.update(zip([value.name for value in part.get_outputs()], outputs))
        print(file.name)
    for name, value in expected.items():
        assert values[name].shape == value.shape, name
        worst = max(worst, float(np.abs(values[name] - value).max() / np.abs(value).max()))
print(f"largest error {worst:.1e} of the largest value")
sys.exit(int(not worst <= 1e-6))
