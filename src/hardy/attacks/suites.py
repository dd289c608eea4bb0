"""Suites: several attacks in a row, each on the images that the ones before left standing.

Croce, Hein. "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks".
ICML 2020, https://arxiv.org/abs/2003.01690: "standard" is what their AutoAttack calls standard.
"""

from typing import Literal

from hardy.attacks.apgd import APGD
from hardy.attacks.fab import FAB
from hardy.attacks.hop_skip_jump import HopSkipJump
from hardy.attacks.square import Square
from hardy.attacks.state import AnyAttack
from hardy.errors import ParameterError, did_you_mean
from hardy.threats import Norm

__all__ = ["SUITES", "suite"]

SUITES = {
    "standard": "AutoAttack-standard: APGD on cross-entropy, APGD and FAB on the nine likeliest wrong classes, Square.",
    "quick": "The same ideas with a twentieth of the passes, to look while you work; it breaks a little less.",
    "full": "The standard suite, then more restarts, a third loss, and an attack that sees labels only.",
}


def suite(name: str, *, norm: Norm, num_classes: int, eot: int = 1) -> dict[str, AnyAttack]:
    """Give the attacks of a suite, in order, by the label that records have for them.

    The ratio of logit differences (DLR) needs four classes to aim at one and three otherwise; below, the plain
    difference of logits stands in for it. Targets are at most the classes there are. For l1 there are five restarts and
    targets, as in AutoAttack. For a net that is random every gradient is the mean of ``eot`` draws, and only gradient
    attacks are run, as in AutoAttack's suite for random nets: walks that compare single answers follow the noise.

    Args:
        name: One of :data:`SUITES`.
        norm: Norm of the threat.
        num_classes: Outputs of the net, at least 2.
        eot: Draws per gradient; 1 for a net that gives the same answer twice.

    Raises:
        ParameterError: an unknown name, or fewer than 2 classes or 1 draw.
    """
    if name not in SUITES:
        raise ParameterError(f"suite: unknown suite {name!r}; {did_you_mean(name, SUITES)}")
    if num_classes < 2 or eot < 1:
        raise ParameterError(f"suite: num_classes must be at least 2 and eot at least 1; got {num_classes} and {eot}.")
    away: Objective = "dlr" if num_classes >= 3 else "margin"
    towards: Objective = "dlr" if num_classes >= 4 else "margin"
    if eot > 1:
        return _random(away, quick=name == "quick", eot=eot)
    if name == "quick":
        return {
            "apgd-ce": APGD(steps=20),
            "apgd-t": APGD(steps=20, objective=towards, targeted=True, restarts=3),
            "square": Square(queries=200),
        }
    runs = 5 if norm == "l1" else 1
    found: dict[str, AnyAttack] = {
        "apgd-ce": APGD(restarts=runs),
        "apgd-t": APGD(objective=towards, targeted=True, restarts=5 if norm == "l1" else 9),
        "fab-t": FAB(),
        "square": Square(),
    }
    if name == "full":
        found["apgd-ce again"] = APGD(restarts=5 * runs)
        found["apgd-dlr" if away == "dlr" else "apgd-margin"] = APGD(objective=away, restarts=5)
        if towards == "dlr":
            found["apgd-margin-t"] = APGD(objective="margin", targeted=True, restarts=9)
        if norm in HopSkipJump.norms:
            found["hop-skip-jump"] = HopSkipJump()
    return found


Objective = Literal["ce", "dlr", "margin"]


def _random(away: Objective, *, quick: bool, eot: int) -> dict[str, AnyAttack]:
    steps = 20 if quick else 100
    return {
        "apgd-ce": APGD(steps=steps, eot=eot),
        f"apgd-{away}": APGD(steps=steps, objective=away, eot=eot),
    }
