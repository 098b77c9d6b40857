"""Connections and transactions: one connection that writes, some that read, and nothing raw ever leaves here.

- Transactions are ours (`isolation_level=None`). Those that write begin with BEGIN IMMEDIATE: one that reads first and writes
  later fails at once when another process wrote in between, whatever the timeout.
- Waiting for other processes: SQLite's own busy handler, and around it a loop with jitter, because SQLite does not call its
  handler everywhere (opening, recovery, the last one that closes).
- A reader is taken from a pool for one query and put back, so no thread owns one, and all can be closed from anywhere.
- A file that was unlinked or replaced goes on taking INSERTs on Linux. So each transaction first compares the file at the path,
  and that of the log, with those that were opened.
- A connection that was carried through a fork corrupts its database; a child is refused.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeVar

from flowlane.errors import StoreError
from flowlane.storage.private import private_folder
from flowlane_plugins.stores.sqlite.faults import RAISED, is_busy, telling, translate
from flowlane_plugins.stores.sqlite.place import check_file_system, check_writable, private_file
from flowlane_plugins.stores.sqlite.schema import examine, migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["Database"]

T = TypeVar("T")

_BUSY: Final = 5.0  # seconds that one call of SQLite's waits for other processes
PATIENCE: float = 30.0  # seconds in all, before the user is told
_READERS_KEPT: Final = 4
_LOG_MAX: Final = 64 << 20  # bytes that the log keeps after it was checkpointed


class Database:
    """The database at `path`. `power` says whether a commit must outlive a power cut. Any thread, unless told otherwise.

    Whatever goes wrong is a StoreError.
    """

    def __init__(self, path: str, *, power: bool) -> None:
        self.path = path
        self.migrated: str | None = None  # the copy that was made before a migration
        self._power = power
        self._lock = threading.RLock()  # owns the writing connection
        self._writer: sqlite3.Connection | None = None
        self._readers: list[sqlite3.Connection] = []
        self._era = 0  # counts openings; a reader of an earlier one is not put back
        self._file: tuple[int, int] = (0, 0)
        self._log: tuple[int, int] | None = None
        self._pid = 0

    @property
    def is_open(self) -> bool:
        return self._writer is not None

    def open(self) -> None:
        """Connect, making or migrating the database. Idempotent."""
        with self._lock:
            if self._writer is not None:
                return
            with telling(self.path):
                folder = os.path.dirname(self.path)
                private_folder(folder)
                check_file_system(folder)
                private_file(self.path)
                check_writable(folder, self.path)
                writer = self._patiently(self._open_writer)
                found = os.stat(self.path)
            self._file = (found.st_dev, found.st_ino)
            self._log = None
            self._pid = os.getpid()
            self._era += 1
            self._writer = writer

    def close(self) -> None:
        """Close every connection; one that is reading is closed when it is done. Idempotent; never raises."""
        with self._lock:
            writer, self._writer = self._writer, None
            readers, self._readers = self._readers, []
            self._era += 1
            if writer is not None and self._pid == os.getpid():
                for connection in [*readers, writer]:
                    with suppress(sqlite3.Error):
                        connection.close()

    def open_as_it_is(self) -> None:
        """Connect for reading what may be damaged: nothing is made, migrated or written. Raises StoreError if it is not ours."""
        with self._lock, telling(self.path):
            writer = self._patiently(self._open_reader)
            try:
                examine(writer, self.path)
                found = os.stat(self.path)
            except BaseException:
                writer.close()
                raise
            self._file = (found.st_dev, found.st_ino)
            self._log = None
            self._pid = os.getpid()
            self._era += 1
            self._writer = writer

    def shrink(self) -> int:
        """Give free pages and the log back to the file system, as far as nobody reads them; how many bytes of pages."""
        with self._lock, telling(self.path):
            db = self._ready()
            (page,), (before,) = (db.execute(f"PRAGMA {what}").fetchone() for what in ("page_size", "page_count"))
            # `execute` would take one step of it, which frees one page
            self._patiently(lambda: db.executescript("PRAGMA incremental_vacuum"))
            self._patiently(lambda: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
            (after,) = db.execute("PRAGMA page_count").fetchone()
            return int(page * max(0, before - after))

    @contextmanager
    def writing(self) -> Generator[sqlite3.Connection]:
        """A transaction that writes: committed at the end, or nothing of it is when the block raises."""
        with self._lock:
            try:
                db = self._ready()
                try:  # begins in here: an interrupt may come when it has just begun
                    self._patiently(lambda: db.execute("BEGIN IMMEDIATE"))
                    yield db
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:
                        with suppress(sqlite3.Error):
                            db.execute("ROLLBACK")
                    raise
            except RAISED as error:
                raise translate(error, self.path) from error

    @contextmanager
    def reading(self) -> Generator[sqlite3.Connection]:
        """A connection for queries; each statement sees one state of the database."""
        try:
            self._ready()
            era = self._era
            try:
                db = self._readers.pop()
            except IndexError:
                db = self._patiently(self._open_reader)
            try:
                yield db
            finally:
                if era == self._era and len(self._readers) < _READERS_KEPT:
                    self._readers.append(db)
                else:
                    db.close()
        except RAISED as error:
            raise translate(error, self.path) from error

    def watcher(self) -> sqlite3.Connection:
        """A reading connection of the caller's own, to be closed by the caller."""
        with telling(self.path):
            self._ready()
            return self._patiently(self._open_reader)

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ready(self) -> sqlite3.Connection:
        """The writing connection, once it is sure that what it writes to is what others find."""
        writer = self._writer
        if writer is None:
            raise StoreError(f"{self.path} is not open")
        if self._pid != os.getpid():
            raise StoreError(f"{self.path} was opened before this process was forked", hint="open a store of its own")
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            raise self._gone(self.path, "deleted") from None
        if (found.st_dev, found.st_ino) != self._file:
            raise self._gone(self.path, "replaced")
        log = f"{self.path}-wal"
        try:
            found = os.stat(log)
        except FileNotFoundError:
            if self._log is not None:
                raise self._gone(log, "deleted") from None
        else:
            if self._log is None:
                self._log = (found.st_dev, found.st_ino)
            elif self._log != (found.st_dev, found.st_ino):
                raise self._gone(log, "replaced")
        return writer

    def _gone(self, path: str, what: str) -> StoreError:
        return StoreError(
            f"{path} was {what} while it was in use: nothing more is recorded",
            hint="what is written to it now would be lost; start again once the state directory is left alone",
        )

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call until no other process is in the way."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except sqlite3.Error as error:
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.001, 0.02))

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=min(_BUSY, PATIENCE), isolation_level=None, check_same_thread=False)

    def _open_writer(self) -> sqlite3.Connection:
        db = self._connect()
        try:
            self.migrated = self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> str | None:
        examine(db, self.path)  # first: nothing is changed in what is not ours
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of an empty file only
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreError(
                f"{self.path} cannot have a write-ahead log (it answers '{mode}')", hint="is it on a local disk?"
            )
        db.execute(f"PRAGMA synchronous = {'FULL' if self._power else 'NORMAL'}")
        db.execute(f"PRAGMA journal_size_limit = {_LOG_MAX}")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA trusted_schema = OFF")
        return migrate(db, self.path)

    def _open_reader(self) -> sqlite3.Connection:
        db = self._connect()
        try:
            db.execute("PRAGMA query_only = ON")
            db.execute("PRAGMA trusted_schema = OFF")
        except BaseException:
            db.close()
            raise
        return db
