"""What the harness was asked to measure."""

import msgspec


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one invocation, as they are kept in its result: nothing secret is in it."""

    scenarios: tuple[str, ...]
    """Named ones; none means all that fit `minutes`."""
    rows: int | None
    """In place of each scenario's own size."""
    rounds: int
    postgres_majors: tuple[int, ...]
    """None named means each scenario's own choice."""
    peers: tuple[str, ...]
    minutes: float
    dsn: str
    """Of an external server, without its password; empty for our own."""
    s3_endpoint_url: str
    bucket: str
    region: str
    rate: float | None = None
    """Rows a second, in place of each live scenario's own."""
    snapshot_rate: int | None = None
    """Rows a second, in place of the limit that scenario `snapshot-beside` finds by itself."""
    hours: float = 0.05
    """Of scenario `soak`."""
