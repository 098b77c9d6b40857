"""``flow store``: the store of the state directory, checked, repaired, swept, or only pointed at.

What is found goes to stdout; what was done, and how it stands, to stderr.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any, Final

import click

from flowlane.cli.record import remove_events
from flowlane.cli.state import check_recorded, existing_store, store_path
from flowlane.cli.terminal import DataOutput, Messages, inert
from flowlane.errors import SettingsError, UsageError
from flowlane.settings import load_settings

if TYPE_CHECKING:
    from flowlane.storage.upkeep import Upkeep

__all__ = ["command"]

STORE_VERSION: Final = 1
_AGE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group("store", short_help="check, repair or sweep what is stored", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """The store of the state directory: runs, their results, and the cache."""
    if context.invoked_subcommand is None:
        raise UsageError("`flow store` needs to be told what to do", hint="check, repair, gc or path")


@command.command("check", short_help="read everything, and print what is wrong")
@_json
def check(as_json: bool) -> int:
    """Read everything that is stored, and print what is wrong, a line each. Exits with 1 if anything is."""
    with DataOutput() as data:
        messages = Messages()
        with existing_store(load_settings()) as store:
            kept = _with_upkeep(store)
            troubles = kept.check()
            size = kept.size()
        if as_json:
            data.write(_object(path=kept.path, troubles=troubles, size=size._asdict()))
        else:
            data.write("".join(f"{inert(trouble)}\n" for trouble in troubles))
        if troubles:
            messages.line(f"{messages.paint('✗', '1;31')} {inert(kept.path)}: {_many(len(troubles), 'trouble')} found")
            messages.line("  hint: `flow store repair` saves what can be read")
        else:
            taken = f"{_many(size.runs, 'run')}, {_bytes(size.database)} and {_bytes(size.results)} in files"
            messages.line(f"{messages.paint('✔', '1;32')} {inert(kept.path)} is sound: {taken}")
    return 1 if troubles else 0


@command.command("repair", short_help="save what can be read into a new database")
@_json
def repair(as_json: bool) -> int:
    """Save what can be read into a new database; the damaged one is kept beside it. A sound one is left as it is."""
    with DataOutput() as data:
        messages = Messages()
        kept = _closed()
        done = kept.repair()
        if as_json:
            data.write(_object(path=kept.path, **done._asdict()))
        if done.backup is None:
            messages.line(f"{messages.paint('✔', '1;32')} {inert(kept.path)} is sound: nothing was changed")
        else:
            lost = f", {_many(done.lost, 'row')} dropped" if done.lost else ""
            messages.line(
                f"{messages.paint('✔', '1;32')} {inert(kept.path)} is new: {_many(done.saved, 'row')} saved{lost}"
            )
            messages.line(f"  the damaged one is {inert(done.backup)}")
    return 0


@command.command("gc", short_help="remove what nobody needs, and runs when told")
@click.option("--keep", type=click.IntRange(min=0), metavar="N", help="Remove runs, but not the latest N.")
@click.option("--older-than", metavar="AGE", help="Remove runs older than 12h, 30d, 8w.")
@_json
def gc(keep: int | None, older_than: str | None, as_json: bool) -> int:
    """Remove what nobody needs: expired entries of the cache, results without a run, what crashes left behind.

    Runs are removed only with --keep or --older-than; with both, those that are beyond the one and older than the other.
    Their events and what their tasks printed go with them.
    """
    age = None if older_than is None else _age(older_than)
    with DataOutput() as data:
        messages = Messages()
        settings = load_settings()
        with existing_store(settings) as store:
            kept = _with_upkeep(store)
            before = {run.id for run in store.runs()}
            swept = kept.gc(keep=keep, older_than=age)
            remove_events(settings.state_dir.value, before - {run.id for run in store.runs()})
        if as_json:
            data.write(_object(path=kept.path, **swept._asdict()))
        gone = f"{_many(swept.runs, 'run')}, {_many(swept.entries, 'cached result')} and {_many(swept.files, 'file')}"
        messages.line(f"{messages.paint('✔', '1;32')} removed {gone}; {_bytes(swept.bytes)} are free again")
    return 0


@command.command("path", short_help="print where the store is")
@_json
def path(as_json: bool) -> int:
    """Print where the store is, whether it is there or not."""
    settings = load_settings()
    with DataOutput() as data:
        where = os.path.abspath(store_path(settings))
        if as_json:
            data.write(_object(path=where, exists=os.path.exists(where), origin=settings.state_dir.origin))
        else:
            data.write(f"{where}\n")
    return 0


def _closed() -> Upkeep:
    """The store, not opened: it may be too damaged for that."""
    from flowlane.runtime.registry import make_store

    settings = load_settings()
    check_recorded(settings)
    return _with_upkeep(make_store("sqlite", path=store_path(settings)))


def _with_upkeep(store: object) -> Upkeep:
    from flowlane.storage.upkeep import Upkeep

    assert isinstance(store, Upkeep)
    return store


def _age(text: str) -> float:
    found = _AGE.fullmatch(text.strip().lower())
    if found is None:
        raise SettingsError(f"{text!r} is no age", where="--older-than", hint="a number and s, m, h, d or w: 30d")
    return float(found[1]) * _SECONDS[found[2]]


def _object(**fields: Any) -> str:
    return json.dumps({"version": STORE_VERSION, **fields}) + "\n"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
