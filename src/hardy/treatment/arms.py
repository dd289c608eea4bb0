"""What a treatment trains: its own nets, and the controls that show what the same training does without it."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from hardy import models, surgery
from hardy.errors import ParameterError, did_you_mean
from hardy.methods import METHODS, PRESETS, Distillation, Method, ModelDoctor
from hardy.models import Classifier
from hardy.training import TrainRecipe

__all__ = ["CONTROL", "HOW", "NOISE", "Arm", "Wish", "arms_of", "fresh", "spec_of"]

CONTROL, NOISE = "control", "noise_control"
SPACE = 10.0  # weight of the space-wise constraint: the released code's
HOW: Mapping[str, str] = {  # of the treatments that are more than a method, in words
    "channel": "Model Doctor: a class shall not depend on channels that its sure images do not use",
    "space": "Model Doctor: a class shall not depend on the background; needs masks",
    "both": "Model Doctor, both constraints; needs masks",
    "rift": "RiFT: train the layer alone that matters least for robustness, as far as robustness allows",
    "distill": "a fresh student learns from the patient's answers",
}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: Name of its folder.
        methods: What is attached.
        start: Gives the net to train, from the seed.
    """

    name: str
    methods: tuple[Method, ...]
    start: Callable[[int], nn.Module]


@dataclass(frozen=True)
class Wish:
    """What to do, read and checked.

    Attributes:
        how: Its name: a key of ``HOW``, or a method's.
        method: The method of the treatment; for "rift" none.
        masks: Whether it needs the background of the training images.
        options: How it is trained unless the caller says.
    """

    how: str
    method: Method | None
    masks: bool = False
    options: TrainRecipe = TrainRecipe(lr=0.01)  # noqa: RUF009  (frozen)


def spec_of(how: str | Method, preset: str | None) -> Wish:
    """Read what is wanted.

    Args:
        how: A key of ``HOW``, the name of any method, or a method with its fields.
        preset: Of the method; for Model Doctor "paper" or "repo".

    Raises:
        ParameterError: no such treatment or preset.
    """
    if not isinstance(how, str | Method):
        raise ParameterError(f"treat: how must be the name of a treatment, or a method; got {how!r}.")
    if not isinstance(how, str):
        if preset is not None:
            raise ParameterError(f"treat: preset must be left out beside a method with its fields; got {preset!r}.")
        return Wish(_name_of(how), how, masks=isinstance(how, ModelDoctor) and how.space > 0)
    how = "distill" if how == "distillation" else how  # which needs a student and its teacher
    if how not in HOW and how not in METHODS:
        raise ParameterError(f"treat: no treatment {how!r}; {did_you_mean(how, [*HOW, *METHODS])}")
    name = "model_doctor" if how in ("channel", "space", "both") else how
    if preset is not None and preset not in PRESETS.get(name, {}):
        raise ParameterError(f"treat: {how} has no preset {preset!r}; {did_you_mean(preset, PRESETS.get(name, {}))}")
    if how == "rift":  # and its control, by the recipe of the paper
        return Wish(how, None, options=TrainRecipe(epochs=10, lr=0.001, schedule="step", milestones=(0.5,)))
    if how == "distill":  # from new weights: the learning rate of a training from scratch
        return Wish(how, None, options=TrainRecipe())
    method: Method = PRESETS[name][preset] if preset is not None else METHODS[name]()
    if isinstance(method, ModelDoctor):
        method = replace(method, space=SPACE if how in ("space", "both") else 0.0)
        method = replace(method, channel=0.0) if how == "space" else method
    return Wish(how, method, masks=isinstance(method, ModelDoctor) and method.space > 0)


def _name_of(method: Method) -> str:
    if isinstance(method, ModelDoctor):
        return "both" if method.channel and method.space else "space" if method.space else "channel"
    return next((key for key, cls in METHODS.items() if type(method) is cls), type(method).__name__)


def arms_of(
    wish: Wish, method: Method | None, patient: nn.Module, *, noise_control: bool, student: Callable[[int], nn.Module]
) -> list[Arm]:
    """List what has to be trained, the control first; the arm of "rift" is trained otherwise.

    Args:
        wish: What is wanted.
        method: Its method, complete with the files that it reads.
        patient: The plain net.
        noise_control: Add a control with the noise of Model Doctor and no constraint.
        student: Gives new nets, for distillation.
    """

    def again(_: int) -> nn.Module:
        return copy.deepcopy(patient)

    start = student if isinstance(method, Distillation) else again
    arms = [Arm(CONTROL, (), start)]
    if noise_control and isinstance(method, ModelDoctor):
        arms.append(Arm(NOISE, (replace(method, channel=0.0, space=0.0),), again))
    if method is not None:
        arms.append(Arm(wish.how, (method,), start))
    return arms


def fresh(patient: nn.Module, seed: int) -> nn.Module:
    """Build the patient's net with new weights.

    Args:
        patient: Built by Hardy, or of layers that can all be reset.
        seed: Of the weights.

    Raises:
        ParameterError: a layer with parameters has no ``reset_parameters``.
    """
    plain = surgery.strip(patient, live=True)
    if isinstance(plain, Classifier) and plain.source.builder != "external":
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            made = models.rebuild(plain.source)
        made.class_names = plain.class_names
        return made
    held = [m for m in plain.modules() if any(True for _ in (*m.parameters(recurse=False), *m.buffers(recurse=False)))]
    fixed = [type(m).__name__ for m in held if not hasattr(m, "reset_parameters")]
    if fixed:
        raise ParameterError(
            f"treat: a student needs new weights, but {fixed[0]} cannot be reset. Pass student=, which builds a net."
        )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for module in held:
            module.reset_parameters()  # type: ignore[operator]
    return plain
