"""Checks derived from what the attacks saw; only :func:`more_budget` attacks anew.

They cost no pass, but for a few images in :func:`source_is_model` where the weights are equal. Each takes the context
and the measured axes by name, and says "not_run" where an axis it needs is missing.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hardy.attacks import PGD
from hardy.evaluation.context import Context, Measured
from hardy.evaluation.eps_curve import bottom
from hardy.evaluation.fingerprint import weights_digest
from hardy.evaluation.probe import PROBE
from hardy.evaluation.verdicts import verdict
from hardy.results import Check, Status
from hardy.stats import wilson

__all__ = ["DERIVED", "FULL", "more_budget"]

Seen = Mapping[str, Measured]
SMALL, LARGE = 0.01, 0.1  # shares of images from which a check warns, and from which it fails
FULL_IMAGES = 64  # images that the checks of "full" may attack


def zero_gradient(context: Context, seen: Seen) -> Check:  # noqa: ARG001  (one signature for all)
    """Look for vanished gradients, of all images together and of single ones: the attack had nothing to follow."""
    code = "zero_gradient"
    made = seen.get("white_box") or seen.get("eps_curve")  # both hold those of PGD at the threat's budget
    if made is None or made.gradients is None or made.zero_gradients is None:
        return _lacks(code, "white_box or eps_curve")
    total, zeros = made.gradients, made.zero_gradients
    attacked, blind = int((total > 0).sum()), int(((total > 0) & (zeros == total)).sum())
    if attacked == 0:
        return verdict(code, "not_run", "no gradient was taken: every plain image is classified wrong")
    evidence = f"{blind} of {attacked} attacked images gave no gradient above 1e-12; {int(zeros.sum())} of "
    evidence += f"{int(total.sum())} gradients vanished"
    remedy = "Attack the net through a differentiable twin, scaled logits or queries; robustness here is not shown."
    share = max(blind / attacked, int(zeros.sum()) / int(total.sum()))
    return verdict(code, _grade(share), evidence, remedy)


def monotone_eps(context: Context, seen: Seen) -> Check:
    """Look for images broken at a smaller budget that the attack misses at a larger one."""
    code = "monotone_eps"
    if "eps_curve" not in seen or "white_box" not in seen:
        return _lacks(code, "eps_curve and white_box")
    eps = seen["eps_curve"].eps_broken
    if eps is None:
        return _lacks(code, "eps_curve")
    broken = (eps < context.threat.eps) & context.correct
    missed = broken & seen["white_box"].outcomes["pgd"]
    evidence = f"{int(missed.sum())} of {int(broken.sum())} images broken below {context.threat} survive it"
    remedy = "A larger budget must not help the net: use more steps, a smaller step_size or more restarts."
    return verdict(code, _compare(missed, len(context.x)), evidence, remedy)


def chance_level(context: Context, seen: Seen) -> Check:
    """Demand that a large enough budget takes accuracy down to about 0: an attack must beat guessing."""
    code = "chance_level"
    if "eps_curve" not in seen:
        return _lacks(code, "eps_curve")
    last = seen["eps_curve"].axis.points[-1]
    goal = bottom(context)
    evidence = f"accuracy {last.accuracy:.3f} at {last.label}; a working attack gets to {goal:.3g}"
    remedy = "The attack fails where it cannot: look for gradient masking, and do not trust the smaller budgets either."
    low, _ = wilson(round(last.accuracy * last.n), last.n)
    status: Status = "pass" if last.accuracy <= goal else "warn" if low <= goal else "fail"
    return verdict(code, status, evidence, remedy)


def noise_beats_gradients(context: Context, seen: Seen) -> Check:
    """Look for images that random noise breaks and PGD at the same budget does not."""
    code = "noise_beats_gradients"
    if "white_box" not in seen:
        return _lacks(code, "white_box")
    outcomes = seen["white_box"].outcomes
    missed = outcomes["pgd"] & ~outcomes["noise"]
    evidence = f"random noise breaks {int(missed.sum())} of {len(missed)} images that PGD does not"
    remedy = "Gradients do not lead anywhere useful: use queries, a differentiable twin, more restarts."
    return verdict(code, _compare(missed, len(context.x)), evidence, remedy)


def transfer_beats_white_box(context: Context, seen: Seen) -> Check:
    """Look for images that break when made on another net, at the same budget, but not when made on this one."""
    code = "transfer_beats_white_box"
    if "white_box" not in seen or "transfer" not in seen:
        return _lacks(code, "white_box and transfer")
    robust, transfer = seen["white_box"].outcomes["pgd"], seen["transfer"]
    names = [p.label for p in transfer.axis.points if p.level is not None and p.level <= context.threat.eps]
    missed = {name: robust & ~transfer.outcomes[name] for name in names}
    worst = max(missed, key=lambda name: int(missed[name].sum()))
    evidence = (
        f"{int(missed[worst].sum())} of {len(robust)} images break when made on {worst!r}, not when made on the net"
    )
    remedy = "The white-box number is too high: its gradients are masked. Report the worst case per image."
    return verdict(code, _compare(missed[worst], len(context.x)), evidence, remedy)


def source_is_model(context: Context, seen: Seen) -> Check:
    """Look for sources that are the model itself: the same weights, and the same outputs on a few images."""
    code = "source_is_model"
    if "transfer" not in seen:
        return _lacks(code, "transfer")
    few = context.x[:PROBE]
    twins = [source for source in context.sources if weights_digest(source.model) == context.weights]
    same = [s.name for s in twins if torch.allclose(context.logits(few, s.model), context.logits(few), equal_nan=True)]
    if same:
        evidence = f"{len(same)} of {len(context.sources)} sources are the model itself: {', '.join(same[:3])}"
        remedy = "That is white_box once more, not transfer. Pass nets of another training."
        return verdict(code, "fail", evidence, remedy)
    return verdict(code, "pass", f"none of {len(context.sources)} sources has the weights and outputs of the model")


def more_budget(context: Context, seen: Seen) -> Check:
    """Attack up to 64 images still robust with five times the steps and twice the restarts; does that break more?"""
    code = "more_budget"
    if "white_box" not in seen:
        return _lacks(code, "white_box")
    robust = seen["white_box"].outcomes["pgd"].nonzero()[:FULL_IMAGES, 0]
    if len(robust) == 0:
        return verdict(code, "pass", "no image was left to break")
    budget = context.budget
    attack = PGD(steps=5 * budget.steps, restarts=2 * budget.restarts, step_size=budget.step_size)
    broken = context.attack(attack, index=robust).success
    evidence = f"{attack.steps} steps and {attack.restarts} restarts break {int(broken.sum())} of {len(robust)} more"
    remedy = "Raise Budget(steps, restarts) until this stops; until then the robust accuracy is too high."
    return verdict(code, _grade(int(broken.sum()) / len(robust)), evidence, remedy)


DERIVED: dict[str, Callable[[Context, Seen], Check]] = {
    "zero_gradient": zero_gradient,
    "monotone_eps": monotone_eps,
    "chance_level": chance_level,
    "noise_beats_gradients": noise_beats_gradients,
    "transfer_beats_white_box": transfer_beats_white_box,
    "source_is_model": source_is_model,
}
FULL: dict[str, Callable[[Context, Seen], Check]] = {"more_budget": more_budget}


def _lacks(code: str, axes: str) -> Check:
    return verdict(code, "not_run", f"needs the axis {axes}", "Measure it too.")


def _compare(missed: Tensor, n: int) -> Status:
    """Grade the images that a better attack broke and the main one missed, as a share of all images."""
    return _grade(int(missed.sum()) / n)


def _grade(share: float) -> Status:
    return "pass" if share < SMALL else "warn" if share < LARGE else "fail"
