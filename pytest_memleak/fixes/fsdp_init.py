"""What a rank that waits for rank 0's weights does until they come: nothing, or a second copy of the model.

Under FSDP with `cpu_ram_efficient_loading` one process of each machine reads a checkpoint, and accelerate's prepare
sends the weights to the others. What those hold meanwhile is overwritten. transformers has given them memory all the
same: uninitialized, whose values show where nothing overwrites them (`empty_like`); filled with zeros, which commits
every page (`zeros_like`); or uninitialized and then filled by the model's own initialization (`reinit`). Since 5.23
they keep what they read from the disk, which costs nothing if it is mapped as it is, and the whole model if it is cast
or upcast.

The fix leaves parameters and persistent buffers of these ranks on meta, and computes the other buffers. accelerate's
broadcast is made to take persistent buffers, on which it crashes, and its optimizers to know parameters on meta apart.

Checked with transformers 4.57.6, 5.0.0, 5.3.0, 5.5.4, 5.6.0, 5.22.2, 5.23.0 and 5.24.0, accelerate 1.8.1 to 1.15.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module, metadata

from packaging.specifiers import SpecifierSet

from pytest_memleak.fixes.frame import Fix
from pytest_memleak.upstream.patches import Patch

_BY_ITSELF = {
    "empty_like": (">=4.51,<5.0", ">=5.4,<5.6"),
    "zeros_like": (">=5.6,<5.23",),
    "reinit": (">=5.0,<5.4",),
}
"""The releases of transformers that have each flavour."""


def _on_meta() -> Iterator[Patch]:
    """Ranks that wait hold no weights, and receive all that they lack."""
    if _is_there("transformers"):
        from pytest_memleak.fixes._fsdp_load import on_meta, placing, reading_nothing, recognised

        modeling = recognised()
        yield from reading_nothing(modeling)
        yield from placing(modeling, on_meta, unless_mapped=True)
    if _is_there("accelerate"):
        from pytest_memleak.fixes._fsdp_prepare import receiving

        yield from receiving()


def _flavour(name: str) -> Callable[[], Iterator[Patch]]:
    def patches() -> Iterator[Patch]:
        import torch

        from pytest_memleak.fixes._fsdp_load import filled, placing, recognised

        modeling = recognised()
        release = import_module("transformers").__version__
        if not any(SpecifierSet(releases, prereleases=True).contains(release) for releases in _BY_ITSELF[name]):
            like = torch.zeros_like if name == "zeros_like" else torch.empty_like
            yield from placing(modeling, partial(filled, like), spare=name != "reinit")

    return patches


def _is_there(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


FIX = Fix(
    "fsdp_init",
    mends="under FSDP every rank commits a copy of the model, or holds NaN, until rank 0 sends its weights",
    links=(
        "https://github.com/huggingface/transformers/pull/45649",
        "https://github.com/huggingface/transformers/pull/45050",
        "https://github.com/huggingface/accelerate/issues/3898",
    ),
    # No release leaves the parameters on meta.
    affected={"transformers": ">=4.50", "accelerate": ">=1.6,<1.16"},
    patches=_on_meta,
    bugs={name: _flavour(name) for name in _BY_ITSELF},
)
