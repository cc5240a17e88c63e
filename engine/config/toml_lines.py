"""Where each key stands in a TOML text.

Strategy: `tomllib` parses and checks. This module only finds lines. So it reads text that is known
to be valid TOML 1.0, and walks over values without understanding them. No maintained library gives
both values and lines without a native parser.

Invariant: every key, table header and array element of the document has a path here. A path holds
names, and numbers where an array is indexed.
"""

import re
import tomllib
from bisect import bisect_right

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY_PART = re.compile(
    r"""[ \t]*(?:(?P<bare>[A-Za-z0-9_-]+)|(?P<basic>"(?:[^"\\\n]|\\.)*")|'(?P<literal>[^'\n]*)')[
    \t]*"""
)
# A multi-line string may end in up to two quotes of its own.
_STRING = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|\'{3}.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*\'''', re.DOTALL
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


def key_lines(text: str) -> dict[Path, int]:
    """The line (from 1) on which each path of the valid document `text` begins."""
    scan = _Scan(text)
    scan.document()
    return scan.lines


class _Scan:
    """One walk over one text; `_at` is where it stands."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._array_lengths: dict[Path, int] = {}

    def document(self) -> None:
        table: Path = ()
        self._skip_blank()
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip_blank()

    def _header(self) -> Path:
        start = self._at
        is_array = self._text.startswith("[[", start)
        self._at += 2 if is_array else 1
        names = self._key()
        self._at += 2 if is_array else 1
        path: Path = ()
        for name in names[:-1]:
            path = self._newest((*path, name))
            self.lines.setdefault(path, self._line(start))
        path = (*path, names[-1])
        if is_array:
            self.lines.setdefault(path, self._line(start))
            self._array_lengths[path] = self._array_lengths.get(path, 0) + 1
            path = self._newest(path)
        self.lines[path] = self._line(start)
        return path

    def _newest(self, path: Path) -> Path:
        length = self._array_lengths.get(path)
        return path if length is None else (*path, length - 1)

    def _pair(self, table: Path) -> None:
        start = self._at
        path = table
        for name in self._key():
            path = (*path, name)
            self.lines.setdefault(path, self._line(start))
        self._at += 1  # The equals sign.
        self._value(path)

    def _key(self) -> list[str]:
        names: list[str] = []
        while True:
            match = _KEY_PART.match(self._text, self._at)
            assert match is not None, "the text is valid TOML"
            self._at = match.end()
            names.append(_name(match))
            if not self._text.startswith(".", self._at):
                return names
            self._at += 1

    def _value(self, path: Path) -> None:
        self._skip_blank()
        match self._text[self._at]:
            case "[":
                self._array(path)
            case "{":
                self._inline_table(path)
            case '"' | "'":
                self._skip(_STRING)
            case _:
                self._skip(_SCALAR)

    def _array(self, path: Path) -> None:
        self._at += 1
        index = 0
        while not self._closes("]"):
            self.lines[(*path, index)] = self._line(self._at)
            self._value((*path, index))
            index += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while not self._closes("}"):
            self._pair(path)

    def _closes(self, bracket: str) -> bool:
        """Step over what separates two elements; True once the closing bracket is passed."""
        self._skip_blank()
        if self._text[self._at] == ",":
            self._at += 1
            self._skip_blank()
        if self._text[self._at] == bracket:
            self._at += 1
            return True
        return False

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        assert match is not None, "the text is valid TOML"
        self._at = match.end()

    def _skip_blank(self) -> None:
        self._skip(_BLANK)

    def _line(self, at: int) -> int:
        return bisect_right(self._line_starts, at)


def _name(match: re.Match[str]) -> str:
    if match["basic"] is not None:
        return str(tomllib.loads(f"name = {match['basic']}")["name"])
    return match["bare"] if match["bare"] is not None else match["literal"]
