"""The engine's end of the control socket: messages to the nursery and back, never blocking the loop.

What the kernel has no room for waits here, in order, with copies of its descriptors, until it has. The socket is closed
in processes that the host forks: the nursery knows by its end that the engine is gone.
"""

from __future__ import annotations

import errno
import marshal
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from flowlane_plugins.workers.interpreter import above_stdio, keep_from_forks
from flowlane_plugins.workers.protocol import MESSAGE_SIZE, receive

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Sequence

__all__ = ["Control"]

_MESSAGES: Final = 64  # read in one turn of the loop at most, so that a storm of deaths leaves room for others
# No memory, or too many descriptors under way: not what makes a socket unwritable, so nobody says when it is over.
_NO_ROOM: Final = (errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS)
_RETRY: Final = 0.01  # seconds until such a message is sent again


class Control:
    """Calls ``heard(message, descriptor or -1)`` for what comes, ``refused(message, error)`` for what cannot be sent for
    want of descriptors, and ``ended()`` once when the other side has closed. All on the loop's thread, as are the methods.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        sock: socket.socket,
        heard: Callable[[tuple[Any, ...], int], None],
        refused: Callable[[tuple[Any, ...], OSError], None],
        ended: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._heard = heard
        self._refused = refused
        self._ended = ended
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._writing = False  # add_writer is on
        sock.setblocking(False)
        keep_from_forks(sock)
        loop.add_reader(sock, self.listen)

    @classmethod
    def pair(
        cls,
        loop: AbstractEventLoop,
        heard: Callable[[tuple[Any, ...], int], None],
        refused: Callable[[tuple[Any, ...], OSError], None],
        ended: Callable[[], None],
    ) -> tuple[Control, socket.socket]:
        """A new control socket: our end, and the one that the nursery inherits. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if theirs.fileno() <= 2:
            theirs = socket.socket(fileno=above_stdio(theirs.detach()))
        return cls(loop, ours, heard, refused, ended), theirs

    def send(self, message: tuple[Any, ...], fds: Sequence[int] = ()) -> None:
        """Send now or when there is room; `fds` may be closed on return. Does nothing once closed."""
        if self._sock is None:
            return
        data = marshal.dumps(message)
        if self._unsent or not self._sent(self._sock, data, fds):
            copies: list[int] = []
            try:
                for fd in fds:
                    copies.append(os.dup(fd))  # noqa: PERF401 - those already made are closed when one fails
            except OSError as error:
                _close(copies)
                self._loop.call_soon(self._refused, message, error)
                return
            self._unsent.append((data, copies))

    def listen(self) -> None:
        """Hear what has come. The loop calls this; so does whoever knows that there will be nothing more."""
        for _ in range(_MESSAGES):
            if self._sock is None:  # what was heard may have closed us
                return
            try:
                data, fds = receive(self._sock, MESSAGE_SIZE, 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self.close()
                self._ended()
                return
            message = marshal.loads(data)  # noqa: S302 - the nursery wrote it
            self._heard(message, fds[0] if fds else -1)

    def close(self) -> None:
        """Hang up; nothing is heard any more, and what waits is dropped. May be called again."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._loop.remove_reader(sock)
        if self._writing:
            self._loop.remove_writer(sock)
        sock.close()
        for _, fds in self._unsent:
            _close(fds)
        self._unsent.clear()

    def _sent(self, sock: socket.socket, data: bytes, fds: Sequence[int]) -> bool:
        try:
            socket.send_fds(sock, [data], fds)
        except (BlockingIOError, InterruptedError):
            if not self._writing:
                self._writing = True
                self._loop.add_writer(sock, self._flush)
            return False
        except ConnectionError:
            return True  # nobody is left to miss it
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self._loop.call_later(_RETRY, self._flush)
            return False
        return True

    def _flush(self) -> None:
        if self._sock is None:
            return
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock)
        while self._unsent:
            data, fds = self._unsent[0]
            if not self._sent(self._sock, data, fds):
                return
            self._unsent.popleft()
            _close(fds)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
