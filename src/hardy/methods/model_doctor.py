r"""Model Doctor: a class shall depend on its own channels, and on the object rather than on its background.

Feng, Hu, Wu, Yu, Song, Song. "Model Doctor: a simple gradient aggregation strategy for diagnosing and treating CNN
classifiers". AAAI 2022, https://arxiv.org/abs/2112.04934 (Eq. 3 to 7).

With :math:`m_k` the k-th channel of a layer, :math:`z_n` the score of class n (its logit, as in the released code),
y the label, s the class that is second in the net's answer, or first where the answer is wrong, normal noise
:math:`\sigma^j` on the layer, and :math:`\sum` over positions:

    relevance       :math:`a_k^n = \sum |\partial z_n / \partial m_k|`, averaged over sure images of class n (Eq. 3, 4)
    channel-wise    :math:`\sum_k [a_k^y < v] \sum |\partial z_y / \partial (m_k + \sigma^j)|
                    + \sum_k \sum |\partial z_s / \partial (m_k + \sigma^j)|` (Eq. 5)
    space-wise      :math:`\sum_k \sum B \cdot |\partial z_y / \partial (m_k + \sigma^j)|`, B the background (Eq. 6)
    objective       the task loss plus both, weighted (Eq. 7)

The relevance is measured once, before the treatment (:mod:`hardy.diagnosis.correlation`), and read from a file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.errors import AttachError, HardyError
from hardy.last_map import LAST, last_map
from hardy.methods._card import Card
from hardy.methods._checks import in_range, one_of, sites_given
from hardy.methods.mixup import class_count
from hardy.safefile import read_header, read_tensors, write_tensors
from hardy.taps import After, KeyedLayer, Tap

__all__ = [
    "CARD",
    "PRESETS",
    "ModelDoctor",
    "channel_loss",
    "read_relevance",
    "relevant_channels",
    "runner_up",
    "space_loss",
    "write_relevance",
]

SIGNS, OTHERS = ("absolute", "positive"), ("all", "own")
KIND = "channel relevance"  # in the header of the file

CARD = Card(
    name="model_doctor",
    summary="Fine-tune a trained net so that the score of a class depends on the channels that its sure images use, "
    "and not on others or on the background; by a loss term on gradients.",
    paper="Feng et al., AAAI 2022",
    url="https://arxiv.org/abs/2112.04934",
    kind="layer",
    live=False,
    attaches="'last_conv', the default: the output of the last convolution of the main path; where that is one part of "
    "a concatenation (Inception, DenseNet), the whole of it",
    defaults_from="the code of 2021, closest to the paper's experiments: absolute gradients, normal noise of standard "
    "deviation 1, one draw a step, each class's mean as threshold; weight 10 / 128, what its weight 10 amounts to in "
    "batches of 128, where it divides twice by the batch size.",
    deviations=(
        "The paper's prose could not be read: its equations are from pictures of it, the rest from the released code.",
        "Gradients are those of each image's own logit; the mean over the batch is taken once (legacy_scaling: twice).",
        "Every channel of the runner-up is held down, as Eq. 5 says; the released code holds down its own ones only "
        "(others = 'own').",
        "In branchy nets the whole concatenated map is taken; the released code took one branch.",
    ),
    notes=(
        "Made for hardy treat, which measures the relevance first and compares with the same training without.",
        "Gradients of gradients: not with train.compile. They are not among the passes that are counted.",
        "The relevance is measured without noise (Eq. 3), as the released code does; Eq. 5 has that of Eq. 4.",
        "In several processes legacy_scaling divides by the batch of each.",
        "The gain in the paper has no control of equal further training; see hardy treat's.",
        "A student's runs with noise of standard deviation 1 could not train an AlexNet, whose features are smaller "
        "than that: set noise lower, or to 0.",
        "The background is that of the images before other methods move or mix them.",
        "The released code carries no licence that we found; nothing of it was copied.",
    ),
)


def runner_up(logits: Float[Tensor, "n k"], y: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Give the class that should not have its score: the second one, or the first where that is not the label."""
    first, second = logits.detach().topk(2, dim=1).indices.unbind(1)
    return torch.where(first == y, second, first)


def relevant_channels(relevance: Float[Tensor, "k c"], *, threshold: Literal["mean"] | float) -> Bool[Tensor, "k c"]:
    """Decide which channels each class may use.

    Args:
        relevance: Eq. 3 or 4, at least 0; NaN for a class without sure images, which may then use all, as where
            all channels count alike.
        threshold: "mean": at least the mean of the class over its channels (2021); a number: above that share of the
            way from its least to its most relevant channel, in [0, 1) (2022: 0.2).
    """
    if threshold == "mean":
        chosen = relevance >= relevance.mean(1, keepdim=True)
    else:
        low, high = relevance.amin(1, keepdim=True), relevance.amax(1, keepdim=True)
        chosen = (relevance - low) / (high - low).clamp(min=torch.finfo(relevance.dtype).tiny) > threshold
    alike = relevance.amax(1, keepdim=True) == relevance.amin(1, keepdim=True)
    return chosen | alike | relevance.isnan()


def channel_loss(
    true: Float[Tensor, "n c"],
    other: Float[Tensor, "n c"],
    relevant: Bool[Tensor, "k c"],
    y: Int[Tensor, "n"],
    s: Int[Tensor, "n"],
    *,
    others: Literal["all", "own"],
) -> Float[Tensor, "n"]:
    """Compute Eq. 5 for each image.

    Args:
        true: Summed gradient of the label's score by each channel, at least 0.
        other: Likewise of the score of ``s``.
        relevant: Which channels each class may use.
        y: Labels.
        s: The class that should not have its score.
        others: Of ``s`` hold down "all" channels, or its "own" ones.
    """
    low = (true * ~relevant[y]).sum(1)
    return low + (other if others == "all" else other * relevant[s]).sum(1)


def space_loss(gradient: Float[Tensor, "n c h w"], background: Float[Tensor, "n a b"]) -> Float[Tensor, "n"]:
    """Compute Eq. 6 for each image: the gradient on the background, which is averaged to the size of the layer.

    Args:
        gradient: Of the label's score by the layer.
        background: Share of each pixel that is no part of the object, in [0, 1].
    """
    share = F.adaptive_avg_pool2d(background[:, None], (gradient.shape[2], gradient.shape[3]))
    return (gradient.abs() * share).flatten(1).sum(1)


class Noise(KeyedLayer):
    """Adds normal noise while training, and keeps what comes out of it, which gradients are taken by."""

    def __init__(self, *, seed: int, purpose: str, sigma: float) -> None:
        super().__init__(seed=seed, purpose=purpose)
        self.sigma, self.draw, self.on = sigma, 0, False
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy of the noisy ``x``, so that what follows may overwrite it."""
        if not self.training:
            return x
        if self.sigma:
            noise = seeding.normal(self.row_keys(x), self.draw, x.shape[1:])
            x = x + self.sigma * noise.to(x.dtype)
        if not self.on:
            return x
        if torch.is_grad_enabled() and not x.requires_grad:  # a frozen net below: the graph begins here
            x = x.detach().requires_grad_()
        self.kept.append(x)
        return x.clone()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"kept": []}


class ModelDoctorInsert(surgery.Insert):
    """Adds the loss terms."""

    spec: "ModelDoctor"

    def listen(self, on: bool) -> None:
        for layer in self._layers():
            layer.draw, layer.on = 0, on
            if on:
                layer.kept.clear()

    def terms(self, context: surgery.Context) -> dict[str, Tensor]:
        if not context.logits.requires_grad:  # without gradients there is nothing to hold down
            return {}
        y = context.y if context.y.ndim == 1 else context.y.argmax(1)
        losses: list[tuple[Tensor, Tensor]] = [self._losses(context.logits, y, context)]
        for draw in range(1, self.spec.draws):
            for layer in self._layers():
                layer.kept.clear()
                layer.draw, layer.on = draw, True
            logits = context.forward(context.x)
            losses.append(self._losses(logits, y, context))
            self.listen(False)
        for layer in self._layers():
            layer.kept.clear()
        channel, space = (torch.stack(parts).sum(0) for parts in zip(*losses, strict=True))
        scale = 1 / len(y) if self.spec.legacy_scaling else 1.0
        named = {"channel": self.spec.channel * scale * channel.mean(), "space": self.spec.space * space.mean()}
        return {name: value for name, value in named.items() if getattr(self.spec, name)}

    def _losses(self, logits: Tensor, y: Tensor, context: surgery.Context) -> tuple[Tensor, Tensor]:
        """Compute both losses of each image in one draw of noise, summed over layers."""
        layers = self._layers()
        maps = [kept for layer in layers for kept in layer.kept]
        if any(len(kept) != len(y) for kept in maps):
            raise AttachError(f"{CARD.name}: every site must give one row per image. Choose other sites.")
        spec, s = self.spec, runner_up(logits, y)
        true = _slopes(logits, y, maps)
        other = _slopes(logits, s, maps) if spec.channel else true
        channel, space = logits.new_zeros(len(y)), logits.new_zeros(len(y))
        done = 0
        for tap, layer in zip(cast("list[NoiseTap]", list(self.taps)), layers, strict=True):
            here = slice(done, done + len(layer.kept))
            done += len(layer.kept)
            if spec.channel:
                y_sum, s_sum = (_summed(part[here], spec.sign) for part in (true, other))
                channel = channel + channel_loss(y_sum, s_sum, tap.relevant, y, s, others=spec.others)
            if spec.space and context.background is not None:
                for gradient in true[here]:
                    space = space + space_loss(gradient, context.background)
        return channel, space

    def _layers(self) -> list[Noise]:
        return [cast("Noise", cast("NoiseTap", tap).layer) for tap in self.taps]

    @property
    def passes(self) -> surgery.Passes:
        """Further draws of noise are further forward passes; gradients back to the layer only are not counted."""
        return surgery.Passes(forward=self.spec.draws - 1)


class NoiseTap(After):
    """One site: its noise, and which of its channels each class may use."""

    relevant: Tensor

    def __init__(
        self, name: str, calls: tuple[int, ...], total: int, layer: Noise, relevant: Bool[Tensor, "k c"]
    ) -> None:
        super().__init__(name, calls, total, layer)
        self.register_buffer("relevant", relevant, persistent=False)


def _slopes(logits: Tensor, label: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Differentiate each image's logit of ``label`` by the maps, so that this can be differentiated again."""
    score = logits.gather(1, label[:, None]).sum()
    return list(torch.autograd.grad(score, maps, create_graph=True))


def _summed(gradients: Sequence[Tensor], sign: Literal["absolute", "positive"]) -> Float[Tensor, "n c"]:
    """Sum the sizes of gradients over positions, and over the calls of a module."""
    total = torch.zeros((), device=gradients[0].device)
    for gradient in gradients:
        sized = gradient.abs() if sign == "absolute" else gradient.relu()
        wide = torch.promote_types(sized.dtype, torch.float32)
        total = total + (sized if sized.ndim == 2 else sized.flatten(2).sum(2, dtype=wide))
    return total


def write_relevance(path: Path, maps: Mapping[str, Float[Tensor, "k c"]], **facts: str | int | float) -> None:
    """Write the relevance of channels, Eq. 3 or 4, by site; ``facts`` say how it was measured.

    Raises:
        DataError: it cannot be written.
    """
    write_tensors(
        path, {name: value.float().cpu().contiguous() for name, value in maps.items()}, {"kind": KIND, **facts}
    )


def read_relevance(path: str | Path) -> dict[str, Tensor]:
    """Read what :func:`write_relevance` wrote.

    Raises:
        AttachError: it is no such file.
    """
    who = f"{CARD.name}: {path or 'relevance'}"
    if not path:
        raise AttachError(
            f"{who}: must name a file of channel relevance; got none. hardy treat measures and writes it."
        )
    try:
        header, _ = read_header(Path(path))
        maps = read_tensors(Path(path))
    except HardyError as error:
        raise AttachError(f"{who}: must be a file of channel relevance. {error}") from error
    if header.get("kind") != KIND or any(value.ndim != 2 or not value.is_floating_point() for value in maps.values()):
        raise AttachError(f"{who}: must be a file of channel relevance, as hardy treat writes it; got another one.")
    return maps


@dataclass(frozen=True, kw_only=True)
class ModelDoctor:
    """The constraints of Model Doctor as a method.

    Attributes:
        relevance: File with the relevance of channels by class and site, which ``hardy treat`` writes before the
            treatment; needed where ``channel`` is above 0.
        channel: Weight of the channel-wise constraint, at least 0, on the mean over images (Eq. 5).
        space: Weight of the space-wise constraint, at least 0, likewise (Eq. 6; released code: 10). Needs data with
            ``background``; a batch without has none.
        sign: "absolute" gradients (paper), or the "positive" part only (code of 2022), in the channel-wise constraint.
        threshold: "mean", or a number in [0, 1): :func:`relevant_channels`.
        others: Of the runner-up, "all" channels (Eq. 5) or its "own" relevant ones (released code).
        noise: Standard deviation of the noise on the layer, in units of the feature, at least 0 (2021: 1; 2022: none).
        draws: Draws of noise a step (J), at least 1; the task loss sees the first.
        legacy_scaling: Divide the channel-wise constraint by the batch size once more, as the released code does.
        sites: "last_conv" (see the card), or modules.
    """

    relevance: str = ""
    channel: float = 10 / 128
    space: float = 0.0
    sign: Literal["absolute", "positive"] = "absolute"
    threshold: Literal["mean"] | float = "mean"
    others: Literal["all", "own"] = "all"
    noise: float = 1.0
    draws: int = 1
    legacy_scaling: bool = False
    sites: tuple[str, ...] = (LAST,)

    def __post_init__(self) -> None:
        me = "ModelDoctor"
        in_range(me, "channel", self.channel, 0, 1e6)
        in_range(me, "space", self.space, 0, 1e6)
        one_of(me, "sign", self.sign, SIGNS)
        one_of(me, "others", self.others, OTHERS)
        if self.threshold != "mean":
            in_range(me, "threshold", float(self.threshold), 0, math.nextafter(1, 0))
        in_range(me, "noise", self.noise, 0, 1e6)
        in_range(me, "draws", float(self.draws), 1, 1000)
        sites_given(me, self.sites)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Add noise to ``sites`` while training, and loss terms to ``Objective``.

        Raises:
            AttachError: no file of relevance, one of another net or of other sites, or a site without a map.
        """
        held = ModelDoctorInsert(self, seed=seed)
        found = [last_map(model, example) if site == LAST else (site, "") for site in self.sites]
        maps = read_relevance(self.relevance) if self.channel else {}
        classes = class_count(model, example, CARD.name)

        def tap(name: str, calls: tuple[int, ...], total: int, y: Tensor) -> Tap:
            if y.ndim != 4 and (self.space or y.ndim != 2):
                raise AttachError(
                    f"{CARD.name}: {name} must give (n, c, h, w); got {tuple(y.shape)}. Name other sites."
                )
            relevance = self._relevance(maps, name, calls, (classes, y.shape[1]))
            layer = Noise(seed=seed, purpose=f"{CARD.name}:{name}", sigma=self.noise)
            return NoiseTap(name, calls, total, layer, relevant_channels(relevance, threshold=self.threshold))

        taps = surgery.taps_at(model, [site for site, _ in found], tap, method=CARD.name, example=example)
        held.notes = tuple(note for _, note in found if note)
        return surgery.insert(model, held, method=CARD.name, taps=taps)

    def _relevance(
        self, maps: Mapping[str, Tensor], name: str, calls: tuple[int, ...], shape: tuple[int, int]
    ) -> Float[Tensor, "k c"]:
        """Choose the relevance of a site; all are relevant where there is no channel-wise constraint."""
        if not self.channel:
            return torch.full(shape, math.nan)
        site = f"{name}#{calls[0]}" if len(calls) == 1 else name
        each = [value for key, value in maps.items() if key.partition("#")[0] == name and "#" in key]
        whole = torch.stack(each).sum(0) if each and not calls and len({v.shape for v in each}) == 1 else None
        found = maps.get(site, maps.get(name, whole))
        if found is None or found.shape != shape:
            got = "sites " + ", ".join(maps) if found is None else f"{tuple(found.shape)}"
            raise AttachError(
                f"{CARD.name}: {self.relevance} must hold (classes, channels) = {shape} of {site}; got {got}. "
                "Measure it again, on this net."
            )
        return found


PRESETS = {
    "paper": ModelDoctor(channel=10.0, legacy_scaling=True, sign="absolute", threshold="mean", others="all", noise=1.0),
    "repo": ModelDoctor(channel=10.0, legacy_scaling=True, sign="positive", threshold=0.2, others="own", noise=0.0),
}
