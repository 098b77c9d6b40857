"""``flow runs``: the history, latest first.

A run that is recorded as running and whose process is gone is "stopped": nobody was there to write that down. So its state is
asked of the store, which knows whether somebody holds the run.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from flowlane.cli import options
from flowlane.cli.terminal import DataOutput, Messages, inert
from flowlane.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane.cli.terminal import Page
    from flowlane.storage.port import Owner, Store, StoredRun

__all__ = ["COLOURS", "MARKS", "command"]

STATES: Final = ("running", "succeeded", "failed", "cancelled", "interrupted", "stopped")
_LIMIT: Final = 20
_DONE: Final = ("succeeded", "cached")

#: State of a run → how it is marked and coloured.
MARKS: Final = {"succeeded": "✔", "failed": "✗", "running": "▸"}
COLOURS: Final = {"succeeded": "32", "failed": "31", "running": "36"}


@click.command("runs", short_help="list the runs that are stored, latest first")
@click.option("--workflow", metavar="NAME", help="Those of this workflow only.")
@click.option("--state", type=click.Choice(STATES), help="Those in this state only.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=_LIMIT,
    show_default=True,
    metavar="N",
    help="At most so many; 0: all.",
)
@options.as_json
def command(workflow: str | None, state: str | None, limit: int, as_json: bool) -> int:
    """List the runs that are stored, latest first: name, id, workflow, state, when, how long, and tasks done.

    "stopped" is a run whose process is gone without having said how the run ended: `flow resume` goes on with it.
    """
    from flowlane.cli.state import existing_store

    messages = Messages()
    with DataOutput() as data, existing_store(load_settings()) as store:
        found = _matching(store, workflow, state, limit)
        shown = found[:limit] if limit else found
        if as_json:
            data.write(_document(shown))
        else:
            page = data.page()
            _show(page, shown, time.time_ns())
            data.write(page.text())
            if not shown:
                messages.line("there is no such run" if workflow or state else "there are no runs yet")
            elif len(found) > len(shown):
                messages.line("there are earlier ones: --limit 0 lists all")
    return 0


def _matching(
    store: Store, workflow: str | None, state: str | None, limit: int
) -> Sequence[tuple[StoredRun, Owner | None, str]]:
    """Runs with owner and state; one more than `limit` where there are more."""
    from flowlane.past import owner_of, state_of

    runs = store.runs(limit=limit + 1 if limit and state is None else None, workflow=workflow)
    found: list[tuple[StoredRun, Owner | None, str]] = []
    for run in runs:
        if state is not None and str(run.state) != ("running" if state == "stopped" else state):
            continue
        owner = owner_of(store, run)
        told = state_of(run, owner)
        if state is None or told == state:
            found.append((run, owner, told))
            if limit and len(found) > limit:
                break
    return found


def _done(run: StoredRun) -> int:
    return sum([run.counts.get(state, 0) for state in _DONE])


def _tasks(run: StoredRun) -> int:
    """How many tasks there are, so far."""
    return sum(run.counts.values())


def _took(run: StoredRun, state: str, now: int) -> int:
    """ns that the latest session took, or has taken so far; 0 where nobody knows."""
    end = run.ended or (now if state == "running" else 0)
    return max(0, end - run.started) if end else 0


def _document(rows: Sequence[tuple[StoredRun, Owner | None, str]]) -> str:
    from flowlane.cli.document import document

    return document({}, runs=[run_fields(run, owner, state) for run, owner, state in rows])


def run_fields(run: StoredRun, owner: Owner | None, state: str) -> dict[str, Any]:
    """A run as fields of a document."""
    from flowlane.cli.document import seconds, timestamp

    return {
        "id": run.id,
        "name": run.name,
        "workflow": run.workflow,
        "state": state,
        "created": timestamp(run.created),
        "started": timestamp(run.started),
        "ended": timestamp(run.ended),
        "duration_s": seconds(run.started, run.ended),
        "session": run.session,
        "tasks": _tasks(run),
        "done": _done(run),
        "counts": run.counts,
        "error": run.error,
        "parent": run.parent,
        "pid": None if owner is None else owner.pid,
        "host": None if owner is None else owner.host,
    }


def _show(page: Page, rows: Sequence[tuple[StoredRun, Owner | None, str]], now: int) -> None:
    from flowlane.cli.words import ago, date, duration, table

    if not rows:
        return
    cells = [("run", "id", "workflow", "state", "tasks", "took", "started")]
    for run, _, state in rows:
        took = _took(run, state, now)
        cells.append(
            (
                inert(run.name),
                inert(run.id[:6]),
                inert(run.workflow),
                state,
                f"{_done(run):,}/{_tasks(run):,}",
                duration(took / 1e9) if took else "-",
                f"{date(run.started)}, {ago(run.started, now)}",
            )
        )
    lines = table(cells, right="tasks took").splitlines()
    page.line(lines[0])
    for line, (_, _, state) in zip(lines[1:], rows, strict=True):
        page.line(page.paint(line, COLOURS.get(state, "33")) if state in ("failed", "stopped", "running") else line)
