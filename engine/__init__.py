"""Tailrace: streams the changes of a database into Amazon S3, exactly once and in order."""

__version__ = "0.1.0"
