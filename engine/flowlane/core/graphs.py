"""Plans become elements: the run's own, and those that a workflow or a task's work becomes while the run goes on."""

from __future__ import annotations

from heapq import heapify, heappush
from typing import TYPE_CHECKING

from flowlane.core import messages as m
from flowlane.core.chains import Chain, Scope, Tree
from flowlane.core.elements import CHAIN, GRAPH, NOBODY, TREE, Block
from flowlane.core.maps import Maps
from flowlane.core.messages import NEVER, Started, Succeeded
from flowlane.core.outcomes import (
    ASKED,
    BAD,
    BECAME_READY,
    BEGAN,
    CODE,
    ENDED,
    GRAPH_DEADLINE,
    LINKED,
    OK,
    OUTCOME,
)
from flowlane.core.ready import ELEMENT_BITS, ELEMENT_MASK
from flowlane.core.rules import ALL_SUCCESS
from flowlane.core.standing import InvalidTransition
from flowlane.core.states import (
    CANCELLED,
    EXPANDED,
    FAILED,
    PENDING,
    READY,
    RETRYING,
    RUNNING,
    SKIPPED,
    TIMED_OUT,
    UPSTREAM_FAILED,
    Reason,
)

if TYPE_CHECKING:
    from flowlane.core.plan import Plan, Policy


__all__ = ["Graphs"]


class Graphs(Maps):
    """See the module's text."""

    def _add_graph(self, plan: Plan, owner: int) -> range:
        """Make elements of a plan's nodes. Plain graphs, of a million nodes, must stay quick to begin with."""
        e = self._elements
        block = Block(GRAPH, owner, plan=plan)
        start = e.grow(block, plan.size)
        self._open += plan.size
        numbers = [self._number_policy(policy) for policy in plan.policies]
        e.policy.extend(plan.policy if numbers == list(range(len(numbers))) else [numbers[p] for p in plan.policy])
        queues = {lane: self._waiting.number(lane, plan.requirements[0]) for lane in set(plan.lane)}
        e.queue.extend([queues[lane] for lane in plan.lane])
        e.rank.extend(_ranks(plan) if owner < 0 else [e.rank[owner]] * plan.size)
        e.left.extend([len(ups) for ups in plan.upstreams])
        if start:
            e.dependants.extend([tuple([start + below for below in each]) for each in plan.dependants])
            e.inputs.extend([tuple([start + up for up in reads]) for reads in plan.inputs])
        else:
            e.dependants.extend(plan.dependants)
            e.inputs.extend(plan.inputs)
        if owner >= 0:
            e.linked[start:] = b"\x01" * plan.size
        if any((plan.rules, plan.guards, plan.maps, plan.grafts, plan.teardowns, plan.requirement)):
            self._add_special(plan, start)
        for group in plan.scopes:
            members = tuple([start + node for node in group])
            for element in members:
                self._groups.setdefault(element, []).append(members)
        self._may_fail.update([start + node for node in plan.may_fail])
        if plan.priority and not self._priority and start:
            self._first_priority(plan, start)
        self._priority.update({start + node: priority for node, priority in plan.priority.items()})
        if self._priority:
            e.linked[start:] = b"\x01" * plan.size
        uses = [0] * plan.size
        for reads in e.inputs[start:] if start else e.inputs:
            for up in reads:
                uses[up - start] += 1
        for node in plan.pinned:
            uses[node] += 1
        e.uses.extend(uses)
        if plan.maps:
            self._add_chains(plan, start)
            self._pinned.update([start + node for node in plan.pinned if node in plan.maps])
        self._bound_graph(block, plan)
        return range(start, start + plan.size)

    def _first_priority(self, plan: Plan, start: int) -> None:
        """From now on time counts in queues: also for those that wait in them already, and for all that come."""
        self._priority.update({start + node: priority for node, priority in plan.priority.items()})
        for element in range(start):
            self._link(element)
        for queue in self._waiting.queues:
            queue[:] = [self._key(key & ELEMENT_MASK) for key in queue]
            heapify(queue)

    def _number_policy(self, policy: Policy) -> int:
        number = self._policy_numbers.get(policy)
        if number is None:
            number = self._policy_numbers[policy] = len(self._policies)
            self._policies.append(policy)
            self.has_total = self.has_total or policy.total_timeout > 0
        return number

    def _add_special(self, plan: Plan, start: int) -> None:
        """Nodes that do not simply run when all they wait for has succeeded."""
        e = self._elements
        cut: dict[int, set[int]] = {}  # edges that are not told as those of plain dependants: up → nodes
        begun: set[tuple[int, int]] = set()  # of these, those that are told when `up` has begun
        for node, rule in plan.rules.items():
            self._rules[start + node] = rule
            self._tally[start + node] = [0, 0, 0, NOBODY, NOBODY]
        for node, before in plan.teardowns.items():
            self._tidies[start + node] = frozenset([start + other for other in before])
            self._rules[start + node] = ALL_SUCCESS
            self._tally[start + node] = [0, 0, 0, NOBODY, NOBODY]
        for node, guards in plan.guards.items():
            self._undecided[start + node] = len(guards)
            for guard in guards:
                self._choices.setdefault(start + guard.node, []).append((start + node, guard.bit))
                e.linked[start + guard.node] = 1
                if guard.node not in plan.inputs[node]:
                    cut.setdefault(guard.node, set()).add(node)
        for node, spec in plan.maps.items():
            e.queue[start + node] = NOBODY
            for up in spec.over:
                cut.setdefault(up, set()).add(node)
                begun.add((up, node))
            if spec.over:
                e.inputs[start + node] = tuple([up for up in e.inputs[start + node] if up - start not in spec.over])
        for node in plan.grafts:
            e.queue[start + node] = NOBODY
            self._grafts.add(start + node)
        for node, number in plan.requirement.items():
            if node not in plan.maps and node not in plan.grafts:
                queue = self._waiting.number(plan.lane[node], plan.requirements[number])
                e.queue[start + node] = queue
                e.linked[start + node] = 1  # what it holds of limits is given back out of line
        special = {*plan.rules, *plan.teardowns, *plan.guards, *plan.maps, *plan.grafts}
        self._special.update([start + node for node in special])
        for up, nodes in cut.items():
            e.dependants[start + up] = tuple([d for d in e.dependants[start + up] if d - start not in nodes])
            for node in nodes:
                e.left[start + node] -= (up, node) not in begun
        for node in special:
            e.linked[start + node] = 1
            for up in plan.upstreams[node]:
                e.linked[start + up] = 1

    def _add_chains(self, plan: Plan, start: int) -> None:
        e = self._elements
        for node in plan.order:
            spec = plan.maps.get(node)
            if spec is None:
                continue
            element = start + node
            tree: Tree | None = None
            if spec.fan_in:
                tree = Tree(element, spec.fan_in, 0 if spec.over else 1)
                self._trees[element] = tree
            if tree is not None and spec.over:
                chain, above = self._stages[start + spec.over[0]]
                above.trees.append(tree)
            else:
                if spec.over:
                    chain = self._stages[start + spec.over[0]][0]
                    over = tuple([self._stages[start + up][1].position for up in spec.over])
                    stage = chain.add(element, spec, over)
                else:
                    chain = Chain(element, spec)
                    stage = chain.stages[0]
                stage.whole = tree is None and (e.uses[element] > 0 or element in self._choices)
                stage.queue = NOBODY if spec.grafts else self._queue_of_map(plan, node)
                stage.policy = e.policy[element]
                self._stages[element] = (chain, stage)
                if tree is not None:
                    stage.trees.append(tree)
            head = chain.stages[0].container
            chain.stages[-1].rank = e.rank[head]  # a chain goes depth first: its elements are numbered index by index
            if tree is not None:
                tree.chain = chain
                tree.queue, tree.policy = self._queue_of_map(plan, node), e.policy[element]
                tree.rank = e.rank[head] - 1  # merging frees memory
        for node in plan.maps:
            if start + node in self._stages:
                stage = self._stages[start + node][1]
                stage.uses = len(stage.below) + len(stage.trees) + stage.whole
                stage.plain = not stage.trees and not stage.spec.enough

    def _queue_of_map(self, plan: Plan, node: int) -> int:
        return self._waiting.number(plan.lane[node], plan.requirements[plan.requirement.get(node, 0)])

    def _start_graph(self, elements: range) -> None:
        """What waits for nothing is ready."""
        # `_make_ready`, for what may be all tasks there are
        at, state, attempts, ready, special = self._at, self._state, self._attempt, self.ready_ns, self._special
        record, queues, queue_of, rank = self._step.transitions.append, self._waiting.queues, self._queue_of, self._rank
        left = self._left
        plain = not self._priority
        for element in elements:
            if state[element] != PENDING:
                continue
            if special and element in special:
                self._weigh(element)
            elif not left[element]:
                if not plain:
                    self._make_ready(element, 1, BECAME_READY)
                    continue
                state[element] = READY
                attempts[element] = 1
                ready[element] = at
                record((element, 1, BECAME_READY, at))
                if elements.start:
                    heappush(queues[queue_of[element]], rank[element] << ELEMENT_BITS | element)
                else:
                    queues[queue_of[element]].append(rank[element] << ELEMENT_BITS | element)
                if self.has_total:
                    self._limit_total(element)
        if not elements.start:
            for queue in queues:
                heapify(queue)

    def _become(self, element: int) -> None:
        """The turn of an element that becomes a graph has come."""
        self._linked[element] = 1
        self._held[element] = LINKED
        self.launched_ns[element] = self._at
        self._step.commands.append(m.Graft(element))

    def may_become(self, element: int, attempt: int) -> bool:
        """Whether a Grafted would be followed: the attempt is out, and neither it nor the run was told to stop."""
        stopping = self._stopping is not None and not self._is_spared(element)
        return self.awaits(element, attempt) and self.asked(element) is None and not stopping

    def _grafted(self, event: m.Grafted) -> None:
        element = event.element
        if not self._current(event):
            return
        self._note_start(event)
        asked = ASKED[self._held[element]]
        self._overdue.pop(element, None)
        self._let_go(element)
        ended = event.ended if event.ended != NEVER else self._at
        if asked is None and self._stopping is not None and not self._is_spared(element):
            asked = self._stopping
        if asked is not None:  # what it wants done is not begun any more
            late = asked in (Reason.ATTEMPT_TIMEOUT, Reason.TOTAL_TIMEOUT)
            self._settle(element, TIMED_OUT if late else CANCELLED, asked, ended)
            return
        ready = self._state[element] == READY
        if ready:
            self.started_ns[element] = self._at
        self._linked[element] = 1
        self._state[element] = EXPANDED
        reason = Reason.BECAME_MORE if ready else Reason.RETURNED_WORK
        source = READY if ready else RUNNING
        self._step.transitions.append((element, event.attempt, CODE[source, EXPANDED, reason], ended))
        scope = self._scopes.get(element)
        if scope is None:
            scope = self._scopes[element] = Scope(element)
        scope.reset(event.plan.size)
        scope.blocks.append(len(self._elements.blocks))
        elements = self._add_graph(event.plan, element)
        if event.plan.deadline:
            self.has_deadlines = True
            heappush(self._times, (self._at + event.plan.deadline, GRAPH_DEADLINE, element, event.attempt))
        if self._recall is not None:
            remembered = [each for each in elements if self._remember(each)]
            self._ripple()
            self._rest_is_not_needed(remembered)
        self._start_graph(elements)
        if not scope.open and not scope.concluded:
            self._conclude_graph(element, scope)

    def _tell_graph(self, element: int, outcome: int, block: Block) -> None:
        if self._lingers(element):  # as a run, it ends when all of it has
            self._lingering.setdefault(element, [])
            return
        scope = self._scopes[block.owner]
        self._count(scope, element, outcome)
        if not scope.open and not scope.concluded:
            self._conclude_graph(block.owner, scope)

    def _conclude_graph(self, owner: int, scope: Scope) -> None:
        """All that an element has become has ended."""
        if self._state[owner] != EXPANDED:
            return  # it is being set up: whoever does that looks again
        scope.concluded = True
        if scope.reason is Reason.TOTAL_TIMEOUT:
            self._settle(owner, TIMED_OUT, Reason.TOTAL_TIMEOUT)
        elif scope.late:
            self._settle(owner, TIMED_OUT, Reason.DEADLINE)
        elif scope.reason is not None:
            self._settle(owner, CANCELLED, scope.reason)
        elif scope.failed:
            again = owner in self._grafts and self._has_left(owner)
            if again and self._may_retry(owner):
                self._part_with(owner)
                self._retry(owner, Reason.ELEMENTS_FAILED, self._at, NEVER)
                return
            self._settle(owner, FAILED, Reason.ELEMENTS_FAILED)
        elif scope.cancelled:
            self._settle(owner, CANCELLED, self._stopping or Reason.CANCEL_REQUESTED)
        else:
            self._conclude_by_value(owner)
        self._part_with(owner)

    def _conclude_by_value(self, owner: int) -> None:
        """Nothing failed that may not: how an element ends depends on what its value is made of, if that is there."""
        parts = self._pinned_of(owner)
        outcomes = [OUTCOME[self._state[part]] for part in parts]
        if BAD in outcomes:  # because of a task that may fail
            self._cause[owner] = parts[outcomes.index(BAD)]
            self._settle(owner, UPSTREAM_FAILED, Reason.UPSTREAM_FAILED)
        elif outcomes and OK not in outcomes:  # part of what is missing is None in its value, but not all of it
            self._cause[owner] = parts[0]
            self._settle(owner, SKIPPED, Reason.UPSTREAM_SKIPPED)
        else:
            self._succeed_container(owner, Reason.ELEMENTS_DONE)

    def _tell_linked(self, element: int, outcome: int) -> None:
        """Whom the end of an element concerns beside its dependants."""
        guarded = self._choices.get(element)
        if guarded is not None and element not in self._remade:  # what is decided stays so
            chosen = self._chosen.get(element, 0)
            for below, bit in guarded:
                self._decide(below, element, outcome, chosen >> bit & 1)
        block = self._elements.block(element)
        if block.kind == CHAIN:
            self._tell_chain(element, outcome, block)
        elif block.kind == TREE:
            assert block.tree is not None
            self._count(block.tree, element, outcome)
            level, group = block.where
            if element not in self._remade:  # else it is in its place already
                self._feed(block.tree, level, group, element, outcome)
            if block.tree.chain.cut:
                self._dirty[block.tree.chain] = None
        elif block.owner >= 0:
            self._tell_graph(element, outcome, block)
        found = self._stages.get(element)
        if found is not None and not found[1].gate:
            self._never_begun(*found)

    def _note_start(
        self, event: Succeeded | m.Skipped | m.Failed | m.Crashed | m.Interrupted | m.Abandoned | m.Grafted
    ) -> None:
        """A final event may stand in for a Started that was not told."""
        element = event.element
        if self._state[element] != READY:
            return
        if event.started != NEVER:
            self._state[element] = RUNNING
            self.started_ns[element] = event.started
            self._step.transitions.append((element, event.attempt, BEGAN, event.started))
        elif isinstance(event, (Succeeded, m.Skipped)):
            raise InvalidTransition(event, "this attempt has not started", self._story(element))

    def _current(
        self,
        event: Started
        | Succeeded
        | m.Skipped
        | m.Cached
        | m.Failed
        | m.Crashed
        | m.Interrupted
        | m.Abandoned
        | m.ResultLost
        | m.Grafted,
    ) -> bool:
        """Whether the event is about the attempt that is out. False and counted when it is late; raises otherwise."""
        element = event.element
        if not 0 <= element < len(self._state):
            raise InvalidTransition(event, "no such element", f"elements are 0..{len(self._state) - 1}")
        attempt = self._attempt[element]
        if event.attempt == attempt and self._held[element]:
            return True
        if (
            1 <= event.attempt < attempt
            or (event.attempt == attempt and self._state[element] in ENDED and attempt)
            or (event.attempt == attempt and self._state[element] in (RETRYING, PENDING) and attempt)
        ):
            self.late += 1
            self._step.late += 1
            return False
        raise InvalidTransition(event, "no such attempt is out", self._story(element))


def _ranks(plan: Plan) -> list[int]:
    """By node: 1 for what should start first, more for what may wait. As small as they can be, as they are kept in 32 bits."""
    top = max(plan.rank, default=0)
    if top - min(plan.rank, default=0) < 1 << 30:
        return [1 + top - rank for rank in plan.rank]
    order = {rank: number for number, rank in enumerate(sorted(set(plan.rank), reverse=True), 1)}
    return [order[rank] for rank in plan.rank]
