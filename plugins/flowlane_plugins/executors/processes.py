"""The `processes` executor: worker processes of our own, for functions that compute.

What it promises and how is told in `flowlane_plugins.workers.pool`; here it is fitted to the engine. Workers are forked by
a small process that was started for it (`workers.nest`), or, where that cannot be, are fresh interpreters (`workers.spawned`);
the engine's process itself never forks, so a host may have as many threads as it likes. They do not import
``__main__``: a script needs no guard.

contextvars do not reach the workers, except ``run``, ``task`` and ``attempt`` for logs.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Literal

from flowlane.errors import EngineClosed, SettingsError
from flowlane.loader import refuse_while_importing
from flowlane.runtime.ports import Capabilities
from flowlane_plugins.executors.futures import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane.runtime.ports import Job, Report
    from flowlane_plugins.workers.pool import Pool

__all__ = ["ProcessesExecutor"]

_METHODS = ("nursery", "spawn")


class ProcessesExecutor:
    """Runs plain functions in worker processes.

    slots         workers; None takes the cores this process may run on
    start_method  "nursery": workers are forked, warm, by a process of ours that has one thread (Linux); "spawn": each is a fresh
                  interpreter; None takes the first that works here
    preload       modules that the nursery imports, so that each worker has them from the start ("numpy", "pandas"); they
                  must not start threads
    max_tasks     jobs after which a worker is replaced
    max_rss       bytes of peak memory after which a worker is replaced
    grace         seconds that a task whose timeout has passed has to clean up before its process is killed
    output_limit  bytes kept of what one attempt prints

    Raises SettingsError for numbers below 1 and unknown start methods. On Windows a `StandInExecutor` must do.
    """

    def __init__(
        self,
        slots: int | None = None,
        start_method: Literal["nursery", "spawn"] | None = None,
        *,
        preload: Sequence[str] = (),
        max_tasks: int | None = None,
        max_rss: int | None = None,
        grace: float = 1.0,
        output_limit: int = 1 << 20,
    ) -> None:
        if start_method is not None and start_method not in _METHODS:
            raise SettingsError(
                f"start_method of executor 'processes' must be {' or '.join(_METHODS)}, not {start_method!r}",
                hint="workers are never forked from this process itself: 'nursery' forks them from one of ours",
            )
        for name, number, least in (
            ("slots", slots, 1),
            ("max_tasks", max_tasks, 1),
            ("max_rss", max_rss, 1),
            ("output_limit", output_limit, 0),
        ):
            if number is not None and (type(number) is not int or number < least):
                raise SettingsError(
                    f"{name} of executor 'processes' must be a whole number from {least}, not {number!r}"
                )
        if type(grace) not in (int, float) or not 0 <= grace < math.inf:
            raise SettingsError(f"grace of executor 'processes' must be a number of seconds, not {grace!r}")
        names: list[Any] = list(preload)
        if isinstance(preload, str) or not all(isinstance(name, str) for name in names):
            raise SettingsError(
                f"preload of executor 'processes' must be a list of module names, not {preload!r}",
                hint='for example preload = ["numpy"]',
            )
        self._slots = usable_cores() if slots is None else slots
        self._start_method = start_method
        self._options: dict[str, Any] = {
            "preload": tuple(preload),
            "max_tasks": max_tasks,
            "max_rss": max_rss,
            "grace": grace,
            "output_limit": output_limit,
        }
        self.capabilities = Capabilities(
            accepts=frozenset({"sync"}),
            default_slots=self._slots,
            hard_kill=True,
            pickles=True,
            remote_values=True,
            limits_memory=True,
        )
        self._pool: Pool | None = None

    @property
    def appetite(self) -> int:
        """Jobs it would like out at a time just now, at least `slots`: short ones travel many at a time."""
        return self._slots if self._pool is None else self._pool.appetite

    async def open(self, deliver: Callable[[Sequence[Report]], None]) -> None:
        """Start the process that starts workers, and do not wait for it. Raises OSError, and UsageError in a worker process that
        is still importing its parent's script."""
        refuse_while_importing("a workflow")
        from flowlane_plugins.workers.pool import Pool

        self._pool = Pool(self._slots, deliver, self, self._nest(), **self._options)

    def _nest(self) -> Callable[..., Any]:
        if self._start_method != "spawn":
            from flowlane_plugins.workers.nest import Nest

            if Nest.supported():
                return Nest
            if self._start_method == "nursery":
                raise SettingsError(
                    "start_method 'nursery' of executor 'processes' needs Linux with /proc", hint="use 'spawn'"
                )
        from flowlane_plugins.workers.spawned import Spawned

        return Spawned

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs; arguments are pickled when their turn comes. Raises EngineClosed when not open."""
        if self._pool is None:
            raise EngineClosed("this executor is not open")
        self._pool.submit(jobs)

    def interrupt(self, refs: Sequence[int], grace: float) -> None:
        """Stop jobs: SIGTERM (in the task: an exception), and after `grace` seconds SIGKILL."""
        if self._pool is not None:
            self._pool.interrupt(refs, grace)

    async def close(self, grace: float) -> None:
        """Take back what has not begun, wait up to `grace` seconds for the rest, end it. No process is left."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close(grace)


if sys.platform == "win32":  # no descriptors over sockets there, no fork, no signals: ProcessPoolExecutor must do
    from flowlane_plugins.executors.standin import StandInExecutor as ProcessesExecutor
