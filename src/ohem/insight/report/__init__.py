"""`ohem report`: one page about what runs mined, what they get wrong, and which of the two explains the other."""

from ohem.insight.report.report import make_report

__all__ = ["make_report"]
