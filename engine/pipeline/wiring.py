"""Wiring: how the parts of one engine's life are put together. It happens here and nowhere else.

Strategy: `World` is what an engine is given from outside; the composition root makes it, and the
protocol's simulation makes another one. A life begins with `begin`, which knows nothing but the
configuration. Once the journal is ours, `streaming_parts` makes what reads, commits and publishes.

Invariant: parts know each other only by what they are given here. Nothing is looked up.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from engine.flow.budget import MemoryBudget
from engine.flow.ledger import Ledger
from engine.flow.reception import Doubt, Reception
from engine.flow.router import Router
from engine.journal.acceptance import Acceptance
from engine.journal.bucket_rules import BucketRules
from engine.journal.committer import Committer
from engine.journal.completer import Completer
from engine.journal.entry import JournalState, Writer
from engine.journal.gaps import GapRegister
from engine.journal.initial import StreamWait
from engine.journal.journal import Journal, random_nonce
from engine.journal.lanes import Lanes
from engine.journal.lease import Lease
from engine.journal.object_lists import ObjectLists
from engine.journal.pauses import PauseRegister
from engine.journal.planner import Planner
from engine.journal.publisher import Publisher
from engine.journal.recovery import Recovery
from engine.journal.requests import RequestRegister, RequestWatch, SnapshotDeeds
from engine.journal.retry import Failure, Patience
from engine.journal.schedule import AppendSchedule
from engine.journal.schema_files import SchemaFiles
from engine.journal.settings import Settings
from engine.journal.sight import Sight
from engine.journal.signals import SignalRegister
from engine.journal.snapshots import SnapshotRegister
from engine.journal.state_keeper import StateKeeper
from engine.journal.watcher import Watcher
from engine.model.errors import InvariantBroken
from engine.model.interfaces import ChangeStream, Clock, ObjectStore, Publishing, Source
from engine.model.layout import TableLayout
from engine.model.log_point import LogPoint
from engine.model.position import Position, behind, commit_of
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.model.table_shape import TEXTS
from engine.model.trial import Trial, Trials
from engine.operate.activity import Activity
from engine.operate.alarms import Alarms
from engine.operate.events import Events
from engine.operate.metrics import Metrics
from engine.operate.retention import RetentionWatch
from engine.operate.status import Phase, SnapshotsStatus

Enter = Callable[[Phase], None]
"""Who is told that the engine enters a phase."""


TakeSnapshots = Callable[[SnapshotRegister, str], Coroutine[None, None, None]]
"""Takes the snapshots that the register needs of that database, until it is cancelled."""

SnapshotProgress = Callable[[float], SnapshotsStatus]
"""How far those have come that are being taken, at that time of the loop."""


@dataclass(frozen=True, slots=True)
class World:
    """What an engine is given from outside, for all of its lives.

    `store_identity`: who this process is to the bucket. `store_trials`: what else `check` tries.
    """

    source: Source
    store: ObjectStore
    clock: Clock
    settings: Settings
    configuration: RecordConfiguration
    writer: Writer
    metrics: Metrics
    alarms: Alarms
    make_nonce: Callable[[], str] | None = None
    take_snapshots: TakeSnapshots | None = None
    snapshot_progress: SnapshotProgress | None = None
    publishing: Publishing | None = None
    bucket_rules: BucketRules | None = None
    store_trials: Trials | None = None
    store_identity: Trial | None = None
    activity: Activity = field(default_factory=Activity)
    retention: RetentionWatch = field(default_factory=RetentionWatch)

    @property
    def events(self) -> Events:
        """What happened to this engine lately."""
        return self.alarms.events

    def __post_init__(self) -> None:
        """Raise InvariantBroken where the metrics were made for another kind of source."""
        if self.metrics.measures != self.source.measures:
            raise InvariantBroken("the metrics do not declare what the source measures")


@dataclass(frozen=True, slots=True)
class Life:
    """One life: from reading the journal anew to a good end, or to a source that failed over."""

    world: World
    journal: Journal
    lease: Lease
    enter: Enter


def begin(world: World, enter: Enter) -> Life:
    """A life that knows nothing yet."""
    sight = Sight(world.clock, world.settings.unseen_seconds_max)
    journal = Journal(
        world.store,
        world.settings.prefix,
        world.writer,
        world.metrics,
        world.make_nonce,
        sight=sight,
    )
    lease = Lease(
        world.source,
        journal,
        standby_interval=world.settings.standby_interval,
        on_phase=enter,
        alarms=world.alarms,
    )
    return Life(world, journal, lease, enter)


def recovery(life: Life, group: asyncio.TaskGroup, on_pass: Callable[[], None]) -> Recovery:
    """What makes missing objects again; its requests run in `group`."""
    visibility = _visibility(life, group)
    return Recovery(
        journal=life.journal,
        lease=life.lease,
        publisher=_publisher(life, visibility),
        lanes=visibility.lanes,
        settings=life.world.settings,
        on_pass=on_pass,
    )


def state_keeper(life: Life) -> StateKeeper:
    """What keeps the newest state file young."""
    return StateKeeper(life.journal, life.world.clock, life.world.settings.state_seconds)


def acceptance(life: Life, redoing: Recovery) -> Acceptance:
    """What ends a loss that is being accepted."""
    return Acceptance(
        journal=life.journal,
        lease=life.lease,
        recovery=redoing,
        configuration=life.world.configuration,
        clock=life.world.clock,
    )


class Reader:
    """The connection that is read just now: None while there is none."""

    def __init__(self) -> None:
        self.stream: ChangeStream | None = None

    def acknowledge(self, point: LogPoint) -> None:
        """Tell the source that it may forget what is before `point`. Never waits."""
        if self.stream is not None:
            self.stream.acknowledge(point)


@dataclass(frozen=True, slots=True)
class Flow:
    """What takes rows from the socket up to cut chunks."""

    ledger: Ledger
    gaps: GapRegister
    budget: MemoryBudget
    schedule: AppendSchedule
    router: Router
    reception: Reception
    snapshots: SnapshotRegister
    watcher: Watcher
    initial: StreamWait
    pauses: PauseRegister


@dataclass(frozen=True, slots=True)
class Visibility:
    """What everybody shares who makes objects visible."""

    lanes: Lanes
    schema_files: SchemaFiles
    lists: ObjectLists
    patience: Patience


@dataclass(frozen=True, slots=True)
class StreamingParts:
    """What streams: from the socket to the journal's entries and the visible objects."""

    database: str
    reader: Reader
    flow: Flow
    visibility: Visibility
    publisher: Publisher
    snapshots: SnapshotRegister
    completer: Completer
    requests: RequestWatch
    signals: SignalRegister
    committer: Committer


def streaming_parts(life: Life, database: str, group: asyncio.TaskGroup) -> StreamingParts:
    """Parts that begin where the journal ends; its `open` has to be ours already."""
    world = life.world
    reader, flow, visibility = Reader(), _flow(life), _visibility(life, group)
    publisher = _publisher(life, visibility)
    completer = Completer(
        store=world.store,
        journal=life.journal,
        register=flow.snapshots,
        lanes=visibility.lanes,
        schema_files=visibility.schema_files,
        lists=visibility.lists,
        patience=visibility.patience,
        prefix=world.settings.prefix,
        group=group,
    )
    deeds = SnapshotDeeds(life.journal.state, flow.snapshots, world.configuration).by_kind
    signals = SignalRegister(
        state=life.journal.state,
        deeds=deeds,
        clock=world.clock,
        wake=flow.schedule.wake,
        count=world.metrics.signal,
    )
    requests = RequestRegister(
        state=life.journal.state,
        # Whoever stops the stream by a signal could not start it by one.
        deeds={**deeds, **flow.pauses.by_kind},
        clock=world.clock,
        wake=flow.schedule.wake,
    )
    looking = RequestWatch(
        store=world.store,
        prefix=world.settings.prefix,
        register=requests,
        clock=world.clock,
        interval=world.settings.requests_interval,
    )
    layout = TableLayout(world.settings.prefix, database, world.configuration.layout)
    committer = Committer(
        journal=life.journal,
        ledger=flow.ledger,
        gaps=flow.gaps,
        watcher=flow.watcher,
        planner=_planner(life, flow, layout),
        schedule=flow.schedule,
        router=flow.router,
        publisher=publisher,
        lanes=visibility.lanes,
        snapshots=flow.snapshots,
        completer=completer,
        requests=requests,
        signals=signals,
        pauses=flow.pauses,
        initial=flow.initial,
        layout=layout,
        settings=world.settings,
        clock=world.clock,
        metrics=world.metrics,
        activity=world.activity,
        events=world.events,
        acknowledge=reader.acknowledge,
    )
    return StreamingParts(
        database,
        reader,
        flow,
        visibility,
        publisher,
        flow.snapshots,
        completer,
        looking,
        signals,
        committer,
    )


def _flow(life: Life) -> Flow:
    world, state = life.world, life.journal.state
    settings, configuration = world.settings, world.configuration
    streamed = state.frontiers.keys() | state.begins.keys()
    ledger = Ledger({TableName.parse(name): state.stream_begin(name) for name in streamed})
    gaps = GapRegister(state, world.clock)
    budget = MemoryBudget(settings.memory_bytes_max)
    world.metrics.queue_capacity(settings.memory_bytes_max)
    schedule = AppendSchedule(settings.append_interval)
    router = Router(
        queue_bytes_max=settings.queue_bytes_max,
        limits=settings.limits,
        compression=configuration.compression,
        budget=budget,
        on_cut=schedule.wake,
        on_waiting=schedule.hurry,
    )
    reception = Reception(
        journalled=state.versions,
        durable=lambda: state.durable_position,
        ledger=ledger,
        configuration=configuration,
        is_stream_waiting=state.stream_waits,
        on_doubt=_doubting(state, gaps),
    )
    snapshots = SnapshotRegister(
        state=state,
        gaps=gaps,
        reception=reception,
        configuration=configuration,
        clock=world.clock,
        lists=lists(life),
        events=world.events,
        wake=schedule.wake,
    )
    watcher = Watcher(
        state=state,
        gaps=gaps,
        snapshots=snapshots,
        ledger=ledger,
        reception=reception,
        configuration=configuration,
        alarms=world.alarms,
        metrics=world.metrics,
        interval=settings.watch_interval,
        wake=schedule.wake,
        # Without a snapshot the rows that such a table has would be missing.
        publishing=world.publishing if configuration.snapshot != "never" else None,
    )
    initial = StreamWait(state, snapshots, watcher)
    pauses = PauseRegister(
        state=state,
        gaps=gaps,
        snapshots=snapshots,
        ledger=ledger,
        configuration=configuration,
        clock=world.clock,
        alarms=world.alarms,
        wake=schedule.wake,
    )
    reception.gate = pauses
    return Flow(
        ledger, gaps, budget, schedule, router, reception, snapshots, watcher, initial, pauses
    )


def _doubting(state: JournalState, gaps: GapRegister) -> Doubt:
    """What becomes of a version under which rows from before read otherwise: a gap that ended."""

    def doubt(table: TableName, first: Position, reason: str) -> None:
        gaps.state_up_to(
            str(table),
            after=state.durable_position,
            until=behind(commit_of(first)),
            reason=reason,
            text=TEXTS[reason],
        )

    return doubt


def _planner(life: Life, flow: Flow, layout: TableLayout) -> Planner:
    world = life.world
    return Planner(
        state=life.journal.state,
        ledger=flow.ledger,
        reception=flow.reception,
        configuration=world.configuration,
        layout=layout,
        codec_version=world.settings.codec_version,
        clock=world.clock,
        is_stream_waiting=flow.initial.is_waited_for,
    )


def lists(life: Life) -> ObjectLists:
    """The lists that the journal's entries name."""
    world = life.world
    return ObjectLists(
        world.store, world.settings.prefix, _patience(life), world.make_nonce or random_nonce
    )


def _patience(life: Life) -> Patience:
    def failed(error: Failure) -> None:
        life.world.metrics.publish_error(error.code, retryable=error.retryable)

    return Patience(failed)


def _visibility(life: Life, group: asyncio.TaskGroup) -> Visibility:
    world, patience = life.world, _patience(life)
    return Visibility(
        Lanes(group, world.settings.concurrency),
        SchemaFiles(world.store, life.journal, patience, world.settings.schema_seconds),
        lists(life),
        patience,
    )


def _publisher(life: Life, visibility: Visibility) -> Publisher:
    world = life.world
    return Publisher(
        store=world.store,
        journal=life.journal,
        clock=world.clock,
        observer=world.metrics,
        lanes=visibility.lanes,
        schema_files=visibility.schema_files,
        patience=visibility.patience,
    )
