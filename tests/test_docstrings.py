"""Docstrings: every public coroutine says what cancellation leaves behind."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("engine", "load_tests")

SAYS = re.compile(r"\bcancel", re.IGNORECASE)
POINTS = re.compile(r"^See `?(\w+)`?[.:]")
"""Such as `See Source.`: whoever implements a protocol inherits what it says."""


@dataclass(frozen=True)
class Coroutine:
    """A public coroutine: the class that it belongs to (empty: none), its name and docstring."""

    place: str
    owner: str
    name: str
    docstring: str


def is_public(name: str) -> bool:
    return not name.startswith("_")


def coroutines(text: str, place: str = "") -> Iterator[Coroutine]:
    """The public coroutines of a module, and of its public classes."""

    def walk(body: list[ast.stmt], owner: str) -> Iterator[Coroutine]:
        for node in body:
            match node:
                case ast.AsyncFunctionDef(name=name) if is_public(name):
                    docstring = ast.get_docstring(node) or ""
                    yield Coroutine(f"{place}:{owner}.{name}", owner, name, docstring)
                case ast.ClassDef(name=name) if is_public(name):
                    yield from walk(node.body, name)
                case _:
                    pass

    yield from walk(ast.parse(text).body, "")


def protocols(text: str) -> Iterator[str]:
    """The names of a module's protocols."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).split("[")[0] for base in node.bases}
            if "Protocol" in bases:
                yield node.name


def silent(texts: Mapping[str, str]) -> list[str]:
    """Which coroutines of these modules say nothing of cancellation, here or in their protocol."""
    seams = {name for text in texts.values() for name in protocols(text)}
    found = [one for place, text in texts.items() for one in coroutines(text, place)]
    promised = {
        (one.owner, one.name) for one in found if one.owner in seams and SAYS.search(one.docstring)
    }

    def says(one: Coroutine) -> bool:
        pointer = POINTS.match(one.docstring)
        is_inherited = pointer is not None and (pointer[1], one.name) in promised
        return is_inherited or SAYS.search(one.docstring) is not None

    return [one.place for one in found if not says(one)]


def test_every_public_coroutine_says_what_cancellation_leaves_behind() -> None:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in paths}

    assert sum(1 for text in texts.values() for _ in coroutines(text)) > 100
    assert silent(texts) == []


SEAM = '''
class Source(Protocol):
    async def look(self) -> None:
        """Look. Cancellation changes nothing."""
    async def read(self) -> None:
        """Read."""
'''


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('async def look():\n    """Look."""', ["look"]),
        ("async def look(): ...", ["look"]),
        ('async def look():\n    """Look. Cancellation changes nothing."""', []),
        ("async def _look(): ...", []),
        ("class _Own:\n    async def look(self): ...", []),
        ('class Own:\n    async def look(self):\n        """See Source."""', []),
        ('class Own:\n    async def read(self):\n        """See Source."""', ["read"]),
        ('class Own:\n    async def look(self):\n        """See Other."""', ["look"]),
        ('class Own:\n    async def other(self):\n        """See Source."""', ["other"]),
    ],
)
def test_a_coroutine_without_a_word_of_it_is_found(text: str, names: list[str]) -> None:
    found = [place.rsplit(".", 1)[-1] for place in silent({"own": text, "seam": SEAM})]

    # The seam's own `read` says nothing either.
    assert sorted(found) == sorted([*names, "read"])
