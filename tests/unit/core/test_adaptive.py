"""The controller of adaptive slots, alone and against modelled servers in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import pairwise
from math import exp
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowlane.core.adaptive import Adaptive, Decision

S = 1_000_000_000
MS = 1_000_000


# ── one window at a time ──────────────────────────────────────────────────────────────────────────────────────────


class Windows:
    """Feeds a controller window by window."""

    def __init__(self, lowest: int, highest: int, start: int) -> None:
        self.control = Adaptive(lowest, highest, start)
        self.now = 0
        assert self.control.decide(0) is None

    def window(
        self, ms: float = 100, *, bad: int = 0, lag: float | None = None, in_use: int | None = None, count: int = 1000
    ) -> Decision | None:
        """One window of `count` attempts of `ms` each, `bad` of which are not ok; first what settles a shrink."""
        control = self.control
        self.now += 10 * S
        control.decide(self.now)
        for index in range(count):
            control.sample(round(ms * MS), index >= bad, control.slots if in_use is None else in_use)
        if lag is not None:
            control.lag(round(lag * MS))
        self.now += S
        return control.decide(self.now)


def begun(lowest: int = 1, highest: int = 100, start: int = 20) -> Windows:
    """A controller that knows that 100 ms are usual, and is back at `start`."""
    windows = Windows(lowest, highest, start)
    decision = windows.window()
    assert decision is None or decision.reason == "looking where latency begins to rise"
    while windows.control.slots < start:
        windows.window()
    windows.control.slots = start
    return windows


@pytest.mark.parametrize(
    ("bounds", "problem"),
    [((0, 5, 3), "not 0, 3, 5"), ((4, 5, 3), "not 4, 3, 5"), ((1, 5, 6), "not 1, 6, 5")],
)
def test_bounds_must_be_in_order(bounds: tuple[int, int, int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Adaptive(*bounds)


def test_windows_must_have_a_length() -> None:
    with pytest.raises(ValueError, match="every_ns must be at least 1, not 0"):
        Adaptive(1, 2, 1, every_ns=0)


def test_nothing_is_decided_before_a_window_is_long_and_full_enough() -> None:
    control = Adaptive(1, 10, 1, every_ns=S)
    assert control.decide(5) is None
    for _ in range(100):
        control.sample(MS, True, 1)
    assert control.decide(S + 4) is None
    assert control.decide(S + 5) is not None
    assert control.decide(3 * S) is None  # no samples since


def test_slots_all_in_use_grow_fast_while_no_knee_is_known() -> None:
    windows = Windows(1, 50, 4)
    seen = [windows.control.slots]
    for _ in range(9):
        windows.window()
        seen.append(windows.control.slots)
    assert seen == [4, 2, 3, 4, 6, 9, 13, 19, 28, 42]
    decision = windows.window()
    assert decision is not None
    assert (decision.reason, decision.slots, decision.before) == ("all in use and latency steady", 50, 42)
    assert windows.window() is None, "the highest"


def test_slots_that_are_not_used_do_not_grow() -> None:
    windows = begun()
    assert windows.window(in_use=19) is None
    assert windows.window() is not None


def test_latency_over_usual_shrinks_to_below_the_knee() -> None:
    decision = begun().window(200)
    assert decision is not None
    assert decision.reason == "latency 2.0x of usual"
    assert (decision.before, decision.slots) == (20, 10), "the knee is at 10; and never less than half at once"
    assert (decision.latency_ns, decision.usual_ns) == (200 * MS, 100 * MS)
    assert (decision.errors, decision.lag_ns, decision.samples, decision.in_use) == (0.0, 0, 1000, 20)
    decision = begun().window(140)
    assert decision is not None
    assert decision.slots == 12  # 20 / 1.4 · 0.9


def test_latency_that_falls_as_slots_do_shrinks_on() -> None:
    windows = begun(start=32)
    windows.window(200)
    assert windows.control.slots == 16
    decision = windows.window(100)
    assert decision is not None
    assert (decision.reason, decision.slots) == ("latency falls as slots do", 11)


def test_latency_that_does_not_fall_with_slots_is_usual_from_then_on() -> None:
    windows = begun()
    windows.window(300)
    decision = windows.window(300)
    assert decision is not None
    assert decision.reason == "all in use and latency steady"
    assert decision.slots == 11  # where the shrink went was taken for the knee: from there on by one


def test_latency_that_falls_by_less_is_neither() -> None:
    windows = begun()
    windows.window(160)
    decision = windows.window(130)  # by 0.2 of 0.6
    assert decision is not None
    assert decision.reason == "latency 1.3x of usual"


def test_growth_is_slow_beyond_the_knee() -> None:
    windows = begun(start=64)
    windows.window(130)
    assert windows.control.slots == 44
    assert [d.slots if (d := windows.window()) else 0 for _ in range(3)] == [46, 48, 51]


def test_usual_latency_falls_at_once_and_rises_at_few_slots_only() -> None:
    windows = begun()
    control = windows.control
    windows.window(50)
    assert control._usual is not None
    first = control._usual
    windows.window(80)
    assert control._usual == first, "above the slots of the last shrink it does not rise"
    control._clear = 100
    windows.window(80)
    assert control._usual > first


def test_noise_below_usual_weighs_little() -> None:
    control = Adaptive(1, 1, 1)
    control.decide(0)
    for at, latencies in ((S, [100, 300]), (2 * S, [99, 299])):
        for latency in latencies * 50:
            control.sample(latency, True, 1)
        control._clear = 0
        control.decide(at)
    assert control._usual is not None
    assert 199.5 < exp(control._usual) < 200


def test_errors_over_usual_shrink_by_a_factor() -> None:
    windows = begun()
    decision = windows.window(bad=120)
    assert decision is not None
    assert (decision.reason, decision.slots, decision.errors) == ("12% errors", 14, 0.12)
    again = windows.window(bad=1000)
    assert again is not None
    assert (again.reason, again.slots, again.latency_ns) == ("100% errors", 9, 0)
    assert windows.control._goal == 14, "the first of several shrinks says what to grow back to"


def test_errors_that_are_always_there_are_usual_but_an_outage_never_is() -> None:
    windows = Windows(1, 8, 1)
    for _ in range(12):
        windows.window(bad=150)
    assert windows.control.slots == 8
    for _ in range(30):
        windows.window(bad=1000)
    assert windows.control.slots == 1
    assert windows.control._usual_errors == 0.3
    windows.window(bad=1000)
    for _ in range(20):
        windows.window()
    assert windows.control.slots == 8
    assert windows.control._usual_errors < 0.01


def test_a_window_of_errors_only_that_are_usual_decides_nothing() -> None:
    windows = begun()
    windows.control._usual_errors = 1.0
    assert windows.window(bad=1000) is None


def test_a_late_event_loop_shrinks_without_waiting_for_samples() -> None:
    windows = begun()
    decision = windows.window(lag=80, count=0)
    assert decision is not None
    assert (decision.reason, decision.slots, decision.lag_ns) == ("event loop 80 ms late", 14, 80 * MS)
    assert (decision.samples, decision.errors) == (0, 0.0)


def test_a_loop_that_is_somewhat_late_stops_growth() -> None:
    windows = begun()
    assert windows.window(lag=30) is None
    assert windows.window(lag=10) is not None


def test_what_ends_while_a_shrink_settles_is_not_counted() -> None:
    windows = begun()
    windows.window(200)
    control = windows.control
    for _ in range(1000):
        control.sample(900 * MS, True, 10)
    assert control.decide(windows.now + 100 * MS) is None  # a latency has not passed
    decision = windows.window(150)
    assert decision is not None
    assert decision.latency_ns == 150 * MS


def test_latencies_of_nothing_are_no_trouble() -> None:
    windows = Windows(1, 4, 1)
    for _ in range(5):
        windows.window(0)
    assert windows.control.slots == 4


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 9), st.integers(0, 8), st.integers(0, 8)),
    st.lists(
        st.tuples(st.integers(0, 10**12), st.floats(0, 1), st.integers(0, 10**9), st.integers(0, 99)), max_size=30
    ),
)
def test_the_bounds_hold_whatever_happens(
    bounds: tuple[int, int, int], windows: list[tuple[int, float, int, int]]
) -> None:
    lowest, more, most = bounds
    both = [Adaptive(lowest, lowest + more + most, lowest + more, every_ns=1) for _ in range(2)]
    for index, (latency, bad, lag, in_use) in enumerate(windows):
        decisions = []
        for control in both:
            before = control.slots
            for sample in range(100):
                control.sample(latency + sample, sample >= 100 * bad, in_use)
            control.lag(lag)
            decision = control.decide(index * 10**13)
            assert lowest <= control.slots <= control.highest
            assert (decision is not None) == (control.slots != before)
            assert decision is None or (decision.slots, decision.before) == (control.slots, before)
            decisions.append(decision)
        assert decisions[0] == decisions[1], "the same calls, the same decisions"


# ── against a server ──────────────────────────────────────────────────────────────────────────────────────────────


class Seen(NamedTuple):
    mean: float
    least: int
    most: int
    rate: float  # attempts that were ok, a second


class Server:
    """`workers` behind one queue (so the knee is there), 100 ms a request. Clients keep all slots in use.

    error_above  requests beyond so many at once are refused in 10 ms, in proportion
    outage       from-to in seconds, when all are
    dead         share of requests that always fail
    slow         from-to in seconds and the factor by which requests take longer
    lag          lateness of the clients' loop, from the requests that are out
    """

    def __init__(
        self,
        control: Adaptive,
        seed: int,
        workers: int,
        *,
        service: str = "exponential",
        error_above: int = 1 << 30,
        outage: tuple[float, float] = (0, 0),
        dead: float = 0.0,
        slow: tuple[float, float, float] = (0, 0, 1),
        lag: Callable[[int], int] | None = None,
    ) -> None:
        self.control, self.draw = control, Random(seed)
        self.service, self.error_above, self.outage, self.dead, self.slow, self.lag = (
            service,
            error_above,
            outage,
            dead,
            slow,
            lag,
        )
        self.free_at = [0] * workers  # a heap
        self.agenda: list[tuple[int, int, int, bool]] = []
        self.out = self.number = 0
        self.history: list[tuple[int, int, bool]] = []  # (time, slots, ok) of each end

    def request(self, now: int) -> None:
        draw, seconds = self.draw, now / S
        self.out += 1
        self.number += 1
        refused = draw.random() < max(self.dead, (self.out - self.error_above) / self.out)
        if refused or self.outage[0] <= seconds < self.outage[1]:
            heappush(self.agenda, (now + 10 * MS, self.number, now, False))
            return
        time = 0.1 * (draw.expovariate(1) if self.service == "exponential" else draw.uniform(0.8, 1.2))
        if self.slow[0] <= seconds < self.slow[1]:
            time *= self.slow[2]
        end = max(now, heappop(self.free_at)) + round(time * S)
        heappush(self.free_at, end)
        heappush(self.agenda, (end, self.number, now, True))

    def run(self, seconds: int) -> Server:
        control, now = self.control, 0
        while now < seconds * S:
            while self.out < control.slots:
                self.request(now)
            now, _, begun, ok = heappop(self.agenda)
            control.sample(now - begun, ok, self.out)
            if self.lag is not None:
                control.lag(self.lag(self.out))
            self.out -= 1
            control.decide(now)
            assert control.lowest <= control.slots <= control.highest
            self.history.append((now, control.slots, ok))
        return self

    def seen(self, begin: int, end: int) -> Seen:
        rows = [row for row in self.history if begin * S <= row[0] < end * S]
        weighted = sum(slots * (after[0] - at) for (at, slots, _), after in pairwise(rows))
        slots = [row[1] for row in rows]
        rate = sum(row[2] for row in rows) / (end - begin)
        return Seen(weighted / (rows[-1][0] - rows[0][0]), min(slots), max(slots), rate)


def simulated(seed: int, workers: int, seconds: int, start: int = 10, **how: Any) -> Server:
    return Server(Adaptive(1, 200, start), seed, workers, **how).run(seconds)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("workers", "start"), [(8, 1), (8, 40), (20, 4), (20, 100)])
def test_steady_requests_bring_slots_to_the_knee(workers: int, start: int, seed: int) -> None:
    seen = simulated(seed, workers, 80, start, service="uniform").seen(40, 80)
    assert 0.85 * workers <= seen.mean <= 1.3 * workers
    assert 0.45 * workers <= seen.least <= seen.most <= 1.6 * workers, "it does not swing wider"
    assert seen.rate >= 0.93 * workers * 10


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("workers", "start"), [(8, 1), (8, 40), (20, 4), (20, 100)])
def test_requests_that_vary_bring_slots_to_the_knee(workers: int, start: int, seed: int) -> None:
    seen = simulated(seed, workers, 100, start).seen(50, 100)
    assert 0.7 * workers <= seen.mean <= 1.5 * workers
    assert 0.2 * workers <= seen.least <= seen.most <= 2.5 * workers
    assert seen.rate >= 0.75 * workers * 10


@pytest.mark.parametrize("seed", range(3))
def test_an_outage_is_waited_out_and_recovered_from(seed: int) -> None:
    server = simulated(seed, 20, 100, outage=(40, 60))
    assert server.seen(25, 40).mean > 14
    during = server.seen(50, 60)
    assert during.mean < 3
    assert during.rate == 0
    after = server.seen(80, 100)
    assert 14 <= after.mean <= 30
    assert after.rate >= 150


@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_became_slow_keeps_its_slots(seed: int) -> None:
    server = simulated(seed, 20, 150, slow=(40, 110, 5))
    assert server.seen(75, 110).mean >= 12, "fewer slots did not help: it is not our doing"
    assert 14 <= server.seen(130, 150).mean <= 30


@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_refuses_is_asked_for_about_what_it_takes(seed: int) -> None:
    seen = simulated(seed, 100, 60, error_above=12).seen(25, 60)
    assert 9 <= seen.mean <= 14
    assert seen.most <= 18
    assert seen.rate >= 90


@pytest.mark.parametrize("seed", range(3))
def test_requests_that_always_fail_do_not_hold_the_others_up(seed: int) -> None:
    seen = simulated(seed, 20, 80, dead=0.15).seen(40, 80)
    assert 14 <= seen.mean <= 32


def test_a_loop_that_is_late_bounds_slots() -> None:
    seen = simulated(0, 200, 60, lag=lambda out: 2 * MS * out).seen(20, 60)
    assert 6 <= seen.least <= seen.most <= 25
    assert 10 <= seen.mean <= 20
