"""A set of keys that only ever grows, at 12 to 24 bytes a key.

Strategy: the 64-bit hash of each key stands in a table with open addressing. Python's own set of
numbers takes 70 to 100 bytes a key. Two keys share a hash once in some 10^7 journals of a million
objects.
"""

from array import array

_FREE = 0
_PLACES_MIN = 1 << 10
_MASK = (1 << 64) - 1


class KeySet:
    """Keys by their hashes."""

    def __init__(self) -> None:
        self._count = 0
        self._places = array("Q", bytes(8 * _PLACES_MIN))

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: str) -> bool:
        number = _number(key)
        return self._places[self._place(self._places, number)] == number

    def add(self, key: str) -> None:
        """Take `key` in; once more is no harm."""
        number = _number(key)
        place = self._place(self._places, number)
        if self._places[place] == number:
            return
        self._places[place] = number
        self._count += 1
        if 3 * self._count > 2 * len(self._places):
            self._grow()

    def _grow(self) -> None:
        places = array("Q", bytes(8 * 2 * len(self._places)))
        for number in self._places:
            if number != _FREE:
                places[self._place(places, number)] = number
        self._places = places

    @staticmethod
    def _place(places: "array[int]", number: int) -> int:
        """Where `number` is, or may be put."""
        last = len(places) - 1
        place = number & last
        while places[place] not in (_FREE, number):
            place = (place + 1) & last
        return place


def _number(key: str) -> int:
    return hash(key) & _MASK or 1
