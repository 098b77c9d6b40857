"""What reaches the terminal: no raw control byte, no exception for a stream that broke, and only data on stdout."""

from __future__ import annotations

import io
import os
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowlane.cli.terminal import DataOutput, Messages, inert, is_plain


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@given(st.text())
def test_inert_text_has_no_character_that_controls_anything(text: str) -> None:
    for character in inert(text):
        assert unicodedata.category(character) not in ("Cc", "Zl", "Zp") or character == "\t"
        assert unicodedata.bidirectional(character) not in (
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        )


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert inert(text) == text


def test_newlines_are_kept_only_on_request() -> None:
    assert inert("a\nb\x1b[0m") == "a\\nb\\x1b[0m"
    assert inert("a\nb\x1b[0m", newlines=True) == "a\nb\\x1b[0m"


@pytest.mark.parametrize("variable", ["NO_COLOR", "CI"])
def test_a_terminal_is_plain_when_the_environment_says_so(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert not is_plain(Screen())
    assert is_plain(io.StringIO())
    assert is_plain(None)
    monkeypatch.setenv(variable, "1")
    assert is_plain(Screen())
    monkeypatch.delenv(variable)
    monkeypatch.setenv("TERM", "dumb")
    assert is_plain(Screen())


def test_paint_adds_escapes_on_a_colour_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert Messages(Screen()).paint("x", "31") == "\x1b[31mx\x1b[0m"
    assert Messages(io.StringIO()).paint("x", "31") == "x"


def test_characters_that_the_encoding_lacks_are_replaced() -> None:
    raw = io.BytesIO()
    messages = Messages(io.TextIOWrapper(raw, encoding="ascii"))
    messages.line("✔ a → b · ü")
    assert raw.getvalue() == b"ok a -> b - \\xfc\n"


def test_a_lone_surrogate_is_written_as_an_escape() -> None:
    raw = io.BytesIO()
    messages = Messages(io.TextIOWrapper(raw, encoding="utf-8"))
    messages.line("a\udc80b é")
    assert raw.getvalue() == "a\\udc80b é\n".encode()


def test_a_stream_that_breaks_goes_silent() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        messages = Messages(stream)
        for _ in range(3):
            messages.line("nobody reads this")
        assert messages.write("x") == 1
    closed = io.StringIO()
    closed.close()
    Messages(closed).line("x")


def test_what_others_print_goes_to_stderr_and_data_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with DataOutput() as data:
        print("chatter")  # what user code does
        data.write("data \udc80\n")
    assert sys.stdout is before
    assert capsys.readouterr() == ("data \\udc80\n", "chatter\n")


def test_user_code_finds_in_stdout_what_it_usually_finds(capsys: pytest.CaptureFixture[str]) -> None:
    with DataOutput():
        assert sys.stdout.encoding
        assert sys.stdout.writable()
        sys.stdout.buffer.write(b"bytes\n")
        sys.stdout.writelines(["a\n", "b\n"])
        print("to stderr", file=sys.stderr)
        with pytest.raises(AttributeError):
            getattr(sys.stdout, "no_such_attribute")  # noqa: B009 - checkers know that it is not there
    out, err = capsys.readouterr()
    assert out == ""
    assert sorted(err.splitlines()) == ["a", "b", "bytes", "to stderr"]


def test_descriptors_are_redirected_and_restored(capfd: pytest.CaptureFixture[str]) -> None:
    # under capfd sys.stdout is no longer descriptor 1, so the streams are put back for the time being
    out = open(1, "w", closefd=False)  # noqa: SIM115 - must not be closed: it is the process's own stdout
    err = open(2, "w", closefd=False)  # noqa: SIM115
    saved = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        with DataOutput() as data:
            os.write(1, b"from C\n")
            data.write("data\n")
        os.write(1, b"after\n")
    finally:
        sys.stdout, sys.stderr = saved
    assert capfd.readouterr() == ("data\nafter\n", "from C\n")
