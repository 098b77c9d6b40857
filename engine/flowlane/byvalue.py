"""Functions and classes that no other process could import, pickled with their code: cloudpickle, whose code knows its file.

cloudpickle forgets which file a function is from (``<dynamic-code>`` takes its place, so that equal functions have equal
bytes). A traceback of such a function would then name a file that nobody has, and none of its lines. Here the name stays:
what a script or a cell defines fails in a worker with the place that its author knows.

The import of cloudpickle takes 90 ms, and most processes never need it: it waits for the first use.
"""

from __future__ import annotations

import functools
import io
import sys
from types import CodeType
from typing import Any, Final

from flowlane.outofband import PROTOCOL

__all__ = ["dumps", "pickler_class"]

_FORGOTTEN: Final = "<dynamic-code>"


@functools.cache
def pickler_class() -> Any:
    """A ``cloudpickle.Pickler`` to use or to derive from."""
    import cloudpickle  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

    base: Any = cloudpickle.Pickler
    reduced: Any = base.dispatch_table[CodeType]
    reduced_file: Any = base.dispatch_table[io.TextIOWrapper]

    def with_file(code: CodeType) -> tuple[Any, ...]:
        make, arguments, *state = reduced(code)
        named = tuple([code.co_filename if _is_forgotten(argument) else argument for argument in arguments])
        return (make, named, *state)

    def only_standard(stream: io.TextIOWrapper) -> Any:
        """cloudpickle would copy what can be read of an open file, and that copy would pass for the file."""
        if stream is sys.stdout or stream is sys.stderr:
            return reduced_file(stream)
        raise TypeError(
            f"cannot pickle an open file ({getattr(stream, 'name', stream)!r}): pass its path, and open it where it is read"
        )

    own = {CodeType: with_file, io.TextIOWrapper: only_standard}
    return type("Pickler", (base,), {"dispatch_table": base.dispatch_table.new_child(own)})


def _is_forgotten(argument: object) -> bool:
    return isinstance(argument, str) and argument == _FORGOTTEN


def dumps(value: Any) -> bytes:
    """`value` as one pickle. Raises whatever pickling it raises."""
    file = io.BytesIO()
    pickler_class()(file, protocol=PROTOCOL).dump(value)
    return file.getvalue()
