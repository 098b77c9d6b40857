"""Tasks and capabilities that the tests of declaring share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowlane.declare.compile import compile_workflow
from flowlane.declare.task import task
from flowlane.errors import RouteError
from flowlane.program import Arguments, Ref
from flowlane.runtime.ports import Capabilities

if TYPE_CHECKING:
    from flowlane.declare.workflow import Bound, Workflow
    from flowlane.program import Program

ACCEPTS = {
    "asyncio": {"async"},
    "threads": {"sync"},
    "processes": {"sync"},
    "inline": {"sync", "async"},
}


def capabilities(name: str) -> Capabilities:
    """What the built-in executors can do, without making any."""
    if name not in ACCEPTS:
        raise RouteError(f"there is no executor '{name}'; known: {', '.join(ACCEPTS)}", hint="did you mean ...?")
    return Capabilities(frozenset(ACCEPTS[name]), 4)


@task.io
async def fetch(url: str, timeout: float = 5.0) -> bytes:  # noqa: ASYNC109 - a parameter named like an option of ours
    """Fetch one."""
    return url.encode()


@task.io
def read(path: str) -> bytes:
    return path.encode()


@task.cpu
def parse(raw: bytes, *, strict: bool = False) -> int:
    return len(raw)


@task.cpu
def total(values: Any, name: str = "") -> int:
    return 0


@task.io
def anything(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def compiled(workflow: Workflow | Bound[Any], **options: Any) -> Program:
    """A Program, whatever it is made from."""
    build = getattr(workflow, "build", None)
    return compile_workflow(build() if build else workflow, capabilities=capabilities, **options)  # type: ignore[arg-type]


def edges(program: Program) -> dict[str, set[str]]:
    """For each name the names it waits for."""
    return {
        name: {program.names[up] for up in ups} for name, ups in zip(program.names, program.plan.upstreams, strict=True)
    }


def shown(value: Any) -> Any:
    """A template as plain data: ``Ref(3)`` as ``"@3"``."""
    if isinstance(value, Ref):
        return f"@{value.node}"
    if isinstance(value, Arguments):
        return shown(value.args), shown(dict(value.kwargs))
    if isinstance(value, dict):
        return {key: shown(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(shown(each) for each in value)
    return value
