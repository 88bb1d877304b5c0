"""``--memleak-html=PATH``: a page that shows every test's verdict and the picture of why; one file, for any browser."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_memleak.records.collected import Collected
from pytest_memleak.records.run import RunInfo
from pytest_memleak.report import files
from pytest_memleak.report.html.page import page


def write(path: str | os.PathLike[str], collected: Collected, run: RunInfo, folder: Path) -> None:
    """`folder`: what relative paths in notes start from."""
    files.write(path, page(collected, run, folder, Path(path)).encode("utf-8"), "page")
