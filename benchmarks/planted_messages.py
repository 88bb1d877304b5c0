"""Writes docs/planted.md: what pytest prints of each bug in fixtures/planted, in a table.

    python benchmarks/planted_messages.py

On the CPU and a simulated card, with more time for the searches than a run has, so that a busy machine prints the same.
What has to be in the messages is tested (tests/hooks/test_planted.py), and that they are still printed as well
(tests/docs).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLANTED = ROOT / "fixtures" / "planted"
PATIENT = """
import pytest_memleak.hooks.explaining, pytest_memleak.hooks.owners
pytest_memleak.hooks.explaining._EACH = pytest_memleak.hooks.explaining._ALL = 600.0
pytest_memleak.hooks.owners._SECONDS = 600.0
"""
HEAD = """# Planted bugs, and what is said of them

Written by `python benchmarks/planted_messages.py`: each message as pytest prints it, without the line "what to do". How
to read them: [explaining.md](explaining.md). The bugs are planted two calls deep, and a library holds or allocates the
memory: [`training.py`](../fixtures/planted/training.py) leaks, [`inference.py`](../fixtures/planted/inference.py) takes
too much. Printed on the CPU as card, the load on a simulated one, with the versions of
[`ci/constraints.txt`](../ci/constraints.txt): other versions have other lines. Who held less than a tenth of a peak is
left out, and "other owners": of several variables for one small weight, one run names this and another that.
"""
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_LOOKED = re.compile(r"  with ([\d.]+) (\w+) allocated")
_HOLDER = re.compile(r"    ([\d.]+) (\w+) in \d+ tensors?\b")
LOAD = """
transformers 5.0 to 5.3 pile the sources up without a planted bug. There the failure names the finished futures of the
loader, `param_name_to_load[…].collected_tensors[…][0].result()`, a local of `convert_and_load_state_dict_in_model`.
"""
LEAKS = {
    "test_module_attribute": "an attribute of a module that a global keeps: transformers' cache",
    "test_module_global": "a module's global: transformers' table of activations",
    "test_class_attribute": "a class attribute: what accelerate's `PartialState` objects share",
    "test_lru_cache": "`functools.lru_cache`: positions in transformers",
    "test_fixture": "a wider fixture's value: weights that peft adds",
    "test_instance": "the test instance: transformers' cache",
    "test_traceback": "a local of a kept traceback: torch's loader, in a log record",
    "test_generator": "a suspended generator: accelerate's loader",
    "test_closure": "a closure: accelerate's wrapper of a `forward`",
    "test_autograd_graph": "what the autograd graph saved: a loss of transformers",
    "test_reference_cycle": "a reference cycle, with the collector off: accelerate's hook",
    "test_held_from_cpp": "C++ alone: a DLPack capsule",
}
PEAKS = {
    "test_list_that_piles_up": "a list that piles up in torch's loader",
    "test_futures_that_nobody_forgets": "finished futures, each with accelerate's copy in float32",
    "test_saved_for_gradients": "transformers' forward, all of it saved for gradients",
    "test_logits_in_float32": "logits, which transformers' loss copies to float32",
    "test_concatenated_again_and_again": "transformers' container, which copies all batches for each new one",
    "test_states_of_the_optimizer": "states of transformers' Adafactor",
    "test_gradients_in_a_copy": "gradients added up in a copy of the model",
    "test_weights_twice_while_they_are_loaded": "peft's weights, and accelerate's copy of them, beside the model",
    "test_cache_that_grows": "transformers' cache, which grows while it generates",
    "test_attention_matrix_is_refused": "out of memory under a cap: an attention matrix of transformers",
}
LOADS = {
    "test_sources_of_quantized_weights": "frames of transformers' `convert`, which quantizes: a tool notes them, and "
    "each keeps a full-precision weight",
}


def printed(file: str, backend: str) -> str:
    """What pytest prints of a planted file."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "patient.py").write_text(PATIENT)
        options = ["-p", "no:cacheprovider", "-p", "patient", f"--gpu-backend={backend}"]
        result = subprocess.run(
            [sys.executable, "-m", "pytest", *options, file],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), folder]), "COLUMNS": "100"},
            stdout=subprocess.PIPE,
            text=True,
        )
    return result.stdout


def messages(output: str) -> dict[str, str]:
    """By test: from the verdict on to what it advises."""
    sections = re.findall(r"^_+ (\S+) _+$(.*?)(?=^_{5}|\Z)", output, re.DOTALL | re.MULTILINE)
    found = {}
    for name, text in sections:
        message = re.search(r"^\w+ FAILED: .*?(?=^  what to do: )", text, re.DOTALL | re.MULTILINE)
        assert message, f"{name} has no message:\n{text}"
        found[name.rpartition(".")[2]] = message[0]
    return found


def without_small_holders(text: str) -> str:
    """Of each look at a peak the holders of a tenth or more."""
    kept, level, skipping = [], 0.0, False
    for line in text.splitlines(keepends=True):
        if looked := _LOOKED.match(line):
            level = float(looked[1]) * _UNITS[looked[2]]
        elif not line.startswith("    "):
            level = 0.0
        if holder := _HOLDER.match(line):
            small = float(holder[1]) * _UNITS[holder[2]] < level / 10
            skipping = small or (level > 0 and line.endswith("other owners\n"))
        elif not line.startswith("      "):
            skipping = False
        if not skipping:
            kept.append(line)
    return "".join(kept)


def table(file: str, bugs: dict[str, str], backend: str = "cpu") -> str:
    found = messages(printed(file, backend))
    assert set(found) == set(bugs), set(found) ^ set(bugs)
    told = {name: without_small_holders(message) for name, message in found.items()}
    rows = [
        f"<tr><td>\n\n{bug}\n\n</td><td>\n\n<!-- printed by {file} -->\n```text\n{told[name]}```\n\n</td></tr>"
        for name, bug in bugs.items()
    ]
    return "\n".join(["<table>", "<tr><th>planted</th><th>printed</th></tr>", *rows, "</table>"])


if __name__ == "__main__":
    leaks = table("fixtures/planted/planted_leaks.py", LEAKS)
    peaks = table("fixtures/planted/planted_peaks.py", PEAKS)
    loads = table("fixtures/planted/planted_load.py", LOADS, "simulated")
    Path(ROOT, "docs", "planted.md").write_text(
        f"{HEAD}\n## Leaks\n\n{leaks}\n\n## Peaks\n\n{peaks}\n\n## A load\n\n{loads}\n{LOAD}", encoding="utf-8"
    )
