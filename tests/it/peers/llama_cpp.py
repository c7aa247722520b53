"""llama.cpp's logits of GGUFs.

`llama_cpp.py A B` prints the largest difference between the logits of two files, relative to the
largest logit. `llama_cpp.py --logits A TOKEN...` prints the logits after each token.

The wheel `xllamacpp` exports llama.cpp's C interface. Its parameter structs are passed by value and
grow with versions. They are treated as opaque and larger than needed, except the first field of the
context parameters, which is the size of the context, and the types of keys and values.
"""
import ctypes as C
import importlib.util
import sys
from pathlib import Path

import numpy as np

TOKENS = [1, 5, 9, 250, 3, 77, 130, 42]
F32, F16 = 0, 1
I32 = C.POINTER(C.c_int32)


class Params(C.Structure):
    _fields_ = [("words", C.c_uint32 * 256)]


class Batch(C.Structure):
    _fields_ = [("count", C.c_int32), ("token", I32), ("embd", C.c_void_p), ("pos", I32), ("n_seq_id", I32),
                ("seq_id", C.POINTER(I32)), ("logits", C.POINTER(C.c_int8))]


package = Path(importlib.util.find_spec("xllamacpp").submodule_search_locations[0])
llama = C.CDLL(str(next(package.glob("xllamacpp*.so"))))
for name, result, arguments in [
    ("llama_model_default_params", Params, []), ("llama_context_default_params", Params, []),
    ("llama_model_load_from_file", C.c_void_p, [C.c_char_p, Params]),
    ("llama_init_from_model", C.c_void_p, [C.c_void_p, Params]),
    ("llama_batch_init", Batch, [C.c_int32] * 3), ("llama_decode", C.c_int32, [C.c_void_p, Batch]),
    ("llama_get_logits", C.POINTER(C.c_float), [C.c_void_p]),
    ("llama_model_get_vocab", C.c_void_p, [C.c_void_p]), ("llama_vocab_n_tokens", C.c_int32, [C.c_void_p]),
]:
    getattr(llama, name).restype, getattr(llama, name).argtypes = result, arguments


def logits(path, tokens):
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    assert model, f"llama.cpp does not load {path}"
    params = llama.llama_context_default_params()
    params.words[0] = 256
    # Keys and values are stored in f16 by default: the only neighbours of type 1 behind the first fields.
    for at in range(14, 60):
        if params.words[at] == params.words[at + 1] == F16:
            params.words[at] = params.words[at + 1] = F32
            break
    params.words[13] = 0  # no flash attention, which needs f16
    context = llama.llama_init_from_model(model, params)
    assert context, path
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.count = len(tokens)
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
    assert llama.llama_decode(context, batch) == 0, path
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    return np.ctypeslib.as_array(llama.llama_get_logits(context), (len(tokens), vocab)).astype(np.float64)


if sys.argv[1] == "--logits":
    path, tokens = sys.argv[2], [int(token) for token in sys.argv[3:]]
    print(*logits(path, tokens).ravel())
else:
    a, b = (logits(path, TOKENS) for path in sys.argv[1:])
    print(np.abs(a - b).max() / np.abs(a).max())
