"""GPU tests of other libraries, as their source distributions have them, on the simulated card.

    python benchmarks/upstream_tests.py > table.md

Each library's tests run in a fresh folder and with an empty environment: on the CPU, which tells the tests that need a
GPU (they are skipped), and those alone with `--gpu-backend=simulated`. What asks for several cards runs again with
two; what asks a hub for a model runs again with models of that name that are made here (upstream_models.py). No
conftest.py of theirs is run, and there is no model hub. Needs pip's index, pytest-timeout, and torch, transformers,
accelerate, peft and bitsandbytes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.upstream_table import Result, Tests, table  # noqa: E402

# What the tests import besides the libraries themselves: into a folder of its own, without torch.
HELPERS = ["parameterized", "scipy", "opt-einsum", "datasets", "evaluate", "diffusers", "importlib-metadata", "zipp"]
HELPERS += ["pyarrow", "pandas", "dill", "multiprocess", "xxhash", "pillow", "fsspec", "scikit-learn", "joblib"]
HELPERS += ["requests", "charset-normalizer", "idna", "urllib3", "certifi", "threadpoolctl"]
HELPERS += ["jaxtyping", "wadler-lindig", "linear-operator==0.6.1", "pytz", "python-dateutil", "six"]


@dataclass(frozen=True)
class Library:
    """One source distribution and its tests that are for a GPU and make their models themselves, as far as they do."""

    name: str
    version: str
    modules: tuple[str, ...]
    # Tests that return early without a GPU, where others are skipped: only their names tell what they are for.
    gated_by_name: str = ""
    install: bool = False


LIBRARIES = (
    Library(
        "accelerate",
        "1.15.0",
        tuple(
            f"tests/test_{name}.py"
            for name in (
                *("modeling_utils", "big_modeling", "hooks", "memory_utils", "utils", "optimizer", "accelerator"),
                *("kwargs_handlers", "data_loader", "activation_checkpointing_offload", "quantization", "scheduler"),
            )
        ),
    ),
    Library("peft", "0.21.2", ("tests/test_common_gpu.py", "tests/test_initialization.py")),
    Library("opacus", "1.6.0", ("opacus/tests/mixed_precision_test.py",), install=True),
    Library(
        "gpytorch",
        "1.15.2",
        ("test/kernels", "test/distributions", "test/likelihoods", "test/examples/test_simple_gp_regression.py"),
        gated_by_name="cuda",
        install=True,
    ),
)

# First match decides. What a skip says on a machine without a GPU, and what a failure says on the simulated card.
FOR_A_GPU = re.compile(r"gpu|cuda|accelerator|hardware|non.?cpu|bitsandbytes|multi.?device", re.IGNORECASE)
FOR_SEVERAL = re.compile(r"multiple|multi.?(gpu|device)|at least 2", re.IGNORECASE)
KINDS = {
    "needs values": r"INCONCLUSIVE|inconclusive|are not close|not almost equal|allclose",
    "needs a hub": r"offline|huggingface\.co|LocalEntryNotFound|cached files|Hub",
    "not simulated": r"accelerate launch|NotImplementedError|not simulated|no kernel|not available for",
}


def prepared(library: Library, folder: Path) -> Path:
    """The unpacked source distribution; what it lacks of the repository it comes from is an empty tests/__init__.py."""
    pip("download", "--no-binary", ":all:", "--no-build-isolation", "-d", str(folder), pinned(library))
    archive = next(folder.glob(f"{library.name}-*.tar.gz"))
    subprocess.run(["tar", "xzf", str(archive), "-C", str(folder)], check=True)
    source = folder / archive.name.removesuffix(".tar.gz")
    for package in ("tests", "test"):
        if (source / package).is_dir():
            (source / package / "__init__.py").touch()
    return source


def pip(command: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", command, "--no-deps", "-q", *arguments], check=True)


def pinned(library: Library) -> str:
    return f"{library.name}=={library.version}"


class Runs:
    """The runs of one library's tests; each leaves a log and a file of outcomes in `folder`."""

    def __init__(self, library: Library, folder: Path) -> None:
        self._library = library
        self._folder = folder
        self._source = prepared(library, folder)

    def all(self) -> Tests:
        on_cpu = self.run("cpu", "cpu", list(self._library.modules))
        gated = [test for test, result in on_cpu.items() if self._needs_gpu(result)]
        print(f"{self._library.name}: {len(gated)} of {len(on_cpu)} need a GPU", file=sys.stderr)
        ended = Result("other", "the run ended before it")
        found = dict.fromkeys(gated, ended) | self.run("one", "simulated", gated)
        several = [
            test for test, result in found.items() if result.kind == "skipped" and FOR_SEVERAL.search(result.why)
        ]
        found |= dict.fromkeys(several, ended) | self.run("two", "simulated:2xh200", several)
        hubless = [test for test, result in found.items() if result.kind == "needs a hub"]
        # As many cards as the test had before.
        with_models: dict[str, Result] = dict.fromkeys(hubless, ended)
        for name, backend, tests in (
            ("one-models", "simulated", [test for test in hubless if test not in several]),
            ("two-models", "simulated:2xh200", [test for test in hubless if test in several]),
        ):
            with_models |= self.run(name, backend, tests, home=self._folder / "models")
        return Tests(self._library.name, self._library.version, found, frozenset(several), with_models)

    def run(self, name: str, backend: str, tests: list[str], home: Path | None = None) -> dict[str, Result]:
        """What became of each test, by node id. `home` is where models of the hub would be."""
        if not tests:
            return {}
        outcomes = self._folder / f"{self._library.name}-{name}.tsv"
        outcomes.unlink(missing_ok=True)
        (self._folder / "tests.txt").write_text("\n".join(tests))
        plugins = ["-p", "outcomes"]
        if backend == "cpu":
            gate = self._library.gated_by_name
            plugins += ["-k", gate] if gate else ["-p", "skipped_only"]
        command = [sys.executable, "-m", "pytest", f"--gpu-backend={backend}", *plugins, "-p", "no:cacheprovider"]
        command += ["--noconftest", "-c", os.devnull, f"--rootdir={self._source}", "-q", "--tb=short", "--timeout=120"]
        command += ["--continue-on-collection-errors", f"@{self._folder / 'tests.txt'}"]
        log = self._folder / f"{self._library.name}-{name}.log"
        with log.open("w") as file:
            environment = self._environment(outcomes, home or self._folder / "no-models")
            subprocess.run(
                command, cwd=self._source, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
            )
        if not outcomes.exists():
            raise SystemExit(f"{self._library.name}: no test ran; pytest said:\n{log.read_text()[-2000:]}")
        return dict(read(outcomes))

    def _environment(self, outcomes: Path, home: Path) -> dict[str, str]:
        places = (self._folder / "own", ROOT / "benchmarks" / "upstream_plugins", self._folder / "site", self._source)
        return {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.defpath)),
            "PYTHONPATH": os.pathsep.join(map(str, places)),
            "HOME": str(self._folder / "home"),
            "HF_HOME": str(home),
            "OUTCOMES": str(outcomes),
            "OMP_NUM_THREADS": "1",
            "RUN_SLOW": "yes",
            **dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1"),
        }

    def _needs_gpu(self, result: Result) -> bool:
        if self._library.gated_by_name:
            return result.kind == "passed"
        return result.kind == "skipped" and bool(FOR_A_GPU.search(result.why))


def read(outcomes: Path) -> Iterator[tuple[str, Result]]:
    """The worst report of each test: a failure over a skip over a pass."""
    reports: dict[str, list[tuple[str, str]]] = {}
    for line in outcomes.read_text().splitlines():
        test, _, outcome, why = line.split("\t", 3)
        reports.setdefault(test, []).append((outcome, why))
    for test, all_of_it in reports.items():
        worst = min(all_of_it, key=lambda report: ("failed", "skipped", "passed").index(report[0]))
        yield test, judged(*worst)


def judged(outcome: str, why: str) -> Result:
    if outcome in ("passed", "skipped"):
        return Result(outcome, why)
    return Result(next((kind for kind, pattern in KINDS.items() if re.search(pattern, why)), "other"), why)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[library.name for library in LIBRARIES], help="a library")
    parser.add_argument("--folder", type=Path, help="work here, and leave the logs (default: a temporary folder)")
    arguments = parser.parse_args()
    chosen = [library for library in LIBRARIES if not arguments.only or library.name in arguments.only]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        for name in ("home", "own"):
            (folder / name).mkdir(exist_ok=True, parents=True)
        # This package alone, and not the tests beside it, whose name is that of others'.
        own = folder / "own" / "pytest_memleak"
        own.unlink(missing_ok=True)
        own.symlink_to(ROOT / "pytest_memleak")
        if not (folder / "models").exists():
            from benchmarks.upstream_models import make_cache

            make_cache(folder / "models")
        installed = [pinned(library) for library in chosen if library.install]
        pip("install", "--target", str(folder / "site"), "--upgrade", *HELPERS, *installed)
        print(table([Runs(library, folder).all() for library in chosen]))


if __name__ == "__main__":
    main()
