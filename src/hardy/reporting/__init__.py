"""Run folders become one self-contained HTML page."""

from hardy.reporting.build import report
from hardy.reporting.grid import Comparison, GridCell
from hardy.reporting.grid_report import grid_report

__all__ = ["Comparison", "GridCell", "grid_report", "report"]
