from __future__ import annotations

import pytest

from pytest_memleak.upstream.model_names import names, normalized


@pytest.mark.parametrize("name", ["gpt-oss", "gpt_oss", "GPT-OSS", " Gpt_Oss ", "gpt oss"])
def test_one_name_in_all_its_spellings(name: str) -> None:
    assert normalized(name) == "gpt_oss"


@pytest.mark.parametrize(
    "text", ["gpt-oss", "unsloth/gpt-oss-20b", "unsloth/GPT_OSS_20B_load_in_4bit_", "/models/gpt_oss", "gpt-oss:20b"]
)
@pytest.mark.parametrize("family", ["gpt_oss", "gpt-oss"])
def test_a_family_is_found(text: str, family: str) -> None:
    assert names(text, family)


@pytest.mark.parametrize(("text", "family"), [("gptoss", "gpt_oss"), ("optimus", "opt"), ("", "gpt_oss"), ("a", "")])
def test_and_no_other(text: str, family: str) -> None:
    assert not names(text, family)


def test_a_version_may_follow_at_once() -> None:
    assert names("Qwen/Qwen2-7B", "qwen")
    assert not names("qwenish", "qwen")


@pytest.mark.parametrize(("text", "family"), [("huggyllama/llama-30b", "llama-3"), ("phi-15", "phi-1")])
def test_a_number_ends_where_it_ends(text: str, family: str) -> None:
    assert not names(text, family)
    assert names(f"{family}-8b", family)
