"""The dispatcher: an engine's open executors, its lanes, and the one inbox through which every report comes back.

Executors deliver from any thread; everything else here belongs to the loop's thread. The hand-over needs no lock: the
deliverer *appends, then tests* the wake flag; the loop *clears it, then drains*. So a report is either seen by the drain
under way or finds the flag clear and schedules the next one, and any number of reports share one wake-up of the loop.
A delivery from a plain callback of the loop is drained at once, which saves a turn of the loop for every link of a chain;
one from inside a step (an executor that answers within ``submit``) or from inside somebody's Task never is.

An executor with an ``appetite`` has its lane stretched to it, asked after each batch of reports and each submit. Lanes and limits
that adapt are stretched by `adapting`; no lane has both.

A job is known by one int, ``run token · element · attempt``, so that a report finds its way without any table.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from flowlane.core.lanes import Lane
from flowlane.core.limits import Limit
from flowlane.core.rate import Rate
from flowlane.errors import EngineClosed, FlowError, SettingsError
from flowlane.runtime.adapting import Adapting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flowlane.program import LimitSpec, SlotBounds
    from flowlane.runtime.adapting import Resized
    from flowlane.runtime.ports import Executor, Job, Report
    from flowlane.runtime.registry import Registry

__all__ = ["ATTEMPT_BITS", "ELEMENT_BITS", "TOKEN_SHIFT", "Dispatcher", "Recipient", "make_ref"]

ATTEMPT_BITS: Final = 8  # attempts are at most 255
ELEMENT_BITS: Final = 40
TOKEN_SHIFT: Final = ATTEMPT_BITS + ELEMENT_BITS

# Seconds beyond the grace period that an executor may take to close: what `processes` needs at most, twice.
_CLOSING: Final = 3.0


def make_ref(token: int, element: int, attempt: int) -> int:
    """The number of a job: unique within an engine, because tokens are never reused."""
    return (token << TOKEN_SHIFT) | (element << ATTEMPT_BITS) | attempt


class Recipient(Protocol):
    """A run, as far as the dispatcher knows it."""

    def receive(self, reports: Sequence[Report]) -> None: ...

    def wake(self) -> None: ...

    def resized(self, change: Resized) -> None: ...


_NONE_ADAPTS: Final[Mapping[str, SlotBounds]] = {}


class Dispatcher:
    """See the module's text. `slots` overrides executors' default slots by name; `grace` is in seconds.

    adaptive  the executors whose slots adapt, by name
    """

    def __init__(
        self,
        registry: Registry,
        slots: Mapping[str, int],
        grace: float,
        adaptive: Mapping[str, SlotBounds] = _NONE_ADAPTS,
    ) -> None:
        self.registry = registry
        self.grace = grace
        self.late = 0  # reports for runs that have ended
        self.adapting = Adapting(self.wake, self._resized)
        self._slots = dict(slots)
        self._adaptive = dict(adaptive)
        self._lanes: dict[str, Lane] = {}
        self._limits: dict[str, tuple[LimitSpec, Limit]] = {}
        self._hungry: list[tuple[Any, Lane]] = []  # open executors that have an appetite, and their lanes
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._open: dict[str, Executor] = {}
        self._runs: dict[int, Recipient] = {}
        self._tokens = 0
        self._inbox: deque[Report] = deque()
        self._woken = False
        self._draining = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop
        self._thread = 0

    def attach(self) -> None:
        """Belong to the running loop. Called once, on its thread."""
        self._loop = asyncio.get_running_loop()
        self.adapting.attach(self._loop)
        self._thread = threading.get_ident()

    # ── executors and lanes ───────────────────────────────────────────────────────────────────────────────────────

    def lane(self, name: str) -> Lane:
        """The lane of executor `name`, made on first use."""
        lane = self._lanes.get(name)
        if lane is None:
            capabilities = self.registry.capabilities(name)
            bounds = self._adaptive.get(name)
            slots = bounds.highest if bounds is not None else self._slots.get(name, capabilities.default_slots)
            if slots < 1:
                raise SettingsError(f"slots of '{name}' must be at least 1, not {slots}")
            lane = self._lanes[name] = Lane(name, slots, enforces_timeouts=capabilities.hard_kill)
            if bounds is not None:
                self.adapting.add("lane", lane, bounds)
        return lane

    def slots(self, name: str) -> int:
        """The slots that people are told of: without what an appetite adds; as many as there are now, where they adapt."""
        lane = self.lane(name)
        return lane.capacity if name in self._adaptive else lane.slots

    def limit(self, spec: LimitSpec, run: int) -> Limit:
        """The limit that `spec` describes: the one of that name where it is shared, else one for the run with this token.

        Raises SettingsError where the name is taken by a limit that is not the same.
        """
        if not spec.shared:
            return self._made(spec, run)
        known = self._limits.get(spec.name)
        if known is None:
            known = self._limits[spec.name] = (spec, self._made(spec, 0))
        if known[0] != spec:
            raise SettingsError(
                f"limit '{spec.name}' is {_told(known[0])} in this engine already, and {_told(spec)} here",
                hint="say it once, in Engine(limits=[...]), or give the two different names",
            )
        return known[1]

    def _made(self, spec: LimitSpec, owner: int) -> Limit:
        limit = Limit(spec.name, spec.slots, rate=Rate(*spec.rate) if spec.rate is not None else None)
        if spec.adaptive is not None:
            self.adapting.add("limit", limit, spec.adaptive, owner)
        return limit

    def is_open(self, names: Iterable[str]) -> bool:
        return all(name in self._open for name in names)

    async def open(self, names: Iterable[str]) -> None:
        """Open executors that are not open yet, all at once. Raises what an executor's ``open`` raises."""
        waiting: list[asyncio.Task[None]] = []
        for name in names:
            if name in self._open:
                continue
            task = self._opening.get(name)
            if task is None:
                task = self._opening[name] = self._loop.create_task(self._open_one(name))
                task.add_done_callback(partial(self._opened, name))
            waiting.append(task)
        if waiting:  # another run may wait for them as well, so they are never cancelled from here
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()

    async def _open_one(self, name: str) -> None:
        executor = self.registry.get(name)
        await executor.open(self.deliver)
        self._open[name] = executor
        if hasattr(executor, "appetite") and name not in self._adaptive:
            self._hungry.append((executor, self.lane(name)))
            self._feed()

    def opened(self, name: str) -> Executor | None:
        """The executor `name`, if it is open."""
        return self._open.get(name)

    def is_stretched(self, name: str) -> bool:
        """Whether the lane of executor `name` may grant more than its slots."""
        return any(lane.name == name for _, lane in self._hungry)

    def _feed(self) -> None:
        """Let lanes grant what their executors would like to hold just now."""
        for hungry in tuple(self._hungry):
            executor, lane = hungry
            try:
                extra = max(0, int(executor.appetite) - lane.slots)
            except Exception:  # noqa: BLE001 - a plug-in's property: its lane has its slots, then, and is not asked again
                self._hungry.remove(hungry)
                extra = 0
            if extra != lane.extra:
                self.wake(lane.stretch(extra))

    def _opened(self, name: str, task: asyncio.Task[None]) -> None:
        del self._opening[name]
        if not task.cancelled():
            task.exception()  # the run that waits for it tells it; when there is none left, nobody misses it

    # ── runs ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def enlist(self, run: Recipient) -> int:
        """Give a run its token."""
        if self._closed:
            raise EngineClosed("the engine is closed", hint="start runs inside its `with` block")
        self._tokens += 1
        self._runs[self._tokens] = run
        return self._tokens

    def dismiss(self, token: int) -> None:
        self._runs.pop(token, None)
        if self.adapting.any:
            self.adapting.drop(token)

    def _resized(self, change: Resized, owner: int) -> None:
        for token, run in list(self._runs.items()):
            if owner in (0, token):
                run.resized(change)

    def submit(self, name: str, jobs: Sequence[Job]) -> None:
        """Hand jobs to an open executor. What it delivers meanwhile is drained later: steps never nest."""
        outer, self._draining = self._draining, True
        try:
            self._open[name].submit(jobs)
        finally:
            self._draining = outer
        if self._hungry and not outer:  # else the drain under way will ask
            self._feed()
        if self.adapting.any:
            self.adapting.begin()

    def answer(self, reports: Sequence[Report]) -> None:
        """Take reports of jobs that never got to their executor, from inside a step; see `submit`."""
        outer, self._draining = self._draining, True
        try:
            self.deliver(reports)
        finally:
            self._draining = outer

    def interrupt(self, name: str, refs: Sequence[int], grace: float | None = None) -> None:
        """Ask an executor to stop jobs; see `submit`."""
        outer, self._draining = self._draining, True
        try:
            self._open[name].interrupt(refs, self.grace if grace is None else grace)
        finally:
            self._draining = outer

    def wake(self, tokens: Iterable[int]) -> None:
        """Tell runs that a slot was set aside for them, one turn of the loop later: steps never nest."""
        for token in tokens:
            run = self._runs.get(token)
            if run is not None:
                self._loop.call_soon(run.wake)

    # ── the inbox ─────────────────────────────────────────────────────────────────────────────────────────────────

    def deliver(self, reports: Sequence[Report]) -> None:
        """Take reports. Any thread; never blocks or raises."""
        self._inbox.extend(reports)
        if self._woken:
            return
        if threading.get_ident() != self._thread:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the loop is closed: nobody waits for this report any more
                pass
        elif self._draining or asyncio.current_task(self._loop) is not None:
            self._woken = True
            self._loop.call_soon(self._drain)
        else:
            self._drain()

    def _drain(self) -> None:
        self._woken = False
        inbox = self._inbox
        reports = [inbox.popleft() for _ in range(len(inbox))]
        if not reports:
            return
        self._draining = True
        try:
            token = reports[0].ref >> TOKEN_SHIFT
            for report in reports:
                if report.ref >> TOKEN_SHIFT != token:
                    break
            else:
                self._pass_on(token, reports)
                return
            by_run: dict[int, list[Report]] = {}
            for report in reports:
                by_run.setdefault(report.ref >> TOKEN_SHIFT, []).append(report)
            for token, own in by_run.items():
                self._pass_on(token, own)
        finally:
            self._draining = False
            if self._hungry:
                self._feed()

    def _pass_on(self, token: int, reports: list[Report]) -> None:
        run = self._runs.get(token)
        if run is None:
            self.late += len(reports)
        else:
            run.receive(reports)

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def close(self) -> None:
        """Close all executors at once, each within the grace period and a little. Idempotent."""
        self._closed = True
        self.adapting.stop()
        opening = list(self._opening.values())
        for task in opening:  # for runs that were cancelled meanwhile; one that waits for a dead host may never be done
            task.cancel()
        if opening:
            await asyncio.wait(opening, timeout=self.grace)
        executors, self._open = self._open, {}
        self._hungry.clear()
        closing = {self._loop.create_task(executor.close(self.grace)): name for name, executor in executors.items()}
        if closing:
            await asyncio.wait(closing, timeout=self.grace + _CLOSING)
        for task, name in closing.items():
            if not task.done():
                task.cancel()
                raise FlowError(f"executor '{name}' has not closed {self.grace + _CLOSING:g} s after being told to")
            task.result()  # a plug-in that fails to close is told to whoever closes the engine


def _told(spec: LimitSpec) -> str:
    words = [f"{spec.slots} at a time"] if spec.slots is not None else []
    if spec.adaptive is not None:
        words = [f"{spec.adaptive.lowest} to {spec.adaptive.highest} at a time, from {spec.adaptive.start} on"]
    if spec.rate is not None:
        count, period, burst = spec.rate
        words.append(f"{count} every {period / 1e9:g} s (burst {burst})")
    return " and ".join(words)
