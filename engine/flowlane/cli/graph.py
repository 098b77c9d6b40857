"""``flow graph``: the tasks of a workflow and what they wait for, as text, Mermaid, Graphviz or JSON, on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from flowlane.cli import options
from flowlane.cli.terminal import DataOutput, inert
from flowlane.cli.traits import conditions, is_mapped, shown_name, traits, traits_as_json
from flowlane.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowlane.program import Program

    #: (upstream, node, kind): "value" is read, "element" is read item by item, "condition" decides, "order" comes before
    Edge = tuple[int, int, str]

__all__ = ["FORMATS", "command", "render"]

FORMATS: Final = ("text", "mermaid", "dot", "json")
GRAPH_VERSION: Final = 1
_UPSTREAMS: Final = 6  # names of upstream tasks on a line of text


@click.command("graph", short_help="print the tasks of a workflow and what they wait for")
@options.target
@options.parameters
@options.route
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True, help="The form.")
def command(target: str, pairs: tuple[str, ...], params_file: str | None, routes: tuple[str, ...], form: str) -> int:
    """Print the graph of the workflow in FILE. Its body is executed once, with these parameters; nothing is run."""
    from flowlane.cli.compiling import compile_found
    from flowlane.cli.target import find_workflows, one_of, parse_parameters
    from flowlane.runtime.registry import Registry

    run_routes = options.parse_routes(routes)
    settings = load_settings()
    registry = Registry(options=settings.executor_options())
    texts, values = parse_parameters(pairs, params_file)
    with DataOutput() as data:
        found = one_of(target, find_workflows(target))
        program = compile_found(found, texts, values, registry=registry, settings=settings, routes=run_routes)
        data.write(render(program, form))
    return 0


def render(program: Program, form: str) -> str:
    """The graph of `program` in one of `FORMATS`, ending with a newline."""
    if form == "text":
        return _text(program)
    if form == "mermaid":
        return _mermaid(program)
    if form == "dot":
        return _dot(program)
    return _json(program)


def _edges(program: Program) -> Iterator[Edge]:
    """All edges; those along which no value goes are drawn dashed."""
    plan = program.plan
    for node, upstreams in enumerate(plan.upstreams):
        reads = frozenset(plan.inputs[node])
        over = plan.maps[node].over if node in plan.maps else ()
        guards = {guard.node for guard in plan.guards.get(node, ())}
        for upstream in upstreams:
            if upstream in over:
                yield upstream, node, "element"
            elif upstream in reads:
                yield upstream, node, "value"
            else:
                yield upstream, node, "condition" if upstream in guards else "order"


def _is_read(kind: str) -> bool:
    return kind in ("value", "element")


def _executor(program: Program, node: int) -> str | None:
    """Where it runs; None of a workflow, whose tasks do."""
    return None if node in program.definitions else program.lanes[program.plan.lane[node]]


def _text(program: Program) -> str:
    """Tasks by level (the longest way from a source), each with what it waits for."""
    from flowlane.cli.compiling import describe

    plan = program.plan
    level = [0] * len(program.names)
    for node in plan.order:
        level[node] = 1 + max((level[upstream] for upstream in plan.upstreams[node]), default=0)
    names = [inert(shown_name(program, node)) for node in range(len(program.names))]
    by_level: dict[int, list[int]] = {}
    for node in range(len(names)):
        by_level.setdefault(level[node], []).append(node)

    lines = [f"{inert(program.workflow)} · {describe(program)}"]
    width = min(40, max(map(len, names), default=0))
    lane_width = max((len(lane) for lane in program.lanes), default=0)
    for number in sorted(by_level):
        lines.append(f"{number}")
        for node in by_level[number]:
            guards = conditions(program, node)
            upstreams = [up for up in plan.upstreams[node] if up not in guards or up in plan.inputs[node]]
            waits = ", ".join(names[upstream] for upstream in upstreams[:_UPSTREAMS])
            if len(upstreams) > _UPSTREAMS:
                waits += f", … ({len(upstreams)})"
            executor = inert(_executor(program, node) or "-")
            kind = "-" if node in program.definitions else program.kinds[node]
            line = f"  {names[node]:{width}}  {kind:3}  {executor:{lane_width}}"
            line = f"{line}  ← {waits}" if waits else line.rstrip()
            more = [inert(trait) for trait in traits(program, node)]
            lines.append(f"{line}  ({'; '.join(more)})" if more else line)
    return "\n".join(lines) + "\n"


def _mermaid(program: Program) -> str:
    lines = ["flowchart TD"]
    for node in range(len(program.names)):
        label = _mermaid_text(shown_name(program, node))
        more = "".join(f"<br/>{_mermaid_text(trait)}" for trait in traits(program, node) if not trait.startswith("if "))
        opened, closed = ("[[", "]]") if is_mapped(program, node) else ("[", "]")
        lines.append(f'  n{node}{opened}"{label}{more}"{closed}:::{program.kinds[node]}')
    for a, b, kind in _edges(program):
        condition = conditions(program, b).get(a)
        label = "" if condition is None else f'|"if {_mermaid_text(condition)}"|'
        lines.append(f"  n{a} {'-->' if _is_read(kind) else '-.->'}{label} n{b}")
    lines += [
        "  classDef io fill:#dbeafe,stroke:#2563eb,color:#111",
        "  classDef cpu fill:#fef3c7,stroke:#d97706,color:#111",
    ]
    return "\n".join(lines) + "\n"


def _mermaid_text(text: str) -> str:
    return inert(text).replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;")


def _dot(program: Program) -> str:
    lines = [f"digraph {_quote(program.workflow)} {{", "  rankdir=TB;", '  node [shape=box, style="rounded,filled"];']
    fill = {"io": "#dbeafe", "cpu": "#fef3c7"}
    for node in range(len(program.names)):
        kind = program.kinds[node]
        more = traits(program, node)
        executor = _executor(program, node)
        tip = _quote("; ".join([*([] if executor is None else [f"{kind} on {executor}"]), *more]))
        doubled = ", peripheries=2" if is_mapped(program, node) else ""
        name = _quote(shown_name(program, node))
        lines.append(f'  n{node} [label={name}, fillcolor="{fill.get(kind, "#ffffff")}", tooltip={tip}{doubled}];')
    for a, b, kind in _edges(program):
        condition = conditions(program, b).get(a)
        attributes = [] if _is_read(kind) else ["style=dashed"]
        if condition is not None:
            attributes.append(f"label={_quote(f'if {condition}')}")
        shown = f" [{', '.join(attributes)}]" if attributes else ""
        lines.append(f"  n{a} -> n{b}{shown};")
    return "\n".join([*lines, "}"]) + "\n"


def _quote(text: str) -> str:
    return '"' + inert(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _json(program: Program) -> str:
    import json

    names = program.names
    document = {
        "version": GRAPH_VERSION,
        "workflow": program.workflow,
        "tasks": [
            {
                "name": name,
                "kind": None if node in program.definitions else program.kinds[node],
                "executor": _executor(program, node),
            }
            | traits_as_json(program, node)
            for node, name in enumerate(names)
        ],
        "edges": [{"from": names[a], "to": names[b], "kind": kind} for a, b, kind in _edges(program)],
    }
    return json.dumps(document, ensure_ascii=False) + "\n"
