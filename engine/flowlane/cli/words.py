"""Figures, names and dates as people say them: what the verbs print is made of these. Pure; whatever names hold is made inert."""

from __future__ import annotations

import time
from shlex import quote
from typing import TYPE_CHECKING, Final

from flowlane.cli.terminal import inert

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ago", "counted", "cut", "date", "duration", "listed", "name_of", "path_of", "quoted", "size", "table"]

_LINE_MAX: Final = 500  # characters: a message may hold a whole document
_NAMES: Final = 8  # names in a path or a list
_NAME_MAX: Final = 100  # characters of a task's name
_UNITS: Final = ("B", "kB", "MB", "GB")
_SECOND: Final = 1_000_000_000
_COLUMN: Final = 40  # characters that a column is as wide as at most; what is longer moves the rest of its line


def duration(seconds: float) -> str:
    """Seconds as people say them: "<1 ms", "34 ms", "12.4 s", "3 min 05 s", "2 h 07 min"."""
    if seconds < 0.0005:
        return "<1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def name_of(name: str) -> str:
    """A task's name, inert; of one that is very long, as of work nested a hundred deep, the beginning and the end."""
    return inert(name if len(name) <= _NAME_MAX else f"{name[: _NAME_MAX // 2]}…{name[-_NAME_MAX // 2 :]}")


def quoted(name: str) -> str:
    """A name as it is typed at a shell, inert: in quotes where a shell would take some of it for its own."""
    name = inert(name)
    plain = name.replace("#", "")  # a "#" within a word is nothing to a shell
    return name if quote(plain) == plain and not name.startswith("#") else quote(name)


def path_of(names: Sequence[str]) -> str:
    """``a → b → c``, at most eight names: the first and last few of a longer path."""
    shown = [name_of(name) for name in names]
    if len(shown) > _NAMES:
        shown = [*shown[: _NAMES // 2], f"… {len(shown) - _NAMES} more …", *shown[-_NAMES // 2 :]]
    return " → ".join(shown)


def size(count: int) -> str:
    """Bytes as people say them, in powers of ten: "812 B", "3.4 kB", "212 MB", "1.5 GB"."""
    if count < 1000:
        return f"{count} B"
    power = min(3, (len(str(count)) - 1) // 3)
    size = count / 1000**power
    return f"{size:.0f} {_UNITS[power]}" if size >= 9.95 else f"{size:.1f} {_UNITS[power]}"


def cut(line: str, most: int = _LINE_MAX) -> str:
    """`line`, or its beginning and how long it is."""
    return line if len(line) <= most else f"{line[:most]}… ({len(line):,} characters)"


def listed(names: Sequence[str]) -> str:
    """``a, b, c``, at most eight, then how many there are."""
    text = ", ".join(name_of(name) for name in names[:_NAMES])
    return f"{text}, … ({len(names)})" if len(names) > _NAMES else text


def counted(number: int, noun: str) -> str:
    """``1 task``, ``2 tasks``, ``12,000 entries``."""
    if number != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}s"
    return f"{number:,} {noun}"


def date(ns: int) -> str:
    """Nanoseconds of the epoch as local time, ``2026-11-22 17:00:03``; "?" beyond the calendar."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ns // _SECOND))
    except (ValueError, OverflowError, OSError):
        return "?"


def ago(ns: int, now: int) -> str:
    """How long before `now` that was: "just now", "42 s ago", "3 min ago", "5 h ago", "12 days ago"."""
    seconds = (now - ns) // _SECOND
    if seconds < 5:  # clocks of two processes, or one that was set back
        return "just now"
    if seconds < 60:
        return f"{seconds} s ago"
    if seconds < 3600:
        return f"{seconds // 60} min ago"
    if seconds < 2 * 86400:
        return f"{seconds // 3600} h ago"
    return f"{seconds // 86400:,} days ago"


def table(rows: Sequence[Sequence[str]], right: str = "") -> str:
    """Lines of columns, the first row being the head; those named in `right` (by their heads, with spaces) stand right.

    Cells are inert already. Nothing of a cell is cut.
    """
    if not rows:
        return ""
    names = right.split()
    last = len(rows[0]) - 1
    widths = [min(_COLUMN, max(len(row[column]) for row in rows)) for column in range(last)]
    rights = [head in names for head in rows[0]]
    lines: list[str] = []
    for row in rows:
        cells = [
            f"{cell:>{width}}" if is_right else f"{cell:{width}}"
            for cell, width, is_right in zip(row, widths, rights, strict=False)
        ]
        lines.append("  ".join([*cells, row[last]]).rstrip() + "\n")
    return "".join(lines)
