"""Pools under test for what a bad task does to them: each takes a batch of calls and tells what every waiter heard."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SUBJECTS", "Answer", "Call", "Subject"]

Call = tuple[Callable[..., Any], tuple[Any, ...]]
Submit = Callable[[Callable[..., Any], tuple[Any, ...], "float | None"], Any]


class Answer(NamedTuple):
    """What a waiter heard: a value, an error's name, or nothing at all."""

    value: Any = None
    error: str | None = None
    silent: bool = False

    def __str__(self) -> str:
        return "hangs" if self.silent else self.error or repr(self.value)


class Subject(Protocol):
    """A pool of 2 workers under test."""

    def batch(self, calls: Sequence[Call], bad: int, timeout: float | None, patience: float) -> list[Answer]:
        """Call all; `timeout` is for call number `bad`. Waits at most `patience` seconds."""
        ...

    def shutdown(self) -> None: ...


# ── pools with a submit ───────────────────────────────────────────────────────────────────────────────────────────────


class Submitting:
    """`submit(function, arguments, timeout)` gives a future."""

    def __init__(self, submit: Submit, shutdown: Callable[[], object]) -> None:
        self._submit = submit
        self._shutdown = shutdown

    def batch(self, calls: Sequence[Call], bad: int, timeout: float | None, patience: float) -> list[Answer]:
        futures: list[Any] = []
        for number, (function, arguments) in enumerate(calls):
            try:
                futures.append(self._submit(function, arguments, timeout if number == bad else None))
            except Exception as error:  # noqa: BLE001 - a broken pool refuses
                futures.append(Answer(error=type(error).__name__))
        deadline = time.monotonic() + patience
        return [one if isinstance(one, Answer) else _wait(one, deadline - time.monotonic()) for one in futures]

    def shutdown(self) -> None:
        self._shutdown()


def _wait(future: Any, patience: float) -> Answer:
    """What the future's waiter hears. A TimeoutError of the task's own is told from ours by whether the future is done."""
    try:
        return Answer(value=future.result(timeout=max(0.0, patience)))
    except (FutureTimeout, TimeoutError) as error:
        return Answer(error=type(error).__name__) if future.done() else Answer(silent=True)
    except BaseException as error:  # noqa: BLE001 - SystemExit comes this way too
        return Answer(error=type(error).__name__)


def _stdlib() -> Subject:
    from concurrent.futures import ProcessPoolExecutor

    pool = ProcessPoolExecutor(2)
    return Submitting(lambda function, arguments, _: pool.submit(function, *arguments), pool.shutdown)


def _loky() -> Subject:
    pool = import_module("loky").get_reusable_executor(max_workers=2)
    return Submitting(lambda function, arguments, _: pool.submit(function, *arguments), pool.shutdown)


def _pebble() -> Subject:
    pool = import_module("pebble").ProcessPool(max_workers=2)

    def shutdown() -> None:
        pool.close()
        pool.join()

    return Submitting(
        lambda function, arguments, timeout: pool.schedule(function, args=arguments, timeout=timeout), shutdown
    )


# ── flowlane ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Flowlane:
    """An Engine with 2 worker processes. Every task hands its value to a collector in this process."""

    def __init__(self) -> None:
        from flowlane import Engine

        self._engine = Engine(slots={"processes": 2}, grace=0.5)
        self._engine.__enter__()

    def batch(self, calls: Sequence[Call], bad: int, timeout: float | None, patience: float) -> list[Answer]:
        from flowlane import Workflow, task

        heard: dict[int, Any] = {}

        async def collect(number: int, value: Any) -> None:
            heard[number] = value

        collector = task.io(collect)
        workflow = Workflow("faults")
        for number, (function, arguments) in enumerate(calls):
            node = task.cpu(timeout=timeout)(function) if number == bad else task.cpu(function)
            value = workflow.add(node.bind(*arguments), name=f"call-{number}")
            workflow.add(collector.bind(number, value), name=f"collect-{number}")
        handle = self._engine.start(workflow.returns(None))
        try:
            handle.result(timeout=patience)
        except TimeoutError:
            return [
                Answer(value=heard[number]) if number in heard else Answer(silent=True) for number in range(len(calls))
            ]
        except Exception as error:  # noqa: BLE001 - RunFailed, as a rule, with a failure for each task
            failures = getattr(error, "failures", {})
        else:
            failures = {}
        return [
            Answer(value=heard[number])
            if number in heard
            else Answer(error=failures[f"call-{number}"].type if f"call-{number}" in failures else "not run")
            for number in range(len(calls))
        ]

    def shutdown(self) -> None:
        self._engine.__exit__(None, None, None)


SUBJECTS: Final[dict[str, Callable[[], Subject]]] = {
    "stdlib": _stdlib,
    "loky": _loky,
    "pebble": _pebble,
    "flowlane": Flowlane,
}
