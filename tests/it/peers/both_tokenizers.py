"""Tokenizes texts with llama.cpp and with Hugging Face's `tokenizers`.

    both_tokenizers.py GGUF TOKENIZER TEXTS

Prints a list of `[llama.cpp's ids, Hugging Face's ids]` for the texts in the JSON list TEXTS.
llama.cpp reads the vocabulary of the GGUF, `tokenizers` reads the file TOKENIZER. Special tokens in the texts are
recognized, and none is added.
"""
import ctypes as C
import importlib.util
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer


class Params(C.Structure):
    """An opaque struct of llama.cpp, see `llama_cpp.py`."""

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

params = llama.llama_model_default_params()
assert params.words[18] == 0x10000  # `vocab_only`, `check_tensors`, `use_extra_bufts`
params.words[18] |= 1
model = llama.llama_model_load_from_file(sys.argv[1].encode(), params)
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
