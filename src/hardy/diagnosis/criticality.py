"""Which layers can it not do without, and which hardly matter?

A small, harmful change of one layer's weights at a time: :mod:`hardy.diagnosis.module_criticality`.
"""

import torch
from torch import nn

from hardy.data.rows import spread_order
from hardy.diagnosis.case import Case
from hardy.diagnosis.module_criticality import Criticality, module_criticality
from hardy.diagnosis.record import Finding, Part
from hardy.records import Score, mean_score
from hardy.sites import BOX, INPUT
from hardy.threats import Threat

__all__ = ["Criticality", "measure", "module_criticality"]

MOST_IMAGES = 512  # the batch of the authors' released code


def measure(case: Case) -> Part:
    """Measure the convolutions asked for and all linear layers, on at most 512 images chosen by their keys."""
    order = spread_order(case.y.cpu(), case.rows.cpu(), seed=case.seed, purpose="criticality")
    chosen = order[:MOST_IMAGES].sort().values.to(case.x.device)
    linear = [name for name, module in case.model.named_modules() if isinstance(module, nn.Linear)]
    asked = [site.partition("#")[0].removesuffix(INPUT) for site in case.layers]
    found = module_criticality(
        case.model,
        case.x[chosen],
        case.y[chosen],
        layers=list(dict.fromkeys([*asked, *(name for name in linear if not name.startswith(f"{BOX}."))])),
        threat=case.threat,
        rows=case.rows[chosen],
        seed=case.seed,
        batch_size=case.batch_size,
    )
    some = (f"{len(chosen)} of {len(case.x)} images, chosen by their identities",) if len(chosen) < len(case.x) else ()
    right = 100 * float(found.base_right.float().mean())
    most = f"the intact net is right on {right:.3g} % of the attacked images; no layer can take more from its accuracy"
    return Part(
        name="criticality",
        question="Which layers can it not do without, and which hardly matter?",
        scores=_scores(found),
        findings=_findings(found, case.threat),
        tensors={
            "loss_rise": torch.tensor(list(found.values.values())),
            "accuracy_change": torch.tensor([-found.drop(layer)[0] for layer in found.layers]),
        },
        level_name="layer, counted from the input",
        notes=(*some, most, "the attacked images stay those of the intact net, so that accuracy on them may also rise"),
        passes=found.passes,
    )


def _scores(found: Criticality) -> tuple[Score, ...]:
    """Make a curve over the layers of the rises of the loss, and one of the changes of accuracy."""
    n, scores = len(found.base_loss), []
    scores.append(mean_score("loss, intact", found.base_loss.numpy(), kind="description", unit="nats"))
    for i, layer in enumerate(found.layers):
        details: dict[str, str | int | float | bool | None] = {"layer": layer, "radius": found.radius}
        facts = {"level": float(i + 1), "series": "loss rise", "unit": "nats", "details": details}
        scores.append(mean_score(f"loss rise, {layer}", found.rise[i].numpy(), kind="description", **facts))
    for i, layer in enumerate(found.layers):
        change, low, high = (0.0 - bound for bound in found.drop(layer))
        scores.append(
            Score(
                label=f"accuracy change, {layer}",
                value=change,
                kind="description",
                n=n,
                low=min(low, high),
                high=max(low, high),
                level=float(i + 1),
                series="accuracy change",
                details={"layer": layer, "radius": found.radius},
            )
        )
    return tuple(scores)


def _findings(found: Criticality, threat: Threat) -> tuple[Finding, ...]:
    """Say which layer is least and which most critical, and what each is good for."""
    least, most = (
        f"{layer} ({value:+.3f} nats, accuracy {100 * (0.0 - found.drop(layer)[0]):+.1f} points)"
        for layer, value in ((name, found.values[name]) for name in (found.least, found.most))
    )
    setting = (
        f"when its weights move by at most {100 * found.radius:g} % of their length, on images attacked at {threat}"
    )
    return (
        Finding(
            code="least_critical_layer",
            severity="note",
            text=f"The loss rises least in {least} {setting}.",
            remedy="There is room in this layer: RiFT fine-tunes it alone on clean images and interpolates its "
            "weights. It chooses the layer again on images held out of the training part.",
        ),
        Finding(
            code="most_critical_layer",
            severity="note",
            text=f"The loss rises most in {most} {setting}.",
            remedy="Leave this layer alone when you fine-tune, prune or quantise.",
        ),
    )
