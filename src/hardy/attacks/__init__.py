"""Ways to search inside a threat. These tables are the registry; nothing registers itself on import."""

from collections.abc import Callable, Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy.attacks import (
    apgd,
    band_pgd,
    cw,
    di_fgsm,
    fab,
    fgsm,
    fmn,
    hop_skip_jump,
    mi_fgsm,
    ni_fgsm,
    noise,
    pgd,
    spsa,
    square,
    ti_fgsm,
    vmi_fgsm,
)
from hardy.attacks._card import Card
from hardy.attacks.apgd import APGD
from hardy.attacks.band_pgd import BandPGD
from hardy.attacks.cw import CW
from hardy.attacks.di_fgsm import DIFGSM
from hardy.attacks.fab import FAB
from hardy.attacks.fgsm import FGSM
from hardy.attacks.fmn import FMN
from hardy.attacks.goal import Goal
from hardy.attacks.hop_skip_jump import HopSkipJump
from hardy.attacks.mi_fgsm import MIFGSM
from hardy.attacks.ni_fgsm import NIFGSM
from hardy.attacks.noise import Noise
from hardy.attacks.pgd import PGD
from hardy.attacks.run import AttackResult, run
from hardy.attacks.spsa import SPSA
from hardy.attacks.square import Square
from hardy.attacks.state import AnyAttack, Attack, ForeignAttack, Progress, Query, Stop
from hardy.attacks.suites import SUITES, suite
from hardy.attacks.ti_fgsm import TIFGSM
from hardy.attacks.vmi_fgsm import VMIFGSM
from hardy.errors import ParameterError, did_you_mean
from hardy.threats import Threat

__all__ = [
    "APGD",
    "ATTACKS",
    "CARDS",
    "CW",
    "DIFGSM",
    "FAB",
    "FGSM",
    "FMN",
    "MIFGSM",
    "NIFGSM",
    "PGD",
    "SPSA",
    "SUITES",
    "TIFGSM",
    "VMIFGSM",
    "Attack",
    "AttackResult",
    "BandPGD",
    "Card",
    "Goal",
    "HopSkipJump",
    "Noise",
    "Progress",
    "Query",
    "Square",
    "attack",
    "suite",
]

ATTACKS: dict[str, Callable[[], AnyAttack]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "apgd": APGD,
    "noise": Noise,
    "fab": FAB,
    "square": Square,
    "di_fgsm": DIFGSM,
    "mi_fgsm": MIFGSM,
    "ni_fgsm": NIFGSM,
    "ti_fgsm": TIFGSM,
    "vmi_fgsm": VMIFGSM,
    "cw": CW,
    "fmn": FMN,
    "hop_skip_jump": HopSkipJump,
    "spsa": SPSA,
    "band_pgd": BandPGD,
}
CARDS: dict[str, Card] = {
    "fgsm": fgsm.CARD,
    "pgd": pgd.CARD,
    "apgd": apgd.CARD,
    "noise": noise.CARD,
    "fab": fab.CARD,
    "square": square.CARD,
    "di_fgsm": di_fgsm.CARD,
    "mi_fgsm": mi_fgsm.CARD,
    "ni_fgsm": ni_fgsm.CARD,
    "ti_fgsm": ti_fgsm.CARD,
    "vmi_fgsm": vmi_fgsm.CARD,
    "cw": cw.CARD,
    "fmn": fmn.CARD,
    "hop_skip_jump": hop_skip_jump.CARD,
    "spsa": spsa.CARD,
    "band_pgd": band_pgd.CARD,
}


def attack(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, "n"],
    name_or_attack: str | AnyAttack | ForeignAttack,
    *,
    threat: Threat,
    targets: Int[Tensor, "n"] | None = None,
    rows: Int[Tensor, "n"] | None = None,
    seed: int = 0,
    batch_size: int = 128,
    sources: Sequence[nn.Module] | None = None,
    stop: Stop | None = None,
    skip_wrong: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
) -> AttackResult:
    """Search for images inside the threat that the model gets wrong.

    An image that the model already gets wrong (or, with targets, already puts into its target class) is not attacked:
    it comes back unchanged, as a success. Verdicts depend on the seed and each image's row number only, not on batch
    size, order or the other images; only margins under 1e-5 may fall on the other side, as float sums depend on shapes.
    (Which of several adversarial images comes back may depend on the batch: the first that was found.)

    Args:
        model: Returns logits (n, k) for pixels in [0, 1]; in eval mode, which is not switched here.
        x: Images, float32 in [0, 1].
        y: True classes.
        name_or_attack: Name in :data:`ATTACKS`, an attack such as ``PGD(steps=100)``, or any callable
            ``(model, x, y) -> x_adv``. A callable is given the targets as ``y`` if there are any; what it returns
            outside ball or box counts as a failed attempt, with a warning, and comes back as the plain image.
        threat: Norm and budget.
        targets: Class that each image must be turned into; success is then nothing else.
        rows: Identity of each image, such as its place in the data set; the source of its randomness. Default: its
            place in ``x``.
        seed: Seed of all random draws.
        batch_size: Rows per pass, at least 1.
        sources: Nets to search on instead of ``model`` (transfer); logits are averaged. The model is then only asked at
            the end, unless ``stop="first_success"``, which tries every point that fools the sources on the model.
        stop: Overrides the attack's own rule; "never" spends the whole budget and gives the final point, the default
            with ``sources``.
        skip_wrong: Leave images alone that the model already gets wrong. False for nets that answer at random, where
            one wrong answer says little: all are attacked, and success is what the last answer says.
        on_progress: Called as the search goes on.

    Returns:
        One row per image, on the device of ``x``.

    Raises:
        ParameterError: unknown attack or stop, train mode, a norm the attack is not defined for, targets equal to
            labels.
        ShapeError: ``x`` is not n c h w, ``y``, ``targets`` or ``rows`` is not (n,), the model does not return (n, k).
        DataError: pixels outside [0, 1], labels outside the outputs, another dtype or device, weights in half
            precision.
    """
    if isinstance(name_or_attack, str):
        if name_or_attack not in ATTACKS:
            raise ParameterError(f"attack: unknown attack {name_or_attack!r}; {did_you_mean(name_or_attack, ATTACKS)}")
        name_or_attack = ATTACKS[name_or_attack]()
    return run(
        model,
        x,
        y,
        name_or_attack,
        threat=threat,
        targets=targets,
        rows=rows,
        seed=seed,
        batch_size=batch_size,
        sources=sources,
        stop=stop,
        skip_wrong=skip_wrong,
        on_progress=on_progress,
    )
