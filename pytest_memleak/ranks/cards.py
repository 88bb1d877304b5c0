"""Which GPUs a test's ranks get: as many as there are ranks, all of them or none, and nobody else's meanwhile.

Locks on files, so that the workers of pytest-xdist and other runs of this user on this machine wait for each other, and
so that a worker that is killed gives back what it had.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from pytest_memleak.errors import Unavailable

_POLL = 0.1


def here() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. No context is made on any."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


@contextlib.contextmanager
def reserved(count: int, among: Sequence[str], patience: float) -> Iterator[tuple[str, ...]]:
    """Waits until so many are free at once: who held some while waiting for more could wait for ever."""
    until = time.monotonic() + patience
    while (held := _all_at_once(count, among)) is None:
        if time.monotonic() > until:
            raise Unavailable(
                f"{count} of the GPUs {', '.join(among)} did not become free within {patience:g} s: other tests with "
                f"ranks have them (locks in {_folder()})"
            )
        time.sleep(_POLL * (1 + random.random()))  # or two that wait could go on meeting
    try:
        yield tuple(held)
    finally:
        for lock in held.values():
            lock.close()


def _all_at_once(count: int, among: Sequence[str]) -> dict[str, IO[str]] | None:
    held: dict[str, IO[str]] = {}
    for card in among:
        if len(held) < count and (lock := _locked(card)) is not None:
            held[card] = lock
    if len(held) == count:
        return held
    for lock in held.values():
        lock.close()
    return None


def _locked(card: str) -> IO[str] | None:
    path = _folder() / f"card-{card.replace(os.sep, '-')}.lock"
    lock = path.open("w", encoding="ascii")  # closed by whoever has it, or with its process
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _folder() -> Path:
    folder = Path(tempfile.gettempdir(), f"pytest-memleak-cards-{getpass.getuser()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
