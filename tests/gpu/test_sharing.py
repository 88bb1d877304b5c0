"""Workers that share real cards: their sizes as the driver tells them, budgets that fit, and what is left free."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pytest_memleak.errors import Unavailable
from pytest_memleak.workers import driver, own
from pytest_memleak.workers.fitting import CONTEXT
from pytest_memleak.workers.need import Bytes
from pytest_memleak.workers.reserving import Reservations
from pytest_memleak.workers.visible import callers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

GIB = 1024**3
_START = """
import os, pathlib, pytest, time, torch

HERE = pathlib.Path(__file__).parent

def fill(gib):  # to 256 MiB below it
    return [torch.zeros(1 << 28, dtype=torch.uint8, device="cuda") for _ in range(4 * gib - 1)]

def wait_for(condition):
    until = time.monotonic() + 120
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()
"""


@pytest.fixture(autouse=True)
def own_folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pytester.mkdir("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))


def run(pytester: pytest.Pytester, text: str, *args: str) -> pytest.RunResult:
    pytest.importorskip("xdist")
    pytester.makepyfile(test_it=_START + text)
    return pytester.runpytest_subprocess("--gpu-backend=real", "-p", "no:cacheprovider", *args)


def on_one_card(monkeypatch: pytest.MonkeyPatch) -> None:
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", first)


def free_gib() -> int:
    return int(torch.cuda.mem_get_info(0)[0] // GIB)


def test_the_driver_and_torch_mean_the_same_cards() -> None:
    there = driver.find()
    assert there is not None
    seen = callers(there.devices())
    assert len(seen) == torch.cuda.device_count()
    for index, card in enumerate(seen):
        assert card.device is not None
        properties = torch.cuda.get_device_properties(index)
        assert card.device.name == properties.name
        assert card.key == f"GPU-{properties.uuid}"
        assert abs(card.device.total - properties.total_memory) < GIB
        free, total = torch.cuda.mem_get_info(index)
        assert abs(there.used(card.key) - (total - free)) < GIB


def test_what_a_process_holds_is_near_what_the_driver_says() -> None:
    """A context in a process of its own: at most what is presumed and some of its kernels' code."""
    text = (
        "import torch\n"
        "from pytest_memleak.workers import driver, own\n"
        "from pytest_memleak.workers.visible import callers\n"
        "there = driver.find(); keys = [card.key for card in callers(there.devices())]\n"
        "before = there.used(keys[0])\n"
        "kept = torch.ones(1 << 28, dtype=torch.uint8, device='cuda'); torch.cuda.synchronize()\n"
        "print(there.used(keys[0]) - before, own.held(keys)[keys[0]])\n"
    )
    printed = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout
    real, told = map(int, printed.split())
    assert abs(real - told) < GIB // 2, f"a context took {real - (told - CONTEXT):,} B"


def test_what_is_let_go_of_is_free() -> None:
    kept = torch.ones(1 << 28, dtype=torch.uint8, device="cuda")
    keys = ("first",)
    del kept
    cached = own.held(keys)["first"]
    own.let_go()
    assert own.held(keys)["first"] <= cached - (1 << 28)


_STRANGER = """
import pathlib, sys, time, torch
kept = torch.ones(8 << 30, dtype=torch.uint8, device="cuda")
has, end = map(pathlib.Path, sys.argv[1:])
has.touch()
until = time.monotonic() + 120
while not end.exists() and time.monotonic() < until:
    time.sleep(0.01)
"""


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[None]:
    """Some 8 GiB, of a process whose parent has ended: what children of this one have is this one's."""
    has, end = tmp_path / "has", tmp_path / "end"
    start = '"$@" </dev/null >/dev/null 2>&1 &'
    subprocess.run(["sh", "-c", start, "sh", sys.executable, "-c", _STRANGER, str(has), str(end)], check=True)
    until = time.monotonic() + 120
    while not has.exists() and time.monotonic() < until:
        time.sleep(0.01)
    yield
    end.touch()


@pytest.mark.usefixtures("stranger")
def test_a_reservation_counts_what_strangers_have() -> None:
    there = driver.find()
    assert there is not None
    card = callers(there.devices())[0]
    reservations = Reservations(there, [card.key])
    try:
        own.let_go()
        free = torch.cuda.mem_get_info(0)[0]
        # What this process itself has is a part of its need, and so would fit beside what is free.
        with pytest.raises(Unavailable, match="processes that are not of these test runs have"):
            reservations.take("test", Bytes(free + 4 * GIB, ""), [card], 0.0)
        reservations.take("test", Bytes(free - GIB, ""), [card], 0.0)
        reservations.give_back()
    finally:
        reservations.close()


def test_what_children_have_is_their_parents() -> None:
    there = driver.find()
    assert there is not None
    card = callers(there.devices())[0]
    text = (
        "import torch; kept = torch.ones(8 << 30, dtype=torch.uint8, device='cuda'); print('has', flush=True); input()"
    )
    child = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    reservations = Reservations(there, [card.key])
    try:
        assert child.stdout.readline() == "has\n"
        if os.getpid() not in (there.processes(card.key) or {}):
            pytest.skip("the driver names processes by other numbers than they have here")
        own.let_go()
        reservations.take("test", Bytes(torch.cuda.mem_get_info(0)[0] + 4 * GIB, ""), [card], 0.0)
        reservations.give_back()
    finally:
        child.communicate("\n")
        reservations.close()


def test_eight_of_an_eighth_run_at_once(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    on_one_card(monkeypatch)
    gib = (free_gib() - 8) // 8  # 16 GiB each of an H200
    assert gib > 1, "a card that is not free"
    result = run(
        pytester,
        f"""
@pytest.mark.max_peak("{gib}GiB")
@pytest.mark.parametrize("number", range(8))
def test_together(number):
    kept = fill({gib})
    (HERE / f"{{number}}.txt").touch()
    wait_for(lambda: len(list(HERE.glob("*.txt"))) == 8)
""",
        "-n",
        "8",
    )
    result.assert_outcomes(passed=8)


def test_of_two_thirds_one_at_a_time(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap is enforced too; each ends before the next begins, its cached memory included."""
    on_one_card(monkeypatch)
    gib = free_gib() * 2 // 3
    result = run(
        pytester,
        f"""
@pytest.mark.gpu_cap("{gib}GiB")
@pytest.mark.parametrize("number", range(4))
def test_alone(number):
    busy = HERE / "busy"
    busy.mkdir()
    kept = fill({gib} - 2)
    torch.cuda.synchronize()
    busy.rmdir()
""",
        "-n",
        "2",
    )
    result.assert_outcomes(passed=4)


def test_a_killed_workers_memory_comes_back(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    on_one_card(monkeypatch)
    gib = free_gib() * 2 // 3
    result = run(
        pytester,
        f"""
@pytest.mark.max_peak("{gib}GiB")
@pytest.mark.parametrize("number", range(4))
def test_alone(number):
    kept = fill({gib})
    if number == 1:
        os.kill(os.getpid(), 9)
""",
        "-n",
        "2",
    )
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines("*worker 'gw*' crashed while running 'test_it.py::test_alone?1?'*")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_each_worker_has_a_card_of_its_own(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.parametrize("number", range(8))
def test_it(number, worker_id):
    assert torch.cuda.device_count() == 1
    (HERE / f"{worker_id}.txt").write_text(str(torch.cuda.get_device_properties(0).uuid))
    wait_for(lambda: len(list(HERE.glob("*.txt"))) == 2)
""",
        "-n",
        "2",
    )
    result.assert_outcomes(passed=8)
    assert len({file.read_text() for file in Path(pytester.path).glob("gw*.txt")}) == 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_ranks_and_other_tests_share_by_the_same_rules(pytester: pytest.Pytester) -> None:
    """Ranks that say nothing have their cards alone."""
    result = run(
        pytester,
        f"""
BUSY = HERE / "busy"

@pytest.mark.ranks({torch.cuda.device_count()})
@pytest.mark.parametrize("number", range(2))
def test_ranks(number):
    if os.environ["RANK"] == "0":
        assert not list(HERE.glob("busy-*"))
        BUSY.mkdir()
        time.sleep(0.5)
        BUSY.rmdir()

@pytest.mark.max_peak("1GiB")
@pytest.mark.parametrize("number", range(4))
def test_small(number):
    mine = HERE / f"busy-{{number}}"
    mine.mkdir()
    assert not BUSY.exists()
    time.sleep(0.2)
    mine.rmdir()
""",
        "-n",
        "2",
    )
    result.assert_outcomes(passed=6)
