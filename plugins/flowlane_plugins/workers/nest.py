"""The engine's hold on the nursery: asks it for workers, hears what became of them, and cleans up after it.

A :class:`Nest` lives once: started, then closed or lost. It belongs to one event loop; every method is called, and every
callback made, on the loop's thread, and nothing here blocks it. A worker's end is told when it was reaped, never
because a socket ended (a grandchild may hold that open).

When the nursery dies, the kernel kills its workers. What they had started carries the nest's mark in its environment:
a thread sweeps it out of /proc, and only then `lost` is told. When the engine dies, see `nursery`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from flowlane_plugins.workers.control import Control
from flowlane_plugins.workers.interpreter import launch, with_mark
from flowlane_plugins.workers.orphans import sweep_aside
from flowlane_plugins.workers.page import make_file
from flowlane_plugins.workers.protocol import BORN, EXITED, FAILED, FORK, KILL, READY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from subprocess import Popen

__all__ = ["ENTRY", "KILLED", "SWEEP", "Nest"]

ENTRY: Final = "flowlane_plugins.workers.worker:live"

_LAST_WORDS: Final = 2_000  # bytes kept of what a nursery printed before it died
_NURSERY: Final = "flowlane_plugins.workers.nursery:main"
_POLL: Final = 0.005  # seconds between two looks at a nursery that cannot be watched
SWEEP: Final = 2.0  # seconds that sweeping may take
KILLED: Final = 5.0  # seconds until a killed process that does not go (it hangs in the kernel) is given up

_log: Final = logging.getLogger("flowlane.engine")


class Nest:
    """Workers forked by a nursery process (Linux).

    ``born(wid, pid, pidfd)``: the worker runs; `pidfd` is -1 where there is none, stays the nest's, and is closed after
    the worker's end was told. ``exited(wid, status, max_rss)``: it was reaped; `status` as
    `os.waitstatus_to_exitcode` gives it, `max_rss` in bytes. ``failed(wid, error)``: it could not be forked (too many
    processes, no memory); the nest is well. ``lost()``: the nursery died and every worker with it, those asked for but
    not born included; all are gone when it is called, no other callback comes after it, and the nest is of no more use.

    `preload` are modules (dotted names, or paths of files) that the nursery imports first; `environ` is added to the
    environment; `entry` is what a worker calls, with its three descriptors and its wid.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        born: Callable[[int, int, int], None],
        exited: Callable[[int, int, int], None],
        failed: Callable[[int, OSError], None],
        lost: Callable[[], None],
        preload: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        entry: str = ENTRY,
    ) -> None:
        self._loop = loop
        self._born = born
        self._exited = exited
        self._failed = failed
        self._lost = lost
        self._preload = list(preload)
        self._environ = dict(environ or {})
        self._entry = entry
        self._mark = secrets.token_hex(16)
        self._process: Popen[bytes] | None = None
        self._control: Control | None = None
        self._watch = -1  # pidfd of the nursery
        self._asked: set[int] = set()  # wids not born yet
        self._pidfds: dict[int, int] = {}
        self._closing = False
        self._over: asyncio.Future[None] = loop.create_future()  # the nursery is reaped and all are gone
        self._output = -1  # the file that holds what the nursery prints
        #: the end of what it had printed when it was lost: what it died of, if that is its own fault
        self.last_words = ""
        #: whether the nursery has come as far as serving: one that dies before died of what it preloaded
        self.ready = False

    @staticmethod
    def supported() -> bool:
        """Whether this platform has what a nursery needs; where not, use `spawned.Spawned`."""
        from importlib.util import find_spec

        return sys.platform == "linux" and os.path.isdir("/proc/self/task") and find_spec("_ctypes") is not None

    @property
    def pid(self) -> int | None:
        """The nursery's process id; None before `start`."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the nursery and return at once (about 1 ms); it is up some 50 ms later. Raises OSError."""
        if self._process is not None or self._closing:
            raise RuntimeError("a nest is started once")
        control, theirs = Control.pair(self._loop, self._hear, self._refuse, self._kill)
        try:
            self._output = make_file("flowlane-nursery", 0)
            letter = {
                "control": theirs.fileno(),
                "engine": os.getpid(),
                "worker": self._entry,
                "preload": self._preload,
                "told": [],
            }
            environ = with_mark(self._environ, self._mark)
            self._process = launch("flowlane-nursery", _NURSERY, letter, [theirs.fileno()], environ, self._output)
        except BaseException:
            control.close()
            self._close_output()
            raise
        finally:
            theirs.close()
        self._control = control
        try:
            self._watch = os.pidfd_open(self._process.pid)
        except OSError:
            self._loop.call_later(_POLL, self._poll_nursery)
        else:
            self._loop.add_reader(self._watch, self._look_at_nursery)

    def fork(self, wid: int, fds: tuple[int, int, int]) -> None:
        """Ask for worker `wid` with these descriptors (socket, page, output), which the caller may close on return.

        Answered by `born` or `failed`, or by `lost`. Raises RuntimeError when the nest is not started, closed or lost.
        """
        if self._process is None or self._closing or self._over.done():
            raise RuntimeError("the nest is not open")
        self._asked.add(wid)
        if self._control is not None:  # deaf when it is dying: `lost` says so for all
            self._control.send((FORK, wid), fds)

    def signal(self, wid: int, signum: int) -> bool:
        """Send a signal to a worker; False when it is known to be gone. Reaches that worker or nobody."""
        pidfd = self._pidfds.get(wid)
        if pidfd is None and wid not in self._asked:
            return False
        if pidfd is None or pidfd < 0:
            if self._control is not None:
                self._control.send((KILL, wid, int(signum)))
            return True
        try:
            signal.pidfd_send_signal(pidfd, signum)
        except ProcessLookupError:
            return False
        return True

    async def close(self, grace: float) -> None:
        """Kill every worker and whatever they left, end the nursery, and return when all of them are reaped.

        After `grace` seconds the nursery is killed as well. No callback comes any more, from the call on. May be called
        at any time, more than once, and again after having been cancelled.
        """
        self._closing = True
        if self._process is None:
            return
        self._hang_up()
        if not self._over.done():
            _send_signal(self._process, signal.SIGCONT)  # a stopped one would not see that we have hung up
            await asyncio.wait([self._over], timeout=grace)
        if not self._over.done():
            self._kill()
            await asyncio.wait([self._over], timeout=KILLED)
        if not self._over.done():
            _log.warning("the nursery (pid %d) does not end although it was killed", self._process.pid)
            self._unwatch()
            self._forget()

    # ── control ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _hear(self, message: tuple[Any, ...], pidfd: int) -> None:
        match message:
            case (kind, wid, pid) if kind == BORN:
                self._asked.discard(wid)
                self._pidfds[wid] = pidfd
                self._born(wid, pid, pidfd)
            case (kind, wid, status, max_rss) if kind == EXITED:
                pidfd = self._pidfds.pop(wid)
                try:
                    self._exited(wid, status, max_rss)
                finally:
                    if pidfd >= 0:
                        os.close(pidfd)
            case (kind, wid, number) if kind == FAILED:
                self._asked.discard(wid)
                self._failed(wid, OSError(number, os.strerror(number)))
            case (kind, seconds, told) if kind == READY:
                self.ready = True
                for module, trouble in told:
                    if trouble:
                        _log.warning("workers do not have '%s' from the start: %s", module, trouble)
                    else:
                        _log.debug("preloaded %s", module)
                _log.debug("the nursery (pid %s) was ready after %.0f ms", self.pid, seconds * 1e3)
            case _:
                raise AssertionError(f"the nursery said {message!r}")

    def _refuse(self, message: tuple[Any, ...], error: OSError) -> None:
        wid = message[1]
        if wid in self._asked and not self._closing:
            self._asked.discard(wid)
            self._failed(wid, error)

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _hang_up(self) -> None:
        if self._control is not None:
            self._control.close()

    def _kill(self) -> None:
        """Have the nursery die, if it has not: what follows is the same then."""
        self._hang_up()
        assert self._process is not None
        _send_signal(self._process, signal.SIGKILL)
        self._kill_workers()

    def _kill_workers(self) -> None:
        for pidfd in self._pidfds.values():
            if pidfd >= 0:
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except OSError:
                    pass

    def _poll_nursery(self) -> None:
        self._look_at_nursery()
        if self._process is not None and self._process.returncode is None:
            self._loop.call_later(_POLL, self._poll_nursery)

    def _look_at_nursery(self) -> None:
        assert self._process is not None
        status = self._process.poll()
        if status is None:
            return
        self._unwatch()
        if self._control is not None:
            self._control.listen()  # what it said last: a worker that has ended has ended
        self._hang_up()
        if self._closing and status == 0:  # a nursery that ends by itself has reaped every descendant
            self._forget()
            self._over.set_result(None)
            return
        self._kill_workers()
        sweep_aside(self._loop, self._mark, SWEEP, self._swept)

    def _unwatch(self) -> None:
        if self._watch >= 0:
            self._loop.remove_reader(self._watch)
            os.close(self._watch)
            self._watch = -1

    def _swept(self, clean: bool) -> None:
        if not clean:
            _log.warning("processes that workers started do not end although they were killed")
        self._forget()
        if self._over.done():
            return
        self._over.set_result(None)
        if not self._closing:
            self._lost()

    def _forget(self) -> None:
        for pidfd in self._pidfds.values():
            if pidfd >= 0:
                os.close(pidfd)
        self._pidfds.clear()
        self._asked.clear()
        self._close_output()

    def _close_output(self) -> None:
        if self._output >= 0:
            end = os.fstat(self._output).st_size
            text = os.pread(self._output, _LAST_WORDS, max(0, end - _LAST_WORDS))
            self.last_words = text.decode("utf-8", "backslashreplace").strip()
            os.close(self._output)
            self._output = -1


def _send_signal(process: Popen[bytes], signum: int) -> None:
    try:
        process.send_signal(signum)
    except OSError:
        pass
