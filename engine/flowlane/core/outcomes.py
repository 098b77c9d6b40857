"""What states and reasons come to in the scheduler: numbers for its columns, and what an end means to those that wait.

`held` of an element is 0, or while an attempt of it is out: OUT, LINKED (its end concerns more than plain dependants), and above
that why it was asked to stop.
"""

from __future__ import annotations

from typing import Final

from flowlane.core.states import (
    CACHED,
    CRASHED,
    FAILED,
    RULES,
    SKIPPED,
    STATES,
    SUCCEEDED,
    TERMINAL,
    TIMED_OUT,
    UNKNOWN,
    Reason,
    TaskState,
    code_of,
)

BECAME_READY: Final = code_of(TaskState.PENDING, TaskState.READY, Reason.UPSTREAM_DONE)
BEGAN: Final = code_of(TaskState.READY, TaskState.RUNNING, Reason.STARTED)
RETURNED: Final = code_of(TaskState.RUNNING, TaskState.SUCCEEDED, Reason.RETURNED)
AGAIN: Final = code_of(TaskState.RETRYING, TaskState.READY, Reason.BACKOFF_ELAPSED)

CODE: Final = {(STATES.index(r.source), STATES.index(r.target), r.reason): code for code, r in enumerate(RULES)}
ENDED: Final = frozenset(STATES.index(state) for state in TERMINAL)
HAS_VALUE: Final = (SUCCEEDED, CACHED)

# How an end counts for those that wait: index into a tally.
OK: Final = 0
BAD: Final = 1
SKIP: Final = 2
OUTCOME: Final = tuple(OK if code in HAS_VALUE else SKIP if code == SKIPPED else BAD for code in range(len(STATES)))
#: A failure of its own, and not that of another, or somebody's wish.
FAILURES: Final = frozenset({FAILED, TIMED_OUT, CRASHED, UNKNOWN})

# Values of `held`. Above LINKED: why we asked the attempt to stop.
OUT: Final = 1
LINKED: Final = 2  # out, and its end concerns more than plain dependants
ASKED: Final = (
    None,
    None,
    None,
    Reason.ATTEMPT_TIMEOUT,
    Reason.TOTAL_TIMEOUT,
    Reason.CANCEL_REQUESTED,
    Reason.FAIL_FAST,
    Reason.NOT_NEEDED,
    Reason.DEADLINE,
)
ASK: Final = {reason: held for held, reason in enumerate(ASKED) if reason is not None}
#: Whoever returns although it was asked to stop for one of these has succeeded.
FOR_OTHERS: Final = (None, Reason.CANCEL_REQUESTED, Reason.FAIL_FAST, Reason.NOT_NEEDED, Reason.DEADLINE)

# Kinds of entries in the heap of times.
RETRY: Final = 0
ATTEMPT_DEADLINE: Final = 1
TOTAL_DEADLINE: Final = 2
RUN_DEADLINE: Final = 3
RATE: Final = 4
GRAPH_DEADLINE: Final = 5

#: Attempts that an element may have: they are counted in a byte.
ATTEMPTS_MAX: Final = 255

#: ns of waiting that are worth one level of priority: so nothing waits for ever behind what is more urgent.
AGEING: Final = 10 * 1_000_000_000
