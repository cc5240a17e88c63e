"""Which table is written to: chosen by its format and where it is."""

import os
from pathlib import Path
from typing import Final, assert_never
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from engine.library import destination_of
from engine.materialize.lake_table import Format, LakeTable, MaterializeRefused
from engine.model.errors import ConfigurationError

_S3: Final = "s3"
_DELTA_OPTIONS: Final = {"endpoint_url": "AWS_ENDPOINT_URL", "region": "AWS_REGION"}


def open_lake(format_: Format, place: str, catalog: str) -> LakeTable:
    """The table at `place`: a path, a URL, or for Iceberg a name in the catalog.

    Raises ConfigurationError, and MaterializeRefused where the format's library is not installed.
    """
    match format_:
        case "delta":
            return _delta(place)
        case "iceberg":
            return _iceberg(place, catalog)
        case "parquet":
            return _parquet(place)
        case _:
            assert_never(format_)


def _delta(place: str) -> LakeTable:
    location, options = delta_place(place)
    try:
        from engine.materialize.delta import DeltaLakeTable  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise _missing("deltalake", "delta") from error
    return DeltaLakeTable(location, options)


def delta_place(place: str) -> tuple[str, dict[str, str]]:
    """The location without its parameters, and deltalake's options for them."""
    parts = urlsplit(place)
    if not parts.scheme:
        return os.path.abspath(place), {}  # noqa: PTH100 - links stay as they are
    options = {}
    for name, value in parse_qsl(parts.query, strict_parsing=bool(parts.query)):
        if parts.scheme != _S3 or name not in _DELTA_OPTIONS:
            raise ConfigurationError(
                f"{name} is no parameter of a Delta table's URL",
                hint="s3:// takes endpoint_url and region. deltalake reads all else from the"
                " environment.",
            )
        options[_DELTA_OPTIONS[name]] = value
    if options.get("AWS_ENDPOINT_URL", "").startswith("http:"):
        options["AWS_ALLOW_HTTP"] = "true"
    return urlunsplit(parts._replace(query="")), options


def _iceberg(place: str, catalog: str) -> LakeTable:
    try:
        from engine.materialize.iceberg import (  # noqa: PLC0415 - an extra
            IcebergLakeTable,
            open_catalog,
        )
    except ImportError as error:
        raise _missing("pyiceberg", "iceberg") from error
    return IcebergLakeTable(open_catalog(catalog), place)


def _parquet(place: str) -> LakeTable:
    try:
        from engine.materialize.folder import BucketFolder, LocalFolder  # noqa: PLC0415 - an extra
        from engine.materialize.parquet import ParquetLakeTable  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise _missing("pyarrow", "read") from error
    scheme = urlsplit(place).scheme
    if scheme == _S3:
        return ParquetLakeTable(BucketFolder(destination_of(place)))
    if scheme:
        raise ConfigurationError(
            f"{scheme}:// is no place for Parquet files", hint="Give a path, or s3://bucket/prefix."
        )
    return ParquetLakeTable(LocalFolder(Path(place).absolute()))


def _missing(package: str, extra: str) -> MaterializeRefused:
    return MaterializeRefused(
        "extra-missing", f"{package} is not installed", hint=f"pip install 'tailrace[{extra}]'"
    )
