"""``flow resume``: go on with a run that was recorded, from where it was.

Without RUN it is the latest that has not succeeded and that nobody is at. The workflow is loaded from where the run was
started, with the parameters that it was started with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flowlane.cli import options
from flowlane.cli.terminal import DataOutput, Messages
from flowlane.errors import UnknownRun
from flowlane.settings import load_settings

if TYPE_CHECKING:
    from flowlane.storage.port import Store, StoredRun

__all__ = ["command"]


@click.command("resume", short_help="go on with a run from where it was")
@click.argument("run", metavar="[RUN]", required=False)
@click.option("--file", "file", metavar="FILE[:WORKFLOW]", help="Where the workflow is now, if its file was moved.")
@click.option(
    "--accept-changes", is_flag=True, help="Go on although the workflow changed; what that affects runs again."
)
@click.option("--from", "restart", multiple=True, metavar="TASK", help="Run this again, and all after it; repeatable.")
@click.option(
    "--rerun",
    multiple=True,
    metavar="TASK",
    help="Let an at_most_once task run, whatever its last try did; repeatable.",
)
@click.option("--fork", is_flag=True, help="Make a new run that begins with what this one has.")
@click.option("--take-over", is_flag=True, help="Take the run from a process that owns it and does not answer.")
@options.route
@options.slots
@options.shown
def command(
    run: str | None,
    file: str | None,
    accept_changes: bool,
    restart: tuple[str, ...],
    rerun: tuple[str, ...],
    fork: bool,
    take_over: bool,
    routes: tuple[str, ...],
    slots: tuple[str, ...],
    log_format: str | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Go on with RUN (a name, an id or its beginning): what had succeeded is kept, the rest runs.

    Without RUN it is the latest one that has not succeeded and is not under way.
    """
    from flowlane.cli.compiling import compile_bound
    from flowlane.cli.execute import blank_main, execute
    from flowlane.cli.state import existing_store, made_state_dir
    from flowlane.cli.target import find_workflows, one_of
    from flowlane.origin import find_again, origin_at
    from flowlane.resume import asked_of, part_of_run, with_parameters
    from flowlane.runtime.registry import Registry

    run_routes = options.parse_routes(routes)
    settings = load_settings({"slots": options.parse_slot_options(slots), "log_format": log_format})
    registry = Registry(options=settings.executor_options())
    messages = Messages()
    with DataOutput() as data, blank_main(), existing_store(settings) as store:
        stored = store.find(run) if run is not None else _unfinished(store)
        if file is not None:
            found = one_of(file, find_workflows(file))
            target, origin = found.target, origin_at(found.module, found.name)
        else:
            origin = asked_of(stored, store).origin
            target = find_again(stored, origin)
        bound = with_parameters(target, stored, store)
        part = part_of_run(stored, store)
        program = compile_bound(bound, registry=registry, settings=settings, routes=run_routes, part=part)
        return execute(
            program,
            lambda engine: engine.relaunch(
                program,
                stored,
                origin,
                keep_history=False,
                accept_changes=accept_changes,
                restart=restart,
                rerun=rerun,
                fork=fork,
                take_over=take_over,
            ),
            data=data,
            messages=messages,
            settings=settings,
            registry=registry,
            store=store,
            recorded=made_state_dir(settings, messages),
            quiet=quiet,
            as_json=as_json,
        )


def _unfinished(store: Store) -> StoredRun:
    under_way: StoredRun | None = None
    for run in store.runs():
        if run.state != "succeeded":
            if store.owner(run.id) is None:
                return run
            under_way = under_way or run
    if under_way is not None:
        return under_way  # whoever goes on with it is told whose it is
    raise UnknownRun("there is no run to go on with: all have succeeded", hint="flow runs lists them")
