"""What is known of transformers' warm-up of the caching allocator, one large request before a load.

From 5.2 on it asks for the card's total less 1.2 GiB at most, whatever the total is (read in 5.2.0 to 5.23.0).
"""

from __future__ import annotations

import traceback

_WARM_UP = "caching_allocator_warmup"


def asked_for_less_than_nothing(error: BaseException) -> bool:
    """Whether it failed because the card that it was told of is smaller than what it leaves free."""
    if not isinstance(error, RuntimeError) or "negative dimension" not in str(error):
        return False
    return any(frame.f_code.co_name == _WARM_UP for frame, _ in traceback.walk_tb(error.__traceback__))
