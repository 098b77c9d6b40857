"""What the `ray` executor runs inside a Ray cluster: a function on its workers, and a mailbox.

A Ray task answers when it ends, and not before. What is to be told meanwhile, that a long job has begun, goes through an
actor that the engine's side asks for news (`Mailbox`). One serves all executors of a process, takes no CPU of the cluster's,
and ends with that process's connection.

Ray interrupts a task by a KeyboardInterrupt in its thread, once. In the task's own code that is an error of the task, which
the engine's side knows what to make of; anywhere else it is caught here, so that it is always known whether a job had begun.

Needs `ray`; imported by whoever has a cluster to talk to.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flowlane_plugins.executors import outpost

if TYPE_CHECKING:
    from flowlane_plugins.executors.kept import Kept

__all__ = ["Mailbox", "attempt", "mailbox_place"]


def mailbox_place() -> dict[str, str]:
    """Name and namespace of the mailbox of the process that is connected here, or whose task this is."""
    ray: Any = import_module("ray")
    return {"name": f"mailbox-{ray.get_runtime_context().get_job_id()}", "namespace": "flowlane"}


def attempt(call: outpost.Call, *inputs: Kept) -> tuple[outpost.Record, Kept | None]:
    """Run one call on a Ray worker: the record goes back, the result stays. `inputs` were references where it was called."""
    since = time.monotonic_ns()
    worker = _here()
    try:
        return outpost.perform(call, inputs, worker, functools.partial(_tell, call.lane), time.process_time_ns)
    except KeyboardInterrupt:
        return outpost.stopped(call, worker, since), None


class Mailbox:
    """Keeps records until the executor that they are for, a *lane*, asks for them. A Ray actor."""

    def __init__(self) -> None:
        self._records: dict[str, list[outpost.Record]] = {}
        self._news: dict[str, asyncio.Event] = {}

    async def tell(self, lane: str, record: outpost.Record) -> None:
        if lane in self._news:  # else nobody asks any more
            self._records[lane].append(record)
            self._news[lane].set()

    async def take(self, lane: str, seconds: float) -> list[outpost.Record]:
        """What has come for `lane`; waits up to `seconds` for something."""
        news = self._news.setdefault(lane, asyncio.Event())
        records = self._records.setdefault(lane, [])
        try:
            await asyncio.wait_for(news.wait(), seconds)
        except TimeoutError:
            return []
        news.clear()
        self._records[lane] = []
        return records

    async def leave(self, lane: str) -> None:
        """Nobody asks for `lane` any more."""
        self._records.pop(lane, None)
        self._news.pop(lane, None)


def _tell(lane: str, record: outpost.Record) -> None:
    _mailbox().tell.remote(lane, record)


@functools.cache
def _mailbox() -> Any:  # for good: a Ray worker works for one process
    ray: Any = import_module("ray")
    return ray.get_actor(**mailbox_place())


@functools.cache
def _here() -> str:
    util: Any = import_module("ray.util")
    return f"{util.get_node_ip_address()} pid {os.getpid()}"
