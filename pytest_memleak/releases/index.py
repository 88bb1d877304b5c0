"""Which releases a package has, as the index that pip or uv is told to use knows them."""

from __future__ import annotations

import base64
import functools
import http.client
import json
import platform
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.releases.sources import Sources

_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"
_TIMEOUT = 60.0


@dataclass(frozen=True, order=True)
class Release:
    version: Version
    yanked: bool = False
    """All of its files were withdrawn."""

    def __str__(self) -> str:
        return str(self.version)


@dataclass(frozen=True)
class File:
    """One line of an index."""

    name: str
    yanked: bool = False
    requires_python: str = ""


def releases(package: str, sources: Sources, python: str = "") -> list[Release]:
    """From the oldest to the newest; those alone that have a file which `python` may install.

    All places have to answer: a list with gaps would lead a search to the wrong release.
    """
    seen: dict[Version, bool] = {}
    reasons = []
    python = python or platform.python_version()
    for place in (*sources.indexes, *sources.find_links):
        try:
            files = _files(place, package, sources.certificates, is_index=place in sources.indexes)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not _has_no_such_package(error, place):
                raise Unavailable(
                    f"{without_password(place)} could not be asked which releases of {package!r} it has: {error}; "
                    "try again, or name the releases themselves"
                ) from error
            reasons.append(f"{without_password(place)}: it has no such package")
            continue
        for version, yanked in _versions(files, package, python):
            # Withdrawn means: in all its files, wherever they lie.
            seen[version] = seen.get(version, True) and yanked
    if not seen:
        told = "; ".join(reasons) or "neither an index nor a folder of files is named"
        raise Unavailable(f"no releases of {package!r} are known: {told}")
    return sorted(Release(version, yanked) for version, yanked in seen.items())


def chosen(
    known: Iterable[Release], specifier: str, *, pre: bool = False, yanked: bool = False, minors: bool = False
) -> list[Release]:
    """Those that a specifier matches; `minors`: of each minor release the last one."""
    try:
        wanted = SpecifierSet(specifier)
    except InvalidSpecifier as error:
        raise BadInput(
            f"{specifier!r} is no specifier of releases: write '>=5.0,<5.6', '==5.1.*' or releases such as '5.1.0'"
        ) from error
    found = [
        one
        for one in sorted(known)
        if wanted.contains(one.version, prereleases=True)
        and (pre or not one.version.is_prerelease)
        and (yanked or not one.yanked)
    ]
    if minors:
        found = list({one.version.release[:2]: one for one in found}.values())
    return found


def without_password(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    return address if "@" not in parts.netloc else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _versions(files: Iterable[File], package: str, python: str) -> Iterator[tuple[Version, bool]]:
    for file in files:
        try:
            if file.name.endswith(".whl"):
                name, version, _, _ = parse_wheel_filename(file.name)
            else:
                name, version = parse_sdist_filename(file.name)
        except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
            continue  # eggs, installers, and names that pip and uv do not take either
        if name == canonicalize_name(package) and _suits(file.requires_python, python):
            yield version, file.yanked


def _suits(requires: str, python: str) -> bool:
    try:
        return SpecifierSet(requires).contains(python, prereleases=True)
    except InvalidSpecifier:
        return True  # old releases have some that nobody can read; whoever installs them decides


def _files(place: str, package: str, certificates: str, *, is_index: bool) -> list[File]:
    folder = _local(place)
    if not is_index:
        if folder is None:
            return _page(place, certificates)
        if folder.suffix in (".html", ".htm"):
            return _html(folder.read_text(encoding="utf-8"))
        return [File(path.name) for path in ([folder] if folder.is_file() else folder.iterdir())]
    name = canonicalize_name(package)
    if folder:
        return _html((folder / name / "index.html").read_text(encoding="utf-8"))
    return _page(f"{place.rstrip('/')}/{name}/", certificates)


def _local(place: str) -> Path | None:
    if place.startswith("file:"):
        return Path(urllib.request.url2pathname(urllib.parse.urlsplit(place).path))
    return None if "://" in place else Path(place)


@functools.cache
def _page(address: str, certificates: str) -> list[File]:
    request = urllib.request.Request(without_password(address), headers={"Accept": _ACCEPT})
    who = urllib.parse.urlsplit(address)
    if who.username:
        words = f"{urllib.parse.unquote(who.username)}:{urllib.parse.unquote(who.password or '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(words.encode()).decode()}")
    trusted = ssl.create_default_context(cafile=certificates or None)
    with urllib.request.urlopen(request, timeout=_TIMEOUT, context=trusted) as answer:
        body = answer.read().decode(answer.headers.get_content_charset() or "utf-8", "replace")
        is_json = answer.headers.get_content_type().endswith("+json")
    return _json(body) if is_json else _html(body)


def _json(text: str) -> list[File]:
    """PEP 691. `yanked` is false, or true, or the reason."""
    return [
        File(file["filename"], file.get("yanked", False) is not False, file.get("requires-python") or "")
        for file in json.loads(text)["files"]
    ]


def _html(text: str) -> list[File]:
    """PEP 503."""
    reader = _Links()
    reader.feed(text)
    return reader.files


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.files: list[File] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        if tag == "a" and (link := said.get("href")):
            name = urllib.parse.unquote(urllib.parse.urlsplit(link).path).rpartition("/")[2]
            self.files.append(File(name, "data-yanked" in said, said.get("data-requires-python") or ""))


def _has_no_such_package(error: Exception, place: str) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        # The index of PyTorch says 403 for packages that it does not have; uv takes it so, too.
        host = urllib.parse.urlsplit(place).hostname or ""
        return error.code == 404 or (error.code == 403 and host.endswith("pytorch.org"))
    # Of an address it would be the file of certificates that is missing.
    return isinstance(error, FileNotFoundError) and _local(place) is not None
