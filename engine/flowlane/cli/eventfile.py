"""Reads ``events.jsonl`` back: whole lines, as they come, and the events on them that can be believed.

The file is appended to by one process while others read it, and a process that is killed leaves a torn line behind. So a line
counts once its newline is there. What is on it is checked before it is shown as an event: the words of a transition are printed
as they are, and nobody but us writes them.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final, cast

from flowlane.core.states import Reason, RunState, TaskState
from flowlane.runtime.ports import RunInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flowlane.core.messages import Transition
    from flowlane.runtime.adapting import Change
    from flowlane.runtime.ports import Report

__all__ = ["Told", "event_of", "resizes", "run_info", "whole_lines"]

_RESIZED: Final = b'{"event":"lane.resized"'
_AT_ONCE: Final = 1 << 20  # bytes read
_TASKS_MAX: Final = 10_000_000  # of a heading: what is more is no run of ours
_TASK_STATES: Final = frozenset(map(str, TaskState))
_REASONS: Final = frozenset(map(str, Reason))
_RUN_STATES: Final = frozenset(map(str, RunState))


def whole_lines(path: str, wait: Callable[[], bool] | None = None) -> Iterator[list[bytes]]:
    """The lines of the file, some at a time, without their newlines; a last one without newline is left out.

    At the end of the file `wait` is called; where it returns true more may have come, else that was all. Raises OSError.
    """
    rest = b""
    with open(path, "rb") as file:
        while True:
            data = file.read(_AT_ONCE)
            if data:
                *lines, rest = (rest + data).split(b"\n")
                if lines:
                    yield lines
            elif wait is None or not wait():
                return


def event_of(line: bytes) -> dict[str, Any] | None:
    """The event on a line, or None for anything that our sink does not write."""
    try:
        event: Any = json.loads(line)
        return (
            cast("dict[str, Any]", event) if isinstance(event, dict) and _sound(cast("dict[str, Any]", event)) else None
        )
    except (ValueError, TypeError, RecursionError):  # TypeError: an unhashable state, a path that is a number
        return None


def _sound(event: Mapping[str, Any]) -> bool:
    get = event.get
    if type(get("mono_ns")) is not int:
        return False
    match get("event"):
        case "task.transition":
            return (
                _texts(event, "task", "executor", "from", "to", "reason")
                and {get("from"), get("to")} <= _TASK_STATES
                and get("reason") in _REASONS
                and type(get("attempt")) is int
                and isinstance(get("worker"), (str, type(None)))
                and isinstance(get("elapsed_s"), (int, float, type(None)))
                and ("error" not in event or _texts(get("error"), "type", "message"))
                and all(isinstance(name, str) for name in get("path", ()))
            )
        case "task.noted":
            return _texts(event, "task", "note")
        case "lane.resized":
            named = "lane" if get("limit") is None else "limit"
            return _texts(event, named, "note") and type(get("before")) is int and type(get("slots")) is int
        case "log.lost":
            return type(get("lost")) is int
        case "run.started":
            kinds: Any = get("kinds")
            return (
                _texts(event, "run", "run_name", "workflow")
                and isinstance(kinds, dict)
                and all(
                    type(count) is int and 0 <= count <= _TASKS_MAX for count in cast("dict[str, Any]", kinds).values()
                )
            )
        case "run.finished":
            return get("state") in _RUN_STATES
        case _:
            return False


def _texts(fields: Any, *names: str) -> bool:
    """Whether these are texts."""
    return isinstance(fields, dict) and all(isinstance(cast("dict[str, Any]", fields).get(name), str) for name in names)


def resizes(path: str) -> list[Change]:
    """The changes of adaptive slots that the file tells of; none where it cannot be read. Looks at no other line."""
    from flowlane.runtime.adapting import Change, who

    found: list[Change] = []
    with contextlib.suppress(OSError):
        for lines in whole_lines(path):
            for line in lines:
                event = event_of(line) if line.startswith(_RESIZED) else None
                if event is not None:
                    what = event["lane"] if event["limit"] is None else who("limit", event["limit"])
                    found.append(Change(what, event["before"], event["slots"], event["note"]))
    return found


def run_info(started: Mapping[str, Any]) -> RunInfo:
    """A run as its ``run.started`` tells it: how many tasks of which kinds, without their names."""
    kinds = [kind for kind, count in started["kinds"].items() for _ in range(count)]
    return RunInfo(
        id=started["run"],
        name=started["run_name"],
        workflow=started["workflow"],
        names=[""] * len(kinds),
        kinds=kinds,
        executors=(),
        upstreams=(),
        wall_ns=0,
        mono_ns=started["mono_ns"],
    )


class Told:
    """Events that were written once, as a `Chunk` for a sink that goes by events."""

    __slots__ = ("_events", "run")

    transitions: Sequence[Transition] = ()
    elapsed: Sequence[int] = ()

    def __init__(self, run: RunInfo, events: Sequence[dict[str, Any]]) -> None:
        self.run = run
        self._events = events

    @property
    def reports(self) -> Mapping[tuple[int, int], Report]:
        return {}

    def events(self) -> Iterator[dict[str, Any]]:
        return iter(self._events)
