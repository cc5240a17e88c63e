# See `rowcodec_reference.c`.

from collections.abc import Callable

# The bytes of room left after the frame's values, copied; ValueError for a malformed frame.
def copy(frame: bytes) -> int: ...

# The room; the frame is not looked at.
def nothing(frame: bytes) -> int: ...

# Calls `function` `count` times: what callgrind counts.
def counted(function: Callable[[bytes], int], frame: bytes, count: int) -> None: ...
