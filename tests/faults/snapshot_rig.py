"""A pipeline that takes snapshots, under test: its database, bucket, proxy and engines."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from databases import Database
from engine.servers.fault_proxy import HttpFaultProxy
from engine.servers.servers import EmbeddedS3
from faults.bucket_image import BucketImage
from faults.snapshots import COLUMNS, Rebuilt, newest_statements, rebuilt
from load_tests.engine_process import EngineProcess, Pipeline, Section, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

PREFIX = "lake"


def range_bytes(size_bytes: int) -> str:
    """What an engine runs first, so that ranges have so many bytes of a table's pages."""
    return f"from engine.sources.postgres import ranges; ranges.RANGE_BYTES = {size_bytes}\n"


@dataclass(slots=True)
class SnapshotRig:
    """Engines are started through it and killed with it; they reach the bucket by the proxy."""

    database: Database
    proxy: HttpFaultProxy
    pipeline: Pipeline
    image: BucketImage
    folder: Path
    _exit_stack: AsyncExitStack
    _count: int = field(default=0)

    def start(self, *arguments: str, pipeline: Pipeline | None = None) -> EngineProcess:
        """Start an engine: `run`, where no other command is named."""
        self._count += 1
        name = f"engine-{self._count}"
        chosen = pipeline or self.pipeline
        process = EngineProcess(chosen, self.folder, name, *(arguments or ("run",)))
        return self._exit_stack.enter_context(process)

    async def caught_up(self, *, seconds: float = 120.0) -> EngineProcess:
        """Run `run --until-caught-up` to its end, which has to be a good one."""
        engine = self.start("run", "--until-caught-up")
        code = await engine.ended(seconds=seconds)
        assert code == 0, engine.complaint
        return engine

    async def verdict(self, *, seconds: float = 600.0) -> dict[str, Any]:
        """The answer of `verify --depth full --json`."""
        process = self.start("verify", "--depth", "full", "--json")
        await process.ended(seconds=seconds)
        verdict: dict[str, Any] = json.loads(process.output.read_text())
        return verdict

    async def statements(self) -> dict[str, dict[str, Any]]:
        """The journal's newest statement about each table's snapshot."""
        return newest_statements(await self.image.look())

    async def reaches(self, table: str, state: str, *, seconds: float = 60.0) -> dict[str, Any]:
        """The journal's newest statement about `table`, once it says that."""

        async def look() -> dict[str, Any] | None:
            statement = (await self.statements()).get(f"public.{table}")
            return statement if statement is not None and statement["state"] == state else None

        return await until(look, f"the snapshot of {table} {state}", seconds=seconds)

    async def rebuilt(
        self, table: str, keys: range = range(0), columns: tuple[str, ...] = COLUMNS
    ) -> Rebuilt:
        """`table` as the bucket has it: see `rebuilt`."""
        return await rebuilt(self.image, f"public.{table}", keys, columns)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pipeline is set up."""

    database: Database
    s3: EmbeddedS3
    bucket: str
    client: "S3Client"
    folder: Path

    @asynccontextmanager
    async def rigged(
        self, *, preamble: str = "", keys: Mapping[str, object] | None = None
    ) -> AsyncIterator[SnapshotRig]:
        """A pipeline of all tables; `keys` are the configuration's, `section__key=value`.

        Leaving the block, also by cancellation, kills its engines.
        """
        async with AsyncExitStack() as stack:
            proxy = await stack.enter_async_context(HttpFaultProxy(self.s3.port))
            sections: dict[str, Section] = {
                "source": {
                    "dsn": self.database.dsn,
                    "slot": self.database.name,
                    "snapshot": "initial",
                    "snapshot_workers": "local:2",
                },
                "destination": {
                    "bucket": self.bucket,
                    "prefix": PREFIX,
                    "endpoint_url": proxy.endpoint_url,
                },
                "chunk": {"max_age": "400ms", "max_rows": 5000},
                "engine": {"append_interval": "200ms"},
                "log": {"level": "info", "format": "json"},
            }
            pipeline = Pipeline(sections, self.s3.environment, preamble=preamble)
            image = BucketImage(self.client, self.bucket, PREFIX)
            changed = pipeline.changed(**(keys or {}))
            yield SnapshotRig(self.database, proxy, changed, image, self.folder, stack)
