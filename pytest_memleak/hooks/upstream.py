"""The bugs and fixes of a test's markers, in force from before its fixtures until after their finalizers."""

from __future__ import annotations

from contextlib import ExitStack

from pytest_memleak import fixes
from pytest_memleak.fixes.frame import Applied
from pytest_memleak.plan import Plan


class PatchedUpstream:
    def __init__(self, plan: Plan) -> None:
        self.notes: tuple[str, ...] = ()
        """What was patched, or why nothing was, for the test's record."""
        self._plan = plan
        self._undo = ExitStack()

    def begin(self) -> None:
        """The bugs first: a fix mends what they leave."""
        done: list[Applied] = []
        with ExitStack() as undo:
            if bugs := self._plan.bugs:
                done += [undo.enter_context(fixes.find(name).bug(bugs.flavour)) for name in bugs.names]
            if mended := self._plan.fixes:
                done += [undo.enter_context(fixes.find(name).fixed()) for name in mended.names]
            self._undo = undo.pop_all()
        self.notes = tuple(f"upstream: {applied}" for applied in done)

    def end(self) -> None:
        self._undo.close()
