"""The bucket: one for the whole world, seen by each engine through a store of its own.

Strategy: every request takes random time to be applied and random time to be answered. Its fate
is drawn when it is sent: it may fail, lose its answer, be applied long after it was given up
(also after its sender's death), meet a 409 or a 503, or stall. Bodies of the part size and more
take the multipart way: invisible until completed, and an upload that was aborted cannot be
completed. Staged objects take it too, a request a part. A completion that is repeated after it was
applied is answered in any way that a store may answer it.

Invariant: a key is written once. Nothing here knows what the protocol wants; the monitor does.
"""

import bisect
import random
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from engine.flow.chunk import crc32_text
from engine.model.errors import DestinationError, DestinationUnavailable, UploadGone
from engine.model.interfaces import ListedObject, ListedUpload, ObjectHead, ObjectTail
from engine.model.layout import journal_key
from engine.model.staging import Completion, StagedPart
from simulation.virtual_loop import Process, VirtualLoop

if TYPE_CHECKING:
    import asyncio

_OBJECT_KINDS = ("object", "completion")

Answer = (
    bool
    | bytes
    | int
    | ObjectHead
    | list[ListedObject]
    | list[ListedUpload]
    | StagedPart
    | Completion
    | None
)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it lies in the bucket."""

    key: str
    body: bytes
    metadata: Mapping[str, str]
    created_us: int
    creator: Process


@dataclass(eq=False, slots=True)
class Request:
    """One request on its way. A ghost is applied after its sender gave it up.

    `says` of a journal entry: "open", "plan" or nothing of the two. `shown` is the watcher's: what
    there was to be seen when it was applied.
    """

    sender: Process
    kind: str
    key: str
    apply: Callable[[], Answer]
    future: "asyncio.Future[Answer]"
    says: str = ""
    upload: str = ""
    is_ghost: bool = False
    answer: Answer = None
    error: DestinationError | None = None
    shown: object = None


@dataclass(slots=True)
class Weather:
    """How the bucket behaves just now. Rates are probabilities a request."""

    trouble: float = 0.0
    stall: float = 0.0
    is_out: bool = False
    slow: float = 0.05


class BucketWatcher(Protocol):
    """Who is told what happens in the bucket, at the moment it happens."""

    def created(self, stored: StoredObject) -> None: ...

    def taken(self, kind: str, old: StoredObject, body: bytes, sender: Process) -> None: ...

    def begins(self, key: str, metadata: Mapping[str, str]) -> None: ...

    def aborts(self, sender: Process, key: str, upload_id: str) -> None: ...

    def is_late(self, kind: str, sender: Process) -> bool: ...

    def overwritten(self, old: StoredObject, stored: StoredObject) -> None: ...

    def sent(self, request: "Request") -> None: ...

    def shown(self, request: "Request") -> object: ...

    def answered(self, request: "Request") -> None: ...


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that is neither completed nor aborted. Its parts' bodies by number."""

    key: str
    begun_us: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Bucket:
    """All objects, all uploads and all requests under way."""

    loop: VirtualLoop
    rnd: random.Random
    now_us: Callable[[], int]
    watcher: BucketWatcher
    part_bytes: int
    is_create_only: bool = True
    weather: Weather = field(default_factory=Weather)
    objects: dict[str, StoredObject] = field(default_factory=dict)
    uploads: dict[int, Upload] = field(default_factory=dict)
    completed: set[int] = field(default_factory=set)
    # By upload: completions that were refused with a code that may last.
    refusals: Counter[str] = field(default_factory=Counter)
    # Completions of these uploads are refused again and again.
    cursed: set[str] = field(default_factory=set)
    # The answer of the next completion of these uploads is lost.
    muted: set[str] = field(default_factory=set)
    requests: set[int] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    # When a rule took what is there no more.
    expired: dict[str, int] = field(default_factory=dict)
    _keys: list[str] = field(default_factory=list)
    _parked: list[tuple[Request, int]] = field(default_factory=list)
    _late_objects: list[tuple[Request, int]] = field(default_factory=list)
    _number: int = 0

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def send(
        self,
        sender: Process,
        kind: str,
        key: str,
        apply: Callable[[], Answer],
        *,
        says: str = "",
        upload: str = "",
    ) -> "asyncio.Future[Answer]":
        """Put a request on its way. The future is answered or fails."""
        request = Request(sender, kind, key, apply, self.loop.create_future(), says, upload)
        number = self.next_number()
        self.requests.add(number)
        self.counts["requests"] += 1
        self.watcher.sent(request)
        weather, rnd = self.weather, self.rnd
        is_ambushed = says == "plan" or kind in _OBJECT_KINDS
        if is_ambushed and self.watcher.is_late(kind, sender):
            self._park(request, number, rnd.uniform(5, 60))
        elif rnd.random() < weather.stall:
            self.counts["stalled"] += 1
            self.loop.later(rnd.uniform(5, 90), self._arrive, request, number)
        else:
            self.loop.later(self.delay(), self._arrive, request, number)
        return request.future

    def delay(self) -> float:
        """Seconds that one way takes."""
        rnd = self.rnd
        return rnd.uniform(0.3, 4) if rnd.random() < self.weather.slow else rnd.uniform(0.002, 0.06)

    def _arrive(self, request: Request, number: int) -> None:
        """The request reaches the bucket, or what is in its way."""
        rnd, trouble = self.rnd, self.weather.trouble
        if request.says == "open" and rnd.random() < 0.5:
            # The worst moment for a late append: after its key was looked at, before this open.
            for ghost in list(self._parked):
                self._haunt(*ghost)
        if request.kind in _OBJECT_KINDS and rnd.random() < 0.5:
            # And for a late object: just before somebody else's under its key.
            for ghost in [g for g in self._late_objects if g[0].key == request.key]:
                self._haunt(*ghost)
        if not request.sender.is_alive and rnd.random() < 0.4:
            self.counts["died with its sender"] += 1
            self.requests.discard(number)
        elif self.weather.is_out or rnd.random() < trouble:
            self._refuse(request, number)
        elif request.upload in self.cursed:
            self._refuse(request, number, "ConditionalRequestConflict")
        else:
            self._apply(request)
            is_muted = request.upload in self.muted
            self.muted.discard(request.upload)
            if request.error is None and (is_muted or rnd.random() < trouble):
                self.counts[f"answer lost: {request.kind}"] += 1
                request.error = DestinationUnavailable("answer lost", code="Timeout")
            self.loop.later(self.delay(), self._give_answer, request, number)

    def _refuse(self, request: Request, number: int, code: str = "") -> None:
        if not code:
            code = self.rnd.choice(("SlowDown", "ConditionalRequestConflict", "Timeout", "Timeout"))
        if request.upload and code == "ConditionalRequestConflict":
            self.refusals[request.upload] += 1
        request.error = DestinationUnavailable("refused", code=code)
        self.loop.later(self.delay(), self._give_answer, request, number)
        if code == "Timeout" and not self.weather.is_out:
            # Given up by its sender and still on its way.
            self.requests.add(ghost := self.next_number())
            self._park(request, ghost, self.rnd.choice((1, 3, 10, 40)) * self.rnd.random())

    def _park(self, request: Request, ghost: int, delay: float) -> None:
        """It is applied so late, or when it is most in the way of somebody else."""
        if request.kind == "journal" and request.says != "open":
            self._parked.append((request, ghost))
        elif request.kind in _OBJECT_KINDS:
            self._late_objects.append((request, ghost))
        self.loop.later(delay, self._haunt, request, ghost)

    def _haunt(self, request: Request, number: int) -> None:
        if number not in self.requests:
            return
        self._parked = [ghost for ghost in self._parked if ghost[1] != number]
        self._late_objects = [ghost for ghost in self._late_objects if ghost[1] != number]
        self.requests.discard(number)
        request.is_ghost = True
        self._apply(request)
        self.counts[f"applied late: {request.kind}"] += 1
        if not request.sender.is_alive:
            self.counts[f"applied after its sender's death: {request.kind}"] += 1

    def _apply(self, request: Request) -> None:
        try:
            answer = request.apply()
        except DestinationError as error:
            if not request.is_ghost:
                request.error = error
            return
        if not request.is_ghost:
            request.answer = answer
            request.shown = self.watcher.shown(request)

    def _give_answer(self, request: Request, number: int) -> None:
        self.requests.discard(number)
        if request.future.done():
            return
        if request.error is not None:
            request.future.set_exception(request.error)
        else:
            self.watcher.answered(request)
            request.future.set_result(request.answer)

    # --- what requests do when they are applied

    def put(
        self, sender: Process, kind: str, key: str, body: bytes, metadata: Mapping[str, str]
    ) -> bool:
        """Create the object, unless the key is taken."""
        old = self.objects.get(key)
        if old is not None and self.is_create_only:
            self.counts["412"] += 1
            self.watcher.taken(kind, old, body, sender)
            return False
        stored = StoredObject(key, body, dict(metadata), self.now_us(), sender)
        self.objects[key] = stored
        if old is not None:
            self.watcher.overwritten(old, stored)
        else:
            bisect.insort(self._keys, key)
            self.watcher.created(stored)
        return True

    def seqs(self, folder: str) -> list[int]:
        """The numbers of the entries or state files that are there, ascending."""
        keys = (key for key in self._keys if f"/_tailrace/{folder}/" in key)
        return [number_of(key) for key in keys]

    @property
    def next_entry_key(self) -> str:
        """Where the journal goes on, whatever a rule took of it."""
        made = [key for key in (*self.expired, *self._keys) if kind_of(key) == "journal"]
        return journal_key("lake", max(map(number_of, made), default=-1) + 1)

    def expire(self, key: str) -> None:
        """A rule of the bucket's owner takes the object away."""
        self.expired[key] = self.now_us()
        del self.objects[key]
        self._keys.remove(key)

    def was_made(self, key: str) -> bool:
        """Whether the object is there, or was until a rule took it."""
        return key in self.objects or key in self.expired

    def damage(self, key: str, body: bytes = b"damaged") -> None:
        """The object's body is another one now."""
        self.objects[key] = replace(self.objects[key], body=body)

    def begin_upload(self, key: str, metadata: Mapping[str, str]) -> int:
        self.watcher.begins(key, metadata)
        number = self.next_number()
        self.uploads[number] = Upload(key, self.now_us(), dict(metadata))
        return number

    def put_part(self, upload: int, number: int, body: bytes) -> StagedPart:
        """Keep a part of an upload that is still there."""
        found = self.uploads.get(upload)
        if found is None:
            self.counts["part of no upload"] += 1
            raise UploadGone("no such upload")
        found.parts[number] = body
        crc32 = crc32_text(zlib.crc32(body))
        return StagedPart(number, f'"{crc32}"', crc32, len(body))

    def complete_upload(
        self, upload: int, sender: Process, parts: Sequence[StagedPart], crc32: str
    ) -> Completion:
        """Make the object of the upload's parts, unless the key is taken."""
        if upload in self.completed:
            answer = self.rnd.choice(tuple(Completion))
            self.counts[f"completed again: {answer.name}"] += 1
            return answer
        found = self.uploads.get(upload)
        if found is None:
            self.counts["no such upload"] += 1
            return Completion.GONE
        body = b"".join(self._named(found, parts))
        if crc32_text(zlib.crc32(body)) != crc32:
            raise DestinationUnavailable("another body than that", code="BadDigest")
        if not self.put(sender, kind_of(found.key), found.key, body, found.metadata):
            return Completion.TAKEN
        del self.uploads[upload]
        self.completed.add(upload)
        return Completion.CREATED

    def _named(self, upload: Upload, parts: Sequence[StagedPart]) -> list[bytes]:
        """The bodies of these parts, in the order of their numbers."""
        bodies = []
        for part in sorted(parts, key=lambda part: part.number):
            body = upload.parts.get(part.number)
            if body is None or crc32_text(zlib.crc32(body)) != part.crc32:
                raise DestinationUnavailable("another part than that", code="InvalidPart")
            bodies.append(body)
        return bodies

    def page(self, prefix: str, after: str, size: int) -> list[ListedObject]:
        """The first keys with the prefix behind `after`."""
        index = bisect.bisect_right(self._keys, max(after, prefix))
        if after < prefix and prefix in self.objects:
            index -= 1
        page = []
        for key in self._keys[index : index + size]:
            if not key.startswith(prefix):
                break
            found = self.objects[key]
            page.append(ListedObject(key, len(found.body), found.created_us))
        return page

    def uploads_page(self, prefix: str, after: int, size: int) -> list[ListedUpload]:
        """The first uploads of keys with the prefix that were begun after that one."""
        page = [
            ListedUpload(upload.key, str(number), upload.begun_us)
            for number, upload in self.uploads.items()
            if number > after and upload.key.startswith(prefix)
        ]
        return page[:size]

    def abort_upload(self, sender: Process, upload: int) -> bool:
        """Throw an upload away; whether it was there."""
        found = self.uploads.get(upload)
        if found is None:
            return False
        self.watcher.aborts(sender, found.key, str(upload))
        del self.uploads[upload]
        self.counts["uploads aborted"] += 1
        return True


def kind_of(key: str) -> str:
    """What an object is, by its key: journal, state, check, schema or object."""
    if "_tailrace/" in key:
        return key.split("_tailrace/", 1)[1].split("/", 1)[0]
    return "schema" if key.endswith("/schema.json") else "object"


def number_of(key: str) -> int:
    """The number of an entry or a state file, by its key."""
    return int(key.rsplit("/", 1)[1].split(".", maxsplit=1)[0])


def said_by(entry: bytes) -> str:
    """Whether a journal entry opens or plans."""
    if b'"open":{' in entry:
        return "open"
    return "plan" if b'"planned":[' in entry else ""


class SimulatedStore:
    """One engine's view of the bucket: an `ObjectStore`."""

    def __init__(self, bucket: Bucket, process: Process) -> None:
        self._bucket = bucket
        self._process = process

    async def _ask(
        self,
        kind: str,
        key: str,
        apply: Callable[[], Answer],
        *,
        says: str = "",
        upload: str = "",
    ) -> Answer:
        if not self._process.is_alive:
            raise DestinationUnavailable("dead")
        return await self._bucket.send(self._process, kind, key, apply, says=says, upload=upload)

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        bucket, process, kind = self._bucket, self._process, kind_of(key)
        body = bytes(body)
        if in_one_request or len(body) < bucket.part_bytes:
            answer = await self._ask(
                kind,
                key,
                lambda: bucket.put(process, kind, key, body, metadata),
                says=said_by(body) if kind == "journal" else "",
            )
            return bool(answer)
        upload_id = await self.begin_upload(key, content_type=content_type, metadata=metadata)
        crc32 = crc32_text(zlib.crc32(body))
        part = StagedPart(1, f'"{crc32}"', crc32, len(body))

        def complete() -> Completion:
            # A part's own request would say nothing new: it comes with the completion.
            found = bucket.uploads.get(int(upload_id))
            if found is not None:
                found.parts[part.number] = body
            return bucket.complete_upload(int(upload_id), process, [part], crc32)

        answer = await self._ask("completion", key, complete)
        if answer is Completion.GONE:
            raise DestinationUnavailable("no such upload", code="NoSuchUpload")
        return answer is Completion.CREATED

    async def get(self, key: str) -> bytes | None:
        bucket = self._bucket

        def read() -> bytes | None:
            found = bucket.objects.get(key)
            return None if found is None else found.body

        answer = await self._ask("get", key, read)
        assert answer is None or isinstance(answer, bytes)
        return answer

    async def head(self, key: str) -> ObjectHead | None:
        bucket = self._bucket

        def look() -> ObjectHead | None:
            found = bucket.objects.get(key)
            return None if found is None else ObjectHead(len(found.body), dict(found.metadata))

        answer = await self._ask("head", key, look)
        assert answer is None or isinstance(answer, ObjectHead)
        return answer

    async def whole(self, key: str) -> ObjectTail | None:
        head, body = await self.head(key), await self.get(key)
        return None if head is None or body is None else ObjectTail(head.size, head.metadata, body)

    async def tail(self, key: str, size_bytes: int) -> ObjectTail | None:
        head, body = await self.head(key), await self.get(key)
        if head is None or body is None:
            return None
        return ObjectTail(head.size, head.metadata, body[-size_bytes:])

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ListedObject]:
        bucket = self._bucket
        while True:
            size = bucket.rnd.choice((1, 3, 1000))
            page = await self._ask("list", prefix, partial(bucket.page, prefix, after, size))
            assert isinstance(page, list)
            for listed in page:
                assert isinstance(listed, ListedObject)
                yield listed
                after = listed.key
            if len(page) < size:
                return

    async def folders(self, prefix: str) -> tuple[str, ...]:
        bucket = self._bucket
        page = await self._ask("list", prefix, partial(bucket.page, prefix, "", 1 << 30))
        assert isinstance(page, list)
        rests = [listed.key.removeprefix(prefix) for listed in page]
        return tuple(sorted({f"{prefix}{rest.split('/')[0]}/" for rest in rests if "/" in rest}))

    async def begin_upload(
        self, key: str, *, content_type: str, metadata: Mapping[str, str]
    ) -> str:
        bucket = self._bucket
        upload = await self._ask("begin", key, lambda: bucket.begin_upload(key, metadata))
        assert isinstance(upload, int)
        return str(upload)

    async def put_part(
        self, key: str, upload_id: str, number: int, body: bytes | memoryview
    ) -> StagedPart:
        bucket, content = self._bucket, bytes(body)
        answer = await self._ask(
            "part", key, lambda: bucket.put_part(int(upload_id), number, content)
        )
        assert isinstance(answer, StagedPart)
        return answer

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[StagedPart], *, crc32: str
    ) -> Completion:
        bucket, process = self._bucket, self._process
        answer = await self._ask(
            "completion",
            key,
            lambda: bucket.complete_upload(int(upload_id), process, parts, crc32),
            upload=upload_id,
        )
        assert isinstance(answer, Completion)
        return answer

    async def abort_upload(self, key: str, upload_id: str) -> bool:
        bucket, process = self._bucket, self._process
        answer = await self._ask("abort", key, lambda: bucket.abort_upload(process, int(upload_id)))
        return bool(answer)

    async def list_uploads(self, prefix: str) -> AsyncIterator[ListedUpload]:
        bucket, after = self._bucket, 0
        while True:
            size = bucket.rnd.choice((1, 3, 1000))
            page = await self._ask(
                "uploads", prefix, partial(bucket.uploads_page, prefix, after, size)
            )
            assert isinstance(page, list)
            for listed in page:
                assert isinstance(listed, ListedUpload)
                yield listed
                after = int(listed.upload_id)
            if len(page) < size:
                return
