"""What a bucket's own rules do: read from real answers, judged, told, and obeyed by attempts."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from moto.server import ThreadedMotoServer

from configured import make_s3_settings
from databases import Database
from engine.destinations.s3 import S3ObjectStore
from engine.destinations.s3_rules import rules_of
from engine.journal.bucket_rules import BucketRules
from engine.journal.planner import ENTRY_BYTES_MAX
from engine.model import bucket_rule
from engine.model.bucket_rule import BucketRule, RuleAction, shortest, soonest, taken_away
from engine.model.errors import (
    DestinationRefused,
    DestinationUnavailable,
    JournalError,
    TailraceError,
)
from engine.servers.fault_proxy import Answer, HttpFaultProxy, Request
from engine.servers.servers import EmbeddedS3
from engine.snapshot.task import SnapshotTask
from faults.snapshot_rig import Place
from load_tests.engine_process import EngineProcess, until
from small_bucket import ODD, ORDERS, PREFIX
from snapshot_rig import Rig, for_ever, rig, virtually, well

if TYPE_CHECKING:
    import aioboto3
    from types_aiobotocore_s3 import S3Client

DOCUMENT = Path(__file__).parent.parent / "docs" / "retention.md"
DELETED = RuleAction(days=3)
UPLOADS = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2}}
EXPIRED = {"Expiration": {"Days": 3}}


def answered(**parts: Any) -> dict[str, Any]:
    """One rule of an answer."""
    return {"ID": "mine", "Status": "Enabled", **parts}


# --- what an answer says


@pytest.mark.parametrize(
    ("answer", "prefix"),
    [
        ({"Filter": {"Prefix": "lake/"}}, "lake/"),
        ({"Prefix": "lake/"}, "lake/"),
        ({"Filter": {}}, ""),
        ({"Filter": {"Prefix": ""}}, ""),
        ({"Filter": {"And": {"Prefix": "lake/", "ObjectSizeLessThan": 9}}}, "lake/"),
        ({"Filter": {"ObjectSizeLessThan": 9}}, ""),
        ({"Filter": {"And": {"Prefix": "lake/", "Tags": [{"Key": "a", "Value": "b"}]}}}, "lake/"),
        ({"Filter": {"Tag": {"Key": "a", "Value": "b"}}}, ""),
    ],
)
def test_a_rule_is_for_the_prefix_of_its_filter_in_each_form(
    answer: dict[str, Any], prefix: str
) -> None:
    rules = rules_of([answered(**answer, **UPLOADS, **EXPIRED)], [("a", "b")])

    assert rules == (BucketRule("mine", prefix, (DELETED,), upload_days=2),)


@pytest.mark.parametrize(
    "answer",
    [
        {"Status": "Disabled", **EXPIRED},
        {"Filter": {"Tag": {"Key": "a", "Value": "other"}}, **EXPIRED},
        {"Filter": {"And": {"Tags": [{"Key": "b", "Value": ""}]}}, **EXPIRED},
        {"NoncurrentVersionExpiration": {"NoncurrentDays": 3}},
        {"Expiration": {"ExpiredObjectDeleteMarker": True}},
    ],
)
def test_rules_that_do_nothing_to_our_objects_are_left_out(answer: dict[str, Any]) -> None:
    assert rules_of([answered(**answer)], [("a", "b")]) == ()


def test_dates_and_classes_are_read_and_a_rule_may_lack_a_name() -> None:
    day = datetime(2027, 1, 2, tzinfo=UTC)
    moving = {"Transitions": [{"Days": 30, "StorageClass": "GLACIER"}]}
    answer = {"Status": "Enabled", "Filter": {}, "Expiration": {"Date": day}, **moving}

    [rule] = rules_of([answer], [])

    assert rule.name == ""
    assert rule.actions == (RuleAction("", None, "2027-01-02"), RuleAction("GLACIER", 30))


@pytest.mark.parametrize(
    "part", [{"ObjectSizeGreaterThan": 9}, {"And": {"Prefix": "", "ObjectSizeGreaterThan": 9}}]
)
def test_a_rule_for_larger_objects_says_so(part: dict[str, Any]) -> None:
    rules = rules_of([answered(Filter=part, **UPLOADS, **EXPIRED)], [])

    assert rules == (BucketRule("mine", "", (DELETED,), upload_days=2, larger_than=9),)


# --- what it means


@pytest.mark.parametrize(
    ("rule_prefix", "found"),
    [
        ("", "mine"),
        ("lake", "mine"),
        ("lake/", "mine"),
        ("lake/database=shop/", "mine"),
        ("lake/database=shop/schema=public/table=orders/version=0001/", "mine"),
        ("lake/_tailrace/", ""),
        ("lake/database=other/", ""),
        ("lakeside/", ""),
    ],
)
def test_an_upload_is_reached_by_rules_above_and_below_its_folder(
    rule_prefix: str, found: str
) -> None:
    rule = BucketRule("mine", rule_prefix, upload_days=1)

    reaching = shortest([rule], "lake/database=shop/schema=public/table=orders/")

    assert (reaching.name if reaching is not None else "") == found


def test_the_shortest_rule_counts_and_one_without_days_is_none() -> None:
    rules = [BucketRule(str(days), "", upload_days=days) for days in (9, 0, 2, 5)]

    found = shortest(rules, "lake/")

    assert found is rules[2]
    assert bucket_rule.attempt_seconds(rules[2]) == 86_400


STATE, ENTRIES, SCHEMAS = "the newest state file", "the newest journal entries", "each schema.json"
OWN = "lake/_tailrace/"


@pytest.mark.parametrize(
    ("prefix", "action", "text", "kept"),
    [
        (
            "",
            DELETED,
            'deletes objects under "lake/" 3 days after they were made',
            (STATE, ENTRIES, SCHEMAS),
        ),
        (
            "lake/a/",
            RuleAction("GLACIER", 1),
            'moves to GLACIER the objects under "lake/a/" 1 day after they were made',
            (SCHEMAS,),
        ),
        (
            OWN,
            RuleAction(date="2027-01-02"),
            'deletes objects under "lake/_tailrace/" from 2027-01-02 on',
            (STATE, ENTRIES),
        ),
        (
            f"{OWN}journal/",
            RuleAction(days=29),
            'deletes objects under "lake/_tailrace/journal/" 29 days after they were made',
            (ENTRIES,),
        ),
        (
            f"{OWN}snapshots/",
            DELETED,
            'deletes objects under "lake/_tailrace/snapshots/" 3 days after they were made',
            (),
        ),
    ],
)
def test_what_is_taken_away_is_told_by_the_rules_name_and_what_must_stay(
    prefix: str, action: RuleAction, text: str, kept: tuple[str, ...]
) -> None:
    among = f", among them {', '.join(kept)}" if kept else ""

    assert taken_away([BucketRule("x", prefix, (action,))], "lake") == (f'rule "x" {text}{among}',)


@pytest.mark.parametrize(
    ("prefix", "action"),
    [
        (f"{OWN}journal/", RuleAction(days=30)),
        (f"{OWN}state/", RuleAction("GLACIER", 30)),
        (OWN, RuleAction(days=30)),
        (f"{OWN}check/", RuleAction(days=1)),
        ("lake/", RuleAction("STANDARD_IA", 30)),
        ("other/", DELETED),
    ],
)
def test_a_rule_that_does_no_harm_is_not_told(prefix: str, action: RuleAction) -> None:
    assert taken_away([BucketRule("x", prefix, (action,))], "lake") == ()


# --- an end of the journal that may not be its end


NOON_US = 1_800_000_000_000_000
DAY_US = 86_400_000_000


@pytest.mark.parametrize(
    ("rule", "days"),
    [
        (BucketRule("x", "", (RuleAction(days=3),)), 3),
        (BucketRule("x", f"{PREFIX}/_tailrace/", (DELETED,), larger_than=ENTRY_BYTES_MAX), 3),
        (BucketRule("x", "", (RuleAction("GLACIER", 1), RuleAction(days=3))), 3),
        (BucketRule("x", "", (RuleAction(days=9), RuleAction(days=3))), 4),
    ],
)
async def test_a_newest_entry_as_old_as_a_rule_lets_any_become_is_not_gone_on_from(
    rule: BucketRule, days: float
) -> None:
    with pytest.raises(JournalError, match='rule "x" takes entries away after 3 days') as caught:
        await ruled_by(rule).refuse_expired(NOON_US, NOON_US + int(days * DAY_US))

    assert "docs/retention.md" in caught.value.hint


@pytest.mark.parametrize(
    ("rule", "days"),
    [
        (BucketRule("x", "", (RuleAction(days=3),)), 2.9),
        (BucketRule("x", f"{PREFIX}/database=shop/", (RuleAction(days=3),)), 400),
        (BucketRule("x", "", (RuleAction("STANDARD_IA", 3),)), 400),
        (BucketRule("x", f"{PREFIX}/_tailrace/", (RuleAction("GLACIER", 3),)), 400),
        (BucketRule("x", f"{PREFIX}/_tailrace/", (RuleAction("DEEP_ARCHIVE", 3),)), 400),
        (BucketRule("x", "", (DELETED,), larger_than=100 * 1024 * 1024), 400),
        (BucketRule("x", "", (RuleAction(date="2027-01-02"),)), 400),
    ],
)
async def test_a_newest_entry_that_no_rule_takes_yet_is_gone_on_from(
    rule: BucketRule, days: float
) -> None:
    await ruled_by(rule).refuse_expired(NOON_US, NOON_US + int(days * DAY_US))


def ruled_by(rule: BucketRule) -> BucketRules:
    async def read() -> tuple[BucketRule, ...]:
        return (rule,)

    return BucketRules(read, PREFIX)


# --- real answers


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


SHORT: Any = answered(ID="short", Filter={"Prefix": "lake/"}, **UPLOADS)
COLD: Any = answered(
    ID="cold",
    Filter={"Prefix": "lake/database=a/"},
    Transitions=[{"Days": 30, "StorageClass": "GLACIER"}],
)
OFF: Any = answered(ID="off", Filter={"Prefix": ""}, **EXPIRED) | {"Status": "Disabled"}


async def test_amazons_answers_are_read_with_uploads_and_transitions(
    moto: str, s3_session: "aioboto3.Session", aws_environment: EmbeddedS3
) -> None:
    async with (
        s3_session.client("s3", endpoint_url=moto, region_name="us-east-1") as client,
        S3ObjectStore(make_s3_settings(bucket="ruled", endpoint_url=moto)) as store,
    ):
        await client.create_bucket(Bucket="ruled")
        before = await store.rules()
        await client.put_bucket_lifecycle_configuration(
            Bucket="ruled", LifecycleConfiguration={"Rules": [SHORT, COLD, OFF]}
        )
        found = await store.rules()

    assert before == ()
    assert found == (
        BucketRule("short", "lake/", upload_days=2),
        BucketRule("cold", "lake/database=a/", (RuleAction("GLACIER", 30),)),
    )


@pytest.fixture
async def proxied(
    s3: EmbeddedS3, bucket: str, aws_environment: EmbeddedS3
) -> AsyncIterator[tuple[HttpFaultProxy, S3ObjectStore]]:
    """A bucket of SeaweedFS behind a proxy."""
    async with HttpFaultProxy(s3.port) as proxy:
        settings = make_s3_settings(bucket=bucket, endpoint_url=proxy.endpoint_url)
        async with S3ObjectStore(settings) as store:
            yield proxy, store


def asks_for_rules(request: Request) -> bool:
    return "lifecycle" in request.parameters


async def test_a_check_tells_the_rules_of_a_bucket_and_warns(
    proxied: tuple[HttpFaultProxy, S3ObjectStore], bucket: str, s3_client: "S3Client"
) -> None:
    _, store = proxied
    rules = BucketRules(store.rules, "lake")
    none = await rules.finding()
    away: Any = answered(ID="away", Filter={"Prefix": "lake/"}, **EXPIRED)

    await s3_client.put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration={"Rules": [SHORT, away, OFF]}
    )
    found = await rules.finding()

    assert (none.text, none.hint) == ("none that concerns the prefix", "")
    assert found.text == (
        'rule "away" deletes objects under "lake/" 3 days after they were made, among them the'
        " newest state file, the newest journal entries, each schema.json; rule"
        ' "short" throws unfinished uploads away after 2 days: an attempt to read a table has 24'
        " hours"
    )
    assert "docs/retention.md" in found.hint
    assert "DaysAfterInitiation" in found.hint


@pytest.mark.parametrize(
    "refusal",
    [
        Answer(403, "AccessDenied"),
        Answer(501, "NotImplemented"),
        Answer(405, "MethodNotAllowed"),
        Answer(400, "InvalidRequest"),
        Answer(503, "SlowDown"),
    ],
)
async def test_rules_that_cannot_be_read_are_a_note_and_no_fault(
    proxied: tuple[HttpFaultProxy, S3ObjectStore], refusal: Answer
) -> None:
    proxy, store = proxied
    rule = proxy.inject(refusal, asks_for_rules)

    found = await BucketRules(store.rules, "lake").finding()

    assert rule.hits == 1
    assert found.text.startswith("not known, which is no fault: read the rules in bucket")
    assert refusal.code in found.text
    assert found.hint == ""


async def test_the_right_that_is_missing_is_named(
    proxied: tuple[HttpFaultProxy, S3ObjectStore],
) -> None:
    proxy, store = proxied
    proxy.inject(Answer(403, "AccessDenied"), asks_for_rules)

    with pytest.raises(DestinationRefused) as caught:
        await store.rules()

    assert "s3:GetLifecycleConfiguration" in caught.value.hint


# --- the rules to paste


def documented() -> Any:
    """What docs/retention.md has to be pasted."""
    found = re.search(r"```json\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def judge_documented(found: tuple[BucketRule, ...]) -> None:
    """They leave the journal alone, take tables' objects, and give a snapshot 7 days."""
    [told] = taken_away(found, "lake")
    uploads = shortest(found, "lake/database=shop/")

    assert told == (
        'rule "tailrace-tables" deletes objects under "lake/database=" 400 days after they were'
        " made, among them each schema.json"
    )
    assert uploads is not None
    assert uploads.upload_days == 7
    journal = soonest(found, "lake/_tailrace/journal/")
    assert journal is not None
    assert journal[1] == 30


async def test_amazon_takes_the_documented_rules(
    moto: str, s3_session: "aioboto3.Session", aws_environment: EmbeddedS3
) -> None:
    async with (
        s3_session.client("s3", endpoint_url=moto, region_name="us-east-1") as client,
        S3ObjectStore(make_s3_settings(bucket="pasted", endpoint_url=moto)) as store,
    ):
        await client.create_bucket(Bucket="pasted")
        await client.put_bucket_lifecycle_configuration(
            Bucket="pasted", LifecycleConfiguration=documented()
        )

        judge_documented(await store.rules())


async def test_seaweedfs_takes_the_documented_rules(
    proxied: tuple[HttpFaultProxy, S3ObjectStore], bucket: str, s3_client: "S3Client"
) -> None:
    _, store = proxied
    await s3_client.put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration=documented()
    )

    judge_documented(await store.rules())


# --- looks


@asynccontextmanager
async def beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Do that while the block runs."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        yield
        task.cancel()


async def no_answer() -> tuple[BucketRule, ...]:
    await asyncio.Event().wait()
    raise AssertionError


@virtually
async def test_a_bucket_that_does_not_answer_is_not_waited_for() -> None:
    rules = BucketRules(no_answer, PREFIX)

    async with asyncio.timeout(11):
        found = await rules.finding()

    assert found.text == "not known, which is no fault: no answer"


@virtually
async def test_rules_are_told_once_and_again_when_they_change() -> None:
    known: list[BucketRule] = [BucketRule("a", "", (DELETED,), upload_days=1)]

    async def read() -> tuple[BucketRule, ...]:
        return tuple(known)

    with structlog.testing.capture_logs() as lines:
        async with beside(BucketRules(read, PREFIX).run()):
            await asyncio.sleep(3 * 3600)
            first = len(lines)
            known[0] = BucketRule("b", "", upload_days=7)
            await asyncio.sleep(2 * 3600)
            known[0] = BucketRule("c", "", upload_days=1)
            await asyncio.sleep(2 * 3600)

    assert first == 2
    assert [line["text"].partition('"')[2][0] for line in lines] == ["a", "a", "c"]
    assert {line["log_level"] for line in lines} == {"warning"}


@virtually
async def test_a_rule_for_uploads_is_nobodys_business_without_snapshots() -> None:
    async def read() -> tuple[BucketRule, ...]:
        return (BucketRule("a", "", upload_days=1),)

    found = await BucketRules(read, PREFIX, is_staging=False).finding()

    assert found.hint == ""


# --- attempts


HOUR = 3600.0
A_DAY = BucketRule("short", PREFIX, upload_days=1)


@pytest.fixture
def short_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day is twenty minutes: an attempt has ten."""
    monkeypatch.setattr(bucket_rule, "DAY_SECONDS", 1200.0)


def slow(minutes: float) -> Callable[[SnapshotTask], Any]:
    """A worker that comes further all the while, and takes so long."""

    async def deed(_: SnapshotTask) -> None:
        await asyncio.sleep(60 * minutes)

    return deed


async def moving(one: Rig) -> None:
    """Let every task be seen to come further, until cancelled."""
    while True:
        for task in one.running:
            one.seen[task.rows.name] += 1
        await asyncio.sleep(1)


@pytest.mark.usefixtures("short_days")
@virtually
async def test_an_attempt_that_would_outlive_the_rule_is_given_up_with_the_rules_name() -> None:
    one = await rig(rules=(A_DAY,))
    one.deeds = [for_ever]
    loop = asyncio.get_running_loop()

    async with beside(moving(one)), one.taking(ORDERS):
        await one.until(lambda: bool(one.running))
        began = loop.time()
        await one.until(one.is_alarmed)
        ended = loop.time()
        one.deeds = []
        await asyncio.sleep(HOUR)
        attempts = {task.staging.attempt for task in one.tasks}

    [alarm] = one.alarms.standing()
    assert 590 < ended - began < 610
    assert 'rule "short"' in alarm.text
    assert "attempt 1 of" in alarm.text
    assert "DaysAfterInitiation" in alarm.hint
    # No other attempt under the same rule: it would only cost.
    assert attempts == {1}
    assert not one.is_whole(ORDERS)
    assert one.bucket.store.uploads == {}


@pytest.mark.usefixtures("short_days")
@virtually
async def test_a_table_is_read_again_when_the_rule_has_more_days_or_is_gone() -> None:
    for longer in (BucketRule("long", PREFIX, upload_days=2), None):
        one = await rig(rules=(A_DAY,))
        one.deeds = [for_ever]
        async with beside(moving(one)), one.taking(ORDERS):
            await one.until(one.is_alarmed)
            one.rules = () if longer is None else (longer,)
            await one.bucket_rules.look()
            await one.done()

        assert one.stated().attempt == 2
        assert not one.is_alarmed()


@pytest.mark.usefixtures("short_days")
@virtually
async def test_a_rule_that_was_given_more_days_meanwhile_ends_no_attempt() -> None:
    one = await rig(rules=(A_DAY,))
    one.deeds = [slow(15)]

    async with beside(moving(one)), one.taking(ORDERS):
        await one.until(lambda: bool(one.running))
        one.rules = (BucketRule("long", PREFIX, upload_days=7),)
        await one.done()

    assert one.stated().attempt == 1


@pytest.mark.usefixtures("short_days")
@virtually
async def test_an_attempt_has_its_time_for_all_of_its_ranges_together() -> None:
    one = await rig(rules=(A_DAY,), worker_count=1)
    one.deeds = [slow(4), slow(4), slow(4)]

    async with beside(moving(one)), one.taking(ORDERS):
        await one.until(one.is_alarmed)

    assert one.given() == [0, 1, 2]
    assert not one.is_whole(ORDERS)


@pytest.mark.usefixtures("short_days")
@virtually
async def test_other_tables_go_on_and_time_counts_from_the_first_upload() -> None:
    # One worker: the second table waits for nine minutes and takes nine.
    one = await rig(rules=(A_DAY,), worker_count=1)
    one.ranges = {ORDERS: ("t", "r"), ODD: ("t", "r")}
    one.deeds = [slow(4), slow(4), slow(4), slow(4)]

    async with beside(moving(one)), one.taking(ORDERS, ODD):
        await one.done()

    assert (one.stated(ORDERS).attempt, one.stated(ODD).attempt) == (1, 1)


@pytest.mark.usefixtures("short_days")
@pytest.mark.parametrize(
    "rule",
    [
        BucketRule("elsewhere", "other/", upload_days=1),
        BucketRule("journal", f"{PREFIX}/_tailrace/", upload_days=1),
    ],
)
@virtually
async def test_rules_that_reach_no_upload_end_no_attempt(rule: BucketRule) -> None:
    one = await rig(rules=(rule,))
    one.deeds = [slow(15), well]

    async with beside(moving(one)), one.taking(ORDERS):
        await one.done()

    assert one.stated().attempt == 1


@pytest.mark.parametrize(
    "error", [DestinationRefused("AccessDenied"), DestinationUnavailable("no route")]
)
@virtually
async def test_a_snapshot_is_taken_where_the_rules_cannot_be_read(error: TailraceError) -> None:
    one = await rig()
    one.rules_error = error

    async with beside(moving(one)), one.taking(ORDERS):
        await one.done()

    assert one.rules_read == 1
    assert one.stated().state == "whole"


# --- an engine and a check, on a real bucket


TAKEN_TOLD = "a rule of the bucket takes objects away"
UPLOADS_TOLD = "a rule of the bucket throws uploads away soon"


async def is_told(engine: EngineProcess) -> bool:
    return bool(engine.events(TAKEN_TOLD))


@pytest.mark.timeout(300)
async def test_an_engine_and_a_check_tell_the_rules_of_their_bucket(
    database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> None:
    database.execute("CREATE TABLE ruled (id int PRIMARY KEY)")
    away: Any = answered(ID="away", Filter={"Prefix": "lake/"}, **EXPIRED)
    await s3_client.put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration={"Rules": [SHORT, away]}
    )
    async with Place(database, s3, bucket, s3_client, tmp_path).rigged() as place:
        engine = await place.caught_up()
        streaming = place.start(pipeline=place.pipeline.changed(source__snapshot="never"))
        await until(lambda: is_told(streaming), "what a rule takes away")
        await streaming.stop()
        check = place.start("check", "--json")
        code = await check.ended()
        steps = {step["name"]: step for step in json.loads(check.output.read_text())["steps"]}

    assert not streaming.events(UPLOADS_TOLD)
    [taken] = engine.events(TAKEN_TOLD)
    [short] = engine.events(UPLOADS_TOLD)
    assert 'rule "away"' in taken["text"]
    assert 'rule "short"' in short["text"]
    assert code == 0
    assert taken["text"] in steps["bucket rules"]["detail"]
    assert short["text"] in steps["bucket rules"]["detail"]
