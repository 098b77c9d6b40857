"""From ``FILE[:WORKFLOW]`` and ``-p name=value`` to a bound workflow: load the file, find the workflow, give it values.

FILE is a path, or a dotted module when no such file exists and it reads like one. Without ``:WORKFLOW`` the file must
hold exactly one workflow; those it merely imported count only if it has none of its own.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from flowlane.errors import DefinitionError, FlowError, LoadError, ParameterError, UsageError, qualified_name
from flowlane.loader import load_file, load_module, shown_path, user_frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from flowlane.declare.workflow import Bound, Workflow, WorkflowDefinition

__all__ = ["Found", "bind", "build", "find_workflows", "one_of", "parse_parameters"]


class Found(NamedTuple):
    """A workflow in a file: the name it is asked for by, what was found there, and the module that was searched."""

    name: str
    target: WorkflowDefinition[Any, Any] | Bound[Any] | Workflow
    module: str


def find_workflows(text: str) -> list[Found]:
    """Load what `text` (``FILE[:WORKFLOW]``) names and return its workflows, at least one, in the order of the file.

    Those whose names begin with "_" are for the others to call: they count when they are named, or when there is nothing else.
    Exactly one when `text` names one. Executes the user's file. Raises LoadError.
    """
    place, name = _split(text)
    module, shown = _load(place)
    if name is not None:
        return [_named(module, shown, name)]
    found = _candidates(module)
    if not found:
        raise LoadError(
            f"there is no workflow in {shown}", hint="decorate the function that calls the tasks with @workflow"
        )
    return [each for each in found if not each.name.startswith("_")] or found


def one_of(text: str, found: Sequence[Found]) -> Found:
    """The only workflow of `found`. Raises LoadError listing them when there are several."""
    if len(found) == 1:
        return found[0]
    names = ", ".join(item.name for item in found)
    raise LoadError(
        f"{_split(text)[0]} holds several workflows: {names}",
        hint=f"name one: {text}:{found[0].name}; what only others call may have a name that begins with _",
    )


def _split(text: str) -> tuple[str, str | None]:
    if os.path.exists(text):  # a file whose own name holds a colon
        return text, None
    place, colon, name = text.rpartition(":")
    if not colon or os.sep in name:
        return text, None
    if not place or not name.isidentifier():
        raise UsageError(f"'{text}' is not of the form FILE[:WORKFLOW]", hint="for example etl.py or etl.py:nightly")
    return place, name


def _load(place: str) -> tuple[ModuleType, str]:
    dotted = all(part.isidentifier() for part in place.split("."))
    if os.path.isfile(place) or place.endswith(".py") or not dotted:
        return load_file(place), shown_path(place)
    if os.path.isdir(place) and not os.path.exists(os.path.join(place, "__init__.py")):
        return load_file(place), shown_path(place)  # says that it is a directory
    if os.path.isfile(f"{place}.py") and "." not in place:
        raise LoadError(f"there is no file {place}", hint=f"did you mean {place}.py?")
    return load_module(place), f"module '{place}'"


def _candidates(module: ModuleType) -> list[Found]:
    from flowlane.declare.workflow import Bound, Workflow, WorkflowDefinition

    own: list[Found] = []
    imported: list[Found] = []
    seen: set[int] = set()
    values: list[tuple[str, Any]] = list(vars(module).items())
    # `nightly = wf.returns(b)` is the Workflow `wf` with a result: the one to run, and not a second workflow.
    programmed: dict[str, int] = {}
    for name, value in values:
        definition: Any = getattr(value, "definition", None) if isinstance(value, Bound) else None  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(definition, Workflow):
            programmed[name] = id(definition)
    for name, value in values:
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, WorkflowDefinition):
            (own if value.fn.__module__ == module.__name__ else imported).append(Found(name, value, module.__name__))
        elif name in programmed or (isinstance(value, Workflow) and id(value) not in programmed.values()):
            own.append(Found(name, value, module.__name__))
    return own or imported


def _named(module: ModuleType, shown: str, name: str) -> Found:
    from flowlane.declare.task import Task
    from flowlane.declare.workflow import Bound, Workflow, WorkflowDefinition

    value: Any = vars(module).get(name)
    if isinstance(value, (WorkflowDefinition, Bound, Workflow)):
        return Found(name, value, module.__name__)
    known = _candidates(module)
    for candidate in known:  # @workflow(name="nightly-load") can be asked for by that name too
        if getattr(candidate.target, "name", None) == name:
            return candidate
    if isinstance(value, Task):
        raise LoadError(
            f"'{name}' in {shown} is a task, not a workflow",
            hint="call it in a function decorated with @workflow and run that",
        )
    if callable(value):
        raise LoadError(f"'{name}' in {shown} is not a workflow", hint="decorate it with @workflow")
    import difflib

    names = [candidate.name for candidate in known]
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean '{close[0]}'?" if close else f"it holds: {', '.join(names)}" if names else None
    raise LoadError(f"there is no workflow '{name}' in {shown}", hint=hint)


# ── parameters ────────────────────────────────────────────────────────────────────────────────────────────────────


def parse_parameters(pairs: Sequence[str], file: str | None) -> tuple[dict[str, str], dict[str, Any]]:
    """(`-p` values as text, values of the JSON `file`); a name given by both is the command line's.

    Raises UsageError for a malformed or repeated pair, ParameterError for a file that is not a JSON object.
    """
    texts: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UsageError(f"-p '{pair}' is not of the form name=value", hint="for example -p day=2026-11-21")
        name = name.strip()
        if name in texts:
            raise UsageError(f"parameter '{name}' is given twice", hint="for a list write -p name='[1, 2]'")
        texts[name] = value
    values: Mapping[str, Any] = _read_json(file) if file is not None else {}
    return texts, {name: value for name, value in values.items() if name not in texts}


def _read_json(path: str) -> Mapping[str, Any]:
    shown = shown_path(path)
    try:
        with open(path, encoding="utf-8") as file:
            values: Any = json.load(file)
    except FileNotFoundError:
        raise ParameterError(f"there is no parameter file {shown}") from None
    except OSError as error:
        raise ParameterError(
            f"parameter file {shown} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
    except json.JSONDecodeError as error:
        raise ParameterError(
            f"parameter file {shown} is not valid JSON: {error.msg}", where=f"{shown}:{error.lineno}"
        ) from None
    except (UnicodeDecodeError, RecursionError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "nested too deeply"
        raise ParameterError(f"parameter file {shown} is {reason}") from None
    if not isinstance(values, dict):
        raise ParameterError(
            f"parameter file {shown} holds {_json_kind(values)}, not an object",
            hint='for example {"day": "2026-11-21"}',
        )
    return cast("dict[str, Any]", values)


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    return "an array" if isinstance(value, list) else "a string" if isinstance(value, str) else "a number"


def bind(found: Found, texts: Mapping[str, str], values: Mapping[str, Any]) -> Bound[Any] | Workflow:
    """`found` with these parameters. Raises ParameterError; a workflow built by a program takes none."""
    from flowlane.declare.workflow import WorkflowDefinition

    if isinstance(found.target, WorkflowDefinition):
        return found.target.from_text(texts, values)
    given = [*texts, *values]
    if given:
        raise ParameterError(
            f"workflow '{found.name}' takes no parameters, but '{given[0]}' is given",
            hint="it was built by the file itself; only functions decorated with @workflow have parameters",
        )
    return found.target


def build(bound: Bound[Any] | Workflow) -> Workflow:
    """Run the body of `bound` once. Raises DefinitionError, also for what the body itself raises."""
    from flowlane.declare.workflow import Workflow

    if isinstance(bound, Workflow):
        return bound
    try:
        return bound.build()
    except FlowError:
        raise
    except SystemExit as error:
        raise DefinitionError(
            f"the body of workflow '{bound.name}' called sys.exit({error.code!r})",
            where=user_frame(error),
            hint="a body only declares tasks; raise an error with a message instead",
        ) from error
    except Exception as error:
        raise DefinitionError(
            f"the body of workflow '{bound.name}' raised {qualified_name(type(error))}", where=user_frame(error)
        ) from error
