"""The nets between a patient and the same net after fine-tuning of one layer, and who judges them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy.attacks import PGD, AttackResult, attack
from hardy.data.rows import spread_order
from hardy.diagnosis.module_criticality import Criticality, module_criticality
from hardy.errors import ParameterError
from hardy.threats import Threat
from hardy.training.build import Data

__all__ = ["Judge", "Line", "choose", "interpolated"]

OF_CRITICALITY = 512  # images on which the layer is chosen


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """The held-out images, and how robustness is measured on them: the same for every net.

    Attributes:
        x: Images in [0, 1].
        y: True classes.
        rows: Identities, the source of the attack's randomness.
        threat: Norm and budget.
        steps: Of PGD.
        seed: Of its random starts.
        batch_size: Images per pass.
    """

    x: Float[Tensor, "n c h w"]
    y: Int[Tensor, "n"]
    rows: Int[Tensor, "n"]
    threat: Threat
    steps: int
    seed: int
    batch_size: int

    def __post_init__(self) -> None:
        PGD(steps=self.steps)  # refuses less than one
        if self.batch_size < 1:
            raise ParameterError(f"rift: batch_size must be at least 1; got {self.batch_size}.")

    @classmethod
    def of(cls, data: Data, threat: Threat, *, steps: int, seed: int, batch_size: int) -> "Judge":
        """Take all images of some data."""
        x, y, rows = data.images(), data.y, data.index
        return cls(x=x, y=y, rows=rows, threat=threat, steps=steps, seed=seed, batch_size=batch_size)

    def to(self, device: str) -> "Judge":
        """Move the images."""
        return replace(self, x=self.x.to(device), y=self.y.to(device), rows=self.rows.to(device))

    def criticality(self, net: nn.Module) -> Criticality:
        """Measure all layers on at most 512 of the images, each class its share."""
        order = spread_order(self.y.cpu(), self.rows.cpu(), seed=self.seed, purpose="criticality")
        few = order[:OF_CRITICALITY].sort().values.to(self.x.device)
        x, y, rows = self.x[few], self.y[few], self.rows[few]
        return module_criticality(net, x, y, rows=rows, threat=self.threat, seed=self.seed, batch_size=self.batch_size)

    def measure(self, net: nn.Module) -> AttackResult:
        """Attack the net; says also what it gets right unattacked."""
        return attack(
            net,
            self.x,
            self.y,
            PGD(steps=self.steps),
            threat=self.threat,
            rows=self.rows,
            seed=self.seed,
            batch_size=self.batch_size,
        )


class Line:
    """The nets between a patient and the same net after fine-tuning of one layer.

    Args:
        patient: In eval mode.
        tuned: Differs from it in the parameters of the layer alone.
        layer: Its name.
    """

    def __init__(self, patient: nn.Module, tuned: nn.Module, layer: str) -> None:
        self.patient, self.layer = patient, layer
        self.before, self.after = (
            {name: p.detach().clone() for name, p in net.get_submodule(layer).named_parameters()}
            for net in (patient, tuned)
        )

    def at(self, alpha: float) -> nn.Module:
        """Copy the patient, with the layer at alpha: 0 is the patient, 1 the fine-tuned net, both bit for bit."""
        net = copy.deepcopy(self.patient)
        weights = interpolated(self.before, self.after, alpha)
        with torch.no_grad():
            for name, p in net.get_submodule(self.layer).named_parameters():
                p.copy_(weights[name])
        return net


def interpolated(before: Mapping[str, Tensor], after: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Compute ``(1 - alpha) before + alpha after``; both ends are exact."""
    if alpha in {0, 1}:
        return dict(after if alpha else before)
    return {name: (1 - alpha) * value + alpha * after[name] for name, value in before.items()}


def choose(clean: Sequence[float], robust: Sequence[float]) -> int:
    """Choose the point of highest clean accuracy among those that are as robust as the first.

    Args:
        clean: Accuracies, those of the patient first.
        robust: Accuracies under attack, on the same images.

    Returns:
        Its place; of equal ones the first, so that the patient stays where nothing is better.

    Example:
        >>> choose([0.5, 0.6, 0.7, 0.8], [0.3, 0.3, 0.31, 0.29])
        2
    """
    allowed = [i for i, value in enumerate(robust) if value >= robust[0]]
    return max(allowed, key=lambda i: clean[i])
