"""Run folders become one self-contained HTML page."""

from hardy.reporting.build import report

__all__ = ["report"]
