"""A worker without a nursery: an interpreter of its own that ties its life to the engine's, then lives.

`spawned.Spawned` starts it. The tie is a pipe of which the engine holds the other end: it ends with the engine, however
that dies. PR_SET_PDEATHSIG would be shorter, but exists on Linux only and follows the *thread* that started us.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from flowlane_plugins.workers.interpreter import Letter, entry_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["main"]


def main(letter: Letter, letter_fd: int) -> NoReturn:
    """Be the worker. Called by `interpreter.settle`; the letter holds wid, fds, life (a descriptor) and worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for signum in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_DFL)  # a host may ignore them, and ignoring is inherited
    os.close(letter_fd)
    for fd in (*letter["fds"], letter["life"]):
        os.set_inheritable(fd, False)
    _die_with_engine(letter["life"])
    live: Callable[..., NoReturn] = entry_of(letter["worker"])
    wid, fds = letter["wid"], letter["fds"]
    del letter
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        live(*fds, wid)
    finally:
        os._exit(70)


def _die_with_engine(life: int) -> None:
    """Have this process killed when the pipe ends: by the kernel where it can, which needs no thread and no GIL."""
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([life], [], [], 0)[0]:  # it ended before we asked
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        import threading

        threading.Thread(target=_watch, args=(life,), name="flowlane-life", daemon=True).start()


def _watch(life: int) -> None:
    try:
        os.read(life, 1)
    except OSError:
        return  # a task has closed it: from now on the end of the worker's socket must do
    os._exit(1)
