"""``flow run``: load, bind, build, run, and say how it went.

Everything that can be wrong with what the user wrote is found before the engine opens: options, settings, file,
parameters, body, graph, routes, in that order.
"""

from __future__ import annotations

from contextlib import nullcontext

import click

from flowlane.cli import options
from flowlane.cli.terminal import DataOutput, Messages
from flowlane.settings import load_settings

__all__ = ["command"]


@click.command("run", short_help="run a workflow")
@options.target
@options.parameters
@options.route
@options.slots
@options.part
@options.shown
@click.option(
    "--no-store",
    is_flag=True,
    help="Store nothing: the run cannot be resumed, and nothing is cached. Its log is written all the same.",
)
def command(
    target: str,
    pairs: tuple[str, ...],
    params_file: str | None,
    routes: tuple[str, ...],
    slots: tuple[str, ...],
    only: tuple[str, ...],
    start_at: tuple[str, ...],
    until: tuple[str, ...],
    log_format: str | None,
    quiet: bool,
    as_json: bool,
    no_store: bool,
) -> int:
    """Run the workflow in FILE; its value goes to stdout, everything else to stderr.

    FILE is a path or a module that can be imported from here. Settings come from [tool.flow] in pyproject.toml, then
    FLOW_* variables, then these options.
    """
    from flowlane.cli.compiling import compile_found
    from flowlane.cli.execute import blank_main, execute
    from flowlane.cli.state import made_state_dir, open_store
    from flowlane.cli.target import find_workflows, one_of, parse_parameters
    from flowlane.origin import origin_at
    from flowlane.runtime.registry import Registry

    run_routes = options.parse_routes(routes)
    settings = load_settings({"slots": options.parse_slot_options(slots), "log_format": log_format})
    registry = Registry(options=settings.executor_options())
    texts, values = parse_parameters(pairs, params_file)
    with DataOutput() as data, blank_main():
        found = one_of(target, find_workflows(target))
        part = {"only": only, "start_at": start_at, "until": until}
        program = compile_found(
            found, texts, values, registry=registry, settings=settings, routes=run_routes, part=part
        )
        origin = origin_at(found.module, found.name)
        messages = Messages()
        recorded = made_state_dir(settings, messages)
        with open_store(settings) if recorded and not no_store else nullcontext() as store:
            return execute(
                program,
                lambda engine: engine.launch(program, keep_history=False, origin=origin),
                data=data,
                messages=messages,
                settings=settings,
                registry=registry,
                store=store,
                recorded=recorded,
                quiet=quiet,
                as_json=as_json,
            )
