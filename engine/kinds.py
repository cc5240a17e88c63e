"""What a configuration's parts are made of, for every process that reads it.

Strategy: the composition root makes the engine of these, and a snapshot's worker makes itself of
them. A new kind of source adds its case to each function that tells kinds apart.
"""

from engine.config import (
    Configuration,
    DestinationConfiguration,
    OwnConfiguration,
    PostgresConfiguration,
    resolve_row_limit,
)
from engine.config.secret_reference import SecretReference
from engine.destinations.s3_settings import S3Settings
from engine.model.hash_key import NO_HASH_KEY, HashKey
from engine.model.interfaces import SourceMeasures
from engine.model.record import RecordConfiguration
from engine.model.snapshot_source import RangeReader
from engine.sources.postgres import login
from engine.sources.postgres.dsn import Dsn
from engine.sources.postgres.log_messages import MESSAGES
from engine.sources.postgres.range_reader import IDLE_SECONDS, PostgresRangeReader
from engine.sources.postgres.settings import SHAPING_SETTINGS
from engine.sources.postgres.source import MEASURES


def record_configuration(configuration: Configuration) -> RecordConfiguration:
    """Everything of `configuration` that shapes a line, a key, or which changes are read."""
    source, destination = configuration.source, configuration.destination
    return RecordConfiguration(
        through=_through(source.own),
        tables=source.tables,
        exclude=source.exclude,
        rules=source.rules,
        envelope=destination.envelope,
        numeric=destination.numeric,
        json=destination.json,
        layout=destination.layout,
        compression=configuration.chunk.compression,
        stream=_stream_options(source.own),
        flat_prefix=destination.flat_prefix,
        row_bytes_max=resolve_row_limit(source.max_row_bytes),
        on_unrepresentable=source.on_unrepresentable,
        on_schema_change=source.on_schema_change,
        messages=str(MESSAGES) if source.messages else "",
        snapshot=source.snapshot,
        # A key that hashes nothing shapes nothing.
        hash_key_id=hash_key(configuration).id if any(r.hash for r in source.rules) else "",
    )


def hash_key(configuration: Configuration) -> HashKey:
    """The secret of the columns that are written as hashes."""
    secret = configuration.source.hash_key
    return HashKey(secret.reveal().encode()) if secret is not None else NO_HASH_KEY


def s3_settings(destination: DestinationConfiguration) -> S3Settings:
    """How the destination's section reaches its bucket."""
    external_id = destination.external_id
    return S3Settings(
        bucket=destination.bucket,
        prefix=destination.prefix,
        region=destination.region,
        endpoint_url=destination.endpoint_url,
        role_arn=destination.role_arn,
        external_id=external_id.reveal() if external_id is not None else None,
        expected_bucket_owner=destination.expected_bucket_owner,
        sse=destination.sse,
        kms_key_id=destination.kms_key_id,
        acl=destination.acl,
        storage_class=destination.storage_class,
        tags=destination.tags,
        concurrency=destination.concurrency,
    )


Reach = Dsn
"""How a source is reached, whatever its kind. Who connects for one engine shares one: it knows what
was right before."""


def reach_of(own: OwnConfiguration, *, has_worked: bool = False) -> Reach:
    """How a source of this kind is reached: AWS is asked where the configuration says so.

    `has_worked`: the engine that this process works for has reached it so.
    """
    match own:
        case PostgresConfiguration():
            return login.dsn_of(
                own,
                read_secret=_read_secret,
                make_token=_database_token,
                has_worked=has_worked,
            )


def login_of(dsn: str) -> tuple[str, str]:
    """Who logs in by this dsn, and the region that its host names: a star, and "", if unknown.

    Raises ConfigurationError for a dsn that cannot be right.
    """
    from engine.aws.database_token import region_of  # noqa: PLC0415 - as below

    host, user = login.host_and_user(dsn)
    return user or "*", region_of(host)


async def _read_secret(reference: SecretReference) -> str:
    from engine.aws.secrets import read_secret  # noqa: PLC0415 - a tenth of a second, for some

    return await read_secret(reference)


async def _database_token(host: str, port: int, user: str) -> str:
    from engine.aws.database_token import database_token  # noqa: PLC0415 - as above

    return await database_token(host, port, user)


def range_reader(configuration: Configuration, *, is_of_engine: bool) -> RangeReader:
    """What reads ranges of snapshots.

    `is_of_engine`: an engine made this process, with its own configuration and rights. What that
    engine has reached may be reached again.
    """
    reach = reach_of(configuration.source.own, has_worked=is_of_engine)
    match configuration.source.own:
        case PostgresConfiguration():
            return PostgresRangeReader(
                reach, hash_key=hash_key(configuration), idle_seconds=IDLE_SECONDS
            )


def measures_of(own: OwnConfiguration) -> SourceMeasures:
    """How a source of this kind measures its log."""
    match own:
        case PostgresConfiguration():
            return MEASURES


def _through(own: OwnConfiguration) -> str:
    """What the log is read through."""
    match own:
        case PostgresConfiguration():
            return own.publication


def _stream_options(own: OwnConfiguration) -> tuple[tuple[str, str], ...]:
    """What shapes the lines beside the configuration: how the source's sessions are set."""
    match own:
        case PostgresConfiguration():
            return SHAPING_SETTINGS
