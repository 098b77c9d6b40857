"""Going on with a run: what an earlier session finished, and still holds for the workflow as it is now.

Which of its own tasks are kept is decided here, before it begins (see ``flowlane.kept``); what comes into being later is asked
for then (``flowlane.recollection``). Pure, but for looking into the store.
"""

from __future__ import annotations

import inspect
import os
import platform
import socket
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.core.elements import NOBODY
from flowlane.core.states import REASONS, STATES, Reason, TaskState
from flowlane.declare.workflow import Bound, WorkflowDefinition, as_bound
from flowlane.description import Description, compare
from flowlane.errors import (
    ResultDamaged,
    RunLocked,
    TransportError,
    UnknownName,
    UsageError,
    WorkflowChanged,
)
from flowlane.kept import Then, keep
from flowlane.loader import load_for
from flowlane.recollection import Earlier, Recollection
from flowlane.runtime.beginning import Beginning
from flowlane.storage.asked import Asked, seal_asked, unseal_asked
from flowlane.storage.blob import pack, unpack
from flowlane.storage.port import AttemptRow, NewRun, NewSession, Owner
from flowlane.version import version

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from flowlane.declare.workflow import Workflow
    from flowlane.description import Changes
    from flowlane.program import Program
    from flowlane.recollection import Session, Site
    from flowlane.storage.port import ResultRef, Store, StoredRun

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
_EXPANDED: Final = STATES.index(TaskState.EXPANDED)
_BECAME_MORE: Final = REASONS.index(Reason.BECAME_MORE)


class Resumption(NamedTuple):
    """How a run goes on.

    beginning  for the runner
    adopted    (element now, where its row is), for the store
    going_on   rows of tasks that become others again, for the store
    changes    what is different about the workflow
    again      names of tasks that had succeeded and run again all the same
    memory     that of `beginning`, or None; it wants to know where the run is kept
    """

    beginning: Beginning
    adopted: list[tuple[int, ResultRef]]
    going_on: list[AttemptRow]
    changes: Changes
    again: list[str]
    memory: Recollection | None


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
        rows=[*going_on.going_on, *[_unknown_row(element, at) for element in going_on.beginning.unknown]]
        if going_on is not None
        else (),
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
    changes = compare(then, now)
    if changes and not accept_changes:
        raise WorkflowChanged(
            f"workflow '{run.workflow}' is not what run {run.name} was started with: {'; '.join(changes.lines())}",
            hint="--accept-changes (accept_changes=True) runs what is affected again, and keeps the rest",
        )
    plan, names = program.plan, now.names
    earlier = Earlier(store)
    session = earlier.latest(run)
    number = {name: node for node, name in enumerate(names)}
    touched = _check_names(run, session, number, program, restart, rerun)
    before = {name: element for element, name in enumerate(then.names)}
    found: dict[int, Then] = {}
    sites: dict[int, list[Site]] = {}
    for node, name in enumerate(names):
        row = session.row(before[name]) if name in before else None
        if row is None:
            continue
        if row.result is not None:  # as nearly all
            found[node] = Then(row)
            continue
        at = sites[node] = earlier.sites(session, row.element)
        found[node] = earlier.then(at, node in plan.maps or node in plan.grafts)
    kept = keep(
        program,
        found,
        store,
        affected={number[name] for name in (*changes.affected, *restart) if name in number},
        touched={number[name] for name in touched if name in number},
        rerun={number[name] for name in rerun if name in number},
    )
    if kept.twice:
        name = names[kept.twice[0]]
        raise UsageError(
            f"task '{name}' has succeeded, is at_most_once, and would run a second time",
            hint=f"if it may, say so: --rerun {name} (rerun=[{name!r}])",
        )
    states = {node: STATES[row.state] for node, row in kept.rows.items()}
    memory: Recollection | None = None
    if kept.expand:
        memory = Recollection(
            earlier,
            {node: sites[node] for node in kept.expand},
            restart=frozenset(restart),
            touched=touched,
            rerun=frozenset(rerun),
            made={node: row.ended for node, row in kept.rows.items()},
        )
    return Resumption(
        Beginning(
            restored=[node for node, state in states.items() if state is TaskState.SUCCEEDED],
            cached=[node for node, state in states.items() if state is TaskState.CACHED],
            skipped=[node for node, state in states.items() if state is TaskState.SKIPPED],
            unknown=kept.unknown,
            chosen=kept.chosen,
            values=kept.values,
            memory=memory,
        ),
        [(node, session.ref(row)) for node, row in kept.rows.items()],
        [_going_on_row(node, sites[node][0]) for node in kept.expand],
        changes,
        [names[node] for node in kept.again],
        memory,
    )


def _going_on_row(node: int, site: Site) -> AttemptRow:
    """What a session begins with of a task that becomes others again: where they are that it had become.

    Told at once, like what is unknown: a process that dies in between must not leave a session that does not know of them.
    """
    row = site.row
    return AttemptRow(node, 0, _EXPANDED, _BECAME_MORE, row.ready, row.started, 0, (), None, site.ref)


def _check_names(
    run: StoredRun,
    session: Session,
    number: Mapping[str, int],
    program: Program,
    restart: Collection[str],
    rerun: Collection[str],
) -> frozenset[str]:
    """Raise unless names mean tasks, those of `rerun` such that must not run twice. The names of what they are parts of."""
    parts: set[str] = set()
    for name in (*restart, *rerun):
        if name in number:
            continue
        try:
            element = session.census.find(name)
        except LookupError:
            raise _unknown(name, number, run) from None
        while (element := session.census.place(element).owner) != NOBODY:
            parts.add(session.census.name(element))
    for name in rerun:
        if name in number and number[name] not in program.once:
            raise UsageError(
                f"task '{name}' is not at_most_once", hint=f"to run it again: --from {name} (restart=[{name!r}])"
            )
    return frozenset(parts)


def _unknown(name: str, number: Mapping[str, Any], run: StoredRun) -> UnknownName:
    import difflib

    close = difflib.get_close_matches(name, number, 1)
    if "*" in name or "?" in name:
        return UnknownName(
            f"there is no task '{name}' in workflow '{run.workflow}': tasks that run again are named one by one, not by patterns",
            hint=f"`flow show {run.name} --all` lists their names, elements of maps as well",
        )
    return UnknownName(
        f"there is no task '{name}' in workflow '{run.workflow}'",
        hint=f"did you mean '{close[0]}'?" if close else f"flow show {run.name} lists its tasks",
    )
