"""Keeping a store small and whole: removing runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowlane_plugins.stores.sqlite.base import Base
from flowlane_plugins.stores.sqlite.locks import holder
from flowlane_plugins.stores.sqlite.schema import span

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection

__all__ = ["Upkeep"]

_NEEDED = "SELECT origin FROM adopted WHERE origin BETWEEN :lo AND :hi UNION SELECT row FROM cache WHERE row BETWEEN :lo AND :hi"


class Upkeep(Base):
    """The caretaker's half of `SqliteStore`."""

    def forget(self, keys: Collection[bytes]) -> int:
        with self._database.writing() as db:
            before = db.total_changes
            db.executemany("DELETE FROM cache WHERE key = ?", [(bytes(key),) for key in keys])
            count = db.total_changes - before
            dropped = self._purge(db)  # what only the cache still needed
        self._remove_files(dropped)
        return count

    def remove(self, run_ids: Collection[str]) -> int:
        count = 0
        with self._database.writing() as db:
            for run_id in dict.fromkeys(run_ids):
                found = db.execute("SELECT key FROM runs WHERE id = ? AND removed = 0", (run_id,)).fetchone()
                if found is None or holder(self._lock_path(run_id)) is not None:
                    continue
                db.execute("UPDATE runs SET removed = 1, params = x'' WHERE key = ?", found)
                count += 1
            dropped = self._purge(db)
        self._remove_files(dropped)
        return count

    def _purge(self, db: sqlite3.Connection) -> set[bytes]:
        """Delete of all removed runs what nobody needs; the digests of their files."""
        keys = [key for (key,) in db.execute("SELECT key FROM runs WHERE removed = 1").fetchall()]
        spans: list[tuple[int, int, int]] = []
        for key in keys:
            for (sid,) in db.execute("SELECT sid FROM sessions WHERE run = ?", (key,)).fetchall():
                lo, hi = span(sid)
                spans.append((sid, lo, hi))
                db.execute("DELETE FROM adopted WHERE row BETWEEN ? AND ?", (lo, hi))
        dropped: set[bytes] = set()
        for sid, lo, hi in spans:
            bounds = {"lo": lo, "hi": hi}
            gone = f"BETWEEN :lo AND :hi AND {{}} NOT IN ({_NEEDED})"
            dropped.update(
                digest for (digest,) in db.execute(f"SELECT digest FROM files WHERE row {gone.format('row')}", bounds)
            )
            db.execute(f"DELETE FROM files WHERE row {gone.format('row')}", bounds)
            db.execute(f"DELETE FROM attempts WHERE id {gone.format('id')}", bounds)
            db.execute("DELETE FROM requests WHERE sid = ?", (sid,))
            if db.execute("SELECT 1 FROM attempts WHERE id BETWEEN ? AND ? LIMIT 1", (lo, hi)).fetchone() is None:
                db.execute("DELETE FROM sessions WHERE sid = ?", (sid,))
            else:
                db.execute("UPDATE sessions SET graph = x'' WHERE sid = ?", (sid,))
        db.execute("DELETE FROM runs WHERE removed = 1 AND NOT EXISTS (SELECT 1 FROM sessions WHERE run = key)")
        return dropped

    def _remove_files(self, digests: Collection[bytes]) -> int:
        """Remove those files that no row refers to; how many bytes that freed. In a transaction, so that nobody adds one."""
        freed = 0
        if digests:
            with self._database.writing() as db:
                for digest in digests:
                    if db.execute("SELECT 1 FROM files WHERE digest = ?", (digest,)).fetchone() is None:
                        freed += self._files.remove(digest)
        return freed
