"""What the site needs beyond MkDocs: links out of docs/ lead to the code host, and pages fetch nothing from elsewhere.

In the repository `[figures](../benchmarks/results/x.md)` is a file beside docs/. The site has no such file: there it is
an address below that of the repository, which pyproject.toml has once.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
_OUT_OF_DOCS = re.compile(r"(?<=\]\()\.\./(?P<path>[^)#\s]*)(?P<anchor>#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_CELL = re.compile(r"<td.*?</td>", re.DOTALL)
# What a browser loads by itself. A link that a reader follows is none of these, nor is a canonical address.
_FETCHED = re.compile(
    r"""(?:<(?:script|img|iframe|video|audio|source)\b[^>]*\bsrc|<link\b(?![^>]*canonical)[^>]*\bhref)"""
    r"""\s*=\s*["']?(?P<address>(?:https?:)?//[^"'\s>]+)"""
)


def address() -> str:
    """Where the repository is, as pyproject.toml says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"]["Repository"]).rstrip("/")


def to_code_host(markdown: str, repository: str, root: Path = ROOT) -> str:
    """The page with its links to files outside docs/ as addresses; what code shows stays as it is."""

    def linked(match: re.Match[str]) -> str:
        path = match["path"].rstrip("/")
        target = root / path
        if not target.exists():
            raise ValueError(f"a page links to ../{path}, and the repository has no such file")
        kind = "tree" if target.is_dir() else "blob"
        return f"{repository}/{kind}/HEAD/{path}{match['anchor'] or ''}"

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_OUT_OF_DOCS.sub(linked, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _OUT_OF_DOCS.sub(linked, markdown[end:])])


def fetched(html: str) -> list[str]:
    """What a page would load from another host."""
    return [match["address"] for match in _FETCHED.finditer(html)]


def without_escapes(html: str) -> str:
    r"""Tables in which `a\|b` is `a|b`, as code hosts show it; Python-Markdown leaves the backslash in code."""
    return _CELL.sub(lambda cell: cell[0].replace("\\|", "|"), html)


def on_page_markdown(markdown: str, **_: Any) -> str:
    return to_code_host(markdown, address())


def on_page_content(html: str, **_: Any) -> str:
    return without_escapes(html)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    if found := fetched(output):
        raise ValueError(f"{page.file.src_uri} would be fetched in part from elsewhere: {', '.join(found)}")
    return output
