"""The axis of changed weights: its zeros are the usual numbers, its rows fall, and the weights come back."""

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hardy.attacks import APGD, PGD, Progress, attack
from hardy.errors import ParameterError
from hardy.evaluation import context, weight_table, weights
from hardy.evaluation.budget import Budget
from hardy.evaluation.context import Context, Measured, NotMeasured
from hardy.evaluation.fingerprint import weights_digest
from hardy.evaluation.weight_noise import analogue_noise, quantise
from hardy.evaluation.weight_search import WorstWeights, losses, worst_weights
from hardy.evaluation.weights import PATTERNS, measure
from hardy.perturbed import perturbable
from hardy.threats import Threat

Make = Callable[..., Context]
THREAT = Threat("linf", 0.05)
RADII = (0.01, 0.03, 0.1)
QUICK = Budget(
    weight_radii=RADII, weight_steps=2, weight_restarts=2, weight_input_steps=3,
    bits=(8, 3), bit_flip_rates=(0.001, 0.1), lost_shares=(0.02, 0.5), prune_shares=(0.2, 0.9),
    analogue_sigmas=(0.02, 0.4),
)  # fmt: skip
SMALL = Budget(
    weight_radii=(0.05,), weight_steps=2, weight_restarts=1, weight_input_steps=3,
    bits=(3,), bit_flip_rates=(0.03,), lost_shares=(0.3,), prune_shares=(0.9,), analogue_sigmas=(0.4,),
)  # fmt: skip
WORST_ROW = [f"weights {r:g}" for r in (0, *RADII)]
JOINT_ROW = [f"{label}, {THREAT}" for label in WORST_ROW]


@pytest.fixture(scope="module")
def make(net: nn.Module, x: Tensor, y: Tensor) -> Make:
    def context(model: nn.Module = net, n: int = 60, order: Tensor | None = None, **facts: object) -> Context:
        index = torch.arange(n) if order is None else order
        given: dict[str, object] = {"threat": THREAT, "budget": QUICK, "rows": index, **facts}
        return Context(model=model, x=x[index], y=y[index], predictions=y[index], num_classes=10, **given).answered()  # type: ignore[arg-type]

    return context


@pytest.fixture(scope="module")
def measured(make: Make) -> tuple[Context, Measured]:
    context = make()
    got = measure(context)
    assert isinstance(got, Measured)
    return context, got


def test_zeros_are_the_usual_accuracies(measured: tuple[Context, Measured]) -> None:
    context, got = measured
    assert torch.equal(got.outcomes["weights 0"], context.correct)
    alone = attack(context.model, context.x, context.y, PGD(steps=3), threat=THREAT, rows=context.rows, seed=0)
    assert torch.equal(got.outcomes[f"weights 0, {THREAT}"], ~alone.success)
    search_loss = next(p for p in got.axis.points if p.label == f"weights 0, {THREAT}").details["search_loss"]
    assert search_loss > 2 * float(losses(context.logits(context.x), context.y).mean())  # of attacked images
    assert 0.3 < float((~alone.success).float().mean()) < float(context.correct.float().mean())


def test_rows_and_columns_of_the_table_fall_and_can_be_found_in_the_points(measured: tuple[Context, Measured]) -> None:
    _, got = measured
    table = {(p.details["eps"], p.details["radius"]): p for p in got.axis.points if p.series.startswith(weights.WORST)}
    assert set(table) == {(eps, radius) for eps in (0.0, THREAT.eps) for radius in (0.0, *RADII)}
    for eps, labels in ((0.0, WORST_ROW), (THREAT.eps, JOINT_ROW)):
        row = [table[eps, radius] for radius in (0.0, *RADII)]
        assert [p.label for p in row] == labels and [p.level for p in row] == [0.0, *RADII]
        accuracies = [p.accuracy for p in row]
        assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] < accuracies[0] - 0.2
    assert all(table[THREAT.eps, radius].accuracy <= table[0.0, radius].accuracy for radius in (0.0, *RADII))
    assert got.axis.headline == "weights 0.01" and got.axis.headline in got.outcomes
    assert measure.__module__.endswith(got.axis.name)


def test_where_a_search_fails_the_worst_that_is_known_counts(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of a smaller ball is in the larger, and untouched inputs are in the ball of the attacked ones."""

    def forgetful(*args: object, **facts: object) -> WorstWeights:
        found = worst_weights(*args, **facts)  # type: ignore[arg-type]
        none = {name: torch.zeros_like(delta) for name, delta in found.deltas.items()}
        lost = facts["threat"] is not None or facts["ball"].radius > RADII[1]  # type: ignore[attr-defined]
        return dataclasses.replace(found, deltas=none) if lost else found

    monkeypatch.setattr(weight_table, "worst_weights", forgetful)
    threat = Threat("linf", 1e-5)
    got = measure(make(threat=threat))
    assert isinstance(got, Measured)
    points = {p.label: p for p in got.axis.points}
    kept = got.outcomes[f"weights {RADII[1]:g}"]
    assert int(kept.sum()) < int(got.outcomes["weights 0"].sum()) - 5
    assert torch.equal(got.outcomes[f"weights {RADII[2]:g}"], kept)
    assert [points[f"weights {r:g}"].details["found_at"] for r in RADII] == [RADII[0], RADII[1], RADII[1]]
    for radius in RADII[1:]:
        assert torch.equal(got.outcomes[f"weights {radius:g}, {threat}"], kept)
    assert points[f"weights {RADII[1]:g}, {threat}"].details["inputs"] == "untouched"
    assert "inputs" not in points[f"weights 0, {threat}"].details


def test_the_worst_case_is_worse_than_chance_of_the_same_size(measured: tuple[Context, Measured]) -> None:
    _, got = measured
    value = {s.label: s.value for s in got.axis.scores}
    for radius in RADII:
        worst, random = f"weights {radius:g}", f"random {radius:g}"
        assert got.outcomes[worst].sum() <= got.outcomes[random].sum()
        assert value[f"flatness, {worst}"] > max(0.01, 3 * value[f"flatness, {random}"])
    assert all(s.kind == "description" and s.unit == "nats" for s in got.axis.scores)
    assert [value[f"flatness, {label}"] for label in WORST_ROW[1:]] == sorted(
        value[f"flatness, {label}"] for label in WORST_ROW[1:]
    )
    assert all(value[f"flatness, {label}"] > 0 for label in JOINT_ROW[1:])


def test_scores_are_means_of_the_arrays_and_points_of_the_outcomes(measured: tuple[Context, Measured]) -> None:
    _, got = measured
    assert set(got.arrays) == {s.label for s in got.axis.scores} and len(got.axis.scores) == 9
    for score in got.axis.scores:
        assert got.arrays[score.label].dtype == torch.float32
        assert score.value == pytest.approx(float(got.arrays[score.label].double().mean())) and score.n == 60
    assert set(got.outcomes) == {p.label for p in got.axis.points} and len(got.axis.points) == 2 * 4 + 3 + 10
    for point in got.axis.points:
        assert point.accuracy == pytest.approx(float(got.outcomes[point.label].float().mean()))
        assert point.passes["forward"] >= 60


def test_mild_wear_does_little_and_heavy_wear_much(measured: tuple[Context, Measured]) -> None:
    context, got = measured
    clean = float(context.correct.float().mean())
    accuracy = {p.label: p.accuracy for p in got.axis.points}
    mild = ["bits 8", "bit flips 0.001", "random zeros 0.02", "smallest zeros 0.2", "analogue noise 0.02"]
    heavy = ["bit flips 0.1", "random zeros 0.5", "smallest zeros 0.9", "analogue noise 0.4"]
    assert all(accuracy[label] >= clean - 0.1 for label in mild)
    assert all(accuracy[label] < clean - 0.05 for label in heavy)
    by_hand = copy.deepcopy(context.model)
    for weight in perturbable(by_hand).values():
        weight.data = quantise(weight.data, bits=3)
    assert torch.equal(got.outcomes["bits 3"], by_hand(context.x).argmax(dim=1) == context.y)


def test_every_image_meets_one_of_the_patterns_and_each_is_met(make: Make) -> None:
    context = make(n=120)
    met = context.keys("weights patterns") % PATTERNS
    assert len(met.unique()) == PATTERNS and int(met.min()) == 0
    assert int(met.bincount().min()) >= 3 and int(met.bincount().max()) <= 27


def test_weights_are_the_same_bits_afterwards(make: Make, net: nn.Module) -> None:
    fresh = copy.deepcopy(net)
    before = weights_digest(fresh)
    assert isinstance(measure(make(fresh, n=20, budget=SMALL)), Measured)
    assert weights_digest(fresh) == before
    assert all(p.requires_grad and p.grad is None for p in fresh.parameters())


@pytest.mark.parametrize("when", [1, 2, 5, 12, 20, 30])
def test_weights_come_back_after_an_interruption_at_any_time(make: Make, net: nn.Module, when: int) -> None:
    fresh = copy.deepcopy(net)
    before, calls = weights_digest(fresh), 0

    def stop(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == when:
            raise KeyboardInterrupt

    context = make(fresh)
    handle = fresh.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        measure(context)
    handle.remove()
    assert calls == when and weights_digest(fresh) == before


def test_interrupted_while_the_weights_are_others(make: Make, net: nn.Module) -> None:
    fresh = copy.deepcopy(net)
    before, seen = weights_digest(fresh), []

    def stop(*_: object) -> None:
        seen.append(weights_digest(fresh) != before)
        if seen[-1]:
            raise KeyboardInterrupt

    context = make(fresh)
    fresh.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        measure(context)
    assert seen[-1] and weights_digest(fresh) == before


def test_order_and_batches_do_not_matter(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_table, "SEARCH", 16)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    plain, other = measure(make(budget=SMALL)), measure(make(budget=SMALL, order=order, batch_size=23))
    assert isinstance(plain, Measured) and isinstance(other, Measured)
    for label, right in other.outcomes.items():
        assert int((right != plain.outcomes[label][order]).sum()) <= 1, label
    for label, rise in other.arrays.items():
        wanted = plain.arrays[label] if len(rise) == 16 else plain.arrays[label][order]
        assert torch.allclose(rise, wanted, rtol=0.02, atol=1e-3), label


def test_the_twin_follows_the_model(net: nn.Module, make: Make) -> None:
    model, twin = copy.deepcopy(net), nn.ModuleDict({"net": copy.deepcopy(net)}).eval()  # other names
    values = {name: weight.detach() + 1 for name, weight in perturbable(model).items()}
    with weight_table._changed(make(model), twin, values):
        for wanted, a, b in zip(values.values(), perturbable(model).values(), perturbable(twin).values(), strict=True):
            assert torch.equal(a, wanted) and torch.equal(b, wanted)
    for a, b, c in zip(*(perturbable(each).values() for each in (model, twin, net)), strict=True):
        assert torch.equal(a, c) and torch.equal(b, c)


def test_the_seed_decides_what_is_random(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    roots: dict[int, list[int]] = {0: [], 1: []}
    found = {}
    for seed, seen in roots.items():

        def note(weight: Tensor, sigma: float, root: int, name: str, seen: list[int] = seen) -> Tensor:
            seen.append(root)
            return analogue_noise(weight, sigma, root, name)

        monkeypatch.setattr(weights, "analogue_noise", note)
        found[seed] = measure(make(budget=SMALL, seed=seed)).outcomes  # type: ignore[union-attr]
    assert len(set(roots[0])) == len(set(roots[1])) == PATTERNS and not set(roots[0]) & set(roots[1])
    assert not torch.equal(found[0]["analogue noise 0.4"], found[1]["analogue noise 0.4"])
    assert torch.equal(found[0]["bits 3"], found[1]["bits 3"])


def test_search_images_are_few_and_the_others_are_judged_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_table, "SEARCH", 16)
    got = measure(make())
    assert isinstance(got, Measured)
    point = next(p for p in got.axis.points if p.label == "weights 0.1")
    assert point.details["searched_on"] == 16 and point.n == 60
    settings = {"search_steps": 2, "search_restarts": 2, "ball": Budget().weight_ball}
    assert settings.items() <= point.details.items() and "input_steps" not in point.details
    both = next(p for p in got.axis.points if p.label == f"weights 0.1, {THREAT}").details
    assert both["input_steps"] == make().budget.weight_input_steps
    score = next(s for s in got.axis.scores if s.label == "flatness, weights 0.1")
    assert settings.items() <= score.details.items()
    assert point.passes == {"forward": 60 + 16 * 2 * 3, "backward": 16 * 2 * 2}
    assert len(got.arrays["flatness, weights 0.1"]) == 60 and len(got.arrays[f"flatness, weights 0.1, {THREAT}"]) == 16


@pytest.mark.parametrize(("ball", "threat"), [("linf", THREAT), ("l2", Threat("l2", 0.3)), ("l2", Threat("l1", 2.0))])
def test_other_balls(make: Make, ball: str, threat: Threat) -> None:
    budget = dataclasses.replace(SMALL, weight_ball=ball)  # type: ignore[arg-type]
    got = measure(make(n=30, budget=budget, threat=threat))
    assert isinstance(got, Measured)
    found = {p.label: p for p in got.axis.points}
    assert found["weights 0.05"].details["ball"] == ball
    assert found[f"weights 0.05, {threat}"].accuracy < found["weights 0.05"].accuracy <= found["weights 0"].accuracy


def test_a_net_without_gradients_says_so_and_is_searched_through_its_twin(make: Make, net: nn.Module) -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(net)

        def forward(self, x: Tensor) -> Tensor:
            return (self.net(x) * 4).round() / 4

    model = Rounded().eval()
    alien = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    blind, seeing, foreign = (
        measure(make(model, n=30, budget=SMALL, twin=twin)) for twin in (None, copy.deepcopy(net), alien)
    )
    assert isinstance(blind, Measured) and isinstance(seeing, Measured) and isinstance(foreign, Measured)
    for label in ("weights 0.05", f"weights 0, {THREAT}", f"weights 0.05, {THREAT}"):
        assert seeing.outcomes[label].sum() < blind.outcomes[label].sum()
    details = [
        next(p for p in got.axis.points if p.label == "weights 0.05").details for got in (blind, seeing, foreign)
    ]
    assert [d.get("zero_gradients") for d in details] == [2, None, 2]
    assert [d.get("through") for d in details] == [None, "twin", "model, as its twin has other weights"]


def test_progress_comes_to_its_end(make: Make) -> None:
    seen: list[Progress] = []
    measure(make(n=10, budget=SMALL, on_attack=lambda progress, _: seen.append(progress)))
    assert [p.done for p in seen] == list(range(1, 11)) and {p.total for p in seen} == {10}


def test_a_net_that_answers_at_random_is_asked_often(
    make: Make, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x + 0.01 * torch.randn_like(x))

    specs = []

    def note(model: nn.Module, x: Tensor, y: Tensor, spec: object, **facts: object) -> object:
        specs.append(spec)
        return attack(model, x, y, spec, **facts)  # type: ignore[arg-type]

    monkeypatch.setattr(context, "attack", note)
    got = measure(make(Noisy().eval(), n=20, draws=3, budget=SMALL))
    assert isinstance(got, Measured)
    assert specs and set(specs) == {APGD(steps=3, eot=3)}
    points = {p.label: p for p in got.axis.points}
    assert points["weights 0"].passes["forward"] == points["bits 3"].passes["forward"] == 20 * (1 + 3)
    assert got.outcomes[f"weights 0.05, {THREAT}"].sum() < got.outcomes["weights 0"].sum()


def test_what_cannot_be_changed_is_not_measured(make: Make, net: nn.Module) -> None:
    computed = copy.deepcopy(net)
    parametrizations.weight_norm(computed[0])  # type: ignore[index]
    got = measure(make(computed))
    assert isinstance(got, NotMeasured) and got.name == "weights" and "0.weight" in got.reason

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10]

    assert isinstance(measure(make(Fixed().eval())), NotMeasured)


def test_the_budget_refuses_what_makes_no_sense() -> None:
    for facts in ({"weight_radii": (0.0,)}, {"bits": (1,)}, {"bit_flip_rates": (2.0,)}, {"lost_shares": ()}):
        with pytest.raises(ParameterError, match=next(iter(facts))):
            Budget(**facts)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="weight_input_steps"):
        Budget(weight_input_steps=0)
    with pytest.raises((ParameterError, TypeError), match="weight_ball"):  # the second where annotations are checked
        Budget(weight_ball="l1")  # type: ignore[arg-type]
