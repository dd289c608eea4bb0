"""What every axis is given, and what it gives back."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy import seeding
from hardy.attacks import AttackResult, Progress, attack
from hardy.attacks.foreign import name_of
from hardy.attacks.goal import predicted
from hardy.attacks.passes import Passes
from hardy.attacks.state import AnyAttack, ForeignAttack, Stop
from hardy.evaluation.budget import Budget
from hardy.evaluation.fingerprint import behaviour_digest, images_digest, weights_digest
from hardy.evaluation.journal import ROWS, Journal, result_of
from hardy.evaluation.material import Material
from hardy.evaluation.pieces import interleaved, pieces
from hardy.ranks import Ranks, Rows
from hardy.results import Axis, Point, point
from hardy.threats import Threat

__all__ = ["DRAWS", "RANDOM", "AxisProgress", "Context", "Measured", "NotMeasured", "Source", "record"]


@dataclass(frozen=True)
class Source:
    """A net that adversarial images are made on: independent of the model, its sibling, or its un-hardened base."""

    name: str
    model: nn.Module
    kind: Literal["independent", "gray-box", "base"]


@dataclass(frozen=True)
class AxisProgress:
    """What ``on_progress`` is called with.

    Attributes:
        axis: At work.
        done: Axes done.
        total: Of how many.
        attack: The attack at work, if any, in images.
        robust: Share of all images that the axis has not broken so far, if it counts them.
    """

    axis: str
    done: int
    total: int
    attack: Progress | None = None
    robust: float | None = None


J = TypeVar("J")
OnAttack = Callable[[Progress, int | None], None]
DRAWS = 20  # answers of a random net that are averaged in a gradient, and that vote; as in AutoAttack's suite for such
OWN = "hardy.attacks."  # whose ``repr`` says all there is to know of an attack
RANDOM = "the net answers at random"
FEW = 16  # images that are not worth a division


@dataclass(frozen=True, kw_only=True)
class Context:
    """The question: a model, images, a threat, other nets, a budget and a seed.

    Attributes:
        model: The attacked net.
        x: Images.
        y: True classes.
        rows: Identities of the images, the source of their randomness.
        predictions: Of the plain images, as ``correct``.
        num_classes: Outputs of the net.
        threat: Norm and budget.
        suite: Attacks of ``white_box`` by label, in order.
        suite_name: What the suite is called in the record.
        sources: Other nets.
        twin: A differentiable stand-in for the net, that gradients are taken of besides those of the net itself.
        draws: Answers that are averaged or voted where the net is random; 1 where it is not.
        budget: How hard the other axes try.
        material: What some axes need besides.
        seed: Seed of everything random.
        batch_size: Rows per pass, at most.
        ranks: The processes that share the work. All must ask the same, in the same order.
        journal: Where finished parts of attacks are kept; None for nowhere.
        on_attack: Called with the progress of an attack and how many images stood before it, if that is known.
        seen: Axes measured so far, by name.
        memo: What several axes and checks need, computed once.
    """

    model: nn.Module
    x: Float[Tensor, "n c h w"]
    y: Int[Tensor, "n"]
    rows: Int[Tensor, "n"]
    predictions: Int[Tensor, "n"]
    num_classes: int
    threat: Threat
    suite: Mapping[str, AnyAttack | ForeignAttack] = field(default_factory=dict)
    suite_name: str = "custom"
    sources: tuple[Source, ...] = ()
    twin: nn.Module | None = None
    draws: int = 1
    budget: Budget = field(default_factory=Budget)
    material: Material = field(default_factory=Material)
    seed: int = 0
    batch_size: int = 128
    ranks: Ranks = Ranks()  # noqa: RUF009  (frozen)
    journal: Journal | None = None
    on_attack: OnAttack | None = None
    seen: "dict[str, Measured]" = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def correct(self) -> Bool[Tensor, "n"]:
        """Which plain images are classified right."""
        return self.predictions == self.y

    @property
    def chance(self) -> float:
        """Accuracy of guessing, 1 / number of classes."""
        return 1 / self.num_classes

    @functools.cached_property
    def weights(self) -> str:
        """Fingerprint of the model's weights."""
        return weights_digest(self.model)

    def answered(self) -> "Context":
        """Copy the question with the answers of its net to the plain images, and nothing measured yet."""
        logits = self.logits(self.x)
        predictions = predicted(logits) if self.draws == 1 else self.predict(self.x)
        return dataclasses.replace(self, predictions=predictions, seen={}, memo={"logits": logits})

    def keys(self, purpose: str) -> Int[Tensor, "n"]:
        """Give one key per image for this purpose."""
        return seeding.keys(seeding.root(self.seed, purpose), self.rows)

    def alone(self) -> "Context":
        """Copy the question for this process alone, for use inside a job that is shared as a whole."""
        return dataclasses.replace(self, ranks=Ranks())

    def predict(self, x: Float[Tensor, "n c h w"], model: nn.Module | None = None) -> Int[Tensor, "n"]:
        """Predict classes (-1 for NaN logits), of a random model by a vote of ``draws`` answers; as :meth:`logits`."""
        return self.predict_made(lambda part: x[part], len(x), model)

    def predict_made(
        self, make: Callable[[Int[Tensor, "m"]], Float[Tensor, "m c h w"]], n: int, model: nn.Module | None = None
    ) -> Int[Tensor, "n"]:
        """Predict the classes of ``n`` images that ``make`` makes, given the places of some; as :meth:`predict`.

        Only some batches are made at a time, and each by one process only.
        """
        times = self.draws if model is None else 1

        def vote(part: Tensor, passes: Passes) -> Tensor:
            x, rows = make(part), torch.arange(len(part), device=part.device)
            answers = [predicted(passes.logits(x, rows, fixed=True)) for _ in range(times)]
            return torch.stack(answers).mode(dim=0).values

        return self._asked(vote, n, model)

    def logits(self, x: Float[Tensor, "n c h w"], model: nn.Module | None = None) -> Float[Tensor, "n k"]:
        """Give float32 logits in one fixed padded shape; by ``model``, if given."""

        def ask(part: Tensor, passes: Passes) -> Tensor:
            return passes.logits(x[part], torch.arange(len(part), device=part.device), fixed=True)

        return self._asked(ask, len(x), model)

    def _asked(self, ask: Callable[[Tensor, Passes], Tensor], n: int, model: nn.Module | None) -> Tensor:
        """Ask a net about ``n`` images, batch by batch."""

        def work(part: Tensor) -> Rows:
            passes = Passes([model or self.model], size=len(batches[0]), n=len(part), device=part.device)
            return {"answer": ask(part, passes)}

        batches = self.batches(n)
        return torch.cat([found["answer"] for found in self.share(batches, work)])

    def batches(self, n: int) -> tuple[Int[Tensor, "_"], ...]:
        """Cut the places of ``n`` images into batches of one size, but for the last."""
        size = min(self.batch_size, max(FEW, -(-n // pieces(n, self.batch_size, self.x.device))), max(n, 1))
        return torch.split(torch.arange(n, device=self.x.device), size)

    def share(self, jobs: Sequence[J], work: Callable[[J], Rows]) -> list[Rows]:
        """Do jobs, each in one of the processes, and give the answers to all, in order.

        A net that answers at random draws from one generator, so each process does all the jobs; those of an attack,
        which has one of its own, are shared.
        """
        return self.ranks.share(jobs, work, device=self.x.device, split=self.draws == 1)

    def attack(
        self,
        attack_: AnyAttack | ForeignAttack,
        *,
        eps: float | None = None,
        index: Int[Tensor, "m"] | None = None,
        source: nn.Module | Sequence[nn.Module] | None = None,
        stop: Stop | None = None,
        standing: int | None = None,
    ) -> AttackResult:
        """Attack all images, or those in ``index``, at the threat's eps or another; search on ``source``, if given.

        Several sources are averaged. Where the net is random, one answer neither spares an image nor ends a search:
        every image is attacked with the whole budget. ``standing`` is for the progress: how many images stood before.
        """
        index = torch.arange(len(self.x), device=self.x.device) if index is None else index
        threat = self.threat if eps is None else Threat(self.threat.norm, eps)
        stop = "never" if self.draws > 1 else stop
        nets = [source] if isinstance(source, nn.Module) else list(source or ())
        parts, order = interleaved(index, pieces(len(index), self.batch_size, index.device))
        report = _Report(self.on_attack, total=len(index), times=min(self.ranks.size, len(parts)), standing=standing)

        def work(part: Tensor) -> Rows:
            found = self._part(part, attack_, threat=threat, sources=nets, stop=stop, report=report.on(len(part)))
            report.over(found)
            return {name: getattr(found, name) for name in ROWS}

        found = self.ranks.share(parts, work, device=index.device)
        rows = {name: torch.cat([part[name] for part in found])[order] for name in ROWS}
        return result_of(rows, attack=name_of(attack_), threat=threat)

    def _part(
        self,
        index: Int[Tensor, "m"],
        attack_: AnyAttack | ForeignAttack,
        *,
        threat: Threat,
        sources: Sequence[nn.Module],
        stop: Stop | None,
        report: Callable[[Progress], None],
    ) -> AttackResult:
        """Attack some images, or take the result from the journal. An attack from elsewhere has no name to trust."""
        journal = self.journal if type(attack_).__module__.startswith(OWN) else None
        facts: tuple[object, ...] = ()
        if journal is not None:
            others = [self._known(net) for net in sources]
            facts = (self._identity, attack_, threat, self.seed, stop, index.cpu().numpy().tobytes(), *others)
            kept = journal.recall(facts, attack=name_of(attack_), threat=threat, device=self.x.device)
            if kept is not None:
                return kept
        found = attack(
            self.model,
            self.x[index],
            self.y[index],
            attack_,
            threat=threat,
            rows=self.rows[index],
            seed=self.seed,
            batch_size=self.batch_size,
            sources=sources or None,
            stop=stop,
            skip_wrong=self.draws == 1,
            on_progress=report,
        )
        if journal is not None:
            journal.keep(facts, found)
        return found

    @functools.cached_property
    def _identity(self) -> bytes:
        """Everything that an attack on this question depends on, but for the attack."""
        arrays = (self.y, self.rows, self.predictions)
        values = b"".join(value.cpu().numpy().astype(np.int64).tobytes() for value in arrays)
        return images_digest(self.x) + values + self._known(self.model)

    def _known(self, net: nn.Module) -> bytes:
        """Give the behaviour of a net, computed once per net."""
        key = f"behaviour {id(net)}"
        if key not in self.memo:
            self.memo[key] = behaviour_digest(net, self.x)
        digest: bytes = self.memo[key]
        return digest


@dataclass
class _Report:
    """Turns the progress of an attack on one piece of the images, in jobs, into that of the whole, in images.

    With several processes the others are taken to be as far as this one: ``times`` as much is done.
    """

    listener: OnAttack | None
    total: int
    times: int
    standing: int | None = None
    done: int = 0

    def on(self, part: int) -> Callable[[Progress], None]:
        """Give what listens to the attack on a piece."""

        def report(p: Progress) -> None:
            if self.listener is not None:
                here = self.done + (part * p.done // p.total if p.total else part)
                whole = dataclasses.replace(p, done=min(self.times * here, self.total), total=self.total)
                self.listener(dataclasses.replace(whole, broken=self.times * p.broken), self.standing)

        return report

    def over(self, found: AttackResult) -> None:
        """Note that a piece is finished."""
        self.done += len(found.success)
        if self.standing is not None:
            self.standing -= self.times * int(found.success.sum())


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An axis with its per-image outcomes, and what its attacks saw on the way.

    Attributes:
        axis: The record.
        outcomes: By label, True where the image is still classified right.
        x_adv: Images that broke the model at the smallest budget tried; the plain image where none did.
        eps_broken: That budget; inf where none did.
        gradients: How many gradients the search saw, per image.
        zero_gradients: How many of them vanished.
        arrays: Further values per image, kept in the record as ``"axis/name"``; those that a score is the mean of
            have its label.
    """

    axis: Axis
    outcomes: dict[str, Bool[Tensor, "n"]]
    x_adv: Float[Tensor, "n c h w"] | None = None
    eps_broken: Float[Tensor, "n"] | None = None
    gradients: Int[Tensor, "n"] | None = None
    zero_gradients: Int[Tensor, "n"] | None = None
    arrays: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class NotMeasured:
    """An axis that lacked its inputs: why, and what would change that."""

    name: str
    reason: str
    remedy: str


def record(
    label: str,
    right: Bool[Tensor, "n"],
    *,
    level: float | None = None,
    series: str = "",
    passes: dict[str, int],
    details: dict[str, str | int | float | bool | None] | None = None,
) -> Point:
    """Make the point of one condition from its outcomes; details that are None or not finite are left out."""
    given = {k: v for k, v in (details or {}).items() if v is not None}
    kept = {k: v for k, v in given.items() if not isinstance(v, float) or math.isfinite(v)}
    return point(label, right.cpu().numpy(), level=level, series=series, passes=passes, details=kept)
