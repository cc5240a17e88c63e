"""One measured run of one reader: what it used, where its time went, what was seen over time.

Invariant: only what was measured is kept here; what follows from it is computed elsewhere.
"""

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one run used, by the operating system's accounts. `started_at` is Unix time.

    None where the process cannot be seen from this machine: an external server.
    """

    started_at: float
    wall_seconds: float
    own_cpu_seconds: float
    peak_rss_bytes: int
    walsender_cpu_seconds: float | None
    s3_cpu_seconds: float | None
    machine_cpu_seconds: float
    """All CPU that the machine used meanwhile: what the rest does not explain is somebody else's,
    the sampler's or the kernel's own."""
    load_average: float
    """Of the minute before the run."""

    @property
    def other_cpu_seconds(self) -> float:
        """What neither the readers nor the servers used."""
        servers = (self.walsender_cpu_seconds or 0.0) + (self.s3_cpu_seconds or 0.0)
        return max(0.0, self.machine_cpu_seconds - self.own_cpu_seconds - servers)


class Phases(msgspec.Struct, frozen=True, kw_only=True):
    """Where a reader's time went, by its own log; the seconds add up to the wall time.

    The engine tells it, and the peers whose start-up is left out as the engine's is.

    CPU seconds are the process's own, None where its log does not tell them.
    """

    start_seconds: float
    """Until the slot is held and the server begins to send."""
    opening_seconds: float
    streaming_seconds: float
    drain_seconds: float
    start_cpu_seconds: float | None = None
    opening_cpu_seconds: float | None = None
    streaming_cpu_seconds: float | None = None
    drain_cpu_seconds: float | None = None


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One figure over the time of a run: `times` in seconds since its start."""

    text: str
    unit: str
    """As an axis names it: "rows/s", "s"; "bytes" is shown as MiB."""
    times: tuple[float, ...]
    values: tuple[float, ...]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One process, measured. Round 0 is the warm-up, which counts for nothing."""

    reader: str
    """The engine's name, or a peer's."""
    round: int
    rows: int
    command: tuple[str, ...]
    usage: Usage
    phases: Phases | None = None
    series: dict[str, Series] = {}
    figures: dict[str, float] = {}
    """What only this scenario measures, named with its unit last: `visible_p99_seconds`."""
    is_under_load: bool = False
    """Whether something wrote meanwhile: what that used is in what others used."""
    is_apart: bool = False
    """Whether it is kept and shown, but is no round: it counts for nothing that follows."""

    @property
    def is_counted(self) -> bool:
        """Whether medians, ratios and verdicts follow from it."""
        return self.round > 0 and not self.is_apart
