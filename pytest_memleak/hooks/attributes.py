"""What this plugin writes on pytest's reports, by the attribute's name, and on its tests."""

from __future__ import annotations

import pytest

from pytest_memleak.errors import BadInput
from pytest_memleak.plan import Plan

WITHHELD = "memleak_withheld"
"""The body passed, but the test is an error for want of a verdict."""
RECORD = "memleak"
"""On the report of a teardown: the test's record, as plain data."""

RANK = "memleak-rank"
"""The name of the plugin that only the process of a rank has."""

PLAN = pytest.StashKey[Plan]()
BAD_MARK = pytest.StashKey[BadInput]()
UNJUDGED = pytest.StashKey[str]()
"""Why a test was refused before it began."""
