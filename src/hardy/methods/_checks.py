"""Range checks, wordings and a product that the methods share."""

import math
from collections.abc import Sequence

from torch import Tensor

from hardy.errors import ParameterError

__all__ = ["box_ranges", "in_range", "one_of", "scaled", "sites_given", "some"]


def in_range(method: str, name: str, value: float, low: int | float, high: int | float) -> None:
    """Raise ParameterError unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise ParameterError(f"{method}: {name} must be in [{low:g}, {high:g}]; got {value}.")


def one_of(method: str, name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ParameterError unless ``value`` is one of ``known``."""
    if value not in known:
        raise ParameterError(f"{method}: {name} must be one of {', '.join(known)}; got {value!r}.")


def box_ranges(method: str, *, area: tuple[float, float], aspect: tuple[float, float]) -> None:
    """Raise ParameterError unless both are ranges from which boxes can be drawn."""
    if not 0 < area[0] <= area[1] <= 1:
        raise ParameterError(f"{method}: area must be 0 < low <= high <= 1; got {area}.")
    if not (0 < aspect[0] <= aspect[1] and math.isfinite(aspect[1])):
        raise ParameterError(f"{method}: aspect must be 0 < low <= high; got {aspect}.")


def sites_given(method: str, sites: Sequence[str]) -> None:
    """Raise ParameterError unless there is a site, and ``sites`` is a list of them."""
    if isinstance(sites, str) or not sites:
        raise ParameterError(f"{method}: sites must be one or more names, as in ('stem',); got {sites!r}.")


def some(names: Sequence[str]) -> str:
    """List the first three of many names, and their number."""
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} ({len(names)} in all)"


def scaled(x: Tensor, kept: Tensor, factor: float) -> Tensor:
    """Keep some of ``x``, by a mask that broadcasts to it, times a factor.

    One product with the small mask where its dtype can hold the factor; half precision would round it by up to 0.4 %.
    """
    mask = kept.to(x.dtype)
    return x * mask * factor if x.element_size() < 4 else x * (mask * factor)
