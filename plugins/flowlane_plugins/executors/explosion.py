"""Finds the object in a pickle that explodes while it loads. Imported only after that happened.

Only bytes are at hand where a value is loaded. They are loaded once more, by the pure-Python unpickler, which counts
its steps; then they are read symbolically, without running anything of the user's, to see which object the last step
was about and where in the value that object belongs.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

from flowlane_plugins.executors.culprit import DEPTH, key_shown

__all__ = ["exploding"]

_BY_VALUE = "cloudpickle.cloudpickle._make_skeleton_class"


def exploding(payload: bytes) -> tuple[list[str], str]:
    """The segments of the way to the object whose loading raises, and its class; ([], "") when that cannot be told.

    Loads `payload` once more, so the user's code that raised runs a second time. Never raises.
    """
    try:
        failing = _failing_step(payload)
        return ([], "") if failing is None else _place(payload, failing)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return [], ""


class _Steps(dict[int, Any]):
    """A dispatch table that counts how often it is asked."""

    count = 0

    def __getitem__(self, opcode: int) -> Any:
        self.count += 1
        return super().__getitem__(opcode)


def _failing_step(payload: bytes) -> int | None:
    """The number, from 0, of the opcode at which loading raises; None when this time it does not."""
    unpickler: Any = getattr(pickle, "_Unpickler")(io.BytesIO(payload))  # noqa: B009 - the stubs do not have it
    steps = _Steps(unpickler.dispatch)
    unpickler.dispatch = steps
    try:
        unpickler.load()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return steps.count - 1
    return None


class _Node:
    """An object of the stream: what it is, where it hangs, under which key."""

    __slots__ = ("key", "kind", "parent", "size", "value")

    def __init__(self, kind: str, value: Any = None) -> None:
        self.kind = kind  # leaf, list, dict, set, tuple, object, state, arguments
        self.value = value  # a leaf's value, a tuple's items, the name of a class or of an object's class
        self.parent: _Node | None = None
        self.key: Any = None
        self.size = 0

    def adopt(self, child: _Node, key: Any = None) -> None:
        """Hang `child` here, if it hangs nowhere yet; under its number where there is no key."""
        if child.parent is None and child is not self:
            child.parent = self
            child.key = self.size if key is None else key
        self.size += 1


def _place(payload: bytes, failing: int) -> tuple[list[str], str]:
    reader = _Reader()
    target: _Node | None = None
    for number, (opcode, arg, _) in enumerate(pickletools.genops(payload)):
        about = reader.step(opcode, arg)
        if number == failing:
            target = about
    if target is None:
        return [], ""
    return _segments(target), str(target.value) if target.kind in ("object", "class") else ""


class _Reader:
    """The unpickler's stack machine over nodes instead of values."""

    def __init__(self) -> None:
        self.stack: list[_Node] = []
        self.marks: list[int] = []
        self.memo: dict[int, _Node] = {}

    def step(self, opcode: pickletools.OpcodeInfo, arg: Any) -> _Node | None:
        """Carry out one opcode; the object it makes or changes, where user code may run in doing so."""
        stack, memo = self.stack, self.memo
        match opcode.name:
            case "MARK":
                self.marks.append(len(stack))
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[int(arg)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[int(arg)])
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET" | "EMPTY_TUPLE":
                stack.append(_Node(opcode.name[6:].lower()))
            case "APPEND":
                return self._add([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                return self._add(self._since_mark())
            case "SETITEM":
                return self._set([stack.pop(-2), stack.pop()])
            case "SETITEMS":
                return self._set(self._since_mark())
            case "TUPLE" | "LIST":
                return self._gathered(opcode.name.lower(), self._since_mark())
            case "FROZENSET":
                return self._gathered("set", self._since_mark())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                return self._gathered("tuple", self._last(int(opcode.name[-1])))
            case "STACK_GLOBAL":
                module, name = self._last(2)
                return self._class(f"{module.value}.{name.value}")
            case "GLOBAL":
                return self._class(str(arg).replace(" ", "."))
            case "REDUCE" | "NEWOBJ":
                return self._made(self._last(2))
            case "NEWOBJ_EX":
                return self._made(self._last(3))
            case "BUILD":
                state = stack.pop()
                stack[-1].adopt(state, "state")
                return stack[-1]
            case "POP" if self.marks and self.marks[-1] == len(stack):
                self.marks.pop()
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                stack.append(stack[-1])
            case _ if opcode.stack_after and not opcode.stack_before:
                stack.append(_Node("leaf", arg))
            case _:
                pass  # PROTO, FRAME, STOP
        return None

    def _last(self, count: int) -> list[_Node]:
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _since_mark(self) -> list[_Node]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _add(self, items: list[_Node]) -> _Node:
        container = self.stack[-1]
        for item in items:
            container.adopt(item)
        return container

    def _set(self, items: list[_Node]) -> _Node:
        container = self.stack[-1]
        for key, item in zip(items[::2], items[1::2], strict=True):
            container.adopt(item, key.value if key.kind == "leaf" else "…")
            container.adopt(key, "a key")
        return container

    def _gathered(self, kind: str, items: list[_Node]) -> _Node:
        self.stack.append(_Node(kind, items))
        return self._add(items)

    def _class(self, name: str) -> _Node:
        node = _Node("class", name.removeprefix("builtins."))
        self.stack.append(node)
        return node

    def _made(self, parts: list[_Node]) -> _Node:
        cls, *arguments = parts
        node = _Node("object", cls.value)
        if cls.value == _BY_VALUE and arguments[0].kind == "tuple":  # a class made on the spot; its name comes second
            node.value = arguments[0].value[1].value
        for part in arguments:
            if part.parent is None:
                part.kind = "arguments"
            node.adopt(part)
        self.stack.append(node)
        return node


def _segments(node: _Node) -> list[str]:
    found: list[str] = []
    while node.parent is not None and len(found) < DEPTH:
        parent = node.parent
        if node.key == "a key":
            found.append(" a key")
        elif parent.kind == "dict" and parent.key == "state" and isinstance(node.key, str):
            found.append(f".{node.key}")
        elif parent.kind == "arguments":
            found.append(f" constructor argument {node.key}")
        elif parent.kind in ("list", "tuple", "dict"):
            found.append(f"[{key_shown(node.key)}]")
        elif parent.kind == "set":
            found.append(" an element")
        elif parent.kind == "object" and node.kind not in ("arguments", "class") and node.key != "state":
            found.append(f"[{key_shown(node.key)}]")  # items of a list or dict subclass
        node = parent
    return found[::-1]
