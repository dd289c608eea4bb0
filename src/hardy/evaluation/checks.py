"""Checks derived from what the attacks saw; those that attack anew are in :mod:`hardy.evaluation.full_checks`.

They cost no pass, but for a few images in :func:`source_is_model` where the weights are equal, and in
:func:`frozen_randomness` where the net is random. Each takes the context and the measured axes by name, and says
"not_run" where an axis it needs is missing.
"""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from hardy.attacks import APGD
from hardy.attacks.passes import sealed_rng
from hardy.evaluation.context import Context, Measured
from hardy.evaluation.eps_curve import bottom
from hardy.evaluation.fingerprint import weights_digest
from hardy.evaluation.full_checks import FULL, lacks
from hardy.evaluation.probe import PROBE
from hardy.evaluation.suite import QUERIES, TWIN, SuiteRun, controls, suite_run
from hardy.evaluation.verdicts import compare, grade, verdict
from hardy.results import Check, Status
from hardy.stats import wilson

__all__ = ["DERIVED", "FULL", "Frozen"]

Seen = Mapping[str, Measured]
PROGRESS = 0.01  # share of its plain margin that an image must lose for the attack to have got anywhere
CONTROLS = {"noise": "random noise", "fgsm": "a single gradient step"}
FROZEN = 32  # images attacked with frozen randomness, one by one


def zero_gradient(context: Context, seen: Seen) -> Check:
    """Look for vanished gradients: on what stands nothing was shown; a single blind attack is a warning."""
    code = "zero_gradient"
    if "white_box" not in seen and "eps_curve" not in seen:
        return lacks(code, "white_box or eps_curve")
    run = suite_run(context)
    if context.twin is not None:
        return _twin_gradient(code, run)
    total, zeros = run.gradients, run.zero_gradients
    if not total.any():
        return verdict(code, "not_run", "no gradient was taken: no right image, or no attack that takes any")
    attacked, blind = int((total > 0).sum()), int(((total > 0) & (zeros == total)).sum())
    evidence = f"{blind} of {attacked} attacked images gave no gradient above 1e-12; {int(zeros.sum())} of "
    evidence += f"{int(total.sum())} gradients vanished"
    left = run.standing & (total > 0)
    share = 0.0 if not left.any() else float(zeros[left].sum() / total[left].sum())
    status = grade(max(share, blind / attacked))
    worst = max((s for s in run.stages if s.gradients), key=lambda s: s.zero_gradients / s.gradients)
    lost = worst.zero_gradients / worst.gradients
    if status == "pass" and grade(lost) != "pass":
        status = "warn"
    if grade(lost) != "pass":
        evidence += f"; {worst.label} lost {lost:.0%} of its own"
    remedy = "Attack the net through a differentiable twin, scaled logits or queries; robustness here is not shown."
    return verdict(code, status, evidence, remedy)


def _twin_gradient(code: str, run: SuiteRun) -> Check:
    """Judge the gradients of the twin: those of the net itself are expected to vanish."""
    stages = [stage for stage in run.stages if stage.label.endswith(TWIN) and stage.gradients]
    if not stages:
        return verdict(code, "not_run", "no gradient of the twin was taken")
    zeros, total = sum(s.zero_gradients for s in stages), sum(s.gradients for s in stages)
    remedy = "Give a twin through which gradients pass."
    return verdict(code, grade(zeros / total), f"{zeros} of {total} gradients of the twin vanished", remedy)


def monotone_eps(context: Context, seen: Seen) -> Check:
    """Look for images broken at a smaller budget that the attack misses at a larger one."""
    code = "monotone_eps"
    if "eps_curve" not in seen or "white_box" not in seen:
        return lacks(code, "eps_curve and white_box")
    eps = seen["eps_curve"].eps_broken
    if eps is None:
        return lacks(code, "eps_curve")
    broken = (eps < context.threat.eps) & context.correct
    missed = broken & suite_run(context).standing
    evidence = f"{int(missed.sum())} of {int(broken.sum())} images broken below {context.threat} survive it"
    remedy = "A larger budget must not help the net: use the standard or the full suite, more steps, more restarts."
    return verdict(code, compare(missed), evidence, remedy)


def chance_level(context: Context, seen: Seen) -> Check:
    """Demand that a large enough budget takes accuracy down to about 0: an attack must beat guessing."""
    code = "chance_level"
    if "eps_curve" not in seen:
        return lacks(code, "eps_curve")
    last = seen["eps_curve"].axis.points[-1]
    goal = bottom(context)
    evidence = f"accuracy {last.accuracy:.3f} at {last.label}; a working attack gets to {goal:.3g}"
    remedy = "The attack fails where it cannot: look for gradient masking, and do not trust the smaller budgets either."
    low, _ = wilson(round(last.accuracy * last.n), last.n)
    status: Status = "pass" if last.accuracy <= goal else "warn" if low <= goal else "fail"
    return verdict(code, status, evidence, remedy)


def noise_beats_gradients(context: Context, seen: Seen) -> Check:
    """Look for images that random noise breaks and the suite at the same budget does not."""
    remedy = "Gradients do not lead anywhere useful: use queries, a differentiable twin, more restarts."
    return _control("noise_beats_gradients", "noise", context, seen, remedy)


def single_step_beats_many(context: Context, seen: Seen) -> Check:
    """Look for images that one gradient step breaks and the suite does not."""
    remedy = (
        "Iterations must not be weaker than one step: the loss surface is shattered. Use queries or a smoother twin."
    )
    return _control("single_step_beats_many", "fgsm", context, seen, remedy)


def black_box_beats_white_box(context: Context, seen: Seen) -> Check:
    """Look for images that an attack without gradients breaks after all attacks with gradients failed."""
    code = "black_box_beats_white_box"
    if "white_box" not in seen:
        return lacks(code, "white_box")
    run, blind = suite_run(context), [label for label, a in context.suite.items() if isinstance(a, QUERIES)]
    sighted = [i for i, stage in enumerate(run.stages) if stage.label not in blind]
    numbers = [i for i in range(len(run.stages)) if i > max(sighted, default=-1)]
    missed = torch.isin(run.broken_by, torch.tensor(numbers, device=run.broken_by.device))
    if not sighted:
        return verdict(code, "not_run", "the suite holds no attack that follows gradients", 'Use suite="standard".')
    if "query" in seen:
        missed = missed | (run.standing & ~torch.stack(list(seen["query"].outcomes.values())).all(dim=0))
    if not numbers and "query" not in seen:
        return verdict(
            code, "not_run", "no attack without gradients was run", 'Use suite="standard", or the axis query.'
        )
    evidence = f"queries alone break {int(missed.sum())} of {len(missed)} images after the gradients had failed"
    remedy = "The gradients are masked: trust the worst case only, and attack through a differentiable twin."
    return verdict(code, compare(missed), evidence, remedy)


def no_progress(context: Context, seen: Seen) -> Check:
    """Look for images on which the attacks got nowhere: the margin hardly fell.

    One of the indicators of Pintor et al., "Indicators of attack failure", NeurIPS 2022,
    https://arxiv.org/abs/2106.09947.
    """
    code = "no_progress"
    if "white_box" not in seen:
        return lacks(code, "white_box")
    run = suite_run(context)
    z = context.memo["logits"]
    label = z.gather(1, context.y[:, None])
    before = label[:, 0] - z.scatter(1, context.y[:, None], -torch.inf).amax(dim=1)
    stuck = run.standing & (before - run.margin < PROGRESS * before)
    evidence = (
        f"on {int(stuck.sum())} of {int(run.standing.sum())} images that stand no attack lowered the margin by 1 %"
    )
    remedy = "A working attack at least lowers the margin: look at the gradients, the loss and the step size."
    return verdict(code, compare(stuck), evidence, remedy)


def silent_success(context: Context, seen: Seen) -> Check:
    """Look for attacks from elsewhere that pass an adversarial image and return another (Pintor et al. 2022)."""
    code = "silent_success"
    if "white_box" not in seen:
        return lacks(code, "white_box")
    quiet = {stage.label: stage.silent for stage in suite_run(context).stages if stage.silent}
    if not quiet:
        return verdict(code, "pass", "every attack returned the adversarial images that it came across")
    evidence = ", ".join(f"{label} passed {n} adversarial images without returning them" for label, n in quiet.items())
    remedy = (
        "They count as broken here. Let the attack keep its best point: used elsewhere it is weaker than it could be."
    )
    return verdict(code, "warn", evidence, remedy)


def transfer_beats_white_box(context: Context, seen: Seen) -> Check:
    """Look for images that break when made on another net, at the same budget, but not when made on this one."""
    code = "transfer_beats_white_box"
    if "white_box" not in seen or "transfer" not in seen:
        return lacks(code, "white_box and transfer")
    robust, transfer = suite_run(context).standing, seen["transfer"]
    names = [p.label for p in transfer.axis.points if p.level is not None and p.level <= context.threat.eps]
    missed = {name: robust & ~transfer.outcomes[name] for name in names}
    worst = max(missed, key=lambda name: int(missed[name].sum()))
    evidence = (
        f"{int(missed[worst].sum())} of {len(robust)} images break when made on {worst!r}, not when made on the net"
    )
    remedy = "The white-box number is too high: its gradients are masked. Report the worst case per image."
    return verdict(code, compare(missed[worst]), evidence, remedy)


def source_is_model(context: Context, seen: Seen) -> Check:
    """Look for sources that are the model itself: the same weights, and the same outputs on a few images."""
    code = "source_is_model"
    if "transfer" not in seen:
        return lacks(code, "transfer")
    few = context.x[:PROBE]
    twins = [source for source in context.sources if weights_digest(source.model) == context.weights]
    same = [s.name for s in twins if torch.allclose(context.logits(few, s.model), context.logits(few), equal_nan=True)]
    if same:
        evidence = f"{len(same)} of {len(context.sources)} sources are the model itself: {', '.join(same[:3])}"
        remedy = "That is white_box once more, not transfer. Pass nets of another training."
        return verdict(code, "fail", evidence, remedy)
    return verdict(code, "pass", f"none of {len(context.sources)} sources has the weights and outputs of the model")


class Frozen(nn.Module):
    """A random net with the same draw every time, for images one by one.

    Args:
        net: Draws from PyTorch's global generators.
        seed: Of the draw.
    """

    def __init__(self, net: nn.Module, seed: int) -> None:
        super().__init__()
        self.net, self.seed = net, seed
        self.training = False  # not eval(): the modes of the net are the caller's

    def forward(self, x: Tensor) -> Tensor:
        """Call the net as if for the first time."""
        with sealed_rng(x.device, self.seed):
            z: Tensor = self.net(x)
        return z


def frozen_randomness(context: Context, seen: Seen) -> Check:
    """Where the net is random: does what survives its expectation survive an attacker who knows the draw?"""
    code = "frozen_randomness"
    if "white_box" not in seen:
        return lacks(code, "white_box")
    if context.draws == 1:
        return verdict(code, "pass", "the net gives the same answer twice: nothing to freeze")
    index = suite_run(context).standing.nonzero()[:FROZEN, 0]
    if len(index) == 0:
        return verdict(code, "pass", "no image was left to break")
    net = Frozen(context.model, context.seed)
    frozen = dataclasses.replace(context, model=net, batch_size=1, draws=1, journal=None, seen={}, memo={})
    broken = frozen.attack(APGD(steps=context.budget.curve_steps), index=index).success
    evidence = f"with its draw known, {int(broken.sum())} of {len(index)} images fall that survive its expectation"
    remedy = "What holds there is not knowing the draw, not the net: say so beside the number."
    share = float(broken.float().mean())
    return verdict(code, "pass" if share < 0.1 else "warn", evidence, remedy)


def _control(code: str, name: str, context: Context, seen: Seen, remedy: str) -> Check:
    if "white_box" not in seen:
        return lacks(code, "white_box")
    found, what = controls(context), CONTROLS[name]
    if name not in found:
        return verdict(code, "not_run", f"{what} is not defined for {context.threat.norm}")
    broken: Bool[Tensor, "n"] = found[name]
    evidence = f"{what} breaks {int(broken.sum())} of {len(broken)} images that the suite does not"
    return verdict(code, compare(broken), evidence, remedy)


DERIVED: dict[str, Callable[[Context, Seen], Check]] = {
    "zero_gradient": zero_gradient,
    "monotone_eps": monotone_eps,
    "chance_level": chance_level,
    "noise_beats_gradients": noise_beats_gradients,
    "single_step_beats_many": single_step_beats_many,
    "black_box_beats_white_box": black_box_beats_white_box,
    "no_progress": no_progress,
    "silent_success": silent_success,
    "transfer_beats_white_box": transfer_beats_white_box,
    "source_is_model": source_is_model,
    "frozen_randomness": frozen_randomness,
}
