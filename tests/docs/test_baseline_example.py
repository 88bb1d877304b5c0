"""The example in docs/baselines.md: recorded, changed, and failing as the page says."""

from __future__ import annotations

import pytest
import torch

from tests.docs.test_examples import PATIENT, ROOT, assert_printed, blocks_of, run

PAGE = ROOT / "docs" / "baselines.md"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="no card is simulated beside a real one")
def test_the_page_s_test_is_recorded_and_fails_once_it_takes_more(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    blocks = blocks_of(PAGE)
    settings = next(block.text for block in blocks if block.language == "ini")
    body = next(block.text for block in blocks if block.note.startswith("run:"))
    (recorded,) = (block.text for block in blocks if block.note == "the file after --memleak-update=new")
    printed = [block.text for block in blocks if block.note == "printed against the baseline"]
    assert len(printed) == 2
    pytester.makeini(settings)
    pytester.makepyfile(test_loss=body, patient=PATIENT)
    run(pytester, "--memleak-update=new").assert_outcomes(passed=1)
    lines = (pytester.path / "memleak-baseline.txt").read_text(encoding="ascii").splitlines(keepends=True)
    release = ".".join(torch.__version__.split(".")[:2])
    assert lines[-1] == recorded.replace("torch-2.13", f"torch-{release}")
    before = "cross_entropy(logits, labels)"
    assert before in body
    pytester.makepyfile(test_loss=body.replace(before, "cross_entropy(logits.float(), labels)"))
    result = run(pytester, "-p", "patient")
    result.assert_outcomes(failed=1)
    assert_printed(printed, result.stdout.str())
