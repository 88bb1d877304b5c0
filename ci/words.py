"""Splits a text into words, by a shell's rules for quotes and no other of its rules: a $ is a $, and nothing is run.

python -I ci/words.py TEXT >FILE    (each word ends with a NUL, for mapfile -d '')
"""

from __future__ import annotations

import os
import shlex
import sys

if __name__ == "__main__":
    text = sys.argv[1]
    try:
        found = shlex.split(text)
    except ValueError as error:
        sys.exit(f"{error}: {text}")
    sys.stdout.buffer.write(b"".join(os.fsencode(word) + b"\0" for word in found))
