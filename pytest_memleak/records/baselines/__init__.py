"""Peaks of tests as they were, in a file that is committed beside them. Nothing here knows pytest or torch.

`Baseline.read(path).peak_of(nodeid, backend, card_of(name, cap), torch)` is all that a reader needs.
"""

from pytest_memleak.records.baselines.entry import Entry, Key, card_of
from pytest_memleak.records.baselines.file import Baseline

__all__ = ["Baseline", "Entry", "Key", "card_of"]
