"""Gaussian noise training: add normal noise to training images.

Bishop. "Training with noise is equivalent to Tikhonov regularization". Neural Computation 1995; as a baseline for
corruption robustness: Rusak et al. "A simple way to make neural networks robust against diverse image corruptions".
ECCV 2020, https://arxiv.org/abs/2001.06057.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.methods._card import Card
from hardy.methods._checks import in_range

__all__ = ["CARD", "GaussianNoise", "gaussian_noise"]

CARD = Card(
    name="gaussian_noise",
    summary="Add normal noise to half of the training images: the simplest defence, and a hard one to beat.",
    paper="Rusak et al., ECCV 2020",
    url="https://arxiv.org/abs/2001.06057",
    kind="input",
    live=False,
    attaches="the input, pixels in [0, 1]",
    defaults_from="sigma 0.1 and half of the images are ours, untuned, for small images (the ImageNet model of one "
    "sigma that the paper's authors released is named after sigma 0.5).",
    deviations=(
        "The paper tunes sigma to its data (its text was not read whole); ours is an untuned guess for small images.",
        "Noisy images are clipped to [0, 1]; an image is noisy or not by a draw of its own.",
    ),
)


def gaussian_noise(
    x: Float[Tensor, "n c h w"], *, sigma: float, p: float, key: Int[Tensor, "n"]
) -> Float[Tensor, "n c h w"]:
    """Add normal noise to some random images and clip to [0, 1].

    Args:
        x: Images, pixels in [0, 1].
        sigma: Standard deviation of the noise, in pixels in [0, 1].
        p: Probability that an image gets noise, in [0, 1].
        key: Source of randomness, one per row.
    """
    noisy = (x + sigma * seeding.normal(key, 1, x.shape[1:]).to(x.dtype)).clamp(0, 1)
    return noisy.where((seeding.uniform(key, 0, ()) < p)[:, None, None, None], x)


class GaussianNoiseInsert(surgery.Insert):
    """Adds noise to training batches."""

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return gaussian_noise(x, sigma=self.spec.sigma, p=self.spec.p, key=key), y


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Gaussian noise as a method.

    Attributes:
        sigma: Standard deviation in pixels in [0, 1] (our default for small images).
        p: Probability that an image gets noise, in [0, 1] (the others stay clean).
    """

    sigma: float = 0.1
    p: float = 0.5

    def __post_init__(self) -> None:
        in_range("GaussianNoise", "sigma", self.sigma, 0, 1)
        in_range("GaussianNoise", "p", self.p, 0, 1)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Add noise to the batches that ``Objective`` gives to the model; changes no layer."""
        return surgery.insert(model, GaussianNoiseInsert(self, seed=seed), method=CARD.name)
