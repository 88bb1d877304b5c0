"""A run of which no test has an entry, though there are entries: it holds nothing against anything, and must say so."""

from __future__ import annotations

import json
import re

import pytest

from tests.hooks.baselines import FILE, START, Against, against, told

__all__ = ["against"]

BODY = START + "def test_a(): fill('A')\ndef test_b(): fill('B')\n"
OTHERS = {
    "torch": (r"torch-\S+", "torch-1.7", "torch 1.7 on CPU (cpu)"),
    "card": ("cpu CPU", "simulated NVIDIA-H200", "torch 2.* on NVIDIA-H200 (simulated)"),
    "cap": ("cpu CPU", "cpu CPU:4096", "torch 2.* on CPU:4096 (cpu)"),
}
HOW = "make entries for that with --memleak-update=new, or pin the release of torch and the card"


@pytest.fixture
def recorded(against: Against) -> None:
    against(BODY, "--memleak-update=new").assert_outcomes(passed=2)


def rewrite(pytester: pytest.Pytester, pattern: str, other: str) -> None:
    path = pytester.path / FILE
    head, *entries = re.split(r"^(?=test_it)", path.read_text(), flags=re.MULTILINE)
    path.write_text("".join([head, *(re.sub(pattern, other, entry) for entry in entries)]))


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("what", OTHERS)
def test_entries_of_another_card_or_torch_alone_are_no_pass_in_ci(
    against: Against, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    pattern, other, shown = OTHERS[what]
    rewrite(pytester, pattern, other)
    before = (pytester.path / FILE).read_bytes()
    line = f"{FILE}'s entries are for {shown}; this run has torch 2.* on CPU (cpu): {HOW}"
    for args in ([], ["-q"]):
        result = against(BODY, *args)
        assert result.ret == 0
        result.stdout.fnmatch_lines([f"*baseline: nothing was compared: {line}"])
    monkeypatch.setenv("CI", "true")
    for args in ([], ["-q"], ["-k", "test_a"], ["--memleak-update=raise,trim"]):
        result = against(BODY, *args)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stdout.fnmatch_lines([f"*baseline: nothing was compared, and CI is set: {line}"])
        assert json.loads((pytester.path / "out.json").read_text())["run"]["exit_status"] == 4
        assert told(pytester.path)["compared"] == 0
    assert (pytester.path / FILE).read_bytes() == before
    assert against(BODY + "def test_c(): assert 0\n").ret == pytest.ExitCode.TESTS_FAILED
    assert against(BODY, "--memleak-update=new").ret == 0
    assert against(BODY).ret == 0


@pytest.mark.usefixtures("recorded")
def test_names_that_all_are_others_are_no_pass_either(
    against: Against, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    rewrite(pytester, "test_it.py", "tests/test_it.py")
    result = against(BODY)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines([f"*CI is set: none of {FILE}'s entries is of a test that this run measured*"])


@pytest.mark.usefixtures("recorded")
def test_new_tests_alone_pass(against: Against, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of nothing but what was just written, and one in which nothing takes memory."""
    monkeypatch.setenv("CI", "true")
    new = BODY + "def test_new(): fill('A')\ndef test_nothing(): ...\n"
    for args in (["-k", "new"], ["-k", "nothing"], []):
        result = against(new, *args)
        assert result.ret == 0
        result.stdout.no_fnmatch_line("*nothing was compared*")
