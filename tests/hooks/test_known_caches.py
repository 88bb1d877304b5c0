"""What is said of caches that are known, besides that they hold what leaked."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from pytest_memleak.fixes.parametrize_cache import FIX
from pytest_memleak.hooks import known_caches
from tests.conftest import Run

CACHED = "96 MiB in 8 tensors: module global torch.nn.utils.parametrize._cache[(1, 'up')] (and 7 more)"
OTHER = "1 KiB in 1 tensor: module global training.KEPT[0]"


def counted(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setitem(sys.modules, "torch.nn.utils.parametrize", SimpleNamespace(_cache_enabled=count))


def test_the_state_is_told_of_the_cache_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, 24)
    assert known_caches.state([OTHER]) == ()
    (told,) = known_caches.state([OTHER, CACHED])
    assert "until _cache_enabled is 0. It is 24" in told
    counted(monkeypatch, 0)
    assert known_caches.state([CACHED]) == ()
    monkeypatch.delitem(sys.modules, "torch.nn.utils.parametrize")
    assert known_caches.state([CACHED]) == ()


def test_the_advice_is_about_the_largest_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, 24)
    assert known_caches.advice([]) == ""
    assert known_caches.advice([OTHER, CACHED]) == ""
    fix = SimpleNamespace(needed=lambda: False, why=lambda: "bitsandbytes 0.49.2 has the bug")
    monkeypatch.setattr(vars(known_caches)["fixes"], "find", lambda name: fix)
    assert "registered with always_call=True" in known_caches.advice([CACHED, OTHER])
    fix.needed = lambda: True
    advice = known_caches.advice([CACHED, OTHER])
    assert advice.startswith(
        "bitsandbytes 0.49.2 has the bug: take a release without it, or pytest_memleak.fixes.apply("
    )
    counted(monkeypatch, 0)
    assert known_caches.advice([CACHED]) == ""


def test_in_a_failure(run_apart: Run) -> None:
    """Somebody's own hooks, on a release of bitsandbytes that has no part in it."""
    result = run_apart(
        """
        import pytest, torch
        from torch.nn.utils import parametrize

        class Doubled(torch.nn.Module):
            def forward(self, weight):
                return weight + weight

        @pytest.mark.max_leak
        def test_it():
            layer = torch.nn.Linear(64, 64, bias=False)
            parametrize.register_parametrization(layer, "weight", Doubled())
            parametrize._cache_enabled += 1
            with torch.no_grad():
                layer(torch.zeros(1, 64))
        """,
        "--gpu-backend=cpu",
    )
    result.assert_outcomes(failed=1)
    text = " ".join(result.stdout.str().split())
    assert "16 KiB in 1 tensor (float32 [64, 64]): module global torch.nn.utils.parametrize._cache[(" in text
    assert "until _cache_enabled is 0. It is 1: counted up and not down, by this test or before it" in text
    if not FIX.needed():
        assert "what to do: a hook that counts _cache_enabled down has to be registered with always_call=True" in text
        assert "settles with max_leak" not in text
