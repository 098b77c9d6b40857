"""A total JSON encoder: whatever it is given, it returns one line of valid JSON and never raises.

Log events may carry what a user's processor put into them: values that contain themselves, tuples as keys, objects
whose ``__repr__`` raises, NaN, bytes, half a surrogate pair, terminal escapes. ``json.dumps`` raises for half of these
and writes text that is not JSON for others; a log that can do that can fail a run, so this one cannot.

What it does with the rest:

- Output is ASCII. Everything else is written as ``\\uXXXX``, so an ESC, a newline or a right-to-left override in a name
  can neither break a line nor move a terminal's cursor.
- A lone surrogate (a file name that is not UTF-8) becomes the six characters ``\\udc80``: strict parsers refuse it bare.
- NaN and infinities become the strings "NaN", "Infinity", "-Infinity"; integers beyond any parser become hex strings.
- bytes become text, tuples and sets lists, keys strings. Dates, paths, decimals and UUIDs become their ``str``, any other
  object its ``repr``, cut to 1,000 characters.
- A container inside itself becomes "<circular>"; what lies deeper than 16 levels or behind 10,000 values "<too deep>"
  or "<too large>", so that a small object that unfolds without end costs little.

Pure functions, safe from any thread.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["encode", "inert", "quote"]

_DEPTH: Final = 16
_ITEMS: Final = 10_000
_REPR: Final = 1_000
_INT_BITS: Final = 2_000  # sys.set_int_max_str_digits may be as low as 640 digits, 2,126 bits

_FLAT: Final = frozenset({str, int, float, bool, type(None)})
_STR_MODULES: Final = frozenset({"datetime", "decimal", "fractions", "ipaddress", "pathlib", "uuid"})

# Members are read by the base class's own methods: a subclass may override them to say anything, without end.
_DICT: Final[Any] = dict
_BYTES: Final[tuple[Any, ...]] = (bytes, bytearray, memoryview)
_SEQUENCES: Final[tuple[Any, ...]] = (list, tuple, set, frozenset)

_encoder = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"), check_circular=True)
_quote = json.encoder.encode_basestring_ascii


def encode(event: Mapping[Any, Any]) -> str:
    """`event` as one line of ASCII JSON, without the newline. Never raises; costs 3 µs for an event of plain values."""
    try:
        if type(event) is _DICT and _FLAT.issuperset(map(type, event.values())):
            line = _flat(event)
            # "\\ud" is how the encoder writes any surrogate; whether it is one of a pair takes a closer look
            if line and "\\ud" not in line:
                return line
        plain = _Walk().value(event if isinstance(event, _DICT) else dict(event), 0)
        return _encoder.encode(plain if isinstance(plain, _DICT) else {"event": "log.unencodable", "value": plain})
    except BaseException:  # noqa: BLE001 - total means total, MemoryError included
        return '{"event":"log.unencodable","v":1,"level":"warning"}'


def _flat(event: Mapping[Any, Any]) -> str:
    try:
        return _encoder.encode(event)
    except Exception:  # noqa: BLE001 - NaN, an odd key, an int of 5,000 digits: the walk has an answer to each
        return ""


def quote(text: str) -> str:
    """`text` as a JSON string literal in ASCII; equal to what `encode` writes for it."""
    literal = _quote(text)
    return literal if "\\ud" not in literal else _quote(_text(text))


def inert(text: str) -> str:
    """`text` for people's eyes: what is not printable (control and bidi characters, ESC, newlines) is written ``\\xNN``."""
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else _escape(char) for char in text])


def _escape(char: str) -> str:
    return _quote(char)[1:-1] if char in "\n\r\t" else char.encode("unicode_escape", "backslashreplace").decode("ascii")


def _text(value: str) -> str:
    """An exact str without lone surrogates, whatever a subclass overrides."""
    return str.encode(value, "utf-8", "backslashreplace").decode("utf-8")


def _described(value: object) -> str:
    """``repr(value)``, or something in its place."""
    try:
        text = _text(repr(value))
    except BaseException as broken:  # noqa: BLE001 - a __repr__ may raise SystemExit, too
        try:
            return f"<{type.__getattribute__(type(value), '__name__')}: repr raised {type(broken).__name__}>"
        except BaseException:  # noqa: BLE001 - as above, of the metaclass
            return "<an object without a repr>"
    return text if len(text) <= _REPR else f"{text[:_REPR]}… (+{len(text) - _REPR} characters)"


class _Walk:
    """Copies a value into plain JSON types. One per event: it counts what it has seen."""

    __slots__ = ("above", "left")

    def __init__(self) -> None:
        self.above: set[int] = set()  # ids of the containers we are inside of
        self.left = _ITEMS

    def value(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0:
            return "<too large>"
        try:
            return self._plain(value, depth)
        except BaseException:  # noqa: BLE001 - a lying __class__, a broken subclass, RecursionError
            return _described(value)

    def _plain(self, value: Any, depth: int) -> Any:
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return _text(value)
        if isinstance(value, int):
            number = int.__index__(value)
            return number if number.bit_length() <= _INT_BITS else hex(number)[:_REPR]
        if isinstance(value, float):
            real = float.__float__(value)
            if math.isnan(real):
                return "NaN"
            if math.isinf(real):
                return "Infinity" if real > 0 else "-Infinity"
            return real
        if isinstance(value, _BYTES):
            return bytes(value).decode("utf-8", "backslashreplace")
        if isinstance(value, _DICT):
            return self._inside(value, depth, _DICT.items, self.mapping)
        for base in _SEQUENCES:
            if isinstance(value, base):
                return self._inside(value, depth, base.__iter__, self._sequence)
        if type(value).__module__.partition(".")[0] in _STR_MODULES:
            return _text(str(value))
        return _described(value)

    def _inside(
        self, container: Any, depth: int, members: Callable[[Any], Any], copy: Callable[[Any, int], Any]
    ) -> Any:
        if id(container) in self.above:
            return "<circular>"
        if depth >= _DEPTH:
            return "<too deep>"
        self.above.add(id(container))
        try:
            return copy(members(container), depth)
        finally:
            self.above.discard(id(container))

    def mapping(self, items: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, item in items:
            if self.left <= 0:
                out["…"] = "<too large>"
                break
            name = self._key(key)
            if name in out:
                name = f"{name}~{len(out)}"
            out[name] = self.value(item, depth + 1)
        return out

    def _sequence(self, items: Iterable[Any], depth: int) -> list[Any]:
        out: list[Any] = []
        for item in items:
            if self.left <= 0:
                out.append("<too large>")
                break
            out.append(self.value(item, depth + 1))
        return out

    def _key(self, key: Any) -> str:
        plain = self.value(key, _DEPTH) if isinstance(key, (str, int, float, bytes, type(None))) else _described(key)
        if isinstance(plain, str):
            return plain
        return _encoder.encode(plain)  # 1 → "1", None → "null", as json.dumps does
