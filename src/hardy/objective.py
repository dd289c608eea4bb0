"""The training objective: one module that a loop, DDP, the compiler and the optimizer see whole."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import seeding
from hardy.errors import AttachError, ShapeError
from hardy.sites import BOX
from hardy.surgery import Attachment, Context, Insert, attachments, set_keys

__all__ = ["Objective"]


class Objective(nn.Module):
    """A model with the losses of what is attached to it.

    ``objective(x, y, key)`` gives the logits and the named losses ``{"task": ..., "<term>": ...}``, each a weighted
    scalar; their sum is what to minimise. In training mode every attachment may change the inputs, replace the task
    loss (cross-entropy otherwise, with soft labels where a method mixed them) and add terms; in evaluation mode none
    does.

    With class weights w the task loss of a training batch is a mean over its n rows, ``sum_i loss_i / n``, with
    ``loss_i = -sum_k w_k q_ik log p_ik`` for labels or soft labels q. The divisor is n, not the sum of the weights of
    the labels that happen to be in the batch: so an image counts the same in every batch, and the losses of parts of a
    batch (on several devices, say) add up by their numbers of rows alone. For soft labels this is what
    ``torch.nn.functional.cross_entropy(logits, q, weight=w)`` does. For labels that function divides by the sum of the
    weights, so the two are equal where the weights in the batch have mean 1: in a batch of all training images, or of
    the same mixture of classes, if the weights were scaled so. A method's own task loss is weighted row by row, by the
    weight of its label (the mean ``sum_k w_k q_ik`` for soft labels); terms that methods add are not weighted.

    Args:
        model: The model the methods are attached to.
        attached: What ``hardy.attach`` returned; by default everything attached to the model.
        seed: Seed of the keys when the caller passes none.
        class_weights: One number per class, at least 0; none: all 1.

    Raises:
        AttachError: something in ``attached`` belongs to another model, two of them define the task loss, or train-only
            methods are attached to a part of the model, where they would take no part.

    Example:
        >>> objective = Objective(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
        >>> logits, losses = objective(torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64))
        >>> sorted(losses), logits.shape
        (['task'], torch.Size([3, 2]))
    """

    step: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        attached: Sequence[Attachment] | None = None,
        *,
        seed: int = 0,
        class_weights: Float[Tensor, "k"] | None = None,
    ) -> None:
        super().__init__()
        for other in attached or ():
            if other.model is not model:
                raise AttachError(f"Objective: {other.name} must be attached to this model; it belongs to another one.")
        for name, part in model.named_modules():
            held = getattr(part, BOX, None) if name else None
            if held is not None and not all(insert.live for insert in held.values()):
                raise AttachError(
                    f"Objective: methods must be attached to the model itself; {', '.join(held)} at its part {name!r} "
                    "would take no part. Attach to the model, or train the parts one by one."
                )
        self.model = model
        self.names = [a.name for a in (attachments(model) if attached is None else attached)]
        self.root = seeding.root(seed, "objective")
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("class_weights", class_weights, persistent=False)
        tasks = [name for name, held in self._inserts() if type(held).task is not Insert.task]
        if len(tasks) > 1:
            raise AttachError(f"Objective: only one method can define the task loss; {' and '.join(tasks)} do.")

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        y: Int[Tensor, "n"] | Float[Tensor, "n k"],
        key: Int[Tensor, "n"] | None = None,
        background: Float[Tensor, "n h w"] | None = None,
    ) -> tuple[Float[Tensor, "n k"], dict[str, Float[Tensor, ""]]]:
        """Run the model on one batch.

        Args:
            x: Images, pixels in [0, 1].
            y: Labels, or label probabilities.
            key: One int64 per image and epoch (``Batches`` gives them): the source of all randomness of that row.
                Without it, a row's randomness depends on its place in the batch and on the number of calls so far.
            background: How much of each pixel of ``x`` is no part of the object, in [0, 1], for methods that ask for
                it (``Batches`` gives it where the data know it); none: unknown.

        Returns:
            Logits, and the named weighted losses: scalars with gradients.

        Raises:
            ShapeError: the model returns something else than logits, or not one for each class weight.
        """
        if key is None:
            rows = torch.arange(len(x), device=x.device)
            key = seeding.fold(seeding.keys(self.root, rows), self.step)
            if self.training:
                self.step += 1
        if self.training:
            for _, held in self._inserts():
                x, y = held.inputs(x, y, seeding.fold(key, held.root))
            set_keys(self.model, key)
        self._listen(self.training)
        logits = self.model(x)
        self._listen(False)
        if not isinstance(logits, Tensor):
            raise ShapeError(
                f"Objective: the model must return logits (n, k); got {type(logits).__name__}. "
                "Switch off auxiliary heads (torchvision: aux_logits=False), or return the first output."
            )
        losses = {"task": self._task(logits, y).mean()}
        if self.training:
            again = functools.partial(self._again, key=key)
            context = Context(x=x, y=y, logits=logits, key=key, forward=again, background=background)
            for name, held in self._inserts():
                losses |= {_free(term, name, losses): value for term, value in held.terms(context).items()}
        return logits, losses

    def _listen(self, on: bool) -> None:
        for _, held in self._inserts():
            held.listen(on)

    def _again(self, x: Tensor, key: Tensor) -> Tensor:
        """Run the model once more; its random layers draw as they did for the first pass."""
        set_keys(self.model, key)
        logits: Tensor = self.model(x)
        return logits

    def _task(self, logits: Tensor, y: Tensor) -> Tensor:
        """Compute the task loss of each row."""
        weights = self.class_weights if self.training else None
        if weights is not None and logits.shape[1:] != weights.shape:
            raise ShapeError(
                f"Objective: class_weights must be one number for each logit; got {len(weights)} for {logits.shape[1]}."
            )
        if self.training:
            for _, held in self._inserts():
                loss = held.task(logits, y)
                if loss is not None:
                    if weights is None:
                        return loss
                    return loss * (weights[y] if y.ndim == 1 else (y.float() * weights).sum(dim=1))
        return F.cross_entropy(logits, y, weight=weights, reduction="none")

    def _inserts(self) -> list[tuple[str, Insert]]:
        box: dict[str, Insert] = getattr(self.model, "_hardy", {})
        return [(name, box[name]) for name in self.names if name in box]


def _free(term: str, name: str, taken: dict[str, Tensor]) -> str:
    """Name a term after its method where another one already has that name."""
    return f"{name}.{term}" if term in taken else term
