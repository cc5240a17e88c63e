"""One line of the writer, taken apart: `fold.pyx` calls it in C. See `line.pxd`."""
