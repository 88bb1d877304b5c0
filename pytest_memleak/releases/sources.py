"""Where packages come from: what the user has told uv, else what the user has told pip, else PyPI."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

PYPI = "https://pypi.org/simple"
_UV_ITS_OWN = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_INDEX",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_NO_INDEX",
    "UV_CONFIG_FILE",
)


@dataclass(frozen=True)
class Sources:
    indexes: tuple[str, ...] = (PYPI,)
    """Addresses of PEP 503 or PEP 691 indexes; none if no index may be asked."""
    find_links: tuple[str, ...] = ()
    """Folders or pages with files."""
    told_uv: bool = False
    """uv knows them by itself."""
    certificates: str = ""
    """A file of certificates that pip was told of."""

    def arguments(self) -> list[str]:
        """For uv. pip takes the best release of all its indexes, so uv is to do the same with them."""
        if self.told_uv:
            return []
        said = [word for place in self.find_links for word in ("--find-links", place)]
        if not self.indexes:
            return ["--no-index", *said]
        first, *others = self.indexes
        # PyPI need not be told, and is not where a file of uv's names another.
        said += [] if first == PYPI else ["--default-index", first]
        said += [word for index in others for word in ("--index", index)]
        return [*said, "--index-strategy", "unsafe-best-match"] if others else said


def sources(environment: Mapping[str, str] | None = None, pip: Mapping[str, str] | None = None) -> Sources:
    """`pip` is pip's own configuration, by the names of its options; asked of it if it is not given."""
    environment = os.environ if environment is None else environment
    if any(environment.get(name) for name in _UV_ITS_OWN):
        return _of_uv(environment)
    pip = pip_configuration() if pip is None else pip
    if _on(pip.get("no-index", "")):
        indexes: tuple[str, ...] = ()
    else:
        indexes = (pip.get("index-url") or PYPI, *pip.get("extra-index-url", "").split())
    return Sources(indexes, tuple(pip.get("find-links", "").split()), certificates=pip.get("cert", ""))


def _of_uv(environment: Mapping[str, str]) -> Sources:
    first = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL") or PYPI
    others = f"{environment.get('UV_INDEX', '')} {environment.get('UV_EXTRA_INDEX_URL', '')}".split()
    # An index may have a name: pytorch=https://…
    indexes = tuple(_unnamed(index) for index in (first, *others))
    links = environment.get("UV_FIND_LINKS", "").replace(",", " ").split()
    return Sources(() if _on(environment.get("UV_NO_INDEX", "")) else indexes, tuple(links), told_uv=True)


def _unnamed(index: str) -> str:
    name, sign, address = index.partition("=")
    return address if sign and name.replace("-", "").replace("_", "").isalnum() else index


def _on(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on", "t", "y")


def pip_configuration() -> dict[str, str]:
    """From its files and its environment variables; the latter have the last word, as in pip."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        said = done.stdout if done.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    found = _parsed(said)
    # Where there is no pip, its variables are still what the user said.
    for name in ("index-url", "extra-index-url", "find-links", "no-index", "cert"):
        if value := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
            found[name] = value
    return found


def _parsed(said: str) -> dict[str, str]:
    """Lines such as ``global.find-links='/some/wheels'``."""
    sections = {"global": 0, "install": 1, ":env:": 2}
    found: dict[str, tuple[int, str]] = {}
    for line in said.splitlines():
        key, sign, value = line.partition("=")
        section, _, name = key.partition(".")
        if not sign or section not in sections:
            continue
        try:
            text = str(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            continue  # a value over several lines, say: none of those that are of use here
        if sections[section] >= found.get(name, (-1, ""))[0]:
            found[name] = (sections[section], text)
    return {name: text for name, (_, text) in found.items()}
