"""workflows/airports.py: its tasks one by one, and whole runs held against full scans and counts of this file's own.

What is expected is reckoned from the packages' files, without the workflow: another distance formula, no index, no model.
"""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.integration.log_reader import complaints, read

import flowlane
from flowlane.loader import load_file

FILE = Path(__file__).parents[2] / "workflows" / "airports.py"
airports: Any = load_file(FILE)

SOURCE = airports.Source("some-package", "1.0")
AIRPORT = {
    "icao": "BIRK", "iata": "RKV", "name": "Reykjavik Airport", "city": "Reykjavik", "country": "IS",
    "elevation": "45", "lat": "64.13", "lon": "-21.94",
}  # fmt: skip


# ── what the packages hold ────────────────────────────────────────────────────────────────────────────────────────


def data(package: str, path: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / path


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, Any]]:
    """All airports of the package by code, as its own loader has them."""
    with data("airportsdata", "airports.csv").open(encoding="utf-8") as file:
        return {row["icao"]: row for row in csv.DictReader(file, quoting=csv.QUOTE_NONNUMERIC)}


@pytest.fixture(scope="module")
def cities() -> list[tuple[str, str, float, float]]:
    with closing(sqlite3.connect(data("cityloc", "resources/cities.db"))) as database:
        return database.execute("SELECT name, country, lat_wgs84, long_wgs84 FROM cities").fetchall()


@pytest.fixture(scope="module")
def codes() -> set[str]:
    """The countries that there are."""
    files = data("countryinfo", "data").glob("*.json")
    return {json.loads(path.read_text(encoding="utf-8"))["ISO"]["alpha2"] for path in files}


def haversine(lat: float, lon: float, to_lat: float, to_lon: float) -> float:
    lat, lon, to_lat, to_lon = map(math.radians, (lat, lon, to_lat, to_lon))
    a = math.sin((to_lat - lat) / 2) ** 2 + math.cos(lat) * math.cos(to_lat) * math.sin((to_lon - lon) / 2) ** 2
    return 2 * 6371.0088 * math.asin(math.sqrt(min(a, 1)))


# ── checking ──────────────────────────────────────────────────────────────────────────────────────────────────────


def table(*rows: dict[str, str]) -> bytes:
    return "\n".join(",".join(map(str, line)) for line in (AIRPORT, *(row.values() for row in rows))).encode()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"icao": "_AYM"}, "icao: string should match pattern"),
        ({"iata": "rkv"}, "iata: string should match pattern"),
        ({"name": "  "}, "name: string should have at least 1 character"),
        ({"country": ""}, "country: string should match pattern"),
        ({"lat": "n/a"}, "lat: input should be a valid number"),
        ({"lat": "90.5"}, "lat: input should be less than or equal to 90"),
        ({"lon": "-181"}, "lon: input should be greater than or equal to -180"),
        ({"lat": "nan"}, "lat: input should be"),
        ({"elevation": "1e9"}, "elevation: input should be less"),
        ({"lat": "north", "lon": "west"}, "; lon: input should be a valid number"),
        ({"lon": "1,2"}, "a field too many: "),
    ],
)
def test_a_bad_row_is_set_aside_with_its_place_and_reason(wrong: dict[str, str], reason: str) -> None:
    checked = airports.check_airports.fn(SOURCE, table(AIRPORT | {"icao": "BIKF"}, AIRPORT | wrong, AIRPORT))
    assert [row.icao for row in checked.rows] == ["BIKF", "BIRK"]
    assert checked.tally.read == 3
    ((package, place, told),) = checked.tally.rejected
    assert (package, place) == ("some-package", f"line 3, {(AIRPORT | wrong)['icao']}")
    assert reason in told


def test_a_row_that_ends_early_and_one_that_repeats_another_are_set_aside() -> None:
    checked = airports.check_airports.fn(SOURCE, table(AIRPORT, {"icao": "BIKF", "iata": "KEF"}, AIRPORT))
    assert [row.icao for row in checked.rows] == ["BIRK"]
    early, repeated = checked.tally.rejected
    assert early.row == "line 3, BIKF"
    assert "lat: input should be a valid number" in early.reason
    assert repeated == ("some-package", "line 4, BIRK", "icao: repeats line 2, BIRK")


def test_text_is_trimmed_and_unknown_populations_are_none() -> None:
    (row,) = airports.check_airports.fn(SOURCE, b"\xef\xbb\xbf" + table(AIRPORT | {"name": " Reykjavik "})).rows
    assert row == ("BIRK", "RKV", "Reykjavik", "Reykjavik", "IS", 45.0, 64.13, -21.94)
    rows = [(1, "A", "IS", 0.0, 0.0, ""), (2, "B", "IS", 0.0, 0.0, 7), (3, "", "IS", 0.0, 0.0, 7)]
    checked = airports.check_cities.fn(SOURCE, rows)
    assert [row.population for row in checked.rows] == [None, 7]
    assert [rejected.row for rejected in checked.tally.rejected] == ["id 3, "]


def test_a_country_file_may_hold_anything() -> None:
    good = {"ISO": {"alpha2": "IS"}, "name": "Iceland", "capital": "", "area": 0, "more": 1}
    files = [
        ("a.json", json.dumps(good)),
        ("b.json", json.dumps(good)),
        ("c.json", json.dumps(good | {"ISO": {"alpha2": "GL"}, "capital": ["Nuuk"]})),
        ("d.json", "{"),
        ("e.json", "[]"),
        ("f.json", json.dumps({"ISO": None})),
        ("g.json", "{}"),
    ]
    checked = airports.check_countries.fn(
        SOURCE, [(name, text.encode()) for name, text in [*files, ("h.json", "\xff")]]
    )
    assert checked.rows == [("IS", "Iceland", None, None)]
    assert checked.tally.read == 8
    told = {rejected.row: rejected.reason for rejected in checked.tally.rejected}
    assert set(told) == {f"{letter}.json" for letter in "bcdefgh"}
    assert told["b.json"] == "code: repeats a.json"
    assert told["c.json"] == "capital: input should be a valid string"
    assert told["e.json"] == told["f.json"] == "cannot be read: no object, or ISO is none"
    assert told["d.json"].startswith("cannot be read: Expecting property name")
    assert "code: input should be a valid string" in told["g.json"]


# ── the nearest of many ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(12))
def test_the_index_finds_what_a_full_scan_finds_ties_included(seed: int) -> None:
    dice = random.Random(seed)
    size = dice.choice([1, 2, 3, 7, 50, 300])
    # A coarse grid: many points at one place, and many places as far from a point as others.
    grid = [[dice.randint(-3, 3) / 3 for _ in range(size)] for _ in range(3)]
    tree = airports.plant(airports.Points(*grid))
    assert sorted(tree.number) == list(range(size))
    for _ in range(60):
        point = tuple(dice.choice([dice.randint(-3, 3) / 3, dice.uniform(-1, 1)]) for _ in range(3))
        # Not with sum(), which rounds better than + since Python 3.12.
        ways = [tuple(a - b for a, b in zip(point, at, strict=True)) for at in zip(*grid, strict=True)]
        squares = [dx * dx + dy * dy + dz * dz for dx, dy, dz in ways]
        assert airports.search(tree, point) == (squares.index(min(squares)), min(squares))


def test_parts_are_put_together_in_order(known: dict[str, dict[str, Any]]) -> None:
    rows = [airports.Airport(f"A{n:03}", "", "x", "", "IS", 0.0, n / 10, n / 5) for n in range(10)]
    towns = [airports.City(n, f"city {n}", "IS", n / 10, n / 5, None) for n in range(10)]
    checked, near_to = airports.Checked(rows[::-1], None), airports.Checked(towns, None)
    joined = airports.Joined([airports.Place(r.icao, *r[1:5], None, r.lat, r.lon, 0.0) for r in rows], {}, ())
    for parts in (1, 3, 10, 12):
        where, tree = airports.locate.fn(checked, ()), airports.index.fn(near_to)
        near = [airports.nearest.fn(where, tree, part, parts) for part in range(parts)]
        lines = airports.merge.fn(joined, near, near_to).lines
        assert [(line.icao, line.city, line.km) for line in lines] == [(f"A{n:03}", f"city {n}", 0) for n in range(10)]


# ── the gate ──────────────────────────────────────────────────────────────────────────────────────────────────────


def result(*, orphan: bool = False, abroad: bool = False, km: float = 1.0, rejected: int = 0) -> Any:
    line = airports.Line("BIRK", None, "R", None, "IS", "Iceland", 64.0, -22.0, 45.0, "Reykjavík", "IS", 1.0)
    other = line._replace(
        icao="BIKF", country_name=None if orphan else "Iceland", city_country="GL" if abroad else "IS", km=km
    )
    reasons = [airports.Rejected("some-package", f"line {n}", "no") for n in range(rejected)]
    return airports.Result([line, other], {}, (airports.Tally(SOURCE, 10, reasons),))


@pytest.mark.parametrize(
    ("worse", "told"),
    [
        ({"rejected": 1}, "1 of 10 rows of some-package are rejected: 10.000%, max_rejected allows 2.000%"),
        ({"orphan": True}, "1 of 2 airports have no known country: 50.000%, max_orphans allows 0.100%"),
        ({"abroad": True}, "1 of 2 airports have their nearest city abroad: 50.000%, max_abroad allows 20.000%"),
        ({"km": 4001.0}, "BIKF is 4,001 km from Reykjavík, its nearest city: 4,001.0 km, max_km allows 4,000.0 km"),
    ],
)
def test_the_gate_names_each_limit_that_is_exceeded(worse: dict[str, Any], told: str) -> None:
    with pytest.raises(airports.LowQuality, match=f"^nothing is loaded: {re.escape(told)}$"):
        airports.gate.fn(result(**worse), airports.LIMITS)
    with pytest.raises(airports.LowQuality, match=r"max_rejected .*max_orphans .*max_abroad .*max_km "):
        airports.gate.fn(result(rejected=1, orphan=True, abroad=True, km=4001.0), airports.LIMITS)


def test_the_gate_lets_pass_what_is_at_its_limits_and_nothing_empty() -> None:
    checks = airports.gate.fn(result(rejected=1, orphan=True, abroad=True, km=7.0), airports.Limits(0.1, 0.5, 0.5, 7.0))
    assert [check.limit for check in checks] == ["max_rejected", "max_orphans", "max_abroad", "max_km"]
    with pytest.raises(airports.LowQuality, match="no airport is left"):
        airports.gate.fn(result()._replace(lines=[]), airports.LIMITS)
    with pytest.raises(airports.LowQuality, match=r"0 of 0 rows of some-package are rejected: 100\.000%"):
        airports.gate.fn(result()._replace(tallies=(airports.Tally(SOURCE, 0, []),)), airports.LIMITS)
    with pytest.raises(airports.LowQuality, match="no city of some-package is usable"):
        airports.index.fn(airports.Checked([], airports.Tally(SOURCE, 0, [])))


# ── files that are whole or not there ─────────────────────────────────────────────────────────────────────────────


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_attempt_that_fails_while_it_writes_leaves_nothing(tmp_path: Path) -> None:
    def attempt() -> None:
        with airports.staging(tmp_path / "new", "file") as path:
            path.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        attempt()
    assert contents(tmp_path / "new") == {}


def test_publishing_may_be_repeated_from_any_point(tmp_path: Path) -> None:
    (tmp_path / airports.REPORT).write_text("of an earlier run")
    one = airports.write_report.fn("text", tmp_path)
    two = airports.write_json.fn(result(), [], tmp_path)
    assert (tmp_path / airports.REPORT).read_text() == "of an earlier run"
    os.replace(one.staged, one.place)  # as far as an attempt came that was killed
    for _ in range(2):
        assert airports.publish.fn([one, two], "text") == "text"
        assert set(contents(tmp_path)) == {airports.REPORT, airports.JSON}
        assert (tmp_path / airports.REPORT).read_text() == "text\n"


def test_publishing_touches_nothing_when_a_file_is_not_what_was_written(tmp_path: Path) -> None:
    files = [airports.write_report.fn("text", tmp_path), airports.write_json.fn(result(), [], tmp_path)]
    Path(files[1].staged).write_text("somebody else's")
    before = contents(tmp_path)
    with pytest.raises(RuntimeError, match="does another run write to this folder"):
        airports.publish.fn(files, "text")
    assert contents(tmp_path) == before


# ── whole runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def flow(cwd: Path, *params: str) -> subprocess.CompletedProcess[str]:
    options = [word for param in params for word in ("-p", param)]
    return subprocess.run(
        [sys.executable, "-m", "flowlane", "run", str(FILE), *options],
        cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=50, check=False,
    )  # fmt: skip


class Loaded:
    """What a run of all airports left."""

    def __init__(self, folder: Path) -> None:
        self.done = flow(folder)
        assert self.done.returncode == 0, self.done.stderr
        self.folder = folder
        self.out = folder / "airports-out"
        self.json: Any = json.loads((self.out / airports.JSON).read_text(encoding="utf-8"))
        self.lines: list[dict[str, Any]] = self.json["airports"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(tmp_path_factory.mktemp("all"))


def edges(parts: int) -> dict[str, list[str]]:
    """The graph of a run, by hand."""
    chunks = [f"nearest#{number}" if number > 1 else "nearest" for number in range(1, parts + 1)]
    return {
        "read_airports": [], "read_cities": [], "read_countries": [],
        "check_airports": ["read_airports"], "check_cities": ["read_cities"], "check_countries": ["read_countries"],
        "join": ["check_airports", "check_countries"], "locate": ["check_airports"], "index": ["check_cities"],
        **{chunk: ["index", "locate"] for chunk in chunks},
        "merge": [*chunks, "check_cities", "join"], "gate": ["merge"], "report": ["gate", "merge"],
        "write_table": ["gate", "merge"], "write_json": ["gate", "merge"], "write_report": ["report"],
        "publish": ["report", "write_json", "write_report", "write_table"],
    }  # fmt: skip


def test_the_log_of_a_run_is_sound_and_each_task_is_where_it_belongs(
    loaded: Loaded, known: dict[str, dict[str, Any]]
) -> None:
    (log,) = loaded.folder.glob(".flow/runs/*/events.jsonl")
    story = read(log)
    assert complaints(story, edges(math.ceil(len(known) / 2_000))) == []
    where = {(event["task"].partition("#")[0], event["executor"]) for event in story.transitions}
    io = {"read_airports", "read_cities", "read_countries", "write_table", "write_json", "write_report", "publish"}
    assert {name for name, executor in where if executor == "threads"} == io
    assert {name for name, executor in where if executor == "processes"} == set(edges(1)) - io


def test_every_airport_is_loaded_or_rejected(loaded: Loaded, known: dict[str, dict[str, Any]]) -> None:
    lost = {row["row"].rpartition(" ")[2] for row in loaded.json["rejected"] if row["package"] == "airportsdata"}
    assert [line["icao"] for line in loaded.lines] == sorted(set(known) - lost)
    assert lost == {code for code in known if not re.fullmatch("[A-Z0-9]{4}", code)}
    for line in loaded.lines:
        row = known[line["icao"]]
        assert (line["country"], line["lat"], line["lon"]) == (row["country"], row["lat"], row["lon"])
        assert (line["iata"] or "", line["name"], line["town"] or "") == tuple(
            row[name].strip() for name in ("iata", "name", "city")
        )


def test_countries_are_those_of_the_package(loaded: Loaded, known: dict[str, dict[str, Any]], codes: set[str]) -> None:
    orphans = {line["icao"] for line in loaded.lines if line["country_name"] is None}
    assert orphans == {line["icao"] for line in loaded.lines if known[line["icao"]]["country"] not in codes}
    names = {line["country"]: line["country_name"] for line in loaded.lines}
    assert (names["IS"], names["CW"], names["US"]) == ("Iceland", "Curaçao", "United States")


def test_the_nearest_cities_are_those_of_a_full_scan(loaded: Loaded, cities: list[Any]) -> None:
    lines = sorted(loaded.lines, key=lambda line: line["lat"])
    around = sorted(loaded.lines, key=lambda line: abs(line["lon"]))
    sample = [*random.Random(4).sample(lines, 40), *lines[:3], *lines[-3:], *around[-6:]]  # poles and date line too
    for line in sample:
        ways = [haversine(line["lat"], line["lon"], lat, lon) for _, _, lat, lon in cities]
        shortest = min(ways)
        assert line["km"] == pytest.approx(shortest, abs=0.001), line
        nearest = {cities[n][:2] for n, way in enumerate(ways) if way - shortest < 1e-6}
        assert (line["city"], line["city_country"]) in nearest


def test_the_three_outputs_agree(loaded: Loaded) -> None:
    assert set(contents(loaded.out)) == {airports.TABLE, airports.JSON, airports.REPORT}  # and nothing half-done
    text = (loaded.out / airports.REPORT).read_text(encoding="utf-8")
    assert loaded.done.stdout == text
    with closing(sqlite3.connect(loaded.out / airports.TABLE)) as database:
        for name in ("airports", "checks", "rejected"):
            cursor = database.execute(f"SELECT * FROM {name}")
            columns = [column[0] for column in cursor.description]
            rows = [dict(zip(columns, row, strict=True)) for row in cursor]
            assert sorted(rows, key=repr) == sorted(loaded.json[name], key=repr), name
    countries = Counter(line["country"] for line in loaded.lines)
    assert f"── {len(loaded.lines):,} airports in {len(countries):,} countries ─" in text
    for code, count in countries.most_common(10):
        assert re.search(rf"^{code} \S.* {count:,} ", text, re.MULTILINE)
    for line in sorted(loaded.lines, key=lambda line: -line["km"])[:10]:
        assert re.search(rf"^ *{line['km']:,.0f} km   {line['icao']}  ", text, re.MULTILINE)
    for check in loaded.json["checks"]:
        assert check["told"] in text
    assert f"── rejected rows, by reason · {len(loaded.json['rejected']):,} ─" in text
    assert all(len(line) <= airports.WIDTH and line.isprintable() for line in text.splitlines())


def test_rejected_rows_are_told_with_reasons_and_counted(loaded: Loaded) -> None:
    told = Counter((row["package"], row["reason"].partition(" repeats ")[0]) for row in loaded.json["rejected"])
    text = loaded.done.stdout
    assert told
    for (package, reason), count in told.items():
        assert re.search(rf"^ *{count:,}   {package}  {re.escape(reason)}", text, re.MULTILINE), (package, reason)
    for check in loaded.json["checks"]:
        if check["limit"] == "max_rejected":
            package = check["told"].split()[-3]
            rejected = sum(row["package"] == package for row in loaded.json["rejected"])
            assert check["told"].startswith(f"{rejected:,} of ")
            assert re.search(rf"^{package} .* {rejected:,} rejected$", text, re.MULTILINE)


def test_the_serial_run_writes_the_same_to_the_last_byte(loaded: Loaded, tmp_path: Path) -> None:
    assert airports.serial(tmp_path) + "\n" == loaded.done.stdout
    ours, theirs = contents(tmp_path), contents(loaded.out)
    assert ours[airports.REPORT] == theirs[airports.REPORT]
    assert ours[airports.JSON] == theirs[airports.JSON]


def test_a_filter_takes_some_countries_and_a_second_run_changes_no_byte(
    loaded: Loaded, known: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    bound = {"out": tmp_path, "countries": ["NO", "IS"]}
    first: Any = flowlane.run(airports.airports.bind(**bound), routes={"cpu": "threads"})
    before = contents(tmp_path)
    second: Any = flowlane.run(airports.airports.bind(**bound, chunk=9_000), routes={"*": "inline"})
    assert second.value == first.value
    assert set(second.tasks) == set(edges(math.ceil(len(known) / 9_000)))
    for name in (airports.JSON, airports.REPORT):
        assert contents(tmp_path)[name] == before[name]
    lines = json.loads(before[airports.JSON])["airports"]
    assert lines == [line for line in loaded.lines if line["country"] in ("IS", "NO")]


def test_the_gate_stops_loading(tmp_path: Path) -> None:
    out = tmp_path / "airports-out"
    out.mkdir()
    (out / airports.JSON).write_text("of an earlier run")
    done = flow(tmp_path, 'countries=["IS"]', "max_km=0.5")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "gate  LowQuality: nothing is loaded: BI" in done.stderr
    assert "its nearest city: " in done.stderr
    assert "max_km allows 0.5 km" in done.stderr
    assert "stopped  report, write_table, write_json, write_report, publish" in done.stderr
    assert contents(out) == {airports.JSON: b"of an earlier run"}


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"countries": ["Iceland"]}, "countries"),
        ({"chunk": 0}, "chunk"),
        ({"max_orphans": 1.5}, "max_orphans"),
        ({"max_km": -1}, "max_km"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(params: dict[str, Any], told: str) -> None:
    with pytest.raises(flowlane.ParameterError, match=told):
        flowlane.run(airports.airports, **params)


@pytest.mark.parametrize("missing", ["airportsdata", "cityloc", "countryinfo"])
def test_a_missing_package_is_told_before_anything_starts(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = airports.version

    def version(name: str) -> str:
        if name == missing:
            raise PackageNotFoundError(name)
        return str(real(name))

    monkeypatch.setattr(airports, "version", version)
    with pytest.raises(flowlane.FlowError, match=f"{missing!r}, which is not installed") as caught:
        flowlane.run(airports.airports, out=tmp_path / "out")
    assert caught.value.hint == "pip install 'flowlane[examples]'"
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(airports, "find_spec", lambda name: None)
    with pytest.raises(flowlane.FlowError, match="not installed"):
        airports.data_of(missing, "file")
