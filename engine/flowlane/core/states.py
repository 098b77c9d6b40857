"""The life of a task as data: its states, and every transition that is legal.

`RULES` is the whole truth. A transition is recorded as ``(element, attempt, code, t_ns)`` where `code` indexes
`RULES`; the scheduler cannot record a step that has no row here, the renderer takes its words from here, and the
diagram in ``docs/states.md`` is drawn from here. Rows are only ever appended: a code, once written to a log, keeps its
meaning.

    pending ──▶ ready ──▶ running ──▶ succeeded
       │          ▲  │        ├─────▶ failed · timed_out · crashed · cancelled
       │          │  │        ▼
       │          └──┼──── retrying
       ▼             ▼
    upstream_failed · cancelled · cached

A task may end as skipped, too: before it began, or because it says so. One that stands for others (a mapped task, a workflow
made at run time, a task that returned more work) is `expanded` from when they exist until they have ended.

A resumed run begins with what an earlier session had finished: those tasks go from pending to where they were.

One thing only is taken back: a task that has succeeded is pending again when its result is lost before everybody has read it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

__all__ = ["DONE", "REASONS", "RULES", "STATES", "TERMINAL", "Reason", "Rule", "RunState", "TaskState", "code_of"]


class TaskState(StrEnum):
    """Where a task stands. Each is also its own lower-case string: ``state == "succeeded"``."""

    PENDING = "pending"  # waits for upstream tasks
    READY = "ready"  # all upstream succeeded; waits for a slot, or is on its way to a worker
    RUNNING = "running"  # an attempt has begun on a worker
    RETRYING = "retrying"  # an attempt failed; waits for its backoff, holding no slot
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # raised, and no attempt is left
    TIMED_OUT = "timed_out"  # over `timeout` with no attempt left, or over `total_timeout`
    CRASHED = "crashed"  # the worker died under it, and no attempt is left
    UPSTREAM_FAILED = "upstream_failed"  # never began: something it depends on did not succeed
    CANCELLED = "cancelled"  # stopped, or never begun, because the run was told to stop
    CACHED = "cached"  # not run: its result was found in the cache
    UNKNOWN = "unknown"  # was running when its process died, and must not run twice: nobody knows how it ended
    SKIPPED = (
        "skipped"  # did not have to run: its branch was not taken, what it reads was skipped, or it said so itself
    )
    EXPANDED = "expanded"  # has become other tasks, and ends when they have


class RunState(StrEnum):
    """Where a run stands. `INTERRUPTED` means drained on request: what had begun was finished, the rest not begun."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class Reason(StrEnum):
    """Why a transition happened."""

    UPSTREAM_DONE = "upstream_done"
    STARTED = "started"
    RETURNED = "returned"
    RAISED = "raised"
    REJECTED = "rejected"  # refused before it began, e.g. an argument that cannot be pickled
    ATTEMPT_TIMEOUT = "attempt_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    WORKER_DIED = "worker_died"
    BACKOFF_ELAPSED = "backoff_elapsed"
    UPSTREAM_FAILED = "upstream_failed"
    CANCEL_REQUESTED = "cancel_requested"
    FAIL_FAST = "fail_fast"  # another task failed under on_failure="fail_fast"
    DRAINED = "drained"  # the run was asked to begin nothing new
    CACHE_HIT = "cache_hit"  # a result with the same inputs and the same code was there
    RESTORED = "restored"  # an earlier session of the run had finished it
    PROCESS_DIED = "process_died"  # an earlier session of the run died while it was running
    UPSTREAM_SKIPPED = "upstream_skipped"
    NOT_CHOSEN = "not_chosen"  # the condition that it stands under did not hold
    SKIP_RAISED = "skip_raised"  # the task said that there is nothing to do
    BECAME_MORE = "became_more"  # a map has its items, a workflow its tasks
    RETURNED_WORK = "returned_work"  # the task returned more work to do
    ELEMENTS_DONE = "elements_done"  # what it became has ended, and nothing failed
    ELEMENTS_FAILED = "elements_failed"
    ENOUGH = "enough"  # as many of its elements succeeded as were wanted
    NOT_NEEDED = "not_needed"  # others were first, and nobody waits for it
    DEADLINE = "deadline"  # the time of the run, or of a workflow in it, was up
    RESULT_LOST = (
        "result_lost"  # a result is gone with the machine that held it: it is made again, and its reader waits
    )


# States are small ints inside the scheduler (a bytearray holds one per element); STATES turns them back into names.
STATES: Final = tuple(TaskState)
(
    PENDING,
    READY,
    RUNNING,
    RETRYING,
    SUCCEEDED,
    FAILED,
    TIMED_OUT,
    CRASHED,
    UPSTREAM_FAILED,
    CANCELLED,
    CACHED,
    UNKNOWN,
    SKIPPED,
    EXPANDED,
) = range(len(STATES))

#: Reasons by number, for who stores them. Like the states they are only ever appended to.
REASONS: Final = tuple(Reason)

#: The states of a task whose value is there for those that wait for it.
DONE: Final = frozenset({TaskState.SUCCEEDED, TaskState.CACHED})

TERMINAL: Final = frozenset(
    {
        TaskState.SUCCEEDED,
        TaskState.FAILED,
        TaskState.TIMED_OUT,
        TaskState.CRASHED,
        TaskState.UPSTREAM_FAILED,
        TaskState.CANCELLED,
        TaskState.CACHED,
        TaskState.UNKNOWN,
        TaskState.SKIPPED,
    }
)


class Rule(NamedTuple):
    """One legal transition."""

    source: TaskState
    target: TaskState
    reason: Reason


def _rules() -> tuple[Rule, ...]:
    s, r = TaskState, Reason
    return (
        Rule(s.PENDING, s.READY, r.UPSTREAM_DONE),
        Rule(s.READY, s.RUNNING, r.STARTED),
        Rule(s.RUNNING, s.SUCCEEDED, r.RETURNED),
        Rule(s.RUNNING, s.FAILED, r.RAISED),
        Rule(s.RUNNING, s.TIMED_OUT, r.ATTEMPT_TIMEOUT),
        Rule(s.RUNNING, s.TIMED_OUT, r.TOTAL_TIMEOUT),
        Rule(s.RUNNING, s.CRASHED, r.WORKER_DIED),
        Rule(s.RUNNING, s.CANCELLED, r.CANCEL_REQUESTED),
        Rule(s.RUNNING, s.CANCELLED, r.FAIL_FAST),
        Rule(s.RUNNING, s.RETRYING, r.RAISED),
        Rule(s.RUNNING, s.RETRYING, r.ATTEMPT_TIMEOUT),
        Rule(s.RUNNING, s.RETRYING, r.WORKER_DIED),
        Rule(s.RETRYING, s.READY, r.BACKOFF_ELAPSED),
        Rule(s.RETRYING, s.TIMED_OUT, r.TOTAL_TIMEOUT),
        Rule(s.RETRYING, s.CANCELLED, r.CANCEL_REQUESTED),
        Rule(s.RETRYING, s.CANCELLED, r.FAIL_FAST),
        Rule(s.RETRYING, s.CANCELLED, r.DRAINED),
        Rule(s.READY, s.TIMED_OUT, r.TOTAL_TIMEOUT),
        Rule(s.READY, s.CANCELLED, r.CANCEL_REQUESTED),
        Rule(s.READY, s.CANCELLED, r.FAIL_FAST),
        Rule(s.READY, s.CANCELLED, r.DRAINED),
        # An attempt that was launched and ended before any worker began it:
        Rule(s.READY, s.FAILED, r.REJECTED),
        Rule(s.READY, s.RETRYING, r.REJECTED),
        Rule(s.READY, s.CRASHED, r.WORKER_DIED),
        Rule(s.READY, s.RETRYING, r.WORKER_DIED),
        Rule(s.PENDING, s.UPSTREAM_FAILED, r.UPSTREAM_FAILED),
        Rule(s.PENDING, s.CANCELLED, r.CANCEL_REQUESTED),
        Rule(s.PENDING, s.CANCELLED, r.FAIL_FAST),
        Rule(s.PENDING, s.CANCELLED, r.DRAINED),
        Rule(s.READY, s.CACHED, r.CACHE_HIT),
        # What a resumed run begins with:
        Rule(s.PENDING, s.SUCCEEDED, r.RESTORED),
        Rule(s.PENDING, s.CACHED, r.RESTORED),
        Rule(s.PENDING, s.UNKNOWN, r.PROCESS_DIED),
        # Tasks that need not run:
        Rule(s.PENDING, s.SKIPPED, r.UPSTREAM_SKIPPED),
        Rule(s.PENDING, s.SKIPPED, r.NOT_CHOSEN),
        Rule(s.RUNNING, s.SKIPPED, r.SKIP_RAISED),
        Rule(s.PENDING, s.SKIPPED, r.RESTORED),
        # Tasks that become others:
        Rule(s.READY, s.EXPANDED, r.BECAME_MORE),
        Rule(s.RUNNING, s.EXPANDED, r.RETURNED_WORK),
        Rule(s.EXPANDED, s.SUCCEEDED, r.ELEMENTS_DONE),
        Rule(s.EXPANDED, s.SUCCEEDED, r.ENOUGH),
        Rule(s.EXPANDED, s.FAILED, r.ELEMENTS_FAILED),
        Rule(s.EXPANDED, s.FAILED, r.RAISED),
        Rule(s.EXPANDED, s.RETRYING, r.ELEMENTS_FAILED),
        Rule(s.EXPANDED, s.UPSTREAM_FAILED, r.UPSTREAM_FAILED),
        Rule(s.EXPANDED, s.SKIPPED, r.UPSTREAM_SKIPPED),
        Rule(s.EXPANDED, s.TIMED_OUT, r.TOTAL_TIMEOUT),
        *[
            Rule(s.EXPANDED, s.CANCELLED, reason)
            for reason in (r.CANCEL_REQUESTED, r.FAIL_FAST, r.DRAINED, r.NOT_NEEDED, r.DEADLINE)
        ],
        # Other ways to be told to stop:
        *[
            Rule(state, s.CANCELLED, reason)
            for reason in (r.NOT_NEEDED, r.DEADLINE)
            for state in (s.PENDING, s.READY, s.RUNNING, s.RETRYING)
        ],
        Rule(s.RUNNING, s.CANCELLED, r.DRAINED),  # it returned more work, and nothing is begun any more
        Rule(s.EXPANDED, s.TIMED_OUT, r.DEADLINE),  # a workflow within the run has a deadline of its own
        # A result is gone: who wanted to read it waits once more, and so does who made it, for its own turn.
        Rule(s.READY, s.PENDING, r.RESULT_LOST),
        Rule(s.SUCCEEDED, s.PENDING, r.RESULT_LOST),
        Rule(s.CACHED, s.PENDING, r.RESULT_LOST),
        Rule(s.PENDING, s.TIMED_OUT, r.TOTAL_TIMEOUT),
    )


RULES: Final = _rules()
_CODES: Final = {rule: code for code, rule in enumerate(RULES)}


def code_of(source: TaskState, target: TaskState, reason: Reason) -> int:
    """The index in `RULES` of this transition. Raises KeyError when it is not legal."""
    return _CODES[Rule(source, target, reason)]
