"""`tailrace drop`: give back what a pipeline holds at its source, when the pipeline is given up."""

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from engine.cli.options import ConfigFile, Json, Usage, same_file
from engine.cli.output import complain, say, say_json, say_next
from engine.cli.questions import asked
from engine.cli.startup import lean_imports
from engine.config import Configuration, load
from engine.model.amount import size_text
from engine.model.errors import LeaseHeld
from engine.model.plural import counted
from engine.model.printable import printable

if TYPE_CHECKING:
    from engine.sources.postgres.giving_up import Held

EXIT_REFUSED = 1

Yes = Annotated[
    bool,
    Parameter(
        name="--yes",
        negative="",
        show_default=False,
        help="Drop without a question. Needed where there is no terminal.",
    ),
]


def drop(*, config: ConfigFile = None, yes: Yes = False, json: Json = False) -> int:
    """Drop the slot and the publication of a pipeline that is given up.

    A slot that nobody reads keeps the server's log until its disk is full. Only what the
    configuration names is dropped, and a publication only where it is this pipeline's alone; what
    is gone already is no error. The bucket stays as it is: nothing is written or deleted there.

    It shows what it will do and asks for the slot's name. It refuses while an engine reads the
    slot: stop that one first. Exit code 1: refused, and nothing was dropped.
    """
    if json and not yes:
        raise Usage("--json asks no question: add --yes")
    configuration = load(config, os.environ).configuration
    with lean_imports():
        from engine import app  # noqa: PLC0415 - a wrong configuration is told before
        from engine.operate import logs  # noqa: PLC0415 - likewise

    logs.configure(configuration.log)
    holdings = app.holdings(configuration)
    held = asyncio.run(holdings.look())
    if held.slot.active_pid is not None:
        return _refused(held, is_json=json)
    if not json:
        _say_held(held, configuration)
    if held.slot.exists or held.drops_publication:
        if not yes and not _is_confirmed(held):
            complain("that is not its name, so nothing was dropped", "run the same command again")
            return EXIT_REFUSED
        try:
            asyncio.run(holdings.drop(held))
        except LeaseHeld:
            return _refused(held, is_json=json)
    if json:
        say_json(_as_json(held, configuration))
    else:
        _say_end(held, same_file(config))
    return 0


def _refused(held: "Held", *, is_json: bool) -> int:
    """Somebody reads the slot."""
    process = held.slot.active_pid
    who = f"process {process} of the server" if process is not None else "an engine"
    text = f'the slot "{printable(held.slot.name)}" is being read by {who}: nothing was dropped'
    if is_json:
        say_json({"dropped": [], "kept": None, "refused": text})
        return EXIT_REFUSED
    complain(
        text,
        "an engine runs, perhaps on another machine. Stop it for good (a service with desired "
        "count 0, a unit that is disabled), then run the same command again",
    )
    return EXIT_REFUSED


def _say_held(held: "Held", configuration: Configuration) -> None:
    """What is there, what goes and what stays."""
    slot, publication = held.slot, held.publication
    say(f"at {printable(held.place)}")
    if slot.exists:
        say(f'    slot "{printable(slot.name)}" will be dropped{_kept_log(held)}', hang=8)
    else:
        say(f'    slot "{printable(slot.name)}" is gone already')
    name = printable(configuration.source.own.publication)
    if publication is None:
        say(f'    publication "{name}" is gone already')
    elif held.drops_publication:
        tables = counted(len(publication.tables), "table")
        say(f'    publication "{name}" of {tables} will be dropped', hang=8)
    else:
        say(f'    publication "{name}" stays: {printable(held.kept_reason)}.', hang=8)
        say(f"    To drop it all the same: `{printable(held.publication_statement)}`", hang=8)
    place = f"s3://{configuration.destination.bucket}/{configuration.destination.prefix}"
    say(f"in {printable(place)}")
    say("    everything stays: objects, journal, and what they prove")
    if slot.exists:
        say("\nChanges that are not in the bucket yet cannot be had afterwards.")


def _kept_log(held: "Held") -> str:
    if held.retained is None:
        return ""
    unread = f", {size_text(held.unread)} of it not durable in the bucket" if held.unread else ""
    return f": it keeps {size_text(held.retained)} of the server's log{unread}"


def _is_confirmed(held: "Held") -> bool:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Usage("there is no terminal to confirm in, so nothing was dropped: add --yes")
    name = held.slot.name
    say()
    return asked(f'Type the name of the slot ("{printable(name)}") to go on', "", str) == name


def _say_end(held: "Held", option: str) -> None:
    if held.slot.exists or held.drops_publication:
        what = [f'slot "{printable(held.slot.name)}"'] * held.slot.exists
        what += ["publication"] * held.drops_publication
        say(f"\ndropped: {' and '.join(what)}")
    else:
        say("\nnothing is there to be dropped")
    say_next(f"tailrace verify --depth full{option}", "proves what is in the bucket")


def _as_json(held: "Held", configuration: Configuration) -> dict[str, object]:
    dropped = [held.slot.name] * held.slot.exists
    publication = configuration.source.own.publication
    return {
        "dropped": [
            *({"kind": "slot", "name": name} for name in dropped),
            *([{"kind": "publication", "name": publication}] * held.drops_publication),
        ],
        "kept": held.kept_reason or None,
        "refused": None,
    }
