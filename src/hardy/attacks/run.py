"""One attack on one batch of images: checks of the input, the engine, and what comes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy import seeding
from hardy.attacks.engine import Engine, Problem
from hardy.attacks.foreign import name_of, run_foreign, warn_outside
from hardy.attacks.goal import Goal, predicted
from hardy.attacks.guards import check_input, check_rows, check_stop, check_targets
from hardy.attacks.passes import Passes, sealed_rng
from hardy.attacks.state import AnyAttack, Attack, Ball, ForeignAttack, Progress, Stop
from hardy.attacks.verify import verify
from hardy.errors import ParameterError
from hardy.threats import Threat

__all__ = ["AttackResult", "run"]


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """What an attack found, one row per image; every image was predicted again in float32.

    Attributes:
        x_adv: Images inside ball and box: the adversarial one, or where it failed the one with the lowest margin.
        success: Whether the goal is reached: predicted class is not the label (or is the target, if
            targets were given).
        margin: Correct logit minus best other at ``x_adv``, negative on success; with targets, best
            other minus target.
        clean_correct: Whether the unchanged image was classified right.
        passes: "forward" and "backward", summed over images, with the clean prediction and the verification. Padding
            rows are not counted, nor what a foreign attack did by itself.
        forward_passes: The same per image.
        backward_passes: The same per image.
        gradients: How many gradients the search looked at, per image.
        zero_gradients: How many of these had no value of at least 1e-12.
        silent: Where an attack from elsewhere passed an adversarial image and returned another that was none; the one
            it passed is in ``x_adv``. Never with Hardy's own attacks.
        attack: Name of the attack.
        threat: The threat.
    """

    x_adv: Float[Tensor, "n c h w"]
    success: Bool[Tensor, "n"]
    margin: Float[Tensor, "n"]
    clean_correct: Bool[Tensor, "n"]
    passes: dict[str, int]
    forward_passes: Int[Tensor, "n"]
    backward_passes: Int[Tensor, "n"]
    gradients: Int[Tensor, "n"]
    zero_gradients: Int[Tensor, "n"]
    silent: Bool[Tensor, "n"]
    attack: str
    threat: Threat


def run(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, "n"],
    attack: AnyAttack | ForeignAttack,
    *,
    threat: Threat,
    targets: Int[Tensor, "n"] | None,
    rows: Int[Tensor, "n"] | None,
    seed: int,
    batch_size: int,
    sources: Sequence[nn.Module] | None,
    stop: Stop | None,
    skip_wrong: bool,
    on_progress: Callable[[Progress], None] | None,
) -> AttackResult:
    """Attack; arguments as for :func:`hardy.attacks.attack`, which resolves names and has the defaults."""
    x, nets = x.detach(), [model] if sources is None else list(sources)
    check_input(x, [model, *nets], batch_size=batch_size)
    y = check_rows("y", y, x)
    targets = None if targets is None else check_rows("targets", targets, x)
    rows = None if rows is None else check_rows("rows", rows, x)
    check_stop(stop)
    if isinstance(attack, Attack) and threat.norm not in attack.norms:
        raise ParameterError(f"{attack.name}: norm must be one of {', '.join(attack.norms)}; got {threat.norm!r}.")
    judge = Passes([model], size=min(batch_size, len(x)), n=len(x), device=x.device)
    search = Passes(nets, size=batch_size, n=len(x), device=x.device)
    everything = torch.arange(len(x), device=x.device)
    with sealed_rng(x.device, seed):
        clean = judge.logits(x, everything, fixed=True)
        goal = _goal(clean, y, targets)
        todo = (~goal.reached(clean)).nonzero()[:, 0] if skip_wrong else everything
        problem = Problem(
            x=x[todo],
            y=y[todo],
            targets=_aims(attack, clean, goal)[todo],
            must_hit=goal.must_hit[todo],
            threat=Ball(threat.norm, torch.full((len(todo),), threat.eps, device=x.device)),
            key=seeding.keys(seeding.root(seed, f"attack:{name_of(attack)}"), everything if rows is None else rows)[
                todo
            ],
            image=todo,
        )
        x_adv, success, margin = x.clone(), goal.reached(clean), goal.margin(clean)
        silent = torch.zeros_like(success)
        if len(todo) == 0:
            pass
        elif isinstance(attack, Attack):
            if stop is None:
                stop = attack.stop if sources is None else "never"
            engine = Engine(attack, problem, search=search, judge=judge, stop=stop, on_progress=on_progress)
            engine.run()
            x_adv[todo], success[todo], margin[todo] = engine.x_adv, engine.success, engine.margin
        else:
            found = _foreign(attack, problem, nets, judge=judge, clean=clean, threat=threat, watch=skip_wrong)
            x_adv[todo], success[todo], margin[todo], silent[todo] = found
    forward, backward = judge.forward + search.forward, judge.backward + search.backward
    return AttackResult(
        x_adv=x_adv,
        success=success,
        margin=margin,
        clean_correct=predicted(clean) == y,
        passes={"forward": int(forward.sum()), "backward": int(backward.sum())},
        forward_passes=forward,
        backward_passes=backward,
        gradients=search.gradients,
        zero_gradients=search.zero_gradients,
        silent=silent,
        attack=name_of(attack),
        threat=threat,
    )


def _goal(clean: Tensor, y: Tensor, targets: Tensor | None) -> Goal:
    check_targets(clean, y, targets)
    aimed = torch.full_like(y, targets is not None, dtype=torch.bool)
    return Goal(label=y, target=y if targets is None else targets, must_hit=aimed)


def _aims(attack: AnyAttack | ForeignAttack, clean: Tensor, goal: Goal) -> Tensor:
    """Choose the class each job aims at, (n, restarts): given, r-th most likely wrong, or none (the label)."""
    if not isinstance(attack, Attack):
        return goal.target[:, None]
    given = goal.target[:, None].expand(-1, attack.restarts)
    if not attack.targeted or bool(goal.must_hit.any()):
        return given
    wrong = clean.scatter(1, goal.label[:, None], -torch.inf)
    return wrong.argsort(dim=1, descending=True, stable=True)[:, : min(attack.restarts, clean.shape[1] - 1)]


def _foreign(
    attack: ForeignAttack,
    problem: Problem,
    nets: Sequence[nn.Module],
    *,
    judge: Passes,
    clean: Tensor,
    threat: Threat,
    watch: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if len(nets) != 1:
        raise ParameterError(
            f"{name_of(attack)}: a foreign attack takes one source; got {len(nets)}. Average them inside it."
        )
    goal = Goal(problem.y, problem.targets[:, 0], problem.must_hit)
    x_adv, passed = run_foreign(attack, nets[0], problem.x, goal, threat=problem.threat, batch_size=judge.size)
    verdict = verify(judge, x_adv, x=problem.x, goal=goal, threat=problem.threat, image=problem.image)
    warn_outside(int((~verdict.inside).sum()), len(x_adv), name=name_of(attack), threat=threat)
    silent = passed.found & ~verdict.success & watch
    if nets[0] is judge.models[0] and silent.any():
        x_adv = torch.where(silent[:, None, None, None], passed.x, x_adv)
        verdict = verify(judge, x_adv, x=problem.x, goal=goal, threat=problem.threat, image=problem.image)
    return (
        torch.where(verdict.inside[:, None, None, None], x_adv, problem.x),
        verdict.success,
        torch.where(verdict.inside, verdict.margin, goal.margin(clean[problem.image])),
        silent & verdict.success,
    )
