"""What is known about a whole run, beside its tests."""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any


@dataclass(frozen=True)
class RunInfo:
    started: str
    """ISO 8601, with the offset from UTC."""
    finished: str
    args: tuple[str, ...]
    """The command line as it was given to pytest."""
    mode: str
    """``enforce`` or ``report``."""
    backend: str
    """What ``--gpu-backend`` asked for; which card a test really had stands with the test."""
    exit_status: int
    cap: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"versions": dict(sorted(self.versions.items()))}


def versions() -> dict[str, str]:
    """Of this process. torch and transformers only if something imported them: a worker's are its own to tell."""
    known = {"python": platform.python_version()}
    for package in ("pytest-memleak", "pytest"):
        try:
            known[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            known[package] = "unknown"  # run from a source tree that was never installed
    for module in ("torch", "transformers"):
        version = getattr(sys.modules.get(module), "__version__", None)
        if version is not None:
            known[module] = str(version)
    return known
