"""A test's memory over time is recorded where somebody wants to see it, and changes nothing that is judged."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from pytest_memleak.meters import shared
from pytest_memleak.records.record import TestRecord
from tests.conftest import Records, Run

MIB = 1024**2
SHOWN = ("--memleak-html=page.html", "--memleak-json=out.json")

KINDS = """
import pytest, torch

MIB = 1024**2
LEAKED = []

def fill(size, device="cpu"):
    return torch.zeros(size * MIB, dtype=torch.uint8, device=device)

@pytest.fixture(scope="module")
def weights(card):
    fill(64, card.device)
    return fill(6, card.device)

@pytest.fixture
def batch(card):
    return fill(5, card.device)

@pytest.mark.max_peak("18MiB")
@pytest.mark.parametrize("size", [1, 8])
def test_peak(weights, batch, size, card):
    for _ in range(50):
        fill(size, card.device)

@pytest.mark.max_peak("40MiB")
@pytest.mark.max_leak(repeat=3)
def test_runs(batch, card):
    fill(7, card.device)

@pytest.mark.max_leak
def test_leaks(card):
    LEAKED.append(fill(3, card.device))

@pytest.mark.max_host_peak("300MiB")
def test_host():
    fill(32)

@pytest.mark.max_host_peak("3MiB")
def test_host_breaks():
    fill(32)

@pytest.mark.gpu_cap("90MiB")
def test_runs_out(card):
    fill(8, card.device)
    fill(100, card.device)

@pytest.mark.max_peak("2 * largest_param")
def test_cannot_be_judged(card):
    fill(8, card.device)

@pytest.mark.max_peak("30MiB")
def test_fails():
    raise ValueError
"""


def judged(test: dict[str, Any]) -> list[tuple[object, ...]]:
    names = ("check", "verdict", "device", "kind", "measured", "base", "details", "enforced")
    results = [tuple(str(one[name]) for name in names) for one in test["results"]]
    # Committed memory is the whole process's, and a little different each time.
    return [one[:3] if "committed" in one else one for one in results]


@pytest.mark.parametrize("backend", ["cpu", "simulated", "dispatch"])
def test_the_verdicts_and_the_peaks_are_the_same(
    pytester: pytest.Pytester, records: Records, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    if backend == "simulated" and torch.accelerator.is_available():
        pytest.skip("this machine has a card of its own")
    if backend == "dispatch":
        monkeypatch.setenv("MEMLEAK_CPU_ENGINE", "dispatch")
    pytester.makepyfile(test_it=KINDS)
    options = ("-p", "no:cacheprovider", f"--gpu-backend={backend.replace('dispatch', 'cpu')}")
    found, outcomes = [], []
    for shown in (("--memleak-json=out.json",), SHOWN):
        # Each in a process of its own: in one, a run would find what the one before it left.
        outcomes.append(pytester.runpytest_subprocess(*options, *shown).parseoutcomes())
        tests = records()
        found.append({name: judged(test) for name, test in tests.items()})
        drawn = {name for name, test in tests.items() if "timelines" in test}
        assert drawn == (set(tests) if shown == SHOWN else set())
    assert found[0] == found[1]
    assert outcomes[0] == outcomes[1]
    assert {one[1] for results in found[0].values() for one in results} >= {"pass", "fail", "inconclusive"}


def test_the_curve_is_in_the_document_with_the_parts_of_the_test(
    run_on_cpu: Run, records: Records, pytester: pytest.Pytester
) -> None:
    run_on_cpu(KINDS, *SHOWN)
    document = json.loads(Path(pytester.path, "out.json").read_text())
    schema = json.loads((resources.files("pytest_memleak.records") / "schema-1.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)
    tests = records()
    for test in tests.values():
        assert json.loads(json.dumps(TestRecord.from_json(test).as_json())) == test
    (curve,) = tests["test_peak[1]"]["timelines"]
    (result,) = tests["test_peak[1]"]["results"]
    assert (curve["device"], curve["kind"]) == (result["device"], result["kind"]) == ("cpu", "allocated")
    assert curve["how"].startswith("sampled every ")
    assert [name for name, _ in curve["phases"]] == ["setup", "call", "teardown"]
    begins = dict(curve["phases"])
    at_the_body = curve["bytes"][curve["seconds"].index(begins["call"])]
    assert at_the_body == result["base"] + 5 * MIB
    assert begins["teardown"] in curve["seconds"]
    # The 64 MiB that the set-up of the wider fixture had for a moment are not the test's.
    assert max(curve["bytes"]) <= result["measured"]
    (host,) = [one for one in tests["test_host"]["timelines"] if one["device"] == "host"]
    assert host["kind"] == "committed"
    assert [name for name, _ in tests["test_runs"]["timelines"][0]["phases"]] == ["setup", "call", "teardown"] * 4


def test_only_kinds_that_are_promised_are_recorded(run_on_cpu: Run, records: Records) -> None:
    run_on_cpu(
        """
        import pytest, torch

        @pytest.mark.max_host_peak("1GiB")
        def test_host(): ...

        @pytest.mark.max_leak("1MiB", of="host", repeat=3)
        def test_native_leak(): ...

        @pytest.mark.max_leak
        @pytest.mark.max_host_peak("1GiB")
        def test_both():
            held = torch.zeros(1)
        """,
        *SHOWN,
    )
    kinds = {
        name: [(one["device"], one["kind"]) for one in test.get("timelines", ())] for name, test in records().items()
    }
    assert kinds == {
        "test_host": [("host", "committed")],
        "test_native_leak": [],
        "test_both": [("cpu", "allocated"), ("host", "committed")],
    }


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a card of its own")
def test_what_is_drawn_of_a_simulated_card_is_a_prediction(pytester: pytest.Pytester, records: Records) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest, torch

        @pytest.mark.max_peak("64MiB", of="reserved")
        @pytest.mark.max_host_peak("64MiB")
        @pytest.mark.max_leak
        def test_it(card):
            torch.zeros(2**20, device=card.device)
            torch.zeros(2**20)
        """
    )
    pytester.runpytest_subprocess("--gpu-backend=simulated", *SHOWN).assert_outcomes(passed=1)
    curves = [(one["device"], one["kind"], one["how"].partition(",")[0]) for one in records()["test_it"]["timelines"]]
    reserved, allocated = ("cuda:0", "reserved", "predicted"), ("cuda:0", "allocated", "predicted")
    assert curves[:2] == [reserved, allocated]
    assert ("host", "committed", "predicted") in curves[2:]


def test_there_is_one_thread_and_only_beside_a_measured_test(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import threading
        import pytest

        def threads():
            return [one for one in threading.enumerate() if one.name == "memleak-timeline"]

        def test_before():
            assert threads() == []

        @pytest.mark.max_peak("1GiB")
        @pytest.mark.max_leak(repeat=3)
        def test_measured():
            assert len(threads()) == 1

        @pytest.mark.max_peak("1GiB")
        def test_fails():
            raise ValueError

        @pytest.fixture
        def broken():
            raise ValueError

        @pytest.mark.max_peak("1GiB")
        def test_is_not_set_up(broken): ...

        def test_after():
            assert threads() == []
        """,
        *SHOWN,
    )
    result.assert_outcomes(passed=3, failed=1, errors=1)


PASSES = """
import pytest, torch

@pytest.mark.max_peak("100MiB")
def test_it():
    held = torch.zeros(8 * 1024**2, dtype=torch.uint8)
"""


@pytest.mark.skipif(not shared.cpu_recordings(), reason="only the exact engine records CPU tensors")
def test_what_was_alive_at_a_peak_that_held_is_for_the_page(run_on_cpu: Run, records: Records) -> None:
    run_on_cpu(PASSES, "--memleak-json=out.json")
    assert records()["test_it"]["results"][0]["at_peak"] == []
    run_on_cpu(PASSES, *SHOWN)
    (result,) = records()["test_it"]["results"]
    assert [(one["bytes"], one["blocks"], one["line"]) for one in result["at_peak"]] == [(8 * MIB, 1, "test_it.py:5")]
    assert (result["verdict"], result["explanation"]) == ("pass", [])
    run_on_cpu(PASSES, *SHOWN, "--memleak-explain=never")
    assert records()["test_it"]["results"][0]["at_peak"] == []


@pytest.mark.parametrize("how", ["flag", "environment", "ini"])
def test_workers_record_however_the_page_was_asked_for(
    pytester: pytest.Pytester, records: Records, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    pytester.makepyfile(test_it=PASSES)
    flag: tuple[str, ...] = ()
    if how == "flag":
        flag = ("--memleak-html=page.html",)
    elif how == "environment":
        monkeypatch.setenv("MEMLEAK_HTML", "page.html")
    else:
        pytester.makeini("[pytest]\nmemleak_html = page.html")
    options = ("-n", "1", "--gpu-backend=cpu", "--memleak-json=out.json", "-p", "no:cacheprovider")
    pytester.runpytest_subprocess(*options, *flag).assert_outcomes(passed=1)
    test = records()["test_it"]
    assert test["worker"] == "gw0"
    assert max(test["timelines"][0]["bytes"]) >= 8 * MIB
