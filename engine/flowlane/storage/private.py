"""Folders that belong to their user alone.

What we make is 0700 whatever the umask; what was there before keeps its permissions: somebody chose them. A folder that files are
removed from has to be the one that it looks like: not a link to another place, and nobody else's.
"""

from __future__ import annotations

import os
import stat

from flowlane.errors import StoreError

__all__ = ["check_own", "own_folder", "private_folder"]


def private_folder(path: str) -> None:
    """Make folder `path`, and those above it, unless it is there. Raises OSError."""
    try:
        os.makedirs(path, mode=0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    else:
        os.chmod(path, 0o700)


def own_folder(path: str) -> None:
    """The same, and `check_own`."""
    if not os.path.lexists(path):
        private_folder(path)
    check_own(path)


def check_own(path: str) -> None:
    """Raise StoreError unless `path` is a folder, no link to one, and this user's. Raises OSError where it is not there."""
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        raise StoreError(
            f"{path} is a symbolic link: what is kept and removed there would be elsewhere",
            hint="put the folder itself there; FLOW_STATE_DIR moves the whole state directory",
        )
    if not stat.S_ISDIR(found.st_mode):
        raise StoreError(f"{path} is not a folder", hint="remove it: the folder is made anew")
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise StoreError(
            f"{path} belongs to another user (uid {found.st_uid})",
            hint="let its owner run this, or choose another state directory: FLOW_STATE_DIR=...",
        )
