r"""Randomised smoothing: the class that a net gives most often under Gaussian noise, and how far it is safe.

Cohen, Rosenfeld, Kolter. "Certified adversarial robustness via randomized smoothing". ICML 2019,
https://arxiv.org/abs/1902.02918 (Theorem 1 with the bound 1 - p on the second class; PREDICT and CERTIFY of section
3.2). The smoothed classifier gives the class that the net most probably gives to the image with normal noise added. If
that class has at least probability p > 1/2, no perturbation shorter (Euclidean length) than
:math:`\sigma \Phi^{-1}(p)` changes it. p is bounded from the answers to a number of noisy copies, so that the
certificate of each image is wrong with probability ``alpha`` at most.

What is certified is the smoothed classifier, not the net: an answer costs hundreds of passes, and a net that was not
trained with noise may be right on few noisy images.

The noise is not clipped to the box [0, 1], as in the paper: the net sees what the theorem speaks of. (Clipping would be
a part of the net, and as safe, but another classifier.) A net that answers at random may be smoothed too, if every row
of a batch draws by itself: p is then over both kinds of chance. Where rows share a draw the answers are not
independent, and ``alpha`` does not hold. Rounding errors are not accounted for, nor that noise made of 24-bit numbers
ends at 5.9 standard deviations.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import bdtr, ndtri
from torch import Tensor, nn

from hardy import seeding
from hardy.certificates._checks import above, at_least, eval_mode, probability, proper_float32
from hardy.errors import ParameterError, ShapeError
from hardy.stats import clopper_pearson

__all__ = ["ABSTAIN", "certified_radius", "certify", "largest_radius", "predict", "votes"]

ABSTAIN = -1  # is no class


def certify(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    *,
    sigma: float,
    draws: int,
    select: int = 100,
    alpha: float,
    key: Int[Tensor, "n"],
    batch_size: int = 128,
) -> tuple[Int[Tensor, "n"], Float[Tensor, "n"]]:
    """Predict with the smoothed classifier, with the radius in which the prediction cannot change.

    Args:
        model: Returns logits (n, k) for images; in eval mode. NaN logits are an answer for no class.
        x: Images, pixels in [0, 1].
        sigma: Standard deviation of the noise, in pixels in [0, 1], above 0.
        draws: Noisy copies of each image that the probability is bounded from (n in the paper).
        select: Further ones, from which the class is chosen beforehand (n_0; 100 is the paper's).
        alpha: Probability that the certificate of one image is wrong, in (0, 1).
        key: One int64 per image, the source of its noise.
        batch_size: Rows per pass; does not change the noise.

    Returns:
        Classes, :data:`ABSTAIN` where no class surely has more than half of the probability; and Euclidean radii in
        pixels in [0, 1], float32, 0 where it abstains.

    Raises:
        ParameterError: a number out of range, train mode, or so few draws that no answers could certify anything.
        ShapeError: the model does not return (n, k).
    """
    largest_radius(sigma=sigma, draws=draws, alpha=alpha)
    at_least("certify", 1, select=select)
    first = votes(model, x, sigma=sigma, draws=select, key=seeding.fold(key, 0), batch_size=batch_size)
    then = votes(model, x, sigma=sigma, draws=draws, key=seeding.fold(key, 1), batch_size=batch_size)
    chosen = first.argmax(dim=1)
    count = then.gather(1, chosen[:, None])[:, 0]
    radius = certified_radius(count, sigma=sigma, draws=draws, alpha=alpha)
    return torch.where(radius > 0, chosen, ABSTAIN), radius


def predict(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    *,
    sigma: float,
    draws: int,
    alpha: float,
    key: Int[Tensor, "n"],
    batch_size: int = 128,
) -> Int[Tensor, "n"]:
    """Predict with the smoothed classifier where it is clear which class is the most probable, without a radius.

    Args:
        model: As for :func:`certify`, like the others.
        x: Images, pixels in [0, 1].
        sigma: Standard deviation of the noise.
        draws: Noisy copies of each image.
        alpha: Probability that a class is given that is not the most probable one.
        key: One int64 per image.
        batch_size: Rows per pass.

    Returns:
        Classes, :data:`ABSTAIN` where the binomial test between the two most frequent answers is not significant.

    Raises:
        ParameterError: a number out of range, or train mode.
        ShapeError: the model does not return (n, k).
    """
    probability("predict", alpha, 1)
    count = votes(model, x, sigma=sigma, draws=draws, key=seeding.fold(key, 0), batch_size=batch_size)
    best = count.topk(2, dim=1)
    most, second = best.values.cpu().numpy().T
    p = 2 * bdtr(second, most + second, 0.5)
    clear = torch.from_numpy((p <= alpha) & (most > second)).to(x.device)
    return torch.where(clear, best.indices[:, 0], ABSTAIN)


def votes(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    *,
    sigma: float,
    draws: int,
    key: Int[Tensor, "n"],
    batch_size: int,
) -> Int[Tensor, "n k"]:
    """Count how often the model answers each class under noise.

    Args:
        model: Returns logits (n, k) for images; in eval mode. NaN logits are an answer for no class.
        x: Images, pixels in [0, 1].
        sigma: Standard deviation of the noise, in pixels in [0, 1], above 0.
        draws: Noisy copies of each image.
        key: One int64 per image, the source of its noise.
        batch_size: Rows per pass.

    Raises:
        ParameterError: a number out of range, or train mode.
        ShapeError: the model does not return (n, k).
    """
    above("votes", sigma=sigma)
    at_least("votes", 1, draws=draws, batch_size=batch_size)
    eval_mode(model, "votes")
    rows = torch.arange(len(x) * draws, device=x.device)
    classes, k = [], 0
    for part in torch.split(rows, batch_size):
        image, draw = part // draws, part % draws
        noise = seeding.normal(seeding.fold(key[image], draw), 0, x.shape[1:])
        with torch.no_grad(), proper_float32(x.device):
            logits = model(_filled(x[image] + sigma * noise.to(x.dtype), min(batch_size, len(rows))))
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ShapeError("votes: the model must return logits (n, k). Wrap it so that it returns only those.")
        k = logits.shape[1]
        classes.append(torch.where(logits.isnan().any(dim=1), k, logits.argmax(dim=1))[: len(part)])
    answers = torch.cat(classes).reshape(len(x), draws)
    counts = torch.zeros(len(x), k + 1, dtype=torch.int64, device=x.device)  # the last for no class
    return counts.scatter_add_(1, answers, torch.ones_like(answers))[:, :k]


def certified_radius(count: Int[Tensor, "n"], *, sigma: float, draws: int, alpha: float) -> Float[Tensor, "n"]:
    """Bound the radius from the number of noisy copies, of ``draws``, that were given the class chosen beforehand.

    Returns:
        Euclidean radii in pixels in [0, 1], float32; 0 where the class may have half of the probability or less.

    Raises:
        ParameterError: a number out of range.
    """
    above("certified_radius", sigma=sigma)
    p = clopper_pearson(count.cpu().numpy(), draws, alpha=alpha)
    radius = sigma * ndtri(np.maximum(p, 0.5))
    return torch.from_numpy(radius).float().to(count.device)


def largest_radius(*, sigma: float, draws: int, alpha: float) -> float:
    """Give the radius that is certified where all ``draws`` agree: p is then alpha^(1 / draws).

    Raises:
        ParameterError: a number out of range, or so few draws that it is 0.

    Example:
        >>> round(largest_radius(sigma=1.0, draws=100, alpha=0.001), 3)
        1.5
    """
    above("certify", sigma=sigma)
    at_least("certify", 1, draws=draws)
    p = clopper_pearson(np.array([draws]), draws, alpha=alpha)
    if p[0] <= 0.5:
        least = int(np.floor(np.log(alpha) / np.log(0.5))) + 1
        raise ParameterError(
            f"certify: with alpha = {alpha:g} nothing can be certified from {draws} draws. Take at least {least}."
        )
    return float(sigma * ndtri(p[0]))


def _filled(x: Float[Tensor, "m c h w"], size: int) -> Float[Tensor, "size c h w"]:
    """Fill a batch up with copies of its first row, so that all have one shape."""
    return torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])]) if len(x) < size else x
