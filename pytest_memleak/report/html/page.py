"""Fills the page: its parts are files beside this one, and what tests said goes in as JSON and as nothing else.

No text of a test is ever put into markup: the page's script reads the JSON and sets text. Should that fail somewhere,
the page's policy runs no script but those whose hashes it names, and lets nothing be fetched.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from pytest_memleak.errors import Unavailable
from pytest_memleak.records.collected import Collected
from pytest_memleak.records.run import RunInfo
from pytest_memleak.report.html.data import Lines, opened_row, overview
from pytest_memleak.report.html.plotly import find_plotly

SCRIPTS = ("words.js", "timeline.js", "at_peak.js", "opened.js", "table.js", "page.js")
"""In this order they are one script."""

_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def page(collected: Collected, run: RunInfo, folder: Path, path: Path) -> str:
    """The whole page. `folder`: what relative paths in notes start from; `path`: where the page will stand."""
    records, lines = list(collected), Lines()
    tests = [opened_row(record, lines, folder, path.parent) for record in records]
    # plotly goes in packed: a third of the size, it is read only when there are charts, and nothing in it is markup.
    script = "(() => {\n" + "\n".join(_part(name) for name in SCRIPTS) + "})();\n"
    plotly = _plotly()
    return Template(_part("page.html")).substitute(
        policy=_policy(script, plotly),
        css=_part("page.css"),
        overview=as_json(overview(collected, run) | {"lines": lines.texts}),
        tests="\n".join(
            f'<script type="application/json" id="test-{number}">{as_json(test)}</script>'
            for number, test in enumerate(tests)
        ),
        plotly=_packed(plotly),
        script=script,
    )


def as_json(data: Any) -> str:
    """To stand in a script element. Characters beyond ASCII are escaped: line separators, lone surrogates, all."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda found: _ESCAPED[found[0]], text)


def _policy(*scripts: str) -> str:
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _packed(script: str) -> str:
    return base64.b64encode(gzip.compress(script.encode("utf-8"), mtime=0)).decode("ascii")


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        return find_plotly().read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"plotly's bundle cannot be read: {error}") from error
