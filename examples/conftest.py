"""A small Llama with random weights, made on the spot: nothing is downloaded."""

import os

import pytest

# huggingface_hub reads it when it is imported: whatever asks for the network gets an error instead.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# One weight after the other: several threads would do it in an order, and print a message, of their own each time.
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a checkpoint: 3,737,856 parameters in bfloat16."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("small-llama")
    config = transformers.LlamaConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder
