"""How tasks are counted for people: the one rule that a run's result, its last event, its summary and `flow show` share.

A task that has become others (a map, a reduction by tree, a workflow, a task that returned work) is told by what they came to,
and does not count beside them; unless it failed of itself, as when what it was to go over could not be read. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowlane.core.states import STATES, TaskState

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

__all__ = ["FAULTY", "tally"]

#: States of a task that ended badly by itself.
FAULTY: Final = frozenset({TaskState.FAILED, TaskState.TIMED_OUT, TaskState.CRASHED, TaskState.UNKNOWN})


def tally(states: bytes, containers: Iterable[int], failed: Container[int]) -> dict[TaskState, int]:
    """State → tasks, in the order of the states; those with none are left out.

    `states` are indices of `STATES`, by element; `containers` the elements that have become others; `failed` those with an error
    of their own.
    """
    counts = [states.count(code) for code in range(len(STATES))]
    for element in containers:
        code = states[element]
        if not (STATES[code] in FAULTY and element in failed):
            counts[code] -= 1
    return {state: count for state, count in zip(STATES, counts, strict=True) if count}
