"""How tasks are counted for people: the one rule that a run's result, its last event, its summary and the history share.

A task that has become others (a map, a reduction by tree, a workflow, a task that returned work) is told by what they came to,
and does not count beside them; unless it failed of itself, as when what it was to go over could not be read.

Whoever carries a run out has the state of every element at hand (`tally`). A store has rows, and gets the counts from whoever
closes a session; of one that nobody has closed it tells what its rows come to (`tally_rows`). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowlane.core.states import PENDING, REASONS, STATES, Reason, TaskState

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

__all__ = ["FAULTY", "failed_of_itself", "tally", "tally_rows"]

#: States of a task that ended badly by itself.
FAULTY: Final = frozenset({TaskState.FAILED, TaskState.TIMED_OUT, TaskState.CRASHED, TaskState.UNKNOWN})


def failed_of_itself(state: int, reason: int) -> bool:
    """Whether a task that stands so (indices of `STATES` and `REASONS`) has an error of its own, and not only its elements'."""
    return STATES[state] in FAULTY and REASONS[reason] is not Reason.ELEMENTS_FAILED


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
    return _told(counts)


def tally_rows(
    size: int, states: Iterable[tuple[int, int]], containers: Iterable[tuple[int, int] | None]
) -> dict[TaskState, int]:
    """The same of what is stored, as far as it goes: an element without a row is pending.

    `size` is how many elements there are; `states` are (index of `STATES`, elements whose latest row is in it); `containers` the
    (state, reason) of the latest row of each element that has become others, None where it has no row. A row of attempt 0 that
    says "expanded" is none: it only tells where a resumed run goes on from.
    """
    counts = [0] * len(STATES)
    for code, elements in states:
        counts[code] += elements
    counts[PENDING] += max(0, size - sum(counts))
    for row in containers:
        if row is None:
            counts[PENDING] -= 1
        elif not failed_of_itself(*row):
            counts[row[0]] -= 1
    return _told(counts)


def _told(counts: list[int]) -> dict[TaskState, int]:
    return {state: count for state, count in zip(STATES, counts, strict=True) if count}
