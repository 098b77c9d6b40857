"""What a service asks of an engine: one run for a key of the caller's, the runs under way by id, and its store."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import (
    ArgumentError,
    Engine,
    EngineClosed,
    Limit,
    ParameterError,
    RunExists,
    RunFailed,
    RunLocked,
    RunState,
    SettingsError,
    StoreError,
    UnknownName,
    UnknownRun,
    UsageError,
    arun,
    run,
    task,
    workflow,
)
from flowlane.storage.port import RUN_ID
from flowlane_plugins.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowlane.storage.port import Store


pytestmark = pytest.mark.usefixtures("_own_key")


@task.io
async def double(n: int) -> int:
    return 2 * n


@task.io
async def forever() -> None:
    await asyncio.Event().wait()


@task.io
def read(path: Path) -> str:
    return path.read_text()


@workflow
def reading(path: Path) -> str:
    return read(path)


@workflow
def doubled(n: int = 1) -> int:
    return double(n)


@workflow
def endless() -> None:
    forever()


@pytest.fixture(params=["none", "memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store | str | None]:
    """Makes what an Engine is given; the same store each time."""
    kept = MemoryStore()
    kinds: dict[str, Any] = {"none": None, "memory": kept, "sqlite": str(tmp_path / "flow.db")}
    return lambda: kinds[request.param]


def test_a_key_starts_one_run_while_it_is_under_way_and_after(store: Callable[[], Any]) -> None:
    with Engine(store=store()) as engine:
        first = engine.start(endless.bind(), key="order 4711")
        with pytest.raises(RunExists, match="'order 4711'") as refused:
            engine.start(doubled.bind(5), key="order 4711")  # whatever it is that is asked for
        assert refused.value.id == first.id and RUN_ID.fullmatch(first.id)
        assert engine.runs[first.id].name == first.name
        first.cancel()
        with pytest.raises(Exception, match="cancelled"):
            first.result(20)
        assert engine.runs == {}
        with pytest.raises(RunExists) as refused:
            engine.start(endless.bind(), key="order 4711")
        assert refused.value.id == first.id
        other = engine.start(doubled.bind(5), key="order 4712")
        assert other.result(20).value == 10 and other.id != first.id
        assert engine.start(doubled.bind(5), key=None).id != engine.start(doubled.bind(5), key=None).id


def test_of_many_threads_with_one_key_one_starts_a_run(store: Callable[[], Any]) -> None:
    started: list[str] = []
    refused: list[str] = []
    gate = threading.Barrier(6)

    def post() -> None:
        gate.wait(20)
        try:
            started.append(engine.start(doubled.bind(3), key="one").id)
        except RunExists as there:
            refused.append(there.id)

    with Engine(store=store()) as engine:
        threads = [threading.Thread(target=post) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(started) == 1 and refused == started * 5


def test_with_a_store_a_key_outlives_the_engine_and_the_run_can_be_had_again(tmp_path: Path) -> None:
    path = tmp_path / "flow.db"
    first = run(doubled.bind(4), store=path, key="nightly")
    with pytest.raises(RunExists) as refused:
        run(doubled.bind(4), store=path, key="nightly")
    assert refused.value.id == first.id
    with Engine(store=path) as engine:
        stored = engine.store.find(first.id)
        assert (stored.id, stored.state) == (first.id, RunState.SUCCEEDED)
        again = engine.resume(first.id).result(20)
        assert (again.value, again.restored) == (8, 1)  # nothing ran
        with pytest.raises(UnknownRun):
            engine.store.find("no such run")
        assert engine.store.remove([first.id]) == 1
        assert engine.start(doubled.bind(4), key="nightly").result(20).value == 8  # as long as the run is in the store


def test_without_a_store_a_key_is_the_engine_s(tmp_path: Path) -> None:
    with Engine() as one, Engine() as other:
        assert one.start(doubled.bind(), key="a").id == other.start(doubled.bind(), key="a").id


def test_what_never_began_leaves_its_key_free(store: Callable[[], Any]) -> None:
    engine = Engine(store=store())
    with pytest.raises(EngineClosed):
        engine.start(doubled.bind(1), key="early")
    with engine:
        with pytest.raises(ParameterError):
            engine.start(doubled.bind("many"), key="early")  # type: ignore[arg-type]
        assert engine.start(doubled.bind(1), key="early").result(20).value == 2


@pytest.mark.parametrize("key", ["", 7, b"k", ["k"]])
def test_a_key_is_a_text(key: Any) -> None:
    with Engine() as engine, pytest.raises(UsageError, match="the key of a run is a text"):
        engine.start(doubled.bind(), key=key)


def test_any_text_is_a_key_and_equal_ones_are_one_everywhere() -> None:
    keys = ["a", "A", "ä", "a ", "\0", "\udcff", "x" * 10_000, "../..", "last", "0" * 32]
    with Engine() as engine:
        ids = [engine.start(doubled.bind(), key=key).id for key in keys]
    assert len(set(ids)) == len(keys) and all(RUN_ID.fullmatch(each) for each in ids)
    assert ids[0] == "36c7997fe7937933f1e3ec5d95de57c7"  # or a restart with another version starts everything twice


def test_a_key_among_the_parameters_says_where_it_belongs() -> None:
    with pytest.raises(ArgumentError, match=r"run\(doubled\.bind\(\.\.\.\), key='a'\)"):
        run(doubled, key="a")  # type: ignore[call-arg]


async def test_arun_takes_a_store_and_a_key(tmp_path: Path) -> None:
    result = await arun(doubled.bind(2), store=tmp_path / "flow.db", key="k")
    assert result.value == 4
    with pytest.raises(RunExists):
        await arun(doubled.bind(2), store=tmp_path / "flow.db", key="k")


def test_a_run_of_run_can_be_resumed_by_its_id_alone(tmp_path: Path) -> None:
    """It says where its workflow is."""
    (tmp_path / "flows.py").write_text(
        textwrap.dedent("""
            from pathlib import Path
            from flowlane import task, workflow

            @task.io
            def read() -> str:
                return Path("input").read_text()

            @workflow
            def reading() -> str:
                return read()
        """)
    )
    program = textwrap.dedent("""
        from pathlib import Path
        from flows import reading
        from flowlane import Engine, run

        failed = run(reading.bind(), check=False, store="flow.db")
        Path("input").write_text("there now")
        with Engine(store="flow.db") as engine:
            print(failed.state, engine.resume(failed.id).result().value)
    """)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("failed there now\n", "")


def test_the_store_is_there_while_the_engine_is_open(tmp_path: Path) -> None:
    engine = Engine(store=tmp_path / "flow.db")
    with pytest.raises(EngineClosed):
        _ = engine.store
    with engine:
        assert engine.store.runs() == []
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(EngineClosed):
        _ = engine.store
    with pytest.raises(EngineClosed):
        engine.resume("last")  # it used to open the store again, for nobody to close
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before
    with Engine() as bare, pytest.raises(UsageError, match="no store"):
        _ = bare.store


def test_a_store_of_somebody_else_s_that_refuses_an_id_is_told_as_it_is(tmp_path: Path) -> None:
    class Full(MemoryStore):
        def begin(self, *_: Any) -> Any:
            raise StoreError("there is no room")

    with Engine(store=Full()) as engine, pytest.raises(StoreError, match="no room"):
        engine.start(doubled.bind(), key="k")


# ── handles from `runs` ───────────────────────────────────────────────────────────────────────────────────────────


async def test_runs_under_way_are_found_by_id_and_are_the_same_runs() -> None:
    async with Engine() as engine:
        first, second = engine.start(endless), engine.start(endless)
        assert list(engine.runs) == [first.id, second.id] or set(engine.runs) == {first.id, second.id}
        found = engine.runs[first.id]
        names = []
        async for event in found.events():
            names.append(event["event"])
            if event.get("to") == "running":
                found.cancel()
        assert names[0] == "run.started" and names[-1] == "run.finished"
        assert (await first.wait()).state is RunState.CANCELLED
        assert list(engine.runs) == [second.id]
        second.cancel()
    assert engine.runs == {}


async def test_a_word_in_the_store_reaches_a_run_of_another_engine(tmp_path: Path) -> None:
    """As it would one of another process."""
    async with Engine(store=tmp_path / "flow.db") as one, Engine(store=tmp_path / "flow.db") as other:
        handle = one.start(endless)
        assert other.runs == {}
        assert other.store.owner(handle.id) is not None
        with pytest.raises(RunLocked):
            other.resume(handle.id)
        other.store.request(handle.id, "cancel", time.time_ns())
        assert (await handle.wait()).state is RunState.CANCELLED


# ── an engine that nobody left ────────────────────────────────────────────────────────────────────────────────────


FORGETFUL = """
import asyncio
from typing import Any

from flowlane import Engine, EngineClosed, RetryPolicy, task, workflow


@task.io(retry=RetryPolicy(attempts=2, backoff=1000, jitter=False))
async def later() -> None:
    raise ConnectionError("try again")


@workflow
def patient() -> None:
    later()


async def forgetful() -> Any:
    engine = await Engine().__aenter__()
    handle = engine.start(patient)
    async for event in handle.events():
        if event.get("to") == "retrying":
            return engine, handle


async def read() -> None:
    seen = []
    try:
        async for event in handle.events():
            seen.append(event["event"])
    finally:
        assert seen[0] == "run.started" and seen[-1] == "task.transition"


async def wait() -> None:
    await handle.wait()


engine, handle = asyncio.run(forgetful())
for attempt in (handle.result, lambda: asyncio.run(wait()), lambda: asyncio.run(read()), lambda: engine.start(patient)):
    try:
        attempt()
    except EngineClosed as error:
        print(error.message.replace(handle.name, "NAME"))
handle.cancel()
handle.drain()
print(handle.state)  # as far as anybody will ever know
"""


def test_a_run_whose_loop_was_closed_says_so_and_holds_up_nobody(tmp_path: Path) -> None:
    """In a process of its own: the threads of an engine that nobody closes end with their process."""
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        *["run NAME of 'patient' did not end before the event loop of its engine was closed"] * 3,
        "the engine is closed",
        "running",
    ]


def test_a_failed_run_of_a_key_is_resumed_under_its_id(tmp_path: Path) -> None:
    with Engine(store=tmp_path / "flow.db") as engine:
        with pytest.raises(RunFailed):
            engine.start(reading.bind(tmp_path / "input"), key="k").result(20)
        with pytest.raises(RunExists) as there:
            engine.start(reading.bind(tmp_path / "input"), key="k")
        (tmp_path / "input").write_text("there now")
        result = engine.resume(there.value.id).result(20)
    assert (result.id, result.value) == (there.value.id, "there now")


async def test_a_key_keeps_nothing_of_its_run() -> None:
    async with Engine() as engine:
        result: Any = await engine.start(doubled.bind(1), key="k").wait()
        gone = weakref.ref(result)
        del result
        while gone() is not None:
            gc.collect()
            await asyncio.sleep(0)


async def test_a_run_that_has_ended_is_not_among_the_runs() -> None:
    listed: list[bool] = []
    async with Engine() as engine:
        handle = engine.start(doubled, 1)
        handle._run.future.add_done_callback(lambda _: listed.append(handle.id in engine.runs))
        await handle
    assert listed == [False]


def test_tasks_of_a_run_that_was_started_just_now_can_be_cancelled() -> None:
    with Engine() as engine:
        for _ in range(20):
            handle = engine.start(endless)
            with pytest.raises(UnknownName):
                handle.cancel_tasks("endless")
            handle.cancel_tasks("forever")
            assert handle._run.future.result(20).state == "succeeded"


@task.io(limits=[Limit("door", 1)])
def by_one() -> int:
    return 1


@task.io(limits=[Limit("door", 2)])
def by_two() -> int:
    return 2


@workflow
def ones() -> int:
    return by_one()


@workflow
def twos() -> int:
    return by_two()


def test_a_run_that_could_not_begin_leaves_its_key_and_nothing_else() -> None:
    told: list[dict[str, Any]] = []
    with Engine() as engine:
        engine.call(lambda: asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context)))
        assert engine.start(ones).result(20).value == 1
        for _ in range(2):  # not RunExists: there is no run of that key
            with pytest.raises(SettingsError, match="limit 'door' is 1 at a time"):
                engine.start(twos.bind(), key="k").result(20)
        assert (engine.runs, engine._dispatcher._runs, told) == ({}, {}, [])
