"""Attempts between tuples and the table: the hot path. A row costs a few microseconds in all, two thirds of them in SQLite."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from flowlane.errors import StoreError
from flowlane.storage.port import INLINE_MAX, StoredAttempt, StoredBlock
from flowlane_plugins.stores.sqlite.faults import damaged
from flowlane_plugins.stores.sqlite.schema import ATTEMPTS_MAX, ELEMENTS_MAX, crc, row_id, span, unpack

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    from flowlane.storage.port import AttemptRow, Blob, BlockRow, ResultRef
    from flowlane_plugins.stores.sqlite.files import ResultFiles

__all__ = [
    "BLOCK_COLUMNS",
    "PUT_BLOCK",
    "UPSERT",
    "Bound",
    "attempt_crc",
    "bind",
    "bind_blocks",
    "clean",
    "read_attempts",
    "read_blocks",
    "read_sources",
]

_COLUMNS: Final = ("state", "reason", "ready", "started", "ended", "size", "crc", "detail", "result")

#: One attempt, in the place of the row before it.
UPSERT: Final = (
    f"INSERT INTO attempts (id, {', '.join(_COLUMNS)}) VALUES (?{', ?' * len(_COLUMNS)}) "
    f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS)}"
)
BLOCK_COLUMNS: Final = ("id", "length", "kind", "owner", "first", "level", "size", "crc", "data", "work")
PUT_BLOCK: Final = (
    f"INSERT OR REPLACE INTO blocks ({', '.join(BLOCK_COLUMNS)}) VALUES (?{', ?' * (len(BLOCK_COLUMNS) - 1)})"
)
_SELECT: Final = (
    "SELECT a.id, a.state, a.reason, a.ready, a.started, a.ended, a.size, a.crc, a.detail, o.origin "
    "FROM attempts a LEFT JOIN adopted o ON o.row = a.id WHERE a.id {} ORDER BY a.id"
)
_AT_ONCE: Final = 500  # rows fetched, or asked for by their ids: SQLite binds 999 values everywhere
_NOT_WRITTEN: Final = "the row of an attempt is not what was written"

_pack = struct.Struct("<7q").pack


class Bound:
    """Rows ready for `UPSERT`, and what else they need."""

    __slots__ = ("files", "large", "origins", "rows")

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.files: list[tuple[int, bytes]] = []  # (row, digest)
        self.large: dict[bytes, Blob] = {}  # digest → what is in its file
        self.origins: dict[int, ResultRef] = {}  # index in `rows` → where its result is


def bind(sid: int, rows: Sequence[AttemptRow], files: ResultFiles) -> Bound:
    """`rows` of session `sid` for the table. Large results are written to their files. Raises StoreError, OSError."""
    bound = Bound()
    out = bound.rows
    base = row_id(sid, 0, 0)
    try:
        for element, attempt, state, reason, ready, started, ended, result, detail, origin in rows:
            if element >> 24 or attempt >> 16:
                raise too_many(element, attempt)
            row = base | element << 16 | attempt
            size, inline = 0, None
            if result:
                size = sum([len(piece) if type(piece) is bytes else memoryview(piece).nbytes for piece in result])
                if size <= INLINE_MAX:
                    inline = b"".join(result)
                else:
                    digest = files.put(result)
                    bound.files.append((row, digest))
                    bound.large[digest] = result
            elif origin is not None:
                bound.origins[len(out)] = origin
            text = crc32(detail.encode("utf-8", "surrogatepass")) if detail else 0
            check = crc32(_pack(row, state, reason, ready, started, ended, size), text)
            out.append((row, state, reason, ready, started, ended, size, check, detail, inline))
    except (struct.error, OverflowError, TypeError) as error:
        raise StoreError(f"a row does not fit its columns: {error}") from error
    return bound


def bind_blocks(sid: int, blocks: Sequence[BlockRow]) -> list[tuple[Any, ...]]:
    """`blocks` of session `sid` for the table. Raises StoreError."""
    rows: list[tuple[Any, ...]] = []
    for start, length, kind, owner, first, level, data, work in blocks:
        if start + length > ELEMENTS_MAX:
            raise too_many(start + length - 1, 1)
        sealed = b"".join(work) if work else None
        fields = (row_id(sid, start, 0), length, kind, owner, first, level, len(sealed) if sealed else 0)
        rows.append((*fields, crc(*fields, data), data, sealed))
    return rows


def read_blocks(db: sqlite3.Connection, path: str, sid: int) -> list[StoredBlock]:
    """The blocks of a session in order, each checked. Raises sqlite3.Error, StoreError."""
    query = f"SELECT {', '.join(BLOCK_COLUMNS[:-1])} FROM blocks WHERE id BETWEEN ? AND ? ORDER BY id"
    found: list[StoredBlock] = []
    for *fields, check, data in db.execute(query, span(sid)):
        if crc(*fields, data) != check:
            raise damaged(path, "what a run has become is not what was written")
        number, length, kind, owner, first, level, size = fields
        found.append(StoredBlock(unpack(number)[1], length, kind, owner, first, level, data, size))
    return found


def too_many(element: int, attempt: int) -> StoreError:
    """The error for what has no row id."""
    return StoreError(
        f"attempt {attempt} of task number {element:,} is too many: a store takes {ATTEMPTS_MAX - 1:,} attempts of"
        f" {ELEMENTS_MAX:,} tasks a session, elements of maps included",
        hint="split the work into several runs, or run it without a store",
    )


def attempt_crc(row: Sequence[Any], detail: str | None, origin: int | None) -> int:
    """The CRC of (id, state, reason, ready, started, ended, size) and the rest."""
    check = crc32(_pack(*row), crc32(detail.encode("utf-8", "surrogatepass")) if detail else 0)
    return check if origin is None else crc32(b"%d" % origin, check)


def read_sources(
    db: sqlite3.Connection, path: str, ids: Sequence[int]
) -> dict[int, tuple[tuple[int, ...], str | None, int]]:
    """Row id → its first seven columns, its detail, and the row that has its result, or itself where there is none; of those of
    `ids` that are there.
    """
    found: dict[int, tuple[tuple[int, ...], str | None, int]] = {}
    for at in range(0, len(ids), _AT_ONCE):
        some = ids[at : at + _AT_ONCE]
        for *fields, check, detail, origin in db.execute(_SELECT.format(f"IN ({', '.join('?' * len(some))})"), some):
            if not _is_good(fields, check, detail, origin):
                raise damaged(path, _NOT_WRITTEN)
            found[fields[0]] = (tuple(fields), detail, fields[0] if origin is None or not fields[6] else origin)
    return found


def clean(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Bound rows, with the half characters in their details escaped, which SQLite does not take. In JSON it means the same."""
    cleaned: list[tuple[Any, ...]] = []
    for row in rows:
        *fields, check, detail, inline = row
        if detail is not None and not detail.isascii():
            # An adopted row's CRC has its origin in it, and its detail is ours: plain ASCII.
            detail = detail.encode("utf-8", "backslashreplace").decode()
            check = attempt_crc(fields, detail, None)
        cleaned.append((*fields, check, detail, inline))
    return cleaned


def read_attempts(
    db: sqlite3.Connection,
    path: str,
    sid: int,
    element: int | range | None,
    expected: int | None,
    place: Callable[[int], tuple[str, int]],
) -> Iterator[StoredAttempt]:
    """Rows of a session in order, each checked; `place` tells (run, session) of a sid. Raises sqlite3.Error, StoreError.

    `expected` is how many there must be, where that is known.
    """
    cursor = db.execute(_SELECT.format("BETWEEN ? AND ?"), span(sid, element))
    count = 0
    try:
        while rows := cursor.fetchmany(_AT_ONCE):
            count += len(rows)
            for row in rows:
                number, state, reason, ready, started, ended, size, check, detail, origin = row
                if not _is_good(row[:7], check, detail, origin):
                    raise damaged(path, _NOT_WRITTEN)
                _, index, attempt = unpack(number)
                ref: ResultRef | None = None
                if size or origin is not None:
                    home, of, nth = unpack(number if origin is None else origin)
                    ref = (*place(home), of, nth)
                adopted = origin is not None
                source = ref if adopted else None
                result = ref if size else None
                yield StoredAttempt(
                    index, attempt, state, reason, ready, started, ended, detail, result, size, adopted, source
                )
    finally:
        cursor.close()  # also when the reader stops half-way: an open cursor holds the log back
    if expected is not None and count != expected:
        raise damaged(path, f"it has {count:,} attempts of a session that had {expected:,}")


def _is_good(fields: Sequence[Any], check: Any, detail: Any, origin: Any) -> bool:
    try:
        return bool(attempt_crc(fields, detail, origin) == check)
    except (struct.error, AttributeError, TypeError):  # a value of another type
        return False
