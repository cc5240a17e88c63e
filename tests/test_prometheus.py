"""A real Prometheus scrapes a real engine with traffic: samples, panels and rules.

One database, one engine and one Prometheus serve all tests of this module.
"""

import asyncio
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import LiteralString

import pytest

from configured import make_destination
from databases import Database
from engine import app
from engine.servers.s3_server import REGION
from engine.servers.server_process import LOOPBACK
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres, EmbeddedS3
from grafana import panels
from load_tests.engine_process import EngineProcess, Pipeline, until
from prometheus_server import PrometheusServer, Sample, prometheus_server, promtool

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

PREFIX = "watched"
TOKEN = "a-token-of-the-tests-of-prometheus"
RATE_SECONDS = 8
ROWS_BEFORE = 2_000

_ROUND: tuple[LiteralString, ...] = (
    "INSERT INTO orders (note) SELECT 'new' FROM generate_series(1, 50)",
    "UPDATE orders SET note = 'seen' WHERE id IN (SELECT max(id) - 7 FROM orders)",
    "DELETE FROM orders WHERE id IN (SELECT max(id) - 20 FROM orders)",
    "INSERT INTO items VALUES (DEFAULT)",
)
_PAUSE_SECONDS = 0.1


@dataclass
class Traffic:
    """Rows that are written again and again, until `stop`."""

    database: Database
    rounds: int = 0
    _is_over: threading.Event = field(default_factory=threading.Event)

    def write(self) -> None:
        with self.database.connect() as connection:
            while not self._is_over.wait(_PAUSE_SECONDS):
                for statement in _ROUND:
                    connection.execute(statement)
                self.rounds += 1

    def stop(self) -> None:
        self._is_over.set()


@dataclass
class Watched:
    """What the tests look at."""

    database: Database
    engine: EngineProcess
    prometheus: PrometheusServer
    s3: EmbeddedS3
    bucket: str
    rounds: int = 0
    """All that were ever written."""

    @contextmanager
    def traffic(self) -> Iterator[Traffic]:
        """Rows come while the block runs, and none after it."""
        traffic = Traffic(self.database)
        writer = threading.Thread(target=traffic.write)
        writer.start()
        try:
            yield traffic
        finally:
            traffic.stop()
            writer.join()
            self.rounds += traffic.rounds

    def rows(self, op: str) -> float:
        """Rows of `orders` that the engine has read, as the newest scrape says."""
        name = f'tailrace_rows_total{{table="public.orders",op="{op}"}}'
        return self.prometheus.value(name) or 0.0

    def value(self, expression: str) -> float:
        """The value of an expression, once it has one. A scrape that took too long leaves none."""

        async def look() -> float | None:
            return self.prometheus.value(expression)

        return asyncio.run(until(look, expression))

    def holds(self, expected: Mapping[str, float]) -> None:
        """Wait until each expression has the value that is expected of it, or fail."""

        found: dict[str, float | None] = {}

        def look() -> bool:
            found.update({each: self.prometheus.value(each) for each in expected})
            return found == expected

        with suppress(TimeoutError):
            wait(look, "the values")
        assert found == expected

    def settle(self) -> None:
        """Wait until a scrape says that everything is read and durable. A round deletes one row."""

        def is_settled() -> bool:
            # Of one scrape or, the lag, of a later one.
            is_read = self.rows("d") == self.rounds
            return is_read and self.prometheus.value("tailrace_durable_lag_seconds") == 0

        wait(is_settled, f"row {self.rounds} deleted, and durable")

    def metrics(self, accept: str) -> bytes:
        request = urllib.request.Request(
            f"http://{LOOPBACK}:{self.engine.http_port}/metrics",
            headers={"Accept": accept, "Authorization": f"Bearer {TOKEN}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            body: bytes = answer.read()
            return body


def wait(look: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    async def looked() -> bool:
        return look()

    asyncio.run(until(looked, what, seconds=seconds))


def prepare(database: Database) -> None:
    database.execute("CREATE TABLE orders (id bigserial PRIMARY KEY, note text)")
    database.execute("CREATE TABLE items (id bigserial PRIMARY KEY)")
    database.execute(
        f"INSERT INTO orders (note) SELECT 'old' FROM generate_series(1, {ROWS_BEFORE})"
    )


@pytest.fixture(scope="module")
def watched(s3: EmbeddedS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """An engine that has read a snapshot and met a changed shape, and who scrapes it."""
    bucket = "watched"
    s3.create_bucket(bucket)
    # With a limit of WAL, what is left of it is a number.
    settings = {**FAST_SETTINGS, "max_slot_wal_keep_size": "1GB"}
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres(settings=settings))
        database = Database(server, "postgres")
        prepare(database)
        pipeline = Pipeline(
            {
                "source": {
                    "dsn": database.dsn,
                    "tables": ["public.*"],
                    "snapshot_workers": "local:1",
                    "signals": True,
                },
                "destination": {
                    "bucket": bucket,
                    "prefix": PREFIX,
                    "endpoint_url": s3.endpoint_url,
                },
                "chunk": {"max_age": "1s"},
                "engine": {"append_interval": "200ms"},
                "http": {"token": TOKEN},
                "log": {"format": "json"},
            },
            s3.environment,
        )
        folder = tmp_path_factory.mktemp("watched")
        engine = stack.enter_context(EngineProcess(pipeline, folder, "engine", "run"))
        prometheus = stack.enter_context(prometheus_server(f"{LOOPBACK}:{engine.http_port}", TOKEN))
        watched = Watched(database, engine, prometheus, s3, bucket)
        asyncio.run(engine.reaches("streaming"))
        with watched.traffic() as traffic:
            wait(lambda: traffic.rounds > 3, "rows")
            database.execute("ALTER TABLE orders ADD COLUMN extra int")
            signal = '{"format": 1, "kind": "resync", "tables": ["public.items"]}'
            database.execute("SELECT pg_logical_emit_message(true, 'tailrace', %s)", signal)
            happens_once(prometheus)
        yield watched


def happens_once(prometheus: PrometheusServer) -> None:
    """Wait until everything is scraped that does not go on by itself."""
    happened = (
        'tailrace_schema_changes_total{table="public.orders",kind="column_added"} == 1',
        'tailrace_signals_total{outcome="done"} == 1',
        f'tailrace_snapshot_rows_total{{table="public.orders"}} >= {ROWS_BEFORE}',
        "tailrace_snapshot_rows_estimate == 0",
    )
    for expression in happened:
        wait(partial(is_so, prometheus, expression), expression)


def is_so(prometheus: PrometheusServer, expression: str) -> bool:
    return bool(prometheus.query(expression))


def test_the_engine_is_a_target_that_is_up(watched: Watched) -> None:
    def is_up() -> bool:
        [target] = watched.prometheus.get("targets")["activeTargets"]
        return (target["health"], target["lastError"]) == ("up", "")

    # A scrape that takes longer than a second fails. The next one does not.
    wait(is_up, "a target that is up")
    watched.holds({'up{job="tailrace"}': 1})


@pytest.mark.parametrize("accept", ["text/plain", "*/*"])
def test_promtool_finds_nothing_to_say_about_the_metrics(watched: Watched, accept: str) -> None:
    text = watched.metrics(accept)

    assert text.count(b"# TYPE tailrace_") > 30
    assert promtool("check", "metrics", given=text) == ""


def test_samples_are_what_happened(watched: Watched) -> None:
    with watched.traffic() as traffic:
        wait(lambda: traffic.rounds >= 5, "rows")
    watched.settle()

    rows = 'tailrace_rows_total{table="public.orders",op="%s"}'
    watched.holds(
        {
            rows % "c": 50 * watched.rounds,
            rows % "u": watched.rounds,
            rows % "d": watched.rounds,
            'tailrace_phase{phase="streaming"}': 1,
            "sum(tailrace_phase)": 1,
            "tailrace_connected": 1,
            "tailrace_epoch": 1,
            "tailrace_gaps_total": 0,
            # The server writes to its log now and then, without a row.
            "tailrace_lag_bytes": 0,
            "tailrace_durable_lag_bytes": 0,
            "tailrace_chunk_age_limit_seconds": 1,
        }
    )
    assert 0 < watched.value("tailrace_slot_safe_bytes") < 2 << 30


def test_objects_and_bytes_are_those_of_the_bucket(
    watched: Watched, aws_environment: EmbeddedS3
) -> None:
    target = make_destination(
        bucket=watched.bucket,
        prefix=PREFIX,
        region=REGION,
        endpoint_url=aws_environment.endpoint_url,
    )

    async def stored() -> dict[str, int]:
        async with app.open_bucket(target) as bucket:
            folder = f"{PREFIX}/database="
            return {each.key: each.size async for each in bucket.list(folder)}

    def published(what: str) -> float:
        return watched.value(f"sum(tailrace_published_{what}_total)")

    watched.settle()
    known, objects, size_bytes = asyncio.run(stored()), published("objects"), published("bytes")
    with watched.traffic() as traffic:
        wait(lambda: traffic.rounds >= 5, "rows")
    watched.settle()
    added = {key: size for key, size in asyncio.run(stored()).items() if key not in known}

    assert added
    assert published("objects") - objects == len(added)
    assert published("bytes") - size_bytes == sum(added.values())


def answered(expression: str, prometheus: PrometheusServer) -> list[Sample]:
    """A panel's expression, as Grafana would send it with everything chosen."""
    for name, chosen in (
        ("$job", ".*"),
        ("$instance", ".*"),
        ("$__rate_interval", f"{RATE_SECONDS}s"),
    ):
        expression = expression.replace(name, chosen)
    assert "$" not in expression
    return prometheus.query(expression)


def test_every_panel_has_an_answer_in_numbers(watched: Watched) -> None:
    without = dict.fromkeys(panels.expressions(), "never asked")

    def ask() -> bool:
        for expression in [*without]:
            samples = answered(expression, watched.prometheus)
            if samples and all(sample.is_number for sample in samples):
                del without[expression]
            else:
                without[expression] = str(samples)
        return not without

    with watched.traffic():
        try:
            wait(ask, "answers")
        except TimeoutError:
            pytest.fail(str(without))


def test_every_rule_is_evaluated_and_only_what_happened_fires(watched: Watched) -> None:
    def rules() -> dict[str, tuple[str, str]]:
        [group] = watched.prometheus.get("rules")["groups"]
        return {rule["name"]: (rule["health"], rule["state"]) for rule in group["rules"]}

    wait(lambda: "unknown" not in {health for health, _ in rules().values()}, "all rules")

    # `orders` got a column. What a failed scrape leaves out for a second does not fire.
    def firing() -> set[str]:
        return {name for name, (_, state) in rules().items() if state == "firing"}

    wait(lambda: firing() >= {"TailraceSchemaChange"}, "an alert")
    found = rules()
    assert {health for health, _ in found.values()} == {"ok"}
    assert {name for name, (_, state) in found.items() if state == "firing"} <= {
        "TailraceSchemaChange"
    }


def test_the_variables_of_the_dashboard_have_values(watched: Watched) -> None:
    jobs = watched.prometheus.get("label/job/values", **{"match[]": "tailrace_build_info"})
    instances = watched.prometheus.get(
        "label/instance/values", **{"match[]": 'tailrace_build_info{job=~"tailrace"}'}
    )

    assert jobs == ["tailrace"]
    assert instances == [f"{LOOPBACK}:{watched.engine.http_port}"]
