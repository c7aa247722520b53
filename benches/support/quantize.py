"""Converts a GGUF to F16 with the C interface of libllama, like llama-quantize.

    quantize.py FOLDER IN OUT

FOLDER has libllama, libggml and libggml-base.
"""

import ctypes
import sys
from pathlib import Path


class Params(ctypes.Structure):
    """The first fields of llama_model_quantize_params; `rest` is space for further fields."""

    _fields_ = [
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool),
        ("rest", ctypes.c_uint8 * 255),
    ]


MOSTLY_F16 = 1

folder, source, target = sys.argv[1:]
library = lambda pattern: ctypes.CDLL(str(next(Path(folder).glob(pattern))), mode=ctypes.RTLD_GLOBAL)
library("libggml-base.so*")
library("libggml.*so*").ggml_backend_load_all_from_path(folder.encode())
llama = library("libllama.*so*")
llama.llama_backend_init()
llama.llama_model_quantize_default_params.restype = Params
params = llama.llama_model_quantize_default_params()
params.ftype, params.allow_requantize = MOSTLY_F16, True
sys.exit(llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))
