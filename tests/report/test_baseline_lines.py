from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pytest_memleak.records.baselines import Entry, Key
from pytest_memleak.records.baselines.ratchet import Difference, Findings
from pytest_memleak.records.baselines.terms import Terms
from pytest_memleak.records.baselines.told import Told
from pytest_memleak.report.baseline import baseline_lines

MIB = 1024**2


def entry(number: int = 0, mib: int = 4) -> Entry:
    return Entry(Key(f"a.py::t{number}", "simulated", "H200", "2.13"), {}).with_peaks({"cuda:0": mib * MIB})


def terms(*update: str) -> Terms:
    return Terms(Path("b.txt"), "b.txt", "ini", update=frozenset(update))


FOUND = Findings(
    missing=(entry(1),),
    higher=(Difference(entry(2), entry(2, 5)),),
    lower=tuple(Difference(entry(number), entry(number, 1)) for number in range(10, 18)),
    unused=(entry(3),),
)
TOLD = Told(terms(), entries=12, is_there=True, compared=9, above=1, found=FOUND)


def lines(told: Told, *, verbosity: int = 0, width: int = 100) -> list[str]:
    return [line.text for line in baseline_lines(told, verbosity=verbosity, width=width)]


def test_what_could_be_done_is_listed_and_the_rest_counted() -> None:
    found = lines(TOLD)
    assert found[0] == "baseline b.txt: 9 tests compared with 12 entries, 1 above"
    assert "  without an entry: 1 test (--memleak-update=new records them)" in found
    assert "    a.py::t2: 4 MiB -> 5 MiB on cuda:0, +1 MiB (+25.0 %)" in found
    assert "    a.py::t10: 4 MiB -> 1 MiB on cuda:0, -3 MiB (-75.0 %)" in found
    assert sum(" -> 1 MiB" in line for line in found) == 5
    assert "    and 3 more (-v names them)" in found
    assert "    a.py::t3 (simulated H200, torch 2.13)" in found
    verbose = lines(TOLD, verbosity=1)
    assert sum(" -> 1 MiB" in line for line in verbose) == 8
    assert not any("more (-v" in line for line in verbose)
    assert "    a.py::t1: 4 MiB on cuda:0" in verbose


def test_what_was_done_is_counted_and_not_offered() -> None:
    done = replace(TOLD, terms=terms("all"), written=True)
    assert lines(done) == [
        "baseline b.txt: 9 tests compared with 12 entries, 1 above; written: 1 new, 1 raised, 8 lowered, 1 removed"
    ]
    assert lines(replace(TOLD, terms=terms("new"), written=True))[0].endswith("; written: 1 new")
    assert lines(replace(done, found=Findings()))[0].endswith("; written: no entries")


def test_why_nothing_is_called_unused_is_said_where_it_matters() -> None:
    why = "  unused entries were not looked for: -k"
    told = replace(TOLD, narrowed="-k")
    assert why not in lines(told)
    assert why in lines(told, verbosity=1)
    assert why in lines(replace(told, terms=terms("trim"), written=True))


def test_quiet_says_only_that_the_file_was_written() -> None:
    assert lines(TOLD, verbosity=-1) == []
    written = replace(TOLD, terms=terms("new"), written=True)
    assert lines(written, verbosity=-1) == ["memleak: baseline b.txt: written: 1 new"]


def test_a_file_that_is_not_there_is_a_hint() -> None:
    (line,) = lines(replace(TOLD, is_there=False))
    assert line == "baseline: there is no file b.txt yet, and nothing was compared: --memleak-update=new makes it"
    assert lines(replace(TOLD, is_there=False, terms=terms("new"), written=True))[0].startswith("baseline b.txt: ")


def test_long_ids_are_shortened_to_the_width() -> None:
    assert max(map(len, lines(TOLD, width=40)[3:])) <= 80
    assert all(len(line) <= 40 for line in lines(TOLD, width=40) if line.startswith("    a"))
