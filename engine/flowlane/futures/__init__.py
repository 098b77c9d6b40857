"""The ``concurrent.futures`` face: flowlane's worker processes and threads as plain pools, and nothing else of flowlane.

    from flowlane.futures import ProcessPoolExecutor

    with ProcessPoolExecutor() as pool:
        print(list(pool.map(pow, range(10), range(10))))

Names, parameters, futures and exceptions are those of the standard library, so that a changed import is all it takes.
What differs is what happens on a bad day: a worker that dies fails the future it was running, and no other.

A pool (`threads`, `processes`) is a thin object; behind it a `driver` runs an executor port of ``flowlane.runtime.ports``
in a thread of its own. `call` is what was submitted, `remote` what worker processes need, and `outcome` turns their
reports into exceptions.

Imported when first asked for: a worker process imports only `remote`, and who wants threads does not load
multiprocessing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowlane.futures.processes import ProcessPoolExecutor
    from flowlane.futures.threads import ThreadPoolExecutor

__all__ = ["ProcessPoolExecutor", "ThreadPoolExecutor"]

_HOMES = {"ProcessPoolExecutor": "flowlane.futures.processes", "ThreadPoolExecutor": "flowlane.futures.threads"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: Any = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
