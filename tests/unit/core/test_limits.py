"""Named limits: weights and rates, both or neither, and every run has its turn at both."""

from __future__ import annotations

from collections import Counter
from heapq import heappop, heappush
from random import Random

import pytest

from flowlane.core.limits import PATIENCE_NS, Limit, parse_rate
from flowlane.core.messages import NEVER
from flowlane.core.rate import Rate

S = 1_000_000_000


# ── rates as text ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "count", "period"),
    [
        ("50/s", 50, S),
        ("10/min", 10, 60 * S),
        ("1000/h", 1000, 3600 * S),
        ("5/2s", 5, 2 * S),
        (" 1 / 250 ms ", 1, S // 4),
        ("7/1d", 7, 86400 * S),
    ],
)
def test_a_rate_is_read(text: str, count: int, period: int) -> None:
    rate = parse_rate(text)
    assert (rate.count, rate.period_ns, rate.burst) == (count, period, 1)
    assert parse_rate(text, burst=9).burst == 9


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not of the form"),
        ("50", "is not of the form"),
        ("1.5/s", 'is not of the form "50/s", "10/min", "1000/h" or "5/2s", in whole numbers'),
        ("-1/s", "is not of the form"),
        ("5/s/s", "is not of the form"),
        ("٣/s", "is not of the form"),
        ("5/fortnight", "rate '5/fortnight' has the unit 'fortnight'; there are ms, s, min, h, d"),
        ("5/m", "has the unit 'm'"),
        ("0/s", "rate '0/s' must have 1 or more in 1 or more s"),
        ("5/0h", "must have 1 or more in 1 or more h"),
    ],
)
def test_what_is_no_rate_is_explained(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_rate(text)
    assert problem in str(caught.value)


# ── slots alone ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_limit_has_its_slots_by_weight() -> None:
    limit = Limit("db", 4)
    assert limit.claim(1, 3, 0) == (True, ())
    assert limit.claim(2, 2, 0) == (False, ())
    assert limit.due(2, 2, 0) == NEVER
    assert limit.claim(3, 1, 0) == (False, ()), "run 2 collects what is left"
    assert limit.give(1, 3) == (2, 3)
    assert limit.claim(2, 2, 5) == (True, ())
    limit.check()
    assert repr(limit) == "Limit('db', 2/4 in use, 0 waiting)"


def test_a_weight_above_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="limit 'db' has 4 slots, not 5 at once"):
        Limit("db", 4).claim(1, 5, 0)
    with pytest.raises(ValueError, match="limit 'db' needs at least 1 slot, not 0"):
        Limit("db", 0)


def test_a_claim_undone_gives_the_slots_to_the_next_and_keeps_its_turn() -> None:
    limit = Limit("db", 1)
    limit.claim(1, 1, 0)
    limit.claim(2, 1, 0)
    limit.claim(3, 1, 0)
    limit.claim(4, 1, 0)
    assert limit.give(1, 1) == (2,)
    assert limit.claim(2, 1, 5) == (True, ())
    assert limit.unclaim(2, 1) == (3,)
    assert limit.claim(3, 1, 6) == (True, ())
    assert limit.claim(2, 1, 7) == (False, ())
    assert limit.give(3, 1) == (4,), "a whole that is first is not overtaken"
    limit.claim(4, 1, 8)
    assert limit.give(4, 1) == (2,)


# ── rates ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rate_alone_has_any_number_at_once() -> None:
    limit = Limit("api", None, rate=Rate(1, 10, burst=3))
    assert [limit.claim(1, 1, 0)[0] for _ in range(4)] == [True, True, True, False]
    assert limit.in_use == 3
    assert limit.due(1, 1, 0) == 10
    assert limit.claim(1, 1, 9) == (False, ())
    assert limit.claim(1, 1, 10) == (True, ())
    assert limit.due(1, 1, 10) == NEVER  # nothing was refused
    assert limit.give(1, 4) == ()
    assert limit.in_use == 0
    limit.check()


def test_what_the_rate_refuses_holds_no_slot() -> None:
    limit = Limit("api", 2, rate=Rate(1, 10))
    limit.claim(1, 1, 0)
    assert limit.claim(1, 1, 1) == (False, ())
    assert (limit.in_use, limit.free) == (1, 1)


def test_what_lacks_slots_spends_nothing() -> None:
    limit = Limit("api", 1, rate=Rate(1, 10))
    limit.claim(1, 1, 0)
    assert limit.claim(2, 1, 20) == (False, ())
    assert limit.due(2, 1, 20) == NEVER
    assert limit.give(1, 1) == (2,)
    assert limit.claim(2, 1, 25) == (True, ())
    assert limit.claim(2, 1, 26) == (False, ())
    assert limit.due(2, 1, 26) == 35


def test_a_weight_above_the_burst_or_the_slots_is_refused_and_changes_nothing() -> None:
    limit = Limit("api", 4, rate=Rate(1, 10, burst=3))
    with pytest.raises(ValueError, match="lets 1 to 3 start at once, never 4"):
        limit.claim(1, 4, 0)
    limit = Limit("api", 2, rate=Rate(1, 10, burst=3))
    with pytest.raises(ValueError, match="limit 'api' has 2 slots, not 3 at once"):
        limit.claim(1, 3, 0)
    assert limit._line == {}
    assert limit.claim(1, 2, 0) == (True, ())


def test_a_claim_undone_gives_slots_and_rate_back() -> None:
    limit = Limit("api", 3, rate=Rate(1, 10, burst=3))
    assert limit.claim(1, 3, 5) == (True, ())
    assert limit.unclaim(1, 3) == ()
    assert limit.claim(2, 3, 5) == (True, ())
    limit.check()


def test_runs_have_the_rate_in_turns() -> None:
    limit = Limit("api", None, rate=Rate(1, 10))
    assert limit.claim(1, 1, 0) == (True, ())
    assert limit.claim(1, 1, 0) == (False, ())
    assert limit.claim(2, 1, 0) == (False, ())
    assert limit.due(1, 1, 0) == 10
    assert limit.due(2, 1, 0) == 10 + PATIENCE_NS
    assert limit.claim(2, 1, 10) == (False, ()), "run 1 is first, though its timer is late"
    assert limit.claim(1, 1, 11) == (True, [2])
    assert limit.claim(1, 1, 11) == (False, ())
    assert limit.due(1, 1, 11) == 21 + PATIENCE_NS
    assert limit.claim(2, 1, 12) == (False, ())
    assert limit.due(2, 1, 12) == 21
    assert limit.claim(2, 1, 21) == (True, [1])


def test_the_one_whose_turn_it_is_waits_for_slots_without_losing_it() -> None:
    limit = Limit("api", 1, rate=Rate(1, 10))
    limit.claim(1, 1, 0)
    limit.claim(2, 1, 20)
    late = 20 + 10 * PATIENCE_NS
    assert limit.claim(3, 1, late) == (False, ())
    assert limit.due(3, 1, late) == NEVER
    limit.check()
    assert limit.give(1, 1) == (2,)
    assert limit.claim(3, 1, late + 1) == (False, ())
    assert limit.claim(2, 1, late + 2) == (True, [3])


def test_one_that_does_not_come_loses_its_place() -> None:
    limit = Limit("api", None, rate=Rate(1, 10))
    limit.claim(1, 1, 0)
    limit.claim(2, 1, 0)
    limit.claim(3, 1, 0)
    limit.claim(4, 1, 0)
    due = limit.due(4, 1, 0)
    assert limit.claim(4, 1, due - 1) == (False, ())
    assert limit.claim(4, 1, due) == (False, ())  # 2 is gone, 3 is first
    assert list(limit._line) == [3, 4]
    again = limit.due(4, 1, due)
    assert again == due + PATIENCE_NS
    assert limit.claim(4, 1, again) == (True, ())
    assert limit.claim(2, 1, again) == (False, ())
    limit.check()


def test_leaving_hands_the_turn_on() -> None:
    limit = Limit("api", None, rate=Rate(1, 10))
    limit.claim(1, 1, 0)
    for token in (2, 3, 4):
        limit.claim(token, 1, 0)
    assert limit.leave(3) == ()
    assert limit.leave(2) == [4]
    assert limit.leave(4) == ()
    assert limit.leave(1) == ()
    assert limit.due(5, 1, 0) == NEVER


def test_leaving_hands_on_slots_and_turn() -> None:
    limit = Limit("api", 1, rate=Rate(1, 10))
    limit.claim(1, 1, 0)
    limit.claim(2, 1, 20)
    limit.claim(3, 1, 20)
    limit.give(1, 1)
    assert limit.leave(2) == [3]
    assert limit.claim(3, 1, 21) == (True, ())


def test_a_claim_undone_keeps_its_turn_at_the_rate() -> None:
    limit = Limit("api", None, rate=Rate(1, 10))
    limit.claim(1, 1, 0)
    for token in (2, 3, 4):
        limit.claim(token, 1, 0)
    assert limit.claim(2, 1, 10) == (True, [3])
    assert limit.unclaim(2, 1) == ()
    assert limit.claim(2, 1, 11) == (False, ())
    assert list(limit._line) == [3, 2, 4]
    assert limit.claim(3, 1, 12) == (True, [2])
    assert limit.claim(2, 1, 22) == (True, [4])
    assert limit.claim(2, 1, 23) == (False, ())
    assert list(limit._line) == [4, 2], "the turn is used up"


def test_one_that_waits_already_and_is_to_have_its_turn_again_moves_up() -> None:
    limit = Limit("api", None, rate=Rate(1, 10))
    limit.claim(1, 1, 0)
    for token in (2, 3, 4, 5):
        limit.claim(token, 1, 0)
    limit._early.add(5)
    limit.claim(5, 1, 1)
    assert list(limit._line) == [2, 5, 3, 4]


def test_one_with_slots_set_aside_whose_weight_grew_waits_for_the_rate() -> None:
    limit = Limit("api", 2, rate=Rate(1, 10, burst=2))
    limit.claim(1, 2, 0)
    limit.claim(2, 1, 10)
    limit.give(1, 2)
    assert limit.claim(2, 2, 11) == (False, ())
    assert limit.due(2, 2, 11) == 20, "nobody's giving back would wake it"
    assert limit.claim(2, 2, 20) == (True, ())


def test_check_finds_who_waits_for_slots_before_its_turn() -> None:
    limit = Limit("api", 1, rate=Rate(1, 10))
    limit._waiting[3] = -1
    limit.free = 0
    with pytest.raises(AssertionError):
        limit.check()


@pytest.mark.parametrize("seed", range(20))
def test_greedy_runs_share_slots_and_rate_evenly_and_never_have_too_much(seed: int) -> None:
    """Runs that always want more, each woken or by its timer, in virtual time; one of them goes away in the middle.

    Where there are no slots to be set aside for it, it goes unannounced.
    """
    draw = Random(seed)
    slots = draw.choice([None, 2, 3, 5])
    rate = Rate(draw.randint(1, 5), S // 10, burst=3)
    limit = Limit("api", slots, rate=rate)
    weights = [draw.randint(1, 2) for _ in range(4)]
    ghost = draw.randrange(4)
    starts: list[tuple[int, int]] = []
    served = Counter[int]()
    agenda: list[tuple[int, int, str, int]] = []
    timers = dict.fromkeys(range(4), NEVER)
    ticket = 0

    def plan(at: int, what: str, token: int) -> None:
        nonlocal ticket
        ticket += 1
        heappush(agenda, (at, ticket, what, token))

    for token in range(4):
        plan(0, "ask", token)
    end = 30 * S
    while agenda and (entry := heappop(agenda))[0] < end:
        now, _, what, token = entry
        weight = weights[token]
        if what == "end":
            for other in limit.give(token, weight):
                plan(now, "ask", other)
        if what == "timer" and timers[token] != now:
            continue  # another has replaced it
        if token == ghost and now > end // 3:
            for other in limit.leave(token) if slots else ():
                plan(now, "ask", other)
            continue
        taken = True
        while taken:
            taken, woken = limit.claim(token, weight, now)
            limit.check()
            for other in woken:
                plan(now, "ask", other)
            if taken and draw.random() < 0.1:
                for other in limit.unclaim(token, weight):
                    plan(now, "ask", other)
                plan(now + 1000, "ask", token)
                break
            if taken:
                starts.append((now, weight))
                served[token] += now > end // 2
                plan(now + draw.randint(1, S // 10), "end", token)
        due = limit.due(token, weight, now)
        assert due == NEVER or due > now
        if due != NEVER and due != timers[token]:
            plan(due, "timer", token)
        timers[token] = due
    assert slots is None or limit.in_use <= slots
    for i in range(0, len(starts), 7):
        total = 0
        for at, weight in starts[i : i + 200]:
            total += weight
            assert total <= 3 + (at - starts[i][0]) * rate.count / rate.period_ns
    living = [served[token] for token in range(4) if token != ghost]
    assert served[ghost] == 0
    assert min(living) >= 0.75 * max(living) > 10, served
