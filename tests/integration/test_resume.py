"""Runs that are kept: what is stored, what a resume runs again, and what a store that fails does to a run."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import (
    Engine,
    ResultDamaged,
    RunLocked,
    RunState,
    StoreError,
    UnknownName,
    UnknownRun,
    UsageError,
    Workflow,
    WorkflowChanged,
    conclusion,
    current_task,
    task,
    workflow,
)
from flowlane.core.states import STATES, TaskState
from flowlane.description import Description
from flowlane.resume import new_run, new_session, plan_resume
from flowlane.runtime import keeper as keeping
from flowlane.runtime.ports import ABANDONED, Capabilities, Report
from flowlane.storage.blob import bound_to, pack, seal
from flowlane.storage.fingerprint import fingerprint
from flowlane.storage.port import AttemptRow
from flowlane_plugins.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from flowlane.runtime.ports import Chunk, RunInfo, RunOutcome

pytestmark = pytest.mark.usefixtures("_own_key")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flow" / "flow.db"


# ── tasks that keep a journal of their own ────────────────────────────────────────────────────────────────────────


def note(folder: Path, name: str) -> None:
    with (folder / "began").open("a") as file:
        file.write(f"{name}\n")


def began(folder: Path) -> Counter[str]:
    file = folder / "began"
    return Counter(file.read_text().split()) if file.exists() else Counter()


@task.io
async def fetch(folder: Path, name: str) -> str:
    note(folder, f"fetch-{name}")
    return name * 2


@task.io
def parse(folder: Path, text: str) -> list[str]:
    note(folder, f"parse-{text}")
    if (folder / f"bad-{text}").exists():
        raise ValueError(f"{text} is bad")
    return list(text)


@task.io(executor="inline")
def join(folder: Path, parts: list[list[str]]) -> str:
    note(folder, "join")
    return "".join(letter for part in parts for letter in part)


@workflow
def spell(folder: Path, names: tuple[str, ...] = ("a", "b", "c")) -> str:
    return join(folder, [parse(folder, fetch(folder, name)) for name in names])


async def test_a_run_is_kept_with_its_states_times_and_values(tmp_path: Path, path: Path) -> None:
    async with Engine(store=path) as engine:
        handle = engine.start(spell, tmp_path)
        result = await handle
    assert result.value == "aabbcc"
    store = SqliteStore(path)
    store.open()
    run = store.find(handle.name)
    assert (run.id, run.workflow, run.state, run.tasks) == (handle.id, "spell", RunState.SUCCEEDED, 7)
    rows = list(store.attempts(run.id))
    assert len(rows) == 7
    for row in rows:
        assert row.ready <= row.started <= row.ended
        assert abs(row.ended / 1e9 - time.time()) < 60
        assert row.result is not None
    assert store.owner(run.id) is None
    store.close()


async def test_what_failed_runs_again_and_what_succeeded_does_not(tmp_path: Path, path: Path) -> None:
    (tmp_path / "bad-bb").touch()
    async with Engine(store=path) as engine:
        first = await engine.start(spell, tmp_path).wait()
    assert first.state == "failed"
    (tmp_path / "bad-bb").unlink()
    async with Engine(store=path) as engine:
        second = await engine.resume(first.name)
    assert second.value == "aabbcc"
    assert second.id == first.id
    assert began(tmp_path) == {
        "fetch-a": 1, "fetch-b": 1, "fetch-c": 1, "parse-aa": 1, "parse-bb": 2, "parse-cc": 1, "join": 1
    }  # fmt: skip
    assert second.tasks["parse#2"].attempts == 1
    assert second.tasks["parse"].attempts == 0  # it was restored


async def test_a_run_that_succeeded_gives_its_value_again_and_runs_nothing(tmp_path: Path, path: Path) -> None:
    async with Engine(store=path) as engine:
        run = engine.start(spell, tmp_path)
        await run
        again = await engine.resume(run.id[:6])
    assert again.value == "aabbcc"
    assert sum(began(tmp_path).values()) == 7


async def test_restarting_from_a_task_runs_it_and_what_depends_on_it(tmp_path: Path, path: Path) -> None:
    async with Engine(store=path) as engine:
        await engine.start(spell, tmp_path)
        result = await engine.resume("last", restart=["parse#2"])
        with pytest.raises(UnknownName, match="there is no task 'parse#4'"):
            engine.resume("last", restart=["parse#4"])
    assert result.value == "aabbcc"
    assert {name: count for name, count in began(tmp_path).items() if count > 1} == {"parse-bb": 2, "join": 2}


async def test_a_fork_is_a_run_of_its_own_that_begins_with_what_was_done(tmp_path: Path, path: Path) -> None:
    async with Engine(store=path) as engine:
        first = await engine.start(spell, tmp_path)
        fork = engine.resume(first.name, fork=True, restart=["join"])
        result = await fork
        assert fork.id != first.id
        assert result.value == "aabbcc"
    store = SqliteStore(path)
    store.open()
    assert store.find(fork.id).parent == first.id
    assert store.find(first.id).session == 1
    store.close()
    assert {name: count for name, count in began(tmp_path).items() if count > 1} == {"join": 2}


# ── a workflow that is not what it was ────────────────────────────────────────────────────────────────────────────


def build(folder: Path, names: list[str], *, tail: bool = False) -> Any:
    wf = Workflow("made")
    parts = [
        wf.add(parse.bind(folder, wf.add(fetch.bind(folder, name), name=f"f-{name}")), name=f"p-{name}")
        for name in names
    ]
    whole = wf.add(join.bind(folder, parts), name="join")
    return wf.returns(wf.add(parse.bind(folder, whole), name="tail") if tail else whole)


async def test_a_changed_workflow_is_explained_and_goes_on_when_that_is_accepted(tmp_path: Path, path: Path) -> None:
    (tmp_path / "bad-aabb").touch()
    async with Engine(store=path) as engine:
        await engine.start(build(tmp_path, ["a", "b"])).wait()
        with pytest.raises(WorkflowChanged) as refused:
            engine.resume("last", build(tmp_path, ["a", "c"], tail=True))
        told = str(refused.value)
        assert "added: f-c, p-c, tail" in told
        assert "removed: f-b, p-b" in told
        assert "waiting for other tasks: join" in told
        (tmp_path / "began").unlink()
        result = await engine.resume("last", build(tmp_path, ["a", "c"], tail=True), accept_changes=True)
    assert result.value == list("aacc")
    assert began(tmp_path) == {"fetch-c": 1, "parse-cc": 1, "join": 1, "parse-aacc": 1}


async def test_other_arguments_are_a_change(tmp_path: Path, path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    async with Engine(store=path) as engine:
        await engine.start(build(tmp_path, ["a"]))
        with pytest.raises(WorkflowChanged, match="called with other arguments: f-a, p-a, join"):
            engine.resume("last", build(other, ["a"]))


async def test_a_program_made_workflow_has_to_be_given_again(tmp_path: Path, path: Path) -> None:
    async with Engine(store=path) as engine:
        await engine.start(build(tmp_path, ["a"]))
        with pytest.raises(UsageError, match="a program made it"):
            engine.resume("last")
        assert (await engine.resume("last", build(tmp_path, ["a"]))).value == "aa"


# ── values that cannot be had ─────────────────────────────────────────────────────────────────────────────────────


@task.io
async def lock(folder: Path) -> Any:
    note(folder, "lock")
    return threading.Lock()


@task.io
async def use(folder: Path, held: Any) -> str:
    note(folder, "use")
    if (folder / "bad").exists():
        raise ValueError("bad")
    return type(held).__name__


@workflow
def locking(folder: Path) -> str:
    return use(folder, lock(folder))


async def test_a_result_that_cannot_be_stored_is_told_of_once_and_made_again(tmp_path: Path, path: Path) -> None:
    (tmp_path / "bad").touch()
    async with Engine(store=path) as engine:
        first = await engine.start(locking, tmp_path).wait()
        assert [text for text in first.notes if "cannot be stored" in text] == first.notes
        assert first.notes[0].startswith("lock returns what cannot be stored, so a resume would run it again: ")
        (tmp_path / "bad").unlink()
        second = await engine.resume("last")
    assert second.value == "lock"
    assert began(tmp_path) == {"lock": 2, "use": 2}


async def test_a_damaged_result_is_never_read_but_made_again(tmp_path: Path, path: Path) -> None:
    import sqlite3

    (tmp_path / "bad-bb").touch()
    async with Engine(store=path) as engine:
        await engine.start(spell, tmp_path).wait()
    (tmp_path / "bad-bb").unlink()
    with sqlite3.connect(path) as db:
        (column,) = [
            row[1] for row in db.execute("PRAGMA table_info(attempts)") if row[1] in ("result", "data", "blob")
        ]
        rows = db.execute(f"SELECT rowid, {column} FROM attempts WHERE {column} IS NOT NULL").fetchall()
        for rowid, blob in rows:
            flipped = bytearray(blob)
            flipped[-1] ^= 1
            db.execute(f"UPDATE attempts SET {column} = ? WHERE rowid = ?", (bytes(flipped), rowid))
    db.close()
    async with Engine(store=path) as engine:
        assert (await engine.resume("last")).value == "aabbcc"
    assert began(tmp_path)["parse-aa"] == 2  # join reads it
    assert began(tmp_path)["fetch-a"] == 2  # and parse has to read this one


async def test_results_that_changed_their_places_are_made_again(tmp_path: Path, path: Path) -> None:
    import sqlite3

    (tmp_path / "bad-cc").touch()
    async with Engine(store=path) as engine:
        await engine.start(spell, tmp_path).wait()
    (tmp_path / "bad-cc").unlink()
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT id, result FROM attempts WHERE result IS NOT NULL").fetchall()
        (one, first), (two, second) = [row for row in rows if row[1][64:] in (b'["a","a"]', b'["b","b"]')]
        db.executemany("UPDATE attempts SET result = ? WHERE id = ?", [(second, one), (first, two)])
    db.close()
    async with Engine(store=path) as engine:
        assert (await engine.resume("last")).value == "aabbcc"
    assert (began(tmp_path)["parse-aa"], began(tmp_path)["parse-bb"]) == (2, 2)


async def test_parameters_of_another_run_are_not_taken(tmp_path: Path, path: Path) -> None:
    import sqlite3

    other = tmp_path / "other"
    other.mkdir()
    async with Engine(store=path) as engine:
        first = await engine.start(spell, tmp_path)
        second = await engine.start(spell, other)
    with sqlite3.connect(path) as db:
        query = "UPDATE runs SET params = (SELECT params FROM runs WHERE id = ?) WHERE id = ?"
        db.execute(query, (first.id, second.id))
    db.close()
    async with Engine(store=path) as engine:
        with pytest.raises(ResultDamaged):
            engine.resume(second.id, spell)
        assert (await engine.resume(second.id, spell.bind(other))).value == "aabbcc"


async def test_what_a_fork_has_from_a_fork_holds_in_its_place(tmp_path: Path, path: Path) -> None:
    async with Engine(store=path) as engine:
        first = await engine.start(spell, tmp_path)
        second = await engine.resume(first.id, fork=True, restart=["join"])
        third = await engine.resume(second.id, fork=True, restart=["parse"])
        assert (await engine.resume(third.id, restart=["join"])).value == "aabbcc"
    assert began(tmp_path) == {
        "fetch-a": 1, "fetch-b": 1, "fetch-c": 1, "parse-aa": 2, "parse-bb": 1, "parse-cc": 1, "join": 4
    }  # fmt: skip


@task.io
async def take(value: Any) -> str:
    return repr(value)


@workflow
def taking(value: Any) -> str:
    return take(value)


async def test_parameters_that_cannot_be_stored_have_to_be_given_again(path: Path) -> None:
    async with Engine(store=path) as engine:
        assert "lock" in (await engine.start(taking, threading.Lock())).value
        with pytest.raises(UsageError, match=r"the parameters of run .* could not be stored"):
            engine.resume("last", taking)
        assert "lock" in (await engine.resume("last", taking.bind(threading.Lock()))).value


# ── knowing oneself ───────────────────────────────────────────────────────────────────────────────────────────────


@task.io
async def charge(folder: Path) -> str:
    me = current_task()
    note(folder, f"{me.task}:{me.attempt}:{me.idempotency_key}")
    if (folder / "bad").exists():
        raise ValueError("declined")
    return me.idempotency_key


@task.io
def charge_in_a_thread(folder: Path) -> str:
    return current_task().idempotency_key


@task.cpu
def charge_in_a_process(folder: Path) -> str:
    return current_task().idempotency_key


@workflow
def charging(folder: Path) -> list[str]:
    return [
        charge.options(retries=1)(folder),
        charge.options(executor="inline", name="inline")(folder),
        charge_in_a_thread(folder),
        charge_in_a_process(folder),
    ]


async def test_the_idempotency_key_is_the_same_for_all_attempts_and_sessions(tmp_path: Path, path: Path) -> None:
    (tmp_path / "bad").touch()
    async with Engine(store=path) as engine:
        first = await engine.start(charging, tmp_path).wait()
        (tmp_path / "bad").unlink()
        keys = (await engine.resume(first.id)).value
        fork = (await engine.resume(first.id, fork=True, restart=["charge"])).value
    told = [line.rsplit(":", 1)[1] for line in began(tmp_path).elements() if line.startswith("charge:")]
    assert len(told) == 4  # two, one, and one of the fork
    assert len(set(told)) == 2
    assert len(set(keys)) == 4
    assert keys[0] != fork[0]


def test_outside_of_a_task_there_is_nothing_to_know() -> None:
    with pytest.raises(UsageError, match="outside of a task"):
        contextvars.Context().run(current_task)


# ── owners ────────────────────────────────────────────────────────────────────────────────────────────────────────


@task.io
async def wait_for(folder: Path, name: str) -> str:
    note(folder, name)
    while not (folder / name).exists():
        await asyncio.sleep(0.005)
    return name


@workflow
def waiting(folder: Path) -> list[str]:
    return [wait_for(folder, "one"), wait_for(folder, "two")]


async def has_begun(folder: Path, *names: str) -> None:
    async with asyncio.timeout(10):
        while not all(began(folder)[name] for name in names):
            await asyncio.sleep(0.005)


async def test_a_run_under_way_is_nobody_elses(tmp_path: Path, path: Path) -> None:
    async with Engine(store=path) as engine, Engine(store=path) as other:
        handle = engine.start(waiting, tmp_path)
        await has_begun(tmp_path, "one", "two")
        with pytest.raises(RunLocked) as refused:
            other.resume(handle.name)
        assert (refused.value.pid, refused.value.exit_code) == (os.getpid(), 75)
        (tmp_path / "one").touch()
        (tmp_path / "two").touch()
        await handle
        assert (await other.resume(handle.name)).value == ["one", "two"]


async def test_another_process_may_ask_for_a_cancel(tmp_path: Path, path: Path) -> None:
    asking = SqliteStore(path)
    async with Engine(store=path) as engine:
        handle = engine.start(waiting, tmp_path)
        await has_begun(tmp_path, "one", "two")
        asking.open()
        asking.request(handle.id, "cancel", time.time_ns())
        async with asyncio.timeout(10):
            result = await handle.wait()
        assert result.state == "cancelled"
        (tmp_path / "one").touch()
        (tmp_path / "two").touch()
        assert (await engine.resume(handle.id)).value == ["one", "two"]
    asking.close()


async def test_a_run_that_was_taken_over_writes_nothing_more(tmp_path: Path, path: Path) -> None:
    async with Engine(store=path) as stopped, Engine(store=path) as engine:
        handle = stopped.start(waiting, tmp_path)
        await has_begun(tmp_path, "one", "two")
        (tmp_path / "one").touch()
        (tmp_path / "two").touch()
        # the first engine is on this very loop, so it cannot do anything until the second has the run
        second = engine.resume(handle.name, take_over=True)
        assert (await second).value == ["one", "two"]
        result = await handle.wait()
        assert result.state == "interrupted"
        assert isinstance(result.error, StoreError)
        assert result.error.lost
    assert began(tmp_path) == {"one": 2, "two": 2}


async def test_a_run_that_is_taken_over_has_all_that_its_owner_could_write(tmp_path: Path, path: Path) -> None:
    """The owner is not stopped at all, and has a result to store just when the other engine plans what to run again."""
    owners = SqliteStore(path)

    class Between(SqliteStore):
        def attempts(self, *args: Any, **kwargs: Any) -> Any:
            rows = list(super().attempts(*args, **kwargs))
            try:
                owners.write(lease, [row])
            except StoreError as error:
                refused.append(error.lost)
            else:
                taken.append(row)
            return iter(rows)

    owners.open()
    refused: list[bool] = []
    taken: list[AttemptRow] = []
    result = seal(pack("one"), owners.secret, bound_to(("0" * 12, 1, 0, 1)))
    row = AttemptRow(0, 1, STATES.index(TaskState.SUCCEEDED), 2, 1, 1, 1, result, None)
    between = Between(path)
    async with Engine(store=between) as engine:
        program = engine.compile(waiting.bind(tmp_path))
        now = Description.of(program, fingerprint)
        lease = owners.begin(new_run("0" * 12, "brisk-otter", program, "", owners), new_session(now))
        (tmp_path / "one").touch()
        (tmp_path / "two").touch()
        result = await engine.resume("brisk-otter", waiting.bind(tmp_path), take_over=True)
        assert result.value == ["one", "two"]
    assert (len(taken), refused) == (1, [True])
    assert began(tmp_path) == {"two": 1}, "what was taken is kept, what came too late was refused"
    between.close()
    owners.close()


async def test_a_take_over_that_is_refused_costs_the_owner_nothing(tmp_path: Path, path: Path) -> None:
    async with Engine(store=path) as engine, Engine(store=path) as other:
        handle = engine.start(waiting, tmp_path)
        await has_begun(tmp_path, "one", "two")
        with pytest.raises(UnknownName):
            other.resume(handle.name, take_over=True, restart=["wait_fro"])
        with pytest.raises(WorkflowChanged):
            other.resume(handle.name, spell.bind(tmp_path), take_over=True)
        (tmp_path / "one").touch()
        (tmp_path / "two").touch()
        assert (await handle).value == ["one", "two"]


async def test_who_resumes_too_late_leaves_what_is_recorded_alone(tmp_path: Path, path: Path) -> None:
    (tmp_path / "bad-bb").touch()
    async with Engine(store=path) as engine, Engine(store=path) as late:
        first = await engine.start(spell, tmp_path).wait()
        store = SqliteStore(path)
        store.open()
        seen = store.find(first.id)
        (tmp_path / "bad-bb").unlink()
        await engine.resume(first.id)
        with pytest.raises(RunLocked, match="a moment ago"):
            late.relaunch(late.compile(spell.bind(tmp_path)), seen, origin="", keep_history=False)
        assert store.find(first.id).state == "succeeded"
        before = began(tmp_path)
        assert (await late.resume(first.id)).value == "aabbcc"
        assert began(tmp_path) == before
        store.close()


async def test_what_is_unknown_stays_unknown_when_the_resume_dies_before_it_begins(tmp_path: Path, path: Path) -> None:
    store = SqliteStore(path)
    store.open()
    async with Engine(store=store) as engine:
        program = engine.compile(waiting.bind(tmp_path))
        program = dataclasses.replace(program, once=frozenset({0, 1}))
        description = Description.of(program, fingerprint)
        lease = store.begin(new_run("0" * 12, "brisk-otter", program, "", store), new_session(description))
        store.write(lease, [AttemptRow(0, 1, STATES.index(TaskState.RUNNING), 1, 1, 1, 0, (), None)])
        for _ in range(2):
            store.seize("0" * 12, time.time_ns())
            stored = store.find("0" * 12)
            plan = plan_resume(program, description, description, stored, store)
            assert list(plan.beginning.unknown) == [0]
            store.reopen(stored.id, new_session(description, plan), after=stored.session)  # and that was all it did
        assert [row.state for row in store.attempts("0" * 12)] == [STATES.index(TaskState.UNKNOWN)]
    store.close()


async def test_runs_that_are_not_there(tmp_path: Path, path: Path) -> None:
    async with Engine(store=path) as engine:
        with pytest.raises(UnknownRun):
            engine.resume("last")
        await engine.start(spell, tmp_path)
        for text in ("brisk-nobody", "../../etc/passwd", "", "ffff", "%"):
            with pytest.raises(UnknownRun):
                engine.resume(text)
    async with Engine() as engine:
        with pytest.raises(UsageError, match="no store"):
            engine.resume("last")


# ── a store that fails ────────────────────────────────────────────────────────────────────────────────────────────


class Failing:
    """A store that does as it is told for a while, and then refuses to write, until it is mended."""

    def __init__(self, store: Any, writes: int) -> None:
        self._store = store
        self.left = writes
        self.mended = False
        self.written: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write(self, lease: Any, rows: Any, cached: Any = ()) -> None:
        if self.left <= 0 and not self.mended:
            raise StoreError("the disk is full", hint="make room")
        self.left -= 1
        self._store.write(lease, rows, cached)

    def close_run(self, *args: Any) -> None:
        if self.left <= 0 and not self.mended:
            raise StoreError("the disk is full", hint="make room")
        self._store.close_run(*args)


class Heard:
    """A sink that remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.outcome: RunOutcome | None = None

    def open(self, run: RunInfo) -> None: ...

    def write(self, chunk: Chunk) -> None:
        self.events += chunk.events()

    def close(self, run: RunInfo, outcome: RunOutcome) -> None:
        self.outcome = outcome

    def succeeded(self) -> set[str]:
        return {event["task"] for event in self.events if event.get("to") == "succeeded"}


@task.io
async def step(folder: Path, number: int, before: object) -> int:
    note(folder, f"step-{number}")
    await asyncio.sleep(0.002)
    return number


@workflow
def chain(folder: Path, length: int) -> int:
    last: int = 0
    for number in range(length):
        last = step(folder, number, last)
    return last


@pytest.mark.parametrize("writes", [0, 1, 5])
async def test_a_store_that_fails_ends_the_run_so_that_it_can_be_resumed(
    tmp_path: Path, path: Path, writes: int
) -> None:
    store = Failing(SqliteStore(path), writes)
    heard = Heard()
    async with Engine(store=store, sinks=[heard]) as engine:
        handle = engine.start(chain, tmp_path, 300)
        events = [event async for event in handle.events()]
        result = await handle.wait()
        assert result.state == "interrupted"
        assert result.error is not None
        with pytest.raises(StoreError, match="the disk is full") as told:
            result.check()
        assert told.value.exit_code == 74
        ran = sum(began(tmp_path).values())
        assert ran < 300
        kept = {row.element for row in store.attempts(handle.id) if row.result is not None}
        names = {f"step#{element + 1}" if element else "step" for element in kept}
        assert heard.succeeded() == names, "what was told is what was stored"
        assert {event["task"] for event in events if event.get("to") == "succeeded"} == names
        assert heard.outcome is not None
        assert heard.outcome.state == "interrupted"
        store.mended = True
        assert (await engine.resume(handle.id, take_over=True)).value == 299
    again = {name for name, count in began(tmp_path).items() if count > 1}
    assert not again & {f"step-{element}" for element in kept}
    assert sum(began(tmp_path).values()) == 300 + len(again)
    store.close()


async def test_a_store_that_recovers_before_the_end_has_everything(tmp_path: Path, path: Path) -> None:
    store = Failing(SqliteStore(path), 10**6)
    heard = Heard()
    async with Engine(store=store, sinks=[heard]) as engine:
        handle = engine.start(waiting, tmp_path)
        await has_begun(tmp_path, "one", "two")
        store.left = 0
        (tmp_path / "one").touch()
        async with asyncio.timeout(10):
            while handle._run.runner is None or handle._run.runner.store_fault is None:
                await asyncio.sleep(0.005)
        store.mended = True
        (tmp_path / "two").touch()
        result = await handle.wait()
        assert result.state == "interrupted"
        assert isinstance(result.error, StoreError)
        assert heard.succeeded() == {"wait_for", "wait_for#2"}
        assert (await engine.resume(handle.id)).value == ["one", "two"]
    assert began(tmp_path) == {"one": 1, "two": 1}
    store.close()


async def test_nothing_new_begins_while_too_much_waits_to_be_stored(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "ROWS_WAITING", 60)
    gate = threading.Event()

    class Slow(Failing):
        def write(self, lease: Any, rows: Any, cached: Any = ()) -> None:
            gate.wait(20)
            self._store.write(lease, rows, cached)

    @workflow
    def wide(folder: Path) -> list[int]:
        return [step(folder, number, None) for number in range(500)]

    store = Slow(SqliteStore(path), 10**6)
    async with Engine(store=store, slots={"asyncio": 4}) as engine:
        handle = engine.start(wide, tmp_path)
        await has_begun(tmp_path, "step-0")
        before = -1
        while before != sum(began(tmp_path).values()):
            before = sum(began(tmp_path).values())
            await asyncio.sleep(0.1)
        assert before < 100
        gate.set()
        assert (await handle).value == list(range(500))
    store.close()


async def test_a_cancel_reaches_what_waits_for_the_store(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "ROWS_WAITING", 0)
    gate = threading.Event()

    class Stuck(Failing):
        def write(self, lease: Any, rows: Any, cached: Any = ()) -> None:
            gate.wait(20)
            self._store.write(lease, rows, cached)

    store = Stuck(SqliteStore(path), 10**6)
    async with Engine(store=store) as engine:
        handle = engine.start(chain, tmp_path, 20)
        await asyncio.sleep(0.05)
        handle.cancel()
        await asyncio.sleep(0.05)
        gate.set()
        assert (await handle.wait()).state == "cancelled"
    store.close()


# ── what must not hang, and must not be told ──────────────────────────────────────────────────────────────────────


@task.io
def large(number: int) -> list[str]:
    return [f"{number:0100d}"] * 3_000  # a pickle of several frames


async def test_results_of_any_size_are_counted_off_as_they_were_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "BYTES_WAITING", 1 << 20)

    @workflow
    def many() -> int:
        return count([large(number) for number in range(40)])

    @task.io(executor="inline")
    def count(parts: list[list[str]]) -> int:
        return len(parts)

    store = SqliteStore(path)
    async with Engine(store=store, slots={"threads": 4}) as engine, asyncio.timeout(30):
        handle = engine.start(many)
        keeper = handle._run.keeper
        assert (await handle).value == 40
        assert keeper is not None
        assert not keeper.behind(1e-9)
    store.close()


async def test_a_sink_that_hangs_holds_up_neither_commits_nor_the_end(tmp_path: Path, path: Path) -> None:
    release = threading.Event()

    class Hanging(Heard):
        def write(self, chunk: Chunk) -> None:
            release.wait(20)

    async with Engine(store=path, sinks=[Hanging()], grace=0.3) as engine:
        async with asyncio.timeout(15):
            result = await engine.start(spell, tmp_path)
        assert result.value == "aabbcc"
        assert any("a sink is slow" in note for note in result.notes)
        store = SqliteStore(path)
        store.open()
        assert store.find("last").state == "succeeded"
        store.close()
        release.set()


async def test_a_store_that_does_not_answer_is_told_of_once_while_the_run_waits(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(conclusion, "STORE_SLOW", 0.2)
    monkeypatch.setattr(conclusion, "_STORE_LOOK", 0.05)
    release = threading.Event()

    class Hanging(Failing):
        def close_run(self, *args: Any) -> None:
            release.wait(20)
            self._store.close_run(*args)

    store = Hanging(SqliteStore(path), 10**6)
    async with Engine(store=store, grace=0.1) as engine, asyncio.timeout(15):
        handle = engine.start(spell, tmp_path)
        while not caplog.records:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        release.set()
        assert (await handle).value == "aabbcc"
    (record,) = caplog.records
    assert record.name == "flowlane.engine"
    assert record.getMessage() == f"run {handle.id} has ended; its store has not written that for 0 s now"


@pytest.mark.parametrize("verb", ["write", "close_run", "cached"])
async def test_whatever_a_store_raises_ends_the_run(tmp_path: Path, path: Path, verb: str) -> None:
    class Broken(Failing):
        def __getattr__(self, name: str) -> Any:
            if name == verb:
                raise ZeroDivisionError("a defect")
            return super().__getattr__(name)

    def broken(self: Any, *args: Any) -> None:
        raise ZeroDivisionError("a defect")

    store = Broken(SqliteStore(path), 10**6)
    if verb != "cached":
        store = type("Defect", (Failing,), {verb: broken})(SqliteStore(path), 10**6)

    @workflow
    def remembered(folder: Path) -> str:
        return fetch.options(cache=True)(folder, "a")

    async with Engine(store=store) as engine, asyncio.timeout(20):
        result = await engine.start(remembered, tmp_path).wait()
    if verb == "cached":  # a cache that cannot be asked is a miss
        assert result.value == "aa"
    else:
        assert result.state == "interrupted"
        assert isinstance(result.error, StoreError)
        assert "the store raised ZeroDivisionError: a defect" in str(result.error)
    store.close()


@pytest.mark.parametrize("verb", ["write", "close_run"])
async def test_the_last_event_is_what_was_stored(tmp_path: Path, path: Path, verb: str) -> None:
    def full(self: Any, *args: Any) -> None:
        raise StoreError("the disk is full")

    store = type("Full", (Failing,), {verb: full})(SqliteStore(path), 10**6)
    async with Engine(store=store) as engine:
        handle = engine.start(spell, tmp_path)
        events = [event async for event in handle.events()]
        assert events[-1]["event"] == "run.finished"
        assert events[-1]["state"] == "interrupted"
        assert (await handle.wait()).state == "interrupted"
    store.close()


async def test_a_drain_begins_nothing_that_waits_for_the_cache(tmp_path: Path, path: Path) -> None:
    asked = threading.Event()

    class SlowCache(Failing):
        def cached(self, key: bytes, now: int) -> Any:
            asked.wait(20)
            return self._store.cached(key, now)

    @workflow
    def remembered(folder: Path) -> list[str]:
        return [fetch.options(cache=True)(folder, name) for name in "abc"]

    store = SlowCache(SqliteStore(path), 10**6)
    async with Engine(store=store) as engine:
        handle = engine.start(remembered, tmp_path)
        await asyncio.sleep(0.1)
        handle.drain()
        async with asyncio.timeout(10):
            result = await handle.wait()
        assert result.state == "interrupted"
        assert result.counts == {TaskState.CANCELLED: 3}
        asked.set()
    assert began(tmp_path) == {}
    store.close()


class Forgetful:
    """An executor that has begun every job, and says of each that it never did."""

    capabilities = Capabilities(frozenset({"sync", "async"}), 4)

    async def open(self, deliver: Any) -> None:
        self._deliver = deliver

    def submit(self, jobs: Any) -> None:
        self._jobs = list(jobs)

    def interrupt(self, refs: Any, grace: float) -> None:
        self._deliver([Report(ref, ABANDONED) for ref in refs])

    async def close(self, grace: float) -> None: ...


async def test_what_was_let_go_may_have_begun_whatever_its_executor_says(tmp_path: Path, path: Path) -> None:
    @task.io(at_most_once=True)
    async def pay(folder: Path) -> str:
        return "paid"

    @workflow
    def paying(folder: Path) -> str:
        return pay(folder)

    forgetful = Forgetful()
    async with Engine(store=path, executors={"forgetful": forgetful}, routes={"io": "forgetful"}) as engine:
        handle = engine.start(paying, tmp_path)
        async with asyncio.timeout(10):
            while not hasattr(forgetful, "_jobs"):
                await asyncio.sleep(0.005)
        handle.cancel()
        assert (await handle.wait()).state == "cancelled"
        again = await engine.resume(handle.id, paying).wait()
    assert again.tasks["pay"].state is TaskState.UNKNOWN
