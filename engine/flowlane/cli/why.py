"""``flow why``: why a task is in the state that it is in."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click

from flowlane.cli import options
from flowlane.cli.terminal import DataOutput, inert
from flowlane.errors import UnknownName
from flowlane.settings import load_settings

if TYPE_CHECKING:
    from flowlane.storage.port import Store

__all__ = ["command"]


_FAILURES: Final = 3  # told of unless a task is named


@click.command("why", short_help="tell why a task of a stored run is in its state")
@click.argument("run", metavar="[RUN[/TASK]]", default="last")
@click.argument("task", metavar="[TASK]", required=False)
@options.as_json
def command(run: str, task: str | None, as_json: bool) -> int:
    """Tell why TASK of RUN is in the state that it is in: what failed, what it waits for, where its result came from.

    RUN is "last" unless given: one word alone is a task of the latest run, if it has one of that name. Without TASK: why the run
    ended as it did.
    """
    from flowlane.cli.reasons import explain, explain_run
    from flowlane.cli.state import existing_store
    from flowlane.past import every_attempt, look

    with DataOutput() as data, existing_store(load_settings()) as store:
        name, task = _found(store, run, task)
        past = look(store, store.find(name), task)
        if task is None:
            made = explain_run(past)
            told = [(each, past.names[each]) for each in past.failures()[:_FAILURES]]
        else:
            made = None
            told = [(past.number(task), task)]
        now = time.time_ns()
        reasons = [explain(store, past, element, every_attempt(store, past, each), now) for element, each in told]
        sentences = [each for reason in reasons for each in reason.sentences]
        if as_json:
            from flowlane.cli.document import document

            head = {
                "run": {"id": past.run.id, "name": past.run.name, "workflow": past.run.workflow, "state": past.state},
                "task": task,
                "state": made.state if made is not None else reasons[0].state,
                "why": [*(made.sentences if made is not None else ()), *sentences],
                "facts": made.facts if made is not None else reasons[0].facts,
            }
            data.write(document(head))
        else:
            page = data.page()
            for reason in [*([made] if made is not None else ()), *reasons]:
                for number, line in enumerate(reason.sentences):
                    page.line(f"{'  ' if number else ''}{inert(line)}")
            data.write(page.text())
    return 0


def _found(store: Store, run: str, task: str | None) -> tuple[str, str | None]:
    """Which run and which task are meant."""
    if task is not None:
        return run, task
    from flowlane.errors import UnknownRun
    from flowlane.past import look

    try:
        look(store, store.find("last"), run).number(run)
    except UnknownRun:
        return run, None
    except UnknownName as error:
        name, _, behind = run.partition("/")
        try:
            store.find(name)
        except UnknownRun:
            raise UnknownName(
                f"'{run}' is neither a task of the latest run nor a run in the store", hint=error.hint
            ) from None
        return name, behind or None
    return "last", run
