"""How long jobs that were told to stop are waited for: a deadline each, of which the earliest asked for holds.

Somebody who cancels a second time, with less grace, means now; so asking again can only shorten. One timer at a time, on the
loop's thread, as is everything here but `asked`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

__all__ = ["Patience"]


class Patience:
    """Calls `give_up` with the refs whose grace is over and that nobody has forgotten meanwhile, from a plain callback."""

    def __init__(self, loop: asyncio.AbstractEventLoop, give_up: Callable[[list[int]], None]) -> None:
        self.asked: dict[int, float] = {}  # ref → when it is given up, in the loop's time
        self._loop = loop
        self._give_up = give_up
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0.0  # when the timer fires, if there is one

    def ask(self, refs: Iterable[int], grace: float) -> None:
        """Wait for these `grace` seconds more, or for what is left of an earlier grace, whichever is less."""
        due = self._loop.time() + max(grace, 0.0)
        asked = self.asked
        sooner = [ref for ref in refs if asked.get(ref, due + 1) > due]
        if not sooner:
            return
        for ref in sooner:
            asked[ref] = due
        if self._timer is None or self._next > due:
            self._set_timer(due)

    def stop(self) -> None:
        """Forget all."""
        self.asked.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._next = self._loop.call_at(due, self._look), due

    def _look(self) -> None:
        self._timer = None
        now = max(self._next, self._loop.time())  # a loop's timer may fire a tick of its clock early
        over = [ref for ref, due in self.asked.items() if due <= now]
        for ref in over:
            del self.asked[ref]
        if self.asked:
            self._set_timer(min(self.asked.values()))
        if over:
            self._give_up(over)
