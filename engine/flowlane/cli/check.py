"""``flow check``: everything that is checked before a run, and no run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from flowlane.cli import options
from flowlane.cli.terminal import DataOutput, Messages, inert
from flowlane.settings import load_settings

if TYPE_CHECKING:
    from flowlane.cli.target import Found
    from flowlane.declare.workflow import WorkflowDefinition

__all__ = ["command"]


@click.command("check", short_help="check a workflow and its routes without running it")
@options.target
@options.parameters
@options.route
def command(target: str, pairs: tuple[str, ...], params_file: str | None, routes: tuple[str, ...]) -> int:
    """Check the workflows in FILE: names, edges, cycles, options and routes. Nothing is run.

    The body of a workflow is executed to see its graph, which needs its parameters: without them only the
    definitions are checked, and that is said.
    """
    from flowlane.cli.compiling import compile_found, describe
    from flowlane.cli.target import find_workflows, one_of, parse_parameters
    from flowlane.declare.compile import check_definitions
    from flowlane.runtime.registry import Registry

    run_routes = options.parse_routes(routes)
    settings = load_settings()
    registry = Registry(options=settings.executor_options())
    texts, values = parse_parameters(pairs, params_file)
    with DataOutput():
        messages = Messages()
        found = find_workflows(target)
        if texts or values:
            found = [one_of(target, found)]
        for item in found:
            definition = None if texts or values else _lacks_parameters(item)
            if definition is not None:
                options.check_executors(registry, settings, run_routes)
                check_definitions(definition, registry.capabilities)
                name, said = definition.name, "definitions only: to see its graph it needs parameters (-p name=value)"
            else:
                program = compile_found(item, texts, values, registry=registry, settings=settings, routes=run_routes)
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
