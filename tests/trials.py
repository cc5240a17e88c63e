"""What a source's trials come to, for tests: by the name of each code."""

from engine.model.errors import TailraceError
from engine.model.interfaces import Source
from engine.model.trial import Finding


async def trials_of(source: Source, *, is_first: bool) -> dict[str, Finding | TailraceError]:
    """All of them."""
    return {judged.code.name: judged.found async for judged in source.trials(is_first=is_first)}


async def tried(source: Source, name: str, *, is_first: bool) -> Finding:
    """What that one finds. Raises the error that a start would end with."""
    found = (await trials_of(source, is_first=is_first))[name]
    if isinstance(found, TailraceError):
        raise found
    return found
