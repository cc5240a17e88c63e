"""The report: one HTML file beside the result, which needs nothing else, not even a network."""

from load_tests.report.page import page, report_path, write_report

__all__ = ["page", "report_path", "write_report"]
