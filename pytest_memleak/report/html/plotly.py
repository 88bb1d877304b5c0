"""The library that draws the charts: plotly's own bundle of JavaScript, as its Python package brings it.

plotly is never imported, which would take a second: only its file is read.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

from pytest_memleak.errors import Unavailable
from pytest_memleak.support import at_least

PLOTLY_FLOOR = "6"
_INSTALL = f'pip install "plotly>={PLOTLY_FLOOR}"'


def find_plotly() -> Path:
    """The bundle, or what to do where there is none."""
    try:
        spec = importlib.util.find_spec("plotly")
        version = metadata.version("plotly")
    except (ImportError, ValueError):  # hidden on purpose, or not installed; PackageNotFoundError is an ImportError
        spec, version = None, ""
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(f"the page's charts are drawn by plotly, which is not installed: {_INSTALL}")
    if not at_least(version, PLOTLY_FLOOR):
        raise Unavailable(f"plotly {version} is too old to draw the page's charts: {_INSTALL}")
    bundle = Path(spec.submodule_search_locations[0], "package_data", "plotly.min.js")
    if not bundle.is_file():
        raise Unavailable(f"plotly {version} is installed without its bundle {bundle}: {_INSTALL} --force-reinstall")
    return bundle
