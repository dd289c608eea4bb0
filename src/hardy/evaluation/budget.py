"""How hard the axes beside ``white_box`` try; that one has its suite."""

import math
from dataclasses import dataclass
from typing import get_args

from hardy.attacks import ATTACKS
from hardy.corruptions.common import CORRUPTIONS
from hardy.corruptions.scan_line import PROFILES
from hardy.errors import ParameterError, did_you_mean
from hardy.perturbed import WeightNorm

__all__ = ["Budget"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How hard an evaluation tries, axis by axis.

    Attributes:
        curve_steps: APGD steps at every level of ``eps_curve`` but the threat's, which is that of ``white_box``.
        noise_draws: Random perturbations of every image that the suite of ``white_box`` left standing.
        transfer_attack: What searches on the source nets: a name in ``ATTACKS`` that is defined for linf.
        transfer_steps: Its steps, if it counts steps.
        transfer_eps: Budgets of ``transfer`` besides that of the threat.
        queries: Forward passes per image of ``query``.
        min_norm_steps: Steps of every attack of ``minimal_norm``.
        sigmas: ``noise``: standard deviations of Gaussian noise, in units of pixels in [0, 1].
        uniform_widths: ``noise``: uniform noise is drawn from [-width, width], in the same units.
        salt_pepper_shares: ``noise``: shares of pixels made black or white.
        corruptions: ``corruptions``: names; empty for the 15 common ones and the 4 further ones.
        severities: ``corruptions``: of 1 to 5.
        grids: ``texture``: pieces per side of the patch shuffle.
        cutoffs: ``texture``: of the low and high pass, as shares of the highest frequency along one side.
        drop_shares: ``occlusion``: shares of the image that are dropped.
        drop_grid: ``occlusion``: patches per side, at most; the largest number that divides the image is taken.
        fills: ``occlusion``: what a dropped patch is filled with: "zero", "mean", "noise", "blur".
        scan_profiles: ``occlusion``: how the loss changes along a scan line: "whole", "ramp", "peak", "valley", "even".
        bands: ``frequency``: number of bands of equal dimension.
        band_steps: ``frequency``: gradient steps inside every band.
        weight_radii: ``weights``: sizes of weight perturbations, relative to the weights of each layer.
        weight_ball: ``weights``: their norm: "l2", relative to the length of a layer's weights, or "linf", relative to
            their mean size.
        weight_steps: ``weights``: gradient steps of the search for them.
        weight_restarts: ``weights``: restarts of it.
        weight_input_steps: ``weights``: PGD steps on the images of a net whose weights are perturbed.
        bits: ``weights``: bits per weight after quantisation.
        bit_flip_rates: ``weights``: probabilities that a bit of an 8-bit weight flips.
        lost_shares: ``weights``: shares of weights that are lost at random.
        prune_shares: ``weights``: shares of weights set to 0, the smallest first.
        analogue_sigmas: ``weights``: standard deviations of Gaussian noise, relative to the largest weight of a layer.
        smoothing_sigma: ``certified``: standard deviation of the smoothing noise, in units of pixels in [0, 1].
        smoothing_draws: ``certified``: noisy copies of every image that the bound is computed from. The largest radius
            that can be certified is ``smoothing_sigma`` times the normal quantile of
            ``smoothing_alpha ** (1 / smoothing_draws)``: 1.5 sigma with the defaults.
        smoothing_alpha: ``certified``: probability that the certificate of one image is wrong.
        calibration_bins: ``calibration``: confidence bins of equal width.

    Raises:
        ParameterError: a value out of range.
    """

    # adversaries
    curve_steps: int = 20
    noise_draws: int = 10
    transfer_attack: str = "pgd"
    transfer_steps: int = 10
    transfer_eps: tuple[float, ...] = ()
    queries: int = 1000
    min_norm_steps: int = 100
    # noise
    sigmas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
    uniform_widths: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    salt_pepper_shares: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2, 0.3)
    # corruptions
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    # texture
    grids: tuple[int, ...] = (2, 4, 8, 16)
    cutoffs: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7)
    # occlusion
    drop_shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    drop_grid: int = 8
    fills: tuple[str, ...] = ("zero", "mean", "noise", "blur")
    scan_profiles: tuple[str, ...] = ("whole",)
    # frequency
    bands: int = 8
    band_steps: int = 10
    # weights
    weight_radii: tuple[float, ...] = (0.001, 0.003, 0.01)
    weight_ball: WeightNorm = "l2"
    weight_steps: int = 4
    weight_restarts: int = 3
    weight_input_steps: int = 10
    bits: tuple[int, ...] = (8, 6, 4)
    bit_flip_rates: tuple[float, ...] = (0.0001, 0.001, 0.01)
    lost_shares: tuple[float, ...] = (0.01, 0.03, 0.1)
    prune_shares: tuple[float, ...] = (0.1, 0.3, 0.5)
    analogue_sigmas: tuple[float, ...] = (0.01, 0.02, 0.05)
    # certified
    smoothing_sigma: float = 0.12
    smoothing_draws: int = 100
    smoothing_alpha: float = 0.001
    # calibration
    calibration_bins: int = 15

    @classmethod
    def quick(cls) -> "Budget":
        """Give the budget that goes with the quick suite: fewer steps and queries on the axes that cost most."""
        return cls(curve_steps=10, queries=100, min_norm_steps=20)

    def __post_init__(self) -> None:
        for name in COUNTS:
            if (count := getattr(self, name)) < 1:
                raise ParameterError(f"Budget: {name} must be at least 1; got {count}.")
        for name, (least, most) in LISTS.items():
            values = getattr(self, name)
            if any(not least < v <= most for v in values) or len(set(values)) < len(values):
                upto = f"above {least:g}" if most == math.inf else f"above {least:g} and at most {most:g}"
                raise ParameterError(f"Budget: {name} must be different numbers {upto}; got {values}.")
            if not values and name not in MAY_BE_EMPTY:
                raise ParameterError(f"Budget: {name} must not be empty. Leave out the axis instead.")
        self._check_choice("fills", FILLS)
        self._check_choice("scan_profiles", PROFILES)
        if self.corruptions:
            self._check_choice("corruptions", tuple(CORRUPTIONS))
        self._check_choice("severities", SEVERITIES)
        self._check_weight_ball()
        if not self.smoothing_sigma > 0:
            raise ParameterError(f"Budget: smoothing_sigma must be above 0; got {self.smoothing_sigma}.")
        if not 0 < self.smoothing_alpha < 1:
            raise ParameterError(f"Budget: smoothing_alpha must be in (0, 1); got {self.smoothing_alpha}.")
        able = [name for name, make in ATTACKS.items() if "linf" in make().norms]
        if self.transfer_attack not in able:
            raise ParameterError(
                f"Budget: transfer_attack must be an attack for linf; got {self.transfer_attack!r}; "
                f"{did_you_mean(self.transfer_attack, able)}"
            )

    def _check_weight_ball(self) -> None:
        if self.weight_ball not in get_args(WeightNorm):
            raise ParameterError(f'Budget: weight_ball must be "l2" or "linf"; got {self.weight_ball!r}.')

    def _check_choice(self, name: str, known: tuple[object, ...]) -> None:
        values = getattr(self, name)
        if not values or len(set(values)) < len(values) or not set(values) <= set(known):
            raise ParameterError(f"Budget: {name} must be some of {known}, each once; got {values!r}.")


COUNTS = (
    *("curve_steps", "noise_draws", "transfer_steps", "queries", "min_norm_steps", "drop_grid", "bands", "band_steps"),
    *("weight_steps", "weight_restarts", "weight_input_steps", "smoothing_draws", "calibration_bins"),
)
LISTS = {  # must be different numbers: above, at most
    "transfer_eps": (0, math.inf), "sigmas": (0, math.inf), "uniform_widths": (0, 1), "salt_pepper_shares": (0, 1),
    "grids": (0, math.inf), "cutoffs": (0, 1), "drop_shares": (0, 1), "weight_radii": (0, math.inf), "bits": (1, 16),
    "bit_flip_rates": (0, 1), "lost_shares": (0, 1), "prune_shares": (0, 1),
    "analogue_sigmas": (0, math.inf),
}  # fmt: skip
MAY_BE_EMPTY = ("transfer_eps",)
FILLS = ("zero", "mean", "noise", "blur")
SEVERITIES = (1, 2, 3, 4, 5)
