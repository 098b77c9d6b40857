"""The sparse fields of a Plan and a Program: what options, maps, conditions and tear-downs become when a workflow is compiled.

Worked out only for graphs that have any of it. Everything is by node; a graph that has none of one kind has no entry for it.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final, cast

from flowlane.core.plan import SLOT, WINDOW, Guard, MapSpec, Requirement
from flowlane.core.rules import ALL_SUCCESS, AT_LEAST
from flowlane.declare.callsite import did_you_mean
from flowlane.declare.limits import MEMORY, SHARE, Limit, machine_memory
from flowlane.errors import DefinitionError, UnknownName
from flowlane.program import MapCall, Ref

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from flowlane.core.rules import TriggerRule
    from flowlane.declare.nodes import Workflow
    from flowlane.declare.options import Settings
    from flowlane.declare.sparse import Sparse
    from flowlane.declare.spec import TaskSpec
    from flowlane.program import LimitSpec

__all__ = ["Fields"]

_MB: Final = 1_000_000

#: Batches under way at a time, unless a map says how many items: many for each worker of one machine.
_BATCHES: Final = 64


class Fields:
    """The sparse fields of one workflow, as keywords: `plan` for ``Plan.build``, `program` for ``Program``.

    edges     as ``Workflow.edges()`` gave them
    specs     the checked options of each Settings
    lane_of   by node, and `slots_of` tells how many slots a lane has
    limits    those that the run and the engine define, by name, which count over those that tasks bring along
    """

    def __init__(
        self,
        workflow: Workflow,
        edges: Sequence[tuple[int, ...]],
        specs: Mapping[Settings, TaskSpec],
        lane_of: Sequence[int],
        slots_of: Callable[[int], int],
        limits: Mapping[str, Limit],
    ) -> None:
        self.plan: dict[str, Any] = {}
        self.program: dict[str, Any] = {}
        self._workflow = workflow
        self._edges = edges
        # by node, those alone that have options of this kind
        wanted = {settings for settings, spec in specs.items() if not spec.is_plain}
        self._specs = (
            {node: specs[settings] for node, settings in enumerate(workflow.settings) if settings in wanted}
            if wanted
            else {}
        )
        sparse = workflow.found_sparse
        if sparse is not None:
            self._add_sparse(sparse)
        maps = cast("Mapping[int, MapSpec]", self.plan.get("maps", {}))
        self._add_rules(sparse.rules if sparse is not None else {})
        self._check_uses(maps)
        self._add_by_node(lane_of, slots_of, limits)
        self.plan = {name: field for name, field in self.plan.items() if field}
        self.program = {name: field for name, field in self.program.items() if field}

    # ── maps, conditions, tear-downs, workflows ───────────────────────────────────────────────────────────────────

    def _add_sparse(self, sparse: Sparse) -> None:
        self.plan |= {
            "guards": sparse.guards(),
            "teardowns": {node: tuple(range(start, end)) for node, start, end in sparse.teardowns},
            "scopes": tuple([tuple(range(start, end)) for start, end in sparse.scopes]),
            "grafts": frozenset(sparse.definitions) - frozenset(sparse.maps),
            "maps": self._maps(sparse) if sparse.maps else {},
        }
        self.program |= {
            "choices": {node: tuple(tests) for node, tests in sparse.choices.items()},
            "definitions": dict(sparse.definitions),
            "raw_missing": frozenset(sparse.raw_missing),
            "maps": {node: call._replace(batch=self._batch(node)) for node, call in sparse.maps.items()},
        }

    def _maps(self, sparse: Sparse) -> dict[int, MapSpec]:
        ruled = frozenset([node for node, spec in self._specs.items() if spec.rule != ALL_SUCCESS])
        batched = {node for node in sparse.maps if self._batch(node)}
        chains = _Chains(sparse, self._edges, self._workflow, ruled, batched)
        found: dict[int, MapSpec] = {}
        for node, call in sparse.maps.items():
            spec = self._specs.get(node)
            found[node] = MapSpec(
                over=chains.over(node, call),
                window=self._window(node),
                enough=(spec.enough or 0) if spec is not None else 0,
                cancel_rest=spec is None or spec.cancel_rest is not False,
                grafts=node in sparse.definitions,
                fan_in=sparse.trees.get(node, 0),
            )
        return found

    def _batch(self, node: int) -> int:
        spec = self._specs.get(node)
        return (spec.batch or 0) if spec is not None else 0

    def _window(self, node: int) -> int:
        """Elements that may be under way; `in_flight` counts items, of which a batch holds many."""
        spec = self._specs.get(node)
        if spec is None:
            return 0
        if spec.batch is None:
            return spec.in_flight or 0
        return -(-spec.in_flight // spec.batch) if spec.in_flight else max(_BATCHES, WINDOW // spec.batch)

    # ── options ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _add_rules(self, own: Mapping[int, TriggerRule]) -> None:
        rules = dict(own)
        guards = cast("Mapping[int, tuple[Guard, ...]]", self.plan.get("guards", {}))
        for node, spec in self._specs.items():
            rule = spec.rule
            if rule == ALL_SUCCESS:
                continue
            if node in guards:
                self._check_conditions(node, spec, guards[node])
            if rule.name == AT_LEAST:
                conditions = {guard.node for guard in guards.get(node, ())} - set(self._workflow.inputs[node])
                count = len(set(self._edges[node]) - conditions)
                if rule.at_least > count:
                    raise DefinitionError(
                        f"task {self._workflow.name_of(node)!r} has join={rule.at_least}, and waits for {count} "
                        f"task{'' if count == 1 else 's'}",
                        where=self._workflow.site_of(node),
                        hint="a join counts tasks, and a map is one: of its elements, enough=n ends the map after n"
                        if any(up in self.plan.get("maps", {}) for up in self._edges[node])
                        else "pass or order after as many as it needs",
                    )
            rules[node] = rule
        self.plan["rules"] = rules

    def _check_conditions(self, node: int, spec: TaskSpec, guards: Iterable[Guard]) -> None:
        """Refuse a condition's task that a rule would have to count: it does not, unless the task reads it."""
        conditions = {guard.node for guard in guards} - set(self._workflow.inputs[node])
        for up in self._workflow.ordered().get(node, ()):
            if up in conditions:
                said = f"join={spec.join}" if spec.join is not None else f"trigger={spec.rule.name!r}"
                condition = self._workflow.name_of(up)
                raise DefinitionError(
                    f"task {self._workflow.name_of(node)!r} has {said} and comes after {condition!r}, "
                    f"which is also the condition that it stands under",
                    where=self._workflow.site_of(node),
                    hint=f"leave {condition!r} out of after=: a task waits for its condition anyway, before its rule is asked, "
                    "and the rule does not count it",
                )

    def _check_uses(self, maps: Mapping[int, MapSpec]) -> None:
        """Refuse options of maps at calls that are none."""
        for node, spec in self._specs.items():
            mapped = maps.get(node)
            if mapped is not None and not mapped.fan_in:
                if spec.batch is not None:
                    self._check_batch(node, spec)
                continue
            settings = self._workflow.settings[node]
            own = settings.task.settings.options
            for name in ("enough", "in_flight", "batch"):
                if name in settings.options and settings.options[name] != own.get(name):
                    what = "a reduction" if mapped is not None else "a single call"
                    raise DefinitionError(
                        f"task {self._workflow.name_of(node)!r} has {name}={settings.options[name]!r}, and is {what}",
                        where=settings.where or self._workflow.site_of(node),
                        hint=f"{name} is for maps: {settings.task.name}.options({name}=...).map(items)",
                    )
            if spec.cancel_rest is not None and spec.join is None:
                raise DefinitionError(
                    f"task {self._workflow.name_of(node)!r} has cancel_rest, and no join",
                    where=settings.where or self._workflow.site_of(node),
                    hint="join=n begins when n of what it waits for have succeeded",
                )

    def _check_batch(self, node: int, spec: TaskSpec) -> None:
        """Refuse what needs each item by itself."""
        settings, call = self._workflow.settings[node], self._workflow.sparse.maps[node]
        task = settings.task
        reason = hint = ""
        if task.is_async:
            reason = f"{task.name!r} is async: a batch would await its items one after the other"
            hint = "leave batch out: in_flight= is how many of them are awaited at a time"
        elif call.filters:
            reason, hint = "a filter lets each item pass or not", "leave batch out, or return what passes from a map"
        elif spec.enough is not None:
            reason, hint = f"enough={spec.enough} counts items that succeed", "leave one of the two out"
        if reason:
            raise DefinitionError(
                f"task {self._workflow.name_of(node)!r} has batch={spec.batch}, and {reason}",
                where=settings.where or self._workflow.site_of(node),
                hint=hint,
            )

    def _add_by_node(self, lane_of: Sequence[int], slots_of: Callable[[int], int], given: Mapping[str, Limit]) -> None:
        specs = self._specs
        self.plan["may_fail"] = frozenset([node for node, spec in specs.items() if spec.may_fail])
        self.plan["priority"] = {node: spec.priority for node, spec in specs.items() if spec.priority}
        self.program["max_depth"] = {node: spec.max_depth for node, spec in specs.items() if spec.max_depth}
        self.program["memory"] = {node: spec.memory for node, spec in specs.items() if spec.memory}
        table = _Limits(self._workflow, given)
        requirements: dict[Requirement, int] = {SLOT: 0}
        requirement: dict[int, int] = {}
        known: dict[tuple[int, int], int] = {}  # (id of spec, lane) → requirement: many nodes share them
        for node, spec in specs.items():
            if not spec.limits and spec.cores == 1 and not spec.memory:
                continue
            key = (id(spec), lane_of[node])
            if key not in known:
                if spec.cores > 1 and spec.cores > (slots := slots_of(lane_of[node])):
                    raise DefinitionError(
                        f"task {self._workflow.name_of(node)!r} has cores={spec.cores}, and its executor has {slots} "
                        f"slot{'' if slots == 1 else 's'}",
                        where=self._workflow.settings[node].where,
                        hint="give the executor more slots (--slots, Engine(slots=...)), or the task fewer cores",
                    )
                need = Requirement(spec.cores, table.held(node, spec))
                known[key] = requirements.setdefault(need, len(requirements))
            requirement[node] = known[key]
        if requirement:
            self.plan["requirement"] = requirement
            self.plan["requirements"] = tuple(requirements)
            self.program["limits"] = tuple(table.specs)


class _Limits:
    """The limits in use, numbered."""

    def __init__(self, workflow: Workflow, given: Mapping[str, Limit]) -> None:
        self.specs: list[LimitSpec] = []
        self._workflow = workflow
        self._given = given
        self._number: dict[str, int] = {}
        self._own: dict[str, tuple[Limit, str]] = {}  # those that tasks bring along, and the first that did
        for settings in dict.fromkeys(workflow.settings):
            for held in settings.spec.limits if settings.spec is not None else ():
                if held.limit is None or held.name in given:
                    continue
                first, task = self._own.setdefault(held.name, (held.limit, settings.task.name))
                if first != held.limit:
                    raise DefinitionError(
                        f"tasks {task!r} and {settings.task.name!r} have limits that are both named {held.name!r} and differ",
                        where=settings.where,
                        hint="make one Limit and name it in both; a run's or an engine's limits=[...] would replace them",
                    )

    def held(self, node: int, spec: TaskSpec) -> tuple[tuple[int, int], ...]:
        """(limit, how much of it) for a task with these options."""
        found: list[tuple[int, int]] = []
        name = self._workflow.name_of(node)
        where = self._workflow.settings[node].where
        for held in spec.limits:
            number = self._numbered(held.name, name, where)
            slots = self.specs[number].slots
            if slots is not None and held.weight > slots:
                raise DefinitionError(
                    f"task {name!r} holds {held.weight} of limit {held.name!r}, which has {slots}",
                    where=where,
                    hint="it could never start: hold less, or give the limit more slots",
                )
            found.append((number, held.weight))
        if spec.memory:
            number = self._memory()
            size, weight = self.specs[number].slots, -(-spec.memory // _MB)
            if size is not None and weight > size:
                raise DefinitionError(
                    f"task {name!r} has memory={spec.memory:,} bytes, and there are {size * _MB:,}",
                    where=where,
                    hint="it could never start: ask for less; Limit('memory', MB) among a run's limits sets what there is",
                )
            found.append((number, weight))
        return tuple(found)

    def _numbered(self, name: str, task: str, where: str | None) -> int:
        number = self._number.get(name)
        if number is None:
            limit = self._given.get(name) or self._own.get(name, (None, ""))[0]
            if limit is None:
                known = sorted({*self._given, *self._own})
                close = did_you_mean(name, known)
                raise UnknownName(
                    f"task {task!r} has the limit {name!r}, which nobody defines; "
                    + (f"defined are {', '.join(map(repr, known))}" if known else "no limits are defined"),
                    where=where,
                    hint=f"did you mean {close!r}?"
                    if close
                    else f"limits=[Limit({name!r}, 8)], at the task, in Engine(...) or among the run's options",
                )
            number = self._number[name] = len(self.specs)
            self.specs.append(limit.spec)
        return number

    def _memory(self) -> int:
        number = self._number.get(MEMORY)
        if number is None:
            limit = self._given.get(MEMORY) or Limit(MEMORY, max(1, int(machine_memory() * SHARE) // _MB))
            number = self._number[MEMORY] = len(self.specs)
            self.specs.append(limit.spec)
        return number


class _Chains:
    """Which maps are chained to which, element by element.

    A map is chained to its sources when they are maps of one chain, and nothing else that it waits for comes after the first of
    that chain: it would wait for all of the chain, while the chain waits for it to go on. One with a trigger rule (`ruled`) is
    not: it goes over what there is in the end, where of all_success an element follows from an element. Nor is one in batches
    (`batched`), whose elements are of many items, and others go over what it makes when it has ended.
    """

    def __init__(
        self,
        sparse: Sparse,
        edges: Sequence[tuple[int, ...]],
        workflow: Workflow,
        ruled: Collection[int] = (),
        batched: Collection[int] = (),
    ) -> None:
        self._sparse = sparse
        self._batched = batched
        self._ruled = ruled
        self._edges = edges
        self._workflow = workflow
        self._guards = sparse.guards()
        self._ordered = workflow.ordered()
        self._first: dict[int, int] = {}  # map → the first of its chain
        self._below: dict[int, set[int]] = {}  # first of a chain → all that comes after it, itself included
        self._dependants: list[list[int]] | None = None

    def over(self, node: int, call: MapCall) -> tuple[int, ...]:
        """The maps that `node` is chained to; asked for in the order of nodes."""
        if node in self._batched:
            return ()
        sources = self._sources(call)
        firsts = {self._first[source] for source in sources}
        tree = node in self._sparse.trees
        if node in self._ruled or len(firsts) != 1 or not self._is_free(node, sources, next(iter(firsts)), tree=tree):
            sources = ()
        if not tree:  # its value is one, and not a list
            self._first[node] = next(iter(firsts)) if sources else node
        return sources

    def _sources(self, call: MapCall) -> tuple[int, ...]:
        """Its sources, if all of them are maps that it may be chained to."""
        if call.combine == "product":
            return ()
        nodes = [source.node for source in call.sources if type(source) is Ref and source.node in self._first]
        if len(nodes) < len(call.sources) or len(set(nodes)) < len(nodes):
            return ()
        return tuple(nodes)

    def _is_free(self, node: int, sources: tuple[int, ...], first: int, *, tree: bool) -> bool:
        """Whether nothing that it waits for as a whole comes after `first`."""
        arguments = self._workflow.arguments[node]
        whole = set(self._edges[node]) - set(sources)
        whole.update(self._ordered.get(node, ()))  # that of a source, say, whose last element it is to wait for
        whole.update([guard.node for guard in self._guards.get(node, ())])  # a condition may be on the very list
        if arguments.nested or arguments.direct:
            whole.update(_refs(chain(arguments.args, arguments.kwargs.values())))
        if not whole:
            return True
        return not tree and whole.isdisjoint(self._after(first))

    def _after(self, first: int) -> set[int]:
        known = self._below.get(first)
        if known is None:
            if self._dependants is None:
                self._dependants = [[] for _ in self._edges]
                for node, ups in enumerate(self._edges):
                    for up in ups:
                        self._dependants[up].append(node)
            known = self._below[first] = {first}
            reached = [first]
            for node in reached:  # grows while it is walked
                for below in self._dependants[node]:
                    if below not in known:
                        known.add(below)
                        reached.append(below)
        return known


def _refs(values: Iterable[Any]) -> list[int]:
    from flowlane.declare.nodes import refs_in

    return refs_in(list(values))
