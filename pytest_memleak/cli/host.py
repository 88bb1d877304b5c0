"""The doctor's look at the host's memory: which of the kernel's counters can be read here."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.cli.finding import Finding

_GROUP = "host memory"


def host_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> list[Finding]:
    return [_committed(proc), _high_water(proc), _memory(proc), _container(proc, cgroups)]


def _committed(proc: Path) -> Finding:
    value = _field(proc / "self/status", "RssAnon")
    if value is None:
        return Finding(_GROUP, "no", "committed", f"{proc}/self/status does not tell RssAnon: no max_host_peak here")
    return Finding(_GROUP, "yes", "committed", f"RssAnon is readable ({format_size(value)} now); peaks are sampled")


def _high_water(proc: Path) -> Finding:
    try:
        # 5 resets the process's resident high-water mark, and nothing else.
        (proc / "self/clear_refs").write_text("5")
    except OSError as error:
        reason = error.strerror or str(error)
        return Finding(
            _GROUP, "partly", "high-water", f"cannot be reset ({reason}): it tells of the whole process only"
        )
    if _field(proc / "self/status", "VmHWM") is None:
        return Finding(_GROUP, "partly", "high-water", f"{proc}/self/status does not tell VmHWM")
    return Finding(_GROUP, "yes", "high-water", "VmHWM can be reset through clear_refs: the resident peak of one test")


def _memory(proc: Path) -> Finding:
    total, available = (_field(proc / "meminfo", name) for name in ("MemTotal", "MemAvailable"))
    if total is None or available is None:
        return Finding(_GROUP, "-", "memory", "the machine's memory cannot be read")
    return Finding(_GROUP, "-", "memory", f"{format_size(total)}, {format_size(available)} available")


def _container(proc: Path, cgroups: Path) -> Finding:
    limit = _cgroup_limit(proc, cgroups)
    if limit is None:
        return Finding(_GROUP, "-", "container", "no cgroup limit found")
    return Finding(_GROUP, "-", "container", f"the cgroup ends the process at {format_size(limit)}")


def _cgroup_limit(proc: Path, cgroups: Path) -> int | None:
    """The lowest limit from this process's group up to the root, of either version of cgroups."""
    limits = []
    for line in _text(proc / "self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = Path(os.path.normpath(f"{base}/{group}"))
        for place in (folder, *folder.parents):
            if place.is_relative_to(base) and (text := _text(place / name).strip()).isdigit():
                limits.append(int(text))
    # Version 1 writes "no limit" as a number near 2**63.
    return min((limit for limit in limits if limit < 2**62), default=None)


def _field(path: Path, name: str) -> int | None:
    """A line such as ``RssAnon:  123 kB``, in bytes."""
    for line in _text(path).splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # absent or closed to us: then the machine does not tell, which is what the caller reports
