"""The fold's table of keys is a set of hashes that takes little more than they do."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reader.fold.keys import KeySet, siphash

# From the authors' reference code (`vectors_sip128`): the secret 0, 1, … 15, and the texts of 0, 1,
# 2, … bytes 0, 1, ….
SIPHASH_VECTORS = (
    "a3817f04ba25a8e66df67214c7550293",
    "da87c1d86b99af44347659119b22fc45",
    "8177228da4a45dc7fca38bdef60affe4",
)


@pytest.mark.parametrize("size", range(len(SIPHASH_VECTORS)))
def test_the_hash_is_that_of_its_authors(size: int) -> None:
    assert siphash(bytes(range(16)), bytes(range(size))).hex() == SIPHASH_VECTORS[size]


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=40))
def test_every_byte_of_a_text_and_of_the_secret_counts(secret: bytes, text: bytes) -> None:
    found = siphash(secret, text)

    for place in range(len(text)):
        assert siphash(secret, _with_another(text, place)) != found
    for place in range(len(secret)):
        assert siphash(_with_another(secret, place), text) != found
    assert siphash(secret, text + b"\0") != found


def _with_another(text: bytes, place: int) -> bytes:
    return text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]


# Few homes of two parts: hashes that displace each other. More than a part has room for at first.
CLOSE = tuple(
    (top << 56 | low << 48, tail)
    for top in (0, 255)
    for low in range(0, 256, 12)
    for tail in (1, 2)
)


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_what_is_counted_is_what_python_counts(seed: int) -> None:
    source = random.Random(seed)
    keys = KeySet(is_counting=True)
    twin: dict[tuple[int, int], int] = {}

    for _ in range(500):
        key = source.choice(CLOSE)
        if source.random() < 0.6:
            assert keys.add(*key) is (key not in twin)
            twin[key] = twin.get(key, 0) + 1
        else:
            assert keys.take(*key) is (key in twin)
            if twin.get(key, 0) > 1:
                twin[key] -= 1
            else:
                twin.pop(key, None)
        assert len(keys) == len(twin)


def test_a_key_takes_20_to_27_bytes_and_none_is_lost() -> None:
    source = random.Random(1)
    wanted = [(source.getrandbits(64), source.getrandbits(64)) for _ in range(300_000)]
    keys = KeySet()
    sizes = []

    for place, key in enumerate(wanted):
        assert keys.add(*key)
        if place >= 100_000:
            sizes.append(keys.size / len(keys))

    assert all(not keys.add(*key) for key in wanted)
    assert len(keys) == len(wanted)
    assert 20 <= min(sizes) <= max(sizes) <= 27


def test_parts_that_are_dropped_are_forgotten_and_take_nothing() -> None:
    source = random.Random(2)
    keys = KeySet()
    for _ in range(10_000):
        keys.add(source.getrandbits(64), source.getrandbits(64))
    keys.add(100 << 56, 1)
    keys.add(200 << 56, 1)
    size = keys.size

    keys.drop(128, 256)

    assert keys.size == pytest.approx(size / 2, rel=0.1)
    assert not keys.add(100 << 56, 1)
    assert keys.add(200 << 56, 1)


def test_hashes_of_one_home_beyond_the_last_one_make_the_part_grow() -> None:
    keys = KeySet()
    last = [((1 << 56) - 1, low) for low in range(1, 200)]

    assert all(keys.add(*key) for key in last)
    assert not any(keys.add(*key) for key in last)
