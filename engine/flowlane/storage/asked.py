"""What a run was asked to do, as it is kept: where its workflow is found again, and its parameters, under one seal.

A resume runs the file that the origin names, so an origin can do as much harm as a pickle: neither is believed unless who
started the run wrote it. The origin is the last buffer of the parameters' payload, so that it can be read, and the file be
loaded, before any of them is decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from flowlane.errors import ResultDamaged
from flowlane.storage.blob import Codec, Payload, bound_to_run, seal, unseal

if TYPE_CHECKING:
    from flowlane.outofband import Bytes

__all__ = ["Asked", "seal_asked", "unseal_asked"]

_NOT_STORED: Final = b"null"  # in the place of parameters, which are a dict


class Asked(NamedTuple):
    """origin: see ``flowlane.origin``; params: None when they could not be stored."""

    origin: str
    params: Payload | None


def seal_asked(asked: Asked, run_id: str, key: bytes) -> bytes:
    """For `NewRun.params`."""
    codec, stream, buffers, files = asked.params or Payload(Codec.JSON, (_NOT_STORED,))
    origin = asked.origin.encode("utf-8", "surrogatepass")
    return b"".join(seal(Payload(codec, stream, (*buffers, origin), files), key, bound_to_run(run_id)))


def unseal_asked(data: Bytes, run_id: str, key: bytes) -> Asked:
    """The same from a store. Raises ResultDamaged unless it was sealed for that run with `key`; nothing is decoded."""
    payload = unseal(data, key, bound_to_run(run_id))
    if not payload.buffers:
        raise ResultDamaged("it is whole, but does not say where its workflow is", hint="another program wrote it")
    *buffers, origin = payload.buffers
    known = payload.codec is not Codec.JSON or b"".join(payload.stream) != _NOT_STORED
    return Asked(bytes(origin).decode("utf-8", "surrogatepass"), payload._replace(buffers=buffers) if known else None)
