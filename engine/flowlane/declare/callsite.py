"""Where in the user's code something was written, and the words for a near miss.

Every error of declaring names ``file:line`` of the user's own line, found by walking out of our frames. That walk is
only made for an error; what is kept for each node is a number (see `Sites`).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType, FrameType

__all__ = ["Sites", "Spot", "caller", "did_you_mean", "frame_at", "place", "spot", "user_frame", "words"]

#: A place in the user's code: the code object, and the offset of the instruction in it.
Spot: TypeAlias = "tuple[CodeType, int]"

#: The frame so many calls up, 0 being the one that asks. Private in name only: logging rests on it as well.
frame_at: Final[Callable[[int], FrameType]] = sys._getframe  # pyright: ignore[reportPrivateUsage]


def place(filename: str, line: int) -> str:
    """``file:line``, the file relative to the current directory when it lies inside it."""
    if os.path.isabs(filename):
        try:
            root = os.path.join(os.getcwd(), "")
        except OSError:  # the current directory was deleted
            return f"{filename}:{line}"
        filename = filename.removeprefix(root)
    return f"{filename}:{line}"


def user_frame() -> FrameType | None:
    """The innermost frame that is not ours; None where the event loop called us, so that nobody stands there."""
    frame: FrameType | None = frame_at(1)
    while frame is not None:
        module: object = frame.f_globals.get("__name__")
        if not (isinstance(module, str) and (module == "flowlane" or module.startswith("flowlane."))):
            return None if isinstance(module, str) and module.startswith("asyncio.") else frame
        frame = frame.f_back
    return None


def spot() -> Spot | None:
    """Where the innermost frame that is not ours stands: cheap to take, and words only once `words` is asked."""
    frame = user_frame()
    return None if frame is None else (frame.f_code, frame.f_lasti)


def words(where: Spot | None) -> str | None:
    """``file:line`` of a spot."""
    if where is None:
        return None
    code, offset = where
    line = code.co_firstlineno
    for start, end, here in code.co_lines():
        if start <= offset < end and here is not None:
            line = here
            break
    return place(code.co_filename, line)


def caller() -> str | None:
    """``file:line`` of the innermost frame that is not ours, or None (an embedded interpreter without frames)."""
    frame = user_frame()
    return None if frame is None else place(frame.f_code.co_filename, frame.f_lineno)


class Sites:
    """Call sites as small numbers, one per place in the code however often it is passed.

    A line number is dear to compute (the whole line table is walked), so a site is kept as code object and offset of
    its instruction, and turned into words only for an error. Keyed by the code's id: code objects hash by content, slowly;
    `_places` keeps them alive, so an id cannot come to mean another.
    """

    __slots__ = ("_code", "_last", "_numbers", "_offset", "_places", "_texts")

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, int], int] = {}
        self._places: list[Spot] = []
        self._texts: dict[int, str] = {}
        self._code: CodeType | None = None  # the last one asked for: in a loop it is also the next
        self._offset = 0
        self._last = 0

    def number(self, frame: FrameType) -> int:
        """The number of the place `frame` is at."""
        code, offset = frame.f_code, frame.f_lasti
        if code is self._code and offset == self._offset:
            return self._last
        key = (id(code), offset)
        known = self._numbers.get(key)
        if known is None:
            known = self._numbers[key] = len(self._places)
            self._places.append((code, offset))
        self._code, self._offset, self._last = code, offset, known
        return known

    def text(self, number: int) -> str:
        """``file:line`` of that place."""
        text = self._texts.get(number)
        if text is None:
            text = self._texts[number] = words(self._places[number]) or ""
        return text


def did_you_mean(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` is most likely a slip of, or None."""
    import difflib

    # difflib compares with each choice (10 µs and more apiece); a graph may have a million names
    pool = [choice for _, choice in zip(range(20_000), choices, strict=False)]
    lowered = {choice.lower(): choice for choice in pool}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return lowered[close[0]] if close else None
