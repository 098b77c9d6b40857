"""Calls and results of our own workers: what travels how, what arrives, and how it fails.

Both sides live in this process; between them everything goes through `marshal`, as over a worker's page.
"""

from __future__ import annotations

import errno
import gc
import marshal
import os
import pickle
import random
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.errors import TransportError
from flowlane.loader import address_of, load_file
from flowlane.runtime.ports import RemoteValue, Target
from flowlane_plugins.executors import pickling
from flowlane_plugins.executors.pickling import INLINE_MAX
from flowlane_plugins.workers import cargo
from flowlane_plugins.workers.cargo import decode_call, encode_call, encode_value, take
from flowlane_plugins.workers.chunks import Store
from flowlane_plugins.workers.leases import Book
from flowlane_plugins.workers.mappings import Arenas
from flowlane_plugins.workers.parcel import Parcel, nbytes_of, travelling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

HOME = object()
LONG = 3_000_000  # bytes that are mapped where they are read


def by_wire(data: Any) -> Any:
    return marshal.loads(marshal.dumps(data))


@pytest.fixture(scope="session")
def shapes() -> ModuleType:
    return load_file(Path(__file__).parents[1] / "executors" / "shapes.py", "_flow_shapes")


class Side:
    """A worker and the engine's view of it."""

    def __init__(self, wid: int, book: Book) -> None:
        self.wid = wid
        self.book = book
        self.store = Store(wid)
        self.arenas = Arenas(self.store)

    def result(self, value: Any, name: str = "make") -> Any:
        """What the engine gets for a result."""
        payload, refs = encode_value(value, name, self.store)
        for arena, fd, size in self.store.new_arenas():
            self.book.add(arena, os.dup(fd), size)
        wire, refs = by_wire((payload, tuple(refs)))
        assert len(marshal.dumps(wire)) < INLINE_MAX + 20_000
        return take(wire, self.book.take(refs, self.wid), name, HOME)

    def call(self, fn: Any, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """What the function gets for a call."""
        call = encode_call(target_of(fn), args, kwargs, self.book)
        assert len(marshal.dumps(call.payload)) < INLINE_MAX + 20_000
        for arena, fd, size in self.book.sends(self.wid, call.chunks):
            self.arenas.add(arena, os.dup(fd), size)
        got_args, got_kwargs = decode_call(by_wire(call.payload), fn, fn.__name__, self.arenas)
        travelling.arenas = None
        return tuple(got_args), got_kwargs

    def passed(self, value: Any) -> Any:
        (got,), kwargs = self.call(consume, value)
        assert kwargs == {}
        return got

    def close(self) -> None:
        self.store.close()
        self.arenas.close()


def consume(value: Any = None, *more: Any, named: Any = None) -> None: ...


def target_of(fn: Any) -> Target:
    return Target(fn.__name__, fn, False, address_of(fn))


@pytest.fixture
def book() -> Iterator[Book]:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    book = Book()
    yield book
    book.close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def one(book: Book) -> Iterator[Side]:
    side = Side(1, book)
    yield side
    side.close()


@pytest.fixture
def two(book: Book) -> Iterator[Side]:
    side = Side(2, book)
    yield side
    side.close()


# ── plain values ──────────────────────────────────────────────────────────────────────────────────────────────────

SMALL: list[Any] = [
    None,
    True,
    0,
    -1,
    10**30,
    1.5,
    2j,
    "",
    "text é \udce4",
    b"",
    b"bytes",
    bytearray(b"array"),
    (),
    [],
    {},
    (1, (2, [3, {4: 5}])),
    {"k": [1, 2], (1, 2): {3}},
    frozenset({1}),
    range(3),
    int,
]


@pytest.mark.parametrize("value", SMALL, ids=repr)
def test_small_values_arrive(book: Book, one: Side, value: Any) -> None:
    result = one.result(value)
    got = result.fetch() if isinstance(result, Parcel) else result
    assert got == value
    assert type(got) is type(value)
    assert one.passed(value) == value
    assert one.passed(result) == value
    assert one.store.live == 0


def test_arguments_arrive_where_they_belong(one: Side) -> None:
    assert one.call(consume) == ((), {})
    assert one.call(consume, 1, "two") == ((1, "two"), {})
    assert one.call(consume, 1, [2], named=3) == ((1, [2]), {"named": 3})
    assert one.call(consume, named=None) == ((), {"named": None})
    assert one.call(consume, *range(20)) == (tuple(range(20)), {})


def test_tiny_plain_results_are_values_in_the_engine(one: Side) -> None:
    for value in (None, 7, "x" * 200, {"a": [1, 2.5, None]}, (b"x",)):
        result = one.result(value)
        assert result == value
        assert type(result) is type(value)
    assert isinstance(one.result("x" * 300), Parcel)


def test_the_engine_never_unpickles_what_refers_to_a_class(one: Side, shapes: ModuleType) -> None:
    parcel = one.result(shapes.Holder(1))
    assert isinstance(parcel, Parcel)
    assert isinstance(parcel, RemoteValue)
    assert parcel.home is HOME
    assert parcel.fetch() == shapes.Holder(1)


def test_a_value_is_fetched_once(one: Side, shapes: ModuleType) -> None:
    parcel = one.result(shapes.Holder([1]))
    assert parcel.fetch() is parcel.fetch()


# ── long values ───────────────────────────────────────────────────────────────────────────────────────────────────

LENGTHS = [INLINE_MAX - 100, INLINE_MAX, INLINE_MAX + 1, 300_000, LONG]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("make", [bytes, bytearray, lambda n: "é" * (n // 2), lambda n: list(range(n // 4))])
def test_long_texts_and_lists_arrive(one: Side, two: Side, make: Callable[[int], Any], length: int) -> None:
    value = make(length)
    result = one.result(value)
    assert result.nbytes >= length // 2
    assert two.passed(result) == value
    assert two.passed(value) == value
    assert result.fetch() == value
    del result
    gc.collect()
    assert list(one.book.to_free()) in ([], [1])
    assert not two.arenas.busy, "nothing of a pickle is mapped once it is loaded"


def test_a_long_pickle_lies_in_one_chunk(one: Side) -> None:
    value = ["x" * 100_000 for _ in range(100)]
    payload, refs = encode_value(value, "make", one.store)
    assert len(refs) == 1
    assert nbytes_of(payload) == refs[0][2] == len(pickle.dumps(value, 5))
    assert len(marshal.dumps(payload)) < 100


def test_a_result_that_is_nested_in_arguments_arrives_in_its_place(one: Side, two: Side) -> None:
    small, long = one.result({"k": "v" * 300}), one.result(b"x" * LONG)
    (got,), _ = two.call(consume, {"a": [small, (long, small)]})
    assert got == {"a": [{"k": "v" * 300}, (b"x" * LONG, {"k": "v" * 300})]}
    assert got["a"][0] is got["a"][1][1], "the same result twice is the same object"


def test_leases_of_a_call_cover_all_that_it_refers_to(one: Side, two: Side, book: Book) -> None:
    parcel = one.result(b"x" * LONG)
    call = encode_call(target_of(consume), ([parcel, b"y" * LONG, parcel],), {}, book)
    assert {chunk.ref[0] >> 20 for chunk in call.chunks} == {0, 1}
    assert len(call.chunks) == 2
    assert call.nbytes > 2 * LONG
    del parcel
    assert book.to_free() == {}, "a call on its way keeps them"
    del call
    assert list(book.to_free()) == [1]
    assert book.store.live == 0


def test_a_chunk_goes_back_when_its_result_is_forgotten(one: Side, book: Book) -> None:
    parcel = one.result(b"x" * LONG)
    fetched = parcel.fetch()
    del parcel
    [ref] = book.to_free()[1]
    one.store.free(ref)
    assert one.store.live == 0
    assert len(fetched) == LONG


def test_a_parcel_that_somebody_else_pickles_is_its_value(one: Side) -> None:
    assert pickle.loads(pickle.dumps([one.result("x" * 300), one.result(b"y" * LONG)])) == ["x" * 300, b"y" * LONG]


def test_modules_loaded_by_path_are_named_wherever_the_pickle_lies(
    one: Side, two: Side, book: Book, shapes: ModuleType
) -> None:
    needed = (("_flow_shapes", shapes.__file__),)
    assert encode_call(target_of(consume), (shapes.Holder(1),), {}, book).files == needed
    assert encode_call(target_of(consume), (one.result(shapes.Holder("x" * 300)),), {}, book).files == needed
    assert encode_call(target_of(consume), (shapes.Holder(["_flow_"] * 50_000),), {}, book).files == needed
    assert encode_call(target_of(consume), ("_flow_shapes",), {}, book).files == ()
    payload, _ = encode_value([shapes.Holder(n) for n in range(10_000)], "make", one.store)
    assert payload[3] == needed


def test_functions_and_local_classes_travel_by_value(one: Side, two: Side) -> None:
    class Local:
        n = 7

    result = one.result({"fn": lambda x: x + 1, "cls": Local, "pad": b"x" * LONG})
    got = two.passed(result)
    assert got["fn"](1) == 2
    assert got["cls"].n == 7


# ── failures ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("lock in a config", "take(cfg) .session._lock"),
        ("lock in a wide list", "take(cfg) ['a'][50000]['lock']"),
        ("refuses", "take(cfg) [0]"),
        ("leaves when pickled", "take(cfg)"),
        ("nested", "take(cfg)"),
    ],
)
def test_an_argument_that_cannot_be_pickled_is_named(book: Book, shapes: ModuleType, name: str, path: str) -> None:
    value = shapes.make(name)
    for args, kwargs, at in [((value,), {}, "cfg"), ((1, 2, value), {}, "more[1]"), ((), {"named": value}, "named")]:
        with pytest.raises(TransportError, match="cannot travel to a worker process") as caught:
            encode_call(target_of(shapes.take), args, kwargs, book)
        assert caught.value.message.startswith(path.replace("cfg", at))
    assert travelling.met is None


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("bomb", "take(cfg) ['k'][1][0] (_flow_shapes.Bomb)"),
        ("leaving bomb", "take(cfg) (_flow_shapes.LeavingBomb)"),
        ("bomb in reduce", "take(cfg) .parts (int)"),
    ],
)
def test_an_argument_that_explodes_is_named_in_the_worker(one: Side, shapes: ModuleType, name: str, path: str) -> None:
    value = shapes.make(name)
    for args, kwargs, at in [((value,), {}, "cfg"), ((1, 2, value), {}, "more[1]"), ((), {"named": value}, "named")]:
        with pytest.raises(TransportError, match="cannot be unpickled") as caught:
            one.call(shapes.take, *args, **kwargs)
        assert caught.value.message.startswith(path.replace("cfg", at))


def test_an_argument_that_explodes_beside_an_array_is_named(one: Side, shapes: ModuleType) -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(TransportError, match="cannot be unpickled: ValueError: boom") as caught:
        one.call(shapes.take, numpy.zeros(100_000), [numpy.ones(100_000), {"k": shapes.Bomb()}])
    assert caught.value.message.startswith("take(more[0]) [1]['k'] (_flow_shapes.Bomb)")
    del caught  # its frames hold the arrays
    gc.collect()
    one.book.to_free()
    assert one.book.store.live == 0


@pytest.mark.parametrize("pad", [b"", b"x" * 500_000], ids=["short", "long"])
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("bomb", "make [0]['k'][1][0] (_flow_shapes.Bomb)"),
        ("leaving bomb", "make [0] (_flow_shapes.LeavingBomb)"),
        ("bomb in reduce", "make [0].parts (int)"),
    ],
)
def test_a_result_that_explodes_fails_the_task_that_made_it(
    one: Side, shapes: ModuleType, name: str, path: str, pad: bytes
) -> None:
    with pytest.raises(TransportError) as caught:
        encode_value([shapes.make(name), pad], "make", one.store)
    assert caught.value.message.startswith(f"the result of {path} cannot be unpickled")
    assert one.store.live == 0


def test_a_result_that_explodes_beside_an_array_does_too(one: Side, shapes: ModuleType) -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(TransportError) as caught:
        encode_value((numpy.zeros(100_000), [shapes.Bomb()]), "make", one.store)
    assert caught.value.message.startswith("the result of make [1][0] (_flow_shapes.Bomb) cannot be unpickled")


def test_a_very_long_result_is_trusted_and_fails_its_reader(one: Side, two: Side, shapes: ModuleType) -> None:
    parcel = one.result([b"x" * LONG, shapes.Bomb()], "source")
    for read in (two.passed, Parcel.fetch):
        with pytest.raises(
            TransportError, match=r"the result of source \[1\] \(_flow_shapes.Bomb\) cannot be unpickled"
        ):
            read(parcel)


def test_plain_results_are_not_tried(one: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(cargo.pickling, "unpickled", never)
    one.result({"plain": [1, 2.5, "x", None, b"y", (True,)] * 50})
    with pytest.raises(AssertionError):
        one.result(int)


class Stop(pickling.Stopped): ...


class Stopping:
    def __setstate__(self, state: Any) -> None:
        raise Stop

    def __reduce__(self) -> Any:
        return Stopping, (), 1


def test_being_stopped_while_a_value_loads_is_not_the_values_fault(one: Side) -> None:
    with pytest.raises(Stop):
        one.call(consume, Stopping())
    with pytest.raises(Stop):
        encode_value(Stopping(), "make", one.store)


def test_a_result_that_cannot_be_pickled_is_named(one: Side) -> None:
    with pytest.raises(TransportError, match=r"the result of make \['k'\]\[0\] cannot travel back"):
        encode_value({"k": [threading.Lock()], "pad": b"x" * LONG}, "make", one.store)
    assert one.store.live == 0


def test_a_module_that_the_engine_lacks_matters_only_where_it_is_needed(
    one: Side, two: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib
    import sys

    (tmp_path / "only_in_workers.py").write_text("class Row:\n    n = 1\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        module = importlib.import_module("only_in_workers")
        parcel = one.result([module.Row(), "x" * 300], "load")
        assert two.passed(parcel)[0].n == 1
        del sys.modules["only_in_workers"]
    importlib.invalidate_caches()
    with pytest.raises(TransportError, match=r"the result of load.* cannot be unpickled: .*only_in_workers"):
        parcel.fetch()


def test_no_room_is_the_tasks_failure_and_leaves_nothing(
    one: Side, book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: Any, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        TransportError, match=r"the result of make \(3,000,0\d\d bytes\) cannot be put into shared memory"
    ):
        encode_value(b"x" * LONG, "make", one.store)
    with pytest.raises(TransportError, match=r"what is passed to consume .* cannot be put into shared memory"):
        encode_call(target_of(consume), (b"x" * LONG,), {}, book)
    assert one.store.live == book.store.live == 0


def test_a_value_whose_memory_is_gone_says_so(one: Side, book: Book) -> None:
    parcel = one.result(b"x" * LONG, "load")
    book.close()
    with pytest.raises(TransportError, match=r"the result of load .* cannot be read from shared memory"):
        parcel.fetch()


# ── arrays ────────────────────────────────────────────────────────────────────────────────────────────────────────

ARRAYS: dict[str, Callable[[Any], Any]] = {
    "vector": lambda np: np.arange(400_000, dtype="f8"),
    "small": lambda np: np.arange(10),
    "copied": lambda np: np.arange(20_000, dtype="f8"),
    "matrix": lambda np: np.arange(400_000, dtype="i4").reshape(400, 1000),
    "fortran": lambda np: np.asfortranarray(np.arange(400_000, dtype="f8").reshape(400, 1000)),
    "strided": lambda np: np.arange(800_000, dtype="f8")[::2],
    "transposed": lambda np: np.arange(400_000, dtype="f8").reshape(400, 1000).T[3:],
    "reversed": lambda np: np.arange(400_000, dtype="f8")[::-1],
    "slice": lambda np: np.arange(800_000, dtype="f8")[1000:500_000],
    "empty": lambda np: np.zeros((0, 5)),
    "scalar": lambda np: np.float32(1.5),
    "zero dimensions": lambda np: np.array(7),
    "objects": lambda np: np.array([None, "x", {"k": 1}] * 50_000, dtype=object),
    "strings": lambda np: np.array(["text", "é"] * 100_000),
    "records": lambda np: np.zeros(50_000, dtype=[("a", "i4"), ("b", "f8"), ("c", "U3")]),
    "dates": lambda np: np.arange(200_000).astype("M8[s]"),
    "masked": lambda np: np.ma.masked_greater(np.arange(400_000), 7),
    "complex": lambda np: np.arange(200_000) * 1j,
    "bools": lambda np: np.ones(500_000, dtype=bool),
    "big endian": lambda np: np.arange(200_000, dtype=">f8"),
}


@pytest.mark.parametrize("name", list(ARRAYS))
def test_arrays_arrive_as_they_were(one: Side, two: Side, name: str) -> None:
    np = pytest.importorskip("numpy")
    value = ARRAYS[name](np)
    result = one.result(value)
    for got in (two.passed(result), two.passed(value), result.fetch()):
        np.testing.assert_array_equal(got, value)
        assert type(got) is type(value)
        assert got.dtype == value.dtype
        if isinstance(value, np.ndarray):
            assert got.flags.writeable
            if value.flags.forc:  # others numpy makes contiguous itself
                assert got.flags.f_contiguous == value.flags.f_contiguous


def test_an_array_is_not_copied_and_writing_to_it_harms_nobody(one: Side, two: Side) -> None:
    np = pytest.importorskip("numpy")
    value = np.arange(400_000, dtype="f8")
    result = one.result(value)
    first = two.passed(result)
    assert not first.flags.owndata
    first += 1
    first[:] = 0
    np.testing.assert_array_equal(two.passed(result), value)
    np.testing.assert_array_equal(result.fetch(), value)


def test_a_read_only_array_stays_read_only(one: Side, two: Side) -> None:
    np = pytest.importorskip("numpy")
    value = np.arange(400_000, dtype="f8")
    value.flags.writeable = False
    got = two.passed(one.result(value))
    assert not got.flags.writeable
    np.testing.assert_array_equal(got, value)


def test_an_array_that_is_kept_keeps_its_chunk(one: Side, two: Side, book: Book) -> None:
    np = pytest.importorskip("numpy")
    result = one.result(np.arange(400_000, dtype="f8"))
    kept = two.passed(result)[5:8]
    held, _ = two.arenas.release()
    assert [ref[0] for ref in held] == [one.store.arena]
    del kept
    assert two.arenas.release() == ([], held)
    value = result.fetch()[10:20]
    del result
    gc.collect()
    assert book.to_free() == {}, "an array in the engine lies in it"
    del value
    assert list(book.to_free()) == [1]


def test_hundreds_of_arrays_are_one_chunk(one: Side, two: Side) -> None:
    np = pytest.importorskip("numpy")
    rng = np.random.default_rng(1)
    value = [rng.random(8_192 + n) for n in range(300)]
    result = one.result(value)
    assert len(result.chunks) == 1
    for got in (two.passed(result), two.passed(value), result.fetch()):
        assert len(got) == 300
        assert all(np.array_equal(a, b) for a, b in zip(got, value, strict=True))
    assert all(array.ctypes.data % 16 == 0 for array in result.fetch())


def test_arrays_in_odd_company_arrive(one: Side, two: Side, shapes: ModuleType) -> None:
    np = pytest.importorskip("numpy")
    array = np.arange(100_001, dtype="u1")
    value = {"a": array, "b": [shapes.Holder(array), array[1:], b"x" * 100_000], "c": {"d": (array.reshape(-1, 1),)}}
    for got in (two.passed(one.result(value)), two.passed(value)):
        assert got["b"][0].parts is got["a"], "shared as before"
        np.testing.assert_array_equal(got["a"], array)
        np.testing.assert_array_equal(got["b"][1], array[1:])
        np.testing.assert_array_equal(got["c"]["d"][0], array.reshape(-1, 1))
        assert got["b"][2] == value["b"][2]


def test_random_values_survive_a_chain_of_workers(one: Side, two: Side) -> None:
    np = pytest.importorskip("numpy")
    rng = random.Random(5)

    def value(depth: int) -> Any:
        kind = rng.randrange(8 if depth else 5)
        if kind == 0:
            return rng.choice([None, 1, "x", 2.5, True])
        if kind == 1:
            return rng.randbytes(rng.choice([10, 70_000, 300_000]))
        if kind == 2:
            return "é" * rng.choice([10, 70_000])
        if kind == 3:
            return np.frombuffer(rng.randbytes(8 * rng.choice([3, 10_000, 200_000])), dtype="i8").copy()
        if kind == 4:
            return bytearray(rng.choice([1, 100_000]))
        items = [value(depth - 1) for _ in range(rng.randrange(4))]
        return items if kind == 5 else tuple(items) if kind == 6 else dict(enumerate(items))

    def same(a: Any, b: Any) -> bool:
        if type(a) is not type(b):
            return False
        if isinstance(a, np.ndarray):
            return bool(np.array_equal(a, b))
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        return bool(a == b)

    for _ in range(60):
        original = value(3)
        current: Any = original
        for side in (one, two, one):
            current = side.result(side.passed(current))
        got = current.fetch() if isinstance(current, Parcel) else current
        assert same(got, original)
        del current, got
        for side in (one, two):
            side.arenas.release()
        for wid, refs in one.book.to_free().items():
            for ref in refs:
                (one if wid == 1 else two).store.free(ref)
        assert one.store.live == two.store.live == one.book.store.live == 0


def test_data_frames_arrive_as_they_were(one: Side, two: Side) -> None:
    np = pytest.importorskip("numpy")
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {
            "i": np.arange(100_000),
            "f": np.linspace(0, 1, 100_000),
            "s": ["text", "é"] * 50_000,
            "c": pd.Categorical(["a", "b"] * 50_000),
            "t": pd.date_range("2020-01-01", periods=100_000, freq="s"),
            "o": [None, {"k": 1}] * 50_000,
        },
        index=pd.Index(np.arange(100_000) * 2, name="n"),
    )
    result = one.result(frame)
    for got in (two.passed(result), two.passed({"x": frame})["x"], result.fetch()):
        pd.testing.assert_frame_equal(got, frame)
        got.loc[0, "f"] = 7.0
        got["i"] += 1
    pd.testing.assert_frame_equal(two.passed(result), frame)


def test_buffers_of_the_users_own_classes_arrive(one: Side, two: Side) -> None:
    value = pickle.PickleBuffer(bytearray(b"x" * LONG))
    got = two.passed(one.result([value]))
    assert bytes(got[0]) == b"x" * LONG
    assert two.passed(one.result(memoryview(b"x" * LONG))) == b"x" * LONG, "cloudpickle makes it bytes"
