"""Records of a table and a journal that knows of them, told by hand: what views are tried on."""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.journal.entry import Frontier, Gap, JournalState, Snapshot, StatedSnapshot
from engine.model.position import (
    NOWHERE,
    LogPosition,
    Position,
    log_position,
    make_position,
    snapshot_position,
)
from engine.model.record import RecordConfiguration
from engine.model.schema import Column, Relation, TableName, TableVersion
from engine.reader.views.place import Place
from log_points import durable, identity

PLACE = Place("lake", "pipes/shop", "shop", "hive")
CONFIGURATION = RecordConfiguration(through="tailrace", tables=("*.*",))
ORDERS = TableName("public", "orders")

_STEP = 0x100


def at(number: int) -> Position:
    """The position of the one change of commit `number`."""
    order = (number + 1) * _STEP
    return make_position(1, order, order - 8, 0)


def point(number: int) -> LogPosition:
    """The place in the log before commit `number`."""
    return log_position(1, (number + 1) * _STEP - 0x40)


def column(name: str, kind: str = "text", type_: str = "", **more: Any) -> Column:
    return Column(name, type_ or kind, kind, key=more.pop("key", False), **more)


@dataclass
class Story:
    """One table: `begin` makes a version, `add` a record; rows go by the table's column names.

    `newest` is the position of the stream's last record.
    """

    table: TableName = ORDERS
    configuration: RecordConfiguration = CONFIGURATION
    versions: list[TableVersion] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    snapshots: list[StatedSnapshot] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    newest: Position = NOWHERE

    def begin(
        self,
        number: int | None,
        columns: Iterable[Column],
        key: Sequence[str] = ("id",),
        *,
        oid: str = "1",
        former_name: str = "",
    ) -> int:
        """The version that holds from commit `number` on; the answer is its number."""
        relation = Relation(self.table, oid, tuple(columns), tuple(key))
        version = TableVersion(
            len(self.versions) + 1,
            at(number) if number is not None else None,
            self.configuration.record_digest(self.table),
            relation,
            flat_prefix=self.configuration.flat_prefix_of(self.table, relation.columns),
            former_name=former_name,
        )
        self.versions.append(version)
        return version.number

    def add(
        self,
        number: int,
        op: str,
        after: Mapping[str, Any] | None = None,
        before: Mapping[str, Any] | None = None,
        *,
        unchanged: Sequence[str] = (),
        json_null: Sequence[str] = (),
        position: str = "",
    ) -> None:
        metadata: dict[str, Any] = {"op": op, "position": position or at(number)}
        if number or not position:
            self.newest = max(self.newest, Position(metadata["position"]))
        metadata["source_ts_ms"] = 1_795_341_114_065 + number
        if unchanged:
            metadata["unchanged"] = list(unchanged)
        if json_null:
            metadata["json_null"] = list(json_null)
        self.records.append({"before": before, "after": after, "metadata": metadata})

    def read(
        self,
        number: int,
        attempt: int,
        rows: Sequence[Mapping[str, Any]],
        *,
        version: int = 1,
        state: str = "whole",
        is_begun: bool = True,
    ) -> None:
        """An attempt to take a snapshot just before commit `number`, and its objects' records."""
        if is_begun:
            self.add(0, "t", position=snapshot_position(point(number), attempt, 0, 0))
        for row, after in enumerate(rows):
            self.add(0, "r", after, position=snapshot_position(point(number), attempt, 1, row))
        snapshot = Snapshot(
            str(self.table),
            state,  # type: ignore[arg-type]
            attempt,
            point(number),
            version,
            "2026-11-22T09",
        )
        known = self.snapshots[-1] if self.snapshots else None
        before = known.visible if known is not None and state != "whole" else None
        self.snapshots.append(
            StatedSnapshot(snapshot, 1, 1, is_visible=state == "whole", before=before)
        )

    def state(self, *others: "Story") -> JournalState:
        """The journal that tells of this table, and of others."""
        stories = (self, *others)
        return JournalState(
            seq=41,
            epoch=1,
            source=identity(database="shop"),
            durable=durable(0x100000, "2026-11-22T09:51:54.056779Z", seq=41),
            configurations={1: self.configuration},
            versions={str(s.table): tuple(s.versions) for s in stories if s.versions},
            snapshots={str(s.table): s.snapshots[-1] for s in stories if s.snapshots},
            gaps={gap.number: gap for s in stories for gap in s.gaps},
            frontiers={str(s.table): Frontier(s.newest, "") for s in stories if s.newest},
        )

    def write(self, folder: Path) -> Path:
        """The records as an object, in an order that says nothing."""
        path = folder / "records.ndjson.gz"
        shaped = {"debezium": _as_debezium, "flat": _as_flat}.get(self.configuration.envelope, dict)
        lines = [json.dumps(shaped(record)) for record in reversed(self.records)]
        path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
        return path


def _as_debezium(record: dict[str, Any]) -> dict[str, Any]:
    metadata = dict(record["metadata"])
    op = metadata.pop("op")
    source = metadata | {"ts_ms": metadata.pop("source_ts_ms")}
    return {"before": record["before"], "after": record["after"], "source": source, "op": op}


def _as_flat(record: dict[str, Any]) -> dict[str, Any]:
    metadata = dict(record["metadata"])
    row = record["before"] if metadata["op"] == "d" else record["after"]
    millisecond = metadata.pop("source_ts_ms") % 1000
    own = metadata | {"commit_ts": f"2026-11-22T09:51:54.{millisecond:03}779Z", "version": 1}
    return (row or {}) | {f"_{name}": value for name, value in own.items()}
