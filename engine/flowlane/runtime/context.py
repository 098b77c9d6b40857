"""Tells task code which run, task and attempt it is part of, in a form that structlog reads by itself.

``structlog.contextvars.merge_contextvars`` collects every context variable of the current context whose name begins
with ``structlog_`` and strips the prefix. It looks at names, not at who made the variable. So three plain variables
give ``run``, ``task`` and ``attempt`` to every structlog call a task makes, and nothing of structlog is imported here:
a worker that never logs does not pay for it.

Task code asks `current_task`, or reads the variables itself: ``context.TASK.get(None)``.

Called by whoever is about to run task code, inside the context of that task. A name that task code binds itself with
``structlog.contextvars.bind_contextvars(task=...)`` makes a second variable of the same name, and which of the two
structlog then reports is not defined; use another name.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final, NamedTuple

__all__ = ["ATTEMPT", "RUN", "TASK", "TaskContext", "bind", "current_task"]

RUN: Final[ContextVar[str]] = ContextVar("structlog_run")
TASK: Final[ContextVar[str]] = ContextVar("structlog_task")
ATTEMPT: Final[ContextVar[int]] = ContextVar("structlog_attempt")


def bind(run: str, task: str, attempt: int) -> None:
    """Set the three variables in the current context: a few tenths of a µs, never raises.

    `run` is the run's id, `task` the task's name in its workflow, `attempt` counts from 1.
    """
    RUN.set(run)
    TASK.set(task)
    ATTEMPT.set(attempt)


class TaskContext(NamedTuple):
    """What a task may know of itself.

    run              the run's id
    task             the task's name in its workflow ("charge#2")
    attempt          from 1; a resumed run counts anew
    idempotency_key  32 hex digits, the same for every attempt of this task in this run, resumed or not: give it to whoever
                     must not do the work twice (a payment service, an upsert)
    """

    run: str
    task: str
    attempt: int
    idempotency_key: str


def current_task() -> TaskContext:
    """The task that the caller is part of. From any executor, in the task's own thread or coroutine; costs a few µs.

    Raises UsageError outside of a task.
    """
    run, task = RUN.get(None), TASK.get(None)
    if run is None or task is None:
        from flowlane.errors import UsageError

        raise UsageError(
            "current_task() was called outside of a task", hint="it works inside functions that an Engine runs"
        )
    from hashlib import blake2b

    key = blake2b(
        f"{run}\0{task}".encode("utf-8", "surrogatepass"), digest_size=16, person=b"flowlane task"
    ).hexdigest()
    return TaskContext(run, task, ATTEMPT.get(1), key)
