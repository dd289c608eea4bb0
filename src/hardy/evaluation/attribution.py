"""Attributions: how much each pixel counts for the true class. By default the gradient; any callable plugs in.

Simonyan, Vedaldi, Zisserman. "Deep inside convolutional networks: visualising image classification models and saliency
maps". ICLR workshop 2014, https://arxiv.org/abs/1312.6034 (section 3.1).

A model here normalises its own input, so an attribution sees the pixels that the model was trained for; the code
released with https://arxiv.org/abs/2406.09407 gives its saliency net pixels without the normalisation.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy.attacks.foreign import name_of, untouched
from hardy.attacks.goal import Goal
from hardy.attacks.passes import Passes
from hardy.errors import DataError, ShapeError
from hardy.evaluation.context import Context
from hardy.evaluation.material import Attribution
from hardy.ranks import Rows

__all__ = ["attribution_name", "attributions", "saliency"]

OWN = "gradient of the true class's logit"


def saliency(model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, "n"]) -> Float[Tensor, "n h w"]:
    """Measure the slope of the true class's logit at every pixel: the largest absolute value over the channels.

    It is noisy from pixel to pixel; occlusion sums it over patches. A steep slope says where the answer is sensitive,
    which is not all that it rests on. A model that is random in eval mode is asked once.

    Args:
        model: In eval mode; returns logits (n, k).
        x: Pixels in [0, 1].
        y: True classes.

    Returns:
        At least 0 and without gradient; 0 where the gradient is not finite.
    """
    rows = torch.arange(len(x), device=x.device)
    goal = Goal(y, y, torch.zeros_like(y, dtype=torch.bool))
    passes = Passes([model], size=len(x), n=len(x), device=x.device)
    return passes.gradient(x, rows, goal, _own_logit)[1].abs().amax(dim=1)


def attributions(context: Context) -> Float[Tensor, "n h w"]:
    """Ask ``context.material.attribution``, or :func:`saliency`, about all images, batch by batch.

    :func:`saliency` is that of the differentiable twin, if there is one: the model itself may mask its gradients.
    Modes, buffers and gradients of the model are put back as they were.

    Returns:
        float32, any sign, without gradient.

    Raises:
        ShapeError: the callable returns something else than floating-point numbers (n, h, w).
        DataError: one of them is not finite.
    """
    ask = context.material.attribution or saliency
    net = context.model if context.material.attribution is not None else context.twin or context.model

    def work(rows: Tensor) -> Rows:
        x = context.x[rows]
        given = ask(net, x, context.y[rows])
        _check(given, x, ask)
        return {"relevance": given.detach().to(x)}

    with untouched(net), torch.inference_mode(False), torch.enable_grad():
        found = context.share(context.batches(len(context.x)), work)
    return torch.cat([part["relevance"] for part in found])


def attribution_name(attribution: Attribution | None) -> str:
    """Name what marks the salient pixels; a callable by its ``__name__``, or that of its class."""
    return OWN if attribution is None else name_of(attribution)


def _own_logit(logits: Float[Tensor, "m k"], goal: Goal) -> Float[Tensor, "m"]:
    return logits.gather(1, goal.label[:, None])[:, 0]


def _check(given: object, x: Float[Tensor, "n c h w"], ask: Attribution) -> None:
    wanted = (len(x), *x.shape[2:])
    if not isinstance(given, Tensor) or given.shape != wanted or not given.is_floating_point():
        got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ShapeError(
            f"{name_of(ask)}: an attribution (model, x, y) must return floating-point numbers (n, h, w) = {wanted}; "
            f"got {got}. Sum it over the channels and resize it to the image."
        )
    bad = int((~given.isfinite()).flatten(1).any(dim=1).sum())
    if bad:
        raise DataError(
            f"{name_of(ask)}: attributions must be finite; got NaN or infinity in {bad} of {len(x)} images. Repair "
            "the callable, or leave out the axis."
        )
