"""A run against a committed file: what passes, what fails, and what changes the file."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.conftest import Records
from tests.hooks.baselines import FILE, MIB, NAMES, START, SUITE, TO_THE_BYTE, Against, against, peaks, told

__all__ = ["against"]


def test_an_update_makes_the_file_and_the_next_run_holds(against: Against, pytester: pytest.Pytester) -> None:
    against(SUITE, "--memleak-update=new").assert_outcomes(passed=6)
    assert peaks(pytester.path) == {name: (2 if "test_c" in name else 1) * MIB for name in NAMES}
    made = (pytester.path / FILE).read_bytes()
    result = against(SUITE)
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines([f"baseline {FILE}: 5 tests compared with 5 entries"])
    assert (pytester.path / FILE).read_bytes() == made


def test_a_higher_peak_fails_the_test_and_says_all_numbers(
    against: Against, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    against(SUITE, "--memleak-update=new")
    made = (pytester.path / FILE).read_bytes()
    monkeypatch.setenv("B", "3")
    result = against(SUITE)
    result.assert_outcomes(failed=1, passed=5)  # the test failed: no extra error
    result.stdout.fnmatch_lines(
        [
            "baseline FAILED: peak 3 MiB > recorded 1 MiB: +2 MiB (+200.0 %), tolerance 0 B (allocated on cpu, *",
            f'  limit "recorded" = 1,048,576 B, from {FILE}',
            "  alive at the peak*",
            "  what to do: *",
            "*--memleak-update=raise, and commit baseline.txt",
            f"baseline {FILE}: 5 tests compared with 5 entries, 1 above",
        ]
    )
    assert (pytester.path / FILE).read_bytes() == made


def test_the_verdict_comes_from_the_file(
    against: Against, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same suite: only the number in the file is another."""
    against(SUITE, "--memleak-update=new")
    path = pytester.path / FILE
    good = path.read_text()
    path.write_text(good.replace("test_a cpu CPU", "test_x cpu CPU"))
    against(SUITE).assert_outcomes(passed=6)
    line = next(line for line in good.splitlines() if "::test_a " in line)
    path.write_text(good.replace(line, line.replace(f"={MIB}", f"={MIB - 1}")))
    result = against(SUITE)
    result.assert_outcomes(failed=1, passed=5)
    result.stdout.fnmatch_lines(["*peak 1 MiB > recorded 1.000 MiB: +1 B (+0.0 %)*"])
    path.write_text(good)
    against(SUITE).assert_outcomes(passed=6)


@pytest.mark.parametrize(
    ("update", "failed", "wanted"),
    [
        ("raise", 0, {"test_a": 3, "test_b": 2, "test_old": 1}),
        ("trim", 1, {"test_a": 1, "test_b": 1}),
        ("new", 1, {"test_a": 1, "test_b": 2, "test_old": 1, "test_new": 4}),
        ("all", 0, {"test_a": 3, "test_b": 1, "test_new": 4}),
        ("new,trim", 1, {"test_a": 1, "test_b": 1, "test_new": 4}),
    ],
)
def test_each_update_changes_what_it_says(
    against: Against,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    update: str,
    failed: int,
    wanted: dict[str, int],
) -> None:
    monkeypatch.setenv("B", "2")
    before = START + 'def test_a(): fill("A")\ndef test_b(): fill("B")\ndef test_old(): fill("OLD")\n'
    against(before, "--memleak-update=new")
    monkeypatch.setenv("A", "3")
    monkeypatch.setenv("B", "1")
    after = before.replace('def test_old(): fill("OLD")', 'def test_new(): fill("NEW", 4)')
    result = against(after, f"--memleak-update={update}")
    result.assert_outcomes(failed=failed, passed=3 - failed)
    assert peaks(pytester.path) == {name: count * MIB for name, count in wanted.items()}
    assert told(pytester.path)["written"]


def test_what_could_be_done_is_offered(
    against: Against, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A", "3")
    against(SUITE + "\ndef test_old(): fill('OLD')\n", "--memleak-update=new")
    monkeypatch.setenv("A", "1")
    result = against(SUITE + "\ndef test_new(): fill('NEW')\n")
    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(
        [
            f"baseline {FILE}: 5 tests compared with 6 entries",
            "  without an entry: 1 test (--memleak-update=new records them)",
            "  may be tighter (--memleak-update=trim lowers them):",
            "    test_it.py::test_a: 3 MiB -> 1 MiB on cpu, -2 MiB (-66.7 %)",
            "  unused entries (--memleak-update=trim removes them):",
            "    test_it.py::test_old (cpu CPU, torch *)",
        ]
    )
    assert [one["test"] for one in told(pytester.path)["unused"]] == ["test_it.py::test_old"]
    assert told(pytester.path)["lower"][0]["changes"] == [
        {"place": "cpu", "recorded": 3 * MIB, "measured": MIB, "change": -2 * MIB}
    ]


@pytest.mark.parametrize("args", [["-k", "test_a"], ["test_it.py"]])
def test_a_run_of_a_few_tests_does_not_call_the_others_unused(
    against: Against, pytester: pytest.Pytester, args: list[str]
) -> None:
    against(SUITE, "--memleak-update=new")
    made = (pytester.path / FILE).read_bytes()
    against(START + "def test_a(): fill('A')\n", "--memleak-update=trim", *args)
    assert (pytester.path / FILE).read_bytes() == made
    assert told(pytester.path)["unused"] is None
    assert told(pytester.path)["narrowed"]


def test_a_run_that_stopped_early_does_not_either(against: Against, pytester: pytest.Pytester) -> None:
    against(SUITE, "--memleak-update=new")
    against("def test_0(): assert 0\n" + SUITE, "-x", "--memleak-update=all")
    assert len(peaks(pytester.path)) == 5
    assert told(pytester.path)["narrowed"] == "not all tests were run"


def test_a_plugin_that_takes_tests_away_without_a_word_is_noticed(against: Against, pytester: pytest.Pytester) -> None:
    against(SUITE, "--memleak-update=new")
    pytester.makeconftest("def pytest_collection_modifyitems(items): items[:] = items[:2]")
    against(SUITE, "--memleak-update=all").assert_outcomes(passed=2)
    assert len(peaks(pytester.path)) == 5
    assert told(pytester.path)["narrowed"] == "tests were deselected"


BODIES = f"""{START}
@pytest.mark.xfail
def test_xfail():
    kept = fill("X")
    assert 0

@pytest.mark.xfail
def test_xpass(): fill("X")

def test_skip():
    kept = fill("X")
    pytest.skip("not here")

def test_fails():
    kept = fill("X")
    assert 0

@pytest.fixture
def broken():
    yield
    assert 0

def test_teardown_fails(broken): fill("X")

@pytest.mark.max_leak
def test_leaks(): globals()["KEPT"] = fill("X")

@pytest.mark.max_peak("1KiB")
def test_breaks_a_promise(): fill("X")

@pytest.mark.memleak_off
def test_off(): fill("X")

def test_good(): fill("X")
"""


def test_only_tests_that_passed_are_recorded_and_the_others_keep_their_entries(
    against: Against, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    against(BODIES, "--memleak-update=all")
    assert peaks(pytester.path) == {"test_good": MIB}
    path = pytester.path / FILE
    line = path.read_text().splitlines()[-1]
    names = ["xfail", "skip", "fails", "teardown_fails", "leaks", "breaks_a_promise"]
    kept = [line.replace("test_good", f"test_{name}") for name in names]
    path.write_text("\n".join([*path.read_text().splitlines(), *kept]) + "\n")
    against(BODIES, "--memleak-update=all")
    assert peaks(pytester.path) == dict.fromkeys(["test_good", *(f"test_{one}" for one in names)], MIB)


def test_a_test_that_failed_first_is_not_judged(against: Against, records: Records) -> None:
    """With an entry it has a promise, without one it has none."""
    body = START + "def test_a(): fill('A')\ndef test_b(): fill('B'); assert os.environ.get('GOOD')\n"
    against(body, "--memleak-update=new").assert_outcomes(passed=1, failed=1)
    assert not any(result["check"] == "baseline" for result in records()["test_b"]["results"])
    against(body.replace("fill('A')", "fill('A'); assert 0")).assert_outcomes(failed=2)
    (result,) = records()["test_a"]["results"]
    assert (result["check"], result["verdict"]) == ("baseline", "not judged")


def test_an_expected_failure_may_be_the_baselines(
    against: Against, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    against(START + "def test_a(): fill('A')\n", "--memleak-update=new")
    monkeypatch.setenv("A", "2")
    against(START + "@pytest.mark.xfail\ndef test_a(): fill('A')\n").assert_outcomes(xfailed=1)
    assert peaks(pytester.path) == {"test_a": MIB}


def test_of_reruns_the_last_one_counts(against: Against, pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_rerunfailures")
    body = (
        START + "RUNS = []\ndef test_a():\n    RUNS.append(1)\n    fill('A', 9 - len(RUNS))\n    assert len(RUNS) > 2\n"
    )
    result = against(body, "--memleak-update=new", "--reruns=3")
    assert result.parseoutcomes()["rerun"] == 2
    assert peaks(pytester.path) == {"test_a": 6 * MIB}


WIDER = f"""{START}
@pytest.fixture(scope="session")
def session(): return fill("S", 8)

@pytest.fixture(scope="module")
def module(): return fill("M", 4)

@pytest.fixture(scope="module")
def asks(request):
    return request.getfixturevalue("inner"), fill("K", 16)

@pytest.fixture(scope="module")
def inner(): return fill("I", 32)

def test_1_session(session): fill("A")
def test_2_none(): fill("A")
def test_3_module(module): fill("A")
def test_4_both(session, module): fill("A")
def test_5_asks(asks): fill("A")
def test_6_asks_too(asks, inner): fill("A")
def test_7_inner(inner): fill("A")
"""


def test_the_numbers_do_not_depend_on_the_tests_before(pytester: pytest.Pytester) -> None:
    """What wider fixtures hold is a part of the tests that use them, whoever had them set up."""
    pytester.makepyfile(test_it=WIDER)

    def run(*args: str) -> None:
        # Each in a process of its own: what an earlier session held may be given back while a fixture is set up.
        result = pytester.runpytest_subprocess("--gpu-backend=cpu", *TO_THE_BYTE, "--memleak-json=out.json", *args)
        assert result.ret == 0
        assert told(pytester.path)["lower"] == []

    run("--memleak-update=new")
    wanted = {"1_session": 9, "2_none": 1, "3_module": 5, "4_both": 13, "5_asks": 49, "6_asks_too": 49, "7_inner": 33}
    assert peaks(pytester.path) == {f"test_{name}": count * MIB for name, count in wanted.items()}
    run(*(f"test_it.py::test_{name}" for name in ("2_none", "4_both", "6_asks_too")))
    pytester.makeconftest("def pytest_collection_modifyitems(items): items.reverse()")
    run()


def test_a_fixture_that_holds_more_is_seen_in_each_test_that_uses_it(
    against: Against, monkeypatch: pytest.MonkeyPatch
) -> None:
    against(WIDER, "--memleak-update=new")
    monkeypatch.setenv("M", "5")
    result = against(WIDER)
    result.assert_outcomes(failed=2, passed=5)
    result.stdout.fnmatch_lines(["  8*MiB that others held meanwhile are not counted"])


def test_in_report_mode_nothing_fails_and_all_is_told(
    against: Against, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    against(SUITE, "--memleak-mode=report", "--memleak-update=new").assert_outcomes(passed=6)
    monkeypatch.setenv("A", "2")
    result = against(SUITE, "--memleak-mode=report")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(
        [
            f"baseline {FILE}: 5 tests compared with 5 entries, 1 above",
            "  above it (--memleak-update=raise lifts them):",
            "    test_it.py::test_a: 1 MiB -> 2 MiB on cpu, +1 MiB (+100.0 %)",
        ]
    )
    against(SUITE, "--memleak-mode=report", "--memleak-update=raise").assert_outcomes(passed=6)
    assert peaks(pytester.path)["test_a"] == 2 * MIB


def test_what_cannot_be_seen_is_no_pass_and_is_not_recorded(against: Against, pytester: pytest.Pytester) -> None:
    child = "    import subprocess, sys; subprocess.run([sys.executable, '-c', 'import torch'], check=True)\n"
    body = START + "def test_a():\n    fill('A')\n"
    result = against(body + child, "--memleak-update=new")
    result.assert_outcomes(passed=1)
    assert peaks(pytester.path) == {}
    against(body, "--memleak-update=new")
    result = against(body + child)
    assert result.parseoutcomes() == {"errors": 1}
    result.stdout.fnmatch_lines(["*baseline INCONCLUSIVE: *and was not measured; read: peak 1 MiB against*"])


def test_the_default_tolerance_of_the_cpu_forgives_a_little(
    against: Against, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A", "40")
    against(SUITE, "--memleak-update=new")
    args = (f"--memleak-baseline={FILE}", "--memleak-baseline-tolerance=5% + 1MiB")  # the last one counts
    for mib, failed in ((43, 0), (44, 1)):
        monkeypatch.setenv("A", str(mib))
        assert against(SUITE, *args).parseoutcomes().get("failed", 0) == failed
    monkeypatch.setenv("A", "39")
    against(SUITE, *args, "--memleak-update=trim")
    assert peaks(pytester.path)["test_a"] == 40 * MIB
    monkeypatch.setenv("A", "30")
    against(SUITE, *args, "--memleak-update=trim")
    assert peaks(pytester.path)["test_a"] == 30 * MIB


def test_json_and_junit_have_the_verdict_with_the_change(
    against: Against, pytester: pytest.Pytester, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    against(SUITE, "--memleak-update=new")
    monkeypatch.setenv("A", "3")
    against(SUITE, "--junitxml=out.xml")
    (result,) = records()["test_a"]["results"]
    assert (result["check"], result["verdict"]) == ("baseline", "fail")
    assert (result["measured"], result["recorded"], result["limit"]["bytes"]) == (3 * MIB, MIB, MIB)
    assert records()["test_a"]["baseline"]["peaks"] == {"cpu": 3 * MIB}
    document = ElementTree.parse(Path(pytester.path, "out.xml"))
    (case,) = (case for case in document.iter("testcase") if case.get("name") == "test_a")
    properties = {one.get("name"): one.get("value") for one in case.iter("property")}
    assert properties["memleak.baseline.verdict"] == "fail"
    assert properties["memleak.baseline.recorded"] == str(MIB)
    assert properties["memleak.baseline.change"] == str(2 * MIB)


def test_a_second_run_that_explains_is_not_recorded(
    against: Against, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = START + "RUNS = []\ndef test_a():\n    RUNS.append(1)\n    fill('A', 4 if len(RUNS) == 1 else 9)\n"
    against(body.replace("4 if", "1 if"), "--memleak-update=new")
    result = against(body, "--memleak-explain=rerun")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*peak 4 MiB > recorded 1 MiB*", "*as of a second run, which came to 9 MiB*"])


def test_what_a_test_took_of_a_real_card_is_what_it_may_reserve(against: Against, pytester: pytest.Pytester) -> None:
    against("def test_it(): ...", "--memleak-update=new")
    with (pytester.path / FILE).open("a") as file:
        file.write("test_it.py::test_it real NVIDIA-H200 torch-2.13 peak(cuda:0)=4711\n")
    pytester.makeconftest(
        """
        from pytest_memleak.workers.need import RECORDED
        def pytest_runtest_setup(item):
            assert item.config.stash[RECORDED] == {item.nodeid: 4711}
        """
    )
    against("def test_it(): ...").assert_outcomes(passed=1)


def test_a_cache_is_paid_by_the_first_test_that_uses_it_and_the_advice_says_so(
    against: Against, pytester: pytest.Pytester
) -> None:
    body = f"""{START}
import functools

@functools.lru_cache
def table(): return fill("T", 4)

def test_a(): table()
def test_b(): table()
"""
    against(body, "--memleak-update=new")
    assert peaks(pytester.path) == {"test_a": 4 * MIB}
    against(body, "--memleak-update=new", "-k", "test_b")
    assert peaks(pytester.path) == {"test_a": 4 * MIB, "test_b": 4 * MIB}
    path = pytester.path / FILE
    path.write_text(path.read_text().replace(f"={4 * MIB}", f"={MIB}"))
    result = against(body)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*what to do: 4 MiB were still held when the body had ended: is it a cache*"])
    result = against(body.replace("def test_a(): table()", "def test_a(): fill('A', 4)"), "-k", "test_a")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*is it a cache*")


@pytest.mark.parametrize("update", ["new", "trim"])
def test_an_update_takes_the_higher_of_two_lines_that_a_merge_left(
    against: Against, pytester: pytest.Pytester, update: str
) -> None:
    against(SUITE, "--memleak-update=new")
    path = pytester.path / FILE
    made = path.read_text()
    (line,) = (line for line in made.splitlines() if "::test_a " in line)
    path.write_text(made + line.replace(str(MIB), "4096") + "\n")
    result = against(SUITE, f"--memleak-update={update}")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines([f"baseline {FILE}: *; written: the higher of 1 contradiction taken"])
    assert path.read_text() == made
