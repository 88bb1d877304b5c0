"""What processes tell each other: read whole, gone with its process, and nobody else's business."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pytest_memleak.errors import Unavailable
from pytest_memleak.workers.holders import Hold, Holder, Want
from pytest_memleak.workers.ledger import Ledger, shared_folder

_PWRITE = os.pwrite
_HOLDER = Holder(
    1, "gw0", "test_it.py::test_ü", {"GPU-a": Hold(1, 2, 3, 4.5), "GPU-b": Hold()}, Want("t", 5, 2, ("GPU-a",), 6.5)
)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    ledger = Ledger()
    yield ledger
    ledger.close()


def test_what_is_written_is_what_is_read() -> None:
    assert Holder.from_json(_HOLDER.as_json()) == _HOLDER


def test_each_sees_what_the_others_hold_and_not_himself(ledger: Ledger) -> None:
    other = Ledger()
    try:
        for one, worker in ((ledger, "gw0"), (other, "gw1")):
            with one.turn("a test", 60.0):
                one.write(Holder(os.getpid(), worker))
        with ledger.turn("a test", 60.0) as seen:
            assert [holder.worker for holder in seen] == ["gw1"]
    finally:
        other.close()
    with ledger.turn("a test", 60.0) as seen:
        assert seen == []


def test_whose_turn_does_not_end_is_named(ledger: Ledger) -> None:
    """As where the driver hangs on a sick card."""
    other = Ledger()
    try:
        with other.turn("gw3 (pid 4711), with test_it.py::test_ü", 60.0):
            with pytest.raises(Unavailable, match=r"^gw3 \(pid 4711\), with test_it.py::test_ü looks for a card"):
                with ledger.turn("gw4", 0.01):
                    pass
        with ledger.turn("gw4", 60.0):
            pass
    finally:
        other.close()


def test_a_process_that_ends_while_others_look(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes its file away between their look at the folder and their look into the file."""
    there = os.listdir

    def listed(folder: Path) -> list[str]:
        return [*there(folder), "4711-gone.holder"]

    monkeypatch.setattr(os, "listdir", listed)
    with ledger.turn("a test", 60.0) as others:
        assert others == []


def test_a_shorter_text_leaves_nothing_of_a_longer_one(ledger: Ledger) -> None:
    other = Ledger()
    try:
        with other.turn("a test", 60.0):
            other.write(_HOLDER)
            other.write(Holder(2, ""))
        with ledger.turn("a test", 60.0) as seen:
            assert seen == [Holder(2, "")]
    finally:
        other.close()


def _short(descriptor: int, text: bytes, offset: int) -> int:
    return _PWRITE(descriptor, text[:9], offset)


def _full(descriptor: int, text: bytes, offset: int) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def _interrupted(descriptor: int, text: bytes, offset: int) -> int:
    _PWRITE(descriptor, text[:9], offset)
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("written", "error", "why"),
    [
        (
            _short,
            Unavailable,
            r"nothing can be written there \(9 of \d+ bytes were written\): make room, or point TMPDIR",
        ),
        (_full, Unavailable, r"nothing can be written there \(\[Errno 28\] No space left on device\): make room"),
        (_interrupted, KeyboardInterrupt, None),
    ],
)
def test_what_cannot_be_written_whole_is_not_told(
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    written: Callable[[int, bytes, int], int],
    error: type[BaseException],
    why: str | None,
) -> None:
    other = Ledger()
    try:
        with other.turn("a test", 60.0):
            other.write(_HOLDER)
        with pytest.raises(error, match=why), other.turn("a test", 60.0), monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", written)
            other.write(replace(_HOLDER, test="another"))
        with ledger.turn("a test", 60.0) as seen:
            assert seen == []
        with other.turn("a test", 60.0):
            other.write(_HOLDER)
        with ledger.turn("a test", 60.0) as seen:
            assert seen == [_HOLDER]
    finally:
        other.close()


def test_a_turn_that_cannot_be_told_is_a_turn(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", _full)
    with ledger.turn("a test", 60.0) as seen:
        assert seen == []


@pytest.mark.parametrize("text", ["", '{"pid": 1', "[]", '{"pid": 1}', "\udcff"])
def test_what_cannot_be_read_names_the_file_and_its_process(ledger: Ledger, text: str) -> None:
    other = Ledger()
    try:
        with other.turn("a test", 60.0):
            other.write(_HOLDER)
        (file,) = other.folder.glob("*.holder")
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
        with (
            pytest.raises(Unavailable, match=rf"{file} is where process {os.getpid()} tells which cards it uses"),
            ledger.turn("a test", 60.0),
        ):
            pass
    finally:
        other.close()


def _hold(told: Connection, forks: bool) -> None:
    ledger = Ledger()
    with ledger.turn("a test", 60.0):
        ledger.write(Holder(os.getpid(), "gw7"))
    reads, writes = os.pipe()
    child = os.fork() if forks else -1
    if child == 0:
        os.write(writes, b"!")  # only now is it known to have let go of what it has of its parent's
        time.sleep(60)
        os._exit(0)
    if forks:
        os.read(reads, 1)
    told.send(child)
    time.sleep(60)


@pytest.mark.parametrize("forks", [False, True], ids=["alone", "with a child that lives on"])
def test_what_a_killed_process_held_is_free(ledger: Ledger, forks: bool) -> None:
    told, tells = multiprocessing.get_context("spawn").Pipe(duplex=False)
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(tells, forks))
    holder.start()
    child = told.recv()
    try:
        with ledger.turn("a test", 60.0) as seen:
            assert [one.worker for one in seen] == ["gw7"]
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        with ledger.turn("a test", 60.0) as seen:
            assert seen == []
        assert list(ledger.folder.glob("*.holder")) == []
    finally:
        if child > 0:
            os.kill(child, signal.SIGKILL)


def test_a_forked_child_tells_of_itself(ledger: Ledger) -> None:
    """As pytest-forked runs tests: its parent's entry stays, and its own is another one."""
    with ledger.turn("a test", 60.0):
        ledger.write(Holder(os.getpid(), "parent"))
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        with ledger.turn("a test", 60.0) as seen:
            ledger.write(Holder(os.getpid(), "child"))
        os.write(writes, ("sees: " + ",".join(one.worker for one in seen)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reads, 100) == b"sees: parent"
    os.close(reads)
    os.close(writes)
    with ledger.turn("a test", 60.0) as seen:
        assert seen == []


def test_nobody_else_may_read_it(own_folder: Path) -> None:
    assert shared_folder().parent == own_folder
    assert shared_folder().stat().st_mode & 0o777 == 0o700


def _open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def _leads_elsewhere(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("planted", [_open_to_all, _leads_elsewhere, Path.touch])
def test_a_folder_that_somebody_else_may_have_made_is_not_used(planted: object) -> None:
    folder = shared_folder()
    folder.rmdir()
    assert callable(planted)
    planted(folder)
    with pytest.raises(Unavailable, match="not a folder of this user's alone: remove it, or point TMPDIR elsewhere"):
        Ledger()


def test_another_users_folder_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    shared_folder()
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    shared = shared_folder
    path = Path(os.environ["TMPDIR"], f"pytest-memleak-cards-{mine + 1}-1")
    path.mkdir(mode=0o700)
    with pytest.raises(Unavailable, match="not a folder of this user's alone"):
        shared()
