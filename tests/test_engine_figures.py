"""The figures of `/status`: each 0, empty or None exactly where it should be, and all bounded."""

import asyncio
import math
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from engine.config import Address
from engine.journal.entry import Agreed, Frontier, JournalState, Watch
from engine.model.errors import DestinationUnavailable
from engine.model.log_point import LogPoint
from engine.model.position import NOWHERE, LogPosition
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.operate import activity as activity_module
from engine.operate.activity import Activity
from engine.operate.alarms import Alarm, Alarms
from engine.operate.bucket_watch import STALLED_SECONDS, BucketStatus, BucketWatch, WatchedStore
from engine.operate.events import EVENTS_MAX, Events
from engine.operate.history import SAMPLES_MAX, Recorder, Totals
from engine.operate.lag import NOTHING, UNKNOWN, Amount, Lag, Reading
from engine.operate.process_memory import resident_bytes
from engine.operate.retention import RetentionWatch
from engine.operate.rights_watch import RightsWatch
from engine.operate.status import STALLED_BAD_SECONDS, Status
from engine.operate.summary import summary
from engine.pipeline.observer import Observer
from engine.pipeline.tables import CapturedTables, Live
from memory_store import MemoryStore

SECOND = 1_000_000
BEGIN = 1_800_000_000 * SECOND


def at(log: int, seconds: float = 0.0) -> LogPoint:
    return LogPoint(LogPosition(f"0001.{log:016X}"), str(log), BEGIN + int(seconds * SECOND))


def distance(first: LogPoint, second: LogPoint) -> int:
    return max(0, int(second.resume) - int(first.resume))


def lag_of(
    *,
    read: LogPoint | None = None,
    end: LogPoint | None = None,
    waiting_since: float | None = None,
    is_connected: bool = True,
    is_held: bool = False,
) -> Lag:
    """A hundred seconds after the durable point, which is at 100 of the log."""
    return Reading(
        now_us=BEGIN + 100 * SECOND,
        durable=at(100),
        read=read,
        end=end,
        waiting_since_us=None if waiting_since is None else BEGIN + int(waiting_since * SECOND),
        is_connected=is_connected,
        is_held=is_held,
    ).lag(distance)


# --- lag


def test_an_idle_source_that_nobody_has_read_from_yet_has_no_lag() -> None:
    assert lag_of(end=at(100)) == Lag(NOTHING, NOTHING)


def test_log_behind_what_was_read_is_unread_and_not_undurable() -> None:
    assert lag_of(read=at(150, 40), end=at(400, 99)) == Lag(Amount(60.0, 250), NOTHING)


def test_rows_that_were_read_are_undurable_and_not_unread() -> None:
    lag = lag_of(read=at(150, 90), end=at(150), waiting_since=90)

    assert lag == Lag(NOTHING, Amount(10.0, 50)), "not since the durable point, which is idle's"


def test_the_durable_place_that_moved_on_is_nearer_to_the_oldest_change_that_waits() -> None:
    assert lag_of(read=at(150, 90), end=at(150), waiting_since=-500).durable.seconds == 100.0


@pytest.mark.parametrize("end", [None, at(150)])
def test_without_a_connection_something_may_wait(end: LogPoint | None) -> None:
    assert lag_of(read=at(150, 40), end=end, is_connected=False).unread == Amount(60.0, None)


def test_before_the_first_look_nobody_knows_what_is_unread() -> None:
    assert lag_of(read=at(150, 40)).unread == UNKNOWN


def test_what_is_read_while_the_stream_is_held_counts_as_unread() -> None:
    assert lag_of(read=at(150, 90), end=at(150, 99), is_held=True).unread == Amount(100.0, 50)


def test_a_source_whose_clock_is_ahead_gives_no_negative_lag() -> None:
    assert lag_of(read=at(150, 900), end=at(400, 999)).unread == Amount(0.0, 250)


# --- the last hour


def test_rates_are_those_between_two_samples_and_the_first_has_none() -> None:
    recorder = Recorder()
    recorder.sample(BEGIN, Totals(1000, 50, 10), Lag())
    recorder.sample(BEGIN + 10 * SECOND, Totals(1500, 50, 110), Lag(Amount(1.25), NOTHING))

    history = recorder.history()

    assert history.times_us == (BEGIN + 10 * SECOND,)
    assert history.rows_per_second == (50.0,)
    assert history.snapshot_rows_per_second == (0.0,)
    assert history.bytes_per_second == (10.0,)
    assert (history.lag_seconds, history.durable_lag_seconds) == ((1.2,), (0.0,))


def test_an_hour_is_kept_and_no_more() -> None:
    recorder = Recorder()
    for number in range(SAMPLES_MAX + 10):
        recorder.sample(BEGIN + number * 10 * SECOND, Totals(number), Lag())

    history = recorder.history()

    assert len(history.times_us) == len(history.rows_per_second) == SAMPLES_MAX
    assert history.times_us[-1] - history.times_us[0] == (SAMPLES_MAX - 1) * 10 * SECOND
    assert history.lag_seconds == (None,) * SAMPLES_MAX


# --- events


def test_the_newest_events_are_kept_with_short_texts() -> None:
    events = Events(lambda: BEGIN)
    for number in range(EVENTS_MAX + 5):
        events.happened("gap", f"{number} " + "x" * 10_000, subject="public.a")

    newest = events.newest()

    assert len(newest) == EVENTS_MAX
    assert newest[-1].text.startswith(f"{EVENTS_MAX + 4} x")
    assert all(len(each.text) <= 500 for each in newest)


def test_alarms_that_begin_and_end_are_events() -> None:
    alarms = Alarms(lambda: BEGIN)
    alarms.set("gap", "rows are missing", subject="public.a")
    alarms.set("gap", "rows are missing, more of them", subject="public.a")
    alarms.clear("gap", "public.a")
    alarms.clear("gap", "public.a")

    told = [(event.kind, event.subject, event.text) for event in alarms.events.newest()]
    assert told == [
        ("alarm", "public.a", "gap: rows are missing"),
        ("alarm-over", "public.a", "gap is over"),
    ]


# --- tables


def table(number: int) -> TableName:
    return TableName("public", f"t{number:05}")


def test_the_busiest_tables_come_first_and_a_rate_ends_with_its_rows() -> None:
    activity = Activity()
    activity.tick(BEGIN)
    activity.rows(table(1), 1000)
    activity.rows(table(2), 20)
    activity.tick(BEGIN + 10 * SECOND)
    activity.rows(table(2), 50)
    activity.tick(BEGIN + 20 * SECOND)

    busy, quiet = activity.busiest(2)

    assert (busy.table, busy.rows_per_second, busy.rows_total) == (table(2), 5.0, 70)
    assert (quiet.table, quiet.rows_per_second, quiet.rows_total) == (table(1), 0.0, 1000)
    assert activity.rows_total == 1070


def test_the_newest_object_of_a_table_is_kept() -> None:
    activity = Activity()
    activity.visible(table(1), "a", 100, BEGIN)
    activity.visible(table(1), "b", 50, BEGIN + SECOND)

    [found] = activity.busiest(10)
    assert (found.last_object, found.last_object_us, found.objects_total) == (
        "b",
        BEGIN + SECOND,
        2,
    )
    assert (activity.objects_total, activity.bytes_total) == (2, 150)


def test_tables_that_were_touched_least_recently_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(activity_module, "TABLES_MAX", 3)
    activity = Activity()
    for number in (1, 2, 3, 1, 4):
        activity.rows(table(number), 1)
    activity.tick(BEGIN)

    assert {each.table for each in activity.busiest(10)} == {table(1), table(3), table(4)}
    assert activity.rows_total == 5


# --- how much log is retained


def test_the_time_left_is_what_is_there_at_the_rate_at_which_it_shrinks() -> None:
    watch = RetentionWatch()
    watch.looked(BEGIN, 1000, 9000)
    watch.looked(BEGIN + 15 * SECOND, 1500, 8500)

    assert watch.newest is not None
    assert (watch.newest.limit, watch.newest.left) == (10_000, 8500)
    assert watch.newest.seconds_left == 255.0


def test_room_that_does_not_shrink_lasts() -> None:
    watch = RetentionWatch()
    watch.looked(BEGIN, 1000, 9000)
    watch.looked(BEGIN + 15 * SECOND, 1000, 9000)

    assert watch.newest is not None
    assert watch.newest.seconds_left is None


def test_a_rate_is_that_of_the_last_minutes() -> None:
    watch = RetentionWatch()
    watch.looked(BEGIN, 0, 1_000_000)
    for number in range(1, 40):
        watch.looked(BEGIN + (1000 + number * 15) * SECOND, 0, 9000)

    assert watch.newest is not None
    assert watch.newest.seconds_left is None


def test_a_source_without_a_limit_has_none() -> None:
    watch = RetentionWatch()
    watch.looked(BEGIN, 4096, math.inf)

    assert watch.newest is not None
    assert (watch.newest.retained, watch.newest.limit, watch.newest.left) == (4096, None, None)


# --- the bucket


class Clock:
    def __init__(self) -> None:
        self.now_us = BEGIN

    def __call__(self) -> int:
        return self.now_us

    def pass_seconds(self, seconds: float) -> None:
        self.now_us += int(seconds * SECOND)


UNAVAILABLE = DestinationUnavailable("put lake/a: timed out", hint="Look at the network.")


def test_a_request_without_an_answer_is_a_stall_after_some_seconds_and_no_longer() -> None:
    clock = Clock()
    watch = BucketWatch(clock, name="lake", prefix="shop")
    assert watch.status().state == "unknown"
    with watch.request():
        clock.pass_seconds(1)
    assert watch.status().state == "good"

    with watch.request():
        clock.pass_seconds(STALLED_SECONDS - 1)
        before = watch.status()
        clock.pass_seconds(1)
        during = watch.status()
    after = watch.status()

    assert (before.state, before.is_stalled) == ("good", False)
    assert (during.state, during.is_stalled, during.requests) == ("silent", True, 1)
    assert during.text == "the bucket has not answered for 5 s"
    assert during.last_success_us == BEGIN + SECOND
    assert (after.state, after.requests, after.waiting_seconds) == ("good", 0, 0.0)


def test_a_failure_is_a_stall_only_where_it_goes_on() -> None:
    clock = Clock()
    watch = BucketWatch(clock)

    fail(watch)
    once = watch.status()
    clock.pass_seconds(STALLED_SECONDS)
    fail(watch)
    again = watch.status()
    with watch.request():
        pass

    assert (once.state, once.error) == ("slow", "put lake/a: timed out")
    assert again.state == "failing"
    assert again.text == "requests to the bucket have failed for 5 s: put lake/a: timed out"
    assert again.hint == "Look at the network."
    assert watch.status() == BucketStatus(state="good", last_success_us=clock.now_us)


def test_one_failure_that_nobody_asks_again_after_is_no_stall() -> None:
    clock = Clock()
    watch = BucketWatch(clock)
    with watch.request():
        pass

    fail(watch)
    clock.pass_seconds(2 * STALLED_SECONDS)
    alone = watch.status()
    with watch.request():
        asked = watch.status()

    assert (alone.state, alone.is_stalled, alone.waiting_seconds) == ("slow", False, 0.0)
    assert (asked.state, asked.waiting_seconds) == ("failing", 2 * STALLED_SECONDS)


def fail(watch: BucketWatch) -> None:
    with pytest.raises(DestinationUnavailable), watch.request():
        raise UNAVAILABLE


def test_a_slow_request_beside_others_that_succeed_is_no_stall() -> None:
    clock = Clock()
    watch = BucketWatch(clock)

    with watch.request():
        for _ in range(10):
            clock.pass_seconds(STALLED_SECONDS - 1)
            with watch.request():
                pass
            assert watch.status().state == "good"


def test_a_cancelled_request_says_nothing_of_the_bucket() -> None:
    watch = BucketWatch(Clock())

    with pytest.raises(asyncio.CancelledError), watch.request():
        raise asyncio.CancelledError

    assert watch.status() == BucketStatus()


async def test_every_request_passes_the_watch_unchanged() -> None:
    store, watch = MemoryStore(), BucketWatch(Clock())
    watched = WatchedStore(store, watch, RightsWatch(Clock(), Alarms(Clock())))

    assert await watched.create("lake/a", b"1", content_type="text/plain", metadata={"a": "b"})
    upload = await watched.begin_upload("lake/b", content_type="text/plain", metadata={})
    part = await watched.put_part("lake/b", upload, 1, b"2")

    assert await watched.get("lake/a") == b"1"
    assert (await watched.head("lake/a")) == (await store.head("lake/a"))
    assert (await watched.tail("lake/a", 1)) == (await store.tail("lake/a", 1))
    assert await watched.folders("lake/") == await store.folders("lake/")
    assert [each async for each in watched.list("lake/")] == [e async for e in store.list("lake/")]
    assert [each.key async for each in watched.list_uploads("lake/")] == ["lake/b"]
    assert part.number == 1
    assert await watched.abort_upload("lake/b", upload)
    assert watch.status().state == "good"


def test_a_bucket_that_does_not_answer_is_not_a_green_dot() -> None:
    silent = BucketStatus(state="silent", waiting_seconds=7)
    long = BucketStatus(state="failing", waiting_seconds=STALLED_BAD_SECONDS, error="403")

    short_status = Status(phase="streaming", since_us=1, bucket=silent)
    long_status = Status(phase="streaming", since_us=1, bucket=long)

    assert short_status.is_ready
    assert short_status.health == "wait"
    assert short_status.health_reason == "the bucket has not answered for 7 s"
    assert long_status.health == "bad"
    assert long_status.health_reason == "requests to the bucket have failed for 60 s: 403"


def test_the_reason_of_a_health_names_the_oldest_alarm_and_how_many_more() -> None:
    alarm = Alarm("gap", "public.a", "rows are missing", "", 1)

    status = Status(phase="streaming", since_us=1, alarms=(alarm,), alarms_total=3)

    assert status.health_reason == "public.a: rows are missing; 2 more alarms"
    assert Status(phase="streaming", since_us=1).health_reason == ""
    assert Status(phase="opening", since_us=1).health_reason == "the journal is being opened"


# --- who looks


def observer_of(clock: Callable[[], int], watch: BucketWatch, events: Events) -> Observer:
    return Observer(
        clock=clock,
        bucket=watch,
        activity=Activity(),
        events=events,
        lag=Lag,
        snapshot_rows=lambda: 0,
    )


def test_a_stall_of_the_bucket_is_told_once_and_so_is_its_end() -> None:
    clock = Clock()
    watch, events = BucketWatch(clock), Events(clock)
    observer = observer_of(clock, watch, events)

    with watch.request():
        for _ in range(20):
            clock.pass_seconds(1)
            observer.tick()
    observer.tick()
    observer.tick()

    assert [(event.kind, event.text) for event in events.newest()] == [
        ("bucket-stalled", "the bucket has not answered for 5 s"),
        ("bucket-back", "the bucket answers again after 20 s"),
    ]


def test_a_sample_is_taken_each_ten_seconds() -> None:
    clock = Clock()
    observer = observer_of(clock, BucketWatch(clock), Events(clock))

    for _ in range(31):
        observer.tick()
        clock.pass_seconds(1)

    times = observer.history().times_us
    assert [each - BEGIN for each in times] == [10 * SECOND, 20 * SECOND, 30 * SECOND]


def test_the_process_has_some_memory() -> None:
    assert 10_000_000 < resident_bytes() < 10_000_000_000


def test_a_summary_says_what_happened_and_what_is_wrong() -> None:
    before = Status(phase="streaming", since_us=1, rows_total=100, objects_total=1, bytes_total=10)
    quiet = replace(before, durable_lag_seconds=0.0, lag_seconds=0.0)
    busy = replace(
        before,
        rows_total=61_300,
        objects_total=4,
        bytes_total=3_000_010,
        durable_lag_seconds=12.4,
        lag_seconds=130.0,
        bucket=BucketStatus(state="silent", waiting_seconds=7),
    )

    assert summary(before, quiet, 60.0) == (
        "0 rows in 60 seconds; 0 objects of 0 B published; everything read is durable; everything"
        " written is read"
    )
    assert summary(before, busy, 60.0) == (
        "61,200 rows in 60 seconds; 3 objects of 2.9 MiB published; the oldest change that is not"
        " durable is 12 seconds old; reading is 2 minutes behind;"
        " the bucket has not answered for 7 s"
    )


def test_a_terminal_is_told_each_minute_and_others_never() -> None:
    clock = Clock()
    observer = observer_of(clock, BucketWatch(clock), Events(clock))
    with capture_logs() as lines:
        for _ in range(120):
            observer.tick()
        untold = len(lines)
        observer.summarize(lambda: Status(phase="streaming", since_us=1))
        for _ in range(120):
            observer.tick()

    assert untold == 0
    assert [line["event"] for line in lines] == ["summary", "summary"]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://localhost:9464/"),
        ("::", "http://localhost:9464/"),
        ("127.0.0.1", "http://127.0.0.1:9464/"),
        ("::1", "http://[::1]:9464/"),
    ],
)
def test_a_url_is_one_that_can_be_asked(host: str, url: str) -> None:
    assert Address(host, 9464).url == url


# --- which tables are listed


def captured_of(activity: Activity, count: int) -> CapturedTables:
    state = JournalState()
    state.frontiers = {str(table(number)): Frontier(NOWHERE, "") for number in range(count)}
    state.frontiers["elsewhere.t"] = Frontier(NOWHERE, "")
    configuration = RecordConfiguration(through="t", tables=("public.*",))
    return CapturedTables(state, configuration, activity)


def test_paused_tables_are_listed_first_then_the_busiest_then_the_others() -> None:
    activity = Activity()
    activity.tick(BEGIN)
    for number, row_count in ((7, 10), (3, 1000), (5, 100)):
        activity.rows(table(number), row_count)
    activity.tick(BEGIN + 10 * SECOND)
    captured = captured_of(activity, 9)
    live = Live(lambda name: 42 if name == table(3) else 0, (str(table(8)),), ())

    shown = captured.shown(live, 6)

    numbers = [int(each.table[-5:]) for each in shown]
    assert numbers == [8, 3, 5, 7, 0, 1]
    assert [each.is_paused for each in shown] == [True, *[False] * 5]
    assert [each.queue_bytes for each in shown] == [0, 42, 0, 0, 0, 0]
    assert len(captured.names()) == 9, "one more is known, and not captured"


def test_tables_that_the_journal_learns_of_are_counted() -> None:
    captured = captured_of(Activity(), 2)
    before = len(captured.names())

    captured._state.versions["public.new"] = ()

    assert (before, len(captured.names())) == (2, 3)


def test_a_table_that_takes_the_place_of_another_is_listed() -> None:
    captured = captured_of(Activity(), 0)
    whole = Agreed("1")
    captured._state.watch = Watch("t", "s", tables={"public.old": whole})
    before = captured.names()

    captured._state.watch = Watch("t", "s", tables={"public.new": whole})

    assert (before, captured.names()) == (("public.old",), ("public.new",))
