"""``flowlane.futures``: the standard library's pools, on flowlane's workers. CPython's own tests stand in tests/faults."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import BrokenExecutor, CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import flowlane_plugins
from flowlane.errors import TransportError, WorkerCrashed
from flowlane.futures import ProcessPoolExecutor, ThreadPoolExecutor, driver, remote
from flowlane.futures.outcome import NotDelivered, WorkerDied

if TYPE_CHECKING:
    from collections.abc import Iterator

POOLS: list[Any] = [ThreadPoolExecutor, ProcessPoolExecutor]
both = pytest.mark.parametrize("pool_class", POOLS)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()
    deadline = time.monotonic() + 20
    while driver._serving and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not driver._serving
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("flowlane")]


# ── what workers are asked to do; by name, so that worker processes find it ───────────────────────────────────────


class TwoArguments(Exception):
    """Cannot be unpickled: its args do not fit its constructor."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} and {right}")


class Bomb:
    def __reduce__(self) -> Any:
        raise ValueError("tick")


class BombOnArrival:
    def __reduce__(self) -> Any:
        return (int, ("not a number",))


def divide(left: int, right: int) -> float:
    return left / right


def raise_two_arguments() -> None:
    raise TwoArguments(1, 2)


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def slow(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def make_bomb() -> Bomb:
    return Bomb()


ready: list[Any] = []
LANGUAGE: ContextVar[str] = ContextVar("LANGUAGE", default="")


def prepare(*what: Any) -> None:
    ready.extend(what)
    LANGUAGE.set("en")


def look() -> tuple[int, int, str]:
    return os.getpid(), len(ready), LANGUAGE.get()


def prepared_with() -> int:
    return len(ready[0])


def use_lock(seconds: float) -> bool:
    with ready[0]:
        return ready[1].value == 7


def explode(submitted: Any) -> None:
    submitted.wait(30)
    raise ValueError("no database")


# ── both kinds ────────────────────────────────────────────────────────────────────────────────────────────────────


@both
def test_submit_map_and_futures_are_the_standard_librarys(pool_class: Any) -> None:
    with pool_class(2) as pool:
        assert isinstance(pool, concurrent.futures.Executor)
        future = pool.submit(divide, 7, right=2)
        assert type(future) is Future
        assert future.result(30) == 3.5
        assert list(pool.map(divide, range(5), [2] * 5, timeout=30, chunksize=2)) == [0, 0.5, 1, 1.5, 2]
        with pytest.raises(ZeroDivisionError):
            pool.submit(divide, 1, 0).result(30)
        assert len(concurrent.futures.wait([pool.submit(divide, n, 1) for n in range(9)], 30).done) == 9


@both
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": -3}, ValueError),
        ({"max_workers": "4"}, TypeError),
        ({"initializer": 3}, TypeError),
    ],
)
def test_what_the_standard_library_refuses_is_refused_alike(
    pool_class: Any, arguments: dict[str, Any], error: type[Exception]
) -> None:
    theirs = getattr(concurrent.futures, pool_class.__name__)
    with pytest.raises(error) as expected:
        theirs(**arguments)
    with pytest.raises(error) as got:
        pool_class(**arguments)
    assert str(got.value) == str(expected.value)


@both
def test_a_future_that_has_not_begun_can_be_cancelled(pool_class: Any) -> None:
    with pool_class(1) as pool:
        first = pool.submit(slow, 0.3)
        rest = [pool.submit(divide, 1, 1) for _ in range(20)]
        while not first.running():
            time.sleep(0.001)
        assert rest[-1].cancel()
        assert rest[-1].cancelled()
        with pytest.raises(CancelledError):
            rest[-1].result()
        assert not first.cancel()
        done = concurrent.futures.wait(rest, 30)
        assert not done.not_done
        assert [future.result() for future in rest[:-1]] == [1] * 19


@both
def test_shutdown_can_cancel_what_no_worker_was_free_for(pool_class: Any) -> None:
    pool = pool_class(2)
    futures = [pool.submit(slow, 0.05) for _ in range(30)]
    pool.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    cancelled = [future.cancelled() for future in futures]
    assert cancelled[:2] == [False, False]
    assert sum(cancelled) >= 15
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(divide, 1, 1)
    pool.shutdown()


@both
def test_a_pool_that_is_forgotten_does_its_work_and_ends(pool_class: Any) -> None:
    pool = pool_class(1)
    futures = [pool.submit(divide, n, 1) for n in range(5)]
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    assert [future.result(30) for future in futures] == [0, 1, 2, 3, 4]


@both
def test_a_pool_that_was_never_used_starts_nothing(pool_class: Any) -> None:
    with pool_class():
        assert not driver._serving


@both
def test_arguments_live_no_longer_than_their_call(pool_class: Any) -> None:
    class Thing(list[int]):
        pass

    with pool_class(1) as pool:
        thing = Thing([1, 2])
        gone = weakref.ref(thing)
        assert pool.submit(partial(len, thing)).result(30) == 2
        del thing
        deadline = time.monotonic() + 20
        while gone() is not None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert gone() is None


@both
def test_a_failing_initializer_breaks_the_pool(pool_class: Any, caplog: pytest.LogCaptureFixture) -> None:
    in_threads = pool_class is ThreadPoolExecutor
    broken = BrokenThreadPool if in_threads else BrokenProcessPool
    # The pool breaks once all five are submitted: a call that comes later is refused by submit itself.
    submitted = threading.Event() if in_threads else multiprocessing.get_context("spawn").Event()
    with pool_class(1, initializer=explode, initargs=(submitted,)) as pool:
        futures = [pool.submit(divide, 1, 1) for _ in range(5)]
        submitted.set()
        for future in futures:
            with pytest.raises(broken, match="initializer failed"):
                future.result(30)
        with pytest.raises(BrokenExecutor, match="initializer failed"):
            pool.submit(divide, 1, 1)
    if in_threads:
        assert "no database" in caplog.text


@both
async def test_asyncio_can_use_it(pool_class: Any) -> None:
    with pool_class(1) as pool:
        assert await asyncio.get_running_loop().run_in_executor(pool, divide, 3, 2) == 1.5


@both
def test_a_future_that_its_user_has_set_harms_nobody(pool_class: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pool_class(1) as pool:
        first = pool.submit(slow, 0.1)
        odd = pool.submit(divide, 1, 1)
        odd.set_result("mine")
        assert pool.submit(divide, 4, 2).result(30) == 2
        assert odd.result() == "mine"
        assert first.result(30)
    assert not caplog.records


@both
def test_a_callback_that_exits_harms_nobody(pool_class: Any) -> None:
    with pool_class(1) as pool:
        pool.submit(slow, 0.05).add_done_callback(lambda _: sys.exit(3))
        assert pool.submit(divide, 4, 2).result(30) == 2


# ── threads ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_threads_have_the_prefix_and_one_initializer_each() -> None:
    names: list[str] = []

    def settle() -> None:
        names.append(threading.current_thread().name)

    together = threading.Barrier(3)

    def meet() -> str:
        together.wait(30)
        return threading.current_thread().name

    with ThreadPoolExecutor(3, "reader", settle) as pool:
        for _ in range(2):
            calls = [pool.submit(meet) for _ in range(3)]
            assert {call.result(30) for call in calls} == {"reader_0", "reader_1", "reader_2"}
    assert sorted(names) == ["reader_0", "reader_1", "reader_2"]


def test_callbacks_run_in_the_worker_thread_and_may_wait_for_other_calls() -> None:
    seen: list[tuple[str, int]] = []
    with ThreadPoolExecutor(2, "w") as pool:
        ended = threading.Event()

        def follow(future: Future[int]) -> None:
            seen.append((threading.current_thread().name[:2], pool.submit(lambda: future.result() + 1).result(30)))
            ended.set()

        gate = threading.Event()
        future = pool.submit(lambda: 1 if gate.wait(30) else 0)
        future.add_done_callback(follow)
        gate.set()
        assert ended.wait(30)
    assert seen == [("w_", 2)]


def test_a_call_that_waits_for_its_own_pool_is_refused() -> None:
    pool = ThreadPoolExecutor(1)
    with pytest.raises(RuntimeError, match="cannot join current thread"):
        pool.submit(pool.shutdown).result(30)
    pool.shutdown()


def test_without_a_thread_to_be_had_the_pools_own_thread_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("flowlane-thread"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert list(pool.map(divide, [1, 2, 3], [1, 1, 1], timeout=30)) == [1, 2, 3]


def test_a_coroutine_function_gives_its_coroutine_as_in_any_thread() -> None:
    async def three() -> int:
        return 3

    with ThreadPoolExecutor(1) as pool:
        assert asyncio.run(pool.submit(three).result(30)) == 3


# ── processes: what travels ───────────────────────────────────────────────────────────────────────────────────────


def test_what_has_no_address_travels_as_it_is_at_the_time() -> None:
    numbers = [1, 2]
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(lambda: sum(numbers)).result(30) == 3
        numbers.append(4)
        assert pool.submit(lambda: sum(numbers)).result(30) == 7
        assert pool.submit("{} {}".format, 1, 2).result(30) == "1 2"
        assert pool.submit(partial(divide, right=4), 2).result(30) == 0.5
        assert pool.submit(int, "7").result(30) == 7


def test_an_exception_brings_the_workers_traceback() -> None:
    with ProcessPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError) as caught:
        pool.submit(divide, 1, 0).result(30)
    assert "return left / right" in str(caught.value.__cause__)


def test_an_argument_that_cannot_be_pickled_raises_what_pickle_raises_and_says_where() -> None:
    with ProcessPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="tick") as caught:
            pool.submit(divide, [1, {"x": Bomb()}], 2).result(30)
        assert any("divide(left)" in note and "['x']" in note for note in caught.value.__notes__)
        with pytest.raises(TypeError, match="pickle"):
            pool.submit(divide, threading.Lock(), 2).result(30)
        assert pool.submit(divide, 4, 2).result(30) == 2


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (partial(divide, BombOnArrival(), 2), "not a number"),
        (make_bomb, "the result of make_bomb.*tick"),
        (raise_two_arguments, "TwoArguments: 1 and 2"),
    ],
)
def test_what_does_not_survive_the_trip_fails_its_own_future_only(call: Any, says: str) -> None:
    with ProcessPoolExecutor(1) as pool:
        lost, other = pool.submit(call), pool.submit(divide, 4, 2)
        with pytest.raises(NotDelivered, match=says) as caught:
            lost.result(30)
        assert other.result(30) == 2
        assert pool.submit(divide, 6, 2).result(30) == 3
    for expected in (TransportError, BrokenProcessPool, pickle.PicklingError):  # whichever one's code catches
        assert isinstance(caught.value, expected)


def test_the_errors_can_be_pickled() -> None:
    for error in (WorkerDied("it died", hint="why"), NotDelivered("lost", where="x.py:3")):
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back)) == (type(error), str(error))


def test_what_a_call_prints_is_printed_here(capsys: pytest.CaptureFixture[str]) -> None:
    with ProcessPoolExecutor(1) as pool:
        pool.submit(print, "hello from a worker").result(30)
    assert capsys.readouterr().out == "hello from a worker\n"


# ── processes: their life ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_that_dies_fails_one_future_and_the_pool_goes_on() -> None:
    with ProcessPoolExecutor(2) as pool:
        innocents = [pool.submit(slow, 0.01) for _ in range(10)]
        guilty = pool.submit(kill_this_process)
        innocents += [pool.submit(slow, 0.01) for _ in range(10)]
        with pytest.raises(WorkerCrashed, match="SIGKILL") as caught:
            guilty.result(30)
        assert isinstance(caught.value, BrokenProcessPool)
        assert all(future.result(30) for future in innocents)
        assert pool.submit(divide, 4, 2).result(30) == 2


@pytest.mark.parametrize("context", [None, "spawn", "forkserver", "fork", multiprocessing.get_context("spawn")])
def test_every_start_method_has_workers_of_its_own(context: Any) -> None:
    with ProcessPoolExecutor(1, context) as pool:
        assert pool.submit(os.getpid).result(30) != os.getpid()


def test_an_unknown_start_method_is_refused() -> None:
    with pytest.raises(ValueError, match="'thread'"):
        ProcessPoolExecutor(1, "thread")


def test_workers_are_replaced_after_so_many_calls() -> None:
    with ProcessPoolExecutor(1, max_tasks_per_child=2) as pool:
        workers = [pool.submit(os.getpid).result(30) for _ in range(4)]
    assert workers[0] == workers[1] != workers[2] == workers[3]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": 1.5}, TypeError),
        ({"max_tasks_per_child": 1, "mp_context": multiprocessing.get_context("fork")}, ValueError),
    ],
)
def test_numbers_of_calls_that_make_no_sense_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as expected:
        concurrent.futures.ProcessPoolExecutor(1, **arguments)
    with pytest.raises(error) as got:
        ProcessPoolExecutor(1, **arguments)
    assert str(got.value) == str(expected.value)


def test_a_chunksize_below_one_is_refused() -> None:
    with ProcessPoolExecutor(1) as pool, pytest.raises(ValueError, match="chunksize"):
        pool.map(divide, [1], [1], chunksize=0)


# ── processes: initializers ───────────────────────────────────────────────────────────────────────────────────────


def test_an_initializer_runs_once_in_each_worker_and_its_context_variables_stay() -> None:
    with ProcessPoolExecutor(1, initializer=prepare, initargs=(1, 2, 3), max_tasks_per_child=2) as pool:
        seen = [pool.submit(look).result(30) for _ in range(4)]
    assert [(count, language) for _, count, language in seen] == [(3, "en")] * 4
    assert len({worker for worker, _, _ in seen}) == 2


def test_an_initializer_may_bring_much_and_need_not_have_an_address() -> None:
    data = os.urandom(300_000)
    with ProcessPoolExecutor(2, initializer=lambda what: prepare(what, 0), initargs=(data,)) as pool:
        assert list(pool.map(lambda _: prepared_with(), range(8), timeout=30)) == [300_000] * 8


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are lent through /proc")
def test_an_initializer_may_bring_locks_and_shared_values_of_multiprocessing() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, initializer=prepare, initargs=(context.Lock(), context.Value("i", 7))) as pool:
        assert list(pool.map(use_lock, [0.0] * 6, timeout=30)) == [True] * 6


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are lent through /proc")
def test_an_initializer_that_cannot_travel_breaks_the_pool_and_says_why() -> None:
    with (
        ProcessPoolExecutor(1, initializer=prepare, initargs=(threading.Lock(),)) as pool,
        pytest.raises(BrokenProcessPool, match=r"cannot pickle '_thread\.lock'"),
    ):
        pool.submit(look).result(30)


def test_proxies_of_a_manager_work() -> None:
    with multiprocessing.get_context("spawn").Manager() as manager, ProcessPoolExecutor(1) as pool:
        queue: Any = manager.Queue()
        pool.submit(queue.put, 5).result(30)
        assert queue.get(timeout=30) == 5


def test_packing_leaves_multiprocessing_as_it_was() -> None:
    packed, file = remote.pack("x", prepare, (1,))
    assert file is None
    assert pickle.loads(pickle.dumps(packed)).unpack() == (prepare, (1,))
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(multiprocessing.get_context("spawn").Lock())


# ── whole programs ────────────────────────────────────────────────────────────────────────────────────────────────


def script(text: str, *, status: int = 0) -> str:
    """What a script prints. It must write nothing to stderr."""
    import flowlane

    paths = [str(Path(str(package.__file__)).parents[1]) for package in (flowlane, flowlane_plugins)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (status, "")
    return done.stdout


@both
def test_the_end_of_a_program_waits_for_what_was_submitted(pool_class: Any) -> None:
    name = pool_class.__name__
    text = f"import time\nfrom flowlane.futures import {name}\npool = {name}(1)\n"
    text += "def say(what):\n    time.sleep(0.1)\n    print(what, flush=True)\n"
    text += "pool.submit(say, 'a')\npool.submit(say, 'b')\n"
    assert script(text) == "a\nb\n"
    assert script(text + "pool.shutdown(wait=False)\n") == "a\nb\n"


@both
def test_nothing_is_taken_once_the_interpreter_ends(pool_class: Any) -> None:
    name = pool_class.__name__
    text = f"""
import atexit
from flowlane.futures import {name}
@atexit.register
def late():
    try:
        pool.submit(int)
    except RuntimeError as error:
        print(error)
pool = {name}(1)
pool.submit(int).result()
"""
    assert script(text) == "cannot schedule new futures after interpreter shutdown\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_pool_refuses_in_a_forked_process_and_does_not_hang_it() -> None:
    text = """
import os, warnings
warnings.simplefilter("ignore")
from flowlane.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(1)
pool.submit(int).result()
child = os.fork()
if not child:
    try:
        pool.submit(int)
    except RuntimeError as error:
        print("refused:", str(error)[:28], flush=True)
    pool.shutdown()
else:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), pool.submit(int, 5).result())
"""
    assert script(text) == "refused: this pool belongs to process\n0 5\n"


def test_threads_do_not_load_multiprocessing_and_the_package_loads_nothing() -> None:
    text = """
import sys
import flowlane.futures
print(sorted({"asyncio", "concurrent.futures", "multiprocessing", "cloudpickle"} & set(sys.modules)))
from flowlane.futures import ThreadPoolExecutor
with ThreadPoolExecutor(1) as pool:
    pool.submit(int).result()
print(sorted({"multiprocessing", "cloudpickle"} & set(sys.modules)))
"""
    assert script(text) == "[]\n[]\n"


def test_only_what_is_public_is_offered() -> None:
    import flowlane.futures

    assert set(flowlane.futures.__all__) <= set(dir(flowlane.futures))
    with pytest.raises(AttributeError, match="ThreadPool"):
        flowlane.futures.ThreadPool  # type: ignore[attr-defined]
