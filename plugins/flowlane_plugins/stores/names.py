"""The run that somebody means: by its name, an id or the beginning of one, or "last"."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final, NamedTuple

from flowlane.errors import UnknownRun
from flowlane.storage.port import RUN_ID

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Named", "choose", "unknown"]

_PREFIX_MIN: Final = 4  # digits; fewer are more likely a slip than an id
_SHOWN: Final = 5  # runs told when several fit
_TEXT_MAX: Final = 60  # characters of the user's text that are repeated


class Named(NamedTuple):
    """A run, as it is looked up."""

    id: str
    name: str


def choose(text: str, runs: Sequence[Named]) -> str:
    """The id of the run that `text` means; `runs` are all there are, the latest first. Raises UnknownRun."""
    if text == "last" and runs:
        return runs[0].id
    for run in runs:
        if text in (run.name, run.id):
            return run.id
    if len(text) >= _PREFIX_MIN and RUN_ID.fullmatch(text.lower()):
        fitting = [run for run in runs if run.id.startswith(text.lower())]
        if len(fitting) == 1:
            return fitting[0].id
        if fitting:
            shown = ", ".join(f"{run.id} ({run.name})" for run in fitting[:_SHOWN])
            more = f" and {len(fitting) - _SHOWN} more" if len(fitting) > _SHOWN else ""
            raise UnknownRun(
                f"'{text}' is the beginning of {len(fitting)} ids: {shown}{more}",
                hint="give more of the id, or the name",
            )
    raise unknown(text, [run.name for run in runs])


def unknown(text: str, names: Sequence[str] = (), *, session: int | None = None) -> UnknownRun:
    """The error for a run that is not there, with the nearest of `names`; or for a session that a run has not."""
    shown = text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}…"
    if session is not None:
        return UnknownRun(f"run {shown} has no session {session}")
    if text == "last":
        return UnknownRun("there is no last run: the store has none yet")
    close = difflib.get_close_matches(text[:_TEXT_MAX], dict.fromkeys(names), 3)
    hint = f"did you mean {' or '.join(repr(name) for name in close)}?" if close else None
    return UnknownRun(f"there is no run {shown!r} in the store", hint=hint)
