"""gguf-py as the judge of kiln's GGUF.

    gguf_py.py write SOURCE FOLDER     SOURCE anew: big.gguf (big-endian), aligned-N.gguf, split-*-of-*.gguf, both-*-of-*.gguf
    gguf_py.py same A B                whether two files hold the same keys and tensors; prints what differs
"""
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter
from gguf import GGMLQuantizationType as Type
from gguf.constants import GGML_QUANT_SIZES


def turned(data, kind):
    """The blocks of a tensor in big-endian form; of scripts/gguf_convert_endian.py's own functions where it has one."""
    sys.argv[0] = "gguf_convert_endian"
    from gguf.scripts import gguf_convert_endian as script

    raw = data.view(np.uint8).reshape(-1).copy()
    if kind == Type.Q4_1:  # d and m
        raw.reshape(-1, 20)[:, :4] = raw.reshape(-1, 20)[:, [1, 0, 3, 2]]
    elif kind in script.byteswap_tensors:
        class Tensor:
            pass
        tensor = Tensor()
        tensor.data = raw
        size = GGML_QUANT_SIZES[kind][1]
        for block in range(len(raw) // size):
            script.byteswap_tensors[kind](tensor, block * size)
    else:
        width = GGML_QUANT_SIZES[kind][1]
        raw = raw.reshape(-1, width)[:, ::-1].copy().reshape(-1)
    return raw.reshape(data.view(np.uint8).reshape(*data.shape[:-1], -1).shape)


def write(source, path, endian=GGUFEndian.LITTLE, alignment=None, split=0):
    reader = GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(path, arch, endianess=endian, split_max_tensors=split)
    if alignment:
        writer.add_custom_alignment(alignment)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, inner)
    for tensor in reader.tensors:
        data = np.ascontiguousarray(tensor.data)
        if endian == GGUFEndian.BIG:
            writer.endianess = GGUFEndian.LITTLE  # add_tensor would turn numbers round by itself, but no blocks
            data = turned(data, tensor.tensor_type)
        else:
            data = data.view(np.uint8).reshape(*data.shape[:-1], -1)
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
        writer.endianess = endian
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def same(a, b):
    a, b = GGUFReader(a), GGUFReader(b)
    keys = lambda reader: {f.name: (f.types, f.contents()) for f in reader.fields.values() if not f.name.startswith("GGUF.")}
    kept = lambda reader: {k: v for k, v in keys(reader).items() if k != "general.alignment"}
    for key in sorted(kept(a).keys() ^ kept(b).keys()):
        print("key of one only:", key)
    for key in sorted(kept(a).keys() & kept(b).keys()):
        if kept(a)[key] != kept(b)[key]:
            print("key differs:", key)
    tensors = [{t.name: t for t in reader.tensors} for reader in (a, b)]
    if [t.name for t in a.tensors] != [t.name for t in b.tensors]:
        print("other tensors, or in another order")
    for name in tensors[0].keys() & tensors[1].keys():
        one, two = tensors[0][name], tensors[1][name]
        if one.tensor_type != two.tensor_type or list(one.shape) != list(two.shape) or one.data.tobytes() != two.data.tobytes():
            print("tensor differs:", name)


if sys.argv[1] == "write":
    source, folder = sys.argv[2], Path(sys.argv[3])
    write(source, folder / "big.gguf", endian=GGUFEndian.BIG)
    for alignment in (8, 64, 4096):
        write(source, folder / f"aligned-{alignment}.gguf", alignment=alignment)
    write(source, folder / "split.gguf", split=10)
    write(source, folder / "both.gguf", split=10, alignment=4096)
else:
    same(sys.argv[2], sys.argv[3])
