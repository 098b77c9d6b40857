"""A run's value, and its result, as text for stdout.

JSON is pydantic-core's: dataclasses, models, dates, paths, sets and the like have a form; anything else becomes its
``repr``, and so does an iterator, alone or in dicts, lists and tuples: it may have no end. NaN and the infinities become null
(JSON has none); bytes are text if all of them are UTF-8, else all base64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane.results import RunResult, TaskResult

__all__ = ["RESULT_VERSION", "result_as_json", "value_as_text"]

RESULT_VERSION: Final = 1


def value_as_text(value: object) -> str:
    """A string as it is, anything else as one line of JSON. Never raises."""
    return value if isinstance(value, str) else _json(value)


def result_as_json(result: RunResult[Any], value: object) -> str:
    """One line: ``{"version", "run", "state", "value", "tasks"}``; times in seconds, `value` null unless succeeded."""
    tasks: dict[str, object] = {}
    for name, task in result.tasks.items():
        failure = task.failure
        tasks[name] = {
            "state": str(task.state),
            "kind": task.kind,
            "attempts": task.attempts,
            "executor": task.executor,
            "duration_s": task.duration,
            "failure": None if failure is None else failure.to_dict(),
        } | {name: value for name, value in _measured(task).items() if value is not None}
    head = {
        "version": RESULT_VERSION,
        "run": {"id": result.id, "name": result.name, "workflow": result.workflow, "duration_s": result.duration},
        "state": str(result.state),
    }
    # Apart, so that a value which has no JSON form cannot take the rest down with it.
    return f'{_json(head)[:-1]},"value":{_json(value)},"tasks":{_json(tasks)}}}'


def _measured(task: TaskResult) -> dict[str, float | int | None]:
    """Under the names that they have in the event log."""
    return {
        "cpu_s": task.cpu,
        "peak_rss": task.peak_rss,
        "bytes_in": task.bytes_in,
        "bytes_out": task.bytes_out,
        "pickling_s": task.pickling,
    }


def _json(value: object) -> str:
    from pydantic_core import to_json

    try:
        value = _still(value)
    except RecursionError:  # nested too deeply for us; the encoder says what it can
        pass
    modes: tuple[Literal["utf8", "base64"], ...] = ("utf8", "base64")
    for mode in modes:
        try:
            return to_json(value, bytes_mode=mode, inf_nan_mode="null", fallback=_repr).decode()
        except Exception:  # noqa: BLE001, S112 - a cycle, a key without a form, a property that raises: anything
            continue
    return to_json(_repr(value).encode("utf-8", "backslashreplace").decode()).decode()


def _still(value: object, met: dict[int, object] | None = None) -> object:
    """`value` with the ``repr`` of each iterator in its place: pydantic-core would go over it, even if it has no end.

    Looks into dicts, lists and tuples, once into each; `met` are those that were met, by id. Raises RecursionError.
    """
    if hasattr(type(value), "__next__"):
        return _repr(value)
    if not isinstance(value, (dict, list, tuple)):
        return value
    whole: object = cast("object", value)
    met = {} if met is None else met
    if id(whole) in met:
        return met[id(whole)]
    met[id(whole)] = whole  # as it is met again within itself
    if isinstance(value, dict):
        old = cast("dict[object, object]", value)
        new = {key: _still(each, met) for key, each in old.items()}
        if any(new[key] is not old[key] for key in new):
            met[id(whole)] = new
    else:
        parts = cast("Sequence[object]", value)
        still = [_still(each, met) for each in parts]
        if any(now is not then for now, then in zip(still, parts, strict=True)):
            met[id(whole)] = still
    return met[id(whole)]


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - a broken __repr__ must not lose the rest of the value
        return f"<{type(value).__name__}: repr raised {type(error).__name__}>"
