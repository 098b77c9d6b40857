"""Files that belong to their user alone, and where a store must not be. Folders: see ``flowlane.storage.private``.

What we make is 0600 whatever the umask; what was there before keeps its permissions: somebody chose them.

SQLite's log needs memory shared by all who have the database open, and locks that hold for all of them. File systems on a
network give neither, and corrupt databases quietly, so a store there is refused (https://www.sqlite.org/wal.html and
https://www.sqlite.org/lockingv3.html say so too).
"""

from __future__ import annotations

import os
from typing import Final

from flowlane.errors import StoreError

__all__ = ["check_file_system", "check_writable", "file_system_of", "private_file"]

_REMOTE: Final = frozenset(
    "9p afs beegfs ceph cifs coda davfs fuse.ceph fuse.curlftpfs fuse.davfs2 fuse.glusterfs fuse.rclone fuse.s3fs"
    " fuse.sshfs glusterfs gpfs lustre ncpfs nfs nfs4 smb3 smbfs".split()
)
_MOUNTS: Final = "/proc/mounts"


def private_file(path: str) -> None:
    """Make an empty file `path` unless it is there. Raises OSError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    except FileExistsError:
        return
    try:
        os.chmod(path, 0o600)
    finally:
        os.close(fd)


def file_system_of(path: str) -> str:
    """The type of the file system that `path` is on ("ext4", "nfs4"), "" where the system does not tell."""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    path = os.path.realpath(path)
    best, kind = "", ""
    for line in lines:
        _, point, found, *_ = line.split(" ")
        point = point.encode("utf-8", "surrogateescape").decode("unicode_escape") if "\\" in point else point
        below = path == point or path.startswith(point.rstrip("/") + "/")
        if below and len(point) >= len(best):  # the last mount of a point hides those before
            best, kind = point, found
    return kind


def check_file_system(folder: str) -> None:
    """Raise StoreError unless `folder`, which exists, is on a file system that a store can be on."""
    kind = file_system_of(folder)
    if kind in _REMOTE:
        raise StoreError(
            f"{folder} is on a network file system ({kind}), where a database is not safe",
            hint="put the state directory on a local disk, for example FLOW_STATE_DIR=/var/tmp/flow-$USER",
        )


def check_writable(folder: str, path: str) -> None:
    """Raise StoreError unless the database at `path`, and files beside it, can be written: SQLite's own words are vague."""
    if not os.access(folder, os.W_OK | os.X_OK) or not os.access(path, os.R_OK | os.W_OK):
        raise StoreError(
            f"{path} is read-only, or its folder is",
            hint="check their owner and permissions, and how the disk is mounted",
        )
