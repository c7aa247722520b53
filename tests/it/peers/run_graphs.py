"""Checks the two ONNX graphs in a folder, and compares ONNX Runtime with a plain numpy decoder.

    python3 run_graphs.py FOLDER [TOLERANCE]

FOLDER has the output of the `graph` stage, and facts.json: {"model": ModelFacts, "weights": {part:
WeightFacts}, "tokens": [...]}. Without tokens, random ones are used. The graph may scale weights
(residual_exponent, ffn_exponent); logits and caches are the same. Exits with 1 if an error is larger
than TOLERANCE times the largest logit.
"""
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

folder = Path(sys.argv[1])
tolerance = float(sys.argv[2]) if len(sys.argv) > 2 else 5e-6
facts = json.loads((folder / "facts.json").read_text())
model, parts = facts["model"], facts["weights"]
heads, kv_heads, width, layers = model["heads"], model["kv_heads"], model["head_dim"], model["block_count"]


def group(columns, block):
    """The blocks of a row, rounded up to whole blocks."""
    return -(columns // block // -block) * block


def layout(fact):
    """Shape and element type of a part, by the table in docs/artifacts.md."""
    shape, encoding = fact["shape"], fact["encoding"]
    kind, block = encoding["kind"], encoding.get("block", shape[-1])
    if kind == "lpbq-shifted":
        shape = [shape[0], shape[1] + 2 * group(shape[1], block)]
    of_blocks = lambda: [shape[0], shape[1] // block]
    codes = lambda: "int4" if kind.startswith("lpbq") else encoding["codes"]
    return {
        "values": lambda: (shape, encoding["element"]),
        "codes": lambda: (shape, codes()),
        "scales": lambda: (of_blocks(), "f32" if kind == "channel" else encoding["scales"]),
        "offsets": lambda: (of_blocks(), encoding["offsets"]),
        "block_scales": lambda: (of_blocks(), "uint8"),
        "channel_scales": lambda: (shape[:1], "f32"),
    }[fact["part"]]()


def read(part):
    shape, element = layout(parts[part])
    raw = np.fromfile(folder / "weights" / part, np.uint8)
    count = int(np.prod(shape))
    if element in ("int4", "uint4"):
        codes = np.stack([raw & 15, raw >> 4], 1).reshape(-1)[:count].astype(np.int64)
        values = np.where(codes > 7, codes - 16, codes) if element == "int4" else codes
    elif element == "bf16":
        values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = raw.view({"f32": np.float32, "f16": np.float16, "int8": np.int8, "uint8": np.uint8}[element])
    return values.reshape(shape).astype(np.float64)


def weight(name):
    if name + "/values" in parts:
        return read(name + "/values")
    codes = parts[name + "/codes"]
    block = codes["encoding"].get("block", codes["shape"][1])
    spread = lambda part: np.repeat(read(part), block, axis=1)
    if name + "/block_scales" in parts:
        values = read(name + "/codes") * spread(name + "/block_scales") * read(name + "/channel_scales")[:, None]
        if codes["encoding"]["kind"] == "lpbq-shifted":
            columns = codes["shape"][1]
            coarse, fine = np.split(values[:, columns:], 2, axis=1)
            sums = (coarse + fine)[:, : columns // block] / 4
            return values[:, :columns] + np.repeat(sums, block, axis=1)
        return values
    values = read(name + "/codes") * spread(name + "/scales")
    return values + spread(name + "/offsets") if name + "/offsets" in parts else values


cache = {}
W = lambda name: cache.setdefault(name, weight(name))


def linear(x, name):
    y = x @ W(name + ".weight").T
    bias = name + ".bias"
    return y + W(bias) if bias + "/values" in parts else y


def norm(x, name):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + model["rms_epsilon"]) * W(name)


def angles(positions):
    rates = model["rope_freq_base"] ** (-np.arange(0, width, 2) / width)
    return np.outer(positions, rates)


def rope(x, angle):
    low, high = np.split(x, 2, -1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)


def reference(ids):
    """Logits [T, vocab] of a complete text."""
    count = len(ids)
    x = W("token_embd.weight")[ids]
    angle = angles(np.arange(count))
    mask = np.triu(np.full((count, count), -np.inf), 1)
    for layer in range(layers):
        name = f"blk.{layer}."
        h = norm(x, name + "attn_norm.weight")
        split = lambda y, n: y.reshape(count, n, width).transpose(1, 0, 2)
        q = rope(split(linear(h, name + "attn_q"), heads), angle)
        k = rope(split(linear(h, name + "attn_k"), kv_heads), angle)
        v = split(linear(h, name + "attn_v"), kv_heads)
        mix = []
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = q[head] @ k[group].T / np.sqrt(width) + mask
            p = np.exp(scores - scores.max(-1, keepdims=True))
            mix.append(p / p.sum(-1, keepdims=True) @ v[group])
        x = x + linear(np.concatenate(mix, -1), name + "attn_output")
        h = norm(x, name + "ffn_norm.weight")
        gate = linear(h, name + "ffn_gate")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, name + "ffn_up"), name + "ffn_down")
    head = "token_embd" if model["tied_embeddings"] else "output"
    return linear(norm(x, "output_norm.weight"), head)


class Graph:
    def __init__(self, file):
        onnx.checker.check_model(str(folder / file), full_check=True)
        self.session = ort.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
        shape = {value.name: value.shape for value in self.session.get_inputs()}
        self.tokens, self.context = shape["attention_mask"][2:]

    def run(self, ids, past):
        """Runs the tokens `ids`, padded with token 0, after `past`, a list of (key, value).

        Returns the logits and the new past.
        """
        tokens, capacity = self.tokens, self.context - self.tokens
        length = past[0][0].shape[-1] if past else 0
        angle = angles(length + np.arange(tokens))
        mask = np.full((tokens, self.context), -1000, np.float32)
        mask[:, :length] = 0
        mask[:, capacity:] = np.triu(mask[:, capacity:], 1)
        feeds = {
            "input_ids": np.array([list(ids) + [0] * (tokens - len(ids))], np.int32),
            "attention_mask": mask[None, None],
            "position_ids_cos": np.cos(angle)[None, None].astype(np.float32),
            "position_ids_sin": np.sin(angle)[None, None].astype(np.float32),
        }
        names = ["logits"]
        for layer in range(layers):
            key = np.zeros((kv_heads, 1, width, capacity), np.float32)
            value = np.zeros((kv_heads, 1, capacity, width), np.float32)
            if past:
                key[..., :length], value[:, :, :length] = past[layer]
            feeds[f"past_key_{layer}_in"], feeds[f"past_value_{layer}_in"] = key, value
            names += [f"past_key_{layer}_out", f"past_value_{layer}_out"]
        out = self.session.run(names, feeds)
        new = list(zip(out[1::2], out[2::2]))
        new = [(key[..., : len(ids)], value[:, :, : len(ids)]) for key, value in new]
        if past:
            join = lambda old, key, value: (np.concatenate([old[0], key], -1), np.concatenate([old[1], value], 2))
            new = [join(old, *pair) for old, pair in zip(past, new)]
        return out[0][0, 0, : len(ids)], new


prefill, decode = Graph("prefill.onnx"), Graph("decode.onnx")
t = prefill.tokens
steps = min(t + t // 2 + 4, prefill.context - 1)
ids = np.random.default_rng(0).integers(0, model["vocab"], steps)
ids = np.array(facts.get("tokens") or ids)[:steps]
expected = reference(ids)
first, past = prefill.run(ids[:t], [])
second, past = prefill.run(ids[t : t + t // 2], past)
logits = [first, second]
for token in ids[t + t // 2 :]:
    row, past = decode.run([token], past)
    logits.append(row)


def perplexity(logits):
    logits = logits[:-1].astype(np.float64)
    top = logits.max(-1, keepdims=True)
    log_sums = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
    return np.exp((log_sums - logits[np.arange(len(logits)), ids[1:]]).mean())


print(f"perplexity of {len(ids)} tokens: {perplexity(np.concatenate(logits)):.4f}, reference {perplexity(expected):.4f}")
worst = 0.0
for what, got, at in [("prefill", first, 0), ("prefill after a past", second, t)] + [
    (f"decode step {i}", row, t + t // 2 + i) for i, row in enumerate(logits[2:])
]:
    error = np.abs(got - expected[at : at + len(got)]).max() / np.abs(expected).max()
    worst = max(worst, error)
    print(f"{what}: {len(got)} tokens, largest error {error:.1e} of the largest logit")
sys.exit(int(not worst <= tolerance))
