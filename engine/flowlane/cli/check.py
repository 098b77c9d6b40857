"""``flow check``: everything that is checked before a run, and no run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from flowlane.cli import options
from flowlane.cli.terminal import DataOutput, Messages, inert
from flowlane.settings import load_settings

if TYPE_CHECKING:
    from flowlane.cli.target import Found
    from flowlane.declare.workflow import WorkflowDefinition
    from flowlane.program import Program

__all__ = ["command", "compile_for"]


@click.command("check", short_help="check a workflow and its routes without running it")
@options.target
@options.parameters
@options.route
def command(target: str, pairs: tuple[str, ...], params_file: str | None, routes: tuple[str, ...]) -> int:
    """Check the workflows in FILE: names, edges, cycles, options and routes. Nothing is run.

    The body of a workflow is executed to see its graph, which needs its parameters: without them only the
    definitions are checked, and that is said.
    """
    from flowlane.cli.target import find_workflows, one_of, parse_parameters
    from flowlane.declare.compile import check_definitions
    from flowlane.runtime.registry import Registry

    texts, values = parse_parameters(pairs, params_file)
    messages = Messages()
    with DataOutput():
        found = find_workflows(target)
        if texts or values:
            found = [one_of(target, found)]
        for item in found:
            definition = None if texts or values else _lacks_parameters(item)
            if definition is not None:
                check_definitions(definition, Registry().capabilities)
                name, said = definition.name, "definitions only: to see its graph it needs parameters (-p name=value)"
            else:
                program = compile_for(item, texts, values, routes)
                name, said = program.workflow, describe(program)
            messages.line(f"{messages.paint('✔', '1;32')} {inert(name)}  {said}")
    return 0


def _lacks_parameters(found: Found) -> WorkflowDefinition[..., Any] | None:
    """The definition, when its body cannot be run without parameters."""
    import inspect

    from flowlane.declare.workflow import WorkflowDefinition

    if not isinstance(found.target, WorkflowDefinition):
        return None
    definition: WorkflowDefinition[..., Any] = found.target
    for parameter in inspect.signature(definition.fn).parameters.values():
        if parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            return definition
    return None


def compile_for(found: Found, texts: dict[str, str], values: dict[str, Any], routes: tuple[str, ...]) -> Program:
    """Bind, build and compile `found` with the settings' routes and the command line's. Raises what is wrong."""
    from flowlane.cli.target import bind, build
    from flowlane.declare.compile import compile_workflow
    from flowlane.runtime.registry import Registry

    run_routes = options.parse_routes(routes)
    settings = load_settings()
    registry = Registry(options=settings.executor_options())
    options.check_executors(registry, settings, run_routes)
    workflow = build(bind(found, texts, values))
    return compile_workflow(
        workflow,
        capabilities=registry.capabilities,
        routes={key: setting.value for key, setting in run_routes.items()},
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
