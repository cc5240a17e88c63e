"""What the pipeline is told: its limits and intervals, already parsed."""

from dataclasses import dataclass

from engine.flow.chunk import ChunkLimits
from engine.model.position import LOG_BEGIN, LogPosition
from engine.operate.rights_watch import RIGHT_SECONDS

SCHEMA_SECONDS = 6 * 3600.0
"""A schema.json that was there so long ago is asked for again: rules of a bucket count days."""

PROBE_SECONDS = 10.0
IDLE_SECONDS = 30.0
REQUESTS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Settings:
    """One pipeline's limits. Times are seconds, sizes bytes.

    What an operator may set has no default here: it comes from the configuration. The intervals
    with a default are no keys of the configuration.

    `codec_version` says how lines are written (`engine.lines.writer`). `probe_interval` is how
    often an idle writer looks whether it was superseded. `idle_interval` is how often an idle
    source's position becomes durable. `standby_interval` is how often a standby tries for the
    lease. `watch_interval` is how often what the source publishes is looked at: a loss is to be
    seen within a minute, also where the stream lags by some seconds, or a look takes them.
    `requests_interval` is how often requests to this engine are looked for. `state_seconds` is how
    old the newest state file may become. `unseen_seconds_max` is for how long an engine goes on
    that did not see the journal's end. `schema_seconds` is for how long a schema.json is known to
    be there. `right_seconds` is for how long a right on the bucket is waited for that was there
    before. `check_name` names the object that proves the right to
    write. It is another name for each way in which objects are made. `bucket` is the
    bucket's name, for those who look. `accept_gap` is the place that
    was durable when a loss happened which the operator accepts; empty for none. `stream_waits`: the
    stream waits for the initial snapshot, from the first start under the prefix on.
    """

    bucket: str
    prefix: str
    codec_version: int
    limits: ChunkLimits
    queue_bytes_max: int
    memory_bytes_max: int
    concurrency: int
    append_interval: float
    drain_seconds: float
    stream_waits: bool
    is_until_caught_up: bool = False
    accept_gap: LogPosition = LOG_BEGIN
    start_seconds_max: float = 30.0
    standby_interval: float = 2.0
    probe_interval: float = PROBE_SECONDS
    idle_interval: float = IDLE_SECONDS
    check_name: str = "write"
    watch_interval: float = 50.0
    requests_interval: float = REQUESTS_SECONDS
    state_seconds: float = 6 * 3600.0
    unseen_seconds_max: float = 12 * 3600.0
    schema_seconds: float = SCHEMA_SECONDS
    right_seconds: float = RIGHT_SECONDS

    @property
    def destination(self) -> str:
        """Bucket and prefix in full, as operators know them."""
        return f"s3://{self.bucket}/{self.prefix}"
