"""Why a result was not found in the cache: what about its key is different from that of the entry most like it.

Beside each key the cache keeps what it was made of: the version that the task's author declared, a digest of each part of its
code, and one of each argument. So a miss can be explained without having the values. Pure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flowlane.storage.port import CacheEntry

__all__ = ["Difference", "Entries", "Nearest", "Parts", "differences", "parts_of"]

_DIGEST: Final = re.compile(r"[0-9a-f]{12}")
_SHOWN: Final = 5  # names that a sentence tells
_COMPARED: Final = 50  # entries that a key is compared with


class Parts(NamedTuple):
    """What a key was made of: `code` by name of the part, `inputs` by parameter, both as short digests (or a version)."""

    version: str
    code: Mapping[str, str]
    inputs: Mapping[str, str]


def parts_of(text: str) -> Parts:
    """From what is stored. What is damaged has no parts."""
    try:
        found: Any = json.loads(text)
        return Parts(str(found["version"]), dict(found["code"]), dict(found["inputs"]))
    except (ValueError, KeyError, TypeError):
        return Parts("", {}, {})


@dataclass(frozen=True, slots=True)
class Difference:
    """What is not the same about two keys.

    version  the declared one, before and now, or None
    code     part → its digest or version before and now, "" where it is not there
    inputs   parameters with another argument
    """

    version: tuple[str, str] | None
    code: Mapping[str, tuple[str, str]]
    inputs: tuple[str, ...]

    def __len__(self) -> int:
        return (self.version is not None) + len(self.code) + len(self.inputs)

    def sentences(self) -> list[str]:
        """For people, to stand after "because"."""
        found: list[str] = []
        if self.version is not None:
            found.append(f"its declared version was {self.version[0]!r} and is {self.version[1]!r}")
        code: list[str] = []
        for name, (before, now) in self.code.items():
            if _is_version(before) and _is_version(now):
                found.append(f"{name} was {before} and is {now}")
            else:
                code.append(f"'{name}'{' (new)' if not before else ' (gone)' if not now else ''}")
        if code:
            found.append(f"the code of {_listed(code)} changed")
        if self.inputs:
            names = _listed([f"'{name}'" for name in self.inputs])
            found.append(f"input {names} is another" if len(self.inputs) == 1 else f"inputs {names} are others")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "version": None if self.version is None else {"before": self.version[0], "now": self.version[1]},
            "code": {name: {"before": before or None, "now": now or None} for name, (before, now) in self.code.items()},
            "inputs": list(self.inputs),
        }


def _is_version(text: str) -> bool:
    return bool(text) and _DIGEST.fullmatch(text) is None


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else shown


def differences(before: Parts, now: Parts) -> Difference:
    """What is different in `now`."""
    return Difference(
        version=(before.version, now.version) if before.version != now.version else None,
        code={
            name: (before.code.get(name, ""), now.code.get(name, ""))
            for name in sorted({*before.code, *now.code})
            if before.code.get(name) != now.code.get(name)
        },
        inputs=tuple(
            [name for name in {**before.inputs, **now.inputs} if before.inputs.get(name) != now.inputs.get(name)]
        ),
    )


class Nearest(NamedTuple):
    """The entry that is most like a key, and what is different all the same."""

    entry: CacheEntry
    difference: Difference


class Entries:
    """The cache's entries of one task, to be compared with."""

    def __init__(self, entries: Iterable[CacheEntry]) -> None:
        """`entries`: the latest first."""
        self._entries = list(entries)
        self._parts: dict[bytes, Parts] = {}
        self._same: dict[tuple[tuple[str, str], ...], list[CacheEntry]] = {}  # by inputs
        self._by_key = {entry.key: entry for entry in self._entries}

    def __bool__(self) -> bool:
        return bool(self._entries)

    def get(self, key: bytes) -> CacheEntry | None:
        """The entry of `key`, also one that has expired."""
        return self._by_key.get(key)

    def nearest(self, now: Parts) -> Nearest | None:
        """The entry with the fewest differences to `now`, the latest of several.

        Those with the same inputs come first: of a task that is called many times the other calls are no news. Where there are
        none, the latest of the rest are compared.
        """
        if not self._same:
            for entry in self._entries:
                self._same.setdefault(_sorted(self._parts_of(entry).inputs), []).append(entry)
        best: Nearest | None = None
        for entry in self._same.get(_sorted(now.inputs), self._entries)[:_COMPARED]:
            found = differences(self._parts_of(entry), now)
            if best is None or len(found) < len(best.difference):
                best = Nearest(entry, found)
        return best

    def _parts_of(self, entry: CacheEntry) -> Parts:
        known = self._parts.get(entry.key)
        if known is None:
            known = self._parts[entry.key] = parts_of(entry.parts)
        return known


def _sorted(inputs: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(inputs.items()))
