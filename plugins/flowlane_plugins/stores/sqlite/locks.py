"""Who owns a run: a file for each, ``locks/<run id>``, under a lock that the kernel lets go when its process dies.

The file says who it is (``pid host``), and the lock (`flock`) says that it is true. A lock is never taken on a file that
others can see: it is taken on a new one, which then replaces whatever stands there. So a look at a file (a shared lock, for
an instant) disturbs nobody, and a taken-over owner keeps a lock on a file that no longer has a name.

Files are replaced and removed only inside a writing transaction of the database, whose lock is thus the one that orders
them between processes. What a killed process leaves behind is a file without a lock: nobody's.

A forked child shares its parent's locks, and would keep them when the parent dies; so it closes them first thing.

Where there is no `flock` (Windows) a file counts as locked while a process of that pid lives. A pid that was given to
another process since then looks like an owner, and the run has to be taken over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from typing import Final

from flowlane.storage.port import RUN_ID, Owner
from flowlane.storage.private import check_own

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["NAME", "RunLock", "holder", "sweep"]

#: What the files are called: a run's id, behind it a random part while it is new. No other file is one of ours.
NAME: Final = re.compile(rf"{RUN_ID.pattern}(?:\.[0-9a-f]{{8}})?")

_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)
_LOOK: Final = os.O_RDONLY | _CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_NO_FILE: Final = (errno.ENOENT, errno.ELOOP, errno.EMLINK, errno.ENXIO)  # not there, a link, a socket
_WORDS_MAX: Final = 1024  # bytes of a lock file that are read

_held: set[int] = set()  # descriptors that a forked child must close
_watching = False


class RunLock:
    """A lock that this process holds, from `take` to `release`. Call both inside a writing transaction."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd
        found = os.fstat(fd)
        self._file = (found.st_dev, found.st_ino)

    @classmethod
    def take(cls, path: str, owner: Owner) -> RunLock:
        """Put a locked file of `owner` at `path`, in the place of whatever is there. Raises OSError."""
        _watch_forks()
        temporary = f"{path}.{secrets.token_hex(4)}"
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _CLOEXEC, 0o600)
        _held.add(fd)
        try:
            if fcntl is not None:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.chmod(temporary, 0o600)
            os.write(fd, f"{owner.pid} {owner.host}\n".encode("utf-8", "backslashreplace"))
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            _close(fd)
            raise
        return cls(path, fd)

    def release(self, *, unlink: bool = True) -> None:
        """Let go, removing the file while it is still ours. Idempotent; never raises."""
        if self._fd < 0:
            return
        if unlink:
            with contextlib.suppress(OSError):
                found = os.stat(self._path)
                if (found.st_dev, found.st_ino) == self._file:
                    os.unlink(self._path)
        _close(self._fd)
        self._fd = -1


def holder(path: str) -> Owner | None:
    """The living process that has the lock at `path`, or None. Raises OSError when that cannot be told.

    What is no plain file is no lock, and is not waited for.
    """
    try:
        fd = os.open(path, _LOOK)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        words = os.read(fd, _WORDS_MAX).decode("utf-8", "replace").split(None, 1)
        owner = Owner(int(words[0]), words[1].strip()) if len(words) == 2 and words[0].isdigit() else Owner(0, "?")
        if fcntl is None:
            return owner if _lives(owner.pid) else None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return owner
        return None
    finally:
        os.close(fd)


def sweep(folder: str, older_than: float) -> int:
    """Remove locks in `folder` that nobody has and that are older than this (seconds since the epoch); how many.

    What is no lock of ours stays. Raises StoreError when the folder is a link, or not this user's.
    """
    check_own(folder)
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if not NAME.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                    continue
                if entry.stat(follow_symlinks=False).st_mtime < older_than and holder(entry.path) is None:
                    os.unlink(entry.path)
                    count += 1
    return count


def _close(fd: int) -> None:
    _held.discard(fd)
    with contextlib.suppress(OSError):
        os.close(fd)


def _watch_forks() -> None:
    global _watching
    if not _watching and hasattr(os, "register_at_fork"):
        _watching = True
        os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    for fd in list(_held):
        _close(fd)


def _lives(pid: int) -> bool:
    import psutil  # type: ignore[import-untyped]  # ships no types

    return pid > 0 and psutil.pid_exists(pid)
