"""A call that was submitted, and what happens to its future.

A future belongs to its user, too: its methods raise when he has set it himself, and they run his callbacks, which may raise
whatever they like, SystemExit included. Nothing of that may end a worker thread or a pool's loop. So futures are touched
only through the functions here, which never raise.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LOGGER", "Call", "begin", "fail", "succeed"]

#: The standard library's own logger for its pools: whoever listens for a failing initializer listens there.
LOGGER: Final = logging.getLogger("concurrent.futures")


class Call:
    """What was submitted, and the future that tells its outcome."""

    __slots__ = ("args", "fn", "future", "kwargs")

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.future: Future[Any] = Future()


def begin(future: Future[Any]) -> bool:
    """Mark a future as running, and say whether to go on.

    False when it was cancelled (those who wait for it are told now), or set by its user.
    """
    if future.done() and not future.cancelled():
        return False
    try:
        return future.set_running_or_notify_cancel()
    except Exception:  # a state that only its user can have made
        LOGGER.exception("cannot begin %r", future)
        return False


def succeed(future: Future[Any], value: Any) -> None:
    """Set a result."""
    try:
        future.set_result(value)
    except BaseException:  # set by its user, or a callback that calls sys.exit()
        LOGGER.exception("cannot set the result of %r", future)


def fail(future: Future[Any], error: BaseException) -> None:
    """Set an exception."""
    try:
        future.set_exception(error)
    except BaseException:  # likewise
        LOGGER.exception("cannot set the exception of %r", future)
    finally:
        del error  # its traceback may lead here
