"""Proof from the bucket alone that every change is there once, in order, and nothing was altered.

The journal is read whole and folded as every engine folds it (`journal_audit`). Each object that it
plans is looked up and, at full depth, read (`object_audit`). At last the journal must name
everything under the prefix (`inspection`). What is wrong has a code and a remedy (`problem`).
"""

from engine.reader.verify.inspection import Depth, Progress, verify
from engine.reader.verify.problem import Code, Problem
from engine.reader.verify.verdict import TableVerdict, Verdict

__all__ = ["Code", "Depth", "Problem", "Progress", "TableVerdict", "Verdict", "verify"]
