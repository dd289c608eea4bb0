"""How much margin no perturbation of input and weights can take from a small feed-forward net: interval and norm form.

The interval form carries, for every activation, the smallest and the largest value that it can take (Gowal et al. "On
the effectiveness of interval bound propagation for training verifiably robust models", 2018,
https://arxiv.org/abs/1810.12715), with weights that are intervals too. The sum of the smallest of the four corners of
every product is written with matrix products: weights and activations are split by their signs. Where an interval of
weights and one of activations both contain 0 that counts two corners instead of one, so the result is cut with that of
centres and radii (Wc with |W| r + E (|c| + r) on both sides: Rump, "Fast and parallel interval arithmetic", BIT 1999).
The last layer is taken on differences of its rows. The norm form is that of :mod:`hardy.margin`, which is never
tighter.

Perturbations of input and weights together: Tsai, Hsu, Yu, Chen. "Non-singular adversarial robustness of neural
networks". ICASSP 2021, https://arxiv.org/abs/2102.11935 (whose own text could not be read whole: the bounds are derived
anew).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy.certificates._checks import at_least, eval_mode, proper_float32
from hardy.chain import Layer, Monotone, Scaled, Weighted, check_same, read_chain
from hardy.errors import DataError, ParameterError
from hardy.margin import norm_margin, smallest_margin

__all__ = ["interval_margin", "margin_bound"]

Product = Callable[[Tensor, Tensor], Tensor]  # (activations, weights) -> sums of their products


def margin_bound(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, "n"],
    *,
    eps: float,
    weight_eps: float = 0.0,
    form: Literal["interval", "norm"] = "interval",
    batch_size: int = 128,
) -> Float[Tensor, "n"]:
    """Bound from below the true logit minus the largest other one, under every perturbation of input and weights.

    Perturbed are every pixel by at most ``eps``, inside the box [0, 1] (the norm form does not use the box), and every
    weight of every linear layer and convolution by at most ``weight_eps``, for each image anew; biases and norm layers
    stay. Whatever an adversary does inside these limits, the margin does not fall below the bound: where it is positive
    the image is certified. Rounding errors of floating-point arithmetic are not accounted for: a bound within about
    1e-5 of 0 proves nothing.

    Args:
        model: A plain classifier in eval mode that is a chain of layers: linear, convolutions, batch norms, monotone
            1-Lipschitz activations, pooling, flattening; linear at the end. The deeper, the looser the bound.
        x: Images, pixels in [0, 1].
        y: True classes.
        eps: In pixels in [0, 1], at least 0. Every l2 or l1 ball of that radius is inside.
        weight_eps: In units of the weights as the model holds them, before norms are folded, at least 0.
        form: "interval": tighter; "norm": from norms of the rows of the weights, per layer one number.
        batch_size: Images per pass.

    Returns:
        Bounds on the margin, without gradients. With both limits 0: the margin itself.

    Raises:
        AttachError: the model is no such chain; the message names the layer, or says that the layers do not give the
            model's logits of some image.
        ParameterError: a number out of range, another form, or train mode.
        DataError: pixels outside [0, 1], or labels outside the outputs.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
        >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]]))
        >>> margin_bound(net, torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]), eps=0.25)
        tensor([1.])
    """
    at_least("margin_bound", 0, eps=eps, weight_eps=weight_eps)
    at_least("margin_bound", 1, batch_size=batch_size)
    if form not in {"interval", "norm"}:
        raise ParameterError(f'margin_bound: form must be "interval" or "norm"; got {form!r}.')
    eval_mode(model, "margin_bound")
    if not (len(x) > 0 and float(x.min()) >= 0 and float(x.max()) <= 1):
        raise DataError("margin_bound: x must be images with pixels in [0, 1]. Normalisation is a layer of the model.")
    bound = interval_margin if form == "interval" else norm_margin
    with torch.no_grad(), proper_float32(x.device):
        body, head = read_chain(model, x, who="margin_bound").layers(model)
        if int(y.min()) < 0 or int(y.max()) >= len(head.weight):
            raise DataError(f"margin_bound: labels must be in 0 .. {len(head.weight) - 1}, the model's outputs.")
        parts = zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)
        bounds = []
        for a, b in parts:
            check_same(model, [*body, head], a, who="margin_bound")
            bounds.append(bound(body, head, a, b, eps=eps, weight_eps=weight_eps))
        return torch.cat(bounds)


def interval_margin(
    body: Sequence[Layer],
    head: Weighted,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, "n"],
    *,
    eps: float,
    weight_eps: float,
) -> Float[Tensor, "n"]:
    """Bound the margin by intervals; arguments as for :func:`hardy.margin.norm_margin`."""
    z = x.to(head.weight.dtype)
    low, high = (z - eps).clamp(min=0), (z + eps).clamp(max=1)
    for layer in body:
        low, high = _through(layer, low, high, weight_eps)
    loose = weight_eps * head.scale.abs()
    margins = torch.empty(len(z), len(head.weight), dtype=z.dtype, device=z.device)
    for label in sorted(set(y.tolist())):  # one difference of rows per class that is there, not per image
        rows = (y == label).nonzero()[:, 0]
        both = loose[label] + loose if weight_eps > 0 else None
        least, _ = _products(F.linear, head.weight[label] - head.weight, both, low[rows], high[rows])
        margins[rows] = least + head.bias[label] - head.bias
    return smallest_margin(margins, y)


def _through(layer: Layer, low: Tensor, high: Tensor, weight_eps: float) -> tuple[Tensor, Tensor]:
    """Send intervals through one layer."""
    if isinstance(layer, Monotone):
        return layer(low), layer(high)
    if isinstance(layer, Scaled):
        one, other = layer(low), layer(high)
        return torch.minimum(one, other), torch.maximum(one, other)
    loose = weight_eps * layer.scale.abs() if weight_eps > 0 else None
    least, most = _products(layer.product, layer.weight, loose, low, high)
    bias = layer.bias.reshape(-1, *[1] * (least.ndim - 2))
    return least + bias, most + bias


def _products(
    product: Product, weight: Float[Tensor, "out ..."], loose: Float[Tensor, "out"] | None, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Bound sums of weights times activations, with each weight of a row known up to the row's ``loose``."""
    centre, radius = (low + high) / 2, (high - low) / 2
    middle, spread = product(centre, weight), product(radius, weight.abs())
    if loose is None:
        return middle - spread, middle + spread
    width = loose.reshape(-1, *[1] * (weight.ndim - 1)).expand_as(weight)
    spread = spread + product(centre.abs() + radius, width)
    most, least = _corners(product, weight, width, low, high), -_corners(product, -weight, width, low, high)
    return torch.maximum(middle - spread, least), torch.minimum(middle + spread, most)


def _corners(product: Product, weight: Tensor, width: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Add up the largest corners, of the positive and the negative part of every activation apart."""
    more, less = weight + width, weight - width  # the larger weight is the worse one for activations above 0
    above = product(high.clamp(min=0), more.clamp(min=0)) + product(low.clamp(min=0), more.clamp(max=0))
    return above + product(high.clamp(max=0), less.clamp(min=0)) + product(low.clamp(max=0), less.clamp(max=0))
