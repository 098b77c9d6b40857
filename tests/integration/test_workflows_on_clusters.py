"""The example workflows on real clusters, a scheduler and two workers or a head node, give what they give on worker processes."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKFLOWS = Path(__file__).parents[2] / "workflows"
SMALL = {
    "mirror_crawl": ["-p", "pages=40", "-p", "stalls=0"],
    "source_audit": ["-p", "limit=60", "-p", "probes=[]"],
    "airports": ["-p", 'countries=["CH", "AT", "DE"]', "-p", "chunk=100"],
    "man_index": ["-p", "limit=60", "-p", "queries=5"],
}
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.name != "posix", reason="process groups"),
]


@contextmanager
def running(*commands: list[str]) -> Iterator[None]:
    """These commands, each with all that it starts, for as long as the block lasts."""
    processes = [subprocess.Popen(command, **QUIET) for command in commands]
    try:
        yield
    finally:
        for process in reversed(processes):
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    pytest.importorskip("distributed", reason="distributed is not installed: flowlane[dask]")
    place = tmp_path_factory.mktemp("dask") / "scheduler.json"
    base, where = [sys.executable, "-m", "dask"], ["--scheduler-file", str(place), "--no-dashboard"]
    scheduler = [*base, "scheduler", *where, "--port", "0"]
    worker = [*base, "worker", *where, "--nthreads", "1"]
    with running(scheduler, worker, worker):
        wait_for(place.exists)
        yield {"dask": {"scheduler_file": str(place)}}


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    pytest.importorskip("ray", reason="ray is not installed: flowlane[ray]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    head += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats"]
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }  # else Ray takes one of this user's, if any
    with pytest.MonkeyPatch.context() as environ:
        for name, value in own.items():
            environ.setenv(name, value)
        with running(head):
            wait_for(lambda: answers(port))
            time.sleep(3)  # the node registers itself after its port is open
            yield {"ray": {"address": f"127.0.0.1:{port}"}}


def answers(port: int) -> bool:
    with socket.socket() as there:
        return there.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the cluster has not started"
        time.sleep(0.05)


def report(folder: Path, name: str, executor: str, options: dict[str, Any]) -> str:
    folder.mkdir()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FLOW_")}
    command = [sys.executable, "-m", "flowlane", "run", str(WORKFLOWS / f"{name}.py"), *SMALL[name], "--quiet"]
    done = subprocess.run(
        [*command, "--route", f"cpu={executor}"],
        cwd=folder,
        env={**clean, "XDG_STATE_HOME": str(folder / "state"), "FLOW_EXECUTORS": json.dumps(options)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("cluster", ["dask", "ray"])
@pytest.mark.parametrize("name", SMALL)
def test_a_workflow_gives_the_same_on_a_cluster(
    name: str, cluster: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "airports":
        pytest.importorskip("airportsdata")
    options = request.getfixturevalue(cluster)
    here = report(tmp_path / "here", name, "processes", {})
    assert report(tmp_path / "there", name, cluster, options) == here
