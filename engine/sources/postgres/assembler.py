"""From frames to batches: the part of a stream that knows no socket.

Strategy: `drain` lets the frame reader run. The frame reader hands rows to the tuple reader in
compiled code. It stops for everything that takes longer: an unbound relation, a full buffer, the
end of an hour, a control message.

A frame is handled wholly or not at all. A frame that needs the catalog is kept, `drain` says which
tables to look up, and the next `drain` begins with that frame. So awaiting in between changes no
order.

The batcher binds a relation when its first wanted row comes. It lets go of the relation when the
stream shows that it changed, or when another relation takes its name. Relations are known by OID,
versions and batches by name, and a name passes from one OID to another and back: a table is renamed
away, another one is made under its name and dropped, and the first one is renamed back. The name
under which a table's rows come is told at the first row after it may have changed, also where the
rows are passed over.

Where the stream does not show a table's key, the catalog's word about it is a guess at first. The
batcher asks again when that word is no guess any more, and when it changes.

The line writer counts rows that are not wanted as well. A position's last part counts all changes
of the table, wanted or not. Otherwise a replay would number the wanted ones differently.

Invariant: the boundary only grows, and everything before it is in this intake or an earlier one.
"""

import enum
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from engine.lines.batcher import Batcher
from engine.lines.writer import LineWriter
from engine.model.batch import Boundary, Intake, Leaf, LeftOut, Moved, Named, Signal
from engine.model.errors import DecodeError, InvariantBroken, JournalError, UnrepresentableRow
from engine.model.hash_key import NO_HASH_KEY, HashKey
from engine.model.history import Judge, Landmark
from engine.model.position import NOWHERE, Position, commit_of, log_position, make_position
from engine.model.record import RecordConfiguration
from engine.model.request import REQUEST_BYTES_MAX
from engine.model.schema import Decide, Relation, TableName, TableVersion
from engine.sources.postgres.catalog import Catalog, shows_key
from engine.sources.postgres.frames import (
    BUDGET,
    CONTROL,
    EMPTY,
    END,
    FAILED,
    FULL,
    HOUR,
    FrameReader,
    Frames,
)
from engine.sources.postgres.log_messages import (
    MESSAGES_OID,
    insert_frame,
    is_transactional,
    messages_relation,
)
from engine.sources.postgres.lsn import Lsn, format_lsn, log_point
from engine.sources.postgres.pgoutput import (
    HEADER_SIZE,
    MessageHead,
    RelationMessage,
    Truncate,
    XLogData,
    decode_frame,
    decode_message,
    decode_message_head,
)
from engine.sources.postgres.tuples import TupleReader
from engine.sources.postgres.types import column_form

ROWS_MAX: Final = 1_000_000_000
"""Rows of one batch, where nobody asks for fewer."""

SIGNAL_PREFIX: Final = b"tailrace"
"""The prefix of the logical messages that are meant for the engine."""

LEFT_OUT: Final = -1
"""A reason beside those of the frame reader: a row was left out."""

_NEVER: Final = Lsn(1 << 64)

_CUT_OFF: Final = MessageHead(is_transactional=True, prefix=b"\0", size=-1, content=b"")
"""A message whose prefix alone is longer than what is handed out."""


class Drained(enum.Enum):
    """Why a drain stopped."""

    EMPTY = enum.auto()
    """No whole frame is left."""
    BUDGET = enum.auto()
    """There may be more; the loop gets a turn first."""
    LOOKUP = enum.auto()
    """The tables of `lookups` have to be described before the next frame."""
    END = enum.auto()
    """The server ended the stream."""
    FAILED = enum.auto()
    """libpq failed; the connection has its message."""


STOPS: Final = {
    EMPTY: Drained.EMPTY,
    BUDGET: Drained.BUDGET,
    END: Drained.END,
    FAILED: Drained.FAILED,
}
"""What ends a drain, by the frame reader's reasons."""


@dataclass(slots=True)
class _Streamed:
    """A relation as the stream last showed it, and its description once there is one.

    `is_told` is true from its first row on: by then it was told under which name its rows come.
    `is_numbered`: the description has the columns' numbers, as far as they are known.
    """

    message: RelationMessage
    table: TableName
    is_captured: bool
    is_told: bool = False
    relation: Relation | None = None
    is_numbered: bool = False


class _LsnJudge:
    """The judge of the log's history, asked by the frame reader in LSNs."""

    def __init__(self, judge: Judge, generation: int) -> None:
        self._judge = judge
        self._generation = generation

    @property
    def is_done(self) -> bool:
        return self._judge.is_done

    def began(self, commit_lsn: int, commit_us: int) -> None:
        self._judge.began(log_position(self._generation, commit_lsn), commit_us)

    def reached(self, lsn: int) -> None:
        self._judge.reached(log_position(self._generation, lsn))


class Assembler:
    """One stream's state between frames and intakes.

    `lookups` names the relations that have to be looked up after `Drained.LOOKUP`. `last_described`
    is the table whose relation the server sent last.
    """

    def __init__(
        self,
        *,
        database: str,
        generation: int,
        configuration: RecordConfiguration,
        decide: Decide,
        catalog: Catalog,
        judge: Judge | None = None,
        single_rows: bool = False,
        batch_rows_max: int = ROWS_MAX,
        hash_key: HashKey = NO_HASH_KEY,
        are_bare_hidden: bool = False,
        signals: bool = True,
    ) -> None:
        """`are_bare_hidden`: see `FrameReader`. Without `signals`, nobody is told of any."""
        self._are_signals_told = signals
        self._configuration = configuration
        self._catalog = catalog
        self._single_rows = single_rows
        self._lines = LineWriter(
            generation,
            connector="postgresql",
            row_bytes_max=configuration.row_bytes_max,
            rows_max=batch_rows_max,
            hash_key=hash_key.secret_for(configuration),
        )
        self._tuples = TupleReader(self._lines)
        self._batcher = Batcher(
            self._lines,
            database=database,
            configuration=configuration,
            decide=decide,
            form_of=functools.partial(column_form, configuration=configuration),
            is_single_rows=single_rows,
        )
        self._reader = FrameReader(self._tuples, self._batcher.size_max)
        self._reader.are_bare_hidden = are_bare_hidden
        self._generation = generation
        if judge is not None and not judge.is_done:
            self._reader.judge = _LsnJudge(judge, generation)
        self._relations: dict[int, _Streamed] = {}
        self._left_out: list[LeftOut] = []
        self._named: list[Named] = []
        self._moved: list[Moved] = []
        self._signals: list[Signal] = []
        self._failure: UnrepresentableRow | None = None
        self._is_row_pending = False
        # Bound relations whose key is a guess. They leave when the stream has passed the position
        # up to which the catalog was seen.
        self._guessed: dict[int, Lsn] = {}
        self._settle_lsn = _NEVER
        self.lookups: tuple[RelationMessage, ...] = ()
        self._is_key_doubtful = False
        self.drained_bytes = 0
        self.last_described: TableName | None = None

    @property
    def received_lsn(self) -> Lsn:
        """The newest boundary that was read, handed over or not."""
        return Lsn(self._reader.received_lsn)

    @property
    def is_judging(self) -> bool:
        """Whether it is still being judged if this is the log that the journal knows."""
        return self._reader.judge is not None

    def take_reply_wish(self) -> bool:
        """Whether a keepalive asked for a status update since the last call."""
        is_wanted, self._reader.is_reply_wanted = self._reader.is_reply_wanted, False
        return is_wanted

    def take_key_doubt(self) -> bool:
        """Whether the stream hinted, since the last call, at a change of a key that it hides."""
        is_doubtful, self._is_key_doubtful = self._is_key_doubtful, False
        return is_doubtful

    def drain(self, frames: Frames, budget_bytes: int) -> Drained:
        """Handle frames until there is none, or `budget_bytes` of them were.

        `drained_bytes` says how many bytes. Raises UnrepresentableRow, once what came before that
        row could be taken.
        """
        if self._failure is not None:
            raise self._failure
        reader, left = self._reader, budget_bytes
        self._settle_guesses()
        try:
            if self.lookups and not self._looked_up():
                return Drained.LOOKUP
            while True:
                reason = self._read(frames, left)
                left -= reader.drained_bytes
                if reason == LEFT_OUT:
                    continue
                if reason == FULL:
                    self._batcher.hand_over(reader.relation_id)
                elif reason == HOUR:
                    self._batcher.hand_over_all()
                elif reason in STOPS:
                    return STOPS[reason]
                elif not (self._control() if reason == CONTROL else self._unbound_row()):
                    self._is_row_pending = reason != CONTROL
                    return Drained.LOOKUP
        finally:
            self.drained_bytes = budget_bytes - left

    def _read(self, frames: Frames, budget_bytes: int) -> int:
        try:
            return self._reader.read(frames, budget_bytes)
        except UnrepresentableRow as error:
            self._leave_out(error)
            return BUDGET if self._failure is not None else LEFT_OUT

    def _leave_out(self, error: UnrepresentableRow) -> None:
        oid, change_lsn = error.table_number, error.change
        table = self._relations[oid].table
        position = Position(self._lines.next_position(oid, change_lsn))
        if self._configuration.on_unrepresentable == "stop":
            hint = f'{error.hint}; or have such rows left out: source.on_unrepresentable = "gap"'
            self._failure = UnrepresentableRow(
                f"{table}, the row at position {position}: {error.reason}",
                reason=error.reason,
                hint=hint.removeprefix("; or "),
            )
            return
        # It counts all the same. Otherwise a replay would number the later rows differently.
        self._lines.skip(oid, change_lsn)
        if self._single_rows:
            self._batcher.let_go(oid)
        self._left_out.append(LeftOut(table, position, error.reason, error.key))

    def intake(self, held_seconds: float = 0.0) -> Intake:
        """Everything so far, including what is still in the line writer.

        `held_seconds` is how long its oldest row was held at most. Lines of very many tables take
        several intakes, and only the last one has the boundary. While `is_handing_over` is true,
        the next intake has to be taken before anything is drained.
        """
        self._batcher.hand_over_some()
        if self.is_handing_over:
            return self.full_batches(held_seconds)
        boundary = self._boundary()
        if boundary is not None:
            self._reader.forget_boundary()
        named, self._named = tuple(self._named), []
        return Intake(
            self._batcher.taken(),
            boundary,
            held_seconds,
            left_out=self._take_left_out(),
            named=named,
            moved=self._take_moved(),
            signals=self._take_signals(),
            leaves=self._take_leaves(),
        )

    def _boundary(self) -> Boundary | None:
        # While the log is judged, nothing that it says may become durable.
        if self._reader.boundary is None or self.is_judging:
            return None
        lsn, commit_us, is_keepalive = self._reader.boundary
        landmark = None
        if self._reader.landmark is not None:
            commit_lsn, time_us = self._reader.landmark
            through = self._configuration.shown_through
            place = log_position(self._generation, commit_lsn)
            landmark = Landmark(place, time_us, through, format_lsn(Lsn(commit_lsn)))
        point = log_point(self._generation, Lsn(lsn), commit_us)
        return Boundary(point, is_keepalive, landmark)

    def full_batches(self, held_seconds: float = 0.0) -> Intake:
        """The batches that are complete already; the rest and the boundary stay for `intake`."""
        left_out, moved = self._take_left_out(), self._take_moved()
        return Intake(self._batcher.taken(), None, held_seconds, left_out=left_out, moved=moved)

    def _take_left_out(self) -> tuple[LeftOut, ...]:
        left_out, self._left_out = tuple(self._left_out), []
        return left_out

    def _take_signals(self) -> tuple[Signal, ...]:
        if self.is_judging:
            return ()
        signals, self._signals = tuple(self._signals), []
        return signals

    def _take_leaves(self) -> tuple[Leaf, ...]:
        taken = self._reader.take_leaves()
        return tuple(
            Leaf(str(leaf), str(root), log_position(self._generation, commit_lsn))
            for leaf, root, commit_lsn in taken
            if (streamed := self._relations.get(root)) is not None and streamed.is_captured
        )

    def _take_moved(self) -> tuple[Moved, ...]:
        self._note_moved()
        moved, self._moved = tuple(self._moved), []
        return moved

    def _note_moved(self) -> None:
        """Note under its present name each table that has moved keys."""
        moved = self._tuples.moved
        for oid, commit_lsn in moved.items():
            commit = log_position(self._generation, commit_lsn)
            self._moved.append(Moved(self._relations[oid].table, commit))
        moved.clear()

    @property
    def has_full_batches(self) -> bool:
        """Whether `full_batches` would hold anything."""
        return self._batcher.has_batches

    @property
    def is_handing_over(self) -> bool:
        """Whether the newest `intake` was not the last one of what was drained."""
        return self._batcher.is_handing_over

    @property
    def buffered_bytes(self) -> int:
        """Bytes of lines in batches that are not complete."""
        return self._lines.buffered

    @property
    def has_intake(self) -> bool:
        """Whether `intake` would hold anything."""
        has_boundary = self._reader.boundary is not None and not self.is_judging
        has_rows = self._batcher.has_batches or self._lines.buffered > 0
        has_more = bool(self._left_out or self._named or self._moved or self._tuples.moved)
        return has_rows or has_boundary or has_more

    # ------------------------------------------------------------------- control messages

    def _looked_up(self) -> bool:
        """Handle what the look-ups were for. False: there are more."""
        for message in self.lookups:
            streamed = self._relations[message.oid]
            streamed.relation = self._catalog.describe(message, self._configuration)
            streamed.is_numbered = False
        self.lookups = ()
        return self._unbound_row() if self._is_row_pending else self._control()

    def _control(self) -> bool:
        if self._reader.frame[HEADER_SIZE : HEADER_SIZE + 1] == b"M":
            self._message(self._reader.frame)
            return True
        carrier = decode_frame(self._reader.frame)
        # A keepalive comes here only to be refused.
        if not isinstance(carrier, XLogData):
            raise InvariantBroken("a keepalive was taken for a message: the frame reader has those")
        message = decode_message(carrier.message)
        if isinstance(message, RelationMessage):
            self._relation(message)
        elif isinstance(message, Truncate):
            return self._truncate(message, carrier.start_lsn)
        return True

    def _message(self, frame: bytes) -> None:
        """Note a logical message that is meant for the engine. Others are none of its business."""
        head = decode_message_head(frame[HEADER_SIZE:])
        if self._configuration.messages:
            self._record(frame, head or _CUT_OFF)
        if head is None or head.prefix != SIGNAL_PREFIX or not self._are_signals_told:
            return
        position = NOWHERE
        if head.is_transactional:
            commit, change = self._reader.open_commit, int.from_bytes(frame[1:9])
            position = make_position(self._generation, commit, change, 0)
        is_whole = head.size <= REQUEST_BYTES_MAX
        content = head.content if is_whole else b""
        self._signals.append(Signal(position, content, head.size))

    def _record(self, frame: bytes, head: MessageHead) -> None:
        """Publish a logical message, where it belongs to a transaction."""
        if not self._reader.open_commit or not is_transactional(frame):
            return
        batcher, change_lsn = self._batcher, int.from_bytes(frame[1:9])
        if not batcher.is_bound(MESSAGES_OID):
            position = Position(self._lines.next_position(MESSAGES_OID, change_lsn))
            relation = messages_relation(self._configuration)
            if batcher.bind(MESSAGES_OID, relation, position) is None:
                self._lines.skip(MESSAGES_OID, change_lsn)
                return
        if self._tuples.encode(insert_frame(frame, head)) > batcher.size_max:
            batcher.hand_over(MESSAGES_OID)

    # -------------------------------------------------------------------------- relations

    def _relation(self, message: RelationMessage) -> None:
        self.last_described = TableName(message.schema, message.table)
        known = self._relations.get(message.oid)
        if known is not None:
            if known.message == message:
                # It was sent again for no reason, or because something changed that the message
                # does not show.
                if known.is_captured and not shows_key(message):
                    self._is_key_doubtful = True
                # It may have had another name meanwhile.
                known.is_told = False
                return
            self._let_go(message.oid)
            self._catalog.forget(message.oid)
            self._note_moved()
        table = TableName(message.schema, message.table)
        self._relations[message.oid] = _Streamed(
            message, table, self._configuration.captures(table)
        )

    def _describe(self, streamed: _Streamed) -> Relation | None:
        if streamed.relation is None and self._catalog.knows(streamed.message):
            streamed.relation = self._catalog.describe(streamed.message, self._configuration)
            streamed.is_numbered = False
        return streamed.relation

    def _streamed(self, oid: int) -> _Streamed:
        streamed = self._relations.get(oid)
        if streamed is None:
            raise DecodeError(f"a change of relation {oid} came before the relation")
        return streamed

    # ------------------------------------------------------------------------------- rows

    def _unbound_row(self) -> bool:
        """Bind the relation of the row that waits, or pass over it.

        False: its table has to be looked up first.
        """
        reader = self._reader
        oid, change_lsn = reader.relation_id, reader.change_lsn
        streamed = self._streamed(oid)
        if not streamed.is_captured:
            if not streamed.is_told:
                self._tell_name(oid, streamed, change_lsn)
            reader.pass_over()
            return True
        relation = self._describe(streamed)
        if relation is None:
            self.lookups = (streamed.message,)
            return False
        if not self._bind(oid, streamed, relation, change_lsn):
            self._lines.skip(oid, change_lsn)
            reader.pass_over()
        return True

    def _truncate(self, message: Truncate, change_lsn: int) -> bool:
        truncated = [(oid, self._streamed(oid)) for oid in message.relation_oids]
        captured = [(oid, streamed) for oid, streamed in truncated if streamed.is_captured]
        described = [(oid, streamed, self._describe(streamed)) for oid, streamed in captured]
        self.lookups = tuple(s.message for _, s, relation in described if relation is None)
        if self.lookups:
            return False
        for oid, streamed in truncated:
            if not streamed.is_captured:
                self._tell_name(oid, streamed, change_lsn)
        for oid, streamed, relation in described:
            assert relation is not None
            self._truncate_one(oid, streamed, relation, change_lsn)
        return True

    def _truncate_one(
        self, oid: int, streamed: _Streamed, relation: Relation, change_lsn: int
    ) -> None:
        batcher = self._batcher
        if not batcher.is_bound(oid) and not self._bind(oid, streamed, relation, change_lsn):
            self._lines.skip(oid, change_lsn)
        elif self._tuples.truncate(oid, change_lsn) > batcher.size_max:
            batcher.hand_over(oid)

    def _tell_name(self, oid: int, streamed: _Streamed, change_lsn: int) -> None:
        commit = commit_of(Position(self._lines.next_position(oid, change_lsn)))
        self._named.append(Named(str(oid), streamed.table, streamed.is_captured, commit))
        streamed.is_told = True

    def _bind(self, oid: int, streamed: _Streamed, relation: Relation, change_lsn: int) -> bool:
        position = Position(self._lines.next_position(oid, change_lsn))
        if not streamed.is_told:
            self._tell_name(oid, streamed, change_lsn)
        relation = self._with_known_key(oid, streamed, relation, position)
        relation = self._with_numbers(oid, streamed, relation)
        version = self._batcher.bind(oid, relation, position)
        if version is None:
            return False
        _check_fits(version, streamed.message)
        if relation.is_key_guessed:
            self._note_guess(oid)
        return True

    def _with_numbers(self, oid: int, streamed: _Streamed, relation: Relation) -> Relation:
        """The relation with its columns' numbers, which are looked for once.

        A row that is not wanted comes here too, and there may be very many of them.
        """
        if not streamed.is_numbered:
            relation = self._catalog.numbered(oid, relation, self._reader.open_commit)
            streamed.relation, streamed.is_numbered = relation, True
        return relation

    def _let_go(self, oid: int) -> None:
        """Hand over what the relation has; its next row is bound anew."""
        self._batcher.let_go(oid)
        self._guessed.pop(oid, None)

    # -------------------------------------------------------------------- tables that are gone

    @property
    def known_oids(self) -> list[int]:
        """The relations that the stream has shown, captured or not."""
        return list(self._relations)

    def forget(self, oids: Iterable[int]) -> None:
        """These tables are gone, and the stream is past that: no row of theirs comes any more."""
        self._note_moved()
        awaited = {message.oid for message in self.lookups}
        for oid in set(oids) - awaited:
            streamed = self._relations.get(oid)
            if streamed is None:
                continue
            self._batcher.forget(oid, streamed.table)
            self._guessed.pop(oid, None)
            del self._relations[oid]
            self._catalog.forget(oid)

    # ------------------------------------------------------- keys that the stream does not show

    @property
    def doubtful_oids(self) -> list[int]:
        """The relations whose key only the catalog knows."""
        return [
            oid
            for oid, streamed in self._relations.items()
            if streamed.is_captured and not shows_key(streamed.message)
        ]

    def keys_changed(self, oids: Iterable[int]) -> None:
        """The catalog has other keys of these relations: the next row of each asks again."""
        for oid in oids:
            streamed = self._relations.get(oid)
            if streamed is not None:
                self._let_go(oid)
                streamed.relation = None

    def _with_known_key(
        self, oid: int, streamed: _Streamed, relation: Relation, position: Position
    ) -> Relation:
        """The relation. Its key is no guess where the row commits after the catalog's look."""
        known_from = self._catalog.key_known_from(oid) if relation.is_key_guessed else None
        if known_from is None or position < log_position(self._generation, known_from):
            return relation
        streamed.relation = msgspec.structs.replace(relation, is_key_guessed=False)
        return streamed.relation

    def _note_guess(self, oid: int) -> None:
        known_from = self._catalog.key_known_from(oid)
        if known_from is not None:
            self._guessed[oid] = known_from
            self._settle_lsn = min(self._settle_lsn, known_from)

    def _settle_guesses(self) -> None:
        """Unbind what was bound by a guess, once the stream is past what the catalog has seen."""
        received = self.received_lsn
        if received < self._settle_lsn:
            return
        for oid in [oid for oid, known_from in self._guessed.items() if known_from <= received]:
            self._let_go(oid)
        self._settle_lsn = min(self._guessed.values(), default=_NEVER)


def _check_fits(version: TableVersion, message: RelationMessage) -> None:
    """The version may come from the journal: rows must be laid out as it says."""
    planned = [column.name for column in version.relation.columns]
    streamed = [column.name for column in message.columns]
    if planned != streamed:
        raise JournalError(
            f"version {version.number} of {version.relation.table} has the columns {planned}, the"
            f" stream has {streamed}",
            hint="the journal does not describe this stream: see whether the table was made anew",
        )
