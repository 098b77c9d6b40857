"""docs/embedding.md: its service in a real server that is stopped and killed, and its notebook in a real kernel.

The texts are the page's own. The scripts of the page are run with those of all pages, by ``test_pages.py``.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import httpx
import nbformat
import psutil
import pytest
from nbclient import NotebookClient

from ..leftovers import nothing_left
from .pages import blocks, plain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from .pages import Block

PAGE = "docs/embedding.md"
KEY = {"Idempotency-Key": "order 1"}

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"), pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


def marked(mark: str) -> list[Block]:
    return [block for block in blocks(PAGE) if block.mark == mark]


# ── the service ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the page's files in it, and the key of its stores."""
    for name in ("reports.py", "service.py"):
        (block,) = marked(f"file: {name}")
        (tmp_path / name).write_text(block.text, encoding="utf-8")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


class Server:
    """``uvicorn`` with the page's options, but less patience, on a port that was free; `http` talks to it."""

    def __init__(self, folder: Path) -> None:
        (start,) = marked("tested: start")
        program, *options, patience = start.text.split()
        assert (program, options[-1], int(patience)) == ("uvicorn", "--timeout-graceful-shutdown", 5)
        options.append("1")
        self.log: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", program, *options, "--port", "0"],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                break
        else:
            raise AssertionError("".join(self.log))
        self.url = found[1]
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr or ()))
        self._reader.start()

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def begin(self, texts: list[str], *, delay: float = 0.0, headers: dict[str, str] | None = None) -> str:
        answer = self.http.post("/runs", json={"texts": texts, "delay": delay}, headers=headers)
        assert answer.status_code == 202
        run: str = answer.json()["id"]
        return run

    def events(self, run: str) -> Iterator[dict[str, Any]]:
        with self.http.stream("GET", f"/runs/{run}/events") as lines:
            assert lines.status_code == 200, self.log
            for line in lines.iter_lines():
                if line:
                    yield json.loads(line.removeprefix("data: "))

    def look(self, run: str) -> Any:
        return self.http.get(f"/runs/{run}").json()

    def end(self, number: int) -> None:
        """Send a signal, and wait until the process, and all that it had started, is gone."""
        below = self.workers() if self.process.poll() is None else []
        self.process.send_signal(number)
        self.process.wait(30)
        self.http.close()
        self._reader.join(30)
        assert self.process.stderr is not None
        self.process.stderr.close()
        deadline = time.monotonic() + 20
        while left := [each for each in below if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


def test_the_client_sees_what_the_page_shows(folder: Path) -> None:
    (client,), shown = marked("tested: client"), marked("tested: shown")[0]
    with serving(folder) as server:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", client.text, server.url],
            cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (shown.text, "")
        server.end(signal.SIGTERM)
    assert not [line for line in server.log if "rror" in line or "Traceback" in line], server.log


def test_a_run_computes_in_workers_of_the_service_and_is_cancelled_by_delete(folder: Path) -> None:
    with serving(folder) as server:
        run = server.begin(["a b", "b"])
        events = list(server.events(run))
        assert (events[0]["event"], events[-1]["event"]) == ("run.started", "run.finished")
        pids = {
            event["worker"] for event in events if event.get("executor") == "processes" and event["to"] == "succeeded"
        }
        assert pids and pids <= {f"pid {worker.pid}" for worker in server.workers()}
        assert server.look(run) == {"id": run, "state": "succeeded", "value": {"a": 1, "b": 2}}
        assert list(server.events(run)) == events  # from the first, after the end

        slow = server.begin(["a"], delay=60.0)
        other = server.begin(["a"], delay=60.0)
        for event in server.events(slow):
            if event.get("to") == "running":
                assert server.look(slow) == {"id": slow, "state": "running"}
                assert server.http.delete(f"/runs/{slow}").json() == {"id": slow, "state": "cancelled"}
        assert event["event"] == "run.finished"
        assert server.look(other)["state"] == "running"

        for unknown in ("f" * 12, "last", slow[:6]):
            assert server.http.get(f"/runs/{unknown}").status_code == 404
            assert server.http.get(f"/runs/{unknown}/events").status_code == 404
            assert server.http.delete(f"/runs/{unknown}").status_code == 404
        assert server.http.post("/runs", json={"texts": 3}).status_code == 422
        assert server.http.delete(f"/runs/{other}").json()["state"] == "cancelled"
        server.end(signal.SIGTERM)


def test_a_stopped_service_drains_and_the_next_one_goes_on(folder: Path) -> None:
    with serving(folder) as server:
        done = server.begin(["a"], headers={"Idempotency-Key": "done"})
        assert [event["event"] for event in server.events(done)][-1] == "run.finished"
        run = server.begin(["a b"] * 400, delay=0.3, headers=KEY)  # more than there are slots
        assert server.begin(["a b"] * 400, headers=KEY) == run
        for event in server.events(run):
            if event.get("to") == "succeeded":
                break  # the client goes away, in the middle
        server.end(signal.SIGTERM)
    assert not [line for line in server.log if "Traceback" in line], server.log
    with serving(folder) as server:
        assert server.begin(["a b"] * 400, headers=KEY) == run  # a restart begins nothing twice
        assert server.begin(["a"], headers={"Idempotency-Key": "done"}) == done
        assert server.look(done) == {"id": done, "state": "succeeded", "error": None}
        *_, last = server.events(run)
        assert (last["event"], last["state"]) == ("run.finished", "succeeded")
        assert server.look(run) == {"id": run, "state": "succeeded", "value": {"a": 400, "b": 400}}
        server.end(signal.SIGINT)


def test_a_killed_service_leaves_no_worker_and_the_next_one_goes_on(folder: Path) -> None:
    with serving(folder) as server:
        run = server.begin(["a"] * 400, delay=0.3, headers=KEY)
        for event in server.events(run):
            if event.get("executor") == "processes" and event.get("to") == "running":
                break
        assert server.workers()
        server.end(signal.SIGKILL)
    with serving(folder) as server:
        assert server.begin(["a"] * 400, headers=KEY) == run
        assert list(server.events(run))[-1]["state"] == "succeeded"
        assert server.look(run)["value"] == {"a": 400}
        server.end(signal.SIGTERM)


def test_an_open_stream_holds_up_a_shutdown_no_longer_than_uvicorn_is_told(folder: Path) -> None:
    """The reader is cut off, the run is drained, and goes on in the next service."""
    with serving(folder) as server:
        run = server.begin(["a"] * 2_000, delay=0.5, headers=KEY)
        events = server.events(run)
        assert next(events)["event"] == "run.started"
        server.end(signal.SIGTERM)
        with pytest.raises(httpx.HTTPError):
            list(events)
    with serving(folder) as server:
        assert server.look(run)["state"] == "running"
        assert server.http.delete(f"/runs/{run}").json()["state"] == "cancelled"
        server.end(signal.SIGTERM)


async def test_of_requests_at_once_with_one_key_one_begins_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: quicker than a server's, and as concurrent."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    service = import_module("service")
    try:
        transport = httpx.ASGITransport(app=service.app)
        async with (
            service.lifespan(service.app),
            httpx.AsyncClient(transport=transport, base_url="http://here") as http,
        ):
            posts = [http.post("/runs", json={"texts": ["a"]}, headers=KEY) for _ in range(8)]
            ids = {answer.json()["id"] for answer in await asyncio.gather(*posts)}
            assert len(ids) == 1 and len(service.handles) == 1
            none = {"Idempotency-Key": ""}
            free = await asyncio.gather(*[http.post("/runs", json={"texts": ["a"]}, headers=none) for _ in range(3)])
            assert len({answer.json()["id"] for answer in free} | ids) == 4
            assert len(service.engine.store.runs()) == 4
    finally:
        for name in ("service", "reports"):
            del sys.modules[name]
    await asyncio.sleep(0)


# ── the notebook ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Awaitable[list[Any]]]:
    """Runs cells in a kernel of their own, which reads no configuration and writes no history; the cells, with their outputs."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))

    async def run(*cells: str) -> list[Any]:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        client = NotebookClient(
            notebook, timeout=50, allow_errors=True, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        )
        await client.async_execute(cwd=str(tmp_path))  # on the test's loop: nbclient never closes one of its own
        found: list[Any] = notebook.cells
        return found

    return run


def shown(cell: Any) -> str:
    """What a cell shows: what it printed, its value, or its error without the lines that led there."""
    text = ""
    for output in cell.outputs:
        match output.output_type:
            case "stream":
                assert output.name == "stdout", output.text
                text += output.text
            case "error":
                text += f"{output.ename}: {output.evalue}\n"
            case _:
                text += output.data["text/plain"] + "\n"
    return text


async def test_the_notebook_shows_what_the_page_shows(run_cells: Callable[..., Awaitable[list[Any]]]) -> None:
    page = [block for block in blocks(PAGE) if block.mark in ("tested: cell", "tested: shown")]
    page = page[next(n for n, block in enumerate(page) if block.mark == "tested: cell") :]
    cells = [block.text for block in page if block.mark == "tested: cell"]
    for cell in cells:
        compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    seen = iter(await run_cells(*cells))
    for block in page:
        if block.mark == "tested: cell":
            cell = next(seen)
        else:
            real = [plain(line) for line in shown(cell).splitlines()]
            assert real == [plain(line) for line in block.text.splitlines()], f"{PAGE}:{block.line}"


async def test_a_cell_that_is_run_again_defines_its_tasks_anew(run_cells: Callable[..., Awaitable[list[Any]]]) -> None:
    """Also its classes: what comes back is of the class that the notebook has now."""
    define = """
from flowlane import Engine, RunFailed, arun, task, workflow

class Point:
    def __init__(self, x):
        self.x = x

@task.cpu
def moved(point, by):
    return Point(point.x + by)

@workflow
def walk(steps=2):
    point = Point(0)
    for _ in range(steps):
        point = moved(point, %d)
    return point
"""
    use = "point = (await arun(walk)).value\nprint(point.x, type(point) is Point)"
    left = "import psutil, threading\nprint(psutil.Process().children(recursive=True))"
    store = 'async with Engine(store="flow.db") as engine:\n    print((await engine.start(walk)).notes[0].partition(":")[0])'
    again = 'async with Engine(store="flow.db") as engine:\n    print((await engine.resume("last", walk)).value.x)'
    cells = await run_cells(define % 1, use, use, define % 5, use, left, store, again)
    assert [shown(cell) for cell in cells] == [
        "", "2 True\n", "2 True\n", "", "10 True\n", "[]\n",
        "moved returns what cannot be stored, so a resume would run it again\n", "10\n",
    ]  # fmt: skip


async def test_interrupting_the_kernel_cancels_the_run_and_ends_its_workers(
    run_cells: Callable[..., Awaitable[list[Any]]],
) -> None:
    """The kernel interrupts itself, as its menu would, once the task runs."""
    define = """
import os, signal, time
import psutil
from flowlane import Engine, arun, task, workflow

@task.cpu
def spin():
    while True:
        pass

@workflow
def spinning():
    return spin()
"""
    interrupt = """
async with Engine() as engine:
    handle = engine.start(spinning)
    async for event in handle.events():
        if event.get("to") == "running":
            os.kill(os.getpid(), signal.SIGINT)
"""
    after = "print(handle.state, psutil.Process().children(recursive=True))"
    cells = await run_cells(define, interrupt, after)
    assert shown(cells[1]).startswith(("CancelledError", "KeyboardInterrupt"))
    assert shown(cells[2]) == "cancelled []\n"
