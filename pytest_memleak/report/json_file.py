"""``--memleak-json=PATH``: the results of a run as one JSON document, written whole or not at all."""

from __future__ import annotations

import json
import os
from typing import Any

from pytest_memleak.records.baselines.told import Told
from pytest_memleak.records.collected import Collected
from pytest_memleak.records.run import RunInfo
from pytest_memleak.records.stored import SCHEMA
from pytest_memleak.report import files


def document(collected: Collected, run: RunInfo, baseline: Told | None = None) -> dict[str, Any]:
    """The document that docs/json.md describes and records/schema-1.json defines."""
    return {
        "schema": SCHEMA,
        "run": run.as_json(),
        "totals": collected.totals().as_json(),
        "workers": {worker: collected.totals(worker).as_json() for worker in collected.workers},
        "silent_workers": list(collected.silent_workers),
        **({"baseline": baseline.as_json()} if baseline is not None else {}),
        "tests": [record.as_json() for record in collected],
    }


def write(path: str | os.PathLike[str], document: dict[str, Any]) -> None:
    # NaN is no JSON, and most readers refuse it; characters beyond ASCII are escaped, so any node id can be written.
    files.write(path, json.dumps(document, indent=1, allow_nan=False).encode("ascii") + b"\n")
