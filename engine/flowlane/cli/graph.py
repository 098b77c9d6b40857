"""``flow graph``: the tasks of a workflow and what they wait for, as text, Mermaid, Graphviz or JSON, on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from flowlane.cli import options
from flowlane.cli.terminal import DataOutput, inert
from flowlane.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowlane.program import Program

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


def _edges(program: Program) -> Iterator[tuple[int, int, bool]]:
    """(upstream, node, whether the value is read): an edge of order only is drawn dashed."""
    inputs = program.plan.inputs
    for node, upstreams in enumerate(program.plan.upstreams):
        reads = frozenset(inputs[node])
        for upstream in upstreams:
            yield upstream, node, upstream in reads


def _executor(program: Program, node: int) -> str:
    return program.lanes[program.plan.lane[node]]


def _text(program: Program) -> str:
    """Tasks by level (the longest way from a source), each with what it waits for."""
    from flowlane.cli.compiling import describe

    plan = program.plan
    level = [0] * len(program.names)
    for node in plan.order:
        level[node] = 1 + max((level[upstream] for upstream in plan.upstreams[node]), default=0)
    names = [inert(name) for name in program.names]
    by_level: dict[int, list[int]] = {}
    for node in range(len(names)):
        by_level.setdefault(level[node], []).append(node)

    lines = [f"{inert(program.workflow)} · {describe(program)}"]
    width = min(40, max(map(len, names), default=0))
    lane_width = max((len(lane) for lane in program.lanes), default=0)
    for number in sorted(by_level):
        lines.append(f"{number}")
        for node in by_level[number]:
            upstreams = plan.upstreams[node]
            waits = ", ".join(names[upstream] for upstream in upstreams[:_UPSTREAMS])
            if len(upstreams) > _UPSTREAMS:
                waits += f", … ({len(upstreams)})"
            executor = inert(_executor(program, node))
            line = f"  {names[node]:{width}}  {program.kinds[node]:3}  {executor:{lane_width}}"
            lines.append(f"{line}  ← {waits}" if waits else line.rstrip())
    return "\n".join(lines) + "\n"


def _mermaid(program: Program) -> str:
    lines = ["flowchart TD"]
    for node, name in enumerate(program.names):
        label = inert(name).replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;")
        lines.append(f'  n{node}["{label}"]:::{program.kinds[node]}')
    lines += [f"  n{a} {'-->' if reads else '-.->'} n{b}" for a, b, reads in _edges(program)]
    lines += [
        "  classDef io fill:#dbeafe,stroke:#2563eb,color:#111",
        "  classDef cpu fill:#fef3c7,stroke:#d97706,color:#111",
    ]
    return "\n".join(lines) + "\n"


def _dot(program: Program) -> str:
    lines = [f"digraph {_quote(program.workflow)} {{", "  rankdir=TB;", '  node [shape=box, style="rounded,filled"];']
    fill = {"io": "#dbeafe", "cpu": "#fef3c7"}
    for node, name in enumerate(program.names):
        kind = program.kinds[node]
        tip = _quote(f"{kind} on {_executor(program, node)}")
        lines.append(f'  n{node} [label={_quote(name)}, fillcolor="{fill.get(kind, "#ffffff")}", tooltip={tip}];')
    lines += [f"  n{a} -> n{b}{'' if reads else ' [style=dashed]'};" for a, b, reads in _edges(program)]
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
            {"name": name, "kind": program.kinds[node], "executor": _executor(program, node)}
            for node, name in enumerate(names)
        ],
        "edges": [
            {"from": names[a], "to": names[b], "kind": "value" if reads else "order"} for a, b, reads in _edges(program)
        ],
    }
    return json.dumps(document, ensure_ascii=False) + "\n"
