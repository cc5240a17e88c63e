"""Whether the bucket answers: each request is noted when it begins and when it ends.

Strategy: `WatchedStore` stands in front of a bucket and tells a `BucketWatch` of every request.
The watch knows when the last one succeeded, which still wait, and what the newest failure was.
A `RightsWatch` is told as well: it decides what a refusal means.

A bucket is stalled where nothing has succeeded for `STALLED_SECONDS` although somebody asks: a
request waits for its answer, or failed and is made again. A slow upload beside requests that
succeed is no stall. Nor is a single failure: the one who asked may have given up, and nobody else
asks a bucket while nothing happens.

Invariant: a request passes unchanged, and costs no turn of the loop more. So does its answer,
unless it is a refusal of what was granted before.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Literal, TypeVar

import msgspec

from engine.model.errors import DestinationRefused, DestinationUnavailable
from engine.model.interfaces import (
    Clock,
    ListedObject,
    ListedUpload,
    ObjectHead,
    ObjectStore,
    ObjectTail,
)
from engine.model.staging import Completion, StagedPart
from engine.operate.rights_watch import Kind, RightsWatch

STALLED_SECONDS: Final = 5.0

SILENT_HINT: Final = (
    "Nothing is lost: requests are made again for as long as it takes. Check the network between"
    " this engine and the bucket."
)

BucketState = Literal["unknown", "good", "slow", "failing", "silent"]
"""unknown: nothing was asked yet. good: it answers. slow: a request has waited for less than
`STALLED_SECONDS`, or failed and is made again. failing, silent: it is stalled, with errors or
without an answer."""


class BucketStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the bucket stands.

    `last_success_us` is when a request succeeded last, in Unix microseconds (0: none has).
    `waiting_seconds` is for how long nothing has succeeded although somebody asks, 0 where nobody
    waits. `requests` are being made now. `error` and `hint` are those of the newest failure, empty
    where a request has succeeded since.
    """

    name: str = ""
    prefix: str = ""
    state: BucketState = "unknown"
    last_success_us: int = 0
    waiting_seconds: float = 0.0
    requests: int = 0
    error: str = ""
    hint: str = ""

    @property
    def is_stalled(self) -> bool:
        """Whether nothing succeeds."""
        return self.state in {"failing", "silent"}

    @property
    def text(self) -> str:
        """What is wrong, in a sentence; empty where nothing is."""
        seconds = f"{self.waiting_seconds:.0f} s"
        match self.state:
            case "failing":
                return f"requests to the bucket have failed for {seconds}: {self.error}"
            case "silent":
                return f"the bucket has not answered for {seconds}"
            case _:
                return ""


class BucketWatch:
    """What is known of one bucket's answers. Times are Unix microseconds; nothing here waits."""

    def __init__(self, clock: Clock, *, name: str = "", prefix: str = "") -> None:
        self._clock = clock
        self._name = name
        self._prefix = prefix
        self._number = 0
        # In the order of their beginnings.
        self._began: dict[int, int] = {}
        self._last_success_us = 0
        self._failing_since_us = 0
        # Since something succeeded.
        self._failure_count = 0
        self._failure: DestinationUnavailable | DestinationRefused | None = None

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request is made inside the block; how the block ends is how it ended.

        One that was cancelled says nothing about the bucket.
        """
        self._number += 1
        number, began = self._number, self._clock()
        self._began[number] = began
        try:
            yield
        except (DestinationUnavailable, DestinationRefused) as error:
            self._failing_since_us = self._failing_since_us or began
            self._failure_count += 1
            self._failure = error
            raise
        else:
            self._last_success_us = self._clock()
            self._failing_since_us = self._failure_count = 0
            self._failure = None
        finally:
            del self._began[number]

    def status(self) -> BucketStatus:
        """How it stands now."""
        waiting = self._waiting_seconds()
        failure, state = self._failure, self._state(waiting)
        return BucketStatus(
            name=self._name,
            prefix=self._prefix,
            state=state,
            last_success_us=self._last_success_us,
            waiting_seconds=round(waiting, 1),
            requests=len(self._began),
            error=str(failure) if failure is not None else "",
            hint=failure.hint if failure is not None else _hint(state),
        )

    def _waiting_seconds(self) -> float:
        oldest = next(iter(self._began.values()), 0)
        is_repeated = bool(oldest) or self._failure_count > 1
        failing_since = self._failing_since_us if is_repeated else 0
        begins = [each for each in (oldest, failing_since) if each]
        if not begins:
            return 0.0
        return max(0.0, (self._clock() - max(min(begins), self._last_success_us)) / 1e6)

    def _state(self, waiting_seconds: float) -> BucketState:
        if waiting_seconds >= STALLED_SECONDS:
            return "failing" if self._failure is not None else "silent"
        if self._failure is not None:
            return "slow"
        return "good" if self._last_success_us else "unknown"


def _hint(state: BucketState) -> str:
    return SILENT_HINT if state == "silent" else ""


_T = TypeVar("_T")


class WatchedStore:
    """Implements `engine.model.interfaces.ObjectStore` by `store`, and tells `watch` of it all.

    What is refused is what `rights` says that it is.
    """

    def __init__(self, store: ObjectStore, watch: BucketWatch, rights: RightsWatch) -> None:
        self._store = store
        self._watch = watch
        self._rights = rights

    @contextmanager
    def _request(self, kind: Kind, key: str) -> Iterator[None]:
        with self._watch.request():
            try:
                yield
            except DestinationRefused as error:
                passing = self._rights.judged(kind, key, error)
                if passing is None:
                    raise
                raise passing from error
            else:
                self._rights.granted(kind, key)

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        """See ObjectStore."""
        with self._request("create", key):
            return await self._store.create(
                key,
                body,
                content_type=content_type,
                metadata=metadata,
                in_one_request=in_one_request,
            )

    async def get(self, key: str) -> bytes | None:
        """See ObjectStore."""
        with self._request("read", key):
            return await self._store.get(key)

    async def head(self, key: str) -> ObjectHead | None:
        """See ObjectStore."""
        with self._request("read", key):
            return await self._store.head(key)

    async def whole(self, key: str) -> ObjectTail | None:
        """See ObjectStore."""
        with self._request("read", key):
            return await self._store.whole(key)

    async def tail(self, key: str, size_bytes: int) -> ObjectTail | None:
        """See ObjectStore."""
        with self._request("read", key):
            return await self._store.tail(key, size_bytes)

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ListedObject]:
        """See ObjectStore."""
        return self._watched(self._store.list(prefix, after=after), "list", prefix)

    async def folders(self, prefix: str) -> tuple[str, ...]:
        """See ObjectStore."""
        with self._request("list", prefix):
            return await self._store.folders(prefix)

    async def begin_upload(
        self, key: str, *, content_type: str, metadata: Mapping[str, str]
    ) -> str:
        """See ObjectStore."""
        with self._request("create", key):
            return await self._store.begin_upload(key, content_type=content_type, metadata=metadata)

    async def put_part(
        self, key: str, upload_id: str, number: int, body: bytes | memoryview
    ) -> StagedPart:
        """See ObjectStore."""
        with self._request("create", key):
            return await self._store.put_part(key, upload_id, number, body)

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[StagedPart], *, crc32: str
    ) -> Completion:
        """See ObjectStore."""
        with self._request("create", key):
            return await self._store.complete_upload(key, upload_id, parts, crc32=crc32)

    async def abort_upload(self, key: str, upload_id: str) -> bool:
        """See ObjectStore."""
        with self._request("abort uploads", key):
            return await self._store.abort_upload(key, upload_id)

    def list_uploads(self, prefix: str) -> AsyncIterator[ListedUpload]:
        """See ObjectStore."""
        return self._watched(self._store.list_uploads(prefix), "list uploads", prefix)

    async def _watched(
        self, items: AsyncIterator[_T], kind: Kind, prefix: str
    ) -> AsyncIterator[_T]:
        """Each page is a request. What is done with an item between two of them is none."""
        while True:
            with self._request(kind, prefix):
                item = await anext(items, None)
            if item is None:
                return
            yield item
