"""What flowlane asks of the world, on one page: executors that run jobs, sinks that hear what happened.

(The third is the store, which keeps runs: `flowlane.storage.port`.)

A plug-in implements one of these protocols; nothing else of ours needs to be known. Times are integer nanoseconds of
``time.monotonic_ns()``; durations given by users are seconds.

Executor
    One instance is one *lane*. The engine calls every method on its event-loop thread. ``submit`` hands over a batch
    and returns at once; each job is answered through ``deliver``, which may be called from any thread, with as many
    reports at a time as are at hand. Per job: at most one STARTED, then exactly one final report. A final report
    carries the start time as well, so an executor may leave out STARTED for jobs that end within a few milliseconds
    (it must send it for longer ones: timeouts count from it, and people watch it). Slots are not the executor's
    business: the scheduler never has more jobs out than the lane has slots.

    Three things an executor may do besides:

    - It may have an attribute ``appetite``: how many jobs it would like to hold just now, its slots or more, so that a
      worker need not wait for the loop between two short tasks. It is read on the loop's thread after each batch of
      reports and each `submit`, so it must cost nothing, and may change as the executor measures. Jobs beyond the
      slots wait inside the executor; people go on being told its slots.
    - It may send NOTED reports about a job that is out; they change nothing but what is told.
    - It may report a `RemoteValue` in place of a result, see there (``Capabilities.remote_values``).

Sink
    Called on the journal's own thread, in the order of history, never on the event loop. What it raises is told once
    and never touches the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flowlane.core.messages import Transition
    from flowlane.errors import Failure
    from flowlane.loader import Address
    from flowlane.storage.blob import Payload

__all__ = [
    "ABANDONED",
    "CRASHED",
    "FAILED",
    "INTERRUPTED",
    "NEVER",
    "NOTED",
    "STARTED",
    "SUCCEEDED",
    "Capabilities",
    "Chunk",
    "Executor",
    "Job",
    "RemoteValue",
    "Report",
    "ReportKind",
    "RunInfo",
    "RunOutcome",
    "Sink",
    "Target",
]


class ReportKind(IntEnum):
    """What became of a job."""

    STARTED = 0
    SUCCEEDED = 1
    FAILED = 2  # it raised, or was refused before it began (then `started` is NEVER)
    CRASHED = 3  # its worker died
    INTERRUPTED = 4  # it stopped because `interrupt` asked it to
    ABANDONED = 5  # it was told to stop and did not; it may still be running, its outcome will not be told
    NOTED = 6  # not an end: something to tell about a job that is out, in `note`


STARTED: Final = ReportKind.STARTED
SUCCEEDED: Final = ReportKind.SUCCEEDED
FAILED: Final = ReportKind.FAILED
CRASHED: Final = ReportKind.CRASHED
INTERRUPTED: Final = ReportKind.INTERRUPTED
ABANDONED: Final = ReportKind.ABANDONED
NOTED: Final = ReportKind.NOTED

NEVER: Final = -1  # a time that did not come


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an executor can do; routes are checked against it when a plan is compiled.

    accepts        which functions it runs: "sync", "async" or both
    default_slots  jobs it takes at once unless the engine is told otherwise; at least 1
    hard_kill      it enforces Job.timeout itself, from the start of the job, and can stop any job for real
    pickles        arguments and results cross a process boundary
    remote_values  results may stay where they were made: it may report a RemoteValue, and takes its own back as arguments
    far_values     fetching one of those waits for another machine, so that it is done in a thread
    limits_memory  it ends a job that takes more than its Job.memory, for real
    interruptible  a running job hears that it is to stop; where none does (threads), one over its timeout is given up at once
    """

    accepts: frozenset[str]
    default_slots: int
    hard_kill: bool = False
    pickles: bool = False
    remote_values: bool = False
    interruptible: bool = True
    limits_memory: bool = False
    far_values: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """A function to call, and how another process can find it.

    `address` says where it can be imported; None means it can only travel by value (closures, ``__main__``, notebook
    cells). `name` is the task's name as declared, for messages.
    """

    name: str
    fn: Callable[..., Any]
    is_async: bool
    address: Address | None


@dataclass(slots=True, eq=False)
class Job:
    """One attempt of one task, ready to be called: ``target.fn(*args, **kwargs)``. Equal to itself only, so that executors
    may look for it in containers that other threads change.

    ref      unique within an Engine, never reused
    task     the task's name in its workflow ("parse#2"), run its run's id, attempt counts from 1
    timeout  seconds from its start, or None; only for executors with `hard_kill`
    once     it must not begin a second time, whatever becomes of its worker: it is CRASHED instead
    cores    slots of its lane that it holds, and threads that it may compute in, where an executor can see to that
    memory   bytes that it may take, where an executor can stop one that takes more; 0 for any number
    holds    limits that it holds while it is out, by name, and how much of each, or None; ``memory`` is not among them
    context  contextvars to run under: a copy of its own, with run, task and attempt bound for structlog (enter it directly);
             None for an executor that pickles
    """

    ref: int
    target: Target
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    run: str
    task: str
    attempt: int
    timeout: float | None = None
    context: contextvars.Context | None = None
    once: bool = False
    cores: int = 1
    memory: int = 0
    holds: Mapping[str, int] | None = None


@dataclass(slots=True)
class Report:
    """What became of a job. Not frozen: a frozen dataclass costs four times as much to make, and one is made a task.

    started, ended  monotonic ns, NEVER (-1) when it did not come to that
    value           the result, for SUCCEEDED
    failure         for FAILED and CRASHED
    worker          who ran it: "loop", "thread-3", "pid 4711"
    cpu             ns of CPU time the attempt used

    What an executor may measure besides; NEVER where it did not. It is looked at where `cpu` is told as well, and for
    attempts that did not succeed:

    rss                  peak memory of the worker process up to the end of the attempt, bytes
    bytes_in, bytes_out  size of the encoded arguments, and of the encoded result
    pickling             ns spent on encoding and decoding both, on both sides together

    output          what the attempt printed, where it was captured (cut to a sensible length by the executor)
    note            for NOTED: what happened, in words that follow the task's name ("held the event loop for 312 ms at ...")
    """

    ref: int
    kind: ReportKind
    started: int = NEVER
    ended: int = NEVER
    value: Any = None
    failure: Failure | None = None
    worker: str = ""
    cpu: int = NEVER
    rss: int = NEVER
    bytes_in: int = NEVER
    bytes_out: int = NEVER
    pickling: int = NEVER
    output: str | None = None
    note: str = ""


class RemoteValue:
    """A result that stays where it was made. An executor with ``remote_values`` subclasses it and reports it as the value.

    The engine keeps it as the task's value. It hands it as it is, also inside lists, tuples and dicts of arguments, to the
    executor that made it (``value.home is executor``) and fetches it for everybody else: other executors, and the run's
    result. It drops its reference when the last task that reads the value has ended; whoever makes one frees what is
    behind it when it is garbage collected, which may happen on any thread.

    home    the executor that made it
    nbytes  about how much there is to fetch
    stored  the engine's own: the same value in the run's store, for when this one is lost
    """

    __slots__ = ("home", "nbytes", "stored")

    def __init__(self, home: object, nbytes: int) -> None:
        self.home = home
        self.nbytes = nbytes
        self.stored: RemoteValue | None = None

    def fetch(self) -> Any:
        """The value itself, always the same object: fetched once, then kept.

        Called on the thread of the engine's loop, which it holds up for as long as decoding takes; one that `is_far` is fetched
        in a thread before that, and what it raised there is raised again. Raises LostResult when the value is gone,
        TransportError when it cannot be had for another reason or does not load here.
        """
        raise NotImplementedError

    def is_far(self) -> bool:
        """Whether `fetch` would have to wait, for another machine say. Only for executors with ``far_values``."""
        return False

    def vanished(self) -> bool:
        """Whether it is known to be gone for good. Cheap, and does not block. The loop's thread.

        Whoever finds that out (`fetch`, or the executor that was to hand it to a job) raises, or reports, a LostResult.
        """
        return False

    def packed(self) -> Payload:
        """The value as a store will have it; by default fetched and packed, where it could be taken as it is.

        Called on the loop's thread, of a value that `is_far` in a thread; what it returns may be read from any thread, and for as
        long as it is kept. Raises TransportError when the value cannot be had or cannot be stored.
        """
        from flowlane.storage.blob import pack

        return pack(self.fetch())


@runtime_checkable
class Executor(Protocol):
    """Runs jobs. See the module's text for the rules."""

    @property
    def capabilities(self) -> Capabilities: ...

    async def open(self, deliver: Callable[[Sequence[Report]], None]) -> None:
        """Get ready. `deliver` takes reports from any thread and never blocks or raises."""
        ...

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs. Never blocks, and never raises for one job: that job is reported FAILED instead."""
        ...

    def interrupt(self, refs: Sequence[int], grace: float) -> None:
        """Ask jobs to stop; `grace` seconds later give up on those that have not. The answer is a Report each."""
        ...

    async def close(self, grace: float) -> None:
        """Stop everything, waiting at most `grace` seconds for running jobs, and free all resources."""
        ...


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a sink needs to turn ints into words. Index tuples by node; today an element's number is its node's."""

    id: str
    name: str
    workflow: str
    names: Sequence[str]
    kinds: Sequence[str]
    executors: Sequence[str]
    upstreams: Sequence[Sequence[int]]
    wall_ns: int  # time.time_ns() and time.monotonic_ns() of one instant: how monotonic times become dates
    mono_ns: int
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended: `state` a RunState's text, `counts` state → number of tasks, `error` "task: Type: message"."""

    state: str
    ended: int
    counts: Mapping[str, int]
    error: str | None = None


class Chunk(Protocol):
    """A stretch of a run's history, in order."""

    @property
    def run(self) -> RunInfo: ...

    @property
    def transitions(self) -> Sequence[Transition]:
        """``(element, attempt, code, t_ns)``; `code` indexes ``flowlane.core.states.RULES``."""
        ...

    @property
    def elapsed(self) -> Sequence[int]:
        """For each transition, ns spent in the state it leaves; NEVER for a task's first, and after a loss."""
        ...

    @property
    def reports(self) -> Mapping[tuple[int, int], Report]:
        """(element, attempt) → the executor's report, for attempts that started or ended in this chunk (no values)."""
        ...

    def events(self) -> Iterator[dict[str, Any]]:
        """The same as event dictionaries of the documented schema: slower, and all that most sinks need."""
        ...


@runtime_checkable
class Sink(Protocol):
    """Hears what happens in runs. See the module's text for thread and order.

    Two more members are looked for: a property `wants`, asked when a run starts, that is false when there is nobody to tell;
    and ``take_faults() -> list[str]``, asked after each call, for trouble that the sink copes with (a full disk).
    """

    def open(self, run: RunInfo) -> None: ...

    def write(self, chunk: Chunk) -> None: ...

    def close(self, run: RunInfo, outcome: RunOutcome) -> None: ...
