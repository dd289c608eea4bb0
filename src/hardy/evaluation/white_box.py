"""Axis ``white_box``: how often is the model right against an attacker who knows it, and against mere noise?"""

import torch

from hardy.attacks import Noise
from hardy.evaluation.context import Context, Measured, record
from hardy.results import Axis

__all__ = ["measure"]


def measure(context: Context) -> Measured:
    """Run PGD with restarts at the threat's budget, and the random-noise control at the same budget."""
    budget, threat = context.budget, context.threat
    pgd = context.white_box
    noise = context.attack(Noise(draws=budget.noise_draws))
    outcomes = {"pgd": ~pgd.success, "noise": ~noise.success}
    facts = {"attack": "pgd", "norm": threat.norm, "steps": budget.steps, "restarts": budget.restarts}
    step_size = 2.5 * threat.eps / budget.steps if budget.step_size is None else budget.step_size
    points = (
        record(
            "pgd",
            outcomes["pgd"],
            level=threat.eps,
            series="pgd",
            passes=pgd.passes,
            details={**facts, "step_size": step_size, "median_margin": float(pgd.margin.median())},
        ),
        record(
            "noise",
            outcomes["noise"],
            level=threat.eps,
            series="noise control",
            passes=noise.passes,
            details={"attack": "noise", "norm": threat.norm, "draws": budget.noise_draws},
        ),
    )
    axis = Axis(
        name="white_box",
        question=f"How often is it right against an attacker who knows it, within {threat}?",
        headline="pgd",
        points=points,
        level_name=f"eps ({threat.norm}, pixels in [0, 1])",
    )
    return Measured(
        axis=axis,
        outcomes=outcomes,
        x_adv=pgd.x_adv,
        eps_broken=torch.where(pgd.success, threat.eps, torch.inf),
        gradients=pgd.gradients,
        zero_gradients=pgd.zero_gradients,
    )
