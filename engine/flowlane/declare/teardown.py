"""Tear-downs: what is run at the end of a block of a body, however the tasks of the block end.

    db = start_db()
    with teardown(stop_db.bind(db)):
        load(db)

The call is recorded where the block ends. What it reads is its set-up: it runs if that has succeeded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from flowlane.declare.callsite import caller, frame_at
from flowlane.declare.handle import Handle, home_of, kind_of, ref_of
from flowlane.declare.mapping import body_of
from flowlane.declare.sparse import TearDown
from flowlane.declare.task import BODY, Call, Task
from flowlane.errors import DefinitionError, with_article

if TYPE_CHECKING:
    from flowlane.declare.nodes import Workflow

__all__ = ["Block", "teardown"]


class Block:
    """``with`` it: when all that is recorded inside has ended, the call is made."""

    __slots__ = ("_call", "_flow", "_start")

    def __init__(self, call: Call[Any]) -> None:
        self._call = call
        self._flow = _flow_of(call)
        self._start = -1
        # a handle of another workflow is refused here, at the user's line, and not where the block ends
        self._flow.template(f"task {call.task.name!r}").of((call.args, dict(call.kwargs)))

    def __enter__(self) -> None:
        self._start = len(self._flow)

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is not None:
            return
        flow, start = self._flow, self._start
        name = self._call.task.name
        if len(flow) == start:
            raise DefinitionError(
                f"the block of teardown({name}.bind(...)) calls no task",
                where=caller(),
                hint=f"put what needs the set-up inside it; without that, call {name}(...) itself",
            )
        handle = flow.add_at(self._call, None, (), frame_at(1))
        node = ref_of(handle).node
        flow.sparse.teardowns.append(TearDown(node, start, node))


def teardown(call: Call[Any]) -> Block:
    """A block at whose end `call` is made, whether its tasks succeeded, failed, were skipped or cancelled.

    `call` is ``some_task.bind(...)``; what it reads must have succeeded, else there is nothing to tidy up. It is made also
    when the run is cancelled, or ended by a failure elsewhere.
    """
    if not isinstance(call, Call):  # pyright: ignore[reportUnnecessaryIsInstance] - people pass the call's result
        given: Any = call
        if type(given) is Handle:
            name = home_of(given).name_of(ref_of(given).node)
            raise DefinitionError(
                f"teardown() is given the result of task {name!r}, which would run at once",
                where=caller(),
                hint=f"teardown({name}.bind(...)): a call that is made at the end of the block",
            )
        hint = f"{given.name}.bind(...)" if isinstance(given, Task) else "some_task.bind(...)"  # pyright: ignore[reportUnknownMemberType]
        raise DefinitionError(
            f"teardown() takes a call of a task, not {with_article(kind_of(given).__name__)}",
            where=caller(),
            hint=f"teardown({hint})",
        )
    for option in ("trigger", "join"):
        if option in call.options:
            raise DefinitionError(
                f"teardown() is given {call.task.name!r} with {option}={call.options[option]!r}",
                where=caller(),
                hint="leave it out: a tear-down runs when its block has ended and its set-up has succeeded",
            )
    return Block(call)


def _flow_of(call: Call[Any]) -> Workflow:
    body = BODY.get()
    if body is not None:
        return cast("Workflow", body)
    for value in (*call.args, *call.kwargs.values()):
        if type(value) is Handle:
            return cast("Workflow", home_of(value))
    return body_of("teardown(...)")
