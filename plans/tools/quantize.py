#!/usr/bin/env python3
"""Requantizes a GGUF with llama.cpp's own quantizer: quantize.py FOLDER IN OUT TYPE.

FOLDER holds libllama, libggml and libggml-base, as a wheel of xllamacpp brings them. TYPE is one of TYPES below; which tensor
then gets which type is llama.cpp's choice.
"""

import ctypes
import sys
from pathlib import Path

# enum llama_ftype in llama.h
TYPES = {"F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K_M": 15}


class Params(ctypes.Structure):
    """The first fields of llama_model_quantize_params; `rest` is room for those that a version adds."""

    _fields_ = [
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool),
        ("rest", ctypes.c_uint8 * 255),
    ]


def load(folder: Path, name: str) -> ctypes.CDLL:
    """The library `name`, whose file carries a hash or a version."""
    files = [file for file in folder.iterdir() if file.name.split(".")[0].split("-")[0:] and matches(file.name, name)]
    if len(files) != 1:
        sys.exit(f"{folder} holds {len(files)} files of {name}")
    return ctypes.CDLL(str(files[0]), mode=ctypes.RTLD_GLOBAL)


def matches(file: str, name: str) -> bool:
    rest = file.removeprefix(name)
    return file.startswith(name) and (rest[:1] == "." or (rest[:1] == "-" and len(rest.split(".")[0]) == 9))


def main() -> int:
    folder, source, target, kind = Path(sys.argv[1]), *sys.argv[2:5]
    load(folder, "libggml-base")
    ggml = load(folder, "libggml")
    ggml.ggml_backend_load_all_from_path(str(folder).encode())
    llama = load(folder, "libllama")
    llama.llama_backend_init()
    llama.llama_model_quantize_default_params.restype = Params
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = TYPES[kind], True
    return llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))


sys.exit(main())
