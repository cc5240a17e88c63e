"""Embedded servers and the fault proxy, for demo, tests and load tests."""
