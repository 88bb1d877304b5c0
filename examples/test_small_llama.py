"""What loading and training a transformers model may use: on the GPU if there is one, on the CPU if not.

The limits speak of the model's own sizes, so the same file holds a larger model to the same promises.
"""

import pytest

import pytest_memleak

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="4.56")  # for dtype=
pytest.importorskip("accelerate")  # for device_map

# Every test of this file gives back all it took.
pytestmark = pytest.mark.max_leak

try:
    import bitsandbytes
except ImportError:
    pass
else:
    # It builds its tables at the first use and keeps them: here, before anything is measured.
    bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4").to("cpu")


def load(checkpoint, card, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, device_map=card.device, **options)


def some_tokens(card):
    return torch.randint(0, 1024, (2, 64), device=card.device)


@pytest.mark.max_peak("1.1 * fp16_size")
@pytest.mark.max_host_peak("fp16_size + 1GiB")  # what is imported, and the context of a GPU, count as well
def test_load_in_the_dtype_it_has(checkpoint, card):
    """On the CPU these weights stay in the mapped file, and torch allocates next to nothing."""
    model = load(checkpoint, card, dtype="auto")
    assert model.dtype == torch.bfloat16


@pytest.mark.max_peak("final_size + largest_param")
def test_load_in_another_dtype_holds_one_weight_twice_at_most(checkpoint, card):
    model = load(checkpoint, card, dtype=torch.float16)
    assert model.dtype == torch.float16


@pytest.mark.max_peak("0.75 * fp16_size")
@pytest.mark.max_leak("16KiB")  # the same tables for another device
def test_four_bit_load_never_holds_the_whole_model_unquantized(checkpoint, card):
    # Before 0.50, what quantizes on the CPU takes several times the weight's size itself.
    pytest.importorskip("bitsandbytes", minversion="0.50")
    four_bit = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = load(checkpoint, card, quantization_config=four_bit)
    assert model.is_loaded_in_4bit


def test_each_step_has_a_limit_of_its_own(checkpoint, card, memory):
    with memory.measure("load") as loading:
        model = load(checkpoint, card, dtype=torch.float16)
    loading.limit("1.1 * fp16_size")

    with memory.measure("generate") as generating:
        # Without an end-of-sequence token: a simulated card does not know what the model says.
        model.generate(some_tokens(card), max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    generating.limit("1.1 * fp16_size + 128MiB", model=model)
    assert generating.peak > loading.grown


@pytest.mark.gpu_cap("2G")
@pytest.mark.max_peak("4 * fp32_size + 300MiB")
def test_training_fits_a_small_card(checkpoint, card):
    """Weights, gradients and the two moments of AdamW are four times the weights; the rest is activations."""
    assert card.total == 2 * 1024**3
    model = load(checkpoint, card, dtype=torch.float32).train()
    pytest_memleak.watch(model)  # the names in the limit are about this model
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = some_tokens(card)
    for _ in range(3):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.max_leak(repeat=3)
def test_nothing_grows_from_run_to_run(checkpoint, card):
    model = load(checkpoint, card, dtype="auto")
    model(input_ids=some_tokens(card))
