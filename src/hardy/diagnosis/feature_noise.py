"""Answers of a net with noise on one of its feature maps, and how large that feature map is."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.attacks.goal import predicted
from hardy.attacks.guards import check_eval
from hardy.attacks.passes import sealed_rng
from hardy.attacks.precision import full_precision
from hardy.errors import ParameterError, ShapeError
from hardy.inserts import Insert
from hardy.surgery import capture
from hardy.taps import Tap

__all__ = ["check_stds", "feature_scale", "noisy_predictions"]


def noisy_predictions(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    *,
    site: str,
    stds: Sequence[float],
    rows: Int[Tensor, "n"],
    seed: int,
    batch_size: int = 128,
) -> Int[Tensor, "s n"]:
    """Predict with normal noise on the output of a layer, of one pattern per image that is scaled.

    Args:
        model: The plain net, in eval mode; it is left as it was.
        x: Images in [0, 1].
        site: A module, with its call where there are several; ``@input`` behind it for what enters it.
        stds: Standard deviations in the units of that output, at least 0; 0 leaves it as it is, bit for bit.
        rows: Identities of the images, the source of the noise.
        seed: Of the noise.
        batch_size: Images per pass.

    Returns:
        Classes by standard deviation and image; -1 where a logit is NaN.

    Raises:
        ParameterError: train mode, a bad standard deviation or batch size.
        LayerNotFoundError: no such layer.
        ShapeError: an output of the layer without one row per image.
    """
    check_eval(model, "isolation")
    check_stds(stds)
    if batch_size < 1:
        raise ParameterError(f"isolation: batch_size must be at least 1; got {batch_size}.")
    surgery.resolve(model, [site])
    tap = _Noise(site)
    keys = seeding.keys(seeding.root(seed, f"isolation:{site}"), rows)
    found = torch.empty(len(stds), len(x), dtype=torch.int64, device=x.device)
    inserted = surgery.insert(model, Insert(None, seed=0), method="isolation", taps=[tap])
    with inserted, torch.no_grad(), full_precision(x.device), sealed_rng(x.device, seed):
        for i, std in enumerate(stds):
            for part in torch.split(torch.arange(len(x), device=x.device), batch_size):
                if len(part):
                    tap.keys, tap.std = keys[part], std
                    found[i, part] = predicted(model(x[part].clone()))
    return found


def feature_scale(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    after: Float[Tensor, "m c h w"],
    before: Float[Tensor, "m c h w"],
    *,
    site: str,
    batch_size: int = 128,
) -> tuple[float, float]:
    """Measure how large the outputs of a layer are, and how far a change of images moves them.

    Args:
        model: The plain net, in eval mode.
        x: Images.
        after: Changed images.
        before: The same ones unchanged.
        site: The layer.
        batch_size: Images per pass.

    Returns:
        Standard deviation of the outputs over images, channels and positions; and the root mean square of the moves,
        NaN without changed images.
    """

    def outputs(images: Tensor) -> Tensor:
        with capture(model, [site]) as seen:
            model(images.clone())
        return next(iter(seen.values())).double()

    one = two = moved = torch.zeros((), dtype=torch.float64, device=x.device)
    count = changed = 0
    with torch.no_grad(), full_precision(x.device), sealed_rng(x.device, 0):
        for part in torch.split(x, batch_size):
            z = outputs(part)
            one, two, count = one + z.sum(), two + z.square().sum(), count + z.numel()
        for part in torch.split(torch.arange(len(after), device=x.device), batch_size):
            if len(part):
                difference = outputs(after[part]) - outputs(before[part])
                moved, changed = moved + difference.square().sum(), changed + difference.numel()
    own = math.sqrt(max(0.0, float(two) / count - (float(one) / count) ** 2))
    return own, math.sqrt(float(moved) / changed) if changed else math.nan


class _Noise(Tap):
    """Adds noise to the output of one call of a module."""

    def __init__(self, site: str) -> None:
        name, _, call = site.partition("#")
        super().__init__(name, (int(call),) if call else (), total=2**31)
        self.site, self.std, self.keys = site, 0.0, torch.empty(0, dtype=torch.int64)

    def act(self, y: Tensor, call: int) -> Tensor | None:
        """Add the noise of these images."""
        if y.ndim < 2 or len(y) != len(self.keys):
            raise ShapeError(
                f"isolation: {self.site} must return one row per image, (n, ...) with n = {len(self.keys)}; got "
                f"{tuple(y.shape)}. Name another layer."
            )
        if self.std == 0:
            return None
        return y + self.std * seeding.normal(seeding.fold(self.keys, call), 0, y.shape[1:]).to(y.dtype)


def check_stds(stds: Sequence[float]) -> None:
    """Demand standard deviations.

    Raises:
        ParameterError: none, or one that is negative or not finite.
    """
    if not stds or not all(0 <= std < math.inf for std in stds):
        raise ParameterError(f"isolation: stds must be finite numbers of at least 0, one or more; got {list(stds)}.")
