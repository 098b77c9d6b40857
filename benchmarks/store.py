"""What storing costs: microseconds a row, in batches as the journal writes them, and the same by hand.

By hand is the least that a program can do with SQLite: ``executemany`` of four integers, one transaction a batch, into a
table that has nothing else, write-ahead log, synchronous NORMAL. Ours writes whole rows of attempts (seven integers, a CRC,
what was measured as JSON text) that are read back by other programs. The ratio is ours over by hand, in one round.

    plain     rows without results
    detail    rows with 60 characters of JSON
    twice     each row written twice: when the attempt begins, and when it has ended
    small     rows with results of 100 bytes
    cache     rows with results and an entry in the cache each
    adopt     rows of an earlier session taken into a new one
    reread    what a resume reads: all rows, without results

Beside: what a poll for requests costs, and the database's bytes a row.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import tempfile
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pairs import Table, parser, ratio, rounds

from flowlane.storage.port import AttemptRow, CacheRow, Lease, NewRun, NewSession, Owner
from flowlane_plugins.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_T: Final = 1_764_000_000_000_000_000
_DETAIL: Final = '{"worker":"process-2","cpu":123456,"rss":45678901,"in":120}'
_SECRET: Final = bytes(32)


def by_hand(folder: str, count: int, batch: int) -> float:
    """Seconds for `count` rows of four integers."""
    db = sqlite3.connect(os.path.join(folder, "by_hand.db"), isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("CREATE TABLE rows (a INTEGER PRIMARY KEY, b INTEGER, c INTEGER, d INTEGER)")
    batches = [[(n, 4, 2, _T + n) for n in range(at, at + batch)] for at in range(0, count, batch)]
    started = time.perf_counter()
    for rows in batches:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", rows)
        db.execute("COMMIT")
    seconds = time.perf_counter() - started
    db.close()
    return seconds


def _rows(
    at: int, batch: int, state: int = 4, result: Sequence[bytes] = (), detail: str | None = None
) -> list[AttemptRow]:
    return [
        AttemptRow(n, 1, state, 2, _T + n, _T + n + 900, _T + n + 1900, result, detail) for n in range(at, at + batch)
    ]


class Subject:
    """A store of its own in a new folder, with a run begun."""

    def __init__(self, folder: str, durability: Any) -> None:
        self.store = SqliteStore(os.path.join(folder, "flow.db"), durability=durability, secret=_SECRET)
        self.store.open()
        self.session = NewSession(Owner(os.getpid(), "here"), b"graph", 1, _T, "benchmark")
        self.lease: Lease = self.store.begin(NewRun("0" * 12, "brisk-otter", "bench", "", b"", _T), self.session)

    def write(self, batches: Sequence[tuple[list[AttemptRow], list[CacheRow]]]) -> float:
        started = time.perf_counter()
        for rows, cached in batches:
            self.store.write(self.lease, rows, cached)
        return time.perf_counter() - started


def ours(what: str, folder: str, count: int, batch: int, durability: str, told: dict[str, float]) -> float:
    """Seconds for `count` rows."""
    subject = Subject(folder, durability)
    starts = range(0, count, batch)
    try:
        if what == "plain":
            seconds = subject.write([(_rows(at, batch), []) for at in starts])
        elif what == "twice":
            batches = [(_rows(at, batch, state), []) for at in starts for state in (2, 4)]
            seconds = subject.write(batches)
        elif what == "small":
            seconds = subject.write([(_rows(at, batch, 4, (bytes(100),), _DETAIL), []) for at in starts])
        elif what == "cache":
            entries = {
                at: [
                    CacheRow(n.to_bytes(32, "big"), "task", '{"code":"…"}', _T, 0, n, 1) for n in range(at, at + batch)
                ]
                for at in starts
            }
            seconds = subject.write([(_rows(at, batch, 4, (bytes(100),), _DETAIL), entries[at]) for at in starts])
        else:
            seconds = subject.write([(_rows(at, batch, 4, (), _DETAIL), []) for at in starts])
            if what == "adopt":
                run = subject.lease.run
                subject.store.close()
                subject.store.open()
                adopted = [(n, (run, 1, n, 1)) for n in range(count)]
                session = replace(subject.session, adopted=adopted)
                started = time.perf_counter()
                subject.lease = subject.store.reopen(run, session)
                seconds = time.perf_counter() - started
            elif what == "reread":
                started = time.perf_counter()
                assert sum(1 for _ in subject.store.attempts(subject.lease.run)) == count
                seconds = time.perf_counter() - started
        if what == "detail":
            started = time.perf_counter()
            for _ in range(1000):
                subject.store.requests(subject.lease)
            told["poll_us"] = (time.perf_counter() - started) * 1e3
    finally:
        subject.store.close()
    told[f"{what}_bytes"] = os.path.getsize(os.path.join(folder, "flow.db")) / count
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=20_000, help="rows of each contender (default %(default)s)")
    arguments.add_argument("--batch", type=int, default=500, help="rows a transaction (default %(default)s)")
    arguments.add_argument("--durability", choices=("process", "power"), default="process")
    args = arguments.parse_args(argv)
    about = f"{args.rows:,} rows, {args.batch} a transaction, durability {args.durability}"
    table = Table(args.json, f"{about}; microseconds a row, ratio over four integers by hand")
    told: dict[str, float] = {}

    def contender(what: str) -> Callable[[], float]:
        def call() -> float:
            with tempfile.TemporaryDirectory() as folder:
                if what == "by hand":
                    return by_hand(folder, args.rows, args.batch)
                return ours(what, folder, args.rows, args.batch, args.durability, told)

        return call

    names = ["by hand", "plain", "detail", "twice", "small", "cache", "adopt", "reread"]
    samples = rounds({name: contender(name) for name in names}, args.repetitions)
    for name in names:
        each = statistics.median(samples[name]) / args.rows * 1e6
        paired = ratio(samples[name], samples["by hand"])
        size = told.get(f"{name}_bytes")
        row = {"what": name, "us": round(each, 2), **paired.row(), "bytes": size and round(size)}
        shown = f"{size:6.0f} B a row" if size else ""
        table.row(row, f"{name:8} {each:7.2f} us  {paired}  {shown}")
    table.row({"what": "poll", "us": round(told["poll_us"], 2)}, f"poll     {told['poll_us']:7.2f} us")


if __name__ == "__main__":
    main()
