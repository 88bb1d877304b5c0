"""The reader of cases: what it takes, and what it says of what it does not take."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_memleak.errors import BadInput
from pytest_memleak.releases.case import FOLDER, find, read

GOOD = {
    "title": '"Weights pile up"',
    "package": '"transformers"',
    "good": '["5.4.0", ">=5.5,<5.9"]',
    "bad": '["5.3.0", "5.0.0"]',
    "test": '"a_case.py::test_peak"',
    "fails_with": '"max_peak FAILED"',
}
FIGURE = {"releases": '"good"', "expected": '"845MB"', "tolerance": "0.02", "source": '"H200"'}


def written(folder: Path, keys: dict[str, str], *figures: dict[str, str]) -> Path:
    (folder / "a_case.py").write_text("def test_peak(): pass\n")
    lines = [f"{key} = {value}" for key, value in keys.items() if value]
    for figure in figures:
        lines += ["[[figures]]", *(f"{key} = {value}" for key, value in figure.items() if value)]
    path = folder / "a_case.toml"
    path.write_text("\n".join(lines))
    return path


def test_a_case_is_read(tmp_path: Path) -> None:
    keys = GOOD | {"with": '["accelerate==1.15.0"]', "pytest": '["--gpu-backend=simulated"]', "timeout": "60"}
    case = read(written(tmp_path, keys, FIGURE, FIGURE | {"releases": '["5.3.0", "<5.1"]', "tolerance": '"1MiB"'}))
    assert (case.name, case.package, case.good, case.timeout) == ("a_case", "transformers", ("5.4.0", ">=5.5,<5.9"), 60)
    assert (case.requirements, case.pytest) == (("accelerate==1.15.0",), ("--gpu-backend=simulated",))
    first, second = case.figures
    assert (first.expected, first.within, first.check) == (845_000_000, 16_900_000, "max_peak")
    assert [first.is_about("5.4.0", good=good) for good in (True, False)] == [True, False]
    assert second.within == 2**20
    assert [second.is_about(one, good=False) for one in ("5.3.0", "5.3", "5.0.0", "5.2.0")] == [True, True, True, False]


def test_what_a_release_has_to_do(tmp_path: Path) -> None:
    case = read(written(tmp_path, GOOD | {"good": '["5.4.0", ">=5.2,!=5.3.*"]', "bad": '["5.5.0", "==5.3.*"]'}))
    assert [case.is_good(one) for one in ("5.4", "5.2.3", "5.3.9")] == [True, True, False]
    assert not case.is_good("5.5.0"), "what stands by itself is not what a specifier says"
    with pytest.raises(BadInput, match=r"a_case does not say whether transformers 5\.1\.0 is good or bad"):
        case.is_good("5.1.0")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"title": ""}, "title is missing"),
        ({"title": '""'}, "title is missing"),
        ({"tset": '"x"'}, "unknown key 'tset': allowed are title, about"),
        ({"good": '"5.4.0"'}, "good = '5.4.0' has to be a list"),
        ({"good": "[5.4]"}, "good: 5.4 has to be a text"),
        ({"good": '[">=5.4", "5.4.0"]'}, "good: the first entry, '>=5.4', has to be a release"),
        ({"good": '["5.4.0", "later"]'}, "good: 'later' is neither a release"),
        ({"good": '["5.3.0"]'}, "5.3.0 cannot be both good and bad"),
        ({"good": "[]"}, "good is empty: none_because has to say why"),
        ({"good": "[]", "bad": "[]"}, "good and bad are both empty"),
        ({"fails_with": ""}, "fails_with is missing"),
        ({"test": '"other.py::test_peak"'}, "has to name a test of a file beside this one"),
        ({"test": '"a_case.py"'}, "has to name a test of a file beside this one"),
        ({"timeout": "0"}, "timeout = 0 has to be a number of seconds above 0"),
        ({"timeout": "true"}, "timeout = True has to be a whole number or a number"),
        ({"title": "no quotes"}, "is no TOML"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(changed: dict[str, str], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, GOOD | changed)
    with pytest.raises(BadInput) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source": ""}, "source is missing"),
        ({"releases": '"all"'}, "releases = 'all' has to be 'good', 'bad' or a list"),
        ({"expected": '"845 lots"'}, "unknown unit 'lots'"),
        ({"tolerance": "2"}, "tolerance = 2 has to be a part of the number"),
        ({"check": '"max_leak"', "block": '"load"'}, "check and block are two readings"),
        ({"wat": "1"}, "unknown key 'wat'"),
    ],
)
def test_what_is_wrong_with_a_figure_is_named_with_its_place(
    changed: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="figures, entry 2: ") as caught:
        read(written(tmp_path, GOOD, FIGURE, FIGURE | changed))
    assert message in str(caught.value)


def test_a_case_without_bad_releases_needs_no_failure(tmp_path: Path) -> None:
    case = read(written(tmp_path, GOOD | {"bad": "[]", "fails_with": "", "none_because": '"none was released"'}))
    assert case.none_because == "none was released"


def test_cases_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    assert [case.name for case in find([], tmp_path)] == ["a_case"]
    assert find(["a_case", str(path)], tmp_path) == [read(path)]
    with pytest.raises(BadInput, match="there is no case 'b_case': ours are a_case"):
        find(["b_case"], tmp_path)


def test_all_of_ours_can_be_read() -> None:
    for file in FOLDER.glob("*.toml"):
        assert read(file).name == file.stem
