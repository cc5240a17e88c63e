/* What the row codec's cost is measured against: routines that never change.

   The build compiles them with the codec's own compiler and flags, so that a ratio of instructions
   says little about either. `copy` does what any codec must: it walks the tuples of a frame and
   copies each value, looking at every byte for one that JSON escapes; a byte at a time, so that
   there is nothing in it to be clever about. `nothing` is the price of a call from Python. Both
   answer, as the codec does, a number too large to be one of Python's ready-made ones.

   Who changes a routine records tests/rowcodec_cost.json anew. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* Where the tuples begin in an XLogData frame with an Insert, Update or Delete. */
#define TUPLES 30
#define ROOM 65536

static uint8_t room[ROOM];

static size_t big_endian(const uint8_t *p, int size) {
    size_t value = 0;
    for (int i = 0; i < size; i++)
        value = value << 8 | p[i];
    return value;
}

static uint8_t *copy_value(uint8_t *out, const uint8_t *p, size_t size) {
    for (size_t i = 0; i < size; i++) {
        if (p[i] < 0x20 || p[i] == '"' || p[i] == '\\')
            *out++ = '\\';
        *out++ = p[i];
    }
    return out;
}

/* The end of the copy, or NULL if the frame is not one of ours. */
static uint8_t *copy_tuples(uint8_t *out, const uint8_t *p, const uint8_t *end) {
    while (p + 3 <= end) {
        size_t column_count = big_endian(p + 1, 2);
        p += 3;
        while (column_count--) {
            if (p >= end)
                return NULL;
            if (*p++ != 't')
                continue;
            if (end - p < 4)
                return NULL;
            size_t size = big_endian(p, 4);
            p += 4;
            if (size > (size_t)(end - p))
                return NULL;
            out = copy_value(out, p, size);
            p += size;
        }
    }
    return p == end ? out : NULL;
}

static PyObject *copy(PyObject *module, PyObject *frame) {
    char *start;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(frame, &start, &size) < 0)
        return NULL;
    const uint8_t *p = (const uint8_t *)start;
    uint8_t *out = size > TUPLES && 2 * size <= ROOM ? copy_tuples(room, p + TUPLES, p + size) : NULL;
    if (out == NULL) {
        PyErr_SetString(PyExc_ValueError, "not a frame with tuples, or too long a one");
        return NULL;
    }
    return PyLong_FromSsize_t(room + ROOM - out);
}

static PyObject *nothing(PyObject *module, PyObject *frame) { return PyLong_FromSsize_t(ROOM); }

/* callgrind is told by name to count from this function's start to its end: so it is exported, and
   neither inlined nor cloned. */
__attribute__((noinline, visibility("default"))) PyObject *
tailrace_counted(PyObject *function, PyObject *frame, Py_ssize_t count) {
    while (count-- > 0) {
        PyObject *answer = PyObject_CallOneArg(function, frame);
        if (answer == NULL)
            return NULL;
        Py_DECREF(answer);
    }
    Py_RETURN_NONE;
}

static PyObject *counted(PyObject *module, PyObject *arguments) {
    PyObject *function, *frame;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(arguments, "OSn", &function, &frame, &count))
        return NULL;
    return tailrace_counted(function, frame, count);
}

static PyMethodDef methods[] = {
    {"copy", copy, METH_O, NULL},
    {"nothing", nothing, METH_O, NULL},
    {"counted", counted, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "rowcodec_reference", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_rowcodec_reference(void) { return PyModule_Create(&definition); }
