"""Tailrace from Python: tables as they lie in the bucket.

    import tailrace

    for batch in tailrace.read("tailrace.toml", "public.orders", current=True):
        ...  # pyarrow.RecordBatch

`pip install 'tailrace[read]'` brings pyarrow and DuckDB. docs/consumers.md tells the rest.
"""

from tailrace_command import require_own_engine

# A user's own module of that name, where Python was started, is named in one sentence.
require_own_engine()

from engine import __version__  # noqa: E402
from engine.library import TableReading, read  # noqa: E402
from engine.model.errors import ReadRefused, TailraceError  # noqa: E402

__all__ = ["ReadRefused", "TableReading", "TailraceError", "__version__", "read"]
