"""Telling a run, or some of it, to stop.

What is out is asked to, once; what is not ends at once; what has become others takes them with it. What tidies up is spared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowlane.core.ends import Ends
from flowlane.core.outcomes import (
    ASK,
    ENDED,
    LINKED,
)
from flowlane.core.states import (
    CANCELLED,
    EXPANDED,
    PENDING,
    READY,
    RETRYING,
    TIMED_OUT,
    Reason,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


__all__ = ["Stopping"]


class Stopping(Ends):
    """See the module's text."""

    def _cancel(self, elements: Iterable[int], reason: Reason) -> None:
        """Stop elements, and what they have become. Those that are out are asked to."""
        work = list(elements)
        for element in work:  # grows while it is walked
            code = self._state[element]
            if element in self._running_out:
                chain, stage = self._stages[element]
                stage.dead, stage.reason = CANCELLED, reason
                self._dirty[chain] = None
                work += self._parts_of(element)
            if code in ENDED or self._is_spared(element):
                continue
            if self._held[element]:
                self._ask(element, reason)
                continue
            if code != EXPANDED:
                self._drop(element, CANCELLED, reason)
                continue
            if element in self._scopes:
                self._scopes[element].reason = reason
                work += self.elements_of(element)
                continue
            self._gathering.pop(element, None)
            if element in self._stages:
                chain, stage = self._stages[element]
                stage.dead, stage.reason, stage.concluded = CANCELLED, reason, True
                self._dirty[chain] = None
            work += self._parts_of(element)
            self._end_container(element, CANCELLED, reason)
            self._part_with(element)

    def _parts_of(self, container: int) -> list[int]:
        parts = list(self.elements_of(container))
        if container in self._trees:
            blocks = [self._elements.blocks[number] for number in self._trees[container].blocks]
            parts += [block.start for block in blocks]
        return [part for part in dict.fromkeys(parts) if self._state[part] not in ENDED]

    def _stop(self, reason: Reason) -> None:
        """Begin nothing any more; unless draining, ask what runs to stop as well.

        What tidies up is spared, so that it can: until somebody cancels a second time.
        """
        again = reason is Reason.CANCEL_REQUESTED and self._stopping is Reason.CANCEL_REQUESTED
        if again or not self._begun:  # nothing was set up yet
            self._forced = True
        if self._stopping in (None, Reason.DRAINED):  # a cancel outranks a drain; nothing outranks a cancel
            self._stopping = reason
        spared, held, state = self._tidies, self._held, self._state
        for element in range(len(state)):
            if element in spared and not self._forced:
                continue
            if held[element]:
                if held[element] <= LINKED and (reason is not Reason.DRAINED or self._queue_of[element] < 0):
                    self._ask(element, reason)
            elif state[element] in (PENDING, READY, RETRYING):
                self._drop(element, CANCELLED, reason)
        self._dirty.update(dict.fromkeys([chain for chain, _ in self._stages.values()]))
        self._waiting.clear(lambda element: self._state[element] == READY)
        self._begun = True  # a run cancelled before it began still ends

    def _ask(self, element: int, reason: Reason) -> None:
        if self._queue_of[element] < 0:  # a graph that is being made: nobody can be asked, and nobody need be
            self._let_go(element)
            self._overdue.pop(element, None)
            self._settle(element, TIMED_OUT if reason is Reason.TOTAL_TIMEOUT else CANCELLED, reason)
            return
        if self._held[element] > LINKED:
            return  # every attempt is asked once
        self._held[element] = ASK[reason]
        self._asks.setdefault((self.lane(element), reason), []).append(element)
