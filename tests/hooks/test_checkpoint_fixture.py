"""The fixture `checkpoint`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Run

# Older loads do not know dtype.
pytest.importorskip("transformers", minversion="4.56")

_PROJECT = """
    import pathlib, pytest, transformers

    CONFIG = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, vocab_size=2000)

    @pytest.fixture(scope="module")
    def folder(checkpoint):
        return checkpoint(transformers.LlamaConfig(**CONFIG))

    def test_is_made_once(checkpoint, folder):
        pathlib.Path("made.txt").write_text(str(folder))
        config = transformers.LlamaConfig(**CONFIG)
        assert checkpoint(config) == folder
        assert checkpoint(config, sparse=True) != folder
        assert checkpoint(config, dtype="float16") != folder

    @pytest.mark.max_peak("fp32_size")
    def test_is_loaded_and_not_counted(checkpoint, card):
        # Made within the test: the names in its limit are about the model that is loaded, and making it took nothing.
        config = transformers.LlamaConfig(**CONFIG | {"vocab_size": 8000})
        folder = checkpoint(config, dtype="bfloat16")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16", device_map=card.device)
        assert model.device.type == card.device.partition(":")[0]
"""


def test_checkpoints_are_made_once_and_gone_at_the_end(run: Run, pytester: pytest.Pytester) -> None:
    run(_PROJECT).assert_outcomes(passed=2)
    made = Path((pytester.path / "made.txt").read_text())
    assert made.name.startswith("llama-")
    assert not made.parent.exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"hidden_size": 64}', "dict is none: its class takes these entries as arguments"),
        ('"some/model"', "str is none: AutoConfig.from_pretrained reads one from a folder"),
        ("transformers.LlamaConfig", "type is none: give an instance of one"),
        ("type('Model', (), {'config': None})()", "Model is none: give model.config"),
    ],
)
def test_what_is_no_config_says_what_to_give(given: str, said: str, run_on_cpu: Run) -> None:
    result = run_on_cpu(_PROJECT + f"\n    def test_given(checkpoint): checkpoint({given})\n", "-k", "test_given")
    result.assert_outcomes(failed=1, deselected=2)
    result.stdout.fnmatch_lines([f"*BadInput: a checkpoint is made from a transformers config, *{said}"])
