"""The only place where an attack's model is called: fixed shapes, gradients, and the count of passes."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy.attacks.folding import folded
from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss
from hardy.attacks.precision import full_precision
from hardy.attacks.state import select
from hardy.errors import ShapeError
from hardy.seeding import seed_torch

__all__ = ["SHAPES", "VANISHED", "Passes", "bucket", "sealed_rng"]

SHAPES = 16  # that a batch may shrink through on an accelerator, where kernels are chosen or compiled per shape
COMPARED = 2  # points on which a faster copy of a net must agree with it
VANISHED = 1e-12  # largest gradient value below which float32 cross-entropy has saturated


def bucket(n: int, size: int, device: torch.device) -> int:
    """Give the shape for ``n`` rows: the next sixteenth of ``size``, or ``n`` on a CPU, where padding costs time."""
    step = 1 if device.type == "cpu" else -(-size // SHAPES)
    return min(-(-n // step) * step, size)


class Passes:
    """Call models on points in fixed shapes and count, per image, the forward and backward passes and the gradients.

    Padding rows (copies of a real row that fill a shape up) cost time but are not passes of the attack: not counted.
    With several models the logits are averaged and every model counts.

    Args:
        models: Called in turn on every point; in eval mode.
        size: Largest batch.
        n: Number of images to keep counts for.
        device: Where the images are.
    """

    def __init__(self, models: Sequence[nn.Module], *, size: int, n: int, device: torch.device) -> None:
        self.models, self.size = tuple(models), size
        self.forward = torch.zeros(n, dtype=torch.int64, device=device)
        self.backward = torch.zeros_like(self.forward)
        self.gradients = torch.zeros_like(self.forward)
        self.zero_gradients = torch.zeros_like(self.forward)
        self._known: tuple[Tensor, list[Tensor]] | None = None  # some first points of the search, and the answers
        self._fast: tuple[nn.Module, ...] | None = None

    def logits(
        self, x: Float[Tensor, "m c h w"], image: Int[Tensor, "m"], *, fixed: bool = False
    ) -> Float[Tensor, "m k"]:
        """Give float32 logits of the points; ``fixed`` pads every batch to the full size and computes in float32."""
        out = []
        precise = full_precision(x.device) if fixed else contextlib.nullcontext()
        with precise, torch.inference_mode(False), torch.no_grad():
            for part in torch.split(torch.arange(len(x), device=x.device), self.size):
                shape = self.size if fixed else bucket(len(part), self.size, x.device)
                out.append(self._call(_pad(x[part], shape), exact=fixed)[: len(part)])
        self._count(self.forward, image, len(self.models))
        return torch.cat(out)

    def gradient(
        self, x: Float[Tensor, "m c h w"], image: Int[Tensor, "m"], goal: Goal, loss: Loss
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m c h w"]]:
        """Give float32 logits and the gradient of each point's own loss; values that are not finite become 0.

        A loss that does not depend on the input has gradient 0. Parameters get no gradient.
        """
        logits, gradients = [], []
        with torch.inference_mode(False), torch.enable_grad():
            for part in torch.split(torch.arange(len(x), device=x.device), self.size):
                leaf = _pad(x[part], bucket(len(part), self.size, x.device)).clone().requires_grad_()
                z = self._call(leaf, exact=False)[: len(part)]
                total = loss(z, select(goal, part)).sum()
                g = _derivative(total, leaf)
                logits.append(z.detach())
                gradients.append(torch.nan_to_num(g[: len(part)].contiguous(), nan=0.0, posinf=0.0, neginf=0.0))
        joined = torch.cat(gradients)
        self._count(self.forward, image, len(self.models))
        self._count(self.backward, image, len(self.models))
        self._count(self.gradients, image, 1)
        self._count(self.zero_gradients, image[joined.flatten(1).abs().amax(dim=1) < VANISHED], 1)
        return torch.cat(logits), joined

    def _call(self, x: Tensor, *, exact: bool) -> Tensor:
        models = self.models if exact else self._searched()
        outputs: list[Tensor] = [model(x) for model in models]
        for model, z in zip(self.models, outputs, strict=True):
            _check_logits(z, model, n=len(x), k=getattr(outputs[0], "shape", (0,))[-1])
        if not exact and self._known is None:
            self._known = x[:COMPARED].detach(), [z[:COMPARED].detach() for z in outputs]
        total = outputs[0].float()
        for z in outputs[1:]:
            total = total + z.float()
        return total / len(outputs)

    def _searched(self) -> tuple[nn.Module, ...]:
        """Give what the search calls: the models, from its second call on copies that are faster, if there are any."""
        if self._fast is None and self._known is not None:
            x, outputs = self._known
            self._fast = tuple(folded(model, x, z) or model for model, z in zip(self.models, outputs, strict=True))
        return self._fast or self.models

    def _count(self, counter: Tensor, image: Tensor, times: int) -> None:
        counter.index_add_(0, image, torch.full_like(image, times))


@contextlib.contextmanager
def sealed_rng(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators for a model that draws from them, and give them back as they were."""
    cuda = [torch.empty(0, device=device).get_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        seed_torch(seed, device)
        yield


def _pad(x: Tensor, size: int) -> Tensor:
    missing = size - len(x)
    return torch.cat([x, x[:1].expand(missing, *x.shape[1:])]) if missing else x


def _derivative(total: Tensor, leaf: Tensor) -> Tensor:
    """Differentiate; 0 where the model cuts the graph or does not look at its input."""
    if not total.requires_grad:
        return torch.zeros_like(leaf)
    found: Sequence[Tensor | None] = torch.autograd.grad(total, leaf, allow_unused=True)
    return torch.zeros_like(leaf) if found[0] is None else found[0]


def _check_logits(z: object, model: nn.Module, *, n: int, k: int) -> None:
    who = type(model).__name__
    shape = tuple(z.shape) if isinstance(z, Tensor) else None
    if shape is None or len(shape) != 2 or shape[0] != n:
        got = type(z).__name__ if shape is None else shape
        raise ShapeError(
            f"{who}: model(x) must return logits (n, k), n = {n}; got {got}. Wrap it so that it returns only those."
        )
    if shape[1] != k:
        raise ShapeError(
            f"{who}: sources must have the same classes; got {shape[1]} and {k} outputs. Attack them one by one."
        )
