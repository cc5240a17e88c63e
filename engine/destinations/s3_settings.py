"""How the bucket is reached and how objects are made in it. Checked once, here."""

import re
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import urlencode, urlsplit

from engine.model.errors import ConfigurationError

MIB: Final = 1024 * 1024

# S3's limits: "Multipart upload limits" and "Categorizing your storage using tags" in its user
# guide.
_PART_BYTES_MIN: Final = 5 * MIB
_PART_BYTES_MAX: Final = 5 * 1024 * MIB
_ENCRYPTIONS: Final = {"s3": "AES256", "kms": "aws:kms"}
_TAG_COUNT_MAX: Final = 10
_TAG_NAME_MAX: Final = 128
_TAG_VALUE_MAX: Final = 256
_TAG_TEXT: Final = re.compile(r"[\w\s+\-=.:/@]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """Where objects go, and how. None: not sent, the service's or the bucket's own default holds.

    `prefix` is for what is said to a human: which rights are missing, and on what.

    `part_bytes` is the largest body of one request; what is larger goes in parts. It is just above
    a full chunk, so only snapshots and large chunks pay for the three more requests. `concurrency`
    bounds the parts under way and sizes the pool. The pool has a connection for each request,
    because a request that waits for one has a signature that ages.

    A request has `connect_seconds` + `answer_seconds` altogether. For its body it also has the time
    that a line of `body_bytes_per_second_min` takes. So a drain's 25 s have room for a second
    attempt at a small request. `silence_seconds` is how long no byte of an answer may come. Apart
    from ten minutes in all, nothing else bounds the reading of an object.
    """

    bucket: str
    concurrency: int
    prefix: str = ""
    region: str | None = None
    endpoint_url: str | None = None
    role_arn: str | None = None
    external_id: str | None = field(default=None, repr=False)
    expected_bucket_owner: str | None = None
    sse: Literal["s3", "kms"] | None = None
    kms_key_id: str | None = None
    acl: str | None = None
    storage_class: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    part_bytes: int = 20 * MIB
    connect_seconds: float = 5.0
    answer_seconds: float = 10.0
    silence_seconds: float = 30.0
    body_bytes_per_second_min: int = 256 * 1024
    role_seconds: int = 3600
    listing_key_count_max: int = 1000

    def __post_init__(self) -> None:
        problems = [
            text
            for is_wrong, text in (
                (
                    not _PART_BYTES_MIN <= self.part_bytes <= _PART_BYTES_MAX,
                    "parts have 5 MiB to 5 GiB",
                ),
                (self.concurrency < 1, "concurrency is at least 1"),
                (self.kms_key_id is not None and self.sse != "kms", 'kms_key_id needs sse = "kms"'),
                (
                    self.external_id is not None and self.role_arn is None,
                    "external_id needs role_arn",
                ),
            )
            if is_wrong
        ]
        problems += _tag_problems(self.tags)
        if problems:
            raise ConfigurationError("\n".join(f"destination: {problem}" for problem in problems))

    @property
    def tagging(self) -> str:
        """The tags as the header wants them; empty without any."""
        return urlencode(self.tags)

    @property
    def is_aws(self) -> bool:
        """Whether the bucket is AWS's own, by way of a private endpoint or not."""
        host = urlsplit(self.endpoint_url or "").hostname or ""
        return self.endpoint_url is None or host.endswith((".amazonaws.com", ".amazonaws.com.cn"))

    @property
    def attributes(self) -> dict[str, str]:
        """What every object of ours is made with, as S3's API names it.

        Journal and schemas included: whoever may read the data must be able to read what names it.
        """
        found = {
            "ServerSideEncryption": _ENCRYPTIONS[self.sse] if self.sse else "",
            "SSEKMSKeyId": self.kms_key_id,
            "ACL": self.acl,
            "Tagging": self.tagging,
        }
        return {name: text for name, text in found.items() if text}

    @property
    def connection_count_max(self) -> int:
        """Connections in the pool: objects and parts at their bounds, and some for the journal."""
        return 2 * self.concurrency + 8

    def request_seconds(self, body_bytes: int) -> float:
        """How long a request may take altogether, its body included."""
        return (
            self.connect_seconds + self.answer_seconds + body_bytes / self.body_bytes_per_second_min
        )


def _tag_problems(tags: tuple[tuple[str, str], ...]) -> list[str]:
    problems = []
    if len(tags) > _TAG_COUNT_MAX:
        problems.append(f"an object has at most {_TAG_COUNT_MAX} tags, not {len(tags)}")
    if len({name for name, _ in tags}) < len(tags):
        problems.append("a tag is given twice")
    for name, value in tags:
        if not 1 <= len(name) <= _TAG_NAME_MAX or len(value) > _TAG_VALUE_MAX:
            problems.append(f"tag {name!r}: a name has 1 to 128 characters, a value at most 256")
        if name.lower().startswith("aws:"):
            problems.append(f"tag {name!r}: names that begin with aws: are reserved")
        if not (_TAG_TEXT.fullmatch(name) and _TAG_TEXT.fullmatch(value)):
            problems.append(
                f"tag {name!r}: letters, digits, spaces and + - = . _ : / @ are allowed"
            )
    return problems
