"""Training learns, is paired, resumes bit for bit, and stops with the culprit named."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hardy import io, surgery
from hardy.data import ArrayData, load_data
from hardy.errors import ConfigError, DataError, ParameterError, TrainingError
from hardy.methods import DefectiveConv, LabelSmoothing, LocalFeatureMasking, SpatialDropout
from hardy.training import DataRecipe, EvaluateRecipe, ModelRecipe, Progress, Recipe, TrainRecipe, train

BASE = Recipe(
    model=ModelRecipe(name="cifar_resnet8", args={"width": 4}),
    data=DataRecipe(name="digits", limit=256, augment=("crop",)),
    train=TrainRecipe(epochs=3, batch_size=64, lr=0.1),
)
METHODS = ({"name": "lfm", "p": 1.0}, {"name": "defective_conv"}, {"name": "random_erasing"})


def recipe(**changes: Any) -> Recipe:
    return replace(BASE, train=replace(BASE.train, **changes), methods=METHODS)


def weights(folder: Path) -> dict[str, Tensor]:
    return io.read_tensors(folder / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_net_learns_the_digits_and_leaves_a_whole_run_folder(tmp_path: Path) -> None:
    seen: list[Progress] = []
    big = replace(BASE, data=replace(BASE.data, limit=None), train=replace(BASE.train, epochs=4))
    run = train(big, out=tmp_path / "run", on_progress=seen.append)
    assert run.history[-1]["val_accuracy"] > 0.85  # chance is 0.1
    assert not run.model.training and surgery.attachments(run.model) == []
    names = {p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*") if p.is_file()}
    assert names == {
        "recipe.toml",
        "env.json",
        "metrics.jsonl",
        "checkpoints/last.safetensors",
        "model.safetensors",
        "log.txt",
    }
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == run.history and [row["epoch"] for row in lines] == [1, 2, 3, 4]
    assert {"task", "lr", "train_accuracy", "val_accuracy", "seconds", "step"} <= lines[0].keys()
    assert [p.step for p in seen] == list(range(1, len(seen) + 1)) and seen[-1].step == seen[-1].steps
    assert len([p for p in seen if p.row is not None]) == 4
    x = load_data("digits").images()
    assert torch.equal(io.load(run.folder / "model.safetensors")(x), run.model(x))


def test_what_happened_is_in_the_log_and_the_logger_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("hardy")
    before = logger.level, list(logger.handlers)
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(recipe(epochs=1).to_toml())
    run = train("small.toml")
    assert run.folder == Path("runs/small")
    text = (run.folder / "log.txt").read_text()
    assert "LocalFeatureMasking(p=1.0" in text and "at net.conv1" in text and "epoch 1: step" in text
    assert (logger.level, list(logger.handlers)) == before


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    a, b = train(recipe(epochs=1), out=tmp_path / "a"), train(recipe(epochs=1), out=tmp_path / "b")
    c = train(recipe(epochs=1), out=tmp_path / "c", seed=1)
    assert same(weights(a.folder), weights(b.folder)) and not same(weights(a.folder), weights(c.folder))


def test_arms_are_paired_a_method_that_does_nothing_changes_nothing(tmp_path: Path) -> None:
    plain = train(BASE, out=tmp_path / "a")
    idle = replace(BASE, methods=({"name": "lfm", "p": 0.0}, {"name": "random_erasing", "p": 0.0}))
    assert same(weights(plain.folder), weights(train(idle, out=tmp_path / "b").folder))


class StopError(Exception):
    """What the tests stop a training with."""


def stop_at(step: int) -> Callable[[Progress], None]:
    def on_progress(p: Progress) -> None:
        if p.step == step:
            raise StopError

    return on_progress


@pytest.mark.parametrize("step", [1, 5, 8])
@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "optimizer": "adamw", "lr": 0.01}, {"select": "best"}])
def test_a_stopped_run_resumes_to_the_same_weights(step: int, options: dict[str, Any], tmp_path: Path) -> None:
    whole = train(recipe(**options), out=tmp_path / "whole")
    with pytest.raises(StopError):
        train(recipe(**options), out=tmp_path / "part", on_progress=stop_at(step))
    resumed = train(recipe(**options), out=tmp_path / "part", resume=True)
    assert same(weights(whole.folder), weights(resumed.folder))

    def timeless(rows: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    assert timeless(whole.history) == timeless(resumed.history)
    again = train(recipe(**options), out=tmp_path / "part", resume=True)  # finished: nothing left to do
    assert same(weights(whole.folder), weights(again.folder))


@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "optimizer": "adamw", "lr": 0.01, "select": "best"}])
def test_a_run_stopped_within_an_epoch_goes_on_at_that_step(step: int, options: dict[str, Any], tmp_path: Path) -> None:
    whole = train(recipe(**options), out=tmp_path / "whole")
    with pytest.raises(StopError):
        train(recipe(**options, save_every=2), out=tmp_path / "part", on_progress=stop_at(step))
    saved = io.read_tensors(tmp_path / "part" / "checkpoints" / "last.safetensors")
    assert not same({k: saved[f"model.{k}"] for k in weights(whole.folder)}, weights(whole.folder))
    seen: list[Progress] = []
    resumed = train(recipe(**options), out=tmp_path / "part", resume=True, on_progress=seen.append)  # of no weight
    assert seen[0].step == step // 2 * 2 + 1
    assert same(weights(whole.folder), weights(resumed.folder))
    for ours, theirs in zip(whole.history, resumed.history, strict=True):
        assert list(ours) == list(theirs)  # in the same order
        assert {k: v for k, v in ours.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}
    with pytest.raises(ParameterError, match=r"save_every must be at least 1 step; got 0"):
        recipe(save_every=0)


class Drops(nn.Module):
    """A net with a dropout of its own, which draws from torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
        with torch.no_grad():
            self.net[2].weight.fill_(0.01), self.net[2].bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def test_what_the_net_itself_draws_is_drawn_again_and_no_trace_is_left(tmp_path: Path) -> None:
    _, data = tiny()
    options = TrainRecipe(epochs=2, batch_size=16, save_every=3)
    model, state = Drops(), torch.get_rng_state()
    whole = train(model, data, options=options, out=tmp_path / "whole", augment=())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    with pytest.raises(StopError):
        train(Drops(), data, options=options, out=tmp_path / "part", augment=(), on_progress=stop_at(3))
    resumed = train(Drops(), data, options=options, out=tmp_path / "part", augment=(), resume=True)
    assert same(whole.model.state_dict(), resumed.model.state_dict())


def test_a_run_is_not_overwritten_and_another_recipe_does_not_resume_it(tmp_path: Path) -> None:
    train(recipe(epochs=1), out=tmp_path / "a")
    before = weights(tmp_path / "a")
    with pytest.raises(TrainingError, match=r"already holds a run. Choose another --out, or go on with it by --resume"):
        train(recipe(epochs=1), out=tmp_path / "a")
    with pytest.raises(TrainingError, match=r"recipe.toml is not the recipe given"):
        train(recipe(epochs=2), out=tmp_path / "a", resume=True)
    assert same(before, weights(tmp_path / "a"))
    other = replace(recipe(epochs=1), evaluate=EvaluateRecipe(suite="quick"))  # decides no weight
    assert same(before, weights(train(other, out=tmp_path / "a", resume=True).folder))


def test_a_loss_that_is_not_finite_stops_with_step_and_culprit(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss 'task' was not at step \d+, and the weights of .* are not finite"):
        train(recipe(lr=1e20), out=tmp_path / "a")
    assert (tmp_path / "a" / "recipe.toml").exists() and not (tmp_path / "a" / "model.safetensors").exists()


def tiny() -> tuple[nn.Module, ArrayData]:
    data = load_data("digits", split="train").limit(64)
    return io.load_model("cifar_resnet8", num_classes=10, in_channels=1, args={"width": 4}), data


@dataclass(frozen=True)
class Bad:
    """A method with a term that overflows after two steps and that watches its contract."""

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        return surgery.insert(model, BadInsert(self, seed=seed), method="bad")


class BadInsert(surgery.Insert):
    calls = 0

    def terms(self, context: surgery.Context) -> dict[str, Tensor]:
        self.calls += 1
        return {"penalty": context.logits.sum() * (float("inf") if self.calls > 2 else 0.0)}


def test_the_term_that_is_not_finite_is_named(tmp_path: Path) -> None:
    model, data = tiny()
    options = TrainRecipe(epochs=4, batch_size=32)
    with pytest.raises(TrainingError, match=r"loss 'penalty' was not at step 2, (while images|and the weights)"):
        train(model, data, methods=[Bad()], options=options, out=tmp_path / "a")
    assert surgery.attachments(model) == []  # nothing stays attached


class Root(nn.Module):
    """A net whose loss is finite where its gradient is not: the square root of a square, at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros(1))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)) + (self.s * self.s).sqrt()


def test_a_gradient_that_is_not_finite_in_the_last_step_is_not_saved(tmp_path: Path) -> None:
    _, data = tiny()
    with pytest.raises(TrainingError, match=r"weights must stay finite; s was not after step 0"):
        train(Root(), data, options=TrainRecipe(epochs=1, batch_size=64), out=tmp_path / "a", augment=())
    assert not (tmp_path / "a" / "model.safetensors").exists() and not (tmp_path / "a" / "checkpoints").exists()


def test_the_metrics_in_the_file_are_those_of_the_weights_in_it(tmp_path: Path) -> None:
    run = train(recipe(epochs=4, select="best", lr=1.0), out=tmp_path / "a")
    best = max(run.history, key=lambda row: row["val_accuracy"])
    metrics = io.read(run.folder / "model.safetensors").metrics
    assert metrics["val_accuracy"] == best["val_accuracy"] and metrics["epoch"] == best["epoch"]
    val = load_data("digits", split="val")
    right = (run.model(val.images()).argmax(1) == val.y).float().mean().item()
    assert right == pytest.approx(best["val_accuracy"])
    model, data = tiny()
    with pytest.raises(ParameterError, match=r"needs validation images"):
        train(model, data, options=TrainRecipe(epochs=1, select="best"), out=tmp_path / "b")


@dataclass(frozen=True)
class Twice:
    """A method that runs every step twice and counts the ends of epochs."""

    log: list[str]

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        return surgery.insert(model, TwiceInsert(self, seed=seed), method="twice")


class TwiceInsert(surgery.Insert):
    def around_step(self, closure: Callable[[], dict[str, Tensor]], step: Callable[[], None]) -> dict[str, Tensor]:
        first = closure()
        second = closure()
        self.spec.log.append("step")
        assert first.keys() == second.keys()
        return second

    def epoch_end(self, epoch: int) -> None:
        self.spec.log.append(f"end {epoch}")


def test_around_step_and_epoch_end_are_called(tmp_path: Path) -> None:
    model, data = tiny()
    log: list[str] = []
    train(model, data, methods=[Twice(log)], options=TrainRecipe(epochs=2, batch_size=32), out=tmp_path / "a")
    assert log == ["step", "step", "end 0", "step", "step", "end 1"]


def test_a_model_of_the_user_is_trained_in_place_and_its_methods_come_off(tmp_path: Path) -> None:
    model, data = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    methods = [LocalFeatureMasking(), LabelSmoothing(), SpatialDropout()]
    run = train(model, data, methods=methods, epochs=1, out=tmp_path / "a", augment=())
    assert run.model is model and list(model.state_dict()) == list(before)
    assert not torch.equal(model.state_dict()["net.conv1.weight"], before["net.conv1.weight"])
    assert io.read(run.folder / "model.safetensors").trained_with == tuple(map(repr, methods))
    assert "val_accuracy" not in run.history[-1]


def test_masks_stay_in_the_file_of_the_run_and_in_its_model(tmp_path: Path) -> None:
    model, data = tiny()
    run = train(model, data, methods=[DefectiveConv()], epochs=1, out=tmp_path / "a")
    x = data.images()
    assert torch.equal(io.load(run.folder / "model.safetensors")(x), run.model(x))
    assert len(surgery.attachments(run.model)) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"clip_norm": 1.0, "schedule": "one_cycle", "warmup_epochs": 0.5},
        {"precision": "bf16-mixed"},
        {"channels_last": True, "schedule": "step"},
        {"loggers": ("csv", "tensorboard")},
    ],
)
def test_options_train_to_finite_losses(options: dict[str, Any], tmp_path: Path) -> None:
    run = train(recipe(epochs=1, **options), out=tmp_path / "a")
    assert run.history[-1]["task"] < 3
    logs = {p.name for p in (run.folder / "logs").rglob("*") if p.is_file()}
    if "loggers" in options:
        assert "metrics.csv" in logs and any("tfevents" in name for name in logs)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    model, data = tiny()
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    options = TrainRecipe(epochs=1, batch_size=64, lr=0.5, momentum=0.0, weight_decay=0.0, clip_norm=0.01)
    train(model, data, options=options, out=tmp_path / "a")
    moved = sum((v.detach() - before[k]).pow(2).sum() for k, v in model.named_parameters())
    assert float(moved) ** 0.5 <= 0.5 * 0.01 * 1.001


def test_mistakes_are_found_before_the_first_step(tmp_path: Path) -> None:
    model, data = tiny()
    with pytest.raises(ParameterError, match=r"training data must be given"):
        train(model, out=tmp_path / "a")
    with pytest.raises(ParameterError, match=r"out, the run folder, must be given"):
        train(model, data)
    with pytest.raises(ParameterError, match=r"come from the recipe"):
        train(BASE, data, out=tmp_path / "a")
    with pytest.raises(ParameterError, match=r"no augmentation 'rotate'; known: crop, flip"):
        train(model, data, augment=("rotate",), out=tmp_path / "a")
    with pytest.raises(DataError, match=r"at least 2 training images"):
        train(model, data.limit(1), out=tmp_path / "a")
    with pytest.raises(ConfigError, match=r"cannot read"):
        train(tmp_path / "none.toml", out=tmp_path / "a")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ParameterError, match=r"must have parameters that require gradients"):
        train(model, data, methods=[LocalFeatureMasking()], out=tmp_path / "a")
    assert surgery.attachments(model) == []
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("left", [48, 60])
def test_a_run_does_not_go_on_with_other_images(left: int, tmp_path: Path) -> None:
    model, data = tiny()
    with pytest.raises(StopError):
        train(
            model, data, epochs=2, options=TrainRecipe(batch_size=4), out=tmp_path, augment=(), on_progress=stop_at(20)
        )
    fewer = data.subset(torch.arange(left))
    with pytest.raises(TrainingError, match="needs the images that the run began with"):
        train(tiny()[0], fewer, epochs=2, options=TrainRecipe(batch_size=4), out=tmp_path, augment=(), resume=True)


def test_a_gradient_that_overflows_is_named_with_clipping_too(tmp_path: Path) -> None:
    model, data = tiny()
    options = TrainRecipe(epochs=2, batch_size=16, lr=1e38, clip_norm=1.0)
    with pytest.raises(TrainingError, match="finite"):
        train(model, data, options=options, out=tmp_path, augment=())
