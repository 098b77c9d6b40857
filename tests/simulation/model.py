"""A small language for dynamic workflows, for tests: what the reference evaluates and what is built as real flowlane.

A `Body` is a list of statements, as the body of a ``@workflow`` is: calls, maps, inlined sub-workflows, branches, set-ups. Each
statement carries a name that is unique in the whole tree, and is the name of its task. What tasks do is a pure function of a
seed: `Fates` says how an attempt ends, `number` and `numbers` what it returns. Both sides ask them, and nothing else is shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, TypeAlias
from zlib import crc32

# ── what is read ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Lit:
    """A value that is known from the start: a number, a tuple of numbers, or a tuple of (key, number) as a mapping.

    lazy  it is a generator, which tells nobody how many items it has
    """

    value: Any
    keyed: bool = False
    lazy: bool = False

    @property
    def plain(self) -> Any:
        """The value as a workflow's author would write it."""
        if self.keyed:
            return dict(self.value)
        if self.lazy:
            return (item for item in self.value)
        return list(self.value) if isinstance(self.value, tuple) else self.value


@dataclass(frozen=True)
class Ref:
    """The value of a statement above in the same body."""

    name: str


@dataclass(frozen=True)
class Param:
    """The parameter of the body."""


Source: TypeAlias = Lit | Ref | Param
#: A tuple of sources arrives as a list of their values.
Arg: TypeAlias = "Source | tuple[Source, ...]"


@dataclass(frozen=True)
class Combined:
    """Several sources of a starmap: "zip" or "product"."""

    how: str
    sources: tuple[Source, ...]


# ── statements ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Call:
    """A task, called once.

    makes    "number", or "numbers" for a list of them, or "verdict" for what a predicate says
    becomes  work that the task returns in place of a value: a body, or the name of a plain task; it gets the value
    at_least with cancel_rest: a join; the rule does not count then
    """

    name: str
    args: tuple[Arg, ...] = ()
    after: tuple[str, ...] = ()
    makes: str = "number"
    rule: str = "all_success"
    at_least: int = 0
    cancel_rest: bool = False
    may_fail: bool = False
    retries: int = 0
    limits: tuple[tuple[str, int], ...] = ()
    becomes: Body | str | None = None


@dataclass(frozen=True)
class Map:
    """A task or a body, called for each item.

    over    a literal, a list that a task returns, another map (element by element), or several of these, combined
    fixed   further arguments, the same for each element
    body    each element is this workflow; None: it is a task
    filters the task is a predicate, and the value the items that it likes
    """

    name: str
    over: Source | Combined
    fixed: tuple[Arg, ...] = ()
    after: tuple[str, ...] = ()
    makes: str = "number"
    rule: str = "all_success"
    body: Body | None = None
    filters: bool = False
    in_flight: int = 0
    enough: int = 0
    cancel_rest: bool = True
    may_fail: bool = False
    retries: int = 0
    limits: tuple[tuple[str, int], ...] = ()
    becomes: Body | str | None = None


@dataclass(frozen=True)
class Reduce:
    """The sum of a map, merged so many at a time."""

    name: str
    over: Ref
    fan_in: int
    limits: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Sub:
    """A body called in a body: its tasks are tasks of the outer one. Carries the body's name.

    retries  so often it is tried again, as a whole: then it is one task of the outer one, which becomes the body
    kept     it is one task without that
    """

    body: Body
    arg: Source
    retries: int = 0
    kept: bool = False

    @property
    def name(self) -> str:
        return self.body.name


@dataclass(frozen=True)
class When:
    subject: str
    then: tuple[Statement, ...]
    otherwise: tuple[Statement, ...] = ()


@dataclass(frozen=True)
class Switch:
    """Arms by the values that choose them; `default` is None where there is none."""

    subject: str
    arms: tuple[tuple[tuple[int, ...], tuple[Statement, ...]], ...]
    default: tuple[Statement, ...] | None = None


@dataclass(frozen=True)
class Either:
    """The value of whichever of these statements has one."""

    name: str
    of: tuple[str, ...]


@dataclass(frozen=True)
class Setup:
    """`start`, a block, and a teardown that reads `start`'s value after the block has ended."""

    start: Call
    block: tuple[Statement, ...]
    stop: str


@dataclass(frozen=True)
class Repeat:
    """A task called again on its own result, until another likes it, so often at most."""

    name: str
    start: Source
    limit: int
    retries: int = 0

    @property
    def step(self) -> Call:
        return Call(f"{self.name}step", (Param(),), retries=self.retries)

    @property
    def test(self) -> Call:
        return Call(f"{self.name}test", (Ref(self.step.name),), makes="verdict")

    def round(self, number: int) -> Body:
        """Round `number`, from 1, as a body of the value so far."""
        return Body(self.name, (self.step, self.test, GoOn(self, number)), (GoOn.name,))


@dataclass(frozen=True)
class GoOn:
    """The task that ends a round: it returns what the step made, or becomes the next round, or fails for good."""

    repeat: Repeat
    round: int
    name: ClassVar[str] = "go_on"


Statement: TypeAlias = "Call | Map | Reduce | Sub | When | Switch | Either | Setup | Repeat | GoOn"


@dataclass(frozen=True)
class Body:
    """A workflow of one parameter. `returns` names the statements whose values it returns, one alone as it is.

    bears  failures that end it, below 0 as a share of its tasks, in per cent; 0: none does
    """

    name: str
    statements: tuple[Statement, ...]
    returns: tuple[str, ...]
    bears: int = 0

    @property
    def policy(self) -> dict[str, Any]:
        """As options of a workflow."""
        if self.bears == 1:
            return {"on_failure": "fail_fast"}
        if not self.bears:
            return {}
        return {"max_failures": self.bears if self.bears > 0 else f"{-self.bears}%"}


@dataclass(frozen=True)
class Model:
    """A whole run: the outermost body with its parameter, the limits by name, and what decides how attempts end."""

    body: Body
    param: int = 0
    limits: tuple[tuple[str, int], ...] = ()
    slots: int = 4
    seed: int = 0
    fails: float = 0.0
    skips: float = 0.0
    fates: tuple[tuple[tuple[str, int], str], ...] = ()


# ── what tasks do ─────────────────────────────────────────────────────────────────────────────────────────────────


class Fates:
    """How attempts end: "ok", "fail" or "skip", by (full name, attempt); what the model does not say, its seed decides.

    Attempts are counted through all tries of a workflow that the task is part of. `asks` says of a failure whether the task asks
    to be tried again by itself.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._said = dict(model.fates)

    def __call__(self, name: str, attempt: int) -> str:
        if (name, attempt) in self._said:
            return self._said[name, attempt]
        draw = Random(f"{self._model.seed}/{name}/{attempt}").random()
        if draw < self._model.fails:
            return "fail"
        return "skip" if draw < self._model.fails + self._model.skips else "ok"

    def asks(self, name: str, attempt: int) -> bool:
        return Random(f"{self._model.seed}/{name}/{attempt}/asks").random() < 0.3


def settled(value: Any) -> Any:
    """A value for comparison: what is missing is an empty list, as a map without elements is, whatever its keys would be."""
    if value is None:
        return []
    if isinstance(value, dict):
        return {key: settled(item) for key, item in value.items()} or []
    return [settled(item) for item in value] if isinstance(value, list | tuple) else value


def number(task: str, args: list[Any]) -> int:
    """What a task returns that makes a number: few different ones, so that all arms of a branch are met."""
    return crc32(repr((task, args)).encode()) % 6


def numbers(task: str, args: list[Any]) -> list[int]:
    """What a task returns that makes a list: 0 to 3 numbers."""
    draw = crc32(repr((task, args)).encode())
    return [(draw >> 3 * place) % 6 for place in range(draw % 4)]


def likes(task: str, args: list[Any]) -> bool:
    """What a predicate says."""
    return number(task, args) % 2 == 0


def made(statement: Call | Map, args: list[Any]) -> Any:
    """What the task of this statement returns for these arguments."""
    if statement.makes == "verdict" or (isinstance(statement, Map) and statement.filters):
        return likes(statement.name, args)
    return (numbers if statement.makes == "numbers" else number)(statement.name, args)
