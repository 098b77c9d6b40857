"""The `dask` executor: tasks on the workers of a Dask cluster.

It connects to the scheduler that it is given, or starts a cluster on this machine. A job is one Dask task, a batch of jobs one
message. Its result stays on the worker as a Dask future, and the engine has a reference to it (`kept`); a task that
needs it names the future, and Dask moves the result from worker to worker. Only a record of how the attempt went comes
back, as an event (`dask_worker`). A value comes here when a task on another executor, the caller or a store needs it.

Attempts are the engine's: no retries of Dask's, none after a lost worker, and no result computed twice (`OnlyOnce`). A worker
that dies makes CRASHED what it had; results that were on it alone are gone, and who needs one fails with a
TransportError that names it. A scheduler that goes away makes CRASHED all that is out.

Stopping a job: one that has not begun is taken back, which is asked of the workers themselves. One that runs cannot be
stopped: it is given up, and keeps its worker's thread until it returns.

Threads: Dask's client has a loop and a thread of its own, on which everything marked "client's loop" runs. The rest is as in
`cluster`. Needs ``pip install 'flowlane[dask]'``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from importlib import import_module
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from flowlane.errors import FlowError, SettingsError, TransportError, UsageError
from flowlane.loader import refuse_while_importing
from flowlane.redaction import redacted
from flowlane.runtime.ports import NEVER
from flowlane_plugins.executors import outpost
from flowlane_plugins.executors.cluster import ClusterExecutor, hide_password, lost, missing
from flowlane_plugins.executors.futures import usable_cores
from flowlane_plugins.executors.kept import Kept, Reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowlane_plugins.executors.cluster import Flight

__all__ = ["DaskExecutor"]

# Bytes of arguments from which they are sent to a worker by themselves, instead of through the scheduler with the graph.
_APART_MIN: Final = 1 << 20
_SLOTS: Final = 16  # of a cluster that we have not met yet
_PACE: Final = 0.5  # seconds between two looks at whether the scheduler is there, and how many workers
_FILE_PACE: Final = 0.05  # seconds between two looks for the scheduler's file
_ASKING: Final = 2.0  # seconds for the workers to say what they have begun
_FETCHING: Final = 600.0  # seconds for a value to get here


class DaskExecutor(ClusterExecutor):
    """Runs plain functions on a Dask cluster.

    address            of a scheduler, "tcp://10.0.0.1:8786"; None takes Dask's own setting (DASK_SCHEDULER_ADDRESS), if any
    scheduler_file     a file in which a scheduler has written its address, instead
    slots              jobs out at a time; None takes what the cluster has room for
    cluster            without an address: keywords for ``distributed.LocalCluster``, which is started on this machine
    resources          what a worker must have for a job, in Dask's worker resources: {"cores": "CPU", "memory": "MEMORY",
                       "gpu": "GPU"} counts a task's ``cores=``, bytes of its ``memory=``, what it holds of the limit ``gpu``
    connect_timeout    seconds to wait for the scheduler, and before that for its file
    no_workers_timeout seconds that a cluster may have no worker at all, or none with a job's resources, before what is out is
                       given up as CRASHED

    Without an address a cluster is started on this machine, one worker process for each core that this process may use, and ended
    by `close`. Raises SettingsError for options that do not fit, and when Dask is not installed.
    """

    kind = "dask"

    def __init__(
        self,
        address: str | None = None,
        *,
        scheduler_file: str | None = None,
        slots: int | None = None,
        cluster: Mapping[str, Any] | None = None,
        resources: Mapping[str, str] | None = None,
        connect_timeout: float = 30.0,
        no_workers_timeout: float = 60.0,
    ) -> None:
        try:
            dask: Any = import_module("dask")
            import_module("distributed")
        except ImportError as error:
            raise missing("dask", "distributed") from error
        if address is not None and scheduler_file is not None:
            raise SettingsError(
                "executor 'dask' is given an address and a scheduler_file", hint="one of them says where it is"
            )
        if address is None and scheduler_file is None:
            address = dask.config.get("scheduler-address", None)
        self._local = address is None and scheduler_file is None
        if cluster and not self._local:
            raise SettingsError(
                "executor 'dask' is given a scheduler and keywords for a cluster",
                hint="leave out `cluster`, or the scheduler: then one is started on this machine",
            )
        hide_password(address)
        self._prepare(slots, usable_cores() if self._local else _SLOTS, {} if resources is None else resources)
        self._address = address
        self._file = scheduler_file
        self._keywords = dict(cluster or {})
        self._connect_timeout = connect_timeout
        self._no_workers_timeout = no_workers_timeout
        self._client: Any = None
        self._cluster: Any = None
        self._watch: Any = None
        self._gone = False  # the scheduler is; until the client has found it again
        self._workerless: float | None = None  # since when
        self._workers: dict[str, dict[str, Any]] = {}  # by address, where resources are asked for
        self._by_key: dict[str, Flight] = {}
        self._booking = threading.Lock()

    # ── the cluster ───────────────────────────────────────────────────────────────────────────────────────────────

    def connect(self) -> None:
        """Connect, or start a cluster first. Raises FlowError when there is no scheduler, or it cannot be used."""
        refuse_while_importing("a workflow")
        distributed: Any = import_module("distributed")
        try:
            if self._local:
                with _unprofiled():
                    self._cluster = distributed.LocalCluster(**self._cluster_keywords())
        except Exception as error:
            raise UsageError(
                f"executor 'dask' cannot start a cluster on this machine: {type(error).__name__}: {error}",
                hint='its workers import your script again: put what it runs under `if __name__ == "__main__":`, or start'
                " the file with `flow run`",
            ) from error
        place = {"scheduler_file": self._file} if self._file else {"address": self._cluster or self._address}
        try:
            self._await_file()
            # In two steps: one that cannot connect has a thread by then, which is for `disconnect` to end.
            self._client = distributed.Client.__new__(distributed.Client)
            self._client.__init__(**place, set_as_default=False, timeout=self._connect_timeout, name="flowlane")
        except Exception as error:
            raise UsageError(
                redacted(f"executor 'dask' finds no scheduler at {self._place}: {type(error).__name__}: {error}"),
                hint="is it running, and reachable from here? `address` under [tool.flow.executors.dask] says where it is",
            ) from error
        self._gone = False
        self._client.sync(self._settle)

    def _await_file(self) -> None:
        """Wait for a scheduler to write its address, which Dask's client would do for ever. Raises TimeoutError."""
        until = time.monotonic() + self._connect_timeout
        while self._file is not None and not os.path.exists(self._file):
            if time.monotonic() > until:
                raise TimeoutError(f"there is no such file after {self._connect_timeout:g} s")
            time.sleep(_FILE_PACE)

    def _cluster_keywords(self) -> dict[str, Any]:
        keywords: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": None, **self._keywords}
        keywords.setdefault("n_workers", self.capabilities.default_slots)
        return keywords

    async def _settle(self) -> None:
        """Make ready a scheduler that we have just met, for the first time or again. Client's loop."""
        from flowlane_plugins.executors.dask_worker import OnlyOnce

        client = self._client
        try:
            await client.register_plugin(OnlyOnce())
        except Exception as error:
            raise FlowError(
                f"the Dask scheduler at {self._place} cannot be kept from running tasks twice:"
                f" {type(error).__name__}: {error}",
                hint="flowlane must be installed where the scheduler and the workers are, in the same version",
            ) from error
        client.subscribe_topic(self._topic, self._heard)
        await self._count_workers()
        if self._watch is None:
            ioloop: Any = import_module("tornado.ioloop")
            self._watch = ioloop.PeriodicCallback(self._look, _PACE * 1000)
            self._watch.start()

    def disconnect(self) -> None:
        """Let go of the scheduler, and end the cluster that was started."""
        client, self._client = self._client, None
        cluster, self._cluster = self._cluster, None
        watch, self._watch = self._watch, None
        with contextlib.suppress(Exception):  # it is gone already: there is nothing left to end
            if client is not None:
                if watch is not None:
                    client.loop.add_callback(watch.stop)
                client.close(timeout=1)
        with contextlib.suppress(Exception):  # what could not connect counts as closed, and its thread goes on
            if client is not None:
                client._loop_runner.stop(timeout=1)
        with contextlib.suppress(Exception):
            if cluster is not None:
                cluster.close(timeout=2)
        self._by_key.clear()

    @property
    def _topic(self) -> str:
        from flowlane_plugins.executors.dask_worker import TOPIC

        return f"{TOPIC}{self.lane}"

    @property
    def _place(self) -> str:
        return self._address or self._file or "this machine"

    # ── there ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, batch: Sequence[tuple[Flight, outpost.Call]]) -> None:
        """Hand jobs to the scheduler: one message for all of a batch."""
        if self._gone or self._client.status != "running":
            raise ConnectionError(f"the connection to the Dask scheduler at {self._place} is lost")
        alike: dict[tuple[tuple[str, int], ...], list[tuple[Flight, outpost.Call, Any]]] = {}
        for flight, call in batch:
            if len(call.payload) < _APART_MIN:
                alike.setdefault(tuple(flight.needs.items()), []).append((flight, call, call.payload))
            else:
                self._client.loop.add_callback(self._send_large, flight, call)
        for jobs in alike.values():
            self._map(jobs)

    async def _send_large(self, flight: Flight, call: outpost.Call) -> None:
        """Put large arguments onto a worker first: a scheduler is not made to carry them. Client's loop."""
        try:
            payload = await self._client.scatter(call.payload, hash=False)
            if flight.ref in self._flights and not flight.asked:
                self._map([(flight, call, payload)])
        except Exception as error:  # noqa: BLE001 - no worker to have them, or the scheduler is gone
            self.crashed(flight, f"its arguments found no worker ({type(error).__name__}: {error})")

    def _map(self, batch: Sequence[tuple[Flight, outpost.Call, Any]]) -> None:
        """Make Dask tasks of jobs that need the same of a worker. Loop thread, or client's loop."""
        from flowlane_plugins.executors.dask_worker import ANNOTATION, attempt

        dask: Any = import_module("dask")
        keys = [f"{flight.name}-{self.lane}{flight.ref:020x}" for flight, _, _ in batch]
        # The lock: an answer may be here before this thread has noted what it is the answer to.
        with self._booking, dask.annotate(**{ANNOTATION: self._topic}):
            self._by_key.update({key: flight for key, (flight, _, _) in zip(keys, batch, strict=True)})
            futures: list[Any] = self._client.map(
                attempt,
                [call._replace(payload=b"") for _, call, _ in batch],
                [payload for _, _, payload in batch],
                [[reference.future for reference in _references(flight)] for flight, _, _ in batch],
                [self._topic] * len(batch),
                key=keys,
                pure=False,
                retries=0,
                resources=dict(batch[0][0].needs) or None,
            )
            for (flight, _, _), future in zip(batch, futures, strict=True):
                flight.handle = future

    # ── and back ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _heard(self, event: tuple[float, Sequence[Any]]) -> None:
        """An event of ours. Client's loop."""
        from flowlane_plugins.executors import dask_worker

        with self._booking:
            what, *rest = event[1]
        if what == dask_worker.RECORD:
            ref, *facts = rest
            self.take((int(ref, 16), *facts))
            return
        key, worker = rest
        flight = self._by_key.get(key)
        if flight is None or flight.ref not in self._flights:
            return
        if what == dask_worker.REFUSED:
            asyncio.ensure_future(self._explain(flight, worker))  # noqa: RUF006 - it ends by itself, or with the client
        else:
            self._lost(flight, f"the Dask worker at {worker} is gone")

    async def _explain(self, flight: Flight, worker: str) -> None:
        """Dask has failed a job of ours: the worker died with it, or could not call us. Client's loop."""
        error: Any = None
        with contextlib.suppress(Exception):
            error = await asyncio.wait_for(flight.handle.exception(), _ASKING)
        if error is None or type(error).__name__ == "KilledWorker":
            self.crashed(flight, f"the Dask worker at {worker} is gone", begun=True)
            return
        self.failed(
            flight,
            TransportError(
                f"{flight.task} cannot be called on the Dask worker at {worker}: {type(error).__name__}: {error}",
                hint="flowlane must be installed where the workers are, in the same version",
            ),
        )

    def _lost(self, flight: Flight, what: str) -> None:
        """Tell of a job that is lost with its worker, or because its input is. Client's loop."""
        for reference in flight.references:
            if reference.vanished():
                self.bereft(flight, reference, what)
                return
        self.crashed(flight, what, begun=True)

    def reference(self, flight: Flight, nbytes: int) -> Reference:
        """The reference to a flight's result."""
        return DaskReference(self, nbytes, flight.name, flight.task, flight.handle)

    # ── stopping ──────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self, flights: Sequence[Flight], grace: float) -> None:
        """Take back what no worker has begun; give up the rest after `grace` seconds: nothing stops a Python thread."""
        try:
            self._client.loop.add_callback(self._take_back, list(flights), grace)
        except Exception:  # noqa: BLE001 - the client is gone
            self.give_up([flight.ref for flight in flights])

    def wind_up(self, flights: Sequence[Flight], grace: float) -> None:
        """The same: nothing more can be done to a job that runs."""
        for flight in flights:
            flight.asked = True
        self.stop(flights, grace)

    async def _take_back(self, flights: Sequence[Flight], grace: float) -> None:
        """Client's loop."""
        until = time.monotonic() + grace
        left = {flight.ref: flight for flight in flights if flight.ref in self._flights}
        try:
            begun, asked = await self._begun(list(left), None)
            waiting = [flight for ref, flight in left.items() if ref not in begun]
            if waiting:
                await self._client.cancel([flight.handle for flight in waiting if flight.handle is not None])
                since = set(await self._client.nthreads()) - asked  # workers that came meanwhile
                if since:
                    late, _ = await self._begun([flight.ref for flight in waiting], list(since))
                    waiting = [flight for flight in waiting if flight.ref not in late]
                self.taken_back(waiting)
        except Exception:  # noqa: BLE001, S110 - no answer: then nobody knows, and they count as begun
            pass
        self.on_loop(self.give_up, list(left), after=until - time.monotonic())

    async def _begun(self, refs: list[int], workers: list[str] | None) -> tuple[set[int], set[str]]:
        """Which of these jobs have begun; the others never will on these workers. And the workers that were asked."""
        asking = self._client.run(outpost.withdraw, self.lane, refs, workers=workers, on_error="ignore")
        answers: dict[str, list[int]] = await asyncio.wait_for(asking, _ASKING)
        return {ref for begun in answers.values() for ref in begun}, set(answers)

    def forget(self, flight: Flight) -> None:
        """Let Dask forget a job: what it returns is dropped."""
        future, flight.handle = flight.handle, None
        if future is not None:
            with contextlib.suppress(Exception):
                future.release()

    # ── watching ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look(self) -> None:
        """See whether the scheduler is there, and workers are. Client's loop."""
        client = self._client
        if client is None:
            return
        for key, flight in list(self._by_key.items()):
            if flight.ref not in self._flights:
                self._by_key.pop(key, None)
        if client.status != "running":
            self._gone = True
            hint = "flow resume goes on with a run that is stored, once a scheduler is there"
            for flight in list(self._flights.values()):
                self.crashed(flight, f"the connection to the Dask scheduler at {self._place} is lost", hint, begun=True)
            return
        with contextlib.suppress(Exception):  # it went away this moment: the next look will find that
            if self._gone:  # the client has found a scheduler again, which knows nothing of us
                await asyncio.wait_for(self._settle(), _ASKING)
                self._gone = False
            elif self._flights:
                await asyncio.wait_for(self._count_workers(), _ASKING)
                self._mourn()

    def _mourn_misfits(self, now: int) -> None:
        """Tell of jobs for which no worker has the resources, and has had none for so long."""
        for flight in list(self._flights.values()):
            waited = now - flight.submitted > self._no_workers_timeout * 1e9
            if not flight.needs or flight.began != NEVER or not waited:
                continue
            if any(_has(worker.get("resources") or {}, flight.needs) for worker in self._workers.values()):
                continue
            wanted = ", ".join([f"{name}={amount}" for name, amount in flight.needs.items()])
            self.crashed(
                flight,
                f"no worker of the Dask cluster at {self._place} has {wanted}",
                f'`dask worker --resources "{wanted.replace(",", "")}"` starts one that has; `resources` under'
                " [tool.flow.executors.dask] says what is asked for",
            )

    async def _count_workers(self) -> None:
        threads: dict[str, int] = await self._client.nthreads()
        if self._resources:
            identity: dict[str, Any] = await self._client.scheduler.identity(n_workers=-1)
            self._workers = identity["workers"]
        self._room = sum(threads.values())
        if threads:
            self._workerless = None
        elif self._workerless is None:
            self._workerless = time.monotonic()

    def _mourn(self) -> None:
        """Tell of jobs that Dask has dropped without a word, and of those that no worker will ever have."""
        now = monotonic_ns()
        for flight in list(self._flights.values()):
            future = flight.handle
            dropped = future is not None and not flight.asked and future.status in ("cancelled", "lost")
            if dropped and now - flight.submitted > 2 * _PACE * 1e9:
                self._lost(flight, "the Dask scheduler has dropped it")
        self._mourn_misfits(now)
        since = self._workerless
        if since is not None and time.monotonic() - since > self._no_workers_timeout:
            for flight in list(self._flights.values()):
                self.crashed(
                    flight,
                    f"the Dask cluster at {self._place} has had no worker for {self._no_workers_timeout:g} s",
                    "no_workers_timeout under [tool.flow.executors.dask] says how long to wait for one",
                )


class DaskReference(Reference):
    """A result that is a Dask future, which is let go of when this is."""

    __slots__ = ("future",)

    def __init__(self, home: object, nbytes: int, name: str, maker: str, future: Any) -> None:
        super().__init__(home, nbytes, name, maker)
        self.future = future

    def vanished(self) -> bool:
        return self.gone or self.future.status in ("cancelled", "lost")

    def bring(self) -> Kept:
        try:
            if self.vanished():
                raise LookupError
            kept: Any = self.future.result(timeout=_FETCHING)
        except Exception as error:
            if self.vanished():
                raise lost(self, "dask", why=self._why()) from error
            raise TransportError(
                f"the result of {self.maker} ({self.nbytes:,} bytes) does not get here from the Dask cluster:"
                f" {type(error).__name__}: {error}"
            ) from error
        if not isinstance(kept, Kept):  # the record came, and then its worker was lost before Dask had the result
            raise lost(self, "dask")
        return kept

    def _why(self) -> str:
        """Who has lost it: its worker, or with the scheduler all of us."""
        client = self.future.client
        if client is not None and client.status == "running":
            return "the worker that held it is gone"
        return "the connection to the Dask scheduler is lost"


def _unprofiled() -> contextlib.AbstractContextManager[object]:
    """Where Python needs it, start a cluster without Dask's profiler.

    That looks at the frames of all threads a hundred times a second, also in the scheduler's process, which is this one; up to
    CPython 3.11.8 doing so can stop a process for ever (see `whereabouts`).
    """
    if sys.version_info >= (3, 11, 9):
        return contextlib.nullcontext()
    config: Any = import_module("dask.config")
    unprofiled: contextlib.AbstractContextManager[object] = config.set({"distributed.worker.profile.enabled": False})
    return unprofiled


def _has(resources: Mapping[str, float], needs: Mapping[str, int]) -> bool:
    return all(resources.get(name, 0) >= amount for name, amount in needs.items())


def _references(flight: Flight) -> Sequence[Any]:
    return flight.references
