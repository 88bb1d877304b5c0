"""A torch that the simulated card does not fit: said with the releases that do, and never a wrong number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import Records

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a card of its own")

TEST = """
import pytest, torch

@pytest.mark.gpu_cap("1G")
@pytest.mark.max_peak("1MiB")
def test_it(card):
    torch.empty(1000, device=card.device)
"""
# What a release of torch might do: ask for a card's numbers under another name, have no card, refuse in another way.
CHANGES = {
    "torch.cuda.memory.memory_stats_as_nested_dict = lambda device=None: {}": (
        "torch.cuda.memory_allocated() is 0, where the card says *"
    ),
    "torch.cuda.is_available = lambda: False": "torch.cuda.is_available() is False, where the card says True",
    "torch.OutOfMemoryError = type('OutOfMemoryError', (Exception,), {})": "OutOfMemoryError: CUDA out of memory.*",
}
MESSAGE = f"torch {torch.__version__} does not take the simulated card, which is known to fit torch 2.6, *: "


@pytest.mark.parametrize("change", CHANGES)
def test_the_card_is_refused(change: str, pytester: pytest.Pytester, records: Records) -> None:
    pytester.makepyfile(changed_torch=f"import torch\n{change}\n", test_it=TEST)
    arguments = ("-p", "no:cacheprovider", "-p", "changed_torch")
    pytester.syspathinsert()
    result = pytester.runpytest_subprocess(*arguments, "--gpu-backend=simulated")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--gpu-backend on the command line: {MESSAGE}{CHANGES[change]}"])
    result = pytester.runpytest_subprocess(*arguments, "--memleak-json=out.json")
    (record,) = records().values()
    assert (record["card"]["backend"], record["card"]["instead"][:6]) == ("cpu", "torch ")
    result.assert_outcomes(passed=1)


def test_headers_that_have_changed(pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "c++ -Ddevice_guard_impl_registry=1")
    pytester.makepyfile(test_it=TEST)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--gpu-backend=simulated")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"*failed on the simulated card*error*; torch is {torch.__version__}, and this is known to fit 2.6, *"]
    )


def test_nobody_else_needs_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        changed_torch="import sys\nsys.modules['pytest_memleak.cards.simulated.torch_inside'] = None\n",
        test_it=TEST.replace('@pytest.mark.gpu_cap("1G")\n', ""),
    )
    pytester.syspathinsert()
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "changed_torch", "--gpu-backend=cpu")
    result.assert_outcomes(passed=1)
