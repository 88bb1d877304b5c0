from __future__ import annotations

import pytest

from pytest_memleak.settings.in_ci import ci_variable


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({}, ""),
        ({"CI": "true"}, "CI"),
        ({"CI": "1"}, "CI"),
        ({"CI": "woodpecker"}, "CI"),
        ({"BUILD_NUMBER": "7"}, "BUILD_NUMBER"),
        ({"CI": "False", "BUILD_NUMBER": "7"}, "BUILD_NUMBER"),
        *(({"CI": no}, "") for no in ("", " ", "0", "false", "False", "no", "off")),
    ],
)
def test_a_variable_that_denies_it_does_not_say_that_this_is_ci(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], variable: str
) -> None:
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ci_variable() == variable
