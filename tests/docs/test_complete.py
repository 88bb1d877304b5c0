"""Whatever can be written or read has its place in the docs: markers, options, names, fields, statuses."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pytest_memleak
from pytest_memleak import fixtures, marks
from pytest_memleak.cli import predict
from pytest_memleak.cli.main import _parser
from pytest_memleak.events import native
from pytest_memleak.settings import OPTIONS, Option

DOCS = Path(__file__).parents[2] / "docs"
PACKAGE = Path(pytest_memleak.__file__).parent
REFERENCE = (DOCS / "reference.md").read_text("utf-8")
DATA = (DOCS / "json.md").read_text("utf-8")
ALL = "\n".join(page.read_text("utf-8") for page in sorted(DOCS.glob("*.md")))


def section(heading: str) -> str:
    """The heading that has this in it, and what stands below it up to the next one."""
    found = re.search(rf"^#+ [^\n]*{re.escape(heading)}.*?(?=^#|\Z)", REFERENCE, re.DOTALL | re.MULTILINE)
    assert found, f"the reference has no heading with {heading}"
    return found[0]


def words_in_code(text: str) -> set[str]:
    return {word for code in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"\w+", code)}


@pytest.mark.parametrize("marker", marks.MARKERS, ids=lambda marker: marker.__name__)
def test_every_marker_with_its_arguments_and_their_defaults(marker: Callable[..., Any]) -> None:
    told = section(f"`{marker.__name__}")
    parameters = inspect.signature(marker).parameters
    heading, _, below = told.partition("\n")
    explained = {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_POSITIONAL}
    assert explained - words_in_code(below) == set()
    heading = heading.partition(f"`{marker.__name__}(")[2]
    defaults = dict(re.findall(r"(\w+)=(\w+)", heading.partition("`")[0]))
    python = {"None": None, "True": True, "False": False}
    assert {name: python.get(value, value) for name, value in defaults.items()} == {
        name: str(default) if type(default := parameter.default) is int else default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty
    }


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)
def test_every_option_in_its_three_spellings(option: Option) -> None:
    assert REFERENCE.count(f"\n| `{option.flag}` | `{option.ini}` | `{option.environment}` | ") == 1


def test_the_variable_that_is_no_option() -> None:
    assert f"`{native.ENGINE_VARIABLE}=" in REFERENCE


@pytest.mark.parametrize("name", pytest_memleak.__all__)
def test_every_public_name(name: str) -> None:
    assert re.search(rf"`+pytest_memleak\.{name}\b", REFERENCE)


def test_every_fixture() -> None:
    tree = ast.parse(Path(fixtures.__file__).read_text("utf-8"))
    made = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and "fixture" in _decorators(node)]
    assert len(made) >= 4
    assert [name for name in made if f"\n**`{name}`**" not in REFERENCE] == []


def _decorators(function: ast.FunctionDef) -> set[str]:
    return {node.attr for deco in function.decorator_list for node in ast.walk(deco) if isinstance(node, ast.Attribute)}


def test_every_field_of_the_json_file() -> None:
    schema = json.loads((PACKAGE / "records" / "schema-1.json").read_text("utf-8"))
    fields = set(_fields(schema))
    assert {"schema", "would_fail", "let_go_of", "highest_peaks"} <= fields
    assert sorted(fields - words_in_code(DATA)) == []


def _fields(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for below in schema.values():
            yield from _fields(below)
    elif isinstance(schema, list):
        for below in schema:
            yield from _fields(below)


def test_every_flag_of_the_command() -> None:
    flags = {
        flag
        for command in _commands().values()
        for action in command._actions
        for flag in action.option_strings
        if flag.startswith("--") and flag != "--help"
    }
    assert "--quick" in flags
    assert sorted(flags - set(re.findall(r"--[a-z][\w-]*", ALL))) == []


def test_every_command() -> None:
    assert [name for name in _commands() if not re.search(rf"^#+ [^\n]*`memleak {name}", ALL, re.MULTILINE)] == []


def _commands() -> dict[str, argparse.ArgumentParser]:
    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def test_every_exit_status() -> None:
    told = set(re.findall(r"^\| (\d+) \|", section("Exit status"), re.MULTILINE))
    sources = "\n".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    of_pytest = {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
    of_pytest |= {pytest.ExitCode[name] for name in re.findall(r"\bpytest\.ExitCode\.(\w+)", sources)}
    if "pytest.UsageError(" in sources:
        of_pytest.add(pytest.ExitCode.USAGE_ERROR)
    assert len(of_pytest) >= 4
    of_the_command = {predict.FITS, predict.DOES_NOT_FIT, predict.CANNOT_TELL}
    of_the_command |= {int(status) for status in re.findall(r"^ +return (\d+)\b", _main(), re.MULTILINE)}
    assert told >= {str(int(status)) for status in {*of_pytest, *of_the_command}}


def _main() -> str:
    return (PACKAGE / "cli" / "main.py").read_text("utf-8")
