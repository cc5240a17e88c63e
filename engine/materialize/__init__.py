"""A table's changes as a table of another format: Delta, Iceberg, or Parquet files with manifests.

`job` reads the changes since the cursor that the table holds, and has them committed together with
the new cursor. `lake_table` is what it asks of a table; `delta`, `iceberg` and `parquet` are those
that there are. `columns` says which columns such a table has, `bodies` makes Parquet of batches,
and `folder` is a folder or a part of a bucket. `opening` chooses.

These modules know pyarrow, deltalake and pyiceberg, which are extras. Import them late.
"""
