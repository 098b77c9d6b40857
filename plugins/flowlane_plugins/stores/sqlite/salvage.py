"""Repairing a store: what can be read and is what was written goes into a new database, which takes the place of the old.

Reading a damaged table: up to the page that cannot be read, then from the first key behind it that can (found by doubling and
halving the distance), and so on. Every row is checked against its CRC on the way. References to what is lost are dropped,
sessions that lost rows are counted anew, and one whose end is damaged counts as killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final

from flowlane.errors import StoreError
from flowlane.storage.upkeep import Repaired
from flowlane_plugins.stores.sqlite import locks
from flowlane_plugins.stores.sqlite.checking import TABLES, Checking, end_is_good, is_good
from flowlane_plugins.stores.sqlite.counting import count_rows
from flowlane_plugins.stores.sqlite.faults import RAISED, telling
from flowlane_plugins.stores.sqlite.schema import MIGRATIONS, crc, examine, migrate
from flowlane_plugins.stores.sqlite.upkeep import YOUNG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Salvage"]

_FURTHEST: Final = (1 << 63) - 1


class Salvage(Checking):
    """The repairing part of `SqliteStore`."""

    def open(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def repair(self) -> Repaired:
        """See ``flowlane.storage.upkeep.Upkeep``. A store that was open is opened again."""
        was_open = self._database.is_open
        self.close()
        if not os.path.isfile(self._path):
            raise StoreError(f"{self._path} is not there")
        with telling(self._path):
            self._refuse_owned()
            swept = self._files.sweep(time.time() - YOUNG)
            saved = lost = 0
            backup: str | None = None
            if not self._is_sound():
                new = f"{self._path}.repairing"
                try:
                    saved, lost = self._copy_into(new)
                    backup = self._exchange(new)
                finally:
                    for path in (new, f"{new}-wal", f"{new}-shm", f"{new}-journal"):
                        with contextlib.suppress(OSError):
                            os.unlink(path)
        if was_open:
            self.open()
        return Repaired(backup, saved, lost, swept)

    def _refuse_owned(self) -> None:
        with contextlib.suppress(FileNotFoundError), os.scandir(self._locks) as entries:
            for entry in entries:
                owner = locks.holder(entry.path) if locks.NAME.fullmatch(entry.name) else None
                if owner is not None:
                    raise StoreError(
                        f"run {entry.name} is under way in process {owner.pid}: {self._path} cannot be repaired now",
                        hint="wait for it, or stop it",
                    )

    def _is_sound(self) -> bool:
        """Whether the database itself, not counting files of results, has nothing to repair. Raises StoreError if not ours."""
        self._database.open_as_it_is()
        try:
            return not [*self._structure(), *self._rows(), *self._references()]
        except (*RAISED, StoreError):
            return False
        finally:
            self._database.close()

    def _copy_into(self, new: str) -> tuple[int, int]:
        """Rows saved and rows dropped."""
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o600)
        os.close(fd)
        os.chmod(new, 0o600)
        source = sqlite3.connect(self._path, isolation_level=None)
        target = sqlite3.connect(new, isolation_level=None)
        try:
            source.text_factory = _text
            version = examine(source, self._path)
            if version != len(MIGRATIONS):
                raise StoreError(f"{self._path} is of an older version, and too damaged to be brought to this one")
            target.execute("PRAGMA auto_vacuum = INCREMENTAL")
            migrate(target, new)
            target.execute("BEGIN IMMEDIATE")
            saved = lost = 0
            origins: dict[int, int] = {}
            for table in ("adopted", *[name for name in TABLES if name != "adopted"]):
                columns = TABLES[table]
                insert = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES (?{', ?' * (len(columns) - 1)})"
                for row in _readable(source, table, columns):
                    if table == "adopted":
                        origins[row[0]] = row[1]
                    if not is_good(table, row, origins.get(row[0]) if table == "attempts" else None):
                        lost += 1
                        continue
                    if table == "sessions" and not end_is_good(row):
                        row = (*row[:10], 0, "running", None, None, None, None, row[16])  # noqa: PLW2901
                    try:
                        target.execute(insert, row)
                        saved += 1
                    except sqlite3.Error:  # a type that does not fit: it is not what was written
                        lost += 1
            _reconcile(target)
            target.execute("COMMIT")
            target.execute("PRAGMA journal_mode = WAL")
        finally:
            source.close()
            target.close()
        return saved, lost

    def _exchange(self, new: str) -> str:
        """Put `new` in the place of the database; where that is now. At no instant is there none."""
        backup = f"{self._path}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        while os.path.exists(backup):
            backup += "x"
        with open(new, "rb") as file:
            os.fsync(file.fileno())
        log = f"{self._path}-wal"
        if os.path.exists(log):  # else the new database would take it for its own
            shutil.copy2(log, f"{backup}-wal")
        try:
            os.link(self._path, backup)
        except OSError:  # not every file system has links
            shutil.copy2(self._path, backup)
        for path in (log, f"{self._path}-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        os.replace(new, self._path)
        return backup


def _readable(db: sqlite3.Connection, table: str, columns: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Every row of a table that can be read."""
    query = f"SELECT rowid, {', '.join(columns)} FROM {table} WHERE rowid >= ? ORDER BY rowid"

    def first(at: int) -> tuple[Any, ...] | None:
        """The first row from `at` on, its key in front; None behind the last. Raises one of RAISED."""
        found: tuple[Any, ...] | None = db.execute(f"{query} LIMIT 1", (at,)).fetchone()
        return None if found is None else _forward(found, at)

    at = -_FURTHEST
    while at <= _FURTHEST:
        try:
            for row in db.execute(query, (at,)):
                at = _forward(row, at)[0] + 1
                yield row[1:]
            return
        except RAISED:
            pass
        try:  # one by one: a cursor reads one row ahead of what it gives
            while (single := first(at)) is not None:
                at = single[0] + 1
                yield single[1:]
            return
        except RAISED:
            pass
        found = _next_readable(first, at)
        if found is None:
            return
        at = found


def _next_readable(first: Callable[[int], object], at: int) -> int | None:
    """About the first key behind `at`, which cannot be read, from where rows can be; None when none is found."""
    step = 1
    while at + step <= _FURTHEST:
        try:
            first(at + step)
            break
        except RAISED:
            step *= 2
    else:
        return None
    low, high = at, at + step
    while high - low > 1:
        middle = (low + high) // 2
        try:
            first(middle)
            high = middle
        except RAISED:
            low = middle
    return high


def _forward(row: tuple[Any, ...], at: int) -> tuple[Any, ...]:
    if not isinstance(row[0], int) or row[0] < at:
        raise sqlite3.DatabaseError("the tree leads back")
    return row


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")  # what is replaced does not fit its CRC


def _reconcile(db: sqlite3.Connection) -> None:
    """Drop references to what was lost, and make what is left agree."""
    for statement in (
        "DELETE FROM sessions WHERE run NOT IN (SELECT key FROM runs)",
        "DELETE FROM attempts WHERE id >> 40 NOT IN (SELECT sid FROM sessions)",
        "DELETE FROM blocks WHERE id >> 40 NOT IN (SELECT sid FROM sessions)",
        "DELETE FROM adopted WHERE row NOT IN (SELECT id FROM attempts)",
        "DELETE FROM files WHERE row NOT IN (SELECT id FROM attempts)",
        "DELETE FROM cache WHERE row NOT IN (SELECT id FROM attempts)",
        "DELETE FROM requests WHERE sid NOT IN (SELECT sid FROM sessions)",
        "DELETE FROM runs WHERE key NOT IN (SELECT run FROM sessions)",
        "UPDATE runs SET latest = (SELECT max(sid) FROM sessions WHERE run = key)",
        "UPDATE runs SET session = (SELECT number FROM sessions WHERE sid = latest)",
        # An adopted row whose original is gone was checked with its origin: it stays, and its result is missing.
    ):
        db.execute(statement)
    ended = "SELECT sid, ended, state, error, counts, rows FROM sessions WHERE end_crc IS NOT NULL"
    for sid, *how, counts, before in db.execute(ended).fetchall():
        rows = count_rows(db, sid)
        told = counts if rows == before else None  # else what is left is counted when somebody asks
        db.execute(
            "UPDATE sessions SET counts = ?, rows = ?, end_crc = ? WHERE sid = ?",
            (told, rows, crc(*how, told, rows), sid),
        )
