"""Workflows and runs that the tests of the history's verbs look back at."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from flowlane.core.states import REASONS, STATES, Reason, RunState, TaskState
from flowlane.description import Code, Description
from flowlane.storage.asked import Asked, seal_asked
from flowlane.storage.blob import bound_to, pack, seal
from flowlane.storage.port import AttemptRow, Lease, NewRun, NewSession, Owner
from flowlane_plugins.stores.sqlite import SqliteStore

#: fetch ─▶ parse ─▶ total ─▶ report, with as many of the first two as there are names; "bad" fails in parse.
ETL = """
from flowlane import Secret, task, workflow

@task.io
def fetch(name: str) -> str:
    return name * 2

@task.io(retries=1)
def parse(text: str) -> int:
    print("parsing", text)
    if text == "badbad":
        raise ValueError("a bad row")
    return len(text)

@task.io
def total(parts: list[int]) -> int:
    return sum(parts)

@task.io
def report(number: int) -> str:
    return f"{number} letters"

@workflow
def etl(names: tuple[str, ...] = ("a", "b"), token: Secret = Secret("env:API_TOKEN")):
    return report(total([parse(fetch(name)) for name in names]))
"""

DEAD = Owner(4_000_000, "elsewhere")


def description(names: Sequence[str], upstreams: Sequence[Sequence[int]] | None = None) -> Description:
    """Tasks of one kind on threads."""
    count = len(names)
    return Description(
        names=list(names),
        tasks=[name.partition("#")[0] for name in names],
        kinds=["io"] * count,
        executors=["threads"] * count,
        upstreams=upstreams or [()] * count,
        calls=[""] * count,
        codes={name.partition("#")[0]: Code("", {}) for name in names},
    )


def begin(
    store: SqliteStore,
    number: int,
    names: Sequence[str] = ("a",),
    *,
    workflow: str = "etl",
    name: str | None = None,
    upstreams: Sequence[Sequence[int]] | None = None,
    params: dict[str, Any] | None = None,
    started: int | None = None,
) -> Lease:
    """A run of this process that has begun."""
    at = time.time_ns() if started is None else started
    sealed = seal_asked(Asked("", pack(params or {})), f"{number:012x}", store.secret)
    run = NewRun(f"{number:012x}", name or f"run-{number}", workflow, "", sealed, at)
    session = NewSession(DEAD, description(names, upstreams).packed(), len(names), at, "flowlane 0.1.0, CPython 3.11.7")
    return store.begin(run, session)


def row(
    element: int,
    state: TaskState,
    reason: Reason,
    *,
    attempt: int = 1,
    at: int | None = None,
    took: float = 1.0,
    value: Any = None,
    lease: Lease | None = None,
    secret: bytes = b"",
    detail: str | None = None,
) -> AttemptRow:
    """An attempt that ended at `at` (now unless told). With a `secret`, its result is `value`, sealed for `lease`."""
    ended = time.time_ns() if at is None else at
    started = ended - int(took * 1e9)
    over = state not in (TaskState.RUNNING, TaskState.READY, TaskState.PENDING)
    result = seal(pack(value), secret, bound_to((*lease, element, attempt))) if lease is not None else ()
    return AttemptRow(
        element,
        attempt,
        STATES.index(state),
        REASONS.index(reason),
        started,
        started,
        ended if over else 0,
        result,
        detail,
    )


def end(store: SqliteStore, lease: Lease, state: RunState = RunState.SUCCEEDED, error: str | None = None) -> None:
    store.close_run(lease, state, time.time_ns(), error)


def constant(text: str) -> str:
    """`text` without what differs from run to run."""
    text = re.sub(r"\b[a-z]+-[a-z]+ \([0-9a-f]{6,12}\)", "NAME (ID)", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE", text)
    text = re.sub(r"just now|\d+ (?:s|min|h|days) ago", "AGO", text)
    text = re.sub(r"<?\b\d+(?:\.\d+)? (?:ms|s)\b|<1 ms", "TIME", text)
    text = re.sub(r"thread-\d+", "thread-N", text)
    return re.sub(r" +", " ", text)
