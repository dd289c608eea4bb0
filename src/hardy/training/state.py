"""What changes in a training, and with it what a checkpoint holds: at the end of an epoch or within one."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hardy.data import ArrayData, StreamData
from hardy.errors import TrainingError
from hardy.surgery import Attachments
from hardy.training.folder import Row, flatten_optimizer, restore_optimizer
from hardy.training.optim import Average

__all__ = ["State", "Tally", "fingerprint"]


@dataclass
class Tally:
    """What an epoch has added up so far.

    Attributes:
        losses: Named losses, float32 sums over images.
        right: Images whose highest logit was that of their label.
        seen: Images.
        seconds: Time that processes before this one took for the epoch.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    right: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    seen: int = 0
    seconds: float = 0.0

    def add(self, losses: dict[str, Tensor], right: Tensor, count: int) -> None:
        """Take in the mean losses and the right answers of ``count`` images."""
        for name, value in losses.items():
            self.losses[name] = self.losses[name] + value * count if name in self.losses else value * count
        self.right = self.right.to(right.device) + right
        self.seen += count

    def row(self) -> Row:
        """Give the means."""
        means = {name: float(total) / self.seen for name, total in self.losses.items()}
        return {**means, "train_accuracy": float(self.right) / self.seen}

    def facts(self, seconds: float) -> dict[str, Any]:
        """Write it down exactly; ``seconds`` is the time of the epoch so far."""
        losses = {name: float(total) for name, total in self.losses.items()}
        return {"losses": losses, "right": int(self.right), "seen": self.seen, "seconds": seconds}

    @classmethod
    def of(cls, facts: dict[str, Any], device: torch.device) -> "Tally":
        """Undo :meth:`facts`."""
        losses = {name: torch.tensor(total, device=device) for name, total in facts["losses"].items()}
        return cls(losses, torch.tensor(facts["right"], device=device), facts["seen"], facts["seconds"])


@dataclass
class State:
    """A training between two steps. Every process of several holds the same one.

    Attributes:
        model: The plain model, with what is attached.
        optimizer: Of its parameters.
        attached: Their random layers count.
        average: Moving average of the weights, if any.
        step: Steps done in the whole run.
        rows: Metrics of the whole epochs.
        best: Weights of the best validation accuracy, if they are wanted.
        best_accuracy: That accuracy.
        best_epoch: Its epoch, from 1.
        tally: Sums of the current epoch.
        data: Fingerprint of the images that all this belongs to.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    attached: Attachments
    average: Average | None = None
    step: int = 0
    rows: list[Row] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_accuracy: float = -1.0
    best_epoch: int = 0
    tally: Tally = field(default_factory=Tally)
    data: str = ""

    def weights(self) -> dict[str, Tensor]:
        """Copy the weights and buffers of the model."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def pack(self, seconds: float | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Give the tensors and facts of a checkpoint.

        Args:
            seconds: Within an epoch: the time that it has taken so far.
        """
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in flatten_optimizer(self.optimizer).items()}
        facts: dict[str, Any] = {"epoch": len(self.rows), "step": self.step, "best_accuracy": self.best_accuracy}
        facts["best_epoch"], facts["data"] = self.best_epoch, self.data
        facts["attachments"] = {a.name: a.state_dict() for a in self.attached}
        if seconds is not None:
            facts["tally"] = self.tally.facts(seconds)
        if self.average is not None:
            tensors |= {f"ema.{k}": v for k, v in self.average.values.items()}
            facts["ema_steps"] = self.average.steps
        if self.best is not None:
            tensors |= {f"best.{k}": v for k, v in self.best.items()}
        return tensors, facts

    def unpack(
        self, tensors: dict[str, Tensor], facts: dict[str, Any], rows: list[Row], *, device: torch.device
    ) -> None:
        """Go back to a checkpoint.

        Args:
            tensors: Of :meth:`pack`.
            facts: Likewise.
            rows: At least those of the whole epochs that were done.
            device: Of the model.

        Raises:
            TrainingError: the checkpoint was trained on other images.
        """
        if facts.get("data", self.data) != self.data:
            raise TrainingError(
                "train: --resume needs the images that the run began with; some were added, removed or relabelled. "
                "Bring them back, or begin anew with another --out."
            )

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}

        self.model.load_state_dict(part("model"))
        restore_optimizer(self.optimizer, part("optimizer"))
        for attachment in self.attached:
            attachment.load_state_dict(facts["attachments"][attachment.name])
        if self.average is not None:
            self.average.load(part("ema"), facts["ema_steps"])
        self.best = {k: v.to(device) for k, v in part("best").items()} or None
        self.best_accuracy, self.best_epoch = facts["best_accuracy"], facts["best_epoch"]
        self.step = facts["step"]
        self.rows = rows[: facts["epoch"]]
        self.tally = Tally.of(facts["tally"], device) if "tally" in facts else Tally()


def fingerprint(*parts: ArrayData | StreamData | None) -> str:
    """Digest which images the parts hold, in which order, with which labels and background; of pixels nothing."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if part is not None:
            digest.update(part.index.cpu().numpy().tobytes() + part.y.cpu().numpy().tobytes())
            if isinstance(part, ArrayData) and part.background is not None:
                digest.update(part.background.cpu().numpy().tobytes())
        digest.update(b"|")
    return digest.hexdigest()
