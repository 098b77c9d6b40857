"""How many slots an I/O lane should have: grown and shrunk by what the attempts tell. A pure state machine.

Theory. A server has a knee: c requests at once keep it busy, and every one beyond that waits in its queue. By Little's law
the latency of n at once is then n/c of what is usual, and the throughput no higher. So the ratio of latency to usual tells
both that there is a queue and where the knee is: at ``slots · usual / latency``. That is the gradient of Netflix's
concurrency-limits ("Gradient2"), which compares a short window with a long one:

- Attempts that end are gathered into *windows*, closed when they are long enough and have enough samples. Their mean latency
  is what Little's law speaks of; a ratio counts when it exceeds a fixed one by more than the mean's standard error.
- Without trouble, and with all slots in use, slots grow: by half up to the last known knee (slow start), by a sixteenth
  beyond it (Jacobson 1988).
- Latency over usual shrinks them to a little below the knee, so that the queue drains. Errors over usual, and an event loop
  that is late, shrink them by a fixed factor: additive increase and multiplicative decrease are what lets those who share
  a server come to equal shares (Chiu, Jain 1989).
- What is *usual* must not creep up with a queue of our own making, which is where an average over a long window ends. So
  usual latency falls at once, but rises only with what is seen at or below the slots of the last shrink (`clear`), where
  our own queue has drained. And a cause is tested by its effect: when a shrink did not bring latency down, it was not
  ours, and what is seen is usual from now on; when latency fell as much as the slots, only queue was lost, and they shrink
  on. For the same reason the first window is followed by a look at fewer slots: `start` may be far beyond the knee.
- Errors have their usual share too (a tenth of the addresses may be dead), learned at `clear`, up to `MOST_ERRORS`.

The first window after a shrink holds attempts that began before it, and is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Final

__all__ = ["Adaptive", "Decision"]

TOLERANCE: Final = log(
    1.25
)  # latency over usual that is no trouble yet; less finds the knee sooner and takes noise for it
DRAIN: Final = 0.9  # of the knee that is gone to: must be below it, or usual is never seen again
DECREASE: Final = 0.7  # for errors and lag, of which it is not known by how much; CUBIC's factor (RFC 9438)
STEEPEST: Final = 0.5  # one decision never takes more than half: a window may be wrong
SLOW_START: Final = 1.5
BEYOND: Final = 16  # slots grow by 1/16 beyond the knee, so that the tolerance is found in a few windows
FALLS_WITH_US: Final = 0.8  # share of a shrink (in logarithms) by which latency falls while only queue is lost
NOT_OURS: Final = 0.3  # and below which it did not fall because of it
LEARN: Final = 0.25  # weight of one window in what is usual
MORE_ERRORS: Final = 0.05  # over the usual share
MOST_ERRORS: Final = 0.3  # are never usual beyond this: that is an outage
LATE_NS: Final = 50_000_000  # a loop late by this serves nobody sooner with more slots; half of that forbids growth
FEWEST: Final = 32  # samples in a window, or four times the slots when that is more


@dataclass(frozen=True, slots=True)
class Decision:
    """The slots to have from now on, and the figures behind it.

    slots, before  how many from now on, and until now
    reason         in words, for a log
    latency_ns     mean of the window's attempts that were ok; 0 when there were none
    usual_ns       the same as it usually is; 0 when not known yet
    errors         share of the window's attempts that were not ok
    lag_ns         mean lateness of the event loop
    samples        attempts in the window
    in_use         the most slots that were in use
    """

    at: int
    slots: int
    before: int
    reason: str
    latency_ns: int
    usual_ns: int
    errors: float
    lag_ns: int
    samples: int
    in_use: int


class Adaptive:
    """Controller of one lane: between `lowest` (≥ 1) and `highest` slots, `start` at first; windows of `every_ns` or more.

    Feed it with `sample` and `lag`, ask it with `decide`. Times are ns of one clock that does not go backwards. Not
    thread-safe. The same calls give the same decisions.
    """

    def __init__(self, lowest: int, highest: int, start: int, *, every_ns: int = 500_000_000) -> None:
        if not 1 <= lowest <= start <= highest:
            raise ValueError(f"slots must be 1 ≤ lowest ≤ start ≤ highest, not {lowest}, {start}, {highest}")
        if every_ns < 1:
            raise ValueError(f"every_ns must be at least 1, not {every_ns}")
        self.lowest = lowest
        self.highest = highest
        self.slots = start
        self.every_ns = every_ns
        self._usual: float | None = None  # logarithm of the usual latency in ns
        self._usual_errors = 0.0
        self._clear = start  # at or below this the latency owes nothing to a queue of ours
        self._goal = highest  # the last known knee, up to which growth is fast
        self._shrunk: tuple[int, float] | None = None  # slots and logarithm of latency before the latest shrink
        self._falling = False  # the latest window asked for fewer slots
        self._settled_at = 0  # until then samples are of attempts from before the latest shrink
        self._begun: int | None = None
        # of the window
        self._good = self._bad = 0  # attempts
        self._sum = self._squares = 0  # of the latencies of the good ones
        self._in_use = self._lags = self._lag_sum = 0

    def sample(self, latency_ns: int, ok: bool, in_use: int) -> None:
        """An attempt has ended after `latency_ns` on its worker; `in_use` slots were out then, its own included.

        `ok` is False for what too much load may cause: timeouts, refused connections, errors.
        """
        self._in_use = max(self._in_use, in_use)
        if not ok:
            self._bad += 1
            return
        self._good += 1
        self._sum += latency_ns
        self._squares += latency_ns * latency_ns

    def lag(self, ns: int) -> None:
        """The event loop came `ns` later than it had been asked to."""
        self._lags += 1
        self._lag_sum += ns

    def decide(self, at: int) -> Decision | None:
        """At any time, as often as one likes: the slots to have from now on if they change, at most once in a window."""
        if self._begun is None:
            self._begun = at
        elif at < self._settled_at:
            return None
        elif self._settled_at:
            self._settled_at = 0
            self._begun = at
            self._clean()
        samples = self._good + self._bad
        late = self._lags > 0 and self._lag_sum >= LATE_NS * self._lags
        if at - self._begun < self.every_ns or (samples < max(FEWEST, 4 * self.slots) and not late):
            return None
        before = self.slots
        mean = log(max(1.0, self._sum / self._good)) if self._good else None
        usual = self._usual
        target, reason = self._judge(mean, late)
        self.slots = min(self.highest, max(self.lowest, target))
        decision = None
        if self.slots != before:
            decision = Decision(
                at=at,
                slots=self.slots,
                before=before,
                reason=reason,
                latency_ns=round(exp(mean)) if mean is not None else 0,
                usual_ns=round(exp(usual)) if usual is not None else 0,
                errors=self._bad / samples if samples else 0.0,
                lag_ns=self._lag_sum // self._lags if self._lags else 0,
                samples=samples,
                in_use=self._in_use,
            )
        if self.slots < before:
            self._clear = self.slots
            self._shrunk = (before, mean) if mean is not None else None
            self._settled_at = at + (round(exp(mean)) if mean is not None else 1)
        self._falling = target < before  # also where the floor has been reached
        self._begun = at
        self._clean()
        return decision

    def _clean(self) -> None:
        """Begin a window."""
        self._good = self._sum = self._squares = 0
        self._bad = self._in_use = self._lags = self._lag_sum = 0

    def _judge(self, mean: float | None, late: bool) -> tuple[int, str]:
        """The slots that this window asks for, bounds aside, and why; learns what is usual."""
        slots = self.slots
        shrunk, self._shrunk = self._shrunk, None
        if late:
            self._hold(DECREASE * slots)
            return int(DECREASE * slots), f"event loop {self._lag_sum / self._lags / 1e6:.0f} ms late"
        samples = self._good + self._bad
        errors = self._bad / samples
        noise = sqrt(errors * (1 - errors) / samples)
        usual_errors = self._usual_errors
        if slots <= self._clear or errors < usual_errors:
            self._usual_errors = min(MOST_ERRORS, usual_errors + (errors - usual_errors) * LEARN)
        if errors > usual_errors + MORE_ERRORS + noise:
            self._hold(DECREASE * slots)
            return int(DECREASE * slots), f"{errors:.0%} errors"
        if mean is None:
            return slots, ""
        if self._usual is None:
            self._usual = mean
            if slots > self.lowest:  # whether `start` is beyond the knee shows from below only
                return max(1, int(slots * DECREASE)), "looking where latency begins to rise"
        spread = sqrt(max(0.0, self._squares * self._good / max(1, self._sum) ** 2 - 1) / self._good)
        if shrunk is not None:
            fall, ratio = shrunk[1] - mean, log(shrunk[0] / slots)
            if fall > max(FALLS_WITH_US * ratio, 3 * spread):
                self._usual = min(self._usual, mean)
                return self._shrink(slots * DECREASE, "latency falls as slots do")
            if fall < NOT_OURS * ratio:
                self._usual = max(self._usual, mean)
        over = mean - self._usual
        self._learn(mean, spread)
        if over > TOLERANCE + spread:
            return self._shrink(slots * DRAIN * exp(-over), f"latency {exp(over):.1f}x of usual")
        if self._in_use < slots or self._lag_sum > LATE_NS / 2 * self._lags:
            return slots, ""
        if slots < self._goal:
            return min(self._goal, max(slots + 1, int(slots * SLOW_START))), "all in use and latency steady"
        self._goal = slots
        return slots + max(1, slots // BEYOND), "all in use and latency steady"

    def _shrink(self, target: float, reason: str) -> tuple[int, str]:
        target = max(target, self.slots * STEEPEST)
        self._hold(target)
        return min(self.slots - 1, int(target)), reason

    def _hold(self, goal: float) -> None:
        """Remember what to grow to quickly: where the first of several shrinks in a row went."""
        if not self._falling:
            self._goal = max(self.lowest, int(goal))

    def _learn(self, mean: float, spread: float) -> None:
        assert self._usual is not None
        difference = mean - self._usual
        if difference < -2 * spread:
            self._usual += difference / 2
        elif self.slots <= self._clear:
            self._usual += difference * LEARN
        elif difference < 0:
            self._usual += difference * LEARN / 4
