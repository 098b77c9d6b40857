"""What the jobs of the contract suite do. Loaded by path, as a workflow file is, here and in worker processes.

A name with ``_async`` is the same for executors that take coroutines.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import time

from flowlane.runtime import context

COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


class Rejected(ValueError):
    """The suite's own exception class."""


def add(a, b=0, *more, scale=1):
    return (a + b + sum(more)) * scale


async def add_async(a, b=0, *more, scale=1):
    await asyncio.sleep(0)
    return add(a, b, *more, scale=scale)


def echo(value=None):
    return value


async def echo_async(value=None):
    return value


def nap(seconds):
    time.sleep(seconds)
    return seconds


async def nap_async(seconds):
    await asyncio.sleep(seconds)
    return seconds


def stubborn(seconds):
    time.sleep(seconds)


async def stubborn_async(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            await asyncio.sleep(end - time.monotonic())
        except asyncio.CancelledError:
            continue


def reject(text):
    error = Rejected(text)
    error.add_note("a note")
    raise error from KeyError("the cause")


async def reject_async(text):
    reject(text)


def leave(name):
    raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt, "GeneratorExit": GeneratorExit}[name](7)


async def leave_async(name):
    leave(name)


def whoami():
    return context.RUN.get(), context.TASK.get(), context.ATTEMPT.get()


async def whoami_async():
    return whoami()


def colour():
    found = COLOUR.get()
    COLOUR.set("changed by a job")
    return found


async def colour_async():
    return colour()


def where_am_i():
    return os.getpid()


async def where_am_i_async():
    return os.getpid()
