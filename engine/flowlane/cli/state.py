"""The state directory, ``.flow`` unless set otherwise, and the store in it.

    .flow/flow.db, results/, locks/   the store
    .flow/runs/<run id>/              what each run told: see `record`
    .flow/.gitignore                  so that nobody commits any of it

It belongs to its user alone (0700: results, names and error messages are in it).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flowlane.cli.terminal import inert
from flowlane.errors import UsageError
from flowlane.loader import shown_path
from flowlane.storage.private import private_folder

if TYPE_CHECKING:
    from collections.abc import Generator

    from flowlane.cli.terminal import Messages
    from flowlane.settings import Settings
    from flowlane.storage.port import Store

__all__ = ["check_recorded", "existing_store", "made_state_dir", "open_store", "prepare_state_dir", "store_path"]


def store_path(settings: Settings) -> str:
    """Where the store is, or would be."""
    return os.path.join(settings.state_dir.value, "flow.db")


def prepare_state_dir(path: str) -> None:
    """Make `path` with its ``.gitignore`` and ``runs`` unless they are there. Raises OSError."""
    private_folder(path)
    ignore = os.path.join(path, ".gitignore")
    if not os.path.exists(ignore):
        with open(ignore, "w", encoding="ascii") as file:
            file.write("*\n")
    runs = os.path.join(path, "runs")
    private_folder(runs)
    if not os.access(runs, os.W_OK | os.X_OK):
        raise PermissionError(13, "permission denied", runs)


def made_state_dir(settings: Settings, messages: Messages) -> bool:
    """Make the state directory; where that cannot be done, say so. Whether it is there."""
    folder = settings.state_dir
    try:
        prepare_state_dir(folder.value)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        messages.line(
            f"warning: nothing is recorded, and the run cannot be resumed: {inert(folder.value)}: {reason} ({folder.origin})"
        )
        return False
    return True


@contextmanager
def open_store(settings: Settings) -> Generator[Store]:
    """The store, open for as long as the block lasts, and made if need be. Raises StoreError when it cannot be used."""
    from flowlane.runtime.registry import make_store

    store: Store = make_store("sqlite", path=store_path(settings))
    store.open()
    try:
        yield store
    finally:
        store.close()


def check_recorded(settings: Settings) -> None:
    """Raise UsageError unless there is a store."""
    path = store_path(settings)
    if not os.path.exists(path):
        origin = settings.state_dir.origin
        raise UsageError(
            f"nothing is recorded here: there is no {shown_path(path)}",
            where=None if origin == "default" else origin,
            hint="`flow run FILE` records its runs in the folder that it is started in",
        )


@contextmanager
def existing_store(settings: Settings) -> Generator[Store]:
    """The same where there is one already. Raises UsageError otherwise, and makes nothing."""
    check_recorded(settings)
    with open_store(settings) as store:
        yield store
