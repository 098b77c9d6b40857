"""Lanes: the slots of one executor, shared fairly by all runs of an engine. Pure bookkeeping, no clock and no waiting.

A run's scheduler takes slots when it launches and gives them back when an attempt has ended. When it wants more than
there are, it is put on the lane's waiting list with the number it still wants. A slot given back goes round the
waiting list, one slot a turn, and is *granted*: set aside for that run, so that nobody can overtake it on the way.
Hence the invariant: while anybody waits, no slot is free.

A lane may be stretched beyond its slots, for an executor that likes to have jobs in hand before a worker is free. When
it is stretched less again, slots that are out stay out: the lane then is in *debt*, and swallows what is given back
until it is out of it. A lane in debt has no free slot and grants none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Lane"]

_NOBODY: Final = -1  # no run's token


class Lane:
    """`slots` places for jobs. `token` is the number by which a run is known to the lane.

    `slots` never changes; `capacity` is what the lane grants at present. `enforces_timeouts` tells schedulers that the
    executor behind the lane stops an attempt at its timeout by itself (and reports it interrupted), so that they set no
    deadline of their own.
    """

    __slots__ = ("_debt", "_granted", "_waiting", "enforces_timeouts", "extra", "free", "name", "slots")

    def __init__(self, name: str, slots: int, *, enforces_timeouts: bool = False) -> None:
        if slots < 1:
            raise ValueError(f"lane {name!r} needs at least 1 slot, not {slots}")
        self.name = name
        self.slots = slots
        self.enforces_timeouts = enforces_timeouts
        self.free = slots
        self.extra = 0  # beyond `slots`; set by `stretch` only
        self._debt = 0  # slots that are out beyond the capacity, to be swallowed when they come back
        self._waiting: dict[int, int] = {}  # token → slots still wanted, in the order of turns
        self._granted: dict[int, int] = {}  # token → slots set aside

    def take(self, token: int, wanted: int) -> tuple[int, Sequence[int]]:
        """Take up to `wanted` (≥ 0) slots, those set aside first. Whatever is missing is waited for.

        Returns how many were taken, and the tokens of other runs to wake because more was set aside than is wanted.
        """
        woken: Sequence[int] = ()
        taken = self._granted.pop(token, 0) if self._granted else 0
        if taken > wanted:
            self._waiting.pop(token, None)
            woken = self.give(token, taken - wanted)
            return wanted, woken
        if self.free and taken < wanted:
            more = min(self.free, wanted - taken)
            self.free -= more
            taken += more
        if taken < wanted:
            self._waiting[token] = wanted - taken
        elif self._waiting:
            self._waiting.pop(token, None)
        return taken, woken

    def give(self, token: int, count: int) -> Sequence[int]:
        """Give `count` slots back. Returns the tokens of *other* runs that were granted one and must be woken."""
        if self._debt:
            count = self._repay(count)
        waiting = self._waiting
        if not waiting or (len(waiting) == 1 and token in waiting):
            waiting.clear()  # the giver asks again with take() right away
            self.free += count
            return ()
        woken: dict[int, None] = {}
        while count and waiting:
            turn = next(iter(waiting))
            wanted = waiting.pop(turn)
            self._granted[turn] = self._granted.get(turn, 0) + 1
            count -= 1
            if wanted > 1:
                waiting[turn] = wanted - 1  # back to the end of the line
            if turn != token:
                woken[turn] = None
        self.free += count
        return tuple(woken)

    def trade(self, token: int, back: int, wanted: int) -> tuple[int, Sequence[int]]:
        """``give(token, back)`` and ``take(token, wanted)`` in one, which is what the end of a step needs.

        Returns how many were taken, and the tokens of other runs to wake.
        """
        if self._debt:
            back = self._repay(back)
        waiting = self._waiting
        if not self._granted and (not waiting or (len(waiting) == 1 and token in waiting)):  # nobody else is here
            have = self.free + back
            taken = min(wanted, have)
            self.free = have - taken
            if taken < wanted:
                waiting[token] = wanted - taken
            elif waiting:
                waiting.clear()
            return taken, ()
        woken = list(self.give(token, back)) if back else []
        taken, others = self.take(token, wanted)
        woken.extend(others)
        return taken, woken

    def leave(self, token: int) -> Sequence[int]:
        """The run wants nothing more: forget its wish, hand on what was set aside for it. Returns tokens to wake."""
        self._waiting.pop(token, None)
        unused = self._granted.pop(token, 0)
        return self.give(token, unused) if unused else ()

    def stretch(self, extra: int) -> Sequence[int]:
        """Let the lane grant `extra` (≥ 0) slots beyond its own. Returns the tokens of runs to wake.

        Nothing is taken back: with less than is out and set aside, nothing is granted until enough has come back.
        """
        more = extra - self.extra
        if not more:
            return ()
        if extra < 0:
            raise ValueError(f"lane {self.name!r} cannot be stretched by {extra}")
        self.extra = extra
        if more > 0:
            return self.give(_NOBODY, more)
        kept = min(self.free, -more)
        self.free -= kept
        self._debt += -more - kept
        return ()

    def _repay(self, count: int) -> int:
        """Swallow of `count` slots what the lane owes; returns the rest."""
        paid = min(self._debt, count)
        self._debt -= paid
        return count - paid

    @property
    def capacity(self) -> int:
        """Slots that may be out at present."""
        return self.slots + self.extra

    @property
    def in_use(self) -> int:
        """Slots held by launched attempts; beyond the capacity for a while after it shrank."""
        return self.capacity + self._debt - self.free - sum(self._granted.values())

    def check(self) -> None:
        """Raise AssertionError unless the invariants hold."""
        assert 0 <= self.free <= self.capacity, (self.name, self.free, self.capacity)
        assert self.extra >= 0 and self._debt >= 0, (self.name, self.extra, self._debt)
        assert not (self._debt and self.free), f"lane {self.name}: {self.free} free while it owes {self._debt}"
        assert self.in_use >= 0, (self.name, self.in_use)
        assert not (self._waiting and self.free), f"lane {self.name}: {self.free} free while runs wait"

    def __repr__(self) -> str:
        return f"Lane({self.name!r}, {self.in_use}/{self.capacity} in use, {len(self._waiting)} waiting)"
