"""How an end is told: to those that wait for it, to the rules and conditions they have, to what it is a part of.

`_settle` gives an element its final state and puts it on a list; `_ripple` works that off, and whoever ends by it joins the list.
Nothing is recursive, and what is told of a failure is a shortest way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from heapq import heappush
from typing import TYPE_CHECKING

from flowlane.core import messages as m
from flowlane.core.elements import NOBODY
from flowlane.core.failing import Failing
from flowlane.core.messages import NEVER
from flowlane.core.outcomes import (
    AGAIN,
    AGEING,
    BAD,
    BECAME_READY,
    CODE,
    ENDED,
    FAILURES,
    HAS_VALUE,
    LINKED,
    OK,
    OUT,
    OUTCOME,
    RETRY,
    SKIP,
    TOTAL_DEADLINE,
)
from flowlane.core.ready import ELEMENT_BITS
from flowlane.core.rules import ALL_SUCCESS, Trigger
from flowlane.core.states import (
    CANCELLED,
    EXPANDED,
    FAILED,
    PENDING,
    READY,
    RETRYING,
    SKIPPED,
    SUCCEEDED,
    UNKNOWN,
    UPSTREAM_FAILED,
    Reason,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowlane.core.chains import Chain, Scope, Stage, Tree
    from flowlane.core.elements import Block


__all__ = ["Ends"]


class Ends(Failing, ABC):
    """See the module's text."""

    # ── what the layers above do ──────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def _tell_linked(self, element: int, outcome: int) -> None:
        """Tell of an end whom it concerns beside plain dependants."""

    @abstractmethod
    def _tell_graph(self, element: int, outcome: int, block: Block) -> None:
        """A node of a graph that another element has become has ended."""

    @abstractmethod
    def _open_gate(self, chain: Chain, stage: Stage) -> None:
        """All that a map waits for is there: beside the items it takes from others, that these have begun."""

    @abstractmethod
    def _expand(self, container: int) -> None:
        """A map has become elements: none yet."""

    @abstractmethod
    def _tree_begun(self, tree: Tree) -> None:
        """A reduction of a map has begun."""

    @abstractmethod
    def _close_gate(self, chain: Chain, stage: Stage) -> None:
        """A map will not run."""

    @abstractmethod
    def _leave(self, container: int) -> None:
        """A map or a reduction has ended, or what was left of one that had."""

    @abstractmethod
    def _become(self, element: int) -> None:
        """The turn of an element that becomes a graph has come."""

    # ── ready ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _make_ready(self, element: int, attempt: int, code: int) -> None:
        at = self._at
        if attempt > 1:
            self.first_ready_ns.setdefault(element, self.ready_ns[element])
        self._state[element] = READY
        self._attempt[element] = attempt
        self.ready_ns[element] = at
        self.launched_ns[element] = self.started_ns[element] = self.ended_ns[element] = NEVER
        self._step.transitions.append((element, attempt, code, at))
        queue = self._queue_of[element]
        if queue < 0:
            self._become(element)
        else:
            key = self._rank[element] << ELEMENT_BITS | element
            if (
                self._priority
            ):  # time and priority in one, quantised so that ranks still count: both only ever move forward
                key += (at - self._priority.get(element, 0) * AGEING) // (AGEING // 10) << ELEMENT_BITS + 31
            heappush(self._waiting.queues[queue], key)
        if self.has_total and attempt == 1:
            self._limit_total(element)

    def _retry(self, element: int, reason: Reason, ended: int, wish: int) -> None:
        attempt = self._attempt[element]
        policy = self.policy(element)
        self._step.transitions.append((element, attempt, CODE[self._state[element], RETRYING, reason], ended))
        self._state[element] = RETRYING
        self.ended_ns[element] = ended
        if self._stopping is not None and not self._is_spared(
            element
        ):  # an attempt is left, but nothing is begun any more
            self._settle(element, CANCELLED, self._stopping)
            return
        if wish != NEVER:
            due = self._at + wish
        else:
            share = self._jitter() if policy.jitter and self._jitter is not None else 1.0
            due = self._at + policy.delay(attempt - self._uncounted.get(element, 0), share)
        if due <= self._at:
            self._make_ready(element, attempt + 1, AGAIN)
        else:
            heappush(self._times, (due, RETRY, element, attempt))

    def _rest_is_not_needed(self, restored: Iterable[int]) -> None:
        """Of joins that an earlier session had made, the upstreams that had not ended by then."""
        for element in restored:
            rule = self._rules.get(element)
            if rule is not None and rule.cancel_rest and self._state[element] in HAS_VALUE:
                self._cancel([up for up in self.upstreams(element) if self._state[up] not in ENDED], Reason.NOT_NEEDED)
        self._ripple()

    def _key(self, element: int) -> int:
        """Its place in a queue: by rank; where there are priorities first by these and time, quantised so that ranks count."""
        key = self._rank[element] << ELEMENT_BITS | element
        if self._priority:
            aged = self.ready_ns[element] - self._priority.get(element, 0) * AGEING
            key += aged // (AGEING // 10) << ELEMENT_BITS + 31
        return key

    def _limit_total(self, element: int) -> None:
        policy = self.policy(element)
        if policy.total_timeout:
            heappush(
                self._times, (self._at + policy.total_timeout, TOTAL_DEADLINE, element, self._remade.get(element, 0))
            )

    def _let_go(self, element: int) -> None:
        """An attempt is not out any more; what it held is free."""
        self._held[element] = 0
        queue = self._queue_of[element]
        if queue >= 0:
            self._waiting.free(queue)

    def _remember(self, element: int) -> bool:
        """Let an element end as it had in an earlier session, if it had."""
        assert self._recall is not None
        told = self._recall(element)
        if not told:
            return False
        code, chosen = told & 0xFF, told >> 8
        if chosen:
            self._chosen[element] = chosen
        self._restored.add(element)
        self._settle(element, code, Reason.PROCESS_DIED if code == UNKNOWN else Reason.RESTORED)
        return True

    def _settle(self, element: int, target: int, reason: Reason, at: int | None = None) -> None:
        """Move an element to a final state. It will read its inputs no more. Whom it concerns is told by `_ripple`."""
        state = self._state[element]
        t = self._at if at is None else at
        self._step.transitions.append((element, self._attempt[element], CODE[state, target, reason], t))
        self._state[element] = target
        if state != RETRYING:  # there the latest attempt has its end already
            self.ended_ns[element] = t
        self._open -= 1
        if reason is Reason.NOT_NEEDED:
            self._unneeded.add(element)
        tree = self._trees.get(element)
        if tree is not None:
            self._close_tree(tree)
        if self._has_shares and element in self._stages and not self._stages[element][1].position:
            chain = self._stages[element][0]
            if not chain.sized:
                self._sized(chain, 0)
        if tree is not None or element in self._stages:
            self._leave(element)
        else:
            self._read(element)
        self._rippling.append(element)

    def _read(self, element: int) -> None:
        """It reads its inputs no more."""
        uses, states = self._uses, self._state
        for up in self._inputs[element]:
            uses[up] -= 1
            if not uses[up] and states[up] in HAS_VALUE:
                self._released.append(up)

    def _drop(self, element: int, target: int, reason: Reason) -> None:
        """End an element that is not out, whatever it waits for."""
        if self._state[element] == READY and self._queue_of[element] >= 0:
            self._waiting.stale[self._queue_of[element]] += 1  # its entry in the queue stays until it comes up
        self._settle(element, target, reason)
        if element in self._stages:
            chain, stage = self._stages[element]
            stage.reason = reason
            self._close_gate(chain, stage)

    def _ripple(self) -> None:
        """Tell of all that has ended. Breadth first, so that the way told of a failure is a shortest one."""
        ended, state, left, tidies = self._rippling, self._state, self._left, self._tidies
        for element in ended:  # grows while it is walked
            code = state[element]
            outcome = OUTCOME[code]
            if code in FAILURES:
                self._count_failure(element)
            for below in self._dependants[element]:
                if tidies and below in tidies and self._lingers(element):
                    self._lingering.setdefault(element, []).append(below)
                    continue
                left[below] -= 1
                if state[below] == PENDING:
                    self._hear(below, element, outcome)
            if outcome == OK and not self._uses[element]:
                self._released.append(element)
            if self._linked[element]:
                self._tell_linked(element, outcome)
        ended.clear()

    def _lingers(self, container: int) -> bool:
        """Whether something of a container that has ended is still going on: who tidies up waits for that as well."""
        stage, tree = self._stages.get(container), self._trees.get(container)
        open_ = (stage is not None and stage[1].open > 0) or (tree is not None and tree.open > 0)
        return open_ or container in self._running_out

    def _last_has_ended(self, container: int) -> None:
        """Perhaps the last of a container that had ended before: tell who tidies up, and the graph that it is in."""
        if container not in self._lingering or self._lingers(container):
            return
        outcome = OUTCOME[self._state[container]]
        for below in self._lingering.pop(container):
            self._left[below] -= 1
            if self._state[below] == PENDING:
                self._hear(below, container, outcome)
        block = self._elements.block(container)
        if block.owner >= 0:
            self._tell_graph(container, outcome, block)

    def _hear(self, element: int, up: int, outcome: int) -> None:
        """A pending element hears how one of its upstreams ended."""
        rule = self._rules.get(element)
        if rule is None:
            if outcome == OK:
                if not self._left[element] and element not in self._undecided:
                    self._go(element)
                return
            if outcome == BAD and element not in self._undecided:
                self._bar(element, BAD, up)
                return
            self._watch(element)
        if up not in self._tidies.get(element, ()):  # how the work went is not the concern of who tidies up
            tally = self._tally[element]
            tally[outcome] += 1
            if outcome != OK and tally[2 + outcome] < 0:
                tally[2 + outcome] = up
        self._weigh(element)

    def _watch(self, element: int) -> None:
        """From now on a tally of its upstreams is kept, as if it had a rule: one of them was skipped, say."""
        self._rules[element] = ALL_SUCCESS
        self._tally[element] = [0, 0, 0, NOBODY, NOBODY]
        for up in self.upstreams(element):
            self._link(up)

    def _link(self, element: int) -> None:
        self._linked[element] = 1
        if self._held[element] == OUT:
            self._held[element] = LINKED

    def _weigh(self, element: int) -> None:
        """What is certain about a pending element? Then let it be so."""
        if element in self._undecided or element in self._expected:
            return
        left, tally = self._left[element], self._tally.get(element)
        if tally is None:
            if not left:
                self._go(element)
            return
        ok, bad, skipped, failed_by, skipped_by = tally
        if element in self._tidies:
            says = Trigger.FAIL if bad else Trigger.WAIT if left else Trigger.SKIP if skipped else Trigger.RUN
        else:
            says = self._rules[element].decide(ok, bad, skipped, left)
        if says == Trigger.RUN:
            rule = self._rules[element]
            self._go(element)
            if rule.cancel_rest and left:
                rest = [up for up in self.upstreams(element) if self._state[up] not in ENDED]
                self._cancel(rest, Reason.NOT_NEEDED)
        elif says == Trigger.FAIL:
            self._bar(element, BAD, failed_by)
        elif says == Trigger.SKIP:
            self._bar(element, SKIP, skipped_by)

    def _bar(self, element: int, outcome: int, cause: int) -> None:
        """A pending element will not run."""
        if cause >= 0:
            self._cause[element] = cause
        if outcome == BAD:
            self._settle(element, UPSTREAM_FAILED, Reason.UPSTREAM_FAILED)
        else:
            self._settle(element, SKIPPED, Reason.UPSTREAM_SKIPPED)
        if element in self._stages:
            self._close_gate(*self._stages[element])

    def _go(self, element: int) -> None:
        """All that a pending element waits for is there."""
        if self._stopping is not None and not self._is_spared(element):
            self._drop(element, CANCELLED, self._stopping)
            return
        found = self._stages.get(element)
        if found is not None:
            self._open_gate(*found)
        elif element in self._trees:
            self._expand(element)
            self._tree_begun(self._trees[element])
        else:
            self._make_ready(element, self._attempt[element] + 1, BECAME_READY)

    def _decide(self, element: int, choice: int, outcome: int, chosen: int) -> None:
        """A guard of an element is decided."""
        if self._state[element] != PENDING or element not in self._undecided:
            return
        if outcome == OK and not chosen:
            self._cause[element] = choice
            self._undecided.pop(element, None)
            self._settle(element, SKIPPED, Reason.NOT_CHOSEN)
            if element in self._stages:
                self._close_gate(*self._stages[element])
            return
        if outcome == BAD or (outcome == SKIP and element not in self._barred):
            self._barred[element] = (outcome, choice)
        self._undecided[element] -= 1
        if self._undecided[element]:
            return
        del self._undecided[element]
        barred = self._barred.pop(element, None)
        if barred is not None:
            self._bar(element, *barred)
        else:
            self._weigh(element)

    def _count(self, scope: Scope, element: int, outcome: int) -> None:
        scope.open -= 1
        code = self._state[element]
        if outcome == OK:
            scope.ok += 1
        elif outcome == SKIP:
            scope.skipped += 1
        elif code == CANCELLED:
            scope.cancelled += element not in self._unneeded
        elif code == UPSTREAM_FAILED:
            scope.upstream_failed += 1
        elif element not in self._may_fail:
            scope.failed += 1
        if not scope.open:
            if self._state[scope.container] in ENDED:  # before the last that it had become
                self._leave(scope.container)
            if self._lingering:
                self._last_has_ended(scope.container)

    def _part_with(self, container: int) -> None:
        """The value of a container is made, or never will be: its elements' own are not needed for it any more."""
        scope = self._scope(container)
        assert scope is not None
        if scope.parted:
            return
        scope.parted = True
        if container in self._scopes and not scope.open:
            self._parted.append(container)
        if container in self._trees:
            root = self._trees[container].root
            parts: Iterable[int] = () if root < 0 else (root,)
        elif container in self._stages:
            parts = self.elements_of(container) if self._stages[container][1].whole else ()
        else:
            parts = self._pinned_of(container)
        uses, state = self._uses, self._state
        for part in parts:
            uses[part] -= 1
            if not uses[part] and state[part] in HAS_VALUE:
                self._released.append(part)

    def _pinned_of(self, owner: int) -> list[int]:
        """The elements whose values the value of a graph is made of."""
        plan, start = self.plan_of(owner)
        return [start + node for node in plan.pinned]

    def _close_tree(self, tree: Tree) -> None:
        """A reduction has ended: what waits in it to be merged is not."""
        tree.concluded = True
        for group in tree.groups.values():
            for item in group.items:
                if item >= 0:
                    self._give_back(item)
        tree.groups.clear()

    def _give_back(self, element: int) -> None:
        """One reader less of a value."""
        self._uses[element] -= 1
        if not self._uses[element]:
            self._released.append(element)

    def _end_container(self, container: int, target: int, reason: Reason) -> None:
        """A map has not succeeded. Somebody may want what there is of it all the same."""
        wanted = container in self._pinned or any(below in self._rules for below in self._dependants[container])
        tree = self._trees.get(container)
        if self._uses[container] and wanted and (tree is None or tree.root >= 0):
            self._step.commands.append(m.Gather(container))
        self._settle(container, target, reason)

    def _succeed_container(self, container: int, reason: Reason) -> None:
        if container in self._choices:
            self._gathering[container] = reason
            self._step.commands.append(m.Gather(container, asked=True))
            return
        if self._uses[container]:
            self._step.commands.append(m.Gather(container))
        self._settle(container, SUCCEEDED, reason)

    def _gathered(self, event: m.Gathered) -> None:
        """The value of a container is there, and what is chosen by it."""
        container = event.element
        reason = self._gathering.pop(container, None)
        if reason is None or self._state[container] != EXPANDED:
            self.late += 1
            self._step.late += 1
        elif event.failed:
            self._settle(container, FAILED, Reason.RAISED)
        else:
            self._chosen[container] = event.chosen
            self._settle(container, SUCCEEDED, reason)

    def _is_spared(self, element: int) -> bool:
        """Whether it may begin although the run is stopping: because it tidies up."""
        return element in self._tidies and not self._forced
