"""Cases, read from their TOML files: docs/matrix.md says what may stand in them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from pytest_memleak.budget.sizes import parse_size
from pytest_memleak.errors import BadInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).resolve().parent.parent / "cases"
TIMEOUT = 1800.0
_KEYS = {
    "title": str,
    "about": str,
    "package": str,
    "good": list,
    "bad": list,
    "none_because": str,
    "test": str,
    "fails_with": str,
    "with": list,
    "pytest": list,
    "timeout": (int, float),
    "figures": list,
}
_REQUIRED = ("title", "package", "good", "bad", "test")
_FIGURE_KEYS = {
    "releases": (str, list),
    "check": str,
    "block": str,
    "expected": (int, str),
    "tolerance": (int, float, str),
    "source": str,
}
_FIGURE_REQUIRED = ("releases", "expected", "tolerance", "source")
_WORDS = {str: "a text", list: "a list", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Figure:
    releases: str | tuple[str, ...]
    """``good``, ``bad``, or releases and specifiers."""
    expected: int
    within: int
    """How many bytes a reading may be off."""
    source: str
    check: str = "max_peak"
    block: str = ""

    @property
    def name(self) -> str:
        return f"block {self.block!r}" if self.block else self.check

    def is_about(self, release: str, *, good: bool) -> bool:
        if isinstance(self.releases, str):
            return self.releases == ("good" if good else "bad")
        return any(_matches(entry, release) for entry in self.releases)


@dataclass(frozen=True)
class Case:
    name: str
    file: Path
    title: str
    package: str
    good: tuple[str, ...]
    bad: tuple[str, ...]
    test: str
    about: str = ""
    none_because: str = ""
    fails_with: str = ""
    requirements: tuple[str, ...] = ()
    pytest: tuple[str, ...] = ()
    timeout: float = TIMEOUT
    figures: tuple[Figure, ...] = field(default=())

    @property
    def folder(self) -> Path:
        return self.file.parent

    def is_good(self, release: str) -> bool:
        """Whether the test has to pass on a release of its package: one that stands by itself counts first."""
        entries = (*self.good, *self.bad)
        for entry in (*filter(is_release, entries), *entries):
            if _matches(entry, release):
                return entry in self.good
        raise BadInput(f"the case {self.name} does not say whether {self.package} {release} is good or bad")


def is_release(entry: str) -> bool:
    try:
        Version(entry)
    except InvalidVersion:
        return False
    return True


def find(names: Sequence[str], folder: Path = FOLDER) -> list[Case]:
    """Ours by name, or any by the path of its file; all of ours if none is named."""
    ours = {file.stem: file for file in sorted(folder.glob("*.toml"))}
    if not names:
        if not ours:
            raise BadInput(f"there are no cases in {folder}: name one of yours with --case, or use --vary")
        return [read(file) for file in ours.values()]
    files = []
    for name in names:
        file = ours.get(name) or Path(name)
        if file.suffix != ".toml":
            known = ", ".join(ours) or "none"
            raise BadInput(f"there is no case {name!r}: ours are {known}; one of yours is named by its .toml file")
        files.append(file)
    return [read(file) for file in dict.fromkeys(files)]


def read(file: Path) -> Case:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"the case {str(file)!r} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is no TOML: {error}") from error
    try:
        return _case(file.resolve(), data)
    except BadInput as error:
        raise error.located(str(file)) from None


def _case(file: Path, data: dict[str, Any]) -> Case:
    _check(data, _KEYS, _REQUIRED, "")
    good, bad = (_releases(data[key], key, first_is_release=True) for key in ("good", "bad"))
    if not (good or bad):
        raise BadInput("good and bad are both empty: a case needs a release to run on")
    if not (good and bad) and not data.get("none_because", "").strip():
        which = "bad" if good else "good"
        raise BadInput(f"{which} is empty: none_because has to say why there is no such release")
    if both := set(good) & set(bad):
        raise BadInput(f"{', '.join(sorted(both))} cannot be both good and bad")
    if bad and not data.get("fails_with", "").strip():
        raise BadInput(
            "fails_with is missing: the text that the failure on a bad release has, or it may be another one"
        )
    test = data["test"]
    name, sign, _ = test.partition("::")
    if not sign or not (file.parent / name).is_file():
        raise BadInput(f"test = {test!r} has to name a test of a file beside this one, such as 'my_case.py::test_it'")
    return Case(
        name=file.stem,
        file=file,
        title=data["title"],
        package=data["package"],
        good=good,
        bad=bad,
        test=test,
        about=data.get("about", "").strip(),
        none_because=data.get("none_because", "").strip(),
        fails_with=data.get("fails_with", ""),
        requirements=_texts(data.get("with", []), "with"),
        pytest=_texts(data.get("pytest", []), "pytest"),
        timeout=_positive(data.get("timeout", TIMEOUT)),
        figures=tuple(_figure(figure, place) for place, figure in enumerate(data.get("figures", ()), start=1)),
    )


def _figure(data: Any, place: int) -> Figure:
    where = f"figures, entry {place}"
    if not isinstance(data, dict):
        raise BadInput(f"{where}: each is a table of its own, [[figures]]")
    try:
        _check(data, _FIGURE_KEYS, _FIGURE_REQUIRED, "")
        if "check" in data and "block" in data:
            raise BadInput("check and block are two readings: name one")
        about = data["releases"]
        if isinstance(about, str) and about not in ("good", "bad"):
            raise BadInput(f"releases = {about!r} has to be 'good', 'bad' or a list of releases and specifiers")
        expected = parse_size(data["expected"], zero=True)
        return Figure(
            releases=about if isinstance(about, str) else _releases(about, "releases"),
            expected=expected,
            within=_within(data["tolerance"], expected),
            source=data["source"],
            check=data.get("check", "max_peak"),
            block=data.get("block", ""),
        )
    except BadInput as error:
        raise error.located(where) from None


def _within(tolerance: float | str, expected: int) -> int:
    if isinstance(tolerance, str):
        return parse_size(tolerance, zero=True)
    if not 0 <= tolerance < 1:
        raise BadInput(f"tolerance = {tolerance} has to be a part of the number (0.02 is 2 %) or a size ('1MiB')")
    return int(expected * tolerance)


def _check(data: dict[str, Any], known: dict[str, Any], required: Sequence[str], where: str) -> None:
    for key, value in data.items():
        if key not in known:
            raise BadInput(f"unknown key {key!r}: allowed are {', '.join(known)}")
        kinds = known[key] if isinstance(known[key], tuple) else (known[key],)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise BadInput(f"{key} = {value!r} has to be {' or '.join(_WORDS[kind] for kind in kinds)}")
    if missing := [key for key in required if key not in data or data[key] == ""]:
        raise BadInput(f"{', '.join(missing)} is missing")


def _releases(entries: Any, key: str, *, first_is_release: bool = False) -> tuple[str, ...]:
    texts = _texts(entries, key)
    for entry in texts:
        if not is_release(entry):
            try:
                SpecifierSet(entry)
            except InvalidSpecifier:
                raise BadInput(
                    f"{key}: {entry!r} is neither a release ('5.4.0') nor a specifier ('>=5.5,<5.9')"
                ) from None
    if first_is_release and texts and not is_release(texts[0]):
        raise BadInput(f"{key}: the first entry, {texts[0]!r}, has to be a release: it is the one for a quick run")
    return texts


def _texts(entries: Any, key: str) -> tuple[str, ...]:
    if wrong := [entry for entry in entries if not isinstance(entry, str) or not entry.strip()]:
        raise BadInput(f"{key}: {wrong[0]!r} has to be a text")
    return tuple(entries)


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise BadInput(f"timeout = {seconds} has to be a number of seconds above 0")
    return float(seconds)


def _matches(entry: str, release: str) -> bool:
    if is_release(entry):
        return Version(entry) == Version(release)
    return is_release(release) and SpecifierSet(entry).contains(release, prereleases=True)
