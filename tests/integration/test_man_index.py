"""workflows/man_index.py: finding, reading, markup, words, the index and its queries, one by one and in one plain loop.

Nothing here starts an engine: the functions are called as they are.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from flowlane import FlowError
from flowlane.loader import load_file, module_name_for

FILE = Path(__file__).parents[2] / "workflows" / "man_index.py"
# once for both files of tests: a second load would make its classes other ones
man: Any = sys.modules.get(module_name_for(FILE)) or load_file(FILE)


# ── which files ───────────────────────────────────────────────────────────────────────────────────────────────────


def write(path: Path, content: str | bytes = "some words\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def found(root: Path, *roots: Path, limit: int = 0) -> list[str]:
    return [path.relative_to(root).as_posix() for path in man.find_pages.fn(roots or [root], limit)]


def test_man_pages_are_told_by_their_name_and_folder(tmp_path: Path) -> None:
    pages = [
        "man1/ls.1", "man1/x.1.gz", "man3/open.3perl.bz2", "man3/a.b.3pm.xz", "man8/k.8.zst", "mann/tk.n", "cat1/old.1",
        "de/man1/ls.1.gz", "ja.eucJP/man1/ls.1",
    ]  # fmt: skip
    for name in [*pages, "man1/README", "man1/x.gz", "man1/x.1.orig", "man1/x.12abc~", "ls.1", "doc/notes.txt"]:
        write(tmp_path / name)
    assert sorted(found(tmp_path)) == sorted(pages)


def test_pages_near_their_root_come_first_and_the_limit_takes_those(tmp_path: Path) -> None:
    for name in ("de/man1/a.1", "man1/b.1", "man8/a.8", "man1/a.1"):
        write(tmp_path / name)
    assert found(tmp_path) == ["man1/a.1", "man1/b.1", "man8/a.8", "de/man1/a.1"]
    assert found(tmp_path, limit=3) == ["man1/a.1", "man1/b.1", "man8/a.8"]


def test_a_file_is_one_page_however_many_names_it_has(tmp_path: Path) -> None:
    page = write(tmp_path / "man1/vi.1")
    (tmp_path / "man1/aaa.1").symlink_to("vi.1")  # first by name, and yet only a link
    os.link(page, tmp_path / "man1/vim.1")
    (tmp_path / "man8").mkdir()
    (tmp_path / "man8/vi.8").symlink_to("../man1/aaa.1")
    assert found(tmp_path) == ["man1/vi.1"]


def test_a_link_out_of_the_roots_is_a_page(tmp_path: Path) -> None:
    write(tmp_path / "opt/tool.txt")
    (tmp_path / "man/man1").mkdir(parents=True)
    (tmp_path / "man/man1/tool.1").symlink_to("../../opt/tool.txt")
    assert found(tmp_path, tmp_path / "man") == ["man/man1/tool.1"]


def test_links_in_a_circle_to_nowhere_and_to_no_file_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "man1/a.1")
    (tmp_path / "man1/up").symlink_to("..")
    (tmp_path / "de").symlink_to(".")
    (tmp_path / "man1/round.1").symlink_to("trip.1")
    (tmp_path / "man1/trip.1").symlink_to("round.1")
    (tmp_path / "man1/gone.1").symlink_to("nowhere.1")
    (tmp_path / "man1/folder.1").mkdir()
    os.mkfifo(tmp_path / "man1/pipe.1")  # reading it would wait for ever
    assert found(tmp_path) == ["man1/a.1"]


def test_a_folder_is_entered_by_its_own_name_and_once_for_all_roots(tmp_path: Path) -> None:
    write(tmp_path / "fr/man1/a.1")
    (tmp_path / "eo").symlink_to("fr")
    assert found(tmp_path) == ["fr/man1/a.1"]
    assert found(tmp_path, tmp_path, tmp_path / "fr", tmp_path / "absent") == ["fr/man1/a.1"]


def test_documents_stand_in_where_there_are_no_man_pages(tmp_path: Path) -> None:
    documents = ["a.md", "b/c.rst", "b/c.txt.gz", "b/mod.py"]
    for name in [*documents, "b/data.json", "__pycache__/x.py", "node_modules/x.md"]:
        write(tmp_path / name)
    assert found(tmp_path) == documents
    write(tmp_path / "man1/a.1")
    assert found(tmp_path) == ["man1/a.1"]


def test_a_machine_without_man_pages_has_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(man, "man_roots", lambda: [tmp_path])
    pages = man.find_pages.fn(None, 50)
    assert len(pages) == 50
    assert "modules below " in man.serial(limit=5, queries=2)
    assert not any(man.is_man_page(path) for path in pages)


@pytest.mark.parametrize("roots", [[], ["absent"], ["empty"]])
def test_nothing_to_index_is_no_failure(tmp_path: Path, roots: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    text = man.serial([tmp_path / root for root in roots], ask=["anything"], queries=8)
    assert "nothing to index" in text
    assert "      0  anything" in text


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────

PAGE = ".TH A 1\n.SH NAME\na \\- grüße\n"


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.1", bytes), ("a.1.gz", gzip.compress), ("a.1.bz2", bz2.compress), ("a.1.xz", lzma.compress),
     ("a.1.lzma", lambda raw: lzma.compress(raw, lzma.FORMAT_ALONE)),
     ("a.1.gz", lambda raw: gzip.compress(raw[:9]) + gzip.compress(raw[9:])),
     ("a.1.gz", bytes), ("a.1", gzip.compress), ("a.1.xz", bz2.compress)],
    ids=["plain", "gzip", "bzip2", "xz", "lzma", "members", "plain as gz", "gzip as plain", "bzip2 as xz"],
)  # fmt: skip
def test_a_page_is_unpacked_whatever_its_name_says(tmp_path: Path, name: str, pack: Any) -> None:
    text = man.read_page.fn(write(tmp_path / "man1" / name, pack(PAGE.encode())))
    assert text == (str(tmp_path / "man1" / name), "man page", PAGE, None, None)


PACKED = gzip.compress(PAGE.encode() * 50)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (PACKED[:-12], "ended before"),
        (PACKED[:10], "ended before"),
        (PACKED[:-8] + bytes(8), "CRC"),
        (PACKED[:15] + b"\xff" * 20 + PACKED[35:], ""),
        (PACKED + b"rubbish", "Not a gzipped file"),
        (b"BZh9rubbish rubbish", "Invalid data"),
        (lzma.compress(PAGE.encode())[:-9], "ended before"),
        (b"\x28\xb5\x2f\xfd....", "zstd"),
        (b"\x7fELF\0\0\0", "not text"),
        (codecs.BOM_UTF16_LE + b"a", "truncated"),
    ],
    ids=["cut", "header only", "checksum", "damaged", "more behind", "bzip2", "xz", "zstd", "binary", "utf-16"],
)
def test_a_page_that_cannot_be_read_is_a_finding(tmp_path: Path, raw: bytes, said: str) -> None:
    text = man.read_page.fn(write(tmp_path / "man1/a.1.gz", raw))
    assert text.text == ""
    assert text.problem.startswith("cannot be read: ")
    assert said in text.problem
    index = man.invert.fn(man.tokenise.fn(text))
    assert index.pages == ()
    assert index.tally == ({"man page": 1}, 0, 0, 1, ((text.path, text.problem),))


def test_a_page_that_is_gone_is_a_finding(tmp_path: Path) -> None:
    assert man.read_page.fn(tmp_path / "man1/a.1").problem == "cannot be read: No such file or directory"


def test_a_page_that_unpacks_to_far_more_than_it_is_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(man, "LIMIT", 1 << 20)
    largest, bomb = (gzip.compress(b"word\n" * count, 1) for count in ((1 << 20) // 5, (1 << 20) // 5 + 1))
    assert man.read_page.fn(write(tmp_path / "man1/a.1.gz", largest)).problem is None
    assert man.read_page.fn(write(tmp_path / "man1/b.1.gz", bomb)).problem == "cannot be read: it is over 1 MiB"


@pytest.mark.parametrize(
    ("raw", "folder", "text"),
    [
        ("grüße".encode(), "man", "grüße"),
        (codecs.BOM_UTF8 + "grüße".encode(), "man", "grüße"),
        (codecs.BOM_UTF16_BE + "grüße".encode("utf-16-be"), "man", "grüße"),
        ("grüße".encode("latin-1"), "man", "grüße"),
        ("'\\\" -*- coding: koi8-r -*-\nпомощь".encode("koi8-r"), "ru", "'\\\" -*- coding: koi8-r -*-\nпомощь"),
        ("'\\\" -*- coding: koi8-r -*-\nпомощь".encode(), "ru", "'\\\" -*- coding: koi8-r -*-\nпомощь"),
        ("'\\\" -*- coding: nonsense -*-\n\xe9".encode("latin-1"), "fr", "'\\\" -*- coding: nonsense -*-\n\xe9"),
        ("助け".encode("euc-jp"), "ja.eucJP", "助け"),
        ("pomoč".encode("iso8859-2"), "sl.ISO8859-2@x", "pomoč"),
        (b"\xff\xfd", "xx.nonsense", "\xff\xfd"),
        (b"", "man", ""),
    ],
    ids=[
        "utf-8",
        "mark",
        "utf-16",
        "latin-1",
        "declared",
        "declared wrongly",
        "unknown",
        "folder",
        "modifier",
        "bad folder",
        "empty",
    ],
)
def test_text_is_decoded_by_the_first_that_fits(tmp_path: Path, raw: bytes, folder: str, text: str) -> None:
    assert man.read_page.fn(write(tmp_path / folder / "man1/a.1", raw)).text == text


def test_a_page_that_points_to_another_tells_which(tmp_path: Path) -> None:
    target = write(tmp_path / "man3/printf.3.gz", PACKED)
    for name, content in {
        "man3/fprintf.3": ".so man3/printf.3\n",
        "man3/dprintf.3": '.\\" a comment\n.so man3/fprintf.3\n\n',  # by way of another
        "man3/sprintf.3": "'so printf.3.gz",  # beside it
    }.items():
        text = man.read_page.fn(write(tmp_path / name, content))
        assert (text.see, text.text, text.problem) == (str(target), "", None), name
        assert man.invert.fn(man.tokenise.fn(text)).tally.pointers == 1


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("man3/gone.3", "is not there"),
        ("/etc/hostname", "is not there"),
        ("../../etc/hostname", "is not there"),
        ("man3/a.3", "in a circle"),
        ("man3/b.3", "in a circle"),
    ],
)
def test_a_pointer_that_leads_nowhere_out_or_round_is_a_finding(tmp_path: Path, target: str, said: str) -> None:
    write(tmp_path / "man3/b.3", ".so man3/a.3\n")
    text = man.read_page.fn(write(tmp_path / "man3/a.3", f".so {target}\n"))
    assert said in text.problem
    assert (text.see, text.text) == (None, "")


def test_a_page_that_includes_another_is_a_page(tmp_path: Path) -> None:
    text = man.read_page.fn(write(tmp_path / "man1/a.1", ".so macros\n.SH NAME\nwords\n"))
    assert (text.see, text.problem) == (None, None)
    assert listed(text.text) == ["name", "words"]


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Open a FILE, read-only: O_RDONLY|__init__ (3).", "open file read only o_rdonly __init__"),
        ("don't e.g. x86_64 2038", "don x86_64 2038"),
        ("Straße STRASSE ﬁle ｆｕｌｌ Ünïcode", "strasse strasse file full ünïcode"),
        ("__ ___ _1 a_", "_1 a_"),
        ("Справка, 助け。検索する。", "справка 助け 検索する"),
        ("x" * 40 + " " + "y" * 41 + " z", "x" * 40),
        ("\0\x1b[1m \u2028\n\t", "1m"),
        ("", ""),
    ],
)
def test_words(text: str, words: str) -> None:
    assert man.words(text) == words.split()


def listed(source: str) -> list[str]:
    return man.words(man.Roff(source).plain())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "\\fBbold\\fP \\f[CW]type\\fR \\f(BIboth\\fR \\s-1SMALL\\s0 \\s+(12big\\s'0' \\m[red]red\\m[]",
            "bold type both small big red",
        ),
        (
            "in\\-line two\\ words half\\|space break\\:able hy\\%phen \\&.dot un\\c\nbroken one\\\nline",
            "in line two words halfspace breakable hyphen dot unbroken oneline",
        ),
        (
            "caf\\('e na\\[:i]ve \\[u00E9]t\\[u0065_0301] stra\\(sse \\(*alpha x\\(uly don\\(aqt \\(co98",
            "café naïve été strasse αlpha x_y don 98",
        ),
        (
            "C:\\etemp \\h'2n'gap \\v'-1'up\\v'1' \\w'width'u \\n(.gone \\nxtwo \\k(txthree \\z\\(oqquoted",
            "temp gap up one two three quoted",
        ),
        ("\\*(lqquote\\*(rq \\*R \\*[nothing]thing \\(bogus \\[bogus2]ok \\", "quote thing gus ok"),
        ('text \\" a comment\nmore \\# another\nend', "text more end"),
        ("plain .not a request\n .nor this", "plain not request nor this"),
    ],
    ids=["fonts", "blanks", "letters", "motions", "strings", "comments", "text"],
)
def test_escapes_go_and_what_they_show_stays(source: str, words: str) -> None:
    assert listed(source) == words.split()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            '.TH LS 1 "June 2024" "GNU coreutils" "User Commands"\n.SH "SEE ALSO"\n.BR open (2), gunzip',
            "ls see also open gunzip",
        ),
        (
            '.BI \\-\\-file= name\n.IR in to\n.B "two words" three\n.RB pre "fix ed"',
            "file name into two words three prefix ed",
        ),
        (".TP 10\n.IP tagged 4\n.PD 0\n.sp 2v\n.in +4n\n.nf\n.ta 20 30\nkept\n.fi", "tagged kept"),
        ('.\\" a comment\n\'\\" another\n.\\# more\n.\n\'\n. \\" spaced\nkept', "kept"),
        (
            ".de XX\n.B macro\ntext\n..\n.de YY ZZ\n..\ntext\n.ZZ\n.ig\nignored\n..\n.am1 XX\nmore\n. .\n.XX kept\n",
            "kept",
        ),
        (
            ".ds Na Python\n.as Na ista\n.ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\nThe \\*(NaX \\*[Na] don\\*(Aqt",
            "the pythonistax pythonista don",
        ),
        (
            ".TS\nallbox tab(|);\nlb lb\nl l.\nName\tMeaning\n_\nFirst\tT{\na long cell\nT}\n.T&\nr r.\nsecond\tcell\n.TE\nafter",
            "name meaning first long cell second cell after",
        ),
        ('.EQ\nx sub 2\n.EN\n.PS\nbox "label"\n.PE\n.SH NAME', "name"),
        (
            ".UR https://example.org\nsite\n.UE .\n.MR mount 8 ,\n.OP \\-q level\n.Unknown with arguments",
            "https example org site mount level with arguments",
        ),
        (".B\n.SH\n.IP\n.TH\n.ie\n.el\n.if\n.if n\n.de\n.ds\n.TS", ""),
        ("W\bWo\bor\brd\bds _\bi_\bt", "words it"),
        ('.B unfinished "quote\n.B a"b "c""d"\n', "unfinished quote"),
    ],
    ids=[
        "title",
        "fonts",
        "layout",
        "comments",
        "definitions",
        "strings",
        "tables",
        "pictures",
        "links",
        "bare",
        "formatted",
        "quotes",
    ],
)
def test_macros_and_requests(source: str, words: str) -> None:
    assert listed(source) == words.split()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (".if n screen\n.if t paper\n.if !n paper\n.if !t screen", "screen screen"),
        (".ie n .B screen\n.el .B paper\nafter", "screen after"),
        (".ie t \\{\\\npaper\n.\\}\n.el \\{\\\nscreen\n.B too\n.\\}\nafter", "screen too after"),
        (".if t \\{\n.if n \\{\nnested\n.\\}\npaper\n.br\\}\nafter", "after"),
        (".if n \\{ first\nsecond \\}\nafter", "first second after"),
        (".ie n \\{\\\n.ie t paper\n.el screen\n.\\}\n.el never", "screen"),
        (
            ".el{\\\norphan\n.if (\\n(rF:(\\n(.g==0)) \\{\\\nnever\n.\\}\n.if '\\*[.T]'dvi' never\n.if\\n(.g .B yes",
            "orphan yes",
        ),
        (".if t \\{\nnever closed\nand more", ""),
    ],
    ids=["if", "ie", "blocks", "nested", "on one line", "ie in ie", "conditions", "open end"],
)
def test_conditions_are_decided_as_for_a_terminal(source: str, words: str) -> None:
    assert listed(source) == words.split()


MDOC = """\
.Dd June 1, 2024
.Dt PING 8
.Os
.Sh NAME
.Nm ping
.Nd send packets
.Sh SYNOPSIS
.Nm
.Op Fl v Ar level
.Oo
.Fl no Ns Cm verbose
.Oc
.Sh DESCRIPTION
.Nm
asks a
.Dq host name ,
see
.Xr ip 4 .
.Bl -tag -width indent -compact
.It Fl count Ns = Ns Ar packets Pq at most
Stop then.
.El
.Fn socket "int domain" "int type"
"""


def test_mdoc_is_read_by_its_own_rules() -> None:
    assert (
        listed(MDOC)
        == (
            "ping name ping send packets synopsis ping level noverbose description ping asks host name see ip"
            " count packets at most stop then socket int domain int type"
        ).split()
    )


MANUAL = """\
.\\" -*- coding: utf-8 -*-
.TH CRATE 1 2024-06-01 "Crate 2" "User's manual"
.SH NAME
crate \\- pack \\fIfiles\\fP \\(em and unpack \\*(lqthem\\*(rq
.SH SYNOPSIS
.B crate
[\\fB\\-v\\fR] \\fB\\-\\-level\\fR=\\fIn\\fR
.IR file ...
.SH OPTIONS
.TP
.BR \\-v ", " \\-\\-verbose
Tell more, as
.BR tar (1)
does.
.if t Never seen.
.ie n \\{\\
Seen on screens.
.\\}
.el \\{\\
Seen on paper.
.\\}
.de ZZ
.B macro
..
.IP \\(bu 2
C:\\eTEMP caf\\('e
.TS
l l.
Key\tValue
one\tT{
a cell
T}
.TE
"""


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not here")
@pytest.mark.parametrize("source", [MANUAL, MDOC], ids=["man", "mdoc"])
def test_the_words_are_those_that_groff_shows(source: str) -> None:
    command = ["groff", "-Kutf8", "-Tutf8", "-t", "-mandoc", "-rLL=500n", "-P-c", "-P-b", "-P-o", "-P-u", "-"]
    done = subprocess.run(command, input=source.encode(), capture_output=True, timeout=30)
    if done.returncode:
        pytest.skip(f"groff cannot format man pages here: {done.stderr.decode()}")
    body = [line for line in done.stdout.decode().splitlines() if line.strip()][1:-1]  # without header and footer
    names = {"crate"} if source is MANUAL else {"ping"}
    shown = Counter(man.words("\n".join(body).replace("\u2010", "-")))
    assert Counter(listed(source)) - shown == Counter(names)  # the title's own
    assert shown - Counter(listed(source)) == Counter()


@pytest.mark.parametrize("seed", range(30))
def test_no_page_whatsoever_raises(seed: int) -> None:
    dice = random.Random(seed)
    pieces = [
        *".'\\\"\\{\\}\n\n\n \t[]()*n",
        ".if ",
        ".ie n ",
        ".el ",
        ".de ",
        "\\*(",
        "\\[",
        "\\s",
        "\\f",
        ".TS\n",
        ".Dd\n",
        ".Nm ",
    ]
    source = "".join(dice.choices([*pieces, "word", "\\h'", "\\C'", "\\[u110000]", "\\[uD800]", "\\N'9'"], k=400))
    text = man.Text("a.1", "man page", source)
    assert man.tokenise.fn(text).problem is None


# ── what travels ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_words_travel_as_one_line(tmp_path: Path) -> None:
    page = man.tokenise.fn(man.read_page.fn(write(tmp_path / "man1/a.1", PAGE)))
    assert page == (str(tmp_path / "man1/a.1"), "man page", " name grüsse ".encode(), None, None)


def test_a_page_without_words_is_told_and_not_indexed() -> None:
    for source in ("", "\n", ".TH\n", "a b . _"):
        page = man.tokenise.fn(man.Text("a.1", "man page", source))
        assert page.line == b""
        index = man.invert.fn(page)
        assert (index.pages, index.terms, index.tally.empty) == ((), b"", 1)


def test_of_a_module_the_docstrings_are_indexed() -> None:
    source = (
        '"""Outer \\d text."""\nx = "no"\nclass C:\n  "Of class."\n  async def f():\n    """Inner."""\n    return 1\n'
    )
    assert man.tokenise.fn(man.Text("a.py", "module", source)).line == b" outer text of class inner "
    page = man.tokenise.fn(man.Text("a.py", "module", "def f(:\n"))
    assert (page.line, page.problem) == (b"", "has no docstrings: invalid syntax")


def test_a_huge_page_is_a_page_like_others() -> None:
    source = ".SH NAME\n" + "".join(f".B word{number % 5000}\nand\n" for number in range(100_000))
    index = man.invert.fn(man.tokenise.fn(man.Text("a.1", "man page", source)))
    assert (index.lengths[0], len(index.terms.split())) == (200_001, 5_002)
    assert len(pickle.dumps(index, 5)) < 80_000
    lookup = man.Lookup(index)
    assert lookup.times("and") == {0: 100_000}
    assert lookup.times("word*") == {0: 100_000}


# ── the index ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [0, 1, 127, 128, 129, 16_383, 16_384, 1 << 31, (1 << 63) + 5])
def test_varints_come_back(number: int) -> None:
    assert list(man.numbers_of(man.varint(number) * 2 + man.varint(7))) == [number, number, 7]


@pytest.mark.parametrize(("most", "width"), [(0, 1), (255, 1), (256, 2), (65_535, 2), (65_536, 4), (1 << 32, 8)])
def test_columns_are_as_narrow_as_their_numbers(most: int, width: int) -> None:
    column = man.compact([0, most])
    assert (list(column), column.itemsize) == ([0, most], width)


def library(seed: int, pages: int = 60, blank: float = 0.1) -> list[Any]:
    """Pages of made-up words, few of them frequent, many alike at their beginning; some pages without any."""
    dice = random.Random(seed)
    terms = [a + b for a in ("an", "re", "über", "x_") for b in ("", "ing", "ed", "s", "er", "able", "ol", "_t", "7")]
    weights = [1 / (rank + 1) for rank in range(len(terms))]
    made: list[Any] = []
    for number in range(pages):
        words = [] if dice.random() < blank else dice.choices(terms, weights, k=dice.choice((1, 5, 40, 300)))
        line = f" {' '.join(words)} ".encode() if words else b""
        made.append(man.Words(f"/man/man{number % 3}/p{number:03}.{number % 3}", "man page", line))
    return made


def built(pages: list[Any], fan_in: int = 8) -> Any:
    parts = [man.invert.fn(page) for page in pages]
    while len(parts) > 1:
        parts = [man.merge.fn(parts[start : start + fan_in]) for start in range(0, len(parts), fan_in)]
    return man.merge.fn(parts)


def contents(index: Any) -> dict[str, dict[str, int]]:
    lookup = man.Lookup(index)
    return {
        term.decode(): {index.pages[page]: times for page, times in lookup.postings(place)}
        for place, term in enumerate(lookup.terms)
    }


@pytest.mark.parametrize("seed", range(5))
def test_an_index_holds_what_its_pages_hold(seed: int) -> None:
    pages = library(seed)
    expected: dict[str, dict[str, int]] = {}
    for page in pages:
        for word, times in Counter(page.line.decode().split()).items():
            expected.setdefault(word, {})[page.path] = times
    index = built(pages)
    assert contents(index) == expected
    assert index.pages == tuple(page.path for page in pages if page.line)
    assert list(index.lengths) == [len(page.line.split()) for page in pages if page.line]
    assert list(index.counts) == [len(expected[term.decode()]) for term in index.terms.split(b"\n")]
    assert index.tally.kinds == {"man page": len(pages)}
    assert index.tally.empty == sum(not page.line for page in pages)


@pytest.mark.parametrize("seed", range(5))
def test_any_tree_of_merges_makes_the_same_index(seed: int) -> None:
    """
    p0  p1  p2  p3  p4 …        the shape is drawn: any neighbours may be merged, any number of them, with nothing between
      \\ /    \\  |  /
       m       m
         \\    /
           m
    """
    dice = random.Random(seed)
    pages = library(seed, pages=40)
    parts = [man.invert.fn(page) for page in pages]
    flat = man.merge.fn(parts)
    while len(parts) > 1:
        start = dice.randrange(len(parts))
        group = parts[start : start + dice.randint(1, 7)]
        parts[start : start + len(group)] = [man.merge.fn(group if dice.random() < 0.7 else [*group, man.NOTHING])]
    assert parts == [flat] == [built(pages, 2)] == [built(pages, 3)]
    assert pickle.loads(pickle.dumps(flat)) == flat


def test_merging_nothing_is_nothing() -> None:
    assert man.merge.fn([]) == man.NOTHING
    assert man.merge.fn([man.NOTHING, man.NOTHING]) == man.NOTHING


def test_the_order_of_pages_changes_no_answer() -> None:
    pages = library(3)
    shuffled = pages[:]
    random.Random(4).shuffle(shuffled)
    one, two = (man.choose_queries.fn(built(each), 11, 30) for each in (pages, shuffled))
    assert one == two


def test_a_tally_keeps_the_first_problems_by_path() -> None:
    pages = [man.Words(f"/p{number:02}", "document", problem="broken") for number in range(30)]
    random.Random(1).shuffle(pages)
    tally = built(pages, 4).tally
    assert (tally.problems, len(tally.shown)) == (30, man.SHOWN)
    assert [path for path, _ in tally.shown] == [f"/p{number:02}" for number in range(man.SHOWN)]


def test_an_index_costs_a_few_bytes_a_posting() -> None:
    index = built(library(5, pages=1_000))
    assert len(index.postings) / sum(index.counts) < 2.5


# ── queries ───────────────────────────────────────────────────────────────────────────────────────────────────────

SMALL = {
    "/man/man2/open.2": "open file descriptor file flags",
    "/man/man2/close.2": "close file descriptor",
    "/man/man2/socket.2": "socket descriptor domain",
    "/man/man7/ip.7": "ip socket options sockets socketpair",
}


def small() -> list[Any]:
    return [man.Words(path, "man page", f" {text} ".encode()) for path, text in SMALL.items()]


def names(hits: list[Any]) -> list[str]:
    return sorted(man.title(hit.path).partition("(")[0] for hit in hits)


@pytest.mark.parametrize(
    ("text", "pages"),
    [
        ("file", "close open"),
        ("FILE descriptor", "close open"),
        ("flags|domain", "open socket"),
        ("descriptor -file", "socket"),
        ("descriptor flags|domain -socket", "open"),
        ("sock*", "ip socket"),
        ("socket* -sockets", "socket"),
        ("desc*|ip", "close ip open socket"),
        ("file -fil*", ""),
        ("absent", ""),
        ("absent|open", "open"),
        ("zzz*", ""),
        ("fil", ""),
        ("open open", "open"),
    ],
)
def test_queries_find_their_pages(text: str, pages: str) -> None:
    query = man.parse_query(text)
    assert names(man.Lookup(built(small())).answer(query)) == pages.split()
    assert names(man.read_all(query, small())) == pages.split()


def test_a_query_is_written_as_it_is_read() -> None:
    for text in ("socket bind|listen* -udp", "a1", "x_*", "straße*"):
        assert str(man.parse_query(text)) == text.replace("ß", "ss")


@pytest.mark.parametrize(
    "text", ["", " ", "-udp", "a|", "|", "*", "x", "a*b", "two-words", "--x", "ab||cd", "x" * 41, "_"]
)
def test_what_cannot_be_asked_is_refused(text: str) -> None:
    with pytest.raises(FlowError, match=re.escape(repr(text))):
        man.parse_query(text)


def test_scores_are_those_of_bm25() -> None:
    """By hand: 4 pages of 5, 3, 3 and 5 words, 4 on average; two of them hold "file"."""
    found = {hit.path: hit.score for hit in man.Lookup(built(small())).answer(man.parse_query("file"))}
    weight = 64  # log2((4 + 1) / (2 + 1/2)) is one bit
    for path, times, length in (("/man/man2/open.2", 2, 5), ("/man/man2/close.2", 1, 3)):
        share = (
            Fraction(times)
            * Fraction(11, 5)
            / (times + Fraction(6, 5) * (Fraction(1, 4) + Fraction(3, 4) * length / 4))
        )
        assert found[path] == int(1024 * weight * share)


@pytest.mark.parametrize("seed", range(12))
def test_the_index_answers_as_reading_everything_does(seed: int) -> None:
    pages = library(seed, pages=80)
    for claim in man.choose_queries.fn(built(pages), seed, 21):
        verdict = man.check.fn(claim, pages)
        assert verdict == (claim.query, len(claim.hits), tuple(claim.hits[: man.BEST]))


def test_made_up_queries_are_of_every_kind_and_mostly_find_something() -> None:
    claims = man.choose_queries.fn(built(library(1, pages=80)), 7, 70)
    assert sum(bool(claim.hits) for claim in claims) > 40
    assert not all(claim.hits for claim in claims)
    queries = [claim.query for claim in claims]
    assert any(len(query.groups) > 1 for query in queries) and any(len(query.groups[0]) > 1 for query in queries)
    assert any(query.without for query in queries) and any("*" in str(query) for query in queries)
    assert queries == [claim.query for claim in man.choose_queries.fn(built(library(1, pages=80)), 7, 70)]
    assert queries != [claim.query for claim in man.choose_queries.fn(built(library(1, pages=80)), 8, 70)]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda hits: hits[:-1],
        lambda hits: [*hits, hits[0]],
        lambda hits: [hits[0]._replace(score=hits[0].score + 1), *hits[1:]],
        lambda hits: [hits[0]._replace(path="/man/man1/other.1"), *hits[1:]],
        lambda hits: [hits[1], hits[0], *hits[2:]],
    ],
    ids=["one missing", "one too many", "score", "page", "order"],
)
def test_a_wrong_answer_is_found(spoil: Any) -> None:
    query = man.parse_query("file|descriptor")
    hits = man.Lookup(built(small())).answer(query)
    with pytest.raises(man.Disagreement, match=r"'file\|descriptor'"):
        man.check.fn(man.Claim(query, spoil(hits)), small())


def test_a_damaged_index_is_found() -> None:
    pages = library(2)
    index = built(pages)
    spoilt = index._replace(postings=index.postings[:-1] + bytes([index.postings[-1] ^ 1]))
    last = index.terms.rpartition(b"\n")[2].decode()
    (claim,) = man.choose_queries.fn(spoilt, 7, 0, [man.parse_query(last)])
    with pytest.raises(man.Disagreement):
        man.check.fn(claim, pages)


# ── the report, and a whole loop ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("/usr/share/man/man1/ls.1.gz", "ls(1)"),
        ("/usr/share/man/de/man3/a.b.3pm", "de:a.b(3pm)"),
        ("/usr/share/doc/x/README.txt", "README.txt"),
    ],
)
def test_pages_have_the_titles_that_people_use(path: str, title: str) -> None:
    assert man.title(path) == title


def tree(root: Path) -> Path:
    """A little of everything that a tree of man pages may hold."""
    write(root / "man1/crate.1.gz", gzip.compress(MANUAL.encode()))
    write(root / "man8/ping.8", MDOC)
    write(root / "man8/ping6.8", ".so man8/ping.8\n")
    write(
        root / "de/man8/ping.8.bz2",
        bz2.compress(MDOC.replace("send packets", "Pakete senden für Fortgeschrittene").encode("latin-1")),
    )
    write(root / "man1/broken.1.gz", PACKED[:-12])
    write(root / "man1/esc\x1b[31m.1.gz", PACKED[:20])
    write(root / "man1/empty.1", "")
    (root / "man1/box.1.gz").symlink_to("crate.1.gz")
    (root / "man1/loop").symlink_to("..")
    return root


def test_the_report_tells_what_is_in_the_tree(tmp_path: Path) -> None:
    text = man.serial([tree(tmp_path)], ask=["pakete", "ping -pack*"])
    for told in (
        "7 man pages below ",
        "22 queries · the index answers as all pages do",
        "      1  pakete                          1.4 de:ping(8)",
        "      0  ping -pack*\n",
        "crate(1)",
        "1 page only points to another",
        "1 page without words",
        "broken.1.gz  cannot be read: Compressed file ended before",
    ):
        assert told in text, text


def test_no_line_of_a_report_is_wider_than_a_terminal_or_hostile_to_it(tmp_path: Path) -> None:
    root = tree(tmp_path)
    write(root / f"man1/{'long' * 50}\x1b]0;.1", MANUAL)
    write(root / f"man1/{'wide' * 50}.1.gz", PACKED[:20])
    text = man.serial([root], ask=["|".join(f"word{number}" for number in range(30)), "crate"])
    assert all(len(line) <= man.WIDTH for line in text.splitlines())
    assert all(char.isprintable() for char in text.replace("\n", ""))


def test_the_same_tree_has_the_same_report(tmp_path: Path) -> None:
    root = tree(tmp_path)
    assert man.serial([root]) == man.serial([root])
    assert man.serial([root], seed=8) != man.serial([root])


def test_the_pages_of_this_machine_whatever_they_are() -> None:
    text = man.serial(limit=40, queries=7)
    assert re.match(r"── man index ─+\n40 (man pages|modules|documents)", text), text
    assert "7 queries · the index answers as all pages do" in text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_pages_of_this_machine_fit_in_a_few_dozen_megabytes() -> None:
    pages = [man.tokenise.fn(man.read_page.fn(path)) for path in man.find_pages.fn(None, 0)]
    index = built(pages)
    assert len(pickle.dumps(index, 5)) < 100 * 2**20
    for claim in man.choose_queries.fn(index, 7, 20):
        man.check.fn(claim, pages)
