"""Types of run, arun and Engine. Checked by mypy and pyright, never run; see test_types.py."""

from __future__ import annotations

from typing import Any, assert_type

from flowlane import Engine, RunHandle, RunResult, Workflow, arun, run, task, workflow


@task.io
async def fetch(url: str) -> bytes:
    return url.encode()


@task.cpu
def count(raw: bytes) -> int:
    return len(raw)


@workflow
def etl(urls: list[str], check: int = 0) -> list[int]:
    return [count(fetch(u)) for u in urls[check:]]


def sync() -> None:
    assert_type(run(etl, urls=["u"]), RunResult[list[int]])
    assert_type(run(etl, ["u"], check=1), RunResult[list[int]])  # a parameter of the workflow, not ours
    assert_type(run(etl, ["u"]).value, list[int])
    assert_type(run(etl.bind(["u"]), check=False, routes={"cpu": "threads"}), RunResult[list[int]])
    run(etl, urls="u")  # E:
    run(etl)  # E:
    run(etl, ["u"], routes={"cpu": "threads"})  # E:
    run(etl.bind(["u"]), chekc=False)  # E:
    run(etl.bind(["u"]), check="no")  # E:
    assert_type(run(etl.bind(["u"]), store="flow.db", key="k"), RunResult[list[int]])
    run(fetch, "u")  # E:
    run(etl.fn)  # E:


def programs() -> None:
    wf = Workflow("nightly")
    a = wf.add(fetch.bind("u"))
    assert_type(run(wf.returns(a)), RunResult[bytes])
    assert_type(run(wf, check=False), RunResult[dict[str, Any]])


async def embedded() -> None:
    assert_type(await arun(etl, urls=["u"]), RunResult[list[int]])
    async with Engine(routes={"cpu": "processes"}, slots={"asyncio": 8}) as engine:
        handle = engine.start(etl, urls=["u"])
        assert_type(handle, RunHandle[list[int]])
        assert_type(await handle, RunResult[list[int]])
        assert_type((await handle).value, list[int])
        engine.start(etl, urls=3)  # E:
        assert_type(engine.start(etl.bind(["u"]), key="k"), RunHandle[list[int]])
        engine.start(etl.bind(["u"]), key=None)
        engine.start(etl.bind(["u"]), key=7)  # E:
        engine.start(etl, ["u"], key="k")  # E:
        engine.compile(etl.bind(["u"]), key="k")  # E:
        assert_type(engine.runs, dict[str, RunHandle[Any]])
        assert_type(engine.store.find("k").id, str)
