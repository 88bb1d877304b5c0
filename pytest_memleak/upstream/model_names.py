"""Names of models as programs compare them: ``gpt-oss`` and ``GPT_OSS`` are one.

Patches that are for one family of models look for its name in an environment variable or a path. Written once with a
hyphen and once with an underscore, the patch was silently left out.
"""

from __future__ import annotations

import re

_APART = re.compile(r"[-_\s]+")


def normalized(name: str) -> str:
    """Small letters, and underscores for whatever separates words."""
    return _APART.sub("_", name.strip()).lower()


def names(text: str, family: str) -> bool:
    """Whether a path, a hub id or a variable's value is about a family: ``unsloth/gpt-oss-20b`` is a ``gpt_oss``."""
    wanted = normalized(family)
    # Not within a longer word or number: "opt" is no part of "optimus", nor "llama-3" of "llama-30b".
    end = "[a-z0-9]" if wanted[-1:].isdigit() else "[a-z]"
    return bool(wanted) and re.search(rf"(?<![a-z0-9]){re.escape(wanted)}(?!{end})", normalized(text)) is not None
