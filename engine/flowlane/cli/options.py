"""Options that several verbs share, and their values in our own types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from flowlane.settings import LOG_FORMATS, Setting, parse_pair, parse_slots

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowlane.runtime.registry import Registry
    from flowlane.settings import Settings

__all__ = [
    "as_json",
    "check_executors",
    "parameters",
    "parse_routes",
    "parse_slot_options",
    "part",
    "route",
    "run",
    "shown",
    "slots",
    "target",
]

F = TypeVar("F", bound="Callable[..., Any]")


def target(function: F) -> F:
    """The argument FILE[:WORKFLOW]."""
    return click.argument("target", metavar="FILE[:WORKFLOW]")(function)


def parameters(function: F) -> F:
    """The options -p and --params."""
    function = click.option(
        "--params",
        "params_file",
        metavar="FILE.json",
        help="Parameters as one JSON object; -p wins over it.",
    )(function)
    return click.option(
        "-p",
        "--param",
        "pairs",
        multiple=True,
        metavar="NAME=VALUE",
        help="A parameter of the workflow; repeatable. Lists and objects are JSON.",
    )(function)


def route(function: F) -> F:
    """The option --route."""
    return click.option(
        "--route",
        "routes",
        multiple=True,
        metavar="KEY=EXECUTOR",
        help="Where tasks run: KEY is a task, io, io.async, io.sync, cpu or *; repeatable.",
    )(function)


def part(function: F) -> F:
    """The options --only, --from and --until."""
    for flag, name, text in (
        ("--until", "until", "Run only this and what it depends on; repeatable."),
        ("--from", "start_at", "Run only this and what depends on it; repeatable. With --until: what lies between."),
        ("--only", "only", "Run only this task: a name, or a pattern with * and ?; repeatable."),
    ):
        function = click.option(flag, name, multiple=True, metavar="TASK", help=text)(function)
    return function


def slots(function: F) -> F:
    """The option --slots."""
    return click.option(
        "--slots",
        "slots",
        multiple=True,
        metavar="EXECUTOR=N",
        help="How many tasks an executor runs at a time; repeatable.",
    )(function)


def shown(function: F) -> F:
    """The options --log-format, --quiet and --json of a verb that runs something."""
    function = click.option(
        "--json", "as_json", is_flag=True, help="Print run, state, value and tasks as one JSON object on stdout."
    )(function)
    function = click.option("--quiet", is_flag=True, help="Show only what went wrong.")(function)
    return click.option(
        "--log-format", type=click.Choice(LOG_FORMATS), help="What stderr shows: lines for people, or JSON events."
    )(function)


def run(function: F) -> F:
    """The argument RUN of a verb that looks at a stored run; "last" unless given."""
    return click.argument("run", metavar="[RUN]", default="last")(function)


def as_json(function: F) -> F:
    """The option --json of a verb that tells something."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def parse_routes(pairs: Sequence[str]) -> dict[str, Setting[str]]:
    """``--route`` values by key; a later one wins."""
    return {
        key: Setting(executor, f"--route {key}={executor}")
        for key, executor in (parse_pair(pair, "--route", "KEY=EXECUTOR, for example cpu=threads") for pair in pairs)
    }


def parse_slot_options(pairs: Sequence[str]) -> dict[str, int]:
    """``--slots`` values by executor; a later one wins."""
    split = (parse_pair(pair, "--slots", "EXECUTOR=N, for example threads=8") for pair in pairs)
    return {executor: parse_slots(executor, count, "--slots") for executor, count in split}


def check_executors(registry: Registry, settings: Settings, routes: Mapping[str, Setting[str]]) -> None:
    """Raise RouteError, with the origin, for the first executor named by a setting that is not installed."""
    from flowlane.errors import RouteError

    mentions = [(setting.value, setting.origin) for setting in routes.values()]
    for name, origin in [*mentions, *settings.executor_mentions()]:
        try:
            registry.check(name)
        except RouteError as error:
            raise RouteError(error.message, where=origin, hint=error.hint) from None
