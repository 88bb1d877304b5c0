"""`--memleak-snapshots=FOLDER`: torch's own snapshot of a test whose CUDA memory was recorded, for its viewer.

They are pickles, since that is what the viewer reads. They are written, and never loaded.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re

import pytest

from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.events import cuda_history
from pytest_memleak.report import files
from pytest_memleak.report.snapshots import shown
from pytest_memleak.settings import SETTINGS
from pytest_memleak.wording import SNAPSHOT, SNAPSHOT_NOTES

_LONGEST = 120


class Snapshot:
    """One test's."""

    def __init__(self, item: pytest.Item) -> None:
        self._nodeid = item.nodeid
        self._folder = item.config.stash[SETTINGS].snapshots
        self._start = item.config.invocation_params.dir
        self.notes: tuple[str, ...] = ()

    def save(self) -> None:
        """When the body has ended. Without a history there is none; a test does not fail for want of one."""
        if self._folder is None or (found := cuda_history.snapshot()) is None:
            return
        path = os.path.join(self._folder, file_name(self._nodeid))
        try:
            files.write(path, pickle.dumps(found), "snapshot")
        except (BadInput, Unavailable) as error:
            self.notes = (f"{SNAPSHOT_NOTES}not saved: {error}",)
        else:
            self.notes = (f"{SNAPSHOT}{shown(path, self._start)}",)


def file_name(nodeid: str) -> str:
    """Readable, allowed everywhere, and another one for every test."""
    readable = re.sub(r"[^A-Za-z0-9._=\[\]-]+", "-", nodeid)[-_LONGEST:].strip("-.")
    return f"{readable}-{hashlib.sha256(nodeid.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}.pickle"
