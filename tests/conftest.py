"""How the plugin's behaviour is tested: in small projects of their own, run by pytest in this process or in another.

The projects' tests name no device. On a machine with a GPU each is run twice: on the CPU as card, and with the GPU as
torch's default device.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import pytest_memleak
from pytest_memleak.settings import OPTIONS

torch.set_num_threads(1)  # workers share the cores
# pytester gives its projects a home of their own, where the native engine would be built each time.
os.environ["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
# Modules of a plugin that an inner run imports would hold that run's session, and with it what its tests leak.
for found in pkgutil.walk_packages(pytest_memleak.__path__, "pytest_memleak."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)

pytest_plugins = ["pytester", "tests.fake_releases"]

# What pytest-asyncio asks every project to say, or it warns.
_ASYNCIO = ("-o", "asyncio_default_fixture_loop_scope=function") if find_spec("pytest_asyncio") else ()

Run = Callable[..., pytest.RunResult]
Records = Callable[[], dict[str, Any]]

_ON_THE_GPU = """
import pytest, torch

@pytest.fixture(autouse=True, scope="session")
def on_the_gpu():
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)
"""


@pytest.fixture(autouse=True, scope="session")
def children_hear_signals() -> Iterator[None]:
    """Under nohup, or in the background of a script, signals are ignored, and what a process starts ignores them, too:
    tests that send one would wait in vain. A handler is not inherited, and this process goes on ignoring them."""
    ignored = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


_WATCHED = (
    "torch.nn.init",
    "transformers.modeling_utils",
    "transformers.modeling_utils.PreTrainedModel",
    "transformers.core_model_loading",
    "bitsandbytes.nn.parametrize",
    "accelerate.Accelerator",
    "accelerate.utils.fsdp_utils",
)
"""Modules and classes whose functions are replaced, by us and by loads, for as long as something lasts."""


def _functions() -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {}
    for name in _WATCHED:
        module, _, attribute = name.rpartition(".")
        holder = sys.modules.get(name) or getattr(sys.modules.get(module), attribute, None)
        if holder is not None:
            found |= {(name, key): value for key, value in vars(holder).items() if callable(value)}
    return found


@pytest.fixture
def libraries_stay_as_they_are() -> Iterator[None]:
    """A function left replaced breaks tests of this process that come later, and not the one that did it."""
    before = _functions()
    yield
    after = _functions()
    left = [key for key, value in before.items() if after.get(key, value) is not value]
    for name, key in left:
        module, _, attribute = name.rpartition(".")
        setattr(sys.modules.get(name) or getattr(sys.modules[module], attribute), key, before[name, key])
    assert not left, "this test left functions replaced: " + ", ".join(f"{name}.{key}" for name, key in left)


@pytest.fixture(autouse=True)
def own_settings(libraries_stay_as_they_are: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell says about caps and modes is not the tests' business, nor where they run: on a CI
    service, pytest says each failure's whole text once more in its summary."""
    for option in OPTIONS:
        monkeypatch.delenv(option.environment, raising=False)
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def time_to_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process search a heap that grows with the suite: on a busy machine, time is not to end that."""
    monkeypatch.setattr("pytest_memleak.hooks.owners._SECONDS", 600.0)


_imported: dict[str, ModuleType] = {}
"""By inner runs and by tests that make some, and not of the inner runs' own tests."""


def _note_imported(folder: Path) -> None:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or not Path(file).is_relative_to(folder):
            _imported[name] = module


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """What the test itself imported is forgotten with the rest, `pytest.importorskip` included."""
    if isinstance(pytester := getattr(item, "funcargs", {}).get("pytester"), pytest.Pytester):
        _note_imported(pytester.path)


@pytest.fixture(autouse=True)
def keeps_modules() -> Iterator[None]:
    """`pytester` forgets modules once more at its end. This was set up before it, and so ends after it."""
    yield
    for name, module in _imported.items():
        sys.modules.setdefault(name, module)
    _imported.clear()


_EMPTIED = (torch.Tensor, torch.nn.Parameter)
_KEEPERS = (dict, list, tuple, type(functools.cache(int)))


class _KeepsModules:
    """pytester forgets what an inner run imported, but torch and transformers cannot be imported twice in one process,
    and there must not be two sets of gauges on one allocator."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = {id(thing) for thing in gc.get_objects() if type(thing) in _EMPTIED}

    def pytest_unconfigure(self) -> None:
        _note_imported(self._folder)

    def restore(self) -> None:
        for name, module in _imported.items():
            sys.modules.setdefault(name, module)
        _empty_tensors_born_since(self._before)


def _empty_tensors_born_since(before: set[int]) -> None:
    """pytester holds on to inner sessions: what their tests leak on purpose must not be the base of the next one."""
    kept = before | _made_once()
    for thing in gc.get_objects():
        if id(thing) not in kept and type(thing) in _EMPTIED and thing.untyped_storage().resizable():
            thing.untyped_storage().resize_(0)


def _made_once() -> set[int]:
    """Tables that bitsandbytes makes when they are first needed, by an inner run maybe, for all who come later."""
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "bitsandbytes"]
    todo = [value for module in modules for value in list(vars(module).values())]
    tensors, seen = set(), set()
    while todo:
        thing = todo.pop()
        if type(thing) in _EMPTIED:
            tensors.add(id(thing))
        elif type(thing) in _KEEPERS and id(thing) not in seen:
            seen.add(id(thing))
            todo += gc.get_referents(thing)
    return tensors


def run_in_process(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    keeper = _KeepsModules(pytester.path)
    try:
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *_ASYNCIO, *args, plugins=[keeper])
    finally:
        keeper.restore()


@pytest.fixture
def run_on_cpu(pytester: pytest.Pytester) -> Run:
    """Runs a test file's text on the CPU as card, in this process: torch is imported once for all of them."""

    def run_text(text: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=text)
        return run_in_process(pytester, "--gpu-backend=cpu", *args)

    return run_text


@pytest.fixture
def run_on_gpu(pytester: pytest.Pytester) -> Run:
    """The same on the GPU as card."""

    def run_text(text: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=text)
        return run_in_process(pytester, "--gpu-backend=real", *args)

    return run_text


@pytest.fixture(params=["cpu", "cuda"])
def run(request: pytest.FixtureRequest, pytester: pytest.Pytester, run_on_cpu: Run, run_on_gpu: Run) -> Run:
    """The same on the CPU, and on the GPU if there is one."""
    if request.param == "cpu":
        return run_on_cpu
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytester.makeconftest(_ON_THE_GPU)
    return run_on_gpu


@pytest.fixture(params=["serial", "xdist"])
def run_both_ways(request: pytest.FixtureRequest, pytester: pytest.Pytester, run_on_cpu: Run) -> Run:
    """On the CPU as card, serially and on two workers."""
    if request.param == "serial":
        return run_on_cpu

    def run_text(text: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=text)
        return pytester.runpytest_subprocess("-n", "2", "--gpu-backend=cpu", "-p", "no:cacheprovider", *args)

    return run_text


@pytest.fixture
def records(pytester: pytest.Pytester) -> Records:
    """The tests of the JSON report ``out.json`` by the last part of their node id."""

    def read() -> dict[str, Any]:
        document = json.loads(Path(pytester.path, "out.json").read_text())
        return {test["nodeid"].rpartition("::")[2]: test for test in document["tests"]}

    return read


@pytest.fixture
def run_apart(pytester: pytest.Pytester) -> Run:
    """In a process of its own: what is there once in a process is new there."""

    def run_text(text: str, *args: str) -> pytest.RunResult:
        pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
        pytester.makepyfile(test_it=text)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)

    return run_text
