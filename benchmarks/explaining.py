"""What it costs to record what a broken peak is explained from: ratios from one run.

    python benchmarks/explaining.py                 # CPU tensors, and the simulated card
    python benchmarks/explaining.py --gpu           # where a GPU is

Each workload runs with nothing recorded (`never`), with large blocks (`auto`) and with all of them (`always`), in turn,
several times; the best of each counts, and beside it the median.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pytest_memleak.events.recording import NEVER, Recording
from pytest_memleak.hooks.explaining import LARGE

MODES = {"never": None, "auto": LARGE, "always": 0}


def small_kernels(device: str) -> Callable[[], None]:
    weights = [torch.randn(128, 128, device=device) for _ in range(8)]

    def run() -> None:
        x = torch.randn(32, 128, device=device)
        for _ in range(40):
            for weight in weights:
                x = torch.tanh(x @ weight) + 1
        _done(device)

    return run


def training(device: str, width: int, rows: int) -> Callable[[], None]:
    model = torch.nn.Sequential(*[torch.nn.Linear(width, width, device=device) for _ in range(6)])
    optimizer = torch.optim.AdamW(model.parameters())

    def run() -> None:
        for _ in range(3):
            model(torch.randn(rows, width, device=device)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        _done(device)

    return run


def load(device: str, folder: Path, four_bit: bool = False) -> Callable[[], None]:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)} if four_bit else {}

    def run() -> None:
        AutoModelForCausalLM.from_pretrained(folder, device_map={"": device}, dtype=torch.bfloat16, **how)
        _done(device)

    return run


def _done(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def measure(name: str, run: Callable[[], None], make: Callable[[], Recording], rounds: int) -> None:
    """The modes in turn, and each round begins with another one: what the machine does meanwhile falls on all alike."""
    run()
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(rounds):
        modes = list(MODES)
        for mode in modes[number % 3 :] + modes[: number % 3]:
            gc.collect()  # models are cycles: their memory is to be free before the clock starts
            with recorded(make, MODES[mode]):
                start = time.perf_counter()
                run()
                seconds[mode].append(time.perf_counter() - start)
    ratios = ", ".join(
        f"{mode} ×{min(seconds[mode]) / min(seconds['never']):.3f} (median "
        f"×{statistics.median(seconds[mode]) / statistics.median(seconds['never']):.3f})"
        for mode in ("auto", "always")
    )
    print(f"{name:<44} {min(seconds['never']) * 1000:9.2f} ms; {ratios}", flush=True)


@contextlib.contextmanager
def recorded(make: Callable[[], Recording], smallest: int | None) -> Iterator[None]:
    if smallest is None:
        yield
        return
    recording = make()
    recording.watch(lambda level, asked, refused: NEVER, NEVER)
    recording.begin(smallest)
    try:
        yield
    finally:
        recording.end()
        recording.watch(None)


def below(depth: int, run: Callable[[], Any]) -> Any:
    return run() if not depth else below(depth - 1, run)


def one_operation(make: Callable[[], Recording]) -> None:
    """What the ledger takes for one allocation and its release, twelve calls deep."""

    def run() -> float:
        x, count = torch.ones(16), 20_000
        start = time.perf_counter()
        for _ in range(count):
            x + 1
        return (time.perf_counter() - start) / count

    without = min(below(12, run) for _ in range(5))
    recording = make()
    recording.begin(0)
    with_it = min(below(12, run) for _ in range(5))
    recording.end()
    print(f"{'one small operation on the CPU':<44} {without * 1e6:9.2f} µs; always +{(with_it - without) * 1e6:.2f} µs")


def one_block(depth: int) -> None:
    """What CUDA's history takes for one block, so many calls deep: a load has a few thousand, thirty calls deep."""
    from pytest_memleak.events.cuda_history import CudaRecording

    def run() -> float:
        count = 5000
        start = time.perf_counter()
        for _ in range(count):
            torch.empty(1024, device="cuda")
        return (time.perf_counter() - start) / count

    without = min(below(depth, run) for _ in range(5))
    recording = CudaRecording(0)
    recording.begin(0)
    with_it = min(below(depth, run) for _ in range(5))
    recording.end()
    told = f"one block on the card, {depth} calls deep"
    print(f"{told:<44} {without * 1e6:9.2f} µs; always +{(with_it - without) * 1e6:.2f} µs", flush=True)


def blocks_of(run: Callable[[], None]) -> None:
    """How many blocks a run asks for."""
    from pytest_memleak.events.cuda_history import CudaRecording, snapshot

    recording = CudaRecording(0)
    recording.begin(0)
    run()
    taken = snapshot()
    recording.end()
    assert taken is not None
    events = [entry["action"] for entry in taken["device_traces"][0]]
    print(f"{'':<44} {events.count('alloc'):,} blocks", flush=True)


KEPT: dict[str, list[torch.Tensor]] = {}


def message_for_many(count: int = 10_000) -> None:
    """How long it takes to say who holds so many leaked tensors."""
    from pytest_memleak.ledger.owners import explain

    KEPT["all"] = [torch.ones(8) for _ in range(count)]
    found = list(KEPT["all"])
    start = time.perf_counter()
    lines = explain(found, sum(one.nbytes for one in found), ignore=(found,), budget=5)
    print(f"{f'message for {count:,} leaked tensors':<44} {time.perf_counter() - start:9.2f} s: {lines[0][:60]} …")
    KEPT.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="on a real card")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}; blocks of {LARGE >> 20} MiB or more in auto")
    if arguments.gpu:
        import tempfile

        from truth_models import sparse_checkpoint

        from pytest_memleak.events.cuda_history import CudaRecording

        measure("H200: a loop of small kernels", small_kernels("cuda"), lambda: CudaRecording(0), arguments.rounds)
        measure("H200: training, 4096 wide", training("cuda", 4096, 4096), lambda: CudaRecording(0), arguments.rounds)
        with tempfile.TemporaryDirectory() as folder:
            small = sparse_checkpoint("1.1B", Path(folder, "small"))
            one_block(12)
            one_block(40)
            # So short that the machine's spread is larger than what is looked for: many rounds.
            measure("H200: load of 1.1B", load("cuda", small), lambda: CudaRecording(0), 4 * arguments.rounds)
            blocks_of(load("cuda", small))
            four_bit = load("cuda", small, four_bit=True)
            measure("H200: load of 1.1B in 4 bits", four_bit, lambda: CudaRecording(0), 4 * arguments.rounds)
            blocks_of(four_bit)
            large = load("cuda", sparse_checkpoint("33.7B", Path(folder, "large")), four_bit=True)
            measure("H200: load of 33.7B in 4 bits", large, lambda: CudaRecording(0), arguments.rounds)
            blocks_of(large)
        return
    import transformers  # noqa: F401 - so that there are as many objects to search as in its users' tests

    from pytest_memleak.events.cpu_recording import CpuRecording

    message_for_many()
    one_operation(CpuRecording)
    measure("CPU: a loop of small kernels", small_kernels("cpu"), CpuRecording, arguments.rounds)
    measure("CPU: training, 1024 wide", training("cpu", 1024, 1024), CpuRecording, arguments.rounds)
    from pytest_memleak.cards.simulated.process import simulation_of
    from pytest_memleak.cards.simulated.profiles import cards_of
    from pytest_memleak.cards.simulated.recording import SimulatedRecording

    simulation = simulation_of(cards_of(""))
    simulation.on()

    def make() -> Recording:
        return SimulatedRecording(simulation)

    measure("simulated: a loop of small kernels", small_kernels("cuda"), make, arguments.rounds)
    measure("simulated: training, 4096 wide", training("cuda", 4096, 4096), make, arguments.rounds)


if __name__ == "__main__":
    main()
