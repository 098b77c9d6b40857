"""Executors by name: the static table, instances, entry points, options, and what is said when nothing fits."""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.errors import RouteError, SettingsError
from flowlane.runtime import registry
from flowlane.runtime.ports import Capabilities, Executor
from flowlane.runtime.registry import (
    BUILTIN,
    GROUP,
    SINKS,
    STORE_GROUP,
    STORES,
    Registry,
    load_attribute,
    make_sink,
    make_store,
)
from flowlane.storage.port import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parents[2]


class Fake:
    """A minimal executor."""

    made = 0

    def __init__(self, size: int = 1, *, label: str = "") -> None:
        if size < 1:
            raise ValueError("size must be at least 1")
        type(self).made += 1
        self.size = size
        self.label = label

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(accepts=frozenset({"sync"}), default_slots=self.size)

    async def open(self, deliver: Callable[[Sequence[Any]], None]) -> None: ...
    def submit(self, jobs: Sequence[Any]) -> None: ...
    def interrupt(self, refs: Sequence[int], grace: float) -> None: ...
    async def close(self, grace: float) -> None: ...


class Strict(Fake):
    """One with an option that must be given."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address


def no_executor() -> object:
    return object()


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> list[importlib.metadata.EntryPoint]:
    """Entry points that tests install by appending to this list; `scans` counts how often they are looked at."""
    installed: list[importlib.metadata.EntryPoint] = []
    module = ModuleType("plugin_of_test")
    module.__dict__.update(Fake=Fake, Strict=Strict, no_executor=no_executor, scans=0)
    monkeypatch.setitem(sys.modules, "plugin_of_test", module)

    def entry_points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        assert group in (GROUP, STORE_GROUP)
        module.__dict__["scans"] += 1
        return [point for point in installed if point.group == group]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return installed


def install(plugins: list[importlib.metadata.EntryPoint], name: str, attribute: str, group: str = GROUP) -> None:
    plugins.append(importlib.metadata.EntryPoint(name, f"plugin_of_test:{attribute}", group))


def scans() -> int:
    count: int = sys.modules["plugin_of_test"].__dict__["scans"]
    return count


def test_the_static_table_is_what_pyproject_declares() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        declared = tomllib.load(file)["project"]["entry-points"]
    assert declared == {GROUP: dict(BUILTIN), STORE_GROUP: dict(STORES)}


@pytest.mark.parametrize("target", [*BUILTIN.values(), *SINKS.values(), *STORES.values()])
def test_everything_in_the_tables_is_there(target: str) -> None:
    assert callable(load_attribute(target))


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("name", ["asyncio", "inline", "processes", "threads"])
def test_built_in_executors_need_no_options_and_no_scan(name: str) -> None:
    executors = Registry()
    assert isinstance(executors.get(name), Executor)
    assert executors.capabilities(name).default_slots >= 1
    assert executors.origin(name) == "built in"
    assert scans() == 0


def test_an_executor_is_made_once() -> None:
    executors = Registry()
    assert executors.get("threads") is executors.get("threads")
    assert Registry().get("threads") is not executors.get("threads")


def test_an_instance_wins_over_a_built_in_of_its_name() -> None:
    mine = Fake()
    executors = Registry({"threads": mine, "gpu": mine})
    assert executors.get("threads") is mine
    assert executors.get("gpu") is mine
    assert executors.origin("gpu") == "given"


def test_an_entry_point_is_found_by_one_scan_and_made_with_its_options(
    plugins: list[importlib.metadata.EntryPoint],
) -> None:
    install(plugins, "gpu", "Fake")
    executors = Registry(options={"gpu": {"size": 3, "label": "x"}})
    made: Any = executors.get("gpu")
    assert (made.size, made.label) == (3, "x")
    assert executors.origin("gpu") == "plugin_of_test:Fake"
    with pytest.raises(RouteError):
        executors.get("other")
    assert scans() == 1


def test_an_entry_point_cannot_replace_a_built_in(plugins: list[importlib.metadata.EntryPoint]) -> None:
    install(plugins, "threads", "Fake")
    assert not isinstance(Registry().get("threads"), Fake)


def test_names_are_all_names_in_order(plugins: list[importlib.metadata.EntryPoint]) -> None:
    install(plugins, "gpu", "Fake")
    assert Registry({"mine": Fake()}).names() == tuple(sorted({*BUILTIN, "gpu", "mine"}))


def test_checking_makes_nothing(plugins: list[importlib.metadata.EntryPoint], monkeypatch: pytest.MonkeyPatch) -> None:
    install(plugins, "gpu", "Fake")
    monkeypatch.setattr(Fake, "made", 0)
    executors = Registry()
    executors.check("gpu")
    executors.check("threads")
    assert Fake.made == 0


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("ask", ["get", "capabilities", "check", "origin"])
def test_an_unknown_name_lists_what_is_installed(ask: str) -> None:
    with pytest.raises(RouteError) as caught:
        getattr(Registry(), ask)("thread")
    assert caught.value.message == f"there is no executor 'thread'; known: {', '.join(BUILTIN)}"
    assert caught.value.hint == "did you mean 'threads'?"
    with pytest.raises(RouteError) as caught:
        getattr(Registry(), ask)("kubernetes")
    assert "did you mean" not in (caught.value.hint or "")


def test_two_packages_with_one_name_are_refused_and_the_same_one_twice_is_not(
    plugins: list[importlib.metadata.EntryPoint],
) -> None:
    install(plugins, "gpu", "Fake")
    install(plugins, "gpu", "Fake")
    assert isinstance(Registry().get("gpu"), Fake)
    install(plugins, "gpu", "Strict")
    with pytest.raises(RouteError, match="several installed packages"):
        Registry().get("gpu")


@pytest.mark.parametrize(
    ("attribute", "options", "error", "message"),
    [
        ("Fake", {"sise": 2}, SettingsError, "executor 'gpu' has no option 'sise'; its options: size, label"),
        ("Fake", {"size": 0}, SettingsError, "executor 'gpu' refuses size=0: ValueError: size must be at least 1"),
        ("Strict", {}, SettingsError, "executor 'gpu' needs option 'address'"),
        ("no_executor", {}, RouteError, "made an object, which is not an executor"),
        ("Missing", {}, RouteError, "module 'plugin_of_test' has no 'Missing'"),
    ],
)
def test_what_is_wrong_with_an_executor_is_said_by_name(
    plugins: list[importlib.metadata.EntryPoint],
    attribute: str,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    install(plugins, "gpu", attribute)
    with pytest.raises(error) as caught:
        Registry(options={"gpu": options}).get("gpu")
    assert message in str(caught.value)


def test_a_plugin_whose_module_is_missing_is_named(plugins: list[importlib.metadata.EntryPoint]) -> None:
    plugins.append(importlib.metadata.EntryPoint("gpu", "no_such_module_x:Fake", GROUP))
    with pytest.raises(RouteError, match="executor 'gpu' cannot be loaded from no_such_module_x:Fake"):
        Registry().get("gpu")


def test_a_sink_is_made_with_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []

    def load(target: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: made.append((target, args, kwargs))

    monkeypatch.setattr(registry, "load_attribute", load)
    make_sink("jsonl", "path", x=1)
    assert made == [(SINKS["jsonl"], ("path",), {"x": 1})]
    with pytest.raises(KeyError):
        make_sink("nope")


# ── stores ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("plugins")
def test_a_built_in_store_needs_no_scan_and_is_made_anew_each_time(tmp_path: Path) -> None:
    stores = [make_store("memory"), make_store("memory"), make_store("sqlite", path=tmp_path / "x" / "flow.db")]
    assert all(isinstance(store, Store) for store in stores)
    assert stores[0] is not stores[1]
    assert list(tmp_path.iterdir()) == []  # not opened
    assert scans() == 0


def test_a_store_is_found_by_its_entry_point(plugins: list[importlib.metadata.EntryPoint]) -> None:
    from flowlane_plugins.stores.memory import MemoryStore

    sys.modules["plugin_of_test"].__dict__["Mine"] = MemoryStore
    install(plugins, "mine", "Mine", STORE_GROUP)
    install(plugins, "mine", "Mine", GROUP)
    assert isinstance(make_store("mine", secret=bytes(32)), MemoryStore)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "sqlit",
            {},
            "there is no store 'sqlit'; installed: memory, mine, sqlite, twice\n  hint: did you mean 'sqlite'?",
        ),
        ("sqlite", {}, "store 'sqlite' needs option 'path'"),
        ("sqlite", {"pat": "x"}, "store 'sqlite' has no option 'pat'; its options: path, durability, secret"),
        ("sqlite", {"path": "x", "secret": b"short"}, "ValueError: a secret has at least 32 bytes"),
        ("mine", {}, "made an object, which is not a store"),
        ("twice", {}, "store 'twice' is provided by several installed packages"),
    ],
)
def test_what_is_wrong_with_a_store_is_said_by_name(
    plugins: list[importlib.metadata.EntryPoint], name: str, options: dict[str, Any], message: str
) -> None:
    install(plugins, "mine", "no_executor", STORE_GROUP)
    install(plugins, "twice", "Fake", STORE_GROUP)
    install(plugins, "twice", "Strict", STORE_GROUP)
    with pytest.raises(SettingsError) as caught:
        make_store(name, **options)
    assert message in str(caught.value)


def test_a_store_whose_module_is_missing_is_named(plugins: list[importlib.metadata.EntryPoint]) -> None:
    plugins.append(importlib.metadata.EntryPoint("mine", "no_such_module_x:Store", STORE_GROUP))
    with pytest.raises(SettingsError, match="store 'mine' cannot be loaded from no_such_module_x:Store"):
        make_store("mine")
