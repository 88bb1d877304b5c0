"""Where a process was, from what faulthandler writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed

from pytest_memleak.ranks import stacks

C10D = str(Path(torch.distributed.__file__).parent / "distributed_c10d.py")


def written(*frames: tuple[str, int, str], before: str = "") -> str:
    lines = [f'  File "{file}", line {line} in {name}' for file, line, name in frames]
    return "\n".join([before, "Current thread 0x00007f (most recent call first):", *lines, ""])


def test_a_collective_is_named_with_the_users_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    other = 'Thread 0x1 (most recent call first):\n  File "/tmp/sampler.py", line 3 in loop\n'
    text = written(
        (C10D, 3151, "broadcast"),
        (str(Path(C10D).with_name("c10d_logger.py")), 83, "wrapper"),
        ("/tmp/tests/test_it.py", 14, "test_disagree"),
        (stacks.__file__, 1, "main"),
        before=other,
    )
    assert stacks.doing(text) == "in broadcast, called at tests/test_it.py:14"
    assert stacks.collective(stacks.doing(text)) == "broadcast, called at tests/test_it.py:14"


def test_of_collectives_within_each_other_it_is_the_one_that_was_called() -> None:
    text = written((C10D, 9, "_all_gather_base"), (C10D, 8, "all_gather_object"), ("/elsewhere/x.py", 1, "f"))
    assert stacks.doing(text).startswith("in all_gather_object, called at ")


def test_elsewhere_it_is_the_users_line_alone() -> None:
    text = written(("/elsewhere/train.py", 7, "step"), ("/elsewhere/test_it.py", 3, "test_it"))
    assert stacks.doing(text) == "at /elsewhere/train.py:7"
    assert stacks.collective(stacks.doing(text)) == ""


@pytest.mark.parametrize("text", ["", "Current thread 0x1 (most recent call first):\n  <no Python frame>\n"])
def test_nothing_is_made_up(text: str) -> None:
    assert stacks.doing(text) == ""
