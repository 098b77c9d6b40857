"""Large results: one file each, ``results/ab/cdef…``, named by the digest of what is in it, and never changed.
The same value in two rows is two files, because a result is sealed for its row.

A file is whole before it has its name, and has its name before the row that refers to it is committed. So a crash can leave
a file without a row, which `sweep` removes, but no row without its file. Content is read into memory, not mapped: a disk
that fails under a mapping kills the process.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from flowlane.storage.private import check_own, own_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowlane.storage.port import Blob

__all__ = ["ResultFiles"]

_DIGEST: Final = 32  # bytes
_FOLDER: Final = re.compile(r"[0-9a-f]{2}")
_FILE: Final = re.compile(r"[0-9a-f]{62}")
_UNNAMED: Final = re.compile(r"[0-9]+\.[0-9a-f]{16}")
_PIECES: Final = 512  # written by one call; the system takes 1024
_TEMPORARY: Final = "tmp"
_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_PLAIN: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # follow no link, wait for no pipe


class ResultFiles:
    """The files below `folder`; `power` says whether they must outlive a power cut. Any thread.

    Methods raise OSError, and StoreError where a folder is a link or not this user's.
    """

    def __init__(self, folder: str, *, power: bool) -> None:
        self._folder = folder
        self._power = power

    def open(self) -> None:
        """Make the folder."""
        own_folder(self._folder)
        own_folder(os.path.join(self._folder, _TEMPORARY))

    def path(self, digest: bytes) -> str:
        """Where the file of `digest` is."""
        name = digest.hex()
        return os.path.join(self._folder, name[:2], name[2:])

    def put(self, blob: Blob) -> bytes:
        """Write a file; its digest. One that is there already is replaced: it may have been damaged since."""
        views = [memoryview(piece).cast("B") for piece in blob]
        hashing = blake2b(digest_size=_DIGEST)
        for view in views:
            hashing.update(view)
        digest = hashing.digest()
        path = self.path(digest)
        own_folder(os.path.dirname(path))
        temporary = os.path.join(self._folder, _TEMPORARY, f"{os.getpid()}.{secrets.token_hex(8)}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CLOEXEC, 0o600)
        try:
            try:
                _write_all(fd, views)
                if self._power:
                    os.fsync(fd)
            finally:
                os.close(fd)
            os.chmod(temporary, 0o600)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        if self._power:
            _sync_folder(os.path.dirname(path))
            _sync_folder(self._folder)
        return digest

    def has(self, digest: bytes) -> bool:
        """Whether the file is there."""
        return os.path.exists(self.path(digest))

    def size(self, digest: bytes) -> int:
        """Its length in bytes."""
        return os.stat(self.path(digest)).st_size

    def read(self, digest: bytes) -> bytes:
        """Its content."""
        with open(self.path(digest), "rb", buffering=0, opener=_opened) as file:
            return file.read()

    def is_whole(self, digest: bytes) -> bool:
        """Whether its content has that digest."""
        hashing = blake2b(digest_size=_DIGEST)
        with open(self.path(digest), "rb", buffering=0, opener=_opened) as file:
            while some := file.read(1 << 20):
                hashing.update(some)
        return hashing.digest() == digest

    def remove(self, digest: bytes) -> int:
        """Remove the file; how many bytes that freed."""
        path = self.path(digest)
        try:
            check_own(os.path.dirname(path))
            found = os.lstat(path)
            if not stat.S_ISREG(found.st_mode):
                return 0
            os.unlink(path)
        except FileNotFoundError:
            return 0
        return found.st_size

    def __iter__(self) -> Iterator[tuple[bytes, os.stat_result]]:
        """All files, by digest. What is there and is none of ours is passed over."""
        for folder in _entries(self._folder):
            if _FOLDER.fullmatch(folder.name) and folder.is_dir(follow_symlinks=False):
                for entry in _entries(folder.path):
                    if _FILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):
                            yield bytes.fromhex(folder.name + entry.name), entry.stat(follow_symlinks=False)

    def sweep(self, older_than: float) -> int:
        """Remove files that were never given their name, older than this (seconds since the epoch); how many."""
        count = 0
        _entries(self._folder)  # that is ours as well
        for entry in _entries(os.path.join(self._folder, _TEMPORARY)):
            if not _UNNAMED.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            with contextlib.suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < older_than:
                    os.unlink(entry.path)
                    count += 1
        return count


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        check_own(folder)
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | _PLAIN)


def _write_all(fd: int, views: list[memoryview]) -> None:
    left = [view for view in views if view.nbytes]
    while left:
        done = os.writev(fd, left[:_PIECES]) if hasattr(os, "writev") else os.write(fd, left[0])
        while left and done >= left[0].nbytes:
            done -= left[0].nbytes
            del left[0]
        if done:
            left[0] = left[0][done:]


def _sync_folder(path: str) -> None:
    if os.name == "nt":  # has no such call
        return
    fd = os.open(path, os.O_RDONLY | _CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
