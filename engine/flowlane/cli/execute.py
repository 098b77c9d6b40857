"""Carrying out a compiled workflow as the command line does: store, sinks, signals, the value, the summary, the exit code.

What ``flow run`` and ``flow resume`` have in common once they know what to run.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from flowlane.api import Engine
    from flowlane.cli.record import EventLog
    from flowlane.cli.terminal import DataOutput, Messages
    from flowlane.handle import RunHandle
    from flowlane.program import Program
    from flowlane.results import RunResult
    from flowlane.runtime.ports import Sink
    from flowlane.runtime.registry import Registry
    from flowlane.settings import Settings
    from flowlane.storage.port import Store

__all__ = ["blank_main", "execute"]

_PATIENCE: Final = 5.0  # seconds that a log which gets nowhere is waited for


def execute(
    program: Program,
    start: Callable[[Engine], RunHandle[Any]],
    *,
    data: DataOutput,
    messages: Messages,
    settings: Settings,
    registry: Registry,
    store: Store | None,
    recorded: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run `program`, which `start` starts on an engine, to its end; tell how it went, and return the exit code.

    `recorded` says whether there is a state directory for its events.
    """
    from flowlane.api import Engine
    from flowlane.cli.logged import ShownWarnings
    from flowlane.cli.record import EventLog
    from flowlane.cli.terminal import Messages
    from flowlane.errors import StoreError

    log = EventLog(settings.state_dir.value)
    lanes = {name: registry.capabilities(name).default_slots for name in program.lanes} | settings.slot_values()
    told = Messages()  # of its own: the log can be ended, and the summary still be written
    engine = Engine(
        routes=settings.route_values(),
        slots=settings.engine_slots(),
        options=settings.executor_options(),
        sinks=_sinks(told, log, settings.log_format.value, quiet, lanes),
        store=store,
    )
    log.enabled = recorded
    with ShownWarnings(told, as_events=settings.log_format.value == "json"):
        result, signum = _carry_out(engine, start, messages)
        if not engine.wait_for_sinks(_PATIENCE):
            told.mute()  # somebody reads no more; whatever comes of the log, the summary is last

    state = str(result.state)
    if result.error is not None and (isinstance(result.error, StoreError) or not result.failures):
        result.check()  # an executor could not be opened, the store is full; the result raises why
    text = _output(result, result.value if state == "succeeded" else None, as_json)
    try:
        data.write(text)
    finally:
        if settings.log_format.value == "console":
            from flowlane.cli.summary import show_summary

            show_summary(messages, result, log=log if log.enabled else None, resumable=store is not None, quiet=quiet)
    return _exit_code(state, signum)


def _carry_out(
    engine: Engine, start: Callable[[Engine], RunHandle[Any]], messages: Messages
) -> tuple[RunResult[Any], int | None]:
    """Run on a loop of our own; the result, and the first stop signal that came."""
    import asyncio

    from flowlane.cli.stop import StopOnSignals

    async def carry_out(stop: StopOnSignals) -> RunResult[Any]:
        async with engine:
            handle = start(engine)
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
    if state == "cancelled":  # by another process
        return 130
    return 1


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
def blank_main() -> Generator[None]:
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
