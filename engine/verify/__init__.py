"""Proof from the bucket alone that every change is there once, in order, and nothing was altered.

The journal is read whole and folded as every engine folds it (`journal_audit`); each object that it
plans is looked up and, at full depth, read (`object_audit`); at last everything under the prefix
must be named (`inspection`). What is wrong has a code and a remedy (`problem`).
"""

from engine.verify.inspection import Depth, Progress, verify
from engine.verify.problem import Code, Problem
from engine.verify.verdict import TableVerdict, Verdict

__all__ = ["Code", "Depth", "Problem", "Progress", "TableVerdict", "Verdict", "verify"]
