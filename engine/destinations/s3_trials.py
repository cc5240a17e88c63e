"""What `check` tries of a bucket besides what a start needs: one right after another.

Strategy: a start without these rights works, so what they come to is a finding, and a warning
where something is lost. A right to end or list an upload is tried on one that is gone: who may,
hears that there is none. So nothing is left behind where it is missing.

Invariant: nothing is made but create-only objects of fixed keys, and no upload is left that could
have been aborted. DeleteObject is never sent.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from engine.destinations.s3_errors import Circumstances, Failure, destination_error
from engine.destinations.s3_rights import DELETE, RIGHT_OF, role_of_session
from engine.destinations.s3_settings import S3Settings
from engine.destinations.s3_uploads import KEPT_HINT, S3Uploads, crc32_of, header_of
from engine.model.check_code import (
    ATTRIBUTES,
    DELETING,
    LOCATION,
    OBJECT_LOCK,
    PARTS,
    UPLOADS_ABORTED,
    UPLOADS_LISTED,
)
from engine.model.errors import DestinationError, DestinationRefused
from engine.model.staging import Completion
from engine.model.trial import Finding, Judgement, judgements

if TYPE_CHECKING:
    from engine.destinations.s3_connection import S3Connection

_PROOF: Final = b"tailrace check\n"
# A valid id of an upload that nobody has begun.
_NO_UPLOAD: Final = "tailrace-check"
_NO_PARTS: Final = (
    "Snapshots and objects over 20 MiB go up in parts: a snapshot fails, and its table stands as "
    "an alarm"
)


@dataclass(frozen=True, slots=True)
class S3Bucket:
    """What a request to the bucket is made of. `address` names the bucket in each of them."""

    settings: S3Settings
    connection: "S3Connection"
    uploads: S3Uploads
    address: Mapping[str, Any]
    circumstances: Circumstances

    def error(self, failure: Failure, subject: str) -> DestinationError:
        """The error for a failure."""
        return destination_error(failure, subject, self.circumstances)

    async def ask(
        self, call: Callable[..., Awaitable[Mapping[str, Any]]], **parameters: Any
    ) -> Mapping[str, Any] | Failure:
        """One small request. Cancellation leaves it in doubt."""
        return await self.connection.ask(
            self.settings.request_seconds(0), call, **self.address, **parameters
        )


class S3Trials:
    """The trials of one bucket. `folder` is where their objects lie, `way` how objects are made."""

    def __init__(self, bucket: S3Bucket, folder: str, way: str) -> None:
        self._bucket = bucket
        self._client = bucket.connection.client
        self._folder = folder
        self._way = way
        self._may_abort = False

    async def judged(self) -> AsyncIterator[Judgement]:
        """What came of each. Cancellation may leave an upload of a few bytes."""
        found = judgements(
            (LOCATION, self._location),
            (ATTRIBUTES, self._attributes),
            (UPLOADS_LISTED, self._uploads_listed),
            (UPLOADS_ABORTED, self._uploads_aborted),
            (PARTS, self._parts),
            (OBJECT_LOCK, self._object_lock),
            (DELETING, self._deleting),
        )
        async for each in found:
            yield each

    async def _location(self) -> Finding:
        answer = await self._bucket.ask(self._client.get_bucket_location)
        if isinstance(answer, Failure):
            return self._unneeded(answer, "GetBucketLocation")
        named = answer.get("LocationConstraint")
        # The oldest region has no name here, and another one an old name.
        region = {None: "us-east-1", "": "us-east-1", "EU": "eu-west-1"}.get(named, named)
        return Finding(f"the bucket is in {region}")

    async def _object_lock(self) -> Finding:
        answer = await self._bucket.ask(self._client.get_object_lock_configuration)
        if isinstance(answer, Failure):
            if answer.status == 404:
                return Finding("none")
            return self._unneeded(answer, "GetObjectLockConfiguration")
        lock = answer.get("ObjectLockConfiguration", {})
        kept = lock.get("Rule", {}).get("DefaultRetention")
        if not kept:
            return Finding("no retention by default")
        count, unit = (kept["Days"], "days") if "Days" in kept else (kept["Years"], "years")
        return Finding(
            f"every object is kept for {count} {unit} ({kept['Mode']}), the journal's too. Nothing "
            "that Tailrace does needs to delete; rules that expire objects sooner wait for that"
        )

    async def _deleting(self) -> Finding:
        return Finding(f"not tried: {DELETE} is not needed, and no policy has to grant it")

    async def _uploads_listed(self) -> Finding:
        answer = await self._bucket.ask(
            self._client.list_multipart_uploads, Prefix=self._folder, MaxUploads=1
        )
        if not isinstance(answer, Failure):
            return Finding("may be listed")
        return self._lost(answer, "list unfinished uploads", KEPT_HINT)

    async def _uploads_aborted(self) -> Finding:
        ended = await self._of_no_upload(self._client.abort_multipart_upload)
        if ended is not None:
            return self._lost(ended, "abort an upload", KEPT_HINT)
        self._may_abort = True
        listed = await self._of_no_upload(self._client.list_parts)
        if listed is not None:
            text = self._unneeded(listed, "ListParts").text
            return Finding(f"may be aborted; their parts are {text}")
        return Finding("may be aborted, and their parts may be listed")

    async def _of_no_upload(
        self, call: Callable[..., Awaitable[Mapping[str, Any]]]
    ) -> Failure | None:
        """Why the request may not be made; None: it may, or the store knows no such upload."""
        answer = await self._bucket.ask(call, Key=self._key("parts"), UploadId=_NO_UPLOAD)
        if isinstance(answer, Failure) and answer.status not in {400, 404}:
            return answer
        return None

    async def _parts(self) -> Finding:
        key = self._key("parts")
        if not self._may_abort and await self._is_there(key):
            # Another upload could not be thrown away.
            return Finding("went up in parts when it was first tried")
        try:
            completion = await self._staged(key)
        except DestinationError as error:
            return Finding(str(error), f"{error.hint}. {_NO_PARTS}.")
        made = "made" if completion is Completion.CREATED else "not made twice"
        return Finding(f"an object in parts was {made}")

    async def _staged(self, key: str) -> Completion:
        """Send the object in one part. An upload that does not become it is aborted."""
        uploads = self._bucket.uploads
        upload_id = await uploads.begin(
            key, {**self._bucket.settings.attributes, "ContentType": "application/x-ndjson"}
        )
        try:
            part = await uploads.put_part(key, upload_id, 1, _PROOF)
            completion = await uploads.complete(key, upload_id, [part], await crc32_of(_PROOF))
        except DestinationError:
            await uploads.clear_away(key, upload_id)
            raise
        if completion is Completion.TAKEN:
            await uploads.clear_away(key, upload_id)
        return completion

    async def _is_there(self, key: str) -> bool:
        answer = await self._bucket.ask(self._client.head_object, Key=key)
        return not isinstance(answer, Failure)

    async def _attributes(self) -> Finding:
        """Where an object as it is configured is refused, each setting is tried by itself."""
        settings = self._bucket.settings
        bare = replace(settings, sse=None, kms_key_id=None, acl=None, tags=())
        single = {
            "acl": replace(bare, acl=settings.acl),
            "tags": replace(bare, tags=settings.tags),
            "sse": replace(bare, sse=settings.sse, kms_key_id=settings.kms_key_id),
        }
        used = {name: one for name, one in single.items() if one.attributes}
        if not used:
            return Finding("none is configured")
        # It has the name of the object that proves the right to write.
        whole = await self._made("write", settings)
        if whole is None:
            return Finding(f"{', '.join(used)}: taken")
        if whole.retryable:
            return Finding(f"not known: {whole}")
        errors = [await self._made(name, one) for name, one in used.items()]
        refused = [error for error in errors if error is not None] or [whole]
        raise DestinationRefused(
            "; ".join(map(str, refused)),
            code="AccessDenied",
            hint="; ".join(dict.fromkeys(error.hint for error in refused)),
        )

    async def _made(self, name: str, settings: S3Settings) -> DestinationError | None:
        """Why an object is not made with these settings; None: it is, or was."""
        key = self._key(name)
        body: dict[str, Any] = {"Body": memoryview(_PROOF), **settings.attributes}
        answer = await self._bucket.ask(
            self._client.put_object,
            Key=key,
            ChecksumCRC32=header_of(await crc32_of(_PROOF)),
            IfNoneMatch="*",
            **body,
        )
        if not isinstance(answer, Failure) or answer.is_taken:
            return None
        narrow = replace(
            self._bucket.circumstances,
            has_acl=settings.acl is not None,
            has_tags=bool(settings.tags),
            kms_key_id=settings.kms_key_id or "",
        )
        return destination_error(answer, f"create {key}", narrow)

    def _key(self, name: str) -> str:
        return f"{self._folder}{name}-{self._way}"

    def _unneeded(self, failure: Failure, operation: str) -> Finding:
        """Something that is not known, and that nothing rests on."""
        if not failure.is_hiding:
            return Finding(f"not known, which is no fault: {failure.code}")
        right = RIGHT_OF[operation]
        place = self._bucket.circumstances.place
        return Finding(
            f"not known, which is no fault: {right} on {place.resource_of(right)} is not granted"
        )

    def _lost(self, failure: Failure, subject: str, lost: str) -> Finding:
        """Something that goes on without, and what that costs."""
        error = self._bucket.error(failure, subject)
        return Finding(str(error), f"{error.hint}. {lost}." if error.hint else f"{lost}.")


def identity_text(arn: str, role_arn: str) -> str:
    """Who that is, as a bucket's policy or a role's trust policy names it."""
    role = role_of_session(arn)
    text = arn
    if role:
        text += (
            f", a session of the role {role} (a role with a path has it before its name): policies "
            "name the role"
        )
    return f"{text}; it assumes {role_arn}" if role_arn else text
