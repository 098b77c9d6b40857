"""A model on the bare scheduler: plans made by hand, values kept in a dict, and news in any order that a seed likes.

This is the smallest runtime there could be: it carries out commands, keeps values until they are released, and so shows what
the scheduler alone decides. Values that are read after their release are missed here as a KeyError.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from flowlane.core import messages as m
from flowlane.core.elements import CHAIN, GRAPH
from flowlane.core.lanes import Lane
from flowlane.core.limits import Limit
from flowlane.core.messages import NEVER
from flowlane.core.outcomes import ENDED
from flowlane.core.plan import Guard, MapSpec, Plan, Policy, Requirement
from flowlane.core.rules import AT_LEAST, TriggerRule
from flowlane.core.scheduler import Scheduler
from flowlane.core.states import TaskState

from .model import Body, Call, Combined, Either, Fates, GoOn, Lit, Map, Model, Reduce, Ref, Sub, made, settled
from .reference import Interpreter, Placed, Room, Stop, flat, sources_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane.core import Event

__all__ = ["Play"]

DONE = {TaskState.SUCCEEDED, TaskState.CACHED}


@dataclass
class Graph:
    """A room as a plan: what is where, and the conditions that are put to the value of a node."""

    room: Room
    nodes: list[Placed]
    plan: Plan
    tests: dict[int, list[Callable[[Any], bool]]]
    prefix: str


@dataclass
class Play:
    """One run of `model`. `seed` decides in which order news arrive; `requests` are events with the step before which they come.

    lossy   how often what an attempt reads is gone when its turn comes: the share of attempts
    lost    what was lost and made again: "node", "element" of a map, "merge" of a reduction

    names   by element
    calls   arguments of attempts, by name, in the order in which they were launched
    books   as those of World: what began and ended
    """

    model: Model
    seed: int
    stop: tuple[Event, int] | None = None
    bounds: dict[str, Any] = field(default_factory=dict[str, Any])
    lossy: float = 0.0
    lost: list[str] = field(default_factory=list[str])
    names: list[str] = field(default_factory=list[str])
    calls: dict[str, list[list[Any]]] = field(default_factory=dict[str, list[list[Any]]])
    values: dict[int, Any] = field(default_factory=dict[int, Any])
    graphs: dict[int, Graph] = field(default_factory=dict[int, Graph])

    def __post_init__(self) -> None:
        self.draw = Random(self.seed)
        self.fate = Fates(self.model)
        self.limits = {name: index for index, (name, _) in enumerate(self.model.limits)}
        self.keys: dict[int, list[Any]] = {}  # container at the head of a chain → keys of its indices
        self.todo: dict[int, list[tuple[Any, Any]]] = {}  # the same → (key, item) that have not been told of
        self.items: dict[int, list[Any]] = {}
        self.elements: dict[tuple[int, int], int] = {}  # (container, index) → element
        self.news: list[Event] = []
        graph = self.graphs[-1] = self.graph("", self.model.body, Lit(self.model.param))
        self.scheduler = Scheduler(
            graph.plan,
            [Lane("asyncio", self.model.slots)],
            limits=[Limit(name, slots) for name, slots in self.model.limits],
        )
        self.pinned = [self.node(graph, graph.room, Ref(name)) for name in self.model.body.returns]

    # ── plans ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def graph(self, prefix: str, body: Body, param: Lit) -> Graph:
        """The plan of a body: only the placing of statements is the reference's."""
        placing = Interpreter(self.model, lambda name, allowed: "", "")
        room = placing.enter(prefix, body, param)
        nodes = placing.everything(room)
        number = {placed: index for index, placed in enumerate(nodes)}
        tests: dict[int, list[Callable[[Any], bool]]] = {}
        upstreams: list[list[int]] = []
        inputs: list[list[int]] = []
        sparse: dict[str, dict[int, Any]] = {k: {} for k in ("rules", "guards", "maps", "teardowns", "requirement")}
        requirements: list[Requirement] = [Requirement()]
        policies: list[Policy] = []
        grafts: set[int] = set()
        for index, placed in enumerate(nodes):
            statement = placed.statement
            above = [number[up] for up in placing.upstreams(placed)]
            guards: list[Guard] = []
            for subject, takes in placed.guards:
                asked = tests.setdefault(number[subject], [])
                guards.append(Guard(number[subject], len(asked)))
                asked.append(takes)
            if guards:
                sparse["guards"][index] = tuple(guards)
            reads: list[int] = []
            match statement:
                case Call(args=args):
                    reads = self.read_nodes(placing, room, placed, flat(args), number)
                    if statement.at_least:
                        rule = TriggerRule(AT_LEAST, statement.at_least, statement.cancel_rest)
                        sparse["rules"][index] = rule
                    elif statement.rule != "all_success":
                        sparse["rules"][index] = TriggerRule(statement.rule)
                case Map(over=over, fixed=fixed):
                    reads = self.read_nodes(placing, room, placed, [*flat(fixed), *sources_of(over)], number)
                    chain = tuple(number[one] for one in placing.chained(placed))
                    above += chain
                    if statement.rule != "all_success":
                        sparse["rules"][index] = TriggerRule(statement.rule)
                    sparse["maps"][index] = MapSpec(
                        chain, statement.in_flight, statement.enough, statement.cancel_rest, statement.body is not None
                    )
                case Reduce(over=over, fan_in=fan_in):
                    (source,) = reads = self.read_nodes(placing, room, placed, [over], number)
                    chain = (source,) if placing.chained(placed) else ()
                    above += chain
                    sparse["maps"][index] = MapSpec(chain, fan_in=fan_in)
                case Either():
                    reads = above
                    sparse["rules"][index] = TriggerRule("none_failed_min_one_success")
                case Sub(arg=arg):
                    reads = self.read_nodes(placing, room, placed, [arg], number)
                    grafts.add(index)
                case GoOn():
                    reads = above
                case Stop():
                    reads = [number[statement.reads]]
                    sparse["teardowns"][index] = tuple(number[inside] for inside in statement.block)
            upstreams.append([*above, *(guard.node for guard in guards)])
            inputs.append(reads)
            if limits := getattr(statement, "limits", ()):
                sparse["requirement"][index] = len(requirements)
                requirements.append(Requirement(1, tuple((self.limits[name], weight) for name, weight in limits)))
            policies.append(Policy(attempts=getattr(statement, "retries", 0) + 1))
        plan = Plan.build(
            upstreams,
            inputs=inputs,
            policies=policies or [Policy()],
            policy=range(len(policies)),
            pinned=[number[placing.placed(room, Ref(name))] for name in body.returns],
            may_fail=frozenset(i for i, placed in enumerate(nodes) if getattr(placed.statement, "may_fail", False)),
            requirements=tuple(requirements),
            grafts=frozenset(grafts),
            fail_fast=body.bears == 1,
            **(self.bounds if not prefix else {"max_failures": max(0, body.bears), "max_share": max(0, -body.bears)}),
            **sparse,
        )
        return Graph(room, nodes, plan, tests, prefix)

    @staticmethod
    def read_nodes(placing: Any, room: Room, placed: Placed, sources: Any, number: dict[Placed, int]) -> list[int]:
        found = [placing.find(placed.room, source) for source in sources]
        return list(dict.fromkeys(number[one] for one in found if isinstance(one, Placed)))

    def node(self, graph: Graph, room: Room, source: Any) -> Any:
        """Where a value of this graph comes from: the number of a node, or a literal."""
        found = Interpreter(self.model, lambda name, allowed: "", "").find(room, source)
        return graph.nodes.index(found) if isinstance(found, Placed) else found

    # ── elements ──────────────────────────────────────────────────────────────────────────────────────────────────

    def learn(self) -> None:
        """Give names to elements that have come into being."""
        for element in range(len(self.names), self.scheduler.size):
            place = self.scheduler.place(element)
            if place.kind == GRAPH:
                placed = self.graphs[place.owner].nodes[place.number]
                self.names.append(placed.name)
            elif place.kind == CHAIN:
                self.elements[place.owner, place.number] = element
                key = self.keys_of(place.owner)[place.number]
                self.names.append(f"{self.names[place.owner]}[{key}]")
            else:
                self.names.append(f"{self.names[place.owner]}[{place.level}.{place.number}]")

    def graph_of(self, element: int) -> tuple[Graph, int, Placed]:
        """The graph that a node belongs to, the number of its first node, and the statement."""
        place = self.scheduler.place(element)
        assert place.kind == GRAPH
        return self.graphs[place.owner], element - place.number, self.graphs[place.owner].nodes[place.number]

    def keys_of(self, container: int) -> Sequence[Any]:
        """The keys of a map's elements: those of the map above, where there is one and no other beside it."""
        graph, start, placed = self.graph_of(container)
        over = graph.plan.maps[container - start].over
        if not over:
            return self.keys.get(container, [])
        above = self.keys_of(start + over[0])
        return range(len(above)) if isinstance(getattr(placed.statement, "over", None), Combined) else above

    def value(self, element: int) -> Any:
        """The value of a node; one that has none is missing, not released."""
        return self.values[element] if self.scheduler.state(element) in DONE else self.values.get(element)

    def read(self, graph: Graph, start: int, placed: Placed, arg: Any) -> Any:
        if isinstance(arg, tuple):
            return [self.read(graph, start, placed, one) for one in arg]
        found = self.node(graph, placed.room, arg)
        return found.plain if isinstance(found, Lit) else self.value(start + found)

    def arguments(self, element: int) -> tuple[Any, list[Any]]:
        """What runs as this element, and with what."""
        place = self.scheduler.place(element)
        owner = element if place.kind == GRAPH else place.owner
        if place.kind == GRAPH and element in self.leaves:
            return self.leaves[element]
        graph, start, placed = self.graph_of(owner)
        statement = placed.statement
        match statement:
            case Call():
                return statement, [settled(self.read(graph, start, placed, arg)) for arg in statement.args]
            case Stop():
                return Call(statement.name), [settled(self.read(graph, start, placed, Ref(self.start_of(statement))))]
            case Either() | GoOn() | Sub():
                return statement, []
            case Reduce():
                return statement, [place]
            case Map():
                fixed = [settled(self.read(graph, start, placed, arg)) for arg in statement.fixed]
                item = self.item(owner, place.number)
                own = [settled(v) for v in item] if isinstance(statement.over, Combined) else [settled(item)]
                return statement, [*own, *fixed]

    def start_of(self, stop: Stop) -> str:
        return stop.reads.statement.name

    def item(self, container: int, index: int) -> Any:
        graph, start, _ = self.graph_of(container)
        over = graph.plan.maps[container - start].over
        if not over:
            return self.items[container][index]
        values = [self.values[self.elements[start + up, index]] for up in over]
        return values if isinstance(graph.nodes[container - start].statement.over, Combined) else values[0]

    # ── the run ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def states(self) -> dict[str, str]:
        return {name: str(self.scheduler.state(element)) for element, name in enumerate(self.names)}

    def run(self) -> Play:
        self.leaves: dict[int, tuple[Any, list[Any]]] = {}
        self.out: dict[int, int] = {}
        self.urgent: list[Event] = []  # before a map that is made of what is gone may end
        self.made: set[int] = set()
        self.bereft: dict[int, int] = {}  # attempts that could not begin
        self.let_go: set[int] = set()  # containers that nothing more is to be looked up for
        self.at = 0
        self.step([m.RunStarted()])
        steps = 0
        while self.scheduler.finished is None:
            steps += 1
            batch, self.urgent = self.urgent, []
            batch += [self.news.pop(self.draw.randrange(len(self.news))) for _ in range(1) if self.news]
            while self.news and self.draw.random() < 0.3:
                batch.append(self.news.pop(self.draw.randrange(len(self.news))))
            if self.stop is not None and steps == self.stop[1]:
                batch.append(self.stop[0])
            assert batch, f"stalled: {self.states}"
            self.step(batch)
            assert steps < 100_000
        assert not self.out
        for element, name in enumerate(self.names):
            became = self.scheduler.graphs_of(element) or (
                self.scheduler.is_map(element) and self.scheduler.attempt(element)
            )
            assert not became or element in self.let_go, f"what {name} was made of is kept"
        return self

    def step(self, events: list[Event]) -> None:
        self.at += self.draw.randrange(3)
        for event in events:
            if isinstance(event, m.Succeeded | m.Skipped | m.Failed | m.Interrupted | m.Grafted | m.ResultLost):
                self.out.pop(event.element, None)
        commands = self.scheduler.handle(events, self.at).commands
        self.learn()
        self.scheduler.check()
        for command in commands:
            match command:
                case m.Launch(_, elements):
                    assert len(self.out) + len(elements) <= self.model.slots
                    for element in elements:
                        self.launch(element)
                case m.Interrupt(_, elements, _):
                    for element in elements:
                        self.interrupt(element)
                case m.Pull(element, count):
                    self.pull(element, count)
                case m.Graft(element):
                    self.graft(element)
                case m.Gather(element, asked):
                    self.values[element] = self.gather(element)
                    if asked:
                        self.news.append(m.Gathered(element, self.chosen(element)))
                case m.Release(elements, containers):
                    for element in elements:
                        self.values.pop(element, None)
                    for container in containers:
                        states = self.scheduler.states()
                        left = [self.names[e] for e in self.scheduler.elements_of(container) if states[e] not in ENDED]
                        assert not left, f"what {self.names[container]} was made of is gone, and it still has {left}"
                    self.let_go.update(containers)
                case m.SetTimer(at):
                    self.news.append(m.TimerFired())
                    self.at = max(self.at, at)
                case _:
                    pass

    def launch(self, element: int) -> None:
        scheduler, name = self.scheduler, self.names[element]
        attempt = scheduler.attempt(element)
        if self.lossy and self.lose(element, attempt):
            return
        statement, args = self.arguments(element)
        self.out[element] = attempt
        held: dict[str, int] = {}
        for other in self.out:
            for limit, weight in getattr(self.arguments_of.get(other, statement), "limits", ()):
                held[limit] = held.get(limit, 0) + weight
        self.arguments_of[element] = statement
        for limit, slots in self.model.limits:
            assert held.get(limit, 0) <= slots, limit
        at = self.at
        if isinstance(statement, Either):
            graph, start, placed = self.graph_of(element)
            options = [self.node(graph, placed.room, Ref(one)) for one in statement.of]
            self.made.add(element)
            self.values[element] = next(self.values[start + o] for o in options if scheduler.state(start + o) in DONE)
            self.news.append(m.Succeeded(element, attempt, at, at, self.chosen(element)))
            return
        if isinstance(statement, Reduce):
            self.made.add(element)
            self.values[element] = self.merge(element)
            self.news.append(m.Succeeded(element, attempt, at, at))
            return
        if isinstance(statement, GoOn):
            self.go_on(element, statement)
            return
        if element in self.made:  # again, of the same
            assert self.calls[name][-1] == args
            fate = "ok"
        else:
            self.calls.setdefault(name, []).append(args)
            fate = self.fate(name, len(self.calls[name]))
        if fate == "fail":
            delay = self.draw.randrange(20) if self.fate.asks(name, len(self.calls[name])) else NEVER
            self.news.append(m.Failed(element, attempt, at, at, retryable=True, delay=delay))
        elif fate == "skip":
            self.news.append(m.Skipped(element, attempt, at, at))
        elif statement.becomes is not None:
            self.become(element, attempt, statement.becomes, made(statement, args))
        else:
            value = made(statement, args)
            if getattr(statement, "filters", False):
                if not value:
                    self.news.append(m.Skipped(element, attempt, at, at))
                    return
                place = scheduler.place(element)
                value = self.item(place.owner, place.number)
            self.values[element] = value
            self.made.add(element)
            self.news.append(m.Succeeded(element, attempt, at, at, self.chosen(element)))

    def go_on(self, element: int, statement: GoOn) -> None:
        graph, start, placed = self.graph_of(element)
        attempt, at = self.scheduler.attempt(element), self.at
        value, liked = (
            self.read(graph, start, placed, Ref(each.name)) for each in (statement.repeat.step, statement.repeat.test)
        )
        if liked:
            self.values[element] = value
            self.made.add(element)
            self.news.append(m.Succeeded(element, attempt, at, at, self.chosen(element)))
        elif statement.round == statement.repeat.limit:
            self.news.append(m.Failed(element, attempt, at, at))
        else:
            self.become(element, attempt, statement.repeat.round(statement.round + 1), value)

    def lose(self, element: int, attempt: int) -> bool:
        """Perhaps some of what an attempt reads is gone, by now or before; then it cannot begin."""
        reads = [up for up in self.scheduler.reads(element) if self.scheduler.state(up) in DONE]
        gone = [up for up in dict.fromkeys(reads) if up in self.values and self.draw.random() < 0.5]
        lost = gone if self.draw.random() < self.lossy and self.scheduler.obstacle(gone) is None else []
        for up in lost:
            del self.values[up]
        coming = [up for up in self.scheduler.reads(element) if up in self.made and up not in self.values]
        if not lost and not coming:
            return False
        self.lost += [("node", "element", "merge")[self.scheduler.place(up).kind] for up in lost]
        self.out[element] = attempt
        self.arguments_of[element] = None
        self.bereft[element] = self.bereft.get(element, 0) + 1
        self.urgent.append(m.ResultLost(element, attempt, self.at, (*lost, *coming)))
        return True

    arguments_of: dict[int, Any] = field(default_factory=dict[int, Any])

    def chosen(self, element: int) -> int:
        place = self.scheduler.place(element)
        if place.kind != GRAPH:
            return 0
        tests = self.graphs[place.owner].tests.get(place.number, [])
        return sum(1 << bit for bit, test in enumerate(tests) if test(self.values[element]))

    def become(self, element: int, attempt: int, work: Body | str, value: Any) -> None:
        if isinstance(work, str):
            work = Body(f"the work of {self.names[element]}", (Call(work, (Lit(tuplet(value)),)),), (work,))
        graph = self.graphs[element] = self.graph(f"{self.names[element]}/", work, Lit(tuplet(value)))
        self.news.append(m.Grafted(element, attempt, graph.plan, self.at, self.at))

    def graft(self, element: int) -> None:
        place = self.scheduler.place(element)
        outer, start, placed = self.graph_of(element if place.kind == GRAPH else place.owner)
        body = placed.statement.body
        if isinstance(placed.statement, Sub):
            value = self.read(outer, start, placed, placed.statement.arg)
        else:
            value = self.item(place.owner, place.number)
        graph = self.graph(f"{self.names[element]}/", body, Lit(tuplet(value)))
        self.graphs[element] = graph
        self.news.append(m.Grafted(element, self.scheduler.attempt(element), graph.plan))

    def interrupt(self, element: int) -> None:
        mine = [event for event in self.news if getattr(event, "element", NEVER) == element]
        if self.draw.random() < 0.7:
            for event in mine:
                self.news.remove(event)
            self.news.append(m.Interrupted(element, self.scheduler.attempt(element), self.at, self.at))

    def pull(self, container: int, count: int) -> None:
        if container not in self.todo:
            graph, start, placed = self.graph_of(container)
            statement = placed.statement
            assert isinstance(statement, Map | Reduce)
            if isinstance(statement, Reduce):  # of a list: its elements merge the first groups
                items = list(self.listed(self.read(graph, start, placed, statement.over)).values())
                width = statement.fan_in
                groups = [items[at : at + width] for at in range(0, len(items), width)] or [[]]
                self.todo[container] = list(enumerate(groups))
            elif isinstance(statement.over, Combined):
                columns = [self.listed(self.read(graph, start, placed, one)) for one in statement.over.sources]
                rows = [()]
                if statement.over.how == "zip":
                    if len({len(column) for column in columns}) > 1:
                        self.keys[container], self.items[container] = [], []
                        self.news.append(m.Failed(container, self.scheduler.attempt(container), NEVER, self.at))
                        return
                    rows = list(zip(*(column.values() for column in columns), strict=True))
                else:
                    for column in columns:
                        rows = [(*row, item) for row in rows for item in column.values()]
                self.todo[container] = list(enumerate(rows))
            else:
                self.todo[container] = list(self.listed(self.read(graph, start, placed, statement.over)).items())
            self.keys[container], self.items[container] = [], []
        count = self.draw.randint(1, count)
        told, rest = self.todo[container][:count], self.todo[container][count:]
        self.todo[container] = rest
        self.keys[container] += [key for key, _ in told]
        self.items[container] += [item for _, item in told]
        more = bool(rest) or self.draw.random() < 0.3
        self.news.append(m.Expanded(container, len(told), more))

    @staticmethod
    def listed(value: Any) -> dict[Any, Any]:
        return dict(value) if isinstance(value, dict) else dict(enumerate(value or ()))

    def merge(self, element: int) -> int:
        place = self.scheduler.place(element)
        if place.kind == CHAIN:
            return sum(self.item(place.owner, place.number))
        return sum(self.values[item] for item in self.scheduler.inputs(element))

    def gather(self, element: int) -> Any:
        scheduler = self.scheduler
        if element in self.graphs:
            graph = self.graphs[element]
            _, start = scheduler.plan_of(element)
            (returned,) = [self.node(graph, graph.room, Ref(name)) for name in graph.room.body.returns]
            return self.value(start + returned)
        _, _, placed = self.graph_of(element)
        if isinstance(placed.statement, Reduce):
            return self.values[scheduler.root(element)]
        keys = self.keys_of(element)  # none of one that was stopped before it had its items
        have = {
            index: self.values[self.elements[element, index]]
            for index in range(len(keys))
            if (element, index) in self.elements and scheduler.state(self.elements[element, index]) in DONE
        }
        over = getattr(placed.statement, "over", None)
        if any(isinstance(key, str) for key in keys) or (isinstance(over, Lit) and over.keyed):
            return {keys[index]: value for index, value in have.items()}
        return list(have.values())

    def result(self) -> Any:
        values = [one.plain if isinstance(one, Lit) else self.value(one) for one in self.pinned]
        return values[0] if len(values) == 1 else values


def tuplet(value: Any) -> Any:
    """As a literal holds it."""
    return tuple(value) if isinstance(value, list) else value
