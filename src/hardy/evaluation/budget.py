"""How hard the axes beside ``white_box`` try; that one has its suite."""

from dataclasses import dataclass

from hardy.attacks import ATTACKS
from hardy.errors import ParameterError, did_you_mean

__all__ = ["Budget"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How hard an evaluation tries.

    Attributes:
        curve_steps: APGD steps at every level of ``eps_curve`` but the threat's, which is that of ``white_box``.
        noise_draws: Random perturbations of every image that the suite of ``white_box`` left standing.
        transfer_attack: What searches on the source nets: a name in ``ATTACKS`` that is defined for linf.
        transfer_steps: Its steps, if it counts steps.
        transfer_eps: Budgets of ``transfer`` besides that of the threat.
        sigmas: Standard deviations of ``noise``, in units of pixels in [0, 1].
        grids: Pieces per side of ``texture``.
        queries: Forward passes per image of ``query``.
        min_norm_steps: Steps of every attack of ``minimal_norm``.

    Raises:
        ParameterError: a value out of range.
    """

    curve_steps: int = 20
    noise_draws: int = 10
    transfer_attack: str = "pgd"
    transfer_steps: int = 10
    transfer_eps: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
    grids: tuple[int, ...] = (2, 4, 8)
    queries: int = 1000
    min_norm_steps: int = 100

    def __post_init__(self) -> None:
        counts = {"curve_steps": self.curve_steps, "noise_draws": self.noise_draws}
        counts |= {"transfer_steps": self.transfer_steps}
        counts |= {"queries": self.queries, "min_norm_steps": self.min_norm_steps}
        for name, value in counts.items():
            if value < 1:
                raise ParameterError(f"Budget: {name} must be at least 1; got {value}.")
        for name, values in {"transfer_eps": self.transfer_eps, "sigmas": self.sigmas, "grids": self.grids}.items():
            if any(not v > 0 for v in values) or len(set(values)) < len(values):
                raise ParameterError(f"Budget: {name} must be different numbers above 0; got {values}.")
        if not (self.sigmas and self.grids):
            raise ParameterError("Budget: sigmas and grids must not be empty. Leave out the axis instead.")
        able = [name for name, make in ATTACKS.items() if "linf" in make().norms]
        if self.transfer_attack not in able:
            raise ParameterError(
                f"Budget: transfer_attack must be an attack for linf; got {self.transfer_attack!r}; "
                f"{did_you_mean(self.transfer_attack, able)}"
            )
