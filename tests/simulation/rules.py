"""The rules of the protocol's model, each with the piece of code that keeps it, and a worse one.

The rules' names are those of the model (`tests/model/journal_model.py`); the last ones are the
design's own, about hours, versions, memory and state files, which the model leaves out.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement: `piece` occurs exactly once in the module's source."""

    module: str
    piece: str
    instead: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule and how it is taken away."""

    rule: str
    text: str
    edits: tuple[Edit, ...]


def mutant(rule: str, text: str, *edits: Edit) -> Mutant:
    """A mutant of these edits."""
    return Mutant(rule, text, edits)


NOT_APPLICABLE = {
    "version_number": "a journalled version begins at or before its table's frontier, so "
    "numbers and first positions grow together: the newest is the highest either way",
    "schema_again": "a schema.json that has expired is put again: no schedule was found in which "
    "one life puts objects of one version for so long (tests/test_publisher.py)",
    "nonce": "no two uploads of one key are ever named: the nonce shows what strangers write",
}


# Where the simulated bucket refuses to write a key a second time.
ANY_KEY = "if old is not None and self.is_create_only"

MUTANTS: tuple[Mutant, ...] = (
    mutant(
        "create_only",
        "5   journal entries are created, never overwritten",
        Edit("simulation.store", ANY_KEY, f'{ANY_KEY} and kind != "journal"'),
        Edit("engine.journal.journal", "await self._refuse_overwriting(entry)\n", "pass\n"),
    ),
    mutant(
        "own_412",
        "5.2 412 on the journal: read the winner, ours or not",
        Edit("engine.journal.journal", "if winner != content:", "if True:"),
    ),
    mutant(
        "unclear",
        "5.2 an answer that never came is not success",
        Edit(
            "engine.journal.journal",
            "        if not await self._create_once(key, content, _JSON):\n",
            "        from engine.model.errors import DestinationUnavailable\n"
            "        try:\n"
            "            created = await self._store.create(\n"
            "                key, content, content_type=_JSON, metadata={}\n"
            "            )\n"
            "        except DestinationUnavailable:\n"
            "            created = True\n"
            "        if not created:\n",
        ),
    ),
    mutant(
        "plan_first",
        "5.1 an object is put only after its plan is in the journal",
        Edit(
            "engine.journal.committer",
            "        seq = await self._journal.append(\n",
            "        if not plan.schemas:\n"
            "            self._publish(plan, self._journal.state.next_seq)\n"
            "        seq = await self._journal.append(\n",
        ),
        Edit(
            "engine.journal.committer",
            "        self._publish(plan, seq)\n",
            "        if plan.schemas:\n            self._publish(plan, seq)\n",
        ),
    ),
    mutant(
        "object_create_only",
        "5.1 objects are put create-only",
        Edit("simulation.store", ANY_KEY, f'{ANY_KEY} and kind != "object"'),
    ),
    mutant(
        "serial",
        "5.1 one object of a table at a time",
        Edit(
            "engine.journal.publisher",
            "Lane(put.planned.table_name), put.seq,",
            "Lane(put.planned.key), put.seq,",
        ),
    ),
    mutant(
        "any_statement",
        "5.2 412 on an object: it may equal any statement of its plan",
        Edit(
            "engine.journal.publisher",
            "for statement in statements):",
            "for statement in statements[-1:]):",
        ),
    ),
    mutant(
        "look_again",
        "5.2 an object that equals no statement: read the next entry before the error",
        Edit("engine.journal.publisher", "if await self._journal.tail_moved():", "if False:"),
    ),
    mutant(
        "read_counts",
        "5.3 a change counts from the moment it leaves the socket",
        Edit(
            "engine.flow.ledger",
            "        spans.append((first, last))\n",
            "        del self._spans[table]\n",
        ),
        Edit(
            "engine.journal.planner",
            "if boundary is None or boundary.position <= self._state.durable_position:",
            "if boundary is None or boundary.position <= self._state.durable_position "
            "or oldest_pending_seq:",
        ),
    ),
    mutant(
        "ordered_keepalive",
        "5.3 keepalives take the rows' path (the source's part)",
        Edit(
            "simulation.source",
            "point = server.point(transaction.commit_lsn, server.now_us())",
            "point = server.point(server.wal, server.now_us())",
        ),
    ),
    mutant(
        "durable_first",
        "5.4 append durable, then acknowledge",
        Edit(
            "engine.journal.committer",
            "        seq = await self._journal.append(\n",
            "        if durable is not None:\n"
            "            self._acknowledge(durable.point)\n"
            "        seq = await self._journal.append(\n",
        ),
    ),
    mutant(
        "acknowledge_journal",
        "5.4 acknowledge what the journal holds, not what was received",
        Edit(
            "engine.pipeline.wiring",
            "acknowledge=reader.acknowledge,",
            "acknowledge=lambda _: reader.acknowledge(flow.ledger.newest_boundary.point),",
        ),
    ),
    mutant(
        "idle",
        "5.4 a keepalive's position becomes durable",
        Edit(
            "engine.journal.committer",
            "is_idle_due = now - self._last_durable >= self._idle_seconds",
            "is_idle_due = False",
        ),
    ),
    mutant(
        "probe",
        "5.5 look at the next entry when idle",
        Edit(
            "engine.journal.committer",
            "if now - self._last_look >= self._settings.probe_interval:",
            "if False:",
        ),
        Edit(
            "engine.journal.lease",
            "await attempt.aclose()\n                await self._refuse_superseded()\n",
            "await attempt.aclose()\n",
        ),
    ),
    mutant(
        "exclusive_e",
        "5   a commit before E, not at it",
        Edit(
            "engine.flow.reception",
            "is_over = self._is_stream_waiting or position < self._durable()",
            "from engine.model.position import commit_of\n"
            "        is_over = self._is_stream_waiting or commit_of(position) <= self._durable()",
        ),
    ),
    mutant(
        "commit_order",
        "3   positions sort by commit first",
        Edit(
            "engine.flow.reception",
            "position <= self._ledger.received(relation.table)",
            "position[22:] <= self._ledger.received(relation.table)[22:]",
        ),
    ),
    mutant(
        "lease_first",
        "6   first the lease, then open",
        Edit(
            "engine.pipeline.pipeline",
            "        taken = await self._lease.take(",
            "        if self._journal.state.durable is not None:\n"
            "            await self._journal.open(\n"
            "                self._identity,\n"
            "                self._world.configuration,\n"
            "                self._journal.state.durable,\n"
            "            )\n"
            "        taken = await self._lease.take(",
        ),
    ),
    mutant(
        "absorb",
        "6   open absorbs the predecessor's late entries before it decides what is missing",
        Edit(
            "engine.journal.journal",
            "                self._absorb(winner, self._next_key())\n",
            "                self.state.seq += 1\n"
            "                import hashlib\n"
            "                self.state.sha256 = hashlib.sha256(winner).hexdigest()\n",
        ),
    ),
    mutant(
        "redo",
        "6   missing planned objects are made again",
        Edit("engine.pipeline.pipeline", "missing = await redoing.missing()", "missing = []"),
    ),
    mutant(
        "redo_configuration",
        "6   redo under the record configuration of the plan's epoch",
        Edit(
            "engine.journal.recovery",
            "return self._journal.state.configurations[plan[0].epoch]",
            "return self._journal.state.configurations[self._journal.state.epoch]",
        ),
    ),
    mutant(
        "first_epoch",
        "6   the epoch of the plan's first statement, not of its restatement",
        Edit(
            "engine.journal.recovery",
            "return self._journal.state.configurations[plan[0].epoch]",
            "return self._journal.state.configurations[plan[-1].epoch]",
        ),
        Edit(
            "engine.journal.entry",
            "needed = {plan[0].epoch for plan in self.plans.values()}",
            "needed = {s.epoch for plan in self.plans.values() for s in plan}",
        ),
    ),
    mutant(
        "redo_no_durable",
        "6   a redo pass moves no E",
        Edit(
            "engine.journal.recovery",
            "            self.is_complete = intake.boundary.position > self._last_commit\n",
            "            self.is_complete = intake.boundary.position > self._last_commit\n"
            "            self.boundary = intake.boundary\n",
        ),
        Edit(
            "engine.journal.recovery",
            "            if replay.is_complete:\n",
            "            if replay.is_complete:\n"
            "                from engine.journal.entry import Durable, time_text\n"
            "                self.durable = Durable(\n"
            "                    replay.boundary.position,\n"
            "                    replay.boundary.point.resume,\n"
            "                    time_text(replay.boundary.point.commit_us),\n"
            "                    self._journal.state.durable_seq,\n"
            "                )\n",
        ),
        Edit(
            "engine.journal.recovery",
            "        await self._lanes.idle()\n\n    def _layout(",
            "        await self._lanes.idle()\n"
            "        await self._journal.append(durable=self.durable)\n\n    def _layout(",
        ),
    ),
    mutant(
        "redo_not_received",
        "6   what a redo pass reads beyond a frontier is not received",
        Edit(
            "engine.journal.recovery",
            "        plan = self._plan_at(relation.table, position)\n        return",
            "        plan = self._plan_at(relation.table, position)\n"
            "        SEEN[relation.table] = max(position, SEEN.get(relation.table, ''))\n"
            "        return",
        ),
        Edit(
            "engine.journal.recovery",
            "_LOOKUPS_AT_ONCE = 16\n",
            "_LOOKUPS_AT_ONCE = 16\nSEEN = {}\n",
        ),
        Edit(
            "engine.journal.recovery",
            "    async def redo(self, missing: list[Plan]) -> None:\n",
            "    async def redo(self, missing):\n"
            "        SEEN.clear()\n"
            "        self._journal.seen = SEEN\n",
        ),
        Edit(
            "engine.pipeline.wiring",
            "    budget = MemoryBudget(",
            "    for table, last in getattr(life.journal, 'seen', {}).items():\n"
            "        ledger._received[table] = max(ledger.received(table), last)\n"
            "    budget = MemoryBudget(",
        ),
    ),
    mutant(
        "name_unbound",
        "8   a name that goes to another table unbinds the one that had it",
        Edit(
            "engine.lines.batcher",
            "            self.let_go(owner)\n",
            "            self._take(owner)\n",
        ),
    ),
    mutant(
        "repeated_relation",
        "8   a relation that says what it said before asks who has its name",
        Edit(
            "engine.lines.batcher",
            "        owner = self._owners.get(table, number)\n",
            "        seen = self.__dict__.setdefault('seen', set())\n"
            "        is_new = (table, relation.shape) not in seen\n"
            "        seen.add((table, relation.shape))\n"
            "        owner = self._owners.get(table, number) if is_new else number\n",
        ),
    ),
    mutant(
        "falling_version",
        "8   the planner refuses a version that falls before the append",
        Edit(
            "engine.lines.batcher",
            "        version = self._decide(relation, position)\n",
            "        stale = self.__dict__.setdefault('stale', {})\n"
            "        shown = relation.shape, table\n"
            "        version = stale.get(shown) or self._decide(relation, position)\n"
            "        stale[shown] = version\n",
        ),
        Edit(
            "engine.journal.planner",
            "if wanted is None or wanted.number != chunk.version:",
            "if wanted is None:",
        ),
    ),
    mutant(
        "restate",
        "6   another codec version restates the plan first",
        Edit(
            "engine.journal.recovery",
            "        return planned, True\n",
            "        return planned, False\n",
        ),
    ),
    mutant(
        "received",
        "6   reconnect drops up to each table's received position",
        Edit(
            "engine.flow.reception",
            "position <= self._ledger.received(relation.table)",
            "position <= self._state.frontier(relation.table).last",
        ),
        Edit(
            "engine.pipeline.wiring",
            "    watcher = Watcher(\n",
            "    reception._state = state\n    watcher = Watcher(\n",
        ),
        Edit(
            "engine.flow.ledger",
            "        if first <= received:\n",
            "        if False:\n",
        ),
    ),
    mutant(
        "forget_nothing",
        "6   reconnect forgets nothing",
        Edit(
            "engine.pipeline.streaming",
            "        self._reader.stream = None\n",
            "        self._reader.stream = None\n"
            "        for writer in self._router._writers.values():\n"
            "            writer._open = None\n",
        ),
    ),
    mutant(
        "compare",
        "6   every connect compares what was confirmed with E",
        Edit(
            "engine.journal.lease",
            "if durable.position < standing.confirmed.position:",
            "if False:",
        ),
    ),
    mutant(
        "compare_held",
        "6   compare while holding the lease",
        Edit(
            "engine.journal.lease",
            "        standing = await stream.standing()\n        durable =",
            "        now = await stream.standing()\n"
            "        from dataclasses import replace\n"
            "        seen = getattr(self, 'seen', now.confirmed)\n"
            "        standing = replace(now, confirmed=seen)\n"
            "        self.seen = now.confirmed\n"
            "        durable =",
        ),
    ),
    mutant(
        "compare_opened",
        "6   a start compares after its open",
        Edit(
            "engine.pipeline.pipeline",
            "        confirmed = taken.standing.confirmed\n",
            "        confirmed = taken.standing.confirmed\n"
            "        durable = self._journal.state.durable_position\n"
            "        if durable and durable < confirmed.position:\n"
            "            from engine.model.errors import PositionLost\n"
            "            raise PositionLost('compared too early', loss='moved')\n",
        ),
    ),
    mutant(
        "compare_tail",
        "6   compare only while the journal's tail is ours",
        Edit(
            "engine.journal.lease",
            "            await self._refuse_superseded()\n            raise self._moved(",
            "            raise self._moved(",
        ),
    ),
    mutant(
        "quiet_until_compared",
        "6   no status update before the comparison (servers that let what was confirmed go back)",
        Edit(
            "engine.journal.lease",
            "        standing = await stream.standing()\n        durable =",
            "        stream.acknowledge(self._journal.state.durable_point)\n"
            "        standing = await stream.standing()\n"
            "        durable =",
        ),
    ),
    mutant(
        "look_end",
        "8   a gap ends behind everything that the look shows which ends it",
        Edit(
            "engine.journal.watch",
            "        until, since = look.until, look.since or LOG_BEGIN\n",
            "        until, since = self._clean, look.since or LOG_BEGIN\n",
        ),
    ),
    mutant(
        "look_idle",
        "6   a keepalive's position becomes durable only after a look",
        Edit(
            "engine.flow.ledger",
            "return looked is None or not boundary.is_keepalive or boundary.position <= looked",
            "return True",
        ),
    ),
    mutant(
        "gap_before_durable",
        "6   a gap is in the entry whose durable passes it, or in an earlier one",
        Edit(
            "engine.journal.committer",
            "gaps, watch = self._gaps.pending, self._watcher.watch.pending",
            "gaps, watch = self._gaps.pending, self._watcher.watch.pending\n"
            "        if durable is not None:\n"
            "            gaps = ()",
        ),
    ),
    mutant(
        "look_restart",
        "6   a start compares with what stood when the last engine looked",
        Edit(
            "engine.journal.watch",
            "self._is_first = known is None or known.through != self._through",
            "self._is_first = True",
        ),
    ),
    mutant(
        "look_begin",
        "8   a gap begins at the last log point that was judged, not at the look",
        Edit(
            "engine.journal.watch",
            "_Judging(look, since, self._clean, until, shared, names, shrunk)",
            "_Judging(look, since, look.at, until, shared, names, shrunk)",
        ),
    ),
    mutant(
        "resume",
        "3   the journal keeps the source's own text for E",
        Edit("engine.journal.planner", "resume=boundary.point.resume,", 'resume="",'),
    ),
    mutant(
        "resume_landmark",
        "6   the landmark keeps it too: from there the log is read again",
        Edit(
            "engine.model.history",
            "if landmark.position <= begin or not landmark.resume:",
            "if landmark.position <= begin:",
        ),
        Edit(
            "simulation.source",
            "Landmark(place, commit_us, self._through, commit.resume)",
            "Landmark(place, commit_us, self._through)",
        ),
    ),
    mutant(
        "generation",
        "3   log points compare by generation, then by order",
        Edit(
            "engine.flow.reception",
            "position < self._durable()",
            "position[5:] < self._durable()[5:]",
        ),
    ),
    mutant(
        "lease_waits",
        "6   a lease that somebody holds is waited for",
        Edit(
            "engine.journal.lease",
            "except (LeaseHeld, SourceUnavailable) as error:",
            "except SourceUnavailable as error:",
        ),
    ),
    mutant(
        "failing",
        "6   the same failure twice at the same position is a state that is told",
        Edit("engine.journal.recurrence", "if is_same or self.is_standing:", "if False:"),
    ),
    mutant(
        "failing_pause",
        "6   ... in which the source is left alone for longer and longer",
        Edit(
            "engine.journal.recurrence", "        if not self.is_standing:\n", "        if True:\n"
        ),
    ),
    mutant(
        "failing_over",
        "6   ... and which ends when something behind that position was read",
        Edit(
            "engine.journal.recurrence",
            "        if position > self._position:\n",
            "        if False:\n",
        ),
        Edit(
            "engine.pipeline.streaming",
            "if self._lease.is_failing and is_read:",
            "if False:",
        ),
    ),
    mutant(
        "forget_received",
        "6   what was received is forgotten only when all of it is durable",
        Edit(
            "engine.flow.ledger",
            "if table in self._spans or last >= durable\n",
            "if table in self._spans\n",
        ),
    ),
    mutant(
        "absence",
        "8   a table that has a name for a while that is not captured: a gap when it is back",
        Edit(
            "engine.journal.watch",
            "            is_new = self._absences.left(named.identity, at)\n",
            "            is_new = False\n",
        ),
    ),
    mutant(
        "absence_journalled",
        "8   ... also where another engine sees it come back",
        Edit(
            "engine.journal.watch",
            "        absences = self._absences.stated\n",
            "        absences = {}\n",
        ),
    ),
    mutant(
        "absence_begin",
        "8   ... from the first row on that was passed over, not from the newest",
        Edit(
            "engine.journal.absences",
            "msgspec.structs.replace(known, seen=max(known.seen, at))",
            "msgspec.structs.replace(known, since=at, seen=at)",
        ),
    ),
    mutant(
        "arrival",
        "8   a table whose rows were passed over before it took a captured name is a gap",
        Edit(
            "engine.journal.watch",
            "        if absence is not None:\n            if self._is_loss(",
            "        if absence is not None and absence.table:\n            if self._is_loss(",
        ),
        Edit(
            "engine.journal.watch",
            "        if self._is_other_selection:\n            return False\n",
            "        if True:\n            return False\n",
        ),
    ),
    mutant(
        "version_at",
        "8   newest version at or before the row, not newest of all",
        Edit(
            "engine.model.schema",
            "if v.first is not None and v.first <= position]",
            "if v.first is not None]",
        ),
    ),
    mutant(
        "schema_json",
        "8   schema.json before the first object",
        Edit(
            "engine.journal.publisher",
            "await self._schema_files.ensure(planned.table_name, planned.version, put.layout)",
            "pass",
        ),
    ),
    mutant(
        "fork",
        "6   another timeline, forked before the last plan, is refused",
        Edit("engine.journal.lease", "        if fork is None:\n", "        if True:\n"),
    ),
    mutant(
        "fork_absorbed",
        "6   ... also when that plan came late",
        Edit("engine.journal.journal", "                check()\n", ""),
    ),
    mutant(
        "other_timeline",
        "6   a reconnect to another timeline starts over",
        Edit(
            "engine.journal.lease",
            "            await self._refuse_other_branch()\n"
            "            await self.compare(stream, began)\n",
            "            await self.compare(stream, began)\n",
        ),
    ),
    mutant(
        "late_hour",
        "4   an object's hour is never later than the planner's clock",
        Edit(
            "engine.model.commit_time",
            "    return min(time_us, now_us)\n",
            "    return time_us\n",
        ),
    ),
    mutant(
        "early_hour",
        "4   never earlier than the table's previous object",
        Edit(
            "engine.model.layout",
            "    return max(hour_of(chunk_us), previous)\n",
            "    return hour_of(chunk_us)\n",
        ),
    ),
    mutant(
        "one_hour",
        "4   a chunk ends where its hour grows",
        Edit(
            "engine.flow.chunk",
            "if batch.first_commit_us >= self._next_hour_us:",
            "if False:",
        ),
    ),
    mutant(
        "one_version",
        "4   a chunk ends where its version changes",
        Edit("engine.flow.chunk", "if batch.version != self._version:", "if False:"),
    ),
    mutant(
        "group_commit",
        "5.1 at most one append in an interval",
        Edit(
            "engine.journal.schedule",
            "self._hurried, until=last_append + self._interval",
            "self._hurried, until=last_append",
        ),
    ),
    mutant(
        "room",
        "2   reading waits for room",
        Edit("engine.pipeline.streaming", "if not self._router.has_room:", "if False:"),
    ),
    mutant(
        "state",
        "5   a state file is the journal folded",
        Edit(
            "engine.journal.entry",
            "if plan[0].seq <= durable_seq]",
            "if plan[0].seq < durable_seq]",
        ),
    ),
    mutant(
        "proof_written",
        "6   If-None-Match is proved on the entry just written: entry 0 may have expired",
        Edit(
            "engine.journal.journal",
            "        key = journal_key(self.prefix, entry.seq)\n"
            "        if await self._create_once(key, encode_entry(entry), _JSON):\n",
            "        key = journal_key(self.prefix, 0)\n"
            "        if await self._create_once(key, await self._present(key), _JSON):\n",
        ),
    ),
    mutant(
        "good_state",
        "6   the newest good state file counts, not the newest",
        Edit(
            "engine.journal.journal",
            "            except (JournalError, ObjectArchived) as error:\n",
            "            except ObjectArchived as error:\n",
        ),
    ),
    mutant(
        "state_young",
        "4   the newest state file stays young",
        Edit(
            "engine.pipeline.pipeline",
            "        start.keeping = life.create_task(state_keeper(self._life).run())\n",
            "",
        ),
    ),
    mutant(
        "state_idle",
        "4   ... also where nothing is journalled",
        Edit(
            "engine.journal.journal",
            "            is_covered = self.state.seq == self._state_seq\n",
            "            is_covered = False\n"
            "            self.state_at = asyncio.get_running_loop().time()\n",
        ),
    ),
    mutant(
        "state_begun",
        "4   ... and its age counts from when it was made, not from the start",
        Edit(
            "engine.journal.state_keeper",
            "found_at = now() - age_seconds",
            "found_at = now()",
        ),
    ),
    mutant(
        "state_failover",
        "4   ... also in the life that begins with a failover",
        Edit(
            "engine.pipeline.pipeline",
            "        start.keeping = life.create_task(state_keeper(self._life).run())\n",
            "        if self._is_first_life:\n"
            "            start.keeping = life.create_task(state_keeper(self._life).run())\n",
        ),
    ),
    mutant(
        "newest_entry",
        "6   a state file without its entry and any later one is not gone on from",
        Edit(
            "engine.journal.journal",
            "if not found.is_entry_there and self.state.seq == self._state_seq:",
            "if False:",
        ),
    ),
    mutant(
        "old_end",
        "6   nor is a newest entry of the age at which a rule takes any",
        Edit(
            "engine.pipeline.needs",
            "if journal.ended_us is not None and rules is not None:",
            "if False:",
        ),
    ),
    mutant(
        "young_end",
        "6   ... and a younger one is",
        Edit(
            "engine.journal.bucket_rules",
            "if found is not None and age >= found[1]:",
            "if found is not None and age >= found[1] / 2:",
        ),
    ),
    mutant(
        "no_second_journal",
        "6   where tables' objects are and no journal, none is begun",
        Edit(
            "engine.pipeline.needs",
            "                await self._refuse_orphans(database)\n",
            "                pass\n",
        ),
    ),
    mutant(
        "unseen",
        "5   who did not see the journal's end for long appends nothing",
        Edit(
            "engine.journal.journal",
            "if self._sight is None or not self._sight.is_lost:",
            "if True:",
        ),
    ),
    mutant(
        "seen_sent",
        "5   ... and it was seen when it was asked for, not when the answer came",
        Edit(
            "engine.journal.journal",
            "self._sight.seen(sent_us)",
            "self._sight.seen(self._sight.now_us())",
        ),
    ),
    mutant(
        "seen_lately",
        "5   ... and who saw it a while ago goes on",
        Edit(
            "engine.journal.sight",
            "return self._clock() - self._seen_us > self._us_max",
            "return self._clock() - self._seen_us > self._us_max / 2",
        ),
    ),
    mutant(
        "seen_anew",
        "5   ... as who reads it anew does, however long ago that life began",
        Edit(
            "engine.journal.journal",
            "        self._seen(began_us)\n        files =",
            "        files =",
        ),
    ),
    mutant(
        "unseen_object",
        "5   ... and puts no object",
        Edit(
            "engine.journal.publisher",
            "            await self._journal.refuse_unseen()\n",
            "",
        ),
    ),
    mutant(
        "redo_expired",
        "6   an object in front of E was visible: where it is gone it has expired",
        Edit(
            "engine.journal.recovery",
            "return [plan for plan in missing if not self._was_visible(plan)]",
            "return missing",
        ),
    ),
    mutant(
        "own_uploads",
        "4   a start aborts uploads of its own prefix and key shapes, none else",
        Edit(
            "engine.journal.uploads",
            "            if prefix_of(upload.key) == prefix\n",
            "",
        ),
    ),
    mutant(
        "own_prefix",
        "4   ... and not of a prefix that begins alike",
        Edit(
            "engine.journal.uploads",
            "store.list_uploads(below(prefix))",
            "store.list_uploads(prefix)",
        ),
        Edit(
            "engine.journal.uploads",
            "            if prefix_of(upload.key) == prefix\n",
            "            if prefix_of(upload.key) is not None\n",
        ),
    ),
    mutant(
        "landmark",
        "6   the log is known again by the newest commit that the journal speaks of",
        Edit(
            "engine.journal.lease",
            "known is None or known.through == configuration.shown_through else None",
            "known is None else None",
        ),
    ),
    mutant(
        "shared_upload",
        "7   every worker stages under an upload of its own",
        Edit(
            "simulation.store",
            "        self.uploads[number] = Upload(key, self.now_us(), dict(metadata))\n",
            "        for other, upload in self.uploads.items():\n"
            "            if upload.key == key:\n"
            "                return other\n"
            "        self.uploads[number] = Upload(key, self.now_us(), dict(metadata))\n",
        ),
    ),
    mutant(
        "started_first",
        "7   nothing is staged before the entry that starts the attempt",
        Edit(
            "engine.snapshot.group",
            "            await self._register.started(attempt)\n"
            "            self._refuse_stale(attempt)\n",
            "",
        ),
        Edit(
            "engine.snapshot.group",
            "            await self._register.whole(\n",
            "            await self._register.started(attempt)\n"
            "            self._refuse_stale(attempt)\n"
            "            await self._register.whole(\n",
        ),
    ),
    mutant(
        "compared",
        "7   what may have changed is compared before the objects are handed over",
        Edit("engine.snapshot.group", "            await self._compare(table)\n", ""),
    ),
    mutant(
        "first_result",
        "7   the first result of a range wins, and no other is used",
        Edit(
            "engine.snapshot.group",
            "                        for other in copies:\n"
            "                            other.cancel()\n"
            "                        return result\n",
            "                        more = [(await other).objects for other in copies]\n"
            "                        return SnapshotResult(sum(more, result.objects))\n",
        ),
    ),
    mutant(
        "stale_range",
        "7   a range that is stale gives its attempt up",
        Edit(
            "engine.snapshot.group",
            "                    if result.failure is None:\n",
            "                    if result.failure is None or result.failure.kind == 'stale':\n",
        ),
    ),
    mutant(
        "overtaken",
        "7   objects of an attempt that is not wanted any more are not handed over",
        Edit(
            "engine.snapshot.group",
            "        if not self._register.is_under_way(attempt):\n",
            "        if False:\n",
        ),
    ),
    mutant(
        "earlier_attempt",
        "7   each held snapshot has attempts of its own",
        Edit(
            "engine.snapshot.group",
            "return self._register.start(\n"
            "                table,\n"
            "                self._held.point,\n"
            "                held.relation,\n"
            "                rest=held.begin,\n"
            "                is_divided=bool(held.rest),\n"
            "            )\n",
            "attempt = self._register.start(\n"
            "                table,\n"
            "                self._held.point,\n"
            "                held.relation,\n"
            "                rest=held.begin,\n"
            "                is_divided=bool(held.rest),\n"
            "            )\n"
            "            kept = self._ends.__dict__.setdefault('kept', {})\n"
            "            return kept.setdefault(table, attempt)\n",
        ),
    ),
    mutant(
        "every_range",
        "7   an attempt is whole when each of its ranges is staged",
        Edit(
            "engine.snapshot.group",
            "for number, own in enumerate(ranges)\n",
            "for number, own in enumerate(ranges)\n                    if number < 2\n",
        ),
    ),
    mutant(
        "given_again",
        "7   what a lost worker had is given again",
        Edit(
            "engine.snapshot.group",
            "                if not copies:\n"
            "                    self._give(group, wanted, copies)\n",
            "                if not copies and failures:\n"
            "                    await asyncio.Event().wait()\n"
            "                if not copies:\n"
            "                    self._give(group, wanted, copies)\n",
        ),
    ),
    mutant(
        "lost_snapshot",
        "7   a snapshot that is lost gives its attempts up",
        Edit(
            "simulation.snapshots",
            "        if self._lost.is_set() or self.is_over or"
            " self._world.server.timeline != self._timeline:\n",
            "        if self.is_over:\n",
        ),
        Edit(
            "engine.snapshot.group",
            "                    beside.create_task(self._held.watch()),\n",
            "",
        ),
    ),
    mutant(
        "one_group",
        "7   a table that is in a group is in no other one",
        Edit(
            "engine.snapshot.coordinator",
            "            if table not in taken\n            and not",
            "            if not",
        ),
    ),
    mutant(
        "worker_completes",
        "7   a worker never completes an upload",
        Edit(
            "engine.snapshot.staging",
            "        return self._staged(chunk)\n",
            "        staged = self._staged(chunk)\n"
            "        await self.begun.store.complete_upload(\n"
            "            self.key, self.upload_id, staged.parts, crc32=staged.crc32\n"
            "        )\n"
            "        return staged\n",
        ),
    ),
    mutant(
        "whole_first",
        "7   complete only after the `whole` entry",
        Edit(
            "engine.journal.committer",
            "        seq = await self._journal.append(\n",
            "        state = self._journal.state\n"
            "        for snapshot in plan.snapshots:\n"
            "            if snapshot.state == 'whole':\n"
            "                self._completer.complete(snapshot, state.next_seq, state.epoch)\n"
            "        seq = await self._journal.append(\n",
        ),
    ),
    mutant(
        "whole_unfinished",
        "7   a table is unfinished until its objects are visible",
        Edit(
            "engine.journal.snapshots",
            "is_vouched = self.is_complete and self.seq is not None and self.seq <= seq",
            "is_vouched = self.snapshot.state == 'whole'",
        ),
    ),
    mutant(
        "c_before_e",
        "7   a table is unfinished while its C is past E",
        Edit(
            "engine.journal.snapshots",
            "return is_vouched and self.snapshot.point <= durable",
            "return is_vouched",
        ),
    ),
    mutant(
        "captured_unfinished",
        "7   a captured table without a snapshot is unfinished",
        Edit("engine.journal.committer", "self._snapshots.capture(chunk.table)", "pass"),
    ),
    mutant(
        "capture_all",
        "7   every table that is published is captured, also one without rows",
        Edit(
            "engine.journal.watcher",
            "            self._snapshots.appear(table)\n",
            "            pass\n",
        ),
        Edit(
            "engine.journal.snapshots",
            "            self.appear(table)\n            self._fill(table)\n\n    def arrive_",
            "            if table in self._known:\n"
            "                self._fill(table)\n\n    def arrive_",
        ),
    ),
    mutant(
        "wanted_first",
        "7   the entry that captures a table comes before it is published",
        Edit(
            "engine.journal.newcomers",
            "            await self._snapshots.stated(wanted)\n",
            "",
        ),
    ),
    mutant(
        "gap_visible",
        "8   a gap is mended once its snapshot is visible",
        Edit(
            "engine.journal.snapshots",
            "if is_visible and gap.until <= newest.sees:",
            "if gap.until <= newest.sees:",
        ),
    ),
    mutant(
        "gap_end",
        "8   a snapshot that was taken before a gap's end does not mend it",
        Edit(
            "engine.journal.snapshots",
            "if is_visible and gap.until <= newest.sees:",
            "if is_visible:",
        ),
    ),
    mutant(
        "gap_filled",
        "8   a gap that ended behind its table's snapshot is filled by another one",
        Edit(
            "engine.journal.snapshots",
            "lengthen(_now())\n            self.resync(table)\n",
            "lengthen(_now())\n            pass\n",
        ),
    ),
    mutant(
        "gap_unseen",
        "8   a gap is filled also where the source has nothing to look at",
        Edit("engine.journal.watcher", "arrive_unseen()", "arrive(())"),
    ),
    mutant(
        "open_unfinished",
        "5   an open that captures a table more makes it unfinished",
        Edit("engine.journal.entry", "        self._want_snapshots(entry)\n", ""),
    ),
    mutant(
        "durable_unfinished",
        "5.4 a changed list of unfinished tables is appended although E stays",
        Edit(
            "engine.journal.planner",
            "(before.unfinished == tables and not awaits(seq)):",
            "not awaits(seq):",
        ),
    ),
    mutant(
        "durable_seq",
        "5.4 the entry that durable vouches for names no snapshot's object that is missing",
        Edit(
            "engine.journal.committer",
            "seqs = (self._lanes.oldest_pending_seq, self._snapshots.oldest_pending_seq)",
            "seqs = (self._lanes.oldest_pending_seq,)",
        ),
    ),
    mutant(
        "look_after",
        "7   complete first; NoSuchUpload: then look whether the object is there",
        Edit(
            "engine.journal.completer",
            "        answer = await self._patience.answered(_Asking(self._store, staged).ask)\n"
            "        if answer is Completion.CREATED"
            " or await self._is_there(attempt.snapshot, staged):\n",
            "        seen = await self._is_there(attempt.snapshot, staged)\n"
            "        answer = await self._patience.answered(_Asking(self._store, staged).ask)\n"
            "        if answer is Completion.CREATED or seen:\n",
        ),
    ),
    mutant(
        "void",
        "7   NoSuchUpload and absent starts again",
        Edit(
            "engine.journal.completer",
            "            return\n        attempt.is_void = True\n",
            "            return\n",
        ),
    ),
    mutant(
        "marker",
        "7   a snapshot begins with a truncate record",
        Edit(
            "simulation.snapshot_monitor",
            'changes.append((str(position), found["op"], key or 0, found["value"]))',
            'op = "d" if is_marker else found["op"]\n'
            '            changes.append((str(position), op, key or 0, found["value"]))',
        ),
    ),
    mutant(
        "marker_last",
        "7   the range with the truncate record becomes visible last",
        Edit(
            "engine.journal.completer",
            "_all_visible(attempt, rows) and await self._all_visible(attempt, marker)\n",
            "_all_visible(attempt, marker) and await self._all_visible(attempt, rows)\n",
        ),
    ),
    mutant(
        "snapshot_serial",
        "7   objects of a range become visible one after the other",
        Edit(
            "engine.journal.completer",
            "lane = Lane(snapshot.table_name, snapshot.attempt, staged.range_number)",
            "lane = Lane(staged.key, snapshot.attempt, staged.range_number)",
        ),
    ),
    mutant(
        "named_uploads",
        "7   a takeover aborts no upload that an entry names",
        Edit(
            "engine.pipeline.pipeline",
            "abort_uploads(self._world.store, left, spared=named)",
            "abort_uploads(self._world.store, left, spared=())",
        ),
    ),
    mutant(
        "list_first",
        "7   a long list of objects is there before the entry that names it",
        Edit(
            "engine.journal.object_lists",
            "        await self._patience.answered(\n            lambda: self._store.create(",
            "        lists = self.__dict__.setdefault('lists', [])\n"
            "        lists.append(asyncio.ensure_future(self._patience.answered(\n"
            "            lambda: self._store.create(",
        ),
        Edit(
            "engine.journal.object_lists",
            "content, content_type=_JSON, metadata={})\n        )\n",
            "content, content_type=_JSON, metadata={})\n        )))\n",
        ),
    ),
    mutant(
        "list_compared",
        "7   ... and is compared with what the entry says of it",
        Edit(
            "engine.journal.object_lists",
            "    if hashlib.sha256(content).hexdigest() != listed.sha256:\n",
            "    if False:\n",
        ),
    ),
    mutant(
        "list_uploads",
        "7   a takeover aborts no upload that such a list names",
        Edit(
            "engine.journal.object_lists",
            "found.update(staged.upload_id for staged in await self.objects_of(snapshot))",
            "found.update(staged.upload_id for staged in snapshot.objects)",
        ),
    ),
    mutant(
        "segment_marker",
        "7   one truncate record an attempt, not one a segment",
        Edit(
            "engine.snapshot.group",
            "begins_attempt=known.wanted.number == 0,",
            "begins_attempt=known.wanted.number & 0xFFFFFF == 0,",
        ),
    ),
    mutant(
        "segment_ranges",
        "7   ranges are unique over the attempt",
        Edit(
            "engine.snapshot.group",
            "for lane in [segment_range(attempt.segment, number)]",
            "for lane in [number]",
        ),
        Edit(
            "engine.journal.snapshots",
            "is_in_lane and segment_of(staged.range_number) == attempt.segment",
            "is_in_lane",
        ),
    ),
    mutant(
        "segment_visible",
        "7   a segment begins once the journal vouches for the one before",
        Edit(
            "engine.journal.entry",
            "found = (known for known in (self, self.before) if known and known.is_visible)",
            "found = (known for known in (self, self.before) if known)",
        ),
    ),
    mutant(
        "segment_unfinished",
        "7   a table is unfinished until its last segment is visible",
        Edit(
            "engine.journal.entry",
            "        return self.is_visible and not self.snapshot.rest\n",
            "        return self.is_visible\n",
        ),
        Edit(
            "engine.journal.snapshots",
            "        return self.is_visible and not self.snapshot.rest\n",
            "        return self.is_visible\n",
        ),
    ),
    mutant(
        "segment_vouched",
        "5.4 durable's entry is stated again although E stays, where a segment follows",
        Edit(
            "engine.journal.snapshots",
            "and vouched_seq < known.seq <= seq\n",
            "and False\n",
        ),
    ),
    mutant(
        "moved_key",
        "7   a row that moves past unread segments begins the attempt anew",
        Edit(
            "engine.pipeline.streaming",
            "            self._snapshots.moved(moved)\n",
            "            pass\n",
        ),
    ),
    mutant(
        "moved_before",
        "7   no segment begins before a moved key that was received already",
        Edit(
            "engine.journal.snapshots",
            "is_moved = self._moved.get(table, LOG_BEGIN) >= point",
            "is_moved = False",
        ),
    ),
    mutant(
        "moved_last",
        "7   a moved key counts until the stream is past the last segment's point",
        Edit(
            "engine.journal.snapshots",
            "not snapshot.rest and snapshot.point <= commit",
            "not snapshot.rest",
        ),
    ),
    mutant(
        "moved_first",
        "7   a moved key counts while the first segment is being read",
        Edit(
            "engine.journal.snapshots",
            "is_divided = attempt is not None and attempt.is_divided",
            "is_divided = False",
        ),
    ),
    mutant(
        "moved_torn",
        "7   a moved key counts for visible segments whatever is asked since",
        Edit(
            "engine.journal.snapshots",
            'known.snapshot.state != "whole" and self._is_torn(table, commit)',
            "False",
        ),
    ),
    mutant(
        "moved_cancelled",
        "7   segments that a row moved past are no snapshot after a cancellation",
        Edit(
            "engine.journal.entry",
            "return self._past_e(before) if snapshot.undivided else before",
            "return before",
        ),
    ),
    mutant(
        "segment_gap",
        "7   a gap behind the first segment's point begins the attempt anew",
        Edit(
            "engine.journal.entry",
            "        return self.began or self.point\n",
            "        return self.point\n",
        ),
        Edit(
            "engine.journal.snapshots",
            "before.segment + 1, before.sees\n",
            "before.segment + 1, before.began or before.point\n",
        ),
    ),
    mutant(
        "new_c",
        "7   a crash before `whole` starts again under a new C",
        Edit(
            "engine.journal.snapshots",
            "        number, segment, began = self._attempt_count(table) + 1, 0, LOG_BEGIN\n",
            "        known = self._open[table].snapshot\n"
            "        is_old = known.state == 'started'\n"
            "        number = self._attempt_count(table) + (not is_old)\n"
            "        segment, began = 0, LOG_BEGIN\n"
            "        if is_old:\n"
            "            point = LogPoint(known.point, point.resume, point.commit_us)\n",
        ),
    ),
    mutant(
        "snapshot_version",
        "8   a snapshot's version has no first position",
        Edit(
            "engine.model.schema",
            "    return TableVersion(number, None, record, relation, flat_prefix)\n",
            "    return TableVersion(number, Position('0000'), record, relation, flat_prefix)\n",
        ),
    ),
    mutant(
        "snapshot_shape",
        "8   a snapshot takes the version of its own shape, not the stream's newest",
        Edit(
            "engine.model.schema",
            "alike = [v for v in versions if _is_alike(v, relation) and v.record == record]",
            "alike = [v for v in versions if v.first is not None]",
        ),
    ),
    mutant(
        "snapshot_frontier",
        "7   snapshot objects do not move the frontier",
        Edit(
            "engine.journal.entry",
            "            self.snapshot_position = max(self.snapshot_position, snapshot.point)\n",
            "            self.snapshot_position = max(self.snapshot_position, snapshot.point)\n"
            "            last = max((o.last for o in snapshot.objects), default=NOWHERE)\n"
            "            if last > self.frontier(snapshot.table_name).last:\n"
            "                self.frontiers[snapshot.table] = Frontier(last, snapshot.hour)\n",
        ),
    ),
    mutant(
        "resync_under_way",
        "7   a snapshot that is asked for again begins after it was asked for",
        Edit(
            "engine.journal.snapshots",
            "        self._attempts.pop(table, None)\n        self._refused.pop(table, None)\n",
            "        if table in self._attempts:\n            return\n"
            "        self._refused.pop(table, None)\n",
        ),
    ),
    mutant(
        "answer_apart",
        "7   what a request leads to is in the entry that answers it",
        Edit(
            "engine.journal.committer",
            "return draft.plan("
            "self._snapshots.pending, self._requests.pending, self._signals.pending)",
            "answers, signals = self._requests.pending, self._signals.pending\n"
            "        stated = () if answers else self._snapshots.pending\n"
            "        return draft.plan(stated, answers, signals)",
        ),
    ),
    mutant(
        "signal_apart",
        "7   what a signal leads to is in the entry that answers it",
        Edit(
            "engine.journal.committer",
            "return draft.plan("
            "self._snapshots.pending, self._requests.pending, self._signals.pending)",
            "answers, signals = self._requests.pending, self._signals.pending\n"
            "        stated = () if signals else self._snapshots.pending\n"
            "        return draft.plan(stated, answers, signals)",
        ),
    ),
    mutant(
        "signal_successor",
        "7   a signal that the journal answers is not done again by a successor",
        Edit(
            "engine.journal.signals",
            "self._judged_through = state.signals_through",
            "self._judged_through = NOWHERE",
        ),
        Edit(
            "engine.journal.signals",
            "from engine.model.plural import counted\n",
            "from engine.model.plural import counted\nfrom engine.model.position import NOWHERE\n",
        ),
    ),
    mutant(
        "signal_reconnect",
        "7   a signal that is read again after a reconnect is not done again",
        Edit("engine.journal.signals", "        self._judged_through = signal.position\n", ""),
    ),
    mutant(
        "signal_dropped",
        "7   a signal that was dropped is not done when it is read again",
        Edit("engine.journal.signals", "        self._judged_through = signal.position\n", ""),
        Edit(
            "engine.journal.signals",
            "        self._taken_at.append(now)\n",
            "        self._taken_at.append(now)\n        self._judged_through = signal.position\n",
        ),
    ),
    mutant(
        "signal_over",
        "7   a signal that commits before E is over",
        Edit(
            "engine.journal.signals",
            "return is_behind and signal.position >",
            "return signal.position >",
        ),
    ),
    mutant(
        "signal_step",
        "7   a signal is judged in the step that counts its intake",
        Edit(
            "engine.pipeline.streaming",
            "self._signals.take(intake.signals, asyncio.get_running_loop().time())",
            "loop = asyncio.get_running_loop()\n"
            "            loop.call_later(2, self._signals.take, intake.signals, loop.time())",
        ),
    ),
    mutant(
        "signal_durable",
        "7   no entry states an E behind a signal that has no answer",
        Edit(
            "engine.journal.committer",
            "            signals=plan.signals,\n",
            "            signals=plan.signals if durable is None else (),\n",
        ),
        Edit(
            "engine.journal.committer",
            "        self._signals.journalled(plan.signals)\n",
            "        self._signals.journalled(plan.signals if durable is None else ())\n",
        ),
    ),
    mutant(
        "signal_limit",
        "7   only so many signals are taken in a while",
        Edit("engine.journal.signals", "if is_full and now", "if False and now"),
    ),
    mutant(
        "signal_fork",
        "6   a signal behind a fork is new, whatever was answered there before",
        Edit(
            "engine.journal.entry",
            "        self.signals_through = min(self.signals_through, Position(behind))\n",
            "",
        ),
    ),
    mutant(
        "request_twice",
        "7   a request that the journal answers is not done again",
        Edit(
            "engine.journal.requests",
            "return name not in self._pending and not self._state.is_answered(name)",
            "return name not in self._pending",
        ),
    ),
    mutant(
        "request_start",
        "7   no attempt begins before the entry says that it is asked for",
        Edit(
            "engine.journal.snapshots",
            " or table in self._attempts or table in self._asked:",
            " or table in self._attempts:",
        ),
    ),
    mutant(
        "cancelled_unfinished",
        "7   a table whose first snapshot is cancelled stays unfinished",
        Edit(
            "engine.journal.snapshots",
            'return known.snapshot.state == "gone" and known.snapshot.point <= durable',
            "return True",
        ),
    ),
    mutant(
        "cancelled_as_before",
        "7   a cancellation leaves no earlier snapshot once a later one may be visible in part",
        Edit(
            "engine.journal.entry",
            'elif snapshot.state in {"wanted", "started"}:',
            "else:",
        ),
    ),
    mutant(
        "gone",
        "7   a table that the source has no more is not waited for",
        Edit(
            "engine.journal.snapshots",
            "for table in sorted(self.owed.intersection(tables)):",
            "for table in ():",
        ),
    ),
    mutant(
        "gone_point",
        "7   a table that is gone is unfinished up to where it went",
        Edit(
            "engine.journal.snapshots",
            'self._ask(table, "gone", point)',
            'self._ask(table, "gone")',
        ),
    ),
    mutant(
        "gone_finished",
        "7   behind where it went, a table that is gone is not unfinished",
        Edit(
            "engine.journal.snapshots",
            'return known.snapshot.state == "gone" and known.snapshot.point <= durable',
            "return False",
        ),
    ),
    mutant(
        "gone_again",
        "7   a table that takes the name of one that is gone is wanted",
        Edit(
            "engine.journal.snapshots",
            "if self._is_on and table in self._gone:",
            "if False:",
        ),
    ),
    mutant(
        "gone_journalled",
        "7   also where another engine saw that it is gone",
        Edit(
            "engine.journal.snapshots",
            """        self._gone = {
            stated.snapshot.table_name
            for stated in state.snapshots.values()
            if stated.snapshot.state == "gone"
        }
""",
            "        self._gone = set()\n",
        ),
    ),
    mutant(
        "dropped",
        "8   a table that is dropped is a gap where it has rows in the bucket",
        Edit(
            "engine.journal.watch",
            "        if is_passed_over or was_open",
            "        if True or was_open",
        ),
    ),
    mutant(
        "dropped_selection",
        "8   also under other settings, where they capture it",
        Edit(
            "engine.journal.watch",
            "self._is_other_selection and not self._is_captured(name)",
            "self._is_other_selection",
        ),
    ),
    mutant(
        "keep_stream",
        "7   no streamed change is dropped because of a snapshot",
        Edit(
            "engine.journal.snapshots",
            "        self._attempts[table] = attempt\n",
            "        self._attempts[table] = attempt\n"
            "        self._reception.points[table] = point.position\n",
        ),
        Edit(
            "engine.flow.reception",
            "        self._durable = durable\n",
            "        self._durable = durable\n        self.points = {}\n",
        ),
        Edit(
            "engine.flow.reception",
            "position < self._durable()",
            "position < max(self._durable(), self.points.get(relation.table, ''))",
        ),
    ),
    mutant(
        "snapshot_schema_json",
        "8   schema.json before a snapshot's first object",
        Edit(
            "engine.journal.completer",
            "await self._schema_files.ensure(snapshot.table_name, snapshot.version, layout)",
            "pass",
        ),
    ),
    mutant(
        "snapshot_configuration",
        "7   the configuration is kept under which an attempt was staged",
        Edit(
            "engine.journal.entry",
            "        needed |= {stated.epoch for stated in self.snapshots.values()"
            " if not stated.is_visible}\n",
            "",
        ),
    ),
    mutant(
        "fork_snapshot",
        "6   another timeline, forked before what a named snapshot saw, is refused",
        Edit(
            "engine.journal.lease",
            "seen = max(state.durable_position, state.snapshot_position)",
            "seen = state.durable_position",
        ),
    ),
    mutant(
        "accept_named",
        "6   a loss is accepted by its name alone",
        Edit(
            "engine.pipeline.pipeline",
            "if loss.lost != self._settings.accept_gap:",
            "if not self._settings.accept_gap:",
        ),
    ),
    mutant(
        "accept_order",
        "3   where a log begins anew, its positions are behind all that the journal names",
        Edit("engine.journal.acceptance", "if start.position <= seen:", "if False:"),
    ),
    mutant(
        "accept_gaps",
        "6   an accepted loss is a gap of every known table",
        Edit(
            "engine.journal.acceptance",
            "for table in state.known(self._configuration):",
            "for table in state.known(self._configuration)[:1]:",
        ),
    ),
    mutant(
        "accept_void",
        "6   planned objects that nobody can make any more are void",
        Edit(
            "engine.journal.acceptance",
            "await self._recovery.void(void, self._clock())",
            "pass",
        ),
    ),
    mutant(
        "accept_snapshots",
        "7   behind an accepted loss every table is read again",
        Edit(
            "engine.journal.entry",
            "        self.snapshots = {}\n        for table in self.known(",
            "        for table in set() and self.known(",
        ),
    ),
    mutant(
        "accept_goes_on",
        "6   whoever opens goes on with a loss that is being accepted",
        Edit(
            "engine.journal.entry",
            "self.accepting = entry.accepting or self.accepting",
            "self.accepting = entry.accepting",
        ),
    ),
    mutant(
        "accept_generation",
        "3   the generation grows where the log is another one",
        Edit("engine.journal.lease", "known.generation + self._is_another_log", "known.generation"),
    ),
    mutant(
        "accept_fork",
        "6   a failover since a loss was named is a larger loss",
        Edit(
            "engine.journal.lease",
            "        if self._is_another_log:\n",
            "        if self.accepting is not None:\n",
        ),
    ),
    mutant(
        "accept_void_gap",
        "6   the gap covers what a void object would have held",
        Edit(
            "engine.journal.acceptance",
            "until=max(start, ends.get(table, start)),",
            "until=start,",
        ),
    ),
    mutant(
        "accept_void_died",
        "6   ... also where an engine made it that died before it stated the gap",
        Edit(
            "engine.journal.acceptance",
            "if any(s.planned.is_void for s in plan))",
            "if any(s.planned.is_void and s.epoch == state.epoch for s in plan))",
        ),
    ),
    mutant(
        "accept_seq",
        "6   durable's entry stays before what is still missing",
        Edit(
            "engine.journal.acceptance",
            "seq = min((plan[0].seq for plan in rest), default=state.next_seq) - 1",
            "seq = state.seq",
        ),
    ),
    mutant(
        "accept_place",
        "6   behind an accepted loss it goes on where the source stands",
        Edit(
            "engine.journal.lease",
            "return stream, (await stream.standing()).confirmed",
            "return stream, (await stream.standing()).end",
        ),
    ),
    mutant(
        "read_before_snapshot",
        "11  who reads gets the rows before a snapshot's point, too",
        Edit(
            "engine.reader.table.steps",
            "        yield from _of_stream(links, begin, end)\n",
            "",
        ),
    ),
    mutant(
        "read_behind_cursor",
        "11  a cursor is behind everything before the place that was read",
        Edit(
            "engine.reader.table.reading",
            "through=max(cursor.through, known.until),",
            "through=cursor.through,",
        ),
    ),
    mutant(
        "read_to_durable",
        "11  what is durable is read, also where its entry still waits for another table",
        Edit("engine.reader.table.known", "    if begun:\n", "    if False:\n"),
    ),
    mutant(
        "read_rows_once",
        "11  rows of a snapshot that were given are not given again",
        Edit(
            "engine.reader.table.reading",
            "given=Position(LAST) if pieces is not None else cursor.given,",
            "given=cursor.given,",
        ),
    ),
    mutant(
        "read_in_order",
        "11  rows behind a snapshot's point come behind its rows",
        Edit(
            "engine.reader.table.steps",
            "        begin = end\n    yield from",
            "    yield from",
        ),
    ),
    mutant(
        "current_doubts",
        "11  current rows of which some are missing are refused",
        Edit(
            "engine.reader.table.reading",
            "doubts = [*doubts_of_rows(known, begin, attempt, is_whole=is_whole)]",
            "doubts = []",
        ),
    ),
    mutant(
        "current_gap",
        "11  ... also where a gap is behind their snapshot's point",
        Edit(
            "engine.reader.table.doubts",
            "is_behind = bool(gap.until) and gap.until <= begin",
            "is_behind = bool(gap.until)",
        ),
    ),
    mutant(
        "current_order",
        "11  current rows are folded from the newest record back",
        Edit(
            "engine.reader.table.reading",
            "self.bodies.of(reversed(self.steps), group)",
            "self.bodies.of(self.steps, group)",
        ),
    ),
    mutant(
        "current_partial",
        "11  a snapshot of which some objects have expired is none",
        Edit(
            "engine.reader.table.snapshot",
            "is_short = len(objects) < stated.object_count",
            "is_short = False",
        ),
    ),
)
