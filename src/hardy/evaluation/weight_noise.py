"""What happens to weights in real hardware and in real deployments: fewer bits, flipped bits, lost weights, noise.

Every function takes the weight of one layer and gives another of the same shape; scales are read off the layer.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardy import seeding
from hardy.errors import ParameterError
from hardy.perturbed import draw_like

__all__ = ["analogue_noise", "flip_bits", "prune_random", "prune_smallest", "quantise"]

STORED = 8  # bits per weight where bits flip


def quantise(weight: Float[Tensor, "out ..."], *, bits: int, per_channel: bool = True) -> Float[Tensor, "out ..."]:
    """Round weights to the nearest of ``2^bits - 1`` equally spaced values around 0; the largest keeps its value.

    Ties go to the even multiple. No activation is rounded, no bias, and nothing is calibrated or trained anew.

    Args:
        weight: Of one layer.
        bits: Bits per weight, at least 2.
        per_channel: One scale for every first index (output channels; input channels of transposed convolutions), the
            usual choice for weights. Otherwise one for the layer.

    Raises:
        ParameterError: fewer than 2 bits.
    """
    codes, scale = _codes(weight, bits=bits, per_channel=per_channel)
    return codes * scale


def flip_bits(weight: Float[Tensor, "out ..."], rate: float, root: int, name: str) -> Float[Tensor, "out ..."]:
    """Store weights in 8 bits (two's complement, a scale per channel) and flip every bit with the same probability.

    Independent flips at low voltage, as in Stutz, Chandramoorthy, Hein, Schiele. "Bit error robustness for
    energy-efficient DNN accelerators". MLSys 2021, https://arxiv.org/abs/2006.13977; their number format is another.

    Args:
        weight: Of one layer.
        rate: Probability of a flip, in (0, 1].
        root: Source of randomness.
        name: Of the weight.

    Raises:
        ParameterError: rate out of range.
    """
    _check_share("flip_bits", "rate", rate)
    codes, scale = _codes(weight, bits=STORED, per_channel=True)
    flips = torch.zeros(weight.numel(), dtype=torch.int64, device=weight.device)
    places = _places(STORED * weight.numel(), rate, seeding.root(root, name), weight.device)
    flips.index_add_(0, places // STORED, 1 << (places % STORED))
    stored = (codes.long() & 0xFF) ^ flips.reshape(weight.shape)
    signed = torch.where(stored >= 128, stored - 256, stored)
    return signed.to(weight.dtype) * scale


def prune_random(weight: Float[Tensor, "out ..."], share: float, root: int, name: str) -> Float[Tensor, "out ..."]:
    """Set every weight to 0 with probability ``share``, in (0, 1]; those of a smaller share are among them.

    Raises:
        ParameterError: share out of range.
    """
    _check_share("prune_random", "share", share)
    return torch.where(draw_like(weight, root, name, seeding.uniform) < share, 0, weight)


def prune_smallest(weight: Float[Tensor, "out ..."], share: float) -> Float[Tensor, "out ..."]:
    """Set that share of the layer's weights to 0 that is smallest in size; the first of equal ones.

    Args:
        weight: Of one layer.
        share: Of its weights, in (0, 1], rounded to whole weights; every layer loses the same share.

    Raises:
        ParameterError: share out of range.
    """
    _check_share("prune_smallest", "share", share)
    order = weight.abs().flatten().argsort(stable=True)
    kept = weight.flatten().clone()
    kept[order[: round(share * weight.numel())]] = 0
    return kept.reshape(weight.shape)


def analogue_noise(weight: Float[Tensor, "out ..."], sigma: float, root: int, name: str) -> Float[Tensor, "out ..."]:
    """Add Gaussian noise whose standard deviation is ``sigma`` times the largest weight of the layer, in size.

    Analogue memory has a fixed range of conductances, to which its errors are proportional.

    Raises:
        ParameterError: a sigma that is not above 0.
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise ParameterError(f"analogue_noise: sigma must be a finite number above 0; got {sigma}.")
    return weight + sigma * weight.abs().amax() * draw_like(weight, root, name, seeding.normal)


def _codes(weight: Tensor, *, bits: int, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Give whole numbers in [-m, m] with ``m = 2^(bits - 1) - 1``, and the scale that turns them into weights."""
    if bits < 2:
        raise ParameterError(f"quantise: bits must be at least 2; got {bits}.")
    most = 2 ** (bits - 1) - 1
    largest = weight.abs().flatten(1).amax(dim=1) if per_channel else weight.abs().amax().reshape(1)
    scale = (largest / most).reshape(-1, *[1] * (weight.ndim - 1))
    codes = (weight / torch.where(scale > 0, scale, 1)).round().clamp(-most, most)
    return codes, scale


def _places(total: int, rate: float, root: int, device: torch.device) -> Int[Tensor, "hits"]:
    """Choose each of ``total`` places with probability ``rate``, at the cost of those chosen.

    The gaps between chosen places follow the geometric distribution, which is drawn by inverting it.
    """
    expected = total * rate
    draws = math.ceil(expected + 10 * math.sqrt(expected) + 20)  # so many that they all but surely reach the end
    key = seeding.keys(root, torch.zeros(1, dtype=torch.int64, device=device))
    u = seeding.uniform(key, 0, (draws,))[0]
    gaps = torch.log1p(-u) / math.log1p(-rate) if rate < 1 else torch.zeros_like(u)
    places = (gaps.long() + 1).cumsum(dim=0) - 1
    return places[places < total]


def _check_share(who: str, what: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ParameterError(f"{who}: {what} must be in (0, 1]; got {value}.")
