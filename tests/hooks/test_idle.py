"""What a suite that does not ask for memory gets: nothing."""

from __future__ import annotations

import pytest


def test_torch_stays_out_and_nothing_is_said(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import sys

        def test_it(request):
            assert "torch" not in sys.modules
            assert not request.config.pluginmanager.hasplugin("memleak-measuring")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly")
    result.assert_outcomes(passed=1)
    assert "memleak" not in result.stdout.str().replace("plugins: ", "").split("collected")[1]


def test_skipped_test_does_not_import_torch(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import sys
        import pytest

        @pytest.mark.skip
        @pytest.mark.max_peak("1G")
        def test_skipped(): ...

        def test_it():
            assert "torch" not in sys.modules
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1, skipped=1)
