"""The limits of whoever takes snapshots."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """What the coordinator is told, beside the record configuration.

    Uploads go to `bucket`, their keys begin with `prefix`. `tables_max` tables share a held
    snapshot. An object is cut at `bytes_max` compressed bytes. A worker reads `rows_per_second` at
    most (0: no limit). A range that has not come further for `stall_seconds` is given to another
    worker too. Where one has failed for `patience_seconds`, again and again, its table's attempt is
    given up: no snapshot is held for ever. Progress is looked at every `progress_seconds`.
    """

    bucket: str
    prefix: str
    codec_version: int
    bytes_max: int
    tables_max: int
    rows_per_second: float = 0.0
    stall_seconds: float = 60.0
    patience_seconds: float = 900.0
    progress_seconds: float = 2.0
