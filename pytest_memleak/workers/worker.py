"""Which process this is under pytest-xdist."""

from __future__ import annotations

import pytest


def worker_id(config: pytest.Config) -> str:
    """``gw0`` in a worker of pytest-xdist, an empty string otherwise."""
    return str(getattr(config, "workerinput", {}).get("workerid", ""))


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")
