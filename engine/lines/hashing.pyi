"""A value's keyed hash, as lines hold it. See `hashing.pxd` for the strategy."""

def hash_of(secret: bytes, value: bytes) -> str:
    """HMAC-SHA-256 of `value` under `secret`: 64 lower-case hexadecimal digits."""
