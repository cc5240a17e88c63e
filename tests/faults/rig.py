"""A pipeline under test: its database, bucket, proxy, twin slot and engines, in one place."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from databases import Database
from engine.servers.fault_proxy import HttpFaultProxy
from engine.servers.servers import EmbeddedS3
from engine.sources.postgres.lsn import Lsn, parse_lsn
from faults.bucket_image import BucketImage
from faults.load import TABLES, make_tables
from faults.twin import Comparison, Twin, compare
from faults.windows import Aftermath
from load_tests.engine_process import EngineProcess, Pipeline, Section, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

PREFIX = "shop"
PUBLICATION = "tailrace"
_SLOT = (
    "SELECT confirmed_flush_lsn::text, active_pid FROM pg_replication_slots WHERE slot_name = %s"
)


@dataclass(slots=True)
class Rig:
    """Engines are started through it and killed with it."""

    database: Database
    s3: EmbeddedS3
    proxy: HttpFaultProxy
    pipeline: Pipeline
    image: BucketImage
    folder: Path
    twin: Twin
    _exit_stack: AsyncExitStack
    _names: set[str] = field(default_factory=set)

    @property
    def slot(self) -> str:
        return self.database.name

    def start(
        self, name: str = "engine", *arguments: str, pipeline: Pipeline | None = None
    ) -> EngineProcess:
        """Start `run`, with more arguments or another pipeline."""
        return self._start(pipeline or self.pipeline, name, "run", *arguments)

    def _start(self, pipeline: Pipeline, name: str, *arguments: str) -> EngineProcess:
        number = sum(used.startswith(f"{name}-") for used in self._names)
        own_name = f"{name}-{number}"
        self._names.add(own_name)
        process = EngineProcess(pipeline, self.folder, own_name, *arguments)
        self._exit_stack.enter_context(process)
        return process

    async def streaming(
        self, name: str = "engine", *, pipeline: Pipeline | None = None
    ) -> EngineProcess:
        """Start an engine and wait until it streams."""
        engine = self.start(name, pipeline=pipeline)
        await engine.reaches("streaming")
        return engine

    async def catch_up(
        self, *, pipeline: Pipeline | None = None, seconds: float = 60.0
    ) -> EngineProcess:
        """Run `run --until-caught-up` to its end, which has to be a good one."""
        engine = self.start("caught-up", "--until-caught-up", pipeline=pipeline)
        code = await engine.ended(seconds=seconds)
        assert code == 0, engine.complaint
        return engine

    async def catch_up_with(self, engine: EngineProcess, *, seconds: float = 60.0) -> None:
        """Wait until what is committed now is durable by the running `engine`."""
        [(written,)] = self.database.execute("SELECT pg_current_wal_flush_lsn()::text")
        # A transaction of no consequence: its end is a position past all of the others.
        self.database.execute("SELECT pg_logical_emit_message(true, 'test', '')")

        async def is_durable() -> bool:
            status = await engine.status()
            return status is not None and parse_lsn(status["durable_resume"]) >= parse_lsn(written)

        await until(is_durable, f"{engine.name} durable at {written}", seconds=seconds)

    async def verdict(self) -> dict[str, Any]:
        """The answer of `verify --depth full --json`."""
        process = self._start(self.pipeline, "verify", "verify", "--depth", "full", "--json")
        await process.ended(seconds=600)
        verdict: dict[str, Any] = json.loads(process.output.read_text())
        return verdict

    async def compare(self) -> Comparison:
        """The bucket's records against the twin's."""
        return compare(await asyncio.to_thread(self.twin.changes), await self.image.changes())

    async def proven(self) -> Comparison:
        """Catch up, then hold that nothing is lost, doubled, moved, altered or unnamed."""
        await self.catch_up()
        comparison = await self.compare()
        verdict = await self.verdict()
        look = await self.image.look()
        assert comparison.is_equal, comparison
        assert comparison.row_count, "nothing was written"
        assert verdict["ok"], verdict
        assert verdict["rows"] == comparison.row_count
        assert (look.missing, look.unnamed) == ([], [])
        return comparison

    async def confirmed_lsn(self) -> Lsn:
        """What the server takes for acknowledged."""
        [(confirmed, _)] = await asyncio.to_thread(self.database.execute, _SLOT, self.slot)
        return parse_lsn(confirmed)

    async def holder(self) -> int | None:
        """The walsender's process that holds the slot."""
        [(_, process_id)] = await asyncio.to_thread(self.database.execute, _SLOT, self.slot)
        return None if process_id is None else int(process_id)

    async def aftermath(self) -> Aftermath:
        """What a killed engine left, looked at when its walsender is gone."""

        async def is_free() -> bool:
            return await self.holder() is None

        await until(is_free, "a free slot")
        [(flushed,)] = self.database.execute("SELECT pg_current_wal_flush_lsn()::text")
        return Aftermath(await self.image.look(), await self.confirmed_lsn(), parse_lsn(flushed))


@asynccontextmanager
async def rigged(
    database: Database,
    s3: EmbeddedS3,
    bucket: str,
    client: "S3Client",
    folder: Path,
    *,
    keys: Mapping[str, object] | None = None,
) -> AsyncIterator[Rig]:
    """Make tables, publication and twin slot; engines reach the bucket through the proxy.

    `keys` are the configuration's, `section__key=value`.
    """
    make_tables(database)
    published = ", ".join(TABLES)
    with database.connect() as connection:
        connection.execute(f"CREATE PUBLICATION {PUBLICATION} FOR TABLE {published}")
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(HttpFaultProxy(s3.port))
        sections: dict[str, Section] = {
            "source": {
                "dsn": database.dsn,
                "slot": database.name,
                "publication": PUBLICATION,
                "snapshot": "never",
            },
            "destination": {
                "bucket": bucket,
                "prefix": PREFIX,
                "endpoint_url": proxy.endpoint_url,
            },
            "chunk": {"max_age": "400ms", "max_rows": 1000},
            "engine": {"append_interval": "200ms", "memory_limit": "32MiB"},
            "log": {"level": "info", "format": "json"},
        }
        pipeline = Pipeline(sections, s3.environment).changed(**(keys or {}))
        image = BucketImage(client, bucket, PREFIX)
        twin = Twin(database, PUBLICATION)
        yield Rig(database, s3, proxy, pipeline, image, folder, twin, stack)
