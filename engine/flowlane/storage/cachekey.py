"""Under what key a result is found again: the task, its code, the version its author gave it, and the arguments.

A key is only as good as what it is made of: see ``fingerprint`` for the code and ``digest`` for arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowlane.storage.digest import hashed, joined

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["cache_key"]

#: What the key is made of and how. Changed together with it, so that keys of two ways never meet.
_SCHEME: Final = b"flowlane cache key 3"


def cache_key(task: str, fingerprint: bytes, version: str | int, arguments: Mapping[str, bytes]) -> bytes:
    """The key, 32 bytes, of the result that task `task` has for `arguments`: their digests by parameter, in any order.

    Bind arguments to the signature and fill in defaults first, so that ``f(1)``, ``f(x=1)`` and ``f(1, 2)`` with a default of 2
    are one. A `version` means the same as text and as number.
    """
    parts = [_SCHEME, task.encode("utf-8", "surrogatepass"), fingerprint, str(version).encode("utf-8", "surrogatepass")]
    for name, digest in sorted(arguments.items()):
        parts += (name.encode("utf-8", "surrogatepass"), digest)
    return hashed(joined(parts))
