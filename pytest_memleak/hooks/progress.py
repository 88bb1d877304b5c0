"""A test's memory while it runs, on a terminal: when the line may be drawn, and of what.

pytest captures what the program prints, and lets go of the terminal only in between: all that it and its plugins
(results, live logs, a debugger) write, they write while the capture is suspended. So the line is drawn while pytest
captures, and gone whenever it does not. Checked on pytest 8.3 and 9.2.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_memleak.report.progress import AFTER, Progress, drawn, erased, line
from pytest_memleak.settings import NEVER, Settings
from pytest_memleak.settings.in_ci import ci_variable
from pytest_memleak.upstream.patches import Patch
from pytest_memleak.workers.worker import is_worker

if TYPE_CHECKING:
    from pytest_memleak.hooks.running import RunningTest
    from pytest_memleak.meters.timeline import Curve
    from pytest_memleak.plan import Budget

_LEAST_COLUMNS = 20


def live_line(config: pytest.Config, settings: Settings) -> LiveLine | None:
    """None where nobody watches, or where the line would get between what others write."""
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    capture = config.pluginmanager.getplugin("capturemanager")
    if settings.progress == NEVER or is_worker(config) or reporter is None or capture is None:
        return None
    # With "no" and "tee-sys" the program writes to the terminal itself; with "sys" what it starts does.
    if config.getoption("capture") != "fd" or config.get_verbosity() < 0 or not reporter._tw._file.isatty():
        return None
    if os.environ.get("TERM") == "dumb" or ci_variable():
        return None
    try:
        return LiveLine(reporter._tw, capture)
    except OSError:
        return None  # a terminal that is no file: whoever embeds pytest shows it in his own way


class LiveLine:
    """The line below the one that pytest is on. Others may write whenever it is not drawn, and then it is not there."""

    def __init__(self, writer: Any, capture: Any) -> None:
        # While pytest captures, the descriptor that its writer has leads to the captured text.
        self._terminal = os.dup(writer._file.fileno())
        self._encoding = getattr(writer._file, "encoding", None) or "utf-8"
        self._writer = writer
        self._captured = False
        self._wanted = False
        self._drawn_at: int | None = None
        # Of the thread that reads memory and the program's; a time-out's signal handler may suspend the capture, too.
        self._lock = threading.RLock()
        self._undo = contextlib.ExitStack()
        for name, captured in (
            ("suspend_global_capture", False),
            ("stop_global_capturing", False),
            ("resume_global_capture", True),
        ):
            self._undo.enter_context(Patch(capture, name, self._noting(captured)))

    def draw(self, words: Callable[[int], str]) -> None:
        """`words`: the text for a number of columns."""
        with self._lock:
            if not (self._captured and self._wanted):
                return
            size = os.get_terminal_size(self._terminal)
            column = self._column(size.columns)
            if size.columns < _LEAST_COLUMNS or size.lines < 2 or column is None:
                return
            # Not the last column: a terminal that has filled it behaves in one of several ways.
            self._write(drawn(words(size.columns - 1), column))
            self._drawn_at = column

    def show(self) -> None:
        with self._lock:
            self._wanted = True

    def hide(self) -> None:
        with self._lock:
            self._wanted = False
            self._erase()

    def close(self) -> None:
        with self._lock:
            self.hide()
            self._undo.close()
            if self._terminal >= 0:
                os.close(self._terminal)
                self._terminal = -1

    def _column(self, columns: int) -> int | None:
        """Where the cursor is; None where that cannot be told, after a line that was filled to its end."""
        width = self._writer.width_of_current_line
        return None if width and columns and width % columns == 0 else width % max(columns, 1)

    def _erase(self) -> None:
        if self._drawn_at is not None:
            self._write(erased(self._drawn_at))
            self._drawn_at = None

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal was closed: nobody watches any more
            os.write(self._terminal, text.encode(self._encoding, "replace"))

    def _noting(self, captured: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
        def wrap(original: Callable[..., None]) -> Callable[..., None]:
            def noting(*args: Any, **kwargs: Any) -> None:
                if not captured:
                    self._note(False)
                original(*args, **kwargs)
                if captured:
                    self._note(True)

            return noting

        return wrap

    def _note(self, captured: bool) -> None:
        with self._lock:
            self._captured = captured
            if not captured:
                self._erase()


class TestProgress:
    """What a test's line says. Called on the thread that reads the levels: it asks the program for nothing."""

    __test__ = False  # not a test class, whatever pytest makes of the name

    def __init__(self, test: RunningTest, live: LiveLine) -> None:
        self._test = test
        self._live = live

    def __call__(self, second: float, curves: Sequence[Curve]) -> None:
        if second > AFTER:
            shown = self.progress(second, curves)
            self._live.draw(lambda columns: line(shown, columns))

    def progress(self, second: float, curves: Sequence[Curve]) -> Progress:
        """Of the curve that is nearest to its limit; without any, of the highest."""
        found = [self._of(second, curve, curves) for curve in curves]
        return max(found, key=lambda one: (one.limit is not None, one.peak / one.limit if one.limit else one.peak))

    def _of(self, second: float, curve: Curve, curves: Sequence[Curve]) -> Progress:
        source = curve.source
        host = source.device == "host"
        several = sum(other.source.kind == source.kind and other.source.device != "host" for other in curves) > 1
        budget = self._budget(source.device, source.kind)
        return Progress(
            test=self._test.item.name,
            seconds=second,
            now=curve.now - curve.base if host else curve.now,
            peak=curve.grown if host else curve.highest,
            limit=None if budget is None else self._test.explaining.known_limit(budget),
            device=source.device if several and not host else "",
            host=host,
            predicted=source.predicted,
        )

    def _budget(self, device: str, kind: str) -> Budget | None:
        plan = self._test.plan
        if device == "host":
            return plan.host_peak
        peak = plan.peak
        if peak is None or kind != (peak.of or "allocated") or device not in self._test.info.devices:
            return None
        named = peak.device is None or str(peak.device) in (device, device.partition(":")[2])
        return peak if named else None
