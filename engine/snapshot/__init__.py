"""Snapshots: the rows that a table has already, staged by workers that know no journal."""
