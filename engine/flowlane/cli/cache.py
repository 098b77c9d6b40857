"""``flow cache``: what the cache has, taking things out of it, and why something was not found in it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from flowlane.cli import options
from flowlane.cli.terminal import DataOutput, Messages, inert
from flowlane.errors import UnknownName, UsageError
from flowlane.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane.cli.reasons import Explanation
    from flowlane.past import Past
    from flowlane.storage.port import CacheEntry, Store

__all__ = ["command"]


@click.group("cache", short_help="list, remove or explain cached results", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> int:
    """List what the cache has, remove from it, or tell why a task was not found in it."""
    if context.invoked_subcommand is None:
        raise UsageError(
            "`flow cache` needs to be told what to do", hint="flow cache ls, flow cache rm, flow cache explain"
        )
    return 0


# ── ls ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@command.command("ls", short_help="list cached results")
@click.argument("task", metavar="[TASK]", required=False)
@options.as_json
def ls(task: str | None, as_json: bool) -> int:
    """List cached results, the latest first; those of TASK (the name of its function) only."""
    from flowlane.cli.state import existing_store

    messages = Messages()
    with DataOutput() as data, existing_store(load_settings()) as store:
        entries = store.cache_entries(task)
        if task is not None and not entries:
            raise _unknown(store, task)
        if as_json:
            from flowlane.cli.document import document

            data.write(document({}, entries=[_fields(entry) for entry in entries]))
        elif entries:
            data.write(_table(store, entries, time.time_ns()))
            messages.line(_sum(entries))
        else:
            messages.line("the cache is empty")
    return 0


def _fields(entry: CacheEntry) -> dict[str, Any]:
    from flowlane.cli.document import timestamp

    return {
        "key": entry.key.hex(),
        "task": entry.task,
        "created": timestamp(entry.created),
        "expires": timestamp(entry.expires),
        "bytes": entry.size,
        "hits": entry.hits,
        "run": entry.result[0],
    }


def _table(store: Store, entries: Sequence[CacheEntry], now: int) -> str:
    from flowlane.cli.words import ago, size, table

    names = {run.id: run.name for run in store.runs()}
    rows = [("task", "size", "hits", "made", "expires", "run")]
    rows += [
        (
            inert(entry.task),
            size(entry.size),
            f"{entry.hits:,}",
            ago(entry.created, now),
            _expiry(entry, now),
            inert(names.get(entry.result[0], entry.result[0])),
        )
        for entry in entries
    ]
    return table(rows, "size hits")


def _expiry(entry: CacheEntry, now: int) -> str:
    from flowlane.cli.words import duration

    if not entry.expires:
        return "never"
    return f"in {duration((entry.expires - now) / 1e9)}" if entry.expires > now else "expired"


def _sum(entries: Sequence[CacheEntry]) -> str:
    from flowlane.cli.words import counted, size

    return f"{counted(len(entries), 'entry')}, {size(sum([entry.size for entry in entries]))}"


def _unknown(store: Store, task: str) -> UnknownName:
    import difflib

    known = sorted({entry.task for entry in store.cache_entries()})
    close = difflib.get_close_matches(task[:60], known, 1)
    shown = task if len(task) <= 60 else f"{task[:60]}…"
    hint = f"did you mean '{close[0]}'?" if close else f"it has results of: {', '.join(known[:8])}" if known else None
    return UnknownName(f"the cache has no result of a task '{shown}'", hint=hint)


# ── rm ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@command.command("rm", short_help="remove results from the cache")
@click.argument("tasks", metavar="[TASK]...", nargs=-1)
@click.option("--run", "run", metavar="RUN", help="Those that this run made.")
@click.option("--expired", is_flag=True, help="Those that are too old.")
@click.option("--all", "everything", is_flag=True, help="All there are.")
@options.as_json
def rm(tasks: tuple[str, ...], run: str | None, expired: bool, everything: bool, as_json: bool) -> int:
    """Remove results from the cache: those of TASKs, of a run, that are too old, or all. Several of these narrow it down.

    The runs that made or used them keep them, and can be resumed.
    """
    from flowlane.cli.state import existing_store

    if not (tasks or run or expired or everything):
        raise UsageError("`flow cache rm` needs to be told what to remove", hint="TASK, --run RUN, --expired or --all")
    messages = Messages()
    with DataOutput() as data, existing_store(load_settings()) as store:
        entries = store.cache_entries()
        for task in tasks:
            if not any(entry.task == task for entry in entries):
                raise _unknown(store, task)
        made_by = store.find(run).id if run is not None else None
        gone = _chosen(entries, tasks, made_by, expired=expired, now=time.time_ns())
        store.forget([entry.key for entry in gone])
        if as_json:
            from flowlane.cli.document import document

            data.write(document({}, removed=[_fields(entry) for entry in gone]))
        else:
            messages.line(f"removed {_sum(gone)}{_of_tasks(gone)}")
    return 0


def _chosen(
    entries: Sequence[CacheEntry], tasks: Sequence[str], made_by: str | None, *, expired: bool, now: int
) -> list[CacheEntry]:
    return [
        entry
        for entry in entries
        if (not tasks or entry.task in tasks)
        and (made_by is None or entry.result[0] == made_by)
        and (not expired or 0 < entry.expires <= now)
    ]


def _of_tasks(entries: Sequence[CacheEntry]) -> str:
    from flowlane.cli.words import listed

    names = list(dict.fromkeys([entry.task for entry in entries]))
    return f": {listed(names)}" if names else ""


# ── explain ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@command.command("explain", short_help="tell why a task was, or was not, taken from the cache")
@click.argument("run", metavar="RUN")
@click.argument("task", metavar="TASK")
@options.as_json
def explain(run: str, task: str, as_json: bool) -> int:
    """Tell why TASK of RUN was, or was not, taken from the cache."""
    from flowlane.cli.reasons import explain_cache
    from flowlane.cli.state import existing_store
    from flowlane.past import look

    with DataOutput() as data, existing_store(load_settings()) as store:
        past = look(store, store.find(run))
        made = explain_cache(store, past, past.number(task), time.time_ns())
        page = data.page()
        for line in made.sentences:
            page.line(inert(line))
        data.write(_explained(past, task, made) if as_json else page.text())
    return 0


def _explained(past: Past, task: str, made: Explanation) -> str:
    from flowlane.cli.document import document

    head = {
        "run": {"id": past.run.id, "name": past.run.name, "workflow": past.run.workflow, "state": past.state},
        "task": task,
        "cache": made.state,
        "why": made.sentences,
        "facts": made.facts,
    }
    return document(head)
