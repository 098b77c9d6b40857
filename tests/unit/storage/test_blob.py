"""Values come back exactly as they were, and nothing that was tampered with is believed or unpickled."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import importlib
import json
import math
import pathlib
import pickle
import random
import struct
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowlane.errors import FlowError, ResultDamaged, StoreError, TransportError
from flowlane.loader import load_file
from flowlane.storage import payload as payloads
from flowlane.storage.asked import Asked, seal_asked, unseal_asked
from flowlane.storage.blob import Codec, Payload, bound_to, bound_to_run, digest_of, pack, pickled, seal, unpack, unseal
from flowlane_plugins.executors import pickling

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = bytes(range(32))
FOREIGN = bytes(range(1, 33))
PLACE = bound_to(("0123456789ab", 1, 2, 3))
MAC = slice(32, 64)


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    HIGH = 3


class Pair(NamedTuple):
    left: int
    right: str


@dataclasses.dataclass
class Point:
    x: float
    tags: list[str] = dataclasses.field(default_factory=list)


class Text(str):
    pass


class Canary:
    """Its unpickling is seen."""

    sung = 0

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return sing, ()


def sing() -> None:
    Canary.sung += 1


class Refuses:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class Explodes:
    def __reduce__(self) -> Any:
        return explode, ()


def explode() -> None:
    raise ValueError("no more of this\nsecond line")


def sealed(value: Any, key: bytes = KEY) -> bytes:
    return b"".join(seal(pack(value), key, PLACE))


def there_and_back(value: Any) -> Any:
    return unpack(unseal(sealed(value), KEY, PLACE))


def same(a: Any, b: Any) -> bool:
    """Equal in type and value, all the way down; nan is nan, and -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            same(k, m) and same(v, w) for (k, v), (m, w) in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


# ── exact ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

JSON = [
    None, True, False, 0, -1, 2**63 - 1, -(2**63), 0.0, -0.0, 1.0, 1e16, 5e-324, 1.7976931348623157e308, 0.1, "", "text",
    "\x00\x1f\"\\/\u2028é\U0001f600", [], {}, [[], {}], {"a": [1, 2.0, None, True, "x", {"b": []}]}, {"": ""},
    {"\n\"": 1}, list(range(16)), {str(i): i for i in range(16)}, deep(10),
]  # fmt: skip

PICKLE = [
    2**63, -(2**63) - 1, 10**5000, math.inf, -math.inf, math.nan, [math.nan], "\ud800", "\ud83d\ude00", ["\ud83d\ude00"],
    {"\udcff": 1}, {1: 2}, {None: 1, True: 2}, {Text("a"): 1}, Text("a"), [Text("a")], (), (1, 2), [(1,)], {"a": (1,)},
    {1, 2}, frozenset({1}), b"", b"bytes", bytearray(b"xyz"), 1 + 2j, range(5), slice(1, 2), ..., NotImplemented,
    Colour.RED, Level.HIGH, [Level.HIGH], Pair(1, "x"), Point(1.5, ["a"]), int, len, Point, "x" * 5000, list(range(17)),
    deep(60), collections.OrderedDict(a=1), collections.defaultdict(list, a=[1]), collections.Counter("aab"),
    collections.deque([1], 3), decimal.Decimal("1.10"), decimal.Decimal("NaN"), fractions.Fraction(1, 3),
    datetime.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=datetime.UTC), datetime.date(2024, 1, 1), datetime.timedelta(1),
    pathlib.PurePosixPath("/a/b"), uuid.UUID(int=7), b"x" * 200_000, "é" * 200_000, bytearray(100_000),
    [b"y" * 100_000, "text", b"z" * 70_000], {"__main__": ("__main__",), "x": "cloudpickle.cloudpickle"}, ("__main__",) * 3,
    ('if __name__ == "__main__":', "_make_function"),
]  # fmt: skip


def shown(value: Any) -> str:
    return f"{type(value).__name__}-{str(value)[:20]!a}" if value != 10**5000 else "int-huge"


@pytest.mark.parametrize("value", JSON, ids=shown)
def test_small_plain_values_are_json(value: Any) -> None:
    assert pack(value).codec is Codec.JSON
    assert same(there_and_back(value), value)


@pytest.mark.parametrize("value", PICKLE, ids=shown)
def test_all_else_is_pickled(value: Any) -> None:
    assert pack(value).codec is Codec.PICKLE
    back = there_and_back(value)
    assert same(back, value) or (value != value and repr(back) == repr(value))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=15,
)
anything = st.recursive(
    plain | st.binary() | st.decimals(allow_nan=False) | st.dates() | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=5,
)


@given(anything)
def test_whatever_goes_in_comes_out(value: Any) -> None:
    assert same(there_and_back(value), value)


@given(plain)
def test_what_is_json_other_programs_read(value: Any) -> None:
    payload = pack(value)
    if payload.codec is Codec.JSON:
        text = b"".join(payload.stream).decode()

        def constant(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        assert same(json.loads(text, parse_constant=constant), value)


def test_what_is_shared_stays_shared() -> None:
    inner: list[int] = [1]
    back = there_and_back([inner, inner])
    assert back == [[1], [1]] and back[0] is back[1]
    back = there_and_back({"a": inner, "b": {"c": inner}})
    assert back["a"] is back["b"]["c"]


def test_what_holds_itself_still_does() -> None:
    ring: list[Any] = []
    ring.append(ring)
    back = there_and_back(ring)
    assert back[0] is back
    keyed: dict[str, Any] = {"x": 1}
    keyed["self"] = keyed
    back = there_and_back(keyed)
    assert back["self"] is back


def test_a_value_that_another_thread_changes_is_never_half_json() -> None:
    # Tuples would come back as lists if the look and the writing were two passes.
    value: dict[str, Any] = {str(i): i for i in range(8)}
    stop = threading.Event()

    def change() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            value[str(n % 8)] = (n,) if n % 2 else n
            value.pop("9", None)
            value["9"] = n

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(2000):
            try:
                back = unpack(pack(value))
            except TransportError:  # "dictionary changed size during iteration": said, and nothing stored
                pass
            else:
                assert all(type(item) in (int, tuple) for item in back.values())
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)


# ── arrays ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "array",
    [
        np.arange(3),
        np.arange(50_000.0),
        np.asfortranarray(np.arange(90_000).reshape(300, 300)),
        np.arange(200_000)[::2],
        np.zeros((0, 5)),
        np.array(["a", None, {"x": 1}], dtype=object),
        np.zeros(9000, dtype=[("a", "<i4"), ("b", "<f8")]),
        np.arange(0, 20_000, dtype="datetime64[s]"),
        np.array(5),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_arrays_come_back_exactly_and_can_be_written_to(array: Any) -> None:
    back = there_and_back(array)
    assert type(back) is np.ndarray and back.dtype == array.dtype and back.shape == array.shape
    assert back.flags.f_contiguous == array.flags.f_contiguous or not array.flags.contiguous
    assert (back == array).all() and back.flags.writeable
    back[...] = back
    assert not back.size or back.ctypes.data % back.dtype.alignment == 0


def test_a_read_only_array_stays_read_only() -> None:
    array = np.arange(20_000.0)
    array.flags.writeable = False
    assert not there_and_back(array).flags.writeable


def test_frames_and_their_like() -> None:
    frame = pd.DataFrame({"n": range(20_000), "x": np.linspace(0, 1, 20_000), "s": ["a", "b"] * 10_000})
    frame["when"] = pd.date_range("2024-01-01", periods=20_000, freq="s", tz="UTC")
    frame["kind"] = frame["s"].astype("category")
    back = there_and_back(frame)
    pd.testing.assert_frame_equal(back, frame)
    back.loc[0, "x"] = 5.0
    assert frame.loc[0, "x"] == 0.0


def test_large_buffers_are_parts_of_their_own_and_not_copied() -> None:
    first, second = np.arange(10_000.0), np.arange(9_001, dtype="<i8")
    payload = pack({"first": first, "second": second, "small": np.arange(5)})
    assert [
        np.shares_memory(np.frombuffer(b, "u1"), a) for b, a in zip(payload.buffers, (first, second), strict=True)
    ] == [
        True,
        True,
    ]
    blob = seal(payload, KEY, PLACE)
    assert any(piece is payload.buffers[0] for piece in blob)
    data = b"".join(blob)
    opened = unseal(data, KEY, PLACE)
    for view, original in zip(opened.buffers, payload.buffers, strict=True):
        assert isinstance(view, memoryview) and view.obj is data and view == original
        offset = np.frombuffer(view, "u1").ctypes.data - np.frombuffer(data, "u1").ctypes.data
        assert offset % 64 == 0


def test_arrays_lie_in_memory_that_may_be_written_to_and_in_copies_of_other() -> None:
    data = sealed(np.arange(10_000.0))
    given_away = bytearray(data)
    in_place = unpack(unseal(given_away, KEY, PLACE))
    in_place[0] = 7.0
    assert given_away != data
    copied = unpack(unseal(data, KEY, PLACE))
    copied[0] = 7.0
    assert unpack(unseal(data, KEY, PLACE))[0] == 0.0


def test_a_detached_payload_does_not_see_what_happens_to_its_value() -> None:
    array, long = np.zeros(10_000), bytearray(100_000)
    value = [array, long, b"k" * 100_000]
    payload = pack(value)
    own = payload.detached()
    array[:] = 1.0
    long[:] = b"\1" * 100_000
    stored = unpack(own)
    assert not stored[0].any() and not any(stored[1])
    assert own.nbytes == payload.nbytes
    assert sum(piece is value[2] for piece in own.stream) == 1  # bytes cannot change: no copy
    assert pack((1, 2)).detached().stream[0] == pack((1, 2)).stream[0]
    plain = pack({"a": 1})
    assert plain.detached() is plain


# ── what cannot be stored ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (threading.Lock(), "it cannot be pickled: cannot pickle '_thread.lock' object"),
        ([{"a": Refuses(ValueError("not me\nbecause"))}], "it cannot be pickled: ValueError: not me"),
        (Refuses(SystemExit(3)), "it cannot be pickled: SystemExit: 3"),
        (Refuses(MemoryError()), "it cannot be pickled: MemoryError"),
        (deep(100_000), "it cannot be pickled: it is nested too deeply"),
        ((x for x in ()), "it cannot be pickled: cannot pickle 'generator' object"),
    ],
    ids=["lock", "raises", "exits", "memory", "deep", "generator"],
)
def test_what_cannot_be_pickled_is_said(value: Any, message: str) -> None:
    with pytest.raises(TransportError) as caught:
        pack(value)
    assert caught.value.message == message
    assert caught.value.hint


def test_the_place_is_that_of_the_users_own_code() -> None:
    with pytest.raises(TransportError) as caught:
        pack(Refuses(ValueError("no")))
    assert (
        caught.value.where is not None and "test_blob.py" in caught.value.where and "__reduce__" in caught.value.where
    )
    with pytest.raises(TransportError) as caught:
        pack(threading.Lock())
    assert caught.value.where is None


def test_ctrl_c_passes() -> None:
    with pytest.raises(KeyboardInterrupt):
        pack(Refuses(KeyboardInterrupt()))


def test_lambdas_and_local_classes_cannot_be_stored() -> None:
    class Local:
        pass

    for value in (lambda: 1, Local(), [Local]):
        with pytest.raises(TransportError, match="it cannot be pickled"):
            pack(value)


@pytest.fixture
def in_main(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class of ``__main__``, as of a script that is run by python itself."""

    class Order:
        pass

    Order.__module__, Order.__qualname__ = "__main__", "Order"
    monkeypatch.setattr(sys.modules["__main__"], "Order", Order, raising=False)
    return Order


def test_what_is_of_main_cannot_be_stored(in_main: type) -> None:
    value = in_main()
    main = in_main.__module__  # the very text that pickle writes: it may be met as text first
    for holder in (value, in_main, [value], {"a": (1, value)}, [main, value], [b"z" * 300_000, value]):
        with pytest.raises(TransportError) as caught:
            pack(holder)
        assert caught.value.message == "it refers to Order of __main__, which no later process can find"
        assert "flow run" in (caught.value.hint or "")
        with pytest.raises(TransportError, match="Order of __main__"):
            pickled(pickle.dumps(holder, 5))


def test_what_only_reads_like_it_can(in_main: type) -> None:
    main = in_main.__module__
    for text in ([main, Point(1.0), main], (main,), b"\x8c\x08__main__\x94\x8c\x05Order\x94\x93", Point, main):
        assert same(unpack(pack((text, Point(2.0)))), (text, Point(2.0)))
        pickled(pickling.pickled((text, Point)))


def test_what_a_worker_pickled_by_value_cannot_be_stored(in_main: type) -> None:
    def local(x: int) -> int:
        return x

    class Local:
        pass

    for value in (local, Local, [Local()], in_main, in_main(), {"f": lambda: local(1)}):
        for stream in (cloudpickle.dumps(value, 5), pickling.pickled(value)):
            with pytest.raises(TransportError, match="which no later process can find"):
                pickled(stream)
            with pytest.raises(TransportError, match="which no later process can find"):
                pickled(memoryview(stream))


def test_what_cloudpickle_only_helps_with_can() -> None:
    # Plain pickle refuses a memoryview; by value it is bytes, and nothing of it is code.
    value = ["__main__", memoryview(b"abc"), {"k": 1}.keys()]
    stream = pickling.pickled(value)
    back = unpack(pickled(stream))
    assert bytes(back[1]) == b"abc" and list(back[2]) == ["k"]


def test_a_mark_is_found_wherever_it_lies(in_main: type) -> None:
    step = payloads._COPIED
    mark = payloads._MAIN_MARKS[0]
    for at in (0, step - len(mark), step - 5, step - 1, step, step + 1, 2 * step - 3, 3 * step - len(mark)):
        stream = bytearray(3 * step)
        stream[at : at + len(mark)] = mark
        assert payloads._mentioned((memoryview(stream),), (mark,))
        assert payloads._mentioned((bytes(stream),), (mark,))
    assert not payloads._mentioned((memoryview(bytes(3 * step)),), (mark,))


# ── from workers, and modules loaded by path ──────────────────────────────────────────────────────────────────────────


def test_a_workers_pickle_is_taken_over_as_it_is() -> None:
    value = {"a": np.arange(20_000.0), "b": [Point(1.0)], "c": np.arange(30_000)}
    pieces, buffers = pickling.pickled_apart(value)
    stream = b"".join(pieces)
    payload = pickled(memoryview(stream), buffers)
    back = unpack(unseal(b"".join(seal(payload, KEY, PLACE)), KEY, PLACE))
    assert (back["a"] == value["a"]).all() and (back["c"] == value["c"]).all() and back["b"] == value["b"]
    back["a"][0] = 5.0
    assert value["a"][0] == 0.0


def test_empty_buffers_and_many_of_them() -> None:
    value = [pickle.PickleBuffer(bytes([i % 256]) * (i % 3)) for i in range(1000)]
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(value, 5, buffer_callback=buffers.append)
    payload = unseal(b"".join(seal(pickled(stream, [b.raw() for b in buffers]), KEY, PLACE)), KEY, PLACE)
    assert [bytes(b) for b in unpack(payload)] == [bytes(v) for v in value]


def test_a_file_given_to_flow_run_is_named_and_loaded_before(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "blob_etl.py"
    path.write_text(
        "class Row:\n    def __init__(self, n): self.n = n\n    def __eq__(self, o): return o.n == self.n\n"
    )
    module = load_file(str(path))
    try:
        payload = pack([module.Row(3)])
        assert payload.files == (("_flow_blob_etl", str(path)),)
        data = b"".join(seal(payload, KEY, PLACE))
        payload = unseal(data, KEY, PLACE)
        assert payload.files == (("_flow_blob_etl", str(path)),)
        del sys.modules["_flow_blob_etl"]
        with pytest.raises(TransportError) as caught:
            unpack(payload)
        assert str(path) in caught.value.message and "Row" in caught.value.message
        asked: list[Any] = []

        def load_files(files: Any) -> None:
            asked.append(files)
            load_file(files[0][1])

        assert unpack(payload, load_files)[0].n == 3
        assert asked == [payload.files]
    finally:
        sys.modules.pop("_flow_blob_etl", None)


def test_paths_that_are_no_text_travel_too() -> None:
    files = (("_flow_\udcffä", "/tmp/\udce4\udcff.py"), ("_flow_b", '/"\\\n'))
    payload = pickled(pickle.dumps((1,), 5), (), files)
    back = unseal(b"".join(seal(payload, KEY, PLACE)), KEY, PLACE)
    assert back.files == files
    assert unpack(back) == (1,)


def test_what_load_files_raises_passes() -> None:
    payload = pickled(pickle.dumps((1,), 5), (), (("_flow_gone", "/gone.py"),))

    def refuse(_: Any) -> None:
        raise FlowError("not here")

    with pytest.raises(FlowError, match="not here"):
        unpack(payload, refuse)


# ── what does not load again ──────────────────────────────────────────────────────────────────────────────────────────


def written_module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, text: str) -> pathlib.Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "blob_shop.py"
    path.write_text(text)
    importlib.invalidate_caches()
    return path


SHOP = "class Cart:\n    class Item:\n        pass\n"


@pytest.mark.parametrize(
    ("later", "message", "hint"),
    [
        (
            None,
            "it needs Cart.Item of blob_shop, and that is not there: No module named 'blob_shop'",
            "install or put back",
        ),
        (
            "class Cart: pass\n",
            "it needs Cart.Item of blob_shop, which has no Cart.Item any more",
            "alias: Cart.Item =",
        ),
        (
            "import blob_gone\n",
            "it needs Cart.Item of blob_shop, and that is not there: No module named 'blob_gone'",
            "install",
        ),
        (
            "1 / 0\n",
            "it needs Cart.Item of blob_shop, which cannot be imported: ZeroDivisionError: division by zero",
            "repair",
        ),
        (
            "x = (\n",
            "it needs Cart.Item of blob_shop, which cannot be imported: SyntaxError: '(' was never closed",
            "repair",
        ),
    ],
    ids=["module gone", "class gone", "import gone", "raises", "syntax"],
)
def test_what_is_gone_is_named_with_the_fix(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, later: str | None, message: str, hint: str
) -> None:
    path = written_module(tmp_path, monkeypatch, SHOP)
    try:
        data = sealed((Point(1.0), importlib.import_module("blob_shop").Cart.Item(), Explodes()))
        del sys.modules["blob_shop"]
        path.unlink()
        if later is not None:
            path.write_text(later)
        importlib.invalidate_caches()
        with pytest.raises(TransportError) as caught:
            unpack(unseal(data, KEY, PLACE))
        assert caught.value.message.startswith(message)
        assert hint in (caught.value.hint or "")
    finally:
        sys.modules.pop("blob_shop", None)


def test_what_explodes_on_load_is_said_and_not_blamed_on_a_module() -> None:
    with pytest.raises(TransportError) as caught:
        there_and_back([1, Explodes(), Point(2.0)])
    assert caught.value.message == "it cannot be unpickled: ValueError: no more of this"
    assert caught.value.where is not None and "test_blob.py" in caught.value.where


def test_a_pickle_that_is_none_is_said() -> None:
    for stream in (b"", b"garbage", pickle.dumps((1, 2), 5)[:-1], b"I5\n."):
        with pytest.raises(TransportError, match="it cannot be unpickled"):
            unpack(pickled(stream))


# ── the seal ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def refused(data: Any, key: bytes = KEY) -> str:
    with pytest.raises(ResultDamaged) as caught:
        unseal(data, key, PLACE)
    assert isinstance(caught.value, StoreError) and caught.value.exit_code == 74 and caught.value.hint
    return caught.value.message


def test_the_layout_is_what_is_documented() -> None:
    data = sealed({"a": 1})
    assert data[:8] == b"\x89FLO\r\n\x1a\n" and data[8:12] == b"\x01\x01\0\0"
    assert struct.unpack("<IQ", data[12:24]) == (1, len(data))
    assert data[64:] == b'{"a":1}'
    payload = Payload(Codec.PICKLE, (b"abc", b"de"), (b"x" * 70, b"yz"), (("_flow_m", "/m.py"),))
    data = b"".join(seal(payload, KEY, PLACE))
    assert data[9:12] == b"\x02\x01\0" and struct.unpack("<I", data[12:16]) == (4,)
    lengths = struct.unpack("<3Q", data[64:88])
    assert lengths == (len(b'[["_flow_m", "/m.py"]]'), 5, 70)
    assert data[128:133] == b"abcde" and data[192:262] == b"x" * 70 and data[320:] == b"yz"


def test_each_way_of_being_damaged_has_its_own_sentence() -> None:
    data = sealed((1, "two", 3.0))
    size = len(data)
    said = [
        refused(b""),
        refused(b"PK\3\4" + data),
        refused(data[:20]),
        refused(data[:-1]),
        refused(data + b"\0"),
        refused(data[:8] + b"\2" + data[9:]),
        refused(data, FOREIGN),
        refused(data[:-3] + b"x" + data[-2:]),
    ]
    assert said == [
        "it is empty",
        "it is not a result that flowlane wrote: it begins with other bytes",
        "it was cut short: 20 bytes are there, of at least 64",
        f"it was cut short: {size - 1} bytes are there, of {size}",
        f"it is longer than it was written: {size + 1} bytes are there, of {size}",
        "it was written by a newer flowlane: it has format 2, and this one reads up to 1",
        "it was not written by this store's owner, or its header is damaged: it names another key",
        "it is damaged: its bytes are not those that were written",
    ]


def test_whoever_has_the_key_but_not_our_format_is_refused_as_well() -> None:
    good = sealed((1,))
    for at, what in (
        (9, b"\7"),
        (10, b"\2"),
        (11, b"\1"),
        (12, b"\0"),
        (12, b"\xff\xff\xff\xff"),
        (12, b"\2"),
        (10, b"\1"),
    ):
        head = bytearray(good[:32])
        head[at : at + len(what)] = what
        mac = payloads_mac(bytes(head) + good[64:])
        assert refused(bytes(head) + mac + good[64:]).startswith("it is whole, but flowlane did not write it so")
    head = bytearray(good[:32])
    head[10], head[12] = 1, 2
    for files in (b"", b"{", b"[1]", b'["abc"]', b"[" * 100_000, b"\xff", b"[[1, 2, 3]]"):
        body = struct.pack("<Q", len(files)) + files
        body += bytes(-(64 + len(body)) % 64) + good[64:]
        head[16:24] = struct.pack("<Q", 64 + len(body))
        data = bytes(head) + payloads_mac(bytes(head) + body) + body
        assert refused(data).startswith("it is whole, but flowlane did not write it so")
    for length in (2**64 - 1, 2**63, 1000):
        body = struct.pack("<Q", length) + bytes(100)
        head[16:24] = struct.pack("<Q", 64 + len(body))
        assert refused(bytes(head) + payloads_mac(bytes(head) + body) + body).startswith("it is whole")


def payloads_mac(data: bytes) -> bytes:
    """The MAC of a header without its MAC, and what follows, spelled out."""
    import hashlib

    return hashlib.blake2b(data[:32] + PLACE + data[32:], key=KEY, digest_size=32, person=b"flowlane blob").digest()


def test_a_key_is_long_and_may_be_very_long() -> None:
    for key in (b"", b"short", bytes(31)):
        with pytest.raises(ValueError, match="at least 32 bytes"):
            seal(pack(1), key, PLACE)
        with pytest.raises(ValueError, match="at least 32 bytes"):
            unseal(sealed(1), key, PLACE)
    long = bytes(range(200))
    data = b"".join(seal(pack(1), long, PLACE))
    assert unpack(unseal(data, long, PLACE)) == 1
    assert "owner" in refused(data, long[:64])
    assert "owner" in refused(data, long + b"\0")


@pytest.mark.parametrize(
    "other",
    [
        bound_to(("0123456789ac", 1, 2, 3)),
        bound_to(("0123456789ab", 2, 2, 3)),
        bound_to(("0123456789ab", 1, 3, 3)),
        bound_to(("0123456789ab", 1, 2, 4)),
        bound_to(("0123456789ab", 1, 23, 0)),
        bound_to(("0123456789ab 1", 2, 3, 0)),
        bound_to_run("0123456789ab"),
        b"",
    ],
)
@pytest.mark.parametrize("value", [1, {"a": [1, "x"]}, bytes(100_000)])
def test_what_was_sealed_for_one_place_is_damaged_in_another(value: Any, other: bytes) -> None:
    data = sealed(value)
    with pytest.raises(ResultDamaged, match="it is damaged: its bytes are not those that were written"):
        unseal(data, KEY, other)
    assert unpack(unseal(data, KEY, PLACE)) == value
    assert PLACE not in data


def test_nothing_passes_from_the_place_into_the_content() -> None:
    data = sealed("x")
    head, mac, body = data[:32], data[32:64], data[64:]
    longer = bytearray(head)
    longer[16:24] = struct.pack("<Q", len(data) + 1)
    for moved, place in ((bytes(longer) + mac + PLACE[-1:] + body, PLACE[:-1]), (head + mac + body, PLACE + body[:1])):
        with pytest.raises(ResultDamaged):
            unseal(moved, KEY, place)


@pytest.mark.parametrize("origin", ["", '{"path": "/a/é.py"}', "\ud800"])
@pytest.mark.parametrize("params", [None, {}, {"n": 1}, {"x": (1, 2)}, {"a": np.arange(100_000.0), "b": np.arange(5)}])
def test_what_a_run_was_asked_comes_back_and_belongs_to_it(origin: str, params: dict[str, Any] | None) -> None:
    data = seal_asked(Asked(origin, None if params is None else pack(params)), "0123456789ab", KEY)
    back = unseal_asked(data, "0123456789ab", KEY)
    assert back.origin == origin
    assert (back.params is None) == (params is None)
    if params is not None:
        assert back.params is not None
        assert repr(unpack(back.params)) == repr(params)
    for run, key in (("0123456789ac", KEY), ("0123456789ab", FOREIGN)):
        with pytest.raises(ResultDamaged):
            unseal_asked(data, run, key)


def test_a_blob_that_asks_nothing_is_refused() -> None:
    with pytest.raises(ResultDamaged, match="does not say where its workflow is"):
        unseal_asked(b"".join(seal(pack({"n": 1}), KEY, bound_to_run("0" * 12))), "0" * 12, KEY)


def test_the_digest_names_the_content_and_its_place() -> None:
    one, other = seal(pack((1, 2)), KEY, PLACE), seal(pack((1, 3)), KEY, PLACE)
    assert digest_of(one) == digest_of(seal(pack((1, 2)), KEY, PLACE)) == b"".join(one)[MAC]
    foreign, elsewhere = seal(pack((1, 2)), FOREIGN, PLACE), seal(pack((1, 2)), KEY, bound_to_run("0123456789ab"))
    assert len({digest_of(each) for each in (one, other, foreign, elsewhere)}) == 4


def test_all_kinds_of_bytes_are_taken() -> None:
    data = sealed(Pair(1, "x"))
    for kind in (bytes, bytearray, memoryview):
        assert unpack(unseal(kind(data), KEY, PLACE)) == Pair(1, "x")
        assert "cut short" in refused(kind(data[:-1]))
        assert "begins with other" in refused(kind(b"x" * 100))
        assert "empty" in refused(kind(b""))


# ── tampering ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def victims() -> list[bytes]:
    """Small blobs of every shape; whatever of them is unpickled is heard."""
    files = (("_flow_m", "/m.py"),)
    shaped = Payload(Codec.PICKLE, (pickle.dumps(Canary(), 5),), (b"abc", b"d" * 65), files)
    return [sealed(1), sealed({"a": [1, "x"]}), sealed(Canary()), b"".join(seal(shaped, KEY, PLACE))]


@pytest.fixture(autouse=True)
def silence() -> Any:
    Canary.sung = 0
    yield
    assert Canary.sung == 0


def test_every_byte_counts(victims: list[bytes]) -> None:
    for data in victims:
        unseal(data, KEY, PLACE)
        for at in range(len(data)):
            for change in (0x01, 0x80, 0xFF, data[at]):  # the last makes it 0
                if change:
                    refused(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
            refused(data[:at])
            refused(data[at:] if at else b"")


def test_no_byte_may_be_any_other() -> None:
    data = sealed((1,))
    for at in range(len(data)):
        for other in range(256):
            if other != data[at]:
                try:
                    unseal(data[:at] + bytes([other]) + data[at + 1 :], KEY, PLACE)
                except ResultDamaged:
                    continue
                raise AssertionError(f"byte {at} may be {other}")


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """`data`, changed in one of the ways in which files go bad or are made bad."""
    at, to = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    match rng.randrange(9):
        case 0:  # some bits
            changed = bytearray(data)
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 1:  # cut short, or its head lost
            return data[:at] if rng.random() < 0.5 else data[at:]
        case 2:  # longer
            return data + rng.randbytes(rng.randint(1, 100))
        case 3:  # a stretch is gone, doubled, zeroes or noise
            return data[:at] + rng.choice([b"", data[at:to] * 2, bytes(to - at), rng.randbytes(to - at)]) + data[to:]
        case 4:  # the head of one before the tail of another
            return data[:at] + other[at:]
        case 5:  # another's header, MAC or key's name
            field = rng.choice([slice(0, 64), slice(32, 64), slice(24, 64), slice(0, 32), slice(8, 24)])
            return data[: field.start] + other[field] + data[field.stop :]
        case 6:  # lengths that lie
            changed = bytearray(data)
            value = rng.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.getrandbits(64), len(data) + 1])
            offset, form = rng.choice([(12, "<I"), (16, "<Q"), (64, "<Q")])
            packed = struct.pack("<Q", value)[: struct.calcsize(form)]
            changed[offset : offset + len(packed)] = packed
            return bytes(changed)
        case 7:  # whole, by somebody else
            return sealed(Canary(), rng.randbytes(32))
        case _:  # no blob at all
            return rng.randbytes(rng.randrange(200))


def test_ten_thousand_mutations_are_all_refused(victims: list[bytes]) -> None:
    rng = random.Random(20)
    untouched = 0
    for _ in range(10_000):
        data = mutated(rng.choice(victims), rng.choice(victims), rng)
        if data in victims:
            untouched += 1
            continue
        try:
            unseal(data, KEY, PLACE)
        except ResultDamaged:
            continue
        raise AssertionError(f"believed: {data!r}")
    assert untouched < 1_500


@given(st.binary(max_size=300), st.booleans())
def test_noise_is_refused(noise: bytes, headed: bool) -> None:
    refused(sealed(1)[: min(len(noise), 32)] + noise if headed else noise)


def test_the_canary_does_sing_when_it_is_believed(victims: list[bytes]) -> None:
    unpack(unseal(victims[2], KEY, PLACE))
    assert Canary.sung == 1
    Canary.sung = 0
