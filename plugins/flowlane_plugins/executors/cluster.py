"""What the executors for clusters have in common: the book of jobs that are out, and how records from workers become reports.

Rules:

- `_flights` holds what is out: ref → flight. Whoever pops a flight owns its final report: the thread that takes the
  cluster's messages, or the loop when it takes a job back or gives it up. A dict's pop is atomic; what comes later finds
  nothing and is dropped.
- `_telling` is held while a final report or a STARTED is handed over, and for nothing else: so a job is never told as
  started after its end.
- Arguments are pickled in `submit`, on the loop's thread; an argument that cannot travel fails its own job only.
- Results stay on the cluster: a report carries a `Reference`. The workers' side is `outpost`.
- Everything else is touched on the loop's thread only.

Attempts are the engine's alone: the cluster must never begin a job a second time. How it is kept from that, each
executor says for itself. A job whose worker dies is CRASHED, and the task's retry policy decides what is next.

How many jobs to have out is a number that users set as `slots`; where they did not, it is what the cluster has room for, and
something beyond it, because between the end of a job and the begin of the next lie two messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Mapping
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

from flowlane.errors import EngineClosed, Failure, LostResult, SettingsError, WorkerCrashed
from flowlane.redaction import remember
from flowlane.runtime.ports import (
    ABANDONED,
    CRASHED,
    FAILED,
    INTERRUPTED,
    NEVER,
    STARTED,
    SUCCEEDED,
    Capabilities,
    Report,
)
from flowlane_plugins.executors import kept, outpost, transport
from flowlane_plugins.executors.clocks import Clocks
from flowlane_plugins.executors.pickling import may_be_work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane.runtime.ports import Job, Target
    from flowlane_plugins.executors.kept import Reference

__all__ = ["ClusterExecutor", "Flight", "checked_slots", "hide_password", "in_thread", "lost", "missing"]

T = TypeVar("T")

_HEADERS_KEPT: Final = 1_000  # encoded once for all jobs of a task in a run
_AHEAD_NS: Final = 20_000_000  # what a worker may be kept waiting for its next job, by messages alone
_AHEAD_MAX: Final = 64  # jobs ahead, for each that can run
_FIRST: Final = 0.25  # weight of the newest job's length in the mean
_PASSWORD: Final = re.compile(r"(?:^|//)[^/@]*?:([^/@]+)@")  # as URLs have it: //name:password@host


class Flight:
    """A job that is out."""

    __slots__ = (
        "asked",
        "began",
        "handle",
        "killed",
        "name",
        "needs",
        "once",
        "ref",
        "references",
        "sent",
        "submitted",
        "task",
        "timeout",
    )

    def __init__(self, job: Job, needs: Mapping[str, int]) -> None:
        self.ref = job.ref
        self.task = job.task
        self.name = job.target.name
        self.submitted = monotonic_ns()
        self.began = NEVER  # as told by STARTED, on our clock
        self.asked = False  # it was told to stop
        self.killed = False  # its worker was
        self.sent = NEVER  # bytes of its arguments
        self.references: Sequence[Reference] = ()
        self.needs = needs
        self.timeout = job.timeout
        self.once = job.once
        self.handle: Any = None  # what the cluster knows it by


class ClusterExecutor:
    """See the module's text. A subclass connects, sends, stops and makes references: what raises NotImplementedError here."""

    #: The executor's name in messages.
    kind = "cluster"
    #: With ``hard_kill``: seconds that a task whose timeout has passed has to clean up.
    own_grace = 1.0
    capabilities: Capabilities

    def _prepare(
        self,
        slots: int | None,
        default: int,
        resources: Mapping[str, str],
        *,
        hard_kill: bool = False,
        interruptible: bool = False,
    ) -> None:
        checked_slots(self.kind, slots)
        _check_resources(self.kind, resources)
        self._resources = dict(resources)
        self._given_slots = slots
        self.capabilities = Capabilities(
            accepts=frozenset({"sync"}),
            default_slots=default if slots is None else slots,
            hard_kill=hard_kill,
            pickles=True,
            remote_values=True,
            far_values=True,
            interruptible=interruptible,
        )
        self.lane = uuid4().hex[:12]  # refs are unique within it
        self._flights: dict[int, Flight] = {}
        self._headers: dict[tuple[int, str], tuple[Target, bytes]] = {}
        self._telling = threading.Lock()
        self._connecting = threading.Lock()  # held while connecting and disconnecting: neither overtakes the other
        self._clocks = Clocks()
        self._deliver: Callable[[Sequence[Report]], None] | None = None
        self._drained: asyncio.Event | None = None
        self._room = 0  # jobs that the cluster can run at a time, as far as known
        self._mean = 0.0  # ns a job takes, lately

    # ── what a subclass does ──────────────────────────────────────────────────────────────────────────────────────

    def connect(self) -> None:
        """Reach the cluster, or start one. A thread of its own; may take as long as it takes. Raises FlowError."""
        raise NotImplementedError

    def disconnect(self) -> None:
        """Let go of the cluster, and end what was started. A thread of its own; also after a `connect` that failed."""
        raise NotImplementedError

    def send(self, batch: Sequence[tuple[Flight, outpost.Call]]) -> None:
        """Hand jobs to the cluster. Loop thread; must not block. What it raises fails the whole batch as CRASHED."""
        raise NotImplementedError

    def stop(self, flights: Sequence[Flight], grace: float) -> None:
        """Take back what has not begun, stop the rest as well as can be; give up within `grace` seconds. Loop thread."""
        raise NotImplementedError

    def wind_up(self, flights: Sequence[Flight], grace: float) -> None:
        """Take back what has not begun, and let the rest have `grace` seconds to end by itself. Loop thread."""
        raise NotImplementedError

    def forget(self, flight: Flight) -> None:
        """Nobody waits for this job any more, and what it returns is not wanted. Any thread."""
        raise NotImplementedError

    # ── the protocol ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def appetite(self) -> int:
        """Jobs it would like out at a time just now. `slots` that were set, and are fewer than it has room for, are a limit."""
        slots, room = self.capabilities.default_slots, self._room
        if not room or (self._given_slots is not None and slots < room):
            return slots
        mean = self._mean
        ahead = room * _AHEAD_MAX if mean <= 0 else min(room * _AHEAD_MAX, int(room * _AHEAD_NS / mean) + 1)
        return room + ahead

    async def open(self, deliver: Callable[[Sequence[Report]], None]) -> None:
        """Connect, which may take some seconds. Raises FlowError when there is no cluster to be had."""
        self._loop = asyncio.get_running_loop()
        try:
            await in_thread(partial(self._one_at_a_time, self.connect))
        except BaseException:
            threading.Thread(
                target=self._one_at_a_time, args=(self.disconnect,), name="flowlane-close", daemon=True
            ).start()
            raise
        self._drained = None
        self._deliver = deliver

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs. Arguments are pickled here and now. Raises EngineClosed when not open."""
        if self._deliver is None or self._drained is not None:
            raise EngineClosed("this executor is not open")
        batch: list[tuple[Flight, outpost.Call]] = []
        for job in jobs:
            flight = Flight(job, self._needs_of(job))
            try:
                call = self._encoded(job, flight)
            except Exception as error:  # noqa: BLE001 - an argument that cannot travel fails its own job only
                failure = Failure.of(error.with_traceback(None))
                self._deliver((Report(job.ref, FAILED, NEVER, monotonic_ns(), failure=failure),))
                continue
            self._flights[job.ref] = flight
            batch.append((flight, call))
        if not batch:
            return
        try:
            self.send(batch)
        except Exception as error:  # noqa: BLE001 - the cluster is gone
            for flight, _ in batch:
                self.crashed(flight, f"it could not be handed to the cluster ({type(error).__name__}: {error})")

    def interrupt(self, refs: Sequence[int], grace: float) -> None:
        """Take back what has not begun; see `stop` of the executor for the rest. Refs that are not out are ignored."""
        flights = [self._flights[ref] for ref in refs if ref in self._flights]
        if flights:
            for flight in flights:
                flight.asked = True
            self.stop(flights, grace)

    async def close(self, grace: float) -> None:
        """Take back what has not begun, wait up to `grace` seconds for the rest, give up what is left, let go of the cluster."""
        if self._deliver is None:
            return
        self._drained = asyncio.Event()
        if self._flights:
            self.wind_up(list(self._flights.values()), grace)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), grace)
        self.give_up(list(self._flights))
        await in_thread(partial(self._one_at_a_time, self.disconnect))
        self._deliver = None
        self._room = 0
        self._headers.clear()

    # ── for subclasses ────────────────────────────────────────────────────────────────────────────────────────────

    def reference(self, flight: Flight, nbytes: int) -> Reference:
        """The reference to a flight's result."""
        raise NotImplementedError

    def take(self, record: outpost.Record) -> None:
        """A worker's record has come. Any thread."""
        ref, what, started, ended, sent, host, worker, cpu, rss, nbytes, pickling, payload, small = record
        flight = self._flights.get(ref)
        if flight is None:
            return
        now = monotonic_ns()
        shift = self._clocks.shift(
            host,
            submitted=flight.submitted,
            started=sent if started == NEVER else started,
            sent=sent,
            received=now,
        )
        started = NEVER if started == NEVER else max(started + shift, flight.submitted)
        ended = max(ended + shift, started, flight.submitted)
        if what == outpost.STARTED:
            self.started(flight, started, worker)
            return
        if what == outpost.WITHDRAWN:
            self.land(flight, Report(ref, INTERRUPTED, NEVER, now, worker=worker))
            return
        if what == outpost.STOPPED:
            self.land(flight, Report(ref, INTERRUPTED, started, ended, worker=worker))
            return
        if started == NEVER:
            started = flight.began  # NEVER, unless it was told already
        elif what == outpost.RETURNED:
            took = ended - started
            self._mean = took if not self._mean else self._mean + (took - self._mean) * _FIRST
        report = Report(ref, FAILED, started, ended, worker=worker)
        report.cpu, report.rss, report.pickling = cpu, rss, pickling
        report.bytes_in, report.bytes_out = flight.sent, nbytes
        if what == outpost.RETURNED:
            report.kind = SUCCEEDED
            if small is None:
                report.value = self.reference(flight, nbytes)
            else:
                stream, files = small
                report.value = carried = kept.Carried(
                    self, flight.task, kept.Kept(flight.name, stream, (), tuple([(name, path) for name, path in files]))
                )
                if may_be_work(stream):
                    with contextlib.suppress(Exception):  # user code runs while it loads; whoever fetches it is told
                        report.value = carried.fetch()
        else:
            report.failure = transport.decode_failure(payload)
            if flight.asked and report.failure.type == "KeyboardInterrupt":  # how a task hears that it is to stop
                report.kind = INTERRUPTED
        self.land(flight, report)

    def started(self, flight: Flight, at: int, worker: str) -> None:
        """A job has begun. Any thread."""
        with self._telling:
            if flight.began == NEVER and self._flights.get(flight.ref) is flight and self._deliver is not None:
                flight.began = at
                self._deliver((Report(flight.ref, STARTED, at, worker=worker),))
        if flight.timeout is not None:
            self.on_loop(self._overdue, flight, after=flight.timeout - (monotonic_ns() - at) / 1e9)

    def _overdue(self, flight: Flight) -> None:
        if self._flights.get(flight.ref) is flight and not flight.asked:
            flight.asked = True
            self.stop((flight,), self.own_grace)

    def land(self, flight: Flight, report: Report) -> bool:
        """Hand over the end of a job, unless somebody has. Any thread."""
        with self._telling:
            if self._flights.pop(flight.ref, None) is None:
                return False
            if flight.began != NEVER:  # what was told stands
                report.started = flight.began
                report.ended = max(report.ended, flight.began)
            if self._deliver is not None:
                self._deliver((report,))
        flight.references = ()
        if self._drained is not None and not self._flights:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and with it whoever waited
                self._loop.call_soon_threadsafe(self._drained.set)
        return True

    def crashed(self, flight: Flight, what: str, hint: str | None = None, *, begun: bool = False) -> None:
        """A job is lost with its worker; `begun` when it may have begun. Any thread."""
        at = flight.began if flight.began != NEVER else flight.submitted if begun else NEVER
        crash = WorkerCrashed(f"{flight.task} was lost: {what}", hint=hint)
        self.land(flight, Report(flight.ref, CRASHED, at, monotonic_ns(), failure=Failure.of(crash)))

    def failed(self, flight: Flight, error: Exception) -> None:
        """A job cannot run at all. Any thread."""
        self.land(flight, Report(flight.ref, FAILED, NEVER, monotonic_ns(), failure=Failure.of(error)))

    def bereft(self, flight: Flight, gone: Reference, what: str) -> None:
        """A job is lost with a result that it needs, which is gone from the cluster. Any thread.

        One that has begun had its input: its worker died (`what`). So it counts for one that must not begin twice: for that one
        the news of its begin may have died with its worker.
        """
        error = lost(gone, self.kind, reader=flight.task)
        if flight.began != NEVER or flight.once:
            self.crashed(flight, what, begun=True)
        else:
            self.failed(flight, error)

    def stopped(self, flight: Flight, *, begun: bool) -> None:
        """A job has ended because it was told to; `begun` when it may have begun before that. Any thread."""
        at = flight.submitted if begun else NEVER
        self.land(flight, Report(flight.ref, INTERRUPTED, at, monotonic_ns()))

    def taken_back(self, flights: Sequence[Flight]) -> None:
        """These have not begun, and never will. Any thread."""
        for flight in flights:
            if self.land(flight, Report(flight.ref, INTERRUPTED, NEVER, monotonic_ns())):
                self.forget(flight)

    def give_up(self, refs: Sequence[int]) -> None:
        """Wait no longer for these; whatever they return is not told. Any thread."""
        for ref in refs:
            flight = self._flights.get(ref)
            if flight is not None and self.land(flight, Report(ref, ABANDONED, flight.began, monotonic_ns())):
                self.forget(flight)

    def on_loop(self, function: Callable[..., object], *args: Any, after: float = 0.0) -> None:
        """Call `function` on the engine's loop, `after` seconds from now. Any thread."""
        with contextlib.suppress(RuntimeError):  # it is closed: then nobody waits any more
            if after > 0:
                self._loop.call_soon_threadsafe(partial(self._loop.call_later, after, function, *args))
            else:
                self._loop.call_soon_threadsafe(function, *args)

    def _needs_of(self, job: Job) -> Mapping[str, int]:
        """What a job needs of its worker, by the names of the cluster: as far as the users' words are mapped to these."""
        needs: dict[str, int] = {}
        for word, name in self._resources.items():
            amount = (
                job.cores if word == "cores" else job.memory if word == "memory" else (job.holds or {}).get(word, 0)
            )
            if amount:
                needs[name] = needs.get(name, 0) + amount
        return needs

    def _one_at_a_time(self, action: Callable[[], None]) -> None:
        with self._connecting:
            action()

    def _encoded(self, job: Job, flight: Flight) -> outpost.Call:
        target = job.target
        known = self._headers.get((id(target), job.run))
        if known is None:
            if len(self._headers) >= _HEADERS_KEPT:
                self._headers.clear()
            known = (target, transport.encode_header(target, job.run))  # holds the target: an id may be reused
            self._headers[id(target), job.run] = known
        payload, references = kept.encoded(target, job.args, job.kwargs)
        for reference in references:
            if reference.vanished():
                raise lost(reference, self.kind, reader=job.task)
        flight.references = references
        flight.sent = len(payload)
        return outpost.Call(self.lane, job.ref, known[1], payload, job.task, job.attempt, transport.files_in(payload))


def lost(
    reference: Reference, kind: str, *, reader: str | None = None, why: str = "the worker that held it is gone"
) -> LostResult:
    """What to raise about a result that is no longer on its cluster; from now on it is known to be gone."""
    reference.gone = True
    needed = f", which {reader} needs," if reader is not None else ""
    return LostResult(
        f"the result of {reference.maker} ({reference.nbytes:,} bytes){needed} is no longer on the {kind} cluster: {why}",
        hint="a worker that retires hands its results on where one that is killed cannot; `flow resume` makes again what is"
        " missing, where the run is stored",
    )


def checked_slots(kind: str, slots: int | None) -> None:
    """Raise SettingsError unless `slots` is None or a whole number from 1."""
    if slots is not None and (type(slots) is not int or slots < 1):
        raise SettingsError(f"slots of executor '{kind}' must be a whole number from 1, not {slots!r}")


def _check_resources(kind: str, resources: Any) -> None:
    """Raise SettingsError unless `resources` maps words to words."""
    words: list[Any] = [*resources.items()] if isinstance(resources, Mapping) else [(None, None)]
    fits = all(type(word) is str and type(name) is str and word and name for word, name in words)
    if not fits:
        raise SettingsError(
            f"resources of executor '{kind}' must map what tasks say to names of the cluster's, not {resources!r}",
            hint='cores, memory, or the name of a limit: {"cores": "CPU", "gpu": "GPU"}',
        )


def hide_password(address: str | None) -> None:
    """See that a password in an address is masked in whatever is told from now on."""
    found = _PASSWORD.search(address or "")
    if found is not None:
        remember(found[1])


def missing(kind: str, package: str) -> SettingsError:
    """What to raise when the package that an executor stands on is not installed."""
    return SettingsError(
        f"executor '{kind}' needs the package '{package}', which is not installed",
        hint=f"pip install 'flowlane[{kind}]'",
    )


async def in_thread(action: Callable[[], T]) -> T:
    """Run a blocking `action` in a daemon thread of its own, and wait for it. It goes on when the waiter is cancelled.

    Not ``asyncio.to_thread``: that would leave the loop's default threads behind, and be waited for at exit.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def tell(value: Any, error: BaseException | None) -> None:
        if not ended.done():
            if error is None:
                ended.set_result(value)
            else:
                ended.set_exception(error)

    def act() -> None:
        value, problem = None, None
        try:
            value = action()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, value, problem)

    threading.Thread(target=act, name="flowlane-cluster", daemon=True).start()
    return await ended
