"""Processes that use one store at the same time, and are killed, stopped or starved: run as a program, it prints one JSON object.

    python storing.py MODE FOLDER [ARGUMENT …]

The processes are forked here, from one that has imported everything and opened nothing: 200 of them take seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from flowlane.core.states import RunState
from flowlane.errors import RunLocked, StoreError
from flowlane.storage.port import AttemptRow, NewRun, NewSession, Owner
from flowlane_plugins.stores.sqlite import SqliteStore, database

if TYPE_CHECKING:
    from collections.abc import Callable

LIBC = ctypes.CDLL(None)
T = 1_764_000_000_000_000_000
FORK = multiprocessing.get_context("fork")


def open_store(folder: str, **options: Any) -> SqliteStore:
    store = SqliteStore(os.path.join(folder, "flow.db"), secret=bytes(32), **options)
    store.open()
    return store


def session(host: str = "here") -> NewSession:
    return NewSession(Owner(os.getpid(), host), b"graph", 0, T, "test")


def new_run(number: int) -> NewRun:
    return NewRun(f"{number:012x}", f"run-{number}", "faults", "", b"", T)


def rows(at: int, count: int, size: int = 0) -> list[AttemptRow]:
    result = (bytes([at % 251]) * size,) if size else ()
    return [AttemptRow(n, 1, 4, 2, T + n, T + n, T + n, result, '{"worker":"w"}') for n in range(at, at + count)]


def child(call: Callable[[], None]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nobody outlives a test that was given up
        if os.getppid() != parent:
            os._exit(1)
        try:
            call()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


# ── modes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def kills(folder: str, count: str, seconds: str) -> dict[str, Any]:
    """A writer is killed at a random instant, `count` times; what it had been told was committed is there, as a prefix.

    On a slow machine it ends after so many seconds.
    """
    rng = random.Random(7)
    until = time.monotonic() + float(seconds)
    told = {"rounds": 0, "rows": 0, "lost": 0, "holes": 0, "damage": 0, "owned": 0, "results": 0}
    for number in range(int(count)):
        reader, writer = os.pipe()

        def write(number: int = number, writer: int = writer) -> None:
            store = open_store(folder)
            lease = store.begin(new_run(number), session())
            for at in itertools.count(0, 5):
                store.write(lease, rows(at, 5, (0, 100, 70_000)[at // 5 % 3]))
                os.write(writer, b"x")

        pid = child(write)
        os.close(writer)
        if number % 20:
            os.read(reader, 1)  # most die while they write, some while they begin
        time.sleep(rng.uniform(0, 0.012))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        acknowledged = bool(number % 20) * 5
        while got := os.read(reader, 65536):
            acknowledged += 5 * len(got)
        os.close(reader)
        store = open_store(folder)
        try:
            run_id = new_run(number).id
            begun = any(run.id == run_id for run in store.runs(limit=1))
            found = list(store.attempts(run_id)) if begun else []
            elements = [row.element for row in found]
            told["rounds"] += 1
            told["rows"] += len(found)
            told["lost"] += max(0, acknowledged - len(found))
            told["holes"] += elements != list(range(len(elements))) or len(elements) % 5 != 0
            told["owned"] += store.owner(run_id) is not None
            for row in found[-10:]:
                if row.result is not None:
                    told["results"] += 1
                    blob = store.read(row.result)
                    told["damage"] += bytes(blob) != rows(row.element // 5 * 5, 1, row.size)[0].result[0]
            if number % 10 == 0:
                with contextlib.closing(sqlite3.connect(store.path)) as db:
                    told["damage"] += db.execute("PRAGMA integrity_check").fetchone()[0] != "ok"
            if begun:
                store.close_run(store.reopen(run_id, session()), RunState.INTERRUPTED, T, None)
        finally:
            store.close()
        if time.monotonic() > until:
            break
    store = open_store(folder)
    told["damage"] += len(store.check())
    store.close()
    return told


def crowd(folder: str, processes: str, writes: str) -> dict[str, Any]:
    """Many processes open one store that is not there yet, and write to it at once."""

    def write(number: int) -> None:
        store = open_store(folder)
        lease = store.begin(new_run(number), session())
        for at in range(int(writes)):
            store.write(lease, rows(at, 1))
            if at % 50 == 0:
                store.runs()
                store.requests(lease)
        store.close_run(lease, RunState.SUCCEEDED, T, None)
        store.close()

    pids = [child(lambda number=number: write(number)) for number in range(int(processes))]  # type: ignore[misc]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    store = open_store(folder)
    counts = [run.counts.get("succeeded", 0) for run in store.runs()]
    troubles = store.check()
    store.close()
    return {"codes": codes, "counts": counts, "troubles": troubles, "locks": os.listdir(os.path.join(folder, "locks"))}


def race(folder: str, rounds: str) -> dict[str, Any]:
    """Two processes reopen one run at the same instant, again and again."""
    store = open_store(folder)
    store.close_run(store.begin(new_run(1), session()), RunState.INTERRUPTED, T, None)
    store.close()
    barrier = FORK.Barrier(2, timeout=30)
    results: Any = FORK.SimpleQueue()

    def contend() -> None:
        mine = open_store(folder)
        for number in range(int(rounds)):
            barrier.wait()
            try:
                lease = mine.reopen(new_run(1).id, session())
            except RunLocked as error:
                results.put((number, False, error.pid))
                barrier.wait()
            else:
                results.put((number, True, os.getpid()))
                barrier.wait()
                mine.write(lease, rows(0, 1))
                mine.close_run(lease, RunState.INTERRUPTED, T, None)
            barrier.wait()
        mine.close()

    pids = [child(contend) for _ in range(2)]
    outcomes: dict[int, list[tuple[bool, int]]] = {}
    for _ in range(2 * int(rounds)):
        number, won, pid = results.get()
        outcomes.setdefault(number, []).append((won, pid))
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    owners = [sum(won for won, _ in pair) for pair in outcomes.values()]
    agreed = sum(pair[0][1] == pair[1][1] for pair in outcomes.values())  # the loser was told who the winner is
    return {"codes": codes, "owners": sorted(set(owners)), "rounds": len(owners), "agreed": agreed}


def stopped(folder: str, rounds: str) -> dict[str, Any]:
    """The owner is stopped, its run taken over, and it goes on: nothing that it writes then is kept."""
    rng = random.Random(3)
    told = {"rounds": 0, "stale": 0, "lost": 0, "waited": 0, "two_owners": 0}
    for number in range(int(rounds)):
        reader, writer = os.pipe()

        def own(number: int = number, writer: int = writer) -> None:
            store = open_store(folder)
            lease = store.begin(new_run(number), session())
            os.write(writer, b"x")
            try:
                for at in itertools.count():
                    store.write(lease, rows(at, 1))
            except StoreError as error:
                os._exit(42 if error.lost else 1)

        pid = child(own)
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        time.sleep(rng.uniform(0, 0.01))
        store = open_store(folder)
        store._database._writer.execute("PRAGMA busy_timeout = 50")  # type: ignore[union-attr]
        run_id = new_run(number).id
        while True:
            os.kill(pid, signal.SIGSTOP)
            database.PATIENCE = 0.05
            try:
                store.seize(run_id, T)
                lease = store.reopen(run_id, session("elsewhere"), after=1)
                break
            except StoreError:  # it was stopped in the middle of a transaction
                told["waited"] += 1
                os.kill(pid, signal.SIGCONT)
                time.sleep(rng.uniform(0, 0.002))
            finally:
                database.PATIENCE = 30.0
        before = sum(1 for _ in store.attempts(run_id, 1))
        owner = store.owner(run_id)
        os.kill(pid, signal.SIGCONT)
        for at in range(20):
            store.write(lease, rows(at, 1))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        told["rounds"] += 1
        told["lost"] += code == 42
        told["stale"] += sum(1 for _ in store.attempts(run_id, 1)) - before
        told["two_owners"] += owner != store.owner(run_id) or owner is None or owner.pid != os.getpid()
        store.close_run(lease, RunState.SUCCEEDED, T, None)
        store.close()
    return told


def starve(folder: str, size: str) -> dict[str, Any]:
    """No file may grow beyond a limit; then it may again."""
    store = open_store(folder)
    lease = store.begin(new_run(1), session())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    at, error = 0, None
    while at < 100_000:
        try:
            store.write(lease, rows(at, 100, int(size)))
        except StoreError as caught:
            error = caught
            break
        at += 100
    again = None
    try:
        store.write(lease, rows(at, 100, int(size)))
    except StoreError as caught:
        again = caught
    readable = sum(1 for _ in store.attempts(lease.run))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store.write(lease, rows(at, 100, int(size)))
    store.close_run(lease, RunState.SUCCEEDED, T, None)
    told = {
        "at": at,
        "readable": readable,
        "error": str(error),
        "again": str(again),
        "rows": sum(1 for _ in store.attempts(lease.run)),
        "troubles": store.check(),
        "temporary": os.listdir(os.path.join(folder, "results", "tmp")),
    }
    store.close()
    return told


def forked(folder: str) -> dict[str, Any]:
    """A child of the owner outlives it: the run is nobody's all the same. And it cannot use its parent's store."""
    reader, writer = os.pipe()

    def own() -> None:
        store = open_store(folder)
        store.begin(new_run(1), session())
        if os.fork() == 0:  # outlives its parent, and is killed below
            try:
                store.runs()
            except StoreError as error:
                os.write(writer, f"{os.getpid()} {error.message}\n".encode())
            time.sleep(60)
            os._exit(0)
        os._exit(0)

    os.waitpid(child(own), 0)
    pid, _, message = os.read(reader, 4096).decode().partition(" ")
    store = open_store(folder)
    owner = store.owner(new_run(1).id)
    lease = store.reopen(new_run(1).id, session())
    store.close_run(lease, RunState.SUCCEEDED, T, None)
    store.close()
    os.kill(int(pid), signal.SIGKILL)
    return {"owner": owner, "message": message.strip()}


def migration(folder: str, rounds: str) -> dict[str, Any]:
    """A process dies in the middle of bringing a database to a new version, at a random instant."""
    from flowlane_plugins.stores.sqlite import schema

    rng = random.Random(5)
    path = os.path.join(folder, "flow.db")
    store = open_store(folder)
    lease = store.begin(new_run(1), session())
    store.write(lease, rows(0, 2000))
    store.close()
    more = [f"CREATE TABLE more_{n} AS SELECT id + {n} AS id, state FROM attempts" for n in range(10)]
    latest = len(schema.MIGRATIONS)
    schema.MIGRATIONS = (*schema.MIGRATIONS, more)
    told = {"rounds": 0, "old": 0, "new": 0, "neither": 0}
    with open(path, "rb") as file:
        old = file.read()
    for _ in range(int(rounds)):
        with open(path, "wb") as file:
            file.write(old)
        pid = child(lambda: open_store(folder).close())
        time.sleep(rng.uniform(0, 0.12))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        db = sqlite3.connect(path)
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = db.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'more_%'").fetchone()[0]
        whole = db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        db.close()
        told["rounds"] += 1
        kind = {(latest, 0): "old", (latest + 1, 10): "new"}.get((version, tables), "neither") if whole else "neither"
        told[kind] += 1
        store = open_store(folder)  # whatever happened, the next one gets there
        told["neither"] += sum(1 for _ in store.attempts(lease.run)) != 2000
        store.close()
    told["left"] = sorted(name for name in os.listdir(folder) if name.startswith("flow.db"))  # type: ignore[assignment]
    return told


def once(folder: str) -> dict[str, Any]:
    """One run from its beginning to its end, saying what has been committed: for somebody who makes a system call fail in it."""
    done, error = 0, ""
    store = SqliteStore(os.path.join(folder, "flow.db"), secret=bytes(32), durability="power")
    try:
        store.open()
        lease = store.begin(new_run(1), session())
        for at in range(0, 30, 5):
            try:
                store.write(lease, rows(at, 5, (0, 100, 70_000)[at // 5 % 3]))
            except StoreError as caught:
                error = str(caught)
                store.write(lease, rows(at, 5, (0, 100, 70_000)[at // 5 % 3]))  # the fault was for once
            done = at + 5
            print(done, file=sys.stderr, flush=True)
        store.close_run(lease, RunState.SUCCEEDED, T, None)
    except StoreError as caught:
        error = str(caught)
    store.close()
    return {"done": done, "error": error}


if __name__ == "__main__":
    mode, *arguments = sys.argv[1:]
    print(json.dumps(globals()[mode](*arguments)))
