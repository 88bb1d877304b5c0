"""Which other processes used torch during a test: their memory was not measured.

While a window is open the functions that start processes are wrapped, and forks are told by the interpreter. Only once
there is a child does a thread look into /proc for descendants that have torch mapped; importing torch takes many times
its period. Those from before the window count if they worked during it.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pytest_memleak.events import forks, processes

_PERIOD = 0.03
_CAN_LOOK = os.path.isdir("/proc/self")

_SPAWNING = (
    ("_posixsubprocess", "fork_exec"),
    ("subprocess", "_fork_exec"),
    ("os", "posix_spawn"),
    ("os", "posix_spawnp"),
    ("os", "system"),
)

# They map torch, and no tensor of the program is ever made in them. The last asks whether a library can be loaded.
_HARMLESS = re.compile(
    r"torch_shm_manager|torch[/.]_inductor[/.]compile_worker"
    r"|-c (import sys if sys\.platform != .\w+.: )?import torch( # noqa: \w+)? from ctypes import cdll "
    r"cdll\.LoadLibrary\([^()]*\)$"
)

_IMPORTED = "imported torch"
_INHERITED = "was forked from this process and so has torch"
_WORKED = "has torch, was there before and worked meanwhile"
_ENDED = "had torch, was there before and ended meanwhile"
_NATIVE = "a child process of native code used {seconds:.1f} s of processor time, perhaps with torch,"
# What native code starts and waits for is only seen by the time it used; importing torch takes more than this.
_NATIVE_SECONDS = 0.3
_DATALOADER_HINT = "; with num_workers=0 the data would be loaded in this process, where it is measured"


@dataclass
class _Child:
    pid: int
    command: str
    forked: bool = False
    from_dataloader: bool = False
    announced: bool = True
    """Told by what started it. The watcher may see a child before that, and does not know how it came to be."""

    def told(self, saw: str) -> str:
        name = "a DataLoader worker" if self.from_dataloader else processes.shortened(self.command)
        return f"{name} (pid {self.pid}{_DATALOADER_HINT if self.from_dataloader else ''}) {saw}"


@dataclass
class _Older:
    """A process that was there before the window."""

    started: int
    work: processes.Work
    command: str
    has_torch: bool


class ChildWatch:
    """Open from `begin` to `end`, or as a context manager; `unmeasured` then tells what it found."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._looking = threading.RLock()
        self._here = threading.local()
        self._children: dict[int, _Child] = {}
        self._found: dict[int, str] = {}
        self._seen: dict[int, int] = {}
        self._before: dict[int, _Older] = {}
        self._owner = 0
        self._paused = False
        self._watcher: threading.Thread | None = None
        self._closed = threading.Event()
        self._closed.set()
        self._used_before = 0.0

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
        self._paused = False
        self._closed.clear()
        self._take_stock()
        for module_name, name in _SPAWNING:
            self._wrap(module_name, name)
        forks.tell(self)

    def end(self) -> None:
        """Restores what was wrapped, and looks a last time."""
        if self._closed.is_set():
            return
        while self._undo:
            self._undo.pop()()
        forks.tell_no_more(self)
        self._look_last()
        self._closed.set()
        with self._lock:
            watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.join()

    def pause(self) -> None:
        """What is started or works from here to `resume` is not the test's."""
        self._look_last()
        self._paused = True

    def resume(self) -> None:
        """What was started in the pause counts from here on if it works."""
        with self._looking:
            self._take_stock()
            self._paused = False

    def unmeasured(self) -> tuple[str, ...]:
        """Phrases to be followed by "and was not measured"; also while the window is open."""
        if not self._closed.is_set():
            self._look_last()
        with self._lock:
            # Forked with torch inside, and never seen to run another program: that it was quick changes nothing.
            quick = [child for child in self._children.values() if child.forked and child.pid not in self._found]
            return (*self._found.values(), *(child.told(_INHERITED) for child in quick))

    def _take_stock(self) -> None:
        self._used_before = processes.used_by_children()
        self._before = {}
        if not (_CAN_LOOK and processes.has_children()):
            return
        for one in processes.descendants_of(self._owner, without=self._children):
            self._seen[one.pid] = one.started
            command = processes.command_of(one.pid)
            has_torch = processes.has_torch(one.pid) and not _HARMLESS.search(command)
            self._before[one.pid] = _Older(one.started, processes.work_of(one), command, has_torch)
        if self._before:
            self._start_watching()  # a server among them may start others

    def _wrap(self, module_name: str, name: str) -> None:
        module = sys.modules.get(module_name)
        original = getattr(module, name, None)
        if original is None:
            return  # not imported, or not in this Python: nobody can call it by this name
        wrapped = functools.wraps(original)(self._spawning(original))
        setattr(module, name, wrapped)

        def undo() -> None:
            # Somebody who wrapped it after us keeps their wrapper; ours then only passes on.
            if getattr(module, name) is wrapped:
                setattr(module, name, original)

        self._undo.append(undo)

    def _spawning(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def spawn(*args: Any, **kwargs: Any) -> Any:
            if not self._attends():
                return original(*args, **kwargs)
            self._start_watching()
            self._here.spawning = True
            try:
                result = original(*args, **kwargs)
            finally:
                self._here.spawning = False
            if original.__name__ != "system" and isinstance(result, int):
                self._note(result, forked=False)
                if not _CAN_LOOK:
                    self._found[result] = self._children[result].told("cannot be looked into on this system")
            return result

        return spawn

    def forked(self) -> None:
        """This process has just forked, by whatever name it called that."""
        # With a preexec_fn, starting a program forks as well.
        if not self._attends() or getattr(self._here, "spawning", False):
            return
        forked = "torch" in sys.modules and not forks.called_from("os", "_spawnvef")
        for pid in processes.children_of(self._owner) if _CAN_LOOK else [-len(self._children) - 1]:
            if not self._is_known(pid) and ((one := processes.process(pid)) is None or not one.executed):
                self._note(pid, forked)
        self._start_watching()

    def _is_known(self, pid: int) -> bool:
        child = self._children.get(pid)
        return pid in self._before or (child is not None and child.announced)

    def _attends(self) -> bool:
        """False in a forked child, which has its own copy of all this and no watcher."""
        return os.getpid() == self._owner and not self._closed.is_set() and not self._paused

    def _note(self, pid: int, forked: bool) -> None:
        command = processes.command_of(pid) or "a child process"
        from_dataloader = forks.called_from("torch.utils.data.dataloader", "__init__")
        with self._lock:
            # A number that was used before belongs to a new process now.
            self._children[pid] = _Child(pid, command, forked, from_dataloader)

    def _start_watching(self) -> None:
        with self._lock:
            if _CAN_LOOK and self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="memleak-children", daemon=True)
                self._watcher.start()

    def _watch(self) -> None:
        while not self._closed.wait(_PERIOD):
            if processes.has_children() or self._seen:
                self._look()

    def _look_last(self) -> None:
        if self._paused:
            return
        if self._watcher is not None:
            gone = self._before.keys() - self._look()
            for pid, older in self._before.items():
                if pid in gone and older.has_torch:
                    self._tell(_Child(pid, older.command), _ENDED)
        elif (used := processes.used_by_children() - self._used_before) > _NATIVE_SECONDS:
            self._found[0] = _NATIVE.format(seconds=used)

    def _look(self) -> set[int]:
        """Looks at every descendant once, and returns those there are."""
        with self._looking:
            if self._paused:
                return set()
            # Those seen before as well: a shell that ends leaves its background jobs to somebody else.
            alive = processes.descendants_of(self._owner, without=(), with_also=self._still_running())
            for one in alive:
                self._seen[one.pid] = one.started
                if one.pid in self._found:
                    continue
                older = self._before.get(one.pid)
                if older is not None and older.started == one.started:
                    self._look_at_older(one, older)
                else:
                    self._look_at(one)
            return {one.pid for one in alive}

    def _look_at_older(self, one: processes.Process, older: _Older) -> None:
        if not processes.work_of(one).is_more_than(older.work):
            return
        command = processes.command_of(one.pid)
        if processes.has_torch(one.pid) and not _HARMLESS.search(command):
            self._tell(_Child(one.pid, command or older.command), _WORKED)

    def _look_at(self, one: processes.Process) -> None:
        with self._lock:
            child = self._children.setdefault(one.pid, _Child(one.pid, "", announced=False))
        if one.executed:
            child.forked = False  # it runs a program of its own now
        if not processes.has_torch(one.pid):
            return
        if not one.executed and not child.forked and self._parent_has_torch(one):
            return  # on its way from fork to exec; or a part of a process that is told anyway
        command = processes.command_of(one.pid)
        if _HARMLESS.search(command):
            return
        child.command = command or child.command
        self._tell(child, _INHERITED if child.forked else _IMPORTED)

    def _tell(self, child: _Child, saw: str) -> None:
        with self._lock:
            self._found.setdefault(child.pid, child.told(saw))

    def _still_running(self) -> list[int]:
        return [
            pid
            for pid, started in self._seen.items()
            if (one := processes.process(pid)) is not None and one.started == started
        ]

    def _parent_has_torch(self, one: processes.Process) -> bool:
        if one.parent == self._owner:
            return "torch" in sys.modules
        return processes.has_torch(one.parent)
