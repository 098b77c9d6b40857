"""The state directory, ``.flow`` unless set otherwise, and the store in it.

    .flow/flow.db, results/, locks/   the store
    .flow/runs/<run id>/              what each run told: see `record`
    .flow/.gitignore                  so that nobody commits any of it

It belongs to its user alone (0700: results, names and error messages are in it).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from flowlane.errors import StoreError, UsageError

if TYPE_CHECKING:
    from flowlane.settings import Settings
    from flowlane.storage.port import Store

__all__ = ["open_store", "prepare_state_dir", "store_path"]

_STORE: Final = "flow.db"


def prepare_state_dir(path: str) -> None:
    """Make `path` with its ``.gitignore`` and ``runs`` unless they are there. Raises OSError."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    ignore = os.path.join(path, ".gitignore")
    if not os.path.exists(ignore):
        with open(ignore, "w", encoding="ascii") as file:
            file.write("*\n")
    runs = os.path.join(path, "runs")
    os.makedirs(runs, mode=0o700, exist_ok=True)
    if not os.access(runs, os.W_OK | os.X_OK):
        raise PermissionError(13, "permission denied", runs)


def store_path(settings: Settings) -> str:
    """Where the store's database is, or would be."""
    return os.path.join(settings.state_dir.value, _STORE)


def open_store(settings: Settings, *, make: bool = True) -> Store:
    """The store of the settings' state directory, opened; the caller closes it.

    Both are made when they are not there, unless `make` is false: then UsageError is raised, and nothing is left behind.
    Raises StoreError.
    """
    from flowlane.runtime.registry import make_store

    path = store_path(settings)
    if not make and not os.path.exists(path):
        raise UsageError(
            f"there is no store at {path} ({settings.state_dir.origin})",
            hint="runs are kept there from the first `flow run` on; FLOW_STATE_DIR names another state directory",
        )
    try:
        prepare_state_dir(settings.state_dir.value)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StoreError(
            f"the state directory {settings.state_dir.value} cannot be used: {reason}", where=settings.state_dir.origin
        ) from error
    store = make_store("sqlite", path=path)
    store.open()
    return store
