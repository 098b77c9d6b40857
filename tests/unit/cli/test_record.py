"""Names of files that output goes to."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from flowlane.cli.record import EventLog, file_name


def test_plain_names_stay_as_they_are() -> None:
    for name in ("parse", "parse#2", "fetch[us-east]", "a.b", "_x", "k=v"):
        assert file_name(name) == name


def test_what_could_lead_elsewhere_is_escaped() -> None:
    assert file_name("../../etc/passwd") == "%2E.%2F..%2Fetc%2Fpasswd"
    assert file_name("") == ""
    assert file_name("a\0b\n") == "a%00b%0A"
    assert file_name("50%") == "50%25"
    assert file_name("\udc80") == "%ED%B2%80"
    assert EventLog("s").output_path("7f", "..", 3) == "s/runs/7f/output/%2E..3.txt"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sets(st.text(st.characters(), max_size=60) | st.text("ab%/.", max_size=400), max_size=20))
def test_names_are_told_apart_and_fit(names: set[str]) -> None:
    files = {file_name(name) for name in names}
    assert len(files) == len(names)
    for file in files:
        assert len(file) <= 120
        assert file.isascii() and not set(file) & set("/\\\0: \n")
        assert not file.startswith(".")
