"""From a workflow that was found to a compiled Program: its parameters, its one run of the body, its routes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from flowlane.cli.options import check_executors
from flowlane.cli.target import bind, build
from flowlane.cli.terminal import inert
from flowlane.declare.compile import compile_workflow

if TYPE_CHECKING:
    from collections.abc import Mapping

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
) -> Program:
    """`found` with these parameters, ready to run. `routes` are the command line's; they win over everything.

    Raises what is wrong with settings, parameters, body, graph or routes, in that order; starts nothing.
    """
    check_executors(registry, settings, routes)
    return compile_bound(bind(found, texts, values), registry=registry, settings=settings, routes=routes)


def compile_bound(
    bound: Bound[Any] | Workflow,
    *,
    registry: Registry,
    settings: Settings,
    routes: Mapping[str, Setting[str]],
) -> Program:
    """The same for a workflow that has its parameters."""
    check_executors(registry, settings, routes)
    return compile_workflow(
        build(bound),
        capabilities=registry.capabilities,
        routes={key: setting.value for key, setting in routes.items()},
        defaults=settings.route_values(),
    )


def describe(program: Program) -> str:
    """``42 tasks (io 30, cpu 12) · 57 edges · asyncio 30, processes 12``."""
    kinds = Counter(program.kinds)
    lanes = Counter(program.lanes[lane] for lane in program.plan.lane)
    edges = sum(len(upstreams) for upstreams in program.plan.upstreams)
    count = len(program.names)
    parts = [
        f"{count} task{'' if count == 1 else 's'}"
        + (f" ({', '.join(f'{kind} {n}' for kind, n in sorted(kinds.items(), reverse=True))})" if kinds else ""),
        f"{edges} edge{'' if edges == 1 else 's'}",
    ]
    if lanes:
        parts.append(", ".join(f"{inert(name)} {n}" for name, n in sorted(lanes.items())))
    return " · ".join(parts)
