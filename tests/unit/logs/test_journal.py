from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowlane.errors import EngineClosed
from flowlane.runtime.journal import Journal, library_logger
from flowlane.runtime.ports import RunOutcome
from flowlane_plugins.sinks.structured import JsonLinesSink

# Seeded; a slow machine is no failure.
CALM = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])

DONE = RunOutcome("succeeded", 5_000_100_000_000, {"succeeded": 1})
LONG = 30.0  # seconds: a deadlock fails the test, nothing else waits for it


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


class Ear:
    """A sink that remembers, and does what a test wants at each call."""

    def __init__(self, act: Callable[[str], None] = lambda verb: None) -> None:
        self.heard: list[tuple[str, str, Any]] = []
        self.chunks: list[Any] = []
        self.threads: set[str] = set()
        self.act = act

    def open(self, run: Any) -> None:
        self._hear("open", run.id, None)

    def write(self, chunk: Any) -> None:
        self.chunks.append(chunk)
        self._hear("write", chunk.run.id, list(chunk.transitions) or next(iter(chunk.events())))

    def close(self, run: Any, outcome: Any) -> None:
        self._hear("close", run.id, outcome)

    def _hear(self, verb: str, run: str, what: Any) -> None:
        self.threads.add(threading.current_thread().name)
        self.heard.append((verb, run, what))
        self.act(verb)

    def verbs(self, run: str = "7f3a2c000001") -> list[str]:
        return [verb for verb, of, _ in self.heard if of == run]

    def rows(self, run: str = "7f3a2c000001") -> list[Any]:
        return [
            row
            for verb, of, what in self.heard
            if verb == "write" and of == run and isinstance(what, list)
            for row in what
        ]


def steps(kit: Any, count: int, run: Any = None) -> list[Any]:
    return [kit.simple(run or kit.info(), n % 3, kit.MONO + n * 20_000_000) for n in range(count)]


def test_without_sinks_nothing_starts(kit: Any) -> None:
    before = threading.active_count()
    journal = Journal([])
    assert journal.start(kit.info()) is False
    journal.append(kit.info().id, *kit.simple(kit.info()))
    done = journal.finish(kit.info().id, DONE)
    assert done.done()
    assert done.result() is None
    assert threading.active_count() == before
    journal.close()


def test_a_sink_that_wants_nothing_is_left_out(kit: Any) -> None:
    deaf, curious = Ear(), Ear()
    deaf.wants = False  # type: ignore[attr-defined]
    journal = Journal([deaf])
    assert journal.start(kit.info()) is False
    assert not journal.writing
    journal.close()
    journal = Journal([deaf, curious])
    assert journal.start(kit.info()) is True
    journal.finish(kit.info().id, DONE).result(LONG)
    journal.close()
    assert (deaf.verbs(), curious.verbs()) == ([], ["open", "close"])


def test_everything_arrives_in_order_on_one_thread(kit: Any) -> None:
    ears = [Ear(), Ear()]
    journal = Journal(ears)
    assert journal.start(kit.info())
    wanted = []
    for rows, reports in steps(kit, 100):
        wanted += rows
        journal.append(kit.info().id, rows, reports)
    journal.finish(kit.info().id, DONE).result(LONG)
    for ear in ears:
        assert ear.rows() == wanted
        assert ear.verbs()[0] == "open"
        assert ear.verbs()[-1] == "close"
        assert ear.heard[-1][2] is DONE
        assert ear.threads == {"flowlane-journal"}
    journal.close()
    assert (journal.faults, journal.lost) == ([], 0)


def test_an_append_is_delivered_without_a_finish(kit: Any) -> None:
    written = threading.Event()
    journal = Journal([Ear(lambda verb: written.set() if verb == "write" else None)])
    journal.start(kit.info())
    for rows, reports in steps(kit, 3):
        written.clear()
        journal.append(kit.info().id, rows, reports)
        assert written.wait(LONG)
    journal.close()


@CALM
@given(data=st.data())
def test_chunks_are_bounded_and_hold_their_own_reports(kit: Any, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), max_size=12))
    ear = Ear()
    journal = Journal([ear], chunk_rows=7, linger=0)
    run = kit.info([f"t{n}" for n in range(200)])
    journal.start(run)
    element, wanted = 0, []
    for size in sizes:
        rows: list[Any] = []
        reports: dict[Any, Any] = {}
        for _ in range(size):
            more, report = kit.simple(run, element)
            rows += more
            reports |= report
            element += 1
        given_rows, given_reports = list(rows), dict(reports)
        journal.append(run.id, rows, reports)
        wanted.append((rows, given_rows, reports, given_reports))
    journal.finish(run.id, DONE).result(LONG)
    journal.close()
    assert ear.rows() == [row for rows, *_ in wanted for row in rows]
    for chunk in ear.chunks:
        assert 1 <= len(chunk.transitions) <= 7
        keys = {row[:2] for row in chunk.transitions}
        assert keys == set(chunk.reports)
    for rows, given_rows, reports, given_reports in wanted:
        assert (rows, reports) == (given_rows, given_reports)  # the journal changes nothing it is given


def test_runs_side_by_side_keep_their_own_order(kit: Any) -> None:
    ear = Ear()
    journal = Journal([ear], chunk_rows=10, linger=0)
    runs = [kit.info(id=str(n)) for n in range(3)]
    wanted: dict[str, list[Any]] = {run.id: [] for run in runs}
    for run in runs:
        journal.start(run)
    for n in range(60):
        run = runs[n % 3]
        rows, reports = kit.simple(run, (n // 3) % 3, kit.MONO + n)
        wanted[run.id] += rows
        journal.append(run.id, rows, reports)
    wait([journal.finish(run.id, DONE) for run in runs], LONG)
    journal.close()
    for run in runs:
        assert ear.rows(run.id) == wanted[run.id]
        assert (ear.verbs(run.id)[0], ear.verbs(run.id)[-1], ear.verbs(run.id).count("close")) == ("open", "close", 1)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), RecursionError()])
@pytest.mark.parametrize("verb", ["open", "write", "close"])
def test_a_sink_that_raises_is_told_once_and_left_alone(
    kit: Any, verb: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def act(now: str) -> None:
        if now == verb:
            raise error

    broken, sound = Ear(act), Ear()
    journal = Journal([broken, sound], linger=0)
    for number in ("1", "2"):
        run = kit.info(id=number)
        journal.start(run)
        for rows, reports in steps(kit, 5, run):
            journal.append(run.id, rows, reports)
        journal.finish(run.id, DONE).result(LONG)
        assert broken.verbs(number).count(verb) == 1
        assert broken.verbs(number)[-1] == verb
        assert len(sound.rows(number)) == 15
        (note,) = journal.notes(number)
        assert note.startswith(f"Ear: {verb} raised {type(error).__name__}")
    journal.close()
    assert len(journal.faults) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_a_property_wants_that_raises(kit: Any) -> None:
    class Moody(Ear):
        @property
        def wants(self) -> bool:
            raise ValueError("no")

    journal = Journal([Moody()])
    assert journal.start(kit.info()) is False
    assert "wants raised ValueError" in journal.notes(kit.info().id)[0]
    journal.close()


def test_faults_that_a_sink_copes_with_are_taken_and_told(kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Coping(Ear):
        def __init__(self) -> None:
            super().__init__()
            self.faults = ["the disk is full"]

        def take_faults(self) -> list[str]:
            taken, self.faults = self.faults, []
            return taken

    ear = Coping()
    journal = Journal([ear])
    journal.start(kit.info())
    journal.append(kit.info().id, *kit.simple(kit.info()))
    journal.finish(kit.info().id, DONE).result(LONG)
    journal.close()
    assert journal.notes(kit.info().id) == ["Coping: the disk is full"]
    assert ear.verbs() == ["open", "write", "close"]
    assert len(caplog.records) == 1


def test_a_host_whose_logging_raises_harms_nobody(kit: Any) -> None:
    def refuse(_record: Any) -> bool:
        raise ValueError("the host's")

    def act(verb: str) -> None:
        raise ValueError(verb)

    library_logger().addFilter(refuse)
    try:
        sound = Ear()
        journal = Journal([Ear(act), sound])
        journal.start(kit.info())
        journal.finish(kit.info().id, DONE).result(LONG)
        journal.close()
    finally:
        library_logger().removeFilter(refuse)
    assert sound.verbs() == ["open", "close"]
    assert len(journal.faults) == 1


def test_rows_that_are_no_history_end_that_log_only(kit: Any) -> None:
    ear = Ear()
    journal = Journal([ear], linger=0)
    one, two = kit.info(id="1"), kit.info(id="2")
    journal.start(one)
    journal.start(two)
    journal.append("1", [(99, 1, kit.READY, kit.MONO)], {})
    journal.append("2", *kit.simple(two))
    wait([journal.finish("1", DONE), journal.finish("2", DONE)], LONG)
    journal.close()
    assert ear.verbs("1") == ["open"]
    assert ear.verbs("2") == ["open", "write", "close"]
    assert "reading the history raised IndexError" in journal.notes("1")[0]


def test_memory_is_bounded_and_losses_are_counted(kit: Any) -> None:
    entered, go = threading.Event(), threading.Event()

    def act(verb: str) -> None:
        if verb == "open":
            entered.set()
            assert go.wait(LONG)

    ear = Ear(act)
    journal = Journal([ear], limit=10, linger=0)
    journal.start(kit.info())
    assert entered.wait(LONG)  # the sink is slow: everything below waits
    batches = steps(kit, 10)
    for rows, reports in batches:
        journal.append(kit.info().id, rows, reports)
    assert len(journal._box._queue) == 4  # 12 rows: the first that brings it beyond 10 is the last that is taken
    go.set()
    journal.finish(kit.info().id, DONE).result(LONG)
    assert ear.rows() == [row for rows, _ in batches[:4] for row in rows]
    ((_, _, lost),) = [each for each in ear.heard if isinstance(each[2], dict)]
    assert (lost["event"], lost["lost"], lost["mono_ns"]) == ("log.lost", 18, batches[-1][0][-1][3])
    assert journal.lost == 18
    assert journal.notes(kit.info().id) == ["journal: 18 events were dropped: the sinks were too slow"]
    journal.close()


def test_a_gap_is_told_in_its_place(kit: Any, tmp_path: Any) -> None:
    entered, go = threading.Event(), threading.Event()

    def act(verb: str) -> None:
        if verb == "open":
            entered.set()
            assert go.wait(LONG)

    ear = Ear(act)
    log = JsonLinesSink(tmp_path / "log")
    journal = Journal([ear, log], limit=2, linger=0)
    journal.start(kit.info())
    assert entered.wait(LONG)
    first, second, third = steps(kit, 3)
    journal.append(kit.info().id, *first)
    journal.append(kit.info().id, *second)  # dropped
    go.set()
    while journal._box.consumed < 3:
        threading.Event().wait(0.001)
    journal.append(kit.info().id, *third)
    journal.finish(kit.info().id, DONE).result(LONG)
    journal.close()
    kinds = [what["event"] if isinstance(what, dict) else len(what) for verb, _, what in ear.heard if verb == "write"]
    assert kinds == [3, "log.lost", 3]
    text = (tmp_path / "log").read_text()
    assert text.count("\n") == 1 + 3 + 1 + 3 + 1
    assert '"lost":3}' in text


def test_one_step_larger_than_the_limit_is_taken_when_nothing_waits(kit: Any) -> None:
    ear = Ear()
    journal = Journal([ear], limit=2, chunk_rows=4)
    journal.start(kit.info())
    rows = [row for batch, _ in steps(kit, 9) for row in batch]
    journal.append(kit.info().id, rows, {})
    journal.finish(kit.info().id, DONE).result(LONG)
    journal.close()
    assert ear.rows() == rows
    assert journal.lost == 0


def test_finish_twice_or_for_nobody(kit: Any) -> None:
    ear = Ear()
    journal = Journal([ear])
    journal.start(kit.info())
    first, second = journal.finish(kit.info().id, DONE), journal.finish(kit.info().id, DONE)
    assert second.done()
    first.result(LONG)
    assert journal.finish("nobody", DONE).done()
    journal.append(kit.info().id, *kit.simple(kit.info()))  # too late: ignored
    journal.close()
    assert ear.verbs() == ["open", "close"]


async def test_a_waiter_that_is_cancelled_does_not_stop_delivery(kit: Any) -> None:
    go = threading.Event()
    ear = Ear(lambda verb: None if verb != "open" else (go.wait(LONG), None)[1])
    journal = Journal([ear])
    journal.start(kit.info())
    done = journal.finish(kit.info().id, DONE)
    waiter = asyncio.ensure_future(asyncio.wrap_future(done))
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    go.set()
    done.result(LONG)
    journal.close()
    assert ear.verbs() == ["open", "close"]
    assert journal.faults == []


def test_close_ends_what_was_not_finished(kit: Any) -> None:
    ear = Ear()
    journal = Journal([ear])
    journal.start(kit.info())
    rows, reports = kit.simple(kit.info())
    journal.append(kit.info().id, rows, reports)
    journal.close()
    journal.close()
    assert ear.rows() == rows
    outcome = ear.heard[-1][2]
    assert (outcome.state, outcome.ended) == ("interrupted", rows[-1][3])
    with pytest.raises(EngineClosed):
        journal.start(kit.info())
    journal.append(kit.info().id, rows, reports)
    assert journal.finish(kit.info().id, DONE).done()


def test_close_from_a_sink_does_not_wait_for_itself(kit: Any) -> None:
    ear = Ear(lambda verb: journal.close() if verb == "close" else None)
    journal = Journal([ear])
    journal.start(kit.info())
    journal.finish(kit.info().id, DONE).result(LONG)
    journal.close()
    assert journal.faults == []


def test_a_sink_that_hangs_does_not_hold_up_close_beyond_its_timeout(kit: Any) -> None:
    go = threading.Event()
    journal = Journal([Ear(lambda verb: (go.wait(LONG), None)[1])])
    journal.start(kit.info())
    done = journal.finish(kit.info().id, DONE)
    journal.close(timeout=0.01)
    assert not done.done()
    go.set()
    journal.close()
    assert done.done()


def test_no_thread_to_be_had(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    journal = Journal([Ear()])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert journal.start(kit.info()) is False
    assert "can't start new thread" in journal.notes(kit.info().id)[0]
    assert journal.start(kit.info()) is True  # and again, when there is one
    journal.close()


def test_faults_are_bounded(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowlane.runtime.journal._FAULTS_KEPT", 3)

    def act(verb: str) -> None:
        raise ValueError(verb)

    journal = Journal([Ear(act)])
    for number in range(6):
        journal.start(kit.info(id=str(number)))
        journal.finish(str(number), DONE).result(LONG)
    journal.close()
    assert [fault.run for fault in journal.faults] == ["3", "4", "5"]


def test_many_wake_ups_lose_nothing(kit: Any) -> None:
    """Appends at every phase of the writer's sleep: a lost wake-up would leave the last row waiting for ever."""
    ear = Ear()
    journal = Journal([ear], chunk_rows=5, linger=0.0005)
    journal.start(kit.info())
    pause = threading.Event()
    wanted = []
    for n, (rows, reports) in enumerate(steps(kit, 300)):
        journal.append(kit.info().id, rows, reports)
        wanted += rows
        if n % 7 == 0:
            pause.wait((n % 5) * 0.0004)
    deadline = threading.Event()
    for _ in range(3000):
        if len(ear.rows()) == len(wanted):
            break
        deadline.wait(0.01)
    assert ear.rows() == wanted
    journal.close()


def test_the_library_logger_has_one_null_handler() -> None:
    for _ in range(3):
        logger = library_logger()
    nulls = [handler for handler in logger.handlers if isinstance(handler, logging.NullHandler)]
    assert len(nulls) == 1
