"""Do two inputs mean the same? A digest of 32 bytes, equal exactly where a pure function could not tell the values apart.

A wrong hit gives somebody the result of other data and is never noticed; a miss costs one run of a task. So whatever is not
known to be told apart faithfully is refused (`Unhashable`), and in doubt two values differ:

* Types count: ``1``, ``True``, ``1.0``, ``"1"`` and ``b"1"`` are five values, a list is no tuple, and a subclass is not its base.
* The order of a dict counts, for it is what ``list(d)``, ``json.dumps(d)`` and a table's columns are made of; that of sets and
  of attributes does not. -0.0 differs from 0.0; one NaN is like another.
* An object is its class and all its state: fields, slots, attributes beside the fields. The value of a `cached_property` is one
  once it is there, for it may have been assigned. The class is its name, and for classes of the user's own also its code,
  because a method may be what the function calls.
* Objects that say themselves how they are to be stored (``__reduce__``, ``__getstate__``) are refused, unless they are of a kind
  known here (dataclasses, attrs, pydantic models), and so are those with state that Python cannot see. A class may bring
  its own word instead: ``__flow_digest__(self) -> bytes | str``.
* Functions count by their fingerprint; where that is unsure of something, they are refused.
* A path is its text, not what the file holds. A time zone is its key.
* Whether two parts of a value are one object does not count; that a part contains itself does.

Nothing depends on the process, its hash seed or the machine; `ascii` of plain values, which is what makes large flat lists
fast, is the same in all versions of Python. Not seen: state outside of the object (an index into a global table, a number that
stands for an open file) and changes made by another thread meanwhile.

How it is done: bottom up, over a stack of our own, so that depth costs nothing. A small value is written out as a *token*
(tag, length, content), everything else as its hash; a container's is the hash of its children's tokens. Digests of shared
parts are remembered; a part that contains itself is told by how many levels up it was seen. `Walk` is also what fingerprints
of code are made with (``fingerprint``), which refers to functions by name and accepts what is refused here.
"""

from __future__ import annotations

import sys
from hashlib import blake2b
from struct import pack
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

from flowlane.errors import with_article
from flowlane.loader import is_user_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Unhashable", "Walk", "digest", "hashed", "is_user_module", "joined", "sealed", "token"]


class Unhashable(Exception):
    """A value that cannot be told from others faithfully. `path` leads to it (``['cfg'].session``, "" for the value itself),
    `type` is its class's name, and `reason` says what is the matter.
    """

    def __init__(self, path: str, type: str, reason: str) -> None:
        super().__init__(f"{path or 'the value'} ({type}) {reason}")
        self.path = path
        self.type = type
        self.reason = reason


class Code(Protocol):
    """What a digest wants to know of a function or class; see ``fingerprint.Fingerprint``."""

    @property
    def digest(self) -> bytes: ...
    @property
    def unsure(self) -> tuple[str, ...]: ...


def digest(value: object, code: Callable[[Any], Code] | None = None) -> bytes:
    """The digest of `value`: 32 bytes. Raises Unhashable.

    `code` gives the fingerprint of a function or class that is met, by default ``fingerprint.fingerprint``; pass one that
    remembers where values hold objects of the user's classes (a fingerprint costs some 100 µs and more).
    """
    return hashed(b"value:", token(value, code))


def token(value: object, code: Callable[[Any], Code] | None = None) -> bytes:
    """What `digest` hashes: one that can be joined to others, and short for small plain values."""
    leaf = _LEAVES.get(id(class_of(value)))
    return leaf(value) if leaf is not None else Walk(code).token(value)


#: `type` of one argument, for checkers.
class_of: Final = cast("Callable[[object], type[Any]]", type)


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────

#: Longer contents are hashed at once, so that tokens are cheap to join and to sort. Less than 255, which marks a hash.
_INLINE_MAX: Final = 64


def hashed(*parts: bytes) -> bytes:
    """BLAKE2b of `parts` one after the other; 32 bytes."""
    return blake2b(b"".join(parts), digest_size=32).digest()


def sealed(tag: bytes, content: bytes) -> bytes:
    """A token: `content` under a tag of one byte, so that no two of different tag or content are alike or run together."""
    size = len(content)
    if size <= _INLINE_MAX:
        return tag + size.to_bytes(1, "little") + content
    return tag + b"\xff" + blake2b(content, digest_size=32).digest()


def joined(parts: Iterable[bytes]) -> bytes:
    """`parts` as one, each under its length: ``ab, c`` is not ``a, bc``."""
    return b"".join([len(part).to_bytes(8, "little") + part for part in parts])


def _int(value: int) -> bytes:
    return sealed(b"i", value.to_bytes((value.bit_length() >> 3) + 1, "little", signed=True))


def _double(value: float) -> bytes:
    return b"nan" if value != value else pack("<d", value)


def _str(value: str) -> bytes:
    try:
        return sealed(b"s", value.encode())
    except UnicodeEncodeError:  # lone surrogates, as os.listdir makes them
        return sealed(b"s", value.encode("utf-8", "surrogatepass"))


_Leaf: TypeAlias = "Callable[[Any], bytes]"
#: By id of the class: to look a class up by itself would ask its metaclass for a hash, and that may be the user's.
_LEAVES: Final[dict[int, _Leaf]] = {
    id(type(None)): lambda value: b"N\0",  # noqa: ARG005 - one value only, as those below
    id(type(...)): lambda value: b".\0",  # noqa: ARG005
    id(type(NotImplemented)): lambda value: b"!\0",  # noqa: ARG005
    id(bool): lambda value: b"B\1\1" if value else b"B\1\0",
    id(int): _int,
    id(float): lambda value: sealed(b"f", _double(value)),
    id(complex): lambda value: sealed(b"j", joined((_double(value.real), _double(value.imag)))),
    id(str): _str,
    id(bytes): lambda value: sealed(b"b", value),
    id(bytearray): lambda value: sealed(b"y", value),
}
if sys.version_info >= (3, 13):  # what every type parameter without a default refers to
    from typing import NoDefault

    _LEAVES[id(type(NoDefault))] = lambda value: b"!\1D"  # noqa: ARG005

# ── the walk ──────────────────────────────────────────────────────────────────────────────────────────────────────

#: How the i-th child of a container is reached: "[3]", ".name".
_Label: TypeAlias = "Callable[[int], str]"


class Opened:
    """A container at work.

    kind       what it is, apart from its children
    children   in order; `label` tells how each is reached
    unordered  the children's order says nothing
    """

    __slots__ = ("children", "kind", "label", "lowest", "tokens", "unordered", "value")

    def __init__(
        self, kind: bytes, children: Sequence[Any], label: _Label | None = None, *, unordered: bool = False
    ) -> None:
        self.kind = kind
        self.children = children
        self.label = label
        self.unordered = unordered
        self.tokens: list[bytes] = []
        self.value: Any = None
        self.lowest = sys.maxsize  # the outermost level that something inside refers back to

    def close(self) -> bytes:
        tokens = sorted(self.tokens) if self.unordered else self.tokens
        size = len(self.kind).to_bytes(4, "little") + len(tokens).to_bytes(8, "little")
        return b"c\xff" + blake2b(b"".join((size, self.kind, *tokens)), digest_size=32).digest()


#: Objects that refer to each other in circles can be walked in exponentially many ways; beyond this it is given up.
_MAX_AGAIN: Final = 20_000


class Walk:
    """Makes tokens of values. What was digested is kept alive, and known again, for as long as the walk."""

    def __init__(self, code: Callable[[Any], Code] | None = None) -> None:
        self._code = code
        self._done: dict[int, tuple[bytes, Any]] = {}  # by id; the value is kept, lest the id come to mean another
        self._stack: list[Opened] = []
        self._level: dict[int, int] = {}  # of the containers at work, by id
        self._loose: dict[int, Any] = {}  # those whose digest holds only where they were met
        self._again = 0
        self._kinds: dict[int, tuple[bytes, type]] = {}  # by id of the class

    # ── what a fingerprint of code does otherwise ────────────────────────────────────────────────────────────────

    def refer(self, value: Any) -> bytes:
        """The token of a function, class or module."""
        mro = mro_of(class_of(value))
        if among(mro, type):
            return self.kind(value)
        if among(mro, ModuleType):
            return self.unknown(value, "is a module, and what it holds may change")
        found = self._fingerprint(value)
        if found.unsure:
            return self.unknown(value, f"uses {found.unsure[0]}, which cannot be told from others faithfully")
        return sealed(b"F", found.digest)

    def kind(self, cls: type) -> bytes:
        """The token of a class: its name, and its code if it is the user's."""
        known = self._kinds.get(id(cls))
        if known is None:
            name = name_of(cls).encode("utf-8", "surrogatepass")
            code = self._fingerprint(cls).digest if is_user_module(place_of(cls)[0]) else b""
            known = self._kinds[id(cls)] = (sealed(b"T", joined((name, code))), cls)
        return known[0]

    def unknown(self, value: Any, reason: str) -> bytes:
        """The token of what cannot be told faithfully, or Unhashable."""
        raise Unhashable(self.path(), name_of(class_of(value)), reason)

    def _fingerprint(self, value: Any) -> Code:
        if self._code is None:
            from flowlane.storage.fingerprint import fingerprint

            self._code = fingerprint
        return self._code(value)

    # ── the walk itself ──────────────────────────────────────────────────────────────────────────────────────────

    def token(self, value: Any) -> bytes:
        """The token of `value`. Raises Unhashable, after which the walk is of no more use."""
        stack, done, level = self._stack, self._done, self._level
        bottom = len(stack)
        while True:
            leaf = _LEAVES.get(id(class_of(value)))
            if leaf is not None:
                out = leaf(value)
            elif (known := done.get(id(value))) is not None:
                out = known[0]
            elif (seen := level.get(id(value))) is not None:
                out = sealed(b"^", (len(stack) - seen).to_bytes(8, "little"))
                stack[-1].lowest = min(stack[-1].lowest, seen)
            elif id(value) in self._loose and self._too_often():
                out = self.unknown(value, "is among objects that refer to each other in too many circles")
            else:
                opened = self._open(value)
                if isinstance(opened, Opened):
                    opened.value = value
                    level[id(value)] = len(stack)
                    stack.append(opened)
                    if opened.children:
                        value = opened.children[0]
                        continue
                    out = self._close()
                else:
                    out = opened
                    done[id(value)] = (out, value)
            while True:
                if len(stack) == bottom:
                    return out
                top = stack[-1]
                top.tokens.append(out)
                if len(top.tokens) < len(top.children):
                    value = top.children[len(top.tokens)]
                    break
                out = self._close()

    def _close(self) -> bytes:
        top = self._stack.pop()
        own = len(self._stack)
        ident = id(top.value)
        del self._level[ident]
        out = top.close()
        if top.lowest >= own:  # nothing inside refers to anything further out: it means the same everywhere
            self._done[ident] = (out, top.value)
        else:
            self._loose[ident] = top.value
            above = self._stack[-1]
            above.lowest = min(above.lowest, top.lowest)
        return out

    def _too_often(self) -> bool:
        self._again += 1
        return self._again > _MAX_AGAIN

    def path(self) -> str:
        """Where the walk is."""
        steps = [each.label(len(each.tokens)) for each in self._stack if each.label is not None]
        return "".join(steps)

    def _open(self, value: Any) -> Opened | bytes:
        """A container with its children, or at once a token."""
        opener = _OPENERS.get(id(class_of(value)))
        return opener(self, value) if opener is not None else known_class(class_of(value)).opener(self, value)


Opener: TypeAlias = "Callable[[Walk, Any], Opened | bytes]"

#: Classes are read past whatever their metaclasses define.
mro_of: Final[Callable[[type], tuple[type, ...]]] = type.__dict__["__mro__"].__get__
dict_of: Final[Callable[[type], Any]] = type.__dict__["__dict__"].__get__
bases_of: Final[Callable[[type], tuple[type, ...]]] = type.__dict__["__bases__"].__get__
_module_of: Final[Callable[[type], Any]] = type.__dict__["__module__"].__get__
_qualname_of: Final[Callable[[type], str]] = type.__dict__["__qualname__"].__get__


def among(mro: tuple[type, ...], cls: type) -> bool:
    """Whether `cls` is one of `mro`. By identity: ``in`` would ask metaclasses."""
    return any(each is cls for each in mro)


def place_of(cls: type) -> tuple[str, str]:
    """Module and qualified name of a class."""
    try:
        module = _module_of(cls)
    except AttributeError:  # one that C made without
        module = ""
    return module if type(module) is str else "", _qualname_of(cls)


def name_of(cls: type) -> str:
    """The qualified name of a class, with its module unless that is builtins."""
    module, name = place_of(cls)
    return name if module in ("builtins", "") else f"{module}.{name}"


_scope_of: Final[Callable[[ModuleType], dict[str, Any]]] = vars(ModuleType)["__dict__"].__get__


def scope_of(module: Any) -> dict[str, Any]:
    """What is in a module, read past a ``__getattribute__``: a lazy one would load. Empty for anything else."""
    return _scope_of(module) if among(mro_of(class_of(module)), ModuleType) else {}


def is_user_module(name: str) -> bool:
    """Whether the module called `name` is the user's own: not of the standard library, installed, or ours."""
    if name.partition(".")[0] in sys.stdlib_module_names:
        return False
    scope = scope_of(sys.modules.get(name))
    file: Any = scope.get("__file__")
    if not isinstance(file, str) or file.startswith("<"):
        # a namespace package, or none that was loaded from a file: `python -c`, a notebook, a class that travelled by value
        places = list(scope.get("__path__", ()))
        file = places[0] if places else "user"
    return is_user_code(file, name)


# ── plain containers ──────────────────────────────────────────────────────────────────────────────────────────────

#: `ascii` of a container of these tells all there is, in C. Not bytes, of which it makes four times as many.
_FLAT: Final = frozenset({int, float, str, bool, type(None)})


def index_label(i: int) -> str:
    return f"[{i}]"


def no_label(i: int) -> str:  # noqa: ARG001 - a part that has no name of its own
    return ""


def _flat(tag: bytes, value: Any) -> bytes | None:
    try:
        return sealed(tag, ascii(value).encode())
    except ValueError:  # an int of more digits than Python is willing to write
        return None


def _open_list(_: Walk, value: list[Any]) -> Opened | bytes:
    if _FLAT.issuperset(map(type, value)):
        flat = _flat(b"L", value)
        if flat is not None:
            return flat
    return Opened(b"list", value.copy(), index_label)


def _open_tuple(_: Walk, value: tuple[Any, ...]) -> Opened | bytes:
    if _FLAT.issuperset(map(type, value)):
        flat = _flat(b"U", value)
        if flat is not None:
            return flat
    return Opened(b"tuple", value, index_label)


def _open_dict(_: Walk, value: dict[Any, Any]) -> Opened | bytes:
    if _FLAT.issuperset(map(type, value)) and _FLAT.issuperset(map(type, value.values())):
        flat = _flat(b"D", value)
        if flat is not None:
            return flat
    return open_pairs(b"dict", value)


def open_pairs(kind: bytes, value: dict[Any, Any]) -> Opened:
    """Keys and values in turn."""
    children = [each for pair in value.items() for each in pair]

    def label(i: int) -> str:
        key = children[i & ~1]
        shown = repr(key) if type(key) in _FLAT else f"<{type(key).__name__}>"
        return f"[{shown}]" if i & 1 else f".key({shown})"

    return Opened(kind, children, label)


def _open_set(_: Walk, value: Any) -> Opened:
    return Opened(type(value).__name__.encode(), list(value), no_label, unordered=True)


# ── objects ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _set_of(value: frozenset[Any]) -> Any:
    return frozenset[Any]().union(value)


#: What a class may be derived from and still be an open book. The function gives what the base holds, past any override.
_BASES: Final[dict[int, Callable[[Any], Any]]] = {
    id(int): int.__int__,
    id(float): float.__float__,
    id(str): str.__str__,
    id(bytes): lambda value: bytes.__getitem__(value, slice(None)),
    id(tuple): lambda value: cast("Any", tuple).__getitem__(value, slice(None)),
    id(list): cast("Any", list).copy,
    id(dict): cast("Any", dict).copy,
    id(set): _set_of,
    id(frozenset): _set_of,
}
_STORED_OTHERWISE: Final = ("__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs_ex__", "__getnewargs__")
#: Their classes write such methods themselves, and keep all their state in fields and attributes.
_KNOWN_KINDS: Final = ("__dataclass_fields__", "__pydantic_fields__", "__attrs_attrs__")
_POINTER: Final = 8
#: Where instances keep things, past metaclasses.
_of_layout: Final[list[Callable[[type], int]]] = [
    vars(type)[name].__get__ for name in ("__basicsize__", "__dictoffset__", "__weakrefoffset__")
]


class _Layout:
    """How instances of a class keep their state.

    base     the built-in class that it derives from, or None
    members  slots, by name, with what reads them
    scope    reads ``__dict__``, or None
    problem  why instances cannot be read, or ""
    """

    __slots__ = ("base", "members", "problem", "scope")

    def __init__(self, cls: type) -> None:
        mro = mro_of(cls)
        self.base: type | None = next((each for each in mro if id(each) in _BASES), None)
        self.members: list[tuple[str, MemberDescriptorType]] = []
        self.scope: GetSetDescriptorType | None = None
        for each in mro:
            for name, member in dict_of(each).items():
                if type(member) is MemberDescriptorType:
                    self.members.append((name, member))
                elif name == "__dict__" and type(member) is GetSetDescriptorType:
                    self.scope = self.scope or member
        self.problem = self._problem(cls, mro)

    def _problem(self, cls: type, mro: tuple[type, ...]) -> str:
        base = self.base or object
        if cls is object:
            return "is nothing but its identity"
        # as object.__reduce_ex__ tells it: whatever is larger than what Python put there has state of C's
        basic, scope, weak = (read(cls) for read in _of_layout)
        size = base.__basicsize__ + _POINTER * len(self.members)
        size += _POINTER * (scope > 0 or (base.__itemsize__ > 0 and scope != 0)) + _POINTER * (weak > 0)
        if basic > size:
            return "has state that Python cannot see"
        if any(name in dict_of(each) for name in _KNOWN_KINDS for each in mro):
            return ""
        if base is tuple and any("_fields" in dict_of(each) for each in mro):  # a NamedTuple
            return ""
        for name in _STORED_OTHERWISE:
            owner = next((each for each in mro if name in dict_of(each)), object)
            if owner is not object and owner is not base:
                return f"says itself how it is stored ({name_of(owner)}.{name}); give its class a __flow_digest__"
        return ""


class _Class:
    """What is known of a class whose instances were met."""

    __slots__ = ("_layout", "cls", "opener")

    def __init__(self, cls: type) -> None:
        self.cls = cls  # kept, lest its id come to mean another
        self.opener = _opener_for(cls)
        self._layout: _Layout | None = None

    @property
    def layout(self) -> _Layout:
        if self._layout is None:
            self._layout = _Layout(self.cls)
        return self._layout


#: By id. Forgotten now and then, for a program may make classes without end.
_CLASSES: Final[dict[int, _Class]] = {}
_MAX_CLASSES: Final = 2000


def known_class(cls: type) -> _Class:
    """What is known of `cls`, from then on."""
    known = _CLASSES.get(id(cls))
    if known is None:
        known = _Class(cls)
        if len(_CLASSES) >= _MAX_CLASSES:
            _CLASSES.clear()
        _CLASSES[id(cls)] = known
    return known


def _opener_for(cls: type) -> Opener:
    mro = mro_of(cls)
    if any("__flow_digest__" in dict_of(each) for each in mro):
        return _open_told
    if among(mro, type) or among(mro, ModuleType):
        return _refer
    from flowlane.storage import families

    return families.opener_for(cls, mro) or open_object


def open_object(walk: Walk, value: Any) -> Opened | bytes:
    cls = class_of(value)
    layout = known_class(cls).layout
    if layout.problem:
        return walk.unknown(value, layout.problem)
    names: list[str] = []
    children: list[Any] = []
    if layout.base is not None:
        names.append("")
        children.append(_BASES[id(layout.base)](value))
    if layout.scope is not None:
        scope: dict[str, Any] = layout.scope.__get__(value, cls)
        for name in sorted(scope, key=str):
            names.append(name)
            children.append(scope[name])
    for name, member in layout.members:
        try:
            held = member.__get__(value, cls)
        except AttributeError:  # a slot that was never filled
            continue
        names.append(name)
        children.append(held)
    kind = b"object" + walk.kind(cls) + joined([str(name).encode("utf-8", "surrogatepass") for name in names])
    return Opened(kind, children, lambda i: f".{names[i]}" if names[i] else "")


def _open_told(walk: Walk, value: Any) -> Opened | bytes:
    """An object whose class says what tells its instances apart."""
    cls = class_of(value)
    try:
        told: object = value.__flow_digest__()
    except Exception as error:  # noqa: BLE001 - the user's code
        return walk.unknown(value, f"has a __flow_digest__ that raised {type(error).__name__}")
    if not isinstance(told, (bytes, str)):
        return walk.unknown(
            value, f"has a __flow_digest__ that returned {with_article(type(told).__name__)}, not bytes or str"
        )
    return Opened(b"told" + walk.kind(cls), [told])


def _refer(walk: Walk, value: Any) -> bytes:
    return walk.refer(value)


_OPENERS: Final[dict[int, Opener]] = {
    id(list): _open_list,
    id(tuple): _open_tuple,
    id(dict): _open_dict,
    id(set): _open_set,
    id(frozenset): _open_set,
    id(FunctionType): _refer,
    id(type): _refer,
    id(ModuleType): _refer,
}
