"""What stands in for `processes` where our own workers cannot be had (Windows): a ProcessPoolExecutor, as well kept as it can be.

It goes through `futures`, and adds what a pool of one's own can do:

- It is built in the background, workers included, so that their start overlaps whatever else the engine does; jobs
  that come before it is there wait in `_held`, and ``submit`` never does.
- A broken pool (a worker died) is replaced. What was in it is CRASHED: the standard library's pool cannot tell which
  job killed the worker, and ends the others with it. Jobs that were not handed to it yet go to the new one.
- A pool with a job that was given up is *retired*: further jobs go to a new pool, and when the other jobs of the old
  one have landed, its processes are ended. So an abandoned job neither keeps a slot nor lives long.
- Closing ends what hangs: politely, then SIGTERM, then SIGKILL, within about a second after the grace.

Workers are fresh interpreters (see `spawning`), ignore SIGINT, and die with the engine's process. Of multiprocessing's
own children only its resource tracker may outlive `close`: it belongs to the host's process, not to us.

contextvars do not reach the workers, except ``run``, ``task`` and ``attempt`` for logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
from collections import deque
from concurrent.futures import BrokenExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from flowlane.errors import SettingsError
from flowlane_plugins.executors import worker
from flowlane_plugins.executors.futures import Flight, FuturesExecutor, broken_or, ended_within

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from concurrent.futures import Executor
    from multiprocessing.context import BaseContext

    from flowlane_plugins.executors.spawning import Spawner

__all__ = ["StandInExecutor"]

# How long a worker may take to leave by itself, and then after SIGTERM; with SIGKILL it comes to less than a second.
_POLITELY: Final = 0.5
_TERMINATED: Final = 0.2
_KILLED: Final = 0.2


class StandInExecutor(FuturesExecutor):
    """Runs plain functions in a ProcessPoolExecutor: no hard kill, and a dying worker costs its neighbours.

    slots         workers, one job each at a time; None takes the cores this process may run on
    start_method  how workers start. "spawn" is what is tested and meant; "forkserver" and "fork" are for code that
                  needs them ("fork" is unsafe in a process with threads, and this one has some)

    Raises SettingsError for a number of slots below 1 or an unknown start method.
    """

    def __init__(
        self, slots: int | None = None, start_method: Literal["spawn", "forkserver", "fork"] = "spawn"
    ) -> None:
        if start_method not in ("spawn", "forkserver", "fork"):
            raise SettingsError(f"start_method must be spawn, forkserver or fork, not {start_method!r}")
        self._prepare(True, slots)
        self._start_method = start_method
        if start_method == "spawn" and sys.platform != "win32":  # these do not import the script: see `spawning`
            self.hint_for_start = "what the workers wrote to stderr says why they cannot start"
        self._held: deque[tuple[Flight, Sequence[Any]]] = deque()
        self._building = False
        self._spawners: dict[Executor, Spawner] = {}  # of pools that are not ended yet
        self._retired: set[Executor] = set()
        self._ending: list[threading.Thread] = []

    # ── building ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self) -> None:
        self._pool = None
        self._build()

    def _build(self) -> None:
        if not self._building:
            self._building = True
            threading.Thread(target=self._make_pool, name="flowlane-processes", daemon=True).start()

    def _make_pool(self) -> None:
        """Build a pool and start its workers. A thread of its own: imports and starts take tens of milliseconds."""
        pool: Executor | None = None
        problem: Exception | None = None
        spawner: Spawner | None = None
        try:
            from concurrent.futures import ProcessPoolExecutor

            from flowlane_plugins.executors.spawning import Spawner

            spawner = Spawner(self._start_method)
            with _collector_paused():
                pool = ProcessPoolExecutor(
                    self._slots, mp_context=cast("BaseContext", spawner), initializer=worker.initialize
                )
                for _ in range(self._slots):  # a submit starts a worker whenever none is idle
                    pool.submit(worker.ready).add_done_callback(partial(self._greeted, pool))
        except Exception as error:  # noqa: BLE001 - no memory, no descriptors, no processes: told with the jobs
            if pool is None or not isinstance(broken_or(error, pool), BrokenExecutor):
                problem = error  # broken already: the first job to be handed to it will say how
        try:
            self._loop.call_soon_threadsafe(self._built, pool, spawner, problem)
        except RuntimeError:  # the loop is gone, and with it everybody who might end this pool later
            if pool is not None and spawner is not None:
                _end(pool, spawner, 0.0)

    def _built(self, pool: Executor | None, spawner: Spawner | None, problem: Exception | None) -> None:
        self._building = False
        if pool is not None and spawner is not None:
            self._spawners[pool] = spawner
        held, self._held = self._held, deque()
        if problem is not None:
            for flight, _ in held:
                self._land(flight, self._crashed(flight, problem))
        if pool is not None and (problem is not None or self._deliver is None or self._drained is not None):
            self._retire(pool)
            return
        self._pool = pool
        for flight, call in held:
            self._send(flight, call)

    def _send(self, flight: Flight, call: Sequence[Any]) -> None:
        if self._pool is None:
            self._held.append((flight, call))
            self._build()
        else:
            self._hand_to(self._pool, flight, call)

    def _unsend(self, flight: Flight) -> None:
        self._held = deque(entry for entry in self._held if entry[0] is not flight)

    def _rejected(self, flight: Flight, call: Sequence[Any], error: Exception) -> None:
        pool = flight.pool
        if pool is None or not isinstance(error, BrokenExecutor):  # no process could be started
            self._land(flight, self._crashed(flight, error))
        elif pool in self._answered:  # it did work, and was lost a moment ago: this job may have the next one
            flight.pool = None
            self._replace(pool)
            self._send(flight, call)
        else:  # its workers cannot even start, and those of the next one could not either
            self._land(flight, self._crashed(flight, error))
            self._replace(pool)

    # ── replacing ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _pool_lost(self, pool: Executor) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._replace, pool)

    def _given_up(self, flights: Sequence[Flight]) -> None:
        for pool in {flight.pool for flight in flights if flight.pool is not None}:
            self._replace(pool)

    def _replace(self, pool: Executor) -> None:
        """Send nothing more to `pool`, and end it when its last job has landed. Loop thread."""
        if pool is self._pool:
            self._pool = None
            if self._drained is None and pool in self._answered:
                self._build()
        self._retire(pool)

    def _retire(self, pool: Executor) -> None:
        if pool in self._spawners:
            self._retired.add(pool)
            self._end_retired()

    def _landed(self, flight: Flight) -> None:
        if flight.pool in self._retired:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._end_retired)

    def _end_retired(self) -> None:
        busy = {flight.pool for flight in list(self._flights.values())}
        for pool in [pool for pool in self._retired if pool not in busy]:
            self._retired.discard(pool)
            self._answered.discard(pool)
            self._end(pool, self._spawners.pop(pool), 0.0)

    # ── ending ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _end(self, pool: Executor, spawner: Spawner, politely: float) -> None:
        thread = threading.Thread(target=_end, args=(pool, spawner, politely), name="flowlane-end", daemon=True)
        self._ending = [other for other in self._ending if other.is_alive()]
        self._ending.append(thread)
        thread.start()

    async def _stop(self) -> None:
        deadline = self._loop.time() + _POLITELY
        while self._building and self._loop.time() < deadline:  # noqa: ASYNC110 - once in a life, and rarely then
            await asyncio.sleep(0.005)  # a pool that comes later still is ended by `_built`
        for pool, spawner in self._spawners.items():
            self._end(pool, spawner, 0.0 if pool in self._retired else _POLITELY)
        self._spawners.clear()
        self._retired.clear()
        ending, self._ending = self._ending, []

        def all_ended() -> None:
            for thread in ending:
                thread.join()

        await ended_within(_POLITELY + _TERMINATED + _KILLED, all_ended)


@contextlib.contextmanager
def _collector_paused() -> Generator[None]:
    """Keep cyclic garbage uncollected for the tens of milliseconds in which a pool is made.

    An earlier pool's semaphores are cyclic garbage. When the collector finds them while this thread is inside
    multiprocessing's resource tracker, their finalizers enter the tracker a second time, which raises ReentrantCallError
    (seen on 3.12.1) and leaks them.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _end(pool: Executor, spawner: Spawner, politely: float) -> None:
    """End a pool and its processes, and wait for them. Blocks for at most a second; a thread of its own."""
    closing = threading.Thread(
        target=lambda: pool.shutdown(wait=True, cancel_futures=True), name="flowlane-shutdown", daemon=True
    )
    closing.start()
    closing.join(politely)
    for end, patience in (("terminate", _TERMINATED), ("kill", _KILLED)):
        if closing.is_alive():
            for process in spawner.processes:
                with contextlib.suppress(Exception):  # it was never started, or has just gone
                    getattr(process, end)()
            closing.join(patience)
    for process in spawner.processes:
        with contextlib.suppress(Exception):
            process.join(0.05)
            process.close()
