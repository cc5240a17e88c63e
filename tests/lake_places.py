"""Places for a table of changes, in each format, and what is read back from there."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from deltalake import DeltaTable
from pyiceberg.catalog import Catalog, load_catalog

from engine.library import destination_of
from engine.materialize.columns import fitted, plain_schema
from engine.materialize.folder import BucketFolder, Folder, LocalFolder
from engine.materialize.opening import delta_place
from engine.materialize.schema_text import schema_of

CATALOG = "tests"


@dataclass(frozen=True)
class Place:
    """Where one table is. Any: pyarrow has no types."""

    format: str
    place: str
    folder: Path

    @property
    def words(self) -> list[str]:
        """The options of `tailrace materialize`."""
        catalog = ["--catalog", CATALOG] if self.format == "iceberg" else []
        return ["--to", self.format, *catalog]

    @property
    def environment(self) -> dict[str, str]:
        """PyIceberg's own configuration, which is read where the process begins."""
        return {
            f"PYICEBERG_CATALOG__{CATALOG.upper()}__URI": f"sqlite:///{self.folder}/catalog.db",
            f"PYICEBERG_CATALOG__{CATALOG.upper()}__WAREHOUSE": f"file://{self.folder}/warehouse",
        }

    def rows(self) -> Any:
        """All rows, as a table of pyarrow, in the order of their positions."""
        found = {"delta": self._delta, "iceberg": self._iceberg, "parquet": self._parquet}
        table = found[self.format]()
        return table.sort_by("position") if table.num_rows else table

    def positions(self) -> list[str]:
        rows = self.rows()
        return list(rows.column("position").to_pylist()) if rows.num_rows else []

    def _delta(self) -> Any:
        location, options = delta_place(self.place)
        table = pa.table(DeltaTable(location, storage_options=options).scan().read_all())
        # Views, which pyarrow does not sort.
        return table.cast(plain_schema(table.schema))

    def catalog(self) -> Catalog:
        return load_catalog(
            CATALOG,
            uri=f"sqlite:///{self.folder}/catalog.db",
            warehouse=f"file://{self.folder}/warehouse",
        )

    def _iceberg(self) -> Any:
        with self.catalog() as catalog:
            return catalog.load_table(self.place).scan().to_arrow()

    def manifests(self) -> Iterator[dict[str, Any]]:
        folder = self.parquet_folder()
        try:
            for name in sorted(folder.names("manifests/")):
                if name.endswith(".json"):
                    yield json.loads(folder.get(name) or b"")
        finally:
            folder.close()

    def parquet_folder(self) -> Folder:
        if self.place.startswith("s3:"):
            return BucketFolder(destination_of(self.place))
        return LocalFolder(Path(self.place))

    def _parquet(self) -> Any:
        tables = []
        manifests = [*self.manifests()]
        folder = self.parquet_folder()
        try:
            for file in (file for manifest in manifests for file in manifest["files"]):
                content = folder.get(file["name"]) or b""
                assert len(content) == file["size_bytes"]
                tables += pyarrow.parquet.read_table(io.BytesIO(content)).to_batches()
        finally:
            folder.close()
        schema = schema_of(manifests[-1]["columns"])
        return pa.concat_tables([fitted(one, schema) for one in tables])


def make_place(format_: str, folder: Path, url: str = "") -> Place:
    """A place on this machine, or at the URL of a bucket with its parameters."""
    if url:
        return Place(format_, url, folder)
    (folder / "warehouse").mkdir(exist_ok=True)
    place = "shop.orders_changes" if format_ == "iceberg" else str(folder / "lake" / "orders")
    return Place(format_, place, folder)
