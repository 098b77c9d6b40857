"""``flow plan``: what a workflow would do with these parameters, without doing it."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import click

from flowlane.cli import options
from flowlane.cli.terminal import DataOutput, inert
from flowlane.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowlane.cli.terminal import Page
    from flowlane.forecast import Foreseen
    from flowlane.program import Program
    from flowlane.storage.port import Store

__all__ = ["command"]

_FOLDED: Final = 40  # more tasks are told together
_THROUGH: Final = 3  # names of tasks whose results are not known


@click.command("plan", short_help="tell what a run would do, and what is cached")
@options.target
@options.parameters
@options.route
@click.option("--all", "everything", is_flag=True, help="Every task by itself, however many there are.")
@options.as_json
def command(
    target: str,
    pairs: tuple[str, ...],
    params_file: str | None,
    routes: tuple[str, ...],
    everything: bool,
    as_json: bool,
) -> int:
    """Tell for each task of the workflow in FILE whether it would run or is cached, and why. Nothing is run or recorded.

    The workflow's body is executed once, with these parameters, and cached results that other cached tasks read are loaded.
    """
    from flowlane.cli.compiling import compile_found
    from flowlane.cli.state import existing_store, store_path
    from flowlane.cli.target import find_workflows, one_of, parse_parameters
    from flowlane.forecast import forecast
    from flowlane.runtime.registry import Registry

    run_routes = options.parse_routes(routes)
    settings = load_settings()
    registry = Registry(options=settings.executor_options())
    texts, values = parse_parameters(pairs, params_file)
    with DataOutput() as data:
        found = one_of(target, find_workflows(target))
        program = compile_found(found, texts, values, registry=registry, settings=settings, routes=run_routes)
        there = os.path.exists(store_path(settings))
        with existing_store(settings) if there else nullcontext() as store:
            foreseen = forecast(program, store, time.time_ns())
            runs = _Runs(store)
            if as_json:
                data.write(_document(program, foreseen, runs))
            else:
                page = data.page()
                _show(page, program, foreseen, runs, folded=len(foreseen) > _FOLDED and not everything)
                data.write(page.text())
    return 0


class _Runs:
    """Names of runs by id, asked for once each."""

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self._names: dict[str, str] = {}

    def name(self, run_id: str) -> str:
        """The run's name; its id where it was removed."""
        from flowlane.errors import UnknownRun

        if run_id not in self._names:
            self._names[run_id] = run_id
            if self._store is not None:
                try:
                    self._names[run_id] = self._store.find(run_id).name
                except UnknownRun:
                    pass
        return self._names[run_id]


def _why(program: Program, each: Foreseen, runs: _Runs, now: int) -> str:
    """Why a task would run, or need not."""
    from flowlane.cli.words import ago, listed
    from flowlane.forecast import Grounds

    entry, difference = each.entry, each.difference
    match each.grounds:
        case Grounds.CACHED:
            assert entry is not None
            return f"run {runs.name(entry.result[0])} made it {ago(entry.created, now)}"
        case Grounds.NOT_DECLARED:
            return "it is not declared with a cache"
        case Grounds.NEVER_RUN:
            return "the cache has no result of it"
        case Grounds.CODE_CHANGED | Grounds.INPUT_CHANGED:
            assert entry is not None
            assert difference is not None
            return (
                f"{'; '.join(difference.sentences())}, since run {runs.name(entry.result[0])} {ago(entry.created, now)}"
            )
        case Grounds.EXPIRED:
            assert entry is not None
            return f"its result was good until {ago(entry.expires, now)}"
        case Grounds.INPUT_UNKNOWN:
            names = [program.names[up] for up in each.through]
            shown = listed(names[:_THROUGH]) + (f" and {len(names) - _THROUGH:,} more" if len(names) > _THROUGH else "")
            return f"it reads from {shown}, which {'runs' if len(names) == 1 else 'run'}"
        case Grounds.ELEMENTS_UNKNOWN:
            return "it is a map, and each of its elements is looked up when it runs"
        case Grounds.UNHASHABLE | Grounds.UNREADABLE:
            return each.text


def _reasons(program: Program, each: Foreseen, runs: _Runs, now: int) -> str:
    """The same, and on what it depends that it runs at all."""
    from flowlane.cli.traits import conditions

    names = conditions(program, each.element).items()
    return "; ".join(
        [_why(program, each, runs, now), *[f"only if {program.names[up]} is {what}" for up, what in names]]
    )


def _what(each: Foreseen) -> str:
    return "runs" if each.runs else "cached"


def _totals(program: Program, foreseen: Sequence[Foreseen]) -> dict[str, dict[str, int]]:
    """kind → {"runs": n, "cached": n}."""
    totals: dict[str, dict[str, int]] = {}
    for each in foreseen:
        counts = totals.setdefault(program.kinds[each.element], {"runs": 0, "cached": 0})
        counts[_what(each)] += 1
    return dict(sorted(totals.items(), reverse=True))


def _document(program: Program, foreseen: Sequence[Foreseen], runs: _Runs) -> str:
    from flowlane.cli.document import document, timestamp
    from flowlane.cli.traits import traits_as_json

    def fields(each: Foreseen) -> Mapping[str, Any]:
        entry = each.entry
        whole = each.element in program.definitions  # a workflow: its tasks run somewhere, it does not
        return {
            "name": program.names[each.element],
            "task": program.targets[each.element].name,
            "kind": None if whole else program.kinds[each.element],
            "executor": None if whole else program.lanes[program.plan.lane[each.element]],
            "runs": each.runs,
            **traits_as_json(program, each.element),
            "grounds": str(each.grounds),
            "reads_from": [program.names[up] for up in each.through],
            "difference": None if each.difference is None else each.difference.to_dict(),
            "entry": None
            if entry is None
            else {
                "key": entry.key.hex(),
                "run": {"id": entry.result[0], "name": runs.name(entry.result[0])},
                "created": timestamp(entry.created),
                "expires": timestamp(entry.expires),
            },
            "text": each.text or None,
        }

    head = {"workflow": program.workflow, "totals": _totals(program, foreseen)}
    return document(head, tasks=map(fields, foreseen))


def _show(page: Page, program: Program, foreseen: Sequence[Foreseen], runs: _Runs, *, folded: bool) -> None:
    from flowlane.cli.compiling import describe
    from flowlane.cli.traits import shown_name
    from flowlane.cli.words import table

    now = time.time_ns()
    page.line(f"{inert(program.workflow)} · {describe(program)}")
    if folded:
        groups = Counter(
            [(program.targets[each.element].name, _what(each), _why(program, each, runs, now)) for each in foreseen]
        )
        cells = [("tasks", "task", "", "because")]
        cells += [(f"{count:,}", inert(task), what, inert(why)) for (task, what, why), count in groups.items()]
    else:
        cells = [("task", "", "because")]  # type: ignore[list-item]  # a column less
        cells += [
            (inert(shown_name(program, each.element)), _what(each), inert(_reasons(program, each, runs, now)))  # type: ignore[misc]
            for each in foreseen
        ]
    if foreseen:
        page.write(table(cells, "tasks"))
    totals = _totals(program, foreseen)
    told = [f"{kind}: {counts['runs']:,} run, {counts['cached']:,} cached" for kind, counts in totals.items()]
    if told:
        page.line(" · ".join(told))
