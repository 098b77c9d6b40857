"""A rate lets through burst + rate · t in any window of t, exactly that, and forgets nothing but what is refunded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowlane.core.rate import Rate

S = 1_000_000_000


def test_starts_are_evenly_spaced() -> None:
    rate = Rate(4, S)
    at = 7
    starts = []
    for _ in range(5):
        at = rate.ready_at(1, at)
        rate.spend(1, at)
        starts.append(at - 7)
    assert starts == [0, S // 4, S // 2, 3 * S // 4, S]


def test_after_a_pause_a_burst_may_start_at_once() -> None:
    rate = Rate(1, 10, burst=3)
    rate.spend(2, 0)
    assert rate.ready_at(1, 0) == 0
    rate.spend(1, 0)
    assert [rate.ready_at(weight, 0) for weight in (1, 2, 3)] == [10, 20, 30]
    assert rate.ready_at(3, 1000) == 1000
    rate.spend(3, 1000)
    assert rate.ready_at(1, 1000) == 1010  # the pause is not saved up beyond the burst


def test_an_interval_that_is_no_whole_number_of_ns_does_not_drift() -> None:
    rate = Rate(3, 10, burst=2)
    at = 0
    for _ in range(3002):
        at = rate.ready_at(1, at)
        rate.spend(1, at)
    assert at == 10_000  # two at once, and 3000 intervals of 10/3


def test_too_early_is_refused_and_changes_nothing() -> None:
    rate = Rate(1, 10)
    rate.spend(1, 5)
    with pytest.raises(ValueError, match=r"Rate\(1, 10, burst=1\): 1 may be spent at 15, not yet at 14"):
        rate.spend(1, 14)
    assert rate.ready_at(1, 14) == 15


@pytest.mark.parametrize("weight", [0, -1, 3])
def test_a_weight_that_can_never_start_is_refused(weight: int) -> None:
    rate = Rate(1, 10, burst=2)
    with pytest.raises(ValueError, match=f"lets 1 to 2 start at once, never {weight}"):
        rate.ready_at(weight, 0)
    with pytest.raises(ValueError, match=f"lets 1 to 2 start at once, never {weight}"):
        rate.spend(weight, 0)


@pytest.mark.parametrize(
    ("count", "period", "burst", "name"), [(0, 1, 1, "count"), (1, 0, 1, "period_ns"), (1, 1, 0, "burst")]
)
def test_what_is_no_rate_is_refused(count: int, period: int, burst: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} of a rate must be at least 1, not 0"):
        Rate(count, period, burst)


def test_a_refund_is_as_if_nothing_had_been_spent() -> None:
    rate = Rate(1, 10, burst=2)
    rate.spend(1, 3)
    rate.spend(1, 3)
    rate.refund(1)
    assert (rate.ready_at(1, 3), rate.ready_at(2, 3)) == (3, 13)
    rate.refund(1)
    assert rate.ready_at(2, 3) == 3


def test_what_time_has_passed_over_is_not_refunded() -> None:
    rate = Rate(1, 10, burst=2)
    rate.refund(0)
    rate.spend(2, 0)
    rate.spend(1, 10)
    with pytest.raises(ValueError, match="1 were spent at the latest instant, 2 cannot be refunded"):
        rate.refund(2)
    with pytest.raises(ValueError, match="cannot be refunded"):
        rate.refund(-1)
    rate.refund(1)
    with pytest.raises(ValueError, match="0 were spent at the latest instant, 1 cannot be refunded"):
        rate.refund(1)
    assert rate.ready_at(1, 10) == 10


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(1, 7),
    st.integers(1, 50),
    st.integers(1, 5),
    st.integers(0, 10**18),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5), st.booleans()), max_size=40),
)
def test_no_window_has_more_than_the_burst_and_the_rate(
    count: int, period: int, burst: int, begin: int, asks: list[tuple[int, int, bool]]
) -> None:
    rate = Rate(count, period, burst)
    now = begin
    spent: list[tuple[int, int]] = []
    for pause, weight, keep in asks:
        now += pause
        wanted = min(weight, burst)
        ready = rate.ready_at(wanted, now)
        allowed = all(
            sum(w for t, w in spent[i:]) + wanted <= burst + (now - t0) * count / period
            for i, (t0, _) in enumerate(spent)
        )
        assert (ready == now) == allowed, "neither stricter nor laxer than the bound"
        if ready > now:
            with pytest.raises(ValueError, match="not yet"):
                rate.spend(wanted, ready - 1)
            continue
        rate.spend(wanted, now)
        if keep:
            spent.append((now, wanted))
        else:
            rate.refund(wanted)
