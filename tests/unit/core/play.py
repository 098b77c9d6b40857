"""A stage for one scheduler: events in at a given time, and what followed as short lines that tests can compare."""

from __future__ import annotations

import copy
from array import array
from typing import TYPE_CHECKING, Any, assert_never

from flowlane.core import (
    NO_RETRY,
    RULES,
    Failed,
    Finish,
    Interrupt,
    Interrupted,
    Lane,
    Launch,
    Plan,
    Policy,
    Release,
    Scheduler,
    SetTimer,
    Started,
    Succeeded,
    Wake,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowlane.core import Command, Event, Step, Transition


class Play:
    """Drives a Scheduler by hand. Every step is followed by the scheduler's own check."""

    def __init__(
        self,
        upstreams: Sequence[Iterable[int]],
        every: Policy = NO_RETRY,
        *,
        slots: int = 4,
        lanes: Sequence[Lane] | None = None,
        token: int = 0,
        jitter: Callable[[], float] | None = None,
        **plan: Any,
    ) -> None:
        self.lanes = [Lane("lane", slots)] if lanes is None else lanes
        plan.setdefault("policies", (every,))
        self.plan = Plan.build(upstreams, **plan)
        self.scheduler = Scheduler(self.plan, self.lanes, token=token, jitter=jitter)

    def at(self, now: int, *events: Event) -> list[str]:
        """Handle `events` as one batch at `now`."""
        step = self.scheduler.handle(events, now)
        self.scheduler.check()
        return told(step)

    def snapshot(self) -> dict[str, Any]:
        """Everything the scheduler and its lanes know, to compare."""
        of_a_step = ("_step", "_at", "_released")  # there for the step under way, and of no meaning after it
        known = {name: plain(value) for name, value in vars(self.scheduler).items() if name not in of_a_step}
        for index, lane in enumerate(self.lanes):
            known[f"lane {index}"] = plain(lane)
        return known


def plain(value: Any) -> Any:
    """A copy of `value` in which what we know of objects is a dict, so that it can be compared."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if type(value).__module__ in ("flowlane.core.ready", "flowlane.core.lanes", "flowlane.core.elements"):
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        own = {
            **getattr(value, "__dict__", {}),
            **{name: getattr(value, name) for name in slots if hasattr(value, name)},
        }
        return {name: plain(each) for name, each in own.items()}
    return copy.copy(value) if isinstance(value, (set, bytearray, array)) else value


def apart(count: int) -> list[list[int]]:
    """Upstreams of `count` tasks that do not depend on each other."""
    return [[] for _ in range(count)]


def told(step: Step) -> list[str]:
    return [*map(line_of, step.transitions), *map(order_of, step.commands)]


def line_of(transition: Transition) -> str:
    element, attempt, code, at = transition
    _, target, reason = RULES[code]
    return f"{element}#{attempt} {target} {reason} @{at}"


def order_of(command: Command) -> str:
    match command:
        case Launch(lane, elements):
            return f"launch {elements} on {lane}"
        case Interrupt(lane, elements, reason):
            return f"interrupt {elements} on {lane}: {reason}"
        case SetTimer(at):
            return f"timer {at}"
        case Release(elements):
            return f"release {sorted(elements)}"
        case Wake(tokens):
            return f"wake {tokens}"
        case Finish(state):
            return f"finish {state}"
        case _:
            assert_never(command)


def began(element: int, attempt: int, at: int) -> Started:
    return Started(element, attempt, at)


def returned(element: int, attempt: int, started: int, ended: int) -> Succeeded:
    return Succeeded(element, attempt, started, ended)


def raised(element: int, attempt: int, started: int, ended: int, *, again: bool = True) -> Failed:
    return Failed(element, attempt, started, ended, again)


def stopped(element: int, attempt: int, started: int, ended: int) -> Interrupted:
    return Interrupted(element, attempt, started, ended)
