"""Which parameters of transformers' causal LMs are experts, as `pytest_memleak.upstream.experts` finds them.

    python benchmarks/experts_census.py               # the installed release
    python benchmarks/experts_census.py --json out.json

Every causal LM of the release is built on meta from its default config, cut to six layers. What is 3D and no expert is
printed as well, and is to be looked at: a release may call a mixture something new. Takes half a minute, and no memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pytest_memleak.upstream.experts import expert_parameters

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_MOST_LAYERS = 6


@dataclass
class Census:
    """By type of model. Names are without the layers' numbers."""

    built: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    experts: dict[str, list[str]] = field(default_factory=dict)
    others: dict[str, list[str]] = field(default_factory=dict)
    """3D parameters that are no experts."""

    def leaves(self) -> Counter[str]:
        return Counter(leaf for names in self.experts.values() for leaf in {name.rpartition(".")[2] for name in names})


def causal_lms() -> Iterator[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    yield from MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def on_meta(kind: str) -> Any:
    """The model of that type, from its default config, with few layers."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = CONFIG_MAPPING[kind]()
    # Where each layer has a type of its own, as many types stand in the config.
    if getattr(config, "layer_types", None) is None and not hasattr(config, "layers_block_type"):
        for name in _LAYERS:
            layers = getattr(config, name, None)
            if isinstance(layers, int) and layers > _MOST_LAYERS:
                setattr(config, name, _MOST_LAYERS)
    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    with torch.device("meta"), _no_initialization():
        return getattr(transformers, found if isinstance(found, str) else found[0])(config)


def _no_initialization() -> Any:
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # transformers 4
        from transformers.modeling_utils import no_init_weights
    return no_init_weights()


def take(census: Census, kind: str) -> None:
    # A default config may describe no model, need what is not installed, or fail in any other way.
    try:
        model = on_meta(kind)
    except Exception as error:  # noqa: BLE001
        census.failed[kind] = f"{type(error).__name__}: {error}".strip().partition("\n")[0][:100]
        return
    census.built.append(kind)
    experts = {one.name for one in expert_parameters(model)}
    stacks = [name for name, one in model.named_parameters() if one.dim() == 3]
    for found, names in ((census.experts, experts), (census.others, set(stacks) - experts)):
        if names:
            found[kind] = sorted({re.sub(r"\.\d+(?=\.)", "", name) for name in names})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    warnings.simplefilter("ignore")
    import transformers

    census = Census()
    for kind in causal_lms():
        take(census, kind)
    for title, found in (("experts", census.experts), ("3D, no experts", census.others)):
        print(f"\n{title}")
        for kind, names in found.items():
            print(f"  {kind}: {', '.join(names)}")
    print("\nnot built")
    for kind, why in census.failed.items():
        print(f"  {kind}: {why}")
    leaves = ", ".join(f"{leaf} in {count}" for leaf, count in census.leaves().most_common())
    print(f"\ntransformers {transformers.__version__}: {len(census.built)} causal LMs built, {len(census.failed)} not;")
    print(f"{len(census.experts)} have experts ({leaves})")
    if options.json:
        options.json.write_text(json.dumps(asdict(census), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
