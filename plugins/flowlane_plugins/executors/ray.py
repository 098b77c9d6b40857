"""The `ray` executor: tasks on the workers of a Ray cluster.

It connects to the cluster that it is given, or starts one on this machine. A job is one Ray task with two results: a record of
how the attempt went, which comes back, and the task's own result, which stays in the cluster's object store; the engine has
a reference to it (`kept`), and gives that to tasks that need it. A value comes here when a task on another executor, the
caller or a store needs it.

Attempts are the engine's: ``max_retries=0``, and with that Ray does not compute a lost object again either. A worker that dies
makes CRASHED what it had; who needs a result that went with its node fails with a TransportError that names it.

Stopping a job: one that has not begun is taken back. One that runs gets a KeyboardInterrupt, which a call that blocks in C
does not see before it returns; after the grace its worker process is killed (``ray.cancel(force=True)``). So any job can be
stopped for real, and timeouts are kept here.

A process is connected to one Ray cluster at a time. Where the host has connected already, that connection is used and left
as it is. Ray puts a handler for SIGTERM of its own in place of the host's; it is put back. RAY_AUTH_TOKEN is Ray's own, and
read by it.

Threads: Ray calls back on a thread of its own when a record is here. One of ours starts Ray, asks the mailbox for news, and
ends Ray: the processes of a cluster that is started here die with the *thread* that started them, so that has to stay.
The rest is as in `cluster`. Needs ``pip install 'flowlane[ray]'``.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from flowlane.errors import SettingsError, TransportError, UsageError
from flowlane.redaction import redacted, remember
from flowlane.runtime.ports import NEVER
from flowlane_plugins.executors.cluster import ClusterExecutor, hide_password, lost, missing
from flowlane_plugins.executors.futures import usable_cores
from flowlane_plugins.executors.kept import Kept, Reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowlane_plugins.executors.cluster import Flight
    from flowlane_plugins.executors.outpost import Call

__all__ = ["RayExecutor"]

_HOST_AND_PORT: Final = re.compile(r"(?:ray://)?(\[[^\]]+\]|[^:/@\[\]]+):(\d+)")
_SLOTS: Final = 16  # of a cluster that we have not met yet
_NEWS: Final = 1.0  # seconds to wait for news at a time
_LISTENING: Final = 0.1  # seconds after which it is seen that this is to end
_COUNTING: Final = 5.0  # seconds between two looks at how large the cluster is
_FUNCTIONS_KEPT: Final = 1_000
_KILLING: Final = 3.0  # seconds that a worker may take to be gone
_FETCHING: Final = 600.0  # seconds for a value to get here


class RayExecutor(ClusterExecutor):
    """Runs plain functions on a Ray cluster.

    address  of a cluster: "auto", "10.0.0.1:6379", or "ray://..."; None takes Ray's own setting (RAY_ADDRESS), if any
    slots    jobs out at a time; None takes what the cluster has room for
    init     more keywords for ``ray.init``: ``{"runtime_env": {"pip": ["pandas"]}}``
    resources limits whose amounts a job asks of Ray by another name: {"gpu": "GPU"}, or {"license": "license"} for a resource of
             the cluster's own. A task's ``cores=`` and ``memory=`` are asked for as Ray's CPU and memory
    grace    seconds that a task whose timeout has passed has to clean up before its process is killed
    connect_timeout  seconds to wait for somebody to answer at an address that has a port

    Without an address a cluster is started on this machine, as many worker processes as there are slots, and ended by `close`.
    Raises SettingsError for options that do not fit, and when Ray is not installed.
    """

    kind = "ray"

    def __init__(
        self,
        address: str | None = None,
        *,
        slots: int | None = None,
        init: Mapping[str, Any] | None = None,
        resources: Mapping[str, str] | None = None,
        grace: float = 1.0,
        connect_timeout: float = 30.0,
    ) -> None:
        if find_spec("ray") is None:  # not imported here: that takes a second, and may never be needed
            raise missing("ray", "ray")
        if type(grace) not in (int, float) or grace < 0:
            raise SettingsError(f"grace of executor 'ray' must be a number of seconds, not {grace!r}")
        if type(connect_timeout) not in (int, float) or connect_timeout <= 0:
            raise SettingsError(f"connect_timeout of executor 'ray' must be seconds, not {connect_timeout!r}")
        address = address or os.environ.get("RAY_ADDRESS") or None
        known = {"cores": "CPU", "memory": "memory"}
        wanted: Any = (
            known if resources is None else {**known, **resources} if isinstance(resources, dict) else resources
        )
        default = usable_cores() if address is None else _SLOTS
        self._prepare(slots, default, wanted, hard_kill=True, interruptible=True)
        self.own_grace = grace
        self._address = address
        self._connect_timeout = connect_timeout
        self._keywords = dict(init or {})
        self._ray: Any = None
        self._attempt: Any = None
        self._functions: dict[tuple[Any, ...], Any] = {}
        self._mailbox: Any = None
        self._started = False  # by us
        self._errors: Any = None
        self._counted = 0.0
        self._quit = threading.Event()
        self._up = threading.Event()
        self._problem: Exception | None = None
        self._thread: threading.Thread | None = None

    # ── the cluster ───────────────────────────────────────────────────────────────────────────────────────────────

    def connect(self) -> None:
        """Connect, or start a cluster. Raises UsageError when there is none to connect to."""
        self._quit.clear()
        self._up.clear()
        self._problem = None
        self._thread = threading.Thread(target=self._live, name="flowlane-ray", daemon=True)
        self._thread.start()
        self._up.wait()
        if self._problem is not None:
            raise self._problem

    def disconnect(self) -> None:
        """Let go of the cluster, and end the one that was started. Values that are still there are lost to us."""
        self._quit.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _live(self) -> None:
        """From the begin to the end of a connection. Our thread."""
        try:
            self._begin()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            self._problem = error
        self._up.set()
        if self._problem is None:
            self._listen()
        self._end()

    def _begin(self) -> None:
        ray: Any = import_module("ray")
        self._errors = import_module("ray.exceptions")
        if not ray.is_initialized():
            handler = signal.getsignal(signal.SIGTERM)
            try:
                keywords = self._init_keywords()
                for secret in (os.environ.get("RAY_AUTH_TOKEN"), keywords.get("_redis_password")):
                    remember(secret or "")
                hide_password(keywords["address"])
                self._await_answer(keywords["address"])
                ray.init(**keywords)
            except Exception as error:
                where = self._address or "this machine"
                raise UsageError(
                    redacted(
                        f"executor 'ray' finds no cluster at {where}: {type(error).__name__}: {_first_line(error)}"
                    ),
                    hint="is it running, and reachable from here? A cluster that asks for a token wants RAY_AUTH_TOKEN",
                ) from error
            self._started = True
            self.on_loop(_put_back, handler)
        self._ray = ray
        from flowlane_plugins.executors import ray_worker

        self._attempt = ray.remote(num_returns=2, max_retries=0)(ray_worker.attempt)
        self._mailbox = _mailbox(ray)
        ray.get(self._mailbox.take.remote(self.lane, 0))  # it is up: the start of the first job will not be told late
        self._counted = 0.0
        self._count()

    def _await_answer(self, address: str) -> None:
        """Wait until somebody listens at an address: Ray itself goes on for minutes when nobody does. Raises OSError."""
        found = _HOST_AND_PORT.fullmatch(address)
        if found is None:
            return
        util: Any = import_module("ray.util")
        host, port = found[1].strip("[]"), int(found[2])
        # Of this machine's nodes some listen on its address in the network alone, and Ray knows to look there.
        hosts = [host, util.get_node_ip_address()] if host in ("localhost", "127.0.0.1") else [host]
        until = monotonic() + self._connect_timeout
        problem: OSError | None = None
        while True:
            for each in hosts:
                try:
                    socket.create_connection((each, port), timeout=max(0.1, until - monotonic())).close()
                except OSError as error:
                    problem = error
                else:
                    return
            if self._quit.is_set() or monotonic() > until:
                raise TimeoutError(f"nobody answers there within {self._connect_timeout:g} s ({problem})") from problem
            sleep(_LISTENING)

    def _end(self) -> None:
        ray, self._ray = self._ray, None
        mailbox, self._mailbox = self._mailbox, None
        self._attempt = None
        self._functions.clear()
        with contextlib.suppress(Exception):  # it is gone already: there is nothing left to end
            if mailbox is not None:
                ray.get(mailbox.leave.remote(self.lane), timeout=1)
        with contextlib.suppress(Exception):
            if self._started:
                self._started = False
                ray.shutdown()

    def _init_keywords(self) -> dict[str, Any]:
        keywords: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if self._address is not None:
            keywords["address"] = self._address
        elif self._keywords.get("address") is None:
            slots = self.capabilities.default_slots
            # "local", or Ray would connect to any cluster that it finds on this machine
            keywords |= {"address": "local", "num_cpus": slots, "include_dashboard": False}
            keywords["_node_ip_address"] = "127.0.0.1"
        return {**keywords, **self._keywords}

    def _count(self) -> None:
        """See how large the cluster is, from time to time."""
        ray = self._ray
        now = monotonic()
        if ray is not None and now - self._counted > _COUNTING:
            self._counted = now
            with contextlib.suppress(Exception):
                self._room = int(ray.cluster_resources().get("CPU", 0))

    # ── there ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, batch: Sequence[tuple[Flight, Call]]) -> None:
        """Hand jobs to Ray. Large arguments are copied into its store."""
        for flight, call in batch:
            inputs: list[Any] = [reference.ref for reference in _references(flight)]
            record, value = self._function(flight).remote(call, *inputs)
            flight.handle = (record, value)
            record.future().add_done_callback(partial(self._answered, flight))

    def _function(self, flight: Flight) -> Any:
        """What to call for a job: Ray's function, with its name and needs. Made once for each task: that takes a while."""
        wanted = (flight.name, *flight.needs.items())
        function = self._functions.get(wanted)
        if function is None:
            if len(self._functions) >= _FUNCTIONS_KEPT:
                self._functions.clear()
            options: dict[str, Any] = {"name": flight.name}
            needs = dict(flight.needs)
            if needs != {"CPU": 1}:
                options |= {"num_cpus": needs.pop("CPU", 0), "num_gpus": needs.pop("GPU", 0)}
                options |= {"memory": memory} if (memory := needs.pop("memory", 0)) else {}
                options["resources"] = needs
            function = self._functions[wanted] = self._attempt.options(**options)
        return function

    # ── and back ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _answered(self, flight: Flight, future: Any) -> None:
        """A record is here, or what Ray has to say in its place. Ray's thread."""
        if flight.ref not in self._flights:
            return
        error: Any = future.exception()
        if error is None:
            self.take(future.result())
            return
        self._hush(flight)
        errors = self._errors
        if isinstance(error, errors.TaskCancelledError) and flight.asked:
            self.stopped(flight, begun=flight.killed)
        elif isinstance(error, errors.WorkerCrashedError) and flight.asked:
            self.stopped(flight, begun=True)
        elif not self._bereft(flight, error):
            if isinstance(error, errors.RayTaskError) and not isinstance(error, errors.ObjectLostError):
                cause = getattr(error, "cause", None) or error
                self.failed(
                    flight,
                    TransportError(
                        f"{flight.task} cannot be called on its Ray worker: {type(cause).__name__}: {_first_line(cause)}",
                        hint="flowlane must be installed where the workers are, in the same version",
                    ),
                )
            else:
                self.crashed(flight, f"its Ray worker died ({type(error).__name__}: {_first_line(error)})", begun=True)

    def _bereft(self, flight: Flight, error: Any) -> bool:
        """Tell of a job whose input is gone, if it is that."""
        cause = getattr(error, "cause", None) or error
        if not isinstance(cause, self._errors.ObjectLostError) and not isinstance(error, self._errors.ObjectLostError):
            return False
        name = getattr(cause, "object_ref_hex", None) or getattr(error, "object_ref_hex", None)
        references = _references(flight)
        gone = next((reference for reference in references if reference.ref.hex() == name), None)
        if gone is None:
            if not references:
                return False
            gone = references[0]
        self.bereft(flight, gone, f"its Ray worker died ({type(error).__name__}: {_first_line(error)})")
        return True

    def _hush(self, flight: Flight) -> None:
        """Look at the error that is in the place of the value too, or Ray prints that nobody has."""
        ray = self._ray
        if ray is not None and flight.handle is not None:
            with contextlib.suppress(BaseException):
                ray.get(flight.handle[1], timeout=0)

    def _listen(self) -> None:
        """Hear which jobs have begun. Our thread."""
        ray, mailbox = self._ray, self._mailbox
        asked: Any = None
        while not self._quit.is_set():
            try:
                if asked is None:
                    asked = mailbox.take.remote(self.lane, _NEWS)
                here, _ = ray.wait([asked], timeout=_LISTENING)
                if here:
                    asked = None
                    for record in ray.get(here[0]):
                        self.take(record)
            except Exception:  # noqa: BLE001 - the mailbox is being started, here or again, or Ray is gone
                asked = None
                self._quit.wait(_NEWS / 4)
            self._count()

    def reference(self, flight: Flight, nbytes: int) -> Reference:
        """The reference to a flight's result."""
        return RayReference(self, nbytes, flight.name, flight.task, flight.handle[1])

    # ── stopping ──────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self, flights: Sequence[Flight], grace: float) -> None:
        """Interrupt jobs, and kill the workers of those that have not stopped `grace` seconds later."""
        self._cancel(flights, force=False)
        self.on_loop(self._kill, list(flights), after=grace)

    def wind_up(self, flights: Sequence[Flight], grace: float) -> None:
        """Take back what is not known to have begun; kill the workers of what has not ended in time."""
        waiting = [flight for flight in flights if flight.began == NEVER]
        for flight in waiting:
            flight.asked = True
        self._cancel(waiting, force=False)
        self.on_loop(self._kill, list(flights), after=max(0.0, grace - _LISTENING))

    def _kill(self, flights: Sequence[Flight]) -> None:
        left = [flight for flight in flights if self._flights.get(flight.ref) is flight]
        if left:
            for flight in left:
                flight.asked = flight.killed = True
            self._cancel(left, force=True)
            self.on_loop(self.give_up, [flight.ref for flight in left], after=_KILLING)

    def _cancel(self, flights: Sequence[Flight], *, force: bool) -> None:
        ray = self._ray
        for flight in flights:
            with contextlib.suppress(Exception):  # it has ended, or the cluster has
                if ray is not None and flight.handle is not None:
                    ray.cancel(flight.handle[0], force=force)

    def forget(self, flight: Flight) -> None:
        """Let go of what a job returns."""
        flight.handle = None


class RayReference(Reference):
    """A result in Ray's object store, which is let go of when this is."""

    __slots__ = ("ref",)

    def __init__(self, home: object, nbytes: int, name: str, maker: str, ref: Any) -> None:
        super().__init__(home, nbytes, name, maker)
        self.ref = ref

    def bring(self) -> Kept:
        ray: Any = import_module("ray")
        errors: Any = import_module("ray.exceptions")
        if self.gone:
            raise lost(self, "ray")
        try:
            kept: Any = ray.get(self.ref, timeout=_FETCHING)
        except (errors.ObjectLostError, errors.WorkerCrashedError) as error:
            raise lost(self, "ray") from error
        except Exception as error:
            raise TransportError(
                f"the result of {self.maker} ({self.nbytes:,} bytes) does not get here from the Ray cluster:"
                f" {type(error).__name__}: {_first_line(error)}"
            ) from error
        if not isinstance(kept, Kept):
            raise lost(self, "ray")
        return kept


# An actor ends when the last handle of the process that made it is gone. So the handle stays, one for the connection there is.
_mailboxes: dict[tuple[str, str], Any] = {}


def _mailbox(ray: Any) -> Any:
    from flowlane_plugins.executors import ray_worker

    context = ray.get_runtime_context()
    connection = (context.get_node_id(), context.get_job_id())
    if connection not in _mailboxes:
        _mailboxes.clear()
        actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(ray_worker.Mailbox)
        _mailboxes[connection] = actor.options(**ray_worker.mailbox_place(), get_if_exists=True).remote()
    return _mailboxes[connection]


def _references(flight: Flight) -> Sequence[Any]:
    return flight.references


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _put_back(handler: Any) -> None:
    """The host's handler for SIGTERM, where Ray has put its own in its place. Loop's thread."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is not handler:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
