"""Axis ``white_box``: how often is the model right against an attacker who knows it, and against mere noise?

The points of the suite are cumulative: an attack is run on the images that the ones before it left standing, and its
accuracy is that against all of them together. The headline is the last of them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hardy.attacks import Goal, Noise
from hardy.attacks.state import Ball
from hardy.evaluation.context import Context, Measured, record
from hardy.evaluation.suite import Stage, suite_run
from hardy.results import Axis, Point

__all__ = ["NOISE", "SUITE", "measure"]

SUITE, NOISE = "suite", "noise control"  # series
CONTROL = "noise"


def measure(context: Context) -> Measured:
    """Run the suite at the threat's budget, and show one random draw of the same size as a control."""
    threat, run = context.threat, suite_run(context)
    right = (context.predict(_noisy(context)) == context.y) & context.correct
    outcomes = {stage.label: stage.standing for stage in run.stages}
    outcomes |= {context.suite_name: run.standing, CONTROL: right}
    points = [_point(stage, context) for stage in run.stages]
    if context.suite_name not in {stage.label for stage in run.stages}:
        points.append(_whole(context))
    control = record(
        CONTROL,
        right,
        level=threat.eps,
        series=NOISE,
        passes={"forward": len(right)},
        details={"attack": "noise", "norm": threat.norm, "draws": 1},
    )
    axis = Axis(
        name="white_box",
        question=f"How often is it right against an attacker who knows it, within {threat}?",
        headline=context.suite_name,
        points=(*points, control),
        level_name=f"eps ({threat.norm}, pixels in [0, 1])",
    )
    return Measured(
        axis=axis,
        outcomes=outcomes,
        x_adv=run.x_adv,
        eps_broken=torch.where(run.standing, torch.inf, threat.eps),
        gradients=run.gradients,
        zero_gradients=run.zero_gradients,
        arrays={"broken_by": run.broken_by, "margin": run.margin},
    )


def _point(stage: Stage, context: Context) -> Point:
    broke = stage.attacked - int(stage.standing.sum())
    return record(
        stage.label,
        stage.standing,
        level=context.threat.eps,
        series=SUITE,
        passes=stage.passes,
        details={
            "attack": stage.attack,
            "norm": context.threat.norm,
            "attacked": stage.attacked,
            "broke": broke,
            "draws_per_gradient": stage.eot if context.draws > 1 else None,
            "draws_per_verdict": context.draws if context.draws > 1 else None,
        },
    )


def _whole(context: Context) -> Point:
    """Give the point of the suite as a whole; its passes are those of its attacks."""
    run = suite_run(context)
    margin = run.margin[run.standing]
    middle = float(margin.median()) if len(margin) else None
    return record(
        context.suite_name,
        run.standing,
        level=context.threat.eps,
        series=SUITE,
        passes={},
        details={
            "suite": context.suite_name,
            "norm": context.threat.norm,
            "attacks": len(run.stages),
            "median_margin_of_robust": middle,
        },
    )


def _noisy(context: Context) -> Float[Tensor, "n c h w"]:
    """Draw one point of each ball, as the noise control does."""
    eps = torch.full((len(context.x),), context.threat.eps, device=context.x.device)
    goal = Goal(context.y, context.y, torch.zeros_like(context.correct))
    spec = Noise(draws=1)
    return spec.ask(spec.start(context.x, goal, Ball(context.threat.norm, eps), context.keys("noise control"))).x
