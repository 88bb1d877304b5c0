from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn

from pytest_memleak.budget.model_sizes import ModelSizes, sizes_of
from pytest_memleak.budget.names import NAMES
from pytest_memleak.errors import BadInput, Inconclusive


class Net(nn.Module):
    """An embedding, a Linear, a tied head and a batch norm: 30 + 12 + 3 + 8 parameters, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 3)
        self.fc = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(4)
        self.lm_head = nn.Linear(3, 10, bias=False)
        self.lm_head.weight = self.embed.weight


def size(sizes: ModelSizes, name: str) -> int:
    return sizes.term(name).bytes


def test_a_module_counts_parameters_once_and_no_buffers() -> None:
    sizes = sizes_of(Net())
    count = 10 * 3 + 5 * 3 + 5 + 2 * 4
    assert [size(sizes, name) for name in ("fp32_size", "fp16_size", "bf16_size")] == [4 * count, 2 * count, 2 * count]
    assert sizes.term("fp16_size").meaning == "58 parameters × 2 B of Net"
    assert size(sizes, "largest_param") == 120
    assert "embed.weight" in sizes.term("largest_param").meaning
    # Running mean and variance, and a counter of 8 bytes.
    assert size(sizes, "final_size") == 4 * count + 2 * 4 * 4 + 8


def test_quantized_sizes_take_linear_weights_and_leave_the_head() -> None:
    sizes = sizes_of(Net())
    rest = (58 - 15) * 2
    assert size(sizes, "int8_size") == rest + 15 + 5 * 4
    assert size(sizes, "nf4_size") == rest + 8 + 4 + 64
    assert sizes.term("nf4_size").meaning.startswith("1 Linear weights with 15 parameters at 4 bits")


def test_the_output_embedding_is_left_whatever_its_name_is() -> None:
    class Speaking(Net):
        def get_output_embeddings(self) -> nn.Module:
            return self.fc

    # The 15 weights of fc stay in fp16, and nothing else is Linear.
    assert size(sizes_of(Speaking()), "int8_size") == size(sizes_of(Speaking()), "fp16_size") == 2 * 58


def test_two_parameters_on_one_memory_count_once() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = nn.Parameter(first.weight.data)
    model = nn.ModuleList([first, second])
    assert size(sizes_of(model), "fp16_size") == 32
    assert size(sizes_of(model), "final_size") == 64


def test_views_count_by_their_shape() -> None:
    large = torch.zeros(1000)
    model = nn.Module()
    model.a, model.b = nn.Parameter(large[:10]), nn.Parameter(large[10:30])
    model.register_buffer("expanded", torch.zeros(1).expand(100))
    assert size(sizes_of(model), "fp16_size") == 60
    assert size(sizes_of(model), "final_size") == 4 * 30 + 4


def test_sizes_keep_neither_model_nor_tensor_alive() -> None:
    model = Net()
    fc, kept = weakref.ref(model.fc), weakref.ref(model)
    sizes = sizes_of(model)
    del model
    gc.collect()
    assert kept() is None
    assert fc() is None
    assert size(sizes, "fp16_size") == 116


def test_parameters_get_no_weak_references() -> None:
    model = Net()
    sizes_of(model)
    assert all(weakref.getweakrefcount(parameter) == 0 for parameter in model.parameters())


def test_a_model_without_parameters_is_inconclusive() -> None:
    with pytest.raises(Inconclusive, match="fp16_size of ReLU is not known: it has no floating-point parameters"):
        sizes_of(nn.ReLU()).term("fp16_size")


def test_a_lazy_model_is_inconclusive() -> None:
    with pytest.raises(Inconclusive, match="'weight' of LazyLinear is lazy"):
        sizes_of(nn.LazyLinear(3)).term("fp16_size")


def test_packed_integers_are_inconclusive() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(4, dtype=torch.int32), requires_grad=False)
    with pytest.raises(Inconclusive, match="what it was before quantization cannot be told"):
        sizes_of(model).term("fp16_size")


def test_an_unknown_name_is_bad_input() -> None:
    with pytest.raises(BadInput, match="unknown name 'fp8_size'; known are fp32_size"):
        sizes_of(Net()).term("fp8_size")


@pytest.mark.parametrize("source", [7, None, ["path"], torch.zeros(3)], ids=["int", "None", "list", "tensor"])
def test_what_is_no_model_is_refused(source: object) -> None:
    with pytest.raises(BadInput, match="is no model"):
        sizes_of(source)


# Checkpoints: written here byte by byte, without transformers' help and of no architecture it knows.


def write(file: Path, tensors: dict[str, tuple[str, list[int], int]], *, cut: int = 0) -> Path:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, count) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * (end - cut))
    return file


EMBED = {"embed.weight": ("BF16", [10, 3], 60)}
BODY = {"fc.weight": ("F32", [5, 3], 60), "ids": ("I64", [4], 32), "norm.running_mean": ("F32", [4], 16)}
HEAD = {"lm_head.weight": ("BF16", [10, 3], 60)}


def test_a_folder_is_read_by_its_headers(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", EMBED | BODY)
    sizes = sizes_of(str(tmp_path))
    assert size(sizes, "fp16_size") == 2 * (30 + 15)
    assert size(sizes, "largest_param") == 60
    assert size(sizes_of(tmp_path / "model.safetensors"), "fp16_size") == 90
    with pytest.raises(Inconclusive, match="headers do not say which weights are Linear"):
        sizes.term("nf4_size")
    with pytest.raises(Inconclusive, match="not loaded, only described"):
        sizes.term("final_size")


@pytest.mark.parametrize(("tied", "count"), [(True, 45), (False, 75)])
def test_a_tied_head_that_was_stored_twice_counts_once(tmp_path: Path, tied: bool, count: int) -> None:
    write(tmp_path / "model.safetensors", EMBED | BODY | HEAD)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["NoSuch"], "tie_word_embeddings": tied}))
    assert size(sizes_of(tmp_path), "fp16_size") == 2 * count


def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    write(tmp_path / "one.safetensors", EMBED)
    # In both shards, as some writers do; the index says which one counts.
    write(tmp_path / "two.safetensors", BODY | EMBED)
    places = dict.fromkeys(EMBED, "one.safetensors") | dict.fromkeys(BODY, "two.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert size(sizes_of(tmp_path), "fp16_size") == 90


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"not there: model-00001-of-00002\.safetensors"):
        sizes_of(tmp_path)


def test_a_tensor_the_index_promises_has_to_be_there(tmp_path: Path) -> None:
    write(tmp_path / "one.safetensors", EMBED)
    index = {"weight_map": dict.fromkeys([*EMBED, "lost.weight"], "one.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"no file holds: lost\.weight"):
        sizes_of(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is no safetensors file, or is cut short"),
        (b"PK\x03\x04 this is a zip", "is no safetensors file, or is cut short"),
        ((10**15).to_bytes(8, "little") + b"{}", "its header would be 1,000,000,000,000,000 B long"),
        ((4).to_bytes(8, "little") + b"{{{{", "cannot be read as safetensors"),
        ((2).to_bytes(8, "little") + b"[]", "its header is no JSON object"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "entry for 'a' makes no sense"),
    ],
)
def test_a_corrupt_file_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match=problem) as caught:
        sizes_of(tmp_path)
    assert "model.safetensors" in str(caught.value)


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", EMBED, cut=1)
    with pytest.raises(BadInput, match=r"promises 60 B of tensors; 59 B are there"):
        sizes_of(tmp_path)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(BadInput, match=r"only pickled weights \(pytorch_model\.bin\), which are never opened"):
        sizes_of(tmp_path)


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no checkpoint"):
        sizes_of(tmp_path)


def test_several_weights_files_without_an_index_are_not_guessed_at(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", EMBED)
    write(tmp_path / "b.safetensors", BODY)
    with pytest.raises(BadInput, match=r"name one: a\.safetensors, b\.safetensors"):
        sizes_of(tmp_path)
    assert size(sizes_of(tmp_path / "a.safetensors"), "fp16_size") == 60


def test_a_config_that_is_no_json_is_named(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", EMBED)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"config\.json cannot be read"):
        sizes_of(tmp_path)


@pytest.mark.parametrize("name", ["no/such-model", "./nowhere", "/no/such/path", "a/b/c", "no such"])
def test_what_is_neither_here_nor_in_the_cache_is_not_downloaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="neither a path that exists nor a model in the local cache"):
        sizes_of(name)


def test_every_name_has_a_meaning_or_a_reason() -> None:
    for name in NAMES:
        assert sizes_of(Net()).term(name).name == name


def test_a_packed_parameter_counts_as_what_it_was_and_with_what_undoes_it() -> None:
    parametrize = pytest.importorskip("bitsandbytes.nn.parametrize")
    module = nn.Module()
    module.experts = nn.Parameter(torch.randn(4, 16, 32, dtype=torch.bfloat16))
    parametrize.replace_parameter_4bit(module, "experts", compress_statistics=False)
    sizes = sizes_of(module)
    assert size(sizes, "fp16_size") == 2 * 4 * 16 * 32
    # Two in a byte, a maximum in fp32 for each 64, and the table.
    assert size(sizes, "final_size") == 2048 // 2 + 2048 // 64 * 4 + 64
