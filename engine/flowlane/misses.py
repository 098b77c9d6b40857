"""Why a result was not found in the cache: what about its key is different from that of the entry most like it.

Beside each key the cache keeps what it was made of: the version that the task's author declared, a digest of each part of its code,
and one of each argument. So a miss can be explained without having the values. Pure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flowlane.storage.port import CacheEntry

__all__ = ["Difference", "Nearest", "Parts", "differences", "nearest", "parts_of"]

_DIGEST: Final = re.compile(r"[0-9a-f]{12}")
_SHOWN: Final = 5  # names that a sentence tells


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
    """The entry that is most like a key, and what is different all the same; nothing, where it is the key's own."""

    entry: CacheEntry
    difference: Difference


def nearest(now: Parts, entries: Iterable[CacheEntry]) -> Nearest | None:
    """Of `entries` (of one task, the latest first) the one with the fewest differences to `now`, the latest of several.

    What has other inputs and the same code comes after what has the same inputs and other code: of a task that is called many
    times, the other calls are no news.
    """
    best: tuple[tuple[int, int], Nearest] | None = None
    for entry in entries:
        found = differences(parts_of(entry.parts), now)
        rank = (len(found.inputs), len(found))
        if best is None or rank < best[0]:
            best = (rank, Nearest(entry, found))
    return None if best is None else best[1]
