"""Rows of tokens: text that means nothing, with placeholders where images, videos and sounds come in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pytest_memleak.errors import BadInput
from pytest_memleak.planner.inputs.request import Media, Request
from pytest_memleak.planner.transformers_model import text_config


class TooFewTokens(BadInput):
    """For one image, video or sound in each row."""

    def __init__(self, message: str, needed: int = 0) -> None:
        super().__init__(message)
        self.needed = needed


_NAMES_AN_ID = re.compile(r"token_?(id|ids|index)$")
_IGNORED = -100
"""The label of what is not learnt: torch's own."""
_TYPES = {"image": 1, "video": 2, "audio": 3}
"""Of placeholders in ``mm_token_type_ids``; text is 0."""


def rows_of_tokens(request: Request, tokens: int, media: Media | None, mixed: bool) -> dict[str, torch.Tensor]:
    """Mixed are those of a model that takes more than text: it may want to be told of each token what it is."""
    allowed = _ordinary_ids(request.model)
    shape = (request.rows, tokens)
    ids = allowed[torch.randint(len(allowed), shape, generator=request.generator, device="cpu")]
    types = torch.zeros_like(ids)
    if media is not None:
        _place(request, media, ids, types)
    made = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.masked_fill(types > 0, _IGNORED),
    }
    # Gemma 3 calls it by BERT's name. A GPT-2 that is given these embeds them, which nobody has it do.
    for name in {"mm_token_type_ids", "token_type_ids"} & request.arguments if mixed else ():
        made[name] = types
    return made


def _place(request: Request, media: Media, ids: torch.Tensor, types: torch.Tensor) -> None:
    """One token of text comes before each run, and one at least behind the last: what is learnt."""
    needed = sum(1 + len(media.marks) + run for run in media.runs) + 1
    if needed > ids.shape[1]:
        raise TooFewTokens(
            f"tokens={ids.shape[1]} are too few for one {request.kind} in each row: {type(request.model).__name__} has "
            f"{sum(media.runs)} placeholders for it, which needs tokens={needed} at least{_smaller(request)}",
            needed,
        )
    at = 0
    for run in media.runs:
        at += 1
        if media.marks:
            ids[:, at] = media.marks[0]
            at += 1
        ids[:, at : at + run] = media.placeholder
        types[:, at : at + run] = _TYPES[request.kind]
        at += run
        if media.marks:
            ids[:, at] = media.marks[1]
            at += 1


def _smaller(request: Request) -> str:
    takes_any_size = f"{request.kind}_grid_thw" in request.arguments
    return ", or give a smaller side as pixels" if takes_any_size else ""


def _ordinary_ids(model: Any) -> torch.Tensor:
    """All that the config does not name: an image's placeholder in the text would be one image too many."""
    size = int(text_config(model).vocab_size)
    embedded = getattr(model.get_input_embeddings(), "num_embeddings", size)
    ordinary = torch.ones(min(size, embedded), dtype=torch.bool, device="cpu")
    ordinary[[one for one in _named_ids(model.config.to_dict()) if 0 <= one < len(ordinary)]] = False
    ids = ordinary.nonzero().flatten()
    if not len(ids):
        raise BadInput(f"{type(model).__name__} has no token that its config does not name: vocab_size={size}")
    return ids


def _named_ids(config: Mapping[Any, Any]) -> Iterator[int]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _named_ids(value)
        elif _NAMES_AN_ID.search(str(name)):  # labels are named by numbers
            yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
