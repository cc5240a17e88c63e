"""Questions to whoever sits at the terminal.

Cancellation by Ctrl-C ends the command; nothing that was answered has had an effect by then.
"""

from collections.abc import Callable
from typing import TypeVar

from engine.cli.options import Usage
from engine.cli.output import flush, say
from engine.model.printable import printable

Answer = TypeVar("Answer")


def asked(question: str, usual: str, taken: Callable[[str], Answer]) -> Answer:
    """Ask until `taken` takes the answer. An empty one means the usual one, where there is one.

    `taken` raises Usage for an answer that cannot be. Raises Usage where nobody answers any more.
    """
    say(question)
    while True:
        flush()
        try:
            answer = input(f"  [{printable(usual)}] > " if usual else "  > ").strip() or usual
        except EOFError:
            say()
            raise Usage("the answers ended before everything was asked") from None
        if not answer:
            continue
        try:
            return taken(answer)
        except Usage as refusal:
            say(f"  {printable(str(refusal))}")
