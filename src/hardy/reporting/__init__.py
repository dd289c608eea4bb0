"""Run folders and diagnoses become self-contained HTML pages."""

from hardy.reporting.build import report
from hardy.reporting.diagnosis_report import diagnosis_report
from hardy.reporting.grid import Comparison, GridCell
from hardy.reporting.grid_report import grid_report

__all__ = ["Comparison", "GridCell", "diagnosis_report", "grid_report", "report"]
