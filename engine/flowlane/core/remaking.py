"""Making values again that are gone: they were on a machine, and the machine is not there any more.

A reader whose attempt was to begin finds that something it reads is gone, and tells (ResultLost). What made it runs again, and
the reader waits as if it had never been ready. Both get an attempt for it that the retry policy does not count, which is about
what goes wrong in a task. How often one value may be made again is a bound of its own (``Policy.remakes``), so that a
machine that dies of a value does not take the run round in a circle.

What runs again reads its own inputs again. Those that were released, because every reader had ended, run again before it, and so
on; those that are kept for other readers, or came from a store, are there. Of one that turns out to be gone as well its new
reader tells, like any other.

Making again is undoing an end: whoever counted it is told that it has not happened, so that all of them can be told of it once
more, in the usual way. Two things are not asked twice: conditions, which were decided by the first value, and reductions, which
know the element by its number. What has become others (a map, a workflow) is not made again as a whole.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from flowlane.core import messages as m
from flowlane.core.elements import CHAIN, GRAPH, TREE
from flowlane.core.graphs import Graphs
from flowlane.core.messages import NEVER
from flowlane.core.outcomes import ASKED, ATTEMPTS_MAX, BECAME_READY, CODE, ENDED, HAS_VALUE, OK, OUTCOME
from flowlane.core.standing import InvalidTransition
from flowlane.core.states import CANCELLED, EXPANDED, PENDING, READY, SUCCEEDED, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flowlane.core.chains import Scope
    from flowlane.core.elements import Block
    from flowlane.core.plan import Plan

__all__ = ["NOTHING", "Obstacle", "Remaking"]

#: In place of how an upstream ended: it has not, as far as was told.
NOTHING: Final = -1


class Obstacle(StrEnum):
    """Why a value that is gone is not made again."""

    ONCE = "once"  # its policy forbids it
    OFTEN = "often"  # it was made again as often as may be
    PARTS = "parts"  # it is made of others' values: a map, a reduction, a workflow
    ENDED = "ended"  # what it is part of has ended, and let go of what it was made from
    SET_UP = "set_up"  # it sets up, or tidies up, what others have worked in
    TIDIED = "tidied"  # what it worked in is tidied up, or may be while it would run
    ITEMS = "items"  # its item came from an iterator, and is used up
    FAILED = "failed"  # it was made again, and did not succeed


class Remaking(Graphs):
    """See the module's text."""

    def obstacle(self, lost: Iterable[int]) -> tuple[int, Obstacle] | None:
        """Why the values of these elements cannot be made again: the element that stands in the way, and what of it. None when
        they can."""
        return self._lineage(lost)[1]

    def reads(self, element: int) -> Sequence[int]:
        """The elements whose values it reads, whatever it is; an element of a map also those that its map goes over."""
        block = self._elements.block(element)
        if block.kind != CHAIN:
            return self._inputs[element]
        assert block.chain is not None
        position = (element - block.start) % len(block.chain.stages)
        stage = block.chain.stages[position]
        return [*[element - position + up for up in stage.over], *self._inputs[stage.container]]

    def _bereft(self, event: m.ResultLost) -> m.Failed | None:
        """An attempt that was out cannot begin, because what it reads is gone. Where nothing can be done, how it ends instead."""
        element = event.element
        for each in event.lost:
            if not 0 <= each < len(self._state):
                raise InvalidTransition(event, "no such element was lost", f"elements are 0..{len(self._state) - 1}")
        if element in self._stages and self._state[element] == EXPANDED:
            self._sourceless(event)
            return None
        if not self._current(event):
            return None
        if self._state[element] != READY:
            raise InvalidTransition(event, "this attempt has started", self._story(element))
        asked = ASKED[self._held[element]]
        if asked is None and self._stopping is not None and not self._is_spared(element):
            self._let_go(element)
            self._settle(element, CANCELLED, self._stopping, event.ended)
            return None
        again, obstacle = self._lineage(event.lost)
        if asked is not None or obstacle is not None or event.attempt >= ATTEMPTS_MAX:
            return m.Failed(element, event.attempt, NEVER, event.ended, event.retryable)
        self._let_go(element)
        self._uncounted[element] = self._uncounted.get(element, 0) + 1
        self._step.transitions.append((element, event.attempt, CODE[READY, PENDING, Reason.RESULT_LOST], event.ended))
        self._state[element] = PENDING
        self._make_again(again)
        self._recount(element)
        for each in event.lost:
            self._wait_for(element, each)
        self._go_again(element)  # it may be there again already
        return None

    def _sourceless(self, event: m.ResultLost) -> None:
        """What a map goes over is gone, before it had its first item."""
        chain, stage = self._stages[event.element]
        if stage.position or not chain.pulling or not chain.more:
            self.late += 1
            self._step.late += 1
            return
        again, obstacle = self._lineage(event.lost)
        if obstacle is not None or self._stopping is not None:
            self._source_failed(chain, stage)
            return
        self._make_again(again)
        for each in event.lost:
            if self._is_coming(each):
                self._expect(event.element, each)
        if event.element not in self._expected:
            self._pull_again(event.element)

    # ── what has to run ───────────────────────────────────────────────────────────────────────────────────────────

    def _lineage(self, lost: Iterable[int]) -> tuple[list[int], tuple[int, Obstacle] | None]:
        """What has to run again so that these values are there, and what stands in the way of that."""
        state, uses = self._state, self._uses
        again: dict[int, None] = {}
        for element in dict.fromkeys(lost):
            if state[element] in HAS_VALUE:
                again[element] = None
            elif state[element] in ENDED:
                return [], (element, Obstacle.FAILED)
        work = list(again)
        for element in work:  # grows while it is walked
            obstacle = self._in_the_way(element)
            if obstacle is not None:
                return [], (element, obstacle)
            for up in self.reads(element):
                if state[up] in HAS_VALUE:
                    if not uses[up] and up not in again:  # it was released
                        again[up] = None
                        work.append(up)
                elif state[up] in ENDED and (element in self._restored or up in self._remade):
                    return [], (up, Obstacle.FAILED)  # it had that, in an earlier session or at first, and nobody has
        return work, None

    def _in_the_way(self, element: int) -> Obstacle | None:
        """Why an element that has its value cannot run again."""
        policy, block = self.policy(element), self._elements.block(element)
        if not policy.remakes:
            return Obstacle.ONCE
        if element in self._stages or element in self._trees or element in self._scopes or element in self._grafts:
            return Obstacle.PARTS
        often = self._remade.get(element, 0) >= policy.remakes
        if often or self._attempt[element] + policy.attempts > ATTEMPTS_MAX:
            return Obstacle.OFTEN
        if block.kind == TREE:
            assert block.tree is not None
            return Obstacle.ENDED if block.tree.concluded else None
        if block.kind == CHAIN:
            assert block.chain is not None
            stage = block.chain.stages[(element - block.start) % len(block.chain.stages)]
            if stage.dead:
                return Obstacle.ENDED
            if block.chain.fleeting and not stage.over:
                return Obstacle.ITEMS
        elif block.owner >= 0 and self._scopes[block.owner].concluded:
            return Obstacle.ENDED
        node = self._node_of(element)
        for teardown, before in self._tidies.items():
            if node == teardown or (node in self.upstreams(teardown) and node not in before):
                return Obstacle.SET_UP
            # of a map that has ended it was told already: it does not wait for it any more
            if node in before and (
                self._state[teardown] != PENDING or (node != element and self._state[node] in ENDED)
            ):
                return Obstacle.TIDIED
        return None

    # ── as if it had not ended ────────────────────────────────────────────────────────────────────────────────────

    def _make_again(self, elements: Sequence[int]) -> None:
        """Let these run again, each when what it reads of the others is there."""
        for element in elements:
            self._undo(element)
        for element in elements:
            for up in self.reads(element):
                self._wait_for(element, up)
        for element in elements:
            self._recount(element)
            self._go_again(element)

    def _go_again(self, element: int) -> None:
        """Let a pending element be ready, unless it waits."""
        if self._elements.block(element).kind == GRAPH:
            self._weigh(element)
        elif not self._left[element]:
            self._make_ready(element, self._attempt[element] + 1, BECAME_READY)

    def _undo(self, element: int) -> None:
        """Take back that an element has succeeded."""
        state, left, uses = self._state, self._left, self._uses
        attempt, code = self._attempt[element], CODE[state[element], PENDING, Reason.RESULT_LOST]
        self._step.transitions.append((element, attempt, code, self._at))
        state[element] = PENDING
        self._open += 1
        self._remade[element] = self._remade.get(element, 0) + 1
        self._uncounted[element] = attempt  # of a value that is made again all attempts count anew
        self._linked[element] = 1
        self._undecided.pop(element, None)  # of one that an earlier session had finished
        if element in self._released:
            self._released.remove(element)
        if self.has_total:
            self._limit_total(element)
        for up in self._inputs[element]:
            uses[up] += 1
        for below in self._dependants[element]:
            left[below] += 1
            if state[below] == PENDING:
                self._recount(below)
        block = self._elements.block(element)
        if block.kind == CHAIN:
            self._undo_in_chain(element, block)
        elif block.kind == TREE:
            assert block.tree is not None
            _take_back(block.tree)
        elif block.owner >= 0:
            _take_back(self._scopes[block.owner])

    def _undo_in_chain(self, element: int, block: Block) -> None:
        chain = block.chain
        assert chain is not None
        index, position = divmod(element - block.start, len(chain.stages))
        stage = chain.stages[position]
        _take_back(stage)
        stage.plain = False
        base = element - position
        for over in stage.over:
            self._uses[base + over] += 1
        for below in stage.below:
            self._left[base + below] += 1
        if not block.left[index]:
            chain.under_way += 1
        block.left[index] += 1

    def _recount(self, element: int) -> None:
        """How the upstreams of a pending element stand, where it keeps a tally of them."""
        tally = self._tally.get(element)
        if tally is None:
            return
        tally[:3] = [0, 0, 0]
        block = self._elements.block(element)
        plan, start = block.plan, block.start
        assert plan is not None  # only nodes of graphs have rules
        node = element - start
        apart = {*self._cut(plan, node), *plan.teardowns.get(node, ())}
        for up in plan.upstreams[node]:
            if up not in apart and (told := self._told(plan, node, up, start)) != NOTHING:
                tally[told] += 1

    def _first(self, v: int) -> int:
        """Its state, or that in which it was when it first ended: for what is decided once."""
        return SUCCEEDED if v in self._remade else self._state[v]

    @staticmethod
    def _cut(plan: Plan, node: int) -> set[int]:
        """Upstreams whose end is told in another way: conditions."""
        return {guard.node for guard in plan.guards.get(node, ())} - set(plan.inputs[node])

    def _told(self, plan: Plan, node: int, up: int, start: int, *, first: bool = False) -> int:
        """What a node has heard of one that it waits for: how it ended, or of a map that it goes on with, that it has begun.

        `first`: before any of it was taken back.
        """
        code = self._first(start + up) if first else self._state[start + up]
        if node in plan.maps and up in plan.maps[node].over and self._stages[start + up][1].gate:
            return OK
        if node in plan.teardowns and self._lingers(start + up):
            return NOTHING
        return OUTCOME[code] if code in ENDED else NOTHING

    # ── who waits ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _is_coming(self, element: int) -> bool:
        return element in self._remade and self._state[element] not in ENDED

    def _wait_for(self, element: int, up: int) -> None:
        """A pending element waits for what it reads, if that is being made again."""
        if not self._is_coming(up):
            return
        if element in self._dependants[up]:
            if element in self._rules:  # which might let it begin without
                self._expect(element, up)
            return
        block = self._elements.block(element)
        if block.kind == CHAIN:
            assert block.chain is not None
            position = (element - block.start) % len(block.chain.stages)
            if up - element + position in block.chain.stages[position].over:
                return
        self._left[element] += 1
        self._wanted.setdefault(up, []).append(element)

    def _expect(self, element: int, up: int) -> None:
        self._expected[element] = self._expected.get(element, 0) + 1
        self._wanted.setdefault(up, []).append(element)

    def _tell_linked(self, element: int, outcome: int) -> None:
        super()._tell_linked(element, outcome)
        if self._wanted:
            for reader in self._wanted.pop(element, ()):
                self._tell_reader(reader, element, outcome)

    def _tell_reader(self, reader: int, element: int, outcome: int) -> None:
        """A value that was made again is there, or will not be."""
        if reader not in self._expected:
            self._left[reader] -= 1
            if self._state[reader] != PENDING:
                return
            if outcome != OK:
                self._bar(reader, outcome, element)
            elif not self._left[reader]:
                self._make_ready(reader, self._attempt[reader] + 1, BECAME_READY)
            return
        self._expected[reader] -= 1
        if not self._expected[reader]:
            del self._expected[reader]
        if self._state[reader] == EXPANDED:
            if outcome != OK and self._stages[reader][0].more:
                self._source_failed(*self._stages[reader])
            elif reader not in self._expected:
                self._pull_again(reader)
        elif self._state[reader] == PENDING:
            self._weigh(reader)

    def _pull_again(self, container: int) -> None:
        chain, _ = self._stages[container]
        if chain.more and chain.pulling:
            self._step.commands.append(m.Pull(container, chain.window - chain.under_way))


def _take_back(scope: Scope) -> None:
    scope.open += 1
    scope.ok -= 1
