"""Rights on the bucket, taken away one by one: what `check` and a start say of each.

Strategy: the policies are those that `tailrace iam` prints. A proxy judges each request by them as
AWS does (`policed_bucket`). moto judges by its own IAM, with roles that are assumed. SeaweedFS
judges by the actions of its identities.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aioboto3
import pytest
from moto import settings as moto_settings
from moto.iam.models import iam_backends
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer
from moto.sts.models import sts_backends
from prometheus_client import CollectorRegistry

from configured import make_s3_settings, make_settings
from databases import Database
from engine.destinations.s3 import S3ObjectStore
from engine.destinations.s3_policies import Wanted, documents
from engine.destinations.s3_rights import Place
from engine.destinations.s3_settings import MIB, S3Settings
from engine.journal.bucket_rules import BucketRules
from engine.journal.entry import Writer
from engine.model.errors import DestinationRefused, TailraceError
from engine.model.record import RecordConfiguration
from engine.model.staging import Completion
from engine.model.trial import CheckStep
from engine.operate.alarms import Alarms
from engine.operate.metrics import Metrics
from engine.pipeline.check import check
from engine.pipeline.needs import Needs
from engine.pipeline.wiring import World, begin
from engine.servers.servers import EmbeddedS3
from load_tests.engine_process import EngineProcess, Pipeline
from policed_bucket import PolicedBucket
from policies import Caller, Policy, actions_of, refused, without
from still_source import StillSource

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

BUCKET = "lake"
TASK_ROLE = "arn:aws:iam::111122223333:role/tailrace-task"
KEY = "arn:aws:kms:us-east-1:111122223333:key/12ab-34cd"

NEEDED = {
    "s3:ListBucket": "bucket",
    "s3:PutObject": "conditional writes",
    "s3:GetObject": "reads",
}
WARNED = {
    "s3:ListBucketMultipartUploads": "uploads listed",
    "s3:AbortMultipartUpload": "uploads aborted",
}
UNNEEDED = {
    "s3:GetBucketLocation": "location",
    "s3:ListMultipartUploadParts": "uploads aborted",
    "s3:GetLifecycleConfiguration": "bucket rules",
    "s3:GetBucketObjectLockConfiguration": "object lock",
}
CONFIGURED: dict[str, dict[str, Any]] = {
    "s3:PutObjectAcl": {"acl": "bucket-owner-full-control"},
    "s3:PutObjectTagging": {"tags": (("team", "data"),)},
    "kms:GenerateDataKey": {"sse": "kms", "kms_key_id": KEY},
}
EVERYTHING = {name: value for each in CONFIGURED.values() for name, value in each.items()}


# --- what is asked, and of whom


def world_of(store: S3ObjectStore, prefix: str) -> World:
    metrics = Metrics(CollectorRegistry())
    return World(
        source=StillSource(),
        store=store,
        clock=lambda: 1_800_000_000_000_000,
        settings=make_settings(prefix=prefix, start_seconds_max=10.0),
        configuration=RecordConfiguration(through="tailrace", tables=("public.*",)),
        writer=Writer("a", "a", "test"),
        metrics=metrics,
        alarms=Alarms(lambda: 1_800_000_000_000_000, metrics),
        bucket_rules=BucketRules(store.rules, prefix),
        store_trials=lambda: store.trials("way"),
        store_identity=store.identity,
    )


async def checked(settings: S3Settings) -> dict[str, CheckStep]:
    """What `check` says of the bucket, by the name of each line."""
    async with S3ObjectStore(settings) as store:
        world = world_of(store, settings.prefix)
        return {step.code.name: step async for step in check(world, None)}


async def started(settings: S3Settings) -> TailraceError | None:
    """What a start on that bucket ends with before anything is made; None: it goes on."""
    async with S3ObjectStore(settings) as store:
        needs = Needs(begin(world_of(store, settings.prefix), lambda _: None))
        try:
            for step in (needs.bucket, needs.journal, needs.writes, needs.reads):
                await step()
        except TailraceError as error:
            return error
    return None


async def worked(settings: S3Settings) -> None:
    """Everything that a pipeline does to its bucket."""
    prefix, large = settings.prefix, b"x" * (6 * MIB)
    plain: dict[str, Any] = {"content_type": "application/x-ndjson", "metadata": {"rows": "1"}}
    async with S3ObjectStore(replace(settings, part_bytes=5 * MIB)) as store:
        assert await store.create(f"{prefix}/a", b"1", **plain)
        assert not await store.create(f"{prefix}/a", b"1", **plain)
        assert await store.create(f"{prefix}/b", large, **plain)
        assert await store.get(f"{prefix}/a") == b"1"
        assert await store.get(f"{prefix}/none") is None
        assert await store.head(f"{prefix}/none") is None
        head = await store.head(f"{prefix}/b")
        assert head is not None
        assert head.size == len(large)
        listed = [each.key async for each in store.list(f"{prefix}/")]
        assert listed[-2:] == [f"{prefix}/a", f"{prefix}/b"]
        upload = await store.begin_upload(f"{prefix}/c", **plain)
        part = await store.put_part(f"{prefix}/c", upload, 1, b"2")
        completion = await store.complete_upload(f"{prefix}/c", upload, [part], crc32=part.crc32)
        assert completion is Completion.CREATED
        left = await store.begin_upload(f"{prefix}/d", **plain)
        assert [each.upload_id async for each in store.list_uploads(f"{prefix}/")] == [left]
        assert await store.abort_upload(f"{prefix}/d", left)


def missing(steps: dict[str, CheckStep]) -> set[str]:
    """The rights that are named as not granted, in all lines together."""
    text = " ".join(f"{step.detail} {step.hint}" for step in steps.values())
    granted = re.findall(r"grant ((?:s3|kms):\w+)", text)
    return {*granted, *re.findall(r"((?:s3|kms):\w+) on \S+ is not granted", text)}


# --- AWS's judgement


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
async def moto_client(
    moto: str, s3_session: aioboto3.Session, aws_environment: EmbeddedS3
) -> AsyncIterator["S3Client"]:
    async with s3_session.client("s3", endpoint_url=moto, region_name="us-east-1") as client:
        await client.create_bucket(Bucket=BUCKET)
        yield client


@pytest.fixture
async def policed(moto: str, moto_client: "S3Client") -> AsyncIterator[PolicedBucket]:
    async with PolicedBucket(int(moto.rpartition(":")[2])) as proxy:
        backend = s3_backends["123456789012"]["aws"]
        proxy.exists = lambda key: key in backend.buckets[BUCKET].keys
        yield proxy


def settings_of(policed: PolicedBucket, prefix: str, **changes: Any) -> S3Settings:
    return make_s3_settings(
        bucket=BUCKET, prefix=prefix, endpoint_url=policed.endpoint_url, **changes
    )


def printed(settings: S3Settings, **changes: Any) -> dict[str, Policy]:
    """The policies for these settings, by what they are for."""
    wanted = Wanted(
        place=Place(settings.bucket, settings.prefix),
        has_acl=settings.acl is not None,
        has_tags=bool(settings.tags),
        key_arn=settings.kms_key_id or "",
        **changes,
    )
    return {each.kind: each.policy for each in documents(wanted)}


def judge_by(
    policed: PolicedBucket,
    policy: Policy,
    *,
    bucket: Policy | None = None,
    key: Policy | None = None,
) -> None:
    """From now on requests are judged by these; a bucket's policy makes its account another one."""
    is_owner = bucket is None or all(each["Effect"] == "Deny" for each in bucket["Statement"])
    caller = Caller(TASK_ROLE, (policy,), is_owner_account=is_owner)
    policed.judge = lambda asked: refused(asked, caller, bucket, key)


async def test_the_printed_policy_is_enough_and_none_of_its_rights_is_idle(
    policed: PolicedBucket, prefix: str
) -> None:
    settings = settings_of(policed, prefix, **EVERYTHING)
    policy = printed(settings)["task-role"]
    judge_by(policed, policy)
    policed.key_arn = KEY

    steps = await checked(settings)
    await worked(settings)

    assert {name: step.state for name, step in steps.items() if step.state != "ok"} == {}
    assert missing(steps) == set()
    assert {each.action for each in policed.asked} == set(actions_of(policy))


@pytest.mark.parametrize(
    ("right", "words"),
    [*((right, "few") for right in (*NEEDED, *WARNED, *UNNEEDED)), *((r, "many") for r in NEEDED)],
)
async def test_a_right_that_is_taken_away_is_the_one_that_is_named(
    policed: PolicedBucket, prefix: str, right: str, words: str
) -> None:
    settings = settings_of(policed, prefix)
    judge_by(policed, without(printed(settings)["task-role"], right))
    policed.is_terse = words == "few"

    steps = await checked(settings)
    error = await started(settings)

    step = steps[{**NEEDED, **WARNED, **UNNEEDED}[right]]
    resource = Place(BUCKET, prefix).resource_of(right)
    assert f"{right} on {resource}" in f"{step.detail} {step.hint}"
    assert missing(steps) == {right}
    assert step.state == ("failure" if right in NEEDED else "warning" if right in WARNED else "ok")
    assert all(each.is_ok for each in steps.values()) == (error is None)
    if error is not None:
        assert isinstance(error, DestinationRefused)
        assert f"{right} on {resource}" in error.hint


@pytest.mark.parametrize("words", ["few", "many"])
@pytest.mark.parametrize("right", CONFIGURED)
async def test_a_right_that_a_setting_needs_is_named_alone(
    policed: PolicedBucket, prefix: str, right: str, words: str
) -> None:
    settings = settings_of(policed, prefix, **EVERYTHING)
    judge_by(policed, without(printed(settings)["task-role"], right))
    policed.is_terse = words == "few"

    steps = await checked(settings)

    assert steps["conditional writes"].state == steps["attributes"].state == "failure"
    assert right in steps["attributes"].hint
    others = {each for each in CONFIGURED if each != right}
    assert not any(other in steps["attributes"].hint for other in others)


async def test_a_key_that_may_not_decrypt_is_found_before_anything_is_begun(
    policed: PolicedBucket, prefix: str
) -> None:
    settings = settings_of(policed, prefix, sse="kms", kms_key_id=KEY)
    judge_by(policed, without(printed(settings)["task-role"], "kms:Decrypt"))
    policed.key_arn = KEY

    steps = await checked(settings)

    assert steps["reads"].state == "failure"
    assert f"grant kms:Decrypt on {KEY}" in steps["reads"].hint


# --- two accounts


async def test_the_buckets_policy_and_the_roles_are_enough_across_accounts(
    policed: PolicedBucket, prefix: str
) -> None:
    settings = settings_of(policed, prefix, sse="kms", kms_key_id=KEY)
    found = printed(settings, principal=TASK_ROLE, enforces_create_only=True, denies_insecure=True)
    judge_by(policed, found["task-role"], bucket=found["bucket"], key=found["key"])
    policed.key_arn = KEY

    steps = await checked(settings)
    await worked(settings)

    assert {name: step.state for name, step in steps.items() if step.state != "ok"} == {}


@pytest.mark.parametrize("right", NEEDED)
async def test_the_side_that_grants_too_little_is_told(
    policed: PolicedBucket, prefix: str, right: str
) -> None:
    settings = settings_of(policed, prefix)
    found = printed(settings, principal=TASK_ROLE)
    judge_by(policed, found["task-role"], bucket=without(found["bucket"], right))

    steps = await checked(settings)

    assert f"{Place(BUCKET, prefix).resource_of(right)} in the bucket's policy" in (
        steps[NEEDED[right]].hint
    )
    assert missing(steps) == {right}


async def test_who_does_not_create_only_is_told_of_the_deny(
    policed: PolicedBucket, prefix: str, moto_client: "S3Client"
) -> None:
    settings = settings_of(policed, prefix)
    found = printed(settings, enforces_create_only=True)
    judge_by(policed, found["task-role"], bucket=found["bucket"])
    policed.is_secure = False

    await worked(settings)
    unconditional = [
        asked
        for asked in policed.asked
        if asked.action == "s3:PutObject" and "s3:if-none-match" not in asked.context
    ]

    assert unconditional, "beginning an upload and sending its parts carry no such header"
    assert {asked.context["s3:objectcreationoperation"] for asked in unconditional} == {"false"}
    denied = printed(settings, denies_insecure=True)
    judge_by(policed, denied["task-role"], bucket=denied["bucket"])
    error = await started(settings)
    assert error is not None
    assert error.hint.startswith("a Deny in a resource-based policy forbids s3:ListBucket")


# --- Matillion's policy


def matillions(bucket: str) -> Policy:
    """As docs/permissions.md shows it, for that bucket."""
    page = (Path(__file__).parent.parent / "docs" / "permissions.md").read_text()
    text = page.split("<!-- matillion -->\n```json\n")[1].split("```")[0]
    policy: Policy = json.loads(text.replace("my-lake", bucket))
    return policy


def test_the_policy_of_the_followed_system_has_the_rights_that_it_has() -> None:
    assert actions_of(matillions(BUCKET)) == [
        "s3:GetBucketLocation",
        "s3:ListBucket",
        "s3:PutObject",
        "s3:GetObject",
        "s3:DeleteObject",
    ]


async def test_matillions_policy_starts_and_what_it_lacks_is_a_warning(
    policed: PolicedBucket, prefix: str
) -> None:
    settings = settings_of(policed, prefix)
    own = printed(settings)["task-role"]
    judge_by(policed, own, bucket=matillions(BUCKET))

    first = await checked(settings)
    second = await checked(settings)
    error = await started(settings)
    uploads = await left_behind(policed, prefix)

    assert error is None
    assert {name for name, step in first.items() if step.state == "warning"} == set(WARNED.values())
    assert first["parts"].detail == "an object in parts was made"
    assert second["parts"].detail == "went up in parts when it was first tried"
    assert all(step.is_ok for step in (*first.values(), *second.values()))
    assert uploads == 0, "check leaves nothing that it could not throw away"
    assert "s3:DeleteObject" not in {asked.action for asked in policed.asked}


async def left_behind(policed: PolicedBucket, prefix: str) -> int:
    """How many unfinished uploads there are, seen by somebody who may see them."""
    policed.judge = lambda _: ""
    async with S3ObjectStore(settings_of(policed, prefix)) as store:
        return len([upload async for upload in store.list_uploads(prefix)])


@asynccontextmanager
async def policed_run(
    database: Database, s3: EmbeddedS3, bucket: str, policy: Policy, *, theirs: Policy | None
) -> AsyncIterator[tuple[PolicedBucket, Pipeline]]:
    """A database with rows, and a real bucket under policies."""
    database.execute("CREATE TABLE orders (id bigint PRIMARY KEY, note text)")
    database.execute("INSERT INTO orders SELECT n, 'note ' || n FROM generate_series(1, 500) AS n")
    async with PolicedBucket(s3.port) as proxy:
        judge_by(proxy, policy, bucket=theirs)
        sections: dict[str, Any] = {
            "source": {
                "dsn": database.dsn,
                "slot": database.name,
                "snapshot_workers": "local:1",
            },
            "destination": {
                "bucket": bucket,
                "prefix": "lake",
                "endpoint_url": proxy.endpoint_url,
            },
            "http": {"listen": "off"},
            "log": {"format": "text"},
        }
        yield proxy, Pipeline(sections, s3.environment)


async def ran(pipeline: Pipeline, folder: Path, *words: str) -> tuple[int, str]:
    """The exit code, and all that was said."""
    name = "-".join(words).replace("/", "_")
    with EngineProcess(pipeline, folder, name, *words) as process:
        code = await process.ended(seconds=60)
        return code, process.output.read_text() + process.log


@pytest.mark.timeout(300)
async def test_a_pipeline_runs_and_is_proved_under_matillions_policy(
    database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> None:
    own = printed(make_s3_settings(bucket=bucket, prefix="lake"))["task-role"]
    key = "lake/database=x/schema=public/table=orders/version=0001/left.ndjson.gz"
    await s3_client.create_multipart_upload(Bucket=bucket, Key=key)
    async with policed_run(database, s3, bucket, own, theirs=matillions(bucket)) as (
        proxy,
        pipeline,
    ):
        run, log = await ran(pipeline, tmp_path, "run", "--until-caught-up")
        verify, verdict = await ran(pipeline, tmp_path, "verify")
        judge_by(proxy, without(own, "s3:GetObject"), bucket=matillions(bucket))
        no_get, get_text = await ran(pipeline, tmp_path, "verify", "--depth", "light")
        judge_by(proxy, own, bucket=without(matillions(bucket), "s3:ListBucket"))
        no_list, list_text = await ran(pipeline, tmp_path, "read", "orders")

    assert (run, verify) == (0, 0), log + verdict
    assert "unfinished uploads are not listed" in log
    assert f"s3:ListBucketMultipartUploads on arn:aws:s3:::{bucket}" in log
    assert "AbortIncompleteMultipartUpload" in log
    assert (no_get, no_list) == (78, 78)
    assert f"s3:GetObject on arn:aws:s3:::{bucket}/lake/*" in get_text
    assert f"s3:ListBucket on arn:aws:s3:::{bucket}" in list_text
    assert "s3:DeleteObject" not in {asked.action for asked in proxy.asked}


@pytest.mark.timeout(300)
async def test_a_pipeline_runs_under_the_printed_policy_and_clears_away_what_was_left(
    database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> None:
    settings = make_s3_settings(bucket=bucket, prefix="lake")
    found = printed(settings, principal=TASK_ROLE, enforces_create_only=True, denies_insecure=True)
    key = (
        "lake/database=x/schema=public/table=orders/version=0001/year=2026/month=01/day=01/hour=01/"
    )
    await s3_client.create_multipart_upload(Bucket=bucket, Key=f"{key}{'0' * 50}.ndjson.gz")
    async with policed_run(database, s3, bucket, found["task-role"], theirs=found["bucket"]) as (
        proxy,
        pipeline,
    ):
        code, text = await ran(pipeline, tmp_path, "check")
        run, log = await ran(pipeline, tmp_path, "run", "--until-caught-up")

    assert (code, run) == (0, 0), text + log
    assert "unfinished uploads are not" not in log
    # Prefixes above ours are looked at where we may: S3 refuses, and that is no fault.
    outside = {asked.action for asked in proxy.refused}
    assert outside <= {"s3:ListBucket"}
    assert all(not asked.context["s3:prefix"].startswith("lake/") for asked in proxy.refused), (
        proxy.refused
    )


# --- moto's own IAM: another account, and a role that is assumed


class Accounts:
    """The task's account has a user and a role; the bucket is in moto's default account.

    moto takes no role's session for the role that a trust policy names, so a user assumes the role.
    """

    TASK = "111122223333"

    def __init__(self, moto: str) -> None:
        self.moto = moto
        self.user_arn = f"arn:aws:iam::{self.TASK}:user/task"
        self.role_arn = f"arn:aws:iam::{self.TASK}:role/lake/writer"
        self._iam = iam_backends[self.TASK]["aws"]
        self._iam.create_user("us-east-1", "task")
        self.key = self._iam.create_access_key("task")
        self._iam.create_role("writer", "{}", "/lake/", None, "", [], None)

    def settings(self, prefix: str) -> S3Settings:
        return make_s3_settings(
            bucket=BUCKET,
            prefix=prefix,
            endpoint_url=self.moto,
            role_arn=self.role_arn,
            external_id="right-7",
        )

    def printed(self, prefix: str) -> dict[str, Policy]:
        return printed(
            self.settings(prefix),
            principal=self.user_arn,
            role_arn=self.role_arn,
            has_external_id=True,
        )

    def grant(self, documents: Mapping[str, Policy], external_id: str = "right-7") -> None:
        """Attach the documents as an operator would."""
        mark = "REPLACE-BY-destination.external_id"
        trust = json.dumps(documents["trust"]).replace(mark, external_id)
        self._iam.update_assume_role_policy("writer", trust)
        self._iam.put_role_policy("writer", "tailrace", json.dumps(documents["bucket-role"]))
        self._iam.put_user_policy("task", "tailrace", json.dumps(documents["task-role"]))


@pytest.fixture
def accounts(
    moto: str, moto_client: "S3Client", monkeypatch: pytest.MonkeyPatch
) -> Iterator[Accounts]:
    """moto judges each request, and this process is the user of the task's account."""
    made = Accounts(moto)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", made.key.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made.key.secret_access_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto)
    monkeypatch.setattr(moto_settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    yield made
    iam_backends[Accounts.TASK]["aws"].reset()


@pytest.mark.timeout(240)
async def test_a_role_of_another_account_is_assumed_and_its_rights_are_motos_to_judge(
    accounts: Accounts, prefix: str
) -> None:
    settings, found = accounts.settings(prefix), accounts.printed(prefix)
    accounts.grant(found)

    steps = await checked(settings)
    await worked(settings)
    named = {}
    rights = [*NEEDED, *WARNED, "s3:GetLifecycleConfiguration"]
    for right in rights:
        accounts.grant({**found, "bucket-role": without(found["bucket-role"], right)})
        named[right] = missing(await checked(settings))

    assert {name: step.state for name, step in steps.items() if step.state != "ok"} == {}
    expected = {right: {right} for right in rights}
    # For the lock moto wants the right to list.
    expected["s3:ListBucket"].add("s3:GetBucketObjectLockConfiguration")
    assert named == expected


async def test_what_keeps_a_role_from_being_assumed_is_told(
    accounts: Accounts, prefix: str
) -> None:
    settings, found = accounts.settings(prefix), accounts.printed(prefix)
    nothing: Policy = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": ["s3:ListAllMyBuckets"], "Resource": "*"}],
    }

    accounts.grant(found, "another")
    wrong_id = await started(settings)
    accounts.grant({**found, "task-role": nothing})
    no_right = await started(settings)

    for error in (wrong_id, no_right):
        assert isinstance(error, DestinationRefused)
        assert str(error).startswith(f"assume {accounts.role_arn} to ")
        assert f"{accounts.user_arn} needs sts:AssumeRole on {accounts.role_arn}" in error.hint
        assert "what destination.external_id says" in error.hint
        assert "right-7" not in f"{error} {error.hint}"


async def test_the_identity_is_told_as_a_policy_names_it(accounts: Accounts) -> None:
    settings = make_s3_settings(bucket=BUCKET, prefix="p")

    async with S3ObjectStore(settings) as store:
        finding = await store.identity()
    async with S3ObjectStore(replace(settings, role_arn=accounts.role_arn)) as store:
        assuming = await store.identity()

    assert finding.text == accounts.user_arn
    assert assuming.text == f"{accounts.user_arn}; it assumes {accounts.role_arn}"


async def test_a_session_is_told_with_the_role_that_it_is_of(
    moto: str, aws_environment: EmbeddedS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = sts_backends["111122223333"]["aws"].assume_role(
        "us-east-1", "3f2a", TASK_ROLE, "", 900, ""
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", session.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", session.secret_access_key)
    monkeypatch.setenv("AWS_SESSION_TOKEN", session.session_token)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto)

    async with S3ObjectStore(make_s3_settings(bucket=BUCKET, prefix="p")) as store:
        finding = await store.identity()

    assert finding.text.startswith("arn:aws:sts::111122223333:assumed-role/tailrace-task/3f2a, ")
    assert f"of the role {TASK_ROLE} (a role with a path" in finding.text


async def test_a_store_without_sts_is_not_asked_and_an_sts_that_is_away_is_no_fault(
    moto: str, aws_environment: EmbeddedS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")

    async with S3ObjectStore(make_s3_settings(bucket=BUCKET, endpoint_url=moto)) as store:
        own = await store.identity()
    async with S3ObjectStore(make_s3_settings(bucket=BUCKET)) as store:
        away = await store.identity()

    assert (own.text, own.hint) == (
        "not asked: destination.endpoint_url leads to a store of its own",
        "",
    )
    assert away.text.startswith("not known, which is no fault of the bucket's")
    assert away.hint == ""


# --- SeaweedFS's identities: as far as its actions tell rights apart


IDENTITIES = {
    "everything": ("Read:lake", "Write:lake", "List:lake"),
    "the-prefix": ("Read:lake/p/*", "Write:lake/p/*", "List:lake/p/*"),
    "no-read": ("Write:lake", "List:lake"),
    "no-write": ("Read:lake", "List:lake"),
    "no-list": ("Read:lake", "Write:lake"),
    "stranger": ("Read:other", "Write:other", "List:other"),
}
# What a start needs comes first: that is what it ends with.
NOT_GRANTED = {
    "everything": (),
    "the-prefix": (),
    # Whoever may not read may not list uploads either.
    "no-read": ("s3:GetObject", "s3:ListBucketMultipartUploads"),
    "no-write": ("s3:PutObject", "s3:AbortMultipartUpload"),
    "no-list": ("s3:ListBucket",),
    "stranger": (
        "s3:ListBucket",
        "s3:PutObject",
        "s3:ListBucketMultipartUploads",
        "s3:AbortMultipartUpload",
    ),
}


@pytest.fixture(scope="module")
def guarded() -> Iterator[EmbeddedS3]:
    """A server that knows these identities, and the object that `check` reads."""
    with EmbeddedS3(identities=IDENTITIES) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.mark.parametrize("name", IDENTITIES)
async def test_an_identity_of_seaweedfs_lacks_what_is_named(
    guarded: EmbeddedS3, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings = make_s3_settings(bucket=BUCKET, prefix="p", endpoint_url=guarded.endpoint_url)

    async def by(identity: str) -> tuple[dict[str, CheckStep], TailraceError | None]:
        for variable, value in guarded.environment_of(identity).items():
            monkeypatch.setenv(variable, value)
        return await checked(settings), await started(settings)

    await by("everything")
    steps, error = await by(name)

    # Reading the bucket's own settings is a matter of its administrators there.
    assert missing(steps) - UNNEEDED.keys() == set(NOT_GRANTED[name])
    assert all(step.is_ok for step in steps.values()) == (error is None)
    if NOT_GRANTED[name]:
        assert error is not None
        right = NOT_GRANTED[name][0]
        assert f"grant {right} on {Place(BUCKET, 'p').resource_of(right)}" in error.hint
