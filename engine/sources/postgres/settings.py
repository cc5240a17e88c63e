"""The settings of our sessions: each one that a role, a database, a server or a dsn could change.

Strategy: four kinds of setting are pinned at the start of every session: those that shape values,
limit times, decide which function runs, or decide what the server writes down. So they are in force
before the first answer. A setting that is given at the start wins over postgresql.conf, ALTER
DATABASE, ALTER ROLE, and over the dsn's own `options`, which come before ours. A setting that older
servers do not know would end the connection there. It is set right afterwards, if the server's
version has it.

Only settings that every role may set are here, because one that only superusers may set would end
an ordinary role's connection. Those (`log_statement`, say) belong to the server's administrator,
and our SQL holds no row's value that they could show. docs/settings.md has the table and the
reasons.
"""

from collections.abc import Mapping
from typing import Final

SHAPING_SETTINGS: Final[tuple[tuple[str, str], ...]] = (
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "iso_8601"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "3"),
    ("lc_monetary", "C"),
    # Values of regclass, regtype and their like leave the schema out where the path finds the
    # object without it. With pg_temp last, no temporary object comes before PostgreSQL's own names.
    ("search_path", "pg_catalog, pg_temp"),
    ("quote_all_identifiers", "off"),
)
"""Session settings that shape values as text. They belong to the record configuration."""

_PATIENCE: Final[Mapping[str, str]] = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    # The server's side of a connection: it notices in 25 s that our machine is gone.
    "tcp_user_timeout": "0",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
"""The server's time limits. Ours are kept on our side."""

_TRANSACTIONS: Final[Mapping[str, str]] = {
    "default_transaction_read_only": "off",
    # A standby has no serializable transactions, and deferrable ones wait for others.
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    # Our own stream may be a synchronous standby. Then a commit of ours would wait for ourselves.
    "synchronous_commit": "local",
    "exit_on_error": "off",
    # A policy is then an error instead of fewer rows.
    "row_security": "off",
    # Rights are those of the role that logs in.
    "role": "none",
}

_WORDS: Final[Mapping[str, str]] = {
    # PostgreSQL 18 says in a warning alone that a publication is missing.
    "client_min_messages": "warning",
    "log_parameter_max_length_on_error": "0",
    "debug_print_parse": "off",
    "debug_print_rewritten": "off",
    "debug_print_plan": "off",
}
"""What the server tells us, and what it writes down of our statements."""

_READING: Final[Mapping[str, str]] = {
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
    "transform_null_equals": "off",
    "array_nulls": "on",
    "xmloption": "content",
    "xmlbinary": "base64",
    "lc_numeric": "C",
    "lc_time": "C",
    "local_preload_libraries": "",
}
"""How SQL and constants are read, and by which code."""

_PLANS: Final[Mapping[str, str]] = {
    "plan_cache_mode": "auto",
    # Compiling costs more than any of our questions; a worker process is more that can fail.
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    # Without these, questions about thousands of tables take quadratic time.
    "enable_bitmapscan": "on",
    "enable_hashjoin": "on",
    "enable_indexscan": "on",
    "enable_mergejoin": "on",
    "enable_nestloop": "on",
    "enable_seqscan": "on",
    "enable_sort": "on",
    # Without it each range of a snapshot would read its whole table.
    "enable_tidscan": "on",
    "from_collapse_limit": "8",
    "join_collapse_limit": "8",
}
"""How questions about the catalog are planned."""

PINNED_SETTINGS: Final[Mapping[str, str]] = {
    **dict(SHAPING_SETTINGS),
    **_PATIENCE,
    **_TRANSACTIONS,
    **_WORDS,
    **_READING,
    **_PLANS,
}
"""These are in force from the start of every session. Every role may set each of them, since
PostgreSQL 14."""

_LATER_SETTINGS: Final[tuple[tuple[int, str, str], ...]] = (
    # `immediate` is for PostgreSQL's own tests: it spills every change to disk.
    (160000, "debug_logical_replication_streaming", "buffered"),
    (170000, "transaction_timeout", "0"),
)
"""Since which version, name, value: older servers refuse a connection that names one."""


def options_of(given: str, settings: Mapping[str, str]) -> str:
    """What libpq sends as `options`: the dsn's own, then `settings`; the last one counts."""
    words = [_escaped(word) for word in _words(given)]
    words += [f"-c {_escaped(f'{name}={value}')}" for name, value in settings.items()]
    return " ".join(words)


def later_statement(server_version: int) -> str:
    """The SQL that pins what was too new for the session's start; empty where nothing is."""
    return "; ".join(
        f"SET {name} = '{value}'"
        for since, name, value in _LATER_SETTINGS
        if server_version >= since
    )


def _words(options: str) -> list[str]:
    """As the server splits options: at white space that no backslash precedes.

    A backslash makes the character behind it literal. One at the very end would join our first
    option to the dsn's last one. The server passes over such a backslash, and so do we.
    """
    words: list[str] = []
    word: list[str] | None = None
    is_literal = False
    for character in options:
        if is_literal or not (character == "\\" or character.isspace()):
            word = [*(word or ()), character]
            is_literal = False
        elif character == "\\":
            is_literal = True
        elif word is not None:
            words.append("".join(word))
            word = None
    if word is not None:
        words.append("".join(word))
    return words


def _escaped(word: str) -> str:
    return "".join(f"\\{c}" if c == "\\" or c.isspace() else c for c in word)
