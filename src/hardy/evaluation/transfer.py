"""Axis ``transfer``: how often is the model right on images made against another net?

Series: "independent" (another training), "gray-box" (the same method from another seed: the attacker knows the defence,
not the weights) and "base" (the net before hardening).
"""

from torch import Tensor

from hardy.attacks import PGD
from hardy.evaluation.context import Context, Measured, NotMeasured, Source, record
from hardy.evaluation.fingerprint import weights_digest
from hardy.results import Axis, Point
from hardy.threats import Threat

__all__ = ["measure"]


def measure(context: Context) -> Measured | NotMeasured:
    """Run PGD on each source to the end of its budget and show the final images to the model."""
    if not context.sources:
        return NotMeasured(
            "transfer", "no other net to make images on", "Pass sources=[...], siblings=[...] or base=... ."
        )
    outcomes: dict[str, Tensor] = {}
    weights = {source.name: weights_digest(source.model) for source in context.sources}
    points = []
    for eps in (context.threat.eps, *(e for e in context.budget.transfer_eps if e != context.threat.eps)):
        for source in context.sources:
            label = source.name if eps == context.threat.eps else f"{source.name}, {Threat(context.threat.norm, eps)}"
            made, outcomes[label] = _one(context, source, eps, label, weights[source.name])
            points.append(made)
    axis = Axis(
        name="transfer",
        question=f"How often is it right on images made against another net, within {context.threat}?",
        headline=points[0].label,
        points=tuple(points),
        level_name=f"eps ({context.threat.norm}, pixels in [0, 1])",
    )
    return Measured(axis=axis, outcomes=outcomes)


def _one(context: Context, source: Source, eps: float, label: str, weights: str) -> tuple[Point, Tensor]:
    attack = PGD(steps=context.budget.transfer_steps, step_size=context.budget.step_size)
    found = context.attack(attack, eps=eps, source=source.model, stop="never")
    fooled = context.predict(found.x_adv, source.model) != context.y
    asked = context.correct & fooled  # right before, and the image fools its own net
    share = float((~found.success)[asked].float().mean()) if asked.any() else None
    point = record(
        label,
        ~found.success,
        level=eps,
        series=source.kind,
        passes={**found.passes, "forward": found.passes["forward"] + len(context.x)},
        details={
            "source": source.name,
            "source_weights": weights,
            "attack": "pgd",
            "steps": attack.steps,
            "filter": "right before, and the image fools the source",
            "conditional_accuracy": share,
            "conditional_n": int(asked.sum()),
        },
    )
    return point, ~found.success
