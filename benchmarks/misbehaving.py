"""Tasks that do to a worker what real code does by accident, and the innocent task that shares the pool with them.

In a module of its own, so that workers import it by name. `FAULTS` names each fault and the call that commits it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FAULTS", "Fault", "answer", "innocent", "linger", "with_grandchild"]


def innocent(number: int, seconds: float = 0.02) -> int:
    """What everybody else in the pool does: a little time, and a value that can be checked."""
    time.sleep(seconds)
    return answer(number)


def answer(number: int) -> int:
    return number * number + 1


class Awkward(Exception):
    """Its arguments are not what it hands to Exception, so pickle cannot make it again: TypeError on load."""

    def __init__(self, table: str, row: int) -> None:
        super().__init__(f"row {row} of {table} is bad")


class Holding(Exception):
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("holding a lock")
        self.lock = threading.Lock()


def explode() -> NoReturn:
    raise RuntimeError("exploded on load")


class Bomb:
    """Pickles well, and explodes where it is loaded."""

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return explode, ()


def awkward_exception() -> NoReturn:
    raise Awkward("orders", 7)


def holding_exception() -> NoReturn:
    raise Holding


def exploding_result() -> Bomb:
    return Bomb()


def unpicklable_result() -> Any:
    return threading.Lock()


def takes(_value: object) -> str:
    return "took it"


def exits() -> NoReturn:
    os._exit(3)


def segfaults() -> None:
    ctypes.string_at(0)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)


def closes_descriptors() -> str:
    os.closerange(3, 256)
    return "closed them"


def forks() -> str:
    """Returns twice, in the worker and in its child: `if os.fork() == 0` without an exit."""
    os.fork()
    return "forked"


def system_exit() -> NoReturn:
    sys.exit(3)


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(3600)


def linger(seconds: float) -> None:
    """A worker that is busy when its parent dies."""
    time.sleep(seconds)


def with_grandchild(seconds: float) -> None:
    """A worker whose task started a program in a session of its own."""
    import subprocess

    program = f"import time; time.sleep({seconds})"
    subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stdin=subprocess.DEVNULL)
    time.sleep(seconds)


class Fault(NamedTuple):
    """`make` gives function and arguments; `timeout`, in seconds, is asked of pools that know timeouts."""

    make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]
    timeout: float | None = None


def _call(function: Callable[..., Any], *arguments: Any) -> Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]:
    return lambda: (function, arguments)


FAULTS: Final[dict[str, Fault]] = {
    "exception with two-argument __init__": Fault(_call(awkward_exception)),
    "exception that cannot be pickled": Fault(_call(holding_exception)),
    "result that cannot be pickled": Fault(_call(unpicklable_result)),
    "result that explodes on load": Fault(_call(exploding_result)),
    "argument that cannot be pickled": Fault(lambda: (takes, (threading.Lock(),))),
    "argument that explodes on load": Fault(lambda: (takes, (Bomb(),))),
    "SystemExit": Fault(_call(system_exit)),
    "os._exit": Fault(_call(exits)),
    "SIGSEGV": Fault(_call(segfaults)),
    "SIGKILL": Fault(_call(killed)),
    "closes descriptors": Fault(_call(closes_descriptors)),
    "forks and returns": Fault(_call(forks)),
    "SIGSTOP, with a timeout": Fault(_call(stopped), timeout=1.0),
}
