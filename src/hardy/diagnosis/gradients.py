"""The pass that sums gradients: one number per image and channel of many layers, by one backward pass of each batch.

Tensor hooks see the gradient by the value that a layer returned, also where an activation then works in place. Each is
reduced as soon as it arrives. Where nothing before a layer is differentiated the graph begins there, and no gradient of
a weight is computed.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.attacks.guards import check_eval, check_range
from hardy.attacks.passes import sealed_rng
from hardy.attacks.precision import full_precision
from hardy.diagnosis.case import Sign
from hardy.errors import DataError, ParameterError, ShapeError
from hardy.inserts import Insert
from hardy.taps import Tap

__all__ = ["GradientSums", "Sums"]

Sums = dict[str, Tensor]


class GradientSums:
    """The checked question, and the loop over batches, layers and draws."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        sites: Sequence[str],
        *,
        sign: Sign,
        draws: int,
        sigma: float,
        joint: bool,
        rows: Tensor | None,
        seed: int,
    ) -> None:
        if sign not in get_args(Sign):
            raise ParameterError(f"correlations: sign must be one of {', '.join(get_args(Sign))}; got {sign!r}.")
        if draws < 0 or not 0 <= sigma < float("inf"):
            raise ParameterError(f"correlations: draws and sigma must be at least 0; got {draws} and {sigma}.")
        check_eval(model, "correlations")
        if x.ndim != 4 or len(x) == 0 or y.shape != x.shape[:1]:
            raise ShapeError(
                f"correlations: x must be n c h w, y (n,), n >= 1; got {tuple(x.shape)}, {tuple(y.shape)}."
            )
        check_range(x, "correlations")
        self.model, self.x, self.y, self.sign = model, x, y, sign
        self.sites = tuple(sites)
        self.least, self.most = int(y.min()), int(y.max())
        self.draws, self.sigma, self.joint, self.seed = draws, sigma, joint, seed
        self.rows = torch.arange(len(x), device=x.device) if rows is None else rows

    def passes(self) -> dict[str, int]:
        """Count the passes, summed over images."""
        times = max(1, self.draws) * (len(self.sites) if self.draws and not self.joint else 1)
        return {"forward": times * len(self.x), "backward": times * len(self.x)}

    def batches(self, size: int) -> Generator[tuple[Tensor, Sums], None, None]:
        """Give the places of some images and their sums, batch by batch, over all images."""
        if size < 1:
            raise ParameterError(f"correlations: batch_size must be at least 1; got {size}.")
        taps = [_Gradients(site, sign=self.sign) for site in self.sites]
        attached = surgery.insert(self.model, Insert(None, seed=0), method="correlations", taps=taps)
        with attached, _frozen(self.model), full_precision(self.x.device), sealed_rng(self.x.device, self.seed):
            for part in torch.split(torch.arange(len(self.x), device=self.x.device), size):
                yield part, self._sums(taps, part)

    def _sums(self, taps: Sequence["_Gradients"], part: Tensor) -> Sums:
        """Give the sums of one batch, averaged over the draws."""
        if self.draws == 0:
            return self._pass(taps, part, draw=None)
        together = [list(taps)] if self.joint else [[tap] for tap in taps]
        total: Sums = {}
        for chosen in together:
            for draw in range(self.draws):
                for site, values in self._pass(chosen, part, draw=draw).items():
                    total[site] = total[site] + values if site in total else values
        return {site: values / self.draws for site, values in total.items()}

    def _pass(self, taps: Sequence["_Gradients"], part: Tensor, *, draw: int | None) -> Sums:
        """Run one batch forward and backward for some layers."""
        for tap in taps:
            tap.open(None if draw is None else self._noise(tap.site, part, draw))
        try:
            with torch.inference_mode(False), torch.enable_grad():
                z = self.model(self.x[part].clone())
                if not isinstance(z, Tensor) or z.ndim != 2 or len(z) != len(part):
                    got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
                    raise ShapeError(f"correlations: model(x) must return logits ({len(part)}, k); got {got}.")
                if not 0 <= self.least <= self.most < z.shape[1]:
                    raise DataError(
                        f"correlations: labels must be in 0 .. {z.shape[1] - 1}, the model's outputs; got {self.least} "
                        f".. {self.most}. Check the head."
                    )
                leaves = [tap.leaf for tap in taps if tap.leaf is not None]
                if z.requires_grad:
                    torch.autograd.grad(z.gather(1, self.y[part, None]).sum(), leaves, allow_unused=True)
            return {tap.site: tap.taken(len(part)) for tap in taps}
        finally:
            for tap in taps:
                tap.close()

    def _noise(self, site: str, part: Tensor, draw: int) -> "_Noise":
        root = seeding.root(self.seed, f"correlations:{site}")
        return _Noise(seeding.keys(root, self.rows[part]), draw, self.sigma)


@dataclass(frozen=True)
class _Noise:
    """Normal noise for one batch at one layer: of one image always the same."""

    keys: Tensor
    draw: int
    sigma: float

    def like(self, y: Tensor) -> Tensor:
        return seeding.normal(self.keys, self.draw, y.shape[1:]).to(y.dtype) * self.sigma


class _Gradients(Tap):
    """Sums the gradient by one output of one call of a module over positions, and puts noise on the output if asked.

    Where nothing before it is differentiated, the graph begins here: no backward pass goes further down.
    """

    def __init__(self, site: str, *, sign: Sign) -> None:
        name, _, call = site.partition("#")
        super().__init__(name, (int(call),) if call else (), total=2**31)
        self.site, self.sign = site, sign
        self.active, self.noise = False, None
        self.leaf: Tensor | None = None
        self.found: Tensor | None = None
        self.channels, self.like = 0, torch.empty(0)

    noise: _Noise | None

    def open(self, noise: _Noise | None) -> None:
        """Take part in the next pass."""
        self.active, self.noise, self.leaf, self.found = True, noise, None, None

    def close(self) -> None:
        """Let the net alone, and hold nothing of it."""
        self.active, self.noise, self.leaf, self.found = False, None, None, None

    def taken(self, n: int) -> Tensor:
        """Give the sums (n, channels); 0 where the score does not depend on this output."""
        return self.like.new_zeros(n, self.channels) if self.found is None else self.found

    def act(self, y: Tensor, call: int) -> Tensor | None:  # noqa: ARG002  (a site is one call)
        """Listen to the gradient by what goes on from here."""
        if not self.active or not torch.is_grad_enabled():
            return None
        if y.ndim not in (2, 4) or (self.noise is not None and len(y) != len(self.noise.keys)):
            raise ShapeError(
                f"correlations: {self.site} must return (n, c, h, w) or (n, c), one row per image; got "
                f"{tuple(y.shape)}. Name another layer."
            )
        self.channels, self.like = y.shape[1], y.detach().new_empty(0)
        out = y if self.noise is None else y + self.noise.like(y)
        if not y.requires_grad:
            self.leaf = out.detach().requires_grad_()
            out = self.leaf.clone()  # a leaf must not be changed in place
        out.register_hook(self.take)  # type: ignore[no-untyped-call]  # torch has no types there
        return None if out is y else out

    def take(self, gradient: Tensor) -> None:
        """Reduce the gradient, which is by the value before any activation that works in place."""
        places = tuple(range(2, gradient.ndim))
        if self.sign == "absolute":
            self.found = torch.linalg.vector_norm(gradient, 1, dim=places) if places else gradient.abs()
        else:
            raising = gradient.clamp_min(0)
            self.found = raising.sum(places) if places else raising


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Ask for no gradient of a weight in the block."""
    asked = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in asked:
            p.requires_grad_(False)
        yield
    finally:
        for p in asked:
            p.requires_grad_(True)
