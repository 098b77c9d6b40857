"""A rate: so many starts in a period, as a token bucket kept in one number. Exact in integers, no clock.

The generic cell rate algorithm in its form of *virtual scheduling* (ITU-T I.371; ATM Forum, Traffic Management 4.0): instead of a
count of tokens that would have to be filled, it keeps the *theoretical arrival time*, at which the bucket would be full
again. To spend n moves that time n emission intervals ahead, and is allowed while it stays within `burst` intervals of
the present. So in any stretch of t ns at most ``burst + t · count / period`` are spent, whatever came before it.

An interval is ``period / count`` ns, which need not be whole; the arrival time is kept in units of 1/count ns, so that it is
exact. Only the answer is rounded, up to the next ns.
"""

from __future__ import annotations

__all__ = ["Rate"]


class Rate:
    """`count` (≥ 1) in `period_ns` (≥ 1), and up to `burst` (≥ 1) at one instant after a pause.

    With the `burst` of 1 starts are evenly spaced; a weight above `burst` could never start and is a ValueError.
    Times are ns of one clock that does not go backwards.
    """

    __slots__ = ("_full", "_latest", "_refundable", "burst", "count", "period_ns")

    def __init__(self, count: int, period_ns: int, burst: int = 1) -> None:
        for name, value in (("count", count), ("period_ns", period_ns), ("burst", burst)):
            if value < 1:
                raise ValueError(f"{name} of a rate must be at least 1, not {value}")
        self.count = count
        self.period_ns = period_ns
        self.burst = burst
        self._full: int | None = None  # the theoretical arrival time in 1/count ns; None: full since ever
        self._latest = 0  # when something was spent last, and how much at that instant
        self._refundable = 0

    def ready_at(self, weight: int, at: int) -> int:
        """The earliest time, `at` or later, when `weight` may be spent, if nothing else is spent before.

        Raises ValueError for a weight that is not 1 to `burst`.
        """
        if not 1 <= weight <= self.burst:
            raise ValueError(f"{self} lets 1 to {self.burst} start at once, never {weight}")
        if self._full is None:
            return at
        # full + weight intervals ≤ at + burst intervals, rounded up to the first whole ns
        return max(at, -(((self.burst - weight) * self.period_ns - self._full) // self.count))

    def spend(self, weight: int, at: int) -> None:
        """Use `weight` up. Raises ValueError before the time that `ready_at` tells; then nothing has changed."""
        ready = self.ready_at(weight, at)
        if ready > at:
            raise ValueError(f"{self}: {weight} may be spent at {ready}, not yet at {at}")
        now = at * self.count
        full = now if self._full is None else max(self._full, now)
        self._full = full + weight * self.period_ns
        if at != self._latest:
            self._latest = at
            self._refundable = 0
        self._refundable += weight

    def refund(self, weight: int) -> None:
        """Take back `weight` of what was spent at the latest instant, as if it had never been.

        Raises ValueError for more than that: time has passed over it, and it would be had twice.
        """
        if not 0 <= weight <= self._refundable:
            raise ValueError(
                f"{self}: {self._refundable} were spent at the latest instant, {weight} cannot be refunded"
            )
        if self._full is not None:
            self._full -= weight * self.period_ns
        self._refundable -= weight

    def __repr__(self) -> str:
        return f"Rate({self.count}, {self.period_ns}, burst={self.burst})"
