"""The templates of config/ecs: judged by cfn-lint, made by moto, and lived in.

moto makes the stack as CloudFormation would. An engine is then started with what the task
definition says: its environment, a root file system that cannot be written to, no capabilities, its
health check, its signal and the time that it has.
"""

import ast
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from aws_server import moto_server, owner_of
from databases import Database
from engine.cli.application import main
from engine.config import load
from engine.servers.server_process import free_ports
from engine.servers.servers import EmbeddedS3
from load_tests.engine_process import until
from load_tests.engine_reader import plain_environment

# moto has no metric filters and no alarms of CloudFormation's: those are cfn-lint's alone.
pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS:UserWarning")

REGION = "us-east-1"
ACCOUNT = "123456789012"
ECS = Path(__file__).parents[1] / "config" / "ecs"
KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/11111111-2222-3333-4444-555555555555"

# A mount that is read-only for us alone; what is not the root of a container stays as it is.
READ_ONLY = """
mount --make-rprivate /
grep -v -E '^[^ ]+ (/proc|/sys|/dev)(/| )' /proc/mounts | while read -r _ place _; do
  mount -o remount,bind,ro "$place" 2>/dev/null || true
done
! touch "$1" 2>/dev/null || exit 99
shift
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all -- "$@"
"""


class Cloud:
    """moto's CloudFormation, and what it makes."""

    def __init__(self, url: str) -> None:
        self.url = url

    def client(self, service: str) -> Any:
        return owner_of(service, self.url, REGION)

    def make(self, name: str, template: str, parameters: Mapping[str, str]) -> dict[str, str]:
        """Make a stack; its outputs."""
        formation = self.client("cloudformation")
        formation.create_stack(
            StackName=name,
            TemplateBody=(ECS / template).read_text(),
            Parameters=[
                {"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()
            ],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        (stack,) = formation.describe_stacks(StackName=name)["Stacks"]
        assert stack["StackStatus"] == "CREATE_COMPLETE", stack
        return {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}

    def container(self, name: str) -> dict[str, Any]:
        """The one container of the stack's task definition."""
        answer = self.client("ecs").describe_task_definition(taskDefinition=name)
        (container,) = answer["taskDefinition"]["containerDefinitions"]
        return {key: _without_nothing(value) for key, value in container.items()}

    def statements(self, role: str) -> list[dict[str, Any]]:
        iam = self.client("iam")
        found: list[dict[str, Any]] = []
        for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
            document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
            # moto keeps Python's text of it.
            stated = ast.literal_eval(document) if isinstance(document, str) else document
            found += _without_nothing(stated["Statement"])
        return found


def _without_nothing(value: Any) -> Any:
    """AWS::NoValue takes an item out of its list; moto leaves None there."""
    if isinstance(value, list):
        return [each for each in value if each is not None]
    return value


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with moto_server() as url:
        yield Cloud(url)


@pytest.fixture(scope="module")
def given(cloud: Cloud) -> dict[str, str]:
    """The parameters that have no default."""
    ec2 = cloud.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    secret = cloud.client("secretsmanager").create_secret(
        Name=f"rds!db-{secrets.token_hex(4)}",
        SecretString='{"username": "tailrace", "password": "kanary-password"}',
    )
    return {
        "Image": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/tailrace:0.1.0",
        "VpcId": vpc,
        "SubnetIds": subnet,
        "DatabaseDsn": "host=db dbname=shop user=tailrace sslmode=require",
        "DatabaseSecretArn": secret["ARN"],
        "Bucket": "acme-lake",
        "BucketOwner": ACCOUNT,
        "BucketRegion": REGION,
        "Prefix": "shop",
    }


@pytest.fixture(scope="module")
def plain(cloud: Cloud, given: dict[str, str]) -> str:
    """A stack where nothing but what has no default is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        cloud.make("plain", "tailrace.yaml", given)
    return "plain"


@pytest.fixture(scope="module")
def rich(cloud: Cloud, given: dict[str, str]) -> str:
    """A stack where everything is given."""
    everything = {
        "BucketKmsKeyArn": KEY,
        "DatabaseSecretKmsKeyArn": KEY,
        "PortTokenSecretArn": given["DatabaseSecretArn"],
        "AlarmTopicArn": f"arn:aws:sns:{REGION}:{ACCOUNT}:alarms",
        "Tables": '["public.*", "sales.orders"]',
        "DesiredCount": "0",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        cloud.make("rich", "tailrace.yaml", given | everything)
    return "rich"


def variables(container: Mapping[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["environment"]}


def resolved(template: str, parameters: Mapping[str, str]) -> Any:
    """A template's resources, its parameters filled in where !Ref and !Sub name them."""
    values = {"AWS::Partition": "aws", "AWS::AccountId": ACCOUNT, **parameters}

    class Loader(yaml.SafeLoader):
        pass

    def filled(_loader: Loader, node: yaml.ScalarNode) -> str:
        text = node.value if node.tag == "!Sub" else f"${{{node.value}}}"
        return re.sub(r"\$\{([\w:]+)\}", lambda found: values.get(found[1], found[0]), text)

    for tag in ("!Sub", "!Ref", "!GetAtt"):
        Loader.add_constructor(tag, filled)

    def listed(loader: Loader, node: yaml.SequenceNode) -> list[Any]:
        return loader.construct_sequence(node, deep=True)

    for tag in ("!If", "!Not", "!Equals"):
        Loader.add_constructor(tag, listed)
    return yaml.load((ECS / template).read_text(), Loader)["Resources"]


def by_sid(statements: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["Sid"]: each for each in statements}


def test_cfn_lint_finds_nothing() -> None:
    lint = Path(sys.executable).with_name("cfn-lint")

    done = subprocess.run(
        [lint, *sorted(ECS.glob("*.yaml"))], capture_output=True, text=True, check=False, timeout=90
    )

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("stack", ["plain", "rich"])
def test_the_task_role_has_what_iam_prints_and_its_secret(
    cloud: Cloud,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stack: str,
    request: pytest.FixtureRequest,
) -> None:
    given, name = (request.getfixturevalue(each) for each in ("given", stack))
    for variable, value in variables(cloud.container(name)).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir("/")

    assert main(["iam", "--document", "task-role"]) == 0
    least = by_sid(json.loads(capsys.readouterr().out)["Statement"])
    found = by_sid(cloud.statements(f"{name}-task"))

    printed, secret = least.pop("TailraceSecrets"), found.pop("DatabaseSecret")
    assert (printed["Action"], printed["Resource"]) == ([secret["Action"]], [secret["Resource"]])
    assert (secret["Action"], secret["Resource"]) == (
        "secretsmanager:GetSecretValue",
        given["DatabaseSecretArn"],
    )
    assert ("DatabaseSecretKey" in found) is (stack == "rich")
    found.pop("DatabaseSecretKey", None)
    assert found == least


def test_the_other_accounts_bucket_grants_what_iam_prints(
    cloud: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket, role = f"lake-{secrets.token_hex(4)}", "arn:aws:iam::111122223333:role/shop-task"
    file = tmp_path / "tailrace.toml"
    file.write_text(f'[destination]\nbucket = "{bucket}"\nprefix = "shop"\n')

    outputs = cloud.make(
        bucket, "bucket.yaml", {"Bucket": bucket, "Prefix": "shop", "TaskRoleArn": role}
    )

    # Bucket policies are not among the things that moto's CloudFormation makes.
    options = ["--account-role-arn", role, "--deny-insecure", "--document", "bucket"]
    assert main(["iam", "-c", str(file), *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    stated = resolved("bucket.yaml", {"Bucket": bucket, "Prefix": "shop", "TaskRoleArn": role})[
        "LakeBucketPolicy"
    ]["Properties"]["PolicyDocument"]
    assert stated == printed
    assert outputs == {"BucketArn": f"arn:aws:s3:::{bucket}", "BucketOwner": ACCOUNT}


def test_every_choice_reaches_the_configuration(
    cloud: Cloud, rich: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = cloud.container(rich)
    environment = variables(container)
    environment |= {each["name"]: "t" * 32 for each in container["secrets"]}
    monkeypatch.chdir("/")
    configuration = load(None, environment).configuration

    assert configuration.http.token is not None
    assert configuration.source.tables == ("public.*", "sales.orders")
    assert configuration.destination.kms_key_id == KEY
    # ECS kills what has not ended by then: the drain, and the sessions' ends, come first.
    assert container["stopTimeout"] >= configuration.engine.drain_seconds + 10
    assert container["readonlyRootFilesystem"] is True
    assert container["logConfiguration"]["options"]["mode"] == "blocking"
    assert "kanary" not in json.dumps(container)


@pytest.fixture
def defined(cloud: Cloud, plain: str) -> tuple[dict[str, Any], str]:
    """The container's definition, and where its secrets are kept."""
    return cloud.container(plain), cloud.url


@pytest.fixture
async def lived_in(
    defined: tuple[dict[str, Any], str],
    database: Database,
    s3: EmbeddedS3,
    bucket: str,
    tmp_path: Path,
) -> AsyncIterator["Container"]:
    """A container of the stack, without an ECS: its process, and what belongs to it."""
    database.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
    database.execute("INSERT INTO orders SELECT generate_series(1, 100)")
    dsn = f"host=127.0.0.1 port={database.server.port} dbname={database.name} user=postgres"
    definition, url = defined
    (port,) = free_ports(1)
    environment = {
        **plain_environment(),
        **s3.environment,
        **variables(definition),
        # What differs here: no AWS, another database, ports that others may have taken.
        "TAILRACE_SOURCE__DSN": dsn,
        "TAILRACE_DESTINATION__BUCKET": bucket,
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": url,
        "TAILRACE_DESTINATION__ENDPOINT_URL": s3.endpoint_url,
        "TAILRACE_HTTP__LISTEN": f"127.0.0.1:{port}",
        "TAILRACE_SOURCE__SLOT": database.name,
        "TAILRACE_CHUNK__MAX_AGE": "500ms",
        "TAILRACE_ENGINE__APPEND_INTERVAL": "200ms",
        "HOME": "/nonexistent",
        "TMPDIR": "/nonexistent",
    }
    container = Container(definition, environment, port, tmp_path)
    yield container
    container.end()


class Container:
    """What a task definition makes of the engine, with the kernel's own means."""

    def __init__(
        self, definition: Mapping[str, Any], environment: Mapping[str, str], port: int, folder: Path
    ) -> None:
        self.definition = definition
        self.port = port
        assert definition["readonlyRootFilesystem"]
        assert definition["linuxParameters"]["capabilities"]["drop"] == ["ALL"]
        engine = ["env", "--block-signal=TERM,INT,HUP", sys.executable, "-m", "engine", "run"]
        isolated = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        self.process = subprocess.Popen(
            [*isolated, "sh", "-c", READ_ONLY, "sh", str(folder / "probe"), *engine],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def is_healthy(self) -> bool:
        """What the task definition's own health check says."""
        kind, program, *arguments = self.definition["healthCheck"]["command"]
        assert (kind, program) == ("CMD", "python")
        command = [each.replace(":9464/", f":{self.port}/") for each in arguments]
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, check=False, timeout=60
        )
        return done.returncode == 0

    def stopped(self) -> tuple[int, float, str]:
        """SIGTERM: the exit code, the seconds that it took, and the whole log."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=self.definition["stopTimeout"])
        return self.process.returncode, time.monotonic() - began, log

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


async def test_an_engine_runs_as_the_task_definition_says(
    lived_in: Container, s3_client: Any, bucket: str
) -> None:
    async def is_published() -> bool:
        assert lived_in.process.poll() is None, lived_in.process.communicate()[1][-3000:]
        listed = await s3_client.list_objects_v2(Bucket=bucket, Prefix="shop/database")
        return any(".ndjson" in each["Key"] for each in listed.get("Contents", ()))

    await until(is_published, "the rows of a snapshot, read by a worker")
    is_healthy = lived_in.is_healthy
    code, seconds, log = lived_in.stopped()

    assert is_healthy
    assert code == 0, log
    assert seconds < lived_in.definition["stopTimeout"]
    # `awslogs` keeps lines; the alarm's filter reads them as JSON.
    lines = [json.loads(line) for line in log.splitlines()]
    assert "snapshot read" in [line["event"] for line in lines]
    assert not [line for line in lines if line["level"] == "error"]
    assert "kanary" not in log
