"""Which functions may be tasks or bodies, and where they stand."""

from __future__ import annotations

from typing import Any, Final

from flowlane.declare.callsite import place
from flowlane.declare.handle import kind_of
from flowlane.errors import DefinitionError

__all__ = ["ASYNC", "GENERATOR", "check_function", "code_flags", "place_of"]

_CO_GENERATOR: Final = 0x20  # as in inspect, which takes longer to import than all of ours
_CO_ASYNC_GENERATOR: Final = 0x200
GENERATOR: Final = _CO_GENERATOR | _CO_ASYNC_GENERATOR
ASYNC: Final = 0x80  # inspect.CO_COROUTINE


def check_function(fn: Any, kind: str, where: str | None) -> bool:
    """Refuse what cannot be a task; tell whether `fn` is async."""
    made_of = kind_of(fn)
    if issubclass(made_of, (staticmethod, classmethod)):
        raise DefinitionError(
            f"@task.{kind} stands above @{made_of.__name__}", where=where, hint=f"swap them: @{made_of.__name__} above"
        )
    if isinstance(fn, type):
        raise DefinitionError(
            f"class {fn.__name__!r} cannot be a task", where=where, hint="decorate a function that makes the object"
        )
    if not callable(fn):
        raise DefinitionError(f"@task.{kind} takes a function, not {fn!r}", where=where)
    name = getattr(fn, "__name__", None)
    if not isinstance(name, str):
        raise DefinitionError(
            f"{type(fn).__name__} objects cannot be tasks: they have no name",
            where=where,
            hint="write a function (def) that calls it",
        )
    flags = code_flags(fn)
    here = place_of(fn) or where
    if flags & (GENERATOR):
        raise DefinitionError(
            f"task {name!r} is a generator function (it has yield)", where=here, hint="return a list instead"
        )
    is_async = bool(flags & ASYNC)
    if is_async and kind == "cpu":
        raise DefinitionError(
            f"cpu task {name!r} is an async def, and cpu tasks run in worker processes without an event loop",
            where=here,
            hint="write it as def, or tag it @task.io if it waits rather than computes",
        )
    return is_async


def code_flags(fn: Any) -> int:
    """The flags of its code: `ASYNC` and `GENERATOR` tell what a call returns. 0 for one without Python code."""
    function = getattr(fn, "__func__", fn)  # of a bound method
    code = getattr(function, "__code__", None)
    flags: int = getattr(code, "co_flags", 0)
    if not flags & ASYNC and hasattr(function, "_is_coroutine_marker"):
        import inspect

        if inspect.iscoroutinefunction(fn):  # 3.12's markcoroutinefunction
            flags |= ASYNC
    return flags


def place_of(fn: Any) -> str | None:
    """``file:line`` of the function, decorators included; None for one without Python code."""
    code = getattr(getattr(fn, "__func__", fn), "__code__", None)
    return None if code is None else place(code.co_filename, code.co_firstlineno)
