"""What is read: runs, sessions, attempts, results and the cache. Every row is checked against its CRC."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.core.states import RunState
from flowlane.errors import ResultDamaged, StoreError
from flowlane.storage.port import CacheEntry, Owner, StoredRun, StoredSession
from flowlane_plugins.stores.names import Named, choose, unknown
from flowlane_plugins.stores.sqlite.base import Base
from flowlane_plugins.stores.sqlite.counting import count
from flowlane_plugins.stores.sqlite.faults import damaged
from flowlane_plugins.stores.sqlite.rows import read_attempts, read_blocks
from flowlane_plugins.stores.sqlite.schema import crc, row_id, span, unpack

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from flowlane.storage.port import ResultRef, StoredAttempt, StoredBlock

__all__ = ["Latest", "Reading", "latest", "sid_of"]

_HEAD: Final = "s.number, s.pid, s.host, s.tasks, s.started, s.versions, s.graph_crc, s.crc"
_END: Final = "s.ended, s.state, s.error, s.counts, s.rows, s.end_crc, s.sid"
_RUNS: Final = (
    f"SELECT r.id, r.name, r.workflow, r.origin, r.parent, r.created, r.crc, r.session, {_HEAD}, {_END}"
    " FROM runs r LEFT JOIN sessions s ON s.sid = r.latest WHERE r.removed = 0"
)
_SESSION: Final = (
    f"SELECT {_HEAD}, s.graph, {_END} FROM runs r JOIN sessions s ON s.run = r.key"
    " WHERE r.id = ? AND r.removed = 0 AND s.number = coalesce(?, r.session)"
)
_ENTRIES: Final = (
    "SELECT c.key, c.task, c.parts, c.created, c.expires, c.row, c.crc, c.hits, a.size"
    " FROM cache c LEFT JOIN attempts a ON a.id = c.row"
)


class Latest(NamedTuple):
    """The latest session of a run, as far as its next one wants to know."""

    sid: int
    ended: int
    owner: Owner


def latest(db: sqlite3.Connection, path: str, run_id: str) -> tuple[int, int, Latest]:
    """(key, session number, latest session) of a run. Raises UnknownRun."""
    found = db.execute("SELECT key, session, latest FROM runs WHERE id = ? AND removed = 0", (run_id,)).fetchone()
    if found is None:
        raise unknown(run_id)
    key, number, sid = found
    session = db.execute(f"SELECT {_HEAD}, s.ended FROM sessions s WHERE s.sid = ?", (sid,)).fetchone()
    if session is None or session[0] != number or crc(*session[:7]) != session[7]:
        raise damaged(path, f"the latest session of run {run_id} is not what was written")
    return key, number, Latest(sid, session[8], Owner(session[1], session[2]))


def sid_of(db: sqlite3.Connection, run_id: str, number: int) -> int | None:
    """The sid of a session, also of a run that was removed and is needed by others."""
    query = "SELECT s.sid FROM runs r JOIN sessions s ON s.run = r.key WHERE r.id = ? AND s.number = ?"
    found = db.execute(query, (run_id, number)).fetchone()
    return found[0] if found else None


class Reading(Base):
    """The reading half of `SqliteStore`."""

    def runs(self, *, limit: int | None = None, workflow: str | None = None) -> list[StoredRun]:
        query = f"{_RUNS} AND (? IS NULL OR r.workflow = ?) ORDER BY r.latest DESC LIMIT ?"
        with self._database.reading() as db:
            rows = db.execute(query, (workflow, workflow, -1 if limit is None else limit)).fetchall()
            return [self._run(db, row) for row in rows]

    def find(self, text: str) -> StoredRun:
        with self._database.reading() as db:
            names: list[tuple[str, str]] = db.execute(
                "SELECT id, name FROM runs WHERE removed = 0 ORDER BY latest DESC"
            ).fetchall()
            run_id = choose(text, [Named(*row) for row in names])
            row = db.execute(f"{_RUNS} AND r.id = ?", (run_id,)).fetchone()
            if row is None:  # removed in between
                raise unknown(text)
            return self._run(db, row)

    def session(self, run_id: str, number: int | None = None) -> StoredSession:
        with self._database.reading() as db:
            return self._session(db, run_id, number)[0]

    def params(self, run_id: str) -> bytes:
        with self._database.reading() as db:
            found = db.execute("SELECT params FROM runs WHERE id = ? AND removed = 0", (run_id,)).fetchone()
        if found is None:
            raise unknown(run_id)
        return bytes(found[0])

    def attempts(
        self, run_id: str, session: int | None = None, element: int | range | None = None
    ) -> Iterator[StoredAttempt]:
        with self._database.reading() as db:
            _, sid, rows = self._session(db, run_id, session)
        return self._attempts(sid, element, rows)

    def blocks(self, run_id: str, session: int | None = None) -> list[StoredBlock]:
        with self._database.reading() as db:
            _, sid, _ = self._session(db, run_id, session)
            return read_blocks(db, self._path, sid)

    def work(self, run_id: str, session: int, start: int) -> bytes:
        with self._database.reading() as db:
            sid = sid_of(db, run_id, session)
            found = None
            if sid is not None:
                row = (row_id(sid, start, 0),)
                found = db.execute("SELECT size, work FROM blocks WHERE id = ?", row).fetchone()
        if found is None or not found[0]:
            raise StoreError(f"no work of task number {start} and those behind it in run {run_id} is in {self._path}")
        size, work = found
        if not isinstance(work, bytes) or len(work) != size:
            raise ResultDamaged(f"the work of task number {start} in run {run_id} has not the {size:,} bytes of before")
        return work

    def _attempts(self, sid: int, element: int | range | None, rows: int | None) -> Iterator[StoredAttempt]:
        with self._database.reading() as db:
            expected = rows if element is None else None
            yield from read_attempts(db, self._path, sid, element, expected, self._place)

    def read(self, ref: ResultRef) -> bytes | memoryview:
        run_id, number, element, attempt = ref
        whose = f"the result of attempt {attempt} of task number {element} in run {run_id}"
        with self._database.reading() as db:
            sid = sid_of(db, run_id, number)
            found = None
            if sid is not None:
                row = row_id(sid, element, attempt)
                query = (
                    "SELECT a.size, a.result, f.digest FROM attempts a LEFT JOIN files f ON f.row = a.id WHERE a.id ="
                    " coalesce((SELECT origin FROM adopted WHERE row = ?), ?)"
                )
                found = db.execute(query, (row, row)).fetchone()
            if found is None or not found[0]:
                raise StoreError(f"{whose} is not in {self._path}")
            size, inline, digest = found
            if inline is not None:
                result = inline
            elif digest is None:
                raise damaged(self._path, f"{whose} has no file")
            else:
                try:
                    result = self._files.read(digest)
                except FileNotFoundError:
                    raise StoreError(
                        f"{whose} is missing: {self._files.path(digest)} is not there",
                        hint="`flow store check` tells what else is; run the task again",
                    ) from None
        if not isinstance(result, bytes) or len(result) != size:
            raise ResultDamaged(f"{whose} has not the {size:,} bytes that were written")
        return result

    def results(self, run_id: str, session: int, elements: range) -> Iterator[tuple[int, int, bytes]]:
        query = (
            "SELECT a.id, a.size, coalesce(b.result, a.result) FROM attempts a LEFT JOIN adopted o ON o.row = a.id"
            " LEFT JOIN attempts b ON b.id = o.origin WHERE a.id BETWEEN ? AND ? AND a.size > 0 ORDER BY a.id"
        )
        with self._database.reading() as db:
            sid = sid_of(db, run_id, session)
            rows = db.execute(query, span(sid, elements)).fetchall() if sid is not None else []
        for row, size, result in rows:
            if isinstance(result, bytes) and len(result) == size:  # else it is in a file, or `read` tells what is wrong
                _, element, attempt = unpack(row)
                yield element, attempt, result

    # ── the cache ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def cached(self, key: bytes, now: int) -> CacheEntry | None:
        with self._database.reading() as db:
            found = db.execute(
                f"{_ENTRIES} WHERE c.key = ? AND (c.expires = 0 OR c.expires > ?)", (key, now)
            ).fetchone()
            entry = None if found is None else self._entry(found)
        if entry is not None:
            self._hits[key] = self._hits.get(key, 0) + 1  # counted with the next write
        return entry

    def cache_entries(self, task: str | None = None) -> list[CacheEntry]:
        query = f"{_ENTRIES} WHERE (? IS NULL OR c.task = ?) ORDER BY c.created DESC, c.rowid DESC"
        with self._database.reading() as db:
            entries = [self._entry(row) for row in db.execute(query, (task, task)).fetchall()]
        return [entry for entry in entries if entry is not None]

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _place(self, sid: int) -> tuple[str, int]:
        """(run, session number) of a sid, which never change."""
        place = self._places.get(sid)
        if place is None:
            with self._database.reading() as db:
                query = "SELECT r.id, s.number FROM sessions s JOIN runs r ON r.key = s.run WHERE s.sid = ?"
                found = db.execute(query, (sid,)).fetchone()
            if found is None:
                raise damaged(self._path, f"there is no session {sid}, and a row of it")
            self._places[sid] = place = (found[0], found[1])
        return place

    def _run(self, db: sqlite3.Connection, row: tuple[Any, ...]) -> StoredRun:
        run_id, name, workflow, origin, parent, created, check, session = row[:8]
        number, _, _, tasks, started, _, _, session_check, ended, state, error, counts, rows, end_check, sid = row[8:]
        if crc(*row[:6]) != check or session != number or crc(*row[8:15]) != session_check:
            raise damaged(self._path, "the row of a run is not what was written")
        self._check_end(ended, state, error, counts, rows, end_check)
        found: dict[str, int] = count(db, self._path, sid) if counts is None else json.loads(counts)
        return StoredRun(
            id=run_id,
            name=name,
            workflow=workflow,
            origin=origin,
            parent=parent,
            created=created,
            started=started,
            ended=ended,
            state=RunState(state),
            error=error,
            session=number,
            tasks=tasks,
            counts=found,
        )

    def _session(
        self, db: sqlite3.Connection, run_id: str, number: int | None
    ) -> tuple[StoredSession, int, int | None]:
        """The session, its sid, and how many rows it has where it has ended."""
        found = db.execute(_SESSION, (run_id, number)).fetchone()
        if found is None:
            if (
                number is not None
                and db.execute("SELECT 1 FROM runs WHERE id = ? AND removed = 0", (run_id,)).fetchone()
            ):
                raise unknown(run_id, session=number)
            raise unknown(run_id)
        number, pid, host, tasks, started, versions, graph_check, check, graph, *end, sid = found
        if crc(*found[:7]) != check or crc(graph) != graph_check:
            raise damaged(self._path, f"the row of a session of run {run_id} is not what was written")
        self._check_end(*end)
        assert number is not None
        made = StoredSession(number, Owner(pid, host), graph, tasks, started, end[0], versions)
        return made, sid, end[4]

    def _check_end(self, ended: Any, state: Any, error: Any, counts: Any, rows: Any, check: Any) -> None:
        good = (0, "running", None, None, None) if check is None else None
        if (ended, state, error, counts, rows) != good and crc(ended, state, error, counts, rows) != check:
            raise damaged(self._path, "how a session ended is not what was written")

    def _entry(self, row: tuple[Any, ...]) -> CacheEntry | None:
        key, task, parts, created, expires, result, check, hits, size = row
        if crc(key, task, parts, created, expires, result) != check:
            raise damaged(self._path, "a row of the cache is not what was written")
        if not size:  # its result could not be stored, or is gone
            return None
        sid, element, attempt = unpack(result)
        ref = (*self._place(sid), element, attempt)
        return CacheEntry(key, task, parts, created, expires, ref, size, hits + self._hits.get(key, 0))
