"""Slots: places that the runs of an engine share fairly; a lane is the slots of one executor. Pure bookkeeping, no clock.

A run's scheduler takes slots when it launches and gives them back when an attempt has ended. When it wants more than
there are, it is put on the waiting line with what it still wants. A slot given back goes round the line, one slot a
turn, and is *granted*: set aside for that run, so that nobody can overtake it on the way. Hence the invariant: while
anybody waits, no slot is free.

A run has one wish at a time: a number of slots, of which it uses each as it comes, or a *whole*: so many at once or none.
A whole that is first in line stays there and *collects* what is given back until it is complete; only then is its run
woken. Only the first in line collects, so two wholes never hold half each and wait for ever, and everybody's turn
comes: those before somebody in line take `capacity` slots a turn at most. Somebody who had a turn and could not use all
of it (`put_back`) has it again the next time it waits, before the others, but after a whole that is first by then.

The capacity may be stretched beyond the slots, for an executor that likes to have jobs in hand before a worker is free,
and below them, for a limit that adapts. When it shrinks, slots that are out stay out: the slots then are in *debt*, and
swallow what is given back until they are out of it. In debt nothing is free, granted or collected. A whole for more
than there is since the capacity shrank is complete with all there is, and taking it makes a debt of the rest: whoever
took n slots gives back n, whatever happened in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Lane", "Slots"]

_NOBODY: Final = -1  # no run's token


class Slots:
    """`slots` places. `token` is the number (≥ 0) by which a run is known to them.

    `slots` never changes; `capacity` is what may be out at present, `free` what anybody may take at once. Calls that give
    return the tokens of runs to wake: something was set aside for each. A run that is woken takes it or leaves.
    """

    __slots__ = ("_debt", "_early", "_granted", "_in_turn", "_peak", "_waiting", "extra", "free", "name", "slots")

    def __init__(self, name: str, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"{type(self).__name__.lower()} {name!r} needs at least 1 slot, not {slots}")
        self.name = name
        self.slots = slots
        self.free = slots
        self.extra = 0  # beyond `slots`, or below them; set by `stretch` only
        self._peak = slots  # the largest capacity there has been
        self._debt = 0  # slots that are out beyond the capacity, to be swallowed when they come back
        self._waiting: dict[int, int] = {}  # token → slots still wanted, or minus the whole; in the order of turns
        self._granted: dict[int, int] = {}  # token → slots set aside, or collected so far
        self._in_turn = _NOBODY  # whose turn in line the latest whole used up
        self._early: set[int] = set()  # who put back what it had in its turn

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

    def has_one(self, token: int) -> bool:
        """Whether `take` would give the run a slot now."""
        return self.free > 0 or token in self._granted

    def take_whole(self, token: int, need: int) -> tuple[bool, Sequence[int]]:
        """Take `need` (≥ 1) slots at once, or none and wait for all of them; replaces what the run waited for.

        Returns whether they were taken, and the tokens of other runs to wake. Raises ValueError when `need` is more
        than the capacity has ever been. It may be more than the capacity is now: then all there is will do.
        """
        self._must_fit(need)
        capacity = self.slots + self.extra
        have = self._granted.pop(token, 0) if self._granted else 0
        short = need - have
        line = self._waiting
        if short <= self.free or (need > capacity and have + self.free == capacity + self._debt):
            self._in_turn = token if have else _NOBODY
            if line:
                line.pop(token, None)
            if self._early:
                self._early.discard(token)
            if short < 0:
                return True, self.give(token, -short)
            if short > self.free:
                self._debt += short - self.free
                short = self.free
            self.free -= short
            return True, ()
        if next(iter(line), token) != token and (have or token in self._early):
            self._go_ahead(token, -need)
        else:
            line[token] = -need  # in the place it has, or at the end
        self._early.discard(token)
        have += self.free  # something was free: then it is alone in line and collects that
        self.free = 0
        return False, self.give(token, have) if have else ()

    def give(self, token: int, count: int) -> Sequence[int]:
        """Give `count` slots back. Returns the tokens of *other* runs for which something is ready and must be woken.

        The giver itself asks again right away when it wants something, and is not told.
        """
        if self._debt:
            count = self._repay(count)
        waiting = self._waiting
        if not waiting or (len(waiting) == 1 and waiting.get(token, 0) > 0):
            waiting.clear()
            self.free += count
            return ()
        granted = self._granted
        woken: dict[int, None] = {}
        while count and waiting:
            turn = next(iter(waiting))
            wanted = waiting[turn]
            have = granted.get(turn, 0)
            if wanted < 0:
                missing = min(-wanted, self.slots + self.extra) - have
                if count < missing:
                    granted[turn] = have + count
                    return tuple(woken)
                granted[turn] = have + missing
                count -= missing
                del waiting[turn]
            else:
                granted[turn] = have + 1
                count -= 1
                del waiting[turn]
                if wanted > 1:
                    waiting[turn] = wanted - 1  # back to the end of the line
            if turn != token:
                woken[turn] = None
        self.free += count
        return tuple(woken)

    def put_back(self, token: int, count: int) -> Sequence[int]:
        """Undo the run's latest `take_whole`, of `count`, which it cannot use now. Returns the tokens of runs to wake.

        When it had waited for them, it need not wait as long the next time. Its own token may be among those returned,
        when meanwhile it waits for something else that these slots complete.
        """
        if self._in_turn == token:
            self._early.add(token)
            self._in_turn = _NOBODY
        return self.give(_NOBODY, count)

    def keep(self, token: int, count: int) -> Sequence[int]:
        """Undo the run's latest `take_whole`, of `count`, and have it set aside for the run until it takes it, or leaves.

        For a run that waits for something else, which comes after these in an order that all runs keep to. Slots that are
        owed are given back instead. Returns tokens to wake.
        """
        if self._debt:
            return self.give(_NOBODY, count)
        self._granted[token] = self._granted.get(token, 0) + count
        return ()

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
        self._early.discard(token)
        unused = self._granted.pop(token, 0)
        return self.give(token, unused) if unused else ()

    def stretch(self, extra: int) -> Sequence[int]:
        """Let `extra` slots beyond its own be out, or fewer than its own (≥ 1 - slots). Returns tokens of runs to wake.

        Nothing is taken back but what is being collected: with less than is out and set aside, nothing is granted until
        enough has come back.
        """
        more = extra - self.extra
        if not more:
            return ()
        if self.slots + extra < 1:
            raise ValueError(f"{self.name!r} cannot be stretched by {extra}: of {self.slots} slots 1 must be left")
        self.extra = extra
        if more > 0:
            self._peak = max(self._peak, self.slots + extra)
            return self.give(_NOBODY, more)
        less = -more
        kept = min(self.free, less)
        self.free -= kept
        less -= kept
        first = next(iter(self._waiting), _NOBODY)
        if less and self._waiting.get(first, 0) < 0 and (have := self._granted.pop(first, 0)):
            kept = min(have, less)  # not promised to anybody before it is complete
            less -= kept
            if have > kept:
                self._granted[first] = have - kept
        self._debt += less
        return ()

    def _must_fit(self, need: int) -> None:
        if not 1 <= need <= self._peak:
            raise ValueError(f"{type(self).__name__.lower()} {self.name!r} has {self._peak} slots, not {need} at once")

    def _repay(self, count: int) -> int:
        """Swallow of `count` slots what is owed; returns the rest."""
        paid = min(self._debt, count)
        self._debt -= paid
        return count - paid

    def _go_ahead(self, token: int, wish: int) -> None:
        """Put a run whose turn it was at the head of the line, or behind a whole that is there and goes on collecting."""
        line = self._waiting
        line.pop(token, None)
        others = list(line.items())
        line.clear()
        if others and others[0][1] < 0:
            first, need = others.pop(0)
            line[first] = need
        line[token] = wish
        line.update(others)

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
        assert self.capacity >= 1 and self._debt >= 0, (self.name, self.extra, self._debt)
        assert not (self._debt and self.free), f"{self.name}: {self.free} free while it owes {self._debt}"
        assert self.in_use >= 0, (self.name, self.in_use)
        assert not (self._waiting and self.free), f"{self.name}: {self.free} free while runs wait"
        for place, (token, wish) in enumerate(self._waiting.items()):
            if wish < 0 and (have := self._granted.get(token, 0)):
                assert not place, f"{self.name}: run {token} collects out of its turn"
                assert have < min(-wish, self.capacity), f"{self.name}: run {token} sleeps with {have} of {-wish}"
                assert not self._debt, f"{self.name}: run {token} collects while {self._debt} are owed"

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, {self.in_use}/{self.capacity} in use, {len(self._waiting)} waiting)"
        )


class Lane(Slots):
    """The slots of one executor.

    `enforces_timeouts` tells schedulers that the executor behind the lane stops an attempt at its timeout by itself (and
    reports it interrupted), so that they set no deadline of their own.
    """

    __slots__ = ("enforces_timeouts",)

    def __init__(self, name: str, slots: int, *, enforces_timeouts: bool = False) -> None:
        super().__init__(name, slots)
        self.enforces_timeouts = enforces_timeouts
