"""Parquet files, and manifests that say which of them count.

Strategy: manifests are numbered. Each names the files of one commit and holds the cursor behind
their rows. It is created only where its number is free, so of two jobs one wins. A file that no
manifest names was left by a job that died or lost; it is harmless, and nobody is to read it.

    data/000000000007-c1d0….parquet     the number of the manifest that was to name it, and chance
    manifests/000000000007.json
"""

import re
import secrets
from typing import Any, Final

import msgspec

from engine.materialize.bodies import Bodies, Body
from engine.materialize.columns import fitted, merged, plain_schema
from engine.materialize.folder import Folder
from engine.materialize.lake_table import MaterializeRefused, Outrun, Settled, foreign
from engine.materialize.schema_text import schema_of, text_of

FORMAT: Final = 1
_MANIFEST: Final = re.compile(r"manifests/(\d{12})\.json")


class ManifestFile(msgspec.Struct, frozen=True):
    """One file. `first` and `last` are the least and the greatest position in it."""

    name: str
    size_bytes: int
    rows: int
    first: str
    last: str


class Manifest(msgspec.Struct, frozen=True):
    """One commit. `columns` are those of the table so far, as Arrow's schema in base64."""

    format: int
    table: str
    number: int
    job: str
    cursor: str
    until: str
    rows: int
    files: tuple[ManifestFile, ...]
    columns: str


class ParquetLakeTable:
    """A `LakeTable` in a folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._source = ""
        self._job = secrets.token_hex(8)
        self._newest: Manifest | None = None
        self._next: Manifest | None = None
        # Any: pyarrow has no types.
        self._schema: Any = None
        self._bodies: Bodies | None = None
        self._files: list[ManifestFile] = []

    # --- the protocol

    def load(self) -> str:
        """See LakeTable."""
        self._files, self._bodies, self._next = [], None, None
        self._newest = self._found()
        return self._newest.cursor if self._newest is not None else ""

    def prepare(self, schema: Any, source: str) -> None:
        """See LakeTable."""
        self._source = source
        self._schema = plain_schema(schema)
        if self._newest is not None:
            if self._newest.table != source:
                raise foreign(self._folder.location, self._newest.table)
            held = schema_of(self._newest.columns)
            self._schema = merged(held, self._schema, may_widen=True)
        self._bodies = Bodies(self._schema, self._put)

    def write(self, batch: Any) -> None:
        """See LakeTable."""
        assert self._bodies is not None
        self._bodies.add(fitted(batch, self._schema))

    def settle(self, settled: Settled) -> None:
        """See LakeTable."""
        assert self._bodies is not None
        self._bodies.finish()
        self._next = Manifest(
            format=FORMAT,
            table=self._source,
            number=self._number,
            job=self._job,
            cursor=settled.cursor,
            until=settled.until,
            rows=settled.row_count,
            files=tuple(self._files),
            columns=text_of(self._schema),
        )

    def commit(self) -> None:
        """See LakeTable."""
        assert self._next is not None
        content = msgspec.json.format(msgspec.json.encode(self._next)) + b"\n"
        if not self._folder.create(_manifest_name(self._next.number), content):
            raise Outrun(f"another job committed to {self._folder.location} first")
        self._newest, self._next, self._files = self._next, None, []

    def close(self) -> None:
        """See LakeTable."""
        self._folder.close()

    # --- its files

    @property
    def _number(self) -> int:
        return 1 if self._newest is None else self._newest.number + 1

    def _put(self, body: Body) -> None:
        name = f"data/{self._number:012d}-{secrets.token_hex(16)}.parquet"
        self._folder.put(name, body.content)
        self._files.append(
            ManifestFile(name, len(body.content), body.row_count, body.first, body.last)
        )

    def _found(self) -> Manifest | None:
        numbers = [0]
        for name in self._folder.names("manifests/"):
            found = _MANIFEST.fullmatch(name)
            if found is not None:
                numbers.append(int(found[1]))
        if not max(numbers):
            return None
        name = _manifest_name(max(numbers))
        content = self._folder.get(name)
        try:
            manifest = msgspec.json.decode(content or b"", type=Manifest)
        except msgspec.DecodeError as error:
            raise MaterializeRefused(
                "cursor-lost",
                f"{name} in {self._folder.location} is no manifest",
                hint="It holds how far the folder has come. Bring it back from a copy, or"
                " materialize to a new path.",
            ) from error
        self._require_known(manifest)
        return manifest

    def _require_known(self, manifest: Manifest) -> None:
        if manifest.format != FORMAT:
            raise MaterializeRefused(
                "format-unknown",
                f"manifests in {self._folder.location} have the form {manifest.format}, this"
                f" release knows {FORMAT}",
                hint="Run the release that wrote them, or a newer one.",
            )


def _manifest_name(number: int) -> str:
    return f"manifests/{number:012d}.json"
