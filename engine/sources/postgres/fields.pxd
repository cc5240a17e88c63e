# cython: language_level=3
"""What only PostgreSQL's records have: `lsn`, `commit_lsn` and `xid`, as members of the envelope.

`begin_fields` renders what a transaction's lines have alike, `put_fields` adds what a change has.
A snapshot's rows have no transaction (`xid` 0, PostgreSQL's invalid one: written as null), and no
record in the WAL: their `lsn` is `commit_lsn`.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from engine.lines.text cimport (
    put_bytes,
    put_decimal,
    put_hex_padded,
    put_null,
    tr_copy16,
)
from engine.lines.writer cimport ENVELOPE_STANDARD, Binding, has_objects

cdef struct Fields:
    uint64_t commit_lsn
    uint64_t xid
    size_t xid_size
    size_t end_size
    # Padded, so that they can be copied 16 bytes at a time.
    uint8_t[32] xid_text
    uint8_t[80] end    # `","commit_lsn":"0/134EBCB0","xid":1743`


cdef inline uint8_t* put_hex(uint8_t* out, uint32_t value) noexcept nogil:
    cdef int width = 1
    while width < 8 and value >> (4 * width):
        width += 1
    return put_hex_padded(out, value, width)


cdef inline uint8_t* put_lsn(uint8_t* out, uint64_t lsn) noexcept nogil:
    out = put_hex(out, <uint32_t>(lsn >> 32))
    out[0] = c'/'
    return put_hex(out + 1, <uint32_t>lsn)


cdef inline void begin_fields(Fields* fields, uint64_t commit_lsn, uint64_t xid) noexcept nogil:
    cdef uint8_t* out = fields.xid_text
    fields.commit_lsn = commit_lsn
    fields.xid = xid
    out = put_decimal(out, xid) if xid else put_null(out)
    fields.xid_size = out - fields.xid_text
    out = put_lsn(put_bytes(fields.end, b'","commit_lsn":"', 16), commit_lsn)
    out = put_bytes(put_bytes(out, b'","xid":', 8), fields.xid_text, fields.xid_size)
    fields.end_size = out - fields.end


cdef inline uint8_t* put_fields(
    uint8_t* out, const Binding* binding, const Fields* fields, uint64_t change_lsn
) noexcept nogil:
    cdef uint64_t lsn = change_lsn if fields.xid else fields.commit_lsn
    cdef size_t done = 0
    if binding.envelope == ENVELOPE_STANDARD:
        out = put_lsn(put_bytes(out, b',"lsn":"', 8), lsn)
        while done < fields.end_size:
            tr_copy16(out + done, fields.end + done)
            done += 16
        return out + fields.end_size
    if has_objects(binding):
        out = put_bytes(put_bytes(out, b',"txId":', 8), fields.xid_text, fields.xid_size)
        out = put_decimal(put_bytes(out, b',"lsn":', 7), lsn)
        return put_bytes(out, b',"xmin":null', 12)
    return out
