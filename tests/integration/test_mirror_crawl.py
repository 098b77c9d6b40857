"""workflows/mirror_crawl.py: server, client and parser one by one, and whole runs held against its serial oracle."""

from __future__ import annotations

import asyncio
import contextlib
import re
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
from flowlane.loader import load_file

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

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
            await crawl.fetch.fn(where, "/x.html")


async def test_503_is_raised_and_404_is_an_answer() -> None:
    async with saying(b"HTTP/1.0 503 later\r\n\r\n") as where:
        with pytest.raises(crawl.Unavailable, match=r"503 for /x\.html"):
            await crawl.fetch.fn(where, "/x.html")
    async with saying(b"HTTP/1.0 404\r\n\r\nsorry") as where:
        assert await crawl.fetch.fn(where, "/x.html") == ("/x.html", "/x.html", 404, b"")


async def test_redirects_are_followed_but_not_for_ever_and_not_outside() -> None:
    async with saying(b"HTTP/1.0 301 moved\r\nLocation: /x.html\r\n\r\n") as where:
        assert (await crawl.fetch.fn(where, "/x.html")).status == 301
    async with saying(b"HTTP/1.0 302 moved\r\nlocation: https://example.org/\r\n\r\n") as where:
        assert await crawl.fetch.fn(where, "/x.html") == ("/x.html", "https://example.org/", 200, b"")


async def test_nobody_there_is_an_oserror() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await crawl.fetch.fn(crawl.Mirror("127.0.0.1", port), "/")


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
        waiting = asyncio.create_task(crawl.fetch.fn(crawl.Mirror(*server.sockets[0].getsockname()), "/x.html"))
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


def folder(root: Path) -> Path:
    files = {
        "docs/index.html": '<a href="a b.html#here">ok</a>\n<a href="sub">folder</a>\n<a href="gone.html">x</a>',
        "docs/a b.html": '<h1 id="here">x</h1><a href="sub/#nowhere">x</a>\n<img src="no.png"><img src="yes.png">',
        "docs/sub/index.html": '<a href="../../secret.html">outside the root</a>',
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
    outlines = [crawl.parse.fn(await crawl.fetch.fn(where, path)) for path in pages]
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


def calls(name: str, count: int) -> list[str]:
    return [name if number == 1 else f"{name}#{number}" for number in range(1, count + 1)]


def edges(pages: int) -> dict[str, list[str]]:
    """The graph of a run, by hand."""
    fetches, parses = calls("fetch", pages), calls("parse", pages)
    graph: dict[str, list[str]] = {"serve": []}
    graph |= {name: ["serve"] for name in fetches}
    graph |= {parse: [fetch] for parse, fetch in zip(parses, fetches, strict=True)}
    graph |= {"check": ["serve", *parses], "report": [*parses, "check"], "shutdown": ["report", "serve"]}
    return graph


@pytest.mark.parametrize("routes", [{}, {"cpu": "threads"}], ids=["as tagged", "threads"])
def test_a_run_gives_the_serial_report_and_retries_on_the_way(routes: dict[str, str]) -> None:
    before = set(threading.enumerate())
    result: Any = flowlane.run(crawl.mirror_crawl.bind(pages=24, **ROUGH), routes=routes)
    assert result.value == crawl.serial(pages=24, **CALM)
    assert set(result.tasks) == set(edges(24))
    assert any(task.attempts > 1 for task in result.tasks.values())
    deadline = time.monotonic() + 20
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)  # an executor's threads end soon after its run
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()


def test_flow_run_prints_the_serial_report_and_its_log_is_sound(tmp_path: Path) -> None:
    options = [text for name, value in {"pages": 24, **ROUGH}.items() for text in ("-p", f"{name}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "flowlane", "run", str(FILE), *options, "--slots", "asyncio=8"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == crawl.serial(pages=24, **CALM) + "\n"
    (log,) = tmp_path.glob(".flow/runs/*/events.jsonl")
    story = read(log)
    assert complaints(story, edges(24)) == []
    executors = {event["task"].partition("#")[0]: event["executor"] for event in story.transitions}
    assert executors == {
        "serve": "threads", "fetch": "asyncio", "parse": "processes", "check": "asyncio", "report": "processes",
        "shutdown": "threads",
    }  # fmt: skip
    reasons = Counter(event["reason"] for event in story.transitions if event["to"] == "retrying")
    assert reasons["raised"] > 0
    assert reasons["attempt_timeout"] >= 1

    # Never more requests at once than the lane has slots.
    running = peak = 0
    for event in sorted((e for e in story.transitions if e["executor"] == "asyncio"), key=lambda e: e["mono_ns"]):
        running += (event["to"] == "running") - (event["from"] == "running")
        peak = max(peak, running)
    assert 1 < peak <= 8
