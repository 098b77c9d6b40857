"""What a program gives to an engine or a run, looked at before it is used: whether it is of the kind that is asked for at all.

Whether its names are known and its numbers fit is told later, by whoever knows that (the registry, the compiler).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from flowlane.declare.callsite import caller
from flowlane.errors import SettingsError

__all__ = ["check_executors", "check_grace", "check_options", "check_routes", "check_sinks", "check_slots"]

_SLOTS: Final = 'executor name → how many: slots={"threads": 8}'
_ROUTES: Final = 'what → executor name: routes={"cpu": "threads"}'
_OPTIONS: Final = 'executor name → its keywords: options={"processes": {"max_tasks": 100}}'
_EXECUTORS: Final = 'name → instance: executors={"mine": FuturesExecutor(pool)}'


def check_slots(given: Any) -> None:
    """Raise SettingsError unless `given` maps names to something."""
    _by_name("slots", given, _SLOTS)


def check_routes(given: Any) -> None:
    """Raise SettingsError unless `given` maps texts to texts."""
    for key, executor in _by_name("routes", given, _ROUTES).items():
        if not isinstance(executor, str):
            raise _wrong(f"routes has {executor!r} for {key!r}, which is no executor's name", _ROUTES)


def check_options(given: Any) -> None:
    """Raise SettingsError unless `given` maps names to mappings."""
    for name, keywords in _by_name("options", given, _OPTIONS).items():
        if not isinstance(keywords, Mapping):
            raise _wrong(f"options has {keywords!r} for {name!r}", _OPTIONS)


def check_executors(given: Any) -> None:
    """Raise SettingsError unless `given` maps names to what may be executors."""
    for name, executor in _by_name("executors", given, _EXECUTORS).items():
        if isinstance(executor, type) or not (hasattr(executor, "submit") and hasattr(executor, "open")):
            raise _wrong(f"executors has {executor!r} for {name!r}, which is no executor", _EXECUTORS)


def check_sinks(given: Any) -> None:
    """Raise SettingsError unless `given` may hold sinks."""
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes)):
        raise _wrong(f"sinks is {given!r}", "a list of sinks: sinks=[...]")


def check_grace(given: Any) -> None:
    """Raise SettingsError unless `given` is seconds, 0 or more."""
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < math.inf:
        raise _wrong(f"grace is {given!r}", "seconds, 0 or more")


def _by_name(option: str, given: Any, hint: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise _wrong(f"{option} is {given!r}", hint)
    found: Mapping[Any, Any] = given  # pyright: ignore[reportUnknownVariableType] - of whatever
    for name in found:
        if not isinstance(name, str):
            raise _wrong(f"{option} has the key {name!r}, which is no text", hint)
    return found


def _wrong(message: str, hint: str) -> SettingsError:
    return SettingsError(message, where=caller(), hint=hint)
