"""The failures that the engine itself states, where no exception of a task says what happened.

Pure functions, called by the runner: when a report leaves the reason out, when the reason is that we asked, and when a
value that stayed where it was made cannot be fetched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowlane.core.states import Reason
from flowlane.errors import DefinitionError, Failure, FlowError, TransportError, UsageError
from flowlane.loader import shown_path

if TYPE_CHECKING:
    from flowlane.core.plan import Policy
    from flowlane.runtime.ports import Target

__all__ = [
    "lost_result",
    "overdue",
    "past_deadline",
    "place_of",
    "placed",
    "taken_back",
    "too_deep",
    "undecidable",
    "unexplained",
    "unreadable",
    "worker_died",
]

_EXCEPTION = ("Exception", "BaseException")


def overdue(policy: Policy, reason: Reason, actual: Failure | None) -> Failure:
    """An attempt or a task over its time. `reason` says which; `actual` is what it raised when it was stopped."""
    total = reason is Reason.TOTAL_TIMEOUT
    limit = (policy.total_timeout if total else policy.timeout) / 1e9
    option = "total_timeout" if total else "timeout"
    notes = (f"while stopping it raised {actual.type}: {actual.message}",) if actual is not None else ()
    return Failure(
        "TimeoutError",
        f"not finished within its {option} of {limit:g} s",
        notes=notes,
        ancestry=("TimeoutError", "OSError", *_EXCEPTION),
    )


def past_deadline(deadline: int) -> Failure:
    """A workflow within a run was not done when its time was up, `deadline` ns after it began."""
    return Failure(
        "TimeoutError",
        f"not finished within its deadline of {deadline / 1e9:g} s",
        ancestry=("TimeoutError", "OSError", *_EXCEPTION),
    )


def taken_back() -> Failure:
    """An executor interrupted an attempt that nobody had asked it to stop."""
    return Failure("CancelledError", "its executor took it back, though nobody had asked", ancestry=_EXCEPTION)


def unexplained() -> Failure:
    """An executor reports a failure without one."""
    return Failure("Exception", "its executor does not say why", ancestry=_EXCEPTION)


def worker_died() -> Failure:
    """An attempt's worker is gone, and its executor knows no more than that."""
    return Failure(
        "WorkerCrashed",
        "the worker that ran it died",
        ancestry=("flowlane.errors.WorkerCrashed", "flowlane.errors.FlowError", *_EXCEPTION),
    )


def placed(error: Exception, where: str | None) -> Exception:
    """An error of ours that names no line, because the loop called what raised it, with the line that it is about."""
    if isinstance(error, FlowError) and error.where is None:
        error.where = where
    return error


def place_of(target: Target) -> str | None:
    """``file:line`` of a task's function; None for one without Python code."""
    code = getattr(target.fn, "__code__", None)
    return None if code is None else f"{shown_path(code.co_filename)}:{code.co_firstlineno}"


def too_deep(target: Target, limit: int) -> FlowError:
    """A task's work has returned more work so often that it looks endless."""
    return DefinitionError(
        f"task {target.name!r} has gone on with more work {limit} times, one inside the other: that is its bound",
        where=place_of(target),
        hint="raise it where that is meant: .options(max_depth=...); or loop with repeat_until, or map over a list",
    )


def undecidable(task: str, error: Exception) -> FlowError:
    """User code raised when it was asked for the truth, or the equality, of a value that decides what runs."""
    failure = UsageError(
        f"the value of {task!r} decides what runs, and asking it raised {type(error).__name__}: {error}",
        hint="let a task return a plain bool, str or number, and decide by that",
    )
    failure.__cause__ = error
    return failure


def unreadable(task: str, error: Exception) -> FlowError:
    """What an attempt of `task` fails with whose arguments could not be fetched because of `error`."""
    if isinstance(error, FlowError):
        return error
    failure = TransportError(f"a value that '{task}' reads could not be fetched: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def lost_result(task: str, error: Exception) -> TransportError:
    """What a run fails with whose tasks have succeeded, but whose result needs the value of `task`, which is not to be had."""
    what = error.message if isinstance(error, FlowError) else f"{type(error).__name__}: {error}"
    failure = TransportError(
        f"the value of task '{task}', part of the run's result, could not be fetched: {what}",
        hint=getattr(error, "hint", None),
    )
    failure.exit_code = 1  # a run that failed, not a bad definition
    failure.__cause__ = error
    return failure
