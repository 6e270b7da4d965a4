"""The report of a run: every figure, every plot, and how to make the run again, on one page that needs nothing else."""

from nearfar.report.write import report

__all__ = ["report"]
