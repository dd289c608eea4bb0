"""What every axis is given, and what it gives back."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy import seeding
from hardy.attacks import PGD, AttackResult, Progress, attack
from hardy.attacks.goal import predicted
from hardy.attacks.passes import Passes
from hardy.attacks.state import AnyAttack, Stop
from hardy.errors import ParameterError
from hardy.evaluation.fingerprint import weights_digest
from hardy.results import Axis, Point, point
from hardy.threats import Threat

__all__ = ["AxisProgress", "Budget", "Context", "Measured", "NotMeasured", "Source", "record"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How hard an evaluation tries.

    Attributes:
        steps: PGD steps of ``white_box``.
        restarts: PGD restarts of ``white_box``.
        curve_steps: PGD steps at every level of ``eps_curve`` but the threat's, which is that of ``white_box``.
        step_size: PGD step in pixels; None is 2.5 * eps / steps.
        noise_draws: Random perturbations of the noise control.
        transfer_steps: PGD steps on the source net.
        transfer_eps: Budgets of ``transfer`` besides that of the threat.
        sigmas: Standard deviations of ``noise``, in units of pixels in [0, 1].
        grids: Pieces per side of ``texture``.

    Raises:
        ParameterError: a value out of range.
    """

    steps: int = 20
    restarts: int = 2
    curve_steps: int = 10
    step_size: float | None = None
    noise_draws: int = 10
    transfer_steps: int = 10
    transfer_eps: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
    grids: tuple[int, ...] = (2, 4, 8)

    def __post_init__(self) -> None:
        counts = {"steps": self.steps, "restarts": self.restarts, "curve_steps": self.curve_steps}
        counts |= {"noise_draws": self.noise_draws, "transfer_steps": self.transfer_steps}
        for name, value in counts.items():
            if value < 1:
                raise ParameterError(f"Budget: {name} must be at least 1; got {value}.")
        for name, values in {"transfer_eps": self.transfer_eps, "sigmas": self.sigmas, "grids": self.grids}.items():
            if any(not v > 0 for v in values) or len(set(values)) < len(values):
                raise ParameterError(f"Budget: {name} must be different numbers above 0; got {values}.")
        if not (self.sigmas and self.grids):
            raise ParameterError("Budget: sigmas and grids must not be empty. Leave out the axis instead.")
        PGD(step_size=self.step_size)


@dataclass(frozen=True)
class Source:
    """A net that adversarial images are made on: independent of the model, its sibling, or its un-hardened base."""

    name: str
    model: nn.Module
    kind: Literal["independent", "gray-box", "base"]


@dataclass(frozen=True)
class AxisProgress:
    """What ``on_progress`` is called with: axis at work, axes done, of how many; its attack, if any."""

    axis: str
    done: int
    total: int
    attack: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class Context:
    """The question: a model, images, a threat, other nets, a budget and a seed.

    ``rows`` are the identities of the images, the source of their randomness; ``predictions`` and ``correct`` are those
    of the plain images. ``on_attack`` receives the progress of attacks.
    """

    model: nn.Module
    x: Float[Tensor, "n c h w"]
    y: Int[Tensor, "n"]
    rows: Int[Tensor, "n"]
    predictions: Int[Tensor, "n"]
    num_classes: int
    threat: Threat
    sources: tuple[Source, ...] = ()
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    batch_size: int = 128
    on_attack: Callable[[Progress], None] | None = None

    @property
    def correct(self) -> Bool[Tensor, "n"]:
        """Which plain images are classified right."""
        return self.predictions == self.y

    @property
    def chance(self) -> float:
        """Accuracy of guessing, 1 / number of classes."""
        return 1 / self.num_classes

    @functools.cached_property
    def white_box(self) -> AttackResult:
        """PGD with the full budget at the threat's eps on all images; run once, when first asked for."""
        budget = self.budget
        return self.attack(PGD(steps=budget.steps, restarts=budget.restarts, step_size=budget.step_size))

    @functools.cached_property
    def weights(self) -> str:
        """Fingerprint of the model's weights."""
        return weights_digest(self.model)

    def keys(self, purpose: str) -> Int[Tensor, "n"]:
        """Give one key per image for this purpose."""
        return seeding.keys(seeding.root(self.seed, purpose), self.rows)

    def predict(self, x: Float[Tensor, "n c h w"], model: nn.Module | None = None) -> Int[Tensor, "n"]:
        """Predict classes (-1 for NaN logits); arguments as for :meth:`logits`."""
        return predicted(self.logits(x, model))

    def logits(self, x: Float[Tensor, "n c h w"], model: nn.Module | None = None) -> Float[Tensor, "n k"]:
        """Give float32 logits in one fixed padded shape; by ``model``, if given."""
        size = min(self.batch_size, len(x))
        passes = Passes([model or self.model], size=size, n=len(x), device=x.device)
        return passes.logits(x, torch.arange(len(x), device=x.device), fixed=True)

    def attack(
        self,
        attack_: AnyAttack,
        *,
        eps: float | None = None,
        index: Int[Tensor, "m"] | None = None,
        source: nn.Module | None = None,
        stop: Stop | None = None,
    ) -> AttackResult:
        """Attack all images, or those in ``index``, at the threat's eps or another; search on ``source``, if given."""
        index = torch.arange(len(self.x), device=self.x.device) if index is None else index
        return attack(
            self.model,
            self.x[index],
            self.y[index],
            attack_,
            threat=self.threat if eps is None else Threat(self.threat.norm, eps),
            rows=self.rows[index],
            seed=self.seed,
            batch_size=self.batch_size,
            sources=None if source is None else [source],
            stop=stop,
            on_progress=self.on_attack,
        )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An axis with its per-image outcomes, and what its attacks saw on the way.

    Attributes:
        axis: The record.
        outcomes: By label, True where the image is still classified right.
        x_adv: Images that broke the model at the smallest budget tried; the plain image where none did.
        eps_broken: That budget; inf where none did.
        gradients: How many gradients the search saw, per image.
        zero_gradients: How many of them vanished.
    """

    axis: Axis
    outcomes: dict[str, Bool[Tensor, "n"]]
    x_adv: Float[Tensor, "n c h w"] | None = None
    eps_broken: Float[Tensor, "n"] | None = None
    gradients: Int[Tensor, "n"] | None = None
    zero_gradients: Int[Tensor, "n"] | None = None


@dataclass(frozen=True)
class NotMeasured:
    """An axis that lacked its inputs: why, and what would change that."""

    name: str
    reason: str
    remedy: str


def record(
    label: str,
    right: Bool[Tensor, "n"],
    *,
    level: float | None = None,
    series: str = "",
    passes: dict[str, int],
    details: dict[str, str | int | float | bool | None] | None = None,
) -> Point:
    """Make the point of one condition from its outcomes; details that are not finite numbers are left out."""
    kept = {k: v for k, v in (details or {}).items() if not isinstance(v, float) or math.isfinite(v)}
    return point(label, right.cpu().numpy(), level=level, series=series, passes=passes, details=kept)
