"""The folder in the user's cache."""

from __future__ import annotations

import pwd

import pytest

from pytest_memleak.caches import cache_folder
from pytest_memleak.errors import Unavailable


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(Unavailable, match=r"the engine has no cache folder: this user .* set XDG_CACHE_HOME"):
        cache_folder("the engine")
