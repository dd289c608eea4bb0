"""The attack self-test: plant an adversarial example that surely exists, and see whether an attack finds it.

Zimmermann, Brendel, Tramer, Carlini. "Increasing confidence in adversarial robustness evaluations". NeurIPS 2022,
https://arxiv.org/abs/2206.13991. Its abstract and the authors' code (google-research/active-adversarial-tests) were
read, the body of the paper was not. As there, the classifier is replaced, for one image at a time, by a linear
discriminator of its features: the image and random points of a ball of 0.95 eps against one point on the border of the
ball, with logits on the scale of 1. A sound attack finds the border point or a better one; random search must not.

Deviations: ridge regression in closed form instead of logistic regression; the border point is the best of 16; the
threshold is close to it, as in the harder runs of that code; 200 inner points by default instead of 999; linf border
points are corners, which is an option there.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy import seeding
from hardy.attacks.goal import predicted
from hardy.attacks.guards import check_eval, check_precision, check_range
from hardy.attacks.norms import norm_of, on_sphere, project, random_start
from hardy.attacks.passes import sealed_rng
from hardy.attacks.precision import full_precision
from hardy.attacks.state import Ball
from hardy.attacks.verify import inside
from hardy.errors import DataError, ParameterError, ShapeError
from hardy.evaluation.features import feature_sites, features
from hardy.threats import Norm, Threat

__all__ = ["Find", "Head", "Planted", "ReHeaded", "SelfTest", "discriminate", "plant", "random_search", "self_test"]

Find = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) -> which images it broke

INNER = 200  # points inside the ball, besides the image
CANDIDATES = 16  # points on its border to choose the planted one from
RADIUS = 0.95  # of the ball that the inner points are drawn from, in eps
RIDGE = 0.1  # added to the covariance, in variances of the feature that moves most; see discriminate
CLOSENESS = 0.9  # of the threshold to the border point: 0 at the outermost inner point, 1 at the border point itself
APART = 3.0  # distance of planted images, in eps: whatever is up to 1.5 eps away is recognised as its own
MARGIN = 1e-3  # logit difference that a planted point and its image keep in float32


@dataclass(frozen=True)
class Head:
    """A linear discriminator of features: above 0 at the chosen border point, below at all inner points.

    Attributes:
        weight: One weight per feature.
        centre: Taken off the features first, so that float32 loses nothing.
        bias: Added.
        chosen: Number of the border point.
    """

    weight: Float[Tensor, "d"]
    centre: Float[Tensor, "d"]
    bias: Float[Tensor, ""]
    chosen: int


@dataclass(frozen=True)
class Planted:
    """Images with an adversarial example that is known to exist.

    Attributes:
        model: The net with its head replaced: two logits, 0 = "inside", 1 = "border"; which head answers for a point is
            told by the nearest of the images ``x``. It owns a copy of the net; not to be called where there are none.
        x: The images; all are predicted 0.
        y: Their label, 0.
        index: Which of the given images they are.
        witness: One point per image inside ball and box that is predicted 1.
        sites: Where the features were taken; empty where the net has no classifier to be found and its logits served.
    """

    model: nn.Module
    x: Float[Tensor, "m c h w"]
    y: Int[Tensor, "m"]
    index: Int[Tensor, "m"]
    witness: Float[Tensor, "m c h w"]
    sites: tuple[str, ...]


@dataclass(frozen=True)
class SelfTest:
    """How many images were tried and planted, and how many of these the attack and random search found."""

    planted: int
    found: int
    random: int
    tried: int


class ReHeaded(nn.Module):
    """A net that answers by one linear head per known image; :attr:`Planted.model`.

    Args:
        net: The net, which is not copied; eval mode.
        sites: Where its features are taken; empty for its logits.
        x: The images.
        heads: One for each.
        norm: In which an image is recognised as the nearest one; no gradient runs through that.
    """

    x: Tensor
    weight: Tensor
    centre: Tensor
    bias: Tensor

    def __init__(
        self, net: nn.Module, sites: Sequence[str], *, x: Float[Tensor, "m c h w"], heads: Sequence[Head], norm: Norm
    ) -> None:
        super().__init__()
        self.net, self.sites, self.norm = net, tuple(sites), norm
        self.register_buffer("x", x)
        for name in ("weight", "centre", "bias"):
            rows = [getattr(head, name) for head in heads]
            self.register_buffer(name, torch.stack(rows) if rows else x.new_zeros(0))
        self.training = False  # not eval(): the modes inside the net are its own

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 2"]:  # noqa: D102
        own = _distances(x.detach().float(), self.x, self.norm).argmin(dim=1)
        z = features(self.net, self.sites, x)
        score = ((z - self.centre[own]) * self.weight[own]).sum(dim=1) + self.bias[own]
        return torch.stack([-score / 2, score / 2], dim=1)


def discriminate(inner: Float[Tensor, "n d"], border: Float[Tensor, "k d"]) -> Head | None:
    r"""Fit a linear discriminator that has all inner points on one side and one border point on the other.

    With the covariance :math:`S` of the inner points and a border point :math:`v` as seen from their mean, the
    direction is :math:`(S + \lambda I)^{-1} v`: that of ridge regression on 0 for the inner points and 1 for ``v``, and
    of LDA. It is solved in the space of the points, of which there are fewer than features in most nets. The border
    point with the widest gap to the outermost inner point, relative to its distance from the mean, is taken.

    All features share one unit, the largest standard deviation, and :math:`\lambda` is 0.1 in it. With a unit for each,
    or a tiny ridge, the discriminator listens to what rests in the whole ball but for its corners, such as closed
    ReLUs: no gradient leads there, and sound attacks fail. With a large one it listens to few directions: too easy.

    Args:
        inner: Features of the points inside, at least two.
        border: Features of the candidates.

    Returns:
        The head, float32, scaled such that the mean of the inner points and the border point are 1 apart, the threshold
        :data:`CLOSENESS` of the way from the outermost inner point to the border point. None where no border point is
        clearly outside the inner points, no feature moves, or one is not finite.
    """
    inner, border = inner.double(), border.double()
    centre, unit = inner.mean(dim=0), inner.std(dim=0).amax()
    if not (float(unit) > 0 and bool(inner.isfinite().all()) and bool(border.isfinite().all())):
        return None
    z, v = (inner - centre) / unit, (border - centre) / unit
    n = len(z)
    gram = z @ z.T + n * RIDGE * torch.eye(n, dtype=z.dtype, device=z.device)
    direction = v - torch.linalg.solve(gram, z @ v.T).T @ z  # Woodbury: RIDGE * (S + RIDGE I)^-1 v
    reach = (direction * v).sum(dim=1)
    outermost = torch.where(reach > 0, (z @ direction.T).amax(dim=0) / reach, torch.inf)
    chosen = int(outermost.argmin())
    if not (1 - CLOSENESS) * (1 - float(outermost[chosen])) >= MARGIN:
        return None
    bias = -(outermost[chosen] + CLOSENESS * (1 - outermost[chosen]))
    weight = direction[chosen] / reach[chosen] / unit
    return Head(weight.float(), centre.float(), bias.float(), chosen)


def plant(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    *,
    threat: Threat,
    key: Int[Tensor, "n"],
    inner: int = INNER,
    batch_size: int = 128,
) -> Planted:
    """Replace the head of a net so that every image has an adversarial example.

    Candidates for the planted point are drawn on the border of the ball (linf: its corners) and clipped into the box.
    Images closer than 3 eps to an earlier one are left out, and those where no candidate can be told from the inner
    points; there may be none left. It costs ``inner`` + 19 forward passes per image.

    Args:
        model: In eval mode; left as it is.
        x: Images, float32 in [0, 1]; 16 to 32 are enough.
        threat: Norm and budget.
        key: One int64 per image, the source of its randomness.
        inner: Points drawn uniformly from the ball of 0.95 eps, at least 1; more make the test harder.
        batch_size: Rows per forward pass, at least 1; no influence but rounding.

    Raises:
        ParameterError: train mode, a number below 1.
        ShapeError: ``x`` is not images, ``key`` is not one per image, or the net does not return (n, k).
        DataError: pixels outside [0, 1], another dtype or device, weights in half precision.
    """
    _check(model, x, key, {"inner": inner, "batch_size": batch_size})
    x, net = x.detach().clone(), copy.deepcopy(model)
    found: list[tuple[int, Head, Tensor]] = []
    with _quiet(x.device):
        sites = feature_sites(net, x)
        for i in _apart(x, threat):
            border = _points(x[i], key[i], threat, CANDIDATES, border=True)
            points = torch.cat([x[i : i + 1], _points(x[i], key[i], threat, inner), border])
            z = torch.cat([features(net, sites, part) for part in torch.split(points, batch_size)])
            head = discriminate(*torch.split(z, [1 + inner, CANDIDATES]))
            if head is not None:
                found.append((i, head, border[head.chosen]))
        made = _assemble(net, sites, x, found, threat)
        kept = _verified(made, threat, batch_size)
    return made if len(kept) == len(found) else _assemble(net, sites, x, [found[i] for i in kept], threat)


def random_search(
    planted: Planted, *, threat: Threat, key: Int[Tensor, "m"], draws: int = INNER, batch_size: int = 128
) -> Bool[Tensor, "m"]:
    """Say for which images one of several random points is "border"; where many are, the test is too easy.

    Args:
        planted: From :func:`plant` with the same threat.
        threat: Norm and budget.
        key: One int64 per planted image; the points differ from those of :func:`plant` with the same key.
        draws: Points per image, at least 1: half of them uniform in the ball, half on its border.
        batch_size: Rows per forward pass, at least 1.
    """
    if len(planted.x) == 0:
        return torch.zeros(0, dtype=torch.bool, device=planted.x.device)
    _check(planted.model, planted.x, key, {"draws": draws, "batch_size": batch_size})
    key, found = seeding.fold(key, seeding.root(0, "self_test:random")), []
    with _quiet(planted.x.device):
        for i in range(len(planted.x)):
            uniform = _points(planted.x[i], key[i], threat, draws - draws // 2, radius=1.0)
            border = _points(planted.x[i], key[i], threat, draws // 2, border=True)
            parts = torch.split(torch.cat([uniform, border]), batch_size)
            found.append(torch.cat([predicted(planted.model(part)) == 1 for part in parts]).any())
    return torch.stack(found)


def self_test(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    *,
    threat: Threat,
    key: Int[Tensor, "n"],
    find: Find,
    inner: int = INNER,
    batch_size: int = 128,
) -> SelfTest:
    """Count how many planted adversarial examples an attack finds, and how many as many random draws as ``inner`` do.

    Args:
        model: In eval mode; left as it is.
        x: Images, float32 in [0, 1]; 16 to 32 are enough.
        threat: Norm and budget of the attack.
        key: One int64 per image.
        find: The attack: takes a net of two classes, images and labels (0), and says which images it broke within the
            threat. Not called where nothing could be planted.
        inner: As for :func:`plant`.
        batch_size: As for :func:`plant`.

    Raises:
        ShapeError: ``find`` does not return one bool per image; this and others as for :func:`plant`.
    """
    planted = plant(model, x, threat=threat, key=key, inner=inner, batch_size=batch_size)
    m = len(planted.x)
    if m == 0:
        return SelfTest(planted=0, found=0, random=0, tried=len(x))
    lucky = random_search(planted, threat=threat, key=key[planted.index], draws=inner, batch_size=batch_size)
    found = find(planted.model, planted.x, planted.y)
    if found.shape != (m,) or found.dtype != torch.bool:
        raise ShapeError(
            f"self_test: find must return one bool per image, ({m},); got {found.dtype} {tuple(found.shape)}."
        )
    return SelfTest(planted=m, found=int(found.sum()), random=int(lucky.sum()), tried=len(x))


def _check(model: nn.Module, x: Tensor, key: Tensor, counts: dict[str, int]) -> None:
    """Demand what :func:`plant` says."""
    for name, value in counts.items():
        if value < 1:
            raise ParameterError(f"self_test: {name} must be at least 1; got {value}.")
    if x.ndim != 4 or len(x) == 0:
        raise ShapeError(f"self_test: x must be images n c h w, n >= 1; got {tuple(x.shape)}. Pass some images.")
    if key.shape != x.shape[:1]:
        raise ShapeError(f"self_test: key must be ({len(x)},), one per image; got {tuple(key.shape)}.")
    if x.dtype != torch.float32 or key.device != x.device:
        got = f"{x.dtype} on {x.device}, key on {key.device}"
        raise DataError(f"self_test: x must be float32, x and key on one device; got {got}. Convert or move them.")
    check_eval(model, "self_test")
    check_precision(model, "self_test")
    check_range(x, "self_test")


@contextlib.contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    """Run in full float32 without gradients; a net that draws from the global generators does not move them."""
    with full_precision(device), sealed_rng(device, 0), torch.inference_mode(False), torch.no_grad():
        yield


def _distances(x: Float[Tensor, "n c h w"], images: Float[Tensor, "m c h w"], norm: Norm) -> Float[Tensor, "n m"]:
    order = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}[norm]
    exact = "donot_use_mm_for_euclid_dist"  # the fast way loses small distances to rounding
    distances: Tensor = torch.cdist(x.flatten(1), images.flatten(1), p=order, compute_mode=exact)
    return distances


def _apart(x: Float[Tensor, "n c h w"], threat: Threat) -> list[int]:
    """Choose images that are far enough from all chosen before."""
    near = (_distances(x, x, threat.norm) <= APART * threat.eps).tolist()
    chosen: list[int] = []
    for i in range(len(x)):
        if not any(near[i][j] for j in chosen):
            chosen.append(i)
    return chosen


def _points(
    x: Float[Tensor, "c h w"],
    key: Int[Tensor, ""],
    threat: Threat,
    count: int,
    *,
    border: bool = False,
    radius: float = RADIUS,
) -> Float[Tensor, "k c h w"]:
    """Draw points uniformly from the ball of ``radius`` eps, or on the border of the ball; clipped into the box."""
    own = seeding.fold(key[None], seeding.root(0, f"self_test:{'border' if border else 'inner'}"))
    keys = seeding.fold(own.expand(count), torch.arange(count, device=x.device))
    centre = x.expand(count, *x.shape)
    eps = torch.full((count,), threat.eps if border else radius * threat.eps, device=x.device)
    if not border:
        delta = random_start(keys, 0, x.shape, eps=eps, norm=threat.norm)
    elif threat.norm == "linf":
        delta = (seeding.uniform(keys, 0, x.shape) < 0.5).float().mul(2).sub(1) * threat.eps
    elif threat.norm == "l2":
        delta = on_sphere(keys, 0, x.shape, eps=eps)
    else:
        delta = random_start(keys, 0, x.shape, eps=eps, norm="l1")
        delta = delta * (eps / norm_of(delta, norm="l1"))[:, None, None, None]
    return project(centre + delta, x=centre, eps=eps, norm=threat.norm)


def _assemble(
    net: nn.Module, sites: tuple[str, ...], x: Tensor, found: Sequence[tuple[int, Head, Tensor]], threat: Threat
) -> Planted:
    index = torch.tensor([i for i, _, _ in found], dtype=torch.int64, device=x.device)
    own = x[index]
    return Planted(
        model=ReHeaded(net, sites, x=own, heads=[head for _, head, _ in found], norm=threat.norm),
        x=own,
        y=torch.zeros_like(index),
        index=index,
        witness=torch.stack([point for _, _, point in found]) if found else own,
        sites=sites,
    )


def _verified(planted: Planted, threat: Threat, batch_size: int) -> list[int]:
    """Number the planted images that the new net itself, in float32, puts on the right sides with a margin."""
    if len(planted.x) == 0:
        return []
    both = torch.cat([planted.x, planted.witness])
    logits = torch.cat([planted.model(part) for part in torch.split(both, batch_size)])
    plain, witness = torch.chunk(logits[:, 1] - logits[:, 0], 2)
    ball = Ball(threat.norm, torch.full_like(plain, threat.eps))
    right = (plain <= -MARGIN) & (witness >= MARGIN) & inside(planted.witness, planted.x, ball)
    return [i for i, good in enumerate(right.tolist()) if good]
