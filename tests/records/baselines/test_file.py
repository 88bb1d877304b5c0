from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_memleak.errors import BadInput
from pytest_memleak.records.baselines import Baseline, Entry, Key
from pytest_memleak.records.baselines.file import HEAD

LINE = "a.py::t simulated NVIDIA-H200 torch-2.13 peak(cuda:0)=1024"
OTHER = "b.py::t simulated NVIDIA-H200 torch-2.13 peak(cuda:0)=2"


def text(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in (HEAD[0], *lines)).encode("latin-1")


def entry(test: str, peak: int = 1, *, card: str = "NVIDIA-H200", torch: str = "2.13", device: str = "cuda:0") -> Entry:
    return Entry(Key(test, "simulated", card, torch), {f"peak({device})": peak})


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "baseline.txt"
    made = Baseline([entry(f"a.py::t[{number}]", number) for number in range(20)])
    path.write_bytes(made.render())
    read = Baseline.read(path)
    assert read.entries == made.entries
    assert read.render() == made.render()


def test_the_order_is_that_of_lines_whatever_came_first() -> None:
    entries = [entry(test, card=card) for test in ("a", "a.b", "a b", "A", "a[1]", "é", "#") for card in ("X", "X:9")]
    random.Random(0).shuffle(entries)
    lines = Baseline(entries).render().decode("ascii").splitlines()[len(HEAD) :]
    assert lines == sorted(lines)
    assert Baseline(reversed(entries)).render() == Baseline(entries).render()


def test_a_new_entry_changes_one_line() -> None:
    """Two branches that add tests in different places merge by themselves."""
    before = Baseline([entry(f"t{number}") for number in range(9)])
    after = before.changed({entry("t4x").key: entry("t4x")})
    assert set(after.render().splitlines()) - set(before.render().splitlines()) == {entry("t4x").line().encode("ascii")}
    assert len(after.render().splitlines()) == len(before.render().splitlines()) + 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\n", "file:1: '' does not begin a baseline"),
        (b'{"schema": "pytest-memleak/1"}\n', "file:1: .*is this another file"),
        (b"\x7fELF\x00\x01\x02", "file:1: .*is this another file"),
        (b"\xef\xbb\xbf" + text(LINE), "file was saved as UTF-8 with a byte order mark: save it as plain UTF-8"),
        *((text(LINE).decode().encode(f"utf-16{end}"), "file was saved as UTF-16: save") for end in ("", "-le", "-be")),
        (b"\xfe\xff" + text(LINE).decode().encode("utf-16-be"), "file was saved as UTF-16: save"),
        (text(LINE).decode().encode("utf-32"), "file was saved as UTF-32: save"),
        (text(LINE).replace(b"baseline 1", b"baseline 2"), "file:1: version '2' .*upgrade"),
        (text(LINE).replace(b"baseline 1", b"baseline 12"), "file:1: version '12'"),
        (text(LINE)[:-4], "file:2: the file ends in the middle of a line"),
        (text(LINE, "", OTHER), "file:3: an empty line"),
        (text(LINE, "# mine", OTHER), "file:3: a comment stands among the entries"),
        (text(LINE, "not an entry"), "file:3: 'not an entry' is no entry"),
        (text(LINE, LINE.replace("1024", "9")), "file:3: it contradicts line 2.*keep the higher one.*--memleak-update"),
        (
            text("<<<<<<< HEAD", LINE, "=======", OTHER, ">>>>>>> x"),
            "file:2: '<<<<<<< HEAD' .*merge conflict.*update=all",
        ),
        (text(LINE, "======="), "file:3: .*merge conflict"),
        (text(LINE, "||||||| base"), "file:3: .*merge conflict"),
        (text(LINE, ">>>>>>> theirs"), "file:3: .*merge conflict"),
        (b"<<<<<<< HEAD\n" + text(LINE), "file:1: .*merge conflict"),
    ],
)
def test_what_is_no_baseline_is_refused_with_the_line(data: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Baseline.parse(data, "file")


def test_what_a_merge_and_an_editor_may_do_is_read() -> None:
    union = text(OTHER, LINE, LINE)
    assert len(Baseline.parse(union)) == 2
    assert len(Baseline.parse(union.replace(b"\n", b"\r\n"))) == 2
    assert Baseline.parse(union).render() == Baseline.parse(union.replace(b"\n", b"\r\n")).render()
    assert len(Baseline.parse(text())) == 0


def test_of_lines_that_contradict_each_other_the_higher_values_are_taken_if_asked() -> None:
    """By place, and whatever the order; twice the same line is no contradiction."""
    first, second = f"{LINE} peak(cuda:1)=7", LINE.replace("1024", "2048")
    for lines in ((first, second, OTHER), (second, OTHER, OTHER, first)):
        found = Baseline.parse(text(*lines), settle=True)
        (values,) = (one.values for key, one in found.entries.items() if key.test == "a.py::t")
        assert values == {"peak(cuda:0)": 2048, "peak(cuda:1)": 7}
        assert (len(found), found.settled) == (2, 1)
    assert Baseline.parse(text(LINE, LINE, OTHER), settle=True).settled == 0
    with pytest.raises(BadInput, match="file:3: an empty line"):
        Baseline.parse(text(LINE, "", OTHER), "file", settle=True)


def test_what_git_merges(tmp_path: Path) -> None:
    """Changes of neighbouring lines are a conflict, and by union none, but both sides of a line that both changed."""
    if (git := shutil.which("git")) is None:
        pytest.skip("no git here")

    def merged(*peaks: tuple[int, ...], union: bool = False) -> tuple[int, bytes]:
        for side, values in zip(("ours", "base", "theirs"), peaks, strict=True):
            made = Baseline(entry(f"t{number}", value) for number, value in enumerate(values))
            (tmp_path / side).write_bytes(made.render())
        args = [git, "merge-file", "-p", *(["--union"] if union else []), "ours", "base", "theirs"]
        done = subprocess.run(args, cwd=tmp_path, capture_output=True, check=False)
        return done.returncode, done.stdout

    assert merged((2, 1, 1), (1, 1, 1), (1, 1, 3))[0] == 0
    neighbours, (added, _) = ((2, 1), (1, 1), (1, 3)), merged((1, 2), (1,), (1, 3))
    assert merged(*neighbours)[0] == added == 1
    for sides, wanted in ((neighbours, [2, 3]), (((2, 1), (1, 1), (3, 1)), [3, 1])):
        status, both = merged(*sides, union=True)
        assert status == 0
        found = Baseline.parse(both, settle=True).entries
        assert [found[entry(f"t{number}").key].peaks["cuda:0"] for number in (0, 1)] == wanted


def test_a_head_of_ones_own_stays() -> None:
    made = Baseline.parse(text("# our cards: ask Ada", LINE)).changed({entry("z").key: entry("z")})
    assert made.render().decode("ascii").splitlines() == [HEAD[0], "# our cards: ask Ada", LINE, entry("z").line()]


def test_a_file_that_is_not_there_and_one_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Baseline.read(tmp_path / "none.txt")
    with pytest.raises(BadInput, match="cannot be read"):
        Baseline.read(tmp_path)
    with pytest.raises(BadInput, match="/dev/null is a device, socket or pipe: give the path of an ordinary file"):
        Baseline.read("/dev/null")


def test_peak_of_a_test() -> None:
    two = Entry(entry("t").key, {"peak(cuda:0)": 5, "peak(cuda:1,rank=1)": 8, "leak(cuda:0)": 99})
    baseline = Baseline([two, entry("none", 0)])
    assert baseline.peak_of("t", "simulated", "NVIDIA-H200", "2.13.0+cpu") == 8
    assert baseline.peak_of("t", "simulated", "NVIDIA-H200", "2.13") == 8
    assert baseline.peak_of("none", "simulated", "NVIDIA-H200", "2.13") == 0
    for other in (("u", "simulated", "NVIDIA-H200", "2.13"), ("t", "real", "NVIDIA-H200", "2.13"),
                  ("t", "simulated", "NVIDIA-T4", "2.13"), ("t", "simulated", "NVIDIA-H200", "2.12")):  # fmt: skip
        assert baseline.peak_of(*other) is None


def test_highest_of_one_backend() -> None:
    def on(test: str, backend: str, torch: str, **peaks: int) -> Entry:
        key = Key(test, backend, "NVIDIA-H200", torch)
        return Entry(key, {f"peak({place})": count for place, count in peaks.items()})

    several = [
        on("t", "real", "2.12", cuda0=5, cuda1=9),
        on("t", "real", "2.13", cuda0=7),
        on("t", "simulated", "2.13", cuda0=99),
        on("u", "real", "2.13", cuda0=1),
        on("nothing", "real", "2.13"),
    ]
    assert Baseline(several).highest("real") == {"t": 9, "u": 1}
    assert Baseline(several).highest("cpu") == {}
