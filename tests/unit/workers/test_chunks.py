"""Chunks of shared memory: what is handed out, reused and given back; who may read it, and when it is free again.

Both sides of the boundary live in this process: an engine's `Book`, and workers made of a `Store` and `Arenas`.
"""

from __future__ import annotations

import errno
import gc
import itertools
import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from flowlane_plugins.workers import chunks, mappings
from flowlane_plugins.workers.chunks import Store, chunk_size, owner_of
from flowlane_plugins.workers.leases import Book
from flowlane_plugins.workers.mappings import Arenas

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowlane_plugins.workers.chunks import ChunkRef

MIB = 1 << 20
BIG = 2 * MIB  # mapped by whoever reads it; smaller ones are copied


def blocks(fd: int) -> int:
    """Bytes of memory that a file has."""
    return os.fstat(fd).st_blocks * 512


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    gc.collect()
    before = descriptors()
    yield
    gc.collect()
    assert descriptors() == before


class Worker:
    """The memory of worker `wid`, as the engine's `book` knows it."""

    def __init__(self, wid: int, book: Book) -> None:
        self.wid = wid
        self.book = book
        self.store = Store(wid)
        self.arenas = Arenas(self.store)

    def returns(self, data: bytes) -> Any:
        """A lease of a chunk that came with a result."""
        ref = self.store.put(data)
        for arena, fd, size in self.store.new_arenas():
            self.book.add(arena, os.dup(fd), size)
        return self.book.take([ref], self.wid)[0]

    def gets(self, chunk: Any) -> memoryview:
        """The bytes of a chunk that comes with a job."""
        for arena, fd, size in self.book.sends(self.wid, [chunk]):
            self.arenas.add(arena, os.dup(fd), size)
        return self.arenas.map(chunk.ref)

    def answers(self) -> None:
        held, released = self.arenas.release()
        self.book.held(self.wid, held)
        self.book.released(self.wid, released)

    def dies(self) -> None:
        self.store.close()
        self.arenas.close()
        self.book.worker_gone(self.wid)


@pytest.fixture
def book() -> Iterator[Book]:
    book = Book()
    yield book
    book.close()


@pytest.fixture
def workers(book: Book) -> Iterator[list[Worker]]:
    workers = [Worker(1, book), Worker(2, book)]
    yield workers
    for worker in workers:
        worker.store.close()
        worker.arenas.close()


# ── the store ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store(7)
    yield store
    store.close()


@pytest.mark.parametrize(
    ("length", "size"), [(0, 1 << 16), (1, 1 << 16), (1 << 16, 1 << 16), ((1 << 16) + 1, 1 << 17), (10**8, 1 << 27)]
)
def test_a_chunk_is_a_power_of_two(length: int, size: int) -> None:
    assert chunk_size(length) == size


def test_what_is_put_is_read_back(store: Store) -> None:
    rng = random.Random(1)
    arenas = Arenas(store)
    kept: list[tuple[ChunkRef, bytes]] = []
    for length in [0, 1, 65_535, 65_536, 65_537, MIB, MIB + 1, 8 * MIB, 8 * MIB + 1, 20 * MIB, 3, 100_000]:
        data = rng.randbytes(length)
        kept.append((store.put(data), data))
    for ref, data in kept:
        assert ref[2] == len(data)
        assert arenas.read(ref) == data
        assert bytes(arenas.map(ref)) == data
    arenas.close()


def test_any_contiguous_bytes_can_be_put(store: Store) -> None:
    arenas = Arenas(store)
    for data in (b"bytes", bytearray(b"array"), memoryview(b"a view of it")[2:6]):
        assert arenas.read(store.put(data)) == bytes(data)
    assert arenas.read(store.gather([b"one", bytearray(b"two"), memoryview(b"three")], 11)) == b"onetwothree"
    arenas.close()


def test_the_arena_is_announced_once_and_says_whose_it_is(store: Store) -> None:
    assert store.new_arenas() == []
    store.put(b"x")
    [(arena, fd, _)] = store.new_arenas()
    assert owner_of(arena) == 7
    assert fd == store.fd
    store.put(bytes(9 * MIB))
    assert store.new_arenas() == []


def test_thousands_of_chunks_cost_two_descriptors(store: Store) -> None:
    store.put(b"x")
    before = descriptors()
    refs = [store.put(bytes(70_000)) for _ in range(2_000)]
    assert len({ref[1] for ref in refs}) == 2_000
    assert descriptors() == before
    for ref in refs:
        store.free(ref)
    for _ in range(2_000):
        store.put(bytes(70_000))
    assert descriptors() <= before + chunks._WINDOWS  # pyright: ignore[reportPrivateUsage]


def test_chunks_do_not_overlap(store: Store) -> None:
    rng = random.Random(2)
    arenas = Arenas(store)
    live: dict[ChunkRef, int] = {}
    for turn in range(1_500):
        if live and rng.random() < 0.45:
            ref = rng.choice(list(live))
            data = arenas.view(ref)
            assert data[:1] == data[-1:] == bytes([live.pop(ref)])
            store.free(ref)
        else:
            length = rng.choice([1, 5_000, 65_536, 65_600, 200_000, MIB, 9 * MIB])
            live[store.put(bytes([turn % 251]) * length)] = turn % 251
    spans = sorted((offset, chunk_size(length)) for _, offset, length in live)
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(spans))
    assert store.live == len(live)
    arenas.close()


def test_a_freed_chunk_is_used_again_with_its_pages(store: Store) -> None:
    first = store.put(b"a" * BIG)
    store.free(first)
    assert store.kept == BIG
    pages = blocks(store.fd)
    second = store.put(b"b" * (BIG - 5))
    assert second[1] == first[1]
    assert blocks(store.fd) == pages
    assert store.kept == 0


def test_a_chunk_used_again_for_more_is_written_to_its_end(store: Store) -> None:
    arenas = Arenas(store)
    store.free(store.put(b"a" * (MIB + 17)))
    data = random.Random(3).randbytes(2 * MIB - 3)
    assert arenas.read(store.gather([data[:100], data[100:MIB], data[MIB:]], len(data))) == data
    store.free(store.put(b"a" * (9 * MIB)))
    data = random.Random(4).randbytes(16 * MIB)
    assert arenas.read(store.put(data)) == data
    arenas.close()


def test_what_is_kept_is_bounded_and_the_longest_free_goes_first() -> None:
    store = Store(1, keep=3 * MIB)
    refs = [store.put(b"x" * MIB) for _ in range(5)]
    for ref in refs:
        store.free(ref)
    assert store.kept == 3 * MIB
    assert blocks(store.fd) == 3 * MIB
    assert [store.put(b"y" * MIB)[1] for _ in range(3)] == [ref[1] for ref in refs[:1:-1]], "the latest first"
    assert store.put(b"z" * MIB)[1] in (refs[0][1], refs[1][1]), "room without pages is used before new room"
    store.free(store.put(b"x" * (9 * MIB)))
    assert blocks(store.fd) == 4 * MIB, "more than may be kept at all is not kept"
    store.close()


def test_a_chunk_is_freed_once(store: Store) -> None:
    ref = store.put(b"x")
    store.free(ref)
    with pytest.raises(KeyError):
        store.free(ref)


def test_no_room_is_an_error_that_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    pwrite = os.pwrite

    def full(fd: int, data: Any, offset: int) -> int:
        nonlocal written
        if written + len(data) > 3 * MIB:
            if written >= 3 * MIB:
                raise OSError(errno.ENOSPC, "No space left on device")
            data = data[: 3 * MIB - written]
        written += len(data)
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    store.put(b"x" * MIB)
    with pytest.raises(OSError, match="No space left"):
        store.put(b"x" * (4 * MIB))
    assert store.live == 1
    assert store.kept == 0
    assert blocks(store.fd) == MIB
    monkeypatch.undo()
    arenas = Arenas(store)
    assert arenas.read(store.put(b"y" * (4 * MIB))) == b"y" * (4 * MIB)
    arenas.close()


# ── mappings ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [100_000, BIG])
def test_who_writes_into_it_harms_nobody(book: Book, workers: list[Worker], length: int) -> None:
    chunk = workers[0].returns(b"a" * length)
    one, two = workers[1].gets(chunk), workers[1].gets(chunk)
    one[:5] = b"mine!"
    assert bytes(two[:5]) == b"aaaaa"
    assert bytes(chunk.map()[:5]) == b"aaaaa"
    assert bytes(workers[0].arenas.map(chunk.ref)[:5]) == b"aaaaa"


def test_a_mapping_that_is_kept_is_told_as_held_and_later_as_released(book: Book, workers: list[Worker]) -> None:
    arenas = workers[1].arenas
    refs = [workers[0].returns(b"x" * BIG) for _ in range(3)]
    views = [workers[1].gets(chunk) for chunk in refs]
    part = views[1][10:20]
    del views
    assert arenas.busy
    assert arenas.release() == ([refs[1].ref], [])
    assert not arenas.busy
    assert arenas.release() == ((), ())
    del part
    assert arenas.busy
    assert arenas.release() == ([], [refs[1].ref])
    assert not arenas.busy


def test_a_chunk_held_twice_is_told_once(book: Book, workers: list[Worker]) -> None:
    arenas = workers[1].arenas
    chunk = workers[0].returns(b"x" * BIG)
    one = workers[1].gets(chunk)
    assert arenas.release() == ([chunk.ref], [])
    two = workers[1].gets(chunk)
    assert arenas.release() == ([], [])
    del one
    assert arenas.release() == ([], []), "the other one is still there"
    del two
    assert arenas.release() == ([], [chunk.ref])


def test_small_chunks_are_copied_and_never_held(book: Book, workers: list[Worker]) -> None:
    kept = workers[1].gets(workers[0].returns(b"x" * MIB))
    assert not workers[1].arenas.busy
    assert len(kept) == MIB


def test_with_many_mappings_further_chunks_are_copied(
    book: Book, workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mappings, "_MAPPINGS", 2)
    leases = [workers[0].returns(bytes([n]) * BIG) for n in range(4)]
    views = [workers[1].gets(chunk) for chunk in leases]
    assert [view[-1] for view in views] == [0, 1, 2, 3]
    assert len(workers[1].arenas.release()[0]) == 2


def test_where_the_system_refuses_a_mapping_the_chunk_is_copied(
    book: Book, workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    chunk = workers[0].returns(b"x" * BIG)
    monkeypatch.setattr(mappings, "_mapped", refuse)
    assert bytes(workers[1].gets(chunk)) == b"x" * BIG


def test_an_unknown_arena_is_waited_for_or_an_error(workers: list[Worker]) -> None:
    asked: list[int] = []
    source = Store(9)
    ref = source.put(b"hello")

    def arrive(arena: int) -> bool:
        asked.append(arena)
        if len(asked) == 1:
            return False
        arenas.add(arena, os.dup(source.fd), 0)
        return True

    arenas = Arenas(None, arrive)
    with pytest.raises(LookupError, match="is not known here"):
        arenas.read(ref)
    assert arenas.read(ref) == b"hello"
    assert arenas.read(ref) == b"hello"
    assert asked == [ref[0], ref[0]]
    arenas.close()
    source.close()


def test_what_is_mapped_outlives_its_arena(book: Book, workers: list[Worker]) -> None:
    chunk = workers[0].returns(b"x" * BIG)
    view = chunk.map()
    workers[0].dies()
    book.close()
    assert bytes(view) == b"x" * BIG


# ── leases ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_chunk_is_freed_when_its_last_lease_ends(book: Book, workers: list[Worker]) -> None:
    chunk = workers[0].returns(b"x" * BIG)
    ref, also = chunk.ref, chunk
    del chunk
    assert not book.news
    assert book.to_free() == {}
    del also
    assert book.news
    assert book.to_free() == {1: [ref]}
    assert book.to_free() == {}
    assert not book.news


def test_a_lease_may_end_on_any_thread(book: Book, workers: list[Worker]) -> None:
    import threading

    box = [workers[0].returns(b"x")]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert list(book.to_free()) == [1]


def test_a_mapping_of_the_engine_keeps_the_lease(book: Book, workers: list[Worker]) -> None:
    chunk = workers[0].returns(b"x" * BIG)
    part = chunk.map()[5:10]
    del chunk
    assert book.to_free() == {}
    del part
    assert list(book.to_free()) == [1]


def test_a_copy_of_the_engine_does_not(book: Book, workers: list[Worker]) -> None:
    copy = workers[0].returns(b"x" * MIB).map()
    assert list(book.to_free()) == [1]
    assert len(copy) == MIB


def test_a_chunk_that_a_worker_holds_is_not_freed(book: Book, workers: list[Worker]) -> None:
    chunk = workers[0].returns(b"x" * BIG)
    kept = workers[1].gets(chunk)
    workers[1].answers()
    del chunk
    assert book.to_free() == {}
    del kept
    workers[1].answers()
    assert list(book.to_free()) == [1]


def test_a_chunk_that_was_held_and_released_is_freed_with_its_lease(book: Book, workers: list[Worker]) -> None:
    chunk = workers[0].returns(b"x" * BIG)
    kept = workers[1].gets(chunk)
    workers[1].answers()
    del kept
    workers[1].answers()
    assert book.to_free() == {}
    del chunk
    assert list(book.to_free()) == [1]


def test_a_result_that_nobody_wants_is_freed(book: Book, workers: list[Worker]) -> None:
    workers[0].returns(b"x")
    assert list(book.to_free()) == [1]


def test_an_arena_is_sent_to_a_worker_once_and_never_to_its_owner(book: Book, workers: list[Worker]) -> None:
    one, two = workers[0].returns(b"x"), workers[0].returns(b"y")
    own = book.put([b"z"], 1)
    assert book.sends(1, [one, two]) == []
    sent = book.sends(2, [one, own, two])
    assert [owner_of(arena) for arena, _, _ in sent] == [1, 0]
    assert book.sends(2, [two, own]) == []


def test_the_engines_own_chunks_are_freed_in_place(book: Book) -> None:
    chunk = book.put([b"ab", b"cd"], 4)
    offset = chunk.ref[1]
    assert bytes(chunk.map()) == b"abcd"
    del chunk
    assert book.put([b"x"], 1).ref[1] == offset, "freed before the next is made"
    assert book.to_free() == {}
    assert book.store.live == 0


# ── workers that go ───────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_dead_worker_held_is_free(book: Book, workers: list[Worker]) -> None:
    chunk = workers[0].returns(b"x" * BIG)
    kept = workers[1].gets(chunk)
    workers[1].answers()
    del chunk, kept
    assert book.to_free() == {}
    workers[1].dies()
    assert list(book.to_free()) == [1]


def test_an_arena_outlives_its_worker_until_its_last_chunk_is_free(book: Book, workers: list[Worker]) -> None:
    one, two = workers[0].returns(b"1" * BIG), workers[0].returns(b"2" * BIG)
    kept = workers[1].gets(two)
    workers[1].answers()
    arena = one.ref[0]
    workers[0].dies()
    assert bytes(one.map()) == b"1" * BIG
    assert bytes(book.read(two.ref)) == b"2" * BIG
    del one, two
    assert book.to_free() == {}
    assert book.arenas.known(arena), "worker 2 holds a chunk of it"
    del kept
    workers[1].answers()
    assert book.to_free() == {}, "there is nobody left to tell"
    assert not book.arenas.known(arena)
    assert book.to_drop() == {2: [arena]}
    assert book.to_drop() == {}
    workers[1].arenas.drop(arena)


def test_the_pool_of_a_dead_worker_is_given_back_at_once(book: Book, workers: list[Worker]) -> None:
    leases = [workers[0].returns(bytes([n]) * BIG) for n in range(6)]
    kept = leases[3]
    del leases
    workers[0].store.free(next(iter(book.to_free().values()))[0])
    fd = os.dup(workers[0].store.fd)
    assert blocks(fd) == 6 * BIG
    workers[0].dies()
    assert blocks(fd) == BIG
    assert bytes(kept.map()) == b"\3" * BIG
    os.close(fd)


def test_chunks_of_a_dead_worker_are_given_back_one_by_one(book: Book, workers: list[Worker]) -> None:
    leases = [workers[0].returns(bytes([n]) * BIG) for n in range(3)]
    fd = os.dup(workers[0].store.fd)
    workers[0].dies()
    assert blocks(fd) == 3 * BIG
    leases.pop(1)
    book.to_free()
    assert blocks(fd) == 2 * BIG
    assert bytes(leases[1].map()) == b"\2" * BIG
    leases.clear()
    book.to_free()
    assert book.arenas.ids() == []
    os.close(fd)


def test_a_worker_that_leaves_nothing_closes_its_arena(book: Book, workers: list[Worker]) -> None:
    workers[1].gets(workers[0].returns(b"x" * BIG))
    arena = workers[0].store.arena
    workers[0].dies()
    assert not book.arenas.known(arena)
    assert book.to_drop() == {2: [arena]}


def test_nothing_is_told_to_workers_that_are_gone(book: Book, workers: list[Worker]) -> None:
    chunk = workers[0].returns(b"x" * BIG)
    workers[1].gets(chunk)
    del chunk
    workers[0].dies()
    workers[1].dies()
    assert book.to_free() == {}
    assert book.to_drop() == {}


def test_leases_that_end_after_the_book_was_closed_are_harmless() -> None:
    book = Book()
    own = book.put([b"x"], 1)
    book.close()
    with pytest.raises(LookupError):
        own.map()
    del own
    assert book.to_free() == {}
