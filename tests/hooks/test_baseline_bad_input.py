"""What can be wrong with a baseline and its options: a usage error before any test, and the file is not touched."""

from __future__ import annotations

import pytest

from pytest_memleak.records.baselines.file import HEAD
from tests.conftest import Run, run_in_process
from tests.hooks.baselines import FILE

ENTRY = "test_it.py::test_a cpu CPU torch-2.13 peak(cpu)=1048576"
BODY = "def test_a(): ..."

BAD_FILES = {
    "": f"{FILE} is empty",
    '{"schema": 1}\n': f"{FILE}:1: *does not begin a baseline*is this another file*",
    f"{HEAD[0]}\n{ENTRY}\nnonsense\n": f"{FILE}:3: 'nonsense' is no entry*TEST BACKEND CARD*",
    f"{HEAD[0]}\n<<<<<<< ours\n{ENTRY}\n=======\n{ENTRY}2\n>>>>>>> theirs\n": f"{FILE}:2: *merge conflict*",
    f"{HEAD[0]}\n{ENTRY[:-3]}": f"{FILE}:2: *in the middle of a line*",
    f"{HEAD[0][:-1]}9\n": f"{FILE}:1: version '9'*upgrade*",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_a_file_that_is_no_baseline_is_refused_untouched(run_on_cpu: Run, pytester: pytest.Pytester, text: str) -> None:
    path = pytester.path / FILE
    path.write_text(text)
    result = run_on_cpu(BODY, f"--memleak-baseline={FILE}", "--memleak-update=all")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --memleak-baseline on the command line: *{BAD_FILES[text]}*"])
    assert path.read_text() == text
    assert "test_it.py" not in result.stdout.str()


def test_a_file_that_contradicts_itself_is_refused_without_an_update(
    run_on_cpu: Run, pytester: pytest.Pytester
) -> None:
    (pytester.path / FILE).write_text(f"{HEAD[0]}\n{ENTRY}\n{ENTRY}2\n")
    result = run_on_cpu(BODY, f"--memleak-baseline={FILE}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{FILE}:3: it contradicts line 2*keep the higher one*--memleak-update*"])


def test_the_file_is_refused_under_xdist_as_well(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(test_it=BODY)
    (pytester.path / FILE).write_text("=======\n")
    result = pytester.runpytest_subprocess("-n", "1", f"--memleak-baseline={FILE}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *merge conflict*"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--memleak-update=everything"], "*--memleak-update*'everything' is not one of new, raise, trim, all*"),
        (["--memleak-update="], "*--memleak-update*'' is not one of*"),
        (["--memleak-update=new,"], "*--memleak-update*'' is not one of*"),
        (["--memleak-baseline-tolerance=much"], "*--memleak-baseline-tolerance*'much' is no tolerance*2% + 1MiB*"),
        (["--memleak-baseline=dir/", "--memleak-update=new"], "*--memleak-baseline*'dir/' does not name a file*"),
        (["--memleak-baseline="], "*--memleak-baseline*'' does not name a file*"),
        (["--memleak-baseline=/dev/null", "--memleak-update=new"], "*--memleak-baseline*is a device*ordinary file*"),
        (["--memleak-baseline=."], "*--memleak-baseline*cannot be read as a baseline*"),
        ([f"--memleak-baseline={FILE}/deeper", "--memleak-update=new"], "*--memleak-baseline*ot a directory*"),
    ],
)
def test_an_option_that_cannot_be_read_is_named(
    run_on_cpu: Run, pytester: pytest.Pytester, args: list[str], words: str
) -> None:
    (pytester.path / FILE).write_text(f"{HEAD[0]}\n")
    result = run_on_cpu(BODY, f"--memleak-baseline={FILE}", *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {words}"])


def test_an_update_without_a_baseline_is_an_error(run_on_cpu: Run) -> None:
    result = run_on_cpu(BODY, "--memleak-update=new")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --memleak-update on the command line: there is no baseline to update*"])


def test_a_missing_file_is_an_error_in_ci_and_a_hint_on_a_desk(
    run_on_cpu: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    hint = f"baseline: there is no file {FILE} yet, and nothing was compared: --memleak-update=new makes it"
    result = run_on_cpu(BODY, f"--memleak-baseline={FILE}")
    assert result.ret == 0
    result.stdout.fnmatch_lines([hint])
    monkeypatch.setenv("CI", "false")
    assert run_on_cpu(BODY, f"--memleak-baseline={FILE}").ret == 0
    monkeypatch.setenv("CI", "true")
    for args in ([], ["--memleak-update=raise"], ["--memleak-update=trim"]):
        result = run_on_cpu(BODY, f"--memleak-baseline={FILE}", *args)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(
            [f"ERROR: *there is no file '{FILE}', and CI is set*--memleak-update=new*commit it"]
        )
    assert not (pytester.path / FILE).exists()
    assert run_on_cpu(BODY, f"--memleak-baseline={FILE}", "--memleak-update=new").ret == 0
    assert run_on_cpu(BODY, f"--memleak-baseline={FILE}").ret == 0


def test_ini_environment_and_flag_say_the_same_and_a_path_in_the_ini_is_the_projects(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(test_it=BODY)
    pytester.makeini(
        f"""
        [pytest]
        memleak_baseline = {FILE}
        memleak_update = new
        memleak_baseline_tolerance = 1%
        asyncio_default_fixture_loop_scope = function
        """
    )
    monkeypatch.chdir(pytester.mkdir("below"))
    run_in_process(pytester, "--gpu-backend=cpu", str(pytester.path / "test_it.py"))
    assert (pytester.path / FILE).exists()
    monkeypatch.setenv("MEMLEAK_BASELINE", "other.txt")
    monkeypatch.setenv("MEMLEAK_UPDATE", "all")
    result = run_in_process(pytester, "--gpu-backend=cpu", str(pytester.path / "test_it.py"))
    result.stdout.fnmatch_lines(
        ["memleak: baseline other.txt (the environment variable MEMLEAK_BASELINE), updating: all"]
    )
    assert (pytester.path / "below" / "other.txt").exists()


def test_a_file_that_was_broken_while_the_tests_ran_is_left_alone(run_on_cpu: Run, pytester: pytest.Pytester) -> None:
    result = run_on_cpu(
        f"""
        import pathlib, torch
        def test_a():
            torch.zeros(9)
            pathlib.Path({FILE!r}).write_text("mine")
        """,
        f"--memleak-baseline={FILE}",
        "--memleak-update=new",
    )
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines([f"--memleak-update: *{FILE}:1: 'mine' does not begin a baseline*"])
    assert (pytester.path / FILE).read_text() == "mine"


def test_a_folder_that_went_while_the_tests_ran_is_said_at_the_end(run_on_cpu: Run, pytester: pytest.Pytester) -> None:
    result = run_on_cpu(
        """
        import pathlib, torch
        def test_a():
            torch.zeros(9)
            pathlib.Path("sub").write_text("no folder")
        """,
        "--memleak-baseline=sub/deeper/b.txt",
        "--memleak-update=new",
    )
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["--memleak-update: sub/deeper/b.txt was not written (*sub*: *), and is as it was: see that its folder*"]
    )
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
