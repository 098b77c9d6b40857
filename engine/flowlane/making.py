"""Makes programs of what comes into being while a run goes on: work that a task returned, a workflow whose turn has come.

Called by a run, on the engine's loop: a workflow's body runs there, as cheap and free of effects as it has to be anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowlane.declare.nodes import Workflow
from flowlane.declare.task import Call
from flowlane.declare.workflow import Bound
from flowlane.returned import SUSPECTS, is_mistake, mistake

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowlane.errors import DefinitionError
    from flowlane.program import Program

__all__ = ["Making"]


class Making:
    """The ``runtime.grafts.Maker`` of an engine."""

    def __init__(self, compile: Callable[[Bound[Any], Program], Program]) -> None:
        """`compile` is ``Compiler.compile_added``."""
        self._compile = compile

    @property
    def work(self) -> tuple[type, ...]:
        """What is work, and no value."""
        return (Call, Bound)

    @property
    def suspects(self) -> frozenset[int]:
        """The ids of the types of results that `is_mistake` has to look at."""
        return SUSPECTS

    def is_mistake(self, value: Any) -> bool:
        """Whether such a result is neither a value nor work."""
        return is_mistake(value)

    def mistake(self, task: str, function: Any, value: Any) -> DefinitionError:
        """What to say of one that is."""
        return mistake(task, function, value)

    def of_work(self, work: Any, program: Program) -> Program:
        """The program of a Call or a bound workflow that a task of `program` returned. Raises DefinitionError."""
        if isinstance(work, Call):
            call: Call[Any] = work  # pyright: ignore[reportUnknownVariableType]
            workflow = Workflow(call.task.name)
            work = workflow.returns(workflow.add(call))
        return self._compile(work, program)

    def of_definition(
        self, definition: Any, args: Sequence[Any], kwargs: Mapping[str, Any], program: Program
    ) -> Program:
        """The program of a workflow definition with its parameters. Raises DefinitionError, and what its body raises."""
        return self._compile(definition.bind(*args, **kwargs), program)
