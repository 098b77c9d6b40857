"""What a stored value looks like, for people, without importing anything of the user's.

To show a run must not run its code: the modules may be gone, slow to import, or not the ones of then. So a pickle is loaded with
stand-ins in the place of every class and function but a few of the standard library's that only hold data. What comes out is a
value to be shown and nothing else.

Only for what `unseal` returned: a stand-in takes no harm from a hostile pickle, but its size has no bounds.
"""

from __future__ import annotations

import json
import pickle
import reprlib
from typing import TYPE_CHECKING, Any, Final, Self

from flowlane.storage.payload import Codec

if TYPE_CHECKING:
    from flowlane.storage.payload import Payload

__all__ = ["StandIn", "glimpse", "kind_of", "shown"]

#: What is loaded as it is: it holds data, and making one does nothing else.
_HARMLESS: Final = {
    "builtins": frozenset(("set", "frozenset", "complex", "bytearray", "range", "slice")),
    "collections": frozenset(("OrderedDict", "deque")),
    "datetime": frozenset(("date", "datetime", "time", "timedelta", "timezone")),
    "decimal": frozenset(("Decimal",)),
    "fractions": frozenset(("Fraction",)),
    "pathlib": frozenset(("Path", "PosixPath", "PurePosixPath", "PurePath")),
    "pathlib._local": frozenset(("Path", "PosixPath", "PurePosixPath", "PurePath")),  # where 3.13 has them
    "uuid": frozenset(("UUID",)),
    "flowlane.secret": frozenset(("Secret",)),
}


class _Named(type):
    """A class that stands for another, or for a function, and reads as such."""

    def __repr__(cls) -> str:
        return f"<{cls.__module__}.{cls.__qualname__}>"


class StandIn(metaclass=_Named):
    """In place of an object whose class is not loaded. Takes whatever a pickle does to it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ARG004 - any signature
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def add(self, item: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Self:  # noqa: ARG002 - any signature
        return self

    def __repr__(self) -> str:
        return f"<{kind_of(self)}>"


class _Glance(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if global_name in _HARMLESS.get(module_name, ()):
            return super().find_class(module_name, global_name)
        return _Named(global_name, (StandIn,), {"__module__": module_name, "__qualname__": global_name})


def glimpse(payload: Payload) -> Any:
    """The value as far as it can be had so. Raises ValueError where there is nothing to be seen."""
    try:
        if payload.codec is Codec.JSON:
            return json.loads(b"".join(payload.stream))
        import io

        stream = io.BytesIO(b"".join(payload.stream))
        return _Glance(stream, buffers=[memoryview(buffer) for buffer in payload.buffers]).load()
    except Exception as error:
        raise ValueError(f"it cannot be shown: {type(error).__name__}") from error


def kind_of(value: Any) -> str:
    """The type of a value that `glimpse` made: of a stand-in that of what it stands for, as far as its pickle names it."""
    named = value if isinstance(value, _Named) else type(value)  # pyright: ignore[reportUnknownVariableType] - truly anything
    if not isinstance(named, _Named):
        return str(named.__name__)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    kind = named
    module = kind.__module__.removeprefix("_flow_")
    name = kind.__qualname__
    # Many libraries pickle by a function of their own: "numpy._core.numeric._frombuffer" says numpy, and no more.
    return f"an object of {module.partition('.')[0]}" if name.startswith("_") else f"{module}.{name}"


def shown(value: Any, most: int = 200) -> str:
    """One line for a value of `glimpse`: its repr, long texts and containers cut."""
    short = reprlib.Repr()
    short.maxlevel = 4
    short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = short.maxdict = short.maxdeque = 20
    short.maxstring = short.maxother = short.maxlong = most
    try:
        text = short.repr(value)
    except Exception as error:  # noqa: BLE001 - an int of more digits than Python writes
        return f"<{type(value).__name__}: {type(error).__name__}>"
    return text if len(text) <= 4 * most else f"{text[: 4 * most]}…"
