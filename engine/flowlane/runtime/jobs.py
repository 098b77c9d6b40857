"""What executors are handed: the jobs of elements whose turn has come, with all that they need to run.

Of a plain node of the run's program everything is in columns; of an element of a map in the `Cast` of that map; of what came
into being otherwise in `Growth`. This is the way out of nearly every task of every run, so the first two are spelt out in place.
Belongs to the loop's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from flowlane.runtime.casts import cores_of, holds_of
from flowlane.runtime.context import ATTEMPT, TASK
from flowlane.runtime.dispatcher import ATTEMPT_BITS, ELEMENT_BITS, TOKEN_SHIFT, make_ref
from flowlane.runtime.ports import NOTED, Job, Report, RunInfo
from flowlane.runtime.values import fill_arguments, fill_arguments_at

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Collection, Mapping, Sequence

    from flowlane.core.scheduler import Scheduler
    from flowlane.program import Program
    from flowlane.runtime.casts import Cast
    from flowlane.runtime.growth import Growth
    from flowlane.runtime.places import Places
    from flowlane.runtime.roster import Roster

__all__ = ["Jobs"]

_ELEMENT_MASK: Final = (1 << ELEMENT_BITS) - 1


class Run(Protocol):
    """The runner, as far as the making of jobs knows it."""

    program: Program
    scheduler: Scheduler
    growth: Growth
    roster: Roster
    info: RunInfo

    def refuse(self, element: int, attempt: int, error: Exception) -> None: ...

    def note(self, element: int, attempt: int, report: Report) -> None: ...


class Jobs:
    """Makes them. `values` are the run's; `curious` those nodes of its program that are more than arguments and a value."""

    def __init__(
        self,
        run: Run,
        values: list[Any],
        places: Places,
        context: contextvars.Context,
        curious: Collection[int],
        token: int,
    ) -> None:
        self._run = run
        self._values = values
        self._places = places
        self._context = context
        self._curious = curious
        self._token = token
        self._size = run.program.plan.size  # elements below are nodes of the program
        self._needs = _needs_of(run.program)
        self._unwatched_told = False

    def of(self, lane: int, elements: Sequence[int]) -> list[Job]:
        """The jobs of launched elements of a lane. What has no arguments is refused, and has none."""
        program, values = self._run.program, self._values
        names, targets, arguments = program.names, program.targets, program.arguments
        size, curious = self._size, self._curious
        attempts, run, base = self._run.scheduler.attempt, self._run.info.id, self._token << TOKEN_SHIFT
        base_context = self._context if self._places.in_process[lane] else None
        homes = self._places.homes
        context: contextvars.Context | None = None
        jobs: list[Job] = []
        low = high = first = 0  # the elements of one block, which are of maps
        casts: tuple[Cast, ...] = ()
        for element in elements:
            attempt = attempts(element)
            if element >= size:
                if not low <= element < high:
                    block = self._run.scheduler.block(element)
                    if block.chain is None:
                        if (job := self._job(lane, element, attempt)) is not None:
                            jobs.append(job)
                        continue
                    low, high, first = block.start, block.start + block.count, block.first
                    casts = self._run.growth.casts(block)
                index, position = divmod(element - low, len(casts))
                if (job := self._item_job(lane, element, attempt, first + index, casts[position])) is not None:
                    jobs.append(job)
                continue
            if element in curious:
                if (job := self._job(lane, element, attempt)) is not None:
                    jobs.append(job)
                continue
            if homes is None:
                args, kwargs = fill_arguments(arguments[element], values)
            else:
                try:
                    args, kwargs = fill_arguments_at(homes[lane], arguments[element], values)
                except Exception as error:  # noqa: BLE001 - a value that is lost, or does not load here
                    self._run.refuse(element, attempt, error)
                    continue
            if base_context is not None:
                context = base_context.copy()
                context.run(TASK.set, names[element])
                if attempt > 1:
                    context.run(ATTEMPT.set, attempt)
            jobs.append(
                Job(
                    base | (element << ATTEMPT_BITS) | attempt,  # make_ref, without the call
                    targets[element],
                    args,
                    kwargs,
                    run,
                    names[element],
                    attempt,
                    None,
                    context,
                )
            )
        if program.once:
            for job in jobs:
                job.once = job.once or (job.ref >> ATTEMPT_BITS) & _ELEMENT_MASK in program.once
        if self._needs:
            for job in jobs:
                if needs := self._needs.get((job.ref >> ATTEMPT_BITS) & _ELEMENT_MASK):
                    job.cores, job.memory, job.holds = needs
                    if job.memory:
                        self._tell_unwatched(lane, job)
        if self._places.enforces[lane]:
            policy_of = self._run.scheduler.policy
            for job in jobs:
                job.timeout = policy_of((job.ref >> ATTEMPT_BITS) & _ELEMENT_MASK).timeout / 1e9 or None
        return jobs

    def _tell_unwatched(self, lane: int, job: Job) -> None:
        """Say once in a run that memory= holds nobody back there once it has begun, where that is so."""
        if not self._unwatched_told and not self._places.kills[lane]:
            self._unwatched_told = True
            where = self._places.names[lane]
            text = f"may take more than its memory=: {where} can stop nobody, and only starts no more than fit"
            self._run.note((job.ref >> ATTEMPT_BITS) & _ELEMENT_MASK, job.attempt, Report(job.ref, NOTED, note=text))

    def _item_job(self, lane: int, element: int, attempt: int, index: int, cast: Cast) -> Job | None:
        """The job of element `index` of a map; None when it has no arguments, which is told."""
        homes = self._places.homes
        try:
            args, kwargs = cast.arguments(element, index, homes[lane] if homes is not None else None)
        except Exception as error:  # noqa: BLE001 - a value that is lost, or does not load here
            self._run.refuse(element, attempt, error)
            return None
        name = cast.named(index)
        job = Job(
            (self._token << TOKEN_SHIFT) | (element << ATTEMPT_BITS) | attempt,  # make_ref, without the call
            cast.target,
            args,
            kwargs,
            self._run.info.id,
            name,
            attempt,
            None,
            self._context_for(name, attempt) if self._places.in_process[lane] else None,
            cast.once,
            cast.cores,
            cast.memory,
            cast.holds,
        )
        if cast.memory:
            self._tell_unwatched(lane, job)
        return job

    def _job(self, lane: int, element: int, attempt: int) -> Job | None:
        """The job of an element of a graph or a tree that is no plain node of the program, likewise."""
        growth, homes = self._run.growth, self._places.homes
        try:
            program, node = growth.declared(element)
            args, kwargs = growth.arguments(element, homes[lane] if homes is not None else None)
        except Exception as error:  # noqa: BLE001 - likewise
            self._run.refuse(element, attempt, error)
            return None
        name = self._run.roster.names[element]
        job = Job(
            make_ref(self._token, element, attempt),
            program.targets[node],
            args,
            kwargs,
            self._run.info.id,
            name,
            attempt,
            None,
            self._context_for(name, attempt) if self._places.in_process[lane] else None,
            node in program.once,
            cores_of(program, node),
            program.memory.get(node, 0),
            holds_of(program, node),
        )
        if job.memory:
            self._tell_unwatched(lane, job)
        return job

    def _context_for(self, name: str, attempt: int) -> contextvars.Context:
        context = self._context.copy()
        context.run(TASK.set, name)
        if attempt > 1:
            context.run(ATTEMPT.set, attempt)
        return context


def _needs_of(program: Program) -> dict[int, tuple[int, int, Mapping[str, int] | None]]:
    """node → (cores, memory, limits that it holds) of those that need others than (1, 0, none)."""
    nodes = {*program.plan.requirement, *program.memory}
    found = {node: (cores_of(program, node), program.memory.get(node, 0), holds_of(program, node)) for node in nodes}
    return {node: needs for node, needs in found.items() if needs != (1, 0, None)}
