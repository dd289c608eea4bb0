"""Recipes: everything that decides a run, in one frozen dataclass and one TOML file."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from hardy import config
from hardy.data.augment import Augment, check_augment
from hardy.errors import ConfigError, ParameterError, did_you_mean
from hardy.methods import METHODS, PRESETS, Method
from hardy.models import Arg

__all__ = ["DataRecipe", "EvaluateRecipe", "ModelRecipe", "Recipe", "TrainRecipe", "build_methods", "load_recipe"]


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """Which net.

    Attributes:
        name: As ``hardy.load_model`` takes it; "external" in runs of a module that the caller built.
        pretrained: True, or a weights file.
        mean: Overrides the normalisation of the net, in pixels in [0, 1].
        std: Likewise.
        args: Further arguments of the builder.
    """

    name: str
    pretrained: bool | str = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    args: dict[str, Arg] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Which images.

    Attributes:
        name: ``digits``, ``npz:FILE``, ``folder:DIR``, ``imagenet:DIR``, ``cifar10:DIR`` and other published sets
            (:func:`hardy.load_data` lists them); "external" for data that the caller passed.
        size: Height and width to which a folder's images are resized.
        limit: Number of training images to use, chosen by the seed.
        val_fraction: Share of the training images set aside for validation, in [0, 1).
        augment: What is done to training images: "crop" (pad and crop), "resized_crop" (a window of 0.08 to 1 of the
            area, enlarged), "flip" (mirror half of them).
        stream: Leave the images on the disk and read them while training: true, false, or "auto": what is too large for
            the memory, and folders of images with "resized_crop" (:func:`hardy.data.open_data`).
        workers: Processes that read streamed images; "auto": one per core but one, at most 8. Weights do not depend on
            it.
        download: Let torchvision fetch a published set that is not there, and unpack archives that are.
        skip_bad: Leave out images of a folder that cannot be read, in training and evaluation, and list them in
            ``skipped.txt``; otherwise they are an error.
    """

    name: str
    size: int | None = None
    limit: int | None = None
    val_fraction: float = 0.1
    augment: tuple[Augment, ...] = ("crop", "flip")
    stream: bool | Literal["auto"] = "auto"
    workers: int | Literal["auto"] = "auto"
    download: bool = False
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ParameterError(f"val_fraction must be in [0, 1); got {self.val_fraction}.")
        if self.workers != "auto" and self.workers < 0:
            raise ParameterError(f'workers must be at least 0, or "auto"; got {self.workers}.')
        check_augment(self.augment)


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """How to train.

    Attributes:
        epochs: Passes over the training images, at least 1.
        batch_size: Images a step, at least 1; at the end of an epoch a batch that is not full is left out.
        optimizer: "sgd" (Nesterov momentum) or "adamw".
        lr: Highest learning rate.
        momentum: Of SGD, in [0, 1).
        weight_decay: Of all weights but biases, norms and other vectors.
        schedule: "cosine" to zero, "step" (times ``gamma`` at each milestone), "one_cycle" (up to ``lr`` in the first
            30 %, then down to zero, by cosines), "constant".
        milestones: Where "step" steps, as shares of the training, in (0, 1).
        gamma: Factor of "step".
        warmup_epochs: Epochs of linear warm-up from near zero; may be a fraction.
        ema: Decay of an exponential moving average of the weights, which is then what is validated and saved.
        precision: "32-true", or "bf16-mixed" where the device has it.
        channels_last: Keep images and weights in channels-last memory order.
        clip_norm: Largest norm of the gradient; larger ones are scaled down.
        select: "last" keeps the last weights, "best" those with the best validation accuracy.
        compile: Compile the objective with ``torch.compile``.
        save_every: Steps between checkpoints within an epoch, for epochs that are long; none: one at the end of each.
        loggers: Where to write metrics besides ``metrics.jsonl``.
        freeze: What does not train, norms included, which keep their statistics: modules, globs, stages ("stem",
            "stage1", "bottom"), "head" (the layer that makes the logits), "all_but_head", or "all_but:" and a site.
        freeze_epochs: Epochs after which it trains with the rest; none: never.
        layer_decay: Factor of the learning rate per stage away from the head, in (0, 1]: the head has 1, the last stage
            the factor itself, the one before its square, and so on to the stem.
        lr_factors: Factors of the learning rate by site (as ``freeze`` takes them), above 0, on top of ``layer_decay``;
            of two sites that share a parameter the later counts. ``{head = 10}``: a new head that learns faster.
        class_weights: Weights of the classes in the task loss: "balanced" (images / (classes * images of the class)) or
            one number per class; scaled so that their mean over the training images is 1.
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step", "one_cycle", "constant"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    ema: float | None = None
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    channels_last: bool = False
    clip_norm: float | None = None
    select: Literal["last", "best"] = "last"
    compile: bool = False
    save_every: int | None = None
    loggers: tuple[Literal["csv", "tensorboard", "wandb", "mlflow"], ...] = ()
    freeze: tuple[str, ...] = ()
    freeze_epochs: int | None = None
    layer_decay: float | None = None
    lr_factors: dict[str, float] = field(default_factory=dict, hash=False)
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        positive = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr, "gamma": self.gamma}
        for name, value in positive.items():
            if not value > 0:
                raise ParameterError(f"{name} must be above 0; got {value}.")
        if self.weight_decay < 0 or self.warmup_epochs < 0:
            raise ParameterError(
                f"weight_decay and warmup_epochs must be at least 0; got {self.weight_decay}, {self.warmup_epochs}."
            )
        if self.warmup_epochs >= self.epochs:
            raise ParameterError(
                f"warmup_epochs must be below epochs = {self.epochs}; got {self.warmup_epochs}. "
                "For a quick try: --set train.warmup_epochs=0."
            )
        if not 0 <= self.momentum < 1:
            raise ParameterError(f"momentum must be in [0, 1); got {self.momentum}.")
        if self.save_every is not None and self.save_every < 1:
            raise ParameterError(f"save_every must be at least 1 step; got {self.save_every}. Leave it out for none.")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ParameterError(f"ema must be in [0, 1); got {self.ema}.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ParameterError(f"clip_norm must be above 0; got {self.clip_norm}. Leave it out for no clipping.")
        if not all(0 < m < 1 for m in self.milestones) or list(self.milestones) != sorted(set(self.milestones)):
            raise ParameterError(
                f"milestones must rise within (0, 1), as shares of the training; got {self.milestones}."
            )
        self._check_fine_tuning()

    def _check_fine_tuning(self) -> None:
        if self.freeze_epochs is not None and (self.freeze_epochs < 1 or not self.freeze):
            raise ParameterError(
                f"freeze_epochs must be at least 1, with freeze to say what; got {self.freeze_epochs}, {self.freeze}."
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ParameterError(f"layer_decay must be in (0, 1]; got {self.layer_decay}.")
        for site, factor in self.lr_factors.items():
            if not 0 < factor < math.inf:
                raise ParameterError(
                    f"lr_factors: {site!r} must be above 0 and finite; got {factor}. For no training, use freeze."
                )
        weights = self.class_weights
        if isinstance(weights, tuple) and not (all(0 <= w < math.inf for w in weights) and sum(weights) > 0):
            raise ParameterError(f"class_weights must be finite, at least 0, and not all 0; got {weights}.")


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe:
    """What ``hardy evaluate RUN`` measures, unless its options say otherwise.

    Attributes:
        axes: Names of axes; None: the default ones.
        norm: Of the threat.
        eps: Budget of the threat, in pixels in [0, 1]; "8/255" works.
        limit: Number of test images, chosen by the seed.
        suite: Attacks of ``white_box``: "standard", "quick", "full", or names of attacks, as in "pgd,square".
    """

    axes: tuple[str, ...] | None = None
    norm: Literal["linf", "l2", "l1"] = "linf"
    eps: float = 8 / 255
    limit: int | None = None
    suite: str = "standard"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run.

    Attributes:
        seed: Seed of weights, order, augmentation and methods.
        model: Which net.
        data: Which images.
        methods: One table each: ``name``, the fields of the method, and ``preset`` for those of a preset.
        train: How to train.
        evaluate: What to measure afterwards.
    """

    seed: int = 0
    model: ModelRecipe
    data: DataRecipe
    methods: tuple[dict[str, Any], ...] = ()
    train: TrainRecipe = TrainRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()

    def to_toml(self) -> str:
        """Write the recipe with all its defaults; :func:`load_recipe` reads it back."""
        return config.dump(self)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe; unknown keys, wrong types and values out of range are errors that name the key.

    Args:
        path: TOML file.
        overrides: ``key.sub=value`` texts, applied in order.

    Raises:
        ConfigError: see above.
    """
    data = config.read_toml(Path(path), overrides)
    if "compare" in data:
        raise ConfigError(f"compare: {path} is the recipe of a comparison. Run it by: hardy compare {path}")
    recipe = config.build(Recipe, data)
    build_methods(recipe.methods)
    return recipe


def build_methods(tables: Sequence[Mapping[str, Any]]) -> list[Method]:
    """Make the methods that tables with ``name``, perhaps ``preset``, and parameters describe.

    Raises:
        ConfigError: no such method, preset or parameter, or a value out of range; the message starts with
            ``methods[i]``.
    """
    methods: list[Method] = []
    for i, table in enumerate(tables):
        name = table.get("name")
        if name not in METHODS:
            raise ConfigError(f"methods[{i}].name: unknown method {name!r}; {did_you_mean(str(name), METHODS)}")
        given = {key: v for key, v in table.items() if key not in {"name", "preset"} and v is not None}
        params = {**_preset(name, table.get("preset"), f"methods[{i}].preset"), **given}
        listed = {key: list(v) if isinstance(v, tuple) else v for key, v in params.items()}
        methods.append(config.build(METHODS[name], listed, f"methods[{i}]."))
    return methods


def _preset(method: str, preset: object, at: str) -> dict[str, Any]:
    """Give the fields of a preset; none without one."""
    if preset is None:
        return {}
    known = PRESETS.get(method, {})
    if not isinstance(preset, str) or preset not in known:
        hint = did_you_mean(str(preset), known) if known else f"{method} has none."
        raise ConfigError(f"{at}: unknown preset {preset!r}; {hint}")
    return {key: value for key, value in asdict(cast("Any", known[preset])).items() if value is not None}


def method_table(method: Method) -> dict[str, Any]:
    """Describe a method as a recipe does; a user's own class by its name and ``repr``."""
    for name, cls in METHODS.items():
        if type(method) is cls:
            return {"name": name, **asdict(cast("Any", method))}
    return {"name": type(method).__name__}
