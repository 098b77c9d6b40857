"""Results that are mistakes: what a task returned is neither a value nor work that it could become.

A task that returns `other` for `other.bind(x)`, a list of calls, or a coroutine that nobody awaited would otherwise succeed, and
what reads its value would get something that no checker promised. Every result passes by here, so it is looked at by the type of
the object alone; in a list, tuple or dict that is short (`LOOKED_INTO`), also by the types of what is in it, one level deep.
Longer ones, and what is further inside, are not looked at.
"""

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from flowlane.declare.function import place_of
from flowlane.declare.handle import Combined, Handle, kind_of
from flowlane.declare.nodes import Workflow
from flowlane.declare.task import Call, Task
from flowlane.declare.workflow import Bound, WorkflowDefinition
from flowlane.errors import DefinitionError, with_article

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["LOOKED_INTO", "SUSPECTS", "is_mistake", "mistake"]

#: Elements of a list, tuple or dict that is looked into: 2 µs of types.
LOOKED_INTO: Final = 100

_CONTAINERS: Final = (list, tuple, dict)
_WRONG: Final = frozenset({Task, WorkflowDefinition, Workflow, Handle, Combined, CoroutineType})
_WRONG_INSIDE: Final = _WRONG | {Call, Bound}

#: The ids of the types of results that `is_mistake` has to look at: a class of the user's may not even be hashable.
SUSPECTS: Final = frozenset(map(id, (*_WRONG, *_CONTAINERS)))
_IDS_INSIDE: Final = frozenset(map(id, _WRONG_INSIDE))


def is_mistake(value: Any) -> bool:
    """Whether a result whose type is among `SUSPECTS` is neither a value nor work. At most a few µs."""
    kind = kind_of(value)
    if kind is list or kind is tuple or kind is dict:
        if not 0 < len(value) <= LOOKED_INTO:
            return False
        return not _IDS_INSIDE.isdisjoint(map(id, map(type, value.values() if kind is dict else value)))
    return True


def mistake(task: str, function: Any, value: Any) -> DefinitionError:
    """What to say of a result that is a mistake."""
    kind = kind_of(value)
    if kind is list or kind is tuple or kind is dict:
        inside: Collection[Any] = value.values() if kind is dict else value
        found = [each for each in inside if id(kind_of(each)) in _IDS_INSIDE]
        return _in_container(task, function, kind.__name__, found)
    what, hint = _described(value)
    _close(value)
    return DefinitionError(f"task {task!r} returned {what}", where=place_of(function), hint=hint)


def _in_container(task: str, function: Any, kind: str, found: list[Any]) -> DefinitionError:
    what, hint = _described(found[0])
    more = f" and {len(found) - 1} more of the kind" if len(found) > 1 else ""
    if type(found[0]) is not CoroutineType:
        hint = (
            "a task becomes one piece of work at most: return a_workflow.bind(...) whose body makes all of them, "
            "with a_task.map(items) for instance; or return the items, and map over the result of this task"
        )
    for each in found:
        _close(each)
    return DefinitionError(
        f"task {task!r} returned {with_article(kind)} that holds {what}{more}", where=place_of(function), hint=hint
    )


def _close(value: Any) -> None:
    if type(value) is CoroutineType:
        value.close()  # else Python warns that it was never awaited


def _described(value: Any) -> tuple[str, str]:
    """What it is in words, and what to write instead."""
    kind: Any = kind_of(value)
    if kind is Task:
        return f"the task {value.name!r} itself, not its result", (
            f"return {value.name}.bind(...) to become that call; {value.name}.fn(...) calls the function right here"
        )
    if kind is WorkflowDefinition:
        return f"the workflow {value.name!r} itself", f"return {value.name}.bind(...) to become it"
    if kind is Workflow:
        return f"the workflow {value.name!r}", "return wf.returns(handle), the workflow with what its result is"
    if kind is Call:
        return f"{value.task.name}.bind(...), a call", f"return {value.task.name}.bind(...) alone"
    if kind is Bound:
        return f"{value.name}.bind(...), a workflow", f"return {value.name}.bind(...) alone"
    if kind is CoroutineType:
        return f"a coroutine of {value.__qualname__!r}, which nobody awaited", "await it: return await ..."
    if kind is Combined:
        return value.called, "return the list of tuples that it stands for"
    return "a handle, the result of a task in a workflow's body", "pass it to this task: then it gets the value"
