"""Finds the processes that others left behind, in ``/proc``, and kills them. Linux only: elsewhere it finds nothing.

Three ways to tell that a process is ours, from the surest to the widest: it is our child (the kernel gives orphans to
the nursery, a subreaper); it is in the session of a worker that is dead; or it was started with the mark of the run in
its environment, which a descendant inherits unless it clears its environment.

Used by the nursery and by the engine; it imports little. Everything here blocks for milliseconds (a read per process
of the machine), so the engine uses `sweep_aside`.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Container, Iterator

__all__ = ["kill_children", "kill_sessions", "stopped", "sweep", "sweep_aside"]

_PROC: Final = "/proc"
_DEAD: Final = (b"Z", b"X")
_STOPPED: Final = (b"T", b"t")
_CLEAN: Final = 3  # looks in a row that find nothing: a process in the middle of an exec shows no environment
_PAUSE: Final = 0.002  # seconds between two looks: what was killed needs about that long to go


class _Stat(NamedTuple):
    pid: int
    state: bytes
    parent: int
    session: int


def kill_children() -> None:
    """Kill all children of this process and whatever they leave behind; return when none is left and all are reaped.

    In a subreaper that is every descendant: the orphans of those that were killed come here one level a turn. No
    child can be overlooked: an orphan comes when its parent dies, which is a child (then we are told, and look again)
    or lies below one.
    """
    me = os.getpid()
    while True:
        for process in _processes():
            if process.parent == me:
                _kill(process.pid)
        try:
            os.waitpid(-1, 0)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


def kill_sessions(sessions: Container[int]) -> bool:
    """Send SIGKILL to the living members of these sessions (ids), and say whether there were any.

    One look only: what a member forks meanwhile is found at the next, so call again until it says False.
    """

    def member(pid: int) -> bool:
        process = _stat(pid)
        return process is not None and process.session in sessions and process.state not in _DEAD

    found = [process.pid for process in _processes() if process.session in sessions and process.state not in _DEAD]
    for pid in found:
        _kill_if(pid, member)
    return bool(found)


def stopped(pid: int) -> bool:
    """Whether `pid` is stopped, by SIGSTOP or a debugger; False where that cannot be seen."""
    process = _stat(pid)
    return process is not None and process.state in _STOPPED


def sweep(mark: str, patience: float) -> bool:
    """Kill every process whose environment holds `mark`, this one excepted; True when none is left.

    Gives up after `patience` seconds (a process that hangs in the kernel cannot be killed).
    """
    token = mark.encode()

    def marked(pid: int) -> bool:
        try:
            with open(f"{_PROC}/{pid}/environ", "rb") as file:
                return token in file.read()
        except OSError:  # gone, or somebody else's
            return False

    me = os.getpid()
    deadline = time.monotonic() + patience
    clean = 0
    while True:
        left = [pid for pid in _pids() if pid != me and marked(pid)]
        for pid in left:
            _kill_if(pid, marked)
        clean = 0 if left else clean + 1
        if clean == _CLEAN:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)


def sweep_aside(loop: AbstractEventLoop, mark: str, patience: float, done: Callable[[bool], None]) -> None:
    """`sweep` in a thread that is gone when `done` is called with its answer, on the loop; never, if that is closed."""
    import threading

    def work() -> None:
        clean = sweep(mark, patience)
        try:
            loop.call_soon_threadsafe(finish, clean)
        except RuntimeError:  # the loop was closed meanwhile
            pass

    def finish(clean: bool) -> None:
        thread.join()  # that was its last act
        done(clean)

    thread = threading.Thread(target=work, name="flowlane-sweep", daemon=True)
    thread.start()


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir(_PROC) if name.isdecimal()]
    except FileNotFoundError:
        return []


def _processes() -> Iterator[_Stat]:
    for pid in _pids():
        process = _stat(pid)
        if process is not None:
            yield process


def _stat(pid: int) -> _Stat | None:
    try:
        with open(f"{_PROC}/{pid}/stat", "rb", buffering=0) as file:
            text = file.read()
    except OSError:
        return None
    # pid (name) state parent group session …, where the name may hold spaces and parentheses
    state, parent, _, session, *_ = text[text.rfind(b")") + 2 :].split(None, 4)
    return _Stat(pid, state, int(parent), int(session))


def _kill_if(pid: int, still: Callable[[int], bool]) -> None:
    """Kill `pid` if it still is what was looked for: meanwhile another process may have got its number."""
    try:
        handle = os.pidfd_open(pid)
    except OSError as error:
        if not isinstance(error, ProcessLookupError) and still(pid):  # an old kernel, or no descriptor left
            _kill(pid)
        return
    try:
        if still(pid):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(handle)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
