"""A module of ours as a process of its own: an order in, lines of JSON out.

Invariant: the process ends when its standard input does. So it does not outlive the block, nor the
harness, however that ends.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from engine.model.errors import TailraceError

_END_SECONDS_MAX = 10.0
_LINE_BYTES_MAX = 1024 * 1024
_ROOT = Path(__file__).parent.parent.parent


class ChildFailed(TailraceError):
    """A process of the harness ended badly."""

    exit_code = 1


class Child:
    """A running module."""

    def __init__(self, module: str, process: asyncio.subprocess.Process) -> None:
        self._module = module
        self._process = process
        self._is_given_up = False

    async def lines(self) -> AsyncIterator[bytes]:
        """What it says, until it ends. Raises ChildFailed unless it ends with 0.

        Cancellation leaves it running.
        """
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            yield line
        code = await self._process.wait()
        if code != 0 and not self._is_given_up:
            raise ChildFailed(f"{self._module} ended with code {code}; see above")

    def finish(self) -> None:
        """Ask it to come to an end."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def give_up(self) -> None:
        """Kill it, which is no failure of its own. Cancellation comes after the kill."""
        self._is_given_up = True
        self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def running(module: str, order: msgspec.Struct) -> AsyncIterator[Child]:
    """Start `module` and tell it its order, one line of JSON.

    At the block's end it is asked to finish, and killed if that takes too long. Cancellation kills
    it.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        cwd=_ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES_MAX,
        # The terminal's Ctrl-C is for the harness.
        start_new_session=True,
    )
    child = Child(module, process)
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        yield child
        child.finish()
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS_MAX):
                await process.wait()
    finally:
        if process.returncode is None:
            await child.give_up()
