"""Every key of the configuration, declared once, with its default.

Strategy: loading, the JSON Schema and `config show` all follow from these tables. So no key can be
known to one of them and not to another. No other module has a default for a key: the structs of
`engine.config.model` have none, nor has what is made of them.

The keys that only one kind of source has stand with that kind's section: `engine.config.sources`. A
name that stands in two sections is the same key in both.
"""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from engine.config import values
from engine.config.key import REQUIRED, Key, check_not_empty
from engine.config.scalars import MIB
from engine.config.secret_reference import refuse_reference
from engine.config.sources import SOURCES
from engine.config.values import Unfit
from engine.model.hash_key import SECRET_BYTES_MIN

GIB = 1024 * MIB

WHERE_CHARACTERS_MAX: Final = 10_000

TOKEN_CHARACTERS_MIN: Final = 16

_RANDOM_HINT: Final = "make one: openssl rand -hex 32"


def _check_pattern(value: str) -> None:
    check_not_empty(value)
    if value.startswith('"'):
        raise Unfit("holds a quoted name", "patterns match raw names: write them without quotes")
    if value.startswith(".") or value.endswith("."):
        raise Unfit("holds a pattern without a schema or table", 'write "schema.table"')


def _check_where(value: str) -> None:
    if value and not value.strip():
        raise Unfit("is empty", "leave it out to capture all rows")
    if len(value) > WHERE_CHARACTERS_MAX:
        raise Unfit(f"is longer than {WHERE_CHARACTERS_MAX} characters")


def _check_hash_key(value: str) -> None:
    refuse_reference(value)
    if len(value.encode()) < SECRET_BYTES_MIN:
        raise Unfit(
            f"is shorter than {SECRET_BYTES_MIN} characters: who has a hash could guess it",
            "make one: openssl rand -hex 32",
            is_secret=True,
        )


def _check_token(value: str) -> None:
    refuse_reference(value)
    # What a header can carry without quoting (RFC 6750 has a little less; every client sends this).
    if not re.fullmatch(r"[!-~]*", value):
        raise Unfit(
            "holds a space, or what is no ASCII: no header can carry it",
            _RANDOM_HINT,
            is_secret=True,
        )
    if len(value) < TOKEN_CHARACTERS_MIN:
        raise Unfit(
            f"is shorter than {TOKEN_CHARACTERS_MIN} characters: it could be guessed",
            _RANDOM_HINT,
            is_secret=True,
        )


def _check_bucket(value: str) -> None:
    if value.startswith("s3://"):
        raise Unfit(
            "is an address, not a bucket's name",
            "write the name alone, and what follows it into destination.prefix",
        )
    if "/" in value:
        raise Unfit(
            'has a "/", which no bucket\'s name has',
            "put what follows the bucket's name into destination.prefix",
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", value):
        raise Unfit(
            "is not a bucket's name",
            "3 to 63 lower-case letters, digits, dots and hyphens, a letter or digit at each end",
        )


def _check_prefix(value: str) -> None:
    if not value:
        raise Unfit("is empty", "each pipeline has a prefix of its own in its bucket")
    if value.startswith("s3://"):
        raise Unfit("is an address", "the bucket's name goes into destination.bucket")
    if value.startswith("/") or value.endswith("/"):
        raise Unfit('begins or ends with "/"', 'write it as "team/pipeline"')
    segments = value.split("/")
    if not all(segments) or {".", ".."} & set(segments):
        raise Unfit('has an empty segment, "." or ".."')
    if value.startswith("_tailrace") or "_tailrace" in segments:
        raise Unfit(
            'holds or begins with "_tailrace"', "that name is the journal's, under each prefix"
        )
    if not re.fullmatch(r"[A-Za-z0-9!_.*'()=/-]+", value):
        raise Unfit(
            "has characters that S3 keys need escaped", "use A-Z a-z 0-9 - _ . = ! * ' ( ) and /"
        )
    if len(value) > 400:
        raise Unfit("is longer than 400 characters", "a whole key has at most 1,024 bytes")


def _check_flat_prefix(value: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.$@-]{1,16}", value):
        raise Unfit("cannot begin a name", "1 to 16 letters, digits and _ . $ @ -")


def _check_endpoint(value: str) -> None:
    if "@" in value:
        raise Unfit(
            "holds credentials", "S3 credentials come from AWS's default chain only", is_secret=True
        )
    try:
        parts = urlsplit(value)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        raise Unfit("is not a URL", 'write it as "https://host:port"') from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
        raise Unfit("is not a URL", 'write it as "https://host:port"')
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise Unfit("has more than a host and a port", 'write it as "https://host:port"')


def _check_role(value: str) -> None:
    if not re.fullmatch(r"arn:aws[a-z-]*:iam::\d{12}:role/\S+", value):
        raise Unfit("is not a role's ARN", 'write it as "arn:aws:iam::123456789012:role/name"')


def _check_external_id(value: str) -> None:
    check_not_empty(value)
    refuse_reference(value)


def _check_owner(value: str) -> None:
    if not re.fullmatch(r"\d{12}", value):
        raise Unfit("is not an account number", "twelve digits, in quotes")


def _check_region(value: str) -> None:
    if not re.fullmatch(r"[a-z0-9-]+", value):
        raise Unfit("is not a region's name", 'write it as "eu-west-1"')


_STORAGE_COLD = "objects there cannot be read back without a restore, and the journal must be"

_OWN_KEYS = {key.name: key for section in SOURCES.values() for key in section.keys}

HASH_KEY: Final = Key(
    "source",
    "hash_key",
    values.text(_check_hash_key),
    "The secret under which columns are hashed (HMAC-SHA-256), 32 characters at least. Never "
    "shown. Another one gives other hashes, and a new version of each table that has any.",
)

HTTP_TOKEN: Final = Key(
    "http",
    "token",
    values.text(_check_token),
    "What a reader of the port has to send: a bearer token, 16 characters at least. A browser asks "
    "for it as a password. /livez and /readyz need none. Never shown. Without it: everybody reads.",
)

KEYS: Final[tuple[Key, ...]] = (
    Key(
        "source",
        "type",
        values.choice(
            *SOURCES, later={"synthetic": "a generated source comes with a later release"}
        ),
        "What kind of database the source is.",
        default="postgres",
        is_shown=True,
    ),
    *_OWN_KEYS.values(),
    Key(
        "source",
        "tables",
        values.texts(_check_pattern, example='["public.*", "sales.orders"]', least=1),
        "Which tables are captured: schema.table, with * and ?, raw names without quotes.",
        default=["public.*"],
        is_shown=True,
    ),
    Key(
        "source",
        "exclude",
        values.texts(_check_pattern, example='["public.audit_*"]'),
        "Which of them are not.",
        default=[],
        is_shown=True,
    ),
    HASH_KEY,
    Key(
        "source",
        "hash_key_file",
        values.text(check_not_empty),
        "A file that holds it, such as a mounted secret; relative to this file's folder.",
        is_shown=True,
    ),
    Key(
        "source",
        "table",
        values.Kind(lambda value: value, {}, is_text=False),
        "Rules for some tables; the first that matches decides.",
        default=[],
        is_shown=True,
    ),
    Key(
        "source",
        "snapshot",
        values.choice("initial", "never"),
        "Whether the rows that a table has already are read too. initial: once, beside the stream. "
        "never: only what changes from now on.",
        default="initial",
        is_shown=True,
    ),
    Key(
        "source",
        "snapshot_order",
        values.choice("beside", "before"),
        "When the stream begins, at the first start. beside: at once, and the initial snapshot is "
        "taken beside it. before: once that snapshot is complete and visible; until then the "
        "source keeps its log. Means nothing without a snapshot.",
        default="beside",
        is_shown=True,
    ),
    Key(
        "source",
        "snapshot_workers",
        values.workers(),
        "Who reads the rows that are there already. local: as many processes as this machine has "
        "CPUs. local:4: so many. dask://host:8786: the workers of that Dask scheduler.",
        default="local",
        is_shown=True,
    ),
    Key(
        "source",
        "snapshot_tables",
        values.integer(1, 10_000),
        "How many tables share one snapshot of the database, which is held until they are read.",
        default=64,
        is_shown=True,
    ),
    Key(
        "source",
        "snapshot_rows_per_second",
        values.integer(0, 1_000_000_000),
        "How many rows all workers together read a second at most; 0: as fast as they can.",
        default=0,
        is_shown=True,
    ),
    Key(
        "source",
        "snapshot_segment_bytes",
        values.size(MIB, 1024 * 1024 * GIB),
        "A larger table with a primary key is read in parts of about this size, each under a "
        "snapshot of its own: none is held for the whole table.",
        default="64GiB",
        is_shown=True,
    ),
    Key(
        "source",
        "new_tables",
        values.choice("capture", "report"),
        "What happens to a table that matches and is not published. capture: it is published where "
        "the role may and its key allows it, and a snapshot is taken. report: it is only told of. "
        "Without snapshots it is always report.",
        default="capture",
        is_shown=True,
    ),
    Key(
        "source",
        "messages",
        values.boolean(),
        "Whether logical messages of transactions are published too (pg_logical_emit_message), as "
        "rows of a table `pg_logical.messages`.",
        default=False,
        is_shown=True,
    ),
    Key(
        "source",
        "on_schema_change",
        values.choice("continue", "pause", "gap"),
        "What a changed table shape does. continue: the next version begins. pause: the whole "
        "stream stops before its first row, and the source keeps its log, until `tailrace resume`. "
        "gap: the table's changes are dropped until `tailrace resume TABLE`; then it is read anew.",
        default="continue",
        is_shown=True,
    ),
    Key(
        "source",
        "on_unrepresentable",
        values.choice("stop", "gap"),
        "What a row does that no record can hold (text that is no UTF-8) or that is too large. "
        "stop: the engine ends and names it. gap: it is left out, and the journal says so.",
        default="stop",
        is_shown=True,
    ),
    Key(
        "source",
        "max_row_bytes",
        values.size(MIB, GIB, words={"auto": None}),
        "The largest row, as text or as a record; it takes three times that in memory. auto: a "
        "quarter of the container's memory, 1 GiB at most.",
        default="auto",
        is_shown=True,
    ),
    Key(
        "source",
        "signals",
        values.boolean(),
        "Whether the engine obeys logical messages that the source's log brings. Any role that may "
        "call pg_logical_emit_message could then ask for snapshots.",
        default=False,
        is_shown=True,
    ),
    Key(
        "destination",
        "bucket",
        values.text(_check_bucket, pattern="^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"),
        "The bucket's name: no s3://, no slash.",
        default=REQUIRED,
        is_shown=True,
    ),
    Key(
        "destination",
        "prefix",
        values.text(_check_prefix),
        "Where everything of this pipeline goes; pipelines sharing a bucket have different ones.",
        default=REQUIRED,
        is_shown=True,
    ),
    Key(
        "destination",
        "region",
        values.text(_check_region),
        "The bucket's region; without it, AWS's default chain decides.",
        is_shown=True,
    ),
    Key(
        "destination",
        "endpoint_url",
        values.text(_check_endpoint),
        "Another S3 server than AWS's, or a VPC endpoint: https://host:port.",
        is_shown=True,
    ),
    Key(
        "destination",
        "role_arn",
        values.text(_check_role),
        "A role to assume first, for a bucket in another account.",
        is_shown=True,
    ),
    Key(
        "destination",
        "external_id",
        values.text(_check_external_id),
        "What the role's trust policy asks for. Never shown.",
    ),
    Key(
        "destination",
        "expected_bucket_owner",
        values.text(_check_owner, pattern=r"^\d{12}$"),
        "The account that has to own the bucket; requests to any other fail.",
        is_shown=True,
    ),
    Key(
        "destination",
        "sse",
        values.choice("s3", "kms"),
        "Encryption asked for with each object; without it, the bucket's own default holds.",
        is_shown=True,
    ),
    Key(
        "destination",
        "kms_key_id",
        values.text(check_not_empty),
        'Which KMS key, with sse = "kms"; without it, the account\'s aws/s3 key.',
        is_shown=True,
    ),
    Key(
        "destination",
        "acl",
        values.choice(
            "private",
            "bucket-owner-full-control",
            "bucket-owner-read",
            "authenticated-read",
            "aws-exec-read",
        ),
        "A canned ACL, for buckets that still use ACLs.",
        is_shown=True,
    ),
    Key(
        "destination",
        "storage_class",
        values.choice(
            "STANDARD",
            "STANDARD_IA",
            "ONEZONE_IA",
            "INTELLIGENT_TIERING",
            "GLACIER_IR",
            later={"GLACIER": _STORAGE_COLD, "DEEP_ARCHIVE": _STORAGE_COLD},
        ),
        "The objects' storage class; without it, STANDARD.",
        is_shown=True,
    ),
    Key(
        "destination",
        "tags",
        values.tags(),
        "Tags put on each object.",
        default={},
        is_shown=True,
    ),
    Key(
        "destination",
        "layout",
        values.choice("hive", "plain"),
        "Keys with name=value segments, or the values alone (what Matillion's S3 loaders read).",
        default="hive",
        is_shown=True,
    ),
    Key(
        "destination",
        "envelope",
        values.choice("standard", "debezium", "flat"),
        "Around a row: {before, after, metadata}, Debezium's own, or the columns at top level.",
        default="standard",
        is_shown=True,
    ),
    Key(
        "destination",
        "flat_prefix",
        values.text(_check_flat_prefix, pattern="^[A-Za-z0-9_.$@-]{1,16}$"),
        "What the flat envelope's own names begin with (_op, _position, …). Where a column has "
        "such a name, it is repeated (__op) for that table, as schema.json says.",
        default="_",
        is_shown=True,
    ),
    Key(
        "destination",
        "numeric",
        values.choice("string", "number"),
        "numeric columns as text with exact digits, or as a JSON number's literal.",
        default="string",
        is_shown=True,
    ),
    Key(
        "destination",
        "json",
        values.choice("embed", "string"),
        "json and jsonb columns as JSON, or as text.",
        default="embed",
        is_shown=True,
    ),
    Key(
        "destination",
        "concurrency",
        values.integer(1, 256),
        "Objects published at the same time; of one table, always one.",
        default=16,
        is_shown=True,
    ),
    Key(
        "chunk",
        "max_bytes",
        values.size(64 * 1024, 5 * GIB),
        "Compressed size at which an object ends.",
        default="16MiB",
        is_shown=True,
    ),
    Key(
        "chunk",
        "max_age",
        values.duration(0.05, 86_400),
        "Age at which it ends: the longest that a change waits to be published.",
        default="30s",
        is_shown=True,
    ),
    Key(
        "chunk",
        "max_rows",
        values.integer(1, 1_000_000_000),
        "Rows at which it ends: no object has more.",
        default=1_000_000,
        is_shown=True,
    ),
    Key(
        "chunk",
        "compression",
        values.choice("gzip", "zstd"),
        "How objects are compressed.",
        default="gzip",
        is_shown=True,
    ),
    Key(
        "queue",
        "max_bytes",
        values.size(64 * 1024, 16 * GIB),
        "What one table may have waiting before reading waits for it.",
        default="8MiB",
        is_shown=True,
    ),
    Key(
        "engine",
        "name",
        values.text(check_not_empty),
        "What this pipeline calls itself in logs.",
        default="tailrace",
        is_shown=True,
    ),
    Key(
        "engine",
        "memory_limit",
        values.size(16 * MIB, 1024 * GIB, words={"auto": None}),
        "Bytes buffered in all. auto: an eighth of the container's memory, 16 to 96 MiB.",
        default="auto",
        is_shown=True,
    ),
    Key(
        "engine",
        "drain_seconds",
        values.duration(0.1, 3600),
        "How long a stop may take. Keep it under the platform's own limit (ECS: stopTimeout).",
        default=25,
        is_shown=True,
    ),
    Key(
        "engine",
        "append_interval",
        values.duration(0.01, 60),
        "Time between journal entries: fewer requests or sooner visible. A tenth where rows wait.",
        default="1s",
        is_shown=True,
    ),
    Key(
        "http",
        "listen",
        values.address(),
        'Where metrics, health and status are served, as host:port; "off" for nowhere.',
        # All interfaces: Prometheus and the load balancer come from elsewhere.
        default="0.0.0.0:9464",
        is_shown=True,
    ),
    HTTP_TOKEN,
    Key(
        "http",
        "token_file",
        values.text(check_not_empty),
        "A file that holds it, such as a mounted secret; relative to this file's folder. It is "
        "read again while the engine runs, so the token can be rotated.",
        is_shown=True,
    ),
    Key(
        "log",
        "level",
        values.choice("debug", "info", "warning", "error"),
        "The least that is logged.",
        default="info",
        is_shown=True,
    ),
    Key(
        "log",
        "format",
        values.choice("auto", "json", "text"),
        "auto: text on a terminal, else JSON.",
        default="auto",
        is_shown=True,
    ),
)
"""Those of every kind of source, and those that all sources have."""

SECTIONS: Final = tuple(dict.fromkeys(key.section for key in KEYS))

BY_PATH: Final[Mapping[tuple[str, str], Key]] = {(key.section, key.name): key for key in KEYS}

TABLE_RULE_KEYS: Final[tuple[Key, ...]] = (
    Key(
        "source.table",
        "match",
        values.text(_check_pattern),
        "The tables that this rule is for.",
        default=REQUIRED,
        is_shown=True,
    ),
    Key(
        "source.table",
        "include",
        values.texts(check_not_empty, example='["id", "total"]'),
        "The columns that are written; all others are not.",
        default=[],
        is_shown=True,
    ),
    Key(
        "source.table",
        "exclude",
        values.texts(check_not_empty, example='["password"]'),
        "The columns that are not written.",
        default=[],
        is_shown=True,
    ),
    Key(
        "source.table",
        "hash",
        values.texts(check_not_empty, example='["email"]'),
        "The columns that are written as a hash of their value, under source.hash_key.",
        default=[],
        is_shown=True,
    ),
    Key(
        "source.table",
        "where",
        values.text(_check_where),
        "Which rows are captured: an SQL condition on the table's own columns, which the "
        "publication gets as its row filter (PostgreSQL 15 and later). Empty: all rows.",
        default="",
        is_shown=True,
    ),
    Key(
        "source.table",
        "on_schema_change",
        values.choice("continue", "pause", "gap"),
        "As source.on_schema_change, for these tables. Without it, what that says.",
        is_shown=True,
    ),
)
