"""run, arun and Engine over real executors: what a host program relies on."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from flowlane import (
    Engine,
    EngineClosed,
    RetryPolicy,
    RouteError,
    RunCancelled,
    RunFailed,
    RunState,
    TaskState,
    UsageError,
    Workflow,
    arun,
    run,
    task,
    workflow,
)
from flowlane.runtime.ports import SUCCEEDED, Capabilities, Job, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 20
    while (left := [t for t in threading.enumerate() if t not in before]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


@task.io
async def fetch(n: int) -> int:
    await asyncio.sleep(0.001)
    return n


@task.io
def read(n: int) -> int:
    return n + 1


@task.cpu
def square(n: int) -> int:
    return n * n


@task.io
async def fail(n: int) -> int:
    raise ValueError(f"bad {n}")


@task.io
async def wait_for_ever() -> None:
    await asyncio.Event().wait()


@workflow
def mixed(n: int = 4) -> list[int]:
    return [square(read(fetch(i))) for i in range(n)]


# ── values, failures ──────────────────────────────────────────────────────────────────────────────────────────────


def test_one_run_uses_asyncio_threads_and_processes() -> None:
    result = run(mixed, n=4)
    assert result.value == [1, 4, 9, 16]
    assert result.state == "succeeded"
    assert result.counts == {TaskState.SUCCEEDED: 12}
    assert {t.executor for t in result.tasks.values()} == {"asyncio", "threads", "processes"}
    assert result.tasks["square#2"].attempts == 1
    assert (result.tasks["square#2"].duration or 0) > 0
    assert result.critical_path[-1][0].startswith("square")
    assert set(result.times.work) == {"asyncio", "threads", "processes"}


def test_a_failure_stops_only_what_depends_on_it() -> None:
    #   fail ─▶ read ─▶ read#2        fetch ─▶ read#3
    @workflow
    def partly() -> list[Any]:
        broken = read(read(fail(7)))
        return [broken, read(fetch(1))]

    result = run(partly.bind(), check=False)
    assert result.state == "failed"
    assert {name: str(t.state) for name, t in result.tasks.items()} == {
        "fail": "failed",
        "read": "upstream_failed",
        "read#2": "upstream_failed",
        "fetch": "succeeded",
        "read#3": "succeeded",
    }
    assert result.upstream("read#2") == ["fail", "read", "read#2"]
    failure = result.failures["fail"]
    assert (failure.type, failure.message) == ("ValueError", "bad 7")
    assert "in fail" in (failure.where or "")
    assert "flowlane/" not in failure.traceback
    with pytest.raises(RunFailed, match=r"task 'fail' failed: ValueError: bad 7.*2 downstream did not run") as caught:
        _ = result.value
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(RunFailed):
        run(partly)


def test_a_run_that_is_not_over_by_its_deadline_says_so() -> None:
    """No task has failed."""

    #   wait_for_ever ─▶ read
    @workflow(deadline=0.05)
    def late() -> Any:
        return read.options(after=["wait_for_ever"])(wait_for_ever())  # type: ignore[arg-type]

    result = run(late.bind(), check=False)
    assert {name: str(t.state) for name, t in result.tasks.items()} == {
        "wait_for_ever": "cancelled",
        "read": "cancelled",
    }
    assert (result.state, result.failures) == (RunState.FAILED, {})
    assert result.notes == ["the run was not over by its deadline of 0.05 s: what had not ended was cancelled"]
    with pytest.raises(RunFailed, match=r"was not over by its deadline of 0\.05 s") as failed:
        _ = result.value
    assert failed.value.failures == {} and failed.value.__cause__ is None
    with pytest.raises(RunFailed, match="deadline"):
        run(late)

    class Ends:
        def open(self, run: Any) -> None: ...
        def write(self, chunk: Any) -> None: ...
        def close(self, run: Any, outcome: Any) -> None:
            told.append(outcome.error)

    told: list[str | None] = []
    run(late.bind(), check=False, sinks=[Ends()])
    assert told == ["the run was not over by its deadline of 0.05 s"]


def test_fail_fast_stops_what_runs() -> None:
    @workflow(on_failure="fail_fast")
    def eager() -> list[Any]:
        return [wait_for_ever(), fail(1), read.options(after=["fail"])(1)]

    result = run(eager.bind(), check=False)
    states = {name: str(t.state) for name, t in result.tasks.items()}
    assert states == {"wait_for_ever": "cancelled", "fail": "failed", "read": "cancelled"}
    assert result.state == "failed"


@pytest.mark.parametrize("kind", ["asyncio", "threads", "processes", "inline"])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_exits_are_failures_of_the_task(kind: str, error: type[BaseException]) -> None:
    wf = Workflow("exits")
    kinds: dict[str, Any] = {"asyncio": leave_async, "threads": leave, "processes": leave_cpu, "inline": leave}
    wf.add(kinds[kind].bind(error.__name__), name="leave")
    wf.add(fetch.bind(1))
    routes = {"leave": "inline"} if kind == "inline" else {}
    result = run(wf, check=False, routes=routes, slots={"processes": 1})
    assert result.tasks["leave"].state == "failed"
    assert result.tasks["leave"].attempts == 1
    assert result.failures["leave"].type == error.__name__
    assert result.tasks["fetch"].state == "succeeded"


def _raise(name: str) -> None:
    raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt, "GeneratorExit": GeneratorExit}[name](
        "out"
    )


@task.io(retries=2)
async def leave_async(name: str) -> None:
    _raise(name)


@task.io
def leave(name: str) -> None:
    _raise(name)


@task.cpu
def leave_cpu(name: str) -> None:
    _raise(name)


def test_a_cancelled_error_that_nobody_asked_for_is_a_failure() -> None:
    @task.io
    async def cancels_itself() -> None:
        raise asyncio.CancelledError("who, me?")

    wf = Workflow("w")
    wf.add(cancels_itself.bind())
    result = run(wf, check=False)
    assert result.tasks["cancels_itself"].state == "failed"
    assert result.failures["cancels_itself"].type.endswith("CancelledError")


# ── retries and timeouts ──────────────────────────────────────────────────────────────────────────────────────────


def test_retries_repeat_only_what_the_policy_names() -> None:
    calls: list[str] = []

    @task.io(retry=RetryPolicy(attempts=4, backoff=0.001, on=(OSError,)))
    def flaky(name: str) -> int:
        calls.append(name)
        if name == "value":
            raise ValueError("not covered")
        if calls.count(name) < 3:
            raise ConnectionError("again")
        return calls.count(name)

    wf = Workflow("w")
    wf.add(flaky.bind("io"), name="io")
    wf.add(flaky.bind("value"), name="value")
    result = run(wf, check=False)
    assert result.tasks["io"].state == "succeeded"
    assert result.tasks["io"].attempts == 3
    assert result.tasks["value"].attempts == 1
    assert result.retries == 2


def test_a_timeout_cancels_awaits_clean_up_and_retries() -> None:
    cleaned: list[int] = []

    @task.io(timeout=0.02, retries=1)
    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned.append(1)

    wf = Workflow("w")
    wf.add(slow.bind())
    result = run(wf, check=False)
    assert result.tasks["slow"].state == "timed_out"
    assert result.tasks["slow"].attempts == 2
    assert cleaned == [1, 1]
    assert result.failures["slow"].type == "TimeoutError"
    assert "timeout of 0.02 s" in result.failures["slow"].message


def test_total_timeout_ends_a_task_that_waits_for_its_next_attempt() -> None:
    @task.io(retry=RetryPolicy(attempts=5, backoff=60), total_timeout=0.05)
    def never() -> None:
        raise OSError("no")

    wf = Workflow("w")
    wf.add(never.bind())
    result = run(wf, check=False)
    assert result.tasks["never"].state == "timed_out"
    assert "total_timeout of 0.05 s" in result.failures["never"].message


def test_a_coroutine_that_swallows_cancellation_is_abandoned() -> None:
    stop: list[bool] = []

    @task.io(timeout=0.01)
    async def stubborn() -> None:
        while not stop:
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                continue

    @workflow
    def w() -> list[Any]:
        return [stubborn(), fetch(1)]

    result = run(w.bind(), check=False, grace=0.05)
    stop.append(True)
    assert result.tasks["stubborn"].state == "timed_out"
    assert result.tasks["fetch"].state == "succeeded"
    assert any("abandoned" in note for note in result.notes)


def test_a_thread_that_does_not_return_is_abandoned_and_its_slot_replaced() -> None:
    release = threading.Event()

    @task.io(timeout=0.05)
    def stuck() -> None:
        release.wait(30)

    wf = Workflow("w")
    wf.add(stuck.bind())
    for n in range(5):
        wf.add(read.bind(n))
    result = run(wf, check=False, slots={"threads": 1})
    release.set()
    assert result.tasks["stuck"].state == "timed_out"
    assert result.counts[TaskState.SUCCEEDED] == 5
    assert any("abandoned" in note for note in result.notes)


# ── what reaches a task, and what is let go ───────────────────────────────────────────────────────────────────────


def test_contextvars_reach_async_tasks_and_threads_and_do_not_leak_between_them() -> None:
    @task.io
    async def look() -> str:
        seen = COLOUR.get()
        COLOUR.set("changed by a task")
        return seen

    @task.io
    def look_in_thread() -> str:
        seen = COLOUR.get()
        COLOUR.set("changed by a thread")
        return seen

    @workflow
    def w() -> list[str]:
        first, second = look(), look_in_thread()
        return [first, second, look.options(after=[first, second])(), look_in_thread.options(after=[first, second])()]

    token = COLOUR.set("green")
    try:
        assert run(w).value == ["green"] * 4
        assert COLOUR.get() == "green"
    finally:
        COLOUR.reset(token)


def test_structlog_in_a_task_finds_run_task_and_attempt_bound() -> None:
    import structlog

    def context() -> dict[str, Any]:
        return dict(structlog.contextvars.merge_contextvars(None, "info", {}))  # type: ignore[arg-type]

    @task.io
    async def here() -> dict[str, Any]:
        return context()

    @task.io
    def there() -> dict[str, Any]:
        return context()

    @workflow
    def w() -> list[dict[str, Any]]:
        return [here(), there()]

    before = context()
    result = run(w)
    assert result.value == [
        {"run": result.id, "task": "here", "attempt": 1},
        {"run": result.id, "task": "there", "attempt": 1},
    ]
    assert context() == before


class Big:
    pass


def test_values_are_released_when_their_last_reader_has_ended() -> None:
    alive: list[weakref.ref[Big]] = []

    @task.io
    async def make() -> Big:
        big = Big()
        alive.append(weakref.ref(big))
        return big

    @task.io
    async def use(big: Big) -> int:
        return 1

    @task.io
    async def after(n: int) -> bool:
        gc.collect()
        return alive[0]() is None

    @workflow
    def w() -> bool:
        return after(use(make()))

    assert run(w).value is True


def test_inline_runs_everything_in_the_callers_thread_one_at_a_time() -> None:
    seen: list[tuple[str, int]] = []

    @task.io
    async def a() -> None:
        seen.append(("a", threading.get_ident()))
        await asyncio.sleep(0.001)
        seen.append(("a", threading.get_ident()))

    @task.cpu
    def b() -> None:
        seen.append(("b", threading.get_ident()))

    @workflow
    def w() -> None:
        a()
        b()
        a()

    run(w.bind(), routes={"*": "inline"})
    assert [name for name, _ in seen] == ["a", "a", "b", "a", "a"]
    assert {ident for _, ident in seen} == {threading.get_ident()}


def test_handles_inside_containers_arrive_as_values() -> None:
    @task.io
    def total(groups: dict[str, list[int]], extra: tuple[int, int], *, bonus: int) -> int:
        return sum(sum(group) for group in groups.values()) + sum(extra) + bonus

    @workflow
    def w() -> dict[str, Any]:
        one, two = fetch(1), fetch(2)
        return {"total": total({"a": [one, 10], "b": [two]}, (one, two), bonus=fetch(100)), "plain": 5}

    assert run(w).value == {"total": 116, "plain": 5}


# ── Engine ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_runs_of_one_engine_share_its_slots() -> None:
    running = most = 0

    @task.io
    async def one() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1

    @workflow
    def many() -> None:
        for _ in range(10):
            one()

    async with Engine(slots={"asyncio": 3}) as engine:
        handles = [engine.start(many) for _ in range(4)]
        results = [await handle for handle in handles]
    assert most == 3
    assert all(result.state == "succeeded" for result in results)


async def test_events_replay_from_the_first_for_any_reader() -> None:
    async with Engine() as engine:
        handle = engine.start(mixed.bind(n=2), routes={"cpu": "threads"})
        early = [event async for event in handle.events()]
        await handle
        late = [event async for event in handle.events()]
    assert early == late
    assert early[0]["event"] == "run.started"
    assert early[-1]["event"] == "run.finished"
    path = [(e["from"], e["to"]) for e in early if e.get("task") == "square"]
    assert path == [("pending", "ready"), ("ready", "running"), ("running", "succeeded")]


async def test_cancelling_a_waiter_leaves_the_run_alone() -> None:
    async with Engine() as engine:
        handle = engine.start(mixed.bind(n=2), routes={"cpu": "threads"})
        waiter = asyncio.ensure_future(handle.wait())
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert (await handle).value == [1, 4]


async def test_cancel_and_drain() -> None:
    @workflow
    def endless() -> None:
        wait_for_ever()
        read(fetch(1))

    gate = asyncio.Event()

    @task.io
    async def gated() -> int:
        await gate.wait()
        return 1

    @workflow
    def two_steps() -> int:
        return read(gated())

    async with Engine() as engine:
        cancelled = engine.start(endless)
        await asyncio.sleep(0.02)
        assert cancelled.state is RunState.RUNNING
        cancelled.cancel()
        with pytest.raises(RunCancelled):
            await cancelled
        assert (await cancelled.wait()).tasks["wait_for_ever"].state == "cancelled"
        cancelled.cancel()  # no effect any more

        drained = engine.start(two_steps)
        await asyncio.sleep(0.01)
        drained.drain()
        gate.set()
        result = await drained.wait()
        assert result.state == "interrupted"
        assert result.tasks["gated"].state == "succeeded"
        assert result.tasks["read"].state == "cancelled"


async def test_leaving_by_an_exception_cancels_the_runs() -> None:
    @workflow
    def endless() -> None:
        wait_for_ever()

    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - what must happen in between is the test
        async with Engine() as engine:
            handle = engine.start(endless)
            await asyncio.sleep(0.01)
            raise ZeroDivisionError
    assert handle.state == "cancelled"
    with pytest.raises(EngineClosed):
        engine.start(endless)


async def test_cancelling_arun_cancels_the_run() -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    @task.io
    async def stoppable() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    @workflow
    def endless() -> None:
        stoppable()

    waiting = asyncio.ensure_future(arun(endless))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert stopped.is_set()


def test_a_sync_engine_owns_its_loop() -> None:
    with Engine(routes={"cpu": "threads"}) as engine:
        handles = [engine.start(mixed, n=n) for n in range(1, 4)]
        assert [handle.result(timeout=30).value for handle in handles] == [[1], [1, 4], [1, 4, 9]]
        failing = engine.start(only_fail)
        with pytest.raises(RunFailed):
            failing.result(timeout=30)
    with pytest.raises(UsageError, match="entered already"):
        engine.__enter__()


def test_waiting_for_a_run_where_nothing_could_be_awaited_says_so_at_once() -> None:
    async def elsewhere(handle: Any) -> Any:
        return await handle.wait()

    with Engine() as engine:
        handle = engine.start(only_fail)
        with pytest.raises(UsageError, match="no event loop runs here") as refused:
            _ = handle.wait()
        assert "handle.result()" in str(refused.value.hint)
        assert asyncio.run(elsewhere(handle)).state is RunState.FAILED  # async code may, on whatever loop
        with pytest.raises(RunFailed) as failed:
            handle.result(timeout=30)
        assert failed.value.result.state is RunState.FAILED


@workflow
def only_fail() -> None:
    fail(1)


async def test_result_on_the_engines_own_loop_is_refused() -> None:
    async with Engine() as engine:
        handle = engine.start(mixed.bind(n=1), routes={"cpu": "threads"})
        with pytest.raises(UsageError, match="block the event loop"):
            handle.result()
        await handle


async def test_run_inside_a_loop_says_what_to_use() -> None:
    with pytest.raises(UsageError, match="running event loop") as caught:
        run(mixed)
    assert "await arun(" in (caught.value.hint or "")


def test_names_are_checked_before_anything_starts() -> None:
    started: list[int] = []

    @task.io
    def note() -> None:
        started.append(1)

    @workflow
    def w() -> None:
        note()

    with pytest.raises(RouteError, match="'gpu'"):
        run(w.bind(), routes={"io": "gpu"})
    with pytest.raises(RouteError, match="'trheads'"):
        run(w.bind(), slots={"trheads": 2})
    assert not started


# ── executors that misbehave ──────────────────────────────────────────────────────────────────────────────────────


class Odd:
    """An executor that answers as `answer` says."""

    capabilities = Capabilities(accepts=frozenset({"sync"}), default_slots=4)

    def __init__(self, answer: Callable[[Odd, Sequence[Job]], None]) -> None:
        self.answer = answer
        self.closed = False

    async def open(self, deliver: Callable[[Sequence[Report]], None]) -> None:
        self.deliver = deliver

    def submit(self, jobs: Sequence[Job]) -> None:
        self.answer(self, jobs)

    def interrupt(self, refs: Sequence[int], grace: float) -> None:
        pass

    async def close(self, grace: float) -> None:
        self.closed = True


def _success(job: Job) -> Report:
    now = time.monotonic_ns()
    return Report(job.ref, SUCCEEDED, now, now, job.target.fn(*job.args, **job.kwargs))


def test_an_executor_of_the_users_own() -> None:
    odd = Odd(lambda self, jobs: self.deliver([_success(job) for job in jobs]))
    result = run(mixed.bind(n=2), executors={"odd": odd}, routes={"cpu": "odd"})
    assert result.value == [1, 4]
    assert odd.closed


def test_duplicate_reports_are_late_and_change_nothing() -> None:
    odd = Odd(lambda self, jobs: self.deliver([_success(job) for job in jobs for _ in range(2)]))
    result = run(mixed.bind(n=2), executors={"odd": odd}, routes={"cpu": "odd"})
    assert result.value == [1, 4]


def test_an_executor_that_raises_ends_the_run_with_its_error() -> None:
    def explode(self: Odd, jobs: Sequence[Job]) -> None:
        raise MemoryError("no room in submit")

    with pytest.raises(MemoryError, match="no room"):
        run(mixed.bind(n=2), executors={"odd": Odd(explode)}, routes={"cpu": "odd"})


def test_an_executor_that_does_not_open_ends_the_run_with_its_error() -> None:
    class Shut(Odd):
        async def open(self, deliver: Callable[[Sequence[Report]], None]) -> None:
            raise ConnectionRefusedError("nobody there")

    with pytest.raises(ConnectionRefusedError, match="nobody there"):
        run(mixed.bind(n=2), executors={"odd": Shut(lambda *_: None)}, routes={"cpu": "odd"})


def test_an_executor_that_breaks_the_protocol_ends_the_run_with_the_tasks_story() -> None:
    from flowlane.core import InvalidTransition
    from flowlane.runtime.ports import STARTED

    def twice(self: Odd, jobs: Sequence[Job]) -> None:
        now = time.monotonic_ns()
        self.deliver([Report(job.ref, STARTED, now) for job in jobs for _ in range(2)])

    with pytest.raises(InvalidTransition, match="has started already"):
        run(mixed.bind(n=1), executors={"odd": Odd(twice)}, routes={"cpu": "odd"})


# ── a good guest ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_host_is_left_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root = (logging.root.level, list(logging.root.handlers))
    run(mixed.bind(n=1), routes={"cpu": "threads"})
    run(only_fail.bind(), check=False)
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert (logging.root.level, list(logging.root.handlers)) == root
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_a_host_hears_transitions_through_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="flowlane"):
        result = run(only_fail.bind(), check=False)
    mine = [record for record in caplog.records if getattr(record, "run", None) == result.id]
    assert [record.levelname for record in mine if getattr(record, "to", None) == "failed"] == ["ERROR"]


def test_ctrl_c_ends_run_and_leaves_no_worker(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import os, sys, time
            from pathlib import Path
            from flowlane import run, task, workflow

            @task.cpu
            def spin() -> None:  # what it prints is captured: a file says that it has begun, and where
                Path("begun.new").write_text(str(os.getpid()))
                os.rename("begun.new", "begun")
                time.sleep(60)

            @workflow
            def w() -> None:
                spin()

            if __name__ == "__main__":
                try:
                    run(w.bind(), grace=0.2)
                except KeyboardInterrupt:
                    import psutil
                    print("interrupted", len(psutil.Process().children(recursive=True)), flush=True)
        """)
    )
    begun = tmp_path / "begun"
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        deadline = time.monotonic() + 30
        while not begun.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert out == "interrupted 0\n"
    assert not psutil.pid_exists(int(begun.read_text()))


def test_times_follow_the_chain_that_ended_last_and_add_up() -> None:
    @task.io(retry=RetryPolicy(attempts=2, backoff=0.03))
    async def second_time(seen: list[int]) -> int:
        seen.append(1)
        if len(seen) == 1:
            raise OSError("again")
        await asyncio.sleep(0.03)
        return 1

    @task.io
    def later(n: int) -> int:
        time.sleep(0.03)
        return n

    wf = Workflow("w")
    first = wf.add(second_time.bind([]))
    for _ in range(2):
        wf.add(later.bind(first))
    result = run(wf, slots={"threads": 1})
    times = result.times
    total = sum(times.work.values()) + sum(times.slot.values()) + times.retry + times.handover + times.engine
    assert total == pytest.approx(result.duration, abs=1e-6)
    assert times.work["asyncio"] >= 0.03
    assert times.work["threads"] >= 0.03
    assert times.slot["threads"] >= 0.02  # the second `later` waited for the first
    assert times.retry >= 0.03
    assert dict(result.critical_path)["second_time"] >= 0.06


def test_a_task_that_returns_after_its_timeout_is_timed_out_with_a_failure() -> None:
    @task.io(timeout=0.02)
    async def tidy() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
        return "too late"

    wf = Workflow("w")
    wf.add(tidy.bind())
    result = run(wf, check=False)
    assert result.tasks["tidy"].state == "timed_out"
    assert result.failures["tidy"].type == "TimeoutError"
    with pytest.raises(RunFailed, match="tidy"):
        result.check()


def test_a_plain_function_that_returns_a_coroutine_fails_with_the_fix() -> None:
    def hidden(n: int) -> Any:
        return fetch.fn(n)

    for routes in ({}, {"*": "inline"}):
        wf = Workflow("w")
        wf.add(task.io(hidden).bind(1))
        result = run(wf, check=False, routes=routes)
        assert "declare it `async def`" in result.failures["hidden"].message


def test_utilisation_is_work_over_slots() -> None:
    @task.io
    def nap() -> None:
        time.sleep(0.05)

    wf = Workflow("w")
    for _ in range(4):
        wf.add(nap.bind())
    result = run(wf, slots={"threads": 2})
    assert result.slots == {"threads": 2}
    assert 0.5 < result.utilisation["threads"] <= 1.0


def test_the_members_of_a_group_and_the_cause_of_an_error_are_told() -> None:
    @task.io
    async def crawl() -> None:
        async def one(host: int) -> None:
            raise ConnectionError(f"host {host} refused")

        async with asyncio.TaskGroup() as group:
            for host in range(5):
                group.create_task(one(host))

    @task.io
    def outer() -> None:
        try:
            _ = 1 / 0
        except ZeroDivisionError as error:
            raise ValueError("outer") from error

    wf = Workflow("w")
    wf.add(crawl.bind())
    wf.add(outer.bind())
    failures = run(wf, check=False).failures
    assert failures["outer"].notes == ("caused by ZeroDivisionError: division by zero",)
    assert failures["crawl"].notes[:1] == ("with ConnectionError: host 0 refused",)
    assert failures["crawl"].notes[-1] == "with more: see the traceback"


def test_who_wants_the_whole_log_waits_for_sinks_while_they_get_on() -> None:
    release, heard = threading.Event(), list[Any]()

    class Slow:
        def open(self, run: Any) -> None: ...

        def write(self, chunk: Any) -> None:
            release.wait(30)
            heard.extend(chunk.transitions)

        def close(self, run: Any, outcome: Any) -> None: ...

    engine = Engine(sinks=[Slow()], grace=0.05)
    try:
        with engine:
            assert engine.start(mixed.bind(n=1), routes={"cpu": "threads"}).result().value == [1]
        assert not engine.wait_for_sinks(0.05), "it gets nowhere"
    finally:
        release.set()
    assert engine.wait_for_sinks(30)
    assert len(heard) == 9  # three tasks, three transitions each
    assert engine.wait_for_sinks(0.0), "there is nobody left to wait for"


def test_a_sink_that_blocks_holds_up_neither_the_result_nor_the_end() -> None:
    release = threading.Event()

    class Stuck:
        def open(self, run: Any) -> None:
            release.wait(30)

        def write(self, chunk: Any) -> None: ...

        def close(self, run: Any, outcome: Any) -> None: ...

    try:
        result = run(mixed.bind(n=1), routes={"cpu": "threads"}, sinks=[Stuck()], grace=0.1)
        assert result.value == [1]
        assert any("a sink is slow" in note for note in result.notes)
    finally:
        release.set()
