"""Tasks that leave something behind in their process, and those that would meet it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import threading
from typing import Any

from flowlane import task

HELD: list[Any] = []
COMINGS_BACK = ("return", "exit 3", "exit text", "raise")


@task.cpu
def pid() -> int:
    return os.getpid()


@task.cpu
def say(text: str) -> None:
    print(text, end="")


@task.cpu
def total(array: Any) -> float:
    return float(array.sum())


@task.cpu
def ends_of_children() -> list[int]:
    """The exit codes of children that come back from the task, each in its own way."""
    statuses: list[int] = []
    for how in COMINGS_BACK:
        child = os.fork()
        if child == 0:
            if how == "return":
                return []
            if how == "raise":
                raise LookupError("in the child")
            sys.exit(3 if how == "exit 3" else "some text")
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return statuses


class Forking:
    """Forks while it is loaded in a worker, and while it is pickled there."""

    def __init__(self, home: int) -> None:
        self.home = home

    def __reduce__(self) -> Any:
        if os.getpid() != self.home:
            os.fork()
        return _forking, (self.home,)


def _forking(home: int) -> Forking:
    if os.getpid() != home:
        os.fork()
    return Forking(home)


@task.cpu
def hand_on(value: Forking) -> Forking:
    return value


@task.cpu
def close_streams() -> int:
    sys.stdout.close()
    sys.stderr.close()
    return os.getpid()


@task.cpu
def lose_streams() -> int:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
    del sys.stdout
    return os.getpid()


@task.cpu
def touch(folder: str) -> int:
    os.umask(0o777)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    there = os.open(folder, os.O_RDONLY)
    os.fchdir(fd=there)
    os.close(there)
    return os.getpid()


@task.cpu
def surroundings() -> tuple[int, int, str, int]:
    umask = os.umask(0)
    os.umask(umask)
    return os.getpid(), umask, os.getcwd(), len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


@task.cpu
def import_what_sets_a_handler(folder: str) -> int:
    sys.path.insert(0, folder)
    __import__("sets_a_handler")
    return os.getpid()


@task.cpu
def own_handler_after_a_fork() -> bool:
    def mine(*_: Any) -> None: ...

    signal.signal(signal.SIGTERM, mine)
    child = os.fork()
    if child == 0:
        os._exit(signal.getsignal(signal.SIGTERM) is not mine)
    return os.waitpid(child, 0)[1] == 0 and signal.getsignal(signal.SIGTERM) is mine


@task.cpu
def forks_in_a_thread() -> int:
    statuses: list[int] = []

    def fork() -> None:
        child = os.fork()
        if child:
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    return statuses[0]


@task.cpu
def eat_descriptors() -> None:
    """As a leak does in the end: nothing of Python's is called that sets a limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = (ctypes.c_ulong * 2)(64, hard)
    ctypes.CDLL(None).setrlimit(resource.RLIMIT_NOFILE, limits)
    try:
        while True:
            HELD.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass


@task.cpu
def take_the_sockets_number() -> int:
    """Close nothing but the worker's socket, and have something else under its number."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.close(int(name))
        except OSError:
            pass
    HELD.append(socket.socketpair())
    return os.getpid()
