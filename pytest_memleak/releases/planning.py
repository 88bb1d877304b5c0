"""From what was asked for to runs: releases of packages that are crossed, or cases."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from pytest_memleak.errors import BadInput, MemleakError
from pytest_memleak.releases.case import TIMEOUT, Case, is_release
from pytest_memleak.releases.cell import Environment, Run
from pytest_memleak.releases.index import Release, chosen

Known = Callable[[str], list[Release]]
"""All releases of a package, as the index tells them."""

_VARIED = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*([=<>!~].*)")
_LIST = re.compile(r"==\s*([^*=<>!~]+)")


@dataclass(frozen=True)
class Base:
    """What all environments have besides what is varied."""

    requirements: tuple[str, ...] = ()
    python: str = ""
    timeout: float | None = None
    """None: nobody has said one, so a case's own counts, or else that of all."""

    def environment(self, versions: dict[str, str], further: Sequence[str] = ()) -> Environment:
        asked = (*further, *self.requirements)
        names = {canonicalize_name(name) for name in versions} | {_name(one) for one in asked}
        return Environment(
            tuple((canonicalize_name(package), release) for package, release in versions.items()),
            (*asked, *as_here(names)),
            self.python,
        )


def as_here(named: set[str]) -> list[str]:
    """pytest and torch as they are here, unless somebody names another: a torch is GBs, and nobody asked for one."""
    here = []
    for name in ("pytest", "torch"):
        if name not in named:
            try:
                # With its local part: 2.13.0 alone might be the build for CUDA where +cpu is installed.
                here.append(f"{name}=={metadata.version(name)}")
            except metadata.PackageNotFoundError:
                continue
    return here


@dataclass(frozen=True)
class Varied:
    """``transformers==5.1.0,5.2.0``, or ``transformers>=5.0,<5.6``."""

    package: str
    releases: tuple[str, ...] = ()
    specifier: str = ""


def varied(text: str) -> Varied:
    match = _VARIED.fullmatch(text)
    if not match:
        raise BadInput(f"{text!r} varies nothing: write 'transformers==5.1.0,5.2.0' or 'transformers>=5.0,<5.6'")
    package, rest = canonicalize_name(match[1]), match[2].strip()
    if listed := _LIST.fullmatch(rest):
        releases = [one.strip() for one in listed[1].split(",") if one.strip()]
        if wrong := [one for one in releases if not is_release(one)]:
            raise BadInput(f"{text!r}: {wrong[0]!r} is no release: write {package}==5.1.0,5.2.0")
        return Varied(package, tuple(dict.fromkeys(releases)))
    chosen((), rest)  # refuses what is no specifier
    return Varied(package, specifier=rest)


def releases_of(one: Varied, known: Known, *, pre: bool, yanked: bool, minors: bool) -> list[str]:
    if one.releases:
        return list(one.releases)
    found = chosen(known(one.package), one.specifier, pre=pre, yanked=yanked, minors=minors)
    if not found:
        raise BadInput(f"no release of {one.package} matches {one.specifier!r}")
    return [str(release) for release in found]


def crossed(releases: dict[str, list[str]], arguments: Sequence[str], base: Base) -> list[Run]:
    """Every release of one package with every release of the others."""
    return [one_run(versions, arguments, base) for versions in _combinations(releases)]


def _combinations(releases: dict[str, list[str]]) -> list[dict[str, str]]:
    return [dict(zip(releases, one, strict=True)) for one in itertools.product(*releases.values())]


def one_run(versions: dict[str, str], arguments: Sequence[str], base: Base, attempt: int = 1) -> Run:
    # What was to be run, where no test is known: the arguments that are no options.
    named = tuple(one for one in arguments if "::" in one or one.endswith(".py")) or (" ".join(arguments),)
    return Run(base.environment(versions), tuple(arguments), named, timeout=base.timeout or TIMEOUT, attempt=attempt)


def of_cases(
    cases: Sequence[Case],
    known: Known,
    base: Base,
    *,
    quick: bool = False,
    releases: dict[str, list[str]] | None = None,
) -> list[Run]:
    """`releases`, by package: in place of a case's own, if it is about that package, and crossed with them if not."""
    return [run for case in cases for run in _of_case(case, known, base, quick=quick, varied=releases or {})]


def _of_case(case: Case, known: Known, base: Base, *, quick: bool, varied: dict[str, list[str]]) -> list[Run]:
    runs = []
    file, _, test = case.test.partition("::")
    package = canonicalize_name(case.package)
    further = [one for one in case.requirements if _name(one) not in varied]
    for release, good, cannot in _tried(case, known, quick=quick, instead=varied.get(package)):
        own = {package: [release]}
        # What is varied comes in the order that it was asked for in, so that cases share environments.
        for versions in _combinations(varied | own if package in varied else own | varied):
            runs.append(
                Run(
                    base.environment(versions, further),
                    (*case.pytest, f"{case.folder / file}::{test}"),
                    (case.test,),
                    case=case,
                    good=good,
                    timeout=base.timeout or case.timeout,
                    cannot=cannot,
                )
            )
    # From the oldest release to the newest, whichever it is to be: that is how one reads it.
    return sorted(runs, key=lambda run: [_order(release) for _, release in run.environment.versions])


def _tried(case: Case, known: Known, *, quick: bool, instead: list[str] | None) -> list[tuple[str, bool, str]]:
    """Releases of a case's own package, each with whether it is good, and why it cannot be tried."""
    if instead is not None:
        return [(release, case.is_good(release), "") for release in instead]
    return [
        (release, good, cannot)
        for good, entries in ((True, case.good), (False, case.bad))
        for release, cannot in _expanded(case, entries[:1] if quick else entries, known)
    ]


def _expanded(case: Case, entries: Sequence[str], known: Known) -> list[tuple[str, str]]:
    """Releases, each with why it cannot be tried. What stands by itself somewhere is not taken from a specifier."""
    single = {Version(entry) for entry in (*case.good, *case.bad) if is_release(entry)}
    found: dict[str, str] = {}
    for entry in entries:
        if is_release(entry):
            found[entry] = ""
            continue
        try:
            releases = chosen(known(case.package), entry, minors=True)
            found |= {str(one): "" for one in releases if one.version not in single}
        except MemleakError as error:
            found[entry] = str(error)
    return list(found.items())


def between(known: Sequence[Release], good: str, bad: str, *, pre: bool, yanked: bool) -> list[str]:
    """The ends, whatever they are, and what was released between them, from the older to the newer."""
    ends = sorted((Version(good), Version(bad)))
    # By order alone: as a specifier, >1.0 leaves out 1.0.post1, and <2.0 leaves out 2.0rc1 whatever one says.
    inside = [one for one in chosen(known, "", pre=pre, yanked=yanked) if ends[0] < one.version < ends[1]]
    # One release built for several cards (2.12.0+cpu, 2.12.0+cu126) is several versions; those of the ends' kind count.
    builds = {end.local for end in ends}
    comparable = [one for one in inside if one.version.local in builds]
    others = [one for one in inside if one.version.public not in {end.public for end in ends}]
    if others and not comparable:
        raise BadInput(
            f"between {ends[0]} and {ends[1]} there are only other builds, such as {others[0]}: write the ends as "
            "builds of one kind, or name the releases with --among"
        )
    return [str(ends[0]), *map(str, comparable), str(ends[1])]


def again(run: Run, attempt: int) -> Run:
    return replace(run, attempt=attempt)


def _order(release: str) -> tuple[int, Version | str]:
    try:
        return 0, Version(release)
    except InvalidVersion:
        return 1, release


def _name(requirement: str) -> str:
    try:
        return canonicalize_name(Requirement(requirement).name)
    except InvalidRequirement:
        return ""  # a path or an address
