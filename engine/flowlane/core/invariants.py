"""What holds of a run between two steps, whatever has happened: looked at from the beginning, for tests and for hunting bugs.

The layers below keep counts, so that a step costs what it changes. Here each count is made anew of states and plans, and what
has been decided about a node is decided again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from flowlane.core.elements import GRAPH
from flowlane.core.outcomes import BAD, ENDED, FAILURES, HAS_VALUE, OK, OUTCOME, SKIP
from flowlane.core.ready import ELEMENT_MASK
from flowlane.core.remaking import NOTHING, Remaking
from flowlane.core.rules import ALL_SUCCESS, Trigger
from flowlane.core.states import (
    CANCELLED,
    EXPANDED,
    PENDING,
    READY,
    RETRYING,
    RUNNING,
    SKIPPED,
    UNKNOWN,
    UPSTREAM_FAILED,
)

if TYPE_CHECKING:
    from flowlane.core.chains import Chain, Scope, Stage
    from flowlane.core.elements import Block
    from flowlane.core.plan import Plan

__all__ = ["Invariants"]

#: Of what has begun, and was not stopped from outside.
_WENT: tuple[int, ...] = (READY, RUNNING, RETRYING, EXPANDED, *HAS_VALUE, *FAILURES - {UNKNOWN})


class Invariants(Remaking):
    """See the module's text."""

    def check(self) -> None:
        """Raise AssertionError unless every invariant holds. O(elements + edges), after each step: quadratic."""
        state = self._state
        for v in range(len(state)):
            self._check_element(v)
        for block in self._elements.blocks:
            if block.kind == GRAPH:
                self._check_graph(block)
        held = self._held_by_trees()
        for chain in dict.fromkeys([chain for chain, _ in self._stages.values()]):
            self._check_chain(chain, held)
        for container, scope in self._scopes.items():
            assert scope.blocks, container
            block = self._elements.blocks[scope.blocks[-1]]
            self._check_counts(scope, range(block.start, block.start + block.count))
        for container, tree in self._trees.items():
            merges = [self._elements.blocks[number].start for number in tree.blocks]
            assert tree.open == sum(state[v] not in ENDED for v in merges), (container, tree.open)
            for v in merges:
                own = self._scope(container)
                root = v == tree.root and own is not None and not own.parted
                assert state[v] not in HAS_VALUE or self._uses[v] == held[v] + root, self._story(v)
        assert self._open == sum(s not in ENDED for s in state)
        self._check_queues()
        assert (self.finished is not None) == (not self._open and not self._running_out and self._begun)

    def _check_element(self, v: int) -> None:
        s = self._state[v]
        assert s in (READY, RUNNING) if self._held[v] else s != RUNNING, self._story(v)
        if s == UPSTREAM_FAILED and v in self._cause:
            root = self.cause(v)[0]
            assert root != v, self._story(v)
            assert self._state[root] in ENDED, self._story(v)
            assert self._state[root] not in HAS_VALUE, self._story(v)
        assert self._attempt[v] <= max(1, self.policy(v).attempts) + self._uncounted.get(v, 0), self._story(v)
        assert self._uses[v] >= 0, self._story(v)

    # ── queues ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_queues(self) -> None:
        waiting = self._waiting
        out, taken = [0] * len(waiting.lanes), [0] * len(waiting.limits)
        for v, queue in enumerate(self._queue_of):
            if queue >= 0 and self._held[v]:
                lane, requirement = waiting.lane[queue], waiting.requirement[queue]
                out[lane] += min(requirement.slots, waiting.lanes[lane].slots)
                for index, weight in requirement.limits:
                    taken[index] += weight
        for index, lane_ in enumerate(waiting.lanes):
            lane_.check()
            assert out[index] <= lane_.in_use, (lane_, out[index])
        for index, limit in enumerate(waiting.limits):
            limit.check()
            assert taken[index] <= limit.in_use, (limit, taken[index])
        for number, heap in enumerate(waiting.queues):
            queued = [key & ELEMENT_MASK for key in heap]
            assert len(set(queued)) == len(queued), "queued twice"
            ready = sum(self._is_ready(v) for v in queued)
            expected = sum(q == number and self._is_ready(v) for v, q in enumerate(self._queue_of))
            assert ready == expected, (number, ready, expected)
            assert len(queued) - ready == waiting.stale[number], (number, queued, waiting.stale[number])

    def _is_ready(self, element: int) -> bool:
        return self._state[element] == READY and not self._held[element]

    # ── nodes of graphs ───────────────────────────────────────────────────────────────────────────────────────────

    def _check_graph(self, block: Block) -> None:
        plan, state, start, owner = block.plan, self._state, block.start, block.owner
        assert plan is not None
        parted = owner >= 0 and (
            self._scopes[owner].parted
            or owner in self._gathering
            or self._elements.blocks[self._scopes[owner].blocks[-1]] is not block
        )
        readers: Counter[int] = Counter()
        for node in range(plan.size):
            if self._reads_yet(start + node):
                over = plan.maps[node].over if node in plan.maps else ()
                readers.update([up for up in plan.inputs[node] if up not in over])
        for node in range(plan.size):
            v = start + node
            cut = self._cut(plan, node)
            if state[v] not in ENDED or v not in self._special:
                told = [self._told(plan, node, up, start) for up in plan.upstreams[node] if up not in cut]
                assert self._left[v] == told.count(NOTHING), self._story(v)
            assert self._uses[v] == readers[node] + (node in plan.pinned and not parted), self._story(v)
            if v in self._restored or not self._begun:
                continue
            if state[v] == PENDING:
                guards = plan.guards.get(node, ())
                undecided = sum(self._first(start + guard.node) not in ENDED for guard in guards)
                assert self._undecided.get(v, 0) == undecided, self._story(v)
            self._check_decision(plan, node, v)

    def _reads_yet(self, v: int) -> bool:
        """Whether a node may have to read its inputs: a map does until all of its chain have ended."""
        if v not in self._stages and v not in self._trees:
            return self._state[v] not in ENDED
        chain = self._stages[v][0] if v in self._stages else self._trees[v].chain
        return any(self._state[each] not in ENDED or each in self._running_out for each in chain.containers)

    def _check_decision(self, plan: Plan, node: int, v: int) -> None:
        """What became of a node is what its conditions and its rule say."""
        s, says = self._state[v], {self._says(plan, node, v - node)}
        if s != PENDING and self._remade:  # it was decided before something was made again, or after
            says.add(self._says(plan, node, v - node, first=True))
        if s in _WENT:
            assert Trigger.RUN in says, f"it has begun, and should {says}: {self._story(v)}"
            assert self._attempt[v] >= 1, self._story(v)
        elif s == PENDING and v not in self._expected:
            assert Trigger.WAIT in says, f"it waits, and should {says}: {self._story(v)}"
        elif s == SKIPPED and not self._attempt[v]:
            assert Trigger.SKIP in says, f"it is skipped, and should {says}: {self._story(v)}"
        elif s == UPSTREAM_FAILED and not self._attempt[v]:
            assert Trigger.FAIL in says, f"it has failed, and should {says}: {self._story(v)}"

    def _says(self, plan: Plan, node: int, start: int, *, first: bool = False) -> Trigger:
        guards = plan.guards.get(node, ())
        ends = [self._first(start + guard.node) for guard in guards]
        for guard, code in zip(guards, ends, strict=True):
            if code in HAS_VALUE and not self._chosen.get(start + guard.node, 0) >> guard.bit & 1:
                return Trigger.SKIP
        if any(code not in ENDED for code in ends):
            return Trigger.WAIT
        if any(OUTCOME[code] == BAD for code in ends):
            return Trigger.FAIL
        if any(OUTCOME[code] == SKIP for code in ends):
            return Trigger.SKIP
        cut = self._cut(plan, node)
        counts = Counter(
            self._told(plan, node, up, start, first=first)
            for up in plan.upstreams[node]
            if up not in cut and up not in plan.teardowns.get(node, ())
        )
        if (block := plan.teardowns.get(node)) is not None:
            left = counts[NOTHING] + [self._told(plan, node, up, start) for up in block].count(NOTHING)
            if counts[BAD]:
                return Trigger.FAIL
            return Trigger.WAIT if left else Trigger.SKIP if counts[SKIP] else Trigger.RUN
        rule = plan.rules.get(node, ALL_SUCCESS)
        return rule.decide(counts[OK], counts[BAD], counts[SKIP], counts[NOTHING])

    # ── chains and trees ──────────────────────────────────────────────────────────────────────────────────────────

    def _check_chain(self, chain: Chain, held: Counter[int]) -> None:
        state, width = self._state, len(chain.stages)
        under_way = 0
        for number in chain.stages[0].blocks:
            block = self._elements.blocks[number]
            for index, left in enumerate(block.left):
                base = block.start + index * width
                assert left == sum(state[base + place] not in ENDED for place in range(width)), self._story(base)
                under_way += left > 0 and block.first + index < chain.admitted
        more = sum(self._is_coming(v) for v in self._remade)
        assert chain.under_way == under_way <= chain.window + more, (
            chain.stages[0].container,
            chain.under_way,
            under_way,
        )
        assert chain.admitted <= chain.numbered <= max(chain.known, chain.numbered)
        for stage in chain.stages:
            elements = list(self.elements_of(stage.container))
            self._check_counts(stage, elements)
            for v in elements:
                if state[v] in HAS_VALUE:
                    self._check_uses(stage, v, held)

    def _check_uses(self, stage: Stage, v: int, held: Counter[int]) -> None:
        base = v - stage.position
        below = sum(self._state[base + place] not in ENDED for place in stage.below)
        assert self._uses[v] == below + held[v] + (stage.whole and not stage.parted), (
            below,
            held[v],
            stage.whole,
            stage.parted,
            self._uses[v],
            self._story(v),
        )

    def _held_by_trees(self) -> Counter[int]:
        """Elements → how many reductions have yet to merge them."""
        held: Counter[int] = Counter()
        for tree in self._trees.values():
            for group in tree.groups.values():
                held.update([item for item in group.items if item >= 0])
            for number in tree.blocks:
                merge = self._elements.blocks[number].start
                if self._state[merge] not in ENDED:
                    held.update(self._inputs[merge])
        return held

    def _check_counts(self, scope: Scope, elements: list[int] | range) -> None:
        codes = Counter(self._state[v] for v in elements if v not in self._lingering)
        ended = sum(count for code, count in codes.items() if code in ENDED)
        assert scope.open == len(elements) - ended, (scope.container, scope.open)
        assert scope.ok == sum(codes[code] for code in HAS_VALUE), scope.container
        assert scope.skipped == codes[SKIPPED], scope.container
        assert scope.upstream_failed == codes[UPSTREAM_FAILED], scope.container
        unneeded = sum(self._state[v] == CANCELLED and v in self._unneeded for v in elements)
        assert scope.cancelled == codes[CANCELLED] - unneeded, scope.container
        assert scope.failed == sum(self._state[v] in FAILURES and v not in self._may_fail for v in elements)
