"""Keeps secrets out of what is told: texts that were revealed in this process, and what stands in their place.

Process-wide on purpose: an error that quotes a secret may be raised anywhere in the process that read it. Thread-safe.
"""

from __future__ import annotations

from typing import Final

__all__ = ["redacted", "remember"]

_MASK: Final = "***"
_SHORTEST: Final = 4  # characters; to mask every "a" would make errors unreadable and hide nothing

_revealed: Final[set[str]] = set()


def remember(text: str) -> None:
    """From now on `text` is masked. Shorter than 4 characters it is not."""
    if len(text) >= _SHORTEST:
        _revealed.add(text)


def redacted(text: str) -> str:
    """`text` with every revealed secret masked."""
    if _revealed:
        for secret in sorted(_revealed, key=len, reverse=True):  # one may be part of another
            if secret in text:
                text = text.replace(secret, _MASK)
    return text
