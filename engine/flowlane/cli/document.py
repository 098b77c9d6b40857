"""One JSON document for stdout: version 1, on one line, ASCII only, whatever names and values hold.

Fields are written by the encoder of the event log, which never raises and never lets a control character through. It gives up on
a value of more than 10,000 parts, so long lists are written row by row.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from flowlane.runtime.encode import encode, quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["VERSION", "document", "seconds", "timestamp"]

VERSION: Final = 1


def document(head: Mapping[str, Any], **lists: Iterable[Mapping[str, Any]]) -> str:
    """``{"v": 1, head…, name: [row, …], …}`` and a newline."""
    pieces = [encode({"v": VERSION, **head})[:-1]]
    for name, rows in lists.items():
        pieces.append(f",{quote(name)}:[{','.join([encode(row) for row in rows])}]")
    return f"{''.join(pieces)}}}\n"


def timestamp(ns: int) -> str | None:
    """Nanoseconds of the epoch as ``2026-11-22T17:00:00.123456Z``; None for 0, which means never."""
    if not ns:
        return None
    second, rest = divmod(ns, 1_000_000_000)
    try:
        date = datetime.fromtimestamp(second, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return f"{date.isoformat()[:19]}.{rest // 1000:06d}Z"


def seconds(start: int, end: int) -> float | None:
    """How long from one time to another, None unless it came to both."""
    return max(0, end - start) / 1e9 if start and end else None
