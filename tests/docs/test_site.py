"""The site: its pages are those of docs/, and links that lead out of docs/ go to the repository (ci/site_hooks.py).

That it builds, with every link and anchor, is seen to by `mkdocs build --strict` in .ci/run.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

hooks: Any = importlib.import_module("ci.site_hooks")  # as loose as a script
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HOST = "https://code.example/memleak"


@pytest.mark.parametrize(
    ("link", "there"),
    [
        ("[a](../ci/constraints.txt)", f"[a]({HOST}/blob/HEAD/ci/constraints.txt)"),
        ("[a](../README.md#two-commands)", f"[a]({HOST}/blob/HEAD/README.md#two-commands)"),
        ("[a](../pytest_memleak/cases/)", f"[a]({HOST}/tree/HEAD/pytest_memleak/cases)"),
        ("[`a`](../examples), [b](../LICENSE)", f"[`a`]({HOST}/tree/HEAD/examples), [b]({HOST}/blob/HEAD/LICENSE)"),
        (
            "[a](reference.md#limits), [b](https://x.example/../y)",
            "[a](reference.md#limits), [b](https://x.example/../y)",
        ),
        (
            "```text\n[a](../LICENSE)\n```\n[a](../LICENSE)",
            f"```text\n[a](../LICENSE)\n```\n[a]({HOST}/blob/HEAD/LICENSE)",
        ),
    ],
)
def test_links_out_of_docs_lead_to_the_code_host(link: str, there: str) -> None:
    assert hooks.to_code_host(link, HOST) == there


def test_a_link_to_a_file_that_is_not_there_ends_the_build() -> None:
    with pytest.raises(ValueError, match=r"links to \.\./benchmarks/none\.md, and the repository has no such file"):
        hooks.to_code_host("[a](../benchmarks/none.md)", HOST)


def test_no_page_s_link_is_left_to_lead_out_of_the_site() -> None:
    pages = {page.name: hooks.to_code_host(page.read_text("utf-8"), HOST) for page in DOCS.glob("*.md")}
    assert any(f"]({HOST}/blob/HEAD/benchmarks/results/" in text for text in pages.values())
    assert [name for name, text in pages.items() if re.search(r"\]\(\.\./", text)] == []


def test_the_address_is_the_one_that_the_package_tells() -> None:
    told = f'Repository = "{hooks.address()}"'
    assert told in (ROOT / "pyproject.toml").read_text("utf-8")
    assert hooks.address().startswith("https://")


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<script src="https://cdn.example/a.js"></script>', ["https://cdn.example/a.js"]),
        ("<script async src=//cdn.example/a.js></script>", ["//cdn.example/a.js"]),
        ('<link rel="stylesheet" href="https://fonts.example/css">', ["https://fonts.example/css"]),
        ('<img alt="x" src="http://badge.example/x.svg">', ["http://badge.example/x.svg"]),
        ('<link rel="canonical" href="https://docs.example/"><a href="https://x.example">x</a>', []),
        ('<script src="assets/a.js"></script><img src="architecture.svg">', []),
    ],
)
def test_what_a_page_would_fetch_from_elsewhere_is_found(html: str, found: list[str]) -> None:
    assert hooks.fetched(html) == found


def test_a_bar_in_a_table_s_code_is_a_bar() -> None:
    row = r"<td><code>a\|b</code></td><p><code>c\|d</code></p>"
    assert hooks.without_escapes(row) == r"<td><code>a|b</code></td><p><code>c\|d</code></p>"


def test_every_page_has_its_place() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    placed = re.findall(r"([\w-]+\.md)$", navigation, re.MULTILINE)
    assert sorted(placed) == sorted(page.name for page in DOCS.glob("*.md"))
