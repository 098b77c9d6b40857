"""``flow cancel``: stop a run that another process is at."""

from __future__ import annotations

import time

import click

from flowlane.cli import options
from flowlane.cli.terminal import Messages, inert
from flowlane.errors import UsageError
from flowlane.settings import load_settings

__all__ = ["command"]

_PATIENCE = 10.0  # seconds: tasks may take 5 to stop
_STEP = 0.1


@click.command("cancel", short_help="stop a run that another process is at")
@options.run
@click.option("--no-wait", is_flag=True, help="Ask, and do not wait for the end.")
def command(run: str, no_wait: bool) -> int:
    """Stop RUN (a name, an id or its beginning; "last" unless given) in the process that it is in: what runs is
    interrupted, nothing begins.

    The run can be resumed. Waits until it has ended, 10 seconds at most; exits with 1 when it has not by then.
    """
    from flowlane.cli.state import existing_store

    messages = Messages()
    with existing_store(load_settings()) as store:
        found = store.find(run)
        owner = store.owner(found.id)
        if owner is None:
            raise UsageError(
                f"run {found.name} is not under way: it is {found.state}"
                if found.state != "running"
                else f"run {found.name} is not under way: its process is gone",
                hint=None if found.state == "succeeded" else f"flow resume {found.name} goes on with it",
            )
        store.request(found.id, "cancel", time.time_ns())
        who = f"process {owner.pid} on {owner.host}"
        if no_wait:
            messages.line(f"asked {inert(who)} to stop {found.name}")
            return 0
        deadline = time.monotonic() + _PATIENCE
        while store.owner(found.id) is not None:
            if time.monotonic() > deadline:
                messages.line(
                    f"{found.name} has not stopped yet; {inert(who)} was asked, and may be waiting for a task"
                )
                return 1
            time.sleep(_STEP)
        messages.line(f"{found.name}: {store.find(found.id).state}")
        return 0
