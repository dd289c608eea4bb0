"""Dropout: drop single values at random, during training.

Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov. "Dropout: a simple way to prevent neural networks from
overfitting". JMLR 15 (2014), https://jmlr.org/papers/v15/srivastava14a.html. ``torch.nn.Dropout`` is the same with
another source of randomness.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery, topology
from hardy.methods._card import Card
from hardy.methods._checks import in_range, sites_given, some
from hardy.methods._places import after_norm
from hardy.sites import module_names
from hardy.taps import KeyedLayer

__all__ = ["CARD", "Dropout", "KeyedDropout", "dropout"]

CARD = Card(
    name="dropout",
    summary="Drop single values at random while training, so that no feature can rely on particular other ones.",
    paper="Srivastava et al., JMLR 2014",
    url="https://jmlr.org/papers/v15/srivastava14a.html",
    kind="layer",
    live=False,
    attaches="the pooled features that enter the last linear layer; on request the outputs of convolutions with a "
    "kernel above 1 in some stages, after their norm",
    defaults_from="p 0.5 is the paper's value for hidden units (0.2 for inputs); the place is the common one in CNNs "
    "that end in one linear layer.",
    deviations=(
        "What is kept is scaled by 1 / (1 - p) while training; the paper scales the weights at test time instead, and "
        "mentions this as the same.",
        "The paper combines it with a bound on the norm of incoming weights; there is none here.",
    ),
)


def dropout(x: Float[Tensor, "n ..."], *, p: float, training: bool, key: Int[Tensor, "n"]) -> Float[Tensor, "n ..."]:
    """Zero each value with probability ``p`` and scale the others by 1 / (1 - p).

    Args:
        x: Any real values, one row per image.
        p: Probability of dropping a value, in [0, 1] (1 - p in the paper, whose p is the share that stays).
        training: Return ``x`` unchanged when False.
        key: Source of randomness, one per row.

    Returns:
        A tensor of the same shape, dtype and memory format.

    Example:
        >>> key = seeding.keys(seeding.root(0, "demo"), torch.arange(1))
        >>> dropout(torch.ones(1, 8), p=0.5, training=True, key=key).unique()
        tensor([0., 2.])
    """
    if not training or p == 0:
        return x
    kept = seeding.uniform(key, 0, x.shape[1:]) >= p
    mask = torch.empty_like(x).copy_(kept)  # in the memory format of x: a product of two formats is slow
    return x * mask * (1 / (1 - p) if p < 1 else 0.0)  # scaled at last, by a number that half precision cannot round


class KeyedDropout(KeyedLayer):
    """:func:`dropout` as a layer: active in training mode, identity in evaluation mode."""

    def __init__(self, *, p: float, seed: int, purpose: str = CARD.name) -> None:
        super().__init__(seed=seed, purpose=purpose)
        self.p = p

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        return dropout(x, p=self.p, training=True, key=self.row_keys(x)) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Dropout as a method.

    Attributes:
        p: Probability of dropping a value, in [0, 1].
        sites: "pooled" (what enters the last linear layer), stage names (see the card) or modules.
    """

    p: float = 0.5
    sites: tuple[str, ...] = ("pooled",)

    def __post_init__(self) -> None:
        sites_given("Dropout", self.sites)
        in_range("Dropout", "p", self.p, 0, 1)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Drop values of ``sites`` while training; no parameters, no state-dict keys."""

        def layer(name: str, _y: Tensor) -> KeyedDropout:
            return KeyedDropout(p=self.p, seed=seed, purpose=f"{CARD.name}:{name}")

        pooled = topology.classifier_inputs(model, example) if "pooled" in self.sites else ()
        places = [place for s in self.sites for place in (pooled if s == "pooled" else (s,))]
        sites, notes = after_norm(model, example, places)
        held = surgery.Insert(self, seed=seed)
        held.notes = notes + _own(model)
        return surgery.after(model, sites, layer, method=CARD.name, example=example, held=held)


def _own(model: nn.Module) -> tuple[str, ...]:
    """Say which layers of the net itself drop values as well."""
    modules = {name: model.get_submodule(name) for name in module_names(model)}
    own = [f"{name} (p {m.p:g})" for name, m in modules.items() if type(m) is nn.Dropout and m.p > 0]
    return (f"the net has dropout of its own, and both act: {some(own)}",) if own else ()
