"""Keeping a store small: removing runs, forgetting cached results, sweeping what nobody refers to.

A row that others refer to (a session that adopted it, the cache) stays when its run is removed, and goes with the last who
needs it. A file goes after the rows that refer to it have gone, in a transaction of its own, because whoever adds a row in
between holds the same lock and looks again.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from flowlane.storage.upkeep import Size, Swept
from flowlane_plugins.stores.sqlite import locks
from flowlane_plugins.stores.sqlite.base import Base
from flowlane_plugins.stores.sqlite.faults import telling
from flowlane_plugins.stores.sqlite.schema import span, sweep_copies

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection

__all__ = ["YOUNG", "Upkeep"]

#: Seconds for which a file without a row is left alone: its transaction may be under way.
YOUNG: Final = 3600.0

_AT_ONCE: Final = 200  # files removed by one transaction
_NEEDED: Final = (
    "SELECT origin FROM adopted WHERE origin BETWEEN :lo AND :hi"
    " UNION SELECT row FROM cache WHERE row BETWEEN :lo AND :hi"
)


class Upkeep(Base):
    """The caretaker's part of `SqliteStore`."""

    def forget(self, keys: Collection[bytes]) -> int:
        with self._database.writing() as db:
            before = db.total_changes
            db.executemany("DELETE FROM cache WHERE key = ?", [(bytes(key),) for key in keys])
            count = db.total_changes - before
            dropped = self._purge(db)  # what only the cache still needed
        self._remove_files(dropped)
        return count

    def remove(self, run_ids: Collection[str]) -> int:
        return self._remove(run_ids)[0]

    def gc(self, *, keep: int | None = None, older_than: float | None = None) -> Swept:
        """See ``flowlane.storage.upkeep.Upkeep``."""
        now = time.time()
        runs, freed, files = self._remove(self._outdated(keep, older_than, now))
        with self._database.writing() as db:
            entries = db.execute("DELETE FROM cache WHERE expires BETWEEN 1 AND ?", (int(now * 1e9),)).rowcount
            dropped = self._purge(db)
        for more, bytes_of in (self._remove_files(dropped), self._remove_files(self._orphans(now - YOUNG))):
            files, freed = files + more, freed + bytes_of
        with telling(self._path):
            files += self._files.sweep(now - YOUNG)
            sweep_copies(self._path, now - YOUNG)
        with self._database.writing(), telling(self._path):  # in a transaction: it orders what is done to locks
            locks.sweep(self._locks, now - YOUNG)
        return Swept(runs, entries, files, freed + self._database.shrink())

    def size(self) -> Size:
        """See ``flowlane.storage.upkeep.Upkeep``."""
        with self._database.reading() as db:
            (runs,) = db.execute("SELECT count(*) FROM runs WHERE removed = 0").fetchone()
        with telling(self._path):
            sizes = [found.st_size for _, found in self._files]
        return Size(runs, self._size_on_disk(), sum(sizes), len(sizes))

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _remove(self, run_ids: Collection[str]) -> tuple[int, int, int]:
        """How many runs, and how many bytes and files with them."""
        count = 0
        with self._database.writing() as db:
            for run_id in dict.fromkeys(run_ids):
                found = db.execute("SELECT key FROM runs WHERE id = ? AND removed = 0", (run_id,)).fetchone()
                if found is None or locks.holder(self._lock_path(run_id)) is not None:
                    continue
                db.execute("UPDATE runs SET removed = 1, params = x'' WHERE key = ?", found)
                count += 1
            dropped = self._purge(db) if count else set[bytes]()
        files, freed = self._remove_files(dropped)
        return count, freed, files

    def _outdated(self, keep: int | None, older_than: float | None, now: float) -> list[str]:
        if keep is None and older_than is None:
            return []
        query = (
            "SELECT r.id, max(s.started, s.ended) FROM runs r JOIN sessions s ON s.sid = r.latest WHERE r.removed = 0"
            " ORDER BY r.latest DESC LIMIT -1 OFFSET ?"
        )
        with self._database.reading() as db:
            rows = db.execute(query, (keep or 0,)).fetchall()
        return [run_id for run_id, last in rows if older_than is None or last / 1e9 < now - older_than]

    def _purge(self, db: sqlite3.Connection) -> set[bytes]:
        """Delete of all removed runs what nobody needs; the digests of their files."""
        query = "SELECT sid FROM sessions WHERE run IN (SELECT key FROM runs WHERE removed = 1)"
        spans = [(sid, *span(sid)) for (sid,) in db.execute(query).fetchall()]
        others = f"DELETE FROM adopted WHERE row BETWEEN :lo AND :hi AND row NOT IN ({_NEEDED})"
        while sum(db.execute(others, {"lo": lo, "hi": hi}).rowcount for _, lo, hi in spans):
            pass  # what only those needed that are gone now goes with the next round
        dropped: set[bytes] = set()
        for sid, lo, hi in spans:
            bounds = {"lo": lo, "hi": hi}
            others = f"BETWEEN :lo AND :hi AND {{}} NOT IN ({_NEEDED})"
            found = db.execute(f"SELECT digest FROM files WHERE row {others.format('row')}", bounds)
            dropped.update(digest for (digest,) in found.fetchall())
            db.execute(f"DELETE FROM files WHERE row {others.format('row')}", bounds)
            db.execute(f"DELETE FROM attempts WHERE id {others.format('id')}", bounds)
            db.execute("DELETE FROM requests WHERE sid = ?", (sid,))
            db.execute("DELETE FROM blocks WHERE id BETWEEN :lo AND :hi", bounds)
            if db.execute("SELECT 1 FROM attempts WHERE id BETWEEN ? AND ? LIMIT 1", (lo, hi)).fetchone() is None:
                db.execute("DELETE FROM sessions WHERE sid = ?", (sid,))
            else:
                db.execute("UPDATE sessions SET graph = x'' WHERE sid = ? AND graph != x''", (sid,))
        db.execute("DELETE FROM runs WHERE removed = 1 AND NOT EXISTS (SELECT 1 FROM sessions WHERE run = key)")
        return dropped

    def _orphans(self, older_than: float) -> list[bytes]:
        """Files older than this (seconds since the epoch) that no row refers to; `_remove_files` looks again."""
        with self._database.reading() as db:
            known = {digest for (digest,) in db.execute("SELECT DISTINCT digest FROM files").fetchall()}
        with telling(self._path):
            return [digest for digest, found in self._files if digest not in known and found.st_mtime < older_than]

    def _remove_files(self, digests: Collection[bytes]) -> tuple[int, int]:
        """Remove those files that no row refers to; how many, and how many bytes that freed."""
        left = list(digests)
        count = freed = 0
        while left:
            some, left = left[:_AT_ONCE], left[_AT_ONCE:]
            with self._database.writing() as db:
                for digest in some:
                    if db.execute("SELECT 1 FROM files WHERE digest = ?", (digest,)).fetchone() is None:
                        size = self._files.remove(digest)
                        count, freed = count + bool(size), freed + size
        return count, freed

    def _size_on_disk(self) -> int:
        total = 0
        for path in (self._path, f"{self._path}-wal", f"{self._path}-shm"):
            with suppress(FileNotFoundError):
                total += os.stat(path).st_size
        return total
