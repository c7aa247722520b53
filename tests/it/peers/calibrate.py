"""Compares a calibration with numpy: runs the prefill graph with every value as an output.

    python3 calibrate.py FOLDER

FOLDER has the output of the `graph` stage, calibration/ with the output of `calibrate`, and
facts.json: {"model": ModelFacts, "windows": [[token, ...], ...]}. Exits with 1 at the first figure
that differs.
"""
import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

folder = Path(sys.argv[1])
facts = json.loads((folder / "facts.json").read_text())
model, windows = facts["model"], facts["windows"]
width, kv_heads = model["head_dim"], model["kv_heads"]

full_model = onnx.load(folder / "prefill.onnx", load_external_data=False)
mask = next(i for i in full_model.graph.input if i.name == "attention_mask")
tokens, context = [d.dim_value for d in mask.type.tensor_type.shape.dim[2:]]
declared = {output.name for output in full_model.graph.output}
types = {value.name: value.type.tensor_type.elem_type for value in [*full_model.graph.value_info, *full_model.graph.output]}
floats = [name for node in full_model.graph.node for name in node.output if types[name] == onnx.TensorProto.FLOAT]
full_model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in floats if name not in declared)
(folder / "all.onnx").write_bytes(full_model.SerializeToString())
session = ort.InferenceSession(str(folder / "all.onnx"), providers=["CPUExecutionProvider"])

angle = np.outer(np.arange(tokens), model["rope_freq_base"] ** (-np.arange(0, width, 2) / width))
mask = np.full((tokens, context), -1000, np.float32)
mask[:, context - tokens :] = np.triu(mask[:, context - tokens :], 1)
shared = {
    "attention_mask": mask[None, None],
    "position_ids_cos": np.cos(angle)[None, None].astype(np.float32),
    "position_ids_sin": np.sin(angle)[None, None].astype(np.float32),
}
for layer in range(model["block_count"]):
    shared[f"past_key_{layer}_in"] = np.zeros((kv_heads, 1, width, context - tokens), np.float32)
    shared[f"past_value_{layer}_in"] = np.zeros((kv_heads, 1, context - tokens, width), np.float32)
outputs = {name: [value] * len(windows) for name, value in shared.items()}
for window in windows:
    feeds = {**shared, "input_ids": np.array([window], np.int32)}
    for name, value in zip(floats, session.run(floats, feeds)):
        outputs.setdefault(name, []).append(value)
outputs = {name: np.stack(values).astype(np.float64) for name, values in outputs.items()}


def check_close(found, expected, tolerance, what):
    scale = np.abs(expected).max()
    if not np.abs(np.asarray(found) - expected).max() <= tolerance * max(scale, 1e-30):
        sys.exit(f"{what}: {found} instead of {expected}")


activations = json.loads((folder / "calibration/activations.json").read_text())
by_name = {}
for name, values in outputs.items():  # the statistics of all heads are together
    name = re.sub(r"^(blk\.\d+\..+)\.\d+$", r"\1", name)
    by_name.setdefault(name, []).append(values.reshape(-1))
for name in activations:
    if name.endswith(".sums"):  # of each 32 inputs of a linear layer, divided by 4
        values = outputs[name.removesuffix(".sums")]
        by_name[name] = [values.reshape(-1, 32).sum(-1) / 4]
if activations.keys() != by_name.keys():
    sys.exit(f"values differ: {activations.keys() ^ by_name.keys()}")
for name, found in activations.items():
    values = np.concatenate(by_name[name])
    magnitudes = np.sort(np.abs(values))
    check_close(found["count"], values.size, 0, f"{name} count")
    check_close([found["min"], found["max"]], np.array([values.min(), values.max()]), 1e-5, f"{name} range")
    check_close(found["mean_square"], (values**2).mean(), 1e-4, f"{name} mean square")
    for key, share in [("p99", 0.99), ("p99_9", 0.999), ("p99_99", 0.9999)]:
        exact = magnitudes[max(int(values.size * share), 1) - 1]
        if not exact * (1 - 1e-5) <= found[key] <= exact * 1.0626 + 1e-37:
            sys.exit(f"{name} {key}: {found[key]} is not within a bin above {exact}")

moments = 0
for node in full_model.graph.node:
    if node.domain != "kiln" or "Linear" not in node.op_type:
        continue
    if "/" not in node.input[1]:  # a constant of the graph, not a weight
        continue
    weight = node.input[1].rsplit("/", 1)[0]
    x = outputs[node.input[0]].reshape(-1, outputs[node.input[0]].shape[-1])
    products = x.T @ x / len(x)
    diagonal = np.fromfile(folder / "calibration/diagonal" / weight, np.float32)
    check_close(diagonal, np.diag(products), 1e-5, f"{weight} diagonal")
    full = folder / "calibration/moments" / weight
    if full.exists():
        moments += 1
        check_close(np.fromfile(full, np.float32).reshape(products.shape), products, 1e-5, f"{weight} moments")
print(f"{len(by_name)} values, {moments} matrices of moments over {len(windows)} windows equal numpy's")
