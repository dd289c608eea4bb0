"""Nets, published weights and normalisation of timm and torchvision. Their names are checked before they come here."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hardy.errors import ParameterError

__all__ = ["Native", "Stats", "timm_native", "timm_net", "torchvision_native", "torchvision_net", "torchvision_state"]

log = logging.getLogger(__name__)

Stats = tuple[tuple[float, ...], tuple[float, ...]]
Native = tuple[Stats | None, int | None]  # mean and std, height and width
# these two map ImageNet's normalisation to 0.5 and 0.5 inside; here the normalisation outside does that
HALF_INSIDE = ("googlenet", "inception_v3")
# what downloading without a network raises, whichever client timm and torchvision use
DOWNLOAD = (OSError, RuntimeError, ValueError)


def timm_net(name: str, in_channels: int, args: Mapping[str, Any], *, download: bool) -> nn.Module:
    """Build a timm net; with ``download`` timm fetches its weights and fits them to the channels and classes."""
    import timm

    try:
        net: nn.Module = timm.create_model(name, pretrained=download, in_chans=in_channels, **args)
    except DOWNLOAD as error:
        if download:
            raise _no_download(f"timm:{name}", error) from error
        raise
    published, own = (getattr(net, "pretrained_cfg", None) or {}).get("num_classes"), getattr(net, "num_classes", None)
    if download and published not in {None, own}:
        log.warning("timm:%s: %d classes, the net has %d: new, untrained head", name, published, own)
    return net


def timm_native(net: nn.Module, *, pretrained: bool) -> Native:
    """Give the published mean, std and input size of a timm net; the size only where the net or its weights fix it."""
    config: Mapping[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    native = int(size[-1]) if size and (pretrained or config.get("fixed_input_size")) else None
    has_stats = config.get("mean") and config.get("std")
    return ((tuple(config["mean"]), tuple(config["std"])) if has_stats else None), native


def torchvision_net(name: str, in_channels: int, args: Mapping[str, Any]) -> nn.Module:
    """Build a torchvision net without auxiliary heads; its first convolution is replaced if the images are not RGB."""
    from torchvision import models

    extra = {"aux_logits": False, "init_weights": True} if name in HALF_INSIDE else {}
    net: nn.Module = models.get_model(name, weights=None, **extra, **args)  # type: ignore[attr-defined]  # no __all__
    if in_channels != 3:
        first, old = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
        owner, _, attribute = first.rpartition(".")
        setattr(net.get_submodule(owner), attribute, _same_conv(old, in_channels))
    return net


def torchvision_state(name: str) -> Mapping[str, torch.Tensor]:
    """Download the weights that torchvision recommends for a net.

    Raises:
        ParameterError: there are none, or no network.
    """
    from torchvision import models

    try:
        weights = models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]  # no __all__
        state: Mapping[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (*DOWNLOAD, AttributeError) as error:
        raise _no_download(f"torchvision:{name}", error) from error
    return state


def torchvision_native(name: str, *, pretrained: bool) -> Native:
    """Give mean, std and crop size of the weights that torchvision recommends for a net; nothing without weights."""
    from torchvision import models

    published: Any = models.get_model_weights(name) if pretrained else None  # type: ignore[attr-defined]  # no __all__
    if not published:
        return None, None
    transforms = published.DEFAULT.transforms()
    stats = ((0.5,), (0.5,)) if name in HALF_INSIDE else (tuple(transforms.mean), tuple(transforms.std))
    return stats, int(transforms.crop_size[0])


def _same_conv(old: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """Make a convolution like ``old`` for another number of channels, with new weights."""
    kernel, stride = (old.kernel_size[0], old.kernel_size[1]), (old.stride[0], old.stride[1])
    padding = old.padding if isinstance(old.padding, str) else (old.padding[0], old.padding[1])
    return nn.Conv2d(in_channels, old.out_channels, kernel, stride, padding, bias=old.bias is not None)


def _no_download(name: str, error: Exception) -> ParameterError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return ParameterError(
        f"model {name}: the published weights cannot be had ({reason}). Check the network, or pass a file of weights: "
        f"pretrained='weights.safetensors'."
    )
