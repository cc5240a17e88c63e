"""Whether a machine has room for an engine, as `check` says it."""

from engine.operate.room import descriptors_finding, memory_finding

MIB = 1 << 20


def test_too_few_descriptors_are_a_warning_with_what_to_raise() -> None:
    assert "destination.concurrency" in descriptors_finding(limit=95, need=96).hint
    assert not descriptors_finding(limit=96, need=96).hint


def test_a_buffer_that_leaves_no_room_for_the_process_is_a_warning() -> None:
    assert "engine.memory_limit" in memory_finding(129 * MIB, 256 * MIB).hint
    assert not memory_finding(128 * MIB, 256 * MIB).hint
