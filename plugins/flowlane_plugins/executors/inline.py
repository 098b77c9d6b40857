"""The `inline` executor, for debugging: everything runs in the thread of the engine's loop, one job at a time.

``run(etl.bind(...), routes={"*": "inline"})`` makes breakpoints, monkeypatching and stack traces behave as in a plain call.
A sync function blocks the loop while it runs; that is the point.
"""

from __future__ import annotations

from flowlane_plugins.executors.asyncio_ import AsyncioExecutor

__all__ = ["InlineExecutor"]


class InlineExecutor(AsyncioExecutor):
    """Runs any function, sync or async. One slot: the next job begins when this one has ended."""

    accepts = frozenset({"sync", "async"})
    default_slots = 1

    def __init__(self) -> None:
        super().__init__(slots=1, blocked_after=None)
