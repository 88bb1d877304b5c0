"""GPU tests of other libraries, as their source distributions have them, on the simulated card.

    python benchmarks/upstream_tests.py > table.md

Each library's tests run twice, in a fresh folder and with an empty environment: on the CPU, which tells the tests that
need a GPU (they are skipped), and then those alone with `--gpu-backend=simulated`. No conftest.py of theirs is run, and
there is no model hub. Needs pip's index, pytest-timeout, and torch, transformers, accelerate, peft and bitsandbytes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

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

# Keeps what a machine without a GPU skips; the bodies of all other tests would only take time.
SKIPPED_ONLY = """
def pytest_collection_modifyitems(config, items):
    def skips(item):
        marked = (getattr(item, name, None) for name in ("obj", "cls"))
        return any(getattr(part, "__unittest_skip__", False) for part in marked) or any(item.iter_markers("skipif"))
    kept = [item for item in items if skips(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
"""
# Writes what became of each test, by its node id: the first line that says so.
OUTCOMES = """
import os
def pytest_runtest_logreport(report):
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")
    errors = [line[1:] for line in text.splitlines() if line.startswith("E ")] or text.strip().splitlines()[-1:]
    said = " ".join(" ".join(errors).split())[:600]
    with open(os.environ["OUTCOMES"], "a") as file:
        file.write(f"{report.nodeid}\\t{report.when}\\t{report.outcome}\\t{said}\\n")
def pytest_collectreport(report):
    if report.failed:
        with open(os.environ["OUTCOMES"], "a") as file:
            file.write(f"{report.nodeid}\\tcollect\\tfailed\\t{' '.join(str(report.longrepr).split())[-300:]}\\n")
"""
# First match decides. What a skip says on a machine without a GPU, and what a failure says on the simulated card.
FOR_A_GPU = re.compile(r"gpu|cuda|accelerator|hardware|non.?cpu|bitsandbytes|multi.?device", re.IGNORECASE)
KINDS = {
    "needs values": r"INCONCLUSIVE|inconclusive|are not close|not almost equal|allclose",
    "needs a hub": r"offline|huggingface\.co|LocalEntryNotFound|cached files|Hub",
    "not simulated": r"NotImplementedError|not simulated|Storage device not recognized|no kernel|not available for",
}
COLUMNS = ("passed", "needs a hub", "needs values", "not simulated", "skipped here too", "other")


@dataclass(frozen=True)
class Result:
    """What became of one test, and why."""

    kind: str
    why: str = ""


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


def run(library: Library, source: Path, folder: Path, backend: str, tests: list[str]) -> dict[str, Result]:
    """What became of each test, by node id."""
    outcomes = folder / f"{library.name}-{backend}.tsv"
    outcomes.unlink(missing_ok=True)
    (folder / "tests.txt").write_text("\n".join(tests))
    plugins = ["-p", "outcomes"]
    if backend == "cpu":
        plugins += ["-k", library.gated_by_name] if library.gated_by_name else ["-p", "skipped_only"]
    command = [sys.executable, "-m", "pytest", f"--gpu-backend={backend}", *plugins, "-p", "no:cacheprovider"]
    command += ["--noconftest", "-c", os.devnull, f"--rootdir={source}", "-q", "--tb=short", "--timeout=60"]
    command += ["--continue-on-collection-errors", f"@{folder / 'tests.txt'}"]
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment = {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.defpath)),
        "PYTHONPATH": os.pathsep.join((str(folder), str(folder / "site"), str(source))),
        "HOME": str(home),
        "OUTCOMES": str(outcomes),
        "OMP_NUM_THREADS": "1",
        **dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1"),
    }
    log = folder / f"{library.name}-{backend}.log"
    with log.open("w") as file:
        subprocess.run(command, cwd=source, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if not outcomes.exists():
        raise SystemExit(f"{library.name}: no test ran; pytest said:\n{log.read_text()[-2000:]}")
    return dict(read(outcomes))


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
    if outcome == "passed":
        return Result("passed")
    if outcome == "skipped":
        return Result("skipped here too", why)
    kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, why)), "other")
    return Result(kind, why)


def needs_gpu(library: Library, result: Result) -> bool:
    if library.gated_by_name:
        return result.kind == "passed"
    return result.kind == "skipped here too" and bool(FOR_A_GPU.search(result.why))


def row(library: Library, results: dict[str, Result]) -> str:
    counts = Counter(result.kind for result in results.values())
    cells = (library.name, library.version, len(results), *(counts[column] for column in COLUMNS))
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def reasons(library: Library, results: dict[str, Result]) -> Iterator[str]:
    """Each reason for not passing, once, with how many tests it holds for."""
    found = Counter((result.kind, plain(result.why)) for result in results.values() if result.kind != "passed")
    for (kind, why), count in found.most_common():
        yield f"- {library.name}, {kind}, {count}: `{why}`"


def plain(why: str) -> str:
    """Without what differs from test to test and from machine to machine."""
    why = re.sub(r"(/[\w.+-]+)+/", "…/", why.replace("`", "'").replace("|", "/"))
    return re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "N", why)[:150]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[library.name for library in LIBRARIES], help="a library")
    parser.add_argument("--folder", type=Path, help="work here, and leave the logs (default: a temporary folder)")
    arguments = parser.parse_args()
    chosen = [library for library in LIBRARIES if not arguments.only or library.name in arguments.only]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(exist_ok=True, parents=True)
        (folder / "skipped_only.py").write_text(SKIPPED_ONLY)
        (folder / "outcomes.py").write_text(OUTCOMES)
        installed = [pinned(library) for library in chosen if library.install]
        pip("install", "--target", str(folder / "site"), "--upgrade", *HELPERS, *installed)
        rows: list[str] = []
        whys: list[str] = []
        passed: list[str] = []
        for library in chosen:
            source = prepared(library, folder)
            on_cpu = run(library, source, folder, "cpu", list(library.modules))
            gated = [test for test, result in on_cpu.items() if needs_gpu(library, result)]
            print(f"{library.name}: {len(gated)} of {len(on_cpu)} need a GPU", file=sys.stderr)
            results = run(library, source, folder, "simulated", gated) if gated else {}
            results = {test: results.get(test, Result("other", "the run ended before it")) for test in gated}
            rows.append(row(library, results))
            whys += reasons(library, results)
            passed += [f"- {library.name}: `{test}`" for test, result in results.items() if result.kind == "passed"]
    packages = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "pytest")
    print("Run with", ", ".join(f"{package} {version(package)}" for package in packages) + ".\n")
    print("| library | version | GPU tests | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 3))
    print("\n".join(rows))
    print("\nWhy the others do not pass (numbers as N):\n\n" + "\n".join(whys))
    print("\nThe tests that pass:\n\n" + "\n".join(passed))


if __name__ == "__main__":
    main()
