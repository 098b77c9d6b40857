"""How many tasks of a session stand where, of which nobody has said so: it has not ended, was taken over, or was repaired.

Nobody reads a run's rows for that: SQLite counts them by state, and only those of tasks that have become others are looked at
one by one. Rows are counted without a look at their CRCs, which would take 20 times as long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowlane.core.elements import CHAIN
from flowlane.core.states import EXPANDED
from flowlane.core.tally import tally_rows
from flowlane.runtime.blocks import owners
from flowlane_plugins.stores.sqlite.faults import damaged
from flowlane_plugins.stores.sqlite.schema import ATTEMPTS_MAX, span

if TYPE_CHECKING:
    import sqlite3

__all__ = ["count", "count_rows"]

#: A row of attempt 0 that says "expanded" only tells where a resumed run goes on from.
_COUNTS: Final = f"NOT (a.state = {EXPANDED} AND a.id & {ATTEMPTS_MAX - 1} = 0)"
_STATES: Final = (
    f"SELECT a.state, count(*) FROM attempts a WHERE a.id BETWEEN ? AND ? AND {_COUNTS} AND NOT EXISTS"
    f" (SELECT 1 FROM attempts b WHERE b.id > a.id AND b.id <= a.id | {ATTEMPTS_MAX - 1}) GROUP BY a.state"
)
_LAST: Final = (
    f"SELECT a.state, a.reason FROM attempts a WHERE a.id BETWEEN ? AND ? AND {_COUNTS} ORDER BY a.id DESC LIMIT 1"
)
_BLOCKS: Final = (
    f"SELECT length, kind, owner, CASE kind WHEN {CHAIN} THEN data END FROM blocks WHERE id BETWEEN ? AND ?"
)


def count(db: sqlite3.Connection, path: str, sid: int) -> dict[str, int]:
    """State → tasks, as its rows and blocks have it. Raises sqlite3.Error, StoreError."""
    alone = not db.in_transaction
    if alone:  # rows and blocks of one instant: it may be under way
        db.execute("BEGIN")
    try:
        (size,) = db.execute("SELECT tasks FROM sessions WHERE sid = ?", (sid,)).fetchone()
        became: set[int] = set()
        for length, kind, owner, data in db.execute(_BLOCKS, span(sid)):
            size += length
            became.update(owners(kind, owner, data))
        states: list[tuple[int, int]] = db.execute(_STATES, span(sid)).fetchall()
        containers = [db.execute(_LAST, span(sid, element)).fetchone() for element in became]
        return {str(state): tasks for state, tasks in tally_rows(size, states, containers).items()}
    except (IndexError, TypeError):
        raise damaged(path, "an attempt is in a state that there is not, or a task has become what it cannot") from None
    finally:
        if alone and db.in_transaction:
            db.execute("ROLLBACK")


def count_rows(db: sqlite3.Connection, sid: int) -> int:
    """How many attempts a session has: by that a reader sees that none has vanished."""
    (rows,) = db.execute("SELECT count(*) FROM attempts WHERE id BETWEEN ? AND ?", span(sid)).fetchone()
    return int(rows)
