"""What `--memleak-update=trim` must not take for gone: tests of which the run could say nothing."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.hooks.baselines import MIB, START, TO_THE_BYTE, Against, against, peaks, told

__all__ = ["against"]

OTHERS = {
    "skips": ("", "pytest.skip('not here', allow_module_level=True)"),
    "imports": ("", "pytest.importorskip('no_such_module_anywhere')"),
    "collect_ignore": ("collect_ignore = ['test_other.py']", ""),
    "a plugin": (
        "def pytest_ignore_collect(collection_path): return collection_path.name == 'test_other.py' or None",
        "",
    ),
}


@pytest.mark.parametrize("how", OTHERS)
def test_a_file_that_was_not_read_keeps_its_entries(against: Against, pytester: pytest.Pytester, how: str) -> None:
    conftest, start = OTHERS[how]
    other = "def test_b(): fill('B')\ndef test_renamed(): fill('B')\n"
    path = pytester.makepyfile(test_other=START + other)
    against(START + "def test_a(): fill('A')\n", "--memleak-update=new")
    assert sorted(peaks(pytester.path)) == ["test_a", "test_b", "test_renamed"]
    pytester.makeconftest(conftest)
    path.write_text(f"import pytest\n{start}\n{START}{other}")
    against(START + "def test_a(): fill('A')\n", "--memleak-update=all").assert_outcomes(passed=1, skipped=bool(start))
    assert sorted(peaks(pytester.path)) == ["test_a", "test_b", "test_renamed"]
    assert (told(pytester.path)["unused"], told(pytester.path)["narrowed"]) == ([], "")


def test_a_test_that_is_no_longer_in_its_file_and_a_file_that_is_gone_are(
    against: Against, pytester: pytest.Pytester
) -> None:
    emptied = pytester.makepyfile(test_emptied=START + "def test_b(): fill('B')")
    deleted = pytester.makepyfile(test_deleted=START + "def test_c(): fill('C')")
    against(START + "def test_a(): fill('A')\n", "--memleak-update=new")
    assert len(peaks(pytester.path)) == 3
    emptied.write_text("")
    deleted.unlink()
    against(START + "def test_a(): fill('A')\n", "--memleak-update=trim")
    assert sorted(peaks(pytester.path)) == ["test_a"]


@pytest.mark.parametrize("empty", [False, True])
def test_a_list_of_parameters_that_is_empty_here_keeps_its_entries(
    against: Against, pytester: pytest.Pytester, empty: bool
) -> None:
    """Whatever it was read from may be missing; one that no longer has that parameter is another matter."""
    text = """
@pytest.mark.parametrize("size", {sizes})
@pytest.mark.parametrize("again", [1, 2])
def test_b(size, again): fill('B')
"""
    start = f"import pytest\n{START}def test_a(): fill('A')\n"
    against(start + text.format(sizes="['x', 'y']"), "--memleak-update=new")
    entries = ["test_a", *(f"test_b[{again}-{size}]" for again in (1, 2) for size in "xy")]
    assert sorted(peaks(pytester.path)) == entries
    against(start + text.format(sizes="['x'][1:]" if empty else "['x']"), "--memleak-update=trim")
    left = entries if empty else [name for name in entries if "y" not in name]
    assert sorted(peaks(pytester.path)) == left
    if find_spec("xdist"):
        pytester.runpytest_subprocess("--gpu-backend=cpu", *TO_THE_BYTE, "--memleak-update=trim", "-n", "1")
        assert sorted(peaks(pytester.path)) == left


def test_workers_tell_of_every_file_that_skips_itself(pytester: pytest.Pytester) -> None:
    """xdist passes on one skip of those that have the same reason at the same line, and nothing of empty files."""
    pytest.importorskip("xdist")
    args = ("--gpu-backend=cpu", *TO_THE_BYTE, "-n", "1")
    pytester.makepyfile(helper="import pytest\ndef skip(): pytest.skip('not here', allow_module_level=True)")
    names = ["test_b", "test_c", "test_emptied"]
    files = [pytester.makepyfile(**{name: f"{START}def {name}(): fill('A')"}) for name in names]
    pytester.makepyfile(test_it=START + "def test_a(): fill('A')\n")
    pytester.runpytest_subprocess(*args, "--memleak-update=new").assert_outcomes(passed=4)
    for path in files:
        path.write_text("import helper\nhelper.skip()")
    files[-1].write_text("")
    pytester.runpytest_subprocess(*args, "--memleak-update=trim")
    assert peaks(pytester.path) == dict.fromkeys(["test_a", "test_b", "test_c"], MIB)


def test_a_test_that_passed_and_could_not_be_seen_keeps_its_entry(against: Against, pytester: pytest.Pytester) -> None:
    body = START + "def test_a(): fill('A')\ndef test_b():\n    fill('B')\n"
    child = "    import subprocess, sys; subprocess.run([sys.executable, '-c', 'import torch'], check=True)\n"
    against(body, "--memleak-update=new")
    against(body + child, "--memleak-update=all", "--memleak-mode=report").assert_outcomes(passed=2)
    assert peaks(pytester.path) == {"test_a": MIB, "test_b": MIB}
    against(body.replace("fill('B')", "..."), "--memleak-update=trim")
    assert peaks(pytester.path) == {"test_a": MIB, "test_b": 0}
