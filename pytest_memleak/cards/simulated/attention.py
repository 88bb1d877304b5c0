"""Which of torch's attention kernels a card takes, and what it hands to it.

The order is torch's: cuDNN on Hopper and Blackwell with a cuDNN that is new enough, then flash, then the
memory-efficient one, and mathematics as it is written where none of them can do it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from pytest_memleak.cards.simulated.profiles import Profile

# From here on torch's wheels come with a cuDNN that it prefers (newer than 9.15).
_CUDNN_PREFERRED_SINCE = (2, 10)
_HALVES = (torch.float16, torch.bfloat16)


class Attention:
    """In place of `scaled_dot_product_attention`, which asks CUDA code that is not there for its choice."""

    def __init__(self, cards: Sequence[Profile]) -> None:
        self._cards = cards
        release = tuple(int(part) for part in torch.__version__.split(".")[:2])
        self._cudnn = release >= _CUDNN_PREFERRED_SINCE and not os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED")

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        aten = torch.ops.aten
        card = self._cards[query.device.index or 0]
        wide = max(query.shape[-1], value.shape[-1])
        fused = query.dim() == 4 and query.shape[-1] % 8 == 0 and value.shape[-1] % 8 == 0
        half = query.dtype in _HALVES and (query.dtype == torch.float16 or card.capability >= (8, 0))
        grad = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
        if self._prefers_cudnn(card) and fused and half and wide <= 128 and torch.backends.cuda.cudnn_sdp_enabled():
            mask = _additive(attn_mask, query, floor=-65504.0)
            found = aten._scaled_dot_product_cudnn_attention(
                query, key, value, mask, grad, dropout_p, is_causal, False, scale=scale
            )
            return found[0]  # type: ignore[no-any-return]
        if (
            attn_mask is None
            and half
            and query.dim() == 4
            and card.capability >= (8, 0)
            and wide <= 256
            and torch.backends.cuda.flash_sdp_enabled()
        ):
            return self._flash(query, key, value, dropout_p, is_causal, scale)
        if enable_gqa and key.shape[-3] != query.shape[-3]:
            repeats = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
        if fused and torch.backends.cuda.mem_efficient_sdp_enabled():
            mask = _additive(attn_mask, query, floor=float("-inf"))
            if mask is not None:
                mask = _aligned(mask).expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
            found = aten._scaled_dot_product_efficient_attention(
                query, key, value, mask, grad, dropout_p, is_causal, scale=scale
            )
            return found[0]  # type: ignore[no-any-return]
        found = aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale
        )
        return found[0]  # type: ignore[no-any-return]

    def _prefers_cudnn(self, card: Profile) -> bool:
        return self._cudnn and card.capability[0] in (9, 10)

    def _flash(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        dropout_p: float,
        is_causal: bool,
        scale: float | None,
    ) -> torch.Tensor:
        width = query.shape[-1]
        if scale is None:
            scale = width**-0.5
        if missing := -width % 8:
            query, key, value = (torch.nn.functional.pad(one, (0, missing)) for one in (query, key, value))
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        found: torch.Tensor = flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        return found[..., :width] if missing else found


def _additive(mask: torch.Tensor | None, query: torch.Tensor, floor: float) -> torch.Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    zero = torch.scalar_tensor(0.0, dtype=query.dtype, device=mask.device if floor == float("-inf") else "cpu")
    return torch.where(mask.logical_not(), floor, zero)


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """The kernel reads rows of sixteen: a mask of another width is padded, and cut again as a view."""
    width = mask.shape[-1]
    if missing := -width % 16:
        return torch.nn.functional.pad(mask, (0, missing))[..., :width]
    return mask
