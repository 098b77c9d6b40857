"""Looking for results that are there already: the key of a call, and the thread that asks the store for it.

The key of a call is made of what decides its result: the task's name and code (its helpers' included, see ``fingerprint``), the
version that its author declared, and its arguments by name. An argument that cannot be hashed faithfully means no caching: a
wrong miss costs a run of the task, a wrong hit costs the user's trust.

Hashing and reading may take as long as the data is large, so neither happens on the event loop.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from flowlane.errors import FlowError
from flowlane.loader import load_for
from flowlane.runtime.encode import encode
from flowlane.runtime.keeper import CacheKey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowlane.program import CacheRule
    from flowlane.runtime.ports import Target
    from flowlane.storage.fingerprint import Fingerprint
    from flowlane.storage.port import ResultRef, Store

__all__ = ["CacheAnswer", "Lookups", "key_of"]


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


def key_of(
    target: Target, code: Fingerprint, rule: CacheRule, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> CacheKey:
    """The key of one call. Raises Unhashable, with the parameter in its path."""
    from flowlane.storage.cachekey import cache_key
    from flowlane.storage.digest import Unhashable, digest

    digests: dict[str, bytes] = {}
    for name, value in _named(target.fn, args, kwargs):
        try:
            digests[name] = digest(value)
        except Unhashable as error:
            error.path = f"{name}{error.path}"
            raise
    key = cache_key(target.name, code.digest, rule.version, digests)
    parts = {
        "version": rule.version,
        "code": code.parts,
        "inputs": {name: value.hex()[:16] for name, value in digests.items()},
    }
    return CacheKey(key, target.name, encode(parts), rule.ttl)


def _named(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Arguments by the name of their parameter, defaults left out (they are part of the code)."""
    import inspect

    try:
        bound = inspect.signature(fn).bind(*args, **kwargs)
    except (TypeError, ValueError):  # a callable written in C
        return [*((str(index), value) for index, value in enumerate(args)), *sorted(kwargs.items())]
    return list(bound.arguments.items())


class Lookups:
    """The thread that looks; one for an engine. It starts with the first call of `ask`."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._codes: dict[int, tuple[Any, Fingerprint]] = {}

    def ask(
        self,
        store: Store,
        target: Target,
        rule: CacheRule,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        then: Callable[[CacheAnswer], object],
    ) -> None:
        """Look, and call `then` on the thread. Never raises: what goes wrong is a miss, with a note."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="flowlane-cache")
        self._pool.submit(lambda: then(self._answer(store, target, rule, args, kwargs)))

    def code_of(self, fn: Callable[..., Any]) -> Fingerprint:
        """The fingerprint of `fn`, made once."""
        from flowlane.storage.fingerprint import fingerprint

        known = self._codes.get(id(fn))
        if known is None:
            known = self._codes[id(fn)] = (fn, fingerprint(fn))  # the function is kept, so that its id stays its own
        return known[1]

    def _answer(
        self, store: Store, target: Target, rule: CacheRule, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> CacheAnswer:
        from flowlane.storage.blob import unpack, unseal
        from flowlane.storage.digest import Unhashable

        try:
            key = key_of(target, self.code_of(target.fn), rule, args, kwargs)
        except Unhashable as error:
            return CacheAnswer(None, note=f"is not cached: {error.path} is a {error.type}, which cannot be hashed")
        except Exception as error:  # noqa: BLE001 - a hook of the user's
            return CacheAnswer(
                None, note=f"is not cached: hashing its arguments raised {type(error).__name__}: {error}"
            )
        try:
            entry = store.cached(key.key, time.time_ns())
            if entry is None:
                return CacheAnswer(key)
            payload = unseal(store.read(entry.result), store.secret)
            return CacheAnswer(key, entry.result, unpack(payload, load_for))
        except FlowError as error:  # damaged, swept, or it does not load here: it is made anew
            return CacheAnswer(key, note=f"was not taken from the cache: {error.message}")

    def close(self) -> None:
        """End the thread; what it is at may end."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
