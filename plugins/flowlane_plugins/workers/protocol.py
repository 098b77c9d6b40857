"""What the engine and the nursery say to each other.

A SEQPACKET socket, a message a packet, each a marshalled tuple: both ends are the same interpreter.
"""

from __future__ import annotations

import socket
from array import array
from typing import Final

__all__ = ["BORN", "EXITED", "FAILED", "FORK", "KILL", "MESSAGE_SIZE", "READY", "receive"]

# engine → nursery
FORK: Final = 1  # wid; and the worker's socket, page and output
KILL: Final = 2  # wid, signal

# nursery → engine
BORN: Final = 3  # wid, pid; and a pidfd, where there are any
EXITED: Final = 4  # wid, status, max_rss in bytes
FAILED: Final = 5  # wid, errno
READY: Final = 6  # seconds it took, [(module, what went wrong, or "")]

MESSAGE_SIZE: Final = 32_768  # bytes, at most

_CLOEXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_FD: Final = array("i").itemsize


def receive(sock: socket.socket, size: int, most_fds: int) -> tuple[bytes, list[int]]:
    """One receive from `sock`: the data, and the descriptors that came with it, which no program we start inherits.

    `socket.recv_fds` does not pass its flags on (3.11 to 3.13), so what it receives is inherited. Raises OSError.
    """
    data, extras, _, _ = sock.recvmsg(size, socket.CMSG_LEN(most_fds * _FD), _CLOEXEC)
    if not extras:
        return data, []
    fds = array("i")
    for level, kind, content in extras:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, fds.tolist()
