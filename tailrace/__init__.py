"""Tailrace from Python: tables as they lie in the bucket.

    import tailrace

    for batch in tailrace.read("tailrace.toml", "public.orders", current=True):
        ...  # pyarrow.RecordBatch

`pip install 'tailrace[read]'` brings pyarrow and DuckDB. docs/consumers.md tells the rest.
"""

from engine import __version__
from engine.library import TableReading, read
from engine.model.errors import ReadRefused, TailraceError

__all__ = ["ReadRefused", "TableReading", "TailraceError", "__version__", "read"]
