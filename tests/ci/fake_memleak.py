"""``memleak matrix`` for tests: writes down its arguments, and a table where it is asked to."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    state, *arguments = sys.argv[1:]
    Path(state).write_text("\n".join(arguments))
    Path(arguments[arguments.index("--markdown") + 1]).write_text("the table\n")
    sys.exit(3)
