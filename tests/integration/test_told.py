"""What an executor may tell and do beyond the plain outcome: remote values, appetite, figures, notes, output, its own kills."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import weakref
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Engine, Failure, RetryPolicy, RunFailed, TransportError, Workflow, task, workflow
from flowlane.cli.record import EventLog
from flowlane.cli.state import prepare_state_dir
from flowlane.errors import PoisonTask
from flowlane.runtime import measured
from flowlane.runtime.ports import (
    CRASHED,
    FAILED,
    INTERRUPTED,
    NOTED,
    STARTED,
    SUCCEEDED,
    Capabilities,
    Job,
    RemoteValue,
    Report,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


class Here(RemoteValue):
    """A value that stays with its executor; `lost` when it cannot be had any more."""

    __slots__ = ("__weakref__", "lost", "value")

    def __init__(self, home: object, value: Any) -> None:
        super().__init__(home, 8)
        self.value = value
        self.lost: Exception | None = None

    def fetch(self) -> Any:
        if self.lost is not None:
            raise self.lost
        return self.value


class Bench:
    """Calls each job's function on the loop, a turn later, and answers with what `answer` makes of it."""

    def __init__(self, answer: Callable[[Bench, Job, int], Sequence[Report]] | None = None, **more: Any) -> None:
        self.capabilities = Capabilities(**{"accepts": frozenset({"sync"}), "default_slots": 2, **more})
        self.got: list[tuple[Any, ...]] = []
        self.out: set[int] = set()
        self.most = 0
        self.timeouts: list[float | None] = []
        self.answer = answer or Bench.call

    async def open(self, deliver: Any) -> None:
        self.deliver = deliver
        self.loop = asyncio.get_running_loop()

    def submit(self, jobs: Sequence[Job]) -> None:
        self.out.update(job.ref for job in jobs)
        self.most = max(self.most, len(self.out))
        for job in jobs:
            self.timeouts.append(job.timeout)
            self.loop.call_soon(self.work, job)

    def work(self, job: Job) -> None:
        reports = self.answer(self, job, monotonic_ns())
        if any(report.kind not in (STARTED, NOTED) for report in reports):
            self.out.discard(job.ref)
        self.deliver(reports)

    def call(self, job: Job, started: int, **figures: Any) -> list[Report]:
        self.got.append((job.task, *job.args, *job.kwargs.values()))
        args = [each.value if isinstance(each, Here) else each for each in job.args]
        try:
            value = job.target.fn(*args, **job.kwargs)
        except Exception as error:
            return [Report(job.ref, FAILED, started, monotonic_ns(), failure=Failure.of(error), **figures)]
        if self.capabilities.remote_values:
            value = Here(self, value)
        return [Report(job.ref, SUCCEEDED, started, monotonic_ns(), value, worker="bench", **figures)]

    def interrupt(self, refs: Sequence[int], grace: float) -> None:
        now = monotonic_ns()
        asked = [ref for ref in refs if ref in self.out]
        self.out.difference_update(asked)
        self.deliver([Report(ref, INTERRUPTED, now, now) for ref in asked])

    async def close(self, grace: float) -> None:
        self.interrupt(list(self.out), 0)


class Big:
    def __init__(self, word: str) -> None:
        self.word = word


@task.cpu
def make(word: str) -> Big:
    return Big(word)


@task.cpu
def word_of(big: Any, others: Any = ()) -> str:
    return f"{big.word}!"


@task.io
async def read(big: Any, others: Any = ()) -> str:
    return f"{big.word} {[other.word for other in others]}"


@task.cpu
def nothing(*_: Any) -> None:
    pass


def engine(bench: Bench, **more: Any) -> Engine:
    return Engine(executors={"bench": bench}, routes={"cpu": "bench"}, **more)


# ── remote values ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_remote_value_is_handed_home_and_fetched_for_all_others() -> None:
    bench = Bench(remote_values=True)
    steps = Workflow("w")
    a, b = steps.add(make.bind("a")), steps.add(make.bind("b"))
    home = steps.add(word_of.bind(a, others=[a, {"b": b}]))
    away = steps.add(read.bind(a, others=[a, b]))
    async with engine(bench) as running:
        result = await running.start(steps.returns([home, away, {"deep": (home,)}]))
    assert result.value == ["a!", "a ['a', 'b']", {"deep": ("a!",)}]
    (_, big, others) = next(row for row in bench.got if row[0] == "word_of")
    assert isinstance(big, Here)
    assert others[0] is big
    assert isinstance(others[1]["b"], Here)


async def test_another_executor_of_the_same_kind_is_not_home() -> None:
    one, two = Bench(remote_values=True), Bench(remote_values=True)
    steps = Workflow("w")
    last = steps.add(word_of.bind(steps.add(make.bind("a"))))
    async with Engine(executors={"one": one, "two": two}, routes={"make": "one", "word_of": "two"}) as running:
        result = await running.start(steps.returns(last))
    assert result.value == "a!"
    assert isinstance(two.got[0][1], Big)


async def test_a_remote_value_is_let_go_after_its_last_reader() -> None:
    seen: list[weakref.ref[Here]] = []
    alive: list[bool] = []

    def answer(bench: Bench, job: Job, now: int) -> list[Report]:
        bench.got.clear()
        if job.task == "nothing":  # runs after the reader
            gc.collect()
            alive.extend(ref() is not None for ref in seen)
        reports = bench.call(job, now)
        bench.got.clear()
        if job.task == "make":
            seen.append(weakref.ref(reports[0].value))
        return reports

    steps = Workflow("w")
    reader = steps.add(word_of.bind(steps.add(make.bind("a"))))
    after = steps.add(nothing.bind(), after=[reader])
    last = steps.add(nothing.bind(), after=[after], name="last")
    async with engine(Bench(answer, remote_values=True)) as running:
        await running.start(steps.returns(last))
    assert alive == [False]


def losing(error: Exception) -> Bench:
    def answer(bench: Bench, job: Job, now: int) -> list[Report]:
        reports = bench.call(job, now)
        reports[0].value.lost = error
        return reports

    return Bench(answer, remote_values=True)


async def test_a_value_that_is_lost_fails_its_reader_and_no_other() -> None:
    steps = Workflow("w")
    big = steps.add(make.bind("a"))
    steps.add(read.bind(big))
    steps.add(word_of.bind(big))
    async with engine(losing(TransportError("the value of 'make' is gone"))) as running:
        handle = running.start(steps.returns(None))
        result = await handle.wait()
        events = [event async for event in handle.events() if event["event"] == "task.transition"]
    assert {name: str(one.state) for name, one in result.tasks.items()} == {
        "make": "succeeded",
        "read": "failed",
        "word_of": "succeeded",
    }
    assert result.failures["read"].type == "TransportError"
    assert result.failures["read"].message == "the value of 'make' is gone"
    (last,) = [event for event in events if event["task"] == "read" and event["to"] == "failed"]
    assert (last["from"], last["reason"]) == ("ready", "rejected")
    with pytest.raises(RunFailed, match="task 'read' failed"):
        result.check()


async def test_a_value_that_does_not_load_is_fetched_again_only_for_a_retry() -> None:
    class Unloadable(Exception):
        pass

    tries: list[int] = []

    class Flaky(Here):
        __slots__ = ()

        def fetch(self) -> Any:
            tries.append(1)
            if len(tries) < 2:
                raise Unloadable("no module")
            return self.value

    def answer(bench: Bench, job: Job, now: int) -> list[Report]:
        reports = bench.call(job, now)
        reports[0].value = Flaky(bench, reports[0].value.value)
        return reports

    for attempts, state in ((1, "failed"), (2, "succeeded")):
        tries.clear()
        steps = Workflow("w")
        big = steps.add(make.bind("a"))
        steps.add(read.options(retry=RetryPolicy(attempts=attempts, on=(TransportError,))).bind(big))
        async with engine(Bench(answer, remote_values=True)) as running:
            result = await running.start(steps.returns(None)).wait()
        assert str(result.tasks["read"].state) == state
        if state == "failed":
            message = result.failures["read"].message
            assert message == "a value that 'read' reads could not be fetched: Unloadable: no module"


async def test_a_result_that_is_lost_fails_the_run_and_says_so() -> None:
    steps = Workflow("w")
    steps.returns([steps.add(make.bind("a"))])
    async with engine(losing(TransportError("its worker is gone", hint="write it to a file"))) as running:
        handle = running.start(steps)
        result = await handle.wait()
        (end,) = [event async for event in handle.events() if event["event"] == "run.finished"]
    assert result.state == "failed"
    assert result.failures == {}
    assert end["state"] == "failed"
    expected = "the value of task 'make', part of the run's result, could not be fetched: its worker is gone"
    with pytest.raises(TransportError, match=expected) as caught:
        result.check()
    assert caught.value.hint == "write it to a file"
    assert caught.value.exit_code == 1


# ── appetite ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Hungry(Bench):
    def __init__(self, wants: list[Any], **more: Any) -> None:
        super().__init__(**more)
        self.wants = wants
        self.outs: list[int] = []

    @property
    def appetite(self) -> int:
        want = self.wants.pop(0) if len(self.wants) > 1 else self.wants[0]
        if isinstance(want, Exception):
            raise want
        return want

    def work(self, job: Job) -> None:
        self.outs.append(len(self.out))
        super().work(job)


async def wide(bench: Bench, count: int = 40) -> Any:
    steps = Workflow("w")
    for _ in range(count):
        steps.add(nothing.bind())
    async with engine(bench) as running:
        return await running.start(steps)


async def test_a_hungry_executor_holds_more_jobs_than_it_has_slots() -> None:
    bench = Hungry([6])
    result = await wide(bench)
    assert bench.most == 6
    assert result.slots == {"bench": 2}
    assert result.utilisation["bench"] <= 1.01
    assert Bench().most == 0
    plain = Bench()
    await wide(plain)
    assert plain.most == 2


async def test_appetite_is_asked_again_and_again() -> None:
    bench = Hungry([2, 2, 2, 2, 9, 9, 9, 9, 9, 9, 3])
    await wide(bench)
    assert bench.most == 9
    assert max(bench.outs[-10:]) == 3  # it shrank below what was out, and nothing came until that had gone


@pytest.mark.parametrize("want", [1, 0, -5])
async def test_less_appetite_than_slots_is_no_less_than_the_slots(want: int) -> None:
    bench = Hungry([want])
    await wide(bench)
    assert bench.most == 2


@pytest.mark.parametrize("want", [ValueError("no idea"), float("inf"), "six"])
async def test_an_appetite_that_makes_no_sense_leaves_the_slots(want: Any) -> None:
    bench = Hungry([5, 5, want])
    result = await wide(bench)
    assert result.state == "succeeded"
    assert max(bench.outs[-10:]) == 2


async def test_runs_that_wait_are_woken_when_the_lane_is_stretched() -> None:
    bench = Hungry([2])
    async with engine(bench) as running:
        handles = []
        for _ in range(3):
            steps = Workflow("w")
            for _ in range(10):
                steps.add(nothing.bind())
            handles.append(running.start(steps))
        bench.wants[:] = [12]
        for handle in handles:
            assert (await handle).state == "succeeded"
    assert bench.most == 12


# ── figures ───────────────────────────────────────────────────────────────────────────────────────────────────────

FIGURES = {"cpu": 1_800_000_000, "rss": 212_000_000, "bytes_in": 10, "bytes_out": 0, "pickling": 2_500_000}


@task.cpu
def breaks() -> None:
    raise ValueError("no")


async def test_what_was_measured_is_in_the_result_and_in_the_events() -> None:
    def answer(bench: Bench, job: Job, now: int) -> list[Report]:
        return bench.call(job, now, **(FIGURES if job.task != "nothing" else {}))

    steps = Workflow("w")
    steps.add(make.bind("a"))
    steps.add(breaks.bind())
    steps.add(nothing.bind())
    async with engine(Bench(answer)) as running:
        handle = running.start(steps)
        result = await handle.wait()
        ends = {e["task"]: e async for e in handle.events() if e.get("from") == "running"}
    for name in ("make", "breaks"):
        one = result.tasks[name]
        assert (one.cpu, one.peak_rss, one.bytes_in, one.bytes_out) == (1.8, 212_000_000, 10, 0)
        assert one.pickling == 0.0025
        fields = ("cpu_s", "peak_rss", "bytes_in", "bytes_out", "pickling_s")
        assert [ends[name][field] for field in fields] == [1.8, 212_000_000, 10, 0, 0.0025]
    plain = result.tasks["nothing"]
    assert plain[8:] == (None,) * 7
    assert "cpu_s" not in ends["nothing"]
    assert list(ends["make"])[-5:] == ["cpu_s", "peak_rss", "bytes_in", "bytes_out", "pickling_s"]


async def test_only_the_latest_attempt_counts() -> None:
    def answer(bench: Bench, job: Job, now: int) -> list[Report]:
        if job.attempt == 1:
            crash = Failure.of(PoisonTask("x"))
            crash.ancestry = crash.ancestry[1:]  # a plain WorkerCrashed
            return [Report(job.ref, CRASHED, now, now, None, crash, "pid 1", rss=7, output="dying")]
        return bench.call(job, now)

    steps = Workflow("w")
    steps.add(nothing.options(retries=1).bind())
    async with engine(Bench(answer)) as running:
        result = await running.start(steps)
    one = result.tasks["nothing"]
    assert (one.attempts, one.peak_rss, one.output, one.worker) == (2, None, None, None)


async def test_a_run_that_measures_nothing_holds_no_columns() -> None:
    result = await wide(Bench())
    kept = result._record.measured
    assert not kept.cpu and not kept.rss and not kept.bytes_in and not kept.bytes_out and not kept.pickling


async def test_the_result_lets_the_engine_and_the_arguments_go() -> None:
    argument = Big("held")
    gone = weakref.ref(argument)
    steps = Workflow("w")
    steps.add(nothing.bind(argument))
    bench = Bench()
    async with engine(bench) as running:
        result = await running.start(steps)
    bench.got.clear()
    pool = weakref.ref(bench)
    del steps, argument, running, bench
    gc.collect()
    assert gone() is None
    assert pool() is None
    assert str(result.tasks["nothing"].state) == "succeeded"
    assert result.verdicts == []


# ── notes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def noting(count: int) -> Bench:
    def answer(bench: Bench, job: Job, now: int) -> list[Report]:
        notes = [Report(job.ref, NOTED, now, note=f"held the loop for {n}") for n in range(count)]
        late = Report(job.ref, NOTED, now, note="too late")
        return [Report(job.ref, STARTED, now), *notes, *bench.call(job, now), late]

    return Bench(answer)


async def test_notes_are_told_in_order_and_change_nothing() -> None:
    steps = Workflow("w")
    steps.add(make.bind("a"))
    heard: list[str] = []

    class Hears:
        def open(self, run: Any) -> None: ...

        def write(self, chunk: Any) -> None:
            heard.extend(f"{e['event']} {e.get('to', e.get('note'))}" for e in chunk.events())

        def close(self, run: Any, outcome: Any) -> None: ...

    async with engine(noting(2), sinks=[Hears()]) as running:
        handle = running.start(steps)
        result = await handle
        events = [event async for event in handle.events()]
    expected = [
        "task.transition ready",
        "task.transition running",
        "task.noted held the loop for 0",
        "task.noted held the loop for 1",
        "task.transition succeeded",
    ]
    assert heard == expected
    assert [f"{e['event']} {e.get('to', e.get('note'))}" for e in events[1:-1]] == expected
    note = events[3]
    assert (note["v"], note["level"], note["task"], note["kind"], note["executor"], note["attempt"]) == (
        1,
        "warning",
        "make",
        "cpu",
        "bench",
        1,
    )
    assert result.notes == ["make held the loop for 0", "make held the loop for 1"]


async def test_only_the_first_notes_are_kept() -> None:
    steps = Workflow("w")
    steps.add(make.bind("a"))
    async with engine(noting(1_021)) as running:
        handle = running.start(steps)
        result = await handle
        told = [event async for event in handle.events() if event["event"] == "task.noted"]
    assert len(told) == 1_021
    assert result.notes[19:] == ["make held the loop for 19", "1,001 more such notes are in the event log only"]


# ── output ────────────────────────────────────────────────────────────────────────────────────────────────────────


def printing(bench: Bench, job: Job, now: int) -> list[Report]:
    if job.attempt == 1 and job.task == "again":
        error = Failure.of(ValueError("once more"))
        return [Report(job.ref, FAILED, now, now, None, error, output="first try\n", cpu=1)]
    return bench.call(job, now, output=f"{job.task} says hello\n", cpu=1)


async def test_output_is_in_the_result_and_in_a_file_an_attempt(tmp_path: Path) -> None:
    steps = Workflow("w")
    for name in ("plain", "..", ".hidden", "ü: *", "x" * 300, "x" * 301):
        steps.add(nothing.bind(), name=name)
    steps.add(nothing.options(retries=1).bind(), name="again")
    log = EventLog(str(tmp_path / ".flow"))
    prepare_state_dir(str(tmp_path / ".flow"))
    log.enabled = True
    async with engine(Bench(printing), sinks=[log]) as running:
        handle = running.start(steps)
        result = await handle
        kept = handle._run.steps
    assert result.tasks["again"].output == "again says hello\n"
    folder = tmp_path / ".flow" / "runs" / result.id / "output"
    files = {path.name: path.read_text() for path in folder.iterdir()}
    assert len(files) == 8
    assert files["again.1.txt"] == "first try\n"
    assert files["again.2.txt"] == "again says hello\n"
    assert files["plain.1.txt"] == "plain says hello\n"
    assert files["%2E..1.txt"] == ".. says hello\n"
    assert files["%C3%BC%3A%20%2A.1.txt"] == "ü: * says hello\n"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.listdir(tmp_path) == [".flow"]
    assert log.output_path(result.id, "again", 2) == str(folder / "again.2.txt")
    assert kept is not None
    assert all(report.output is None for _, reports in kept for report in reports.values())  # nobody would take it away
    assert "says hello" not in (folder.parent / "events.jsonl").read_text()
    for line in (folder.parent / "events.jsonl").read_text().splitlines():
        json.loads(line)


async def test_a_fault_with_output_is_told_once(tmp_path: Path) -> None:
    steps = Workflow("w")
    for number in range(3):
        steps.add(nothing.bind(), name=f"t{number}")
    log = EventLog(str(tmp_path / ".flow"))
    prepare_state_dir(str(tmp_path / ".flow"))
    log.enabled = True
    handle_ids: list[str] = []

    def answer(bench: Bench, job: Job, now: int) -> list[Report]:
        run = tmp_path / ".flow" / "runs" / job.run
        if not handle_ids:
            handle_ids.append(job.run)
            run.mkdir(exist_ok=True)
            (run / "output").write_text("in the way")
        return printing(bench, job, now)

    async with engine(Bench(answer), sinks=[log]) as running:
        result = await running.start(steps)
    told = [note for note in result.notes if "printed could not be written" in note]
    assert len(told) == 1
    assert "'t" in told[0] and "not a directory" in told[0]


async def test_a_result_keeps_only_so_much_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "OUTPUT_KEPT", 50)
    steps = Workflow("w")
    for number in range(5):
        steps.add(nothing.bind(), name=f"t{number}")
    async with engine(Bench(printing)) as running:
        result = await running.start(steps)
    assert sum(one.output is not None for one in result.tasks.values()) == 3  # of 14 characters each
    (note,) = result.notes
    assert note.startswith("the output of 2 attempts is not in the result")


async def test_nothing_is_printed_by_a_library(capfd: pytest.CaptureFixture[str]) -> None:
    steps = Workflow("w")
    steps.add(nothing.bind())
    async with engine(Bench(printing)) as running:
        await running.start(steps)
    assert capfd.readouterr() == ("", "")


# ── poison, and executors that kill by themselves ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("poison", "attempts"), [(True, 1), (False, 4)])
async def test_a_poisonous_task_is_not_tried_again(poison: bool, attempts: int) -> None:
    def answer(bench: Bench, job: Job, now: int) -> list[Report]:
        failure = Failure.of(PoisonTask("its worker died twice"))
        if not poison:
            failure.ancestry = failure.ancestry[1:]
        return [Report(job.ref, CRASHED, now, now, failure=failure)]

    steps = Workflow("w")
    steps.add(nothing.options(retry=RetryPolicy(attempts=4, on=(Exception,))).bind())
    async with engine(Bench(answer)) as running:
        result = await running.start(steps).wait()
    assert (str(result.tasks["nothing"].state), result.tasks["nothing"].attempts) == ("crashed", attempts)


def killing(bench: Bench, job: Job, now: int) -> list[Report]:
    """A job with a timeout is stopped at it."""
    if job.timeout is None:
        return [Report(job.ref, STARTED, now)]  # and on it goes
    return [Report(job.ref, INTERRUPTED, now - 9, now, None, Failure("Killed", "with SIGKILL"), "pid 9")]


async def test_an_executor_that_keeps_the_deadline_itself() -> None:
    bench = Bench(killing, hard_kill=True)
    steps = Workflow("w")
    steps.add(nothing.options(timeout=1.5).bind(), name="once")
    steps.add(nothing.options(timeout=2, retry=RetryPolicy(attempts=3, on=(TimeoutError,))).bind(), name="thrice")
    async with engine(bench) as running:
        handle = running.start(steps)
        result = await handle.wait()
        ends = [(e["task"], e["to"], e["reason"]) async for e in handle.events() if e.get("from") == "running"]
    assert bench.timeouts.count(1.5) == 1
    assert bench.timeouts.count(2.0) == 3
    assert ("once", "timed_out", "attempt_timeout") in ends
    assert ends.count(("thrice", "retrying", "attempt_timeout")) == 2
    assert (str(result.tasks["thrice"].state), result.tasks["thrice"].attempts) == ("timed_out", 3)
    failure = result.failures["once"]
    assert (failure.type, failure.message) == ("TimeoutError", "not finished within its timeout of 1.5 s")
    assert failure.notes == ("while stopping it raised Killed: with SIGKILL",)
    assert result.tasks["once"].worker == "pid 9"


async def test_the_total_time_is_kept_by_the_scheduler_all_the_same() -> None:
    steps = Workflow("w")
    steps.add(nothing.options(total_timeout=0.05).bind())
    bench = Bench(killing, hard_kill=True)
    async with engine(bench) as running:
        result = await running.start(steps).wait()
    assert bench.timeouts == [None]
    assert str(result.tasks["nothing"].state) == "timed_out"
    assert result.failures["nothing"].message == "not finished within its total_timeout of 0.05 s"


async def test_an_interrupt_that_nobody_asked_for_is_no_timeout() -> None:
    def answer(bench: Bench, job: Job, now: int) -> list[Report]:
        return [Report(job.ref, INTERRUPTED, now, now)]

    steps = Workflow("w")
    steps.add(nothing.bind())
    async with engine(Bench(answer, hard_kill=True)) as running:
        result = await running.start(steps).wait()
    assert str(result.tasks["nothing"].state) == "failed"
    assert "took it back" in result.failures["nothing"].message


@workflow
def words(count: int = 2) -> list[str]:
    return [word_of(make(str(n))) for n in range(count)]


async def test_a_run_without_remote_values_is_not_touched() -> None:
    bench = Bench()
    async with engine(bench) as running:
        result = await running.start(words, count=3)
    assert result.value == ["0!", "1!", "2!"]
