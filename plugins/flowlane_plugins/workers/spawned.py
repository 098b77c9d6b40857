"""Workers without a nursery, each an interpreter started afresh: where there is no fork that can be trusted.

:class:`Spawned` has the methods and promises of :class:`nest.Nest`, but for three things: a worker takes about 50 ms to
be born; nobody else's death takes the workers along, so `lost` is never called; and there is no subreaper, so when
the engine is killed its workers die with it but not what *they* had started.

The engine is the parent here and reaps its workers itself, one by one, never those of the host. It needs neither
pidfds nor memfds nor /proc; where they exist it is quicker (pidfd) and cleans up more (/proc).
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import signal
import sys
from typing import TYPE_CHECKING, Final

from flowlane_plugins.executors.postmortem import REAPED_BY_HOST
from flowlane_plugins.workers.interpreter import keep_from_forks, launch, with_mark
from flowlane_plugins.workers.nest import ENTRY, KILLED, SWEEP
from flowlane_plugins.workers.orphans import sweep_aside

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Mapping, Sequence
    from subprocess import Popen

__all__ = ["Spawned"]

_WORKER: Final = "flowlane_plugins.workers.solitary:main"
_POLL: Final = 0.02  # seconds between two looks at workers, where the kernel cannot tell us of their end
_PEAK: Final = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss

_log: Final = logging.getLogger("flowlane.engine")


class _Worker:
    __slots__ = ("life", "pidfd", "process")

    def __init__(self, process: Popen[bytes], pidfd: int, life: io.FileIO) -> None:
        self.process = process
        self.pidfd = pidfd
        self.life = life  # as long as it is open in the engine, the worker may live


class Spawned:
    """Workers that the engine starts one by one (POSIX). Parameters, callbacks and threads are as in `nest.Nest`.

    `preload` has no effect: each worker imports what it needs.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        born: Callable[[int, int, int], None],
        exited: Callable[[int, int, int], None],
        failed: Callable[[int, OSError], None],
        lost: Callable[[], None],  # noqa: ARG002 - there is nobody to lose
        preload: Sequence[str] = (),  # noqa: ARG002
        environ: Mapping[str, str] | None = None,
        entry: str = ENTRY,
    ) -> None:
        self._loop = loop
        self._born = born
        self._exited = exited
        self._failed = failed
        self._entry = entry
        self._mark = secrets.token_hex(16)
        self._environ = with_mark(environ or {}, self._mark)
        self._workers: dict[int, _Worker] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._open = False
        self._closing = False
        self._empty: asyncio.Future[None] | None = None  # while closing: the last worker is reaped
        self._swept: asyncio.Future[bool] | None = None
        self.ready = True
        self.last_words = ""  # each worker has its own
        self.pid: int | None = None

    @staticmethod
    def supported() -> bool:
        """Whether this platform can pass descriptors to a child process."""
        return os.name == "posix"

    def start(self) -> None:
        """Nothing is started but workers."""
        if self._open or self._closing:
            raise RuntimeError("a nest is started once")
        self._open = True

    def fork(self, wid: int, fds: tuple[int, int, int]) -> None:
        """Start worker `wid` with these descriptors (socket, page, output); blocks for about 1 ms.

        Answered by `born` or `failed`, later. Raises RuntimeError when it is not started, or closed.
        """
        if not self._open or self._closing:
            raise RuntimeError("the nest is not open")
        try:
            worker = self._launch(wid, fds)
        except OSError as error:
            self._loop.call_soon(self._tell_failed, wid, error)
            return
        self._workers[wid] = worker
        if worker.pidfd >= 0:
            self._loop.add_reader(worker.pidfd, self._reap, wid)
        elif self._timer is None:
            self._timer = self._loop.call_later(_POLL, self._look)
        self._loop.call_soon(self._tell_born, wid)

    def signal(self, wid: int, signum: int) -> bool:
        """Send a signal to a worker; False when it is known to be gone. Reaches that worker or nobody."""
        worker = self._workers.get(wid)
        if worker is None:
            return False
        try:
            os.kill(worker.process.pid, signum)  # not reaped yet, so the number is still its own
        except ProcessLookupError:
            return False
        return True

    async def close(self, grace: float) -> None:
        """Kill every worker and what carries their mark; return when all are reaped. See `Nest.close`.

        They are killed at once: `grace` is how long reaping may take before it is said that something hangs.
        """
        self._closing = True
        if not self._open:
            return
        for worker in self._workers.values():
            _kill_group(worker.process.pid)
        if self._workers:
            self._empty = self._empty or self._loop.create_future()
            await asyncio.wait([self._empty], timeout=max(grace, KILLED))
        if self._workers:
            pids = ", ".join(str(worker.process.pid) for worker in self._workers.values())
            _log.warning("worker processes do not end although they were killed: %s", pids)
            for wid in list(self._workers):
                self._forget(wid)
        if self._swept is None:
            self._swept = self._loop.create_future()
            sweep_aside(self._loop, self._mark, SWEEP, self._swept.set_result)
        await asyncio.wait([self._swept])

    # ── one worker ────────────────────────────────────────────────────────────────────────────────────────────────

    def _launch(self, wid: int, fds: Sequence[int]) -> _Worker:
        read, write = os.pipe()
        life = open(write, "wb", buffering=0)  # noqa: SIM115 - closed when the worker is gone
        # Copies, because the host may have closed its stdio: a socket that is number 1 would be the child's stdout.
        copies = [read]
        try:
            copies += [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (read, *fds)]
            letter = {"wid": wid, "life": copies[1], "fds": copies[2:], "worker": self._entry}
            process = launch("flowlane-worker", _WORKER, letter, copies[1:], self._environ, copies[-1])
        except BaseException:
            life.close()
            raise
        finally:
            for fd in copies:
                os.close(fd)
        keep_from_forks(life)
        try:
            pidfd = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else -1
        except OSError:
            pidfd = -1
        return _Worker(process, pidfd, life)

    def _tell_born(self, wid: int) -> None:
        worker = self._workers.get(wid)
        if worker is not None and not self._closing:
            self._born(wid, worker.process.pid, worker.pidfd)

    def _tell_failed(self, wid: int, error: OSError) -> None:
        if not self._closing:
            self._failed(wid, error)

    def _look(self) -> None:
        for wid in [wid for wid, worker in self._workers.items() if worker.pidfd < 0]:
            self._reap(wid)
        left = any(worker.pidfd < 0 for worker in self._workers.values())
        self._timer = self._loop.call_later(_POLL, self._look) if left else None

    def _reap(self, wid: int) -> None:
        worker = self._workers[wid]
        process = worker.process
        if hasattr(os, "waitid"):
            try:
                if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    return
            except ChildProcessError:
                pass
            else:  # what it leaves behind; before reaping, while the number cannot be anybody else's
                _kill_group(process.pid)
        try:
            pid, state, usage = os.wait4(process.pid, os.WNOHANG)
            status, peak = os.waitstatus_to_exitcode(state), usage.ru_maxrss * _PEAK
        except ChildProcessError:
            pid, status, peak = process.pid, REAPED_BY_HOST, 0
        if pid == 0:
            return
        process.returncode = status  # or Popen would wait for it
        try:
            if not self._closing:
                self._exited(wid, status, peak)
        finally:
            self._forget(wid)

    def _forget(self, wid: int) -> None:
        worker = self._workers.pop(wid)
        worker.life.close()
        if worker.pidfd >= 0:
            self._loop.remove_reader(worker.pidfd)
            os.close(worker.pidfd)
        if not self._workers:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._empty is not None and not self._empty.done():
                self._empty.set_result(None)


def _kill_group(pid: int) -> None:
    """Kill the process and what is in its group: it leads one, being in a session of its own."""
    for kill in (os.kill, os.killpg):
        try:
            kill(pid, signal.SIGKILL)
        except OSError:
            pass
