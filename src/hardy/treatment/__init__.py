"""Treatments: mend a trained net, and compare with the same training without the treatment."""

from hardy.treatment.arms import HOW
from hardy.treatment.record import Treatment
from hardy.treatment.rift import Rift, rift
from hardy.treatment.run import treat
from hardy.treatment.verdict import Gain, gains

__all__ = ["HOW", "Gain", "Rift", "Treatment", "gains", "rift", "treat"]
