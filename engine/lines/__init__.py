"""Lines: values in, NDJSON records out, for every kind of source.

`text` writes values as JSON. `writer` puts them into lines, under a table's names and a
transaction's. Both are compiled, and both know no source: a source's own reader calls them through
their `.pxd` files.
"""
