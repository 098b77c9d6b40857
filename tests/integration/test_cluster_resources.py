"""What a task says it needs reaches the cluster: its cores, its memory, and limits that stand for something of a worker's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Engine, Limit, RunFailed, SettingsError, task, workflow

if TYPE_CHECKING:
    from collections.abc import Iterator


@task.cpu(limits={"gpu": 1})
def on_gpu(n: int) -> int:
    return os.getpid()


@task.cpu
def anywhere(n: int) -> int:
    return os.getpid()


@task.cpu(cores=2)
def wide(n: int, folder: Path) -> int:
    """How many run at this moment, on the only worker that has room for two cores at a time."""
    mine = folder / str(n)
    mine.touch()
    time.sleep(0.1)
    there = len(list(folder.iterdir()))
    mine.unlink()
    return there


@workflow
def using() -> list[int]:
    return on_gpu.map(range(6))


@workflow
def spreading(folder: Path) -> list[int]:
    return wide.map(range(4), folder=folder)


@workflow
def asking_too_much() -> int:
    return on_gpu.options(limits={"gpu": 5})(1)


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real scheduler and two real workers: one has a GPU and three cores, one has nothing."""
    pytest.importorskip("distributed", reason="distributed is not installed: flowlane[dask]")
    place = tmp_path_factory.mktemp("dask") / "scheduler.json"
    command = [sys.executable, "-m", "dask"]
    where = ["--scheduler-file", str(place)]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])  # so that workers find flowlane, and this module
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    quiet["env"] = {**os.environ, "PYTHONPATH": path}
    processes = [subprocess.Popen([*command, "scheduler", *where, "--no-dashboard", "--port", "0"], **quiet)]
    worker = [*command, "worker", *where, "--no-dashboard", "--no-nanny"]
    processes.append(subprocess.Popen([*worker, "--nthreads", "4", "--resources", "GPU=1 CPU=3"], **quiet))
    processes.append(subprocess.Popen([*worker, "--nthreads", "1"], **quiet))
    try:
        import distributed

        deadline = time.monotonic() + 30
        while not place.exists():
            assert time.monotonic() < deadline, "the scheduler has not started"
            time.sleep(0.05)
        with distributed.Client(scheduler_file=str(place), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=30)
        yield str(place)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def on_dask(place: str, resources: dict[str, str], **more: Any) -> Engine:
    return Engine(
        routes={"cpu": "dask"},
        limits=[Limit("gpu", 8)],
        options={"dask": {"scheduler_file": place, "resources": resources, **more}},
    )


def test_a_limit_that_stands_for_a_workers_resource_chooses_the_worker(dask: str) -> None:
    with on_dask(dask, {"gpu": "GPU"}) as engine:
        assert len(set(engine.start(using).result(50).value)) == 1


def test_no_more_cores_are_in_use_than_the_worker_says_it_has(dask: str, tmp_path: Path) -> None:
    with on_dask(dask, {"cores": "CPU"}, slots=8) as engine:
        assert engine.start(spreading.bind(tmp_path)).result(50).value == [1, 1, 1, 1]


def test_what_no_worker_has_is_told_and_not_waited_for_without_end(dask: str) -> None:
    said = r"no worker of the Dask cluster at .* has GPU=5"
    with on_dask(dask, {"gpu": "GPU"}, no_workers_timeout=1.0) as engine, pytest.raises(RunFailed, match=said):
        engine.start(asking_too_much).result(50)


@pytest.mark.parametrize("resources", [{"gpu": 1}, ["gpu"], {"": "GPU"}, "gpu"])
def test_resources_that_do_not_fit_are_refused(resources: Any) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed: flowlane[dask]")
    from flowlane_plugins.executors.dask import DaskExecutor

    with pytest.raises(SettingsError, match="resources of executor 'dask' must map"):
        DaskExecutor(resources=resources)


ON_RAY = """
import json, sys, time
from pathlib import Path
from flowlane import Engine, Limit, task, workflow


@task.cpu(cores=2, memory="300 MB", limits={"license": 1})
def wide(n: int, folder: Path) -> dict:
    import ray
    mine = folder / str(n)
    mine.touch()
    time.sleep(0.2)
    there = len(list(folder.iterdir()))
    mine.unlink()
    return {"there": there, "has": ray.get_runtime_context().get_assigned_resources()}


@workflow
def spreading(folder: Path) -> list[dict]:
    return wide.map(range(3), folder=folder)


if __name__ == "__main__":
    options = {"ray": {"resources": {"license": "license"}, "init": {"num_cpus": 3, "resources": {"license": 1}}}}
    limits = [Limit("license", 5), Limit("memory", 10_000)]
    with Engine(routes={"cpu": "ray"}, options=options, limits=limits, slots={"ray": 8}) as engine:
        print(json.dumps(engine.start(spreading.bind(Path(sys.argv[1]))).result(90).value))
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_ray_is_asked_for_cores_memory_and_resources_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: flowlane[ray]")
    import json

    (tmp_path / "marks").mkdir()
    (tmp_path / "on_ray.py").write_text(ON_RAY)
    done = subprocess.run(
        [sys.executable, "on_ray.py", str(tmp_path / "marks")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for each in json.loads(done.stdout.splitlines()[-1]):
        assert each["there"] == 1
        has = {name: amount for name, amount in each["has"].items() if "_group" not in name}
        assert has["CPU"] == 2.0
        assert has["license"] == 1.0
        assert has["memory"] == 300_000_000
