"""Workers and schedulers of clusters that die in mid-run: the run ends right, or with a clear message.

Attempts are those of the retry policy, and no others.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Engine, RunState, Workflow, task, workflow

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def dask_cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed: flowlane[dask]")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster


@pytest.fixture
def on_dask(dask_cluster: Any) -> Iterator[Engine]:
    import distributed

    with distributed.Client(dask_cluster, set_as_default=False) as client:
        deadline = time.monotonic() + 40
        patience = time.monotonic() + 15
        while len(alive(client)) < 2:  # the test before may have killed some, and the scheduler not have noticed
            assert time.monotonic() < deadline, "the workers have not come back"
            if time.monotonic() > patience:  # whoever starts one again gives up when it dies while it starts
                dask_cluster.scale(len(dask_cluster.worker_spec) + 1)
                patience = deadline
            time.sleep(0.1)
    with Engine(routes={"cpu": "dask"}, options={"dask": {"address": dask_cluster.scheduler_address}}) as engine:
        yield engine


def alive(client: Any) -> list[int]:
    """The workers that answer."""
    answers = client.run(os.getpid, on_error="return")
    return [pid for pid in answers.values() if isinstance(pid, int)]


def mark(path: Path) -> int:
    """Leave a mark; how many there are."""
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(path.read_text().split())


@task.cpu(retries=3)
def die_twice(path: Path) -> int:
    if mark(path) < 3:
        os._exit(3)
    return 7


@task.cpu
def die(path: Path) -> int:
    mark(path)
    os._exit(3)


@task.cpu
def hang(path: Path) -> None:
    mark(path)
    time.sleep(30)


@task.cpu
def make(path: Path, size: int) -> bytes:
    mark(path)
    return bytes(size)


@task.io(executor="threads")
def kill_the_maker(path: Path, made: None) -> bool:
    pid = int(path.read_text())
    os.kill(pid, signal.SIGKILL)
    return True


@task.cpu(retries=2)  # it may be sent to the dead worker before the scheduler has noticed
def read(value: bytes, killed: bool) -> int:
    return len(value)


@task.io(executor="threads")
def read_here(value: bytes, killed: bool) -> int:
    return len(value)


@task.cpu
def double(path: Path, value: bytes) -> bytes:
    mark(path)
    return value * 2


@task.cpu
def part(number: int, folder: Path) -> bytes:
    mark(folder / str(number))
    return bytes(100_000 + number)


@task.cpu(retries=3)
def after(value: bytes, folder: Path) -> int:
    if len(value) == 100_000 and not (folder / "killed").exists():
        (folder / "killed").touch()
        for pid in (folder / "0").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        time.sleep(1)
    return len(value)


@workflow
def mapping(folder: Path) -> list[int]:
    parts = part.map([0, 1], folder=folder)
    return after.map(parts, folder=folder)


def test_nothing_of_a_run_stays_on_the_scheduler(on_dask: Engine, dask_cluster: Any, tmp_path: Path) -> None:
    flow = Workflow("tidy")
    made = flow.add(make.bind(tmp_path / "marks", 100_000))
    assert on_dask.start(flow.returns(flow.add(read.bind(made, True)))).result(50).value == 100_000
    scheduler = dask_cluster.scheduler
    deadline = time.monotonic() + 20
    while scheduler.tasks:
        assert time.monotonic() < deadline, "the scheduler keeps results that nobody reads"
        time.sleep(0.05)
    assert [topic for topic in scheduler.get_events() if topic.startswith("flowlane")] == []


@pytest.mark.slow  # Dask takes seconds to put another worker in the place of each
def test_a_worker_that_dies_is_tried_again_as_often_as_the_policy_says(on_dask: Engine, tmp_path: Path) -> None:
    flow = Workflow("dying")
    result = on_dask.start(flow.returns(flow.add(die_twice.bind(tmp_path / "marks")))).result(50)
    assert result.value == 7
    assert result.tasks["die_twice"].attempts == 3
    assert len((tmp_path / "marks").read_text().split()) == 3


def test_without_retries_it_is_not_tried_again_by_anybody(on_dask: Engine, tmp_path: Path) -> None:
    flow = Workflow("dying")
    flow.add(die.bind(tmp_path / "marks"))
    handle = on_dask.start(flow)
    with pytest.raises(Exception, match=r"die crashed: WorkerCrashed|task 'die' crashed"):
        handle.result(50)
    time.sleep(0.5)  # long enough for Dask to begin it anew, if it did
    assert len((tmp_path / "marks").read_text().split()) == 1


@pytest.mark.parametrize("size", [pytest.param(100, marks=pytest.mark.slow), 1_000_000])
def test_a_result_that_died_with_its_worker_is_made_again_and_a_small_one_does_not_die(
    on_dask: Engine, tmp_path: Path, size: int
) -> None:
    #   make ──▶ read
    #     ╌╌▶ kill_the_maker ──▶ read
    path = tmp_path / "marks"
    flow = Workflow("losing")
    made = flow.add(make.bind(path, size))
    killed = flow.add(kill_the_maker.bind(path, None), after=[made])
    flow.add(read.bind(made, killed))
    handle = on_dask.start(flow)
    result = handle.result(50)
    assert result.value == {"read": size}
    assert len(path.read_text().split()) == result.tasks["make"].attempts == (1 if size < 4096 else 2)


def test_what_a_lost_result_was_made_of_is_made_again_first(on_dask: Engine, tmp_path: Path) -> None:
    #   make ──▶ double ──▶ read        make's result was released when double had ended
    #              ╌╌▶ kill_the_maker ──▶ read
    path = tmp_path / "marks"
    flow = Workflow("losing")
    made = flow.add(make.bind(tmp_path / "first", 500_000))
    doubled = flow.add(double.bind(path, made))
    killed = flow.add(kill_the_maker.bind(path, None), after=[doubled])
    flow.add(read.bind(doubled, killed))
    result = on_dask.start(flow).result(50)
    assert result.value == {"read": 1_000_000}
    assert [result.tasks[name].attempts for name in ("make", "double")] == [2, 2]


def test_an_element_of_a_map_whose_result_is_lost_is_made_again(on_dask: Engine, tmp_path: Path) -> None:
    #   [0, 1] ──▶ part[i] ──▶ after[i]      after[0] kills the worker that made part[0], and itself with it
    (tmp_path / "parts").mkdir()
    result = on_dask.start(mapping.bind(tmp_path / "parts")).result(50)
    assert result.value == [100_000, 100_001]
    assert len((tmp_path / "parts" / "0").read_text().split()) >= 2


def test_what_must_not_run_twice_does_not_and_the_message_says_so(on_dask: Engine, tmp_path: Path) -> None:
    path = tmp_path / "marks"
    flow = Workflow("losing")
    made = flow.add(make.options(at_most_once=True).bind(path, 1_000_000))
    killed = flow.add(kill_the_maker.bind(path, None), after=[made])
    flow.add(read.bind(made, killed))
    handle = on_dask.start(flow)
    with pytest.raises(Exception, match=r"the result of make .* is no longer on the dask cluster") as raised:
        handle.result(50)
    assert handle.state is RunState.FAILED
    failure = raised.value.failures["read"]  # type: ignore[attr-defined]
    assert failure.notes[0] == "it is not made again: make is at_most_once, so it does not run again"
    assert len(path.read_text().split()) == 1


def test_a_value_that_another_executor_reads_is_made_again_too(on_dask: Engine, tmp_path: Path) -> None:
    #   make ──▶ read_here (threads)
    path = tmp_path / "marks"
    flow = Workflow("losing")
    made = flow.add(make.bind(path, 1_000_000))
    killed = flow.add(kill_the_maker.bind(path, None), after=[made])
    flow.add(read_here.bind(made, killed))
    result = on_dask.start(flow).result(50)
    assert result.value == {"read_here": 1_000_000}
    assert len(path.read_text().split()) == 2


@task.io
async def kill_when(committed: Path, marks: Path) -> bool:
    while not committed.exists():
        await asyncio.sleep(0.02)
    os.kill(int(marks.read_text()), signal.SIGKILL)
    return True


@pytest.mark.usefixtures("on_dask")
async def test_what_a_store_has_is_not_made_again(dask_cluster: Any, tmp_path: Path) -> None:
    #   make ──▶ read      its worker dies when the store has what it made, and it must not run twice
    path, committed = tmp_path / "marks", tmp_path / "committed"
    flow = Workflow("losing")
    made = flow.add(make.options(at_most_once=True).bind(path, 1_000_000))
    killed = flow.add(kill_when.bind(committed, path))
    flow.add(read.bind(made, killed))
    options = {"dask": {"address": dask_cluster.scheduler_address}}
    async with Engine(routes={"cpu": "dask"}, options=options, store=tmp_path / "flow.db") as engine:
        handle = engine.start(flow)
        async for event in handle.events():
            if (event.get("task"), event.get("to")) == ("make", "succeeded"):
                committed.touch()
        result = await handle
    assert result.value == {"read": 1_000_000}
    assert result.tasks["make"].attempts == len(path.read_text().split()) == 1


@pytest.mark.slow
def test_a_scheduler_that_dies_ends_the_run_with_a_clear_message(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed: flowlane[dask]")
    address = tmp_path / "scheduler.json"
    place = ["--scheduler-file", str(address), "--no-dashboard"]
    dask = [sys.executable, "-m", "dask"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen([*dask, "scheduler", *place, "--port", "0"], **quiet)
    worker = subprocess.Popen([*dask, "worker", *place, "--nthreads", "1", "--no-nanny"], **quiet)
    try:
        deadline = time.monotonic() + 50
        while not address.exists():
            assert time.monotonic() < deadline, "the scheduler has not started"
            time.sleep(0.05)
        options = {"dask": {"scheduler_file": str(address)}}
        with Engine(routes={"cpu": "dask"}, options=options) as engine:
            flow = Workflow("waiting")
            flow.add(hang.bind(tmp_path / "marks"))
            handle = engine.start(flow)
            while not (tmp_path / "marks").exists():
                assert time.monotonic() < deadline, "the task has not begun"
                time.sleep(0.05)
            scheduler.kill()
            with pytest.raises(Exception, match=r"the connection to the Dask scheduler at .* is lost"):
                handle.result(50)
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()


ON_RAY = """
import json, os, signal, sys, time
from pathlib import Path
from flowlane import run, task, workflow


@task.cpu(retries=2)
def work(n: int, folder: Path) -> int:
    with (folder / str(n)).open("a") as file:
        file.write(f"{os.getpid()} ")
    time.sleep(0.3)
    return n


@task.io(executor="threads")
def kill_a_worker(folder: Path) -> None:
    while not (folder / "3").exists():
        time.sleep(0.02)
    os.kill(int((folder / "3").read_text().split()[0]), signal.SIGKILL)


@task.cpu
def die(folder: Path) -> None:
    with (folder / "die").open("a") as file:
        file.write(f"{os.getpid()} ")
    os._exit(3)


@workflow
def working(folder: Path) -> list[int]:
    kill_a_worker(folder)
    return [work(n, folder) for n in range(6)]


@workflow
def dying(folder: Path) -> None:
    return die(folder)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    handler = lambda *_: None
    signal.signal(signal.SIGTERM, handler)
    first = run(working.bind(folder), routes={"cpu": "ray"})
    second = run(dying.bind(folder), routes={"cpu": "ray"}, check=False)
    print(json.dumps({
        "value": first.value,
        "attempts": {name: one.attempts for name, one in first.tasks.items() if one.attempts > 1},
        "begun": {path.name: len(path.read_text().split()) for path in folder.iterdir()},
        "failure": second.failures["die"].type,
        "handler": signal.getsignal(signal.SIGTERM) is handler,
    }))
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_on_ray_attempts_are_those_of_the_policy_and_the_hosts_signals_stay(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: flowlane[ray]")
    marks = tmp_path / "marks"
    marks.mkdir()
    (tmp_path / "on_ray.py").write_text(ON_RAY)
    done = subprocess.run([sys.executable, "on_ray.py", str(marks)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {
        "value": [0, 1, 2, 3, 4, 5],
        "attempts": {"work#4": 2},
        "begun": {"0": 1, "1": 1, "2": 1, "3": 2, "4": 1, "5": 1, "die": 1},
        "failure": "WorkerCrashed",
        "handler": True,
    }


A_NODE_DIES = """
import json, time
from pathlib import Path
from flowlane import Engine, Limit, Workflow, task
from ray.cluster_utils import Cluster


@task.cpu(limits={"far": 1})
def make(folder: Path) -> bytes:
    return bytes(1_000_000)


@task.io(executor="threads")
def drop(folder: Path) -> bool:
    (folder / "made").touch()
    while not (folder / "dropped").exists():
        time.sleep(0.05)
    return True


@task.cpu(retries=2)
def read(value: bytes, dropped: bool) -> int:
    return len(value)


if __name__ == "__main__":
    folder = Path.cwd()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1, resources={"far": 1})
    flow = Workflow("losing")
    made = flow.add(make.bind(folder))
    flow.returns(flow.add(read.bind(made, flow.add(drop.bind(folder), after=[made]))))
    options = {"ray": {"address": cluster.address, "resources": {"far": "far"}}}
    with Engine(routes={"cpu": "ray"}, options=options, limits=[Limit("far", 1)]) as engine:
        handle = engine.start(flow)
        while not (folder / "made").exists():
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1, resources={"far": 1})
        (folder / "dropped").touch()
        result = handle.result(120)
    print(json.dumps([result.value, result.tasks["make"].attempts]))
    cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_on_ray_a_result_that_died_with_its_node_is_made_again(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: flowlane[ray]")
    (tmp_path / "a_node_dies.py").write_text(A_NODE_DIES)
    done = subprocess.run(
        [sys.executable, "a_node_dies.py"],
        cwd=tmp_path,
        env={**os.environ, "RAY_AUTH_TOKEN": secrets.token_hex(32)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [{"read": 1_000_000}, 2]
