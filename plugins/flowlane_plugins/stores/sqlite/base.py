"""What the halves of the store share: where things are, and the parts that do the work."""

from __future__ import annotations

import os

from flowlane.errors import StoreError
from flowlane.storage.port import RUN_ID
from flowlane_plugins.stores.sqlite.database import Database
from flowlane_plugins.stores.sqlite.files import ResultFiles

__all__ = ["Base"]


class Base:
    """A database, its folder, and what is known about both."""

    def __init__(self, path: str | os.PathLike[str], *, power: bool) -> None:
        self._path: str = os.path.abspath(os.fspath(path))
        self._folder: str = os.path.dirname(self._path)
        self._locks: str = os.path.join(self._folder, "locks")
        self._database = Database(self._path, power=power)
        self._files = ResultFiles(os.path.join(self._folder, "results"), power=power)
        self._hits: dict[bytes, int] = {}  # of the cache, not yet counted there
        self._places: dict[int, tuple[str, int]] = {}  # sid → (run, session number), which never change

    @property
    def path(self) -> str:
        """The database's absolute path."""
        return self._path

    def _lock_path(self, run_id: str) -> str:
        if not RUN_ID.fullmatch(run_id):
            raise StoreError(f"{run_id[:60]!r} is no run id: 4 to 32 lower-case hex digits")
        return os.path.join(self._locks, run_id)
