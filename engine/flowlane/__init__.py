"""flowlane: declare a DAG of io and cpu tasks; each runs on asyncio, threads or processes, in one run.

    from flowlane import task, workflow, run

    @task.io
    async def fetch(url: str) -> bytes: ...

    @task.cpu
    def parse(raw: bytes) -> int: ...

    @workflow
    def count(urls: list[str]) -> list[int]:
        return [parse(fetch(url)) for url in urls]

    run(count, urls=[...]).value

Names are imported when first asked for (PEP 562), so that ``import flowlane`` costs next to nothing, also in workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowlane.api import Engine, RunHandle, RunResult, arun, run
    from flowlane.core.states import RunState, TaskState
    from flowlane.declare.cache import Cache
    from flowlane.declare.choice import either, flatten, otherwise, switch, when
    from flowlane.declare.limits import Adaptive, Limit
    from flowlane.declare.mapping import product, zipped
    from flowlane.declare.spec import RetryPolicy
    from flowlane.declare.task import Call, Task, task
    from flowlane.declare.teardown import teardown
    from flowlane.declare.workflow import Bound, Workflow, WorkflowDefinition, workflow
    from flowlane.errors import (
        ArgumentError,
        CycleError,
        DefinitionError,
        EngineClosed,
        Failure,
        FlowError,
        HandleError,
        ItemsError,
        LoadError,
        MemoryExceeded,
        NameTaken,
        ParameterError,
        PoisonTask,
        RepeatLimit,
        ResultDamaged,
        RetryAfter,
        RouteError,
        RunCancelled,
        RunExists,
        RunFailed,
        RunLocked,
        SettingsError,
        Skip,
        StoreError,
        TransportError,
        UnknownName,
        UnknownRun,
        UsageError,
        WorkerCrashed,
        WorkflowChanged,
    )
    from flowlane.runtime.context import TaskContext, current_task
    from flowlane.secret import Secret

    __version__: str

__all__ = [
    "Adaptive",
    "ArgumentError",
    "Bound",
    "Cache",
    "Call",
    "CycleError",
    "DefinitionError",
    "Engine",
    "EngineClosed",
    "Failure",
    "FlowError",
    "HandleError",
    "ItemsError",
    "Limit",
    "LoadError",
    "MemoryExceeded",
    "NameTaken",
    "ParameterError",
    "PoisonTask",
    "RepeatLimit",
    "ResultDamaged",
    "RetryAfter",
    "RetryPolicy",
    "RouteError",
    "RunCancelled",
    "RunExists",
    "RunFailed",
    "RunHandle",
    "RunLocked",
    "RunResult",
    "RunState",
    "Secret",
    "SettingsError",
    "Skip",
    "StoreError",
    "Task",
    "TaskContext",
    "TaskState",
    "TransportError",
    "UnknownName",
    "UnknownRun",
    "UsageError",
    "WorkerCrashed",
    "Workflow",
    "WorkflowChanged",
    "WorkflowDefinition",
    "__version__",
    "arun",
    "current_task",
    "either",
    "flatten",
    "otherwise",
    "product",
    "run",
    "switch",
    "task",
    "teardown",
    "when",
    "workflow",
    "zipped",
]

_HOMES = {
    "flowlane.api": ("Engine", "RunHandle", "RunResult", "arun", "run"),
    "flowlane.core.states": ("RunState", "TaskState"),
    "flowlane.declare.cache": ("Cache",),
    "flowlane.declare.choice": ("either", "flatten", "otherwise", "switch", "when"),
    "flowlane.declare.limits": ("Adaptive", "Limit"),
    "flowlane.declare.mapping": ("product", "zipped"),
    "flowlane.declare.spec": ("RetryPolicy",),
    "flowlane.declare.task": ("Call", "Task", "task"),
    "flowlane.declare.teardown": ("teardown",),
    "flowlane.secret": ("Secret",),
    "flowlane.runtime.context": ("TaskContext", "current_task"),
    "flowlane.declare.workflow": ("Bound", "Workflow", "WorkflowDefinition", "workflow"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from flowlane.version import version

        value: Any = version()
    elif name in __all__:
        from importlib import import_module

        value = getattr(import_module(_HOME_OF.get(name, "flowlane.errors")), name)
    else:
        raise AttributeError(f"module 'flowlane' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
