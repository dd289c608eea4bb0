"""What enters the classifier of a net: the features that its answer is read from."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hardy.attacks.passes import Passes
from hardy.errors import AttachError, LayerNotFoundError
from hardy.surgery import capture
from hardy.topology import classifier_inputs

__all__ = ["feature_sites", "features"]


def feature_sites(net: nn.Module, x: Float[Tensor, "n c h w"]) -> tuple[str, ...]:
    """Find what enters the classifier; nothing where there is none or it has not one row per image."""
    one = x[:1]
    Passes([net], size=1, n=1, device=x.device).logits(one, torch.zeros(len(one), dtype=torch.int64, device=x.device))
    try:
        sites = classifier_inputs(net, one)
    except (LayerNotFoundError, AttachError):  # AttachError: compiled or wrapped, where nothing can be captured
        return ()
    with capture(net, sites) as seen:
        net(one)
    return sites if seen and all(len(z) == 1 for z in seen.values()) else ()


def features(net: nn.Module, sites: Sequence[str], x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """Give what enters the classifier, flattened, float32, with gradients; the logits where there are no sites."""
    if not sites:
        logits: Tensor = net(x)
        return logits.float()
    with capture(net, sites, detach=False) as seen:
        net(x)
    return torch.cat([z.flatten(1).float() for z in seen.values()], dim=1)
