"""Checks that attack anew, under ``checks="full"``, at most 64 images that are still robust."""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from hardy.attacks import APGD, SUITES
from hardy.attacks.state import AnyAttack, Attack, ForeignAttack
from hardy.evaluation.context import Context, Measured
from hardy.evaluation.eps_curve import bottom, largest_eps
from hardy.evaluation.self_test import self_test as run_self_test
from hardy.evaluation.suite import resolve, search, suite_run
from hardy.evaluation.verdicts import grade, verdict
from hardy.results import Check
from hardy.stats import wilson
from hardy.threats import Threat

__all__ = ["FULL", "lacks"]

Seen = Mapping[str, Measured]
IMAGES = 64  # that a check may attack
ENOUGH = 10  # images from which "none of them broke" says something
HELPS = 0.1  # share of robust images that twice the budget must break
PLANTED, FEWEST = 16, 5  # images of the self-test, and how many of them must take a planted example
EASY = 0.5  # share of planted examples that random search may find


def lacks(code: str, axes: str) -> Check:
    """Say that an axis is missing."""
    return verdict(code, "not_run", f"needs the axis {axes}", "Measure it too.")


def more_budget(context: Context, seen: Seen) -> Check:
    """Give the first attack of the suite five times the steps, then five restarts; does that break more?"""
    code = "more_budget"
    if "white_box" not in seen:
        return lacks(code, "white_box")
    index = _robust(context)
    if len(index) == 0:
        return verdict(code, "pass", "no image was left to break")
    spec = _iterative(context)
    stronger = [dataclasses.replace(spec, steps=5 * spec.steps), dataclasses.replace(spec, restarts=5)]  # type: ignore[attr-defined, type-var]  # it has both
    broken = torch.stack([_broken(context, attack, index) for attack in stronger])
    more = int(broken.any(dim=0).sum())
    evidence = (
        f"{spec.name} with five times the steps breaks {int(broken[0].sum())} of {len(index)} more, with five restarts "
        f"{int(broken[1].sum())}"
    )
    remedy = 'Use suite="full", or more steps, until this stops; until then the robust accuracy is too high.'
    return verdict(code, grade(more / len(index)), evidence, remedy)


def larger_eps(context: Context, seen: Seen) -> Check:
    """Double the budget: some of what is robust must fall, or the attack is the limit and not the net."""
    code = "larger_eps"
    if "white_box" not in seen:
        return lacks(code, "white_box")
    index = _robust(context)
    if len(index) == 0:
        return verdict(code, "pass", "no image was left to break")
    eps = min(2 * context.threat.eps, largest_eps(context))
    broken = int(_broken(context, _iterative(context), index, eps=eps).sum())
    evidence = f"{broken} of {len(index)} robust images fall at {Threat(context.threat.norm, eps)}, twice the budget"
    remedy = "More budget must help the attacker: look for gradient masking."
    if broken / len(index) >= HELPS:
        return verdict(code, "pass", evidence)
    return verdict(code, "fail" if broken == 0 and len(index) >= ENOUGH else "warn", evidence, remedy)


def huge_eps(context: Context, seen: Seen) -> Check:
    """Give the attacker everything: every image can become another or plain gray, so nothing may stay right."""
    code = "huge_eps"
    if "white_box" not in seen:
        return lacks(code, "white_box")
    index = _robust(context)
    if len(index) == 0:
        return verdict(code, "pass", "no image was left to break")
    eps, goal = largest_eps(context), bottom(context)
    left = len(index) - int(_broken(context, _iterative(context), index, eps=eps).sum())
    evidence = f"{left} of {len(index)} robust images survive {Threat(context.threat.norm, eps)}, the whole box"
    remedy = "No net can be right there. The attack does not work on this net: do not trust any of its numbers."
    low, _ = wilson(left, len(index))
    return verdict(code, "pass" if left / len(index) <= goal else "warn" if low <= goal else "fail", evidence, remedy)


def self_test(context: Context, seen: Seen) -> Check:
    """Plant a sure adversarial example per image by re-heading the net; does the suite find it?"""
    code = "self_test"
    if "white_box" not in seen:
        return lacks(code, "white_box")

    def find(net: nn.Module, x: Tensor, y: Tensor) -> Bool[Tensor, "m"]:
        return _found(context.alone(), net, x, y)

    if context.twin is not None:
        return verdict(code, "not_run", "the suite goes through a twin, which the re-headed net does not have")
    index = context.correct.nonzero()[:PLANTED, 0]
    if len(index) == 0:
        return verdict(code, "not_run", "no plain image is right")
    made = context.ranks.tell(
        run_self_test(
            context.model,
            context.x[index],
            threat=context.threat,
            key=context.keys("self_test")[index],
            find=find,
            batch_size=context.batch_size,
        )
    )
    if made.planted < FEWEST:
        return verdict(
            code, "not_run", f"an adversarial example could be planted in {made.planted} of {made.tried} images"
        )
    evidence = (
        f"of {made.planted} planted adversarial examples the suite finds {made.found}, random search {made.random}"
    )
    if made.random > EASY * made.planted:
        return verdict(code, "not_run", f"{evidence}: too easy to tell", "Use a smaller eps for this check.")
    remedy = "The suite misses adversarial examples that are there: its robust accuracy is too high."
    share = made.found / made.planted
    return verdict(code, "pass" if share >= 0.9 else "warn" if share > 0.5 else "fail", evidence, remedy)


def _found(context: Context, net: nn.Module, x: Tensor, y: Tensor) -> Bool[Tensor, "m"]:
    """Run the suite on the re-headed net: two classes, so one target and the plain difference of logits."""
    named = context.suite_name in SUITES
    _, attacks = resolve(
        context.suite_name if named else [_for_two(attack) for attack in context.suite.values()],
        context.threat,
        num_classes=2,
        draws=context.draws,
    )
    question = dataclasses.replace(
        context, model=net, x=x, y=y, rows=torch.arange(len(x), device=x.device), predictions=y, num_classes=2,
        suite=attacks, twin=None, journal=None, seen={}, memo={},
    )  # fmt: skip
    return ~suite_run(question).standing


def _for_two(attack: AnyAttack | ForeignAttack) -> AnyAttack | ForeignAttack:
    """Give the attack a loss that is defined for two classes."""
    if getattr(attack, "objective", None) == "dlr":
        return dataclasses.replace(attack, objective="margin")  # type: ignore[type-var]  # a dataclass with that field
    return attack


def _robust(context: Context) -> Int[Tensor, "m"]:
    return suite_run(context).standing.nonzero()[:IMAGES, 0]


def _iterative(context: Context) -> AnyAttack:
    """Give the first attack of the suite that has steps and restarts; APGD where there is none."""
    for attack in context.suite.values():
        if isinstance(attack, Attack) and {"steps", "restarts"} <= {f.name for f in dataclasses.fields(attack)}:  # type: ignore[arg-type]  # all are
            return attack
    return APGD()


def _broken(
    context: Context, spec: AnyAttack, index: Int[Tensor, "m"], *, eps: float | None = None
) -> Bool[Tensor, "m"]:
    return search(context, spec, index, eps=context.threat.eps if eps is None else eps)[0]


FULL: dict[str, Callable[[Context, Seen], Check]] = {
    "more_budget": more_budget,
    "larger_eps": larger_eps,
    "huge_eps": huge_eps,
    "self_test": self_test,
}
