"""The most harmful change of a net's weights within a ball, alone or together with that of its inputs.

Tsai, Hsu, Yu, Chen. "Non-singular adversarial robustness of neural networks". ICASSP 2021,
https://arxiv.org/abs/2102.11935: robustness to changed inputs alone, or to changed weights alone, says little about
both together. The search follows Stutz, Hein, Schiele. "Relating adversarially robust generalization to flat minima".
ICCV 2021, https://arxiv.org/abs/2104.04448: gradient ascent on the mean cross-entropy, projected layer by layer, one
forward and backward pass per step for weights and inputs together.

One change of the weights is shared by all images, as in a chip that is worn or tampered with; it is weaker than a
change per image would be. Deviations from the authors' code: steps are a fixed multiple of the radius (theirs are 3.3
radii for their radius of 0.003), images take the steps of :class:`hardy.attacks.PGD`, and the point of largest loss on
the way counts, not the last one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import seeding
from hardy.attacks import PGD, Goal
from hardy.attacks.pgd import PGDState
from hardy.attacks.state import Ball
from hardy.errors import ParameterError
from hardy.perturbed import WeightBall, added, perturbable, perturbed_weights
from hardy.threats import Threat

__all__ = ["MOST", "WorstWeights", "losses", "worst_weights"]

MOST = 1000.0  # nats that one image counts at most, and where its logits are NaN
IMAGES = ""  # name of their gradient, beside those of the weights
STEP = 2.0  # length of a step of the weights in radii of their balls: what is behind the border is projected onto it


@dataclass(frozen=True, kw_only=True)
class WorstWeights:
    """The point of largest mean loss that a search has seen.

    Attributes:
        deltas: Change of every layer's weights, by the names of the weights.
        x: Images at that point, in [0, 1].
        loss: Their cross-entropies there, in nats.
        passes: "forward" and "backward" passes, summed over images.
        zero_gradients: Steps at which no weight had a gradient.
    """

    deltas: dict[str, Tensor]
    x: Float[Tensor, "m c h w"]
    loss: Float[Tensor, "m"]
    passes: dict[str, int]
    zero_gradients: int


def losses(logits: Float[Tensor, "m k"], y: Int[Tensor, "m"]) -> Float[Tensor, "m"]:
    """Compute the cross-entropy of every image in nats, at most :data:`MOST`, which NaN logits have too."""
    return F.cross_entropy(logits.float(), y, reduction="none").nan_to_num(nan=MOST, posinf=MOST).clamp(max=MOST)


def worst_weights(
    model: nn.Module,
    x: Float[Tensor, "m c h w"],
    y: Int[Tensor, "m"],
    *,
    ball: WeightBall,
    steps: int,
    restarts: int,
    key: Int[Tensor, "m"],
    root: int,
    threat: Threat | None = None,
    start: WorstWeights | None = None,
    batch_size: int = 128,
) -> WorstWeights:
    """Search for the change of the weights, and with a threat of the images, that makes the mean loss largest.

    The first restart begins at ``start``, or at the weights as they are; the others on random points of the border of
    the ball. Images begin at random points of their balls and take the steps of PGD. The model is left as it is.

    Args:
        model: Returns logits for pixels in [0, 1]; in eval mode.
        x: Images in [0, 1].
        y: True classes.
        ball: Around the weights of this model; with radius 0 only the images move.
        steps: Gradient steps per restart, at least 1.
        restarts: At least 1.
        key: One int64 per image, the source of its random starts.
        root: Source of those of the weights (:func:`hardy.seeding.root`).
        threat: What may be done to every image; None: nothing.
        start: A point inside the balls, such as that of a smaller ball; what is found is at least as harmful.
        batch_size: Images per pass.

    Raises:
        ParameterError: no steps or no restarts.
        AttachError: weights that are computed (:func:`hardy.perturbed.perturbable`).
    """
    if steps < 1 or restarts < 1:
        raise ParameterError(f"worst_weights: steps and restarts must be at least 1; got {steps} and {restarts}.")
    net = _Net(model, y, move=ball.radius > 0, attack=threat is not None, batch_size=batch_size)
    spec, eps = PGD(steps=steps, random_start=threat is not None), 0.0 if threat is None else threat.eps
    budget = Ball("linf" if threat is None else threat.norm, torch.full((len(x),), eps, device=x.device))
    goal = Goal(y, y, torch.zeros_like(y, dtype=torch.bool))
    best, blind = None, 0
    for restart in range(restarts):
        state = spec.start(x, goal, budget, seeding.fold(key, restart))
        if restart > 0:
            deltas = ball.draw(net.weights, seeding.root(root, f"restart {restart}"))
        elif start is not None:
            deltas, state = start.deltas, replace(state, x_adv=start.x)
        else:
            deltas = {name: torch.zeros_like(weight) for name, weight in net.weights.items()}
        for seen in _ascent(net, deltas, state, ball=ball, spec=spec):
            blind += seen.blind
            best = seen if best is None or float(seen.loss.mean()) > float(best.loss.mean()) else best
    assert best is not None  # noqa: S101  (there is at least one restart)
    passes = {"forward": net.forward, "backward": net.backward}
    return WorstWeights(deltas=best.deltas, x=best.x, loss=best.loss, passes=passes, zero_gradients=blind)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """One point: changes of the weights, images, losses, logits, and the gradients of the sum of the losses."""

    deltas: dict[str, Tensor]
    x: Float[Tensor, "m c h w"]
    loss: Float[Tensor, "m"]
    logits: Float[Tensor, "m k"]
    uphill: dict[str, Tensor]
    gradient: Float[Tensor, "m c h w"] | None
    blind: bool


def _ascent(net: "_Net", deltas: dict[str, Tensor], state: PGDState, *, ball: WeightBall, spec: PGD) -> Iterator[_Seen]:
    """Climb from a point: give it, and the point after each step."""
    for _ in range(spec.steps):
        seen = net.look(deltas, state.x_adv)
        yield seen
        if net.move:
            moves = ball.steepest(seen.uphill)
            deltas = ball.project({name: delta + STEP * moves[name] for name, delta in deltas.items()})
        if net.attack:
            state = spec.tell(state, seen.logits, seen.gradient)
    yield net.look(deltas, state.x_adv, gradients=False)


class _Net:
    """Calls a net at other weights than its own, and counts. The weights are set in place, and back after every call.

    ``torch.func.functional_call`` would not do: a module that a net holds twice keeps the weights that were meant for
    one call.
    """

    def __init__(self, model: nn.Module, y: Tensor, *, move: bool, attack: bool, batch_size: int) -> None:
        self.model, self.y, self.move, self.attack, self.batch_size = model, y, move, attack, batch_size
        self.weights = {name: weight.detach().clone() for name, weight in perturbable(model).items()}
        self.forward = self.backward = 0

    def look(self, deltas: dict[str, Tensor], x: Float[Tensor, "m c h w"], *, gradients: bool = True) -> _Seen:
        """Give losses and logits, and the gradients of what moves; values that are not finite become 0."""
        batches = zip(torch.split(x, self.batch_size), torch.split(self.y, self.batch_size), strict=True)
        with perturbed_weights(self.model, added(self.weights, deltas)), torch.inference_mode(False):
            found = [self._batch(images, y, gradients) for images, y in batches]
        logits = torch.cat([z for z, _ in found])
        slopes = [slope for _, slope in found]
        moving = list(self.weights) if gradients and self.move else []
        uphill = {name: torch.stack([slope[name] for slope in slopes]).sum(dim=0) for name in moving}
        self.forward += len(x)
        self.backward += len(x) if gradients else 0
        return _Seen(
            deltas=deltas,
            x=x,
            loss=losses(logits, self.y),
            logits=logits,
            uphill=uphill,
            gradient=torch.cat([slope[IMAGES] for slope in slopes]) if gradients and self.attack else None,
            blind=len(moving) > 0 and not any(bool(value.any()) for value in uphill.values()),
        )

    def _batch(self, x: Tensor, y: Tensor, gradients: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the logits of one batch, and the gradients of its summed losses by what moves."""
        images = x.clone()
        leaves: dict[str, Tensor] = {**perturbable(self.model)} if gradients and self.move else {}
        leaves |= {IMAGES: images} if gradients and self.attack else {}
        for leaf in leaves.values():
            leaf.requires_grad_()
        with torch.set_grad_enabled(gradients):
            z: Tensor = self.model(images)
            total = F.cross_entropy(z.float(), y, reduction="sum")
        return z.detach().float(), _gradients(total, leaves)


def _gradients(total: Float[Tensor, ""], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Differentiate by the leaves; 0 where the net cuts the graph, does not use a leaf, or overflows."""
    if not leaves or not total.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {name: g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for name, g in zip(leaves, found, strict=True)}
