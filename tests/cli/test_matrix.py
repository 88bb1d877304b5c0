"""``memleak matrix`` from end to end: uv, environments, pytest in them, the table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_memleak.cli.main import main
from tests.fake_releases import Project, make_wheel

SMALL = """
import fakelib

def test_small():
    assert fakelib.VERSION < (1, 3)

def test_any():
    pass
"""


def test_every_cell_has_a_verdict_and_nothing_is_left_behind(project: Project) -> None:
    project.write(SMALL)
    done = project.memleak(
        "matrix",
        "--vary",
        "fakelib==1.2,1.3",
        "--json",
        "out.json",
        "--markdown",
        "out.md",
        "--",
        "test_it.py::test_small",
    )
    assert done.returncode == 1, done.stderr
    cells = project.cells()
    assert [(one["verdict"], one["peak"]) for one in cells.values()] == [("pass", None), ("fail", None)]
    assert cells["1.3"]["reason"] == "assert (1, 3) < (1, 3)"
    assert cells["1.3"]["installed"]["fakelib"] == "1.3"
    assert "2 cells: 1 pass, 1 fail" in done.stdout
    assert "| 1.3 | fail | - | assert (1, 3) \\< (1, 3) |" in (project.folder / "out.md").read_text()
    assert "[1/2] fakelib 1." in done.stderr
    assert list((project.folder.parent / "tmp").iterdir()) == [], "environments go at the end"


def test_all_that_pass_have_status_0_and_each_test_its_own_cell(project: Project) -> None:
    project.write(SMALL)
    project.write("[pytest]\ncache_dir = own\naddopts = --strict-config\n", "pytest.ini")
    done = project.memleak("matrix", "--vary", "fakelib<1.2", "--json", "out.json", "--", "-q", "test_it.py")
    assert done.returncode == 0, done.stdout + done.stderr
    tests = sorted((cell["versions"]["fakelib"], cell["test"]) for cell in project.data()["cells"])
    assert tests == [
        (version, f"test_it.py::{test}") for version in ("1.0", "1.1") for test in ("test_any", "test_small")
    ]


def test_what_cannot_be_run_is_not_run_and_says_why(project: Project) -> None:
    project.write(SMALL)
    done = project.memleak(
        "matrix", "--vary", "fakelib==1.0,1.7,1.8,9.9", "--json", "out.json", "--", "test_it.py::test_any"
    )
    assert done.returncode == 1
    cells = project.cells()
    assert {version: cell["verdict"] for version, cell in cells.items()} == {
        "1.0": "pass",
        "1.7": "not-run",
        "1.8": "not-run",
        "9.9": "not-run",
    }
    assert "could not be collected: ImportError: this release is broken" in cells["1.7"]["reason"]
    assert "nowhere-to-be-found" in cells["1.8"]["reason"]
    assert "no version of fakelib==9.9" in cells["9.9"]["reason"]
    for cell in cells.values():
        assert cell["reason"] in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["test_it.py::test_gone"], "not found:"),
        (["test_nowhere.py"], "file or directory not found: test_nowhere.py"),
        (["test_it.py", "-k", "nothing"], "no test was collected"),
        (["test_it.py", "--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["test_it.py::test_any", "-p", "no:memleak"], "unrecognized arguments: --memleak-json="),
    ],
)
def test_a_pytest_that_runs_no_test_is_never_green(project: Project, arguments: list[str], reason: str) -> None:
    project.write(SMALL)
    done = project.memleak("matrix", "--vary", "fakelib==1.0", "--json", "out.json", "--", *arguments)
    assert done.returncode == 1
    (cell,) = project.data()["cells"]
    assert cell["verdict"] == "not-run"
    assert reason in cell["reason"]


TWICE = """
import unittest, pytest
runs = []

def test_second_time():
    runs.append(1)
    assert len(runs) > 1, "the first time"

class TestParts(unittest.TestCase):
    def test_parts(self):
        with self.subTest("one"):
            assert not "the first part"

@pytest.mark.xfail(run=False, reason="it hangs")
def test_hangs(): pass
"""


@pytest.mark.parametrize(
    ("arguments", "verdict", "reason"),
    [
        (["test_it.py::test_second_time", "test_it.py::test_second_time", "--keep-duplicates"], "fail", "first time"),
        (["test_it.py::TestParts"], "fail", "the first part"),
        (["test_it.py::TestParts", "--setup-only"], "not-run", "its body was not run"),
        (["test_it.py::test_hangs"], "not-run", "skipped: xfail(run=False) it hangs"),
    ],
)
def test_what_pytest_says_twice_or_not_at_all_is_not_green(
    project: Project, arguments: list[str], verdict: str, reason: str
) -> None:
    project.write(TWICE)
    done = project.memleak("matrix", "--vary", "fakelib==1.0", "--json", "out.json", "--", *arguments)
    assert done.returncode == 1
    (cell,) = project.data()["cells"]
    assert cell["verdict"] == verdict
    assert reason in cell["reason"]


@pytest.mark.parametrize("xdist", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_a_package_that_lies_beside_the_tests_is_not_the_release(project: Project, xdist: tuple[str, ...]) -> None:
    project.write("VERSION = (0,)\n", "fakelib.py")
    project.write(SMALL)
    call = ["matrix", "--vary", "fakelib==1.5", "--with", "pytest-xdist", "--json", "out.json"]
    done = project.memleak(*call, "--", "test_it.py", *xdist)
    assert done.returncode == 1
    assert {cell["verdict"] for cell in project.data()["cells"]} == {"inconclusive"}
    assert f"fakelib was imported from {project.folder}/fakelib.py" in done.stderr


@pytest.mark.parametrize(
    "named", [(), ("-p", "memleak"), ("-p", "pytest_memleak.plugin"), ("-p", "xdist.plugin", "-n", "1")]
)
def test_without_autoload_the_plugin_is_there_all_the_same(project: Project, named: tuple[str, ...]) -> None:
    project.env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    project.write("def test_it(): pass\n")
    call = ["matrix", "--vary", "fakelib==1.0", "--with", "pytest-xdist", "--json", "out.json"]
    done = project.memleak(*call, "--", "test_it.py", *named)
    (cell,) = project.data()["cells"]
    assert (cell["verdict"], cell["reason"]) == ("pass", "")
    assert done.returncode == 0


@pytest.mark.parametrize("xdist", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_those_that_were_not_started_have_a_cell(project: Project, xdist: tuple[str, ...]) -> None:
    project.write("def test_a(): assert False\ndef test_b(): pass\ndef test_c(): pass\ndef test_d(): pass\n")
    call = ["matrix", "--vary", "fakelib==1.5", "--with", "pytest-xdist", "--json", "out.json"]
    project.memleak(*call, "--", "test_it.py", "-x", *xdist)
    assert [cell["test"][-1] for cell in project.data()["cells"]] == ["a", "b", "c", "d"]
    assert {cell["test"][-1]: cell["verdict"] for cell in project.data()["cells"]}["d"] == "not-run"


def test_what_lies_in_the_working_directory_or_on_the_path_is_not_in_the_way(project: Project) -> None:
    for folder in (project.folder, project.folder / "elsewhere"):
        folder.mkdir(exist_ok=True)
        (folder / "fakelib.py").write_text("VERSION = (0,)\n")
    (project.folder / "tests").mkdir()
    project.write("import fakelib\n\ndef test_it():\n    assert fakelib.VERSION == (1, 5)\n", "tests/test_it.py")
    project.env["PYTHONPATH"] += f"{os.pathsep}{project.folder / 'elsewhere'}"
    done = project.memleak("matrix", "--vary", "fakelib==1.5", "--", "tests/test_it.py")
    assert done.returncode == 0, done.stdout


def test_where_pip_is_told_to_look_uv_looks_too(project: Project) -> None:
    project.env |= {"PIP_FIND_LINKS": project.env.pop("UV_FIND_LINKS"), "PIP_NO_INDEX": project.env.pop("UV_NO_INDEX")}
    project.write(SMALL)
    done = project.memleak("matrix", "--vary", "fakelib<=1.0", "--", "test_it.py")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_case_tells_a_failure_that_is_expected_from_one_that_is_not(project: Project) -> None:
    project.write("raise RuntimeError('none but one beside the test is read')", "conftest.py")
    project.write("[pytest]\naddopts = --no-such-option\n", "pytest.ini")
    (project.folder / "cases").mkdir()
    project.write(
        "import fakelib\n"
        "def test_small():\n"
        "    if fakelib.VERSION > (1, 4): raise RuntimeError('another one')\n"
        "    assert fakelib.VERSION < (1, 3)\n",
        "cases/my_case.py",
    )
    project.write(
        """
        title = "Releases that are too large"
        package = "fakelib"
        good = ["1.1", "<=1.2"]
        bad = ["1.3", "1.4", "1.5"]
        test = "my_case.py::test_small"
        fails_with = "< (1, 3)"
        """,
        "cases/my_case.toml",
    )
    quick = project.memleak("matrix", "--case", "cases/my_case.toml", "--quick", "--json", "out.json")
    assert quick.returncode == 0, quick.stdout + quick.stderr
    assert [(c["versions"]["fakelib"], c["verdict"], c["expected"]) for c in project.data()["cells"]] == [
        ("1.1", "pass", "pass"),
        ("1.3", "fail", "fail"),
    ]
    assert "fail (as expected)" in quick.stdout
    assert "2 cells: 1 pass, 1 fail; all as expected" in quick.stdout

    full = project.memleak("matrix", "--case", "cases/my_case.toml", "--json", "out.json")
    assert full.returncode == 1
    cells = project.cells()
    assert list(cells) == ["1.0", "1.1", "1.2", "1.3", "1.4", "1.5"]
    assert [cell["as_expected"] for cell in cells.values()] == [True] * 5 + [False]
    assert cells["1.5"]["differs"] == ["it failed, but not with '< (1, 3)'"]
    assert "fail (DIFFERS)" in full.stdout
    assert "6 cells: 3 pass, 3 fail; 1 not as expected" in full.stdout


def test_a_case_crossed_with_another_package(project: Project, wheels: Path) -> None:
    for version in ("2.0", "3.0"):
        make_wheel(wheels, "fakedep", version, {"fakedep.py": f"VERSION = {version}\n".encode()})
    project.write(
        "import fakedep, fakelib\ndef test_small():\n    assert fakelib.VERSION < (1, 3), fakedep.VERSION\n",
        "my_case.py",
    )
    project.write(
        """
        title = "Releases that are too large"
        package = "fakedep"
        good = []
        bad = ["2.0", "3.0"]
        none_because = "it is about all"
        test = "my_case.py::test_small"
        fails_with = "AssertionError: 3.0"
        with = ["fakelib==1.0"]
        [[figures]]
        releases = ["3.0"]
        expected = 1
        tolerance = 0
        source = "nobody"
        """,
        "my_case.toml",
    )
    call = ["matrix", "--case", "my_case.toml", "--vary", "fakelib==1.2,1.3", "--vary", "fakedep>=2,<4", "--minors"]
    done = project.memleak(*call, "--json", "out.json")
    assert done.returncode == 1, done.stderr
    assert [(*c["versions"].items(), c["verdict"], c["differs"]) for c in project.data()["cells"]] == [
        (("fakelib", "1.2"), ("fakedep", "2.0"), "pass", ["expected fail"]),
        (("fakelib", "1.2"), ("fakedep", "3.0"), "pass", ["expected fail", "max_peak was not read, expected 1 B"]),
        (("fakelib", "1.3"), ("fakedep", "2.0"), "fail", ["it failed, but not with 'AssertionError: 3.0'"]),
        (("fakelib", "1.3"), ("fakedep", "3.0"), "fail", ["max_peak was not read, expected 1 B"]),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "fakelib==1.0"], "--vary needs tests"),
        (["--vary", "fakelib", "--", "test_it.py"], "'fakelib' varies nothing"),
        (["--vary", "fakelib==one", "--", "test_it.py"], "'one' is no release"),
        (["--vary", "fakelib==1.0", "--vary", "FakeLib==1.1", "--", "test_it.py"], "fakelib is varied twice"),
        (["--vary", "fakelib==1.0", "--quick", "--", "test_it.py"], "--quick chooses among a case's own releases"),
        (
            ["--case", "warmup_cap", "--vary", "transformers==4.0.0"],
            "warmup_cap does not say whether transformers 4.0.0",
        ),
        (
            ["--case", "warmup_cap", "--vary", "transformers==5.0.0", "--", "test_it.py"],
            "says itself which test it runs",
        ),
        (["--pre"], "--pre is for the releases of --vary"),
        (["--yanked", "--quick"], "--yanked is for the releases of --vary"),
        (["--minors"], "--minors is for the releases of --vary"),
        (["--vary", "fakelib==1.0", "--minors", "--", "test_it.py"], "--minors chooses among the releases of a specif"),
        (["--", "test_it.py"], "name the releases to run it against with --vary"),
        (["--case", "nowhere.toml"], "the case 'nowhere.toml' cannot be read"),
        (["--case", "nowhere"], "there is no case 'nowhere'"),
        (["--vary", "fakelib==1.0", "--json", "/dev/null", "--", "test_it.py"], "'/dev/null' is a device"),
    ],
)
def test_a_wrong_command_line_has_status_2(
    arguments: list[str], message: str, uv: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["matrix", *arguments]) == 2
    assert message in capsys.readouterr().err
