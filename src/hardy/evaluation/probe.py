"""Four forward passes of 16 images, and one backward pass: what the guards know about a model.

Eight images, once pulled 1 % towards gray, so that small steps from them stay inside the box, and once as they are. All
passes have one shape.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy.attacks.goal import Goal
from hardy.attacks.norms import steepest_step
from hardy.attacks.passes import VANISHED, Passes
from hardy.threats import Threat

__all__ = ["PROBE", "Probe"]

PROBE = 16  # rows of every pass
SLOPES = (PROBE - 2) // 2  # images of which the slope is measured; two rows each
INSET = 0.01  # how far the images are moved from the border of the box
STEP = 0.01  # change of the margin to aim at, relative to the span of the outputs


@dataclass(frozen=True)
class Probe:
    """What the passes showed.

    Attributes:
        first: Outputs of the eight images pulled in, then of the plain ones.
        noise: Largest difference between two passes of the same images.
        span: Largest output minus smallest; 0 if one is not finite.
        other_company: Outputs of the first image in another batch.
        slope: Central difference of the margin along the gradient over the length of the gradient, at a small step;
            1 where the gradient is right, 0 where there is none.
        reach: The same over a step of the threat's norm and budget.
        lost: Share of the gradient, in sum of absolute values, that is exactly 0 at pixels on the border of the box and
            is not a little inside.
    """

    first: Float[Tensor, "16 k"]
    noise: float
    span: float
    other_company: Float[Tensor, "k"]
    slope: Float[Tensor, "s"]
    reach: Float[Tensor, "s"]
    lost: float

    @staticmethod
    def take(model: nn.Module, x: Float[Tensor, "n c h w"], *, threat: Threat) -> "Probe":
        """Call the model; fewer than eight images are repeated."""
        rows = torch.arange(PROBE, device=x.device)
        plain = x[rows[: PROBE // 2] % len(x)]
        x = torch.cat([INSET + (1 - 2 * INSET) * plain, plain])
        passes = Passes([model], size=PROBE, n=PROBE, device=x.device)
        first = passes.logits(x, rows, fixed=True)
        if first.shape[1] < 2:  # an error of the guard for classes
            return Probe(first, 0.0, 0.0, first[0], first[:0, 0], first[:0, 0], 0.0)
        top = first.topk(2).indices
        goal = Goal(top[:, 0], top[:, 1], torch.zeros_like(rows, dtype=torch.bool))
        second, gradient = passes.gradient(x, rows, goal, _margin)
        span = float(first.max() - first.min()) if bool(first.isfinite().all()) else 0.0
        g, where, classes = gradient[:SLOPES], x[:SLOPES], top[:SLOPES]
        small = _small_step(g, span)
        around = torch.cat([x[:1], 1 - x[:1], where + small, where - small])
        near = passes.logits(around, rows, fixed=True)
        large = threat.eps * steepest_step(g, norm=threat.norm)
        far = passes.logits(torch.cat([where + large, where - large]), rows[2:], fixed=True)
        noise = float((first - second).abs().nan_to_num(0.0, 0.0, 0.0).max())
        return Probe(
            first=first,
            noise=noise,
            span=span,
            other_company=near[0],
            slope=_ratio(near[2:], classes, g, small),
            reach=_ratio(far, classes, g, large),
            lost=_lost(plain, gradient[: PROBE // 2], gradient[PROBE // 2 :]),
        )


def _margin(logits: Float[Tensor, "m k"], goal: Goal) -> Float[Tensor, "m"]:
    """Give the logit of the predicted class minus that of the next, as they were at the image: smooth in the logits."""
    return (logits.gather(1, goal.label[:, None]) - logits.gather(1, goal.target[:, None]))[:, 0]


def _small_step(gradient: Float[Tensor, "s c h w"], span: float) -> Float[Tensor, "s c h w"]:
    """Step along the gradient, so far that the margin should change clearly but little; inside the box."""
    length = gradient.flatten(1).norm(dim=1)
    largest = gradient.flatten(1).abs().amax(dim=1)
    size = torch.minimum(STEP * span / length**2, INSET / largest)
    return gradient * torch.where(largest < VANISHED, 0, size)[:, None, None, None]


def _ratio(
    logits: Float[Tensor, "s2 k"], top: Int[Tensor, "s 2"], gradient: Tensor, step: Tensor
) -> Float[Tensor, "s"]:
    """Divide the change of the margin from ``-step`` to ``+step`` by the one that the gradient foretells."""
    goal = Goal(top[:, 0], top[:, 1], torch.zeros_like(top[:, 0], dtype=torch.bool))
    up, down = logits[: len(top)], logits[len(top) :]
    foretold = 2 * (gradient * step).flatten(1).sum(dim=1)
    change = _margin(up, goal) - _margin(down, goal)
    return torch.where(foretold > 0, change / torch.where(foretold > 0, foretold, 1), 0)


def _lost(x: Float[Tensor, "e c h w"], inside: Float[Tensor, "e c h w"], plain: Float[Tensor, "e c h w"]) -> float:
    """Compare the gradients a little inside the box with those at the images."""
    blind = ((x == 0) | (x == 1)) & (plain == 0)
    total = float(inside.abs().sum())
    return float(inside[blind].abs().sum()) / total if total > 0 else 0.0
