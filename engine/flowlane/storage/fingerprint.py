"""Does a function do the same as before? A digest of its code, and of all code and constants of the user's own that it reaches.

Reached is what can be reached by name: globals that the code looks up, attributes of the user's modules (``helpers.clean``),
what it imports for itself, defaults, closure cells and a function's own attributes (``fn.base``), the function under a decorator
(``__wrapped__``, ``partial``, a task's ``fn``), and from each function found so, onwards. Of a class everything counts, its bases
included, since nobody can tell which of its methods an instance will be asked for. A module that a global names is not
swallowed whole: a function beside those that are reached may change. One that is a *value* (in a table, a default, a cell, an
attribute) is, with the modules of the user's in it: nobody can tell what it will be asked for.

Annotations count where something may act on them: those of classes, and of functions that another one holds in ``__wrapped__``
or in a closure cell, as decorators do. Where they are text, what its names stand for counts as well. Those of other
functions do not.

Each such function, class, constant and swallowed module is a *part*, digested by itself; parts refer to one another by name, so
circles end. A part's name is its place: ``clean``, ``Reader.rows``, ``LIMIT``, and with its module where that is not the module
of the function asked about (``helpers.clean``). The fingerprint is that of all parts, and they are kept, to tell what changed.

What a part says is read from objects in memory, never from the source file, which may have been edited since (see
``bytecode``). No code of the user's is run: attributes are read past properties and metaclasses; only ``__flow_digest__`` is
called, whose purpose it is.

Not the user's own is what is installed, the standard library, and flowlane. Of Python the minor version counts, and of an
installed package its ``__version__`` where a part names it, or something from it, at the level of the module; nobody searches
for the version of a package that does not say it so.

Cannot be known: what is reached by ``getattr(module, name)``, ``importlib``, ``eval``, or as a method of an object that comes as
an argument (whose digest has its class, see ``digest``). *Unsure* is a constant that cannot be told faithfully, such as an open
file or a lock: only its type counts, and `Fingerprint.unsure` names it, to be told once. Loggers pass without a word.

A module that is imported inside a function and was not loaded yet counts as the text of its file, and is unsure: what it
imports is not looked at.
"""

from __future__ import annotations

import re
import sys
from collections import deque
from dataclasses import dataclass
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from flowlane.loader import is_user_code
from flowlane.storage.bytecode import VERSION, read
from flowlane.storage.digest import (
    Walk,
    among,
    bases_of,
    class_of,
    dict_of,
    hashed,
    is_user_module,
    joined,
    known_class,
    mro_of,
    name_of,
    place_of,
    scope_of,
    sealed,
)
from flowlane.storage.families import told_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flowlane.storage.bytecode import Import

__all__ = ["Fingerprint", "fingerprint"]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a function did when it was taken.

    digest  32 bytes; equal while the function does the same
    parts   by name, a short digest of each part, sorted; for packages and Python the version
    unsure  what was only taken by its type: "LOCK (_thread.lock)"
    """

    digest: bytes
    parts: Mapping[str, str]
    unsure: tuple[str, ...]


def fingerprint(fn: Any) -> Fingerprint:
    """The fingerprint of a function, or of anything else that can be called; of a class, too.

    Never raises, and runs no code of the user's. Costs some 100 µs for a function of ten lines and as much again for each
    function that it reaches: keep it for as long as the code cannot change, that is for a run.
    """
    return _Code(fn).fingerprint()


#: Hexadecimal digits of a part's digest: enough to tell a change.
_SHORT: Final = 12
#: What every module has, and what says where it is and not what it does.
_OF_MODULES: Final = frozenset(
    "__name__ __file__ __doc__ __package__ __spec__ __loader__ __path__ __cached__ __builtins__".split()
)
#: Objects of these packages say nothing about a result, or cannot be looked into and say what follows from other parts.
_SILENT: Final = frozenset(("logging", "structlog", "loguru", "flowlane", "pydantic_core"))


class _Code(Walk):
    """One walk over code, part by part."""

    def __init__(self, root: Any) -> None:
        super().__init__()
        self._root = root
        self._home = _module_of(root)
        self._names: dict[int, str] = {}  # of parts, by id of what they are of
        self._kept: dict[str, Any] = {}  # what parts are of, by name
        self._constants: dict[tuple[str, str], str] = {}  # their names as parts, by module and name
        self._todo: deque[tuple[str, Any]] = deque()
        self._parts: dict[str, bytes] = {}
        self._versions: dict[str, str] = {"python": VERSION}
        self._unsure: dict[str, None] = {}
        self._place = ""  # what is being told now
        self._quiet = False  # whether it is something that the user did not write

    def fingerprint(self) -> Fingerprint:
        root = self.token(self._root)
        while self._todo:
            name, value = self._todo.popleft()
            if class_of(value) is FunctionType:
                told = self._function(name, value)
            elif among(mro_of(class_of(value)), type):
                told = self._class(name, value)
            else:
                told = self._module(name, value)
            self._parts[name] = hashed(b"part:", told)
        parts = dict(sorted(self._parts.items()))
        shown = {name: digest.hex()[:_SHORT] for name, digest in parts.items()}
        versions = dict(sorted(self._versions.items()))
        whole = [root, *[_text(text) for pair in versions.items() for text in pair]]
        for name, digest in parts.items():
            whole += (_text(name), digest)
        return Fingerprint(hashed(b"code:", joined(whole)), {**shown, **versions}, tuple(self._unsure))

    # ── what is met ──────────────────────────────────────────────────────────────────────────────────────────────

    def refer(self, value: Any) -> bytes:
        """A function, class or module, by name. What is the user's becomes a part."""
        if among(mro_of(class_of(value)), ModuleType):
            name = str(scope_of(value).get("__name__"))
            if is_user_module(name):  # as a value: as a global, `_bound` has it
                return sealed(b"R", _text(self._part(name, "", value)))
            self._version(name)
            return sealed(b"M", _text(name))
        if class_of(value) is FunctionType:
            module = str(value.__globals__.get("__name__", ""))
            users = _is_user_function(value, module)
            # `wraps` gives a wrapper the name of what it wraps; code that was generated is named by hand
            name = value.__qualname__ if value.__code__.co_filename.startswith("<") else value.__code__.co_qualname
            if not users:
                self._version(module)
                # one that was made around something of the user's, as decorators do, is a part by what it holds
                if not value.__closure__ and "__wrapped__" not in value.__dict__:
                    return sealed(b"E", joined((_text(module), _text(name))))
        else:
            module, name = place_of(value)
            if not is_user_module(module):
                self._version(module)
                return sealed(b"E", joined((_text(module), _text(name))))
        return sealed(b"R", _text(self._part(module, name, value)))

    def kind(self, cls: type) -> bytes:
        return self.refer(cls)

    def unknown(self, value: Any, reason: str) -> bytes:  # noqa: ARG002
        cls = class_of(value)
        name = name_of(cls)
        scope = known_class(cls).layout.scope
        wrapped: Any = scope.__get__(value, cls).get("__wrapped__") if scope is not None else None
        if class_of(wrapped) is FunctionType:  # under a decorator that is an object, as those of compilers are
            return sealed(b"W", joined((_text(name), self.refer(wrapped), self.token(_annotations(wrapped)))))
        if not self._quiet and cls is not object and name.partition(".")[0] not in _SILENT:
            self._unsure[f"{self._place}{self.path()} ({name})"] = None
        return sealed(b"?", _text(name) + (self.kind(cls) if is_user_module(place_of(cls)[0]) else b""))

    def _part(self, module: str, name: str, value: Any) -> str:
        known = self._names.get(id(value))
        if known is None:
            known = self._names[id(value)] = self._free(self._named(module, name))
            self._kept[known] = value
            self._todo.append((known, value))
        return known

    def _free(self, wanted: str) -> str:
        """`wanted`, or with a number where there is one of that name: closures of one factory, lambdas."""
        name = wanted
        count = 1
        while name in self._kept:
            count += 1
            name = f"{wanted}#{count}"
        return name

    def _named(self, module: str, name: str) -> str:
        if module == self._home and name:
            return name
        return ".".join(filter(None, (module.removeprefix("_flow_"), name)))

    def _version(self, module: str) -> None:
        root = module.partition(".")[0]
        if root in sys.stdlib_module_names or root in _SILENT:
            return
        version = scope_of(sys.modules.get(root)).get("__version__")
        if isinstance(version, str):
            self._versions[root] = version

    # ── what parts say ───────────────────────────────────────────────────────────────────────────────────────────

    def _function(self, name: str, fn: FunctionType) -> bytes:
        scope = fn.__globals__
        module = str(scope.get("__name__", ""))
        told = [b"function"]
        users = _is_user_function(fn, module)
        self._quiet = module.partition(".")[0] in sys.stdlib_module_names
        told += self._held(name, fn)
        if users:
            reading = read(fn.__code__)
            told.append(reading.digest)
            for each in reading.globals:
                if each in scope and each not in _OF_MODULES:
                    told += (_text(each), self._bound(each, scope[each], module, reading.attributes, set()))
            for what in reading.imports:
                told += self._imported(name, what, scope, reading.attributes)
        else:
            told += (_text(module), _text(fn.__code__.co_qualname))
        return joined(told)

    def _held(self, name: str, fn: FunctionType) -> Iterator[bytes]:
        """What a function holds beside its code."""
        self._place = f"{name}.__defaults__"
        yield self.token(fn.__defaults__)
        self._place = f"{name}.__kwdefaults__"
        yield self.token(fn.__kwdefaults__)
        for variable, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            self._place = f"{variable} of {name}"
            yield _text(variable)
            yield from self._content(name, cell)
        for attribute, value in sorted(fn.__dict__.items(), key=lambda pair: str(pair[0])):
            self._place = f"{name}.{attribute}"
            yield _text(str(attribute))
            yield self.token(value)
        yield from self._hints(name, fn.__dict__.get("__wrapped__"))

    def _content(self, name: str, cell: CellType) -> Iterator[bytes]:
        try:
            content: Any = cell.cell_contents
        except ValueError:  # not assigned yet
            return
        yield self.token(content)
        yield from self._hints(name, content)

    def _hints(self, name: str, fn: Any) -> Iterator[bytes]:
        """The annotations of a function that is held by another, which may act on them."""
        if class_of(fn) is FunctionType:
            self._place = f"annotations of what {name} holds"
            yield from self._annotated(_annotations(fn), fn.__globals__)

    def _annotated(self, annotations: Any, scope: dict[str, Any]) -> Iterator[bytes]:
        yield self.token(annotations)
        if class_of(annotations) is not dict:
            return
        module = str(scope.get("__name__", ""))
        for text in annotations.values():
            if class_of(text) is str:
                names = tuple(dict.fromkeys(_NAMES.findall(text)))
                for each in names:
                    if each in scope and each not in _OF_MODULES:
                        yield _text(each)
                        yield self._bound(each, scope[each], module, names, set())

    def _bound(self, name: str, value: Any, module: str, attributes: tuple[str, ...], seen: set[int]) -> bytes:
        """What a name of a module stands for. Of a user's module: whatever in it may be meant by one of `attributes`."""
        mro = mro_of(class_of(value))
        if among(mro, ModuleType):
            inner = scope_of(value)
            its_name = str(inner.get("__name__"))
            if not is_user_module(its_name):
                return self.refer(value)
            told = [b"module", _text(its_name)]
            if id(value) not in seen:
                seen.add(id(value))
                for each in attributes:
                    if each in inner and each not in _OF_MODULES:
                        told += (_text(each), self._bound(each, inner[each], its_name, attributes, seen))
            return sealed(b"M", joined(told))
        if among(mro, type) or among(_REFERENCES, mro[0]) or name_of(mro[0]).startswith(_REFERRING):
            self._place = self._named(module, name)
            return self.token(value)
        return self._constant(name, value, module)

    def _constant(self, name: str, value: Any, module: str) -> bytes:
        known = self._constants.get((module, name))
        if known is None:
            known = self._constants[module, name] = self._free(self._named(module, name))
            self._kept[known] = value
            self._place = known
            self._parts[known] = hashed(b"constant:", self.token(value))
        return sealed(b"R", _text(known))

    def _class(self, name: str, cls: type) -> bytes:
        told = [b"class", self.refer(class_of(cls)), *[self.refer(base) for base in bases_of(cls)]]
        for attribute, value in sorted(_members(cls), key=lambda pair: pair[0]):
            self._place = f"{name}.{attribute}"
            self._quiet = attribute.startswith("__")
            told += (_text(attribute), self.token(value))
        self._place = f"{name}.__annotations__"
        self._quiet = False
        told += self._annotated(dict_of(cls).get("__annotations__"), scope_of(sys.modules.get(place_of(cls)[0])))
        return joined(told)

    def _module(self, name: str, module: ModuleType) -> bytes:
        """All of a module: what its names stand for."""
        told = [b"module"]
        self._place = name
        self._quiet = False
        if class_of(module) is not ModuleType:
            told.append(self.kind(class_of(module)))
            if name_of(class_of(module)) == "importlib.util._LazyModule":
                told.append(self.unknown(module, "is not loaded yet"))
        scope = scope_of(module)
        for each in sorted(scope, key=str):
            if each not in _OF_MODULES:
                value = scope[each]
                inner = among(mro_of(class_of(value)), ModuleType)
                held = self.refer(value) if inner else self._bound(each, value, str(scope.get("__name__")), (), set())
                told += (_text(str(each)), held)
        return joined(told)

    # ── imports inside of functions ──────────────────────────────────────────────────────────────────────────────

    def _imported(self, name: str, what: Import, scope: dict[str, Any], attributes: tuple[str, ...]) -> Iterator[bytes]:
        full = what.module
        if what.level:
            package = str(scope.get("__package__") or "").split(".")
            full = ".".join([*package[: len(package) - what.level + 1], *([full] if full else [])])
        # `import a.b` binds a; `from a import b` may mean a module a.b
        for each in dict.fromkeys((full.partition(".")[0], full, *[f"{full}.{named}" for named in what.names])):
            if each.partition(".")[0] in sys.stdlib_module_names:
                continue
            module = sys.modules.get(each)
            if module is not None:
                # the version of an installed package would count only once it is loaded
                if is_user_module(each):
                    yield self._bound(each, module, each, attributes, set())
            else:
                text = _text_of_file(each)
                if text is not None:
                    self._parts[self._named(each, "")] = hashed(b"file:", text)
                    self._unsure[f"{each} (imported by {name} when it runs)"] = None


#: What a name stands for rather than has as its value, so that it is no part by itself.
_REFERENCES: Final = (FunctionType, BuiltinFunctionType, MethodType)
_REFERRING: Final = ("functools._lru_cache_wrapper", "flowlane.")

#: What Python keeps in every class; and what follows from the rest, or tells where it stands.
_OF_CLASSES: Final = frozenset(
    "__dict__ __weakref__ __module__ __qualname__ __doc__ __firstlineno__ __static_attributes__ __slotnames__ "
    "__abstractmethods__ _abc_impl __annotations_cache__ __signature__".split()
)


#: What an enum keeps its members in; they are told by themselves.
_OF_ENUMS: Final = frozenset(
    "_member_map_ _member_names_ _value2member_map_ _hashable_values_ _unhashable_values_ _unhashable_values_map_".split()
)


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """What a class says, by name."""
    scope = dict_of(cls)
    members: dict[str, Any] = scope.get("_member_map_", {})
    for name, value in scope.items():
        if name in _OF_CLASSES or name.startswith("__pydantic_") or _generated(value):
            continue
        if members and name in _OF_ENUMS:
            continue
        yield name, value
    if members:
        yield "members", [(name, told_of(member)[1]) for name, member in members.items()]
    if "__pydantic_fields__" in scope:  # pydantic takes fields out of the class, and wraps what validates them
        yield "fields", scope["__pydantic_fields__"]
        decorators: Any = scope.get("__pydantic_decorators__")
        for kind in ("validators", "field_validators", "root_validators", "field_serializers", "model_serializers"):
            for name, each in getattr(decorators, kind, {}).items():
                yield f"{kind} {name}", each.info


def _generated(value: Any) -> bool:
    """Whether a member of a class was written by `dataclasses`: it follows from the fields."""
    if class_of(value) is FunctionType:
        value = value.__dict__.get("__wrapped__", value)  # __repr__ is guarded against recursion
    if class_of(value) is not FunctionType:
        return False
    inner: FunctionType = value
    return inner.__code__.co_qualname.startswith("__create_fn__.") or inner.__globals__["__name__"] == "dataclasses"


_NAMES: Final = re.compile(r"[^\W\d]\w*")


def _annotations(fn: FunctionType) -> Any:
    """The annotations of a function; from 3.14 on, the code that makes them, which is not run."""
    annotate: Any = getattr(fn, "__annotate__", None)
    return fn.__annotations__ if annotate is None else annotate


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _is_user_function(fn: FunctionType, module: str) -> bool:
    file = fn.__code__.co_filename
    return is_user_module(module) if file.startswith("<") else is_user_code(file, module)


def _module_of(root: Any) -> str:
    """The name of the module that `root` stands in, as well as can be told."""
    for _ in range(100):
        mro = mro_of(class_of(root))
        inner: Any = None
        if mro[0] is FunctionType:
            module = str(root.__globals__.get("__name__", ""))
            inner = None if _is_user_function(root, module) else root.__dict__.get("__wrapped__")
            if inner is None:
                return module
        elif among(mro, type):
            return place_of(root)[0]
        elif mro[0] is MethodType:
            inner = root.__func__
        elif name_of(mro[0]) == "functools.partial":
            inner = root.func
        elif name_of(mro[0]).startswith(_REFERRING):
            inner = root.__dict__.get("fn") or root.__dict__.get("__wrapped__")
        if inner is None:
            break
        root = inner
    return place_of(class_of(root))[0]


def _text_of_file(module: str) -> bytes | None:
    """The source of a module of the user's that is not loaded, found without running anything; None where there is none."""
    from importlib.machinery import PathFinder

    places: Any = None
    origin: str | None = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, places)
        if spec is None:
            return None
        origin, places = spec.origin, spec.submodule_search_locations
        if places is None and name != module:
            return None
    if origin is None or not is_user_code(origin, module):  # a namespace has none
        return None
    try:
        with open(origin, "rb") as file:
            return file.read()
    except OSError:
        return None
