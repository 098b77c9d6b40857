"""Reductions by tree: items that have ended are put in their groups, groups that are whole are merged, until one item is left."""

from __future__ import annotations

from flowlane.core.chains import UNKNOWN_SIZE, Group, Tree
from flowlane.core.elements import TREE, Block
from flowlane.core.outcomes import (
    BAD,
    BECAME_READY,
    OK,
    OUTCOME,
    SKIP,
)
from flowlane.core.states import (
    CANCELLED,
    EXPANDED,
    FAILED,
    SKIPPED,
    UPSTREAM_FAILED,
    Reason,
)
from flowlane.core.stopping import Stopping

__all__ = ["Trees"]


class Trees(Stopping):
    """See the module's text, and ``chains`` for what is known of a tree."""

    def _feed(self, tree: Tree, level: int, index: int, element: int, outcome: int) -> None:
        """Item `index` of a level has ended."""
        if tree.concluded and outcome == OK:
            self._give_back(element)
        while not tree.concluded:
            if tree.size.get(level) == 1 and level > 0:
                self._conclude_tree(tree, element, outcome)
                return
            number = index // tree.fan_in
            group = tree.groups.get((level, number))
            if group is None:
                group = tree.groups[level, number] = Group(tree.fan_in)
            group.landed += 1
            if outcome == OK:
                group.items[index % tree.fan_in] = element
            elif outcome == BAD and group.failed < 0:
                group.failed = element
            size = tree.group_size(level, number)
            if group.landed < (tree.fan_in if size == UNKNOWN_SIZE else size):
                return
            if level and size == 1:  # the last one, and alone: it is an item of the next level as it is
                del tree.groups[level, number]
                level, index = level + 1, number
                continue
            if self._state[tree.container] == EXPANDED:
                self._merge(tree, level, number, group)
            return

    def _tree_begun(self, tree: Tree) -> None:
        """Items may have ended before the map that they are of began: because those that they were to come of did."""
        if tree.base in tree.size:
            self._tree_sized(tree)
            return
        for (level, number), group in [(key, tree.groups[key]) for key in sorted(tree.groups)]:
            if group.landed == tree.fan_in:
                self._merge(tree, level, number, group)

    def _tree_sized(self, tree: Tree) -> None:
        """It is known now how many items there are: groups that looked unfinished may be whole, and one may be the result."""
        if self._state[tree.container] != EXPANDED:
            return
        if tree.base == 0 and tree.size[0] == 0 and not tree.concluded:
            self._merge(tree, 0, 0, Group(0))
            return
        for level, number in sorted(tree.groups):
            if tree.concluded:
                return
            group = tree.groups.get((level, number))
            if group is None or group.landed < tree.group_size(level, number):
                continue
            if tree.size[level] == 1 and level:
                del tree.groups[level, number]
                found = group.items[0]
                outcome = OK if found >= 0 else BAD if group.failed >= 0 else SKIP
                self._conclude_tree(tree, found if found >= 0 else group.failed, outcome)
            elif level and tree.group_size(level, number) == 1:
                item = group.items[0] if group.items[0] >= 0 else group.failed
                del tree.groups[level, number]
                self._feed(tree, level + 1, number, item, OUTCOME[self._state[item]] if item >= 0 else SKIP)
            else:
                self._merge(tree, level, number, group)

    def _merge(self, tree: Tree, level: int, number: int, group: Group) -> None:
        """A group is whole: an element merges it."""
        tree.groups.pop((level, number), None)
        e = self._elements
        block = Block(TREE, tree.container, tree=tree)
        block.where = (level + 1, number)
        tree.blocks.append(len(e.blocks))
        element = e.grow(block, 1)
        items = tuple([item for item in group.items if item >= 0])
        e.left.append(0)
        e.uses.append(1)
        e.queue.append(tree.queue)
        e.policy.append(tree.policy)
        e.rank.append(tree.rank)
        e.dependants.append(())
        e.inputs.append(items)
        e.linked[element] = 1
        tree.open += 1
        self._open += 1
        if self._has_shares:
            self._more_known(self._elements.block(tree.container), 1)
        if self._stopping is not None:
            self._settle(element, CANCELLED, self._stopping)
        elif group.failed >= 0 or tree.chain.failed:  # an item failed, or not all of them came
            self._cause[element] = group.failed if group.failed >= 0 else tree.chain.stages[0].container
            self._settle(element, UPSTREAM_FAILED, Reason.UPSTREAM_FAILED)
        elif not items and group.landed:
            self._settle(element, SKIPPED, Reason.UPSTREAM_SKIPPED)
        elif self._recall is None or not self._remember(element):
            self._make_ready(element, 1, BECAME_READY)

    def _conclude_tree(self, tree: Tree, element: int, outcome: int) -> None:
        """The last merge has ended, or will never be."""
        tree.concluded = True
        container = tree.container
        if self._state[container] != EXPANDED:
            return
        if tree.chain.failed:  # not all of its items came
            if tree.base:
                self._settle(container, FAILED, Reason.RAISED)
            else:
                self._cause[container] = tree.chain.stages[0].container
                self._settle(container, UPSTREAM_FAILED, Reason.UPSTREAM_FAILED)
        elif outcome == OK:
            tree.root = element
            self._succeed_container(container, Reason.ELEMENTS_DONE)
        elif tree.failed:
            self._settle(container, FAILED, Reason.ELEMENTS_FAILED)
        elif outcome == SKIP:
            self._settle(container, SKIPPED, Reason.UPSTREAM_SKIPPED)
        elif element >= 0 and self._state[element] == CANCELLED:
            self._settle(container, CANCELLED, self._stopping or tree.reason or Reason.CANCEL_REQUESTED)
        else:
            if element >= 0:
                self._cause.setdefault(container, element)
            self._settle(container, UPSTREAM_FAILED, Reason.UPSTREAM_FAILED)
        self._part_with(container)
