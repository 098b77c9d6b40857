"""Settings of the command line: defaults < ``[tool.flow]`` in pyproject.toml < ``FLOW_*`` variables < options.

Every value knows its *origin* ("pyproject.toml [tool.flow.slots]", "FLOW_ROUTES", "--slots"), so that an error can say
which of four places to change. Mappings (routes, slots, executor options) are merged key by key: the later source wins
for a key, other keys stay.

The pyproject.toml taken is the nearest one, from the working directory upwards, that has a ``[tool.flow]`` table::

    [tool.flow]
    log_format = "console"          # or "json"
    state_dir = ".flow"             # relative to this file
    routes = { cpu = "processes" }
    slots = { threads = 16 }
    [tool.flow.executors.threads]   # keywords for the executor's constructor
    name = "..."
    [tool.flow.executors.asyncio]
    slots = "adaptive"              # or { lowest = 4, highest = 256, start = 32 }

    FLOW_ROUTES=cpu=threads,io.sync=inline   FLOW_SLOTS=threads=16   FLOW_LOG_FORMAT=json   FLOW_STATE_DIR=/var/flow
    FLOW_EXECUTORS={"threads": {...}}

The library reads none of this: an Engine takes its arguments, and only ``cli`` calls :func:`load_settings`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar, cast

from flowlane.errors import SettingsError
from flowlane.loader import shown_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flowlane.declare.limits import Adaptive

__all__ = ["LOG_FORMATS", "Setting", "Settings", "load_settings", "parse_pair", "parse_slots"]

T = TypeVar("T")

LOG_FORMATS: Final = ("console", "json")
_FIELDS: Final = ("executors", "log_format", "routes", "slots", "state_dir")
_TABLES: Final = ("executors", "routes", "slots")
_OPTIONS: Final = {"routes": "--route", "slots": "--slots", "log_format": "--log-format", "state_dir": "--state-dir"}
_ENV: Final = {f"FLOW_{name.upper()}": name for name in _FIELDS}
_DEFAULT: Final = "default"


@dataclass(frozen=True, slots=True)
class Setting(Generic[T]):
    """A value and where it was set."""

    value: T
    origin: str


@dataclass(slots=True)
class Settings:
    """The merged settings.

    routes     route key → executor name, the engine's defaults (options of a task win over them)
    slots      executor name → number of tasks at a time, at least 1
    executors  executor name → option → value, keywords of its constructor; where slots adapt, the most there may be
    adaptive   executor name → an Adaptive, of those whose slots adapt, unless `slots` gives them a number
    state_dir  where runs are recorded, as given by the user or below the folder of pyproject.toml
    """

    routes: dict[str, Setting[str]] = field(default_factory=dict[str, Setting[str]])
    slots: dict[str, Setting[int]] = field(default_factory=dict[str, Setting[int]])
    executors: dict[str, dict[str, Setting[Any]]] = field(default_factory=dict[str, dict[str, Setting[Any]]])
    adaptive: dict[str, Setting[Adaptive]] = field(default_factory=dict[str, "Setting[Adaptive]"])
    log_format: Setting[str] = field(default_factory=lambda: Setting("console", _DEFAULT))
    state_dir: Setting[str] = field(default_factory=lambda: Setting(".flow", _DEFAULT))

    def route_values(self) -> dict[str, str]:
        """Routes without their origins."""
        return {key: setting.value for key, setting in self.routes.items()}

    def slot_values(self) -> dict[str, int]:
        """Slots without their origins."""
        return {key: setting.value for key, setting in self.slots.items()}

    def engine_slots(self) -> dict[str, int | Adaptive]:
        """Slots as an Engine takes them."""
        return {**{name: setting.value for name, setting in self.adaptive.items()}, **self.slot_values()}

    def executor_options(self) -> dict[str, dict[str, Any]]:
        """Constructor keywords by executor, without their origins."""
        return {
            name: {option: setting.value for option, setting in options.items()}
            for name, options in self.executors.items()
        }

    def executor_mentions(self) -> Iterable[tuple[str, str]]:
        """(executor name, origin) for every place that names an executor, in order, for checks of existence."""
        for setting in self.routes.values():
            yield setting.value, setting.origin
        for name, count in self.slots.items():
            yield name, count.origin
        for name, options in self.executors.items():
            for option in options.values():
                yield name, option.origin
                break


def load_settings(
    cli: Mapping[str, Any] | None = None,
    *,
    folder: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Merge all sources. `folder` (default: the working directory) is where the search for pyproject.toml begins.

    `cli` holds what the command line sets: ``routes`` and ``slots`` as mappings (values already parsed),
    ``log_format`` and ``state_dir`` as text; None and empty values mean "not given". Raises SettingsError naming the
    origin of what is wrong. Reads files; call it once.
    """
    settings = Settings()
    try:
        found = _find_pyproject(folder or os.getcwd())
    except FileNotFoundError:
        raise SettingsError("the current directory does not exist any more", hint="cd to one that does") from None
    if found is not None:
        path, table = found
        _apply_pyproject(settings, path, table)
    _apply_environ(settings, os.environ if environ is None else environ)
    for name, value in (cli or {}).items():
        if value is None or value == {}:
            continue
        _apply(settings, name, value, _OPTIONS[name], None)
    return settings


# ── sources ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _find_pyproject(folder: str) -> tuple[str, Mapping[str, Any]] | None:
    folder = os.path.abspath(folder)
    while True:
        path = os.path.join(folder, "pyproject.toml")
        table = _read_table(path)
        if table is not None:
            return path, table
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent


def _read_table(path: str) -> Mapping[str, Any] | None:
    """The ``[tool.flow]`` table of the file, or None. A file that never mentions it is not parsed at all."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:  # absent, or not ours to read: then it holds no settings for us
        return None
    if b"tool" not in content or b"flow" not in content:
        return None
    import tomllib

    shown = shown_path(path)
    try:
        document = tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{shown} is not UTF-8 text (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{shown} is not valid TOML: {error}") from None
    tool = document.get("tool")
    if not isinstance(tool, dict) or "flow" not in tool:
        return None
    table: object = cast("dict[str, object]", tool)["flow"]
    return _mapping(table, f"{shown} [tool.flow]", "tool.flow")


def _apply_pyproject(settings: Settings, path: str, table: Mapping[str, Any]) -> None:
    shown = shown_path(path)
    for name, value in table.items():
        if name not in _FIELDS:
            raise SettingsError(
                f"[tool.flow] has no setting '{name}'; there are: {', '.join(_FIELDS)}",
                where=shown,
                hint=_did_you_mean(name, _FIELDS),
            )
        origin = f"{shown} [tool.flow.{name}]" if name in _TABLES else f"{shown} [tool.flow]"
        _apply(settings, name, value, origin, os.path.dirname(path))


def _apply_environ(settings: Settings, environ: Mapping[str, str]) -> None:
    for variable in sorted(environ):
        if not variable.startswith("FLOW_"):
            continue
        name = _ENV.get(variable)
        if name is None:
            # Other software may own FLOW_HOME; only what looks like a slip of one of ours is refused.
            hint = _did_you_mean(variable, tuple(_ENV), 0.85)
            if hint is not None:
                raise SettingsError(f"the environment sets {variable}, which is no setting", hint=hint)
            continue
        text = environ[variable]
        if not text.strip():
            continue
        value: object = text
        if name == "executors":
            value = _json(text, variable)
        elif name in ("routes", "slots"):
            value = dict(parse_pair(pair, variable, "KEY=VALUE,KEY=VALUE") for pair in text.split(",") if pair.strip())
        if name == "slots":
            value = {key: parse_slots(key, count, variable) for key, count in cast("dict[str, str]", value).items()}
        _apply(settings, name, value, variable, None)


def _json(text: str, variable: str) -> object:
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        raise SettingsError(
            f"{variable} is not valid JSON: {error}", hint='for example {"threads": {"option": "value"}}'
        ) from None


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _apply(settings: Settings, name: str, value: object, origin: str, base: str | None) -> None:
    """Check one field's value from one source and merge it."""
    if name == "routes":
        for key, executor in _mapping(value, origin, name).items():
            settings.routes[key] = Setting(_text(executor, origin, f"route '{key}'"), origin)
    elif name == "slots":
        for key, count in _mapping(value, origin, name).items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                _refuse(f"slots of '{key}' must be a whole number of at least 1, not {count!r}", origin)
            settings.slots[key] = Setting(count, origin)
    elif name == "executors":
        for executor, options in _mapping(value, origin, name).items():
            where = f"{origin[:-1]}.{executor}]" if origin.endswith("]") else origin
            merged = settings.executors.setdefault(executor, {})
            for option, setting in _mapping(options, where, f"executors.{executor}").items():
                if option == "slots":
                    settings.adaptive.pop(executor, None)
                    if _adapts(setting):
                        adaptive = _adaptive(executor, setting, where)
                        settings.adaptive[executor] = Setting(adaptive, where)
                        merged[option] = Setting(adaptive.highest, where)
                        continue
                merged[option] = Setting(setting, where)
    elif name == "log_format":
        if value not in LOG_FORMATS:
            _refuse(f"log_format must be {' or '.join(LOG_FORMATS)}, not {value!r}", origin)
        settings.log_format = Setting(_text(value, origin, name), origin)
    elif name == "state_dir":
        path = os.path.expanduser(_text(value, origin, "state_dir"))
        settings.state_dir = Setting(os.path.join(base, path) if base is not None else path, origin)
    else:
        raise TypeError(f"no setting {name!r}")


def parse_pair(text: str, origin: str, form: str) -> tuple[str, str]:
    """Split ``key=value`` at the first ``=``; both stripped. Raises SettingsError naming `origin` and the `form`."""
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key or not value:
        _refuse(f"{text.strip()!r} is not of the form {form}", origin)
    return key, value


def parse_slots(executor: str, text: str, origin: str) -> int:
    """`text` as a number of slots. Raises SettingsError naming the executor and the origin."""
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        _refuse(f"slots of '{executor}' must be a whole number of at least 1, not '{text}'", origin)
    return count


def _adapts(slots: object) -> bool:
    """Whether these slots are to adapt: "adaptive", or a table of bounds."""
    return slots == "adaptive" or isinstance(slots, dict)


def _adaptive(executor: str, slots: Any, origin: str) -> Adaptive:
    """What such slots mean. Raises SettingsError."""
    from flowlane.declare.limits import Adaptive
    from flowlane.errors import DefinitionError

    bounds: dict[str, Any] = {} if slots == "adaptive" else slots
    names = ("lowest", "highest", "start")
    for name in bounds:
        if name not in names:
            _refuse(f"slots of '{executor}' have no '{name}'; there are: {', '.join(names)}", origin)
    try:
        return Adaptive(**bounds)
    except DefinitionError as error:
        raise SettingsError(f"slots of '{executor}': {error.message}", where=origin, hint=error.hint) from None


def _mapping(value: object, origin: str, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        _refuse(f"{name} must be a table, not {value!r}", origin)
    return cast("dict[str, Any]", value)


def _text(value: object, origin: str, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        _refuse(f"{name} must be text, not {value!r}", origin)
    return value.strip()


def _refuse(message: str, origin: str) -> NoReturn:
    raise SettingsError(message, where=origin)


def _did_you_mean(name: str, known: tuple[str, ...], cutoff: float = 0.6) -> str | None:
    import difflib

    close = difflib.get_close_matches(name, known, 1, cutoff)
    return f"did you mean {close[0]}?" if close else None
