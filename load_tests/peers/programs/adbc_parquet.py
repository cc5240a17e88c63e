"""Reads tables through ADBC and writes each as a Parquet file. A process of the peers' environment.

It exits with 0 only after it has written as many rows as it was told there are.
"""

import argparse
import sys
from pathlib import Path

import adbc_driver_postgresql.dbapi  # type: ignore[import-not-found]
import pyarrow.parquet


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--tables", required=True, type=Path, help="a quoted name a line")
    parser.add_argument("--row-count", required=True, type=int)
    parser.add_argument("--folder", required=True, type=Path)
    options = parser.parse_args()
    options.folder.mkdir()
    count = 0
    with adbc_driver_postgresql.dbapi.connect(options.dsn) as connection:
        for number, table in enumerate(options.tables.read_text().splitlines()):
            count += _write(connection, table, options.folder / f"{number}.parquet")
    print(f"{count} rows")
    return 0 if count == options.row_count else 1


def _write(connection: object, table: str, path: Path) -> int:
    """Write one table; how many rows it has."""
    count = 0
    with connection.cursor() as cursor:  # type: ignore[attr-defined]
        cursor.execute(f"SELECT * FROM {table}")
        batches = cursor.fetch_record_batch()
        with pyarrow.parquet.ParquetWriter(path, batches.schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
                count += batch.num_rows
    return count


if __name__ == "__main__":
    sys.exit(main())
