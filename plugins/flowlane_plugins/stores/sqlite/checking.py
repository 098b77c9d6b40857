"""Checking a store: is every row what was written, is what it refers to there, and does SQLite find its own structure sound?"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from flowlane.errors import StoreError
from flowlane_plugins.stores.sqlite.base import Base
from flowlane_plugins.stores.sqlite.faults import RAISED, telling, translate
from flowlane_plugins.stores.sqlite.rows import BLOCK_COLUMNS, attempt_crc
from flowlane_plugins.stores.sqlite.schema import crc, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["TABLES", "Checking", "end_is_good", "is_good"]

_TOLD: Final = 100  # of each kind of trouble
_NOT_WRITTEN: Final = "is not what was written"

#: Table → its columns, in the order that `is_good` takes. `attempts` has the origin of an adopted row behind them.
TABLES: Final[dict[str, tuple[str, ...]]] = {
    "runs": (
        "key",
        "id",
        "name",
        "workflow",
        "origin",
        "parent",
        "created",
        "crc",
        "session",
        "latest",
        "removed",
        "params",
    ),
    "sessions": (
        *("sid", "run", "number", "pid", "host", "tasks", "started", "versions", "graph_crc", "crc"),
        *("ended", "state", "error", "counts", "rows", "end_crc", "graph"),
    ),
    "attempts": ("id", "state", "reason", "ready", "started", "ended", "size", "crc", "detail", "result"),
    "blocks": BLOCK_COLUMNS,
    "files": ("row", "digest"),
    "adopted": ("row", "origin"),
    "cache": ("key", "task", "parts", "created", "expires", "row", "crc", "hits"),
    "requests": ("sid", "what", "at"),
}


def is_good(table: str, row: tuple[Any, ...], origin: int | None = None) -> bool:
    """Whether a row of `TABLES` has the CRC of its values. How a session ended is not looked at: see `end_is_good`."""
    try:
        if table == "runs":
            return bool(crc(*row[1:7]) == row[7])
        if table == "sessions":  # of a removed run the graph is dropped
            return bool(crc(*row[2:9]) == row[9] and (row[16] == b"" or crc(row[16]) == row[8]))
        if table == "attempts":
            return bool(attempt_crc(row[:7], row[8], origin) == row[7])
        if table == "blocks":
            return bool(crc(*row[:7], row[8]) == row[7])
        if table == "cache":
            return bool(crc(*row[:6]) == row[6])
    except (struct.error, AttributeError, TypeError):  # a value of another type
        return False
    return True


def end_is_good(row: tuple[Any, ...]) -> bool:
    """Whether how a session ended (or that it has not) is what was written."""
    ended = row[10:15]
    return ended == (0, "running", None, None, None) if row[15] is None else bool(crc(*ended) == row[15])


class Checking(Base):
    """The inspecting part of `SqliteStore`."""

    def check(self) -> list[str]:
        """See ``flowlane.storage.upkeep.Upkeep``."""
        found: list[str] = []
        for look in (self._structure, self._rows, self._references, self._result_files):
            told = 0
            try:
                for trouble in look():
                    told += 1
                    if told <= _TOLD:
                        found.append(trouble)
            except RAISED as error:
                found.append(translate(error, self._path).message)
            except StoreError as error:  # of a connection
                found.append(error.message)
            if told > _TOLD:
                found.append(f"and {told - _TOLD:,} more like these")
        return list(dict.fromkeys(found))

    def _structure(self) -> Iterator[str]:
        with self._database.reading() as db:
            for (text,) in db.execute(f"PRAGMA integrity_check({_TOLD})"):
                if text != "ok":
                    yield f"{self._path}: {text}"
            for table, row, parent, _ in db.execute("PRAGMA foreign_key_check"):
                yield f"{self._path}: row {row} of {table} refers to {parent} that are not there"

    def _rows(self) -> Iterator[str]:
        with self._database.reading() as db:
            for table, columns in TABLES.items():
                names = ", ".join(f"t.{name}" for name in columns)
                if table == "attempts":
                    names = names.replace("t.result", "NULL")
                    rows = db.execute(f"SELECT {names}, o.origin FROM attempts t LEFT JOIN adopted o ON o.row = t.id")
                    for *row, origin in rows:
                        if not is_good(table, tuple(row), origin):
                            yield f"{self._name(row[0])} {_NOT_WRITTEN}"
                else:
                    for row in db.execute(f"SELECT {names} FROM {table} t"):
                        if not is_good(table, row):
                            yield f"row {row[0] if isinstance(row[0], int) else row[0].hex()} of {table} {_NOT_WRITTEN}"
                        elif table == "sessions" and not end_is_good(row):
                            yield f"how session {row[2]} of a run ended {_NOT_WRITTEN}"

    def _references(self) -> Iterator[str]:
        missing: list[tuple[str, Callable[[int], str]]] = [
            (
                "SELECT r.key FROM runs r LEFT JOIN sessions s ON s.sid = r.latest"
                " WHERE r.removed = 0 AND (s.sid IS NULL OR s.number != r.session)",
                lambda key: f"the latest session of run number {key} is not there",
            ),
            (
                "SELECT o.origin FROM adopted o LEFT JOIN attempts a ON a.id = o.origin WHERE a.id IS NULL",
                lambda row: f"{self._name(row)} is not there, and a later session refers to it",
            ),
            (
                "SELECT c.row FROM cache c LEFT JOIN attempts a ON a.id = c.row WHERE a.id IS NULL",
                lambda row: f"{self._name(row)} is not there, and the cache refers to it",
            ),
            (
                "SELECT a.id FROM attempts a WHERE a.id >> 40 NOT IN (SELECT sid FROM sessions)",
                lambda row: f"{self._name(row)} is of a session that is not there",
            ),
            (
                "SELECT a.id FROM attempts a WHERE a.size > 0 AND a.result IS NULL AND a.id NOT IN (SELECT row FROM files)"
                " AND a.id NOT IN (SELECT row FROM adopted)",
                lambda row: f"the result of {self._name(row)} is not there",
            ),
            (
                "SELECT b.id FROM blocks b WHERE b.id >> 40 NOT IN (SELECT sid FROM sessions)",
                lambda row: f"what {self._name(row)} belongs to is of a session that is not there",
            ),
            (
                "SELECT a.id FROM attempts a WHERE a.result IS NOT NULL AND length(a.result) != a.size",
                lambda row: f"the result of {self._name(row)} has another length than was written",
            ),
        ]
        with self._database.reading() as db:
            for query, tell in missing:
                for (row,) in db.execute(query):
                    yield tell(row)
            lost = (
                "SELECT s.number, s.rows FROM sessions s JOIN runs r ON r.key = s.run WHERE r.removed = 0 AND s.rows !="
                " (SELECT count(*) FROM attempts WHERE id >= s.sid << 40 AND id < s.sid + 1 << 40)"
            )
            for number, rows in db.execute(lost):
                yield f"session {number} of a run had {rows:,} attempts, and has another number of them now"

    def _result_files(self) -> Iterator[str]:
        with self._database.reading() as db, telling(self._path):
            query = "SELECT f.row, f.digest, a.size FROM files f JOIN attempts a ON a.id = f.row WHERE a.result IS NULL"
            for row, digest, size in db.execute(query):
                whose = f"the result of {self._name(row)}"
                path = self._files.path(digest)
                try:
                    if self._files.size(digest) != size:
                        yield f"{whose} has another length than was written: {path}"
                    elif not self._files.is_whole(digest):
                        yield f"{whose} {_NOT_WRITTEN}: {path}"
                except FileNotFoundError:
                    yield f"{whose} is missing: {path}"

    def _name(self, row: int) -> str:
        """A row of an attempt, for people."""
        try:
            sid, element, attempt = unpack(row)
            with self._database.reading() as db:
                query = "SELECT r.id FROM sessions s JOIN runs r ON r.key = s.run WHERE s.sid = ?"
                found = db.execute(query, (sid,)).fetchone()
        except (StoreError, TypeError):
            return f"row {row!r} of attempts"
        return f"attempt {attempt} of task number {element} in run {found[0] if found else '?'}"
