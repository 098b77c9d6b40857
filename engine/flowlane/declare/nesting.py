"""Workflows called in the body of another: put into it, or kept as one node that becomes a workflow when its turn comes.

Called plainly, a workflow's body runs right there, and its tasks are tasks of the outer graph with names that begin with
its own ("sub/parse"). That is impossible for what concerns the whole, such as retries, or a deadline of its own: with such
options or bounds, and when it is mapped, it stays one node, whose arguments are the workflow's parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypedDict, cast

from flowlane.declare.bounds import NO_BOUNDS
from flowlane.declare.callsite import caller, did_you_mean
from flowlane.declare.handle import ref_of
from flowlane.declare.options import check_name
from flowlane.declare.task import Task
from flowlane.errors import DefinitionError
from flowlane.program import ITEM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import FrameType

    from flowlane.core.rules import TriggerName
    from flowlane.declare.handle import Handle
    from flowlane.declare.nodes import OnFailure, Workflow
    from flowlane.declare.spec import RetryPolicy
    from flowlane.declare.workflow import WorkflowDefinition

__all__ = ["CallOfWorkflow", "checked_options", "inside", "record_graft", "record_map_of"]


class CallOfWorkflow(TypedDict, total=False):
    """What ``a_workflow.options(...)`` takes, for a call of it in another body. Times are in seconds.

    name         what its tasks' names begin with, instead of its own
    on_failure   "fail_fast": its first failure cancels the rest of it; "continue"
    retries, retry, total_timeout  as for a task, for the workflow as a whole: an attempt runs all of it
    after, trigger, join, cancel_rest, may_fail, priority, max_depth  as for a task
    in_flight, enough  as for a map of a task
    """

    name: str
    on_failure: OnFailure
    retries: int
    retry: RetryPolicy
    total_timeout: float | None
    after: Sequence[object]
    trigger: TriggerName
    join: int
    cancel_rest: bool
    may_fail: bool
    priority: int
    max_depth: int
    in_flight: int
    enough: int


_OPTIONS: Final = (
    "name",
    "on_failure",
    "retries",
    "retry",
    "total_timeout",
    "after",
    "trigger",
    "join",
    "cancel_rest",
    "may_fail",
    "priority",
    "max_depth",
    "in_flight",
    "enough",
)
#: Options that leave it possible to put a workflow's tasks into the outer graph.
_INLINE: Final = frozenset(("name", "on_failure"))


def checked_options(definition: WorkflowDefinition[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` of a call, by name; their values are checked when the call is compiled."""
    for key in options:
        if key not in _OPTIONS:
            close = did_you_mean(key, _OPTIONS)
            raise DefinitionError(
                f"{definition.name}.options() has no option {key!r}; its options: {', '.join(_OPTIONS)}",
                where=caller(),
                hint=f"did you mean {close!r}?" if close else None,
            )
    if "name" in options:
        check_name(options["name"], f"a call of workflow {definition.name!r}")
    return dict(options)


def inside(
    definition: WorkflowDefinition[..., Any],
    flow: Workflow,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    frame: FrameType,
) -> Any:
    """A call of `definition` in the body of `flow`: what its body returns, or the handle of the node that stands for it."""
    definition.check_arguments(args, kwargs)
    values = _values(definition, flow, args, kwargs)
    if definition.bounds != NO_BOUNDS or not definition.call_options.keys() <= _INLINE:
        return record_graft(definition, flow, args, kwargs, frame)
    if definition.fn in flow.bodies:
        raise DefinitionError(
            f"workflow {definition.name!r} is called in its own body, which would have no end",
            where=caller(),
            hint=f"let a task decide whether to go on, and return {definition.name}.bind(...): it becomes that",
        )
    flow.bodies.append(definition.fn)
    start = len(flow)
    try:
        with flow.part(definition.name, definition.call_options.get("name")):
            positional, named = definition.parameters.call(values)
            result = definition.fn(*positional, **named)
            flow.check_result(result)
    finally:
        flow.bodies.pop()
    if definition.on_failure == "fail_fast" and len(flow) > start:
        flow.sparse.scopes.append((start, len(flow)))
    return result


def record_graft(
    definition: WorkflowDefinition[..., Any],
    flow: Workflow,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    frame: FrameType,
) -> Handle:
    """Record one node that becomes `definition` with these arguments when its turn comes."""
    stand_in = _stand_in(definition)
    handle = flow.record(stand_in, args, kwargs, stand_in.label, stand_in.after, frame)
    flow.sparse.definitions[ref_of(handle).node] = definition
    return handle


def record_map_of(
    definition: WorkflowDefinition[..., Any],
    over: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    frame: FrameType,
    *,
    star: bool = False,
) -> Handle:
    """Record `definition` mapped over `over`: each element is a workflow of its own."""
    from flowlane.declare.mapping import body_of, record_map

    flow = body_of(f"{definition.name}.map(...)")
    handle = record_map(_stand_in(definition), over, args, kwargs, frame, star=star)
    if not star:
        _values(definition, flow, (ITEM, *args), kwargs)
    flow.sparse.definitions[ref_of(handle).node] = definition
    return handle


def _values(
    definition: WorkflowDefinition[..., Any], flow: Workflow, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Its parameters by name, checked and coerced where their values are there already."""
    parameters = definition.parameters
    values = parameters.arrange(args, kwargs)
    awaited: set[str] = set()
    for name, value in values.items():
        template = flow.template(f"workflow {definition.name!r}")
        template.of(value)
        if template.found or value is ITEM:
            awaited.add(name)
    return parameters.admit(values, awaited)


def _stand_in(definition: WorkflowDefinition[..., Any]) -> Task[Any, Any, Any]:
    """A task that stands for a workflow in the table of nodes: its name, its signature, its options. Nobody runs it."""
    options = {name: value for name, value in definition.call_options.items() if name != "on_failure"}
    stand_in = definition.stand_in
    if stand_in is None:
        stand_in = definition.stand_in = Task(definition.fn, "io", {"name": definition.name})
    made: Task[Any, Any, Any] = stand_in.options(**cast("Any", options)) if options else stand_in
    return made
