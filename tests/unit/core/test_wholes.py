"""Several slots at once: all or none, nobody holds half and waits for ever, nobody is passed over, no slot is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flowlane.core.lanes import Lane, Slots


def aside(slots: Slots) -> dict[int, int]:
    return dict(slots._granted)


def test_a_whole_is_taken_at_once() -> None:
    lane = Lane("cpu", 4)
    assert lane.take_whole(1, 3) == (True, ())
    assert (lane.free, lane.in_use) == (1, 3)
    lane.check()


def test_a_whole_that_does_not_fit_collects_and_is_woken_once() -> None:
    lane = Lane("cpu", 4)
    lane.take(1, 3)
    assert lane.take_whole(2, 3) == (False, ())
    assert (lane.free, lane.in_use) == (0, 3), "the free slot is collected, but not in use"
    lane.check()
    assert lane.give(1, 1) == ()  # 2 of 3
    assert lane.give(1, 1) == (2,)
    assert lane.take_whole(2, 3) == (True, ())
    assert (lane.free, lane.in_use) == (0, 4)


def test_nobody_overtakes_a_whole_that_collects() -> None:
    lane = Lane("cpu", 2)
    lane.take(1, 2)
    lane.take_whole(2, 2)
    assert lane.take(3, 1) == (0, ())
    assert lane.give(1, 1) == ()
    assert lane.take(3, 1) == (0, ())
    assert lane.trade(1, 1, 1) == (0, [2])
    assert lane.take_whole(2, 2) == (True, ())
    assert lane.give(2, 2) == (3, 1)


def test_two_wholes_never_hold_half_each() -> None:
    #   run 1 has 4; runs 2 and 3 want 4 each
    lane = Lane("cpu", 4)
    lane.take(1, 4)
    assert lane.take_whole(2, 4) == lane.take_whole(3, 4) == (False, ())
    for _ in range(3):
        assert lane.give(1, 1) == ()
        lane.check()
        assert set(aside(lane)) == {2}
    assert lane.give(1, 1) == (2,)
    assert lane.take_whole(2, 4) == (True, ())
    assert lane.give(2, 4) == (3,)


def test_a_whole_waits_for_its_turn_in_the_line() -> None:
    lane = Lane("cpu", 2)
    lane.take(1, 2)
    lane.take(2, 2)
    lane.take_whole(3, 2)
    assert lane.give(1, 2) == (2,)  # one for run 2, whose second stands behind; the other is collected
    assert aside(lane) == {2: 1, 3: 1}
    assert lane.take(2, 2) == (1, ())
    assert lane.give(2, 1) == (3,)


def test_asking_again_keeps_the_place_and_what_was_collected() -> None:
    lane = Lane("cpu", 3)
    lane.take(1, 3)
    lane.take_whole(2, 3)
    lane.take_whole(3, 2)
    lane.give(1, 1)
    assert lane.take_whole(2, 3) == (False, ())
    assert lane.take_whole(3, 2) == (False, ())
    assert aside(lane) == {2: 1}
    assert lane.give(1, 2) == (2,)


def test_a_whole_that_shrank_takes_what_was_collected() -> None:
    lane = Lane("cpu", 3)
    lane.take(1, 3)
    lane.take_whole(2, 3)
    lane.take(3, 1)
    lane.give(1, 2)
    assert lane.take_whole(2, 1) == (True, (3,))  # the other collected one goes on
    assert lane.in_use == 2


def test_a_whole_becomes_single_slots_and_keeps_its_place() -> None:
    lane = Lane("cpu", 3)
    lane.take(1, 3)
    lane.take_whole(2, 3)
    lane.take(3, 1)
    lane.give(1, 1)
    assert lane.take(2, 2) == (1, ())
    assert lane.give(1, 1) == (2,)


def test_single_slots_become_a_whole_and_keep_what_was_set_aside() -> None:
    lane = Lane("cpu", 3)
    lane.take(1, 3)
    lane.take(2, 1)
    lane.take(3, 1)
    assert lane.give(1, 1) == (2,)
    assert lane.take_whole(2, 2) == (False, ())  # it was its turn: it goes ahead of run 3 and collects
    assert aside(lane) == {2: 1}
    assert lane.give(1, 1) == (2,)


def test_nobody_goes_ahead_of_a_whole_that_is_first() -> None:
    lane = Lane("cpu", 3)
    lane.take(1, 3)
    lane.take(2, 1)
    lane.take_whole(3, 2)
    lane.take(4, 1)
    assert lane.give(1, 2) == (2,)
    assert aside(lane) == {2: 1, 3: 1}
    assert lane.take_whole(2, 2) == (False, (3,))  # what it had completes the other
    assert list(lane._waiting) == [2, 4]  # and it is next


def test_who_gives_back_and_waits_for_a_whole_is_not_told() -> None:
    lane = Lane("cpu", 2)
    lane.take(1, 2)
    lane.take_whole(1, 2)
    assert lane.give(1, 2) == ()
    assert lane.take_whole(1, 2) == (True, ())
    assert lane.in_use == 2


def test_leaving_hands_on_what_was_collected() -> None:
    lane = Lane("cpu", 3)
    lane.take(1, 3)
    lane.take_whole(2, 3)
    lane.take_whole(3, 2)
    lane.give(1, 2)
    assert lane.leave(2) == (3,)
    assert lane.take_whole(3, 2) == (True, ())
    assert lane.leave(3) == ()
    lane.check()


@pytest.mark.parametrize("need", [0, -1, 4])
def test_more_than_there_has_ever_been_is_refused(need: int) -> None:
    lane = Lane("cpu", 3)
    with pytest.raises(ValueError, match=f"lane 'cpu' has 3 slots, not {need} at once"):
        lane.take_whole(1, need)
    assert (lane.free, lane._waiting) == (3, {})


def test_a_whole_larger_than_a_lane_that_shrank_is_complete_with_all_there_is() -> None:
    lane = Lane("cpu", 4)
    lane.take(1, 1)
    assert lane.take_whole(2, 4) == (False, ())  # collects 3
    lane.stretch(-2)
    assert aside(lane) == {2: 1}, "a shrinking lane takes back what is being collected"
    assert lane.give(1, 1) == (2,)
    assert lane.take_whole(2, 4) == (True, ())
    assert (lane.in_use, lane.capacity) == (4, 2)
    assert lane.take(3, 1) == (0, ())
    assert lane.give(2, 4) == (3,)
    assert (lane.in_use, lane.free) == (0, 1)
    lane.check()


def test_shrinking_below_what_is_collected_makes_a_debt() -> None:
    lane = Lane("cpu", 4)
    lane.take(1, 3)
    lane.take_whole(2, 2)
    lane.stretch(-3)
    assert (lane.in_use, lane.free, aside(lane)) == (3, 0, {})
    lane.check()
    assert lane.give(1, 2) == ()
    assert lane.give(1, 1) == (2,)


def test_a_whole_completed_in_a_small_lane_waits_on_when_others_were_quicker_in_the_grown_one() -> None:
    lane = Lane("cpu", 4)
    lane.stretch(-2)
    lane.take(1, 2)
    lane.take_whole(2, 4)
    assert lane.give(1, 2) == (2,)
    assert lane.stretch(0) == ()
    assert lane.take(1, 1) == (1, ())
    assert lane.take(3, 2) == (1, ())
    assert lane.take_whole(2, 4) == (False, ())
    assert list(lane._waiting) == [2, 3], "it goes ahead"
    assert lane.give(1, 1) == ()
    assert lane.give(3, 1) == (2,)


def test_what_is_put_back_is_had_again_before_others() -> None:
    lane = Lane("cpu", 1)
    lane.take_whole(1, 1)
    lane.take_whole(2, 1)
    lane.take(3, 1)
    lane.take(4, 1)
    lane.give(1, 1)
    assert lane.take_whole(2, 1) == (True, ())
    assert lane.put_back(2, 1) == (3,)
    assert lane.take_whole(2, 1) == (False, ())
    assert list(lane._waiting) == [2, 4]
    lane.take(3, 1)
    assert lane.give(3, 1) == (2,)
    assert lane.take_whole(2, 1) == (True, ())
    assert lane.give(2, 1) == (4,)  # the turn is used up
    lane.take_whole(2, 1)
    assert list(lane._waiting) == [2]


def test_what_was_free_and_is_put_back_earns_no_turn() -> None:
    lane = Lane("cpu", 1)
    lane.take_whole(1, 1)
    assert lane.put_back(1, 1) == ()
    assert (lane.free, lane.in_use, lane._early) == (1, 0, set())


def test_a_turn_to_come_ends_with_leaving() -> None:
    lane = Lane("cpu", 1)
    lane.take(1, 1)
    lane.take_whole(2, 1)
    lane.give(1, 1)
    lane.take_whole(2, 1)
    lane.put_back(2, 1)
    assert lane._early == {2}
    lane.leave(2)
    assert lane._early == set()


def test_who_puts_back_is_told_when_that_completes_another_wish_of_its_own() -> None:
    lane = Lane("cpu", 3)
    lane.take_whole(1, 2)
    assert lane.take_whole(1, 3) == (False, ())
    assert lane.put_back(1, 2) == (1,)


def test_check_finds_who_collects_out_of_turn() -> None:
    lane = Lane("cpu", 2)
    lane.take(1, 2)
    lane.take(2, 1)
    lane.take_whole(3, 2)
    lane._granted[3] = 1
    with pytest.raises(AssertionError):
        lane.check()


# ── against a model that deals slot by slot ───────────────────────────────────────────────────────────────────────


class Wish:
    def __init__(self, token: int, count: int, whole: bool) -> None:
        self.token, self.count, self.whole = token, count, whole


class Model:
    """The same rules without debts, counts of free slots or short cuts: who holds what, and a list of wishes."""

    def __init__(self, slots: int) -> None:
        self.capacity = self.peak = slots
        self.out, self.aside, self.early = Counter[int](), Counter[int](), set[int]()
        self.line: list[Wish] = []
        self.in_turn = -1

    def room(self) -> int:
        return self.capacity - self.out.total() - self.aside.total()

    def find(self, token: int) -> Wish | None:
        return next((wish for wish in self.line if wish.token == token), None)

    def drop(self, token: int) -> None:
        self.line = [wish for wish in self.line if wish.token != token]

    def deal(self, teller: int) -> list[int]:
        woken: list[int] = []
        while self.room() > 0 and self.line:
            first = self.line[0]
            self.aside[first.token] += 1
            if first.whole:
                if self.aside[first.token] < min(first.count, self.capacity):
                    continue
                self.line.pop(0)
            else:
                first.count -= 1
                self.line.pop(0)
                if first.count:
                    self.line.append(first)
            if first.token != teller and first.token not in woken:
                woken.append(first.token)
        return woken

    def want(self, token: int, count: int, whole: bool) -> None:
        if wish := self.find(token):
            wish.count, wish.whole = count, whole
        else:
            self.line.append(Wish(token, count, whole))

    def take(self, token: int, wanted: int) -> tuple[int, list[int]]:
        taken = min(wanted, self.aside[token])
        rest = self.aside.pop(token) - taken if token in self.aside else 0
        self.out[token] += taken
        if rest:
            self.drop(token)
        else:
            more = max(0, min(wanted - taken, self.room()))
            self.out[token] += more
            taken += more
            if taken < wanted:
                self.want(token, wanted - taken, whole=False)
            else:
                self.drop(token)
        return taken, self.deal(token)

    def take_whole(self, token: int, need: int) -> tuple[bool, list[int]]:
        have = self.aside.pop(token, 0)
        free = max(0, self.room() - have)
        alone = not (self.out + self.aside)
        if have + free >= need or (need > self.capacity and alone):
            self.in_turn = token if have else -1
            self.early.discard(token)
            self.drop(token)
            self.out[token] += need
            return True, self.deal(token)
        again = have or token in self.early
        self.early.discard(token)
        self.want(token, need, whole=True)
        if again and self.line[0].token != token:
            mine = next(wish for wish in self.line if wish.token == token)
            self.line.remove(mine)
            self.line.insert(1 if self.line[0].whole else 0, mine)
        return False, self.deal(token)

    def give(self, token: int, count: int) -> list[int]:
        self.out[token] -= count
        if len(self.line) == 1 and self.line[0].token == token and not self.line[0].whole:
            self.line.clear()
        return self.deal(token)

    def put_back(self, token: int, count: int) -> list[int]:
        self.out[token] -= count
        if self.in_turn == token:
            self.early.add(token)
            self.in_turn = -1
        return self.deal(-1)

    def leave(self, token: int) -> list[int]:
        self.drop(token)
        self.early.discard(token)
        self.aside.pop(token, 0)
        return self.deal(token)

    def stretch(self, capacity: int) -> list[int]:
        self.capacity = capacity
        self.peak = max(self.peak, capacity)
        while self.room() < 0 and self.line and self.line[0].whole and self.aside[self.line[0].token]:
            self.aside[self.line[0].token] -= 1
        return self.deal(-1)


TOKENS = st.integers(0, 5)
FEW = st.integers(1, 7)


class WholesAndSingles(RuleBasedStateMachine):
    """Runs take, give, put back, leave; the capacity changes. Slots and model must say the same at every call."""

    @initialize(slots=st.integers(1, 6))
    def begin(self, slots: int) -> None:
        self.slots = Slots("a", slots)
        self.model = Model(slots)
        self.latest: dict[int, int] = {}  # what a run took at once, as long as it may put it back
        self.told: set[int] = set()

    def same(self, real: tuple[object, Sequence[int]], model: tuple[object, list[int]]) -> None:
        assert (real[0], list(real[1])) == model
        self.told.update(real[1])

    @rule(token=TOKENS, wanted=st.integers(0, 5))
    def take(self, token: int, wanted: int) -> None:
        self.told.discard(token)
        self.same(self.slots.take(token, wanted), self.model.take(token, wanted))

    @rule(token=TOKENS, need=FEW)
    def take_whole(self, token: int, need: int) -> None:
        if need > self.model.peak:
            with pytest.raises(ValueError, match="at once"):
                self.slots.take_whole(token, need)
            return
        self.told.discard(token)
        taken, woken = self.slots.take_whole(token, need)
        self.same((taken, woken), self.model.take_whole(token, need))
        if taken:
            self.latest[token] = need

    @precondition(lambda self: self.model.out.total())
    @rule(data=st.data(), share=st.floats(0, 1))
    def give(self, data: st.DataObject, share: float) -> None:
        token = data.draw(st.sampled_from(sorted(+self.model.out)))
        count = max(1, round(share * self.model.out[token]))
        self.latest.pop(token, None)
        self.same((None, self.slots.give(token, count)), (None, self.model.give(token, count)))

    @precondition(lambda self: self.model.out.total())
    @rule(data=st.data(), wanted=st.integers(0, 5))
    def trade(self, data: st.DataObject, wanted: int) -> None:
        token = data.draw(st.sampled_from(sorted(+self.model.out)))
        back = data.draw(st.integers(0, self.model.out[token]))
        self.latest.pop(token, None)
        self.told.discard(token)
        woken = self.model.give(token, back) if back else []
        taken, others = self.model.take(token, wanted)
        self.same(self.slots.trade(token, back, wanted), (taken, [*woken, *others]))

    @precondition(lambda self: self.latest)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.latest)))
        need = self.latest.pop(token)
        self.same((None, self.slots.put_back(token, need)), (None, self.model.put_back(token, need)))

    @rule(token=TOKENS)
    def leave(self, token: int) -> None:
        self.told.discard(token)
        self.same((None, self.slots.leave(token)), (None, self.model.leave(token)))

    @rule(capacity=st.integers(1, 9))
    def stretch(self, capacity: int) -> None:
        extra = capacity - self.slots.slots
        self.same((None, self.slots.stretch(extra)), (None, self.model.stretch(capacity)))

    @invariant()
    def agree(self) -> None:
        slots, model = self.slots, self.model
        slots.check()
        assert slots.in_use == model.out.total()
        assert slots.free == max(0, model.room())
        assert slots.capacity == model.capacity
        assert aside(slots) == dict(+model.aside)
        assert slots._early == model.early
        line = [(wish.token, -wish.count if wish.whole else wish.count) for wish in model.line]
        assert list(slots._waiting.items()) == line

    def teardown(self) -> None:
        """All that is out comes back: then everybody who waits is woken, and nothing is left."""
        if not hasattr(self, "slots"):
            return
        slots, model = self.slots, self.model
        for token in [*(+model.out)]:
            slots.give(token, model.out[token])
        for token in [*slots._waiting, *slots._granted]:
            slots.leave(token)
        assert (slots.free, slots.in_use) == (slots.capacity, 0)
        slots.check()


TestWholesAndSingles = WholesAndSingles.TestCase
TestWholesAndSingles.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, print_blob=False
)


@pytest.mark.parametrize("seed", range(30))
def test_everybody_has_a_turn_within_a_bounded_number_of_gives(seed: int) -> None:
    """Greedy runs that always want again, wholes and singles, some of which put back: nobody waits for ever.

    Before a run that begins to wait stand at most all the others, and each takes the capacity in its turn, at most, and
    may once have an early turn besides.
    """
    draw = Random(seed)
    capacity, runs = draw.randint(1, 6), draw.randint(2, 6)
    slots = Slots("a", capacity)
    needs = [draw.randint(1, capacity) if draw.random() < 0.7 else 0 for _ in range(runs)]
    held, served, since = Counter[int](), Counter[int](), Counter[int]()
    woken = list(range(runs))

    def serve(token: int) -> None:
        """Take all it can get."""
        need = needs[token]
        if not need:
            got, others = slots.take(token, capacity)
            woken.extend(others)
            held[token] += got
        taken = bool(need)
        got = 0 if need else got
        while taken:
            taken, others = slots.take_whole(token, need)
            woken.extend(others)
            got += need * taken
            if taken and draw.random() < 0.2:
                woken.extend(slots.put_back(token, need))
            else:
                held[token] += need * taken
        if got:
            served[token] += 1
            since[token] = 0

    for _ in range(600):
        while woken:
            serve(woken.pop(draw.randrange(len(woken))))
            slots.check()
        assert held.total() == slots.in_use > 0, "everybody waits for somebody"
        giver = draw.choice(sorted(+held))
        held[giver] -= 1
        woken += [*slots.give(giver, 1), giver]  # who gives asks again
        for token in range(runs):
            since[token] += 1
            assert since[token] <= 2 * runs * capacity, (seed, token, slots, needs)
    assert min(served[token] for token in range(runs)) >= 600 // (2 * runs * capacity)
