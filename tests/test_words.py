"""The core speaks no dialect: no word of PostgreSQL outside the rooms that are about it."""

import re
from pathlib import Path

import engine

PACKAGE = Path(engine.__file__).parent

ABOUT_POSTGRES = (
    "sources/postgres/",
    "servers/",
    "demo/",
    "cli/",
    "config/",
    "app.py",
    "kinds.py",
)

WORDS = re.compile(
    r"lsn|xlog|postgres|pgoutput|replica.?identit|publication|walsender"
    r"|(?<![a-z])slots?(?!\w*=|__)(?![a-z])|(?<![a-z])oids?(?![a-z])",
    re.IGNORECASE,
)

TEXTS = {".py", ".pyx", ".pxd", ".pyi", ".html"}


def found_in(text: str) -> list[str]:
    """Lines with such a word. What Python calls slots is another thing."""
    lines = text.replace("__slots__", "").splitlines()
    return [line.strip() for line in lines if WORDS.search(line)]


def test_no_word_of_postgres_stands_outside_its_rooms() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*")):
        name = path.relative_to(PACKAGE).as_posix()
        if path.suffix in TEXTS and not name.startswith(ABOUT_POSTGRES):
            found[name] = found_in(path.read_text(encoding="utf-8"))

    assert len(found) > 50
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_such_words_are_found() -> None:
    lines = ("commit_lsn = 1", "a slot", "the OID", "PostgreSQL", "replica_identity", "xlogdata")

    assert [line for line in lines if found_in(line)] == list(lines)


def test_other_words_are_let_be() -> None:
    lines = ("@dataclass(slots=True)", '__slots__ = ("a",)', "published", "void", "translated")

    assert [line for line in lines if found_in(line)] == []
