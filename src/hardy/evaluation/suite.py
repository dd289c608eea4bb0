"""The attacks of a suite in a row, each on the images that the ones before left standing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy.attacks import ATTACKS, FGSM, SPSA, SUITES, AttackResult, HopSkipJump, Noise, Square, suite
from hardy.attacks.foreign import name_of
from hardy.attacks.state import AnyAttack, Attack, ForeignAttack
from hardy.errors import ParameterError, did_you_mean
from hardy.evaluation.context import Context
from hardy.threats import Threat

__all__ = [
    "ROBUST",
    "TWIN",
    "WRONG",
    "Stage",
    "Suite",
    "SuiteRun",
    "check_suite",
    "confirmed",
    "controls",
    "resolve",
    "search",
    "suite_run",
]

Suite = str | Sequence[str | AnyAttack | ForeignAttack]
TWIN = ", twin"  # end of the labels of stages through the twin
ROBUST, WRONG = -1, -2  # who broke an image: nobody; it was wrong before
RESERVED = ("noise", "custom", *SUITES)  # labels of other points of the axis
QUERIES = (Square, SPSA, HopSkipJump, Noise)  # look at no gradient, so a differentiable twin does nothing for them


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One attack of a suite.

    Attributes:
        label: What the record calls it.
        attack: Its name, or its description with all settings if it is one of Hardy's.
        attacked: How many images stood before it.
        standing: Which images stood after it.
        passes: Forward and backward passes of the stage, over all images.
        gradients: How many gradients it took.
        zero_gradients: How many of them vanished.
        silent: How many images it broke without returning what broke them.
        eot: Draws that it averages in a gradient.
    """

    label: str
    attack: str
    attacked: int
    standing: Bool[Tensor, "n"]
    passes: dict[str, int]
    gradients: int
    zero_gradients: int
    silent: int
    eot: int


@dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """What a suite found, one row per image.

    Attributes:
        stages: The attacks in order.
        standing: Right, and not broken by any attack.
        x_adv: The adversarial image; where none was found the image with the lowest margin, at worst the plain one.
        margin: Lowest margin that an attack found; inf for images that were wrong before.
        broken_by: Number of the stage that broke the image; ROBUST or WRONG.
        gradients: How many gradients were taken.
        zero_gradients: How many of them vanished.
    """

    stages: tuple[Stage, ...]
    standing: Bool[Tensor, "n"]
    x_adv: Float[Tensor, "n c h w"]
    margin: Float[Tensor, "n"]
    broken_by: Int[Tensor, "n"]
    gradients: Int[Tensor, "n"]
    zero_gradients: Int[Tensor, "n"]


def check_suite(wish: Suite, threat: Threat) -> None:
    """Demand known names, and attacks that are defined for the norm.

    Raises:
        ParameterError: otherwise, or no attack at all.
    """
    if isinstance(wish, str):
        if wish not in SUITES:
            raise ParameterError(f"evaluate: unknown suite {wish!r}; {did_you_mean(wish, SUITES)}")
        return
    if callable(wish):
        raise ParameterError("evaluate: suite must be a name or a list of attacks; got one attack. Write [attack].")
    if not wish:
        raise ParameterError('evaluate: suite must name at least one attack; got none. Give "standard" or ["pgd"].')
    for attack in map(_named, wish):
        if isinstance(attack, Attack) and threat.norm not in attack.norms:
            norms = ", ".join(attack.norms)
            raise ParameterError(f"evaluate: {attack.name} is defined for {norms}; got {threat.norm!r}. Leave it out.")


def resolve(
    wish: Suite, threat: Threat, *, num_classes: int, draws: int
) -> tuple[str, dict[str, AnyAttack | ForeignAttack]]:
    """Give the name of a suite in the record, and its attacks by label.

    A single attack gives its name to the suite; several that are named one by one are "custom".
    """
    if isinstance(wish, str):
        return wish, dict(suite(wish, norm=threat.norm, num_classes=num_classes, eot=draws))
    found: dict[str, AnyAttack | ForeignAttack] = {}
    for attack in map(_named, wish):
        name = name_of(attack) if name_of(attack) not in RESERVED else f"{name_of(attack)} attack"
        times = sum(label.split(" #")[0] == name for label in found)
        found[f"{name} #{times + 1}" if times else name] = attack
    return (next(iter(found)) if len(found) == 1 else "custom"), found


def suite_run(context: Context) -> SuiteRun:
    """Run the suite at the threat's budget on the net, then, on what stands, its gradient attacks through the twin.

    Computed once per context.
    """
    if "suite" not in context.memo:
        context.memo["suite"] = _run(context)
    found: SuiteRun = context.memo["suite"]
    return found


def controls(context: Context) -> dict[str, Bool[Tensor, "n"]]:
    """Say which images that the suite left standing fall to what should be weaker: one step, or random draws.

    Computed once per context.
    """
    if "controls" not in context.memo:
        index = suite_run(context).standing.nonzero()[:, 0]
        weak: dict[str, AnyAttack] = {"noise": Noise(draws=context.budget.noise_draws)}
        if context.threat.norm in FGSM.norms:
            weak["fgsm"] = FGSM()
        found = {name: torch.zeros_like(context.correct) for name in weak}
        for name, attack in weak.items():
            if len(index):
                result = context.attack(attack, index=index)
                found[name][index] = confirmed(context, result, index)
        context.memo["controls"] = found
    made: dict[str, Tensor] = context.memo["controls"]
    return made


def _run(context: Context) -> SuiteRun:
    x, n = context.x, len(context.x)
    standing, x_adv = context.correct.clone(), x.clone()
    margin = torch.full((n,), torch.inf, device=x.device)
    broken_by = torch.where(standing, ROBUST, WRONG)
    gradients = torch.zeros(n, dtype=torch.int64, device=x.device)
    zeros, stages = gradients.clone(), list[Stage]()
    for label, attack, source in _plan(context):
        index = standing.nonzero()[:, 0]
        passes: dict[str, int] = {}
        taken = lost = silent = 0
        if len(index):
            found = context.attack(attack, index=index, source=source, stop="first_success", standing=len(index))
            broken = confirmed(context, found, index)
            better = broken | (found.margin < margin[index])
            x_adv[index[better]], margin[index[better]] = found.x_adv[better], found.margin[better]
            gradients[index] += found.gradients
            zeros[index] += found.zero_gradients
            broken_by[index[broken]] = len(stages)
            standing[index[broken]] = False
            passes, silent = found.passes, int(found.silent.sum())
            taken, lost = int(found.gradients.sum()), int(found.zero_gradients.sum())
        made = Stage(
            label=label,
            attack=repr(attack) if isinstance(attack, Attack) else name_of(attack),
            attacked=len(index),
            standing=standing.clone(),
            passes=passes,
            gradients=taken,
            zero_gradients=lost,
            silent=silent,
            eot=getattr(attack, "eot", 1),
        )
        stages.append(made)
    return SuiteRun(
        stages=tuple(stages),
        standing=standing,
        x_adv=x_adv,
        margin=margin,
        broken_by=broken_by,
        gradients=gradients,
        zero_gradients=zeros,
    )


def _plan(context: Context) -> list[tuple[str, AnyAttack | ForeignAttack, nn.Module | None]]:
    plan: list[tuple[str, AnyAttack | ForeignAttack, nn.Module | None]] = [
        (label, attack, None) for label, attack in context.suite.items()
    ]
    if context.twin is not None:
        plan += [
            (f"{label}{TWIN}", attack, context.twin)
            for label, attack in context.suite.items()
            if not isinstance(attack, QUERIES)
        ]
    return plan


def confirmed(context: Context, found: AttackResult, index: Int[Tensor, "m"]) -> Bool[Tensor, "m"]:
    """Say which images of ``index`` are broken: of a random net by a vote of its answers, not by one lucky draw."""
    return found.success if context.draws == 1 else context.predict(found.x_adv) != context.y[index]


def search(
    context: Context, spec: AnyAttack, index: Int[Tensor, "m"], *, eps: float
) -> tuple[Bool[Tensor, "m"], Float[Tensor, "m c h w"], dict[str, int]]:
    """Attack images at a budget, those that stand once more through the twin, if there is one.

    Returns:
        Which are broken, the adversarial images, and the passes.
    """
    found = context.attack(spec, eps=eps, index=index, standing=len(index))
    broken, x_adv, passes = confirmed(context, found, index), found.x_adv.clone(), dict(found.passes)
    left = (~broken).nonzero()[:, 0]
    if context.twin is not None and len(left):
        again = context.attack(spec, eps=eps, index=index[left], source=context.twin, stop="first_success")
        fooled = confirmed(context, again, index[left])
        broken[left[fooled]], x_adv[left[fooled]] = True, again.x_adv[fooled]
        passes = {kind: count + again.passes[kind] for kind, count in passes.items()}
    return broken, x_adv, passes


def _named(wish: str | AnyAttack | ForeignAttack) -> AnyAttack | ForeignAttack:
    if not isinstance(wish, str):
        return wish
    if wish in SUITES:
        attacks = f'[*hardy.attacks.suite("{wish}", norm=..., num_classes=...).values(), ...]'
        raise ParameterError(f"evaluate: {wish!r} is a suite and stands alone; to add attacks to it write {attacks}.")
    if wish not in ATTACKS:
        raise ParameterError(f"evaluate: unknown attack {wish!r} in suite; {did_you_mean(wish, ATTACKS)}")
    return ATTACKS[wish]()
