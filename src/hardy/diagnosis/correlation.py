r"""Which channels each class uses: how much its score depends on every feature map, layer by layer.

Feng, Hu, Wu, Yu, Song, Song. "Model Doctor: a simple gradient aggregation strategy for diagnosing and treating CNN
classifiers". AAAI 2022, https://arxiv.org/abs/2112.04934. With :math:`m_k` the k-th channel of a layer, :math:`z_n` the
score of class n, and the sums over positions:

    Eq. 3   :math:`a_k^n = \sum |\partial z_n / \partial m_k|`
    Eq. 4   :math:`\bar a_k^n = \frac{1}{J} \sum_j \sum |\partial z_n / \partial (m_k + \sigma^j)|`,

averaged over images of class n of which the net is sure and right. The score is the logit, as in the released code. The
paper's prose could not be read: equations are from pictures of it, the rest from the code, which took 100 images a
class and absolute gradients (2021), or 50 and the positive parts of gradients (2022).

One forward and one backward pass serve all layers: each gradient is reduced to one number per image and channel as soon
as it arrives, so that memory is that of one batch. No gradient of a weight is computed.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy.attacks.guards import check_eval, check_labels
from hardy.attacks.passes import sealed_rng
from hardy.attacks.precision import full_precision
from hardy.diagnosis.case import Sign
from hardy.diagnosis.gradients import GradientSums, Sums
from hardy.errors import CallError, DataError, ParameterError
from hardy.sites import resolve
from hardy.tracing import trace

__all__ = [
    "Correlations",
    "class_channel_map",
    "conv_sites",
    "correlations",
    "image_correlations",
    "sure_images",
]

GLOB = "*?["
MAPS = (2, 4)  # dimensions of what can be looked at


@dataclass(frozen=True, kw_only=True, eq=False)
class Correlations:
    """How much the score of each class depends on each channel.

    Attributes:
        maps: By layer, the mean over images of the class of the summed gradients of its score, float32, at least 0; a
            row of NaN for a class without images.
        images: How many images were behind each row.
        index: Which of the given images these were, ascending.
        passes: "forward" and "backward" passes, summed over images.
    """

    maps: dict[str, Float[Tensor, "k _"]]
    images: Int[Tensor, "k"]
    index: Int[Tensor, "m"]
    passes: dict[str, int]


def conv_sites(
    model: nn.Module, x: Float[Tensor, "n c h w"], layers: Sequence[str] | None = None, *, who: str = "diagnose"
) -> tuple[str, ...]:
    """Name the outputs to look at, in the order in which they are made.

    A site is ``name``, or ``name#call`` of a module that is called more than once.

    Args:
        model: The plain net; it is run once on the first image, without a trace.
        x: Images.
        layers: Sites or globs; None: all two-dimensional convolutions. Of what a glob matches, modules that are not
            called or return something else than (n, c, h, w) or (n, c) are left out.
        who: Asks, for messages.

    Raises:
        LayerNotFoundError: a pattern matches nothing.
        CallError: a module that is named is not called, or not that often.
        ParameterError: no layer is left, or one that is named returns something else than (n, c, h, w) or (n, c).
    """
    if isinstance(layers, str):
        raise ParameterError(f"{who}: layers must be a list of names; got {layers!r}. Write [{layers!r}].")
    with torch.inference_mode(False):
        seen = trace(model, x)
    shapes: dict[str, list[tuple[int, ...]]] = {}
    made: dict[str, int] = {}  # "name#call" -> when it returned
    for when, call in enumerate(seen.calls):
        shapes.setdefault(call.name, []).append(seen.shape(call.out))
        made[f"{call.name}#{call.number}"] = when
    if layers is None:
        layers = [name for name in shapes if isinstance(model.get_submodule(name), nn.Conv2d)]
        if not layers:
            raise ParameterError(f"{who}: the net must have nn.Conv2d layers that it calls; got none. Name layers.")
    named = {name for pattern in layers if not set(GLOB) & set(pattern) for name in resolve(model, [pattern])}
    found: dict[str, int] = {}
    for name, calls in resolve(model, layers).items():
        module = name.partition("@")[0]
        of = shapes.get(module, [])
        if name in named:
            _check_named(name, calls, of, who)
        for i in calls or range(len(of)):
            if i < len(of) and ("@" in name or len(of[i]) in MAPS):
                found[name if len(of) == 1 else f"{name}#{i}"] = made[f"{module}#{i}"]
    if not found:
        raise ParameterError(f"{who}: layers must name some that return (n, c, h, w); got {', '.join(layers)}.")
    return tuple(sorted(found, key=found.__getitem__))


def _check_named(name: str, calls: Sequence[int], shapes: Sequence[tuple[int, ...]], who: str) -> None:
    """Refuse a module that was named in full and cannot be looked at."""
    if len(shapes) <= max(calls, default=0):
        often = f" more than {max(calls)} times" if calls else " and return a tensor"
        raise CallError(f"{who}: {name} must be called{often}; it is, {len(shapes)} times. Name another layer.")
    if "@" not in name and not any(len(shapes[i]) in MAPS for i in calls or range(len(shapes))):
        raise ParameterError(f"{who}: {name} must return (n, c, h, w) or (n, c); got {shapes[0]}. Name another layer.")


def sure_images(logits: Float[Tensor, "n k"], y: Int[Tensor, "n"], *, top: int) -> Int[Tensor, "m"]:
    """Choose at most ``top`` images of each class: classified right, those of which the net is surest.

    Returns:
        Their places, ascending; of equally sure images the first.

    Raises:
        ParameterError: ``top`` below 1.
    """
    if top < 1:
        raise ParameterError(f"sure_images: top must be at least 1; got {top}.")
    z = logits.detach().double()
    own = z.gather(1, y[:, None])[:, 0]
    others = z.scatter(1, y[:, None], -torch.inf)
    sure = own - others.logsumexp(1)  # log odds: a probability near 1 has no digits left to sort by
    right = own > others.amax(1)  # a tie is no right answer, nor is NaN
    order = torch.argsort(sure.nan_to_num(-torch.inf), descending=True, stable=True)
    order = order[right[order]]
    place = torch.zeros_like(order)
    for c in sorted(set(y[order].tolist())):
        mine = y[order] == c
        place[mine] = torch.arange(int(mine.sum()), device=y.device)
    return order[place < top].sort().values


def class_channel_map(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, "n"],
    *,
    layers: Sequence[str] | None = None,
    top: int = 100,
    logits: Float[Tensor, "n k"] | None = None,
    sign: Sign = "absolute",
    draws: int = 0,
    sigma: float = 1.0,
    joint: bool = False,
    rows: Int[Tensor, "n"] | None = None,
    seed: int = 0,
    batch_size: int = 128,
) -> Correlations:
    """Compute the maps of class and channel over the images of which the net is sure (:func:`sure_images`).

    Args:
        model: The plain net, in eval mode.
        x: Images, float in [0, 1].
        y: True classes.
        layers: As for :func:`conv_sites`.
        top: Images per class, at most (the code of 2021: 100; of 2022: 50).
        logits: Of these images, where they are known; else one more forward pass finds them.
        sign: As for :func:`correlations`, as what follows.
        draws: Draws of noise.
        sigma: Standard deviation of the noise.
        joint: Noise on all layers at once.
        rows: Identity of each image.
        seed: Of the noise.
        batch_size: Images per pass.

    Raises:
        HardyError: as :func:`correlations`.
    """
    check_eval(model, "class_channel_map")
    if batch_size < 1:
        raise ParameterError(f"class_channel_map: batch_size must be at least 1; got {batch_size}.")
    sites, asked = conv_sites(model, x, layers), 0
    if logits is None:
        with torch.no_grad(), full_precision(x.device), sealed_rng(x.device, seed):
            logits = torch.cat([model(part.clone()) for part in torch.split(x, batch_size)])
        asked = len(x)
    check_labels(logits, y, "class_channel_map")
    index = sure_images(logits, y, top=top)
    rows = torch.arange(len(x), device=x.device) if rows is None else rows
    some = index if len(index) else index.new_zeros(1)  # where none is right, one image tells the number of channels
    found = correlations(
        model, x[some], y[some], layers=sites, num_classes=logits.shape[1], sign=sign,
        draws=draws, sigma=sigma, joint=joint, rows=rows[some], seed=seed, batch_size=batch_size,
    )  # fmt: skip
    passes = found.passes | {"forward": found.passes["forward"] + asked}
    if len(index):
        return dataclasses.replace(found, index=index, passes=passes)
    maps = {site: torch.full_like(map_, torch.nan) for site, map_ in found.maps.items()}
    return Correlations(maps=maps, images=torch.zeros_like(found.images), index=index, passes=passes)


def correlations(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, "n"],
    *,
    layers: Sequence[str],
    num_classes: int,
    sign: Sign = "absolute",
    draws: int = 0,
    sigma: float = 1.0,
    joint: bool = False,
    rows: Int[Tensor, "n"] | None = None,
    seed: int = 0,
    batch_size: int = 128,
) -> Correlations:
    """Compute Eq. 3, or Eq. 4 where there are draws, over all images given. The net is left as it was.

    Args:
        model: The plain net, in eval mode.
        x: Images, float in [0, 1].
        y: The class whose score is asked for, per image: its label.
        layers: Sites, as :func:`conv_sites` gives them; globs are resolved in the same way.
        num_classes: Outputs of the net.
        sign: "absolute" (the paper), or "positive": only gradients that raise the score (the code of 2022).
        draws: J of Eq. 4, in that many passes for each layer; 0: Eq. 3.
        sigma: Standard deviation of the normal noise, in the units of the feature maps (the code of 2021: 1).
        joint: Noise on all layers at once, J passes in all. A deviation: a layer then also sees the noise of others.
        rows: Identity of each image, the source of its noise; default: its place.
        seed: Of the noise.
        batch_size: Images per pass; bounds memory. Values do not depend on it but for rounding.

    Raises:
        ParameterError: train mode, a bad number or sign.
        LayerNotFoundError, CallError: as :func:`conv_sites`.
        ShapeError: an output that has not one row per image, or is neither (n, c, h, w) nor (n, c).
        DataError: no images, pixels outside [0, 1], labels outside the outputs.
    """
    if len(x) == 0:
        raise DataError("correlations: at least one image must be given; got none. Is any classified right?")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < num_classes:
        raise DataError(
            f"correlations: labels must be in 0 .. {num_classes - 1}; got {int(y.min())} .. {int(y.max())}."
        )
    sites = conv_sites(model, x, layers, who="correlations")
    work = GradientSums(model, x, y, sites, sign=sign, draws=draws, sigma=sigma, joint=joint, rows=rows, seed=seed)
    totals: Sums = {}
    with closing(work.batches(batch_size)) as batches:
        for part, sums in batches:
            for site, values in sums.items():
                if site not in totals:
                    totals[site] = torch.zeros(num_classes, values.shape[1], dtype=torch.float64, device=values.device)
                totals[site].index_add_(0, y[part], values.double())
    images = torch.bincount(y, minlength=num_classes)
    maps = {site: (total / images[:, None]).float() for site, total in totals.items()}  # 0 / 0 is NaN
    index = torch.arange(len(x), device=x.device)
    return Correlations(maps=maps, images=images, index=index, passes=work.passes())


def image_correlations(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, "n"],
    *,
    layers: Sequence[str],
    sign: Sign = "absolute",
    draws: int = 0,
    sigma: float = 1.0,
    joint: bool = False,
    rows: Int[Tensor, "n"] | None = None,
    seed: int = 0,
    batch_size: int = 128,
) -> dict[str, Float[Tensor, "n _"]]:
    """Compute what :func:`correlations` takes the mean of: by layer, one number per image and channel, at least 0."""
    sites = conv_sites(model, x, layers, who="correlations")
    work = GradientSums(model, x, y, sites, sign=sign, draws=draws, sigma=sigma, joint=joint, rows=rows, seed=seed)
    with closing(work.batches(batch_size)) as batches:
        parts = [sums for _, sums in batches]
    return {site: torch.cat([part[site] for part in parts]) for site in parts[0]}
