"""Limits: what tasks share by name, whatever lane they run on ("at most 4 on this database", "50 a second of that API").

A task claims a weight of each limit it names before it launches. A claim is a whole take (see lanes.py) and, where there is a
rate, a spending of it; both or neither. What it takes of the slots comes back when the attempt has ended; what it spent
of the rate is gone, unless the claim is undone at once because another limit of the same task said no.

Theory of the rate: time alone makes it ready, so nobody's giving back wakes those who wait for it. They set timers; and
were it first come, first served, the run whose timer fires first at every turn would have it for ever. So those whom a
rate refused stand in a line too, and only the first may claim: it waits for its time, then for its slots. Whoever claims
goes to the end, and the next is woken. A first that does not come within `PATIENCE_NS` of its time, because its run wants
something else by now, loses its place: the others have timers for that as well, and depend on nobody's leaving. And when
many in a row were refused although the rate was ready, turns are not kept to once: each of those who wait may lack a slot of
its lane that another has, who lacks the turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowlane.core.lanes import Slots
from flowlane.core.messages import NEVER
from flowlane.core.rate import Rate

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PATIENCE_NS", "Limit", "parse_rate"]

#: How late the first in line for a rate may be. Longer than a busy loop is late with a timer; as long as the rate lies
#: idle when a run asks for it and then goes away without leaving.
PATIENCE_NS: Final = 100_000_000

_made: Final = iter(range(1 << 62))
_VAIN: Final = 8  # claims, and two for each run in line, that may be refused in a row for their turn alone

_UNLIMITED: Final = 1 << 62
_UNITS: Final = {"ms": 1_000_000, "s": 1_000_000_000, "min": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}


class Limit(Slots):
    """`slots` that tasks use by weight at the same time, None for any number; and at most a `rate` of them begin."""

    __slots__ = ("_absent_at", "_line", "_vain", "_vain_before", "order", "rate")

    def __init__(self, name: str, slots: int | None, *, rate: Rate | None = None) -> None:
        super().__init__(name, _UNLIMITED if slots is None else slots)
        self.rate = rate
        #: Its place in the order in which all runs claim limits: those without a rate first, as they were made.
        self.order = (rate is not None, next(_made))
        self._vain = self._vain_before = 0  # claims in a row that were refused for their turn alone
        self._line: dict[int, int] = {}  # token → weight: whom the rate refused, in the order of turns
        self._absent_at = (
            NEVER  # when the first of them loses its place; NEVER: to be told by the next call with a time
        )

    def claim(self, token: int, weight: int, at: int) -> tuple[bool, Sequence[int]]:
        """Take `weight` (≥ 1) slots and spend as much of the rate at `at` (ns), or neither; then the run waits.

        Returns whether they are held, and the tokens of other runs to wake. A run waits for its latest claim. It asks
        again when it is woken and at the time that `due` tells, or it leaves. Raises ValueError for a weight that can
        never be had: above the slots, or above the burst of the rate.
        """
        rate = self.rate
        if rate is None:
            return self.take_whole(token, weight)
        self._must_fit(weight)
        ready = rate.ready_at(weight, at)
        self._skip_absent(rate, token, at)
        line = self._line
        if next(iter(line), token) != token and not (
            ready <= at and self._vain > _VAIN + 2 * len(line) and self.free >= weight
        ):
            self._vain += ready <= at
            self._queue(token, weight)
            return False, ()
        queued = token in line
        line[token] = weight
        self._absent_at = NEVER
        if ready > at:
            return False, ()
        taken, woken = self.take_whole(token, weight)
        if not taken:
            return False, woken  # still the first, so that nobody can spend what it found ready
        rate.spend(weight, at)
        self._vain_before, self._vain = self._vain, 0
        del line[token]
        if queued:
            self._in_turn = token
        return True, [*woken, next(iter(line))] if line else woken

    def due(self, token: int, weight: int, at: int) -> int:
        """When a run whose claim was refused at `at` should ask again of itself: ns, later than `at`.

        NEVER when only slots are missing, to it or to the one whose turn it is: then it will be woken.
        """
        rate = self.rate
        first = next(iter(self._line), None)
        if rate is None or first is None:
            return NEVER
        if first == token:
            ready = rate.ready_at(weight, at)
            return ready if ready > at else NEVER
        return NEVER if self._wants_slots(first) else self._deadline(rate, first, at)

    @property
    def has_line(self) -> bool:
        """Whether runs wait for the rate; then the last that a claim wakes is the first of them, whose turn it is now."""
        return bool(self._line)

    def unclaim(self, token: int, weight: int) -> Sequence[int]:
        """Undo the run's latest claim, of `weight`, at the time of that claim. Returns the tokens of runs to wake.

        For a task that another limit refused. Its run does not wait here any more; when it had waited for this claim, it
        need not wait as long for the next.
        """
        if self.rate is not None:
            self.rate.refund(weight)
            self._vain = self._vain_before + 1
        return self.put_back(token, weight)

    def keep(self, token: int, count: int) -> Sequence[int]:
        """Undo the run's latest claim, of `count`, at the time of that claim, and keep slots and turn for it until it claims
        again, or leaves. For a task that waits for a limit behind this one. Returns the tokens of runs to wake.
        """
        if self.rate is None:
            return super().keep(token, count)
        self.rate.refund(count)
        others = [(other, wish) for other, wish in self._line.items() if other != token]
        self._line.clear()
        self._line.update([(token, count), *others])
        self._absent_at = NEVER
        return super().keep(token, count) if self.slots < _UNLIMITED else self.put_back(token, count)

    def leave(self, token: int) -> Sequence[int]:
        """The run wants nothing more of this limit: hand on its turn and its slots. Returns tokens to wake."""
        woken = super().leave(token)
        line = self._line
        if token in line:
            was_first = next(iter(line)) == token
            del line[token]
            if was_first:
                self._absent_at = NEVER
                if line:
                    return [*woken, next(iter(line))]
        return woken

    def check(self) -> None:
        """Raise AssertionError unless the invariants hold."""
        super().check()
        if self.rate is not None:
            first = next(iter(self._line), None)
            assert {*self._waiting, *self._granted} <= {first}, f"{self.name}: waits for slots before its turn"

    def _wants_slots(self, token: int) -> bool:
        return token in self._waiting or token in self._granted

    def _queue(self, token: int, weight: int) -> None:
        """Into the line for the rate: where it stands, or at the end, or second when it is to have its turn again."""
        line = self._line
        if token in self._early:
            self._early.discard(token)
            others = [(other, wish) for other, wish in line.items() if other != token]
            line.clear()
            line.update([others[0], (token, weight), *others[1:]])
        else:
            line[token] = weight

    def _deadline(self, rate: Rate, first: int, at: int) -> int:
        """When the first in line loses its place: `PATIENCE_NS` after its time, or after it became the first."""
        if self._absent_at == NEVER:
            self._absent_at = rate.ready_at(self._line[first], at) + PATIENCE_NS
        return self._absent_at

    def _skip_absent(self, rate: Rate, token: int, at: int) -> None:
        """Drop those who are first, wait for nothing but their time, and have not come; `token` comes now."""
        line = self._line
        while line:
            first = next(iter(line))
            if first == token or self._wants_slots(first) or at < self._deadline(rate, first, at):
                return
            del line[first]
            self._absent_at = NEVER


def parse_rate(text: str, *, burst: int = 1) -> Rate:
    """The rate that `text` tells: "50/s", "10/min", "1000/h", "5/2s"; units ms, s, min, h and d.

    With the `burst` of 1 starts are evenly spaced: of "60/min" one a second, never 60 at once. Raises ValueError.
    """
    count, _, period = (part.strip() for part in text.partition("/"))
    unit = period.lstrip("0123456789")
    times = period[: len(period) - len(unit)]
    unit = unit.lstrip()
    if not (count.isascii() and count.isdigit() and unit.isalpha()):
        raise ValueError(f'rate {text!r} is not of the form "50/s", "10/min", "1000/h" or "5/2s", in whole numbers')
    if unit not in _UNITS:
        raise ValueError(f"rate {text!r} has the unit {unit!r}; there are {', '.join(_UNITS)}")
    if int(count) == 0 or (times and int(times) == 0):
        raise ValueError(f"rate {text!r} must have 1 or more in 1 or more {unit}")
    return Rate(int(count), int(times or 1) * _UNITS[unit], burst)
