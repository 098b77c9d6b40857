"""@task: decorating, options, arguments, what cannot be a task, methods, travelling."""

from __future__ import annotations

import datetime
import functools
import pickle
import sys
import types
from typing import Any

import pytest

from flowlane.declare.cache import Cache
from flowlane.declare.shape import Shape
from flowlane.declare.spec import RetryPolicy, TaskSpec
from flowlane.declare.task import Call, Task, task
from flowlane.declare.workflow import Workflow, workflow
from flowlane.errors import ArgumentError, DefinitionError

from .sample import compiled, fetch, parse

HERE = "test_tasks.py:"


def line() -> int:
    """The caller's line."""
    return sys._getframe(1).f_lineno  # pyright: ignore[reportPrivateUsage]


# ── decorating ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_looks_like_its_function() -> None:
    assert (fetch.name, fetch.kind, fetch.is_async) == ("fetch", "io", True)
    assert (parse.name, parse.kind, parse.is_async) == ("parse", "cpu", False)
    assert fetch.__name__ == "fetch"
    assert fetch.__doc__ == "Fetch one."
    assert fetch.__module__ == fetch.fn.__module__
    assert fetch.where is not None
    assert "sample.py:" in fetch.where
    assert parse.fn(b"abc") == 3


async def test_the_async_function_itself() -> None:
    assert await fetch.fn("u") == b"u"


def test_decorating_imports_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys\nfrom flowlane import task, workflow\n"
        "@task.io(retries=3, timeout=1.5)\nasync def f(x: int) -> int: return x\n"
        "@workflow(name='n')\ndef w(x: int) -> int: return f(x)\n"
        "heavy = {'pydantic', 'networkx', 'structlog', 'rich', 'click', 'asyncio', 'cloudpickle'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_lambdas_and_builtins() -> None:
    assert task.io(lambda x: x).name == "lambda"  # pyright: ignore[reportUnknownLambdaType, reportUnknownVariableType]
    assert task.cpu(len).name == "len"
    assert task.cpu(len).where is None


def test_a_name_of_its_own() -> None:
    named = task.io(name="load page")(lambda: 1)
    wf = Workflow("w")
    wf.add(named.bind())
    wf.add(named.bind())
    assert list(wf.names) == ["load page", "load page#2"]


async def coroutine() -> None: ...


def generator() -> Any:
    yield 1


async def async_generator() -> Any:
    yield 1


class Klass:
    pass


REFUSED: list[tuple[str, Any, str]] = [
    ("cpu", coroutine, "cpu task 'coroutine' is an async def"),
    ("io", generator, "generator function"),
    ("cpu", async_generator, "generator function"),
    ("io", Klass, "class 'Klass' cannot be a task"),
    ("io", functools.partial(print), "no name"),
    ("cpu", Klass(), "takes either the function or options"),
    ("io", 3, "takes either the function or options"),
    ("io", "name", "takes either the function or options"),
    ("io", staticmethod(generator), "swap them"),
    ("io", classmethod(generator), "swap them"),
    ("io", fetch, "is a task already"),
]


@pytest.mark.parametrize(("kind", "fn", "words"), REFUSED, ids=[f"{kind}-{words}" for kind, _, words in REFUSED])
def test_what_cannot_be_a_task(kind: str, fn: Any, words: str) -> None:
    with pytest.raises(DefinitionError, match=words) as caught:
        getattr(task, kind)(fn)
    assert caught.value.where is not None
    assert HERE in caught.value.where


def test_the_async_cpu_error_points_at_the_function() -> None:
    with pytest.raises(DefinitionError) as caught:
        task.cpu(coroutine)
    assert caught.value.where is not None
    assert caught.value.where.endswith(f":{coroutine.__code__.co_firstlineno}")
    assert "@task.io" in (caught.value.hint or "")


def test_task_alone_says_what_to_write() -> None:
    with pytest.raises(DefinitionError, match="@task alone") as caught:
        task(coroutine)  # type: ignore[operator]  # pyright: ignore[reportCallIssue]
    assert "@task.cpu" in (caught.value.hint or "")


# ── options ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_unknown_options_are_told_at_once() -> None:
    with pytest.raises(DefinitionError, match="no option 'retires'") as caught:
        task.io(retires=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    assert caught.value.hint == "did you mean 'retries'?"
    assert caught.value.where is not None
    assert caught.value.where.endswith(f"{HERE}{line() - 3}")
    with pytest.raises(DefinitionError, match=r"fetch\.options\(\) has no option 'time_out'") as caught:
        fetch.options(time_out=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert caught.value.hint == "did you mean 'timeout'?"


def test_after_belongs_to_a_call() -> None:
    with pytest.raises(DefinitionError, match="belongs to a call"):
        task.cpu(after=[1])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def test_positional_options_are_refused() -> None:
    with pytest.raises(DefinitionError, match="by keyword"):
        task.io(coroutine, 3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def test_options_do_not_change_the_task() -> None:
    many = fetch.options(retries=5, timeout=3)
    assert many is not fetch
    assert fetch.bind("u").options == {}
    assert many.bind("u").options == {"retries": 5, "timeout": 3}
    assert many.options(timeout=None).bind("u").options == {"retries": 5, "timeout": None}


def test_the_calls_word_on_retries_replaces_the_tasks() -> None:
    policy = RetryPolicy(attempts=2)
    assert fetch.options(retries=5).options(retry=policy).bind("u").options == {"retry": policy}
    assert fetch.options(retry=policy).options(retries=1).bind("u").options == {"retries": 1}


BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"retries": -1}, "retries=-1"),
    ({"retries": 255}, "less than or equal to 254"),
    ({"retries": True}, "retries=True"),
    ({"retries": "3"}, "retries='3'"),
    ({"timeout": 0}, "timeout=0"),
    ({"timeout": "10s"}, "timeout='10s'"),
    ({"timeout": float("inf")}, "timeout=inf"),
    ({"timeout": float("nan")}, "timeout=nan"),
    ({"total_timeout": -1}, "total_timeout=-1"),
    ({"executor": ""}, "executor=''"),
    ({"executor": 3}, "executor=3"),
    ({"retry": 3}, "retry=3"),
    ({"retries": 1, "retry": RetryPolicy()}, "both retries and retry"),
    ({"retries": [1]}, r"retries=\[1\]"),
    ({"cache": 1}, "cache=1: should be True, False or a Cache"),
    ({"cache": {"ttl": 3}}, "cache={'ttl': 3}: should be True, False or a Cache"),
    ({"cache": [1]}, r"cache=\[1\]: should be"),
    ({"at_most_once": 1}, "at_most_once=1"),
    ({"at_most_once": None}, "at_most_once=None"),
    ({"at_most_once": True, "retries": 1}, "both at_most_once and retries"),
    ({"at_most_once": True, "retry": RetryPolicy()}, "both at_most_once and retries"),
    ({"at_most_once": True, "cache": True}, "both at_most_once and cache"),
    ({"at_most_once": True, "cache": Cache(ttl=3)}, "both at_most_once and cache"),
    ({"persist": None}, "persist=None"),
    ({"persist": False, "cache": True}, "both persist=False and cache"),
    ({"persist": False, "at_most_once": True}, "both persist=False and at_most_once"),
]


@pytest.mark.parametrize(("options", "words"), BAD_VALUES, ids=[words for _, words in BAD_VALUES])
def test_option_values_are_checked_when_compiled(options: dict[str, Any], words: str) -> None:
    wf = Workflow("w")
    written = line() + 1
    wf.add(fetch.options(**options).bind("u"))
    with pytest.raises(DefinitionError, match=words) as caught:
        compiled(wf)
    assert "task 'fetch' has" in caught.value.message
    assert caught.value.where is not None
    assert caught.value.where.endswith(f"{HERE}{written}")


def test_at_most_once_goes_neither_with_retries_nor_with_a_cache() -> None:
    for given in ({"retries": 2}, {"cache": True}):
        with pytest.raises(DefinitionError) as caught:
            TaskSpec.of({"at_most_once": True, **given}, "pay", "etl.py:3")
        assert "leave one of them out" in (caught.value.hint or "")
        assert caught.value.where == "etl.py:3"
    with pytest.raises(DefinitionError) as caught:
        TaskSpec.of({"retries": -1}, "pay", None)
    assert caught.value.hint is None
    # what comes to the same as leaving it out
    for harmless in ({"retries": 0}, {"retry": RetryPolicy(attempts=1)}, {"cache": False}, {"cache": None}, {}):
        assert TaskSpec.of({"at_most_once": True, **harmless}, "pay", None).at_most_once
    assert not TaskSpec.of({"retries": 2, "cache": True, "at_most_once": False}, "pay", None).at_most_once


# ── cache ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_cache_may_be() -> None:
    given = Cache(ttl=60)
    for option, want in ((True, Cache()), (False, None), (None, None), (given, given)):
        assert TaskSpec.of({"cache": option}, "t", None).cache == want
    assert TaskSpec.of({}, "t", None).cache is None
    wf = Workflow("w")
    for _ in range(3):
        wf.add(fetch.options(cache=Cache(ttl=60), at_most_once=False).bind("u"))
    compiled(wf)
    assert len({id(settings.spec) for settings in wf.settings}) == 1


def test_how_long_and_which_version() -> None:
    assert (Cache().ttl, Cache().version) == (None, "")
    assert Cache(ttl=90).ttl == 90.0
    assert Cache(ttl=datetime.timedelta(hours=1)).ttl == 3600.0
    assert Cache(version=2) == Cache(version="2")
    assert Cache(version=0).version == "0"
    assert len({Cache(), Cache(ttl=1), Cache(version=1), Cache(ttl=1.0)}) == 3
    with pytest.raises(ValueError, match="frozen"):
        Cache().ttl = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ttl": 0}, "ttl=0"),
        ({"ttl": -1}, "ttl=-1"),
        ({"ttl": datetime.timedelta(seconds=-1)}, "ttl=.*greater than 0"),
        ({"ttl": "1h"}, "ttl='1h'"),
        ({"ttl": True}, "ttl=True"),
        ({"ttl": float("inf")}, "ttl=inf"),
        ({"ttl": float("nan")}, "ttl=nan"),
        ({"version": None}, "version=None: should be a str or an int"),
        ({"version": True}, "version=True: should be a str or an int"),
        ({"version": 1.5}, "version=1.5: should be a str or an int"),
        ({"tll": 3}, "no field 'tll'"),
    ],
)
def test_bad_caches(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DefinitionError, match=words) as caught:
        Cache(**fields)
    assert caught.value.where is not None
    assert caught.value.where.endswith(f"{HERE}{line() - 2}")
    assert (caught.value.hint == "did you mean 'ttl'?") == ("tll" in fields)


def test_names_that_may_not_be() -> None:
    for name in ("", "a/b", "a#2", "a[0]", "a\nb", "a\x1b[31m", "\u202eabc", 3, None):
        with pytest.raises(DefinitionError, match="named") as caught:
            fetch.options(name=name)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert HERE in (caught.value.where or "")


# ── retry policies ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"attempts": 0}, "attempts=0"),
        ({"attempts": 256}, "attempts=256"),
        ({"attempts": 2.0}, "attempts=2.0"),
        ({"backoff": -1}, "backoff=-1"),
        ({"factor": 0.5}, "factor=0.5"),
        ({"max_delay": 0}, "max_delay=0"),
        ({"jitter": 1}, "jitter=1"),
        ({"on": (3,)}, "3 is not an exception class"),
        ({"on": "OSError"}, "'OSError' is not an exception class"),
        ({"on": (KeyboardInterrupt,)}, "KeyboardInterrupt is never retried"),
        ({"on": BaseException}, "BaseException is never retried"),
        ({"attemps": 3}, "no field 'attemps'"),
    ],
)
def test_bad_policies(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DefinitionError, match=words) as caught:
        RetryPolicy(**fields)
    assert caught.value.where is not None
    assert caught.value.where.endswith(f"{HERE}{line() - 2}")


def test_policies_become_nanoseconds() -> None:
    policy = RetryPolicy(attempts=4, backoff=0.5, factor=3, max_delay=30, jitter=True, on=(OSError,))
    wf = Workflow("w")
    wf.add(fetch.options(retry=policy, timeout=1.5, total_timeout=60).bind("u"))
    program = compiled(wf)
    (core,) = program.plan.policies
    assert (core.attempts, core.backoff, core.factor, core.max_delay) == (4, 500_000_000, 3, 30_000_000_000)
    assert (core.jitter, core.timeout, core.total_timeout) == (True, 1_500_000_000, 60_000_000_000)
    assert (core.retry_timeouts, core.retry_crashes) == (True, False)  # TimeoutError is an OSError
    assert program.retry_on == ((OSError,),)


def test_one_class_will_do_for_on() -> None:
    assert RetryPolicy(on=ValueError).on == (ValueError,)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_retries_is_short_for_a_policy() -> None:
    wf = Workflow("w")
    wf.add(fetch.options(retries=2).bind("u"))
    wf.add(fetch.options(retry=RetryPolicy(attempts=3)).bind("u"))
    wf.add(fetch.options(retry=RetryPolicy(attempts=1)).bind("u"))
    first, second, third = (program := compiled(wf)).plan.policy
    policies = program.plan.policies
    assert policies[first].attempts == policies[second].attempts == 3
    assert policies[first].retry_crashes and policies[first].retry_timeouts
    assert program.retry_on[first] == (Exception,)
    assert (policies[third].attempts, program.retry_on[third]) == (1, ())


def test_equal_options_share_one_spec() -> None:
    wf = Workflow("w")
    for i in range(5):
        wf.add(fetch.options(retries=2, name=f"n{i}").bind("u"))
    wf.add(parse.options(retries=2).bind(b""))
    program = compiled(wf)
    assert len({id(each.spec) for each in wf.settings}) == 2  # one a task
    assert len(program.plan.policies) == 1


# ── arguments ─────────────────────────────────────────────────────────────────────────────────────────────────────


def sig_none() -> None: ...
def sig_two(a: Any, b: Any = 0) -> None: ...
def sig_posonly(a: Any, /, b: Any) -> None: ...
def sig_kwonly(a: Any = 0, *, k: Any) -> None: ...
def sig_star(a: Any, *rest: Any) -> None: ...
def sig_kwargs(a: Any = 0, /, **more: Any) -> None: ...
def sig_all(a: Any, /, b: Any, c: Any = 0, *rest: Any, d: Any, e: Any = 0, **more: Any) -> None: ...


CALLS = [
    (args, dict.fromkeys(names, 0))
    for args in ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))
    for names in ((), ("a",), ("b",), ("k",), ("d",), ("a", "b"), ("b", "d"), ("b", "c", "d", "e"), ("d", "z"), ("z",))
]


@pytest.mark.parametrize("fn", [sig_none, sig_two, sig_posonly, sig_kwonly, sig_star, sig_kwargs, sig_all])
def test_the_fast_check_agrees_with_python(fn: Any) -> None:
    import inspect

    shape = Shape(inspect.signature(fn))
    for args, kwargs in CALLS:
        try:
            fn(*args, **kwargs)  # Signature.bind is wrong about f(a=0) for def f(a=0, /, **more)
        except TypeError:
            fits = False
        else:
            fits = True
        assert shape.fits(args, kwargs) is fits, (args, kwargs)


def test_arguments_that_do_not_fit() -> None:
    @workflow
    def w() -> None:
        fetch("u", tiemout=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    with pytest.raises(ArgumentError, match="task 'fetch': got an unexpected keyword argument 'tiemout'") as caught:
        w.bind().build()
    assert isinstance(caught.value, TypeError)
    assert caught.value.where is not None
    assert caught.value.where.endswith(f"{HERE}{line() - 6}")
    assert "did you mean 'timeout'?" in (caught.value.hint or "")
    assert "fetch(url: 'str', timeout: 'float' = 5.0)" in (caught.value.hint or "")


def test_an_option_among_the_arguments_is_told_apart() -> None:
    with pytest.raises(ArgumentError) as caught:
        fetch.bind("u", retries=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert caught.value.hint == "options go into fetch.options(retries=...)(...)"
    assert (caught.value.where or "").endswith(f"{HERE}{line() - 2}")


def test_a_parameter_may_be_named_like_an_option() -> None:
    @task.io
    def odd(name: str, timeout: int, after: str, retries: int, self: int = 0) -> str:
        return name

    wf = Workflow("w")
    wf.add(odd.bind(name="x", timeout=1, after="y", retries=2))
    assert wf.arguments[0].kwargs == {"name": "x", "timeout": 1, "after": "y", "retries": 2}


def test_a_wrapped_function_counts_by_its_own_signature() -> None:
    def plain(x: int) -> int:
        return x

    @functools.wraps(plain)
    def wrapper(*args: Any, **kwargs: Any) -> int:
        return plain(*args, **kwargs)

    with pytest.raises(ArgumentError, match="too many positional"):
        task.io(wrapper).bind(1, 2)


def test_a_call_outside_of_a_body() -> None:
    with pytest.raises(DefinitionError, match="task 'fetch' was called outside a workflow body") as caught:
        fetch("u")
    assert (caught.value.where or "").endswith(f"{HERE}{line() - 1}")
    assert "await fetch.fn(...)" in (caught.value.hint or "")
    assert "fetch.bind(...)" in (caught.value.hint or "")


def test_a_call_holds_what_was_bound() -> None:
    call = fetch.bind("u", timeout=2)
    assert isinstance(call, Call)
    assert (call.task, call.args, call.kwargs) == (fetch, ("u",), {"timeout": 2})
    assert "fetch" in repr(call)


# ── methods ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Client:
    def __init__(self, base: str) -> None:
        self.base = base

    @task.io
    def get(self, path: str) -> str:
        return self.base + path

    @staticmethod
    @task.io
    def static(x: int) -> int:
        return x


def test_methods_bind_their_instance() -> None:
    client = Client("http://")
    wf = Workflow("w")
    wf.add(client.get.bind("a"))
    wf.add(client.get.options(name="named").bind("b"))
    wf.add(Client.get.bind(client, "c"))
    wf.add(Client.static.bind(3))
    program = compiled(wf)
    assert [arguments.args for arguments in program.arguments] == [(client, "a"), (client, "b"), (client, "c"), (3,)]
    assert program.names == ("get", "named", "get#2", "static")
    assert len({target.fn for target in program.targets[:3]}) == 1
    assert client.get.fn("a") == "http://a"
    address = program.targets[0].address
    assert address is not None
    assert address.qualname == "Client.get"


def test_methods_tell_their_misuse_without_self() -> None:
    with pytest.raises(ArgumentError) as caught:
        Client("x").get.bind("a", "b")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert "get(path: 'str')" in (caught.value.hint or "")


# ── travelling ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_of_a_module_travels_by_name() -> None:
    payload = pickle.dumps(fetch)
    assert len(payload) < 400
    assert pickle.loads(payload) is fetch


def test_options_travel_with_a_task() -> None:
    copy = pickle.loads(pickle.dumps(fetch.options(retries=4, name="eu")))
    assert copy.bind("u").options == {"retries": 4}
    assert copy.label == "eu"
    assert copy.fn is fetch.fn


def test_a_local_task_travels_by_value() -> None:
    offset = 3

    @task.cpu(retries=2)
    def local(x: int) -> int:
        return x + offset if x else local.fn(1)

    copy = pickle.loads(pickle.dumps(local.options(timeout=2)))
    assert isinstance(copy, Task)
    assert copy.fn(4) == 7
    assert copy.fn(0) == 4  # it reaches itself
    assert copy.bind(1).options == {"retries": 2, "timeout": 2}


def test_a_function_under_its_own_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("a_module_of_functions")
    exec("def plain(x):\n    return x + 1\n", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    made = task.cpu(name="renamed")(module.plain)
    copy = pickle.loads(pickle.dumps(made))
    assert copy.fn is module.plain
    assert copy.name == "renamed"
    wf = Workflow("w")
    wf.add(made.bind(1))
    assert compiled(wf).targets[0].address is not None
