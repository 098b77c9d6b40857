"""The secret that results are sealed with: a file in the user's own state directory, not beside the results.

A result is unpickled only when its seal was made with this key. So a state directory that came from elsewhere (a clone, an
archive, another user's) has results that cannot be read, rather than results that run somebody's code.

Where there is no home to write to (a container's bare user) the key is kept beside the database instead: results can still
be read by whoever has the folder, and the protection above is gone. A key that others can read or write is refused.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from typing import TYPE_CHECKING, Final

from flowlane.errors import StoreError
from flowlane.storage.private import private_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KEY_BYTES", "key_path", "load_key"]

KEY_BYTES: Final = 32
_NAME: Final = "store.key"
_NO_HOME: Final = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EROFS)


def key_path(environ: Mapping[str, str] | None = None) -> str:
    """Where the user's key is: ``$XDG_STATE_HOME/flowlane/store.key``, else below ``~/.local/state``; "" without a home."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # relative ones are to be ignored, says the XDG specification
        home = environ.get("HOME") or os.path.expanduser("~")
        if not os.path.isabs(home):
            return ""
        base = os.path.join(home, ".local", "state")
    return os.path.join(base, "flowlane", _NAME)


def load_key(folder: str) -> bytes:
    """The user's key, made on first use; the one in `folder` where there is no home. Raises StoreError, OSError."""
    path = key_path()
    if path:
        try:
            return _load(path)
        except OSError as error:
            if error.errno not in _NO_HOME or os.path.lexists(path):  # one that is there and cannot be read is told
                raise
    return _load(os.path.join(folder, _NAME))


def _load(path: str) -> bytes:
    try:
        return _read(path)
    except FileNotFoundError:
        _make(path)
        return _read(path)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0))
    try:
        found = os.fstat(fd)
        key = os.read(fd, 1024)
    finally:
        os.close(fd)
    if hasattr(os, "geteuid"):
        if found.st_uid != os.geteuid():
            raise StoreError(
                f"the key {path} belongs to another user (uid {found.st_uid})", hint="remove it, or HOME is wrong"
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise StoreError(
                f"the key {path} can be read or written by others (mode {stat.S_IMODE(found.st_mode):04o})",
                hint="if nobody else can have used it: chmod 600; else remove it, and stored results with it",
            )
    if len(key) < KEY_BYTES:
        raise StoreError(
            f"the key {path} has {len(key)} bytes instead of {KEY_BYTES}", hint="remove it: a new one is made"
        )
    return key


def _make(path: str) -> None:
    """Make a key file; another process may do so at the same time, and then one of the two wins, whole."""
    private_folder(os.path.dirname(path))
    temporary = f"{path}.{os.getpid()}.{secrets.token_hex(4)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    fd = os.open(temporary, flags, 0o600)
    try:
        try:
            os.chmod(temporary, 0o600)
            os.write(fd, secrets.token_bytes(KEY_BYTES))
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
    finally:
        os.unlink(temporary)
