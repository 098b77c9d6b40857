"""Crawl a mirror of a documentation tree and report its broken links. The mirror is slow, and fails now and then.

    flow run workflows/mirror_crawl.py                              a tree made up for the purpose
    flow run workflows/mirror_crawl.py -p root=docs/_build/html     a tree of yours
    flow run workflows/mirror_crawl.py -p depth=2                   no further than two clicks from its index
    flow run workflows/mirror_crawl.py --slots asyncio=4            at most four pages at once

A real HTTP server on 127.0.0.1 plays the mirror. It answers late, it answers 503, and on some pages it takes the
request and says nothing at all. Which URL does what, and how often, follows from `seed`; each recovers after at most
`faults` failures, so retries always get through and the report is the same every time.

    serve ─────▶ crawl ────────────────────────────────────▶ check ──────▶ report ┄┄┄┄┄▶ shutdown
    threads        │                                         asyncio       processes     threads
                   │  fetch ──────▶ parse ──────▶ follow                                 ordered after the report
                   │  asyncio       processes     threads
                   │  one a page    one a page      │
                   └──────────── crawl ◀────────────┘ while there are links to pages that nobody has fetched

Which pages there are is found out on the way. `follow` reads what one level of pages leads to and returns the next level as
more work, so the tasks are named by the clicks from the index: ``crawl/fetch[0]``, ``crawl/follow/fetch[3]``,
``crawl/follow/follow/fetch[0]``. One task decides for a whole level, and that is why each page is fetched once, whichever
pages link to it, and why a page is the same task in every run. What turns out to be no page is skipped. Pages that no link
leads to are fetched last.

The server is an effect, so a task starts it and a last task, ordered after the report, stops it. A run that fails on the
way never gets there: the server then ends by itself after `LEASE` seconds without a request. A resumed run starts it anew,
at another port, and keeps the pages that it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import html
import posixpath
import random
import socketserver
import sys
import threading
import time
from collections import Counter
from functools import partial
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path  # noqa: TC003 - the parameters of a workflow are validated by their annotations
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import quote, unquote, urldefrag, urljoin, urlsplit

from flowlane import Bound, Limit, RetryPolicy, Skip, flatten, task, workflow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

# ── what travels between tasks ────────────────────────────────────────────────────────────────────────────────────


class Weather(NamedTuple):
    """How the mirror misbehaves; by (seed, URL), so always alike. `delay` and `patience` are seconds.

    delay     longest wait before an answer
    faults    a URL fails at most so often before it answers
    stalls    how many of the pages, on their first request, get no answer at all
    patience  how long a client waits for an answer: the timeout of one attempt
    """

    seed: int = 7
    delay: float = 0.08
    faults: int = 2
    stalls: int = 2
    patience: float = 2.0


class Mirror(NamedTuple):
    """Where a running server is."""

    host: str
    port: int

    def __flow_digest__(self) -> str:
        """The same mirror, wherever it listens: a resumed run starts it at another port, and what it served holds still."""
        return "mirror"


class Page(NamedTuple):
    """An answer: `path` is what was asked for, `final` what answered after redirects; `body` is empty for errors."""

    path: str
    final: str
    status: int
    body: bytes


class Link(NamedTuple):
    """A link on a page: the line it stands on, and its href as written."""

    line: int
    href: str


class Outline(NamedTuple):
    """What the parser found on a page.

    ids    the places a fragment can point to
    links  all of them, as written
    leads  the pages that they lead to: paths, each once; what has another suffix than a page is left out
    moved  where the page is, if this is only a redirect to it; then there is nothing else but `leads`
    """

    path: str
    title: str
    ids: frozenset[str]
    links: tuple[Link, ...]
    leads: tuple[str, ...] = ()
    moved: str = ""


class Broken(NamedTuple):
    """A link that leads nowhere: `why` is "404", "410", … or "no #fragment"."""

    page: str
    line: int
    href: str
    why: str


class Verdict(NamedTuple):
    """Of all links: how many lead outside (and are not followed), how many URLs were tried, which links are broken.

    unread  pages that are there and were not crawled, being further than that from the index
    """

    outside: int
    tried: int
    broken: tuple[Broken, ...]
    unread: int = 0


class Served(NamedTuple):
    """The server's own count, told at its end: requests in all, 503s, and requests left without an answer."""

    requests: int
    unavailable: int
    stalled: int


class Unavailable(ConnectionError):
    """The mirror answered 503: not now, maybe later."""


LEASE: Final = 30.0  # seconds without a request after which the server ends by itself
LIMIT: Final = 8 << 20  # bytes; a longer answer is refused
HOPS: Final = 5  # redirects in a row
AT_ONCE: Final = 16  # requests at once, whatever the slots of the asyncio lane: more would be impolite
POLITE: Final = Limit("mirror", AT_ONCE)  # for `fetch`; `check` asks when the crawl is over, and counts by itself
DEPTH: Final = 90  # clicks from the index, at most: work may return work 100 deep

# Attempts enough for every fault of a URL, and for a busy machine now and then.
PATIENT: Final = RetryPolicy(attempts=8, backoff=0.02, factor=2, max_delay=0.5, jitter=True, on=(OSError,))

# ── the tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────


# In threads whatever the routes say: the server lives in this process, and `shutdown` must find it. For the same reason a
# resumed run starts it anew.
@task.io(executor="threads", persist=False)
def serve(root: Path | None, pages: int, weather: Weather) -> Mirror:
    """Start the mirror and return where it is. Returns once it listens."""
    server = Server(Folder(root) if root else Tree(pages, weather.seed), weather)
    servers[server.server_port] = server
    server.start()
    return Mirror("127.0.0.1", server.server_port)


@task.io(retry=PATIENT, limits=[POLITE])
async def fetch(path: str, mirror: Mirror) -> Page:
    """GET one page. 503 and broken connections raise, so that they are tried again.

    A redirect is not followed: where it leads is a page like others, and fetched once like them.
    """
    return await get(mirror, path, hops=1)


@task.cpu
def parse(page: Page) -> Outline:
    """Title, anchors and links of a page, or where it has moved to. Raises Skip for what is no page."""
    if page.final != page.path:
        if not page.final.startswith("/"):
            raise Skip(f"leads outside, to {page.final}")
        return Outline(page.path, "", frozenset(), (), (page.final,), page.final)
    if page.status != 200:
        raise Skip(f"answered {page.status}")
    if not page.path.endswith(SUFFIX):
        raise Skip(f"is no {SUFFIX}")
    reader = Reader()
    with contextlib.suppress(AssertionError):  # "<![" and the like in no known form: keep what came before
        reader.feed(page.body.decode("utf-8", "replace"))
        reader.close()
    goals = {resolve(page.path, link.href).path for link in reader.links}
    return Outline(
        page.path,
        " ".join("".join(reader.title).split()),
        frozenset(reader.ids),
        tuple(reader.links),
        tuple(sorted(goal for goal in goals if goal and posixpath.splitext(goal)[1] in (SUFFIX, ""))),
    )


# Not stored, as what it returns says where the mirror is. It is soon told again, and what came of it is kept all the same.
@task.io(persist=False)
def follow(mirror: Mirror, outlines: Sequence[Outline], trip: Trip) -> list[Outline] | Bound[list[Outline]]:
    """The pages behind those of `outlines`: the next level as more work, or none when there is no more to find."""
    paths = trip.next(outlines)
    return _crawl.bind(mirror, paths, trip.on(paths)) if paths else []


@workflow(name="crawl")
def _crawl(mirror: Mirror, paths: tuple[str, ...], trip: Trip) -> list[Outline]:
    """Fetch a level of pages, and all that they lead to. A page is parsed as soon as it is there."""
    pages = fetch.options(timeout=trip.patience).map(paths, mirror)
    outlines = parse.map(pages)
    return flatten([outlines, follow(mirror, outlines, trip)])


@task.io(retry=PATIENT, timeout=60)
async def check(mirror: Mirror, outlines: Sequence[Outline]) -> Verdict:
    """Hold all links against the pages, and ask the mirror about targets that are none of them: dead ones a second time.

    An attempt asks for every target once, whatever becomes of the others, and a target fails at most as often as the
    mirror does: so the attempts suffice.
    """
    moved = {outline.path: outline.moved for outline in outlines if outline.moved}
    ids = {outline.path: outline.ids for outline in outlines if not outline.moved}
    links = [(outline.path, link, resolve(outline.path, link.href)) for outline in outlines for link in outline.links]
    targets = {goal.path: settle(goal.path, moved) for _, _, goal in links if goal.path}
    unknown = sorted(set(targets.values()) - ids.keys())
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(path: str) -> Page:
        async with gate:
            return await get(mirror, path)

    answers: dict[str, Page] = {}
    for path, outcome in zip(unknown, await asyncio.gather(*map(ask, unknown), return_exceptions=True), strict=True):
        if isinstance(outcome, BaseException):
            raise outcome
        answers[path] = outcome

    broken: list[Broken] = []
    for page, link, goal in links:
        target = targets.get(goal.path, "")
        answer = answers.get(target)
        # A redirect may lead to one of the pages; of anything else we do not know the anchors.
        anchors = ids.get(answer.final if answer else target)
        if goal.problem:
            why = goal.problem
        elif answer is not None and answer.status != 200:
            why = str(answer.status)
        elif goal.fragment not in ("", "top") and anchors is not None and goal.fragment not in anchors:
            why = f"no #{goal.fragment}"
        else:
            continue
        broken.append(Broken(page, link.line, link.href, why))
    outside = sum(not goal.path and not goal.problem for _, _, goal in links)
    broken.sort(key=lambda one: (unquote(one.page), one.line, one.href))
    there = {answer.final for answer in answers.values() if answer.status == 200}
    unread = sum(path.startswith("/") and path.endswith(SUFFIX) for path in there - ids.keys())
    return Verdict(outside, len(outlines) + len(unknown), tuple(broken), unread)


@task.cpu
def report(outlines: Sequence[Outline], verdict: Verdict) -> str:
    """The broken links as text, by page, and pages that the index does not lead to."""
    total = sum(len(outline.links) for outline in outlines)
    pages = [outline for outline in outlines if not outline.moved]
    count = len(verdict.broken)
    anchors = sum(broken.why.startswith("no #") for broken in verdict.broken)
    lines = [
        heading("mirror crawl"),
        f"{len(pages):,} pages · {total:,} links · {verdict.outside:,} lead outside · {verdict.tried:,} URLs tried",
        "",
        heading(f"broken links · {count - anchors:,} lead nowhere, {anchors:,} miss their anchor"),
    ]
    titles = {outline.path: outline.title for outline in outlines}
    page = None
    for broken in verdict.broken:
        if broken.page != page:
            page = broken.page
            lines.append(clip(f"{unquote(page)}  “{titles[page]}”", WIDTH))
        lines.append(clip(f"  ✗ line {broken.line:<5} {broken.why:<16} {broken.href}", WIDTH))
    if not count:
        lines.append("none")
    if verdict.unread:
        lines += ["", heading(f"too far from the index to be read · {verdict.unread:,}")]
    if lost := strays(outlines):
        lines += ["", heading(f"out of reach from the index · {len(lost):,}")]
        lines += [clip(f"  {unquote(path)}", WIDTH) for path in lost]
    return "\n".join(lines)


@task.io(executor="threads")
def shutdown(mirror: Mirror) -> Served:
    """Stop the mirror, wait until its threads are gone, and return what it counted."""
    return servers.pop(mirror.port).stop()


@workflow
def mirror_crawl(
    root: Path | None = None,
    pages: int = 150,
    seed: int = 7,
    delay: float = 0.08,
    faults: int = 2,
    stalls: int = 2,
    patience: float = 2.0,
    depth: int = 30,
) -> str:
    """Find the broken links of a documentation tree behind a bad connection.

    root      folder of HTML files; without it a tree of `pages` pages is made up from `seed`
    delay     the mirror's longest wait before an answer, in seconds
    faults    a URL answers 503 at most so often, at most 6
    stalls    pages whose first request gets no answer
    patience  timeout of a request, in seconds
    depth     how many clicks from the index pages are read, at most 90
    """
    weather = forecast(seed, delay, faults, stalls, patience)
    trip = Trip.over(sitemap(root, pages, seed), depth, patience)
    mirror = serve(root, pages, weather)
    outlines = _crawl(mirror, trip.start, trip)
    result = report(outlines, check(mirror, outlines))
    shutdown.options(after=[result])(mirror)
    return result


def serial(
    root: Path | None = None,
    pages: int = 150,
    seed: int = 7,
    delay: float = 0.08,
    faults: int = 2,
    stalls: int = 2,
    patience: float = 2.0,
    depth: int = 30,
) -> str:
    """The same report from one plain loop, one request at a time, without the engine."""
    weather = forecast(seed, delay, faults, stalls, patience)
    trip = Trip.over(sitemap(root, pages, seed), depth, patience)
    mirror = serve.fn(root, pages, weather)
    try:
        return asyncio.run(_serial(mirror, trip))
    finally:
        shutdown.fn(mirror)


async def _serial(mirror: Mirror, trip: Trip) -> str:
    async def insist(ask: Callable[[], Awaitable[Any]], seconds: float | None) -> Any:
        for _ in range(PATIENT.attempts - 1):
            with contextlib.suppress(OSError):  # TimeoutError is one
                async with asyncio.timeout(seconds):
                    return await ask()
        return await ask()

    outlines: list[Outline] = []
    paths = trip.start
    while paths:
        level: list[Outline] = []
        for path in paths:
            with contextlib.suppress(Skip):
                level.append(parse.fn(await insist(partial(fetch.fn, path, mirror), trip.patience)))
        outlines += level
        paths = trip.next(level)
        trip = trip.on(paths)
    return report.fn(outlines, await insist(partial(check.fn, mirror, outlines), None))


def forecast(seed: int, delay: float, faults: int, stalls: int, patience: float) -> Weather:
    """The parameters as one value, when they make sense together."""
    if not 0 <= faults <= 6:
        raise ValueError(f"faults is {faults}; a request is tried {PATIENT.attempts} times, so 0 to 6 can be survived")
    if not 0 <= delay < patience:
        raise ValueError(f"delay is {delay} and patience {patience}; nobody waits that long")
    return Weather(seed, delay, faults, stalls, patience)


def sitemap(root: Path | None, pages: int, seed: int) -> list[str]:
    """Paths of all HTML pages, sorted, percent-encoded as in a URL."""
    return sorted(Folder(root).pages() if root else Tree(pages, seed).pages())


# ── the way ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Trip(NamedTuple):
    """How far a crawl has come.

    start     where it begins: the index, or the first page where there is none
    seen      all paths that are or were asked for
    sitemap   pages that are there whether a link leads to them or not
    left      how many more clicks it goes
    patience  seconds for a request
    """

    start: tuple[str, ...]
    seen: frozenset[str]
    sitemap: frozenset[str]
    left: int
    patience: float

    @classmethod
    def over(cls, sitemap: Sequence[str], depth: int, patience: float) -> Trip:
        """Before the first page. Raises ValueError for a depth that is none."""
        if not 0 <= depth <= DEPTH:
            raise ValueError(f"depth is {depth}; pages are read 0 to {DEPTH} clicks from the index")
        start = entrance(sitemap)
        return cls(start, frozenset(start), frozenset(sitemap), depth, patience)

    def next(self, outlines: Iterable[Outline]) -> tuple[str, ...]:
        """Pages that `outlines` lead to and nobody has asked for, sorted; when there are none, those that no link leads to."""
        if not self.left:
            return ()
        found = {path for outline in outlines for path in outline.leads}
        return tuple(sorted(found - self.seen or self.sitemap - self.seen))

    def on(self, paths: Iterable[str]) -> Trip:
        """One click further, with `paths`."""
        return self._replace(seen=self.seen.union(paths), left=self.left - 1)


def entrance(paths: Sequence[str]) -> tuple[str, ...]:
    """Where to begin reading."""
    return ("/index.html",) if "/index.html" in paths else tuple(sorted(paths)[:1])


def settle(path: str, moved: dict[str, str]) -> str:
    """Where redirects end that begin at `path`, as far as they are known."""
    for _ in range(HOPS):
        if path not in moved:
            break
        path = moved[path]
    return path


def strays(outlines: Sequence[Outline]) -> list[str]:
    """Pages that cannot be reached from the index by links."""
    leads = {outline.path: outline.leads for outline in outlines}
    reached = set(entrance([outline.path for outline in outlines if not outline.moved]))
    ahead = list(reached)
    while ahead:
        found = set(leads.get(ahead.pop(), ())) - reached
        reached |= found
        ahead += found
    return sorted(outline.path for outline in outlines if not outline.moved and outline.path not in reached)


# ── links ─────────────────────────────────────────────────────────────────────────────────────────────────────────


SUFFIX: Final = ".html"


class Goal(NamedTuple):
    """Where a link leads: a path on this mirror, or "" when it leads outside or cannot be understood."""

    path: str
    fragment: str = ""
    problem: str | None = None


def resolve(page: str, href: str) -> Goal:
    """An href as found on `page`. A folder stands for its ``index.html``, as on any static site."""
    try:
        url, fragment = urldefrag(urljoin(f"http://mirror{page}", href.strip()))
        parts = urlsplit(url)
    except ValueError:
        return Goal("", problem="malformed")
    if (parts.scheme, parts.netloc) != ("http", "mirror"):
        return Goal("")
    path = unquote(parts.path) or "/"
    return Goal(quote(path + "index.html" if path.endswith("/") else path), unquote(fragment))


class Reader(HTMLParser):
    """Collects what `Outline` holds."""

    LINKS: Final = {"a": "href", "area": "href", "img": "src", "link": "href", "script": "src"}

    def __init__(self) -> None:
        super().__init__()
        self.title: list[str] = []
        self.ids: set[str] = set()
        self.links: list[Link] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._in_title = tag == "title" and not self.title
        for name in ("id", "name") if tag == "a" else ("id",):
            if value := values.get(name):
                self.ids.add(value)
        href = values.get(self.LINKS.get(tag, ""))
        if href is not None:
            self.links.append(Link(self.getpos()[0], href))

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - HTMLParser's signature
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title.append(data)


# ── the client ────────────────────────────────────────────────────────────────────────────────────────────────────


async def get(mirror: Mirror, path: str, hops: int = HOPS) -> Page:
    """GET `path` and follow redirects, with at most so many requests.

    Raises Unavailable for 503, and other OSErrors for what the network does.
    """
    at = path
    status = 0
    for _ in range(hops):
        status, location, body = await request(mirror, at)
        if status == 503:
            raise Unavailable(f"503 for {at}")
        if status not in (301, 302, 303, 307, 308):
            return Page(path, at, status, body if status == 200 else b"")
        at = resolve(at, location).path
        if not at:  # leads outside, where we do not follow
            return Page(path, location, 200, b"")
    return Page(path, at, status, b"")


async def request(mirror: Mirror, path: str) -> tuple[int, str, bytes]:
    """One HTTP/1.0 exchange: status, Location header or "", body. Raises OSError when it does not come to an end."""
    reader, writer = await asyncio.open_connection(mirror.host, mirror.port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {mirror.host}\r\n\r\n".encode("ascii"))
        answer = bytearray()
        while chunk := await reader.read(1 << 16):
            answer += chunk
            if len(answer) > LIMIT:
                raise ConnectionAbortedError(f"the answer for {path} is over {LIMIT} bytes")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    head, end, body = bytes(answer).partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if not end or len(words) < 2 or not words[1].isdecimal():
        raise ConnectionResetError(f"no whole answer for {path}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    length = headers.get("content-length", "")
    if length.isdecimal() and len(body) < int(length):
        raise ConnectionResetError(f"the answer for {path} was cut short")
    return int(words[1]), headers.get("location", ""), body


# ── the mirror ────────────────────────────────────────────────────────────────────────────────────────────────────

servers: dict[int, Server] = {}  # by port: what `serve` started, until `shutdown` takes it


class Answer(NamedTuple):
    status: int
    body: bytes = b""
    location: str = ""


class Site(Protocol):
    """What a mirror shows. Paths are percent-encoded and begin with "/"."""

    def pages(self) -> Sequence[str]: ...

    def answer(self, path: str) -> Answer: ...


class Server(ThreadingHTTPServer):
    """Serves a site, in the given weather, until it is stopped or nobody has asked for `LEASE` seconds."""

    daemon_threads = False  # so that closing waits for the handlers
    request_queue_size = 256  # a full queue would cost a client a whole second (TCP tries again)
    timeout = 0.05  # how long handle_request waits, and so how long stopping takes

    def __init__(self, site: Site, weather: Weather) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.site = site
        self.weather = weather
        by_chance = sorted(site.pages(), key=lambda path: chance(weather.seed, "stall", path))
        self.stalling = frozenset(by_chance[: weather.stalls])
        self._asked: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._ending = threading.Event()
        self.thread = threading.Thread(target=self._live, name="mirror", daemon=True)

    def server_bind(self) -> None:
        # Not HTTPServer's: that looks up the host's name, which may ask the network and take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> Served:
        """End, wait for all threads, and tell the counts."""
        self._ending.set()
        self.thread.join()
        return Served(self._asked.total(), self._told["503"], self._told["stalled"])

    def misbehave(self, path: str) -> str | None:
        """What to do instead of answering this request for `path`: "stalled", "503" or None."""
        with self._lock:
            self._asked[path] += 1
            count = self._asked[path]
            faults = int(chance(self.weather.seed, "faults", path) * (self.weather.faults + 1))
            stalls = int(path in self.stalling)
            told = "stalled" if count <= stalls else "503" if count <= stalls + faults else None
            if told:
                self._told[told] += 1
        time.sleep(self.weather.delay * chance(self.weather.seed, "delay", path, count))
        return told

    def process_request(self, request: Any, client_address: Any) -> None:
        self._last = time.monotonic()
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that has gone is no news
            super().handle_error(request, client_address)

    def _live(self) -> None:
        while not self._ending.is_set() and time.monotonic() - self._last < LEASE:
            self.handle_request()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride] - as http.server means it
    timeout = LEASE  # of the socket: for a client that connects and says nothing

    def do_GET(self) -> None:
        answer = self.server.site.answer(self.path)
        # Redirects never fail: then no URL, hops included, fails more often than `faults` says.
        match None if answer.location else self.server.misbehave(self.path):
            case "stalled":
                self.connection.recv(1)  # comes back when the client has given up
                return
            case "503":
                answer = Answer(503, b"come back later")
            case _:
                pass
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.location:
            self.send_header("Location", answer.location)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def chance(*what: object) -> float:
    """A number in [0, 1) that depends on `what` and nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=6).digest()) / (1 << 48)


class Folder:
    """A site of files."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        if not self.root.is_dir():
            raise NotADirectoryError(f"root {str(root)!r} is not a folder")

    def pages(self) -> list[str]:
        return sorted(quote(f"/{path.relative_to(self.root).as_posix()}") for path in self.root.rglob("*.html"))

    def answer(self, path: str) -> Answer:
        file = (self.root / unquote(path).lstrip("/")).resolve()
        if not file.is_relative_to(self.root):
            return Answer(404)
        if file.is_dir():
            return Answer(301, location=f"{path}/")
        try:
            return Answer(200, file.read_bytes())
        except OSError:
            return Answer(404)


class Tree:
    """A documentation tree made up from a seed, some of its links broken on purpose: `planted` lists those."""

    SECTIONS: Final = ("guide", "how to", "reference", "über uns")  # names that must be quoted in a URL
    TOPICS: Final = ("attempts", "backoff", "cancellation", "deadlines", "executors", "fan-out", "graphs", "handles")
    ASPECTS: Final = ("in depth", "by example", "& friends", "at scale", "explained", "for operators", "<internals>")
    TEXT: Final = (
        "A",
        "task",
        "waits",
        "for",
        "its",
        "upstream,",
        "takes",
        "a",
        "slot",
        "of",
        "its",
        "lane,",
        "and",
        "runs.",
    )

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise ValueError(f"pages is {count}; a tree has at least one")
        self._dice = random.Random(seed)
        self._names = ["/index.html"]
        for number in range(count - 1):
            section = self.SECTIONS[number % len(self.SECTIONS)]
            name = "index" if number < len(self.SECTIONS) else f"{self.TOPICS[number % len(self.TOPICS)]}-{number}"
            self._names.append(f"/{section}/{name}.html")
        self.planted: list[Broken] = []
        self.files = {quote(name): self._page(name) for name in self._names}

    def pages(self) -> list[str]:
        return list(self.files)

    def answer(self, path: str) -> Answer:
        if path in self.files:
            return Answer(200, self.files[path])
        if f"{path}/index.html" in self.files:
            return Answer(301, location=f"{path}/")
        if path.startswith("/moved/"):
            return Answer(301, location=path.removeprefix("/moved"))
        return Answer(410 if path.startswith("/gone/") else 404)

    def _page(self, name: str) -> bytes:
        dice = self._dice
        title = f"{posixpath.basename(name).removesuffix('.html').capitalize()} {dice.choice(self.ASPECTS)}"
        lines = [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title></head><body>',
            '<p><a href="/">home</a> <a href="./">section</a> <a href="mailto:docs@example.org">write to us</a></p>',
        ]
        for number in range(1, SECTIONS_A_PAGE + 1):
            lines.append(f'<h2 id="part-{number}">Part {number}</h2>')
            lines.append(f"<p>{' '.join(dice.choices(self.TEXT, k=80))}</p>")
            href, why = self._link(name)
            if why:
                self.planted.append(Broken(quote(name), len(lines) + 1, href, why))
            lines.append(f'<p>See also <a href="{html.escape(href)}">this page</a>.</p>')
        lines.append("</body></html>")
        return "\n".join(lines).encode()

    def _link(self, name: str) -> tuple[str, str | None]:
        """An href for page `name`, and what is wrong with it, or None."""
        dice = self._dice
        target = dice.choice(self._names)
        relative = quote(posixpath.relpath(target, posixpath.dirname(name)))
        part = dice.randint(1, SECTIONS_A_PAGE)
        kind = dice.random()
        if kind < 0.015:
            return f"{relative.removesuffix('.html')}-old.html", "404"
        if kind < 0.022:
            return f"/gone{quote(target)}", "410"
        if kind < 0.032:
            return f"{relative}#part-{part + SECTIONS_A_PAGE}", f"no #part-{part + SECTIONS_A_PAGE}"
        if kind < 0.035:
            return "http://[mirror/", "malformed"
        if kind < 0.10:
            return f"/moved{quote(target)}#part-{part}", None
        if kind < 0.16:
            return "https://example.org/?a=1&b=2", None
        if kind < 0.50:
            return f"{relative}#part-{part}", None
        return relative, None


SECTIONS_A_PAGE: Final = 6

# ── the report ────────────────────────────────────────────────────────────────────────────────────────────────────

WIDTH: Final = 100


def heading(text: str) -> str:
    return f"── {text} ".ljust(WIDTH, "─")


def clip(text: str, width: int) -> str:
    """One printable line of at most `width` characters: pages may hold anything, terminals must not."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if len(line) <= width else f"{line[: width - 1]}…"
