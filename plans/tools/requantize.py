#!/usr/bin/env python3
"""Requantizes a GGUF to llama.cpp's Q4_0 with ggml's own code: requantize.py LIBRARY IN OUT.

LIBRARY exports ggml.h and gguf.h, as the one in the wheel of xllamacpp does. As llama-quantize does for Q4_0, every matrix becomes
Q4_0 but the head, which becomes Q6_K; vectors stay as they are.
"""

import ctypes
import sys
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint32, c_void_p

# enum ggml_type in ggml.h, enum llama_ftype in llama.h
F32, Q4_0, Q6_K, MOSTLY_Q4_0 = 0, 2, 14, 2
CHUNK_VALUES = 1 << 24


class Traits(ctypes.Structure):
    """The first fields of ggml_type_traits."""

    _fields_ = [
        ("name", c_char_p),
        ("block", c_int64),
        ("interleave", c_int64),
        ("block_bytes", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, c_void_p, POINTER(c_float), c_int64)),
    ]


class InitParams(ctypes.Structure):
    """gguf_init_params."""

    _fields_ = [("no_alloc", c_bool), ("tensors", POINTER(c_void_p))]


def declare(ggml, name, result, *arguments):
    function = getattr(ggml, name)
    function.restype, function.argtypes = result, arguments
    return function


def main(library, source, target):
    ggml = ctypes.CDLL(library)
    read = declare(ggml, "gguf_init_from_file", c_void_p, c_char_p, InitParams)
    empty = declare(ggml, "gguf_init_empty", c_void_p)
    set_kv = declare(ggml, "gguf_set_kv", None, c_void_p, c_void_p)
    set_u32 = declare(ggml, "gguf_set_val_u32", None, c_void_p, c_char_p, c_uint32)
    add = declare(ggml, "gguf_add_tensor", None, c_void_p, c_void_p)
    set_type = declare(ggml, "gguf_set_tensor_type", None, c_void_p, c_char_p, c_int)
    set_data = declare(ggml, "gguf_set_tensor_data", None, c_void_p, c_char_p, c_void_p)
    write = declare(ggml, "gguf_write_to_file", c_bool, c_void_p, c_char_p, c_bool)
    count = declare(ggml, "gguf_get_n_tensors", c_int64, c_void_p)
    name_of = declare(ggml, "gguf_get_tensor_name", c_char_p, c_void_p, c_int64)
    type_of = declare(ggml, "gguf_get_tensor_type", c_int, c_void_p, c_int64)
    tensor_of = declare(ggml, "ggml_get_tensor", c_void_p, c_void_p, c_char_p)
    data_of = declare(ggml, "ggml_get_data", c_void_p, c_void_p)
    elements = declare(ggml, "ggml_nelements", c_int64, c_void_p)
    rows_of = declare(ggml, "ggml_nrows", c_int64, c_void_p)
    traits_of = declare(ggml, "ggml_get_type_traits", POINTER(Traits), c_int)
    row_bytes = declare(ggml, "ggml_row_size", c_size_t, c_int, c_int64)
    quantize = declare(
        ggml, "ggml_quantize_chunk", c_size_t, c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p
    )

    def requantized(tensor, was, becomes):
        rows = rows_of(tensor)
        columns = elements(tensor) // rows
        of_row, traits = row_bytes(was, columns), traits_of(was).contents
        out = ctypes.create_string_buffer(row_bytes(becomes, columns) * rows)
        step = max(1, CHUNK_VALUES // columns)
        values = (c_float * (step * columns))()
        for first in range(0, rows, step):
            some = min(step, rows - first)
            begin = data_of(tensor) + first * of_row
            if was == F32:
                ctypes.memmove(values, begin, some * of_row)
            else:
                traits.to_float(begin, values, some * columns)
            quantize(becomes, values, ctypes.addressof(out) + first * row_bytes(becomes, columns), 0, some, columns, None)
        return out

    tensors = c_void_p()
    old = read(source.encode(), InitParams(False, ctypes.pointer(tensors)))
    if not old:
        sys.exit(f"{source} is no GGUF")
    new, kept = empty(), []
    set_kv(new, old)
    set_u32(new, b"general.file_type", MOSTLY_Q4_0)
    for index in range(count(old)):
        name, was = name_of(old, index), type_of(old, index)
        tensor = tensor_of(tensors, name)
        add(new, tensor)
        becomes = Q6_K if name == b"output.weight" else Q4_0
        if rows_of(tensor) == 1 or was == becomes:
            continue
        kept.append(requantized(tensor, was, becomes))
        set_type(new, name, becomes)
        set_data(new, name, kept[-1])
    if not write(new, target.encode(), False):
        sys.exit(f"{target} could not be written")


main(*sys.argv[1:])
