"""From a workflow that was found to a compiled Program: its parameters, its one run of the body, its routes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from flowlane.cli.options import check_executors
from flowlane.cli.target import bind, build
from flowlane.cli.terminal import inert
from flowlane.declare.compile import compile_workflow
from flowlane.declare.part import part_of, part_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowlane.cli.target import Found
    from flowlane.declare.workflow import Bound, Workflow
    from flowlane.program import Program
    from flowlane.runtime.registry import Registry
    from flowlane.settings import Setting, Settings

__all__ = ["compile_bound", "compile_found", "describe"]


def compile_found(
    found: Found,
    texts: Mapping[str, str],
    values: Mapping[str, Any],
    *,
    registry: Registry,
    settings: Settings,
    routes: Mapping[str, Setting[str]],
    part: Mapping[str, Sequence[str]] | None = None,
) -> Program:
    """`found` with these parameters, ready to run. `routes` are the command line's; they win over everything.

    `part` names the tasks that it is about, see ``flowlane.declare.part``; all of them unless given.

    Raises what is wrong with settings, parameters, body, graph or routes, in that order; starts nothing.
    """
    check_executors(registry, settings, routes)
    return compile_bound(bind(found, texts, values), registry=registry, settings=settings, routes=routes, part=part)


def compile_bound(
    bound: Bound[Any] | Workflow,
    *,
    registry: Registry,
    settings: Settings,
    routes: Mapping[str, Setting[str]],
    part: Mapping[str, Sequence[str]] | None = None,
) -> Program:
    """The same for a workflow that has its parameters."""
    check_executors(registry, settings, routes)
    named = part_options(part or {})
    workflow = build(bound)
    return compile_workflow(
        part_of(workflow, named) if named else workflow,
        capabilities=registry.capabilities,
        routes={key: setting.value for key, setting in routes.items()},
        defaults=settings.route_values(),
        slots=settings.slot_values(),
    )


def describe(program: Program) -> str:
    """``42 tasks (io 30, cpu 12) · 57 edges · asyncio 30, processes 12``."""
    ran = [node for node in range(len(program.names)) if node not in program.definitions]  # workflows run nowhere
    kinds = Counter(program.kinds[node] for node in ran)
    lanes = Counter(program.lanes[program.plan.lane[node]] for node in ran)
    edges = sum(len(upstreams) for upstreams in program.plan.upstreams)
    count = len(program.names)
    parts = [
        f"{count} task{'' if count == 1 else 's'}"
        + (f" ({', '.join(f'{kind} {n}' for kind, n in sorted(kinds.items(), reverse=True))})" if kinds else ""),
        f"{edges} edge{'' if edges == 1 else 's'}",
    ]
    maps = len(program.plan.maps)
    workflows = len(program.definitions)
    if workflows:
        parts.insert(1, f"{workflows} workflow{'' if workflows == 1 else 's'}")
    if maps:
        parts.insert(1, f"{maps} map{'' if maps == 1 else 's'}")
    if lanes:
        parts.append(", ".join(f"{inert(name)} {n}" for name, n in sorted(lanes.items())))
    return " · ".join(parts)
