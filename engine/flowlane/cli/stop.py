"""Ctrl-C and its relatives: the first signal drains the run, the second cancels it, the third ends the process.

Plain ``signal`` handlers, not the event loop's: a coroutine that blocks the loop would keep a loop's handler from ever
running, and the third signal must work whatever hangs. SIGINT, SIGTERM and SIGHUP are treated alike; one that was
ignored when we were started (``nohup``, a shell's background job) stays ignored.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio
    from types import FrameType, TracebackType

    from flowlane.api import RunHandle
    from flowlane.cli.terminal import Messages

__all__ = ["StopOnSignals"]

_NAMES: Final = ("SIGINT", "SIGTERM", "SIGHUP")
_AT_ONCE: Final = 1.0  # seconds that tasks have to clean up after the second signal
_PATIENCE: Final = 1.0  # seconds to wait for a message that somebody's terminal is slow to take


class StopOnSignals:
    """Context manager that owns the stop signals while a run is carried out. A no-op outside the main thread.

    `signum` is the first signal that came, or None.
    """

    def __init__(self, messages: Messages) -> None:
        self.signum: int | None = None
        self._messages = messages
        self._count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: RunHandle[Any] | None = None
        self._before: dict[int, Any] = {}
        self._told: list[_thread.LockType] = []  # one a message, locked until it is printed

    def __enter__(self) -> StopOnSignals:  # noqa: PYI034 - final in practice, and Self would need an import at run time
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                signum = getattr(signal, name, None)
                if signum is not None and signal.getsignal(signum) is not signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._on_signal)
        return self

    def attach(self, loop: asyncio.AbstractEventLoop, handle: RunHandle[Any]) -> None:
        """From now on signals stop `handle`; one that came earlier does so at once. On the thread of `loop`."""
        self._loop, self._handle = loop, handle
        if self._count > 1:
            handle.cancel(_AT_ONCE)
        elif self._count:
            handle.drain()

    def detach(self) -> None:
        """The run has ended; the loop may close. The third signal still ends the process."""
        self._loop = self._handle = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        for printed in self._told:
            printed.acquire(timeout=_PATIENCE)

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum = signum
        self._count += 1
        again = "Ctrl-C" if signum == signal.SIGINT else "the signal"
        if self._count == 1:
            self._tell(f"stopping: what runs may finish, nothing new begins ({again} again stops at once)")
            self._call("drain")
        elif self._count == 2:
            self._tell(f"stopping at once ({again} again ends the process)")
            self._call("cancel", _AT_ONCE)
        else:
            self._last_words("ended; some tasks may not have been cleaned up")
            kill_children()
            os._exit(128 + self.signum)

    def _call(self, method: str, *args: object) -> None:
        if self._loop is not None and self._handle is not None:
            try:
                self._loop.call_soon_threadsafe(getattr(self._handle, method), *args)
            except RuntimeError:  # the loop has just closed: the run is over
                return

    def _tell(self, text: str) -> None:
        # On a thread of its own, and the bare kind: the signal may have interrupted a write of this thread to the same
        # stream, or the start of a thread, and neither allows re-entry.
        printed = _thread.allocate_lock()
        printed.acquire()
        self._told.append(printed)
        _thread.start_new_thread(_print, (text, printed))

    def _last_words(self, text: str) -> None:
        show_cursor = "" if self._messages.plain else "\x1b[?25h"  # a live view hides it
        try:
            os.write(self._messages.fileno(), f"\n{show_cursor}{text}\n".encode("ascii", "replace"))
        except (OSError, ValueError):
            return


def _print(text: str, printed: _thread.LockType) -> None:
    # sys.stderr rather than our own stream: while a live view is up, it stands above the view
    try:
        sys.stderr.write(f"\n{text}\n")
        sys.stderr.flush()
    except Exception:  # noqa: BLE001 - nobody is left to be told
        return
    finally:
        printed.release()


def kill_children() -> None:
    """SIGKILL every descendant of this process. Never raises."""
    try:
        import psutil  # type: ignore[import-untyped]  # ships no types

        for child in psutil.Process().children(recursive=True):
            try:
                child.kill()
            except psutil.Error:
                continue
    except Exception:  # noqa: BLE001 - the process ends in the next line, whatever happens here
        return
