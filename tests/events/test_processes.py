"""Children are found whatever the threads of a process do meanwhile, and also once they have ended."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pytest_memleak.events import processes

NOBODY = str(2**31 - 1)


@pytest.fixture
def ended() -> Iterator[int]:
    """A child that has ended and was not fetched."""
    pid = os.spawnv(os.P_NOWAIT, "/bin/sh", ["sh", "-c", ":"])
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    yield pid
    os.waitpid(pid, 0)


def test_a_child_that_ended_is_among_the_children(ended: int) -> None:
    assert ended in processes.children_of(os.getpid())
    assert processes.process(ended) is None


def test_a_thread_that_ends_during_the_look_hides_no_child(ended: int, monkeypatch: pytest.MonkeyPatch) -> None:
    listdir = os.listdir
    looks: list[list[str]] = []

    def with_one_that_is_gone(path: str) -> list[str]:
        looks.append(listdir(path) if looks else [NOBODY])
        return looks[-1]

    monkeypatch.setattr(os, "listdir", with_one_that_is_gone)
    assert ended in processes.children_of(os.getpid())
    assert len(looks) == 2


def test_a_kernel_that_does_not_list_children(ended: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_KERNEL_LISTS_CHILDREN", False)
    assert ended in processes.children_of(os.getpid())


def test_a_process_that_is_gone_has_no_children() -> None:
    assert processes.children_of(int(NOBODY)) == []
