"""``memleak predict``: what a model would take of a card, from its config alone and without a GPU."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.cards.simulated.profiles import DEFAULT, MOST_MEMORY, PROFILES, Profile
from pytest_memleak.cli.finding import first_line
from pytest_memleak.errors import BadInput, MemleakError, Unavailable
from pytest_memleak.support import require_torch

if TYPE_CHECKING:
    from pytest_memleak.cli.answer import Answer
    from pytest_memleak.cli.plan import Planned
    from pytest_memleak.cli.program import Run

FITS, DOES_NOT_FIT, CANNOT_TELL = 0, 1, 2


def add_to(commands: Any) -> None:
    about = (
        "Runs a load, and training if asked for, on a simulated card: no GPU, no download, no weights. Every number is "
        "a prediction. Exit status: 0 if it fits, 1 if not, 2 if that cannot be told."
    )
    command = commands.add_parser("predict", help="what a model would take of a card", description=about)
    command.add_argument("config", type=Path, metavar="CONFIG", help="a transformers config.json, or its folder")
    command.add_argument("--quantize", choices=["none", "4bit", "8bit"], default="none", help="by bitsandbytes")
    command.add_argument("--train", choices=["none", "full", "lora"], default="none", help="none: one forward pass")
    command.add_argument("--seq", type=_count, default=512, metavar="N", help="tokens in a row (default: 512)")
    command.add_argument("--batch", type=_count, default=1, metavar="N", help="rows in a batch (default: 1)")
    command.add_argument("--card", default=DEFAULT, help=f"a size (24G) or one of {', '.join(PROFILES)}")
    command.add_argument("--json", action="store_true", help="print the same as data")


def run(chosen: argparse.Namespace) -> tuple[str, int]:
    """What to print, and the exit status. What goes on meanwhile is told on stderr."""
    try:
        _require(chosen)
        _quieten()
        with tempfile.TemporaryDirectory(prefix="pytest-memleak-") as folder:
            return _answer(chosen, Path(folder))
    except MemleakError as error:
        print(f"memleak predict: {error}", file=sys.stderr)
        return "", CANNOT_TELL


def _answer(chosen: argparse.Namespace, folder: Path) -> tuple[str, int]:
    from pytest_memleak.cli.answer import data_of, text_of
    from pytest_memleak.prediction import profile_for

    profile = profile_for(chosen.card)
    asked = _asked(chosen, folder)
    answer = _try(asked, profile)
    needs = answer
    if not answer.prediction.fits:
        _tell("it does not fit: once more on a card without end, to see what it would take")
        needs = _try(asked, replace(profile, name="a card without end", total=MOST_MEMORY, context=0))
    smallest = _smallest(asked, profile, answer, needs)
    planned = _planned(asked, profile)
    data = data_of(asked, chosen.config, answer, needs, smallest, planned)
    status = CANNOT_TELL if data["doubt"] else FITS if answer.prediction.fits else DOES_NOT_FIT
    return json.dumps(data, indent=1) if chosen.json else text_of(data, asked, answer, needs, planned), status


def _asked(chosen: argparse.Namespace, folder: Path) -> Run:
    import torch
    import transformers

    from pytest_memleak.cli.program import Run
    from pytest_memleak.upstream.checkpoints import DTYPES, make_checkpoint

    transformers.logging.set_verbosity_error()
    config = _config(chosen.config)
    wanted = str(getattr(config, "dtype", None) or torch.bfloat16).removeprefix("torch.")
    dtype = wanted if wanted in DTYPES else "bfloat16"
    _tell("make a sparse checkpoint")
    make_checkpoint(config, folder, dtype=dtype, sparse=True, tokenizer=False)
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    if not getattr(transformers, architecture).can_generate():
        raise BadInput(f"{chosen.config}: {architecture} does not generate text, and other models cannot be run here")
    return Run(folder, architecture, dtype, chosen.quantize, chosen.train, chosen.batch, chosen.seq)


def _config(path: Path) -> Any:
    import transformers

    if not path.exists():
        raise BadInput(f"{path} is not there: give a config.json or its folder")
    try:
        return transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{path} cannot be read as a config by transformers: {error}") from error


def _try(asked: Run, profile: Profile) -> Answer:
    from pytest_memleak.cli.answer import Answer
    from pytest_memleak.cli.program import Program
    from pytest_memleak.prediction import predict_on
    from pytest_memleak.upstream.warmup import LESS_THAN_NOTHING, asked_for_less_than_nothing

    program = Program(asked, tell=lambda stage: _tell(f"{profile.name}: {stage}"))
    try:
        prediction = predict_on(program, profile)
    except MemleakError:
        raise
    except Exception as error:  # whatever a library raises on its way: there is no answer then
        if asked_for_less_than_nothing(error):
            raise BadInput(f"{LESS_THAN_NOTHING.format(format_size(profile.total))}: give a larger --card") from error
        raise Unavailable(
            f"the {program.stage} ended without an answer: {type(error).__name__}: {first_line(error)}"
        ) from error
    stage = program.peak_stage if prediction.fits else program.stage
    return Answer(prediction, program.weights, program.parameters, stage)


def _smallest(asked: Run, card: Profile, answer: Answer, needs: Answer) -> Answer | None:
    """The smallest card on which it was seen to fit: another card may choose other kernels, so it is tried."""
    for profile in sorted(PROFILES.values(), key=lambda one: one.total):
        # Another card's kernels may take a little less.
        if profile.total - profile.context < 0.9 * needs.prediction.allocated_peak:
            continue
        _tell(f"does it fit on {profile.name}?")
        found = answer if profile == card else _try(asked, profile)
        if found.prediction.fits:
            return found
    return None


def _planned(asked: Run, profile: Profile) -> Planned | None:
    if asked.train == "none":
        return None
    from pytest_memleak.cli.plan import plan_for

    return plan_for(asked, profile, _tell)


def _require(chosen: argparse.Namespace) -> None:
    if chosen.train == "full" and chosen.quantize != "none":
        raise BadInput(f"--train full with --quantize {chosen.quantize}: quantized weights take no training; use lora")
    require_torch()
    wanted = ["transformers", "accelerate"]
    wanted += ["peft"] if chosen.train == "lora" else []
    wanted += ["bitsandbytes"] if chosen.quantize != "none" else []
    if missing := [name for name in wanted if not find_spec(name)]:
        raise Unavailable(f"this needs {', '.join(missing)}: pip install {' '.join(missing)}")


def _count(text: str) -> int:
    with contextlib.suppress(ValueError):
        if (number := int(text)) > 0:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")


def _quieten() -> None:
    """Libraries draw bars, and warn about how a program is written that nobody here wrote."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore")
    # They look for libraries of CUDA that are not needed: none of their operations runs here.
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)


_BEGUN = time.monotonic()


def _tell(stage: str) -> None:
    print(f"{time.monotonic() - _BEGUN:6.1f} s  {stage}", file=sys.stderr, flush=True)
