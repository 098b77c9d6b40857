"""What a code object says, apart from where it stands in its file: as a digest, and as the names that it looks up.

Code objects are read, not sources: of a file that was edited after it was loaded, the source would give the new text for the old
code. Of what the compiler makes, this is left out, for it follows from the layout of the source and not from what it says:

* line numbers, those that 3.13 stores into each class body included;
* docstrings. They are the first constant, so constants are told by value and not by position;
* NOPs (a debugger stops there) and inline caches. Pairs of instructions that 3.13 fuses when both stand on one line are taken
  apart. So jumps are told by the instruction they lead to;
* annotations of local variables, which compile to nothing;
* the function's own name, and flags that tell how it was compiled.

What stays: instructions, constants (code inside, frozensets sorted), names of globals, attributes and variables, what parameters
there are, and where exceptions are handled. So comments, blank lines, docstrings and moving a function about change nothing.
Breaking an expression into lines otherwise mostly changes nothing: in 3.11 and 3.12 some jumps depend on whether both of
their ends stand on one line.

Bytecode differs between minor versions of Python; whoever hashes this adds `VERSION`.
"""

from __future__ import annotations

import opcode
import sys
from types import CodeType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.storage.digest import hashed, token

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["VERSION", "Import", "Reading", "read"]

#: What the meaning of bytecode depends on: "cpython-311".
VERSION: Final = sys.implementation.cache_tag or sys.implementation.name


class Import(NamedTuple):
    """An import statement: ``from ..name import a, b`` has level 2 and names ("a", "b")."""

    module: str
    level: int
    names: tuple[str, ...]


class Reading(NamedTuple):
    """What a code object and those inside of it say.

    digest      32 bytes
    globals     names that are looked up in the module
    attributes  names that are looked up in something else
    imports     import statements
    """

    digest: bytes
    globals: tuple[str, ...]
    attributes: tuple[str, ...]
    imports: tuple[Import, ...]


def read(code: CodeType) -> Reading:
    """Read `code`. Iterative: lambdas can be nested more deeply than calls."""
    order: list[CodeType] = []
    left = [code]
    while left:
        each = left.pop()
        order.append(each)
        left.extend([const for const in each.co_consts if isinstance(const, CodeType)])
    found = _Found({}, {}, {}, {})
    for each in reversed(order):  # those inside first
        found.digests[id(each)] = _Decoder(each, found).digest()
    return Reading(found.digests[id(code)], tuple(found.globals), tuple(found.attributes), tuple(found.imports))


# ── opcodes ───────────────────────────────────────────────────────────────────────────────────────────────────────

_OPS: Final[dict[str, int]] = opcode.opmap
_IMPORT_NAME: Final = _OPS["IMPORT_NAME"]
_STORE_NAME: Final = _OPS["STORE_NAME"]
_BACKWARDS: Final = frozenset(op for name, op in _OPS.items() if "BACKWARD" in name)
_GLOBALS: Final = frozenset(
    _OPS[name] for name in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") if name in _OPS
)
_ATTRIBUTES: Final = frozenset(
    _OPS[name] for name in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM") if name in _OPS
)
#: How many bits below the index of a name say how it is used.
_BITS: Final = {
    _OPS[name]: bits
    for name, bits, since in (
        ("LOAD_GLOBAL", 1, (3, 11)),
        ("LOAD_ATTR", 1, (3, 12)),
        ("LOAD_SUPER_ATTR", 2, (3, 12)),
    )
    if name in _OPS and sys.version_info >= since
}
#: Two instructions in one (3.13), their variables in the high and the low half of the argument.
_PAIRS: Final = {
    _OPS[f"{one}_{two}"]: (_OPS[one], _OPS[two])
    for one, two in (("LOAD_FAST", "LOAD_FAST"), ("STORE_FAST", "LOAD_FAST"), ("STORE_FAST", "STORE_FAST"))
    if f"{one}_{two}" in _OPS
}

_PLAIN, _NOTHING, _CONST, _NAME, _JUMP, _PAIR, _EXTENDED = range(7)


def _roles() -> list[int]:
    """By opcode, what its argument stands for."""
    roles = [_PLAIN] * 256
    for role, ops in (
        # `co_code` has caches zeroed, and the plain instructions where they were specialised
        (_NOTHING, [_OPS["CACHE"], _OPS["NOP"]]),
        (_CONST, opcode.hasconst),
        (_NAME, opcode.hasname),
        (_JUMP, [*opcode.hasjrel, *opcode.hasjabs]),
        (_PAIR, _PAIRS),
        (_EXTENDED, [_OPS["EXTENDED_ARG"]]),
    ):
        for op in ops:
            if op < len(roles):  # beyond are instructions that only the compiler knows
                roles[op] = role
    return roles


_ROLES: Final = _roles()
#: What class bodies store about their source, each a constant.
_ABOUT_SOURCE: Final = frozenset({"__doc__", "__firstlineno__", "__static_attributes__"})

_IS_FUNCTION: Final = 0x1 | 0x2  # optimized, new locals: a class's body is neither
#: And: *args, **kwargs, generator, coroutine, iterable coroutine, async generator.
_FLAGS: Final = _IS_FUNCTION | 0x4 | 0x8 | 0x20 | 0x80 | 0x100 | 0x200


# ── one code object ───────────────────────────────────────────────────────────────────────────────────────────────


class _Found(NamedTuple):
    digests: dict[int, bytes]  # by id of the code object
    globals: dict[str, None]
    attributes: dict[str, None]
    imports: dict[Import, None]


class _Decoder:
    """A code object's instructions, as numbers and texts: what each does and with what."""

    def __init__(self, code: CodeType, found: _Found) -> None:
        self._code = code
        self._found = found
        self._items: list[int | str] = []
        self._number: list[int] = []  # by code unit: how many instructions were kept before it

    def digest(self) -> bytes:
        code = self._code
        self._decode()
        told = (
            self._items,
            list(self._handlers()),
            code.co_flags & _FLAGS,
            (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
            (code.co_varnames, code.co_cellvars, code.co_freevars),
        )
        return hashed(b"code:", ascii(told).encode())

    def _decode(self) -> None:
        code, items, number, digests = self._code, self._items, self._number, self._found.digests
        consts, spelled = code.co_consts, code.co_names
        raw = code.co_code
        loaded: list[Any] = [None, None]  # the last two constants: an import finds its level and its names there
        jumps: list[tuple[int, int]] = []  # places in `items`, and the code unit that is jumped to
        extended = kept = 0
        for unit, (op, arg) in enumerate(zip(raw[::2], raw[1::2], strict=True)):
            number.append(kept)
            role = _ROLES[op]
            if role == _NOTHING:
                extended = 0
                continue
            if extended:
                arg |= extended  # noqa: PLW2901
                extended = 0
            if role == _PLAIN:
                items += (op, arg)
            elif role == _CONST:
                const = consts[arg]
                loaded = [loaded[1], const]
                digest = digests.get(id(const))
                items += (op, token(const).hex() if digest is None else digest.hex())
            elif role == _NAME:
                bits = _BITS.get(op, 0)
                name = spelled[arg >> bits]
                if op == _STORE_NAME and name in _ABOUT_SOURCE and not code.co_flags & _IS_FUNCTION:
                    del items[-2:]  # the constant that was to be stored
                    kept -= 1
                    continue
                self._note(op, name, loaded)
                items += (op, name, arg & ((1 << bits) - 1))
            elif role == _JUMP:
                start = unit + 1
                while raw[2 * start : 2 * start + 1] == b"\0":  # jumps are counted from behind their own caches
                    start += 1
                jumps.append((len(items) + 1, start - arg if op in _BACKWARDS else start + arg))
                items += (op, arg)
            elif role == _PAIR:
                one, two = _PAIRS[op]
                items += (one, arg >> 4, two, arg & 15)
                kept += 1
            else:  # _EXTENDED
                extended = arg << 8
                continue
            kept += 1
        number.append(kept)
        for place, target in jumps:
            items[place] = number[target]

    def _note(self, op: int, name: str, loaded: list[Any]) -> None:
        found = self._found
        if op in _GLOBALS:
            found.globals[name] = None
        elif op in _ATTRIBUTES:
            found.attributes[name] = None
        elif op == _IMPORT_NAME:
            level, names = loaded
            found.imports[Import(name, level if isinstance(level, int) else 0, names or ())] = None

    def _handlers(self) -> Iterator[tuple[int, int, int, int]]:
        """The exception table: from, to, the handler, and what it finds on the stack."""
        number = self._number
        fields: list[int] = []
        value = 0
        for byte in self._code.co_exceptiontable:  # numbers of base 64, the highest digit first, bit 6 for "goes on"
            value = value << 6 | byte & 63
            if not byte & 64:
                fields.append(value)
                value = 0
        for i in range(0, len(fields), 4):
            start, length, target, stack = fields[i : i + 4]
            yield number[start], number[start + length], number[target], stack
