"""Handles: what a task's call returns while a graph is being built, and the search for them in arguments.

A handle stands for a value that does not exist yet, yet checkers see the value's type. So it must refuse, with an error
that teaches, everything one could do with the value: otherwise ``if fetch(u):`` would silently take a branch for ever.
Allowed are passing it to a task (as it is, or inside list, tuple, NamedTuple, dict values), returning it from the body,
``after=[handle]``, ``handle is None``, and ``repr``.

`Template` turns arguments into what a Program keeps: handles replaced by Refs, containers that hold any rebuilt,
everything else passed by identity. The search is iterative, visits a shared container once, and looks at a container
of plain values only through the set of its element types.
"""

from __future__ import annotations

from operator import is_
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast

from flowlane.declare.callsite import caller
from flowlane.declare.hidden import LOOKED_INTO, hidden_in
from flowlane.errors import HandleError, with_article
from flowlane.program import Ref

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["PLAIN", "Combined", "Handle", "HandleHome", "Template", "home_of", "kind_of", "make_handle", "ref_of"]


#: ``type`` of one argument, typed so that checkers do not infer a type that is half unknown.
kind_of: Final = cast("Callable[[object], type[Any]]", type)


class HandleHome(Protocol):
    """The graph a handle belongs to, as far as a handle needs to know it."""

    @property
    def name(self) -> str: ...

    @property
    def is_open(self) -> bool: ...

    def name_of(self, node: int) -> str: ...


class Handle:
    """The value of one node, to come. Made by Workflow; see the module's text for what may be done with one."""

    __slots__ = ("_home", "_ref")

    _home: HandleHome
    _ref: Ref

    def __repr__(self) -> str:
        return f"<handle of {self._home.name_of(self._ref.node)!r} in workflow {self._home.name!r}: no value yet>"


_bind_home: Final = cast("Callable[[Handle, HandleHome], None]", Handle.__dict__["_home"].__set__)
_bind_ref: Final = cast("Callable[[Handle, Ref], None]", Handle.__dict__["_ref"].__set__)
_new_handle: Final = object.__new__

# A handle has no public attributes, so that none can be taken for one of the value's. These two read its slots.
home_of: Final = cast("Callable[[Handle], HandleHome]", Handle.__dict__["_home"].__get__)
ref_of: Final = cast("Callable[[Handle], Ref]", Handle.__dict__["_ref"].__get__)


def make_handle(home: HandleHome, node: int) -> Handle:
    """A handle for `node` of `home`. Goes through the slots themselves, because a handle refuses ``handle.x = y``."""
    handle = _new_handle(Handle)
    _bind_home(handle, home)
    _bind_ref(handle, Ref(node))
    return handle


_IN_TASK: Final = "do it inside a task: pass the handle to a task, which then receives the value"

_OPERATORS: Final = (
    *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow"),
    *("lshift", "rshift", "and", "xor", "or"),
)

# what was tried → (the dunders that come with it, the hint)
_MISUSES: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "used as a condition (if, while, and, or, not, bool)",
        "__bool__",
        "a body cannot branch on a value yet to be made: `with when(value):` runs what is inside if it is true; or branch on "
        "the workflow's parameters, or inside a task",
    ),
    (
        "iterated or unpacked",
        "__iter__ __next__ __reversed__ __aiter__ __anext__",
        "how many elements there are is known only when the task has run: some_task.map(value) runs once for each; or let a "
        "task loop over it",
    ),
    ("asked for its length", "__len__ __length_hint__", _IN_TASK),
    ("searched with `in`", "__contains__", _IN_TASK),
    ("indexed", "__getitem__ __setitem__ __delitem__", _IN_TASK),
    (
        "compared",
        "__eq__ __ne__ __lt__ __le__ __gt__ __ge__",
        f"{_IN_TASK}; `is` tells whether two handles are the same",
    ),
    (
        "used as a dict key or set member",
        "__hash__",
        "use the workflow's own parameters as keys; handles may be dict values",
    ),
    (
        "formatted as text (str, format, f-string, print)",
        "__str__ __format__ __bytes__ __fspath__",
        f"{_IN_TASK}; repr(handle) is allowed",
    ),
    (
        "awaited",
        "__await__",
        "leave out `await`: a body only declares, and the engine awaits; in a test, `await the_task.fn(...)`",
    ),
    ("called", "__call__", _IN_TASK),
    ("used in `with`", "__enter__ __exit__ __aenter__ __aexit__", _IN_TASK),
    (
        "used in arithmetic",
        " ".join(f"__{side}{op}__" for op in _OPERATORS for side in ("", "r", "i") if (side, op) != ("i", "divmod"))
        + " __neg__ __pos__ __abs__ __invert__ __round__ __trunc__ __floor__ __ceil__",
        _IN_TASK,
    ),
    ("converted to a number", "__int__ __float__ __complex__ __index__", _IN_TASK),
    (
        "pickled or copied",
        "__reduce__ __reduce_ex__ __copy__ __deepcopy__ __getstate__",
        "a handle lives in the body that made it; pass it to a task, or inside list, tuple, NamedTuple, dict values",
    ),
)


def refuse(handle: Handle, misuse: str, hint: str) -> HandleError:
    """The error for `misuse` of `handle`."""
    home = home_of(handle)
    name = home.name_of(ref_of(handle).node)
    if not home.is_open:
        return HandleError(
            f"the result of task {name!r} was {misuse} after the body of workflow {home.name!r} had ended: it is a handle still, "
            "not the value",
            where=caller(),
            hint="a task gets the value where the handle is an argument of its own, or inside list, tuple, NamedTuple and dict "
            "values; inside any other object, or taken from around a function, it stays a handle",
        )
    return HandleError(
        f"the result of task {name!r} was {misuse} in workflow {home.name!r}, before the task has run",
        where=caller(),
        hint=hint,
    )


def _refusal(dunder: str, misuse: str, hint: str) -> Callable[..., Any]:
    def method(self: Handle, *_args: object, **_kwargs: object) -> Any:
        raise refuse(self, misuse, hint)

    method.__name__ = dunder
    method.__qualname__ = f"Handle.{dunder}"
    return method


def _getattr(self: Handle, name: str) -> Any:
    raise refuse(self, f"asked for its attribute {name!r}", _IN_TASK)


def _setattr(self: Handle, name: str, _value: object = None) -> None:
    raise refuse(self, f"given or stripped of an attribute ({name!r})", _IN_TASK)


for _misuse, _dunders, _hint in _MISUSES:
    for _dunder in _dunders.split():
        setattr(Handle, _dunder, _refusal(_dunder, _misuse, _hint))
for _dunder, _method in (("__getattr__", _getattr), ("__setattr__", _setattr), ("__delattr__", _setattr)):
    setattr(Handle, _dunder, _method)


# ── templates ─────────────────────────────────────────────────────────────────────────────────────────────────────

#: Types that can hold no handle: one lookup tells that an argument needs no search.
PLAIN: Final = frozenset({int, float, str, bytes, bool, complex, type(None)})

_CONTAINERS: Final = (list, tuple, dict)
_LAZY: Final = (GeneratorType, map, filter, zip)
_COROUTINES: Final = (CoroutineType, AsyncGeneratorType)


class Combined:
    """Several sources for the items of a map, at least one of which is still to come: what `zipped` and `product` return.

    Checkers see the list of tuples that it stands for; the only use it has is as what a map goes over.
    """

    __slots__ = ("how", "sources")

    def __init__(self, how: Literal["zip", "product"], sources: tuple[Any, ...]) -> None:
        self.how = how
        self.sources = sources

    @property
    def called(self) -> str:
        return "zipped(...)" if self.how == "zip" else "product(...)"

    def __iter__(self) -> Iterator[Any]:
        raise HandleError(
            f"{self.called} of what is still to come was iterated or unpacked",
            where=caller(),
            hint=f"map over it: some_task.starmap({self.called})",
        )

    def __len__(self) -> int:
        raise HandleError(
            f"{self.called} of what is still to come was asked for its length",
            where=caller(),
            hint=f"map over it: some_task.starmap({self.called})",
        )


_SEARCHED: Final = (Handle, *_CONTAINERS, *_LAZY, *_COROUTINES, Combined)


class Template:
    """One search for handles through any number of values. Make one for each call, use, read `found`, drop.

    found    the nodes met, in order, with repetitions
    accept   called with each handle met; raises when it belongs elsewhere
    subject  whom errors speak of: "task 'parse'"
    """

    __slots__ = ("_done", "accept", "found", "subject")

    def __init__(self, accept: Callable[[Handle], Ref], subject: str) -> None:
        self.accept = accept
        self.subject = subject
        self.found: list[int] = []
        # id → what became of a container; the container itself is kept, so that its id stays its own
        self._done: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any) -> Any:
        """`value` with Refs for handles; the same object when it holds none."""
        kind = kind_of(value)
        if kind in PLAIN:
            return value
        if kind is Handle:
            ref = self.accept(value)
            self.found.append(ref.node)
            return ref
        if issubclass(kind, _CONTAINERS):
            return self._container(value)
        self._refuse_if_lazy(kind, value)
        self._refuse_if_hidden(value)
        return value

    def _refuse_if_hidden(self, value: Any) -> None:
        """Refuse an object that holds a handle where nobody would put the value in its place. One level is looked at."""
        found = hidden_in(value, Handle)
        if found is None:
            return
        where, handle = found
        home = home_of(handle)
        raise HandleError(
            f"{self.subject} is given {with_article(kind_of(value).__name__)} that holds the result of task "
            f"{home.name_of(ref_of(handle).node)!r} ({where})",
            where=caller(),
            hint="it would stay a handle there: pass it as an argument of its own, or inside list, tuple, NamedTuple and "
            "dict values, and make the object in a task",
        )

    def _refuse_if_lazy(self, kind: type[Any], value: Any) -> None:
        if kind is Combined:
            raise HandleError(
                f"{self.subject} is given {value.called} of what is still to come",
                where=caller(),
                hint=f"map over it: some_task.starmap({value.called})",
            )
        if issubclass(kind, _LAZY):
            raise HandleError(
                f"{self.subject} is given {with_article(kind.__name__)}, which makes its elements only once and only when asked",
                where=caller(),
                hint="write a list: [f(x) for x in xs]",
            )
        if issubclass(kind, _COROUTINES):
            if issubclass(kind, CoroutineType):
                value.close()  # it would warn that it was never awaited
            raise HandleError(
                f"{self.subject} is given {with_article(kind.__name__.replace('_', ' '))}, not a value",
                where=caller(),
                hint="call the task itself, some_task(x): some_task.fn(x) calls the bare function",
            )

    def _container(self, root: Any) -> Any:
        """Depth first without recursion: a frame is (container, its elements, rebuilt elements so far or None)."""
        done = self._done
        known = done.get(id(root))
        if known is not None:
            return known[1]
        open_ids: set[int] = set()
        before = len(self.found)
        cyclic = False
        stack: list[tuple[Any, Iterator[Any], list[Any]]] = []

        def enter(container: Any) -> bool:
            """Open a frame; False when the container's element types tell that it holds no handle."""
            values: Iterable[Any] = container.values() if issubclass(kind_of(container), dict) else container
            kinds: set[type[Any]] = set(map(type, values))
            others = kinds - PLAIN
            if others and len(container) <= LOOKED_INTO:
                for value in values:
                    if type(value) not in PLAIN and not isinstance(value, _SEARCHED):
                        self._refuse_if_hidden(value)
            if not any(issubclass(kind, _SEARCHED) for kind in others):
                done[id(container)] = (container, container)
                return False
            open_ids.add(id(container))
            stack.append((container, iter(list(values)), []))
            return True

        if not enter(root):
            return root
        result: Any = root
        while stack:
            container, elements, built = stack[-1]
            for element in elements:
                kind = kind_of(element)
                if kind in PLAIN:
                    built.append(element)
                elif kind is Handle:
                    ref = self.accept(element)
                    self.found.append(ref.node)
                    built.append(ref)
                elif issubclass(kind, _CONTAINERS):
                    known = done.get(id(element))
                    if known is not None:
                        built.append(known[1])
                    elif id(element) in open_ids:
                        cyclic = True
                        built.append(element)
                    elif enter(element):
                        break
                    else:
                        built.append(element)
                else:
                    self._refuse_if_lazy(kind, element)
                    built.append(element)
            else:
                stack.pop()
                open_ids.discard(id(container))
                result = self._close(container, built)
                done[id(container)] = (container, result)
                if stack:
                    stack[-1][2].append(result)
        if cyclic and len(self.found) > before:
            raise HandleError(
                f"{self.subject} is given a container that holds both a handle and itself",
                where=caller(),
                hint="pass the handle outside of it",
            )
        return result

    def _close(self, container: Any, built: list[Any]) -> Any:
        """The container again when nothing in it changed, otherwise its like with the new elements."""
        kind = kind_of(container)
        if all(map(is_, built, container.values() if issubclass(kind, dict) else container)):
            return container
        if kind is list:
            return built
        if kind is dict:
            return dict(zip(container, built, strict=True))
        if kind is tuple:
            return tuple(built)
        named = cast("Any", kind)
        if issubclass(kind, tuple) and hasattr(named, "_fields"):
            make = cast("Callable[[object, list[Any]], Any]", tuple.__new__)  # pyright: ignore[reportUnknownMemberType]
            return make(named, built)  # not named(*built): a NamedTuple may come with a __new__ of its own
        raise HandleError(
            f"{self.subject} is given {with_article(kind.__name__)} that holds the result of a task",
            where=caller(),
            hint="results are passed on as they are or inside list, tuple, NamedTuple and dict values, nothing else",
        )
