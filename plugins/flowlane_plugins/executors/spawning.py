"""Starts worker processes: a fresh interpreter each, that does not import the script which the user started.

multiprocessing's ``spawn`` runs the parent's ``__main__`` again in every child. For a plain script without a guard that
starts the whole workflow again in each worker; for ``flow run`` it imports the command line. We need neither: functions
and classes of ``__main__`` travel by value. So the child is told everything else (sys.path, argv, folder) but not that.

A :class:`Spawner` passes as a multiprocessing context and remembers the processes it made, so that its owner can end
those that hang. Imported in workers too, because a process object is pickled to its child: keep it light.
"""

from __future__ import annotations

import io
import multiprocessing
import multiprocessing.context as mp_context
import os
import signal
import sys
from multiprocessing import reduction, spawn
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

__all__ = ["Spawner"]

if sys.platform == "win32":  # its Popen is built otherwise; there __main__ is imported, and a script needs its guard
    _FreshProcess: Any = mp_context.SpawnProcess
else:
    from multiprocessing import popen_spawn_posix, resource_tracker, util

    _popen: Any = popen_spawn_posix.Popen  # its launching is written in terms of private names
    _multiprocessing: Any = util

    class _FreshPopen(_popen):  # type: ignore[misc]
        """As the standard library's, alike in 3.11 to 3.13, but for the lines marked and the signal mask."""

        def _launch(self, process: Any) -> None:
            tracker = resource_tracker.getfd()
            self._fds.append(tracker)
            preparation: dict[str, Any] = spawn.get_preparation_data(process.name)
            preparation.pop("init_main_from_name", None)  # <-
            preparation.pop("init_main_from_path", None)  # <-
            message = io.BytesIO()
            mp_context.set_spawning_popen(self)
            try:
                reduction.dump(preparation, message)
                reduction.dump(process, message)
            finally:
                mp_context.set_spawning_popen(None)
            parent_r = child_w = child_r = parent_w = None
            try:
                parent_r, child_w = os.pipe()
                child_r, parent_w = os.pipe()
                command = spawn.get_command_line(tracker_fd=tracker, pipe_handle=child_r)
                self._fds.extend([child_r, child_w])
                # Ctrl-C goes to the whole foreground group, and would end a worker that is still importing. A signal mask
                # outlives exec; the worker lifts it when it has settled in (worker.initialize).
                blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    self.pid = _multiprocessing.spawnv_passfds(spawn.get_executable(), command, self._fds)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
                self.sentinel = parent_r
                with open(parent_w, "wb", closefd=False) as pipe:
                    pipe.write(message.getbuffer())
            finally:
                ours = [fd for fd in (parent_r, parent_w) if fd is not None]
                self.finalizer = _multiprocessing.Finalize(self, _multiprocessing.close_fds, ours)
                for fd in (child_r, child_w):
                    if fd is not None:
                        os.close(fd)

    class _FreshProcess(mp_context.SpawnProcess):
        @staticmethod
        def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802 - multiprocessing's name for it
            return _FreshPopen(process_obj)


class Spawner:
    """A multiprocessing context, by delegation, whose processes can be seen.

    `processes` holds all that were made here, ended ones too. Raises ValueError for an unknown `method`.
    """

    def __init__(self, method: str = "spawn") -> None:
        self._context = multiprocessing.get_context(method)
        self.processes: list[BaseProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> BaseProcess:  # noqa: N802 - the context's own name for it
        """Make a process, not started yet. Any thread."""
        spawning = self._context.get_start_method() == "spawn"
        made = _FreshProcess(*args, **kwargs) if spawning else cast("Any", self._context).Process(*args, **kwargs)
        self.processes.append(made)
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
