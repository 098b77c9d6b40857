"""What became of a run, from the tasks' own journal and from the database, by SQL and arithmetic of our own.

Nothing of the engine is imported. What is known of the database is what its schema says: an attempt's id is
``sid << 40 | element << 16 | attempt``; state 4 is "succeeded", 12 "skipped"; a session's graph is compressed JSON with the
tasks' names, and blocks tell what came into being later.

The database is never opened where it is: opening one that a killed process left makes SQLite recover it, and that is what
the next `flow` has to do. A copy of the file and its log is looked at instead.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import zlib
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SUCCEEDED, SKIPPED = 4, 12
WIDTH, LINKS, LARGE, WIDE = 8, 8, 100_000, 12

_BRANCHES = (*[f"branch[{n}]" for n in range(4)], "more/more")

#: Workflow of work.py → its tasks. Of one that becomes more than it was those that run: not what stands for them.
TASKS = {
    "killed": frozenset(
        [f"{name}-{n}" for name in ("pull", "parse", "crunch", "leaf") for n in range(WIDTH)]
        + [f"link-{n}" for n in range(LINKS)]
        + ["fold", "join"]
    ),
    "grown": frozenset(
        [f"{name}[{n}]" for name in ("drawn", "smash", "odd", "skim") for n in range(WIDE)]
        + [f"tree[{merge}]" for merge in ("1.0", "1.1", "1.2", "1.3", "2.0", "2.1", "3.0")]
        + [f"{part}/{name}" for part in _BRANCHES for name in ("draw[0]", "draw[1]", "draw[2]", "add")]
        + [f"link-{n}" for n in range(LINKS)]
        + ["numbers", "keyed[eu]", "keyed[us]", "more", "more/more", "told"]
    )
    - {"tree[2.1]"},  # one item alone is no merge
    "small": frozenset(["link-0", "link-1", "link-2", "parse", "inflate", "deflate"]),
}


def expected(workflow: str) -> object:
    """The value of a workflow of work.py."""
    last = 1
    for n in range(3 if workflow == "small" else LINKS):
        last = last * 3 + n
    if workflow == "grown":
        drawn = [7 * n for n in range(WIDE)]
        smashed = [hashlib.sha256(str(value).encode()).hexdigest() for value in drawn]
        odd, skimmed = [value for value in drawn if value % 2], [value for value in drawn if value % 3]
        return [
            smashed,
            odd,
            sum(drawn),
            [_branch(n) for n in (0, 10, 20, 30)],
            {"eu": 35, "us": 42},
            skimmed,
            _branch(4),
            last,
        ]
    if workflow == "small":
        return hashlib.sha256(_block(1, last)).hexdigest()
    blocks = b"".join([_block(n, 7 * n) for n in range(WIDTH)])
    return [hashlib.sha256(blocks).hexdigest(), sum(range(WIDTH)), last]


def _branch(number: int) -> int:
    return 7 * (3 * number + 3)


def _block(number: int, value: int) -> bytes:
    day = datetime.date(2020, 1, 1) + datetime.timedelta(days=value)
    return hashlib.sha256(f"{number} {str(value) * 10} {day}".encode()).digest() * (LARGE // 32)


# ── the journal ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Journal:
    """The lines of a journal from byte `since` on."""

    starts: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, since: int = 0) -> Journal:
        found = cls()
        data = path.read_bytes()[since:] if path.exists() else b""
        assert not data or data.endswith(b"\n"), f"half a line: {data[-80:]!r}"
        for line in data.decode().splitlines():
            _, task, what = line.split()
            (found.starts if what == "start" else found.ends).append(task)
        return found


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# ── the database ──────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def copied(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a copy of the database at `path`, log included."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.db"
        shutil.copy(path, copy)
        log = Path(f"{path}-wal")
        if log.exists():
            shutil.copy(log, f"{copy}-wal")
        with closing(sqlite3.connect(copy)) as db:
            yield db


@dataclass
class Stored:
    """A run as it is stored, after the last commit.

    committed  names of tasks that some session of it has as succeeded, or as skipped by their own word
    latest     name → state, of its latest session
    """

    id: str
    sessions: int
    state: str
    committed: frozenset[str]
    latest: dict[str, int]


def stored(path: Path) -> list[Stored]:
    """All runs in the database at `path`, oldest first; none where there is no database yet. Checks its integrity."""
    if not path.exists():
        return []
    with copied(path) as db:
        (verdict,) = db.execute("PRAGMA integrity_check").fetchone()
        assert verdict == "ok", verdict
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs'").fetchone():
            return []
        return [
            _run(db, *row) for row in db.execute("SELECT key, id, session, latest FROM runs ORDER BY key").fetchall()
        ]


def _run(db: sqlite3.Connection, key: int, run_id: str, number: int, latest: int) -> Stored:
    committed: set[str] = set()
    states: dict[str, int] = {}
    state = "?"
    sessions = db.execute(
        "SELECT sid, number, state, graph FROM sessions WHERE run = ? ORDER BY sid", (key,)
    ).fetchall()
    for sid, _, session_state, graph in sessions:
        names = _names(db, sid, graph)
        query = "SELECT id >> 16 & 0xffffff, state FROM attempts WHERE id >> 40 = ? ORDER BY id"
        found_rows = db.execute(query, (sid,)).fetchall()
        if stray := [element for element, _ in found_rows if element not in names]:
            raise AssertionError(f"rows of tasks that no block tells of: {stray}")
        rows = {names[element]: found for element, found in found_rows}
        committed.update(name for name, found in rows.items() if found in (SUCCEEDED, SKIPPED))
        if sid == latest:
            states, state = rows, session_state
    assert [row[1] for row in sessions] == list(range(1, number + 1)), "the sessions of a run count from 1"
    return Stored(run_id, number, state, frozenset(committed), states)


def _names(db: sqlite3.Connection, sid: int, graph: bytes) -> dict[int, str]:
    """Element → name, of all a session knows of."""
    names = dict(enumerate(json.loads(zlib.decompress(graph))["names"]))
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'blocks'").fetchone():
        return names
    query = (
        "SELECT id >> 16 & 0xffffff, length, kind, owner, first, level, data FROM blocks WHERE id >> 40 = ? ORDER BY id"
    )
    for start, length, kind, owner, first, level, data in db.execute(query, (sid,)).fetchall():
        if kind == 0:
            inner = json.loads(zlib.decompress(data))["names"]
            names.update((start + node, f"{names[owner]}/{name}") for node, name in enumerate(inner))
        elif kind == 2:
            names[start] = f"{names[owner]}[{level}.{first}]"
        else:
            chain = json.loads(data)
            for n in range(length):
                index, stage = divmod(n, len(chain["stages"]))
                keys = chain["keys"].get(str(stage))
                key = keys[index] if keys else first + index
                names[start + n] = f"{names[chain['stages'][stage]]}[{key}]"
    return names


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def marked(mark: str) -> list[int]:
    """Processes that have `mark` in their environment: a run's engine and whatever it started."""
    wanted = mark.encode()
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if wanted in file.read():
                        found.append(int(name))
            except OSError:
                continue
    return found
