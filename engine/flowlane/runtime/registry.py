"""Plug-ins by name. Executors: which exist, what they can do, and one instance of each, made on first use.

Four sources, the first that knows a name wins: instances given to the Engine, the static table of what ships with
flowlane, entry points of installed packages (group ``flowlane.executors``). The table is static because a scan of
entry points costs about 0.1 s cold; a scan happens only for a name that nothing else knows, and to list all names.
`flowlane` never imports its plug-ins statically: a table of ``"module:attribute"`` keeps workers and hosts light.

A Registry belongs to one Engine and is used on one thread. Making an executor must be cheap and start nothing: its
``open`` does that.

Stores (group ``flowlane.stores``) are found in the same way by `make_store`, which makes a new one each time; sinks are only
those of the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowlane.errors import FlowError, RouteError, SettingsError, with_article

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowlane.runtime.ports import Capabilities, Executor, Sink
    from flowlane.storage.port import Store

__all__ = ["BUILTIN", "EXTRAS", "GROUP", "SINKS", "STORES", "STORE_GROUP", "Registry", "make_sink", "make_store"]

GROUP: Final = "flowlane.executors"
STORE_GROUP: Final = "flowlane.stores"

#: What ships with flowlane; the same lines stand in pyproject.toml as entry points, and a test holds them equal.
BUILTIN: Final[Mapping[str, str]] = {
    "asyncio": "flowlane_plugins.executors.asyncio_:AsyncioExecutor",
    "dask": "flowlane_plugins.executors.dask:DaskExecutor",
    "futures": "flowlane_plugins.executors.futures:FuturesExecutor",
    "inline": "flowlane_plugins.executors.inline:InlineExecutor",
    "processes": "flowlane_plugins.executors.processes:ProcessesExecutor",
    "ray": "flowlane_plugins.executors.ray:RayExecutor",
    "threads": "flowlane_plugins.executors.threads:ThreadsExecutor",
}

#: Those of them that stand on a package which does not come with flowlane: name → the package. The extra has the executor's name.
EXTRAS: Final[Mapping[str, str]] = {"dask": "distributed", "ray": "ray"}

#: The sinks that the command line uses, found in the same way.
SINKS: Final[Mapping[str, str]] = {
    "console": "flowlane_plugins.sinks.console:ConsoleSink",
    "logging": "flowlane_plugins.sinks.structured:LoggingSink",
    "jsonl": "flowlane_plugins.sinks.structured:JsonLinesSink",
    "progress": "flowlane_plugins.sinks.progress:ProgressSink",
}

#: The stores that ship with flowlane; in pyproject.toml too, as the executors are.
STORES: Final[Mapping[str, str]] = {
    "memory": "flowlane_plugins.stores.memory:MemoryStore",
    "sqlite": "flowlane_plugins.stores.sqlite:SqliteStore",
}


class Registry:
    """Executor name → executor. `executors` are instances by name; `options` are constructor keywords by name."""

    def __init__(
        self,
        executors: Mapping[str, Executor] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._instances: dict[str, Executor] = dict(executors or {})
        self._given = frozenset(self._instances)
        self._options: dict[str, Mapping[str, Any]] = {
            name: dict(keywords) for name, keywords in (options or {}).items()
        }
        self._scanned: dict[str, list[str]] | None = None

    def capabilities(self, name: str) -> Capabilities:
        """What executor `name` can do. Raises RouteError for an unknown name, SettingsError as :meth:`get` does."""
        return self.get(name).capabilities

    def get(self, name: str) -> Executor:
        """The executor called `name`, made on first use with its options as keywords, then always the same.

        Raises RouteError when nothing of that name is installed or it does not import, SettingsError when its options
        do not fit or its constructor refuses them.
        """
        executor = self._instances.get(name)
        if executor is None:
            executor = self._instances[name] = self._make(name)
        return executor

    def install(self, name: str) -> str | None:
        """The command that installs what executor `name` lacks; None where it lacks nothing. Imports nothing."""
        from importlib.util import find_spec

        package = None if name in self._instances else EXTRAS.get(name)
        if package is None or find_spec(package) is not None:
            return None
        return f"pip install 'flowlane[{name}]'"

    def check(self, name: str) -> None:
        """Raise RouteError unless something called `name` is installed. Imports and makes nothing."""
        if name not in self._instances:
            self._target(name)

    def names(self) -> tuple[str, ...]:
        """All names in alphabetical order: given, built in and installed. Scans entry points once."""
        return tuple(sorted({*self._instances, *BUILTIN, *self._entry_points()}))

    def origin(self, name: str) -> str:
        """Where `name` comes from: ``"given"``, ``"built in"``, or the ``module:attribute`` of its entry point."""
        if name in self._given:
            return "given"
        if name in BUILTIN:
            return "built in"
        return self._target(name)

    def _make(self, name: str) -> Executor:
        target = self._target(name)
        install = self.install(name)
        if install is not None:
            raise RouteError(
                f"executor '{name}' needs the package '{EXTRAS[name]}', which is not installed", hint=install
            )
        try:
            factory = load_attribute(target)
        except ImportError as error:
            raise RouteError(
                f"executor '{name}' cannot be loaded from {target}: {error}",
                hint="is everything that it needs installed in this environment?",
            ) from error
        hint = f"set it under [tool.flow.executors.{name}], or give an instance: Engine(executors={{'{name}': ...}})"
        executor: Any = _call(f"executor '{name}'", factory, self._options.get(name, {}), hint)
        from flowlane.runtime.ports import Executor

        if not isinstance(executor, Executor):
            raise RouteError(
                f"executor '{name}' ({target}) made {with_article(type(executor).__name__)}, which is not an executor",
                hint="it needs capabilities, open, submit, interrupt and close (flowlane.runtime.ports.Executor)",
            )
        return executor

    def _target(self, name: str) -> str:
        builtin = BUILTIN.get(name)
        if builtin is not None:
            return builtin
        found = self._entry_points().get(name)
        if found is None:
            raise self._unknown(name)
        if len(found) > 1:
            raise RouteError(
                f"executor '{name}' is provided by several installed packages: {', '.join(found)}",
                hint="uninstall all but one, or give the instance: Engine(executors={...})",
            )
        return found[0]

    def _entry_points(self) -> dict[str, list[str]]:
        if self._scanned is None:
            self._scanned = _scan(GROUP)
        return self._scanned

    def _unknown(self, name: str) -> RouteError:
        names = self.names()
        return RouteError(
            f"there is no executor '{name}'; known: {', '.join(names)}",
            hint=_did_you_mean(name, names) or "`flow executors` lists what there is",
        )


def make_sink(name: str, /, *args: Any, **kwargs: Any) -> Sink:
    """A new sink of `SINKS`, made with these arguments. Raises KeyError for another name."""
    sink: Sink = load_attribute(SINKS[name])(*args, **kwargs)
    return sink


def make_store(name: str, /, **options: Any) -> Store:
    """A new store, not opened yet, made with `options` as keywords.

    Raises SettingsError when nothing of that name is installed, it does not import, or its options do not fit.
    """
    target = STORES.get(name)
    if target is None:
        installed = _scan(STORE_GROUP)
        found = installed.get(name, [])
        if len(found) > 1:
            raise SettingsError(
                f"store '{name}' is provided by several installed packages: {', '.join(found)}",
                hint="uninstall all but one, or give the instance: Engine(store=...)",
            )
        if not found:
            names = sorted({*STORES, *installed})
            raise SettingsError(
                f"there is no store '{name}'; installed: {', '.join(names)}", hint=_did_you_mean(name, names)
            )
        target = found[0]
    try:
        factory = load_attribute(target)
    except ImportError as error:
        raise SettingsError(
            f"store '{name}' cannot be loaded from {target}: {error}",
            hint="is everything that it needs installed in this environment?",
        ) from error
    made: Any = _call(f"store '{name}'", factory, options, "give it, or an instance: Engine(store=...)")
    if not _is_store(made):
        raise SettingsError(
            f"store '{name}' ({target}) made {with_article(type(made).__name__)}, which is not a store",
            hint="it needs what flowlane.storage.port.Store has",
        )
    store: Store = made
    return store


def _is_store(made: object) -> bool:
    """Whether it has what the port has. `isinstance` asks its properties before 3.12, and `secret` may make a file."""
    import inspect

    from flowlane.storage.port import Store

    members = [name for name in vars(Store) if not name.startswith("_")]
    return all(inspect.getattr_static(made, name, None) is not None for name in members)


def load_attribute(target: str) -> Callable[..., Any]:
    """Import ``"module:attribute"``. Raises ImportError when either is missing."""
    from importlib import import_module

    module, _, attribute = target.partition(":")
    found: Any = import_module(module)
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ImportError(f"module '{module}' has no '{attribute}'") from error
    return found  # type: ignore[no-any-return]


def _scan(group: str) -> dict[str, list[str]]:
    """Name → targets of the entry points of installed packages."""
    from importlib.metadata import entry_points

    found: dict[str, list[str]] = {}
    for point in entry_points(group=group):
        targets = found.setdefault(point.name, [])
        if point.value not in targets:  # one package seen twice on the path is no ambiguity
            targets.append(point.value)
    return found


def _did_you_mean(name: str, known: Sequence[str]) -> str | None:
    import difflib

    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean '{close[0]}'?" if close else None


def _call(what: str, factory: Callable[..., Any], options: Mapping[str, Any], hint: str) -> object:
    """`factory` with `options`; `what` it is and the `hint` for a missing option, for people."""
    _check_options(what, factory, options, hint)
    try:
        return factory(**options)
    except FlowError:
        raise
    except Exception as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
        raise SettingsError(f"{what} refuses {shown}: {type(error).__name__}: {error}") from error


def _check_options(what: str, factory: Callable[..., Any], options: Mapping[str, Any], hint: str) -> None:
    """Tell an unknown or missing option by name before calling, where the signature can be read."""
    import inspect

    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a callable written in C
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        known = None
    else:
        known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for option in options if known is not None else ():
        if option not in (known or ()):
            raise SettingsError(
                f"{what} has no option '{option}'; its options: {', '.join(known or ()) or 'none'}",
                hint=_did_you_mean(option, known or ()),
            )
    missing = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    missing = [option for option in missing if option not in options]
    if missing:
        raise SettingsError(f"{what} needs option '{missing[0]}'", hint=hint)
