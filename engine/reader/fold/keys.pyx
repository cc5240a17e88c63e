# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Keys that a fold has met. See keys.pxd."""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove, memset

from engine.lines.text cimport make_room, tr_load8, tr_store8

cdef enum:
    FIRST_CAPACITY = 32
    TAIL = 64          # cells behind the last home, for those that are displaced there

# -------------------------------------------------------------------------------- hashes

cdef inline uint64_t rotated(uint64_t x, int by) noexcept nogil:
    return x << by | x >> (64 - by)


cdef inline void sip_rounds(uint64_t* v, int count) noexcept nogil:
    while count:
        count -= 1
        v[0] += v[1]
        v[1] = rotated(v[1], 13) ^ v[0]
        v[0] = rotated(v[0], 32)
        v[2] += v[3]
        v[3] = rotated(v[3], 16) ^ v[2]
        v[0] += v[3]
        v[3] = rotated(v[3], 21) ^ v[0]
        v[2] += v[1]
        v[1] = rotated(v[1], 17) ^ v[2]
        v[2] = rotated(v[2], 32)


cdef Key hash_key(const Secret* secret, const uint8_t* p, size_t size) noexcept nogil:
    cdef uint64_t[4] v
    cdef uint64_t word = 0
    cdef size_t left = size
    cdef Key key
    v[0] = 0x736F6D6570736575ULL ^ secret.words[0]
    v[1] = 0x646F72616E646F6DULL ^ secret.words[1] ^ 0xEE
    v[2] = 0x6C7967656E657261ULL ^ secret.words[0]
    v[3] = 0x7465646279746573ULL ^ secret.words[1]
    while left >= 8:
        word = tr_load8(p)
        v[3] ^= word
        sip_rounds(v, 2)
        v[0] ^= word
        p += 8
        left -= 8
    word = <uint64_t>size << 56
    while left:
        left -= 1
        word |= <uint64_t>p[left] << (8 * left)
    v[3] ^= word
    sip_rounds(v, 2)
    v[0] ^= word
    v[2] ^= 0xEE
    sip_rounds(v, 4)
    key.high = v[0] ^ v[1] ^ v[2] ^ v[3]
    v[1] ^= 0xDD
    sip_rounds(v, 4)
    key.low = v[0] ^ v[1] ^ v[2] ^ v[3]
    if key.high == 0 and key.low == 0:
        key.low = 1
    return key


def siphash(bytes secret, bytes text):
    """The hash of a text. See keys.pyi."""
    cdef Secret words
    cdef Key key
    cdef uint8_t[16] out
    if len(secret) != 16:
        raise ValueError(f"a secret of {len(secret)} bytes")
    words.words[0] = tr_load8(<const uint8_t*>secret)
    words.words[1] = tr_load8(<const uint8_t*>secret + 8)
    key = hash_key(&words, text, len(text))
    tr_store8(out, key.high)
    tr_store8(out + 8, key.low)
    return <bytes>out[:16]

# --------------------------------------------------------------------------------- parts

cdef inline bint is_gap(Key key) noexcept nogil:
    return key.high == 0 and key.low == 0


cdef inline bint is_before(Key a, Key b) noexcept nogil:
    return a.high < b.high or (a.high == b.high and a.low < b.low)


cdef bint resize(KeyTable* table, Part* part, size_t room) noexcept nogil:
    cdef Key* keys = <Key*>realloc(part.keys, room * sizeof(Key))
    cdef uint64_t* counts
    if keys == NULL:
        return False
    part.keys = keys
    if table.is_counting:
        counts = <uint64_t*>realloc(part.counts, room * sizeof(uint64_t))
        if counts == NULL:
            return False
        part.counts = counts
    return True


cdef bint spread(Part* part, const Key* keys, const uint64_t* counts) noexcept nogil:
    # Puts all keys into the empty part; not where one would take the last cell.
    cdef size_t i
    cdef size_t at = 0
    for i in range(part.count):
        at = max(at, tr_home(keys[i].high, part.capacity))
        if at >= part.room - 1:
            return False
        part.keys[at] = keys[i]
        if counts != NULL:
            part.counts[at] = counts[i]
        at += 1
    return True


cdef bint grow(KeyTable* table, Part* part, size_t capacity, size_t tail) noexcept nogil:
    # Gives the part so many homes, and so many cells behind them, or more where those are too few.
    cdef size_t cell_size = sizeof(Key) + (sizeof(uint64_t) if table.is_counting else 0)
    cdef Key* keys
    cdef uint64_t* counts = NULL
    cdef size_t i
    cdef size_t found = 0
    if not make_room(&table.scratch, part.count * cell_size + 1):
        return False
    keys = <Key*>table.scratch.start
    if table.is_counting:
        counts = <uint64_t*>(keys + part.count)
    for i in range(part.room):
        if not is_gap(part.keys[i]):
            keys[found] = part.keys[i]
            if counts != NULL:
                counts[found] = part.counts[i]
            found += 1
    while True:
        if not resize(table, part, capacity + tail):
            return False
        table.size += (capacity + tail) * cell_size
        table.size -= part.room * cell_size
        part.capacity = capacity
        part.room = capacity + tail
        memset(part.keys, 0, part.room * sizeof(Key))
        if spread(part, keys, counts):
            return True
        tail *= 2


cdef inline bint add_homes(KeyTable* table, Part* part) noexcept nogil:
    cdef size_t capacity = max(part.capacity + part.capacity // 4, <size_t>FIRST_CAPACITY)
    return grow(table, part, capacity, max(part.room - part.capacity, <size_t>TAIL))


cdef size_t place_of(const Part* part, Key key) noexcept nogil:
    # Where the key stands, or where it would be put.
    cdef size_t at = tr_home(key.high, part.capacity)
    while is_before(part.keys[at], key) and not is_gap(part.keys[at]):
        at += 1
    return at


cdef int add_key(KeyTable* table, Key key) noexcept nogil:
    # With counts: once more, whether or not it is known.
    cdef Part* part = &table.parts[part_of(key)]
    cdef size_t at, gap
    if 5 * (part.count + 1) > 4 * part.capacity and not add_homes(table, part):
        return KEY_NO_MEMORY
    while True:
        at = place_of(part, key)
        if is_same(part.keys[at], key):
            if table.is_counting:
                part.counts[at] += 1
            return KEY_KNOWN
        gap = at
        while not is_gap(part.keys[gap]):
            gap += 1
        if gap < part.room - 1:
            break
        if not grow(table, part, part.capacity, 2 * (part.room - part.capacity)):
            return KEY_NO_MEMORY
    memmove(&part.keys[at + 1], &part.keys[at], (gap - at) * sizeof(Key))
    part.keys[at] = key
    if table.is_counting:
        memmove(&part.counts[at + 1], &part.counts[at], (gap - at) * sizeof(uint64_t))
        part.counts[at] = 1
    part.count += 1
    table.count += 1
    return KEY_NEW


cdef bint take_key(KeyTable* table, Key key) noexcept nogil:
    # Counts it once less; whether it was there.
    cdef Part* part = &table.parts[part_of(key)]
    cdef Key none
    cdef size_t at
    if part.count == 0:
        return False
    at = place_of(part, key)
    if not is_same(part.keys[at], key):
        return False
    part.counts[at] -= 1
    if part.counts[at]:
        return True
    while not is_gap(part.keys[at + 1]) and tr_home(part.keys[at + 1].high, part.capacity) <= at:
        part.keys[at] = part.keys[at + 1]
        part.counts[at] = part.counts[at + 1]
        at += 1
    none.high = none.low = 0
    part.keys[at] = none
    part.count -= 1
    table.count -= 1
    return True


cdef void drop_parts(KeyTable* table, int first, int last) noexcept nogil:
    # Forgets the keys of parts `first` to before `last`.
    cdef size_t cell_size = sizeof(Key) + (sizeof(uint64_t) if table.is_counting else 0)
    cdef Part* part
    cdef int i
    for i in range(first, last):
        part = &table.parts[i]
        table.size -= part.room * cell_size
        table.count -= part.count
        free(part.keys)
        free(part.counts)
        memset(part, 0, sizeof(Part))


cdef void free_keys(KeyTable* table) noexcept:
    drop_parts(table, 0, PARTS)
    free(table.scratch.start)
    table.scratch.start = NULL
    table.scratch.capacity = 0

# ------------------------------------------------------------------------------ for tests

cdef class KeySet:
    """A table of keys, as Python's. See keys.pyi."""

    cdef KeyTable table

    def __cinit__(self, *, bint is_counting=False):
        self.table.is_counting = is_counting

    def __dealloc__(self):
        free_keys(&self.table)

    def __len__(self):
        return self.table.count

    @property
    def size(self):
        """Bytes."""
        return self.table.size

    def add(self, uint64_t high, uint64_t low):
        """Whether it is new."""
        cdef Key key
        cdef int found
        key.high = high
        key.low = low
        found = add_key(&self.table, key)
        if found == KEY_NO_MEMORY:
            raise MemoryError
        return found == KEY_NEW

    def take(self, uint64_t high, uint64_t low):
        """Whether it was there, once more than it is now."""
        cdef Key key
        if not self.table.is_counting:
            raise ValueError("it does not count")
        key.high = high
        key.low = low
        return bool(take_key(&self.table, key))

    def drop(self, int first, int last):
        """Forget parts."""
        if not 0 <= first <= last <= PARTS:
            raise ValueError(f"no parts {first} to {last}")
        drop_parts(&self.table, first, last)
