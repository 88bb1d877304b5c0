"""What a broken peak says of itself. It changes no verdict, keeps nothing alive, and its own failures are told."""

from __future__ import annotations

import re

import pytest

from pytest_memleak.meters import shared
from tests.conftest import Records, Run

pytestmark = pytest.mark.skipif(not shared.cpu_recordings(), reason="only the exact engine records CPU tensors")

MIB = 1024**2


@pytest.fixture(autouse=True)
def time_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process there may be many objects to look through, and the machine may be busy."""
    for name in ("_EACH", "_ALL"):
        monkeypatch.setattr(f"pytest_memleak.hooks.explaining.{name}", 600.0)


def text_of(result: pytest.RunResult) -> str:
    """In one line. Libraries that other tests have imported may hold some tables: 19.00 or 19.015 MiB is 19 MiB."""
    return re.sub(r"(\d)\.0\d* MiB", r"\1 MiB", " ".join(result.stdout.str().split()))


KINDS = """
import unittest
import pytest, torch

MIB = 1024**2

def fill(size):
    return torch.empty(size * MIB, dtype=torch.uint8)

@pytest.fixture(scope="module")
def weights():
    return fill(6)

@pytest.fixture
def batch():
    return fill(5)

@pytest.mark.max_peak("18MiB")
@pytest.mark.parametrize("size", [1, 8])
def test_parametrized(weights, batch, size):
    outputs = fill(size)

@pytest.mark.max_peak("11MiB")
class TestOfUnittest(unittest.TestCase):
    def test_method(self):
        outputs = fill(12)

@pytest.mark.max_peak("14MiB")
class TestClass:
    def test_holds(self):
        outputs = fill(5)

    def test_breaks(self):
        outputs = []
        for _ in range(3):
            outputs.append(fill(5))

@pytest.mark.gpu_cap("30MiB")
def test_runs_out():
    outputs = fill(8)
    fill(25)

@pytest.mark.max_peak("2 * largest_param")
def test_cannot_be_judged():
    fill(8)
"""


def test_the_verdict_is_the_same_whatever_is_explained(pytester: pytest.Pytester, records: Records) -> None:
    pytester.makepyfile(test_it=KINDS)
    found = {}
    for when in ("never", "auto", "always", "rerun"):
        # Each in a process of its own: in one, a run would find what the one before it left.
        options = ("-p", "no:cacheprovider", "--gpu-backend=cpu", "--memleak-json=out.json")
        result = pytester.runpytest_subprocess(*options, f"--memleak-explain={when}")
        result.assert_outcomes(passed=2, failed=4, errors=1)
        said = "alive at the peak, by the line" in result.stdout.str()
        assert said == (when != "never")
        found[when] = {
            (name, check["check"]): (check["verdict"], check["message"], check["measured"], check["base"])
            for name, test in records().items()
            for check in test["results"]
        }
    assert found["never"] == found["auto"] == found["always"] == found["rerun"]
    assert found["auto"]["test_parametrized[8]", "max_peak"][2] // MIB == 19


@pytest.mark.parametrize("when", ["auto", "always", "rerun"])
def test_each_kind_of_test_names_its_lines_and_variables(run_on_cpu: Run, when: str) -> None:
    result = run_on_cpu(KINDS, f"--memleak-explain={when}")
    text = text_of(result)
    lines = KINDS.strip("\n").splitlines()
    line = 1 + lines.index("    return torch.empty(size * MIB, dtype=torch.uint8)")
    piling = 1 + lines.index("            outputs.append(fill(5))")
    # The weights are the module's, and what is asked for is no tensor yet.
    assert f"13 MiB in 2 blocks test_it.py:{line} (uint8 [5242880]) 6 MiB held before the test" in text
    assert "5 MiB in 1 tensor (uint8 [5242880]): fixture 'batch'" in text
    among = rf"local 'outputs\[\d\]' of running frame test_breaks \(test_it.py:{piling}\) \(and 1 more\)"
    assert re.search(rf"10 MiB in 2 tensors \(uint8 \[5242880\]\): {among}", text)
    assert (
        text.count("6 MiB in 1 tensor (uint8 [6291456]): fixture 'weights'") == 4
    )  # whether a test asks for it or not
    if when != "rerun":  # pytester keeps what the first run raised
        assert f"with 14 MiB allocated, test_it.py:{line} had asked for 25 MiB, which were refused; who held it" in text


@pytest.mark.parametrize("when", ["auto", "always", "rerun"])
def test_nothing_is_kept_alive(run_on_cpu: Run, records: Records, when: str) -> None:
    result = run_on_cpu(
        """
        import weakref
        import pytest, torch

        SEEN = []

        class Loop:
            pass

        @pytest.fixture
        def batch():
            return torch.ones(1024, 1024)

        @pytest.mark.max_leak
        @pytest.mark.max_peak("10MiB")
        def test_breaks(batch):
            held = torch.ones(2048, 1024)
            loop = Loop()
            loop.me, loop.tensor = loop, torch.ones(1024, 1024)
            graph = (torch.ones(1024, 1024, requires_grad=True) * 2).exp()
            SEEN.extend(map(weakref.ref, (batch, held, loop, loop.tensor, graph)))

        @pytest.mark.max_leak
        @pytest.mark.max_peak("1MiB")
        def test_after():
            assert [seen() for seen in SEEN] == [None] * len(SEEN) != []
        """,
        f"--memleak-explain={when}",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=1, failed=1)
    verdicts = {check["check"]: check["verdict"] for check in records()["test_breaks"]["results"]}
    assert verdicts == {"max_peak": "fail", "max_leak": "pass"}
    assert "local 'held' of running frame test_breaks" in text_of(result)


BREAKS = """
import pytest, torch

@pytest.mark.max_peak("10MiB")
def test_it():
    held = torch.ones(2 * 1024**2)
    torch.ones(2 * 1024**2)
"""


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("hooks.explaining.look", "who held it could not be explained: RuntimeError('out of order')"),
        (
            "events.cpu_recording.CpuRecording.read",
            "what was alive could not be explained: RuntimeError('out of order'",
        ),
        ("ledger.owners.Search", "could not be fully explained: RuntimeError: out of order"),
    ],
)
def test_what_fails_while_explaining_is_said_and_the_verdict_stands(
    run_on_cpu: Run, records: Records, monkeypatch: pytest.MonkeyPatch, broken: str, said: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(f"pytest_memleak.{broken}", fail)
    result = run_on_cpu(BREAKS, "--memleak-json=out.json")
    result.assert_outcomes(failed=1)
    (check,) = records()["test_it"]["results"]
    assert (check["verdict"], check["measured"] // MIB) == ("fail", 16)
    assert said in text_of(result)


def test_without_time_to_look_that_is_said(run_on_cpu: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_memleak.hooks.explaining._ALL", -1.0)
    result = run_on_cpu(BREAKS)
    result.assert_outcomes(failed=1)
    text = text_of(result)
    assert "alive at the peak, by the line that allocated it (100 % of it): 8 MiB in 1 block" in text
    assert "who held it was not looked at" in text


def test_a_rerun_says_so_and_the_first_run_decides(run_on_cpu: Run, records: Records) -> None:
    result = run_on_cpu(
        """
        import pytest, torch

        MIB = 1024**2
        RUNS, SETUPS, WIDER = [], [], []

        @pytest.fixture(scope="module")
        def wider():
            WIDER.append(1)

        @pytest.fixture
        def narrow(wider):
            SETUPS.append(1)
            yield torch.ones(MIB)

        @pytest.mark.max_peak("10MiB")
        def test_breaks_again(narrow):
            RUNS.append(1)
            torch.empty((8 + len(RUNS)) * MIB, dtype=torch.uint8)

        def test_it_ran_twice_with_fixtures_of_its_own():
            assert (len(RUNS), len(SETUPS), len(WIDER)) == (2, 2, 1)

        @pytest.mark.max_peak("10MiB")
        def test_holds_the_second_time(narrow):
            RUNS.append(1)
            torch.empty((20 if len(RUNS) == 3 else 1) * MIB, dtype=torch.uint8)

        @pytest.mark.max_peak("10MiB")
        def test_fails_otherwise_the_second_time(narrow):
            RUNS.append(1)
            torch.empty(20 * MIB, dtype=torch.uint8)
            assert len(RUNS) == 5

        @pytest.mark.max_peak("10MiB")
        def test_that_holds_runs_once(narrow):
            RUNS.append(1)

        def test_runs():
            assert len(RUNS) == 7
        """,
        "--memleak-explain=rerun",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=3, failed=3)
    text = text_of(result)
    assert "max_peak FAILED: peak 13 MiB > limit 10 MiB" in text
    assert "as of a second run, which came to 14 MiB; what it does was done twice" in text
    assert "ran once more to be explained, and came to 5 MiB: its promise did not break again" in text
    assert "ran once more to be explained, and ended before its promise could be judged" in text
    measured = {name: test["results"][0]["measured"] // MIB for name, test in records().items() if test["results"]}
    assert measured == {
        "test_breaks_again": 13,
        "test_holds_the_second_time": 24,
        "test_fails_otherwise_the_second_time": 24,
        "test_that_holds_runs_once": 8,
    }


@pytest.mark.parametrize("when", ["always", "rerun"])
def test_under_xdist(pytester: pytest.Pytester, records: Records, when: str) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(test_it=KINDS)
    result = pytester.runpytest_subprocess(
        "-n", "2", "--gpu-backend=cpu", "-p", "no:cacheprovider", f"--memleak-explain={when}", "--memleak-json=out.json"
    )
    result.assert_outcomes(passed=2, failed=4, errors=1)
    text = text_of(result)
    assert text.count("alive at the peak, by the line that allocated it") == 4
    assert text.count("as of a second run") == (4 if when == "rerun" else 0)
    assert "kept by the traceback" not in text
    assert "pytest's own" not in text
    assert {test["worker"] for test in records().values()} == {"gw0", "gw1"}


@pytest.mark.parametrize("looked", [True, False], ids=["at the look", "at the end of the body"])
def test_parameters_of_a_model_are_named(
    run_on_cpu: Run, records: Records, monkeypatch: pytest.MonkeyPatch, looked: bool
) -> None:
    if not looked:
        monkeypatch.setattr("pytest_memleak.hooks.explaining._ALL", -1.0)
    result = run_on_cpu(
        """
        import pytest, torch

        @pytest.fixture
        def model():
            return torch.nn.Sequential(*[torch.nn.Linear(1024, 2048, bias=False) for _ in range(3)])

        @pytest.mark.max_peak("20MiB")
        def test_it(model):
            torch.ones(1024, 1024)
        """,
        "--memleak-json=out.json",
    )
    result.assert_outcomes(failed=1)
    (check,) = records()["test_it"]["results"]
    names = {group["line"]: group["parameter"] for group in check["at_peak"]}
    assert names == {"test_it.py:5": "0.weight and 2 more", "test_it.py:9": ""}
    assert "24 MiB in 3 blocks test_it.py:5 (float32 [2048, 1024]: 0.weight and 2 more)" in text_of(result)


HOST = """
import numpy, pytest, torch

@pytest.fixture
def kept():  # until the last sample has been taken, whenever that comes on a busy machine
    return []

@pytest.mark.max_host_peak("16MiB")
def test_of_numpy(kept):
    kept.append(numpy.ones(64 * 1024**2, dtype=numpy.uint8))

@pytest.mark.max_host_peak("16MiB")
def test_of_both(kept):
    kept.append(numpy.ones(48 * 1024**2, dtype=numpy.uint8))
    kept.append(torch.ones(12 * 1024**2, dtype=torch.uint8))

@pytest.mark.max_host_peak("16MiB")
def test_of_tensors(kept):
    tensors = []
    for _ in range(3):
        tensors.append(torch.ones(16 * 1024**2, dtype=torch.uint8))
    kept.append(tensors)
"""


def test_of_a_process_s_peak_torch_says_what_it_has_seen(run_on_cpu: Run, records: Records) -> None:
    """The rest is numpy's: no line and no holder of it is known, and none is made up."""
    pytest.importorskip("numpy")
    result = run_on_cpu(HOST, "--memleak-json=out.json")
    result.assert_outcomes(failed=3)
    said = {}
    for name, test in records().items():
        (check,) = test["results"]
        assert check["measured"] // MIB in range(40, 80)
        said[name] = " ".join(" ".join(check["explanation"]).split())
    of_numpy, of_both, of_tensors = (said[f"test_of_{what}"] for what in ("numpy", "both", "tensors"))
    unseen = r"(\d+)[.\d]* MiB not seen by torch: numpy, Python"
    assert of_numpy.startswith("alive at the peak: no tensor of the CPU of 4 MiB or more ")
    assert (found := re.search(unseen, of_numpy))
    assert int(found[1]) in range(50, 70)
    assert re.match(
        r"alive when tensors of the CPU took most, .* \((1\d|2\d) % of the growth\): 12 MiB in 1 block", of_both
    )
    assert (found := re.search(unseen, of_both))
    assert int(found[1]) in range(40, 55)
    for text in (of_numpy, of_both):
        assert text.endswith("that is done when tensors of the CPU alone go beyond the limit")
    assert "48 MiB in 3 blocks test_it.py:20 " in of_tensors
    assert "local 'tensors[" in of_tensors


ELSEWHERE = """
import threading
import pytest, torch
from pytest_memleak.meters import c_library

@pytest.fixture(scope="module")
def much():
    return [[] for _ in range(1_000_000)]

@pytest.fixture
def kept():
    return []

def fill(kept):
    for _ in range(3):
        kept.append(torch.ones(16 * 1024**2, dtype=torch.uint8))

def test_that_is_refused():
    # glibc gives the thread another arena if it is not the only one.
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    torch.empty(31 * 1024**2, dtype=torch.uint8)  # what is less comes from an arena from now on
    with pytest.raises(RuntimeError):
        torch.empty(2**50, dtype=torch.uint8)
    arenas = c_library._arenas()
    assert arenas is None or not arenas.is_of_the_process()

@pytest.mark.max_host_peak("16MiB")
def test_afterwards(much, kept):
    fill(kept)

@pytest.mark.max_host_peak("16MiB")
def test_in_a_thread(much, kept):
    thread = threading.Thread(target=fill, args=(kept,))
    thread.start()
    thread.join()
"""


def test_what_a_look_leaves_in_another_arena_is_not_taken_for_the_test_s(run_apart: Run, records: Records) -> None:
    """Its lists are let go of, and the C library keeps their memory: a tensor that gets it has to count."""
    result = run_apart(ELSEWHERE, "--gpu-backend=cpu", "--memleak-json=out.json")
    result.assert_outcomes(passed=1, failed=2)
    for name in ("test_afterwards", "test_in_a_thread"):
        (check,) = records()[name]["results"]
        assert check["measured"] // MIB in range(47, 52), name


LARGE_PROCESS = """
import numpy, pytest, torch

@pytest.fixture(scope="module")
def much():
    return [[] for _ in range(3_000_000)]

@pytest.mark.max_host_peak("32MiB")
def test_of_memory_that_is_never_touched(much):
    asked = [torch.empty(96 * 1024**2, dtype=torch.uint8) for _ in range(2)]
    much.append(numpy.ones(24 * 1024**2, dtype=numpy.uint8))
"""


def test_a_look_at_many_objects_takes_nothing_of_what_the_test_may(run_on_cpu: Run, records: Records) -> None:
    """The look comes as the tensors pass the limit, and walks through lists of all objects: 40 MiB here."""
    pytest.importorskip("numpy")
    result = run_on_cpu(LARGE_PROCESS, "--memleak-json=out.json")
    result.assert_outcomes(passed=1)
    (check,) = records()["test_of_memory_that_is_never_touched"]["results"]
    assert check["measured"] // MIB in range(16, 32)


def test_a_refusal_is_not_forgotten_when_its_level_is_reached_again(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import pytest, torch

        def fill(size):
            return torch.empty(size * 1024**2, dtype=torch.uint8)

        @pytest.mark.max_peak("10MiB")
        @pytest.mark.gpu_cap("30MiB")
        def test_it():
            kept = fill(13)
            last = fill(1)
            try:
                fill(25)
            except torch.OutOfMemoryError:
                pass
            del last
            last = fill(1)
        """
    )
    result.assert_outcomes(failed=1)
    text = text_of(result)
    assert "with 14 MiB allocated, test_it.py:4 had asked for 25 MiB, which were refused; who held it then" in text
    assert "local 'kept'" in text
