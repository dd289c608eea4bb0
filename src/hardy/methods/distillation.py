"""Distillation: a net learns the answers of a finished one, its teacher, instead of the labels.

Hinton, Vinyals, Dean. "Distilling the knowledge in a neural network". 2015, https://arxiv.org/abs/1503.02531: the loss
of softened answers. Lyle, Rowland, Dabney, Kwiatkowska, Gal. "Learning dynamics and generalization in reinforcement
learning". ICML 2022, https://arxiv.org/abs/2206.02126, distil a finished policy into another net and say in their
abstract that it then generalises better and is more robust to changed inputs. What is done here with classifiers is
inspired by that.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import models, surgery
from hardy.errors import AttachError, HardyError, ParameterError
from hardy.methods._card import Card
from hardy.methods._checks import in_range
from hardy.methods._search import cross_entropy, kl_divergence, wide
from hardy.methods.mixup import class_count

__all__ = ["CARD", "Distillation", "Teacher", "distillation_loss"]

CARD = Card(
    name="distillation",
    summary="Train towards the answers of a finished net to the same view of the image; a student from new initial "
    "weights leaves the history of the teacher's training behind.",
    paper="Hinton et al., 2015; inspired by Lyle et al., ICML 2022",
    url="https://arxiv.org/abs/1503.02531",
    kind="loss",
    live=False,
    attaches="the task loss, and looks at the input",
    defaults_from="ours. Weight 1, the teacher alone, and temperature 1 would be the plain divergence, which we "
    "believe Lyle et al. train with; of their paper only the abstract could be read. The factor temperature^2 is that "
    "of Hinton et al., written from memory.",
    deviations=(
        "Inspired by Lyle et al., no implementation of it: there the teacher is a policy that was trained by "
        "reinforcement. Here the teacher is a classifier, and the student sees the training images.",
        "The teacher answers to the view that the student sees: after augmentation and after the methods before this.",
    ),
    notes=(
        "The teacher is frozen, in eval mode, and no part of the student: not of its weights, optimizer or files.",
        "Put it after methods that change images. What comes later changes what the student sees but not what the "
        "teacher was asked, as adversarial training would.",
        "It defines the task loss, so label_smoothing and mart cannot be beside it.",
        "A step costs one more forward pass, of the teacher, which is counted as one of the student.",
        "A recipe names a checkpoint or a run folder. In code the teacher is a net: Distillation(teacher=hardy.load("
        "...)); it is copied. A run that is resumed must find the same file.",
        "With train.compile the teacher is not compiled.",
    ),
)


class Teacher(str):
    """A frozen net under a name, so that a spec which holds it can be compared, printed and written to a recipe.

    Attributes:
        net: A copy in eval mode, without train-only methods and without gradients.
    """

    net: nn.Module

    @classmethod
    def of(cls, net: nn.Module, name: str | None = None) -> "Teacher":
        """Copy a net; without a name it is called after its kind and a fingerprint of its weights.

        Raises:
            AttachError: it is compiled or wrapped.
        """
        twin = surgery.strip(net).eval().requires_grad_(False)
        made = cls(_described(twin) if name is None else name)
        made.net = twin
        return made

    def __deepcopy__(self, _: object) -> "Teacher":
        return self  # frozen: copies of a student share it

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickled, (str(self), self.net)


def _unpickled(name: str, net: nn.Module) -> Teacher:
    made = Teacher(name)
    made.net = net
    return made


def _described(net: nn.Module) -> str:
    """Name a net after its kind and its weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in net.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    kind = net.source.name if isinstance(net, models.Classifier) else type(net).__name__
    return f"{kind} with weights {digest.hexdigest()}"


def distillation_loss(
    logits: Float[Tensor, "n k"],
    teacher: Float[Tensor, "n k"],
    y: Int[Tensor, "n"] | Float[Tensor, "n k"],
    *,
    temperature: float,
    weight: float,
) -> Float[Tensor, "n"]:
    r"""Compute :math:`w T^2 KL(softmax(t / T) || softmax(z / T)) + (1 - w) CE(z, y)` of each row, in nats.

    The factor T^2 makes gradients of the first part about as large at any temperature. For large T, and logits without
    their means, the first part becomes half the mean square of their difference over the classes.

    Args:
        logits: Of the student, z.
        teacher: Logits of the teacher, t; no gradient goes there if they have none.
        y: Labels, or label probabilities.
        temperature: T, above 0.
        weight: w, the share of the teacher, in [0, 1].

    Returns:
        float32 or wider, at least 0.
    """
    soft = temperature**2 * kl_divergence(wide(teacher) / temperature, wide(logits) / temperature)
    return soft if weight == 1 else weight * soft + (1 - weight) * cross_entropy(logits, y)


class DistillationInsert(surgery.Insert):
    """Asks the teacher about every training batch and replaces the task loss."""

    def __init__(self, spec: "Distillation", *, seed: int) -> None:
        super().__init__(spec, seed=seed)
        self.answers: Tensor | None = None  # of the teacher, from the inputs of a step to its task loss

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        self.answers = ask(self.spec.teacher.net, x)
        return x, y

    def task(self, logits: Tensor, y: Tensor) -> Tensor:
        answers, self.answers = self.answers, None
        assert answers is not None  # noqa: S101  (Objective asks for inputs first)
        return distillation_loss(logits, answers, y, temperature=self.spec.temperature, weight=self.spec.weight)

    @property
    def passes(self) -> surgery.Passes:
        return surgery.Passes(forward=1)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # untyped in torch
def ask(teacher: nn.Module, x: Float[Tensor, "n c h w"]) -> Tensor:
    """Give the logits of a frozen net, which moves to the device of the images and keeps its own precision."""
    place = next((p for p in teacher.parameters() if p.is_floating_point()), None)
    if place is not None and place.device != x.device:
        teacher.to(x.device)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        logits: Tensor = teacher(x.detach().clone().to(torch.float32 if place is None else place.dtype))
    return logits


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Distillation as a method.

    Attributes:
        teacher: The finished net: in a recipe a checkpoint or a run folder, in code also a net, which is copied.
        temperature: What both nets' logits are divided by, above 0: the higher, the more the wrong classes count.
        weight: Share of the teacher in the loss, in [0, 1]; the rest is the cross-entropy with the labels.
    """

    teacher: str | nn.Module
    temperature: float = 4.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ParameterError(f"Distillation: temperature must be above 0 and finite; got {self.temperature}.")
        in_range("Distillation", "weight", self.weight, 0, 1)
        if not self.teacher and not isinstance(self.teacher, nn.Module):
            raise ParameterError("Distillation: teacher must be a checkpoint, a run folder or a net; got none.")
        if isinstance(self.teacher, nn.Module):
            object.__setattr__(self, "teacher", Teacher.of(self.teacher))

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Define the task loss of ``Objective``; changes no layer.

        Raises:
            AttachError: the teacher is a file still, does not take these images, or answers for other classes.
        """
        if not isinstance(self.teacher, Teacher):
            raise AttachError(
                f"{CARD.name}: the teacher must be a net here; got the file {self.teacher}. "
                "Distillation(teacher=hardy.load(file)); hardy.train and recipes take the file."
            )
        check_teacher(model, self.teacher, example)
        return surgery.insert(model, DistillationInsert(self, seed=seed), method=CARD.name)


def check_teacher(model: nn.Module, teacher: Teacher, example: Float[Tensor, "n c h w"]) -> None:
    """Demand that both nets answer to the same images for the same classes; leaves no trace.

    Raises:
        AttachError: they do not.
    """
    who, wanted = f"{CARD.name}: the teacher ({teacher})", class_count(model, example, CARD.name)
    try:
        answer = ask(teacher.net, example[:1])
    except (RuntimeError, ValueError, AssertionError, HardyError) as error:
        shape = "x".join(map(str, example.shape[1:]))
        raise AttachError(f"{who} must take the student's images, {shape}; it does not ({error}).") from error
    if not isinstance(answer, Tensor) or answer.shape != (1, wanted):
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise AttachError(f"{who} must give one logit for each of the {wanted} classes; got {got} for one image.")
    own, other = _class_names(model), _class_names(teacher.net)
    if own and other and own != other:
        first = next(i for i, (a, b) in enumerate(zip(own, other, strict=True)) if a != b)
        raise AttachError(
            f"{who} must have the student's classes in the same order; class {first} is {own[first]!r} for the "
            f"student, {other[first]!r} for the teacher."
        )


def _class_names(net: nn.Module) -> tuple[str, ...]:
    """Give the names of the classes; none if they are only numbers."""
    names = net.class_names if isinstance(net, models.Classifier) else ()
    return () if names == tuple(map(str, range(len(names)))) else names
