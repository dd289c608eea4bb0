"""What the caller may pass to ``evaluate``, brought into one form."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from hardy.errors import DataError, ParameterError, ShapeError
from hardy.evaluation.context import Source

__all__ = ["Batches", "Nets", "device_of", "identities", "images", "sources_of"]

Batches = Iterable[tuple[Tensor, Tensor]]
Nets = Sequence[nn.Module | tuple[str, nn.Module]]


def device_of(model: nn.Module) -> torch.device:
    """Give the device of the first parameter or buffer; the CPU if there is none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def images(
    x: Tensor | Batches, y: Tensor | None, device: torch.device, *, who: str = "evaluate"
) -> tuple[Tensor, Tensor]:
    """Give images (n, c, h, w) in float32 and labels (n,) in int64, on the device; a loader is read to its end.

    Raises:
        ParameterError: ``y`` missing beside a tensor, or given beside a loader.
        ShapeError: other shapes.
        DataError: no images, images that are not floating-point, labels that are not integers.
    """
    if isinstance(x, Tensor) != (y is not None):
        got = "a tensor without y" if y is None else "a loader and y"
        raise ParameterError(f"{who}: pass tensors x and y, or one loader of (x, y) batches; got {got}.")
    if not isinstance(x, Tensor):
        batches = list(x)
        if not batches:
            raise DataError(f"{who}: the loader gave no batch. Check its data set and sampler.")
        x, y = torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
    if y is None or x.ndim != 4 or y.shape != x.shape[:1]:
        labels = None if y is None else tuple(y.shape)
        raise ShapeError(f"{who}: x must be (n, c, h, w) and y (n,); got {tuple(x.shape)}, {labels}. Match them.")
    if len(x) == 0:
        raise DataError(f"{who}: there must be at least one image; got none. Check the split and the limit.")
    if not x.is_floating_point():
        raise DataError(f"{who}: x must be float pixels in [0, 1]; got {x.dtype}. Convert: x.float() / 255.")
    if y.is_floating_point() or y.dtype == torch.bool:
        raise DataError(f"{who}: y must be integer class numbers; got {y.dtype}. Convert with y.long().")
    return x.detach().to(device, torch.float32), y.to(device, torch.int64)


def identities(rows: Tensor | None, y: Tensor, *, who: str = "evaluate") -> Tensor:
    """Give the identity of each image: ``rows``, or its place.

    Raises:
        ShapeError: not one integer per image.
    """
    if rows is None:
        return torch.arange(len(y), device=y.device)
    if rows.shape != y.shape or rows.is_floating_point() or rows.dtype == torch.bool:
        raise ShapeError(f"{who}: rows must be {len(y)} integers; got {rows.dtype} {tuple(rows.shape)}. Match x.")
    return rows.to(y)


def sources_of(sources: Nets, siblings: Nets, base: nn.Module | None) -> tuple[Source, ...]:
    """Name the nets for transfer: given names, "source 0", "sibling 0" and so on, "base".

    Raises:
        ParameterError: two nets of one name.
    """
    made = []
    for i, net in enumerate(sources):
        name, module = net if isinstance(net, tuple) else (f"source {i}", net)
        made.append(Source(name, module, "independent"))
    for i, net in enumerate(siblings):
        name, module = net if isinstance(net, tuple) else (f"sibling {i}", net)
        made.append(Source(name, module, "gray-box"))
    if base is not None:
        made.append(Source("base", base, "base"))
    names = [source.name for source in made]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ParameterError(f"evaluate: sources must have different names; got {twice[0]!r} twice. Rename one.")
    return tuple(made)
