"""Which layers a net cannot do without: how much a small, harmful change of one layer's weights raises the loss.

Zhu, Hu, Wang, Xie, Yang. "Improving generalization of adversarial training via robust critical fine-tuning".
ICCV 2023, https://arxiv.org/abs/2308.02533: module robust criticality. Adversarial images are made once from the intact
net. Then the weights of one layer at a time climb the mean cross-entropy over them by plain gradient ascent, inside a
ball of 0.1 times their length; the largest loss on the way, less that of the intact net, is the layer's criticality.
Biases and norms stay, and the net is in eval mode.

The released code takes adversarial images of the test part and projects once a pass over the images. Here the images
are the caller's, and every step is projected. A step is one pass over all images; the code's batches of 512 make the
two equal for up to 512 images. What is found is a lower bound of the worst change, and a step is ``lr`` times the
gradient, whatever the size of the weights: where gradients are tiny, the ball may not be reached.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.attacks import PGD, attack
from hardy.attacks.guards import check_eval, check_input, check_labels, check_rows
from hardy.attacks.precision import full_precision
from hardy.corruptions import CORRUPTIONS, corrupt
from hardy.errors import ParameterError, did_you_mean
from hardy.evaluation.weight_search import losses
from hardy.perturbed import WeightBall, perturbable, perturbed_weights
from hardy.sites import BOX, resolve
from hardy.stats import paired_bootstrap
from hardy.threats import Threat

__all__ = ["Criticality", "module_criticality"]

ATTACK_STEPS = 10
SEVERITY = 3  # of "corruption:NAME"
CORRUPTION = "corruption:"


@dataclass(frozen=True, kw_only=True, eq=False)
class Criticality:
    """How critical each layer is.

    Attributes:
        layers: Names of the layers, in the order of the modules.
        rise: Rise of each image's cross-entropy at the worst point of each layer, in nats; its mean over images, at
            least 0, is the criticality.
        right: Whether each image was classified right there.
        base_loss: Cross-entropy of each image with the weights as they are, in nats.
        base_right: Whether it was right then.
        perturb: What was done to the images.
        radius: Of the ball, relative to the length of each layer's weights.
        passes: "forward" and "backward", summed over images, with those of the attack.
    """

    layers: tuple[str, ...]
    rise: Float[Tensor, "layers n"]
    right: Bool[Tensor, "layers n"]
    base_loss: Float[Tensor, "n"]
    base_right: Bool[Tensor, "n"]
    perturb: str
    radius: float
    passes: dict[str, int]

    @property
    def values(self) -> dict[str, float]:
        """The criticality of each layer, in nats."""
        return dict(zip(self.layers, self.rise.double().mean(1).tolist(), strict=True))

    @property
    def least(self) -> str:
        """The least critical layer; of equal ones the first."""
        return min(self.values, key=self.values.__getitem__)

    @property
    def most(self) -> str:
        """The most critical layer; of equal ones the first."""
        return max(self.values, key=self.values.__getitem__)

    def drop(self, layer: str) -> tuple[float, float, float]:
        """Give the drop of accuracy at a layer's worst point, and its 95 % paired bootstrap interval over images.

        Raises:
            ParameterError: the layer was not measured.
        """
        if layer not in self.layers:
            raise ParameterError(f"Criticality: no layer {layer!r}; {did_you_mean(layer, self.layers)}")
        return paired_bootstrap(self.base_right.numpy(), self.right[self.layers.index(layer)].numpy())


def module_criticality(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, "n"],
    *,
    layers: Sequence[str] | None = None,
    radius: float = 0.1,
    steps: int = 10,
    lr: float = 1.0,
    perturb: str = "adversarial",
    threat: Threat | None = None,
    rows: Int[Tensor, "n"] | None = None,
    seed: int = 0,
    batch_size: int = 128,
) -> Criticality:
    """Measure how critical each layer is. The net comes back bit for bit, its buffers, gradients and modes too.

    To choose a layer that is then changed, give images of the training part that were held out of the training, not
    test images: the choice would have seen them.

    Args:
        model: Returns logits (n, k) for pixels in [0, 1]; in eval mode.
        x: Images, float32 in [0, 1].
        y: True classes.
        layers: Names or globs of convolutions and linear layers; None: all. Layers that share a weight are one, under
            the name of the first.
        radius: Of the ball around each layer's weights, relative to their length (Frobenius norm), at least 0.
        steps: Steps of gradient ascent per layer, at least 1.
        lr: Factor of the gradient of the mean cross-entropy in a step, above 0.
        perturb: "adversarial" (PGD of 10 steps), "clean", or "corruption:NAME" with a name of
            ``hardy.corruptions.CORRUPTIONS``, at severity 3.
        threat: Of "adversarial"; None: linf 8/255.
        rows: Identity of each image, the source of its randomness; None: its place.
        seed: Of the attack or corruption.
        batch_size: Images per pass; values do not depend on it but for the order of sums.

    Raises:
        ParameterError: train mode, a bad number, or an unknown ``perturb``, or layers without weights.
        LayerNotFoundError: a name in ``layers`` matches nothing.
        AttachError: weights that are computed (:func:`hardy.perturbed.perturbable`).
        DataError: pixels outside [0, 1], labels outside the outputs.
    """
    if not (radius >= 0 and steps >= 1 and lr > 0):
        raise ParameterError(
            f"module_criticality: radius must be at least 0, steps at least 1, lr above 0; got {radius}, {steps}, {lr}."
        )
    check_eval(model, "module_criticality")
    check_input(x, [model, model], batch_size=batch_size)
    y = check_rows("y", y, x)
    names = _weights(model, layers)
    rows = torch.arange(len(x), device=x.device) if rows is None else rows
    with full_precision(x.device), _kept_buffers(model):
        with surgery.without_trace(model, x):
            check_labels(model(x[:1].clone()), y, "module_criticality")
        images, passes = _images(model, x, y, perturb, threat=threat, rows=rows, seed=seed, batch_size=batch_size)
        net = _Net(model, images, y, batch_size)
        base = net.look(None)[0]
        found = [_worst(net, name, radius=radius, steps=steps, lr=lr) for name in names]
    return Criticality(
        layers=tuple(name.removesuffix(".weight") for name in names),
        rise=(torch.stack([logits_loss for logits_loss, _ in found]) - base[0]).cpu(),
        right=torch.stack([right for _, right in found]).cpu(),
        base_loss=base[0].cpu(),
        base_right=base[1].cpu(),
        perturb=perturb,
        radius=radius,
        passes={"forward": passes["forward"] + net.forward, "backward": passes["backward"] + net.backward},
    )


Seen = tuple[Tensor, Tensor]  # losses (n,) in nats, and which images are right (n,)


def _worst(net: "_Net", name: str, *, radius: float, steps: int, lr: float) -> Seen:
    """Climb with one weight; give the point of largest mean loss, that of the intact net among them."""
    weight = perturbable(net.model)[name]
    before = weight.detach().clone()
    ball = WeightBall.around({name: before}, radius=radius)
    with perturbed_weights(net.model, {name: before}), torch.inference_mode(False):
        for parameter in net.model.parameters():
            parameter.requires_grad_(parameter is weight)
        delta = torch.zeros_like(before)
        best, uphill = net.look(weight)
        for step in range(1, steps + 1):
            delta = ball.project({name: delta + lr * uphill})[name]
            with torch.no_grad():
                weight.copy_(before + delta)
            seen, uphill = net.look(weight if step < steps else None)
            best = seen if float(seen[0].double().mean()) > float(best[0].double().mean()) else best
    return best


class _Net:
    """A net on fixed images; counts its passes."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> None:
        self.model, self.x, self.y, self.batch_size = model, x, y, batch_size
        self.forward = self.backward = 0

    def look(self, weight: nn.Parameter | None) -> tuple[Seen, Tensor]:
        """Give losses and right answers, and the gradient of the mean loss by a weight; none: 0.

        Values of the gradient that are not finite count as 0, as does a weight that the logits do not depend on.
        """
        found: list[Seen] = []
        uphill = torch.zeros(()) if weight is None else torch.zeros_like(weight)
        batches = zip(torch.split(self.x, self.batch_size), torch.split(self.y, self.batch_size), strict=True)
        for x, y in batches:
            with torch.set_grad_enabled(weight is not None):
                logits = self.model(x.clone())
                total = F.cross_entropy(logits.float(), y, reduction="sum")
            if weight is not None and total.requires_grad:
                (gradient,) = torch.autograd.grad(total, [weight], allow_unused=True, materialize_grads=True)
                uphill = uphill + gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) / len(self.x)
            logits = logits.detach().float()
            found.append((losses(logits, y), logits.nan_to_num(nan=-torch.inf).argmax(1) == y))
            self.forward += len(x)
            self.backward += 0 if weight is None else len(x)
        return (torch.cat([loss for loss, _ in found]), torch.cat([right for _, right in found])), uphill


def _weights(model: nn.Module, layers: Sequence[str] | None) -> list[str]:
    """List the names of the weights of some layers, in the order of the modules; those of methods are left out."""
    known = {name: weight for name, weight in perturbable(model).items() if not name.startswith(f"{BOX}.")}
    if layers is None:
        chosen = list(known)
    else:
        asked = [model.get_submodule(name) for name in resolve(model, layers)]
        weights = {id(getattr(module, "weight", None)) for module in asked}
        chosen = [name for name, weight in known.items() if id(weight) in weights]
    if not chosen:
        what = "the net" if layers is None else ", ".join(layers)
        raise ParameterError(
            f"module_criticality: layers must be convolutions or linear layers; {what} has none. `hardy layers` lists "
            "the modules of a net."
        )
    return chosen


def _images(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    perturb: str,
    *,
    threat: Threat | None,
    rows: Tensor,
    seed: int,
    batch_size: int,
) -> tuple[Tensor, dict[str, int]]:
    """Make the images that all layers are measured on, and count what that took."""
    none, name = {"forward": 0, "backward": 0}, perturb.removeprefix(CORRUPTION)
    if perturb == "clean":
        return x, none
    if perturb == "adversarial":
        spec, threat = PGD(steps=ATTACK_STEPS, stop="never"), threat or Threat("linf", 8 / 255)
        made = attack(model, x, y, spec, threat=threat, rows=rows, seed=seed, batch_size=batch_size, skip_wrong=False)
        return made.x_adv, made.passes
    if name == perturb or name not in CORRUPTIONS:
        known = ["adversarial", "clean", *(f"{CORRUPTION}{each}" for each in CORRUPTIONS)]
        raise ParameterError(f"module_criticality: unknown perturb {perturb!r}; {did_you_mean(perturb, known)}")
    key = seeding.keys(seeding.root(seed, f"criticality:{name}"), rows)
    return corrupt(x, name, severity=SEVERITY, key=key), none


@contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    """Put every buffer back to its bits after the block."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
