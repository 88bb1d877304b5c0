"""The process's committed memory, as a gauge: anonymous resident bytes, sampled while a window is open."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import Protocol

from pytest_memleak.errors import Unavailable
from pytest_memleak.events import garbage
from pytest_memleak.meters import c_library
from pytest_memleak.meters.gauge import PlainGauge
from pytest_memleak.meters.reading import COMMITTED, Levels

NATIVE_PERIOD_MS = 1
PYTHON_PERIOD_MS = 5


def committed() -> int:
    """Anonymous resident bytes (RssAnon) now: what the process itself has touched, without files and shared memory."""
    # Kernels before 6.16 keep these counters per core and report them off by up to some dozen pages a core.
    with open("/proc/self/statm", "rb") as statm:
        _, resident, shared = statm.read().split()[:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


class _Sampler(Protocol):
    how: str

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def take_peak(self) -> int: ...


class HostMemory(PlainGauge):
    """Gauge of the process's committed memory, with the resident high-water beside it."""

    device = "host"
    kinds: tuple[str, ...] = (COMMITTED,)
    # A look at who holds what collects garbage of tests before, and then the base is lower.
    by_growth = True

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise Unavailable(f"host memory is read from Linux's /proc, and this is {sys.platform}")
        try:
            committed()
        except (OSError, ValueError, IndexError) as error:
            raise Unavailable(f"host memory cannot be read from /proc/self/statm: {error!r}; mount /proc") from error
        self._sampler, self.fallback_reason = _choose()
        """The reason why Python does the sampling, or None."""
        self.how: str = self._sampler.how
        self._high_water_reason = "no window was opened yet"

    def begin(self) -> None:
        settled()
        self._high_water_reason = _reset_high_water()
        self._sampler.begin()

    def end(self) -> None:
        self._sampler.end()

    def give_back(self) -> None:
        # The growth would depend on what ran before. It takes no time where nothing can be given back, some
        # milliseconds in a thread with an arena of its own, and tenths of a second where very much is.
        c_library.give_back()
        self._sampler.take_peak()

    def now(self) -> Levels:
        return {COMMITTED: committed()}

    def take_peaks(self) -> Levels:
        return {COMMITTED: self._sampler.take_peak()}

    def refusals(self) -> int:
        """None: the kernel kills instead."""
        return 0

    def high_water(self) -> tuple[int | None, str]:
        """The kernel's own peak of resident bytes since the first window opened, and how it is to be understood."""
        if self._high_water_reason:
            return None, self._high_water_reason
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024, "resident high-water of the kernel, mapped files included"
        return None, "this kernel tells no resident high-water (VmHWM)"


def settled() -> int:
    """Committed bytes after a collection and after the C library gave back what it had kept for later."""
    garbage.collect_unless_off()
    c_library.give_back()
    return committed()


def settles_by() -> str:
    """What `settled` does on this machine, in words."""
    if c_library.gives_back():
        return "after a collection and malloc_trim"
    return "after a collection; this C library has no malloc_trim, so memory it keeps for later counts as held"


class _NativeSampler:
    how = f"sampled every {NATIVE_PERIOD_MS} ms"

    def __init__(self, library: ctypes.PyDLL) -> None:
        self._library = library

    def begin(self) -> None:
        if self._library.memleak_host_begin(NATIVE_PERIOD_MS * 1000):
            raise Unavailable("no thread can be started that samples host memory; raise the limit (ulimit -u)")

    def end(self) -> None:
        self._library.memleak_host_end()

    def take_peak(self) -> int:
        return int(self._library.memleak_host_take_peak())


class _PythonSampler:
    how = f"sampled every {PYTHON_PERIOD_MS} ms by a Python thread, which code that keeps the GIL delays"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """No call is made while it is held: in a child that is forked then it would stay locked, and a finalizer that
        reads as well would wait for itself."""
        self._peak = 0
        self._look = 0
        self._stop: threading.Event | None = None

    def begin(self) -> None:
        self._stop = threading.Event()
        threading.Thread(target=self._run, args=(self._stop,), name="memleak-host", daemon=True).start()

    def end(self) -> None:
        if self._stop:
            self._stop.set()

    def take_peak(self) -> int:
        now = committed()
        with self._lock:
            peak, self._peak = self._peak, now
            self._look += 1
        return max(peak, now)

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(PYTHON_PERIOD_MS / 1000):
            self._sample()

    def _sample(self) -> None:
        look = self._look
        level = committed()
        with self._lock:
            # One that was read before a look and comes after it is of a time that has been told already.
            if look == self._look and level > self._peak:
                self._peak = level


def _choose() -> tuple[_Sampler, str | None]:
    try:
        from pytest_memleak.events import native
    except ImportError as error:
        return _PythonSampler(), f"the native sampler needs torch to be built: {error}"
    if os.environ.get(native.ENGINE_VARIABLE) == "dispatch":
        return _PythonSampler(), f"{native.ENGINE_VARIABLE}=dispatch asks for Python"
    try:
        return _NativeSampler(native.library()), None
    except Unavailable as reason:
        return _PythonSampler(), str(reason)


def _reset_high_water() -> str:
    """Resets the kernel's high-water mark; returns why that is impossible, or nothing."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as clear_refs:
            clear_refs.write("5")
    except OSError as error:
        return f"the resident high-water cannot be reset here ({error.strerror})"
    return ""
