"""Adversarial images that several parts look at: made once, of some images that are chosen by their identities."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.attacks import PGD, attack
from hardy.data.rows import spread_order
from hardy.diagnosis.case import Case

__all__ = ["MOST_IMAGES", "Attacked", "attacked"]

MOST_IMAGES = 512  # that are attacked


@dataclass(frozen=True, kw_only=True, eq=False)
class Attacked:
    """Some images of a case and what the attack made of them.

    The attack goes on after the net is wrong and gives its last point (``stop="never"``). A search that stops at the
    first wrong answer ends right behind the boundary, from where any small change leads back.

    Attributes:
        index: Their places among the images of the case, ascending.
        x: The images, in [0, 1].
        y: True classes.
        rows: Identities.
        found: Predicted classes of the images.
        x_adv: The attacked images; of one that was wrong before, the image itself.
        fooled: Whether it was right before and is wrong now.
        attack: Name and steps of the attack.
    """

    index: Int[Tensor, "m"]
    x: Float[Tensor, "m c h w"]
    y: Int[Tensor, "m"]
    rows: Int[Tensor, "m"]
    found: Int[Tensor, "m"]
    x_adv: Float[Tensor, "m c h w"]
    fooled: Bool[Tensor, "m"]
    attack: str

    @property
    def right(self) -> Bool[Tensor, "m"]:
        """Which images are classified right before the attack."""
        return self.found == self.y


def attacked(case: Case) -> tuple[Attacked, dict[str, int]]:
    """Attack at most 512 images of a case by PGD with the budget of its threat; a second time they are at hand.

    Returns:
        The images, and the passes that this call spent, summed over images; 0 the second time.
    """
    if "attacked" in case.memo:
        known: Attacked = case.memo["attacked"]
        return known, {"forward": 0, "backward": 0}
    order = spread_order(case.y.cpu(), case.rows.cpu(), seed=case.seed, purpose="attacked")
    index = order[:MOST_IMAGES].sort().values.to(case.x.device)
    x, y, rows, search = case.x[index], case.y[index], case.rows[index], PGD()
    done = attack(
        case.model, x, y, search, threat=case.threat, rows=rows, seed=case.seed, batch_size=case.batch_size,
        stop="never",
    )  # fmt: skip
    found = case.predictions()[index]
    made = Attacked(
        index=index, x=x, y=y, rows=rows, found=found, x_adv=done.x_adv, fooled=done.success & (found == y),
        attack=f"{search.name} ({search.steps} steps, {case.threat})",
    )  # fmt: skip
    case.memo["attacked"] = made
    return made, dict(done.passes)


def of_all(case: Case, index: Tensor) -> tuple[str, ...]:
    """Say that not all images were used, where that is so."""
    if len(index) == len(case.x):
        return ()
    return (f"{len(index)} of {len(case.x)} images, chosen by their identities",)


def indices(mask: Bool[Tensor, "n"]) -> Int[Tensor, "_"]:
    """Give the places that are True."""
    return torch.nonzero(mask)[:, 0]
