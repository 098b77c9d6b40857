"""A naive interpreter of dynamic workflows: one task after another, depth first, by plain recursion. The tests' own truth.

It shares nothing with the engine: it asks for the outcome of a statement, and for that first for those of the statements it
waits for. There is no time in it. Where the order of news decides (a task may have ended before a join cancels it) it knows the
set of what may be, and asks `choose` which one it was; a run that ended otherwise differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from .model import (
    Arg,
    Body,
    Call,
    Combined,
    Either,
    Fates,
    GoOn,
    Lit,
    Map,
    Model,
    Param,
    Reduce,
    Ref,
    Repeat,
    Setup,
    Source,
    Statement,
    Sub,
    Switch,
    When,
    made,
    settled,
)
from .trigger_rules import FAIL, RUN, SKIP, Counts, decide

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Ending", "Outcome", "evaluate"]

OK = "succeeded"
NEVER = ""  # of an element that never came to be


@dataclass
class Outcome:
    """How something ended. `items` are the elements of a map by key, when it came to have some; not all of them where its source
    `broke`.
    """

    state: str
    value: Any = None
    items: dict[Any, Outcome] | None = None
    broke: bool = False


class Waits(NamedTuple):
    """What must have happened before something begins: by its rule, by its conditions, by the block it tidies up after."""

    rule: str
    at_least: int
    upstreams: list[str]
    ended: list[str]


@dataclass
class Ending:
    """What a run comes to.

    states    the final state of every task, element and container, by full name
    calls     the arguments of each attempt, by full name: what was called, in order
    waits     what each task or container waits for, by full name
    loose     names whose attempts may have been stopped at any point: their calls are not certain
    torn      beginnings of names, of workflows that may have been cut short by a failure: of what is in them nothing is certain
    verdict   of the run
    value     what it returns, if it succeeded
    """

    states: dict[str, str] = field(default_factory=dict[str, str])
    calls: dict[str, list[list[Any]]] = field(default_factory=dict[str, list[list[Any]]])
    waits: dict[str, Waits] = field(default_factory=dict[str, "Waits"])
    loose: set[str] = field(default_factory=set[str])
    torn: set[str] = field(default_factory=set[str])
    verdict: str = ""
    value: Any = None


@dataclass(eq=False)
class Room:
    """One use of a body: its names begin with `prefix`, its parameter is a value or is read in the room around it."""

    prefix: str
    body: Body
    param: Source
    outer: Room | None = None
    placed: dict[str, Placed] = field(default_factory=dict[str, "Placed"])
    subs: dict[str, Room] = field(default_factory=dict[str, "Room"])


@dataclass(eq=False)
class Placed:
    """A statement in its place: the room, and the conditions of the blocks around it, outermost first."""

    statement: Call | Map | Reduce | Either | Sub | GoOn | Stop
    room: Room
    guards: tuple[tuple[Placed, Callable[[Any], bool]], ...]
    exposed: bool = False  # a join may cancel it

    @property
    def name(self) -> str:
        return self.room.prefix + self.statement.name


@dataclass(frozen=True)
class Stop:
    """A teardown: what it reads, and all that was declared in its block."""

    name: str
    reads: Placed
    block: tuple[Placed, ...]


def evaluate(model: Model, choose: Callable[[str, set[str]], str] | None = None, doomed: str = "") -> Ending:
    """What `model` comes to. `choose` is told a name and the states it may have ended in, where there are several.

    `doomed` is the name of a plain task that somebody cancels at some moment, perhaps too late.
    """
    return Interpreter(model, choose or (lambda name, allowed: min(allowed)), doomed).run()


class Interpreter:
    def __init__(self, model: Model, choose: Callable[[str, set[str]], str], doomed: str) -> None:
        self.model = model
        self.doomed = doomed
        self.ending = Ending()
        self.fate = Fates(model)
        self._choose = choose
        self._known: dict[Placed, Outcome] = {}
        self._before: dict[Placed, set[Placed]] = {}
        self._chained: dict[Placed, tuple[Placed, ...]] = {}

    def run(self) -> Ending:
        room = self.enter("", self.model.body, Lit(self.model.param))
        failed = self.failed(room)
        self.ending.verdict = "failed" if failed else OK
        if not failed:
            self.ending.value = self.returned(room).value
        return self.ending

    # ── rooms ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def enter(self, prefix: str, body: Body, param: Source) -> Room:
        room = Room(prefix, body, param)
        self.place(room, body.statements, ())
        return room

    def place(self, room: Room, statements: tuple[Statement, ...], guards: tuple[Any, ...]) -> list[Placed]:
        """Put statements into the room; returns what was put there, inner rooms included."""
        put: list[Placed] = []
        for statement in statements:
            match statement:
                case Sub(arg=arg, kept=False) | Repeat(start=arg):
                    body = statement.body if isinstance(statement, Sub) else statement.round(1)
                    inner = Room(f"{room.prefix}{body.name}/", body, arg, outer=room)
                    room.subs[body.name] = inner
                    put += self.place(inner, body.statements, guards)
                case When(subject, then, otherwise):
                    asked = self.placed(room, Ref(subject))
                    put += self.place(room, then, (*guards, (asked, bool)))
                    put += self.place(room, otherwise, (*guards, (asked, lambda value: not value)))
                case Switch(subject, arms, default):
                    asked = self.placed(room, Ref(subject))
                    taken = {value for values, _ in arms for value in values}
                    for values, inside in arms:
                        put += self.place(room, inside, (*guards, (asked, set(values).__contains__)))
                    if default is not None:
                        put += self.place(room, default, (*guards, (asked, lambda value, t=taken: value not in t)))
                case Setup(start, block, stop):
                    put += self.place(room, (start,), guards)
                    inside = self.place(room, block, guards)
                    put += inside
                    put.append(self.put(room, Stop(stop, room.placed[start.name], tuple(inside)), guards))
                case _:
                    put.append(self.put(room, statement, guards))
        return put

    def put(self, room: Room, statement: Any, guards: tuple[Any, ...]) -> Placed:
        placed = room.placed[statement.name] = Placed(statement, room, guards)
        if isinstance(statement, Call) and statement.cancel_rest:
            for up in self.upstreams(placed):
                up.exposed = True
        return placed

    def find(self, room: Room, source: Source) -> Placed | Lit:
        """The statement that makes this value, through the walls of inlined rooms; or the value."""
        match source:
            case Lit():
                return source
            case Param():
                return self.find(room.outer, room.param) if room.outer is not None else self.find(room, room.param)
            case Ref(name):
                if name in room.subs:
                    inner = room.subs[name]
                    (returned,) = inner.body.returns
                    return self.find(inner, Ref(returned))
                return room.placed[name]

    def placed(self, room: Room, source: Source) -> Placed:
        found = self.find(room, source)
        assert isinstance(found, Placed), source
        return found

    def everything(self, room: Room) -> list[Placed]:
        return [*room.placed.values(), *(p for inner in room.subs.values() for p in self.everything(inner))]

    def failed(self, room: Room) -> bool:
        """Let all of a room happen. Whether something failed that may not."""
        ends = [(placed, self.outcome(placed)) for placed in self.everything(room)]
        return any(end.state == "failed" and not getattr(p.statement, "may_fail", False) for p, end in ends)

    def returned(self, room: Room) -> Outcome:
        ends = [self.outcome(p) for p in (self.placed(room, Ref(name)) for name in room.body.returns)]
        if len(ends) == 1:
            return ends[0]
        return Outcome(OK, [end.value for end in ends])

    # ── one statement ─────────────────────────────────────────────────────────────────────────────────────────────

    def outcome(self, placed: Placed) -> Outcome:
        if placed not in self._known:
            outcome = self.happens(placed)
            if placed.exposed or placed.name == self.doomed:
                self.ending.loose.add(placed.name)
                if self.pick(placed.name, {outcome.state, "cancelled"}) == "cancelled":
                    outcome = Outcome("cancelled")
            self._known[placed] = outcome
            self.ending.states[placed.name] = outcome.state
        return self._known[placed]

    def pick(self, name: str, allowed: set[str]) -> str:
        if len(allowed) == 1:
            return next(iter(allowed))
        chosen = self._choose(name, allowed)
        return chosen if chosen in allowed else min(allowed)

    def happens(self, placed: Placed) -> Outcome:
        statement = placed.statement
        rule, at_least, above = "all_success", 0, self.upstreams(placed)
        ended = [subject.name for subject, _ in placed.guards]
        if isinstance(statement, Call):
            rule, at_least = statement.rule, statement.at_least
        elif isinstance(statement, Map):
            rule = statement.rule
        elif isinstance(statement, Either):
            rule = "none_failed_min_one_success"
        elif isinstance(statement, Stop):
            above = [statement.reads]
            ended += [inside.name for inside in statement.block]
        waits = [up.name for up in above]
        self.ending.waits[placed.name] = Waits(rule, at_least, waits, ended)
        ends = [self.outcome(up) for up in above]
        # of maps that it goes on with element by element those that never came to have any
        ends += [end for end in map(self.outcome, self.chained(placed)) if end.items is None]
        says = self.conditions(placed) or {decide(rule, tally(ends), at_least)}
        decided = self.pick(placed.name, says)
        return self.do(placed) if decided == RUN else Outcome(decided)

    def conditions(self, placed: Placed) -> set[str]:
        """What the blocks around it say; nothing when it may run."""
        says: set[str] = set()
        for subject, takes in placed.guards:
            asked = self.outcome(subject)
            if asked.state == "skipped":
                says.add(SKIP)
            elif asked.state != OK:
                says.add(FAIL)
            elif not takes(asked.value):
                says.add(SKIP)
        return says

    def upstreams(self, placed: Placed) -> list[Placed]:
        """Each once; of a map over a map the map above is not among them, because its elements are."""
        sources: list[Source] = []
        statement, room = placed.statement, placed.room
        match statement:
            case Call():
                sources = [*flat(statement.args), *map(Ref, statement.after)]
            case Map():
                sources = [*flat(statement.fixed), *map(Ref, statement.after)]
                if not self.chained(placed):
                    sources += sources_of(statement.over)
            case Reduce():
                if not self.chained(placed):
                    sources = [statement.over]
            case Either():
                sources = [*map(Ref, statement.of)]
            case Sub():
                sources = [statement.arg]
            case GoOn():
                sources = [Ref(statement.repeat.step.name), Ref(statement.repeat.test.name)]
            case Stop():
                return [statement.reads, *statement.block]
        found = [self.find(room, source) for source in sources]
        return list(dict.fromkeys(one for one in found if isinstance(one, Placed)))

    def chained(self, placed: Placed) -> tuple[Placed, ...]:
        """The maps above, if elements go from them to this one one by one.

        They cannot where they do not all go on with one first map, or where something else that is waited for needs all of one of
        them, or of that first one.
        """
        if placed not in self._chained:
            self._chained[placed] = self._find_chained(placed)
        return self._chained[placed]

    def _find_chained(self, placed: Placed) -> tuple[Placed, ...]:
        over = getattr(placed.statement, "over", None)
        if over is None or getattr(placed.statement, "rule", "all_success") != "all_success":
            return ()
        if isinstance(over, Combined) and over.how == "product":
            return ()
        above = [self.find(placed.room, source) for source in sources_of(over)]
        maps = [one for one in above if isinstance(one, Placed) and isinstance(one.statement, Map)]
        if len(maps) < len(above) or len(set(maps)) < len(maps):
            return ()
        whole = {subject for subject, _ in placed.guards}
        if isinstance(placed.statement, Map):
            sources = [*flat(placed.statement.fixed), *map(Ref, placed.statement.after)]
            whole |= {one for one in (self.find(placed.room, source) for source in sources) if isinstance(one, Placed)}
        elif whole:
            return ()
        firsts = {self.first(one) for one in maps}
        if len(firsts) > 1:
            return ()
        first = firsts.pop()
        return () if any(first is one or first in self.before(one) for one in whole) else tuple(maps)

    def first(self, placed: Placed) -> Placed:
        """The first map of a chain."""
        above = self.chained(placed)
        return self.first(above[0]) if above else placed

    def before(self, placed: Placed) -> set[Placed]:
        """All that something waits for, directly or not."""
        if placed not in self._before:
            direct = {*self.upstreams(placed), *(subject for subject, _ in placed.guards)}
            direct.update(self.chained(placed))
            self._before[placed] = direct.union(*map(self.before, direct))
        return self._before[placed]

    def do(self, placed: Placed) -> Outcome:
        statement = placed.statement
        match statement:
            case Call():
                return self.attempts(placed.name, statement, self.read(placed.room, statement.args))
            case Map():
                return self.elements(placed, statement)
            case Reduce():
                if any(end.broke or end.state != OK for end in map(self.outcome, self.chained(placed))):
                    return Outcome(FAIL)
                values = self.value(placed.room, statement.over)
                over = self.outcome(self.placed(placed.room, statement.over)).items
                if over and not values and self.chained(placed):
                    return Outcome("skipped")  # it had something to merge, and all of it was skipped
                return Outcome(OK, sum(values.values() if isinstance(values, dict) else values))
            case Either():
                ends = [self.outcome(self.placed(placed.room, Ref(name))) for name in statement.of]
                return Outcome(OK, next(end.value for end in ends if end.state == OK))
            case Sub(body, arg, retries):
                value = self.value(placed.room, arg)
                for _ in range(retries + 1):
                    end = self.whole(placed.name, body, value)
                    if end.state != "failed":
                        break
                return end
            case GoOn(repeat, number):
                value, liked = (self.value(placed.room, Ref(each.name)) for each in (repeat.step, repeat.test))
                if liked:
                    return Outcome(OK, value)
                if number == repeat.limit:
                    return Outcome("failed")
                return self.whole(placed.name, repeat.round(number + 1), value)
            case Stop():
                args = [settled(self.outcome(statement.reads).value)]
                return self.attempts(placed.name, Call(statement.name), args)

    def read(self, room: Room, args: tuple[Arg, ...]) -> list[Any]:
        return [
            settled([self.value(room, a) for a in arg] if isinstance(arg, tuple) else self.value(room, arg))
            for arg in args
        ]

    def value(self, room: Room, source: Source) -> Any:
        found = self.find(room, source)
        return found.plain if isinstance(found, Lit) else self.outcome(found).value

    # ── attempts and elements ─────────────────────────────────────────────────────────────────────────────────────

    def attempts(self, name: str, statement: Call | Map, args: list[Any]) -> Outcome:
        """A task whose turn has come: until it does not fail, or no attempt is left."""
        calls = self.ending.calls.setdefault(name, [])
        for _ in range(statement.retries + 1):
            calls.append(args)
            fate = self.fate(name, len(calls))
            if fate == "skip":
                return Outcome("skipped")
            if fate == "ok":
                return self.become(name, statement.becomes, made(statement, args))
        return Outcome("failed")

    def become(self, name: str, work: Body | str | None, value: Any) -> Outcome:
        if work is None:
            return Outcome(OK, value)
        if isinstance(work, str):
            inner = f"{name}/{work}"
            end = self.attempts(inner, Call(work), [settled(value)])
            self.ending.states[inner] = end.state
            return end
        return self.whole(name, work, value)

    def whole(self, name: str, body: Body, value: Any) -> Outcome:
        """A workflow in the place of a task."""
        room = self.enter(f"{name}/", body, Lit(value))
        if self.failed(room):
            if body.bears:
                self.ending.torn.add(room.prefix)
            return Outcome("failed")
        end = self.returned(room)
        if end.state in (OK, "skipped"):
            return Outcome(end.state, end.value)
        return Outcome(FAIL)  # what it returns was never made, because of a task that may fail

    def elements(self, placed: Placed, statement: Map) -> Outcome:
        room = placed.room
        if above := self.chained(placed):
            before = [self.outcome(one) for one in above]
            todo = self.beside(before) if isinstance(statement.over, Combined) else before[0].items or {}
        else:
            try:
                todo = {key: Outcome(OK, item) for key, item in self.items(room, statement.over).items()}
            except ValueError:  # lists side by side that are not of one length
                return Outcome("failed", items={}, broke=True)
        fixed = self.read(room, statement.fixed)
        done: dict[Any, Outcome] = {}
        for key, item in todo.items():
            name = f"{placed.name}[{key}]"
            if item.state == "skipped":
                done[key] = Outcome(SKIP)
            elif item.state != OK:
                done[key] = Outcome(FAIL)
            elif statement.body is not None:
                done[key] = self.whole(name, statement.body, item.value)
            else:
                own = (
                    [settled(v) for v in item.value] if isinstance(statement.over, Combined) else [settled(item.value)]
                )
                done[key] = self.attempts(name, statement, [*own, *fixed])
                if statement.filters and done[key].state == OK:
                    done[key] = Outcome(OK, item.value) if done[key].value else Outcome("skipped")
            if statement.enough and statement.cancel_rest:
                self.ending.loose.add(name)
                ended = self.pick(name, {done[key].state, "cancelled", NEVER})
                if ended == NEVER:  # there was enough before its turn came
                    del done[key]
                    continue
                if ended == "cancelled":
                    done[key] = Outcome("cancelled")
            self.ending.states[name] = done[key].state
        end = self.gathered(statement, todo, done)
        if any(self.outcome(one).broke for one in above):
            return Outcome(end.state if end.state == "failed" else FAIL, end.value, end.items, broke=True)
        return end

    @staticmethod
    def beside(before: list[Outcome]) -> dict[Any, Outcome]:
        """Element by element what several maps of one chain have."""
        found: dict[Any, Outcome] = {}
        for index, items in enumerate(zip(*((one.items or {}).values() for one in before), strict=True)):
            states = {item.state for item in items}
            state = FAIL if states - {OK, "skipped"} else "skipped" if "skipped" in states else OK
            found[index] = Outcome(state, [item.value for item in items])
        return found

    def gathered(self, statement: Map, todo: Mapping[Any, Outcome], done: dict[Any, Outcome]) -> Outcome:
        """What a map comes to, once its elements have."""
        states = {end.state for end in done.values()}
        state = next((bad for bad in ("failed", FAIL, "cancelled") if bad in states), OK)
        if statement.enough and sum(end.state == OK for end in done.values()) >= statement.enough:
            state = OK
        have = {key: end.value for key, end in done.items() if end.state == OK}
        keyed = any(isinstance(key, str) for key in todo) or (isinstance(statement.over, Lit) and statement.over.keyed)
        return Outcome(state, have if keyed else list(have.values()), done)

    def items(self, room: Room, over: Source | Combined) -> dict[Any, Any]:
        """The items of a source that is read whole, by key."""
        if isinstance(over, Combined):
            columns = [list(self.items(room, source).values()) for source in over.sources]
            rows = zip(*columns, strict=True) if over.how == "zip" else product(*columns)
            return dict(enumerate(list(rows)))
        values = self.value(room, over)
        return dict(values) if isinstance(values, dict) else dict(enumerate(values or ()))


def sources_of(over: Source | Combined) -> tuple[Source, ...]:
    return over.sources if isinstance(over, Combined) else (over,)


def flat(args: tuple[Arg, ...]) -> list[Source]:
    return [source for arg in args for source in (arg if isinstance(arg, tuple) else (arg,))]


def tally(ends: list[Outcome]) -> Counts:
    ok = sum(end.state == OK for end in ends)
    skipped = sum(end.state == "skipped" for end in ends)
    return Counts(ok, len(ends) - ok - skipped, skipped, 0)
