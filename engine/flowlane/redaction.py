"""Keeps secrets out of what is told: texts that were revealed in this process, and what stands in their place.

Process-wide on purpose: an error that quotes a secret may be raised anywhere in the process that read it. Thread-safe.
"""

from __future__ import annotations

from typing import Final

__all__ = ["redacted", "remember"]

_MASK: Final = "***"
_SHORTEST: Final = 4  # characters; to mask every "a" would make errors unreadable and hide nothing

_LINE: Final = 8  # characters of a line of a longer secret (a key file)

_revealed: Final[set[str]] = set()


def remember(text: str) -> None:
    """From now on `text` is masked, also as `repr`, JSON and a URL write it, and each of its longer lines.

    What is shorter than 4 characters is not.
    """
    import json  # not at the top: every worker imports this module, and few ever reveal anything
    from urllib.parse import quote

    for part in {text, *[line for line in text.splitlines() if len(line) >= _LINE]}:
        if len(part) >= _SHORTEST:
            _revealed.update((part, repr(part)[1:-1], json.dumps(part)[1:-1], quote(part), quote(part, safe="")))


def redacted(text: str) -> str:
    """`text` with every revealed secret masked."""
    if _revealed:
        for secret in sorted(_revealed, key=len, reverse=True):  # one may be part of another
            if secret in text:
                text = text.replace(secret, _MASK)
    return text
