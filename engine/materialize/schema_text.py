"""Arrow's schema as text, for a manifest."""

import base64
from typing import Any

import pyarrow as pa


def text_of(schema: Any) -> str:
    """The schema as Arrow's own message, in base64. Any: pyarrow has no types."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def schema_of(text: str) -> Any:
    """The inverse of `text_of`."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
