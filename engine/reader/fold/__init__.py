"""A table's current state, folded from its records."""
