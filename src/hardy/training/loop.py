"""The training loop: recipe in, run folder out. One plain file on Lightning Fabric."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hardy import io, seeding, surgery
from hardy.data import make_batches, named_worker_errors
from hardy.errors import ParameterError
from hardy.inserts import training_passes
from hardy.methods import Method
from hardy.objective import Objective
from hardy.training.build import Data, build_in_turn, check_data, check_size, describe, with_teachers
from hardy.training.finetune import FineTuning, class_weights
from hardy.training.folder import Progress, Row, RunFolder
from hardy.training.loggers import Loggers, make_loggers
from hardy.training.optim import Average, learning_rate, make_optimizer, set_learning_rate
from hardy.training.ranks import TrainingRanks, job
from hardy.training.recipe import Recipe, TrainRecipe, build_methods, load_recipe, method_table
from hardy.training.state import State, Tally, fingerprint
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
    data: Data | None = None,
    *,
    out: str | Path | None = None,
    methods: Sequence[Method] = (),
    epochs: int | None = None,
    options: TrainRecipe | None = None,
    augment: tuple[str, ...] = ("crop", "flip"),
    val_data: Data | None = None,
    seed: int | None = None,
    device: str = "auto",
    resume: bool = False,
    overrides: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> Run:
    """Train a model with the methods attached to it, and write a run folder.

    ``train("recipe.toml", out=...)`` builds everything from the recipe. ``train(model, data, methods=[...], epochs=10,
    out=...)`` takes plain objects; the model is trained in place; what is live at test time stays attached.

    Called in every process that ``torchrun`` or ``fabric run`` starts, it trains one net over all of them: each takes
    its share of every batch, and rank 0 writes the files (docs/devices.md).

    Args:
        what: A recipe, its TOML file, or a plain model.
        data: Training images, with a model.
        out: The run folder; must not hold a run unless ``resume``. By default ``runs/NAME`` for a recipe NAME.toml.
        methods: What to attach, with a model.
        epochs: Overrides ``options.epochs``.
        options: How to train, with a model.
        augment: Of "crop", "resized_crop", "flip", with a model.
        val_data: Images for validation, with a model; none: no validation.
        seed: Overrides the seed of a recipe; 0 with a model.
        device: "auto", "cpu", "cuda".
        resume: Go on with the run in ``out`` from its last checkpoint; the weights come out as if never stopped. In
            processes that ``torchrun`` has restarted this happens by itself.
        overrides: ``key.sub=value`` texts, with a TOML file.
        on_progress: Called after every step; on a GPU after every 20th, and at the end of an epoch. In rank 0 only.

    Raises:
        ConfigError: the recipe is wrong.
        DataError: the images are missing or do not fit the net.
        TrainingError: a loss is not finite (the message names step and culprit), or ``out`` holds another run.
        RankError: another process of several has died.
    """
    if out is None:
        if not isinstance(what, str | Path):
            raise ParameterError("train: out, the run folder, must be given with a model or a Recipe; got none.")
        out = Path("runs") / Path(what).stem
    folder = RunFolder(out)
    if isinstance(what, nn.Module):
        if data is None:
            raise ParameterError("train: with a model, training data must be given; got none. Pass an ArrayData.")
        options = options or TrainRecipe()
        options = options if epochs is None else replace(options, epochs=epochs)
        recipe = describe(what, data, methods, options, augment=augment, seed=seed)
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
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    ranks = TrainingRanks(device, precision=recipe.train.precision)
    with ranks.together():
        with ranks.agree():
            folder.check_writable()
        if isinstance(what, nn.Module):
            model = what
        else:
            with folder.listening():
                data, val_data, model = build_in_turn(recipe, ranks)
        task = _Job(
            recipe,
            model,
            cast("Data", data),
            val_data=val_data,
            methods=methods,
            folder=folder,
            device=device,
            ranks=ranks,
            on_progress=on_progress,
        )
        return task.run(resume=resume)


class _Job:
    """One training from its first check to its last file."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: Data,
        *,
        val_data: Data | None,
        methods: Sequence[Method],
        folder: RunFolder,
        device: str,
        ranks: TrainingRanks,
        on_progress: OnProgress | None,
    ) -> None:
        self.recipe, self.model, self.folder, self.device, self.ranks = recipe, model, folder, device, ranks
        self.data, self.val_data, self.methods = data, val_data, methods
        self.batch_size = min(recipe.train.batch_size, len(data))  # of every step, over all processes
        self.on_progress = on_progress if ranks.first else None
        self.attached = surgery.Attachments()
        try:
            with ranks.agree():
                check_data(recipe, data, val_data)
                self._prepare()
            ranks.same_(model)
        except BaseException:
            self.attached.detach()
            raise
        t = recipe.train
        average = Average(model, t.ema) if t.ema is not None else None
        self.state = State(model, self.optimizer, self.attached, average, data=fingerprint(data, val_data))

    def _prepare(self) -> None:
        """Put everything together; nothing of it talks to other processes."""
        recipe, t, model, data, device = self.recipe, self.recipe.train, self.model, self.data, self.ranks.device
        self.loggers = Loggers(make_loggers(t.loggers, self.folder.path, recipe) if self.ranks.first else ())
        layout = torch.channels_last if t.channels_last else torch.contiguous_format
        model.to(device, memory_format=layout)  # type: ignore[call-overload]  # memory_format
        check_size(model, data, device)
        example = data.subset(torch.tensor([0])).images().to(device)
        weights = class_weights(t.class_weights, data.y, data.class_names)
        self.tuning = FineTuning(model, t, example)
        self.attached = surgery.attach(model, with_teachers(self.methods), example=example, seed=recipe.seed)
        self.objective = Objective(model, self.attached, seed=recipe.seed, class_weights=weights)
        self.optimizer = make_optimizer(model, t, self.tuning.factors)
        self.batches = make_batches(
            data,
            batch_size=self.batch_size,
            seed=recipe.seed,
            augment=recipe.data.augment,
            device=device,
            channels_last=t.channels_last,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
        )

    def run(self, *, resume: bool) -> Run:
        cuda = [self.ranks.device] if self.ranks.device.type == "cuda" else []
        try:
            with ExitStack() as stack:
                with self.ranks.agree():
                    if self.ranks.first:
                        resume = resume or self.folder.belongs_to(job())
                        work = self.folder.at_work(self.recipe, resume=resume, device=self.device, job=job())
                        stack.enter_context(work)
                        skipped = sum((part.skipped for part in (self.data, self.val_data) if part is not None), ())
                        self.folder.note_skipped(skipped, resume=resume)
                stack.enter_context(torch.random.fork_rng(cuda))
                stack.enter_context(named_worker_errors())
                stack.enter_context(closing(self.batches))
                self._work(resume=self.ranks.tell(resume))
        except BaseException:
            self.attached.detach()
            raise
        finally:
            self.tuning.end()
            self.loggers.close()
        return Run(self.folder.path, self.model, self.recipe, self.state.rows)

    def _work(self, *, resume: bool) -> None:
        if resume:
            self._restore()
        if self.ranks.size > 1:
            log.info("%r share each batch of %d images", self.ranks, self.batch_size)
        for attachment in self.attached:
            log.info("%r at %s", attachment.insert.spec, ", ".join(attachment.sites) or "the batch")
            for note in attachment.notes:
                log.info("%s: %s", attachment.name, note)
        for note in self.tuning.notes():
            log.info("%s", note)
        with self.ranks.norms(self.model):
            objective = torch.compile(self.objective) if self.recipe.train.compile else self.objective
            forward, optimizer = self.ranks.fabric.setup(cast("nn.Module", objective), self.optimizer)
            for epoch in range(len(self.state.rows), self.recipe.train.epochs):
                self._epoch(epoch, forward, optimizer)
        self._finish()

    def _epoch(self, epoch: int, forward: Any, optimizer: Any) -> None:
        """Train for an epoch, or for the rest of one, and write what came out."""
        t, state = self.recipe.train, self.state
        per_epoch, tally, lr = len(self.batches), state.tally, 0.0
        began = time.perf_counter() - tally.seconds
        watch = Watch(self.model, self.device)
        forward.train()
        self.tuning.begin(epoch)
        for x, y, key, *more in self.batches.epoch(epoch, start=state.step - epoch * per_epoch):
            lr = learning_rate(state.step, per_epoch, t)
            set_learning_rate(optimizer, lr)
            # what the net itself draws, its own dropout say, is drawn again by a resumed run
            seed = seeding.root(self.recipe.seed, f"layers:{state.step}:{self.ranks.rank}")
            seeding.seed_torch(seed, self.ranks.device)
            logits, losses = self._update(forward, optimizer, x, y, key, *more)
            right = (logits.argmax(1) == y).sum()
            losses, right = self.ranks.pooled(losses, right, here=len(x), everywhere=self.batch_size)
            watch.look(state.step, losses, x)
            if state.average is not None:
                state.average.update(self.model)
            tally.add(losses, right, self.batch_size)
            state.step += 1
            if t.save_every is not None and state.step % t.save_every == 0 and state.step % per_epoch:
                watch.check()
                watch.check_weights(state.step - 1)
                self._save(time.perf_counter() - began)
            if state.step % per_epoch and (self.device == "cpu" or state.step % TELL_EVERY == 0):
                self._tell(epoch, losses, None)
        watch.check()
        watch.check_weights(state.step - 1)
        for attachment in self.attached:
            attachment.insert.epoch_end(epoch)
        row: Row = {"epoch": epoch + 1, "step": state.step, "lr": lr, **tally.row()}
        row |= training_passes([attachment.insert for attachment in self.attached], epochs=1)
        if self.val_data is not None:
            row["val_accuracy"] = self._validate(self.val_data)
        row["seconds"] = time.perf_counter() - began
        self._end_epoch(row)
        self._tell(epoch, losses, row)

    def _update(
        self, forward: Any, optimizer: Any, x: Tensor, y: Tensor, *more: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Do an optimizer step; methods may run forward and backward more than once, and step in between."""
        kept: list[Tensor] = []
        share = self.ranks.share(len(x), self.batch_size)

        def closure() -> dict[str, Tensor]:
            optimizer.zero_grad(set_to_none=True)
            logits, losses = forward(x, y, *more)
            total = torch.stack(list(losses.values())).sum()
            self.ranks.fabric.backward(total if share == 1 else total * share)
            kept[:] = [logits.detach()]
            return {name: value.detach().float() for name, value in losses.items()}

        def step() -> None:
            if self.recipe.train.clip_norm is not None:
                norm = self.recipe.train.clip_norm  # what is not finite is left to the watch, which names the culprit
                self.ranks.fabric.clip_gradients(forward, optimizer, max_norm=norm, error_if_nonfinite=False)
            optimizer.step()
            self.ranks.average_norms_(self.model)

        around: Callable[[], dict[str, Tensor]] = closure
        for attachment in reversed(self.attached):
            if type(attachment.insert).around_step is not surgery.Insert.around_step:
                around = partial(attachment.insert.around_step, around, step)
        losses = around()
        step()
        return kept[0], losses

    @torch.no_grad()
    def _validate(self, data: Data) -> float:
        """Measure the accuracy on the validation images, with the averaged weights if there are any."""
        state, own = self.state, None
        if state.average is not None:
            own = state.weights()
            self.model.load_state_dict(state.average.values)
        self.model.eval()
        right = 0
        if (mine := self.ranks.part(data)) is not None:
            for x, y in mine.batches(self.recipe.train.batch_size):
                right += int((self.model(x.to(self.ranks.device)).argmax(1).cpu() == y).sum())
        accuracy = int(self.ranks.total([torch.tensor(right)])) / len(data)
        if self.recipe.train.select == "best" and accuracy > state.best_accuracy:
            state.best_accuracy, state.best_epoch = accuracy, len(state.rows) + 1
            state.best = state.weights()
        if own is not None:
            self.model.load_state_dict(own)
        return accuracy

    def _tell(self, epoch: int, losses: dict[str, Tensor], row: Row | None) -> None:
        if self.on_progress is not None:
            t, steps = self.recipe.train, self.recipe.train.epochs * len(self.batches)
            values = {name: float(value) for name, value in losses.items()}
            self.on_progress(Progress(epoch + 1, t.epochs, self.state.step, steps, values, row))

    def _end_epoch(self, row: Row) -> None:
        """Write the metrics, then the checkpoint: what is between two is done again after a crash."""
        self.state.rows.append(row)
        self.state.tally = Tally()
        with self.ranks.agree():
            if self.ranks.first:
                self.folder.write_rows(self.state.rows)
        self._save()
        self.loggers.log(self.state.rows)  # after a kill, an epoch may be missing there; none is there twice
        log.info("epoch %d: %s", row["epoch"], "  ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "epoch"))

    def _save(self, seconds: float | None = None) -> None:
        """Write a checkpoint; within an epoch with the time that it has taken so far."""
        with self.ranks.agree():
            if self.ranks.first:
                self.folder.write_checkpoint(*self.state.pack(seconds))

    def _restore(self) -> None:
        """Go back to the last checkpoint, if any; rank 0 reads it for all."""
        found: tuple[Any, ...] | None = None
        with self.ranks.agree():
            if self.ranks.first and (checkpoint := self.folder.read_checkpoint()) is not None:
                found = (*checkpoint, self.folder.rows())
        found = self.ranks.tell(found)
        if found is None:
            return
        with self.ranks.agree():
            self.state.unpack(*found, device=self.ranks.device)
        log.info("resumed after epoch %d, step %d", len(self.state.rows), self.state.step)

    def _finish(self) -> None:
        """Put the chosen weights into the model and write it."""
        state = self.state
        chosen = state.best if state.best is not None else state.average.values if state.average is not None else None
        if chosen is not None:
            self.model.load_state_dict(chosen)
        surgery.strip_(self.model)
        self.model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]  # memory_format
        row = state.rows[state.best_epoch - 1 if state.best is not None else -1]  # of the weights that are kept
        total = training_passes([a.insert for a in self.attached], epochs=len(state.rows))  # kept in the end or not
        facts = {"data": self.recipe.data.name, "seed": str(self.recipe.seed), "weights": self._which()}
        with self.ranks.agree():
            if self.ranks.first:
                io.save(
                    self.model,
                    self.folder.model_file,
                    trained_with=tuple(map(repr, self.methods)),
                    metrics={k: float(v) for k, v in row.items() if k not in {"lr", "seconds"}} | total,
                    provenance=facts,
                )

    def _which(self) -> str:
        average = "" if self.state.average is None else " (moving average)"
        return ("best validation epoch" if self.state.best is not None else "last epoch") + average
