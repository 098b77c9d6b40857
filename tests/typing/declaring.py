"""Types through a declared graph. Checked by mypy and pyright, never run; see test_types.py.

A line that ends in the mark must be refused by both checkers, every other line by neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, assert_type

from flowlane import (
    Bound,
    Cache,
    Call,
    Limit,
    RetryPolicy,
    Task,
    Workflow,
    WorkflowDefinition,
    either,
    flatten,
    otherwise,
    product,
    switch,
    task,
    teardown,
    when,
    workflow,
    zipped,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any


class Table(NamedTuple):
    rows: list[int]


@task.io
async def fetch(url: str, timeout: float = 5.0) -> bytes:  # noqa: ASYNC109 - a parameter named like an option of ours
    return f"{url}{timeout}".encode()


@task.io(retries=3, timeout=10, name="read_file")
def read(path: str) -> bytes:
    return path.encode()


@task.io(retries=3)
async def head(url: str) -> int:
    return len(url)


@task.cpu
def parse(raw: bytes) -> Table:
    return Table(list(raw))


@task.cpu(retry=RetryPolicy(attempts=4, backoff=0.5, factor=2, max_delay=30, jitter=True, on=(OSError, TimeoutError)))
def measure(table: Table, *, strict: bool = False) -> float:
    return float(len(table.rows) + strict)


@task.io
def merge(tables: list[Table], name: str = "all") -> Table:
    return Table([row for table in tables for row in table.rows] + [len(name)])


# ── what a call is ────────────────────────────────────────────────────────────────────────────────────────────────


def calls() -> None:
    assert_type(fetch("u"), bytes)  # async is unwrapped
    assert_type(head("u"), int)
    assert_type(read("p"), bytes)
    assert_type(parse(fetch("u")), Table)
    assert_type(measure(parse(read("p")), strict=True), float)
    assert_type(merge([parse(fetch(u)) for u in "abc"], name="x"), Table)
    assert_type(merge(tables=[], name="x"), Table)
    fetch("u", timeout=3)  # the user's own parameter, not ours


def wrong_calls() -> None:
    fetch(3)  # E:
    fetch()  # E:
    fetch("u", "v", 3)  # E:
    fetch("u", tiemout=3)  # E:
    parse("text")  # E:
    parse(measure(parse(b"")))  # E:
    merge([fetch("u")])  # E:
    merge(parse(b""))  # E:
    measure(parse(b""), True)  # E:
    measure(parse(b""), strict="yes")  # E:
    fetch("u", retries=3)  # E:
    len(measure(parse(b"")))  # E:
    fetch("u").rows  # E:


# ── options ───────────────────────────────────────────────────────────────────────────────────────────────────────


def options() -> None:
    x = fetch("u")
    assert_type(fetch.options(name="eu", after=[x, "later"], retries=5)("u"), bytes)
    assert_type(
        parse.options(retry=RetryPolicy(attempts=2), timeout=None, total_timeout=9.5, executor="threads")(x), Table
    )
    assert_type(fetch.options(cache=Cache(ttl=60, version=2), at_most_once=False)("u"), bytes)
    parse.options(cache=True)
    parse.options(cache=None)
    parse.options(cache="yes")  # E:
    parse.options(at_most_once=None)  # E:
    task.cpu(cache=60)  # E:
    Cache(ttl="1h")  # E:
    Cache(version=1.5)  # E:
    fetch.options(retries=5)(3)  # E:
    fetch.options(retires=5)  # E:
    fetch.options(retries="5")  # E:
    fetch.options(timeout="10s")  # E:
    fetch.options(after=x.nothing)  # E:
    task.io(retires=3)  # E:
    task.cpu(timeout="3")  # E:
    task.io(after=[x])  # E:
    RetryPolicy(attempts="3")  # E:
    RetryPolicy(on=(3,))  # E:


def policies() -> None:
    policy = RetryPolicy(attempts=2)
    policy.attempts = 3  # E:


# ── the function itself ───────────────────────────────────────────────────────────────────────────────────────────


async def functions() -> None:
    assert_type(await fetch.fn("u"), bytes)
    assert_type(read.fn("p"), bytes)
    assert_type(parse.fn(b""), Table)
    await parse.fn(b"")  # E:
    fetch.fn(3)  # E:
    await fetch("u")  # E:


# ── kinds ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@task.cpu
def square(x: int) -> int:
    return x * x


@task  # E:
def untagged(x: int) -> int:
    return x


def passing(one: Task[[int], int, Callable[[int], int]], other: Task[..., bytes, Any]) -> None:
    passing(square, fetch)
    passing(parse, fetch)  # E:
    passing(square, square)  # E:


# ── methods ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Client:
    def __init__(self, base: str) -> None:
        self.base = base

    @task.io
    async def get(self, path: str) -> bytes:
        return f"{self.base}{path}".encode()

    @task.cpu(retries=1)
    def parse(self, raw: bytes) -> Table:
        return Table(list(raw))


async def methods(client: Client) -> None:
    assert_type(client.get("/x"), bytes)
    assert_type(client.parse(client.get("/x")), Table)
    assert_type(client.get.options(retries=3)("/x"), bytes)
    assert_type(await client.get.fn("/x"), bytes)
    assert_type(Client.get(client, "/x"), bytes)
    assert_type(client.get.bind("/x"), Call[bytes])
    client.get(3)  # E:
    client.get("/x", "/y")  # E:
    client.parse("text")  # E:


# ── workflows ─────────────────────────────────────────────────────────────────────────────────────────────────────


@workflow
def etl(urls: list[str], strict: bool = True) -> float:
    return measure(merge([parse(fetch(u)) for u in urls]), strict=strict)


@workflow(name="nightly", on_failure="fail_fast")
def plain(check: int) -> dict[str, Table]:
    return {"one": parse(read(str(check)))}


@workflow
def wrong(urls: list[str]) -> float:
    return merge([parse(fetch(u)) for u in urls])  # E:


def definitions() -> None:
    assert_type(etl.bind(["u"]), Bound[float])
    assert_type(etl.bind(urls=["u"], strict=False), Bound[float])
    assert_type(plain.bind(check=3), Bound[dict[str, Table]])
    assert_type(etl.fn(["u"]), float)
    wanted: WorkflowDefinition[..., float] = etl
    also: Bound[object] = wanted.bind(["u"])
    print(also.name)
    etl.bind(["u"], check=False)  # E:
    etl.bind("u")  # E:
    etl.bind()  # E:
    workflow(name=3)  # E:
    workflow(on_failure="stop")  # E:
    workflow(nmae="x")  # E:


# ── over many items ───────────────────────────────────────────────────────────────────────────────────────────────


@task.cpu
def is_good(x: int) -> bool:
    return x > 0


@task.cpu
def add(a: int, b: float, *, k: int = 0) -> float:
    return a + b + k


@task.cpu
def largest(numbers: Sequence[int], floor: int = 0) -> int:
    return max(*numbers, floor)


@task.cpu
def grow(x: int, by: int = 1) -> int:
    return x + by


def maps(client: Client, by_region: dict[str, str], numbers: list[int]) -> None:
    pages = fetch.map(["u"], timeout=3)
    assert_type(pages, list[bytes])
    assert_type(parse.map(pages), list[Table])
    assert_type(measure.map(parse.map(pages), strict=True), list[float])
    assert_type(fetch.map(by_region), dict[str, bytes])
    assert_type(fetch.map({1: "u"}, 3.0), dict[int, bytes])
    assert_type(head.options(in_flight=3, enough=1, cancel_rest=False).map(iter(["u"])), list[int])
    assert_type(client.get.map(["/x"]), list[bytes])
    assert_type(is_good.filter(numbers), list[int])
    assert_type(is_good.filter({"a": 1}), dict[str, int])
    assert_type(add.starmap(zipped(numbers, [0.5])), list[float])
    assert_type(zipped(pages, numbers, [0.5]), list[tuple[bytes, int, float]])
    assert_type(product(pages, numbers), list[tuple[bytes, int]])
    assert_type(largest.reduce(numbers), int)
    assert_type(largest.reduce(head.map(["u"]), fan_in=8), int)
    assert_type(flatten([numbers, numbers]), list[int])
    assert_type(etl.map([["u"]], strict=False), list[float])
    assert_type(head.options(batch=64).map(["u"]), list[int])
    assert_type(etl.options(in_flight=2).map({"a": ["u"]}), dict[str, float])
    assert_type(etl.starmap([(["u"], True)]), list[float])


def wrong_maps(client: Client, numbers: list[int]) -> None:
    fetch.map([3])  # E:
    fetch.map(numbers)  # E:
    fetch.map(3)  # E:
    fetch.map(url=["u"])  # E:
    fetch.map(["u"], tiemout=3)  # E:
    fetch.map(["u"], "v")  # E:
    parse.map(numbers)  # E:
    parse.map(fetch("u"))  # E:
    client.get.map([3])  # E:
    is_good.filter(["u"])  # E:
    add.starmap(numbers)  # E:
    add.starmap([(1, 2.0)], 3)  # E:
    largest.reduce(["u"])  # E:
    largest.reduce(numbers, fan_in="8")  # E:
    largest.reduce(numbers, 8)  # E:
    merge.reduce([fetch("u")])  # E:
    zipped(numbers, 3)  # E:
    flatten(numbers)  # E:
    etl.map(["u"], 3)  # E:
    etl.map([["u"]], loose=True)  # E:
    fetch.options(in_flight="3")  # E:
    fetch.options(in_flight="all")  # E:
    task.io(enough=3)  # E:


# ── choices ───────────────────────────────────────────────────────────────────────────────────────────────────────


def choices(numbers: list[int]) -> None:
    with when(is_good(3)) as good:
        a = fetch("u")
    with otherwise(good):
        b = fetch("v")
    assert_type(either(a, b), bytes)
    assert_type(either(a, 3, "x"), bytes | int | str)
    with switch(head("u")) as case:
        with case(1, 2):
            fetch("u")
        with case("x"):  # E:
            fetch("u")
        with case.default():
            fetch("v")
    with teardown(read.bind("p")):
        fetch("u")
    otherwise(is_good(3))  # E:
    teardown(read("p"))  # E:
    either(a)
    fetch.options(trigger="all_done", may_fail=True, priority=3)("u")
    fetch.options(trigger="all_dnoe")  # E:
    fetch.options(join="1")  # E:
    assert_type(grow.repeat_until(is_good, 3, limit=10), int)
    grow.repeat_until(is_good, 3, 10)  # E:
    print(numbers)


def wrong_loops() -> None:
    grow.repeat_until(is_good, "x", limit=10)  # E:


def wrong_tests() -> None:
    grow.repeat_until(parse, 3, limit=10)  # E:


# ── work inside work ──────────────────────────────────────────────────────────────────────────────────────────────


@task.io
def perhaps(x: int) -> int | Call[int]:
    return x or head.bind("u")


@task.io
async def recursive(x: int) -> int | Call[int] | Bound[int]:
    return recursive.bind(x - 1) if x else 0


@task.cpu
def always(x: int) -> Call[float]:
    return add.bind(x, 2.0)


@task.cpu
def sometimes(x: list[str]) -> float | Bound[float]:
    return etl.bind(x) if x else 0.0


def inside() -> None:
    assert_type(etl(["u"]), float)
    assert_type(etl.options(name="eu", on_failure="fail_fast", retries=2)(urls=["u"], strict=False), float)
    assert_type(plain(3), dict[str, Table])
    assert_type(perhaps(3), int)
    assert_type(recursive(3), int)
    assert_type(always(3), float)
    assert_type(sometimes(["u"]), float)
    etl("u")  # E:
    etl(["u"], check=False)  # E:
    etl.options(retires=2)  # E:
    etl.options(cores=2)  # E:
    measure(etl(["u"]))  # E:


def limits() -> None:
    api = Limit("api", 8, rate="50/s", burst=10, shared=False)
    fetch.options(limits=[api, "disk"])
    fetch.options(limits={"api": 2})
    parse.options(cores=4, memory="2 GB")
    fetch.options(limits=3)  # E:
    fetch.options(memory=2.5)  # E:
    Limit(3)  # E:
    Limit("api", rate=3)  # E:
    workflow(max_failures="10%", deadline=3600, retry_budget=100)
    workflow(deadline="1h")  # E:
    RetryPolicy(when=lambda error: "busy" in str(error))
    RetryPolicy(when=lambda: True)  # E:


# ── graphs built by programs ──────────────────────────────────────────────────────────────────────────────────────


def programs() -> None:
    wf = Workflow("nightly", on_failure="fail_fast")
    a = wf.add(fetch.bind("u"), name="fetch-a")
    assert_type(a, bytes)
    b = wf.add(parse.bind(a), after=[a, "fetch-b"])
    assert_type(b, Table)
    wf.order("x", b)
    assert_type(wf.returns(b), Bound[Table])
    assert_type(wf.returns([b, b]), Bound[list[Table]])
    assert_type(parse.bind(a), Call[Table])
    assert_type(Workflow.from_graph(object(), {"a": fetch.bind("u")}), Workflow)
    wf.add(parse.bind("text"))  # E:
    wf.add(parse.bind(b))  # E:
    wf.add(parse)  # E:
    wf.add(parse.bind(a), nmae="x")  # E:
    fetch.bind(url=3)  # E:
    Workflow("x", on_failure="stop")  # E:


def variables(one: Callable[[str], Coroutine[None, None, bytes]]) -> None:
    assert_type(task.io(one)("u"), bytes)
    assert_type(task.io(retries=2)(one)("u"), bytes)
