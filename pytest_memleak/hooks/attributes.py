"""What this plugin writes on pytest's tests."""

from __future__ import annotations

import pytest

from pytest_memleak.errors import BadInput
from pytest_memleak.plan import Plan

PLAN = pytest.StashKey[Plan]()
BAD_MARK = pytest.StashKey[BadInput]()
