"""run and arun: an Engine for one run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack, overload

from flowlane.declare.workflow import Bound, Workflow, WorkflowDefinition, as_bound
from flowlane.engine import Engine, StartOptions, own_options
from flowlane.errors import UsageError
from flowlane.handle import RunHandle
from flowlane.loader import refuse_while_importing
from flowlane.results import RunResult

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from flowlane.declare.limits import Adaptive
    from flowlane.runtime.ports import Executor, Sink
    from flowlane.storage.port import Store

__all__ = ["Engine", "RunHandle", "RunOptions", "RunResult", "StartOptions", "arun", "run"]

P = ParamSpec("P")
R = TypeVar("R")


class RunOptions(StartOptions, total=False):
    """Options of `run` and `arun`: raise unless the run succeeds (`check`, default True), and all that Engine takes."""

    check: bool
    slots: Mapping[str, int | Adaptive] | None
    executors: Mapping[str, Executor] | None
    sinks: Sequence[Sink]
    options: Mapping[str, Mapping[str, Any]] | None
    grace: float
    store: Store | str | os.PathLike[str] | None


#: Options of the run itself; the rest of run's are Engine's.
_START = tuple(StartOptions.__annotations__)


@overload
def run(target: WorkflowDefinition[P, R], /, *args: P.args, **kwargs: P.kwargs) -> RunResult[R]: ...
@overload
def run(target: Bound[R], /, **options: Unpack[RunOptions]) -> RunResult[R]: ...
@overload
def run(target: Workflow, /, **options: Unpack[RunOptions]) -> RunResult[dict[str, Any]]: ...
def run(target: Any, /, *args: Any, **kwargs: Any) -> RunResult[Any]:
    """Run a workflow to its end and return its RunResult; blocks. Raises RunFailed (unless ``check=False``).

    ``run(etl, urls=[...])`` takes the workflow's parameters; ``run(etl.bind(urls=[...]), check=False, ...)`` the run's
    options: `check`, those of StartOptions (`routes`, `on_failure`, `limits`, `only`, ...), and all that Engine takes.

    In the main thread Ctrl-C cancels the run, as with ``asyncio.run``. Raises UsageError inside a running event loop.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise UsageError("run() was called inside a running event loop", hint="use `await arun(...)` there")
    prepared = _prepare(target, args, kwargs)
    with asyncio.Runner() as runner:
        return runner.run(_one_run(*prepared))


@overload
def arun(
    target: WorkflowDefinition[P, R], /, *args: P.args, **kwargs: P.kwargs
) -> Coroutine[Any, Any, RunResult[R]]: ...
@overload
def arun(target: Bound[R], /, **options: Unpack[RunOptions]) -> Coroutine[Any, Any, RunResult[R]]: ...
@overload
def arun(target: Workflow, /, **options: Unpack[RunOptions]) -> Coroutine[Any, Any, RunResult[dict[str, Any]]]: ...
def arun(target: Any, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, RunResult[Any]]:
    """`run` for code that is async: same forms, same errors. Cancelling it cancels the run."""
    return _one_run(*_prepare(target, args, kwargs))


def _prepare(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Engine, Callable[[], RunHandle[Any]], bool]:
    """The engine, how to start the run on it, and whether it must succeed. Mistakes are told here."""
    refuse_while_importing("run()")
    own: dict[str, Any] = {}
    if isinstance(target, (Bound, Workflow)):
        own, kwargs = own_options(kwargs, RunOptions)
    bound: Bound[Any] = as_bound(target, args, kwargs)
    check = own.pop("check", True)
    start: Any = {name: own.pop(name) for name in _START if name in own}
    key = start.pop("key", None)
    engine = Engine(**own)
    program, origin = engine.compile(bound, **start), engine.origin(bound)
    return engine, lambda: engine.launch(program, keep_history=False, origin=origin, key=key), check


async def _one_run(engine: Engine, launch: Callable[[], RunHandle[Any]], check: bool) -> RunResult[Any]:
    async with engine:
        result: RunResult[Any] = await launch().wait()
    return result.check() if check else result
