"""The training loop: recipe in, run folder out. One plain file on Lightning Fabric."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hardy import io, surgery
from hardy.data import ArrayData, Batches
from hardy.errors import DataError, ParameterError
from hardy.methods import Method
from hardy.objective import Objective
from hardy.training.build import build_model, check_size, describe, load_training_data
from hardy.training.folder import Progress, Row, RunFolder, flatten_optimizer, restore_optimizer
from hardy.training.loggers import make_loggers
from hardy.training.optim import Average, learning_rate, make_optimizer
from hardy.training.recipe import Recipe, TrainRecipe, build_methods, load_recipe, method_table
from hardy.training.watch import Watch

__all__ = ["Run", "train"]

log = logging.getLogger(__name__)
OnProgress = Callable[[Progress], None]
TELL_EVERY = 20  # steps between reports of progress on a GPU, where reading a loss waits for the device


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        folder: Where everything of the run lies.
        model: The trained model in eval mode, on the CPU, without train-only methods.
        recipe: What decided it.
        history: One row an epoch: losses, accuracies, learning rate, seconds.
    """

    folder: Path
    model: nn.Module
    recipe: Recipe
    history: list[Row]

    @property
    def seconds(self) -> float:
        """Time of all epochs, validation included."""
        return sum(row["seconds"] for row in self.history)


def train(
    what: nn.Module | Recipe | str | Path,
    data: ArrayData | None = None,
    *,
    out: str | Path | None = None,
    methods: Sequence[Method] = (),
    epochs: int | None = None,
    options: TrainRecipe | None = None,
    augment: tuple[str, ...] = ("crop", "flip"),
    val_data: ArrayData | None = None,
    seed: int | None = None,
    device: str = "auto",
    resume: bool = False,
    overrides: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> Run:
    """Train a model with the methods attached to it, and write a run folder.

    ``train("recipe.toml", out=...)`` builds everything from the recipe. ``train(model, data, methods=[...], epochs=10,
    out=...)`` takes plain objects; the model is trained in place; what is live at test time stays attached.

    Args:
        what: A recipe, its TOML file, or a plain model.
        data: Training images, with a model.
        out: The run folder; must not hold a run unless ``resume``. By default ``runs/NAME`` for a recipe NAME.toml.
        methods: What to attach, with a model.
        epochs: Overrides ``options.epochs``.
        options: How to train, with a model.
        augment: "crop", "flip", with a model.
        val_data: Images for validation, with a model; none: no validation.
        seed: Overrides the seed of a recipe; 0 with a model.
        device: "auto", "cpu", "cuda".
        resume: Go on with the run in ``out`` from its last whole epoch; the weights come out as if never stopped.
        overrides: ``key.sub=value`` texts, with a TOML file.
        on_progress: Called after every step; on a GPU after every 20th, and at the end of an epoch.

    Raises:
        ConfigError: the recipe is wrong.
        DataError: the images are missing or do not fit the net.
        TrainingError: a loss is not finite (the message names step and culprit), or ``out`` holds another run.
    """
    if out is None:
        if not isinstance(what, str | Path):
            raise ParameterError("train: out, the run folder, must be given with a model or a Recipe; got none.")
        out = Path("runs") / Path(what).stem
    if isinstance(what, nn.Module):
        if data is None:
            raise ParameterError("train: with a model, training data must be given; got none. Pass an ArrayData.")
        options = options or TrainRecipe()
        recipe = describe(
            what,
            data,
            methods,
            options if epochs is None else replace(options, epochs=epochs),
            augment=augment,
            seed=seed,
        )
        model = what
    else:
        if data is not None or methods or options is not None:
            raise ParameterError(
                "train: data, methods and options come from the recipe; pass a model to give your own."
            )
        recipe = what if isinstance(what, Recipe) else load_recipe(what, overrides)
        recipe = recipe if seed is None else replace(recipe, seed=seed)
        recipe = recipe if epochs is None else replace(recipe, train=replace(recipe.train, epochs=epochs))
        methods = build_methods(recipe.methods)
        recipe = replace(recipe, methods=tuple(map(method_table, methods)))  # with all defaults, for the run folder
        data, val_data = load_training_data(recipe)
        model = build_model(recipe, data)
    job = _Job(
        recipe,
        model,
        data,
        val_data=val_data,
        methods=methods,
        folder=RunFolder(out),
        device=device,
        on_progress=on_progress,
    )
    return job.run(resume=resume)


class _Job:
    """One training from its first check to its last file."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: ArrayData,
        *,
        val_data: ArrayData | None,
        methods: Sequence[Method],
        folder: RunFolder,
        device: str,
        on_progress: OnProgress | None,
    ) -> None:
        t = recipe.train
        self.recipe, self.model, self.folder, self.on_progress = recipe, model, folder, on_progress
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if t.select == "best" and val_data is None:
            raise ParameterError(
                'train: select = "best" needs validation images; got none. Set val_fraction or val_data, or "last".'
            )
        if data.num_classes < 2:
            raise DataError(f"train: at least 2 classes are needed; {data.name} has {data.num_classes}.")
        if len(data.x) < 2:
            raise DataError(f"train: at least 2 training images are needed; got {len(data.x)}.")
        self.fabric = Fabric(
            accelerator=self.device.partition(":")[0],
            devices=1,
            precision=t.precision,
            loggers=make_loggers(t.loggers, folder.path, recipe),
        )
        device_ = self.fabric.device
        layout = torch.channels_last if t.channels_last else torch.contiguous_format
        model.to(device_, memory_format=layout)  # type: ignore[call-overload]  # memory_format
        self.methods = methods
        check_size(model, data, device_)
        self.attached = surgery.attach(
            model, methods, example=data.subset(torch.tensor([0])).images().to(device_), seed=recipe.seed
        )
        try:
            self.objective = Objective(model, self.attached, seed=recipe.seed)
            self.optimizer = make_optimizer(model, t)
            self.batches = Batches(
                data,
                batch_size=min(t.batch_size, len(data)),
                seed=recipe.seed,
                augment=recipe.data.augment,
                device=device_,
                channels_last=t.channels_last,
            )
        except BaseException:
            self.attached.detach()
            raise
        self.val_data = val_data
        self.average = Average(model, t.ema) if t.ema is not None else None
        self.best: dict[str, Tensor] | None = None
        self.best_accuracy, self.best_epoch = -1.0, 0
        self.rows: list[Row] = []
        self.step = 0

    def run(self, *, resume: bool) -> Run:
        try:
            self.folder.open(self.recipe, resume=resume, device=self.device)
            with self.folder.logging():
                self._work(resume=resume)
        except BaseException:
            self.attached.detach()
            raise
        finally:
            for logger in self.fabric.loggers:
                logger.finalize("done")
        return Run(self.folder.path, self.model, self.recipe, self.rows)

    def _work(self, *, resume: bool) -> None:
        first = self._restore() if resume else 0
        for attachment in self.attached:
            log.info("%r at %s", attachment.insert.spec, ", ".join(attachment.sites) or "the batch")
            for note in attachment.notes:
                log.info("%s: %s", attachment.name, note)
        forward, optimizer = self.fabric.setup(self._compiled(), self.optimizer)
        for epoch in range(first, self.recipe.train.epochs):
            self._epoch(epoch, forward, optimizer)
        self._finish()

    def _compiled(self) -> nn.Module:
        return cast("nn.Module", torch.compile(self.objective)) if self.recipe.train.compile else self.objective

    def _epoch(self, epoch: int, forward: Any, optimizer: Any) -> None:
        t, began = self.recipe.train, time.perf_counter()
        per_epoch = len(self.batches)
        sums: dict[str, Tensor] = {}
        watch = Watch(self.model, self.device)
        right = torch.zeros((), dtype=torch.int64, device=self.fabric.device)
        seen, lr = 0, 0.0
        forward.train()
        for x, y, key in self.batches.epoch(epoch):
            lr = learning_rate(self.step, per_epoch, t)
            for group in optimizer.param_groups:
                group["lr"] = lr
            logits, losses = self._update(forward, optimizer, x, y, key)
            watch.look(self.step, losses, x)
            if self.average is not None:
                self.average.update(self.model)
            for name, value in losses.items():
                sums[name] = sums[name] + value * len(x) if name in sums else value * len(x)
            right += (logits.argmax(1) == y).sum()
            seen += len(x)
            self.step += 1
            if self.step % per_epoch and (self.device == "cpu" or self.step % TELL_EVERY == 0):
                self._tell(epoch, losses, None)
        watch.check()
        watch.check_weights(self.step - 1)
        for attachment in self.attached:
            attachment.insert.epoch_end(epoch)
        row: Row = {"epoch": epoch + 1, "step": self.step, "lr": lr}
        row |= {name: float(total) / seen for name, total in sums.items()}
        row["train_accuracy"] = float(right) / seen
        if self.val_data is not None:
            row["val_accuracy"] = self._validate(self.val_data)
        row["seconds"] = time.perf_counter() - began
        self._save_epoch(row)
        log.info("epoch %d: %s", epoch + 1, "  ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "epoch"))
        self._tell(epoch, losses, row)

    def _update(
        self, forward: Any, optimizer: Any, x: Tensor, y: Tensor, key: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Do one optimizer step; methods may run forward and backward more than once around it."""
        kept: list[Tensor] = []

        def closure() -> dict[str, Tensor]:
            optimizer.zero_grad(set_to_none=True)
            logits, losses = forward(x, y, key)
            self.fabric.backward(torch.stack(list(losses.values())).sum())
            kept[:] = [logits.detach()]
            return {name: value.detach().float() for name, value in losses.items()}

        around: Callable[[], dict[str, Tensor]] = closure
        for attachment in reversed(self.attached):
            if type(attachment.insert).around_step is not surgery.Insert.around_step:
                around = partial(attachment.insert.around_step, around)
        losses = around()
        if self.recipe.train.clip_norm is not None:
            self.fabric.clip_gradients(forward, optimizer, max_norm=self.recipe.train.clip_norm)
        optimizer.step()
        return kept[0], losses

    @torch.no_grad()
    def _validate(self, data: ArrayData) -> float:
        """Measure the accuracy on the validation images, with the averaged weights if there are any."""
        own = None
        if self.average is not None:
            own = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.model.load_state_dict(self.average.values)
        self.model.eval()
        right = sum(
            int((self.model(x.to(self.fabric.device)).argmax(1).cpu() == y).sum())
            for x, y in data.batches(self.recipe.train.batch_size)
        )
        accuracy = right / len(data.x)
        if self.recipe.train.select == "best" and accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = accuracy, len(self.rows) + 1
            self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        if own is not None:
            self.model.load_state_dict(own)
        return accuracy

    def _tell(self, epoch: int, losses: dict[str, Tensor], row: Row | None) -> None:
        if self.on_progress is not None:
            t, steps = self.recipe.train, self.recipe.train.epochs * len(self.batches)
            values = {name: float(value) for name, value in losses.items()}
            self.on_progress(Progress(epoch + 1, t.epochs, self.step, steps, values, row))

    def _save_epoch(self, row: Row) -> None:
        """Write the metrics, then the checkpoint: what is between two is done again after a crash."""
        self.rows.append(row)
        self.folder.write_rows(self.rows)
        self.fabric.log_dict({k: v for k, v in row.items() if k not in {"epoch", "step"}}, step=int(row["step"]))
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in flatten_optimizer(self.optimizer).items()}
        facts: dict[str, Any] = {"epoch": int(row["epoch"]), "step": self.step, "best_accuracy": self.best_accuracy}
        facts["best_epoch"] = self.best_epoch
        facts["attachments"] = {a.name: a.state_dict() for a in self.attached}
        if self.average is not None:
            tensors |= {f"ema.{k}": v for k, v in self.average.values.items()}
            facts["ema_steps"] = self.average.steps
        if self.best is not None:
            tensors |= {f"best.{k}": v for k, v in self.best.items()}
        self.folder.write_checkpoint(tensors, facts)

    def _restore(self) -> int:
        """Load the last checkpoint, if any; give the number of whole epochs done."""
        found = self.folder.read_checkpoint()
        if found is None:
            return 0
        tensors, facts = found

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}

        self.model.load_state_dict(part("model"))
        restore_optimizer(self.optimizer, part("optimizer"))
        for attachment in self.attached:
            attachment.load_state_dict(facts["attachments"][attachment.name])
        if self.average is not None:
            self.average.load(part("ema"), facts["ema_steps"])
        self.best = part("best") or None
        self.best_accuracy, self.best_epoch = facts["best_accuracy"], facts["best_epoch"]
        if self.best is not None:
            self.best = {k: v.to(self.fabric.device) for k, v in self.best.items()}
        self.step = facts["step"]
        self.rows = self.folder.rows()[: facts["epoch"]]
        log.info("resumed after epoch %d", facts["epoch"])
        return int(facts["epoch"])

    def _finish(self) -> None:
        """Put the chosen weights into the model and write it."""
        chosen = self.best if self.best is not None else self.average.values if self.average is not None else None
        if chosen is not None:
            self.model.load_state_dict(chosen)
        surgery.strip_(self.model)
        self.model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]  # memory_format
        row = self.rows[self.best_epoch - 1 if self.best is not None else -1]  # of the weights that are kept
        facts = {"data": self.recipe.data.name, "seed": str(self.recipe.seed), "weights": self._which()}
        io.save(
            self.model,
            self.folder.model_file,
            trained_with=tuple(map(repr, self.methods)),
            metrics={k: float(v) for k, v in row.items() if k not in {"lr", "seconds"}},
            provenance=facts,
        )

    def _which(self) -> str:
        average = "" if self.average is None else " (moving average)"
        return ("best validation epoch" if self.best is not None else "last epoch") + average
