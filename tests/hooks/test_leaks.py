"""Leaks that must be found, and clean tests that look guilty."""

from __future__ import annotations

import pytest

from tests.conftest import Run

PLANTED = {
    "global_list": ("KEPT.append(tensor)", "KEPT"),
    "class_attribute": ("Holder.last = tensor", "Holder.last"),
    "own_self": ("self.kept = tensor", "kept"),
    "closure": ("HOOKS['hook'] = lambda: tensor", "tensor"),
    "lru_cache": ("CACHED.append(cached(SIZE))", "cached"),
    "traceback": ("remember_failure(tensor)", "LAST_ERROR"),
    "autograd": ("LOSSES.append((tensor.requires_grad_() * 2).pow(2).sum())", "LOSSES"),
    "cycle": ("gc.disable(); node = Node(); node.me = node; node.tensor = tensor", "cycle"),
}


@pytest.mark.parametrize("size", [256, 256 * 1024, 256 * 1024**2])
@pytest.mark.parametrize("kind", PLANTED)
def test_planted_leak_is_found_and_its_holder_named(run: Run, kind: str, size: int) -> None:
    plant, holder = PLANTED[kind]
    result = run(
        f"""
        import functools, gc, pytest, torch

        SIZE = {size}
        KEPT, HOOKS, LOSSES, CACHED = [], {{}}, [], []
        LAST_ERROR = None

        class Holder: ...
        class Node: ...

        @functools.lru_cache
        def cached(size):
            return torch.ones(size)

        def remember_failure(tensor):
            global LAST_ERROR
            try:
                raise ValueError("kept")
            except ValueError as error:
                LAST_ERROR = error

        @pytest.fixture(autouse=True)
        def collection_on_again():
            yield
            # after the leak is read: the finalizers of wider fixtures come later
        @pytest.fixture(autouse=True, scope="module")
        def restore():
            yield
            gc.enable()

        class TestIt:
            @pytest.mark.max_leak
            def test_it(self):
                tensor = torch.ones(SIZE)
                {plant}
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*max_leak FAILED: still held after the test*", f"*{holder}*"])


CLEAN = """
    import functools, gc, logging, random, pytest, torch

    @pytest.fixture(scope="module")
    def model():
        return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))

    @pytest.fixture(scope="module")
    def optimizer(model):
        return torch.optim.AdamW(model.parameters())

    @pytest.fixture
    def batch():
        return torch.randn(16, 64)

    @pytest.fixture
    def generated():
        held = torch.randn(256, 256)
        yield held

    @functools.lru_cache
    def rotary_cache(size):
        return torch.arange(size).float()

    CACHE = {}
"""


def test_clean_tests_that_look_guilty_pass_in_any_order(run: Run) -> None:
    """100 tests in a random order: what is built once settles with a warm-up, everything else passes without."""
    tests = """
    SETTLING = pytest.mark.max_leak(warmups=1)
    STRICT = pytest.mark.max_leak

    def train(model, optimizer, batch):
        model(batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def first_call(model, optimizer, batch):
        torch.nn.functional.conv2d(torch.randn(1, 8, 32, 32), torch.randn(8, 8, 3, 3))
        torch.linalg.svd(torch.randn(64, 64))

    def cached(model, optimizer, batch):
        rotary_cache(random.choice([1024]))
        CACHE.setdefault("mask", torch.ones(64, 64))

    def logs_a_tensor(model, optimizer, batch):
        logging.getLogger("train").warning("loss %s", batch.sum())

    def catches(model, optimizer, batch):
        with pytest.raises(RuntimeError):
            batch @ torch.randn(3, 3)

    def cycle(model, optimizer, batch):
        node = {}
        node["me"], node["held"] = node, torch.ones(1024)

    GUILTY_LOOKING = {
        train: SETTLING, cached: SETTLING, first_call: STRICT, logs_a_tensor: STRICT, catches: STRICT, cycle: STRICT,
    }
    CASES = [pytest.param(body, marks=mark) for body, mark in GUILTY_LOOKING.items()] * 17
    random.Random(3).shuffle(CASES)

    @pytest.mark.parametrize("body", CASES)
    def test_it(body, model, optimizer, batch, generated):
        body(model, optimizer, batch)
    """
    result = run(CLEAN + tests)
    result.assert_outcomes(passed=102)


def test_lazily_built_cache_is_a_leak_without_a_warm_up(run: Run) -> None:
    result = run(
        CLEAN
        + """
    @pytest.mark.max_leak
    def test_it():
        rotary_cache(4096)
    """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*warmups=1*"])


def test_repeat_judges_growth_per_run_with_fresh_fixtures(run: Run) -> None:
    result = run(
        """
        import pytest, torch
        KEPT, SETUPS, BODIES = [], [], []

        @pytest.fixture
        def fresh():
            SETUPS.append(1)
            yield torch.ones(1024)

        @pytest.mark.max_leak("1KiB", repeat=3, warmups=1)
        def test_small_growth(fresh):
            KEPT.append(torch.ones(256, dtype=torch.uint8))

        def test_it_ran_four_times():
            assert len(SETUPS) == 4

        @pytest.mark.max_leak("1KiB", repeat=3)
        def test_growth(fresh):
            KEPT.append(torch.ones(2048, dtype=torch.uint8))

        @pytest.mark.max_leak(repeat=3)
        def test_fails_in_the_second_run(fresh):
            BODIES.append(1)
            assert len(BODIES) < 2
        """
    )
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*growth per run 2 KiB > limit 1 KiB*", "*growth of each run: 2 KiB, 2 KiB, 2 KiB*"])


def test_repeat_with_a_limit_in_terms_of_the_model_of_each_run(run: Run) -> None:
    result = run(
        """
        import pytest, torch
        import pytest_memleak
        KEPT = []

        @pytest.mark.max_leak("fp16_size", repeat=2, warmups=1)
        def test_green():
            torch.nn.Linear(64, 64, bias=False)

        @pytest.mark.max_leak("0.5 * fp16_size", repeat=2)
        def test_red():
            KEPT.append(torch.nn.Linear(64, 64, bias=False))

        @pytest.mark.max_leak("fp16_size", repeat=2)
        def test_watched():
            torch.nn.Linear(8, 8)
            pytest_memleak.watch(torch.nn.Linear(64, 64, bias=False))

        @pytest.mark.max_leak("fp16_size", repeat=2)
        def test_two_models():
            torch.nn.Linear(8, 8), torch.nn.Linear(64, 64)
        """
    )
    result.assert_outcomes(passed=2, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*there are 2 models*", "*growth per run 16 KiB > limit 4 KiB*"])


def test_host_leak_of_native_memory(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import ctypes, pytest
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        libc.malloc.argtypes = [ctypes.c_size_t]
        SIZE = 33 * 1024**2  # so much always comes from the system, and not from what other tests left in the heap

        @pytest.mark.max_leak("1MiB", of="host", repeat=4)
        def test_leaks():
            ctypes.memset(libc.malloc(SIZE), 1, SIZE)

        @pytest.mark.max_leak("1MiB", of="host", repeat=4)
        def test_clean():
            bytearray(SIZE)
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*max_leak FAILED: growth per run 3[0-9]* MiB > limit 1 MiB (committed on host*"])


def test_what_a_wider_fixture_allocates_is_not_the_tests(run: Run) -> None:
    result = run(
        """
        import pytest, torch

        @pytest.fixture(scope="module")
        def inner():
            return torch.ones(1024)

        @pytest.fixture(scope="class")
        def held(inner):
            return torch.ones(1024)

        @pytest.mark.max_leak
        def test_at_setup(held): ...

        @pytest.fixture(scope="session")
        def late():
            return torch.ones(1024)

        @pytest.mark.max_leak
        def test_in_the_body(request):
            request.getfixturevalue("late")

        @pytest.mark.max_leak
        def test_adds_to_it(late):
            late.more = torch.ones(1024)
        """
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*max_leak FAILED: still held after the test 4 KiB*", "*late*more*"])


def test_what_a_doctest_displayed_last_is_not_a_leak_and_what_it_keeps_is_one(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        '''
        import gettext
        import torch

        KEPT = []

        def makes(size):
            """
            >>> makes(3)
            tensor([1., 1., 1.])
            """
            return torch.ones(size)

        def keeps(size):
            """
            >>> keeps(3)
            >>> KEPT
            [tensor([1., 1., 1.])]
            """
            KEPT.append(torch.ones(size))

        def runs_last_and_displays_nothing():
            """
            >>> gettext.install("test_it")
            >>> held = torch.ones(3)
            """

        def test_translations_are_still_there():
            assert _("word") == "word"
        ''',
        "--doctest-modules",
        "--memleak-max-leak=0",
    )
    # The order is that of the names; then the test.
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*test_it.keeps*", "*max_leak FAILED*", "*module global test_it.KEPT*"])
