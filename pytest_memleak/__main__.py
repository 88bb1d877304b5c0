"""``python -m pytest_memleak`` is the command ``memleak``."""

from __future__ import annotations

from pytest_memleak.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
