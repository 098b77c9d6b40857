"""A program under guard: found again by a mark in its environment, it and whatever it started, wherever that went.

Process groups and sessions do not do for this: what is guarded makes sessions of its own. A mark is inherited by fork and
exec alike (only a process that clears its environment loses it). Needs Linux's /proc.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Guarded", "marked", "tell"]

_MARK: Final = "BENCHMARK_MARK"


def tell(text: str) -> None:
    """Called by the guarded program: a line for its guard. One write, so that a copy which a task forked cannot tear it."""
    os.write(1, f"{os.getpid()} {text}\n".encode())


def marked(mark: str) -> list[int]:
    """Processes with `mark` in their environment, this one and zombies left out."""
    found: list[int] = []
    wanted = f"{_MARK}={mark}".encode()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    ours = wanted in file.read().split(b"\0")
                with open(f"/proc/{name}/stat", "rb") as file:
                    state = file.read().rpartition(b")")[2].split()[0]
            except OSError:  # gone, or not ours to read
                continue
            if ours and state != b"Z":
                found.append(int(name))
    return found


class Guarded:
    """``with Guarded(*arguments) as program``: that Python program. Leaving ends everything that carries its mark."""

    def __init__(self, *arguments: str) -> None:
        self.mark = uuid.uuid4().hex
        self._heard: list[bytes] = []
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, _MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        stream = self._process.stdout
        # In a thread, because the pipe stays open for as long as anything that the program left behind.
        self._reading = threading.Thread(target=lambda: self._heard.extend(iter(stream.readline, b"")), daemon=True)
        self._reading.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for _ in range(20):
            for pid in (left := marked(self.mark)):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if not left:
                break
            time.sleep(0.05)
        self._process.wait()
        self._reading.join(1.0)
        if self._process.stdout is not None and not self._reading.is_alive():
            self._process.stdout.close()

    def told(self) -> str | None:
        """The last line that the program itself has told: not a worker, and not a copy that a task forked."""
        own = b"%d " % self._process.pid
        lines = [line for line in list(self._heard) if line.startswith(own)]
        return lines[-1].decode().partition(" ")[2].rstrip("\n") if lines else None

    def ended(self, patience: float) -> bool:
        """Whether the program ends within `patience` seconds."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to the program alone, and wait for it."""
        self._process.kill()
        self._process.wait()

    def left(self, patience: float = 0.0) -> int:
        """How many processes of the program's there are; with `patience`, after those seconds or once there is none."""
        deadline = time.monotonic() + patience
        while (count := len(marked(self.mark))) and time.monotonic() < deadline:
            time.sleep(0.05)
        return count
