"""Axis ``transfer``: how often is the model right on images made against another net?

Series: "independent" (another training), "ensemble" (all of these together), "gray-box" (the same method from another
seed, one by one and together: the attacker knows the defence, not the weights) and "base" (the net before hardening,
and the model itself without the methods that work at test time). An ensemble is searched on its averaged logits.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy.attacks import ATTACKS
from hardy.attacks.goal import predicted
from hardy.attacks.state import AnyAttack
from hardy.evaluation.adaptive import without_methods
from hardy.evaluation.budget import Budget
from hardy.evaluation.context import Context, Measured, NotMeasured, Source, record
from hardy.evaluation.fingerprint import weights_digest
from hardy.evaluation.suite import confirmed
from hardy.results import Axis, Point
from hardy.threats import Threat

__all__ = ["measure"]

FILTER = "this net and the source right before, and the image fools the source"


@dataclass(frozen=True)
class _Origin:
    """What images are made on: one net or several, what to call it, and what is known of it."""

    label: str
    series: str
    sources: tuple[Source, ...]

    @property
    def nets(self) -> list[nn.Module]:
        return [source.model for source in self.sources]


def measure(context: Context) -> Measured | NotMeasured:
    """Attack each source to the end of the budget and show the final images to the model.

    Plain accuracy is over all images. ``conditional_accuracy`` in the details of a point is the success rate of the
    defence as in Random Mask (Luo et al., https://arxiv.org/abs/2007.14249): of the ``conditional_n`` images that this
    net and the source get right before and that fool the source afterwards, the share that this net still gets right.
    Every pair of nets has other such images, so compare plain accuracies.
    """
    attack, origins = _attack(context.budget), _origins(context)
    if not origins:
        return NotMeasured(
            "transfer", "no other net to make images on", "Pass sources=[...], siblings=[...] or base=... ."
        )
    if context.threat.norm not in attack.norms:
        reason = f"{attack.name} is not defined for {context.threat.norm}"
        return NotMeasured("transfer", reason, 'Use Budget(transfer_attack="pgd").')
    outcomes: dict[str, Tensor] = {}
    points = []
    plain = {origin.label: _average(context, origin.nets, context.x) == context.y for origin in origins}
    for eps in (context.threat.eps, *(e for e in context.budget.transfer_eps if e != context.threat.eps)):
        for origin in origins:
            made, right = _one(context, attack, origin, eps, plain[origin.label])
            outcomes[made.label] = right
            points.append(made)
    axis = Axis(
        name="transfer",
        question=f"How often is it right on images made against another net, within {context.threat}?",
        headline=points[0].label,
        points=tuple(points),
        level_name=f"eps ({context.threat.norm}, pixels in [0, 1])",
    )
    return Measured(axis=axis, outcomes=outcomes)


def _origins(context: Context) -> list[_Origin]:
    """List the given nets one by one, the ensembles of two or more of a kind, and the model without its methods."""
    sources = context.sources
    origins = [_Origin(source.name, source.kind, (source,)) for source in sources]
    independent = tuple(source for source in sources if source.kind == "independent")
    siblings = tuple(source for source in sources if source.kind == "gray-box")
    if len(independent) > 1:
        origins.append(_Origin(f"ensemble of {len(independent)}", "ensemble", independent))
    if len(siblings) > 1:
        origins.append(_Origin(f"gray-box ensemble of {len(siblings)}", "gray-box", siblings))
    twin = without_methods(context.model)
    if twin is not None:
        origins.append(_Origin("methods removed", "base", (Source("methods removed", twin, "base"),)))
    return origins


def _attack(budget: Budget) -> AnyAttack:
    """Make the attack of the budget; one try, where it could make several and the model would choose among them."""
    made: Any = ATTACKS[budget.transfer_attack]()
    wanted = {"steps": budget.transfer_steps, "restarts": 1}
    names = {field.name for field in dataclasses.fields(made)}
    return cast("AnyAttack", dataclasses.replace(made, **{k: v for k, v in wanted.items() if k in names}))


def _one(
    context: Context, attack: AnyAttack, origin: _Origin, eps: float, source_right: Bool[Tensor, "n"]
) -> tuple[Point, Bool[Tensor, "n"]]:
    threat, nets = Threat(context.threat.norm, eps), origin.nets
    found = context.attack(attack, eps=eps, source=nets, stop="never")
    right = ~confirmed(context, found, torch.arange(len(context.x), device=context.x.device)) & context.correct
    fooled = _average(context, nets, found.x_adv) != context.y
    asked = context.correct & source_right & fooled
    share = float(right[asked].float().mean()) if asked.any() else None
    label = origin.label if eps == context.threat.eps else f"{origin.label}, {threat}"
    asides = len(nets) * len(context.x) * (2 if eps == context.threat.eps else 1)  # predictions before (once) and after
    point = record(
        label,
        right,
        level=eps,
        series=origin.series,
        passes={**found.passes, "forward": found.passes["forward"] + asides},
        details={
            "source": " + ".join(source.name for source in origin.sources),
            "source_weights": "+".join(weights_digest(net) for net in nets),
            **({"nets": len(nets)} if len(nets) > 1 else {}),
            "attack": attack.name,
            "steps": getattr(attack, "steps", None),
            "filter": FILTER,
            "conditional_accuracy": share,
            "conditional_n": int(asked.sum()),
        },
    )
    return point, right


def _average(context: Context, nets: Sequence[nn.Module], x: Float[Tensor, "n c h w"]) -> Int[Tensor, "n"]:
    """Predict by the mean of the nets' logits."""
    return predicted(torch.stack([context.logits(x, net) for net in nets]).mean(dim=0))
