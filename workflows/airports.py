"""Find the city nearest to every airport, check what came of it, and load it: a table, a JSON file and a report.

    flow run workflows/airports.py                                            all airports, into ./airports-out
    flow run workflows/airports.py -p 'countries=["IS","NO"]' -p out=nordic   some countries, into another folder
    flow run workflows/airports.py -p max_orphans=0                           refused: no source knows Kosovo

The input is open data that three packages ship in their wheels (``pip install 'flowlane[examples]'``, 2 MB in all), so
nothing is fetched. Their code is not run, only their files are read:

    airportsdata   a CSV file               MIT
    cityloc        an SQLite database       BSD; the cities are those of Simplemaps' Basic World Cities Database, CC BY 4.0
    countryinfo    a JSON file a country    MIT

    read_countries ──▶ check_countries ────▶ join ────────────────────┐
    read_airports ───▶ check_airports ───┬───┘                        │
                                         └─▶ locate ─┬─▶ nearest ─────┼─▶ merge
    read_cities ─────▶ check_cities ─────┬─▶ index ──┘   one a chunk  │
                                         └────────────────────────────┘
    threads            processes

    merge ─┬─▶ gate ─┬─▶ report ─▶ write_report ──┐
           │         ├─▶ write_table ─────────────┼─▶ publish
           └─────────┴─▶ write_json ──────────────┘
    processes          processes   and threads

Real data is never quite right. A row that does not pass its model is set aside with the reason, and told in all three
outputs. `gate` holds the whole against limits, which are parameters; what is worse than they allow is not loaded at all,
and what an earlier run has loaded stays as it is.

Every task gives the same for the same input and may run twice. The three `write_` tasks leave their file, whole, beside
its place; `publish` puts all of them there once all are written.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import secrets
import sqlite3
import statistics
from array import array
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, NamedTuple, TypeVar

from pydantic import BeforeValidator, Field, StringConstraints, TypeAdapter, ValidationError

from flowlane import FlowError, RetryPolicy, task, workflow

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

# ── the models: what a good row is, and what travels between tasks ────────────────────────────────────────────────

Text = Annotated[str, StringConstraints(strip_whitespace=True)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
CountryCode = Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
Latitude = Annotated[float, Field(ge=-90, le=90)]
Longitude = Annotated[float, Field(ge=-180, le=180)]
Share = Annotated[float, Field(ge=0, le=1)]


class Airport(NamedTuple):
    """`icao` is ICAO's code or, without one, a national one as long. `town` is what it serves, in its own words."""

    icao: Annotated[str, Field(pattern=r"^[A-Z0-9]{4}$")]  # airportsdata fills gaps with "_" and the IATA code
    iata: Annotated[str, Field(pattern=r"^([A-Z]{3})?$")]
    name: Name
    town: Text
    country: CountryCode
    elevation: Annotated[float, Field(ge=-1_500, le=20_000)]  # feet
    lat: Latitude
    lon: Longitude


class City(NamedTuple):
    number: int
    name: Name
    country: CountryCode
    lat: Latitude
    lon: Longitude
    population: Annotated[int | None, Field(ge=0), BeforeValidator(lambda value: value or None)]  # "" and 0: not known


class Country(NamedTuple):
    code: CountryCode
    name: Name
    capital: Annotated[Text | None, BeforeValidator(lambda value: value or None)]
    area: Annotated[float | None, Field(gt=0), BeforeValidator(lambda value: value or None)]  # km²


class Source(NamedTuple):
    """A package and its version. An argument of the tasks that read it, so that another version is another input."""

    package: str
    version: str


class Rejected(NamedTuple):
    """A row that is not used: where it stands in its source, and every reason."""

    package: str
    row: str
    reason: str


Row = TypeVar("Row", Airport, City, Country)


class Tally(NamedTuple):
    """How a source was: how many rows it has, and which of them are not used."""

    source: Source
    read: int
    rejected: list[Rejected]


class Checked(NamedTuple, Generic[Row]):
    """The good rows of a source, in its own order."""

    rows: list[Row]
    tally: Tally


class Place(NamedTuple):
    """An airport and the name of its country; None for an orphan, whose country no source knows."""

    icao: str
    iata: str | None
    name: str
    town: str | None
    country: str
    country_name: str | None
    lat: float
    lon: float
    elevation: float


class Joined(NamedTuple):
    """The airports by code, km² by country, and the tallies of both sources."""

    places: list[Place]
    areas: dict[str, float]
    tallies: tuple[Tally, ...]


class Points(NamedTuple):
    """Places as points of the unit sphere, so that neither poles nor the date line are special."""

    x: array[float]
    y: array[float]
    z: array[float]


class Index(NamedTuple):
    """A k-d tree of points, without pointers.

    The middle of any range parts the rest of it: what is left of it is not above on the range's axis, what is right is
    not below. The axes take turns from range to half, x first. `number` is the place of each point in what was indexed.
    """

    points: Points
    number: array[int]


class Near(NamedTuple):
    """For each airport of a part the nearest city, by its place among the checked cities, and the km to it."""

    city: array[int]
    km: array[float]


class Line(NamedTuple):
    """An airport as it is loaded: a Place, the nearest city and the way to it, rounded to metres."""

    icao: str
    iata: str | None
    name: str
    town: str | None
    country: str
    country_name: str | None
    lat: float
    lon: float
    elevation: float
    city: str
    city_country: str
    km: float


class Limits(NamedTuple):
    """What `gate` lets pass; each is a parameter of the workflow."""

    max_rejected: float = 0.02
    max_orphans: float = 0.001
    max_abroad: float = 0.2
    max_km: float = 4_000.0


class Check(NamedTuple):
    """A limit and what was found. `told` says it in words, `unit` is "%" for shares of 1 and "km" for distances."""

    limit: str
    allowed: float
    found: float
    unit: str
    told: str

    @property
    def passed(self) -> bool:
        return self.found <= self.allowed

    def show(self, value: float) -> str:
        return f"{value:.3%}" if self.unit == "%" else f"{value:,.1f} {self.unit}"


class Result(NamedTuple):
    """All there is to load."""

    lines: list[Line]
    areas: dict[str, float]
    tallies: tuple[Tally, ...]

    @property
    def rejected(self) -> list[Rejected]:
        return [rejected for tally in self.tallies for rejected in tally.rejected]


class Staged(NamedTuple):
    """A file that is whole but not yet in its place."""

    place: str
    staged: str
    digest: str


class LowQuality(ValueError):
    """The data is worse than the limits allow; nothing was loaded."""


LIMITS: Final = Limits()
AIRPORTS: Final = ("airportsdata", "airports.csv")
CITIES: Final = ("cityloc", "resources/cities.db")
COUNTRIES: Final = ("countryinfo", "data")
EARTH: Final = 6371.0088  # km, the mean radius R1 of the IUGG
TABLE, JSON, REPORT = "airports.db", "airports.json", "airports.txt"

# Disks are shared and sometimes busy; a file that is really missing is told half a second later.
PATIENT: Final = RetryPolicy(attempts=3, backoff=0.1, factor=2, on=(OSError, sqlite3.OperationalError))

# ── the tasks: reading ────────────────────────────────────────────────────────────────────────────────────────────


@task.io(retry=PATIENT, timeout=30)
def read_airports(source: Source) -> bytes:
    return data_of(source.package, AIRPORTS[1]).read_bytes()


@task.io(retry=PATIENT, timeout=30)
def read_cities(source: Source) -> list[tuple[Any, ...]]:
    """The rows of the package's database, with what City holds in its order."""
    # Immutable: SQLite leaves no lock and no journal in a folder that is not ours, and may be read-only.
    where = data_of(source.package, CITIES[1]).resolve().as_uri() + "?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(where, uri=True)) as database:
        return database.execute(
            "SELECT id, name, country, lat_wgs84, long_wgs84, population FROM cities ORDER BY id"
        ).fetchall()


@task.io(retry=PATIENT, timeout=30)
def read_countries(source: Source) -> list[tuple[str, bytes]]:
    """Name and content of each country's file, by name."""
    files = sorted(data_of(source.package, COUNTRIES[1]).glob("*.json"), key=lambda path: path.name)
    return [(path.name, path.read_bytes()) for path in files]


# ── the tasks: checking ───────────────────────────────────────────────────────────────────────────────────────────


@task.cpu(timeout=60)
def check_airports(source: Source, text: bytes) -> Checked[Airport]:
    def rows() -> Iterator[tuple[str, Any]]:
        reader = csv.DictReader(io.StringIO(text.decode("utf-8-sig"), newline=""))
        for row in reader:
            # What is missing is None and fails the model by itself; what is too much has the key None.
            fields: dict[Any, Any] = {name: row.get(name) for name in Airport._fields if name != "town"}
            fields["town"] = row.get("city")
            if None in row:
                fields["a field too many"] = row[None]
            yield f"line {reader.line_num}, {row.get('icao')}", fields

    return check(source, Airport, rows())


@task.cpu(timeout=60)
def check_cities(source: Source, rows: Sequence[tuple[Any, ...]]) -> Checked[City]:
    return check(source, City, ((f"id {row[0]}, {row[1]}", dict(zip(City._fields, row, strict=True))) for row in rows))


@task.cpu(timeout=60)
def check_countries(source: Source, files: Sequence[tuple[str, bytes]]) -> Checked[Country]:
    def rows() -> Iterator[tuple[str, Any]]:
        for name, text in files:
            try:
                told: Any = json.loads(text)
            except ValueError as error:  # not JSON, or not UTF-8
                yield name, error
                continue
            try:
                fields = {field: told.get(field) for field in Country._fields if field != "code"}
                yield name, {"code": told.get("ISO", {}).get("alpha2"), **fields}
            except AttributeError:
                yield name, ValueError("no object, or ISO is none")

    return check(source, Country, rows())


def check(source: Source, model: type[Row], rows: Iterable[tuple[str, Any]]) -> Checked[Row]:
    """Hold (place, fields) against the model. Fields may be the error that kept them from being read.

    A row's first field identifies it; of several with the same, the first good one counts.
    """
    adapter = TypeAdapter(model)
    good: dict[Any, Row] = {}
    places: dict[Any, str] = {}
    rejected: list[Rejected] = []
    for place, fields in rows:
        try:
            if isinstance(fields, ValueError):
                raise fields
            row = adapter.validate_python(fields)
        except ValidationError as error:
            rejected.append(Rejected(source.package, place, reasons(error)))
        except ValueError as error:
            rejected.append(Rejected(source.package, place, f"cannot be read: {error}"))
        else:
            if row[0] in good:
                rejected.append(Rejected(source.package, place, f"{model._fields[0]}: repeats {places[row[0]]}"))
            else:
                good[row[0]], places[row[0]] = row, place
    return Checked(list(good.values()), Tally(source, len(good) + len(rejected), rejected))


def reasons(error: ValidationError) -> str:
    """``lat: input should be …; name: field required``: what is wrong, without the value, so that equals can be counted."""
    found: dict[str, None] = {}  # an ordered set
    for one in error.errors(include_url=False, include_input=False, include_context=False):
        found[f"{one['loc'][0] if one['loc'] else 'row'}: {one['msg'][:1].lower()}{one['msg'][1:]}"] = None
    return "; ".join(found)


# ── the tasks: joining, and the nearest city ──────────────────────────────────────────────────────────────────────


@task.cpu(timeout=60)
def join(airports: Checked[Airport], countries: Checked[Country], wanted: Sequence[str]) -> Joined:
    """The airports of the `wanted` countries (none: of all) with what is known of their country."""
    known = {country.code: country for country in countries.rows}
    places = [
        Place(
            airport.icao,
            airport.iata or None,
            airport.name,
            airport.town or None,
            airport.country,
            known[airport.country].name if airport.country in known else None,
            airport.lat,
            airport.lon,
            airport.elevation,
        )
        for airport in choose(airports, wanted)
    ]
    areas = {country.code: country.area for country in countries.rows if country.area}
    return Joined(places, areas, (airports.tally, countries.tally))


@task.cpu(timeout=60)
def locate(airports: Checked[Airport], wanted: Sequence[str]) -> Points:
    """The points of the airports that `join` takes: all that chunks need, and a quarter of what the airports weigh."""
    return points(choose(airports, wanted))


def choose(airports: Checked[Airport], wanted: Sequence[str]) -> list[Airport]:
    return sorted(airport for airport in airports.rows if not wanted or airport.country in wanted)


@task.cpu(timeout=60)
def index(cities: Checked[City]) -> Index:
    if not cities.rows:
        raise LowQuality(f"no city of {cities.tally.source.package} is usable: {len(cities.tally.rejected):,} rejected")
    return plant(points(cities.rows))


@task.cpu(retries=1, timeout=60)
def nearest(airports: Points, cities: Index, part: int, parts: int) -> Near:
    """The nearest cities of every `parts`-th airport, from number `part` on.

    Taken in turn rather than in a row, so that parts are alike: codes are sorted by region, and a search in the middle
    of the Pacific takes longer than one in Europe.
    """
    found = Near(array("l"), array("d"))
    for x, y, z in zip(*(axis[part::parts] for axis in airports), strict=True):
        number, square = search(cities, (x, y, z))
        found.city.append(number)
        found.km.append(2 * EARTH * math.asin(min(math.sqrt(square) / 2, 1)))
    return found


@task.cpu(timeout=60)
def merge(joined: Joined, near: Sequence[Near], cities: Checked[City]) -> Result:
    """Put the parts together again: the airports in order, each with its city."""
    lines: list[Line] = []
    for number, place in enumerate(joined.places):
        part, row = near[number % len(near)], number // len(near)
        city = cities.rows[part.city[row]]
        lines.append(Line(*place, city.name, city.country, round(part.km[row], 3)))
    return Result(lines, joined.areas, (*joined.tallies, cities.tally))


# ── the tasks: the gate, and loading ──────────────────────────────────────────────────────────────────────────────


@task.cpu(timeout=60)
def gate(result: Result, limits: Limits) -> list[Check]:
    """What the result was held against, all of it passed. Whoever loads asks for this list, so nothing gets by.

    Raises LowQuality that names each limit that is exceeded.
    """
    if not result.lines:
        raise LowQuality("nothing is loaded: no airport is left; is there one in the countries asked for?")
    count = len(result.lines)
    orphans = sum(line.country_name is None for line in result.lines)
    abroad = sum(line.country != line.city_country for line in result.lines)
    lonely = max(result.lines, key=lambda line: line.km)
    checks: list[Check] = []
    for source, read, rejected in result.tallies:
        told = f"{len(rejected):,} of {read:,} rows of {source.package} are rejected"
        # A source without a row is as bad as one without a good row.
        checks.append(Check("max_rejected", limits.max_rejected, len(rejected) / read if read else 1.0, "%", told))
    told = f"{orphans:,} of {count:,} airports have no known country"
    checks.append(Check("max_orphans", limits.max_orphans, orphans / count, "%", told))
    # Two coordinates that were swapped, or lost a sign, are still coordinates; but their neighbours are foreign.
    told = f"{abroad:,} of {count:,} airports have their nearest city abroad"
    checks.append(Check("max_abroad", limits.max_abroad, abroad / count, "%", told))
    told = f"{lonely.icao} is {lonely.km:,.0f} km from {lonely.city}, its nearest city"
    checks.append(Check("max_km", limits.max_km, lonely.km, "km", told))
    if failed := [check for check in checks if not check.passed]:
        raise LowQuality(
            "nothing is loaded: "
            + "; ".join(
                f"{one.told}: {one.show(one.found)}, {one.limit} allows {one.show(one.allowed)}" for one in failed
            )
        )
    return checks


@task.cpu(timeout=60)
def report(result: Result, checks: Sequence[Check]) -> str:
    """All of it as text, the same for the same input."""
    sections = [
        overview(result),
        check_section(checks),
        country_section(result),
        lonely_section(result),
        city_section(result),
        orphan_section(result),
        rejected_section(result),
    ]
    return "\n\n".join("\n".join(clip(line.rstrip(), WIDTH) for line in lines) for lines in sections if lines)


@task.io(retry=PATIENT, timeout=60)
def write_table(result: Result, checks: Sequence[Check], out: Path) -> Staged:
    """Three tables: `airports` with the columns of Line, `checks` of Check, `rejected` of Rejected."""
    with staging(out, TABLE) as path, contextlib.closing(sqlite3.connect(path)) as database:
        # No journal and one transaction: a file that is not whole is never staged.
        database.execute("PRAGMA journal_mode = OFF")
        with database:
            database.execute(
                "CREATE TABLE airports (icao TEXT PRIMARY KEY, iata TEXT, name TEXT NOT NULL, town TEXT, country TEXT"
                " NOT NULL, country_name TEXT, lat REAL NOT NULL, lon REAL NOT NULL, elevation REAL NOT NULL,"
                " city TEXT NOT NULL, city_country TEXT NOT NULL, km REAL NOT NULL) WITHOUT ROWID"
            )
            database.execute('CREATE TABLE checks ("limit" TEXT, allowed REAL, found REAL, unit TEXT, told TEXT)')
            database.execute("CREATE TABLE rejected (package TEXT, row TEXT, reason TEXT)")
            for table, rows in {"airports": result.lines, "checks": checks, "rejected": result.rejected}.items():
                if rows:
                    database.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    return staged(out, TABLE)


@task.io(retry=PATIENT, timeout=60)
def write_json(result: Result, checks: Sequence[Check], out: Path) -> Staged:
    """Sources, checks, rejected rows and airports; one row a line, so that two runs can be compared with diff."""
    tables: dict[str, Iterable[Any]] = {
        "sources": [tally.source for tally in result.tallies],
        "checks": checks,
        "rejected": result.rejected,
        "airports": result.lines,
    }
    with staging(out, JSON) as path, path.open("w", encoding="utf-8", newline="\n") as file:
        before = "{"
        for name, rows in tables.items():
            lines = ",\n".join(json.dumps(row._asdict(), ensure_ascii=False, allow_nan=False) for row in rows)
            file.write(f'{before}\n"{name}": [\n{lines}\n]')
            before = ","
        file.write("\n}\n")
    return staged(out, JSON)


@task.io(retry=PATIENT, timeout=60)
def write_report(text: str, out: Path) -> Staged:
    with staging(out, REPORT) as path:
        path.write_text(text + "\n", encoding="utf-8", newline="\n")
    return staged(out, REPORT)


@task.io(retry=PATIENT, timeout=60)
def publish(files: Sequence[Staged], text: str) -> str:
    """Put the files in their places, and return the report.

    Nothing is touched unless each is what was staged, or is in its place already because an earlier attempt came as far
    as that.
    """
    waiting: list[Staged] = []
    for one in files:
        if digest(one.staged) == one.digest:
            waiting.append(one)
        elif digest(one.place) != one.digest:
            raise RuntimeError(f"{one.staged} is not what was written; does another run write to this folder?")
    for one in waiting:
        os.replace(one.staged, one.place)
    return text


# ── the workflow ──────────────────────────────────────────────────────────────────────────────────────────────────


@workflow
def airports(
    out: Path = Path("airports-out"),
    countries: tuple[CountryCode, ...] = (),
    chunk: Annotated[int, Field(gt=0)] = 2_000,
    max_rejected: Share = LIMITS.max_rejected,
    max_orphans: Share = LIMITS.max_orphans,
    max_abroad: Share = LIMITS.max_abroad,
    max_km: Annotated[float, Field(ge=0)] = LIMITS.max_km,
) -> str:
    """Load all airports with their nearest city into the folder `out`, and return the report.

    countries     ISO codes of the countries to load; none means all
    chunk         airports that one task finds the nearest cities for, at most
    max_rejected  share of the rows of any source that may be rejected
    max_orphans   share of the airports that may be in a country that is not known
    max_abroad    share of the airports whose nearest city may be in another country
    max_km        longest way from an airport to its nearest city
    """
    airport_source, city_source, country_source = sources()
    airport_rows = check_airports(airport_source, read_airports(airport_source))
    city_rows = check_cities(city_source, read_cities(city_source))
    country_rows = check_countries(country_source, read_countries(country_source))
    tree, parts = index(city_rows), count_chunks(chunk)
    points_of_airports = locate(airport_rows, countries)
    near = [nearest(points_of_airports, tree, part, parts) for part in range(parts)]
    merged = merge(join(airport_rows, country_rows, countries), near, city_rows)
    checks = gate(merged, Limits(max_rejected, max_orphans, max_abroad, max_km))
    text = report(merged, checks)
    return publish([write_table(merged, checks, out), write_json(merged, checks, out), write_report(text, out)], text)


def serial(
    out: Path = Path("airports-out"), countries: Sequence[str] = (), limits: Limits = LIMITS, chunk: int = 2_000
) -> str:
    """The same files and the same report from one plain loop, without the engine."""
    airport_source, city_source, country_source = sources()
    airport_rows = check_airports.fn(airport_source, read_airports.fn(airport_source))
    city_rows = check_cities.fn(city_source, read_cities.fn(city_source))
    country_rows = check_countries.fn(country_source, read_countries.fn(country_source))
    tree, parts = index.fn(city_rows), count_chunks(chunk)
    points_of_airports = locate.fn(airport_rows, countries)
    near = [nearest.fn(points_of_airports, tree, part, parts) for part in range(parts)]
    merged = merge.fn(join.fn(airport_rows, country_rows, countries), near, city_rows)
    checks = gate.fn(merged, limits)
    text = report.fn(merged, checks)
    return publish.fn(
        [write_table.fn(merged, checks, out), write_json.fn(merged, checks, out), write_report.fn(text, out)], text
    )


def count_chunks(chunk: int) -> int:
    """How many tasks share the airports. Counted here, since a graph is whole before it runs; too many do no harm."""
    rows = data_of(*AIRPORTS).read_bytes().count(b"\n") - 1
    return max(math.ceil(rows / chunk), 1)


# ── the packages ──────────────────────────────────────────────────────────────────────────────────────────────────


def sources() -> tuple[Source, Source, Source]:
    """The packages with airports, cities and countries."""
    names = AIRPORTS[0], CITIES[0], COUNTRIES[0]
    found: list[Source] = []
    for name in names:
        try:
            found.append(Source(name, version(name)))
        except PackageNotFoundError:
            raise missing(name) from None
    return found[0], found[1], found[2]


def data_of(package: str, path: str) -> Path:
    """A file or folder in an installed package, which is found but not imported: its code is none of our business."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise missing(package)
    return Path(spec.submodule_search_locations[0], path)


def missing(package: str) -> FlowError:
    return FlowError(
        f"workflow 'airports' reads the data of package {package!r}, which is not installed",
        hint="pip install 'flowlane[examples]'",
    )


# ── the nearest of many points ────────────────────────────────────────────────────────────────────────────────────


def points(places: Iterable[Airport | City]) -> Points:
    """Unit vectors. The chord between two of them grows with the arc, so the nearest by one is so by the other."""
    found = Points(array("d"), array("d"), array("d"))
    for place in places:
        lat, lon = math.radians(place.lat), math.radians(place.lon)
        found.x.append(math.cos(lat) * math.cos(lon))
        found.y.append(math.cos(lat) * math.sin(lon))
        found.z.append(math.sin(lat))
    return found


def plant(where: Points) -> Index:
    """The tree of some points."""
    order = list(range(len(where.x)))
    ranges = [(0, len(order), 0)]
    while ranges:
        low, high, axis = ranges.pop()
        if high - low > 1:
            order[low:high] = sorted(order[low:high], key=where[axis].__getitem__)
            middle, axis = (low + high) // 2, (axis + 1) % 3
            ranges += [(low, middle, axis), (middle + 1, high, axis)]
    return Index(Points(*(array("d", map(axis.__getitem__, order)) for axis in where)), array("l", order))


def search(tree: Index, point: tuple[float, float, float]) -> tuple[int, float]:
    """The number of the nearest point, and the square of its distance. Of several as near, the lowest number.

    Exact, rounding included: what is left out is further away on one axis alone than the best is in all.
    """
    (xs, ys, zs), numbers = tree
    x, y, z = point
    best, found = math.inf, -1
    ranges = [(0, len(numbers), 0, 0.0)]
    while ranges:
        low, high, axis, away = ranges.pop()
        if away > best:
            continue
        while low < high:
            middle = (low + high) // 2
            dx, dy, dz = x - xs[middle], y - ys[middle], z - zs[middle]
            square = dx * dx + dy * dy + dz * dz
            if square < best or (square == best and numbers[middle] < found):
                best, found = square, numbers[middle]
            side = dx if axis == 0 else dy if axis == 1 else dz
            axis = axis + 1 if axis < 2 else 0
            # The half with the point first; the other one when that did not find anything nearer than the border.
            if side < 0:
                ranges.append((middle + 1, high, axis, side * side))
                high = middle
            else:
                ranges.append((low, middle, axis, side * side))
                low = middle + 1
    return found, best


# ── files that are whole or not there ─────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def staging(out: Path, name: str) -> Generator[Path]:
    """A path to write to, in `out`. What is there at the end of the block becomes the staged file, in one step.

    Each attempt has a path of its own: a thread over its timeout is given up, not ended, and may still be writing.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / f".{name}.{secrets.token_hex(4)}"
    try:
        yield path
        with path.open("rb+") as file:
            os.fsync(file.fileno())  # the name must not get to the disk before the content
        os.replace(path, out / f".{name}.new")
    finally:
        path.unlink(missing_ok=True)


def staged(out: Path, name: str) -> Staged:
    path = out / f".{name}.new"
    return Staged(str(out / name), str(path), digest(path))


def digest(path: str | Path) -> str:
    """SHA-256 of a file; "" for one that is not there."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


# ── the report ────────────────────────────────────────────────────────────────────────────────────────────────────

WIDTH: Final = 100


def heading(text: str) -> str:
    return f"── {text} ".ljust(WIDTH, "─")


def clip(text: str, width: int) -> str:
    """One printable line of at most `width` characters: sources may hold anything, terminals must not."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if len(line) <= width else f"{line[: width - 1]}…"


def count(number: int, noun: str, nouns: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def overview(result: Result) -> list[str]:
    countries = len({line.country for line in result.lines})
    lines = [heading(f"{count(len(result.lines), 'airport')} in {count(countries, 'country', 'countries')}")]
    for source, read, rejected in result.tallies:
        lines.append(f"{source.package:<14} {source.version:<12} {read:>8,} rows   {len(rejected):>4,} rejected")
    return lines


def check_section(checks: Sequence[Check]) -> list[str]:
    lines = [heading("checks · all passed")]
    lines += [f"{c.limit:<14} {c.show(c.found):>9} of {c.show(c.allowed):>9}   {c.told}" for c in checks]
    return lines


def country_section(result: Result) -> list[str]:
    groups: dict[str, list[Line]] = {}
    for line in result.lines:
        groups.setdefault(line.country, []).append(line)
    ranked = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))[:10]
    lines = [
        heading("countries with the most airports"),
        f"{'':<33} {'airports':>8} {'with IATA':>10} {'per 10,000 km²':>15} {'median km to a city':>20}",
    ]
    for code, members in ranked:
        name = members[0].country_name or "not known"
        area = result.areas.get(code)
        density = f"{len(members) / area * 10_000:.1f}" if area else "–"
        iata = sum(line.iata is not None for line in members) / len(members)
        median = statistics.median(line.km for line in members)
        lines.append(f"{code} {clip(name, 30):<30} {len(members):>8,} {iata:>10.0%} {density:>15} {median:>20.1f}")
    return lines


def lonely_section(result: Result) -> list[str]:
    ranked = sorted(result.lines, key=lambda line: (-line.km, line.icao))[:10]
    return [
        heading("airports furthest from any city"),
        *(
            f"{one.km:>8,.0f} km   {one.icao}  {clip(one.name, 44):<44} {one.city}, {one.city_country}"
            for one in ranked
        ),
    ]


def city_section(result: Result) -> list[str]:
    count = Counter((line.city, line.city_country) for line in result.lines)
    ranked = sorted(count.items(), key=lambda item: (-item[1], item[0]))[:10]
    return [
        heading("cities that are the nearest of the most airports"),
        *(f"{number:>8,}   {city}, {country}" for (city, country), number in ranked),
    ]


def orphan_section(result: Result) -> list[str]:
    orphans = [line for line in result.lines if line.country_name is None]
    if not orphans:
        return []
    told = f"airports without a known country · {len(orphans):,}"
    return [heading(told), *(f"{line.country:>8}   {line.icao}  {line.name}" for line in orphans[:10])]


def rejected_section(result: Result) -> list[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for rejected in result.rejected:
        # Which row is repeated differs from row to row; that it is repeated is the reason.
        reason = rejected.reason.partition(" repeats ")[0] + " repeats another row" * (" repeats " in rejected.reason)
        groups.setdefault((rejected.package, reason), []).append(rejected.row)
    lines = [heading(f"rejected rows, by reason · {len(result.rejected):,}")]
    for (package, reason), rows in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        lines.append(f"{len(rows):>8,}   {package}  {reason}")
        more = f" and {len(rows) - 3:,} more" if len(rows) > 3 else ""
        lines.append(f"{'':<11}{'; '.join(rows[:3])}{more}")
    return lines if groups else [*lines, "none"]
