"""What the future of a failed call raises: for the call at fault the standard library's own classes, for others nothing.

Code that was written for ``concurrent.futures`` catches BrokenProcessPool and PicklingError; so what is raised here is an
instance of those as well as of flowlane's own errors. Unlike there, the pool goes on, and no other call is touched.

- The call raised, and its exception came along: that object, its cause the traceback text of the worker.
- An argument could not be pickled: what pickle raised, with a note that names the argument and the way to the culprit.
- An argument or a result did not survive the trip, or an exception object did not: `NotDelivered`.
- The worker died: `WorkerDied`.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import process
from concurrent.futures.process import BrokenProcessPool
from pickle import PicklingError
from typing import TYPE_CHECKING, Any, Final

from flowlane.errors import TransportError, WorkerCrashed, qualified_name
from flowlane.runtime.ports import CRASHED, NEVER

if TYPE_CHECKING:
    from flowlane.errors import Failure
    from flowlane.runtime.ports import Report

__all__ = ["NotDelivered", "WorkerDied", "raised_by", "undelivered"]


# Private, and still the name that people know from their tracebacks, and tools look for.
_RemoteTraceback: Final[Any] = process._RemoteTraceback  # pyright: ignore[reportPrivateUsage]


class WorkerDied(WorkerCrashed, BrokenProcessPool):
    """The worker died that ran this call. The pool has another by now.

    It is a BrokenProcessPool because that is, to the word, when the standard library raises one for the call at fault
    ("a process terminated abruptly while a future was in the running state"), and what existing code catches.
    """


class NotDelivered(TransportError, BrokenProcessPool, PicklingError):
    """An argument, a result or an exception did not survive the trip. The pool is none the worse for it.

    The standard library raises PicklingError for some of these cases, and breaks the pool in the others.
    """


def raised_by(report: Report) -> BaseException:
    """The exception that tells of a report of any kind but SUCCEEDED. Never raises."""
    failure = report.failure
    if failure is None:
        return WorkerDied("the pool was closed while this call was running")
    error = failure.exception
    if report.kind is CRASHED:
        return _told_again(WorkerDied, failure)
    if isinstance(error, TransportError):
        original = error.__cause__
        if report.started == NEVER and isinstance(original, Exception):
            # Refused on this side. Those who expect what pickle raises get it; the sentence says where to look.
            _note(original, str(error))
            return original
        return undelivered(error, failure)
    if error is None:
        if qualified_name(TransportError) in failure.ancestry:  # of the worker's: it says itself what could not travel
            missing = NotDelivered(failure.message, where=failure.where)
        else:
            missing = NotDelivered(
                f"{failure.type}: {failure.message}",
                where=failure.where,
                hint="the call raised this; its exception object does not survive pickling, so here is what it said",
            )
        missing.__cause__ = _remote(failure)
        return missing
    error.__cause__ = _remote(failure)
    return error


def undelivered(error: TransportError, failure: Failure | None = None) -> NotDelivered:
    """`error` in terms of this module; its cause is the original one, or the text that came from the worker."""
    told = NotDelivered(error.message, where=error.where, hint=error.hint)
    told.__cause__ = error.__cause__ or (None if failure is None else _remote(failure))
    return told


def _told_again(kind: type[WorkerDied], failure: Failure) -> WorkerDied:
    hint = getattr(failure.exception, "hint", None)
    return kind(failure.message, where=failure.where, hint=hint)


def _remote(failure: Failure) -> BaseException:
    text: BaseException = _RemoteTraceback(f'\n"""\n{failure.traceback}"""')  # in the standard library's form
    return text


def _note(error: BaseException, text: str) -> None:
    with contextlib.suppress(Exception):  # __notes__ is an attribute like any other, and may hold anything
        error.add_note(text)
