"""Index the man pages of this machine, and hold the index's answers against reading every page.

    flow run workflows/man_index.py                                       all of them: often thousands
    flow run workflows/man_index.py -p limit=2000                         those nearest to the root
    flow run workflows/man_index.py -p 'ask=["socket bind|listen* -udp"]' and a question of yours
    flow run workflows/man_index.py -p 'roots=["docs"]'                   another tree

Where there are no man pages, documents are indexed instead: the docstrings of Python's own library, then any text below
`sys.prefix` and /usr/share/doc. The report says what it was.

    find_pages ─▶ read_page ─▶ tokenise ─┬─▶ invert ─▶ merge ─▶ choose_queries ─┐
    threads       threads      processes │   processes a tree   processes       ├─▶ check ─────▶ report
                  one a page             │   one a page                         │   processes    threads
                                         └──────── the words of all pages ──────┘   one a query

How many pages there are is only known once `find_pages` has run. A page does not wait for the others: while some are being
read, the first are words already.

What travels is small. Words are one line of bytes a page, and an index is a few flat columns: `merge` puts postings one
behind the other and decodes none. The index of 21,000 pages takes 12 MB.

A page that cannot be read, or only points to another, is a finding and not a failure. An answer of the index that is not
exactly that of `check`, page by page and score by score, is a failure: `check` reads the words of all pages for each query, and
has nothing in common with the index but what a word is. So scores are integers. `serial` does the same work in one loop.
"""

from __future__ import annotations

import ast
import bz2
import codecs
import gzip
import io
import lzma
import os
import random
import re
import stat
import sys
import sysconfig
import threading
import unicodedata
import warnings
import zlib
from array import array
from bisect import bisect_left
from collections import Counter
from fractions import Fraction
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

from pydantic import Field

from flowlane import FlowError, task, workflow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# ── what travels between tasks ────────────────────────────────────────────────────────────────────────────────────

Kind = Literal["man page", "module", "document"]


class Text(NamedTuple):
    """A page as it is written, markup included, or why there is none.

    see      the page that this one only points to; then `text` is empty
    problem  why it could not be read, or None; then `text` is empty
    """

    path: str
    kind: Kind
    text: str = ""
    see: str | None = None
    problem: str | None = None


class Words(NamedTuple):
    """The words of a page in their order, in UTF-8, a blank before and behind each: ``b" list of words "``.

    One line rather than a list: a tenth of the memory, and it can be searched as it is. Empty for a page without words.
    """

    path: str
    kind: Kind
    line: bytes = b""
    see: str | None = None
    problem: str | None = None


class Tally(NamedTuple):
    """What there was to index: number of pages by kind, and of those that are not in the index, by why."""

    kinds: dict[str, int]
    pointers: int
    empty: int
    problems: int
    shown: tuple[tuple[str, str], ...]  # the first `SHOWN` problems, by path


class Index(NamedTuple):
    """An inverted index in columns: of one page, or of a million.

    pages     their paths; a page is known by its place here
    lengths   number of words of each page
    terms     the distinct words, sorted, in UTF-8, with a line feed between
    counts    for each term the number of its pages
    firsts    for each term its first page
    lasts     for each term its last page
    sizes     for each term the bytes that its postings take
    postings  for each term ``times (gap times)*``: how often it stands on its first page, then for each further page
              the way from the one before, and how often; all varints

    The first page is not among the postings, so that an index can be put behind another without decoding any.
    """

    pages: tuple[str, ...]
    lengths: array[int]
    terms: bytes
    counts: array[int]
    firsts: array[int]
    lasts: array[int]
    sizes: array[int]
    postings: bytes
    tally: Tally


class Query(NamedTuple):
    """Pages that hold a term of every group in `groups`, and none of `without`. A term is a word, or a prefix and "*"."""

    groups: tuple[tuple[str, ...], ...]
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([*("|".join(group) for group in self.groups), *(f"-{term}" for term in self.without)])


class Hit(NamedTuple):
    """A page, and how well it answers, in bits / 65,536."""

    path: str
    score: int


class Claim(NamedTuple):
    """What the index answers: all pages, the best first; equals by path."""

    query: Query
    hits: list[Hit]


class Verdict(NamedTuple):
    """A claim that is true: how many pages, and the best of them."""

    query: Query
    pages: int
    best: tuple[Hit, ...]


class Disagreement(ValueError):
    """The index does not answer as the pages do."""


SHOWN: Final = 10
BEST: Final = 2
LIMIT: Final = 32 << 20  # bytes of a page, unpacked: what is longer is no page, and may be a bomb
HOPS: Final = 5  # of pages that point to another
FAN_IN: Final = 8
# A man page is told by its folder and by its section: ``man1/ls.1.gz``, ``man3/open.3perl``.
MAN: Final = re.compile(r"(?:^|/)(?:man|cat)[^/]*/[^/]+\.(?:[1-9]\w*|[nlop])(?:\.(?:gz|bz2|xz|lzma|zst))?$")
DOCUMENT: Final = re.compile(r"\.(?:md|py|rst|txt)(?:\.(?:gz|bz2|xz|lzma|zst))?$", re.IGNORECASE)
PACKED: Final = ("", ".gz", ".bz2", ".xz", ".lzma", ".zst")
SKIPPED: Final = frozenset({"__pycache__", ".git", ".hg", ".tox", "node_modules"})

# ── the tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────


@task.io
def find_pages(roots: Sequence[Path] | None, limit: int) -> list[Path]:
    """The man pages below `roots`, or the documents where there are none; each file once, whatever it is called.

    Root by root, files before links to files, and what is near to the root before what is in its depths: pages before
    their translations. None for `roots` means where this machine has man pages, else where it has documents. Never raises
    for a root that is not there. `limit` 0 means all.
    """
    for places, wanted in ((man_roots, MAN), (document_roots, DOCUMENT)):
        found = list(islice(distinct(files(places() if roots is None else roots, wanted)), limit or None))
        if found:
            return found
    return []


# Not stored: it is in a file already, and of these there are many. A run that goes on reads again what it still needs.
@task.io(persist=False)
def read_page(path: Path) -> Text:
    """A page, unpacked and decoded. Blocking code that waits for a disk and for zlib, so it runs on a thread.

    Never raises for what is in a file or not there.
    """
    kind: Kind = "man page" if is_man_page(path) else "module" if ".py" in path.suffixes[-2:] else "document"
    seen = [path]
    try:
        text = decode(unpack(path), path)
        while kind == "man page" and (target := pointer(text)) is not None:
            there = destination(path, target)
            if there is None:
                return Text(str(path), kind, problem=f"points to {target}, which is not there")
            if there in seen or len(seen) > HOPS:
                return Text(str(path), kind, problem=f"points to {target}, and so on in a circle")
            seen.append(there)
            text = decode(unpack(there), there)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        return Text(str(path), kind, problem=f"cannot be read: {said}")
    if len(seen) > 1:
        return Text(str(path), kind, see=str(seen[-1]))
    return Text(str(path), kind, text)


@task.cpu
def tokenise(text: Text) -> Words:
    """The words of a page without its markup. Never raises for what is on the page."""
    source = text.text
    try:
        if text.kind == "man page":
            source = Roff(source).plain()
        elif text.kind == "module":
            source = docstrings(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        said = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        return Words(text.path, text.kind, problem=f"has no docstrings: {said}")
    found = words(source)
    line = f" {' '.join(found)} ".encode() if found else b""
    return Words(text.path, text.kind, line, text.see, text.problem)


@task.cpu
def invert(page: Words) -> Index:
    """The index of one page; without pages for one that has no words."""
    tally = Tally(
        {page.kind: 1},
        pointers=int(page.see is not None),
        empty=int(not page.line and page.see is None and page.problem is None),
        problems=int(page.problem is not None),
        shown=((page.path, page.problem),) if page.problem is not None else (),
    )
    if not page.line:
        return NOTHING._replace(tally=tally)
    found = page.line.split()
    times = sorted(Counter(found).items())
    nowhere = array("B", bytes(len(times)))
    postings = [varint(count) for _, count in times]
    return Index(
        (page.path,),
        compact([len(found)]),
        b"\n".join([term for term, _ in times]),
        counts=array("B", b"\1" * len(times)),
        firsts=nowhere,
        lasts=nowhere,
        sizes=compact([len(each) for each in postings]),
        postings=b"".join(postings),
        tally=tally,
    )


@task.cpu
def merge(parts: Sequence[Index]) -> Index:
    """One index of several, with their pages in the order of `parts`. Associative, and `NOTHING` changes nothing.

    It costs by the number of terms of the parts, not of their postings: those are joined as they are.
    """
    pages: list[str] = []
    lengths: list[int] = []
    found: dict[bytes, Entry] = {}
    for part in parts:
        base, start, postings = len(pages), 0, part.postings
        terms = part.terms.split(b"\n") if part.terms else []
        for term, count, first, last, size in zip(terms, part.counts, part.firsts, part.lasts, part.sizes, strict=True):
            entry = found.get(term)
            if entry is None:
                found[term] = entry = Entry(base + first)
            else:
                entry.pieces.append(varint(base + first - entry.last))
            entry.pieces.append(postings[start : start + size])
            entry.count += count
            entry.last = base + last
            start += size
        pages += part.pages
        lengths += part.lengths
    ordered = sorted(found)
    entries = [found[term] for term in ordered]
    joined = [b"".join(entry.pieces) for entry in entries]
    return Index(
        tuple(pages),
        compact(lengths),
        b"\n".join(ordered),
        counts=compact([entry.count for entry in entries]),
        firsts=compact([entry.first for entry in entries]),
        lasts=compact([entry.last for entry in entries]),
        sizes=compact([len(each) for each in joined]),
        postings=b"".join(joined),
        tally=total([part.tally for part in parts]),
    )


@task.cpu
def choose_queries(index: Index, seed: int, count: int, asked: Sequence[Query] = ()) -> list[Claim]:
    """`asked` and `count` queries made up from the index's own terms, with its answers. By terms and `seed` alone."""
    lookup = Lookup(index)
    dice = random.Random(seed)
    queries = [*asked, *(lookup.compose(dice, number) for number in range(count))]
    return [Claim(query, lookup.answer(query)) for query in queries]


@task.cpu
def check(claim: Claim, library: Sequence[Words]) -> Verdict:
    """Hold what the index says against all the words of all pages. Raises Disagreement where they differ."""
    found = read_all(claim.query, library)
    if found != claim.hits:
        for place, (says, is_) in enumerate(zip(claim.hits, found, strict=False), 1):
            if says != is_:
                raise Disagreement(f"{str(claim.query)!r}, place {place}: the index says {says}, the pages say {is_}")
        raise Disagreement(f"{str(claim.query)!r}: the index knows {len(claim.hits)} pages, and there are {len(found)}")
    return Verdict(claim.query, len(found), tuple(found[:BEST]))


# In this process: the index is here already, and a report needs little time.
@task.io
def report(index: Index, verdicts: Sequence[Verdict]) -> str:
    """All of it as text, the same for the same pages."""
    sections = [overview(index), query_section(verdicts), finding_section(index.tally)]
    return "\n\n".join("\n".join(line.rstrip() for line in lines) for lines in sections if lines)


@workflow
def man_index(
    roots: list[Path] | None = None,
    limit: Annotated[int, Field(ge=0)] = 0,
    seed: int = 7,
    queries: Annotated[int, Field(ge=0, le=1_000)] = 20,
    ask: tuple[str, ...] = (),
) -> str:
    """Index the man pages below `roots`: None means those of this machine, or its documents where it has none.

    limit    at most so many pages, those nearest to their root first; 0 means all
    queries  how many to make up, from `seed`, and to check
    ask      queries of yours: ``a b`` is both words, ``a|b`` either, ``-a`` not that one, ``a*`` words that begin so
    """
    asked = [parse_query(text) for text in ask]
    pages = find_pages(roots, limit)
    texts = read_page.options(in_flight=500).map(pages)
    library = tokenise.map(texts)
    parts = invert.map(library)
    index = merge.reduce(parts, fan_in=FAN_IN)
    claims = choose_queries(index, seed, queries, asked)
    return report(index, check.map(claims, library))


def serial(
    roots: Sequence[Path] | None = None, limit: int = 0, seed: int = 7, queries: int = 20, ask: Sequence[str] = ()
) -> str:
    """The same report from one plain loop, without the engine."""
    asked = [parse_query(text) for text in ask]
    library = [tokenise.fn(read_page.fn(path)) for path in find_pages.fn(roots, limit)]
    parts = [invert.fn(page) for page in library]
    while len(parts) > 1:
        parts = [merge.fn(parts[start : start + FAN_IN]) for start in range(0, len(parts), FAN_IN)]
    index = merge.fn(parts)
    claims = choose_queries.fn(index, seed, queries, asked)
    return report.fn(index, [check.fn(claim, library) for claim in claims])


# ── which files ───────────────────────────────────────────────────────────────────────────────────────────────────


def man_roots() -> list[Path]:
    """Where man pages are: $MANPATH, beside the programs on $PATH, and the usual places."""
    told = [Path(each) for each in os.environ.get("MANPATH", "").split(os.pathsep) if each]
    beside = [Path(each).parent for each in os.environ.get("PATH", "").split(os.pathsep) if Path(each).is_absolute()]
    usual = [Path(sys.prefix), Path("/usr/local"), Path("/usr")]
    return list(dict.fromkeys([*told, *(place / "share" / "man" for place in (*beside, *usual))]))


def document_roots() -> list[Path]:
    return [Path(sysconfig.get_path("stdlib")), Path(sys.prefix), Path("/usr/share/doc")]


def is_man_page(path: Path) -> bool:
    return MAN.search(str(path)) is not None


def files(roots: Iterable[Path], wanted: re.Pattern[str]) -> Iterator[Path]:
    """The wanted ones below `roots`, in a fixed order. Links to folders are followed, none is entered twice."""
    entered: set[tuple[int, int]] = set()
    for root in roots:
        found: list[str] = []
        for folder, names, leaves in os.walk(root, followlinks=True):
            try:
                about = os.stat(folder)
            except OSError:  # gone meanwhile
                names.clear()
                continue
            if (about.st_dev, about.st_ino) in entered:  # a link in a circle, or a root within another
                names.clear()
                continue
            entered.add((about.st_dev, about.st_ino))
            # A folder before links to it, so that its pages go by their own names.
            links = {name for name in names if os.path.islink(os.path.join(folder, name))}
            names[:] = [*sorted({*names} - links - SKIPPED), *sorted(links - SKIPPED)]
            found += [path for name in leaves if wanted.search(path := os.path.join(folder, name))]
        yield from map(Path, sorted(found, key=lambda path: (os.path.islink(path), path.count("/"), path)))


def distinct(paths: Iterable[Path]) -> Iterator[Path]:
    """Each regular file under the first of its names."""
    seen: set[tuple[int, int]] = set()
    for path in paths:
        try:
            about = path.stat()
        except OSError:  # a link to nowhere, or in a circle
            continue
        if stat.S_ISREG(about.st_mode) and (about.st_dev, about.st_ino) not in seen:
            seen.add((about.st_dev, about.st_ino))
            yield path


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def unpack(path: Path) -> bytes:
    """The bytes of a page. How it is packed is told by its first bytes: names are sometimes wrong."""
    raw = path.read_bytes()
    file: Any = io.BytesIO(raw)
    if raw.startswith(b"\x1f\x8b"):
        file = gzip.GzipFile(fileobj=file)
    elif raw.startswith(b"BZh"):
        file = bz2.BZ2File(file)
    elif raw.startswith((b"\xfd7zXZ\0", b"]\0\0")):
        file = lzma.LZMAFile(file)  # noqa: SIM115 - closed below, as are its like
    elif raw.startswith(b"\x28\xb5\x2f\xfd"):
        raise ValueError("it is packed with zstd")
    with file:
        content: bytes = file.read(LIMIT + 1)
    if len(content) > LIMIT:
        raise ValueError(f"it is over {LIMIT >> 20} MiB")
    return content


def decode(raw: bytes, path: Path) -> str:
    """As text: by its byte order mark, as UTF-8, by what it declares, by its folder (``ja.eucJP/man1``), as Latin-1.

    The first that fits. UTF-8 comes before what is declared, since few other texts are valid UTF-8 by chance, and many
    declarations are older than the file's last conversion.
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16")
    if b"\0" in raw:
        raise ValueError("it is not text")
    head = b"\n".join(raw.split(b"\n", 2)[:2])
    declared = re.search(rb"coding[:=][ \t]*([-\w.]+)", head)
    _, _, folder = path.parent.parent.name.partition(".")
    candidates = ["utf-8-sig", declared[1].decode() if declared else "", folder.partition("@")[0]]
    for encoding in filter(None, candidates):
        try:
            return raw.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    return raw.decode("latin-1")


def pointer(text: str) -> str | None:
    """What a page that holds nothing but ``.so man3/printf.3`` points to."""
    if len(text) > 4096:
        return None
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(('.\\"', "'\\\"", ".\\#"))]
    match = re.fullmatch(r"[.']\s*so\s+(\S+)\s*", lines[0]) if len(lines) == 1 else None
    return match[1] if match else None


def destination(path: Path, target: str) -> Path | None:
    """The file that a pointer means: below the folder of the sections or beside the page, packed or not; or None."""
    parts = Path(target).parts
    if ".." in parts or Path(target).is_absolute():
        return None
    for folder in (path.parent.parent, path.parent):
        for suffix in PACKED:
            there = folder / (target + suffix)
            if there.is_file():
                return there
    return None


# ── what a word is ────────────────────────────────────────────────────────────────────────────────────────────────

WORD: Final = re.compile(r"_*[^\W_]\w*")


def words(text: str) -> list[str]:
    """The words of a text: letters, digits and "_" in a row, 2 to 40 of them, not only "_"; case does not count.

    Scripts without blanks between words are taken from one punctuation mark to the next.
    """
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return [word for word in WORD.findall(folded) if 2 <= len(word) <= 40]


def docstrings(source: str) -> str:
    """All docstrings of a Python module. Raises what `ast.parse` raises."""
    with _parsing, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    found = [
        ast.get_docstring(node, clean=False)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return "\n\n".join(text for text in found if text)


_parsing = threading.Lock()  # how warnings are treated is set for all threads, and tasks may be routed to threads

# ── roff: the markup of man pages ─────────────────────────────────────────────────────────────────────────────────


class Roff:
    """A man page without its markup: enough of roff(7), man(7), mdoc(7) and tbl(1) for the words to come out right.

    It sets no lines. Text that a terminal would show stays: ``.if`` is decided as for one, strings are put in, macros
    nobody knows keep their arguments. Requests, comments, definitions, equations and pictures go, and so do the date and
    the footers of the title.
    """

    CONTROL: Final = re.compile(r"[.'][ \t]*([^\s\\\"]*)[ \t]*(.*)")
    QUOTED: Final = re.compile(r'"((?:[^"]|"")*)"?|((?:\\.|[^\s\\])+)', re.DOTALL)
    #: Up to the blank behind it, but for those that hold blanks or need none behind them.
    CONDITION: Final = re.compile(
        r"(!?)[ \t]*([dFmrS] ?\S+|[netov](?![^\s\\.'])|'[^']*'[^']*'|\S+?(?=\\\{|\s|$))[ \t]*(.*)"
    )
    IS_MDOC: Final = re.compile(r"^\.[ \t]*Dd\b", re.MULTILINE)
    SILENT: Final = frozenset(
        # requests
        "ad af als am br bp brp ce cp cs cu do ds1 ec em eo ev fam fc fi fl fp ft fspecial hc hcode hla hlm hpf hw hy hym in it "
        "itc kern lc lf ll lls ls lt mk mso na ne nf nh nm nn nop nr ns nx open os pc pi pl pm pn pnr po ps psbb rchar rd rj rm "
        "rn rnn rr rs rt schar shc shift sizes so sp ss sty substring sv sy ta tc ti tkf tl tm tr trf uf ul unformat vpt vs warn "
        "wh write "
        # man, and what its generators add
        "AT DT EE EX HP IX INDENT LINKSTYLE LP P PD PP RE RS Sp TE TP TQ UC UNINDENT Ve Vb YS "
        # mdoc
        "Bd Bf Bk Bl Db Dd Ed Ef Ek El Os Pp Re Rs Sm Tg Ud".split()
    )
    UNTIL: Final = {"EQ": "EN", "PS": "PE"}  # equations and pictures
    JOINED: Final = frozenset("BI BR IB IR RB RI".split())
    FIRST: Final = {"IP": 1, "TH": 2, "Dt": 2}  # arguments that are shown as text; the others are not
    CALLABLE: Final = frozenset(
        "Ac Ad An Ao Ap Aq Ar Bc Bo Bq Brc Bro Brq Bx Cd Cm Dc Do Dq Dv Dx Ec Em En Eo Er Es Ev Fa Fc Fl Fn Fo Fr Ft Fx Ic "
        "In It Lb Li Lk Ms Mt Nd Nm No Ns Nx Oc Oo Op Ot Ox Pa Pc Pf Po Pq Qc Ql Qo Qq Sc Sh So Sq Ss St Sx Sy Ta Tn Ux Va Vt "
        "Xc Xo Xr".split()
    )
    ESCAPE: Final = re.compile(
        r"""\\c?\n                                                   # the line goes on
          | \\(?: "[^\n]* | \#[^\n]*\n?                              # comments
          | \((?P<sign2>..) | \[(?P<sign>[^]\n]*)\] | C'(?P<sign3>[^'\n]*)'
          | \*(?:\((?P<string2>..)|\[(?P<string>[^]\n]*)\]|(?P<string1>.))
          | [fFgkmMnVY$][+-]?(?:\(..|\[[^]\n]*\]|.)                  # fonts, colours, registers
          | s(?:[+-]\d|[+-]?\(..|[123]\d|\d|[+-]?'[^'\n]*'|[+-]?\[[^]\n]*\])
          | [AbDhHlLNoRSvwxXZ]'[^'\n]*'                              # motions and drawings
          | (?P<other>.) )""",
        re.VERBOSE,
    )
    ONE: Final = {**dict.fromkeys(" ~0t\t", " "), **dict.fromkeys("&|^%:/,)acdpruz{}!?", ""), "e": "\\"}
    MARKS: Final = {
        "'": "\u0301",
        "`": "\u0300",
        "^": "\u0302",
        ":": "\u0308",
        "~": "\u0303",
        ",": "\u0327",
        "v": "\u030c",
    }
    LETTERS: Final = {
        "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "ss": "ß", "oa": "å", "oA": "Å", "o/": "ø", "/o": "ø", "/O": "Ø",
        "/l": "ł", "/L": "Ł", "-D": "Ð", "Sd": "ð", "TP": "Þ", "Tp": "þ", "ul": "_", "ts": "ς", "mc": "µ", "fi": "fi",
        "fl": "fl", "ff": "ff", "Fi": "ffi", "Fl": "ffl",
        **{f"*{latin}": greek for latin, greek in zip("abgdezyhiklmncoprstufxqw", "αβγδεζηθικλμνξοπρστυφχψω", strict=True)},
    }  # fmt: skip

    def __init__(self, source: str) -> None:
        self._source = re.sub(".\b", "", source) if "\b" in source else source  # overstruck: a page that was formatted
        self._lines = iter(self._source.split("\n"))
        self._is_mdoc = self.IS_MDOC.search(source) is not None
        self._strings = {"R": "®", "Tm": "™", "lq": "“", "rq": "”"}
        self._decided: list[bool] = []  # of each .ie whose .el is still to come
        self._name = ""  # what .Nm without arguments stands for

    def plain(self) -> str:
        """The text. Never raises."""
        shown: list[str] = []
        for line in self._lines:
            if line[:1] not in (".", "'"):
                shown.append(line)
            elif (text := self._control(line)) is not None:
                shown.append(text)
        return self.ESCAPE.sub(self._escape, "\n".join(shown))

    def _control(self, line: str) -> str | None:
        """What a control line shows."""
        while (match := self.CONTROL.match(line)) is not None:
            name, rest = match.groups()
            if name not in ("if", "ie", "el", "while"):
                return self._request(name, rest)
            if name == "el":
                holds = not self._decided.pop() if self._decided else False
            else:
                holds, rest = self._decide(rest)
                if name == "ie":
                    self._decided.append(holds)
            if not holds:
                self._skip_block(rest)
                return None
            line = rest.removeprefix("\\{").lstrip(" \t")
            if line in ("", "\\"):
                return None
        return line

    def _decide(self, rest: str) -> tuple[bool, str]:
        """Whether a condition holds for a terminal under groff, and what depends on it."""
        match = self.CONDITION.match(rest)
        if match is None:
            return False, rest
        negated, condition, body = match.groups()
        return (condition in ("n", r"\n(.g", r"\n[.g]")) != bool(negated), body

    def _skip_block(self, opening: str) -> None:
        depth = opening.count("\\{") - opening.count("\\}")
        while depth > 0 and (line := next(self._lines, None)) is not None:
            depth += line.count("\\{") - line.count("\\}")

    def _skip_to(self, end: str) -> None:
        for line in self._lines:
            if (match := self.CONTROL.match(line)) is not None and match[1] == end:
                return

    def _skip_format(self) -> None:
        """The columns of a table: up to a line with a full stop."""
        for line in self._lines:
            if line.rstrip().endswith(".") or line.startswith(".TE"):
                return

    def _request(self, name: str, rest: str) -> str | None:
        if name in self.SILENT or not name:
            return None
        if name in ("de", "de1", "dei", "am", "am1", "ami", "ig"):
            named = rest.split('\\"')[0].split()
            end = named[:1] if name == "ig" else named[1:2]
            self._skip_to(end[0] if end else ".")
            return None
        if name in ("TS", "T&"):
            self._skip_format()
            return None
        if name in self.UNTIL:
            self._skip_to(self.UNTIL[name])
            return None
        if name in ("ds", "as"):
            key, _, value = rest.partition(" ")
            before = self._strings.get(key, "") if name == "as" else ""
            self._strings[key] = before + self.ESCAPE.sub(self._escape, value.lstrip().removeprefix('"'))
            return None
        if '\\"' in rest:
            rest = rest.split('\\"')[0]
        arguments = self._arguments(rest)
        if name in self.FIRST:
            arguments = arguments[: self.FIRST[name]]
        elif self._is_mdoc and name in self.CALLABLE:
            return self._mdoc(name, arguments)
        return ("" if name in self.JOINED else " ").join(arguments)

    def _arguments(self, rest: str) -> list[str]:
        if '"' not in rest and "\\" not in rest:
            return rest.split()
        return [quoted.replace('""', '"') if quoted or not bare else bare for quoted, bare in self.QUOTED.findall(rest)]

    def _mdoc(self, name: str, arguments: Sequence[str]) -> str:
        """Arguments of mdoc's macros are macros in turn; Ns, "no space", joins what is beside it."""
        shown: list[str] = []
        glue = False
        for argument in arguments:
            if argument == "Ns":
                glue = True
            elif argument not in self.CALLABLE:
                if glue and shown:
                    shown[-1] += argument
                else:
                    shown.append(argument)
                glue = False
        if name == "Nm":
            if not shown:
                return self._name
            self._name = self._name or shown[0]
        return " ".join(shown)

    def _escape(self, match: re.Match[str]) -> str:
        """What is shown for an escape sequence. Signs that are no part of a word are all a blank to us."""
        kind = match.lastgroup
        if kind is None:
            return ""
        found = match[kind]
        if kind == "other":
            return self.ONE.get(found, found)  # what is no escape is the sign itself
        return self._strings.get(found, "") if kind.startswith("string") else self._sign(found)

    def _sign(self, name: str) -> str:
        if name in self.LETTERS:
            return self.LETTERS[name]
        if len(name) == 2 and name[0] in self.MARKS and name[1].isalpha():
            return unicodedata.normalize("NFC", name[1] + self.MARKS[name[0]])
        if re.fullmatch(r"u[0-9A-F]{4,6}(?:_[0-9A-F]{4,6})*", name):
            numbers = [int(part, 16) for part in name[1:].split("_")]
            return "".join(
                chr(number) for number in numbers if number <= sys.maxunicode and not 0xD800 <= number < 0xE000
            )
        return " "


# ── the index ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Entry:
    """A term while indexes are merged: what `Index` has in columns, its postings in pieces."""

    __slots__ = ("count", "first", "last", "pieces")

    def __init__(self, first: int) -> None:
        self.count = 0
        self.first = first
        self.last = first
        self.pieces: list[bytes] = []


def compact(numbers: Sequence[int]) -> array[int]:
    """An array of the smallest type that holds them: most indexes are of one page, and their numbers take a byte each."""
    most = max(numbers, default=0)
    return array("B" if most < 1 << 8 else "H" if most < 1 << 16 else "I" if most < 1 << 32 else "Q", numbers)


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    if number < 128:
        return SHORT[number]
    found = bytearray()
    while number >= 128:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


SHORT: Final = [bytes([number]) for number in range(128)]


def numbers_of(postings: bytes) -> Iterator[int]:
    """The varints in a row."""
    number = shift = 0
    for byte in postings:
        if byte < 128:
            yield number | byte << shift
            number = shift = 0
        else:
            number |= (byte & 127) << shift
            shift += 7


def total(tallies: Sequence[Tally]) -> Tally:
    kinds: Counter[str] = Counter()
    for tally in tallies:
        kinds.update(tally.kinds)
    return Tally(
        dict(sorted(kinds.items())),
        sum(tally.pointers for tally in tallies),
        sum(tally.empty for tally in tallies),
        sum(tally.problems for tally in tallies),
        tuple(sorted(problem for tally in tallies for problem in tally.shown)[:SHOWN]),
    )


EMPTY: Final = array("B")
NOTHING: Final = Index((), EMPTY, b"", EMPTY, EMPTY, EMPTY, EMPTY, b"", total([]))


class Lookup:
    """An index to ask: its terms in a list, and where each one's postings are.

    Pages are ranked by BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond",
    Foundations and Trends in Information Retrieval 3:4, 2009) with k1 = 6/5 and b = 3/4. The weight of a term that n of N
    pages hold is log2((N + 1) / (n + 1/2)): theirs, with 1 added within the logarithm, so that it is never below 0. A term
    as it is written is one term, also where it is a prefix. All in integers, each step rounded down: 64ths of a bit for
    weights, a 1,024th of that for what a term adds to a page.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self.terms = index.terms.split(b"\n") if index.terms else []
        self.ends = list(accumulate(index.sizes))
        self.length = sum(index.lengths)

    def postings(self, place: int) -> Iterator[tuple[int, int]]:
        """(page, times) of the term at `place`, by page."""
        end = self.ends[place]
        numbers = numbers_of(self.index.postings[end - self.index.sizes[place] : end])
        page = self.index.firsts[place]
        yield page, next(numbers)
        for gap in numbers:
            page += gap
            yield page, next(numbers)

    def places(self, term: str) -> range:
        """Where the words are that a term stands for."""
        word = term.removesuffix("*").encode()
        start = bisect_left(self.terms, word)
        if term.endswith("*"):
            return range(start, bisect_left(self.terms, word + b"\xff", start))  # no byte of UTF-8 is FF
        return range(start, start + (self.terms[start : start + 1] == [word]))

    def times(self, term: str) -> dict[int, int]:
        """How often a term stands on which pages."""
        found: dict[int, int] = {}
        for place in self.places(term):
            for page, times in self.postings(place):
                found[page] = found.get(page, 0) + times
        return found

    def answer(self, query: Query) -> list[Hit]:
        groups = [[self.times(term) for term in group] for group in query.groups]
        pages = set.intersection(*({page for times in group for page in times} for group in groups))
        for term in query.without:
            pages.difference_update(self.times(term))
        scores = dict.fromkeys(pages, 0)
        count, length, lengths = len(self.index.pages), self.length, self.index.lengths
        for times in (times for group in groups for times in group):
            if not times:
                continue
            weight = ((2 * count + 2) ** 64 // (2 * len(times) + 1) ** 64).bit_length() - 1
            for page in pages.intersection(times):
                # times (k1 + 1) / (times + k1 (1 - b + b · its length / the mean length)), both sides times 10 · length
                above = 22 * times[page] * length
                below = (10 * times[page] + 3) * length + 9 * lengths[page] * count
                scores[page] += (1024 * weight * above) // below
        hits = [Hit(self.index.pages[page], score) for page, score in scores.items()]
        return sorted(hits, key=lambda hit: (-hit.score, hit.path))

    def compose(self, dice: random.Random, number: int) -> Query:
        """A query of the kind whose turn it is."""
        if not self.terms:
            return Query((("nothing",),))
        word = self._word(dice)
        other = self._companion(word, dice)
        match number % 7:
            case 0:
                return Query(((word,),))
            case 1:
                return Query(((word,), (other,)))
            case 2:
                return Query(((word, self._word(dice)),))
            case 3:
                return Query(((f"{word[: max(len(word) // 2, 2)]}*",),))
            case 4:
                return Query(((word,),), without=(other,))
            case 5:
                return Query(((word, f"{self._word(dice)[:4]}*"), (other,)), without=(self._word(dice),))
            case _:
                return Query(((word,), (f"{word}_{other}_{number}"[-40:],)))  # a word that no page holds, or hardly

    def _word(self, dice: random.Random) -> str:
        """A word of the index, rather a frequent one, but not one that stands on most pages."""
        most = max(len(self.index.pages) // 2, 1)
        drawn = [dice.randrange(len(self.terms)) for _ in range(16)]
        counts = self.index.counts
        return self.terms[max(drawn, key=lambda place: (counts[place] <= most, counts[place], place))].decode()

    def _companion(self, word: str, dice: random.Random) -> str:
        """A word that shares a page with `word`, unless a search of some length finds none."""
        pages = self.times(word).keys()
        other = word
        for _ in range(20):
            other = self._word(dice)
            if other != word and not pages.isdisjoint(self.times(other)):
                break
        return other


def parse_query(text: str) -> Query:
    """``socket bind|listen* -udp``. Raises FlowError for what cannot be asked."""
    groups: list[tuple[str, ...]] = []
    without: list[str] = []
    for part in text.split():
        if part.startswith("-"):
            without.append(parse_term(part[1:], text))
        else:
            groups.append(tuple(parse_term(term, text) for term in part.split("|")))
    if not groups:
        raise FlowError(
            f"query {text!r} has no word that pages should hold", hint="'socket -udp': pages with one and not the other"
        )
    return Query(tuple(groups), tuple(without))


def parse_term(term: str, text: str) -> str:
    stem, star = (term[:-1], "*") if term.endswith("*") else (term, "")
    found = words(stem)
    if len(found) != 1 or found[0] != stem.casefold():
        raise FlowError(
            f"query {text!r}: {term!r} is no word", hint="2 to 40 letters, digits and '_', and at the end '*' or not"
        )
    return found[0] + star


# ── the oracle ────────────────────────────────────────────────────────────────────────────────────────────────────


def read_all(query: Query, library: Sequence[Words]) -> list[Hit]:
    """The answer to a query from the words of all pages, by the definitions: no index, and fractions until the end.

    Nothing of `Lookup` is used here, on purpose: what both had in common, neither could find wrong.
    """
    library = [page for page in library if page.line]
    if not library:
        return []
    # A word has a blank on both sides, and two in a row share one, which the look ahead leaves to the next.
    terms = {term for group in query.groups for term in group} | set(query.without)
    found: dict[str, dict[str, int]] = {}
    for term in terms:
        stem, star, _ = term.partition("*")
        pattern = re.compile(b" " + re.escape(stem.encode()) + (b"[^ ]*" if star else b"") + b"(?= )")
        counts = ((page.path, len(pattern.findall(page.line))) for page in library)
        found[term] = {path: count for path, count in counts if count}
    lengths = {page.path: page.line.count(b" ") - 1 for page in library}
    mean = Fraction(sum(lengths.values()), len(lengths))
    k1, b = Fraction(6, 5), Fraction(3, 4)
    weights: dict[str, int] = {}
    for term in terms:
        odds = Fraction(len(library) + 1) / (len(found[term]) + Fraction(1, 2))
        weights[term] = -1
        while odds**64 >= 2 ** (weights[term] + 1):
            weights[term] += 1
    hits: list[Hit] = []
    for page in library:
        path = page.path
        if not all(any(path in found[term] for term in group) for group in query.groups):
            continue
        if any(path in found[term] for term in query.without):
            continue
        score = 0
        for term in (term for group in query.groups for term in group if path in found[term]):
            times = found[term][path]
            saturation = times * (k1 + 1) / (times + k1 * (1 - b + b * lengths[path] / mean))
            score += int(weights[term] * saturation * 1024)
        hits.append(Hit(path, score))
    hits.sort(key=lambda hit: hit.path)
    hits.sort(key=lambda hit: hit.score, reverse=True)
    return hits


# ── the report ────────────────────────────────────────────────────────────────────────────────────────────────────

WIDTH: Final = 100


def heading(text: str) -> str:
    return f"── {text} ".ljust(WIDTH, "─")


def clip(text: str, width: int) -> str:
    """One printable line of at most `width` characters: pages may hold anything, terminals must not."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if len(line) <= width else f"{line[: width - 1]}…"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def title(path: str) -> str:
    """``open(2)``, ``de:ls(1)`` for a translation; the name of the file where it is no man page."""
    page = Path(path)
    if not is_man_page(page):
        return page.name
    name = re.sub(r"\.(?:gz|bz2|xz|lzma|zst)$", "", page.name)
    name, _, section = name.rpartition(".")
    folder = page.parent.parent.name
    language = f"{folder}:" if re.fullmatch(r"(?!man$)[a-z]{2,3}(?:_[A-Z]{2})?(?:[.@].*)?", folder) else ""
    return f"{language}{name}({section})"


def overview(index: Index) -> list[str]:
    kinds = ", ".join(plural(count, kind) for kind, count in index.tally.kinds.items())
    size = sum(len(column) * column.itemsize for column in index[1:] if isinstance(column, array))
    size += len(index.terms) + len(index.postings) + sum(len(path.encode()) for path in index.pages)
    folder = os.path.commonpath(index.pages) if len(index.pages) > 1 else "".join(index.pages)
    facts = [
        f"{plural(sum(index.lengths), 'word')}, {len(index.terms.split(NEW_LINE)) if index.terms else 0:,} distinct",
        plural(sum(index.counts), "posting"),
        f"{size / 1e6:.1f} MB",
    ]
    return [
        heading("man index"),
        clip(f"{kinds or 'nothing to index'}{f' below {folder}' if folder else ''}", WIDTH),
        " · ".join(facts),
    ]


NEW_LINE: Final = b"\n"


def query_section(verdicts: Sequence[Verdict]) -> list[str]:
    if not verdicts:
        return []
    asked = plural(len(verdicts), "query", "queries")
    lines = [heading(f"{asked} · the index answers as all pages do")]
    for verdict in verdicts:
        best = "  ".join(f"{hit.score / 65_536:.1f} {clip(title(hit.path), 22)}" for hit in verdict.best)
        lines.append(clip(f"{verdict.pages:>7,}  {clip(str(verdict.query), 30):<30}  {best}", WIDTH))
    return lines


def finding_section(tally: Tally) -> list[str]:
    lines = [heading("not in the index")]
    if tally.pointers:
        lines.append(f"{plural(tally.pointers, 'page')} only {'point' if tally.pointers > 1 else 'points'} to another")
    if tally.empty:
        lines.append(plural(tally.empty, "page without words", "pages without words"))
    for path, problem in tally.shown:
        lines.append(clip(f"✗ {clip('/'.join(Path(path).parts[-3:]), 50)}  {problem}", WIDTH))
    if tally.problems > len(tally.shown):
        lines.append(f"✗ and {tally.problems - len(tally.shown):,} more")
    return lines if len(lines) > 1 else []
