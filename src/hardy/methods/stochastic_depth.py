"""Stochastic depth: drop whole residual branches at random, during training.

Huang, Sun, Liu, Sedra, Weinberger. "Deep networks with stochastic depth". ECCV 2016,
https://arxiv.org/abs/1603.09382 (Equations 2 and 4). timm calls it ``DropPath``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import residual, seeding, surgery, topology
from hardy.errors import AttachError
from hardy.methods._card import Card
from hardy.methods._checks import in_range, one_of, scaled, sites_given, some
from hardy.sites import module_names, resolve
from hardy.taps import KeyedLayer

__all__ = ["CARD", "DropPath", "StochasticDepth", "branch_rates", "stochastic_depth"]

RATES = {"DropPath": "drop_prob", "StochasticDepth": "p"}  # of timm and torchvision: class -> where its rate is

CARD = Card(
    name="stochastic_depth",
    summary="Skip residual branches at random while training, the deeper the more often, so that a net learns as many "
    "nets of different depth.",
    paper="Huang et al., ECCV 2016",
    url="https://arxiv.org/abs/1603.09382",
    kind="layer",
    live=False,
    attaches="what each block adds to its shortcut; nets without residual sums are an error",
    defaults_from="p 0.5 for the last branch and linear decay towards the first: the paper's.",
    deviations=(
        "Each image draws by itself, as in timm and torchvision; the paper skips a branch for a whole batch, which "
        "also saves its time.",
        "Kept branches are scaled by 1 / (1 - p) while training; the paper scales them by 1 - p at test time.",
    ),
)


def stochastic_depth(
    x: Float[Tensor, "n ..."], *, p: float, training: bool, key: Int[Tensor, "n"]
) -> Float[Tensor, "n ..."]:
    """Zero each row with probability ``p`` and scale the others by 1 / (1 - p) (Equation 2, without the shortcut).

    Args:
        x: What a block adds to its shortcut; any real values, one row per image.
        p: Probability of dropping a row, in [0, 1] (1 - p_l in the paper).
        training: Return ``x`` unchanged when False.
        key: Source of randomness, one per row.
    """
    if not training or p == 0:
        return x
    kept = (seeding.uniform(key, 0, ()) >= p).reshape(-1, *[1] * (x.ndim - 1))
    return scaled(x, kept, 1 / (1 - p) if p < 1 else 0.0)


def branch_rates(number: int, *, p: float, decay: Literal["linear", "uniform"]) -> tuple[float, ...]:
    """Compute the rates of ``number`` branches, first to last: ``p l / number`` (Equation 4), or ``p`` for all.

    Example:
        >>> branch_rates(4, p=0.5, decay="linear")
        (0.125, 0.25, 0.375, 0.5)
    """
    return tuple(p * depth / number if decay == "linear" else p for depth in range(1, number + 1))


class DropPath(KeyedLayer):
    """:func:`stochastic_depth` as a layer: active in training mode, identity in evaluation mode."""

    def __init__(self, *, p: float, seed: int, purpose: str = CARD.name) -> None:
        super().__init__(seed=seed, purpose=purpose)
        self.p = p

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        return stochastic_depth(x, p=self.p, training=True, key=self.row_keys(x)) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


@dataclass(frozen=True, kw_only=True)
class StochasticDepth:
    """Stochastic depth as a method.

    Attributes:
        p: Probability of dropping the last of the chosen branches, in [0, 1] (1 - p_L in the paper).
        decay: "linear": the l-th of L chosen branches has rate p l / L; "uniform": all have p.
        sites: "residual" (all residual branches), stage names (the branches in them) or modules.
    """

    p: float = 0.5
    decay: Literal["linear", "uniform"] = "linear"
    sites: tuple[str, ...] = ("residual",)

    def __post_init__(self) -> None:
        sites_given("StochasticDepth", self.sites)
        in_range("StochasticDepth", "p", self.p, 0, 1)
        one_of("StochasticDepth", "decay", self.decay, ("linear", "uniform"))

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Drop the outputs of ``sites`` while training; no parameters, no state-dict keys."""
        chosen = _branches(model, example, self.sites)
        rates: dict[str, float] = {}
        for site, p in zip(chosen, branch_rates(len(chosen), p=self.p, decay=self.decay), strict=True):
            rates.setdefault(site.partition("#")[0], p)

        def layer(name: str, _y: Tensor) -> DropPath:
            return DropPath(p=rates[name], seed=seed, purpose=f"{CARD.name}:{name}")

        held = surgery.Insert(self, seed=seed)
        held.notes = _notes(model, chosen, rates)
        return surgery.after(model, chosen, layer, method=CARD.name, example=example, held=held)


def _branches(model: nn.Module, example: Tensor, sites: Sequence[str]) -> list[str]:
    """Give the sites of the branches, in the order of the forward pass; named modules follow in model order."""
    words = [site for site in sites if site == "residual" or topology.is_stage(site)]
    found = residual.residual_branches(model, example) if words else ()
    if words and not found:
        raise AttachError(
            "stochastic_depth: the net must add branches to shortcuts; no such sum of feature maps was found, and "
            "without a shortcut a dropped block leaves nothing. Use dropout or drop_block, or name modules in sites."
        )
    chosen = {site for word in words for site in _inside(model, example, found, word)}
    named = resolve(model, [site for site in sites if site not in words])
    others = [f"{name}#{call}" if calls else name for name, calls in named.items() for call in calls or (0,)]
    return [site for site in found if site in chosen] + [site for site in others if site not in chosen]


def _inside(model: nn.Module, example: Tensor, found: Sequence[str], word: str) -> list[str]:
    """Choose the branches of a group of stages: those whose output has its stride."""
    if word == "residual":
        return list(found)
    strides = {s.stride for s in topology.pick(topology.stages(model, example), word) if s.name != "stem"}
    with surgery.capture(model, found) as seen, surgery.without_trace(model, example):
        model(example[:1].clone())
    pixels = max(example.shape[2:])
    here = [site for site in found if max(1, round(pixels / max(seen[site].shape[2:]))) in strides]
    if not here:
        raise AttachError(f"stochastic_depth: {word!r} must have residual branches; it has none.")
    return here


def _notes(model: nn.Module, chosen: Sequence[str], rates: dict[str, float]) -> tuple[str, ...]:
    """Say what else drops branches, and where one module serves several."""
    own = [
        f"{name} (p {rate:g})"
        for name in module_names(model)
        for module in [model.get_submodule(name)]
        if (rate := getattr(module, RATES.get(type(module).__name__, ""), None) or 0) > 0
    ]
    notes = [f"the net has stochastic depth of its own, and both act: {some(own)}"] if own else []
    if len(rates) < len(chosen):
        notes.append("a module that serves several branches drops all with the rate of the first")
    return tuple(notes)
