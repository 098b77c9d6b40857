"""Going on with a run: what an earlier session finished, and still holds for the workflow as it is now.

A task is *kept* when it succeeded, neither it nor anything it depends on has changed, and its value is at hand for
everybody who will read it. A value that nobody reads any more is not missed: its task stays done. One that somebody reads
and that is damaged, gone or was never storable makes its task run again, and so may need values of tasks above it in turn.

A task with ``at_most_once`` that had begun and is not known to have succeeded is *unknown*: only a person can say what became
of it. Pure, but for looking into stored results.
"""

from __future__ import annotations

import inspect
import os
import platform
import socket
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.core.states import DONE, REASONS, STATES, Reason, TaskState
from flowlane.declare.workflow import Bound, WorkflowDefinition, as_bound
from flowlane.description import Changes, Description, below, compare
from flowlane.errors import (
    Failure,
    ResultDamaged,
    RunLocked,
    StoreError,
    TransportError,
    UnknownName,
    UsageError,
    WorkflowChanged,
)
from flowlane.loader import load_for
from flowlane.runtime.beginning import Beginning, StoredValue
from flowlane.storage.asked import Asked, seal_asked, unseal_asked
from flowlane.storage.blob import bound_to, pack, unpack, unseal
from flowlane.storage.port import AttemptRow, NewRun, NewSession, Owner
from flowlane.version import version

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from flowlane.declare.workflow import Workflow
    from flowlane.program import Program
    from flowlane.storage.port import ResultRef, Store, StoredAttempt, StoredRun

__all__ = [
    "Resumption",
    "asked_of",
    "locked",
    "new_run",
    "new_session",
    "part_of_run",
    "plan_resume",
    "sealed_origin",
    "with_parameters",
]

_UNKNOWN: Final = STATES.index(TaskState.UNKNOWN)
_PROCESS_DIED: Final = REASONS.index(Reason.PROCESS_DIED)
_BEGAN = frozenset(
    {
        TaskState.RUNNING,
        TaskState.FAILED,
        TaskState.TIMED_OUT,
        TaskState.CRASHED,
        TaskState.CANCELLED,
        TaskState.RETRYING,
    }
)


class Resumption(NamedTuple):
    """How a run goes on.

    beginning  for the runner
    adopted    (element now, where its row is), for the store
    changes    what is different about the workflow
    again      names of tasks that had succeeded and run again all the same
    """

    beginning: Beginning
    adopted: list[tuple[int, ResultRef]]
    changes: Changes
    again: list[str]


def new_run(id: str, name: str, program: Program, origin: str, store: Store, *, parent: str | None = None) -> NewRun:
    """What a store is told of a run that begins. Parameters that cannot be stored (an open connection) are left out."""
    try:
        params = pack(dict(program.params))
    except TransportError:
        params = None
    sealed = seal_asked(Asked(origin, params), id, store.secret)
    return NewRun(id, name, program.workflow, origin, sealed, time.time_ns(), parent)


def new_session(now: Description, going_on: Resumption | None = None) -> NewSession:
    """What a store is told of this process and of what it is about to carry out, and begins with.

    What is unknown is told at once, not when the run begins: a process that dies in between must not leave a session in
    which such a task looks as if it had never begun.
    """
    owner = Owner(os.getpid(), socket.gethostname())
    python = f"{platform.python_implementation()} {platform.python_version()}"
    at = time.time_ns()
    return NewSession(
        owner,
        now.packed(),
        len(now.names),
        at,
        f"flowlane {version()}, {python}",
        adopted=going_on.adopted if going_on is not None else (),
        rows=[_unknown_row(element, at) for element in going_on.beginning.unknown] if going_on is not None else (),
    )


def _unknown_row(element: int, at: int) -> AttemptRow:
    return AttemptRow(element, 0, _UNKNOWN, _PROCESS_DIED, 0, 0, at, (), None)


def asked_of(run: StoredRun, store: Store, *, hint: str | None = None) -> Asked:
    """What a run was asked to do. Raises ResultDamaged unless that is what this store's owner started it with."""
    try:
        return unseal_asked(store.params(run.id), run.id, store.secret)
    except ResultDamaged as error:
        raise ResultDamaged(
            f"how run {run.name} was started cannot be believed: {error.message}",
            hint=hint
            or "say where its workflow is: flow resume RUN --file FILE[:WORKFLOW], engine.resume(run, workflow)",
        ) from error


def sealed_origin(run: StoredRun, store: Store) -> str:
    """Where a run's workflow was, "" unless that is what this store's owner started it with."""
    try:
        return asked_of(run, store).origin
    except ResultDamaged:
        return ""


def with_parameters(
    target: WorkflowDefinition[Any, Any] | Bound[Any] | Workflow, run: StoredRun, store: Store
) -> Bound[Any]:
    """A workflow with the parameters that the run was started with; one that has its own keeps those.

    Raises UsageError when they were not stored, ResultDamaged or TransportError when they cannot be read.
    """
    if not isinstance(target, WorkflowDefinition):
        return as_bound(target, (), {})
    if not inspect.signature(target.fn).parameters:
        return Bound[Any].of_definition(target, (), {}, valid=True)
    found = asked_of(
        run, store, hint=f"give its parameters: engine.resume({run.name!r}, {target.name}.bind(...))"
    ).params
    if found is None:
        raise UsageError(
            f"the parameters of run {run.name} could not be stored",
            hint=f"give them again: engine.resume({run.name!r}, {target.name}.bind(...))",
        )
    params: Any = unpack(found, load_for)
    return Bound[Any].of_definition(target, (), params, valid=True)


def part_of_run(run: StoredRun, store: Store) -> dict[str, Sequence[str]]:
    """The options that named the part of its workflow that the run is about; none where it is about all of it."""
    return dict(Description.read(store.session(run.id, run.session).graph).part)


def locked(run: StoredRun, owner: Owner) -> RunLocked:
    """The error for a run that a living process owns."""
    return RunLocked(
        f"run {run.name} is under way in process {owner.pid} on {owner.host}",
        pid=owner.pid,
        host=owner.host,
        hint=f"`flow cancel {run.name}` stops it; if that process hangs, --take-over (take_over=True) takes the run from it",
    )


def plan_resume(
    program: Program,
    now: Description,
    then: Description,
    run: StoredRun,
    store: Store,
    *,
    accept_changes: bool = False,
    restart: Collection[str] = (),
    rerun: Collection[str] = (),
) -> Resumption:
    """Decide what of `run`'s latest session is kept.

    `restart` names tasks that run again, with all that depends on them; `rerun` those with ``at_most_once`` of which somebody
    knows that they may. Raises WorkflowChanged (unless accepted), UnknownName, StoreError.
    """
    plan = program.plan
    changes = compare(then, now)
    if changes and not accept_changes:
        raise WorkflowChanged(
            f"workflow '{run.workflow}' is not what run {run.name} was started with: {'; '.join(changes.lines())}",
            hint="--accept-changes (accept_changes=True) runs what is affected again, and keeps the rest",
        )
    number = {name: element for element, name in enumerate(now.names)}
    for name in (*restart, *rerun):
        if name not in number:
            raise _unknown(name, number, run)
    for name in rerun:
        if number[name] not in program.once:
            raise UsageError(
                f"task '{name}' is not at_most_once", hint=f"to run it again: --from {name} (restart=[{name!r}])"
            )
    affected = below(plan, [number[name] for name in (*changes.affected, *restart)])
    rows = _latest(store.attempts(run.id, run.session))
    before = {name: element for element, name in enumerate(then.names)}
    kept: dict[int, StoredAttempt] = {}
    unknown: dict[int, Failure] = {}
    again: list[str] = []
    for element, name in enumerate(now.names):
        row = rows.get(before.get(name, -1))
        if row is None:
            continue
        state = STATES[row.state]
        if state in DONE:
            if element not in affected:
                kept[element] = row
            elif element in program.once and name not in rerun:
                raise UsageError(
                    f"task '{name}' has succeeded, is at_most_once, and would run a second time",
                    hint=f"if it may, say so: --rerun {name} (rerun=[{name!r}])",
                )
            else:
                again.append(name)
        elif element in program.once and name not in rerun and _may_have_begun(row):
            why = "it had begun when the run stopped" if state is TaskState.RUNNING else f"it ended {state}"
            unknown[element] = _outcome_unknown(name, why)
    values = _needed(program, now, kept, unknown, store, again, rerun)
    return Resumption(
        Beginning(
            restored=[element for element, row in kept.items() if STATES[row.state] is TaskState.SUCCEEDED],
            cached=[element for element, row in kept.items() if STATES[row.state] is TaskState.CACHED],
            unknown=unknown,
            values=values,
        ),
        [(element, (run.id, run.session, row.element, row.attempt)) for element, row in kept.items()],
        changes,
        again,
    )


def _latest(attempts: Iterable[StoredAttempt]) -> dict[int, StoredAttempt]:
    """By element the row of its latest attempt."""
    return {row.element: row for row in attempts}  # in order of attempts: the last one stays


def _may_have_begun(row: StoredAttempt) -> bool:
    state = STATES[row.state]
    return state is TaskState.UNKNOWN or (state in _BEGAN and bool(row.started))


def _needed(
    program: Program,
    now: Description,
    kept: dict[int, StoredAttempt],
    unknown: dict[int, Failure],
    store: Store,
    again: list[str],
    rerun: Collection[str],
) -> dict[int, StoredValue]:
    """The values that will be read. A task whose value is needed and not to be had is taken out of `kept`."""
    plan = program.plan
    values: dict[int, StoredValue] = {}
    for element in reversed(plan.order):  # so that who reads a value is decided before who made it
        row = kept.get(element)
        if row is None:
            continue
        readers = [each for each in plan.dependants[element] if each not in kept and each not in unknown]
        if element not in plan.pinned and not any(element in plan.inputs[reader] for reader in readers):
            continue
        value, why = _value(store, row)
        if value is not None:
            values[element] = value
            continue
        del kept[element]
        name = now.names[element]
        if element in program.once and name not in rerun:
            unknown[element] = _outcome_unknown(name, f"it has succeeded, but its value is lost: {why}")
        else:
            again.append(name)
    return values


def _value(store: Store, row: StoredAttempt) -> tuple[StoredValue | None, str]:
    """A stored result, if it is whole; else why not."""
    if row.result is None:
        return None, "it could not be stored"
    try:
        unseal(store.read(row.result), store.secret, bound_to(row.result))
    except StoreError as error:
        return None, error.message
    return StoredValue(store, row.result, row.size), ""


def _outcome_unknown(name: str, why: str) -> Failure:
    return Failure(
        "OutcomeUnknown",
        f"{why}; it is at_most_once, so it is not run again",
        notes=(f"hint: find out what it did; if it may run, resume with --rerun {name} (rerun=[{name!r}])",),
        ancestry=("Exception", "BaseException"),
    )


def _unknown(name: str, number: dict[str, Any], run: StoredRun) -> UnknownName:
    import difflib

    close = difflib.get_close_matches(name, number, 1)
    return UnknownName(
        f"there is no task '{name}' in workflow '{run.workflow}'",
        hint=f"did you mean '{close[0]}'?" if close else f"flow show {run.name} lists its tasks",
    )
