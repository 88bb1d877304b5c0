from __future__ import annotations

from dataclasses import replace

from pytest_memleak.records.record import CardInfo, CheckResult, Limit, TestRecord
from pytest_memleak.report.junit import properties, remove_properties, replace_properties

PEAK = CheckResult(
    "max_peak", "pass", "…", "cuda:0", "allocated", "measured", measured=100, limit=Limit("1KiB", 1024, "a.py:1")
)
RECORD = TestRecord("a.py::t", "a.py", 1, card=CardInfo("real", "H200", ("cuda:0",), 1024**3), results=(PEAK,))


def test_a_result_becomes_named_properties_with_plain_bytes() -> None:
    found = dict(properties(RECORD))
    assert found == {
        "memleak.card": "H200 (cuda:0), 1 GiB, no cap",
        "memleak.max_peak.verdict": "pass",
        "memleak.max_peak.measured": "100",
        "memleak.max_peak.limit": "1024",
        "memleak.max_peak.limit_text": "1KiB",
        "memleak.max_peak.device": "cuda:0",
        "memleak.max_peak.kind": "allocated",
        "memleak.max_peak.how": "measured",
        "memleak.max_peak.enforced": "true",
    }


def test_of_several_devices_the_worst_has_the_plain_name_and_no_name_stands_twice() -> None:
    close = replace(PEAK, device="cuda:1", measured=1000)
    failed = replace(PEAK, device="cuda:2", measured=1025, verdict="fail")
    found = properties(replace(RECORD, results=(PEAK, close, failed)))
    names = [name for name, _ in found]
    assert len(names) == len(set(names))
    devices = {name: value for name, value in found if name.endswith("device")}
    assert devices == {
        "memleak.max_peak.device": "cuda:2",
        "memleak.max_peak.2.device": "cuda:1",
        "memleak.max_peak.3.device": "cuda:0",
    }


def test_a_leak_with_a_limit_of_zero_can_be_ranked() -> None:
    none = CheckResult("max_leak", "pass", "…", "cuda:0", measured=0, limit=Limit("0", 0, "a.py:1"))
    some = replace(none, device="cuda:1", measured=8, verdict="fail")
    assert ("memleak.max_leak.device", "cuda:1") in properties(replace(RECORD, results=(none, some)))


def test_a_rerun_replaces_its_own_properties_and_keeps_those_of_others() -> None:
    user_properties: list[tuple[str, object]] = [("owner", "me"), ("memleakage", 1)]
    replace_properties(user_properties, RECORD)
    replace_properties(user_properties, replace(RECORD, results=(replace(PEAK, measured=7),), attempt=2))
    assert [value for name, value in user_properties if name == "memleak.max_peak.measured"] == ["7"]
    assert ("memleak.attempt", "2") in user_properties
    remove_properties(user_properties)
    assert user_properties == [("owner", "me"), ("memleakage", 1)]
