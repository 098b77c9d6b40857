"""What travels and how it fails, without any pool: `perform` is called here, with what would cross the boundary."""

from __future__ import annotations

import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.errors import Failure, TransportError, WorkerCrashed
from flowlane.loader import Address, loading
from flowlane.runtime import context
from flowlane.runtime.ports import Target
from flowlane_plugins.executors import transport, worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from flowlane.runtime.ports import Job


def again(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def carried(job: Job) -> worker.Outcome:
    """A job's outcome after everything has been through bytes, as over a pipe."""
    header = transport.encode_header(job.target, job.run)
    payload = transport.encode_arguments(job.target, job.args, job.kwargs)
    message = (header, payload, job.task, job.attempt, transport.files_in(payload))
    outcome: worker.Outcome = again(worker.perform(*again(message)))
    return outcome


def failed(job: Job) -> Failure:
    outcome = carried(job)
    assert outcome[0] in (worker.RAISED, worker.REFUSED)
    return transport.decode_failure(outcome[-1])


def test_a_call_there_and_its_result_back(shapes: ModuleType, job: Callable[..., Job]) -> None:
    what, started, ended, cpu, pid, payload = carried(job(shapes.add, 1, b=2))
    assert what == worker.RETURNED
    assert 0 < started <= ended
    assert cpu >= 0
    assert pid > 0
    assert transport.decode_result(payload, "add") == 3


# ── exceptions ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_awkward_exception_arrives_as_data(shapes: ModuleType, job: Callable[..., Job]) -> None:
    for name in shapes.EXCEPTIONS:
        failure = failed(job(shapes.throw, name))
        assert failure.type, name
        assert failure.ancestry[-1] == "BaseException", name
        assert type(failure.message) is str, name
        assert failure.type in failure.traceback, name
        assert again(failure).message == failure.message, name


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("two arguments", "TwoArguments", "7: seven"),
        ("keyword only", "KeywordOnly", "code 7"),
        ("holds a lock", "HoldsALock", "locked"),
        ("odd str", "OddStr", "odd text"),
        ("another on load", "AnotherOnLoad", "text"),
        ("group", "ExceptionGroup", "several (2 sub-exceptions)"),
        ("surrogates", "ValueError", "\udce4\udcf6"),
    ],
)
def test_type_and_message_are_kept(
    shapes: ModuleType, job: Callable[..., Job], name: str, kind: str, message: str
) -> None:
    failure = failed(job(shapes.throw, name))
    assert (failure.type, failure.message) == (kind, message)
    where = "" if kind.endswith(("Group", "Error")) else "_flow_shapes."
    assert failure.ancestry[0] == f"{where}{kind}", "retries match by the full name"
    assert failure.where is not None
    assert failure.where.endswith("in throw")


def test_only_an_exception_that_survives_the_trip_comes_along(shapes: ModuleType, job: Callable[..., Job]) -> None:
    survivors = {name for name in shapes.EXCEPTIONS if failed(job(shapes.throw, name)).exception is not None}
    lost = {"two arguments", "keyword only", "holds a lock", "bad str", "leaving str", "bad reduce"}
    lost |= {"explodes on load", "another on load", "no exception on load", "group"}
    assert not survivors & lost
    assert survivors >= {"local class", "surrogates", "base exception", "circular causes"}


def test_an_error_of_ours_is_a_sentence_a_place_and_notes() -> None:
    error = TransportError("x cannot travel", where="etl.py:3", hint="make it there")
    error.add_note("a note")
    for failure in (Failure.of(error), transport.decode_failure(transport.encode_failure(error))):
        assert (failure.type, failure.message) == ("TransportError", "x cannot travel")
        assert failure.notes == ("a note", "hint: make it there")
        assert failure.where == "etl.py:3"
    assert Failure.of(TransportError("x")).notes == ()


def test_an_error_of_ours_that_was_never_initialised_is_described_too() -> None:
    class Lost(WorkerCrashed):
        def __init__(self, code: int) -> None:
            Exception.__init__(self, code)

        def __str__(self) -> str:
            return f"code {self.args[0]}"

    failure = transport.decode_failure(transport.encode_failure(Lost(3)))
    assert (failure.message, failure.notes) == ("code 3", ())


def test_an_exception_comes_back_as_what_it_was() -> None:
    original: Any = OSError("text", 7)
    original.add_note("a note")
    original.extra = [1, 2]
    failure = transport.decode_failure(transport.encode_failure(original))
    back: Any = failure.exception
    assert type(back) is OSError
    assert back.args == ("text", 7)
    assert back.__notes__ == ["a note"]
    assert back.extra == [1, 2]
    assert failure.notes == ("a note",)


def test_the_chain_of_causes_travels_as_text(job: Callable[..., Job]) -> None:
    def fails() -> None:
        try:
            raise KeyError("below")
        except KeyError as error:
            raise ValueError("above") from error

    text = failed(job(fails)).traceback
    assert text.index("KeyError: 'below'") < text.index("ValueError: above")
    assert "worker.py" not in text


# ── arguments ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "path", "reason"),
    [
        ("lock", "take(cfg)", "cannot pickle '_thread.lock' object"),
        ("lock in a config", "take(cfg) .session._lock", "cannot pickle '_thread.lock' object"),
        ("lock in slots", "take(cfg) .second", "cannot pickle '_thread.lock' object"),
        ("lock in a wide list", "take(cfg) ['a'][50000]['lock']", "cannot pickle '_thread.lock' object"),
        ("lock in a named tuple", "take(cfg) .right[0]", "cannot pickle '_thread.lock' object"),
        ("lock in a dict subclass", "take(cfg) ['x']", "cannot pickle '_thread.lock' object"),
        ("generator", "take(cfg)", "cannot pickle 'generator' object"),
        ("thread local", "take(cfg)", "cannot pickle '_thread._local' object"),
        ("refuses", "take(cfg) [0]", "KeyError: 'I stay here'"),
        ("leaves when pickled", "take(cfg)", "SystemExit: 3"),
        ("nested", "take(cfg)", "it is nested too deeply"),
        ("chained", "take(cfg)", "it is nested too deeply"),
    ],
)
def test_an_argument_that_cannot_be_pickled_is_named(
    shapes: ModuleType, job: Callable[..., Job], name: str, path: str, reason: str
) -> None:
    awkward = job(shapes.take, shapes.make(name))
    with pytest.raises(TransportError) as caught:
        transport.encode_arguments(awkward.target, awkward.args, awkward.kwargs)
    assert caught.value.message.startswith(f"{path} cannot travel to a worker process: {reason}")
    assert caught.value.hint


def test_the_parameter_is_named_wherever_it_stands(shapes: ModuleType, job: Callable[..., Job]) -> None:
    lock = threading.Lock()
    for args, kwargs, parameter in [
        ((1, 2, lock), {}, "more[1]"),
        ((), {"named": lock}, "named"),
        ((1,), {"named": [lock]}, "named"),
    ]:
        awkward = job(shapes.take, *args, **kwargs)
        with pytest.raises(TransportError, match="cannot travel") as caught:
            transport.encode_arguments(awkward.target, awkward.args, awkward.kwargs)
        assert caught.value.message.startswith(f"take({parameter})")


@pytest.mark.parametrize(
    ("name", "path", "reason"),
    [
        ("bomb", "take(cfg) ['k'][1][0] (_flow_shapes.Bomb)", "ValueError: boom"),
        ("leaving bomb", "take(cfg) (_flow_shapes.LeavingBomb)", "SystemExit: 3"),
        ("bomb in reduce", "take(cfg) .parts (int)", "ValueError: invalid literal for int()"),
    ],
)
def test_an_argument_that_explodes_on_load_is_named(
    shapes: ModuleType, job: Callable[..., Job], name: str, path: str, reason: str
) -> None:
    refused = job(shapes.take, shapes.make(name))
    assert carried(refused)[:2] == (worker.REFUSED, worker.NOT_MEASURED)
    assert failed(refused).message.startswith(f"{path} cannot be unpickled: {reason}")
    assert failed(job(shapes.take, 1, named=shapes.make(name))).message.startswith(path.replace("cfg", "named"))
    assert failed(job(shapes.take, 1, 2, shapes.make(name))).message.startswith(path.replace("cfg", "more[1]"))


def test_lambdas_and_local_classes_travel_as_arguments(shapes: ModuleType, job: Callable[..., Job]) -> None:
    class Local:
        n = 7

    _, *_, payload = carried(job(shapes.call, lambda local: local().n + 1, Local))
    assert transport.decode_result(payload, "call") == 8


# ── results ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("lock in a config", "make .session._lock"),
        ("lock in a wide list", "make ['a'][50000]['lock']"),
        ("generator", "make"),
        ("refuses", "make [0]"),
        ("leaves when pickled", "make"),
        ("nested", "make"),
        ("chained", "make"),
    ],
)
def test_a_result_that_cannot_be_pickled_is_named(
    shapes: ModuleType, job: Callable[..., Job], name: str, path: str
) -> None:
    awkward = job(shapes.make, name)
    what, started, ended, *_ = carried(awkward)
    assert what == worker.RAISED
    assert 0 < started <= ended, "it did run"
    assert failed(awkward).message.startswith(f"the result of {path} cannot travel back")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("bomb", "make ['k'][1][0] (_flow_shapes.Bomb)"),
        ("leaving bomb", "make (_flow_shapes.LeavingBomb)"),
        ("bomb in reduce", "make .parts (int)"),
    ],
)
def test_a_result_that_explodes_on_load_is_named(
    shapes: ModuleType, job: Callable[..., Job], name: str, path: str
) -> None:
    what, *_, payload = carried(job(shapes.make, name))
    assert what == worker.RETURNED
    with pytest.raises(TransportError) as caught:
        transport.decode_result(payload, "make")
    assert caught.value.message.startswith(f"the result of {path} cannot be unpickled")


# ── functions ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_function_with_an_address_travels_by_name(shapes: ModuleType, job: Callable[..., Job]) -> None:
    header = transport.encode_header(job(shapes.add).target, "run-1")
    assert b"cloudpickle" not in header
    assert transport.decode_header(header) == (shapes.add, "add", "run-1")


def test_a_closure_travels_by_value_and_keeps_its_state_for_the_run(job: Callable[..., Job]) -> None:
    calls: list[int] = []

    def counts() -> int:
        calls.append(1)
        return len(calls)

    one = job(counts)
    assert one.target.address is None
    assert [transport.decode_result(carried(one)[-1], "counts") for _ in range(2)] == [1, 2]
    assert calls == [], "what travelled is a copy"


def test_a_closure_over_something_that_cannot_travel_names_it(job: Callable[..., Job]) -> None:
    lock = threading.Lock()

    def guarded() -> None:
        with lock:
            pass

    with pytest.raises(TransportError, match="guarded captured lock cannot travel to a worker process"):
        transport.encode_header(job(guarded).target, "run-1")


def test_a_function_that_is_not_found_is_refused_with_the_reason() -> None:
    target = Target("gone", len, False, Address("no_such_module_here", "gone", None))
    what, *_, payload = worker.perform(
        transport.encode_header(target, "r"), transport.encode_arguments(target, (), {}), "gone", 1
    )
    failure = transport.decode_failure(payload)
    assert what == worker.REFUSED
    assert failure.type == "TransportError"
    assert failure.ancestry[0] == "flowlane.errors.TransportError"
    assert "no_such_module_here" in failure.message
    assert isinstance(failure.exception, TransportError)


def test_a_module_that_only_an_argument_needs_may_not_start_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is run here, refused or not: the module only tells what it sees.
    (tmp_path / "module_of_row.py").write_text(
        "from flowlane.loader import refuse_while_importing\nrefuse_while_importing('run()')\nclass Row: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    target = Target("repr", repr, False, Address("builtins", "repr", None))
    payload = b"\x80\x05]\x94(}\x94cmodule_of_row\nRow\ne."
    what, *_, answer = worker.perform(transport.encode_header(target, "r"), payload, "repr#1", 1)
    failure = transport.decode_failure(answer)
    assert what == worker.REFUSED
    assert "run() was started at the top level of a module that the task or an argument needs" in failure.message
    assert loading() is None


def test_a_payload_names_the_files_it_needs(shapes: ModuleType) -> None:
    payload = transport.encode_result(shapes.Holder(1), "x")
    assert transport.files_in(payload) == (("_flow_shapes", shapes.__file__),)
    assert transport.files_in(transport.encode_result([1, "text"], "x")) == ()


# ── the worker's side ─────────────────────────────────────────────────────────────────────────────────────────────


def test_jobs_see_their_own_log_context_and_not_each_others(job: Callable[..., Job]) -> None:
    def who() -> tuple[str, str, int]:
        seen = context.RUN.get(), context.TASK.get(), context.ATTEMPT.get()
        context.TASK.set("changed")
        return seen

    import contextvars

    def twice() -> list[Any]:
        return [transport.decode_result(carried(job(who))[-1], "who") for _ in range(2)]

    assert contextvars.copy_context().run(twice) == [("run-1", "who#1", 1)] * 2
