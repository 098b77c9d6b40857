"""What a store on disk can have beyond the port: checks, repairs and a broom, as ``flow store`` calls them."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

__all__ = ["Repaired", "Size", "Swept", "Upkeep"]


class Size(NamedTuple):
    """What a store takes: `database` and `results` in bytes, `files` that the results are."""

    runs: int
    database: int
    results: int
    files: int


class Swept(NamedTuple):
    """What was removed: runs, entries of the cache, files nobody referred to (temporary ones among them), and their bytes."""

    runs: int
    entries: int
    files: int
    bytes: int


class Repaired(NamedTuple):
    """What a repair did.

    backup  where the damaged database is now, or None when nothing was wrong with it
    saved   rows that could be read and are what was written
    lost    rows that were read and are not; how many could not be read at all nobody knows
    swept   temporary files that were removed
    """

    backup: str | None
    saved: int
    lost: int
    swept: int


@runtime_checkable
class Upkeep(Protocol):
    """All raise StoreError, and block until they are done."""

    @property
    def path(self) -> str:
        """The database's absolute path."""
        ...

    def size(self) -> Size: ...

    def check(self) -> list[str]:
        """What is wrong, a sentence each; nothing is changed. Reads everything."""
        ...

    def repair(self) -> Repaired:
        """Save what can be read into a new database, and keep the old one. Refused while a run is under way; the store need
        not be open.
        """
        ...

    def gc(self, *, keep: int | None = None, older_than: float | None = None) -> Swept:
        """Remove what nobody needs: expired entries of the cache, results without a row, what crashes left behind.

        Runs are removed only when told: those beyond the latest `keep`, and older than this (seconds since the latest session
        began or ended); with both, those that are both. Runs that somebody owns stay.
        """
        ...
