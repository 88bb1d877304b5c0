"""A model that several tests share. It counts in each test's peak, and reports name it: base + test = peak."""

import unittest

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="4.56")  # for dtype=
pytest.importorskip("accelerate")  # for device_map


@pytest.fixture(scope="module")
def llama(checkpoint, card):
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, device_map=card.device, dtype=torch.float16)


@pytest.mark.max_leak
@pytest.mark.max_peak("fp16_size + 128MiB", model="fixture:llama")
class TestInference:
    @pytest.mark.parametrize("length", [16, 128])
    def test_forward(self, llama, length):
        tokens = torch.zeros((1, length), dtype=torch.long, device=llama.device)
        with torch.no_grad():
            assert llama(input_ids=tokens).logits.shape == (1, length, 1024)

    @pytest.mark.max_peak("fp16_size + 160MiB", model="fixture:llama")  # the closest marker counts
    def test_generate(self, llama):
        prompt = torch.zeros((4, 8), dtype=torch.long, device=llama.device)
        # Without an end-of-sequence token: a simulated card does not know what the model says.
        llama.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)


@pytest.mark.max_leak
@pytest.mark.max_peak("64MiB")
class TestOfUnittest(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def on_the_card(self, card):
        self.device = card.device

    def setUp(self):
        self.vectors = torch.nn.Embedding(1024, 256, device=self.device)

    def tearDown(self):
        del self.vectors

    def test_lookup(self):
        assert self.vectors(torch.arange(8, device=self.device)).shape == (8, 256)
