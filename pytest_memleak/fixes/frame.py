"""What every fix is: what it mends and where that stands, the releases that need it, and two context managers.

``fixed()`` mends what is installed, and does nothing where there is nothing to mend. ``bug()`` puts the upstream bug
back on a release that has it no more, so that red can be shown everywhere. Both may be entered several times, by
several threads and in any order; the fix always lies over the bug, and both put back what they found.

A fix is written as functions that give patches (`pytest_memleak.upstream.patches.Patch`), which refuse what they do
not recognise. The functions import what they patch; the file itself must not, since it is also read for its texts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import metadata
from types import TracebackType

from packaging.specifiers import SpecifierSet

from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.upstream.patches import Unrecognised

Patches = Callable[[], Iterable[AbstractContextManager[object]]]


class Applied:
    """What a fix did: `patched` is empty where upstream needs none."""

    def __init__(self, name: str, patched: tuple[str, ...], why: str) -> None:
        self.name = name
        self.patched = patched
        self.why = why
        self._undo: Callable[[], None] | None = None

    def __str__(self) -> str:
        done = f"patched {', '.join(self.patched)}" if self.patched else "nothing is patched"
        return f"{self.name}: {done} ({self.why})"

    def undo_with(self, undo: Callable[[], None]) -> None:
        self._undo = undo

    def undo(self) -> None:
        """Takes back what `apply` did; once is enough, and a second time does nothing."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


class Fix:
    def __init__(
        self,
        name: str,
        *,
        mends: str,
        links: Iterable[str],
        affected: Mapping[str, str],
        patches: Patches,
        bugs: Mapping[str, Patches],
    ) -> None:
        """`affected`: the releases of each package, as specifiers; one that matches is enough. Empty for a bug that no
        release of a package has: it is put into what this package has of its own, and is there under `bug()` alone.

        `patches` is called where the fix is needed. `bugs`: the ways in which upstream had it, the first is the usual
        one; each gives no patches on a release that has it by itself.
        """
        self.name = name
        self.mends = mends
        self.links = tuple(links)
        self.affected = dict(affected)
        self.flavours = tuple(bugs)
        self._patches = patches
        self._bugs = dict(bugs)
        self._lock = threading.RLock()
        # What was asked for, and what was done about it.
        self._fixers = 0
        self._wanted_bugs: list[str] = []
        self._bug_in_force: str | None = None
        self._bug = ExitStack()
        self._bug_patched: tuple[str, ...] = ()
        self._mend = ExitStack()
        self._mend_patched: tuple[str, ...] = ()

    def needed(self) -> bool:
        """Whether what is installed has the bug, by its release or because `bug()` put it back."""
        return self._bug_in_force is not None or bool(self._affected_here())

    def why(self) -> str:
        """Whether what is installed has the bug, in words."""
        if self._bug_in_force is not None:
            return f"{self._installed()}, where the bug was put back"
        if found := self._affected_here():
            return f"{', '.join(found)} has the bug"
        return f"{self._installed()} does not need it: the bug is in {self._written_for() or 'no release'}"

    @property
    def installed(self) -> bool:
        return not self.affected or any(_version(package) for package in self.affected)

    @contextmanager
    def fixed(self) -> Iterator[Applied]:
        """Upstream without the bug, until the end. Refuses, with `Unrecognised`, one that it was not written for."""
        with self._lock:
            self._fixers += 1
            try:
                self._reconcile()
            except BaseException:
                self._fixers -= 1
                raise
            applied = Applied(self.name, self._mend_patched, self.why())
        try:
            yield applied
        finally:
            with self._lock:
                self._fixers -= 1
                self._reconcile()

    @contextmanager
    def bug(self, flavour: str | None = None) -> Iterator[Applied]:
        """Upstream with the bug, until the end, whatever its release. Of several flavours the one asked for last."""
        wanted = self.flavour(flavour)
        with self._lock:
            self._wanted_bugs.append(wanted)
            try:
                self._reconcile()
            except BaseException:
                self._wanted_bugs.pop()
                self._reconcile()
                raise
            why = "the bug is back" if self._bug_patched else "it has the bug by itself"
            applied = Applied(f"bug {self.name}", self._bug_patched, f"{self._installed()}: {why}")
        try:
            yield applied
        finally:
            with self._lock:
                # The last of its name: which of several equal ones goes makes no difference.
                place = len(self._wanted_bugs) - 1 - self._wanted_bugs[::-1].index(wanted)
                del self._wanted_bugs[place]
                self._reconcile()

    def flavour(self, asked: str | None) -> str:
        """The one of that name, or the usual one."""
        if asked is None:
            return self.flavours[0]
        if asked not in self._bugs:
            raise BadInput(f"the bug {self.name} has no flavour {asked!r}; it has {', '.join(self.flavours)}")
        return asked

    def _reconcile(self) -> None:
        """Makes what is patched what is wanted. The fix is put on last: it mends what the bug left."""
        wanted = self._wanted_bugs[-1] if self._wanted_bugs else None
        mending = self._fixers > 0 and (wanted is not None or bool(self._require_affected_here()))
        if wanted != self._bug_in_force:
            self._unmend()
            # Forgotten first: if something goes wrong at the end of a patch, the next one must not be left out.
            self._bug_patched, self._bug_in_force = (), None
            self._bug.close()
            if wanted is not None:
                self._bug_patched = self._entered(self._bugs[wanted], self._bug)
                self._bug_in_force = wanted
        if not mending:
            self._unmend()
        elif not self._mend_patched:
            self._mend_patched = self._entered(self._patches, self._mend)

    def _unmend(self) -> None:
        self._mend_patched = ()
        self._mend.close()

    def _entered(self, patches: Patches, into: ExitStack) -> tuple[str, ...]:
        self._require_installed()
        try:
            with ExitStack() as undo:
                entered = []
                for patch in patches():
                    undo.enter_context(patch)
                    entered.append(str(patch))
                into.push(undo.pop_all().__exit__)
        except Unrecognised as error:
            raise Unrecognised(
                f"{self.name} does not recognise {self._installed()}, and left it as it is: {error}. "
                f"It was written for {self._written_for() or 'this release alone'}"
            ) from error
        return tuple(entered)

    def _affected_here(self) -> list[str]:
        """The installed packages that have the bug, with their releases."""
        return [
            f"{package} {version}"
            for package, releases in self.affected.items()
            if (version := _version(package)) is not None and SpecifierSet(releases).contains(version, prereleases=True)
        ]

    def _require_affected_here(self) -> list[str]:
        self._require_installed()
        return self._affected_here()

    def _require_installed(self) -> None:
        if not self.installed:
            raise Unavailable(f"{self.name} concerns {', '.join(self.affected)}, which is not installed here")

    def _installed(self) -> str:
        found = [f"{package} {_version(package) or '(not installed)'}" for package in self.affected]
        return ", ".join(found) or "pytest-memleak"

    def _written_for(self) -> str:
        return ", ".join(f"{package} {releases}" for package, releases in self.affected.items())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
