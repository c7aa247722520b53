"""How two peers tokenize: `both_tokenizers.py GGUF TOKENIZER TEXTS` prints a list of `[llama.cpp's ids, Hugging Face's ids]` for
the texts of the JSON list TEXTS. llama.cpp reads the GGUF, Hugging Face's `tokenizers` the file TOKENIZER. Special tokens
that are spelled out count as such, none is added.
"""
import ctypes as C
import importlib.util
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer


class Params(C.Structure):
    """llama.cpp's parameters, taken and handed back as they are: see `llama_cpp.py`."""

    _fields_ = [("words", C.c_uint32 * 256)]


package = Path(importlib.util.find_spec("xllamacpp").submodule_search_locations[0])
llama = C.CDLL(str(next(package.glob("xllamacpp*.so"))))
IDS = C.POINTER(C.c_int32)
for name, result, arguments in [
    ("llama_model_default_params", Params, []),
    ("llama_model_load_from_file", C.c_void_p, [C.c_char_p, Params]),
    ("llama_model_get_vocab", C.c_void_p, [C.c_void_p]),
    ("llama_tokenize", C.c_int32, [C.c_void_p, C.c_char_p, C.c_int32, IDS, C.c_int32, C.c_bool, C.c_bool]),
]:
    getattr(llama, name).restype, getattr(llama, name).argtypes = result, arguments

model = llama.llama_model_load_from_file(sys.argv[1].encode(), llama.llama_model_default_params())
assert model, f"llama.cpp does not load {sys.argv[1]}"
vocab = llama.llama_model_get_vocab(model)
tokenizer = Tokenizer.from_file(sys.argv[2])


def llama_ids(text):
    data = text.encode()
    ids = (C.c_int32 * (len(data) + 8))()
    count = llama.llama_tokenize(vocab, data, len(data), ids, len(ids), False, True)
    assert count >= 0, count
    return ids[:count]


texts = json.loads(Path(sys.argv[3]).read_text())
print(json.dumps([[llama_ids(text), tokenizer.encode(text, add_special_tokens=False).ids] for text in texts]))
