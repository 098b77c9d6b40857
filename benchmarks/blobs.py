"""What it costs to make a value ready for the store, and to have it back: beside plain pickle, which a seal comes on top of.

    python benchmarks/blobs.py                               all values
    python benchmarks/blobs.py --value "int" --value "array 1 MB" --repetitions 31

Values:

    int, dict of 10      small and plain: written as JSON, so that nobody's code is needed to read them
    tuple of 2           the least that is pickled
    array 1 MB, 100 MB   a numpy array, out of band. `pickle.dumps` copies it once; `pack` does not, and `seal` reads all of it
                         for the MAC (BLAKE2b, about a GB a second): the ratio is that of hashing to copying

Contenders: `dumps` and `loads` are pickle's, protocol 5, which ratios are over. `pack` is what the event loop pays when an
outcome arrives; `seal` what the writing thread pays, without the GIL for most of a large value; `copy` is `Payload.detached`,
for values that go on to others before they are written. `unseal` and `unpack` are the way back, where the arrays of a read-only
blob are copied. A sample repeats its work until it takes about 10 ms; it is shown in µs for once.
"""

from __future__ import annotations

import pickle
import statistics
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pairs import Table, parser, ratio, rounds

from flowlane.storage.blob import bound_to, pack, seal, unpack, unseal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SAMPLE = 0.01  # seconds
_KEY = bytes(range(32))
_PLACE = bound_to(("0123456789ab", 1, 2, 3))


def values() -> dict[str, Any]:
    import numpy

    return {
        "int": 5,
        "dict of 10": {f"key{number}": number for number in range(10)},
        "tuple of 2": (1, "two"),
        "array 1 MB": numpy.arange(125_000.0),
        "array 100 MB": numpy.arange(12_500_000.0),
    }


def repeated(work: Callable[[], object]) -> Callable[[], float]:
    """Seconds for one `work`, of a sample long enough to be measured."""
    best = 1.0
    for _ in range(20):
        begin = perf_counter()
        work()
        best = min(best, perf_counter() - begin)
        if best > _SAMPLE:
            break
    times = max(1, round(_SAMPLE / best))

    def once() -> float:
        begin = perf_counter()
        for _ in range(times):
            work()
        return (perf_counter() - begin) / times

    return once


def contenders(value: Any) -> dict[str, tuple[str, Callable[[], object]]]:
    """Name → what it is a ratio over, and the work."""
    payload = pack(value)
    data = b"".join(seal(payload, _KEY, _PLACE))
    opened = unseal(data, _KEY, _PLACE)
    stored = pickle.dumps(value, 5)
    return {
        "dumps": ("", lambda: pickle.dumps(value, 5)),
        "pack": ("dumps", lambda: pack(value)),
        "copy": ("dumps", payload.detached),
        "seal": ("dumps", lambda: seal(payload, _KEY, _PLACE)),
        "pack + seal": ("dumps", lambda: seal(pack(value), _KEY, _PLACE)),
        "loads": ("", lambda: pickle.loads(stored)),
        "unseal": ("loads", lambda: unseal(data, _KEY, _PLACE)),
        "unpack": ("loads", lambda: unpack(opened)),
        "unseal + unpack": ("loads", lambda: unpack(unseal(data, _KEY, _PLACE))),
    }


def compare(table: Table, name: str, value: Any, repetitions: int) -> None:
    each = contenders(value)
    samples = rounds({who: repeated(work) for who, (_, work) in each.items()}, repetitions)
    for who, seconds in samples.items():
        micros = statistics.median(seconds) * 1e6
        fields: dict[str, Any] = {"value": name, "who": who, "us": round(micros, 3)}
        text = f"{name:12}  {who:16} {micros:12,.2f} µs"
        floor = each[who][0]
        if floor:
            times = ratio(seconds, samples[floor])
            fields.update(times.row(), floor=floor)
            text += f"   {times} {floor}"
        table.row(fields, text)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--value", action="append", help="one of the values' names (default: all)")
    args = arguments.parse_args(argv)
    try:
        known = values()
    except ImportError:
        arguments.exit(message="numpy is not installed, and this measures its arrays\n")
    unknown = set(args.value or ()) - set(known)
    if unknown:
        arguments.error(f"no such value: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    table = Table(args.json, f"{args.repetitions} rounds")
    for name in args.value or known:
        compare(table, name, known[name], args.repetitions)


if __name__ == "__main__":
    main()
