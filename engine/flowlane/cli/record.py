"""What runs tell, as files: ``.flow/runs/<run id>/events.jsonl``, and beside it ``output/<task>.<attempt>.txt``.

A directory that cannot be written costs the log, never the run. See `state` for the directory itself.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, Final

from flowlane.errors import StoreError
from flowlane.runtime.events import outputs
from flowlane.runtime.registry import make_sink
from flowlane.storage.port import RUN_ID
from flowlane.storage.private import check_own

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowlane.runtime.ports import Chunk, RunInfo, RunOutcome, Sink

__all__ = ["EventLog", "file_name", "remove_events"]

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.#\[\]=,@+-]|^\.")
_NAME_MAX: Final = 120  # characters; file systems have 255 bytes


def file_name(task: str) -> str:
    """A task's name as a part of a file name: different for different names, and the same where it is a plain one."""
    safe = _UNSAFE.sub(_escaped, task)
    if len(safe) > _NAME_MAX:
        digest = hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        safe = f"{safe[: _NAME_MAX - 18]}%%{digest}"  # "%%" is in no other
    return safe


def _escaped(match: re.Match[str]) -> str:
    return "".join([f"%{byte:02X}" for byte in match.group().encode("utf-8", "surrogatepass")])


def remove_events(state_dir: str, run_ids: Iterable[str]) -> None:
    """Remove what runs told. What cannot be removed stays, and so does all where the folder is a link, or somebody else's."""
    import shutil

    runs = os.path.join(state_dir, "runs")
    try:
        check_own(runs)
    except (StoreError, OSError):
        return
    for run_id in run_ids:
        if RUN_ID.fullmatch(run_id):
            shutil.rmtree(os.path.join(runs, run_id), ignore_errors=True)


class EventLog:
    """A Sink that writes each run's events, and what its tasks printed, to a folder of its own. On the journal's thread.

    It writes nothing unless `enabled`, which is set once the state directory is known to be there: nothing must be left
    behind by a command line that is refused.
    """

    def __init__(self, state_dir: str) -> None:
        self.enabled = False
        self._state_dir = state_dir
        self._sinks: dict[str, Sink] = {}
        self._faults: list[str] = []
        self._unwritten = False  # a fault with an output was told

    def path(self, run_id: str) -> str:
        """Where the events of run `run_id` are."""
        return os.path.join(self._state_dir, "runs", run_id, "events.jsonl")

    def output_path(self, run_id: str, task: str, attempt: int) -> str:
        """Where the output of an attempt is, if it printed anything."""
        return os.path.join(self._state_dir, "runs", run_id, "output", f"{file_name(task)}.{attempt}.txt")

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
            for index, report in outputs(chunk):
                element, attempt, _, _ = chunk.transitions[index]
                self._write_output(chunk.run, chunk.run.names[element], attempt, report.output or "")

    def _write_output(self, run: RunInfo, task: str, attempt: int, text: str) -> None:
        path = self.output_path(run.id, task, attempt)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        try:
            try:
                fd = os.open(path, flags, 0o600)
            except FileNotFoundError:  # the first of the run
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                fd = os.open(path, flags, 0o600)
            with open(fd, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                file.write(text)
        except OSError as error:
            if not self._unwritten:
                self._unwritten = True
                why = (error.strerror or str(error)).lower()
                self._faults.append(
                    f"what '{task}' printed could not be written: {why}; others are tried, and not told of"
                )

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
