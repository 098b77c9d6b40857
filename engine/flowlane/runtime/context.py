"""Tells task code which run, task and attempt it is part of, in a form that structlog reads by itself.

``structlog.contextvars.merge_contextvars`` collects every context variable of the current context whose name begins
with ``structlog_`` and strips the prefix. It looks at names, not at who made the variable. So three plain variables
give ``run``, ``task`` and ``attempt`` to every structlog call a task makes, and nothing of structlog is imported here:
a worker that never logs does not pay for it.

Task code may read the variables itself: ``context.TASK.get(None)``.

Called by whoever is about to run task code, inside the context of that task. A name that task code binds itself with
``structlog.contextvars.bind_contextvars(task=...)`` makes a second variable of the same name, and which of the two
structlog then reports is not defined; use another name.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

__all__ = ["ATTEMPT", "RUN", "TASK", "bind"]

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
