"""Lanes and limits whose slots follow what their attempts tell, for one engine: what stands around the controller in the core.

Who owns what. The controller (`core.adaptive`) decides, from latencies, errors and the lateness of the loop; here it is fed, and
its decisions are carried out by stretching the slots, which nobody else does then: a lane whose executor measures an appetite of
its own cannot adapt. A decision is told to the runs that use the slots, and changes what may begin; it stops nobody.

Runs tell of attempts that have ended *before* their slots go back, so that `in_use` counts them; the dispatcher says when jobs
are handed out. From then on, and while any are out, a timer looks how late the loop is. Everything on the loop's thread.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from flowlane.core.adaptive import Adaptive

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from flowlane.core.adaptive import Decision
    from flowlane.core.lanes import Slots
    from flowlane.program import SlotBounds

__all__ = ["Adapting", "Change", "Resized", "summed_up", "who"]

#: Seconds between looks at how late the loop is: ten in a window, and no load.
_BEAT: Final = 0.05

Kind: TypeAlias = Literal["lane", "limit"]


class Change(NamedTuple):
    """A change of slots for people: `what` is "asyncio" or "limit api"."""

    what: str
    before: int
    slots: int
    note: str

    @property
    def text(self) -> str:
        """``asyncio 64 → 22 slots: latency 2.1x of usual``."""
        return f"{self.what} {self.before} → {self.slots} slots: {self.note}"


class Resized(NamedTuple):
    """A lane or a limit has other slots from now on, and why."""

    kind: Kind
    name: str
    decision: Decision

    @property
    def change(self) -> Change:
        """The same for people."""
        decision = self.decision
        return Change(who(self.kind, self.name), decision.before, decision.slots, decision.reason)


def who(kind: Kind, name: str) -> str:
    """How people know it."""
    return name if kind == "lane" else f"limit {name}"


class _Adapted:
    """`owner` is the token of the only run that it is for; 0: for all. `filling`: samples to come of attempts that may have
    begun while the slots were being filled for the first time: they found no queue, and say nothing of what is usual with one.
    """

    __slots__ = ("controller", "filling", "kind", "owner", "slots")

    def __init__(self, kind: Kind, slots: Slots, controller: Adaptive, owner: int) -> None:
        self.kind: Kind = kind
        self.slots = slots
        self.controller = controller
        self.owner = owner
        self.filling = controller.slots


class Adapting:
    """The adaptive slots of an engine.

    wake  takes the tokens of runs for which slots were set aside
    tell  takes a change, and the token of the run that alone is concerned, or 0
    """

    def __init__(self, wake: Callable[[Iterable[int]], object], tell: Callable[[Resized, int], object]) -> None:
        self.any = False  #: whether there are any: all there is to ask in an engine without
        self._wake = wake
        self._tell = tell
        self._adapted: dict[Slots, _Adapted] = {}
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def add(self, kind: Kind, slots: Slots, bounds: SlotBounds, owner: int = 0) -> None:
        """Adapt `slots`, which has as many as it may ever have, from now on."""
        controller = Adaptive(bounds.lowest, bounds.highest, bounds.start)
        slots.stretch(controller.slots - slots.slots)
        self._adapted[slots] = _Adapted(kind, slots, controller, owner)
        self.any = True

    def drop(self, owner: int) -> None:
        """A run has ended: what was for it alone is nobody's."""
        for slots in [slots for slots, each in self._adapted.items() if each.owner == owner]:
            del self._adapted[slots]
        self.any = bool(self._adapted)

    # ── what it is fed with ───────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Jobs are handed out."""
        if self._timer is None:
            self._beat_in()

    def sample(self, held: Iterable[Slots], latency: int, ok: bool) -> None:
        """An attempt that has `held` these has ended after `latency` ns. Follow it by `decide`, once for all that have."""
        for slots in held:
            adapted = self._adapted.get(slots)
            if adapted is None:
                continue
            if adapted.filling and ok:
                adapted.filling -= 1
                continue
            adapted.controller.sample(latency, ok, slots.in_use)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat_in(self) -> None:
        self._due = monotonic_ns() + round(_BEAT * 1e9)
        self._timer = self._loop.call_later(_BEAT, self._beat)

    def _beat(self) -> None:
        self._timer = None
        late = max(0, monotonic_ns() - self._due)
        busy = [each for each in self._adapted.values() if each.slots.in_use]
        for each in busy:
            each.controller.lag(late)
        self.decide()
        if busy:
            self._beat_in()

    # ── what follows ──────────────────────────────────────────────────────────────────────────────────────────────

    def decide(self) -> None:
        """Let controllers whose window is full say what they want, and do it."""
        at = monotonic_ns()
        for each in list(self._adapted.values()):
            decision = each.controller.decide(at)
            if decision is not None:
                slots = each.slots
                self._wake(slots.stretch(decision.slots - slots.slots))
                self._tell(Resized(each.kind, slots.name, decision), each.owner)


def summed_up(changes: Iterable[Change]) -> list[str]:
    """A sentence for each lane and limit among `changes`, which are in order: from where to where, and why the latest."""
    by_name: dict[str, list[Change]] = {}
    for change in changes:
        by_name.setdefault(change.what, []).append(change)
    return [
        own[-1]._replace(before=own[0].before).text + (f" (the latest of {len(own)} changes)" if len(own) > 1 else "")
        for own in by_name.values()
    ]
