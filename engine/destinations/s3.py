"""One bucket of Amazon S3, or of a store that speaks its protocol, as an `ObjectStore`.

Strategy: each method makes one attempt and says honestly what came of it. The caller repeats
attempts. What is written is create-only (`If-None-Match: *`), carries its CRC32, and is never
overwritten or deleted. The client library lives behind `s3_connection`, which is imported on
entering. So importing this module costs next to nothing.

Invariant: an answer that says "taken" or "missing" came from the store about this very key.
Everything doubtful raises DestinationUnavailable.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from engine.destinations.s3_errors import (
    Circumstances,
    ClientUnusable,
    Failure,
    destination_error,
)
from engine.destinations.s3_rights import Place
from engine.destinations.s3_rules import rules_of
from engine.destinations.s3_settings import S3Settings
from engine.destinations.s3_trials import S3Bucket, S3Trials, identity_text
from engine.destinations.s3_uploads import S3Uploads, crc32_of, header_of
from engine.model.bucket_rule import BucketRule
from engine.model.errors import DestinationError, InvariantBroken
from engine.model.interfaces import ListedObject, ListedUpload, ObjectHead, ObjectTail
from engine.model.layout import check_folder
from engine.model.staging import Completion, StagedPart
from engine.model.trial import Finding, Judgement

if TYPE_CHECKING:
    from types_aiobotocore_s3.type_defs import HeadObjectOutputTypeDef

    from engine.destinations.s3_connection import S3Connection

_T = TypeVar("_T")

# Only these objects take the configured storage class. The journal, its states and the schemas are
# small and are read at each start: an archive class would lock them away.
DATA_CONTENT_TYPE: Final = "application/x-ndjson"

# The connection's read timeout bounds silence. This bounds a body that comes in drops.
_GET_SECONDS: Final = 600.0


class S3ObjectStore:
    """The bucket that `settings` name. An async context manager; use it only inside.

    Entering imports the client library (in a thread: it takes half a second). It sends nothing to
    the bucket: `check_bucket` does. Credentials are looked for at the first request.
    """

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._exit_stack = AsyncExitStack()
        self._connection: S3Connection
        self._uploads: S3Uploads
        self._address: dict[str, Any] = {"Bucket": settings.bucket}
        if settings.expected_bucket_owner:
            self._address["ExpectedBucketOwner"] = settings.expected_bucket_owner
        self._circumstances = Circumstances(
            place=Place(settings.bucket, settings.prefix, settings.region or ""),
            role_arn=settings.role_arn or "",
            has_external_id=settings.external_id is not None,
            expected_bucket_owner=settings.expected_bucket_owner or "",
            kms_key_id=settings.kms_key_id or "",
            has_acl=settings.acl is not None,
            has_tags=bool(settings.tags),
        )

    async def __aenter__(self) -> Self:
        """Open the client. Raises DestinationRefused. Cancellation leaves nothing open."""
        library = await asyncio.to_thread(_load_client_library)
        try:
            self._connection = await self._exit_stack.enter_async_context(
                library.connect(self._settings)
            )
        except ClientUnusable as error:
            subject = "open a client"
            raise self._error(error.failure, subject) from error
        self._uploads = S3Uploads(self._settings, self._connection, self._address, self._error)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close all connections; requests under way are left in doubt."""
        await self._exit_stack.aclose()

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        """Create the object if the key is free.

        True: created by this request. False: the key was taken (412). A body above the part size
        goes as a multipart upload, which is completed under the same precondition. With
        `in_one_request` one PUT carries it, of up to 5 GiB. Metadata names and values are printable
        ASCII, because they travel as headers.

        Cancellation leaves in doubt whether the object was created. A multipart upload that was not
        being completed yet is aborted, as far as the store can still be told.
        """
        attributes = self._attributes_of(key, content_type, metadata)
        if len(body) > self._settings.part_bytes and not in_one_request:
            return await self._uploads.create(key, body, attributes)
        parameters: dict[str, Any] = {**self._address, "Body": memoryview(body)}
        response = await self._connection.ask(
            self._settings.request_seconds(len(body)),
            self._connection.client.put_object,
            **parameters,
            Key=key,
            ChecksumCRC32=header_of(await crc32_of(body)),
            IfNoneMatch="*",
            **attributes,
        )
        if isinstance(response, Failure):
            if response.is_taken:
                return False
            raise self._error(response, f"create {key}") from response.cause
        return True

    async def get(self, key: str) -> bytes | None:
        """The body, or None where there is no such object. Cancellation changes nothing."""
        found = await self._read(key)
        return found[1] if found is not None else None

    async def whole(self, key: str) -> ObjectTail | None:
        """What `get` and `head` tell, in one request. Cancellation changes nothing."""
        found = await self._read(key)
        if found is None:
            return None
        metadata, body = found
        return ObjectTail(len(body), metadata, body)

    async def _read(self, key: str) -> tuple[dict[str, str], bytes] | None:
        async def ask() -> tuple[dict[str, str], bytes] | Failure:
            return await self._connection.ask(
                _GET_SECONDS, self._connection.read, **self._address, Key=key
            )

        response = await self._found(key, ask)
        if isinstance(response, Failure):
            raise self._error(response, f"get {key}") from response.cause
        return response

    async def head(self, key: str) -> ObjectHead | None:
        """Size and metadata, or None where there is no such object.

        Cancellation changes nothing.
        """

        async def ask() -> "HeadObjectOutputTypeDef | Failure":
            return await self._connection.ask(
                self._settings.request_seconds(0),
                self._connection.client.head_object,
                **self._address,
                Key=key,
            )

        response = await self._found(key, ask)
        if isinstance(response, Failure):
            if response.is_bare:
                # An answer to HEAD has no body. A 404 may be about the bucket; a 400 may mean
                # expired credentials or a wrong region. A listing of the same key is answered in
                # full.
                await self.check_bucket(key)
                if response.status == 404:
                    return None
            raise self._error(response, f"head {key}") from response.cause
        if response is None:
            return None
        return ObjectHead(size=response["ContentLength"], metadata=response["Metadata"])

    async def tail(self, key: str, size_bytes: int) -> ObjectTail | None:
        """What `head` tells and the object's last bytes, in one request.

        None: there is no such object. Of an archived or empty one only the head can be had.
        Cancellation changes nothing.
        """

        async def ask() -> tuple[int, dict[str, str], bytes] | Failure:
            return await self._connection.ask(
                self._settings.request_seconds(0),
                self._connection.read_tail,
                **self._address,
                Key=key,
                Range=f"bytes=-{size_bytes}",
            )

        response = await self._found(key, ask)
        if response is None:
            return None
        if not isinstance(response, Failure):
            return ObjectTail(*response)
        if response.is_headless:
            head = await self.head(key)
            last = None if head is None or head.size else b""
            return None if head is None else ObjectTail(head.size, head.metadata, last)
        raise self._error(response, f"get the end of {key}") from response.cause

    async def _found(
        self, key: str, ask: Callable[[], Awaitable[_T | Failure]]
    ) -> _T | Failure | None:
        """What the key's object answers, or None where there is none.

        Without the right to list, S3 denies access to a key that is not there, and so do stores
        that judge a right on a prefix otherwise than S3. A listing of that key tells which it is.
        Where that is denied, its error names the right that is missing.
        """
        response = await ask()
        if not isinstance(response, Failure):
            return response
        if response.is_missing:
            return None
        if response.is_hiding:
            if not await self._is_listed(key):
                return None
            # Perhaps it was made in between.
            response = await ask()
        return response

    async def _is_listed(self, key: str) -> bool:
        async for listed in self.list(key):
            # In key order: a key that others begin with is the first.
            return listed.key == key
        return False

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ListedObject]:
        """The objects whose keys begin with `prefix` and sort after `after`, in key order.

        A page is one attempt: after DestinationUnavailable go on with the last key seen as `after`.
        Cancellation changes nothing.
        """
        parameters: dict[str, Any] = {
            **self._address,
            "Prefix": prefix,
            "MaxKeys": self._settings.listing_key_count_max,
        }
        if after:
            parameters["StartAfter"] = after
        while True:
            response = await self._connection.ask(
                self._settings.request_seconds(0),
                self._connection.client.list_objects_v2,
                **parameters,
            )
            if isinstance(response, Failure):
                raise self._error(response, f"list {prefix}") from response.cause
            for found in response.get("Contents", ()):
                made_us = int(found["LastModified"].timestamp()) * 1_000_000
                yield ListedObject(key=found["Key"], size=found["Size"], made_us=made_us)
            if not response["IsTruncated"]:
                return
            parameters["ContinuationToken"] = response["NextContinuationToken"]

    async def folders(self, prefix: str) -> tuple[str, ...]:
        """What the keys that begin with `prefix` have up to the next slash: one page of them.

        Cancellation changes nothing.
        """
        response = await self._connection.ask(
            self._settings.request_seconds(0),
            self._connection.client.list_objects_v2,
            **self._address,
            Prefix=prefix,
            Delimiter="/",
            MaxKeys=self._settings.listing_key_count_max,
        )
        if isinstance(response, Failure):
            raise self._error(response, f"list folders {prefix}") from response.cause
        return tuple(found["Prefix"] for found in response.get("CommonPrefixes", ()))

    async def begin_upload(
        self, key: str, *, content_type: str, metadata: Mapping[str, str]
    ) -> str:
        """Begin to stage an object in parts, with the attributes of one that `create` makes.

        Cancellation may leave an upload that nobody knows.
        """
        return await self._uploads.begin(key, self._attributes_of(key, content_type, metadata))

    async def put_part(
        self, key: str, upload_id: str, number: int, body: bytes | memoryview
    ) -> StagedPart:
        """Store one part of an upload; waits while `concurrency` parts are under way.

        Raises UploadGone. Cancellation leaves in doubt whether the part was stored.
        """
        return await self._uploads.put_part(key, upload_id, number, body)

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[StagedPart], *, crc32: str
    ) -> Completion:
        """Make the object of these parts if the key is free; see the interface for its answers.

        Cancellation leaves in doubt whether the object was created.
        """
        return await self._uploads.complete(key, upload_id, parts, crc32)

    async def abort_upload(self, key: str, upload_id: str) -> bool:
        """Throw an upload away; False: it was gone, or the store does not let us.

        Cancellation leaves in doubt whether it was aborted.
        """
        return await self._uploads.abort(key, upload_id)

    def list_uploads(self, prefix: str) -> AsyncIterator[ListedUpload]:
        """The uploads whose keys begin with `prefix`, by key; none where we may not list them.

        A page is one attempt. Cancellation changes nothing.
        """
        return self._uploads.under(prefix)

    async def rules(self) -> tuple[BucketRule, ...]:
        """The bucket's own rules that may concern objects made here. The right is optional.

        Raises DestinationRefused where it may not be asked or does not know such a request.
        Cancellation changes nothing.
        """
        response = await self._connection.ask(
            self._settings.request_seconds(0),
            self._connection.client.get_bucket_lifecycle_configuration,
            **self._address,
        )
        if isinstance(response, Failure):
            if response.code == "NoSuchLifecycleConfiguration":
                return ()
            raise self._error(response, "read the rules") from response.cause
        return rules_of(response.get("Rules", ()), self._settings.tags)

    async def check_bucket(self, prefix: str = "") -> None:
        """Ask the bucket for one key under `prefix`: returns if it answers.

        Raises DestinationUnavailable or DestinationRefused as everything else does. Cancellation
        changes nothing.
        """
        response = await self._connection.ask(
            self._settings.request_seconds(0),
            self._connection.client.list_objects_v2,
            **self._address,
            Prefix=prefix,
            MaxKeys=1,
        )
        if isinstance(response, Failure):
            subject = f"list bucket {self._settings.bucket}"
            raise self._error(response, subject) from response.cause

    def trials(self, way: str) -> AsyncIterator[Judgement]:
        """What `check` tries besides what a start needs: see `s3_trials`.

        `way` stands for how objects are made, in the names of what is made.
        """
        bucket = S3Bucket(
            self._settings, self._connection, self._uploads, self._address, self._circumstances
        )
        return S3Trials(bucket, check_folder(self._settings.prefix), way).judged()

    async def identity(self) -> Finding:
        """Who this process is to AWS, so that a policy can name it. Never fails.

        Cancellation changes nothing.
        """
        if not (self._settings.is_aws or self._settings.role_arn):
            return Finding("not asked: destination.endpoint_url leads to a store of its own")
        found = await self._connection.identity()
        if isinstance(found, Failure):
            return Finding(
                f"not known, which is no fault of the bucket's: STS GetCallerIdentity: {found.code}"
                f" {found.text}".rstrip()
            )
        return Finding(identity_text(found, self._settings.role_arn or ""))

    def _attributes_of(
        self, key: str, content_type: str, metadata: Mapping[str, str]
    ) -> dict[str, Any]:
        """What an object is made with. Metadata travel as headers: printable ASCII."""
        if not all(
            text.isascii() and text.isprintable() for pair in metadata.items() for text in pair
        ):
            raise InvariantBroken(f"the metadata of {key} are not printable ASCII")
        attributes = {
            **self._settings.attributes,
            "ContentType": content_type,
            "Metadata": dict(metadata),
        }
        if content_type == DATA_CONTENT_TYPE and self._settings.storage_class:
            attributes["StorageClass"] = self._settings.storage_class
        return attributes

    def _error(self, failure: Failure, subject: str) -> DestinationError:
        return destination_error(failure, subject, self._circumstances)


def _load_client_library() -> ModuleType:
    """Import the client and read its models: half a second that the loop is spared."""
    library = importlib.import_module("engine.destinations.s3_connection")
    library.read_models()
    return library
