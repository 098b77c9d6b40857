"""The stdlib logger "flowlane", as hosts of different habits see it."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from flowlane.errors import Failure
from flowlane.runtime.events import History
from flowlane.runtime.ports import FAILED, Report, RunOutcome, Sink
from flowlane_plugins.sinks.structured import LoggingSink

DONE = RunOutcome("failed", 5_000_100_000_000, {"failed": 1}, "fetch: ValueError: no")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A host that listens at INFO; the test sets the formatter of its one handler."""
    logger, stream = logging.getLogger("flowlane"), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def handler_of(stream: io.StringIO) -> logging.Handler:
    return next(h for h in logging.getLogger("flowlane").handlers if getattr(h, "stream", None) is stream)


def failing(kit: Any) -> Any:
    rows, _ = kit.simple(kit.info())
    rows = [*rows[:2], (0, 1, kit.code("running retrying raised"), kit.MONO), (0, 2, kit.STARTED, kit.MONO)]
    rows.append((0, 2, kit.code("running failed raised"), kit.MONO))
    failure = Failure("ValueError", "no\x1b[31m\nsecond line", traceback="", where="etl.py:3 in fetch")
    report = Report(1, FAILED, failure=failure, worker="loop")
    return History(kit.info()).chunk(rows, {(0, 1): report, (0, 2): report})


def play(sink: LoggingSink, kit: Any, chunk: Any) -> None:
    sink.open(kit.info())
    sink.write(chunk)
    sink.close(kit.info(), DONE)


def test_it_is_a_sink() -> None:
    assert isinstance(LoggingSink(), Sink)


def test_a_plain_host_reads_sentences(kit: Any, stream: io.StringIO) -> None:
    handler_of(stream).setFormatter(
        logging.Formatter("%(levelname)s %(name)s: %(message)s [%(task)s]", defaults={"task": ""})
    )
    play(LoggingSink(), kit, failing(kit))
    assert stream.getvalue().splitlines() == [
        "INFO flowlane: etl brisk-otter started: 3 tasks []",
        "INFO flowlane: etl brisk-otter fetch pending → ready [fetch]",
        "INFO flowlane: etl brisk-otter fetch ready → running [fetch]",
        "WARNING flowlane: etl brisk-otter fetch running → retrying ValueError: no\\x1b[31m\\nsecond line [fetch]",
        "INFO flowlane: etl brisk-otter fetch ready → running (attempt 2) [fetch]",
        "ERROR flowlane: etl brisk-otter fetch running → failed (attempt 2) ValueError: no\\x1b[31m\\nsecond line [fetch]",
        "ERROR flowlane: etl brisk-otter failed (fetch: ValueError: no) []",
    ]


def test_other_sentences(kit: Any, stream: io.StringIO) -> None:
    run = kit.info(upstreams=[(), (0,), ()])
    history = History(run)
    rows = [
        (0, 1, kit.code("running failed raised"), 1),
        (1, 1, kit.code("pending upstream_failed upstream_failed"), 2),
    ]
    sink = LoggingSink()
    sink.write(history.chunk(rows, {}))
    sink.write(history.lost(7, 3))
    assert stream.getvalue().splitlines() == [
        "etl brisk-otter fetch running → failed",
        "etl brisk-otter parse pending → upstream_failed (because of fetch)",
        "etl brisk-otter 7 events were lost",
    ]


def test_every_field_is_an_attribute_of_the_record(kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flowlane")
    chunk = failing(kit)
    LoggingSink().write(chunk)
    events = list(chunk.events())
    assert len(caplog.records) == len(events) == 5
    for record, event in zip(caplog.records, events, strict=True):
        assert {key: getattr(record, key) for key in event} == event


def test_a_structlog_host_gets_the_event(kit: Any, stream: io.StringIO) -> None:
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
    )
    handler_of(stream).setFormatter(formatter)
    chunk = failing(kit)
    LoggingSink().write(chunk)
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == list(chunk.events())


def test_levels_are_the_hosts(kit: Any, stream: io.StringIO) -> None:
    logger, sink = logging.getLogger("flowlane"), LoggingSink()
    for level, wanted in ((logging.WARNING, 3), (logging.ERROR, 2), (logging.CRITICAL, 0)):
        logger.setLevel(level)
        stream.seek(0)
        stream.truncate()
        play(sink, kit, failing(kit))
        assert len(stream.getvalue().splitlines()) == wanted


def test_a_quiet_level_makes_no_events(kit: Any, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("flowlane").setLevel(logging.WARNING)
    monkeypatch.setattr(History, "event", lambda *_: pytest.fail("an event was made for nobody"))
    LoggingSink().write(History(kit.info()).chunk(*kit.simple(kit.info())))


def test_wants_only_when_somebody_hears(stream: io.StringIO) -> None:
    logger, sink = logging.getLogger("flowlane"), LoggingSink()
    assert sink.wants
    logger.setLevel(logging.CRITICAL)
    assert not sink.wants
    logger.setLevel(logging.INFO)
    logger.removeHandler(handler_of(stream))
    logger.propagate = False
    try:
        assert not sink.wants  # only the NullHandler is left
    finally:
        logger.propagate = True
    logging.disable(logging.CRITICAL)
    try:
        assert not sink.wants
    finally:
        logging.disable(logging.NOTSET)


def test_names_that_records_use_themselves_are_moved(kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flowlane")

    def clash(_logger: Any, _method: str, event: dict[Any, Any]) -> dict[Any, Any]:
        return {**event, "name": "n", "message": "m", "asctime": "a", "taskName": "t", "exc_info": True, 7: "seven"}

    sink = LoggingSink(processors=[structlog.stdlib.filter_by_level, structlog.stdlib.add_log_level, clash])
    sink.write(History(kit.info()).chunk(*kit.simple(kit.info())))
    assert sink.take_faults() == []
    record = caplog.records[0]
    assert (record.name, record.getMessage()) == ("flowlane", "etl brisk-otter fetch pending → ready")
    assert [getattr(record, f"{key}_") for key in ("name", "message", "asctime", "taskName")] == ["n", "m", "a", "t"]
    assert (record.exc_info, record.__dict__["7"]) == (None, "seven")


def test_processors_that_drop_or_raise(kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flowlane")

    def touchy(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        if event["to"] == "ready":
            raise structlog.DropEvent
        raise ValueError("no")

    sink = LoggingSink(processors=[touchy])
    sink.write(History(kit.info()).chunk(*kit.simple(kit.info())))
    assert [record.to for record in caplog.records] == ["running", "succeeded"]  # type: ignore[attr-defined]
    (fault,) = sink.take_faults()
    assert "ValueError: no" in fault
    assert sink.take_faults() == []


def test_a_filter_of_the_host_that_raises_is_not_blamed_on_a_processor(kit: Any, stream: io.StringIO) -> None:
    def refuse(_record: logging.LogRecord) -> bool:
        raise ValueError("the host's own")

    logger = logging.getLogger("flowlane")
    logger.addFilter(refuse)
    sink = LoggingSink()
    try:
        with pytest.raises(ValueError, match="the host's own"):
            sink.write(History(kit.info()).chunk(*kit.simple(kit.info())))
    finally:
        logger.removeFilter(refuse)
    assert sink.take_faults() == []


def test_hostile_values_of_a_processor_make_no_sentence_fail(kit: Any, stream: io.StringIO) -> None:
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError

    def poison(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        return {**event, "task": Bad(), "run_name": "a\x1b[2J\nb %s", "attempt": "two", "error": "text"}

    sink = LoggingSink(processors=[poison])
    sink.write(History(kit.info()).chunk(*kit.simple(kit.info())))
    assert sink.take_faults() == []
    assert stream.getvalue().splitlines()[0] == "etl a\\x1b[2J\\nb %s ? pending → ready"


def test_a_bare_host_sees_nothing_and_is_left_as_it_was() -> None:
    program = """
import logging, time
root = logging.getLogger()
before = (list(root.handlers), root.level, logging.lastResort, logging.getLoggerClass())
import structlog
config = structlog.get_config()
from flowlane.core.states import RULES
from flowlane.runtime.journal import Journal
from flowlane.runtime.ports import RunInfo, RunOutcome
from flowlane_plugins.sinks.structured import LoggingSink
run = RunInfo("id", "name", "etl", ["a"], ["io"], ["asyncio"], [()], time.time_ns(), time.monotonic_ns())
class Broken:
    def open(self, run): raise RuntimeError("told, but not printed")
    write = close = open
sink = LoggingSink()
assert not sink.wants
journal = Journal([sink, Broken()])
journal.start(run)
journal.append("id", [(0, 1, code, run.mono_ns) for code in range(len(RULES))], {})
journal.finish("id", RunOutcome("failed", run.mono_ns, {})).result(10)
journal.close()
sink.open(run); sink.close(run, RunOutcome("failed", run.mono_ns, {}))  # even if it is called
assert len(journal.faults) == 1
assert before == (list(root.handlers), root.level, logging.lastResort, logging.getLoggerClass())
assert structlog.get_config() == config
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
