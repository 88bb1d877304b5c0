"""``memleak bisect`` from end to end."""

from __future__ import annotations

import signal

import pytest

from pytest_memleak.cli.main import main
from tests.fake_releases import Project

SMALL = "import fakelib\n\ndef test_small():\n    assert fakelib.VERSION < (1, 4)\n"


def test_it_finds_the_release_that_broke_a_test(project: Project) -> None:
    project.write(SMALL)
    done = project.memleak(
        "bisect", "fakelib", "--good", "1.0", "--bad", "1.6", "--json", "out.json", "--", "test_it.py::test_small"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fakelib 1.4 changed the verdict; each side was run twice" in done.stdout
    assert "fakelib 1.3: pass, pass; 1.4: fail, fail" in done.stdout
    result = project.data()["result"]
    assert (result["kind"], result["before"], result["after"]) == ("changed", "1.3", "1.4")
    assert sum(len(verdicts) for verdicts in result["verdicts"].values()) <= 7


def test_the_release_that_mended_it_and_those_that_cannot_be_tried(project: Project) -> None:
    """1.7 cannot be imported and 1.8 cannot be installed; the pre-release is an end because it was named."""
    project.write("import fakelib\n\ndef test_large():\n    assert fakelib.VERSION >= (1, 9)\n")
    done = project.memleak(
        *("bisect", "fakelib", "--good", "2.0rc1", "--bad", "1.6", "--json", "out.json", "--", "test_it.py")
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "one of fakelib 1.7, 1.8, 2.0rc1 changed the verdict, which one is not known" in done.stdout
    assert "stepped over, since they gave no verdict: 1.7, 1.8" in done.stdout


def test_a_flaky_test_is_no_change(project: Project) -> None:
    project.write(
        "import fakelib, pathlib\n\n"
        "def test_flaky():\n"
        "    runs = pathlib.Path(f'runs-{fakelib.VERSION}')\n"
        "    again = runs.exists()\n"
        "    runs.touch()\n"
        "    assert fakelib.VERSION < (1, 1) or again\n"
    )
    done = project.memleak("bisect", "fakelib", "--good", "1.0", "--bad", "1.1", "--", "test_it.py")
    assert done.returncode == 1
    assert "the test is flaky" in done.stdout
    assert "1.1: fail, pass" in done.stdout


def test_ends_that_are_not_as_promised(project: Project) -> None:
    project.write(SMALL)
    done = project.memleak("bisect", "fakelib", "--good", "1.0", "--bad", "1.3", "--among", "1.1", "--", "test_it.py")
    assert done.returncode == 1
    assert "the ends do not have the verdicts that were promised" in done.stdout
    assert "fakelib 1.0: pass; 1.3: pass" in done.stdout


def test_interrupted_it_goes_on_where_it_was(project: Project) -> None:
    project.write(
        "import fakelib, pathlib, threading\n\n"
        "def test_it():\n"
        "    if fakelib.VERSION == (1, 1) and not pathlib.Path('go').exists():\n"
        "        pathlib.Path('started').touch()\n"
        "        threading.Event().wait()\n"
        "    assert fakelib.VERSION < (1, 1)\n"
    )
    call = ["bisect", "fakelib", "--good", "1.0", "--bad", "1.2", "--json", "out.json", "--", "test_it.py"]
    process = project.start(*call)
    out, err = project.interrupt(process, project.folder / "started", signal.SIGINT)
    assert process.returncode == 130, err
    assert "interrupted: the same call goes on from here" in out
    assert project.data()["result"] is None
    (project.folder / "go").touch()
    resumed = project.memleak(*call)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "fakelib 1.1 changed the verdict" in resumed.stdout
    assert "2 cells of them from an earlier call" in resumed.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--good", "1.0", "--bad", "new", "--", "t.py"], "--bad 'new' is no release"),
        (["--good", "1.0", "--bad", "1.0.0", "--", "t.py"], "there is nothing between them"),
        (["--good", "1.0", "--bad", "2.0"], "which test?"),
        (["--good", "1.0", "--bad", "2.0", "--among", "x", "--", "t.py"], "--among 'x': 'x' is no release"),
        (
            ["--good", "1.0", "--bad", "2.0", "--among", "1.1,,1.2", "--", "t.py"],
            "--among '1.1,,1.2': '' is no release",
        ),
        (["--good", "2.0", "--bad", "1.0", "--among", "1.1,3.0", "--", "t.py"], "3.0 does not lie between 1.0 and 2.0"),
    ],
)
def test_a_wrong_command_line_has_status_2(
    arguments: list[str], message: str, uv: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bisect", "fakelib", *arguments]) == 2
    assert message in capsys.readouterr().err
