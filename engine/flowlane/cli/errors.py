"""How a mistake is shown: one sentence naming the user's object, its file:line, and a ``hint:``; never a traceback.

An exception out of the user's own module or workflow body is the user's as well: it is shown with the lines of *their*
code that led to it. Only a bug of ours shows a traceback, and says that it is one.
"""

from __future__ import annotations

import linecache
from typing import TYPE_CHECKING, Final

from flowlane.cli.terminal import inert
from flowlane.loader import is_user_code, shown_path

if TYPE_CHECKING:
    from types import TracebackType

    from flowlane.cli.terminal import Messages
    from flowlane.errors import FlowError

__all__ = ["BUG", "show_bug", "show_error"]

BUG: Final = 70  # EX_SOFTWARE of sysexits.h: neither the task's fault nor the caller's
_MAX_FRAMES: Final = 6
_MAX_LINES: Final = 8  # of a message: an error may carry a whole data frame


def show_error(messages: Messages, error: FlowError) -> None:
    """Print `error` in house style. For an error that the user's code raised, its frames follow."""
    first, *rest = inert(error.message, newlines=True).splitlines() or [""]
    messages.write(f"{messages.paint('error:', '1;31')} {first}\n")
    for line in rest[:_MAX_LINES]:
        messages.write(f"    {line}\n")
    frames = _user_lines(error.__cause__) if error.__cause__ is not None else []
    if len(frames) > 1 or (frames and error.where is not None and frames[-1][0] == error.where):
        width = max(len(place) for place, _ in frames)
        for place, source in frames:
            messages.write(f"  at {inert(place):{width}}  {inert(source)}".rstrip() + "\n")
    elif error.where:
        messages.write(f"  at {inert(error.where)}\n")
    if isinstance(error.__cause__, SyntaxError):
        _show_source(messages, error.__cause__)
    if error.hint:
        messages.write(f"  hint: {inert(error.hint)}\n")
    messages.flush()


def show_bug(messages: Messages, error: BaseException) -> None:
    """Print an error that only a defect of flowlane can cause, whole, and say so."""
    import traceback

    messages.write(inert("".join(traceback.format_exception(error)), newlines=True))
    messages.line("error: this is a defect of flowlane, not of your workflow; please report it with the lines above")


def _user_lines(error: BaseException) -> list[tuple[str, str]]:
    """("file:line", source text) of the frames of `error` in the user's own code, outermost first, the last few."""
    lines: list[tuple[str, str]] = []
    tb: TracebackType | None = error.__traceback__
    while tb is not None:
        code = tb.tb_frame.f_code
        if is_user_code(code.co_filename, str(tb.tb_frame.f_globals.get("__name__", ""))):
            place = f"{shown_path(code.co_filename)}:{tb.tb_lineno}"
            lines.append((place, linecache.getline(code.co_filename, tb.tb_lineno).strip()))
        tb = tb.tb_next
    return lines[-_MAX_FRAMES:]


def _show_source(messages: Messages, error: SyntaxError) -> None:
    text = error.text
    if not text:
        return
    line = text.rstrip("\n")
    stripped = line.lstrip()
    messages.write(f"    {inert(stripped)}\n")
    if error.offset and error.offset > 0:
        column = error.offset - 1 - (len(line) - len(stripped))
        if 0 <= column <= len(stripped) and stripped.isprintable():  # otherwise the mark would point elsewhere
            messages.write("    " + " " * column + "^\n")
