"""A part of a workflow, to run by itself: named tasks, what comes after some, what some need.

    only      these tasks and no others
    start_at  these and everything that depends on them
    until     these and everything that they depend on; with `start_at`, what lies between

Tasks are named as they are called in the workflow ("parse#2", "sub/parse"), or by patterns with ``*`` and ``?``. What a part
reads must be in it: a value from outside is nowhere to be had in a fresh run. An order-only edge to what is left out is left
out as well.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, cast

from flowlane.declare.callsite import did_you_mean
from flowlane.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from flowlane.declare.nodes import Workflow

__all__ = ["PART", "part_of", "part_options"]

#: The options of a run that name a part.
PART: Final = ("only", "start_at", "until")
_FLAGS: Final = {"only": "--only", "start_at": "--from", "until": "--until"}
_SHOWN: Final = 5


def part_options(given: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Those of `given` that name a part, checked in themselves. Raises UsageError."""
    found: dict[str, tuple[str, ...]] = {}
    for option in PART:
        names: Any = given.get(option)
        if names is None:
            continue
        if isinstance(names, str):
            raise UsageError(f"{option} is a list of tasks' names, not {names!r}", hint=f"{option}=[{names!r}]")
        names = tuple(names)
        if not all(isinstance(name, str) for name in names):
            raise UsageError(f"{option} is a list of tasks' names or patterns, not {names!r}")
        if names:
            found[option] = cast("tuple[str, ...]", names)
    if "only" in found and len(found) > 1:
        raise UsageError(
            "only names all tasks that run, and start_at or until others", hint="give only by itself, or the other two"
        )
    return found


def part_of(workflow: Workflow, options: Mapping[str, Sequence[str]]) -> Workflow:
    """The part of `workflow` that checked `options` name; its value is ``{name: value}`` of what nothing in it waits for.

    Raises UnknownName for a name or pattern that fits no task, UsageError for a part that reads what is not in it.
    """
    edges = workflow.edges()
    names = {option: _found(workflow, option, patterns) for option, patterns in options.items()}
    inside: set[int] = set(range(len(workflow)))
    if "only" in names:
        inside = names["only"]
    if "start_at" in names:
        inside &= _reached(names["start_at"], _dependants(edges))
    if "until" in names:
        inside &= _reached(names["until"], edges)
        inside |= _tearing_down(workflow, inside)
    if not inside:
        raise UsageError(
            f"nothing of workflow {workflow.name!r} lies between {_listed(options['start_at'])} and {_listed(options['until'])}",
            hint=f"flow graph shows what depends on what; did you mean start_at={list(options['until'])!r}, "
            f"until={list(options['start_at'])!r}?",
        )
    _check_complete(workflow, inside, options)
    part = workflow.reduced_to(sorted(inside))
    part.named_by = options
    return part


def _tearing_down(workflow: Workflow, inside: set[int]) -> set[int]:
    """The tear-downs of what is set up `inside`, although nothing there depends on them."""
    sparse = workflow.found_sparse
    return {
        node
        for node, start, end in (sparse.teardowns if sparse is not None else ())
        if inside.issuperset(workflow.inputs[node]) and not inside.isdisjoint(range(start, end))
    }


def _found(workflow: Workflow, option: str, patterns: Sequence[str]) -> set[int]:
    numbers = {name: node for node, name in enumerate(workflow.names)}
    found: set[int] = set()
    for pattern in patterns:
        node = numbers.get(pattern)
        fits = pattern.replace("[", "[[]")  # brackets are what they are in names
        matching = [node] if node is not None else [n for name, n in numbers.items() if fnmatchcase(name, fits)]
        if not matching:
            if (whole := _whole_of(workflow, numbers, pattern)) is not None:
                raise UnknownName(
                    f"{_FLAGS[option]} {pattern} names what {whole!r} becomes only when it runs, and a part is made of whole "
                    f"tasks ({option}=[{pattern!r}])",
                    hint=f"{_FLAGS[option]} {whole} has all of it; of a run that has been, flow resume RUN --from "
                    + (f"{pattern!r} runs this again" if _is_name(pattern) else "NAME runs one of its tasks again"),
                )
            close = did_you_mean(pattern, numbers) or did_you_mean(pattern.partition("[")[0], numbers)
            raise UnknownName(
                f"workflow {workflow.name!r} has no task that {_FLAGS[option]} {pattern} fits ({option}=[{pattern!r}])",
                hint=f"did you mean {close!r}?" if close else "flow graph lists its tasks",
            )
        found.update(matching)
    return found


def _whole_of(workflow: Workflow, numbers: Mapping[str, int], pattern: str) -> str | None:
    """The map, or the workflow in one node, that becomes what `pattern` names: ``each[2]``, ``sub[0]/parse``; None for none."""
    sparse = workflow.found_sparse
    for cut, mark in enumerate(pattern):
        if mark not in "[/":
            continue
        head = pattern[:cut]
        if (node := numbers.get(head)) is not None:
            mapped = sparse is not None and (node in sparse.maps or node in sparse.definitions)
            return head if mapped or mark == "/" else None
        if sparse is not None and not _is_name(head):  # "s*[0]": the first that it fits
            for name, node in numbers.items():
                if (node in sparse.maps or node in sparse.definitions) and fnmatchcase(name, head.replace("[", "[[]")):
                    return name
    return None


def _is_name(pattern: str) -> bool:
    return "*" not in pattern and "?" not in pattern


def _check_complete(workflow: Workflow, inside: set[int], options: Mapping[str, Sequence[str]]) -> None:
    """Raise UsageError if a value or condition is needed that nothing in the part makes."""
    sparse = workflow.found_sparse
    guards = sparse.guards() if sparse is not None else {}
    for node in sorted(inside):
        needed = [*workflow.inputs[node], *(guard.node for guard in guards.get(node, ()))]
        missing = list(dict.fromkeys(up for up in needed if up not in inside))
        if not missing:
            continue
        name, lacking = workflow.name_of(node), [workflow.name_of(up) for up in missing]
        option = "only" if "only" in options else "start_at" if "start_at" in options else "until"
        wanted = " ".join(f"{_FLAGS[option]} {each}" for each in lacking[:_SHOWN])
        raise UsageError(
            f"task {name!r} needs {'the value' if len(lacking) == 1 else 'the values'} of {_listed(lacking)}, which "
            f"{'is' if len(lacking) == 1 else 'are'} left out",
            hint=f"add {wanted}, so that {'it runs' if len(lacking) == 1 else 'they run'} too; or go on from a run that has "
            f"made it: flow resume RUN --from {name}",
        )


def _dependants(edges: Sequence[tuple[int, ...]]) -> list[list[int]]:
    dependants: list[list[int]] = [[] for _ in edges]
    for node, ups in enumerate(edges):
        for up in ups:
            dependants[up].append(node)
    return dependants


def _reached(nodes: Collection[int], neighbours: Sequence[Iterable[int]]) -> set[int]:
    reached = list(nodes)
    seen = set(reached)
    for node in reached:  # grows while it is walked
        for other in neighbours[node]:
            if other not in seen:
                seen.add(other)
                reached.append(other)
    return seen


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
