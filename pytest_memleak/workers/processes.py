"""Processes of this machine as Linux tells of them: what they are called, and who started whom."""

from __future__ import annotations

from pathlib import Path


def name_of(pid: int) -> str:
    """``python``, as far as it can be told from here."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def owner(pid: int, among: frozenset[int]) -> int | None:
    """Which of these processes it is, or was started by."""
    while pid > 1:
        if pid in among:
            return pid
        pid = _parent(pid)
    return None


def _parent(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    # The name in brackets may hold anything; what follows is the state, and then the parent.
    return int(text.rpartition(")")[2].split()[1])
