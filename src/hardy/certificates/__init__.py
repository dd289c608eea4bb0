"""Guarantees instead of attacks: what no perturbation of a given size can do, proved or proved up to a probability."""

from hardy.certificates.margin import margin_bound
from hardy.certificates.mean_score import certify_mean_score
from hardy.certificates.smoothing import ABSTAIN, certified_radius, certify, largest_radius, predict, votes

__all__ = [
    "ABSTAIN",
    "certified_radius",
    "certify",
    "certify_mean_score",
    "largest_radius",
    "margin_bound",
    "predict",
    "votes",
]
