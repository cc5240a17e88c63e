"""Where a table's objects lie, as SQL engines name places."""

from dataclasses import dataclass

from engine.model.layout import TableLayout
from engine.model.record import Layout
from engine.model.schema import TableName


@dataclass(frozen=True, slots=True)
class Place:
    """One pipeline's prefix in a bucket, and how keys lie under it."""

    bucket: str
    prefix: str
    database: str
    layout: Layout

    def folder(self, table: TableName) -> str:
        """The folder of all the table's objects as a URL, its end included."""
        layout = TableLayout(self.prefix, self.database, self.layout)
        return f"s3://{self.bucket}/{layout.table_folder(table)}"
