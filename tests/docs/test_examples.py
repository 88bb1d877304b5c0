"""What the documentation shows is run: the examples, the test files in its pages, and the messages it quotes.

A test file in a page stands below ``<!-- run: passed=1 -->``, with what comes of it. Output quoted from those files
stands below ``<!-- printed -->``, from another file below ``<!-- printed by examples/… -->``, and what another page
shows below ``<!-- quoted from … -->``.
"""

from __future__ import annotations

import importlib
import re
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from pytest_memleak.meters import shared

planted_messages: Any = importlib.import_module("benchmarks.planted_messages")  # as loose as a script
ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_BLOCK = re.compile(
    r"(?:<!-- (?P<note>[^>]*) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


# Time is not to end a search: the messages are quoted as they are when there was enough of it.
PATIENT = """
import pytest_memleak.hooks.explaining, pytest_memleak.hooks.owners
pytest_memleak.hooks.explaining._EACH = pytest_memleak.hooks.explaining._ALL = 600.0
pytest_memleak.hooks.owners._SECONDS = 600.0
"""


class Block(NamedTuple):
    note: str
    language: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["note"] or "", match["language"], match["text"]) for match in found]


def with_runs(page: Path) -> bool:
    return any(block.note.startswith("run:") for block in blocks_of(page))


def as_constrained(*names: str) -> bool:
    """Whether these are the versions of ci/constraints.txt."""
    pinned = dict(re.findall(r"^(\w+)==([\w.]+)(?=$|; python_version >=)", _constraints(), re.MULTILINE))
    return all(find_spec(name) and version(name).partition("+")[0] == pinned[name] for name in names)


def _constraints() -> str:
    return (ROOT / "ci" / "constraints.txt").read_text(encoding="utf-8")


def can_enforce() -> bool:
    return torch.cuda.is_available() or shared.cpu_memory().can_enforce


def assert_printed(quoted: list[str], output: str) -> None:
    """The pages quote a machine without a GPU: other devices have other names, and take other blocks."""
    if torch.accelerator.is_available() or not shared.cpu_memory().can_enforce:
        return
    # On a machine that is too busy there was no time to name who holds what leaked.
    wanted = [text for text in quoted if "max_leak" not in text or "the search ended after" not in output]
    for text in wanted:
        assert text.strip(), "the page quotes nothing"
        assert text in output, f"this is not what is printed any more:\n{text}"


@pytest.fixture(autouse=True)
def same_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def examples(pytester: pytest.Pytester) -> Path:
    pytest.importorskip("transformers", minversion="4.56")
    pytest.importorskip("accelerate")
    return Path(shutil.copytree(ROOT / "examples", pytester.path / "examples"))


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)


def test_examples_are_green(pytester: pytest.Pytester, examples: Path) -> None:
    result = run(pytester, "examples", "--gpu-cap=4G")
    outcomes = result.parseoutcomes()
    assert result.ret == 0
    assert outcomes["passed"] > 0


def test_broken_examples_are_all_red_and_as_quoted(pytester: pytest.Pytester, examples: Path) -> None:
    pytester.makepyfile(patient=PATIENT)
    result = run(pytester, "-p", "patient", "examples/broken_on_purpose.py", "--gpu-cap=4G")
    outcomes = result.parseoutcomes()
    written = (examples / "broken_on_purpose.py").read_text(encoding="utf-8").count("\ndef test_")
    assert outcomes["failed"] + outcomes["errors"] == written
    assert "passed" not in outcomes
    quoted = [block.text for page in PAGES for block in blocks_of(page) if block.note.endswith("broken_on_purpose.py")]
    assert len(quoted) >= 2
    assert_printed(quoted, result.stdout.str())


@pytest.mark.parametrize(
    ("file", "backend"), [("planted_leaks.py", "cpu"), ("planted_peaks.py", "cpu"), ("planted_load.py", "simulated")]
)
def test_planted_bugs_are_printed_as_quoted(pytester: pytest.Pytester, file: str, backend: str) -> None:
    """Written by benchmarks/planted_messages.py, for the versions that the project is checked with."""
    if not as_constrained("torch", "transformers", "accelerate", "peft", "bitsandbytes"):
        pytest.skip("other versions of the libraries have other lines")
    if backend == "simulated" and (torch.accelerator.is_available() or torch.version.hip):
        pytest.skip("no card is simulated beside a real one")
    shutil.copytree(ROOT / "fixtures" / "planted", pytester.path / "fixtures" / "planted")
    pytester.makepyfile(patient=PATIENT)
    result = run(pytester, "-p", "patient", f"--gpu-backend={backend}", f"fixtures/planted/{file}")
    note = f"printed by fixtures/planted/{file}"
    quoted = [block.text for page in PAGES for block in blocks_of(page) if block.note == note]
    assert len(quoted) == (ROOT / "fixtures" / "planted" / file).read_text(encoding="utf-8").count("def test_") > 0
    assert_printed(quoted, planted_messages.without_small_holders(f"{result.stdout.str()}\n"))


@pytest.mark.parametrize("page", [page for page in PAGES if with_runs(page)], ids=lambda page: page.name)
def test_files_in_the_page_come_out_as_it_says(page: Path, pytester: pytest.Pytester) -> None:
    expected = {"passed": 0, "failed": 0, "errors": 0}
    files: list[Path] = []
    for block in blocks_of(page):
        if block.note.startswith("run:") and ("needs a cap" not in block.note or can_enforce()):
            name = re.match(r"# (test_\w+)\.py\n", block.text)
            assert name, f"a test file begins with its name: {block.text[:40]!r}"
            files.append(pytester.makepyfile(**{name[1]: block.text}))
            for outcome, count in re.findall(r"(\w+)=(\d+)", block.note):
                expected[outcome] += int(count)
    result = run(pytester, *map(str, files))  # in the page's order: a leak is part of what later tests begin with
    result.assert_outcomes(**expected)
    assert_printed([block.text for block in blocks_of(page) if block.note == "printed"], result.stdout.str())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_in_a_page_is_run(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "python" and "def test_" in block.text:
            assert block.note.startswith("run:"), f"a test that nobody runs: {block.text[:60]!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_quotes_from_another_stands_there(page: Path) -> None:
    for block in blocks_of(page):
        if block.note.startswith("quoted from "):
            source = page.parent / block.note.removeprefix("quoted from ")
            shown = [other.text for other in blocks_of(source)]
            assert any(block.text in text for text in shown), f"{source.name} shows this no more:\n{block.text}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_checks_run_what_the_readme_says() -> None:
    readme, checks = (ROOT / name for name in ("README.md", ".ci/run"))
    line = r"^python3 -m venv \.venv && \.venv/bin/pip (install .+) && \.venv/bin/pytest (.+)$"
    commands = re.findall(line, readme.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 2
    script = checks.read_text(encoding="utf-8")
    installing = commands[1][0]
    assert f'/pip" {installing}\n' in script
    for _, arguments in commands:
        assert f'/pytest" {arguments} ' in script
