"""The fold gives the table, whatever happened to it: random histories against the table itself."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.position import LogPosition
from engine.model.record import Envelope
from engine.reader.fold.shape import Shape
from fold_rig import (
    Body,
    Row,
    Table,
    as_read,
    as_values,
    folded,
    folded_plainly,
    newest_first,
    shape,
)

TEXT_KEY = 'grüße"key\\'
"""A column whose name has to be escaped."""
COLUMNS = ("after", "id", TEXT_KEY, "big", "doc", "metadata")
LARGE = ("big", "doc")
TEXTS = (
    *("", "a", 'a"b', "\\", "größe 漢字", "x" * 40, "line\nfeed\t", "\u2028", "null"),
    '},"after":{"id":1',
    ',"metadata":{"op":"t","connector":"postgresql","db":"shop"',
    '"}}',
)
DOCUMENTS = (
    *("null", "{}", "[]", "7", '"text"', '{"a":{"b":[1,{}]},"after":{"id":2},"id":3}'),
    '{"x":1,"metadata":{"op":"d","position":"0001.0000000000000000.0000000000000000.000000"}}',
    '["},\\"after\\":null",{"source":{"connector":"x"}}]',
)


@dataclass(slots=True)
class Story:
    """Random changes of a table."""

    random: random.Random
    table: Table
    snapshots: list[tuple[LogPosition, Sequence[Body]]] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shapes.append(self.table.shape)

    def go_on(self, transactions: int) -> None:
        for _ in range(transactions):
            self.table.begin()
            for _ in range(self.random.choice((1, 1, 2, 5))):
                self.change()
            if self.random.random() < 0.3:
                self.table.cut()
            if self.random.random() < 0.06:
                self.snapshots.append(self.table.snapshot(len(self.snapshots) + 1))

    def change(self) -> None:
        kind = self.random.random()
        if kind < 0.03:
            self.table.truncate()
        elif kind < 0.35 or not self.table.rows:
            self.insert()
        elif kind < 0.5:
            self.table.delete(self.place())
        elif kind < 0.57:
            self.swap()
        else:
            self.update()
        if self.random.random() < 0.1:
            self.table.cut()

    def insert(self) -> None:
        row = {name: self.value(name) for name in self.table.shape.columns}
        if self.is_free(row):
            self.table.insert(row)

    def update(self) -> None:
        place = self.place()
        names = self.table.shape.columns
        changed = {name: self.value(name) for name in names if self.random.random() < 0.3}
        if self.random.random() < 0.3:
            changed |= {name: self.value(name) for name in self.table.shape.key}
        self.change_row(place, changed)

    def change_row(self, place: int, changed: Row) -> None:
        old = self.table.rows[place]
        new = {name: changed.get(name, old.get(name)) for name in self.table.shape.columns}
        if self.is_free(new, but=place):
            # What is as it was may be left out, where it is stored out of line.
            large = LARGE if TEXT_KEY not in self.table.shape.key else (*LARGE, TEXT_KEY)
            left_out = [
                name
                for name in large
                if name in new
                and new[name] == old.get(name) is not None
                and self.random.random() < 0.7
            ]
            for name in left_out:
                changed.pop(name, None)
            self.table.update(place, changed, unchanged=left_out)

    def swap(self) -> None:
        """Two rows change their keys, by way of a third."""
        if len(self.table.rows) < 2 or not self.table.has_key:
            return
        one, other = self.random.sample(range(len(self.table.rows)), 2)
        key = self.table.shape.key
        first = {name: self.table.rows[one][name] for name in key}
        second = {name: self.table.rows[other][name] for name in key}
        self.change_row(one, {**first, "id": "99"})
        self.change_row(other, dict(first))
        self.change_row(one, dict(second))

    def place(self) -> int:
        return self.random.randrange(len(self.table.rows))

    def value(self, name: str) -> str | None:
        is_key = self.table.has_key and name in self.table.shape.key
        if not is_key and self.random.random() < 0.2:
            return None
        if name == "id":
            return str(self.random.randrange(5))
        choices = DOCUMENTS if name == "doc" else TEXTS
        return self.random.choice(choices[:3] if is_key else choices)

    def is_free(self, row: Row, *, but: int = -1) -> bool:
        if not self.table.has_key:
            return True
        key = self.table.shape.key
        return all(
            place == but or any(row[name] != other[name] for name in key)
            for place, other in enumerate(self.table.rows)
        )


KEYS: tuple[tuple[tuple[str, ...], bool], ...] = (
    (("id",), False),
    (("id",), True),
    ((TEXT_KEY, "id"), False),
    ((TEXT_KEY,), False),
    ((TEXT_KEY, "id"), True),
)
"""A key, and whether the replica identity is the whole row."""

SEEDS = st.integers(0, 2**32)
stories = settings(max_examples=150, deadline=None)


@pytest.mark.parametrize("envelope", ["standard", "debezium"])
@pytest.mark.parametrize("memory_max", [1 << 40, 8_000])
@given(SEEDS, st.sampled_from(KEYS), st.integers(1, 40))
@stories
def test_the_fold_of_any_history_is_the_table(
    envelope: Envelope,
    memory_max: int,
    seed: int,
    key: tuple[tuple[str, ...], bool],
    transactions: int,
) -> None:
    table = Table(shape(*COLUMNS, key=key[0], envelope=envelope), is_full=key[1])
    story = Story(random.Random(seed), table)

    story.go_on(transactions)
    table.cut()

    order = newest_first(table.bodies, story.snapshots)
    lines = [line for _, line in folded(order, story.shapes, memory_max=memory_max)]
    assert as_read(lines, COLUMNS) == as_values(table.rows, COLUMNS)


@given(SEEDS, st.integers(1, 40), st.sampled_from((1 << 40, 12_000)))
@stories
def test_a_table_without_a_key_is_counted_by_whole_rows(
    seed: int, transactions: int, memory_max: int
) -> None:
    table = Table(shape(*COLUMNS, key=COLUMNS, is_whole_row=True), is_full=True)
    story = Story(random.Random(seed), table)

    story.go_on(transactions)
    table.cut()

    order = newest_first(table.bodies, story.snapshots)
    lines = [line for _, line in folded(order, story.shapes, memory_max=memory_max)]
    assert as_read(lines, COLUMNS) == as_values(table.rows, COLUMNS)


@given(seed=SEEDS, is_whole_row=st.booleans())
@stories
def test_columns_come_and_go(*, seed: int, is_whole_row: bool) -> None:
    table = Table(_version(COLUMNS, 1, is_whole_row=is_whole_row), is_full=is_whole_row)
    story = Story(random.Random(seed), table)

    for version, names in enumerate((("new", *COLUMNS), ("id", TEXT_KEY, "new", "big")), 2):
        story.go_on(story.random.randrange(8))
        table.become(_version(names, version, is_whole_row=is_whole_row))
        story.shapes.append(table.shape)
    story.go_on(story.random.randrange(8))
    table.cut()

    names = table.shape.columns
    found = folded(newest_first(table.bodies, story.snapshots), story.shapes)
    assert as_read((line for _, line in found), names) == as_values(table.rows, names)


def _version(names: tuple[str, ...], version: int, *, is_whole_row: bool) -> Shape:
    key = names if is_whole_row else ("id",)
    return shape(*names, key=key, version=version, is_whole_row=is_whole_row)


@given(SEEDS, st.sampled_from(KEYS), st.integers(1, 40))
@stories
def test_the_fold_is_what_a_plain_one_gives(
    seed: int, key: tuple[tuple[str, ...], bool], transactions: int
) -> None:
    table = Table(shape(*COLUMNS, key=key[0]), is_full=key[1])
    story = Story(random.Random(seed), table)

    story.go_on(transactions)
    table.cut()

    bodies = [*table.bodies, *(body for _, objects in story.snapshots for body in objects)]
    plain = folded_plainly(bodies, key[0])
    lines = [line for _, line in folded(newest_first(table.bodies, story.snapshots), story.shapes)]
    assert as_read(lines, COLUMNS) == as_read((json.dumps(row).encode() for row in plain), COLUMNS)
