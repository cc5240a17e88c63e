"""What a start asks of a prefix before anything is made for it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import pytest

from databases import Database
from engine.journal.prefix import Prefix
from engine.model.errors import (
    DestinationRefused,
    ForeignPrefix,
    JournalError,
    TailraceError,
)
from engine.model.interfaces import ListedObject
from engine.model.layout import below, check_folder, journal_folder, journal_key, own_folder
from live_engine import PREFIX, LiveEngine
from memory_store import MemoryStore, StoredObject
from small_bucket import make_bucket


@dataclass
class GuardedStore(MemoryStore):
    """A bucket whose role may write only where `writable`, and list only under `listable`."""

    is_writable: bool = True
    is_create_only: bool = True
    listable: str = ""
    types: dict[str, str] = field(default_factory=dict)

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        if not self.is_writable:
            raise DestinationRefused(f"create {key}: AccessDenied", hint="grant s3:PutObject")
        if not self.is_create_only:
            self.objects.pop(key, None)
        self.types[key] = content_type
        return await super().create(key, body, content_type=content_type, metadata=metadata)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ListedObject]:
        if not prefix.startswith(self.listable):
            raise DestinationRefused(f"list {prefix}: AccessDenied")
        async for listed in super().list(prefix, after=after):
            yield listed


def at(store: MemoryStore, prefix: str) -> Prefix:
    return Prefix(store, prefix, lambda _: None)


def put(store: MemoryStore, *keys: str) -> None:
    for key in keys:
        store.objects[key] = StoredObject(b"{}", {})


# The right to write


async def test_the_right_to_write_is_proved_once_and_for_all() -> None:
    store = GuardedStore()

    await at(store, "lake").prove_write("write-1")
    await at(store, "lake").prove_write("write-1")

    assert list(store.objects) == [check_folder("lake") + "write-1"]
    assert set(store.types.values()) == {"application/x-ndjson"}, "as tables' objects are made"


async def test_a_store_that_overwrites_is_found_before_anything_is_made() -> None:
    store = GuardedStore(is_create_only=False)

    with pytest.raises(DestinationRefused, match="ignores If-None-Match"):
        await at(store, "lake").prove_write("write-1")


async def refused(engine: LiveEngine, kind: type[TailraceError]) -> TailraceError:
    """The error that a start ends with."""
    with pytest.RaisesGroup(pytest.RaisesExc(kind), flatten_subgroups=True) as caught:
        async with engine.living():
            # The group ends this as soon as the life has ended.
            await asyncio.sleep(30)
    [error] = caught.value.exceptions
    assert isinstance(error, kind)
    return error


def slots_and_publications(database: Database) -> tuple[int, int]:
    [(slots,)] = database.execute(
        "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
    )
    [(publications,)] = database.execute("SELECT count(*) FROM pg_publication")
    return slots, publications


async def test_a_role_that_may_only_read_leaves_neither_slot_nor_publication(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    engine = LiveEngine(any_database, store=GuardedStore(is_writable=False))

    error = await refused(engine, DestinationRefused)

    assert "AccessDenied" in str(error)
    assert slots_and_publications(any_database) == (0, 0)


# A journal that is gone


@pytest.mark.parametrize("layout", ["hive", "plain"])
async def test_tables_objects_without_a_journal_are_refused(layout: str) -> None:
    bucket = await make_bucket(layout=layout)  # type: ignore[arg-type]
    own = own_folder(bucket.prefix)
    store = bucket.store
    store.objects = {key: found for key, found in store.objects.items() if not key.startswith(own)}

    with pytest.raises(JournalError, match="no journal that names them") as caught:
        await at(store, bucket.prefix).refuse_orphans("shop")

    assert "restore" in caught.value.hint


async def test_other_peoples_objects_do_not_make_a_journal_miss() -> None:
    store = MemoryStore()
    neighbour = "database=shop/schema=public/table=orders/version=0001/schema.json"
    put(store, "lake/readme.txt", "lake/database=shop/notes.txt", f"lake-2/{neighbour}")
    put(store, f"lake/inner/{neighbour}", f"{check_folder('lake')}write", neighbour)

    await at(store, "lake").refuse_orphans("shop")


async def test_a_start_over_objects_whose_journal_is_gone_makes_nothing(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    store = GuardedStore()
    engine = LiveEngine(any_database, store=store)
    gone = "lake/database=other/schema=public/table=orders/version=0001/schema.json"
    put(store, gone)

    error = await refused(engine, JournalError)

    assert gone in str(error)
    assert list(store.objects) == [gone]
    assert slots_and_publications(any_database) == (0, 0)


# Prefixes inside each other


@pytest.mark.parametrize(
    ("mine", "theirs", "word"),
    [("p/b", "p", "inside"), ("p/b/c", "", "inside"), ("p", "p/b", "around"), ("", "p", "around")],
)
async def test_a_prefix_inside_another_ones_is_refused(mine: str, theirs: str, word: str) -> None:
    store = MemoryStore()
    put(store, journal_key(theirs, 0))

    with pytest.raises(ForeignPrefix, match=word) as caught:
        await at(store, mine).refuse_neighbours()

    assert repr(mine) in str(caught.value)
    assert repr(theirs) in str(caught.value)
    assert "prefix of its own" in caught.value.hint


async def test_prefixes_side_by_side_are_fine() -> None:
    store = MemoryStore()
    put(store, journal_key("photos-2026", 0), journal_key("q/b", 0), journal_key("p", 0))
    put(store, "p/_tailrace/journal/notes.txt", "p/x/_tailrace/journal/notes.txt")

    assert await at(store, "photos").neighbours() == ()
    assert await at(store, "p").neighbours() == ()
    assert await at(store, "q/c").neighbours() == ()


async def test_what_a_role_may_not_list_is_not_judged() -> None:
    store = GuardedStore(listable="p/b/")
    put(store, journal_key("p", 0))

    assert await at(store, "p/b").neighbours() == ()


async def test_a_start_inside_another_pipelines_prefix_makes_nothing(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    store = GuardedStore()
    put(store, f"{journal_folder('')}000000000000.json")

    await refused(LiveEngine(any_database, store=store), ForeignPrefix)

    assert slots_and_publications(any_database) == (0, 0)


async def test_a_pipeline_that_is_there_goes_on_beside_a_newcomer(any_database: Database) -> None:
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    store = GuardedStore()
    engine = LiveEngine(any_database, store=store)
    async with engine.living():
        pass
    put(store, journal_key(below(PREFIX) + "newcomer", 0))

    async with engine.living() as pipeline:
        assert pipeline.status().epoch == 2
