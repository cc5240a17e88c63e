"""Whether commits on the server wait for us: its synchronous standbys, and our name among them.

Strategy: the server counts a walsender among its synchronous standbys by application_name alone. It
makes no difference between a reader of logical changes and a real standby. Each COMMIT then waits
until we have acknowledged it, which is when the bucket has it. While we stream, `sync_state` says
whether that is so. Before, the setting is read as the server reads it (manual, chapter 19.6.2, and
syncrep_scanner.l).
"""

import re
from typing import Final

from engine.operate.alarms import Alarms, Cause
from engine.sources.postgres.session import Session

ALARM: Final = "commits-wait"
"""The alarm while commits wait for us, or may come to."""

_SYNC_STATE: Final = """
SELECT sync_state, application_name, pg_catalog.current_setting('synchronous_standby_names')
FROM pg_catalog.pg_stat_replication WHERE pid OPERATOR(pg_catalog.=) %s
"""

_LIST: Final = re.compile(r"\s*(?:(?:ANY|FIRST)\s+)?\d+\s*\((.*)\)\s*", re.IGNORECASE | re.DOTALL)
_NAME: Final = re.compile(r'"((?:[^"]|"")*)"|([^\s,"()]+)')


def listed_names(setting: str) -> tuple[str, ...]:
    """The names in a value of synchronous_standby_names."""
    whole = _LIST.fullmatch(setting)
    names = _NAME.findall(whole[1] if whole else setting)
    return tuple(quoted.replace('""', '"') or plain for quoted, plain in names)


def is_listed(setting: str, application_name: str) -> bool:
    """Whether a walsender of that name may be a synchronous standby."""
    names = listed_names(setting)
    # A quoted star is a star, too: the server compares the text.
    return "*" in names or application_name.lower() in {name.lower() for name in names}


async def watch_commits(session: Session, walsender_pid: int, alarms: Alarms) -> None:
    """Alarm where commits wait for that walsender, and end the alarm where not.

    Raises SourceError. Cancellation leaves the alarm as it was.
    """
    found = await session.rows(_SYNC_STATE, walsender_pid, doing="reading pg_stat_replication")
    cause = _cause(*found[0]) if found else None
    alarms.replace(ALARM, {} if cause is None else {"": cause})


def _cause(state: str | None, name: str | None, setting: str) -> Cause | None:
    if state in {"sync", "quorum"}:
        return Cause(
            f"commits on the server wait until this engine has them in the bucket: it is a"
            f" synchronous standby (sync_state {state}, application_name {name!r})",
            _hint(setting),
        )
    if state == "potential":
        return Cause(
            f"commits on the server would wait for this engine if another synchronous standby went"
            f" away (application_name {name!r})",
            _hint(setting),
        )
    return None


def _hint(setting: str) -> str:
    if "*" in listed_names(setting):
        return (
            "name the real standbys instead of '*': ALTER SYSTEM SET synchronous_standby_names ="
            " 'FIRST 1 (standby1, standby2)', or '' where there is none; then SELECT"
            " pg_reload_conf()"
        )
    return (
        "give application_name in source.dsn a name that synchronous_standby_names does not list,"
        " or take it out there"
    )


def names_warning(setting: str, name: str) -> tuple[str, str] | None:
    """What is wrong where a walsender of that name is a synchronous standby: text and hint."""
    if not is_listed(setting, name):
        return None
    text = (
        f"commits on the server will wait for this engine: synchronous_standby_names = {setting!r}"
        f" matches its application_name {name!r}"
    )
    return text, _hint(setting)
