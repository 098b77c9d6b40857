"""The nursery: a process with one thread that forks workers, reaps them, and never outlives the engine.

It is an interpreter started afresh (`interpreter.launch`), so the engine's threads, locks and memory are not in it, and
with the user's modules imported a fork of it is a warm worker within a millisecond. It knows nothing of tasks.

Only the nursery forks, and it closes its copies of a worker's descriptors at once: a sibling that inherited one would
hide the end of a socket. It is a subreaper, so whatever workers leave behind, daemons included, becomes its child. When
the engine is gone (end of the control socket, or another parent: a child forked by the host may hold the socket open),
it kills all of them, one level after the other, and ends. When it is killed itself, the kernel kills its workers
(PR_SET_PDEATHSIG) and the engine looks for the rest. No signal but SIGKILL ends it: only the engine decides.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import marshal
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

from flowlane_plugins.workers.interpreter import Letter, entry_of, rewrite
from flowlane_plugins.workers.orphans import kill_children, kill_sessions
from flowlane_plugins.workers.protocol import BORN, EXITED, FAILED, FORK, KILL, MESSAGE_SIZE, READY, receive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

_FDS: Final = 3  # that come with a FORK

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_prctl: Any = ctypes.CDLL(None).prctl
_prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4

# A fault in our own code must not be held back, and these two are how we are told things.
_LET_THROUGH: Final = frozenset(
    {
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGABRT,
        signal.SIGTRAP,
        signal.SIGSYS,
    }
)
_THREADS: Final = "/proc/self/task"
_THREADS_END: Final = 0.1  # seconds; a thread that has ended is still listed for a moment
_TROUBLE: Final = 200  # characters of an error that a preloaded module raised
_LOOK: Final = 20  # ms after a worker's end until the first look for members of its session
_LOOK_SELDOM: Final = 1_000


def main(letter: Letter, letter_fd: int) -> NoReturn:
    """Be the nursery. Called by `interpreter.settle`; the letter holds control, engine, worker and preload."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(letter["control"], False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Nobody listens while modules are imported, which may take seconds in C: until then the engine takes us with it.
    _die_with(letter["engine"], signal.SIGKILL)
    try:
        os.dup2(2, 1)  # what a module prints while it is imported must not get into the output of the engine
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    began = time.monotonic()
    live = entry_of(letter["worker"])
    told = _preload(letter, letter_fd)
    os.close(letter_fd)
    nursery = _Nursery(socket.socket(fileno=letter["control"]), letter["engine"], live)
    del letter
    status = 1
    try:
        status = nursery.run(time.monotonic() - began, told)
    except BaseException as error:  # noqa: BLE001 - a bug of ours: to be seen, since _exit shows nothing
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        kill_children()
        os._exit(status)


def _die_with(parent: int, signum: int) -> None:
    _prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)


# ── preloading ────────────────────────────────────────────────────────────────────────────────────────────────────


def _preload(letter: Letter, letter_fd: int) -> list[tuple[str, str]]:
    """Import what workers will need. A module that fails is left to them: there, the error reaches somebody.

    A fork copies one thread only, and the locks of the others stay locked in it. So when a module leaves a thread behind,
    all begins anew without that module.
    """
    from flowlane.loader import load_file, marked

    told: list[tuple[str, str]] = letter["told"]
    for name in letter["preload"]:
        trouble = ""
        try:
            with marked(name):
                if os.sep in name:
                    load_file(name)
                else:
                    importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001 - user code: SystemExit too
            trouble = f"{type(error).__name__}: {error}"[:_TROUBLE]
        if not _one_thread():
            rest = [other for other in letter["preload"] if other != name]
            rewrite(letter_fd, {**letter, "preload": rest, "told": [*letter["told"], (name, "it starts a thread")]})
            for fd in (letter_fd, letter["control"]):
                os.set_inheritable(fd, True)
            os.execv(sys.executable, sys.orig_argv)  # noqa: S606
        told = [*told, (name[:_TROUBLE], trouble)]
    return told


def _one_thread() -> bool:
    deadline = time.monotonic() + _THREADS_END
    while len(os.listdir(_THREADS)) > 1:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


# ── serving ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _EngineGone(Exception):
    pass


class _Nursery:
    def __init__(self, control: socket.socket, engine: int, live: Callable[..., NoReturn]) -> None:
        self._control = control
        self._engine = engine
        self._live = live
        self._pid = os.getpid()
        self._wids: dict[int, int] = {}  # of living workers, by pid
        self._pids: dict[int, int] = {}  # and the other way round
        self._ended: set[int] = set()  # pids of dead workers whose sessions may still have members
        self._look = _LOOK
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self, seconds: float, told: Sequence[tuple[str, str]]) -> int:
        """Serve until the engine is gone. Whoever calls kills the children then."""
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _noted)
        signal.signal(signal.SIGCONT, _noted)
        # Blocked rather than ignored: a SIGTERM for a worker that has just been forked waits until it is ready for it.
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - _LET_THROUGH)
        # Harmless when it only says that the thread that started us has ended, and it wakes us if we were stopped.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)
        collecting = gc.isenabled()
        gc.disable()
        gc.collect()
        gc.freeze()  # workers share these pages with us until they write to them; the collector would
        if collecting:
            gc.enable()
        try:
            self._tell((READY, seconds, _fitting(told)))
            self._serve()
        except _EngineGone:
            pass
        return 0

    def _serve(self) -> None:
        control = self._control.fileno()
        poll = select.poll()
        poll.register(control, select.POLLIN)
        poll.register(self._wake_r, select.POLLIN)
        while True:
            if os.getppid() != self._engine:
                return
            ready = [fd for fd, _ in poll.poll(self._look if self._ended else None)]
            if self._wake_r in ready:
                os.read(self._wake_r, 4096)
                self._reap()
            if control in ready:
                self._listen()
            if not ready:
                self._clear_sessions()

    def _listen(self) -> None:
        try:
            data, fds = receive(self._control, MESSAGE_SIZE, _FDS)
        except ConnectionError:
            raise _EngineGone from None
        if not data:
            raise _EngineGone
        kind, wid, *rest = marshal.loads(data)  # noqa: S302 - the engine wrote it
        if kind == FORK:
            self._fork(wid, fds)
        elif kind == KILL and wid in self._pids:  # not reaped yet, so the number is still that worker's
            os.kill(self._pids[wid], rest[0])

    def _tell(self, message: tuple[Any, ...], fds: Sequence[int] = ()) -> None:
        # Blocks while the engine does not listen. Nothing is lost by that: the engine never waits for us.
        try:
            socket.send_fds(self._control, [marshal.dumps(message)], fds)
        except ConnectionError:
            raise _EngineGone from None

    # ── one worker ────────────────────────────────────────────────────────────────────────────────────────────────

    def _fork(self, wid: int, fds: list[int]) -> None:
        try:
            if len(fds) != _FDS:  # the kernel drops those for which we have no number left
                self._tell((FAILED, wid, errno.EMFILE))
                return
            try:
                pid = os.fork()
            except OSError as error:
                self._tell((FAILED, wid, error.errno))
                return
            if pid == 0:
                self._begin(wid, fds)
        finally:
            for fd in fds:
                os.close(fd)
        self._ended.discard(pid)
        self._wids[pid] = wid
        self._pids[wid] = pid
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            self._tell((BORN, wid, pid))
            return
        try:
            self._tell((BORN, wid, pid), [handle])
        finally:
            os.close(handle)

    def _begin(self, wid: int, fds: list[int]) -> NoReturn:
        """In the child: shed what is the nursery's, then live."""
        try:
            _die_with(self._pid, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            for signum in (signal.SIGCHLD, signal.SIGCONT, signal.SIGTERM):
                signal.signal(signum, signal.SIG_DFL)  # a host may ignore SIGTERM, and ignoring is inherited
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # SIGINT is ignored already
            os.setsid()  # what a task starts is found by it, and a task that kills its group harms no sibling
            self._control.close()
            os.close(self._wake_r)
            os.close(self._wake_w)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            self._live(*fds, wid)
        except BaseException as error:  # noqa: BLE001 - nothing may get from here into the nursery's loop
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            os._exit(70)

    def _reap(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            pid = found.si_pid
            wid = self._wids.pop(pid, None)
            if wid is not None:
                try:
                    os.killpg(pid, signal.SIGKILL)  # before reaping, while the number cannot be anybody else's
                except OSError:
                    pass
                self._ended.add(pid)
                self._look = _LOOK
            _, status, usage = os.wait4(pid, 0)
            if wid is not None:
                del self._pids[wid]
                self._tell((EXITED, wid, os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024))

    def _clear_sessions(self) -> None:
        """Kill what dead workers left in their sessions; in a quiet moment, because it reads all of /proc."""
        if kill_sessions(self._ended):
            self._look = min(self._look * 2, _LOOK_SELDOM)
        else:
            self._ended.clear()


def _noted(signum: int, frame: object) -> None:
    """A signal needs a handler to reach the wakeup descriptor."""


def _fitting(told: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """As many as one message can hold, at four bytes a character."""
    return list(told[: MESSAGE_SIZE // (8 * _TROUBLE + 20)])
