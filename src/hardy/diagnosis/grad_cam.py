"""Grad-CAM of any net, and what can be said of such maps.

Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra. "Grad-CAM: visual explanations from deep networks via gradient-based
localization". ICCV 2017, https://arxiv.org/abs/1610.02391. The maps are made by captum (extra ``hardy[attention]``).
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy.attacks.guards import check_eval
from hardy.attacks.passes import sealed_rng
from hardy.attacks.precision import full_precision
from hardy.errors import ConfigError, LayerNotFoundError
from hardy.sites import INPUT
from hardy.tracing import trace

__all__ = ["available", "concentration", "grad_cam", "last_features", "load_captum", "overlap", "shares"]


def available() -> bool:
    """Tell whether captum is installed."""
    return importlib.util.find_spec("captum") is not None


def load_captum() -> Callable[..., Any]:
    """Import captum's Grad-CAM: slow, and only here.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from captum.attr import LayerGradCam
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"diagnose: the part 'attention' needs a package that is not installed ({error.name or error}). "
            "pip install 'hardy[attention]', or leave the part out."
        ) from error
    made: Callable[..., Any] = LayerGradCam
    return made


def grad_cam(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, "n"],
    *,
    site: str,
    batch_size: int = 128,
    seed: int = 0,
) -> Float[Tensor, "n h w"]:
    """Compute Grad-CAM by captum, enlarged to the size of the images by bilinear interpolation.

    Args:
        model: The plain net, in eval mode; it is left as it was.
        x: Images in [0, 1].
        target: The class that is asked for, per image.
        site: A module, or with ``@input`` behind it what enters it; its last call, where there are several.
        batch_size: Images per pass.
        seed: Of a net that draws numbers of its own.

    Returns:
        At least 0, in the units of logits, without gradients.

    Raises:
        ConfigError: captum is not installed.
        ParameterError: train mode.
    """
    check_eval(model, "attention")
    place = site.partition("#")[0]
    explain = load_captum()(model, model.get_submodule(place.removesuffix(INPUT)))
    made = []
    with torch.inference_mode(False), torch.enable_grad(), full_precision(x.device), sealed_rng(x.device, seed):
        for part in torch.split(torch.arange(len(x), device=x.device), batch_size):
            if len(part):
                leaf = x[part].clone().requires_grad_()
                maps = explain.attribute(
                    leaf, target[part], relu_attributions=True, attribute_to_layer_input=place.endswith(INPUT)
                )
                large = F.interpolate(maps.detach().float(), size=x.shape[2:], mode="bilinear", align_corners=False)
                made.append(large[:, 0])
    return torch.cat(made) if made else x.new_zeros(0, *x.shape[2:])


def last_features(model: nn.Module, x: Float[Tensor, "n c h w"]) -> str:
    """Find the last feature map of more than one pixel that the logits are made from: what the classifier pools.

    Raises:
        LayerNotFoundError: no module returns one.
    """
    found = trace(model, x)
    later: set[str] = set()  # captum sees the last call of a module
    for call in reversed(found.calls):
        shape, made = found.shape(call.out), found.output is not None and found.made(call.out, found.output)
        if len(shape) == 4 and max(shape[2:]) > 1 and made and call.name not in later:
            return found.site(call)
        later.add(call.name)
    raise LayerNotFoundError(
        f"attention: {type(model).__name__} must have a module that returns a feature map (n, c, h, w) of more than "
        "one pixel; it has none. Leave this part out."
    )


def shares(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Divide maps of at least 0 by their sums; one that is 0 everywhere stays so."""
    total = maps.sum((1, 2), keepdim=True)
    return torch.where(total > 0, maps / total.clamp_min(torch.finfo(maps.dtype).tiny), 0)


def concentration(maps: Float[Tensor, "n h w"], *, mass: float = 0.5) -> Float[Tensor, "n"]:
    """Measure the smallest share of the area that carries a share of the map; the last pixel counts in part.

    Args:
        maps: At least 0, not 0 everywhere.
        mass: The share of the sum, in (0, 1).

    Returns:
        In (0, mass]: ``mass`` for an even map, ``mass / (h * w)`` where one pixel has all.
    """
    falling = maps.flatten(1).double().sort(dim=1, descending=True).values
    falling = falling / falling.sum(1, keepdim=True)
    before = falling.cumsum(1) - falling
    whole = (before + falling <= mass).sum(1).clamp_max(falling.shape[1] - 1)
    left = mass - before.gather(1, whole[:, None])[:, 0]
    part = left / falling.gather(1, whole[:, None])[:, 0].clamp_min(1e-300)
    return ((whole + part.clamp(0, 1)) / falling.shape[1]).to(maps.dtype)


def overlap(a: Float[Tensor, "*n h w"], b: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """Measure how far two maps that sum to 1 agree: the sum of the smaller values, in [0, 1]."""
    return torch.minimum(a, b).sum((-2, -1))
