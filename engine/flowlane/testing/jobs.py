"""What the jobs of the executors' contract do. Loaded by path, as a workflow file is, here and in worker processes.

A name with ``_async`` is the same for executors that take coroutines.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from pathlib import Path
from typing import Any

from flowlane.runtime import context

COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


class Rejected(ValueError):
    """The suite's own exception class."""


class TwoArguments(Exception):
    """Pickle makes it again with one argument, and fails."""

    def __init__(self, table: str, row: int) -> None:
        super().__init__(f"{table} {row}")


class Speechless(Exception):
    """It cannot be told."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Explosive:
    """It is pickled without trouble, and never loads."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _explode, ()


def _explode() -> None:
    raise ArithmeticError("it goes off")


def add(a: Any, b: Any = 0, *more: Any, scale: int = 1) -> Any:
    return (a + b + sum(more)) * scale


async def add_async(a: Any, b: Any = 0, *more: Any, scale: int = 1) -> Any:
    await asyncio.sleep(0)
    return add(a, b, *more, scale=scale)


def echo(value: Any = None) -> Any:
    return value


async def echo_async(value: Any = None) -> Any:
    return value


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


async def nap_async(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


def stubborn(seconds: float) -> None:
    """It does not stop when it is told to, as long as that can be refused."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(end - time.monotonic())
        except BaseException:  # noqa: BLE001, S112 - that is what it is for
            continue


async def stubborn_async(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            await asyncio.sleep(end - time.monotonic())
        except asyncio.CancelledError:
            continue


def reject(text: str) -> None:
    error = Rejected(text)
    error.add_note("a note")
    raise error from KeyError("the cause")


async def reject_async(text: str) -> None:
    reject(text)


def leave(name: str) -> None:
    raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt, "GeneratorExit": GeneratorExit}[name](7)


async def leave_async(name: str) -> None:
    leave(name)


def awkward(shape: str) -> None:
    """Raise what is hard to tell, or to carry."""
    match shape:
        case "two arguments":
            raise TwoArguments("orders", 118)
        case "speechless":
            raise Speechless
        case "holds a lock":
            error = Rejected("it holds a lock")
            error.lock = threading.Lock()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
            raise error
        case "local class":
            raise type("Local", (Exception,), {})("made on the spot")
        case "group":
            raise ExceptionGroup("two of them", [ValueError("one"), OSError("two")])
        case "explosive":
            error = Rejected("it holds an explosive")
            error.load = Explosive()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
            raise error
        case "long":
            raise Rejected("x" * 100_000)
        case _:
            raise Rejected("caf\udce9")  # a lone surrogate: no UTF-8


async def awkward_async(shape: str) -> None:
    awkward(shape)


def whoami() -> tuple[str, str, int]:
    return context.RUN.get(), context.TASK.get(), context.ATTEMPT.get()


async def whoami_async() -> tuple[str, str, int]:
    return whoami()


def colour() -> str:
    found = COLOUR.get()
    COLOUR.set("changed by a job")
    return found


async def colour_async() -> str:
    return colour()


def where_am_i() -> int:
    return os.getpid()


async def where_am_i_async() -> int:
    return os.getpid()


def leave_mark(path: str, seconds: float = 0.0) -> None:
    """Add a line to a file, then take a while."""
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)


async def leave_mark_async(path: str, seconds: float = 0.0) -> None:
    leave_mark(path)
    await asyncio.sleep(seconds)


def die(path: str) -> None:
    """Leave a mark, and take the worker along. Never called in a process that is not a worker."""
    leave_mark(path)
    os._exit(3)


def unpicklable() -> Any:
    return {"lock": threading.Lock()}


async def unpicklable_async() -> Any:
    return unpicklable()


def explosive() -> Any:
    return [Explosive()]


async def explosive_async() -> Any:
    return explosive()


def spoil(values: list[int]) -> int:
    """Change an argument in place."""
    values.append(0)
    return len(values)


async def spoil_async(values: list[int]) -> int:
    return spoil(values)


def length(value: Any) -> int:
    return len(value)


async def length_async(value: Any) -> int:
    return len(value)


def pick(values: dict[str, list[Any]], *more: Any) -> Any:
    """The length of everything, wherever it stands among the arguments."""
    return sum(len(item) for items in values.values() for item in items) + sum(len(item) for item in more)


async def pick_async(values: dict[str, list[Any]], *more: Any) -> Any:
    return pick(values, *more)
