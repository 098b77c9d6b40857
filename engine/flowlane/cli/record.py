"""Where runs are recorded: ``.flow/runs/<run id>/events.jsonl``.

The state directory belongs to its user alone (0700: events hold names and error messages) and holds its own
``.gitignore``, so that nobody commits it. A directory that cannot be written costs the record, never the run.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flowlane.runtime.registry import make_sink

if TYPE_CHECKING:
    from flowlane.runtime.ports import Chunk, RunInfo, RunOutcome, Sink

__all__ = ["EventLog", "prepare_state_dir"]


def prepare_state_dir(path: str) -> None:
    """Make `path` with its ``.gitignore`` and ``runs`` unless they are there. Raises OSError."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    ignore = os.path.join(path, ".gitignore")
    if not os.path.exists(ignore):
        with open(ignore, "w", encoding="ascii") as file:
            file.write("*\n")
    runs = os.path.join(path, "runs")
    os.makedirs(runs, mode=0o700, exist_ok=True)
    if not os.access(runs, os.W_OK | os.X_OK):
        raise PermissionError(13, "permission denied", runs)


class EventLog:
    """A Sink that writes each run's events to a folder of its own. Called on the journal's thread.

    It writes nothing unless `enabled`, which is set once the state directory is known to be there: nothing must be left
    behind by a command line that is refused.
    """

    def __init__(self, state_dir: str) -> None:
        self.enabled = False
        self._state_dir = state_dir
        self._sinks: dict[str, Sink] = {}
        self._faults: list[str] = []

    def path(self, run_id: str) -> str:
        """Where the events of run `run_id` are."""
        return os.path.join(self._state_dir, "runs", run_id, "events.jsonl")

    def open(self, run: RunInfo) -> None:
        if not self.enabled:
            return
        path = self.path(run.id)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        sink = make_sink("jsonl", path)
        self._sinks[run.id] = sink
        sink.open(run)

    def write(self, chunk: Chunk) -> None:
        sink = self._sinks.get(chunk.run.id)
        if sink is not None:
            sink.write(chunk)

    def close(self, run: RunInfo, outcome: RunOutcome) -> None:
        sink = self._sinks.pop(run.id, None)
        if sink is not None:
            sink.close(run, outcome)
            self._collect(sink)

    def take_faults(self) -> list[str]:
        """Trouble that the files' sinks coped with (a full disk), since the last call."""
        for sink in self._sinks.values():
            self._collect(sink)
        faults, self._faults = self._faults, []
        return faults

    def _collect(self, sink: Sink) -> None:
        take = getattr(sink, "take_faults", None)
        if take is not None:
            self._faults += take()
