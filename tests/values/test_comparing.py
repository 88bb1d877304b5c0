"""What two ranks hold against each other: what is no value is not compared, and is no pass."""

from __future__ import annotations

import torch
from torch import nn

from pytest_memleak.values.comparing import differences
from pytest_memleak.values.summary import summary


def test_nothing_but_meta_is_nothing_compared() -> None:
    one = summary(nn.Linear(4, 4, device="meta"))
    assert differences([one], [one], 1) == ([], 0)


def test_meta_on_one_rank_is_a_difference() -> None:
    nowhere, there = summary(nn.Linear(4, 4, device="meta")), summary(nn.Linear(4, 4))
    found, compared = differences([there], [nowhere], 1)
    assert (len(found), compared) == (2, 2)
    other = summary(nn.Linear(4, 5, bias=False, device="meta"))
    assert differences([summary(nn.Linear(4, 4, bias=False, device="meta"))], [other], 1)[1] == 1  # of another shape


def test_values_beside_meta_are_compared() -> None:
    model = nn.Linear(4, 4)
    model.register_buffer("later", torch.ones(3, device="meta"))
    assert differences([summary(model)], [summary(model)], 1) == ([], 2)
