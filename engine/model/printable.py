"""Foreign text as it may be printed: whatever would act on a terminal or a line is spelled out.

A table may be called anything. A name with a line end would forge a line of a log. One with an
escape sequence would colour or erase what an operator reads. One with a bidirectional override
would show letters in another order.

Invariant: what `printable` answers is one line of visible characters (and those of `keep`).
"""


def printable_json(text: str) -> str:
    r"""JSON without line ends between its parts, its strings' invisible characters as `\u202e`."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else _json_escape(character) for character in text
    )


def _json_escape(character: str) -> str:
    # A character beyond the first plane takes two of them.
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def printable(text: str, *, keep: str = "") -> str:
    r"""`text` with every character that is not visible written as `\n`, `\x1b`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else repr(character)[1:-1]
        for character in text
    )
