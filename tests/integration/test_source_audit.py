"""workflows/source_audit.py: its tasks one by one, and whole runs held against its serial oracle."""

from __future__ import annotations

import ast
import asyncio
import importlib
import itertools
import os
import random
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.log_reader import complaints, read

import flowlane
from flowlane.loader import load_file

if TYPE_CHECKING:
    from collections.abc import Sequence

FILE = Path(__file__).parents[2] / "workflows" / "source_audit.py"
audit: Any = load_file(FILE)
nx: Any = importlib.import_module("networkx")


def measure(text: str | bytes, name: str = "pkg.mod", path: str = "pkg/mod.py") -> Any:
    source = text if isinstance(text, bytes) else textwrap.dedent(text).encode()
    return audit.measure.fn(name, path, audit.Source(source))


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "complexity"),
    [
        ("pass", 1),
        ("if a: pass", 2),
        ("if a: pass\nelif b: pass\nelse: pass", 3),
        ("for x in a: pass\nelse: pass", 2),
        ("while a: pass", 2),
        ("try: pass\nexcept A: pass\nexcept B: pass\nfinally: pass", 3),
        ("with a: pass", 1),
        ("return a if b else c", 2),
        ("return a and b and c or d", 4),
        ("return [x for x in a if x if y]", 4),
        ("return {x for x in a for y in x}", 3),
        ("match a:\n case 1: pass\n case [x] if x: pass\n case _: pass", 4),
        ("match a:\n case x if x: pass", 2),
        ("return lambda: a or b", 2),
        ("assert a", 1),
        ("def inner():\n  if a: pass\nreturn inner", 1),  # counted on its own
        ("class Inner:\n  if a: x = 1", 2),  # a class body belongs to what surrounds it
    ],
)
def test_complexity_is_decisions_plus_one(body: str, complexity: int) -> None:
    module = measure("async def f():\n" + textwrap.indent(body, "  "))
    assert {function.name: function.complexity for function in module.worst}["f"] == complexity


def test_functions_carry_their_qualified_name_and_place() -> None:
    module = measure(
        """\
        class A:
            def m(self, x=[y for y in z]):
                def inner():
                    if x: return
        @(a if b else c)
        def top(): pass
        """
    )
    assert {(f.name, f.line, f.lines, f.complexity) for f in module.worst} == {
        ("A.m", 2, 3, 1),  # its default is evaluated outside, as is the decorator of `top`
        ("A.m.inner", 3, 2, 2),
        ("top", 6, 1, 1),
    }
    assert (module.functions, module.classes, module.complexity, module.bands) == (3, 1, 4, (3, 0, 0, 0, 0))


def reference(tree: ast.AST) -> list[int]:
    """Complexities of all functions, written in another way: recursive, by unparsed kinds of nodes."""
    found: list[int] = []

    def decisions(node: ast.AST) -> int:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(1 + sum(decisions(child) for child in node.body))
            outside = [node.args, *node.decorator_list, *([node.returns] if node.returns else [])]
            return sum(decisions(child) for child in outside)
        own: int = isinstance(
            node, (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.comprehension)
        )
        if isinstance(node, ast.BoolOp):
            own = len(node.values) - 1
        if isinstance(node, ast.comprehension):
            own = 1 + len(node.ifs)
        if isinstance(node, ast.match_case):
            bare = isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None
            own = (not bare) + bool(node.guard)
        return own + sum(decisions(child) for child in ast.iter_child_nodes(node))

    decisions(tree)
    return sorted(found)


@pytest.mark.parametrize("name", ["argparse", "ast", "dataclasses", "enum", "shlex", "subprocess", "typing"])
def test_complexity_of_real_files_by_another_reckoning(name: str) -> None:
    text = Path(sysconfig.get_path("stdlib"), f"{name}.py").read_bytes()
    anatomy = audit.Anatomy(name, is_package=False)
    anatomy.dissect(audit.parse(text)[0])
    expected = reference(audit.parse(text)[0])
    assert sorted(function.complexity for function in anatomy.functions) == expected
    module = measure(text)
    assert (module.functions, module.complexity) == (len(expected), sum(expected))
    assert [function.complexity for function in module.worst] == expected[::-1][: audit.WORST]


def test_imports_are_resolved_and_told_apart_by_when_they_happen() -> None:
    text = """\
        import os.path, sys as system
        from . import sibling
        from .sub import thing as other
        from .. import above
        from ... import far
        from json import *
        from typing import TYPE_CHECKING
        try:
            import fast
        except ImportError:
            fast = None
        if TYPE_CHECKING:
            import types_only
        else:
            import not_checking
        if __name__ == "__main__":
            import script_only
        class C:
            import in_class
        def f():
            import later
            import sys
    """
    module = measure(text, "top.pkg.mod", "top/pkg/mod.py")
    assert set(module.imports) == {
        "os.path", "sys", "top.pkg.sibling", "top.pkg.sub.thing", "top.above", "json", "typing.TYPE_CHECKING", "fast",
        "not_checking", "in_class",
    }  # fmt: skip
    assert set(module.later) == {"types_only", "script_only", "later"}
    package = measure("from . import a\nfrom .b import c", "top.pkg", "top/pkg/__init__.py")
    assert set(package.imports) == {"top.pkg.a", "top.pkg.b.c"}


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (b"def f(:\n", 1, "invalid syntax"),
        (b"x = 1\n\nprint 'old'\n", 3, "print"),
        (b"x = 1\0", None, "null bytes"),
        (b"# coding: nonsense\n", 0, "nonsense"),
        (b"# coding: utf-8\nx = '\xff'\n", None, "utf-8"),
        (b"(" * 5000 + b")" * 5000, None, "nested"),
        (b"x = " + b"-" * 100_000 + b"1", None, ""),
    ],
    ids=["syntax", "python 2", "null", "unknown coding", "wrong coding", "parentheses", "too deep"],
)
def test_files_that_do_not_parse_are_findings(text: bytes, line: int | None, said: str) -> None:
    module = measure(text)
    assert module.problem is not None
    assert said in module.problem.text
    assert module.problem.text
    assert line is None or module.problem.line == line
    assert module.functions == 0
    assert module.size == len(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xef\xbb\xbfx = 1\n",
        b"# -*- coding: latin-1 -*-\nname = '\xe9'\n",
        b"x = 1\r\nif x:\r\n  y = 2\r\n",
        b"\f\n",
    ],
)
def test_unusual_files_parse(text: bytes) -> None:
    assert measure(text).problem is None


def test_deep_but_legal_nesting_does_not_recurse() -> None:
    module = measure("def f():\n  return " + "+".join("a" * 900) + "\n" + "  \n" * 20 + "  return 1")
    assert module.problem is None
    assert module.functions == 1
    assert len(module.bodies) == 1


def test_warnings_of_the_compiler_are_findings_and_reach_nobody_else() -> None:
    module = measure("x = 1\ny = '\\('\n")
    assert [(finding.line, "\\(" in finding.text) for finding in module.warned] == [(2, True)]


def test_a_file_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    source = audit.read.fn(str(tmp_path / "missing.py"))
    module = audit.measure.fn("missing", "missing.py", source)
    assert module.problem == (0, "cannot be read: No such file or directory")


FUNCTION = """\
def {name}(a, b):
    {doc}
    total = 0
    for x in a:
        if x {operator} b:
            total += 1
        else:
            total -= 1

    # a comment
    print(total)
    return {result}
"""


def body(**words: str) -> Any:
    words = {"name": "f", "doc": "", "operator": "<", "result": "total", **words}
    (found,) = measure(FUNCTION.format(**words)).bodies
    return found.print


def test_equal_code_has_equal_prints_whatever_its_name_and_docstring() -> None:
    assert body() == body(name="g") == body(doc='"""What it does."""') == body(result="(total)")


@pytest.mark.parametrize("words", [{"operator": ">"}, {"result": "-total"}, {"result": "'total'"}, {"doc": "pass"}])
def test_different_code_has_different_prints(words: dict[str, str]) -> None:
    assert body(**words) != body()


def test_copies_are_ranked_by_what_they_cost() -> None:
    big, small = (
        FUNCTION.format(name="f", doc="", operator="<", result="a"),
        FUNCTION.format(name="g", doc="", operator="<", result="b"),
    )
    modules = [
        measure(big, "a", "a.py"),
        measure(small + big, "b", "b.py"),
        measure("x = 1\n" + small + "\n" + big, "c", "c.py"),
        measure("def short(): pass", "d", "d.py"),
        measure("def short(): pass", "e", "e.py"),
    ]
    assert audit.compare.fn(modules) == [
        ("f", 10, ("a.py:1", "b.py:13", "c.py:15")),
        ("g", 10, ("b.py:1", "c.py:2")),
    ]


# ── the import graph ──────────────────────────────────────────────────────────────────────────────────────────────


def random_graph(seed: int, nodes: int = 30, edges: int = 55) -> dict[str, list[str]]:
    dice = random.Random(seed)
    graph: dict[str, set[str]] = {f"m{number:02}": set() for number in range(nodes)}
    for _ in range(edges):
        a, b = dice.sample(sorted(graph), 2)
        graph[a].add(b)
    return {name: sorted(targets) for name, targets in graph.items()}


@pytest.mark.parametrize("seed", range(20))
def test_components_and_cycles_are_those_of_networkx(seed: int) -> None:
    graph = random_graph(seed)
    digraph: Any = nx.DiGraph(graph)
    groups = audit.components(graph)
    assert sorted(groups) == sorted(sorted(group) for group in nx.strongly_connected_components(digraph))
    for group in groups:
        if len(group) > 1:
            cycle = audit.shortest_cycle(group, graph)
            assert cycle[0] == cycle[-1]
            assert set(cycle) <= set(group)
            assert all(b in graph[a] for a, b in itertools.pairwise(cycle))
            inside: Any = digraph.subgraph(group)
            assert len(cycle) - 1 == min(nx.shortest_path_length(inside, b, a) + 1 for a, b in inside.edges)


def test_a_long_chain_of_imports_does_not_recurse() -> None:
    names = [f"m{number}" for number in range(20_000)]
    graph = {a: [b] for a, b in zip(names, [*names[1:], names[0]], strict=True)}
    assert [len(group) for group in audit.components(graph)] == [20_000]
    assert len(audit.reachable("m0", graph)) == 20_000


def test_link_resolves_to_the_nearest_module_and_tells_what_is_missing() -> None:
    texts = {
        "pkg": "from pkg.a import f",
        "pkg.a": "import pkg.b.name, os, nowhere\ndef f():\n  import pkg.c",
        "pkg.b": "from pkg import c",
        "pkg.c": "import pkg.a",
        "alone": "import alone",
    }
    modules = [measure(text, name, f"{name.replace('.', '/')}.py") for name, text in texts.items()]
    imports = audit.link.fn(modules, ["pkg.b", "absent"])
    assert imports.edges == 4
    assert imports.later == 1
    assert imports.popular[0] == ("pkg.a", 2)
    assert imports.cycles == ((3, ("pkg.a", "pkg.b", "pkg.c", "pkg.a")),)
    assert imports.knot == 3
    assert imports.missing == (("nowhere", "pkg/a.py"),)
    assert imports.reach == (("pkg.b", ("pkg", "pkg.a", "pkg.b", "pkg.c")),)


# ── asking an interpreter ─────────────────────────────────────────────────────────────────────────────────────────


async def test_load_tells_what_an_import_loaded(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("import two\nprint('noise')")
    (tmp_path / "two.py").write_text("")
    answer = await audit.load.fn("one", str(tmp_path))
    assert answer.problem is None
    assert {"one", "two"} <= set(answer.modules) or answer.problem
    assert "sys" in answer.before


async def test_an_import_that_fails_is_an_answer(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("raise RuntimeError('no, thanks')")
    answer = await audit.load.fn("bad", str(tmp_path))
    assert (answer.modules, answer.problem) == ((), "RuntimeError: no, thanks")


async def test_cancelling_load_leaves_no_process(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    (tmp_path / "endless.py").write_text(
        f"import os, time\nopen({str(told)!r} + '.new', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(told)!r} + '.new', {str(told)!r})\ntime.sleep(600)"
    )
    waiting = asyncio.create_task(audit.load.fn("endless", str(tmp_path)))
    while not told.exists() and not waiting.done():
        await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)


# ── which files ───────────────────────────────────────────────────────────────────────────────────────────────────


def tree(root: Path) -> Path:
    """A little of everything that a tree of sources may hold."""
    copied = FUNCTION.format(name="copied", doc="", operator="<", result="total")
    files = {
        "top.py": "import shop.cart\nimport nowhere_at_all\n",
        "shop/__init__.py": "from shop.cart import copied\n",
        "shop/cart.py": f"from shop import stock\nimport json\n{copied}",
        "shop/stock.py": f"import shop.cart\n{copied}",
        "shop/bad.py": "def f(:\n",
        "shop/warned.py": "x = '\\('\n",
        "shop/tests/test_cart.py": "import shop\n\ndef test(): assert shop\n",
        "shop/esc\x1b[31m.py": "x = 1\n",
        "shop/__pycache__/left.py": "",
        ".hidden/left.py": "",
        "site-packages/left.py": "",
        "venv/pyvenv.cfg": "",
        "venv/left.py": "",
        "notes.txt": "",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / "shop" / "latin.py").write_bytes(b"# coding: latin-1\nx = '\xe9'\n")
    return root


def names(root: Path | None, limit: int = 0, tests: bool = True) -> list[str]:
    return [name for name, _ in audit.survey(root, limit, tests, None)[1]]


def test_survey_takes_sources_and_leaves_out_what_is_installed_or_hidden(tmp_path: Path) -> None:
    tree(tmp_path)
    found = names(tmp_path)
    assert found == [
        "shop", "shop.bad", "shop.cart", "shop.esc\x1b[31m", "shop.latin", "shop.stock", "shop.tests.test_cart",
        "shop.warned", "top",
    ]  # fmt: skip
    assert names(tmp_path, tests=False) == [name for name in found if "tests" not in name]
    assert names(tmp_path, limit=3) == ["shop", "shop.bad", "top"]  # nearest to the root


def test_a_root_that_is_a_package_is_named_from_where_it_is_imported(tmp_path: Path) -> None:
    tree(tmp_path)
    assert "shop.cart" in names(tmp_path / "shop")
    assert audit.import_root(tmp_path / "shop") == tmp_path.resolve()


def test_the_interpreters_own_library_is_the_default() -> None:
    base, files, probes = audit.survey(None, 0, False, None)
    assert str(base) == sysconfig.get_path("stdlib")
    assert len(files) > 500
    assert set(probes) == set(audit.PROBES)
    assert not any("site-packages" in path for _, path in files)


def test_another_tree_is_not_executed_unless_asked_for(tmp_path: Path) -> None:
    tree(tmp_path)
    assert audit.survey(tmp_path, 0, True, None)[2] == []
    assert audit.survey(tmp_path, 0, True, ["top"])[2] == ["top"]


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        audit.survey(tmp_path / "absent", 0, True, None)
    with pytest.raises(ValueError, match="limit is -1"):
        audit.survey(tmp_path, -1, True, None)


# ── the report, and whole runs ────────────────────────────────────────────────────────────────────────────────────


def test_the_report_tells_what_is_in_the_tree(tmp_path: Path) -> None:
    text = audit.serial(tree(tmp_path), probes=["shop", "shop.bad"])
    for told in (
        "9 files",
        "shop.cart → shop.stock → shop.cart",
        "✗ shop/bad.py:1  invalid syntax",
        "! shop/warned.py:1  invalid escape sequence",
        "nowhere_at_all (top.py)",
        "shop/cart.py:3 = shop/stock.py:2",
        "shop.bad                    ✗  SyntaxError: invalid syntax",
    ):
        assert told in text, text


def test_no_line_of_a_report_is_wider_than_a_terminal_or_hostile_to_it(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "shop" / f"{'long' * 40}\x1b]0;.py").write_text(
        "".join(f"def {'f' * 150}{number}(): return a or b\n" for number in range(20)) + "def g(:\n"
    )
    (root / "shop" / f"{'wide' * 40}.py").write_text(f"def {'f' * 150}(): return a or b\nimport {'x' * 200}\n")
    text = audit.serial(root)
    assert all(len(line) <= audit.WIDTH for line in text.splitlines())
    assert all(char.isprintable() for char in text.replace("\n", ""))


@pytest.mark.parametrize("text", ["", "x = 1\n"])
def test_a_tree_with_next_to_nothing_has_a_report(tmp_path: Path, text: str) -> None:
    if text:
        (tmp_path / "only.py").write_text(text)
    assert f"{bool(text):d} file" in audit.serial(tmp_path)


def edges(files: int, probes: int) -> dict[str, list[str]]:
    """The graph of a run, by hand: the n-th call of a task is ``task#n``."""

    def calls(name: str, count: int) -> list[str]:
        return [name if number == 1 else f"{name}#{number}" for number in range(1, count + 1)]

    reads, measures, loads = calls("read", files), calls("measure", files), calls("load", probes)
    graph: dict[str, list[str]] = {name: [] for name in (*reads, *loads)}
    graph |= {measure: [read] for measure, read in zip(measures, reads, strict=True)}
    graph |= {"link": measures, "compare": measures, "report": [*measures, "link", "compare", *loads]}
    return graph


def executors_of(kinds: Sequence[dict[str, Any]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for event in kinds:
        found.setdefault(event["task"].partition("#")[0], set()).add(event["executor"])
    return found


@pytest.mark.parametrize("routes", [{"*": "inline"}, {"cpu": "threads"}, {}], ids=["inline", "threads", "as tagged"])
def test_a_run_gives_the_serial_report(tmp_path: Path, routes: dict[str, str]) -> None:
    root = tree(tmp_path)
    bound = audit.source_audit.bind(root=root, probes=["shop", "shop.bad"])
    result: Any = flowlane.run(bound, routes=routes)
    assert result.state == "succeeded"
    assert result.value == audit.serial(root, probes=["shop", "shop.bad"])
    assert set(result.tasks) == set(edges(9, 2))


def flow(cwd: Path, *args: str, timeout: float = 50) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowlane", "run", str(FILE), *args]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=timeout, check=False
    )


def test_flow_run_prints_the_serial_report_and_its_log_is_sound(tmp_path: Path) -> None:
    root = tree(tmp_path / "sources")
    done = flow(tmp_path, "-p", f"root={root}", "-p", 'probes=["shop", "top"]')
    assert done.returncode == 0, done.stderr
    assert done.stdout == audit.serial(root, probes=["shop", "top"]) + "\n"
    (log,) = tmp_path.glob(".flow/runs/*/events.jsonl")
    story = read(log)
    assert complaints(story, edges(9, 2)) == []
    assert executors_of(story.transitions) == {
        "read": {"threads"}, "load": {"asyncio"}, "measure": {"processes"}, "link": {"processes"},
        "compare": {"processes"}, "report": {"processes"},
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_library_as_the_serial_run_has_it(tmp_path: Path) -> None:
    done = flow(tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == audit.serial() + "\n"
    _, files, probes = audit.survey(None, 0, True, None)
    (log,) = tmp_path.glob(".flow/runs/*/events.jsonl")
    assert complaints(read(log), edges(len(files), len(probes))) == []
