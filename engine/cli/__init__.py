"""Commands: what the operator types and reads.

Each module is imported only when its command runs.
"""
