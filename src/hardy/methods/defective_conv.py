"""Defective convolution (Random Mask): silence a fixed random set of neurons, in training and at test time.

Luo, Cai, Zhang, Chen, He, Wang. "Defective convolutional networks". https://arxiv.org/abs/1911.08432, and its
predecessor "Random mask: towards robust convolutional neural networks", https://arxiv.org/abs/2007.14249, whose text
was read (the body of the first was not). Sampling and placement follow the released code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.errors import AttachError, ParameterError, ShapeError
from hardy.methods._card import Card
from hardy.methods._checks import in_range, one_of, sites_given
from hardy.methods._places import Position, outputs

__all__ = ["CARD", "PRESETS", "DefectiveConv", "DefectiveMask2d", "Sampling", "defective_mask"]

Sampling = Literal["exact", "per_channel", "bernoulli", "same"]

CARD = Card(
    name="defective_conv",
    summary="Set a fixed random set of neurons of the early layers to zero, in training and at test time, so that the "
    "net must use shape more than texture.",
    paper="Luo et al., 2019 (arXiv 1911.08432)",
    url="https://arxiv.org/abs/1911.08432",
    kind="layer",
    live=True,
    twin="None needed: a product with a fixed mask is differentiable wherever the net is.",
    attaches="the outputs of convolutions with a kernel above 1 (all, if there are none) in the stem and the first "
    "half of the stages, after their norm and before the activation; the presets name the modules of one net each",
    defaults_from="Sampling, place and the constant 0 are those of the released code. Keep 0.5 is one of the shares "
    "(0.05 to 0.7) of the text of Random Mask, where the clean CIFAR-10 accuracy of ResNet-18 falls from 95.3 % to "
    "93.4 % at 0.5, 91.8 % at 0.3 and 87.7 % at 0.1.",
    deviations=(
        "The body of arXiv 1911.08432 was not readable: what is not in its abstract follows the text of Random Mask, "
        "its predecessor, and the released code.",
        "Zeros are exact over the whole tensor, as in the released code; the text of Random Mask says within each "
        "channel, which is sampling 'per_channel'.",
        "On any net by the rule above; the placements of the released code, which differ from net to net (ResNet-18 "
        "with its projection shortcuts, ResNet-50 without), are presets.",
        "Preset 'densenet121' masks the first norm of each dense layer, as the released code does; the text says the "
        "3x3 convolutions.",
        "Preset 'imagenet-resnet18' is for torchvision's net, whose stem is 7x7; that of the released code is 3x3, "
        "with maps of the same size.",
        "Constants other than 0 are the definition of a defective neuron put into code; neither the text that was "
        "read nor the released code uses one.",
    ),
    notes=(
        "The released code names a Chinese patent, no. 202110577422.5: ask a lawyer before you ship a product with it.",
        "The released code is under the MIT licence; nothing of it was copied.",
        "A net with masks works at one input size only.",
        "Where a kernel is the sum of several (RepVGG, MobileOne, FastViT, RepViT), its branches are masked apart, "
        "those with a kernel of 1 and the identity not at all: no neuron behind the sum is silent. Name the module "
        "that returns the sum in sites, if there is one.",
        "The evidence is for transferred adversarial examples. The text of Random Mask reports next to nothing under "
        "white-box PGD at 8/255 (0.42 % at keep 0.5, 3.28 % at 0.3, plain 0.02 %), and about 20 % at keep 0.5 under "
        "gray-box FGSM at 16/255, with the same mask or another: measure white-box and gray-box beside transfer.",
        "Masking the top stages alone gains nothing there, and the more of the bottom is masked, the lower the clean "
        "accuracy.",
    ),
)


def defective_mask(
    shape: tuple[int, int, int], *, keep: float, sampling: Sampling, seed: int, purpose: str
) -> Float[Tensor, "c h w"]:
    """Draw a mask of zeros and ones, uniformly over all masks that ``sampling`` allows.

    Masks of one seed and purpose are nested: what a smaller share keeps, a larger one keeps as well.

    Args:
        shape: Channels, height and width of one feature map.
        keep: Share of the neurons that stay, in [0, 1] (p in the paper, 1 - sigma in its predecessor).
        sampling: "exact": ``floor((1 - keep) c h w)`` zeros in the whole tensor; "per_channel":
            ``floor((1 - keep) h w)`` zeros in each channel; "bernoulli": each neuron stays with probability ``keep`` on
            its own; "same": one mask with ``floor((1 - keep) h w)`` zeros for all channels.
        seed: Seed.
        purpose: Name of the place, so that each layer has a mask of its own.

    Returns:
        Zeros and ones, float32, on the CPU.
    """
    c, h, w = shape
    rows = {"exact": 1, "per_channel": c, "bernoulli": 1, "same": 1}[sampling]  # each with zeros of its own
    size = h * w if sampling in {"per_channel", "same"} else c * h * w
    u = seeding.uniform(seeding.keys(seeding.root(seed, purpose), torch.arange(rows)), 0, (size,))
    zeros = math.floor((1 - keep) * size + 1e-9)  # 1 - 0.9 is a little less than 0.1
    alive = u < keep if sampling == "bernoulli" else ~_smallest(u, zeros)
    return alive.float().reshape(-1, h, w).expand(shape).contiguous()


def _smallest(u: Float[Tensor, "n k"], count: int) -> Bool[Tensor, "n k"]:
    """Mark the ``count`` smallest numbers of each row, the first ones where they are equal; sorting is slower."""
    if count == 0:
        return torch.zeros_like(u, dtype=torch.bool)
    size = u.shape[1]
    rank = (u * 2**24).long() * size + torch.arange(size)  # numbers are multiples of 2^-24: whole, and no two equal
    return rank <= rank.kthvalue(count, dim=1, keepdim=True).values


class DefectiveMask2d(nn.Module):
    """Put a constant into the fixed places where the mask is 0, the same for every image and in both modes."""

    mask: Tensor

    def __init__(self, mask: Float[Tensor, "c h w"], *, constant: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.constant = constant

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if x.shape[1:] != self.mask.shape:
            raise ShapeError(
                f"defective_conv: the mask is for {tuple(self.mask.shape)} feature maps; got {tuple(x.shape[1:])}. "
                "A net with masks works at the input size it was attached with: resize the images to it."
            )
        mask = self.mask.to(x.dtype)[None]
        if x.is_contiguous(memory_format=torch.channels_last):  # in the order of x: a product of two orders is slow
            mask = mask.contiguous(memory_format=torch.channels_last)
        if self.constant == 0:
            return x * mask
        return torch.addcmul((1 - mask) * self.constant, x, mask)  # the first term is of one image: next to free

    def extra_repr(self) -> str:
        share = "" if self.mask.is_meta else f", keep={self.mask.float().mean().item():.3f}"
        return f"{'x'.join(map(str, self.mask.shape))}{share}{f', constant={self.constant:g}' if self.constant else ''}"


@dataclass(frozen=True, kw_only=True)
class DefectiveConv:
    """Defective convolution as a method.

    Shares may differ between stages: attach two, ``[DefectiveConv(keep=0.3, sites=("bottom",)),
    DefectiveConv(keep=0.7, sites=("top",))]``. ``PRESETS`` has the placements of the released code; change their share
    with ``dataclasses.replace(PRESETS["resnet18"], keep=0.1)``.

    Attributes:
        keep: Share of the neurons that stay, in [0, 1] (the paper's p; its predecessor reports 0.05 to 0.7).
        sampling: "exact" over the whole tensor (released code), exact "per_channel", "bernoulli", or the "same" mask
            for all channels (control SM of the predecessor); see ``defective_mask``.
        constant: What a defective neuron gives; before a ReLU a negative one acts as 0.
        position: Where a stage name in ``sites`` takes its convolutions: "post_norm", "post_conv", "post_activation".
        mask_seed: Seed of the masks alone, so that runs of different seeds share them; left out: the seed of the run.
        sites: Stage names (see the card) or modules, globs included; "bottom" is the paper's placement that helps. A
            module is masked at its own output, whatever ``position`` says.
    """

    keep: float = 0.5
    sampling: Sampling = "exact"
    constant: float = 0.0
    position: Position = "post_norm"
    mask_seed: int | None = None
    sites: tuple[str, ...] = ("bottom",)

    def __post_init__(self) -> None:
        sites_given("DefectiveConv", self.sites)
        in_range("DefectiveConv", "keep", self.keep, 0, 1)
        one_of("DefectiveConv", "sampling", self.sampling, get_args(Sampling))
        one_of("DefectiveConv", "position", self.position, get_args(Position))
        if not math.isfinite(self.constant):
            raise ParameterError(f"DefectiveConv: constant must be finite; got {self.constant}.")

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Mask the outputs of ``sites`` for good; the masks are buffers, saved with the model."""
        sites, notes = outputs(model, example, self.sites, position=self.position)
        calls = surgery.resolve(model, sites)
        if twice := [name for name, chosen in calls.items() if len(chosen) > 1]:
            raise AttachError(
                f"defective_conv: each layer must have a mask of its own; got {len(calls[twice[0]])} calls of one "
                f"module, {twice[0]}. Mask the norms (position 'post_norm'), or one call each in methods of their own."
            )

        earlier = [a for a in surgery.attachments(model) if isinstance(a.insert.spec, DefectiveConv)]

        def layer(name: str, y: Tensor) -> DefectiveMask2d:
            if y.ndim != 4:
                raise AttachError(f"defective_conv: {name} must give (n, c, h, w); got {tuple(y.shape)}.")
            site = "#".join((name, *map(str, calls[name])))
            mask = defective_mask(
                (y.shape[1], y.shape[2], y.shape[3]),
                keep=self.keep,
                sampling=self.sampling,
                seed=seed if self.mask_seed is None else self.mask_seed,
                purpose=":".join((CARD.name, site, *["again"] * sum(name in a.sites for a in earlier))),
            )
            return DefectiveMask2d(mask, constant=self.constant)

        held = surgery.Insert(self, seed=seed, live=True)
        held.notes = notes
        return surgery.after(model, sites, layer, method=CARD.name, example=example, held=held)


# The placements of the released code, on nets with torchvision's module names; 32-px nets are those of hardy.models.
PRESETS: Mapping[str, DefectiveConv] = {
    "resnet18": DefectiveConv(sites=("bn1", "layer[12].*.bn?", "layer2.0.downsample.1")),
    "resnet18-top": DefectiveConv(sites=("layer[34].*.bn?", "layer[34].0.downsample.1")),
    "resnet50": DefectiveConv(sites=("bn1", "layer[12].*.bn2")),  # the 3x3 convolutions of the bottlenecks
    "senet18": DefectiveConv(sites=("layer[12].*.bn?",)),  # pre-activation: the norms come first, the stem has none
    "densenet121": DefectiveConv(sites=("features.denseblock[12].denselayer*.norm1", "features.transition[12].norm")),
    "vgg19": DefectiveConv(sites=("features.1", "features.4", "features.8", "features.11")),
    "resnet32-x4": DefectiveConv(sites=("bn1", "layer1.*.bn?")),  # cifar_resnet32, width 64, stem_width 16, projections
    "imagenet-resnet18": DefectiveConv(sites=("bn1", "layer[12].*.bn?", "layer2.0.downsample.1")),
}
