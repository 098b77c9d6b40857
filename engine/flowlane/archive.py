"""An engine's store, and how runs come to be kept in it: begun, gone on with, and let go of when they could not be started.

Made by an Engine that has a store; one without never imports this, nor what it needs (descriptions, fingerprints, blobs). `begin`
and `go_on` may be called from any thread and block for as long as the store takes.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, TypedDict, Unpack

from flowlane.core.states import RunState
from flowlane.description import Description
from flowlane.errors import StoreError
from flowlane.handle import LiveRun
from flowlane.resume import locked, new_run, new_session, plan_resume
from flowlane.runtime.cache import Lookups
from flowlane.runtime.codes import Codes
from flowlane.runtime.keeper import Keeper
from flowlane.runtime.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane.program import Program
    from flowlane.runtime.beginning import Beginning
    from flowlane.runtime.journal import Journal
    from flowlane.runtime.runner import Runner
    from flowlane.storage.port import Lease, Store, StoredRun

__all__ = ["Archive", "ResumeOptions"]


class PlanOptions(TypedDict, total=False):
    """What decides which tasks run again; see ResumeOptions."""

    accept_changes: bool
    restart: Sequence[str]
    rerun: Sequence[str]


class ResumeOptions(PlanOptions, total=False):
    """How a run is gone on with.

    accept_changes  although the workflow has changed; what the change affects runs again
    restart         tasks that run again, with all that depends on them
    rerun           tasks with ``at_most_once`` that may run although nobody knows how their last attempt ended
    fork            as a new run that begins with what this one has; this one stays as it is
    take_over       taken from a process that owns it and does not answer
    """

    fork: bool
    take_over: bool


class Archive:
    """`store`, closed with the engine when it is its `own`. `call` calls a function on the loop's thread, from any other."""

    def __init__(self, store: Store, *, own: bool, call: Callable[..., object]) -> None:
        self.lookups = Lookups()
        self._store = store
        self._own = own
        self._call = call

    @property
    def store(self) -> Store:
        """The store, open. Raises StoreError."""
        self._store.open()
        return self._store

    def close(self) -> None:
        """Let go of everything, after the last run."""
        self.lookups.close()
        if self._own:
            self._store.close()

    def recorder(self, journal: Journal) -> Recorder:
        """What stores runs before `journal` tells of them."""
        return Recorder(journal)

    def begin(self, run: LiveRun, program: Program, origin: str) -> None:
        """Record that `run` starts. Raises StoreError."""
        store = self.store
        codes = Codes()
        session = new_session(Description.of(program, codes.of))
        self._keep(run, codes, store.begin(new_run(run.id, run.name, program, origin, store), session))

    def go_on(
        self,
        program: Program,
        stored: StoredRun,
        origin: str,
        *,
        keep_history: bool,
        fork: bool = False,
        take_over: bool = False,
        **how: Unpack[PlanOptions],
    ) -> tuple[LiveRun, Beginning]:
        """Record that `stored` goes on; the run, and what it begins with.

        Raises RunLocked, WorkflowChanged, UnknownName, StoreError.
        """
        store = self.store
        if not (fork or take_over) and (owner := store.owner(stored.id)) is not None:
            raise locked(stored, owner)
        codes = Codes()
        now = Description.of(program, codes.of)
        then = Description.read(store.session(stored.id, stored.session).graph)
        plan = plan_resume(program, now, then, stored, store, **how)
        if take_over and not fork:  # now that nothing stands in the way: its owner may be in the best of health
            store.seize(stored.id, time.time_ns())
            plan = plan_resume(program, now, then, stored, store, **how)  # from all that its owner ever did
        session = new_session(now, plan)
        if fork:
            run = LiveRun(program.workflow, keep_history=keep_history)
            lease = store.begin(new_run(run.id, run.name, program, origin, store, parent=stored.id), session)
        else:
            run = LiveRun(program.workflow, keep_history=keep_history, id=stored.id, name=stored.name)
            lease = store.reopen(stored.id, session, after=stored.session)
        keeper = self._keep(run, codes, lease)
        if plan.memory is not None:
            plan.memory.keep_in(keeper, lambda program: Description.of(program, codes.of))
        return run, plan.beginning

    def give_up(self, run: LiveRun) -> None:
        """`run` was recorded, and could not be started."""
        if run.keeper is not None:
            with contextlib.suppress(StoreError):
                self._store.close_run(
                    run.keeper.lease, RunState.INTERRUPTED, time.time_ns(), "the engine could not start it"
                )

    def _keep(self, run: LiveRun, codes: Codes, lease: Lease) -> Keeper:
        def soon(action: Callable[[Runner], object]) -> None:
            def act() -> None:
                if run.runner is not None:
                    action(run.runner)

            self._call(act)

        def asked(what: str) -> None:
            if what == "cancel":
                soon(lambda runner: runner.cancel())

        keeper = run.keeper = Keeper(
            self._store,
            lease,
            on_fault=lambda error: soon(lambda runner: runner.stop_for(error)),
            on_request=asked,
            on_caught_up=lambda: soon(lambda runner: runner.caught_up()),
            codes=codes,
            describe=lambda program: Description.of(program, codes.of),
            listener=run.record if run.steps is not None else None,
        )
        return keeper
