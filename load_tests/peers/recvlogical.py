"""`pg_recvlogical -f /dev/null`: what the walsender can deliver to a plain reader."""

from load_tests.peers.peer import Peer, Task


def _command(task: Task) -> tuple[str, ...]:
    return (
        str(task.programs / "pg_recvlogical"),
        f"--dbname={task.dsn}",
        f"--slot={task.slot}",
        "--start",
        "--file=/dev/null",
        "--option=proto_version=1",
        f"--option=publication_names={task.publication}",
        f"--endpos={task.end_lsn}",
        "--no-loop",
    )


RECVLOGICAL = Peer(
    name="pg_recvlogical",
    title="pg_recvlogical -f /dev/null",
    text="PostgreSQL's own program, of the server's release: receives every change and decodes, "
    "compresses and stores nothing. It stands for what the server can deliver to a plain reader.",
    row_us=5.0,
    start_seconds=0.1,
    # It comes with the server.
    absence=lambda: "",
    version=lambda: "",
    command=_command,
)
