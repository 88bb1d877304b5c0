"""Whether this tree may be released under a tag: python ci/releasable.py v1.2.3. Says what is wrong, status 1."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def troubles(tag: str, root: Path = ROOT) -> list[str]:
    found = []
    project = (root / "pyproject.toml").read_text(encoding="utf-8").partition("\n[project]\n")[2]
    version = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)[0]
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, and pyproject.toml says version {version}: tag it v{version}")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changelog, re.MULTILINE):
        found.append(f"CHANGELOG.md has no section {version} with a date: towncrier build --version {version}")
    fragments = sorted(path.name for path in (root / "changelog.d").iterdir() if path.name != "README.md")
    if fragments:
        found.append(f"changelog.d has fragments that no section tells: {', '.join(fragments)}")
    return found


if __name__ == "__main__":
    found = troubles(sys.argv[1])
    print("\n".join(found))
    sys.exit(1 if found else 0)
