#!/usr/bin/env python3
"""Style figures of the source: `tests/style.py [FOLDER]...` (default: src).

Prints, per folder, lines of code (no blank lines, no comments), their mean width in columns, and how many calls of
combinators there are in 1,000 of them.
"""

import pathlib
import re
import sys

COMBINATORS = (
    "all and_then any chain filter filter_map find_map flat_map fold for_each inspect is_none_or is_ok_and is_some_and "
    "map map_err map_or map_or_else ok_or_else or_else partition position scan skip_while take_while then then_some "
    "try_fold try_for_each unwrap_or_else zip"
).split()
CALL = re.compile(r"\.(%s)\(" % "|".join(COMBINATORS))


def figures(folder):
    lines = width = calls = 0
    for path in sorted(pathlib.Path(folder).rglob("*.rs")):
        for line in path.read_text().splitlines():
            if line.strip() and not line.strip().startswith("//"):
                lines += 1
                width += len(line)
                calls += len(CALL.findall(line))
    return lines, width / lines, 1000 * calls / lines


for folder in sys.argv[1:] or ["src"]:
    lines, width, calls = figures(folder)
    print(f"{folder}: {lines} lines of code, {width:.1f} columns on average, {calls:.1f} combinators per 1,000 lines")
