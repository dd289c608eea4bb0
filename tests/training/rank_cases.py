"""What the tests of several processes run in each of them; as a script: CASE OUT PROCESSES [RESTARTS]."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hardy import io, surgery
from hardy.cli import launch as starts
from hardy.cli.launch import launch, rank
from hardy.data import ArrayData, load_data
from hardy.errors import DataError, HardyError
from hardy.methods import (
    MART,
    AdversarialWeightPerturbation,
    FreeAdversarialTraining,
    LabelSmoothing,
    LocalFeatureMasking,
    Method,
    RandomErasing,
)
from hardy.training import TrainRecipe, train

OPTIONS = TrainRecipe(epochs=4, batch_size=64, lr=0.1, clip_norm=1.0, ema=0.9, select="best")
METHODS = [LocalFeatureMasking(p=0.5), RandomErasing(), LabelSmoothing()]
ADVERSARIAL: dict[str, list[Method]] = {
    "awp": [MART(eps=0.1, steps=2, step_size=0.1), AdversarialWeightPerturbation(gamma=0.05)],
    "free": [FreeAdversarialTraining(eps=0.1, replays=3)],
}


def net(seed: int = 0) -> nn.Module:
    """Make a small net without batch norms."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.GroupNorm(2, 16), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def images(n: int = 512) -> tuple[ArrayData, ArrayData]:
    """Give training images and 37 for validation: no even shares for 2 or 3."""
    return load_data("digits", split="train").limit(n), load_data("digits", split="test").limit(37)


def gathered(value: Any) -> list[Any]:
    """Collect a value of every process."""
    values = [None] * dist.get_world_size() if dist.is_initialized() else [value]
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def digest(model: nn.Module) -> str:
    """Hash the weights."""
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()


def curves(out: Path) -> dict[str, Any]:
    """Train; the model of every process but the first starts from other weights, which must not matter."""
    data, val = images()
    run = train(net(rank()), data, methods=METHODS, options=OPTIONS, val_data=val, augment=("crop",), out=out / "net")
    return {"history": run.history, "digests": gathered(digest(run.model)), "ranks": len(gathered(0))}


@dataclass(frozen=True)
class Overflow:
    """A method whose term is not finite in the last process alone, at step 3."""

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        return surgery.insert(model, OverflowInsert(self, seed=seed), method="overflow")


class OverflowInsert(surgery.Insert):
    calls = 0

    def terms(self, context: surgery.Context) -> dict[str, Tensor]:
        self.calls += 1
        last = rank() == int(os.environ.get("WORLD_SIZE", "1")) - 1
        return {"penalty": context.logits.sum() * (float("inf") if last and self.calls > 3 else 0.0)}


def message(work: Callable[[], object]) -> list[str]:
    """Collect the errors that every process meets."""
    try:
        work()
    except HardyError as error:
        return gathered(f"{type(error).__name__}: {error}")
    return gathered("none")


def mistakes(out: Path) -> dict[str, Any]:
    """Meet errors that one process finds and all must raise."""
    data, val = images(64)
    few = data if rank() == 0 else data.limit(1)
    options = TrainRecipe(epochs=2, batch_size=32)
    (out / "taken").mkdir(parents=True, exist_ok=True)
    (out / "taken" / "recipe.toml").write_text("")
    model = net()
    norms = io.load_model("cifar_resnet8", num_classes=10, in_channels=1, args={"width": 4})
    found = {
        "overflow": message(lambda: train(net(), data, methods=[Overflow()], options=options, out=out / "a")),
        "few": message(lambda: train(net(), few, options=options, out=out / "b")),
        "taken": message(lambda: train(model, data, methods=METHODS, options=options, out=out / "taken")),
        "small": message(lambda: train(net(), data, options=TrainRecipe(epochs=1, batch_size=1), out=out / "c")),
        "norms": message(lambda: train(norms, data, options=options, val_data=val, out=out / "norms")),
    }
    return {**found, "attached": len(surgery.attachments(model)), "digests": gathered(digest(norms))}


def fails(out: Path) -> None:
    """Fail in the second process, in the middle of a training, with an error that is not ours."""
    data, _ = images(64)

    class Broken(nn.Sequential):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if rank() == 1 and self.calls == 4:
                raise ZeroDivisionError("a bug")
            return super().forward(x)

    train(Broken(*net()), data, options=TrainRecipe(epochs=3, batch_size=32), out=out)


def begin(out: Path, processes: int) -> None:
    """Wait until all processes have begun."""
    (out / f"begun-{os.environ['TORCHELASTIC_RESTART_COUNT']}-{rank()}").touch()
    while len(list(out.glob("begun-*"))) < processes:
        time.sleep(0.05)


def hangs(out: Path) -> None:
    """Find an error in the second process, while the first waits for it without end, as NCCL does."""
    starts._waiting = lambda: True
    out.mkdir(exist_ok=True)
    begin(out, 2)
    if rank() == 1:
        raise DataError("image 7 is damaged.")
    time.sleep(600)


def agrees(out: Path) -> None:
    """Find an error in all processes, none of which has to be ended."""
    starts._waiting = lambda: True
    out.mkdir(exist_ok=True)
    begin(out, 3)
    try:
        raise DataError("all images are damaged.")
    finally:
        time.sleep(rank())
        (out / f"cleaned-{rank()}").touch()


def adversarial(out: Path) -> dict[str, Any]:
    """Train with methods that search in a step, and step more than once around it."""
    data, val = images(256)
    found: dict[str, Any] = {}
    for name, methods in ADVERSARIAL.items():
        options = TrainRecipe(epochs=1, batch_size=64, lr=0.05, clip_norm=1.0)
        run = train(net(rank()), data, methods=methods, options=options, val_data=val, augment=(), out=out / name)
        found[name] = {"history": run.history, "digests": gathered(digest(run.model))}
    return found


CASES: dict[str, Callable[[Path], Any]] = {
    "curves": curves,
    "adversarial": adversarial,
    "mistakes": mistakes,
    "fails": fails,
    "hangs": hangs,
    "agrees": agrees,
}

if __name__ == "__main__":
    case, where, processes = CASES[sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3])
    restarts = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    if processes == 0:  # torchrun has started them
        done = case(where)
    else:
        try:
            done = launch(case, where, processes=processes, restarts=restarts) if processes > 1 else case(where)
        except HardyError as error:
            sys.exit(f"{type(error).__name__}: {error}")
    if rank() == 0:
        sys.stdout.write(json.dumps(done) + "\n")
