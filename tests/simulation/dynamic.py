"""Random dynamic workflows, and the builder that makes real flowlane of a model.

`models` draws trees of statements (see model.py). `World` declares one by the public surface alone, with tasks that keep books:
who was called with what, in which order things began and ended, what was held of each limit, and how many were out at a time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import strategies as st

import flowlane
from flowlane import (
    Limit,
    RetryAfter,
    Skip,
    current_task,
    either,
    otherwise,
    product,
    switch,
    task,
    teardown,
    when,
    zipped,
)

from .model import (
    Arg,
    Body,
    Call,
    Combined,
    Either,
    Fates,
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

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Noted(NamedTuple):
    """One line of the books: "begin" or "end" of an attempt; `how` it ended, or with what arguments it began."""

    what: str
    name: str
    attempt: int
    how: Any


class World:
    """A model as a real workflow. Its tasks run on one thread: asyncio or inline.

    books  all beginnings and ends of attempts, in order
    most   the most that was held at a time, by limit, and by "" the most attempts that were out
    """

    def __init__(self, model: Model, *, fail_fast: bool = False) -> None:
        self.model = model
        self._fail_fast = fail_fast
        self.books: list[Noted] = []
        self.most: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._begun: Counter[str] = Counter()
        self._fate = Fates(model)
        self._tasks: dict[str, Any] = {}
        self._definitions: dict[str, Any] = {}
        self.main = self._define(model.body)

    @property
    def limits(self) -> list[Limit]:
        return [Limit(name, slots) for name, slots in self.model.limits]

    @property
    def calls(self) -> dict[str, list[list[Any]]]:
        calls: dict[str, list[list[Any]]] = {}
        for line in self.books:
            if line.what == "begin":
                calls.setdefault(line.name, []).append(line.how)
        return calls

    # ── what tasks do ─────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _noted(self, statement: Call | Map | Reduce, args: list[Any]) -> Iterator[str]:
        me = current_task()
        self.books.append(Noted("begin", me.task, me.attempt, args))
        self._begun[me.task] += 1
        holds = Counter({"": 1, **dict(statement.limits)})
        self._held.update(holds)
        for name in holds:
            self.most[name] = max(self.most[name], self._held[name])
        how = "stopped"
        try:
            yield (how := "ok" if isinstance(statement, Reduce) else self._fate(me.task, self._begun[me.task]))
        except asyncio.CancelledError:
            how = "stopped"
            raise
        finally:
            self._held.subtract(holds)
            self.books.append(Noted("end", me.task, me.attempt, how))

    async def _attempt(self, statement: Call | Map | Reduce, args: list[Any]) -> Any:
        args = [settled(arg) for arg in args]
        with self._noted(statement, args) as fate:
            me = current_task()
            for _ in range(Random(f"{self.model.seed}/{me.task}/{me.attempt}/pauses").choice([0, 0, 1, 2, 5, 20])):
                await asyncio.sleep(0)
            if fate == "fail":
                if self._fate.asks(me.task, me.attempt):
                    raise RetryAfter(0.001)
                raise ValueError(f"{me.task} is to fail")
            if fate == "skip":
                raise Skip(f"{me.task} is to be skipped")
            if isinstance(statement, Reduce):
                return sum(args[0].values() if isinstance(args[0], dict) else args[0])
            value = made(statement, args)
            if statement.becomes is None:
                return value
            if isinstance(statement.becomes, str):
                return self._task(Call(statement.becomes), 1).bind(value)
            return self._define(statement.becomes).bind(value)

    def _task(self, statement: Call | Map | Reduce, arity: int) -> Any:
        """The task of a statement: a function of as many parameters as it is called with."""
        if statement.name not in self._tasks:

            async def none() -> Any:
                return await self._attempt(statement, [])

            async def one(a: Any) -> Any:
                return await self._attempt(statement, [a])

            async def two(a: Any, b: Any) -> Any:
                return await self._attempt(statement, [a, b])

            async def three(a: Any, b: Any, c: Any) -> Any:
                return await self._attempt(statement, [a, b, c])

            async def four(a: Any, b: Any, c: Any, d: Any) -> Any:
                return await self._attempt(statement, [a, b, c, d])

            options: dict[str, Any] = {"name": statement.name}
            if not isinstance(statement, Reduce) and statement.retries:
                options["retries"] = statement.retries
            if statement.limits:
                options["limits"] = dict(statement.limits)
            self._tasks[statement.name] = task.io(**options)((none, one, two, three, four)[arity])
        return self._tasks[statement.name]

    # ── what is declared ──────────────────────────────────────────────────────────────────────────────────────────

    def _define(self, body: Body) -> Any:
        if body.name not in self._definitions:

            def declare(param: Any) -> Any:
                env: dict[str, Any] = {}
                self._declare(body.statements, env, param)
                values = [env[name] for name in body.returns]
                return values[0] if len(values) == 1 else values

            outermost = body is self.model.body
            options: dict[str, Any] = {"on_failure": "fail_fast"} if outermost and self._fail_fast else body.policy
            self._definitions[body.name] = flowlane.workflow(name=body.name, **options)(declare)
        return self._definitions[body.name]

    def _declare(self, statements: Sequence[Statement], env: dict[str, Any], param: Any) -> None:
        def source(one: Source) -> Any:
            match one:
                case Lit():
                    return one.plain
                case Ref(name):
                    return env[name]
                case Param():
                    return param

        def args(several: tuple[Arg, ...]) -> list[Any]:
            return [[source(a) for a in arg] if isinstance(arg, tuple) else source(arg) for arg in several]

        for statement in statements:
            match statement:
                case Call():
                    made_of = self._task(statement, len(statement.args))
                    env[statement.name] = made_of.options(**options_of(statement, env))(*args(statement.args))
                case Map(over=over, fixed=fixed):
                    if statement.body is not None:
                        made_of = self._define(statement.body)
                    else:
                        lifted = len(over.sources) if isinstance(over, Combined) else 1
                        made_of = self._task(statement, lifted + len(fixed))
                    made_of = made_of.options(**options_of(statement, env), name=statement.name)
                    if isinstance(over, Combined):
                        combine = zipped if over.how == "zip" else product
                        kept = dict(zip("abcd"[len(over.sources) :], args(fixed), strict=False))
                        mapped = made_of.starmap(combine(*map(source, over.sources)), **kept)
                    elif statement.filters:
                        mapped = made_of.filter(source(over), *args(fixed))
                    else:
                        mapped = made_of.map(source(over), *args(fixed))
                    env[statement.name] = mapped
                case Reduce(over=over, fan_in=fan_in):
                    env[statement.name] = self._task(statement, 1).reduce(source(over), fan_in=fan_in)
                case Sub(body, arg, retries, kept):
                    made_of = self._define(body)
                    if kept:
                        made_of = made_of.options(retries=retries, max_depth=50)
                    env[statement.name] = made_of(source(arg))
                case Repeat(start=start, limit=limit):
                    step = self._task(statement.step, 1).options(name=statement.name)
                    test = self._task(statement.test, 1)
                    env[statement.name] = step.repeat_until(test, source(start), limit=limit)
                case When(subject, then, other):
                    with when(env[subject]) as taken:
                        self._declare(then, env, param)
                    if other:
                        with otherwise(taken):
                            self._declare(other, env, param)
                case Switch(subject, arms, default):
                    with switch(env[subject]) as arm:
                        for values, inside in arms:
                            with arm(*values):
                                self._declare(inside, env, param)
                        if default is not None:
                            with arm.default():
                                self._declare(default, env, param)
                case Either(of=of):
                    env[statement.name] = either(*(env[name] for name in of))
                case Setup(start, block, stop):
                    self._declare((start,), env, param)
                    with teardown(self._task(Call(stop), 1).bind(env[start.name])):
                        self._declare(block, env, param)


def options_of(statement: Call | Map, env: dict[str, Any]) -> dict[str, Any]:
    """The options of a call, those that are said."""
    options: dict[str, Any] = {}
    if statement.after:
        options["after"] = [env[name] for name in statement.after]
    if statement.may_fail:
        options["may_fail"] = True
    if isinstance(statement, Call):
        if statement.at_least:
            options["join"] = statement.at_least
            if statement.cancel_rest:
                options["cancel_rest"] = True
        elif statement.rule != "all_success":
            options["trigger"] = statement.rule
    else:
        if statement.in_flight:
            options["in_flight"] = statement.in_flight
        if statement.rule != "all_success":
            options["trigger"] = statement.rule
        if statement.enough:
            options["enough"] = statement.enough
            options["cancel_rest"] = statement.cancel_rest
    return options


# ── random ones ───────────────────────────────────────────────────────────────────────────────────────────────────

READING = [
    "all_success",
    "all_success",
    "all_success",
    "all_done",
    "none_failed",
    "none_skipped",
    "none_failed_min_one_success",
    "all_done_min_one_success",
    "all_failed",
    "all_skipped",
]
#: Kinds of statements that a condition may be about.
ASKED = ("number", "numbers", "sum", "sub", "map", "mapped")
#: A map that ends before all of it has: what its value is depends on who is first, so it may only be waited for.
VAGUE = "vague"
#: These may run while an upstream is left: what they would read of it depends on who is first.
EARLY = ["one_success", "one_failed", "one_done", "always"]


class _Author:
    """Writes a body: knows what was declared above, and never uses a name twice.

    Hypothesis draws which statements there are and what they read, a seed the details of each, by its number: so examples shrink,
    and are made in milliseconds.
    """

    def __init__(self, draw: st.DrawFn, limits: Sequence[tuple[str, int]], most: int, asks: Sequence[str]) -> None:
        self.draw = draw
        self.asks = asks
        self.limits = limits
        self.left = most
        self.number = 0
        self.tried = 0  # workflows around, that are tried again: what may be stopped at any moment has no place there
        self.subjects: list[
            str
        ] = []  # of the conditions that we are in: a graph has one edge for this and for an order
        self.seed = draw(st.integers(0, 2**16))
        self.dice = Random(self.seed)

    def name(self, letter: str) -> str:
        self.number += 1
        self.dice = Random(f"{self.seed}/{self.number}")
        return f"{letter}{self.number}"

    def one(self, items: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(items))

    def detail(self, items: Sequence[Any]) -> Any:
        return self.dice.choice(items)

    def chance(self, percent: int) -> bool:
        return self.dice.randrange(100) < percent

    def body(self, depth: int, *, bounded: bool = True) -> Body:
        name = self.name("w")
        # where it is tried again it must be known who was called how often
        bears = self.detail([0, 0, 1, 2, -30, -60]) if bounded and not self.tried else 0
        known: dict[str, str] = {}
        statements = self.statements(depth, known, fewest=1)
        while not (made := [each for each, kind in known.items() if kind != VAGUE]):
            statements += (self.call(known),)
        return Body(name, statements, (self.one(made),), bears)

    def statements(self, depth: int, known: dict[str, str], fewest: int = 0) -> tuple[Statement, ...]:
        """A few statements; `known` is what may be read, by name: a number, numbers, a map of numbers, or of others."""
        found: list[Statement] = []
        for _ in range(self.draw(st.integers(fewest, max(fewest, 3)))):
            if self.left <= 0:
                break
            self.left -= 1
            found += self.statement(depth, known)
        return tuple(found)

    def statement(self, depth: int, known: dict[str, str]) -> list[Statement]:
        kinds = ["call", "call", "call", "map", "map", "join", "reduce", "repeat"]
        if depth:
            kinds += ["sub", "mapped", "when", "when", "switch", "setup"]
        match self.one(kinds):
            case "map":
                return [self.map(known)]
            case "join":
                return self.join(known)
            case "reduce" if maps := [name for name, kind in known.items() if kind == "map"]:
                over = Ref(self.one(maps))
                reduce = Reduce(self.name("r"), over, self.detail([2, 3]), self.holds())
                known[reduce.name] = "sum"
                return [reduce]
            case "repeat":
                repeat = Repeat(self.name("x"), self.source(known), self.detail([1, 2, 4]), self.detail([0, 0, 1]))
                known[repeat.name] = "sub"
                return [repeat]
            case "sub":
                self.name("w")
                retries = self.detail([0, 0, 1, 2])
                kept = retries > 0 or self.chance(30)
                self.tried += retries > 0
                body = self.body(depth - 1, bounded=kept)
                self.tried -= retries > 0
                sub = Sub(body, self.source(known), retries, kept)
                known[sub.name] = "sub"
                return [sub]
            case "mapped":
                mapped = Map(self.name("s"), self.over(known), body=self.body(depth - 1), in_flight=self.window())
                known[mapped.name] = "mapped"
                return [mapped]
            case "when" | "switch" as how if asked := [n for n, kind in known.items() if kind in self.asks]:
                return self.branch(depth, known, how, self.one(asked))
            case "setup":
                start = self.call(known, plain=True)
                block = (self.call(known), *self.statements(depth - 1, known))  # an empty one is refused
                return [Setup(start, block, self.name("d"))]
            case _:
                return [self.call(known)]

    def call(self, known: dict[str, str], *, plain: bool = False) -> Call:
        name = self.name("t")
        rule = "all_success" if plain else self.detail([*READING, self.detail(EARLY)])
        reads = () if rule in EARLY else tuple(self.source(known) for _ in range(self.dice.randint(0, 3)))
        args: tuple[Arg, ...] = (reads,) if len(reads) > 1 and self.chance(30) else reads
        call = Call(
            name,
            args,
            after=self.after(known, 40 if rule != "all_success" else 15),
            makes=self.detail(["number", "number", "numbers"]),
            rule=rule,
            may_fail=self.chance(10),
            retries=self.detail([0, 0, 1, 2]),
            limits=self.holds(),
            becomes=None if plain or not self.chance(12) else self.work(),
        )
        known[call.name] = "sub" if call.becomes else call.makes
        return call

    def work(self) -> Body | str:
        return self.name("l") if self.chance(60) else self.body(0)

    def map(self, known: dict[str, str]) -> Map:
        name = self.name("m")
        over: Source | Combined = self.over(known)
        if self.chance(20):
            over = self.combined(known)
        elif self.chance(10):
            over = Lit(tuple((f"k{key}", key) for key in range(self.dice.randint(0, 3))), keyed=True)
        elif self.chance(10):
            over = Lit(tuple(range(self.dice.randint(0, 5))), lazy=True)
        filters = self.chance(20) and not isinstance(over, Combined)
        whole = isinstance(over, Combined | Lit) or known.get(getattr(over, "name", "")) == "numbers"
        enough = self.dice.randint(1, 3) if whole and not filters and not self.tried and self.chance(15) else 0
        chosen = Map(
            name,
            over,
            fixed=() if filters or self.chance(60) else (self.source(known),),
            after=self.after(known, 10),
            makes=self.detail(["number", "number", "numbers"]),
            rule=self.detail(READING) if self.chance(25) else "all_success",
            filters=filters,
            in_flight=self.window(),
            enough=enough,
            cancel_rest=self.chance(50),
            may_fail=self.chance(10),
            retries=self.detail([0, 0, 1]),
            limits=self.holds(),
            becomes=None if filters or enough or not self.chance(10) else self.work(),
        )
        if chosen.enough:
            known[chosen.name] = VAGUE
        else:
            numbers = not isinstance(over, Ref) or known[over.name] in ("numbers", "map")
            known[chosen.name] = "map" if (numbers if filters else self.sums(chosen)) else "mapped"
        return chosen

    def combined(self, known: dict[str, str]) -> Combined:
        how, width = self.detail(["zip", "zip", "product"]), self.dice.randint(0, 2)
        columns: tuple[Source, ...] = tuple(self.numbers(width) for _ in range(2))
        maps = [name for name, kind in known.items() if kind in ("map", "mapped")]
        if how == "zip" and maps and self.chance(80):
            columns = tuple(Ref(self.one(maps)) for _ in range(self.dice.randint(2, 3)))
        elif self.chance(50) and (how == "product" or isinstance(first := self.over(known), Ref)):
            columns = (first if how == "zip" else self.over(known), *columns[1:])
        return Combined(how, columns)

    @staticmethod
    def sums(chosen: Map) -> bool:
        return chosen.makes == "number" and not isinstance(chosen.becomes, Body)

    def join(self, known: dict[str, str]) -> list[Statement]:
        """n of a few tasks of its own; what is cancelled then is read by nobody else."""
        cancels = self.chance(50) and not self.tried
        racers = [Call(self.name("t"), limits=self.holds()) for _ in range(self.dice.randint(1, 3))]
        others = () if cancels else self.after(known, 20)
        after = (*(racer.name for racer in racers), *others)
        at_least = self.dice.randint(1, len(after))
        join = Call(self.name("j"), after=after, at_least=at_least, cancel_rest=cancels)
        known[join.name] = "number"
        return [*racers, join]

    def branch(self, depth: int, known: dict[str, str], how: str, subject: str) -> list[Statement]:
        arms: list[tuple[Statement, ...]] = []
        self.subjects.append(subject)
        ends: list[str] = []
        for _ in range(2):
            inside = dict(known)
            arms.append(self.statements(depth - 1, inside))
            ends += [name for name in inside if name not in known and inside[name] in ("number", "sum", "sub")][-1:]
            known.update(inside)
        self.subjects.pop()
        found: list[Statement] = [When(subject, *arms)]
        if how == "switch" and known[subject] == "number":
            values = self.dice.sample(range(6), 6)
            found = [Switch(subject, ((tuple(values[:2]), arms[0]), (tuple(values[2:4]), arms[1])), None)]
            if self.chance(50):
                found = [Switch(subject, ((tuple(values[:3]), arms[0]),), arms[1])]
        if len(ends) == 2 and self.chance(60):
            both = Either(self.name("e"), tuple(ends))
            known[both.name] = "number"
            found.append(both)
        return found

    def source(self, known: dict[str, str]) -> Source:
        if (read := [name for name, kind in known.items() if kind != VAGUE]) and self.chance(70):
            return Ref(self.one(read))
        return Param() if self.chance(50) else Lit(self.dice.randrange(6))

    def over(self, known: dict[str, str]) -> Source:
        lists = [name for name, kind in known.items() if kind in ("numbers", "map", "mapped")]
        return Ref(self.one(lists)) if lists and self.chance(65) else self.numbers(self.dice.randint(0, 3))

    def numbers(self, width: int) -> Lit:
        return Lit(tuple(self.dice.randrange(6) for _ in range(width)))

    def after(self, known: dict[str, str], percent: int) -> tuple[str, ...]:
        return tuple(name for name in known if self.chance(percent) and name not in self.subjects)[:3]

    def window(self) -> int:
        return self.detail([0, 0, 1, 2])

    def holds(self) -> tuple[tuple[str, int], ...]:
        return tuple((name, self.dice.randint(1, slots)) for name, slots in self.limits if self.chance(25))


@st.composite
def models(draw: st.DrawFn, most: int = 10, depth: int = 2, asks: Sequence[str] = ASKED) -> Model:
    """Workflows with maps, branches, rules, joins, limits, set-ups and others in them, and what fails and is skipped.

    `asks` are the kinds of statements whose values conditions are about.
    """
    limits = tuple(zip(("api", "disk"), draw(st.lists(st.integers(1, 3), max_size=2)), strict=False))
    author = _Author(draw, limits, most, asks)
    known: dict[str, str] = {}
    statements = author.statements(depth, known, fewest=draw(st.integers(1, most // 2 + 1)))
    returns = tuple(name for name, kind in known.items() if kind != VAGUE and author.chance(50))
    if len(returns) == 1:
        returns = ()
    return Model(
        Body("main", statements, returns),
        param=draw(st.integers(0, 5)),
        limits=limits,
        slots=draw(st.integers(1, 4)),
        seed=draw(st.integers(0, 2**32)),
        fails=draw(st.sampled_from([0.0, 0.1, 0.3])),
        skips=draw(st.sampled_from([0.0, 0.0, 0.2])),
    )
