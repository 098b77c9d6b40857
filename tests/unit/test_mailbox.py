"""The way from the loop to the threads that store and tell: nothing lost, nothing doubled, in order, and nobody left asleep."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from flowlane.runtime.mailbox import Mailbox, Stream

LONG = 30.0  # seconds: a wake-up that is lost fails the test, nothing else waits for it
NEVER = 3600.0  # seconds that no test waits


class Named(Stream):
    __slots__ = ("name",)

    def __init__(self, name: str = "a") -> None:
        super().__init__()
        self.name = name


class Owner:
    """Remembers what its mailbox hands on, as (stream, rows or word)."""

    def __init__(self, **options: Any) -> None:
        self.got: list[tuple[str, Any]] = []
        self.reports: list[Any] = []
        self.waiting: list[int] = []  # rows not consumed, at each chunk
        self.ended = 0
        self.came = threading.Event()
        self.box: Mailbox[Named, str] = Mailbox("test-mailbox", self.take, self.control, ended=self.end, **options)

    def take(self, stream: Named, rows: list[Any], reports: Any) -> None:
        assert threading.current_thread().name == "test-mailbox"
        self.waiting.append(self.box.appended - self.box.consumed)
        self.got.append((stream.name, rows))
        self.reports.append(reports)
        self.came.set()

    def control(self, stream: Named, word: str) -> None:
        assert threading.current_thread().name == "test-mailbox"
        self.got.append((stream.name, word))
        self.came.set()

    def end(self) -> None:
        self.ended += 1

    def of(self, name: str) -> list[Any]:
        """Rows and words of one stream, in the order in which they came."""
        found: list[Any] = []
        for stream, what in self.got:
            if stream == name:
                found += [what] if isinstance(what, str) else what
        return found


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.fixture
def turns() -> Iterator[None]:
    """The interpreter changes threads as often as it can: what may interleave badly does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def row(number: int) -> Any:
    return (number, 1, 0, number)


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_lost_or_doubled_and_each_stream_keeps_its_order(turns: None, seed: int) -> None:
    dice = Random(seed)
    owner = Owner(chunk_rows=dice.choice([1, 7, 50]), linger=dice.choice([0.0, 0.0003]))
    streams = [Named(name) for name in "abc"]
    given: dict[str, list[Any]] = {stream.name: [] for stream in streams}
    owner.box.start()
    pause = threading.Event()
    for number in range(1500):
        stream = dice.choice(streams)
        chance = dice.random()
        if chance < 0.1:
            owner.box.put(stream, f"word {number}", urgent=chance < 0.05)
            given[stream.name].append(f"word {number}")
        else:
            rows = [row(number * 10 + n) for n in range(dice.choice([1, 2, 3, 9]))]
            reports: Any = {each[:2]: number for each in rows}
            owner.box.append(stream, rows, reports)
            given[stream.name] += rows
        if chance > 0.98:
            pause.wait(dice.random() * 0.0005)
    owner.box.close()
    assert {name: owner.of(name) for name in given} == given
    assert owner.box.appended == owner.box.consumed
    assert owner.ended == 1
    chunks = [what for _, what in owner.got if not isinstance(what, str)]
    for rows, of_rows in zip(chunks, owner.reports, strict=True):
        assert of_rows == {each[:2]: each[0] // 10 for each in rows}


@pytest.mark.parametrize("linger", [0.0, 0.0002])
def test_a_row_alone_never_waits_for_ever(turns: None, linger: float) -> None:
    """Appended at every phase of the thread's falling asleep: a lost wake-up would leave it there."""
    owner, stream = Owner(chunk_rows=3, linger=linger), Named()
    owner.box.start()
    for number in range(1500):
        owner.came.clear()
        owner.box.append(stream, [row(number)], {})
        assert owner.came.wait(LONG)
    owner.box.close()
    assert owner.of("a") == [row(number) for number in range(1500)]


def test_what_is_urgent_waits_for_no_company(turns: None) -> None:
    owner, stream = Owner(chunk_rows=10**6, linger=NEVER), Named()
    owner.box.start()
    for number in range(1500):
        owner.came.clear()
        owner.box.append(stream, [row(number)], {})
        owner.box.put(stream, str(number), urgent=True)
        while len(owner.got) < 2 * (number + 1):
            assert owner.came.wait(LONG)
            owner.came.clear()
    owner.box.close()
    assert owner.of("a") == [each for number in range(1500) for each in (row(number), str(number))]


def test_what_is_urgent_is_not_forgotten_when_it_comes_in_the_middle_of_a_chunk() -> None:
    last, stream = threading.Event(), Named()

    def control(stream: Named, word: str) -> None:
        if word == "first":  # as if who appends did so at this very moment
            box.put(stream, "second", urgent=True)
        else:
            last.set()

    box: Mailbox[Named, str] = Mailbox("test-mailbox", lambda stream, rows, reports: None, control, linger=NEVER)
    box.start()
    box.put(stream, "first", urgent=True)
    assert last.wait(LONG)
    box.close()


def test_rows_wait_for_company_until_a_chunk_is_full() -> None:
    owner, stream = Owner(chunk_rows=10, linger=NEVER), Named()
    owner.box.start()
    owner.box.append(stream, [row(0)], {})
    pause = threading.Event()
    while owner.box._wake_at != 10:  # it has woken, and waits for the tenth
        pause.wait(0.001)
    for number in range(1, 10):
        owner.box.append(stream, [row(number)], {})
    assert owner.came.wait(LONG)
    assert owner.got == [("a", [row(number) for number in range(10)])]
    owner.box.close()


def test_a_step_is_never_cut_and_a_chunk_is_no_longer_than_it_must() -> None:
    owner, stream = Owner(chunk_rows=5), Named()
    steps = [[row(10 * number + n) for n in range(size)] for number, size in enumerate([2, 3, 1, 5, 8, 4, 1, 1])]
    for rows in steps:
        owner.box.append(stream, rows, {})
    owner.box.start()
    owner.box.close()
    assert [len(rows) for _, rows in owner.got] == [5, 1, 5, 8, 5, 1]
    assert owner.of("a") == [each for rows in steps for each in rows]


def test_a_word_comes_after_the_rows_before_it_and_before_those_behind() -> None:
    owner, one, two = Owner(), Named("1"), Named("2")
    owner.box.append(one, [row(1)], {})
    owner.box.append(two, [row(2)], {})
    owner.box.put(one, "stop")
    owner.box.append(one, [row(3)], {})
    owner.box.start()
    owner.box.close()
    assert [what for name, what in owner.got if name == "1"] == [[row(1)], "stop", [row(3)]]
    assert owner.of("2") == [row(2)]


def test_rows_are_consumed_when_the_owner_has_done_with_them() -> None:
    owner, stream = Owner(chunk_rows=2), Named()
    for number in range(6):
        owner.box.append(stream, [row(number)], {})
    assert owner.box.appended - owner.box.consumed == 6
    owner.box.start()
    owner.box.close()
    assert owner.waiting == [6, 4, 2]


def test_what_is_left_at_the_end_is_handed_on() -> None:
    owner, stream = Owner(linger=NEVER), Named()
    owner.box.start()
    owner.box.append(stream, [row(1)], {})
    owner.box.append(stream, [row(2)], {})
    owner.box.close()
    owner.box.close()
    assert owner.of("a") == [row(1), row(2)]
    assert (owner.ended, owner.box.alive, owner.box.started) == (1, False, True)


def test_the_end_of_a_mailbox_that_never_began() -> None:
    owner = Owner()
    owner.box.close()
    assert (owner.got, owner.ended, owner.box.started) == ([], 0, False)


def test_the_end_from_its_own_thread_does_not_wait_for_itself() -> None:
    ended = threading.Event()
    box: Mailbox[Named, str] = Mailbox(
        "test-mailbox", lambda stream, rows, reports: None, lambda stream, word: box.close(), ended=ended.set
    )
    box.start()
    box.put(Named(), "close")
    assert ended.wait(LONG)
    box.close()


def test_an_owner_that_is_stuck_holds_up_the_end_for_its_timeout_only() -> None:
    go = threading.Event()
    box: Mailbox[Named, str] = Mailbox(
        "test-mailbox", lambda stream, rows, reports: None, lambda stream, word: go.wait(LONG)
    )
    box.start()
    box.put(Named(), "stick")
    box.close(timeout=0.01)
    assert box.alive
    go.set()
    box.close()
    assert not box.alive


def test_the_owner_is_attended_to_while_nothing_comes() -> None:
    often, calls = threading.Event(), []

    def attend() -> float | None:
        calls.append(threading.current_thread().name)
        if len(calls) == 5:
            often.set()
            return None  # from now on only when something has come
        return 0.0005

    owner = Owner(attend=attend)
    owner.box.start()
    assert often.wait(LONG)
    owner.box.put(Named(), "word")
    owner.box.close()
    assert set(calls) == {"test-mailbox"}
    assert 5 <= len(calls) <= 6  # once more if the end came in a chunk of its own


def test_a_thread_that_is_not_to_be_had_may_be_there_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    owner = Owner()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            owner.box.start()
    assert not owner.box.started
    owner.box.start()
    owner.box.start()
    owner.box.put(Named(), "word")
    owner.box.close()
    assert owner.got == [("a", "word")]
