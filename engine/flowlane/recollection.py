"""What earlier sessions of a run had finished of that which comes into being only while it goes on.

The tasks a run begins with are looked up before it begins (``flowlane.resume``). All others are asked for one by one, when they
come into being: elements of maps and merges by their place in the container, nodes of a graph that a task becomes together, as
soon as the graph is there.

A container is known by *sites*, the latest first: in the session before this one, and, where that had itself gone on with it, in
the one before that, and so on. So nothing is lost when a process dies before it has asked for all there was: the row of a
container says where it goes on from (`StoredAttempt.origin`). What has a row in several sites has the latest.

What a map goes over must be what it was: a site counts only if everything its source is made of was there when the map began
in that session. Times tell, which rows keep when they are adopted.

Rows are read some thousand at a time, as they are asked for: all of a session may be more than memory holds.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from flowlane.census import Census
from flowlane.core.elements import CHAIN, GRAPH, TREE, Place
from flowlane.core.states import CACHED, DONE, SKIPPED, STATES, SUCCEEDED, UNKNOWN, TaskState
from flowlane.description import Description, compare
from flowlane.errors import FlowError, StoreError
from flowlane.kept import (
    Then,
    became_others,
    how_it_ended,
    keep,
    may_have_begun,
    outcome_unknown,
    said_skip,
    stored_value,
)
from flowlane.loader import load_for
from flowlane.runtime.beginning import Recalled, StoredValue, Work
from flowlane.storage.blob import bound_to_work, unpack, unseal
from flowlane.storage.port import AttemptRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowlane.core.scheduler import Scheduler
    from flowlane.errors import Failure
    from flowlane.program import Program
    from flowlane.runtime.growth import Growth
    from flowlane.runtime.keeper import Keeper
    from flowlane.storage.port import ResultRef, Store, StoredAttempt, StoredRun

__all__ = ["Earlier", "Recollection", "Session", "Site"]

_CHUNK: Final = 4_096  # rows read at once, about 20 ms
_CHUNKS: Final = 16  # kept
_RESULTS: Final = 128  # results read at once: 8 MB at most
_NOW: Final = 1 << 63  # later than any time in a store


class Session:
    """A stored session: who its tasks are, and their latest rows."""

    def __init__(self, store: Store, run: str, number: int) -> None:
        self.run = run
        self.number = number
        self.census = Census(Description.read(store.session(run, number).graph), store.blocks(run, number))
        self._store = store
        self._chunks: OrderedDict[int, dict[int, StoredAttempt]] = OrderedDict()
        self._results: OrderedDict[int, dict[tuple[int, int], bytes]] = OrderedDict()

    def row(self, element: int) -> StoredAttempt | None:
        """The row of a task's latest attempt."""
        number = element // _CHUNK
        rows = self._chunks.get(number)
        if rows is None:
            among = range(number * _CHUNK, (number + 1) * _CHUNK)
            rows = {row.element: row for row in self._store.attempts(self.run, self.number, among)}
            self._chunks[number] = rows
            if len(self._chunks) > _CHUNKS:
                self._chunks.popitem(last=False)
        return rows.get(element)

    def result(self, row: StoredAttempt) -> bytes | None:
        """Its sealed result, where the store gives it together with others."""
        number = row.element // _RESULTS
        if number not in self._results:
            among = range(number * _RESULTS, (number + 1) * _RESULTS)
            found = self._store.results(self.run, self.number, among)
            self._results[number] = {(element, attempt): data for element, attempt, data in found}
            if len(self._results) > _CHUNKS:
                self._results.popitem(last=False)
        return self._results[number].pop((row.element, row.attempt), None)

    def ref(self, row: StoredAttempt) -> ResultRef:
        """Where a row of it is."""
        return (self.run, self.number, row.element, row.attempt)


@dataclass(slots=True)
class Site:
    """A task in a session; `row` is its latest."""

    session: Session
    element: int
    row: StoredAttempt

    @property
    def ref(self) -> ResultRef:
        return self.session.ref(self.row)


class Earlier:
    """The sessions of a store, each read once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._sessions: dict[tuple[str, int], Session | None] = {}

    def session(self, run: str, number: int) -> Session | None:
        """A session, None where it was removed from the store."""
        key = (run, number)
        if key not in self._sessions:
            try:
                self._sessions[key] = Session(self.store, run, number)
            except StoreError:  # UnknownRun among them
                self._sessions[key] = None
        return self._sessions[key]

    def sites(self, session: Session, element: int) -> list[Site]:
        """A task, in `session` and in those it was gone on with from there; none without a row."""
        found: list[Site] = []
        row = session.row(element)
        while row is not None:
            found.append(Site(session, element, row))
            if row.origin is None:
                break
            run, number, element, _ = row.origin
            above = self.session(run, number)
            if above is None or any(each.session is above for each in found):
                break
            session, row = above, above.row(element)
        return found

    def latest(self, run: StoredRun) -> Session:
        """The latest session of a run, as it was found. Raises StoreError."""
        return Session(self.store, run.id, run.session)

    def then(self, sites: Sequence[Site], maybe: bool) -> Then:
        """What `flowlane.kept` wants to know of a task; `maybe` tells whether it is a map or a workflow now."""
        return Then(sites[0].row, maybe or self.became_others(sites), self.work_at(sites) is not None)

    @staticmethod
    def became_others(sites: Sequence[Site]) -> bool:
        """Whether a task had become others: in the latest session that came to it."""
        for site in sites:
            if became_others(site.row) or site.session.census.is_container(site.element):
                return True
            if site.row.started or STATES[site.row.state] in DONE:
                return False
        return False

    def work_at(self, sites: Iterable[Site]) -> tuple[Session, int] | None:
        """Where the work is stored that a task had returned: a session, and the first task of what it has become."""
        for site in sites:
            block = site.session.census.graph_of(site.element)
            if block is not None:
                return (site.session, block.start) if block.size else None
        return None


class Recollection:
    """The memory of a run that goes on: see ``runtime.beginning.Memory``.

    sites    by element of the run's own graph: containers that become others again, as they did then
    restart  names of elements that somebody wants to run again
    touched  names of those that they are parts of
    rerun    names of elements with ``at_most_once`` that may run whatever became of them
    made     by element of the run's own graph that is kept: when its value was made
    """

    def __init__(
        self,
        earlier: Earlier,
        sites: dict[int, list[Site]],
        *,
        restart: frozenset[str] = frozenset(),
        touched: frozenset[str] = frozenset(),
        rerun: frozenset[str] = frozenset(),
        made: dict[int, int] | None = None,
    ) -> None:
        self._earlier = earlier
        self._sites = sites
        self._restart = restart
        self._touched = touched
        self._rerun = rerun
        self._made: dict[int, int] = made or {}  # restored element → when its value was made
        self._valid: dict[int, int] = {}  # first map of a chain → since when its source is what it is
        self._nodes: dict[int, int] = {}  # nodes of graphs that have come into being → what to answer
        self._works: dict[int, Work] = {}
        self._fresh: set[int] = set()  # elements that run again, and those of later maps go with them
        self._done: list[int] = []
        self._values: dict[int, StoredValue] = {}
        self._failures: dict[int, Failure] = {}
        self._keeper: Keeper | None = None
        self._describe: Callable[[Program], Description] | None = None
        self._scheduler: Scheduler
        self._growth: Growth

    def keep_in(self, keeper: Keeper, describe: Callable[[Program], Description]) -> None:
        """Rows of what is recalled go to `keeper`; `describe` tells what a graph looks like now."""
        self._keeper = keeper
        self._describe = describe
        for element, sites in self._sites.items():
            keeper.go_on(element, sites[0].ref)

    def attach(self, scheduler: Scheduler, growth: Growth) -> None:
        self._scheduler = scheduler
        self._growth = growth

    def take(self) -> Recalled:
        recalled = Recalled(self._done, self._values, self._failures)
        self._done, self._values, self._failures = [], {}, {}
        return recalled

    # ── elements of maps, and merges ──────────────────────────────────────────────────────────────────────────────

    def recall(self, element: int) -> int:
        place = self._scheduler.place(element)
        if place.kind == GRAPH:
            return self._nodes.pop(element, 0)
        found = self._find(place)
        if not found:
            if self._fresh and self._follows_fresh(element, place):
                self._fresh.add(element)
            return 0
        return self._answer(element, place, found)

    def _find(self, place: Place) -> list[Site]:
        """The same place in earlier sessions, as far as it may be gone on with from there."""
        sites = self._sites.get(place.owner)
        if not sites:
            return []
        scheduler = self._scheduler
        chain = scheduler.chain_of(place.owner)[0] if place.kind == CHAIN else scheduler.tree_of(place.owner).chain
        since = self._since(chain.stages[0].container)
        for site in sites:
            if (site.row.ready or site.row.ended) < since:
                return []  # what is earlier yet is older still
            try:
                then = self._element(site, place)
            except LookupError:
                continue
            found = self._earlier.sites(site.session, then)
            if found:
                return found
        return []

    def _element(self, site: Site, place: Place) -> int:
        census = site.session.census
        if place.kind == TREE:
            return census.merge_at(site.element, place.level, place.number)
        keys = self._growth.keys(place.owner)
        if keys is not None:
            return census.element_of_key(site.element, str(keys[place.number]))
        return census.element_at(site.element, place.number)

    def _answer(self, element: int, place: Place, found: list[Site]) -> int:
        """What an element is told that has been found in earlier sessions."""
        site = found[0]
        row, state = site.row, STATES[site.row.state]
        program, node = self._growth.declared(element)
        fresh = touched = False
        if self._restart:
            name = self._name(element)
            touched = name in self._touched
            fresh = self._follows_fresh(element, place) or name in self._restart
            if fresh or touched:
                self._fresh.add(element)
        once = node in program.once and not self._may_rerun(element)
        if fresh:
            return (
                self._unknown(element, "it has succeeded, and would run a second time") if once and state in DONE else 0
            )
        container = self._earlier.became_others(found)
        if said_skip(row):
            self._adopt(element, site)
            return SKIPPED
        if state in DONE and not touched:
            if not self._is_needed(element, place):
                return self._restored(element, site)
            if not container:
                value, why = stored_value(self._earlier.store, row, site.session.result(row))
                if value is not None:
                    self._values[element] = value
                    return self._restored(element, site)
                return self._unknown(element, f"it has succeeded, but its value is lost: {why}") if once else 0
        if container:
            if once and not self._scheduler.is_graft(element) and self._load_work(element, found) is None:
                return self._unknown(element, how_it_ended(state))
            self._expand(element, found)
            return 0
        if once and may_have_begun(row):
            return self._unknown(element, how_it_ended(state))
        return 0

    def _restored(self, element: int, site: Site) -> int:
        self._made[element] = site.row.ended
        self._adopt(element, site)
        return CACHED if STATES[site.row.state] is TaskState.CACHED else SUCCEEDED

    def _unknown(self, element: int, why: str) -> int:
        self._failures[element] = outcome_unknown(self._name(element), why)
        return UNKNOWN

    def _expand(self, element: int, sites: list[Site]) -> None:
        """An element becomes others again: those go on from there."""
        self._sites[element] = sites
        if self._keeper is not None:
            self._keeper.go_on(element, sites[0].ref)

    def _adopt(self, element: int, site: Site) -> None:
        self._done.append(element)
        if self._keeper is not None:
            row = site.row
            times = (row.ready, row.started, row.ended)
            self._keeper.adopt(
                AttemptRow(element, row.attempt, row.state, row.reason, *times, (), row.detail, site.ref)
            )

    def _is_needed(self, element: int, place: Place) -> bool:
        """Whether anybody who is not done will read an element's value."""
        scheduler = self._scheduler
        if not scheduler.is_read(element):
            return False
        if place.kind == TREE:
            return True
        chain, stage = scheduler.chain_of(place.owner)
        if stage.whole and not stage.concluded:
            return True
        for position in stage.below:
            below = chain.stages[position].container
            if not self._was_done(Place(below, CHAIN, place.number)):
                return True
        return any(
            tree.base or not self._was_done(Place(tree.container, TREE, place.number // tree.fan_in, 1))
            for tree in stage.trees
        )

    def _was_done(self, place: Place) -> bool:
        """Whether what reads a value was done, and needs it no more. Where somebody wants something to run again: who knows."""
        if self._restart:
            return False
        found = self._find(place)
        return bool(found) and found[0].row.result is not None and STATES[found[0].row.state] in DONE

    # ── what somebody wants to run again ──────────────────────────────────────────────────────────────────────────

    def _follows_fresh(self, element: int, place: Place) -> bool:
        """Whether an element takes its items from one that runs again because somebody wants it to."""
        if place.kind == TREE:
            return any(up in self._fresh for up in self._scheduler.inputs(element))
        chain, stage = self._scheduler.chain_of(place.owner)
        ups = [self._scheduler.sibling(element, chain.stages[over].container) for over in stage.over]
        return any(up in self._fresh for up in ups)

    def _may_rerun(self, element: int) -> bool:
        return bool(self._rerun) and self._name(element) in self._rerun

    def _name(self, element: int) -> str:
        return self._growth.name(element)

    # ── whether a source is what it was ───────────────────────────────────────────────────────────────────────────

    def _since(self, container: int) -> int:
        """Since when the source of a chain of maps is what it is (ns of the epoch); `_NOW` where that changed in this session."""
        since = self._valid.get(container)
        if since is None:
            since = max([self._made_at(up) for up in self._growth.sources(container)], default=0)
            self._valid[container] = since
        return since

    def _made_at(self, element: int) -> int:
        """When what a value is made of was there."""
        made = self._made.get(element)
        if made is None:
            parts = list(self._scheduler.elements_of(element))
            state = self._scheduler.state(element)
            if parts:
                made = max([self._made_at(part) for part in parts])
            elif state is TaskState.SKIPPED or state in DONE:
                made = _NOW if self._scheduler.attempt(element) and not self._scheduler.is_map(element) else 0
            else:
                made = 0
            self._made[element] = made
        return made

    # ── graphs ────────────────────────────────────────────────────────────────────────────────────────────────────

    def grafted(self, start: int, owner: int, program: Program) -> None:
        sites = self._sites.get(owner)
        if not sites or self._describe is None:
            return
        now = self._describe(program)
        then: dict[int, list[Site]] = {}
        affected: set[int] = set()
        touched: set[int] = set()
        numbers = {name: node for node, name in enumerate(now.names)}
        prefix = f"{self._name(owner)}/"
        for site in sites:
            census = site.session.census
            block = census.graph_of(site.element)
            if block is None:
                continue
            changed = compare(census.graph(block.start), now).affected
            for name, node in numbers.items():
                number = census.node(block.start, name)
                if number is None or node in then:
                    continue
                found = self._earlier.sites(site.session, number)
                if not found:
                    continue
                then[node] = found
                if name in changed or f"{prefix}{name}" in self._restart:
                    affected.add(node)
                elif f"{prefix}{name}" in self._touched:
                    touched.add(node)
        plan = program.plan
        told = {
            node: self._earlier.then(found, node in plan.maps or node in plan.grafts) for node, found in then.items()
        }
        rerun = {node for node, name in enumerate(now.names) if f"{prefix}{name}" in self._rerun}
        kept = keep(program, told, self._earlier.store, affected=affected, touched=touched, rerun=rerun, prefix=prefix)
        nodes = self._nodes
        for node, row in kept.rows.items():
            element = start + node
            nodes[element] = row.state | kept.chosen.get(node, 0) << 8
            self._made[element] = row.ended
            self._adopt(element, then[node][0])
            if node in kept.values:
                self._values[element] = kept.values[node]
        for node, failure in kept.unknown.items():
            nodes[start + node] = UNKNOWN
            self._failures[start + node] = failure
        for node in kept.twice:
            nodes[start + node] = UNKNOWN
            why = "it has succeeded, and would run a second time"
            self._failures[start + node] = outcome_unknown(f"{prefix}{now.names[node]}", why)
        for node in kept.expand:
            self._expand(start + node, then[node])

    # ── work that was returned ────────────────────────────────────────────────────────────────────────────────────

    def work(self, element: int) -> Work | None:
        found = self._works.pop(element, None)
        if found is not None:
            return found
        sites = self._sites.get(element)
        if sites is None or self._scheduler.is_map(element):
            return None
        found = self._load_work(element, sites)
        self._works.pop(element, None)
        return found

    def _load_work(self, element: int, sites: Iterable[Site]) -> Work | None:
        """The work that a task had returned; None where it cannot be had, so that the task has to say it again."""
        where = self._earlier.work_at(sites)
        if where is None:
            return None
        session, start = where
        store = self._earlier.store
        try:
            data = store.work(session.run, session.number, start)
            payload = unseal(data, store.secret, bound_to_work(session.run, session.number, start))
            work: Any = unpack(payload, load_for)
        except FlowError:
            return None
        found = self._works[element] = Work(work, payload.detached())
        return found
