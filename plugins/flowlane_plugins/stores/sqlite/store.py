"""The store: a folder with a database, large results and locks; `Store` of ``flowlane.storage.port``, which says the rest.

Whoever writes a session proves in the same transaction that it is the latest of its run, and has not ended. The write lock
of the database also orders what is done to the folder (locks replaced, files removed) between processes.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from flowlane.core.states import RunState
from flowlane.errors import RunExists, RunLocked, StoreError
from flowlane.storage.port import RUN_ID, Lease, Owner
from flowlane.storage.private import own_folder
from flowlane_plugins.stores.sqlite import reading
from flowlane_plugins.stores.sqlite import rows as hot
from flowlane_plugins.stores.sqlite.counting import count_rows
from flowlane_plugins.stores.sqlite.faults import telling
from flowlane_plugins.stores.sqlite.key import KEY_BYTES, load_key
from flowlane_plugins.stores.sqlite.locks import RunLock, holder
from flowlane_plugins.stores.sqlite.reading import Reading
from flowlane_plugins.stores.sqlite.salvage import Salvage
from flowlane_plugins.stores.sqlite.schema import crc, row_id
from flowlane_plugins.stores.sqlite.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowlane.storage.port import AttemptRow, BlockRow, CacheRow, NewRun, NewSession, ResultRef

__all__ = ["SqliteStore"]


class _Hold:
    """What this process has of a session that it owns."""

    __slots__ = ("adopted", "lock", "owner", "sid", "watch")

    def __init__(self, sid: int, lock: RunLock, owner: Owner, adopted: set[int]) -> None:
        self.sid = sid
        self.lock = lock
        self.owner = owner
        self.adopted = adopted  # row ids that say where their result is; one that is replaced does no longer
        self.watch = -1  # the database's version when there was no request


class SqliteStore(Reading, Upkeep, Salvage):
    """Runs in the SQLite file `path`, made with its folder when it is opened.

    `durability`: what a committed row survives. "process": that of flowlane, whatever the way (a power cut may lose the last
    seconds, in order). "power": also a power cut, for an fsync each commit.
    `secret`: the key that results are sealed with, at least 32 bytes; by default the user's own (see ``key``).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Literal["process", "power"] = "process",
        secret: bytes | None = None,
    ) -> None:
        if durability not in ("process", "power"):
            raise ValueError(f"durability must be 'process' or 'power', not {durability!r}")
        if secret is not None and len(secret) < KEY_BYTES:
            raise ValueError(f"a secret has at least {KEY_BYTES} bytes, not {len(secret)}")
        super().__init__(path, power=durability == "power")
        self._secret = secret
        self._holds: dict[Lease, _Hold] = {}
        self._watching = threading.Lock()
        self._watcher: sqlite3.Connection | None = None

    @property
    def secret(self) -> bytes:
        if self._secret is None:
            with telling(self._path):
                self._secret = load_key(self._folder)
        return self._secret

    def open(self) -> None:
        if self._database.is_open:
            return
        self._database.open()
        try:
            with telling(self._path):
                own_folder(self._locks)
                self._files.open()
            self.secret  # noqa: B018 - one that cannot be had is told now, not with the first result
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        with self._watching:
            if self._watcher is not None:
                with suppress(sqlite3.Error):
                    self._watcher.close()
                self._watcher = None
        if self._database.is_open:
            for lease in list(self._holds):
                self._let_go(lease)
        self._database.close()

    # ── the life of a run ─────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, run: NewRun, session: NewSession) -> Lease:
        lock: RunLock | None = None
        path = self._lock_path(run.id)
        try:
            with self._database.writing() as db:
                if db.execute("SELECT 1 FROM runs WHERE id = ?", (run.id,)).fetchone():
                    raise RunExists(f"run {run.id} is in {self._path} already", id=run.id)
                fields = [_text(one) for one in (run.id, run.name, run.workflow, run.origin, run.parent)]
                cursor = db.execute(
                    "INSERT INTO runs (id, name, workflow, origin, parent, created, crc, session, latest, params)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0, ?)",
                    (*fields, run.created, crc(*fields, run.created), run.params),
                )
                lock = RunLock.take(path, session.owner)
                sid, adopted = self._add_session(db, cursor.lastrowid or 0, 1, session)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return self._hold(Lease(run.id, 1), _Hold(sid, lock, session.owner, adopted))

    def reopen(self, run_id: str, session: NewSession, *, after: int | None = None) -> Lease:
        lock: RunLock | None = None
        try:
            with self._database.writing() as db:
                key, number, last = reading.latest(db, self._path, run_id)
                path = self._lock_path(run_id)
                self._refuse_locked(run_id, holder(path), last, session.owner)
                if after not in (None, number):
                    raise RunLocked(
                        f"run {run_id} was resumed by process {last.owner.pid} on {last.owner.host} a moment ago",
                        pid=last.owner.pid,
                        host=last.owner.host,
                        hint="try again",
                    )
                lock = RunLock.take(path, session.owner)
                sid, adopted = self._add_session(db, key, number + 1, session)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return self._hold(Lease(run_id, number + 1), _Hold(sid, lock, session.owner, adopted))

    def seize(self, run_id: str, at: int) -> None:
        with self._database.writing() as db:
            _, number, last = reading.latest(db, self._path, run_id)
            if not last.ended:
                self._end_session(db, last.sid, RunState.INTERRUPTED, at, "it was taken over")
        # Its lock goes once that is committed, not before: a commit that fails must leave the owner what it has.
        with self._database.writing() as db:
            if reading.latest(db, self._path, run_id)[1] == number:
                with suppress(FileNotFoundError):
                    os.unlink(self._lock_path(run_id))

    def write(
        self,
        lease: Lease,
        rows: Sequence[AttemptRow],
        cached: Sequence[CacheRow] = (),
        blocks: Sequence[BlockRow] = (),
    ) -> None:
        hold = self._held(lease)
        with telling(self._path):
            bound = hot.bind(hold.sid, rows, self._files)
            made = hot.bind_blocks(hold.sid, blocks) if blocks else ()
        with self._database.writing() as db:
            self._prove(db, lease)
            if made:
                db.executemany(hot.PUT_BLOCK, made)
            adopted = self._put(db, bound, hold.adopted)
            if cached:
                self._write_cached(db, hold, cached)
            if self._hits:
                self._count_hits(db)
        if adopted:
            hold.adopted.update(adopted)

    def close_run(
        self, lease: Lease, state: RunState, ended: int, error: str | None, counts: Mapping[str, int] | None = None
    ) -> None:
        hold = self._held(lease)
        with self._database.writing() as db:
            self._prove(db, lease)
            self._end_session(db, hold.sid, state, ended, error, counts)
            if self._hits:
                self._count_hits(db)
        self._let_go(lease)

    def request(self, run_id: str, what: str, at: int) -> None:
        with self._database.writing() as db:
            _, _, last = reading.latest(db, self._path, run_id)
            db.execute("INSERT INTO requests (sid, what, at) VALUES (?, ?, ?)", (last.sid, _text(what), at))

    def requests(self, lease: Lease) -> list[str]:
        hold = self._held(lease)
        with self._watching, telling(self._path):
            if self._watcher is None:
                self._watcher = self._database.watcher()
            # Changes with every commit of somebody else's, which for this connection includes our own writes.
            (version,) = self._watcher.execute("PRAGMA data_version").fetchone()
            if version == hold.watch:
                return []
            query = "SELECT what FROM requests WHERE sid = ? ORDER BY rowid"
            found = [what for (what,) in self._watcher.execute(query, (hold.sid,))]
            hold.watch = -1 if found else version
            return found

    def owner(self, run_id: str) -> Owner | None:
        if not RUN_ID.fullmatch(run_id):
            return None
        with telling(self._path):
            return holder(self._lock_path(run_id))

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _refuse_locked(self, run_id: str, owner: Owner | None, last: reading.Latest, asking: Owner) -> None:
        if owner is not None:
            raise RunLocked(
                f"run {run_id} belongs to process {owner.pid} on {owner.host}, which lives",
                pid=owner.pid,
                host=owner.host,
                hint="wait for it, or stop it; one that is stuck can be taken over",
            )
        if not last.ended and last.owner.host != asking.host:
            raise RunLocked(
                f"run {run_id} was begun by process {last.owner.pid} on {last.owner.host}, and whether that lives cannot be"
                f" seen from {asking.host}",
                pid=last.owner.pid,
                host=last.owner.host,
                hint="if it does not, take the run over",
            )

    def _add_session(self, db: sqlite3.Connection, key: int, number: int, session: NewSession) -> tuple[int, set[int]]:
        """A session and what it begins with; its sid, and the ids of rows that say where their result is."""
        fields = (
            number,
            session.owner.pid,
            _text(session.owner.host),
            session.tasks,
            session.started,
            _text(session.versions),
            crc(session.graph),
        )
        cursor = db.execute(
            "INSERT INTO sessions (run, number, pid, host, tasks, started, versions, graph_crc, crc, graph)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (key, *fields, crc(*fields), session.graph),
        )
        sid = cursor.lastrowid or 0
        if sid >> 23:
            raise StoreError(
                f"{self._path} has had {sid:,} sessions, and takes no more", hint="begin a new state directory"
            )
        db.execute("UPDATE runs SET session = ?, latest = ? WHERE key = ?", (number, sid, key))
        adopted = self._adopt(db, sid, session.adopted)
        adopted |= self._put(db, hot.bind(sid, session.rows, self._files), adopted)
        return sid, adopted

    def _adopt(self, db: sqlite3.Connection, sid: int, pairs: Sequence[tuple[int, ResultRef]]) -> set[int]:
        """Copy rows into a session; their ids there."""
        sources = self._rows_of(db, [ref for _, ref in pairs])
        found = hot.read_sources(db, self._path, sources)
        rows: list[tuple[Any, ...]] = []
        adopted: list[tuple[int, int]] = []
        for (element, ref), source in zip(pairs, sources, strict=True):
            if source not in found:
                run, _, number, attempt = ref
                raise StoreError(
                    f"attempt {attempt} of task number {number} in run {run} is not in {self._path} any more"
                )
            fields, detail, origin = found[source]
            row = row_id(sid, element, ref[3])
            fields = (row, *fields[1:])
            rows.append((*fields, hot.attempt_crc(fields, detail, origin), detail, None))
            adopted.append((row, origin))
        db.executemany(hot.UPSERT, rows)
        db.executemany("INSERT OR REPLACE INTO adopted (row, origin) VALUES (?, ?)", adopted)
        return {row for row, _ in adopted}

    def _put(self, db: sqlite3.Connection, bound: hot.Bound, before: set[int]) -> set[int]:
        """Write rows. `before` are those of the session that say where their result is; the ids of others that now do."""
        origins = self._settle_origins(db, bound) if bound.origins else []
        try:
            db.executemany(hot.UPSERT, bound.rows)
        except UnicodeEncodeError:
            db.executemany(hot.UPSERT, hot.clean(bound.rows))
        if before:
            db.executemany("DELETE FROM adopted WHERE row = ?", [(row[0],) for row in bound.rows if row[0] in before])
        if origins:
            db.executemany("INSERT OR REPLACE INTO adopted (row, origin) VALUES (?, ?)", origins)
        if bound.files:
            db.executemany("INSERT OR REPLACE INTO files (row, digest) VALUES (?, ?)", bound.files)
            for digest, blob in bound.large.items():
                if not self._files.has(digest):  # swept since it was written; nobody sweeps during a transaction
                    self._files.put(blob)
        return {row for row, _ in origins}

    def _end_session(
        self,
        db: sqlite3.Connection,
        sid: int,
        state: RunState,
        ended: int,
        error: str | None,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        text = None if counts is None else json.dumps(dict(counts), separators=(",", ":"))
        rows = count_rows(db, sid)
        error = _text(error)
        db.execute(
            "UPDATE sessions SET ended = ?, state = ?, error = ?, counts = ?, rows = ?, end_crc = ? WHERE sid = ?",
            (ended, str(state), error, text, rows, crc(ended, str(state), error, text, rows), sid),
        )

    def _hold(self, lease: Lease, hold: _Hold) -> Lease:
        self._holds[lease] = hold
        self._places[hold.sid] = (lease.run, lease.session)
        return lease

    def _held(self, lease: Lease) -> _Hold:
        hold = self._holds.get(lease)
        if hold is None:
            raise StoreError(f"session {lease.session} of run {lease.run} is not held by this process", lost=True)
        return hold

    def _let_go(self, lease: Lease) -> None:
        """Release the lock; the file is removed in a transaction, or stays, unlocked, where there can be none."""
        hold = self._holds.pop(lease, None)
        if hold is None:
            return
        try:
            with self._database.writing():
                hold.lock.release()
        except StoreError:
            hold.lock.release(unlink=False)

    def _prove(self, db: sqlite3.Connection, lease: Lease) -> None:
        """Raise StoreError(lost) unless the lease's session is the latest of its run, and runs."""
        found = db.execute(
            "SELECT r.session, s.ended, s.pid, s.host FROM runs r JOIN sessions s ON s.sid = r.latest WHERE r.id = ?",
            (lease.run,),
        ).fetchone()
        if found is None:
            raise StoreError(f"run {lease.run} was removed from {self._path} while it ran", lost=True)
        session, ended, pid, host = found
        if session != lease.session:
            raise StoreError(f"run {lease.run} was taken over by process {pid} on {host}", lost=True)
        if ended:
            raise StoreError(f"run {lease.run} was taken over, or has ended", lost=True)

    def _rows_of(self, db: sqlite3.Connection, refs: Sequence[ResultRef]) -> list[int]:
        """The row id of each of `refs`; 0, which no row has, where its session is not there."""
        sids: dict[tuple[str, int], int] = {}
        rows: list[int] = []
        for run_id, number, element, attempt in refs:
            sid = sids.get((run_id, number))
            if sid is None:
                sid = sids[run_id, number] = reading.sid_of(db, run_id, number) or 0
            rows.append(row_id(sid, element, attempt) if sid else 0)
        return rows

    def _settle_origins(self, db: sqlite3.Connection, bound: hot.Bound) -> list[tuple[int, int]]:
        """Finish the rows whose result is another row's; (row, origin) of each."""
        sources = self._rows_of(db, list(bound.origins.values()))
        found = hot.read_sources(db, self._path, sources)
        adopted: list[tuple[int, int]] = []
        for index, source in zip(bound.origins, sources, strict=True):
            if source in found:
                theirs, _, origin = found[source]
                row = bound.rows[index]
                fields = (*row[:6], theirs[6])
                bound.rows[index] = (*fields, hot.attempt_crc(fields, row[8], origin), row[8], None)
                adopted.append((row[0], origin))
        return adopted

    def _write_cached(self, db: sqlite3.Connection, hold: _Hold, cached: Sequence[CacheRow]) -> None:
        rows: list[tuple[Any, ...]] = []
        for entry in cached:
            row = row_id(hold.sid, entry.element, entry.attempt)
            if row in hold.adopted:
                row = db.execute("SELECT coalesce(max(origin), ?) FROM adopted WHERE row = ?", (row, row)).fetchone()[0]
            fields = (entry.key, _text(entry.task), _text(entry.parts), entry.created, entry.expires, row)
            rows.append((*fields, crc(*fields)))
        db.executemany(
            "INSERT OR REPLACE INTO cache (key, task, parts, created, expires, row, crc) VALUES (?, ?, ?, ?, ?, ?, ?)",
            rows,
        )

    def _count_hits(self, db: sqlite3.Connection) -> None:
        hits, self._hits = self._hits, {}
        db.executemany("UPDATE cache SET hits = hits + ? WHERE key = ?", [(count, key) for key, count in hits.items()])


def _text(text: str | None) -> Any:
    """`text` without half characters, which SQLite does not take."""
    return text if text is None or text.isascii() else text.encode("utf-8", "backslashreplace").decode()
