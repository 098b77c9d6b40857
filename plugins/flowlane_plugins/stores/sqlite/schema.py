"""The tables, their versions, and how a database of an older version becomes one of this.

A *row id* of an attempt packs session, element and attempt into one integer, so that the table that grows has no key beside
it: inserting is appending, a session is a range. Results are at the end of their row, where a scan does not meet them;
large ones are files (`files`), adopted ones are elsewhere (`adopted`), so the hot path touches one table.

SQLite does not notice a flipped bit in a value. Every row carries a CRC of what was written, its id included, and is checked
when it is read; results are sealed by who wrote them, and have none.

A removed run that others still need results of stays as a stub (`removed`), with the rows that are needed and no others.

Version 0 is an empty file. `MIGRATIONS[n]` turns version n into n + 1. All of them run in one transaction, so a crash leaves
the version that was; and before an existing database is touched, a copy of it is made.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from typing import TYPE_CHECKING, Final
from zlib import crc32

from flowlane.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "APPLICATION_ID",
    "ATTEMPTS_MAX",
    "ELEMENTS_MAX",
    "MIGRATIONS",
    "crc",
    "examine",
    "migrate",
    "row_id",
    "span",
    "sweep_copies",
    "unpack",
]

APPLICATION_ID: Final = 0x666C6F77  # "flow", in the file's header at byte 68

_UNFINISHED: Final = r"\.v[0-9]+\.bak\.[0-9]+(?:-journal)?"  # behind the database's name: a copy being made

_ATTEMPT_BITS: Final = 16
_ELEMENT_BITS: Final = 24  # 16.7 million tasks; 23 bits are left for sessions, one a minute for 16 years
_SESSION_BITS: Final = _ATTEMPT_BITS + _ELEMENT_BITS
ELEMENTS_MAX: Final = 1 << _ELEMENT_BITS
ATTEMPTS_MAX: Final = 1 << _ATTEMPT_BITS

_FIRST: Final = (
    """
    CREATE TABLE runs (
        key      INTEGER PRIMARY KEY AUTOINCREMENT,
        id       TEXT NOT NULL UNIQUE,
        name     TEXT NOT NULL,
        workflow TEXT NOT NULL,
        origin   TEXT NOT NULL,
        parent   TEXT,
        created  INTEGER NOT NULL,
        crc      INTEGER NOT NULL,
        session  INTEGER NOT NULL,           -- number of the latest; who writes proves that it is theirs
        latest   INTEGER NOT NULL,           -- its sid: the order of runs, whatever the clock did
        removed  INTEGER NOT NULL DEFAULT 0,
        params   BLOB NOT NULL
    )
    """,
    "CREATE INDEX runs_latest ON runs (latest)",
    """
    CREATE TABLE sessions (
        sid      INTEGER PRIMARY KEY AUTOINCREMENT,
        run      INTEGER NOT NULL REFERENCES runs (key),
        number   INTEGER NOT NULL,
        pid      INTEGER NOT NULL,
        host     TEXT NOT NULL,
        tasks    INTEGER NOT NULL,
        started  INTEGER NOT NULL,
        versions TEXT NOT NULL,
        graph_crc INTEGER NOT NULL,
        crc      INTEGER NOT NULL,           -- of all above but sid and run
        ended    INTEGER NOT NULL DEFAULT 0,
        state    TEXT NOT NULL DEFAULT 'running',
        error    TEXT,
        counts   TEXT,                       -- JSON: state -> tasks, once it has ended
        rows     INTEGER,                    -- how many attempts it has, once it has ended
        end_crc  INTEGER,                    -- of those five
        graph    BLOB NOT NULL,
        UNIQUE (run, number)
    )
    """,
    """
    CREATE TABLE attempts (
        id       INTEGER PRIMARY KEY,        -- sid << 40 | element << 16 | attempt
        state    INTEGER NOT NULL,
        reason   INTEGER NOT NULL,
        ready    INTEGER NOT NULL,
        started  INTEGER NOT NULL,
        ended    INTEGER NOT NULL,
        size     INTEGER NOT NULL,           -- of the result; 0 without one
        crc      INTEGER NOT NULL,           -- of all above, detail, and the origin of an adopted row
        detail   TEXT,
        result   BLOB
    )
    """,
    # Where results are that are not in their row.
    "CREATE TABLE files (row INTEGER PRIMARY KEY, digest BLOB NOT NULL)",
    "CREATE INDEX files_digest ON files (digest)",
    "CREATE TABLE adopted (row INTEGER PRIMARY KEY, origin INTEGER NOT NULL)",
    "CREATE INDEX adopted_origin ON adopted (origin)",
    """
    CREATE TABLE cache (
        key      BLOB PRIMARY KEY,
        task     TEXT NOT NULL,
        parts    TEXT NOT NULL,
        created  INTEGER NOT NULL,
        expires  INTEGER NOT NULL,
        row      INTEGER NOT NULL,
        crc      INTEGER NOT NULL,           -- of all above
        hits     INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX cache_row ON cache (row)",
    "CREATE TABLE requests (sid INTEGER NOT NULL, what TEXT NOT NULL, at INTEGER NOT NULL)",
    "CREATE INDEX requests_sid ON requests (sid)",
)

_SECOND: Final = (
    # What came into being while a run went on: consecutive elements, from the one in the id on.
    """
    CREATE TABLE blocks (
        id       INTEGER PRIMARY KEY,        -- sid << 40 | first element << 16
        length   INTEGER NOT NULL,
        kind     INTEGER NOT NULL,           -- 0 a graph, 1 elements of maps, 2 a merge
        owner    INTEGER NOT NULL,           -- the element that has become them
        first    INTEGER NOT NULL,           -- index of the first, or the number of a merge in its level
        level    INTEGER NOT NULL,
        size     INTEGER NOT NULL,           -- of the work; 0 without
        crc      INTEGER NOT NULL,           -- of all above and data
        data     BLOB NOT NULL,
        work     BLOB
    )
    """,
)

#: Statements that turn version n into n + 1. Entries are only ever appended, and never changed once released.
MIGRATIONS: Sequence[Sequence[str]] = (_FIRST, _SECOND)


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def row_id(sid: int, element: int, attempt: int) -> int:
    """The id of an attempt's row."""
    return sid << _SESSION_BITS | element << _ATTEMPT_BITS | attempt


def unpack(row: int) -> tuple[int, int, int]:
    """(sid, element, attempt) of a row id."""
    return row >> _SESSION_BITS, row >> _ATTEMPT_BITS & ELEMENTS_MAX - 1, row & ATTEMPTS_MAX - 1


def span(sid: int, element: int | range | None = None) -> tuple[int, int]:
    """The first and last row id of a session, of one of its elements, or of a range of them."""
    if element is None:
        return sid << _SESSION_BITS, (sid + 1 << _SESSION_BITS) - 1
    if isinstance(element, range):
        last = min(element.stop, ELEMENTS_MAX)
        return row_id(sid, min(element.start, ELEMENTS_MAX), 0), row_id(sid, last, 0) - 1
    return row_id(sid, element, 0), row_id(sid, element, ATTEMPTS_MAX - 1)


def crc(*fields: object) -> int:
    """The CRC of a row's fields, for tables that are not hot."""
    return crc32(repr(fields).encode("utf-8", "surrogatepass"))


# ── versions ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def examine(db: sqlite3.Connection, path: str) -> int:
    """The version of the database, 0 of an empty one. Raises StoreError unless it is ours and not of a newer flowlane."""
    alone = not db.in_transaction
    if alone:  # all three of one instant: another process may be making the database
        db.execute("BEGIN")
    try:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    finally:
        if alone and db.in_transaction:
            db.execute("ROLLBACK")
    if application != APPLICATION_ID and (application or version or tables):
        raise StoreError(f"{path} is a database of another program", hint="choose another path for the store")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path} was written by a newer flowlane: its schema is {version}, this one knows {len(MIGRATIONS)}",
            hint="upgrade flowlane, or use another state directory",
        )
    if version < 0 or (not version and tables):
        raise StoreError(f"{path} has tables and no version: it is damaged", hint="restore it from a copy")
    return int(version)


def migrate(db: sqlite3.Connection, path: str) -> str | None:
    """Bring the database to this version; where the copy of the old one is, if there was one. Raises StoreError, sqlite3.Error.

    Of several processes that do so at once, one does the work and the others find it done.
    """
    version = examine(db, path)
    if version == len(MIGRATIONS):
        return None
    backup = _back_up(db, path, version) if version else None
    db.execute("BEGIN IMMEDIATE")
    try:
        version = examine(db, path)
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise
    return backup


def sweep_copies(path: str, older_than: float) -> None:
    """Remove copies that were never finished, older than this (seconds since the epoch). Raises OSError."""
    ours = re.compile(re.escape(os.path.basename(path)) + _UNFINISHED)
    with os.scandir(os.path.dirname(path)) as entries:
        for entry in entries:
            if not ours.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            with contextlib.suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < older_than:
                    os.unlink(entry.path)


def _back_up(db: sqlite3.Connection, path: str, version: int) -> str:
    backup = f"{path}.v{version}.bak"
    temporary = f"{backup}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o600)
    os.close(fd)
    try:
        os.chmod(temporary, 0o600)
        db.execute("VACUUM INTO ?", (temporary,))  # takes an empty file, which keeps its permissions
        copy = sqlite3.connect(temporary)
        try:
            (found,) = copy.execute("PRAGMA user_version").fetchone()
        finally:
            copy.close()
        if found == version:  # else another process was faster, and has made the copy
            os.replace(temporary, backup)
        else:
            os.unlink(temporary)
    except BaseException:
        for name in (temporary, f"{temporary}-journal"):
            with contextlib.suppress(OSError):
                os.unlink(name)
        raise
    return backup
