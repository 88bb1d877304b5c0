"""What users get wrong: a marker is an error of its one test, an option is a usage error; nothing passes silently."""

from __future__ import annotations

import pytest

from pytest_memleak.support import at_least
from tests.conftest import Run

BAD_MARKERS = {
    "max_peak('16 gigs')": "*16 gigs*",
    "max_peak('24 MB per test')": "*24 MB per test*",
    "max_peak('-1G')": "*-1G*",
    "max_peak('0')": "*'0'*",
    "max_peak('nan')": "*nan*",
    "max_peak('fp17_size')": "*fp17_size*fp16_size*",
    "max_peak('fp16_size + 200')": "*a number of what*200MiB*",
    "max_peak()": "*missing a required argument: 'limit'*max_peak(limit, *",
    "max_peak('1G', off='reserved')": "*unexpected keyword argument 'off'*",
    "max_peak('1G', of='resident')": "*of='resident' is not one of allocated*",
    "max_peak('1G', device=1.5)": "*device=1.5*",
    "max_peak('1G', rank='first')": "*rank='first'*",
    "max_leak(repeat=0)": "*repeat=0*",
    "max_leak(warmups=-1)": "*warmups=-1*",
    "max_leak('1MiB', of='host')": "*repeat=3*",
    "max_leak('1KiB', of='host', repeat=3)": "*tighter*256 KiB*",
    "gpu_cap('0')": "*'0'*",
    "gpu_cap('16G', told='no')": "*told='no'*",
    "gpu_cap('16G', free='20G')": "*free='20G'*",
    "gpu_cap()": "*missing a required argument: 'size'*",
    "max_peak('1G', warmup='no')": "*warmup='no': write True or False*",
    "max_peak('1G', of='reserved', warmup=False)": "*warmup=False cannot be had for of='reserved'*stays reserved*",
    "allocator_warmup('fit')": "*'fit' is not one of skipped, fits, ran*",
    "allocator_warmup()": "*missing a required argument: 'expected'*",
    "memleak_off('please')": "*please*",
}


@pytest.mark.parametrize("mark", BAD_MARKERS)
def test_bad_marker_is_an_error_of_its_test_and_says_where(run_on_cpu: Run, mark: str) -> None:
    result = run_on_cpu(
        f"""
        import pytest

        def test_before(): ...

        @pytest.mark.parametrize("x", [1])
        @pytest.mark.{mark}
        def test_bad(x): ...

        @pytest.mark.xfail
        @pytest.mark.{mark}
        def test_bad_and_expected_to_fail(): ...

        @pytest.mark.max_peak("1G")
        def test_after(): ...
        """
    )
    result.assert_outcomes(passed=2, errors=2)
    name = mark.partition("(")[0]
    result.stdout.fnmatch_lines([f"test_it.py:6: @pytest.mark.{name}{BAD_MARKERS[mark]}"])


def test_bad_marker_under_xdist(run_both_ways: Run) -> None:
    result = run_both_ways(
        """
        import pytest

        @pytest.mark.max_peak("16 gigs")
        def test_bad(): ...

        def test_good(): ...
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["test_it.py:3: @pytest.mark.max_peak: *16 gigs*"])


def test_marker_twice_on_one_node(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import pytest

        @pytest.mark.max_peak("1G")
        @pytest.mark.max_peak("2G")
        def test_twice(): ...

        @pytest.mark.max_peak("1G")
        class TestInner:
            @pytest.mark.max_peak("2G")
            def test_closest(self): ...
        """
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*stands 2 times on 'test_twice': keep one*"])


def test_marker_on_a_fixture(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import pytest

        @pytest.fixture
        @pytest.mark.max_peak("1G")
        def model(): ...

        def test_it(model): ...
        """
    )
    # pytest 9 refuses any marker on a fixture when it reads the module; before that it is this plugin's error.
    assert result.parseoutcomes().get("errors") == 1
    result.stdout.fnmatch_lines(["*fixture*"])


@pytest.mark.skipif(at_least(pytest.__version__, "9"), reason="pytest 9 refuses the module")
def test_marker_on_a_fixture_before_pytest_9(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import pytest

        @pytest.mark.max_peak("1G")
        @pytest.fixture(scope="module", name="checkpoint")
        def model(): ...

        def test_it(checkpoint): ...

        @pytest.mark.xfail
        def test_expected_to_fail(checkpoint): ...

        @pytest.mark.usefixtures("memory")
        def test_asked_for_in_the_body(request):
            request.getfixturevalue("checkpoint")

        class TestInner:
            @pytest.mark.filterwarnings("ignore")
            @pytest.fixture
            def others(self): ...

            @pytest.fixture
            @pytest.mark.max_leak
            def inner(self): ...

            def test_others(self, others): ...
            def test_inner(self, inner): ...
        """,
        "-rE",
    )
    result.assert_outcomes(passed=1, failed=1, errors=3, warnings=None)
    said = "@pytest.mark.max_peak stands on the fixture 'checkpoint', where it does nothing: put it on the tests*"
    result.stdout.fnmatch_lines([f"test_it.py:3: {said}", f"test_it.py:3: {said}", f"test_it.py:3: {said}"])
    result.stdout.fnmatch_lines(["test_it.py:21: @pytest.mark.max_leak stands on the fixture 'inner'*"])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--gpu-cap=16 gigs", "*--gpu-cap on the command line: *16 gigs*"),
        ("--gpu-cap=0", "*--gpu-cap on the command line: *'0'*"),
        ("--gpu-backend=gpu", "*--gpu-backend on the command line: 'gpu' is not one of auto, real*"),
        ("--gpu-backend=simulated:h1000", "*'h1000' is no card that can be simulated: *h100, h200, *"),
        ("--gpu-backend=simulated:", "*names no card after the colon*"),
        (
            "--gpu-backend=simulated:24G",
            "*'24G' is a size*: *--gpu-backend=simulated with --gpu-cap=24G",
        ),
        ("--gpu-backend=simulated:99xh100", "*1 to 8 cards can be simulated*"),
        ("--memleak-mode=strict", "*--memleak-mode on the command line: 'strict' is not one of enforce, report*"),
        ("--memleak-max-peak=16 gigs", "*--memleak-max-peak on the command line: *16 gigs*"),
        ("--memleak-json=test_it.py/out.json", "*--memleak-json*test_it.py*"),
    ],
)
def test_bad_option_is_a_usage_error(run_on_cpu: Run, option: str, said: str) -> None:
    result = run_on_cpu("def test_it(): ...", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])


def test_bad_ini_and_environment_name_their_place(
    run_on_cpu: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\nmemleak_max_peak = 16 gigs\n")
    result = run_on_cpu("def test_it(): ...")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*memleak_max_peak in tox.ini: *16 gigs*"])
    monkeypatch.setenv("MEMLEAK_MAX_PEAK", "17 gigs")
    result = run_on_cpu("def test_it(): ...")
    result.stderr.fnmatch_lines(["*environment variable MEMLEAK_MAX_PEAK: *17 gigs*"])


def test_marker_beats_flag_beats_environment_beats_ini(
    run_on_cpu: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
        import pytest, torch

        def test_default():
            torch.ones(8 * 1024**2, dtype=torch.uint8)
    """
    pytester.makeini("[pytest]\nmemleak_max_peak = 1MiB\n")
    run_on_cpu(text).assert_outcomes(failed=1)
    monkeypatch.setenv("MEMLEAK_MAX_PEAK", "16MiB")
    run_on_cpu(text).assert_outcomes(passed=1)
    run_on_cpu(text, "--memleak-max-peak=2MiB").assert_outcomes(failed=1)
    run_on_cpu(
        text.replace("def test", '@pytest.mark.max_peak("16MiB")\n        def test'), "--memleak-max-peak=2MiB"
    ).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("max_peak('1G', of='reserved')", "*of='reserved' cannot be read on cpu: it tells allocated*"),
        ("max_leak(of='reserved')", "*of='reserved' cannot be read on this card: it tells allocated*"),
        ("max_peak('1G', device='cuda:1')", "*device='cuda:1' is not on this card, which has cpu*"),
        ("max_peak('1G', rank=0)", "*rank=0*"),
        ("max_peak('fp16_size', model='fixture:llama')", "*the test uses no fixture 'llama'*"),
        ("max_peak('fp16_size', model='no/such/checkpoint')", "*no/such/checkpoint*"),
        ("max_peak('fp16_size', model=3)", "*3 is no model*"),
    ],
)
def test_what_this_card_cannot_tell_is_inconclusive(run_on_cpu: Run, mark: str, said: str) -> None:
    result = run_on_cpu(
        f"""
        import pytest

        @pytest.mark.{mark}
        def test_it(): ...
        """
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([said])


def test_first_device_of_any_card_is_what_the_cpu_stands_in_for(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import pytest, torch

        @pytest.mark.max_peak("4MiB", device="cuda:0")
        def test_it():
            torch.ones(8 * 1024**2, dtype=torch.uint8)
        """
    )
    result.assert_outcomes(failed=1)


def test_no_torch_installed(pytester: pytest.Pytester) -> None:
    """In an interpreter of its own, in which nobody finds torch."""
    pytester.makepyfile(
        sitecustomize="""
        import sys
        sys.modules["torch"] = None
        """,
        test_it="""
        import pytest

        @pytest.mark.max_peak("1G")
        def test_asks(): ...

        def test_does_not(): ...
        """,
    )
    pytester.syspathinsert()
    result = pytester.runpytest_subprocess("--gpu-cap=16G", "--gpu-backend=auto")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*torch is not installed*pip install*"])


def test_torch_too_old(run_on_cpu: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import pytest_memleak.support

    monkeypatch.setattr(pytest_memleak.support, "TORCH_FLOOR", "99.1")
    pytest_memleak.support.require_torch.cache_clear()
    result = run_on_cpu("import pytest\n@pytest.mark.max_peak('1G')\ndef test_it(): ...")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*too old to be measured: install torch 99.1 or later*"])


def test_real_card_is_asked_for_and_there_is_none(run_on_cpu: Run) -> None:
    import torch

    if torch.accelerator.is_available():
        pytest.skip("this machine has one")
    result = run_on_cpu(
        "import pytest\n@pytest.mark.max_peak('1G')\ndef test_it(): ...\ndef test_other(): ...", "--gpu-backend=real"
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*--gpu-backend=real, but torch * finds no accelerator*"])
