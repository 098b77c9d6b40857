"""Where code stands: the line of the user's own that a thread is running, or that a coroutine waits at, in words.

What is looked at goes on meanwhile, so the answer is a glimpse: it was true at one instant, and that is all it is for.
Called from any thread. Frames must not be kept: each keeps every local variable of its callers alive.
"""

from __future__ import annotations

import gc
import sys
from itertools import chain
from operator import call
from typing import TYPE_CHECKING, Any, Final

from flowlane.loader import is_user_code, shown_path

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from types import CodeType, FrameType

__all__ = ["at_debugger", "innermost", "lasting", "of_coroutine", "of_frames", "of_thread"]

_OURS = ("flowlane", "flowlane_plugins")
_DEBUGGERS = frozenset({"bdb", "pdb"})


def innermost(ident: int | None) -> FrameType | None:
    """The innermost frame of the thread; None when it has ended."""
    return _all_frames().get(ident or 0)


def of_thread(ident: int | None, below: CodeType) -> str | None:
    """Where the thread stands in what `below` called; None when it is not there (any more)."""
    return of_frames(_up_to(innermost(ident), below))


def of_frames(frames: Iterable[FrameType]) -> str | None:
    """``"etl.py:12 in fetch (requests.api.get)"`` of frames, innermost first; in brackets what that line called, if it is Python.

    The innermost frame of the user's own code counts; when there is none (a task that is a library's function), the outermost
    that is not ours.
    """
    found: FrameType | None = None
    callee: FrameType | None = None
    inner: FrameType | None = None
    for frame in frames:
        module = _module(frame)
        if module.partition(".")[0] not in _OURS:
            found, callee = frame, inner
            if is_user_code(frame.f_code.co_filename, module):
                break
        inner = frame
    if found is None:
        return None
    code = found.f_code
    text = f"{shown_path(code.co_filename)}:{found.f_lineno} in {code.co_name}"
    if callee is not None:
        text += f" ({_module(callee)}.{callee.f_code.co_qualname})"
    return text


def of_coroutine(task: asyncio.Task[Any]) -> str | None:
    """Where a Task that does not run just now waits; None when it has ended."""
    frames: list[FrameType] = []
    waits: Any = task.get_coro()
    while waits is not None:
        # Only coroutines in the narrow sense have all of it; what they await at last is a future's iterator, which has none.
        frame = getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None)
        if frame is not None:
            frames.append(frame)
        waits = getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None)
    return of_frames(reversed(frames))


def at_debugger(frames: Iterable[FrameType]) -> bool:
    """Whether somebody holds these frames up on purpose, at a breakpoint."""
    return any(_module(frame) in _DEBUGGERS for frame in frames)


def lasting(ns: int) -> str:
    """A duration for people: "312 ms", "2.0 s"."""
    return f"{ns / 1e6:.0f} ms" if ns < 999_500_000 else f"{ns / 1e9:.1f} s"


_frames: Final = sys._current_frames  # pyright: ignore[reportPrivateUsage]  # documented, for just this

#: By whether the collector is on: what to call for the frames of all threads.
_STEPS: Final[dict[bool, tuple[Callable[[], Any], ...]]] = {True: (gc.disable, _frames, gc.enable), False: (_frames,)}


def _all_frames() -> dict[int, FrameType]:
    """The innermost frame of every thread, by its ident.

    Up to 3.11.8 Python may stand still for ever in that: it makes frame objects under a lock that every thread needs when it
    begins or ends; if the collector runs then, and a finalizer gives up the GIL, each waits for the other
    (python/cpython#106883). So the collector is off meanwhile. All of it is one call of C functions, in which no other thread
    gets its turn: nobody can see it off, or have switched it himself in between.
    """
    if sys.version_info >= (3, 12):
        return _frames()
    done: list[Any] = list(map(call, chain.from_iterable(map(_STEPS.__getitem__, map(call, (gc.isenabled,))))))
    frames: dict[int, FrameType] = done[len(done) // 2]
    return frames


def _up_to(frame: FrameType | None, below: CodeType) -> list[FrameType]:
    frames: list[FrameType] = []
    while frame is not None:
        if frame.f_code is below:
            return frames
        frames.append(frame)
        frame = frame.f_back
    return []


def _module(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return name if isinstance(name, str) else ""
