"""What some axes need beside the model and its images. An axis that lacks its own says so and is not measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy.data.cue_conflict import CueConflict

__all__ = ["Attribution", "Corrupted", "CueConflict", "Material"]

Attribution = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x (n c h w), y (n,)) -> relevance (n h w)


@runtime_checkable
class Corrupted(Protocol):
    """Corrupted copies of the evaluated images, such as a CIFAR-10-C folder."""

    @property
    def name(self) -> str:
        """What the data are called in the record."""

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Names of the corruptions that are there."""

    def images(
        self, corruption: str, severity: int, rows: Int[Tensor, "n"], y: Int[Tensor, "n"]
    ) -> Float[Tensor, "n c h w"]:
        """Give the copies of these images, pixels in [0, 1].

        Args:
            corruption: One of :attr:`corruptions`.
            severity: 1 to 5.
            rows: Places of the images in the clean data set.
            y: Their classes, as a check that these are copies of the same images.

        Raises:
            DataError: not there, damaged, or copies of other images.
        """


@dataclass(frozen=True, kw_only=True)
class Material:
    """What some axes need beside the model and its images.

    Attributes:
        cue_conflict: For ``texture``: the shape bias is measured on them.
        corrupted: For ``corruptions``: published copies, used instead of generated ones.
        reference_errors: For ``corruptions``: errors of the net that the mCE is relative to, in [0, 1], by corruption
            (mean over severities); None for no mCE.
        reference_name: What that net is called.
        attribution: For ``occlusion``: what marks salient pixels; None: the gradient of the true class's logit.
        train: For ``ood``: images and classes of the training data, pixels in [0, 1].
        other: For ``ood``: images of other data in the size of the model, by name.
    """

    cue_conflict: CueConflict | None = None
    corrupted: Corrupted | None = None
    reference_errors: Mapping[str, float] | None = None
    reference_name: str = ""
    attribution: Attribution | None = None
    train: tuple[Float[Tensor, "m c h w"], Int[Tensor, "m"]] | None = None
    other: Mapping[str, Float[Tensor, "k c h w"]] = field(default_factory=dict)
