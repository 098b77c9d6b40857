from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowlane.core.states import RULES
from flowlane.errors import Failure
from flowlane.runtime.events import History, outputs
from flowlane.runtime.ports import FAILED, Report, RunOutcome, Sink
from flowlane_plugins.sinks.console import ConsoleSink
from flowlane_plugins.sinks.structured import JsonLinesSink

# Seeded; a slow machine is no failure.
CALM = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])

DONE = RunOutcome("succeeded", 5_000_100_000_000, {"succeeded": 1})


class Dirty(io.StringIO):
    """Breaks after `good` writes, as a closed pipe or stream does."""

    def __init__(self, good: int, error: Exception) -> None:
        super().__init__()
        self.good, self.error = good, error

    def write(self, text: str) -> int:
        self.good -= 1
        if self.good < 0:
            raise self.error
        return super().write(text)


def failing(kit: Any) -> Any:
    run = kit.info(upstreams=[(), (0,), ()])
    failure = Failure("shop.BadRow", "bad\x1b[2J\nrow " + "x" * 300, traceback="", where="etl.py:3 in fetch")
    report = Report(1, FAILED, failure=failure, worker="loop")
    rows = [
        (0, 1, kit.READY, kit.MONO + 4_000_000),
        (0, 1, kit.STARTED, kit.MONO + 4_000_000),
        (0, 1, kit.code("running retrying raised"), kit.MONO + 120_000_000),
        (0, 1, kit.code("retrying ready backoff_elapsed"), kit.MONO + 1_120_000_000),
        (0, 2, kit.STARTED, kit.MONO + 1_121_000_000),
        (0, 2, kit.code("running failed raised"), kit.MONO + 1_200_000_000),
        (1, 1, kit.code("pending upstream_failed upstream_failed"), kit.MONO + 1_200_000_000),
    ]
    return History(run).chunk(rows, {(0, 1): report, (0, 2): report})


def play(sink: ConsoleSink, chunk: Any) -> None:
    sink.open(chunk.run)
    sink.write(chunk)
    sink.close(chunk.run, DONE)


def test_it_is_a_sink() -> None:
    assert isinstance(ConsoleSink(io.StringIO()), Sink)


def test_lines_for_people(kit: Any) -> None:
    stream = io.StringIO()
    play(ConsoleSink(stream), failing(kit))
    error = "shop.BadRow: bad\\x1b[2J\\nrow " + "x" * 175 + "..."
    assert stream.getvalue().splitlines() == [
        "etl · run brisk-otter (7f3a2c) · 3 tasks · io 3",
        "     0.004  fetch  pending → ready  upstream_done",
        "     0.004  fetch  ready → running  asyncio (loop)",
        f"     0.120  fetch  running → retrying  raised after 0.116s on asyncio (loop)  attempt 1  {error}",
        "     1.120  fetch  retrying → ready  backoff_elapsed",
        "     1.121  fetch  ready → running  asyncio (loop)  attempt 2",
        f"     1.200  fetch  running → failed  raised after 0.079s on asyncio (loop)  attempt 2  {error}",
        "     1.200  parse  pending → upstream_failed  upstream_failed  fetch → parse",
    ]


def test_a_loss_is_a_line(kit: Any) -> None:
    stream = io.StringIO()
    ConsoleSink(stream).write(History(kit.info()).lost(9, kit.MONO + 10**9))
    assert stream.getvalue() == "     1.000  log.lost  9 events were lost: the log could not keep up\n"


def test_json_lines_are_those_of_the_file(kit: Any, tmp_path: Any) -> None:
    stream = io.StringIO()
    play(ConsoleSink(stream, format="json"), failing(kit))
    play(JsonLinesSink(tmp_path / "log"), failing(kit))  # type: ignore[arg-type]
    assert stream.getvalue() == (tmp_path / "log").read_text()
    assert json.loads(stream.getvalue().splitlines()[-1])["event"] == "run.finished"


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="'xml'"):
        ConsoleSink(io.StringIO(), format="xml")


@CALM
@given(data=st.data())
def test_no_control_character_and_one_line_an_event(kit: Any, data: st.DataObject) -> None:
    story, stream = data.draw(kit.stories()), io.StringIO()
    sink = ConsoleSink(stream)
    sink.open(story.run)
    count = 1
    for chunk in story.chunks():
        sink.write(chunk)
        kept = sum(RULES[row[2]].reason == "restored" for row in chunk.transitions)  # told together, in one line
        count += len(chunk.transitions) - kept + bool(kept) if chunk.transitions else 1
        count += sum(len((report.output or "").rstrip().split("\n")) for _, report in outputs(chunk))
    assert stream.getvalue().count("\n") == count
    assert stream.getvalue().replace("\n", "").isprintable()
    assert sink.take_faults() == []


@CALM
@given(data=st.data(), color=st.booleans())
def test_lines_made_without_events_are_those_of_the_events(kit: Any, data: st.DataObject, color: bool) -> None:
    story = data.draw(kit.stories())
    sink = ConsoleSink(io.StringIO(), color=color)
    for chunk in story.chunks():
        if chunk.transitions:
            assert sink._quickly(chunk) == [sink._line(event, story.run.mono_ns) for event in chunk.events()]


def test_color_is_asked_for(kit: Any) -> None:
    stream = io.StringIO()
    play(ConsoleSink(stream, color=True), failing(kit))
    text = stream.getvalue()
    assert "\x1b[31mrunning → failed\x1b[0m" in text
    plain = io.StringIO()
    play(ConsoleSink(plain), failing(kit))
    stripped = text
    for code in ("31", "32", "33", "35", "36", "0"):
        stripped = stripped.replace(f"\x1b[{code}m", "")
    assert stripped == plain.getvalue()


@pytest.mark.parametrize("format", ["console", "json"])
def test_an_ascii_terminal(kit: Any, format: str) -> None:
    raw = io.BytesIO()
    run = kit.info(["snö\N{SNOWMAN}"])
    sink = ConsoleSink(io.TextIOWrapper(raw, encoding="ascii", errors="strict", write_through=True), format=format)
    sink.open(run)
    sink.write(History(run).chunk(*kit.simple(run)))
    assert sink.take_faults() == []
    text = raw.getvalue().decode("ascii")
    assert "\\u2603" in text
    assert ("pending -> ready" in text) == (format == "console")


@pytest.mark.parametrize("format", ["console", "json"])
@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("I/O operation on closed file")])
@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_stream_that_breaks_is_told_once_and_counted(kit: Any, format: str, error: Exception, good: int) -> None:
    sink = ConsoleSink(Dirty(good, error), format=format)
    history = History(kit.info())
    sink.open(kit.info())
    for element in range(3):
        sink.write(history.chunk(*kit.simple(kit.info(), element)))
    sink.close(kit.info(), DONE)
    (fault,) = sink.take_faults()
    assert str(error) in fault
    assert sink.take_faults() == []
    written = sink._stream.getvalue().count("\n")  # type: ignore[attr-defined]
    assert written + sink.lost == 10 + (format == "json")
