"""A bucket that other rules rule: entries expire, state files are damaged, listings lag behind."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from configured import make_settings
from engine.flow.chunk import ChunkLimits
from engine.journal import journal as journal_module
from engine.journal.bucket_rules import BucketRules
from engine.journal.entry import Durable, Writer, decode_entry, encode_state
from engine.journal.journal import Journal
from engine.journal.reading import READS_AT_ONCE
from engine.journal.sight import Sight
from engine.journal.state_keeper import StateKeeper
from engine.model.bucket_rule import BucketRule, RuleAction
from engine.model.errors import (
    DestinationUnavailable,
    JournalError,
    JournalUnseen,
    NewerFormat,
    ObjectArchived,
    Superseded,
)
from engine.model.interfaces import ListedObject, SourceIdentity
from engine.model.layout import journal_folder, journal_key, state_key
from engine.model.record import RecordConfiguration
from engine.operate.metrics import Metrics
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from engine.sources.synthetic import ROWS_A_TRANSACTION, SyntheticSource, end_of
from log_points import BEGIN_TIME, identity
from memory_store import MemoryStore, StoredObject
from simulation.virtual_loop import VirtualLoop

IDENTITY = identity()
CONFIGURATION = RecordConfiguration(through="tailrace", tables=("public.*",))


def durable(transactions: int, *, seq: int) -> Durable:
    """So many transactions of a computed log are durable."""
    point = end_of(transactions)
    return Durable(point.position, point.resume, BEGIN_TIME, seq)


FIRST = durable(100, seq=-1)
PREFIX = "lake"


@dataclass
class RuledStore(MemoryStore):
    """A bucket with rules of its own.

    `unlisted` keys are left out of listings; reads take `seconds`.
    """

    unlisted: set[str] = field(default_factory=set)
    seconds: float = 0.0
    reading: int = 0
    reading_most: int = 0
    created: list[str] = field(default_factory=list)
    in_parts: list[str] = field(default_factory=list)

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        self.created.append(key)
        if not in_one_request:
            self.in_parts.append(key)
        return await super().create(key, body, content_type=content_type, metadata=metadata)

    async def get(self, key: str) -> bytes | None:
        self.reading += 1
        self.reading_most = max(self.reading_most, self.reading)
        await asyncio.sleep(self.seconds)
        self.reading -= 1
        return await super().get(key)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ListedObject]:
        async for listed in super().list(prefix, after=after):
            if listed.key not in self.unlisted:
                yield listed

    def expire(self, first: int, last: int) -> None:
        """A lifecycle rule takes these entries away."""
        for seq in range(first, last + 1):
            del self.objects[journal_key(PREFIX, seq)]


def journal(store: MemoryStore, name: str = "a") -> Journal:
    return Journal(store, PREFIX, Writer(name, name, "test"), Metrics(CollectorRegistry()))


@pytest.fixture(autouse=True)
def _short_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "STATE_INTERVAL", 10)


async def filled(entries: int, source: SourceIdentity = IDENTITY) -> RuledStore:
    """A journal of so many entries; its state files fold it up to 9, 19, 29 and so on."""
    store = RuledStore()
    writer = journal(store)
    await writer.load()
    await writer.open(source, CONFIGURATION, FIRST)
    for number in range(1, entries):
        await writer.append(durable=durable(100 + number, seq=number - 1))
    store.created.clear()
    return store


async def opened(store: MemoryStore) -> Journal:
    successor = journal(store, "b")
    await successor.load()
    await successor.open(IDENTITY, CONFIGURATION, FIRST)
    return successor


async def test_entries_that_a_state_file_covers_may_expire() -> None:
    store = await filled(25)
    store.expire(0, 19)

    successor = await opened(store)

    assert (successor.state.seq, successor.state.epoch) == (25, 2)
    assert [key for key in store.created if "/journal/" in key] == [journal_key(PREFIX, 25)] * 2, (
        "one entry, and the proof that it is not overwritten"
    )


async def test_entries_that_a_state_file_covers_may_be_archived() -> None:
    store = await filled(25)
    store.archived |= {journal_key(PREFIX, seq) for seq in range(20)}

    successor = await opened(store)

    assert successor.state.seq == 25


async def test_an_archived_entry_that_no_state_file_covers_is_named() -> None:
    store = await filled(25)
    store.archived.add(journal_key(PREFIX, 21))

    with pytest.raises(ObjectArchived, match="000000000021"):
        await journal(store).load()


Damage = Callable[[bytes], bytes]


def other_entry(content: bytes) -> bytes:
    state = msgspec.json.decode(gzip.decompress(content))
    return gzip.compress(msgspec.json.encode({**state, "seq": 18}))


def other_history(content: bytes) -> bytes:
    state = msgspec.json.decode(gzip.decompress(content))
    return gzip.compress(msgspec.json.encode({**state, "sha256": "0" * 64}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-20],
        lambda _: b"",
        lambda _: b"not gzip at all",
        lambda content: content[:40] + b"\0\0\0\0" + content[44:],
        lambda _: gzip.compress(b"[]"),
        other_entry,
        other_history,
    ],
)
async def test_a_damaged_state_file_is_left_out(damage: Damage) -> None:
    store = await filled(25)
    newest = store.objects[state_key(PREFIX, 19)]
    newest.body = damage(newest.body)

    successor = await opened(store)

    expected = journal(await filled(25))
    await expected.load()
    assert successor.state.seq == 25
    assert successor.state.durable == expected.state.durable


async def test_state_files_that_are_all_damaged_cost_only_time() -> None:
    store = await filled(25)
    for seq in (9, 19):
        store.objects[state_key(PREFIX, seq)].body = b"x"

    successor = await opened(store)

    assert successor.state.seq == 25
    assert state_key(PREFIX, 25) in store.objects, "so that the next start is short again"


async def test_an_archived_state_file_is_left_out() -> None:
    store = await filled(25)
    store.archived.add(state_key(PREFIX, 19))

    successor = await opened(store)

    assert successor.state.seq == 25


async def test_a_state_file_of_a_newer_release_is_not_left_out() -> None:
    store = await filled(25)
    newest = store.objects[state_key(PREFIX, 19)]
    newest.body = gzip.compress(b'{"format":99}')

    with pytest.raises(NewerFormat):
        await journal(store).load()


async def test_a_damaged_state_file_over_expired_entries_is_named() -> None:
    store = await filled(25)
    store.expire(0, 19)
    store.objects[state_key(PREFIX, 19)].body = b"x"

    with pytest.raises(JournalError, match=r"entries 10 to 19 are missing .* no good state file"):
        await journal(store).load()


async def test_an_entry_removed_in_the_middle_is_named() -> None:
    store = await filled(25)
    store.expire(22, 22)

    with pytest.raises(JournalError, match="entry 22 is missing"):
        await journal(store).load()


async def test_an_entry_that_a_listing_leaves_out_is_asked_for_by_name() -> None:
    store = await filled(25)
    store.unlisted |= {journal_key(PREFIX, seq) for seq in (20, 22, 24)}

    successor = await opened(store)

    assert successor.state.seq == 25


async def test_a_state_file_is_gone_on_from_where_its_own_entry_is_the_last_one() -> None:
    store = await filled(20)
    store.expire(0, 18)

    successor = await opened(store)

    assert (successor.state.seq, successor.state.epoch) == (20, 2)


@pytest.mark.parametrize(("entries", "first"), [(20, 0), (20, 7), (25, 0)])
async def test_a_state_file_without_its_entry_and_any_later_one_is_not_gone_on_from(
    entries: int, first: int
) -> None:
    # What stood behind it may be gone, too: five entries are, in the last case.
    store = await filled(entries)
    store.expire(first, entries - 1)

    with pytest.raises(JournalError, match=r"newest journal entries .* are gone") as caught:
        await journal(store).load()

    assert "docs/retention.md" in caught.value.hint


async def test_a_state_file_is_gone_on_from_where_its_archived_entry_is_the_last_one() -> None:
    store = await filled(20)
    store.archived |= {journal_key(PREFIX, seq) for seq in range(20)}

    successor = await opened(store)

    assert successor.state.seq == 20


async def test_state_files_without_anything_else_are_no_new_journal() -> None:
    store = await filled(20)
    store.expire(0, 19)
    for seq in (9, 19):
        store.objects[state_key(PREFIX, seq)].body = b"x"

    with pytest.raises(JournalError, match="gone"):
        await journal(store).load()


async def test_other_peoples_keys_between_ours_are_left_out() -> None:
    store = await filled(25)
    for name in ("000000000007.json.bak", "notes.txt", "7.json", "-00000000001.json"):
        store.objects[journal_folder(PREFIX) + name] = StoredObject(b"?", {})
        store.objects[f"{PREFIX}/_tailrace/state/{name}"] = StoredObject(b"?", {})

    successor = await opened(store)

    assert successor.state.seq == 25


async def test_the_journal_and_its_states_never_travel_in_parts() -> None:
    store = await filled(25)

    await opened(store)

    assert store.in_parts == []


# Long loads and slow pipelines, by a clock that does not wait


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    virtual = VirtualLoop()
    yield virtual
    virtual.dispose()


def on(loop: VirtualLoop, work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    loop.run_until_complete(main())


def test_entries_are_read_ahead_and_the_window_stays_full(loop: VirtualLoop) -> None:
    async def work() -> None:
        store = await filled(400)
        store.objects = {k: v for k, v in store.objects.items() if "/state/" not in k}
        reader = journal(store)
        store.seconds, progress = 0.02, []
        began = asyncio.get_running_loop().time()

        await reader.load(lambda: progress.append(1))

        seconds = asyncio.get_running_loop().time() - began
        assert reader.state.seq == 399
        assert len(progress) == 400
        assert store.reading_most == READS_AT_ONCE
        assert seconds < 0.02 * (400 / READS_AT_ONCE + 3)

    on(loop, work)


HOUR = 3600.0
BEGAN_US = 1_800_000_000_000_000


@dataclass
class TimedStore(RuledStore):
    """Its objects are made when the loop says so."""

    async def create(self, key: str, body: bytes, **others: Any) -> bool:
        self.now_us = wall_clock()
        return await super().create(key, body, **others)

    def states(self) -> list[str]:
        """The state files that are there."""
        return [key for key in sorted(self.objects) if "/state/" in key]

    def state_age(self) -> float:
        """How many hours old the newest one is."""
        return (wall_clock() - self.objects[self.states()[-1]].made_us) / 3.6e9


def wall_clock() -> int:
    return BEGAN_US + int(asyncio.get_running_loop().time() * 1e6)


@asynccontextmanager
async def kept(store: TimedStore, name: str = "a") -> AsyncIterator[Journal]:
    """A journal that was opened, and whose newest state file is kept young."""
    writer = journal(store, name)
    await writer.load()
    await writer.open(IDENTITY, CONFIGURATION, FIRST)
    async with asyncio.TaskGroup() as group:
        keeping = group.create_task(StateKeeper(writer, wall_clock, 6 * HOUR).run())
        yield writer
        keeping.cancel()


def test_a_slow_pipelines_entries_are_covered_within_a_quarter_of_a_day(loop: VirtualLoop) -> None:
    async def work() -> None:
        store = TimedStore()
        async with kept(store) as writer:
            for _ in range(4):
                await asyncio.sleep(3.5 * HOUR)
                await writer.append()

            assert store.states() == [state_key(PREFIX, 1), state_key(PREFIX, 3)]

            await asyncio.sleep(7 * HOUR)

            assert store.objects[store.states()[-1]].body == encode_state(writer.state)

    on(loop, work)


def test_the_newest_state_file_stays_young_where_nothing_is_journalled(loop: VirtualLoop) -> None:
    async def work() -> None:
        store = TimedStore()
        async with kept(store) as writer:
            await asyncio.sleep(6.1 * HOUR)
            for _ in range(20):
                await asyncio.sleep(5 * HOUR)
                assert store.state_age() <= 6

        # The first one folds the `open`. Each later one folds an entry of its own.
        assert store.states() == [state_key(PREFIX, seq) for seq in range(len(store.states()))]
        assert len(store.states()) == 17
        assert writer.state.seq == 16
        for seq in range(1, 17):
            assert decode_entry(store.objects[journal_key(PREFIX, seq)].body, "").kinds == ()

    on(loop, work)


def test_an_engine_that_starts_again_and_again_writes_a_state_file_in_time(
    loop: VirtualLoop,
) -> None:
    async def work() -> None:
        store, ages = TimedStore(), []
        for life in range(40):
            async with kept(store, f"life-{life}"):
                await asyncio.sleep(HOUR)
            if store.states():
                ages.append(store.state_age())

        assert len(ages) == 34
        assert max(ages) <= 6

    on(loop, work)


def test_a_standby_that_began_before_the_journal_writes_a_state_file_as_it_takes_over(
    loop: VirtualLoop,
) -> None:
    async def work() -> None:
        store = TimedStore()
        sight = Sight(wall_clock, 12 * HOUR)
        standby = Journal(
            store, PREFIX, Writer("b", "b", "test"), Metrics(CollectorRegistry()), sight=sight
        )
        await standby.load()
        writer = await opened(store)
        for _ in range(17):
            # The writer sleeps, and its standby looks.
            await asyncio.sleep(HOUR)
            await standby.follow()
        assert writer.state.epoch == standby.state.epoch
        assert store.states() == []

        await standby.open(IDENTITY, CONFIGURATION, FIRST)
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(StateKeeper(standby, wall_clock, 6 * HOUR).run())
            await asyncio.sleep(60)
            keeping.cancel()

        # The first entry would be gone in seven hours.
        assert len(store.states()) == 1

    on(loop, work)


def test_nothing_follows_the_entry_that_releases_the_journal(loop: VirtualLoop) -> None:
    async def work() -> None:
        store = TimedStore()
        async with kept(store) as writer:
            await writer.append(release=True)
            await asyncio.sleep(20 * HOUR)

            assert writer.state.released
            assert store.states() == []

    on(loop, work)


def test_a_keeper_notices_that_another_writer_went_on(loop: VirtualLoop) -> None:
    async def work() -> None:
        store = TimedStore()
        writer = journal(store)
        await writer.open(IDENTITY, CONFIGURATION, FIRST)
        keeping = StateKeeper(writer, wall_clock, 6 * HOUR).run()
        await opened(store)

        with pytest.raises(Superseded):
            # The first state file covers what is known; the next one needs an entry.
            await keeping

    on(loop, work)


# Who sleeps longer than entries live


async def left_behind(store: TimedStore) -> Journal:
    """A writer that slept through a successor's entries, and through their end."""
    sight = Sight(wall_clock, 12 * HOUR)
    writer = Journal(
        store, PREFIX, Writer("a", "a", "test"), Metrics(CollectorRegistry()), sight=sight
    )
    await writer.load()
    await writer.open(IDENTITY, CONFIGURATION, FIRST)
    successor = await opened(store)
    for _ in range(10):
        await successor.append()
    await asyncio.sleep(25 * HOUR)
    store.expire(1, 5)
    store.created.clear()
    return writer


@pytest.mark.parametrize(
    "deed",
    [
        lambda writer: writer.append(),
        lambda writer: writer.renew_state(),
        lambda writer: writer.open(IDENTITY, CONFIGURATION, FIRST),
        lambda writer: writer.tail_moved(),
        lambda writer: writer.follow(),
        lambda writer: writer.refuse_unseen(),
    ],
    ids=["append", "renew_state", "open", "tail_moved", "follow", "refuse_unseen"],
)
def test_nobody_goes_on_who_slept_longer_than_an_entry_may_live(
    loop: VirtualLoop, deed: Callable[[Journal], Coroutine[None, None, Any]]
) -> None:
    async def work() -> None:
        store = TimedStore()
        writer = await left_behind(store)

        with pytest.raises(JournalUnseen, match="for 25"):
            await deed(writer)

        assert store.created == []
        assert not store.objects.keys() & {journal_key(PREFIX, 1)}, "the hole stays one"

    on(loop, work)


def test_who_looks_now_and_then_goes_on_for_days(loop: VirtualLoop) -> None:
    async def work() -> None:
        store = TimedStore()
        sight = Sight(wall_clock, 12 * HOUR)
        writer = Journal(
            store, PREFIX, Writer("a", "a", "test"), Metrics(CollectorRegistry()), sight=sight
        )
        await writer.open(IDENTITY, CONFIGURATION, FIRST)

        for _ in range(5):
            await asyncio.sleep(11 * HOUR)
            assert not await writer.tail_moved()
        await asyncio.sleep(11 * HOUR)

        assert await writer.append() == 1

    on(loop, work)


def test_a_journal_that_is_read_anew_is_seen_however_long_ago_its_reader_began(
    loop: VirtualLoop,
) -> None:
    """So does a life after a failover, once its source answers."""

    async def work() -> None:
        store = TimedStore()
        await opened(store)
        sight = Sight(wall_clock, 12 * HOUR)
        reader = Journal(
            store, PREFIX, Writer("b", "b", "test"), Metrics(CollectorRegistry()), sight=sight
        )
        await asyncio.sleep(13 * HOUR)

        await reader.load()

        assert reader.state.seq == 0
        assert not sight.is_lost

    on(loop, work)


def test_a_bucket_that_is_out_of_reach_for_long_is_waited_for(loop: VirtualLoop) -> None:
    class OutStore(TimedStore):
        is_out = False

        async def create(self, key: str, body: bytes, **others: Any) -> bool:
            self._refuse()
            return await super().create(key, body, **others)

        async def get(self, key: str) -> bytes | None:
            self._refuse()
            return await super().get(key)

        def _refuse(self) -> None:
            if self.is_out:
                raise DestinationUnavailable("no route", code="Timeout")

    async def ended(appending: Coroutine[None, None, int]) -> Exception | None:
        try:
            await appending
        except JournalUnseen as error:
            return error
        return None

    async def work() -> None:
        store = OutStore()
        sight = Sight(wall_clock, 60)
        writer = Journal(
            store, PREFIX, Writer("a", "a", "test"), Metrics(CollectorRegistry()), sight=sight
        )
        await writer.open(IDENTITY, CONFIGURATION, FIRST)
        store.is_out = True

        async with asyncio.TaskGroup() as group:
            appending = group.create_task(ended(writer.append()))
            await asyncio.sleep(90)
            assert not appending.done()
            store.is_out = False

        assert isinstance(appending.result(), JournalUnseen)

    on(loop, work)


def test_an_engine_whose_source_is_silent_keeps_its_state_file_young(loop: VirtualLoop) -> None:
    async def work() -> None:
        source, stop, store = SyntheticSource(row_count=10), StopSignal(), TimedStore()
        entries: list[int] = []
        pipeline = Pipeline(
            source=source,
            store=store,
            clock=wall_clock,
            settings=make_settings(
                prefix=PREFIX,
                codec_version=1,
                limits=ChunkLimits(1 << 20, 1_000, 1.0),
                queue_bytes_max=1 << 20,
                memory_bytes_max=1 << 20,
                state_seconds=300.0,
            ),
            configuration=CONFIGURATION,
            writer=Writer("a", "a", "test"),
            metrics=Metrics(CollectorRegistry()),
            stop=stop,
        )

        async with asyncio.TaskGroup() as group:
            group.create_task(pipeline.run())
            await asyncio.sleep(60)
            for _ in range(6):
                await asyncio.sleep(300)
                assert store.state_age() <= 0.1
                entries.append(pipeline.status().seq)
            stop.request("test")

        assert entries == [entries[0] + number for number in range(6)], "nothing else was said"

    on(loop, work)


def test_a_start_is_not_cut_while_its_journal_gets_on(loop: VirtualLoop) -> None:
    async def work() -> None:
        source, stop = SyntheticSource(row_count=500 * ROWS_A_TRANSACTION), StopSignal()
        store = await filled(400, await source.identify())
        store.objects = {k: v for k, v in store.objects.items() if "/state/" not in k}
        store.seconds = 0.5
        pipeline = Pipeline(
            source=source,
            store=store,
            clock=lambda: 1_800_000_000_000_000,
            settings=make_settings(
                prefix=PREFIX,
                codec_version=1,
                limits=ChunkLimits(1 << 20, 1_000, 1.0),
                queue_bytes_max=1 << 20,
                memory_bytes_max=1 << 20,
                start_seconds_max=1.0,
            ),
            configuration=CONFIGURATION,
            writer=Writer("b", "b", "test"),
            metrics=Metrics(CollectorRegistry()),
            stop=stop,
        )

        async with asyncio.TaskGroup() as group:
            group.create_task(pipeline.run())
            await asyncio.sleep(30)
            assert pipeline.status().epoch == 2
            stop.request("test")

    on(loop, work)


@pytest.mark.parametrize(("hours", "is_refused"), [(23, False), (25, True)])
def test_a_start_is_refused_where_the_newest_entry_is_as_old_as_a_rule_lets_any_become(
    loop: VirtualLoop,
    hours: int,
    is_refused: bool,  # noqa: FBT001 - a parameter
) -> None:
    async def rules() -> tuple[BucketRule, ...]:
        return (BucketRule("short", "", (RuleAction(days=1),)),)

    async def work() -> None:
        source, stop, store = (
            SyntheticSource(row_count=101 * ROWS_A_TRANSACTION),
            StopSignal(),
            TimedStore(),
        )
        writer = journal(store)
        await writer.open(await source.identify(), CONFIGURATION, FIRST)
        await asyncio.sleep(hours * HOUR)
        pipeline = Pipeline(
            source=source,
            store=store,
            clock=wall_clock,
            settings=make_settings(
                prefix=PREFIX,
                codec_version=1,
                limits=ChunkLimits(1 << 20, 1_000, 1.0),
                queue_bytes_max=1 << 20,
                memory_bytes_max=1 << 20,
            ),
            configuration=CONFIGURATION,
            writer=Writer("b", "b", "test"),
            metrics=Metrics(CollectorRegistry()),
            stop=stop,
            bucket_rules=BucketRules(rules, PREFIX),
        )
        refusal = ""

        async def run() -> None:
            nonlocal refusal
            try:
                await pipeline.run()
            except JournalError as error:
                refusal = str(error)

        async with asyncio.TaskGroup() as group:
            group.create_task(run())
            await asyncio.sleep(10)
            stop.request("test")

        assert ('rule "short"' in refusal) == is_refused
        assert pipeline.status().epoch == (1 if is_refused else 2)

    on(loop, work)
