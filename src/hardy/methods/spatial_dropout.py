"""SpatialDropout: drop whole channels of a feature map, during training.

Tompson, Goroshin, Jain, LeCun, Bregler. "Efficient object localization using convolutional networks". CVPR 2015,
https://arxiv.org/abs/1411.4280. torch calls it ``Dropout2d``.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.errors import AttachError
from hardy.methods._card import Card
from hardy.methods._checks import in_range, scaled, sites_given
from hardy.methods._places import after_norm
from hardy.taps import KeyedLayer

__all__ = ["CARD", "PRESETS", "SpatialDropout", "SpatialDropout2d", "spatial_dropout"]

CARD = Card(
    name="spatial_dropout",
    summary="Drop whole channels at random while training, as neighbouring pixels of one channel say nearly the same.",
    paper="Tompson et al., CVPR 2015",
    url="https://arxiv.org/abs/1411.4280",
    kind="layer",
    live=False,
    attaches="the outputs of convolutions with a kernel above 1 in the second half of the stages, after their norm",
    defaults_from="p 0.1 in the second half of the stages: the baseline in the released code of defective convolution "
    "(blocks 3, 4 of ResNet-18), not the paper, whose nets estimate poses.",
    deviations=(
        "That baseline drops the second convolution of a block before its norm; here every place is after a norm. The "
        "preset 'repo' does as the baseline.",
    ),
)


def spatial_dropout(
    x: Float[Tensor, "n c h w"], *, p: float, training: bool, key: Int[Tensor, "n"]
) -> Float[Tensor, "n c h w"]:
    """Zero each channel of each row with probability ``p`` and scale the others by 1 / (1 - p).

    Args:
        x: Feature map; any real values.
        p: Probability of dropping a channel, in [0, 1].
        training: Return ``x`` unchanged when False.
        key: Source of randomness, one per row.
    """
    if not training or p == 0:
        return x
    kept = seeding.uniform(key, 0, (x.shape[1],)) >= p
    return scaled(x, kept[:, :, None, None], 1 / (1 - p) if p < 1 else 0.0)


class SpatialDropout2d(KeyedLayer):
    """:func:`spatial_dropout` as a layer: active in training mode, identity in evaluation mode."""

    def __init__(self, *, p: float, seed: int, purpose: str = CARD.name) -> None:
        super().__init__(seed=seed, purpose=purpose)
        self.p = p

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return spatial_dropout(x, p=self.p, training=True, key=self.row_keys(x)) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


@dataclass(frozen=True, kw_only=True)
class SpatialDropout:
    """SpatialDropout as a method.

    Attributes:
        p: Probability of dropping a channel, in [0, 1].
        sites: Stage names (see the card) or modules.
    """

    p: float = 0.1
    sites: tuple[str, ...] = ("top",)

    def __post_init__(self) -> None:
        sites_given("SpatialDropout", self.sites)
        in_range("SpatialDropout", "p", self.p, 0, 1)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Drop channels of the outputs of ``sites`` while training; no parameters, no state-dict keys."""

        def layer(name: str, y: Tensor) -> SpatialDropout2d:
            if y.ndim != 4:
                raise AttachError(f"spatial_dropout: {name} must give (n, c, h, w); got {tuple(y.shape)}.")
            return SpatialDropout2d(p=self.p, seed=seed, purpose=f"{CARD.name}:{name}")

        sites, notes = after_norm(model, example, self.sites)
        held = surgery.Insert(self, seed=seed)
        held.notes = notes
        return surgery.after(model, sites, layer, method=CARD.name, example=example, held=held)


PRESETS = {
    "repo": SpatialDropout(  # the baseline in the code of defective convolution, on nets with the names of ResNet-18
        sites=("layer3.*.bn1", "layer3.*.conv2", "layer4.*.bn1", "layer4.*.conv2")
    )
}
