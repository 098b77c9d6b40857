"""What flowlane asks of a store: to keep runs, their attempts and results, so that another process can go on with them.

A store keeps, by run, *sessions*: the first is the run as it was started, each resume opens another. A session is
self-contained: what an earlier one had finished is *adopted* into it, in the same transaction that opens it, so that no
process ever finds a session that does not have it. So the state of a run is the state of its latest session, and a changed
workflow may number its tasks anew.

Not all tasks are there when a session is opened. Those that come into being later (elements of maps, graphs that tasks become)
are told in *blocks* of consecutive numbers: `write` commits a block with, or before, the first row of its tasks.

Order is the promise. `write` gets the rows of a run in the order of history and commits them all, or none, before it
returns. So the store always holds a prefix of what happened, and whatever is reported as succeeded is in it.

Threads: one thread (the journal's) calls `write` and `close_run`; everything else may be called from any thread, also
while that one writes. Every call blocks until it is done.

Ownership: a session belongs to the process that opened it, by a lock that the kernel lets go when that process dies, *and*
by the session's number, which every write proves. So a process that was stopped, and whose run was taken over, cannot write.

Errors: StoreError for whatever the disk or the database will not do (full, read-only, gone, damaged), with a hint;
RunLocked where another process owns the run; RunExists where one begins that is there already; UnknownRun where there is none
of that name. Nothing else is raised.

Times are integer nanoseconds since the Unix epoch, 0 where it did not come to that. Blobs are opaque here; see ``blob``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from flowlane.core.states import RunState

__all__ = [
    "INLINE_MAX",
    "RUN_ID",
    "AttemptRow",
    "Blob",
    "BlockRow",
    "CacheEntry",
    "CacheRow",
    "Lease",
    "NewRun",
    "NewSession",
    "Owner",
    "ResultRef",
    "Store",
    "StoredAttempt",
    "StoredBlock",
    "StoredRun",
    "StoredSession",
]

#: Bytes of a result that are kept beside its row; a larger one is a file of its own, where the store has files.
INLINE_MAX: Final = 64 * 1024

#: What an id of a run looks like. Ids become file names, so nothing else is taken for one, or removed as a run's.
RUN_ID: Final = re.compile(r"[0-9a-f]{4,32}")

#: A sealed value, as the pieces that have to be written one after the other: an array's data is not copied to join them.
Blob: TypeAlias = "Sequence[bytes | bytearray | memoryview]"


class Owner(NamedTuple):
    """A process, as somebody who is refused wants to read it."""

    pid: int
    host: str


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run that begins.

    id, name  what `RUN_ID` fits (ours have 12 digits), and the memorable name
    workflow  its name
    origin    where the workflow is: JSON text of ours, or "" where it cannot be found again. For people: who executes what it
              names takes the one that is sealed with the parameters
    params    what it was asked to do, sealed: see ``storage.asked``
    created   when
    parent    the run that it was forked from, or None
    """

    id: str
    name: str
    workflow: str
    origin: str
    params: bytes
    created: int
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a process is about to carry out.

    graph    the tasks, edges and fingerprints of this session: bytes of ours (compressed JSON)
    tasks    how many there are
    adopted  rows to copy into it: (element in this session, the original row), state and times as they were. Results are not
             copied, and stay as long as somebody refers to them
    rows     rows that it begins with besides
    """

    owner: Owner
    graph: bytes
    tasks: int
    started: int
    versions: str  # "flowlane 0.1.0, CPython 3.11.7", for people
    adopted: Sequence[tuple[int, ResultRef]] = ()
    rows: Sequence[AttemptRow] = ()


class Lease(NamedTuple):
    """The right to write one session of a run, held from `begin` or `reopen` to `close_run`, or until somebody seizes it."""

    run: str
    session: int  # counts from 1


ResultRef: TypeAlias = "tuple[str, int, int, int]"
"""(run, session, element, attempt): the row that a result was written with."""


class AttemptRow(NamedTuple):
    """One attempt of one task, as far as it has come. A row of the same element and attempt replaces the one before.

    attempt  from 1; 0 for a task that ended before it was ever ready
    state    index into ``core.states.STATES``: RUNNING while it is out, RETRYING when another attempt follows
    reason   index into ``core.states.REASONS`` of the last transition
    result   the sealed value of a success; () where there is none, or it cannot be stored
    detail   JSON text (worker, what was measured, the failure, why a value is not stored), or None
    origin   the row that has the result, of a task whose result was found in the cache; it stays as long as this row. Where
             that was removed in the meantime, the row is stored without a result
    """

    element: int
    attempt: int
    state: int
    reason: int
    ready: int
    started: int
    ended: int
    result: Blob
    detail: str | None
    origin: ResultRef | None = None


class BlockRow(NamedTuple):
    """Tasks number `start` to ``start + length - 1`` of a session: what they are. See ``core.elements`` for `kind`.

    owner   the task that has become them; of elements of maps that of the first map of the chain
    first   elements of maps: the index of the first of them; a merge: its number in its level
    level   of a merge, else 0
    data    bytes of ours: for a graph its description, for elements of maps which maps, and their keys
    work    of a task that returned more work: that, sealed, so that it need not run again to say it; () where it cannot be stored
    """

    start: int
    length: int
    kind: int
    owner: int
    first: int
    level: int
    data: bytes
    work: Blob = ()


class CacheRow(NamedTuple):
    """A result to be found again by its key.

    key      32 bytes
    task     the task's name, for people
    parts    JSON text of ours: what the key was made of, to explain a miss
    expires  when it is too old; 0 for never
    element, attempt  the row of this run that has the result
    """

    key: bytes
    task: str
    parts: str
    created: int
    expires: int
    element: int
    attempt: int


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session, as it was opened and as it ended; `ended` is 0 while it runs, and for ever when its process was killed."""

    number: int
    owner: Owner
    graph: bytes
    tasks: int
    started: int
    ended: int
    versions: str


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run for people: the state of its latest session.

    state   RUNNING also when its process is dead: `Store.owner` knows
    counts  state → number of tasks of the latest session, as whoever closed it said. Where nobody did, as its rows and blocks
            have it, and what has no row is pending: ``core.tally.tally_rows`` and ``runtime.blocks.owners`` say how
    error   "task: Type: message" of a run that failed
    """

    id: str
    name: str
    workflow: str
    origin: str
    parent: str | None
    created: int
    started: int
    ended: int
    state: RunState
    error: str | None
    session: int
    tasks: int
    counts: dict[str, int] = field(default_factory=dict[str, int])


class StoredAttempt(NamedTuple):
    """An `AttemptRow` as it was stored.

    result  where its result is, or None: what `Store.read` takes. Of an adopted row the original's.
    size    bytes of the sealed result, 0 without one
    adopted whether another row has the result: an earlier session, the run it was forked from, or the one that filled the
            cache did the work
    origin  that row. Of a row without a result the one that it was copied from: of a task that had become others, they are in its
            session, or in that of its own origin
    """

    element: int
    attempt: int
    state: int
    reason: int
    ready: int
    started: int
    ended: int
    detail: str | None
    result: ResultRef | None
    size: int
    adopted: bool
    origin: ResultRef | None = None


class StoredBlock(NamedTuple):
    """A `BlockRow` as it was stored; `size` is that of its work, 0 where it has none."""

    start: int
    length: int
    kind: int
    owner: int
    first: int
    level: int
    data: bytes
    size: int


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A cached result; see `CacheRow`."""

    key: bytes
    task: str
    parts: str
    created: int
    expires: int
    result: ResultRef
    size: int
    hits: int


@runtime_checkable
class Store(Protocol):
    """Keeps runs. See the module's text for threads, order, ownership and errors."""

    @property
    def secret(self) -> bytes:
        """The key that blobs of this store are sealed with, at least 32 bytes; not kept beside them."""
        ...

    def open(self) -> None:
        """Get ready, making what is not there yet. Idempotent."""
        ...

    def close(self) -> None:
        """Let go of everything. Leases that are still held end as if the process had died. Idempotent."""
        ...

    # ── the life of a run ────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, run: NewRun, session: NewSession) -> Lease:
        """Record a run that starts, with what its session begins with, and own it.

        RunExists when a run of that id is there, whatever became of it: of two that begin one id at a time one is told so.
        """
        ...

    def reopen(self, run_id: str, session: NewSession, *, after: int | None = None) -> Lease:
        """Own a run that was begun before, in a new session. RunLocked while another process owns it.

        `after` is the session that what is adopted was read from. RunLocked when it is not the latest any more: then somebody
        has resumed the run meanwhile, and what was read may not be all that was done.
        """
        ...

    def seize(self, run_id: str, at: int) -> None:
        """End the latest session of a run in the place of its owner, which is stopped, or out of reach: as interrupted.

        Nobody owns the run then, and whatever that owner writes from then on is refused. So what is read afterwards is all
        that it ever did. Nothing happens to a session that has ended.
        """
        ...

    def write(
        self,
        lease: Lease,
        rows: Sequence[AttemptRow],
        cached: Sequence[CacheRow] = (),
        blocks: Sequence[BlockRow] = (),
    ) -> None:
        """Commit rows, and the blocks of tasks that they may be of. A block that is there already is replaced.

        Raises StoreError when the lease was taken over (`error.lost` is then true), the disk will not have them, or there are
        more tasks than a store can number.
        """
        ...

    def close_run(
        self, lease: Lease, state: RunState, ended: int, error: str | None, counts: Mapping[str, int] | None = None
    ) -> None:
        """Record how the session ended, and let go of it. `counts` are those of `StoredRun`, None where nobody has counted."""
        ...

    def request(self, run_id: str, what: str, at: int) -> None:
        """Leave a word for the owner of a run: "cancel"."""
        ...

    def requests(self, lease: Lease) -> list[str]:
        """What was asked of this session since it began. Cheap: asked twice a second."""
        ...

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def runs(self, *, limit: int | None = None, workflow: str | None = None) -> list[StoredRun]:
        """Runs, the latest first."""
        ...

    def find(self, text: str) -> StoredRun:
        """The run that `text` means: its name (the latest of that name), an id or a prefix of one, or "last".

        Raises UnknownRun, with the nearest names; or with those that fit when there are several.
        """
        ...

    def owner(self, run_id: str) -> Owner | None:
        """The living process that owns the run, or None."""
        ...

    def session(self, run_id: str, number: int | None = None) -> StoredSession:
        """A session of a run, the latest unless told. Raises UnknownRun."""
        ...

    def params(self, run_id: str) -> bytes:
        """What the run was asked to do, sealed, as it was begun with."""
        ...

    def attempts(
        self, run_id: str, session: int | None = None, element: int | range | None = None
    ) -> Iterator[StoredAttempt]:
        """All rows of a session (the latest unless told), or those of one task or a range of them, by element and attempt."""
        ...

    def blocks(self, run_id: str, session: int | None = None) -> list[StoredBlock]:
        """What came into being in a session (the latest unless told), in order of numbers."""
        ...

    def work(self, run_id: str, session: int, start: int) -> bytes:
        """The work of the block that begins at `start`, sealed. Raises StoreError when it is not there."""
        ...

    def read(self, ref: ResultRef) -> bytes | memoryview:
        """A sealed result. Raises StoreError when it is not there or cannot be read; whether it is whole, ``blob`` tells."""
        ...

    def results(self, run_id: str, session: int, elements: range) -> Iterator[tuple[int, int, bytes]]:
        """(element, attempt, sealed result) of a range of tasks, those of adopted rows too: as many as can be had at once.

        A result that is not among them may be there all the same, and is to be had from `read`.
        """
        ...

    # ── the cache ────────────────────────────────────────────────────────────────────────────────────────────────

    def cached(self, key: bytes, now: int) -> CacheEntry | None:
        """The entry of `key`, unless it has expired."""
        ...

    def cache_entries(self, task: str | None = None) -> list[CacheEntry]:
        """All entries, expired ones too, or those of one task; the latest first."""
        ...

    def forget(self, keys: Collection[bytes]) -> int:
        """Remove entries from the cache; how many there were."""
        ...

    # ── keeping it small ─────────────────────────────────────────────────────────────────────────────────────────

    def remove(self, run_ids: Collection[str]) -> int:
        """Remove runs that nobody owns, with all that only they have; how many."""
        ...
