"""Real runs with real workers of pytest-xdist, on cards that are a file."""

from __future__ import annotations

import shutil

import pytest

from tests.hooks.sharing.played import LEAN, PLUGIN, TESTS, Start
from tests.workers import fake_cards
from tests.workers.fake_cards import GIB, FakeCards


@pytest.fixture
def cards(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> FakeCards:
    """Two of 64 GiB, and a folder of the project's own for what runs tell each other."""
    folder = pytester.mkdir("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    shutil.copy(str(fake_cards.__file__), pytester.path)
    pytester.makepyfile(fake_plugin=PLUGIN)
    return FakeCards.make(pytester.path / "cards.json", 64 * GIB, 64 * GIB)


@pytest.fixture
def start(pytester: pytest.Pytester, cards: FakeCards) -> Start:
    def run(text: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=TESTS + text)
        return pytester.runpytest_subprocess("-p", "fake_plugin", *LEAN, *args)

    return run
