"""``flow why``: why a task is in the state that it is in."""

from __future__ import annotations

import time

import click

from flowlane.cli import options
from flowlane.cli.terminal import DataOutput, inert
from flowlane.settings import load_settings

__all__ = ["command"]


@click.command("why", short_help="tell why a task of a stored run is in its state")
@click.argument("run", metavar="RUN")
@click.argument("task", metavar="TASK")
@options.as_json
def command(run: str, task: str, as_json: bool) -> int:
    """Tell why TASK of RUN is in the state that it is in: what failed, what it waits for, where its result came from."""
    from flowlane.cli.reasons import explain
    from flowlane.cli.state import existing_store
    from flowlane.past import every_attempt, look

    with DataOutput() as data, existing_store(load_settings()) as store:
        past = look(store, store.find(run), task)
        element = past.number(task)
        made = explain(store, past, element, every_attempt(store, past, task), time.time_ns())
        if as_json:
            from flowlane.cli.document import document

            head = {
                "run": {"id": past.run.id, "name": past.run.name, "workflow": past.run.workflow, "state": past.state},
                "task": task,
                "state": made.state,
                "why": made.sentences,
                "facts": made.facts,
            }
            data.write(document(head))
        else:
            page = data.page()
            for number, line in enumerate(made.sentences):
                page.line(f"{'  ' if number else ''}{inert(line)}")
            data.write(page.text())
    return 0
