"""How tasks and workflows are pickled: as the place where they can be found; by value where that is nowhere (``__main__``).

What travels by value says as well where in its script it stands: in a process that runs the same script (one that resumes a run,
say) it is that one again, which shares its globals with the rest of the script, and not a copy.

Called by their ``__reduce__``, and by unpickling in workers.
"""

from __future__ import annotations

import os
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

from flowlane import byvalue
from flowlane.declare.task import Task

if TYPE_CHECKING:
    from flowlane.declare.bounds import Bounds
    from flowlane.declare.nodes import OnFailure
    from flowlane.declare.workflow import WorkflowDefinition
    from flowlane.loader import Address

__all__ = ["reduce_task", "reduce_workflow"]

#: A script, and a name in it.
_Home: TypeAlias = "tuple[str, str]"

#: Tasks and workflows whose functions are being pickled by value just now, outermost first.
_DUMPING: Final[ContextVar[tuple[Any, ...]]] = ContextVar("flowlane dumping", default=())


def reduce_task(task: Task[Any, Any, Any]) -> tuple[Any, ...]:
    """What ``__reduce__`` returns for `task`."""
    from flowlane.loader import address_of

    origin = task.settings.task
    derived: dict[str, Any] | None = None
    if task is not origin:
        derived = dict(task.settings.options)
        if task.label is not None:
            derived["name"] = task.label
    address = address_of(origin.fn, origin)
    if address is not None:
        return _found_again, (address, origin.name, origin.kind, derived, task.prefix)
    return _by_value(origin, derived, task.prefix)


def reduce_workflow(definition: WorkflowDefinition[..., Any]) -> tuple[Any, ...]:
    """What ``__reduce__`` returns for a workflow. Options of its calls in other bodies travel as they are."""
    from flowlane.loader import address_of

    options = dict(definition.call_options)
    address = address_of(definition.fn, definition)
    if address is not None:
        return _workflow_at, (address, definition.name, definition.on_failure, definition.bounds, options)
    fn: Any = definition.fn
    if (
        definition in _DUMPING.get()
    ):  # it reaches itself through its globals: the pickler at work remembers its function
        return _workflow_of, (fn, definition.name, definition.on_failure, definition.bounds, options)
    token = _DUMPING.set((*_DUMPING.get(), definition))
    try:
        payload = byvalue.dumps(fn)
    finally:
        _DUMPING.reset(token)
    home = _home_of(definition)
    return _workflow_of, (payload, definition.name, definition.on_failure, definition.bounds, options, home)


def _home_of(made: Task[Any, Any, Any] | WorkflowDefinition[..., Any]) -> _Home | None:
    """Where a task or a workflow stands in the script that this process runs; None for what is not at the top of it, or in no
    file, and for what another of the same name has taken the place of: one that was made in a loop, say.
    """
    script: Any = getattr(sys.modules.get("__main__"), "__file__", None)
    module, qualname = getattr(made.fn, "__module__", None), getattr(made.fn, "__qualname__", "<")
    if module != "__main__" or not isinstance(script, str) or "<" in qualname:
        return None
    home = os.path.abspath(script), qualname
    found = _at_home(home, type(made))
    if isinstance(made, Task) or found is None:
        return home if found is made else None
    # `made` may have options besides
    same = found.fn is made.fn and (found.name, found.bounds) == (made.name, made.bounds)
    return home if same else None


def _at_home(home: _Home | None, kind: type) -> Any:
    """The task or workflow that stands there in the script that this process runs; None where it runs another, or has none."""
    if home is None:
        return None
    script, qualname = home
    main: Any = sys.modules.get("__main__")
    own: Any = getattr(main, "__file__", None)
    if not isinstance(own, str) or os.path.abspath(own) != script:
        return None
    found: Any = main
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, kind) else None


def _workflow_at(
    address: Address, name: str, on_failure: OnFailure, bounds: Bounds, options: dict[str, Any]
) -> WorkflowDefinition[..., Any]:
    from flowlane.declare.workflow import WorkflowDefinition
    from flowlane.loader import resolve

    fn = resolve(address)
    found: Any = sys.modules[address.module]
    for part in address.qualname.split("."):
        found = getattr(found, part)
    definition: WorkflowDefinition[..., Any]
    definition = (
        cast("Any", found)
        if isinstance(found, WorkflowDefinition)
        else WorkflowDefinition(fn, name, on_failure, bounds)  # the function kept its own name
    )
    return definition.options(**cast("Any", options)) if options else definition


def _workflow_of(
    function: Any,
    name: str,
    on_failure: OnFailure,
    bounds: Bounds,
    options: dict[str, Any],
    home: _Home | None = None,
) -> WorkflowDefinition[..., Any]:
    from flowlane.declare.workflow import WorkflowDefinition

    definition: WorkflowDefinition[..., Any] | None = _at_home(home, WorkflowDefinition)
    if definition is None:
        if isinstance(function, bytes):
            import pickle

            function = pickle.loads(function)  # noqa: S301 - bytes that reduce_workflow made, on their way to a worker
        definition = WorkflowDefinition(function, name, on_failure, bounds)
    return definition.options(**cast("Any", options)) if options else definition


def _found_again(
    address: Address, name: str, kind: Literal["io", "cpu"], derived: dict[str, Any] | None, prefix: tuple[Any, ...]
) -> Task[Any, Any, Any]:
    from flowlane.loader import resolve

    fn = resolve(address)
    found: Any = sys.modules[address.module]
    for part in address.qualname.split("."):
        found = getattr(found, part)
    if isinstance(found, Task):
        return _derive(cast("Any", found), derived, prefix)
    # the function kept its own name: fetch_task = task.io(fetch)
    return _derive(Task(fn, kind, {"name": name}), derived, prefix)


def _derive(base: Task[Any, Any, Any], derived: dict[str, Any] | None, prefix: tuple[Any, ...]) -> Task[Any, Any, Any]:
    found: Task[Any, Any, Any] = base.options(**cast("Any", derived)) if derived is not None else base
    return found.__get__(prefix[0]) if prefix else found


def _by_value(origin: Task[Any, Any, Any], derived: dict[str, Any] | None, prefix: tuple[Any, ...]) -> tuple[Any, ...]:
    """How to pickle a task that cannot be found again.

    The function travels with its code. A recursive one reaches its own task through its globals, which would
    come back here for ever: inside such a dump the function is handed to the pickler at work, which remembers it.
    """
    dumping = _DUMPING.get()
    options = {**origin.settings.options, "name": origin.name}
    if origin in dumping:
        return _revived, (origin.fn, origin.kind, options, derived, prefix)
    token = _DUMPING.set((*dumping, origin))
    try:
        payload = byvalue.dumps(origin.fn)
    finally:
        _DUMPING.reset(token)
    return _revived, (payload, origin.kind, options, derived, prefix, _home_of(origin))


def _revived(
    function: Any,
    kind: Literal["io", "cpu"],
    options: dict[str, Any],
    derived: dict[str, Any] | None,
    prefix: Any,
    home: _Home | None = None,
) -> Task[Any, Any, Any]:
    found: Task[Any, Any, Any] | None = _at_home(home, Task)
    if found is not None:
        return _derive(found, derived, prefix)
    if isinstance(function, bytes):
        import pickle

        function = pickle.loads(function)  # noqa: S301 - bytes that _by_value made, on their way to a worker
    return _derive(Task(function, kind, options), derived, prefix)
