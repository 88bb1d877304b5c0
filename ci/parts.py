"""Takes apart what other repositories take from here, for linters that read one thing each: every script as a file of
its own, and the templates for GitLab as they are once their inputs are filled in.

    python ci/parts.py FOLDER
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
GITLAB = ROOT / "ci" / "gitlab"
_INPUT = re.compile(r"\$\[\[ inputs\.([\w-]+) \]\]")


def main(folder: Path) -> None:
    scripts = dict(github_scripts())
    jobs = {name: job for path in GITLAB.glob("*.yml") for name, job in gitlab(path).items()}
    for name, job in jobs.items():
        scripts |= {f"gitlab-{name}-{part}": "\n".join(job[part]) for part in ("script", "after_script") if part in job}
    for name, script in scripts.items():
        (folder / f"{name}.sh").write_text(f"#!/bin/bash\n{script}", encoding="utf-8")
    (folder / "gitlab.json").write_text(json.dumps(jobs), encoding="utf-8")


def github_scripts() -> Any:
    action = yaml.safe_load((ROOT / "ci" / "action.yml").read_text(encoding="utf-8"))
    lists = {"action": action["runs"]["steps"]}
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for name, job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].items():
            lists[f"{path.stem}-{name}"] = job["steps"]
    for name, steps in lists.items():
        yield from ((f"{name}-{number}", step["run"]) for number, step in enumerate(steps) if "run" in step)


def gitlab(template: Path, **inputs: Any) -> dict[str, Any]:
    """The template's jobs; an input that is not given has its default, and nothing if that is none."""
    head, jobs = yaml.safe_load_all(template.read_text(encoding="utf-8"))
    known = {name: (declared or {}).get("default", "") for name, declared in head["spec"]["inputs"].items()}
    found: dict[str, Any] = filled(jobs, known | inputs)
    return found


def filled(node: Any, inputs: dict[str, Any]) -> Any:
    """As GitLab does it: an input that is a whole value keeps its type."""
    if isinstance(node, dict):
        return {filled(name, inputs): filled(value, inputs) for name, value in node.items()}
    if isinstance(node, list):
        return [filled(one, inputs) for one in node]
    if not isinstance(node, str):
        return node
    whole = _INPUT.fullmatch(node)
    return inputs[whole[1]] if whole else _INPUT.sub(lambda found: str(inputs[found[1]]), node)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
