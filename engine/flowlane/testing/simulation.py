"""A world of virtual time in which schedulers run: executors, timers and other runs, without a clock and without waiting.

The caller scripts what becomes of each attempt (`Attempt`); the simulation carries out the scheduler's commands against
that script. Time jumps from one piece of news to the next. All news of one instant for one run reach its scheduler as one
batch, in the order in which they came about.

Without a seed the world is ideal: jobs begin the moment they are launched and news arrive at once. With a seed it is
as unkind as the protocol allows: up to `latency` ns pass before a job begins and before any news arrives, batches are
split at random and the news of one instant are shuffled. What is promised still holds (a Started before the final event of
its attempt, exactly one final event for each). The same seed gives the same history.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import TYPE_CHECKING, Literal, TypeAlias, assert_never

from flowlane.core import messages as m
from flowlane.core.messages import NEVER
from flowlane.core.plan import Plan
from flowlane.core.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane.core.lanes import Lane
    from flowlane.core.limits import Limit
    from flowlane.core.states import RunState, TaskState

__all__ = ["Attempt", "Outcome", "SimulatedRun", "Simulation", "Stalled", "simulate"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What becomes of one attempt. Times in ns.

    duration   from its beginning to its end, when nobody asks it to stop
    ends       how it ends then; "cached": it need not begin, because its value is there; "bereft": it cannot begin, because
               the values of `lost`, which it reads, are gone
    retryable  whether the retry policy covers the error, for "fails"
    poison     whether the crash is one that must not be repeated, for "crashes"
    begins     False: it ends before any worker began it (refused, or the worker died)
    told       whether its beginning is told at once, or only together with its end
    stops      time it takes to stop when asked; one that takes longer than the simulation's `grace` is abandoned
    """

    duration: int = 0
    ends: Literal["succeeds", "fails", "crashes", "cached", "bereft"] = "succeeds"
    retryable: bool = True
    begins: bool = True
    told: bool = True
    stops: int = 0
    poison: bool = False
    lost: tuple[int, ...] = ()


#: (element, attempt) → what becomes of it. Called once for each attempt, when it is launched.
Outcome: TypeAlias = "Callable[[int, int], Attempt]"


class Stalled(AssertionError):
    """Nothing is left to happen, yet a run has not finished: news were lost, or a slot was."""


@dataclass(slots=True, eq=False)
class _News:
    """An event on its way to a scheduler. `tie` orders the news of one instant."""

    at: int
    tie: float
    run: SimulatedRun
    event: m.Event
    revoked: bool = False


@dataclass(slots=True)
class _Flight:
    """An attempt in the hands of the executor: when it began and will be over there, and how its scheduler hears of it."""

    attempt: int
    begun: int
    over: int
    script: Attempt
    told: _News | None
    final: _News


class SimulatedRun:
    """One run of a simulation, and its history so far. Made by ``Simulation.start``.

    scheduler  ask it for states, counts, causes
    lanes      those it was started with
    history    all transitions, in order
    ended      when the run finished, NEVER before
    """

    __slots__ = (
        "_flights",
        "_graft",
        "_outcome",
        "_pulled",
        "_size",
        "_timer",
        "_world",
        "ended",
        "history",
        "lanes",
        "scheduler",
    )

    def __init__(
        self,
        world: Simulation,
        scheduler: Scheduler,
        lanes: Sequence[Lane],
        outcome: Outcome,
        size: Callable[[int], int],
        graft: Callable[[int], Plan],
    ) -> None:
        self.scheduler = scheduler
        self.lanes = lanes
        self.history: list[m.Transition] = []
        self.ended = NEVER
        self._world = world
        self._outcome = outcome
        self._flights: dict[int, _Flight] = {}
        self._timer: _News | None = None
        self._size = size
        self._graft = graft
        self._pulled: dict[int, int] = {}

    @property
    def state(self) -> RunState | None:
        """How the run ended; None while it has not."""
        return self.scheduler.finished

    def states(self) -> list[TaskState]:
        """The state of each element."""
        return [self.scheduler.state(element) for element in range(self.scheduler.size)]

    def send(self, event: m.Event, at: int) -> None:
        """Let `event` (a request, or a stray) reach this run's scheduler at `at` ns, or now when that is past."""
        self._world.post(self, event, at)

    def take(self, events: Sequence[m.Event]) -> m.Step:
        """Hand `events` to the scheduler at the world's present and carry out what it commands. Simulation calls it."""
        step = self.scheduler.handle(events, self._world.now)
        self.history += step.transitions
        for event in events:
            if isinstance(
                event, m.Succeeded | m.Cached | m.Failed | m.Crashed | m.Interrupted | m.Abandoned | m.ResultLost
            ):
                flight = self._flights.get(event.element)
                if flight is not None and flight.final.event is event:
                    del self._flights[event.element]
        for command in step.commands:
            self._carry_out(command)
        return step

    def _carry_out(self, command: m.Command) -> None:
        world = self._world
        match command:
            case m.Launch(lane, elements):
                for element in elements:
                    self._launch(lane, element)
            case m.Interrupt(_, elements, _):
                for element in elements:
                    self._interrupt(element)
            case m.SetTimer(at):
                if self._timer is not None:
                    self._timer.revoked = True
                self._timer = world.post(self, m.TimerFired(), at + world.delay())
            case m.Wake(tokens):
                for token in tokens:
                    world.post(world.runs[token], m.SlotAvailable(), world.now + world.delay())
            case m.Pull(element, count):
                size, told = self._size(element), self._pulled.get(element, 0)
                more = min(count, size - told)
                self._pulled[element] = told + more
                world.post(self, m.Expanded(element, more, told + more < size), world.now + world.delay())
            case m.Graft(element):
                attempt = self.scheduler.attempt(element)
                plan = self._graft(element)
                world.post(self, m.Grafted(element, attempt, plan), world.now + world.delay())
            case m.Gather(element, asked):
                if asked:  # every condition holds
                    world.post(self, m.Gathered(element, -1), world.now + world.delay())
            case m.Release():
                pass
            case m.Finish():
                self.ended = world.now
            case _:
                assert_never(command)

    def _launch(self, lane: int, element: int) -> None:
        world, attempt = self._world, self.scheduler.attempt(element)
        script = self._outcome(element, attempt)
        begun = world.now + world.delay()
        told: _News | None = None
        event: m.Event
        if not script.begins or script.ends in ("cached", "bereft"):
            over = begun
            if script.ends == "cached":
                event = m.Cached(element, attempt, over)
            elif script.ends == "bereft":
                event = m.ResultLost(element, attempt, over, script.lost, script.retryable)
            elif script.ends == "crashes":
                event = m.Crashed(element, attempt, NEVER, over, not script.poison)
            else:
                event = m.Failed(element, attempt, NEVER, over, script.retryable)
            begun = NEVER
        else:
            over = begun + script.duration
            limit = self.scheduler.policy(element).timeout
            if limit and script.duration > limit and self.lanes[lane].enforces_timeouts:
                over = begun + limit
                event = m.Interrupted(element, attempt, begun, over)
            elif script.ends == "succeeds":
                event = m.Succeeded(element, attempt, begun, over)
            elif script.ends == "fails":
                event = m.Failed(element, attempt, begun, over, script.retryable)
            else:
                event = m.Crashed(element, attempt, begun, over, not script.poison)
            if script.told:
                told = world.post(self, m.Started(element, attempt, begun), begun + world.delay())
        final = world.post(self, event, over + world.delay(), after=told)
        self._flights[element] = _Flight(attempt, begun, over, script, told, final)

    def _interrupt(self, element: int) -> None:
        world, flight = self._world, self._flights[element]
        now = world.now
        kind: type[m.Interrupted | m.Abandoned]
        if flight.begun == NEVER or now < flight.begun:  # stopped before it began
            if flight.told is not None:
                flight.told.revoked = True
            flight.told = None
            over, kind, begun = now, m.Interrupted, NEVER
        else:
            over = now + min(flight.script.stops, world.grace)
            kind = m.Interrupted if flight.script.stops <= world.grace else m.Abandoned
            begun = flight.begun
        event = kind(element, flight.attempt, begun, over)
        if flight.over > over:  # else it ends of itself before it could stop, and that is what will be told
            flight.final.revoked = True
            flight.over = over
            flight.final = world.post(self, event, over + world.delay(), after=flight.told)


class Simulation:
    """Runs that share lanes in one virtual time. Not thread-safe.

    seed     None for the ideal world, else the seed of an unkind one
    latency  the most ns by which a beginning or a piece of news is late (with a seed)
    grace    ns after which an attempt that was asked to stop and has not is abandoned
    on_step  called after each step with (run, events, step, now), for checks of the caller's; it may ``run.send``
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        latency: int = 0,
        grace: int = 10**9,
        on_step: Callable[[SimulatedRun, Sequence[m.Event], m.Step, int], None] | None = None,
    ) -> None:
        self.now = 0
        self.grace = grace
        self.runs: list[SimulatedRun] = []
        self._random = None if seed is None else Random(seed)
        self._latency = latency
        self._on_step = on_step
        self._news: list[tuple[int, float, int, _News]] = []  # the number keeps equal ties in order of posting
        self._posted = 0

    def start(
        self,
        plan: Plan,
        lanes: Sequence[Lane],
        outcome: Outcome,
        *,
        at: int = 0,
        event: m.RunStarted | None = None,
        limits: Sequence[Limit] = (),
        size: Callable[[int], int] = lambda _: 0,
        graft: Callable[[int], Plan] = lambda _: Plan.build([]),
    ) -> SimulatedRun:
        """Add a run that begins at `at` ns. Its lanes may be shared with runs of this simulation, and with no others.

        `event` is what it begins with, when an earlier session of it has finished something; `size` says how many items the
        source of a mapped element has, and `graft` which graph an element becomes.

        Backoffs with jitter draw from the seed; without one they take their full length.
        """
        jitter = None if self._random is None else self._random.random
        scheduler = Scheduler(plan, lanes, token=len(self.runs), jitter=jitter, limits=limits)
        run = SimulatedRun(self, scheduler, lanes, outcome, size, graft)
        self.runs.append(run)
        run.send(m.RunStarted() if event is None else event, at)
        return run

    def run(self) -> None:
        """Let everything happen.

        Raises Stalled when nothing is left to happen and a run has not finished, and InvalidTransition when a `send`
        was impossible.
        """
        while batch := self._next_batch():
            for run, events in batch.items():
                step = run.take(events)
                if self._on_step is not None:
                    self._on_step(run, events, step, self.now)
        for run in self.runs:
            if run.state is None:
                raise Stalled(f"run {run.scheduler.token} at {self.now} ns: {run.scheduler.counts()}")

    def post(self, run: SimulatedRun, event: m.Event, at: int, *, after: _News | None = None) -> _News:
        """Put `event` on its way to `run`, to arrive at `at`, not before the present and not before `after`."""
        at = max(at, self.now)
        tie = 0.0 if self._random is None else self._random.random()
        if after is not None:
            at, tie = max(at, after.at), max(tie, after.tie)
        self._posted += 1
        news = _News(at, tie, run, event)
        heappush(self._news, (at, tie, self._posted, news))
        return news

    def stretch(self, lane: Lane, extra: int) -> None:
        """Stretch a lane of this simulation, as an engine does for an executor with an appetite."""
        for token in lane.stretch(extra):
            self.post(self.runs[token], m.SlotAvailable(), self.now + self.delay())

    def delay(self) -> int:
        """A draw of how late something is."""
        return 0 if self._random is None else self._random.randint(0, self._latency)

    def _next_batch(self) -> dict[SimulatedRun, list[m.Event]]:
        """The news of the next instant, by run; with a seed sometimes only the first of them."""
        batch: dict[SimulatedRun, list[m.Event]] = {}
        while self._news:
            if batch and (self._news[0][0] != self.now or (self._random is not None and self._random.random() < 0.3)):
                break
            news = heappop(self._news)[3]
            if not news.revoked:
                self.now = news.at
                batch.setdefault(news.run, []).append(news.event)
        return batch


def _succeed_at_once(element: int, attempt: int) -> Attempt:  # noqa: ARG001  # the signature is the protocol
    return Attempt()


def simulate(
    plan: Plan,
    lanes: Sequence[Lane],
    outcome: Outcome | None = None,
    *,
    seed: int | None = None,
    latency: int = 0,
) -> SimulatedRun:
    """Run `plan` on `lanes` in virtual time until it has finished, and return the run with its history.

    `outcome` scripts the attempts; without it each succeeds at once. See Simulation for `seed` and `latency`.
    """
    world = Simulation(seed=seed, latency=latency)
    run = world.start(plan, lanes, outcome if outcome is not None else _succeed_at_once)
    world.run()
    return run
