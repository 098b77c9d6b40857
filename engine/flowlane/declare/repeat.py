"""repeat_until: a task called again on its own result, until another is content. Made of what everybody may use.

A round is a small workflow: the step, the test, and a task that looks at both. That returns the value, or the next round, and so
becomes it: how often shows only when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowlane.declare.callsite import caller
from flowlane.declare.mapping import body_of
from flowlane.declare.nesting import inside
from flowlane.declare.task import Task, task
from flowlane.declare.workflow import workflow
from flowlane.errors import DefinitionError, RepeatLimit

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Loop", "go_on", "record_loop", "repeat"]


@dataclass(frozen=True, slots=True)
class Loop:
    """What is repeated, until what is true of its result, and how often at most."""

    step: Task[Any, Any, Any]
    until: Task[Any, Any, Any]
    limit: int


@task.io
def go_on(loop: Any, value: Any, content: Any, rounds: int) -> Any:
    """`value` if the test was `content` with it, else the next round, the `rounds` ones before counted."""
    if content:
        return value
    if rounds >= loop.limit:
        raise RepeatLimit(
            f"{loop.until.name!r} was not true of what {loop.step.name!r} returned, in {rounds} "
            f"round{'' if rounds == 1 else 's'}",
            where=loop.until.where,
            hint=f"repeat_until(..., limit={loop.limit}) is what it may take",
        )
    return repeat.bind(loop, value, rounds)


@workflow
def repeat(loop: Any, value: Any, rounds: int) -> Any:
    """One round on `value`, after `rounds` others."""
    made = loop.step(value)
    return go_on.options(max_depth=loop.limit + 1)(loop, made, loop.until(made), rounds + 1)


def record_loop(step: Task[Any, Any, Any], until: Any, start: Any, limit: Any, frame: FrameType) -> Any:
    """Record the first round; the handle of what comes of it in the end."""
    called = f"{step.name}.repeat_until(...)"
    flow = body_of(called)
    if not isinstance(until, Task):
        raise DefinitionError(
            f"{called} is given {until!r} as its test, which is no task",
            where=caller(),
            hint=f"{step.name}.repeat_until(some_task, start, limit=10), where some_task says whether the value will do",
        )
    test: Task[Any, Any, Any] = until  # pyright: ignore[reportUnknownVariableType]
    if type(limit) is not int or limit < 1:
        raise DefinitionError(
            f"{called} has limit={limit!r}", where=caller(), hint="limit is how many rounds it may take, at least 1"
        )
    for each in (step, test):
        each.check_arguments((start,), {})
        if each.after:
            raise DefinitionError(
                f"{called} is given {each.name}.options(after=...)",
                where=caller(),
                hint="every round would wait for it again: let `start` come after it",
            )
    loop = Loop(step.unlabelled(), test.unlabelled(), limit)
    rounds = repeat if step.label is None else repeat.options(name=step.label)
    return inside(rounds, flow, (loop, start, 0), {}, frame)
