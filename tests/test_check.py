"""What `check` tries: the judges of a start, one step at a time, and nothing changed."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from configured import make_settings
from engine.config import Address
from engine.journal.bucket_rules import BucketRules
from engine.journal.entry import Gap, Writer
from engine.journal.journal import Journal
from engine.model.bucket_rule import BucketRule
from engine.model.check_code import CheckCode
from engine.model.errors import (
    DestinationRefused,
    DestinationUnavailable,
    InvariantBroken,
    PositionLost,
    SourceRefused,
    SourceUnavailable,
    TailraceError,
)
from engine.model.interfaces import (
    NOT_PUBLISHED,
    ListedObject,
    Look,
    Publishing,
    Reason,
    SourceIdentity,
    SourceMeasures,
    Standing,
    TableLook,
)
from engine.model.layout import check_folder, journal_key
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.model.trial import CheckStep, Finding, Judgement
from engine.operate.alarms import Alarms
from engine.operate.metrics import Metrics
from engine.pipeline.check import check
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from engine.pipeline.wiring import World
from engine.servers.server_process import free_ports
from log_points import durable, identity, place
from memory_store import MemoryStore, StoredObject
from still_source import StillSource

PREFIX = "lake"
NOW_US = 1_800_000_000_000_000
CONFIGURATION = RecordConfiguration(through="tailrace", tables=("public.*",))
ORPHAN = f"{PREFIX}/database=shop/schema=public/table=orders/version=0001/schema.json"


def clock() -> int:
    return NOW_US


class AskedSource(StillSource):
    """Answers with `error`, if there is one; `findings` are what its trials find or raise."""

    def __init__(self, **findings: Finding | TailraceError) -> None:
        super().__init__()
        self.error: TailraceError | None = None
        self.looks: Look | TailraceError | None = None
        self.findings = findings
        self.asked_first: list[bool] = []
        self.is_read = False

    async def identify(self) -> SourceIdentity:
        if self.error is not None:
            raise self.error
        return await super().identify()

    async def seen(self) -> Standing | None:
        return None if self.is_read else await super().seen()

    async def look(self) -> Look | None:
        if isinstance(self.looks, TailraceError):
            raise self.looks
        return self.looks

    async def trials(self, *, is_first: bool) -> AsyncIterator[Judgement]:
        self.asked_first.append(is_first)
        for name, found in self.findings.items():
            yield Judgement(CheckCode(f"TR-XX-{name}", name, "Something is so."), found)


@dataclass
class RefusingStore(MemoryStore):
    """A bucket that refuses with `on_create`, `on_list` or `on_get_proof`, where there is one."""

    on_create: TailraceError | None = None
    on_list: TailraceError | None = None
    on_get_proof: TailraceError | None = None
    is_create_only: bool = True
    is_forgetful: bool = False
    is_journal_hidden: bool = False
    """Whether `on_get_proof` refuses every key."""

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        if self.on_create is not None:
            raise self.on_create
        if not self.is_create_only:
            self.objects.pop(key, None)
        return await super().create(key, body, content_type=content_type, metadata=metadata)

    async def get(self, key: str) -> bytes | None:
        if self.is_journal_hidden or key.startswith(check_folder(PREFIX)):
            if self.on_get_proof is not None:
                raise self.on_get_proof
            if self.is_forgetful:
                return None
        return await super().get(key)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ListedObject]:
        if self.on_list is not None:
            raise self.on_list
        async for listed in super().list(prefix, after=after):
            yield listed


@dataclass
class Rig:
    """A source and a bucket, to be checked and to be started on."""

    source: AskedSource
    store: RefusingStore
    configuration: RecordConfiguration = CONFIGURATION
    start_seconds_max: float = 30.0
    rules: BucketRules | None = None
    publishing: Publishing | None = None

    def world(self) -> World:
        metrics = Metrics(CollectorRegistry())
        return World(
            source=self.source,
            store=self.store,
            clock=clock,
            settings=make_settings(prefix=PREFIX, start_seconds_max=self.start_seconds_max),
            configuration=self.configuration,
            writer=Writer("a", "a", "test"),
            metrics=metrics,
            alarms=Alarms(clock, metrics),
            bucket_rules=self.rules,
            publishing=self.publishing,
        )

    async def steps(self, listen: Address | None = None) -> dict[str, CheckStep]:
        return {step.code.name: step async for step in check(self.world(), listen)}

    async def started(self) -> TailraceError:
        """What a start ends with."""
        world = self.world()
        pipeline = Pipeline(
            source=world.source,
            store=world.store,
            clock=clock,
            settings=world.settings,
            configuration=world.configuration,
            writer=world.writer,
            metrics=world.metrics,
            stop=StopSignal(),
        )
        with pytest.raises(TailraceError) as caught:
            async with asyncio.timeout(60):
                await pipeline.run()
        return caught.value

    async def begun(self, source_type: str = "fake") -> None:
        """A journal of one entry."""
        writer = Writer("b", "b", "test")
        journal = Journal(self.store, PREFIX, writer, Metrics(CollectorRegistry()))
        await journal.load()
        await journal.open(identity(source_type), self.configuration, durable(100, seq=-1))

    async def lose(self, *tables: str) -> None:
        """The journal states a gap of each, and each is another one."""
        writer = Writer("b", "b", "test")
        journal = Journal(self.store, PREFIX, writer, Metrics(CollectorRegistry()))
        await journal.load()
        gaps = [
            Gap(number, table, "0001.A", "0001.B", "operations", f"{table} was left out")
            for number, table in enumerate(tables, 1)
        ]
        await journal.append(gaps=tuple(gaps))


@pytest.fixture
def rig() -> Rig:
    return Rig(AskedSource(tables=Finding("1 table captured")), RefusingStore())


def put(rig: Rig, key: str) -> None:
    rig.store.objects[key] = StoredObject(b"{}", {})


async def test_every_step_is_told_in_order_and_only_the_write_leaves_something(rig: Rig) -> None:
    steps = await rig.steps()

    names = ["port", "source", "bucket", "journal", "prefix", "conditional writes", "reads"]
    names += ["rows", "tables"]
    assert list(steps) == names
    assert all(step.is_ok and not step.hint for step in steps.values())
    assert steps["source"].detail == "database shop"
    assert steps["journal"].detail == "empty: the first run begins it"
    assert steps["tables"].detail == "1 table captured"
    assert [key.startswith(check_folder(PREFIX)) for key in rig.store.objects] == [True]


async def test_a_journal_that_is_there_is_told_and_the_source_knows_it_is_not_the_first(
    rig: Rig,
) -> None:
    await rig.begun()

    steps = await rig.steps()

    assert steps["journal"].detail == "1 entry, epoch 1, durable at 0/64"
    assert rig.source.asked_first == [False]


# --- the same judges as a start's


Trouble = Callable[[Rig], Awaitable[str]]
"""Makes it, and names the step that finds it."""


async def lose_the_journal(rig: Rig) -> str:
    put(rig, ORPHAN)
    return "prefix"


async def nest(rig: Rig) -> str:
    put(rig, journal_key(f"{PREFIX}/inner", 0))
    return "prefix"


async def be_another_source(rig: Rig) -> str:
    await rig.begun("other")
    return "journal"


async def refuse_writes(rig: Rig) -> str:
    rig.store.on_create = DestinationRefused("create: AccessDenied", hint="grant s3:PutObject")
    return "conditional writes"


async def overwrite(rig: Rig) -> str:
    rig.store.is_create_only = False
    return "conditional writes"


async def refuse_reads(rig: Rig) -> str:
    rig.store.on_get_proof = DestinationRefused("get: AccessDenied", hint="grant s3:GetObject")
    return "reads"


async def forget_writes(rig: Rig) -> str:
    rig.store.is_forgetful = True
    return "reads"


async def refuse_lists(rig: Rig) -> str:
    rig.store.on_list = DestinationRefused("list: AccessDenied", hint="grant s3:ListBucket")
    return "bucket"


async def refuse_us(rig: Rig) -> str:
    rig.source.error = SourceRefused("no such role", hint="make it")
    return "source"


async def never_answer(rig: Rig) -> str:
    async def never(_: str) -> None:
        await asyncio.Event().wait()

    rig.start_seconds_max = 0.05
    rig.store.before_list = never
    return "bucket"


@pytest.mark.parametrize(
    "trouble",
    [
        lose_the_journal,
        nest,
        be_another_source,
        refuse_writes,
        refuse_reads,
        forget_writes,
        overwrite,
        refuse_lists,
        refuse_us,
        never_answer,
    ],
)
async def test_check_says_of_a_trouble_what_a_start_says(rig: Rig, trouble: Trouble) -> None:
    name = await trouble(rig)

    steps = await rig.steps()
    error = await rig.started()

    assert not steps[name].is_ok
    told = (steps[name].detail, steps[name].hint, steps[name].exit_code)
    assert told == (str(error), error.hint, error.exit_code)


@pytest.mark.parametrize("trouble", [lose_the_journal, nest, be_another_source])
async def test_nothing_is_written_where_the_prefix_is_not_this_pipelines(
    rig: Rig, trouble: Trouble
) -> None:
    name = await trouble(rig)
    before = set(rig.store.objects)

    steps = await rig.steps()

    assert not steps[name].is_ok
    assert "conditional writes" not in steps
    assert set(rig.store.objects) == before


async def test_a_journal_that_may_not_be_read_keeps_no_right_from_being_told(rig: Rig) -> None:
    await rig.begun()
    rig.store.on_get_proof = DestinationRefused("get: AccessDenied", code="AccessDenied")
    rig.store.is_journal_hidden = True

    steps = await rig.steps()

    assert [name for name, step in steps.items() if not step.is_ok] == ["journal", "reads"]
    assert steps["conditional writes"].is_ok


async def test_a_bucket_that_goes_on_failing_is_told_with_its_last_failure(rig: Rig) -> None:
    rig.start_seconds_max = 0.3
    rig.store.on_create = DestinationUnavailable(
        "create: ExpiredToken", code="ExpiredToken", hint="the credentials ran out"
    )

    steps = await rig.steps()
    error = await rig.started()

    step = steps["conditional writes"]
    assert step.detail == "the bucket gave no usable answer within 0.3 s: create: ExpiredToken"
    assert (step.hint, step.exit_code) == ("the credentials ran out", 69)
    assert str(error) == step.detail


async def test_a_journal_that_cannot_be_read_for_a_reason_is_told_with_it(rig: Rig) -> None:
    rig.start_seconds_max = 0.3
    rig.store.on_list = DestinationUnavailable("assume ROLE to list", hint="this is AWS's STS")

    error = await rig.started()

    assert str(error).endswith("within 0.3 s: assume ROLE to list")
    assert error.hint == "this is AWS's STS"


async def test_nothing_is_asked_of_a_bucket_that_does_not_answer(rig: Rig) -> None:
    rig.store.on_list = DestinationUnavailable("list: no route")

    steps = await rig.steps()

    assert list(steps) == ["port", "source", "bucket"]
    assert steps["bucket"].exit_code == 69


async def test_a_bucket_is_looked_at_where_the_source_does_not_answer(rig: Rig) -> None:
    rig.source.error = SourceUnavailable("no route")
    await rig.begun()

    steps = await rig.steps()

    assert list(steps) == [
        "port",
        "source",
        "bucket",
        "journal",
        "prefix",
        "conditional writes",
        "reads",
    ]
    assert not steps["source"].is_ok
    assert steps["journal"].is_ok
    assert steps["journal"].detail.endswith("not compared with the source")


async def test_a_newcomer_inside_the_prefix_is_a_warning_where_there_is_a_journal(
    rig: Rig,
) -> None:
    await rig.begun()
    await nest(rig)

    steps = await rig.steps()

    assert steps["prefix"].state == "warning"
    assert "is around 'lake/inner'" in steps["prefix"].detail
    assert "prefix of its own" in steps["prefix"].hint


async def test_a_bucket_that_may_not_be_listed_is_asked_for_the_other_rights(rig: Rig) -> None:
    rig.store.on_list = DestinationRefused("list: AccessDenied", code="AccessDenied")

    steps = await rig.steps()

    assert list(steps) == ["port", "source", "bucket", "conditional writes", "reads"]
    assert [name for name, step in steps.items() if not step.is_ok] == ["bucket"]


async def test_the_buckets_own_rules_are_told_and_warn_only(rig: Rig) -> None:
    async def read() -> tuple[BucketRule, ...]:
        return (BucketRule("sweep", "", upload_days=1),)

    rig.rules = BucketRules(read, PREFIX)

    steps = await rig.steps()

    assert steps["bucket rules"].is_ok
    assert 'rule "sweep" throws unfinished uploads away after 1 day' in steps["bucket rules"].detail
    assert "7 days or more" in steps["bucket rules"].hint


# --- what stands against the tables


def looked(*lost: str) -> Look:
    """These tables are not published."""
    reasons = {NOT_PUBLISHED: Reason("it is not published", "ADD IT")}
    tables = {
        TableName("public", name): TableLook(name, {NOT_PUBLISHED: ()}, {}, frozenset(), reasons)
        for name in lost
    }
    return Look(place(100), place(100), place(101), {}, tables, {})


async def test_what_stands_against_tables_is_told_and_warns_only(rig: Rig) -> None:
    await rig.begun()
    calm = await rig.steps()
    rig.source.looks = looked("orders", "lines")

    steps = await rig.steps()

    assert (calm["catalog watch"].is_ok, calm["catalog watch"].hint) == (True, "")
    assert "catalog watch" not in steps
    step = steps["not-captured"]
    assert (step.is_ok, step.hint) == (True, "ADD IT")
    assert step.detail == "public.lines, public.orders: it is not published"


async def test_a_look_that_fails_keeps_no_gap_from_being_told(rig: Rig) -> None:
    await rig.begun()
    await rig.lose("public.orders")
    rig.source.looks = SourceUnavailable("no answer", hint="wait")

    steps = await rig.steps()

    assert (steps["catalog watch"].is_ok, steps["catalog watch"].hint) == (True, "wait")
    assert "(operations)" in steps["gap"].detail


async def test_a_source_that_was_moved_past_what_is_durable_fails_as_a_start_does(
    rig: Rig,
) -> None:
    await rig.begun()
    rig.source.held.confirmed = 150

    steps = await rig.steps()
    error = await rig.started()

    assert steps["position"].state == "failure"
    told = (steps["position"].detail, steps["position"].hint, steps["position"].exit_code)
    assert told == (str(error), error.hint, 70)
    assert "--accept-gap" in error.hint


async def test_a_server_that_was_restored_to_an_earlier_time_fails(rig: Rig) -> None:
    await rig.begun()
    rig.source.held.confirmed, rig.source.held.log_end = 50, 60

    steps = await rig.steps()
    error = await rig.started()

    assert (steps["position"].state, steps["position"].detail) == ("failure", str(error))


async def test_a_source_that_another_engine_reads_is_not_compared(rig: Rig) -> None:
    await rig.begun()
    rig.source.is_read = True

    steps = await rig.steps()

    assert steps["position"].state == "ok"
    assert "another engine reads it" in steps["position"].detail


async def test_very_many_tables_are_counted(rig: Rig) -> None:
    await rig.begun()
    rig.source.looks = looked(*(f"t{number:03}" for number in range(25)))

    steps = await rig.steps()

    assert steps["not-captured"].detail.startswith("public.t000, ")
    assert "public.t019 and 5 more: " in steps["not-captured"].detail


async def test_very_many_findings_are_counted(rig: Rig) -> None:
    await rig.begun()
    await rig.lose(*(f"public.t{number:03}" for number in range(103)))

    steps = [step async for step in check(rig.world(), None)]

    assert [step.code.name for step in steps].count("gap") == 100
    assert steps[-1].detail == "and 3 findings more"


async def test_newcomers_that_a_running_engine_lets_in_are_no_finding(rig: Rig) -> None:
    rig.configuration = msgspec.structs.replace(CONFIGURATION, snapshot="initial")
    rig.publishing = Refusing({TableName("public", "lines"): Reason("no right", "as its owner")})
    await rig.begun()
    rig.source.looks = looked("orders", "lines")

    steps = await rig.steps()

    assert steps["not-captured"].detail == "public.lines: no right"


@dataclass
class Refusing:
    """Lets tables in, but for these."""

    why: dict[TableName, Reason]

    async def refused(self, tables: Sequence[TableName]) -> Mapping[TableName, Reason]:
        return {table: self.why[table] for table in tables if table in self.why}

    async def publish(self, tables: Sequence[TableName]) -> Mapping[TableName, Reason]:
        raise AssertionError(f"a check lets nobody in: {tables}")


async def test_a_step_that_fails_keeps_no_other_from_being_told(rig: Rig) -> None:
    rig.source.findings = {
        "first": SourceRefused("no table matches", hint="name one"),
        "second": Finding("there", "but see to it"),
    }

    steps = await rig.steps()

    assert (steps["first"].is_ok, steps["first"].exit_code) == (False, 78)
    assert (steps["second"].is_ok, steps["second"].hint) == (True, "but see to it")


async def test_a_loss_is_told_with_the_flag_that_accepts_it(rig: Rig) -> None:
    rig.source.findings = {"tables": PositionLost("the slot is gone", hint="Start anew.")}
    await rig.begun()

    steps = await rig.steps()

    assert (steps["tables"].is_ok, steps["tables"].exit_code) == (False, 70)
    assert steps["tables"].hint.startswith("Start anew. Or go on with a gap")
    assert f"`tailrace run --accept-gap {place(100)}`" in steps["tables"].hint


async def test_another_server_is_told_with_the_flag_that_accepts_it(rig: Rig) -> None:
    await rig.begun()
    rig.source.known = identity(system_identifier="8")

    steps = await rig.steps()

    assert not steps["journal"].is_ok
    assert f"`tailrace run --accept-gap {place(100)}`" in steps["journal"].hint


async def test_where_nothing_is_durable_no_flag_accepts_anything(rig: Rig) -> None:
    rig.source.findings = {"tables": PositionLost("the slot is gone", hint="Start anew.")}

    steps = await rig.steps()

    assert steps["tables"].hint == "Start anew."


async def test_what_becomes_of_a_row_that_is_too_large_is_told(rig: Rig) -> None:
    rig.configuration = msgspec.structs.replace(
        CONFIGURATION, row_bytes_max=3 << 20, on_unrepresentable="gap"
    )

    steps = await rig.steps()

    assert steps["rows"].detail.startswith("up to 3 MiB each (source.max_row_bytes)")
    assert steps["rows"].detail.endswith("left out, as gaps")


# --- the port


async def test_a_free_port_is_told_and_given_back(rig: Rig) -> None:
    (port,) = free_ports(1)

    steps = await rig.steps(Address("127.0.0.1", port))

    assert steps["port"].is_ok
    assert steps["port"].detail == f"http.listen = 127.0.0.1:{port} is free"
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_a_port_in_use_fails_as_it_fails_a_start(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])

        steps = await rig.steps(address)

    assert (steps["port"].is_ok, steps["port"].exit_code) == (False, 78)
    assert steps["port"].detail == f"cannot listen on http.listen = {address}: the port is in use"
    assert "another engine may run here" in steps["port"].hint
    assert steps["tables"].is_ok, "the rest is told all the same"


async def test_an_address_of_another_machine_is_refused(rig: Rig) -> None:
    # TEST-NET-1 of RFC 5737: nobody's.
    steps = await rig.steps(Address("192.0.2.1", 0))

    assert not steps["port"].is_ok
    assert "this machine has no such address" in steps["port"].detail


async def test_no_port_is_asked_for_where_nothing_is_served(rig: Rig) -> None:
    steps = await rig.steps(None)

    assert steps["port"].is_ok
    assert 'http.listen = "off"' in steps["port"].detail


# --- what an engine is given


def test_metrics_that_do_not_declare_what_the_source_measures_are_refused(rig: Rig) -> None:
    class Measuring(AskedSource):
        @property
        def measures(self) -> SourceMeasures:
            return SourceMeasures("transactions", {"backlog": "What waits"})

    rig.source = Measuring()

    with pytest.raises(InvariantBroken, match="do not declare what the source measures"):
        rig.world()
