"""``flow executors``: which there are, what each accepts, where it comes from, and how to get what is missing, on stdout."""

from __future__ import annotations

from typing import Any, Final

import click

from flowlane.cli.terminal import DataOutput, inert
from flowlane.settings import load_settings

__all__ = ["command"]

EXECUTORS_VERSION: Final = 1
_INSTANCE: Final = "an instance: Engine(executors={...})"


@click.command("executors", short_help="list the executors, and what each can do")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> int:
    """List the executors: what they accept, their slots, what they can do, and how to install those that lack something.

    Each is made with its options from the settings, and not opened: nothing is started.
    """
    with DataOutput() as data:
        settings = load_settings()
        rows = [_row(name, settings.executor_options(), settings.slot_values()) for name in _names()]
        if as_json:
            import json

            data.write(json.dumps({"version": EXECUTORS_VERSION, "executors": rows}) + "\n")
        else:
            data.write(_table(rows))
    return 0


def _names() -> tuple[str, ...]:
    from flowlane.runtime.registry import Registry

    return Registry().names()


def _row(name: str, options: dict[str, dict[str, Any]], slots: dict[str, int]) -> dict[str, Any]:
    """One executor as plain data. One that cannot be made is listed with the reason: it must not hide the others."""
    from flowlane.errors import FlowError
    from flowlane.runtime.registry import Registry

    registry = Registry(options=options)
    row: dict[str, Any] = {"name": name}
    try:
        row["origin"] = registry.origin(name)
        install = registry.install(name)
        if install is not None:
            row["install"] = install
            return row
        can = registry.capabilities(name)
    except FlowError as error:
        if name == "futures" and "pool" not in options.get(name, {}):  # a pool is an object: no setting can name it
            row["needs"] = _INSTANCE
        else:
            row["error"] = error.message
        return row
    except Exception as error:  # noqa: BLE001 - an installed package's import may raise anything
        row["error"] = f"{type(error).__name__}: {error}"
        return row
    row["accepts"] = sorted(can.accepts, reverse=True)
    row["slots"] = slots.get(name, can.default_slots)
    row["hard_kill"] = can.hard_kill
    row["pickles"] = can.pickles
    row["remote_values"] = can.remote_values
    return row


def _why_not(row: dict[str, Any]) -> str:
    """Why an executor cannot be used as things are."""
    if "install" in row:
        return f"not installed: {row['install']}"
    return f"needs {row['needs']}" if "needs" in row else str(row["error"])


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [("executor", "runs", "slots", "notes")]
    for row in rows:
        name = inert(row["name"])
        if "accepts" not in row:
            cells.append((name, "-", "-", inert(_why_not(row))))
            continue
        notes = [
            text
            for key, text in (
                ("hard_kill", "can kill a task"),
                ("pickles", "values are pickled"),
                ("remote_values", "values stay remote"),
            )
            if row[key]
        ]
        if row["origin"] != "built in":
            notes.append(f"from {inert(row['origin'])}")
        runs = " and ".join("def" if accepted == "sync" else "async def" for accepted in row["accepts"])
        cells.append((name, runs, str(row["slots"]), ", ".join(notes)))
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    return "".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() + "\n" for a, b, c, d in cells)
