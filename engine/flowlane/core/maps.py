"""Chains of maps: their gates, the indices that are admitted, and how element i of one goes on to element i of the next."""

from __future__ import annotations

from array import array
from heapq import heappush
from typing import TYPE_CHECKING, Final

from flowlane.core import messages as m
from flowlane.core.chains import BLOCK, Chain, Stage
from flowlane.core.elements import CHAIN, Block
from flowlane.core.outcomes import (
    BAD,
    BECAME_READY,
    BEGAN,
    CODE,
    ENDED,
    FAILURES,
    HAS_VALUE,
    OK,
    OUTCOME,
    RATE,
    RETURNED,
    SKIP,
)
from flowlane.core.plan import SLOT
from flowlane.core.standing import InvalidTransition
from flowlane.core.states import (
    CANCELLED,
    EXPANDED,
    FAILED,
    PENDING,
    READY,
    SKIPPED,
    SUCCEEDED,
    UPSTREAM_FAILED,
    Reason,
)
from flowlane.core.trees import Trees

if TYPE_CHECKING:
    from flowlane.core.messages import Succeeded


__all__ = ["Maps"]


#: Elements that one step takes over from an earlier session: 50 ms of it.
RECALLED_AT_ONCE: Final = 2_000


class Maps(Trees):
    """See the module's text, and ``chains`` for what is known of a chain."""

    def _open_gate(self, chain: Chain, stage: Stage) -> None:
        """All that a map waits for is there: beside the items it takes from others, that these have begun."""
        if stage.gate:
            return
        stage.gate = True
        self._opening.append((chain, stage))
        if len(self._opening) > 1:
            return  # whoever opened the first one goes on with it
        for each, opened in self._opening:  # grows while it is walked
            if opened.position == 0:
                each.begun = True
            self._expand(opened.container)
            waiting, opened.waiting = opened.waiting, []
            for element in waiting:
                if self._state[element] == PENDING:
                    self._make_ready(element, self._attempt[element] + 1, BECAME_READY)
            self._dirty[each] = None
            self._tell_begun(each, opened, OK)
        self._opening.clear()

    def _tell_begun(self, chain: Chain, stage: Stage, outcome: int) -> None:
        """Those that take from a map element by element hear that it has begun, or how it ended instead."""
        below = [chain.stages[position].container for position in stage.below]
        below += [tree.container for tree in stage.trees if tree.container != stage.container]
        for container in below:
            self._left[container] -= 1
            if self._state[container] == PENDING:
                self._hear(container, stage.container, outcome)

    def _expand(self, container: int) -> None:
        """A map has become elements: none yet."""
        at, transitions = self._at, self._step.transitions
        transitions.append((container, 1, BECAME_READY, at))
        transitions.append((container, 1, CODE[READY, EXPANDED, Reason.BECAME_MORE], at))
        self._state[container] = EXPANDED
        self._attempt[container] = 1
        self.ready_ns[container] = self.launched_ns[container] = self.started_ns[container] = at

    def _close_gate(self, chain: Chain, stage: Stage) -> None:
        """A map will not run: its elements, if there are any, end like it."""
        stage.dead = self._state[stage.container]
        stage.concluded = True
        if chain.begun:
            for element in self.elements_of(stage.container):
                if self._state[element] == PENDING:
                    self._bury(element, stage)
            self._dirty[chain] = None

    def _bury(self, element: int, stage: Stage) -> None:
        """An element of a map that does not run ends like it."""
        if stage.dead == CANCELLED or not stage.dead:
            self._settle(element, CANCELLED, stage.reason or self._stopping or Reason.NOT_NEEDED)
            return
        self._cause[element] = stage.container
        reason = Reason.UPSTREAM_SKIPPED if stage.dead == SKIPPED else Reason.UPSTREAM_FAILED
        self._settle(element, SKIPPED if stage.dead == SKIPPED else UPSTREAM_FAILED, reason)

    def _never_begun(self, chain: Chain, stage: Stage) -> None:
        """A map has ended before it began."""
        code = self._state[stage.container]
        if code not in HAS_VALUE:  # else an earlier session did it all
            self._tell_begun(chain, stage, OUTCOME[code])

    def _expanded(self, event: m.Expanded) -> None:
        found = self._stages.get(event.element)
        if found is None or not found[0].pulling or found[1].position:
            if found is not None and found[0].begun:
                self.late += 1
                self._step.late += 1
                return
            raise InvalidTransition(event, "no items were asked for", self._story(event.element))
        chain = found[0]
        chain.pulling = False
        chain.known += event.count
        chain.fleeting = chain.fleeting or event.once
        self._sized(chain, event.count * len(chain.stages))
        if not event.more:
            self._source_ended(chain)
        self._dirty[chain] = None

    def _source_failed(self, chain: Chain, stage: Stage) -> None:
        if stage.position or not chain.more:
            self.late += 1
            self._step.late += 1
            return
        chain.failed = True
        chain.pulling = False
        if not chain.sized:
            self._sized(chain, 0)
        self._source_ended(chain)
        self._dirty[chain] = None

    def _source_ended(self, chain: Chain) -> None:
        chain.more = False
        for stage in chain.stages:
            for tree in stage.trees:
                lacking = chain.failed and not tree.base
                tree.size_known(chain.known + lacking)
                self._tree_sized(tree)
                if lacking:  # what never came counts as an item that failed: nobody may take the rest for all there was
                    self._feed(tree, 0, chain.known, stage.container, BAD)

    def _admit_all(self) -> None:
        while self._dirty:
            chains, self._dirty = list(self._dirty), {}
            for chain in chains:
                self._admit(chain)
                if chain.complete:
                    for stage in chain.stages:
                        self._try_conclude(chain, stage)
                        self._run_out(chain, stage)
                        if chain.cut and not stage.open:
                            self._fell(stage)
            if self._rippling:
                self._ripple()

    def _admit(self, chain: Chain) -> None:
        """Let indices begin, as many as the window has room for."""
        if not chain.begun:
            return
        first = chain.stages[0]
        if self._stopping is not None or first.dead:
            self._cut_short(chain, whole=False)
        elif first.concluded and not first.runs_out:  # all others take their items from it, so no further one is of use
            had_enough = any(each.concluded and each.spec.enough and each.spec.cancel_rest for each in chain.stages)
            self._cut_short(chain, whole=had_enough)
        stages, state, left = chain.stages, self._state, self._left
        width = len(stages)
        recalled = 0
        while (room := chain.window - chain.under_way) > 0 and chain.admitted < chain.known:
            if chain.admitted == chain.numbered:
                self._number_block(chain)
            block = self._elements.blocks[chain.block]
            low = chain.admitted - block.first
            high = min(low + room, len(block.left))
            for index in range(low, high):
                chain.admitted += 1
                if not block.left[index]:
                    continue
                chain.under_way += 1
                base = block.start + index * width
                for stage in stages:
                    element = base + stage.position
                    if state[element] != PENDING:
                        continue
                    if self._recall is not None and self._remember(element):
                        recalled += 1
                        continue
                    if stage.dead or (stage.concluded and not stage.runs_out):
                        self._bury(element, stage)
                    elif not left[element]:
                        if stage.gate:
                            self._make_ready(element, self._attempt[element] + 1, BECAME_READY)
                        else:
                            stage.waiting.append(element)
            if self._rippling:
                self._ripple()
            if recalled > RECALLED_AT_ONCE:  # the next step goes on, which comes at once
                self._postponed[chain] = None
                heappush(self._times, (self._at, RATE, 0, 0))
                return
        if (
            chain.more
            and not chain.pulling
            and chain.admitted == chain.known
            and chain.under_way <= chain.window // 2  # not for each that ends: items come in larger lots
        ):
            chain.pulling = True
            self._step.commands.append(m.Pull(chain.stages[0].container, chain.window - chain.under_way))

    def _cut_short(self, chain: Chain, *, whole: bool) -> None:
        """No further index begins. `whole`: those that did are enough, and trees merge what there is of them."""
        shorter = chain.known > chain.numbered
        if chain.more or shorter:
            chain.cut = chain.cut or not whole
            self._sized(chain, -(chain.known - chain.numbered) * len(chain.stages))
        chain.known = chain.numbered
        if chain.more or (shorter and whole):
            self._source_ended(chain)

    def _fell(self, stage: Stage) -> None:
        """Not all of its items will come: a tree that has nothing more to merge ends."""
        for tree in stage.trees:
            if not tree.concluded and not tree.open and self._state[tree.container] == EXPANDED:
                tree.concluded = True
                self._settle(tree.container, CANCELLED, self._stopping or stage.reason or Reason.CANCEL_REQUESTED)
                self._part_with(tree.container)

    def _number_block(self, chain: Chain) -> None:
        """Give the next indices their elements."""
        e, stages = self._elements, chain.stages
        count = min(BLOCK, chain.known - chain.numbered)
        width = len(stages)
        block = Block(CHAIN, stages[0].container, chain=chain, first=chain.numbered)
        chain.block = len(e.blocks)
        start = e.grow(block, count * width)
        block.left = bytearray([width]) * count
        e.left.extend(array("i", [len(stage.over) for stage in stages]) * count)
        e.uses.extend(array("i", [stage.uses - (stage.whole and stage.concluded) for stage in stages]) * count)
        e.queue.extend(array("h", [stage.queue for stage in stages]) * count)
        e.policy.extend(array("H", [stage.policy for stage in stages]) * count)
        e.rank.extend(array("i", [stage.rank for stage in stages]) * count)
        e.dependants.extend([()] * (count * width))
        e.inputs.extend([()] * (count * width))
        e.linked[start:] = b"\x01" * (count * width)
        for stage in stages:
            stage.blocks.append(chain.block)
            stage.open += count
            if stage.spec.grafts:
                self._grafts.update(range(start + stage.position, start + count * width, width))
        self._open += count * width
        chain.numbered += count

    def _tell_chain(self, element: int, outcome: int, block: Block) -> None:
        """An element of a map has ended: the same index of others may go on."""
        chain = block.chain
        assert chain is not None
        stages, uses, left, state = chain.stages, self._uses, self._left, self._state
        index, position = divmod(element - block.start, len(stages))
        stage = stages[position]
        base = element - position
        self._count(stage, element, outcome)
        if chain.fleeting and not position:
            self._spent.append(element)
        if outcome == BAD and element in self._unneeded:
            outcome = SKIP  # what was cancelled because there was enough fails nobody
        for over in stage.over:
            up = base + over
            uses[up] -= 1
            if not uses[up] and state[up] in HAS_VALUE:
                self._released.append(up)
        for position in stage.below:
            below = base + position
            left[below] -= 1
            if state[below] != PENDING:
                continue
            if outcome == OK:
                if not left[below]:
                    self._all_landed(below, stages[position])
            elif outcome == BAD:
                self._bar(below, BAD, element)
            else:
                self._barred.setdefault(below, (SKIP, element))
                if not left[below]:
                    self._all_landed(below, stages[position])
        for tree in stage.trees:
            if tree.base and state[element] in FAILURES:
                tree.failed += 1
            if element not in self._remade:  # else it is in its place already
                self._feed(tree, tree.base, block.first + index, element, outcome)
        block.left[index] -= 1
        if not block.left[index] and block.first + index < chain.admitted:
            chain.under_way -= 1
            self._dirty[chain] = None
        if stage.spec.enough or (not stage.open and chain.complete):
            self._try_conclude(chain, stage)
            self._run_out(chain, stage)

    def _run_out(self, chain: Chain, stage: Stage) -> None:
        """The rest of a map that had enough has ended as well: now nobody needs what its elements read."""
        if stage.runs_out and not stage.open and chain.complete:
            stage.runs_out = False
            self._running_out.discard(stage.container)
            self._last_has_ended(stage.container)
            self._leave(stage.container)

    def _leave(self, container: int) -> None:
        """A map or a reduction has ended, or what was left of one that had.

        Until all of its chain have, they keep what their elements are made of: one that has ended may have to run again for
        another that goes on with it.
        """
        found = self._stages.get(container)
        chain = found[0] if found is not None else self._trees[container].chain
        containers = chain.containers
        if not chain.ended:
            if any(self._state[each] not in ENDED or each in self._running_out for each in containers):
                return
            chain.ended = True
            for each in containers:
                self._read(each)
        if not any(stage.open or any(tree.open for tree in stage.trees) for stage in chain.stages):
            self._parted += containers

    def _land(self, event: Succeeded) -> bool:
        """The success of a linked attempt that is out: of an element of a map, as a rule.

        What `_end`, `_settle` and `_tell_chain` do, without their detours. False when it is anything else: nothing has changed.
        """
        element, state = event.element, self._state
        e = self._elements
        block = e.blocks[e.block_of[element]]
        chain = block.chain
        if chain is None:
            return False
        stages = chain.stages
        index, position = divmod(element - block.start, len(stages))
        stage = stages[position]
        if not stage.plain or self._overdue:
            return False
        record, uses = self._step.transitions.append, self._uses
        if state[element] == READY:
            self.started_ns[element] = event.started
            record((element, event.attempt, BEGAN, event.started))
        state[element] = SUCCEEDED
        self._held[element] = 0
        self.ended_ns[element] = event.ended
        record((element, event.attempt, RETURNED, event.ended))
        waiting, queue = self._waiting, self._queue_of[element]
        if waiting.requirement[queue] is SLOT:
            waiting.freed[queue] += 1  # `free`, without the call
        else:
            waiting.free(queue)
        self._open -= 1
        stage.open -= 1
        stage.ok += 1
        base = element - position
        for other in stage.over:
            up = base + other
            uses[up] -= 1
            if not uses[up]:
                self._released.append(up)
        for other in stage.below:
            below = base + other
            self._left[below] -= 1
            if not self._left[below] and state[below] == PENDING:
                self._all_landed(below, stages[other])
        if not uses[element]:
            self._released.append(element)
        block.left[index] -= 1
        if not block.left[index] and block.first + index < chain.admitted:
            chain.under_way -= 1
            self._dirty[chain] = None
        if not stage.open and chain.complete:
            self._try_conclude(chain, stage)
        if self._rippling:
            self._ripple()
        return True

    def _all_landed(self, element: int, stage: Stage) -> None:
        """The items that an element takes from others are there, or one of them was skipped."""
        barred = self._barred.pop(element, None) if self._barred else None
        if barred is not None:
            self._bar(element, *barred)
        elif stage.gate:
            self._make_ready(element, self._attempt[element] + 1, BECAME_READY)
        else:
            stage.waiting.append(element)

    def _try_conclude(self, chain: Chain, stage: Stage) -> None:
        """End a map whose elements have ended, or enough of them."""
        if stage.concluded or self._state[stage.container] != EXPANDED:
            return
        container = stage.container
        enough = 0 < stage.spec.enough <= stage.ok
        stage.runs_out = enough and not stage.spec.cancel_rest and not (chain.complete and not stage.open)
        if not enough and (stage.open or not chain.complete):
            return
        stage.concluded = True
        if container in self._trees:  # its tree has the last word
            if chain.failed:  # but there is nothing that it could merge
                self._trees[container].concluded = True
                self._end_container(container, FAILED, Reason.RAISED)
                self._part_with(container)
            return
        if enough:
            if stage.runs_out:
                self._running_out.add(container)
            self._succeed_container(container, Reason.ENOUGH)
            if stage.spec.cancel_rest:
                self._not_needed(chain, stage)
        elif chain.failed and stage.position == 0:
            self._end_container(container, FAILED, Reason.RAISED)
        elif stage.failed:
            self._end_container(container, FAILED, Reason.ELEMENTS_FAILED)
        elif chain.failed:  # not all of its items came
            self._cause[container] = chain.stages[0].container
            self._end_container(container, UPSTREAM_FAILED, Reason.UPSTREAM_FAILED)
        elif stage.upstream_failed or any(chain.stages[up].dead for up in stage.over):
            self._end_container(container, UPSTREAM_FAILED, Reason.UPSTREAM_FAILED)
        elif stage.cancelled or chain.cut:
            self._end_container(container, CANCELLED, stage.reason or self._stopping or Reason.CANCEL_REQUESTED)
        else:
            self._succeed_container(container, Reason.ELEMENTS_DONE)
        self._part_with(container)

    def _not_needed(self, chain: Chain, stage: Stage) -> None:
        """Enough elements of a map have succeeded: the rest of them, and what only they would have needed, is cancelled."""
        rest = [stage]
        for other in reversed(chain.stages[: stage.position]):
            below = [chain.stages[position] for position in other.below]
            unread = not other.whole and not other.trees and not self._dependants[other.container]
            if unread and below and all(each in rest or (each.concluded and not each.runs_out) for each in below):
                rest.append(other)
        for each in rest:
            each.reason = Reason.NOT_NEEDED
            self._cancel(
                [element for element in self.elements_of(each.container) if self._state[element] not in ENDED],
                Reason.NOT_NEEDED,
            )
            if each is not stage and not each.concluded:
                each.concluded = True
                self._settle(each.container, CANCELLED, Reason.NOT_NEEDED)
                self._part_with(each.container)
        self._dirty[chain] = None
