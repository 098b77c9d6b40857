"""Keeps one run: turns its history into one row an attempt, seals results, and hands both to the store.

The recorder calls it, on its own thread and before any sink, so that whatever a sink hears of is in the store. Rows that the
store would not take are kept, in order, and tried again with the next ones: the store holds a prefix of history, whatever
happens.

The loop's side of it is three numbers: it adds what it hands over (`admit`), asks whether too much is waiting (`behind`), and
is called when that is no longer so (`on_caught_up`). Each counter has one writer, so no lock is needed.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.core.states import DONE, REASONS, RULES, STATES, Reason, RunState, TaskState
from flowlane.runtime.encode import encode
from flowlane.runtime.events import measures
from flowlane.runtime.ports import NEVER
from flowlane.storage.blob import Payload, bound_to, bound_to_work, seal
from flowlane.storage.port import AttemptRow, CacheRow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowlane.core.messages import Transition
    from flowlane.errors import StoreError
    from flowlane.program import Program
    from flowlane.runtime.blocks import Describes, Grown
    from flowlane.runtime.codes import Codes
    from flowlane.runtime.ports import Report, RunInfo, RunOutcome
    from flowlane.storage.port import Blob, BlockRow, Lease, ResultRef, Store

__all__ = ["BYTES_WAITING", "NOT_BEGUN", "ROWS_WAITING", "CacheKey", "Ending", "Found", "Keeper", "ToCache", "Unstored"]

#: Rows and bytes of results that may wait to be written before nothing new is begun: 0.1 to 0.5 s of a disk's time.
ROWS_WAITING: Final = 50_000
BYTES_WAITING: Final = 256 << 20

_READY: Final = STATES.index(TaskState.READY)
_RUNNING: Final = STATES.index(TaskState.RUNNING)
_TARGETS: Final = tuple([STATES.index(rule.target) for rule in RULES])
_REASONS: Final = tuple([REASONS.index(rule.reason) for rule in RULES])
#: What has its row already: it is an earlier session's, or that of the success that is taken back.
_TOLD: Final = tuple(
    [rule.reason is Reason.RESTORED or (rule.reason is Reason.RESULT_LOST and rule.source in DONE) for rule in RULES]
)
_DONE: Final = tuple([STATES.index(state) for state in DONE])
_STARTED: Final = REASONS.index(Reason.STARTED)
_EXPANDED: Final = STATES.index(TaskState.EXPANDED)


class CacheKey(NamedTuple):
    """Where a result is to be found again: see `CacheRow`. `ttl` in ns, 0 for no end."""

    key: bytes
    task: str
    parts: str
    ttl: int


class ToCache(NamedTuple):
    """A result that is to be stored and cached: what `Report.value` holds on its way to the store."""

    payload: Payload
    key: CacheKey


class Found(NamedTuple):
    """In place of a result that was found in the cache: the row that has it."""

    origin: ResultRef


class Unstored(NamedTuple):
    """In place of a result that cannot be stored: why."""

    reason: str


class Ending(NamedTuple):
    """How a run ended as it is stored and told, and what the store would not do, or None."""

    outcome: RunOutcome
    fault: StoreError | None


class _NotBegun:
    __slots__ = ()


#: In place of a result: the attempt was taken back before any executor had it.
NOT_BEGUN: Final = _NotBegun()


class Keeper:
    """Writes the session that `lease` is for. `on_fault`, `on_request` and `on_caught_up` are called on the recorder's thread.

    codes     fingerprints of the run's functions, taken before any task could change what they refer to
    describe  tells what a graph looks like that a task has become
    listener  called with (transitions, reports) once they are committed; the reports' values are gone by then
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        *,
        on_fault: Callable[[StoreError], object],
        on_request: Callable[[str], object],
        on_caught_up: Callable[[], object],
        codes: Codes,
        describe: Callable[[Program], Describes],
        listener: Callable[[list[Transition], dict[tuple[int, int], Report]], None] | None = None,
    ) -> None:
        self.store = store
        self.lease = lease
        self.on_fault = on_fault
        self.on_caught_up = on_caught_up
        self.listener = listener
        self.codes = codes
        self.describe = describe
        self.waiting = False  # the loop waits to be told that there is room; set by the loop, cleared by the recorder
        self.ending: Ending | None = None  # once the end is stored, or cannot be
        self._on_request = on_request
        self._offset = 0
        self._names: Sequence[str] = ()
        self._ready = self._started = array("q")
        self._open: dict[int, int] = {}
        self._intended: dict[tuple[int, int], int] = {}  # (element, attempt) → from when it may have begun
        self._rows: list[AttemptRow] = []
        self._cached: list[CacheRow] = []
        self._grown: deque[Grown] = deque()  # what the loop has added, and is not stored yet
        self._blocks: list[BlockRow] = []
        self._origins: dict[int, ResultRef] = {}
        self._adopted: dict[int, AttemptRow] = {}  # of the loop: rows of what an earlier session had finished
        self._heard: set[str] = set()
        self._rows_in = self._bytes_in = 0  # of the loop
        self._rows_out = self._bytes_out = 0  # of the recorder: what is committed,
        self._rows_folded = self._bytes_folded = 0  # and what it has seen

    # ── the loop's side ───────────────────────────────────────────────────────────────────────────────────────────

    def admit(self, rows: int, nbytes: int = 0) -> None:
        """So much is handed over: rows, and bytes of results and of output."""
        self._rows_in += rows
        self._bytes_in += nbytes

    def grow(self, block: Grown) -> None:
        """More tasks have come into being. Before history that tells of them is handed over."""
        self._grown.append(block)

    def adopt(self, row: AttemptRow) -> None:
        """A task that comes into being ends as an earlier session saw it end; `row` is stored in the place of that news."""
        self._adopted[row.element] = row

    def go_on(self, element: int, origin: ResultRef) -> None:
        """A task becomes others again that an earlier session had begun with: all its rows say where."""
        self._origins[element] = origin

    @property
    def admitted(self) -> int:
        """Rows that were handed over so far."""
        return self._rows_in

    @property
    def committed(self) -> int:
        """As many of them, the first, are in the store. Those of one step get there together. Any thread."""
        return self._rows_out

    def behind(self, share: float = 1.0) -> bool:
        """Whether more than `share` of what may wait is waiting. Any thread."""
        return (
            self._rows_in - self._rows_out > ROWS_WAITING * share
            or self._bytes_in - self._bytes_out > BYTES_WAITING * share
        )

    # ── the recorder's side ────────────────────────────────────────────────────────────────────────────────────────

    def open(self, run: RunInfo) -> None:
        """Get to know the run. Before anything else."""
        self._offset = run.wall_ns - run.mono_ns
        self._names = run.names
        self._ready = array("q", [NEVER]) * len(run.names)
        self._started = self._ready[:]

    def write(self, transitions: Sequence[Transition], reports: Mapping[tuple[int, int], Report]) -> None:
        """Commit a stretch of history. Raises StoreError; then it is kept, and `flush` or the next `write` tries again."""
        self._bytes_folded += self._fold(transitions, reports)
        self._bytes_folded += sum([len(report.output) for report in reports.values() if report.output])
        self._rows_folded += len(transitions)
        self.flush()

    def intend(self, elements: Sequence[tuple[int, int]], t: int) -> None:
        """Commit that these (element, attempt) may have begun from monotonic time `t` on. Raises StoreError."""
        offset = self._offset
        for element, attempt in elements:
            self._intended[element, attempt] = t
            ready = self._ready[element] + offset
            self._rows.append(AttemptRow(element, attempt, _RUNNING, _STARTED, ready, t + offset, 0, (), None))
        self.flush()

    def flush(self) -> None:
        """Commit what is left. Raises StoreError."""
        while self._grown:
            self._blocks.append(self._bound(self._grown.popleft()))
        if self._blocks:
            self.store.write(self.lease, self._rows, self._cached, self._blocks)
            self._rows, self._cached, self._blocks = [], [], []
        elif self._rows:
            self.store.write(self.lease, self._rows, self._cached)
            self._rows, self._cached = [], []
        self._rows_out, self._bytes_out = self._rows_folded, self._bytes_folded

    def requests(self) -> None:
        """Look whether another process asked for something."""
        for what in self.store.requests(self.lease):
            if what not in self._heard:
                self._heard.add(what)
                self._on_request(what)

    def close(self, outcome: RunOutcome) -> None:
        """Commit what is left, and how the run ended. Raises StoreError."""
        self.flush()
        ended, counts = outcome.ended + self._offset, outcome.counts or None
        self.store.close_run(self.lease, RunState(outcome.state), ended, outcome.error, counts)

    def _bound(self, block: Grown) -> BlockRow:
        """A block as it is stored."""
        row, description, work = block
        if description is not None:
            row = row._replace(data=description.packed())
        if work is not None:
            row = row._replace(work=seal(work, self.store.secret, bound_to_work(*self.lease, row.start)))
        return row

    # ── folding ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _fold(self, transitions: Sequence[Transition], reports: Mapping[tuple[int, int], Report]) -> int:
        """Make rows of transitions; bytes of results among them. 3 µs a task: it shares the GIL with the loop."""
        ready, started, opened, offset = self._ready, self._started, self._open, self._offset
        if len(ready) < len(self._names):  # there is more to do than there was
            more = array("q", [NEVER]) * (len(self._names) - len(ready))
            ready.extend(more)
            started.extend(more)
        add, report_of, secret = self._rows.append, reports.get, self.store.secret
        run, session = self.lease
        total = 0
        for element, attempt, code, t in transitions:
            target = _TARGETS[code]
            if target == _READY:
                ready[element] = t
                started[element] = NEVER
                continue
            if target == _RUNNING:
                started[element] = t
                opened[element] = attempt
                continue
            if _TOLD[code]:
                if self._adopted and (row := self._adopted.pop(element, None)) is not None:
                    add(row)
                continue
            if target == _EXPANDED and started[element] == NEVER:
                started[element] = t
            result: Blob = ()
            detail: str | None = None
            origin: ResultRef | None = None
            report = report_of((element, attempt))
            if report is not None:
                value = report.value
                if type(value) is Payload:
                    total += value.nbytes  # also of one that came too late to count: it was admitted
                    if target in _DONE:
                        result = seal(value, secret, bound_to((run, session, element, attempt)))
                elif type(value) is ToCache:
                    total += value.payload.nbytes
                    if target in _DONE:
                        result = seal(value.payload, secret, bound_to((run, session, element, attempt)))
                        self._cached.append(_cache_row(value.key, t + offset, element, attempt))
                elif type(value) is Found:
                    origin = value.origin
                if report.cpu >= 0 or report.failure is not None or type(value) is Unstored:
                    detail = _detail(report)
            if self._origins and not result and origin is None:
                origin = self._origins.get(element)
            came, began = ready[element], started[element]
            if self._intended and (element, attempt) in self._intended:
                intended = self._intended.pop((element, attempt))
                if began == NEVER and (report is None or report.value is not NOT_BEGUN):
                    began = intended  # whatever its executor says: it was let go, and who must not begin twice may have begun
            add(
                AttemptRow(
                    element,
                    attempt,
                    target,
                    _REASONS[code],
                    came + offset if came != NEVER else 0,
                    began + offset if began != NEVER else 0,
                    t + offset if target != _EXPANDED else 0,
                    result,
                    detail,
                    origin,
                )
            )
            opened.pop(element, None)
        if opened:  # they run for longer than this stretch: people and a resume want to know
            for element, attempt in opened.items():
                came, began = ready[element] + offset, started[element] + offset
                add(AttemptRow(element, attempt, _RUNNING, _STARTED, came, began, 0, (), None))
            opened.clear()
        return total


def _cache_row(key: CacheKey, now: int, element: int, attempt: int) -> CacheRow:
    return CacheRow(key.key, key.task, key.parts, now, now + key.ttl if key.ttl else 0, element, attempt)


def _detail(report: Report) -> str:
    """What else is to be kept of an attempt, as JSON."""
    value: Any = report.value
    cpu, pickling, worker = report.cpu, report.pickling, report.worker
    usual = report.failure is None and type(value) is not Unstored and worker.replace(" ", "").isalnum()
    if usual and report.rss < 0 <= min(cpu, pickling, report.bytes_in, report.bytes_out):
        # nearly every task of the `processes` executor
        figures = (worker, cpu / 1e9, report.bytes_in, report.bytes_out, pickling / 1e9)
        return '{"worker":"%s","cpu_s":%.9f,"bytes_in":%d,"bytes_out":%d,"pickling_s":%.9f}' % figures  # noqa: UP031
    fields: dict[str, Any] = {"worker": worker or None, **measures(report)}
    if type(value) is Unstored:
        fields["unstored"] = value.reason
    if report.failure is not None:
        fields["error"] = report.failure.to_dict()
    return encode(fields)
