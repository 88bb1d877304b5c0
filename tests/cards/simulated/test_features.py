"""What of a card cannot be simulated: the test that uses it is inconclusive, and the reason names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.alone import run_alone

pytestmark = pytest.mark.skipif(
    torch.accelerator.is_available() or torch.version.hip is not None,
    reason="no card is simulated beside a real one, nor by a torch that is built for ROCm",
)

Results = dict[str, dict[str, Any]]

FEATURES = """
import contextlib, os
import pytest, torch
import torch.distributed as dist

def ones(*shape):
    return torch.ones(shape or (4,), device="cuda")

def test_compiled():
    torch.compile(lambda x: x + 1)(ones())

def test_compiled_without_inputs():
    torch.compile(lambda: torch.ones(3, device="cuda") + 1)()

def test_compiled_and_suppressed(monkeypatch):
    import torch._dynamo
    monkeypatch.setattr(torch._dynamo.config, "suppress_errors", True)
    assert torch.compile(lambda x: x + 1)(ones()).tolist() == [2.0] * 4

def test_graph():
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ones()

def test_graphed_callables():
    torch.cuda.make_graphed_callables(torch.nn.Linear(4, 4, device="cuda"), (ones(),))

def test_graph_pool():
    torch.cuda.graph_pool_handle()

def test_pool():
    torch.cuda.MemPool()

def test_pool_and_another_way():
    with contextlib.suppress(RuntimeError):
        torch.cuda.MemPool()

@pytest.mark.max_peak("1GiB")
def test_under_a_promise():
    with contextlib.suppress(RuntimeError):
        torch.cuda.MemPool()

@pytest.mark.xfail
def test_expected_to_fail():
    torch.cuda.MemPool()

def test_nccl(tmp_path):
    assert dist.is_nccl_available()
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)

def test_nccl_for_cards(tmp_path):
    dist.init_process_group(init_method=f"file://{tmp_path}/store", rank=0, world_size=1)

def test_history():
    torch.cuda.memory._record_memory_history()

def test_snapshot(tmp_path):
    torch.cuda.memory._dump_snapshot(str(tmp_path / "snapshot"))

def test_raw_allocation():
    torch.cuda.caching_allocator_alloc(1024)

def test_jiterator():
    torch.cuda.jiterator._create_jit_fn("template <typename T> T f(T x) { return x; }")(ones())

def test_shared():
    ones().untyped_storage()._share_cuda_()

def test_lstm():
    torch.nn.LSTM(4, 4, device="cuda")(torch.ones(2, 3, 4, device="cuda"))

def test_gru_of_packed_rows():
    rows = torch.nn.utils.rnn.pack_sequence([torch.ones(2, 4, device="cuda")])
    with contextlib.suppress(RuntimeError):
        torch.nn.GRU(4, 4, device="cuda")(rows)

def test_recurrent_and_never_run():
    torch.nn.RNN(4, 4).to("cuda")

def test_cell():
    torch.nn.LSTMCell(4, 4, device="cuda")(torch.ones(3, 4, device="cuda"))
"""

REASONS = {
    "test_compiled": "torch.compile for CUDA (inductor) is",
    "test_compiled_without_inputs": "torch.compile for CUDA (inductor) is",
    "test_compiled_and_suppressed": "torch.compile for CUDA (inductor) is",
    "test_graph": "CUDA graphs are",
    "test_graphed_callables": "CUDA graphs are",
    "test_graph_pool": "CUDA graphs are",
    "test_pool": "memory pools (torch.cuda.MemPool) are",
    "test_pool_and_another_way": "memory pools (torch.cuda.MemPool) are",
    "test_under_a_promise": "memory pools (torch.cuda.MemPool) are",
    "test_expected_to_fail": "memory pools (torch.cuda.MemPool) are",
    "test_nccl": "NCCL is",
    "test_nccl_for_cards": "NCCL is",
    "test_history": "the allocator's history and snapshots are",
    "test_snapshot": "the allocator's history and snapshots are",
    "test_raw_allocation": "allocations past torch's tensors, and other allocators, are",
    "test_jiterator": "jiterator's kernels are",
    "test_shared": "sharing a card's memory with other processes is",
    "test_lstm": "recurrent networks of cuDNN (LSTM, GRU, RNN, and their cells) are",
    "test_gru_of_packed_rows": "recurrent networks of cuDNN (LSTM, GRU, RNN, and their cells) are",
    "test_recurrent_and_never_run": "recurrent networks of cuDNN (LSTM, GRU, RNN, and their cells) are",
    "test_cell": "recurrent networks of cuDNN (LSTM, GRU, RNN, and their cells) are",
}

WITHOUT_THEM = """
import torch
import torch.distributed as dist

def test_compiled_for_the_cpu():
    assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2.0, 2.0]

def test_recurrent_on_the_cpu():
    assert torch.nn.LSTM(4, 4)(torch.ones(2, 3, 4))[0].shape == (2, 3, 4)
    assert torch.jit.script(torch.nn.GRUCell(4, 4))(torch.ones(3, 4)).shape == (3, 4)

def test_compiled_by_other_backends():
    for backend in ("eager", "aot_eager"):
        layer = torch.nn.Linear(300, 300, device="cuda")
        torch.compile(layer, backend=backend)(torch.ones(2, 300, device="cuda")).sum().backward()
        assert layer.weight.grad.is_cuda

def test_attention_that_is_not_compiled():
    from torch.nn.attention.flex_attention import flex_attention
    query = torch.randn(1, 2, 128, 16, device="cuda", requires_grad=True)
    flex_attention(query, query, query).sum().backward()
    assert query.grad.is_cuda

def test_process_groups_of_the_cpu(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        numbers = torch.ones(2)
        dist.all_reduce(numbers)
        assert numbers.tolist() == [1.0, 1.0]
    finally:
        dist.destroy_process_group()

def test_pinned_memory():
    numbers = torch.ones(4, pin_memory=True)
    assert numbers.to("cuda", non_blocking=True).tolist() == [1.0] * 4
    loader = torch.utils.data.DataLoader(torch.arange(8), batch_size=4, pin_memory=True)
    assert [batch.to("cuda").tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]

def test_marks_for_profilers():
    with torch.cuda.nvtx.range("step"):
        torch.cuda.nvtx.mark("here")
"""


@pytest.fixture
def results(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a file of tests on the simulated card; what became of each, by name."""

    def run(text: str, *, site: Path | None = None) -> Results:
        if site is not None:
            monkeypatch.setenv("PYTHONPATH", f"{site}:{Path(__file__).parents[3]}")
        pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
        pytester.makepyfile(test_it=text)
        result = pytester.runpytest_subprocess(
            "-p", "no:cacheprovider", "--gpu-backend=simulated", "--memleak-json=out.json"
        )
        told = json.loads((pytester.path / "out.json").read_text())["tests"]
        outcomes = result.parseoutcomes()
        outcomes.pop("warnings", None)
        outcomes.pop("warning", None)
        return {"outcomes": outcomes} | {test["nodeid"].rpartition("::")[2]: test for test in told}

    return run


def reason(test: dict[str, Any]) -> str:
    (result,) = test["results"]
    assert result["verdict"] == "inconclusive"
    return str(result["message"])


def test_each_is_named_with_its_line(results: Any) -> None:
    found = results(FEATURES)
    assert found["outcomes"] == {"errors": len(REASONS)}
    lines = FEATURES.strip().splitlines()
    for name, sentence in REASONS.items():
        said = reason(found[name])
        assert f"{sentence} not simulated: used at test_it.py:" in said, name
        assert "run it on a real card" in said
        first = next(number for number, line in enumerate(lines, 1) if line.startswith(f"def {name}("))
        used = int(said.partition("test_it.py:")[2].split(";")[0])
        assert used > first
        assert not any(line.startswith("def ") for line in lines[first:used]), name


def test_what_is_near_them_goes_on(results: Any) -> None:
    assert results(WITHOUT_THEM)["outcomes"] == {"passed": WITHOUT_THEM.count("def test_")}


def test_a_prediction_says_it_too(results: Any) -> None:
    found = results(
        """
        import contextlib, pytest, torch
        import pytest_memleak
        from pytest_memleak.errors import NotSimulated

        def test_it():
            def program(card):
                with contextlib.suppress(RuntimeError):
                    torch.cuda.MemPool()

            found = pytest_memleak.predict(program)
            assert found.doubt.startswith("memory pools (torch.cuda.MemPool) are not simulated: used at test_it.py:")
            with pytest.raises(NotSimulated, match="memory pools .* run this on a real card"):
                pytest_memleak.predict(lambda card: torch.cuda.MemPool())
        """
    )
    assert found["outcomes"] == {"passed": 1}, "what a prediction used is not the test's"


TRITON = {
    "triton/__init__.py": "from triton.runtime.jit import jit\n",
    "triton/runtime/__init__.py": "",
    "triton/runtime/jit.py": """
class KernelInterface:
    def __getitem__(self, grid):
        return lambda *args: self.run(*args)

class JITFunction(KernelInterface):
    def __init__(self, function):
        self.run = function

def jit(function):
    return JITFunction(function)
""",
    "liger_kernel.py": """
import triton

@triton.jit
def _norm(x):
    return x

def norm(x):
    return _norm[(1,)](x)
""",
}

FLASH = {
    "flash_attn/__init__.py": """
def flash_attn_func(q, k, v, *args, **kwargs):
    return q

def flash_attn_varlen_func(q, k, v, *args, **kwargs):
    return q

def flash_attn_with_kvcache(q, *args, **kwargs):
    return q
""",
    "flash_attn/bert_padding.py": "pad_input = unpad_input = None\n",
    "flash_attn-2.8.3.dist-info/METADATA": "Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.8.3\n",
    "flash_attn-2.8.3.dist-info/top_level.txt": "flash_attn\n",
    "flash_attn-2.8.3.dist-info/RECORD": "",
}

LLAMA = """
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, vocab_size=100
    )
    config._attn_implementation = "flash_attention_2"
    model = transformers.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).to("cuda")
    model(torch.ones(1, 8, dtype=torch.long, device="cuda"))
"""


def installed(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "site"


def test_kernels_of_triton(results: Any, tmp_path: Path) -> None:
    found = results(
        """
        import torch, triton

        @triton.jit
        def kernel(x):
            return x

        def test_launched():
            kernel[(1,)](torch.ones(4, device="cuda"))

        def test_by_a_library_that_goes_another_way():
            import liger_kernel
            try:
                liger_kernel.norm(torch.ones(4, device="cuda"))
            except RuntimeError:
                pass

        def test_not_launched():
            assert kernel is not None
        """,
        site=installed(tmp_path, TRITON),
    )
    assert found["outcomes"] == {"passed": 1, "errors": 2}
    assert "Triton's kernels are not simulated: used at test_it.py:8;" in reason(found["test_launched"])
    assert "Triton's kernels are not simulated: used at" in reason(found["test_by_a_library_that_goes_another_way"])


def test_a_package_for_cards_that_is_not_installed(results: Any) -> None:
    found = results(
        """
        import sys
        import pytest, torch

        def test_triton(monkeypatch):
            monkeypatch.setitem(sys.modules, "triton", None)
            import triton

        def test_kernels():
            raise ImportError("liger-kernel >= 0.3.0 is not available")

        def test_other():
            import this_package_is_none
        """
        + f"\n        def test_attention():{LLAMA.replace(chr(10), chr(10) + ' ' * 8)}".rstrip()
    )
    assert found["outcomes"] == {"failed": 1, "errors": 3}
    assert "Triton's kernels are not simulated, and its package is not installed" in reason(found["test_triton"])
    assert "Liger's kernels are not simulated, and" in reason(found["test_kernels"])
    said = reason(found["test_attention"])
    assert "FlashAttention's kernels are not simulated, and its package is not installed" in said
    assert "then it raised ImportError: FlashAttention2 has been toggled on" in said


def test_attention_of_a_package_of_its_own(results: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers", minversion="5")
    found = results(
        f"""
import pytest, torch
from flash_attn import flash_attn_func

def test_on_the_card():
    flash_attn_func(torch.ones(2, device="cuda"), None, v=None)

def test_on_the_cpu():
    assert flash_attn_func(torch.ones(2), None, None).tolist() == [1.0, 1.0]

def test_model():{LLAMA}
""",
        site=installed(tmp_path, FLASH),
    )
    assert found["outcomes"] == {"passed": 1, "errors": 2}
    assert "FlashAttention's kernels are not simulated: used at test_it.py:5;" in reason(found["test_on_the_card"])
    assert "FlashAttention's kernels are not simulated: used at test_it.py:" in reason(found["test_model"])


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA of its own")
def test_torch_that_has_no_cuda(results: Any) -> None:
    found = results(
        """
        import torch

        def test_it():
            with torch.autograd.profiler.emit_nvtx():
                torch.ones(1, device="cuda")

        def test_by_way_of_another_error():
            try:
                torch.autograd.profiler.emit_nvtx().__enter__()
            except RuntimeError as error:
                raise KeyError("no profiler") from error
        """
    )
    assert found["outcomes"] == {"errors": 2}
    said = "what is installed here has no CUDA, and the program needs it: run it on a real card"
    assert said in reason(found["test_it"])
    assert said in reason(found["test_by_way_of_another_error"])


def test_paged_optimizers(pytester: pytest.Pytester) -> None:
    pytest.importorskip("bitsandbytes", minversion="0.47")  # before, they were not torch's operations
    run_alone(pytester, Path(__file__).with_name("paged_optimizers.py"))
