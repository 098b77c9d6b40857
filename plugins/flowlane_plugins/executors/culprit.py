"""Finds the part of a value that cannot be pickled, and words for the way to it. Imported only after that failed.

The search tries a value's parts, descends into the first that fails, halves wide containers instead of trying item by
item, and stops after a fixed time. See `explosion` for what can be pickled but not loaded again.
"""

from __future__ import annotations

import copyreg
import pickle
import time
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

from flowlane.errors import qualified_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["DEPTH", "key_shown", "one_line", "parameter_name", "unpicklable", "written"]

# Seconds of CPU time. Enough to halve a list of 100,000; and one failure may not hold the loop for much longer.
_BUDGET: Final = 0.5
DEPTH: Final = 64  # a path that long helps nobody
_NEW_OBJECT: Final = getattr(copyreg, "__newobj__")  # noqa: B009 - the stubs do not have it; its first argument is the class
_SHOWN: Final = 6  # segments of a path that are written out


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its type when it has none. Never raises."""
    try:
        text = str.__str__(str(error)).strip().partition("\n")[0]
    except BaseException:  # noqa: BLE001 - a __str__ of the user's
        text = ""
    name = qualified_name(type(error))
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, (pickle.PicklingError, TypeError)) and text:
        return text  # pickle's own words: "cannot pickle '_thread.lock' object"
    return f"{name}: {text}" if text else name


def parameter_name(fn: Callable[..., Any], key: int | str) -> str:
    """What the parameter is called that takes positional argument `key`, or keyword argument `key`."""
    import inspect

    if isinstance(key, str):
        return key
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return f"argument {key + 1}"
    for index, parameter in enumerate(parameters):
        if parameter.kind is parameter.VAR_POSITIONAL:
            return f"{parameter.name}[{key - index}]"
        if index == key:
            return parameter.name
    return f"argument {key + 1}"


def written(segments: list[str]) -> str:
    """The way to a culprit as text: ``.session._lock``; the middle of a long one left out."""
    if len(segments) > _SHOWN:
        segments = [*segments[: _SHOWN - 2], " … ", *segments[-2:]]
    return "".join(segments).strip()


# ── what cannot be pickled ────────────────────────────────────────────────────────────────────────────────────────


def unpicklable(value: Any, attempt: Callable[[Any], BaseException | None], error: BaseException) -> tuple[str, str]:
    """The way from `value` to what in it cannot be pickled, and why, in pickle's words.

    `attempt` encodes a value and returns the error, None when it could; `error` is the one for `value` itself. Costs
    at most about 0.5 s of CPU time and one further attempt. Never raises.
    """
    if isinstance(error, RecursionError):  # every part of a deep nest fails, down to where it is no longer deep
        return "", one_line(error)
    deadline = time.thread_time() + _BUDGET
    segments: list[str] = []
    seen = {id(value)}
    try:
        while len(segments) < DEPTH and time.thread_time() < deadline:
            step = _failing_part(value, attempt, deadline)
            if step is None:
                break
            segment, value, error = step
            if id(value) in seen:  # a cycle: every object on it fails, the culprit is beside it
                break
            seen.add(id(value))
            segments.append(segment)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - odd objects may raise at any touch: what was found until then stands
        return written(segments), one_line(error)
    return written(segments), one_line(error)


def _failing_part(
    value: Any, attempt: Callable[[Any], BaseException | None], deadline: float
) -> tuple[str, Any, BaseException] | None:
    """The first part of `value` that cannot be pickled, with its segment and error; None when it is `value` itself."""
    parts: list[tuple[str, Any]] = list(_parts(value))
    low, high = 0, len(parts)
    while high - low > 8 and time.thread_time() < deadline:
        middle = (low + high) // 2
        if attempt([part for _, part in parts[low:middle]]) is not None:
            high = middle
        else:
            low = middle
    if high - low > 8:  # out of time: the way so far must do
        return None
    for segment, part in parts[low:high]:
        error = attempt(part)
        if error is not None:
            return segment, part, error
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What pickling `value` would pickle, each with its segment of the path."""
    kind: type = type(value)  # pyright: ignore[reportUnknownVariableType] - truly anything
    fields: tuple[str, ...] = getattr(kind, "_fields", ()) if tuple in kind.__mro__ else ()  # a named tuple's
    if fields:
        yield from ((f".{name}", item) for name, item in zip(fields, value, strict=False))
    elif kind in (list, tuple):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif kind is dict:
        for key, item in value.items():
            yield (" a key", key)
            yield (f"[{key_shown(key)}]", item)
    elif kind in (set, frozenset):
        yield from ((" an element", item) for item in value)
    elif isinstance(value, FunctionType):
        yield from _captured(value)
    elif isinstance(value, MethodType):
        yield (".__self__", value.__self__)
    elif isinstance(value, type):
        yield from ((f".{name}", item) for name, item in vars(value).items() if not name.startswith("__"))
    else:
        yield from _reduced(value)


def _captured(fn: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
        try:
            yield (f" captured {name}", cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    for name in fn.__code__.co_names:
        if name in fn.__globals__:
            yield (f" global {name}", fn.__globals__[name])
    for index, default in enumerate(fn.__defaults__ or ()):
        yield (f" default {index}", default)
    for name, default in (fn.__kwdefaults__ or {}).items():
        yield (f" default {name}", default)


def _reduced(value: Any) -> Iterator[tuple[str, Any]]:
    try:
        reduced: Any = value.__reduce_ex__(5)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - it refuses to be pickled: then it is the culprit itself
        return
    if not isinstance(reduced, tuple):
        return
    parts: tuple[Any, ...] = reduced  # pyright: ignore[reportUnknownVariableType] - truly anything
    maker, args, state, items, pairs = (*parts, None, None, None)[:5]
    yield from _state(state)
    for index, item in enumerate(items or ()):
        yield (f"[{index}]", item)
    for key, item in pairs or ():
        yield (f"[{key_shown(key)}]", item)
    arguments: tuple[Any, ...] = args or ()
    for index, item in enumerate(arguments[1:] if maker is _NEW_OBJECT else arguments):
        yield (f" constructor argument {index}", item)


def _state(state: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(state, dict):
        attributes: dict[Any, Any] = state  # pyright: ignore[reportUnknownVariableType] - truly anything
        yield from ((f".{name}", item) for name, item in attributes.items())
    elif isinstance(state, tuple):  # (dict or None, slots), or whatever a __getstate__ gives
        for item in state:  # pyright: ignore[reportUnknownVariableType] - truly anything
            if isinstance(item, dict):
                yield from _state(item)
            else:
                yield (" state", item)
    elif state is not None:
        yield (" state", state)


def key_shown(key: Any) -> str:
    """A container's key as it reads in a path; keys of the user's own classes by their class only."""
    if type(key) in (str, int, float, bool, bytes, type(None)):
        text = repr(key)
        return text if len(text) <= 40 else text[:37] + "…"
    return f"<{type(key).__name__}>"
