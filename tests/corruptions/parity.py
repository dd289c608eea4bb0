"""What the tests of the corruptions share: reference code by path, images, scripted random numbers, a comparison."""

import runpy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardy import seeding

SCALES = ("cifar", "imagenet")
SIGMAS = 4.5  # standard errors that two means may lie apart; 1e-5 of all comparisons exceed it by chance


def load(family: str) -> dict[str, Any]:
    """Run reference_FAMILY.py, since the tests are no package."""
    return runpy.run_path(str(Path(__file__).with_name(f"reference_{family}.py")))


def keys(n: int, purpose: str = "test") -> Tensor:
    return seeding.keys(seeding.root(0, purpose), torch.arange(n))


def pictures(n: int, channels: int, height: int, width: int) -> Tensor:
    """Smooth images with grain, black, white and gray pixels, on 256 levels."""
    rng = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(n, channels, 4, 4, generator=rng), size=(height, width), mode="bilinear"
    )
    x = 1.1 * smooth + 0.2 * torch.rand(n, channels, height, width, generator=rng) - 0.15
    x[:, :, 0, 0], x[:, :, 0, 1], x[:, :, 1, 0] = 0, 1, 0.4
    return (x.clamp(0, 1) * 255).round() / 255


def by_reference(function: Callable[..., Any], x: Tensor, severity: int, scale: str, rng: object) -> Tensor:
    """Corrupt image by image; ``rng`` is one generator or one per image."""
    each = rng if isinstance(rng, list) else [rng] * len(x)
    out = [
        function(image.double().permute(1, 2, 0).numpy(), severity, scale, r) for image, r in zip(x, each, strict=True)
    ]
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2)


class Script:
    """Stands for NumPy's generator and deals out given uniform and normal numbers, one array a call."""

    def __init__(self, draws: Iterable[Tensor]) -> None:
        self.draws = iter([draw.double().numpy() for draw in draws])

    def uniform(self, low: float, high: float, size: object = None) -> NDArray[np.float64]:
        return low + (high - low) * self._next(size)

    def normal(self, mean: float, deviation: float, size: object = None) -> NDArray[np.float64]:
        return mean + deviation * self._next(size)

    def integers(self, high: int) -> int:
        return int(self._next(None) * high)

    def _next(self, size: object) -> NDArray[np.float64]:
        draw = next(self.draws)
        assert size is None or draw.shape == size
        return draw


def statistics(changed: Tensor, x: Tensor) -> Tensor:
    """Give three numbers per image: mean size of the change, its spread, and how rough the image is afterwards."""
    delta = (changed.double() - x).flatten(1)
    rough = changed.double().diff(dim=3).abs().flatten(1).mean(dim=1)
    return torch.stack([delta.abs().mean(dim=1), delta.std(dim=1), rough])


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Give the largest difference of means of :func:`statistics`, in standard errors."""
    error = (ours.var(dim=1) / ours.shape[1] + theirs.var(dim=1) / theirs.shape[1]).sqrt()
    return float(((ours.mean(dim=1) - theirs.mean(dim=1)).abs() / error.clamp(min=1e-12)).max())
