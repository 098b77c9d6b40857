"""What failures come to: how far one reaches, and when there are too many of them.

A failure goes up through all that its element is part of: the map, the graph that somebody became, the run. It is stopped by what
may fail, by a map that has enough without it, and by a workflow that will be tried again. Each graph on the way has a policy of
its own (`Bound`): it may end with the first failure, with so many, or with a share of its tasks; and so may groups of nodes. Then
the rest of it is cancelled. What the failure came by ends by itself, as failed.

A share is of the tasks known by now: nodes and elements of maps, those of graphs within included, maps themselves not. While the
size of a list is not known it waits; an iterator counts as far as it was read. Everything is counted as it comes, nothing is
ever added up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from flowlane.core.elements import CHAIN, GRAPH, NOBODY, Block
from flowlane.core.outcomes import ATTEMPTS_MAX, ENDED
from flowlane.core.standing import Standing
from flowlane.core.states import CANCELLED, EXPANDED, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowlane.core.chains import Chain
    from flowlane.core.plan import Plan

__all__ = ["Bound", "Failing"]


class Bound:
    """How much a graph bears.

    failures  tasks of it that have failed, those of graphs within included
    known     tasks of it that are known so far, and `unsized` lists whose size is not: kept where the policy names a share
    retries   that its tasks have had
    reached   it had enough: nothing of it begins any more
    """

    __slots__ = ("failures", "known", "plan", "reached", "retries", "unsized")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.failures = self.known = self.unsized = self.retries = 0
        self.reached = False

    @property
    def is_too_much(self) -> bool:
        """Whether so many failures end it."""
        plan, failures = self.plan, self.failures
        if not failures or self.reached:
            return False
        if plan.fail_fast or (plan.max_failures and failures >= plan.max_failures):
            return True
        return bool(plan.max_share) and not self.unsized and failures >= max(1, -(-plan.max_share * self.known // 100))


class Failing(Standing, ABC):
    """See the module's text."""

    @abstractmethod
    def _cancel(self, elements: Iterable[int], reason: Reason) -> None:
        """Stop elements, and what they have become."""

    @abstractmethod
    def _stop(self, reason: Reason) -> None:
        """Begin nothing any more."""

    @abstractmethod
    def _parts_of(self, container: int) -> list[int]:
        """What an element has become and has not ended."""

    # ── failures ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _count_failure(self, element: int) -> None:
        """An element has failed: what does that end?"""
        own = self._is_own(element)
        path = {element}
        while element not in self._may_fail:
            path.add(element)
            for group in self._groups.get(element, ()):
                self._cut_off(group, path)
            block = self._elements.block(element)
            if block.kind == CHAIN:
                assert block.chain is not None
                stage = block.chain.stages[(element - block.start) % len(block.chain.stages)]
                if stage.spec.enough:
                    return
                element = stage.container
                continue
            if block.kind == GRAPH and block.bound is not None:
                block.bound.failures += own
                self._judge(block, block.bound, path)
            element = block.owner
            if element == NOBODY:
                self._failed = True
                return
            if element in self._grafts and self._has_left(element):
                return

    def _is_own(self, element: int) -> bool:
        """Whether a failure is not merely that of others, which were counted when they failed."""
        scope = self._scope(element)
        if scope is None or not scope.failed:
            return True
        if element in self._grafts:  # it was not tried again, though it might have been
            return self._has_left(element)
        return element in self._stages and self._stages[element][1].spec.enough > 0

    def _judge(self, block: Block, bound: Bound, path: set[int]) -> None:
        if not bound.is_too_much or (block.owner == NOBODY and self._stopping is not None):
            return
        bound.reached = True
        if block.owner == NOBODY:
            self._stop(Reason.FAIL_FAST)
        else:
            self._cut_off(range(block.start, block.start + block.count), path)

    def _cut_off(self, members: Iterable[int], path: set[int]) -> None:
        """Stop the rest of a graph or a group; what is on the `path` of a failure ends by itself, when its own rest has."""
        work = list(members)
        for element in work:  # grows while it is walked
            if self._state[element] in ENDED:
                if element in self._running_out:
                    self._cancel([element], Reason.FAIL_FAST)
                continue
            scope = self._scope(element)
            if self._state[element] != EXPANDED or scope is None or not (element in path or scope.failed):
                self._cancel([element], Reason.FAIL_FAST)
                continue
            if element in self._stages:
                chain, stage = self._stages[element]
                stage.dead, stage.reason = CANCELLED, Reason.FAIL_FAST
                self._dirty[chain] = None
            work += self._parts_of(element)

    # ── what is known ─────────────────────────────────────────────────────────────────────────────────────────────

    def _bound_graph(self, block: Block, plan: Plan) -> None:
        """A graph has been added."""
        deadline = plan.deadline and block.owner == NOBODY
        if plan.fail_fast or plan.max_failures or plan.max_share or plan.retry_budget >= 0 or deadline:
            block.bound = Bound(plan)
            self._has_shares = self._has_shares or plan.max_share > 0
            self._has_budgets = self._has_budgets or plan.retry_budget >= 0
        if self._has_shares:
            lists = sum(not spec.over for spec in plan.maps.values())
            self._more_known(block, plan.size - len(plan.maps), lists)

    def _more_known(self, block: Block, tasks: int, lists: int = 0) -> None:
        """There are so many tasks more, and lists whose size is not known, in a graph and in what that is part of."""
        while True:
            if block.bound is not None:
                block.bound.known += tasks
                block.bound.unsized += lists
                if lists < 0 or tasks < 0:
                    self._judge(block, block.bound, set())
            if block.owner == NOBODY:
                return
            block = self._elements.block(self._node_of(block.owner))

    def _node_of(self, element: int) -> int:
        """The node of a graph that an element is, or belongs to."""
        while self._elements.block(element).kind != GRAPH:
            element = self.place(element).owner
        return element

    def _sized(self, chain: Chain, tasks: int) -> None:
        """The list of a map is known, or will never be; or there are so many tasks more of it."""
        if not self._has_shares:
            return
        block = self._elements.block(chain.stages[0].container)
        self._more_known(block, tasks, 0 if chain.sized else -1)
        chain.sized = True

    # ── retries ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _has_left(self, element: int) -> bool:
        """Whether its policy has another attempt for it."""
        attempt = self._attempt[element]
        return attempt - self._uncounted.get(element, 0) < self.policy(element).attempts and attempt < ATTEMPTS_MAX

    def _may_retry(self, element: int) -> bool:
        """Whether all graphs that an element is part of have a retry left; it is taken then."""
        if not self._has_budgets:
            return True
        bounds: list[Bound] = []
        while element != NOBODY:
            block = self._elements.block(self._node_of(element))
            if block.bound is not None and block.bound.plan.retry_budget >= 0:
                bounds.append(block.bound)
            element = block.owner
        if any(bound.retries >= bound.plan.retry_budget for bound in bounds):
            return False
        for bound in bounds:
            bound.retries += 1
        return True
