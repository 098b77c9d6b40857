"""Fingerprints: what a function does changes them, how it is written and where it stands does not."""

from __future__ import annotations

import functools
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import types
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from flowlane.loader import load_file
from flowlane.storage import bytecode
from flowlane.storage.fingerprint import Fingerprint, fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _forget_what_was_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    forget(before)


def forget(before: set[str]) -> None:
    for name in set(sys.modules) - before:
        if name.startswith(("_flow_", "user_")):
            del sys.modules[name]


def of(text: str, name: str = "f", **others: str) -> Fingerprint:
    """The fingerprint of `name` in a file of this text, beside modules of the user's: ``user_a="..."``."""
    before = set(sys.modules)
    for module, source in others.items():
        with open(f"{module}.py", "w") as file:
            file.write(textwrap.dedent(source))
    with open("etl.py", "w") as file:
        file.write(textwrap.dedent(text))
    import importlib

    importlib.invalidate_caches()
    try:
        found: Any = load_file("etl.py")
        for part in name.split("."):
            found = getattr(found, part)
        return fingerprint(found)
    finally:
        forget(before)


def changed(before: Fingerprint, after: Fingerprint) -> set[str]:
    """The parts that differ."""
    assert (before.digest != after.digest) == (before.parts != after.parts)
    return {name for name in {*before.parts, *after.parts} if before.parts.get(name) != after.parts.get(name)}


PLAIN = """\
import os
LIMIT = 10

def helper(x):
    return x * LIMIT

def f(rows, factor=2, *, strict=False):
    out = []
    for row in rows:
        try:
            if row and not strict:
                out.append(helper(row) + factor)
        except ValueError as error:
            raise KeyError(f"bad {row!r}") from error
    return sorted(out, key=lambda value: (-value, "a"))

def unrelated():
    return 1
"""


HELPER = "def helper(x):\n    return x * LIMIT\n"


# ── what does not matter ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: "# a comment\n\n\n" + text,
        lambda text: text.replace("out = []", "out = []  # nothing yet\n\n\n    # and now"),
        lambda text: text.replace("out = []", '"""What it does."""\n    out = []'),
        lambda text: text.replace("return x * LIMIT", '"""New."""\n    return x * LIMIT'),
        lambda text: text.replace("out = []", "out: list[int] = []"),
        lambda text: text.replace("rows, factor=2", "rows: list, factor: int = 2"),
        lambda text: text.replace("return 1", "return 2"),
        lambda text: text.replace("def unrelated", "def renamed"),
        lambda text: text.replace("import os\n", ""),
        lambda text: text.replace(HELPER, "") + HELPER,
        lambda text: text.replace("for row in rows:", "for row in (\n            rows\n        ):"),
        lambda text: text.replace("helper(row) + factor", "helper(\n  row\n ) + factor"),
        lambda text: text.replace("return 1", "return 1\n    print(f)"),
    ],
    ids=lambda edit: str(edit.__code__.co_firstlineno),
)
def test_how_it_is_written_does_not_matter(edit: Any) -> None:
    before, after = of(PLAIN), of(edit(PLAIN))
    assert edit(PLAIN) != PLAIN
    assert changed(before, after) == set()
    assert before == after


def test_a_docstring_may_come_and_change_and_go() -> None:
    text = "def f(x):\n        {}return x, None, 'text'\n"
    versions = [
        of(text.format(doc)) for doc in ("", '"one"\n        ', '"text"\n        ', '"""two\nlines"""\n        ')
    ]
    assert len({each.digest for each in versions}) == 1


def test_docstrings_and_lines_of_classes_inside() -> None:
    text = (
        "{}    def f(x):\n        class Inner:\n            {}a = 1\n"
        "            def g(self): self.b = 1; self.c = 2\n        return Inner\n"
    )
    assert of(text.format("", "")) == of(text.format("\n\n\n", '"doc"\n            '))
    assert of(text.format("", "")).digest != of(text.format("", "__doc2__ = 'doc'\n            ")).digest


def test_the_file_is_not_read_again() -> None:
    """A file that was edited after it was loaded: the old code must not be taken for the new text."""
    path = "etl.py"
    before = of(PLAIN)
    module = load_file(path)
    with open(path, "w") as file:
        file.write(textwrap.dedent(PLAIN.replace("LIMIT = 10", "LIMIT = 11").replace("out = []", "out = [0]")))
    assert fingerprint(module.f) == before
    assert fingerprint(load_file(path).f) != before


def test_tracing_does_not_matter() -> None:
    """Debuggers and coverage rewrite instructions in place, and running specialises them."""
    before = of(PLAIN)
    module = load_file("etl.py")
    sys_trace = sys.gettrace()
    sys.settrace(lambda *_: lambda *_: None)  # type: ignore[arg-type,return-value]
    try:
        module.f([1, 2])
        assert fingerprint(module.f) == before
    finally:
        sys.settrace(sys_trace)
    for _ in range(1000):
        module.f([1, 2, 3])
    assert fingerprint(module.f) == before


def test_the_name_of_the_file_does_not_matter() -> None:
    before = of(PLAIN)
    os.rename("etl.py", "other.py")
    assert fingerprint(load_file("other.py").f) == before
    try:
        assert fingerprint(load_file("other.py", "user_named").f) == before
    finally:
        del sys.modules["_flow_other"]


# ── what matters ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("LIMIT = 10", "LIMIT = 11", {"LIMIT"}),
        ("LIMIT = 10", "LIMIT = 10.0", {"LIMIT"}),
        ("LIMIT = 10", "LIMIT = True", {"LIMIT"}),
        ("x * LIMIT", "x + LIMIT", {"helper"}),
        ("factor=2", "factor=3", {"f"}),
        ("factor=2", "factor=2.0", {"f"}),
        ("strict=False", "strict=True", {"f"}),
        ("strict=False", "strict=0", {"f"}),
        (", factor=2, *, strict=False", ", factor=2, strict=False", {"f"}),
        ("rows, factor=2", "rows, /, factor=2", {"f"}),
        ("factor=2, *,", "factor=2, *rest,", {"f"}),
        ("out = []", "out = [0]", {"f"}),
        ('"a"', '"b"', {"f"}),
        ('"a"', 'b"a"', {"f"}),
        ("-value", "value", {"f"}),
        ("ValueError", "TypeError", {"f"}),
        ("out.append", "out.extend", {"f"}),
        ("if row and not strict", "if row or not strict", {"f"}),
        ("bad {row!r}", "bad {row!s}", {"f"}),
        ("return sorted(", "return max(", {"f"}),
        ("def helper(x):", "async def helper(x):", {"helper"}),
        ("return x * LIMIT", "yield x * LIMIT", {"helper"}),
        ("return x * LIMIT", "return y * LIMIT", {"helper"}),
        ("def helper(x):", "def helper(x, *args):", {"helper"}),
        ("def helper(x):", "def helper(x, **args):", {"helper"}),
        ("helper(row)", "helper2(row)", {"f", "helper", "LIMIT"}),
    ],
)
def test_what_it_does_matters(old: str, new: str, parts: set[str]) -> None:
    assert old in PLAIN
    assert changed(of(PLAIN), of(PLAIN.replace(old, new))) == parts


def test_exception_handlers_matter() -> None:
    text = "    def f(x):\n        try:\n            a(x)\n{}        except KeyError:\n            pass\n"
    assert (
        of(text.format("            b(x)\n")).digest
        != of(
            text.format("        finally:\n            b(x)\n").replace(
                "        except KeyError:\n            pass\n", ""
            )
        ).digest
    )
    # one instruction more under the handler's protection, the same instructions otherwise
    inside = (
        "    def f(x):\n        try:\n            a(x)\n            b(x)\n        except KeyError:\n            c(x)\n"
    )
    outside = (
        "    def f(x):\n        try:\n            a(x)\n        except KeyError:\n"
        "            c(x)\n        else:\n            b(x)\n"
    )
    assert of(inside).digest != of(outside).digest


def test_where_jumps_lead_matters() -> None:
    one = (
        "    def f(x):\n        while x:\n            if x == 1:\n                continue\n"
        "            if x == 2:\n                break\n            x = g(x)\n"
    )
    two = one.replace("continue", "_").replace("break", "continue").replace("_", "break")
    assert of(one).digest != of(two).digest


def test_more_than_256_constants() -> None:
    lines = "".join(f"        a({i}.5)\n" for i in range(300))
    text = f"    def f(x):\n{lines}        for each in x:\n            b(each)\n"
    before = of(text)
    assert of(text.replace("a(299.5)", "a(299.25)")).digest != before.digest
    assert of(text.replace("def f(x):\n", "def f(x):\n        'doc'\n")) == before
    assert of(text.replace("a(10.5)", "a(266.5)").replace("a(266.5)", "a(10.5)", 1)).digest == before.digest
    assert of(text.replace("a(10.5)", "a(266.5)")).digest != before.digest


def test_names_of_one_code_object_are_not_mixed_up() -> None:
    assert of("    def f(a, b): return a - b").digest != of("    def f(a, b): return b - a").digest
    assert of("    def f(a): return a.x.y").digest != of("    def f(a): return a.y.x").digest
    assert of("    def f(a): return a.x").digest != of("    def f(a): return a.x()").digest
    assert of("    def f(): return x").digest != of("    def f(): return x()").digest


def test_sets_among_constants_are_sorted() -> None:
    code = "def f(x): return x in {'a', 'b', 'c', 'd', 'e', 'f'}, x in {1, 2}"
    program = (
        f"import sys\nfrom flowlane.storage.fingerprint import fingerprint\n{code}\nprint(fingerprint(f).digest.hex())"
    )
    assert len({in_process(program, seed) for seed in ("0", "1", "2")}) == 1


def in_process(program: str, seed: str, **environment: str) -> str:
    env = {**os.environ, "PYTHONHASHSEED": seed, **environment}
    return subprocess.run([sys.executable, "-c", program], env=env, check=True, capture_output=True, text=True).stdout


# ── what is reached ───────────────────────────────────────────────────────────────────────────────────────────────


def test_helpers_in_other_modules_two_levels_down() -> None:
    etl = "    from user_a import step\n    import user_a\n    def f(x): return step(x)\n"
    a = "import user_b as other\ndef step(x): return other.deep(x)\ndef beside(x): return other.wide(x)\n"
    b = "SCALE = 1\ndef deep(x): return x * SCALE\ndef wide(x): return x\n"
    before = of(etl, user_a=a, user_b=b)
    assert set(before.parts) == {"f", "user_a.step", "user_b.deep", "user_b.SCALE", "python"}
    assert changed(before, of(etl, user_a=a, user_b=b.replace("SCALE = 1", "SCALE = 2"))) == {"user_b.SCALE"}
    assert changed(before, of(etl, user_a=a, user_b=b.replace("x * SCALE", "x / SCALE"))) == {"user_b.deep"}
    assert changed(before, of(etl, user_a=a, user_b=b.replace("return x\n", "return -x\n"))) == set()
    assert changed(before, of(etl, user_a=a.replace("other.wide(x)", "3"), user_b=b)) == set()
    assert before.unsure == ()


def test_attributes_of_modules_of_a_package() -> None:
    os.makedirs("user_pkg/sub")
    for name in ("user_pkg/__init__.py", "user_pkg/sub/__init__.py"):
        open(name, "w").close()

    def at(value: int, text: str) -> Fingerprint:
        with open("user_pkg/sub/leaf.py", "w") as file:
            file.write(f"def g(): return {value}\ndef h(): return 1\n")
        return of(text)

    for text in (
        "    import user_pkg.sub.leaf\n    def f(): return user_pkg.sub.leaf.g()\n",
        "    from user_pkg.sub import leaf\n    def f(): return leaf.g()\n",
        "    from user_pkg.sub import leaf\n    def f():\n        here = leaf\n        return here.g()\n",
    ):
        before = at(1, text)
        assert "user_pkg.sub.leaf.g" in before.parts
        assert "user_pkg.sub.leaf.h" not in before.parts
        assert changed(before, at(2, text)) == {"user_pkg.sub.leaf.g"}


@pytest.mark.parametrize(
    "use",
    [
        "TABLE = {'a': user_a}\ndef f(x): return TABLE['a'].g(x)",
        "class A:\n    back = user_a\n    def m(self): return self.back.g(1)\ndef f(x): return A().m()",
        "def f(x, back=user_a): return back.g(x)",
        "def f(x, *, back=user_a): return back.g(x)",
        "def make(back):\n    def f(x): return back.g(x)\n    return f\nf = make(user_a)",
        "class A: pass\na = A()\na.back = user_a\ndef f(x): return a.back.g(x)",
        "def f(x): return f.back.g(x)\nf.back = user_a",
        "import functools\ndef call(back): return back.g(1)\nf = functools.partial(call, user_a)",
    ],
)
def test_a_module_that_is_a_value_counts_whole(use: str) -> None:
    text = "import user_a\n" + use
    a = (
        "import user_b, json\nLIMIT = 1\nclass K:\n    def m(self): return 1\n"
        "def g(x): return h(x)\ndef h(x): return x\n"
    )
    b = "import user_a\ndef deep(): return 1\n"
    before = of(text, user_a=a, user_b=b)
    assert before.unsure == ()
    assert before == of(text, user_a="# moved\n" + a, user_b=b)

    def edited(old: str, new: str) -> set[str]:
        assert old in a
        return changed(before, of(text, user_a=a.replace(old, new), user_b=b))

    assert edited("h(x): return x", "h(x): return -x") == {"user_a.h"}
    assert edited("LIMIT = 1", "LIMIT = 2") == {"user_a.LIMIT"}
    assert edited("m(self): return 1", "m(self): return 2") == {"user_a.K.m"}
    assert edited("LIMIT = 1", "LIMIT = 1\nMORE = 1") == {"user_a", "user_a.MORE"}
    assert changed(before, of(text, user_a=a, user_b=b.replace("1", "2"))) == {"user_b.deep"}


def test_the_own_module_as_a_value() -> None:
    text = "    import sys\n    ME = [sys.modules[__name__]]\n    def f(x): return ME[0].g(x)\n    def g(x): return x\n"
    assert changed(of(text), of(text.replace("return x", "return -x"))) == {"g"}
    assert of(text).unsure == ()


def test_odd_modules_as_values() -> None:
    lazy = (
        "    import importlib.util as u, sys\n    spec = u.find_spec('user_lazy')\n"
        "    mod = u.module_from_spec(spec)\n    sys.modules['user_lazy'] = mod\n"
        "    u.LazyLoader(spec.loader).exec_module(mod)\n    TABLE = [mod]\n    def f(): return TABLE[0].g()\n"
    )
    assert of(lazy, user_lazy="raise SystemError\n").unsure == ("user_lazy (importlib.util._LazyModule)",)
    own = (
        "    import types, user_a\n    class Own(types.ModuleType):\n        def g(self): return 1\n"
        "    user_a.__class__ = Own\n    TABLE = [user_a]\n    def f(): return TABLE[0].g()\n"
    )
    assert changed(of(own, user_a=""), of(own.replace("return 1", "return 2"), user_a="")) == {"Own.g"}


def test_attributes_of_functions() -> None:
    text = "    def url(path): return url.base + path\n    url.base = 'old'\n    url.parse = g\n    def f(x): return url(x)\n"
    text = "    def g(x): return 1\n" + text
    before = of(text)
    assert before.unsure == ()
    assert changed(before, of(text.replace("'old'", "'new'"))) == {"url"}
    assert changed(before, of(text.replace("url.base =", "url.place ="))) == {"url"}
    assert changed(before, of(text.replace("return 1", "return 2"))) == {"g"}
    lock = text.replace("'old'", "__import__('threading').Lock()")
    assert of(lock).unsure == ("url.base (_thread.lock)",)


VALIDATED = """
    from pydantic import validate_call
    Number = int
    @validate_call
    def to(a: int, b: "Number" = 1): return a
    def f(x): return to(x)
"""

DECORATED = """
    def coerced(fn):
        def run(x): return fn(fn.__annotations__["a"](x))
        return run
    @coerced
    def to(a: int, b: float = 1): return a
    def f(x): return to(x)
"""


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (VALIDATED, "a: int", "a: float"),
        (VALIDATED, "Number = int", "Number = float"),
        (VALIDATED, '"Number"', '"int"'),
        (VALIDATED, '"Number" = 1)', '"Number" = 1) -> str'),
        (DECORATED, "a: int", "a: float"),
        (DECORATED, "b: float", "b: str"),
    ],
)
def test_annotations_that_a_decorator_may_read(text: str, old: str, new: str) -> None:
    before = of(text)
    assert old in text
    assert of(text.replace(old, new)).digest != before.digest
    assert before.unsure == ()


def test_annotations_of_what_is_under_an_object() -> None:
    text = (
        "    import functools, io\n    class Compiled(io.BytesIO):\n"
        "        def __init__(self, fn): self.__wrapped__ = fn\n"
        "    @Compiled\n    def g(x: int): return x + 1\n    def f(x): return g(x)\n"
    )
    assert of(text).digest != of(text.replace("x: int", "x: float")).digest


def test_names_in_annotations_of_classes() -> None:
    text = "    Number = int\n    class A:\n        x: 'Number'\n    def f(): return A()\n"
    assert changed(of(text), of(text.replace("= int", "= float"))) == {"A"}


def test_a_signature_that_was_set_by_hand() -> None:
    text = (
        "    import inspect\n    def f(x): return 1\n    def g(a, b={}): return 1\n"
        "    f.__signature__ = inspect.signature(g)\n"
    )
    assert of(text.format(1)).unsure == ()
    assert changed(of(text.format(1)), of(text.format(2))) == {"f"}


def test_modules_that_name_each_other() -> None:
    before = of(
        "    import user_a\n    def f(): return user_a.g()\n",
        user_a="import user_b\ndef g(): return user_b.h(user_b.user_a)\n",
        user_b="import user_a\ndef h(x): return user_a.g()\n",
    )
    assert set(before.parts) == {"f", "user_a.g", "user_b.h", "python"}


def test_imports_inside_of_a_function() -> None:
    """Loaded or not, a change of the module is seen."""
    etl = "    def f():\n        from user_a import g\n        import json\n        return g()\n"
    a = "def g(): return 1\ndef h(): return 1\n"
    before = of(etl, user_a=a)
    assert before.unsure == ("user_a (imported by f when it runs)",)
    assert set(before.parts) == {"f", "user_a", "python"}
    assert changed(before, of(etl, user_a=a.replace("1", "2"))) == {"user_a"}

    loaded = "    import user_a\n" + etl
    before = of(loaded, user_a=a)
    assert before.unsure == ()
    assert changed(before, of(loaded, user_a=a.replace("g(): return 1", "g(): return 2"))) == {"user_a.g"}
    assert changed(before, of(loaded, user_a=a.replace("h(): return 1", "h(): return 2"))) == set()


def test_other_forms_of_imports_inside() -> None:
    os.makedirs("user_pkg")
    for name, text in (("__init__", "def top(): return 1"), ("leaf", "def g(): return 1"), ("rel", RELATIVE)):
        with open(f"user_pkg/{name}.py", "w") as file:
            file.write(text)
    use = "    import user_pkg.leaf\n    def f():\n        {}\n"
    assert "user_pkg.leaf.g" in of(use.format("import user_pkg.leaf as x; return x.g()")).parts
    assert "user_pkg.leaf.g" in of(use.format("import user_pkg.leaf; return user_pkg.leaf.g()")).parts
    assert "user_pkg.top" in of(use.format("import user_pkg.leaf; return user_pkg.top()")).parts
    assert "user_pkg.leaf.g" in of(use.format("from user_pkg import leaf; return leaf.g()")).parts
    lazy = of("    def f():\n        from user_pkg import leaf; return leaf.g()\n")
    assert set(lazy.unsure) == {"user_pkg (imported by f when it runs)", "user_pkg.leaf (imported by f when it runs)"}
    relative = of(
        "    import user_pkg.rel, user_pkg.leaf\n    def f(): return user_pkg.rel.one() + user_pkg.rel.two()\n"
    )
    assert {"user_pkg.leaf.g", "user_pkg.top"} <= set(relative.parts)
    gone = of("    def f():\n        import user_gone; import user_gone.sub; from user_pkg.leaf import nothing\n")
    assert "user_gone" not in gone.parts
    os.mkdir("user_namespace")
    assert "pip" not in sys.modules
    others = of("    def f():\n        import user_namespace, pip, user_namespace.sub\n")
    assert set(others.parts) == {"f", "python"}
    assert others.unsure == ()


RELATIVE = """
def one():
    from .leaf import g
    return g()

def two():
    from . import top
    return top()
"""


CLASSES = """
    class Base:
        SCALE = 2
        _private = 5
        def scaled(self, x): return x * self.SCALE

    class Reader(Base):
        limit: int = 3
        def __init__(self, path): self.path = path
        @property
        def name(self): return self.path.upper()
        @staticmethod
        def parse(x): return helper(x)
        @classmethod
        def make(cls): return cls("p")

    def helper(x): return x + 1

    def f(x): return Reader(x).scaled(1)
"""


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("SCALE = 2", "SCALE = 3", "Base"),
        ("_private = 5", "_private = 6", "Base"),
        ("x * self.SCALE", "x / self.SCALE", "Base.scaled"),
        ("limit: int = 3", "limit: int = 4", "Reader"),
        ("limit: int", "limit: float", "Reader"),
        ("self.path.upper()", "self.path.lower()", "Reader.name"),
        ("x + 1", "x + 2", "helper"),
        ('cls("p")', 'cls("q")', "Reader.make"),
        ("Reader(Base)", "Reader(Base, dict)", "Reader"),
        ("        @staticmethod\n", "", "Reader"),
        ("@classmethod", "@staticmethod", "Reader"),
    ],
)
def test_of_a_class_everything_counts(old: str, new: str, part: str) -> None:
    before = of(CLASSES)
    assert old in CLASSES
    assert changed(before, of(CLASSES.replace(old, new))) == {part}
    assert of("\n\n" + CLASSES.replace("SCALE = 2", '"""Doc."""\n        SCALE = 2')) == before


def test_a_class_is_fingerprinted_as_its_users_would() -> None:
    assert of(CLASSES, "Reader").parts == {name: part for name, part in of(CLASSES).parts.items() if name != "f"}
    assert "helper" in of(CLASSES, "Reader.parse").parts
    assert "Reader" not in of(CLASSES, "Reader.parse").parts
    assert "Reader" in of(CLASSES, "Reader.make").parts  # bound to its class


def test_slots_and_metaclasses() -> None:
    text = (
        "    class Meta(type):\n        def __call__(cls): return 1\n"
        "    class A(metaclass=Meta):\n        __slots__ = ('a',)\n    def f(): return A()\n"
    )
    assert changed(of(text), of(text.replace("return 1", "return 2"))) == {"Meta.__call__"}
    assert changed(of(text), of(text.replace("('a',)", "('b',)"))) == {"A"}


def test_reading_an_instance_does_not_change_its_class() -> None:
    """copyreg notes the names of slots in the class."""
    import copyreg

    before = of(CLASSES)
    module = load_file("etl.py")
    copyreg._slotnames(module.Reader)  # type: ignore[attr-defined]
    assert "__slotnames__" in module.Reader.__dict__
    assert fingerprint(module.f) == before


FIELD = """\
    class Field:
        def __init__(self, value): self.value = value
        def __get__(self, instance, owner): return self.value
"""


def test_enums() -> None:
    text = (
        "    import enum\n    class Color(enum.Enum):\n        RED = 1\n"
        "        BLUE = 2\n        def light(self): return 1\n"
        "        @classmethod\n        def _missing_(cls, value): return cls.RED\n    def f(): return Color.RED\n"
    )
    before = of(text)
    assert changed(before, of(text.replace("BLUE = 2", "BLUE = 3"))) == {"Color"}
    assert changed(before, of(text.replace("BLUE", "GREEN"))) == {"Color"}
    assert changed(before, of(text.replace("light(self): return 1", "light(self): return 2"))) == {"Color.light"}
    assert changed(before, of(text.replace("cls.RED", "cls.BLUE"))) == {"Color._missing_"}
    assert set(before.parts) == {"f", "Color", "Color.light", "Color._missing_", "python"}
    other = text.replace("def light", "@property\n        def light")
    assert changed(of(other), of(other.replace("light(self): return 1", "light(self): return 2"))) == {"Color.light"}
    assert before.unsure == ()
    more = text.replace(
        "        def light",
        "        @property\n        def _dark(self): return self._of() + 7\n"
        "        @functools.cached_property\n        def _deep(self): return 8\n"
        "        @enum.property\n        def _wide(self): return 9\n"
        "        _Color__scale = 6\n        _own = Field(5)\n        def light",
    ).replace("import enum\n", "import enum, functools\n" + FIELD)
    before = of(more)
    assert before.unsure == ()
    for number in "56789":
        assert number in more
        assert before.digest != of(more.replace(number, "0")).digest, number
    flags = (
        "    import enum\n    class P(enum.Flag):\n        R = 1\n"
        "        W = enum.auto()\n    def f(): return P.R | P.W\n"
    )
    assert of(flags).unsure == ()
    assert changed(of(flags), of(flags.replace("(enum.Flag)", "(enum.Flag, boundary=enum.KEEP)"))) == {"P"}
    assert changed(of(flags), of(flags.replace("R = 1", "R = 4"))) == {"P"}


def test_dataclasses_without_the_methods_that_python_writes() -> None:
    text = (
        "    from dataclasses import dataclass, field\n"
        "    @dataclass(frozen=True)\n    class Row:\n        a: int = 1\n"
        "        b: list = field(default_factory=list)\n"
        "        def total(self): return self.a\n    def f(): return Row()\n"
    )
    before = of(text)
    assert set(before.parts) == {"f", "Row", "Row.total", "python"}
    assert before.unsure == ()
    for old, new in (
        ("a: int = 1", "a: int = 2"),
        ("a: int", "a: str"),
        ("=list", "=dict"),
        ("frozen=True", "order=True"),
    ):
        assert changed(before, of(text.replace(old, new))) == {"Row"}
    assert changed(before, of(text.replace("return self.a", "return -self.a"))) == {"Row.total"}
    own = text.replace("def total", "def __repr__")
    assert changed(of(own), of(own.replace("return self.a", "return -self.a"))) == {"Row.__repr__"}


def test_pydantic_models() -> None:
    text = (
        "    from pydantic import BaseModel, Field, field_validator\n"
        "    class Row(BaseModel):\n        model_config = {'frozen': True}\n"
        "        a: int = Field(default=1, gt=0)\n"
        "        @field_validator('a', mode='before')\n        @classmethod\n"
        "        def check(cls, value): return value\n    def f(): return Row()\n"
    )
    before = of(text)
    assert before == of("\n" + text)
    assert before.unsure == ()
    for old, new in (
        ("gt=0", "gt=1"),
        ("default=1", "default=2"),
        ("a: int", "a: float"),
        ("'before'", "'after'"),
        ("'frozen': True", "'frozen': False"),
    ):
        assert "Row" in changed(before, of(text.replace(old, new))), old
    assert changed(before, of(text.replace("return value", "return -value"))) == {"Row.check"}


@pytest.mark.parametrize(
    ("text", "old", "new", "part"),
    [
        ("import functools\n@functools.wraps(g)\ndef f(x): return g(x)", "x + 1", "x + 2", "g"),
        ("import functools\nf = functools.lru_cache(g)", "x + 1", "x + 2", "g"),
        ("import functools\nf = functools.partial(g, 1)", "x + 1", "x + 2", "g"),
        ("import functools\nh = functools.lru_cache(g)\ndef f(): return h(1)", "x + 1", "x + 2", "g"),
        ("import functools\nh = functools.partial(g, 1)\ndef f(): return h(1)", "(g, 1)", "(g, 2)", "h"),
        ("import contextlib\n@contextlib.contextmanager\ndef f(): yield g(1)", "yield", "yield 1 +", "f"),
        ("def twice(fn):\n    def run(x): return fn(fn(x))\n    return run\nf = twice(g)", "x + 1", "x + 2", "g"),
        ("def twice(fn):\n    def run(x): return fn(fn(x))\n"
            "    return run\nf = twice(g)", "fn(fn(x))", "fn(x)", "twice.<locals>.run"),
        ("def by(n):\n    def run(x): return g(x) * n\n"
            "    return run\nf = by(2)", "by(2)", "by(3)", "by.<locals>.run"),
        ("def by(n):\n"
            "    return lambda x: [i * n for i in g(x)]\nf = by(2)", "i * n", "i + n", "by.<locals>.<lambda>"),
        ("def f(x, by=g): return by(x)", "x + 1", "x + 2", "g"),
        ("def f(x, *, by=g): return by(x)", "x + 1", "x + 2", "g"),
        ("TABLE = {'a': [g]}\ndef f(x): return TABLE['a'][0](x)", "x + 1", "x + 2", "g"),
        ("TABLE = {'a': [g]}\ndef f(x): return TABLE['a'][0](x)", "'a'", "'b'", None),
        ("def f(x):\n    def inner(): return [g(i) for i in x]\n    return inner()", "x + 1", "x + 2", "g"),
        ("def f(x):\n    class A:\n        y = g(1)\n    return A", "x + 1", "x + 2", "g"),
        ("class Call:\n    def __init__(self, n): self.n = n\n"
            "    def __call__(self): return g(self.n)\nf = Call(1)", "x + 1", "x + 2", "g"),
        ("class A:\n    def m(self): return g(1)\na = A()\nf = a.m", "x + 1", "x + 2", "g"),
        ("class A:\n    def m(self): return g(1)\na = A()\ndef f(): return a.m()", "x + 1", "x + 2", "g"),
        ("class A:\n    def __init__(self): self.n = 1\n"
            "a = A()\ndef f(): return a.n", "self.n = 1", "self.n = 2", None),
        ("class A:\n    def m(self): return super().m()\n    m2 = 1\nf = A.m", "m2 = 1", "m2 = 2", "A"),
        ("from flowlane import task\nt = task.io(g)\ndef f(): return t.fn(1)", "x + 1", "x + 2", "g"),
        ("from flowlane import task\nf = task.io(retries=3)(g)", "x + 1", "x + 2", "g"),
        ("from flowlane import task\nclass A:\n"
            "    @task.cpu\n    def m(self): return g(1)\nf = A.m", "x + 1", "x + 2", "g"),
    ],
)  # fmt: skip
def test_what_leads_to_other_functions(text: str, old: str, new: str, part: str | None) -> None:
    text = "def g(x): return x + 1\n" + text
    before, after = of(text), of(text.replace(old, new))
    assert old in text
    assert before.unsure == ()
    if part is None:
        assert before != after
    else:
        assert part in changed(before, after)


def test_options_of_a_task_do_not_matter() -> None:
    text = "    from flowlane import task\n    @task.io(retries={})\n    def f(x): return x\n"
    assert of(text.format(1)) == of(text.format(2))


def test_recursion_ends() -> None:
    text = (
        "    def f(x): return g(x - 1) if x else f(x)\n    def g(x): return f(x) + len(TABLE)\n    TABLE = {'f': f}\n"
        "    class A:\n        def m(self): return A, B\n    class B(A):\n"
        "        a = A\n    TABLE['b'] = B\n    TABLE['self'] = TABLE\n"
    )
    before = of(text)
    assert set(before.parts) == {"f", "g", "TABLE", "A", "A.m", "B", "python"}
    assert changed(before, of(text.replace("x - 1", "x - 2"))) == {"f"}
    closure = "    def make():\n        def run(x): return run(x - 1)\n        return run\n    f = make()\n"
    assert set(of(closure).parts) == {"make.<locals>.run", "python"}


def test_closures_of_one_factory_are_told_apart() -> None:
    text = "    def by(n): return lambda x: x * n\n    a, b = by(2), by(3)\n    def f(x): return a(x) + b(x)\n"
    before = of(text)
    assert {"by.<locals>.<lambda>", "by.<locals>.<lambda>#2"} < set(before.parts)
    assert of(text.replace("by(2), by(3)", "by(3), by(2)")).digest != before.digest


def test_a_cell_that_is_still_empty() -> None:
    text = (
        "    def make():\n        def run(): return later\n        yield run\n        later = 1\n    f = next(make())\n"
    )
    assert of(text) == of(text.replace("= 1", "= 2"))


def test_depth_is_no_matter() -> None:
    steps = "".join(f"    def g{i}(): return g{i + 1}()\n" for i in range(2000))
    text = f"    def f(): return g0()\n{steps}    def g2000(): return {{}}\n"
    assert changed(of(text.format(1)), of(text.format(2))) == {"g2000"}


def test_deeply_nested_lambdas() -> None:
    source = "lambda: " * 60 + "1"
    assert len(bytecode.read(compile(source, "x", "eval")).digest) == 32


# ── constants ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_names_of_modules_about_themselves_do_not_matter() -> None:
    before = of("    def f(): return __file__, __name__, print, nothing\n")
    os.rename("etl.py", "moved.py")
    assert fingerprint(load_file("moved.py").f) == before
    assert set(before.parts) == {"f", "python"}


def test_what_cannot_be_told_counts_by_its_type() -> None:
    text = (
        "    import threading, logging, structlog, types\n"
        "    LOCK = threading.Lock()\n    CONFIG = {'a': [threading.Lock(), 1]}\n"
        "    log = logging.getLogger('x')\n    slog = structlog.get_logger()\n    MISSING = object()\n"
        "    class Client:\n        lock = threading.Lock()\n"
        "    client = Client()\n    client.lock = threading.Lock()\n"
        "    def f(x=threading.Lock()):\n        with LOCK: log.info(CONFIG, slog, MISSING, client)\n"
    )
    before = of(text)
    assert set(before.unsure) == {
        "LOCK (_thread.lock)",
        "CONFIG['a'][0] (_thread.lock)",
        "Client.lock (_thread.lock)",
        "client.lock (_thread.lock)",
        "f.__defaults__[0] (_thread.lock)",
    }
    assert before == of(text)
    assert changed(before, of(text.replace("LOCK = threading.Lock()", "LOCK = threading.RLock()"))) == {"LOCK"}
    assert changed(before, of(text.replace("Lock(), 1]", "Lock(), 2]"))) == {"CONFIG"}


def test_what_others_put_into_a_class_is_not_told() -> None:
    text = (
        "    import threading, weakref\n    class A:\n        {} = threading.Lock()\n"
        "    ref = weakref.ref(A)\n    def f(): return A, ref\n"
    )
    assert of(text.format("__theirs__")).unsure == ("ref (weakref.ReferenceType)",)
    assert of(text.format("mine")).unsure == ("ref (weakref.ReferenceType)", "A.mine (_thread.lock)")


def test_a_closure_over_what_cannot_be_told() -> None:
    text = (
        "    import threading\n    def make():\n        lock = threading.Lock()\n"
        "        return lambda: lock\n    f = make()\n"
    )
    assert of(text).unsure == ("lock of make.<locals>.<lambda> (_thread.lock)",)


def test_objects_that_know_each_other_in_circles_end() -> None:
    text = (
        "    class Node:\n        pass\n    nodes = [Node() for _ in range(30)]\n"
        "    for each in nodes: each.others = nodes\n"
        "    for each in nodes: each.rest = [other for other in nodes if other is not each]\n"
        "    def f(): return nodes\n"
    )
    found = of(text)
    assert any("Node" in each for each in found.unsure)


def test_constants_are_named_once() -> None:
    text = (
        "    LIMIT = 1\n    def g(): return LIMIT\n    def f(): return LIMIT + g()\n    class A:\n        LIMIT = 2\n"
    )
    assert set(of(text).parts) == {"LIMIT", "f", "g", "python"}


def test_no_code_of_the_users_runs() -> None:
    text = """
        class Trap:
            def __getattribute__(self, name): raise SystemError(name)
            def __eq__(self, other): raise SystemError
            def __hash__(self): raise SystemError
            def __repr__(self): raise SystemError
            __class__ = property(lambda self: 1 / 0)
            def __call__(self): pass
        class Lazy:
            @property
            def value(self): raise SystemError
            def __getattr__(self, name): raise SystemError
        class Meta(type):
            def __getattribute__(cls, name): raise SystemError(name)
            def __instancecheck__(cls, value): raise SystemError
            def __eq__(cls, other): raise SystemError
            def __hash__(cls): raise SystemError
        class Odd(metaclass=Meta):
            __flow__ = 1
        trap, lazy = Trap(), Lazy()
        odd = object.__new__(Odd)
        def f(): return trap, lazy, Odd, odd
    """
    found = of(text)
    assert {"Trap", "Trap.__repr__", "Lazy.value", "Odd", "Meta"} <= set(found.parts)
    assert of(text, "trap").parts.keys() > {"Trap"}
    assert of(text, "Odd").digest


def test_lazy_modules_stay_lazy() -> None:
    with open("user_lazy.py", "w") as file:
        file.write("raise SystemError\n")
    text = (
        "    import importlib.util as u, sys\n    spec = u.find_spec('user_lazy')\n"
        "    user_lazy = u.module_from_spec(spec)\n"
        "    sys.modules['user_lazy'] = user_lazy\n    u.LazyLoader(spec.loader).exec_module(user_lazy)\n"
        "    def f(): return user_lazy.g()\n"
    )
    assert set(of(text).parts) == {"f", "python"}


def test_its_own_word() -> None:
    text = (
        "    class Model:\n        def __init__(self, n): self.n = n\n"
        "        def __flow_digest__(self): return str(self.n)\n"
        "        def __reduce__(self): raise TypeError\n    model = Model(1)\n    def f(): return model\n"
    )
    before = of(text)
    assert before.unsure == ()
    assert changed(before, of(text.replace("Model(1)", "Model(2)"))) == {"model"}
    assert of(text.replace("return str(self.n)", "raise KeyError")).unsure == ("model (_flow_etl.Model)",)


# ── what is not the user's ────────────────────────────────────────────────────────────────────────────────────────


def test_installed_packages_by_their_version(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy

    texts = (
        "    import numpy as np\n    def f(x): return np.sum(x)\n",
        "    from numpy import sum\n    def f(x): return sum(x)\n",
        "    from numpy.linalg import norm as n\n    def f(x): return n(x)\n",
        "    from numpy import ndarray\n    def f(x): return ndarray(x)\n",
    )
    for text in texts:
        before = of(text)
        assert before.parts["numpy"] == numpy.__version__
        with monkeypatch.context() as patch:
            patch.setattr(numpy, "__version__", "0.1")
            after = of(text)
        assert changed(before, after) == {"numpy"}
        assert before.unsure == ()
    for text in (
        "    import json\n    def f(x): return json.dumps(x)\n",
        "    from json import dumps\n    def f(x): return dumps(x)\n",
    ):
        assert set(of(text).parts) == {"f", "python"}
    import flowlane

    assert flowlane.__version__ in flowlane.__dict__.values()  # it is made when first asked for
    assert "flowlane" not in of("    import flowlane\n    def f(x): return flowlane.run(x)\n").parts


def test_a_package_without_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy

    monkeypatch.delattr(numpy, "__version__")
    assert set(of("    import numpy as np\n    def f(x): return np.sum(x)\n").parts) == {"f", "python"}


def test_decorators_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their code is not looked at, what they hold is."""
    text = (
        "    import functools\n    @functools.singledispatch\n"
        "    def f(x): return 1\n    @f.register\n    def g(x: int): return 2\n"
    )
    before = of(text)
    assert before.unsure == ()
    assert changed(before, of(text.replace("return 1", "return 3"))) == {"f"}
    assert changed(before, of(text.replace("return 2", "return 3"))) == {"g"}
    text = "    import contextlib\n    @contextlib.contextmanager\n    def f(): yield 1\n"
    assert set(of(text).parts) == {"f", "contextlib.contextmanager.<locals>.helper", "python"}


def test_the_file_tells_whose_code_it_is() -> None:
    """A program run by another has ``__main__`` for its module's name, which is the other's."""
    made = []
    for value in (1, 2):
        scope: dict[str, Any] = {"__name__": "pytest.__main__"}
        exec(compile(f"def f(): return {value}", os.path.abspath("program.py"), "exec"), scope)
        made.append(fingerprint(scope["f"]))
    assert made[0] != made[1]


def test_what_stands_for_a_function_is_no_part() -> None:
    text = (
        "    from flowlane import task\n    import functools\n    @task.io\n    def g(): return 1\n"
        "    @functools.cache\n    def h(): return 1\n    def f(): return g, h\n"
    )
    parts = set(of(text).parts)
    assert {part for part in parts if not part.startswith("functools.")} == {"f", "g", "h", "python"}


def test_decorators_that_are_objects_of_c() -> None:
    """As those of numba: what they wrap can be read."""
    text = (
        "    import functools, io\n    class Compiled(io.BytesIO):\n"
        "        def __init__(self, fn): functools.update_wrapper(self, fn)\n"
        "    @Compiled\n    def g(x): return x + 1\n    def f(x): return g(x)\n"
    )
    before = of(text)
    assert before.unsure == ()
    assert changed(before, of(text.replace("x + 1", "x + 2"))) == {"g#2"}  # g is the decorated one


def test_what_a_user_compiled_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import math

    monkeypatch.setattr("flowlane.storage.families.is_user_module", lambda name: name == "math")
    assert fingerprint(math.sqrt).unsure == (" (builtin_function_or_method)",)


def test_members_of_a_dataclass_under_an_odd_wrapper() -> None:
    text = (
        "    import functools, dataclasses\n    def odd(fn):\n        def run(self): return 1\n"
        "        run.__wrapped__ = functools.partial(fn)\n"
        "        return run\n    @dataclasses.dataclass\n    class A:\n"
        "        @odd\n        def m(self): return 2\n    def f(): return A()\n"
    )
    assert changed(of(text), of(text.replace("return 2", "return 3"))) == {"A.m"}


def test_the_version_of_python_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(PLAIN)
    assert before.parts["python"] == sys.implementation.cache_tag
    monkeypatch.setattr("flowlane.storage.fingerprint.VERSION", "cpython-399")
    assert changed(before, of(PLAIN)) == {"python"}


def test_odd_callables() -> None:
    class Slotted:
        __slots__ = ("lock",)

        def __call__(self) -> None: ...

        def method(self) -> None: ...

    odd: list[Any] = [
        len, print, [].append, "a".join, dict.fromkeys, str.upper, int.__add__, (1).__add__, object.__init__, type, object, int,
        functools.partial(len), functools.lru_cache(len), functools.cached_property(len), property(), staticmethod(len),
        types.SimpleNamespace, threading.Lock, threading.Lock(), threading.Thread, logging.getLogger, Slotted(), Slotted().method,
        None, 3, "text", NotImplemented, sys, iter([]), (x for x in ()), Exception, Exception("a"), types.FunctionType,
        Slotted.lock, types.FunctionType.__code__, dict.__dict__["fromkeys"], type.__call__, subprocess.Popen, json.dumps,
        print.__call__,
    ]  # fmt: skip
    digests = [fingerprint(each).digest for each in odd]
    assert all(len(each) == 32 for each in digests)
    assert len(set(digests)) == len(odd)


def test_partials_and_methods() -> None:
    def g(x: int, y: int = 0) -> int:
        return x

    assert fingerprint(functools.partial(g, 1)) == fingerprint(functools.partial(g, 1))
    assert fingerprint(functools.partial(g, 1)) != fingerprint(functools.partial(g, 2))
    assert fingerprint(functools.partial(g, y=1)) != fingerprint(functools.partial(g, y=2))
    assert fingerprint(functools.partial(g)) != fingerprint(g)
    assert fingerprint([1].append) != fingerprint([2].append)


def test_code_that_was_typed_in() -> None:
    """A notebook, ``python -c``: code from no file is the user's."""
    program = (
        "from flowlane.storage.fingerprint import fingerprint\ndef g(): return {}\ndef f(): return g()\n"
        "print(sorted(fingerprint(f).parts), fingerprint(f).digest.hex())"
    )
    one, two = in_process(program.format(1), "0"), in_process(program.format(2), "0")
    assert one.startswith("['f', 'g', 'python']")
    assert one != two
    piped = subprocess.run([sys.executable, "-"], input=program.format(1), check=True, capture_output=True, text=True)
    assert piped.stdout == one
    made = [NamedTuple("P", [("a", int), (name, int)]) for name in "bc"]
    assert fingerprint(made[0]).digest != fingerprint(made[1]).digest


def test_stable_across_processes(tmp_path: Path) -> None:
    text = (
        PLAIN
        + textwrap.dedent(CLASSES).replace("helper", "helper2").replace("def f", "def f2")
        + """
import enum, dataclasses, pydantic, logging
class E(enum.Flag):
    A = 1
    B = 2
@dataclasses.dataclass(slots=True)
class D:
    x: E = E.A
    y: "set[str] | None" = None
    def reset(self): self.x = E.B; self.y = None; self.x = E.A
class M(pydantic.BaseModel):
    x: int = pydantic.Field(gt=1)
    y: E | None = None
    z: dict[str, list[int]] = {}
NAMES = {"a", "b", "c", "d", "e"}
HANDLERS = {"x": f, "y": Reader}
def all_of_it():
    class Inner:
        def __init__(self): self.one = self.two = self.three = 1
    return f, f2, E, D, M, NAMES, HANDLERS, D(), M(x=3)
"""
    )
    with open("etl.py", "w") as file:
        file.write(text)
    program = (
        "from flowlane.loader import load_file\nfrom flowlane.storage.fingerprint import fingerprint\n"
        "found = fingerprint(load_file('etl.py').all_of_it)\n"
        "print(found.digest.hex(), dict(found.parts), found.unsure)"
    )
    told = {in_process(program, seed) for seed in ("0", "1", "2", "3")}
    assert len(told) == 1
    assert told.pop().strip().endswith("()")
