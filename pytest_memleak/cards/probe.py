"""Whether this machine shows an accelerator, without importing torch: for the header, and for deciding what to load."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_DEVICE_FILES = ("nvidia0", "nvidiactl", "kfd", "dxg", "dri/renderD128")


def accelerator_seen() -> bool:
    """A guess from device files; torch has the last word once it is imported."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    return any(Path("/dev", name).exists() for name in _DEVICE_FILES)
