"""What one method leaves in a model, and what the training objective asks of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["PASSES", "Context", "Insert", "Passes", "passes_per_image", "training_passes"]

PASSES = ("forward_passes", "backward_passes")  # in the rows of metrics.jsonl, and in the metrics of the model's file


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What a method adds to the one forward and one backward pass of a plain training step, counted for each image.

    Attributes:
        forward: Further forward passes in every round.
        backward: Further backward passes in every round.
        search_forward: Forward passes of a search that is done once a step, however many rounds there are.
        search_backward: Its backward passes, to the pixels only.
        rounds: How often :meth:`Insert.around_step` runs forward and backward.
    """

    forward: int = 0
    backward: int = 0
    search_forward: int = 0
    search_backward: int = 0
    rounds: int = 1


@dataclass(frozen=True)
class Context:
    """What a loss term may look at: one training step of one batch.

    Attributes:
        x: Inputs as the net saw them, in [0, 1], shape (n, c, h, w).
        y: Labels (n,), or soft labels (n, num_classes) if a method mixed them.
        logits: Outputs of the net, shape (n, num_classes).
        key: One int64 per row, shape (n,).
        forward: A further pass of the same net over images like ``x``, row by row with the same keys, so that a random
            layer masks what it masked in the first pass; gives logits.
        background: How much of each pixel of the images, before methods changed them, is no part of the object, in
            [0, 1], shape (n, h, w); None where the data do not know.
    """

    x: Tensor
    y: Tensor
    logits: Tensor
    key: Tensor
    forward: Callable[[Tensor], Tensor]
    background: Tensor | None = None


class Insert(nn.Module):
    """What one method leaves in a model, below ``_hardy``: its taps and its part in the objective.

    A method overrides what it needs. ``root`` hashes the seed and the name, for the method's own random numbers.

    Attributes:
        spec: The frozen dataclass of the method, as it was attached.
        live: Whether it stays at test time (masks) or is for training only.
        notes: What a user should know about where it went.
        input_shape: Channels, height and width of the example that its layers were made for, if any were.
    """

    def __init__(self, spec: Any, *, seed: int, live: bool = False) -> None:
        super().__init__()
        self.spec, self.seed, self.live = spec, seed, live
        self.root = 0
        self.notes: tuple[str, ...] = ()
        self.input_shape: tuple[int, int, int] | None = None
        self.taps = nn.ModuleList()

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002  (the contract)
        """Change a training batch before the net sees it. ``key`` is this method's own, one per row."""
        return x, y

    def task(self, logits: Tensor, y: Tensor) -> Tensor | None:  # noqa: ARG002  (the contract)
        """Replace the cross-entropy: per-row losses (n,); None leaves it to others."""
        return None

    def listen(self, on: bool) -> None:
        """Begin, and end, to keep what :meth:`terms` needs of the features: on in the objective's own forward pass."""

    def terms(self, context: Context) -> dict[str, Tensor]:  # noqa: ARG002  (the contract)
        """Add named, weighted, scalar loss terms."""
        return {}

    def around_step(
        self,
        closure: Callable[[], dict[str, Tensor]],
        step: Callable[[], None],  # noqa: ARG002  (the contract)
    ) -> dict[str, Tensor]:
        """Run forward and backward, as often as the method needs; the optimizer steps afterwards.

        Args:
            closure: Zeroes the gradients, runs forward and backward once over the batch, and gives the named losses.
            step: Does what the loop does after the last closure: clips, steps the optimizer, averages norms. For
                methods that step in between; the step after the last closure is the loop's. Every process of several
                must call it equally often.

        Returns:
            What the last closure gave.
        """
        return closure()

    @property
    def passes(self) -> Passes:
        """What the method adds to the passes of a training step."""
        return Passes()

    def epoch_end(self, epoch: int) -> None:
        """Do what has to be done after an epoch."""

    def soften(self) -> bool:
        """Turn into a differentiable stand-in for what this does at test time; False where none is needed.

        Called on a copy of the model, through which attacks then look for gradients. A live method whose forward pass
        rounds, thresholds or counts must override it and return True.
        """
        return False


def passes_per_image(inserts: Sequence[Insert]) -> tuple[int, int]:
    """Count the forward and the backward passes of one image in one training step with these methods.

    Example:
        >>> passes_per_image([])
        (1, 1)
    """
    found = [held.passes for held in inserts]
    rounds = math.prod(p.rounds for p in found)
    forward = rounds * (1 + sum(p.forward for p in found)) + sum(p.search_forward for p in found)
    backward = rounds * (1 + sum(p.backward for p in found)) + sum(p.search_backward for p in found)
    return forward, backward


def training_passes(inserts: Sequence[Insert], *, epochs: int) -> dict[str, float]:
    """Count the passes of an image that took part in every one of some epochs, by the names in ``PASSES``."""
    return {name: float(epochs * count) for name, count in zip(PASSES, passes_per_image(inserts), strict=True)}
