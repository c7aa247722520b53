#!/usr/bin/env python3
"""Prints src/model/quant/formats/grids.rs: the codebooks of ggml-common.h, as gguf-py has them. Pipe it through rustfmt."""
from gguf import quants

print("//! The codebooks of the IQ formats, after ggml-common.h: a number an entry, a digit a value, the first in the lowest bits.")
print("//! Two bits a digit, but for IQ3 three. Written by tests/it/golden/grids.py.")
for name in ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"):
    book = getattr(quants, name)
    book.init_grid()
    entries, width = book.grid_shape
    bits = 3 if name.startswith("IQ3") else 2
    digits = book.grid.reshape(entries, width).astype(int)
    numbers = [sum(book.grid_map.index(d) << bits * j for j, d in enumerate(entry)) for entry in digits.tolist()]
    text = ", ".join(f"0x{number:04x}" for number in numbers)
    print(f"\npub(super) const {name}: [u16; {entries}] = [{text}];")
