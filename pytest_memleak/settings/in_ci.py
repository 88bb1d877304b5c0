"""Whether nobody watches this run, which a few defaults go by."""

from __future__ import annotations

import os

_VARIABLES = ("CI", "BUILD_NUMBER")
"""Those that pytest goes by, too: nearly every service sets the first one, Jenkins the second."""
_NO = ("", "0", "false", "no", "off")


def ci_variable() -> str:
    """The environment variable that says that this is CI; empty if none does."""
    return next((name for name in _VARIABLES if os.environ.get(name, "").strip().lower() not in _NO), "")
