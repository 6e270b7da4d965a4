"""The report of a run: every figure, every plot and what it takes to make the run again, as one page that needs nothing else."""

from nearfar.report.write import report

__all__ = ["report"]
