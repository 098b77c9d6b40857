"""What every store promises, as tests that anybody can run over theirs.

In a test module::

    class TestMyStore(StoreContract):
        @pytest.fixture
        def make(self, tmp_path):
            return lambda: MyStore(tmp_path / "runs")

`make` gives a store on the same data each time it is called: what one wrote, the next one reads, as two processes would. A
store that lives in one process gives the same object again. See ``flowlane.storage.port`` for the promises themselves.
"""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.core.elements import CHAIN, GRAPH, TREE
from flowlane.core.states import REASONS, STATES, Reason, RunState, TaskState
from flowlane.errors import RunExists, RunLocked, StoreError, UnknownRun
from flowlane.storage.port import (
    INLINE_MAX,
    AttemptRow,
    BlockRow,
    CacheRow,
    NewRun,
    NewSession,
    Owner,
    Store,
    StoredAttempt,
    StoredBlock,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flowlane.storage.port import Lease, ResultRef

__all__ = ["StoreContract", "attempt", "new_run", "new_session"]

_HERE = Owner(4321, "here")
_T = 1_764_000_000_000_000_000  # a time as stores get them: ns since the epoch


def new_run(name: str = "brisk-otter", **fields: Any) -> NewRun:
    """A run to begin; `fields` take the place of what is made up."""
    made: dict[str, Any] = {
        "id": secrets.token_hex(6),
        "name": name,
        "workflow": "etl",
        "origin": '{"file":"etl.py"}',
        "params": b"sealed",
        "created": _T,
    }
    return NewRun(**{**made, **fields})


def new_session(**fields: Any) -> NewSession:
    """A session to begin or reopen a run with."""
    made: dict[str, Any] = {
        "owner": _HERE,
        "graph": b"graph",
        "tasks": 3,
        "started": _T,
        "versions": "flowlane 0, CPython 3",
    }
    return NewSession(**{**made, **fields})


def attempt(
    element: int,
    number: int = 1,
    state: TaskState = TaskState.SUCCEEDED,
    *result: bytes | bytearray | memoryview,
    reason: Reason = Reason.RETURNED,
    detail: str | None = '{"worker":"w1"}',
    origin: ResultRef | None = None,
) -> AttemptRow:
    """A row, with times that differ from row to row."""
    t = _T + element * 1000 + number
    return AttemptRow(
        element, number, STATES.index(state), REASONS.index(reason), t, t + 1, t + 2, result, detail, origin
    )


def _plain(row: StoredAttempt) -> tuple[Any, ...]:
    return row[:8]


class StoreContract:
    """Override `make`. Each test has a store of its own, with nothing in it."""

    @pytest.fixture
    def make(self) -> Callable[[], Store]:
        raise NotImplementedError(
            "override the fixture `make`: it gives a function that makes a store on the same data"
        )

    @pytest.fixture
    def open_store(self, make: Callable[[], Store]) -> Iterator[Callable[[], Store]]:
        """As `make`, and opened; all are closed at the end."""
        stores: list[Store] = []

        def opened() -> Store:
            store = make()
            store.open()
            stores.append(store)
            return store

        yield opened
        for store in stores:
            store.close()

    @pytest.fixture
    def store(self, open_store: Callable[[], Store]) -> Store:
        return open_store()

    # ── the store itself ──────────────────────────────────────────────────────────────────────────────────────────────

    def test_is_a_store_with_a_secret(self, store: Store) -> None:
        assert isinstance(store, Store)
        assert len(store.secret) >= 32

    def test_the_secret_stays(self, open_store: Callable[[], Store]) -> None:
        assert open_store().secret == open_store().secret

    def test_opening_and_closing_twice_is_once(self, store: Store) -> None:
        store.open()
        store.close()
        store.close()
        store.open()
        assert store.runs() == []

    # ── runs and sessions ─────────────────────────────────────────────────────────────────────────────────────────────

    def test_a_run_that_begins_is_there(self, store: Store) -> None:
        run, session = new_run(parent="0123456789ab"), new_session()
        lease = store.begin(run, session)
        assert lease == (run.id, 1)
        (told,) = store.runs()
        assert (told.id, told.name, told.workflow, told.origin) == (run.id, run.name, run.workflow, run.origin)
        assert (told.parent, told.created, told.started, told.ended) == (run.parent, run.created, session.started, 0)
        assert (told.state, told.error, told.session, told.tasks) == (RunState.RUNNING, None, 1, 3)
        assert told.counts == {"pending": 3}
        stored = store.session(run.id)
        assert (stored.number, stored.owner, stored.graph, stored.tasks) == (1, _HERE, b"graph", 3)
        assert (stored.started, stored.ended, stored.versions) == (session.started, 0, session.versions)
        assert store.params(run.id) == b"sealed"
        assert list(store.attempts(run.id)) == []

    def test_a_run_cannot_begin_twice(self, store: Store) -> None:
        run = new_run()
        store.begin(run, new_session())
        with pytest.raises(RunExists) as refused:
            store.begin(run, new_session())
        assert refused.value.id == run.id
        assert len(store.runs()) == 1

    def test_how_a_run_ended_is_kept(self, open_store: Callable[[], Store]) -> None:
        store = open_store()
        lease = store.begin(new_run(), new_session())
        store.write(lease, [attempt(0), attempt(1, 1, TaskState.FAILED)])
        store.close_run(lease, RunState.FAILED, _T + 5, "parse: ValueError: bad row")
        for each in (store, open_store()):
            (told,) = each.runs()
            assert (told.state, told.ended, told.error) == (RunState.FAILED, _T + 5, "parse: ValueError: bad row")
            assert told.counts == {"succeeded": 1, "failed": 1, "pending": 1}  # nobody said it, and one has no row
            assert each.session(lease.run).ended == _T + 5

    def test_counts_are_of_the_last_attempt_of_each_task(self, store: Store) -> None:
        lease = store.begin(new_run(), new_session())
        store.write(lease, [attempt(0, 1, TaskState.RETRYING), attempt(1, 1, TaskState.RUNNING)])
        store.write(lease, [attempt(0, 2, TaskState.RETRYING), attempt(0, 3), attempt(2, 0, TaskState.UPSTREAM_FAILED)])
        assert store.runs()[0].counts == {"running": 1, "succeeded": 1, "upstream_failed": 1}

    def test_counts_are_what_whoever_closed_the_session_said(self, open_store: Callable[[], Store]) -> None:
        store = open_store()
        lease = store.begin(new_run(), new_session())
        store.write(lease, [attempt(0), attempt(1)])
        counts = {"succeeded": 1, "skipped": 41}
        store.close_run(lease, RunState.SUCCEEDED, _T, None, counts)
        counts.clear()
        for each in (store, open_store()):
            assert each.runs()[0].counts == each.find(lease.run).counts == {"succeeded": 1, "skipped": 41}
        store.reopen(lease.run, new_session(adopted=[(0, (lease.run, 1, 0, 1))]))
        assert store.find(lease.run).counts == {"succeeded": 1, "pending": 2}

    def test_a_session_that_nobody_closed_counts_what_became_others_as_these(self, store: Store) -> None:
        lease = store.begin(new_run(), new_session(tasks=6))
        chain = b'{"stages":[1,2],"keys":{}}'
        store.write(
            lease,
            [
                attempt(0),
                attempt(1, 1, TaskState.EXPANDED, reason=Reason.BECAME_MORE),
                attempt(2, 1, TaskState.FAILED, reason=Reason.RAISED),  # of itself: its items could not be read
                attempt(3, 1, TaskState.RETRYING),
                attempt(3, 2, TaskState.FAILED, reason=Reason.ELEMENTS_FAILED),
                attempt(6),  # 1[0]
                attempt(7, 1, TaskState.RUNNING),  # 2[0]
                attempt(8, 1, TaskState.SKIPPED),  # 1[1]
                attempt(10, 1, TaskState.FAILED),  # 3/0
                attempt(11, 0, TaskState.CANCELLED),  # 3/1
            ],
            (),
            [
                BlockRow(6, 4, CHAIN, 1, 0, 0, chain),  # 1[0] 2[0] 1[1] 2[1]
                BlockRow(10, 2, GRAPH, 3, 0, 0, b"graph"),
                BlockRow(12, 2, GRAPH, 4, 0, 0, b"graph"),  # of a task whose own row did not come to be written
            ],
        )
        # 0   1 (became 6, 8)   2 (became 7, 9)   3 (became 10, 11)   4 (became 12, 13)   5
        counts = {"pending": 4, "running": 1, "succeeded": 2, "failed": 2, "cancelled": 1, "skipped": 1}
        assert store.runs()[0].counts == counts
        store.seize(lease.run, _T)
        assert store.runs()[0].counts == counts

    def test_a_row_that_only_says_where_a_task_goes_on_from_does_not_count(self, store: Store) -> None:
        goes_on = attempt(1, 0, TaskState.EXPANDED, reason=Reason.BECAME_MORE)
        lease = store.begin(new_run(), new_session(rows=[goes_on]))
        assert store.runs()[0].counts == {"pending": 3}
        store.write(lease, [], (), [BlockRow(3, 2, TREE, 1, 0, 1, b"[]")])
        assert store.runs()[0].counts == {"pending": 4}

    def test_a_session_opens_another_and_both_stay(self, store: Store) -> None:
        run = new_run()
        first = store.begin(run, new_session())
        store.write(first, [attempt(0)])
        store.close_run(first, RunState.INTERRUPTED, _T, None)
        second = store.reopen(run.id, new_session(graph=b"changed", tasks=7, owner=Owner(99, "here")))
        assert second == (run.id, 2)
        assert [row.element for row in store.attempts(run.id)] == []
        assert [row.element for row in store.attempts(run.id, 1)] == [0]
        assert store.session(run.id).graph == b"changed"
        assert store.session(run.id, 1).graph == b"graph"
        (told,) = store.runs()
        assert (told.state, told.session, told.tasks, told.ended) == (RunState.RUNNING, 2, 7, 0)

    def test_what_is_not_there_is_unknown(self, store: Store) -> None:
        run = new_run()
        store.begin(run, new_session())
        for ask in (
            lambda: store.session("0" * 12),
            lambda: store.session(run.id, 2),
            lambda: store.params("0" * 12),
            lambda: list(store.attempts("0" * 12)),
            lambda: list(store.attempts(run.id, 9)),
            lambda: store.reopen("0" * 12, new_session()),
            lambda: store.request("0" * 12, "cancel", _T),
        ):
            with pytest.raises(UnknownRun):
                ask()
        assert store.owner("0" * 12) is None

    # ── attempts and results ──────────────────────────────────────────────────────────────────────────────────────────

    def test_rows_come_back_in_order_as_they_were(self, open_store: Callable[[], Store]) -> None:
        store = open_store()
        lease = store.begin(new_run(), new_session())
        rows = [
            attempt(2, 1, TaskState.RETRYING, reason=Reason.RAISED, detail='{"failure":{"message":"é ☃"}}'),
            attempt(2, 2, TaskState.RUNNING, reason=Reason.STARTED),
            attempt(0, 0, TaskState.CANCELLED, reason=Reason.CANCEL_REQUESTED, detail=None),
            attempt(1, 1),
            attempt(1_000_000, 255),
        ]
        store.write(lease, rows)
        for each in (store, open_store()):
            found = list(each.attempts(lease.run))
            assert [_plain(row) for row in found] == sorted((*row[:7], row.detail) for row in rows)
            assert all(row.result is None and row.size == 0 and not row.adopted for row in found)
            assert [row.attempt for row in each.attempts(lease.run, element=2)] == [1, 2]

    def test_a_row_replaces_the_one_before(self, store: Store) -> None:
        lease = store.begin(new_run(), new_session())
        store.write(lease, [attempt(0, 1, TaskState.RUNNING), attempt(1, 1, TaskState.RUNNING)])
        store.write(lease, [attempt(0, 1, TaskState.SUCCEEDED, b"value")])
        states = [STATES[row.state] for row in store.attempts(lease.run)]
        assert states == [TaskState.SUCCEEDED, TaskState.RUNNING]

    @pytest.mark.parametrize("size", [1, 1000, INLINE_MAX, INLINE_MAX + 1, 3_000_000])
    def test_a_result_of_any_size_comes_back(self, open_store: Callable[[], Store], size: int) -> None:
        store = open_store()
        blob = secrets.token_bytes(size)
        pieces = (blob[: size // 3], bytearray(blob[size // 3 : size // 2]), memoryview(blob)[size // 2 :])
        lease = store.begin(new_run(), new_session())
        store.write(lease, [attempt(0, 1, TaskState.SUCCEEDED, *pieces)])
        for each in (store, open_store()):
            (row,) = each.attempts(lease.run)
            assert (row.result, row.size) == ((lease.run, 1, 0, 1), size)
            assert row.result is not None
            assert bytes(each.read(row.result)) == blob

    def test_an_array_s_memory_is_a_piece(self, store: Store) -> None:
        from array import array

        numbers = array("d", range(20_000))
        lease = store.begin(new_run(), new_session())
        store.write(lease, [attempt(0, 1, TaskState.SUCCEEDED, b"head", memoryview(numbers))])
        assert bytes(store.read((lease.run, 1, 0, 1))) == b"head" + numbers.tobytes()

    def test_equal_results_are_each_one_s_own(self, store: Store) -> None:
        blob = bytes(INLINE_MAX + 1)
        leases = [store.begin(new_run(), new_session()) for _ in range(2)]
        for lease in leases:
            store.write(lease, [attempt(0, 1, TaskState.SUCCEEDED, blob), attempt(1, 1, TaskState.SUCCEEDED, blob)])
            store.close_run(lease, RunState.SUCCEEDED, _T, None)
        store.remove([leases[0].run])
        assert bytes(store.read((leases[1].run, 1, 1, 1))) == blob

    def test_a_result_that_is_not_there_is_an_error(self, store: Store) -> None:
        lease = store.begin(new_run(), new_session())
        store.write(lease, [attempt(0)])
        for ref in [(lease.run, 1, 0, 1), (lease.run, 1, 5, 1), (lease.run, 2, 0, 1), ("0" * 12, 1, 0, 1)]:
            with pytest.raises(StoreError):
                store.read(ref)

    def test_texts_may_be_anything(self, open_store: Callable[[], Store]) -> None:
        odd = "\udc80 \x00 \u2028 é 🦦"
        store = open_store()
        lease = store.begin(new_run(workflow=odd, origin=odd), new_session(versions=odd))
        store.write(lease, [attempt(0, detail='{"m":"\udcff"}'), attempt(1)])
        store.close_run(lease, RunState.FAILED, _T, odd)
        store = open_store()
        (told,) = store.runs()
        assert told.error is not None and "🦦" in told.error
        assert len(list(store.attempts(lease.run))) == 2

    def test_a_write_of_nothing_is_fine(self, store: Store) -> None:
        lease = store.begin(new_run(), new_session())
        store.write(lease, [])
        assert list(store.attempts(lease.run)) == []

    def test_reading_may_stop_half_way_while_others_write(self, store: Store) -> None:
        lease = store.begin(new_run(), new_session())
        store.write(lease, [attempt(n) for n in range(3000)])
        rows = store.attempts(lease.run)
        assert next(rows).element == 0
        store.write(lease, [attempt(n) for n in range(3000, 3010)])
        del rows
        assert sum(1 for _ in store.attempts(lease.run)) == 3010

    def test_others_read_while_one_thread_writes(self, store: Store) -> None:
        lease = store.begin(new_run(), new_session())
        errors: list[BaseException] = []
        done = threading.Event()

        def read() -> None:
            try:
                while not done.is_set():
                    elements = [row.element for row in store.attempts(lease.run)]
                    assert elements == list(range(len(elements)))  # a prefix, always
                    store.runs()
                    store.requests(lease)
                    store.find(lease.run)
            except BaseException as error:  # noqa: BLE001 - told by the test's thread
                errors.append(error)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for n in range(0, 400, 4):
            store.write(lease, [attempt(n + k) for k in range(4)])
        done.set()
        for reader in readers:
            reader.join()
        assert errors == []
        assert sum(1 for _ in store.attempts(lease.run)) == 400

    # ── tasks that come into being ────────────────────────────────────────────────────────────────────────────────────

    def test_blocks_come_back_in_order_as_they_were(self, open_store: Callable[[], Store]) -> None:
        store = open_store()
        lease = store.begin(new_run(), new_session())
        assert store.blocks(lease.run) == []
        store.write(lease, [attempt(1003)], (), [BlockRow(1003, 1, 2, 1, 7, 3, b"")])
        store.write(
            lease, [], (), [BlockRow(3, 1000, 1, 1, 0, 0, b'{"stages":[1]}'), BlockRow(1004, 2, 0, 5, 0, 0, b"\0")]
        )
        for each in (store, open_store()):
            assert each.blocks(lease.run) == [
                StoredBlock(3, 1000, 1, 1, 0, 0, b'{"stages":[1]}', 0),
                StoredBlock(1003, 1, 2, 1, 7, 3, b"", 0),
                StoredBlock(1004, 2, 0, 5, 0, 0, b"\0", 0),
            ]

    def test_a_block_is_of_its_session_and_replaces_the_one_before(self, store: Store) -> None:
        run = new_run()
        first = store.begin(run, new_session())
        store.write(first, [], (), [BlockRow(3, 1, 1, 0, 0, 0, b"one")])
        store.write(first, [], (), [BlockRow(3, 2, 1, 0, 0, 0, b"two")])
        store.close_run(first, RunState.INTERRUPTED, _T, None)
        store.reopen(run.id, new_session())
        assert store.blocks(run.id) == []
        assert [(block.length, block.data) for block in store.blocks(run.id, 1)] == [(2, b"two")]
        with pytest.raises(UnknownRun):
            store.blocks(run.id, 9)

    def test_a_block_is_there_or_its_rows_are_not(self, open_store: Callable[[], Store]) -> None:
        store = open_store()
        run = new_run()
        lease = store.begin(run, new_session())
        store.seize(run.id, _T)
        with pytest.raises(StoreError):
            store.write(lease, [attempt(3)], (), [BlockRow(3, 1, 1, 0, 0, 0, b"")])
        assert (store.blocks(run.id), list(store.attempts(run.id))) == ([], [])

    @pytest.mark.parametrize("size", [10, INLINE_MAX + 1])
    def test_the_work_of_a_block_comes_back(self, store: Store, size: int) -> None:
        lease = store.begin(new_run(), new_session())
        work = secrets.token_bytes(size)
        pieces = (work[:3], memoryview(work)[3:])
        store.write(lease, [], (), [BlockRow(3, 1, 0, 0, 0, 0, b"", pieces), BlockRow(4, 1, 0, 0, 0, 0, b"")])
        assert [block.size for block in store.blocks(lease.run)] == [size, 0]
        assert store.work(lease.run, 1, 3) == work
        for start in (4, 5):
            with pytest.raises(StoreError):
                store.work(lease.run, 1, start)

    def test_rows_of_a_range_of_tasks(self, store: Store) -> None:
        lease = store.begin(new_run(), new_session())
        store.write(lease, [attempt(element, number) for element in range(6) for number in (1, 2)])
        assert [row[:2] for row in store.attempts(lease.run, 1, range(2, 4))] == [(2, 1), (2, 2), (3, 1), (3, 2)]
        assert list(store.attempts(lease.run, 1, range(6, 9))) == []

    def test_results_of_a_range_of_tasks_are_those_of_read(self, store: Store) -> None:
        run = new_run()
        first = store.begin(run, new_session())
        values = [b"none", b"one", secrets.token_bytes(INLINE_MAX + 1), b"three"]
        store.write(first, [attempt(n, 1, TaskState.SUCCEEDED, value) for n, value in enumerate(values)])
        store.write(first, [attempt(4), attempt(5, 1, TaskState.FAILED)])
        store.close_run(first, RunState.INTERRUPTED, _T, None)
        second = store.reopen(run.id, new_session(adopted=[(7, (run.id, 1, 1, 1))]))
        store.write(second, [attempt(8, 2, TaskState.SUCCEEDED, b"eight")])
        for session, among in ((1, range(1, 9)), (2, range(7, 9)), (2, range(3))):
            found = list(store.results(run.id, session, among))
            assert {key[0] for key in found} <= set(among)
            for element, number, data in found:
                assert data == bytes(store.read((run.id, session, element, number)))
        small = [key[:2] for key in store.results(run.id, 1, range(9)) if len(key[2]) < INLINE_MAX]
        assert small == [(0, 1), (1, 1), (3, 1)]
        assert [key[:2] for key in store.results(run.id, 2, range(9))] == [(7, 1), (8, 2)]

    def test_blocks_go_with_their_run(self, store: Store) -> None:
        run = new_run()
        lease = store.begin(run, new_session())
        store.write(lease, [attempt(3)], (), [BlockRow(3, 1, 1, 0, 0, 0, b"")])
        store.close_run(lease, RunState.SUCCEEDED, _T, None)
        assert store.remove([run.id]) == 1
        with pytest.raises(UnknownRun):
            store.blocks(run.id)

    # ── adopting ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("size", [10, INLINE_MAX + 1])
    def test_adopted_rows_are_as_they_were_and_point_to_the_original(self, store: Store, size: int) -> None:
        blob = secrets.token_bytes(size)
        run = new_run()
        first = store.begin(run, new_session())
        store.write(first, [attempt(0, 2, TaskState.SUCCEEDED, blob), attempt(1)])
        store.close_run(first, RunState.INTERRUPTED, _T, None)
        before = list(store.attempts(run.id))
        pairs = [(7, (run.id, 1, 0, 2)), (3, (run.id, 1, 1, 1))]
        second = store.reopen(run.id, new_session(adopted=pairs))
        assert [row.element for row in store.attempts(run.id)] == [3, 7]
        store.write(second, [attempt(4)])
        rows = list(store.attempts(run.id))
        assert [(row.element, row.attempt, row.adopted) for row in rows] == [(3, 1, True), (4, 1, False), (7, 2, True)]
        assert rows[2][1:8] == before[0][1:8]
        assert (rows[2].result, rows[2].size) == ((run.id, 1, 0, 2), size)
        assert (rows[0].result, rows[0].size) == (None, 0)
        assert [row.origin for row in rows] == [(run.id, 1, 1, 1), None, (run.id, 1, 0, 2)]
        assert store.runs()[0].counts == {"succeeded": 3}
        assert bytes(store.read((run.id, 2, 7, 2))) == blob  # by either address

    def test_what_was_adopted_can_be_adopted_again(self, store: Store) -> None:
        run = new_run()
        lease = store.begin(run, new_session())
        store.write(lease, [attempt(0, 1, TaskState.SUCCEEDED, b"value")])
        for number in (2, 3):
            store.close_run(lease, RunState.INTERRUPTED, _T, None)
            lease = store.reopen(run.id, new_session(adopted=[(0, (run.id, number - 1, 0, 1))]))
        (row,) = store.attempts(run.id)
        assert row.result is not None and row.result == (run.id, 1, 0, 1)
        assert bytes(store.read(row.result)) == b"value"

    def test_a_row_without_a_result_says_which_one_it_was_adopted_from(self, store: Store) -> None:
        run = new_run()
        lease = store.begin(run, new_session())
        store.write(lease, [attempt(0)])
        for number in (2, 3):
            store.close_run(lease, RunState.INTERRUPTED, _T, None)
            lease = store.reopen(run.id, new_session(rows=[attempt(0, origin=(run.id, number - 1, 0, 1))]))
        store.close_run(lease, RunState.INTERRUPTED, _T, None)
        store.reopen(run.id, new_session(adopted=[(0, (run.id, 3, 0, 1))]))
        rows = [next(iter(store.attempts(run.id, number))) for number in (4, 3, 2, 1)]
        assert [row.origin for row in rows] == [(run.id, 3, 0, 1), (run.id, 2, 0, 1), (run.id, 1, 0, 1), None]
        assert [row.adopted for row in rows] == [True, True, True, False]

    def test_what_was_adopted_without_a_result_outlives_its_run(self, store: Store) -> None:
        run = new_run()
        lease = store.begin(run, new_session())
        store.write(lease, [attempt(0), attempt(1)])
        store.close_run(lease, RunState.INTERRUPTED, _T, None)
        lease = store.reopen(run.id, new_session(adopted=[(0, (run.id, 1, 0, 1)), (1, (run.id, 1, 1, 1))]))
        store.close_run(lease, RunState.INTERRUPTED, _T, None)
        fork = new_run("calm-heron", parent=run.id)
        lease = store.begin(fork, new_session(adopted=[(0, (run.id, 2, 0, 1))]))
        store.close_run(lease, RunState.INTERRUPTED, _T, None)
        assert store.remove([run.id]) == 1
        (row,) = store.attempts(fork.id)
        assert row.origin == (run.id, 2, 0, 1)
        check = getattr(store, "check", None)
        assert check is None or check() == []
        assert store.remove([fork.id]) == 1
        assert check is None or check() == []

    def test_an_adopted_row_that_is_replaced_is_adopted_no_more(self, store: Store) -> None:
        run = new_run()
        first = store.begin(run, new_session())
        store.write(first, [attempt(0, 1, TaskState.SUCCEEDED, b"old")])
        store.close_run(first, RunState.INTERRUPTED, _T, None)
        second = store.reopen(run.id, new_session(adopted=[(0, (run.id, 1, 0, 1))]))
        store.write(second, [attempt(0, 1, TaskState.SUCCEEDED, b"new")])
        (row,) = store.attempts(run.id)
        assert (row.result, row.adopted) == ((run.id, 2, 0, 1), False)
        assert bytes(store.read(row.result or ("", 0, 0, 0))) == b"new"

    def test_a_session_that_cannot_adopt_all_of_it_is_not_opened(self, open_store: Callable[[], Store]) -> None:
        store, other = open_store(), open_store()
        run, child = new_run(), new_run()
        first = store.begin(run, new_session())
        store.write(first, [attempt(0)])
        store.close_run(first, RunState.INTERRUPTED, _T, None)
        session = new_session(adopted=[(0, (run.id, 1, 0, 1)), (1, (run.id, 1, 1, 1))])
        with pytest.raises(StoreError):
            store.reopen(run.id, session)
        with pytest.raises(StoreError):
            store.begin(child, session)
        assert [told.id for told in other.runs()] == [run.id]
        assert [row.element for row in other.attempts(run.id)] == [0]
        assert other.owner(run.id) is None
        assert other.reopen(run.id, new_session()).session == 2

    def test_a_session_begins_with_rows_of_its_own_beside_those_it_adopts(
        self, open_store: Callable[[], Store]
    ) -> None:
        store = open_store()
        run = new_run()
        first = store.begin(run, new_session(rows=[attempt(3)]))
        store.write(first, [attempt(0, 1, TaskState.SUCCEEDED, b"value")])
        store.close_run(first, RunState.INTERRUPTED, _T, None)
        rows = [attempt(1, 0, TaskState.UNKNOWN), attempt(2, 1, TaskState.SUCCEEDED, b"x" * (INLINE_MAX + 1))]
        store.reopen(run.id, new_session(adopted=[(0, (run.id, 1, 0, 1))], rows=rows))
        found = list(open_store().attempts(run.id))
        assert [(row.element, row.attempt, row.adopted) for row in found] == [
            (0, 1, True),
            (1, 0, False),
            (2, 1, False),
        ]
        assert bytes(store.read(found[2].result or ("", 0, 0, 0))) == b"x" * (INLINE_MAX + 1)
        assert [row.element for row in store.attempts(run.id, 1)] == [0, 3]

    @pytest.mark.parametrize("size", [10, INLINE_MAX + 1])
    def test_what_others_refer_to_outlives_its_run(self, open_store: Callable[[], Store], size: int) -> None:
        store = open_store()
        blob = secrets.token_bytes(size)
        parent = store.begin(new_run(), new_session())
        store.write(parent, [attempt(0, 1, TaskState.SUCCEEDED, blob), attempt(1, 1, TaskState.SUCCEEDED, b"x" * size)])
        store.close_run(parent, RunState.SUCCEEDED, _T, None)
        child = store.begin(new_run(parent=parent.run), new_session(adopted=[(0, (parent.run, 1, 0, 1))]))
        store.close_run(child, RunState.SUCCEEDED, _T, None)
        assert store.remove([parent.run]) == 1
        assert [run.id for run in store.runs()] == [child.run]
        with pytest.raises(UnknownRun):
            store.find(parent.run)
        with pytest.raises(UnknownRun):
            store.session(parent.run)
        for each in (store, open_store()):
            (row,) = each.attempts(child.run)
            assert row.result is not None
            assert bytes(each.read(row.result)) == blob
        with pytest.raises(StoreError):
            store.read((parent.run, 1, 1, 1))
        assert store.remove([child.run]) == 1
        with pytest.raises(StoreError):
            store.read((parent.run, 1, 0, 1))

    # ── ownership ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def test_a_run_that_is_owned_is_refused_with_its_owner(self, open_store: Callable[[], Store]) -> None:
        store, other = open_store(), open_store()
        run = new_run()
        store.begin(run, new_session())
        assert other.owner(run.id) == _HERE
        for each in (store, other):
            with pytest.raises(RunLocked) as caught:
                each.reopen(run.id, new_session())
            assert (caught.value.pid, caught.value.host) == _HERE
        assert store.session(run.id).number == 1

    def test_closing_the_run_lets_go_of_it(self, open_store: Callable[[], Store]) -> None:
        store, other = open_store(), open_store()
        run = new_run()
        lease = store.begin(run, new_session())
        store.close_run(lease, RunState.SUCCEEDED, _T, None)
        assert other.owner(run.id) is None
        with pytest.raises(StoreError):
            store.write(lease, [attempt(0)])
        lease = other.reopen(run.id, new_session(owner=Owner(5, "here")))
        assert store.owner(run.id) == Owner(5, "here")
        other.write(lease, [attempt(0)])

    def test_closing_the_store_lets_go_as_if_the_process_had_died(self, open_store: Callable[[], Store]) -> None:
        store, other = open_store(), open_store()
        run = new_run()
        store.begin(run, new_session())
        store.close()
        assert other.owner(run.id) is None
        (told,) = other.runs()
        assert (told.state, told.ended) == (RunState.RUNNING, 0)
        other.reopen(run.id, new_session())

    def test_a_taken_over_run_is_lost_to_its_former_owner(self, open_store: Callable[[], Store]) -> None:
        store, other = open_store(), open_store()
        run = new_run()
        stale = store.begin(run, new_session())
        store.write(stale, [attempt(0)])

        def is_lost() -> None:
            refusals: list[Callable[[], None]] = [
                lambda: store.write(stale, [attempt(1)]),
                lambda: store.close_run(stale, RunState.FAILED, _T, None),
            ]
            for refused in refusals:
                with pytest.raises(StoreError) as caught:
                    refused()
                assert caught.value.lost

        other.seize(run.id, _T + 1)
        assert other.owner(run.id) is None
        (told,) = other.runs()
        assert (told.state, told.ended, told.session) == (RunState.INTERRUPTED, _T + 1, 1)
        is_lost()
        lease = other.reopen(run.id, new_session(owner=Owner(99, "here")), after=1)
        assert lease.session == 2
        is_lost()
        other.write(lease, [attempt(2)])
        assert [row.element for row in other.attempts(run.id, 1)] == [0]
        assert [row.element for row in other.attempts(run.id)] == [2]
        assert other.owner(run.id) == Owner(99, "here")
        other.close_run(lease, RunState.SUCCEEDED, _T, None)
        assert other.runs()[0].state == RunState.SUCCEEDED

    def test_seizing_a_run_that_has_ended_changes_nothing(self, open_store: Callable[[], Store]) -> None:
        store, other = open_store(), open_store()
        lease = store.begin(new_run(), new_session())
        store.close_run(lease, RunState.FAILED, _T, "why")
        before = store.runs()
        other.seize(lease.run, _T + 9)
        assert store.runs() == before
        with pytest.raises(UnknownRun):
            store.seize("0" * 12, _T)

    def test_who_comes_second_is_told_and_leaves_no_session(self, open_store: Callable[[], Store]) -> None:
        store, other = open_store(), open_store()
        run = new_run()
        store.close_run(store.begin(run, new_session()), RunState.FAILED, _T, None)
        lease = store.reopen(run.id, new_session(owner=Owner(7, "here")), after=1)
        store.write(lease, [attempt(0)])
        store.close_run(lease, RunState.FAILED, _T, None)
        with pytest.raises(RunLocked, match="a moment ago") as caught:
            other.reopen(run.id, new_session(), after=1)
        assert caught.value.pid == 7
        assert store.session(run.id).number == 2
        assert [row.element for row in store.attempts(run.id)] == [0]
        assert other.reopen(run.id, new_session(), after=2).session == 3

    def test_a_run_that_somebody_owns_is_not_removed(self, open_store: Callable[[], Store]) -> None:
        store, other = open_store(), open_store()
        mine, done = store.begin(new_run(), new_session()), store.begin(new_run(), new_session())
        store.close_run(done, RunState.SUCCEEDED, _T, None)
        assert other.remove([mine.run, done.run, "0" * 12]) == 1
        assert [run.id for run in store.runs()] == [mine.run]
        store.write(mine, [attempt(0)])

    def test_requests_reach_the_session_they_were_made_to(self, open_store: Callable[[], Store]) -> None:
        store, other = open_store(), open_store()
        run = new_run()
        lease = store.begin(run, new_session())
        assert store.requests(lease) == []
        other.request(run.id, "cancel", _T)
        assert store.requests(lease) == ["cancel"]
        store.write(lease, [attempt(0)])
        assert store.requests(lease) == ["cancel"]
        store.close_run(lease, RunState.CANCELLED, _T, None)
        assert store.requests(store.reopen(run.id, new_session())) == []

    # ── finding ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def test_runs_come_latest_first(self, store: Store) -> None:
        leases = [store.begin(new_run(workflow=name, created=_T - n), new_session()) for n, name in enumerate("abab")]
        ids = [lease.run for lease in leases]
        assert [run.id for run in store.runs()] == ids[::-1]
        assert [run.id for run in store.runs(limit=2)] == ids[:1:-1]
        assert [run.id for run in store.runs(workflow="a")] == [ids[2], ids[0]]
        assert [run.id for run in store.runs(workflow="a", limit=1)] == [ids[2]]
        store.close_run(leases[0], RunState.INTERRUPTED, _T, None)
        store.reopen(ids[0], new_session())
        assert [run.id for run in store.runs(limit=1)] == [ids[0]]

    def test_a_run_is_found_by_name_id_prefix_or_as_the_last(self, store: Store) -> None:
        first = new_run("brisk-otter", id="aaaa00000001")
        second = new_run("calm-heron", id="aaaa00000002")
        third = new_run("brisk-otter", id="bbbb00000003")
        for run in (first, second, third):
            store.begin(run, new_session())
        assert store.find("brisk-otter").id == third.id
        assert store.find("calm-heron").id == second.id
        assert store.find(first.id).id == first.id
        assert store.find("bbbb").id == third.id
        assert store.find("BBBB0000").id == third.id
        assert store.find("last").id == third.id
        with pytest.raises(UnknownRun, match="aaaa") as caught:
            store.find("aaaa")
        assert first.id in str(caught.value) and second.id in str(caught.value)
        with pytest.raises(UnknownRun, match="calm-heron"):
            store.find("clam-heron")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "b",
            "bbb",
            "../../etc/passwd",
            "%",
            "_",
            "*",
            "x" * 10_000,
            "\x00",
            "\udc80",
            "'; DROP TABLE runs",
            "last ",
        ],
    )
    def test_what_means_no_run_is_unknown(self, store: Store, text: str) -> None:
        store.begin(new_run("brisk-otter", id="bbbb00000003"), new_session())
        with pytest.raises(UnknownRun) as caught:
            store.find(text)
        assert len(str(caught.value)) < 500
        assert len(store.runs()) == 1

    def test_in_an_empty_store_there_is_no_last_run(self, store: Store) -> None:
        with pytest.raises(UnknownRun):
            store.find("last")

    # ── the cache ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def _fill(store: Store, key: bytes, expires: int = 0, task: str = "parse", created: int = _T) -> Lease:
        lease = store.begin(new_run(), new_session())
        row = CacheRow(key, task, '{"code":"1"}', created, expires, 0, 1)
        store.write(lease, [attempt(0, 1, TaskState.SUCCEEDED, b"cached")], [row])
        store.close_run(lease, RunState.SUCCEEDED, _T, None)
        return lease

    def test_a_cached_result_is_found_by_its_key(self, open_store: Callable[[], Store]) -> None:
        store = open_store()
        key = secrets.token_bytes(32)
        lease = self._fill(store, key)
        for each in (store, open_store()):
            entry = each.cached(key, _T)
            assert entry is not None
            assert (entry.key, entry.task, entry.parts, entry.created) == (key, "parse", '{"code":"1"}', _T)
            assert (entry.result, entry.size) == ((lease.run, 1, 0, 1), 6)
            assert bytes(each.read(entry.result)) == b"cached"
        assert store.cached(secrets.token_bytes(32), _T) is None

    def test_an_expired_entry_is_not_found_and_is_listed(self, store: Store) -> None:
        key = secrets.token_bytes(32)
        self._fill(store, key, expires=_T + 10)
        assert store.cached(key, _T + 9) is not None
        assert store.cached(key, _T + 10) is None
        assert [entry.key for entry in store.cache_entries()] == [key]

    def test_entries_are_listed_by_task_and_forgotten_by_key(self, store: Store) -> None:
        keys = [secrets.token_bytes(32) for _ in range(3)]
        for n, key in enumerate(keys):
            self._fill(store, key, task="ab"[n % 2], created=_T + n)
        assert [entry.key for entry in store.cache_entries()] == keys[::-1]
        assert [entry.key for entry in store.cache_entries("a")] == [keys[2], keys[0]]
        assert store.forget([keys[0], keys[0], b"other"]) == 1
        assert store.cached(keys[0], _T) is None
        assert len(store.cache_entries()) == 2

    def test_a_later_result_takes_the_key(self, store: Store) -> None:
        key = secrets.token_bytes(32)
        self._fill(store, key)
        later = self._fill(store, key, created=_T + 1)
        (entry,) = store.cache_entries()
        assert (entry.result, entry.created) == ((later.run, 1, 0, 1), _T + 1)

    def test_hits_are_counted(self, store: Store) -> None:
        key = secrets.token_bytes(32)
        self._fill(store, key)
        for _ in range(3):
            store.cached(key, _T)
        lease = store.begin(new_run(), new_session())
        store.write(lease, [attempt(0)])
        store.cached(key, _T)
        assert store.cache_entries()[0].hits == 4

    def test_the_cache_outlives_the_run_that_filled_it(self, store: Store) -> None:
        key = secrets.token_bytes(32)
        lease = self._fill(store, key)
        assert store.remove([lease.run]) == 1
        entry = store.cached(key, _T)
        assert entry is not None
        assert bytes(store.read(entry.result)) == b"cached"
        store.forget([key])
        with pytest.raises(StoreError):
            store.read(entry.result)

    def test_a_task_found_in_the_cache_has_the_result_of_who_filled_it(self, store: Store) -> None:
        key = secrets.token_bytes(32)
        filled = self._fill(store, key)
        lease = store.begin(new_run(), new_session())
        origin = (filled.run, 1, 0, 1)
        store.write(lease, [attempt(5, 1, TaskState.CACHED, reason=Reason.CACHE_HIT, origin=origin), attempt(6)])
        store.close_run(lease, RunState.SUCCEEDED, _T, None)
        row, plain = store.attempts(lease.run)
        assert (row.result, row.size, row.adopted) == (origin, 6, True)
        assert (plain.result, plain.adopted) == (None, False)
        store.remove([filled.run])
        store.forget([key])
        assert bytes(store.read(origin)) == b"cached"
        store.remove([lease.run])
        with pytest.raises(StoreError):
            store.read(origin)

    def test_a_result_that_was_removed_from_the_cache_meanwhile_is_none(self, store: Store) -> None:
        lease = store.begin(new_run(), new_session())
        store.write(lease, [attempt(0, 1, TaskState.CACHED, origin=("0" * 12, 1, 0, 1))])
        (row,) = store.attempts(lease.run)
        assert (STATES[row.state], row.result, row.size) == (TaskState.CACHED, None, 0)
