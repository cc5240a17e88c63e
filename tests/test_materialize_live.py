"""`tailrace materialize` in real processes: killed at every step, and two at once."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.config import DestinationConfiguration
from engine.servers.servers import EmbeddedS3
from lake_places import Place, make_place
from materialize_process import MaterializeProcess
from small_bucket import ORDERS, SmallBucket
from table_reader import asked
from test_read_command import moved
from test_table_changes import published, streamed
from test_verify_command import destination

pytestmark = pytest.mark.timeout(300)

TABLE = str(ORDERS)


@dataclass
class Pipeline:
    """Changes of orders in a bucket, and where they are to go."""

    source: SmallBucket
    target: DestinationConfiguration
    environment: dict[str, str]
    folder: Path

    def positions(self) -> list[str]:
        return asyncio.run(asked(self.source.store)).positions

    def grow(self, ops: str) -> None:
        asyncio.run(published(self.source, ops))
        moved(self.source, self.target)

    def begun(self, place: Place, *words: str, stop: str = "") -> MaterializeProcess:
        config = self.folder / "tailrace.toml"
        config.write_text(
            f"""
            [destination]
            bucket = "{self.target.bucket}"
            prefix = "{self.target.prefix}"
            region = "us-east-1"
            endpoint_url = "{self.target.endpoint_url}"
            """
        )
        command = ["materialize", TABLE, place.place, *place.words, "-c", str(config), *words]
        environment = self.environment | place.environment
        return MaterializeProcess(command, environment, self.folder, stop)

    def run(self, place: Place, *words: str) -> str:
        """One run to its good end: what it said."""
        with self.begun(place, *words) as process:
            assert process.ended() == 0, process.said
            return process.said


@pytest.fixture
def pipeline(
    aws_environment: EmbeddedS3, shared_bucket: str, prefix: str, tmp_path: Path
) -> Pipeline:
    target = destination(aws_environment, shared_bucket, prefix)
    source = asyncio.run(streamed("cccu", "dcut", "cc", "ccc"))
    moved(source, target)
    return Pipeline(source, target, aws_environment.environment, tmp_path)


LOCAL = ("delta", "iceberg", "parquet")
BUCKET = ("delta in a bucket", "parquet in a bucket")


@pytest.fixture
def place(request: pytest.FixtureRequest, pipeline: Pipeline, tmp_path: Path) -> Place:
    format_, _, in_bucket = request.param.partition(" ")
    url = ""
    if in_bucket:
        target = pipeline.target
        query = f"endpoint_url={target.endpoint_url}&region=us-east-1"
        url = f"s3://{target.bucket}/{target.prefix}-lake/orders?{query}"
    return make_place(format_, tmp_path, url)


WINDOWS = (
    "after prepare 1",
    "after write 1",
    "after settle 1",  # all is written, nothing is committed
    "after commit 1",
    "after settle 2",
    "after commit 3",  # all is committed, and the process has not ended
)


@pytest.mark.parametrize("place", LOCAL, indirect=True)
def test_killed_at_every_step_the_union_is_the_stream(pipeline: Pipeline, place: Place) -> None:
    held: list[str] = []
    for window in WINDOWS:
        if window.startswith("after commit"):
            pipeline.grow("ccc")
        with pipeline.begun(place, "--commit-rows", "3", stop=window) as process:
            process.reached()
            process.kill()
            held = place.positions() if "commit" in window else []
            assert held == pipeline.positions()[: len(held)], window

    assert held == pipeline.positions(), "the last one had committed all"
    pipeline.grow("cu")
    assert "2 changes of public.orders in 1 commit" in pipeline.run(place)
    assert place.positions() == pipeline.positions()


@pytest.mark.parametrize(
    ("place", "stop"),
    [
        *((place, stop) for place in LOCAL for stop in ("before prepare 1", "after settle 1")),
        *((place, "after settle 1") for place in BUCKET),
    ],
    indirect=["place"],
)
def test_of_two_jobs_one_wins_and_the_other_begins_again(
    pipeline: Pipeline, place: Place, stop: str
) -> None:
    with pipeline.begun(place, "--json", stop=stop) as slow:
        slow.reached()
        pipeline.run(place, "--commit-rows", "3")
        pipeline.grow("cc")
        slow.go_on()

        assert slow.ended() == 0, slow.said
        done = json.loads(slow.said)

    assert (done["begun_again"], done["changes"]) == (1, 2)
    assert place.positions() == pipeline.positions()


@pytest.mark.parametrize("place", BUCKET, indirect=True)
def test_jobs_that_run_at_once_write_each_change_once(pipeline: Pipeline, place: Place) -> None:
    words = ("--json", "--commit-rows", "1")
    with pipeline.begun(place, *words) as first, pipeline.begun(place, *words) as second:
        codes = {first.ended(), second.ended()}

    assert codes == {0}, first.said + second.said
    assert place.positions() == pipeline.positions()
