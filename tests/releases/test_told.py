"""Whether a package under trial came from elsewhere, with distributions that are made here."""

from __future__ import annotations

import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

from pytest_memleak.releases import told


@pytest.mark.parametrize(
    ("files", "imported"),
    [
        ({"RECORD": "fakelib.py,,\n"}, "fakelib"),
        ({"RECORD": "fakelib/part.py,,\n"}, "fakelib"),
        ({"RECORD": "_fakelib.cpython-310-x86_64-linux-gnu.so,,\n"}, "_fakelib"),
        ({"RECORD": "../../bin/tool,,\n", "top_level.txt": "fakelib\n"}, "fakelib"),
    ],
)
def test_the_modules_of_a_package_are_known_on_every_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], imported: str
) -> None:
    info = tmp_path / "fake_lib-1.0.dist-info"
    info.mkdir()
    for name, text in (files | {"METADATA": "Metadata-Version: 2.1\nName: Fake.Lib\nVersion: 1.0\n"}).items():
        (info / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    # As on Python 3.10, where it knows nothing of a wheel without top_level.txt.
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    monkeypatch.setenv(told.PACKAGES, "other,fake-lib")
    module = types.ModuleType(imported)
    monkeypatch.setitem(sys.modules, imported, module)
    module.__file__ = str(Path(sys.prefix) / "lib" / "fakelib.py")
    assert told._from_elsewhere() == {}
    module.__file__ = str(tmp_path / "fakelib.py")
    assert told._from_elsewhere() == {"fake-lib": module.__file__}
