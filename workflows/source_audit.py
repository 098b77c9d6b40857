"""Audit a tree of Python sources: complexity, copies, imports and their cycles, files that do not parse.

    flow run workflows/source_audit.py                              the running Python's own library: about 1,800 files
    flow run workflows/source_audit.py -p tests=false               without its tests: about 700
    flow run workflows/source_audit.py -p root=src -p limit=100     another tree, the 100 files nearest to its root

One run uses three executors at once, each for what it is good at:

    read[threads] ──▶ measure[processes] ──┬──▶ link[processes] ───┬──▶ report[processes]
       one a file        one a file        ├──▶ compare[processes] ┤
                                           └───────────────────────┤
    load[asyncio]: child interpreters, one a probed module ────────┘

A file that cannot be read or parsed is a finding, not a failure: auditing is about what is wrong with sources. `serial`
does the same work in one loop and one thread; its report is equal to the last byte, so reports hold no times and no
order of completion.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import os
import sys
import sysconfig
import textwrap
import threading
import warnings
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from flowlane import task, workflow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

# ── what travels between tasks ────────────────────────────────────────────────────────────────────────────────────


class Source(NamedTuple):
    """A file's bytes, or why there are none."""

    text: bytes
    problem: str | None = None


class Function(NamedTuple):
    """A function or method, and its cyclomatic complexity (McCabe 1976): decisions + 1."""

    name: str
    line: int
    lines: int
    complexity: int


class Body(NamedTuple):
    """A function long enough to be worth a comparison: equal prints are equal code, whatever its layout and name."""

    print: int
    name: str
    line: int
    lines: int


class Finding(NamedTuple):
    """Something about a file that somebody should look at. `line` is 0 where it concerns the whole file."""

    line: int
    text: str


class Module(NamedTuple):
    """What one file came to. Compact on purpose: thousands of these travel from the workers to `link` and `report`.

    bands    how many functions fall into each of `BANDS`
    worst    the file's most complex functions, at most `WORST` of them
    bodies   its functions of at least `LONG` lines, for `compare`
    imports  dotted names it imports when it is loaded, relative ones resolved; ``from a import b`` counts as "a.b"
    later    the same for imports inside functions, under TYPE_CHECKING or ``if __name__ == "__main__"``
    problem  why the file could not be measured, or None; then everything else is empty
    warned   what the compiler warned of
    """

    name: str
    path: str
    size: int
    lines: int = 0
    classes: int = 0
    functions: int = 0
    complexity: int = 0
    bands: tuple[int, ...] = ()
    worst: tuple[Function, ...] = ()
    bodies: tuple[Body, ...] = ()
    imports: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    problem: Finding | None = None
    warned: tuple[Finding, ...] = ()


class Imports(NamedTuple):
    """The import graph of the whole tree.

    edges, later  number of distinct pairs of modules: imported when loaded, imported only later
    popular       (module, number of modules that import it when loaded), the most popular first
    cycles        groups of modules that import each other when loaded: (size of the group, a shortest cycle in it)
    knot          size of the largest such group when imports made later count too
    missing       names imported that are neither in the tree nor in this interpreter's library, with who asks first
    reach         for each probed module what loading it should load, by the graph
    """

    edges: int
    later: int
    popular: tuple[tuple[str, int], ...]
    cycles: tuple[tuple[int, tuple[str, ...]], ...]
    knot: int
    missing: tuple[tuple[str, str], ...]
    reach: tuple[tuple[str, tuple[str, ...]], ...]


class Copies(NamedTuple):
    """One function found in several places, as ``path:line``."""

    name: str
    lines: int
    places: tuple[str, ...]


class Loaded(NamedTuple):
    """What a fresh interpreter loaded for one import, what it had loaded at its own start, or why the import failed."""

    module: str
    modules: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    problem: str | None = None


WORST: Final = 15
LONG: Final = 10  # lines; shorter functions are alike by nature
# Upper ends of the bands, and their names: McCabe's own limit is 10, the SEI's bands end at 20 and 50.
BANDS: Final = ((5, "simple"), (10, "moderate"), (20, "complex"), (50, "hard to test"), (sys.maxsize, "untestable"))
# Modules whose import is asked of a real interpreter when the tree is its own library: well known, and free of effects.
PROBES: Final = (
    "argparse",
    "asyncio",
    "concurrent.futures",
    "dataclasses",
    "email.message",
    "http.server",
    "json",
    "logging",
    "multiprocessing.pool",
    "sqlite3",
    "unittest",
    "urllib.request",
)
SKIPPED: Final = frozenset({"__pycache__", "build", "dist-packages", "node_modules", "site-packages"})
TESTS: Final = frozenset({"idle_test", "test", "tests"})


# ── the tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────


@task.io
def read(path: str) -> Source:
    """The bytes of a file. Plain blocking code, so it runs on a thread."""
    try:
        return Source(Path(path).read_bytes())
    except OSError as error:
        return Source(b"", f"cannot be read: {error.strerror or error}")


@task.cpu
def measure(name: str, path: str, source: Source) -> Module:
    """Parse one file and measure it. `path` is only for the report. Never raises for what is in the file."""
    if source.problem:
        return Module(name, path, 0, problem=Finding(0, source.problem))
    size, lines = len(source.text), source.text.count(b"\n")
    try:
        tree, warned = parse(source.text)
    except SyntaxError as error:
        return Module(name, path, size, lines, problem=Finding(error.lineno or 0, error.msg))
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; nested too deeply for the parser
        return Module(name, path, size, lines, problem=Finding(0, str(error) or type(error).__name__))
    anatomy = Anatomy(name, is_package=path.rpartition("/")[2] == "__init__.py")
    anatomy.dissect(tree)
    functions = sorted(anatomy.functions, key=by_complexity)
    return Module(
        name,
        path,
        size,
        lines,
        anatomy.classes,
        len(functions),
        sum(function.complexity for function in functions),
        bands=count_bands(function.complexity for function in functions),
        worst=tuple(functions[:WORST]),
        bodies=anatomy.bodies,
        imports=tuple(sorted(anatomy.imports)),
        later=tuple(sorted(anatomy.later - anatomy.imports)),
        warned=warned,
    )


@task.io(timeout=30, retries=1)
async def load(module: str, root: str) -> Loaded:
    """Ask a fresh interpreter what importing `module` loads; `root` comes first on its path.

    A child process is waited for without a thread. Whatever ends this coroutine early, a timeout included, ends the
    child.
    """
    question = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n"
        "__import__(sys.argv[2])\n"
        "sys.__stdout__.write(' '.join(sorted(set(sys.modules) - before)) + '\\n' + ' '.join(sorted(before)))"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-W", "ignore", "-c", question, root, module,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        said = err.decode(errors="replace").strip().splitlines()
        return Loaded(module, problem=said[-1] if said else f"exit status {child.returncode}")
    new, _, before = out.decode().rpartition("\n")
    return Loaded(module, tuple(new.split()), tuple(before.split()))


@task.cpu
def link(modules: Sequence[Module], probes: Sequence[str]) -> Imports:
    """Make the import graph of `modules` and find its cycles."""
    known = {module.name for module in modules}
    eager: dict[str, list[str]] = {}
    every: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    expected = sys.stdlib_module_names | {"", "__main__"}
    for module in modules:
        targets = {found for name in module.imports if (found := nearest(name, known))} - {module.name}
        later = {found for name in module.later if (found := nearest(name, known))} - {module.name} - targets
        eager[module.name] = sorted(targets)
        every[module.name] = sorted(targets | later)
        for name in (*module.imports, *module.later):
            top = name.partition(".")[0]
            if top not in expected and not nearest(name, known) and TESTS.isdisjoint(module.path.split("/")):
                missing.setdefault(top, module.path)
    edges = sum(map(len, eager.values()))
    fan_in = Counter(target for targets in eager.values() for target in targets)
    groups = [group for group in components(eager) if len(group) > 1]
    cycles = sorted(((len(group), shortest_cycle(group, eager)) for group in groups), key=lambda c: (-c[0], c[1]))
    return Imports(
        edges,
        sum(map(len, every.values())) - edges,
        popular=tuple(sorted(fan_in.items(), key=lambda item: (-item[1], item[0]))[:10]),
        cycles=tuple(cycles),
        knot=max((len(group) for group in components(every)), default=0),
        missing=tuple(sorted(missing.items())),
        reach=tuple((probe, tuple(sorted(reachable(probe, eager)))) for probe in probes if probe in eager),
    )


@task.cpu
def compare(modules: Sequence[Module]) -> list[Copies]:
    """Functions that occur more than once, those with the most lines to save first."""
    places: dict[int, list[tuple[str, Body]]] = {}
    for module in modules:
        for body in module.bodies:
            places.setdefault(body.print, []).append((module.path, body))
    copies = [
        Copies(found[0][1].name, found[0][1].lines, tuple(f"{path}:{body.line}" for path, body in found))
        for found in (sorted(group, key=lambda place: (place[0], place[1].line)) for group in places.values())
        if len(found) > 1
    ]
    return sorted(copies, key=lambda copy: (-copy.lines * (len(copy.places) - 1), copy.places))


@task.cpu
def report(
    title: str, modules: Sequence[Module], imports: Imports, copies: Sequence[Copies], loaded: Sequence[Loaded]
) -> str:
    """All of it as text, the same for the same sources."""
    measured = [module for module in modules if not module.problem]
    sections = [
        overview(title, modules),
        complexity_section(measured),
        worst_section(measured),
        package_section(measured),
        copy_section(copies),
        import_section(imports),
        cycle_section(imports),
        load_section(modules, imports, loaded),
        finding_section(modules, imports),
    ]
    return "\n\n".join("\n".join(line.rstrip() for line in lines) for lines in sections if lines)


@workflow
def source_audit(root: Path | None = None, limit: int = 0, tests: bool = True, probes: list[str] | None = None) -> str:
    """Audit the Python files under `root`: None means this interpreter's own library.

    limit   at most so many files, those nearest to the root first; 0 means all
    tests   with the folders of tests
    probes  modules to import in a fresh interpreter, to hold the import graph against; importing runs their code, so
            for a tree other than the interpreter's own library the default is none
    """
    base, files, asked = survey(root, limit, tests, probes)
    modules = [measure(name, path, read(str(base / path))) for name, path in files]
    loaded = [load(module, str(import_root(base))) for module in asked]
    return report(str(base), modules, link(modules, asked), compare(modules), loaded)


def serial(root: Path | None = None, limit: int = 0, tests: bool = True, probes: list[str] | None = None) -> str:
    """The same report from one plain loop, without the engine: what `source_audit` is held against."""
    base, files, asked = survey(root, limit, tests, probes)
    modules = [measure.fn(name, path, read.fn(str(base / path))) for name, path in files]
    loaded = [asyncio.run(load.fn(module, str(import_root(base)))) for module in asked]
    return report.fn(str(base), modules, link.fn(modules, asked), compare.fn(modules), loaded)


# ── which files ───────────────────────────────────────────────────────────────────────────────────────────────────


def survey(
    root: Path | None, limit: int, tests: bool, probes: list[str] | None
) -> tuple[Path, list[tuple[str, str]], list[str]]:
    """The root; its files as (module name, path below the root with "/"), in a fixed order; the modules to probe."""
    if limit < 0:
        raise ValueError(f"limit is {limit}; 0 means all files")
    library = Path(sysconfig.get_path("stdlib"))
    base = library if root is None else root
    if not base.is_dir():
        raise NotADirectoryError(f"root {str(base)!r} is not a folder")
    paths = sorted(python_files(base, tests), key=lambda path: (path.count("/"), path))
    if limit:
        paths = paths[:limit]
    parents = base.resolve().relative_to(import_root(base)).parts  # not empty where the root is itself a package
    files = sorted(((module_name(parents, path), path) for path in paths), key=lambda file: file[1])
    if probes is None:
        present = {name for name, _ in files}
        probes = [name for name in PROBES if name in present] if base == library else []
    return base, files, probes


def python_files(base: Path, tests: bool) -> Iterator[str]:
    """Paths of ``*.py`` files below `base`, relative to it. Hidden folders and installed packages are left out."""
    for folder, names, files in os.walk(base):
        names[:] = [
            name
            for name in names
            if name not in SKIPPED
            and not name.startswith(".")
            and (tests or name not in TESTS)
            and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
        ]
        prefix = Path(folder).relative_to(base)
        for name in files:
            if name.endswith(".py"):
                yield (prefix / name).as_posix()


def import_root(base: Path) -> Path:
    """The folder from which the modules under `base` are imported: the first one upwards that is no package."""
    folder = base.resolve()
    while (folder / "__init__.py").exists() and folder.parent != folder:
        folder = folder.parent
    return folder


def module_name(parents: Sequence[str], path: str) -> str:
    """``json/decoder.py`` → ``json.decoder``; ``json/__init__.py`` → ``json``."""
    parts = [*parents, *path.removesuffix(".py").split("/")]
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


# ── measuring one file ────────────────────────────────────────────────────────────────────────────────────────────

# catch_warnings swaps process-wide state, so two threads must not do it at once. In worker processes, where this runs
# by default, nobody else wants the lock; routed to threads, the interpreter lets only one of them parse anyway.
_parsing = threading.Lock()


def parse(text: bytes) -> tuple[ast.Module, tuple[Finding, ...]]:
    """The tree, and what the compiler warned of. From bytes, so that the file's own coding cookie (PEP 263) counts."""
    with _parsing, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tree = ast.parse(text)
    return tree, tuple(sorted({Finding(warning.lineno, str(warning.message)) for warning in caught}))


class Scope(NamedTuple):
    """Where a statement stands: the prefix of names, the function it is counted in, whether it runs on loading."""

    prefix: str
    counter: int
    eager: bool


class Anatomy:
    """What one pass over a syntax tree finds. Without recursion: how deep a file nests is not ours to choose."""

    def __init__(self, module: str, *, is_package: bool) -> None:
        self.package = module if is_package else module.rpartition(".")[0]
        self.definitions: list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]] = []
        self.decisions = [0]  # by function, in the order of `definitions`; the last one is the module's own
        self.classes = 0
        self.imports: set[str] = set()
        self.later: set[str] = set()

    @property
    def functions(self) -> list[Function]:
        return [
            Function(name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1, decisions + 1)
            for (name, node), decisions in zip(self.definitions, self.decisions, strict=False)
        ]

    @property
    def bodies(self) -> tuple[Body, ...]:
        found: list[Body] = []
        for name, node in self.definitions:
            code = code_of(node)
            lines = (code[-1].end_lineno or 0) - code[0].lineno + 1 if code else 0
            if lines >= LONG:
                found.append(Body(fingerprint(node), name, node.lineno, lines))
        return tuple(found)

    def dissect(self, tree: ast.Module) -> None:
        """Fill the attributes from `tree`. A nested function is measured on its own, not in its outer one."""
        stack: list[tuple[ast.AST, Scope]] = [(tree, Scope("", -1, eager=True))]
        while stack:
            node, scope = stack.pop()
            kind = type(node)
            if kind in DECIDES:
                self.decisions[scope.counter] += 1
            if kind in LEAVES:
                continue
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                name = scope.prefix + node.name
                inner = Scope(f"{name}.", len(self.definitions), eager=False)
                self.definitions.append((name, node))
                self.decisions.insert(-1, 0)
                stack += [(child, inner) for child in node.body]
                # Decorators, defaults and annotations are evaluated outside.
                stack += [(child, scope) for child in (*node.decorator_list, node.args, node.returns) if child]
                continue
            if isinstance(node, ast.ClassDef):
                self.classes += 1
                inner = scope._replace(prefix=f"{scope.prefix}{node.name}.")
                stack += [(child, inner) for child in node.body]
                stack += [(child, scope) for child in (*node.decorator_list, *node.bases, *node.keywords)]
                continue
            if isinstance(node, ast.If) and not runs_on_load(node.test):
                stack += [(child, scope._replace(eager=False)) for child in node.body]
                stack += [(child, scope) for child in (node.test, *node.orelse)]
                continue
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                (self.imports if scope.eager else self.later).update(imported_names(node, self.package))
            elif isinstance(node, ast.BoolOp):
                self.decisions[scope.counter] += len(node.values) - 1
            elif isinstance(node, ast.comprehension):
                self.decisions[scope.counter] += len(node.ifs)
            elif isinstance(node, ast.match_case):
                self.decisions[scope.counter] += (node.guard is not None) + (not catches_all(node.pattern))
            stack += [(child, scope) for child in ast.iter_child_nodes(node)]


# One decision each; the operands of and/or, the ifs of comprehensions and the cases of match are counted by `dissect`.
DECIDES: Final = frozenset({ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension})
# Half of all nodes, and nothing below them can decide or import anything.
LEAVES: Final = frozenset({ast.Load, ast.Store, ast.Del, ast.Name, ast.Constant, ast.alias, ast.Pass})


def runs_on_load(test: ast.expr) -> bool:
    """Whether the body of ``if <test>:`` may run when the module is imported."""
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return False
        case ast.Compare(left=ast.Name(id="__name__"), comparators=[ast.Constant(value="__main__")]):
            return False
        case _:
            return True


def catches_all(pattern: ast.pattern) -> bool:
    """``case _`` and ``case name`` are the else of a match: no decision of their own."""
    return isinstance(pattern, ast.MatchAs) and pattern.pattern is None


def imported_names(node: ast.Import | ast.ImportFrom, package: str) -> set[str]:
    """Dotted names, relative ones resolved against `package`; empty where they climb above the tree."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    base = node.module or ""
    if node.level:
        parts = package.split(".") if package else []
        if node.level > len(parts):
            return set()
        base = ".".join([*parts[: len(parts) - node.level + 1], *base.split(".")]).rstrip(".")
    return {base if alias.name == "*" else f"{base}.{alias.name}" for alias in node.names}


def code_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.stmt]:
    """The statements of a function without its docstring."""
    return function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body


def fingerprint(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """A digest of a function's signature and code; its name, docstring, comments and layout do not count."""
    words: list[str] = []
    todo: list[object] = [
        code_of(function),
        function.args,
        function.decorator_list,
        isinstance(function, ast.FunctionDef),
    ]
    while todo:
        item = todo.pop()
        if isinstance(item, ast.AST):
            # Type and number of children are written before the children, so different trees make different texts.
            words.append(type(item).__name__)
            todo += [getattr(item, field, None) for field in item._fields if field != "ctx"]
        elif isinstance(item, list):
            children = cast("list[object]", item)
            words.append(str(len(children)))
            todo += children
        else:
            words.append(repr(item))
    digest = hashlib.blake2b("\n".join(words).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest())


def count_bands(complexities: Iterable[int]) -> tuple[int, ...]:
    """How many fall into each of `BANDS`."""
    counts = [0] * len(BANDS)
    for complexity in complexities:
        counts[next(index for index, (limit, _) in enumerate(BANDS) if complexity <= limit)] += 1
    return tuple(counts)


def by_complexity(function: Function) -> tuple[int, int, int, str]:
    """The worst first; ties by length, then by place."""
    return (-function.complexity, -function.lines, function.line, function.name)


# ── the import graph ──────────────────────────────────────────────────────────────────────────────────────────────


def nearest(name: str, known: set[str]) -> str | None:
    """The longest leading part of a dotted name that is a module of the tree, or None."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def components(graph: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Strongly connected components (Tarjan 1972), iterative: import chains may be longer than the recursion limit."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    open_nodes: list[str] = []
    is_open: set[str] = set()
    found: list[list[str]] = []
    for start in sorted(graph):
        if start in index:
            continue
        work = [(start, iter(graph[start]))]
        index[start] = low[start] = len(index)
        open_nodes.append(start)
        is_open.add(start)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in index:
                    index[target] = low[target] = len(index)
                    open_nodes.append(target)
                    is_open.add(target)
                    work.append((target, iter(graph[target])))
                    break
                if target in is_open:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    above = work[-1][0]
                    low[above] = min(low[above], low[node])
                if low[node] == index[node]:
                    cut = open_nodes.index(node)
                    found.append(sorted(open_nodes[cut:]))
                    is_open.difference_update(open_nodes[cut:])
                    del open_nodes[cut:]
    return found


def shortest_cycle(group: Sequence[str], graph: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """A shortest cycle within a strongly connected group, the first by name among equals, its start repeated."""
    inside = set(group)
    best: tuple[str, ...] = ()
    for start in sorted(group):
        before: dict[str, str] = {}
        queue = deque([start])
        while queue and start not in before:
            node = queue.popleft()
            for target in graph[node]:
                if target in inside and target not in before:
                    before[target] = node
                    queue.append(target)
        path = [start]
        while len(path) == 1 or path[-1] != start:
            path.append(before[path[-1]])
        if not best or len(path) < len(best):
            best = tuple(reversed(path))
    return best


def reachable(start: str, graph: Mapping[str, Sequence[str]]) -> set[str]:
    """What loading `start` loads, itself included; loading ``a.b`` loads ``a`` too."""
    seen: set[str] = set()
    queue = [start]
    while queue:
        name = queue.pop()
        if name in seen or name not in graph:
            continue
        seen.add(name)
        queue += graph[name]
        queue.append(name.rpartition(".")[0])
    return seen


# ── the report ────────────────────────────────────────────────────────────────────────────────────────────────────

WIDTH: Final = 100


def heading(text: str) -> str:
    return f"── {text} ".ljust(WIDTH, "─")


def bar(value: float, full: float, width: int = 24) -> str:
    """A bar of at most `width` cells, in eighths of a cell; never empty for a value above 0."""
    eighths = max(round(value / full * width * 8), 1) if value > 0 and full > 0 else 0
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def clip(text: str, width: int) -> str:
    """One printable line of at most `width` characters: sources may hold anything, terminals must not."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if len(line) <= width else f"{line[: width - 1]}…"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def overview(title: str, modules: Sequence[Module]) -> list[str]:
    version = ".".join(map(str, sys.version_info[:3]))
    total = [sum(column) for column in zip(*((m.lines, m.functions, m.classes, m.size) for m in modules), strict=True)]
    lines, functions, classes, size = total or [0, 0, 0, 0]
    facts = [
        plural(len(modules), "file"),
        plural(lines, "line"),
        plural(functions, "function"),
        plural(classes, "class", "classes"),
        f"{size / 1e6:.1f} MB",
    ]
    return [heading("source audit"), clip(title, WIDTH), f"{' · '.join(facts)} · parsed by Python {version}"]


def complexity_section(measured: Sequence[Module]) -> list[str]:
    functions = sum(module.functions for module in measured)
    if not functions:
        return []
    counts = [sum(module.bands[index] for module in measured if module.bands) for index in range(len(BANDS))]
    mean = sum(module.complexity for module in measured) / functions
    lines = [heading(f"cyclomatic complexity · {mean:.1f} on average")]
    low = 1
    for (high, name), count in zip(BANDS, counts, strict=True):
        span = f"{low}–{high}" if high < sys.maxsize else f"{low}+"
        share = 100 * count / functions
        lines.append(f"{span:>7}  {name:<13}{count:>8,}  {share:>5.1f} %  {bar(count, max(counts), 40)}")
        low = high + 1
    return lines


def worst_section(measured: Sequence[Module]) -> list[str]:
    ranked = sorted(
        ((function, module.path) for module in measured for function in module.worst),
        key=lambda item: (-item[0].complexity, -item[0].lines, item[1], item[0].line),
    )[:WORST]
    if not ranked:
        return []
    top = ranked[0][0].complexity
    lines = [heading("the most complex functions"), f"{'complexity':>18}  lines  function"]
    for function, path in ranked:
        row = f"{bar(function.complexity, top, 12):<12}{function.complexity:>6,}{function.lines:>7,}  "
        where = clip(f"{path}:{function.line}", 48)
        room = WIDTH - len(row) - len(where) - 2
        lines.append(f"{row}{clip(function.name, room):<{room}}  {where}")
    return lines


def package_section(measured: Sequence[Module]) -> list[str]:
    packages: dict[str, list[Module]] = {}
    for module in measured:
        folder, _, _ = module.path.partition("/")
        packages.setdefault(folder + "/" if folder != module.path else "(top level)", []).append(module)
    if len(packages) < 2:
        return []
    rows = sorted(packages.items(), key=lambda item: (-sum(module.lines for module in item[1]), item[0]))
    most = sum(module.lines for module in rows[0][1])
    lines = [
        heading("where the lines are"),
        f"{'':<24}{'lines':>9}{'files':>8}{'functions':>11}{'mean':>7}{'worst':>7}",
    ]
    for name, members in rows[:10]:
        total = sum(module.lines for module in members)
        functions = sum(module.functions for module in members)
        mean = sum(module.complexity for module in members) / functions if functions else 0.0
        worst = max((module.worst[0].complexity for module in members if module.worst), default=0)
        row = f"{clip(name, 23):<24}{total:>9,}{len(members):>8,}{functions:>11,}{mean:>7.1f}{worst:>7,}"
        lines.append(f"{row}  {bar(total, most)}")
    if len(rows) > 10:
        rest = [module for _, members in rows[10:] for module in members]
        lines.append(f"{f'{len(rows) - 10} more':<24}{sum(module.lines for module in rest):>9,}{len(rest):>8,}")
    return lines


def copy_section(copies: Sequence[Copies]) -> list[str]:
    if not copies:
        return []
    saved = sum(copy.lines * (len(copy.places) - 1) for copy in copies)
    lines = [heading(f"the same code twice · {plural(len(copies), 'function')}, {saved:,} lines repeated")]
    for copy in copies[:8]:
        count = len(copy.places)
        row = f"{copy.lines:>5,} lines × {count:<3}  {clip(copy.name, 30):<30}  "
        places = f"{copy.places[0]} = {copy.places[1]}" if count == 2 else f"{copy.places[0]} and {count - 1} more"
        lines.append(row + clip(places, WIDTH - len(row)))
    return lines


def import_section(imports: Imports) -> list[str]:
    if not imports.popular:
        return []
    lines = [
        heading("imports"),
        f"{imports.edges:,} when modules load, {imports.later:,} more inside functions or for type checkers; most wanted:",
    ]
    most = imports.popular[0][1]
    half = (len(imports.popular) + 1) // 2
    cells = [f"{count:>6,}  {clip(name, 24):<24} {bar(count, most, 12):<13}" for name, count in imports.popular]
    return [*lines, *("  ".join(cells[index::half]) for index in range(half))]


def cycle_section(imports: Imports) -> list[str]:
    if not imports.popular:
        return []
    count = len(imports.cycles)
    groups = f"{plural(count, 'group')} of modules that need each other to load" if count else "none when modules load"
    lines = [heading(f"import cycles · {groups}")]
    for size, cycle in imports.cycles[:8]:
        shown = cycle if len(cycle) <= 8 else (*cycle[:6], "…", cycle[-1])
        lines.append(clip(f"{plural(size, 'module'):>11}   {' → '.join(shown)}", WIDTH))
    if count > 8:
        lines.append(f"{'':>11}   and {count - 8} more")
    if imports.knot > max((size for size, _ in imports.cycles), default=1):
        lines.append(f"With the imports that come later, {imports.knot:,} modules are tied in one knot.")
    return lines


def load_section(modules: Sequence[Module], imports: Imports, loaded: Sequence[Loaded]) -> list[str]:
    """Real interpreters' answers beside the graph's: `missed` are modules loaded in ways that no statement shows."""
    if not loaded:
        return []
    tree = {module.name for module in modules}
    reach = dict(imports.reach)
    most = max(len(answer.modules) for answer in loaded)
    lines = [heading("what an import really loads"), f"{'':<22}modules  in this tree  by the graph  missed"]
    for answer in sorted(loaded, key=lambda answer: (-len(answer.modules), answer.module)):
        name = clip(answer.module, 21)
        if answer.problem:
            lines.append(clip(f"{name:<22}      ✗  {answer.problem}", WIDTH))
            continue
        here = tree.intersection(answer.modules)
        foreseen = set(reach.get(answer.module, ())).difference(answer.before)
        lines.append(
            f"{name:<22}{len(answer.modules):>7,}{len(here):>14,}{len(foreseen):>14,}{len(here - foreseen):>8,}"
            f"  {bar(len(answer.modules), most):<25} {clip(' '.join(sorted(here - foreseen)), 16)}"
        )
    return lines


def finding_section(modules: Sequence[Module], imports: Imports) -> list[str]:
    problems = [(module.path, module.problem) for module in modules if module.problem]
    warned = [(module.path, finding) for module in modules for finding in module.warned]
    lines = [heading(f"findings · {len(problems):,} not measured · {plural(len(warned), 'compiler warning')}")]
    for mark, findings, most in (("✗", problems, 20), ("!", warned, 10)):
        for path, finding in sorted(findings)[:most]:
            where = f"{path}:{finding.line}" if finding.line else path
            lines.append(clip(f"{mark} {where}  {finding.text}", WIDTH))
        if len(findings) > most:
            lines.append(f"{mark} and {len(findings) - most:,} more")
    if imports.missing:
        lines.append("? imported, but neither in this tree nor in Python's library:")
        shown = [clip(f"{name} ({path})", WIDTH - 4) for name, path in imports.missing[:9]]
        if len(imports.missing) > 9:
            shown.append(f"and {len(imports.missing) - 9} more")
        text = ", ".join(part.replace(" ", "\0") for part in shown)  # a name and its file stay on one line
        lines += [f"  {line}".replace("\0", " ") for line in textwrap.wrap(text, WIDTH - 2)]
    return lines if len(lines) > 1 else [*lines, "none"]
