"""The workflow that is killed: 43 tasks on all three executors, in fan-outs, a chain and joins, for about 0.3 s.

Each task appends one line to the journal when it starts and one when it ends: ``token task start|end``. One `write` to a file
opened with O_APPEND is whole or not there, whoever is killed. A token is one execution of a task.

Its results are plain, pickled (a class of this file, a date) and larger than what a row holds.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import os
import random
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowlane import Skip, current_task, task, workflow
from flowlane.program import Work

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 8
LINKS = 8
LARGE = 100_000  # bytes; a row takes 64 KiB


@contextmanager
def noted(journal: str, name: str) -> Iterator[None]:
    token = f"{os.getpid()}-{os.urandom(4).hex()}"
    _append(journal, f"{token} {name} start\n")
    yield
    _append(journal, f"{token} {name} end\n")


def _append(journal: str, line: str) -> None:
    fd = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Part:
    number: int
    text: str
    day: datetime.date


def parted(number: int, value: int) -> Part:
    return Part(number, str(value) * 10, datetime.date(2020, 1, 1) + datetime.timedelta(days=value))


def crunched(part: Part) -> bytes:
    return hashlib.sha256(f"{part.number} {part.text} {part.day}".encode()).digest() * (LARGE // 32)


def folded(blocks: list[bytes]) -> str:
    return hashlib.sha256(b"".join(blocks)).hexdigest()


@task.io
async def pull(journal: str, name: str, number: int) -> int:
    with noted(journal, name):
        await asyncio.sleep(0.002 * (number % 5))
    return number * 7


@task.io
def parse(journal: str, name: str, number: int, value: int) -> Part:
    with noted(journal, name):
        time.sleep(0.003 * (number % 4))
        return parted(number, value)


@task.cpu
def crunch(journal: str, name: str, part: Part) -> bytes:
    with noted(journal, name):
        time.sleep(0.002 * (part.number % 3))
        return crunched(part)


@task.cpu
def fold(journal: str, name: str, blocks: list[bytes]) -> str:
    with noted(journal, name):
        return folded(blocks)


@task.io
async def leaf(journal: str, name: str, number: int, part: Part) -> int:
    with noted(journal, name):
        await asyncio.sleep(0.02 * number)
    return part.number + number


@task.io
async def step(journal: str, name: str, number: int, before: int) -> int:
    with noted(journal, name):
        await asyncio.sleep(0.01)
    return before * 3 + number


@task.io
def thread_step(journal: str, name: str, number: int, before: int) -> int:
    with noted(journal, name):
        time.sleep(0.01)
    return before * 3 + number


@task.cpu
def cpu_step(journal: str, name: str, number: int, before: int) -> int:
    with noted(journal, name):
        time.sleep(0.01)
    return before * 3 + number


@task.io
def join(journal: str, name: str, folded: str, leaves: list[int], last: int) -> list[object]:
    with noted(journal, name):
        return [folded, sum(leaves), last]


@workflow
def killed(journal: str) -> list[object]:
    parts = []
    blocks = []
    for n in range(WIDTH):
        value = pull.options(name=f"pull-{n}")(journal, f"pull-{n}", n)
        parts.append(parse.options(name=f"parse-{n}")(journal, f"parse-{n}", n, value))
        blocks.append(crunch.options(name=f"crunch-{n}")(journal, f"crunch-{n}", parts[n]))
    leaves = [leaf.options(name=f"leaf-{n}")(journal, f"leaf-{n}", n, parts[0]) for n in range(WIDTH)]
    last = 1
    for n in range(LINKS):
        link = (step, thread_step, cpu_step)[n % 3]
        last = link.options(name=f"link-{n}")(journal, f"link-{n}", n, last)
    whole = fold.options(name="fold")(journal, "fold", blocks)
    return join.options(name="join")(journal, "join", whole, leaves, last)


@task.io
def inflate(journal: str, name: str, part: Part) -> bytes:
    with noted(journal, name):
        return crunched(part)


@task.io
def deflate(journal: str, name: str, block: bytes) -> str:
    with noted(journal, name):
        return folded([block])


@workflow
def small(journal: str) -> str:
    """Six tasks in this process alone, one of them with a large result: for whoever counts calls."""
    last = 1
    for n in range(3):
        last = step.options(name=f"link-{n}")(journal, f"link-{n}", n, last)
    part = parse.options(name="parse")(journal, "parse", 1, last)
    block = inflate.options(name="inflate")(journal, "inflate", part)
    return deflate.options(name="deflate")(journal, "deflate", block)


# ── that can be held up, and that grow ────────────────────────────────────────────────────────────────────────────


async def _opened(gate: str) -> None:
    while not os.path.exists(gate):
        await asyncio.sleep(0.005)


@task.io
async def wait(journal: str, name: str, gate: str, before: int) -> int:
    with noted(journal, name):
        await _opened(gate)
    return before + 1


@task.cpu
def wait_in_a_process(journal: str, name: str, gate: str, before: int) -> int:
    with noted(journal, name):
        while not os.path.exists(gate):
            time.sleep(0.005)
    return before + 1


@task.io(at_most_once=True)
async def charge(journal: str, name: str, gate: str, before: int) -> int:
    with noted(journal, name):
        await _opened(gate)
    return before + 1


@workflow
def gated(journal: str, gate: str) -> int:
    """first, then one that waits for the file `gate`, then last."""
    first = step.options(name="first")(journal, "first", 1, 0)
    held = wait.options(name="wait")(journal, "wait", gate, first)
    return step.options(name="last")(journal, "last", 0, held)


@workflow
def gated_cpu(journal: str, gate: str) -> int:
    """The same in a process of its own."""
    first = step.options(name="first")(journal, "first", 1, 0)
    held = wait_in_a_process.options(name="wait")(journal, "wait", gate, first)
    return step.options(name="last")(journal, "last", 0, held)


@workflow
def once(journal: str, gate: str) -> int:
    """As `gated`, and the one that waits must not begin twice."""
    first = step.options(name="first")(journal, "first", 1, 0)
    held = charge.options(name="charge")(journal, "charge", gate, first)
    return step.options(name="last")(journal, "last", 0, held)


@task.io
def block(journal: str, name: str, number: int, size: int, before: bytes) -> bytes:
    with noted(journal, name):
        return random.Random(number).randbytes(size)


@workflow
def growing(journal: str, count: int = 40, size: int = 200_000) -> str:
    """A chain of `count` results of `size` bytes each, no two alike."""
    last = b""
    for n in range(count):
        last = block.options(name=f"block-{n}")(journal, f"block-{n}", n, size, last)
    return digested.options(name="digested")(journal, "digested", last)


@task.io
def digested(journal: str, name: str, data: bytes) -> str:
    with noted(journal, name):
        return hashlib.sha256(data).hexdigest()


# ── that become more than they were ───────────────────────────────────────────────────────────────────────────────

WIDE = 12
JOURNAL = os.path.join("..", "journal")  # beside the working folder, where all processes of a trial are


@contextmanager
def noted_here() -> Iterator[None]:
    """As `noted`, of a task that does not know its name before it runs."""
    with noted(JOURNAL, current_task().task):
        yield


@task.io
async def numbers(count: int) -> list[int]:
    with noted_here():
        await asyncio.sleep(0.005)
    return list(range(count))


@task.io
async def draw(number: int) -> int:
    with noted_here():
        await asyncio.sleep(0.003 * (number % 4))
    return number * 7


@task.cpu
def smash(value: int) -> str:
    with noted_here():
        time.sleep(0.002 * (value % 3))
    return hashlib.sha256(str(value).encode()).hexdigest()


@task.io
def odd(value: int) -> bool:
    with noted_here():
        return value % 2 == 1


@task.io
async def skim(value: int) -> int:
    with noted_here():
        await asyncio.sleep(0.002)
    if value % 3 == 0:
        raise Skip("nothing in it")
    return value


@task.io
async def add(values: list[int]) -> int:
    with noted_here():
        await asyncio.sleep(0.004)
    return sum(values)


@task.io
async def more(number: int, times: int) -> int | Work[int]:
    with noted_here():
        await asyncio.sleep(0.003)
    return more.bind(number + 1, times - 1) if times > 1 else branch.bind(number)


@workflow
def branch(number: int) -> int:
    """A map inside of what is made at run time."""
    return add(draw.map([number, number + 1, number + 2]))


@workflow
def grown(journal: str) -> list[object]:
    """A chain of maps with a filter and a tree on it, workflows by element, keys, skips, and work returned twice over."""
    found = numbers(WIDE)
    drawn = draw.options(name="drawn").map(found)
    smashed = smash.map(drawn)
    total = add.options(name="tree").reduce(drawn, fan_in=3)
    branches = branch.map([0, 10, 20, 30])
    keyed = draw.options(name="keyed").map({"eu": 5, "us": 6})
    skimmed = skim.map(drawn)
    grown = more(3, 2)
    last = 1
    for n in range(LINKS):
        last = step.options(name=f"link-{n}")(journal, f"link-{n}", n, last)
    whole = [smashed, odd.filter(drawn), total, branches, keyed, skimmed, grown, last]
    return told.options(name="told")(whole)


@task.io
def told(whole: list[object]) -> list[object]:
    with noted_here():
        return whole
