"""What tasks do to the process that they share, and how the next one does not meet it.

- What can be put back is put back after the job (`tidy`): the working directory, the umask, blocked signals, the standard
  streams and their descriptors.
- What cannot, or not for certain, spoils the process (`spoiled`): timers, signal handlers, limits, priorities, identities.
  It ends after the job, and another takes its place.
- A child that a task forks is no worker. If it comes back from the task it ends there, as Python ends, and whatever
  happens in it before, it has neither our socket nor our shared memory to write to.
- SIGTERM becomes `TaskStopped` in the task that is to stop, and the process ends afterwards, whether or not the task lets
  the exception pass: nobody knows what it tore apart.

To ask the system for all this after each job would cost more than most jobs. So the functions that change it are replaced
by ones that note it and do the same. What C code does directly, or who took ``from os import umask`` before a worker was
forked, is not noticed.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from flowlane_plugins.executors import pickling
from flowlane_plugins.workers.page import BODY, LOADING, PHASE, STARTED, STOP

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, ModuleType

__all__ = ["Guard", "TaskStopped"]

_NEVER: Final = -1

_Functions: TypeAlias = "tuple[tuple[ModuleType, tuple[str, ...]], ...]"

_UNDONE: Final[_Functions] = ((os, ("chdir", "fchdir", "umask", "dup2")), (signal, ("pthread_sigmask",)))
_SPOILING: Final[_Functions] = (
    (signal, ("alarm", "setitimer", "signal", "siginterrupt", "set_wakeup_fd")),
    (resource, ("setrlimit", "prlimit")),
    (
        os,
        (
            *("closerange", "chroot", "nice", "setpriority", "setns", "unshare", "setsid", "setpgid", "setpgrp"),
            *("setuid", "setgid", "seteuid", "setegid", "setreuid", "setregid", "setresuid", "setresgid"),
            *("setgroups", "initgroups", "sched_setaffinity", "sched_setparam", "sched_setscheduler"),
        ),
    ),
)


class TaskStopped(pickling.Stopped):
    """Raised in a task that is told to stop: its timeout has passed, or it was cancelled."""


class Guard:
    """Made once in a worker, in its main thread, when it has settled.

    cells      the page's
    output_fd  where everything goes that is printed
    shed       called in a child that a task has forked, to cut it off from us

    forked     this is such a child
    touched    there is something for `tidy` to do
    spoiled    this process must end after the job
    streams    where "stdout" and "stderr" are to be our `stdout` and `stderr`; otherwise there is `restore_streams` to do
    """

    def __init__(self, cells: memoryview, output_fd: int, shed: Callable[[], None]) -> None:
        self.forked = False
        self.touched = False
        self.spoiled = False
        self._cells = cells
        self._output_fd = output_fd
        self._shed = shed
        self._stopped = _NEVER  # the job for which SIGTERM came last
        self._muted = False  # a fork is under way, and SIGTERM is not ours
        self._handler = self._on_sigterm  # one object: it is looked for
        self.streams: Final[dict[str, Any]] = sys.__dict__  # a task may even delete them
        self.stdout, self.stderr = sys.stdout, sys.stderr
        # Not to be read: it may be a folder that we can only be in.
        how = getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC
        try:
            self._home = os.open(".", how)
        except OSError:
            self._home = -1
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._signal = signal.signal
        self._sigmask = signal.pthread_sigmask
        self._set_umask, self._fchdir, self._dup2 = os.umask, os.fchdir, os.dup2
        self._listen()
        os.register_at_fork(before=self._before_fork, after_in_child=self._in_child, after_in_parent=self._after_fork)
        for module, names in _UNDONE:
            for name in names:
                _replace(module, name, self._touch)
        for module, names in _SPOILING:
            for name in names:
                _replace(module, name, self._spoil)

    # ── after a job ───────────────────────────────────────────────────────────────────────────────────────────────

    def restore_streams(self) -> None:
        """Give the process its streams back, and to the file what the task's own still hold."""
        for name, own in (("stdout", self.stdout), ("stderr", self.stderr)):
            other: Any = self.streams.get(name)
            if other is not own:
                with contextlib.suppress(BaseException):  # a task's own object
                    other.flush()
                self.streams[name] = own

    def tidy(self) -> None:
        """Put back what a task has touched."""
        self.touched = False
        self._set_umask(self._umask)
        for fd in (1, 2):
            with contextlib.suppress(OSError):
                self._dup2(self._output_fd, fd)
        with contextlib.suppress(OSError):
            self._fchdir(self._home)
        self._sigmask(signal.SIG_SETMASK, ())

    def _touch(self) -> None:
        self.touched = True

    def _spoil(self) -> None:
        # A module that does this when it is imported would do it in the next process as well, and in each after that.
        if not _importing():
            self.spoiled = True

    # ── forks ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def leave(self, error: BaseException | None = None) -> NoReturn:
        """End a child that has come back from the task, by `error` if not None, as the end of a program would."""
        status = 0
        with contextlib.suppress(BaseException):
            if isinstance(error, SystemExit):
                if isinstance(error.code, int):
                    status = error.code & 0xFF
                elif error.code is not None:
                    status = 1
                    print(error.code, file=sys.stderr)  # noqa: T201 - as Python does
            elif error is not None:
                status = 1
                import traceback

                traceback.print_exception(error)
        for name in ("stdout", "stderr"):
            with contextlib.suppress(BaseException):
                self.streams[name].flush()
        os._exit(status)

    def _before_fork(self) -> None:
        """A child is no worker and must die of SIGTERM, from its first moment: one sent to it while it still had our handler
        would be forgotten, because Python drops what is pending after a fork. (Seen: a nested pool that never ended.)"""
        if signal.getsignal(signal.SIGTERM) is self._handler:  # otherwise it is the task's own affair
            with contextlib.suppress(ValueError):  # the task forks in a thread of its own
                self._signal(signal.SIGTERM, signal.SIG_DFL)
                self._muted = True

    def _after_fork(self) -> None:
        if self._muted:
            with contextlib.suppress(ValueError):
                self._listen()
                self._muted = False

    def _in_child(self) -> None:
        self.forked = True
        self._muted = False
        self._shed()

    # ── stopping ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _listen(self) -> None:
        self._signal(signal.SIGTERM, self._handler)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of handlers
        cells = self._cells
        stop = cells[STOP]
        if self.forked or stop in (_NEVER, self._stopped):  # not from the engine: do what a process does
            self._signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self._stopped = stop  # the engine asks once for each job
        if stop == cells[STARTED] and cells[PHASE] in (LOADING, BODY):
            self.spoiled = True
            raise TaskStopped
        # else that job has ended meanwhile


def _replace(module: ModuleType, name: str, note: Callable[[], None]) -> None:
    """Have `note` called after each call of a module's function, where there is that function."""
    function: Any = getattr(module, name, None)
    if function is None:
        return

    @functools.wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Any:
        done = function(*args, **kwargs)
        note()
        return done

    noting.__module__ = module.__name__  # there pickle finds it; a builtin's own is "posix"
    if function in os.supports_fd:
        os.supports_fd.add(noting)
    setattr(module, name, noting)


def _importing() -> bool:
    """Whether the call that is noted is made while a module is imported."""
    frame = inspect.currentframe()
    for _ in range(3):  # this, `_spoil`, `noting`
        frame = frame and frame.f_back
    while frame is not None and frame.f_globals.get("__package__") != __package__:
        if frame.f_code.co_name == "<module>":
            return True
        frame = frame.f_back
    return False
