"""The click group: a table of verbs whose modules are imported when used, and the one place where errors end."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

import click

from flowlane.cli.errors import BUG, show_bug, show_error
from flowlane.cli.main import HELP
from flowlane.cli.terminal import Messages
from flowlane.errors import FlowError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["VERBS", "dispatch"]

#: Verb → module that holds its click command under the name ``command``.
VERBS: Final[Mapping[str, str]] = {
    "run": "flowlane.cli.run",
    "resume": "flowlane.cli.resume",
    "cancel": "flowlane.cli.cancel",
    "runs": "flowlane.cli.runs",
    "show": "flowlane.cli.show",
    "logs": "flowlane.cli.logs",
    "why": "flowlane.cli.why",
    "check": "flowlane.cli.check",
    "plan": "flowlane.cli.plan",
    "graph": "flowlane.cli.graph",
    "cache": "flowlane.cli.cache",
    "executors": "flowlane.cli.executors",
    "store": "flowlane.cli.store",
}


class Verbs(click.Group):
    """Imports a verb's module on first use; answers a mistyped one with the nearest."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click calls it by this signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        module = VERBS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = importlib.import_module(module).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise UsageError(f"flow has no verb '{args[0]}'", hint=_verb_hint(args[0]))
        return super().resolve_command(ctx, args)

    def get_help(self, ctx: click.Context) -> str:  # noqa: ARG002
        return HELP.rstrip("\n")


def _verb_hint(word: str) -> str:
    import difflib

    close = difflib.get_close_matches(word, VERBS, 1)
    if close:
        return f"did you mean `flow {close[0]}`?"
    if word.endswith(".py") or ".py:" in word:
        return f"did you mean `flow run {word}`?"
    return f"the verbs are {', '.join(VERBS)}"


def dispatch(args: Sequence[str]) -> int:
    """Carry out `args`, showing every error, and return the exit code."""
    messages = Messages()
    group = Verbs("flow", add_help_option=True, no_args_is_help=False)
    try:
        result: Any = group.main(args=list(args), prog_name="flow", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        show_error(messages, _from_click(error))
        return 2
    except FlowError as error:
        show_error(messages, error)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        messages.line("interrupted")
        return 130
    except BrokenPipeError:  # whoever read our data has gone; that is their business
        return 0
    except Exception as error:  # noqa: BLE001 - the outermost frame of the program
        show_bug(messages, error)
        return BUG
    return result if isinstance(result, int) else 0


def _from_click(error: click.ClickException) -> UsageError:
    """click's complaint in house style."""
    context = getattr(error, "ctx", None)
    command = context.command_path if isinstance(context, click.Context) else "flow"
    hint = f"`{command} --help` tells what it takes"
    if isinstance(error, click.NoSuchOption):
        if error.possibilities:
            import difflib

            hint = f"did you mean {difflib.get_close_matches(error.option_name, error.possibilities, 1, 0.0)[0]}?"
        return UsageError(f"`{command}` has no option {error.option_name}", hint=hint)
    if isinstance(error, click.MissingParameter):
        name = error.param.make_metavar(context) if error.param is not None and context is not None else "an argument"
        return UsageError(f"`{command}` needs {name}", hint=hint)
    text = error.format_message().strip().rstrip(".")
    return UsageError(f"`{command}`: {text[:1].lower()}{text[1:]}", hint=hint)
