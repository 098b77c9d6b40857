"""Runs in memory: for tests, and for an engine that shall resume and cache within one process and leave nothing behind.

What is stored goes when the object does; `close` lets go of leases and nothing else. Several engines may share one.
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from flowlane.core.states import EXPANDED, RunState
from flowlane.core.tally import tally_rows
from flowlane.errors import RunExists, RunLocked, StoreError
from flowlane.runtime.blocks import owners
from flowlane.storage.port import CacheEntry, Lease, StoredAttempt, StoredBlock, StoredRun, StoredSession
from flowlane_plugins.stores.names import Named, choose, unknown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from flowlane.storage.port import AttemptRow, BlockRow, CacheRow, NewRun, NewSession, Owner, ResultRef

__all__ = ["MemoryStore"]


@dataclass(slots=True)
class _Session:
    stored: StoredSession
    order: int  # of all sessions of the store
    rows: dict[tuple[int, int], StoredAttempt] = field(default_factory=dict[tuple[int, int], StoredAttempt])
    blocks: dict[int, BlockRow] = field(default_factory=dict[int, "BlockRow"])
    requests: list[str] = field(default_factory=list[str])
    state: RunState = RunState.RUNNING
    error: str | None = None
    counts: dict[str, int] | None = None


@dataclass(slots=True)
class _Run:
    new: NewRun
    sessions: list[_Session] = field(default_factory=list[_Session])
    owner: Owner | None = None

    @property
    def last(self) -> _Session:
        return self.sessions[-1]


class MemoryStore:
    """See ``flowlane.storage.port.Store``. A result that others refer to is kept while they do."""

    def __init__(self, *, secret: bytes | None = None) -> None:
        self._secret = secrets.token_bytes(32) if secret is None else secret
        self._lock = threading.RLock()
        self._runs: dict[str, _Run] = {}
        self._results: dict[ResultRef, bytes] = {}
        self._cache: dict[bytes, CacheEntry] = {}
        self._sessions = 0

    @property
    def secret(self) -> bytes:
        return self._secret

    def open(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        with self._lock:
            for run in self._runs.values():
                run.owner = None

    # ── the life of a run ─────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, run: NewRun, session: NewSession) -> Lease:
        with self._lock:
            if run.id in self._runs:
                raise RunExists(f"run {run.id} is in the store already", id=run.id)
            made = _Run(run)
            lease = self._add_session(made, session)
            self._runs[run.id] = made
            return lease

    def reopen(self, run_id: str, session: NewSession, *, after: int | None = None) -> Lease:
        with self._lock:
            run = self._run(run_id)
            if run.owner is not None:
                pid, host = run.owner
                raise RunLocked(
                    f"run {run_id} belongs to process {pid} on {host}, which lives",
                    pid=pid,
                    host=host,
                    hint="wait for it, or stop it; one that is stuck can be taken over",
                )
            if after not in (None, run.last.stored.number):
                pid, host = run.last.stored.owner
                raise RunLocked(
                    f"run {run_id} was resumed by process {pid} on {host} a moment ago",
                    pid=pid,
                    host=host,
                    hint="try again",
                )
            return self._add_session(run, session)

    def seize(self, run_id: str, at: int) -> None:
        with self._lock:
            run = self._run(run_id)
            if not run.last.stored.ended:
                run.last.stored = replace(run.last.stored, ended=at)
                run.last.state, run.last.error = RunState.INTERRUPTED, "it was taken over"
            run.owner = None

    def write(
        self,
        lease: Lease,
        rows: Sequence[AttemptRow],
        cached: Sequence[CacheRow] = (),
        blocks: Sequence[BlockRow] = (),
    ) -> None:
        with self._lock:
            session = self._held(lease)
            for block in blocks:
                work = (b"".join(block.work),) if block.work else ()
                session.blocks[block.start] = block._replace(work=work)
            self._put(lease, session, rows)
            for key, task, parts, created, expires, element, attempt in cached:
                row = session.rows.get((element, attempt))
                if row is not None and row.result is not None:
                    self._cache.pop(key, None)
                    self._cache[key] = CacheEntry(key, task, parts, created, expires, row.result, row.size, 0)

    def close_run(
        self, lease: Lease, state: RunState, ended: int, error: str | None, counts: Mapping[str, int] | None = None
    ) -> None:
        with self._lock:
            session = self._held(lease)
            session.stored = replace(session.stored, ended=ended)
            session.state, session.error = state, error
            session.counts = None if counts is None else dict(counts)
            self._runs[lease.run].owner = None

    def request(self, run_id: str, what: str, at: int) -> None:  # noqa: ARG002 - when is of no interest here
        with self._lock:
            self._run(run_id).last.requests.append(what)

    def requests(self, lease: Lease) -> list[str]:
        with self._lock:
            run = self._runs.get(lease.run)
            return [] if run is None else list(run.sessions[lease.session - 1].requests)

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def runs(self, *, limit: int | None = None, workflow: str | None = None) -> list[StoredRun]:
        with self._lock:
            found = [_told(run) for run in self._latest_first() if workflow in (None, run.new.workflow)]
            return found[:limit]

    def find(self, text: str) -> StoredRun:
        with self._lock:
            names = [Named(run.new.id, run.new.name) for run in self._latest_first()]
            return _told(self._runs[choose(text, names)])

    def owner(self, run_id: str) -> Owner | None:
        with self._lock:
            run = self._runs.get(run_id)
            return None if run is None else run.owner

    def session(self, run_id: str, number: int | None = None) -> StoredSession:
        with self._lock:
            return self._session(run_id, number).stored

    def params(self, run_id: str) -> bytes:
        with self._lock:
            return self._run(run_id).new.params

    def attempts(
        self, run_id: str, session: int | None = None, element: int | range | None = None
    ) -> Iterator[StoredAttempt]:
        among = range(element, element + 1) if isinstance(element, int) else element
        with self._lock:
            rows = self._session(run_id, session).rows
            return iter([rows[key] for key in sorted(rows) if among is None or key[0] in among])

    def blocks(self, run_id: str, session: int | None = None) -> list[StoredBlock]:
        with self._lock:
            found = sorted(self._session(run_id, session).blocks.items())
            return [StoredBlock(*block[:7], sum(map(len, block.work))) for _, block in found]

    def work(self, run_id: str, session: int, start: int) -> bytes:
        with self._lock:
            block = self._session(run_id, session).blocks.get(start)
            if block is None or not block.work:
                raise StoreError(f"no work of task number {start} and those behind it is in the store")
            return bytes(block.work[0])

    def read(self, ref: ResultRef) -> bytes | memoryview:
        with self._lock:
            row = self._row(ref)
            result = None if row is None or row.result is None else self._results.get(row.result)
            result = self._results.get(ref) if result is None else result
            if result is None:
                raise StoreError(
                    f"the result of attempt {ref[3]} of task number {ref[2]} in run {ref[0]} is not in the store"
                )
            return result

    def results(self, run_id: str, session: int, elements: range) -> Iterator[tuple[int, int, bytes]]:
        with self._lock:
            rows = self._session(run_id, session).rows
            keys = sorted(key for key, row in rows.items() if key[0] in elements and row.result in self._results)
            return iter([(*key, self._results[rows[key].result]) for key in keys])  # type: ignore[index]

    # ── the cache ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def cached(self, key: bytes, now: int) -> CacheEntry | None:
        with self._lock:
            entry = self._cache.get(key)
            if entry is None or 0 < entry.expires <= now:
                return None
            self._cache[key] = entry = replace(entry, hits=entry.hits + 1)
            return entry

    def cache_entries(self, task: str | None = None) -> list[CacheEntry]:
        with self._lock:
            entries = [entry for entry in reversed(self._cache.values()) if task in (None, entry.task)]
            return sorted(entries, key=lambda entry: entry.created, reverse=True)

    def forget(self, keys: Collection[bytes]) -> int:
        with self._lock:
            count = sum(self._cache.pop(key, None) is not None for key in keys)
            self._sweep()
            return count

    # ── keeping it small ──────────────────────────────────────────────────────────────────────────────────────────────

    def remove(self, run_ids: Collection[str]) -> int:
        with self._lock:
            gone = {run_id for run_id in run_ids if run_id in self._runs and self._runs[run_id].owner is None}
            for run_id in gone:
                del self._runs[run_id]
            self._sweep()
            return len(gone)

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _sweep(self) -> None:
        """Drop results that no row and no entry of the cache refers to."""
        needed = {entry.result for entry in self._cache.values()}
        for run in self._runs.values():
            for session in run.sessions:
                needed.update(row.result for row in session.rows.values() if row.result is not None)
        for ref in self._results.keys() - needed:
            del self._results[ref]

    def _add_session(self, run: _Run, new: NewSession) -> Lease:
        lease = Lease(run.new.id, len(run.sessions) + 1)
        stored = StoredSession(lease.session, new.owner, new.graph, new.tasks, new.started, 0, new.versions)
        session = _Session(stored, self._sessions + 1)
        for element, ref in new.adopted:
            row = self._row(ref)
            if row is None:
                raise StoreError(
                    f"attempt {ref[3]} of task number {ref[2]} in run {ref[0]} is not in the store any more"
                )
            session.rows[element, row.attempt] = row._replace(element=element, adopted=True, origin=row.result or ref)
        self._put(lease, session, new.rows)
        self._sessions += 1
        run.sessions.append(session)
        run.owner = new.owner
        return lease

    def _put(self, lease: Lease, session: _Session, rows: Sequence[AttemptRow]) -> None:
        for element, attempt, state, reason, ready, started, ended, result, detail, origin in rows:
            ref: ResultRef | None = None
            source: StoredAttempt | None = None
            size = 0
            if result:
                ref = (lease.run, lease.session, element, attempt)
                self._results[ref] = blob = b"".join(result)
                size = len(blob)
            elif origin is not None:
                source = self._row(origin)
                ref, size = (None, 0) if source is None else (source.result, source.size)
            session.rows[element, attempt] = StoredAttempt(
                element,
                attempt,
                state,
                reason,
                ready,
                started,
                ended,
                detail,
                ref,
                size,
                source is not None,
                None if source is None else source.result or origin,
            )

    def _held(self, lease: Lease) -> _Session:
        run = self._runs.get(lease.run)
        if run is None:
            raise StoreError(f"run {lease.run} was removed from the store while it ran", lost=True)
        if run.last.stored.number != lease.session:
            pid, host = run.last.stored.owner
            raise StoreError(f"run {lease.run} was taken over by process {pid} on {host}", lost=True)
        if run.owner is None:
            raise StoreError(f"session {lease.session} of run {lease.run} is not held by this process", lost=True)
        return run.last

    def _run(self, run_id: str) -> _Run:
        run = self._runs.get(run_id)
        if run is None:
            raise unknown(run_id)
        return run

    def _session(self, run_id: str, number: int | None) -> _Session:
        run = self._run(run_id)
        if number is None:
            return run.last
        if not 0 < number <= len(run.sessions):
            raise unknown(run_id, session=number)
        return run.sessions[number - 1]

    def _row(self, ref: ResultRef) -> StoredAttempt | None:
        run = self._runs.get(ref[0])
        if run is None or not 0 < ref[1] <= len(run.sessions):
            return None
        return run.sessions[ref[1] - 1].rows.get((ref[2], ref[3]))

    def _latest_first(self) -> list[_Run]:
        return sorted(self._runs.values(), key=lambda run: run.last.order, reverse=True)


def _told(run: _Run) -> StoredRun:
    new, session = run.new, run.last
    return StoredRun(
        id=new.id,
        name=new.name,
        workflow=new.workflow,
        origin=new.origin,
        parent=new.parent,
        created=new.created,
        started=session.stored.started,
        ended=session.stored.ended,
        state=session.state,
        error=session.error,
        session=session.stored.number,
        tasks=session.stored.tasks,
        counts=_count(session) if session.counts is None else dict(session.counts),
    )


def _count(session: _Session) -> dict[str, int]:
    """The counts of a session of which nobody has told them."""
    last: dict[int, tuple[int, int]] = {}
    for element, attempt in sorted(session.rows):
        row = session.rows[element, attempt]
        if attempt or row.state != EXPANDED:
            last[element] = (row.state, row.reason)
    blocks = session.blocks.values()
    became = {each for block in blocks for each in owners(block.kind, block.owner, block.data)}
    told = tally_rows(
        session.stored.tasks + sum([block.length for block in blocks]),
        [(state, 1) for state, _ in last.values()],
        [last.get(element) for element in became],
    )
    return {str(state): tasks for state, tasks in told.items()}
