"""What arguments a function takes, reduced to what is needed to say yes within a fraction of a microsecond.

A graph may hold a million calls of one function; ``Signature.bind`` costs 3 µs each. So it is asked only to word an error.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from flowlane.declare.callsite import did_you_mean

if TYPE_CHECKING:
    import inspect
    from collections.abc import Mapping

__all__ = ["Shape", "signature_of"]

_INFINITE: Final = sys.maxsize


class Shape:
    """What a function's signature accepts, reduced to what one needs to say yes quickly.

    least, most  how many positional arguments fit (`least` is out of reach when a keyword-only one is required)
    """

    __slots__ = ("index", "keywords", "least", "most", "required", "signature")

    def __init__(self, signature: inspect.Signature | None) -> None:
        self.signature = signature
        self.least = 0
        self.most = _INFINITE
        self.keywords = True  # takes any keyword
        self.index: dict[str, int] = {}  # name → position, of what can be given by name; -1 for keyword-only
        self.required: tuple[tuple[str, int], ...] = ()
        if signature is not None:
            self._read(signature)

    def _read(self, signature: inspect.Signature) -> None:
        positional = least = 0
        self.keywords = unbounded = False
        required: list[tuple[str, int]] = []
        keyword_only_required = False
        for parameter in signature.parameters.values():
            needed = parameter.default is parameter.empty
            if parameter.kind is parameter.VAR_POSITIONAL:
                unbounded = True
            elif parameter.kind is parameter.VAR_KEYWORD:
                self.keywords = True
            elif parameter.kind is parameter.KEYWORD_ONLY:
                self.index[parameter.name] = -1
                keyword_only_required |= needed
                if needed:
                    required.append((parameter.name, _INFINITE))
            else:
                if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                    self.index[parameter.name] = positional
                if needed:
                    required.append((parameter.name, positional))
                    least = positional + 1
                positional += 1
        self.least = _INFINITE if keyword_only_required else least
        self.most = _INFINITE if unbounded else positional
        self.required = tuple(required)

    def fits(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether the function can be called so."""
        given = len(args)
        if not kwargs:
            return self.least <= given <= self.most
        if given > self.most:
            return False
        index = self.index
        for name in kwargs:
            position = index.get(name)
            if position is None:
                if not self.keywords:
                    return False
            elif 0 <= position < given:
                return False
        return all(given > position or (name in kwargs and name in index) for name, position in self.required)

    def misfit(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """Why the function cannot be called so (None: it can after all), and the parameter that was probably meant.

        A name that no parameter has is told first: with it, whatever is missing is usually explained too.
        """
        for key in kwargs if not self.keywords else ():
            if key not in self.index:
                return f"got an unexpected keyword argument {key!r}", did_you_mean(key, self.index)
        try:
            if self.signature is not None:
                self.signature.bind(*args, **kwargs)
        except TypeError as error:
            return str(error), None
        return None, None


def signature_of(fn: Any) -> inspect.Signature | None:
    """The signature, or None for a function written in C that does not tell."""
    import inspect

    try:
        return inspect.signature(fn)
    except (TypeError, ValueError):
        return None
