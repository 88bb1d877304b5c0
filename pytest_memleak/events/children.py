"""Which child processes used torch during a test: their memory was not measured.

While a window is open the functions that start processes are wrapped. Only once one is called does a thread look into
/proc, as long as children are alive, for those that have torch mapped. Importing torch takes many times its period.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from pytest_memleak.events import processes

_PERIOD = 0.03
_CAN_LOOK = os.path.isdir("/proc/self")

_SPAWNING = (
    ("_posixsubprocess", "fork_exec"),
    ("subprocess", "_fork_exec"),
    ("os", "posix_spawn"),
    ("os", "posix_spawnp"),
    ("os", "system"),
)
_FORKING = (("os", "fork"), ("os", "forkpty"))

# They map torch, and no tensor of the program is ever made in them.
_HARMLESS = ("torch_shm_manager", "torch/_inductor/compile_worker", "torch._inductor.compile_worker")

_IMPORTED = "imported torch"
_INHERITED = "was forked from this process and so has torch"
_DATALOADER_HINT = "; num_workers=0 loads the data in this process, where it is measured"


@dataclass
class _Child:
    pid: int
    command: str
    forked: bool = False
    from_dataloader: bool = False

    def told(self, saw: str) -> str:
        name = "a DataLoader worker" if self.from_dataloader else self.command
        return f"{name} (pid {self.pid}) {saw}" + (_DATALOADER_HINT if self.from_dataloader else "")


class ChildWatch:
    """Open from `begin` to `end`, or as a context manager; `unmeasured` then tells what it found."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._children: dict[int, _Child] = {}
        self._found: dict[int, str] = {}
        self._seen: dict[int, int] = {}
        self._before: frozenset[int] = frozenset()
        self._owner = 0
        self._starting = 0
        self._watcher: threading.Thread | None = None
        self._closed = threading.Event()

    def __enter__(self) -> ChildWatch:
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def begin(self) -> None:
        self._owner = os.getpid()
        self._children.clear()
        self._found.clear()
        self._seen.clear()
        self._before = frozenset(processes.children_of(self._owner) if _CAN_LOOK else ())
        self._closed.clear()
        for module_name, name in _SPAWNING:
            self._wrap(module_name, name, self._spawning)
        for module_name, name in _FORKING:
            self._wrap(module_name, name, self._forking)

    def end(self) -> None:
        """Restores what was wrapped, and looks a last time at the children that are alive."""
        while self._undo:
            self._undo.pop()()
        self._closed.set()
        with self._lock:
            watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.join()
            self._look()

    def unmeasured(self) -> tuple[str, ...]:
        """Each child that has or had torch, described; also while the window is open."""
        with self._lock:
            # Forked with torch inside, and never seen to run another program: that it was quick changes nothing.
            quick = [child for child in self._children.values() if child.forked and child.pid not in self._found]
            return (*self._found.values(), *(child.told(_INHERITED) for child in quick))

    def _wrap(self, module_name: str, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        module = sys.modules.get(module_name)
        original = getattr(module, name, None)
        if original is None:
            return  # not imported, or not in this Python: nobody can call it by this name
        wrapped = functools.wraps(original)(around(original))
        setattr(module, name, wrapped)

        def undo() -> None:
            # Somebody who wrapped it after us keeps their wrapper; ours then only passes on.
            if getattr(module, name) is wrapped:
                setattr(module, name, original)

        self._undo.append(undo)

    def _spawning(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def spawn(*args: Any, **kwargs: Any) -> Any:
            if not self._mine():
                return original(*args, **kwargs)
            self._start_watching()
            try:
                result = original(*args, **kwargs)
            finally:
                self._done_starting()
            if original.__name__ != "system" and isinstance(result, int):
                self._note(result, forked=False)
                if not _CAN_LOOK:
                    self._found[result] = self._children[result].told("cannot be looked into on this system")
            return result

        return spawn

    def _forking(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def fork(*args: Any, **kwargs: Any) -> Any:
            if not self._mine():
                return original(*args, **kwargs)
            # The thread starts only after the fork: forking with one more thread is one more risk.
            result = original(*args, **kwargs)
            pid = result[0] if isinstance(result, tuple) else result
            if pid > 0:
                self._note(pid, forked="torch" in sys.modules and not _called_from("os", "_spawnvef"))
                self._start_watching()
                self._done_starting()
            return result

        return fork

    def _mine(self) -> bool:
        """False in a forked child, which has its own copy of all this and no watcher."""
        return os.getpid() == self._owner and not self._closed.is_set()

    def _note(self, pid: int, forked: bool) -> None:
        command = processes.command_of(pid) or "a child process"
        from_dataloader = _called_from("torch.utils.data.dataloader", "__init__")
        with self._lock:
            # A number that was used before belongs to a new process now.
            self._children[pid] = _Child(pid, command, forked, from_dataloader)

    def _start_watching(self) -> None:
        with self._lock:
            self._starting += 1
            if not _CAN_LOOK:
                return
            if self._watcher is None or not self._watcher.is_alive():
                self._watcher = threading.Thread(target=self._watch, name="memleak-children", daemon=True)
                self._watcher.start()

    def _done_starting(self) -> None:
        with self._lock:
            self._starting -= 1

    def _watch(self) -> None:
        while not self._closed.wait(_PERIOD):
            alive = self._look()
            with self._lock:
                if not alive and not self._starting:
                    self._watcher = None
                    return

    def _look(self) -> bool:
        """Looks at every descendant once; False if there is none."""
        # Those seen before as well: a shell that ends leaves its background jobs to somebody else.
        alive = processes.descendants_of(self._owner, without=self._before, with_also=self._still_running())
        for process in alive:
            pid = process.pid
            self._seen[pid] = process.started
            with self._lock:
                child = self._children.setdefault(pid, _Child(pid, ""))
            if process.executed:
                child.forked = False  # it runs a program of its own now
            if pid in self._found or not processes.has_torch(pid):
                continue
            if not process.executed and not child.forked and self._parent_has_torch(process):
                continue  # on its way from fork to exec; or a part of a process that is told anyway
            command = processes.command_of(pid)
            if any(name in command for name in _HARMLESS):
                continue
            child.command = command or child.command
            with self._lock:
                self._found[pid] = child.told(_INHERITED if child.forked else _IMPORTED)
        return bool(alive)

    def _still_running(self) -> list[int]:
        return [
            pid
            for pid, started in self._seen.items()
            if (process := processes.process(pid)) is not None and process.started == started
        ]

    def _parent_has_torch(self, process: processes.Process) -> bool:
        if process.parent == self._owner:
            return "torch" in sys.modules
        return processes.has_torch(process.parent)


def _called_from(module: str, function: str) -> bool:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_globals.get("__name__") == module:
            return True
        frame = frame.f_back
    return False
