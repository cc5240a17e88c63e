"""`tailrace resume`: ask the running engine to go on with what is paused."""

from engine.cli.options import ConfigFile, Json, Tables
from engine.cli.pause import WaitOption, ask


def resume(
    *tables: Tables, wait: WaitOption = False, config: ConfigFile = None, json: Json = False
) -> int:
    """Ask the running engine to go on with what is paused: with everything, or with some tables.

    Where the stream paused before a changed shape of a table, that shape is accepted. The changes
    of a table that was passed over are a gap that ends now; with snapshots on, its rows are read
    again. Needs what `tailrace pause` needs. Exit code 1: the request was refused.
    """
    return ask("resume", tables, wait=wait, config=config, json=json)
