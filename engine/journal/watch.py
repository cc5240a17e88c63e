"""The catalog watch: what a look at the source's catalog means for what is in the bucket.

Strategy: the journal holds what is agreed: the way in which each captured table's changes arrive
while nothing is lost. A look is compared with it, table by table.

- If less arrives than was agreed, that is a gap. It stays open until all of it arrives again.
- If something was touched and is as before (what publishes the table was dropped and made anew,
  say), that is a gap that ended: whatever happened meanwhile may be missing.
- If more arrives than was agreed, that is agreed from then on.
- If rows that were there have other values now and no record says so, that is a gap that ended.

A gap begins at the last log point up to which looks have judged. So it may be too long, never too
short.

Tables are told apart by their identity. A rename among captured names loses nothing. But the rows
that the table had by then are under its former name in the bucket: that is a gap of its new name. A
table that had an uncaptured name for a while lost what it got there. A table that took a captured
name later lacks what it got before. The stream says both exactly where rows came. A look sees it
where no rows came: see `absences`.

Invariant: pure. What is agreed changes only together with the gaps that explain the change, and
both wait for the same journal entry.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from engine.journal.absences import Absences, captured_names
from engine.journal.entry import Absence, Agreed, JournalState, Watch
from engine.journal.gaps import PAUSE_REASONS, GapRegister
from engine.journal.leaves import Leaves
from engine.journal.strays import Strays, strays_of
from engine.journal.unseen import Unseen, unseen_of
from engine.model.batch import Leaf, Named
from engine.model.interfaces import (
    NOT_PUBLISHED,
    PARTITIONS,
    PUBLISHED_LATE,
    REWRITTEN,
    Look,
    Reason,
    TableLook,
)
from engine.model.position import LOG_BEGIN, LogPosition, behind
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.model.table_shape import RENAMED, hidden_change
from engine.model.table_shape import TEXTS as SHAPE_TEXTS

TABLE_DROPPED = "table-dropped"
TABLE_REMADE = "table-remade"
RENAMED_AWAY = "renamed-away"
RENAMED_IN = "renamed-in"

_TEXTS: Mapping[str, str] = {
    RENAMED_AWAY: "the table was given a name or a schema that source.tables does not match: its"
    " rows went with it, and what it gets there is not captured",
    RENAMED_IN: "a table took this name that had one before which source.tables does not match;"
    " rows that it had by then are missing",
    **SHAPE_TEXTS,
}
_CAME_BACK = (
    "the table had a name or a schema for a while that source.tables does not match; what it got"
    " there is missing"
)
_STRAYED = (
    "the table had another captured name for a while; what it got there is under that name in the"
    " bucket, not under this one"
)
_MIXED = "another captured table had this name for a while; the bucket has rows of both under it"

WATCH_BYTES_MAX = 4 * 1024 * 1024
"""Bytes that one entry states of tables, beside its plans and its gaps: an entry is one request."""

_REASONS_SHOWN_MAX = 20

# Bytes beside their texts.
_TABLE_BYTES = 60
_MARK_BYTES = 6


@dataclass(frozen=True, slots=True)
class Shown:
    """What the stream has shown of tables, as far as it was read.

    `has_rows`: whether the table ever had a row here, or may have had one in a snapshot.
    `has_identity`: whether rows of it came from the table with that identity. `was_truncated`:
    whether a truncation was shown since the look that was judged last.
    """

    has_rows: Callable[[TableName], bool]
    has_identity: Callable[[TableName, str], bool]
    was_truncated: Callable[[TableName], bool]


class CatalogWatch:
    """What is agreed, and what waits for the journal's next entry."""

    def __init__(
        self,
        state: JournalState,
        gaps: GapRegister,
        configuration: RecordConfiguration,
        shown: Shown,
    ) -> None:
        """Begin where the journal ends; its `open` has to be ours already."""
        assert state.source is not None, "nothing is watched before the journal is open"
        assert state.durable is not None, "nothing is watched before the journal is open"
        self._journal = state
        self._gaps = gaps
        self._shown = shown
        self._captures = configuration.captures
        self._through = configuration.through
        self._selection = selection_of(configuration)
        known = state.watch
        self._journalled = known or Watch("", "")
        self._agreed = dict(self._journalled.tables)
        # By identity, the name that is agreed.
        self._homes = {agreed.identity: table for table, agreed in self._agreed.items()}
        self._marks = dict(self._journalled.marks)
        # If the log is read through something else, nothing is known. Under another selection of
        # tables, a table may be new to us and not to the source, and one that we no longer see may
        # still be there.
        self._is_first = known is None or known.through != self._through
        self._is_other_selection = self._is_first or self._journalled.selection != self._selection
        # An entry may state what is agreed before any states how far looks have judged.
        self._watched = state.durable.watched or LogPosition(self._journalled.at)
        # A failover may have taken back what was judged. It never takes back what is durable.
        durable = state.durable_position
        self._clean = min(self._watched, durable) if self._watched else durable
        self._pending: Watch | None = None
        self._is_much = False
        self._absences = self._known_absences(state)
        # Away under another selection: they may have a name that is captured now.
        self._doubtful = frozenset(self._journalled.away if self._is_other_selection else ())
        # What the newest look of this life showed under names that are not captured, and up to
        # where it was taken.
        self._others: frozenset[str] | None = None
        self._others_until = ""
        self._unseen = Unseen(unseen_of(state))
        self._strays = Strays(strays_of(state, self._homes, self._clean))
        self._leaves = Leaves(self._journalled.leaves)
        # Tables that are not agreed yet and whose coming has a gap already.
        self._arrived: set[str] = set()
        self._open: dict[str, dict[str, int]] = {}
        for gap in gaps.standing:
            if gap.is_open and gap.reason not in PAUSE_REASONS:
                self._open.setdefault(gap.table, {})[gap.reason] = gap.number

    def _known_absences(self, state: JournalState) -> Absences:
        """Of tables that the present configuration would capture under the names that they had."""
        if state.watch is not None and self._is_first:
            return Absences({}, {})
        names = captured_names(state.versions)
        names |= {agreed.identity: table for table, agreed in self._agreed.items()}
        away = self._journalled.away
        return Absences(
            {identity: table for identity, table in names.items() if self._is_captured(table)},
            {identity: a for identity, a in away.items() if self._is_captured(a.table)},
        )

    def _is_captured(self, table: str) -> bool:
        return self._captures(TableName.parse(table))

    @property
    def watched(self) -> LogPosition:
        """The log point up to which looks have judged; empty: no look."""
        return self._watched

    @property
    def is_known(self) -> bool:
        """Whether looks have judged the tables that the configuration selects."""
        return not self._is_other_selection

    @property
    def pending(self) -> Watch | None:
        """What is known otherwise than the journal says; None where nothing is."""
        # Before the first look nothing is stated: nobody knows yet which partitions there are.
        if self._is_much or self._is_first:
            return self._pending
        leaves, settled = self._leaves.beside(self._journalled)
        if not (leaves or settled):
            return self._pending
        known = self._journalled
        part = Watch(known.through, known.selection, known.marks, at=known.at, leaves=leaves)
        if self.is_much:
            return part
        # What a look has settled is agreed by the same look.
        stated = self._pending or part
        return msgspec.structs.replace(stated, leaves=leaves, settled=settled)

    @property
    def is_due(self) -> bool:
        """Whether the journal has to say `pending` soon.

        Partitions whose rows came wait for an entry that is made anyway. Nothing becomes durable
        without one.
        """
        return self._pending is not None

    @property
    def is_much(self) -> bool:
        """Whether `pending` is a part only: there is too much to say for one entry."""
        return self._is_much or (not self._is_first and self._leaves.is_much(self._journalled))

    def _difference(self) -> Watch | None:
        self._is_much = False
        known = self._journalled
        changed = {
            table: agreed
            for table, agreed in self._agreed.items()
            if known.tables.get(table) != agreed
        }
        gone = tuple(table for table in known.tables if table not in self._agreed)
        # Before a look was judged, what is agreed is what was agreed under the former settings.
        whose = (self._through, self._selection)
        if self._is_other_selection:
            whose = (known.through, known.selection)
        absences = self._absences.stated
        # Up to where a table is known to be away is only stated with the rest.
        away = {
            identity: absence
            for identity, absence in absences.items()
            if _beginning(known.away.get(identity)) != _beginning(absence)
        }
        back = tuple(identity for identity in known.away if identity not in absences)
        is_same = known.marks == self._marks and (known.through, known.selection) == whose
        if is_same and not (changed or gone or away or back):
            return None
        if (part := _part(changed)) != changed:
            # Whose tables these are comes with the last part. Until then a successor takes the
            # other tables for what they were. So it may state a gap twice, but begins no gap too
            # late.
            self._is_much = True
            return Watch(known.through, known.selection, known.marks, part, at=known.at)
        return Watch(*whose, self._marks, changed, gone, self._clean, away, back)

    def journalled(self, statement: Watch | None) -> None:
        """The journal holds what `pending` said."""
        if statement is not None:
            self._journalled = statement.folded(self._journalled)
            self._pending = self._difference()

    def standing(self, look: Look) -> dict[str, Reason]:
        """Why tables do not arrive as agreed, by table, as that look shows it."""
        return _standing(self._by_identity(), look)

    def named(self, named: Named) -> bool:
        """Take in under which name rows of a table come; whether the journal is to say something.

        Called in the same step in which the rows count as read.
        """
        # What commits before E is accounted for.
        at = named.commit
        if at < self._journal.durable_position:
            return False
        if not named.is_captured:
            is_new = self._absences.left(named.identity, at)
            is_stated = is_new and named.identity in self._absences.stated
        else:
            is_stated = self._came(named.identity, str(named.table), at, behind(at))
            # Of what is read again from before the newest look, that look has told already.
            if at >= self._clean:
                self._note(named.identity, str(named.table), at)
        if is_stated and not self._is_first:
            self._pending = self._difference()
        return is_stated

    def came_under(self, leaf: Leaf) -> None:
        """Take in that rows of a partition come under its root.

        Called in the same step in which the rows count as read.
        """
        if leaf.commit < max(self._clean, self._journal.durable_position):
            return
        home = None if self._is_first else self._homes.get(leaf.root)
        if home is None or f"{PARTITIONS}:{leaf.identity}" not in self._agreed[home].marks:
            self._leaves.came(leaf)

    def was_read(self, root: str, partitions: Iterable[str], point: LogPosition) -> None:
        """Take in that rows of these partitions were read as their root's, as before `point`.

        Called in the step in which the rows are stated, before any of them can leave the root.
        """
        # They are there still, whatever became durable meanwhile.
        at = max(point, self._clean, self._journal.durable_position)
        for partition in partitions:
            self.came_under(Leaf(partition, root, at))

    def _note(self, identity: str, table: str, at: str) -> None:
        """Rows of the table are captured that the look that was judged last does not explain."""
        home = self._homes.get(identity)
        if home is None:
            self._unseen.came(identity, table, at)
        elif home != table:
            self._strays.came(identity, table, at)

    def _came(self, identity: str, table: str, at: str, until: str) -> bool:
        """Rows of the table are captured from here on: whether some were not before."""
        absence = self._absences.came(identity, table, at)
        if absence is not None:
            if self._is_loss(identity, absence, table):
                self._state_return(absence, table, until)
                self._arrived.add(identity)
        elif self._is_other(identity) and at >= self._others_until:
            self._state_ended(table, RENAMED_IN, self._clean, until)
            self._arrived.add(identity)
        else:
            return False
        return True

    def _is_other(self, identity: str) -> bool:
        """Whether the table had a name that is not captured when the newest look was taken."""
        is_other = self._others is not None and identity in self._others
        return is_other and identity not in self._arrived

    def _is_loss(self, identity: str, absence: Absence, table: str) -> bool:
        """Whether a table that comes as `table` was renamed, and not only named in the settings."""
        return identity not in self._doubtful or absence.table == table

    def _state_return(self, absence: Absence, table: str, until: str) -> None:
        reason = RENAMED_AWAY if absence.table == table else RENAMED_IN
        text = _CAME_BACK if reason == RENAMED_AWAY else _TEXTS[reason]
        self._state_ended(table, reason, absence.since, until, text)

    def _state_ended(
        self, table: str, reason: str, after: str, until: str, text: str | None = None
    ) -> None:
        self._gaps.state_up_to(
            table, after=after, until=until, reason=reason, text=text or _TEXTS[reason]
        )

    def judge(self, look: Look) -> None:
        """Take in a look that the stream has passed: state its gaps, and what is agreed now."""
        until, since = look.until, look.since or LOG_BEGIN
        names = {agreed.identity: name for name, agreed in self._agreed.items()}
        shared, shrunk = self._touched_marks(look), self._leaves.judge(look)
        judging = _Judging(look, since, self._clean, until, shared, names, shrunk)
        by_identity, here = self._by_identity(), {t.identity for t in look.tables.values()}
        agreed: dict[str, Agreed] = {}
        went = {
            name: RENAMED_AWAY if identity in look.others else TABLE_DROPPED
            for identity, (name, _) in by_identity.items()
            if identity not in here
        }
        for table, now in look.tables.items():
            name, before = by_identity.get(now.identity, ("", None))
            if name and name != str(table):
                self._end_all(name, until)
            how = went.get(str(table), "") if before is None else ""
            agreed[str(table)] = self._judge_table(judging, table, before, now, how)
        for name in went.keys() - agreed.keys():
            self._judge_gone(judging, name, went[name])
        for identity, name in self._unseen.gone(look):
            self._judge_unseen(judging, identity, name, agreed.get(name))
        self._note_others(judging, here)
        self._agreed, self._marks = agreed, dict(look.marks)
        self._homes = {known.identity: name for name, known in agreed.items()}
        for identity, name in self._strays.passed(since):
            self._judge_stray(judging, identity, name)
        self._is_first = self._is_other_selection = False
        self._doubtful = frozenset()
        if look.since is not None:
            self._clean = max(self._clean, look.since)
        self._watched = self._clean
        self._pending = self._difference()

    def _by_identity(self) -> "_ByIdentity":
        return _by_identity(self._agreed, is_first=self._is_first)

    def _touched_marks(self, look: Look) -> list[str]:
        return [] if self._is_first else _touched(self._marks, look.marks, frozenset())

    def _judge_table(
        self,
        judging: "_Judging",
        table: TableName,
        before: Agreed | None,
        now: TableLook,
        went: str,
    ) -> Agreed:
        """State the gaps of one table; what is agreed from now on.

        `went` says how the table went that had its name before, empty where none did.
        """
        name = str(table)
        has_gap = self._judge_absence(judging, name, now.identity)
        is_same_name = judging.names.get(now.identity) == name
        is_untouched = is_same_name and not (judging.touched or now.identity in judging.shrunk)
        if before is not None and is_untouched and self._is_as_before(name, before, now):
            return before
        lost = _lost(before, now)
        texts = {_aspect_of(aspect): now.reasons[aspect].text for aspect in reversed(lost)}
        was_open = self._end_covered(name, texts, judging.until)
        for reason, text in texts.items():
            if reason not in self._open.get(name, {}):
                self._state(judging, name, reason, text, is_over=False)
        if not lost and not was_open and not has_gap:
            self._judge_touched(judging, table, before, now, went)
        kept = before.keeps if before is not None else {}
        agreed = {aspect: kept[aspect] for aspect in lost if aspect in kept}
        covered = {aspect: kept for aspect, kept in now.keeps.items() if aspect not in lost}
        return Agreed(now.identity, agreed | covered, dict(now.marks), now.shape)

    def _judge_absence(self, judging: "_Judging", table: str, identity: str) -> bool:
        """State that a table which is here was away; whether its coming has a gap."""
        has_gap = identity in self._arrived
        self._arrived.discard(identity)
        absence = self._absences.of(identity)
        if absence is None:
            return has_gap
        # It may have gone again since the look was taken: then another look says how long.
        if absence.seen < judging.since:
            self._absences.returned(identity)
        if self._is_loss(identity, absence, table):
            self._state_return(absence, table, judging.until)
        return True

    def _note_others(self, judging: "_Judging", here: set[str]) -> None:
        """Take in which tables have names that are not captured, and which are no more."""
        look = judging.look
        for name, agreed in self._agreed.items():
            # One that the settings name no more has not gone.
            if agreed.identity in look.others and not self._is_first and self._is_captured(name):
                self._absences.seen_away(
                    agreed.identity, name, since=judging.after, seen=judging.until
                )
        for table, now in look.tables.items():
            self._absences.seen_there(now.identity, str(table), judging.since)
        self._absences.forget_gone(here | look.others, judging.since)
        self._others, self._others_until = look.others, judging.until

    def _judge_touched(
        self,
        judging: "_Judging",
        table: TableName,
        before: Agreed | None,
        now: TableLook,
        went: str,
    ) -> None:
        """A table that arrives as agreed: whether it did so all the while."""
        touched = list(judging.touched)
        if before is not None:
            touched += self._explained(table, _touched(before.marks, now.marks, now.fresh))
            touched += self._other_values(judging, table, before, now)
        elif self._is_from_elsewhere(now):
            touched.append(RENAMED_IN)
        elif self._is_unseen_successor(table, now, went):
            touched.append(TABLE_REMADE if went == TABLE_DROPPED else went)
        elif not self._is_other_selection and PUBLISHED_LATE not in now.fresh:
            touched.append(PUBLISHED_LATE)
        if now.identity in judging.shrunk:
            touched.append(PARTITIONS)
        if touched:
            # One gap is enough: it says that whatever happened meanwhile may be missing.
            aspect = _aspect_of(touched[0])
            self._state(judging, str(table), aspect, _text_of(judging.look, aspect), is_over=True)

    def _other_values(
        self, judging: "_Judging", table: TableName, before: Agreed, now: TableLook
    ) -> list[str]:
        """Why rows that the table had may read otherwise under its name than records say."""
        former = judging.names[now.identity]
        is_renamed = former != str(table)
        if is_renamed and self._shown.has_identity(TableName.parse(former), now.identity):
            return [RENAMED]
        hidden = hidden_change(before.shape, now.shape)
        is_empty = not self._shown.has_rows(table)
        return [hidden] if hidden and not is_empty else []

    def _is_from_elsewhere(self, now: TableLook) -> bool:
        """Whether a table that was not captured before has taken a captured name.

        The stream tells of those that had rows since this life's first look. Before the first look
        it is not known which tables there were: then it counts whether it ever had another name.
        """
        if self._is_other_selection:
            return False
        return now.identity in self._others if self._others is not None else not now.is_as_made

    def _is_unseen_successor(self, table: TableName, now: TableLook, went: str) -> bool:
        """Whether another table had the name and rows, and the stream has not shown this one."""
        has_rows = bool(went) and self._shown.has_rows(table)
        return has_rows and not self._shown.has_identity(table, now.identity)

    def _explained(self, table: TableName, touched: list[str]) -> list[str]:
        """`touched` without what the stream has shown."""
        if not self._shown.was_truncated(table):
            return touched
        return [mark for mark in touched if _aspect_of(mark) != REWRITTEN]

    def _judge_gone(self, judging: "_Judging", name: str, how: str) -> None:
        was_open = self._end_all(name, judging.until)
        # One that the settings name no more has not gone.
        is_passed_over = self._is_other_selection and not self._is_captured(name)
        if is_passed_over or was_open or not self._shown.has_rows(TableName.parse(name)):
            return
        self._state(judging, name, how, _text_of(judging.look, how), is_over=True)

    def _is_as_before(self, name: str, before: Agreed, now: TableLook) -> bool:
        """What is true of nearly every table: nothing changed, and nothing is missing."""
        is_alike = before.marks == now.marks and before.keeps == now.keeps
        return is_alike and before.shape == now.shape and name not in self._open

    def _judge_unseen(
        self, judging: "_Judging", identity: str, name: str, successor: Agreed | None
    ) -> None:
        """A table had rows under that name, and went before any look; `successor` has the name."""
        if not self._is_captured(name):
            return
        is_away = identity in judging.look.others
        how = RENAMED_AWAY if is_away else TABLE_DROPPED
        if is_away:
            self._absences.seen_away(identity, name, since=judging.after, seen=judging.until)
        if successor is not None:
            if self._shown.has_identity(TableName.parse(name), successor.identity):
                # Its first row begins a version, which says that it is another table.
                return
            how = how if is_away else TABLE_REMADE
        self._state(judging, name, how, _text_of(judging.look, how), is_over=True)

    def _judge_stray(self, judging: "_Judging", identity: str, name: str) -> None:
        """Rows of a table came under `name`, which is another one than the agreed one was."""
        home = self._homes.get(identity)
        if home == name:
            # It was renamed, and that is judged already.
            return
        if home is not None:
            self._state(judging, home, RENAMED, _STRAYED, is_over=True)
        if not self._is_captured(name):
            return
        if name in self._agreed:
            self._state(judging, name, RENAMED, _MIXED, is_over=True)
        elif home is None:
            how = RENAMED_AWAY if identity in judging.look.others else TABLE_DROPPED
            self._state(judging, name, how, _text_of(judging.look, how), is_over=True)

    # --- gaps

    def _state(
        self, judging: "_Judging", table: str, reason: str, text: str, *, is_over: bool
    ) -> None:
        until = judging.until if is_over else ""
        gap = self._gaps.state(table, after=judging.after, until=until, reason=reason, text=text)
        if not is_over:
            self._open.setdefault(table, {})[reason] = gap.number

    def _end_covered(self, table: str, lost: Iterable[str], until: str) -> bool:
        """End the table's gaps that are over; whether any was open."""
        opened = self._open.pop(table, {})
        for reason, number in opened.items():
            if reason not in lost:
                self._gaps.end(number, until)
        if standing := {reason: opened[reason] for reason in lost if reason in opened}:
            self._open[table] = standing
        return bool(opened)

    def _end_all(self, table: str, until: str) -> bool:
        return self._end_covered(table, (), until)


@dataclass(frozen=True, slots=True)
class _Judging:
    """One look's judgement: gaps begin at `after` and end at `until`.

    The look shows everything before `since`, empty where that is not known. `names` has the former
    names of the tables that were agreed, by identity. `shrunk` are the identities of tables from
    which partitions went that no look has shown.
    """

    look: Look
    since: str
    after: str
    until: str
    touched: list[str]
    names: Mapping[str, str]
    shrunk: frozenset[str]


def standing(
    state: JournalState, configuration: RecordConfiguration, look: Look
) -> dict[str, Reason]:
    """What `CatalogWatch.standing` says of a look, for whoever only reads the journal."""
    known = state.watch or Watch("", "")
    is_first = known.through != configuration.through
    return _standing(_by_identity(known.tables, is_first=is_first), look)


_ByIdentity = Mapping[str, tuple[str, Agreed | None]]


def _by_identity(agreed: Mapping[str, Agreed], *, is_first: bool) -> _ByIdentity:
    """Name and agreement of the known tables; through something else there is none."""
    return {known.identity: (name, None if is_first else known) for name, known in agreed.items()}


def _standing(by_identity: _ByIdentity, look: Look) -> dict[str, Reason]:
    found: dict[str, Reason] = {}
    for table, now in look.tables.items():
        _, before = by_identity.get(now.identity, ("", None))
        if reasons := [now.reasons[aspect] for aspect in _lost(before, now)]:
            shown, more = reasons[:_REASONS_SHOWN_MAX], len(reasons) - _REASONS_SHOWN_MAX
            texts = [reason.text for reason in shown] + ([f"and {more} more"] if more > 0 else [])
            # Two aspects may be mended by one statement.
            hints = dict.fromkeys(reason.hint for reason in shown)
            found[str(table)] = Reason("; ".join(texts), " ".join(hints))
    return found


def _lost(before: Agreed | None, now: TableLook) -> tuple[str, ...]:
    """The aspects of which less arrives than agreed; of a new table, whether anything does."""
    if before is None:
        return tuple(aspect for aspect in now.keeps if aspect == NOT_PUBLISHED)
    return tuple(
        aspect
        for aspect, kept in now.keeps.items()
        if not _is_covered(before.keeps.get(aspect), kept)
    )


def selection_of(configuration: RecordConfiguration) -> str:
    """What names the captured tables: under another selection, others are agreed."""
    tables, exclude = ",".join(configuration.tables), ",".join(configuration.exclude)
    return f"{tables} -{exclude}"


def _part(changed: Mapping[str, Agreed]) -> dict[str, Agreed]:
    """As many tables as one entry should state, one at least."""
    part: dict[str, Agreed] = {}
    size_bytes = 0
    for table, agreed in changed.items():
        size_bytes += _size_bytes(table, agreed)
        if part and size_bytes > WATCH_BYTES_MAX:
            break
        part[table] = agreed
    return part


def _size_bytes(table: str, agreed: Agreed) -> int:
    """What a table takes in an entry, about."""
    kept = sum(len(aspect) + sum(map(len, parts)) for aspect, parts in agreed.keeps.items())
    marks = sum(len(mark) + len(text) + _MARK_BYTES for mark, text in agreed.marks.items())
    return _TABLE_BYTES + len(table) + kept + marks + len(agreed.shape)


def _is_covered(agreed: tuple[str, ...] | None, kept: tuple[str, ...]) -> bool:
    """Whether what is kept holds what was agreed (None: everything)."""
    return agreed is not None and set(agreed) <= set(kept)


def _touched(before: Mapping[str, str], now: Mapping[str, str], fresh: frozenset[str]) -> list[str]:
    """The marks that differ, but for those that may appear."""
    changed = [mark for mark, text in before.items() if now.get(mark) != text]
    return changed + [mark for mark in now if mark not in before and mark not in fresh]


def _text_of(look: Look, aspect: str) -> str:
    return _TEXTS.get(aspect) or look.texts[aspect]


def _beginning(absence: Absence | None) -> tuple[str, str] | None:
    return None if absence is None else (absence.table, absence.since)


def _aspect_of(mark: str) -> str:
    return mark.partition(":")[0]
