"""Awkward exceptions, arguments and results. Loaded by path, as a workflow file is, here and in worker processes."""

# ruff: noqa: PYI024 - named for what is wrong with them, and made as users make them

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any

# ── exceptions ────────────────────────────────────────────────────────────────────────────────────────────────────


class TwoArguments(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class HoldsALock(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class BadStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class LeavingStr(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class OddStr(Exception):
    def __str__(self) -> str:
        class Text(str):  # cannot be pickled by reference, and is a str all the same
            __slots__ = ("lock",)

        text = Text("odd text")
        text.lock = threading.Lock()
        return text


class BadReduce(Exception):
    def __reduce__(self) -> Any:
        raise ValueError("not me")


class ExplodesOnLoad(Exception):
    def __setstate__(self, state: Any) -> None:
        raise ValueError("boom")

    def __reduce__(self) -> Any:
        return type(self), self.args, {"x": 1}


class AnotherOnLoad(Exception):
    def __reduce__(self) -> Any:
        return ValueError, ("something else",)


class NotEvenAnException(Exception):
    def __reduce__(self) -> Any:
        return int, ("7",)


class BadNotes(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.__notes__ = [BadStr()]


class NotesAreANumber(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.__notes__ = 7


class AnswersEverything(Exception):
    def __getattr__(self, name: str) -> Any:
        return getattr(self, name + "_")  # never ends


def _local() -> type[Exception]:
    class Local(Exception):
        pass

    return Local


def _circular() -> Exception:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def _deep_chain() -> Exception:
    error: Exception = ValueError("chain 0")
    for n in range(1, 2_000):
        later = ValueError(f"chain {n}")
        later.__cause__ = error
        error = later
    return error


EXCEPTIONS: dict[str, Any] = {
    "two arguments": lambda: TwoArguments(7, "seven"),
    "keyword only": lambda: KeywordOnly(code=7),
    "holds a lock": lambda: HoldsALock("locked"),
    "bad str": BadStr,
    "leaving str": LeavingStr,
    "odd str": OddStr,
    "bad reduce": lambda: BadReduce("text"),
    "explodes on load": lambda: ExplodesOnLoad("text"),
    "another on load": lambda: AnotherOnLoad("text"),
    "no exception on load": lambda: NotEvenAnException("text"),
    "bad notes": lambda: BadNotes("text"),
    "notes are a number": lambda: NotesAreANumber("text"),
    "local class": lambda: _local()("text"),
    "answers everything": lambda: AnswersEverything("text"),
    "circular causes": _circular,
    "deep chain of causes": _deep_chain,
    "group": lambda: ExceptionGroup("several", [ValueError("one"), TwoArguments(2, "two")]),
    "surrogates": lambda: ValueError("\udce4\udcf6"),
    "base exception": lambda: BaseException("base"),
}


def throw(name: str) -> None:
    raise EXCEPTIONS[name]()


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Bomb:
    """Can be pickled, and raises while it is loaded."""

    def __init__(self) -> None:
        self.fuse = 1

    def __setstate__(self, state: Any) -> None:
        raise ValueError("boom")


class LeavingBomb(Bomb):
    def __setstate__(self, state: Any) -> None:
        raise SystemExit(3)


class BombInReduce:
    def __reduce__(self) -> Any:
        return int, ("not a number",)


class Refuses:
    def __reduce__(self) -> Any:
        raise KeyError("I stay here")


class LeavesWhenPickled:
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class Session:
    def __init__(self) -> None:
        self.name = "s"
        self._lock = threading.Lock()


@dataclass
class Config:
    size: int = 1
    session: Any = field(default_factory=Session)


@dataclass
class Holder:
    parts: Any


class Slotted:
    __slots__ = ("first", "second")

    def __init__(self) -> None:
        self.first = 1
        self.second = threading.Lock()


class Names(dict[str, Any]):
    pass


Pair = namedtuple("Pair", "left right")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def chained(depth: int) -> Any:
    node = Holder(None)
    for _ in range(depth):
        node = Holder(node)
    return node


def numbers() -> Any:
    yield 1


VALUES: dict[str, Any] = {
    "lock": threading.Lock,
    "lock in a config": Config,
    "lock in slots": Slotted,
    "lock in a wide list": lambda: {"a": [0] * 50_000 + [{"lock": threading.Lock()}] + [0] * 50_000},
    "lock in a named tuple": lambda: Pair(1, [threading.Lock()]),
    "lock in a dict subclass": lambda: Names(x=threading.Lock()),
    "generator": numbers,
    "thread local": threading.local,
    "refuses": lambda: [Refuses()],
    "leaves when pickled": LeavesWhenPickled,
    "nested": lambda: nested(100_000),
    "chained": lambda: chained(100_000),
    "bomb": lambda: {"k": (1, [Bomb()])},
    "leaving bomb": LeavingBomb,
    "bomb in reduce": lambda: Holder(BombInReduce()),
}


def make(name: str) -> Any:
    return VALUES[name]()


def take(cfg: Any = None, *more: Any, named: Any = None) -> str:
    return "taken"


def call(fn: Any, *args: Any) -> Any:
    return fn(*args)


# ── workers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def add(a: int, b: int) -> int:
    return a + b


def said_threads() -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def pid() -> int:
    return os.getpid()


def modules() -> list[str]:
    return sorted(sys.modules)


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def nap_in_c(seconds: float) -> None:
    """Holds the GIL, so nothing that needs Python can reach this process; SIGTERM's default action can."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def deaf_nap(seconds: float) -> None:
    """Ignores SIGTERM and holds the GIL."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    nap_in_c(seconds)


def leave_for_good(code: int) -> None:
    os._exit(code)


def be_killed(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(10)


def interrupted_by_keyboard() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    return "still here"


def path() -> list[str]:
    return list(sys.path)


LOCAL = threading.local()


def count() -> int:
    LOCAL.count = getattr(LOCAL, "count", 0) + 1
    return LOCAL.count
