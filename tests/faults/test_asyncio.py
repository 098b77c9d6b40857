"""Coroutines against real faults. Numbers in brackets are rows of the fault matrix.

A test that asks for something within a time asks for it long before the fault itself would end.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import selectors
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Engine, Workflow, run, task
from flowlane.core.states import TaskState
from flowlane.runtime.ports import ABANDONED, FAILED, INTERRUPTED, NOTED, SUCCEEDED
from flowlane_plugins.executors.asyncio_ import AsyncioExecutor
from flowlane_plugins.executors.inline import InlineExecutor
from flowlane_plugins.executors.watchdog import Suspect, Watchdog

from .threads_and_loops import LOOPS, Listener, ends, on_loop, opened, start_script

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).name


@pytest.fixture(scope="module", autouse=True)
def warmed_up() -> None:
    """uvloop opens a pipe for signals with a process's first loop, and keeps it."""
    with contextlib.suppress(ImportError):
        importlib.import_module("uvloop").new_event_loop().close()


# ── leaving [17] ──────────────────────────────────────────────────────────────────────────────────────────────────


@task.io
async def leaves(name: str) -> None:
    await asyncio.sleep(0)
    raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt, "GeneratorExit": GeneratorExit}[name](7)


@task.io
async def stays() -> int:
    await asyncio.sleep(0.01)
    return 1


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
def test_a_coroutine_that_wants_to_leave_fails_alone(name: str) -> None:
    """Red when `_attempt` catches Exception only: asyncio lets the first two out through the loop, and everybody ends."""
    workflow = Workflow("w")
    workflow.add(leaves.bind(name))
    workflow.add(stays.bind())
    result = run(workflow, check=False)
    assert result.tasks["leaves"].state is TaskState.FAILED
    assert (result.failures["leaves"].type, result.failures["leaves"].message) == (name, "7")
    assert result.tasks["stays"].state is TaskState.SUCCEEDED


# ── stopping [21] ─────────────────────────────────────────────────────────────────────────────────────────────────


async def swallows(stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            continue


async def tidies(seconds: float, done: list[str]) -> None:
    try:
        await asyncio.sleep(30)
    finally:
        done.append("began")
        await asyncio.sleep(seconds)
        done.append("ended")


async def shielded(inner: list[asyncio.Task[Any]]) -> None:
    inner.append(asyncio.create_task(asyncio.sleep(0.05)))
    await asyncio.shield(inner[0])
    await asyncio.sleep(30)


async def fails_to_tidy() -> None:
    try:
        await asyncio.sleep(30)
    finally:
        raise ValueError("the connection was gone already")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_coroutine_that_swallows_cancellation_is_given_up_told_of_and_counted(loop: str) -> None:
    """Red when `_give_up` does nothing: no final report comes."""
    stop = threading.Event()

    async def main() -> None:
        executor = AsyncioExecutor()
        async with opened(executor) as heard:
            job = heard.job(swallows, stop)
            executor.submit([job])
            await heard.started(job)
            executor.interrupt([job.ref], 0.05)
            assert (await heard.final(job)).kind == ABANDONED
            (note,) = heard.notes(job)
            line = swallows.__code__.co_firstlineno + 3
            assert re.fullmatch(
                rf"was cancelled, did not stop, and was given up at \S*{HERE}:{line} in swallows \(asyncio.tasks.sleep\)",
                note,
            )
            assert executor.abandoned == 1
            stop.set()
            await heard.until(lambda: executor.abandoned == 0)
            assert (await heard.final(job)).kind == ABANDONED, "its late outcome is nobody's"

    on_loop(loop, main)


EXIT = """
    import asyncio, sys
    from flowlane import run, task, workflow
    from flowlane_plugins.executors.asyncio_ import AsyncioExecutor
    {off}

    async def deaf():
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass

    @task.io(timeout=0.05)
    async def stuck():
        {how}

    @workflow
    def w():
        stuck()

    result = run(w.bind(), check=False, grace=0.05)
    print(result.tasks["stuck"].state, flush=True)
"""


ALL_STAY = "asyncio._unregister_task = lambda task: None"
CHILDREN_STAY = "AsyncioExecutor._family = lambda self, task: [task]"


@pytest.mark.parametrize(
    ("how", "off"),
    [
        ("await deaf()", ""),
        ("await deaf()", ALL_STAY),
        ("await asyncio.gather(deaf(), deaf())", ""),
        ("await asyncio.gather(deaf(), deaf())", CHILDREN_STAY),
        ("await asyncio.create_task(deaf())", ""),
    ],
)
def test_what_was_given_up_does_not_hold_up_the_exit(tmp_path: Path, how: str, off: str) -> None:
    """Switched off, a Task that does not listen (the job's, or one that it made) keeps asyncio.run from returning."""
    told = ends(start_script(tmp_path, EXIT.format(how=how, off=off)), within=3 if off else 30)
    assert told == (None if off else "timed_out\n")


@pytest.mark.parametrize("loop", LOOPS)
def test_clean_up_is_awaited_within_the_grace(loop: str) -> None:
    """The same clean-up with too little grace is given up: the grace is what it lives on."""

    async def main() -> None:
        for grace, kind, did in ((20.0, INTERRUPTED, ["began", "ended"]), (0.0, ABANDONED, ["began"])):
            executor, done = AsyncioExecutor(), list[str]()
            async with opened(executor) as heard:
                job = heard.job(tidies, 0.05, done)
                executor.submit([job])
                await heard.started(job)
                executor.interrupt([job.ref], grace)
                assert (await heard.final(job)).kind == kind
                assert done == did
                await heard.until(lambda: executor.abandoned == 0)  # noqa: B023 - awaited here

    on_loop(loop, main)


def test_asking_again_does_not_break_off_the_clean_up() -> None:
    """Red when every `interrupt` cancels."""

    async def main() -> None:
        executor, done = AsyncioExecutor(), list[str]()
        async with opened(executor) as heard:
            job = heard.job(tidies, 0.05, done)
            executor.submit([job])
            await heard.started(job)
            executor.interrupt([job.ref], 20)
            await heard.until(lambda: done == ["began"])
            executor.interrupt([job.ref], 20)
            assert (await heard.final(job)).kind == INTERRUPTED
            assert done == ["began", "ended"]

    asyncio.run(main())


@pytest.mark.parametrize("graces", [(1000.0, 0.05), (0.05, 1000.0)])
def test_of_two_graces_the_one_that_ends_first_holds(graces: tuple[float, float]) -> None:
    """Red when each `interrupt` has a timer of its own that the first alone decides, or the last."""
    stop = threading.Event()

    async def main() -> None:
        executor = AsyncioExecutor()
        async with opened(executor) as heard:
            job = heard.job(swallows, stop)
            executor.submit([job])
            await heard.started(job)
            for grace in graces:
                executor.interrupt([job.ref], grace)
            assert (await heard.final(job)).kind == ABANDONED
            stop.set()
            await heard.until(lambda: executor.abandoned == 0)

    asyncio.run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_shield_protects_what_is_in_it_and_nobody_else(loop: str) -> None:
    async def main() -> None:
        executor, inner = AsyncioExecutor(), list[asyncio.Task[Any]]()
        async with opened(executor) as heard:
            job = heard.job(shielded, inner)
            executor.submit([job])
            await heard.started(job)
            executor.interrupt([job.ref], 20)
            assert (await heard.final(job)).kind == INTERRUPTED
            await inner[0]

    on_loop(loop, main)


def test_an_error_while_stopping_keeps_its_text() -> None:
    late = task.io(timeout=0.05)(fails_to_tidy)
    workflow = Workflow("w")
    workflow.add(late.bind())
    result = run(workflow, check=False)
    assert result.tasks["fails_to_tidy"].state is TaskState.TIMED_OUT
    assert result.failures["fails_to_tidy"].notes == (
        "while stopping it raised ValueError: the connection was gone already",
    )


def test_an_error_while_stopping_for_a_cancel_keeps_its_text() -> None:
    async def main() -> None:
        executor = AsyncioExecutor()
        async with opened(executor) as heard:
            job = heard.job(fails_to_tidy)
            executor.submit([job])
            await heard.started(job)
            executor.interrupt([job.ref], 20)
            report = await heard.final(job)
            assert report.kind == FAILED
            assert report.failure is not None
            assert report.failure.message == "the connection was gone already"

    asyncio.run(main())


# ── holding the loop [22] ─────────────────────────────────────────────────────────────────────────────────────────

AFTER = 0.1  # seconds, so that the tests need not hold their loops for long


def hold(told: threading.Event, seconds: float = 20.0) -> bool:
    return told.wait(seconds)


async def at_once(told: threading.Event, seconds: float = 20.0) -> bool:
    return hold(told, seconds)


async def after_a_while(told: threading.Event, seconds: float = 20.0) -> bool:
    await asyncio.sleep(0.03)
    return hold(told, seconds)


async def in_a_gather(told: threading.Event, seconds: float = 20.0) -> bool:
    return (await asyncio.gather(after_a_while(told, seconds), asyncio.sleep(0)))[0]


async def in_a_group(told: threading.Event, seconds: float = 20.0) -> bool:
    async with asyncio.TaskGroup() as group:
        child = group.create_task(after_a_while(told, seconds))
    return child.result()


def selects(reader: int) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        selector.select(20)


async def selects_too(reader: int) -> None:
    selects(reader)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("fn", [at_once, after_a_while, in_a_gather, in_a_group])
def test_what_holds_the_loop_is_named_while_it_does(loop: str, fn: Callable[..., Any]) -> None:
    """The task is released by the very message that names it. See below for the same without a watchdog."""

    async def main() -> None:
        executor = AsyncioExecutor(blocked_after=AFTER)
        with Listener() as listener:
            async with opened(executor) as heard:
                job = heard.job(fn, listener.told)
                executor.submit([job])
                report = await heard.final(job)
        assert (report.kind, report.value) == (SUCCEEDED, True)
        where = rf"at \S*{HERE}:{hold.__code__.co_firstlineno + 1} in hold \(threading.Event.wait\)"
        assert re.match(rf"task '{fn.__name__}#1' has held the event loop for \d+ ms {where}: ", listener.lines[0])
        (note,) = heard.notes(job)
        assert re.fullmatch(rf"held the event loop for \d+ ms {where}", note)

    on_loop(loop, main)


def test_without_a_watchdog_nobody_is_named() -> None:
    async def main() -> None:
        executor = AsyncioExecutor(blocked_after=None)
        with Listener() as listener:
            async with opened(executor) as heard:
                job = heard.job(at_once, listener.told, 4 * AFTER)
                executor.submit([job])
                report = await heard.final(job)
        assert report.value is False
        assert listener.lines == heard.notes(job) == []

    asyncio.run(main())


@pytest.mark.parametrize("callback", [False, True])
def test_who_waits_by_himself_is_no_idle_loop(callback: bool) -> None:
    """A loop that waits is in ``select``; so is somebody who waits for a child's output. Red when both pass for idle."""
    reader, writer = os.pipe()

    async def main() -> None:
        executor = AsyncioExecutor(blocked_after=AFTER)
        with Listener() as listener:
            told = threading.Thread(target=lambda: (listener.told.wait(20), os.write(writer, b".")))
            told.start()
            async with opened(executor) as heard:
                job = heard.job(asyncio.sleep, 0.1) if callback else heard.job(selects_too, reader)
                executor.submit([job])
                if callback:
                    asyncio.get_running_loop().call_later(0.05, selects, reader)
                await heard.final(job)
            told.join()
        assert re.search(rf"{HERE}:\d+ in selects \(selectors\.\w+\.select\)", listener.lines[0])

    try:
        asyncio.run(main())
    finally:
        os.close(reader)
        os.close(writer)


def test_a_whole_run_tells_of_it() -> None:
    @task.io
    async def rude() -> None:
        time.sleep(3 * AFTER)  # noqa: ASYNC251 - that is the fault

    workflow = Workflow("w")
    workflow.add(rude.bind())
    with Listener() as listener, Engine(options={"asyncio": {"blocked_after": AFTER}}) as engine:
        assert engine.start(workflow).result(timeout=20).tasks["rude"].state is TaskState.SUCCEEDED
    assert any("task 'rude' has held the event loop for" in line for line in listener.lines)
    assert any("rude held the event loop for" in line for line in listener.lines), (
        "and once more, with the whole duration"
    )


@pytest.mark.parametrize("loop", LOOPS)
def test_an_idle_loop_is_not_blocked(loop: str) -> None:
    """Red when a missing sign of life counts: an idle loop gives none."""

    async def main() -> None:
        executor = AsyncioExecutor(blocked_after=0.02)
        with Listener() as listener:
            async with opened(executor) as heard:
                job = heard.job(asyncio.sleep, 0.3)
                executor.submit([job])
                await asyncio.sleep(0.3)
                await heard.final(job)
        assert [line for line in listener.lines if "task" in line] == []

    on_loop(loop, main)


def test_an_idle_loop_is_left_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red when every look pings: a loop that waits for an hour would be woken 90,000 times."""
    turns: list[int] = []
    answer = Watchdog._answer
    monkeypatch.setattr(Watchdog, "_answer", lambda dog: (turns.append(1), answer(dog))[1])

    async def main() -> None:
        executor = AsyncioExecutor(blocked_after=0.02)  # a look every 3 ms
        async with opened(executor) as heard:
            job = heard.job(asyncio.sleep, 0.3)
            executor.submit([job])
            await heard.started(job)
            turns.clear()
            await asyncio.sleep(0.3)
        assert len(turns) < 20  # now and then it is caught on its way to sleep

    asyncio.run(main())


#: Threads that come and go, finalizers that give up the GIL, and somebody who looks at a thread meanwhile.
LOOKED_AT = """
import gc, os, sys, threading, time
from flowlane_plugins.executors.whereabouts import innermost

class Ring:
    def __init__(self):
        self.me = self
    def __del__(self):
        for _ in range(50):
            counts[0] += 1

def come_and_go():
    while True:
        threads = [threading.Thread(target=lambda: [Ring() for _ in range(300)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

def look():
    while True:
        assert innermost(main) is not None
        counts[1] += 1

counts, main = [0, 0], threading.get_ident()
sys.setswitchinterval(1e-5)
for job in (come_and_go, come_and_go, look):
    threading.Thread(target=job, daemon=True).start()
time.sleep(2)
print(counts[0] > 0, counts[1] > 0, gc.isenabled(), flush=True)
gc.disable()
innermost(main)
print(gc.isenabled(), flush=True)
os._exit(0)
"""


@pytest.mark.timeout(60)
def test_looking_at_threads_never_stops_the_process(tmp_path: Path) -> None:
    """Red on 3.11.7 within two seconds when the collector may run while frames are read."""
    told = ends(start_script(tmp_path, LOOKED_AT), within=40)
    assert told is not None, "it stands still"
    assert told.split() == ["True", "True", "True", "False"]


def test_many_short_steps_are_nobodys_fault() -> None:
    """Red when the Task that is current when a turn has become too long is charged with all of it."""

    async def step() -> None:
        for _ in range(2):
            await asyncio.sleep(0)
            time.sleep(0.015)  # noqa: ASYNC251 - that is the fault

    async def main() -> None:
        executor = AsyncioExecutor(blocked_after=0.15)
        with Listener() as listener:
            async with opened(executor) as heard:
                jobs = [heard.job(step) for _ in range(32)]
                executor.submit(jobs)
                for job in jobs:
                    await heard.final(job)
                    assert heard.notes(job) == []
        assert listener.lines != []
        assert all("many short steps in a row" in line for line in listener.lines)

    asyncio.run(main())


def test_a_host_that_holds_the_loop_is_not_taken_for_a_task() -> None:
    async def main() -> None:
        executor = AsyncioExecutor(blocked_after=AFTER)
        with Listener() as listener:
            async with opened(executor) as heard:
                job = heard.job(asyncio.sleep, 1)
                executor.submit([job])
                await heard.started(job)
                hold(listener.told)  # this is a Task too, and none of the executor's
                await asyncio.sleep(0)
                hold(threading.Event(), 3 * AFTER)  # it complains of such things once a second at most
                listener.told.clear()
                await asyncio.sleep(1)
                asyncio.get_running_loop().call_soon(hold, listener.told)
                second = heard.job(asyncio.sleep, 0.2)
                executor.submit([second])
                await heard.final(second)
                assert heard.notes(job) == heard.notes(second) == []
        task_of_the_host, callback = listener.lines
        assert re.search(rf"{HERE}:\d+ in hold .* by 'Task-\d+', which is not a task of this run", task_of_the_host)
        assert re.search(rf"{HERE}:\d+ in hold .* by a callback, which is not a task of this run", callback)

    asyncio.run(main())


def test_inline_is_meant_to_hold_the_loop() -> None:
    """Also beside another executor on the same loop, whose watchdog sees it."""

    def plain() -> None:
        time.sleep(4 * AFTER)

    async def main() -> None:
        watched, inline = AsyncioExecutor(blocked_after=AFTER), InlineExecutor()
        with Listener() as listener:
            async with opened(watched) as heard, opened(inline) as other:
                job, plain_job = heard.job(asyncio.sleep, 0.3), other.job(plain)
                watched.submit([job])
                inline.submit([plain_job])
                await other.final(plain_job)
                await heard.final(job)
        assert listener.lines == []

    asyncio.run(main())


def test_somebody_at_a_breakpoint_is_left_alone() -> None:
    debugger: dict[str, Any] = {"__name__": "pdb", "time": time}
    exec(f"def prompt(): time.sleep({4 * AFTER})", debugger)

    async def debugged() -> None:
        debugger["prompt"]()

    async def main() -> None:
        executor = AsyncioExecutor(blocked_after=AFTER)
        with Listener() as listener:
            async with opened(executor) as heard:
                job = heard.job(debugged)
                executor.submit([job])
                await heard.final(job)
        assert listener.lines == []

    asyncio.run(main())


def watchdogs() -> int:
    return sum(thread.name == "flowlane-watchdog" for thread in threading.enumerate())


def test_the_watchdog_is_there_while_jobs_are() -> None:
    async def main() -> None:
        executor = AsyncioExecutor(blocked_after=0.02)
        async with opened(executor) as heard:
            assert watchdogs() == 0
            for _ in range(3):
                job = heard.job(asyncio.sleep, 0.05)
                executor.submit([job])
                assert watchdogs() == 1
                await heard.final(job)
                await heard.until(lambda: watchdogs() == 0)

    asyncio.run(main())


def test_a_system_without_a_thread_for_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    async def main() -> None:
        executor = AsyncioExecutor()
        async with opened(executor) as heard:
            job = heard.job(asyncio.sleep, 0)
            executor.submit([job])
            assert (await heard.final(job)).kind == SUCCEEDED

    asyncio.run(main())


@pytest.mark.parametrize("after", [0, -1.0])
def test_a_threshold_that_is_none(after: float) -> None:
    with pytest.raises(ValueError, match="blocked_after is in seconds, more than 0"):
        AsyncioExecutor(blocked_after=after)


# ── time that does not count, looked at look by look ──────────────────────────────────────────────────────────────

MS = 1_000_000


class Looks:
    """A watchdog of 250 ms over the Task that runs the test, driven by hand: no thread, and time as we say."""

    def __init__(self) -> None:
        self.dog = Watchdog(0.25, whose=lambda task: Suspect("etl", 7), out=lambda: True, freed=lambda: None)
        self.now = 10**12

    def look(self, after: int, late: int = 0, on_cpu: int = 0, all_cpu: int = 0) -> None:
        """One look, `after` ms of sleep and `late` more; how many of these the loop's thread, and all, were on a CPU."""
        self.now += (after + late) * MS
        self.dog._look(self.now, late * MS, on_cpu * MS, all_cpu * MS)


def told_by(looks: Callable[[Looks], None]) -> list[str]:
    async def main() -> None:
        looks(Looks())

    with Listener() as listener:
        asyncio.run(main())
    return listener.lines


def test_a_step_is_told_of_at_its_threshold_and_once() -> None:
    def looks(at: Looks) -> None:
        for _ in range(20):
            at.look(40)

    (line,) = told_by(looks)
    assert line.startswith("task 'etl' has held the event loop for 280 ms at ")


def test_a_process_that_was_stopped_has_held_nothing() -> None:
    """SIGSTOP, a machine that sleeps, one that is overloaded: red when the gap is counted."""

    def looks(at: Looks) -> None:
        at.look(40)
        at.look(40, late=60_000)
        at.look(40)

    assert told_by(looks) == []


def test_the_time_around_a_stop_counts() -> None:
    def looks(at: Looks) -> None:
        at.look(40)
        at.look(40, late=60_000)
        for _ in range(10):
            at.look(40)

    (line,) = told_by(looks)
    assert line.startswith("task 'etl' has held the event loop for 280 ms at ")


@pytest.mark.parametrize("looked", [0, 1])
def test_a_call_that_keeps_the_interpreters_lock_is_told_of_when_it_is_over(looked: int) -> None:
    """Nobody else could run meanwhile, the watchdog included. Red when every gap is taken for a stop."""

    def looks(at: Looks) -> None:
        for _ in range(looked):
            at.look(40)
        at.look(40, late=2000, on_cpu=1900, all_cpu=1900)

    (line,) = told_by(looks)
    assert line.startswith(f"task 'etl' has held the event loop for 2.{looked and 0} s at ")


def test_a_lock_that_another_thread_keeps_is_not_the_loops_fault() -> None:
    def looks(at: Looks) -> None:
        at.look(40)
        at.look(40, late=2000, on_cpu=10, all_cpu=1990)
        at.look(40)

    (line,) = told_by(looks)
    assert line.startswith("no Python code ran for 2.0 s: a call in another thread than the event loop's kept")


def test_a_regular_expression_that_runs_away() -> None:
    """The real thing: a search in C, the interpreter's lock kept throughout."""

    shares: list[float] = []

    async def evil() -> None:
        await asyncio.sleep(0.03)
        began, cpu = time.monotonic(), time.thread_time()
        re.match(r"(a+)+$", "a" * 22 + "b")
        shares.append((time.thread_time() - cpu) / (time.monotonic() - began))

    async def main() -> list[str]:
        executor = AsyncioExecutor(blocked_after=0.05)
        async with opened(executor) as heard:
            job = heard.job(evil)
            executor.submit([job])
            assert (await heard.final(job)).kind == SUCCEEDED
            return heard.notes(job)

    for _ in range(20):  # on a machine so busy that the search is mostly off the CPU, it rather says nothing
        if notes := asyncio.run(main()):
            break
    if not notes and max(shares) < 0.75:
        pytest.skip(f"too busy a machine: the search had {max(shares):.0%} of a CPU at best")
    assert notes
    assert re.fullmatch(rf"held the event loop for \d+ ms at \S*{HERE}:\d+ in evil( \(re.match\))?", notes[0])


def test_holds_are_told_before_the_end_of_their_job() -> None:
    """Also those of a job that ends in the very step that held the loop; `Heard.final` looks at the order."""

    async def main() -> None:
        executor = AsyncioExecutor(blocked_after=0.03)
        with Listener():
            async with opened(executor) as heard:
                for fn in (at_once, after_a_while, in_a_gather):
                    job = heard.job(fn, threading.Event(), 0.1)
                    executor.submit([job])
                    await heard.final(job)
                    assert [report.kind for report in heard.of(job) if report.kind == NOTED] == [NOTED]

    asyncio.run(main())


def test_a_failure_in_the_step_that_held_the_loop() -> None:
    async def fails(told: threading.Event) -> None:
        hold(told)
        raise ValueError("after all that")

    async def main() -> None:
        executor = AsyncioExecutor(blocked_after=AFTER)
        with Listener() as listener:
            async with opened(executor) as heard:
                job = heard.job(fails, listener.told)
                executor.submit([job])
                assert (await heard.final(job)).kind == FAILED
                assert len(heard.notes(job)) == 1

    asyncio.run(main())
