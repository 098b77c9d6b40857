"""A pickle taken in pieces, with its large buffers out of band (PEP 574): nothing of a large value is copied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from pickle import PickleBuffer

__all__ = ["APART_MIN", "PROTOCOL", "Bytes", "Sink"]

Bytes: TypeAlias = "bytes | bytearray | memoryview"

PROTOCOL: Final = 5
#: Bytes from which a buffer stays out of band. Below, a copy is cheaper than a place of its own and its padding.
APART_MIN: Final = 1 << 16


class Sink:
    """What a pickler writes to and offers buffers to. Long bytes and texts come as the user's own objects, not as copies,
    and apart from the pickler's own frames.
    """

    __slots__ = ("buffers", "pieces", "write")

    def __init__(self) -> None:
        self.pieces: list[Bytes] = []
        self.buffers: list[memoryview] = []
        self.write = self.pieces.append

    def stays(self, buffer: PickleBuffer) -> bool:
        """Whether `buffer` stays in the pickle."""
        raw = buffer.raw()
        if raw.nbytes < APART_MIN:
            return True
        self.buffers.append(raw)
        return False
