"""verify on buckets of simulated engines: killed, superseded, restating, and never a problem."""

import asyncio
import random
from collections.abc import Iterator
from typing import Literal

import pytest

from engine.reader.verify import Code, verify
from memory_store import MemoryStore, StoredObject
from simulation.engines import prepared_process
from simulation.store import StoredObject as SimulatedObject
from simulation.world import World

SCHEDULES = 25


class PhotographedWorld(World):
    """A world whose bucket is copied at random moments: whatever is there then has to be right."""

    def __init__(self, seed: int) -> None:
        self.photographs: list[MemoryStore] = []
        self._moments = random.Random(seed)
        super().__init__(seed)

    def created(self, stored: SimulatedObject) -> None:
        super().created(stored)
        # A request may lie in the bucket before there is a journal.
        is_begun = any("/journal/" in key for key in self.bucket.objects)
        if self._moments.random() < 0.02 and is_begun:
            self.photographs.append(self.photograph())

    def _rule(self) -> None:
        """No state file is damaged here: verify would say so."""

    def _damage_list(self, entry: SimulatedObject) -> None:
        """Nor a list."""

    def photograph(self) -> MemoryStore:
        return MemoryStore(
            {
                key: StoredObject(found.body, dict(found.metadata))
                for key, found in self.bucket.objects.items()
            }
        )


class SilentProgress:
    def reached(self, phase: str, done: int, total: int | None) -> None:
        pass


def photographs(seed: int) -> Iterator[MemoryStore]:
    world = PhotographedWorld(seed)
    assert world.run().violation is None
    yield from world.photographs[:3]
    yield world.photograph()


@pytest.fixture(autouse=True)
def prepared() -> Iterator[None]:
    with prepared_process():
        yield


@pytest.mark.timeout(300)
@pytest.mark.parametrize("depth", ["light", "full"])
def test_what_engines_leave_behind_is_right_at_any_moment(depth: Literal["light", "full"]) -> None:
    pending = 0
    for seed in range(SCHEDULES):
        for store in photographs(seed):
            verdict = asyncio.run(
                verify(store, "lake", depth=depth, concurrency=4, progress=SilentProgress())
            )

            # The simulated source has lines of its own form.
            found = {problem.code for problem in verdict.problems} - {Code.LINE_MALFORMED}
            assert found == set(), (seed, verdict.problems)
            pending += verdict.pending
    assert pending, "no photograph shows an engine at work"
