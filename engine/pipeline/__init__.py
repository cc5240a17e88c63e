"""One engine's life."""
