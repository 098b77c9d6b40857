"""workflows/mirror_crawl.py: server, client and parser one by one, and whole runs held against its serial oracle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from tests.integration.log_reader import complaints, read

import flowlane
from flowlane import Limit
from flowlane.loader import load_file

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterable

FILE = Path(__file__).parents[2] / "workflows" / "mirror_crawl.py"
crawl: Any = load_file(FILE)

CALM = {"delay": 0.0, "faults": 0, "stalls": 0}
ROUGH = {"delay": 0.01, "faults": 2, "stalls": 1, "patience": 1.0}


@contextlib.contextmanager
def mirror(root: Path | None = None, pages: int = 20, seed: int = 7, **weather: Any) -> Generator[Any]:
    where = crawl.serve.fn(root, pages, crawl.Weather(seed, **{"delay": 0.0, "faults": 0, "stalls": 0, **weather}))
    try:
        yield where
    finally:
        with contextlib.suppress(KeyError):
            crawl.shutdown.fn(where)


@contextlib.asynccontextmanager
async def saying(answer: bytes) -> AsyncGenerator[Any]:
    """A server that says `answer` to everybody."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with server:
        yield crawl.Mirror(*server.sockets[0].getsockname())


# ── links and pages ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("page", "href", "goal"),
    [
        ("/a/b.html", "c.html", ("/a/c.html", "", None)),
        ("/a/b.html", "../c.html#x", ("/c.html", "x", None)),
        ("/a/b.html", "#x%20y", ("/a/b.html", "x y", None)),
        ("/a/b.html", "./", ("/a/index.html", "", None)),
        ("/a/b.html", "", ("/a/b.html", "", None)),
        ("/a/b.html", "/", ("/index.html", "", None)),
        ("/a/b.html", "../../../c.html", ("/c.html", "", None)),
        ("/a/b.html", "c.html?q=1#x", ("/a/c.html", "x", None)),
        ("/a/b.html", " caf\u00e9 menu.html ", ("/a/caf%C3%A9%20menu.html", "", None)),
        ("/a/b.html", "caf%C3%A9%20menu.html", ("/a/caf%C3%A9%20menu.html", "", None)),
        ("/a/b.html", "https://example.org/x", ("", "", None)),
        ("/a/b.html", "//example.org/x", ("", "", None)),
        ("/a/b.html", "mailto:a@example.org", ("", "", None)),
        ("/a/b.html", "javascript:void(0)", ("", "", None)),
        ("/a/b.html", "http://[x/", ("", "", "malformed")),
    ],
)
def test_resolve(page: str, href: str, goal: tuple[str, str, str | None]) -> None:
    assert crawl.resolve(page, href) == goal


def test_parse_finds_title_anchors_and_links() -> None:
    body = b"""<!doctype html><title>Caf\xc3\xa9 &amp;
        more</title><svg><title>no</title></svg>
        <h1 id=one>x</h1><a name="two" href="a.html?x=1&amp;y=2">a</a>
        <img src=i.png><script src="s.js"></script><link rel=x href=l.css><a>no href</a><area href="m.html"/>
        <a href="b.html"""
    page = crawl.parse.fn(crawl.Page("/p.html", "/p.html", 200, body))
    assert page.title == "Café & more"
    assert page.ids == {"one", "two"}
    assert page.leads == ("/a.html", "/m.html")
    assert page.links == (
        (3, "a.html?x=1&y=2"),
        (4, "i.png"),
        (4, "s.js"),
        (4, "l.css"),
        (4, "m.html"),
    )


@pytest.mark.parametrize("body", [b"", b"\xff\xfe\x00", b"<![foo", b"<!DOCTYPE [", b"<" * 1000, b"<a href=x><![CDATA["])
def test_parse_survives_what_is_no_html(body: bytes) -> None:
    crawl.parse.fn(crawl.Page("/p.html", "/p.html", 200, body))


# ── the client ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.0 200 OK\r\nContent-Le",
        b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\x00\r\n\r\n",
    ],
)
async def test_an_answer_that_is_not_whole_is_an_oserror(answer: bytes) -> None:
    async with saying(answer) as where:
        with pytest.raises(ConnectionResetError):
            await crawl.fetch.fn("/x.html", where)


async def test_503_is_raised_and_404_is_an_answer() -> None:
    async with saying(b"HTTP/1.0 503 later\r\n\r\n") as where:
        with pytest.raises(crawl.Unavailable, match=r"503 for /x\.html"):
            await crawl.fetch.fn("/x.html", where)
    async with saying(b"HTTP/1.0 404\r\n\r\nsorry") as where:
        assert await crawl.fetch.fn("/x.html", where) == ("/x.html", "/x.html", 404, b"")


@pytest.mark.parametrize("hops", [5, 1], ids=["check", "crawl"])
async def test_redirects_are_followed_but_not_for_ever_and_not_outside(hops: int) -> None:
    async with saying(b"HTTP/1.0 301 moved\r\nLocation: /x.html\r\n\r\n") as where:
        assert (await crawl.get(where, "/x.html", hops)).status == 301
    async with saying(b"HTTP/1.0 302 moved\r\nlocation: https://example.org/\r\n\r\n") as where:
        assert await crawl.get(where, "/x.html", hops) == ("/x.html", "https://example.org/", 200, b"")


async def test_a_redirect_is_a_page_that_leads_to_another_and_is_not_followed_by_the_crawl(tmp_path: Path) -> None:
    with mirror(folder(tmp_path)) as where:
        assert await crawl.get(where, "/sub") == ("/sub", "/sub/index.html", 200, (tmp_path / SUB).read_bytes())
        page = await crawl.fetch.fn("/sub", where)
    assert page == ("/sub", "/sub/index.html", 301, b"")
    assert crawl.parse.fn(page) == ("/sub", "", frozenset(), (), ("/sub/index.html",), "/sub/index.html")


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (("/x.html", "/x.html", 404, b""), "answered 404"),
        (("/x.html", "/x.html", 301, b""), "answered 301"),  # in a circle
        (("/LICENSE", "/LICENSE", 200, b"MIT"), r"is no \.html"),
        (("/x.html", "https://example.org/", 200, b""), "leads outside"),
    ],
)
def test_what_is_no_page_is_skipped(page: tuple[str, str, int, bytes], why: str) -> None:
    with pytest.raises(flowlane.Skip, match=why):
        crawl.parse.fn(crawl.Page(*page))


async def test_nobody_there_is_an_oserror() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await crawl.fetch.fn("/", crawl.Mirror("127.0.0.1", port))


async def test_cancelling_a_fetch_closes_its_connection() -> None:
    gone = asyncio.Event()
    came = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        came.set()
        assert await reader.read() == b""
        gone.set()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        waiting = asyncio.create_task(crawl.fetch.fn("/x.html", crawl.Mirror(*server.sockets[0].getsockname())))
        await came.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with asyncio.timeout(10):
            await gone.wait()


# ── the mirror ────────────────────────────────────────────────────────────────────────────────────────────────────


async def ask(where: Any, path: str) -> int:
    """The status, or 0 for no answer in time."""
    try:
        async with asyncio.timeout(0.3):
            return int((await crawl.request(where, path))[0])
    except TimeoutError:
        return 0


async def test_the_mirror_misbehaves_as_its_seed_says_and_recovers() -> None:
    with mirror(pages=30, faults=3, stalls=2) as where:
        pages = crawl.Tree(30, 7).pages()
        told = {path: [await ask(where, path) for _ in range(6)] for path in pages}
        served = crawl.shutdown.fn(where)
    assert all(re.fullmatch(r"0?(503){0,3}(200)+", "".join(map(str, answers))) for answers in told.values()), told
    counts = Counter(status for answers in told.values() for status in answers)
    assert {answers.count(503) for answers in told.values()} == {0, 1, 2, 3}
    assert served == (180, counts[503], 2)
    assert counts[0] == 2


async def test_stopping_leaves_no_thread_and_a_closed_port() -> None:
    before = set(threading.enumerate())
    with mirror(pages=3, stalls=1) as where:
        for path in crawl.Tree(3, 7).pages():
            await ask(where, path)
    assert set(threading.enumerate()) == before
    with pytest.raises(ConnectionRefusedError):
        await crawl.request(where, "/index.html")


def test_a_mirror_that_nobody_stops_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crawl, "LEASE", 0.1)
    with mirror() as where:
        thread = crawl.servers[where.port].thread
        thread.join(20)
        assert not thread.is_alive()


def test_a_made_up_tree_is_the_same_every_time_and_of_the_size_asked_for() -> None:
    one, same, other = crawl.Tree(40, 1), crawl.Tree(40, 1), crawl.Tree(40, 2)
    assert one.files == same.files
    assert one.planted == same.planted
    assert one.files != other.files
    assert [len(crawl.Tree(count, 1).files) for count in (1, 2, 9, 40)] == [1, 2, 9, 40]
    with pytest.raises(ValueError, match="pages is 0"):
        crawl.Tree(0, 1)


SUB = "docs/sub/index.html"


def folder(root: Path) -> Path:
    files = {
        "docs/index.html": '<a href="a b.html#here">ok</a>\n<a href="sub">folder</a>\n<a href="gone.html">x</a>',
        "docs/a b.html": '<h1 id="here">x</h1><a href="sub/#nowhere">x</a>\n<img src="no.png"><img src="yes.png">',
        SUB: '<a href="../../secret.html">outside the root</a>',
        "docs/yes.png": "png",
        "secret.html": "secret",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "docs"


def test_a_folder_is_served_and_nothing_beside_it(tmp_path: Path) -> None:
    site = crawl.Folder(folder(tmp_path))
    assert site.pages() == ["/a%20b.html", "/index.html", "/sub/index.html"]
    assert site.answer("/yes.png") == (200, b"png", "")
    assert site.answer("/sub") == (301, b"", "/sub/")
    for path in ("/../secret.html", "/%2e%2e/secret.html", "/sub/../../secret.html", "/absent.html"):
        assert site.answer(path).status == 404


# ── whole runs ────────────────────────────────────────────────────────────────────────────────────────────────────


async def verdict(where: Any, pages: list[str]) -> Any:
    outlines = [crawl.parse.fn(await crawl.fetch.fn(path, where)) for path in pages]
    return await crawl.check.fn(where, outlines)


@pytest.mark.parametrize("seed", range(5))
async def test_exactly_the_planted_links_are_found(seed: int) -> None:
    tree = crawl.Tree(80, seed)
    with mirror(pages=80, seed=seed) as where:
        found = (await verdict(where, tree.pages())).broken
    assert sorted(found) == sorted(tree.planted)
    assert {broken.why[:4] for broken in found} >= {"404", "no #"}


async def test_a_folder_has_its_links_checked(tmp_path: Path) -> None:
    root = folder(tmp_path)
    with mirror(root) as where:
        found = await verdict(where, crawl.sitemap(root, 0, 0))
    assert [(unquote(b.page), b.line, b.href, b.why) for b in found.broken] == [
        ("/a b.html", 1, "sub/#nowhere", "no #nowhere"),
        ("/a b.html", 2, "no.png", "404"),
        ("/index.html", 3, "gone.html", "404"),
        ("/sub/index.html", 1, "../../secret.html", "404"),
    ]


def test_bad_weather_changes_nothing() -> None:
    calm = crawl.serial(pages=12, **CALM)
    assert crawl.serial(pages=12, **ROUGH) == calm
    assert "12 pages · 108 links" in calm


@pytest.mark.parametrize(
    "weather", [{"faults": 7}, {"faults": -1}, {"delay": 3.0, "patience": 2.0}, {"delay": -0.1}, {"patience": 0.0}]
)
def test_weather_that_nobody_survives_is_refused(weather: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"faults is|delay is"):
        crawl.serial(**weather)


# ── the crawl as a run ────────────────────────────────────────────────────────────────────────────────────────────


def levels(pages: int, seed: int = 7) -> list[list[str]]:
    """What a crawl of a made-up tree asks for, click by click, found out without a server."""
    site = crawl.Tree(pages, seed)
    found: list[list[str]] = []
    seen: set[str] = set()
    ahead = {"/index.html"}
    while ahead:
        found.append(sorted(ahead))
        seen |= ahead
        goals: set[str] = set()
        for path in ahead:
            answer = site.answer(path)
            hrefs = [link.href for link in crawl.parse.fn(crawl.Page(path, path, 200, answer.body)).links]
            hrefs += [answer.location] if answer.location else []
            goals |= {crawl.resolve(path, href).path for href in hrefs if "old" not in href or answer.status == 200}
        ahead = {goal for goal in goals if goal} - seen or set(site.pages()) - seen
    return found


def prefix(level: int) -> str:
    return "crawl/" + "follow/" * level


def edges(pages: int) -> dict[str, list[str]]:
    """The graph that a run has become in the end, by hand.

    serve ─▶ crawl/fetch[i] ─▶ crawl/parse[i] ─▶ crawl/follow ─▶ crawl/flatten ─▶ check ─▶ report ─▶ shutdown
                                                  ╰─ crawl/follow/fetch[i] ─▶ crawl/follow/parse[i] ─▶ crawl/follow/follow …
    """
    graph: dict[str, list[str]] = {"serve": []}
    for level, paths in enumerate(levels(pages)):
        at, above = prefix(level), [] if level else ["serve"]
        graph |= {f"{at}fetch": above, f"{at}parse": above}
        graph |= {f"{at}fetch[{number}]": above for number in range(len(paths))}
        graph |= {f"{at}parse[{number}]": [f"{at}fetch[{number}]"] for number in range(len(paths))}
        graph |= {f"{at}follow": [*above, f"{at}parse"], f"{at}flatten": [f"{at}parse", f"{at}follow"]}
    graph |= {"check": ["serve", "crawl/flatten"], "report": ["crawl/flatten", "check"]}
    return graph | {"shutdown": ["report", "serve"]}


def left_out(pages: int) -> set[str]:
    """Names of the tasks that find no page."""
    site = crawl.Tree(pages, 7)
    return {
        f"{prefix(level)}parse[{number}]"
        for level, paths in enumerate(levels(pages))
        for number, path in enumerate(paths)
        if site.answer(path).status in (404, 410)
    }


@pytest.mark.parametrize("routes", [{}, {"cpu": "threads"}, {"*": "inline"}], ids=["as tagged", "threads", "inline"])
def test_a_run_gives_the_serial_report_and_retries_on_the_way(routes: dict[str, str]) -> None:
    before = set(threading.enumerate())
    result: Any = flowlane.run(crawl.mirror_crawl.bind(pages=24, **ROUGH), routes=routes)
    assert result.value == crawl.serial(pages=24, **CALM)
    assert set(result.tasks) == set(edges(24))
    assert {name for name, task in result.tasks.items() if task.state == "skipped"} == left_out(24) != set()
    assert {task.state for task in result.tasks.values()} == {"succeeded", "skipped"}
    assert any(task.attempts > 1 for task in result.tasks.values())
    deadline = time.monotonic() + 20
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)  # an executor's threads end soon after its run
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()


def test_each_page_is_fetched_once_whoever_links_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answer = crawl.Handler.do_GET

    def noted(handler: Any) -> None:
        asked.append(handler.path)
        answer(handler)

    monkeypatch.setattr(crawl.Handler, "do_GET", noted)
    result: Any = flowlane.run(crawl.mirror_crawl.bind(pages=40, **CALM), routes={"cpu": "threads"})
    counts = Counter(asked)
    every = [path for level in levels(40) for path in level]
    assert len(every) == len(set(every)) == sum("/fetch[" in f"/{name}" for name in result.tasks)
    assert {path: counts[path] for path in crawl.Tree(40, 7).pages()} == dict.fromkeys(crawl.Tree(40, 7).pages(), 1)
    moved = [path for path in every if path.startswith("/moved/")]
    assert moved
    assert {counts[path] for path in moved} == {1}
    # What turned out to be no page is asked for again by `check`, and nothing else is.
    assert {path for path, count in counts.items() if count > 1} == {
        path for path in every if "old" in path or "gone" in path
    }


def peak(events: Iterable[Any]) -> int:
    """Requests of the crawl at once."""
    running = most = 0
    for event in events:
        if "fetch[" in event.get("task", ""):
            running += (event["to"] == "running") - (event["from"] == "running")
            most = max(most, running)
    return most


async def test_the_limit_holds_for_pages_that_were_found_on_the_way() -> None:
    async with flowlane.Engine(routes={"cpu": "threads"}, limits=[Limit("mirror", 3)]) as engine:
        handle = engine.start(crawl.mirror_crawl.bind(pages=40, **CALM))
        events = [event async for event in handle.events()]
        assert (await handle).state == "succeeded"
    assert 1 < peak(events) <= 3


def chain(root: Path, pages: int) -> Path:
    """Pages each of which only the one before leads to, and one that none does."""
    for number in range(pages):
        (root / (f"p{number}.html" if number else "index.html")).write_text(f'<a href="p{number + 1}.html">next</a>')
    (root / "lost.html").write_text('<a href="p1.html">p1</a>')
    return root


def test_pages_many_clicks_away_are_read_and_what_no_link_leads_to_at_last(tmp_path: Path) -> None:
    """index ─▶ p1 ─▶ p2 ─▶ … ─▶ p34 ─▶ p35, which is not there; and lost ─▶ p1."""
    options = {"root": chain(tmp_path, 35), "depth": 40, **CALM}
    result: Any = flowlane.run(crawl.mirror_crawl.bind(**options), routes={"*": "inline"})
    assert result.value == crawl.serial(**options)
    assert "36 pages · 36 links" in result.value
    assert result.value.endswith("/lost.html")
    assert result.tasks[f"{prefix(35)}parse[0]"].state == "skipped"  # p35
    assert result.tasks[f"{prefix(36)}parse[0]"].state == "succeeded"  # lost


@pytest.mark.parametrize(("depth", "read"), [(0, 1), (1, 2), (34, 35)])
def test_no_further_than_told(tmp_path: Path, depth: int, read: int) -> None:
    options = {"root": chain(tmp_path, 40), "depth": depth, **CALM}
    result: Any = flowlane.run(crawl.mirror_crawl.bind(**options), routes={"*": "inline"})
    assert result.value == crawl.serial(**options)
    assert f"{read} pages · {read} links" in result.value
    assert "too far from the index to be read · 1" in result.value
    assert sum("/fetch[" in name for name in result.tasks) == depth + 1


@pytest.mark.parametrize("depth", [-1, 91])
def test_a_depth_that_cannot_be_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth is {depth}"):
        crawl.serial(depth=depth)


def test_a_folder_without_pages_has_no_broken_links(tmp_path: Path) -> None:
    options = {"root": tmp_path, **CALM}
    result: Any = flowlane.run(crawl.mirror_crawl.bind(**options), routes={"*": "inline"})
    assert result.value == crawl.serial(**options)
    assert result.value.endswith("none")


def flow(folder: Path, *argv: str) -> dict[str, Any]:
    """How `subprocess` is to run a command of flow."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLOW_")}
    return {
        "args": [sys.executable, "-m", "flowlane", *argv],
        "cwd": folder,
        "env": {**clean, "XDG_STATE_HOME": str(folder / "state")},
    }


def parameters(**options: Any) -> list[str]:
    return [text for name, value in options.items() for text in ("-p", f"{name}={value}")]


def finished(folder: Path, *argv: str) -> str:
    done = subprocess.run(
        **flow(folder, *argv), capture_output=True, text=True, encoding="utf-8", timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_flow_run_prints_the_serial_report_and_its_log_is_sound(tmp_path: Path) -> None:
    shown = finished(tmp_path, "run", str(FILE), *parameters(pages=24, **ROUGH), "--slots", "asyncio=8")
    assert shown == crawl.serial(pages=24, **CALM) + "\n"
    (log,) = tmp_path.glob(".flow/runs/*/events.jsonl")
    story = read(log)
    assert complaints(story, edges(24)) == []
    executors = {re.sub(r"\[.*|.*/", "", event["task"]): event["executor"] for event in story.transitions}
    assert executors == {
        "serve": "threads", "fetch": "asyncio", "parse": "processes", "follow": "threads", "flatten": "threads",
        "check": "asyncio", "report": "processes", "shutdown": "threads",
    }  # fmt: skip
    reasons = Counter(event["reason"] for event in story.transitions if event["to"] == "retrying")
    assert reasons["raised"] > 0
    assert reasons["attempt_timeout"] >= 1
    # Never more requests at once than the lane has slots.
    assert 1 < peak(sorted(story.transitions, key=lambda event: event["mono_ns"])) <= 8


def succeeded(folder: Path, reason: str) -> list[str]:
    """Names of tasks that have succeeded for this reason, of all sessions. A last line that is not whole is left out."""
    return [
        json.loads(line)["task"]
        for log in folder.glob(".flow/runs/*/events.jsonl")
        for line in log.read_bytes().split(b"\n")[:-1]
        if b'"to":"succeeded","reason":"%s"' % reason.encode() in line
    ]


@pytest.mark.timeout(110)
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_crawl_that_is_killed_on_the_way_keeps_what_it_has_fetched(tmp_path: Path) -> None:
    run = flow(tmp_path, "run", str(FILE), *parameters(pages=40, stalls=0), "--quiet")
    with subprocess.Popen(**run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as engine:
        deadline = time.monotonic() + 60
        while engine.poll() is None and time.monotonic() < deadline:
            if sum(name.startswith(f"{prefix(2)}fetch[") for name in succeeded(tmp_path, "returned")) >= 3:
                break
            time.sleep(0.005)
        engine.send_signal(signal.SIGKILL)
    before = succeeded(tmp_path, "returned")
    assert "crawl/flatten" not in before
    assert finished(tmp_path, "resume", "--quiet") == crawl.serial(pages=40, **CALM) + "\n"
    counts = Counter(succeeded(tmp_path, "returned"))
    # The store and the event log are written apart: the kill may have come after the one and before the other.
    assert set(counts) | set(succeeded(tmp_path, "restored")) >= {name for name in edges(40) if "/fetch[" in name}
    # The server has to be started again; pages that came from the one before are not fetched again from this.
    assert {name for name in before if counts[name] > 1} == {"serve"}
