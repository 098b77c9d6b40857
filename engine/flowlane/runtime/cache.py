"""Looking for results that are there already: the key of a call, and the thread that asks the store for it.

The key of a call is made of what decides its result: the task's name and code (its helpers' included, see ``fingerprint``), the
version that its author declared, and its arguments by name. An argument that cannot be hashed faithfully means no caching: a
wrong miss costs a run of the task, a wrong hit costs the user's trust.

Hashing and reading may take as long as the data is large, so neither happens on the event loop.
"""

from __future__ import annotations

import queue
import threading
import time
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.errors import FlowError, with_article
from flowlane.loader import load_for
from flowlane.runtime.encode import encode
from flowlane.runtime.keeper import CacheKey
from flowlane.storage.blob import bound_to, unpack, unseal
from flowlane.storage.cachekey import cache_key
from flowlane.storage.digest import Unhashable, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowlane.program import CacheRule
    from flowlane.runtime.codes import Codes
    from flowlane.runtime.ports import Target
    from flowlane.storage.port import ResultRef, Store

__all__ = ["CacheAnswer", "Lookups", "key_of"]


_AT_ONCE: Final = 0.02  # seconds: closing happens on the event loop


class CacheAnswer(NamedTuple):
    """What came of looking.

    key      under which the result is, or will be; None where the call has none
    origin   the row that has the result, when it was there; `value` is it decoded
    note     what there is to say about it, once a task, or None
    """

    key: CacheKey | None
    origin: ResultRef | None = None
    value: Any = None
    note: str | None = None


def key_of(target: Target, codes: Codes, rule: CacheRule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CacheKey:
    """The key of one call. Raises Unhashable, with the parameter in its path."""
    code = codes.of(target.fn)
    digests: dict[str, bytes] = {}
    given, filled = _named(target.fn, args, kwargs)
    for name, value in given.items():
        try:
            digests[name] = digest(value, codes.of)
        except Unhashable as error:
            if name in filled:
                continue  # a default of which the code has the type, and says that it has no more
            error.path = f"{name}{error.path}"
            raise
    called = f"{target.name}.filter(...)" if rule.filters else target.name
    key = cache_key(called, code.digest, rule.version, digests)
    parts = {
        "version": rule.version,
        "code": code.parts,
        "inputs": {name: value.hex()[:16] for name, value in digests.items()},
    }
    return CacheKey(key, target.name, encode(parts), rule.ttl)


def _named(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], frozenset[str]]:
    """Arguments by the name of their parameter, defaults filled in; and the names of those.

    Of a function that shows another's signature, as decorators make them, defaults are left out: its own may be others.
    """
    import inspect

    try:
        bound = inspect.signature(fn).bind(*args, **kwargs)
    except (TypeError, ValueError):  # a callable written in C
        return {**{str(index): value for index, value in enumerate(args)}, **dict(sorted(kwargs.items()))}, frozenset()
    given = frozenset(bound.arguments)
    inner = fn.__func__ if isinstance(fn, MethodType) else fn
    if isinstance(inner, FunctionType) and not {"__wrapped__", "__signature__"} & inner.__dict__.keys():
        bound.apply_defaults()
    return bound.arguments, frozenset(bound.arguments) - given


class Lookups:
    """The thread that looks; one for an engine. It starts with the first call of `ask`, and is never waited for: what it is at
    may be a hook of the user's, or a disk that does not answer."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._asked: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()

    def ask(
        self,
        store: Store,
        target: Target,
        codes: Codes,
        rule: CacheRule,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        then: Callable[[CacheAnswer], object],
    ) -> None:
        """Look, and call `then` on the thread, in every case. Never raises: what goes wrong is a miss, with a note."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="flowlane-cache", daemon=True)
            self._thread.start()
        self._asked.put(lambda: then(_answered(store, target, codes, rule, args, kwargs)))

    def _work(self) -> None:
        while (ask := self._asked.get()) is not None:
            ask()

    def close(self) -> None:
        """Let the thread end when it has done what it is at."""
        self._asked.put(None)
        if self._thread is not None:
            self._thread.join(_AT_ONCE)
            self._thread = None


def _answered(
    store: Store, target: Target, codes: Codes, rule: CacheRule, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> CacheAnswer:
    try:
        return _answer(store, target, codes, rule, args, kwargs)
    except BaseException as error:  # noqa: BLE001 - whoever waits for this answer must get one
        return CacheAnswer(None, note=f"was not looked for in the cache: {type(error).__name__}: {error}")


def _answer(
    store: Store, target: Target, codes: Codes, rule: CacheRule, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> CacheAnswer:
    try:
        key = key_of(target, codes, rule, args, kwargs)
    except Unhashable as error:
        return CacheAnswer(
            None, note=f"is not cached: {error.path} is {with_article(error.type)}, which cannot be hashed"
        )
    except Exception as error:  # noqa: BLE001 - a hook of the user's
        return CacheAnswer(None, note=f"is not cached: hashing its arguments raised {type(error).__name__}: {error}")
    unsure = codes.of(target.fn).unsure
    note = (
        f"is cached although its code uses what cannot be hashed, only its type: {', '.join(unsure)}"
        if unsure
        else None
    )
    try:
        entry = store.cached(key.key, time.time_ns())
        if entry is None:
            return CacheAnswer(key, note=note)
        payload = unseal(store.read(entry.result), store.secret, bound_to(entry.result))
        return CacheAnswer(key, entry.result, unpack(payload, load_for), note)
    except FlowError as error:  # damaged, swept, or it does not load here: it is made anew
        return CacheAnswer(key, note=f"was not taken from the cache: {error.message}")
