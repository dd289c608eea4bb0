"""What every part of a diagnosis is given: a net, labelled images, and what is to be looked at."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy import seeding
from hardy.evaluation.context import Context
from hardy.threats import Threat

__all__ = ["Case", "Sign"]

Sign = Literal["absolute", "positive"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """The patient and its history; nothing in it changes but ``memo``.

    Attributes:
        model: The plain net, in eval mode, which returns logits (n, k).
        x: Images in [0, 1], float32, on the device of the net.
        y: True classes.
        rows: Identities of the images, the source of their randomness.
        class_names: Names of the classes, in label order.
        num_classes: Outputs of the net.
        layers: Sites that are looked at, in model order, at least one: outputs of convolutions unless asked otherwise,
            with the number of the call where a module is called more than once.
        masks: True where the object is, all False in an image whose object is not known; None: of none.
        map_x: Images behind the maps of class and channel; None: ``x``.
        map_y: Their classes.
        map_rows: Their identities.
        threat: Norm and budget of the parts that attack.
        seed: Seed of everything random.
        batch_size: Images per pass; changes no result.
        top: Sure images per class behind the map of the class.
        sign: "absolute" or "positive" gradients (:func:`hardy.diagnosis.correlations`).
        draws: Draws of noise; 0: none.
        sigma: Standard deviation of that noise.
        joint: Noise on all layers at once.
        memo: What several parts need, computed once.
    """

    model: nn.Module
    x: Float[Tensor, "n c h w"]
    y: Int[Tensor, "n"]
    rows: Int[Tensor, "n"]
    class_names: tuple[str, ...]
    num_classes: int
    layers: tuple[str, ...]
    masks: Bool[Tensor, "n h w"] | None = None
    map_x: Float[Tensor, "m c h w"] | None = None
    map_y: Int[Tensor, "m"] | None = None
    map_rows: Int[Tensor, "m"] | None = None
    threat: Threat = Threat("linf", 8 / 255)  # noqa: RUF009  (frozen)
    seed: int = 0
    batch_size: int = 128
    top: int = 100
    sign: Sign = "absolute"
    draws: int = 0
    sigma: float = 1.0
    joint: bool = False
    memo: dict[str, Any] = field(default_factory=dict)

    def logits(self) -> Float[Tensor, "n k"]:
        """Give the logits of the images, float32, computed once."""
        z: Tensor = self.context().memo["logits"]
        return z

    def predictions(self) -> Int[Tensor, "n"]:
        """Give the predicted classes; -1 where the logits are NaN."""
        return self.context().predictions

    def context(self) -> Context:
        """Give the same question to the axes of ``hardy.evaluation``; the net has answered it."""
        if "context" not in self.memo:
            asked = Context(
                model=self.model,
                x=self.x,
                y=self.y,
                rows=self.rows,
                predictions=self.y,
                num_classes=self.num_classes,
                threat=self.threat,
                seed=self.seed,
                batch_size=self.batch_size,
            )
            self.memo["context"] = asked.answered()
        context: Context = self.memo["context"]
        return context

    def keys(self, purpose: str) -> Int[Tensor, "n"]:
        """Give one key per image for this purpose (:mod:`hardy.seeding`)."""
        return seeding.keys(seeding.root(self.seed, purpose), self.rows)

    def on_map(self) -> tuple[Float[Tensor, "m c h w"], Int[Tensor, "m"], Int[Tensor, "m"]]:
        """Give the images behind the maps of class and channel, their classes and their identities."""
        if self.map_x is None or self.map_y is None:
            return self.x, self.y, self.rows
        rows = torch.arange(len(self.map_y), device=self.map_y.device) if self.map_rows is None else self.map_rows
        return self.map_x, self.map_y, rows
