"""The executors of one run, by the numbers that its scheduler knows their lanes by, and the numbers of its limits.

The first are those of its program. Work that comes into being later may bring others: they get the next numbers, and `fitted`
rewrites a plan that was compiled by itself to the numbers of the run. Belongs to the loop's thread.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowlane.core.plan import Plan
    from flowlane.core.scheduler import Scheduler
    from flowlane.program import Program
    from flowlane.runtime.dispatcher import Dispatcher
    from flowlane.runtime.ports import Executor

__all__ = ["Places"]


class Places:
    """By lane number: what a run has to know of the executor there.

    names       what it is called
    in_process  its jobs run in this process, in contexts of their own
    enforces    it keeps an attempt's timeout by itself, and kills
    kills       it stops an attempt that takes more than its memory
    deaf        it cannot stop an attempt that runs
    homes       the executors themselves, once values of the run may live in them; else None
    """

    def __init__(self, program: Program, dispatcher: Dispatcher, *, remote: bool) -> None:
        self._dispatcher = dispatcher
        self.names: list[str] = []
        self.in_process: list[bool] = []
        self.enforces: list[bool] = []
        self.kills: list[bool] = []
        self.deaf: list[bool] = []
        self.homes: list[Executor | None] | None = None
        self.remote = remote  # values may be elsewhere than here
        self.far = False  # and take their time to come
        self.pickling: frozenset[str] = frozenset()
        self.slots: dict[str, int] = {}
        self.limits = {spec.name: number for number, spec in enumerate(program.limits)}
        for name in program.lanes:
            self._add(name)

    def _add(self, name: str) -> None:
        can = self._dispatcher.registry.capabilities(name)
        self.names.append(name)
        self.in_process.append(not can.pickles)
        self.enforces.append(can.hard_kill)
        self.kills.append(can.limits_memory)
        self.deaf.append(not can.interruptible)
        self.remote = self.remote or can.remote_values
        self.far = self.far or can.far_values
        if can.pickles:
            self.pickling |= {name}
        self.slots[name] = self._dispatcher.slots(name)

    def open(self) -> None:
        """The executors are open."""
        if self.remote:
            self.homes = [self._dispatcher.opened(name) for name in self.names]

    def stretched(self) -> frozenset[str]:
        """The lanes whose executors take more jobs than they have slots."""
        return frozenset([name for name in self.names if self._dispatcher.is_stretched(name)])

    def fitted(self, made: Program, scheduler: Scheduler, token: int) -> Plan:
        """The plan of an added program, whose executors are open, with the run's numbers for lanes and limits."""
        lanes: list[int] = []
        for name in made.lanes:
            if name not in self.names:
                scheduler.add_lane(self._dispatcher.lane(name))
                self._add(name)
                self.open()
            lanes.append(self.names.index(name))
        numbers: list[int] = []
        for spec in made.limits:
            if spec.name not in self.limits:
                self.limits[spec.name] = scheduler.add_limit(self._dispatcher.limit(spec, token))
            numbers.append(self.limits[spec.name])
        plan = made.plan
        if lanes != list(range(len(lanes))):
            plan = replace(plan, lane=tuple([lanes[lane] for lane in plan.lane]))
        if numbers != list(range(len(numbers))):
            requirements = [
                each._replace(limits=tuple([(numbers[limit], weight) for limit, weight in each.limits]))
                for each in plan.requirements
            ]
            plan = replace(plan, requirements=tuple(requirements))
        return plan
