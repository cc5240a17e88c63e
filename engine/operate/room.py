"""Room: whether this machine has what the engine is told to take.

Strategy: too little of it stops no start, and shows only under load. So `check` says it before.

Invariant: pure: what there is, is read by the caller.
"""

from typing import Final

from engine.model.amount import size_text
from engine.model.trial import Finding

_DESCRIPTORS_PLENTY: Final = 1024
"""Enough for every default of ours, and what most systems give."""

_PROCESS_SHARE: Final = 2
"""The process itself takes about as much again as it buffers: `config.memory`."""


def descriptors_finding(limit: int, need: int) -> Finding:
    """Whether so many descriptors are enough for the engine itself."""
    text = f"{limit:,} may be open, the engine needs up to {need:,}"
    if limit >= need:
        return Finding(text)
    return Finding(text, descriptors_hint(need))


def descriptors_hint(need: int) -> str:
    """What gives a process at least `need` descriptors."""
    wanted = max(need, _DESCRIPTORS_PLENTY)
    return (
        "without them requests to the bucket and connections fail under load. Raise the hard limit"
        f" to {wanted} (the engine takes all of it by itself): ulimit -n {wanted} in a shell,"
        f" LimitNOFILE={wanted} in a systemd unit, --ulimit nofile={wanted} with Docker, and in an"
        ' ECS container definition "ulimits": [{"name": "nofile", "softLimit": '
        f'{wanted}, "hardLimit": {wanted}}}]. Or lower destination.concurrency'
    )


def memory_finding(buffered_bytes: int, available_bytes: int) -> Finding:
    """Whether the machine, or the container, has that much to be buffered, and the process too."""
    text = (
        f"{size_text(buffered_bytes)} may be buffered (engine.memory_limit), of"
        f" {size_text(available_bytes)} that are there"
    )
    if buffered_bytes * _PROCESS_SHARE <= available_bytes:
        return Finding(text)
    return Finding(
        f"{text}: the process takes about as much again",
        'give the container more memory, or set engine.memory_limit = "auto"',
    )
