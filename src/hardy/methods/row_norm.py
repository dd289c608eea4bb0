"""Row norm: keep the weights of every output of a layer within an L1 ball, while training.

The largest L1 norm of a row is the most by which a layer can enlarge the largest change of its input. Inspired by
Shultzman, Azar, Rodrigues, Eldar. "Generalization and estimation error bounds for model-based neural networks". ICLR
2023, https://arxiv.org/abs/2304.09802, whose released code bounds this norm after every step; its theorem is about the
recovery of sparse vectors and says nothing about image classifiers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hardy import surgery
from hardy.errors import AttachError, ParameterError
from hardy.methods._card import Card
from hardy.methods._checks import sites_given, some
from hardy.sites import INPUT, resolve
from hardy.topology import is_stage, pick, stages
from hardy.tracing import trace

__all__ = ["CARD", "RowNorm", "RowNormInsert", "row_factors"]

Layer = nn.Conv2d | nn.Linear

CARD = Card(
    name="row_norm",
    summary="Scale the weights of every output channel of convolutions and linear layers down to an L1 norm of at most "
    "a bound before every training step, so that no layer enlarges the largest change of its input by more than that.",
    paper="inspired by Shultzman et al., ICLR 2023 (arXiv 2304.09802)",
    url="https://arxiv.org/abs/2304.09802",
    kind="loss",
    live=False,
    attaches="the weights of all convolutions and linear layers, as a constraint on the objective",
    defaults_from="ours, not tuned: 10 is where the released code begins to act, for matrices of 20 rows. The bound "
    "1 + lambda / (2 K sqrt(m)) of its control file is for sparse vectors and has no meaning here.",
    deviations=(
        "Each row is scaled to the bound by itself; the released code scales the whole matrix to 5 once its largest "
        "row is above 10.",
        "Rows are scaled, not projected onto the closest point of the L1 ball: that would cut the same amount off all "
        "weights of a row and change its shape, while a scaled filter still looks for the same thing.",
        "It acts before each training step, so in every loop with hardy.Objective, and at the end of an epoch; the "
        "released code acts after each step, which gives the same steps but for the first.",
    ),
    notes=(
        "A norm behind a layer, or a norm of its own weights, undoes the scale: the bound then says nothing about the "
        "net. The attachment notes which layers these are. Where no norm is, the product over the layers bounds how "
        "far logits can move, mostly by far more than they do.",
        "Biases and frozen weights are left as they are.",
        "A moving average of the weights (ema) takes them right after a step, so it may exceed the bound by a part of "
        "a step. So may the weights of a loop of your own that does not call epoch_end at its end.",
        "A masking warning: without norms a bound below 1 shrinks logits and gradients with the product over the "
        "layers. Steps by the sign of the gradient do not mind before it underflows; the check zero_gradient tells. "
        "Attacks need no twin, as only the weights differ.",
        "No gain in robustness has been measured.",
    ),
)


def row_factors(weight: Float[Tensor, "out ..."], *, bound: float) -> Float[Tensor, "out"]:
    """Compute by how much to scale each row so that its L1 norm is at most ``bound``.

    Args:
        weight: Weights of a convolution or linear layer; a row is all that makes one output channel.
        bound: Largest norm allowed, above 0.

    Returns:
        ``min(1, bound / norm)``, in float32 or wider.

    Example:
        >>> row_factors(torch.tensor([[3.0, -1.0], [0.5, 0.5], [0.0, 0.0]]), bound=2.0)
        tensor([0.5000, 1.0000, 1.0000])
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    norms = torch.linalg.vector_norm(weight, ord=1, dim=tuple(range(1, weight.ndim)), dtype=wide)
    factors: Tensor = (bound / norms).clamp(max=1)
    return factors


class RowNormInsert(surgery.Insert):
    """Bounds the weights of its layers, which a copy of the model copies along.

    Attributes:
        names: Names of the layers.
    """

    def __init__(self, spec: "RowNorm", *, seed: int, layers: dict[str, Layer]) -> None:
        super().__init__(spec, seed=seed)
        self.names = tuple(layers)
        self.layers = tuple(layers.values())  # in a tuple: they belong to the net and are no children of this

    @torch.no_grad()
    def project(self) -> None:
        """Scale down the rows that are above the bound."""
        for layer in self.layers:
            if layer.weight.requires_grad:
                factors = row_factors(layer.weight, bound=self.spec.bound)
                layer.weight.mul_(factors.to(layer.weight.dtype).reshape(-1, *[1] * (layer.weight.ndim - 1)))

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Bound the weights that the last step has left, before this one looks at them; the batch stays as it is."""
        self.project()
        return x, y

    def epoch_end(self, epoch: int) -> None:
        """Bound what the last step of the epoch has left."""
        self.project()


@dataclass(frozen=True, kw_only=True)
class RowNorm:
    """Row norm as a method.

    Attributes:
        bound: Largest L1 norm of the weights of one output channel, above 0.
        sites: Modules, globs included, of which convolutions and linear layers are taken; or stage names, for all
            convolutions of these stages.
    """

    bound: float = 10.0
    sites: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        sites_given("RowNorm", self.sites)
        if not 0 < self.bound <= 1e6:
            raise ParameterError(f"RowNorm: bound must be above 0, at most 1e6; got {self.bound}.")

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Bound the weights while training; changes no layer and, by itself, no weight."""
        held = RowNormInsert(self, seed=seed, layers=_layers(model, example, self.sites))
        held.notes = _notes(model, example, held.names)
        return surgery.insert(model, held, method=CARD.name)


def _layers(model: nn.Module, example: Tensor, sites: Sequence[str]) -> dict[str, Layer]:
    """Find the layers with weights at the sites, in model order."""
    found = stages(model, example) if any(map(is_stage, sites)) else []
    chosen: set[str] = set()
    for site in sites:
        if "#" in site or site.endswith(INPUT):
            raise AttachError(f"row_norm: a site must be a layer; got {site!r}, a call or an input of one.")
        named = [c.name for s in pick(found, site) for c in s.convs] if is_stage(site) else resolve(model, [site])
        layers = [name for name in named if isinstance(model.get_submodule(name), Layer)]
        if not layers:
            raise AttachError(f"row_norm: {site!r} must name a convolution or linear layer; there is none.")
        chosen.update(layers)
    made: dict[str, Layer] = {}
    for name in resolve(model, sorted(chosen)):
        layer = model.get_submodule(name)
        if not isinstance(layer, Layer) or "weight" not in dict(layer.named_parameters(recurse=False)):
            raise AttachError(
                f"row_norm: the weight of {name} must be a parameter of its own; it is computed from others, as by "
                "spectral_norm. Take that off, or leave the layer out of sites."
            )
        made[name] = layer
    return made


def _notes(model: nn.Module, example: Tensor, names: Sequence[str]) -> tuple[str, ...]:
    """Say where a norm undoes the scale of what is bounded."""
    found = trace(model, example)
    normed = {call.given for call in found.calls if _is_norm(call.module)}
    behind = {call.name for call in found.calls if call.out in normed}
    undone = [n for n in names if n in behind or "Std" in type(model.get_submodule(n)).__name__]
    said = "a norm undoes the scale of the rows, so the bound says nothing about what these layers do"
    return (f"{said}: {some(undone)}",) if undone else ()


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and not any(isinstance(m, Layer) for m in module.modules())
