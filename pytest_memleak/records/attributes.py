"""What this plugin writes on pytest's reports, by the attribute's name, and its name in the process of a rank."""

from __future__ import annotations

WITHHELD = "memleak_withheld"
"""The body passed, but the test is an error for want of a verdict."""
RECORD = "memleak"
"""On the report of a teardown: the test's record, as plain data."""
RANK = "memleak-rank"
"""The name of the plugin that only the process of a rank has."""
