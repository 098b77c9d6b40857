"""What a run's workflow looked like, as it is stored, and what is different about it now.

A task is known by its name in the workflow ("parse#2"): numbers change when a workflow is edited. Two versions of a task are
the same when their function's code is (see ``storage.fingerprint``), when they wait for the same tasks, and when they are called
with the same arguments, upstream values by name and everything else by what it is.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from flowlane.errors import StoreError
from flowlane.program import Item, Ref
from flowlane.runtime.values import fill
from flowlane.storage.digest import Unhashable, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flowlane.core.plan import Plan
    from flowlane.program import Arguments, Program
    from flowlane.storage.fingerprint import Fingerprint

__all__ = ["Changes", "Code", "Description", "compare"]

_FORMAT: Final = 1
_PLAIN: Final = frozenset({str, int, bool, type(None), float})
_WORKFLOW: Final = "workflow "  # how the shape of one begins
_SHOWN: Final = 5  # names that a line of differences tells


class Code(NamedTuple):
    """The code of a task's function: what it is, and by name what it is made of."""

    digest: str
    parts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Description:
    """By element unless said otherwise.

    names      in the workflow
    tasks      the task's name as declared
    kinds, executors  "cpu", "processes"
    upstreams  what it waits for
    calls      short digest of how it is called, and of a map what it goes over
    part       not by element: the options that named a part of the workflow, if it is one
    shapes     sparse: what it is besides a plain call, such as a map, conditional, or run by a rule of its own
    codes      not by element: task → its code
    """

    names: Sequence[str]
    tasks: Sequence[str]
    kinds: Sequence[str]
    executors: Sequence[str]
    upstreams: Sequence[Sequence[int]]
    calls: Sequence[str]
    codes: Mapping[str, Code]
    shapes: Mapping[int, str] = field(default_factory=dict[int, str])
    part: Mapping[str, Sequence[str]] = field(default_factory=dict[str, "Sequence[str]"])

    def is_workflow(self, node: int) -> bool:
        """Whether it becomes a workflow, or is mapped over one: then it runs on no executor, whatever stands in its column."""
        return any(each.startswith(_WORKFLOW) for each in self.shapes.get(node, "").split("; "))

    @classmethod
    def of(cls, program: Program, code_of: Callable[[Any], Fingerprint]) -> Description:
        """Describe a compiled workflow. About 3 µs a task, and the time of `code_of` for each function."""
        codes: dict[str, Code] = {}
        for target in dict.fromkeys(program.targets):
            found = code_of(target.fn)
            codes[target.name] = Code(found.digest.hex(), dict(found.parts))
        names = program.names
        return cls(
            names=names,
            tasks=[target.name for target in program.targets],
            kinds=program.kinds,
            executors=[program.lanes[lane] for lane in program.plan.lane],
            upstreams=program.plan.upstreams,
            calls=[
                _call(arguments, names, program.maps[node].sources if node in program.maps else ())
                for node, arguments in enumerate(program.arguments)
            ],
            codes=codes,
            shapes=_shapes(program),
            part=program.part,
        )

    def packed(self) -> bytes:
        """For a store: compressed JSON, in which each word that many tasks share stands once."""
        words: dict[str, int] = {}

        def coded(column: Iterable[str]) -> list[int]:
            return [words.setdefault(word, len(words)) for word in column]

        document: dict[str, Any] = {
            "format": _FORMAT,
            "names": list(self.names),
            "tasks": coded(self.tasks),
            "kinds": coded(self.kinds),
            "executors": coded(self.executors),
            "upstreams": [list(each) for each in self.upstreams],
            "calls": list(self.calls),
            "codes": {task: [code.digest, dict(code.parts)] for task, code in self.codes.items()},
            "words": list(words),
        }
        if self.shapes:
            document["shapes"] = {str(element): shape for element, shape in self.shapes.items()}
        if self.part:
            document["part"] = {option: list(names) for option, names in self.part.items()}
        return zlib.compress(json.dumps(document, separators=(",", ":")).encode(), 1)

    @classmethod
    def read(cls, data: bytes) -> Description:
        """From what `packed` made. Raises StoreError for anything else."""
        try:
            document: Any = json.loads(zlib.decompress(data))
            if document["format"] != _FORMAT:
                raise StoreError(
                    "the run was recorded by a newer flowlane", hint="go on with it with the version that recorded it"
                )
            words: list[str] = document["words"]

            def decoded(column: list[int]) -> list[str]:
                return [words[each] for each in column]

            return cls(
                names=document["names"],
                tasks=decoded(document["tasks"]),
                kinds=decoded(document["kinds"]),
                executors=decoded(document["executors"]),
                upstreams=document["upstreams"],
                calls=document["calls"],
                codes={task: Code(*code) for task, code in document["codes"].items()},
                part=document.get("part", {}),
                shapes={int(element): shape for element, shape in document.get("shapes", {}).items()},
            )
        except (zlib.error, ValueError, KeyError, TypeError, IndexError) as error:
            raise StoreError(f"the record of the run's tasks is damaged: {error}", hint="flow store check") from error


def _shapes(program: Program) -> dict[int, str]:
    """What changes when a task is, and does the same no longer: not how many at a time, or what it holds meanwhile."""
    plan = program.plan
    words: dict[int, list[str]] = {}
    for node, spec in plan.maps.items():
        call = program.maps[node]
        marks = [call.combine, "star" if call.star else "", "filter" if call.filters else ""]
        marks += [f"batch {call.batch}" if call.batch else ""]
        marks += [f"fan_in {spec.fan_in}" if spec.fan_in else "", f"enough {spec.enough}" if spec.enough else ""]
        words.setdefault(node, []).append(f"map {' '.join(filter(None, marks))}")
    for node, definition in program.definitions.items():
        words.setdefault(node, []).append(f"{_WORKFLOW}{definition.name}")
    for node, guards in plan.guards.items():
        for guard in guards:
            test = program.choices[guard.node][guard.bit]
            told = _word((getattr(test, "values", ()), getattr(test, "bits", ())), program.names)
            words.setdefault(node, []).append(f"if {program.names[guard.node]} {type(test).__name__} {told}")
    for node, rule in plan.rules.items():
        words.setdefault(node, []).append(f"{rule.name} {rule.at_least}" if rule.at_least else rule.name)
    for node in plan.teardowns:
        words.setdefault(node, []).append("teardown")
    return {node: "; ".join(each) for node, each in words.items()}


def _call(arguments: Arguments, names: Sequence[str], sources: Sequence[Any] = ()) -> str:
    """How a task is called: 16 hex digits. What cannot be hashed counts as its type."""
    args, kwargs = arguments.args, arguments.kwargs
    if not args and not kwargs:
        return ""
    words = [_word(value, names) for value in (*args, *sources)]
    if kwargs:
        words += [f"{name}={_word(kwargs[name], names)}" for name in sorted(kwargs)]
    return blake2b("\0".join(words).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _word(value: Any, names: Sequence[str]) -> str:
    """One argument: an upstream task's name, a plain value as it is written, or the digest of anything else."""
    kind: type = type(value)  # pyright: ignore[reportUnknownVariableType] - truly anything
    if kind is Ref:
        return f"<{names[value.node]}"
    if kind is Item:
        return "*"
    if kind in _PLAIN:
        return repr(value)
    filled = fill(value, cast("Sequence[Any]", _Marks(names)))
    try:
        return digest(filled).hex()
    except Unhashable as error:
        return f"{error.path} {error.type}"


class _Marks:
    """In place of upstream values, inside containers."""

    __slots__ = ("_names",)

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __getitem__(self, node: int) -> str:
        return f"\0<{self._names[node]}"


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference between two descriptions, by task name.

    code   task as declared → the parts of its code that are new, gone or different
    """

    added: Sequence[str] = ()
    removed: Sequence[str] = ()
    code: Mapping[str, Sequence[str]] = field(default_factory=dict[str, "Sequence[str]"])
    calls: Sequence[str] = ()
    edges: Sequence[str] = ()
    shapes: Sequence[str] = ()
    affected: frozenset[str] = frozenset()  # those of the new version that are new or not what they were

    def __bool__(self) -> bool:
        return bool(self.affected or self.removed)

    def lines(self) -> list[str]:
        """The differences for people, a sentence each."""
        lines: list[str] = []
        for task, parts in self.code.items():
            lines.append(f"the code of '{task}' changed" + (f" ({_listed(parts)})" if parts else ""))
        for names, what in (
            (self.added, "added"),
            (self.removed, "removed"),
            (self.calls, "called with other arguments"),
            (self.edges, "waiting for other tasks"),
            (self.shapes, "mapped, conditional or triggered otherwise"),
        ):
            if names:
                lines.append(f"{what}: {_listed(names)}")
        return lines


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else shown


def compare(old: Description, new: Description) -> Changes:
    """What is different in `new`."""
    before = {name: element for element, name in enumerate(old.names)}
    code: dict[str, list[str]] = {}
    for task, now in new.codes.items():
        was = old.codes.get(task)
        if was is not None and was.digest != now.digest:
            code[task] = sorted(part for part in {*was.parts, *now.parts} if was.parts.get(part) != now.parts.get(part))
    added: list[str] = []
    calls: list[str] = []
    edges: list[str] = []
    shapes: list[str] = []
    affected: set[str] = set()
    for element, name in enumerate(new.names):
        was_at = before.pop(name, None)
        if was_at is None or old.tasks[was_at] != new.tasks[element]:
            if was_at is not None:
                before[name] = was_at  # another task took its name
            added.append(name)
            affected.add(name)
            continue
        if new.tasks[element] in code:
            affected.add(name)
        if _above(old, was_at) != _above(new, element):
            edges.append(name)
            affected.add(name)
        elif old.shapes.get(was_at, "") != new.shapes.get(element, ""):
            shapes.append(name)
            affected.add(name)
        elif old.calls[was_at] != new.calls[element]:
            calls.append(name)
            affected.add(name)
    return Changes(added, list(before), code, calls, edges, shapes, frozenset(affected))


def _above(description: Description, element: int) -> list[str]:
    return sorted([description.names[up] for up in description.upstreams[element]])


def below(plan: Plan, elements: Iterable[int]) -> set[int]:
    """`elements` and everything that depends on them."""
    reached = list(dict.fromkeys(elements))
    seen = set(reached)
    for element in reached:  # grows while it is walked
        for dependant in plan.dependants[element]:
            if dependant not in seen:
                seen.add(dependant)
                reached.append(dependant)
    return seen
