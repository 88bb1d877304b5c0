"""What cannot be quantized: an error that says what to do, before anything is loaded, or a no-op that is stated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes.nn.parametrize")
core_model_loading = pytest.importorskip("transformers.core_model_loading")

from transformers import BitsAndBytesConfig, Qwen3MoeForCausalLM

from pytest_memleak.errors import BadInput
from pytest_memleak.fixes._moe_load import to_quantize
from pytest_memleak.fixes._moe_outcome import Outcome
from pytest_memleak.fixes._moe_settings import settings_of
from pytest_memleak.fixes.moe_experts import FIX, quantize_experts
from pytest_memleak.upstream.experts import expert_parameters
from tests.fixes.moe_models import (
    EXPERTS,
    WIDTH,
    differences,
    four_bits,
    load,
    mixtral,
    qwen3_moe,
    saved,
    states,
    tells_of_another_shape,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("qwen3_moe"), qwen3_moe())


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes before the first tensor."""

    def fails(*args: object, **kwargs: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(core_model_loading, "_materialize_copy", fails)


def both_ways(folder: Path, config: Any) -> Iterator[Any]:
    """What loads under the fix, and what quantizes after a load."""

    def in_the_load() -> Any:
        with FIX.fixed():
            return load(folder, config)

    yield in_the_load
    model = load(folder)
    yield lambda: quantize_experts(model, config)


@pytest.mark.parametrize("after", [False, True], ids=["in the load", "after it"])
def test_an_expert_that_is_not_a_number_of_blocks(tmp_path: Path, after: bool) -> None:
    saved(tmp_path, qwen3_moe(moe_intermediate_size=31, hidden_size=48))
    call = list(both_ways(tmp_path, four_bits()))[after]
    message = (
        r"gate_up_proj has 62 × 48 = 2976 values, which blocks of 64 do not divide.*Quantize another size, or name "
        r"what has to stay as it is in llm_int8_skip_modules of the BitsAndBytesConfig, such as 'model.layers.0.mlp"
    )
    with pytest.raises(BadInput, match=message):
        call()


def test_a_piece_that_is_not_a_number_of_blocks_is_put_together(tmp_path: Path) -> None:
    """Gate and up have 2.5 blocks each; together they are 5, and bit by bit what they have to be."""
    saved(tmp_path, qwen3_moe(moe_intermediate_size=10, hidden_size=32, num_attention_heads=2, num_key_value_heads=1))
    # The other tensor has 32 × 10 values of an expert: 5 blocks.
    with FIX.fixed():
        model = load(tmp_path, four_bits())
    whole = load(tmp_path, four_bits())
    quantize_experts(whole)
    assert len(states(model)) == 4
    assert differences(model, whole) == []


@pytest.mark.usefixtures("nothing_is_read")
def test_an_unknown_type(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"bnb_4bit_quant_type='int3': bitsandbytes has nf4 and fp4 in 4 bits"):
        with FIX.fixed():
            load(folder, four_bits(bnb_4bit_quant_type="int3"))


def test_what_a_load_adds_to_the_list_of_what_stays() -> None:
    """Modules that a model keeps in fp32, say."""
    asked = four_bits(llm_int8_skip_modules=["lm_head"])
    assert settings_of(asked, ["lm_head", "router"]).skipped == ("lm_head", "router")
    assert settings_of(asked).skipped == ("lm_head",)


def test_an_unknown_type_after_the_load(folder: Path) -> None:
    model = load(folder)
    with pytest.raises(BadInput, match="int3"):
        quantize_experts(model, four_bits(bnb_4bit_quant_type="int3"))
    assert len(expert_parameters(model)) == 4


class Tied(Qwen3MoeForCausalLM):  # type: ignore[misc]
    """The experts of its second layer are those of the first."""

    _tied_weights_keys = {  # noqa: RUF012 - transformers' own name for it
        "model.layers.1.mlp.experts.down_proj": "model.layers.0.mlp.experts.down_proj"
    }


def test_tied_experts(folder: Path) -> None:
    message = (
        r"layers.0.mlp.experts.down_proj is tied to model.layers.1.mlp.experts.down_proj.*Untie them, or name what has "
        r"to stay as it is in llm_int8_skip_modules"
    )
    config = qwen3_moe(tie_word_embeddings=True)
    model = Tied(config)
    model.model.layers[1].mlp.experts.down_proj = model.model.layers[0].mlp.experts.down_proj
    with pytest.raises(BadInput, match=message):
        quantize_experts(model, four_bits())
    assert len(states(model)) == 0
    outcome = quantize_experts(model, four_bits(llm_int8_skip_modules=["down_proj"]))
    assert outcome.names == [f"model.layers.{layer}.mlp.experts.gate_up_proj" for layer in (0, 1)]
    assert model.model.layers[1].mlp.experts.down_proj is model.model.layers[0].mlp.experts.down_proj


def test_experts_that_a_load_is_going_to_tie(folder: Path) -> None:
    """They are apart until its end."""
    with torch.device("meta"):
        model = Tied(qwen3_moe(tie_word_embeddings=True))
    model.all_tied_weights_keys = dict(Tied._tied_weights_keys)
    with pytest.raises(BadInput, match=r"is tied to .*Untie them"):
        to_quantize(model, settings_of(four_bits()), {"": 0}, Outcome("Tied"))


@pytest.mark.parametrize(
    ("device_map", "away"),
    [
        ({"": 0, "model.layers.1": "cpu"}, {1}),
        ({"model.layers.0.mlp.experts": "disk", "": "cuda:0"}, {0}),
        ({"model.layers.0": "cpu", "model.layers": 0, "": "disk"}, {0}),
        ({"model": 0, "lm_head": "cpu"}, set()),
        ({"": "cpu"}, set()),
        (None, set()),
        ({"model.layers.0": 0, "": 1}, set()),
    ],
)
def test_offloaded_experts_stay_as_they_are(device_map: Any, away: set[int]) -> None:
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(qwen3_moe())
    outcome = Outcome("model")
    found = to_quantize(model, settings_of(four_bits()), device_map, outcome)
    layers = {int(one.name.split(".")[2]) for one in found}
    assert layers == {0, 1} - away
    assert set(outcome.left) == ({"device_map puts them on the CPU or the disk"} if away else set())
    if away:
        assert "2 stay as they are, because device_map puts them on the CPU or the disk" in str(outcome)


def test_what_is_offloaded_is_not_quantized_later(folder: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(load(folder), execution_device=torch.device("cpu"))
    with pytest.raises(BadInput, match=r"is not here: it is on meta, or offloaded by accelerate.*without offloading"):
        quantize_experts(model, four_bits())
    assert states(model) == {}
    model(torch.arange(8)[None])


def test_a_load_in_parts_by_tensor_parallelism_is_left_alone(folder: Path) -> None:
    from pytest_memleak.fixes._moe_load import Load

    class Bnb4BitHfQuantizer:
        pre_quantized = False
        quantization_config = four_bits()
        modules_to_not_convert: tuple[str, ...] = ()

    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(qwen3_moe())
    found = Load(model, {}, SimpleNamespace(hf_quantizer=Bnb4BitHfQuantizer(), device_mesh=object(), device_map=None))
    assert found.experts == {}
    assert "4 stay as they are, because the load is sharded by tensor parallelism" in str(found.outcome)


def test_quantizing_later_needs_a_config_of_4_bits(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"Qwen3MoeForCausalLM was loaded without quantization.*load_in_4bit=True"):
        quantize_experts(load(folder))
    eight = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(BadInput, match=r"was loaded by Bnb8BitHfQuantizer.*load_in_4bit=True"):
        quantize_experts(load(folder, eight))
    with pytest.raises(BadInput, match="BitsAndBytesConfig is of another kind"):
        quantize_experts(load(folder), eight)


def test_quantizing_later_what_bitsandbytes_does_not_take(folder: Path) -> None:
    with pytest.raises(
        BadInput, match=r"gate_up_proj is float64: bitsandbytes quantizes float16, bfloat16 and float32"
    ):
        quantize_experts(load(folder).double(), four_bits())


def test_quantizing_twice_is_doing_nothing(folder: Path) -> None:
    model = load(folder, four_bits())
    assert len(quantize_experts(model).names) == 4
    before = {name: state.absmax for name, state in states(model).items()}
    assert quantize_experts(model).names == []
    assert all(state.absmax is before[name] for name, state in states(model).items())


@pytest.mark.skipif(not tells_of_another_shape(), reason="this release takes what comes")
@pytest.mark.parametrize("other", [{"num_local_experts": EXPERTS + 1}, {"intermediate_size": 2 * WIDTH}])
def test_a_checkpoint_of_other_experts_is_told_of_by_the_loader(tmp_path: Path, other: dict[str, int]) -> None:
    saved(tmp_path, mixtral())
    mixtral(**other).save_pretrained(tmp_path)
    with FIX.fixed(), pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(tmp_path, four_bits())


def test_experts_that_the_checkpoint_lacks_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Upstream makes new ones, at full precision."""
    saved(tmp_path, qwen3_moe(num_hidden_layers=1))
    qwen3_moe().save_pretrained(tmp_path)
    with FIX.fixed():
        model = load(tmp_path, four_bits())
    assert len(states(model)) == 2
    told = "2 stay as they are, because the checkpoint lacks them or has another shape, so that their values are new"
    assert told in caplog.text
    assert len(quantize_experts(model).names) == 2


def test_what_no_load_would_know_of_is_told(folder: Path) -> None:
    """Whether experts are in 4 bits stands in a model's config, if it was loaded so, and nowhere else."""
    told = "the model was not loaded in 4 bits: what is saved of it now cannot be loaded again"
    assert told in str(quantize_experts(load(folder), four_bits()))
    model = load(folder, four_bits())
    assert told not in str(quantize_experts(model, four_bits()))
