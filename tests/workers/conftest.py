"""What the tests of this room have in common: a folder of their own to tell each other in, and no long waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_memleak.workers import reserving


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(reserving, "POLL", 0.005)
    return folder
