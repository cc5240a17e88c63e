"""Records and rows in other forms than NDJSON: CSV, pyarrow's batches, Parquet.

Columns come from the table's versions, as schema.json has them. Nothing is guessed from values.
"""
