"""What the `dask` executor runs inside a Dask cluster: a plugin in its scheduler, and a function on its workers.

Dask begins a task anew when its worker dies or retires, and computes a result again that was lost with its worker. Both would be
attempts that nobody counted, of a task that may not bear them. `OnlyOnce` sees to it that a task of ours, once a
worker has been given it, is never given to another: the scheduler has a mark for tasks that "cannot go into the
processing state any more", and the plugin sets it. Tasks of others on the same cluster are left alone.

Everything that a worker or the plugin has to tell goes as an event of Dask's, under the topic of the executor it is for. A
scheduler keeps a hundred thousand events of each topic, for whoever asks later: of ours, which have results in them, the plugin
has it keep none, and no topic when its executor is gone.

Needs `distributed`; imported by whoever has a cluster to talk to.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from flowlane_plugins.executors import outpost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane_plugins.executors.kept import Kept

__all__ = ["ANNOTATION", "LOST", "RECORD", "REFUSED", "TOPIC", "OnlyOnce", "attempt"]

#: What tells tasks of ours from others, with the topic as its value.
ANNOTATION: Final = "flowlane"
#: What the topics of ours begin with.
TOPIC: Final = "flowlane-"

# What an event begins with.
RECORD: Final = "record"  # (ref in hex, the rest of an `outpost.Record`)
LOST: Final = "lost"  # (key, the address of the worker that had it)
REFUSED: Final = "refused"  # (key, address): Dask could not even call us there

# By name: the package has no types, and is not always installed where this is checked.
_worker: Any = import_module("distributed.worker")
_plugin: Any = import_module("distributed.diagnostics.plugin")


def attempt(call: outpost.Call, payload: bytes, inputs: Sequence[Kept], topic: str) -> Kept | None:
    """Run one call on a Dask worker. What it returns stays there."""
    worker = _worker.get_worker()

    def tell(record: outpost.Record) -> None:
        worker.log_event(topic, (RECORD, format(record[0], "x"), *record[1:]))  # msgpack has 64 bits for a number

    record, result = outpost.perform(call._replace(payload=payload), inputs, worker.address, tell)
    tell(record)  # by the same stream as the end of the task, and before it
    return result


class OnlyOnce(_plugin.SchedulerPlugin):  # type: ignore[misc]  # pyright: ignore[reportUntypedBaseClass] - see above
    """Keeps the scheduler from beginning tasks of ours a second time, and tells of those that are lost by that.

    And from keeping what was told: see the module's text.
    """

    name = "flowlane-only-once"
    idempotent = True  # one for all clients

    def __init__(self) -> None:
        self._scheduler: Any = None
        self._lost: list[tuple[str, str]] = []  # (topic, key), until it is known with which worker

    async def start(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def transition(self, key: str, start: str, finish: str, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002 - Dask's
        task: Any = self._scheduler.tasks.get(key)
        if task is None or not task.annotations or ANNOTATION not in task.annotations:
            return
        topic: str = task.annotations[ANNOTATION]
        if finish == "processing":
            task.has_lost_dependencies = True
        elif finish == "memory":
            task.run_spec = None  # from now on it is data, as if it had been scattered: its arguments can go
        elif start == "processing" and finish != "memory" and task.who_wants:
            if finish == "erred":
                self._scheduler.log_event(topic, (REFUSED, key, kwargs.get("worker") or ""))
            else:
                self._lost.append((topic, key))

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:  # noqa: ARG002 - Dask's
        lost, self._lost = self._lost, []
        for topic, key in lost:
            scheduler.log_event(topic, (LOST, key, worker))

    def log_event(self, topic: str, msg: Any) -> None:  # noqa: ARG002 - Dask's
        if topic.startswith(TOPIC):  # who has subscribed has been sent it
            self._scheduler._broker.truncate(topic)

    def remove_client(self, scheduler: Any, client: str) -> None:
        topics = scheduler._broker._topics
        for name in [name for name in topics if name.startswith(TOPIC) and client in topics[name].subscribers]:
            del topics[name]
