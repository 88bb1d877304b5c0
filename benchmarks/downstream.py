"""The test suites of real projects, as their source distributions have them, with this plugin and without it.

    python benchmarks/downstream.py [--device cuda] [--projects peft …] [--out table.md]

Each project of downstream.toml gets an environment of its own, with its release, torch and this plugin as it is here.
Its tests run four times, in turns: without the plugin; with every test's peak and leak measured and its peak recorded
as a baseline; without it; and held against that baseline. Nothing is enforced, so no test may end otherwise than it
does by itself: if one does, the exit status is 1. Promises that did not hold are listed, each to be looked into.

Tests run offline, without the user's environment variables, and without conftests that nobody read.

Where environments cannot be made (a machine without an index), `--here` takes the one that runs this script, which
has to have the projects' releases and what their tests need; `--sdists` is a folder with their source distributions.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import downstream_projects, downstream_sources
from benchmarks.downstream_projects import Project
from benchmarks.downstream_runs import BACKENDS, NotRun, Runs
from benchmarks.downstream_table import Measured, measured, table
from pytest_memleak.errors import BadInput, MemleakError
from pytest_memleak.releases.cell import Environment
from pytest_memleak.releases.environment import Uv, find_uv
from pytest_memleak.releases.package import make_wheel
from pytest_memleak.releases.processes import Processes
from pytest_memleak.releases.sources import sources

ROOT = Path(__file__).resolve().parents[1]
_TOLD = ("torch", "transformers", "accelerate", "pytest", "pytest-memleak")
"""Packages whose releases stand in the table."""


def main() -> int:
    options = _options()
    # Who is ended, by a CI job's time-out say, ends what runs: it is in a session of its own.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        projects = downstream_projects.chosen(downstream_projects.read(), options.projects)
        folder = Path(options.folder or tempfile.mkdtemp(prefix="downstream-")).resolve()
        done, failed, interrupted = [], 0, False
        try:
            for project in projects:
                try:
                    done.append(_run(project, folder / project.name, options))
                except (MemleakError, NotRun) as error:
                    failed += 1
                    _tell(f"{project.name}: {error}")
                except KeyboardInterrupt:
                    interrupted = True
                    _tell(f"{project.name}: interrupted; the table has the projects before it")
                    break
        finally:
            if options.keep or options.folder:
                _tell(f"logs and environments are in {folder}")
            else:
                shutil.rmtree(folder, ignore_errors=True)
    except BadInput as error:
        _tell(str(error))
        return 2
    if done:
        text = table(done, _head(options))
        print(text)
        if options.out:
            options.out.write_text(text + "\n", encoding="utf-8")
    for one in done:
        for changed in one.comparison.changed:
            _tell(f"{one.project.name}: {changed}")
    if interrupted:
        return 130
    return 0 if not failed and all(one.fine for one in done) else 1


def _run(project: Project, folder: Path, options: argparse.Namespace) -> Measured:
    if folder.exists():
        raise BadInput(f"--folder: {folder} is there already: remove it, or name another folder")
    folder.mkdir(parents=True)
    sdists = (options.sdists or folder.parent / "sdists").resolve()
    start = downstream_sources.unpacked(project, folder, sdists, find_uv, sources())
    if options.here:
        python, installed = Path(sys.executable), _here(project)
    else:
        _tell(f"{project.name} {project.version}: making its environment")
        requires = (options.torch, "pytest", *(["pytest-xdist"] if options.workers else []), *project.requires)
        wanted = Environment(((project.name, project.version),), requires, options.python)
        uv = Uv(find_uv(), sources(), Processes())
        python, installed = uv.make(wanted, folder / "environment", (str(make_wheel(folder)),))
    if options.workers and project.alone:
        _tell(f"{project.name}: without workers: {project.alone}")
    runs = Runs(
        project,
        python,
        start,
        folder,
        options.device,
        0 if project.alone else options.workers,
        options.timeout,
        lambda text: _tell(f"{project.name}: {text}"),
    )
    return measured(runs.all(), {name: installed[name] for name in _TOLD if name in installed})


def _here(project: Project) -> dict[str, str]:
    installed = {one.name.lower().replace("_", "-"): one.version for one in metadata.distributions()}
    if (got := installed.get(project.name)) != project.version:
        raise BadInput(
            f"--here: {project.pinned} is to be tested, and this environment has {got or 'none'}: "
            f"pip install {project.pinned} {' '.join(project.requires)}"
        )
    return installed


def _head(options: argparse.Namespace) -> list[str]:
    said = [f"--device {options.device}"] if options.device != "cpu" else []
    said += [f"-n {options.workers}"] if options.workers else []
    said += [f"--projects {' '.join(options.projects)}"] if options.projects else []
    return [
        f"`{' '.join(['python benchmarks/downstream.py', *said])}`",
        "",
        f"Python {platform.python_version()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the end; "
        f"card: {options.device}. Ratios are of the same run: with the plugin, over without it.",
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--projects", nargs="+", default=[], metavar="NAME", help="of downstream.toml (default: all)")
    parser.add_argument("--device", choices=sorted(BACKENDS), default="cpu", help="the card the tests run on")
    parser.add_argument("-n", "--workers", type=int, default=0, help="workers of pytest-xdist (default: none)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that one run may take (default: 900)")
    parser.add_argument("--torch", default="torch==2.13.0", help="torch as pip takes it (default: torch==2.13.0)")
    parser.add_argument("--python", default="", help="version or path of the environments' interpreter")
    parser.add_argument("--here", action="store_true", help="make no environments: take this one")
    parser.add_argument("--sdists", type=Path, help="folder with source distributions, which are not fetched then")
    parser.add_argument("--folder", type=Path, help="work here, and leave everything")
    parser.add_argument("--keep", action="store_true", help="leave logs and environments where they are")
    parser.add_argument("--out", type=Path, help="write the table to this file as well")
    return parser.parse_args()


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
