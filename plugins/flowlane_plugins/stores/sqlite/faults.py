"""What SQLite and the system raise, as one sentence of ours and what to do about it.

The sentence begins with the database's path; SQLite's own words follow where they tell more. An error that is none of
these is a mistake of our own, and is not translated.
"""

from __future__ import annotations

import errno
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from flowlane.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["DAMAGED", "RAISED", "damaged", "is_busy", "telling", "translate"]

#: The hint for a store whose content is wrong.
DAMAGED: Final = "`flow store check` tells what is wrong, `flow store repair` saves what can be read"

#: What such calls raise. Text that is damaged cannot always be decoded, not even in SQLite's messages.
RAISED: Final = (sqlite3.Error, OSError, MemoryError, UnicodeError)

_FOREIGN: Final = (
    "another program wrote it, or nothing of it can be saved: move it away, and the next run begins a new one"
)
_ROOM: Final = "make room, then resume the run: what is committed is safe"
_WORDS: Final[dict[int, tuple[str, str | None]]] = {
    sqlite3.SQLITE_ERROR: (
        "cannot do what it was asked",
        "`flow store check` tells whether something is wrong with it",
    ),
    sqlite3.SQLITE_PERM: ("may not be opened", "check who owns it and its permissions"),
    sqlite3.SQLITE_BUSY: ("is kept locked by another process", "is one stopped, or is somebody's shell open on it?"),
    sqlite3.SQLITE_LOCKED: ("is kept locked by another process", None),
    sqlite3.SQLITE_NOMEM: ("cannot be used: there is no memory left", None),
    sqlite3.SQLITE_READONLY: ("is read-only", "check its permissions and its folder's, and how the disk is mounted"),
    sqlite3.SQLITE_IOERR: ("cannot be read or written", "is the disk full or failing?"),
    sqlite3.SQLITE_CORRUPT: ("is damaged", DAMAGED),
    sqlite3.SQLITE_IOERR_SHMSIZE: ("has no room on the disk for its index", _ROOM),
    sqlite3.SQLITE_FULL: ("cannot grow: no room is left on the disk", _ROOM),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "check its permissions and its folder's"),
    sqlite3.SQLITE_PROTOCOL: ("is kept locked by another process", None),
    sqlite3.SQLITE_TOOBIG: ("cannot take a row that large", None),
    sqlite3.SQLITE_NOTADB: ("is not a database", _FOREIGN),
}
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another process is in the way, so that trying again may help."""
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL)


def translate(error: Exception, path: str) -> StoreError:
    """`error`, one of `RAISED`, which a call on the store at `path` ended with, as one of ours."""
    if isinstance(error, MemoryError):
        return StoreError(f"{path} cannot be used: there is no memory left")
    if isinstance(error, OSError):
        why = (error.strerror or str(error)).lower()
        hint = _ROOM if error.errno in _FULL else None
        return StoreError(f"{error.filename or path}: {why}", hint=hint)
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(error, sqlite3.Error) or code is None:  # raised by the module itself
        if isinstance(error, sqlite3.ProgrammingError):
            return StoreError(f"{path} is closed")
        return damaged(path, str(error))
    words, hint = _WORDS.get(code) or _WORDS.get(code & 0xFF, ("is damaged", DAMAGED))
    told = f"{path} {words} ({error}; {error.sqlite_errorname})"
    return StoreError(told, hint=hint)


def damaged(path: str, what: str) -> StoreError:
    """The error for content that cannot be what was written."""
    return StoreError(f"{path} is damaged: {what}", hint=DAMAGED)


@contextmanager
def telling(path: str) -> Generator[None]:
    """Translate what the calls inside raise."""
    try:
        yield
    except RAISED as error:
        raise translate(error, path) from error
