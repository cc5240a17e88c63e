"""Multipart uploads of one bucket: begun, filled, completed, aborted and listed.

Strategy: each request is one attempt, as everywhere in `s3`. The checksum of the whole body goes
with the completion (`FULL_OBJECT`), so that it equals what one request would have stored. A body
that is there already goes up by the same requests, its parts concurrently (`create`).

Invariant: an upload whose completion got no clear answer is never aborted here: it may become the
object yet.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import structlog
from isal import isal_zlib

from engine.destinations.s3_errors import Failure
from engine.destinations.s3_settings import S3Settings
from engine.model.errors import DestinationError, DestinationUnavailable, UploadGone
from engine.model.interfaces import ListedUpload
from engine.model.staging import Completion, StagedPart

if TYPE_CHECKING:
    from types_aiobotocore_s3.type_defs import CompleteMultipartUploadOutputTypeDef

    from engine.destinations.s3_connection import S3Connection

# An upload that could not be aborted in this time is left to the next start.
_ABORT_SECONDS: Final = 5.0

# From this size on, a checksum takes longer than handing it to a thread, which takes 31 us.
_THREAD_BYTES: Final = 1024 * 1024

KEPT_HINT: Final = (
    "Until then, parts that a killed engine left stay in the bucket and are paid for: a lifecycle "
    "rule with AbortIncompleteMultipartUpload ends them too (docs/retention.md)"
)

_log = structlog.get_logger(__name__)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class S3Uploads:
    """The uploads of one bucket.

    `address` names the bucket in each request; `error_of` makes an error of a failure and of what
    was being done.
    """

    def __init__(
        self,
        settings: S3Settings,
        connection: "S3Connection",
        address: Mapping[str, Any],
        error_of: Callable[[Failure, str], DestinationError],
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._address = address
        self._error_of = error_of
        self._told: set[str] = set()
        self._parts_under_way = asyncio.Semaphore(settings.concurrency)

    async def create(self, key: str, body: bytes, attributes: Mapping[str, Any]) -> bool:
        """Create the object by an upload if the key is free; False: it was taken.

        An upload that was certainly not completed is aborted. Cancellation before the completion
        aborts it as well, as far as the store can still be told; afterwards it leaves it in doubt.
        """
        upload_id = await self.begin(key, attributes)
        try:
            parts = await self._put_parts(key, upload_id, body)
            checksum = await crc32_of(body)
        except BaseException as error:
            await self.clear_away(key, upload_id)
            if isinstance(error, UploadGone):
                # A new attempt begins an upload of its own.
                raise DestinationUnavailable(str(error), code="NoSuchUpload") from error
            raise
        response = await self._ask_completion(key, upload_id, parts, checksum)
        if not isinstance(response, Failure):
            return True
        if response.is_definite or response.is_taken:
            await self.clear_away(key, upload_id)
        if response.is_taken:
            return False
        raise self._error_of(response, f"complete {key}") from response.cause

    async def begin(self, key: str, attributes: Mapping[str, Any]) -> str:
        """Begin an upload; its id. `attributes` are the object's, as the client names them.

        Cancellation may leave an upload that nobody knows.
        """
        response = await self._connection.ask(
            self._settings.request_seconds(0),
            self._connection.client.create_multipart_upload,
            **self._address,
            Key=key,
            ChecksumAlgorithm="CRC32",
            ChecksumType="FULL_OBJECT",
            **attributes,
        )
        if isinstance(response, Failure):
            raise self._error_of(response, f"begin {key}") from response.cause
        return response["UploadId"]

    async def put_part(
        self, key: str, upload_id: str, number: int, body: bytes | memoryview
    ) -> StagedPart:
        """Store one part; waits while as many are under way as may be.

        Raises UploadGone. Cancellation leaves in doubt whether the part was stored.
        """
        crc32 = await crc32_of(body)
        parameters: dict[str, Any] = {**self._address, "Body": memoryview(body)}
        async with self._parts_under_way:
            response = await self._connection.ask(
                self._settings.request_seconds(len(body)),
                self._connection.client.upload_part,
                **parameters,
                Key=key,
                UploadId=upload_id,
                PartNumber=number,
                ChecksumCRC32=header_of(crc32),
            )
        if isinstance(response, Failure):
            error = self._error_of(response, f"put part {number} of {key}")
            if response.is_upload_gone:
                raise UploadGone(str(error)) from response.cause
            raise error from response.cause
        return StagedPart(number=number, etag=response["ETag"], crc32=crc32, size_bytes=len(body))

    async def complete(
        self, key: str, upload_id: str, parts: Sequence[StagedPart], crc32: str
    ) -> Completion:
        """Make the object of these parts if the key is free.

        Cancellation leaves in doubt whether the object was created.
        """
        response = await self._ask_completion(key, upload_id, parts, crc32)
        if not isinstance(response, Failure):
            return Completion.CREATED
        if response.is_taken:
            return Completion.TAKEN
        if response.is_upload_gone:
            return Completion.GONE
        raise self._error_of(response, f"complete {key}") from response.cause

    async def abort(self, key: str, upload_id: str) -> bool:
        """Abort an upload; False: it was gone, or the store does not let us.

        Raises DestinationUnavailable. Cancellation leaves in doubt whether it was aborted.
        """
        response = await self._ask_abort(key, upload_id)
        if not isinstance(response, Failure):
            return True
        if response.is_upload_gone:
            return False
        error = self._error_of(response, f"abort an upload of {key}")
        if error.retryable:
            raise error from response.cause
        self._tell_kept("unfinished uploads are not aborted", error)
        return False

    async def under(self, prefix: str) -> AsyncIterator[ListedUpload]:
        """The uploads whose keys begin with `prefix`, a page an attempt.

        Nothing more is listed after a page that we may not have, or that the store cannot give.
        Cancellation changes nothing.
        """
        parameters: dict[str, Any] = {**self._address, "Prefix": prefix}
        while True:
            page = await self._connection.ask(
                self._settings.request_seconds(0),
                self._connection.client.list_multipart_uploads,
                **parameters,
            )
            if isinstance(page, Failure):
                error = self._error_of(page, f"list uploads {prefix}")
                if page.status not in {403, 501}:
                    raise error from page.cause
                self._tell_kept("unfinished uploads are not listed", error)
                return
            for upload in page.get("Uploads", ()):
                begun_us = (upload["Initiated"] - _EPOCH) // _MICROSECOND
                yield ListedUpload(upload["Key"], upload["UploadId"], begun_us)
            # SeaweedFS 4.48 says that there is more, and not where it begins.
            if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
                return
            parameters["KeyMarker"] = page["NextKeyMarker"]
            parameters["UploadIdMarker"] = page["NextUploadIdMarker"]

    def _tell_kept(self, event: str, error: DestinationError) -> None:
        """Warn, once: parts of dead engines stay, and are paid for, until a rule takes them."""
        if event not in self._told:
            self._told.add(event)
            _log.warning(event, error=str(error), hint=f"{error.hint}. {KEPT_HINT}")

    async def _put_parts(self, key: str, upload_id: str, body: bytes) -> list[StagedPart]:
        """Upload all parts of a body, as many at a time as may be under way.

        The first part that fails ends the others; its error is raised.
        """
        view = memoryview(body)
        size = self._settings.part_bytes
        slices = [view[start : start + size] for start in range(0, len(view), size)]
        try:
            async with asyncio.TaskGroup() as tasks:
                uploads = [
                    tasks.create_task(self.put_part(key, upload_id, number, part))
                    for number, part in enumerate(slices, start=1)
                ]
        except ExceptionGroup as group:
            # All are the same request in other words; the first is as good as any.
            raise group.exceptions[0] from group.exceptions[0].__cause__
        return [upload.result() for upload in uploads]

    async def _ask_completion(
        self, key: str, upload_id: str, parts: Sequence[StagedPart], crc32: str
    ) -> "CompleteMultipartUploadOutputTypeDef | Failure":
        size_bytes = sum(part.size_bytes for part in parts)
        return await self._connection.ask(
            # S3 puts the parts together meanwhile: as long as if they were sent.
            self._settings.request_seconds(size_bytes),
            self._connection.client.complete_multipart_upload,
            **self._address,
            Key=key,
            UploadId=upload_id,
            MultipartUpload={
                "Parts": [
                    {
                        "PartNumber": part.number,
                        "ETag": part.etag,
                        "ChecksumCRC32": header_of(part.crc32),
                    }
                    for part in sorted(parts, key=lambda part: part.number)
                ]
            },
            ChecksumCRC32=header_of(crc32),
            ChecksumType="FULL_OBJECT",
            MpuObjectSize=size_bytes,
            IfNoneMatch="*",
        )

    async def _ask_abort(self, key: str, upload_id: str) -> object:
        return await self._connection.ask(
            _ABORT_SECONDS,
            self._connection.client.abort_multipart_upload,
            **self._address,
            Key=key,
            UploadId=upload_id,
        )

    async def clear_away(self, key: str, upload_id: str) -> None:
        """Abort an upload if the store lets us and answers soon; no matter whether it did.

        Cancellation leaves in doubt whether it was aborted.
        """
        await self._ask_abort(key, upload_id)


async def crc32_of(body: bytes | memoryview) -> str:
    """A body's CRC32, as `staging` writes it; of a large one made in a thread.

    16 MiB take 10 ms on a busy machine. Cancellation leaves nothing behind.
    """
    if len(body) < _THREAD_BYTES:
        return _hexadecimal_crc32(body)
    return await asyncio.to_thread(_hexadecimal_crc32, body)


def header_of(crc32: str) -> str:
    """A CRC32 as S3's headers want it: base64 of its four bytes, the highest first."""
    return base64.b64encode(bytes.fromhex(crc32)).decode("ascii")


def _hexadecimal_crc32(body: bytes | memoryview) -> str:
    return f"{isal_zlib.crc32(body):08x}"
