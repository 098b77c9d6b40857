"""How the workflow of a stored run is found again: the module or file that it is in, and its name there.

One of a script that Python runs (``__main__``) is found in that script: as it stands where the same script goes on with the run,
and loaded as `flow run` would load it everywhere else.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from flowlane.declare.nodes import Workflow
from flowlane.declare.workflow import Bound, WorkflowDefinition
from flowlane.errors import FlowError, UsageError
from flowlane.loader import address_of, load_file, load_module, shown_path

if TYPE_CHECKING:
    from flowlane.storage.port import StoredRun

__all__ = ["find_again", "origin_at", "origin_of"]

_MAIN: Final = "__main__"


def origin_of(bound: Bound[Any] | Workflow) -> str:
    """Where `bound`'s workflow is found again, as text for a store; "" for one that a program made, that is inside a
    function, or that was typed into a notebook or a shell.
    """
    definition = bound.definition if isinstance(bound, Bound) else bound
    if not isinstance(definition, WorkflowDefinition):
        return ""
    address = address_of(definition.fn, definition)
    if address is not None:
        return _text(address.module, address.qualname, address.path)
    return _origin_in_script(definition)


def _origin_in_script(definition: WorkflowDefinition[..., Any]) -> str:
    fn, script = definition.fn, _script()
    if script is None or getattr(fn, "__module__", None) != _MAIN:
        return ""
    found = _named(sys.modules[_MAIN], fn.__qualname__)
    if not isinstance(found, WorkflowDefinition) or found.fn is not fn or found.name != definition.name:
        return ""  # another took its name, or it is inside a function
    module, path = script
    return _text(module, fn.__qualname__, path)


def _script() -> tuple[str, str | None] | None:
    """What this process runs as ``__main__``: a file, or after ``python -m`` a module. None in a shell or a notebook."""
    main = sys.modules.get(_MAIN)
    spec: Any = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name, None
    file: Any = getattr(main, "__file__", None)
    return (_MAIN, os.path.abspath(file)) if isinstance(file, str) and os.path.isfile(file) else None


def _named(module: Any, name: str) -> Any:
    found = module
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        return None
    return found


def origin_at(module: str, name: str) -> str:
    """The same for the workflow called `name` in a loaded module."""
    path = getattr(sys.modules.get(module), "__flow_path__", None)
    return _text(module, name, path if isinstance(path, str) else None)


def _text(module: str, name: str, path: str | None) -> str:
    return json.dumps({"module": module, "name": name, "path": path})


def find_again(run: StoredRun, origin: str) -> WorkflowDefinition[Any, Any] | Bound[Any] | Workflow:
    """The workflow of a stored run, loaded from where it was. Executes the user's file, so `origin` is that which was sealed
    when the run began (``resume.asked_of``). Raises FlowError with what to do instead.
    """
    hint = "give the workflow: flow resume RUN --file FILE[:WORKFLOW], engine.resume(run, workflow)"
    try:
        found: Any = json.loads(origin)
        module, name, path = str(found["module"]), str(found["name"]), found["path"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"run {run.name} does not say where its workflow '{run.workflow}' is: a program made it", hint=hint
        ) from None
    if path is not None and not os.path.isfile(path):
        raise UsageError(f"{shown_path(path)}, which run {run.name} was started from, is not there any more", hint=hint)
    if (module, path) == _script():
        found = sys.modules[_MAIN]
    elif path is not None:
        found = load_file(path, None if module == _MAIN else module)
    else:
        found = load_module(module)
    found = _named(found, name)
    if not isinstance(found, (WorkflowDefinition, Bound, Workflow)):
        place = shown_path(path) if path is not None else f"module '{module}'"
        raise FlowError(f"there is no workflow '{name}' in {place} any more", hint=hint)
    return found  # pyright: ignore[reportUnknownVariableType] - isinstance cannot tell what it is made of
