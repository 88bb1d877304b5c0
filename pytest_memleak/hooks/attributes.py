"""What this plugin writes on pytest's tests."""

from __future__ import annotations

import pytest

from pytest_memleak.errors import BadInput
from pytest_memleak.plan import Plan

PLAN = pytest.StashKey[Plan]()
BAD_MARK = pytest.StashKey[BadInput]()
WAITED = pytest.StashKey[str]()
"""For how long the test waited for its card, and who had it; empty if it did not."""
