"""``flow run``: load, bind, build, run, and say how it went.

Everything that can be wrong with what the user wrote is found before the engine opens: options, settings, file,
parameters, body, graph, routes, in that order.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from flowlane.cli import options
from flowlane.cli.terminal import DataOutput, Messages, inert
from flowlane.settings import LOG_FORMATS, load_settings

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from flowlane.api import Engine
    from flowlane.cli.record import EventLog
    from flowlane.program import Program
    from flowlane.results import RunResult
    from flowlane.runtime.ports import Sink
    from flowlane.settings import Settings

__all__ = ["command"]


@click.command("run", short_help="run a workflow")
@options.target
@options.parameters
@options.route
@click.option(
    "--slots",
    "slots",
    multiple=True,
    metavar="EXECUTOR=N",
    help="How many tasks an executor runs at a time; repeatable.",
)
@click.option(
    "--log-format", type=click.Choice(LOG_FORMATS), help="What stderr shows: lines for people, or JSON events."
)
@click.option("--quiet", is_flag=True, help="Show only what went wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print run, state, value and tasks as one JSON object on stdout.")
def command(
    target: str,
    pairs: tuple[str, ...],
    params_file: str | None,
    routes: tuple[str, ...],
    slots: tuple[str, ...],
    log_format: str | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run the workflow in FILE; its value goes to stdout, everything else to stderr.

    FILE is a path or a module that can be imported from here. Settings come from [tool.flow] in pyproject.toml, then
    FLOW_* variables, then these options.
    """
    from flowlane.api import Engine
    from flowlane.cli.plan import compile_found
    from flowlane.cli.record import EventLog
    from flowlane.cli.target import find_workflows, one_of, parse_parameters
    from flowlane.runtime.registry import Registry

    run_routes = options.parse_routes(routes)
    settings = load_settings({"slots": options.parse_slot_options(slots), "log_format": log_format})
    registry = Registry(options=settings.executor_options())
    texts, values = parse_parameters(pairs, params_file)
    with DataOutput() as data, _blank_main():
        found = one_of(target, find_workflows(target))
        program = compile_found(found, texts, values, registry=registry, settings=settings, routes=run_routes)
        messages = Messages()
        log = EventLog(settings.state_dir.value)
        lanes = {name: registry.capabilities(name).default_slots for name in program.lanes} | settings.slot_values()
        engine = Engine(
            routes=settings.route_values(),
            slots=settings.slot_values(),
            options=settings.executor_options(),
            sinks=_sinks(messages, log, settings.log_format.value, quiet, lanes),
        )
        _enable(log, settings, messages)
        result, signum = _carry_out(engine, program, messages)

        state = str(result.state)
        if state == "failed" and not result.failures:
            result.check()  # no task failed: an executor could not be opened, and the result raises why
        text = _output(result, result.value if state == "succeeded" else None, as_json)
        try:
            data.write(text)
        finally:
            if settings.log_format.value == "console":
                from flowlane.cli.summary import show_summary

                show_summary(messages, result, log=log if log.enabled else None, quiet=quiet)
        return _exit_code(state, signum)


def _carry_out(engine: Engine, program: Program, messages: Messages) -> tuple[RunResult[Any], int | None]:
    """Run `program` on a loop of our own; the result, and the first stop signal that came."""
    import asyncio

    from flowlane.cli.stop import StopOnSignals

    async def carry_out(stop: StopOnSignals) -> RunResult[Any]:
        async with engine:
            handle = engine.launch(program, keep_history=False)
            stop.attach(asyncio.get_running_loop(), handle)
            try:
                return await handle.wait()
            finally:
                stop.detach()

    with StopOnSignals(messages) as stop:
        return asyncio.run(carry_out(stop)), stop.signum


def _output(result: RunResult[Any], value: object, as_json: bool) -> str:
    """What goes to stdout."""
    if as_json:
        from flowlane.cli.value import result_as_json

        return result_as_json(result, value) + "\n"
    if value is None:
        return ""
    from flowlane.cli.value import value_as_text

    text = value_as_text(value)
    return text if text.endswith("\n") else text + "\n"


def _exit_code(state: str, signum: int | None) -> int:
    if state == "succeeded":
        return 0
    if signum is not None and state != "failed":
        return 128 + signum
    return 1


def _enable(log: EventLog, settings: Settings, messages: Messages) -> None:
    """Make the state directory; where that cannot be done, say so and go without an event log."""
    from flowlane.cli.state import prepare_state_dir

    folder = settings.state_dir
    try:
        prepare_state_dir(folder.value)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        messages.line(f"warning: no event log is written: {inert(folder.value)}: {reason} ({folder.origin})")
    else:
        log.enabled = True


def _sinks(messages: Messages, log: EventLog, log_format: str, quiet: bool, slots: Mapping[str, int]) -> list[Sink]:
    """The event log, and what shows the run: JSON lines, a live view on a terminal, or a line a transition."""
    from flowlane.runtime.registry import make_sink

    if quiet:
        return [log]
    if log_format == "json":
        return [log, make_sink("console", messages, format="json")]
    if messages.plain:
        return [log, make_sink("console", messages, format="console")]
    return [log, make_sink("progress", messages, slots=slots, prints=True)]


@contextmanager
def _blank_main() -> Generator[None]:
    """Hide the console script from worker processes.

    multiprocessing's spawn and forkserver start each worker by importing the parent's ``__main__`` again, from its
    ``__spec__`` or ``__file__``. Here that is the ``flow`` script or ``flowlane.__main__``: of no use to a task, and it
    would cost every worker the import of the command line. A module with neither attribute is not imported. Functions
    of the user's file are found by their address, never through ``__main__``.
    """
    before = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = before
