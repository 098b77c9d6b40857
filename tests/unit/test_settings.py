"""Settings: four sources, merged key by key, and every value and every error names where it came from."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Adaptive
from flowlane.errors import SettingsError
from flowlane.settings import Setting, load_settings, parse_pair, parse_slots

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pyproject(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(textwrap.dedent(text), encoding="utf-8")


def test_defaults_say_that_they_are_defaults() -> None:
    settings = load_settings(environ={})
    assert settings.log_format == Setting("console", "default")
    assert settings.state_dir == Setting(".flow", "default")
    assert not settings.routes
    assert not settings.slots
    assert not settings.executors


def test_later_sources_win_key_by_key_and_every_value_knows_its_origin(tmp_path: Path) -> None:
    pyproject(
        tmp_path,
        """
        [tool.flow]
        log_format = "json"
        state_dir = "state"
        routes = { cpu = "threads", "io.sync" = "inline", io = "asyncio" }
        slots = { threads = 2, asyncio = 3 }
        [tool.flow.executors.threads]
        one = 1
        two = 2
        """,
    )
    environ = {
        "FLOW_ROUTES": "cpu=processes, io=threads",
        "FLOW_SLOTS": "threads=8",
        "FLOW_EXECUTORS": '{"threads": {"two": 22}}',
        "FLOW_LOG_FORMAT": "console",
        "PATH": "x",
        "FLOW_HOME": "somebody else's",
    }
    settings = load_settings({"routes": {"io": "inline"}, "slots": {"asyncio": 9}, "log_format": None}, environ=environ)
    assert settings.routes == {
        "cpu": Setting("processes", "FLOW_ROUTES"),
        "io.sync": Setting("inline", "pyproject.toml [tool.flow.routes]"),
        "io": Setting("inline", "--route"),
    }
    assert settings.slots == {"threads": Setting(8, "FLOW_SLOTS"), "asyncio": Setting(9, "--slots")}
    assert settings.executors == {
        "threads": {
            "one": Setting(1, "pyproject.toml [tool.flow.executors.threads]"),
            "two": Setting(22, "FLOW_EXECUTORS"),
        }
    }
    assert settings.log_format == Setting("console", "FLOW_LOG_FORMAT")
    assert settings.state_dir == Setting(str(tmp_path / "state"), "pyproject.toml [tool.flow]")
    assert settings.route_values() == {"cpu": "processes", "io.sync": "inline", "io": "inline"}
    assert settings.slot_values() == {"threads": 8, "asyncio": 9}
    assert settings.executor_options() == {"threads": {"one": 1, "two": 22}}
    assert list(settings.executor_mentions()) == [
        ("processes", "FLOW_ROUTES"),
        ("inline", "pyproject.toml [tool.flow.routes]"),
        ("inline", "--route"),
        ("threads", "FLOW_SLOTS"),
        ("asyncio", "--slots"),
        ("threads", "pyproject.toml [tool.flow.executors.threads]"),
    ]


def test_the_nearest_pyproject_with_our_table_counts(tmp_path: Path) -> None:
    pyproject(tmp_path, '[tool.flow]\nlog_format = "json"\n')
    pyproject(tmp_path / "a", '[tool.other]\nname = "flow"\n')
    (tmp_path / "a" / "b").mkdir()
    settings = load_settings(folder=str(tmp_path / "a" / "b"), environ={})
    assert settings.log_format.value == "json"
    pyproject(tmp_path / "a", "[tool.flow]\n")
    assert load_settings(folder=str(tmp_path / "a" / "b"), environ={}).log_format.value == "console"


def test_a_pyproject_that_never_mentions_us_may_be_broken(tmp_path: Path) -> None:
    pyproject(tmp_path, "this is not = = TOML\n")
    assert load_settings(environ={}).log_format.value == "console"


def test_empty_variables_count_as_not_set() -> None:
    assert load_settings(environ={"FLOW_ROUTES": "", "FLOW_SLOTS": " "}) == load_settings(environ={})


@pytest.mark.parametrize(
    ("text", "message", "where"),
    [
        ("[tool.flow\n", "not valid TOML", ""),
        ('[tool.flow]\nroute = "x"\n', "[tool.flow] has no setting 'route'", "pyproject.toml"),
        ("[tool]\nflow = 3\n", "tool.flow must be a table, not 3", "pyproject.toml [tool.flow]"),
        ('[tool.flow]\nroutes = "cpu"\n', "routes must be a table", "pyproject.toml [tool.flow.routes]"),
        ("[tool.flow.routes]\ncpu = 3\n", "route 'cpu' must be text, not 3", "pyproject.toml [tool.flow.routes]"),
        ("[tool.flow.slots]\nthreads = 0\n", "at least 1, not 0", "pyproject.toml [tool.flow.slots]"),
        ("[tool.flow.slots]\nthreads = true\n", "at least 1, not True", "pyproject.toml [tool.flow.slots]"),
        ('[tool.flow.slots]\nthreads = "4"\n', "at least 1, not '4'", "pyproject.toml [tool.flow.slots]"),
        ('[tool.flow]\nlog_format = "xml"\n', "console or json, not 'xml'", "pyproject.toml [tool.flow]"),
        ("[tool.flow]\nlog_format = 1\n", "console or json, not 1", "pyproject.toml [tool.flow]"),
        ("[tool.flow]\nstate_dir = 1\n", "state_dir must be text", "pyproject.toml [tool.flow]"),
        ("[tool.flow.executors]\nthreads = 1\n", "executors.threads must be a table", "[tool.flow.executors.threads]"),
    ],
)
def test_what_is_wrong_in_pyproject_is_said_with_its_place(tmp_path: Path, text: str, message: str, where: str) -> None:
    pyproject(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={})
    assert message in caught.value.message
    assert where in (caught.value.where or caught.value.message)


def test_text_that_is_not_utf8_in_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(b"[tool.flow]\nstate_dir = '\xff'\n")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_settings(environ={})


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("FLOW_ROUTES", "cpu", "'cpu' is not of the form KEY=VALUE"),
        ("FLOW_ROUTES", "=threads", "not of the form"),
        ("FLOW_SLOTS", "threads=many", "slots of 'threads' must be a whole number of at least 1, not 'many'"),
        ("FLOW_SLOTS", "threads=0", "at least 1, not '0'"),
        ("FLOW_LOG_FORMAT", "xml", "console or json"),
        ("FLOW_EXECUTORS", "{", "FLOW_EXECUTORS is not valid JSON"),
        ("FLOW_EXECUTORS", "[]", "executors must be a table"),
        ("FLOW_ROUTE", "cpu=threads", "FLOW_ROUTE, which is no setting"),
    ],
)
def test_what_is_wrong_in_a_variable_names_the_variable(variable: str, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={variable: text})
    assert message in caught.value.message
    assert variable in str(caught.value)


def test_a_slip_in_a_name_gets_a_suggestion(tmp_path: Path) -> None:
    pyproject(tmp_path, "[tool.flow]\nlogformat = 'json'\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={})
    assert caught.value.hint == "did you mean log_format?"


@pytest.mark.parametrize("text", ["a=b=c", " a = b=c "])
def test_a_pair_is_split_at_the_first_equals_sign(text: str) -> None:
    assert parse_pair(text, "--route", "K=V") == ("a", "b=c")


@pytest.mark.parametrize("text", ["", "a", "a=", "=b", "="])
def test_half_a_pair_is_refused(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_pair(text, "--route", "K=V")
    assert caught.value.where == "--route"


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", ""])
def test_slots_are_whole_numbers_from_one(text: str) -> None:
    assert parse_slots("threads", "3", "--slots") == 3
    with pytest.raises(SettingsError):
        parse_slots("threads", text, "--slots")


def test_an_unknown_field_is_a_mistake_of_ours() -> None:
    field: Any = {"nonsense": 1}
    with pytest.raises(KeyError):
        load_settings(field, environ={})


def test_slots_may_adapt_unless_a_later_source_gives_a_number(tmp_path: Path) -> None:
    pyproject(
        tmp_path,
        """
        [tool.flow.executors.asyncio]
        slots = "adaptive"
        [tool.flow.executors.threads]
        slots = { lowest = 2, highest = 8 }
        """,
    )
    settings = load_settings(environ={})
    assert settings.engine_slots() == {"asyncio": Adaptive(), "threads": Adaptive(2, 8)}
    assert settings.executor_options() == {"asyncio": {"slots": 256}, "threads": {"slots": 8}}
    assert settings.adaptive["threads"].origin == "pyproject.toml [tool.flow.executors.threads]"
    settings = load_settings({"slots": {"threads": 3}}, environ={"FLOW_EXECUTORS": '{"asyncio": {"slots": 7}}'})
    assert settings.engine_slots() == {"threads": 3}
    assert settings.executor_options()["asyncio"] == {"slots": 7}


@pytest.mark.parametrize(
    ("slots", "problem"),
    [
        ("{ most = 4 }", "slots of 'asyncio' have no 'most'; there are: lowest, highest, start"),
        ("{ lowest = 9, highest = 4 }", "slots of 'asyncio': Adaptive(lowest=9, highest=4, start=None) has numbers"),
    ],
)
def test_bounds_that_are_none_name_their_place(tmp_path: Path, slots: str, problem: str) -> None:
    pyproject(tmp_path, f"[tool.flow.executors.asyncio]\nslots = {slots}")
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={})
    assert problem in caught.value.message
    assert caught.value.where == "pyproject.toml [tool.flow.executors.asyncio]"
