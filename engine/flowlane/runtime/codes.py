"""The fingerprints of a run's functions, each made once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowlane.storage.fingerprint import fingerprint

if TYPE_CHECKING:
    from flowlane.storage.fingerprint import Fingerprint

__all__ = ["Codes"]


class Codes:
    """Fingerprints of functions, each made once. For one run: between runs a notebook may define a helper anew."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, Fingerprint]] = {}

    def of(self, fn: Any) -> Fingerprint:
        """The fingerprint of `fn`. Any thread: at worst it is made twice."""
        known = self._known.get(id(fn))
        if known is None:
            known = self._known[id(fn)] = (fn, fingerprint(fn))  # the function is kept, so that its id stays its own
        return known[1]
